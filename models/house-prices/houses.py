"""Houses: 535 houses in California with four pictures each, and their prices in US dollars.

`houses_96.zip` is the data set of E. Ahmed, M. Moustafa, "House price estimation from visual and textual features" (IJCCI
2016), https://github.com/emanhamed/Houses-dataset at commit 5e1482195005, with every picture squeezed to 96x96 (WebP):
`<n>_frontal.webp`, `<n>_bedroom.webp`, `<n>_bathroom.webp`, `<n>_kitchen.webp` for n = 1..535, and `HousesInfo.txt`,
whose line n ends in the price. There is no official split: here, houses whose number is divisible by 5 are held out.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import DataSet

HOUSES = DataSet(
    "Houses dataset",
    "https://github.com/emanhamed/Houses-dataset",
    "none stated; the authors ask for a citation",
    ("houses/houses_96.zip",),
)
ROOMS = ("frontal", "bedroom", "bathroom", "kitchen")
"""The pictures of a house, in the order in which they lie side by side."""


@dataclass(frozen=True)
class House:
    """A house.

    Attributes:
        number: from 1.
        strip: its four pictures side by side, PNG of 384x96.
        price: US dollars.
    """

    number: int
    strip: bytes
    price: float


def read(folder: Path, *, held_out: bool) -> list[House]:
    """The houses that are held out, or the others."""
    with zipfile.ZipFile(folder / "houses_96.zip") as archive:
        prices = np.loadtxt(io.BytesIO(archive.read("HousesInfo.txt")))[:, -1].tolist()
        return [
            House(number, strip_of(archive, number), price)
            for number, price in enumerate(prices, start=1)
            if (number % 5 == 0) is held_out
        ]


def strip_of(archive: zipfile.ZipFile, number: int) -> bytes:
    """The pictures of a house side by side, as the model takes them."""
    pictures = [Image.open(io.BytesIO(archive.read(f"{number}_{room}.webp"))).convert("RGB") for room in ROOMS]
    strip = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    file = io.BytesIO()
    strip.save(file, "PNG")
    return file.getvalue()
