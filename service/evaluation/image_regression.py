"""Image regression: how far the numbers are from the truth, and how often intervals hold it.

Without an `evaluate.py`, DIR holds `truth.csv` and the pictures that it names: a column `file`, and one for each number
of the model, by its name.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from service.evaluation.base import (
    Answer,
    Ask,
    Conversation,
    DataMissing,
    Evaluation,
    EvaluationFailed,
    Figure,
    Item,
    Outcome,
    Plot,
    Question,
)
from service.evaluation.statistics import Floats, bootstrap_sums, ratio, wilson

COVERAGES = (0.5, 0.8, 0.9)
"""Of the intervals that are looked at; those of the last are drawn."""
TRUTH_FILE = "truth.csv"


@dataclass(frozen=True, slots=True)
class Measured:
    """A picture and its true numbers.

    Attributes:
        name: for messages.
        truth: the numbers, by name.
        read: the picture's bytes, encoded, called when they are needed.
    """

    name: str
    truth: Mapping[str, float]
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Estimated:
    """What the model said of one number of a picture.

    Attributes:
        truth: the true number.
        value: the model's.
        intervals: its lower and upper end for each of `COVERAGES`.
    """

    truth: float
    value: float
    intervals: tuple[tuple[float, float], ...]


class ImageRegressionEvaluation(Evaluation):
    """Pictures with true numbers, each asked about once for each coverage. A model's own overrides `pictures`."""

    title = "Pictures with the numbers of truth.csv"
    item = "picture"
    relative: ClassVar[bool] = False
    """Whether errors are in percent of the truth, which is above 0 then."""

    def pictures(self) -> Sequence[Measured]:
        """All of them.

        Raises:
            DataMissing: there are none.
            EvaluationFailed: what is there is no table of numbers.
        """
        path = self.data / TRUTH_FILE
        if not path.is_file():
            raise DataMissing(
                self.data,
                f"{TRUTH_FILE} with a column `file` and one for each number of the model",
                "Put the pictures that it names beside it.",
            )
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            return [
                Measured(
                    row["file"],
                    {name: float(text) for name, text in row.items() if name != "file"},
                    (self.data / row["file"]).read_bytes,
                )
                for row in rows
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationFailed(f"{path} needs a column `file`, and numbers in all others: {error}") from None

    def constants(self, truth: Mapping[str, Floats]) -> Mapping[str, Mapping[str, float]]:
        """What the model is compared with: the number that always the same answer would give, by what it is called.

        Args:
            truth: all true numbers, by name.
        """
        return {"always the median of these": {name: float(np.median(numbers)) for name, numbers in truth.items()}}

    def items(self) -> Sequence[Item]:
        return [
            Item(picture.name, partial(self._talk, picture), len(COVERAGES)) for picture in self.few(self.pictures())
        ]

    @staticmethod
    def _talk(picture: Measured) -> Generator[Question, Answer, dict[str, Estimated]]:
        file, found = picture.read(), []
        for coverage in COVERAGES:
            answer = yield Ask({"coverage": coverage}, file=file)
            found.append({one["name"]: one for one in answer["results"][0]["values"]})
        if missing := [name for name in picture.truth if name not in found[0]]:
            raise EvaluationFailed(
                f"the data have the number {missing[0]!r}, which the model does not give; it gives: "
                f"{', '.join(found[0])}."
            )
        return {
            name: Estimated(truth, found[0][name]["value"], tuple((f[name]["lower"], f[name]["upper"]) for f in found))
            for name, truth in picture.truth.items()
        }

    def timed(self) -> Conversation:
        return self._talk(self.pictures()[0])

    def outcome(self, records: Sequence[Mapping[str, Estimated]]) -> Outcome:
        truth = {name: np.array([record[name].truth for record in records]) for name in records[0]}
        constants = self.constants(truth)
        figures, plots = [], []
        for name, true in truth.items():
            of = [record[name] for record in records]
            figures.append(self._error(name, np.array([one.value for one in of]), true))
            figures += [
                self._error(f"{name}, {called}", np.full_like(true, numbers[name]), true)
                for called, numbers in constants.items()
            ]
            figures += [_held(f"{name}, truth within interval {c:g}", of, place) for place, c in enumerate(COVERAGES)]
            plots.append(
                Plot(
                    f"{name}.png",
                    f"True and estimated {name}, with intervals of coverage {COVERAGES[-1]:g}: those in orange "
                    "do not hold the truth.",
                    truth_against_value,
                    {"name": name, "estimates": of, "logarithmic": self.relative},
                )
            )
        kind = "percentage of the truth" if self.relative else "unit of the number"
        return Outcome(figures, [], plots, [f"Errors are mean absolute errors in the {kind}."])

    def _error(self, name: str, values: Floats, truth: Floats) -> Figure:
        """The mean absolute error, or the mean absolute percentage error."""
        errors = np.abs(values - truth) / (truth if self.relative else 1.0)
        low, high = bootstrap_sums(np.stack([errors, np.ones_like(errors)], 1), ratio) or (None, None)
        what, form = ("mean absolute percentage error", ".1%") if self.relative else ("mean absolute error", ".3f")
        head, _, called = name.partition(", ")
        title = f"{head}, {what}" + (f", {called}" if called else "")
        return Figure(title, float(errors.mean()), len(errors), "pictures", low, high, form)


def _held(name: str, estimates: Sequence[Estimated], place: int) -> Figure:
    """How often the interval of a coverage holds the truth."""
    hits = sum(one.intervals[place][0] <= one.truth <= one.intervals[place][1] for one in estimates)
    return Figure(name, hits / len(estimates), len(estimates), "pictures", *wilson(hits, len(estimates)), ".1%")


def truth_against_value(figure: Any, name: str, estimates: Sequence[Estimated], logarithmic: bool) -> None:
    """A point for each picture, its interval as a line; the truth is the diagonal."""
    figure.set_size_inches(6.0, 5.2)
    axes = figure.add_subplot()
    for held, colour in ((True, "#2f6db5"), (False, "#d9722e")):
        chosen = [one for one in estimates if (one.intervals[-1][0] <= one.truth <= one.intervals[-1][1]) is held]
        truth = [one.truth for one in chosen]
        low = [one.value - one.intervals[-1][0] for one in chosen]
        high = [one.intervals[-1][1] - one.value for one in chosen]
        axes.errorbar(
            truth, [one.value for one in chosen], [low, high], fmt="o", color=colour, markersize=4, elinewidth=0.6
        )
    ends = [min(one.truth for one in estimates), max(one.truth for one in estimates)]
    axes.plot(ends, ends, color="#8a8f98", linestyle="--", linewidth=1)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel(f"true {name.replace('_', ' ')}")
    axes.set_ylabel("estimated")
