"""What a model's manifest says about doubt: tables that `service.uncertainty.fitting` fits on held-out data."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.graph import Array
from service.uncertainty.scores import sigmoid

__all__ = ["Calibration", "IntervalTable", "QuantileMargins", "ScoreCurve", "ScoreLine", "Table"]

Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Table(BaseModel):
    """Base of these tables: what is declared nowhere is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(Table):
    """What held-out pictures say about doubt: the `[calibration]` table of a classifier."""

    coverage: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of prediction sets that hold the true class."""
    set_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """A class whose probability reaches this is in the set."""
    abstain_above: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A picture whose novelty is above this is like nothing the model was trained on."""
    abstain_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of pictures like the training ones that are above it all the same."""

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> Self:
        for number, promise, fit in (
            ("set_threshold", "coverage", "fit_set_threshold"),
            ("abstain_above", "abstain_rate", "fit_abstain_threshold"),
        ):
            given = [name for name in (number, promise) if getattr(self, name) is not None]
            if len(given) == 1:
                (missing,) = {number, promise} - set(given)
                raise ValueError(
                    f"has {given[0]} but no {missing}; write both, as service.uncertainty.fitting.{fit} finds them, "
                    "or neither"
                )
        return self


class ScoreLine(Table):
    """Honest scores by two constants: the sigmoid of a line through the logits."""

    slope: Number = 1.0
    """What logits are multiplied by: 1 / temperature."""
    offset: Number = 0.0
    """What is added afterwards."""

    def probabilities_of(self, logits: Array) -> Array:
        """Probabilities, 0..1, of logits of any shape and floating type."""
        return sigmoid(np.asarray(logits * self.slope + self.offset, logits.dtype))


class ScoreCurve(Table):
    """Honest scores by a rising curve: straight lines between points, level beyond the first and last.

    Rank by the model's own scores: those beyond the ends become equal.
    """

    scores: tuple[Probability, ...] = Field(min_length=1)
    """What the model says, ascending."""
    probabilities: tuple[Probability, ...]
    """What came true of that."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        _check_column("scores", self.scores, self.scores, strictly=True)
        _check_column("probabilities", self.probabilities, self.scores)
        return self

    def probabilities_of(self, scores: Array) -> Array:
        """Probabilities, 0..1, of the model's scores of any shape."""
        return np.asarray(np.interp(scores, self.scores, self.probabilities), scores.dtype)


class IntervalTable(Table):
    """How far from the truth a model's numbers are, at most, for each of some shares of the cases."""

    coverages: tuple[Share, ...] = Field(min_length=1)
    """Shares of intervals that hold the truth, ascending."""
    half_widths: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]
    """Distance of an interval's ends from the number, in its unit, or in that of how hard a case is."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        _check_column("coverages", self.coverages, self.coverages, strictly=True)
        _check_column("half_widths", self.half_widths, self.coverages)
        return self

    def half_width(self, coverage: float) -> float:
        """The distance for a coverage, or for the next larger one of the table: it promises no less.

        Raises:
            ValueError: the table has none as large.
        """
        return self.half_widths[_at_least(self.coverages, coverage)]


class QuantileMargins(Table):
    """By how much a model's own intervals are moved outwards, for each of some shares of the cases."""

    coverages: tuple[Share, ...] = Field(min_length=1)
    """Shares of intervals that hold the truth, ascending; the model gives an interval for each."""
    margins: tuple[Number, ...]
    """Distance that both ends are moved outwards, in the number's unit; inwards where it is below 0."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_column("coverages", self.coverages, self.coverages, strictly=True)
        _check_column("margins", self.margins, self.coverages, rises=False)
        return self

    def interval(self, lower: Array, upper: Array, coverage: float) -> tuple[Array, Array]:
        """The interval for a coverage, or for the next larger one of the table; it holds those for all smaller ones.

        Args:
            lower: float (..., coverages), of the model.
            upper: float (..., coverages), of the model.
            coverage: that is asked for.

        Raises:
            ValueError: the table has none as large.
        """
        columns = slice(_at_least(self.coverages, coverage) + 1)
        lower, upper, margins = lower[..., columns], upper[..., columns], np.array(self.margins[columns])
        middle = (lower + upper) / 2  # ends that are moved inwards meet there
        return np.minimum(lower - margins, middle).min(axis=-1), np.maximum(upper + margins, middle).max(axis=-1)


def _at_least(coverages: Sequence[float], coverage: float) -> int:
    """Place of the smallest coverage of a table that is no smaller than the one asked for."""
    place = bisect_left(coverages, coverage - 1e-9)  # 0.1 + 0.2 asks for 0.3
    if place == len(coverages):
        raise ValueError(f"coverage {coverage:g} is more than the {coverages[-1]:g} that this model was calibrated for")
    return place


def _check_column(
    name: str, values: Sequence[float], others: Sequence[float], *, rises: bool = True, strictly: bool = False
) -> None:
    """Check that a column has as many numbers as the first one, and that they do not fall."""
    if len(values) != len(others):
        raise ValueError(f"{name} has {len(values)} numbers and the column beside it {len(others)}")
    if rises and any(one > other or (strictly and one == other) for one, other in pairwise(values)):
        raise ValueError(f"{name} must be in ascending order")
