"""The whole of a model folder that an ONNX file could be: its task, its manifest, its labels, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from service.graph import Array
from service.importing import answers, labels, states, trial
from service.importing import picture as pictures
from service.importing.answers import TENSOR, Reading, Trial
from service.importing.picture import IMAGENET_MEAN, SMALL, WHOLE_SCALE, PictureInput, Scale
from service.importing.source import Source, literal

Table = dict[str, Any]

CROPPED = 0.875
"""The centre that most classifiers of photographs were trained on, as a share of the shorter side: 224 of 256."""
USUAL_SIDE, DETECTORS_SIDE, SEGMENTERS_SIDE = 224, 640, 512
"""Sides of pictures where graph, metadata and files leave them open (pixels)."""
_ARCHITECTURES = (
    ("rnn", {"LSTM", "GRU", "RNN"}),
    ("transformer", {"Attention", "MultiHeadAttention", "LayerNormalization"}),
    ("cnn", {"Conv", "QLinearConv", "ConvInteger"}),
)
"""Kinds of networks by operators of which each has at least one."""
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of filters, as `preprocessor_config.json` has them."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Something that a manifest or a file of the model says, and how it is known.

    Attributes:
        about: what it is about.
        value: what was found.
        reason: how.
        key: of the manifest, such as `preprocessing.mean`; empty where it has none.
        otherwise: the option that says something else.
        sure: whether the file says it, or who imports it: then nobody has to confirm it.
    """

    about: str
    value: str
    reason: str
    key: str = ""
    otherwise: str = ""
    sure: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """What who imports a file has said.

    Attributes:
        task: its name.
        labels: of the classes.
        settings: keys and tables of the manifest.
    """

    task: str | None = None
    labels: Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, table: str, key: str) -> Any:
        """A setting in a table; None where it was not said."""
        found = self.settings.get(table)
        return found.get(key) if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the folder of a model would be.

    Attributes:
        task: that serves it.
        manifest: keys and tables.
        labels: of its classes, one a line; None without.
        guesses: what is known and how, in the order in which it was found.
        inputs: of a graph that takes no picture: numbers for a trial; empty where none of them ran.
        scores: of a classifier: the output with the classes' scores.
        trial: of a graph that takes a picture.
    """

    task: str
    manifest: Table
    labels: tuple[str, ...] | None
    guesses: tuple[Guess, ...]
    inputs: Mapping[str, Array] = field(default_factory=dict)
    scores: str = ""
    trial: Trial | None = None

    @property
    def open(self) -> tuple[Guess, ...]:
        """The guesses that nobody has confirmed."""
        return tuple(guess for guess in self.guesses if not guess.sure)


def propose(source: Source, photo: Array, wishes: Wishes | None = None, picture_tasks: Sequence[str] = ()) -> Proposal:
    """Say what a graph's folder would be.

    Args:
        source: the graph.
        photo: a picture to try it with, uint8 (height, width, 3), of any size.
        wishes: what was said.
        picture_tasks: names of the tasks that take pictures.
    """
    wishes = wishes or Wishes()
    picture = pictures.find(source) if wishes.task is None or wishes.task in picture_tasks else None
    found = _of_picture(source, picture, photo, wishes) if picture else None
    if found is None or found.task == TENSOR:
        reasons = [guess for guess in found.guesses if guess.about == "task"] if found else []
        found = _of_tensors(source, wishes, reasons[0] if reasons else None)
    manifest = _merged(found.manifest, wishes.settings)
    given = {f"{table}.{key}" for table, keys in wishes.settings.items() if isinstance(keys, Mapping) for key in keys}
    given |= {key for key, value in wishes.settings.items() if not isinstance(value, Mapping)}
    if "preprocessing.std" in given and "mean" in manifest.get("preprocessing", {}):  # the scale is one guess
        given.add("preprocessing.mean")
    guesses = [
        guess if guess.key not in given or not guess.key else _as_given(guess, manifest) for guess in found.guesses
    ]
    known = {guess.key for guess in guesses}
    guesses += [_as_given(Guess(key, "", "", key), manifest) for key in sorted(given - known)]
    return replace(found, manifest=manifest, guesses=tuple(guesses))


def _merged(manifest: Table, settings: Mapping[str, Any]) -> Table:
    merged = dict(manifest)
    for key, value in settings.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _as_given(guess: Guess, manifest: Table) -> Guess:
    table, _, key = guess.key.rpartition(".")
    value = (manifest[table] if table else manifest)[key]
    return replace(guess, value=str(value), reason="as given", sure=True)


def _manifest(source: Source, task: str) -> Table:
    """The keys that every manifest has."""
    architecture = next((name for name, needed in _ARCHITECTURES if needed & source.operators), "other")
    manifest: Table = {"task": task, "architecture": architecture}
    if text := source.metadata.get("description"):
        manifest["description"] = " ".join(text.split())
    if text := source.metadata.get("license"):
        manifest["licence"] = " ".join(text.split())
    return manifest


# --- pictures


def _of_picture(source: Source, picture: PictureInput, photo: Array, wishes: Wishes) -> Proposal | None:
    """A proposal for a graph that takes a picture."""
    guesses = [Guess("input", picture.kind, picture.layout_reason, sure=True)]
    preprocessing: Table = {}
    if picture.layout_is_open:
        preprocessing["layout"] = picture.layout
    size, why_size = _size(source, picture, wishes)
    known = pictures.known_scale(source, picture)
    provisional = known or Scale(0.0, 1.0, "")
    tried = _tried(source, picture, provisional, photo, size or (USUAL_SIDE, USUAL_SIDE))
    reading = answers.of_picture(source, picture, tried, wishes.task)
    if size is None:
        side = {"object-detection": DETECTORS_SIDE, "image-segmentation": SEGMENTERS_SIDE}.get(reading.task, USUAL_SIDE)
        size, why_size = (side, side), f"height and width are free; {side} is usual for {reading.task}"
        if side != USUAL_SIDE:
            tried = _tried(source, picture, provisional, photo, size)
            reading = answers.of_picture(source, picture, tried, wishes.task)
    if reading.task == TENSOR:
        return Proposal(TENSOR, {}, None, (Guess("task", TENSOR, reading.reason, "task", "--task T", reading.sure),))
    guesses.insert(0, _task_guess(reading, wishes))
    if not (picture.height and picture.width):
        preprocessing["size"] = list(size) if size[0] != size[1] else size[0]
        sure = why_size in _TOLD
        guesses.append(
            Guess("size", f"{size[0]}x{size[1]}", why_size, "preprocessing.size", _option("preprocessing.size"), sure)
        )
    found = _labels(source, reading, wishes, guesses)
    scale = _scale(source, picture, reading, known, size)
    guesses.append(
        Guess(
            "scale",
            scale.family,
            scale.reason,
            "preprocessing.mean",
            _option("preprocessing.mean") + " " + _option("preprocessing.std"),
            scale.sure,
        )
    )
    if picture.spec.dtype != "uint8":
        preprocessing |= {"mean": _plain(scale.mean), "std": _plain(scale.std)}
    preprocessing |= _resize(source, picture, reading, scale, size, guesses)
    manifest = _manifest(source, reading.task)
    tables = {"preprocessing": preprocessing, **reading.tables}
    manifest |= {name: dict(table) for name, table in tables.items() if table}
    guesses += [
        Guess(key, str(manifest[key.split(".")[0]][key.split(".")[1]]), reason, key, _option(key))
        for key, reason in reading.notes.items()
    ]
    return Proposal(reading.task, manifest, found, tuple(guesses), scores=_scores(source, reading), trial=tried)


def _plain(numbers: float | tuple[float, ...]) -> float | list[float]:
    return list(numbers) if isinstance(numbers, tuple) else numbers


def _option(key: str, value: str = "…") -> str:
    """How the command line says what a key of the manifest should be."""
    return f"--set {key}={value}"


_TOLD = ("'imgsz' in the file's metadata", "preprocessor_config.json beside the file", "as given")
"""Reasons for a size that leave nothing to guess."""


def _size(source: Source, picture: PictureInput, wishes: Wishes) -> tuple[tuple[int, int] | None, str]:
    """Height and width of what the graph gets, and how they are known; None where they are open."""
    if picture.height and picture.width:
        return (picture.height, picture.width), ""
    document = source.document("preprocessor_config.json")
    told = (
        (wishes.of("preprocessing", "size"), _TOLD[2]),
        (literal(source.metadata.get("imgsz", "")), _TOLD[0]),
        (document.get("crop_size") if document.get("do_center_crop") else None, _TOLD[1]),
        (document.get("size"), _TOLD[1]),
    )
    for value, reason in told:
        if (sides := _two_sides(value)) is not None:
            fixed = (picture.height or sides[0], picture.width or sides[1])
            return fixed, reason
    return None, ""


def _two_sides(value: Any) -> tuple[int, int] | None:
    """Height and width in what files say of sizes: a number, a list, or names."""
    if isinstance(value, Mapping):
        value = [value.get("height", value.get("shortest_edge")), value.get("width", value.get("shortest_edge"))]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    ):
        return value[0], value[1]
    return None


def _tried(source: Source, picture: PictureInput, scale: Scale, photo: Array, size: tuple[int, int]) -> Trial:
    """Run the graph on a picture; a run that fails gives nothing."""
    rows = np.arange(size[0]) * photo.shape[0] // size[0]
    columns = np.arange(size[1]) * photo.shape[1] // size[1]
    given = pictures.as_input(picture, photo[rows][:, columns], scale)
    return Trial(size, given, trial.run(source, {picture.spec.name: given}))


def _task_guess(reading: Reading, wishes: Wishes) -> Guess:
    if wishes.task:
        return Guess("task", reading.task, "as given", "task", "--task T", sure=True)
    return Guess("task", reading.task, reading.reason, "task", "--task T", reading.sure)


def _labels(source: Source, reading: Reading, wishes: Wishes, guesses: list[Guess]) -> tuple[str, ...] | None:
    """The labels of the classes."""
    if wishes.labels is not None:
        guesses.append(
            Guess(
                "labels",
                f"{len(wishes.labels)}",
                "as given",
                otherwise="--labels FILE",
                sure=True,
            )
        )
        return tuple(wishes.labels)
    found = labels.find(source, reading.classes, detector=reading.task == "object-detection")
    if found is None:
        if reading.family != "end-to-end":
            return None
        found = labels.Labels(labels.coco(), "no list: COCO's 80, as most detectors have them", sure=False)
    if reading.task == "image-segmentation" and found.names == ("class 0", "class 1"):
        found = labels.Labels(("background", "foreground"), "their count, 2: a mask", sure=False)
    few = ", ".join(found.names[:3]) + (", …" if len(found.names) > 3 else "")
    guesses.append(
        Guess(
            "labels",
            f"{len(found.names)}: {few}",
            f"from {found.source}",
            otherwise="--labels FILE",
            sure=found.sure,
        )
    )
    return found.names


def _scale(
    source: Source, picture: PictureInput, reading: Reading, known: Scale | None, size: tuple[int, int]
) -> Scale:
    """The scale of the graph's numbers."""
    if known is not None:
        return known
    if reading.family == "YOLOX":
        return Scale(0.0, WHOLE_SCALE, "YOLOX takes 0 to 255, and often BGR, which is not done here: compare")
    return pictures.usual_scale(source, replace(picture, height=size[0], width=size[1]), reading.task)


def _resize(
    source: Source, picture: PictureInput, reading: Reading, scale: Scale, size: tuple[int, int], guesses: list[Guess]
) -> Table:
    """How a picture is made as large as the graph's."""
    document = source.document("preprocessor_config.json")
    table: Table = {}
    sure = False
    if reading.task == "image-segmentation" or (reading.task == "object-detection" and reading.family == "SSD"):
        table["resize"], why = "stretch", "usual for such graphs"
    elif source.metadata.get("author") == "Ultralytics" and reading.task == "image-classification":
        table, why, sure = {"resize": "crop", "resize_to": max(size)}, "as Ultralytics trains classifiers", True
    elif reading.task == "object-detection":
        table["resize"], why = "letterbox", f"{reading.family or 'such a detector'}'s pictures are put into grey"
        sure = source.metadata.get("author") == "Ultralytics"
    elif document.get("do_center_crop") and (shorter := _two_sides(document.get("size"))):
        table, why, sure = {"resize": "crop", "resize_to": min(shorter)}, _TOLD[1], True
    elif document:
        table["resize"], why, sure = "stretch", _TOLD[1], True
    elif max(size) > SMALL and (scale.mean == IMAGENET_MEAN or "pytorch" in source.exporter):
        table = {"resize": "crop", "resize_to": round(max(size) / CROPPED)}
        why = "classifiers of photographs usually take the centre of a larger picture"
    else:
        table["resize"], why = "stretch", "usual for such graphs"
    if document.get("resample") in _FILTERS and _FILTERS[document["resample"]] != "bilinear":
        table["filter"] = _FILTERS[document["resample"]]
    shown = ", ".join(str(value) for value in table.values())
    guesses.append(
        Guess("resize", shown, why, "preprocessing.resize", _option("preprocessing.resize", '"stretch"'), sure)
    )
    return table


def _scores(source: Source, reading: Reading) -> str:
    """The output of a classifier with its scores."""
    if reading.task != "image-classification":
        return ""
    named = reading.tables.get("tensors", {}).get("logits")
    outputs = source.signature.outputs
    return str(named or ("logits" if "logits" in outputs else next(iter(outputs))))


# --- everything else


def _of_tensors(source: Source, wishes: Wishes, reason: Guess | None) -> Proposal:
    """A proposal for a graph that takes no picture, or whose picture no typed task reads."""
    reading = answers.of_tensors(source)
    task = wishes.task or (TENSOR if reason else reading.task)
    manifest = _manifest(source, task)
    if wishes.task:
        guesses = [Guess("task", task, "as given", "task", "--task T", sure=True)]
    else:
        guesses = [reason or Guess("task", task, reading.reason, "task", "--task T", reading.sure)]
    if source.constants:
        manifest["constants"] = {name: int(value) for name, value in source.constants.items()}
        guesses += [
            Guess(
                f"constants.{name}",
                str(value),
                "a sample rate; 16 kHz is usual",
                f"constants.{name}",
                _option(f"constants.{name}", "8000"),
            )
            for name, value in manifest["constants"].items()
        ]
    found = states.pairs(source)
    if of_ours := states.declared(found):
        manifest["state"] = of_ours
    for name, (following, why) in found.items():
        shown = f"{name} → {following}"
        guesses.append(
            Guess(
                "state",
                shown,
                why,
                f"state.{name}" if name in of_ours else "",
                _option(f"state.{name}", f'"{following}"'),
                name not in of_ours,
            )
        )
    inputs, batched = trial.numbers(source, {name: following for name, (following, _) in found.items()})
    if task == TENSOR and batched is not None and source.signature.batch_problem is None:
        if not batched:
            manifest["batched"] = False
        meant = "is the batch" if batched else "is no batch"
        why = "rows computed together and alone were " + ("the same" if batched else "not the same")
        guesses.append(Guess("axis 0", meant, why, "batched", _option("batched", str(not batched).lower()), sure=True))
    names = _labels_of_tensors(source, wishes, guesses)
    return Proposal(task, manifest, names, tuple(guesses), inputs)


def _labels_of_tensors(source: Source, wishes: Wishes, guesses: list[Guess]) -> tuple[str, ...] | None:
    """Labels that a graph of tensors brings along, for whoever reads its numbers."""
    if wishes.labels is not None:
        return tuple(wishes.labels)
    counts = {spec.shape[-1] for spec in source.signature.outputs.values() if spec.shape}
    fitting = [labels.find(source, count) for count in counts if isinstance(count, int)]
    found = next((each for each in fitting if each and each.sure), None) or labels.find(source, None)
    if found is None or not found.sure:
        return None
    guesses.append(
        Guess(
            "labels",
            str(len(found.names)),
            f"from {found.source}",
            otherwise="--labels FILE",
            sure=True,
        )
    )
    return found.names
