"""Image classification: pictures in, labels with probabilities out.

A model is any graph with one picture input, `(batch, height, width, channels)` or `(batch, channels, height, width)`,
of three colours or grey: uint8, where the graph normalises by itself, or float, normalised here with the manifest's
mean and std; and one float output `(batch, classes)`, logits or probabilities: the graph's last operators say which.
With `explain` it also needs `activation_map` `float32 (batch, classes, rows, columns)`, the class activation map of
Zhou et al., "Learning Deep Features for Discriminative Localization" (CVPR 2016).

How sure an answer is, the manifest's `[calibration]` table says, fitted on held-out pictures (`service.uncertainty`):
a prediction set holds every class whose probability reaches a threshold, by split conformal prediction with the score
of Sadinle, Lei, Wasserman, "Least Ambiguous Set-Valued Classifiers With Bounded Error Levels" (JASA 2019); and the
model abstains from a picture that is too novel, which a graph says itself with an output `novelty` `float32 (batch,)`,
and the energy of Liu et al., "Energy-based Out-of-distribution Detection" (NeurIPS 2020), says for every other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.errors import InferenceFailed, InvalidInput, ManifestInvalid
from service.media.heatmaps import Heatmap, heatmap
from service.media.views import View
from service.tasks.base import (
    Array,
    FailedFile,
    MediaAnswer,
    ModelFolder,
    Steps,
    TaskOutput,
    TensorSpec,
    Upload,
)
from service.tasks.comparison import difference, near, ranking_difference
from service.tasks.picture import (
    PictureInput,
    PictureOptions,
    PictureResult,
    PictureTask,
    PictureTensors,
    picture_fields,
)
from service.tasks.terminal import Shown, Table
from service.uncertainty.scores import MOST_SORTED, energy, prediction_sets, sigmoid, softmax, top_k
from service.uncertainty.table import Calibration

MOST_LABELS = 1000
"""The largest `top_k` (count)."""


class ImageClassificationInput(PictureInput):
    """Which model, how many labels, and whether to show where it looked."""

    top_k: Annotated[int, Field(ge=1, le=MOST_LABELS)] = Field(
        default=5,
        description="Labels to return for each image; more than there are classes: all of them.",
        examples=[3],
    )
    explain: bool = Field(
        default=False, description="Add a heatmap: which parts of the image speak for the best label."
    )


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


class LabelHeatmap(Heatmap):
    """Class activation map over the image that was sent."""

    label: str = Field(description="The label that the map explains: the best one.", examples=["cat"])


class ImageResult(PictureResult):
    """What one image shows."""

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
    heatmap: LabelHeatmap | None = Field(default=None, description="Only with `explain=true`.")


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


class Tensors(PictureTensors):
    """Which input and outputs of the graph are what; the manifest's `[tensors]` table."""

    logits: str | None = None
    """The output with the classes' scores, logits or probabilities; left out: `logits`, or the only one it can be."""
    activation_map: str = "activation_map"
    """The output with the class activation maps."""
    novelty: str = "novelty"
    """The output with the novelty."""


class ImageClassificationOptions(PictureOptions):
    """What the manifest of an image classifier may say."""

    activation: Literal["none", "softmax", "sigmoid"] | None = None
    """What the graph's last operator has made of the logits; left out: what the graph says."""
    multi_label: bool | None = None
    """Whether several labels may be true of a picture; left out: where each has a sigmoid of its own."""
    tensors: Tensors = Tensors()
    calibration: Calibration = Calibration()


class ImageClassification(PictureTask[ImageClassificationInput, ImageClassificationOutput]):
    """Labels for pictures of any size."""

    name = "image-classification"
    summary = "What does this picture show?"
    Input = ImageClassificationInput
    Output = ImageClassificationOutput
    Options = ImageClassificationOptions
    options: ImageClassificationOptions
    kind = "an image classifier"
    by_default = True

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
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
        self._map = self.options.tensors.activation_map
        self._outputs: tuple[str, ...] = (self._logits.name,)
        self._novelty = self._novelty_output(columns)
        if self._novelty:
            self._outputs += (self._novelty,)

    # --- what the graph takes and gives

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
                self.graph_file,
                f"several outputs may be the classes' scores: {'; '.join(map(str, able))}. Say which in the manifest: "
                f'[tensors] logits = "{able[0].name}".',
            )
        name = "" if tensors.logits is None else f" named {tensors.logits!r}"
        raise ManifestInvalid(
            self.graph_file, f"has no output{name} with a float for each class, (batch, classes); it has: {there}."
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

    def traits(
        self, request: ImageClassificationInput, answer: ImageClassificationOutput
    ) -> Iterator[tuple[str, str | float]]:
        for result in cast(Sequence[Any], answer.results):
            if isinstance(result, dict):  # as they are built, for speed; a file that cannot be used is none
                best = result["predictions"][0]
                yield "label", best["label"]
                yield "confidence", best["score"]

    def shown_result(self, request: ImageClassificationInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        rows = [(prediction["label"], f"{prediction['score']:.3f}") for prediction in result["predictions"]]
        yield Table(("label", "score"), rows, result["filename"] or "")

    def steps(self, request: ImageClassificationInput) -> Steps[ImageClassificationOutput | MediaAnswer]:
        if request.explain and self._map not in self.folder.signature.outputs:
            raise InvalidInput(f"Model {self.folder.name!r} gives no activation map. Ask again without explain=true.")
        return (yield from super().steps(request))

    def answer_pictures(
        self, request: ImageClassificationInput, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[list[dict[str, Any]]]:
        outputs = yield self.run(pixels, (*self._outputs, self._map) if request.explain else self._outputs)
        return self.encode(request, files, views, outputs)

    def finish(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Add the probabilities float32 (batch, classes), and the best classes of each row int64 (batch, k)."""
        if _SCORES in outputs or self._logits.name not in outputs:
            return outputs
        scores = self._probabilities(_flat(outputs[self._logits.name]))
        return {**outputs, _SCORES: scores, _RANKED: top_k(scores, MOST_SORTED)}

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
        pairs = zip(best.tolist(), np.take_along_axis(scores, best, axis=1).tolist(), strict=True)
        sets, abstains = self._sets(scores, ranked), self._abstains(outputs)
        results = []
        for row, (file, view, (indices, probabilities)) in enumerate(zip(files, views, pairs, strict=True)):
            found: dict[str, Any] = {
                **picture_fields(file, view),
                "predictions": [
                    {"label": self.labels[index], "score": score, "index": index}
                    for index, score in zip(indices, probabilities, strict=True)
                ],
                "prediction_set": sets[row],
                "abstain": abstains[row],
            }
            if request.explain:
                # Sampled, as version 0.1.0 answered; averages would be others for maps finer than the heatmap.
                values = heatmap(outputs[self._map][row, indices[0]], view, average=False)
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
