"""Image regression: numbers from a picture, each with an interval that holds the truth as often as was asked for.

A model is any graph with one picture input and one float output with its numbers:

| output | meaning |
|---|---|
| `values` (batch, values) | the median of what the model expects of each number |
| `spread` (batch, values), may be left out | how hard each is, in any unit: intervals are wider in proportion |
| or, in place of both, (batch, values, 1 + 2 C) | the model's own quantiles, ascending, the median in the middle |
| `activation_map` (batch, values, rows, columns), may be left out | for `explain`: what each part of the picture adds |

The manifest names the numbers in the order of the graph, and says how far the truth was from them on held-out pictures:

    [[values]]
    name = "price"
    unit = "US dollars"
    scale = "log"                            # the graph gives the logarithm; left out: "linear"

    [values.intervals]                       # as service.uncertainty.fitting fits it: fit_interval_table,
    coverages = [0.5, 0.8, 0.9, 0.99]        # or for quantiles fit_quantile_margins, with `margins`
    half_widths = [0.31, 0.64, 0.85, 1.72]   # on the scale of the graph; times `spread`, where it has that

A coverage between two of the table gets the larger one's interval, so that it promises no less.

References:
    Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, "Distribution-Free Predictive Inference for Regression" (JASA 113,
        2018): intervals from the distances of held-out cases, and their scaling by `spread`.
    Romano, Patterson, Candès, "Conformalized Quantile Regression" (NeurIPS 2019): intervals from a model's quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from service.errors import InferenceFailed, ManifestInvalid
from service.media.heatmaps import Heatmap, heatmap
from service.media.views import View
from service.tasks.base import (
    Array,
    FailedFile,
    ModelFolder,
    NamedNumber,
    Steps,
    TaskOptions,
    TaskOutput,
    TensorSpec,
    Upload,
)
from service.tasks.comparison import difference
from service.tasks.picture import (
    PictureInput,
    PictureOptions,
    PictureResult,
    PictureTask,
    PictureTensors,
    picture_fields,
)
from service.tasks.terminal import Shown, Table
from service.uncertainty.table import IntervalTable, QuantileMargins

LEAST_COVERAGE, MOST_COVERAGE = 0.5, 0.99
"""Of the intervals that may be asked for."""
MOST_LOGARITHM = 700.0
"""Of a number on the scale `log`: beyond it, exp is infinite."""
NAME = r"^[a-z][a-z0-9_]*$"


# --- public types


class ImageRegressionInput(PictureInput):
    """Which model, how sure the intervals should be, and whether to show where the numbers come from."""

    coverage: Annotated[float, Field(ge=LEAST_COVERAGE, le=MOST_COVERAGE)] = Field(
        default=0.9,
        description="Share of the intervals that hold the truth, at least; the larger, the wider they are.",
        examples=[0.8],
    )
    explain: bool = Field(
        default=False, description="Add a heatmap to each value: which parts of the image it comes from."
    )


class EstimatedValue(BaseModel):
    """A number that was estimated, and how far the truth may be from it."""

    name: str = Field(description="Which number it is.", examples=["red_blood_cells"])
    unit: str = Field(description="What it is counted or measured in.", examples=["cells"])
    value: float = Field(description="The median of what the model expects.", examples=[14.2])
    lower: float = Field(description="Lower end of the interval, at most the value.", examples=[11.5])
    upper: float = Field(
        description="Upper end of the interval: the truth lies from `lower` to here with at least the probability "
        "`coverage`, for pictures like those that the model was calibrated on.",
        examples=[17.0],
    )
    heatmap: Heatmap | None = Field(
        default=None,
        description="Only with `explain=true`: 1 where most of the number comes from. Null where the model cannot say.",
    )


class ImageRegressionResult(PictureResult):
    """The numbers of one image."""

    values: list[EstimatedValue] = Field(description="All numbers of the model, in the order of its manifest.")


class ImageRegressionOutput(TaskOutput):
    """One result per image, in the order sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "blood-count", "version": "1"},
                    "results": [
                        {
                            "filename": "blood.jpg",
                            "width": 640,
                            "height": 480,
                            "values": [
                                {
                                    "name": "red_blood_cells",
                                    "unit": "cells",
                                    "value": 14.2,
                                    "lower": 11.5,
                                    "upper": 17.0,
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )

    results: list[ImageRegressionResult | FailedFile] = Field(
        description="One entry per image, in the order sent; of several, one that cannot be used has an `error`."
    )


# --- manifest


class RegressionValue(TaskOptions):
    """One number of the graph; an entry of the manifest's `[[values]]`."""

    name: Annotated[str, Field(max_length=64, pattern=NAME)]
    """As answers have it, in small letters: `red_blood_cells`."""
    unit: Annotated[str, Field(max_length=64)] = ""
    """What it is counted or measured in; empty for a number without a unit."""
    scale: Literal["linear", "log"] = "linear"
    """What the graph gives: the number, or its natural logarithm."""
    least: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The number is never smaller, such as 0 for a count; left out: any."""
    intervals: IntervalTable | QuantileMargins
    """How far the truth may be from it, by coverage; the last one 0.99 or more."""

    @model_validator(mode="after")
    def _every_coverage_is_there(self) -> Self:
        if (last := self.intervals.coverages[-1]) < MOST_COVERAGE:
            raise ValueError(
                f"intervals of {self.name} go up to coverage {last:g}, and callers may ask for {MOST_COVERAGE:g}; fit "
                "them on at least 99 held-out pictures"
            )
        return self

    def shown(self, numbers: Array) -> Array:
        """Numbers of the graph's scale as answers have them."""
        numbers = np.exp(np.minimum(numbers, MOST_LOGARITHM)) if self.scale == "log" else numbers
        return numbers if self.least is None else np.maximum(numbers, self.least)


class RegressionTensors(PictureTensors):
    """Which input and outputs of the graph are what; the manifest's `[tensors]` table."""

    values: str | None = None
    """The output with the numbers, or with their quantiles; left out: `values`, or the only one it can be."""
    spread: str = "spread"
    """The output that says how hard each number is."""
    activation_map: str = "activation_map"
    """The output with the maps."""


class ImageRegressionOptions(PictureOptions):
    """What the manifest of an image regressor may say."""

    tensors: RegressionTensors = RegressionTensors()
    values: tuple[RegressionValue, ...] = Field(min_length=1)
    """The numbers, in the order of the graph."""

    @field_validator("values")
    @classmethod
    def _names_differ(cls, values: tuple[RegressionValue, ...]) -> tuple[RegressionValue, ...]:
        names = [value.name for value in values]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two numbers are called {twice}; every one needs a name of its own")
        return values


# --- task


class ImageRegression(PictureTask[ImageRegressionInput, ImageRegressionOutput]):
    """Numbers that can be told from a picture, each with an interval of the coverage asked for."""

    name = "image-regression"
    summary = "How much or how many does this picture show?"
    Input = ImageRegressionInput
    Output = ImageRegressionOutput
    Options = ImageRegressionOptions
    options: ImageRegressionOptions
    kind = "an image regressor"

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        tensors, outputs = self.options.tensors, folder.signature.outputs
        self.values = self.options.values
        self.estimates = [NamedNumber(value.name, value.unit) for value in self.values]
        self._values = self._values_output()
        self._check_values()
        self._spread = self._own(tensors.spread, 2) if tensors.spread in outputs else None
        self._map = self._own(tensors.activation_map, 4) if tensors.activation_map in outputs else None
        self._outputs = (self._values.name, *([self._spread] if self._spread else ()))

    # --- what the graph gives

    def _values_output(self) -> TensorSpec:
        """The output with the numbers: the one named, or `values`, or the only one that it can be."""
        outputs, tensors = self.folder.signature.outputs, self.options.tensors
        others = {tensors.spread, tensors.activation_map}
        able = [
            spec
            for name, spec in outputs.items()
            if name not in others and spec.dtype in ("float32", "float64") and len(spec.shape) in (2, 3)
        ]
        named = [spec for spec in able if spec.name == (tensors.values or "values")]
        if named or tensors.values is not None:
            able = named
        if len(able) == 1:
            return able[0]
        there = "; ".join(map(str, outputs.values()))
        hint = ' Say which in the manifest: [tensors] values = "NAME".' if able else ""
        raise ManifestInvalid(
            self.graph_file, f"needs one float output with its numbers, (batch, values); it has: {there}.{hint}"
        )

    def _check_values(self) -> None:
        """See that the manifest has as many numbers as the graph, and intervals that fit what it gives of them."""
        shape, where = self._values.shape, f"{self.folder.name}/manifest.toml"
        if isinstance(shape[1], int) and shape[1] != len(self.values):
            raise ManifestInvalid(
                where, f"names {len(self.values)} numbers in [[values]]; output {self._values} has {shape[1]}."
            )
        kind, key = (QuantileMargins, "margins") if len(shape) == 3 else (IntervalTable, "half_widths")
        for value in self.values:
            if not isinstance(value.intervals, kind):
                raise ManifestInvalid(where, f"output {self._values} needs {key} in the intervals of {value.name}.")
            quantiles = 1 + 2 * len(value.intervals.coverages)
            if len(shape) == 3 and isinstance(shape[2], int) and shape[2] != quantiles:
                raise ManifestInvalid(
                    where,
                    f"the {len(value.intervals.coverages)} coverages of {value.name} need {quantiles} quantiles, the "
                    f"median in the middle; output {self._values} has {shape[2]}.",
                )

    def _own(self, name: str, rank: int) -> str:
        """The name of an output with something for each number, checked."""
        spec = self.folder.output(name, dtype=("float32", "float64"), rank=rank)
        if isinstance(spec.shape[1], int) and spec.shape[1] != len(self.values):
            raise ManifestInvalid(
                self.graph_file, f"output {spec} should have {len(self.values)} on axis 1, one for each number."
            )
        return name

    # --- answers

    def answer_pictures(
        self, request: ImageRegressionInput, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[list[dict[str, Any]]]:
        wanted = (*self._outputs, self._map) if request.explain and self._map else self._outputs
        outputs = yield self.run(pixels, wanted)
        given = outputs[self._values.name]
        spread = outputs[self._spread] if self._spread else np.ones(given.shape[:2])
        self._check_outputs(given, spread)
        columns = [
            self._estimates(value, given[:, place], spread[:, place], request.coverage)
            for place, value in enumerate(self.values)
        ]
        results = []
        for row, (file, view) in enumerate(zip(files, views, strict=True)):
            estimates = [dict(column[row]) for column in columns]
            if request.explain:
                for place, estimate in enumerate(estimates):
                    grid = heatmap(outputs[self._map][row, place], view) if self._map else None
                    estimate["heatmap"] = None if grid is None else {"values": grid}
            results.append({**picture_fields(file, view), "values": estimates})
        return results

    def _check_outputs(self, given: Array, spread: Array) -> None:
        """See that the graph gave what its signature may have left open, and nothing but numbers.

        Raises:
            InferenceFailed: it did not.
        """
        quantiles = [1 + 2 * len(value.intervals.coverages) for value in self.values]
        fits = given.shape[1] == len(self.values) and (given.ndim == 2 or {given.shape[2]} == {*quantiles})
        if not (fits and spread.shape == given.shape[:2] and np.isfinite(given).all() and np.isfinite(spread).all()):
            raise InferenceFailed(self.folder.name)

    @staticmethod
    def _estimates(value: RegressionValue, given: Array, spread: Array, coverage: float) -> list[dict[str, Any]]:
        """One number of each picture, with its interval.

        Args:
            value: which number.
            given: float (batch,) or (batch, quantiles), on the graph's scale.
            spread: float (batch,).
            coverage: of the interval.
        """
        given = given.astype(np.float64)
        if isinstance(value.intervals, QuantileMargins):
            place = len(value.intervals.coverages)
            middle = given[:, place]
            lower, upper = value.intervals.interval(given[:, :place][:, ::-1], given[:, place + 1 :], coverage)
            lower, upper = np.minimum(lower, middle), np.maximum(upper, middle)
        else:
            away = value.intervals.half_width(coverage) * np.maximum(spread.astype(np.float64), 0)
            middle, lower, upper = given, given - away, given + away
        rows = zip(*(value.shown(ends).tolist() for ends in (middle, lower, upper)), strict=True)
        return [
            {"name": value.name, "unit": value.unit, "value": number, "lower": low, "upper": high}
            for number, low, high in rows
        ]

    # --- terminal, golden samples

    def shown_result(self, request: ImageRegressionInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        rows = [
            (one["name"], _digits(one["value"]), f"{_digits(one['lower'])} to {_digits(one['upper'])}", one["unit"])
            for one in result["values"]
        ]
        yield Table(("", "value", f"{request.coverage:.3g} interval", "unit"), rows, result["filename"] or "")

    def difference(
        self, request: ImageRegressionInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Compare number by number: each may be off by the share `tolerance` of its interval's width.

        So a sample means the same for a count and for a price; one without an interval is compared as it is, and so are
        heatmaps.
        """
        results, others = expected.get("results"), {k: v for k, v in expected.items() if k != "results"}
        if not isinstance(results, list) or len(results) != len(got["results"]):
            return difference(expected, got, tolerance)
        found = difference(others, got, tolerance)
        for row, (wanted, given) in enumerate(zip(results, got["results"], strict=True)):
            found = found or _result_difference(wanted, given, tolerance, f"results[{row}]")
        return found


def _result_difference(expected: Any, got: Mapping[str, Any], tolerance: float, place: str) -> str | None:
    """The first difference between two results of one image."""
    numbers = expected.get("values") if isinstance(expected, Mapping) else None
    if not isinstance(numbers, list) or not isinstance(got.get("values"), list) or len(numbers) != len(got["values"]):
        return difference(expected, got, tolerance, place)
    found = difference({k: v for k, v in expected.items() if k != "values"}, got, tolerance, place)
    for row, (wanted, given) in enumerate(zip(numbers, got["values"], strict=True)):
        where = f"{place}.values[{row}]"
        scaled = {key: wanted[key] for key in ("value", "lower", "upper") if key in wanted}
        width = wanted["upper"] - wanted["lower"] if {"lower", "upper"} <= wanted.keys() else 1.0
        rest = {key: value for key, value in wanted.items() if key not in scaled}
        found = found or difference(rest, given, tolerance, where)
        found = found or difference(scaled, given, max(tolerance * width, 1e-6), where)
    return found


def _digits(number: float) -> str:
    """A number with three significant digits, and at least all before the point: 14.2, 529,000."""
    return f"{number:.3g}" if abs(number) < 100 else f"{float(f'{number:.3g}'):,.0f}"
