"""The NAB scorer, rule by rule, on windows small enough for mental arithmetic.

The series are 40 rows long, so probation is 6 rows (15 %). A detection at the left edge of a window is worth exactly 1, a
false alarm before any window exactly -fp.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from service.evaluation import load_script

nab = load_script(Path(__file__).resolve().parents[1] / "benchmarks" / "nab.py")
STANDARD, LOW_FP, LOW_FN = nab.PROFILES
ROWS = 40
WINDOW = ((20, 29),)
"""Ten rows: 20 to 29, both included."""


def fires_at(*rows: int, length: int = ROWS) -> np.ndarray:
    """The scores of a detector that is sure of these rows and calm elsewhere."""
    scores = np.zeros(length)
    scores[list(rows)] = 1.0
    return scores


def normalised(
    scores: np.ndarray, windows: tuple[tuple[int, int], ...] = WINDOW, profile=STANDARD, threshold=0.5
) -> float:
    return nab.evaluate([(scores, windows)], profile, threshold).normalised


def raw(scores: np.ndarray, windows: tuple[tuple[int, int], ...] = WINDOW, profile=STANDARD, threshold=0.5) -> float:
    return nab.evaluate([(scores, windows)], profile, threshold).raw


# ------------------------------------------------------------------------------------------------------- the two ends


@pytest.mark.parametrize("profile", nab.PROFILES, ids=lambda p: p.name)
def test_a_perfect_detector_scores_100(profile):
    """It fires at the first row of each window and nowhere else."""
    assert normalised(fires_at(20), profile=profile) == pytest.approx(100)


@pytest.mark.parametrize("profile", nab.PROFILES, ids=lambda p: p.name)
def test_a_silent_detector_scores_0(profile):
    assert normalised(fires_at(), profile=profile) == pytest.approx(0)


@pytest.mark.parametrize(("profile", "cost"), [(STANDARD, -1), (LOW_FP, -1), (LOW_FN, -2)], ids=lambda p: str(p))
def test_a_missed_window_costs_fn(profile, cost):
    assert raw(fires_at(), profile=profile) == cost


# --------------------------------------------------------------------------------------------------- inside a window


def test_a_late_detection_earns_less_than_an_early_one():
    by_row = [raw(fires_at(row)) for row in range(20, 30)]
    assert by_row[0] == pytest.approx(1)
    assert by_row == sorted(by_row, reverse=True)
    assert by_row[-1] > 0, "even the last row of a window is better than a miss"


def test_a_detection_half_way_is_worth_85_percent():
    """Row 25 of 20..29: position -(29 - 25 + 1) / 10 = -0.5, where the sigmoid is 0.84828; the left edge has 0.98661."""
    assert raw(fires_at(25)) == pytest.approx(0.84828 / 0.98661, abs=1e-4)


def test_only_the_first_detection_in_a_window_counts():
    assert raw(fires_at(22, 23, 24, 29)) == raw(fires_at(22))


def test_each_window_is_counted_for_itself():
    """One of two windows found at its left edge, one missed: 1 - 1 = 0, half of the way from -2 to 2."""
    two = ((10, 14), (30, 34))
    assert raw(fires_at(10), two) == pytest.approx(0)
    assert normalised(fires_at(10), two) == pytest.approx(50)


# -------------------------------------------------------------------------------------------------- outside the windows


@pytest.mark.parametrize(("profile", "fp"), [(STANDARD, 0.11), (LOW_FP, 0.22), (LOW_FN, 0.11)], ids=lambda p: str(p))
def test_a_false_alarm_before_any_window_costs_its_full_weight(profile, fp):
    assert raw(fires_at(10, 20), profile=profile) == pytest.approx(1 - fp)


def test_every_false_alarm_is_paid_for():
    assert raw(fires_at(10, 11, 12, 20)) == pytest.approx(1 - 3 * 0.11)


def test_a_false_alarm_right_after_a_window_costs_little_and_far_behind_it_all():
    """Distance is counted in widths less one row: row 38 lies (38 - 29) / 9 = 1 width behind, where the sigmoid is -0.98661."""
    assert raw(fires_at(20, 30)) > 1 - 0.11 * 0.3
    assert raw(fires_at(20, 38)) == pytest.approx(1 - 0.11 * 0.98661, abs=1e-5)
    assert raw(fires_at(50, 199, length=200), ((50, 59),)) == pytest.approx(1 - 0.11)


def test_the_sigmoid_is_flat_from_three_widths_on():
    assert nab.scaled_sigmoid([3.0, 4.0, 1e6]).tolist() == [-1, -1, -1]
    assert nab.scaled_sigmoid(0.0) == 0


def test_a_series_without_windows_can_only_lose():
    assert raw(fires_at(10), windows=()) == pytest.approx(-0.11)


# ------------------------------------------------------------------------------------------------------------ probation


def test_probation_is_15_percent_of_the_rows_and_at_most_750():
    assert [nab.probation_rows(n) for n in (40, 1_000, 5_000, 100_000)] == [6, 150, 750, 750]


def test_alarms_in_probation_are_ignored():
    assert raw(fires_at(0, 1, 5, 20)) == raw(fires_at(20))
    assert raw(fires_at(6, 20)) == pytest.approx(1 - 0.11), "row 6 is the first that counts"


# ------------------------------------------------------------------------------------------------------------ threshold


def test_a_row_fires_when_it_reaches_the_threshold():
    scores = np.where(np.arange(ROWS) == 20, 0.7, 0.0)
    assert raw(scores, threshold=0.7) == pytest.approx(1)
    assert raw(scores, threshold=0.7000001) == -1


def test_the_best_threshold_is_one_for_the_whole_corpus():
    """Lowering it to 0.5 finds the second series' window (+2) for one false alarm in the first (-0.11)."""
    first, second = fires_at(20), np.zeros(ROWS)
    first[10], second[20] = 0.5, 0.5
    found = nab.evaluate([(first, WINDOW), (second, WINDOW)], STANDARD)
    assert found.threshold == 0.5
    assert found.raw == pytest.approx(2 - 0.11)
    assert (found.detected, found.windows, found.false_positives) == (2, 2, 1)


def test_the_best_threshold_of_a_hopeless_detector_is_silence():
    found = nab.evaluate([(fires_at(10, 11, 12), ())], STANDARD)
    assert (found.threshold, found.raw) == (np.inf, 0)


def test_ties_fire_together():
    """A threshold cannot admit one of two equal scores: the false alarm comes with the detection."""
    found = nab.evaluate([(fires_at(10, 20), WINDOW)], STANDARD)
    assert found.raw == pytest.approx(1 - 0.11)


def test_the_best_threshold_agrees_with_trying_them_all():
    rng = np.random.default_rng(0)
    corpus = [(np.round(rng.random(200), 2), ((60, 79), (120, 139))) for _ in range(3)]
    for profile in nab.PROFILES:
        tried = max(nab.evaluate(corpus, profile, t).raw for t in np.linspace(0, 1.01, 102).round(2))
        assert nab.evaluate(corpus, profile).raw == pytest.approx(tried)


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A corpus of one series: 40 rows, five minutes apart, one window."""
    times = [f"2020-01-01 {m // 12:02d}:{m % 12 * 5:02d}:00" for m in range(ROWS)]
    rows = "\n".join(f"{t},{v}" for t, v in zip(times, fires_at(20), strict=True))
    with zipfile.ZipFile(tmp_path / "nab.zip", "w") as z:
        z.writestr("data/tiny/spike.csv", "timestamp,value\n" + rows)
        window = [[times[20] + ".000000", times[29] + ".000000"]]
        z.writestr("labels/combined_windows.json", json.dumps({"tiny/spike.csv": window}))
    np.savez(tmp_path / "scores.npz", **{"tiny__spike.csv": fires_at(21)})
    return tmp_path


def test_the_command_line_prints_one_json_document(corpus_folder, capsys):
    code = nab.main(["--data", str(corpus_folder), "--scores", str(corpus_folder / "scores.npz"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["corpus"] == {"series": 1, "rows": ROWS}
    assert document["profiles"]["standard"]["raw"] == pytest.approx(raw(fires_at(21)))
    assert document["groups"]["tiny"]["standard"]["detected"] == 1


def test_the_command_line_prints_the_three_profiles_as_a_table(corpus_folder, capsys):
    nab.main(["--data", str(corpus_folder), "--scores", str(corpus_folder / "scores.npz"), "--threshold", "0.5"])
    table = capsys.readouterr().out
    for profile in nab.PROFILES:
        assert profile.name in table


def test_scores_of_the_wrong_length_are_refused(corpus_folder, tmp_path):
    np.savez(tmp_path / "short.npz", **{"tiny__spike.csv": np.zeros(3)})
    with pytest.raises(SystemExit, match="40 values, but 3 scores"):
        nab.main(["--data", str(corpus_folder), "--scores", str(tmp_path / "short.npz")])


# -------------------------------------------------------------------------------------------------- confidence interval


def test_series_that_fare_alike_leave_no_doubt():
    scored = [(fires_at(20), WINDOW)] * 5
    assert nab.confidence_interval(scored, STANDARD, 0.5) == (100.0, 100.0)


def test_the_interval_spans_the_draws_of_two_series():
    """One perfect and one silent series: a draw of two is 0, 50 or 100, and each end comes once in four."""
    scored = [(fires_at(20), WINDOW), (fires_at(), WINDOW)]
    assert nab.confidence_interval(scored, STANDARD, 0.5) == (0.0, 100.0)
    assert nab.confidence_interval(scored, STANDARD, 0.5, level=0.3) == (50.0, 50.0)


def test_the_score_lies_in_its_interval():
    rng = np.random.default_rng(0)
    scored = [(rng.random(ROWS), WINDOW) for _ in range(30)]
    for profile in nab.PROFILES:
        found = nab.evaluate(scored, profile)
        low, high = nab.confidence_interval(scored, profile, found.threshold)
        assert low < found.normalised < high


# -------------------------------------------------------------------------------------------------- precision and recall


def labelled(*points: int) -> np.ndarray:
    marks = np.zeros(ROWS, dtype=bool)
    marks[list(points)] = True
    return marks


def test_an_alarm_in_time_finds_the_whole_incident():
    incident = labelled(*range(20, 30))
    thresholds, precision, recall = nab.precision_recall([(fires_at(22), incident)], delay=2)
    assert (thresholds[0], precision[0], recall[0]) == (1.0, 1.0, 1.0)


def test_an_alarm_too_late_finds_nothing_and_is_no_false_alarm():
    incident = labelled(*range(20, 30))
    thresholds, precision, recall = nab.precision_recall([(fires_at(5, 23), incident)], delay=2)
    assert (thresholds[0], precision[0], recall[0]) == (1.0, 0.0, 0.0)


def test_each_alarm_outside_costs_precision_by_its_points():
    incident = labelled(*range(20, 29))  # nine points found, one false alarm
    _, precision, recall = nab.precision_recall([(fires_at(20, 5), incident)])
    assert (precision[0], recall[0]) == (0.9, 1.0)


def test_recall_never_falls_with_the_threshold_and_ends_at_one():
    rng = np.random.default_rng(1)
    scored = [(rng.random(ROWS), rng.random(ROWS) < 0.2) for _ in range(5)]
    thresholds, precision, recall = nab.precision_recall(scored)
    assert (np.diff(thresholds) < 0).all()
    assert (np.diff(recall) >= 0).all()
    assert recall[-1] == 1.0
    assert ((precision >= 0) & (precision <= 1)).all()
