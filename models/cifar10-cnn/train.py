"""Train the CIFAR-10 image classifier, score it once on the official test pictures and export it to ONNX.

    python models/cifar10-cnn/train.py --data DIR              # versions 1 and 2: train, evaluate, export, check
    python models/cifar10-cnn/train.py --data DIR --photographs 120 --initial models/cifar10-cnn/1/model.onnx ...
                                                               # version 3: goes on with photographs (the card has all flags)
    python models/cifar10-cnn/train.py --data DIR --epochs 1 --subset 10000 --evaluate-test false --out /tmp/try

DIR holds a folder `cifar10` with `train_1.webp` ... `train_5.webp` and `test.webp` (lossless mosaics of 100x100 tiles
of 32x32, in the official order) and `labels.npz` (`train_labels`, `test_labels`, `class_names`). These are the 60,000
pictures of https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009).

For version 3 DIR also holds `flickr8k` and `camvid`, which are for research only, packed as `photographs.py` says; that
script's training part is trained on, its tuning part calibrates, and its test part is not looked at here.

A run writes a checkpoint after each epoch and continues from it when started again with the same flags. One CPU core
that knows bfloat16 (AVX512-BF16 or AMX) needs about 50 minutes. Needs torch, numpy, onnx, onnxruntime and pillow.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.

References:
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single A100 GPU" (2024), arXiv:2404.00498: the network's shape, the
        frozen whitening stem, the alternating flip.
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    Page, "How to Train Your ResNet" (2018): patch whitening, a short schedule with large steps.
    Zhou et al., "Learning Deep Features for Discriminative Localization" (2016), arXiv:1512.04150: activation maps.
    Guo et al., "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599: temperature, calibration error.
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018), arXiv:1807.03888: the
        distance of the features to the nearest class in the novelty of a picture.
    Liu et al., "Energy-based Out-of-distribution Detection" (2020), arXiv:2010.03759: the energy in it.
    Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with Outlier Exposure" (2019), arXiv:1812.04606: strangers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
import photographs
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from PIL import Image
from torch import Tensor, nn

from service.calibration import (
    expected_calibration_error,
    fit_abstain_threshold,
    fit_set_threshold,
    fit_temperature,
    softmax,
)
from service.cpu import processor_name
from service.evaluation.statistics import wilson

MODEL_FOLDER = Path(__file__).resolve().parent
GOLDEN_TEST_PICTURES = (0, 1, 6)
"""Positions in the test split; the pictures become the golden inputs."""
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's antialiasing filters by the names that a manifest uses."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob; each becomes a command-line flag."""

    data: str = "data"
    """Folder that contains `cifar10`."""
    out: str = str(MODEL_FOLDER)
    """Model folder to write: `1/`, and the metrics in `card.md` and `manifest.toml` where these exist."""
    checkpoint: str = "runs/cifar10-cnn/checkpoint.pt"
    """Checkpoint file; a run continues from it if it exists."""
    evaluate_test: bool = True
    """Whether to score the test split; experiments say `false` and look only at the held-out training pictures."""
    initial: str = ""
    """An exported network to go on from (empty: start from random weights)."""
    seed: int = 7
    threads: int = 1

    # Schedule
    epochs: float = 14.0
    budget_s: float = 0.0
    """Seconds of wall-clock for training (0: no limit); the learning rate reaches zero at whichever ends first."""
    batch_size: int = 500
    low_size: int = 24
    """Height and width of the pictures in the first epochs, which then cost about half (pixels)."""
    low_share: float = 0.55
    """Share of the epochs trained at `low_size`."""
    held_out: int = 2000
    """Training pictures kept back: for the temperature, the calibration and the choice of the resize filter."""
    subset: int = 0
    """Training pictures used (0: all that are not held out)."""

    # Photographs, for version 3, which looks at a picture at 32x32 and, mirrored, at a larger size; for research only
    photographs: int = 0
    """Photographs of Flickr8k and CamVid in each step besides the pictures of CIFAR-10 (0: none, and no second look)."""
    strangers: int = 60
    """Pictures of none of the classes in each such step."""
    large_size: int = 48
    """Height and width of the second look (pixels)."""
    large_share: float = 0.75
    """Share of the photographs and the strangers that are shown at that size; of CIFAR-10 it is `large_batch`."""
    large_batch: int = 50
    """Pictures of CIFAR-10 of each batch that are shown at that size."""
    pasted: float = 0.25
    """Share of CIFAR-10's that are shrunk and pasted into a picture of none of the classes."""
    noise: float = 0.12
    """Share of the strangers that are made-up noise."""
    balance: float = 0.4
    """Each class is drawn in proportion to its number of photographs to this power: 1 as they are, 0 all alike."""
    closest: float = 0.55
    """Smallest side of the part of a photograph that is shown, as a share of its own."""
    exposure: float = 0.5
    """Weight of the demand that strangers get the same probability for every class."""
    separation: float = 0.1
    """Weight of the demand that the energy tells strangers from others."""
    steepness: float = 2.0
    """How steeply the gate goes from one network to the other."""
    reserve: float = 2.5
    """Evidence for a scene (logit) that the gate asks for before it opens."""

    # Export
    mirror: bool = True
    """Whether the graph looks at each picture and its mirror image and averages: twice the cost."""
    distance_weight: float = 0.3
    """Weight of the distance in the novelty, against the energy, both in standard deviations of training pictures."""
    novelty_pictures: int = 4000
    """Training pictures that the novelty is fitted on."""
    coverage: float = 0.99
    """Of the prediction sets."""
    abstain_rate: float = 0.02

    # Optimiser
    muon_lr: float = 0.12
    muon_momentum: float = 0.6
    adam_lr: float = 0.01
    """For the biases and for the classifier."""
    adam_decay: float = 0.01
    warmup_share: float = 0.03
    whiten_epochs: float = 3.0
    """Epochs during which the stem's bias is trained."""
    label_smoothing: float = 0.2

    # Augmentation
    translate: int = 2
    """Largest shift, in pixels."""
    reframe: float = 0.4
    """Share of the pictures that are re-framed: other scale, aspect ratio and sharpness, and a fractional shift."""
    reframe_last: float = 0.25
    """The same, in the epochs at full size."""
    zoom_out: float = 1.6
    """Widest frame, in picture widths; the outside is mirrored, or another picture."""
    zoom_in: float = 0.8
    """Tightest frame, in picture widths."""
    aspect: float = 1.35
    """Largest ratio between the horizontal and the vertical stretch, and one over it the smallest."""
    blur: float = 1.5
    """Largest widening of the resampling filter."""
    backdrop: float = 0.3
    """Share of the re-framed pictures whose outside is another picture, so that surroundings tell less."""
    lit: float = 0.3
    """Share of the pictures whose light and colour change."""
    brightness: float = 0.1
    contrast: float = 0.15
    saturation: float = 0.5
    """Largest change of the saturation, as a share of it."""
    grey: float = 0.1
    """Share of these pictures that become grey."""
    tint: float = 0.08
    """Largest change of one colour against the others, as a share of it."""


# ---------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Decoded pictures, uint8 (N, H, W, C), with their labels, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(np.concatenate([self.images, other.images]), np.concatenate([self.labels, other.labels]))

    def __getitem__(self, rows: slice) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows])


def whole_photographs(data: Path, part: str, names: list[str], side: int) -> Pictures:
    """The photographs of a part that show a class, whole or a cut-out car, as the service resizes them to `side`."""
    resample = FILTERS["hamming" if side == 32 else "box"]
    rows = [one for row in photographs.labelled(data, part).values() for one in row]
    images = np.stack([np.asarray(one.opened().resize((side, side), resample)) for one in rows])
    return Pictures(images, np.array([names.index(one.label) for one in rows]))


def read_mosaic(path: Path) -> np.ndarray:
    """Cut a mosaic of 100x100 tiles into uint8 (10000, 32, 32, 3)."""
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    return mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def read_train(folder: Path) -> tuple[Pictures, list[str]]:
    """The 50,000 official training pictures, and the class names."""
    labels = np.load(folder / "labels.npz")
    images = np.concatenate([read_mosaic(folder / f"train_{part}.webp") for part in range(1, 6)])
    return Pictures(images, labels["train_labels"].astype(np.int64)), [str(name) for name in labels["class_names"]]


def read_test(folder: Path) -> Pictures:
    """The 10,000 official test pictures."""
    return Pictures(read_mosaic(folder / "test.webp"), np.load(folder / "labels.npz")["test_labels"].astype(np.int64))


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of each data file used, by file name."""
    names = [f"train_{part}.webp" for part in range(1, 6)] + ["test.webp", "labels.npz"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def resampling_matrix(start: Tensor, step: Tensor, blur: Tensor, size: int, source: int) -> Tensor:
    """Weights that resample one axis of each picture, bicubic and antialiased, so that two products re-frame a picture.

    Args:
        start: (N,) where the frame begins, in source pixels.
        step: (N,) source pixels per pixel of the result; negative mirrors.
        blur: (N,) widening of the filter, 1 for none.
        size: pixels of the result.
        source: pixels of the source.
    Returns:
        float32 (N, size, source); each row sums to 1. A step of 1 with a whole start copies pixels exactly.
    """
    centres = start[:, None] + (torch.arange(size) + 0.5) * step[:, None] - 0.5  # (N, size)
    widths = step.abs().clamp(min=1.0) * blur  # (N,)
    x = ((torch.arange(source) - centres[:, :, None]) / widths[:, None, None]).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
    return weights / weights.sum(-1, keepdim=True)


class Augmentation:
    """Random views of the training pictures: flip, shift, re-frame, light, at the asked size."""

    margin = 26
    """Mirrored pixels around each picture, enough for the widest and most shifted frame."""

    def __init__(self, config: Config, pictures: Pictures, generator: torch.Generator) -> None:
        self.images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        self.labels = torch.from_numpy(pictures.labels)
        self.config = config
        self.generator = generator
        self.flip_first = self._uniform(len(pictures), 0, 1) < 0.5

    def epoch(self, number: int, size: int, large: int = 0) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Batches (N, C, size, size), float 0..255, with labels (N,). Each picture is mirrored in every second epoch.

        With `large` there are two parts of each batch, the second with so many pictures, of the config's `large_size`.
        """
        order = torch.randperm(len(self.labels), generator=self.generator)
        flips = self.flip_first ^ bool(number % 2)
        for rows in order.split(self.config.batch_size):
            if len(rows) == self.config.batch_size:
                images = F.pad(self.images[rows].float(), (self.margin,) * 4, mode="reflect")
                sizes = [(len(rows) - large, size), *([(large, self.config.large_size)] if large else [])]
                parts = [part.split([count for count, _ in sizes]) for part in (images, flips[rows], self.labels[rows])]
                yield [
                    (self._view(images, flip, side), labels)
                    for images, flip, labels, (_, side) in zip(*parts, sizes, strict=True)
                ]

    def _view(self, images: Tensor, flip: Tensor, size: int) -> Tensor:
        config, count, source = self.config, len(images), images.shape[-1]
        reframed = self._uniform(count, 0, 1) < (config.reframe if size < 32 else config.reframe_last)
        zoom = torch.exp(self._uniform(count, np.log(config.zoom_in), np.log(config.zoom_out)))
        stretch = torch.exp(self._uniform(count, -np.log(config.aspect) / 2, np.log(config.aspect) / 2))
        blur = torch.where(reframed, self._uniform(count, 1, config.blur), torch.ones(()))
        matrices, insides = [], []
        for side in (zoom * stretch, zoom / stretch):
            span = torch.where(reframed, 32 * side, torch.full((), 32.0))
            slack = (32 - span).abs() / 2 * 0.8
            shift = self._uniform(count, -1, 1)
            shift = torch.where(reframed, shift * slack.clamp(min=1.0), (shift * (config.translate + 0.5)).round())
            start = source / 2 - span / 2 + shift
            step = span / size
            centres = start[:, None] + (torch.arange(size) + 0.5) * step[:, None]
            insides.append((centres > self.margin) & (centres < source - self.margin))
            if matrices:  # the second side is the horizontal one
                start, step = torch.where(flip, start + span, start), torch.where(flip, -step, step)
            matrices.append(resampling_matrix(start, step, blur, size, source))
        rows, columns = matrices
        views = rows[:, None] @ images @ columns[:, None].transpose(2, 3)
        if flip.any():  # the second side was measured before it was mirrored
            insides[1] = torch.where(flip[:, None], insides[1].flip(1), insides[1])
        outside = ~(insides[0][:, None, :, None] & insides[1][:, None, None, :])
        placed = reframed & (self._uniform(count, 0, 1) < config.backdrop)
        views = torch.where(outside & placed[:, None, None, None], views.roll(1, 0), views)
        return relit(views, config, self.generator)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return uniform(count, low, high, self.generator)


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Numbers (count,) between `low` and `high`."""
    return torch.rand(count, generator=generator) * (high - low) + low


def relit(views: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """The pictures (N, C, H, W), 0..255, a share of them in another light and colour."""
    count = len(views)
    gain = uniform(count, 1 - config.contrast, 1 + config.contrast, generator)[:, None, None, None]
    offset = uniform(count, -config.brightness, config.brightness, generator)[:, None, None, None] * 255
    grey = uniform(count, 0, 1, generator) < config.grey
    saturation = torch.where(
        grey, torch.zeros(()), 1 + uniform(count, -config.saturation, config.saturation, generator)
    )
    tints = 1 + uniform(count * 3, -config.tint, config.tint, generator).view(count, 3, 1, 1)
    luma = (views * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    coloured = (luma + (views - luma) * saturation[:, None, None, None]) * tints
    lit = (coloured - 128) * gain + 128 + offset
    return torch.where((uniform(count, 0, 1, generator) < config.lit)[:, None, None, None], lit, views).clamp(0, 255)


class Scenes:
    """Random views of photographs at their full size: of the classes, drawn so that the rare ones count, and of none.

    The photographs are the training part of `photographs.py`. A car of CamVid is cut out with half of its box around it.
    """

    side = 112
    """Height and width that all are kept at; those of Flickr8k are so (pixels)."""

    def __init__(self, config: Config, names: list[str], generator: torch.Generator) -> None:
        data = Path(config.data)
        flickr = list(photographs.flickr8k(data / "flickr8k", "training"))
        cars = list(photographs.camvid_cars(data / "camvid", "training", margin=0.5))
        every = [*flickr, *cars, *photographs.camvid_streets(data / "camvid", "training")]
        shrunk = [np.asarray(one.opened().resize((self.side, self.side), FILTERS["lanczos"])) for one in every]
        self.images = torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        self.labels = torch.tensor([names.index(one.label) if one.label in names else -1 for one in every])
        self.is_cut = torch.tensor([len(flickr) <= i < len(flickr) + len(cars) for i in range(len(every))])
        self.named, self.strange = (self.labels >= 0).nonzero()[:, 0], (self.labels < 0).nonzero()[:, 0]
        kinds = torch.where(self.is_cut, len(names), self.labels)[
            self.named
        ]  # the cut-out cars are a kind by themselves
        self.weights = (torch.bincount(kinds).double() ** (config.balance - 1))[kinds]
        self.config = config
        self.generator = generator

    def draw(self, count: int, strangers: int, size: int) -> tuple[Tensor, Tensor]:
        """Photographs float (count + strangers, C, size, size), 0..255, with labels; that of strangers is -1."""
        picked = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        noisy = round(self.config.noise * strangers)
        rows = torch.cat([self.named[picked], self._strange(strangers - noisy)])
        labels = F.pad(self.labels[rows], (0, noisy), value=-1)
        return torch.cat([self._view(rows, size), self._noise(noisy, size)]), labels

    def join(self, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A part of a batch of CIFAR-10, some of it pasted into strangers, with the photographs of its size."""
        images, labels = part
        config, size = self.config, images.shape[-1]
        few = round(config.pasted * len(images))
        share = config.large_share if size == config.large_size else 1 - config.large_share
        shown, own = self.draw(round(share * config.photographs), round(share * config.strangers), size)
        return torch.cat([self.paste(images[:few]), images[few:], shown]), torch.cat([labels, own])

    def paste(self, images: Tensor) -> Tensor:
        """Pictures (N, C, size, size) shrunk to 40 to 80 % of the side and laid into pictures of none of the classes."""
        count, size = len(images), images.shape[-1]
        backgrounds = self._view(self._strange(count), size)
        side = self._uniform(count, 0.4, 0.8) * size
        matrices, masks = [], []
        for _ in range(2):
            start = self._uniform(count, 0, 1) * (size - side)
            step = size / side
            matrix = resampling_matrix(-start * step, step, torch.ones(count), size, size)
            matrices.append(matrix.nan_to_num(0.0).clamp(-2, 2))  # rows outside of the picture are masked
            centres = torch.arange(size) + 0.5
            inside = torch.minimum(centres - start[:, None], (start + side)[:, None] - centres)
            masks.append((inside / 2).clamp(0, 1))  # soft edges
        small = matrices[0][:, None] @ images @ matrices[1][:, None].transpose(2, 3)
        mask = masks[0][:, None, :, None] * masks[1][:, None, None, :]
        return (small * mask + backgrounds * (1 - mask)).clamp(0, 255)

    def _strange(self, count: int) -> Tensor:
        return self.strange[torch.randint(len(self.strange), (count,), generator=self.generator)]

    def _view(self, rows: Tensor, size: int) -> Tensor:
        count, is_cut = len(rows), self.is_cut[rows]
        zoom = torch.exp(self._uniform(count, math.log(self.config.closest), 0.0))
        zoom = torch.where(is_cut, self._uniform(count, 0.5, 1.0), zoom)  # at least the car's box
        stretch = torch.exp(self._uniform(count, -0.25, 0.25))
        matrices = []
        for shape in (stretch, 1 / stretch):
            span = self.side * (zoom * shape).clamp(max=1.0)
            place = self._uniform(count, 0, 1)
            place = torch.where(is_cut, 0.5 + (place - 0.5) * 0.3, place)
            start, step = (self.side - span) * place, span / size
            if matrices:  # the second side is the horizontal one
                flip = self._uniform(count, 0, 1) < 0.5
                start, step = torch.where(flip, start + span, start), torch.where(flip, -step, step)
            matrices.append(resampling_matrix(start, step, self._uniform(count, 1, 1.3), size, self.side))
        views = matrices[0][:, None] @ self.images[rows].float() @ matrices[1][:, None].transpose(2, 3)
        strong = dataclasses.replace(self.config, lit=1.0, contrast=0.2)
        return relit(views, strong, self.generator)

    def _noise(self, count: int, size: int) -> Tensor:
        """Noise of 2 to 32 cells a side, with and without colour, hard or smooth, of any contrast."""
        views = torch.empty(count, 3, size, size)
        for i in range(count):
            cells = 2 ** int(torch.randint(1, 6, (), generator=self.generator))
            even, coloured, hard = (self._uniform(3, 0, 1) < torch.tensor([0.6, 0.7, 0.5])).tolist()
            shape = (1, 3 if coloured else 1, cells, cells)
            drawn = torch.rand(shape, generator=self.generator)
            drawn = drawn if even else torch.randn(shape, generator=self.generator) * 0.25 + 0.5
            views[i] = F.interpolate(drawn, size=(size, size), mode="nearest" if hard else "bilinear")[0]
        contrast = self._uniform(count, 0.3, 1.2).view(-1, 1, 1, 1)
        tint = (self._uniform(count * 3, -0.5, 0.5).view(-1, 3, 1, 1)) * (self._uniform(count, 0, 1) < 0.5).view(
            -1, 1, 1, 1
        )
        return ((views - 0.5) * contrast * 255 + 128 + tint * 100).clamp(0, 255)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return uniform(count, low, high, self.generator)


# --------------------------------------------------------------------------------------------------------------- model


class Group(nn.Module):
    """Two 3x3 convolutions; the first may halve the map. BatchNorm has no scale, so it folds into the convolution even
    though pooling stands between them (a positive factor passes through a maximum)."""

    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.pool = pool
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.max_pool2d(x, 2) if self.pool else x
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))


class Network(nn.Module):
    """Pictures float (N, C, H, W), 0..255 -> activation maps (N, K, h, w); their spatial mean is the logits."""

    widths = (64, 256, 256)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2)
        inputs = (24, *self.widths)
        self.groups = nn.ModuleList(Group(inputs[i], inputs[i + 1], pool=i < 2) for i in range(3))
        self.classifier = nn.Conv2d(self.widths[-1], classes, 1, bias=False)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the stem to the whitened principal components of 2x2 patches, each with both signs, and freeze it.

        Normalisation to zero mean and unit variance per channel is folded in, so the stem reads raw 0..255 pixels.
        """
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
        patches = ((images - mean[:, None, None]) / std[:, None, None]).unfold(2, 2, 1).unfold(3, 2, 1)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(12, 3, 2, 2).float()
        filters = torch.cat([filters, -filters]) / std[:, None, None]
        self.stem.weight.copy_(filters)
        self.stem.weight.requires_grad_(False)
        self.stem.bias.copy_(-(filters.sum((2, 3)) @ mean))

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads: (N, C, H, W) -> (N, features, h, w)."""
        with torch.autocast("cpu", enabled=False):  # whitening cancels large terms, which bfloat16 would lose
            x = F.gelu(self.stem(x))
        for group in self.groups:
            x = group(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


@torch.no_grad()
def read_exported(network: Network, path: Path, images: Tensor, labels: Tensor, smoothing: float) -> None:
    """Give a network the weights of one of the same shape that was exported before, so that it computes the same.

    BatchNorm was folded into the file's weights; its statistics are measured anew on `images` (N, C, H, W). The
    classifier is scaled to the label-smoothed loss again, from the temperature that it was exported with.
    """
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in onnx.load(path).graph.initializer}
    network.stem.weight.copy_(weights["stem.weight"])
    network.stem.bias.copy_(weights["stem.bias"])
    x = F.gelu(network.stem(images))
    for i, group in enumerate(network.groups):
        for j, (conv, norm) in enumerate([(group.conv1, group.norm1), (group.conv2, group.norm2)]):
            weight, bias = weights[f"groups.{i}.conv{j + 1}.weight"], weights[f"groups.{i}.conv{j + 1}.bias"]
            lengths = weight.flatten(1).norm(dim=1)
            conv.weight.copy_(weight / lengths[:, None, None, None])
            x = conv(x)
            x = F.max_pool2d(x, 2) if group.pool and j == 0 else x
            norm.running_mean.copy_(x.mean((0, 2, 3)))
            norm.running_var.copy_(x.var((0, 2, 3)))
            norm.bias.copy_(bias + norm.running_mean * lengths)
            x = F.gelu(norm.eval()(x))
            norm.train()
    network.classifier.weight.copy_(weights["classifier.weight"])
    logits = network.classifier(x).mean((2, 3))
    divisors = torch.exp(torch.linspace(np.log(0.2), np.log(5.0), 200))
    losses = [F.cross_entropy(logits / divisor, labels, label_smoothing=smoothing) for divisor in divisors]
    network.classifier.weight.div_(divisors[int(torch.stack(losses).argmin())])


@dataclasses.dataclass(frozen=True)
class Look:
    """One way to look at a picture: at which height and width (pixels), and whether mirrored."""

    size: int = 32
    mirrored: bool = False

    @property
    def cells(self) -> int:
        """Rows and columns of the activation map."""
        return (self.size - 1) // 4

    def of(self, images: Tensor) -> Tensor:
        """Pictures (N, C, S, S) as this look sees them, (N, C, size, size). Half of S is the mean of 2x2 pixels."""
        source = images.shape[-1]
        if source == 2 * self.size:
            images = F.avg_pool2d(images, 2)
        elif source != self.size:
            matrix = shrinking(source, self.size)
            images = matrix @ images @ matrix.T
        return images.flip(3) if self.mirrored else images


def shrinking(source: int, size: int) -> Tensor:
    """The matrix (size, source) that resamples a side, bicubic and antialiased."""
    return resampling_matrix(torch.zeros(1), torch.full((1,), source / size), torch.ones(1), size, source)[0]


def regridding(cells: int, finer: int) -> Tensor:
    """The matrix (finer, cells) that spreads a side of a map over more cells, each by its overlap: the mean is kept."""
    edges, own = torch.arange(finer + 1) / finer, torch.arange(cells + 1) / cells
    low, high = torch.maximum(edges[:-1, None], own[:-1]), torch.minimum(edges[1:, None], own[1:])
    return (high - low).clamp(min=0) * finer


@dataclasses.dataclass(frozen=True)
class Part:
    """A network with its looks at a picture, all of one size."""

    network: Network
    looks: tuple[Look, ...]


@dataclasses.dataclass(frozen=True)
class Gate:
    """How far the second part is listened to: a logistic regression on its own mean features."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, features: Tensor, is_scene: Tensor, steepness: float, reserve: float, ridge: float = 0.001) -> Gate:
        """From features (N, C), and which are of whole scenes (N,); either kind weighs a half.

        The evidence must be above `reserve` to count for the scenes, and counts `steepness` times.
        """
        mean, spread = features.mean(0), features.std(0) + 1e-6
        x, y = (features - mean) / spread, is_scene.float()
        weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
        weights = torch.where(is_scene, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=60)

        def loss() -> Tensor:
            optimiser.zero_grad()
            error = F.binary_cross_entropy_with_logits(x @ weight + bias, y, weights)
            total = error + ridge * weight.square().sum()
            total.backward()
            return total

        optimiser.step(loss)
        scaled = weight.detach() / spread
        return cls(steepness * scaled, steepness * (bias.detach() - mean @ scaled - reserve))

    def __call__(self, features: Tensor) -> Tensor:
        """0..1 (N,) for features (N, C)."""
        return torch.sigmoid(features @ self.weight + self.bias)


@torch.no_grad()
def answers_of(parts: tuple[Part, ...], gate: Gate | None, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Activation maps (N, K, h, w) and the last part's mean features (N, C) of uint8 pictures (N, S, S, C)."""
    found = [maps_and_features(part.network, images, part.looks) for part in parts]
    maps, features = found[-1]
    if gate:
        share = gate(features)[:, None, None, None]
        grid = regridding(found[0][0].shape[-1], maps.shape[-1])
        maps = share * maps + (1 - share) * (grid @ found[0][0] @ grid.T)
    return maps, features


@torch.no_grad()
def maps_and_features(network: Network, images: np.ndarray, looks: tuple[Look, ...]) -> tuple[Tensor, Tensor]:
    """Activation maps (N, K, h, w) and mean features (N, C), float32, of uint8 pictures (N, S, S, C).

    Both are averages over the looks; the map of a mirrored one is mirrored back, a coarser one is spread over the finest.
    """
    network.eval()
    cells = max(look.cells for look in looks)
    maps, features = [], []
    for rows in torch.from_numpy(np.ascontiguousarray(images)).split(250):
        x = rows.permute(0, 3, 1, 2).float()
        seen = [network.features(look.of(x).contiguous(memory_format=torch.channels_last)) for look in looks]
        found = torch.zeros(())
        for look, own in zip(looks, seen, strict=True):
            grid = regridding(look.cells, cells)
            spread = grid @ network.classifier(own) @ grid.T
            found = found + (spread.flip(3) if look.mirrored else spread) / len(looks)
        maps.append(found)
        features.append(torch.stack([own.mean((2, 3)) for own in seen]).mean(0))
    return torch.cat(maps), torch.cat(features)


def logits_of(network: Network, images: np.ndarray, looks: tuple[Look, ...] = (Look(),)) -> Tensor:
    """Logits (N, K) in float32 for uint8 pictures (N, S, S, C)."""
    return maps_and_features(network, images, looks)[0].mean((2, 3))


@dataclasses.dataclass(frozen=True)
class Novelty:
    """How strange a picture is: the energy of its logits, plus how far its features are from the nearest class.

    The energy knows pictures of other things, and the distance knows what is no picture of a thing at all, such as noise.
    The distance is the squared Mahalanobis distance: `projection` (C, C) whitens the features by the covariance inside the
    classes and has the weight of the distance in it; `means` (K, C) are the classes' mean features, projected alike.
    """

    projection: Tensor
    means: Tensor

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor, weight: float) -> Novelty:
        """From features (N, C), logits (N, K) and classes (N,) of training pictures."""
        x = features.double()
        means = torch.stack([x[labels == k].mean(0) for k in range(logits.shape[1])])
        spread = x - means[labels]
        values, vectors = torch.linalg.eigh(spread.T @ spread / len(x))
        projection = vectors / torch.sqrt(values + 0.01 * values.mean())
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


# ----------------------------------------------------------------------------------------------------------- optimiser


def orthogonalise(matrix: Tensor, steps: int = 3) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values become about 1 (quintic Newton-Schulz iteration)."""
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose step is orthogonalised; the norm of the filters, which BatchNorm undoes, is kept."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                velocity = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                direction = parameter.grad.add(velocity, alpha=group["momentum"])
                parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                update = orthogonalise(direction.reshape(len(direction), -1)).reshape(parameter.shape)
                parameter.add_(update, alpha=-group["lr"])


# ------------------------------------------------------------------------------------------------------------ training


def first_network(config: Config, training: Pictures, classes: int) -> Network:
    """The network that the training starts from: the exported one, if there is one, else random."""
    network = Network(classes)
    network.whiten(torch.from_numpy(training.images[:5000]).permute(0, 3, 1, 2).float())
    if config.initial:
        sample = torch.from_numpy(training.images[:1000]).permute(0, 3, 1, 2).float()
        labels = torch.from_numpy(training.labels[:1000])
        read_exported(network, Path(config.initial), sample, labels, config.label_smoothing)
    return network


class Separation(nn.Module):
    """How well the energy tells strangers from the rest: a logistic loss, whose scale and shift are trained too.

    The probabilities say nothing of the mean of the logits; this gives it a use (the regulariser of Liu et al. 2020, with
    a logistic curve in place of its two margins).
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        self.line = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, known: Tensor, strange: Tensor) -> Tensor:
        """The loss for logits (N, K) and (M, K)."""
        evidence = torch.cat([known, strange]).logsumexp(1) - self.start
        is_known = torch.arange(len(evidence)) < len(known)
        weights = torch.where(is_known, 0.5, 2.0)
        return F.binary_cross_entropy_with_logits(self.line[0] * evidence + self.line[1], is_known.float(), weights)


def train(config: Config, training: Pictures, held_out: Pictures, names: list[str]) -> tuple[Network, dict[str, float]]:
    """Fit the network, continuing from the checkpoint if there is one; returns it with what that took."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = first_network(config, training, len(names))
    network = network.to(memory_format=torch.channels_last)
    data = Augmentation(config, training, generator)
    scenes = Scenes(config, names, generator) if config.photographs else None
    evidence = logits_of(network, held_out.images[:500]).logsumexp(1).mean() if scenes else torch.zeros(())
    separation = Separation(float(evidence))

    filters = [w for name, w in network.named_parameters() if "groups" in name and w.ndim == 4]
    biases = [norm.bias for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    muon = Muon(filters, lr=config.muon_lr, momentum=config.muon_momentum)
    adam = torch.optim.AdamW(
        [
            {
                "params": [*biases, *network.classifier.parameters(), *(separation.parameters() if scenes else ())],
                "weight_decay": config.adam_decay,
            },
            {"params": [network.stem.bias], "weight_decay": 0.0},
        ],
        lr=config.adam_lr,
        betas=(0.85, 0.98),
    )
    steps_an_epoch = len(training) // config.batch_size
    steps = round(config.epochs * steps_an_epoch)
    first_epoch, spent_s, cpu_s, step = 0, 0.0, 0.0, 0

    path = Path(config.checkpoint)
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        separation.load_state_dict(state["separation"])
        generator.set_state(state["generator"])
        data.flip_first = state["flip_first"]
        first_epoch, spent_s, cpu_s, step = state["epoch"], state["spent_s"], state["cpu_s"], state["step"]
        print(f"continuing after epoch {first_epoch}", flush=True)

    def progress_at(step: int, spent_s: float) -> float:
        return max(step / steps if steps else 1.0, spent_s / config.budget_s if config.budget_s else 0.0)

    begin, cpu_begin = time.perf_counter() - spent_s, time.process_time() - cpu_s
    epoch, progress = first_epoch, progress_at(step, spent_s)
    while progress < 1:
        size = config.low_size if progress < config.low_share else 32
        network.train()
        for norm in network.modules():
            if scenes and isinstance(norm, nn.BatchNorm2d):
                norm.eval()  # the looks and the kinds of pictures differ in their statistics: the old ones are kept
        total, correct, seen, batches = 0.0, 0, 0, 0
        for batch in data.epoch(epoch, size, config.large_batch if scenes else 0):
            progress = progress_at(step, time.perf_counter() - begin)
            if progress >= 1:
                break
            scale = min(1.0, progress / config.warmup_share + 0.01) * (1 - progress)
            for group in [*muon.param_groups, *adam.param_groups]:
                group["lr"] = scale * group.setdefault("initial_lr", group["lr"])
            if step >= config.whiten_epochs * steps_an_epoch:
                adam.param_groups[1]["lr"] = 0.0
            if scenes:
                batch = [scenes.join(part) for part in batch]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                maps = [network(images.contiguous(memory_format=torch.channels_last)) for images, _ in batch]
            logits = torch.cat([own.float().mean((2, 3)) for own in maps])
            labels = torch.cat([own for _, own in batch])
            strange, logits, labels = logits[labels < 0], logits[labels >= 0], labels[labels >= 0]
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            if scenes:
                uniformity = -F.log_softmax(strange, 1).mean()
                loss = loss + config.exposure * uniformity * len(strange) / len(logits)
                loss = loss + config.separation * separation(logits, strange)
            for optimiser in (muon, adam):
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            muon.step()
            adam.step()
            step += 1
            total += loss.item()
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
            batches += 1
            if scenes and step % 50 == 0:
                print(f"step {step} of {steps}  loss {total / batches:.4f}  train {correct / seen:.4f}", flush=True)
        epoch += 1
        spent_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
        progress = progress_at(step, spent_s)
        sample = held_out[slice(1000)]
        accuracy = (logits_of(network, sample.images).argmax(1).numpy() == sample.labels).mean()
        print(
            f"epoch {epoch:2d}  size {size}  loss {total / max(1, batches):.4f}"
            f"  train {correct / max(1, seen):.4f}  held out {accuracy:.4f}  {spent_s:.0f} s  {cpu_s:.0f} s of CPU",
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"network": network.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "step": step}
        state |= {
            "separation": separation.state_dict(),
            "generator": generator.get_state(),
            "flip_first": data.flip_first,
            "epoch": epoch,
            "spent_s": spent_s,
            "cpu_s": cpu_s,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return network.eval(), {"seconds": spent_s, "cpu_seconds": cpu_s, "epochs": step / steps_an_epoch}


# ---------------------------------------------------------------------------------------------------------- evaluation


def fitted(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures of 32x32 (N, 32, 32, C) as a graph of a multiple of that side is sent them: each pixel repeated."""
    return images.repeat(side // 32, axis=1).repeat(side // 32, axis=2)


def side_of(session: onnxruntime.InferenceSession) -> int:
    """Height and width of the graph's input, pixels."""
    return int(session.get_inputs()[0].shape[1])


def enlarged(images: np.ndarray, side: int, name: str, jpeg_quality: int | None = None, result: int = 32) -> np.ndarray:
    """The pictures after they were enlarged to `side` (bicubic), maybe saved as JPEG, and shrunk to `result` by `name`."""
    rows = []
    for image in images:
        large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        if jpeg_quality is not None:
            buffer = io.BytesIO()
            large.save(buffer, "JPEG", quality=jpeg_quality)
            large = Image.open(buffer).convert("RGB")
        rows.append(np.asarray(large.resize((result, result), FILTERS[name])))
    return np.stack(rows)


def accuracy_of(session: onnxruntime.InferenceSession, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pictures whose best class is the label."""
    return float((answers(session, images)["logits"].argmax(1) == labels).mean())


def choose_filter(session: onnxruntime.InferenceSession, held_out: Pictures) -> tuple[str, dict[str, float]]:
    """The resize filter that keeps most accuracy on held-out training pictures enlarged eightfold and shrunk again."""
    few, side = held_out[slice(1000)], side_of(session)
    scores = {name: accuracy_of(session, enlarged(few.images, 256, name, None, side), few.labels) for name in FILTERS}
    return max(scores, key=lambda name: scores[name]), scores


# -------------------------------------------------------------------------------------------------------------- export


def to_onnx(parts: tuple[Part, ...], gate: Gate | None, side: int, novelty: Novelty) -> onnx.ModelProto:
    """The float32 graph: `image` uint8 (batch, side, side, 3) -> `logits`, `activation_map` and `novelty`.

    The looks of a part are run as one batch; with a gate, there are two parts, whose maps it blends.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def constant(name: str, value: Tensor | np.ndarray) -> str:
        if all(weight.name != name for weight in weights):
            array = value.detach().contiguous().numpy() if isinstance(value, Tensor) else value
            weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normalised(x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, name: str) -> str:
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).double()
        weight = (conv.weight.double() * scale[:, None, None, None]).float()
        bias = (norm.bias.double() - norm.running_mean.double() * scale).float()
        filters, shifts = constant(f"{name}.weight", weight), constant(f"{name}.bias", bias)
        return add("Conv", x, filters, shifts, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def mirrored(x: str) -> str:
        last, end, columns = np.array([-1]), np.array([np.iinfo(np.int64).min]), np.array([3])
        bounds = constant("last", last), constant("end", end), constant("columns", columns), constant("backwards", last)
        return add("Slice", x, *bounds)

    def seen(part: Part, x: str, prefix: str) -> tuple[str, str]:
        network, size = part.network, part.looks[0].size
        if side == 2 * size:
            x = add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        elif side != size:
            matrix = shrinking(side, size)
            x = add("MatMul", constant(f"{prefix}rows", matrix), x)
            x = add("MatMul", x, constant(f"{prefix}columns", matrix.T))
        ways = [mirrored(x) if look.mirrored else x for look in part.looks]
        x = add("Concat", *ways, axis=0) if len(ways) > 1 else ways[0]
        stem = (
            constant(f"{prefix}stem.weight", network.stem.weight),
            constant(f"{prefix}stem.bias", network.stem.bias),
        )
        x = add("Gelu", add("Conv", x, *stem, kernel_shape=[2, 2]))
        for i, group in enumerate(network.groups):
            x = normalised(x, group.conv1, group.norm1, f"{prefix}groups.{i}.conv1")
            x = add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if group.pool else x
            x = add("Gelu", x)
            x = add("Gelu", normalised(x, group.conv2, group.norm2, f"{prefix}groups.{i}.conv2"))
        if len(ways) > 1:
            names = [f"{prefix}as_sent", f"{prefix}seen_mirrored"]
            nodes.append(helper.make_node("Split", [x], names, name=f"{prefix}node_split", axis=0, num_outputs=2))
            x = add("Mean", names[0], mirrored(names[1]))
        elif part.looks[0].mirrored:
            x = mirrored(x)
        classifier = constant(f"{prefix}classifier.weight", network.classifier.weight)
        maps = add("Conv", x, classifier, kernel_shape=[1, 1], output="" if gate else "activation_map")
        return maps, add("ReduceMean", x, constant("space", np.array([2, 3])), keepdims=0)

    pixels = add("Transpose", add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    cells = parts[-1].looks[0].cells
    found = [seen(part, pixels, "scenes." if i else "") for i, part in enumerate(parts)]
    maps, features = found[-1]
    if gate:
        grid = regridding(parts[0].looks[0].cells, cells)
        coarse = add("MatMul", constant("spread.rows", grid), found[0][0])
        coarse = add("MatMul", coarse, constant("spread.columns", grid.T))
        share = add("MatMul", features, constant("gate.weight", gate.weight[:, None]))
        share = add("Sigmoid", add("Add", share, constant("gate.bias", gate.bias)))
        share = add("Unsqueeze", share, constant("last_two", np.array([2, 3])))
        add("Add", coarse, add("Mul", share, add("Sub", maps, coarse)), output="activation_map")
    space = constant("space", np.array([2, 3]))
    add("ReduceMean", "activation_map", space, keepdims=0, output="logits")
    classes = parts[0].network.classifier.out_channels
    projected = add("MatMul", features, constant("novelty.projection", novelty.projection))
    projected = add("Unsqueeze", projected, constant("second", np.array([1])))
    differences = add("Sub", projected, constant("novelty.means", novelty.means))
    squares = add("ReduceSumSquare", differences, constant("third", np.array([2])), keepdims=0)
    distance = add("ReduceMin", squares, constant("second", np.array([1])), keepdims=0)
    evidence = add("ReduceLogSumExp", "logits", constant("second", np.array([1])), keepdims=0)
    add("Sub", distance, evidence, output="novelty")
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
        helper.make_tensor_value_info("activation_map", TensorProto.FLOAT, ["batch", classes, cells, cells]),
        helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["batch"]),
    ]
    picture = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])
    graph = helper.make_graph(nodes, "cifar10-cnn", [picture], outputs, weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name="gridloop"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def to_int8(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """The graph with 8-bit convolutions: static ranges from `images`, a scale per filter, 7 bits of each weight used.

    The stem, whose whitening cancels large terms, and the classifier stay float32. Seven bits cannot overflow the 16-bit
    sums of processors without VNNI.
    """

    class Reader(CalibrationDataReader):
        batches = iter([images[i : i + 50] for i in range(0, len(images), 50)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    exact = [
        node.name
        for node in model.graph.node
        if any(name.endswith(("stem.weight", "classifier.weight")) for name in node.input)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "MaxPool"],
            nodes_to_exclude=exact,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A single-threaded CPU session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def milliseconds(sessions: list[onnxruntime.InferenceSession], images: np.ndarray, batch_size: int) -> list[float]:
    """Median milliseconds of CPU per picture for each session, in turns; other load counts less than by the clock."""
    batches = [fitted(images[:batch_size], side_of(session)) for session in sessions]
    times = np.zeros((25, len(sessions)))
    for i in range(len(times)):
        for k, (session, batch) in enumerate(zip(sessions, batches, strict=True)):
            begin = time.process_time()
            session.run(None, {"image": batch})
            times[i, k] = time.process_time() - begin
    return [float(median) * 1000 / batch_size for median in np.median(times[5:], axis=0)]


def answers(session: onnxruntime.InferenceSession, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every output of the graph for uint8 pictures (N, H, W, C), by name."""
    names = [output.name for output in session.get_outputs()]
    batches = [session.run(None, {"image": images[i : i + 100]}) for i in range(0, len(images), 100)]
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*batches, strict=True), strict=True)}


def largest_difference(
    session: onnxruntime.InferenceSession,
    parts: tuple[Part, ...],
    gate: Gate | None,
    novelty: Novelty,
    images: np.ndarray,
) -> float:
    """How far ONNX Runtime and torch are apart on these pictures, in any output."""
    maps, features = answers_of(parts, gate, images)
    logits = maps.mean((2, 3))
    expected = {"activation_map": maps, "logits": logits, "novelty": novelty(features, logits)}
    found = answers(session, images)
    return max(float(np.abs(found[name] - value.numpy()).max()) for name, value in expected.items())


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


# -------------------------------------------------------------------------------------------------------------- report


def write_card(path: Path, lines: list[str]) -> None:
    """Put the metric lines between the card's markers."""
    text = path.read_text()
    block = "<!-- metrics -->\n" + "\n".join(lines) + "\n<!-- /metrics -->"
    path.write_text(re.sub(r"<!-- metrics -->.*?<!-- /metrics -->", lambda _: block, text, flags=re.DOTALL))


def toml(table: str, values: dict[str, float]) -> str:
    """A TOML table."""
    keys = ((name if name.isidentifier() else f'"{name}"', value) for name, value in values.items())
    return f"[{table}]\n" + "".join(f"{name} = {value}\n" for name, value in keys)


def write_manifest(path: Path, calibration: dict[str, float], metrics: dict[str, float], resize_filter: str) -> None:
    """Replace the manifest's calibration and metrics (its last tables) and the resize filter."""
    text = re.sub(r'^filter = "\w+"', f'filter = "{resize_filter}"', path.read_text(), flags=re.MULTILINE)
    head = re.split(r"^\[(?:calibration|metrics)\]", text, flags=re.MULTILINE)[0]
    path.write_text(f"{head}{toml('calibration', calibration)}\n{toml('metrics', metrics)}")


def write_own_manifest(folder: Path, calibration: dict[str, float]) -> None:
    """Replace the calibration (the last table) in the manifest of a version that is not the default one."""
    path = folder / "manifest.toml"
    head = path.read_text().split("[calibration]")[0] if path.exists() else ""
    path.write_text(head + toml("calibration", calibration))


def read_calibration(out: Path, version: str) -> dict[str, float]:
    """The `[calibration]` table of a version that was made before."""
    own = out / version / "manifest.toml"
    found = tomllib.loads(own.read_text()).get("calibration") if own.exists() else None
    return found or dict(tomllib.loads((out / "manifest.toml").read_text())["calibration"])


def interval(hits: np.ndarray) -> str:
    """A share with its 95 % interval by Wilson's score method, as text."""
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{hits.mean():.2%} ({low:.2%} to {high:.2%})"


def calibrate(config: Config, found: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """The manifest's `[calibration]` table from the graph's answers for held-out pictures."""
    threshold = fit_set_threshold(softmax(found["logits"].astype(np.float64)), labels, config.coverage)
    strange = fit_abstain_threshold(found["novelty"], config.abstain_rate)
    return {
        "coverage": config.coverage,
        "set_threshold": math.floor(threshold * 1e6) / 1e6,
        "abstain_above": math.ceil(strange * 1e4) / 1e4,
        "abstain_rate": config.abstain_rate,
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


def main(config: Config) -> None:
    """Data -> model -> loop -> calibrate -> export -> check -> evaluate."""
    torch.set_num_threads(config.threads)
    folder, out = Path(config.data) / "cifar10", Path(config.out)
    training, names = read_train(folder)
    training, held_out = training[: -config.held_out], training[-config.held_out :]
    training = training[: config.subset or len(training)]
    print(f"{len(training)} training pictures, {len(held_out)} held out", flush=True)
    network, effort = train(config, training, held_out, names)

    side = 64 if config.photographs else 32
    few = training[slice(config.novelty_pictures)]
    seen, unseen = (Pictures(fitted(some.images, side), some.labels) for some in (few, held_out))
    ranges, gate = seen.images[:300], None
    straight, mirror = Look(32), Look(32, mirrored=True)
    parts = (Part(network, (straight, mirror) if config.mirror else (straight,)),)
    if config.photographs:
        shown = whole_photographs(Path(config.data), "training", names, side)
        seen = seen + shown
        unseen = unseen + whole_photographs(Path(config.data), "tuning", names, side)
        ranges = np.concatenate([ranges[:200], shown.images[:: len(shown) // 100]])
        scenes = Part(network, (Look(config.large_size, mirrored=True),))
        parts = (Part(first_network(config, training, len(names)), (straight, mirror)), scenes)
        cars = len(list(photographs.camvid_cars(Path(config.data) / "camvid", "training")))
        is_scene = torch.arange(len(seen)) >= len(few)
        is_scene[-cars:] = False  # cut to the thing itself, they are sharp all the same
        gate = Gate.fit(
            maps_and_features(network, seen.images, scenes.looks)[1], is_scene, config.steepness, config.reserve
        )
    temperature = fit_temperature(answers_of(parts, gate, unseen.images)[0].mean((2, 3)).numpy(), unseen.labels)
    for part in parts:
        part.network.classifier.weight.data.div_(temperature)
    maps, features = answers_of(parts, gate, seen.images)
    novelty = Novelty.fit(features, maps.mean((2, 3)), torch.from_numpy(seen.labels), config.distance_weight)
    model = to_onnx(parts, gate, side, novelty)
    difference = largest_difference(open_session(model), parts, gate, novelty, unseen.images[-256:])
    if difference > 2e-4:
        raise SystemExit(f"ONNX and torch differ by {difference:.2e}, more than 2e-4")
    quantised = to_int8(model, ranges)
    built = {"3": quantised} if config.photographs else {"2": quantised, "1": model}

    calibrations = {}
    for version, graph in built.items():
        (out / version).mkdir(parents=True, exist_ok=True)
        onnx.save(graph, out / version / "model.onnx")
        (out / version / "labels.txt").write_text("".join(f"{name}\n" for name in names))
        calibrations[version] = calibrate(config, answers(open_session(graph), unseen.images), unseen.labels)
    paths = sorted(out.glob("*/model.onnx"), key=lambda path: path.parent.name, reverse=True)
    sessions = {path.parent.name: open_session(onnx.load(path)) for path in paths}
    calibrations = {
        version: calibrations[version] if version in calibrations else read_calibration(out, version)
        for version in sessions
    }
    held: dict[str, dict[str, str]] = {}
    for version, session in sessions.items():
        pictures = Pictures(fitted(held_out.images, side_of(session)), held_out.labels)
        if config.photographs:
            pictures += whole_photographs(Path(config.data), "tuning", names, side_of(session))
        right = answers(session, pictures.images)["logits"].argmax(1) == pictures.labels
        held[version] = {f"Held-out training pictures ({len(held_out)})": interval(right[: len(held_out)])}
        if config.photographs:
            rest = right[len(held_out) :]
            held[version][f"Photographs of the tuning part ({len(rest)})"] = interval(rest)
        print(f"version {version}: {held[version]}  {calibrations[version]}", flush=True)
    newest = next(iter(sessions))
    resize_filter, filter_scores = choose_filter(sessions[newest], held_out)
    resize_filter = "box" if config.photographs else resize_filter  # so that pictures of 32x32 come back as they were
    speeds = {
        size: dict(zip(sessions, milliseconds(list(sessions.values()), held_out.images, size), strict=True))
        for size in (1, 8, 32)
    }
    parameters = sum(p.numel() for part in parts for p in part.network.parameters())
    print(f"temperature {temperature:.3f}  filters {filter_scores}  ms per picture {speeds}", flush=True)
    if not config.evaluate_test:
        return

    test = read_test(folder)
    few = test[slice(2000)]
    columns: dict[str, dict[str, str]] = {}
    metrics: dict[str, float] = {}
    per_class, large = "", np.zeros(0)
    for version, session in sessions.items():
        figures, right, error = test_figures(
            answers(session, fitted(test.images, side_of(session))), test.labels, calibrations[version]
        )
        size_mb = (out / version / "model.onnx").stat().st_size / 1e6
        columns[version] = figures | held[version]
        columns[version] |= {
            "File": f"{size_mb:.1f} MB",
            "CPU a picture, alone": f"{speeds[1][version]:.1f} ms",
            "CPU a picture, in a batch of 8": f"{speeds[8][version]:.1f} ms",
            "CPU a picture, in a batch of 32": f"{speeds[32][version]:.1f} ms",
        }
        if version == newest:
            small = enlarged(few.images, 256, resize_filter, 85, side_of(session))
            large = answers(session, small)["logits"].argmax(1) == few.labels
            metrics = {
                "CIFAR-10 test accuracy": round(float(right.mean()), 4),
                "CIFAR-10 test accuracy, pictures of 256x256 as JPEG": round(float(large.mean()), 4),
                "expected calibration error": round(error, 4),
            }
            per_class = ", ".join(f"{name} {right[test.labels == k].mean():.1%}" for k, name in enumerate(names))
    golden = test.images[list(GOLDEN_TEST_PICTURES)]
    for version in built:
        logits = torch.from_numpy(answers(sessions[version], fitted(golden, side_of(sessions[version])))["logits"])
        write_golden(out / version, logits, test, names, 0.002 if version == "1" else 0.03)

    core = f"an {processor_name()}"
    titles = (f"version {version}" for version in sessions)
    lines = [
        f"| 95 % intervals in brackets | {' | '.join(titles)} |",
        "|---" * (1 + len(sessions)) + "|",
        *(f"| {name} | {' | '.join(columns[version][name] for version in sessions)} |" for name in columns[newest]),
        "",
        f"- Accuracy per class, version {newest}: {per_class}",
        f"- {len(few)} test pictures enlarged to 256x256 (bicubic), saved as JPEG (quality 85) and shrunk with the "
        f"`{resize_filter}` filter, version {newest}: {interval(large)}",
        f"- {parameters:,} parameters; ONNX Runtime {onnxruntime.__version__}, one thread of {core}, the versions in turns",
        f"- Temperature {temperature:.3f}, fitted on the {len(unseen):,} held-out pictures, is part of the weights",
        "- Resize filters, accuracy on held-out training pictures enlarged eightfold and shrunk again: "
        + ", ".join(f"{name} {value:.2%}" for name, value in filter_scores.items()),
        f"- Largest difference between ONNX Runtime and torch on 256 pictures, in any output, before the weights are "
        f"rounded: {difference:.1e}",
        f"- Last run of training: {effort['epochs']:.1f} epochs, {effort['cpu_seconds'] / 60:.0f} minutes of a core of {core} "
        f"with bfloat16 ({effort['seconds'] / 60:.0f} minutes by the clock, the core shared), "
        f"torch {torch.__version__.split('+')[0]}",
        "",
        "| data file | sha256 |",
        "|---|---|",
        *(f"| `{name}` | `{digest}` |" for name, digest in checksums(folder).items()),
    ]
    print("\n".join(lines), flush=True)
    if (out / "card.md").exists():
        write_card(out / "card.md", lines)
    if (out / "manifest.toml").exists():
        default = tomllib.loads((out / "manifest.toml").read_text()).get("default_version", newest)
        if default in built:
            write_manifest(out / "manifest.toml", calibrations[default], metrics, resize_filter)
        for version in built:
            if version != default:
                write_own_manifest(out / version, calibrations[version])


def flags() -> Config:
    """The command line as a `Config`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for field in dataclasses.fields(Config):
        kind = type(field.default)
        read = (lambda text: text.lower() in ("true", "1", "yes")) if kind is bool else kind
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=read, default=field.default, metavar=kind.__name__
        )
    return Config(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(flags())
