"""Sample requests: from golden samples and from the OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from service.client.http import Server, ServerAddress
from service.client.load import answers_as
from service.client.samples import documented_samples, golden_samples, wire_requests
from tests import graphs


def test_golden_samples_become_requests(models: Path):
    (picture,) = golden_samples(models / "colours" / "1", "image-classification")
    assert picture == ({"top_k": 1}, "application/octet-stream", graphs.png())
    (series,) = golden_samples(models / "steps" / "1", "anomaly-detection")
    assert json.loads(series.body) == {"values": [0, 0, 5]}


def test_a_golden_sample_of_several_files_is_sent_as_a_form(models: Path):
    folder = models / "colours" / "1"
    (folder / "golden" / "second.png").write_bytes(graphs.png((0, 9, 0)))
    inputs = {"a": "golden/pink.png", "b": "golden/second.png"}
    (folder / "golden.json").write_text(json.dumps([{"input": inputs, "output": {}}]))
    (sample,) = golden_samples(folder, "image-classification")
    request = httpx.Request("POST", "http://h", content=sample.body, headers={"Content-Type": sample.content_type})
    assert request.content.count(b'name="file"') == 2
    assert graphs.png((0, 9, 0)) in request.content


@pytest.mark.parametrize("task", ["image-classification", "no-such-task"])
def test_a_folder_without_usable_samples_has_none(tmp_path: Path, task: str):
    assert golden_samples(tmp_path, task) == []


@pytest.mark.parametrize(("task", "model"), [("image-classification", "colours"), ("anomaly-detection", "steps")])
async def test_the_examples_of_the_openapi_document_can_be_sent(client: httpx.AsyncClient, task: str, model: str):
    document = (await client.get("/openapi.json")).json()
    samples = documented_samples(document, task)
    assert samples
    for request in wire_requests(Server(ServerAddress("test", 80)), task, model, samples):
        head, _, body = request.wire.partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        sent = dict(header.split(": ", 1) for header in headers)
        answer = await client.post(line.split()[1], content=body, headers=sent)
        assert answer.status_code == 200, answer.text
        assert answers_as(model)(answer.content)


async def test_a_task_that_is_not_documented_has_no_examples(client: httpx.AsyncClient):
    assert documented_samples((await client.get("/openapi.json")).json(), "weather") == []
