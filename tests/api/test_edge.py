"""What every request passes: its id, its deadline, its key, its trace."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests import graphs
from tests.conftest import running

SERIES = {"values": [0, 0, 5]}
ROUTES = [("GET", "/livez"), ("GET", "/nowhere"), ("PUT", "/livez"), ("POST", "/v1/anomaly-detection")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_answer_has_an_id_and_says_where_the_time_went(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path)
    assert answer.headers["x-request-id"]
    stages = [part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")]
    assert stages == ["decode", "queue", "infer", "encode"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_the_callers_own_id_is_kept_in_header_and_body(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path, headers={"X-Request-ID": "mine-42"})
    assert answer.headers["x-request-id"] == "mine-42"
    assert answer.is_success or answer.json()["request_id"] == "mine-42"


@pytest.mark.parametrize("sent", ["", "x" * 129, "with blank", "tab\there"])
async def test_an_unusable_id_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.get("/livez", headers={"X-Request-ID": sent})
    assert len(answer.headers["x-request-id"]) == 32


async def test_an_inference_reports_the_time_of_its_stages(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/anomaly-detection", json=SERIES)
    times = {
        part.split(";dur=")[0].strip(): float(part.split("=")[1]) for part in answer.headers["server-timing"].split(",")
    }
    assert times["infer"] > 0
    assert times["encode"] > 0


@pytest.mark.parametrize("sent", ["0", "-1", "3601", "nan", "inf", "soon", ""])
async def test_a_deadline_must_be_a_sensible_number_of_seconds(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.post("/v1/anomaly-detection", json=SERIES, headers={"X-Request-Timeout": sent})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.json()["detail"]


async def test_a_deadline_that_passes_is_504(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/anomaly-detection", json=SERIES, headers={"X-Request-Timeout": "1e-9"})
    assert answer.status_code == 504
    assert answer.json()["type"] == "/problems/deadline-exceeded"


async def test_a_trace_is_continued_with_a_span_of_our_own(client: httpx.AsyncClient) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = await client.get("/livez", headers={"traceparent": f"00-{trace}-{span}-01"})
    version, same_trace, new_span, flags = answer.headers["traceparent"].split("-")
    assert (version, same_trace, flags) == ("00", trace, "01")
    assert new_span != span


@pytest.mark.parametrize("sent", ["nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{'1' * 32}-{'1' * 16}-01"])
async def test_an_invalid_trace_is_dropped(client: httpx.AsyncClient, sent: str) -> None:
    assert "traceparent" not in (await client.get("/livez", headers={"traceparent": sent})).headers


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic first", "first"])
async def test_with_keys_configured_a_request_without_one_is_401(models: Path, header: str | None) -> None:
    async with running(models, api_keys="first, second") as client:
        answer = await client.get("/v1/models", headers={"Authorization": header} if header else {})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in answer.json()["detail"]


async def test_any_of_the_keys_opens_and_probes_need_none(models: Path) -> None:
    async with running(models, api_keys="first, second") as client:
        for key in ("first", "second"):
            assert (await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/openapi.json")).json()["security"] == [{"key": []}]


async def test_a_client_over_its_rate_is_429_and_told_to_wait(models: Path) -> None:
    async with running(models, rate_limit=2) as client:
        answers = [await client.get("/v1/models") for _ in range(4)]
        assert [a.status_code for a in answers[:2]] == [200, 200]
        assert answers[3].status_code == 429
        assert int(answers[3].headers["retry-after"]) >= 1


async def test_while_draining_new_work_is_refused_and_probes_say_so(client: httpx.AsyncClient) -> None:
    client.app.app.state.gate.draining = True  # type: ignore[attr-defined]
    answer = await client.post("/v1/anomaly-detection", json=SERIES)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/draining")
    assert "retry-after" in answer.headers
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/livez")).status_code == 200


async def test_a_crash_leaves_by_the_same_door(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.tasks.anomaly_detection import AnomalyDetection

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path of the server")

    async with running(models) as client:
        client.app.app.add_route("/crash", crash)  # type: ignore[attr-defined]
        assert (await client.get("/crash")).json()["type"] == "/problems/internal-error"
        monkeypatch.setattr(AnomalyDetection, "decode", crash)
        answer = await client.post("/v1/anomaly-detection", json=SERIES)
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert (await client.post("/v1/image-classification", content=graphs.png())).status_code == 200


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("debug", 3), ("warning", 0)])
async def test_requests_are_logged_and_probes_only_at_debug(
    models: Path, capsys: pytest.CaptureFixture[str], level: str, lines: int
) -> None:
    async with running(models, log_level=level, log_format="json") as client:
        for path in ("/livez", "/metrics", "/v1/models"):
            await client.get(path, headers={"X-Request-ID": "traced"})
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "traced" in line]
    assert len(logged) == lines
    for line in logged:
        assert line["status"] == 200
        assert line["ms"] > 0
