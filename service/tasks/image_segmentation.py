"""Image segmentation: a label for every pixel of a picture.

A model is a graph with one picture input and one output with a score for each label at each place, float `(batch,
classes, rows, columns)` or `(batch, rows, columns, classes)`, of any size: logits, or what a softmax or a sigmoid has
made of them. A graph with one class and two labels, such as one that finds roads and nothing else, scores the second.

The answer is as large as the picture, whatever the model computes at: the scores are enlarged, not the labels, so
outlines stay smooth (Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015).
The model sees the whole picture at a size of its own: large ones are made smaller, and never cut into pieces.

How certain it is of a pixel, which `explain` tells, is the probability of the label it gives (the baseline of
Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
ICLR 2017).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from service.errors import InferenceFailed, ManifestInvalid
from service.graph import Array
from service.media.masks import class_map_png, grey_png, mask_png, mask_rle
from service.media.overlays import lay_over
from service.media.views import View
from service.tasks.base import FailedFile, ModelFolder, Steps, TaskOutput, TensorSpec, Upload
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
from service.uncertainty.scores import sigmoid

_STREET = (  # drawn for the documentation page, small enough to be typed
    "data:image/webp;base64,"
    "UklGRtgBAABXRUJQVlA4IMwBAAAQEACdASpgAEgAPwVyslArp6UisBiMyXAgiUAZZYax6S4ThkcrflTOajlWDDdIOgiTcrWJ0HRhyEYy"
    "kP37bbBAppteKT7Q0xVfum1Agcq/kA8OfwU+dZWONf4nZofJWET/aYnOaQ4YMwstmdyheH4aHS9Cf7+oq6MQbMcZUxjLd/5AwUzS8JV6"
    "OAD+5xP5cpRymisSaVVMWZlgT+xzYrh5DOQplwuemnzq9Sko7a3xCEUL0CJRNRuKQR5wa1Lr/4vJ5+ImFH5gLbQjcnk9gorfdk/HeoiF"
    "IbS+SqOiLJos2nmY/1yyH1tBgWW/zTx+Xb0mqYPHeqfh2v9Q+TzaqSpxA/JVqs+X3I8qFv3ip3Cdibk1vRXAaDBq5NqutywjhHp4G8kO"
    "wZJhVgwqgV1LOXf3l+yH66MGxqO/Cin5k1z0PIcJ8YoTxlk8wymUYLwtOG1uz0iZ8LdeyV8a/bNyzXLPbRW69xmVoV9pjiQlu6oNneQm"
    "UIQA6sGXKZeWV9t9BfRvF19qpJWMCfZxRlupcqgjsicwJvsgQeYV3hI4J8QvtrEMq797Hg47X0MKW4Gy1qnbVxV8tQW2wNoBOoZsZ/st"
    "IB8ojsk0/WjKNwAA"
)

MOST_LABELS = 256
"""Labels that a class map of 8 bits tells apart (count)."""
BORDER_SHARE = 1 / 64
"""How far apart two processors may see a border, as a share of the picture's longer side: about two cells of a map."""


class ImageSegmentationInput(DrawablePictureInput):
    """Which model, and how the answer is told; the pictures are the files."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"masks": "rle"}]})

    masks: Literal["none", "png", "rle"] = Field(
        default="none",
        description="What each segment has beside its numbers: `png`, a picture of 1 bit; `rle`, COCO's compressed run "
        "lengths, which `pycocotools.mask.decode` reads; or nothing more, as the class map has it all.",
    )
    explain: bool = Field(
        default=False, description="Add `certainty_map`: how certain the model is of the label of every pixel."
    )


class RunLengths(BaseModel):
    """A mask as COCO's compressed run lengths; `pycocotools.mask.decode` reads it after `counts.encode()`."""

    size: tuple[int, int] = Field(description="Height and width of the picture in pixels.", examples=[[480, 640]])
    counts: str = Field(description="The runs, column by column.", examples=["PPYo0"])


class Segment(BaseModel):
    """The pixels of one label."""

    label: str = Field(description="The label.", examples=["road"])
    index: int = Field(description="Its place among the model's labels, and the value of its pixels in the class map.")
    score: float = Field(description="Mean over these pixels of the probability of the label, 0..1.", examples=[0.98])
    fraction: float = Field(description="Share of the picture's pixels; those of all segments add up to 1.")
    mask: str | RunLengths | None = Field(
        default=None,
        description="Where the label is, only with `masks`: a PNG of 1 bit in base64, white there, or run lengths.",
    )


class SegmentedPicture(PictureResult):
    """What is where in one picture."""

    class_map: str = Field(
        description="PNG in base64, as large as the picture, 8 bits with a palette that is the same in every answer of "
        "the model: the value of a pixel is the index of its label.",
    )
    segments: list[Segment] = Field(description="Every label that occurs in the class map, the largest first.")
    certainty_map: str | None = Field(
        default=None,
        description="Only with `explain=true`: grey PNG of 8 bits in base64, as large as the picture. The value of a "
        "pixel is the probability of its label × 255, rounded: dark where the model hesitates, as along borders.",
    )


class ImageSegmentationOutput(TaskOutput):
    """One result for each picture, in the order sent."""

    results: list[SegmentedPicture | FailedFile] = Field(
        description="One entry for each picture, in the order sent; of several, one that cannot be used has an `error`."
    )


class SegmentationTensors(PictureTensors):
    """Which tensors of the graph are what; the manifest's `[tensors]` table."""

    scores: str | None = None
    """The output with the labels' scores; left out: the only one that may be it."""
    scores_layout: Literal["NCHW", "NHWC"] | None = None
    """Which axis of that output is the labels', where its shape does not tell."""


class ImageSegmentationOptions(PictureOptions):
    """What a segmenter's manifest may say."""

    tensors: SegmentationTensors = SegmentationTensors()
    activation: Literal["none", "softmax", "sigmoid"] | None = None
    """What the graph has made of the logits already; left out: what its last operators tell."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The label of every pixel of a picture.

    Attributes:
        class_map: uint8 (height, width), indices of labels.
        pixels: int64 (labels,), how many have each.
        certainty: float64 (labels,), the sum over these pixels of the probability of their label.
        certainty_map: uint8 (height, width), that probability of each pixel × 255; None where it is not asked for.
    """

    class_map: Array
    pixels: Array
    certainty: Array
    certainty_map: Array | None = None

    @property
    def indices(self) -> list[int]:
        """The labels that occur, the largest first, equal ones in the model's order."""
        order = np.argsort(-self.pixels, kind="stable")
        return [int(index) for index in order if self.pixels[index]]


class ImageSegmentation(PictureTask[ImageSegmentationInput, ImageSegmentationOutput]):
    """Gives every pixel of a picture a label: which parts of a street are road, car or pedestrian.

    The class map is a PNG whose pixel values are indices of labels. With `format=png` the answer is the picture itself
    with the labels' colours laid over it. A picture larger than the model's input is segmented at the model's scale.
    """

    name = "image-segmentation"
    summary = "What is each part of this picture?"
    Input, Output, Options = ImageSegmentationInput, ImageSegmentationOutput, ImageSegmentationOptions
    options: ImageSegmentationOptions
    other_answers: ClassVar[Mapping[str, str]] = {"png": "image/png"}
    sample_file = "street.jpg"
    sample_data_url = _STREET
    kind = "a segmenter"

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self.labels = folder.lines("labels.txt")
        if len(self.labels) > MOST_LABELS:
            raise ManifestInvalid(
                f"{folder.name}/{folder.version}/labels.txt",
                f"has {len(self.labels)} labels; a class map of 8 bits has room for {MOST_LABELS}.",
            )
        if self.options.preprocessing.resize == "crop":
            raise ManifestInvalid(
                f"{folder.name}/manifest.toml",
                '[preprocessing] resize = "crop" leaves the edges of a picture unseen, and every pixel needs a label: '
                'write "stretch" or "letterbox".',
            )
        self._scores, self._labels_last = self._scores_output()
        activation = self.options.activation or folder.signature.activations.get(self._scores.name, "none")
        self._are_probabilities = activation in ("softmax", "sigmoid")

    # --- the graph's output

    def _scores_output(self) -> tuple[TensorSpec, bool]:
        """The output with the labels' scores, and whether the labels are its last axis."""
        outputs, tensors = self.folder.signature.outputs, self.options.tensors
        named = [spec for name, spec in outputs.items() if tensors.scores in (None, name)]
        able = [(spec, axes) for spec in named if (axes := self._label_axes(spec))]
        there = "; ".join(map(str, outputs.values()))
        if not able:
            asked = "" if tensors.scores is None else f" named {tensors.scores!r}"
            raise ManifestInvalid(
                self.graph_file,
                f"has no output{asked} of floats (batch, {len(self.labels)}, rows, columns) or (batch, rows, columns, "
                f"{len(self.labels)}), a score at each place for each line of labels.txt"
                f"{', or 1 in place of 2' if len(self.labels) == 2 else ''}; it has: {there}.",
            )
        if len(able) > 1:
            raise ManifestInvalid(
                self.graph_file,
                f"several outputs may be the labels' scores: {'; '.join(str(spec) for spec, _ in able)}. Say which in "
                f'the manifest: [tensors] scores = "{able[0][0].name}".',
            )
        ((spec, axes),) = able
        if len(axes) > 1:
            raise ManifestInvalid(
                self.graph_file,
                f"output {spec} may have its labels on axis 1 or 3. Say which in the manifest: [tensors] "
                'scores_layout = "NCHW" or "NHWC".',
            )
        return spec, axes == [3]

    def _label_axes(self, spec: TensorSpec) -> list[int]:
        """The axes of an output that may be the labels'."""
        if spec.dtype not in ("float32", "float64") or len(spec.shape) != 4:
            return []
        counts = (len(self.labels), 1) if len(self.labels) == 2 else (len(self.labels),)
        layouts = {"NCHW": [1], "NHWC": [3], None: [1, 3]}[self.options.tensors.scores_layout]
        fixed = [axis for axis in layouts if spec.shape[axis] in counts]
        return fixed or [axis for axis in layouts if not isinstance(spec.shape[axis], int)]

    # --- from scores to segments

    def answer_pictures(
        self, request: ImageSegmentationInput, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[list[Any]]:
        outputs = yield self.run(pixels, (self._scores.name,))
        scores = outputs[self._scores.name]
        if self._labels_last:
            scores = scores.transpose(0, 3, 1, 2)  # (N, H, W, K) -> (N, K, H, W)
        if scores.shape[1] not in (len(self.labels), 1):  # of a graph that does not tell how many classes it has
            raise InferenceFailed(self.folder.name)
        found = (self.segment(own, view, explain=request.explain) for own, view in zip(scores, views, strict=True))
        if request.format == "png":
            return list(found)
        return [
            {**picture_fields(file, view), **self.encode(one, request.masks)}
            for file, view, one in zip(files, views, found, strict=True)
        ]

    def segment(self, scores: Array, view: View, *, explain: bool = False) -> Segmentation:
        """Give every pixel of a picture its likeliest label.

        Args:
            scores: float (classes, rows, columns), as the graph gives them.
            view: the picture's size, and the part of it that they cover.
            explain: whether the certainty of every pixel is kept.
        """
        class_map = np.empty((view.height, view.width), np.uint8)
        certainty_map = np.empty_like(class_map) if explain else None
        pixels = np.zeros(len(self.labels), np.int64)
        certainty = np.zeros(len(self.labels))
        for tile, part in view.tiles(scores):
            labels, probabilities = self._likeliest(part)
            class_map[tile] = labels
            if certainty_map is not None:
                certainty_map[tile] = np.rint(probabilities * 255)
            flat = labels.ravel()
            pixels += np.bincount(flat, minlength=len(pixels))
            certainty += np.bincount(flat, probabilities.ravel(), len(pixels))
        return Segmentation(class_map, pixels, certainty, certainty_map)

    def _likeliest(self, scores: Array) -> tuple[Array, Array]:
        """The best label at each place, uint8, and its probability, float32; from scores (classes, rows, columns)."""
        if len(scores) == 1:
            (own,) = scores
            if not self._are_probabilities:
                own = sigmoid(own)
            return (own > 0.5).astype(np.uint8), np.maximum(own, 1 - own)
        best, labels = scores[0].copy(), np.zeros(scores.shape[1:], np.uint8)
        for label, own in enumerate(scores[1:], start=1):  # quicker than argmax along the first axis
            np.copyto(labels, label, where=own > best)
            np.maximum(best, own, out=best)
        if self._are_probabilities:
            return labels, np.clip(best, 0, 1)
        total = np.zeros_like(best)
        for own in scores:
            total += np.exp(own - best)
        return labels, 1 / total

    # --- the answer

    def encode(self, found: Segmentation, kind: Literal["none", "png", "rle"]) -> dict[str, Any]:
        """The class map and its segments, with masks of a kind."""
        segments = []
        for index in found.indices:
            pixels = int(found.pixels[index])
            segment: dict[str, Any] = {
                "label": self.labels[index],
                "index": index,
                "score": min(1.0, float(found.certainty[index]) / pixels),
                "fraction": pixels / found.class_map.size,
            }
            if kind == "png":
                segment["mask"] = _base64(mask_png(found.class_map == index))
            elif kind == "rle":
                segment["mask"] = mask_rle(found.class_map == index)
            segments.append(segment)
        answer = {"class_map": _base64(class_map_png(found.class_map)), "segments": segments}
        if found.certainty_map is not None:
            answer["certainty_map"] = _base64(grey_png(found.certainty_map))
        return answer

    def render(self, request: ImageSegmentationInput, file: Upload, decoded: Decoded, result: Segmentation) -> bytes:
        """The picture with the labels' colours laid over it, and a legend of those that occur."""
        shares = result.pixels / result.class_map.size
        legend = [(index, f"{self.labels[index]} {_percent(shares[index])}") for index in result.indices]
        return lay_over(self.displayed(file), result.class_map, legend)

    # --- comparing and showing answers

    def difference(
        self, request: ImageSegmentationInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Compare maps pixel by pixel: a share of them, as large as the tolerance, may differ close to borders."""
        results = expected.get("results")
        if not isinstance(results, list) or len(results) != len(got["results"]):
            return difference(expected, got, tolerance)
        pairs = enumerate(zip(results, got["results"], strict=True))
        found = (self._result_difference(e, g, tolerance, f"results[{i}]") for i, (e, g) in pairs)
        others = {key: value for key, value in expected.items() if key != "results"}
        return difference(others, got, tolerance) or next(filter(None, found), None)

    def _result_difference(self, expected: Any, got: Mapping[str, Any], tolerance: float, place: str) -> str | None:
        """The first difference between two answers for one picture."""
        if not isinstance(expected, Mapping):
            return difference(expected, got, tolerance, place)
        rest = dict(expected)
        segments, class_map = rest.pop("segments", None), rest.pop("class_map", None)
        found = difference(rest, got, tolerance, place)
        if segments is not None:
            found = found or segments_difference(segments, got["segments"], tolerance, f"{place}.segments")
        if class_map is not None:
            one, other = (_from_base64(each) for each in (class_map, got["class_map"]))
            found = found or self._map_difference(one, other, tolerance, f"{place}.class_map")
        return found

    def _map_difference(self, expected: Array, got: Array, tolerance: float, place: str) -> str | None:
        """Where two class maps differ by more than processors do that round differently."""
        if expected.shape != got.shape:
            return f"at {place}: expected {expected.shape[::-1]} pixels, got {got.shape[::-1]}"
        differ = expected != got
        if differ.mean() > tolerance:
            return f"at {place}: {differ.mean():.2%} of the pixels have another label, expected at most {tolerance:.2%}"
        unlike = differ & ~at_border(expected, got, differ, max(1, round(max(expected.shape) * BORDER_SHARE)))
        if not unlike.any():
            return None
        row, column = np.argwhere(unlike)[0]
        return (
            f"at {place}: expected {self.labels[expected[row, column]]!r} at column {column}, row {row}, far from any "
            f"border, got {self.labels[got[row, column]]!r}"
        )

    def shown_result(self, request: ImageSegmentationInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        """A table of the labels, the largest first."""
        title = f"{result['filename'] or 'picture'}, {result['width']} x {result['height']} pixels"
        rows = [(one["label"], f"{one['fraction']:.1%}", f"{one['score']:.2f}") for one in result["segments"]]
        yield Table(("label", "share of the picture", "score"), rows, title)


def segments_difference(expected: Any, got: Any, tolerance: float, place: str) -> str | None:
    """The first difference between two lists of segments: by label, as those of about one size may change places.

    A segment smaller than the tolerance may be there or not, and its score is the mean of too few pixels to compare.
    """
    if not isinstance(expected, list) or not all(isinstance(one, Mapping) and "label" in one for one in expected):
        return difference(expected, got, tolerance, place)
    wanted, given = {one["label"]: one for one in expected}, {one["label"]: one for one in got}
    for label in {**wanted, **given}:
        before, after = (one.get(label, {}).get("fraction", 0.0) for one in (wanted, given))
        if label not in wanted or label not in given:
            if max(before, after) > tolerance:
                return f"at {place}: expected {label!r} to be {before:.2%} of the picture, got {after:.2%}"
        elif before > tolerance:
            told = {key: value for key, value in wanted[label].items() if key != "mask"}
            if found := difference(told, given[label], tolerance, place):
                return f"{found} for label {label!r}"
    if not expected:
        return f"at {place}: expected none, got {len(got)}"
    main, other = expected[0], got[0]
    if main["label"] != other["label"] and abs(main["fraction"] - other["fraction"]) > tolerance:
        return f"at {place}[0]: expected {main['label']!r} to be the largest, got {other['label']!r}"
    return None


def at_border(one: Array, other: Array, differ: Array, reach: int) -> Array:
    """Where two class maps may differ because they see a border a little further on.

    Args:
        one: uint8 (height, width).
        other: the same.
        differ: bool (height, width), the pixels to judge.
        reach: how far a border may be (pixels).

    Returns:
        bool (height, width): the pixel's label of one map occurs in the other no further away.
    """
    found = np.zeros_like(differ)
    for seen, there in ((one, other), (other, one)):
        for label in np.unique(seen[differ]):
            found |= (seen == label) & dilated(there == label, reach)
    return found & differ


def dilated(mask: Array, reach: int) -> Array:
    """A mask grown by so many pixels to each side: bool (height, width)."""
    for axis in (0, 1):
        room = [(0, 0), (0, 0)]
        room[axis] = (reach + 1, reach)
        sums = np.cumsum(np.pad(mask, room), axis=axis, dtype=np.int32)
        count = mask.shape[axis]
        here, before = (np.take(sums, np.arange(count) + shift, axis) for shift in (2 * reach + 1, 0))
        mask = here > before
    return mask


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> Array:
    """A class map as uint8 (height, width)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def _percent(share: float) -> str:
    """A share in few characters."""
    return f"{share:.0%}" if share >= 0.01 else "<1%"
