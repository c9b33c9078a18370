"""Anomaly detection: what is found, what is alarmed in vain, and how much of the normal the band holds.

Without an `evaluate.py`, series are read from `DIR/*.csv`: a column `value` (empty: missing) and a column `label` or
`anomaly` (0 or 1) for each point. They are judged at the default sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.evaluation.base import (
    Answer,
    Ask,
    Conversation,
    DataMissing,
    Evaluation,
    EvaluationFailed,
    Figure,
    Item,
    Outcome,
    Plot,
    Question,
    spread_evenly,
)
from service.evaluation.statistics import (
    Floats,
    bootstrap_sums,
    composite_curve,
    ratio,
)
from service.tables import read_table

SENSITIVITY = 0.5
"""As a request has it that does not say."""

PIECE_POINTS = 20_000
"""A longer series is sent in pieces (points)."""

EXAMPLES = 3
"""Series that are drawn (count)."""

EXAMPLE_POINTS = 1_500
"""Points of a series that are drawn, around its first labelled ones (count)."""


class Labelled(NamedTuple):
    """The points of a series.

    Attributes:
        values: float64 (points,), NaN where missing.
        labels: bool (points,): anomalous.
        counted: bool (points,): what is scored; a detector may need the first points to learn the series.
    """

    values: Floats
    labels: NDArray[np.bool_]
    counted: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Series:
    """A labelled series; `read` gets its points when they are needed."""

    name: str
    read: Callable[[], Labelled]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the model said about one series.

    Attributes:
        name: of the series.
        labels: bool (points,).
        counted: bool (points,).
        scores: float64 (points,).
        alarms: bool (points,).
        inside: points that lie in the band, of those counted which have one and are not labelled (count).
        banded: how many those are (count).
        drawn: values, lower and upper edge, for series that are drawn.
    """

    name: str
    labels: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    scores: Floats
    alarms: NDArray[np.bool_]
    inside: int
    banded: int
    drawn: tuple[Floats, Floats, Floats] | None = None

    @property
    def stretches(self) -> list[slice]:
        """Runs of labelled points that are counted."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.labels & self.counted, [False]]).astype(np.int8)))
        return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


class AnomalyDetectionEvaluation(Evaluation):
    """Labelled series, each judged from its first point to its last. A model's own evaluation overrides `series`."""

    title = "Labelled series"
    item = "point of a stream"

    def series(self) -> Sequence[Series]:
        """All of them.

        Raises:
            DataMissing: there are none.
        """
        found = sorted(self.data.glob("*.csv"))
        if not found:
            raise DataMissing(
                self.data,
                "series (DIR/*.csv with the columns value and label)",
                "Write each series to a CSV file: a first line `value,label`, a line for each point, label 0 or 1.",
            )
        return [Series(path.stem, partial(read_labelled, path)) for path in found]

    def items(self) -> Sequence[Item]:
        series = self.few(self.series())
        drawn = set(spread_evenly(range(len(series)), EXAMPLES))
        return [Item(one.name, partial(self._judge, one, n in drawn)) for n, one in enumerate(series)]

    @staticmethod
    def _judge(series: Series, is_drawn: bool) -> Generator[Question, Answer, Judged]:
        values, labels, counted = series.read()
        counted = counted & np.isfinite(values)  # a missing point cannot alarm
        parts: dict[str, list[Floats]] = {"scores": [], "lower": [], "upper": [], "is_anomaly": []}
        state = None
        for begin in range(0, len(values), PIECE_POINTS):
            piece = values[begin : begin + PIECE_POINTS]
            points = [None if np.isnan(value) else value for value in piece.tolist()]
            answer = yield Ask({"values": points, "sensitivity": SENSITIVITY, "state": state})
            state = answer["state"]
            for name, part in parts.items():
                part.append(np.array(answer[name], np.float64))  # null becomes NaN
        scores, lower, upper, alarms = (np.concatenate(part) for part in parts.values())
        with np.errstate(invalid="ignore"):
            banded = counted & ~labels & np.isfinite(lower) & np.isfinite(upper)
            inside = banded & (values >= lower) & (values <= upper)
        return Judged(
            series.name,
            labels,
            counted,
            scores,
            alarms.astype(bool),
            int(inside.sum()),
            int(banded.sum()),
            (values, lower, upper) if is_drawn else None,
        )

    def timed(self) -> Conversation:
        """One point with the state of those before it."""
        values = self.series()[0].read().values
        points = [float(value) for value in values[np.isfinite(values)][:100]]
        answer = yield Ask({"values": points})
        yield Ask({"values": points[-1:], "state": answer["state"]})
        return None

    def outcome(self, records: Sequence[Judged]) -> Outcome:
        return Outcome(self.detection(records), (), self.plots(records), self.notes())

    def detection(self, records: Sequence[Judged]) -> list[Figure]:
        """Alarms, labelled stretches, and points."""
        # true alarms, false alarms, missed points, normal points; stretches found, stretches
        counts = np.array([(*_confusion(record), *_found(record)) for record in records], float)
        total = counts.sum(axis=0)
        alarms, labelled = int(total[0] + total[1]), int(total[0] + total[2])
        false = np.stack([1000 * counts[:, 1], counts[:, 3]], axis=1)
        band = np.array([(record.inside, record.banded) for record in records], float)
        figures = [
            _figure("precision of alarms", counts, _precision, alarms, "alarms"),
            _figure("recall of labelled stretches", counts, _event_recall, int(total[5]), "stretches"),
            _figure("composite F1 of these", counts, _composite, int(total[5]), "stretches"),
            _figure("recall, point by point", counts, _recall, labelled, "labelled points"),
            _figure("F1, point by point", counts, _f1, labelled, "labelled points"),
            _figure("false alarms per 1,000 normal points", false, ratio, int(total[3]), "normal points", ".2f"),
        ]
        if band[:, 1].any():
            n = int(band[:, 1].sum())
            figures.append(_figure("normal points inside the band", band, ratio, n, "normal points", ".2%"))
        return figures

    def plots(self, records: Sequence[Judged]) -> list[Plot]:
        """Precision and recall at every threshold, and a few series."""
        scores = np.concatenate([record.scores[record.counted] for record in records])
        labels = np.concatenate([record.labels[record.counted] for record in records])
        events = np.array([record.scores[part].max() for record in records for part in record.stretches])
        plots = []
        if len(events):
            precision, recall = composite_curve(scores, labels, events)
            total = np.sum([(*_confusion(record), *_found(record)) for record in records], axis=0).astype(float)
            with np.errstate(invalid="ignore"):  # no alarm: no precision
                here = (float(_precision(total)), float(_event_recall(total)))
            plots.append(
                Plot(
                    "precision_recall.png",
                    "Share of the alarms that are in a labelled stretch over the share of the stretches that are "
                    f"found, at every threshold; the dot is sensitivity {SENSITIVITY:g}.",
                    "precision_recall",
                    {
                        "precision": precision,
                        "recall": recall,
                        "here": here,
                        "chance": float(labels.mean()),
                    },
                )
            )
        for record in records:
            if record.drawn is not None:
                plots.append(
                    Plot(
                        f"example_{sum(plot.draw == 'series_example' for plot in plots) + 1}.png",
                        f"{record.name}: values, band, labelled points (shaded) and alarms (dots).",
                        "series_example",
                        example(record, record.drawn),
                    )
                )
        return plots

    @staticmethod
    def notes() -> list[str]:
        """Sentences under the table."""
        return [
            f"Sensitivity {SENSITIVITY:g}, as a request has it that does not say. A labelled stretch is found when one "
            "of its points alarms; point by point, each of its points that does not alarm is missed.",
            "Composite F1: harmonic mean of the two rows above it. Intervals: bootstrap over series.",
        ]


def example(record: Judged, drawn: tuple[Floats, Floats, Floats]) -> dict[str, Any]:
    """The part of a series that is drawn: around its first labelled stretch, else around its first alarm.

    Args:
        record: of the series.
        drawn: values, lower and upper edge.
    """
    alarms = np.flatnonzero(record.alarms & record.counted)
    centre = record.stretches[0].start if record.stretches else int(alarms[0]) if len(alarms) else 0
    begin = max(0, min(centre - EXAMPLE_POINTS // 2, len(record.labels) - EXAMPLE_POINTS))
    part = slice(begin, begin + EXAMPLE_POINTS)
    values, lower, upper = (array[part] for array in drawn)
    return {
        "title": record.name,
        "begin": begin,
        "values": values,
        "lower": lower,
        "upper": upper,
        "labels": record.labels[part],
        "alarms": record.alarms[part] & record.counted[part],
    }


def _confusion(record: Judged) -> tuple[int, int, int, int]:
    """True alarms, false alarms, missed points, normal points (counts)."""
    alarms, labels = record.alarms[record.counted], record.labels[record.counted]
    true = int((alarms & labels).sum())
    return true, int(alarms.sum()) - true, int(labels.sum()) - true, int((~labels).sum())


def _found(record: Judged) -> tuple[int, int]:
    """Labelled stretches with an alarm, and all of them (counts)."""
    found = [bool(record.alarms[part].any()) for part in record.stretches]
    return sum(found), len(found)


def _precision(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / (sums[..., 0] + sums[..., 1]))


def _recall(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / (sums[..., 0] + sums[..., 2]))


def _f1(sums: Floats) -> Floats:
    return np.asarray(2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2]))


def _event_recall(sums: Floats) -> Floats:
    return np.asarray(sums[..., 4] / sums[..., 5])


def _composite(sums: Floats) -> Floats:
    precision, recall = _precision(sums), _event_recall(sums)
    return np.asarray(2 * precision * recall / (precision + recall))


def _figure(name: str, sums: Floats, of_sums: Callable[[Floats], Floats], n: int, of: str, form: str = ".3f") -> Figure:
    """A figure of summed counts; NaN where it is a share of nothing."""
    low, high = bootstrap_sums(sums, of_sums) or (None, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of_sums(sums.sum(axis=0)))
    return Figure(name, value, n, of, low, high, form)


def read_labelled(path: Path) -> Labelled:
    """A series from a file of columns; capitals in their names do not matter.

    Raises:
        EvaluationFailed: a column is missing, or a cell is no number; the message names the line.
    """
    try:
        table = read_table(path)
        value, label = table.column("value"), table.column("label", "anomaly", "is_anomaly")
        if value is None or label is None:
            there = ", ".join(table.header or ()) or "none"
            raise EvaluationFailed(f"{path.name} needs the columns value and label; it has: {there}.")
        values, labels = table.numbers(value), table.numbers(label)
    except InvalidInput as error:
        raise EvaluationFailed(str(error)) from None
    if None in labels:
        line = table.lines[labels.index(None)]
        raise EvaluationFailed(f"{path.name}, line {line}: the label is missing; write 0 or 1.")
    marked = np.array([label > 0 for label in labels if label is not None])
    return Labelled(np.array(values, float), marked, np.ones(len(values), bool))
