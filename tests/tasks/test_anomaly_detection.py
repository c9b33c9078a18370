"""Anomaly detection with the detector that expects each point to equal the one before, give or take 1."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import InvalidInput, InvalidState, InvalidTimestamp, TooLarge
from service.runtime.drive import drive
from service.runtime.session import OnnxSession
from service.tasks import anomaly_detection
from service.tasks.anomaly_detection import AnomalyDetection, AnomalyDetectionInput
from service.tasks.base import Limits, ModelFolder
from tests import graphs


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    return OnnxSession(graphs.last_value(tmp_path_factory.mktemp("graph") / "model.onnx"))


@pytest.fixture(scope="module")
def detect(session: OnnxSession) -> Any:
    return detector(session)


@pytest.fixture(scope="module")
def detect_sevens(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same detector, which finds each 7 novel (0.75) wherever it comes."""
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    return detector(OnnxSession(graphs.last_value(file, novelty=True)))


def detector(session: OnnxSession) -> Any:
    task = AnomalyDetection(
        ModelFolder("steps", "1", Path("unused"), session.signature, {}, Limits(max_series_points=50_000))
    )

    def run(values: list[float | None], **fields: Any) -> dict[str, Any]:
        request = AnomalyDetectionInput(values=values, **fields)
        return dict(orjson.loads(drive(session, task.steps(request)).to_json()))

    return run


def test_a_jump_by_nine_bands_is_an_anomaly_with_score_nine_tenths(detect: Any) -> None:
    answer = detect([0, 0, 9, 9])
    assert answer["anomalies"] == [2]
    assert answer["scores"] == [0, 0, 0.9, 0]
    assert answer["is_anomaly"] == [False, False, True, False]
    assert answer["expected"] == [0, 0, 0, 9]
    assert (answer["lower"], answer["upper"]) == ([-1, -1, -1, 8], [1, 1, 1, 10])


def test_a_point_on_the_edge_of_the_band_has_the_score_of_the_threshold(detect: Any) -> None:
    answer = detect([0, 1])
    assert answer["scores"][1] == 0.5
    assert answer["anomalies"] == [1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_the_band_is_where_points_are_not_anomalous(detect: Any, values: list[float], sensitivity: float) -> None:
    answer = detect(values, sensitivity=sensitivity)
    for value, low, high, flagged in zip(values, answer["lower"], answer["upper"], answer["is_anomaly"], strict=True):
        if abs(value - low) > 1e-6 and abs(value - high) > 1e-6:  # on the edge itself rounding decides
            assert flagged == (not low < value < high)


def test_a_novel_point_is_an_anomaly_inside_the_band_too(detect_sevens: Any) -> None:
    answer = detect_sevens([7, 7, 7, 6.5])
    assert answer["scores"][1:3] == [0.75, 0.75]
    assert answer["is_anomaly"][1:] == [True, True, False]
    assert answer["lower"][1] < 7 < answer["upper"][1]


def test_the_larger_of_surprise_and_novelty_is_the_score(detect_sevens: Any) -> None:
    assert detect_sevens([7, 6, 7, 16])["scores"][1:] == [0.5, 0.75, 0.9]
    assert detect_sevens([-2, 7])["scores"][1] == 0.9


def test_novelty_obeys_the_sensitivity(detect_sevens: Any) -> None:
    assert detect_sevens([7, 7], sensitivity=0.25)["is_anomaly"][1]
    assert not detect_sevens([7, 7], sensitivity=0.2)["is_anomaly"][1]


def test_at_sensitivity_nought_nothing_and_at_one_everything_is_anomalous(detect: Any) -> None:
    assert detect([0, 1e9], sensitivity=0)["anomalies"] == []
    assert detect([0, 1e9], sensitivity=0)["upper"] == [None, None]
    assert detect([0, 0], sensitivity=1)["anomalies"] == [0, 1]


def test_more_sensitivity_never_finds_less(detect: Any) -> None:
    series = [0, 1, 3, 6, 10, 15]
    found = [set(detect(series, sensitivity=s)["anomalies"]) for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert all(fewer <= more for fewer, more in pairwise(found))


def test_a_missing_point_is_never_anomalous(detect_age: Any) -> None:
    answer = detect_age([0, None], sensitivity=1)
    assert answer["is_anomaly"] == [True, False]
    assert answer["scores"][1] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(5, 9), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_outside_the_band_a_point_is_anomalous_whatever_its_novelty(
    detect_sevens: Any, values: list[int], sensitivity: float
) -> None:
    answer = detect_sevens(values, sensitivity=sensitivity)
    for value, low, high, flagged in zip(values, answer["lower"], answer["upper"], answer["is_anomaly"], strict=True):
        assert flagged or low - 1e-6 <= value <= high + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40), st.data())
def test_a_series_in_pieces_gives_the_same_as_whole(detect: Any, values: list[int], data: Any) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    whole, head = detect(values), detect(values[:cut])
    tail = detect(values[cut:], state=head["state"])
    for field in ("scores", "expected", "lower", "upper", "is_anomaly"):
        np.testing.assert_allclose(head[field] + tail[field], whole[field], atol=1e-4)
    assert tail["state"] == whole["state"]


def test_a_long_series_runs_in_chunks_and_gives_the_same(detect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(n * n % 17) for n in range(300)]
    whole = detect(values)
    monkeypatch.setattr(anomaly_detection, "CHUNK", 7)
    assert detect(values) == whole


def test_a_long_series_keeps_its_novelties(detect_sevens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly_detection, "CHUNK", 4)
    assert detect_sevens([7.0] * 10)["scores"][1:] == [0.75] * 9


def test_a_series_over_the_limit_is_refused(detect: Any) -> None:
    with pytest.raises(TooLarge, match="50,001 points, more than the 50,000"):
        detect([0.0] * 50_001)


def test_numbers_too_large_to_subtract_are_refused(detect: Any) -> None:
    with pytest.raises(InvalidInput, match="beyond"):
        detect([0, 1e301])


def test_a_state_of_another_model_is_refused(detect: Any) -> None:
    from service import state

    foreign = state.pack("other", "1", state.State({"state": np.zeros(1, np.float32)}))
    with pytest.raises(InvalidState, match="other@1"):
        detect([1], state=foreign)
    misshapen = state.pack("steps", "1", state.State({"state": np.zeros(2, np.float32)}))
    with pytest.raises(InvalidState, match="does not fit"):
        detect([1], state=misshapen)


@pytest.mark.parametrize(
    "timestamps",
    [
        [1, 2.0, 3.1],
        ["2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z", "2026-01-01T00:10:00+00:00"],
        ["2026-01-01T00:00:00", "2026-01-01T00:05:00", "2026-01-01 00:10:00"],
        ["20260101T000000Z", "2026-01-01T01", "2026-W01-4T02"],
        [1_767_225_600_000, 1_767_225_600_000, 1_767_225_900_000],
    ],
)
def test_timestamps_may_be_unix_times_or_iso_8601(detect: Any, timestamps: list[Any]) -> None:
    assert detect([1, 2, 3], timestamps=timestamps)["scores"] == detect([1, 2, 3])["scores"]


@pytest.mark.parametrize(
    ("timestamps", "index", "problem"),
    [
        ([1, 3, 2], 2, "2 is earlier than timestamps[1] = 3; send the points in order of time"),
        (
            ["2026-01-01T01:00:00+01:00", "2025-12-31T23:59:59Z", "2026-01-02T00:00:00Z"],
            1,
            "2025-12-31T23:59:59Z is earlier than timestamps[0] = 2026-01-01T01:00:00+01:00; "
            "send the points in order of time",
        ),
        (["yesterday", "today", "now"], 0, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds"),
        ([True, 2, 3], 0, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds"),
        ([1, 2, None], 2, "send ISO 8601 such as 2024-01-31T13:00:00Z, or Unix seconds"),
        ([1, 2, 1e300], 2, "send a time between the years 1678 and 2261"),
    ],
)
def test_a_stamp_that_does_not_fit_is_named_once(detect: Any, timestamps: list[Any], index: int, problem: str) -> None:
    with pytest.raises(InvalidTimestamp) as caught:
        detect([1, 2, 3], timestamps=timestamps)
    assert str(caught.value) == f"timestamps[{index}]: {problem}."
    assert caught.value.problems == [{"loc": ["body", "timestamps", index], "msg": problem}]


def test_there_is_a_stamp_for_each_value() -> None:
    with pytest.raises(ValidationError, match="timestamps has 2 entries, values has 3"):
        AnomalyDetectionInput(values=[1, 2, 3], timestamps=[1, 2])


@pytest.fixture(scope="module")
def detect_age(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A detector that expects each point to be as many as came before it, missing ones included."""
    return detector(OnnxSession(graphs.age(tmp_path_factory.mktemp("graph") / "model.onnx")))


HOLE = [0, 60, 120, 420, 480]
"""Unix seconds on a grid of minutes, of which four are missing."""


def test_a_hole_in_time_is_missing_points_for_the_model(detect_age: Any) -> None:
    answer = detect_age([9, 9, 9, 9, 9], timestamps=HOLE)
    assert answer["expected"] == [None, 1, 2, 7, 8]
    assert all(len(answer[field]) == 5 for field in ("lower", "upper", "scores", "is_anomaly"))


def test_what_is_in_a_hole_is_not_answered_but_found_by_its_place_in_values(detect_age: Any) -> None:
    answer = detect_age([0, 1, 2, 9, 8], timestamps=HOLE)
    assert answer["anomalies"] == [3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 60, 60, 60, 180, 600]), min_size=1, max_size=30), st.data())
def test_a_stream_with_holes_in_pieces_gives_the_same_as_whole(detect_age: Any, steps: list[int], data: Any) -> None:
    stamps = np.cumsum([0, *steps]).tolist()
    values = [0.0] * len(stamps)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stamps) - 1), max_size=5)))
    state, expected = None, []
    for start, end in zip([0, *cuts], [*cuts, len(stamps)], strict=True):
        answer = detect_age(values[start:end], timestamps=stamps[start:end], state=state)
        state, expected = answer["state"], expected + answer["expected"]
    whole = detect_age(values, timestamps=stamps)
    assert expected == whole["expected"]
    assert state == whole["state"]


def test_a_step_back_between_two_requests_names_both_stamps(detect: Any) -> None:
    state = detect([1, 2], timestamps=["2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"])["state"]
    with pytest.raises(InvalidTimestamp) as caught:
        detect([3], timestamps=["2026-01-01T00:30:00Z"], state=state)
    assert str(caught.value) == (
        "timestamps[0]: 2026-01-01T00:30:00Z is earlier than the last of the stream so far, 2026-01-01T01:00:00Z; "
        "send the points in order of time."
    )


def test_stamps_may_begin_and_end_in_the_middle_of_a_stream(detect_age: Any) -> None:
    first = detect_age([0, 0])
    second = detect_age([0, 0, 0], timestamps=[0, 10, 20], state=first["state"])
    third = detect_age([0], state=second["state"])
    fourth = detect_age([0, 0], timestamps=[500, 530], state=third["state"])
    assert [*second["expected"], *third["expected"], *fourth["expected"]] == [2, 3, 4, 5, 6, 9]


def test_a_token_with_a_made_up_grid_is_refused(detect: Any) -> None:
    from service import state

    token = state.pack("steps", "1", state.State({"state": np.zeros(1, np.float32)}, {"grid": {"last": "noon"}}))
    with pytest.raises(InvalidState, match="does not fit this model"):
        detect([1], state=token)


def test_after_a_graph_that_expects_no_number_a_point_has_a_score_all_the_same(detect: Any) -> None:
    """This one expects what came before, and that was missing."""
    answer = detect([1.0, None, 100.0])
    assert answer["expected"][2] is None
    assert (answer["lower"][2], answer["upper"][2]) == (None, None)
    assert (answer["scores"][2], answer["is_anomaly"][2]) == (0, False)


def test_what_the_model_expects_is_null_where_it_cannot_judge(detect_age: Any) -> None:
    answer = detect_age([4, 4])
    assert (answer["expected"], answer["lower"], answer["upper"]) == ([None, 1], [None, 0], [None, 2])
    assert answer["scores"] == [0, 0.75]


# What the detector answers to 0, 0, 9, 9.5, 9.5 is scores of 0, 0, 0.9, 1/3, 0.
@pytest.mark.parametrize(
    ("expected", "sensitivity", "alike"),
    [
        ({"anomalies": [2]}, 0.5, True),
        ({"anomalies": []}, 0.5, False),
        ({"anomalies": [2, 3]}, 0.5, False),
        ({"anomalies": [2, 3], "is_anomaly": [False, False, True, True, False]}, 0.666, True),  # beside the threshold
        ({"anomalies": [2], "is_anomaly": [False, False, True, False, False]}, 0.667, True),
        ({"anomalies": [3]}, 0.666, False),
        ({"is_anomaly": [True, False, True, True, False]}, 0.666, False),
        ({"anomalies": [2, 3], "scores": [0, 0, 0.9, 0.4, 0]}, 0.666, False),
        ({"is_anomaly": [False, False, True]}, 0.666, False),
    ],
)
def test_an_answer_agrees_with_others_that_differ_in_points_beside_the_threshold(
    session: OnnxSession, expected: dict[str, Any], sensitivity: float, alike: bool
) -> None:
    task = AnomalyDetection(ModelFolder("steps", "1", Path("unused"), session.signature))
    request = AnomalyDetectionInput(values=[0, 0, 9, 9.5, 9.5], sensitivity=sensitivity)
    answer = orjson.loads(drive(session, task.steps(task.widened(request))).to_json())
    assert (task.difference(request, expected, answer, 0.002) is None) is alike


def test_a_score_is_the_larger_of_its_causes(detect_sevens: Any, detect: Any) -> None:
    """A seven is new to this model, and a jump by nine bands is an error."""
    values = [0, 0.5, None, 9, 9, 7, 7]
    for ask in (detect, detect_sevens):
        answer = ask(values, explain=True)
        causes = answer["causes"]
        assert answer["scores"] == [max(pair) for pair in zip(causes["error"], causes["novelty"], strict=True)]
        assert causes["error"][2] == causes["novelty"][2] == 0
        assert "causes" not in ask(values)
    assert any(causes["novelty"])
