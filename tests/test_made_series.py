"""The made series of `benchmarks/made_series.py`, judged by detectors whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from service.evaluation import load_script
from tests import graphs

ROOT = Path(__file__).parent.parent
made: Any = load_script(ROOT / "benchmarks" / "made_series.py")


def judged(values: Any, scores: Any) -> Any:
    return made.Judged(np.asarray(scores, float), np.zeros(len(values)), np.ones(len(values)))


def test_a_detector_that_never_alarms_finds_nothing_and_alarms_at_no_gap() -> None:
    rows = dict(made.measure(lambda values: judged(values, np.zeros(len(values)))))
    spikes = [figures for name, figures in rows.items() if name.startswith("4 spikes")]
    assert spikes == ["0.00 0.00 0.00 0.00 · 0.00 · × 1.00"] * 6
    assert {figures for name, figures in rows.items() if name.startswith("gap")} == {"0 of 12"}


def test_a_detector_that_alarms_after_each_gap_is_found_out() -> None:
    def after_gaps(values: Any) -> Any:
        missing = np.isnan(values)
        return judged(values, np.concatenate([[False], missing[:-1] & ~missing[1:]]))

    rows = dict(made.measure(after_gaps))
    assert {figures for name, figures in rows.items() if name.startswith("gap")} == {"12 of 12"}


def test_the_spikes_are_where_they_are_said_to_be() -> None:
    values, at = made.spiked("noise", 0, 20, 10)
    calm, _ = made.calm("noise", len(values), np.random.default_rng(0))
    assert np.flatnonzero(values != calm).tolist() == at == [300, 310, 320, 330]
    assert (np.abs(values - calm)[at] >= 16).all()


def test_a_graph_is_judged_as_the_service_judges_it(tmp_path: Path) -> None:
    detect = made.of_graph(graphs.last_value(tmp_path / "model.onnx", novelty=True))
    found = detect(np.array([0, 0, 9, 9, 7, np.nan]))
    assert found.scores.tolist() == [0, 0, 0.9, 0, 0.75, 0]
