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

Long series are cut into runs of a few thousand points that hand the state on, which changes no answer. Time stamps put
the points on a grid (`service/series/grid.py`); where it has holes, the model is given missing points, which the answer
leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

from service.errors import InferenceFailed, InvalidInput, InvalidState, InvalidTimestamp, TooLarge
from service.graph import SEQUENCE_LENS
from service.series import timestamps
from service.series.grid import Grid, StepBack
from service.state import LEADS_NOWHERE, OutOfRange
from service.tasks.base import Array, Fact, ModelFolder, Run, Steps, Task, TaskInput, TaskOutput, Understood
from service.tasks.comparison import difference
from service.tasks.series_file import SERIES_FILE
from service.tasks.terminal import Shown, Table, number

CHUNK = 4096
"""Points in one run (count): between two runs the requests of other callers have their turn."""

UNBOUNDED = 1e300
"""A spread from here on means that the model cannot judge the point, such as the first of a stream."""

_LARGEST = 1e300
"""Larger numbers could overflow while differences are computed."""

_STAMP_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "number"}]}
_GRID = "grid"
"""Where a state token has what the stream remembers of its stamps."""

_EXAMPLE: list[JsonValue] = [10.1, 10.3, 9.9, 10.2, None, 10.0, 9.8, 10.1, 10.2, 9.9, 10.0, 10.1, 25.0, 10.0]


class AnomalyDetectionInput(TaskInput):
    """A series, or the next piece of one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"values": _EXAMPLE, "sensitivity": 0.5}]},
    )

    values: list[Annotated[float, Field(strict=True, allow_inf_nan=False)] | None] = Field(
        min_length=1,
        description="The points in order of time; null for a missing one.",
        examples=[_EXAMPLE],
    )
    timestamps: list[Annotated[Any, WithJsonSchema(_STAMP_SCHEMA)]] | None = Field(
        default=None,
        description="When the points were measured, one for each value: texts of ISO 8601 (UTC where they have no "
        "offset), or Unix seconds, milli-, micro- or nanoseconds. They never go back; equal ones are accepted, and so "
        "is the hour that local time repeats when summer ends. The step is the commonest difference so far. A hole of "
        "several steps is as many missing points for the model, as if they had been sent as null: at most 2,048, "
        "and in the long run at most three for each value. Stamps off the grid count as the nearest point of it.",
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
    explain: bool = Field(
        default=False, description="Add `causes`: what the score of each point is made of.", examples=[False]
    )

    @property
    def work(self) -> int:
        """Points; stamps take about as long to read as values to judge."""
        return len(self.values) + (len(self.timestamps) if self.timestamps else 0)

    @model_validator(mode="after")
    def _timestamps_fit(self) -> AnomalyDetectionInput:
        if self.timestamps is None:
            return self
        if len(self.timestamps) != len(self.values):
            raise ValueError(f"timestamps has {len(self.timestamps)} entries, values has {len(self.values)}")
        return self


class AnomalyCauses(BaseModel):
    """What scores are made of: each is the larger of the two. Every list is as long as `values`."""

    error: list[float] = Field(
        description="How far the value is from what was expected: e / (e + w), e = |value - expected|, w half the band "
        "at sensitivity 0.5. 0 where the model cannot judge."
    )
    novelty: list[float] = Field(
        description="How new the latest points are together, such as in a slow drift, where each is near what was "
        "expected. 0 where the model does not say."
    )


class AnomalyDetectionOutput(TaskOutput):
    """Every list is as long as `values`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "series-gru", "version": "2"},
                    "anomalies": [2],
                    "expected": [None, 10.1, 10.0],
                    "lower": [None, 9.2, 9.1],
                    "upper": [None, 11.0, 10.9],
                    "scores": [0.0, 0.1, 0.94],
                    "is_anomaly": [False, False, True],
                    "state": "kP2d0h…",
                }
            ]
        }
    )

    anomalies: list[int] = Field(description="Indices of the anomalous points in `values`.", examples=[[12]])
    expected: list[float | None] = Field(
        description="What the model expected at each point, from the points before it. Null before it can judge."
    )
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
    causes: AnomalyCauses | None = Field(default=None, description="Only with `explain`.")


@dataclass(frozen=True)
class _Stream:
    """What a request means to the model.

    Attributes:
        values: float64 (time,), NaN where missing, holes in time included.
        arrays: the model's state, each (1, ...).
        grid: what the stream remembers of its stamps; none: it has had none.
        sent: where among `values` those of the request are, int64 (points,); none: they are all of them.
    """

    values: Array
    arrays: Mapping[str, Array]
    grid: Grid | None
    sent: Array | None = None


class AnomalyDetection(Task[AnomalyDetectionInput, AnomalyDetectionOutput]):
    """Anomalies in series of any scale, point by point or in one piece."""

    name = "anomaly-detection"
    summary = "Which points of this series are unexpected?"
    Input = AnomalyDetectionInput
    Output = AnomalyDetectionOutput
    file_reader = SERIES_FILE
    by_default = True

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("values", dtype=("float64", "float32"), rank=2)
        folder.input(SEQUENCE_LENS, dtype="int32", rank=1)
        folder.output("expected", dtype=("float64", "float32"), rank=2)
        folder.output("spread", dtype=("float64", "float32"), rank=2)
        if "novelty" in folder.signature.outputs:
            folder.output("novelty", dtype=("float64", "float32"), rank=2)
        self._dtype = folder.signature.inputs["values"].dtype
        _ = folder.state_bounds  # raises where the state cannot travel

    def traits(
        self, request: AnomalyDetectionInput, answer: AnomalyDetectionOutput
    ) -> Iterator[tuple[str, str | float]]:
        scores = np.asarray(answer.scores)
        if scores.size:
            yield "anomalous_share", len(answer.anomalies) / scores.size
            yield "score", float(scores.mean())
        values, expected, lower, upper = (
            np.asarray(column, np.float64) for column in (request.values, answer.expected, answer.lower, answer.upper)
        )
        with np.errstate(all="ignore"):  # numbers near the largest there are
            residuals = np.abs(values - expected) / (upper - lower)  # of the band's width; NaN where there is none
        if (known := residuals[np.isfinite(residuals)]).size:
            yield "residual", float(np.median(known))

    def shown(self, request: AnomalyDetectionInput, answer: Mapping[str, Any]) -> Iterator[Shown]:
        columns = (request.values, answer["expected"], answer["scores"])
        rows = [(str(index), *(number(column[index]) for column in columns)) for index in answer["anomalies"]]
        yield Table(("point", "value", "expected", "score"), rows)
        yield f"{len(rows)} of {len(request.values)} points are anomalous"

    def steps(self, request: AnomalyDetectionInput) -> Steps[AnomalyDetectionOutput]:
        try:
            return (yield from self._steps(request))
        except OutOfRange:
            if request.state is None:
                raise InvalidInput(
                    "The values lead to numbers that the model cannot hold. Scale the series down; if there are "
                    "missing points, try without them."
                ) from None
            raise InvalidState(LEADS_NOWHERE) from None
        except InferenceFailed:
            if request.state is None:
                raise
            raise InvalidState(LEADS_NOWHERE) from None

    def _steps(self, request: AnomalyDetectionInput) -> Steps[AnomalyDetectionOutput]:
        stream = self.decode(request)
        values, state = stream.values, stream.arrays
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
        token = self.folder.pack_state(
            {name: array[0] for name, array in state.items()},
            {_GRID: stream.grid.to_json()} if stream.grid else None,
            from_token=request.state is not None,
        )
        if (sent := stream.sent) is not None:
            values, expected, spread, novelty = values[sent], expected[sent], spread[sent], novelty[sent]
        answer = self.encode(values, expected, spread, novelty, request.sensitivity, token, explain=request.explain)
        # Numbers that are only believed must not lead to a score that is none, or beyond 1.
        if request.state is not None and not np.vdot(answer.scores, answer.scores) <= len(values):
            raise OutOfRange("scores")
        return answer

    def decode(self, request: AnomalyDetectionInput) -> _Stream:
        """What the model is to be given.

        Raises:
            TooLarge: more points than the limit.
            InvalidInput: a number is too large to compute with.
            InvalidTimestamp: a stamp cannot be read, or is earlier than the one before it.
            InvalidState: the state is not one of this model.
        """
        limit = self.folder.limits.max_series_points
        if len(request.values) > limit:
            setting = "GRIDLOOP_MAX_SERIES_POINTS"
            raise TooLarge("The series", limit=limit, unit="points", setting=setting, actual=len(request.values))
        values = np.array(request.values, dtype=np.float64)
        if np.any(np.abs(values) > _LARGEST):  # NaN compares false
            raise InvalidInput(f"values holds a number beyond ±{_LARGEST:g}. Scale the series down.")
        grid = None
        if request.state is None:
            arrays = self.folder.signature.fresh_state()
        else:
            state = self.folder.unpack_state(request.state)
            arrays = {name: array[None] for name, array in state.arrays.items()}
            if state.extra:
                grid = _grid_of(state.extra)
        if request.timestamps is None:
            if grid is not None:
                grid.leave()
            return _Stream(values, arrays, grid)
        grid = grid or Grid()
        places = np.arange(len(values)) + np.cumsum(_missing_before(request.timestamps, grid))
        if (length := int(places[-1]) + 1) == len(values):
            return _Stream(values, arrays, grid)
        filled = np.full(length, np.nan)
        filled[places] = values
        return _Stream(filled, arrays, grid, places)

    def understood(self, request: AnomalyDetectionInput) -> Understood:
        """How many points there are, and their step, where stamps tell it."""
        stream = self.decode(request)
        step_ns = stream.grid.step_ns if stream.grid else None
        points = len(request.values)
        facts: dict[str, Fact] = {
            "points": points,
            "missing": request.values.count(None),
            "missing_in_holes": len(stream.values) - points,
            "step_s": None if step_ns is None else step_ns / 1e9,
        }
        return Understood(facts, {"max_series_points": points})

    def encode(
        self,
        values: Array,
        expected: Array,
        spread: Array,
        novelty: Array,
        sensitivity: float,
        state: str,
        *,
        explain: bool = False,
    ) -> AnomalyDetectionOutput:
        """Judge each point against its forecast.

        Args:
            values: float64 (time,), NaN where missing.
            expected: float64 (time,), forecasts.
            spread: float64 (time,), half-widths of the band at sensitivity 0.5; above 0.
            novelty: float64 (time,), 0..1, how new the latest points are together; 0 where the model does not say.
            sensitivity: 0..1.
            state: the token to hand on.
            explain: whether to tell what the scores are made of.
        """
        missing = np.isnan(values)
        blind = (spread >= UNBOUNDED) | np.isnan(expected)
        error = np.abs(values - expected)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # no score
            unexpected = np.where(blind, 0.0, error / (error + spread))  # u / (1 + u), but no quotient that overflows
        scores = np.where(missing, 0.0, np.maximum(unexpected, novelty))
        is_anomaly = (scores >= 1 - sensitivity) & ~missing
        with np.errstate(over="ignore"):
            half_width = spread * ((1 - sensitivity) / sensitivity) if sensitivity > 0 else spread * math.inf
        half_width = np.where(blind, math.inf, half_width)
        answer = AnomalyDetectionOutput.model_construct(
            model=self.folder.ref,
            anomalies=np.flatnonzero(is_anomaly),
            expected=np.where(blind, math.nan, expected),
            lower=expected - half_width,
            upper=expected + half_width,
            scores=scores,
            is_anomaly=is_anomaly,
            state=state,
        )
        if not explain:
            return answer
        error, novelty = (np.where(missing, 0.0, part) for part in (unexpected, novelty))
        causes = AnomalyCauses.model_construct(error=error, novelty=novelty)
        return answer.model_copy(update={"causes": causes})

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


def _missing_before(stamps: list[Any], grid: Grid) -> Array:
    """How many points are missing before each, int64 (points,); the grid goes on to the last one.

    Raises:
        InvalidTimestamp: a stamp cannot be read, or is earlier than the one before it.
    """
    try:
        found = timestamps.read(stamps, grid.unit_ns)
        return grid.advance(found)
    except timestamps.Unreadable as error:
        raise InvalidTimestamp(error.index, error.remedy) from None
    except StepBack as error:
        now = stamps[error.index]
        if error.index:
            before = f"timestamps[{error.index - 1}] = {stamps[error.index - 1]}"
        else:
            before = f"the last of the stream so far, {timestamps.written(error.before_ns, grid.unit_ns)}"
        raise InvalidTimestamp(
            error.index, f"{now} is earlier than {before}; send the points in order of time"
        ) from None


def _grid_of(extra: Mapping[str, Any]) -> Grid:
    """What a token says of the stream's stamps.

    Raises:
        InvalidState: it is no such thing.
    """
    try:
        if extra.keys() != {_GRID}:
            raise ValueError
        return Grid.from_json(extra[_GRID])
    except (ValueError, KeyError, TypeError):
        raise InvalidState("does not fit this model") from None
