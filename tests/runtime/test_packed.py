"""Packed copies of graphs: made in a process of their own, checked, shared; whatever goes wrong, the graph is served."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.registry import loading
from service.registry.handle import LoadOptions
from service.registry.registry import Registry
from service.runtime import packed, tuning
from service.runtime.packed import packed_copy
from service.runtime.session import OnnxSession
from tests import graphs

ROW = {"x": np.arange(64, dtype=np.float32)[None] / 64}


def projection(path: Path, batch: int | str = "batch") -> Path:
    """y = x W, for x float32 (batch, 64), W of 64 KiB."""
    weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return graphs.save(path, nodes, [("x", T.FLOAT, [batch, 64])], [("y", T.FLOAT, [batch, 256])], {"w": weights})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gridloop" / "packed"


def test_a_copy_gives_the_same_numbers_on_one_core_and_on_two(tmp_path: Path) -> None:
    graph = projection(tmp_path / "model.onnx")
    rows = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    expected = OnnxSession(graph).run(rows)["y"]
    copy = packed_copy(graph, "digest", ROW)
    assert copy is not None
    session = OnnxSession(graph)
    session.use_copy(copy, ROW)
    assert session.copy == copy
    graph.unlink()  # nothing reads it any more
    session.lone_threads = 2
    session.open_pool()
    for alone in (False, True):
        np.testing.assert_array_equal(session.run(rows, alone=alone)["y"], expected)


def test_the_weights_are_in_the_file_that_is_mapped(tmp_path: Path) -> None:
    graph = projection(tmp_path / "model.onnx")
    copy = packed_copy(graph, "digest", ROW)
    assert copy is not None
    assert copy.stat().st_size < 4096 < 64 * 256 * 4 <= (copy.parent / "weights.bin").stat().st_size
    session = OnnxSession(graph)
    session.use_copy(copy, ROW)
    if Path("/proc/self/maps").exists():
        assert str(copy.parent / "weights.bin") in Path("/proc/self/maps").read_text()


def test_a_copy_is_made_once_for_a_graph(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = projection(tmp_path / "model.onnx")
    made: list[Path] = []
    make = packed._make
    monkeypatch.setattr(
        packed, "_make", lambda graph, folder, sample: made.append(folder) or make(graph, folder, sample)
    )
    first, again = (packed_copy(graph, "digest", ROW) for _ in range(2))
    other = packed_copy(graph, "another digest", ROW)
    assert first == again
    assert first is not None
    assert [first.parent, other and other.parent] == made
    assert sorted(path.name for path in cache.iterdir()) == sorted(path.name for path in made)  # no drafts are left


def branching(path: Path) -> Path:
    """y = x W, or its negative, by the first value."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node(operator, ["p"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, T.FLOAT, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["is"], to=T.BOOL),
        helper.make_node("If", ["is"], ["y"], then_branch=branch("a", "Identity"), else_branch=branch("b", "Neg")),
    ]
    inputs, outputs = [("x", T.FLOAT, ["batch", 64])], [("y", T.FLOAT, ["batch", 256])]
    return graphs.save(path, nodes, inputs, outputs, {"w": np.ones((64, 256), np.float32)})


def no_graph(path: Path) -> Path:
    path.write_bytes(b"half of a fi")
    return path


def without_weights(path: Path) -> Path:
    return graphs.save(
        path, [helper.make_node("Neg", ["x"], ["y"])], [("x", T.FLOAT, ["n", 64])], [("y", T.FLOAT, ["n", 64])]
    )


def weights_elsewhere(path: Path) -> Path:
    model = onnx.load(projection(path))
    onnx.save(model, path, save_as_external_data=True, location="side.bin", size_threshold=0)
    return path


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (branching, "the graph branches"),
        (no_graph, "Protobuf parsing failed"),
        (without_weights, "weights.bin"),
        (weights_elsewhere, "its weights are in another file"),
    ],
)
def test_what_cannot_be_packed_is_tried_once(
    graph: Any, reason: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "graph").mkdir()
    file = graph(tmp_path / "graph" / "model.onnx")
    assert packed_copy(file, "digest", ROW) is None
    (refused,) = cache.iterdir()
    assert [path.name for path in refused.iterdir()] == ["refused.txt"]
    assert reason in (refused / "refused.txt").read_text()
    monkeypatch.setattr(packed, "_make", None)  # calling it would fail
    assert packed_copy(file, "digest", ROW) is None


@pytest.mark.skipif(os.name == "nt", reason="a script stands in for the interpreter")
@pytest.mark.parametrize(("script", "reason"), [("kill -SEGV $$", "exit code -11"), ("sleep 60", "more than 0.2 s")])
def test_a_crash_or_a_hang_stays_in_the_trial(
    script: str, reason: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec 2>/dev/null\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(packed, "sys", SimpleNamespace(executable=str(python), path=[]))
    monkeypatch.setattr(packed, "TRIAL_S", 0.2 if "sleep" in script else 60.0)
    assert packed_copy(projection(tmp_path / "model.onnx"), "digest", ROW) is None
    (refused,) = cache.iterdir()
    assert (refused / "refused.txt").read_text() == reason


def test_a_damaged_copy_is_noticed_and_made_again(tmp_path: Path) -> None:
    graph = projection(tmp_path / "model.onnx")
    copy = packed_copy(graph, "digest", ROW)
    assert copy is not None
    weights = copy.parent / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    session = OnnxSession(graph)
    expected = session.run(ROW)["y"]
    session.use_copy(copy, ROW)
    assert session.copy is None
    np.testing.assert_array_equal(session.run(ROW)["y"], expected)
    assert not copy.parent.exists()
    assert packed_copy(graph, "digest", ROW) == copy


def test_a_pool_whose_file_is_gone_leaves_lone_runs_on_one_core(tmp_path: Path) -> None:
    graph = projection(tmp_path / "model.onnx")
    session = OnnxSession(graph)
    expected = session.run(ROW)["y"]
    graph.unlink()
    session.lone_threads = 2
    session.open_pool()
    np.testing.assert_array_equal(session.run(ROW, alone=True)["y"], expected)


def test_without_a_place_there_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = projection(tmp_path / "model.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(packed, "cache_place", lambda *_: None)
        assert packed_copy(graph, "digest", ROW) is None
    with monkeypatch.context() as patch:
        patch.setattr(packed.shutil, "disk_usage", lambda _: SimpleNamespace(free=graph.stat().st_size))
        assert packed_copy(graph, "digest", ROW) is None
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setattr(packed, "cache_place", lambda *_: tmp_path / "file" / "packed" / "key")
    assert packed_copy(graph, "digest", ROW) is None


def test_copies_that_nobody_opens_are_removed_in_time(tmp_path: Path, cache: Path) -> None:
    graph = projection(tmp_path / "model.onnx")
    old, used = packed_copy(graph, "old", ROW), packed_copy(graph, "used", ROW)
    assert old is not None
    assert used is not None
    long_ago = time.time() - packed.UNUSED_S - 60
    for copy in (old, used):
        os.utime(copy.parent, (long_ago, long_ago))
    packed_copy(graph, "used", ROW)  # opened again
    new = packed_copy(graph, "new", ROW)
    assert new is not None
    assert {path.name for path in cache.iterdir()} == {used.parent.name, new.parent.name}


# ------------------------------------------------------------------------------------------------------- model folders


def wide_colours(path: Path) -> Path:
    """The classifier of colours, with 6 KiB of weights on the way that change nothing."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=T.FLOAT),
        helper.make_node("Div", ["pixels", "hundred"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "there"], ["wide"]),
        helper.make_node("MatMul", ["wide", "back"], ["logits"]),
    ]
    constants = {"hundred": np.float32(100), "there": np.eye(3, 256, dtype="f4"), "back": np.eye(256, 3, dtype="f4")}
    inputs, outputs = [("image", T.UINT8, ["batch", 2, 2, 3])], [("logits", T.FLOAT, ["batch", 3])]
    return graphs.save(path, nodes, inputs, outputs, constants)


@pytest.mark.parametrize(
    ("packed_from", "twice", "is_packed", "threads"),
    [(0, 0, True, {1, 2}), (10**6, 10**6, False, {1, 2}), (10**6, 0, False, set())],
    ids=["packed", "small", "large and not packed"],
)
def test_a_large_graph_is_packed_or_else_not_opened_twice(
    packed_from: int, twice: int, is_packed: bool, threads: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PACKED_FROM_BYTES", packed_from)
    monkeypatch.setattr(loading, "MOST_BYTES_TWICE", twice)
    monkeypatch.setattr(tuning, "BUDGET_S", 0.01)
    folder = graphs.colour_model(tmp_path / "models", graph=wide_colours)
    registry = Registry(folder.parent, LoadOptions(cores=2, tune=True))
    registry.load()
    handle = registry.resolve("image-classification", None)
    assert (handle.graphs.main.session.copy is not None) == is_packed
    assert set(handle.tuning.lone_ms) == threads
    assert registry.close(5.0)
