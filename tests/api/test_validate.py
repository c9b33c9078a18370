"""`POST /v1/<task>:validate`: says how a request would be read, refuses what it would be refused for, runs nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from service.tasks.next_word_prediction import NextWordInput
from tests import graphs
from tests.conftest import running
from tests.counting import Counting
from tests.media.reading import noise
from tests.tasks.test_music_composition import composer
from tests.tasks.test_next_word_prediction import Model, bigram
from tests.tasks.test_speech_recognition import levels, wav
from tests.tasks.test_speech_recognition import write_model as write_levels

__all__ = ["bigram"]  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    graphs.colour_model(folder)
    graphs.detector_model(folder)
    write_levels(folder)
    graphs.write_model(folder / "piper", task="music-composition", graph=composer)
    return folder


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(folder, max_series_points=1000, max_image_pixels=10_000, max_audio_s=5) as client:
        yield client


async def validate(client: httpx.AsyncClient, task: str, **asked: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/{task}:validate", **asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_series_is_understood_and_not_judged(client: httpx.AsyncClient) -> None:
    stamps = ["2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T02:00", "2026-01-01T05:00"]
    found = await validate(client, "anomaly-detection", json={"values": [1, None, 3, 4], "timestamps": stamps})
    assert found["model"] == {"name": "steps", "version": "1"}
    assert found["facts"] == {"points": 4, "missing": 1, "missing_in_holes": 2, "step_s": 3600.0}
    assert (found["fields"]["sensitivity"], found["fields"]["state"]) == (0.5, None)
    assert found["lengths"]["values"] == 4
    assert found["limits"] == [
        {"setting": "GRIDLOOP_MAX_SERIES_POINTS", "limit": 1000, "used": 4, "left": 996},
    ]
    shapes = {tensor["name"]: (tensor["dtype"], tensor["shape"]) for tensor in found["first_run"]["inputs"]}
    assert shapes["values"][1] == [1, 6]
    assert (found["rows"], found["files"]) == (1, None)


async def test_a_long_list_is_not_told_back(client: httpx.AsyncClient) -> None:
    found = await validate(client, "anomaly-detection", json={"values": [1] * 300})
    assert found["lengths"]["values"] == 300
    assert "values" not in found["fields"]


async def test_a_picture_is_told_as_it_is_displayed(client: httpx.AsyncClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    found = await validate(
        client,
        "image-classification",
        params={"top_k": 3},
        content=file.getvalue(),
        headers={"Content-Type": "image/jpeg"},
    )
    (told,) = found["files"]
    assert told["error"] is None
    assert told["size_bytes"] == len(file.getvalue())
    facts = told["facts"]
    assert (facts["format"], facts["width"], facts["height"], facts["exif_orientation"]) == ("JPEG", 20, 40, 6)
    assert found["fields"]["top_k"] == 3
    assert found["limits"][0]["left"] == 10_000 - 800
    (tensor,) = found["first_run"]["inputs"]
    assert tensor["shape"][0] == 1
    assert {facts["seen_width"], facts["seen_height"]} < set(tensor["shape"])


async def test_a_picture_is_given_back_as_the_model_sees_it(tmp_path: Path) -> None:
    """The picture of a validation is what a model answers that gives its pixels back: turned, and fitted in each way."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    noise(48, 20).save(file, "PNG", exif=exif)
    asked = {"content": file.getvalue(), "headers": {"Content-Type": "image/png"}}
    found = {}
    graphs.pixels_model(tmp_path, "stretch")
    graphs.pixels_model(tmp_path, "crop", resize="crop", resize_to=18)
    graphs.pixels_model(tmp_path, "letterbox", resize="letterbox")
    async with running(tmp_path) as client:
        for name in ("stretch", "crop", "letterbox"):
            params = {"model": name, "top_k": 1000}
            (told,) = (await validate(client, "image-classification", params=params, **asked))["files"]
            answer = (await client.post("/v1/image-classification", params=params, **asked)).json()
            found[name] = np.asarray(png_of(told["seen"]))
            assert np.abs(found[name] - graphs.seen(answer["results"][0])).max() <= 1
    assert {pixels.shape for pixels in found.values()} == {(16, 16, 3)}
    assert (found["letterbox"][:, 0] == 114).all()
    assert not (found["crop"] == found["stretch"]).all()


async def test_a_grey_picture_is_given_back_grey(tmp_path: Path) -> None:
    graphs.write_model(tmp_path / "grey", task="image-classification", graph=brightness)
    async with running(tmp_path) as client:
        told = await validate(
            client, "image-classification", content=graphs.png((255, 0, 0)), headers={"Content-Type": "image/png"}
        )
    picture = png_of(told["files"][0]["seen"])
    assert (picture.mode, picture.size, picture.getextrema()) == ("L", (16, 16), (76, 76))


async def test_pictures_are_given_back_beside_their_files_up_to_a_size(tmp_path: Path) -> None:
    """Of three that fit the model, the second is no picture; one for a model of 1,100 x 1,000 pixels is too large."""
    graphs.pixels_model(tmp_path)
    graphs.write_model(tmp_path / "wide", task="image-classification", graph=partial(brightness, size=(1000, 1100)))
    async with running(tmp_path) as client:
        files = [("file", ("a", graphs.png((9, 9, 9)))), ("file", ("b", b"x")), ("file", ("c", graphs.png((8, 8, 8))))]
        told = (await validate(client, "image-classification", files=files, params={"model": "pixels"}))["files"]
        assert [file["seen"] and png_of(file["seen"]).getpixel((0, 0)) for file in told] == [(9,) * 3, None, (8,) * 3]
        wide = await validate(client, "image-classification", files=files[:1], params={"model": "wide"})
        assert wide["files"][0]["seen"] is None


def png_of(seen: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(seen)))


def brightness(path: Path, size: tuple[int, int] = (16, 16)) -> None:
    """A classifier with two labels, of grey pictures."""
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Concat", ["column", "column"], ["logits"], axis=1),
    ]
    graphs.save(
        path,
        nodes,
        [("picture", onnx.TensorProto.FLOAT, ["batch", *size, 1])],
        [("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        {"last": np.array([1])},
    )
    path.with_name("labels.txt").write_text("dark\nlight\n")


async def test_each_of_several_files_is_told_and_one_that_cannot_be_used_says_why(client: httpx.AsyncClient) -> None:
    files = [("file", ("a.png", graphs.png())), ("file", ("b.png", b"no picture")), ("file", ("c.png", graphs.png()))]
    found = await validate(client, "image-classification", files=files)
    real = (await client.post("/v1/image-classification", files=files)).json()["results"]
    assert [file["filename"] for file in found["files"]] == ["a.png", "b.png", "c.png"]
    assert [file["error"] for file in found["files"]] == [None, real[1]["error"], None]
    assert [bool(file["facts"]) for file in found["files"]] == [True, False, True]
    assert found["rows"] == 3


async def test_a_recording_has_its_seconds_and_rates(client: httpx.AsyncClient) -> None:
    sound = wav(levels(1000, 0))
    found = await validate(client, "speech-recognition", content=sound, headers={"Content-Type": "audio/wav"})
    assert found["files"][0]["facts"] == {
        "format": "WAV", "sample_rate": 8000, "channels": 1, "seconds": 0.08, "heard_at_rate": 8000,
    }  # fmt: skip
    assert found["limits"][0]["left"] == pytest.approx(4.92)


async def test_a_tune_tells_what_is_known_of_it_before_it_is_drawn(client: httpx.AsyncClient) -> None:
    drawn = await validate(client, "music-composition", json={"bars": 4, "meter": "6/8"})
    assert drawn["facts"] == {"key": None, "meter": "6/8", "prompt_notes": 0, "bars_to_compose": 4}
    prompt = "X:1\nM:3/4\nL:1/8\nK:G\nD2|G3A Bc|d4 B2|"
    told = await validate(client, "music-composition", json={"bars": 16, "prompt": prompt})
    assert told["facts"] == {"key": "G", "meter": "3/4", "prompt_notes": 7, "bars_to_compose": 14}


def test_a_text_is_told_in_tokens(bigram: Model) -> None:
    facts = bigram.task.understood(NextWordInput(text="The capital of Ruritania, I lik")).facts
    assert facts == {"characters": 31, "tokens": 7, "unknown_tokens": 2, "last_chunk": "lik"}


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("anomaly-detection", {"json": {"values": []}}),
        ("anomaly-detection", {"json": {"values": [1], "sensitivity": 2}}),
        ("anomaly-detection", {"json": {"values": [1] * 1001}}),
        ("anomaly-detection", {"json": {"values": [1], "state": "no state"}}),
        ("anomaly-detection", {"json": {"values": [1, 2], "timestamps": ["2026-01-02", "2026-01-01"]}}),
        ("anomaly-detection", {"json": {"values": [1], "model": "nobody"}}),
        ("anomaly-detection", {"json": {"values": [1], "model": "colours"}}),
        ("anomaly-detection", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("anomaly-detection", {"json": {"values": [1]}, "headers": {"Accept": "text/event-stream"}}),
        ("anomaly-detection", {"json": {"values": [1]}, "headers": {"X-Request-Timeout": "soon"}}),
        ("image-classification", {"content": b"no picture", "headers": {"Content-Type": "image/png"}}),
        ("image-classification", {"content": b"", "headers": {"Content-Type": "image/png"}}),
        ("image-classification", {"content": graphs.png(size=(200, 100)), "headers": {"Content-Type": "image/png"}}),
        ("image-classification", {"files": [("file", ("a", b"x")), ("file", ("b", b"y"))]}),
        ("image-classification", {"content": b"<p>", "headers": {"Content-Type": "text/html"}}),
        ("image-classification", {"content": graphs.png(), "params": {"topk": 3}}),
        ("speech-recognition", {"content": wav(np.zeros(8000 * 6, np.int16)), "headers": {"Content-Type": "audio/wav"}}),
        ("music-composition", {"json": {"prompt": "K:D\nM:4/4\nL:1/8\nABc|ABcdefga|", "bars": 4}}),
    ],
)  # fmt: skip
async def test_what_a_request_is_refused_for_its_validation_is_refused_for(
    client: httpx.AsyncClient, task: str, asked: dict[str, Any]
) -> None:
    real, found = [await client.post(f"/v1/{task}{path}", **asked) for path in ("", ":validate")]
    assert 400 <= real.status_code < 500
    assert found.status_code == real.status_code
    ignored = ("instance", "request_id")
    assert {name: value for name, value in found.json().items() if name not in ignored} == {
        name: value for name, value in real.json().items() if name not in ignored
    }


async def test_nothing_is_run_and_nothing_is_learnt_of_the_models_pace(client: httpx.AsyncClient) -> None:
    app: Any = client.app  # type: ignore[attr-defined]
    handle = app.app.state.registry.resolve("anomaly-detection", None)
    await client.post("/v1/anomaly-detection", json={"values": [1, 2]})
    pace = list(handle.batcher.pace.longest_s)
    for _ in range(3):
        await validate(client, "anomaly-detection", json={"values": [1, 2]})
    handle.statistics.publish(0)
    totals = handle.statistics.totals(0)
    assert handle.batcher.pace.longest_s == pace
    assert (totals.requests, totals.runs, totals.failures) == (1, 1, 0)


async def test_a_new_task_has_it_by_itself(tmp_path: Path) -> None:
    graphs.counting_model(tmp_path)
    async with running(tmp_path, tasks={"counting": Counting}) as client:
        found = await validate(client, "counting", json={"x": 1})
        assert found["fields"] == {"x": 1.0, "steps": 1}
        assert found["first_run"] == {
            "graph": "encoder", "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 1]}],
        }  # fmt: skip
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/counting:validate"]["post"]
    assert operation["requestBody"] == document["paths"]["/v1/counting"]["post"]["requestBody"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Validation")


async def test_the_key_that_may_ask_a_model_may_validate_for_it(tmp_path: Path) -> None:
    graphs.detector_model(tmp_path)
    async with running(tmp_path, api_keys="secret") as client:
        body = {"json": {"values": [1]}}
        assert (await client.post("/v1/anomaly-detection:validate", **body)).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert (await client.post("/v1/anomaly-detection:validate", **body, headers=headers)).status_code == 200
        assert (await client.get("/v1/anomaly-detection:validate", headers=headers)).status_code == 405
