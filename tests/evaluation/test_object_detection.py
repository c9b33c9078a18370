"""COCO's measures of detections, against pycocotools and by hand."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service.evaluation import plots
from service.evaluation.base import Ask, DataMissing, EvaluationFailed, Outcome, Subject
from service.evaluation.object_detection import (
    Found,
    ObjectDetectionEvaluation,
    Truth,
    found,
    judge,
    mean_precision,
    read_coco,
)
from service.graph import Signature
from tests import graphs

SUBJECT = Subject("m", "1", "object-detection", Signature({}, {}))
LEFT, RIGHT, NOWHERE = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def seen(
    truth: list[tuple[str, tuple[float, ...]]], said: list[tuple[str, float, tuple[float, ...]]], shown: int
) -> Found:
    """A picture with its objects and detections, the first few of which the model shows by itself."""
    return Found(
        Truth("picture", [label for label, _ in truth], [box for _, box in truth], lambda: graphs.png(size=(60, 60))),
        [label for label, *_ in said],
        np.array([score for _, score, _ in said], np.float64),
        np.array([box for *_, box in said], np.float64).reshape(-1, 4),
        shown,
    )


def outcome(*records: Found) -> Outcome:
    return ObjectDetectionEvaluation(Path(), SUBJECT).outcome(records)


def values(result: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in result.figures}


def test_precision_recall_and_average_precision_by_hand() -> None:
    """Of two objects one is found, best of all, and one detection is nowhere: recall 1/2 at precision 1."""
    result = outcome(seen([("cell", LEFT), ("cell", RIGHT)], [("cell", 0.9, LEFT), ("cell", 0.8, NOWHERE)], shown=2))
    figures = values(result)
    assert figures["mAP@0.5"] == pytest.approx(51 / 101)  # recalls 0, 0.01, … 0.5 have precision 1
    assert figures["mAP@0.5:0.95"] == pytest.approx(51 / 101)
    assert figures["precision at the threshold"] == 0.5
    assert figures["recall at the threshold"] == 0.5
    assert figures["expected calibration error"] == pytest.approx((0.1 + 0.8) / 2)
    assert result.breakdowns[0].rows == [["cell", "2", "50.5 %", "50.5 %", "50.0 %", "50.0 %"]]


def test_only_what_the_model_shows_by_itself_counts_at_the_threshold() -> None:
    figures = values(outcome(seen([("cell", LEFT)], [("cell", 0.9, LEFT), ("cell", 0.2, NOWHERE)], shown=1)))
    assert (figures["precision at the threshold"], figures["recall at the threshold"]) == (1, 1)


def test_a_second_detection_of_an_object_and_a_wrong_label_are_wrong() -> None:
    said = [("cell", 0.9, LEFT), ("cell", 0.8, LEFT), ("platelet", 0.7, RIGHT)]
    figures = values(outcome(seen([("cell", LEFT), ("cell", RIGHT)], said, shown=3)))
    assert figures["precision at the threshold"] == pytest.approx(1 / 3)


def test_nothing_found_is_no_error() -> None:
    figures = values(outcome(seen([("cell", LEFT)], [], shown=0), seen([], [], shown=0)))
    assert figures["mAP@0.5"] == 0
    assert np.isnan(figures["precision at the threshold"])
    assert figures["recall at the threshold"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_is_that_of_pycocotools(seed: int) -> None:
    """Random pictures with up to 8 objects of three labels, and twice as many detections around them."""
    rng, labels = np.random.default_rng(seed), ["a", "b", "c"]
    records, truth, said = [], [], []
    for number in range(6):
        corners = rng.integers(0, 60, (rng.integers(0, 9), 2))
        boxes = np.concatenate([corners, corners + rng.integers(8, 20, corners.shape)], axis=1).astype(float)
        objects = [(str(rng.choice(labels)), tuple(box)) for box in boxes.tolist()]
        detections = sorted(
            (
                (str(rng.choice(labels)) if rng.random() < 0.3 else label, float(rng.random()), tuple(moved.tolist()))
                for label, box in objects * 2
                for moved in [np.array(box) + rng.normal(0, 1.5, 4)]
            ),
            key=lambda each: -each[1],
        )
        records.append(seen(objects, detections, shown=0))
        for label, (x0, y0, x1, y1) in objects:
            truth.append(_coco(len(truth) + 1, number, labels.index(label), x0, y0, x1, y1))
        for label, score, (x0, y0, x1, y1) in detections:
            said.append(_coco(len(said) + 1, number, labels.index(label), x0, y0, x1, y1) | {"score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(6)],
            "annotations": truth,
            "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
        }
        coco.createIndex()
        rule = COCOeval(coco, coco.loadRes(said), "bbox")
        rule.evaluate()
        rule.accumulate()
        rule.summarize()
    judged, once = judge(records, labels), np.ones((1, 6))
    assert mean_precision(judged, once, slice(None))[0] == pytest.approx(rule.stats[0], abs=1e-9)
    assert mean_precision(judged, once, slice(0, 1))[0] == pytest.approx(rule.stats[1], abs=1e-9)


def _coco(identity: int, image: int, label: int, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    box = [x0, y0, x1 - x0, y1 - y0]
    return {
        "id": identity,
        "image_id": image,
        "category_id": label,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


def test_a_picture_is_asked_for_all_candidates_and_for_what_is_shown_by_default(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (item,) = ObjectDetectionEvaluation(tmp_path, SUBJECT).items()
    talk = item.talk()
    question = next(talk)
    assert isinstance(question, Ask)
    assert question.fields == {"threshold": 0, "max_detections": 100}
    detection = {"label": "cell", "score": 0.9, "index": 0}
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), LEFT, strict=True))
    answer = {"results": [{"detections": [{**detection, "box": box}, {**detection, "score": 0.1, "box": box}]}]}
    question = talk.send(answer)
    assert question.fields == {"max_detections": 100}
    with pytest.raises(StopIteration) as stop:
        talk.send({"results": [{"detections": answer["results"][0]["detections"][:1]}]})
    record = stop.value.value
    assert (record.labels, record.scores.tolist(), record.at_threshold) == (["cell", "cell"], [0.9, 0.1], 1)
    assert record.truth.labels == ["cell"]
    assert found(record.truth, {"detections": []}, {"detections": []}).boxes.shape == (0, 4)


def write_coco(folder: Path, **changes: Any) -> None:
    listing = {
        "images": [{"id": 7, "file_name": "one.png"}],
        "categories": [{"id": 3, "name": "cell"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 0, 10]},
            {"image_id": 7, "category_id": 3, "bbox": [5, 5, 9, 9], "iscrowd": 1},
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(listing | changes))
    (folder / "images").mkdir()
    (folder / "images" / "one.png").write_bytes(graphs.png(size=(60, 60)))


def test_data_in_cocos_format_are_read_without_crowds_and_empty_boxes(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (picture,) = read_coco(tmp_path)
    assert (picture.name, picture.labels, picture.boxes) == ("one.png", ["cell"], [[0, 0, 10, 10]])
    assert picture.read() == graphs.png(size=(60, 60))


def test_data_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="annotations.json"):
        read_coco(tmp_path)
    write_coco(tmp_path, images=[{"id": 7, "file_name": "two.png"}])
    with pytest.raises(DataMissing, match="two.png"):
        read_coco(tmp_path)
    (tmp_path / "annotations.json").write_text('{"images": []}')
    with pytest.raises(EvaluationFailed, match="annotations.json is not in COCO's format: KeyError 'categories'"):
        read_coco(tmp_path)


def test_every_plot_can_be_drawn(tmp_path: Path) -> None:
    result = outcome(
        seen([("cell", LEFT)], [("cell", 0.9, LEFT), ("cell", 0.8, NOWHERE)], shown=2),
        seen([("platelet", RIGHT)], [], shown=0),
    )
    drawn = [plots.save(plot, tmp_path) for plot in result.plots]
    assert [path.name for path in drawn] == ["examples.png", "precision_recall.png", "reliability.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_pictures_that_may_not_be_passed_on_are_not_drawn() -> None:
    class Private(ObjectDetectionEvaluation):
        may_be_shown = False

    result = Private(Path(), SUBJECT).outcome([seen([("cell", LEFT)], [("cell", 0.9, LEFT)], shown=1)])
    assert [plot.file for plot in result.plots] == ["precision_recall.png", "reliability.png"]
