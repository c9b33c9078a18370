"""Measuring: the client that puts a load on a server, what it counts, and what the benchmarks make of it.

Nothing here asserts a speed.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import termios
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from service import bench
from service.cli import main
from tests import graphs
from tests.test_server import Server, serving

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    """A file of benchmarks/, which holds scripts that import each other, not a package."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


# --------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        (range(1, 101), 0.50, 50),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        ([1, 2, 3, 4], 0.51, 3),
        ([7], 0.01, 7),
        ([7], 1.0, 7),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values, share, expected):
    assert bench.percentile(list(values), share) == expected


def test_a_percentile_of_nothing_is_not_a_number():
    assert math.isnan(bench.percentile([], 0.5))


def outcome(**given: Any) -> bench.Outcome:
    usual = {"requests": 10, "answers": 12, "rate": 5.0, "errors": {}, "examples": {}, "client_cores": 0.1}
    times = {"mean_ms": 10.0, "p50_ms": 9.0, "p95_ms": 11.0, "p99_ms": 12.0, "steps_ms": {"queue": 3.0, "infer": 5.0}}
    return bench.Outcome(**{**usual, **times, **given})


def test_what_the_server_does_not_account_for_is_http_and_network():
    assert outcome().rest_ms == pytest.approx(2.0)
    assert outcome(steps_ms={}).rest_ms is None


def report(**given: Any) -> bench.Report:
    seen = outcome(**given)
    return bench.Report("http://127.0.0.1:8000", "m@1", "t", 1, "golden samples", 4, 2.0, seen, rows=60, runs=20)


def test_a_report_is_good_only_without_any_error():
    assert report().is_good
    assert not report(errors={"status 503": 1}).is_good
    assert not report(requests=0).is_good


def test_a_report_for_machines_has_null_for_what_is_not_a_number():
    document = json.loads(json.dumps(report(requests=0, p50_ms=math.nan, steps_ms={}).as_json(), allow_nan=False))
    assert document["p50_ms"] is None
    assert document["rest_ms"] is None
    assert document["rows_per_run"] == 3


def test_a_report_for_people_names_each_kind_of_error_with_an_example():
    text = "\n".join(report(errors={"status 503": 7}, examples={"status 503": "Too many wait."}).lines())
    assert "7 × status 503: Too many wait." in text


# --------------------------------------------------------------------------------------------------- requests, answers


def http(status: int, body: bytes, *headers: bytes) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"Content-Length: %d" % len(body), *headers))
    return b"HTTP/1.1 %d X\r\n%b\r\n%b" % (status, head, body)


def test_an_answer_is_read_however_it_is_cut():
    whole = http(200, b"hello", b"Server-Timing: queue;dur=1.5")
    for cut in range(1, len(whole)):
        parser = bench.AnswerParser()
        assert parser.feed(whole[:cut]) is None
        answer = parser.feed(whole[cut:])
        assert answer is not None
        assert (answer.status, answer.body, answer.closes) == (200, b"hello", False)


def test_one_parser_reads_one_answer_after_the_other():
    parser = bench.AnswerParser()
    for body in (b"first", b"", b"x" * 100_000):
        whole = http(200, body)
        pieces = [whole[start : start + 1000] for start in range(0, len(whole), 1000)]
        answers = [parser.feed(piece) for piece in pieces]
        assert answers[:-1] == [None] * (len(pieces) - 1)
        assert answers[-1] is not None
        assert answers[-1].body == body


def test_a_connection_that_will_be_closed_is_noticed():
    answer = bench.AnswerParser().feed(http(413, b"", b"connection: close"))
    assert answer is not None
    assert (answer.status, answer.closes) == (413, True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        http(200, b"a") + b"more",
    ],
    ids=["no length", "no HTTP", "no status", "bytes after the answer"],
)
def test_what_is_not_one_answer_with_a_length_is_refused(data):
    with pytest.raises(ValueError, match="answer"):
        bench.AnswerParser().feed(data)


def test_the_servers_own_times_are_read_from_its_header():
    head = http(200, b"", b"server-timing: decode;dur=0.25, queue;dur=12.00, db-1;dur=3")
    assert bench.server_timing(head) == {"decode": 0.25, "queue": 12.0, "db-1": 3.0}
    assert bench.server_timing(http(200, b"")) == {}


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("m", b'{"model":{"name":"m","version":"1"},"x":1}', True),
        ("m@1", b'{"model":{"name":"m","version":"1"},"x":1}', True),
        ("m@1", b'{"x": 1, "model": {"version": "1", "name": "m"}}', True),
        ("m@2", b'{"model":{"name":"m","version":"1"}}', False),
        ("m", b'{"model":{"name":"mm","version":"1"}}', False),
        ("m", b'{"detail":"m"}', False),
        ("m", b"m", False),
        ("m", b"[]", False),
        ("", b"anything", True),
    ],
)
def test_an_answer_counts_only_when_the_right_model_gave_it(model, body, expected):
    assert bench.answers_as(model)(body) is expected


def test_a_request_is_one_block_of_bytes():
    wire = bench.http_request("::1", 8000, "/v1/x?model=m", "image/png", b"\x89PNG", {"Authorization": "Bearer k"})
    head, _, body = wire.partition(b"\r\n\r\n")
    assert body == b"\x89PNG"
    assert head.split(b"\r\n") == [
        b"POST /v1/x?model=m HTTP/1.1",
        b"Host: [::1]:8000",
        b"Content-Type: image/png",
        b"Content-Length: 4",
        b"Authorization: Bearer k",
    ]


@pytest.mark.parametrize("target", ["/a\r\nX: y", "/a b\n", "/ä"])
def test_a_request_cannot_be_made_to_hold_two(target):
    with pytest.raises(ValueError, match="printable ASCII"):
        bench.http_request("h", 80, target, "text/plain", b"")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"detail": "No such model.", "status": 404}', "No such model."),
        (b'{"error": "x"}', '{"error": "x"}'),
        (b'"text"', "text"),
        (b"<html>", "<html>"),
        (b"a" * 1000, "a" * 299 + "…"),
    ],
)
def test_an_error_is_shown_in_the_servers_words(body, expected):
    assert bench.detail(body) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("http://[::1]:9/", ("::1", 9)),
        ("http://example.org", ("example.org", 80)),
    ],
)
def test_an_address_is_host_and_port(url, expected):
    assert bench.split_url(url) == expected


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1", "http://h/v1", "http://h?x=1", "http://u@h", "127.0.0.1:8000", ""]
)
def test_what_is_no_plain_address_is_refused(url):
    with pytest.raises(ValueError, match="http://"):
        bench.split_url(url)


# ----------------------------------------------------------------------------------------------------------- the client

Reply = Callable[[bytes], bytes | None]
"""What a server in these tests answers to a request's body; None: it hangs up; nothing: it says nothing."""


@asynccontextmanager
async def answering(reply: Reply) -> AsyncIterator[tuple[int, list[int]]]:
    """A server that answers as told, its port, and how many connections it has taken."""
    taken: list[int] = []
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(1)
        writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int((head.lower().partition(b"content-length: ")[2].split() or [b"0"])[0])
                said = reply(await reader.readexactly(length))
                if said is None:
                    break
                for piece in (said[:20], said[20:]):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"connection: close" in said:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], taken
        for writer in writers:
            writer.close()


def load_for(port: int, **given: Any) -> bench.Load:
    """A short load of two requests, `0` and `1`, that the model `m` must answer, over three connections."""
    requests = [bench.Request(bench.http_request("127.0.0.1", port, "/", "text/plain", b"%d" % n), "m") for n in (0, 1)]
    usual = {"connections": 3, "seconds": 0.2, "warm_up_s": 0.02, "grace_s": 5.0}
    return bench.Load("127.0.0.1", port, requests, **{**usual, **given})


def echo(body: bytes) -> bytes:
    timing = b"Server-Timing: decode;dur=1.00, queue;dur=2.00, infer;dur=3.00, encode;dur=4.00"
    return http(200, b'{"model":{"name":"m","version":"1"},"n":%b}' % body, timing)


async def test_answers_are_counted_and_timed_over_kept_connections():
    async with answering(echo) as (port, taken):
        seen = await bench.run_load(load_for(port))
    assert 0 < seen.requests <= seen.answers
    assert seen.rate > 0
    assert seen.failures == 0
    assert 0 < seen.p50_ms <= seen.p95_ms <= seen.p99_ms
    assert seen.steps_ms == pytest.approx({"decode": 1, "queue": 2, "infer": 3, "encode": 4})
    assert seen.samples == []
    assert len(taken) == 3


async def test_samples_are_answers_to_the_request_they_stand_for():
    async with answering(echo) as (port, _):
        seen = await bench.run_load(load_for(port, samples=5))
    assert len(seen.samples) == min(5, seen.requests)
    assert all(json.loads(body)["n"] == index for index, body in seen.samples)


async def test_a_503_is_an_error_with_an_example_and_no_request_answered():
    async with answering(lambda _: http(503, b'{"detail":"Too many wait."}')) as (port, _):
        seen = await bench.run_load(load_for(port))
    assert (seen.requests, seen.rate) == (0, 0)
    assert set(seen.errors) == {"status 503"}
    assert seen.examples == {"status 503": "Too many wait."}


async def test_an_answer_of_another_model_is_an_error():
    async with answering(lambda _: http(200, b'{"model":{"name":"other","version":"1"}}')) as (port, _):
        seen = await bench.run_load(load_for(port))
    assert seen.requests == 0
    assert set(seen.errors) == {"another model"}
    assert "other" in seen.examples["another model"]


async def test_a_server_that_closes_after_an_answer_is_asked_over_a_new_connection():
    async with answering(lambda body: echo(body).replace(b"Server-Timing", b"connection: close\r\nX")) as (port, taken):
        seen = await bench.run_load(load_for(port))
    assert seen.requests > 0
    assert seen.failures == 0
    assert len(taken) > 3


async def test_a_connection_that_is_lost_now_and_then_is_an_error_and_is_opened_again():
    asked = iter(range(1_000_000))
    async with answering(lambda body: None if next(asked) in (2, 7) else echo(body)) as (port, taken):
        seen = await bench.run_load(load_for(port))
    assert seen.errors == {"connection lost": 2}
    assert seen.requests > 0
    assert len(taken) == 5


async def test_a_server_that_only_hangs_up_ends_the_run():
    async with answering(lambda _: None) as (port, _):
        with pytest.raises(bench.BenchFailed, match="keeps closing"):
            await bench.run_load(load_for(port))


async def test_a_request_that_is_never_answered_is_an_error_and_does_not_hold_up_the_run():
    async with answering(lambda _: b"") as (port, _):
        seen = await bench.run_load(load_for(port, grace_s=0.1))
    assert seen.errors == {"no answer": 3}
    assert seen.requests == 0


async def test_a_server_that_is_not_there_ends_the_run():
    async with answering(echo) as (port, _):
        pass
    with pytest.raises(bench.BenchFailed, match="takes no connection"):
        await bench.run_load(load_for(port))


async def test_a_server_that_does_not_speak_http_ends_the_run():
    async with answering(lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n") as (port, _):
        with pytest.raises(bench.BenchFailed, match="Content-Length"):
            await bench.run_load(load_for(port))


async def test_the_client_in_its_own_process_tells_the_same():
    async with answering(echo) as (port, taken):
        seen = await asyncio.to_thread(bench.put_load, load_for(port, samples=3))
    assert seen.requests > 0
    assert seen.failures == 0
    assert [json.loads(body)["n"] for _, body in seen.samples] == [index for index, _ in seen.samples]
    assert len(taken) == 3


async def test_the_client_in_its_own_process_says_why_it_failed():
    async with answering(echo) as (port, _):
        pass
    with pytest.raises(bench.BenchFailed, match="takes no connection"):
        await asyncio.to_thread(bench.put_load, load_for(port))


def test_a_report_that_cannot_be_read_is_a_failure_and_no_crash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/echo")  # prints its arguments and succeeds
    with pytest.raises(bench.BenchFailed, match=r"report of 17 bytes cannot be read"):
        bench.put_load(load_for(1))


def test_a_report_is_written_whole_when_a_signal_interrupts_it():
    code = (
        "import signal; from service.bench import write_whole\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None); write_whole(b'x' * 3_000_000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as client:
        assert client.stdout
        waiting = array("i", [0])
        while waiting[0] < 65_536:  # the pipe is full: the client waits within its write
            time.sleep(0.01)
            fcntl.ioctl(client.stdout, termios.FIONREAD, waiting)
        client.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        assert len(client.stdout.read()) == 3_000_000


# ---------------------------------------------------------------------------------------------------------- the samples


def test_golden_samples_become_requests(models: Path):
    (picture,) = bench.golden_samples(models / "colours" / "1", "image-classification")
    assert picture == ({"top_k": 1}, "application/octet-stream", graphs.png())
    (series,) = bench.golden_samples(models / "steps" / "1", "anomaly-detection")
    assert json.loads(series.body) == {"values": [0, 0, 5]}


def test_a_golden_sample_of_several_files_is_sent_as_a_form(models: Path):
    folder = models / "colours" / "1"
    (folder / "golden" / "second.png").write_bytes(graphs.png((0, 9, 0)))
    inputs = {"a": "golden/pink.png", "b": "golden/second.png"}
    (folder / "golden.json").write_text(json.dumps([{"input": inputs, "output": {}}]))
    (sample,) = bench.golden_samples(folder, "image-classification")
    request = httpx.Request("POST", "http://h", content=sample.body, headers={"Content-Type": sample.content_type})
    assert request.content.count(b'name="file"') == 2
    assert graphs.png((0, 9, 0)) in request.content


@pytest.mark.parametrize("task", ["image-classification", "no-such-task"])
def test_a_folder_without_usable_samples_has_none(tmp_path: Path, task: str):
    assert bench.golden_samples(tmp_path, task) == []


@pytest.mark.parametrize(("task", "model"), [("image-classification", "colours"), ("anomaly-detection", "steps")])
async def test_the_examples_of_the_openapi_document_can_be_sent(client: httpx.AsyncClient, task: str, model: str):
    document = (await client.get("/openapi.json")).json()
    samples = bench.documented_samples(document, task)
    assert samples
    for request in bench.wire_requests(bench.Server("test", 80), task, model, samples):
        head, _, body = request.wire.partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        sent = dict(header.split(": ", 1) for header in headers)
        answer = await client.post(line.split()[1], content=body, headers=sent)
        assert answer.status_code == 200, answer.text
        assert bench.answers_as(model)(answer.content)


async def test_a_task_that_is_not_documented_has_no_examples(client: httpx.AsyncClient):
    assert bench.documented_samples((await client.get("/openapi.json")).json(), "weather") == []


# ---------------------------------------------------------------------------------------------------- the whole command


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    graphs.colour_model(models)
    graphs.detector_model(models)
    return models


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serving(repository, workers=1, api_keys="secret,other", log_level="warning") as running:
        yield running


@pytest.mark.parametrize(
    ("model", "has_folder", "samples_from"),
    [
        ("steps", True, "golden samples"),
        ("colours@1", True, "golden samples"),
        ("steps", False, "examples of the task"),
    ],
)
def test_a_model_of_a_running_server_is_measured(
    server: Server, repository: Path, model: str, has_folder: bool, samples_from: str
):
    models = repository if has_folder else None
    seen = bench.measure(server.url, model, connections=4, seconds=1.0, models=models, key="secret")
    assert seen.is_good, list(seen.lines())
    assert seen.model == f"{model.partition('@')[0]}@1"
    assert seen.samples_from == samples_from
    assert seen.rows >= seen.outcome.answers
    assert seen.rows >= seen.runs > 0
    assert list(seen.outcome.steps_ms) == list(bench.STEPS)
    assert json.dumps(seen.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("model", "reason"), [("stairs", "There are: colours, steps"), ("steps@7", "steps@7 is not ready: no such version")]
)
def test_a_model_that_is_not_there_cannot_be_measured(server: Server, model: str, reason: str):
    with pytest.raises(bench.BenchFailed, match=reason):
        bench.measure(server.url, model, key="secret")


def test_a_server_that_wants_a_key_says_so(server: Server):
    with pytest.raises(bench.BenchFailed, match="answered 401"):
        bench.measure(server.url, "steps")


async def test_another_kind_of_server_is_a_failure_and_no_crash():
    def page(_: bytes) -> bytes:
        return http(200, b"<html>")

    async with answering(page) as (port, _):
        with pytest.raises(bench.BenchFailed, match="is this a Gridloop server"):
            await asyncio.to_thread(bench.measure, f"http://127.0.0.1:{port}", "steps")


def test_no_server_is_a_failure_and_no_crash():
    with pytest.raises(bench.BenchFailed, match="no server answers"):
        bench.measure("http://127.0.0.1:9", "steps")


def gridloop(*arguments: Any, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(main, ["bench", *map(str, arguments)])


def test_the_command_prints_one_json_document(server: Server, repository: Path):
    options = ["--url", server.url, "--models", repository, "--connections", 2, "--seconds", 0.3, "--json"]
    result = gridloop("--model", "steps", *options, GRIDLOOP_API_KEYS="secret")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["model"] == "steps@1"
    assert document["errors"] == {}


def test_the_command_says_where_time_goes(server: Server, repository: Path):
    options = ["--url", server.url, "--models", repository, "--connections", 2, "--seconds", 0.3]
    result = gridloop("--model", "steps", *options, GRIDLOOP_API_KEYS="secret")
    assert result.exit_code == 0, result.output
    for word in ("requests/s", "p99", "rows per run", *bench.STEPS, "HTTP and network"):
        assert word in result.stdout


def test_the_command_fails_with_1_when_the_model_is_not_there(server: Server):
    result = gridloop("--model", "stairs", "--url", server.url, GRIDLOOP_API_KEYS="secret")
    assert result.exit_code == 1
    assert "There are: colours, steps" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "m", "--url", "https://h"],
        ["--model", "m", "--connections", 0],
        ["--model", "m", "--seconds", 1e9],
    ],
)
def test_wrong_usage_of_the_command_is_2(arguments: list[Any]):
    assert gridloop(*arguments).exit_code == 2


# ------------------------------------------------------------------------------------- the comparison (benchmarks/)


def attempts_of(compare: ModuleType, *cores: float) -> Iterator[tuple[str, Any]]:
    return ((f"with {c}", compare.Noise(c)) for c in cores)


def test_a_quiet_measurement_is_not_made_again():
    compare = script("bench")
    assert compare.calmest(attempts_of(compare, 0.1, 0.0), lambda: True) == ("with 0.1", compare.Noise(0.1), 1)


def test_of_noisy_measurements_the_calmest_counts():
    compare = script("bench")
    noises = attempts_of(compare, 0.5, 0.3, 0.4, 0.0)  # the fourth is one too many
    assert compare.calmest(noises, lambda: True) == ("with 0.3", compare.Noise(0.3), 3)
    assert compare.calmest(attempts_of(compare, 0.5, 0.0), lambda: False)[0] == "with 0.5"


def test_shares_are_of_the_limit_in_the_same_round():
    compare = script("bench")
    rows = [
        compare.Row("L1", "w", 0, 100, 1.0),
        compare.Row("L1", "w", 0, 300, 1.0),
        compare.Row("gridloop", "w", 0, 100, 2.0, errors={"status 503": 2}),
        compare.Row("L1", "w", 1, 50, 1.0),
        compare.Row("gridloop", "w", 1, 40, 2.0, wrong=1, checked=5),
    ]
    limit, service = compare.summaries(rows)
    assert limit["target"] == "L1"
    assert service["share_range"] == [0.5, 0.8]
    assert service["rate"] == 70
    assert (service["errors"], service["wrong"]) == ({"status 503": 2}, 1)
    remarks = "\n".join(compare.remarks({"results": [limit, service]}))
    assert "2 × status 503" in remarks
    assert "1 of 5 answers compared" in remarks


async def test_the_plain_application_gives_the_services_answers(
    real_client: httpx.AsyncClient, real_models: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise the comparison would measure different work."""
    monkeypatch.setenv("GRIDLOOP_MODELS", str(real_models))
    compare, plain = script("bench"), script("plain_fastapi")
    transport = httpx.ASGITransport(plain.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://plain") as client:
        for workload in compare.WORKLOADS:
            for body in workload.bodies(compare._nobody)[:3]:
                answers = []
                for to, how in ((real_client, compare.as_service), (client, compare.as_form)):
                    path, content_type, sent = how(workload, body)
                    answer = await to.post(path, content=sent, headers={"Content-Type": content_type})
                    assert answer.status_code == 200, answer.text
                    answers.append(answer.json())
                for result in [result for answer in answers for result in answer.get("results", [])]:
                    result.pop("filename")  # a raw body has no name
                assert compare.same_answer(*answers)


# ------------------------------------------------------------------------------------------- the growth (benchmarks/)


def point(line: str, x: float, rate: float, p50: float = 1.0) -> dict[str, Any]:
    known = {"what": f"{x:g}", "connections": 8, "body_bytes": 10.0, "seconds": 1.0, "requests": 9, "cpu_ms": 1.0}
    rest = {"p99_ms": p50, "rows_per_run": None, "errors": {}, "noise": {"other_cores": 0.0, "stolen_cores": 0.0}}
    return {"line": line, "x": x, "rate": rate, "p50_ms": p50, "memory_mib": None, "ready_s": None, **known, **rest}


def section(*points: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "CPU", "cores": 2, "python": "3", "onnxruntime": "1", "commit": "abc"}
    return {"date": "2026-01-01T00:00:00", "machine": machine, "settings": {"seconds": 1.0}, "points": list(points)}


def test_the_steepest_growth_is_the_exponent_between_two_neighbours():
    growth = script("growth")
    assert growth.steepest([1, 10, 100], [1, 10, 1000]) == pytest.approx(2)
    assert growth.steepest([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)
    assert math.isnan(growth.steepest([1], [1]))


def test_the_deepest_fall_is_of_the_best_rate_so_far():
    growth = script("growth")
    assert growth.deepest_fall([10, 20, 15, 30]) == 0.75
    assert growth.deepest_fall([1, 2, 3]) == 1.0


def test_a_section_becomes_a_table_between_its_marks():
    growth = script("growth")
    content = growth.table("text", section(point("text", 1, 100), point("text", 10, 20)))
    assert "| text | 1 | 100 |" in content
    assert "grows at most as words to the power of 0.70, its CPU time of 0.00" in content
    document = "before\n<!-- growth:text -->\nold\n<!-- /growth:text -->\nafter"
    filled = growth.fill(document, "text", content)
    assert filled.startswith("before\n")
    assert filled.endswith("\nafter")
    assert "old" not in filled
    assert growth.fill(filled, "text", content) == filled
    with pytest.raises(LookupError, match="growth:series"):
        growth.fill(document, "series", content)


def test_a_point_without_answers_is_left_out_of_the_judgement_but_not_of_the_table():
    growth = script("growth")
    silent = {**point("text", 10, 0.0, math.nan), "requests": 0, "errors": {"no answer": 8}}
    content = growth.table("text", section(point("text", 1, 100), silent))
    assert "| 10 | 0 | – |" in content
    assert content.count("to the power of") == 0


@pytest.mark.parametrize("words", [1, 7, 8, 9, 5000])
def test_a_text_has_as_many_words_as_it_should(words: int):
    assert len(script("growth").text(words, seed=1).split()) == words


def test_the_growth_command_refuses_what_it_cannot_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        script("growth").main(["--models", str(tmp_path), "--only", "series"])
    assert left.value.code == 2
    assert "matplotlib" in (said := capsys.readouterr().err) or "is not the repository" in said


@pytest.mark.parametrize("has_memory", [False, True])
def test_a_section_becomes_a_plot(tmp_path: Path, has_memory: bool):
    pytest.importorskip("matplotlib", reason="only the growth benchmark needs it")
    growth = script("growth")
    extra = {"memory_mib": 200.0, "ready_s": 2.0} if has_memory else {}
    points = [{**point("one asked", x, 100 / x, x), **extra} for x in (1, 10, 50)]
    file = tmp_path / "plots" / "models.svg"
    growth.plot("models", section(*points), file)
    drawn = file.read_text()
    assert growth.SECTIONS["models"].title in drawn
    assert ("start to ready, s" in drawn) is has_memory
    before = file.read_bytes()
    growth.plot("models", section(*points), file)
    assert file.read_bytes() == before  # so that a plot differs only where numbers do
