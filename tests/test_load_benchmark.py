"""The load benchmark's own arithmetic: what it counts, what it notices, and whom it refuses to load.

Nothing here asserts a speed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import graphs

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "load.py"


def load_script() -> ModuleType:
    """benchmarks/ holds scripts, not a package: load the one under test from its file."""
    spec = importlib.util.spec_from_file_location("benchmarks_load", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up there
    spec.loader.exec_module(module)
    return module


bench = load_script()


# ------------------------------------------------------------------------------------------------------- percentiles


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        (range(1, 101), 0.50, 50),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        ([1, 2, 3, 4], 0.50, 2),
        ([1, 2, 3, 4], 0.51, 3),
        ([7], 0.50, 7),
        ([7], 0.99, 7),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values, share, expected):
    assert bench.percentile(list(values), share) == expected


def test_a_percentile_of_nothing_is_not_a_number():
    assert math.isnan(bench.percentile([], 0.5))


# ----------------------------------------------------------------------------------------------------- equal answers


def labels(**scores: float) -> dict[str, Any]:
    return {"predictions": [{"label": label, "score": score} for label, score in scores.items()]}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"scores": [0.5, 1000]}, {"scores": [0.5004, 1000.4]}),
        ({"x": None, "state": "abc"}, {"x": None, "state": "xyz"}),
        (labels(cat=0.5, dog=0.3), labels(cat=0.5003, dog=0.2998)),
        (labels(cat=0.4001, dog=0.4), labels(dog=0.4001, cat=0.4)),
        (labels(cat=0.9, dog=0.0100), labels(cat=0.9, cow=0.0101)),
    ],
    ids=["rounding", "opaque state", "scores", "a near-tie changes places", "the last place goes to one as probable"],
)
def test_answers_that_differ_by_rounding_are_the_same(a, b):
    assert bench.same_answer(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"scores": [0.5]}, {"scores": [0.502]}),
        ({"scores": [0.5]}, {"scores": [0.5, 0.5]}),
        ({"score": 1.0}, {"score": True}),
        ({"score": 0.0}, {"score": None}),
        (labels(cat=0.5, dog=0.3), labels(cat=0.3, dog=0.5)),
        (labels(cat=0.5, dog=0.3), labels(cow=0.5, dog=0.3)),
        ({"a": 1}, {"a": 1, "b": 2}),
    ],
)
def test_answers_that_say_something_else_are_not_the_same(a, b):
    assert not bench.same_answer(a, b)


# ---------------------------------------------------------------------------------------------------- the HTTP client

Answer = Callable[[bytes], bytes | None]
"""What a server in these tests answers to a request's body; None: nothing."""


def http(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """A server that answers every request as told, and its port."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                reply = answer(await reader.readexactly(length))
                if reply is not None:
                    # Two pieces: a client must not take the first for the whole.
                    writer.write(reply[:20])
                    await writer.drain()
                    await asyncio.sleep(0)
                    writer.write(reply[20:])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.close()


def load_for(port: int, *, answers: int = 2, grace_s: float = 5.0) -> Any:
    """A short load whose n-th body is `n` and expects `{"n": n}`."""
    requests = [bench.http_request("127.0.0.1", port, "/", "text/plain", str(n).encode()) for n in range(answers)]
    expected = [{"n": n} for n in range(answers)]
    return bench.Load("127.0.0.1", port, requests, expected, 3, warm_up_s=0.02, seconds=0.2, grace_s=grace_s)


def echo(body: bytes) -> bytes:
    return http(200, b'{"n": %s}' % body)


async def test_right_answers_are_counted_and_timed():
    async with serving(echo) as port:
        outcome = await bench.run_load(load_for(port))
    assert outcome.requests > 0
    assert outcome.failures == 0
    assert outcome.checked == min(outcome.requests, bench.SAMPLES)
    assert 0 < outcome.p50_ms <= outcome.p95_ms <= outcome.p99_ms


async def test_a_503_is_an_error_and_no_request_answered():
    async with serving(lambda _: http(503, b'{"n": 0}')) as port:
        outcome = await bench.run_load(load_for(port))
    assert outcome.requests == 0
    assert outcome.rate == 0
    assert set(outcome.errors) == {"status 503"}


async def test_an_answer_that_belongs_to_another_request_is_noticed():
    """As if the rows of a batch had been handed out in the wrong order."""
    async with serving(lambda body: http(200, b'{"n": %d}' % (1 - int(body)))) as port:
        outcome = await bench.run_load(load_for(port))
    assert outcome.wrong == outcome.checked > 0
    assert not outcome.errors


async def test_an_answer_that_is_not_json_is_wrong():
    async with serving(lambda _: http(200, b"hello")) as port:
        outcome = await bench.run_load(load_for(port))
    assert outcome.wrong == outcome.checked > 0


async def test_a_request_that_is_never_answered_is_an_error_and_does_not_hold_up_the_run():
    async with serving(lambda _: None) as port:
        outcome = await bench.run_load(load_for(port, grace_s=0.1))
    assert outcome.errors == {"no answer": 3}


async def test_a_server_that_is_gone_ends_the_run():
    async with serving(echo) as port:
        pass
    with pytest.raises(bench.BenchmarkFailed, match="takes no connection"):
        await bench.run_load(load_for(port))


async def test_a_server_that_dies_in_the_middle_ends_the_run():
    async with serving(echo) as port:
        running = asyncio.create_task(bench.run_load(load_for(port)))
        await asyncio.sleep(0.05)
    with pytest.raises(bench.BenchmarkFailed):
        await running


async def test_an_answer_without_a_length_ends_the_run():
    async with serving(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") as port:
        with pytest.raises(bench.BenchmarkFailed, match="Content-Length"):
            await bench.run_load(load_for(port))


def test_an_answer_in_pieces_is_read_when_it_is_whole():
    answer = http(200, b"hello")
    assert all(bench.read_answer(answer[:end]) is None for end in range(len(answer)))
    assert bench.read_answer(answer) == (200, b"hello")


# ----------------------------------------------------------------------------------------------- only this machine


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000/"])
def test_servers_on_this_machine_are_loaded(url):
    assert bench.loopback(url)[1] == 8000


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000",
        "http://example.com",
        "http://0.0.0.0:8000",
        "http://127.0.0.1.example.com",
        "http://localhost@example.com",
        "https://127.0.0.1",
        "http://127.0.0.1/v1",
        "127.0.0.1:8000",
        "",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match="http|loopback"):
        bench.loopback(url)


def test_the_command_refuses_another_host_as_wrong_usage(capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        bench.main(["--models", str(tmp_path), "--url", "http://example.com"])
    assert left.value.code == 2
    assert "only loopback addresses are put under load" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--seconds", "1e9"], ["--connections", "0"], ["--repeat", "1000"]])
def test_a_run_without_bounds_is_wrong_usage(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main(["--models", str(tmp_path), *option])
    assert left.value.code == 2
    assert "must be" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- the limit


def test_the_limit_answers_a_batch_as_it_answers_each_alone(models):
    """The detector expects each point to equal the one before: 5 after 0 is an anomaly."""
    direct = bench.Direct.open(models / "steps" / "1", "application/json")
    bodies = [b'{"values": [0, 0, 5]}', b'{"values": [7]}', b'{"values": [0, 5, 5, 5]}']
    together = [json.loads(answer) for answer in direct.answer(bodies)]
    assert together == [json.loads(direct.answer([body])[0]) for body in bodies]
    assert [answer["anomalies"] for answer in together] == [[2], [0], [1]]


def test_the_limit_takes_pictures(models):
    direct = bench.Direct.open(models / "colours" / "1", "image/png")
    (answer,) = direct.answer([graphs.png((0, 200, 0))])
    assert json.loads(answer)["results"][0]["predictions"][0]["label"] == "green"


# ------------------------------------------------------------------------------------------------- the whole command


def test_the_command_measures_a_server_of_its_own(models, tmp_path):
    """Starts a server with the tiny models, loads it for a moment, stops it, and reports."""
    results = tmp_path / "results.json"
    command = [sys.executable, str(FILE), "--models", str(models), "--workers", "1", "--task", "anomaly-detection"]
    command += ["--seconds", "0.5", "--connections", "4", "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "series, 256 points" in done.stdout

    report = json.loads(results.read_text())
    assert report["settings"]["connections"] == 4
    assert report["settings"]["workers"] == 1
    assert report["machine"].keys() >= {"cpu", "cores", "python", "onnxruntime", "commit"}
    assert report["server"]["ready_s"] > 0
    assert [row["endpoint"] for row in report["results"]] == ["series, 256 points", "series, 1 point + state"]
    for row in report["results"]:
        assert row["model"] == "steps@1"
        assert row["errors"] == {}
        assert row["wrong"] == 0
        assert 0 < row["checked"] <= row["requests"]
        assert row["distinct_answers"] == bench.BODIES
        assert row["batch_rows"] >= 1
        assert row["limit_batch"] in bench.BATCHES
        assert row["share"] == pytest.approx(row["rate"] / row["limit_rate"])
