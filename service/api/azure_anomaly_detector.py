"""Routes that are compatible with Azure Anomaly Detector, whose users change one host name.

`POST /anomalydetector/v1.1/timeseries/entire/detect` and `…/last/detect` take the fields of that service and answer in
its own, from the default model for anomaly detection. What its sensitivity means is told exactly by ours: its band is
(100 - sensitivity) margins wide, so with the half-width of ours at sensitivity 0.5 as the margin, a sensitivity S of
theirs is 1 / (101 - S) of ours. What differs otherwise stands in `docs/azure-anomaly-detector.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from service.api import reach
from service.api.attended import attended
from service.api.body import INLINE_BYTES, PARSERS, receive_body
from service.api.context import Answer, Asked, RequestContext
from service.api.in_flight import BytesInFlight
from service.api.inputs import json_text
from service.api.problems import AZURE
from service.errors import BadRequest, InvalidInput, TooLarge, schema_problems
from service.graph import Steps
from service.registry.handle import ModelHandle
from service.registry.registry import Registry
from service.runtime.job import Done
from service.schemas.azure_anomaly_detector import (
    EXAMPLE,
    AzureDetectRequest,
    AzureEntireResult,
    AzureError,
    AzureLastResult,
)
from service.series import timestamps
from service.series.calendar import DAY_NS, FixedStep, Months, OffGrid, Step
from service.series.period import find_period
from service.series.timestamps import HOUR_NS, SECOND_NS, Stamps
from service.settings import Settings
from service.tasks.anomaly_detection import AnomalyDetection, AnomalyDetectionInput

VERSIONS = ("v1.0", "v1.1")
"""Of that service's protocol; the older one must be told the granularity."""
SCHEMAS: tuple[type[BaseModel], ...] = (AzureDetectRequest, AzureEntireResult, AzureLastResult, AzureError)

DEFAULT_SENSITIVITY = 99
DEFAULT_RATIO = 0.25
WINDOW_PERIODS = 4
"""Periods before a point that are worth sending for it (count)."""
LEAST_POINTS = 12
"""Of a series (count)."""
MOST_MONTHS = 12_000
"""Of a step (count): stamps do not reach so far."""

Values = NDArray[np.float64]

_FIXED_NS = {
    "weekly": 7 * DAY_NS,
    "daily": DAY_NS,
    "hourly": HOUR_NS,
    "minutely": 60 * SECOND_NS,
    "secondly": SECOND_NS,
    "microsecond": 1000,
}
_MONTHS = {"monthly": 1, "yearly": 12}

_CODES = {
    "granularity": "InvalidGranularity",
    "customInterval": "InvalidCustomInterval",
    "period": "InvalidPeriod",
    "maxAnomalyRatio": "InvalidModelArgument",
    "sensitivity": "InvalidModelArgument",
    "imputeMode": "InvalidImputeMode",
    "imputeFixedValue": "InvalidImputeFixedValue",
    "series": "InvalidSeries",
}
"""What that service calls a field that is wrong."""


class Refused(BadRequest):
    """A request that Azure's service would refuse, by its own code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Series:
    """A series on its grid.

    Attributes:
        values: (points,), NaN for those that are missing and stay so.
        sent: where among them the points of the request are, int64.
    """

    values: Values
    sent: NDArray[np.int64]


class DetectEndpoint:
    """What answers one of the routes; see `Endpoint`.

    Args:
        version: of that service's protocol.
        last: whether only the last point is told of.
        settings: the server's limits.
        registry: where the models are.
        in_flight: where large bodies are counted.
    """

    is_short = True

    def __init__(
        self, version: str, *, last: bool, settings: Settings, registry: Registry, in_flight: BytesInFlight
    ) -> None:
        self.path = f"{AZURE}{version}/timeseries/{'last' if last else 'entire'}/detect"
        self._needs_granularity, self._last = version == "v1.0", last
        self._settings, self._registry, self._in_flight = settings, registry, in_flight

    async def __call__(self, context: RequestContext, scope: Any, receive: Any) -> Answer:
        """See `Endpoint`."""
        with self._in_flight.body() as counted:
            body = await receive_body(self._settings, context.headers, scope, receive, counted)
            if len(body) <= INLINE_BYTES:
                asked = self.ask(context, scope, body)
            else:
                asked = await asyncio.get_running_loop().run_in_executor(PARSERS, self.ask, context, scope, body)
        return self.answer(await attended(asked, context, receive))

    def ask(self, context: RequestContext, scope: Any, body: bytes) -> Asked:
        """See `Endpoint`."""
        request = self._parsed(context.headers, body)
        context.check_deadline()
        handle = reach.resolve(self._registry, context.key, AnomalyDetection.name, None, context)
        context.model = handle.name
        return Asked(handle.batcher, self._steps(handle, request), 1, 2 * len(request.series), len(body))

    def answer(self, done: Done[bytes]) -> Answer:
        """See `Endpoint`."""
        return Answer(done.value)

    def _parsed(self, headers: Mapping[bytes, bytes], body: bytes) -> AzureDetectRequest:
        """The request.

        Raises:
            Refused: it breaks the schema.
            TooLarge: it has more points than the limit.
        """
        text = json_text(headers.get(b"content-type"), body)
        try:
            request = AzureDetectRequest.model_validate_json(text)
        except ValidationError as error:
            raise _refused(error) from None
        if self._needs_granularity and request.granularity is None:
            raise Refused("RequiredGranularity", "`granularity` is missing. Say how far the points are apart.")
        limit = self._settings.max_series_points
        if len(request.series) > limit:
            setting = "GRIDLOOP_MAX_SERIES_POINTS"
            raise TooLarge("The series", limit=limit, unit="points", setting=setting, actual=len(request.series))
        return request

    def _steps(self, handle: ModelHandle, request: AzureDetectRequest) -> Steps[bytes]:
        series = on_grid(request, self._settings.max_series_points)
        width = 100 - (DEFAULT_SENSITIVITY if request.sensitivity is None else request.sensitivity)
        values: list[float | None] = [None if np.isnan(value) else value for value in series.values.tolist()]
        asked = AnomalyDetectionInput(values=values, sensitivity=1 / (width + 1))
        try:
            found: Any = yield from handle.task.steps(asked)
        except InvalidInput as error:
            raise Refused("InvalidSeries", str(error)) from None
        at = series.sent
        result = judged(
            series.values[at],
            np.asarray(found.expected, np.float64)[at],
            np.asarray(found.upper, np.float64)[at],
            np.asarray(found.scores, np.float64)[at],
            np.asarray(found.is_anomaly, np.bool_)[at],
            width,
            DEFAULT_RATIO if request.max_anomaly_ratio is None else request.max_anomaly_ratio,
        )
        period = find_period(series.values) if request.period is None else request.period
        if self._last:
            window = max(WINDOW_PERIODS * period + 1, LEAST_POINTS)
            return orjson.dumps(_of_last(result) | {"period": period, "suggestedWindow": window})
        return orjson.dumps({"period": period, **result}, option=orjson.OPT_SERIALIZE_NUMPY)


def _refused(error: ValidationError) -> Refused:
    """What Azure's service would call the first thing that is wrong."""
    problem = schema_problems(error)[0]
    place = ".".join(str(part) for part in problem["loc"])
    field = problem["loc"][0] if problem["loc"] else ""
    if problem["type"] == "json_invalid":
        return Refused("InvalidJsonFormat", f"The body is no JSON: {problem['msg']}.")
    if field == "series" and problem["type"] == "missing" and len(problem["loc"]) == 1:
        return Refused("RequiredSeries", "`series` is missing. Send at least 12 points.")
    return Refused(_CODES.get(field, "BadArgument"), f"{place or 'The body'}: {problem['msg']}.")


# --- the series


def on_grid(request: AzureDetectRequest, most: int) -> Series:
    """Put the points of a request on the grid of their granularity, and fill what is missing as it says.

    Args:
        request: as sent.
        most: points that the grid may have.

    Raises:
        Refused: a stamp is missing, cannot be read, goes back, comes twice or lies off the grid; or points are to be
            filled with a value that is not there.
    """
    values = np.array([point.value for point in request.series], np.float64)
    written = [point.timestamp for point in request.series]
    granularity = request.granularity or "none"
    if request.impute_mode == "fixed" and request.impute_fixed_value is None and granularity != "none":
        raise Refused("InvalidImputeFixedValue", "`imputeMode` is `fixed`: send `imputeFixedValue`.")
    if granularity == "none" and not any(written):
        return Series(values, np.arange(len(values)))
    stamps = _read(written)
    if granularity == "none":
        return Series(values, np.arange(len(values)))
    try:
        places = _step(granularity, request.custom_interval or 1, stamps).places(stamps)
    except OffGrid as error:
        told = f"series[{error.index}].timestamp, {written[error.index]}, is off the grid of {error.step}"
        raise Refused("InvalidSeries", f"{told}, which `granularity` and `customInterval` say.") from None
    length = int(places[-1]) + 1
    if length > most:
        raise Refused("InvalidSeries", f"From the first stamp to the last it is {length:,} steps, of {most:,} at most.")
    filled = np.full(length, np.nan)
    filled[places] = values
    return Series(_filled(filled, places, request), places)


def _read(written: Sequence[Any]) -> Stamps:
    """The stamps of a series, which ascend.

    Raises:
        Refused: they do not.
    """
    try:
        stamps = timestamps.read(list(written))
    except timestamps.Unreadable as error:
        raise Refused("InvalidSeries", f"series[{error.index}].timestamp: {error.remedy}.") from None
    if (back := np.flatnonzero(np.diff(stamps.nanoseconds) <= 0)).size:
        index = int(back[0]) + 1
        wrong = "comes twice" if stamps.nanoseconds[index] == stamps.nanoseconds[index - 1] else "goes back"
        raise Refused("InvalidSeries", f"series[{index}].timestamp, {written[index]}, {wrong}. Sort the points.")
    return stamps


def _step(granularity: str, interval: int, stamps: Stamps) -> Step:
    if granularity in _FIXED_NS:
        return FixedStep(min(_FIXED_NS[granularity] * interval, timestamps.LATEST_NS // 2))
    clock = (stamps.nanoseconds + stamps.offsets_s * SECOND_NS).astype("datetime64[ns]")
    days = clock.astype("datetime64[D]")
    latest = int((days - days.astype("datetime64[M]")).max().astype(int)) + 1  # of any month: shorter ones end before
    return Months(min(_MONTHS[granularity] * interval, MOST_MONTHS), latest)


def _filled(values: Values, places: NDArray[np.int64], request: AzureDetectRequest) -> Values:
    """The values with something in place of those missing; `auto` and `notFill` leave them to the model."""
    missing = np.isnan(values)
    mode = request.impute_mode
    if mode in (None, "auto", "notFill") or not missing.any():
        return values
    if mode == "linear":
        filled = np.interp(np.arange(len(values)), places, values[places])
    elif mode == "previous":
        filled = values[places[np.searchsorted(places, np.arange(len(values)), "right") - 1]]
    else:
        filled = np.full(len(values), request.impute_fixed_value if mode == "fixed" else 0.0)
    return np.where(missing, filled, values)


# --- the answer


def judged(
    values: Values,
    expected: Values,
    upper: Values,
    scores: Values,
    is_anomaly: NDArray[np.bool_],
    width: int,
    ratio: float,
) -> dict[str, Any]:
    """What is answered of the points of a series, by its name.

    Before the model can judge, a point is as it was expected to be, and has no margin. Where it finds the latest points
    new together, its score is higher than the error alone makes it; the margin is that of a band which gives this score
    to this error, so that margins and anomalies agree at every sensitivity.

    Args:
        values: (points,).
        expected: NaN before the model can judge.
        upper: upper edge of the band; NaN or infinite likewise.
        scores: 0..1.
        is_anomaly: by the model.
        width: of the band, in margins.
        ratio: largest share of anomalies.
    """
    blind = ~(np.isfinite(expected) & np.isfinite(upper))
    expected = np.where(blind, values, expected)
    with np.errstate(all="ignore"):  # without a score the band is as wide as the model says; what overflows is cut
        error = np.abs(values - expected)
        narrowed = np.where(scores > 0, error * (1 - scores) / scores, np.inf)
        margins = np.fmin(np.where(blind, 0.0, upper - expected) / width, narrowed)
        margins = np.nan_to_num(margins, nan=0.0)
    most = int(ratio * len(values))
    anomalous = is_anomaly & ~blind & (error > 0)
    if anomalous.sum() > most:
        order = np.argsort(-np.where(anomalous, scores, -1.0), kind="stable")
        kept = np.zeros_like(anomalous)
        kept[order[:most]] = True
        anomalous &= kept
    above = values >= expected
    return {
        "expectedValues": expected,
        "upperMargins": margins,
        "lowerMargins": margins,
        "isAnomaly": anomalous,
        "isNegativeAnomaly": anomalous & ~above,
        "isPositiveAnomaly": anomalous & above,
        "severity": np.where(anomalous, scores, 0.0),
    }


_SINGULAR = {"expectedValues": "expectedValue", "upperMargins": "upperMargin", "lowerMargins": "lowerMargin"}


def _of_last(result: Mapping[str, Any]) -> dict[str, Any]:
    return {_SINGULAR.get(name, name): column[-1].item() for name, column in result.items()}


# --- the document


_FAILURES = {
    400: "The request cannot be used.",
    401: "An API key is needed.",
    403: "The API key is for other models.",
    404: "There is no such route, or no model for it.",
    408: "The request body came too slowly.",
    413: "More points, or bytes, than the limit.",
    415: "A content type or encoding that is not taken.",
    429: "Too many requests.",
    500: "The model failed.",
    503: "Try again later.",
    504: "The deadline passed.",
}


def path_items(references: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    """The routes of the newest version as OpenAPI path items.

    Args:
        references: to the schemas of `SCHEMAS`.
    """
    return {
        f"{AZURE}{VERSIONS[-1]}/timeseries/{which}/detect": {
            "post": {
                "tags": ["azure anomaly detector"],
                "summary": f"As Azure Anomaly Detector: {summary}",
                "description": f"{summary} Same fields, meanings and errors as that service, of the default model for "
                "anomaly detection. The API key may be sent as `Ocp-Apim-Subscription-Key`.",
                "operationId": f"azure_detect_{which}",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": references[AzureDetectRequest],
                            "examples": {"example 1": {"value": EXAMPLE}},
                        }
                    },
                },
                "responses": {
                    "200": {
                        "description": "The answer.",
                        "content": {"application/json": {"schema": references[result]}},
                    },
                    **{
                        str(status): {
                            "description": told,
                            "content": {"application/json": {"schema": references[AzureError]}},
                        }
                        for status, told in _FAILURES.items()
                    },
                },
            }
        }
        for which, result, summary in (
            ("entire", AzureEntireResult, "Which points of this series are anomalies?"),
            ("last", AzureLastResult, "Is the last point of this series an anomaly?"),
        )
    }
