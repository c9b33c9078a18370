"""Tiny models and tiny labelled data whose figures are mental arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from tests import graphs
from tests.test_server import Server, serving

RED, GREEN, BLUE = (200, 0, 100), (0, 200, 100), (0, 100, 200)

WORDS = ["<eos>", "<unk>", "a", "b", "c"]
NEXT = np.array(  # row: what was read; column: what follows
    [
        [0.0, 0.125, 0.5, 0.25, 0.125],
        [0.25, 0.25, 0.25, 0.125, 0.125],
        [0.125, 0.125, 0.125, 0.5, 0.125],
        [0.125, 0.125, 0.25, 0.25, 0.25],
        [0.5, 0.125, 0.125, 0.125, 0.125],
    ]
)
"""Powers of two, so that surprisals are whole bits."""


def bigram(path: Path) -> Path:
    """A language model that knows `NEXT`; its state is the number of the last token."""
    make = helper.make_node
    nodes = [
        *graphs.bigram_nodes("bits"),
        make("Cast", ["explain"], ["wanted"], to=T.FLOAT),
        make("Unsqueeze", ["wanted", "one"], ["wanted_column"]),
        make("Mul", ["bits", "wanted_column"], ["surprisal"]),
    ]
    return graphs.save(
        path,
        nodes,
        [
            ("tokens", T.INT64, ["batch", "time"]),
            ("sequence_lens", T.INT32, ["batch"]),
            ("state", T.FLOAT, ["batch", 1]),
            ("explain", T.BOOL, ["batch"]),
        ],
        [
            ("logits", T.FLOAT, ["batch", len(WORDS)]),
            ("next_state", T.FLOAT, ["batch", 1]),
            ("surprisal", T.FLOAT, ["batch", "time"]),
        ],
        graphs.bigram_constants(np.maximum(NEXT, 1e-9)),
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for each task."""
    models = tmp_path_factory.mktemp("repository")
    graphs.colour_model(models)
    graphs.detector_model(models)
    graphs.write_model(models / "letters", task="next-word-prediction", graph=lambda path: _letters(path))
    return models


def _letters(path: Path) -> None:
    bigram(path)
    (path.parent / "vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    (path.parent / "golden.json").write_text(
        '[{"input": {"text": "a ", "top_k": 1}, "output": {"predictions": [{"text": "b", "score": 0.6667}]}}]'
    )


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """The same models, to be written to."""
    import shutil

    return Path(shutil.copytree(repository, tmp_path / "models"))


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """The real service with these models."""
    with serving(repository, workers=1) as running:
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures: three reds of four are red, one is green; all blues and greens are right."""
    shown = {
        "red": [RED, RED, RED, GREEN],
        "green": [GREEN, GREEN],
        "blue": [BLUE, BLUE],
    }
    for label, colours in shown.items():
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number, colour in enumerate(colours):
            (tmp_path / "pictures" / label / f"{number}.png").write_bytes(graphs.png(colour))
    return tmp_path / "pictures"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two lines. After "a", "b" is the likeliest; after "b", "a", "b" and "c" are equally likely."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "letters.txt").write_text("a b c\n\na z a\n")
    return tmp_path / "texts"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Two series for the detector, which alarms at every step of more than 1.

    `one`: steps at 2 (labelled 2 to 3), at 4 and at 6 (neither labelled); `two`: nothing alarms, 1 is labelled.
    """
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "one.csv").write_text("timestamp,value,label\n" + "\n".join(
        f"{i},{value},{label}" for i, (value, label) in enumerate(zip([0, 0, 5, 5, 0, 0, 9, 9, "", 9], [0, 0, 1, 1, 0, 0, 0, 0, 0, 0], strict=True))
    ))  # fmt: skip
    (folder / "two.csv").write_text("Value,Anomaly\n0,0\n0,1\n0,0\n0.5,0\n")
    return folder
