"""BCCD: microscope pictures of blood, 640x480, with boxes for red cells, white cells and platelets.

`bccd.zip` is the data set's repository, https://github.com/Shenggan/BCCD_Dataset, at commit d272fb14cdff:
`BCCD/JPEGImages/*.jpg`, `BCCD/Annotations/*.xml` (Pascal VOC) and `BCCD/ImageSets/Main/{train,val,test}.txt`, the official
split of 205, 87 and 72 pictures.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

from training.data import DataSet

BCCD = DataSet("BCCD", "https://github.com/Shenggan/BCCD_Dataset", "MIT", ("bccd/bccd.zip",))
LABELS = ("RBC", "WBC", "Platelets")


def boxes(folder: Path, split: str) -> dict[str, list[tuple[str, list[float]]]]:
    """Label and box of every object of a split, by the name of the picture; two without an extent are left out."""
    found = {}
    with zipfile.ZipFile(folder / "bccd.zip") as archive:
        for name in archive.read(f"BCCD/ImageSets/Main/{split}.txt").decode().split():
            objects = []
            for thing in ET.fromstring(archive.read(f"BCCD/Annotations/{name}.xml")).findall("object"):
                box = [float(thing.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
                if box[2] > box[0] and box[3] > box[1]:
                    objects.append((thing.findtext("name", ""), box))
            found[name] = objects
    return found


def picture(folder: Path, name: str) -> bytes:
    """The file of a picture."""
    with zipfile.ZipFile(folder / "bccd.zip") as archive:
        return archive.read(f"BCCD/JPEGImages/{name}.jpg")
