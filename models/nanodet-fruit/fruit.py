"""Fruit Images for Object Detection: photographs of apples, bananas and oranges with boxes, from the web.

`fruit_416.zip` holds `train/*.webp`, `test/*.webp` (longer side at most 416 pixels) and `annotations.json`: name ->
`boxes`, a list of [label, xmin, ymin, xmax, ymax] in pixels. It is made of mbkinaci's collection on Kaggle, of which
https://github.com/duhee01/fruit_object_detection has a copy.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from training.data import DataSet

FRUIT = DataSet(
    "Fruit Images for Object Detection",
    "https://github.com/duhee01/fruit_object_detection",
    "none stated; pictures from the web: research use",
    ("fruit_detection/fruit_416.zip",),
)
LABELS = ("apple", "banana", "orange")


def boxes(folder: Path, split: str) -> dict[str, list[tuple[str, list[float]]]]:
    """Label and box of every object of a split, by the name of the picture; those without an extent are left out."""
    with zipfile.ZipFile(folder / "fruit_416.zip") as archive:
        listing = json.loads(archive.read("annotations.json"))
    return {
        name: [(label, box) for label, *box in about["boxes"] if box[2] > box[0] and box[3] > box[1]]
        for name, about in listing.items()
        if name.startswith(f"{split}/")
    }


def picture(folder: Path, name: str) -> bytes:
    """The file of a picture."""
    with zipfile.ZipFile(folder / "fruit_416.zip") as archive:
        return archive.read(name)
