"""Traces: a span for each answered request, with one for each stage, sent by OpenTelemetry (`gridloop[otel]`).

The spans are made of what is measured anyway, after the answer and in another thread: a request pays for one line in a
list. Where traces are off, nothing of OpenTelemetry is imported. Where to send them, how many, and what the service is
called is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, …).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from service import __version__
from service.api.context import RequestContext

log = structlog.get_logger(__name__)

STOP_S = 3.0
"""Time for sending the last spans when the server stops (seconds)."""
MAX_WAITING = 10_000
"""Requests whose spans are yet to be made; those beyond it have none (count)."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_STAGES = ("queue", "decode", "infer", "encode")


@dataclass(frozen=True, slots=True)
class Answered:
    """What a span is made of.

    Attributes:
        context: of the request.
        method, path, route: as asked, and the template of the path.
        status: of the answer.
        ended_ns: when it was answered (nanoseconds of Unix time).
        seconds: from its head to its answer.
    """

    context: RequestContext
    method: str
    path: str
    route: str
    status: int
    ended_ns: int
    seconds: float


def are_wanted(setting: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether traces are to be written.

    Args:
        setting: `on`, `off`, or `auto`: where OpenTelemetry's variables name a place to send them to.
        environment: the process's own, if left out.
    """
    environment = os.environ if environment is None else environment
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return setting == "on" or (setting == "auto" and any(environment.get(name) for name in _ENDPOINTS))


def make_traces(setting: str) -> Traces | None:
    """What makes the spans; None where none are wanted, or OpenTelemetry is not installed, of which the log tells."""
    if not are_wanted(setting):
        return None
    try:
        return Traces()
    except ImportError as error:
        log.warning("no traces are written: pip install 'gridloop[otel]'", missing=error.name)
        return None


class Traces:
    """Makes spans of answered requests. `start` and `stop` belong into the process that answers.

    Raises:
        ImportError: OpenTelemetry, or the exporter that its variables ask for, is not installed.
    """

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api, self._sdk, self._processor = trace, sdk, BatchSpanProcessor
        self._make_exporter = _exporter()  # imported before the workers are forked, so that they share it
        self._waiting: list[Answered] = []
        self._provider: Any = None

    def start(self) -> None:
        """Begin, in this process: the exporter has a thread."""
        from opentelemetry.sdk.resources import Resource

        about = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            about["service.name"] = "gridloop"
        self._ids = _given_ids(self._sdk)
        self._provider = self._sdk.TracerProvider(
            id_generator=self._ids, resource=Resource.create(about), shutdown_on_exit=False
        )
        self._provider.add_span_processor(self._processor(self._make_exporter()))
        self._tracer = self._provider.get_tracer("gridloop", __version__)
        self._maker = ThreadPoolExecutor(1, "traces")  # one: a span's ids are handed over by an attribute

    def stop(self) -> None:
        """Send what waits, for at most `STOP_S`."""
        if self._provider is not None:
            self.flush()
            self._maker.shutdown()
            ending = threading.Thread(target=self._provider.shutdown, daemon=True)  # it may wait for its collector
            ending.start()
            ending.join(STOP_S)
            self._provider = None

    def new_trace(self) -> str | None:
        """A `traceparent` for a request that has come without: a new trace, and whether it is one that is kept."""
        if self._provider is None:  # the server is ending
            return None
        trace_id, span_id = random.getrandbits(128) or 1, random.getrandbits(64) or 1
        kept = self._provider.sampler.should_sample(None, trace_id, "request").decision.is_sampled()
        return f"00-{trace_id:032x}-{span_id:016x}-{kept:02x}"

    def note(self, answered: Answered) -> None:
        """Make spans of an answer, later."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(answered)

    def flush(self) -> None:
        """Make the spans of what was noted, in another thread."""
        if self._waiting and self._provider is not None:
            waiting, self._waiting = self._waiting, []
            self._maker.submit(self._make, waiting)

    def _make(self, answers: list[Answered]) -> None:
        for answered in answers:
            self._make_one(answered)

    def _make_one(self, answered: Answered) -> None:
        context, trace = answered.context, self._api
        if context.trace is None:
            return
        _, trace_id, span_id, flags = context.trace.split("-")
        self._ids.given = int(trace_id, 16), int(span_id, 16)
        started_ns = answered.ended_ns - int(answered.seconds * 1e9)
        span = self._tracer.start_span(
            f"{answered.method} {answered.route}",
            context=self._parent(context, int(flags, 16)),
            kind=trace.SpanKind.SERVER,
            start_time=started_ns,
            attributes=_attributes(answered),
        )
        self._ids.given = None
        if answered.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        if span.is_recording():
            self._make_stages(answered, trace.set_span_in_context(span))
        span.end(answered.ended_ns)

    def _parent(self, context: RequestContext, flags: int) -> Any:
        """The caller's span; an empty context where it has sent none."""
        trace = self._api
        sent = context.headers.get(b"traceparent")
        if sent is None or context.trace is None or context.trace[3:35].encode() not in sent:
            return trace.set_span_in_context(trace.INVALID_SPAN)
        _, trace_id, span_id, *_ = sent.decode("ascii").split("-")
        parent = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(flags))
        return trace.set_span_in_context(trace.NonRecordingSpan(parent))

    def _make_stages(self, answered: Answered, parent: Any) -> None:
        """A span for each stage, one after the other up to the answer: of several runs the sums are known, not when."""
        lasted = {stage: getattr(answered.context.timings, stage) for stage in _STAGES}
        at_ns = answered.ended_ns - int(sum(lasted.values()) * 1e9)
        for stage, seconds in lasted.items():
            if seconds > 0:
                span = self._tracer.start_span(stage, context=parent, start_time=at_ns)
                at_ns += int(seconds * 1e9)
                span.end(at_ns)


def _attributes(answered: Answered) -> dict[str, str | int]:
    """In OpenTelemetry's words for HTTP, and ours for the rest."""
    about: dict[str, str | int] = {
        "http.request.method": answered.method,
        "http.route": answered.route,
        "http.response.status_code": answered.status,
        "url.path": answered.path,
        "gridloop.request_id": answered.context.request_id,
    }
    if answered.context.model is not None:
        about["gridloop.model"] = answered.context.model
    if answered.status >= 500:
        about["error.type"] = str(answered.status)
    return about


def _exporter() -> Any:
    """The class of what sends the spans, as OpenTelemetry's variables ask for it."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    return OTLPSpanExporter


def _given_ids(sdk: Any) -> Any:
    """Ids as the SDK makes them, but for a span whose ids were told to the caller already: those are given."""

    class Ids(sdk.RandomIdGenerator):  # type: ignore[misc]  # known once it is imported
        given: tuple[int, int] | None = None

        def generate_trace_id(self) -> int:
            return self.given[0] if self.given else int(super().generate_trace_id())

        def generate_span_id(self) -> int:
            return self.given[1] if self.given else int(super().generate_span_id())

    return Ids()


def answered(context: RequestContext, scope: Any, route: str, status: int, seconds: float) -> Answered:
    """What a request was, now that it is answered."""
    return Answered(context, scope["method"], scope["path"], route, status, time.time_ns(), seconds)
