"""A run is ended from another thread, by a graph whose loop never ends by itself."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

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
