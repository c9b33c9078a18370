"""What the training scripts of the image classifier share: views of pictures, the exact activation map, the graph."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from service.evaluation import load_script

FOLDER = Path(__file__).parent.parent / "models" / "cifar10-cnn"


@pytest.mark.parametrize("version", sorted(path.parent.name for path in FOLDER.glob("*/model.onnx")))
def test_the_mean_of_the_activation_map_is_the_logits(version: str) -> None:
    session = onnxruntime.InferenceSession(FOLDER / version / "model.onnx", providers=["CPUExecutionProvider"])
    side = session.get_inputs()[0].shape[1]
    images = np.stack(
        [
            np.asarray(Image.open(path).resize((side, side)))
            for path in sorted((FOLDER / version / "golden").glob("*.png"))
        ]
    )
    logits, maps = session.run(["logits", "activation_map"], {"image": images})
    assert logits.shape == (len(images), 10)
    assert np.abs(logits).max() > 1
    np.testing.assert_allclose(maps.mean((2, 3)), logits, atol=1e-4)


# --- with torch, which serving does not need

torch = pytest.importorskip("torch", reason="training needs torch")
sys.path.insert(0, str(FOLDER))
try:
    efficientnet = load_script(FOLDER / "efficientnet.py")
    finetune = load_script(FOLDER / "finetune.py")
    combine = load_script(FOLDER / "combine.py")
finally:
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def network():
    """Random weights and statistics, so that no term vanishes."""
    generator = torch.Generator().manual_seed(3)
    made = finetune.Network([2, 1, 5])
    for norm in made.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2, generator=generator)
            norm.running_var.uniform_(0.3, 0.6, generator=generator)
            torch.nn.init.uniform_(norm.weight, 0.8, 1.6, generator=generator)
    torch.nn.init.normal_(made.classifier.weight, 0, 0.3, generator=generator)
    return made.eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def test_a_class_has_the_probability_of_all_its_kinds(network) -> None:
    kinds = torch.randn(3, 8)
    shares = kinds.softmax(1)
    expected = torch.stack([shares[:, :2].sum(1), shares[:, 2], shares[:, 3:].sum(1)], 1)
    torch.testing.assert_close(network.classes(kinds).softmax(1), expected)


def test_the_map_splits_the_logits_without_a_rest(network, images: np.ndarray) -> None:
    maps, _ = finetune.maps_and_features(network, images, temperature=0.6)
    logits = finetune.logits_of(network, images) / 0.6
    assert maps.shape == (4, 3, 2, 2)
    assert maps.std((2, 3)).min() > 0.01
    torch.testing.assert_close(maps.mean((2, 3)), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [64, 75])
def test_the_graph_computes_what_the_network_does(network, side: int) -> None:
    images = np.random.default_rng(6).integers(0, 256, (30, side, side, 3), dtype=np.uint8)
    maps, features = finetune.maps_and_features(network, images, temperature=0.6)
    logits = maps.mean((2, 3))
    labels = torch.arange(30) % 3
    novelty = finetune.Novelty.fit(features, logits, labels, weight=0.3, dimensions=5)
    assert novelty.projection.shape == (1280, 5)
    model = finetune.to_onnx(network, side, 0.6, novelty)
    expected = {"activation_map": maps, "logits": logits, "novelty": novelty(features, logits)}
    assert finetune.check_equal(model, images, expected, tolerance=1e-3) < 1e-3


def test_another_file_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the expected file"):
        finetune.pretrained(tmp_path / "weights.pth", ["cat"])


def test_an_average_lies_between_the_weights(network) -> None:
    other = {name: value + 1 if value.is_floating_point() else value for name, value in network.state_dict().items()}
    found = finetune.average(network, other, 0.25)
    torch.testing.assert_close(found["head.conv.weight"], network.head.conv.weight + 0.25)


def test_no_kind_belongs_to_two_classes() -> None:
    assert list(efficientnet.KINDS) == (FOLDER / "3" / "labels.txt").read_text().split()
    rows = [row for kinds in efficientnet.KINDS.values() for row in kinds]
    assert len(rows) == len(set(rows))
    assert min(rows) >= 0
    assert max(rows) < 1000


def test_a_frame_of_the_whole_picture_copies_its_pixels() -> None:
    matrix = finetune.resampling_matrix(torch.zeros(1), torch.ones(1), torch.ones(1), 8, 8)
    torch.testing.assert_close(matrix[0], torch.eye(8))


def test_rows_of_a_resampling_weigh_one_and_pixelated_ones_repeat_pixels() -> None:
    start, step, blur = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), torch.ones(2)
    matrix = finetune.resampling_matrix(start, step, blur, 8, 8, pixelated=torch.tensor([False, True]))
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 8))
    assert (matrix[0] < 0).any()
    assert matrix[1].argmax(1).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert set(matrix[1].flatten().tolist()) == {0.0, 1.0}


def plain(**changes: float) -> object:
    """No augmentation but those asked for."""
    return finetune.Config(**{"translate": 0, "reframe": 0.0, "pixelated": 0.0, "lit": 0.0} | changes)


def pictures(count: int = 12) -> object:
    images = np.random.default_rng(7).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return finetune.Pictures(images, np.arange(count))


def test_a_picture_is_mirrored_in_every_second_epoch() -> None:
    shown = pictures()
    data = finetune.Augmentation(plain(), shown, torch.Generator().manual_seed(1))
    seen: dict[int, list] = {}
    for epoch in range(2):
        for views, labels in data.epoch(epoch, 4, 32):
            for view, label in zip(views, labels.tolist(), strict=True):
                seen.setdefault(label, []).append(view.permute(1, 2, 0).round().numpy())
    for label, (first, second) in seen.items():
        own = shown.images[label]
        ways = [bool((first == own).all()), bool((second == own).all())]
        assert sorted(ways) == [False, True]
        np.testing.assert_array_equal(first, second[:, ::-1])
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("size", [32, 96])
def test_views_stay_within_the_range_of_pixels(size: int) -> None:
    data = finetune.Augmentation(finetune.Config(reframe=1.0), pictures(), torch.Generator().manual_seed(1))
    for views, _ in data.epoch(0, 4, size):
        assert views.shape == (4, 3, size, size)
        assert views.isfinite().all()
        assert views.min() >= 0
        assert views.max() <= 255


def test_scenes_show_pictures_with_their_labels() -> None:
    scenes = finetune.Scenes(finetune.Config(), pictures(), torch.Generator().manual_seed(1))
    views, labels = scenes.draw(10, 96)
    assert views.shape == (10, 3, 96, 96)
    assert views.isfinite().all()
    assert views.min() >= 0
    assert views.max() <= 255
    assert set(labels.tolist()) <= set(range(12))


@pytest.mark.parametrize(("openness", "near"), [(-60.0, True), (60.0, False)])
def test_the_gate_chooses_between_the_two_networks(network, openness: float, near: bool) -> None:
    """On pictures of 32x32 enlarged by repeating pixels, as version 1 sees them, or as the other network does."""
    small = np.random.default_rng(8).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    large = small.repeat(combine.BLOCK, 1).repeat(combine.BLOCK, 2)
    close = combine.onnx.load(FOLDER / "1" / "model.onnx")
    classifier = combine.Linear(torch.randn(10, 320) * 0.1, torch.randn(10))
    gate = combine.Linear(torch.zeros(1, 320), torch.tensor([openness]))
    blank = combine.Novelty(torch.zeros(320, 1), torch.zeros(10, 1))
    model = combine.to_onnx(network, classifier, gate, close, blank, 0.5)
    found = combine.answers(combine.open_session(model), large)
    if near:
        expected = combine.answers(combine.open_session(close), small)["logits"]
    else:
        views = torch.from_numpy(large).permute(0, 3, 1, 2).float()
        expected = classifier(combine.features_of(network, views)).numpy()
    np.testing.assert_allclose(found["logits"], expected / 0.5, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(found["activation_map"].mean((2, 3)), found["logits"], atol=1e-4)


def test_a_regression_finds_what_made_the_labels() -> None:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(400, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3
    labels = (x[:, 0] > 3).long() + 2 * (x[:, 1] > 3).long()
    found = combine.Linear.fit(x, combine.wanted(labels, 4, 0.1), 1e-4)
    assert (found(x).argmax(1) == labels).float().mean() > 0.97


def test_strangers_should_get_the_same_probability_for_every_class() -> None:
    found = combine.wanted(torch.tensor([1, -1]), 4, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.25] * 4]))


def test_photographs_are_drawn_with_their_labels_and_strangers_after_them() -> None:
    """Strangers have the label -1, and come last."""
    photographs = object.__new__(finetune.Photographs)
    photographs.config = finetune.Config(photographs=5, strangers=2)
    photographs.generator = torch.Generator().manual_seed(1)
    photographs.images = torch.randint(0, 256, (6, 3, 112, 112), generator=photographs.generator, dtype=torch.uint8)
    photographs.labels = torch.tensor([0, 1, 2, -1, -1, 3])
    photographs.is_cut = torch.tensor([False, False, True, False, False, False])
    photographs.named, photographs.strange = torch.tensor([0, 1, 2, 5]), torch.tensor([3, 4])
    photographs.weights = torch.ones(4).double()
    views, labels = photographs.draw(64)
    assert views.shape == (7, 3, 64, 64)
    assert views.isfinite().all()
    assert labels[:5].min() >= 0
    assert labels[5:].tolist() == [-1, -1]
