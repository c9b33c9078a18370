"""Object detection: COCO's mean average precision, precision and recall at the model's threshold, calibration.

Without an `evaluate.py`, DIR holds one file in COCO's format, `*.json` with `images`, `annotations` and `categories`,
and the pictures that it names, beside it or in `images/`.

References:
    Lin et al., "Microsoft COCO: Common Objects in Context" (2014), arXiv:1405.0312; the rule is pycocotools'.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from service.evaluation.base import (
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
from service.evaluation.statistics import RESAMPLES, calibration_interval, reliability, wilson
from service.graph import Array
from service.media.overlays import Box, draw_boxes

MOST_DETECTIONS = 100
"""Detections of a picture that count, the best of all labels: COCO's rule (count)."""
BINS = 10
"""Of the calibration error and the reliability diagram (count)."""
LEAST_SCORE = 0.05
"""Detections scored lower are left out of the calibration error: there are so many that it would be near 0 for any
model."""
EXAMPLES = 6
"""Pictures that are drawn (count)."""
RECALLS = np.linspace(0, 1, 101)
"""At which precision is averaged."""
RESAMPLED_AT_ONCE = 2**21
"""Detections of resamples that are counted at a time (count), so that they fit into memory."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A picture whose objects are known.

    Attributes:
        name: for messages.
        labels: of its objects, as the model spells them.
        boxes: xmin, ymin, xmax, ymax of each, in pixels of the picture as displayed.
        read: its bytes, encoded, called when they are needed.
    """

    name: str
    labels: Sequence[str]
    boxes: Sequence[Sequence[float]]
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """What the model said about one picture.

    Attributes:
        truth: what is in it.
        labels: of the detections, best first.
        scores: float64 (n,).
        boxes: float64 (n, 4), xmin ymin xmax ymax.
        at_threshold: how many of them the model shows by itself, without a threshold in the request (count).
    """

    truth: Truth
    labels: Sequence[str]
    scores: Array
    boxes: Array
    at_threshold: int


class ObjectDetectionEvaluation(Evaluation):
    """Pictures with boxes, each sent once as it is. A model's own evaluation overrides `pictures`."""

    title = "Pictures with boxes in COCO's format"
    item = "picture"
    of_data: ClassVar[str] = ""
    """What the names of the figures begin with, as the manifest's `[metrics]` has them: `BCCD`."""
    may_be_shown: ClassVar[bool] = True
    """Whether the licence of the pictures lets examples of them stand in a card."""

    def pictures(self) -> Sequence[Truth]:
        """All of them.

        Raises:
            DataMissing: there are none.
        """
        return read_coco(self.data)

    def items(self) -> Sequence[Item]:
        return [Item(picture.name, partial(self._talk, picture), 2) for picture in self.few(self.pictures())]

    @staticmethod
    def _talk(picture: Truth) -> Generator[Question, Answer, Found]:
        data = picture.read()
        best = yield Ask({"threshold": 0, "max_detections": MOST_DETECTIONS}, file=data)
        shown = yield Ask({"max_detections": MOST_DETECTIONS}, file=data)
        return found(picture, best["results"][0], shown["results"][0])

    def timed(self) -> Conversation:
        return self._talk(self.pictures()[0])

    def outcome(self, records: Sequence[Found]) -> Outcome:
        labels = self._labels(records)
        judged = judge(records, labels)
        n, prefix = len(records), f"{self.of_data} " if self.of_data else ""
        weights = resampled(n)
        figures = []
        for name, columns in (("mAP@0.5", slice(0, 1)), ("mAP@0.5:0.95", slice(None))):
            value = float(mean_precision(judged, np.ones((1, n)), columns)[0])
            low, high = (
                np.nanpercentile(mean_precision(judged, weights, columns), [2.5, 97.5]) if n > 1 else (None, None)
            )
            figures.append(Figure(f"{prefix}{name}", value, n, "pictures", low, high))
        objects = sum(len(record.truth.labels) for record in records)
        right = np.concatenate([each.right[each.is_shown, 0] for each in judged])
        figures.append(_share(f"{prefix}precision at the threshold", right.sum(), len(right), "detections"))
        figures.append(_share(f"{prefix}recall at the threshold", right.sum(), objects, "objects"))
        scores = np.concatenate([each.scores for each in judged])
        hits = np.concatenate([each.right[:, 0] for each in judged])
        counted = scores >= LEAST_SCORE
        bins = reliability(scores[counted], hits[counted], BINS)
        low, high = calibration_interval(scores[counted], hits[counted], BINS) or (None, None)
        name = f"{prefix}expected calibration error"
        figures.append(Figure(name, bins.error, int(counted.sum()), "detections", low, high, ".4f"))
        plots = [
            Plot(
                "precision_recall.png",
                "Precision over recall at IoU 0.5 for each label, and the point at the threshold.",
                draw_curves,
                {"judged": judged},
            ),
            Plot(
                "reliability.png",
                f"How often detections of each score are right, and how many there are ({BINS} bins).",
                "reliability_diagram",
                {"bins": bins, "of": "detections"},
            ),
        ]
        if self.may_be_shown:
            examples = Plot(
                "examples.png",
                "Some pictures: above what is there, below what the model shows by itself.",
                draw_examples,
                {"examples": spread_evenly(records, EXAMPLES), "labels": labels},
            )
            plots.insert(0, examples)
        return Outcome(
            figures,
            [_by_label(judged, weights)],
            plots,
            [
                f"COCO's rule: the {MOST_DETECTIONS} best detections of a picture, precision at 101 recalls, mean over "
                "the labels that occur. Intervals are of a bootstrap over pictures.",
                "Right is a detection that has an IoU of 0.5 or more with an object of its label that no better one "
                f"has. The calibration error has {BINS} bins of equal width and counts what is scored {LEAST_SCORE} or "
                "more.",
            ],
        )

    def _labels(self, records: Sequence[Found]) -> list[str]:
        """The model's labels, in its order where its folder is there."""
        used = {label for record in records for label in (*record.truth.labels, *record.labels)}
        labels = self.subject.labels()
        if labels is None:
            return sorted(used)
        if unknown := sorted({label for record in records for label in record.truth.labels} - set(labels)):
            raise EvaluationFailed(
                f"the data have the label {unknown[0]!r}, which the model does not have; it has: "
                f"{', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}. Rename the label in the data."
            )
        return labels


def found(picture: Truth, best: Answer, shown: Answer) -> Found:
    """The part of two results that counts: all candidates, and what is shown without a threshold in the request."""
    detections = best["detections"]
    return Found(
        picture,
        [each["label"] for each in detections],
        np.array([each["score"] for each in detections], np.float64),
        np.array([[*each["box"].values()] for each in detections], np.float64).reshape(-1, 4),
        len(shown["detections"]),
    )


def read_coco(folder: Path) -> list[Truth]:
    """Pictures and boxes of a folder with a file in COCO's format.

    Raises:
        DataMissing: there is no such file, or there are several, or a picture that it names is not there.
    """
    files = sorted(folder.glob("*.json"))
    if len(files) != 1:
        raise DataMissing(
            folder,
            "one file in COCO's format (DIR/annotations.json) and its pictures (beside it or in DIR/images/)",
            "Most tools for labelling write it: it has the lists images, annotations and categories.",
        )
    try:
        listing = json.loads(files[0].read_bytes())
        names = {category["id"]: category["name"] for category in listing["categories"]}
        of_picture: dict[Any, list[tuple[str, list[float]]]] = {image["id"]: [] for image in listing["images"]}
        for each in listing["annotations"]:
            left, top, wide, high = each["bbox"]
            if wide > 0 and high > 0 and not each.get("iscrowd"):
                of_picture[each["image_id"]].append((names[each["category_id"]], [left, top, left + wide, top + high]))
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationFailed(f"{files[0].name} is not in COCO's format: {type(error).__name__} {error}.") from None
    pictures = []
    for image in listing["images"]:
        places = [folder / image["file_name"], folder / "images" / image["file_name"]]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataMissing(
                folder, image["file_name"], f"{files[0].name} names it: put it beside that or in images/."
            )
        objects = of_picture[image["id"]]
        pictures.append(
            Truth(image["file_name"], [label for label, _ in objects], [box for _, box in objects], path.read_bytes)
        )
    return pictures


# --- COCO's rule


@dataclass(frozen=True, slots=True)
class Judged:
    """The detections of one label in all pictures, best first.

    Attributes:
        label: which.
        pictures: int (n,), in which picture each is.
        scores: float64 (n,).
        right: bool (n, 10): whether it is right at IoU 0.5, 0.55, ... 0.95.
        is_shown: bool (n,), whether the model shows it by itself.
        objects: int (pictures,), how many there are.
    """

    label: str
    pictures: Array
    scores: Array
    right: Array
    is_shown: Array
    objects: Array


def judge(records: Sequence[Found], labels: Sequence[str]) -> list[Judged]:
    """Find for each detection whether it is right, as pycocotools does; labels that are nowhere are left out."""
    place = {label: number for number, label in enumerate(labels)}
    truth: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        for label, box in zip(record.truth.labels, record.truth.boxes, strict=True):
            wide, high = box[2] - box[0], box[3] - box[1]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": number,
                    "category_id": place[label],
                    "bbox": [box[0], box[1], wide, high],
                    "area": wide * high,
                    "iscrowd": 0,
                }
            )
        for rank, (label, score, box) in enumerate(zip(record.labels, record.scores, record.boxes, strict=True)):
            corner = [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
            said.append(
                {"id": len(said) + 1, "image_id": number, "category_id": place[label], "bbox": corner, "area": 1.0}
                | {"score": float(score), "shown": rank < record.at_threshold}
            )
    coco, ours = COCO(), COCO()
    images = [{"id": number} for number in range(len(records))]
    categories = [{"id": number, "name": label} for label, number in place.items()]
    coco.dataset = {"images": images, "annotations": truth, "categories": categories}
    ours.dataset = {"images": images, "annotations": said, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is doing
        coco.createIndex()
        ours.createIndex()
        rule = COCOeval(coco, ours, "bbox")
        rule.params.areaRng = [rule.params.areaRng[0]]
        rule.params.maxDets = [MOST_DETECTIONS]
        rule.evaluate()
    of_id = {each["id"]: each for each in said}
    judged = []
    for label, number in place.items():
        rows = [each for each in rule.evalImgs[number * len(records) : (number + 1) * len(records)] if each is not None]
        ids = [one for each in rows for one in each["dtIds"]]
        objects = np.zeros(len(records), int)
        for each in rows:
            objects[each["image_id"]] = len(each["gtIds"])
        if not objects.any() and not ids:
            continue
        scores = np.array([of_id[one]["score"] for one in ids], np.float64)
        order = np.argsort(-scores, kind="mergesort")
        matches = [each["dtMatches"].T > 0 for each in rows]
        right = np.concatenate(matches) if matches else np.zeros((0, 10), bool)
        judged.append(
            Judged(
                label,
                np.array([of_id[one]["image_id"] for one in ids], int)[order],
                scores[order],
                right[order],
                np.array([of_id[one]["shown"] for one in ids], bool)[order],
                objects,
            )
        )
    return judged


def resampled(count: int) -> Array:
    """How often each picture is drawn in each resample of a bootstrap: float64 (resamples, count)."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def mean_precision(judged: Sequence[Judged], weights: Array, overlaps: slice) -> Array:
    """Mean average precision over the labels that have objects.

    Args:
        judged: the detections of each label.
        weights: float (resamples, pictures), how often each picture counts.
        overlaps: which of the ten columns of `Judged.right`; their mean is taken, too.

    Returns:
        float64 (resamples,); NaN where there is no object at all.
    """
    means = np.stack([average_precision(each, weights, overlaps) for each in judged])
    there = np.isfinite(means)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, means, 0).sum(axis=0) / there.sum(axis=0))


def average_precision(judged: Judged, weights: Array, overlaps: slice) -> Array:
    """Of one label, as `mean_precision`: float64 (resamples,); NaN where there is no object."""
    parts = np.array_split(weights, -(-weights.shape[0] * max(1, len(judged.scores)) // RESAMPLED_AT_ONCE))
    return np.concatenate([_average_precision(judged, part, overlaps) for part in parts])


def _average_precision(judged: Judged, weights: Array, overlaps: slice) -> Array:
    objects = weights @ judged.objects
    counts = weights[:, judged.pictures]  # (resamples, n)
    total = counts.cumsum(axis=1)
    columns = judged.right[:, overlaps].T
    sums = np.zeros(len(weights))
    for column in columns:
        right = (counts * column).cumsum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = np.nan_to_num(right / total), right / objects[:, None]
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # that is had at this recall or above
        best = np.concatenate([best, np.zeros((len(weights), 1))], axis=1)
        sums += [heights[np.searchsorted(line, RECALLS)].mean() for line, heights in zip(recall, best, strict=True)]
    return np.where(objects > 0, sums / len(columns), np.nan)


def _share(name: str, hits: float, n: int, of: str) -> Figure:
    return Figure(name, float(hits) / n if n else float("nan"), n, of, *wilson(int(hits), n))


def _by_label(judged: Sequence[Judged], weights: Array) -> Breakdown:
    """Average precision, precision and recall of each label."""
    rows = []
    for each in judged:
        n, shown = int(each.objects.sum()), int(each.is_shown.sum())
        right = int(each.right[each.is_shown, 0].sum())
        one = np.ones((1, weights.shape[1]))
        half, all_ = (float(average_precision(each, one, part)[0]) for part in (slice(0, 1), slice(None)))
        shares = [f"{100 * value:.1f} %" if value == value else "–" for value in (half, all_)]
        shares += [f"{100 * right / of:.1f} %" if of else "–" for of in (shown, n)]
        rows.append([each.label, str(n), *shares])
    columns = ["label", "objects", "AP@0.5", "AP@0.5:0.95", "precision", "recall"]
    return Breakdown("Labels; precision and recall at the model's threshold", columns, rows)


# --- plots


def draw_curves(figure: Any, judged: Sequence[Judged]) -> None:
    """Precision over recall at IoU 0.5; of many labels, the ten with most objects."""
    axes = figure.add_subplot()
    for each in sorted(judged, key=lambda one: -one.objects.sum())[:10]:
        n = each.objects.sum()
        if not n or not len(each.scores):
            continue
        true = each.right[:, 0].cumsum()
        (line,) = axes.plot(true / n, true / np.arange(1, len(true) + 1), label=each.label)
        right, shown = each.right[each.is_shown, 0].sum(), each.is_shown.sum()
        if shown:
            axes.plot([right / n], [right / shown], "o", color=line.get_color())
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left")


def draw_examples(figure: Any, examples: Sequence[Found], labels: Sequence[str]) -> None:
    """Pictures in pairs: what is there, and what was found."""
    figure.set_size_inches(11, 4.2 * -(-len(examples) // 3))
    place = {label: number for number, label in enumerate(labels)}
    pairs = figure.subplots(2 * -(-len(examples) // 3), 3, squeeze=False)
    for axes in pairs.ravel():
        axes.set_axis_off()
    for number, example in enumerate(examples):
        row, column = divmod(number, 3)
        truth = [
            Box(box, label, place[label]) for label, box in zip(example.truth.labels, example.truth.boxes, strict=True)
        ]
        shown = [
            Box(box.tolist(), f"{label} {score:.0%}", place[label])
            for label, score, box in zip(example.labels, example.scores, example.boxes, strict=True)
        ][: example.at_threshold]
        for line, boxes in enumerate((truth, shown)):
            with Image.open(io.BytesIO(example.truth.read())) as picture:
                drawn = draw_boxes(picture.convert("RGB"), boxes)
            pairs[2 * row + line, column].imshow(np.asarray(Image.open(io.BytesIO(drawn))))
