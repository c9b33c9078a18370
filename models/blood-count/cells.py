"""BCCD: microscope pictures of blood, 640x480, with a box around each cell that was labelled.

`bccd.zip` is the data set's repository, https://github.com/Shenggan/BCCD_Dataset, at commit d272fb14cdff: pictures in
`BCCD/JPEGImages`, boxes in `BCCD/Annotations` (Pascal VOC), the official split of 205, 87 and 72 pictures in
`BCCD/ImageSets/Main`. Not every cell has a box, the fewer the more crowded a picture is: what is counted is boxes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import DataSet

BCCD = DataSet("BCCD", "https://github.com/Shenggan/BCCD_Dataset", "MIT", ("bccd/bccd.zip",))
COUNTED = ("RBC", "Platelets")
"""Labels of the boxes that are counted, in the order of the graph's values."""
WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class Cells:
    """A picture with what is in it.

    Attributes:
        name: of the picture.
        jpeg: its file.
        centres: of the boxes of each counted label: float64 (n, 2), x and y as fractions of width and height.
    """

    name: str
    jpeg: bytes
    centres: tuple[NDArray[np.float64], ...]

    @property
    def counts(self) -> list[int]:
        """Boxes of each counted label."""
        return [len(centres) for centres in self.centres]


def read(folder: Path, split: str) -> list[Cells]:
    """The pictures of `train`, `val` or `test`. Two boxes without an extent are left out."""
    found = []
    with zipfile.ZipFile(folder / "bccd.zip") as archive:
        for name in archive.read(f"BCCD/ImageSets/Main/{split}.txt").decode().split():
            centres: dict[str, list[tuple[float, float]]] = {label: [] for label in (*COUNTED, "WBC")}
            for thing in ET.fromstring(archive.read(f"BCCD/Annotations/{name}.xml")).findall("object"):
                box = [int(thing.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                if box[2] > box[0] and box[3] > box[1]:
                    centre = (box[0] + box[2]) / 2 / WIDTH, (box[1] + box[3]) / 2 / HEIGHT
                    centres[thing.findtext("name", "")].append(centre)
            places = tuple(np.array(centres[label], np.float64).reshape(-1, 2) for label in COUNTED)
            found.append(Cells(name, archive.read(f"BCCD/JPEGImages/{name}.jpg"), places))
    return found
