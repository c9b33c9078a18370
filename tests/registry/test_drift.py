"""A sketch tells what answers were like, and drift how far the latest are from it."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.cli import main
from service.registry import drift
from service.registry.drift import Drift, Reference, Sketch, read_sketch, sketched, stability_index, write_sketch
from service.registry.registry import Registry
from tests import graphs
from tests.conftest import running

HALVES = Sketch(observations=100, traits={"label": Reference(labels=("cat",), shares=(0.5, 0.5))})


# --- the index


def test_the_index_of_what_is_expected_is_0() -> None:
    assert stability_index([0.2, 0.3, 0.5], [20, 30, 50]) == 0


def test_the_index_is_the_sum_that_the_books_give() -> None:
    assert stability_index([0.5, 0.5], [90, 10]) == pytest.approx(0.4 * math.log(1.8) - 0.4 * math.log(0.2))


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=10).filter(any), st.data())
def test_the_index_is_never_negative_and_always_a_number(counts: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(0, 1000), min_size=len(counts), max_size=len(counts)).filter(any))
    index = stability_index([count / sum(counts) for count in counts], other)
    assert 0 <= index < 100


# --- sketches


def test_numbers_fall_into_ten_bins_of_as_many() -> None:
    sketch = sketched([("confidence", value)] for value in np.linspace(0, 1, 1000))
    reference = sketch.traits["confidence"]
    assert len(reference.edges) == 9
    assert reference.shares == pytest.approx([0.1] * 10, abs=0.002)


def test_a_number_that_is_always_the_same_has_two_bins() -> None:
    reference = sketched([("unknown_words", 0.0)] for _ in range(10)).traits["unknown_words"]
    assert (reference.edges, reference.shares) == ((0.0,), (1.0, 0.0))


def test_rare_labels_share_a_bin() -> None:
    labels = [f"common {n}" for n in range(30) for _ in range(10)] + ["rare", "rarer"]
    reference = sketched([("label", label)] for label in labels).traits["label"]
    assert len(reference.shares) == 31
    assert reference.shares[-1] == pytest.approx(2 / 302, abs=1e-6)
    assert reference.bin_of("never seen") == 30


def test_what_is_no_number_is_passed_over() -> None:
    assert sketched([[("score", math.nan), ("score", 1.0)]]).traits["score"].shares == (1.0, 0.0)


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=200))
def test_a_sketch_agrees_with_what_it_was_made_of(values: list[float]) -> None:
    sketch = sketched([("score", value)] for value in values)
    counted = Drift(sketch)
    for _ in range(math.ceil(drift.FEWEST / len(values))):
        counted.note(("score", value) for value in values)
    counted.publish(0)
    assert counted.indices()["score"] < 0.001


def test_a_sketch_is_what_was_written(tmp_path: Path) -> None:
    sketch = sketched([("label", "cat"), ("confidence", 0.5)] for _ in range(3))
    write_sketch(tmp_path, sketch)
    assert read_sketch(tmp_path) == sketch
    assert [path.name for path in tmp_path.iterdir()] == ["sketch.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"observations": 1, "traits": {"a": {"labels": ["x"], "shares": [1]}}}',
        '{"observations": 1, "traits": {"a": {"labels": ["x"], "shares": [0.5, 0.4]}}}',
        '{"observations": 1, "traits": {"a": {"edges": [2, 1], "shares": [0.5, 0.25, 0.25]}}}',
        '{"observations": 1, "traits": {}, "format": 2}',
    ],
)
def test_a_bad_sketch_is_told_and_keeps_nothing_from_being_served(tmp_path: Path, text: str) -> None:
    (tmp_path / "sketch.json").write_text(text)
    with capture_logs() as lines:
        assert read_sketch(tmp_path) is None
    assert lines[0]["event"] == "a sketch cannot be used: drift is not watched"


# --- counting


def test_nothing_is_told_of_few_answers() -> None:
    counted = Drift(HALVES)
    counted.note([("label", "dog")] * (drift.FEWEST - 1))
    counted.publish(0)
    assert counted.indices() == {}
    counted.note([("label", "dog")])
    counted.publish(0)
    assert counted.indices()["label"] > 1


def test_the_workers_counts_are_added() -> None:
    counted = Drift(HALVES, workers=2)
    counted.note([("label", "cat")] * 400)
    counted.publish(0)
    counted.note([("label", "dog")] * 400)
    counted.publish(1)
    assert counted.indices() == {"label": 0}


def test_the_latest_answers_count_most() -> None:
    """After a change, what came before it is half forgotten with every window."""
    counted = Drift(HALVES)
    for label, rounds in (("cat", 10), ("dog", 60)):
        for _ in range(rounds):
            counted.note([("label", label)] * (drift.WINDOW // 10))
            counted.publish(0)
    assert counted.indices()["label"] > 1


def test_traits_that_the_sketch_does_not_know_are_passed_over() -> None:
    counted = Drift(HALVES)
    counted.note([("other", "x"), ("label", 0.5)])
    assert not any(counted._new)


# --- as a user


def index_of(text: str, trait: str) -> float:
    (line,) = [
        line for line in text.splitlines() if line.startswith("gridloop_drift_index") and f'trait="{trait}"' in line
    ]
    return float(line.rpartition(" ")[2])


async def test_other_pictures_than_the_sketchs_are_drift(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "FEWEST", 40)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for red in range(0, 250, 5):
        (pictures / f"{red:03}.png").write_bytes(graphs.png((red, 0, 100)))
    arguments = ["sketch", str(pictures), "--model", "colours", "--models", str(models), "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    made = json.loads(done.stdout)
    assert made["observations"] == 50
    assert set(made["traits"]) == {"label", "confidence"}
    async with running(models) as client:

        async def ask(colours: list[tuple[int, int, int]]) -> httpx.Response:
            files = [("file", graphs.png(colour)) for colour in colours]
            assert (await client.post("/v1/image-classification", files=files)).status_code == 200
            return await client.get("/metrics")

        alike = await ask([(red, 0, 100) for red in range(1, 251, 5)])
        assert index_of(alike.text, "label") < 0.1
        others = await ask([(0, 255, 0)] * 200)
        assert index_of(others.text, "label") > 0.25


async def test_series_and_texts_have_traits_too(models: Path) -> None:
    graphs.words_model(models)
    async with running(models) as client:
        registry = client.app.app.state.registry  # type: ignore[attr-defined]
        series = registry.resolve("anomaly-detection", None)
        request = series.task.Input(values=[1, 1, 1, 5])
        traits = dict(series.task.traits(request, series.predict_now(request)))
        assert traits["anomalous_share"] == len(series.predict_now(request).anomalies) / 4
        assert traits.keys() >= {"anomalous_share", "score"}
        words = registry.resolve("next-word-prediction", None)
        request = words.task.Input(text="the cat sat")
        assert 0 <= dict(words.task.traits(request, words.predict_now(request)))["confidence"] <= 1


def test_english_words_that_a_model_does_not_have_are_counted(real_models: Path) -> None:
    registry = Registry(real_models)
    registry.load("next-word-prediction")
    handle = registry.resolve("next-word-prediction", "english-lstm@1")
    shares = []
    for text in ("a word that it knows and then", "a wrdox thxat itz knwos andq then"):
        request = handle.task.Input(text=text)
        shares.append(dict(handle.task.traits(request, handle.predict_now(request)))["unknown_words"])
    assert shares[0] == 0
    assert shares[1] > 0.5
    handle.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("in.jsonl", "--model", "nothing"), "nothing"),
        (("in.txt", "--model", "steps"), "rows are read from"),
        (("in.jsonl", "--model", "steps"), "no row could be answered"),
    ],
)
def test_a_sketch_that_cannot_be_made_is_said(
    models: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "in.txt").write_text("{}\n")
    done = CliRunner().invoke(main, ["sketch", str(tmp_path / arguments[0]), *arguments[1:], "--models", str(models)])
    assert done.exit_code in (1, 2)
    assert complaint in done.stderr
    assert not list(models.rglob("sketch.json"))
