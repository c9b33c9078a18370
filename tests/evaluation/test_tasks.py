"""What the tasks' evaluations make of records, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.evaluation.anomaly_detection import AnomalyDetectionEvaluation, Judged, example
from service.evaluation.base import Ask, Conversation, Figure, Outcome, Subject, spread_evenly
from service.evaluation.image_classification import ImageClassificationEvaluation, Seen, seen
from service.evaluation.loading import load_evaluation
from service.evaluation.next_word_prediction import placed_tokens, suggestions, surprisals
from service.evaluation.report import Report, Run
from service.graph import Signature
from service.text.normal_form import normalise
from service.text.tokeniser import tokenise

SUBJECT = Subject("m", "1", "image-classification", Signature({}, {}))


def values(outcome: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in outcome.figures}


def held(talk: Conversation, answer: Callable[[], dict[str, Any]]) -> tuple[list[Mapping[str, Any]], Any]:
    """The fields of every request of a conversation, and its record."""
    asked = []
    try:
        question = next(talk)
        while True:
            assert isinstance(question, Ask)
            asked.append(question.fields)
            question = talk.send(answer())
    except StopIteration as stop:
        return asked, stop.value


# --------------------------------------------------------------------------------------------------------------- pictures


def test_prediction_sets_and_abstention_are_scored_where_answers_have_them() -> None:
    """Sets hold the truth in three of four and have 1, 2, 1 and 2 labels; one abstains, and it is the wrong one."""
    records = [
        Seen("cat", ("cat", "dog"), 0.9, frozenset({"cat"}), 0.9, abstain=False),
        Seen("cat", ("cat", "dog"), 0.6, frozenset({"cat", "dog"}), 0.9, abstain=False),
        Seen("dog", ("cat", "dog"), 0.9, frozenset({"cat"}), 0.9, abstain=True),
        Seen("dog", ("dog", "cat"), 0.5, frozenset({"cat", "dog"}), 0.9, abstain=False),
    ]
    found = values(ImageClassificationEvaluation(Path(), SUBJECT).outcome(records))
    assert found["accuracy"] == 0.75
    assert found["prediction set holds the label (stated: 0.9)"] == 0.75
    assert found["labels in a prediction set"] == 1.5
    assert found["abstains"] == 0.25
    assert found["accuracy where it does not abstain"] == 1


def test_answers_without_promises_are_scored_without_them() -> None:
    found = values(ImageClassificationEvaluation(Path(), SUBJECT).outcome([Seen("cat", ("cat",), 0.9)]))
    assert list(found) == ["accuracy", "expected calibration error"]


def test_a_result_is_read_as_the_service_writes_it() -> None:
    result = {
        "predictions": [{"label": "cat", "score": 0.7, "index": 0}, {"label": "dog", "score": 0.2, "index": 1}],
        "prediction_set": {"coverage": 0.99, "labels": ["cat", "dog"]},
        "abstain": False,
    }
    assert seen("dog", result) == Seen("dog", ("cat", "dog"), 0.7, frozenset({"cat", "dog"}), 0.99, abstain=False)
    bare = {**result, "prediction_set": None, "abstain": None}
    assert seen("dog", bare) == Seen("dog", ("cat", "dog"), 0.7)


# ------------------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    "line",
    [
        "I don't know, Mr. Smith; it's Tom's role-playing game.",
        "The fee is $1,000.50 (about 40%) at 5:30 p.m....",
        "Well.. it’s “fine”…",
        "a\tb  c",
        "",
    ],
)
def test_tokens_are_placed_where_they_stand(line: str) -> None:
    line = normalise(line)
    placed = list(placed_tokens(line))
    assert [token for _, token in placed] == tokenise(line)
    shown = {"@-@": "-", "@,@": ",", "@.@": ".", "...": ".."}
    assert all(line.startswith(shown.get(token, token), start) for start, token in placed)
    assert [start for start, _ in placed] == sorted({start for start, _ in placed})


@given(st.text(alphabet=st.sampled_from("aB1'’-.,…\" \t%"), max_size=40))
def test_every_token_has_a_place(text: str) -> None:
    line = normalise(text)
    assert [token for _, token in placed_tokens(line)] == tokenise(line)


def test_each_word_is_asked_for_after_what_stands_before_it() -> None:
    """The 's is asked for, too, but cannot be suggested: there is no request for it."""
    found = iter([("s", "red", 0.5), ("ss", "bus", 0.25)])

    def answer() -> dict[str, Any]:
        state, best, score = next(found)
        return {"state": state, "predictions": [{"text": best, "score": score}]}

    asked, (ranks, scores) = held(suggestions("Tom's red car."), answer)
    texts = [(fields["text"], fields["state"]) for fields in asked]
    assert texts == [("Tom's ", None), ("red ", "s")]
    assert ranks.tolist() == [10, 0, 10]
    assert scores[1:].tolist() == [0.5, 0.25]


def test_a_long_text_is_sent_in_pieces_that_end_after_a_space() -> None:
    text = "word " * 2_000 + "end"
    asked, bits = held(surprisals(text), lambda: {"state": "s", "tokens": [{"token": "x", "surprisal": 1.0}]})
    pieces = [fields["text"] for fields in asked]
    assert "".join(pieces) == text
    assert all(piece[-1] == " " for piece in pieces[:-1])
    assert max(map(len, pieces)) <= 4_000
    assert bits.tolist() == [1.0] * len(pieces)


# ----------------------------------------------------------------------------------------------------------------- series


def judged(labels: list[int], alarms: list[int], probation: int = 0) -> Judged:
    marks = np.array(labels, bool)
    counted = np.arange(len(marks)) >= probation
    fires = np.array(alarms, bool)
    return Judged("s", marks, counted, fires.astype(float), fires, 0, 0)


def test_what_is_not_counted_neither_helps_nor_harms() -> None:
    """In probation there is a false alarm, and the beginning of a stretch whose rest is found."""
    found = values(
        AnomalyDetectionEvaluation(Path(), SUBJECT).outcome([judged([0, 1, 1, 0], [1, 0, 1, 0], probation=2)])
    )
    assert found["precision of alarms"] == 1
    assert found["recall of labelled stretches"] == 1
    assert found["recall, point by point"] == 1
    assert found["false alarms per 1,000 normal points"] == 0


def test_a_detector_that_never_alarms_has_no_precision() -> None:
    found = values(AnomalyDetectionEvaluation(Path(), SUBJECT).outcome([judged([0, 1], [0, 0])]))
    assert np.isnan(found["precision of alarms"])
    assert found["recall of labelled stretches"] == 0


def test_an_example_shows_the_first_labelled_stretch() -> None:
    labels = np.zeros(10_000, int)
    labels[7_000:7_010] = 1
    record = judged(labels.tolist(), labels.tolist())
    shown = example(record, (np.arange(10_000.0), np.zeros(10_000), np.ones(10_000)))
    assert (shown["begin"], len(shown["values"]), int(shown["labels"].sum())) == (6_250, 1_500, 10)
    assert shown["values"][0] == 6_250


# ----------------------------------------------------------------------------------------------------------------- report


def report(here: float, there: float, low: float | None = 0.4, high: float | None = 0.6) -> Report:
    runs = [
        Run(way, Outcome([Figure("accuracy", value, 100, "things", low, high)]), 1.0, 100)
        for way, value in (("in process", here), ("through HTTP", there))
    ]
    return Report(SUBJECT, "t", "c", runs, None)


@pytest.mark.parametrize(
    ("here", "there", "agree"),
    [
        (0.5, 0.5, True),
        (0.5, 0.519, True),
        (0.5, 0.53, False),
        (float("nan"), float("nan"), True),
        (0.5, float("nan"), False),
    ],
)
def test_the_two_ways_may_differ_by_a_tenth_of_the_interval(here: float, there: float, agree: bool) -> None:
    assert (report(here, there).wrong == []) is agree


def test_without_an_interval_they_may_differ_by_a_thousandth() -> None:
    assert report(100.0, 100.05, None, None).wrong == []
    assert report(100.0, 100.2, None, None).wrong == ["accuracy is 10000.00 % in process, but 10020.00 % through HTTP."]


@given(st.integers(0, 50), st.integers(1, 60))
def test_items_are_spread_evenly(count: int, limit: int) -> None:
    chosen = list(spread_evenly(range(count), limit))
    assert len(chosen) == min(count, limit)
    assert chosen == sorted(set(chosen))
    gaps = set(np.diff(chosen).tolist())
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_every_shipped_model_has_an_evaluation(real_models: Path) -> None:
    folders = [path.parent for path in real_models.glob("*/manifest.toml")]
    assert folders
    assert all(load_evaluation(folder) is not None for folder in folders)
