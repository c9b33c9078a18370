"""What the evaluation of speech recognition makes of what was heard."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.multipart import parts
from service.client.http import Server, split_url
from service.client.samples import BOUNDARY
from service.evaluation.base import Ask, DataMissing, Subject
from service.evaluation.speech_recognition import (
    Heard,
    Recorded,
    SpeechRecognitionEvaluation,
    talk,
    word_errors,
)
from service.evaluation.transport import Http
from service.graph import Signature

SUBJECT = Subject("m", "1", "speech-recognition", Signature({}, {}))
words = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6)


def fewest_changes(said: tuple[str, ...], heard: tuple[str, ...]) -> int:
    """Levenshtein's distance by its definition."""

    @cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(least(i - 1, j) + 1, least(i, j - 1) + 1, least(i - 1, j - 1) + (said[i - 1] != heard[j - 1]))

    return least(len(said), len(heard))


@given(words, words)
def test_word_errors_are_the_fewest_changes(said: list[str], heard: list[str]) -> None:
    found = word_errors(said, heard)
    assert len(found) == fewest_changes(tuple(said), tuple(heard))
    assert all(before != after for before, after in found)
    assert len(said) - sum(not after for _, after in found) + sum(not before for before, _ in found) >= 0


def test_words_that_are_wrong_missing_and_too_many_are_told_apart() -> None:
    assert word_errors(["one", "two"], ["one", "three"]) == [("two", "three")]
    assert word_errors(["one", "two"], ["two"]) == [("one", "")]
    assert word_errors([], ["two"]) == [("", "two")]


class Groups(SpeechRecognitionEvaluation):
    def measures(self):  # type: ignore[no-untyped-def]
        return {"alone": "right", "strings": "word errors", "nothing": "silent"}


def test_each_group_is_measured_in_its_own_way() -> None:
    records = [
        Heard("alone", ("one",), ("one",)),
        Heard("alone", ("two",), ("one",)),
        Heard("strings", ("one", "two", "three"), ("one", "three")),
        Heard("strings", ("one",), ("one",)),
        Heard("nothing", (), ()),
        Heard("nothing", (), ("two",)),
    ]
    outcome = Groups(Path(), SUBJECT).outcome(records)
    figures = {figure.name: figure for figure in outcome.figures}
    assert {name: figure.value for name, figure in figures.items()} == {"alone": 0.5, "strings": 0.25, "nothing": 0.5}
    assert figures["strings"].n == 4 and figures["strings"].low == 0.0
    (confusions,) = outcome.breakdowns
    assert ["two", "one", "1"] in [list(row) for row in confusions.rows]


def test_a_group_measured_in_two_ways_has_two_rows() -> None:
    class Twice(SpeechRecognitionEvaluation):
        def measures(self):  # type: ignore[no-untyped-def]
            return {"people": ("right", "word errors")}

    records = [Heard("people", ("one", "two", "three"), ("one", "three")), Heard("people", ("one",), ("one",))]
    figures = Twice(Path(), SUBJECT).outcome(records).figures
    assert {figure.name: figure.value for figure in figures} == {"people, right": 0.5, "people, word errors": 0.25}


def test_where_no_word_is_wrong_the_interval_still_has_a_width() -> None:
    (figure,) = (
        SpeechRecognitionEvaluation(Path(), SUBJECT)
        .outcome([Heard("word error rate", ("one",) * 50, ("one",) * 50)])
        .figures
    )
    assert figure.value == 0 and figure.low == 0 and figure.high is not None and 0.01 < figure.high < 0.1


def test_a_recording_in_pieces_is_asked_for_with_the_state_of_the_answer_before() -> None:
    talking = talk(Recorded("r", "g", "one two", lambda: [b"a", b"b", b"c"]))
    asked = [next(talking)]
    answers = [
        {"results": [{"text": text}], "state": state} for text, state in (("one", "s1"), ("", "s2"), ("two", None))
    ]
    asked += [talking.send(answer) for answer in answers[:2]]
    with pytest.raises(StopIteration) as stop:
        talking.send(answers[2])
    assert asked == [
        Ask({"final": False}, b"a"),
        Ask({"state": "s1", "final": False}, b"b"),
        Ask({"state": "s2"}, b"c"),
    ]
    assert stop.value.value == Heard("g", ("one", "two"), ("one", "two"))


def test_a_state_that_is_too_long_for_a_url_is_sent_in_a_form() -> None:
    sent = Http(Server(split_url("http://127.0.0.1:1")), SUBJECT)._task_request(
        Ask({"state": "x" * 20_000, "final": False}, b"abc")
    )
    head, _, body = sent.partition(b"\r\n\r\n")
    assert len(head) < 1000
    found = {part.name: part.data for part in parts(body, BOUNDARY.encode(), 1)}
    assert found == {"state": b"x" * 20_000, "final": b"false", "model": b"m@1", "file": b"abc"}


def test_recordings_are_read_beside_their_texts(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "a.txt").write_text("One  Two\n")
    (tmp_path / "b.wav").write_bytes(b"nobody wrote down what is said")
    (recording,) = SpeechRecognitionEvaluation(tmp_path, SUBJECT).recordings()
    assert recording.said == "one two" and recording.read() == [b"sound"]
    with pytest.raises(DataMissing, match=r"four\.txt"):
        SpeechRecognitionEvaluation(tmp_path / "empty", SUBJECT).recordings()
