"""The evaluation of composed tunes, on tunes whose figures can be counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.evaluation.base import Ask, DataMissing, Subject
from service.evaluation.music_composition import ASKED, COMPOSED, Known, MusicCompositionEvaluation, line_of
from service.graph import Signature
from service.music.abc import read

SUBJECT = Subject("m", "1", "music-composition", Signature({}, {}))
KNOWN = "M:2/4\nL:1/8\nK:G\nG2A2|B2c2|d2B2|G4|\n"
COMPOSED_TUNE = "X:1\nT:x\nM:2/4\nL:1/8\nK:D\nD2E2|F2A2|D2E2|D4|]\n"


@pytest.fixture
def evaluation(tmp_path: Path) -> MusicCompositionEvaluation:
    (tmp_path / "all.abc").write_text("".join(f"X:{n}\n{KNOWN}\n" for n in range(100)))
    return MusicCompositionEvaluation(tmp_path, SUBJECT)


def answered(evaluation: MusicCompositionEvaluation, kind: str) -> Any:
    """The record of the first conversation of a kind whose answer is the composed tune."""
    for item in evaluation.items():
        talk = item.talk()
        question = next(talk)
        assert isinstance(question, Ask)
        if ("key" in question.fields and question.fields["key"] is None) == (kind != "asked"):
            with pytest.raises(StopIteration) as stop:
                talk.send({"abc": COMPOSED_TUNE})
            return stop.value.value
    raise AssertionError(kind)


def test_tunes_of_all_kinds_are_asked_for_and_many_of_a_meter_that_is_known(
    evaluation: MusicCompositionEvaluation,
) -> None:
    assert evaluation.usual == ["2/4"]
    assert len(evaluation.items()) == ASKED + COMPOSED


def test_what_was_not_asked_for_is_wrong(evaluation: MusicCompositionEvaluation) -> None:
    record = answered(evaluation, "asked")
    assert not record.right
    outcome = evaluation.outcome([record])
    assert outcome.figures[0].value == 0
    assert outcome.breakdowns[-1].rows == [("0", "K:D and M:2/4 instead of C and 2/4")]


def test_the_figures_of_a_tune(evaluation: MusicCompositionEvaluation) -> None:
    record = answered(evaluation, "2/4")
    values = [figure.value for figure in evaluation.outcome([record]).figures]
    assert record.wrong == "4 bars instead of 16"
    assert 0 < values[1] < 1
    assert values[2] == pytest.approx(3 / 7), "D E F is G A B in the other key"
    assert values[3] == pytest.approx(1 / 4), "the third bar is the first"


def test_a_run_is_found_in_any_key_and_not_across_tunes() -> None:
    known = Known([line_of(read(KNOWN)), line_of(read(KNOWN))])
    again = line_of(read(KNOWN.replace("K:G", "K:G\n") + "G2A2|"))
    assert known.longest_run(again) == 7


def test_a_folder_without_tunes_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="tunes in ABC notation"):
        MusicCompositionEvaluation(tmp_path, SUBJECT)
