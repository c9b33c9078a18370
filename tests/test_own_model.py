"""A model of one's own, made by the steps of README.md and models/README.md as printed: it passes `gridloop check` and is served."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto as T
from onnx import helper

from service.cli import main
from tests import graphs
from tests.conftest import running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STEPS = (ROOT / "models" / "README.md").read_text().partition("## A model in five steps")[2].partition("\n## ")[0]


def cats(path: Path) -> Path:
    """A classifier of pictures float32 (batch, 3, 224, 224) that sees a cat in each, with a probability of 0.98."""
    return graphs.save(
        path,
        [
            helper.make_node("ReduceMean", ["image"], ["means"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["means", "nought"], ["noughts"]),
            helper.make_node("Unsqueeze", ["noughts", "axis"], ["rows"]),
            helper.make_node("Add", ["rows", "sure"], ["logits"]),
        ],
        [("image", T.FLOAT, ["batch", 3, 224, 224])],
        [("logits", T.FLOAT, ["batch", 2])],
        {"nought": np.float32(0), "axis": np.array([1]), "sure": np.log(np.array([0.98, 0.02], np.float32))},
    )


def block(kind: str, text: str) -> list[str]:
    """The printed blocks of a kind, without their indent."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`models/cats` with what both pages want: the graph, the labels, a picture."""
    folder = tmp_path / "models" / "cats"
    (folder / "1" / "golden").mkdir(parents=True)
    cats(folder / "1" / "model.onnx")
    (folder / "1" / "labels.txt").write_text("cat\ndog\n")
    (folder / "1" / "golden" / "cat.png").write_bytes(graphs.png(size=(300, 280)))
    return folder


async def assert_served(folder: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert result.exit_code == 0, result.output
    async with running(folder.parent) as client:
        answer = await client.post("/v1/image-classification?top_k=1", content=graphs.png(size=(640, 480)))
        assert answer.json()["results"][0]["predictions"][0]["label"] == "cat"


async def test_the_readmes_folder_is_served(folder: Path) -> None:
    (printed,) = re.findall(r"```\n(models/cats/\n.*?)```", README, re.DOTALL)
    files = dict(re.findall(r"^  (\S+) +(\S.*)$", printed, re.MULTILINE))
    assert set(files) == {"manifest.toml", "1/model.onnx", "1/labels.txt", "1/golden.json"}
    (folder / "manifest.toml").write_text(files["manifest.toml"])
    await assert_served(folder)  # without golden samples, which may be left out
    (folder / "1" / "golden.json").write_text(block("json", STEPS)[0])
    await assert_served(folder)


async def test_the_five_steps_as_printed_make_a_model(folder: Path) -> None:
    manifest, preprocessing = block("toml", STEPS)
    (golden,) = block("json", STEPS)
    (folder / "manifest.toml").write_text(f"{manifest}\n{preprocessing}")
    (folder / "1" / "golden.json").write_text(golden)
    await assert_served(folder)


def test_a_step_that_was_done_wrong_is_named(folder: Path) -> None:
    (folder / "manifest.toml").write_text(block("toml", STEPS)[0] + "\n[preprocesing]\nresize_to = 256\n")
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert result.exit_code == 1
    assert "preprocesing" in result.output
