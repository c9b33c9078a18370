"""What is read from a graph and what is guessed, each with its reason: a table of graphs as exporters write them.

The graphs give outputs of the right shapes and numbers; a little of the input's mean is in each, so that all is connected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from service.importing import photo
from service.importing.labels import names_in
from service.importing.propose import Guess, Proposal, Wishes, propose
from service.importing.source import read
from tests import graphs

PICTURE_TASKS = ("image-classification", "image-segmentation", "object-detection")
make = helper.make_node


def graph(
    path: Path,
    outputs: Mapping[str, np.ndarray],
    shape: tuple[Any, ...] = (1, 3, 64, 64),
    *,
    dtype: int = T.FLOAT,
    first: tuple[Any, ...] = (),
    last: str = "",
    constants: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    exporter: str = "pytorch",
) -> Path:
    """A graph of one picture that gives these arrays.

    Args:
        path: of the file.
        outputs: by name; the first axis is the batch of one.
        shape: of the input `x`.
        dtype: of the input.
        first: operators from `x` to `normalised`.
        last: operator at the end of every output, such as Softmax.
        constants: of `first`.
        metadata: `metadata_props` of the file.
        exporter: producer's name.
    """
    begin = "normalised" if first else "x"
    nodes: list[Any] = [
        *first,
        make("Cast", [begin], ["floats"], to=T.FLOAT),
        make("ReduceMean", ["floats"], ["mean"], keepdims=0),
        make("Div", ["mean", "huge"], ["little"]),
    ]
    held: dict[str, Any] = {"huge": np.float32(1e9), **(constants or {})}
    for name, array in outputs.items():
        held[f"{name}.held"] = array.astype(np.float32)
        nodes.append(make("Sub", [f"{name}.held", "little"], [f"{name}.before" if last else name]))
        if last:
            nodes.append(make(last, [f"{name}.before"], [name]))
    given = [(name, T.FLOAT, list(array.shape)) for name, array in outputs.items()]
    graphs.save(path, nodes, [("x", dtype, list(shape))], given, held)
    model = onnx.load(path)
    model.producer_name = exporter
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def proposed(path: Path, **wishes: Any) -> Proposal:
    return propose(read(path), photo.drawn(), Wishes(**wishes), PICTURE_TASKS)


def about(proposal: Proposal, what: str) -> Guess:
    return next(guess for guess in proposal.guesses if guess.about == what)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


LOGITS = np.linspace(-3, 3, 10)[None]


# --- tasks


def boxes(count: int) -> np.ndarray:
    """Corners as fractions, float (1, count, 4)."""
    return np.tile([0.1, 0.2, 0.6, 0.7], (1, count, 1))


OUTPUTS = {
    "logits": ({"y": LOGITS}, {}, "image-classification", "10 labels"),
    "probabilities": ({"y": LOGITS}, {"last": "Softmax"}, "image-classification", "softmax"),
    "several labels at once": ({"y": LOGITS}, {"last": "Sigmoid"}, "image-classification", "each label by itself"),
    "axes of one": ({"y": LOGITS[..., None, None]}, {}, "image-classification", "10 labels"),
    "one chance": ({"y": np.array([[0.3]])}, {"last": "Sigmoid"}, "image-classification", "two labels"),
    "one number": ({"y": np.array([[17.5]])}, {}, "tensor", "measured intervals"),
    "a map of labels": ({"y": np.random.default_rng(0).random((1, 5, 32, 32))}, {}, "image-segmentation", "5 maps"),
    "a mask": ({"y": np.random.default_rng(0).random((1, 1, 64, 64))}, {"last": "Sigmoid"}, "image-segmentation", "a mask"),
    "a larger picture": ({"y": np.zeros((1, 3, 128, 128))}, {}, "tensor", "pictures of pictures"),
    "FastestDet": ({"y": np.zeros((1, 85, 4, 4))}, {}, "tensor", "FastestDet"),
    "boxes and scores": ({"b": boxes(9), "s": np.full((1, 9, 5), 0.2)}, {}, "object-detection", "as of SSD"),
    "YOLOv8": ({"y": np.full((1, 4 + 3, 84), 0.5)}, {}, "object-detection", "YOLOv8"),
    "YOLOX": ({"y": np.full((1, 84, 5 + 3), 0.5)}, {}, "object-detection", "YOLOX"),
    "end-to-end": ({"y": np.ones((1, 50, 6))}, {}, "object-detection", "after suppression"),
    "a label at every step": ({"y": np.full((1, 40, 97), 0.5)}, {"last": "Softmax"}, "tensor", "CTC"),
    "no number of cells": ({"y": np.full((1, 7, 100), 0.5)}, {}, "tensor", "no number of cells"),
}  # fmt: skip


@pytest.mark.parametrize(("outputs", "how", "task", "reason"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_outputs_tell_the_task(path: Path, outputs: Any, how: Any, task: str, reason: str) -> None:
    proposal = proposed(graph(path, outputs, **how))
    assert proposal.task == proposal.manifest["task"] == task
    assert reason in about(proposal, "task").reason


def test_a_given_task_is_taken_and_never_guessed(path: Path) -> None:
    proposal = proposed(graph(path, {"y": LOGITS}), task="tensor")
    assert proposal.manifest == {"task": "tensor", "architecture": "other"}
    assert about(proposal, "task").sure


def test_an_embedding_is_no_classifier(path: Path) -> None:
    nodes = [
        make("ReduceMean", ["x"], ["features"], axes=[2, 3], keepdims=0),
        make("ReduceL2", ["features"], ["length"], axes=[1], keepdims=1),
        make("Div", ["features", "length"], ["y"]),
    ]
    graphs.save(path, nodes, [("x", T.FLOAT, ["n", 3, 64, 64])], [("y", T.FLOAT, ["n", 3])])
    assert "embedding" in about(proposed(path), "task").reason


def test_a_graph_with_the_names_of_a_task_of_the_house_is_of_that_task(path: Path) -> None:
    proposal = proposed(graphs.last_value(path))
    assert proposal.task == "anomaly-detection"
    assert "state" not in proposal.manifest  # `x` and `next_x` say it themselves


def test_what_ultralytics_says_of_other_tasks_is_believed(path: Path) -> None:
    outputs = {"y": np.full((1, 4 + 3, 84), 0.5)}
    told = {"task": "pose", "stride": "32", "author": "Ultralytics"}
    assert "'pose'" in about(proposed(graph(path, outputs, metadata=told)), "task").reason


# --- what a detector's manifest has to say


def test_offsets_from_cells_are_decoded_here_where_the_graph_leaves_it(path: Path) -> None:
    table = proposed(graph(path, {"y": np.full((1, 84, 8), 0.5)})).manifest
    assert table["detection"]["strides"] == [8, 16, 32]
    assert table["preprocessing"]["std"] == pytest.approx(1 / 255)  # YOLOX takes 0 to 255


def test_scores_after_a_softmax_begin_with_the_background(path: Path) -> None:
    nodes = [
        make("ReduceMean", ["x"], ["mean"], keepdims=0),
        make("Sub", ["b.held", "mean"], ["b"]),
        make("Sub", ["s.held", "mean"], ["logits"]),
        make("Softmax", ["logits"], ["s"], axis=-1),
    ]
    held = {"b.held": boxes(9).astype(np.float32) * 300, "s.held": np.zeros((1, 9, 5), np.float32)}
    graphs.save(
        path, nodes, [("x", T.FLOAT, [1, 3, 64, 64])], [("b", T.FLOAT, [1, 9, 4]), ("s", T.FLOAT, [1, 9, 5])], held
    )
    proposal = proposed(path)
    assert proposal.manifest["detection"] == {"background": True, "unit": "pixel"}
    assert len(proposal.labels or ()) == 4


def test_scores_beyond_0_to_1_get_a_sigmoid(path: Path) -> None:
    proposal = proposed(graph(path, {"b": boxes(9), "s": np.full((1, 9, 5), -4.0)}))
    assert proposal.manifest["detection"]["activation"] == "sigmoid"


# --- the picture


def test_a_picture_whose_shape_is_open_is_read_from_the_first_convolution(path: Path) -> None:
    def save(layout: str) -> None:
        nodes = [
            *([make("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []),
            make("Conv", ["planes" if layout == "NHWC" else "x", "w"], ["maps"]),
            make("GlobalAveragePool", ["maps"], ["pooled"]),
            make("Flatten", ["pooled"], ["y"]),
        ]
        w = np.ones((4, 1, 3, 3), np.float32)
        graphs.save(path, nodes, [("x", T.FLOAT, ["n", "a", "b", "c"])], [("y", T.FLOAT, ["n", 4])], {"w": w})

    for layout in ("NHWC", "NCHW"):
        save(layout)
        proposal = proposed(path)
        assert about(proposal, "input").value == f"{layout}, grey, any size"
        assert proposal.manifest["preprocessing"]["layout"] == layout
        assert proposal.manifest["preprocessing"]["size"] == 224
        assert not about(proposal, "size").sure


def constants_first(scale: float) -> dict[str, Any]:
    """Division by `scale`, then ImageNet's mean and std, as operators on planes."""
    of_planes = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    held: dict[str, Any] = {name: np.array(three, np.float32)[:, None, None] for name, three in of_planes.items()}
    nodes = (
        make("Div", ["x", "scale"], ["scaled"]),
        make("Sub", ["scaled", "mean3"], ["centred"]),
        make("Div", ["centred", "std3"], ["normalised"]),
    )
    return {"first": nodes, "constants": {"scale": np.float32(scale), "mean3": held["mean"], "std3": held["std"]}}


@pytest.mark.parametrize(
    ("how", "mean", "std"),
    [
        (constants_first(255), 0, 1 / 255),
        (constants_first(1), 0, 1),
        ({"first": (make("Mul", ["x", "s"], ["normalised"]),), "constants": {"s": np.float32(1 / 255)}}, 0, 1 / 255),
    ],
    ids=["from 0 to 255", "from 0 to 1", "a factor"],
)
def test_what_the_graph_normalises_is_not_normalised_here(path: Path, how: Any, mean: float, std: float) -> None:
    proposal = proposed(graph(path, {"y": LOGITS}, (1, 3, 224, 224), **how))
    assert proposal.manifest["preprocessing"]["mean"] == mean
    assert proposal.manifest["preprocessing"]["std"] == pytest.approx(std)
    assert about(proposal, "scale").sure


def test_a_graph_that_takes_uint8_normalises_itself(path: Path) -> None:
    proposal = proposed(graph(path, {"y": LOGITS}, (1, 64, 64, 3), dtype=T.UINT8))
    assert proposal.manifest["preprocessing"] == {"resize": "stretch"}
    assert about(proposal, "scale").sure


@pytest.mark.parametrize(
    ("shape", "exporter", "mean"),
    [
        ((1, 3, 224, 224), "pytorch", [0.485, 0.456, 0.406]),
        ((1, 224, 224, 3), "tf2onnx", 0.5),
        ((1, 3, 32, 32), "pytorch", 0.0),
        ((1, 1, 224, 224), "pytorch", 0.0),
    ],
)
def test_where_nothing_tells_the_scale_it_is_the_usual_one_and_a_guess(
    path: Path, shape: Any, exporter: str, mean: Any
) -> None:
    proposal = proposed(graph(path, {"y": LOGITS}, shape, exporter=exporter))
    assert proposal.manifest["preprocessing"]["mean"] == mean
    assert not about(proposal, "scale").sure


def test_a_file_of_hugging_face_beside_the_graph_tells_how_pictures_are_prepared(path: Path) -> None:
    graph(path, {"y": LOGITS[:, :2]}, (1, 3, "height", "width"))
    prepared = {
        "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 40}, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
    }  # fmt: skip
    path.with_name("preprocessor_config.json").write_text(json.dumps(prepared))
    path.with_name("config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog"}}))
    proposal = proposed(path)
    table = proposal.manifest["preprocessing"]
    assert table.pop("mean") == pytest.approx(0.5)
    assert table.pop("std") == pytest.approx(0.25)
    assert table == {"size": 32, "resize": "crop", "resize_to": 40, "filter": "bicubic"}
    assert proposal.labels == ("cat", "dog")
    assert {guess.about for guess in proposal.open} == {"task"}


def test_ultralytics_metadata_tell_size_labels_and_scale(path: Path) -> None:
    told = {
        "task": "detect",
        "stride": "32",
        "author": "Ultralytics",
        "imgsz": "[64, 96]",
        "names": "{0: 'a', 1: 'b', 2: 'c'}",
    }
    found = np.concatenate([np.full((1, 4, 126), 30), np.full((1, 3, 126), 0.5)], axis=1)
    proposal = proposed(graph(path, {"y": found}, (1, 3, "h", "w"), metadata=told))
    assert proposal.manifest["preprocessing"]["size"] == [64, 96]
    assert proposal.manifest["preprocessing"]["resize"] == "letterbox"
    assert proposal.labels == ("a", "b", "c")
    assert not proposal.open


# --- labels


def test_imagenet_and_coco_are_guessed_by_count(path: Path) -> None:
    proposal = proposed(graph(path, {"y": np.zeros((1, 1000))}, (1, 3, 224, 224)))
    assert (proposal.labels or ())[999] == "class 999"
    assert "usually ImageNet's" in about(proposal, "labels").reason
    proposal = proposed(graph(path, {"y": np.full((1, 84, 168), 0.5)}, (1, 3, 64, 128)))
    assert (proposal.labels or ())[:2] == ("person", "bicycle")
    assert not about(proposal, "labels").sure


@pytest.mark.parametrize("file", ["labels.txt", "net.names", "coco.names"])
def test_a_list_beside_the_file_is_taken_if_it_has_as_many(path: Path, file: str) -> None:
    graph(path, {"y": LOGITS[:, :3]})
    path.with_name(file).write_text("a\nb\nc\n")
    assert proposed(path).labels == ("a", "b", "c")
    path.with_name(file).write_text("a\nb\n")
    assert proposed(path).labels == ("class 0", "class 1", "class 2")


def test_labels_are_read_as_exporters_write_them() -> None:
    for text in ("{0: 'a', 1: 'b'}", '{"0": "a", "1": "b"}', '["a", "b"]', "a, b", "a\nb"):
        assert names_in(text) == ("a", "b")
    for text in ("", "a", "{0: 'a', 2: 'b'}", "[1, 2]", "{", "nonsense" * 3):
        assert names_in(text) == ()


# --- numbers


def stepper(path: Path) -> Path:
    """As silero-vad: sound and a state of rank 3 in, the same state of another name out, and the rate of the sound."""
    nodes = [
        make("ReduceMean", ["input"], ["level"], axes=[1], keepdims=1),
        make("Cast", ["sr"], ["rate"], to=T.FLOAT),
        make("Div", ["level", "rate"], ["output"]),
        make("Add", ["state", "rate"], ["stateN"]),
    ]
    return graphs.save(
        path,
        nodes,
        [("input", T.FLOAT, ["batch", "samples"]), ("state", T.FLOAT, [2, "batch", 4]), ("sr", T.INT64, [])],
        [("output", T.FLOAT, ["batch", 1]), ("stateN", T.FLOAT, [2, "batch", 4])],
    )


def test_state_is_known_by_names_and_shapes_and_a_rate_is_a_constant(path: Path) -> None:
    proposal = proposed(stepper(path))
    assert proposal.manifest["state"] == {"state": "stateN"}
    assert proposal.manifest["constants"] == {"sr": 16000}
    assert {guess.about for guess in proposal.open} >= {"state", "constants.sr"}


def test_an_input_that_is_given_a_constant_leaves_a_picture_alone(path: Path) -> None:
    nodes = [make("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0), make("Mul", ["mean", "factor"], ["y"])]
    inputs = [("x", T.FLOAT, ["n", 3, 32, 32]), ("factor", T.FLOAT, [])]
    graphs.save(path, nodes, inputs, [("y", T.FLOAT, ["n", 3])])
    assert proposed(path).task == "tensor"
    settings = {"constants": {"factor": 3.0}}
    source = read(path, settings["constants"])
    proposal = propose(source, photo.drawn(), Wishes(settings=settings), PICTURE_TASKS)
    assert proposal.task == "image-classification"
    assert proposal.manifest["constants"] == {"factor": 3.0}


def test_whether_axis_0_is_a_batch_is_tried(path: Path) -> None:
    graphs.affine(path)
    assert "batched" not in proposed(path).manifest
    nodes, shapes = [make("CumSum", ["x", "axis"], ["y"])], [("x", T.FLOAT, ["time", 2])]
    graphs.save(path, nodes, shapes, [("y", T.FLOAT, ["time", 2])], {"axis": np.int64(0)})
    assert proposed(path).manifest["batched"] is False


def test_what_was_said_goes_before_what_was_guessed(path: Path) -> None:
    graph(path, {"y": LOGITS}, (1, 3, 224, 224))
    settings = {"preprocessing": {"mean": 0.5, "std": 0.5, "filter": "lanczos"}, "licence": "MIT"}
    proposal = proposed(path, settings=settings, labels=[f"n{index}" for index in range(10)])
    assert proposal.manifest["preprocessing"] == {
        "mean": 0.5, "std": 0.5, "resize": "crop", "resize_to": 256, "filter": "lanczos"
    }  # fmt: skip
    assert proposal.manifest["licence"] == "MIT"
    assert {guess.about for guess in proposal.open} == {"task", "resize"}
