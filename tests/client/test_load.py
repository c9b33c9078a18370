"""A closed loop: what it counts and what it does when a server misbehaves. Nothing here asserts a speed."""

from __future__ import annotations

import json
import math

import pytest

from service.client.http import ClientFailed
from service.client.load import answers_as, percentile, run_load, server_timing
from tests.client.servers import answering, echo, http, load_for


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
    assert percentile(list(values), share) == expected


def test_a_percentile_of_nothing_is_not_a_number():
    assert math.isnan(percentile([], 0.5))


def test_the_servers_own_times_are_read_from_its_header():
    head = http(200, b"", b"server-timing: decode;dur=0.25, queue;dur=12.00, db-1;dur=3")
    assert server_timing(head) == {"decode": 0.25, "queue": 12.0, "db-1": 3.0}
    assert server_timing(http(200, b"")) == {}


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
    assert answers_as(model)(body) is expected


async def test_answers_are_counted_and_timed_over_kept_connections():
    async with answering(echo) as (port, taken):
        seen = await run_load(load_for(port))
    assert 0 < seen.requests <= seen.answers
    assert seen.rate > 0
    assert seen.failures == 0
    assert 0 < seen.p50_ms <= seen.p95_ms <= seen.p99_ms
    assert seen.steps_ms == pytest.approx({"decode": 1, "queue": 2, "infer": 3, "encode": 4})
    assert seen.samples == []
    assert len(taken) == 3


async def test_samples_are_answers_to_the_request_they_stand_for():
    async with answering(echo) as (port, _):
        seen = await run_load(load_for(port, samples=5))
    assert len(seen.samples) == min(5, seen.requests)
    assert all(json.loads(body)["n"] == index for index, body in seen.samples)


async def test_a_503_is_an_error_with_an_example_and_no_request_answered():
    async with answering(lambda _: http(503, b'{"detail":"Too many wait."}')) as (port, _):
        seen = await run_load(load_for(port))
    assert (seen.requests, seen.rate) == (0, 0)
    assert set(seen.errors) == {"status 503"}
    assert seen.examples == {"status 503": "Too many wait."}


async def test_an_answer_of_another_model_is_an_error():
    async with answering(lambda _: http(200, b'{"model":{"name":"other","version":"1"}}')) as (port, _):
        seen = await run_load(load_for(port))
    assert seen.requests == 0
    assert set(seen.errors) == {"another model"}
    assert "other" in seen.examples["another model"]


async def test_a_server_that_closes_after_an_answer_is_asked_over_a_new_connection():
    async with answering(lambda body: echo(body).replace(b"Server-Timing", b"connection: close\r\nX")) as (port, taken):
        seen = await run_load(load_for(port))
    assert seen.requests > 0
    assert seen.failures == 0
    assert len(taken) > 3


async def test_a_connection_that_is_lost_now_and_then_is_an_error_and_is_opened_again():
    asked = iter(range(1_000_000))
    async with answering(lambda body: None if next(asked) in (2, 7) else echo(body)) as (port, taken):
        seen = await run_load(load_for(port))
    assert seen.errors == {"connection lost": 2}
    assert seen.requests > 0
    assert len(taken) == 5


async def test_a_server_that_only_hangs_up_ends_the_run():
    async with answering(lambda _: None) as (port, _):
        with pytest.raises(ClientFailed, match="keeps closing"):
            await run_load(load_for(port, seconds=60))  # long over before that


async def test_a_request_that_is_never_answered_is_an_error_and_does_not_hold_up_the_run():
    async with answering(lambda _: b"") as (port, _):
        seen = await run_load(load_for(port, grace_s=0.1))
    assert seen.errors == {"no answer": 3}
    assert seen.requests == 0


async def test_a_server_that_is_not_there_ends_the_run():
    async with answering(echo) as (port, _):
        pass
    with pytest.raises(ClientFailed, match="takes no connection"):
        await run_load(load_for(port))


async def test_a_server_that_does_not_speak_http_ends_the_run():
    async with answering(lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n") as (port, _):
        with pytest.raises(ClientFailed, match="Content-Length"):
            await run_load(load_for(port))
