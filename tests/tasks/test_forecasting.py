"""Forecasting with a model that expects the last value again, give or take the root of the horizon; and with the real ones."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from pydantic import ValidationError

from service.errors import InvalidInput, InvalidState, InvalidTimestamp, ManifestInvalid, TooLarge
from service.registry.handle import LoadOptions
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.runtime.drive import drive
from service.runtime.session import OnnxSession
from service.tasks.base import Limits, ModelFolder
from service.tasks.forecasting import Forecasting, ForecastingInput
from service.tasks.terminal import Table
from tests import graphs

MODELS = Path(__file__).resolve().parents[2] / "models"
LEVELS = (0.1, 0.5, 0.9)
POINTS = 8


def last_again(path: Path) -> Path:
    """quantiles = the last value, less and plus the root of the horizon; history of 8 points, a missing last one is 0."""
    make = onnx.helper.make_node
    return graphs.save(
        path,
        [
            make("IsNaN", ["history"], ["missing"]),
            make("Where", ["missing", "nought", "history"], ["known"]),
            make("Slice", ["known", "seven", "eight", "axis"], ["last"]),
            make("Unsqueeze", ["last", "axis"], ["column"]),
            make("Sqrt", ["horizon"], ["root"]),
            make("Cast", ["root"], ["wide"], to=T.DOUBLE),
            make("Unsqueeze", ["wide", "two"], ["half"]),
            make("Mul", ["half", "signs"], ["fan"]),
            make("Add", ["fan", "column"], ["quantiles"]),
        ],
        [("history", T.DOUBLE, ["batch", POINTS]), ("horizon", T.FLOAT, ["batch", "time"])],
        [("quantiles", T.DOUBLE, ["batch", "time", 3])],
        {
            "nought": np.float64(0),
            "seven": np.array([7]),
            "eight": np.array([8]),
            "axis": np.array([1]),
            "two": np.array([2]),
            "signs": np.array([[[-1.0, 0.0, 1.0]]]),
        },
    )


def forecaster(session: OnnxSession, **options: Any) -> Any:
    """A function from a request's fields to the answer."""
    folder = ModelFolder(
        "again", "1", Path("unused"), session.signature, {"levels": LEVELS, **options}, Limits(max_series_points=5_000)
    )
    task = Forecasting(folder)

    def run(values: list[float | None], **fields: Any) -> dict[str, Any]:
        request = ForecastingInput(values=values, **fields)
        return dict(orjson.loads(drive(session, task.steps(request)).to_json()))

    return run


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    return OnnxSession(last_again(tmp_path_factory.mktemp("graph") / "model.onnx"))


@pytest.fixture(scope="module")
def forecast(session: OnnxSession) -> Any:
    return forecaster(session)


# ------------------------------------------------------------------------------------------------------------- answers


def test_every_point_has_a_value_of_each_quantile(forecast: Any) -> None:
    answer = forecast([1, 5], horizon=4)
    assert answer["horizon"] == 4
    assert answer["quantiles"]["0.5"] == [5, 5, 5, 5]
    assert answer["quantiles"]["0.1"] == pytest.approx([4, 5 - math.sqrt(2), 5 - math.sqrt(3), 3])
    assert answer["mean"] == pytest.approx([5, 5, 5, 5])
    assert answer["timestamps"] is None


def test_left_out_twelve_points_and_three_quantiles_are_answered(forecast: Any) -> None:
    answer = forecast([5])
    assert list(answer["quantiles"]) == ["0.1", "0.5", "0.9"]
    assert [len(each) for each in answer["quantiles"].values()] == [12, 12, 12]


def test_the_keys_are_the_numbers_that_were_sent_in_ascending_order(forecast: Any) -> None:
    assert list(forecast([5], quantiles=[0.95, 0.025, 0.00001])["quantiles"]) == ["0.00001", "0.025", "0.95"]


@settings(max_examples=50, deadline=None)
@given(st.sets(st.floats(1e-9, 1 - 1e-9), min_size=1, max_size=99), st.integers(1, 40))
def test_quantiles_never_cross(forecast: Any, levels: set[float], horizon: int) -> None:
    answer = forecast([3, 1], quantiles=list(levels), horizon=horizon)
    assert [float(key) for key in answer["quantiles"]] == sorted(levels)
    for lower, upper in itertools.pairwise(answer["quantiles"].values()):
        assert all(a <= b for a, b in zip(lower, upper, strict=True))


def test_between_two_levels_a_normal_distribution_stays_one(forecast: Any) -> None:
    # ±1 at 0.1 and 0.9 is a deviation of 1 / 1.2816
    assert forecast([0], quantiles=[0.25], horizon=1)["quantiles"]["0.25"] == pytest.approx(
        [-0.6745 / 1.2816], abs=1e-3
    )


def test_a_shorter_horizon_is_the_beginning_of_a_longer_one(forecast: Any) -> None:
    longest = forecast([4, 2], horizon=1000)["quantiles"]["0.9"]
    for horizon in (1, 12, 13, 100, 999):
        assert forecast([4, 2], horizon=horizon)["quantiles"]["0.9"] == longest[:horizon]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"horizon": 0}, "horizon"),
        ({"horizon": 1001}, "horizon"),
        ({"horizon": True}, "horizon"),
        ({"quantiles": []}, "quantiles"),
        ({"quantiles": [0.0]}, "quantiles"),
        ({"quantiles": [1.0]}, "quantiles"),
        ({"quantiles": [0.5, 0.5]}, "0.5 twice"),
        ({"quantiles": [k / 101 for k in range(1, 101)]}, "quantiles"),
        ({"timestamps": [1]}, "timestamps has 1"),
        ({"values": []}, "values is empty"),
        ({"values": [math.nan]}, "finite"),
        ({"frequency": "H"}, "frequency"),
    ],
)
def test_what_cannot_be_asked_is_refused(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        ForecastingInput(**{"values": [1, 2], **fields})


def test_missing_points_count_and_a_series_of_them_alone_is_refused(forecast: Any) -> None:
    assert forecast([5, None], horizon=1)["quantiles"]["0.5"] == [0]  # the toy's answer to a missing last point
    with pytest.raises(InvalidInput, match="No value is known"):
        forecast([None, None])
    with pytest.raises(InvalidInput, match="No value is known"):
        forecast([5, *[None] * POINTS])


def test_a_series_over_the_limit_is_refused(forecast: Any) -> None:
    with pytest.raises(TooLarge):
        forecast([1.0] * 5_001)


def test_numbers_too_large_to_compute_with_are_refused(forecast: Any) -> None:
    with pytest.raises(InvalidInput, match="1e\\+300"):
        forecast([1e301])


def test_prices_must_be_above_nought_and_so_is_every_quantile(session: OnnxSession) -> None:
    price = forecaster(session, positive=True)
    with pytest.raises(InvalidInput, match=r"values\[1\] is 0"):
        price([5, 0])
    tails = price([50], quantiles=[1e-6, 0.999], horizon=3)["quantiles"]
    assert min(tails["0.000001"]) > 0


def test_a_manifest_whose_levels_do_not_fit_the_graph_is_refused(session: OnnxSession) -> None:
    with pytest.raises(ManifestInvalid, match="3 quantiles"):
        forecaster(session, levels=(0.1, 0.2, 0.3, 0.4))
    with pytest.raises(ManifestInvalid, match="ascend"):
        forecaster(session, levels=(0.5, 0.1, 0.9))


# --------------------------------------------------------------------------------------------------------------- state


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=30), st.data())
def test_pieces_are_forecast_as_the_whole(forecast: Any, values: list[float | None], data: st.DataObject) -> None:
    values = [0.5, *values, 7.0]
    whole, state, begin = forecast(values), None, 0
    while begin < len(values):
        end = data.draw(st.integers(begin + 1, len(values)))
        piece = values[begin:end]
        if state is None:
            piece = values[: max(end, 1)]
        answer = (
            forecast(piece, state=state) if any(v is not None for v in values[max(end - POINTS, 0) : end]) else None
        )
        if answer is None:  # a piece that leaves nothing known is refused: send it with the next one
            return
        state, begin = answer["state"], end
    assert {**answer, "state": 0} == {**whole, "state": 0}
    assert answer["state"] == whole["state"]


def test_with_a_state_another_horizon_needs_no_values(forecast: Any) -> None:
    state = forecast([1, 2, 3], horizon=1)["state"]
    assert forecast([], state=state, horizon=5)["quantiles"] == forecast([1, 2, 3], horizon=5)["quantiles"]


def test_a_state_is_small_and_one_of_another_model_is_refused(forecast: Any, session: OnnxSession) -> None:
    state = forecast([float(k) for k in range(50)])["state"]
    assert len(state) < 64 * 1024
    with pytest.raises(InvalidState):
        forecast([1], state=state[:-2] + "AA")
    assert forecast([1], state=state)


# ---------------------------------------------------------------------------------------------------------- timestamps


@pytest.mark.parametrize(
    ("sent", "coming"),
    [
        (["2026-03-01T00:00:00Z", "2026-03-01T01:00:00Z"], ["2026-03-01T02:00:00Z", "2026-03-01T03:00:00Z"]),
        (
            ["2026-03-01T00:00:00+05:30", "2026-03-01T00:15:00+05:30"],
            ["2026-03-01T00:30:00+05:30", "2026-03-01T00:45:00+05:30"],
        ),
        (["2026-03-01 00:00", "2026-03-01 00:05"], ["2026-03-01 00:10", "2026-03-01 00:15"]),
        (["2026-02-27", "2026-02-28"], ["2026-03-01", "2026-03-02"]),
        (["2026-11", "2026-12"], ["2027-01", "2027-02"]),
        (["2026-01-31", "2026-02-28", "2026-03-31"], ["2026-04-30", "2026-05-31"]),
        (["2026-01-30", "2026-02-28", "2026-03-30"], ["2026-04-30", "2026-05-30"]),
        (["2026-04-30", "2026-06-30", "2026-08-31"], ["2026-10-31", "2026-12-31"]),
        (["2026-01-15", "2026-02-15"], ["2026-03-15", "2026-04-15"]),
        (["2025-03-31", "2025-06-30", "2025-09-30"], ["2025-12-31", "2026-03-31"]),
        (["2023-02-28", "2024-02-29", "2025-02-28"], ["2026-02-28", "2027-02-28"]),
        (["2026-11-26", "2026-11-27", "2026-11-30"], ["2026-12-01", "2026-12-02"]),
        (["2026-12-02", "2026-12-03", "2026-12-04"], ["2026-12-05", "2026-12-06"]),
        (
            [
                "2026-11-25",
                "2026-11-26",
                "2026-11-27",
                "2026-11-30",
                "2026-12-01",
                "2026-12-02",
                "2026-12-03",
                "2026-12-04",
            ],
            ["2026-12-07", "2026-12-08"],
        ),
        (
            ["2026-10-24T00:00+02:00", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00"],
            ["2026-10-27T00:00+01:00", "2026-10-28T00:00+01:00"],
        ),
        ([1700000000, 1700000060], [1700000120, 1700000180]),
        ([1700000000.5, 1700000001.0], [1700000001.5, 1700000002.0]),
        ([1700000000000, 1700000060000], [1700000120000, 1700000180000]),
        (["20260301", "20260302"], ["20260303", "20260304"]),
        (
            ["2026-03-01T00:00:00.250Z", "2026-03-01T00:00:00.500Z"],
            ["2026-03-01T00:00:00.750Z", "2026-03-01T00:00:01.000Z"],
        ),
    ],
)
def test_coming_stamps_have_the_form_and_the_step_of_the_request(
    forecast: Any, sent: list[Any], coming: list[Any]
) -> None:
    answer = forecast([float(k) for k in range(len(sent))], timestamps=sent, horizon=2)
    assert answer["timestamps"] == coming


def test_of_one_stamp_no_step_can_be_told(forecast: Any) -> None:
    assert forecast([1], timestamps=["2026-03-01"])["timestamps"] is None


def test_a_hole_is_missing_points(forecast: Any) -> None:
    hours = [f"2026-03-01T{hour:02d}:00Z" for hour in (0, 1, 2, 3, 6)]
    state = forecast([1, 2, 3, 4, 5], timestamps=hours)["state"]
    with_nulls = forecast([1, 2, 3, 4, None, None, 5])
    assert forecast([6], state=state)["quantiles"] == forecast([6], state=with_nulls["state"])["quantiles"]
    # seven hours later all that is known has gone
    with pytest.raises(InvalidInput, match="No value is known"):
        forecast([1, 2, None], timestamps=["2026-03-01T00:00Z", "2026-03-01T01:00Z", "2026-03-01T12:00Z"])


def test_a_stamp_off_the_grid_is_refused_by_its_place(forecast: Any) -> None:
    hours = ["2026-03-01T00:00Z", "2026-03-01T01:00Z", "2026-03-01T02:00Z", "2026-03-01T02:30Z", "2026-03-01T04:00Z"]
    with pytest.raises(InvalidTimestamp, match=r"timestamps\[3\].*1 hour"):
        forecast([1, 2, 3, 4, 5], timestamps=hours)
    with pytest.raises(InvalidTimestamp, match=r"timestamps\[2\].*1 month"):
        forecast([1, 2, 3, 4], timestamps=["2026-01-15", "2026-02-15", "2026-03-16", "2026-04-15"])
    state = forecast([1, 2, 3], timestamps=hours[:3])["state"]
    with pytest.raises(InvalidTimestamp, match=r"timestamps\[0\]"):
        forecast([4], timestamps=hours[3:4], state=state)


def test_a_step_back_is_refused_but_for_the_repeated_hour(forecast: Any) -> None:
    with pytest.raises(InvalidTimestamp, match="earlier"):
        forecast([1, 2, 3], timestamps=["2026-03-01T01:00Z", "2026-03-01T02:00Z", "2026-03-01T01:00Z"])
    half_hours = [
        "2026-10-25T01:00",
        "2026-10-25T01:30",
        "2026-10-25T02:00",
        "2026-10-25T02:30",
        "2026-10-25T02:00",
        "2026-10-25T02:30",
        "2026-10-25T03:00",
    ]
    answer = forecast([1, 2, 3, 4, 5, 6, 7], timestamps=half_hours, horizon=1)
    assert answer["timestamps"] == ["2026-10-25T03:30"]
    hourly = ["2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T02:00", "2026-10-25T03:00"]
    assert forecast([1, 2, 3, 4], timestamps=hourly, horizon=1)["timestamps"] == ["2026-10-25T04:00"]


@pytest.mark.parametrize("step", ["hours", "months", "working days"])
def test_stamped_pieces_are_forecast_as_the_whole(forecast: Any, step: str) -> None:
    stamps = {
        "hours": [1700000000 + 3600 * k for k in (0, 1, 2, 4, 5, 6, 9, 10)],
        "months": ["2026-01-31", "2026-02-28", "2026-03-31", "2026-05-31", "2026-06-30"],
        "working days": ["2026-11-25", "2026-11-26", "2026-11-27", "2026-11-30", "2026-12-02", "2026-12-03"],
    }[step]
    values = [float(k * k) for k in range(len(stamps))]
    whole, state = forecast(values, timestamps=stamps), None
    for value, stamp in zip(values, stamps, strict=True):
        answer = forecast([value], timestamps=[stamp], state=state)
        state = answer["state"]
    assert answer == whole
    assert forecast([], state=state)["timestamps"] == whole["timestamps"]


def test_a_forecast_beyond_the_calendar_is_refused(forecast: Any) -> None:
    with pytest.raises(InvalidInput, match="2261"):
        forecast([1, 2], timestamps=["2025-01-01", "2026-01-01"], horizon=1000)


# ------------------------------------------------------------------------------------------------------------ terminal


def test_a_forecast_is_drawn_and_listed(session: OnnxSession) -> None:
    folder = ModelFolder("again", "1", Path("unused"), session.signature, {"levels": LEVELS})
    request = ForecastingInput(values=[1, None, 3], horizon=2)
    answer = orjson.loads(drive(session, Forecasting(folder).steps(request)).to_json())
    *lines, table = Forecasting(folder).shown(request, answer)
    assert isinstance(table, Table)
    assert table.rows[0] == ("+1", "2", "3", "4", "3")
    assert any("•" in line and "━" in line for line in lines if isinstance(line, str))


# ----------------------------------------------------------------------------------------------------------- the models


def real(name: str) -> Any:
    """A model of the repository, as served."""
    manifest = read_manifest(MODELS / name)
    newest = max((path for path in (MODELS / name).iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    handle = load_version(newest, manifest, Forecasting, LoadOptions())

    def run(values: list[float | None], **fields: Any) -> dict[str, Any]:
        return dict(orjson.loads(handle.predict_now(ForecastingInput(values=values, **fields)).to_json()))

    return run


@pytest.fixture(scope="module")
def any_series() -> Any:
    return real("series-forecaster")


@pytest.fixture(scope="module")
def prices() -> Any:
    return real("stocks-gru")


def seasonal(points: int) -> list[float]:
    """A daily rhythm of hours with noise."""
    t = np.arange(points)
    rng = np.random.default_rng(5)
    return [float(v) for v in 20 + 5 * np.sin(2 * np.pi * t / 24) + rng.normal(0, 0.5, points)]


def numbers(answer: dict[str, Any]) -> np.ndarray:
    return np.array([*answer["quantiles"].values(), answer["mean"]])


@settings(max_examples=25, deadline=None)
@given(st.floats(-6, 6), st.floats(-1e3, 1e3), st.integers(2, 300))
def test_another_scale_and_offset_give_the_same_forecast(
    any_series: Any, power: float, offset: float, points: int
) -> None:
    values, scale = seasonal(points), 10**power
    plain = numbers(any_series(values))
    moved = numbers(any_series([scale * (value + offset) for value in values]))
    assert moved / scale - offset == pytest.approx(plain, abs=2e-3)


def test_a_small_rhythm_on_a_large_offset_is_seen(any_series: Any) -> None:
    plain = numbers(any_series(seasonal(240)))
    assert numbers(any_series([value + 1e9 for value in seasonal(240)])) - 1e9 == pytest.approx(plain, abs=1e-2)


def test_a_clear_rhythm_goes_on(any_series: Any) -> None:
    values = seasonal(24 * 14 + 24)
    median = any_series(values[:-24], horizon=24)["quantiles"]["0.5"]
    assert np.abs(np.array(median) - values[-24:]).mean() < 0.8


@pytest.mark.parametrize("name", ["series-forecaster", "stocks-gru"])
@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [3.0] * 400, [3.0, None, 4.0], [1e-300, 2e-300], [1e250, 2e250]])
def test_few_or_odd_points_are_answered(request: pytest.FixtureRequest, name: str, values: list[float | None]) -> None:
    run = request.getfixturevalue({"series-forecaster": "any_series", "stocks-gru": "prices"}[name])
    found = numbers(run(values, horizon=30))
    assert np.isfinite(found).all()
    assert (found[0] <= found[1]).all()


@pytest.mark.parametrize("name", ["any_series", "prices"])
def test_real_pieces_are_forecast_as_the_whole(request: pytest.FixtureRequest, name: str) -> None:
    run, values = request.getfixturevalue(name), seasonal(1500)
    whole, state = run(values, horizon=30), None
    for begin in range(0, 1500, 500):
        answer = run(values[begin : begin + 500], state=state, horizon=30)
        state = answer["state"]
    assert answer == whole
    assert len(state) <= 64 * 1024


@pytest.mark.parametrize("name", ["any_series", "prices"])
def test_a_real_shorter_forecast_is_the_beginning_of_a_longer_one(request: pytest.FixtureRequest, name: str) -> None:
    run = request.getfixturevalue(name)
    long = numbers(run(seasonal(600), horizon=1000, quantiles=[0.01, 0.3, 0.999]))
    for horizon in (1, 30, 200):
        short = numbers(run(seasonal(600), horizon=horizon, quantiles=[0.01, 0.3, 0.999]))
        assert short == pytest.approx(long[:, :horizon], rel=1e-5)


def test_prices_scale_and_stay_above_nought(prices: Any) -> None:
    rng = np.random.default_rng(1)
    walk = np.exp(np.cumsum(rng.normal(0, 0.03, 500)))
    plain = numbers(prices(list(walk), horizon=1000, quantiles=[0.0001, 0.5, 0.9999]))
    assert (plain > 0).all()
    assert numbers(prices(list(1e6 * walk), horizon=1000, quantiles=[0.0001, 0.5, 0.9999])) == pytest.approx(
        1e6 * plain, rel=1e-4
    )


@pytest.mark.parametrize("name", ["series-forecaster", "stocks-gru"])
def test_a_card_says_what_was_learned_from(name: str) -> None:
    card = (MODELS / name / "card.md").read_text("utf-8")
    assert "sha256" in card
    assert json.dumps(name)[1:-1] in card


# ---------------------------------------------------------------------------------------------------------- influences


def test_a_forecast_leans_on_the_points_without_which_it_would_be_another(forecast: Any) -> None:
    """To this graph only the last value counts; without it, it forecasts 0."""
    answer = forecast([1, 2, None, 4, 5, 6], horizon=3, explain=True)
    moved = {(each["first"], each["last"]): each["change"] for each in answer["influences"]}
    assert moved == {(-1, -1): 6, (-2, -2): 0, (-3, -3): 0, (-5, -5): 0, (-6, -6): 0}
    assert "influences" not in forecast([1, 2], horizon=3)


def test_of_a_single_point_there_is_no_forecast_without_it(forecast: Any) -> None:
    assert forecast([5], explain=True)["influences"] == []


def test_a_long_history_is_divided_into_blocks_as_long_as_each_other() -> None:
    """A yearly pattern is leant on; all known points of the last 1,024 are in one block."""
    run = real("series-forecaster")
    values = [10 + 5 * math.sin(2 * math.pi * n / 12) for n in range(100)]
    answer = run(values, horizon=12, explain=True)
    blocks = [(each["first"], each["last"]) for each in answer["influences"]]
    assert [last - first + 1 for first, last in blocks[:-1]] == [7] * (len(blocks) - 1)
    assert [place for first, last in reversed(blocks) for place in range(first, last + 1)] == list(range(-100, 0))
    assert max(answer["influences"], key=lambda each: each["change"]) == answer["influences"][0]
