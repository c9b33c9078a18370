"""`gridloop bench` on a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli import main
from service.client.bench import measure
from service.client.http import ClientFailed
from service.client.load import STEPS
from tests import graphs
from tests.client.servers import answering, http
from tests.test_server import Server as RunningServer
from tests.test_server import serving


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    graphs.colour_model(models)
    graphs.detector_model(models)
    return models


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
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
    server: RunningServer, repository: Path, model: str, has_folder: bool, samples_from: str
):
    models = repository if has_folder else None
    seen = measure(server.url, model, connections=4, seconds=1.0, models=models, key="secret")
    assert seen.is_good, list(seen.lines())
    assert seen.model == f"{model.partition('@')[0]}@1"
    assert seen.samples_from == samples_from
    assert seen.rows >= seen.result.answers
    assert seen.rows >= seen.runs > 0
    assert list(seen.result.steps_ms) == list(STEPS)
    assert json.dumps(seen.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("model", "reason"), [("stairs", "There are: colours, steps"), ("steps@7", "steps@7 is not ready: no such version")]
)
def test_a_model_that_is_not_there_cannot_be_measured(server: RunningServer, model: str, reason: str):
    with pytest.raises(ClientFailed, match=reason):
        measure(server.url, model, key="secret")


def test_a_server_that_wants_a_key_says_so(server: RunningServer):
    with pytest.raises(ClientFailed, match="answered 401"):
        measure(server.url, "steps")


async def test_another_kind_of_server_is_a_failure_and_no_crash():
    def page(_: bytes) -> bytes:
        return http(200, b"<html>")

    async with answering(page) as (port, _):
        with pytest.raises(ClientFailed, match="is this a Gridloop server"):
            await asyncio.to_thread(measure, f"http://127.0.0.1:{port}", "steps")


def test_no_server_is_a_failure_and_no_crash():
    with pytest.raises(ClientFailed, match="no server answers"):
        measure("http://127.0.0.1:9", "steps")


def gridloop(*arguments: Any, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(main, ["bench", *map(str, arguments)])


def test_the_command_prints_one_json_document(server: RunningServer, repository: Path):
    options = ["--url", server.url, "--models", repository, "--connections", 2, "--seconds", 0.3, "--json"]
    result = gridloop("--model", "steps", *options, GRIDLOOP_API_KEYS="secret")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["model"] == "steps@1"
    assert document["errors"] == {}


def test_the_command_says_where_time_goes(server: RunningServer, repository: Path):
    options = ["--url", server.url, "--models", repository, "--connections", 2, "--seconds", 0.3]
    result = gridloop("--model", "steps", *options, GRIDLOOP_API_KEYS="secret")
    assert result.exit_code == 0, result.output
    for word in ("requests/s", "p99", "rows per run", *STEPS, "HTTP and network"):
        assert word in result.stdout


def test_the_command_fails_with_1_when_the_model_is_not_there(server: RunningServer):
    result = gridloop("--model", "stairs", "--url", server.url, GRIDLOOP_API_KEYS="secret")
    assert result.exit_code == 1
    assert "There are: colours, steps" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "m", "--url", "ftp://h"],
        ["--model", "m", "--connections", 0],
        ["--model", "m", "--seconds", 1e9],
    ],
)
def test_wrong_usage_of_the_command_is_2(arguments: list[Any]):
    assert gridloop(*arguments).exit_code == 2
