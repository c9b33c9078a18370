"""From a trained network to a version that the service takes: the graph, 8 bits, calibration, golden samples, the card.

What `train.py` and `finetune.py` share. A script describes its network to a `Graph`, which adds the outputs that all
versions have; `publish` does the rest, in the same way for each.

Tensor letters: N pictures, C features, H rows, W columns, K classes.

References:
    Zhou et al., "Learning Deep Features for Discriminative Localization" (2016), arXiv:1512.04150: activation maps.
    Guo et al., "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599: temperature, calibration error.
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018), arXiv:1807.03888: the
        distance of the features to the nearest class in the novelty of a picture.
    Liu et al., "Energy-based Out-of-distribution Detection" (2020), arXiv:2010.03759: the energy in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime
import photographs
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from pictures import FILTERS, Augmentations, Pictures, checksums, enlarged, read_test, resized
from PIL import Image
from torch import Tensor

from service.cpu import processor_name
from service.evaluation.statistics import wilson
from service.runtime.eight_bits import keep_sums_exact
from service.uncertainty.fitting import expected_calibration_error, fit_abstain_threshold, fit_set_threshold
from service.uncertainty.scores import softmax

MODEL_FOLDER = Path(__file__).resolve().parent
GOLDEN_TEST_PICTURES = (0, 1, 6)
"""Positions in the test split; the pictures become the golden inputs."""


@dataclasses.dataclass(frozen=True)
class Options(Augmentations):
    """What every training script takes from its command line."""

    data: str = "data"
    """Folder that contains `cifar10`."""
    out: str = str(MODEL_FOLDER)
    """Model folder to write: the versions, and where they exist the metrics in `card.md` and the manifests."""
    checkpoint: str = "runs/cifar10-cnn/checkpoint.pt"
    """Checkpoint file; a run continues from it if it exists."""
    evaluate_test: bool = True
    """Whether to score the test split; experiments say `false` and look only at the held-out training pictures."""
    seed: int = 7
    threads: int = 1
    held_out: int = 2000
    """Training pictures kept back: for choices, the temperature and the calibration."""
    subset: int = 0
    """Training pictures used (0: all that are not held out)."""
    budget_s: float = 0.0
    """Seconds of wall-clock for training (0: no limit); the learning rate reaches zero at whichever ends first."""
    label_smoothing: float = 0.2
    distance_weight: float = 0.3
    """Weight of the distance in the novelty, against the energy, both in standard deviations of training pictures."""
    novelty_pictures: int = 4000
    """Training pictures that the novelty is fitted on."""
    coverage: float = 0.99
    """Of the prediction sets."""
    abstain_rate: float = 0.02


Chosen = TypeVar("Chosen", bound=Options)


def flags(options: type[Chosen], doc: str | None) -> Chosen:
    """The command line as options; each field is a flag."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for field in dataclasses.fields(options):
        kind = type(field.default)
        read = (lambda text: text.lower() in ("true", "1", "yes")) if kind is bool else kind
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=read, default=field.default, metavar=kind.__name__
        )
    return options(**vars(parser.parse_args()))


# ------------------------------------------------------------------------------------------------------------- novelty


@dataclasses.dataclass(frozen=True)
class Novelty:
    """How strange a picture is: the energy of its logits, plus how far its features are from the nearest class.

    The energy knows pictures of other things, and the distance knows what is no picture of a thing at all, such as noise.
    The distance is the squared Mahalanobis distance: `projection` (C, D) whitens the features by the covariance inside the
    classes and has the weight of the distance in it; `means` (K, D) are the classes' mean features, projected alike.
    """

    projection: Tensor
    means: Tensor

    @classmethod
    def fit(
        cls, features: Tensor, logits: Tensor, labels: Tensor, weight: float, dimensions: int | None = None
    ) -> Novelty:
        """From features (N, C), logits (N, K) and classes (N,) of training pictures; in fewer dimensions, the widest."""
        x = features.double()
        means = torch.stack([x[labels == k].mean(0) for k in range(logits.shape[1])])
        spread = x - means[labels]
        values, vectors = torch.linalg.eigh(spread.T @ spread / len(x))  # ascending
        projection = vectors / torch.sqrt(values + 0.01 * values.mean())
        projection = projection[:, -(dimensions or x.shape[1]) :]
        plain = cls(projection, means @ projection)
        scale = weight * logits.double().logsumexp(1).std() / plain.distance(x).std()
        projection = projection * scale.sqrt()
        return cls(projection.float(), (means @ projection).float())

    def distance(self, features: Tensor) -> Tensor:
        """Distance (N,) of features (N, C) to the nearest class."""
        return ((features @ self.projection)[:, None] - self.means).square().sum(2).min(1).values

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Novelty (N,) of features (N, C) with logits (N, K); larger is stranger."""
        return self.distance(features) - logits.logsumexp(1)


# --------------------------------------------------------------------------------------------------------------- graph


class Graph:
    """An ONNX graph in the making: `image` uint8 (batch, side, side, 3) -> `logits`, `activation_map` and `novelty`."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.pixels = self.add("Transpose", self.add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        """Float (batch, 3, side, side), 0..255."""

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """A node; returns the name of its output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, name: str, value: Tensor | np.ndarray) -> str:
        """A weight, written once."""
        if all(weight.name != name for weight in self.weights):
            array = value.detach().contiguous().numpy() if isinstance(value, Tensor) else value
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normalised(
        self,
        x: str,
        conv: torch.nn.Conv2d,
        norm: torch.nn.BatchNorm2d,
        name: str,
        pads: tuple[int, int] | None = None,
    ) -> str:
        """A convolution with the BatchNorm behind it folded in; `pads` before and after, if not the convolution's own."""
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).double()
        weight = (conv.weight.double() * scale[:, None, None, None]).float()
        bias = (norm.bias.double() - norm.running_mean.double() * scale).float()
        before, after = pads or (int(conv.padding[0]), int(conv.padding[0]))
        return self.add(
            "Conv",
            x,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[before, before, after, after],
            group=conv.groups,
        )

    def split(self, x: str, parts: int) -> list[str]:
        """Equal parts along the batch."""
        names = [f"{x}_part_{i}" for i in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, name=f"node_{x}_split", axis=0, num_outputs=parts))
        return names

    def spatial_mean(self, x: str, output: str = "") -> str:
        """The mean over rows and columns."""
        return self.add("ReduceMean", x, self.constant("space", np.array([2, 3])), keepdims=0, output=output)

    def finished(self, features: str, novelty: Novelty, classes: int, cells: int) -> onnx.ModelProto:
        """The model, when `activation_map` (batch, classes, cells, cells) is there and so are `features` (batch, C)."""
        self.spatial_mean("activation_map", output="logits")
        projected = self.add("MatMul", features, self.constant("novelty.projection", novelty.projection))
        second, third = self.constant("second", np.array([1])), self.constant("third", np.array([2]))
        projected = self.add("Unsqueeze", projected, second)
        differences = self.add("Sub", projected, self.constant("novelty.means", novelty.means))
        squares = self.add("ReduceSumSquare", differences, third, keepdims=0)
        distance = self.add("ReduceMin", squares, second, keepdims=0)
        evidence = self.add("ReduceLogSumExp", "logits", second, keepdims=0)
        self.add("Sub", distance, evidence, output="novelty")
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("activation_map", TensorProto.FLOAT, ["batch", classes, cells, cells]),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["batch"]),
        ]
        picture = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", self.side, self.side, 3])
        graph = helper.make_graph(self.nodes, "cifar10-cnn", [picture], outputs, self.weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name="gridloop"
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def to_int8(
    model: onnx.ModelProto, images: np.ndarray, exact: tuple[str, ...], seven_bits: bool = True
) -> onnx.ModelProto:
    """The graph with 8-bit convolutions: static ranges from `images`, a scale per filter.

    Convolutions with weights whose names end in one of `exact` stay float32. Weights of seven bits cannot overflow the
    16-bit sums of processors without VNNI; those of eight are more exact, and there need a session that
    `keep_sums_exact` has prepared.
    """

    class Reader(CalibrationDataReader):
        batches = iter([images[i : i + 50] for i in range(0, len(images), 50)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    kept = [node.name for node in model.graph.node if any(name.endswith(exact) for name in node.input)]
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=seven_bits,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "MaxPool", "Clip", "Add"],
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


# ----------------------------------------------------------------------------------------------------------- the graph


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A single-threaded CPU session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    keep_sums_exact(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def side_of(session: onnxruntime.InferenceSession) -> int:
    """Height and width of the graph's input, pixels."""
    return int(session.get_inputs()[0].shape[1])


def answers(session: onnxruntime.InferenceSession, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every output of the graph for uint8 pictures (N, H, W, C), by name."""
    names = [output.name for output in session.get_outputs()]
    batches = [session.run(None, {"image": images[i : i + 100]}) for i in range(0, len(images), 100)]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*batches, strict=True), strict=True)}


def check_equal(model: onnx.ModelProto, images: np.ndarray, expected: dict[str, Tensor], tolerance: float) -> float:
    """How far ONNX Runtime and torch are apart on these pictures, in any output; ends the program above `tolerance`."""
    found = answers(open_session(model), images)
    difference = max(float(np.abs(found[name] - value.numpy()).max()) for name, value in expected.items())
    if difference > tolerance:
        raise SystemExit(f"ONNX and torch differ by {difference:.2e}, more than {tolerance:.0e}")
    return difference


def milliseconds(sessions: list[onnxruntime.InferenceSession], images: np.ndarray, batch_size: int) -> list[float]:
    """Median milliseconds of CPU per picture for each session, in turns; other load counts less than by the clock."""
    batches = [resized(images[:batch_size], side_of(session), "box") for session in sessions]
    times = np.zeros((25, len(sessions)))
    for i in range(len(times)):
        for k, (session, batch) in enumerate(zip(sessions, batches, strict=True)):
            begin = time.process_time()
            session.run(None, {"image": batch})
            times[i, k] = time.process_time() - begin
    return [float(median) * 1000 / batch_size for median in np.median(times[5:], axis=0)]


def filter_scores(session: onnxruntime.InferenceSession, held_out: Pictures) -> dict[str, float]:
    """Accuracy by resize filter, on held-out training pictures enlarged eightfold and shrunk again."""
    few, side = held_out[slice(1000)], side_of(session)
    shrunk = {name: enlarged(few.images, 256, name, side) for name in FILTERS}
    return {
        name: float((answers(session, images)["logits"].argmax(1) == few.labels).mean())
        for name, images in shrunk.items()
    }


# -------------------------------------------------------------------------------------------------------------- report


@dataclasses.dataclass(frozen=True)
class Version:
    """A version that is ready to be written.

    Attributes:
        model: its graph.
        tolerance: of the golden samples' probabilities, for other processors.
        filter: the resize filter that its manifest names.
        for_photographs: whether it is calibrated on the tuning part of the photographs, too.
    """

    model: onnx.ModelProto
    tolerance: float
    filter: str
    for_photographs: bool = False


def whole_photographs(data: Path, part: str, names: list[str], side: int, name: str) -> Pictures:
    """The photographs of a part that show a class, whole or a cut-out car, as the service resizes them to `side`."""
    rows = [one for row in photographs.labelled(data, part).values() for one in row]
    images = np.stack([np.asarray(one.opened().resize((side, side), FILTERS[name])) for one in rows])
    return Pictures(images, np.array([names.index(one.label) for one in rows]))


def interval(hits: np.ndarray) -> str:
    """A share with its 95 % interval by Wilson's score method, as text."""
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{hits.mean():.2%} ({low:.2%} to {high:.2%})"


def calibrate(options: Options, found: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """The manifest's `[calibration]` table from the graph's answers for held-out pictures."""
    threshold = fit_set_threshold(softmax(found["logits"].astype(np.float64)), labels, options.coverage)
    strange = fit_abstain_threshold(found["novelty"], options.abstain_rate)
    return {
        "coverage": options.coverage,
        "set_threshold": math.floor(threshold * 1e6) / 1e6,
        "abstain_above": math.ceil(strange * 1e4) / 1e4,
        "abstain_rate": options.abstain_rate,
    }


def test_figures(
    found: dict[str, np.ndarray], labels: np.ndarray, calibration: dict[str, float]
) -> tuple[dict[str, str], np.ndarray, float]:
    """What the card says of a version's answers for the test split, which of them are right, and the calibration error."""
    scores = softmax(found["logits"].astype(np.float64))
    rows, right = np.arange(len(labels)), scores.argmax(1) == labels
    error = expected_calibration_error(scores, labels)
    sets = scores >= calibration["set_threshold"]
    sets[rows, scores.argmax(1)] = True
    sizes = sets.sum(1)
    abstains = found["novelty"] > calibration["abstain_above"]
    figures = {
        "**Test accuracy** (10,000 official test pictures)": f"**{interval(right)}**",
        "Expected calibration error (15 bins)": f"{error:.4f}",
        f"Prediction sets that hold the label (stated: {calibration['coverage']:.0%})": interval(sets[rows, labels]),
        "Labels in a prediction set": f"{sizes.mean():.2f}; just one in {(sizes == 1).mean():.1%} of the sets",
        f"Abstains (stated: {calibration['abstain_rate']:.0%})": interval(abstains),
        "Accuracy where it does not abstain": interval(right[~abstains]),
    }
    return figures, right, error


def write_golden(folder: Path, logits: Tensor, pictures: Pictures, names: list[str], tolerance: float) -> None:
    """The golden pictures with what they are answered, from their logits (pictures, K)."""
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    entries = []
    for row, own in zip(GOLDEN_TEST_PICTURES, logits, strict=True):
        file = f"golden/{names[pictures.labels[row]]}.png"
        Image.fromarray(pictures.images[row]).save(folder / file, optimize=True)
        best = own.softmax(0).topk(3)
        predictions = [
            {"label": names[index], "score": round(score, 6), "index": index}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        output = {"results": [{"predictions": predictions}]}
        entries.append({"input": {"image": file, "top_k": 3}, "output": output, "tolerance": tolerance})
    (folder / "golden.json").write_text(json.dumps(entries, indent=2) + "\n")


def write_card(path: Path, lines: list[str]) -> None:
    """Put the metric lines between the card's markers."""
    text = path.read_text()
    block = "<!-- metrics -->\n" + "\n".join(lines) + "\n<!-- /metrics -->"
    path.write_text(re.sub(r"<!-- metrics -->.*?<!-- /metrics -->", lambda _: block, text, flags=re.DOTALL))


def toml(table: str, values: dict[str, float]) -> str:
    """A TOML table."""
    keys = ((name if name.isidentifier() else f'"{name}"', value) for name, value in values.items())
    return f"[{table}]\n" + "".join(f"{name} = {value}\n" for name, value in keys)


def write_manifest(path: Path, name: str, **tables: dict[str, float]) -> None:
    """Replace a manifest's resize filter and its last tables, `[calibration]` and `[metrics]`."""
    text = re.sub(r'^filter = "\w+"', f'filter = "{name}"', path.read_text(), flags=re.MULTILINE)
    head = re.split(r"^\[(?:calibration|metrics)\]", text, flags=re.MULTILINE)[0]
    path.write_text(head + "\n".join(toml(table, values) for table, values in tables.items()))


def read_manifest(out: Path, version: str) -> dict[str, dict[str, float]]:
    """The manifest of a version that was made before: the model's, with the version's own tables in place of its."""
    paths = (out / "manifest.toml", out / version / "manifest.toml")
    merged: dict[str, dict[str, float]] = {}
    for path in paths:
        merged |= tomllib.loads(path.read_text()) if path.exists() else {}
    return merged


def publish(
    options: Options, names: list[str], held_out: Pictures, versions: dict[str, Version], notes: list[str]
) -> None:
    """Write the versions, calibrate them, and score them beside those that are there already, into card and manifests.

    Temperature aside, which is in the graph, all calibration is by the held-out pictures. The model's own manifest speaks of
    its default version; another version has a manifest of its own, which must be there.
    """
    folder, out = Path(options.data) / "cifar10", Path(options.out)
    for version, own in versions.items():
        (out / version).mkdir(parents=True, exist_ok=True)
        onnx.save(own.model, out / version / "model.onnx")
        (out / version / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    paths = sorted(out.glob("*/model.onnx"), key=lambda path: path.parent.name, reverse=True)
    sessions = {path.parent.name: open_session(onnx.load(path)) for path in paths}
    newest = max(versions)
    default = read_manifest(out, newest).get("default_version", newest)
    filters, calibrations, held = {}, {}, {}
    for version, session in sessions.items():
        before = read_manifest(out, version)
        filters[version] = versions[version].filter if version in versions else str(before["preprocessing"]["filter"])
        found = answers(session, resized(held_out.images, side_of(session), filters[version]))
        labels = held_out.labels
        right = found["logits"].argmax(1) == labels
        held[version] = {f"Held-out training pictures ({len(held_out)})": interval(right)}
        if (Path(options.data) / "flickr8k").is_dir():
            shown = whole_photographs(Path(options.data), "tuning", names, side_of(session), filters[version])
            theirs = answers(session, shown.images)
            right = theirs["logits"].argmax(1) == shown.labels
            held[version][f"Photographs of the tuning part ({len(shown)})"] = interval(right)
            if version in versions and versions[version].for_photographs:
                found = {name: np.concatenate([found[name], theirs[name]]) for name in ("logits", "novelty")}
                labels = np.concatenate([labels, shown.labels])
        calibrations[version] = calibrate(options, found, labels) if version in versions else before["calibration"]
        print(f"version {version}: {held[version]}  {calibrations[version]}", flush=True)
    by_filter = filter_scores(sessions[newest], held_out)
    speeds = {
        size: dict(zip(sessions, milliseconds(list(sessions.values()), held_out.images, size), strict=True))
        for size in (1, 8, 32)
    }
    print(f"filters {by_filter}  ms per picture {speeds}", flush=True)
    if not options.evaluate_test:
        return

    test = read_test(folder)
    few = test[slice(2000)]
    columns: dict[str, dict[str, str]] = {}
    metrics: dict[str, dict[str, float]] = {}
    per_class, large = "", np.zeros(0)
    for version, session in sessions.items():
        figures, right, error = test_figures(
            answers(session, resized(test.images, side_of(session), filters[version])),
            test.labels,
            calibrations[version],
        )
        size_mb = (out / version / "model.onnx").stat().st_size / 1e6
        columns[version] = figures | held[version]
        columns[version] |= {
            "File": f"{size_mb:.1f} MB",
            "CPU a picture, alone": f"{speeds[1][version]:.1f} ms",
            "CPU a picture, in a batch of 8": f"{speeds[8][version]:.1f} ms",
            "CPU a picture, in a batch of 32": f"{speeds[32][version]:.1f} ms",
        }
        metrics[version] = {
            "CIFAR-10 test accuracy": round(float(right.mean()), 4),
            "expected calibration error": round(error, 4),
        }
        if version == newest:
            small = enlarged(few.images, 256, filters[version], side_of(session), 85)
            large = answers(session, small)["logits"].argmax(1) == few.labels
            metrics[version]["CIFAR-10 test accuracy, pictures of 256x256 as JPEG"] = round(float(large.mean()), 4)
            per_class = ", ".join(f"{name} {right[test.labels == k].mean():.1%}" for k, name in enumerate(names))
    golden = test.images[list(GOLDEN_TEST_PICTURES)]
    for version, own in versions.items():
        seen = resized(golden, side_of(sessions[version]), own.filter)
        logits = torch.from_numpy(answers(sessions[version], seen)["logits"])
        write_golden(out / version, logits, test, names, own.tolerance)

    lines = [
        f"| 95 % intervals in brackets | {' | '.join(f'version {version}' for version in sessions)} |",
        "|---" * (1 + len(sessions)) + "|",
        *(f"| {name} | {' | '.join(columns[version][name] for version in sessions)} |" for name in columns[newest]),
        "",
        f"- Accuracy per class, version {newest}: {per_class}",
        f"- {len(few)} test pictures enlarged to 256x256 (bicubic), saved as JPEG (quality 85) and shrunk with the "
        f"`{filters[newest]}` filter, version {newest}: {interval(large)}",
        f"- ONNX Runtime {onnxruntime.__version__}, one thread of an {processor_name()}, the versions in turns",
        f"- Resize filters, accuracy of version {newest} on held-out training pictures enlarged eightfold and shrunk again: "
        + ", ".join(f"{name} {value:.2%}" for name, value in by_filter.items()),
        *(f"- {note}" for note in notes),
        "",
        "| data file | sha256 |",
        "|---|---|",
        *(f"| `{name}` | `{digest}` |" for name, digest in checksums(folder).items()),
    ]
    print("\n".join(lines), flush=True)
    if (out / "card.md").exists():
        write_card(out / "card.md", lines)
    for version in versions:
        path = out / "manifest.toml" if version == default else out / version / "manifest.toml"
        if path.exists():
            write_manifest(path, filters[version], calibration=calibrations[version], metrics=metrics[version])
