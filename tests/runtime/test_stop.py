"""A run is ended from another thread, by a graph whose loop never ends by itself."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.runtime.session import OnnxSession
from service.runtime.stop import Stop
from tests import graphs

STUCK, QUICK = np.array([[1.0]], np.float32), np.array([[-1.0]], np.float32)


@pytest.fixture
def session(tmp_path: Path) -> OnnxSession:
    return OnnxSession(graphs.endless_above_zero(tmp_path / "endless.onnx"))


def test_a_run_can_be_stopped_from_another_thread(session: OnnxSession) -> None:
    stop = Stop()
    threading.Timer(0.01, stop.set).start()
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        session.run({"x": STUCK}, stop=stop)
    assert stop.is_set


def test_a_run_that_is_stopped_before_it_begins_ends_at_once(session: OnnxSession) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        session.run({"x": STUCK}, stop=stop)


def test_a_session_goes_on_after_a_run_was_stopped(session: OnnxSession) -> None:
    test_a_run_can_be_stopped_from_another_thread(session)
    assert session.run({"x": QUICK}, stop=Stop())["y"].tolist() == QUICK.tolist()


def endless_constant(path: Path) -> Path:
    """y = x + a constant that is folded while the graph is opened, by a loop without end."""
    make, flag = helper.make_node, helper.make_tensor_value_info
    body = helper.make_graph(
        [make("Identity", ["go_on"], ["again"]), make("Identity", ["before"], ["after"])],
        "round",
        [flag("round", T.INT64, []), flag("go_on", T.BOOL, []), flag("before", T.FLOAT, [1])],
        [flag("again", T.BOOL, []), flag("after", T.FLOAT, [1])],
    )
    return graphs.save(
        path,
        [make("Loop", ["", "yes", "start"], ["constant"], body=body), make("Add", ["x", "constant"], ["y"])],
        [("x", T.FLOAT, ["batch", 1])],
        [("y", T.FLOAT, ["batch", 1])],
        {"yes": np.array(True), "start": np.zeros(1, np.float32)},
    )


@pytest.mark.parametrize("delay_s", [0.0, 0.05], ids=["before it begins", "on the way"])
def test_what_is_done_while_a_version_is_loaded_is_stopped(tmp_path: Path, delay_s: float) -> None:
    """A graph may be opened without end as well, or a run of it, and what begins later ends at once."""
    stop = Stop()
    timer = threading.Timer(delay_s, stop.set)
    timer.start()
    if not delay_s:
        timer.join()
    with pytest.raises(Exception, match=r"cancel|terminate|ONNXRuntimeError"):
        OnnxSession(endless_constant(tmp_path / "m" / "1" / "model.onnx"), stop=stop).run(
            {"x": np.zeros((1, 1), np.float32)}, stop=stop
        )
    timer.join()
