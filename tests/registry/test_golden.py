"""Golden samples: read, run and compared as their task says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.errors import ManifestInvalid
from service.registry.check import check_folder
from service.registry.golden import read_golden
from tests import graphs

TIE = Path(__file__).parent.parent / "cases" / "golden-near-tie"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '[{"input": {}}]',
        '[{"input": {}, "output": {}, "more": 1}]',
        "[1]",
        '[{"input": {}, "output": {}, "tolerance": -1}]',
        '[{"input": {}, "output": {}, "tolerance": NaN}]',
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(ManifestInvalid):
        read_golden(tmp_path, "m/1/golden.json")


def test_an_unusable_sample_is_named_without_the_librarys_report(models: Path) -> None:
    folder = models / "steps"
    for sample, reason in (
        ({"input": {"values": "x"}, "output": {}}, "sample 1 is refused: values: Input should be a valid list."),
        ({"inputs": {}}, "cannot be read: input: Field required; output: Field required; inputs: Extra inputs"),
    ):
        (folder / "1" / "golden.json").write_text(json.dumps([sample]))
        detail = next(finding.detail for finding in check_folder(folder) if "golden" in finding.what)
        assert detail.startswith(f"steps/1/golden.json: {reason}")
        assert "pydantic" not in detail


def test_a_model_is_right_whichever_of_two_labels_that_are_nearly_tied_comes_first() -> None:
    """Their scores are 0.302050 and 0.302012, and the sample has them the other way round."""
    assert [finding.detail for finding in check_folder(TIE) if not finding.ok and finding.what != "card.md"] == []


def refusal(models: Path, predictions: list[tuple[str, float]], *, top_k: int, tolerance: float) -> str:
    """What is wrong with the classifier of colours, whose answer to pink is red 0.665, blue 0.245, green 0.090."""
    folder = graphs.colour_model(models)
    sample = {
        "input": {"image": "golden/pink.png", "top_k": top_k},
        "output": {"results": [{"predictions": [{"label": label, "score": score} for label, score in predictions]}]},
        "tolerance": tolerance,
    }
    (folder / "1" / "golden.json").write_text(json.dumps([sample]))
    return " ".join(finding.detail for finding in check_folder(folder) if not finding.ok)


@pytest.mark.parametrize(
    ("predictions", "top_k", "tolerance", "reason"),
    [
        ([("red", 0.6652)], 1, 0.001, ""),
        ([("red", 0.6652), ("blue", 0.2447), ("green", 0.09)], 5, 0.001, ""),
        ([("blue", 0.6652)], 1, 0.03, "at results[0].predictions[0].score: expected 0.6652"),
        ([("blue", 0.2447), ("red", 0.6652)], 2, 0.03, "expected 'blue' before 'red'"),
        ([("red", 0.6652), ("green", 0.2447)], 2, 0.03, "predictions[1].score: expected 0.2447"),
        ([("red", 0.6652), ("green", 0.09)], 2, 0.03, "expected 'green' before 'blue'"),
        ([("red", 0.7)], 1, 0.03, "predictions[0].score: expected 0.7"),
        ([("red", 0.6652), ("mauve", 0.2447)], 2, 0.5, "predictions[1]: expected label 'mauve'"),
        ([("red", 0.6652)], 2, 0.03, "expected 1 entries"),
    ],
)
def test_what_is_wrong_stays_wrong(
    tmp_path: Path, predictions: list[tuple[str, float]], top_k: int, tolerance: float, reason: str
) -> None:
    found = refusal(tmp_path, predictions, top_k=top_k, tolerance=tolerance)
    assert reason in found
    assert bool(reason) == bool(found)
