"""Fruit Images for Object Detection, official test split: every picture, sent as its file.

    gridloop evaluate nanodet-fruit --data DIR [--url URL] [--write]

DIR holds `fruit_detection/fruit_416.zip`; `fruit.py` says what that is and where it is from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from service.evaluation import DataMissing
from service.evaluation.object_detection import ObjectDetectionEvaluation, Truth

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from fruit import FRUIT, boxes, picture  # noqa: E402


class Fruit(ObjectDetectionEvaluation):
    """The official test split."""

    title = "Fruit Images for Object Detection, official test split"
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
