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

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.calibration import energy, softmax
from service.errors import InvalidInput, ManifestInvalid
from service.media.images import Filter, Frame, Resize, View, open_picture
from service.tasks.base import (
    Array,
    FailedFile,
    MediaInput,
    MediaTask,
    ModelFolder,
    Run,
    Steps,
    TaskOptions,
    TaskOutput,
    Upload,
)

_HORSE = (  # CIFAR-10, test picture 13: small enough to be typed, so that the documentation page has something to send
    "data:image/webp;base64,"
    "UklGRm4BAABXRUJQVlA4IGIBAADwBwCdASogACAAPrVIn0mnJCKhMBgMAOAWiWcAy+eoLsC+ueAPf/WAdwFAqDQhujiM4soRAa+P"
    "wk7dPgDsFBbQRWL6zl38SAAA/vMDDnil4zqxT4tL0UhoTtEjjpmjcz9Y965O8NR7F7S++tKi8K55o2vTE4ewAv2ICGmBd9Q6Te85"
    "Dk9bQM9aB/rLY3b7zW3Mzhuc5+eiHCa9Ke1+JHunUakFy7W5Tz4bP2beGGnQ2Mg7WoeOoL+y8PAafqVwkcmRa1BYMkwNz5xwNepO"
    "fzYACPbnQOMqZ6Xf6sUTE28+6CoFlWYSSWd3BrBcqv/tHPaqtJbF6jOTcPzhdt3uCbYqJ1PPvXmovl43bKrgKu2EHsb76EU2WsYT"
    "jBCcL0NAf80nU8sIg11a6j7Tts4+FReUYP2SZSR82smed41WkDZbtDWtJRrvzjkbw0/5et4yiBiGO0K3MYb3im/jPlZfpngAAAA="
)

HEATMAP_CELLS = 16
"""Cells along the longer side of a heatmap."""


class ImageClassificationInput(MediaInput):
    """Which model, how many labels, and whether to show where it looked."""

    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(
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

    results: list[ImageResult | FailedFile] = Field(
        description="One entry per image, in the order sent; of several, one that cannot be used has an `error`."
    )


class Preprocessing(TaskOptions):
    """How a picture becomes the graph's input; the manifest's `[preprocessing]` table."""

    resize: Resize = "stretch"
    """`stretch` makes the whole picture fit; `crop` keeps the aspect ratio and takes the centre; `letterbox` keeps it
    and puts grey around the whole picture."""
    resize_to: Annotated[int, Field(ge=1)] | None = None
    """With `crop`: length of the shorter side before the centre is taken (pixels); left out: the graph's size."""
    filter: Filter = "bilinear"
    """Pillow's resampling filter."""
    exact: bool = False
    """Decode JPEGs whole, however large they are."""
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
        wanted = self.options.preprocessing
        self._frame = Frame(
            self._width, self._height, wanted.resize, wanted.resize_to, wanted.filter, exact=wanted.exact
        )
        logits = folder.output("logits", dtype="float32", rank=2)
        self.labels = folder.lines("labels.txt")
        if isinstance(logits.shape[1], int) and logits.shape[1] != len(self.labels):
            raise ManifestInvalid(
                f"{where}/labels.txt", f"has {len(self.labels)} labels, but the graph has {logits.shape[1]} classes."
            )
        mean, std = np.array(self.options.preprocessing.mean), np.array(self.options.preprocessing.std)
        self._scale = (1 / (255 * std)).astype(np.float32)
        self._shift = (-mean / std).astype(np.float32)
        self._outputs: tuple[str, ...] = ("logits",)
        if self.options.calibration.abstain_above is not None and "novelty" in folder.signature.outputs:
            folder.output("novelty", dtype="float32", rank=1)
            self._outputs += ("novelty",)

    def steps(self, request: ImageClassificationInput) -> Steps[ImageClassificationOutput]:
        if request.explain and "activation_map" not in self.folder.signature.outputs:
            raise InvalidInput(f"Model {self.folder.name!r} gives no activation map. Ask again without explain=true.")
        results = yield from self.each_file(request)
        return ImageClassificationOutput.model_construct(model=self.folder.ref, results=results)

    def decode_file(self, file: Upload, what: str) -> tuple[Array, View]:
        """Turn an encoded picture into pixels, uint8 (height, width, 3), and what part of the picture they show.

        Raises:
            InvalidInput: it is no picture that can be read.
            TooLarge: it has more pixels than the limit.
        """
        limit = self.folder.limits.max_image_pixels
        picture = open_picture(file.data, what, max_pixels=limit, least=self._frame.least)
        view = self._frame.view(picture.width, picture.height)
        return self._frame.pixels(picture, view), view

    def answer_files(
        self, request: ImageClassificationInput, files: Sequence[Upload], decoded: Sequence[tuple[Array, View]]
    ) -> Steps[list[dict[str, Any]]]:
        pixels = np.stack([pixels for pixels, _ in decoded]) if len(decoded) > 1 else decoded[0][0][None]
        wanted = (*self._outputs, "activation_map") if request.explain else self._outputs
        outputs = yield Run({self._input.name: pixels}, wanted)
        return self.encode(request, files, [view for _, view in decoded], outputs)

    def prepare(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Lay pixels out as the graph wants them: from uint8 (batch, height, width, 3), as `decode_file` gives them."""
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


_SCORES, _RANKED = "task.scores", "task.ranked"

FEW = 64
"""Up to so many classes sorting all is quicker than choosing first; of more, ranking so many costs no more than one."""


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k largest scores of each row, largest first; all of them where there are fewer.

    Args:
        scores: (batch, classes).
        k: at least 1.

    Returns:
        int64 (batch, min(k, classes)).
    """
    k = min(k, scores.shape[1])
    if scores.shape[1] <= FEW:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
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
