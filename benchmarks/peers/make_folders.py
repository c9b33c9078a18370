"""Make Gridloop model folders of the four models of the side-by-side comparison with other serving systems.

    python benchmarks/peers/make_folders.py MODELS OUT

MODELS holds `m1.onnx` … `m4.onnx` (random weights) and `bodies/`. Every graph computes the same numbers as before:

- M1, M2 (convolutions, `image` float32 NCHW -> `logits`): unchanged, with labels and a `[preprocessing]` table.
- M3 (`tokens` -> `logits`): `sequence_lens` and the recurrent state become inputs and outputs, as a stream needs them.
  Its 33,000 words are the numbers "0" to "32999".
- M4 (`values` -> `scores`): its standardisation moves into the graph, and the outputs and the state of an anomaly
  detector are added, so that it serves both the tensor route and `/v1/anomaly-detection`. The transposition before the
  last product comes after it, where it moves one number a point instead of 64; the scores are the same bit by bit.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F, I64, I32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32


def folder(out: Path, group: str, name: str, manifest: str) -> Path:
    """An empty version folder; `group` is the repository it belongs to."""
    version = out / group / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "manifest.toml").write_text(manifest)
    return version


def classifier(models: Path, out: Path, name: str, classes: int, preprocessing: str, body: str) -> None:
    """M1 and M2, as they are."""
    mean_std = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
    version = folder(
        out,
        name,
        name,
        f'task = "image-classification"\narchitecture = "cnn"\n[preprocessing]\n{mean_std}{preprocessing}',
    )
    shutil.copy(models / f"{name}.onnx", version / "model.onnx")
    (version / "labels.txt").write_text("".join(f"class_{n:04d}\n" for n in range(classes)))
    shutil.copy(models / "bodies" / body, version / body)
    golden(version, {"image": body, "top_k": 1}, {"results": [{}]})


def golden(version: Path, request: dict[str, object], answer: dict[str, object]) -> None:
    """A sample to warm up and measure with; the comparison itself checks the answers."""
    (version / "golden.json").write_text(json.dumps([{"input": request, "output": answer}]))


def save(graph: onnx.GraphProto, path: Path) -> None:
    """Check and write."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    """A constant of the graph, by name."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def language_model(models: Path, out: Path) -> None:
    """M3 with `sequence_lens`, `state` (2 layers x (hidden, cell) x 512) and `next_state`."""
    words = 33_000
    graph = onnx.load(str(models / "m3.onnx")).graph
    layers = [node for node in graph.node if node.op_type == "LSTM"]
    size = next(a.i for a in layers[0].attribute if a.name == "hidden_size")
    parts = [f"{what}{n}" for n in range(len(layers)) for what in "hc"]
    split = [
        helper.make_node("Unsqueeze", ["state", constant(graph, "zero", np.array([0], np.int64))], ["state_3d"]),
        helper.make_node(
            "Split",
            ["state_3d", constant(graph, "sizes", np.array([size] * len(parts), np.int64))],
            [f"initial_{p}" for p in parts],
            axis=2,
        ),
    ]
    for n, node in enumerate(layers):
        node.input.extend(["sequence_lens", f"initial_h{n}", f"initial_c{n}"])
        node.output[1], node.output[2] = f"final_h{n}", f"final_c{n}"
    # The logits are taken after the last real token: that is the last layer's final hidden state.
    last = next(node for node in graph.node if node.op_type == "Gather" and "tokens" not in node.input)
    squeezed = helper.make_node("Squeeze", [f"final_h{len(layers) - 1}", "zero"], [last.output[0]])
    join = [
        helper.make_node("Concat", [f"final_{p}" for p in parts], ["next_state_3d"], axis=2),
        helper.make_node("Squeeze", ["next_state_3d", "zero"], ["next_state"]),
    ]
    kept = [squeezed if node.name == last.name else node for node in graph.node]
    values = helper.make_tensor_value_info
    whole = helper.make_graph(
        [*split, *kept, *join],
        "m3",
        [
            values("tokens", I64, ["batch", "time"]),
            values("sequence_lens", I32, ["batch"]),
            values("state", F, ["batch", size * len(parts)]),
        ],
        [values("logits", F, ["batch", words]), values("next_state", F, ["batch", size * len(parts)])],
        list(graph.initializer),
    )
    version = folder(out, "m3", "m3", 'task = "next-word-prediction"\narchitecture = "rnn"\n')
    save(whole, version / "model.onnx")
    (version / "vocabulary.txt").write_text("".join(f"{n}\n" for n in range(words)))
    tokens = json.loads((models / "bodies/W3-00.json").read_text())["tokens"]
    golden(version, {"text": " ".join(map(str, tokens)) + " ", "top_k": 5}, {"completing": None})


def detector(models: Path, out: Path) -> None:
    """M4 with its standardisation in the graph, and with what an anomaly detector has besides `scores`.

    The tensor route asks for `scores` alone. The typed route's `expected` is the score on the scale of the series and
    `spread` the series' standard deviation; rows of one run must be equally long, as they are here.
    """
    graph = onnx.load(str(models / "m4.onnx")).graph
    epsilon = constant(graph, "epsilon", np.float32(1e-6))
    last_axis = constant(graph, "last_axis", np.array([2], np.int64))
    first_axis = constant(graph, "first_axis", np.array([0], np.int64))
    (gru,) = (node for node in graph.node if node.op_type == "GRU")
    gru.input.extend(["sequence_lens", "initial"])
    gru.output[1] = "final"
    for node in graph.node:
        node.input[:] = ["series" if name == "values" else name for name in node.input]
        node.output[:] = ["scores_3d" if name == "scores" else name for name in node.output]
    product = next(node for node in graph.node if node.op_type == "MatMul")
    transposition = next(node for node in graph.node if node.output[0] == product.input[0])
    by_time, by_row, result = transposition.input[0], transposition.output[0], product.output[0]
    product.input[0], product.output[0] = by_time, by_row
    transposition.input[0], transposition.output[0] = by_row, result
    between = {product.name: transposition, transposition.name: product}
    before = [
        helper.make_node("ReduceMean", ["values"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["values", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["variance"], axes=[1], keepdims=1),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Add", ["deviation", epsilon], ["divisor"]),
        helper.make_node("Div", ["centred", "divisor"], ["standardised"]),
        helper.make_node("Unsqueeze", ["standardised", last_axis], ["series"]),
        helper.make_node("Unsqueeze", ["state", first_axis], ["initial"]),
    ]
    after = [
        helper.make_node("Squeeze", ["scores_3d", last_axis], ["scores"]),
        helper.make_node("Mul", ["scores", "divisor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["expected"]),
        helper.make_node("Sub", ["values", "values"], ["nought"]),
        helper.make_node("Add", ["nought", "divisor"], ["spread"]),
        helper.make_node("Squeeze", ["final", first_axis], ["next_state"]),
    ]
    values = helper.make_tensor_value_info
    size = next(a.i for a in gru.attribute if a.name == "hidden_size")
    series = {name: values(name, F, ["batch", "time"]) for name in ("values", "scores", "expected", "spread")}
    whole = helper.make_graph(
        [*before, *(between.get(node.name, node) for node in graph.node), *after],
        "m4",
        [series["values"], values("sequence_lens", I32, ["batch"]), values("state", F, ["batch", size])],
        [series["scores"], series["expected"], series["spread"], values("next_state", F, ["batch", size])],
        list(graph.initializer),
    )
    version = folder(out, "m4", "m4", 'task = "anomaly-detection"\narchitecture = "rnn"\n')
    save(whole, version / "model.onnx")
    sample = json.loads((models / "bodies/W4-00.json").read_text())["values"]
    golden(version, {"values": sample}, {})


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    classifier(source, target, "m1", 10, "", "W1-00.png")
    classifier(source, target, "m2", 1000, 'resize = "crop"\nresize_to = 256\n', "W2-00.jpg")
    language_model(source, target)
    detector(source, target)
