"""Which encoding an answer gets: RFC 9110's weights, and what HTTP libraries send unasked."""

from __future__ import annotations

import gzip
import zlib

import pytest

from service.api.open_inference.compression import WORTHWHILE_BYTES, accepted, compressed


@pytest.mark.parametrize(
    ("header", "name", "from_bytes"),
    [
        ("gzip", "gzip", 0),
        ("deflate", "deflate", 0),
        ("GZIP", "gzip", 0),
        ("x-gzip", "gzip", 0),
        ("*", "gzip", 0),
        ("gzip;q=0.5, deflate;q=0.8, identity;q=0.1", "deflate", 0),
        ("gzip, deflate", "gzip", WORTHWHILE_BYTES),
        ("gzip, deflate, br, zstd", "gzip", WORTHWHILE_BYTES),
        ("br, deflate;q=0.9", "deflate", WORTHWHILE_BYTES),
        ("gzip;q=0, *", "deflate", WORTHWHILE_BYTES),
    ],
)
def test_the_encoding_preferred_is_found(header: str, name: str, from_bytes: int) -> None:
    assert accepted(header.encode()) == (name, from_bytes)


@pytest.mark.parametrize(
    "header", ["", "identity", "br", "gzip;q=0", "gzip;q=soon", "identity, gzip;q=0.5", "\xff", ";"]
)
def test_none_is_where_none_is_wanted(header: str) -> None:
    assert accepted(header.encode("latin-1")) is None


def test_what_is_compressed_is_in_the_formats_that_http_means() -> None:
    body = b"0.5," * 10_000
    assert gzip.decompress(compressed(body, "gzip")) == body
    assert zlib.decompress(compressed(body, "deflate")) == body
