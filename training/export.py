"""From torch to ONNX, and the proof that both compute the same."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.runtime.eight_bits import keep_sums_exact
from training.graph import IR_VERSION, OPSET

Feed = Mapping[str, NDArray[Any]]
"""A graph's inputs by name, each (batch, …)."""


class Picture(nn.Module):  # type: ignore[misc, unused-ignore]
    """A network that reads normalised pictures, as one that takes them as the service gives them.

    Args:
        network: reads float32 (N, C, H, W).
        mean: subtracted from each channel, 0..255, in the order that the network reads.
        std: each channel is divided by it, 0..255.
        bgr: whether the network reads blue, green, red.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], bgr: bool = False) -> None:
        super().__init__()
        self.network = network
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Any:
        """Read pixels uint8 (N, H, W, C), RGB; answer what the network does."""
        x = pixels.float().permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        x = x[:, [2, 1, 0]] if self.bgr else x
        return self.network((x - self.mean) * self.scale)


def torch_to_onnx(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    free: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Export a network in evaluation mode, by tracing it: a branch that depends on values is frozen as it went.

    Args:
        network: answers a tensor or several.
        inputs: an example of each input, by the name that it gets, in the order of `forward`. Two rows or more, so that
            nothing takes the batch for a constant.
        outputs: names.
        free: axes of other lengths, by tensor and number, besides axis 0 of all, which is `batch`.
        opset: version of ONNX's operators.
    """
    axes = {name: {0: "batch"} | dict((free or {}).get(name, {})) for name in [*inputs, *outputs]}
    buffer = io.BytesIO()
    was_training = network.training
    with warnings.catch_warnings():
        # torch's other exporter needs onnxscript and renames what it fuses; this one writes a plain graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type, unused-ignore]
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    network.train(was_training)
    model = onnx.load_from_string(buffer.getvalue())
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    return model


def open_session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """A session on one thread, with sums as exact as the service's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    keep_sums_exact(options)
    graph = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def answers(session: onnxruntime.InferenceSession, feed: Feed, batch: int = 100) -> dict[str, NDArray[Any]]:
    """Every output for all rows of the inputs, by name; `batch` rows a run."""
    names = [output.name for output in session.get_outputs()]
    rows = len(next(iter(feed.values())))
    runs = [
        session.run(None, {name: value[at : at + batch] for name, value in feed.items()})
        for at in range(0, rows, batch)
    ]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*runs, strict=True), strict=True)}


def check_equal(
    model: onnx.ModelProto | Path,
    feed: Feed,
    expected: Mapping[str, Tensor | NDArray[Any]],
    *,
    tolerance: float,
    relative: bool = False,
) -> float:
    """How far ONNX Runtime and the framework are apart, in any number of the expected outputs.

    Args:
        model: the graph, or its file.
        feed: inputs, real ones.
        expected: what the framework answers, by the output's name; what is not in it is not compared.
        tolerance: the script ends above it.
        relative: whether differences count relative to the size of what was expected, where that is above 1.

    Raises:
        SystemExit: a difference is above `tolerance`.
    """
    found = answers(open_session(model), feed)
    largest = 0.0
    for name, value in expected.items():
        wanted = value.detach().numpy() if isinstance(value, Tensor) else value
        if found[name].shape != wanted.shape:
            raise SystemExit(f"{name}: ONNX answers {found[name].shape}, the framework {wanted.shape}")
        size = np.maximum(np.abs(wanted), 1) if relative else 1.0
        difference = float((np.abs(found[name] - wanted) / size).max())
        if not difference <= tolerance:
            raise SystemExit(f"{name}: ONNX and the framework differ by {difference:.2e}, more than {tolerance:.0e}")
        largest = max(largest, difference)
    return largest


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
