"""Spans are what was measured, under the caller's trace; without OpenTelemetry or a place to send them there are none."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from service.api import traces
from tests import graphs
from tests.conftest import running
from tests.test_server import serving

pytest.importorskip("opentelemetry.sdk", reason="spans are made by OpenTelemetry: pip install 'gridloop[otel]'")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


OPEN_METRICS = {"accept": "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"}


def exemplars(text: str) -> dict[float, Any]:
    """Of the times of classifications, by bucket."""
    (family,) = [one for one in text_string_to_metric_families(text) if one.name == "gridloop_request_seconds"]
    return {
        float(sample.labels["le"]): sample.exemplar
        for sample in family.samples
        if sample.exemplar and sample.labels["route"] == "/v1/image-classification"
    }


class Collector:
    """A collector of OpenTelemetry that keeps what it is sent."""

    def __init__(self, url: str) -> None:
        self.url, self.requests = url, list[ExportTraceServiceRequest]()

    @property
    def spans(self) -> list[Any]:
        return [
            span for sent in self.requests for of in sent.resource_spans for by in of.scope_spans for span in by.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        attributes = self.requests[0].resource_spans[0].resource.attributes
        return {attribute.key: attribute.value.string_value for attribute in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    yield found
    server.shutdown()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


async def asked(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/v1/image-classification", files={"file": graphs.png()}, headers=headers)


async def test_a_request_is_a_span_under_the_callers_with_one_for_each_stage(
    collector: Collector, models: Path
) -> None:
    async with running(models) as client:
        answer = await asked(client, **SENT)
    (request,) = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
    stages = [span for span in collector.spans if span is not request]
    assert request.name == "POST /v1/image-classification"
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, SPAN)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/image-classification",
        "http.response.status_code": 200,
        "url.path": "/v1/image-classification",
        "gridloop.request_id": answer.headers["x-request-id"],
        "gridloop.model": "colours@1",
    }
    assert [span.name for span in stages] == ["queue", "decode", "infer", "encode"]
    assert {span.parent_span_id for span in stages} == {request.span_id}
    assert {span.trace_id for span in stages} == {request.trace_id}


async def test_the_stages_last_as_long_as_server_timing_says(collector: Collector, models: Path) -> None:
    async with running(models) as client:
        answer = await asked(client)
    told = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    spans = {span.name: span for span in collector.spans}
    request = spans["POST /v1/image-classification"]
    for stage, milliseconds in told.items():
        span = spans[stage]
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(
            float(milliseconds), abs=0.01
        )
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano + 1000


async def test_a_request_without_a_trace_begins_one_and_is_told(collector: Collector, models: Path) -> None:
    async with running(models) as client:
        answers = [await asked(client) for _ in range(2)]
    requests = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
    assert [answer.headers["traceparent"] for answer in answers] == [
        f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for span in requests
    ]
    assert all(span.parent_span_id == b"" for span in requests)
    assert requests[0].trace_id != requests[1].trace_id


async def test_what_the_caller_does_not_keep_is_not_sent(collector: Collector, models: Path) -> None:
    async with running(models) as client:
        answer = await asked(client, traceparent=f"00-{TRACE}-{SPAN}-00")
        assert answer.headers["traceparent"].endswith("-00")
    assert collector.spans == []


async def test_opentelemetrys_own_variables_say_how_many_are_kept_and_whose_they_are(
    collector: Collector, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    async with running(models) as client:
        assert (await asked(client)).headers["traceparent"].endswith("-00")
        await asked(client, **SENT)
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert collector.resource["service.name"] == "pictures"


async def test_a_failure_of_ours_is_an_error_and_a_callers_is_not(
    collector: Collector, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(models) as client:
        await client.post("/v1/image-classification", content=b"no picture", headers={"content-type": "image/png"})

        def crash(*_: Any) -> None:
            raise RuntimeError

        monkeypatch.setattr("service.api.tasks.parse_input", crash)
        await asked(client)
    status = {attributes(span)["http.response.status_code"]: span for span in collector.spans if span.kind == 2}
    assert status[422].status.code == 0
    assert (status[500].status.code, attributes(status[500])["error.type"]) == (2, "500")


async def test_probes_and_scrapes_have_no_spans(collector: Collector, models: Path) -> None:
    async with running(models) as client:
        for path in ("/livez", "/readyz", "/metrics"):
            assert "traceparent" not in (await client.get(path)).headers
    assert collector.spans == []


async def test_a_collector_that_is_away_keeps_no_answer_and_no_end_waiting(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(traces, "STOP_S", 0.05)
    async with running(models) as client:
        assert (await asked(client)).status_code == 200


def test_several_workers_send_their_spans_and_give_examples(collector: Collector, tmp_path: Path) -> None:
    graphs.colour_model(tmp_path / "models")
    with serving(tmp_path / "models", workers=2) as server:
        for _ in range(4):
            with httpx.Client(base_url=server.url) as client:  # a connection each, so that both workers answer
                client.post("/v1/image-classification", files={"file": graphs.png()}, headers=SENT)
                text = client.get("/metrics", headers=OPEN_METRICS).text
                assert {one.labels["trace_id"] for one in exemplars(text).values()} == {TRACE}
    assert len([span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]) == 4
    assert collector.resource["service.name"] == "gridloop"


# --- off


@pytest.mark.parametrize(
    ("setting", "environment", "wanted"),
    [
        ("auto", {}, False),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ("auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ("off", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ("on", {}, True),
        ("on", {"OTEL_SDK_DISABLED": "true"}, False),
        ("on", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_written_when_they_are_asked_for(setting: str, environment: dict[str, str], wanted: bool) -> None:
    assert traces.are_wanted(setting, environment) is wanted


def test_without_the_extra_the_log_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with capture_logs() as lines:
        assert traces.make_traces("on") is None
    assert "pip install 'gridloop[otel]'" in lines[0]["event"]


def test_opentelemetry_is_not_imported_where_there_are_no_traces() -> None:
    code = "import sys, service.app, service.server, service.worker; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


# --- examples beside the times


async def test_a_time_has_the_trace_of_a_request_that_took_it(models: Path) -> None:
    trace_id = "7" * 32
    async with running(models) as client:
        await asked(client, traceparent=f"00-{trace_id}-{SPAN}-01")
        answer = await client.get("/metrics", headers=OPEN_METRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    found = {le: one for le, one in exemplars(answer.text).items() if one.labels == {"trace_id": trace_id}}
    ((le, exemplar),) = found.items()
    assert 0 < exemplar.value <= le
    assert exemplar.timestamp


async def test_a_trace_that_nobody_keeps_is_no_example(models: Path) -> None:
    async with running(models) as client:
        await asked(client, traceparent=f"00-{'8' * 32}-{SPAN}-00")
        answer = await client.get("/metrics", headers=OPEN_METRICS)
    assert "8" * 32 not in answer.text


async def test_a_scraper_that_takes_text_alone_gets_text(models: Path) -> None:
    async with running(models) as client:
        await asked(client, **SENT)
        answer = await client.get("/metrics", headers={"accept": "text/plain"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert TRACE not in answer.text
