"""The comparison of processors: what it records here, it finds again here, and it notices what is another answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from service.evaluation import load_script
from service.tasks.base import Upload
from tests import graphs

bench = load_script(Path(__file__).resolve().parents[1] / "benchmarks" / "processors.py")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs it on the classifier of colours, of which one label is asked for; gives the exit code and what was printed."""
    graphs.colour_model(tmp_path / "models")
    request = {"files": (Upload(graphs.png()),), "top_k": 1}
    monkeypatch.setitem(bench.INPUTS, "image-classification", lambda data, count: ([request], ["red"]))

    def once(*arguments: str) -> tuple[int, str]:
        own = ["processors.py", "--data", str(tmp_path), "--models", str(tmp_path / "models"), *arguments]
        monkeypatch.setattr(sys, "argv", own)
        return bench.main(), capsys.readouterr().out

    return once


def test_what_was_recorded_is_found_again(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    code, printed = run("--record", str(file))
    assert (code, "the best one right in 1 of 1" in printed) == (0, True)
    code, printed = run("--against", str(file))
    assert (code, "1 of 1 answers alike" in printed, "the best one the same in 1" in printed) == (0, True, True)
    assert run("--only", "other@1")[1].count("\n") == 2


def test_golden_samples_are_inputs_that_need_no_data(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    assert run("--golden", "--record", str(file))[0] == 0
    recorded = json.loads(file.read_text())
    samples = json.loads((tmp_path / "models" / "colours" / "1" / "golden.json").read_text())
    assert len(recorded["colours@1"]) == len(samples)
    code, printed = run("--golden", "--only", "colours", "--against", str(file))
    assert (code, "answers alike at a tolerance of 0.03, all of them at 0;" in printed) == (0, True)


def test_a_golden_sample_that_is_not_reproduced_is_told(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "models" / "colours" / "1" / "golden.json"
    samples = json.loads(file.read_text())
    samples[0]["output"]["results"][0]["predictions"][0]["score"] -= 0.1
    file.write_text(json.dumps(samples))
    code, printed = run("--golden")
    assert (code, "colours@1: golden samples differ at results[0].predictions[0].score" in printed) == (1, True)


def test_how_alike_answers_are_is_told_by_the_finest_tolerance(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    run("--record", str(file))
    recorded = json.loads(file.read_text())
    recorded["colours@1"][0]["results"][0]["predictions"][0]["score"] -= 0.0005
    file.write_text(json.dumps(recorded))
    code, printed = run("--against", str(file))
    assert (code, "1 of 1 answers alike at a tolerance of 0.03, all of them at 0.001;" in printed) == (0, True)


def test_answers_to_other_inputs_are_not_compared(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text('{"colours@1": []}')
    with pytest.raises(SystemExit):
        run("--against", str(file))


def test_another_answer_is_noticed(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    run("--record", str(file))
    recorded = json.loads(file.read_text())
    recorded["colours@1"][0]["results"][0]["predictions"][0]["score"] -= 0.1
    file.write_text(json.dumps(recorded))
    code, printed = run("--against", str(file))
    assert code == 1
    assert "0 of 1 answers alike" in printed
    assert "largest difference of a score 0.1" in printed
    assert "differs at results[0].predictions[0].score" in printed


def test_a_model_that_is_not_served_is_told(run: Any, tmp_path: Path) -> None:
    (tmp_path / "models" / "colours" / "1" / "labels.txt").unlink()
    code, printed = run()
    assert (code, "colours@1: not served: " in printed) == (1, True)


def test_inputs_are_spread_evenly() -> None:
    assert bench.spread(range(10), 3) == [0, 3, 6]
    assert bench.spread(range(2), 3) == [0, 1]
