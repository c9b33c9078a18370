"""The graphs in `models/` are what their builders write: a change of a builder shows here, before anybody trains for hours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from service.evaluation import load_script

MODELS = Path(__file__).parents[2] / "models"


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Let scripts import the files beside them, and forget these afterwards: other models have files of the same name."""
    names = {path.stem for path in folder.glob("*.py")}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


def test_the_detector_of_series_is_written_anew_from_its_own_weights() -> None:
    folder = MODELS / "series-gru"
    published = folder / "2" / "model.onnx"
    with beside(folder):
        graph = load_script(folder / "graph.py")
        made = graph.build_graph(graph.Weights.from_graph(published), graph.Adaptation())
    assert made == onnx.load(published)


def test_the_language_model_is_written_anew_from_its_own_weights() -> None:
    folder = MODELS / "english-lstm"
    with beside(folder):
        graph = load_script(folder / "graph.py")
        made = graph.build_graph(graph.Weights.read(folder / "1"))
    assert made == onnx.load(folder / "1" / "model.onnx")
