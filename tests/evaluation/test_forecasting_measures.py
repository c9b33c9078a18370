"""Measures of forecasts, by mental arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.evaluation.base import Ask, DataMissing, Subject
from service.evaluation.forecasting import (
    DECILES,
    ForecastingEvaluation,
    Group,
    Window,
    quantile_losses,
    random_walk,
    seasonal_naive,
)
from service.graph import Signature

SUBJECT = Subject("again", "1", "forecasting", Signature({}, {}))


class Two(ForecastingEvaluation):
    """One series of a season of two, forecast three points ahead at two origins."""

    def groups(self) -> list[Group]:
        past, future = np.array([1.0, 3.0, 1.0, 4.0]), np.array([1.0, 4.0, 2.0])
        windows = [Window("zigzag", origin, past, future) for origin in (4, 8)]
        return [Group("zigzag", windows, "seasonal naive", 2, (0.0, 2.0))]


def answered(evaluation: ForecastingEvaluation, quantiles: dict[str, list[float]], mean: list[float]) -> list[object]:
    """Hold each conversation, with the same answer."""
    records = []
    for item in evaluation.items():
        talk = item.talk()
        question = next(talk)
        assert isinstance(question, Ask)
        assert question.fields["horizon"] == 3
        with pytest.raises(StopIteration) as ended:
            talk.send({"quantiles": quantiles, "mean": mean})
        records.append(ended.value.value)
    return records


def test_the_loss_of_a_median_is_its_absolute_error() -> None:
    assert quantile_losses(np.array([3.0, 1.0]), np.array([[2.0], [2.0]]), [0.5]) == 2.0


def test_the_last_season_comes_again() -> None:
    assert seasonal_naive(np.array([9.0, 1, 2, 3]), 3, 5).tolist() == [1, 2, 3, 1, 2]


def test_a_random_walk_widens_with_the_root_of_time() -> None:
    fan = random_walk(np.array([-1.0, 0, -1, 0, -1, 0]), 4, [0.5, 0.8413])
    assert fan[:, 0] == pytest.approx([0, 0, 0, 0])
    assert fan[:, 1] == pytest.approx([1, 2**0.5, 3**0.5, 2], rel=1e-3)


def test_a_random_walk_of_prices_stays_above_nought() -> None:
    assert (random_walk(np.array([1.0, 3, 1, 3]), 1000) > 0).all()


def test_figures_are_what_their_names_say() -> None:
    evaluation = Two(Path("unused"), SUBJECT)
    same = {str(level): [1.0, 4.0, 1.0] for level in DECILES}  # as seasonal naive has it
    figures = {figure.name: figure for figure in evaluation.outcome(answered(evaluation, same, [1, 4, 4])).figures}
    # the error is 1 in one of three points; a season ago was half a point away on average
    assert figures["zigzag, 3 points: MASE"].value == pytest.approx((1 / 3) / 0.5)
    assert figures["zigzag, 3 points: skill in weighted quantile loss over seasonal naive"].value == 0
    assert figures["zigzag, 3 points: 80 % band holds"].value == pytest.approx(2 / 3)
    assert figures["zigzag, 3 points: MSE, standardised"].value == pytest.approx(1 / 3)  # a mean off by 2 of 2
    assert figures["zigzag, 3 points: MAE, standardised"].value == pytest.approx(1 / 6)


def test_the_last_fifth_of_files_is_forecast_where_nothing_else_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataMissing):
        ForecastingEvaluation(tmp_path, SUBJECT).items()
    (tmp_path / "a.csv").write_text("value\n" + "\n".join(str(k % 7) for k in range(300)))
    items = ForecastingEvaluation(tmp_path, SUBJECT).items()
    assert [item.name for item in items] == ["a at 240", "a at 264"]
