"""Image segmentation: how well the label of every pixel agrees, by label and over all.

Without an `evaluate.py`, pictures are read from `DIR/images/<name>.<any format>` and their labels from
`DIR/labels/<name>.png`: 8 bits, as large as the picture, the value of a pixel the index of its label. A value that is
no index, such as 255, marks a pixel that does not count.

The measure is the mean intersection over union (Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV
111, 2015): of the pixels that have a label in truth or in the answer, the share that have it in both; counted over all
pixels of all pictures, then averaged over the labels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    spread_evenly,
)
from service.evaluation.statistics import Floats, bootstrap_sums
from service.media.palette import palette

EXAMPLES = 3
"""Pictures that are drawn beside truth and answer (count)."""

VALUES = 256
"""Values that a pixel of a class map can have (count)."""

Labels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SegmentedPicture:
    """A picture whose pixels are labelled.

    Attributes:
        name: for messages.
        read: its bytes, encoded, called when they are needed.
        truth: the index of each pixel's label, uint8 (height, width); other values do not count.
    """

    name: str
    read: Callable[[], bytes]
    truth: Callable[[], Labels]


@dataclass(frozen=True, slots=True)
class Compared:
    """How a picture's pixels were labelled.

    Attributes:
        pairs: the pairs of labels that occur, `truth * VALUES + answer`, int64 (pairs,).
        pixels: how many pixels have each, int64 (pairs,).
        drawn: picture, truth and answer, for those that are drawn; None for the others.
    """

    pairs: NDArray[np.int64]
    pixels: NDArray[np.int64]
    drawn: tuple[Labels, Labels, Labels] | None = None


class ImageSegmentationEvaluation(Evaluation):
    """Labelled pictures, each sent once as it is. A model's own evaluation overrides `pictures`."""

    title = "Pictures with a label for every pixel"
    item = "picture"
    measure: ClassVar[str] = "mean IoU"
    """Name of the first figure: as the manifest's `[metrics]` has it."""

    def pictures(self) -> Sequence[SegmentedPicture]:
        """All of them.

        Raises:
            DataMissing: there are none, or one has no labels.
        """
        found = sorted(path for path in self.data.glob("images/*") if path.suffix.lower() in PICTURE_SUFFIXES)
        labels = [self.data / "labels" / f"{path.stem}.png" for path in found]
        missing = next((path for path in labels if not path.is_file()), None)
        if not found or missing:
            expects = f"labels/{missing.name}" if missing else "pictures and labels (images/1.jpg, …, labels/1.png, …)"
            origin = "A label file is a PNG of 8 bits, as large as its picture, whose values are indices of labels."
            raise DataMissing(self.data, expects, origin)
        return [
            SegmentedPicture(path.name, path.read_bytes, partial(read_labels, label.read_bytes))
            for path, label in zip(found, labels, strict=True)
        ]

    def items(self) -> Sequence[Item]:
        pictures = self.few(self.pictures())
        drawn = {picture.name for picture in spread_evenly(pictures, EXAMPLES)}
        return [Item(picture.name, partial(self._talk, picture, picture.name in drawn)) for picture in pictures]

    @staticmethod
    def _talk(picture: SegmentedPicture, is_drawn: bool) -> Generator[Question, Answer, Compared]:
        data, truth = picture.read(), picture.truth()
        answer = yield Ask(file=data)
        found = read_labels(lambda: base64.b64decode(answer["results"][0]["class_map"]))
        if found.shape != truth.shape:
            raise EvaluationFailed(
                f"the labels of {picture.name} are {truth.shape[1]} x {truth.shape[0]} pixels, and the picture is "
                f"{found.shape[1]} x {found.shape[0]}. Resize them with the nearest neighbour."
            )
        drawn = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), truth, found) if is_drawn else None
        pairs, pixels = np.unique(truth.astype(np.int64) * VALUES + found, return_counts=True)
        return Compared(pairs, pixels, drawn)

    def timed(self) -> Conversation:
        return self._talk(self.pictures()[0], False)

    def outcome(self, records: Sequence[Compared]) -> Outcome:
        labels = self.labels(records)
        matrices = np.stack([confusion(record, len(labels)) for record in records])
        total = matrices.sum(axis=0)
        sums = matrices.reshape(len(records), -1).astype(np.float64)

        def figure(name: str, of: Callable[[Floats], Floats]) -> Figure:
            low, high = bootstrap_sums(sums, lambda drawn: of(drawn.reshape(-1, *total.shape))) or (None, None)
            return Figure(name, float(of(total[None])[0]), len(records), "pictures", low, high)

        figures = [
            figure(self.measure, lambda m: np.nanmean(intersection_over_union(m), axis=-1)),
            figure("pixel accuracy", lambda m: np.trace(m, axis1=-2, axis2=-1) / m.sum(axis=(-2, -1))),
            figure("mean accuracy of a label", lambda m: np.nanmean(recall(m), axis=-1)),
        ]
        by_label = [
            figure(label, lambda m, place=place: intersection_over_union(m)[..., place])  # type: ignore[misc]
            for place, label in enumerate(labels)
        ]
        drawn = [record.drawn for record in records if record.drawn is not None]
        plots = [
            Plot(
                "examples.png",
                "Pictures, the labels that people gave, and those of the model; black does not count.",
                draw_examples,
                {"examples": drawn, "labels": labels},
            ),
            Plot(
                "iou_by_label.png",
                "Intersection over union of each label, with 95 % intervals.",
                draw_by_label,
                {"figures": by_label},
            ),
            Plot(
                "confusion_matrix.png",
                "Which label the pixels of each label (row) were given, in percent of the row.",
                "confusion_matrix",
                {"matrix": total, "labels": labels},
            ),
        ]
        uncounted = 1 - total.sum() / sum(int(record.pixels.sum()) for record in records)
        note = "Intervals are bootstraps over whole pictures, whose pixels are not independent."
        if uncounted:
            note += f" {uncounted:.1%} of the pixels have no label and do not count.".replace("%", " %")
        return Outcome(figures, [_by_label(by_label, total)], plots if len(labels) <= 30 else plots[:1], [note])

    def labels(self, records: Sequence[Compared]) -> list[str]:
        """The model's labels in its order; where its folder is not there, numbers as far as its answers go."""
        labels = self.subject.labels()
        if labels is not None:
            return labels
        highest = max(int((record.pairs % VALUES).max()) for record in records)
        return [f"label {number}" for number in range(highest + 1)]


def read_labels(read: Callable[[], bytes]) -> Labels:
    """A PNG of 8 bits as the values of its pixels, uint8 (height, width)."""
    image = Image.open(io.BytesIO(read()))
    return np.asarray(image if image.mode in ("P", "L") else image.convert("L"))


def confusion(record: Compared, labels: int) -> NDArray[np.int64]:
    """How many pixels of each label (rows) were given each label (columns), int64 (labels, labels)."""
    truth, answer = np.divmod(record.pairs, VALUES)
    counts = (truth < labels) & (answer < labels)
    places = truth[counts] * labels + answer[counts]
    matrix = np.zeros(labels**2, np.int64)
    matrix[places] = record.pixels[counts]
    return matrix.reshape(labels, labels)


def intersection_over_union(matrices: NDArray[Any]) -> Floats:
    """Of each label; from confusion matrices (..., labels, labels). NaN where a label does not occur in truth."""
    both, truth, answer = _margins(matrices)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(truth > 0, both / (truth + answer - both), np.nan))


def recall(matrices: NDArray[Any]) -> Floats:
    """Share of each label's pixels that were given it; NaN where there are none."""
    both, truth, _ = _margins(matrices)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(both / truth)


def _margins(matrices: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Pixels of each label in truth and answer, in truth, in the answer."""
    return np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(axis=-1), matrices.sum(axis=-2)


def _by_label(figures: Sequence[Figure], total: NDArray[np.int64]) -> Breakdown:
    """Intersection over union of each label, its share of the pixels, and what it is most often taken for."""
    rows = []
    for place, figure in enumerate(figures):
        pixels = int(total[place].sum())
        if not pixels:
            continue
        others = total[place].copy()
        others[place] = 0
        worst = int(others.argmax())
        taken_for = f"{figures[worst].name} ({others[worst] / pixels:.1%})" if others[worst] else ""
        share = f"{pixels / total.sum():.1%}"
        row = (figure.name, figure.text(figure.value), figure.interval, share, taken_for)
        rows.append(tuple(cell.replace("%", " %").replace("  %", " %") for cell in row))
    return Breakdown("By label", ("label", "IoU", "95 % interval", "share of the pixels", "most often taken for"), rows)


def draw_examples(figure: Any, examples: Sequence[tuple[Labels, Labels, Labels]], labels: Sequence[str]) -> None:
    """Pictures beside their labels in truth and in the answer, and a legend."""
    figure.set_size_inches(10, 2.7 * len(examples) + 0.6)
    colours = palette().copy()
    colours[len(labels) :] = 0
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for row, (picture, truth, answer) in zip(grid, examples, strict=True):
        for axes, image in zip(row, (picture, colours[truth], colours[answer]), strict=True):
            axes.imshow(image)
            axes.set_axis_off()
    for axes, title in zip(grid[0], ("picture", "people", "model"), strict=True):
        axes.set_title(title, fontsize=10)
    used = np.unique(np.concatenate([each.ravel() for _, *maps in examples for each in maps]))
    shown = [int(value) for value in used if value < len(labels)]
    marks = [grid[0, 0].scatter([], [], s=60, marker="s", color=colours[value] / 255) for value in shown]
    figure.legend(
        marks, [labels[value] for value in shown], loc="outside lower center", ncols=min(8, len(shown)), frameon=False
    )


def draw_by_label(figure: Any, figures: Sequence[Figure]) -> None:
    """A bar for each label."""
    known = [one for one in figures if one.value == one.value]
    axes = figure.add_subplot()
    values = np.array([100 * one.value for one in known])
    ends = np.array([[one.value if e is None else e for e in (one.low, one.high)] for one in known]).T * 100
    axes.barh(range(len(known)), values, xerr=np.abs(ends - values), color="#2f6db5", alpha=0.75, capsize=2)
    axes.set_yticks(range(len(known)), [one.name for one in known])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("intersection over union, %")
