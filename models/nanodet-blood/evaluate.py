"""BCCD, official test split: every picture, sent as its file.

    gridloop evaluate nanodet-blood --data DIR [--url URL] [--write]

DIR holds `bccd/bccd.zip`; `bccd.py` says what that is and where it is from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from service.evaluation import DataMissing
from service.evaluation.object_detection import ObjectDetectionEvaluation, Truth

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from bccd import BCCD, boxes, picture  # noqa: E402


class Bccd(ObjectDetectionEvaluation):
    """The official test split."""

    title = "BCCD, official test split"
    of_data = "BCCD"

    def pictures(self) -> Sequence[Truth]:
        path = self.data / BCCD.files[0]
        if not path.is_file():
            raise DataMissing(self.data, BCCD.files[0], f"{BCCD.name} is from {BCCD.origin}.")
        return [
            Truth(
                name, [label for label, _ in objects], [box for _, box in objects], partial(picture, path.parent, name)
            )
            for name, objects in boxes(path.parent, "test").items()
        ]
