"""What a model's manifest says about doubt: tables that `service.uncertainty.fitting` fits on held-out data."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Calibration", "Table"]


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
