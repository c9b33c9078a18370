"""What the benchmark scripts make of measurements. Nothing here asserts a speed."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    """A file of benchmarks/, which holds scripts that import each other, not a package."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    return importlib.import_module(name)


def attempts_of(compare: ModuleType, *cores: float) -> Iterator[tuple[str, Any]]:
    return ((f"with {c}", compare.Noise(c)) for c in cores)


def test_a_quiet_measurement_is_not_made_again():
    compare = script("bench")
    assert compare.calmest(attempts_of(compare, 0.1, 0.0), lambda: True) == ("with 0.1", compare.Noise(0.1), 1)


def test_of_noisy_measurements_the_calmest_counts():
    compare = script("bench")
    noises = attempts_of(compare, 0.5, 0.3, 0.4, 0.0)  # the fourth is one too many
    assert compare.calmest(noises, lambda: True) == ("with 0.3", compare.Noise(0.3), 3)
    assert compare.calmest(attempts_of(compare, 0.5, 0.0), lambda: False)[0] == "with 0.5"


def test_shares_are_of_the_limit_in_the_same_round():
    compare = script("bench")
    rows = [
        compare.Row("L1", "w", 0, 100, 1.0),
        compare.Row("L1", "w", 0, 300, 1.0),
        compare.Row("gridloop", "w", 0, 100, 2.0, errors={"status 503": 2}),
        compare.Row("L1", "w", 1, 50, 1.0),
        compare.Row("gridloop", "w", 1, 40, 2.0, wrong=1, checked=5),
    ]
    limit, service = compare.summaries(rows)
    assert limit["target"] == "L1"
    assert service["share_range"] == [0.5, 0.8]
    assert service["rate"] == 70
    assert (service["errors"], service["wrong"]) == ({"status 503": 2}, 1)
    remarks = "\n".join(compare.remarks({"results": [limit, service]}))
    assert "2 × status 503" in remarks
    assert "1 of 5 answers compared" in remarks


async def test_the_plain_application_gives_the_services_answers(
    real_client: httpx.AsyncClient, real_models: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise the comparison would measure different work."""
    monkeypatch.setenv("GRIDLOOP_MODELS", str(real_models))
    compare, targets, plain = map(script, ("bench", "measuring.targets", "plain_fastapi"))
    transport = httpx.ASGITransport(plain.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://plain") as client:
        for workload in compare.WORKLOADS:
            for body in workload.bodies(compare._nobody)[:3]:
                answers = []
                for to, how in ((real_client, targets.as_service), (client, targets.as_form)):
                    path, content_type, sent = how(workload, body)
                    answer = await to.post(path, content=sent, headers={"Content-Type": content_type})
                    assert answer.status_code == 200, answer.text
                    answers.append(answer.json())
                for result in [result for answer in answers for result in answer.get("results", [])]:
                    result.pop("filename")  # a raw body has no name
                assert compare.same_answer(*answers)


def point(line: str, x: float, rate: float, p50: float = 1.0) -> dict[str, Any]:
    known = {"what": f"{x:g}", "connections": 8, "body_bytes": 10.0, "seconds": 1.0, "requests": 9, "cpu_ms": 1.0}
    rest = {"p99_ms": p50, "rows_per_run": None, "errors": {}, "noise": {"other_cores": 0.0, "stolen_cores": 0.0}}
    return {"line": line, "x": x, "rate": rate, "p50_ms": p50, "memory_mib": None, "ready_s": None, **known, **rest}


def section(*points: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "CPU", "cores": 2, "python": "3", "onnxruntime": "1", "commit": "abc"}
    return {"date": "2026-01-01T00:00:00", "machine": machine, "settings": {"seconds": 1.0}, "points": list(points)}


def test_the_steepest_growth_is_the_exponent_between_two_neighbours():
    growth = script("growth")
    assert growth.steepest([1, 10, 100], [1, 10, 1000]) == pytest.approx(2)
    assert growth.steepest([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)
    assert math.isnan(growth.steepest([1], [1]))


def test_the_deepest_fall_is_of_the_best_rate_so_far():
    growth = script("growth")
    assert growth.deepest_fall([10, 20, 15, 30]) == 0.75
    assert growth.deepest_fall([1, 2, 3]) == 1.0


def test_a_section_becomes_a_table_between_its_marks():
    growth = script("growth")
    content = growth.table("text", section(point("text", 1, 100), point("text", 10, 20)))
    assert "| text | 1 | 100 |" in content
    assert "grows at most as words to the power of 0.70, its CPU time of 0.00" in content
    document = "before\n<!-- growth:text -->\nold\n<!-- /growth:text -->\nafter"
    filled = growth.fill(document, "text", content)
    assert filled.startswith("before\n")
    assert filled.endswith("\nafter")
    assert "old" not in filled
    assert growth.fill(filled, "text", content) == filled
    with pytest.raises(LookupError, match="growth:series"):
        growth.fill(document, "series", content)


def test_a_point_without_answers_is_left_out_of_the_judgement_but_not_of_the_table():
    growth = script("growth")
    silent = {**point("text", 10, 0.0, math.nan), "requests": 0, "errors": {"no answer": 8}}
    content = growth.table("text", section(point("text", 1, 100), silent))
    assert "| 10 | 0 | – |" in content
    assert content.count("to the power of") == 0


@pytest.mark.parametrize("words", [1, 7, 8, 9, 5000])
def test_a_text_has_as_many_words_as_it_should(words: int):
    assert len(script("growth").text(words, seed=1).split()) == words


def test_the_growth_command_refuses_what_it_cannot_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        script("growth").main(["--models", str(tmp_path), "--only", "series"])
    assert left.value.code == 2
    assert "matplotlib" in (said := capsys.readouterr().err) or "is not the repository" in said


@pytest.mark.parametrize("has_memory", [False, True])
def test_a_section_becomes_a_plot(tmp_path: Path, has_memory: bool):
    pytest.importorskip("matplotlib", reason="only the growth benchmark needs it")
    growth = script("growth")
    extra = {"memory_mib": 200.0, "ready_s": 2.0} if has_memory else {}
    points = [{**point("one asked", x, 100 / x, x), **extra} for x in (1, 10, 50)]
    file = tmp_path / "plots" / "models.svg"
    growth.plot("models", section(*points), file)
    drawn = file.read_text()
    assert growth.SECTIONS["models"].title in drawn
    assert ("start to ready, s" in drawn) is has_memory
    before = file.read_bytes()
    growth.plot("models", section(*points), file)
    assert file.read_bytes() == before  # so that a plot differs only where numbers do


def test_a_tensor_is_the_same_as_json_and_as_bytes():
    tensors = script("tensors")
    drawn = np.random.default_rng(0).normal(size=(1, 3, 2, 2)).astype(np.float32)
    (as_json, _), (as_bytes, headers) = tensors.as_json(drawn), tensors.as_bytes(drawn)
    values = json.loads(as_json)["inputs"][0]["data"]
    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(as_bytes[:length])["inputs"][0]["parameters"] == {"binary_data_size": drawn.nbytes}
    np.testing.assert_allclose(np.frombuffer(as_bytes[length:], np.float32), values, rtol=1e-6)
