"""Pictures with boxes for training and choosing: as the service shows them to the network, or seen otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from service.media.images import LETTERBOX_GREY
from training.flags import Flags


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A picture with its boxes."""

    name: str
    picture: Image.Image
    labels: np.ndarray
    """int64 (M,)"""
    boxes: np.ndarray
    """float32 (M, 4): xmin ymin xmax ymax in pixels of the picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(Flags):
    """What a picture may look like in training."""

    height: int
    """Of the network's input, a multiple of 32 (pixels)."""
    width: int
    """Of the network's input, a multiple of 32 (pixels)."""
    stretch: bool
    """Whether a picture fills the input whatever its shape; else it lies within grey."""
    transpose: bool = False
    """Whether a picture may lie on its side or stand on its head."""
    least_scale: float = 0.75
    """Smallest picture (share of how the service shows it)."""
    most_scale: float = 1.3
    """Largest picture, of which only a part is seen."""
    stretching: float = 0.1
    """Largest change of the ratio of height and width (share)."""
    light: float = 0.25
    """Largest change of brightness, contrast and saturation (share)."""
    tint: float = 0.06
    """Largest change of a colour (share)."""
    least_visible: float = 0.35
    """Share of a box that must be seen for it to be learnt."""
    crop: float = 0.75
    """Height and width of the inputs of the first epochs, which then cost about half (share of the network's)."""
    crop_share: float = 0.6
    """Share of the epochs with crops."""


def place(config: Augmentation, picture: Image.Image) -> tuple[float, float, float, float]:
    """Where the service puts a picture in the network's input: left, top, width, height in its pixels."""
    if config.stretch:
        return 0.0, 0.0, float(config.width), float(config.height)
    scale = min(config.width / picture.width, config.height / picture.height)
    width, height = round(picture.width * scale), round(picture.height * scale)
    return float((config.width - width) // 2), float((config.height - height) // 2), float(width), float(height)


def paint(picture: Image.Image, at: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """The picture at a place of a grey canvas, of which it may be larger: uint8 (height, width, 3)."""
    left, top, wide, high = at
    x0, y0 = max(0, round(left)), max(0, round(top))
    x1, y1 = min(width, round(left + wide)), min(height, round(top + high))
    canvas = Image.new("RGB", (width, height), (LETTERBOX_GREY, LETTERBOX_GREY, LETTERBOX_GREY))
    if x1 > x0 and y1 > y0:
        across, down = picture.width / wide, picture.height / high
        source = ((x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down)
        source = (
            max(source[0], 0.0),
            max(source[1], 0.0),
            min(source[2], picture.width),
            min(source[3], picture.height),
        )
        canvas.paste(picture.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source), (x0, y0))
    return np.asarray(canvas)


def augmented(
    sample: Labelled, config: Augmentation, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sample seen otherwise: another part, scale, shape, light and direction.

    Returns:
        uint8 (H, W, 3), labels int64 (M,), boxes float32 (M, 4) in pixels of the result.
    """
    width, height = size
    _, _, wide, high = place(config, sample.picture)
    scale = math.exp(rng.uniform(math.log(config.least_scale), math.log(config.most_scale)))
    shape = math.exp(rng.uniform(-config.stretching, config.stretching) / 2)
    wide, high = wide * scale * shape, high * scale / shape
    left = rng.uniform(min(0.0, width - wide), max(0.0, width - wide))
    top = rng.uniform(min(0.0, height - high), max(0.0, height - high))
    pixels = paint(sample.picture, (left, top, wide, high), width, height)

    factors = np.array([wide / sample.picture.width, high / sample.picture.height] * 2, np.float32)
    boxes = sample.boxes * factors + np.array([left, top] * 2, np.float32)
    before = area(boxes)
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    kept = (area(boxes) > config.least_visible * before) & ((boxes[:, 2:] - boxes[:, :2]).min(1, initial=1e9) > 2)
    boxes, labels = boxes[kept], sample.labels[kept]

    if rng.random() < 0.5:
        pixels, boxes = (
            pixels[:, ::-1],
            np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1),
        )
    if config.transpose and rng.random() < 0.5:
        pixels, boxes = (
            pixels[::-1],
            np.stack((boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), 1),
        )

    lit = pixels.astype(np.float32)
    brightness, contrast, saturation = rng.uniform(1 - config.light, 1 + config.light, 3)
    grey = lit @ np.array([0.299, 0.587, 0.114], np.float32)
    lit = grey[..., None] + (lit - grey[..., None]) * saturation
    lit = (lit - grey.mean()) * contrast + grey.mean() * brightness
    lit = lit * rng.uniform(1 - config.tint, 1 + config.tint, 3)
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8), labels, boxes.astype(np.float32)


def area(boxes: np.ndarray) -> np.ndarray:
    """Of boxes (M, 4), in pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batch_of(
    samples: Sequence[Labelled], config: Augmentation, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A training batch.

    Args:
        share: of the network's height and width.
    Returns:
        uint8 (N, 3, H, W); labels int64 (N, M), -1 where a picture has fewer; boxes float32 (N, M, 4).
    """
    width, height = (round(side * share / 32) * 32 for side in (config.width, config.height))
    lying = config.transpose and rng.random() < 0.5
    if lying:
        width, height = height, width
    seen = [augmented(sample, config, (width, height), rng) for sample in samples]
    most = max(1, *(len(labels) for _, labels, _ in seen))
    pixels = np.stack([picture for picture, _, _ in seen])
    labels = np.full((len(seen), most), -1, np.int64)
    boxes = np.zeros((len(seen), most, 4), np.float32)
    for row, (_, its_labels, its_boxes) in enumerate(seen):
        labels[row, : len(its_labels)], boxes[row, : len(its_labels)] = its_labels, its_boxes
    if lying:
        pixels, boxes = pixels.transpose(0, 2, 1, 3), boxes[..., [1, 0, 3, 2]]
    pixels = np.ascontiguousarray(pixels)
    return (
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.from_numpy(labels),
        torch.from_numpy(np.ascontiguousarray(boxes)),
    )
