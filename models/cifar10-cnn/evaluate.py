"""CIFAR-10: all 10,000 official test pictures, each sent as a PNG.

    gridloop evaluate cifar10-cnn --data DIR [--url URL] [--write]

DIR holds the test set either as the official python version (`cifar-10-batches-py/test_batch`, from
https://www.cs.toronto.edu/~kriz/cifar.html) or as `cifar10/test.webp` (100 x 100 tiles, lossless) with `cifar10/labels.npz`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from service.evaluation import DataMissing
from service.evaluation.image_classification import ImageClassificationEvaluation, Picture

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Cifar10(ImageClassificationEvaluation):
    """The official test split."""

    title = "CIFAR-10, official test split"
    accuracy = "CIFAR-10 test accuracy"

    def pictures(self) -> Sequence[Picture]:
        try:
            pixels, labels = load(self.data)
        except FileNotFoundError:
            raise DataMissing(
                self.data,
                "CIFAR-10 (cifar-10-batches-py/test_batch, or cifar10/test.webp and cifar10/labels.npz)",
                "Download the python version from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it there.",
            ) from None
        return [
            Picture(f"picture {number}", CLASSES[label], partial(encode, pixels[number]))
            for number, label in enumerate(labels)
        ]


def load(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test pictures uint8 (10000, 32, 32, 3) and labels (10000,)."""
    official = data / "cifar-10-batches-py" / "test_batch"
    if official.exists():
        with official.open("rb") as file:
            batch = pickle.load(file, encoding="latin1")  # the format in which its author publishes it
        return batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(batch["labels"])
    mosaic = np.asarray(Image.open(data / "cifar10" / "test.webp").convert("RGB"))
    tiles = mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    return tiles, np.load(data / "cifar10" / "labels.npz")["test_labels"].astype(int)


def encode(pixels: np.ndarray) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
