"""Work and memory are in proportion to a request: what is too much is refused before anything is built of it."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import json_size
from service.api.in_flight import BytesInFlight
from service.api.json_size import holds_more_fields, holds_more_values
from service.errors import TooManyBytes
from tests import graphs
from tests.conftest import running

IMAGES, SERIES, TENSORS = "/v1/image-classification", "/v1/anomaly-detection", "/v2/models/steps/infer"


def items(item: str, count: int) -> str:
    return "[" + ",".join([item] * count) + "]"


def fields(**texts: str) -> str:
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"


def tensor(shape: str, data: str) -> str:
    return fields(inputs="[" + fields(name='"values"', datatype='"FP64"', shape=shape, data=data) + "]")


# --- counting


def values_in(value: Any) -> int:
    """How many values there are, where an empty list or object counts for two, as it is counted by its bracket."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return 1
    return 1 + (sum(map(values_in, inner)) if inner else 1)


def fields_in(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(fields_in, value.values()))
    return sum(map(fields_in, value)) if isinstance(value, list) else 0


TEXTS = st.text('a"\\,:[]{} é\n', max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=30,
)


@given(JSON, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 20))
def test_values_and_fields_are_counted_as_they_are(value: Any, indent: int | None, ascii_: bool, window: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_size, "_WINDOW_BYTES", window)
        most = values_in(value)
        assert not holds_more_values(text, most)
        assert holds_more_values(text, most - 1) or len(text) <= most - 1
        fields = fields_in(value)
        assert not holds_more_fields(text, fields)
        assert fields == 0 or holds_more_fields(text, fields - 1)


# --- typed bodies


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (fields(values=items("1", 300_000)), 413, "210,000 values"),
        (fields(values=items('"1"', 300_000)), 413, "GRIDLOOP_MAX_SERIES_POINTS"),
        (fields(values="[1]", timestamps=items("{}", 300_000)), 413, "GRIDLOOP_MAX_SERIES_POINTS"),
        (fields(values="[1]", timestamps=items("[]", 300_000)), 413, "GRIDLOOP_MAX_SERIES_POINTS"),
        (fields(values=items("1", 100_001)), 413, "100,001 points"),
        (fields(values=items("{}", 100_000)), 422, "values.0"),
        (fields(values="[1]", timestamps=items("{}", 100_000)), 422, "timestamps"),
        (fields(**{f"k{n}": "1" for n in range(200_000)}), 422, "fields"),
        ("[" * 100_000, 422, "recursion"),
        ('{"values": %s' % ("[" * 100_000 + "]" * 100_000), 422, "recursion"),
        ('{"values": [1, 1e999]}', 422, "finite"),
        ('{"values": [1, Infinity]}', 422, "finite"),
        ('{"values": [1, NaN]}', 422, "finite"),
        ('{"values": [1, %s]}' % ("9" * 400), 422, "values.1"),
        ('{"values": [1, %s]}' % ("9" * 100_000), 422, "out of range"),
        ('{"values": [1, 2], "timestamps": [1, %s]}' % ("9" * 400), 422, "timestamps[1]"),
        ('{"values": [1, 2], "timestamps": [1, -%s]}' % ("9" * 400), 422, "timestamps[1]"),
        ('{"values": [1, 2], "timestamps": [1, Infinity]}', 422, "timestamps[1]"),
        ('{"values": [1, 2], "timestamps": [1, 1e999]}', 422, "timestamps[1]"),
        ('{"values": [1, 2], "timestamps": [1, NaN]}', 422, "timestamps[1]"),
        ('{"values": [1, 2], "timestamps": [1, true]}', 422, "timestamps[1]"),
        ('{"values": [1], "sensitivity": 1e999}', 422, "sensitivity"),
        ('{"values": [1], "sensitivity": NaN}', 422, "sensitivity"),
        ('{"values": [1], "sensitivity": true}', 422, "sensitivity"),
        ('{"values": [1, true]}', 422, "values.1"),
        ('{"values": [1], "state": "\\ud800"}', 422, "Invalid JSON"),
        ('{"values": [1], "model": "\\ud800"}', 422, "Invalid JSON"),
        ('{"values": [1], "values": [2]}', 422, "values: is given more than once"),
        ('{"values": [1], "v\\u0061lues": [2]}', 422, "values: is given more than once"),
        ('{"values": [1], "state": "a:b", "state": "a:b"}', 422, "state: is given more than once"),
    ],
    ids=range(30),
)
async def test_a_hostile_body_is_refused_in_a_few_words(
    client: httpx.AsyncClient, body: str, status: int, words: str
) -> None:
    answer = await client.post(SERIES, content=body)
    assert (answer.status_code, len(answer.content) < 8000) == (status, True)
    assert words in answer.json()["detail"]
    assert len(answer.json()["errors"]) <= 20


async def test_the_longest_series_with_stamps_is_counted_and_taken(client: httpx.AsyncClient) -> None:
    stamps = [f"2024-01-{1 + n // 86400:02}T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}" for n in range(100_000)]
    answer = await client.post(SERIES, json={"values": [1.5] * 100_000, "timestamps": stamps})
    assert answer.status_code == 200, answer.text[:500]


@pytest.mark.parametrize(
    "body",
    [{"values": [1], "model": "a:b"}, {"values": [1], "state": "values"}, {"values": [1], "state": '":values\\'}],
)
async def test_a_colon_or_a_fields_name_in_a_text_is_no_second_field(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    assert "more than once" not in (await client.post(SERIES, json=body)).text


async def test_a_compressed_body_is_counted_as_it_is_inflated(client: httpx.AsyncClient) -> None:
    body = gzip.compress(b'{"values": ' + items("1", 5_000_000).encode() + b"}")
    answer = await client.post(SERIES, content=body, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "210,000 values" in answer.text) == (413, True)


async def test_a_body_is_not_parsed_after_its_deadline(client: httpx.AsyncClient) -> None:
    body = b'{"values": ' + items("{}", 90_000).encode() + b"}"
    answer = await client.post(SERIES, content=body, headers={"X-Request-Timeout": "1e-6"})
    assert answer.status_code == 504


@pytest.mark.parametrize("query", ["top_k=true", "top_k=False", "top_k=1e999"])
async def test_a_boolean_is_no_number_in_a_query(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.post(f"{IMAGES}?{query}", content=graphs.png())).status_code == 422


# --- files


async def test_a_form_has_so_many_files_at_most(models: Path) -> None:
    async with running(models, max_files=3) as client:
        for count, status in ((3, 200), (4, 413), (300, 413)):
            files = [("file", (f"{n}.png", graphs.png())) for n in range(count)]
            answer = await client.post(IMAGES, files=files)
            assert answer.status_code == status
        assert "3 files" in answer.json()["detail"]
        assert "GRIDLOOP_MAX_FILES" in answer.json()["detail"]


async def test_a_form_has_so_many_fields_at_most(client: httpx.AsyncClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await client.post(IMAGES, content=part * 10_002 + b"--b--\r\n", headers=headers)
    assert (answer.status_code, "10,000 fields" in answer.text) == (400, True)


# --- tensors


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (tensor("[1, 4]", items("1", 300_000)), 400, "more values than the shapes"),
        (tensor("[1, 4]", items("[1]", 300_000)), 400, "more values than the shapes"),
        (tensor("[1, 4]", items("{}", 300_000)), 400, "more values than the shapes"),
        (tensor("[1, 90000]", items('"a"', 90_000)), 400, "element 0"),
        (tensor("[1, 90000]", items("1", 89_999)[:-1] + ', "a"]'), 400, "element 89999"),
        (tensor("[1, 90000]", items("1", 89_999)[:-1] + ", true]"), 400, "element 89999"),
        (tensor("[1, 90000]", items("1", 89_999)[:-1] + ", null]"), 400, "element 89999"),
        (tensor("[1, 1]", "[1e999]"), 400, "infinity"),
        (tensor("[1, 1]", "[%s]" % ("9" * 400)), 400, "JSON"),
        (tensor("[true, 1]", "[1]"), 400, "shape"),
        (tensor("[1, 200000]", items("1", 200_000)), 413, "GRIDLOOP_MAX_SERIES_POINTS"),
        (tensor("[10001, 1]", items("1", 10_001)), 413, "GRIDLOOP_MAX_ROWS"),
        (fields(inputs=items('{"shape": [9]}', 9000)), 400, "1,000 tensors"),
    ],
    ids=range(13),
)
async def test_hostile_tensors_are_refused_in_a_few_words(
    client: httpx.AsyncClient, body: str, status: int, words: str
) -> None:
    answer = await client.post(TENSORS, content=body)
    assert (answer.status_code, len(answer.content) < 1000) == (status, True), answer.text[:300]
    assert words in answer.json()["error"]


@pytest.mark.parametrize("nested", [False, True])
async def test_many_values_are_written_piece_by_piece(client: httpx.AsyncClient, nested: bool) -> None:
    data = [[[n % 7 + n // 50_000 for n in range(start, start + 50_000)] for start in (0, 50_000)]]
    flat = [value for row in data[0] for value in row]
    body = tensor("[2, 50000]", json.dumps(data[0] if nested else flat))
    answer = await client.post(TENSORS, content=body)
    assert answer.status_code == 200, answer.text[:300]
    rows = [
        (await client.post(TENSORS, content=tensor("[1, 50000]", json.dumps(row)))).json()["outputs"] for row in data[0]
    ]
    for place, output in enumerate(answer.json()["outputs"]):
        assert output["data"] == [value for row in rows for value in row[place]["data"]]


# --- bytes in flight


def test_bodies_are_counted_as_they_come_and_let_go_in_every_case() -> None:
    in_flight = BytesInFlight(100)
    with in_flight.body() as first:
        first.grow_to(60)
        first.grow_to(50)  # as much is counted already
        with in_flight.body() as second:
            second.grow_to(30)
            with pytest.raises(TooManyBytes):
                second.grow_to(41)
            assert in_flight.taken == 90
        assert in_flight.taken == 60
    assert in_flight.taken == 0


def test_a_body_that_is_alone_is_counted_and_taken_whatever_its_size() -> None:
    in_flight = BytesInFlight(100)
    with in_flight.body() as alone, in_flight.body() as other:
        alone.grow_to(1000)
        alone.grow_to(2000)
        with pytest.raises(TooManyBytes):
            other.grow_to(1)
    assert in_flight.taken == 0


@pytest.mark.parametrize("path", [SERIES, IMAGES, TENSORS])
@pytest.mark.parametrize("kind", ["declared", "in pieces", "compressed"])
async def test_bodies_beyond_what_may_be_in_flight_are_503(models: Path, path: str, kind: str) -> None:
    """One body is half received while another comes."""
    async with running(models, max_bytes_in_flight=100_000) as client:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slowly() -> Any:
            yield b"{" * 60_000
            begun.set()
            await go_on.wait()
            yield b"{" * 10_000

        async def pieces() -> Any:
            for _ in range(5):
                yield b"{" * 14_000

        first = asyncio.ensure_future(client.post(path, content=slowly(), headers={"Content-Length": "70000"}))
        await begun.wait()
        body: Any = {"declared": b"{" * 70_000, "in pieces": pieces(), "compressed": gzip.compress(b"{" * 70_000)}[kind]
        headers = {"Content-Encoding": "gzip"} if kind == "compressed" else {}
        second = await client.post(path, content=body, headers=headers)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert "GRIDLOOP_MAX_BYTES_IN_FLIGHT" in second.text
        small = await client.post(SERIES, json={"values": [1]})
        assert small.status_code == 200
        go_on.set()
        assert (await first).status_code in (400, 422)
        assert (await client.post(path, content=b"{" * 70_000)).status_code in (400, 415, 422)
