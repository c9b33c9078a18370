"""Several files in a request: one that cannot be used does not lose the answers of the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import structlog

from service.errors import InvalidInput, UnsupportedMedia
from service.tasks import discover
from service.tasks.base import (
    FailedFile,
    MediaInput,
    MediaTask,
    ModelFolder,
    Run,
    Steps,
    TaskOutput,
    Upload,
)
from tests import graphs
from tests.conftest import running

IMAGES = "/v1/image-classification"
GOOD, OTHER, DAMAGED = graphs.png((255, 0, 0)), graphs.png((0, 255, 0)), graphs.png(size=(90, 90))[:80]
LARGE = graphs.png(size=(100, 101))


async def ask(client: httpx.AsyncClient, *files: bytes, query: str = "") -> httpx.Response:
    parts = [("file", (f"{place}.png", file)) for place, file in enumerate(files)]
    return await client.post(IMAGES + query, files=parts)


async def test_one_damaged_picture_does_not_lose_the_answers_of_the_others(client: httpx.AsyncClient) -> None:
    answer = await ask(client, GOOD, DAMAGED, OTHER)
    assert answer.status_code == 200
    first, failed, last = answer.json()["results"]
    assert (await ask(client, GOOD, OTHER)).json()["results"] == [first, last | {"filename": "1.png"}]
    assert list(failed) == ["filename", "error"]
    assert failed["filename"] == "1.png"
    assert failed["error"]["type"] == "/problems/invalid-input"
    assert failed["error"]["detail"].startswith("Image '1.png' is damaged or cut short")


async def test_each_kind_of_problem_is_told_at_its_place(models: Path) -> None:
    async with running(models, max_image_pixels=10_000) as client:
        results = (await ask(client, b"", LARGE, GOOD, b"text", query="?explain=true")).json()["results"]
        kinds = [result.get("error", {}).get("type") for result in results]
        assert kinds == ["/problems/invalid-input", "/problems/too-large", None, "/problems/invalid-input"]
        assert [result["filename"] for result in results] == ["0.png", "1.png", "2.png", "3.png"]
        assert "GRIDLOOP_MAX_IMAGE_PIXELS" in results[1]["error"]["detail"]
        assert results[2]["heatmap"]["label"] == "red"


async def test_when_no_picture_can_be_used_the_request_is_refused(models: Path) -> None:
    async with running(models, max_image_pixels=10_000) as client:
        for files in ([DAMAGED, b"text"], [LARGE, LARGE], [DAMAGED] * 70):
            answer = await ask(client, *files)
            problem = answer.json()
            assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-input")
            assert problem["detail"].startswith(f"None of the {len(files)} files can be used. The first: Image '0.png'")
            assert problem["error_count"] == len(files)
            assert [entry["loc"] for entry in problem["errors"]] == [
                ["body", "file", place] for place in range(min(20, len(files)))
            ]
            assert "'1.png'" in problem["errors"][1]["msg"]


@pytest.mark.parametrize(("file", "status", "kind"), [(DAMAGED, 422, "invalid-input"), (LARGE, 413, "too-large")])
async def test_a_single_file_is_refused_as_ever(models: Path, file: bytes, status: int, kind: str) -> None:
    async with running(models, max_image_pixels=10_000) as client:
        for answer in (await ask(client, file), await client.post(IMAGES, content=file)):
            assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}")
            assert answer.json()["errors"] == []


async def test_refused_files_are_counted_and_logged(client: httpx.AsyncClient) -> None:
    def counted(text: str) -> float:
        name = 'gridloop_refused_files_total{model="colours",problem="invalid-input"}'
        return float(next((line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)), 0))

    before = counted((await client.get("/metrics")).text)
    with structlog.testing.capture_logs() as lines:
        await ask(client, DAMAGED, GOOD, DAMAGED)
    assert counted((await client.get("/metrics")).text) == before + 2
    (line,) = [line for line in lines if line["event"] == "some files were refused"]
    assert (line["model"], line["files"], line["refused"]) == ("colours@1", 3, 2)
    assert line["kinds"] == {"/problems/invalid-input": 2}
    assert "0.png" in line["first"]


async def test_a_long_file_name_is_quoted_in_part_and_kept_in_its_result(client: httpx.AsyncClient) -> None:
    name = "n" * 3000 + ".png"
    answer = await client.post(IMAGES, files=[("file", (name, DAMAGED)), ("file", GOOD)])
    failed = answer.json()["results"][0]
    assert failed["filename"] == name
    assert len(failed["error"]["detail"]) < 300


# --- every task that takes files has it from its base


class LengthInput(MediaInput):
    """Files to measure."""


class LengthOutput(TaskOutput):
    """One result for each file."""

    results: list[dict[str, float] | FailedFile]


class Length(MediaTask[LengthInput, LengthOutput, float]):
    """Twice the length of a file, and one more."""

    name = "length"
    summary = "How long is this?"
    Input, Output = LengthInput, LengthOutput
    media: ClassVar[tuple[str, ...]] = ("application/octet-stream",)
    noun = "Recording"

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("x", dtype="float32", rank=2)

    def decode_file(self, file: Upload, what: str) -> float:
        if file.data == b"unknown":
            raise UnsupportedMedia(what, "unknown", ["known"])
        if not file.data:
            raise InvalidInput(f"{what} is empty.")
        return float(len(file.data))

    def answer_files(
        self, request: LengthInput, files: Sequence[Upload], decoded: Sequence[float]
    ) -> Steps[list[dict[str, float]]]:
        outputs = yield Run({"x": np.array(decoded, np.float32)[:, None]})
        return [{"length": float(row)} for row in outputs["y"][:, 0]]

    def steps(self, request: LengthInput) -> Steps[LengthOutput]:
        results = yield from self.each_file(request)
        return LengthOutput.model_construct(model=self.folder.ref, results=results)


async def test_a_new_task_that_takes_files_answers_those_that_can_be_used(tmp_path: Path) -> None:
    graphs.write_model(tmp_path / "twice", task="length", graph=graphs.affine)
    async with running(tmp_path, tasks={"length": Length}) as client:
        parts = [("file", ("a.wav", data)) for data in (b"", b"abc", b"unknown", b"a")]
        answer = await client.post("/v1/length", files=parts)
        assert answer.status_code == 200
        kinds = [result.get("length") or result["error"]["type"] for result in answer.json()["results"]]
        assert kinds == ["/problems/invalid-input", 7.0, "/problems/unsupported-media-type", 3.0]
        nothing = await client.post("/v1/length", files={"other": (None, "1")})
        assert nothing.status_code == 422
        alone = await client.post("/v1/length", content=b"unknown")
        assert alone.status_code == 415


@pytest.mark.parametrize("task", [task for task in discover().values() if issubclass(task.Input, MediaInput)])
async def test_every_task_that_takes_files_documents_it(task: Any, client: httpx.AsyncClient) -> None:
    assert issubclass(task, MediaTask)
    document = (await client.get("/openapi.json")).json()
    results = document["components"]["schemas"][task.Output.__name__]["properties"]["results"]
    assert {"$ref": "#/components/schemas/FailedFile"} in results["items"]["anyOf"]
    failed = document["components"]["schemas"]["FailedFile"]
    assert failed["required"] == ["filename", "error"]
    form = document["paths"][f"/v1/{task.name}"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert "`error`" in form["schema"]["properties"]["file"]["description"]
