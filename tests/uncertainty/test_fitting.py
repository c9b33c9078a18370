"""The constants of `[calibration]`: fitted on held-out data, they keep what they promise on new data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.graph import Array
from service.uncertainty.fitting import (
    expected_calibration_error,
    fit_abstain_threshold,
    fit_set_threshold,
    fit_temperature,
)
from service.uncertainty.scores import energy, softmax
from service.uncertainty.table import Calibration


def answers(rng: np.random.Generator, count: int, classes: int = 5, sharpness: float = 1.0) -> tuple[Array, Array]:
    """Logits and labels of a classifier that knows the probabilities exactly, then exaggerates them by `sharpness`."""
    logits = rng.normal(0, 2, (count, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from softmax(logits)
    return logits * sharpness, labels


# --- temperature


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0, 40.0])
def test_the_temperature_undoes_an_exaggeration(sharpness: float) -> None:
    logits, labels = answers(np.random.default_rng(1), 20_000, sharpness=sharpness)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.03)


def test_no_other_temperature_is_likelier() -> None:
    logits, labels = answers(np.random.default_rng(2), 500, sharpness=2.5)

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(logits / temperature)[np.arange(500), labels]).mean())

    best = fit_temperature(logits, labels)
    assert loss(best) <= min(loss(best * factor) for factor in (0.1, 0.9, 0.999, 1.001, 1.1, 10))


def test_the_temperature_by_mental_arithmetic() -> None:
    """Right 3 times in 4 with logits (1, 0): softmax(1/T) = 3/4 at 1/T = log 3."""
    logits = np.array([[1.0, 0.0]] * 4, np.float32)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(1 / np.log(3), rel=1e-6)


def test_a_temperature_makes_confidence_honest() -> None:
    logits, labels = answers(np.random.default_rng(3), 20_000, sharpness=3)
    assert expected_calibration_error(softmax(logits), labels) > 0.1
    assert expected_calibration_error(softmax(logits / fit_temperature(logits, labels)), labels) < 0.01


# --- prediction sets


def test_the_set_threshold_by_mental_arithmetic() -> None:
    """Nine probabilities of the true class, 0.1 to 0.9; ceil(10 · 0.8) = 8 of them reach 0.2."""
    own = np.arange(1, 10) / 10
    assert fit_set_threshold(np.stack([own, 1 - own], axis=1), np.zeros(9, int), 0.8) == pytest.approx(0.2)
    assert fit_set_threshold(np.stack([own, 1 - own], axis=1), np.zeros(9, int), 0.9) == pytest.approx(0.1)


@pytest.mark.parametrize(("coverage", "count"), [(0.8, 20), (0.9, 99), (0.95, 40), (0.99, 300)])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_sets_cover_new_data_as_promised_however_wrong_the_model(coverage: float, count: int, sharpness: float) -> None:
    """Over 2,000 fits, each tried on 50 new rows, the mean coverage is between the theorem's two bounds."""
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(2000):
        logits, labels = answers(rng, count + 50, sharpness=sharpness)
        probabilities = softmax(logits)
        threshold = fit_set_threshold(probabilities[:count], labels[:count], coverage)
        covered.append((probabilities[np.arange(count, count + 50), labels[count:]] >= threshold).mean())
    error = 3 * np.std(covered) / np.sqrt(len(covered))
    assert coverage - error <= np.mean(covered) <= coverage + 1 / (count + 1) + error


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.integers(20, 60), st.integers(0, 99))
def test_more_coverage_never_needs_a_higher_threshold(one: float, other: float, count: int, seed: int) -> None:
    logits, labels = answers(np.random.default_rng(seed), count)
    low, high = (fit_set_threshold(softmax(logits), labels, coverage) for coverage in sorted((one, other)))
    assert high <= low


# --- abstention


def test_the_abstain_threshold_by_mental_arithmetic() -> None:
    """Of 1 to 99, ceil(100 · 0.98) = 98 do not exceed 98, and one does."""
    assert fit_abstain_threshold(np.arange(99, 0, -1), 0.02) == 98
    assert fit_abstain_threshold(np.arange(99, 0, -1), 0.07) == 93  # 100 · (1 - 0.07) is 92.99999999999999 or so


@pytest.mark.parametrize(("rate", "count"), [(0.02, 60), (0.1, 25), (0.5, 7)])
def test_few_inputs_that_are_known_are_turned_away(rate: float, count: int) -> None:
    rng = np.random.default_rng(5)
    abstained = []
    for _ in range(2000):
        novelty = rng.standard_gamma(2, count + 50)
        abstained.append((novelty[count:] > fit_abstain_threshold(novelty[:count], rate)).mean())
    error = 3 * np.std(abstained) / np.sqrt(len(abstained))
    assert rate - 1 / (count + 1) - error <= np.mean(abstained) <= rate + error


# --- energy and calibration error


def test_the_energy_by_mental_arithmetic() -> None:
    """exp(0) + exp(0) = 2; large logits do not overflow."""
    values = energy(np.array([[0, 0], [1000, -1000], [-1000, -1000]], np.float32))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [-np.log(2), -1000, 1000 - np.log(2)], rtol=1e-6)


def test_the_calibration_error_by_mental_arithmetic() -> None:
    """Four rows 90 % sure and half right, six rows 60 % sure and all right: 0.4 · 0.4 + 0.6 · 0.4."""
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 6)
    labels = np.array([0, 0, 1, 1] + [1] * 6)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.4)
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.8 - 0.72)


def test_full_certainty_belongs_to_the_last_bin() -> None:
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


# --- what does not fit is refused

TWO = np.array([[0.5, 0.5], [0.9, 0.1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_temperature(TWO, np.array([0, 1, 1])), r"logits \(2, 2\) and labels \(3,\) should be"),
        (lambda: fit_temperature(TWO[:0], np.array([], int)), "N above 0"),
        (lambda: fit_temperature(TWO[0], np.array([0, 1])), r"should be \(N, classes\)"),
        (lambda: fit_temperature(TWO, np.array([0, 2])), r"whole numbers 0\.\.1"),
        (lambda: fit_temperature(TWO, np.array([0.0, 1.0])), r"whole numbers 0\.\.1"),
        (lambda: fit_temperature(TWO * np.nan, np.array([0, 1])), "every number must be finite"),
        (lambda: fit_temperature(TWO, np.array([0, 0])), "no finite temperature is best"),
        (lambda: fit_temperature(TWO, np.array([0, 1])), "no more than chance"),
        (lambda: fit_set_threshold(TWO * 3, np.array([0, 1]), 0.5), "apply softmax"),
        (lambda: fit_set_threshold(TWO, np.array([0, 1]), 0.99), "coverage 0.99 needs at least 99 held-out examples; there are 2"),
        (lambda: fit_set_threshold(TWO, np.array([0, 1]), 1.0), "above 0 and below 1"),
        (lambda: fit_abstain_threshold(np.arange(48), 0.02), "rate 0.02 needs at least 49 held-out examples; there are 48"),
        (lambda: fit_abstain_threshold(np.arange(9), 0), "above 0 and below 1"),
        (lambda: fit_abstain_threshold(TWO, 0.1), "one finite number for each input"),
        (lambda: fit_abstain_threshold(np.array([np.inf] * 9), 0.5), "one finite number for each input"),
        (lambda: expected_calibration_error(TWO, np.array([0, 1]), bins=0), "use at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the script of models/README.md


def test_the_script_for_your_own_model_prints_a_table_that_is_served(tmp_path: Path) -> None:
    """On logits that are twice too sure; the table then keeps its two promises on as many new rows."""
    text = (Path(__file__).parents[2] / "models" / "README.md").read_text()
    (script,) = re.findall(r"```python\n(import numpy.*?)```", text, re.DOTALL)
    logits, labels = answers(np.random.default_rng(6), 4000, sharpness=2)
    np.save(tmp_path / "logits.npy", logits.astype(np.float32)[:2000])
    np.save(tmp_path / "labels.npy", labels[:2000])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    table = Calibration.model_validate(tomllib.loads(printed)["calibration"])
    new, own = logits[2000:] / fit_temperature(logits[:2000], labels[:2000]), labels[2000:]
    covered = softmax(new)[np.arange(2000), own] >= table.set_threshold
    assert covered.mean() == pytest.approx(0.99, abs=0.01)
    assert (energy(new) > table.abstain_above).mean() == pytest.approx(0.02, abs=0.015)
