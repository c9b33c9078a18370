"""The rules by which the image classifier's photographs are chosen, and the figures made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.evaluation import load_script

SCRIPT = Path(__file__).parent.parent / "models" / "cifar10-cnn" / "photographs.py"
photographs = load_script(SCRIPT)


@pytest.mark.parametrize(
    ("caption", "subject"),
    [
        ("a brown dog chases a man", "dog"),
        ("a man walks his dog", "people"),
        ("two puppies play in the snow", "dog"),
        ("a race car drives on a dirt track", "automobile"),
        ("the planet is cared for", None),
        ("a white egret lands on a boat", "bird"),
        ("a catcher waits", None),
    ],
)
def test_a_caption_speaks_of_what_it_names_first(caption: str, subject: str | None) -> None:
    assert photographs.subject(caption) == subject


def test_the_interval_of_wilson_is_that_of_the_textbooks() -> None:
    """Ten of ten, and the 81 of 263 in Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert photographs.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert photographs.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_the_area_under_the_curve_counts_pairs() -> None:
    draw = np.random.default_rng(3)
    negatives, positives = draw.integers(0, 6, 40).astype(float), draw.integers(2, 9, 30).astype(float)
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    assert photographs.area_under_curve(negatives, positives) == pytest.approx(float(np.mean(pairs)))


def test_the_macro_average_gives_each_class_the_same_weight() -> None:
    mean, half = photographs.macro([np.ones(100, bool), np.zeros(10, bool)])
    assert mean == 0.5
    assert 0 < half < 0.2


@pytest.mark.parametrize(
    ("captions", "label"),
    [
        (["a dog runs"] * 3 + ["an animal runs"] * 2, ("dog", True)),
        (["a man walks his dog"] * 4 + ["two of them"], ("dog", False)),
        (["a dog runs"] * 4 + ["a dog chases a bird"], None),
        (["a dog runs"] * 4 + ["a toy dog"], None),
        (["a dog runs"] * 2 + ["an animal runs"] * 3, None),
        (["a man walks"] * 5, ("people", True)),
        (["a man walks"] * 4 + ["a river"], ("scene", True)),
    ],
)
def test_a_label_is_what_the_captions_agree_on(captions: list[str], label: tuple[str, bool] | None) -> None:
    assert photographs.label_of(captions) == label


def test_in_the_training_part_two_captions_are_enough() -> None:
    captions = ["a dog runs"] * 2 + ["an animal runs"] * 3
    assert photographs.label_of(captions, votes=2) == ("dog", False)


def test_a_picture_is_in_one_part_by_its_name_alone() -> None:
    parts = [photographs.part_of(f"{number}.jpg") for number in range(4000)]
    shares = {part: parts.count(part) / len(parts) for part in set(parts)}
    assert shares == pytest.approx({"test": 0.5, "tuning": 0.1, "training": 0.4}, abs=0.02)


@pytest.mark.parametrize(
    ("frame", "part"),
    [
        ("train/0006R0_f00930.webp", "training"),
        ("train/0016E5_00390.webp", "training"),
        ("train/0016E5_08010.webp", "tuning"),
        ("val/0016E5_07959.webp", "tuning"),
        ("train/0001TP_006690.webp", None),
        ("test/0001TP_008550.webp", "test"),
        ("test/Seq05VD_f00000.webp", "test"),
    ],
)
def test_no_drive_past_the_same_cars_is_in_two_parts(frame: str, part: str | None) -> None:
    assert photographs.camvid_part(frame) == part
