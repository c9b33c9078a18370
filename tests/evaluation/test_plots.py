"""What is drawn is what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from service.evaluation import plots
from service.evaluation.base import Plot
from service.evaluation.statistics import average_precision, reliability


def test_the_drawn_precision_recall_curve_has_the_area_that_it_states() -> None:
    rng = np.random.default_rng(0)
    recall = np.sort(rng.integers(0, 60, 20_000)) / 59  # far more thresholds than steps
    precision = rng.uniform(0.2, 1, 20_000)
    figure = Figure()
    plots.precision_recall(figure, precision, recall, here=(0.5, 0.5), chance=0.1)
    at, height = figure.axes[0].lines[0].get_data()
    assert np.sum(np.diff(at) * np.asarray(height)[1:]) == pytest.approx(average_precision(precision, recall))


def test_a_confusion_matrix_of_many_classes_is_drawn_without_numbers() -> None:
    figure = Figure()
    plots.confusion_matrix(figure, np.eye(100, dtype=np.int64), [str(n) for n in range(100)])
    assert not figure.axes[0].texts


def test_the_same_data_give_the_same_bytes(tmp_path) -> None:
    bins = reliability(np.array([0.5, 0.9]), np.array([True, False]))
    plot = Plot("r.png", "c", "reliability_diagram", {"bins": bins, "of": "things"})
    first = plots.save(plot, tmp_path / "a").read_bytes()
    assert first == plots.save(plot, tmp_path / "b").read_bytes()


def test_an_evaluation_may_draw_itself(tmp_path) -> None:
    def draw(figure: Figure, height: float) -> None:
        figure.add_subplot().bar([1], [height])

    path = plots.save(Plot("own.png", "c", draw, {"height": 2.0}), tmp_path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
