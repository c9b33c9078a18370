"""How requests may be sent, and what is said when they may not."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests import graphs
from tests.conftest import running

CASES = Path(__file__).parent.parent / "cases"
IMAGES, SERIES = "/v1/image-classification", "/v1/anomaly-detection"
BODY = json.dumps({"values": [0, 0, 5]}).encode()


async def test_an_image_is_answered_alike_raw_and_multipart(client: httpx.AsyncClient) -> None:
    raw = await client.post(IMAGES, content=graphs.png(), headers={"Content-Type": "image/png"})
    untyped = await client.post(IMAGES, content=graphs.png())
    form = await client.post(IMAGES, files={"file": ("pink.png", graphs.png())})
    answers = [answer.json()["results"][0] for answer in (raw, untyped, form)]
    assert [answer.pop("filename") for answer in answers] == [None, None, "pink.png"]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["predictions"][0]["label"] == "red"


async def test_an_image_may_be_a_data_url_as_pages_in_a_browser_have_them(client: httpx.AsyncClient) -> None:
    url = b"data:image/png;base64," + base64.b64encode(graphs.png())
    answer = await client.post(IMAGES, content=url, headers={"Content-Type": "text/plain"})
    assert answer.json()["results"][0]["predictions"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        (b"data:image/png,abc", 400),
        (b"data:image/png;base64,%%", 400),
        (b"data:text/html;base64,YQ==", 415),
        (b"no data URL", 415),
    ],
)
async def test_an_unusable_data_url_is_refused(client: httpx.AsyncClient, url: bytes, status: int) -> None:
    assert (await client.post(IMAGES, content=url, headers={"Content-Type": "text/plain"})).status_code == status


async def test_several_parts_are_answered_in_the_order_sent(client: httpx.AsyncClient) -> None:
    files = [
        ("file", (f"{i}.png", graphs.png(colour))) for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    ]
    results = (await client.post(IMAGES, files=files)).json()["results"]
    assert [(r["filename"], r["predictions"][0]["label"]) for r in results] == [
        ("0.png", "red"),
        ("1.png", "green"),
        ("2.png", "blue"),
    ]


async def test_options_may_be_form_fields_beside_the_file(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMAGES, files={"file": graphs.png()}, data={"top_k": "1"})
    assert len(answer.json()["results"][0]["predictions"]) == 1


@pytest.mark.parametrize(
    ("query", "place"), [("topk=3", "topk"), ("top_k=0", "top_k"), ("top_k=1001", "top_k"), ("files=x", "files")]
)
async def test_an_unknown_or_unbounded_query_parameter_is_refused(
    client: httpx.AsyncClient, query: str, place: str
) -> None:
    answer = await client.post(f"{IMAGES}?{query}", content=graphs.png())
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", place]


async def test_a_parameter_given_twice_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{IMAGES}?top_k=1&top_k=2", content=graphs.png())).status_code == 422


@pytest.mark.parametrize(
    "kind", [None, "application/json", "application/json; charset=utf-8", "application/problem+json"]
)
async def test_json_is_accepted_with_and_without_a_content_type(client: httpx.AsyncClient, kind: str | None) -> None:
    answer = await client.post(SERIES, content=BODY, headers={"Content-Type": kind} if kind else {})
    assert answer.json()["anomalies"] == [2]


@pytest.mark.parametrize(
    ("path", "kind"),
    [(SERIES, "text/plain"), (SERIES, "image/png"), (IMAGES, "application/json"), (IMAGES, "text/html")],
)
async def test_another_content_type_is_415_and_lists_those_taken(
    client: httpx.AsyncClient, path: str, kind: str
) -> None:
    answer = await client.post(path, content=BODY, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "Send one of" in answer.json()["detail"]


@pytest.mark.parametrize(("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_body_may_be_compressed(client: httpx.AsyncClient, encoding: str, encode: Any) -> None:
    answer = await client.post(SERIES, content=encode(BODY), headers={"Content-Encoding": encoding})
    assert answer.json()["anomalies"] == [2]


async def test_an_unknown_compression_is_415(client: httpx.AsyncClient) -> None:
    answer = await client.post(SERIES, content=BODY, headers={"Content-Encoding": "br"})
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("body", [BODY, gzip.compress(BODY)[:-9]])
async def test_a_body_that_is_not_what_its_compression_says_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    assert (await client.post(SERIES, content=body, headers={"Content-Encoding": "gzip"})).status_code == 400


async def test_a_body_over_the_limit_is_413_and_names_the_setting(models: Path) -> None:
    async with running(models, max_body_bytes=100) as client:
        answer = await client.post(SERIES, content=b"[" * 101)
        assert answer.status_code == 413
        assert "GRIDLOOP_MAX_BODY_BYTES" in answer.json()["detail"]


async def test_the_limit_holds_without_a_content_length(models: Path) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 10

    async with running(models, max_body_bytes=100) as client:
        assert (await client.post(SERIES, content=chunks())).status_code == 413


async def test_the_limit_holds_after_decompression(models: Path) -> None:
    async with running(models, max_body_bytes=2000) as client:
        bomb = gzip.compress(b"0" * 1_000_000)
        assert len(bomb) < 2000
        assert (await client.post(SERIES, content=bomb, headers={"Content-Encoding": "gzip"})).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"values": "1"}',
        b'{"values": [true]}',
        b'{"values": [NaN]}',
        b'{"values": [1e999]}',
        b'{"values": ["1"]}',
        b'{"values": []}',
        b"{}",
        b'{"values": [1], "sensitivity": 2}',
        b'{"values": [1], "colour": 1}',
        b"\xff",
    ],
)
async def test_unusable_json_is_422_with_the_place(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(SERIES, content=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][0] == "body"


async def test_a_query_on_a_json_endpoint_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post(f"{SERIES}?sensitivity=1", content=BODY)).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n\r\n",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
        b"nonsense",
    ],
)
async def test_malformed_multipart_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(IMAGES, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400


async def test_multipart_without_a_boundary_is_400(client: httpx.AsyncClient) -> None:
    assert (await client.post(IMAGES, content=b"x", headers={"Content-Type": "multipart/form-data"})).status_code == 400


async def test_a_file_under_another_name_is_422_and_says_the_right_one(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMAGES, files={"image": ("a.png", graphs.png())})
    assert answer.status_code == 422
    assert "'file'" in answer.json()["detail"]


@pytest.mark.parametrize("large", [10, 200_000])
async def test_large_bodies_give_the_same_answers_as_small_ones(client: httpx.AsyncClient, large: int) -> None:
    """Above a size bodies are parsed in a thread; this is to be seen nowhere else."""
    answer = await client.post(SERIES, content=BODY + b" " * large)
    assert answer.json()["anomalies"] == [2]


# --- content types that mean the same, and clients that send none of their own


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (250, 10, 10)).save(stream, kind)
    return stream.getvalue()


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("JPEG", "image/jpg"),
        ("JPEG", "image/pjpeg"),
        ("JPEG", "IMAGE/JPEG"),
        ("JPEG", "image/png"),
        ("PNG", "image/x-png"),
        ("PNG", "image/apng"),
        ("PNG", "image/png; name=red.png"),
        ("BMP", "image/x-ms-bmp"),
        ("TIFF", "image/x-tiff"),
        ("WEBP", "image/something-new"),
        ("GIF", "binary/octet-stream"),
        ("PNG", "Binary/Octet-Stream;charset=binary"),
        *((kind, FORM) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")),
        ("PNG", f"{FORM}; charset=UTF-8"),
        ("PNG", "text/plain;charset=UTF-8"),
        ("PNG", "application/json"),
        ("PNG", "nonsense"),
    ],
)
async def test_the_bytes_say_what_a_picture_is(client: httpx.AsyncClient, kind: str, sent: str) -> None:
    answer = await client.post(IMAGES, content=picture(kind), headers={"Content-Type": sent})
    assert answer.json()["results"][0]["predictions"][0]["label"] == "red"


@pytest.mark.parametrize("body", [b"BMW and other makes of cars, in a text", b"RIFF", b"file=@ship.png", b"GIF"])
async def test_what_only_begins_like_a_picture_is_415_under_a_forms_type(
    client: httpx.AsyncClient, body: bytes
) -> None:
    answer = await client.post(IMAGES, content=body, headers={"Content-Type": FORM})
    assert answer.status_code == 415
    assert 'add -H "Content-Type: image/' in answer.json()["detail"]


async def test_an_empty_body_under_a_forms_type_is_no_picture(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMAGES, content=b"", headers={"Content-Type": FORM})
    assert answer.status_code == 422
    assert "No image was sent" in answer.json()["detail"]


async def test_a_file_of_an_image_type_that_is_no_picture_is_422(client: httpx.AsyncClient) -> None:
    answer = await client.post(IMAGES, content=b"<svg/>", headers={"Content-Type": "image/svg+xml"})
    assert answer.status_code == 422
    assert "Send one of: JPEG" in answer.json()["detail"]


@pytest.mark.parametrize("space", [b"", b" \r\n\t"])
async def test_json_under_a_forms_type_is_read(client: httpx.AsyncClient, space: bytes) -> None:
    answer = await client.post(SERIES, content=space + BODY, headers={"Content-Type": FORM})
    assert answer.json()["anomalies"] == [2]


@pytest.mark.parametrize(("kind", "body"), [(FORM, b"values=0&values=5"), ("text/plain", BODY)])
async def test_a_type_sent_by_default_is_415_and_says_which_to_add(
    client: httpx.AsyncClient, kind: str, body: bytes
) -> None:
    answer = await client.post(SERIES, content=body, headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert 'add -H "Content-Type: application/json"' in answer.json()["detail"]


async def test_a_data_url_of_an_alias_is_read(client: httpx.AsyncClient) -> None:
    url = b"data:image/JPG;base64," + base64.b64encode(picture("JPEG"))
    answer = await client.post(IMAGES, content=url, headers={"Content-Type": "text/plain"})
    assert answer.json()["results"][0]["predictions"][0]["label"] == "red"


# --- compression


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


@pytest.mark.parametrize(("name", "encoding"), [("raw-deflate", "deflate"), ("x-gzip", "x-gzip")])
async def test_both_kinds_of_deflate_and_gzips_old_name_are_read(
    client: httpx.AsyncClient, name: str, encoding: str
) -> None:
    body = (CASES / "deflate-kinds" / f"{name}.bin").read_bytes()
    answer = await client.post(SERIES, content=body, headers={"Content-Encoding": encoding})
    assert len(answer.json()["expected"]) == 5


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("GZIP", gzip.compress(BODY)),
        ("identity", BODY),
        ("", BODY),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(b"") + gzip.compress(BODY[9:])),
        ("x-gzip", b"".join(gzip.compress(BODY[i : i + 1]) for i in range(len(BODY)))),
        ("deflate", gzip.compress(BODY)),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY))),
        ("gzip,deflate", raw_deflate(gzip.compress(BODY))),
        ("identity, gzip ,", gzip.compress(BODY)),
    ],
)
async def test_compression_is_undone_however_it_is_named(client: httpx.AsyncClient, encoding: str, body: bytes) -> None:
    answer = await client.post(SERIES, content=body, headers={"Content-Encoding": encoding})
    assert answer.json()["anomalies"] == [2]


async def test_encodings_on_two_header_lines_are_one_list(client: httpx.AsyncClient) -> None:
    headers = [("Content-Encoding", "deflate"), ("Content-Encoding", "gzip")]
    answer = await client.post(SERIES, content=gzip.compress(zlib.compress(BODY)), headers=headers)
    assert answer.json()["anomalies"] == [2]


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("gzip", gzip.compress(BODY) + b"trailing", "ends before the body does (8 bytes)"),
        ("gzip", gzip.compress(BODY) + b"\0", "ends before the body does"),
        ("deflate", zlib.compress(BODY) + b"x", "ends before the body does"),
        ("deflate", zlib.compress(BODY) * 2, "ends before the body does"),
        ("deflate", raw_deflate(BODY) + b"x", "ends before the body does"),
        ("gzip", gzip.compress(BODY) + gzip.compress(BODY)[:-4], "cut short"),
        ("gzip", b"", "cut short"),
        ("deflate", BODY, "not what its Content-Encoding says"),
        ("gzip", raw_deflate(BODY), "not what its Content-Encoding says"),
        ("gzip, gzip", gzip.compress(BODY), "not what its Content-Encoding says"),
        ("gzip", gzip.compress(b"") * 10_001, "more than 10,000 gzip members"),
    ],
)
async def test_no_byte_of_a_compressed_body_is_dropped(
    client: httpx.AsyncClient, encoding: str, body: bytes, said: str
) -> None:
    answer = await client.post(SERIES, content=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["br", "gzip, br", "zstd", "gzip, gzip, gzip"])
async def test_encodings_not_known_here_are_415(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await client.post(SERIES, content=BODY, headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert "gzip, deflate" in answer.json()["detail"]


async def test_the_limit_after_decompression_is_for_all_members_together(models: Path) -> None:
    body = gzip.compress(BODY.ljust(5000)) + gzip.compress(b" " * 5000)
    for limit, status in ((10_000, 200), (9_999, 413)):
        async with running(models, max_body_bytes=limit) as client:
            answer = await client.post(SERIES, content=body, headers={"Content-Encoding": "gzip"})
            assert answer.status_code == status


# --- the charset of JSON

V2 = "/v2/models/steps/infer"
TENSORS = json.dumps({"inputs": [{"name": "values", "shape": [1, 3], "datatype": "FP64", "data": [0, 0, 5]}]}).encode()


@pytest.mark.parametrize(("path", "body"), [(SERIES, BODY), (V2, TENSORS)])
@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-8",
        'application/json;Charset="UTF8"',
        "application/json; charset=us-ascii",
        "application/json; charset=ISO-8859-1",
        "application/problem+json; charset=UTF-8",
    ],
)
async def test_charsets_in_which_the_bytes_are_utf_8_are_taken(
    client: httpx.AsyncClient, path: str, body: bytes, kind: str
) -> None:
    for content in (body, b"\xef\xbb\xbf" + body):
        if not (content != body and "ISO" in kind):
            answer = await client.post(path, content=content, headers={"Content-Type": kind})
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json; charset=utf-16", (CASES / "json-charset/body.bin").read_bytes()),
        ("application/json", (CASES / "json-charset/body.bin").read_bytes()),
        ("application/json", BODY.decode().encode("utf-16-le")),
        ("application/json", BODY.decode().encode("utf-16-be")),
        ("application/json", BODY.decode().encode("utf-32")),
        ("application/json; charset=utf-7", BODY),
        ("application/json; charset=iso-8859-1", '{"values": [1], "model": "café"}'.encode("latin-1")),
        ("application/json", '{"values": [1], "model": "café"}'.encode("latin-1")),
    ],
)
async def test_json_in_another_charset_is_refused_and_says_utf_8(
    client: httpx.AsyncClient, kind: str, body: bytes
) -> None:
    for path in (SERIES, V2):
        answer = await client.post(path, content=body, headers={"Content-Type": kind})
        assert answer.status_code in (415, 422) if path == SERIES else 400 <= answer.status_code < 500
        if path == SERIES or b"\0" in body or "charset" in kind:
            assert "UTF-8" in answer.text


# --- multipart as mail programs and older libraries write it


def form(disposition: str, data: bytes = b"", *fields: str, before: bytes = b"", after: bytes = b"") -> bytes:
    head = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *fields])
    return before + b"--b\r\n" + head.encode() + b"\r\n\r\n" + (data or graphs.png()) + b"\r\n--b--\r\n" + after


async def post_form(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post(IMAGES, content=body, headers={"Content-Type": 'multipart/form-data; boundary="b"'})


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ("name=file; filename*=UTF-8''%e2%82%ac%20rot.png", "€ rot.png"),
        ('name="file"; filename="EURO rot.png"; filename*=utf-8\'de\'%e2%82%ac%20rot.png', "€ rot.png"),
        ("filename*=ISO-8859-1''%a3.png; name=file", "£.png"),
        ('name="file"; filename="plain.png"; filename*=UTF-8\'\'%ff%fe', "plain.png"),
        ('name="file"; filename="plain.png"; filename*=unicode_escape\'\'%5cud800', "plain.png"),
        ('name="file"; filename="plain.png"; filename*=broken', "plain.png"),
        ('name="file"; filename="a*b.png"', "a*b.png"),
        ('name="file"; filename="größer; \\"so\\".png"', 'größer; "so".png'),
        ('name="file"; filename=""', None),
        ('name="file"', None),
    ],
)
async def test_the_name_of_a_file_is_the_one_its_client_means(
    client: httpx.AsyncClient, disposition: str, filename: str | None
) -> None:
    result = (await post_form(client, form(disposition))).json()["results"][0]
    assert (result["filename"], result["predictions"][0]["label"]) == (filename, "red")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"This is a message in several parts.\r\n--bold\r\n\r\n", b""),
        (b"\r\n\r\n", b""),
        (b"", b"That was all.\r\n--b\r\nnothing\r\n"),
        (b"To begin with.\r\n", b"In the end."),
    ],
)
async def test_what_stands_around_the_parts_is_ignored(client: httpx.AsyncClient, before: bytes, after: bytes) -> None:
    answer = await post_form(client, form('name="file"; filename="a.png"', before=before, after=after))
    assert [result["filename"] for result in answer.json()["results"]] == ["a.png"]


async def test_a_part_may_be_in_base64_and_typed_as_anything(client: httpx.AsyncClient) -> None:
    body = form('name="file"', base64.encodebytes(graphs.png()), "content-transfer-encoding: BASE64", "Content-Type: x")
    assert (await post_form(client, body)).json()["results"][0]["predictions"][0]["label"] == "red"


async def test_a_part_without_a_name_is_400_and_says_so(client: httpx.AsyncClient) -> None:
    answer = await post_form(client, form('filename="a.png"'))
    assert answer.status_code == 400
    assert "has no name" in answer.json()["detail"]
