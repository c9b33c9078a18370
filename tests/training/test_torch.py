"""From torch to ONNX, and the loop around a training. Serving needs no torch, so these are skipped without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from training.flags import Flags

torch = pytest.importorskip("torch", reason="training needs torch")
from training.export import Picture, answers, check_equal, open_session, torch_to_onnx  # noqa: E402
from training.loop import Average, Checkpoint, epochs, start  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Only what every script has."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(data=tmp_path, out=tmp_path, work=tmp_path / "work")


def test_the_exported_graph_takes_pictures_and_any_batch() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
    whole = Picture(network, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0), bgr=True).eval()
    pixels = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    model = torch_to_onnx(whole, {"image": pixels[:2]}, ["logits"])
    with torch.no_grad():
        expected = whole(pixels)
    assert check_equal(model, {"image": pixels.numpy()}, {"logits": expected}, tolerance=1e-4) < 1e-4
    assert answers(open_session(model), {"image": pixels.numpy()}, batch=2)["logits"].shape == (5, 2)
    with pytest.raises(SystemExit, match="logits: ONNX and the framework differ by"):
        check_equal(model, {"image": pixels.numpy()}, {"logits": expected + 1}, tolerance=1e-4)


def trained(config: Config, ended_in: int | None = None) -> tuple[list[float], list[int]]:
    """Five epochs, unless it is ended in one of them; the averaged weights, and the epochs that were run."""
    start(config)
    network = torch.nn.Linear(2, 1)
    adam = torch.optim.Adam(network.parameters(), lr=0.1)
    average, seen = Average(network, 0.9), []
    for epoch in epochs(5, Checkpoint(config, network=network, adam=adam, average=average)):
        seen.append(epoch.number)
        loss = (network(torch.randn(8, 2)) - 1).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        average.update()
        epoch.log(loss=loss.item())
        if epoch.number == ended_in:
            break
    average.swap()
    return torch.cat([value.detach().flatten() for value in network.parameters()]).tolist(), seen


def test_a_training_that_was_ended_goes_on_as_if_it_had_not_been(config: Config, tmp_path: Path) -> None:
    whole, seen = trained(Config(data=tmp_path, out=tmp_path, work=tmp_path / "other"))
    assert seen == [0, 1, 2, 3, 4]
    trained(config, ended_in=2)
    resumed, seen = trained(config)
    assert seen == [2, 3, 4]
    np.testing.assert_array_equal(resumed, whole)


def test_without_resume_it_starts_over(config: Config, tmp_path: Path) -> None:
    trained(config)
    _, seen = trained(Config(data=tmp_path, out=tmp_path, work=config.work, resume=False))
    assert seen == [0, 1, 2, 3, 4]
