"""What is told beside the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from service.evaluation.base import Ask, Conversation
from service.evaluation.facts import commit, facts, machine, parameters
from service.registry.handle import LoadOptions
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from tests import graphs
from tests.counting import Counting
from tests.evaluation.conftest import WORDS, bigram

INTEGERS = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING}


def by_the_library(path: Path) -> int:
    """The same count by the `onnx` package, which serving does not have."""

    def of_graph(graph: onnx.GraphProto) -> int:
        tensors = list(graph.initializer)
        nested = 0
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    tensors.append(attribute.t)
                nested += sum(map(of_graph, [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]))
        return nested + sum(int(np.prod(t.dims)) for t in tensors if t.dims and t.data_type not in INTEGERS)

    return of_graph(onnx.load(path).graph)


def test_the_weights_of_a_bigram_are_its_table(tmp_path: Path) -> None:
    assert parameters(bigram(tmp_path / "m" / "1" / "model.onnx")) == len(WORDS) ** 2


@pytest.mark.parametrize("graph", [graphs.affine, graphs.running_sum, graphs.last_value, graphs.reciprocal_index])
def test_weights_are_counted_as_the_onnx_package_counts_them(graph, tmp_path: Path) -> None:
    path = graph(tmp_path / "m" / "1" / "model.onnx")
    assert parameters(path) == by_the_library(path)


def test_the_weights_of_the_shipped_models_are_counted_as_the_onnx_package_does(real_models: Path) -> None:
    counts = {
        path.parent.parent.name: (parameters(path), by_the_library(path)) for path in real_models.glob("*/*/model.onnx")
    }
    assert counts
    assert all(ours == theirs > 1_000 for ours, theirs in counts.values()), counts


def test_the_machine_has_a_name_and_cores() -> None:
    assert "core" in machine()


def test_outside_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""


def test_of_several_graphs_all_weights_count_and_the_last_run_is_timed(tmp_path: Path) -> None:
    folder = graphs.counting_model(tmp_path)
    graphs.save(
        folder / "1" / "decoder.onnx",
        [onnx.helper.make_node("Sum", ["stride", "count", "weights"], ["next_count"])],
        [(name, onnx.TensorProto.FLOAT, ["batch", 1]) for name in ("stride", "count")],
        [("next_count", onnx.TensorProto.FLOAT, ["batch", 1])],
        {"weights": np.zeros((1, 1), np.float32)},
    )
    handle = load_version(folder / "1", read_manifest(folder), Counting, LoadOptions())

    def timed() -> Conversation:
        answer = yield Ask({"x": 1, "steps": 2})
        assert answer["counts"] == [10, 20]

    found = facts(handle, folder / "1", timed(), "a step")
    assert found.parameters == 1
    assert found.item_ms > 0
    assert (found.digest, found.size_bytes) == (handle.digest, handle.size_bytes)
