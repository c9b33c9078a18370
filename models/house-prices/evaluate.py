"""Evaluate house-prices on the houses whose number is divisible by 5.

    gridloop evaluate house-prices --data DIR [--url URL] [--write]

DIR holds `houses/houses_96.zip`; `houses.py` says what that is and where it is from.
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

from houses import HOUSES, read  # noqa: E402


class Houses(ImageRegressionEvaluation):
    """Each house's four pictures side by side, as one picture."""

    title = "Houses dataset, houses whose number is divisible by 5"
    item = "house"
    relative = True

    def pictures(self) -> Sequence[Measured]:
        path = self.data / HOUSES.files[0]
        if not path.is_file():
            raise DataMissing(self.data, HOUSES.files[0], f"The {HOUSES.name} is from {HOUSES.origin}.")
        return [
            Measured(f"house {house.number}", {"price": house.price}, lambda strip=house.strip: strip)
            for house in read(path.parent, held_out=True)
        ]

    def constants(self, truth: Mapping[str, Floats]) -> Mapping[str, Mapping[str, float]]:
        others = [house.price for house in read((self.data / HOUSES.files[0]).parent, held_out=False)]
        errors = [np.abs(price / truth["price"] - 1).mean() for price in truth["price"]]
        return {
            "always the median of the other houses": {"price": float(np.median(others))},
            "the best constant": {"price": float(truth["price"][int(np.argmin(errors))])},
        }
