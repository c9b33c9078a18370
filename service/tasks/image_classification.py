"""Image classification: pictures in, labels with probabilities out.

A model is any graph with one picture input, `(batch, height, width, channels)` or `(batch, channels, height, width)`,
of three colours or grey: uint8, where the graph normalises by itself, or float, normalised here with the manifest's
mean and std; and one float output `(batch, classes)`, logits or probabilities: the graph's last operators say which.
With `explain` it also needs `activation_map` `float32 (batch, classes, rows, columns)`, the class activation map of
Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016).

How sure an answer is, the manifest's `[calibration]` table says, fitted on held-out pictures (`service.calibration`):
a prediction set holds every class whose probability reaches a threshold, by split conformal prediction with the score
of Sadinle, Lei, Wasserman, "Least Ambiguous Set-Valued Classifiers With Bounded Error Levels" (JASA 2019); and the
model abstains from a picture that is too novel, which a graph says itself with an output `novelty` `float32 (batch,)`,
and the energy of Liu et al., "Energy-based Out-of-distribution Detection" (NeurIPS 2020), says for every other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.calibration import energy, sigmoid, softmax
from service.errors import InferenceFailed, InvalidInput, ManifestInvalid
from service.media.formats import format_of
from service.media.images import Filter, Frame, Resize, View, open_picture, pixels_in
from service.tasks.base import (
    Array,
    FailedFile,
    MediaAnswer,
    MediaInput,
    MediaTask,
    ModelFolder,
    Run,
    Steps,
    TaskOptions,
    TaskOutput,
    TensorSpec,
    Upload,
)
from service.tasks.comparison import difference, near, ranking_difference
from service.tasks.terminal import Shown, Table

_HORSE = (  # CIFAR-10, test picture 13: small enough to be typed, so that the documentation page has something to send
    "data:image/webp;base64,"
    "UklGRm4BAABXRUJQVlA4IGIBAADwBwCdASogACAAPrVIn0mnJCKhMBgMAOAWiWcAy+eoLsC+ueAPf/WAdwFAqDQhujiM4soRAa+P"
    "wk7dPgDsFBbQRWL6zl38SAAA/vMDDnil4zqxT4tL0UhoTtEjjpmjcz9Y965O8NR7F7S++tKi8K55o2vTE4ewAv2ICGmBd9Q6Te85"
    "Dk9bQM9aB/rLY3b7zW3Mzhuc5+eiHCa9Ke1+JHunUakFy7W5Tz4bP2beGGnQ2Mg7WoeOoL+y8PAafqVwkcmRa1BYMkwNz5xwNepO"
    "fzYACPbnQOMqZ6Xf6sUTE28+6CoFlWYSSWd3BrBcqv/tHPaqtJbF6jOTcPzhdt3uCbYqJ1PPvXmovl43bKrgKu2EHsb76EU2WsYT"
    "jBCcL0NAf80nU8sIg11a6j7Tts4+FReUYP2SZSR82smed41WkDZbtDWtJRrvzjkbw0/5et4yiBiGO0K3MYb3im/jPlZfpngAAAA="
)

MOST_OWN_SIDE = 512
"""Longer side of a picture that is shown to a graph in its own size (pixels); larger ones are made smaller."""

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

    @property
    def work(self) -> int:
        """Pixels, as the files' headers say."""
        return sum([pixels_in(file.data) for file in self.files])


class LabelPrediction(BaseModel):
    """A label and how probable it is."""

    label: str = Field(description="Class name.", examples=["cat"])
    score: float = Field(
        description="Probability of the label; of models whose labels do not exclude one another, each by itself.",
        ge=0,
        le=1,
        examples=[0.93],
    )
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
    predictions: list[LabelPrediction] = Field(description="Best first.")
    prediction_set: PredictionSet | None = Field(
        description="More than one label where the model is in doubt; null where the model is not calibrated for sets, "
        "or several labels may be true of a picture.",
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

    results: list[ImageResult | FailedFile] = Field(
        description="One entry per image, in the order sent; of several, one that cannot be used has an `error`."
    )


MOST_SIDE = 16_384
"""Longest side to which a picture is resized (pixels)."""
MOST_SCALE, LEAST_STD = 10.0, 1e-6
"""Bounds of mean and std: beyond them nothing is left of a picture, or it is for another scale."""

Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class Preprocessing(TaskOptions):
    """How a picture becomes the graph's input; the manifest's `[preprocessing]` table."""

    resize: Resize = "stretch"
    """`stretch` makes the whole picture fit; `crop` keeps the aspect ratio and takes the centre; `letterbox` keeps it
    and puts grey around the whole picture."""
    resize_to: Side | None = None
    """With `crop`: length of the shorter side before the centre is taken (pixels); left out: the graph's size."""
    filter: Filter = "bilinear"
    """Pillow's resampling filter."""
    exact: bool = False
    """Decode JPEGs whole, however large they are."""
    mean: float | tuple[float] | tuple[float, float, float] = 0.0
    """Subtracted from each colour, on a scale of 0..1; float graphs only."""
    std: float | tuple[float] | tuple[float, float, float] = 1.0
    """Each colour is divided by it afterwards; float graphs only."""
    size: Side | tuple[Side, Side] | None = None
    """Of the picture that the graph gets, or its height and width (pixels), where the graph leaves them free."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """Which axis of the graph's input holds the colours, where its shape does not tell."""

    @model_validator(mode="after")
    def _numbers_are_possible(self) -> Self:
        for name, least in (("mean", -MOST_SCALE), ("std", LEAST_STD)):
            for number in np.atleast_1d(getattr(self, name)).tolist():
                if not least <= number <= MOST_SCALE:  # false for NaN as well
                    large = " They are on a scale of 0 to 1: divide by 255 what is on one of 0 to 255."
                    raise ValueError(
                        f"{name} has {number:g}; every number must be from {least:g} to {MOST_SCALE:g}."
                        f"{large if abs(number) > MOST_SCALE else ''}".removesuffix(".")
                    )
        return self


class Tensors(TaskOptions):
    """Which input and outputs of the graph are what; the manifest's `[tensors]` table."""

    picture: str | None = None
    """The input that takes the picture; left out: the only one there is."""
    logits: str | None = None
    """The output with the classes' scores, logits or probabilities; left out: `logits`, or the only one it can be."""
    activation_map: str = "activation_map"
    """The output with the class activation maps."""
    novelty: str = "novelty"
    """The output with the novelty."""


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

    activation: Literal["none", "softmax", "sigmoid"] | None = None
    """What the graph's last operator has made of the logits; left out: what the graph says."""
    multi_label: bool | None = None
    """Whether several labels may be true of a picture; left out: where each has a sigmoid of its own."""
    tensors: Tensors = Tensors()
    preprocessing: Preprocessing = Preprocessing()
    calibration: Calibration = Calibration()


class ImageClassification(MediaTask[ImageClassificationInput, ImageClassificationOutput, tuple[Array, View]]):
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
        "image/avif",
        "application/octet-stream",
    )
    noun = "Image"
    sample_file = "photo.jpg"
    sample_data_url = _HORSE
    by_default = True

    @classmethod
    def recognises(cls, data: bytes) -> bool:
        return format_of(data) is not None

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self._graph_file = f"{folder.name}/{folder.version}/model.onnx"
        self._input = self._picture_input()
        self._channels_last, self._channels, self._size = self._layout()
        wanted, (height, width) = self.options.preprocessing, self._size or (MOST_OWN_SIDE, MOST_OWN_SIDE)
        self._frame = Frame(
            width,
            height,
            wanted.resize,
            wanted.resize_to,
            wanted.filter,
            exact=wanted.exact,
            channels=self._channels,
        )
        self.labels = folder.lines("labels.txt")
        self._logits = self._logits_output()
        columns = _columns(self._logits)
        is_binary = columns == 1 and len(self.labels) == 2
        if columns is not None and columns != len(self.labels) and not is_binary:
            count = f"{len(self.labels)} labels{_empty_ones(self.labels)}"
            raise ManifestInvalid(
                f"{folder.name}/{folder.version}/labels.txt", f"has {count}, but the graph has {columns} classes."
            )
        self._activation, self._multi_label = self._meaning(columns)
        self._scale, self._shift = self._normalisation()
        self._map = self.options.tensors.activation_map
        self._outputs: tuple[str, ...] = (self._logits.name,)
        self._novelty = self._novelty_output(columns)
        if self._novelty:
            self._outputs += (self._novelty,)

    # --- what the graph takes and gives

    def _picture_input(self) -> TensorSpec:
        """The input that takes the picture."""
        inputs, name = self.folder.signature.inputs, self.options.tensors.picture
        if name is None and len(inputs) == 1:
            (name,) = inputs
        if name is None or len(inputs) > 1:
            there = "; ".join(map(str, inputs.values()))
            raise ManifestInvalid(
                self._graph_file,
                f"an image classifier takes one input, the picture, and this graph has: {there}. Give the others their "
                "value in the manifest: [constants].",
            )
        return self.folder.input(name, dtype=("uint8", "float32"), rank=4)

    def _layout(self) -> tuple[bool, int, tuple[int, int] | None]:
        """Whether the colours are the last axis, how many there are, and height and width; None where they are free."""
        shape, chosen = self._input.shape, self.options.preprocessing
        possible = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] in (1, 3)]
        layout = chosen.layout or (possible[0] if len(possible) == 1 else None)
        axis = 3 if layout == "NHWC" else 1
        colours = shape[axis] if isinstance(shape[axis], int) else 3
        if layout is None or colours not in (1, 3):
            raise ManifestInvalid(
                self._graph_file,
                f"input {self._input} should be (batch, height, width, 3) or (batch, 3, height, width), or with 1 in "
                'place of 3. Where that is open, say which in the manifest: [preprocessing] layout = "NCHW" or "NHWC".',
            )
        sides = shape[1:3] if layout == "NHWC" else shape[2:4]
        given = (chosen.size, chosen.size) if isinstance(chosen.size, int) else chosen.size
        if given is None and all(isinstance(side, str | None) for side in sides) and chosen.resize == "stretch":
            return layout == "NHWC", int(colours), None
        if given is None:
            given = tuple(side if isinstance(side, int) else 0 for side in sides)  # type: ignore[assignment]
        if not given or 0 in given or any(isinstance(s, int) and s != g for s, g in zip(sides, given, strict=True)):
            raise ManifestInvalid(
                self._graph_file,
                f"input {self._input} leaves the picture's size open, or has another than the manifest: write "
                "[preprocessing] size = 224, or [height, width], as the model was trained.",
            )
        return layout == "NHWC", int(colours), given

    def _logits_output(self) -> TensorSpec:
        """The output with the classes' scores: the one named, or `logits`, or the only one that it can be."""
        outputs, tensors = self.folder.signature.outputs, self.options.tensors
        others = {tensors.activation_map, tensors.novelty}
        able = [spec for name, spec in outputs.items() if name not in others and _is_scores(spec)]
        if tensors.logits is None and len(able) > 1:
            by_name = [spec for spec in able if spec.name == "logits"]
            counts = (len(self.labels), None) if len(self.labels) != 2 else (2, 1, None)
            able = by_name or [spec for spec in able if _columns(spec) in counts]
        elif tensors.logits is not None:
            able = [spec for spec in able if spec.name == tensors.logits]
        if len(able) == 1:
            return able[0]
        there = "; ".join(map(str, outputs.values()))
        if able:
            raise ManifestInvalid(
                self._graph_file,
                f"several outputs may be the classes' scores: {'; '.join(map(str, able))}. Say which in the manifest: "
                f'[tensors] logits = "{able[0].name}".',
            )
        name = "" if tensors.logits is None else f" named {tensors.logits!r}"
        raise ManifestInvalid(
            self._graph_file, f"has no output{name} with a float for each class, (batch, classes); it has: {there}."
        )

    def _meaning(self, columns: int | None) -> tuple[str, bool]:
        """What was made of the logits already, and whether labels are judged each by itself."""
        activation = self.options.activation or self.folder.signature.activations.get(self._logits.name, "none")
        multi_label = self.options.multi_label
        if multi_label is None:
            multi_label = activation == "sigmoid" and columns != 1
        where = f"{self.folder.name}/manifest.toml"
        if multi_label and activation in ("softmax", "log_softmax"):
            raise ManifestInvalid(
                where,
                "multi_label = true does not fit a graph that ends in a softmax, whose classes exclude one another; "
                'where it does not end so, write activation = "none".',
            )
        if multi_label and self.options.calibration.set_threshold is not None:
            raise ManifestInvalid(
                where,
                "[calibration] set_threshold is for models of which one label is true; this one judges each by itself.",
            )
        return activation, multi_label

    def _normalisation(self) -> tuple[Array, Array]:
        """Factor and summand, float32 (channels,), that make the graph's numbers of pixels 0..255."""
        numbers = []
        for name in ("mean", "std"):
            number = np.atleast_1d(np.asarray(getattr(self.options.preprocessing, name), np.float64))
            if len(number) not in (1, self._channels):
                raise ManifestInvalid(
                    f"{self.folder.name}/manifest.toml",
                    f"[preprocessing] {name} has {len(number)} numbers, but the graph takes one channel, grey.",
                )
            numbers.append(np.broadcast_to(number, self._channels))
        mean, std = numbers
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def _novelty_output(self, columns: int | None) -> str | None:
        """The output that says how novel a picture is; None where the logits' energy does, or nothing is asked."""
        if self.options.calibration.abstain_above is None:
            return None
        name = self.options.tensors.novelty
        if name in self.folder.signature.outputs:
            return self.folder.output(name, dtype="float32", rank=1).name
        if self._activation != "none" or columns == 1:
            raise ManifestInvalid(
                f"{self.folder.name}/manifest.toml",
                "[calibration] abstain_above needs a graph that gives logits of every class, or an output `novelty`: "
                "the energy of a picture cannot be told from probabilities.",
            )
        return None

    def steps(self, request: ImageClassificationInput) -> Steps[ImageClassificationOutput | MediaAnswer]:
        if request.explain and self._map not in self.folder.signature.outputs:
            raise InvalidInput(f"Model {self.folder.name!r} gives no activation map. Ask again without explain=true.")
        return (yield from super().steps(request))

    def shown_result(self, request: ImageClassificationInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        rows = [(prediction["label"], f"{prediction['score']:.3f}") for prediction in result["predictions"]]
        yield Table(("label", "score"), rows, result["filename"] or "")

    def decode_file(self, file: Upload, what: str) -> tuple[Array, View]:
        """Turn an encoded picture into pixels, uint8 (height, width, channels), and what part of it they show.

        Raises:
            InvalidInput: it is no picture that can be read.
            TooLarge: it has more pixels than the limit.
        """
        limit = self.folder.limits.max_image_pixels
        picture = open_picture(file.data, what, max_pixels=limit, least=self._frame.least)
        frame = self._frame
        if self._size is None:
            width, height = own_size(picture.width, picture.height)
            frame = replace(frame, width=width, height=height)
        view = frame.view(picture.width, picture.height)
        return frame.pixels(picture, view), view

    def answer_files(
        self, request: ImageClassificationInput, files: Sequence[Upload], decoded: Sequence[tuple[Array, View]]
    ) -> Steps[list[dict[str, Any]]]:
        if self._size is None and len(decoded) > 1:  # pictures of their own size do not fit together
            results: list[dict[str, Any]] = []
            for file, one in zip(files, decoded, strict=True):
                results += yield from self.answer_files(request, [file], [one])
            return results
        pixels = np.stack([pixels for pixels, _ in decoded]) if len(decoded) > 1 else decoded[0][0][None]
        wanted = (*self._outputs, self._map) if request.explain else self._outputs
        outputs = yield Run({self._input.name: pixels}, wanted)
        return self.encode(request, files, [view for _, view in decoded], outputs)

    def prepare(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Lay pixels out as the graph wants them: from uint8 (batch, height, width, channels), as of `decode_file`."""
        (pixels,) = tensors.values()
        if pixels.dtype != np.uint8 or (self._input.dtype == "uint8" and self._channels_last):
            return tensors
        if self._input.dtype == "uint8":
            if pixels.shape[3] != self._channels:  # the graph's own input
                return tensors
            return {self._input.name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
        if self._channels_last:
            return {self._input.name: np.asarray(pixels * self._scale + self._shift)}
        count, height, width, _ = pixels.shape
        planes = np.empty((count, self._channels, height, width), np.float32)
        for colour in range(self._channels):  # one pass per plane beats a transposed copy
            plane = planes[:, colour]
            np.multiply(pixels[..., colour], self._scale[colour], out=plane)
            plane += self._shift[colour]
        return {self._input.name: planes}

    def finish(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Add the probabilities float32 (batch, classes), and the best classes of each row int64 (batch, k)."""
        if _SCORES in outputs or self._logits.name not in outputs:
            return outputs
        scores = self._probabilities(_flat(outputs[self._logits.name]))
        return {**outputs, _SCORES: scores, _RANKED: top_k(scores, FEW)}

    def _probabilities(self, given: Array) -> Array:
        """Probabilities of the labels, float32 (batch, labels), of what the graph gives for each class."""
        is_one = given.shape[1] == 1
        if self._activation in ("softmax", "sigmoid"):
            scores = np.clip(given, 0, 1)  # float16 and 8 bits may end a little above
        elif self._multi_label or (is_one and self._activation == "none"):
            scores = sigmoid(given)
        else:
            scores = softmax(given)
        return np.concatenate([1 - scores, scores], axis=1) if is_one and len(self.labels) == 2 else scores

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
        if scores.shape[1] != len(self.labels):  # of a graph that does not tell how many classes it has
            raise InferenceFailed(self.folder.name)
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
                values = heatmap(outputs[self._map][row, indices[0]], view)
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
            return [None] * len(outputs[_SCORES])
        novelty = outputs[self._novelty] if self._novelty else energy(_flat(outputs[self._logits.name]))
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


def own_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture for a graph that takes any: its own, or as much smaller as the longest allows."""
    scale = min(1.0, MOST_OWN_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _is_scores(spec: TensorSpec) -> bool:
    """Whether an output may hold one number for each class: any further axes are of size 1."""
    if spec.dtype not in ("float32", "float64"):
        return False
    return not spec.shape or (len(spec.shape) > 1 and sum(axis != 1 for axis in spec.shape[1:]) <= 1)


def _columns(spec: TensorSpec) -> int | None:
    """How many numbers such an output has for each picture; None where the graph does not tell."""
    if not spec.shape:
        return None
    (size,) = [axis for axis in spec.shape[1:] if axis != 1] or [1]
    return size if isinstance(size, int) else None


def _flat(values: Array) -> Array:
    """An output of `_is_scores` as float32 (batch, classes), from (batch, classes, 1, 1) and the like."""
    flat = values if values.ndim == 2 else values.reshape(len(values), -1)
    return flat.astype(np.float32, copy=False)


def _empty_ones(labels: Sequence[str]) -> str:
    """Which lines of a file of labels are empty, in brackets."""
    lines = [str(number) for number, label in enumerate(labels, start=1) if not label.strip()]
    return f" (empty: line{'s' * (len(lines) > 1)} {', '.join(lines)})" if lines else ""


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
