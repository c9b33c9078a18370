"""A version of several graphs: each run goes to its graph, and all of them are checked, tuned, shown and asked for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.graph import Run, Steps
from service.keys import as_toml, new_key
from service.registry import loading
from service.registry.check import check_folder
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import check_samples, load_version, open_version, sample_rows
from service.registry.manifest import read_manifest
from service.registry.registry import Registry
from service.runtime.batcher import Batcher
from service.runtime.graphs import GraphNotFound, Graphs
from service.runtime.session import OnnxSession
from service.tasks import discover
from tests import graphs
from tests.conftest import running
from tests.counting import Counting, CountingInput

TASKS = {"counting": Counting}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model `counter`, in a repository of its own."""
    return graphs.counting_model(tmp_path / "models")


@pytest.fixture
def handle(folder: Path) -> Iterator[ModelHandle]:
    loaded = load(folder)
    yield loaded
    assert loaded.close(10)


def load(folder: Path, options: LoadOptions | None = None, task: Any = Counting) -> ModelHandle:
    return load_version(folder / "1", read_manifest(folder), task, options or LoadOptions())


def reason(folder: Path) -> str:
    """Why the model cannot be served; empty when it can."""
    registry = Registry(folder.parent, tasks=TASKS)
    registry.load()
    model = registry.get(folder.name)
    return "" if model.is_ready else model.reason


def listen(handle: ModelHandle) -> list[tuple[str, int]]:
    """The runs from now on: graph and rows of each."""
    heard: list[tuple[str, int]] = []

    def note(name: str, graph: Any) -> None:
        run = graph.run

        def noted(tensors: Any, *rest: Any, **conditions: Any) -> Any:
            heard.append((name, len(next(iter(tensors.values())))))
            return run(tensors, *rest, **conditions)

        graph.run = noted

    for name, graph in handle.graphs.items():
        note(name, graph)
    return heard


# ------------------------------------------------------------------------------------------------------------- runs


def test_a_run_goes_to_the_graph_that_it_names_and_else_to_the_main_one(handle: ModelHandle) -> None:
    heard = listen(handle)
    assert handle.predict_now(CountingInput(x=3, steps=4)).model_dump()["counts"] == [30, 60, 90, 120]
    assert heard == [("encoder", 1), *[("decoder", 1)] * 4]


async def test_the_steps_of_several_callers_share_runs_of_each_graph(handle: ModelHandle) -> None:
    """Of two streams that step together; the longer one goes on alone."""
    batcher = handle.batcher
    heard = listen(handle)
    with batcher._turn:  # so that both have come before the first is begun
        requests = [CountingInput(x=1, steps=2), CountingInput(x=5, steps=4)]
        tasks = [asyncio.create_task(handle.predict(request, timeout_s=30)) for request in requests]
        while batcher.waiting < 2:  # noqa: ASYNC110  the batcher has no event for it
            await asyncio.sleep(0.001)
    answers = [json.loads(done.value)["counts"] for done in await asyncio.gather(*tasks)]
    assert answers == [[10, 20], [50, 100, 150, 200]]
    assert heard == [("encoder", 2), ("decoder", 2), ("decoder", 2), ("decoder", 1), ("decoder", 1)]


async def test_runs_of_different_graphs_never_share_a_batch(tmp_path: Path) -> None:
    """Not even where names and shapes are the same; the main graph by its name is the same graph as by none."""

    def scale(name: str, by: float) -> OnnxSession:
        nodes = [helper.make_node("Mul", ["x", "by"], ["y"])]
        spec = ("batch", 1)
        return OnnxSession(
            graphs.save(tmp_path / name, nodes, [("x", T.FLOAT, spec)], [("y", T.FLOAT, spec)], {"by": np.float32(by)})
        )

    def ask(graph: str) -> Steps[float]:
        outputs = yield Run({"x": np.ones((1, 1), np.float32)}, graph=graph)
        return float(outputs["y"][0, 0])

    batcher = Batcher(Graphs({"two": scale("two.onnx", 2), "three": scale("three.onnx", 3)}), model="tiny")
    rows: list[int] = []
    run = batcher._run
    batcher._run = lambda graph, feeds, *rest, **options: (  # type: ignore[method-assign]
        rows.append(len(feeds["x"])) or run(graph, feeds, *rest, **options)  # type: ignore[func-returns-value]
    )
    try:
        with batcher._turn:
            asked = [asyncio.create_task(batcher.submit(ask(graph))) for graph in ("two", "three", "", "three")]
            while batcher.waiting < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert [done.value for done in await asyncio.gather(*asked)] == [2, 3, 2, 3]
        assert rows == [2, 2]
        with pytest.raises(GraphNotFound, match="^there is no graph 'four'; there are: two, three$"):
            await batcher.submit(ask("four"))
    finally:
        assert batcher.close(10)


async def test_one_thread_serves_all_graphs_of_a_version(handle: ModelHandle) -> None:
    await handle.predict(CountingInput(x=1, steps=3), timeout_s=30)
    assert [thread.name for thread in threading.enumerate()].count("batcher-counter") == 1


# ------------------------------------------------------------------------------------------------------------ loading


def test_an_answer_that_another_decoder_gives_is_not_served(folder: Path) -> None:
    assert reason(folder) == ""
    graphs.decoder(folder / "1" / "decoder.onnx", step=0.5)
    assert re.search(r"golden.json: sample 1 differs .*counts\[0\]: expected 20, got 20.5", reason(folder))


def test_a_graph_that_is_missing_is_named_with_the_task_that_needs_it(folder: Path) -> None:
    (folder / "1" / "decoder.onnx").unlink()
    assert reason(folder) == (
        "counter/1/decoder.onnx: is missing; counting needs this graph beside encoder.onnx: export it to this place."
    )
    (folder / "1" / "encoder.onnx").unlink()
    assert "counter/1: has no encoder.onnx, which counting needs; export the graph to this place." in reason(folder)


def test_a_graph_that_does_not_fit_its_task_is_named(folder: Path) -> None:
    graphs.affine(folder / "1" / "decoder.onnx")
    assert reason(folder) == (
        "counter/1/decoder.onnx: has no input named 'stride', which this task needs; it has: x float32 (batch, width)."
    )


def test_a_run_for_a_graph_that_is_not_declared_is_told_by_its_sample(folder: Path) -> None:
    class Forgetful(Counting):
        graphs = ("encoder",)

        def __init__(self, folder: Any) -> None:
            super(Counting, self).__init__(folder)

    with pytest.raises(loading.ManifestInvalid, match="GraphNotFound: there is no graph 'decoder'; there are: encoder"):
        load(folder, task=Forgetful)


def test_a_constant_may_be_of_any_graph_and_must_be_of_one(folder: Path) -> None:
    graphs.save(
        folder / "1" / "decoder.onnx",
        [helper.make_node("Sum", ["count", "stride", "extra"], ["next_count"])],
        [("stride", T.FLOAT, ["batch", 1]), ("count", T.FLOAT, ["batch", 1]), ("extra", T.FLOAT, [])],
        [("next_count", T.FLOAT, ["batch", 1])],
    )
    manifest = folder / "manifest.toml"
    text = manifest.read_text()
    manifest.write_text(f"{text}\n[constants]\nextra = 0.0\n")
    assert reason(folder) == ""
    manifest.write_text(f"{text}\n[constants]\nextra = 0.0\nother = 1.0\n")
    assert "counter/1: no graph has an input 'other', to which [constants] gives a value" in reason(folder)


def test_digest_and_size_are_of_all_graphs(folder: Path, handle: ModelHandle) -> None:
    files = [folder / "1" / "encoder.onnx", folder / "1" / "decoder.onnx"]
    assert handle.size_bytes == sum(file.stat().st_size for file in files)
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    assert handle.digest == hashlib.sha256(digests).hexdigest()
    (folder / "1" / "golden.json").unlink()
    graphs.decoder(files[1], step=0.5)
    assert load(folder).digest != handle.digest


def test_every_graph_is_warmed_up_with_values_as_they_come(folder: Path) -> None:
    """The decoder's stride is the encoder's answer to the golden sample, not zeros."""
    opened = open_version(folder / "1", read_manifest(folder), Counting)
    rows = sample_rows(opened, check_samples(opened))
    assert {
        name: {tensor: float(array[0, 0]) for tensor, array in run.tensors.items()} for name, run in rows.items()
    } == {
        "encoder": {"x": 2},
        "decoder": {"stride": 20, "count": 0},
    }


def test_a_later_sample_may_be_the_one_that_comes_to_a_graph(folder: Path) -> None:
    samples = [
        {"input": {"x": 1, "steps": 0}, "output": {"counts": []}},
        {"input": {"x": 3, "steps": 1}, "output": {"counts": [30]}},
    ]
    (folder / "1" / "golden.json").write_text(json.dumps(samples))
    opened = open_version(folder / "1", read_manifest(folder), Counting)
    rows = sample_rows(opened, check_samples(opened))
    assert float(rows["encoder"].tensors["x"][0, 0]) == 1
    assert float(rows["decoder"].tensors["stride"][0, 0]) == 30
    (folder / "1" / "golden.json").write_text(json.dumps(samples[:1]))
    tunings = load(folder, LoadOptions(tune=True)).tunings
    assert tunings["encoder"].source in ("measured", "remembered")
    assert tunings["decoder"].source == "default"


def test_every_graph_is_tuned_for_itself(folder: Path) -> None:
    tunings = load(folder, LoadOptions(tune=True)).tunings
    assert list(tunings) == ["encoder", "decoder"]
    assert all(tuning.source in ("measured", "remembered") for tuning in tunings.values())
    assert all(tuning.max_batch_size in tuning.ms_per_row for tuning in tunings.values())
    manifest = folder / "manifest.toml"
    manifest.write_text(manifest.read_text() + "\n[batching]\nmax_batch_size = 3\n")
    assert [tuning.max_batch_size for tuning in load(folder).tunings.values()] == [3, 3]


def test_each_large_graph_is_packed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "PACKED_FROM_BYTES", 0)
    wide = {"there": np.eye(1, 512, dtype="f4"), "back": np.eye(512, 1, dtype="f4")}
    graphs.save(
        folder / "1" / "decoder.onnx",
        [
            helper.make_node("MatMul", ["stride", "there"], ["wide"]),
            helper.make_node("MatMul", ["wide", "back"], ["same"]),
            helper.make_node("Add", ["same", "count"], ["next_count"]),
        ],
        [("stride", T.FLOAT, ["batch", 1]), ("count", T.FLOAT, ["batch", 1])],
        [("next_count", T.FLOAT, ["batch", 1])],
        wide,
    )
    loaded = load(folder, LoadOptions(tune=True))
    assert loaded.graphs["encoder"].session.copy is None  # it has no weights to share
    assert loaded.graphs["decoder"].session.copy is not None
    assert loaded.predict_now(CountingInput(x=1, steps=2)).model_dump()["counts"] == [10, 20]


def test_the_check_names_the_tensors_of_each_graph(folder: Path) -> None:
    (finding,) = [finding for finding in check_folder(folder, TASKS) if finding.what.startswith("version 1")]
    assert finding.ok
    assert finding.detail.startswith("1 sample(s) reproduced. encoder: x float32 (batch, 1); stride float32 (batch, 1)")
    assert "decoder: stride float32 (batch, 1); count float32 (batch, 1)" in finding.detail


# ---------------------------------------------------------------------------------------------------------------- HTTP


async def test_the_endpoint_answers_with_all_graphs(folder: Path) -> None:
    async with running(folder.parent, tasks=TASKS) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/counting", json={"x": n, "steps": n}) for n in range(1, 6)),
        )
    for n, answer in enumerate(answers, start=1):
        assert answer.json() == {
            "model": {"name": "counter", "version": "1"},
            "counts": [10 * n * k for k in range(1, n + 1)],
        }


async def test_the_list_of_models_shows_every_graph(folder: Path) -> None:
    graphs.colour_model(folder.parent)
    async with running(folder.parent, tasks=discover() | TASKS) as client:
        (version,) = (await client.get("/v1/models/counter")).json()["versions"]
        (only,) = (await client.get("/v1/models/colours")).json()["versions"]
    encoder, decoder = version["graphs"]
    assert (encoder["name"], decoder["name"]) == ("encoder", "decoder")
    assert version["size_bytes"] == encoder["size_bytes"] + decoder["size_bytes"]
    assert version["inputs"] == encoder["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 1]}]
    assert [tensor["name"] for tensor in decoder["inputs"]] == ["stride", "count"]
    assert [tensor["name"] for tensor in decoder["outputs"]] == ["next_count"]
    assert version["tuning"] == encoder["tuning"]
    assert decoder["tuning"]["source"] in ("measured", "remembered")
    assert decoder["digest"] == hashlib.sha256((folder / "1" / "decoder.onnx").read_bytes()).hexdigest()
    assert only["graphs"] == []


def tensor(name: str, *rows: float) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [len(rows), 1], "data": list(rows)}


async def test_every_graph_can_be_asked_for_its_tensors(folder: Path) -> None:
    """The main graph by the model's name, the others by `name:graph`."""
    async with running(folder.parent, tasks=TASKS) as client:
        assert (await client.get("/v2/models")).json() == {"models": ["counter", "counter:decoder"]}
        main = (await client.get("/v2/models/counter")).json()
        assert (main["name"], [tensor["name"] for tensor in main["inputs"]]) == ("counter", ["x"])
        for path in ("counter:decoder", "counter%3Adecoder", "counter:decoder/versions/1"):
            other = (await client.get(f"/v2/models/{path}")).json()
            assert (other["name"], other["versions"]) == ("counter:decoder", ["1"])
            assert [tensor["name"] for tensor in other["inputs"]] == ["stride", "count"]
            assert (await client.get(f"/v2/models/{path}/ready")).json() == {"name": "counter:decoder", "ready": True}
            answer = await client.post(
                f"/v2/models/{path}/infer", json={"inputs": [tensor("stride", 5, 6), tensor("count", 1, 2)]}
            )
            assert answer.json() == {
                "model_name": "counter:decoder",
                "model_version": "1",
                "outputs": [{"name": "next_count", "datatype": "FP32", "shape": [2, 1], "data": [6, 8]}],
            }
        for path in ("counter", "counter:encoder"):
            answer = await client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor("x", 3)]})
            assert answer.json()["outputs"][0]["data"] == [30]
            assert answer.json()["model_name"] == path


async def test_a_graph_that_is_not_there_is_refused_with_those_there_are(folder: Path) -> None:
    async with running(folder.parent, tasks=TASKS) as client:
        for answer in (
            await client.get("/v2/models/counter:deocder"),
            await client.get("/v2/models/counter:deocder/ready"),
            await client.post("/v2/models/counter:deocder/infer", json={"inputs": [tensor("x", 3)]}),
        ):
            assert answer.status_code == 404
            assert answer.json() == {
                "error": "There is no graph of model 'counter' 'deocder'. Did you mean 'decoder'? "
                "There are: encoder, decoder."
            }
        answer = await client.post("/v2/models/counter:/infer", json={"inputs": [tensor("x", 3)]})
        assert answer.status_code == 404
        answer = await client.post("/v2/models/cuonter:decoder/infer", json={"inputs": [tensor("x", 3)]})
        assert "Did you mean 'counter'?" in answer.json()["error"]


async def test_callers_of_a_graph_and_of_the_task_share_its_runs(folder: Path) -> None:
    async with running(folder.parent, tasks=TASKS) as client:
        handle = client.app.app.state.registry.get("counter").versions["1"].handle  # type: ignore[attr-defined]
        heard = listen(handle)
        with handle.batcher._turn:
            asked = [
                asyncio.create_task(client.post("/v1/counting", json={"x": 1})),
                asyncio.create_task(client.post("/v2/models/counter/infer", json={"inputs": [tensor("x", 3)]})),
            ]
            while handle.batcher.waiting < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        counted, encoded = await asyncio.gather(*asked)
        assert (counted.json()["counts"], encoded.json()["outputs"][0]["data"]) == ([10], [30])
        assert heard == [("encoder", 2), ("decoder", 1)]


async def test_a_key_for_a_model_is_one_for_its_graphs(folder: Path) -> None:
    """And for those of no other model."""
    graphs.counting_model(folder.parent, "other")
    secret, key = new_key("somebody", models=("other",), admin=False)
    file = folder.parent.parent / "keys.toml"
    file.write_text(as_toml(key))
    async with running(folder.parent, tasks=TASKS, api_keys_file=file) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        assert (await client.get("/v2/models/other:decoder")).status_code == 200
        assert (await client.get("/v2/models/counter:decoder")).status_code == 403
