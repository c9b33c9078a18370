"""The official test split of Fruit Images for Object Detection: three of the 80 labels, on pictures of another origin.

    gridloop evaluate nanodet-coco --data DIR [--url URL] [--write]

DIR holds `fruit_detection/fruit_416.zip`; `models/nanodet-fruit/fruit.py` says what that is and where it is from. Other
things in these pictures are not labelled, so detections of other labels do not count.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from service.evaluation import DataMissing
from service.evaluation.base import Outcome
from service.evaluation.object_detection import Found, ObjectDetectionEvaluation, Truth

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "nanodet-fruit"), str(Path(__file__).resolve().parents[2])]

from fruit import FRUIT, LABELS, boxes, picture  # noqa: E402


class ThreeOfEighty(ObjectDetectionEvaluation):
    """Apples, bananas and oranges."""

    title = "Fruit Images for Object Detection, official test split, its three labels"
    of_data = "fruit"
    may_be_shown = False

    def pictures(self) -> Sequence[Truth]:
        path = self.data / FRUIT.files[0]
        if not path.is_file():
            raise DataMissing(self.data, FRUIT.files[0], f"{FRUIT.name} is from {FRUIT.origin}.")
        return [
            Truth(
                name, [label for label, _ in objects], [box for _, box in objects], partial(picture, path.parent, name)
            )
            for name, objects in boxes(path.parent, "test").items()
        ]

    def outcome(self, records: Sequence[Found]) -> Outcome:
        return super().outcome([_of_fruit(record) for record in records])


def _of_fruit(record: Found) -> Found:
    """Its detections of apples, bananas and oranges."""
    kept = [place for place, label in enumerate(record.labels) if label in LABELS]
    return dataclasses.replace(
        record,
        labels=[record.labels[place] for place in kept],
        scores=record.scores[kept],
        boxes=record.boxes[kept],
        at_threshold=sum(place < record.at_threshold for place in kept),
    )
