"""CIFAR-10 from its files, and random views of its pictures: what `train.py` and `finetune.py` share.

Tensor letters: N pictures, C channels, H rows, W columns.

References:
    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009): the data.
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single A100 GPU" (2024), arXiv:2404.00498: the alternating flip.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.data import DataSet

CIFAR10 = DataSet(
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz/cifar.html",
    "no licence stated",
    tuple(f"cifar10/{name}" for name in (*(f"train_{part}.webp" for part in range(1, 6)), "test.webp", "labels.npz")),
)
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's antialiasing filters by the names that a manifest uses."""


@dataclasses.dataclass(frozen=True)
class Augmentations:
    """How far views differ from their pictures; each field becomes a command-line flag."""

    translate: int = 2
    """Largest shift, in pixels."""
    reframe: float = 0.4
    """Share of the pictures that are re-framed: other scale, aspect ratio and sharpness, and a fractional shift."""
    zoom_out: float = 1.6
    """Widest frame, in picture widths; the outside is mirrored, or another picture."""
    zoom_in: float = 0.8
    """Tightest frame, in picture widths."""
    aspect: float = 1.35
    """Largest ratio between the horizontal and the vertical stretch, and one over it the smallest."""
    blur: float = 1.5
    """Largest widening of the resampling filter."""
    pixelated: float = 0.0
    """Share of the pictures whose pixels are repeated instead of resampled smoothly."""
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


def resampling_matrix(
    start: Tensor, step: Tensor, blur: Tensor, size: int, source: int, pixelated: Tensor | None = None
) -> Tensor:
    """Weights that resample one axis of each picture, bicubic and antialiased, so that two products re-frame a picture.

    Args:
        start: (N,) where the frame begins, in source pixels.
        step: (N,) source pixels per pixel of the result; negative mirrors.
        blur: (N,) widening of the filter, 1 for none.
        size: pixels of the result.
        source: pixels of the source.
        pixelated: (N,) bool, which pictures repeat the nearest pixel instead; none if left out.
    Returns:
        float32 (N, size, source); each row sums to 1. A step of 1 with a whole start copies pixels exactly.
    """
    centres = start[:, None] + (torch.arange(size) + 0.5) * step[:, None] - 0.5  # (N, size)
    widths = step.abs().clamp(min=1.0) * blur  # (N,)
    x = ((torch.arange(source) - centres[:, :, None]) / widths[:, None, None]).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
    if pixelated is not None:
        weights = torch.where(pixelated[:, None, None], (x < 0.5001).float(), weights)
    return weights / weights.sum(-1, keepdim=True)


class Augmentation:
    """Random views of the training pictures: flip, shift, re-frame, light, at the asked size."""

    margin = 31
    """Mirrored pixels around each picture; the frame never leaves them."""

    def __init__(self, config: Augmentations, pictures: Pictures, generator: torch.Generator) -> None:
        self.images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        self.labels = torch.from_numpy(pictures.labels)
        self.config = config
        self.generator = generator
        self.flip_first = self._uniform(len(pictures), 0, 1) < 0.5

    def epoch(self, number: int, batch_size: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (N, C, size, size), float 0..255, with labels (N,). Each picture is mirrored in every second epoch."""
        order = torch.randperm(len(self.labels), generator=self.generator)
        flips = self.flip_first ^ bool(number % 2)
        for rows in order.split(batch_size):
            if len(rows) == batch_size:
                images = F.pad(self.images[rows].float(), (self.margin,) * 4, mode="reflect")
                yield self._view(images, flips[rows], size), self.labels[rows]

    def _view(self, images: Tensor, flip: Tensor, size: int) -> Tensor:
        config, count, source = self.config, len(images), images.shape[-1]
        reframed = self._uniform(count, 0, 1) < config.reframe
        zoom = torch.exp(self._uniform(count, np.log(config.zoom_in), np.log(config.zoom_out)))
        stretch = torch.exp(self._uniform(count, -np.log(config.aspect) / 2, np.log(config.aspect) / 2))
        pixelated = self._uniform(count, 0, 1) < config.pixelated
        blur = torch.where(reframed & ~pixelated, self._uniform(count, 1, config.blur), torch.ones(()))
        matrices, insides = [], []
        for side in (zoom * stretch, zoom / stretch):
            span = torch.where(reframed, 32 * side, torch.full((), 32.0)).clamp(max=source)
            slack = torch.minimum((32 - span).abs() / 2 * 0.8, (source - span) / 2)
            shift = self._uniform(count, -1, 1)
            shift = torch.where(reframed, shift * slack.clamp(min=1.0), (shift * (config.translate + 0.5)).round())
            start = source / 2 - span / 2 + shift
            step = span / size
            centres = start[:, None] + (torch.arange(size) + 0.5) * step[:, None]
            insides.append((centres > self.margin) & (centres < source - self.margin))
            if matrices:  # the second side is the horizontal one
                start, step = torch.where(flip, start + span, start), torch.where(flip, -step, step)
            matrices.append(resampling_matrix(start, step, blur, size, source, pixelated))
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


def relit(views: Tensor, config: Augmentations, generator: torch.Generator) -> Tensor:
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


def resized(images: np.ndarray, side: int, name: str) -> np.ndarray:
    """Pictures (N, H, W, C) at the side that a graph takes, as the service resizes them."""
    if images.shape[1] == side:
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), FILTERS[name])) for image in images])


def enlarged(images: np.ndarray, side: int, name: str, result: int, jpeg_quality: int | None = None) -> np.ndarray:
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
