"""A picture's tensor as JSON and as bytes over `/v2`: requests per second of each, and what is spent on reading it.

    python benchmarks/tensors.py                         # 1x3x224x224, float32
    python benchmarks/tensors.py --connections 1 --seconds 10

Two graphs with that input: a mean of each colour, which costs next to nothing, and eight convolutions with random
weights. The requests are four tensors of random numbers, as pixels after normalisation; JSON with seven digits of each.
"Reading" is the share of `compute_input` in the work on a request, by the server's own statistics: from the body's bytes
to an array. What the connection's thread does (receiving, inflating) is in the rate, not in that share.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measuring import BenchmarkFailed
from measuring.servers import LocalServer, started
from onnx import TensorProto, helper, numpy_helper

from service.client.http import ClientFailed, Server, split_url
from service.client.load import Load, LoadResult, Request
from service.client.process import put_load
from service.cpu import cpu_budget, processor_name

SHAPE = (1, 3, 224, 224)
TENSORS = 4
"""Different requests (count)."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=cpu_budget().cores)
    asked = parser.parse_args()
    drawn = np.random.default_rng(0).normal(size=(TENSORS, *SHAPE)).astype(np.float32)
    bodies = {"JSON": [as_json(tensor) for tensor in drawn], "bytes": [as_bytes(tensor) for tensor in drawn]}
    print(f"{processor_name()}, {asked.workers} workers, {asked.connections} connections, {asked.seconds:g} s each\n")
    print("| graph | form | body | requests/s | p50 | reading | graph | reading, share |")
    print("|---|---|---|---|---|---|---|---|")
    try:
        with tempfile.TemporaryDirectory() as folder, started(models(Path(folder)), asked.workers) as server:
            for model in ("mean", "convolutions"):
                for form, sent in bodies.items():
                    before = spent(server, model)
                    result = load(server, model, sent, asked.connections, asked.seconds)
                    print(row(model, form, sent, result, before, spent(server, model)), flush=True)
    except (BenchmarkFailed, ClientFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def as_json(tensor: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers, all of it JSON."""
    data = [float(f"{value:.7g}") for value in tensor.ravel().tolist()]
    entry = {"name": "x", "datatype": "FP32", "shape": SHAPE, "data": data}
    return json.dumps({"inputs": [entry]}).encode(), {}


def as_bytes(tensor: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """The same with the tensor's bytes after the JSON."""
    parameters = {"binary_data_size": tensor.nbytes}
    entry = {"name": "x", "datatype": "FP32", "shape": SHAPE, "parameters": parameters}
    head = json.dumps({"inputs": [entry]}).encode()
    return head + tensor.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def load(
    server: LocalServer, model: str, sent: list[tuple[bytes, dict[str, str]]], connections: int, seconds: float
) -> LoadResult:
    """Send the bodies in turn for some seconds.

    Raises:
        BenchmarkFailed: one was not answered well.
    """
    client = Server(split_url(f"http://{server.host}:{server.port}"))
    target = f"/v2/models/{model}/infer"
    kind = "application/octet-stream" if sent[0][1] else "application/json"
    requests = [Request(client.request(target, kind, body, headers)) for body, headers in sent]
    result = put_load(Load(client.address.looked_up(), requests, connections, seconds))
    if result.failures:
        raise BenchmarkFailed(f"{result.failures} requests failed: {dict(result.examples)}")
    return result


def spent(server: LocalServer, model: str) -> dict[str, int]:
    """Requests so far, and the nanoseconds of each part of the work on them."""
    server.ask("/metrics")  # what workers have counted is told now
    stats = json.loads(server.ask(f"/v2/models/{model}/stats"))["model_stats"][0]["inference_stats"]
    parts = {part: stats[part]["ns"] for part in ("compute_input", "compute_infer", "compute_output")}
    return {"count": stats["success"]["count"], **parts}


def row(
    model: str,
    form: str,
    sent: list[tuple[bytes, dict[str, str]]],
    result: LoadResult,
    before: dict[str, int],
    after: dict[str, int],
) -> str:
    """A line of the table."""
    delta = {key: after[key] - before[key] for key in after}
    work = delta["compute_input"] + delta["compute_infer"] + delta["compute_output"]
    reading, graph = (delta[key] / delta["count"] / 1e6 for key in ("compute_input", "compute_infer"))
    size = sum(len(body) for body, _ in sent) / len(sent) / 2**20
    return (
        f"| {model} | {form} | {size:.2f} MiB | {result.rate:.0f} | {result.p50_ms:.1f} ms | {reading:.2f} ms | "
        f"{graph:.2f} ms | {delta['compute_input'] / work:.0%} |"
    )


def models(folder: Path) -> Path:
    """A repository of the two graphs."""
    make, draw = helper.make_node, np.random.default_rng(1)
    mean = make("GlobalAveragePool", ["x"], ["y"])
    save(folder / "mean", [mean], 3, {})
    nodes, weights, channels, before = [], {}, 3, "x"
    for number, (width, stride) in enumerate(
        [(16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1)]
    ):
        weights[f"w{number}"] = (draw.normal(size=(width, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        convolution: dict[str, Any] = {"strides": [stride] * 2, "pads": [1] * 4}
        nodes.append(make("Conv", [before, f"w{number}"], [f"c{number}"], **convolution))
        nodes.append(make("Relu", [f"c{number}"], [f"r{number}"]))
        channels, before = width, f"r{number}"
    nodes.append(make("GlobalAveragePool", [before], ["y"]))
    save(folder / "convolutions", nodes, channels, weights)
    return folder


def save(folder: Path, nodes: list[Any], channels: int, weights: dict[str, np.ndarray]) -> None:
    """A model folder of the task `tensor`."""
    (folder / "1").mkdir(parents=True)
    graph = helper.make_graph(
        nodes,
        folder.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", channels, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, str(folder / "1" / "model.onnx"))
    (folder / "manifest.toml").write_text('task = "tensor"\n[batching]\nmax_batch_size = 4\n')


if __name__ == "__main__":
    sys.exit(main())
