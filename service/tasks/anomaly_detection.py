"""Anomaly detection: a series in, anomalies, expectations and a band out; one model for series of any scale.

A model is a graph that forecasts each point from the points before it and says how far off a normal point may be:

- inputs `values` float64 (batch, time), NaN where a point is missing, `sequence_lens` int32 (batch,), and state;
- outputs `expected` and `spread`, float64 (batch, time), and the next state. `spread` is the half-width of the
  band at sensitivity 0.5, and depends only on earlier points;
- optionally an output `novelty`, float64 (batch, time), in 0..1: how unlike anything before the latest points are,
  this one included; 0.5 is an anomaly at sensitivity 0.5.

From them, with u = |value − expected| / spread: score = max(u / (1 + u), novelty), and a point is anomalous when its
score reaches 1 − sensitivity. So a point is anomalous wherever it leaves the band expected ± spread ·
(1 − sensitivity) / sensitivity; with `novelty`, a point inside the band can be one too, where a usual value comes
at an unusual place.

References:
    Malhotra et al., "Long Short Term Memory Networks for Anomaly Detection in Time Series", ESANN 2015 (forecast one
    step, judge the error).
    Burnaev, Ishimtsev, "Conformalized density- and distance-based anomaly detection in time-series data", 2016 (the
    latest window among earlier ones).

Long series are cut into runs of a few thousand points that hand the state on, which changes no answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AwareDatetime, ConfigDict, Field, JsonValue, NaiveDatetime, StrictFloat, StrictInt, model_validator

from service.errors import InvalidInput, TooLarge
from service.graph import SEQUENCE_LENS
from service.tasks.base import Array, ModelFolder, Run, Steps, Task, TaskInput, TaskOutput
from service.tasks.comparison import difference

CHUNK = 4096
"""Points in one run (count): between two runs the requests of other callers have their turn."""

UNBOUNDED = 1e300
"""A spread from here on means that the model cannot judge the point, such as the first of a stream."""

_LARGEST = 1e300
"""Larger numbers could overflow while differences are computed."""

_EXAMPLE: list[JsonValue] = [10.1, 10.3, 9.9, 10.2, None, 10.0, 9.8, 10.1, 10.2, 9.9, 10.0, 10.1, 25.0, 10.0]


class AnomalyDetectionInput(TaskInput):
    """A series, or the next piece of one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"values": _EXAMPLE, "sensitivity": 0.5}]},
    )

    why_not: ClassVar[Mapping[str, str]] = {
        "explain": "A series is not explained: that would need a graph with an output that says how much each earlier "
        "point counts in a forecast, and no convention for one exists yet. Leave it out, and compare each value with "
        "`expected`, `lower` and `upper`, which say why a point is an anomaly."
    }

    values: list[Annotated[float, Field(strict=True, allow_inf_nan=False)] | None] = Field(
        min_length=1,
        description="The points in order of time; null for a missing one.",
        examples=[_EXAMPLE],
    )
    timestamps: list[StrictInt | StrictFloat | AwareDatetime | NaiveDatetime] | None = Field(
        default=None,
        description="ISO 8601 texts or Unix seconds, one for each value, strictly increasing. Texts without an offset "
        "are UTC.",
        examples=[None],
    )
    sensitivity: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="0: nothing is an anomaly; 1: everything is. The band narrows as it grows. How many false alarms "
        "a value gives is measured for each model: see its metrics and card.",
        examples=[0.5],
    )
    state: str | None = Field(
        default=None,
        description="The `state` of the answer to the points before these; left out: the stream begins here.",
        examples=[None],
    )

    @model_validator(mode="after")
    def _timestamps_fit(self) -> AnomalyDetectionInput:
        if self.timestamps is None:
            return self
        if len(self.timestamps) != len(self.values):
            raise ValueError(f"timestamps has {len(self.timestamps)} entries, values has {len(self.values)}")
        seconds = [_unix_seconds(stamp) for stamp in self.timestamps]
        for i, (before, after) in enumerate(pairwise(seconds), start=1):
            if not after > before:
                raise ValueError(f"timestamps[{i}] is not later than the one before it")
        return self


class AnomalyDetectionOutput(TaskOutput):
    """Every list is as long as `values`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "series-gru", "version": "1"},
                    "anomalies": [2],
                    "expected": [10.0, 10.1, 10.0],
                    "lower": [8.9, 9.2, 9.1],
                    "upper": [11.1, 11.0, 10.9],
                    "scores": [0.0, 0.1, 0.94],
                    "is_anomaly": [False, False, True],
                    "state": "kP2d0h…",
                }
            ]
        }
    )

    anomalies: list[int] = Field(description="Indices of the anomalous points in `values`.", examples=[[12]])
    expected: list[float] = Field(description="What the model expected at each point, from the points before it.")
    lower: list[float | None] = Field(
        description="Lower edge of the band: a value below it is an anomaly. Null where there is none: at "
        "sensitivity 0, or before the model can judge."
    )
    upper: list[float | None] = Field(
        description="Upper edge of the band: a value above it is an anomaly. Null where there is none: at "
        "sensitivity 0, or before the model can judge."
    )
    scores: list[float] = Field(description="0 as expected, 1 utterly unexpected; comparable across series.")
    is_anomaly: list[bool] = Field(description="Whether the score reaches the threshold that `sensitivity` sets.")
    state: str = Field(description="The stream's memory: send it with the points that follow.")


class AnomalyDetection(Task[AnomalyDetectionInput, AnomalyDetectionOutput]):
    """Anomalies in series of any scale, point by point or in one piece."""

    name = "anomaly-detection"
    summary = "Which points of this series are unexpected?"
    Input = AnomalyDetectionInput
    Output = AnomalyDetectionOutput

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("values", dtype=("float64", "float32"), rank=2)
        folder.input(SEQUENCE_LENS, dtype="int32", rank=1)
        folder.output("expected", dtype=("float64", "float32"), rank=2)
        folder.output("spread", dtype=("float64", "float32"), rank=2)
        if "novelty" in folder.signature.outputs:
            folder.output("novelty", dtype=("float64", "float32"), rank=2)
        self._dtype = folder.signature.inputs["values"].dtype

    def steps(self, request: AnomalyDetectionInput) -> Steps[AnomalyDetectionOutput]:
        values, state = self.decode(request)
        expected, spread, novelty = np.empty_like(values), np.empty_like(values), np.zeros_like(values)
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            outputs = yield Run(
                {
                    "values": chunk[None].astype(self._dtype, copy=False),
                    SEQUENCE_LENS: np.array([len(chunk)], np.int32),
                    **state,
                }
            )
            expected[start : start + CHUNK] = outputs["expected"][0]
            spread[start : start + CHUNK] = outputs["spread"][0]
            if "novelty" in outputs:
                novelty[start : start + CHUNK] = outputs["novelty"][0]
            state = {name: outputs[following] for name, following in self.folder.signature.states.items()}
        return self.encode(values, expected, spread, novelty, request.sensitivity, state)

    def decode(self, request: AnomalyDetectionInput) -> tuple[Array, dict[str, Array]]:
        """The points as float64 (time,), NaN where missing, and the stream's state, each (1, ...).

        Raises:
            TooLarge: more points than the limit.
            InvalidInput: a number is too large to compute with.
            InvalidState: the state is not one of this model.
        """
        limit = self.folder.limits.max_series_points
        if len(request.values) > limit:
            setting = "GRIDLOOP_MAX_SERIES_POINTS"
            raise TooLarge("The series", limit=limit, unit="points", setting=setting, actual=len(request.values))
        values = np.array(request.values, dtype=np.float64)
        if np.any(np.abs(values) > _LARGEST):  # NaN compares false
            raise InvalidInput(f"values holds a number beyond ±{_LARGEST:g}. Scale the series down.")
        if request.state is None:
            return values, self.folder.signature.fresh_state()
        return values, {name: array[None] for name, array in self.folder.unpack_state(request.state).arrays.items()}

    def encode(
        self,
        values: Array,
        expected: Array,
        spread: Array,
        novelty: Array,
        sensitivity: float,
        state: Mapping[str, Array],
    ) -> AnomalyDetectionOutput:
        """Judge each point against its forecast.

        Args:
            values: float64 (time,), NaN where missing.
            expected: float64 (time,), forecasts.
            spread: float64 (time,), half-widths of the band at sensitivity 0.5; above 0.
            novelty: float64 (time,), 0..1, how new the latest points are together; 0 where the model does not say.
            sensitivity: 0..1.
            state: what to hand on, each (1, ...).
        """
        missing = np.isnan(values)
        blind = spread >= UNBOUNDED
        error = np.abs(values - expected)
        unexpected = np.where(blind, 0.0, error / (error + spread))  # u / (1 + u), but no quotient that overflows
        scores = np.where(missing, 0.0, np.maximum(unexpected, novelty))
        is_anomaly = (scores >= 1 - sensitivity) & ~missing
        with np.errstate(over="ignore"):
            half_width = spread * ((1 - sensitivity) / sensitivity) if sensitivity > 0 else spread * math.inf
        half_width = np.where(blind, math.inf, half_width)
        return AnomalyDetectionOutput.model_construct(
            model=self.folder.ref,
            anomalies=np.flatnonzero(is_anomaly),
            expected=expected,
            lower=expected - half_width,
            upper=expected + half_width,
            scores=scores,
            is_anomaly=is_anomaly,
            state=self.folder.pack_state({name: array[0] for name, array in state.items()}),
        )

    def difference(
        self, request: AnomalyDetectionInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Compare point by point: one whose score is as near the threshold as the tolerance may be on either side."""
        threshold, scores = 1 - request.sensitivity, got["scores"]
        undecided = {i for i, score in enumerate(scores) if abs(score - threshold) <= tolerance}
        rest, alike = dict(expected), dict(got)
        if isinstance(rest.get("anomalies"), list):
            rest["anomalies"] = [i for i in rest["anomalies"] if i not in undecided]
            alike["anomalies"] = [i for i in got["anomalies"] if i not in undecided]
        if isinstance(rest.get("is_anomaly"), list):
            rest["is_anomaly"] = [None if i in undecided else each for i, each in enumerate(rest["is_anomaly"])]
            alike["is_anomaly"] = [None if i in undecided else each for i, each in enumerate(got["is_anomaly"])]
        return difference(rest, alike, tolerance)


def _unix_seconds(stamp: float | datetime) -> float:
    """A time stamp as seconds; a text without an offset is UTC."""
    if isinstance(stamp, datetime):
        return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    return float(stamp)
