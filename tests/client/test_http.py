"""Requests as bytes, answers from bytes, and addresses."""

from __future__ import annotations

import pytest

from service.client.http import AnswerParser, detail, http_request, split_url
from tests.client.servers import http


def test_an_answer_is_read_however_it_is_cut():
    whole = http(200, b"hello", b"Server-Timing: queue;dur=1.5")
    for cut in range(1, len(whole)):
        parser = AnswerParser()
        assert parser.feed(whole[:cut]) is None
        answer = parser.feed(whole[cut:])
        assert answer is not None
        assert (answer.status, answer.body, answer.closes) == (200, b"hello", False)


def test_one_parser_reads_one_answer_after_the_other():
    parser = AnswerParser()
    for body in (b"first", b"", b"x" * 100_000):
        whole = http(200, body)
        pieces = [whole[start : start + 1000] for start in range(0, len(whole), 1000)]
        answers = [parser.feed(piece) for piece in pieces]
        assert answers[:-1] == [None] * (len(pieces) - 1)
        assert answers[-1] is not None
        assert answers[-1].body == body


def test_a_connection_that_will_be_closed_is_noticed():
    answer = AnswerParser().feed(http(413, b"", b"connection: close"))
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
        AnswerParser().feed(data)


def test_a_request_is_one_block_of_bytes():
    wire = http_request("::1", 8000, "/v1/x?model=m", "image/png", b"\x89PNG", {"Authorization": "Bearer k"})
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
        http_request("h", 80, target, "text/plain", b"")


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
    assert detail(body) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("http://[::1]:9/", ("::1", 9)),
        ("http://example.org", ("example.org", 80)),
    ],
)
def test_an_address_is_host_and_port(url, expected):
    address = split_url(url)
    assert (address.host, address.port) == expected


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1", "unix:", "https://h/v1", "http://h/v1", "http://h?x=1", "http://u@h", "127.0.0.1:8000", ""],
)
def test_what_is_no_plain_address_is_refused(url):
    with pytest.raises(ValueError, match="http://"):
        split_url(url)
