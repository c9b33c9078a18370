"""Object detection: what is where in a picture, as boxes with labels and the chance that each is right.

A model is any graph with one picture input and one of the heads of `HEADS`: two outputs with boxes and scores, one
output as YOLOv5, YOLOX, YOLOv8 and YOLO11 export it, or finished detections. What the shapes do not tell, the
manifest's `[detection]` does. Every head is read into `Candidates`; the rest is the same for all: scores become
chances, boxes are put into the picture, of boxes of a label that overlap the best remains.

Coordinates begin at the top left corner of the top left pixel, in pixels of the picture as it is displayed. COCO's
`bbox` is `[xmin, ymin, xmax - xmin, ymax - ymin]`; Roboflow's `x` and `y` are the centre of the box.

References:
    Liu et al., "SSD: Single Shot MultiBox Detector" (2016), arXiv:1512.02325: boxes and scores; suppression per label.
    Ge et al., "YOLOX" (2021), arXiv:2107.08430: boxes as offsets from the cells of three maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.errors import InferenceFailed, ManifestInvalid
from service.media.overlays import Box as DrawnBox
from service.media.overlays import draw_boxes
from service.media.views import View, has_area
from service.tasks.base import (
    Array,
    FailedFile,
    ModelFolder,
    Signature,
    Steps,
    TaskOptions,
    TaskOutput,
    TensorSpec,
    Upload,
)
from service.tasks.comparison import difference
from service.tasks.picture import (
    Decoded,
    DrawablePictureInput,
    PictureOptions,
    PictureResult,
    PictureTask,
    PictureTensors,
    picture_fields,
)
from service.tasks.terminal import Shown, Table
from service.uncertainty.scores import sigmoid, softmax
from service.uncertainty.table import ScoreLine

MOST_DETECTIONS = 300
"""The largest `max_detections` (count)."""
MOST_CANDIDATES = 1000
"""Boxes of a picture that suppression looks at, the best of all labels (count): below them is what nobody asks for."""
DEFAULT_THRESHOLD = 0.3
"""Where the manifest has none: for a model that nobody has measured."""
BOX_DIGITS, SCORE_DIGITS = 2, 6
"""Decimal places of answers: a hundredth of a pixel is less than any detector knows."""


# --- public types


class ObjectDetectionInput(DrawablePictureInput):
    """Which model, from which score on, and how many boxes; the images are the files."""

    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Lowest score of a detection; left out: the model's own, which balances what it misses and what it "
        "sees where nothing is. 0 gives the best `max_detections` candidates.",
        examples=[0.5],
    )
    max_detections: Annotated[int, Field(ge=1, le=MOST_DETECTIONS)] = Field(
        default=100, description="Most detections for each image, over all labels, best first.", examples=[50]
    )


class BoundingBox(BaseModel):
    """Left, top, right and bottom in pixels of the image as displayed, from the corner of its top left pixel."""

    xmin: float = Field(description="Left edge, at least 0.", ge=0, examples=[68.2])
    ymin: float = Field(description="Top edge, at least 0.", ge=0, examples=[315.0])
    xmax: float = Field(description="Right edge, at most the width; COCO's width is xmax - xmin.", examples=[185.9])
    ymax: float = Field(description="Bottom edge, at most the height; COCO's height is ymax - ymin.", examples=[411.3])


class Detection(BaseModel):
    """An object and where it is."""

    label: str = Field(description="What it is.", examples=["RBC"])
    score: float = Field(
        description="Chance that an object of this label is there and covers half of what it and the box cover (IoU "
        "0.5), where the model is calibrated.",
        ge=0,
        le=1,
        examples=[0.97],
    )
    index: int = Field(description="Row of the label in the model's labels.", ge=0, examples=[0])
    box: BoundingBox


class DetectionResult(PictureResult):
    """What was found in one image."""

    detections: list[Detection] = Field(description="Best first; empty where nothing was found.")


class ObjectDetectionOutput(TaskOutput):
    """One result per image, in the order sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "nanodet-blood", "version": "1"},
                    "results": [
                        {
                            "filename": "blood.jpg",
                            "width": 640,
                            "height": 480,
                            "detections": [
                                {
                                    "label": "RBC",
                                    "score": 0.97,
                                    "index": 0,
                                    "box": {"xmin": 68.2, "ymin": 315.0, "xmax": 185.9, "ymax": 411.3},
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )

    results: list[DetectionResult | FailedFile] = Field(
        description="One entry per image, in the order sent; of several, one that cannot be used has an `error`."
    )


# --- manifest

HeadName = Literal["boxes-scores", "yolov5", "yolov8", "end-to-end"]


class DetectionTable(TaskOptions):
    """What the graph's outputs mean and from when on a box counts; the manifest's `[detection]` table."""

    head: HeadName | None = None
    """Which of the known heads the graph has; left out: the only one that its outputs can be."""
    boxes: Literal["corners", "corners-yx", "centres"] | None = None
    """What the four numbers of a box are: `corners` xmin ymin xmax ymax, `corners-yx` ymin xmin ymax xmax (TensorFlow),
    `centres` centre and size; left out: `centres` for YOLO's heads, else `corners`."""
    unit: Literal["fraction", "pixel"] | None = None
    """Whether these are fractions of the graph's picture or its pixels; left out: `fraction` for `boxes-scores`, else
    `pixel`."""
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    """What turns the graph's scores into 0..1, where it gives logits."""
    background: bool = False
    """Whether the first column of the scores is the background, which has no label."""
    strides: tuple[Annotated[int, Field(ge=1, le=256)], ...] = ()
    """Of the maps whose cells the boxes are offsets from, where the graph leaves that to be computed: `[8, 16, 32]` for
    YOLOX."""
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of two boxes of a label that overlap by more (intersection over union), the better one is kept."""
    threshold: Annotated[float, Field(ge=0, le=1)] = DEFAULT_THRESHOLD
    """Lowest score of a detection where the request names none."""
    precision: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the detections at the threshold that are right, on validation data."""
    recall: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the objects that are detected at the threshold, on validation data."""


class Tensors(PictureTensors):
    """Which input and outputs of the graph are what; the manifest's `[tensors]` table."""

    detections: str | None = None
    """The output of a head that has one; left out: the only one it can be."""
    boxes: str | None = None
    """The output with the boxes of `boxes-scores`; left out: the only one it can be."""
    scores: str | None = None
    """The output with the scores of `boxes-scores`; left out: the only one it can be."""


class Chances(ScoreLine):
    """How often boxes of a score are right; the manifest's `[calibration]` table, a line between the logits of both."""

    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What the logits of scores are multiplied by."""

    def of(self, scores: Array) -> Array:
        """The chance of each score, from 0 to 1 both, rising with it: float64 of any shape."""
        return self.probabilities_of(_logits(scores))

    def score(self, chance: float) -> float:
        """The score that has a chance."""
        return float(sigmoid((_logits(np.array(chance)) - self.offset) / self.slope))


def _logits(probabilities: Array) -> Array:
    """What `sigmoid` makes these of, float64; those of 0 and 1 are as good as infinite."""
    inside = np.clip(np.asarray(probabilities, np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(inside / (1 - inside)))


class ObjectDetectionOptions(PictureOptions):
    """What the manifest of an object detector may say."""

    tensors: Tensors = Tensors()
    detection: DetectionTable = DetectionTable()
    calibration: Chances = Chances()


# --- heads


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a graph says of a batch of pictures, before anything is chosen.

    Attributes:
        boxes: float (batch, n, 4), in the order and unit that the manifest says.
        scores: float (batch, n, columns), or (batch, n) where each box has one label.
        labels: int (batch, n) where each box has one label; None: a column of the scores for each.
        worth: float (batch, n), what every score of a box is multiplied with; None: nothing.
    """

    boxes: Array
    scores: Array
    labels: Array | None = None
    worth: Array | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """An output of a head.

    Attributes:
        role: what it is called in `[tensors]`.
        axis: which one, after the batch and of two, is as long as a box has numbers.
        least: of these numbers, those that are no scores (count).
        scored: whether a score for each label follows.
    """

    role: str
    axis: int
    least: int
    scored: bool

    def fits(self, spec: TensorSpec, columns: int, *, or_free: bool) -> bool:
        """Whether an output may be this one: the axis is as long as it should be, or its length is open."""
        if len(spec.shape) != 3 or spec.dtype not in ("float32", "float64", "float16"):
            return False
        length = spec.shape[1 + self.axis]
        return length == self.least + columns * self.scored or (or_free and not isinstance(length, int))


@dataclass(frozen=True, slots=True)
class Head:
    """A way in which detectors give their answer.

    Attributes:
        shapes: of the outputs, as people write them.
        parts: the outputs.
        read: turns these outputs into candidates.
        boxes: what four numbers of a box usually are.
        unit: what they are measured in, usually.
        suppresses: whether boxes that overlap are left to be dealt with.
    """

    shapes: str
    parts: tuple[Part, ...]
    read: Callable[[Sequence[Array]], Candidates]
    boxes: str = "corners"
    unit: str = "pixel"
    suppresses: bool = True

    def outputs(self, signature: Signature, tensors: Tensors, columns: int, *, or_free: bool) -> tuple[str, ...] | None:
        """Names of the graph's outputs that are its parts; None where there are none, or several may be."""
        choices = [
            [
                spec.name
                for spec in signature.outputs.values()
                if getattr(tensors, part.role) in (None, spec.name) and part.fits(spec, columns, or_free=or_free)
            ]
            for part in self.parts
        ]
        ways = [way for way in product(*choices) if len(set(way)) == len(way)]
        if len(ways) > 1:  # for four labels, scores look like boxes
            ways = [way for way in ways if way == tuple(part.role for part in self.parts)]
        return ways[0] if len(ways) == 1 else None


HEADS: Mapping[HeadName, Head] = {
    "boxes-scores": Head(
        "boxes (batch, n, 4) and scores (batch, n, labels)",
        (Part("boxes", axis=1, least=4, scored=False), Part("scores", axis=1, least=0, scored=True)),
        lambda outputs: Candidates(outputs[0], outputs[1]),
        unit="fraction",
    ),
    "yolov5": Head(
        "(batch, n, 5 + labels)",
        (Part("detections", axis=1, least=5, scored=True),),
        lambda outputs: Candidates(outputs[0][..., :4], outputs[0][..., 5:], worth=outputs[0][..., 4]),
        boxes="centres",
    ),
    "yolov8": Head(
        "(batch, 4 + labels, n)",
        (Part("detections", axis=0, least=4, scored=True),),
        lambda outputs: Candidates(outputs[0][:, :4].transpose(0, 2, 1), outputs[0][:, 4:].transpose(0, 2, 1)),
        boxes="centres",
    ),
    "end-to-end": Head(
        "(batch, n, 6), which are xmin ymin xmax ymax score label",
        (Part("detections", axis=1, least=6, scored=False),),
        lambda outputs: Candidates(outputs[0][..., :4], outputs[0][..., 4], labels=outputs[0][..., 5]),
        suppresses=False,
    ),
}
"""Known heads by the name that the manifest's `[detection] head` has for them."""


# --- task


class ObjectDetection(PictureTask[ObjectDetectionInput, ObjectDetectionOutput]):
    """Boxes and labels for pictures of any size."""

    name = "object-detection"
    summary = "What is where in this picture?"
    Input = ObjectDetectionInput
    Output = ObjectDetectionOutput
    Options = ObjectDetectionOptions
    options: ObjectDetectionOptions
    other_answers: ClassVar[Mapping[str, str]] = {"png": "image/png"}
    kind = "an object detector"

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self.labels = folder.lines("labels.txt")
        self._columns = len(self.labels) + self.options.detection.background
        self._head, self._outputs = self._find_head()
        self._cells = self._grid()

    # --- what the graph gives

    def _find_head(self) -> tuple[Head, tuple[str, ...]]:
        """The head that the manifest names, or the only one that the graph's outputs fit, and these outputs' names."""
        signature, table = self.folder.signature, self.options.detection
        known = {name: head for name, head in HEADS.items() if table.head in (None, name)}
        for or_free in (False, True):
            found = {
                name: outputs
                for name, head in known.items()
                if (outputs := head.outputs(signature, self.options.tensors, self._columns, or_free=or_free))
            }
            if found:
                break
        if len(found) == 1:
            ((name, outputs),) = found.items()
            return HEADS[name], outputs
        there = "; ".join(map(str, signature.outputs.values()))
        if found:
            names = " or ".join(f'"{name}"' for name in found)
            raise ManifestInvalid(
                self.graph_file,
                f"outputs {there} may be of several heads. Say which in the manifest: [detection] head = {names}.",
            )
        shapes = "; ".join(f'"{name}" {head.shapes}' for name, head in known.items())
        count = f"{len(self.labels)} labels{' and the background' if table.background else ''}"
        raise ManifestInvalid(
            self.graph_file,
            f"outputs {there} fit no head for {count}. These fit: {shapes}. Check labels.txt; where the scores begin "
            "with the background write [detection] background = true; where the number of labels is open, or several "
            "outputs look alike, write [detection] head and [tensors].",
        )

    def _grid(self) -> tuple[Array, Array] | None:
        """Cells float32 (n, 2), x and y, and their strides (n, 1) where boxes are offsets from cells; else None."""
        strides, boxes = self.options.detection.strides, self.folder.signature.outputs[self._outputs[0]]
        if not strides:
            return None
        if self._size is None:
            raise ManifestInvalid(self.graph_file, "has boxes by [detection] strides; its picture needs a fixed size.")
        height, width = self._size
        maps = [np.mgrid[: height // stride, : width // stride][::-1].reshape(2, -1).T for stride in strides]
        cells = np.concatenate(maps).astype(np.float32)
        if isinstance(count := boxes.shape[2 - self._head.parts[0].axis], int) and count != len(cells):
            raise ManifestInvalid(
                self.graph_file,
                f"output {boxes} should have {len(cells)} boxes, as many as cells at [detection] strides = "
                f"{list(strides)} of a picture of {width}x{height}.",
            )
        return cells, np.repeat(np.array(strides, np.float32), [len(each) for each in maps])[:, None]

    # --- a request

    def answer_pictures(
        self, request: ObjectDetectionInput, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[list[dict[str, Any]]]:
        outputs = yield self.run(pixels, self._outputs)
        size = (pixels.shape[2], pixels.shape[1])
        candidates = self._head.read([outputs[name] for name in self._outputs])
        boxes = self._corners(candidates.boxes, size)
        threshold = self.options.detection.threshold if request.threshold is None else request.threshold
        results = []
        for row, (file, view) in enumerate(zip(files, views, strict=True)):
            found = self._found(candidates, boxes, row, view, threshold)
            results.append(
                {**picture_fields(file, view), "detections": self._detections(found, request.max_detections)}
            )
        return results

    def _corners(self, boxes: Array, size: tuple[int, int]) -> Array:
        """Boxes of any kind as xmin ymin xmax ymax, fractions of the graph's picture: float32 (batch, n, 4)."""
        table, (width, height) = self.options.detection, size
        boxes = np.asarray(boxes, np.float32)
        with np.errstate(all="ignore"):  # what is not finite has no area and is left out
            if self._cells is not None:
                cells, strides = self._cells
                if boxes.shape[1] != len(cells):  # of a graph that does not tell how many it has
                    raise InferenceFailed(self.folder.name)
                boxes = np.concatenate([(boxes[..., :2] + cells) * strides, np.exp(boxes[..., 2:]) * strides], axis=-1)
            kind = table.boxes or self._head.boxes
            if kind == "centres":
                half = boxes[..., 2:] / 2
                boxes = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
            elif kind == "corners-yx":
                boxes = boxes[..., [1, 0, 3, 2]]
            if (table.unit or self._head.unit) == "pixel":
                boxes = boxes / np.array([width, height, width, height], np.float32)
        return boxes

    def _found(
        self, candidates: Candidates, boxes: Array, row: int, view: View, threshold: float
    ) -> tuple[Array, Array, Array]:
        """What is in one picture, best first: boxes float64 (m, 4) in its pixels, chances (m,), labels (m,)."""
        places, labels, scores = self._best(candidates, row, self.options.calibration.score(threshold))
        chances = np.round(self.options.calibration.of(scores), SCORE_DIGITS)
        corners = np.round(view.to_picture(boxes[row, places]), BOX_DIGITS)
        kept = has_area(corners) & (chances >= threshold)
        corners, chances, labels = corners[kept], chances[kept], labels[kept]
        if self._head.suppresses:
            kept = suppress(corners, labels, self.options.detection.nms_iou)
            corners, chances, labels = corners[kept], chances[kept], labels[kept]
        return corners, chances, labels

    def _best(self, candidates: Candidates, row: int, least: float) -> tuple[Array, Array, Array]:
        """Places of boxes, labels and scores of a picture's best candidates, best first, from a score on."""
        least = max(0.0, least - 10.0**-SCORE_DIGITS)  # rounding decides later
        scores = np.asarray(candidates.scores[row], np.float32)
        if candidates.labels is not None:
            labels = np.nan_to_num(candidates.labels[row], nan=-1, posinf=-1, neginf=-1).astype(np.int64)
            places = np.flatnonzero((scores >= least) & (labels >= 0) & (labels < len(self.labels)))
            columns, picked = labels[places], scores[places]
        else:
            rows = np.arange(len(scores))
            if candidates.worth is not None:
                worth = np.asarray(candidates.worth[row], np.float32)
                if self.options.detection.activation != "none":
                    worth = sigmoid(worth)
                rows = np.flatnonzero(worth >= least)  # the others' scores are no higher
                scores = self._activated(scores[rows]) * worth[rows, None]
            else:
                scores = self._activated(scores)
            places, columns = np.nonzero(scores >= least)
            picked, places = scores[places, columns], rows[places]
        if len(picked) > MOST_CANDIDATES:
            best = np.argpartition(-picked, MOST_CANDIDATES)[:MOST_CANDIDATES]
            best.sort()  # so that equal scores stay in the graph's order
            places, columns, picked = places[best], columns[best], picked[best]
        order = np.argsort(-picked, kind="stable")
        return places[order], columns[order], np.clip(picked[order], 0, 1)

    def _activated(self, scores: Array) -> Array:
        """Scores of boxes as 0..1 for each label: float32 (n, labels)."""
        activation, skipped = self.options.detection.activation, int(self.options.detection.background)
        if activation == "softmax":
            scores = softmax(scores)
        elif activation == "sigmoid":
            scores = sigmoid(scores)
        if scores.shape[1] != self._columns:  # of a graph that does not tell how many it has
            raise InferenceFailed(self.folder.name)
        return scores[:, skipped:]

    def _detections(self, found: tuple[Array, Array, Array], most: int) -> list[dict[str, Any]]:
        """The best of them as they are answered."""
        corners, chances, labels = (values[:most].tolist() for values in found)
        return [
            {
                "label": self.labels[label],
                "score": chance,
                "index": label,
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            }
            for box, chance, label in zip(corners, chances, labels, strict=True)
        ]

    # --- showing

    def render(self, request: ObjectDetectionInput, file: Upload, decoded: Decoded, result: Mapping[str, Any]) -> bytes:
        boxes = [
            DrawnBox(tuple(found["box"].values()), f"{found['label']} {found['score']:.0%}", found["index"])
            for found in result["detections"]
        ]
        return draw_boxes(self.displayed(file, self.noun), boxes)

    def shown_result(self, request: ObjectDetectionInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        title = f"{result.get('filename') or 'picture'}, {result['width']}x{result['height']}"
        rows = [
            (found["label"], f"{found['score']:.1%}", " ".join(f"{edge:.1f}" for edge in found["box"].values()))
            for found in result["detections"]
        ]
        yield Table(("label", "score", "box: xmin ymin xmax ymax"), rows, title) if rows else f"{title}: nothing found"

    # --- comparing

    def widened(self, request: ObjectDetectionInput) -> ObjectDetectionInput:
        """The same pictures with all candidates, for one that is expected may now be a little below the threshold."""
        return request.model_copy(update={"threshold": 0.0, "max_detections": MOST_DETECTIONS})

    def difference(
        self, request: ObjectDetectionInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Compare object by object, each by its label, place and score; their order follows from the scores."""
        results = expected.get("results")
        if not isinstance(results, list) or not isinstance(got.get("results"), list):
            return difference(expected, got, tolerance)
        if len(results) != len(got["results"]):
            return f"at results: expected {len(results)} entries, got {len(got['results'])}"
        others = {key: value for key, value in expected.items() if key != "results"}
        pairs = zip(results, got["results"], strict=True)
        found = (self._result_difference(request, e, g, tolerance, f"results[{i}]") for i, (e, g) in enumerate(pairs))
        return difference(others, got, tolerance) or next(filter(None, found), None)

    def _result_difference(
        self, request: ObjectDetectionInput, expected: Any, got: Mapping[str, Any], tolerance: float, place: str
    ) -> str | None:
        """The first difference between two answers for one image; `got` has the candidates below the threshold, too."""
        if not isinstance(expected, Mapping) or not isinstance(expected.get("detections"), list):
            return difference(expected, got, tolerance, place)
        rest, wanted = {key: value for key, value in expected.items() if key != "detections"}, expected["detections"]
        left = list(got["detections"])
        for number, one in enumerate(wanted):
            here = f"{place}.detections[{number}]"
            near = [other for other in left if other["label"] == one["label"] and _is_same_place(one, other, tolerance)]
            if not near:
                return f"at {here}: expected {_told(one)}, got none there"
            other = min(near, key=lambda each: abs(each["score"] - one["score"]))
            if found := difference({"score": one["score"]}, other, tolerance, here):
                return f"{found} for {one['label']!r}"
            left.remove(other)
        least = self.options.detection.threshold if request.threshold is None else request.threshold
        if len(wanted) >= request.max_detections:
            least = wanted[-1]["score"]
        for other in left:
            if other["score"] > least + tolerance:
                return f"at {place}.detections: expected {len(wanted)} entries, got {_told(other)} beside them"
        return difference(rest, got, tolerance, place)


def suppress(boxes: Array, labels: Array, nms_iou: float) -> Array:
    """Non-maximum suppression for each label: a box that overlaps a better one of its label by more is dropped.

    Args:
        boxes: float (m, 4): xmin ymin xmax ymax, best first.
        labels: int (m,).
        nms_iou: overlap, intersection over union, above which two boxes are taken for one object.

    Returns:
        int (k,), places of those that are kept, best first.
    """
    alive = np.ones(len(boxes), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        rivals = np.triu(overlaps(boxes[places], boxes[places]) > nms_iou, k=1)
        lives = np.ones(len(places), bool)
        for place in np.flatnonzero(rivals.any(axis=1)):
            if lives[place]:
                lives &= ~rivals[place]
        alive[places] = lives
    return np.flatnonzero(alive)


def overlaps(ours: Array, theirs: Array) -> Array:
    """Intersection over union of every pair of boxes: (m, 4) and (n, 4), each with an area, to (m, n)."""
    shared = np.ones((len(ours), len(theirs)))
    for low, high in ((0, 2), (1, 3)):  # axis by axis: arrays of two axes are many times quicker than of three
        side = np.minimum.outer(ours[:, high], theirs[:, high])
        side -= np.maximum.outer(ours[:, low], theirs[:, low])
        shared *= np.maximum(side, 0, out=side)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (ours, theirs)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None] - shared))


def _is_same_place(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> bool:
    """Whether two boxes differ by no more than rounding makes: a pixel, or the tolerance's share of a large box."""
    a, b = one["box"], other["box"]
    wide, high = (max(1.0, tolerance * (a[f"{axis}max"] - a[f"{axis}min"])) for axis in "xy")
    return all(abs(a[edge] - b[edge]) <= (wide if edge[0] == "x" else high) for edge in a)


def _told(found: Mapping[str, Any]) -> str:
    """A detection in a message."""
    return f"{found['label']!r} at {' '.join(f'{edge:g}' for edge in found['box'].values())} ({found['score']:.3f})"
