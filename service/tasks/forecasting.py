"""Forecasting: how a series of any scale goes on, as quantiles of every coming point.

A model is a graph that reads the last values of a series and answers quantiles of what follows:

- inputs `history` float64 (batch, points), the latest last, NaN where a point is missing or before the first, and
  `horizon` float32 (batch, time), how many points after the last are asked about, each answered by itself;
- output `quantiles` float64 (batch, time, levels), ascending, at the levels that the manifest's `levels` names.

With `positive = true` in the manifest, values must be above 0, as prices are, and so is every quantile. The memory of a
stream is its last values themselves, with their stamps, so a series in pieces is forecast as it is in one.

References:
    Koenker, Bassett, "Regression quantiles" (Econometrica 46, 1978).
    Hyndman, Athanasopoulos, *Forecasting: Principles and Practice* (3rd edition, 2021), chapter 5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

from service.errors import InvalidInput, InvalidState, InvalidTimestamp, ManifestInvalid, TooLarge
from service.series import timestamps
from service.series.calendar import OffGrid, Step, find_step
from service.series.fan import Fan
from service.series.timestamps import LATEST_NS, Form, Stamps
from service.state import State, pack, unpack
from service.tables import choose_series, parse_table
from service.tasks.base import (
    Array,
    Fact,
    ModelFolder,
    Run,
    Steps,
    Task,
    TaskInput,
    TaskOptions,
    TaskOutput,
    Understood,
)
from service.tasks.terminal import FileFields, FileReader, Shown, Table, number

MAX_HORIZON = 1000
"""Farthest point that may be asked about (points)."""

MAX_QUANTILES = 99
"""Quantiles that may be asked for (count)."""

MOST_BLOCKS = 16
"""Into so many blocks the points before a forecast are divided at most, to see which ones it leans on (count)."""

_RUN_LENGTHS = (12, 24, 48, 96, 192, 384, MAX_HORIZON)
"""Horizons are rounded up to one of these (points): requests of nearly one horizon share a run, and the rest is cut."""

_LARGEST = 1e300
"""Larger numbers could overflow while differences are computed."""

_FORM = "form"
"""Where a state token has how the caller writes stamps."""

_STAMP_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "number"}]}

_EXAMPLE: list[JsonValue] = [
    *(112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118),
    *(115, 126, 141, 135, 125, 149, 170, 170, None, 133, 114, 140),
    *(145, 150, 178, 163, 172, 178, 199, 199, 184, 162, 146, 166),
]
"""Airline passengers in thousands, month by month, from 1949 on (Box, Jenkins, *Time Series Analysis*, 1970)."""


class ForecastingInput(TaskInput):
    """A series, or the next piece of one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"values": _EXAMPLE, "horizon": 6, "quantiles": [0.1, 0.5, 0.9]}]},
    )

    why_not: ClassVar[Mapping[str, str]] = {
        "frequency": "The step is found in `timestamps`; without them, a step is whatever lies between two values.",
        "covariates": "The model knows the series alone: what else you know of the future, add to its answer.",
    }

    values: list[Annotated[float, Field(strict=True, allow_inf_nan=False)] | None] = Field(
        description="The points in order of time; null for a missing one. With a `state` the list may be empty: "
        "the same stream, another horizon.",
        examples=[_EXAMPLE],
    )
    timestamps: list[Annotated[Any, WithJsonSchema(_STAMP_SCHEMA)]] | None = Field(
        default=None,
        description="When the points were measured, one for each value: texts of ISO 8601, or Unix seconds, milli-, "
        "micro- or nanoseconds. The step is the commonest difference: any fixed one, days, working days from Monday to "
        "Friday (where a weekend is skipped; holidays are not known), or months, quarters and years, which keep their "
        "day or the end of the month. A hole on that grid is as many missing points. A stamp off the grid is refused. "
        "The hour that local time repeats when summer ends is accepted.",
        examples=[None],
    )
    horizon: int = Field(
        default=12,
        ge=1,
        le=MAX_HORIZON,
        description="How many points to forecast. A shorter horizon is the beginning of a longer one.",
        examples=[12],
    )
    quantiles: list[Annotated[float, Field(strict=True, gt=0, lt=1)]] = Field(
        default=[0.1, 0.5, 0.9],
        min_length=1,
        max_length=MAX_QUANTILES,
        description="Which quantiles to answer, between 0 and 1 and no two the same: a point lies below quantile 0.9 "
        "with a probability of 0.9, and between 0.1 and 0.9 with one of 0.8.",
        examples=[[0.1, 0.5, 0.9]],
    )
    state: str | None = Field(
        default=None,
        description="The `state` of the answer to the points before these; left out: the stream begins here.",
        examples=[None],
    )
    explain: bool = Field(
        default=False, description="Add `influences`: which earlier points the forecast leans on.", examples=[False]
    )

    @property
    def work(self) -> int:
        """Points; stamps take about as long to read as values, and what is explained is forecast once a block."""
        coming = self.horizon * (1 + MOST_BLOCKS * self.explain)
        return len(self.values) + (len(self.timestamps) if self.timestamps else 0) + coming

    @model_validator(mode="after")
    def _fits_together(self) -> ForecastingInput:
        if not self.values and self.state is None:
            raise ValueError("values is empty: send at least one point, or the state of a stream")
        if self.timestamps is not None and len(self.timestamps) != len(self.values):
            raise ValueError(f"timestamps has {len(self.timestamps)} entries, values has {len(self.values)}")
        if len(set(self.quantiles)) < len(self.quantiles):
            twice = next(a for a, b in itertools.pairwise(sorted(self.quantiles)) if a == b)
            raise ValueError(f"quantiles has {twice!r} twice; name each once")
        return self


class ForecastInfluence(BaseModel):
    """How much the forecast leans on some of the points before it."""

    first: int = Field(description="The earliest of them, counted back: -1 is the last point before the forecast.")
    last: int = Field(description="The latest of them.", examples=[-1])
    change: float = Field(
        description="By how much the median moves when they are missing: mean over the horizon of the absolute "
        "difference, in the series' own unit.",
        examples=[12.4],
    )


class ForecastingOutput(TaskOutput):
    """Every list has `horizon` entries."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "series-forecaster", "version": "1"},
                    "horizon": 2,
                    "timestamps": ["2026-12-01T00:00:00Z", "2026-12-02T00:00:00Z"],
                    "mean": [10.1, 10.2],
                    "quantiles": {"0.1": [9.2, 9.1], "0.5": [10.1, 10.2], "0.9": [11.0, 11.4]},
                    "state": "kP2d0h…",
                }
            ]
        }
    )

    horizon: int = Field(description="How many points are forecast.", examples=[12])
    timestamps: list[Annotated[Any, WithJsonSchema(_STAMP_SCHEMA)]] | None = Field(
        description="When these points will be, written as the stamps that were sent. Null where none were sent, or "
        "only one, from which no step can be told."
    )
    mean: list[float] = Field(description="What to expect on average: the best forecast for the squared error.")
    quantiles: dict[str, list[float]] = Field(
        description="A list for each quantile that was asked for, by its number, ascending; they never cross. "
        "The median, 0.5, is the best forecast for the absolute error."
    )
    state: str = Field(description="The stream's memory: send it with the points that follow.")
    influences: list[ForecastInfluence] | None = Field(
        default=None,
        description="Only with `explain`: the points before the forecast in at most 16 blocks as long as each other, "
        "the latest first, and what the forecast would be without each. Blocks of missing points are left out.",
    )


class ForecastingOptions(TaskOptions):
    """What a model's manifest says to this task."""

    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=3)
    """Levels of the graph's quantiles, ascending."""
    positive: bool = False
    """Whether values and quantiles are above 0."""


@dataclass(frozen=True)
class _Stream:
    """The last points that were sent.

    Attributes:
        values: float64 (points,), NaN where missing.
        stamps: of the last of them, as many as have one; earlier points have none.
        form: how the stamps are written; none: there are none.
    """

    values: Array
    stamps: Stamps
    form: Form | None

    def last(self, count: int) -> _Stream:
        """The last so many points."""
        stamps = self.stamps
        kept = slice(max(len(stamps.nanoseconds) - count, 0), None)
        cut = Stamps(stamps.nanoseconds[kept], stamps.local[kept], stamps.offsets_s[kept], stamps.unit_ns)
        return _Stream(self.values[max(len(self.values) - count, 0) :], cut, self.form)


_NO_STAMPS = Stamps(np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, np.int64), None)
_EMPTY = _Stream(np.empty(0), _NO_STAMPS, None)


def _read_file(data: bytes, name: str, options: Mapping[str, str]) -> FileFields:
    """Values from a file of columns, and stamps where a column of them can be read."""
    table = parse_table(data, name)
    chosen = choose_series(table, options.get("column"))
    fields: dict[str, Any] = {"values": table.numbers(chosen)}
    note = f"column {table.name(chosen)} of {name}" if table.width > 1 else ""
    of_stamps = table.column(*_STAMP_COLUMNS)
    if of_stamps is not None:
        stamps = [row[of_stamps] if of_stamps < len(row) else "" for row in table.rows]
        try:
            timestamps.read(stamps)
        except timestamps.Unreadable:
            note += f"; column {table.name(of_stamps)} holds no time stamps of ISO 8601 and is left out"
        else:
            fields["timestamps"] = stamps
            note += f", with the time stamps of column {table.name(of_stamps)}"
    return FileFields(fields, note)


_STAMP_COLUMNS = ("timestamp", "timestamps", "time", "datetime", "date", "ds", "month", "day")
"""Names of columns that hold time stamps."""

_SERIES_FILE = FileReader(
    option="series",
    help="CSV file: its column `value`, or the only one of numbers, is the series; a column `timestamp`, `time` or "
    "`date` its time stamps.",
    read=_read_file,
    options={"column": "For --series: the column that is the series, by its name or its place from 1."},
)
"""`--series FILE [--column C]`."""


class Forecasting(Task[ForecastingInput, ForecastingOutput]):
    """How a series of any scale goes on: quantiles of every coming point, and their mean."""

    name = "forecasting"
    summary = "How does this series go on?"
    file_reader = _SERIES_FILE
    Input = ForecastingInput
    Output = ForecastingOutput
    Options = ForecastingOptions
    options: ForecastingOptions

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        history = folder.input("history", dtype=("float64", "float32"), rank=2)
        folder.input("horizon", dtype="float32", rank=2)
        output = folder.output("quantiles", dtype=("float64", "float32"), rank=3)
        points, levels = history.shape[1], self.options.levels
        if not isinstance(points, int):
            raise ManifestInvalid(folder.graph_file(), "input 'history' must have a fixed number of points.")
        if list(levels) != sorted(set(levels)):
            raise ManifestInvalid(f"{folder.name}/manifest.toml", "levels must ascend, each once.")
        if output.shape[2] not in (len(levels), None) and isinstance(output.shape[2], int):
            raise ManifestInvalid(
                f"{folder.name}/manifest.toml",
                f"levels has {len(levels)} entries, but the graph answers {output.shape[2]} quantiles.",
            )
        self.points = points
        self._dtype = history.dtype
        self._fan = Fan(levels, positive=self.options.positive)

    # --------------------------------------------------------------------------------------------------------- answer

    def steps(self, request: ForecastingInput) -> Steps[ForecastingOutput]:
        stream = self.decode(request)
        history, step = self.place(stream, request)
        coming = self._coming(stream, step, request.horizon)
        length = next(length for length in _RUN_LENGTHS if length >= request.horizon)
        outputs = yield self._run(history[None], length)
        quantiles = outputs["quantiles"][0, : request.horizon].astype(np.float64)
        answer = self.encode(request, quantiles, coming, self._token(stream))
        if not request.explain:
            return answer
        influences = yield from self._influences(history, quantiles, length)
        return answer.model_copy(update={"influences": influences})

    def _run(self, histories: Array, length: int) -> Run:
        """A run that forecasts so many points after each history, float64 (rows, points)."""
        horizon = np.arange(1, length + 1, dtype=np.float32)
        tensors = {
            "history": histories.astype(self._dtype, copy=False),
            "horizon": np.repeat(horizon[None], len(histories), axis=0),
        }
        return Run(tensors)

    def _influences(self, history: Array, quantiles: Array, length: int) -> Steps[list[ForecastInfluence]]:
        """Forecast again without some of the points, block by block, as the graph knows missing points.

        Args:
            history: float64 (points,), NaN where missing.
            quantiles: float64 (horizon, levels), of the forecast with all of them.
            length: of a run.

        References:
            Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014), §4.2: occlusion.
        """
        known = np.flatnonzero(~np.isnan(history))
        points = len(history) - int(known[0])
        size = -(-points // MOST_BLOCKS)
        blocks = [(max(end - size, len(history) - points), end) for end in range(len(history), int(known[0]), -size)]
        told, without = [], []
        for begin, end in blocks:
            left = history.copy()
            left[begin:end] = np.nan
            # Points that are missing anyway move nothing, and where nothing is left there is no forecast to compare.
            if np.isfinite(history[begin:end]).any() and np.isfinite(left).any():
                told.append((begin - len(history), end - 1 - len(history)))
                without.append(left)
        if not without:
            return []
        outputs = yield self._run(np.stack(without), length)
        median = self._fan.at(quantiles, 0.5)
        moved = [self._fan.at(each[: len(quantiles)].astype(np.float64), 0.5) - median for each in outputs["quantiles"]]
        return [
            ForecastInfluence(first=first, last=last, change=float(np.abs(change).mean()))
            for (first, last), change in zip(told, moved, strict=True)
            if np.isfinite(change).all()
        ]

    def encode(
        self, request: ForecastingInput, quantiles: Array, coming: list[Any] | None, token: str
    ) -> ForecastingOutput:
        """The answer.

        Args:
            request: whose quantiles are asked for.
            quantiles: float64 (time, levels), the graph's.
            coming: stamps of the forecast points.
            token: the state to hand on.

        Raises:
            InvalidInput: the forecast holds numbers that JSON cannot.
        """
        # They ascend as the graph makes them; at large offsets rounding may leave two the same, never the wrong way.
        quantiles = np.maximum.accumulate(quantiles, axis=1)
        with np.errstate(all="ignore"):  # what is not finite is refused
            found = {_key(level): self._fan.at(quantiles, level) for level in sorted(request.quantiles)}
            mean = self._fan.mean(quantiles)
        if not all(np.isfinite(each).all() for each in (mean, *found.values())):
            raise InvalidInput(
                "The values lead to a forecast beyond the numbers that can be answered. Scale them down."
            )
        return ForecastingOutput.model_construct(
            model=self.folder.ref,
            horizon=request.horizon,
            timestamps=coming,
            mean=mean,
            quantiles=found,
            state=token,
        )

    def understood(self, request: ForecastingInput) -> Understood:
        """How many points there are, their step where stamps tell it, and how many of them the model will read."""
        stream = self.decode(request)
        history, step = self.place(stream, request)
        points = len(request.values)
        facts: dict[str, Fact] = {
            "points": points,
            "missing": request.values.count(None),
            "step": None if step is None else str(step),
            "known_points_read": int((~np.isnan(history)).sum()),
            "most_points_read": self.points,
        }
        return Understood(facts, {"max_series_points": points})

    # --------------------------------------------------------------------------------------------------------- stream

    def decode(self, request: ForecastingInput) -> _Stream:
        """The last points of the stream, those of the request included.

        Raises:
            TooLarge: more points than the limit.
            InvalidInput: a number is too large to compute with, or not above 0 where it must be.
            InvalidTimestamp: a stamp cannot be read.
            InvalidState: the state is not one of this model.
        """
        limit = self.folder.limits.max_series_points
        if len(request.values) > limit:
            setting = "GRIDLOOP_MAX_SERIES_POINTS"
            raise TooLarge("The series", limit=limit, unit="points", setting=setting, actual=len(request.values))
        values = np.array(request.values, dtype=np.float64)
        self._check_values(values)
        before = _EMPTY if request.state is None else self._stream_of(request.state)
        if not len(values):
            return before
        stamps, form = _NO_STAMPS, None
        if request.timestamps is not None:
            try:
                stamps = timestamps.read(request.timestamps, before.stamps.unit_ns)
            except timestamps.Unreadable as error:
                raise InvalidTimestamp(error.index, error.remedy) from None
            form = Form(request.timestamps[-1], stamps.unit_ns)
        elif len(before.stamps.nanoseconds):
            before = _Stream(self._placed(before, request)[0], _NO_STAMPS, None)  # holes stay; stamps end here
        joined = Stamps(
            np.concatenate([before.stamps.nanoseconds, stamps.nanoseconds]),
            np.concatenate([before.stamps.local, stamps.local]),
            np.concatenate([before.stamps.offsets_s, stamps.offsets_s]),
            stamps.unit_ns,
        )
        return _Stream(np.concatenate([before.values, values]), joined, form)

    def _check_values(self, values: Array) -> None:
        if np.any(np.abs(values) > _LARGEST):  # NaN compares false
            raise InvalidInput(f"values holds a number beyond ±{_LARGEST:g}. Scale the series down.")
        if self.options.positive and np.any(values <= 0):
            index = int(np.argmax(values <= 0))
            raise InvalidInput(
                f"values[{index}] is {values[index]:g}; {self.folder.name} forecasts prices, which are above 0. Send "
                "null for such points, or ask another model."
            )

    def place(self, stream: _Stream, request: ForecastingInput) -> tuple[Array, Step | None]:
        """The graph's input, and the step of the stamps.

        Returns:
            float64 (points,), NaN where missing; and the step, where there are stamps to tell it from.

        Raises:
            InvalidInput: no value is known.
            InvalidTimestamp: a stamp is off the grid.
        """
        values, step = self._placed(stream, request)
        known = np.flatnonzero(~np.isnan(values[-self.points :]))
        if not len(known):
            raise InvalidInput(f"No value is known among the last {self.points:,} points. Send at least one.")
        history = np.full(self.points, np.nan)
        history[self.points - min(len(values), self.points) :] = values[-self.points :]
        return history, step

    def _placed(self, stream: _Stream, request: ForecastingInput) -> tuple[Array, Step | None]:
        """The values on the grid of their stamps, no more of them than the graph reads; and the step."""
        stamped = len(stream.stamps.nanoseconds)
        step = find_step(stream.last(self.points).stamps) if stamped else None
        if step is None:
            self._check_order(stream, request)
            return stream.values[-self.points :], None
        try:
            places = step.places(stream.stamps)
        except OffGrid as error:
            self._refuse(error, stream, request)
        earlier = stream.values[: len(stream.values) - stamped]
        places = places - places[-1] + self.points - 1
        values = np.full(self.points, np.nan)
        kept = places >= 0
        values[places[kept]] = stream.values[len(earlier) :][kept]
        if kept.all() and len(earlier):
            room = int(places[0])
            values[max(room - len(earlier), 0) : room] = earlier[max(len(earlier) - room, 0) :]
        begin = int(places[0]) - len(earlier) if kept.all() else 0
        return values[max(begin, 0) :], step

    def _check_order(self, stream: _Stream, request: ForecastingInput) -> None:
        """See that stamps which tell no step do not go back."""
        if (np.diff(stream.stamps.nanoseconds) < 0).any():
            index = int(np.argmax(np.diff(stream.stamps.nanoseconds) < 0)) + 1
            self._refuse(OffGrid(index, "", is_earlier=True), stream, request)

    def _refuse(self, error: OffGrid, stream: _Stream, request: ForecastingInput) -> None:
        """Say which stamp is wrong, as the caller counts them.

        Raises:
            InvalidTimestamp: it is one of this request.
            InvalidState: it is one before.
        """
        sent = request.timestamps or []
        index = error.index - (len(stream.stamps.nanoseconds) - len(sent))
        if index < 0:
            raise InvalidState(f"has time stamps off the grid of {error.step} that they lie on with these")
        if error.is_earlier:
            raise InvalidTimestamp(
                index, f"{sent[index]} is earlier than the one before; send the points in order of time"
            )
        raise InvalidTimestamp(
            index,
            f"{sent[index]} is off the grid: the step is {error.step}. Correct it, or leave the point out",
        )

    def _coming(self, stream: _Stream, step: Step | None, horizon: int) -> list[Any] | None:
        """The stamps of the forecast points, in the caller's form."""
        if step is None or stream.form is None:
            return None
        moments = step.after(stream.stamps, horizon)
        if moments[-1] > LATEST_NS:
            raise InvalidInput("The forecast goes beyond the year 2261. Ask for a shorter horizon.")
        offset_s = int(stream.stamps.offsets_s[-1])
        return [stream.form.write(each, offset_s) for each in moments]

    # ---------------------------------------------------------------------------------------------------------- state

    def _token(self, stream: _Stream) -> str:
        kept = stream.last(self.points)
        missing = np.isnan(kept.values)
        arrays = {
            "values": np.where(missing, 0.0, kept.values),
            "missing": np.flatnonzero(missing).astype(np.int32),
            "stamps": kept.stamps.nanoseconds,
            "offsets": np.where(kept.stamps.local, _LOCAL, kept.stamps.offsets_s).astype(np.int32),
        }
        form = None if kept.form is None else [kept.form.sample, kept.form.unit_ns]
        return pack(self.folder.name, self.folder.version, State(arrays, {_FORM: form}))

    def _stream_of(self, token: str) -> _Stream:
        """The way back.

        Raises:
            InvalidState: the token is damaged, another model's, or nothing that this task made.
        """
        state = unpack(self.folder.name, self.folder.version, token)
        try:
            arrays = dict(state.arrays)
            values, missing = arrays.pop("values"), arrays.pop("missing")
            stamps, offsets = arrays.pop("stamps"), arrays.pop("offsets")
            kinds = [(values, np.float64), (missing, np.int32), (stamps, np.int64), (offsets, np.int32)]
            if arrays or any(array.dtype != kind or array.ndim != 1 for array, kind in kinds):
                raise ValueError
            if not (0 < len(values) <= self.points and len(stamps) <= len(values) and len(stamps) == len(offsets)):
                raise ValueError
            values = values.copy()
            if len(missing) and not (missing.min() >= 0 and missing.max() < len(values)):
                raise ValueError
            values[missing] = np.nan
            self._check_values(values)
            local = offsets == _LOCAL
            if (np.abs(offsets[~local]) > _DAY_S).any() or (stamps == -LATEST_NS - 1).any():
                raise ValueError
            form = _form_of(state.extra, bool(len(stamps)))
        except (ValueError, KeyError, TypeError, InvalidInput):
            raise InvalidState("does not fit this model") from None
        unit_ns = form.unit_ns if form else None
        return _Stream(values, Stamps(stamps, local, np.where(local, 0, offsets).astype(np.int64), unit_ns), form)

    # ------------------------------------------------------------------------------------------------------- terminal

    def shown(self, request: ForecastingInput, answer: Mapping[str, Any]) -> Iterator[Shown]:
        names = list(answer["quantiles"])
        yield from drawn(request.values, [answer["quantiles"][name] for name in names])
        stamps = answer["timestamps"] or [f"+{k}" for k in range(1, answer["horizon"] + 1)]
        columns = [stamps, *answer["quantiles"].values(), answer["mean"]]
        rows = [(str(stamp), *(number(value) for value in values)) for stamp, *values in zip(*columns, strict=True)]
        yield Table(("point", *names, "mean"), rows)


def _key(level: float) -> str:
    """A quantile's number as a key of the answer: `0.00001`, where Python would write `1e-05`."""
    return np.format_float_positional(level, trim="-")


_LOCAL = -(2**31)
"""Offset of a stamp without one, in a token."""
_DAY_S = 24 * 3600
_MAX_SAMPLE_CHARS = 100


def _form_of(extra: Mapping[str, Any], has_stamps: bool) -> Form | None:
    """How a token says that stamps are written.

    Raises:
        ValueError, KeyError, TypeError: it does not.
    """
    if extra.keys() != {_FORM} or (extra[_FORM] is None) == has_stamps:
        raise ValueError
    if extra[_FORM] is None:
        return None
    sample, unit_ns = extra[_FORM]
    if unit_ns not in (None, 1, 10**3, 10**6, 10**9) or len(str(sample)) > _MAX_SAMPLE_CHARS:
        raise ValueError
    if timestamps.read([sample], unit_ns).unit_ns != unit_ns:  # Unreadable is a ValueError
        raise ValueError
    return Form(sample, unit_ns)


# ------------------------------------------------------------------------------------------------------------- drawing

_HEIGHT, _WIDTH = 12, 72
"""Lines and columns of a drawn forecast (characters)."""


def drawn(values: list[float | None], fan: list[list[float]]) -> Iterator[str]:
    """The end of a series and its forecast as lines of text: dots, then a fan of blocks that darkens to its middle.

    Args:
        values: as sent; null for a missing one.
        fan: quantiles, ascending, each as long as the forecast.
    """
    ahead = len(fan[0])
    behind = min(len(values), max(_WIDTH - min(ahead, _WIDTH // 2), 1))
    past = [math.nan if value is None else value for value in values[len(values) - behind :]]
    columns = min(ahead, _WIDTH // 2)
    picked = [round((k + 1) * ahead / columns) - 1 for k in range(columns)]
    coming = np.array([[quantile[k] for k in picked] for quantile in fan])  # (quantiles, columns)
    every = np.concatenate([np.array(past, np.float64), coming.ravel()])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    span = (high - low) or 1.0

    def row(value: float) -> int:
        return round((high - value) / span * (_HEIGHT - 1))

    canvas = [[" "] * (len(past) + columns) for _ in range(_HEIGHT)]
    for column, value in enumerate(past):
        if not math.isnan(value):
            canvas[row(value)][column] = "•"
    shades = "░▒▓"
    for column in range(columns):
        edges = [row(value) for value in coming[:, column]]
        for depth in range((len(fan) + 1) // 2):
            top, bottom = edges[len(fan) - 1 - depth], edges[depth]
            middle = depth == len(fan) - 1 - depth
            for line in range(top, bottom + 1):
                canvas[line][len(past) + column] = "━" if middle else shades[min(depth, len(shades) - 1)]
    labels = {0: number(high, ".5g"), _HEIGHT - 1: number(low, ".5g")}
    margin = max(map(len, labels.values()))
    for line, characters in enumerate(canvas):
        yield f"{labels.get(line, ''):>{margin}} ┤{''.join(characters).rstrip()}"
