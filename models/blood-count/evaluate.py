"""Evaluate blood-count on BCCD's official test split.

    gridloop evaluate blood-count --data DIR [--url URL] [--write]

DIR holds `bccd/bccd.zip`; `cells.py` says what that is and where it is from.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from service.evaluation import DataMissing
from service.evaluation.image_regression import ImageRegressionEvaluation, Measured
from service.evaluation.statistics import Floats

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from cells import BCCD, Cells, read  # noqa: E402

NAMES = ("red_blood_cells", "platelets")


class Blood(ImageRegressionEvaluation):
    """The official test split."""

    title = "BCCD, official test split"

    def pictures(self) -> Sequence[Measured]:
        return [
            Measured(cells.name, dict(zip(NAMES, map(float, cells.counts), strict=True)), lambda jpeg=cells.jpeg: jpeg)
            for cells in self._read("test")
        ]

    def constants(self, truth: Mapping[str, Floats]) -> Mapping[str, Mapping[str, float]]:
        counts = np.array([cells.counts for split in ("train", "val") for cells in self._read(split)])
        medians = np.median(counts, axis=0).tolist()
        return {"always the median of the other pictures": dict(zip(NAMES, medians, strict=True))}

    def _read(self, split: str) -> list[Cells]:
        path = self.data / BCCD.files[0]
        if not path.is_file():
            raise DataMissing(self.data, BCCD.files[0], f"{BCCD.name} is from {BCCD.origin}.")
        return read(path.parent, split)
