"""What comes out of a graph, and which task reads it: classes, boxes, a map of labels, or numbers that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from service.graph import Array
from service.importing import labels
from service.importing.picture import PictureInput
from service.importing.source import Source

TENSOR = "tensor"
MOST_SEGMENTS = 256
"""Labels of a segmenter at most (count)."""
MOST_END_TO_END = 1000
"""Boxes that a detector gives which suppresses by itself, at most (count)."""
YOLO_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (8,), (16,), (32,))
"""Of the maps whose cells detectors give a box for, or one for each of three anchors."""
FASTEST_DET = 85
"""Channels of FastestDet's map: a chance, four numbers of a box, COCO's labels."""
_BESIDE = ("activation_map", "novelty", "spread")
"""Outputs of the house's own graphs that go with others."""

_OF_CTC = "its metadata have characters: a label at every step, which is read by the caller, by CTC"
_HOUSE: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "anomaly-detection": (frozenset(("values", "sequence_lens")), frozenset(("expected", "spread"))),
    "forecasting": (frozenset(("history", "horizon")), frozenset(("quantiles",))),
    "speech-recognition": (frozenset(("samples",)), frozenset(("log_probs",))),
    "next-word-prediction": (frozenset(("tokens", "sequence_lens", "state")), frozenset(("logits", "next_state"))),
    "music-composition": (frozenset(("features", "sequence_lens")), frozenset(("logits",))),
}
"""Inputs and outputs by whose names a graph is of a task of the house."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A task that can read a graph's outputs, and how.

    Attributes:
        task: its name.
        reason: what in the graph says so.
        sure: whether it can be nothing else.
        classes: how many labels it needs; None: it needs none, or the graph does not tell.
        tables: what the manifest has to say: tables by name.
        notes: what of these was guessed, by `table.key`, with the reason.
        family: of a detector, such as `YOLOX`.
    coarse: whether it reads a map so small that another output is more likely to be meant.
    """

    task: str
    reason: str
    sure: bool = False
    classes: int | None = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    coarse: bool = False


@dataclass(frozen=True)
class Trial:
    """One run of a graph on a picture.

    Attributes:
        size: height and width of what it was given (pixels).
        given: the picture as given, (1, ...).
        outputs: by name; empty where it did not run.
    """

    size: tuple[int, int]
    given: Array
    outputs: Mapping[str, Array]

    def shape(self, source: Source, name: str) -> tuple[int | None, ...]:
        """An output's axes after the first, as the graph tells them; where it leaves them open, as they came out."""
        told, came = source.signature.outputs[name].shape, self.outputs.get(name)
        if came is not None and (not told or len(told) == came.ndim):
            axes = told or (None,) * came.ndim
            return tuple(a if isinstance(a, int) else b for a, b in zip(axes[1:], came.shape[1:], strict=True))
        return tuple(axis if isinstance(axis, int) else None for axis in told[1:])


def of_tensors(source: Source) -> Reading:
    """Which task reads a graph that takes no picture."""
    inputs, outputs = set(source.signature.inputs), set(source.signature.outputs)
    for task, (needed, given) in _HOUSE.items():
        if needed <= inputs and given <= outputs:
            return Reading(
                task, f"its inputs and outputs have the names of the task: {', '.join(sorted(needed | given))}"
            )
    trees = sorted(name for name in source.operators if name.startswith(("TreeEnsemble", "Linear", "SVM")))
    if trees:
        return Reading(TENSOR, f"{trees[0]}: a table's rows in, no typed task", sure=True)
    ranks = {len(spec.shape) for spec in source.signature.outputs.values()}
    if len(inputs) == 1 and 3 in ranks and "character" in source.metadata:
        return Reading(TENSOR, _OF_CTC)
    return Reading(TENSOR, "its inputs are no picture, and have no other task's names: served over /v2")


def of_picture(source: Source, picture: PictureInput, trial: Trial, wanted: str | None = None) -> Reading:
    """Which task reads a graph that takes a picture.

    Args:
        source: the graph.
        picture: what it takes.
        trial: a run of it.
        wanted: the only task that may be found; left out: the one that fits best.
    """
    told = source.metadata.get("task", "") if "stride" in source.metadata else ""
    if told and told not in ("detect", "classify") and wanted is None:
        return Reading(TENSOR, f"its metadata say that its task is {told!r}, which no typed task reads", sure=True)
    if "character" in source.metadata and wanted is None:
        return Reading(TENSOR, _OF_CTC)
    readers = (_detector, _segmenter, _classifier)
    found = [reading for reader in readers if (reading := reader(source, picture, trial))]
    if wanted is not None:
        found = [reading for reading in found if reading.task == wanted]
        return found[0] if found else Reading(wanted, "as given")
    known = [reading for reading in found if reading.task != TENSOR]
    known.sort(key=lambda reading: reading.coarse)
    there = "; ".join(map(str, source.signature.outputs.values()))
    return next(iter([*known, *found]), Reading(TENSOR, f"no typed task reads these outputs: {there}"))


def _floats(source: Source, trial: Trial) -> dict[str, tuple[int | None, ...]]:
    """Outputs of floats: axes after the first, by name."""
    specs = source.signature.outputs.values()
    return {spec.name: trial.shape(source, spec.name) for spec in specs if spec.dtype in ("float32", "float64")}


# --- boxes


def _detector(source: Source, picture: PictureInput, trial: Trial) -> Reading | None:
    shapes = {name: shape for name, shape in _floats(source, trial).items() if len(shape) == 2 and None not in shape}
    pairs = [
        (boxes, scores)
        for boxes, scores in product(shapes, repeat=2)
        if boxes != scores and shapes[boxes][1] == 4 and shapes[boxes][0] == shapes[scores][0]
    ]
    if len(pairs) > 1:  # of four labels
        pairs = [pair for pair in pairs if "box" in pair[0].lower()]
    if len(pairs) == 1:
        return _boxes_and_scores(source, trial, *pairs[0])
    if len(shapes) != 1:
        return None
    ((name, shape),) = shapes.items()
    return _one_output(source, trial, name, int(shape[0] or 0), int(shape[1] or 0))


def _boxes_and_scores(source: Source, trial: Trial, boxes: str, scores: str) -> Reading:
    columns = trial.shape(source, scores)[1]
    activation = source.signature.activations.get(scores, "none")
    values = trial.outputs.get(scores)
    table: dict[str, Any] = {}
    notes: dict[str, str] = {}
    if values is not None and (values.min() < 0 or values.max() > 1):
        table["activation"], notes["detection.activation"] = "sigmoid", "scores below 0 or above 1 came out"
    known = labels.find(source, None)
    background = len(known.names) == (columns or 0) - 1 if known else activation == "softmax"
    if background:
        table["background"] = True
        notes["detection.background"] = (
            "a score more than labels" if known else "a softmax over scores has one for nothing"
        )
    if (came := trial.outputs.get(boxes)) is not None and came.size:
        table |= _box_form(came[0], default_unit="fraction", notes=notes)
        if table.get("boxes") is None and "tf" in source.exporter:
            table["boxes"], notes["detection.boxes"] = "corners-yx", "TensorFlow's boxes are ymin xmin ymax xmax"
    return Reading(
        "object-detection",
        f"outputs (n, k, 4) and (n, k, {columns}): boxes and scores, as of SSD",
        classes=None if columns is None else columns - background,
        tables={"detection": table, "tensors": {"boxes": boxes, "scores": scores}},
        notes=notes,
        family="SSD",
    )


def _box_form(boxes: Array, *, default_unit: str, notes: dict[str, str]) -> dict[str, Any]:
    """What four numbers of boxes (k, 4) are, where they are not what they usually are."""
    table: dict[str, Any] = {}
    largest = float(np.nan_to_num(np.abs(boxes)).max())
    unit = "fraction" if largest <= 2 else "pixel"
    if unit != default_unit:
        table["unit"], notes["detection.unit"] = unit, f"numbers up to {largest:.2f} came out"
    in_order = np.mean((boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1]))
    if default_unit == "fraction" and in_order < 0.9:
        table["boxes"], notes["detection.boxes"] = "centres", "third and fourth numbers are below the first two"
    return table


def _one_output(source: Source, trial: Trial, name: str, first: int, second: int) -> Reading | None:
    """A detector with one output (n, first, second)."""
    known = labels.find(source, None)
    count = len(known.names) if known and known.sure else None
    is_told = source.metadata.get("task") == "detect"
    if source.operators & {"LSTM", "GRU", "RNN"} or source.signature.activations.get(name) in (
        "softmax",
        "log_softmax",
    ):
        return Reading(
            TENSOR,
            f"output {name!r} (n, {first}, {second}) has a label at every step: CTC, which is read by the caller",
        )
    values = trial.outputs.get(name)
    whole = values is not None and bool(np.all(values[..., -1] == np.round(values[..., -1])))
    if second == 6 and first <= MOST_END_TO_END and (count != 1 or whole):
        why = f"output {name!r} (n, {first}, 6): boxes, score and label of what is left after suppression"
        return Reading(
            "object-detection", why, sure=is_told, classes=count, family="end-to-end", tables=_tensors(source, name)
        )
    form = _yolo_form(first, second, count)
    if form is None:
        return None
    head, classes, anchors = form
    grid = next((strides for strides in YOLO_STRIDES if anchors == _cells(trial.size, strides)), None)
    of_three = any(anchors == 3 * _cells(trial.size, strides) for strides in YOLO_STRIDES)
    if not (is_told or grid or of_three):
        return Reading(
            TENSOR, f"output {name!r} (n, {first}, {second}) is no head that is known: {anchors} is no number of cells"
        )
    tables = _tensors(source, name)
    notes: dict[str, str] = {}
    if head == "yolov8":
        if values is not None:
            tables["detection"] |= _box_form(values[0, :4].T, default_unit="pixel", notes=notes)
        why = f"output {name!r} (n, 4 + {classes} labels, {anchors} anchors): YOLOv8's head"
        return Reading(
            "object-detection", why, sure=is_told, classes=classes, tables=tables, notes=notes, family="YOLOv8"
        )
    family = "YOLOX" if grid and not of_three else "YOLOv5"
    if not _is_decoded(source, name):
        if not grid:
            return Reading(TENSOR, f"output {name!r} has boxes as offsets from anchors: export it with its decoding")
        tables["detection"]["strides"] = list(grid)
        notes["detection.strides"] = (
            f"{anchors} boxes are the cells of these maps, and nothing after the last convolutions decodes them"
        )
    why = f"output {name!r} (n, {anchors} anchors, 5 + {classes} labels): {family}'s head"
    return Reading("object-detection", why, classes=classes, tables=tables, notes=notes, family=family)


def _tensors(source: Source, name: str) -> dict[str, dict[str, Any]]:
    """Which output has the detections, where there are others, and an empty table for the rest."""
    named = {"tensors": {"detections": name}} if len(source.signature.outputs) > 1 else {}
    return {**named, "detection": {}}


def _yolo_form(first: int, second: int, count: int | None) -> tuple[str, int, int] | None:
    """Head, number of labels and of anchors of an output (n, first, second) that may be YOLO's."""
    if count is not None and first == 4 + count:
        return "yolov8", count, second
    if count is not None and second == 5 + count:
        return "yolov5", count, first
    if count is not None:
        return None
    if 4 < first < second:
        return "yolov8", first - 4, second
    return ("yolov5", second - 5, first) if 5 < second < first else None


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> int:
    return sum((size[0] // stride) * (size[1] // stride) for stride in strides)


def _is_decoded(source: Source, name: str) -> bool:
    """Whether something after the last convolutions makes boxes of offsets."""
    after, waiting, seen = set(), [name], {name}
    while waiting:
        node = source.makers.get(waiting.pop())
        if node is None or node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
            continue
        after.add(node.op_type)
        waiting += [each for each in node.input if each not in seen]
        seen |= set(node.input)
    return bool(after & {"Exp", "Pow"}) or {"Mul", "Add"} <= after


# --- a map of labels


def _segmenter(source: Source, picture: PictureInput, trial: Trial) -> Reading | None:
    shapes = {
        name: shape
        for name, shape in _floats(source, trial).items()
        if len(shape) == 3 and None not in shape and name not in _BESIDE
    }
    ways = [
        (name, layout, int(shape[axis] or 0), (int(shape[rows] or 0), int(shape[rows + 1] or 0)))
        for name, shape in shapes.items()
        for layout, axis, rows in (("NCHW", 0, 1), ("NHWC", 2, 0))
    ]
    height, width = trial.size
    near = [
        way for way in ways
        if way[3][0] * 8 >= height and way[3][1] * 8 >= width and max(way[3]) > 1
        and abs(way[3][0] * width - way[3][1] * height) <= max(height, width)
    ]  # fmt: skip
    if len({way[1] for way in near}) > 1:  # such as 64 labels of 64x64
        near = [way for way in near if way[1] == picture.layout]
    if not near:
        return _fastest_det(ways)
    name, layout, classes, (rows, columns) = max(near, key=lambda way: way[3])
    if classes == FASTEST_DET:
        return _fastest_det(ways)
    activation = source.signature.activations.get(name)
    shape = (
        f"output {name!r} has {classes} map{'s' * (classes > 1)} of {rows}x{columns} for a picture of {height}x{width}"
    )
    if (
        classes > MOST_SEGMENTS
        or rows > height
        or (activation is None and _is_picture_again(trial, picture, name, layout))
    ):
        return Reading(TENSOR, f"{shape}: it makes pictures of pictures, which no typed task does")
    tensors = {"scores": name} if len(near) > 1 else {}
    what = "a mask" if classes == 1 else "a score for each label at each place"
    return Reading(
        "image-segmentation",
        f"{shape}: {what}{f', after a {activation}' if activation else ''}",
        sure=activation is not None and classes > 1,
        classes=max(classes, 2),
        tables={"tensors": tensors},
        coarse=rows * 4 <= height,
    )


def _fastest_det(ways: list[tuple[str, str, int, tuple[int, int]]]) -> Reading | None:
    if not any(classes == FASTEST_DET for _, _, classes, _ in ways):
        return None
    return Reading(TENSOR, f"a map of {FASTEST_DET} numbers is FastestDet's head, which no typed task reads")


def _is_picture_again(trial: Trial, picture: PictureInput, name: str, layout: str) -> bool:
    """Whether an output looks like the picture that went in."""
    came = trial.outputs.get(name)
    if came is None:
        return False
    put = trial.given[0] if picture.layout == "NCHW" else trial.given[0].transpose(2, 0, 1)
    got = came[0] if layout == "NCHW" else came[0].transpose(2, 0, 1)
    if put.shape != got.shape or not (np.std(put) and np.std(got)):
        return False
    return float(np.corrcoef(put.ravel(), got.ravel())[0, 1]) > 0.8


# --- classes


def _classifier(source: Source, picture: PictureInput, trial: Trial) -> Reading | None:
    able: list[tuple[str, int | None]] = []
    for name, shape in _floats(source, trial).items():
        wide = [axis for axis in shape if axis != 1]
        if shape and len(wide) <= 1 and name not in _BESIDE:
            able.append((name, wide[0] if wide else 1))
    if not able:
        return None
    name, classes = _scores_among(source, able)
    activation = source.signature.activations.get(name)
    if activation is None and _is_normalised(source, name):
        return Reading(
            TENSOR, f"output {name!r} is divided by its length: an embedding, which is compared by the caller"
        )
    if name == "values" or (classes == 1 and activation is None):
        return Reading(
            TENSOR,
            f"output {name!r} has numbers and no classes; image-regression needs measured intervals: see its page",
        )
    ways = {
        "softmax": "probabilities",
        "log_softmax": "their logarithms",
        "sigmoid": "each label by itself",
        None: "logits",
    }
    tables: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    if len(able) > 1 and name != "logits":
        tables["tensors"] = {"logits": name}
        notes["tensors.logits"] = "of several outputs, the first with the most probable shape"
    meant = "two labels" if classes == 1 else f"{classes} labels"
    return Reading(
        "image-classification",
        f"output {name!r} has a number for each of {meant}: {ways[activation]}"
        + (f" (last operator {activation})" if activation else ""),
        sure=activation in ("softmax", "log_softmax"),
        classes=2 if classes == 1 else classes,
        tables=tables,
        notes=notes,
    )


def _scores_among(source: Source, able: list[tuple[str, int | None]]) -> tuple[str, int | None]:
    """The output with the classes' scores: as many as there are labels, or after an activation, or the first."""
    known = labels.find(source, None)
    counted = [one for one in able if known and one[1] == len(known.names)]
    named = [one for one in able if one[0] == "logits"]
    active = [one for one in able if one[0] in source.signature.activations]
    return next(iter([*named, *counted, *active, *able]))


def _is_normalised(source: Source, name: str) -> bool:
    """Whether rows of an output are divided by their length."""
    _, node = source.back(name, "Flatten", "Reshape", "Squeeze")
    if node is None or node.op_type != "Div":
        return node is not None and node.op_type == "LpNormalization"
    _, below = source.back(node.input[1], "Clip", "Expand", "Max", "Add", "Unsqueeze", "Reshape", "Sqrt")
    return below is not None and below.op_type in ("ReduceL2", "ReduceSumSquare")
