"""Image classification: accuracy, calibration, and how far prediction sets and abstention keep their promise.

Without an `evaluate.py`, pictures are read from `DIR/<label>/<file>`, as ImageFolder data sets have them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from service.evaluation.base import (
    PICTURE_SUFFIXES,
    Answer,
    Ask,
    Breakdown,
    Conversation,
    DataMissing,
    Evaluation,
    EvaluationFailed,
    Figure,
    Item,
    Outcome,
    Plot,
    Question,
)
from service.evaluation.statistics import calibration_interval, confusion_matrix, reliability, wilson

BINS = 15
"""Of the calibration error and the reliability diagram (count)."""

TOP_K = 5


@dataclass(frozen=True, slots=True)
class Picture:
    """A labelled picture.

    Attributes:
        name: for messages.
        label: what it shows, as the model spells it.
        read: its bytes, encoded, called when they are needed.
    """

    name: str
    label: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the model said about one picture.

    Attributes:
        truth: its label.
        answers: the model's labels, best first.
        score: probability of the first.
        prediction_set: the labels promised to hold the truth; None when the model promises nothing.
        coverage: how often they are promised to.
        abstain: whether the model says that it does not know such pictures; None when it never says.
    """

    truth: str
    answers: tuple[str, ...]
    score: float
    prediction_set: frozenset[str] | None = None
    coverage: float | None = None
    abstain: bool | None = None


class ImageClassificationEvaluation(Evaluation):
    """Labelled pictures, each sent once as it is. A model's own evaluation overrides `pictures`."""

    title = "Pictures in folders named by their labels"
    item = "picture"
    accuracy: ClassVar[str] = "accuracy"
    """Name of the first figure: as the manifest's `[metrics]` has it."""

    def pictures(self) -> Sequence[Picture]:
        """All of them.

        Raises:
            DataMissing: there are none.
        """
        found = sorted(path for path in self.data.glob("*/*") if path.suffix.lower() in PICTURE_SUFFIXES)
        if not found:
            raise DataMissing(
                self.data,
                "pictures in folders named by their labels (DIR/cat/1.jpg, DIR/dog/2.png, …)",
                "Put each labelled picture into the folder of its label.",
            )
        return [Picture(f"{p.parent.name}/{p.name}", p.parent.name, p.read_bytes) for p in found]

    def items(self) -> Sequence[Item]:
        return [Item(picture.name, partial(self._talk, picture)) for picture in self.few(self.pictures())]

    @staticmethod
    def _talk(picture: Picture) -> Generator[Question, Answer, Seen]:
        answer = yield Ask({"top_k": TOP_K}, file=picture.read())
        return seen(picture.label, answer["results"][0])

    def timed(self) -> Conversation:
        return self._talk(self.pictures()[0])

    def outcome(self, records: Sequence[Seen]) -> Outcome:
        n = len(records)
        labels = self._labels(records)
        place = {label: number for number, label in enumerate(labels)}
        truth = np.array([place[record.truth] for record in records])
        answer = np.array([place[record.answers[0]] for record in records])
        right = truth == answer
        confidence = np.array([record.score for record in records])
        figures = [_share(self.accuracy, right)]
        if len(labels) > 4 * TOP_K:
            figures.append(_share(f"accuracy among the best {TOP_K}", [r.truth in r.answers for r in records]))
        bins = reliability(confidence, right, BINS)
        low, high = calibration_interval(confidence, right, BINS) or (None, None)
        figures.append(Figure("expected calibration error", bins.error, n, "pictures", low, high, ".4f"))
        figures += self._promises(records, right)
        matrix = confusion_matrix(truth, answer, len(labels))
        return Outcome(
            figures,
            [_by_class(labels, matrix)] if len(labels) <= 100 else [],
            [
                Plot(
                    "confusion_matrix.png",
                    "How often each class (row) was given each answer (column), in percent of the row.",
                    "confusion_matrix",
                    {"matrix": matrix, "labels": labels},
                ),
                Plot(
                    "reliability.png",
                    f"How often answers of each confidence are right, and how many there are ({BINS} bins).",
                    "reliability_diagram",
                    {"bins": bins, "of": "pictures"},
                ),
            ],
            [f"The calibration error has {BINS} bins of equal width, by the probability of the best label."],
        )

    def _labels(self, records: Sequence[Seen]) -> list[str]:
        """The model's labels, in its order where its folder is there."""
        used = {record.truth for record in records} | {record.answers[0] for record in records}
        labels = self.subject.labels()
        if labels is None:
            return sorted(used)
        if unknown := sorted({record.truth for record in records} - set(labels)):
            raise EvaluationFailed(
                f"the data have the label {unknown[0]!r}, which the model does not have; it has: "
                f"{', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}. Rename the folder or the label."
            )
        return labels

    @staticmethod
    def _promises(records: Sequence[Seen], right: Any) -> list[Figure]:
        """Coverage and size of the prediction sets, and abstention, where the answers have them."""
        figures = []
        sets = [(r.truth, r.prediction_set, r.coverage) for r in records if r.prediction_set is not None]
        if sets:
            stated = next((coverage for *_, coverage in sets if coverage is not None), None)
            name = "prediction set holds the label" + (f" (stated: {stated:.4g})" if stated else "")
            figures.append(_share(name, [truth in labels for truth, labels, _ in sets if labels is not None]))
            sizes = np.array([len(labels) for _, labels, _ in sets if labels is not None], float)
            half = 1.96 * float(sizes.std(ddof=1)) / len(sizes) ** 0.5 if len(sizes) > 1 else None
            mean = float(sizes.mean())
            low, high = (None, None) if half is None else (mean - half, mean + half)
            figures.append(Figure("labels in a prediction set", mean, len(sizes), "pictures", low, high, ".3f"))
        told = np.array([bool(r.abstain) for r in records if r.abstain is not None], bool)
        if len(told) == len(records):
            figures.append(_share("abstains", told))
            if told.any():
                figures.append(_share("accuracy where it does not abstain", right[~told]))
        return figures


def seen(truth: str, result: Answer) -> Seen:
    """The part of a result that counts."""
    found, promised = result["predictions"], result.get("prediction_set")
    return Seen(
        truth,
        tuple(prediction["label"] for prediction in found),
        found[0]["score"],
        frozenset(promised["labels"]) if promised else None,
        promised.get("coverage") if promised else None,
        result.get("abstain"),
    )


def _share(name: str, hits: Any) -> Figure:
    hit, n = int(np.sum(hits)), len(hits)
    return Figure(name, hit / n if n else float("nan"), n, "pictures", *wilson(hit, n))


def _by_class(labels: Sequence[str], matrix: Any) -> Breakdown:
    """Accuracy of each class, and what it is most often taken for."""
    rows = []
    for number, label in enumerate(labels):
        n, hit = int(matrix[number].sum()), int(matrix[number, number])
        if not n:
            continue
        others = matrix[number].copy()
        others[number] = 0
        worst = int(others.argmax())
        taken_for = f"{labels[worst]} ({others[worst] / n:.1%})".replace("%", " %") if others[worst] else ""
        low, high = wilson(hit, n)
        interval = f"{low:.1%} to {high:.1%}".replace("%", " %")
        rows.append((label, f"{hit / n:.1%}".replace("%", " %"), interval, f"{n:,}", taken_for))
    return Breakdown("By class", ("class", "accuracy", "95 % interval", "pictures", "most often taken for"), rows)
