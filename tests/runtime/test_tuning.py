"""Choosing how a graph is run: on a clock that the graph moves, so that no machine's mood decides a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.graph import Signature, TensorSpec
from service.runtime import tuning
from service.runtime.session import OnnxSession
from service.runtime.tuning import remembered, tune
from service.schemas.model_info import Tuning
from tests import graphs

Cost = Callable[[int, int], float]
"""Rows, threads -> milliseconds."""


class Timed:
    """A graph whose runs take as long as it says."""

    def __init__(self, cost: Cost, batch: int | str = "batch") -> None:
        spec = TensorSpec("x", "float32", (batch, 1))
        self.signature = Signature({"x": spec}, {"y": spec})
        self.cost, self.now, self.lone_threads, self.pools = cost, 0.0, 1, 0
        self.rows: list[int] = []

    def run(self, tensors: Any, outputs: Any = (), *, alone: bool = False, stop: Any = None) -> dict[str, Any]:
        rows = len(tensors["x"])
        self.rows.append(rows)
        self.now += self.cost(rows, self.lone_threads if alone else 1) / 1e3
        return {}

    def open_pool(self, *, stop: Any = None) -> None:
        self.pools += 1

    def close_pool(self) -> None:
        self.pools -= 1


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tuning]:
    def run(graph: Timed, *, most_rows: int = 32, cores: int = 2) -> Tuning:
        monkeypatch.setattr(tuning, "BUDGET_S", 0.8)
        monkeypatch.setattr(
            tuning, "time", SimpleNamespace(perf_counter=lambda: graph.now, thread_time=lambda: graph.now)
        )
        row = {"x": np.zeros((graph.signature.fixed_batch or 1, 1), np.float32)}
        return tune(graph, row, (), most_rows=most_rows, cores=cores)  # type: ignore[arg-type]

    return run


def test_weights_that_are_read_once_for_all_rows_ask_for_large_batches(choose: Any) -> None:
    choice = choose(Timed(lambda rows, _: 8 + 0.1 * rows))
    assert choice.max_batch_size == 32
    assert choice.ms_per_row[1] == pytest.approx(8.1)
    assert choice.ms_per_row[32] == pytest.approx(8 / 32 + 0.1)


def test_a_graph_that_gains_nothing_from_batches_gets_smaller_ones(choose: Any) -> None:
    choice = choose(Timed(lambda rows, _: 9.0 * rows))
    assert (choice.max_batch_size, choice.turn_rows) == (4, 12)


def test_a_batch_that_leaves_the_caches_is_avoided_but_not_a_turn_of_several(choose: Any) -> None:
    choice = choose(Timed(lambda rows, _: (0.2 if rows <= 8 else 0.5) * rows))
    assert (choice.max_batch_size, choice.turn_rows) == (8, 32)


def test_a_slow_graph_is_measured_within_the_time(choose: Any) -> None:
    graph = Timed(lambda rows, _: 200.0 * rows)
    choice = choose(graph)
    assert max(choice.ms_per_row) < 32
    assert graph.now < 10


@pytest.mark.parametrize(
    ("one", "pool", "threads"), [(9.0, 5.0, 2), (9.0, 8.0, 1), (0.4, 0.2, 1)], ids=["pays", "too little", "too short"]
)
def test_lone_runs_take_all_cores_where_that_pays(choose: Any, one: float, pool: float, threads: int) -> None:
    graph = Timed(lambda rows, threads: rows * (pool if threads == 2 else one))
    choice = choose(graph)
    assert choice.lone_threads == threads
    assert choice.lone_ms == {1: pytest.approx(one), 2: pytest.approx(pool)}
    assert (graph.pools, graph.lone_threads) == (0, 1)  # it comes back as it went in


def test_on_one_core_a_graph_is_not_opened_twice(choose: Any) -> None:
    graph = Timed(lambda rows, threads: rows * 9.0 / threads)
    choice = choose(graph, cores=1)
    assert (choice.lone_threads, choice.lone_ms, graph.pools) == (1, {}, 0)


def test_a_fixed_batch_is_the_only_one(choose: Any) -> None:
    graph = Timed(lambda rows, _: rows * 1.0, batch=4)
    choice = choose(graph)
    assert choice.max_batch_size == 4
    assert choice.turn_rows % 4 == 0
    assert 2 not in graph.rows


def test_real_graphs_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "BUDGET_S", 0.01)
    session = OnnxSession(graphs.affine(tmp_path / "affine.onnx"))
    choice = tune(session, {"x": np.zeros((1, 3), np.float32)}, ("y",), most_rows=8, cores=2)
    assert choice.max_batch_size in (1, 2, 4, 8)
    assert set(choice.lone_ms) == {1, 2}
    assert all(taken > 0 for taken in choice.ms_per_row.values())


# ------------------------------------------------------------------------------------------------------- remembering


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def measured(calls: list[int]) -> Tuning:
    calls.append(1)
    return Tuning(max_batch_size=8, turn_rows=16, lone_threads=2, source="measured", ms_per_row={1: 2.0, 8: 1.0})


def test_a_choice_is_remembered_for_the_graph(cache: Path) -> None:
    calls: list[int] = []
    first = remembered("digest", 32, 2, lambda: measured(calls))
    again = remembered("digest", 32, 2, lambda: measured(calls))
    assert (first.source, again.source, len(calls)) == ("measured", "remembered", 1)
    assert again.model_copy(update={"source": "measured"}) == first
    for other in (("another", 32, 2), ("digest", 16, 2), ("digest", 32, 4)):
        assert remembered(*other, lambda: measured(calls)).source == "measured"
    assert len(calls) == 4


def test_a_damaged_memory_is_measured_again(cache: Path) -> None:
    calls: list[int] = []
    remembered("digest", 32, 2, lambda: measured(calls))
    (file,) = cache.rglob("*.json")
    file.write_text("{")
    assert remembered("digest", 32, 2, lambda: measured(calls)).source == "measured"
    assert remembered("digest", 32, 2, lambda: measured(calls)).source == "remembered"


def test_without_a_place_to_remember_every_start_measures(cache: Path) -> None:
    (cache / "gridloop").write_text("a file where a folder should be")
    calls: list[int] = []
    for _ in range(2):
        assert remembered("digest", 32, 2, lambda: measured(calls)).source == "measured"
    assert len(calls) == 2


def test_a_user_without_a_home_is_served_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert remembered("digest", 32, 2, lambda: measured([])).source == "measured"
