"""What the evaluation of segmenters makes of pictures and answers, with figures of mental arithmetic."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.evaluation.base import Ask, DataMissing, EvaluationFailed, Outcome, Subject
from service.evaluation.image_segmentation import (
    Compared,
    ImageSegmentationEvaluation,
    confusion,
    intersection_over_union,
)
from service.evaluation.plots import save
from service.graph import Signature

LABELS = ("road", "car", "sky")


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def evaluation(tmp_path: Path) -> ImageSegmentationEvaluation:
    """Two pictures of 2x2 for a model of three labels, and one pixel without a label."""
    for folder in ("images", "labels", "model"):
        (tmp_path / folder).mkdir()
    for name, truth in (("a", [[0, 0], [1, 1]]), ("b", [[0, 0], [0, 255]])):
        (tmp_path / "images" / f"{name}.png").write_bytes(png(np.zeros((2, 2, 3))))
        (tmp_path / "labels" / f"{name}.png").write_bytes(png(truth))
    (tmp_path / "model" / "labels.txt").write_text("road\ncar\nsky\n")
    subject = Subject("m", "1", "image-segmentation", Signature({}, {}), tmp_path / "model")
    return ImageSegmentationEvaluation(tmp_path, subject)


def record(evaluation: ImageSegmentationEvaluation, place: int, answer: Any) -> Compared:
    """The record of the conversation about a picture that is answered with a class map."""
    talk = evaluation.items()[place].talk()
    assert isinstance(next(talk), Ask)
    with pytest.raises(StopIteration) as end:
        talk.send({"results": [{"class_map": base64.b64encode(png(answer)).decode()}]})
    compared: Compared = end.value.value
    return compared


def outcome(evaluation: ImageSegmentationEvaluation) -> Outcome:
    """Of answers in which one pixel of road is taken for a car, and one of a car for sky."""
    return evaluation.outcome([record(evaluation, 0, [[0, 1], [1, 2]]), record(evaluation, 1, [[0, 0], [0, 0]])])


def test_intersection_over_union_is_counted_over_all_pixels_and_averaged_over_labels(
    evaluation: ImageSegmentationEvaluation,
) -> None:
    """Road: 4 of 5 pixels; car: 1 of 3; sky is in no truth and does not count; right are 5 of 7."""
    found = {figure.name: figure.value for figure in outcome(evaluation).figures}
    assert found["mean IoU"] == pytest.approx((4 / 5 + 1 / 3) / 2)
    assert found["pixel accuracy"] == pytest.approx(5 / 7)
    assert found["mean accuracy of a label"] == pytest.approx((4 / 5 + 1 / 2) / 2)


def test_each_label_has_a_row_with_what_it_is_taken_for(evaluation: ImageSegmentationEvaluation) -> None:
    (table,) = outcome(evaluation).breakdowns
    assert [(row[0], row[1], row[4]) for row in table.rows] == [
        ("road", "80.00 %", "car (20.0 %)"),
        ("car", "33.33 %", "sky (50.0 %)"),
    ]


def test_pixels_without_a_label_are_told(evaluation: ImageSegmentationEvaluation) -> None:
    assert "12.5 % of the pixels have no label" in outcome(evaluation).notes[0]


def test_the_interval_is_over_pictures(evaluation: ImageSegmentationEvaluation) -> None:
    """Drawn twice, the first picture has the worst mean, 5/12 of a half and a third; the second is always right."""
    figure = outcome(evaluation).figures[0]
    assert figure.n == 2
    assert (figure.low, figure.high) == (pytest.approx((1 / 2 + 1 / 3) / 2), 1.0)


def test_a_confusion_matrix_leaves_out_what_has_no_label() -> None:
    compared = Compared(np.array([1, 256, 255 * 256 + 1]), np.array([5, 7, 9]))
    assert confusion(compared, 2).tolist() == [[0, 5], [7, 0]]


def test_a_label_that_never_occurs_has_no_figure() -> None:
    found = intersection_over_union(np.array([[2, 1], [0, 0]]))
    assert found[0] == pytest.approx(2 / 3)
    assert np.isnan(found[1])


def test_the_plots_can_be_drawn(evaluation: ImageSegmentationEvaluation, tmp_path: Path) -> None:
    for plot in outcome(evaluation).plots:
        assert save(plot, tmp_path / "plots").stat().st_size > 1_000


def test_labels_of_another_size_are_told(evaluation: ImageSegmentationEvaluation) -> None:
    talk = evaluation.items()[0].talk()
    next(talk)
    with pytest.raises(EvaluationFailed, match=r"a\.png are 2 x 2 pixels, and the picture is 3 x 2"):
        talk.send({"results": [{"class_map": base64.b64encode(png(np.zeros((2, 3)))).decode()}]})


def test_a_picture_without_labels_is_told(evaluation: ImageSegmentationEvaluation) -> None:
    (evaluation.data / "labels" / "b.png").unlink()
    with pytest.raises(DataMissing, match=r"does not hold labels/b\.png"):
        evaluation.pictures()
