"""Metrics that are written in bulk are the metrics that would have been written one by one."""

from __future__ import annotations

import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.telemetry import Recorder


@given(st.lists(st.floats(0, 200) | st.sampled_from([1.0, 2.0, 4.0])))
def test_a_recorder_writes_what_single_observations_would(values: list[float]) -> None:
    def text(observe_all: bool) -> bytes:
        registry = CollectorRegistry()
        histogram = Histogram("rows", "Rows.", ["model"], buckets=(1, 2, 4, 100), registry=registry)
        if observe_all:
            for value in values:
                histogram.labels("m").observe(value)
            histogram.labels("m")
        else:
            recorder = Recorder(histogram, "m")
            for n, value in enumerate(values):
                recorder.observe(value)
                if n % 3 == 0:
                    recorder.flush()
            recorder.flush()
            recorder.flush()
            Recorder._all.remove(recorder)
        lines = generate_latest(registry).splitlines()
        return b"\n".join(line for line in lines if b"_created" not in line and b"_sum" not in line)

    assert text(observe_all=True) == text(observe_all=False)


def test_sums_are_kept_too() -> None:
    registry = CollectorRegistry()
    recorder = Recorder(Histogram("rows", "Rows.", ["model"], registry=registry), "m")
    for value in (0.5, 1.5):
        recorder.observe(value)
    assert registry.get_sample_value("rows_sum", {"model": "m"}) == 0
    recorder.flush()
    assert registry.get_sample_value("rows_sum", {"model": "m"}) == 2
    Recorder._all.remove(recorder)


def test_a_librarys_warning_is_a_line_of_the_log() -> None:
    script = (
        "from service.telemetry import configure_logging; configure_logging('json', 'info');"
        "import numpy as np; np.array([1.0]) / 0"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    (line,) = map(json.loads, result.stderr.splitlines())
    assert "divide by zero" in line["event"]
    assert line["level"] == "warning"
