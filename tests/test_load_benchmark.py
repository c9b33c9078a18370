"""The load benchmark's own arithmetic: what it counts, what it notices, and whom it refuses to load.

Nothing here asserts a speed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import graphs
from tests.test_benchmarks import script

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "load.py"


bench, answers, limit, workloads = map(script, ("load", "measuring.answers", "measuring.limit", "measuring.workloads"))


# ----------------------------------------------------------------------------------------------------- equal answers


def labels(**scores: float) -> dict[str, Any]:
    return {"predictions": [{"label": label, "score": score} for label, score in scores.items()]}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"scores": [0.5, 1000]}, {"scores": [0.5004, 1000.4]}),
        ({"x": None, "state": "abc"}, {"x": None, "state": "xyz"}),
        (labels(cat=0.5, dog=0.3), labels(cat=0.5003, dog=0.2998)),
        (labels(cat=0.4001, dog=0.4), labels(dog=0.4001, cat=0.4)),
        (labels(cat=0.9, dog=0.0100), labels(cat=0.9, cow=0.0101)),
    ],
    ids=["rounding", "opaque state", "scores", "a near-tie changes places", "the last place goes to one as probable"],
)
def test_answers_that_differ_by_rounding_are_the_same(a, b):
    assert answers.same_answer(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"scores": [0.5]}, {"scores": [0.502]}),
        ({"scores": [0.5]}, {"scores": [0.5, 0.5]}),
        ({"score": 1.0}, {"score": True}),
        ({"score": 0.0}, {"score": None}),
        (labels(cat=0.5, dog=0.3), labels(cat=0.3, dog=0.5)),
        (labels(cat=0.5, dog=0.3), labels(cow=0.5, dog=0.3)),
        ({"a": 1}, {"a": 1, "b": 2}),
    ],
)
def test_answers_that_say_something_else_are_not_the_same(a, b):
    assert not answers.same_answer(a, b)


def test_an_answer_that_belongs_to_another_request_is_noticed():
    """As if the rows of a batch had been handed out in the wrong order."""
    expected = [{"n": 0}, {"n": 1}]
    assert answers.wrong_among([(0, b'{"n": 0}'), (1, b'{"n": 1}')], expected) == 0
    assert answers.wrong_among([(0, b'{"n": 1}'), (1, b'{"n": 0}'), (1, b'{"n": 1}')], expected) == 2


def test_an_answer_that_is_not_json_is_wrong():
    assert answers.wrong_among([(0, b"hello")], [{"n": 0}]) == 1


# ----------------------------------------------------------------------------------------------- only this machine


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000/"])
def test_servers_on_this_machine_are_loaded(url):
    assert bench.loopback(url)[1] == 8000


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000",
        "http://example.com",
        "http://0.0.0.0:8000",
        "http://127.0.0.1.example.com",
        "http://localhost@example.com",
        "https://127.0.0.1",
        "http://127.0.0.1/v1",
        "127.0.0.1:8000",
        "",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match="http|loopback"):
        bench.loopback(url)


def test_the_command_refuses_another_host_as_wrong_usage(capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        bench.main(["--models", str(tmp_path), "--url", "http://example.com"])
    assert left.value.code == 2
    assert "only loopback addresses are put under load" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--seconds", "1e9"], ["--connections", "0"], ["--repeat", "1000"]])
def test_a_run_without_bounds_is_wrong_usage(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main(["--models", str(tmp_path), *option])
    assert left.value.code == 2
    assert "must be" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- the limit


def test_the_limit_answers_a_batch_as_it_answers_each_alone(models):
    """The detector expects each point to equal the one before: 5 after 0 is an anomaly."""
    direct = limit.Direct.open(models / "steps" / "1", "application/json")
    bodies = [b'{"values": [0, 0, 5]}', b'{"values": [7]}', b'{"values": [0, 5, 5, 5]}']
    together = [json.loads(answer) for answer in direct.answer(bodies)]
    assert together == [json.loads(direct.answer([body])[0]) for body in bodies]
    assert [answer["anomalies"] for answer in together] == [[2], [0], [1]]


def test_the_limit_passes_over_what_is_settled_between_the_runs(real_models):
    direct = limit.Direct.open(real_models / "folk-gru" / "1", "application/json")
    first, again = direct.answer([json.dumps({"bars": 2, "meter": "4/4", "seed": 1}).encode()] * 2)
    assert first == again
    assert json.loads(first)["bars"] == 2


def test_the_limit_takes_pictures(models):
    direct = limit.Direct.open(models / "colours" / "1", "image/png")
    (answer,) = direct.answer([graphs.png((0, 200, 0))])
    assert json.loads(answer)["results"][0]["predictions"][0]["label"] == "green"


# ------------------------------------------------------------------------------------------------- the whole command


def test_the_command_measures_a_server_of_its_own(models, tmp_path):
    """Starts a server with the tiny models, loads it for a moment, stops it, and reports."""
    results = tmp_path / "results.json"
    command = [sys.executable, str(FILE), "--models", str(models), "--workers", "1", "--task", "anomaly-detection"]
    command += ["--seconds", "0.5", "--connections", "4", "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "series, 256 points" in done.stdout

    report = json.loads(results.read_text())
    assert report["settings"]["connections"] == 4
    assert report["settings"]["workers"] == 1
    assert report["machine"].keys() >= {"cpu", "cores", "python", "onnxruntime", "commit"}
    assert report["server"]["ready_s"] > 0
    assert [row["endpoint"] for row in report["results"]] == ["series, 256 points", "series, 1 point + state"]
    for row in report["results"]:
        assert row["model"] == "steps@1"
        assert row["errors"] == {}
        assert row["wrong"] == 0
        assert 0 < row["checked"] <= row["requests"]
        assert row["distinct_answers"] == workloads.BODIES
        assert row["batch_rows"] >= 1
        assert row["limit_batch"] in limit.BATCHES
        assert row["share"] == pytest.approx(row["rate"] / row["limit_rate"])
