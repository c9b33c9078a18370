"""The picture that a graph takes: which axis has the colours, how large it is, and on which scale its numbers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.graph import Array, TensorSpec
from service.importing.source import Source, literal
from service.runtime.onnx_file import attributes_of

Layout = Literal["NCHW", "NHWC"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pictures that most published networks for photographs began with, on a scale of 0 to 1."""
WHOLE_SCALE = 1 / 255
"""As `std`: the graph gets 0 to 255."""
SMALL = 64
"""Up to this side, pictures are of the kind that is stretched and not normalised by ImageNet (pixels)."""
MOST_SPAN, LEAST_SPAN = 12.0, 0.4
"""How far apart black and white may be once a graph has normalised them: else they came on another scale."""


@dataclass(frozen=True, slots=True)
class PictureInput:
    """The input that takes a picture.

    Attributes:
        spec: of the graph's input.
        layout: which axis has the colours.
        layout_reason: how that is known.
        layout_is_open: whether the shape does not tell it, so that a manifest has to.
        channels: 3 or 1.
        height, width: None where they are free.
    """

    spec: TensorSpec
    layout: Layout
    layout_reason: str
    layout_is_open: bool
    channels: int
    height: int | None
    width: int | None

    @property
    def kind(self) -> str:
        """Its shape in words."""
        size = f"{self.height}x{self.width}" if self.height and self.width else "any size"
        return f"{self.layout}, {'colour' if self.channels == 3 else 'grey'}, {size}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How pixels of 0 to 1 become the graph's numbers, (pixel - mean) / std.

    Attributes:
        mean, std: one number, or one for each colour.
        reason: how they are known.
        sure: whether the file says so.
        whole: whether the graph takes pixels as they are, 0 to 255.
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    reason: str
    sure: bool = False
    whole: bool = False

    @property
    def family(self) -> str:
        """In words."""
        if self.whole:
            return "pixels as they are"
        known = {
            (0.0, 1.0): "0 to 1",
            (0.0, WHOLE_SCALE): "0 to 255",
            (0.5, 0.5): "-1 to 1",
            (IMAGENET_MEAN, IMAGENET_STD): "ImageNet's mean and std",
        }
        return known.get((self.mean, self.std), f"mean {self.mean}, std {self.std}")


def find(source: Source) -> PictureInput | None:
    """The only input, where it is a picture."""
    specs = list(source.signature.inputs.values())
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].dtype not in ("uint8", "float32"):
        return None
    (spec,) = specs
    shapes: dict[Layout, tuple[Any, Any, Any]] = {
        "NCHW": (spec.shape[1], spec.shape[2], spec.shape[3]),
        "NHWC": (spec.shape[3], spec.shape[1], spec.shape[2]),
    }
    possible = [layout for layout, (colours, _, _) in shapes.items() if colours in (1, 3)]
    used = _as_convolved(source, spec.name)
    if len(possible) == 1:
        (layout,) = possible
        reason = f"axis {1 if layout == 'NCHW' else 3} of {spec.name!r} has {shapes[layout][0]}"
        channels, is_open = shapes[layout][0], False
    elif used is not None and (not possible or used[0] in possible):
        (layout, channels), is_open = used, True
        reason = f"the first convolution takes {channels} channel{'s' * (channels > 1)} so"
    else:
        return None
    _, height, width = shapes[layout]
    sides = [side if isinstance(side, int) and side > 0 else None for side in (height, width)]
    return PictureInput(spec, layout, reason, is_open, channels, *sides)


def _as_convolved(source: Source, name: str) -> tuple[Layout, int] | None:
    """The layout and the channels that the first convolution gets of an input, if it can be told."""
    layout: Layout = "NCHW"
    for node in source.forward(name):
        if node.op_type == "Transpose" and list(attributes_of(node).get("perm", ())) == [0, 3, 1, 2]:
            layout = "NHWC"
        if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
            weights = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
            shape = source.shape_of_weight(weights)
            channels = shape[1] * int(attributes_of(node).get("group", 1)) if shape and len(shape) == 4 else 0
            return (layout, channels) if channels in (1, 3) else None
    return None


# --- scale


def known_scale(source: Source, picture: PictureInput) -> Scale | None:
    """The scale that the graph, its metadata or a file beside it tells; None where nothing does."""
    if picture.spec.dtype == "uint8":
        return Scale(0.0, 1.0, f"{picture.spec.name!r} takes uint8: the graph normalises", sure=True, whole=True)
    return _inside(source, picture) or _declared(source, picture) or _calibrated(source, picture.spec.name)


def _inside(source: Source, picture: PictureInput) -> Scale | None:
    """The scale that fits what the graph's first operators do with constants: dividing by 255, a mean, a std."""
    factor, shift, done = np.ones(1), np.zeros(1), []
    tensor = picture.spec.name
    for node in source.forward(picture.spec.name):
        if node.op_type in ("Div", "Mul", "Sub", "Add"):
            others = [name for name in node.input if name != tensor]
            constant = source.weight(others[0]) if len(others) == 1 else None
            if (
                constant is None
                or constant.size not in (1, picture.channels)
                or (node.op_type in ("Div", "Sub") and node.input[0] != tensor)
            ):
                break
            number = constant.astype(np.float64).ravel()
            if node.op_type in ("Div", "Mul"):
                by = 1 / number if node.op_type == "Div" else number
                factor, shift = factor * by, shift * by
            else:
                shift = shift - number if node.op_type == "Sub" else shift + number
            done.append(node.op_type)
        elif node.op_type not in ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear"):
            break
        tensor = node.output[0]
    if not done or not np.isfinite(factor).all():
        return None
    span, what = float(np.abs(factor).max()), f"the graph begins with {', '.join(done)} by constants: it normalises"
    if LEAST_SPAN <= span * 255 <= MOST_SPAN or float(np.abs(shift).max()) > MOST_SPAN:
        return Scale(0.0, WHOLE_SCALE, f"{what}, from 0 to 255", sure=True)
    if LEAST_SPAN <= span <= MOST_SPAN:
        return Scale(0.0, 1.0, f"{what}, from 0 to 1", sure=True)
    return None


def _declared(source: Source, picture: PictureInput) -> Scale | None:
    """What Hugging Face's `preprocessor_config.json` beside the file, or the file's metadata, say."""
    document = source.document("preprocessor_config.json")
    if document:
        factor = document.get("rescale_factor", WHOLE_SCALE) if document.get("do_rescale", True) else 1.0
        mean, std = (_numbers(document.get(key), picture.channels) for key in ("image_mean", "image_std"))
        why = "preprocessor_config.json beside the file"
        if not document.get("do_normalize", mean is not None):
            return Scale(0.0, WHOLE_SCALE / factor, why, sure=True)
        if mean is not None and std is not None:
            scale = WHOLE_SCALE / factor  # of the numbers that mean and std are for, to 0 to 1
            of_mean, of_std = (tuple(round(number * scale, 9) for number in numbers) for numbers in (mean, std))
            return Scale(_one(of_mean), _one(of_std), why, sure=True)
    if source.metadata.get("author") == "Ultralytics":
        return Scale(0.0, 1.0, "Ultralytics trains on 0 to 1", sure=True)
    mean, std = (
        _numbers(literal(source.metadata.get(name, source.metadata.get(f"image_{name}", ""))), picture.channels)
        for name in ("mean", "std")
    )
    if mean is not None and std is not None:
        by = 255.0 if max(np.abs([*mean, *std])) > 2 else 1.0
        return Scale(
            _one(tuple(m / by for m in mean)), _one(tuple(s / by for s in std)), "the file's metadata", sure=True
        )
    return None


def _one(numbers: tuple[float, ...]) -> float | tuple[float, ...]:
    """Numbers that are all the same as one."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _numbers(value: Any, channels: int) -> tuple[float, ...] | None:
    """Three numbers, or one, of a JSON value."""
    values = [value] if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in (1, channels):
        return None
    numbers = tuple(float(number) for number in values if isinstance(number, int | float))
    return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else None


def _calibrated(source: Source, name: str) -> Scale | None:
    """The range that a quantised graph was calibrated on."""
    node = next((n for n in source.users.get(name, ()) if n.op_type == "QuantizeLinear" and n.input[0] == name), None)
    if node is None:
        return None
    step, zero = source.weight(node.input[1]), source.weight(node.input[2]) if len(node.input) > 2 else None
    if step is None or step.size != 1:
        return None
    zero = np.zeros(1, np.uint8) if zero is None else zero
    if zero.dtype not in (np.uint8, np.int8):
        return None
    bounds = np.iinfo(zero.dtype)
    low, high = (float((bound - int(zero.ravel()[0])) * step.ravel()[0]) for bound in (bounds.min, bounds.max))
    what = f"the graph was calibrated on {low:.2f} to {high:.2f}"
    if high > 50:
        return Scale(0.0, WHOLE_SCALE, f"{what}: 0 to 255")
    if low > -0.1 and high < 1.3:
        return Scale(0.0, 1.0, f"{what}: 0 to 1")
    if -1.3 < low < -0.7 and 0.7 < high < 1.3:
        return Scale(0.5, 0.5, f"{what}: -1 to 1")
    if -2.6 < low < -1.6 and 2 < high < 3:
        return Scale(IMAGENET_MEAN, IMAGENET_STD, f"{what}: ImageNet's")
    return None


def usual_scale(source: Source, picture: PictureInput, task: str) -> Scale:
    """The scale that graphs of this kind usually have, where nothing tells."""
    side = max(picture.height or SMALL + 1, picture.width or SMALL + 1)
    if task == "object-detection":
        return Scale(0.0, 1.0, "detectors are usually trained on 0 to 1")
    if picture.channels == 1:
        return Scale(0.0, 1.0, "grey pictures are usually 0 to 1")
    if side <= SMALL:
        return Scale(0.0, 1.0, f"pictures of {side} pixels are usually 0 to 1")
    if picture.layout == "NHWC" or "tf2onnx" in source.exporter or "keras" in source.exporter.lower():
        return Scale(0.5, 0.5, "Keras's networks for photographs usually take -1 to 1")
    return Scale(IMAGENET_MEAN, IMAGENET_STD, "networks for photographs usually begin with ImageNet's weights")


def as_input(picture: PictureInput, pixels: Array, scale: Scale) -> Array:
    """Pixels uint8 (height, width, 3) as the graph's input of one row, for a trial."""
    values: Array = pixels if picture.channels == 3 else pixels.mean(axis=2, keepdims=True).astype(np.uint8)
    if picture.spec.dtype != "uint8":
        values = ((values / 255 - np.asarray(scale.mean)) / np.asarray(scale.std)).astype(np.float32)
    return np.ascontiguousarray(values[None] if picture.layout == "NHWC" else values.transpose(2, 0, 1)[None])
