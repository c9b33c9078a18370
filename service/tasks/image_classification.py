"""Image classification: pictures in, labels with probabilities out.

A model is any graph with one picture input, either `uint8 (batch, height, width, 3)`, whose graph normalises by itself,
or `float32 (batch, 3, height, width)`, normalised here with the manifest's mean and std; and an output `logits`
`float32 (batch, classes)`. With `explain` it also needs `activation_map` `float32 (batch, classes, rows, columns)`, the
class activation map of Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016).

How sure an answer is, the manifest's `[calibration]` table says, fitted on held-out pictures (`service.calibration`):
a prediction set holds every class whose probability reaches a threshold, by split conformal prediction with the score
of Sadinle, Lei, Wasserman, "Least Ambiguous Set-Valued Classifiers With Bounded Error Levels" (JASA 2019); and the
model abstains from a picture that is too novel, which a graph says itself with an output `novelty` `float32 (batch,)`,
and the energy of Liu et al., "Energy-based Out-of-distribution Detection" (NeurIPS 2020), says for every other.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from kornia_rs.io import decode_image_png_u8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.calibration import energy, softmax
from service.errors import InvalidInput, ManifestInvalid, TooLarge
from service.tasks.base import Array, MediaInput, ModelFolder, Run, Steps, Task, TaskOptions, TaskOutput, Upload
from service.tasks.comparison import difference, near, ranking_difference

Image.MAX_IMAGE_PIXELS = None  # the server's own limit is checked instead, before anything is decoded
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata in files that can be read all the same

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_HORSE = (  # CIFAR-10, test picture 13: small enough to be typed, so that the documentation page has something to send
    "data:image/webp;base64,"
    "UklGRm4BAABXRUJQVlA4IGIBAADwBwCdASogACAAPrVIn0mnJCKhMBgMAOAWiWcAy+eoLsC+ueAPf/WAdwFAqDQhujiM4soRAa+P"
    "wk7dPgDsFBbQRWL6zl38SAAA/vMDDnil4zqxT4tL0UhoTtEjjpmjcz9Y965O8NR7F7S++tKi8K55o2vTE4ewAv2ICGmBd9Q6Te85"
    "Dk9bQM9aB/rLY3b7zW3Mzhuc5+eiHCa9Ke1+JHunUakFy7W5Tz4bP2beGGnQ2Mg7WoeOoL+y8PAafqVwkcmRa1BYMkwNz5xwNepO"
    "fzYACPbnQOMqZ6Xf6sUTE28+6CoFlWYSSWd3BrBcqv/tHPaqtJbF6jOTcPzhdt3uCbYqJ1PPvXmovl43bKrgKu2EHsb76EU2WsYT"
    "jBCcL0NAf80nU8sIg11a6j7Tts4+FReUYP2SZSR82smed41WkDZbtDWtJRrvzjkbw0/5et4yiBiGO0K3MYb3im/jPlZfpngAAAA="
)

SLICE = 32
"""Images decoded and run at a time (count): a request may hold thousands, whose tensors should not all be in memory."""

MOST_LABELS = 1000
"""The largest `top_k` (count)."""

HEATMAP_CELLS = 16
"""Cells along the longer side of a heatmap."""


class ImageClassificationInput(MediaInput):
    """Which model, how many labels, and whether to show where it looked."""

    top_k: Annotated[int, Field(ge=1, le=MOST_LABELS)] = Field(
        default=5,
        description="Labels to return for each image; more than there are classes: all of them.",
        examples=[3],
    )
    explain: bool = Field(
        default=False, description="Add a heatmap: which parts of the image speak for the best label."
    )


class Prediction(BaseModel):
    """A label and how probable it is."""

    label: str = Field(description="Class name.", examples=["cat"])
    score: float = Field(description="Probability of the label.", ge=0, le=1, examples=[0.93])
    index: int = Field(description="Row of the label in the model's labels.", ge=0, examples=[3])


class PredictionSet(BaseModel):
    """The labels that the model cannot rule out."""

    coverage: float = Field(
        description="Share of such sets that hold the true label, for pictures like those the model was calibrated on.",
        gt=0,
        lt=1,
        examples=[0.99],
    )
    labels: list[str] = Field(
        description="Class names, best first, however few `top_k` asks for; the best label is always there.",
        min_length=1,
        examples=[["cat", "dog"]],
    )


class Heatmap(BaseModel):
    """Class activation map over the image that was sent."""

    label: str = Field(description="The label that the map explains: the best one.", examples=["cat"])
    values: list[list[float]] = Field(
        description="Rows from top to bottom, each from left to right; 1 is the part that speaks most for the label.",
        examples=[[[0.0, 0.4], [1.0, 0.2]]],
    )


class ImageResult(BaseModel):
    """What one image shows."""

    filename: str | None = Field(description="As sent with the part; null for a raw body.", examples=["cat.jpg"])
    width: int = Field(description="Pixels, after the EXIF orientation is applied.", examples=[640])
    height: int = Field(description="Pixels, after the EXIF orientation is applied.", examples=[480])
    predictions: list[Prediction] = Field(description="Best first.")
    prediction_set: PredictionSet | None = Field(
        description="More than one label where the model is in doubt; null where the model is not calibrated for sets.",
        examples=[{"coverage": 0.99, "labels": ["cat", "dog"]}],
    )
    abstain: bool | None = Field(
        description="True: the picture is like nothing that the model was trained on, so do not rely on the labels; "
        "null where the model is not calibrated to tell.",
        examples=[False],
    )
    heatmap: Heatmap | None = Field(default=None, description="Only with `explain=true`.")


class ImageClassificationOutput(TaskOutput):
    """One result per image, in the order sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "cifar10-cnn", "version": "2"},
                    "results": [
                        {
                            "filename": "cat.jpg",
                            "width": 640,
                            "height": 480,
                            "predictions": [
                                {"label": "cat", "score": 0.93, "index": 3},
                                {"label": "dog", "score": 0.05, "index": 5},
                            ],
                            "prediction_set": {"coverage": 0.99, "labels": ["cat", "dog"]},
                            "abstain": False,
                        }
                    ],
                }
            ]
        }
    )

    results: list[ImageResult] = Field(description="One entry per image, in the order sent.")


class Preprocessing(TaskOptions):
    """How a picture becomes the graph's input; the manifest's `[preprocessing]` table."""

    resize: Literal["stretch", "crop"] = "stretch"
    """`stretch` makes the whole picture fit; `crop` keeps the aspect ratio and takes the centre."""
    resize_to: int | None = None
    """With `crop`: length of the shorter side before the centre is taken (pixels); left out: the graph's size."""
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """Pillow's resampling filter."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from each colour, on a scale of 0..1; float graphs only."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Each colour is divided by it afterwards; float graphs only."""


class Calibration(TaskOptions):
    """What held-out pictures say about doubt; the manifest's `[calibration]` table (`service.calibration` fits it)."""

    coverage: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of prediction sets that hold the true class."""
    set_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """A class whose probability reaches this is in the set."""
    abstain_above: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A picture whose novelty is above this is like nothing the model was trained on."""
    abstain_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of pictures like the training ones that are above it all the same."""

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> Self:
        for number, promise, fit in (
            ("set_threshold", "coverage", "fit_set_threshold"),
            ("abstain_above", "abstain_rate", "fit_abstain_threshold"),
        ):
            given = [name for name in (number, promise) if getattr(self, name) is not None]
            if len(given) == 1:
                (missing,) = {number, promise} - set(given)
                raise ValueError(
                    f"has {given[0]} but no {missing}; write both, as service.calibration.{fit} finds them, or neither"
                )
        return self


class ImageClassificationOptions(TaskOptions):
    """What the manifest of an image classifier may say."""

    preprocessing: Preprocessing = Preprocessing()
    calibration: Calibration = Calibration()


@dataclass(frozen=True, slots=True)
class View:
    """An image's size, and the part of it that the model sees.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        box: left, top, right, bottom of the part seen, as fractions of width and height.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]


class ImageClassification(Task[ImageClassificationInput, ImageClassificationOutput]):
    """Labels for pictures of any size."""

    name = "image-classification"
    summary = "What does this picture show?"
    Input = ImageClassificationInput
    Output = ImageClassificationOutput
    Options = ImageClassificationOptions
    options: ImageClassificationOptions
    media: ClassVar[tuple[str, ...]] = (
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
        "application/octet-stream",
    )
    sample_file = "photo.jpg"
    sample_data_url = _HORSE

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        where = f"{folder.name}/{folder.version}"
        if len(folder.signature.inputs) != 1:
            raise ManifestInvalid(f"{where}/model.onnx", "an image classifier takes one input: the picture.")
        (self._input,) = folder.signature.inputs.values()
        folder.input(self._input.name, dtype=("uint8", "float32"), rank=4)
        self._channels_last = self._input.shape[3] == 3
        size = self._input.shape[1:3] if self._channels_last else self._input.shape[2:4]
        if self._channels_last == (self._input.shape[1] == 3) or not all(isinstance(side, int) for side in size):
            raise ManifestInvalid(
                f"{where}/model.onnx",
                f"input {self._input} should be (batch, height, width, 3) or (batch, 3, height, width).",
            )
        self._height, self._width = (int(side or 0) for side in size)
        logits = folder.output("logits", dtype="float32", rank=2)
        self.labels = folder.lines("labels.txt")
        if isinstance(logits.shape[1], int) and logits.shape[1] != len(self.labels):
            raise ManifestInvalid(
                f"{where}/labels.txt", f"has {len(self.labels)} labels, but the graph has {logits.shape[1]} classes."
            )
        mean, std = np.array(self.options.preprocessing.mean), np.array(self.options.preprocessing.std)
        self._scale = (1 / (255 * std)).astype(np.float32)
        self._shift = (-mean / std).astype(np.float32)
        self._filter = Resampling[self.options.preprocessing.filter.upper()]
        self._outputs: tuple[str, ...] = ("logits",)
        if self.options.calibration.abstain_above is not None and "novelty" in folder.signature.outputs:
            folder.output("novelty", dtype="float32", rank=1)
            self._outputs += ("novelty",)

    def steps(self, request: ImageClassificationInput) -> Steps[ImageClassificationOutput]:
        if request.explain and "activation_map" not in self.folder.signature.outputs:
            raise InvalidInput(f"Model {self.folder.name!r} gives no activation map. Ask again without explain=true.")
        if not request.files:
            raise InvalidInput("No image was sent. Send one as the body, or parts named 'file' as multipart/form-data.")
        wanted = (*self._outputs, "activation_map") if request.explain else self._outputs
        results: list[dict[str, Any]] = []
        for start in range(0, len(request.files), SLICE):
            pixels, views = self.decode(request.files[start : start + SLICE], start)
            outputs = yield Run({self._input.name: pixels}, wanted)
            results += self.encode(request, request.files[start : start + SLICE], views, outputs)
        return ImageClassificationOutput.model_construct(model=self.folder.ref, results=results)

    def decode(self, files: Sequence[Upload], before: int = 0) -> tuple[Array, list[View]]:
        """Turn encoded pictures into the graph's input.

        Args:
            files: at least one.
            before: how many images of the request come before these; messages count from there.

        Returns:
            Pixels, uint8 (images, height, width, 3), and what part of each picture they show.

        Raises:
            InvalidInput: one is no picture that can be read.
            TooLarge: one has more pixels than the limit.
        """
        pixels, views = [], []
        for number, file in enumerate(files, start=before + 1):
            what = f"Image {file.filename!r}" if file.filename else f"Image {number}"
            picture, width, height = self._open(file, what)
            view = View(width, height, self._box(width, height))
            pixels.append(self._pixels(picture, view.box))
            views.append(view)
        return np.stack(pixels) if len(pixels) > 1 else pixels[0][None], views

    def _open(self, file: Upload, what: str) -> tuple[Image.Image | Array, int, int]:
        """An upright RGB image: first frame, EXIF orientation applied, transparency composed on white.

        Returns:
            The image, perhaps decoded at a fraction of its size, and its full width and height in pixels.
        """
        if not file.data:
            raise InvalidInput(f"{what} has no bytes. Send the content of the file (curl: --data-binary @photo.jpg).")
        limit = self.folder.limits.max_image_pixels
        if (pixels := small_png(file.data, limit)) is not None:
            return pixels, pixels.shape[1], pixels.shape[0]
        try:
            picture: Image.Image = Image.open(io.BytesIO(file.data), formats=FORMATS)
            width, height = picture.size
            if width * height > limit:
                setting = "GRIDLOOP_MAX_IMAGE_PIXELS"
                raise TooLarge(what, limit=limit, unit="pixels", setting=setting, actual=width * height)
            # A JPEG can be decoded at a half, quarter or eighth: as small as still leaves 4 pixels for each one.
            picture.draft("RGB", (4 * self._width, 4 * self._height))
            picture.load()
            if _may_be_turned(picture):
                upright = ImageOps.exif_transpose(picture)
                if (upright.width > upright.height) != (picture.width > picture.height):
                    width, height = height, width
                picture = upright
            return _on_white(picture), width, height
        except UnidentifiedImageError:
            known = ", ".join(FORMATS)
            raise InvalidInput(f"{what} is not an image that can be read here. Send one of: {known}.") from None
        except _DAMAGED as error:
            raise InvalidInput(f"{what} is damaged or cut short ({error}). Send the whole file again.") from None

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that is shown to the model, as fractions."""
        if self.options.preprocessing.resize == "stretch":
            return 0.0, 0.0, 1.0, 1.0
        scale = (self.options.preprocessing.resize_to or max(self._width, self._height)) / min(width, height)
        resized_w, resized_h = max(round(width * scale), self._width), max(round(height * scale), self._height)
        left, top = (resized_w - self._width) // 2, (resized_h - self._height) // 2
        return (
            left / resized_w,
            top / resized_h,
            (left + self._width) / resized_w,
            (top + self._height) / resized_h,
        )

    def _pixels(self, picture: Image.Image | Array, box: tuple[float, float, float, float]) -> Array:
        """Resize and crop in one pass: uint8 (height, width, 3)."""
        whole = box == (0.0, 0.0, 1.0, 1.0)
        if isinstance(picture, np.ndarray):
            if whole and picture.shape[:2] == (self._height, self._width):
                return picture
            picture = Image.fromarray(picture)
        if not whole or picture.size != (self._width, self._height):
            w, h = picture.size
            corners = (box[0] * w, box[1] * h, box[2] * w, box[3] * h)
            picture = picture.resize((self._width, self._height), self._filter, box=corners)
        return np.asarray(picture)

    def prepare(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Lay pixels out as the graph wants them: from uint8 (batch, height, width, 3), as `decode` gives them."""
        (pixels,) = tensors.values()
        if pixels.dtype != np.uint8 or (self._input.dtype == "uint8" and self._channels_last):
            return tensors
        if self._input.dtype == "uint8":
            return {self._input.name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
        if self._channels_last:
            return {self._input.name: np.asarray(pixels * self._scale + self._shift)}
        planes = np.empty((len(pixels), 3, self._height, self._width), np.float32)
        for colour in range(3):  # one pass per plane beats a transposed copy
            plane = planes[:, colour]
            np.multiply(pixels[..., colour], self._scale[colour], out=plane)
            plane += self._shift[colour]
        return {self._input.name: planes}

    def finish(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Add the probabilities float32 (batch, classes), and the best classes of each row int64 (batch, k)."""
        if _SCORES in outputs or "logits" not in outputs:
            return outputs
        scores = softmax(outputs["logits"])
        return {**outputs, _SCORES: scores, _RANKED: top_k(scores, FEW)}

    def encode(
        self,
        request: ImageClassificationInput,
        files: Sequence[Upload],
        views: Sequence[View],
        outputs: Mapping[str, Array],
    ) -> list[dict[str, Any]]:
        """Turn logits (images, classes) into one result per image: labels, best first, doubts about them, heatmaps."""
        outputs = self.finish(outputs)
        scores, ranked = outputs[_SCORES], outputs[_RANKED]
        if request.top_k > ranked.shape[1]:
            ranked = top_k(scores, request.top_k)
        best = ranked[:, : request.top_k]
        shown = zip(best.tolist(), np.take_along_axis(scores, best, axis=1).tolist(), strict=True)
        sets, abstains = self._sets(scores, ranked), self._abstains(outputs)
        results = []
        for row, (file, view, (indices, probabilities)) in enumerate(zip(files, views, shown, strict=True)):
            found: dict[str, Any] = {
                "filename": file.filename,
                "width": view.width,
                "height": view.height,
                "predictions": [
                    {"label": self.labels[index], "score": score, "index": index}
                    for index, score in zip(indices, probabilities, strict=True)
                ],
                "prediction_set": sets[row],
                "abstain": abstains[row],
            }
            if request.explain:
                values = heatmap(outputs["activation_map"][row, indices[0]], view)
                found["heatmap"] = {"label": self.labels[indices[0]], "values": values}
            results.append(found)
        return results

    def _sets(self, scores: Array, ranked: Array) -> Sequence[dict[str, Any] | None]:
        """The prediction set of each image, or None where the manifest has no threshold for them."""
        coverage, threshold = self.options.calibration.coverage, self.options.calibration.set_threshold
        if threshold is None:
            return [None] * len(scores)
        return [
            {"coverage": coverage, "labels": [self.labels[index] for index in indices]}
            for indices in prediction_sets(scores, ranked, threshold)
        ]

    def _abstains(self, outputs: Mapping[str, Array]) -> Sequence[bool | None]:
        """Whether each image is too novel to be judged, or None where the manifest does not say what is."""
        threshold = self.options.calibration.abstain_above
        if threshold is None:
            return [None] * len(outputs["logits"])
        novelty = outputs["novelty"] if "novelty" in self._outputs else energy(outputs["logits"])
        known: list[bool] = (novelty <= threshold).tolist()  # false for NaN as well
        return [not row for row in known]

    def widened(self, request: ImageClassificationInput) -> ImageClassificationInput:
        """The same pictures with the scores of all labels, as far as `top_k` goes."""
        return request.model_copy(update={"top_k": MOST_LABELS})

    def difference(
        self,
        request: ImageClassificationInput,
        expected: Mapping[str, Any],
        got: Mapping[str, Any],
        tolerance: float,
    ) -> str | None:
        """Compare label by label: near ties may stand in either order, or on either side of a set's threshold."""
        results = expected.get("results")
        if not isinstance(results, list):
            return difference(expected, got, tolerance)
        if len(results) != len(got["results"]):
            return f"at results: expected {len(results)} entries, got {len(got['results'])}"
        others = {key: value for key, value in expected.items() if key != "results"}
        pairs = zip(results, got["results"], strict=True)
        found = (self._result_difference(request, e, g, tolerance, f"results[{i}]") for i, (e, g) in enumerate(pairs))
        return difference(others, got, tolerance) or next(filter(None, found), None)

    def _result_difference(
        self,
        request: ImageClassificationInput,
        expected: Any,
        got: Mapping[str, Any],
        tolerance: float,
        place: str,
    ) -> str | None:
        """The first difference between two answers for one image; `got` has the scores of all labels."""
        if not isinstance(expected, Mapping):
            return difference(expected, got, tolerance, place)
        rest = dict(expected)
        scores: dict[str, float] = {entry["label"]: entry["score"] for entry in got["predictions"]}
        if "predictions" in rest:
            found = ranking_difference(
                rest.pop("predictions"),
                got["predictions"],
                tolerance,
                f"{place}.predictions",
                name="label",
                shown=request.top_k,
            )
            if found:
                return found
        if isinstance(rest.get("prediction_set"), dict) and isinstance(got["prediction_set"], dict):
            wanted = rest["prediction_set"] = dict(rest["prediction_set"])
            labels, given = wanted.pop("labels", None), got["prediction_set"]["labels"]
            if isinstance(labels, list) and self._set_difference(labels, given, scores, tolerance):
                return f"at {place}.prediction_set.labels: expected {labels}, got {given}"
        heatmap = rest.get("heatmap")
        if isinstance(heatmap, dict) and got.get("heatmap") and "label" in heatmap:
            one, other = heatmap["label"], got["heatmap"]["label"]
            if one != other and one in scores and near(scores[one], scores[other], tolerance):
                del rest["heatmap"]  # of the other one of two labels that are nearly tied for the best
        return difference(rest, got, tolerance, place)

    def _set_difference(
        self, expected: Sequence[str], got: Sequence[str], scores: Mapping[str, float], tolerance: float
    ) -> bool:
        """Whether two prediction sets differ by more than labels near the threshold, and the order of near ties."""
        if not all(label in scores for label in {*expected, *got}):
            return list(expected) != list(got)
        best, threshold = max(scores.values()), self.options.calibration.set_threshold or 0.0
        for label in {*expected} ^ {*got}:
            score = scores[label]
            is_tied_for_best = score < threshold and near(score, best, tolerance)
            if not (near(score, threshold, tolerance) or is_tied_for_best):
                return True
        in_order = [scores[label] for label in expected]
        return any(a < b and not near(a, b, tolerance) for a, b in combinations(in_order, 2))


# What Pillow's decoders raise on damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, struct.error)


SMALL_PIXELS = 128 * 128
"""Up to so many pixels, opening a PNG takes Pillow longer than decoding it (count)."""
_PNG = b"\x89PNG\r\n\x1a\n"
_RGB = b"\x08\x02\x00\x00\x00"  # 8 bits, three colours, and not interlaced
_WITHOUT_EFFECT = frozenset({b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"sBIT", b"bKGD"})


def small_png(data: bytes, most_pixels: int) -> Array | None:
    """Decode a small PNG in plain RGB without metadata that matter, in a third of Pillow's time.

    The checksum of every chunk of pixels is looked at; that of the pixels, which Pillow checks as well, is not.

    Args:
        data: of any file.
        most_pixels: that a picture may have.

    Returns:
        uint8 (height, width, 3), the same as Pillow's; None for every other file and for damaged ones, which are
        Pillow's to read or to refuse.
    """
    if data[:8] != _PNG or data[12:16] != b"IHDR" or data[24:29] != _RGB:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    if not 0 < width * height <= min(SMALL_PIXELS, most_pixels):
        return None
    at = 33
    while data[at + 4 : at + 8] in _WITHOUT_EFFECT:
        at += 12 + int.from_bytes(data[at : at + 4])
    if data[at + 4 : at + 8] != b"IEND" or at + 12 != len(data):
        return None
    try:
        pixels: Array = decode_image_png_u8(data, (height, width), "rgb")
    except BaseException:  # of a damaged file; a panic in Rust is no Exception
        return None
    return pixels


_TURNED_BY = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})


def _may_be_turned(picture: Image.Image) -> bool:
    """Whether the file has metadata that could hold an orientation; reading it takes longer than a small inference."""
    return not _TURNED_BY.isdisjoint(picture.info) or hasattr(picture, "tag_v2")


def _on_white(picture: Image.Image) -> Image.Image:
    """Any mode as RGB; transparent parts become white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


_SCORES, _RANKED = "task.scores", "task.ranked"

FEW = 64
"""Up to so many classes sorting all is quicker than choosing first; of more, ranking so many costs no more than one."""


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k largest scores of each row, largest first, equal ones in their order; all where there are fewer.

    Args:
        scores: (batch, classes).
        k: at least 1.

    Returns:
        int64 (batch, min(k, classes)).
    """
    k = min(k, scores.shape[1])
    if scores.shape[1] <= FEW:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    # Sorted, as how a partition leaves equal ones depends on the processor.
    best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def prediction_sets(scores: Array, ranked: Array, threshold: float) -> list[list[int]]:
    """The classes of each row whose probability reaches the threshold, and the best one in any case.

    Args:
        scores: float32 (batch, classes), probabilities.
        ranked: int64 (batch, k), the k best classes of each row as `top_k` gives them; a longer set takes longer.
        threshold: 0..1.

    Returns:
        Indices of classes for each row, best first.
    """
    k = ranked.shape[1]
    sizes = (scores >= threshold).sum(axis=1).tolist()
    sets = [row[: max(size, 1)] for row, size in zip(ranked.tolist(), sizes, strict=True)]
    for row in [row for row, size in enumerate(sizes) if size > k]:
        others = scores[row].copy()
        others[ranked[row]] = -1
        sets[row] += top_k(others[None], sizes[row] - k)[0].tolist()
    return sets


def heatmap(activations: Array, view: View) -> Array:
    """Spread a class activation map over the whole image that was sent.

    Args:
        activations: float32 (rows, columns) over the part of the image that the model saw.
        view: the image's size and that part.

    Returns:
        float32 grid in the image's aspect ratio, `HEATMAP_CELLS` along the longer side, scaled to 0..1 and rounded to
        3 digits; parts that the model did not see are 0.
    """
    longer = max(view.width, view.height)
    rows, columns = (max(1, round(HEATMAP_CELLS * side / longer)) for side in (view.height, view.width))
    left, top, right, bottom = view.box
    y = ((np.arange(rows) + 0.5) / rows - top) / (bottom - top)
    x = ((np.arange(columns) + 0.5) / columns - left) / (right - left)
    values = _bilinear(activations, y, x)
    low, high = values.min(), values.max()
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    inside = ((y >= 0) & (y <= 1))[:, None] & ((x >= 0) & (x <= 1))[None, :]
    return np.round(np.where(inside, values, 0.0), 3).astype(np.float32)


def _bilinear(grid: Array, y: Array, x: Array) -> Array:
    """Values of a grid at fractional positions 0..1 of its height and width; edges are repeated."""

    def along(positions: Array, cells: int) -> tuple[Array, Array, Array]:
        centre = np.clip(positions * cells - 0.5, 0, cells - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, cells - 1), centre - low

    (y0, y1, dy), (x0, x1, dx) = along(y, grid.shape[0]), along(x, grid.shape[1])
    upper = grid[y0][:, x0] * (1 - dx) + grid[y0][:, x1] * dx
    lower = grid[y1][:, x0] * (1 - dx) + grid[y1][:, x1] * dx
    return np.asarray(upper * (1 - dy)[:, None] + lower * dy[:, None])
