"""Tiny ONNX graphs whose answers are mental arithmetic, and model folders around them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from PIL import Image


def save(path: Path, nodes: Sequence[Any], inputs: Any, outputs: Any, constants: dict[str, Any] | None = None) -> Path:
    """Write a graph; inputs and outputs are `(name, element type, shape)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def affine(path: Path, batch: int | str = "batch") -> Path:
    """y = 2x + 1, for x float32 (batch, width)."""
    return save(
        path,
        [helper.make_node("Mul", ["x", "two"], ["double"]), helper.make_node("Add", ["double", "one"], ["y"])],
        [("x", T.FLOAT, [batch, "width"])],
        [("y", T.FLOAT, [batch, "width"])],
        {"two": np.float32(2), "one": np.float32(1)},
    )


def plus(path: Path, number: float) -> Path:
    """y = x + number, for x float32 (batch, width)."""
    return save(
        path,
        [helper.make_node("Add", ["x", "number"], ["y"])],
        [("x", T.FLOAT, ["batch", "width"])],
        [("y", T.FLOAT, ["batch", "width"])],
        {"number": np.float32(number)},
    )


def counting_up_to_x(path: Path, number: float = 0) -> Path:
    """y = x + number for x float32 (batch, width), counted up one by one to the largest of x: as long as is asked for."""
    make, info = helper.make_node, helper.make_tensor_value_info
    body = helper.make_graph(
        [make("Identity", ["go_on"], ["again"]), make("Add", ["before", "one"], ["after"])],
        "round",
        [info("round", T.INT64, []), info("go_on", T.BOOL, []), info("before", T.FLOAT, [])],
        [info("again", T.BOOL, []), info("after", T.FLOAT, [])],
    )
    nodes = [
        make("ReduceMax", ["x"], ["largest"], keepdims=0),
        make("Cast", ["largest"], ["rounds"], to=T.INT64),
        make("Loop", ["rounds", "", "nought"], ["counted"], body=body),
        make("Mul", ["counted", "nought"], ["nothing"]),
        make("Add", ["x", "nothing"], ["same"]),
        make("Add", ["same", "number"], ["y"]),
    ]
    return save(
        path,
        nodes,
        [("x", T.FLOAT, ["batch", "width"])],
        [("y", T.FLOAT, ["batch", "width"])],
        {"nought": np.float32(0), "one": np.float32(1), "number": np.float32(number)},
    )


def endless_above_zero(path: Path) -> Path:
    """y = x for x float32 (batch, width) without a number above 0; with one, its loop never ends."""
    make = helper.make_node
    flag = helper.make_tensor_value_info
    body = helper.make_graph(
        [make("Identity", ["go_on"], ["again"]), make("Identity", ["before"], ["after"])],
        "round",
        [flag("round", T.INT64, []), flag("go_on", T.BOOL, []), flag("before", T.FLOAT, None)],
        [flag("again", T.BOOL, []), flag("after", T.FLOAT, None)],
    )
    nodes = [
        make("ReduceMax", ["x"], ["largest"], keepdims=0),
        make("Greater", ["largest", "nought"], ["is_above"]),
        make("Loop", ["", "is_above", "x"], ["y"], body=body),
    ]
    return save(
        path,
        nodes,
        [("x", T.FLOAT, ["batch", "width"])],
        [("y", T.FLOAT, ["batch", "width"])],
        {"nought": np.float32(0)},
    )


def reciprocal_index(path: Path) -> Path:
    """y = table[x] with a table of 4 entries (10, 20, 30, 40): an index of 4 makes the run itself fail."""
    return save(
        path,
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", T.INT64, ["batch"])],
        [("y", T.FLOAT, ["batch"])],
        {"table": np.array([10, 20, 30, 40], np.float32)},
    )


def running_sum(path: Path) -> Path:
    """A recurrent graph: `total[t]` = h + x[0] + ... + x[t] with state `h`; stops at `sequence_lens`.

    An ONNX RNN with identity activation (Affine, alpha 1) and unit weights.
    """
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last_axis"], ["x3"]),  # (batch, time, 1)
        helper.make_node("Transpose", ["x3"], ["xt"], perm=[1, 0, 2]),  # (time, batch, 1)
        helper.make_node("Unsqueeze", ["h", "first_axis"], ["h3"]),  # (1, batch, 1)
        helper.make_node(
            "RNN",
            ["xt", "w", "r", "", "sequence_lens", "h3"],
            ["states", "final"],
            hidden_size=1,
            activations=["Affine"],
            activation_alpha=[1.0],
            activation_beta=[0.0],
        ),  # (time, 1, batch, 1), (1, batch, 1)
        helper.make_node("Squeeze", ["states", "inner_axes"], ["tb"]),  # (time, batch)
        helper.make_node("Transpose", ["tb"], ["total"], perm=[1, 0]),
        helper.make_node("Squeeze", ["final", "first_axis"], ["next_h"]),
    ]
    one = np.ones((1, 1, 1), np.float32)
    return save(
        path,
        nodes,
        [("x", T.FLOAT, ["batch", "time"]), ("sequence_lens", T.INT32, ["batch"]), ("h", T.FLOAT, ["batch", 1])],
        [("total", T.FLOAT, ["batch", "time"]), ("next_h", T.FLOAT, ["batch", 1])],
        {
            "w": one,
            "r": one,
            "last_axis": np.array([2]),
            "first_axis": np.array([0]),
            "inner_axes": np.array([1, 3]),
        },
    )


def colours(path: Path) -> Path:
    """A classifier of 2x2 pictures: the logits are the mean of red, green and blue, in hundreds."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=T.FLOAT),
        helper.make_node("Div", ["pixels", "hundred"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["logits"], axes=[1, 2], keepdims=0),
        helper.make_node("Transpose", ["scaled"], ["activation_map"], perm=[0, 3, 1, 2]),
    ]
    return save(
        path,
        nodes,
        [("image", T.UINT8, ["batch", 2, 2, 3])],
        [("logits", T.FLOAT, ["batch", 3]), ("activation_map", T.FLOAT, ["batch", 3, 2, 2])],
        {"hundred": np.float32(100)},
    )


def endless(path: Path) -> Path:
    """The classifier of colours with a loop that never ends."""
    go_on = [helper.make_node("Identity", [name], [f"{name}_again"]) for name in ("true", "values")]
    body = helper.make_graph(
        go_on,
        "body",
        [
            helper.make_tensor_value_info("turn", T.INT64, []),
            helper.make_tensor_value_info("true", T.BOOL, []),
            helper.make_tensor_value_info("values", T.FLOAT, [None, 3]),
        ],
        [
            helper.make_tensor_value_info("true_again", T.BOOL, []),
            helper.make_tensor_value_info("values_again", T.FLOAT, [None, 3]),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=T.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Loop", ["", "yes", "means"], ["logits"], body=body),
    ]
    return save(
        path,
        nodes,
        [("image", T.UINT8, ["batch", 2, 2, 3])],
        [("logits", T.FLOAT, ["batch", 3])],
        {"yes": np.bool_(True)},
    )


def colours_and_novelty(path: Path) -> Path:
    """The classifier of colours, which finds a picture the more novel the brighter its brightest colour, in hundreds."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=T.FLOAT),
        helper.make_node("Div", ["pixels", "hundred"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["logits"], axes=[1, 2], keepdims=0),
        helper.make_node("Transpose", ["scaled"], ["activation_map"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMax", ["scaled"], ["novelty"], axes=[1, 2, 3], keepdims=0),
    ]
    return save(
        path,
        nodes,
        [("image", T.UINT8, ["batch", 2, 2, 3])],
        [
            ("logits", T.FLOAT, ["batch", 3]),
            ("activation_map", T.FLOAT, ["batch", 3, 2, 2]),
            ("novelty", T.FLOAT, ["batch"]),
        ],
        {"hundred": np.float32(100)},
    )


def pixels(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    """A classifier that gives pictures back: softmax makes of the logits log(value / 255 + 0.0001), one for each
    colour of each pixel, and of a last one, 0, scores whose ratio to the last is value / 255 + 0.0001."""
    width, height = size
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=T.FLOAT),
        helper.make_node("Div", ["values", "most"], ["shares"]),
        helper.make_node("Add", ["shares", "little"], ["above_zero"]),
        helper.make_node("Log", ["above_zero"], ["logs"]),
        helper.make_node("Reshape", ["logs", "flat"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["last"]),
        helper.make_node("Concat", ["rows", "last"], ["logits"], axis=1),
    ]
    return save(
        path,
        nodes,
        [("image", T.UINT8, ["batch", height, width, 3])],
        [("logits", T.FLOAT, ["batch", width * height * 3 + 1])],
        {
            "most": np.float32(255),
            "little": np.float32(0.0001),
            "zero": np.float32(0),
            "flat": np.array([-1, width * height * 3]),
        },
    )


def age(path: Path) -> Path:
    """A detector that expects each point to be the number of those before it, missing ones included, give or take 1; of the
    first it can say nothing. The state is that number."""
    return save(
        path,
        [
            helper.make_node("Cast", ["state"], ["before"], to=T.DOUBLE),
            helper.make_node("Mul", ["values", "nought"], ["nan_or_zero"]),
            helper.make_node("IsNaN", ["nan_or_zero"], ["any"]),
            helper.make_node("Where", ["any", "unit", "unit"], ["ones"]),
            helper.make_node("CumSum", ["ones", "time_axis"], ["so_far"], exclusive=1),
            helper.make_node("Add", ["before", "so_far"], ["expected"]),
            helper.make_node("Equal", ["expected", "nought"], ["first"]),
            helper.make_node("Where", ["first", "blind", "unit"], ["spread"]),
            helper.make_node("Cast", ["sequence_lens"], ["length"], to=T.FLOAT),
            helper.make_node("Unsqueeze", ["length", "axis"], ["lengths"]),
            helper.make_node("Add", ["state", "lengths"], ["next_state"]),
        ],
        [
            ("values", T.DOUBLE, ["batch", "time"]),
            ("sequence_lens", T.INT32, ["batch"]),
            ("state", T.FLOAT, ["batch", 1]),
        ],
        [
            ("expected", T.DOUBLE, ["batch", "time"]),
            ("spread", T.DOUBLE, ["batch", "time"]),
            ("next_state", T.FLOAT, ["batch", 1]),
        ],
        {
            "nought": np.float64(0),
            "unit": np.float64(1),
            "blind": np.float64(1e304),
            "time_axis": np.int64(1),
            "axis": np.array([1]),
        },
    )


def last_value(path: Path, novelty: bool = False) -> Path:
    """A detector that expects each point to equal the one before it, give or take 1; the state is the last point. With
    `novelty`, it has that output too: 0.75 for each 7, else 0."""
    novel = [
        helper.make_node("Equal", ["values", "seven"], ["sevens"]),
        helper.make_node("Cast", ["sevens"], ["ones"], to=T.DOUBLE),
        helper.make_node("Mul", ["ones", "three_quarters"], ["novelty"]),
    ]
    nodes = [
        *(novel if novelty else []),
        helper.make_node("Cast", ["state"], ["before"], to=T.DOUBLE),
        helper.make_node("Slice", ["values", "zero", "minus_one", "time_axis"], ["head"]),
        helper.make_node("Concat", ["before", "head"], ["expected"], axis=1),
        helper.make_node("Mul", ["expected", "nought"], ["zeros"]),
        helper.make_node("Add", ["zeros", "unit"], ["spread"]),
        helper.make_node("Sub", ["sequence_lens", "one32"], ["end"]),
        helper.make_node("Unsqueeze", ["end", "time_axis"], ["ends"]),
        helper.make_node("GatherElements", ["values", "ends"], ["last"], axis=1),
        helper.make_node("Cast", ["last"], ["next_state"], to=T.FLOAT),
    ]
    return save(
        path,
        nodes,
        [
            ("values", T.DOUBLE, ["batch", "time"]),
            ("sequence_lens", T.INT32, ["batch"]),
            ("state", T.FLOAT, ["batch", 1]),
        ],
        [
            ("expected", T.DOUBLE, ["batch", "time"]),
            ("spread", T.DOUBLE, ["batch", "time"]),
            *([("novelty", T.DOUBLE, ["batch", "time"])] if novelty else []),
            ("next_state", T.FLOAT, ["batch", 1]),
        ],
        {
            "zero": np.array([0]),
            "minus_one": np.array([-1]),
            "time_axis": np.array([1]),
            "nought": np.float64(0),
            "unit": np.float64(1),
            "one32": np.int32(1),
            **({"seven": np.float64(7), "three_quarters": np.float64(0.75)} if novelty else {}),
        },
    )


def png(colour: tuple[int, int, int] = (200, 0, 100), size: tuple[int, int] = (2, 2), form: str = "PNG") -> bytes:
    """An image of one colour, encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def write_model(
    folder: Path, *, task: str, graph: Any, golden: Any = None, version: str = "1", **manifest: Any
) -> Path:
    """A model folder: manifest, one version, and whatever golden samples are given."""
    graph(folder / version / "model.onnx")
    lines = [f'task = "{task}"', *(f"{key} = {json.dumps(value)}" for key, value in manifest.items())]
    (folder / "manifest.toml").write_text("\n".join(lines))
    if golden is not None:
        (folder / version / "golden.json").write_text(json.dumps(golden))
    return folder


def colour_model(models: Path, name: str = "colours", graph: Any = colours, **manifest: Any) -> Path:
    """The colour classifier as a complete model folder."""
    # Red 2, green 0, blue 1: softmax (0.665, 0.090, 0.245).
    golden = [
        {
            "input": {"image": "golden/pink.png", "top_k": 1},
            "output": {"results": [{"predictions": [{"label": "red", "score": 0.6652, "index": 0}]}]},
        }
    ]
    folder = write_model(models / name, task="image-classification", graph=graph, golden=golden, **manifest)
    (folder / "1" / "labels.txt").write_text("red\ngreen\nblue\n")
    (folder / "1" / "golden").mkdir()
    (folder / "1" / "golden" / "pink.png").write_bytes(png())
    (folder / "card.md").write_text("# Colours\n\nTells red from green and blue.\n")
    return folder


def pixels_model(models: Path, name: str = "pixels", **preprocessing: Any) -> Path:
    """The classifier that gives pictures of 16x16 back as a model folder; `seen` reads its answers."""
    folder = write_model(models / name, task="image-classification", graph=pixels)
    with (folder / "manifest.toml").open("a") as file:
        file.write("\n[preprocessing]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in preprocessing.items()))
    labels = [*(f"p{number}" for number in range(16 * 16 * 3)), "one"]
    (folder / "1" / "labels.txt").write_text("\n".join(labels) + "\n")
    return folder


def seen(result: dict[str, Any]) -> np.ndarray:
    """The pixels that the model `pixels` was given, float (16, 16, 3), from its result with `top_k=1000`."""
    scores = np.zeros(16 * 16 * 3 + 1)
    for prediction in result["predictions"]:
        scores[prediction["index"]] = prediction["score"]
    found: np.ndarray = ((scores[:-1] / scores[-1] - 0.0001) * 255).reshape(16, 16, 3)
    return found


def detector_model(models: Path, name: str = "steps", **manifest: Any) -> Path:
    """The last-value detector as a complete model folder."""
    golden = [{"input": {"values": [0, 0, 5]}, "output": {"anomalies": [2], "scores": [0.0, 0.0, 5 / 6]}}]
    return write_model(models / name, task="anomaly-detection", graph=last_value, golden=golden, **manifest)


def words_model(models: Path, name: str = "words") -> Path:
    """A language model of eight words that follow each other in a circle, most of the time, as a model folder."""
    words = ["<eos>", "<unk>", "the", "cat", "sat", "on", "a", "mat"]
    table = np.full((len(words), len(words)), 0.02)
    for number in range(len(words)):
        table[number, max(2, (number + 1) % len(words))] = 0.86

    def graph(path: Path) -> Path:
        inputs = [("tokens", T.INT64, ["batch", "time"]), ("sequence_lens", T.INT32, ["batch"])]
        inputs += [("state", T.FLOAT, ["batch", 1]), ("explain", T.BOOL, ["batch"])]
        outputs = [("logits", T.FLOAT, ["batch", len(words)]), ("next_state", T.FLOAT, ["batch", 1])]
        outputs += [("surprisal", T.FLOAT, ["batch", "time"])]
        return save(path, bigram_nodes("surprisal"), inputs, outputs, bigram_constants(table))

    folder = write_model(models / name, task="next-word-prediction", graph=graph)
    (folder / "1" / "vocabulary.txt").write_text("\n".join(words) + "\n")
    return folder


def bigram_nodes(surprisal: str) -> list[Any]:
    """A language model that knows what follows each word; its state is the number of the last token.

    Args:
        surprisal: name of the output, bits of each token.
    """
    make = helper.make_node
    return [
        make("Cast", ["state"], ["before"], to=T.INT64),
        make("Concat", ["before", "tokens"], ["all"], axis=1),
        make("Cast", ["sequence_lens"], ["lens"], to=T.INT64),
        make("Unsqueeze", ["lens", "one"], ["lens_column"]),
        make("GatherElements", ["all", "lens_column"], ["now"], axis=1),
        make("Cast", ["now"], ["next_state"], to=T.FLOAT),
        make("Squeeze", ["now", "one"], ["row"]),
        make("Gather", ["log_p", "row"], ["logits"]),
        make("Slice", ["all", "zero", "last", "one"], ["contexts"]),
        make("Gather", ["log_p", "contexts"], ["of_contexts"]),
        make("Unsqueeze", ["tokens", "last"], ["chosen"]),
        make("GatherElements", ["of_contexts", "chosen"], ["of_chosen"], axis=2),
        make("Squeeze", ["of_chosen", "last"], ["nats"]),
        make("Div", ["nats", "minus_nats_per_bit"], [surprisal]),
    ]


def bigram_constants(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """What `bigram_nodes` refer to: probabilities (words, words), above 0, of the next word (column) after each."""
    return {
        "log_p": np.log(probabilities).astype(np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
        "last": np.array([-1]),
        "minus_nats_per_bit": np.float32(-np.log(2)),
    }


def encoder(path: Path) -> Path:
    """stride = 10 x, for x float32 (batch, 1): the first graph of the task `counting`."""
    return save(
        path,
        [helper.make_node("Mul", ["x", "ten"], ["stride"])],
        [("x", T.FLOAT, ["batch", 1])],
        [("stride", T.FLOAT, ["batch", 1])],
        {"ten": np.float32(10)},
    )


def decoder(path: Path, step: float = 0) -> Path:
    """next_count = count + stride + step, for both float32 (batch, 1): the second graph of the task `counting`."""
    return save(
        path,
        [
            helper.make_node("Add", ["count", "stride"], ["sum"]),
            helper.make_node("Add", ["sum", "step"], ["next_count"]),
        ],
        [("stride", T.FLOAT, ["batch", 1]), ("count", T.FLOAT, ["batch", 1])],
        [("next_count", T.FLOAT, ["batch", 1])],
        {"step": np.float32(step)},
    )


def counting_model(models: Path, name: str = "counter") -> Path:
    """A version of two graphs as a complete model folder; `tests.counting` has its task."""
    golden = [{"input": {"x": 2, "steps": 3}, "output": {"counts": [20, 40, 60]}}]
    folder = write_model(models / name, task="counting", graph=lambda path: encoder(path.with_name("encoder.onnx")))
    decoder(folder / "1" / "decoder.onnx")
    (folder / "1" / "golden.json").write_text(json.dumps(golden))
    (folder / "card.md").write_text("# Counter\n\nCounts in tens.\n")
    return folder
