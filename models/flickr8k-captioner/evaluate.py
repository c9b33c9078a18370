"""Flickr8k: all 1,000 official test pictures, each sent as the WebP that it is.

    gridloop evaluate flickr8k-captioner --data DIR [--url URL] [--write]

DIR holds `flickr8k/captions.json.gz` and `flickr8k/images_112.zip`, as train.py says. The data are for research and
education only.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from service.evaluation import DataMissing
from service.evaluation.image_captioning import Described, ImageCaptioningEvaluation


class Flickr8k(ImageCaptioningEvaluation):
    """The official test split."""

    title = "Flickr8k, official test split"
    of_data = "Flickr8k"

    def pictures(self) -> Sequence[Described]:
        try:
            told = json.loads(gzip.decompress((self.data / "flickr8k" / "captions.json.gz").read_bytes()))
            archive = zipfile.ZipFile(self.data / "flickr8k" / "images_112.zip")
        except FileNotFoundError:
            raise DataMissing(
                self.data,
                "Flickr8k (flickr8k/captions.json.gz and flickr8k/images_112.zip)",
                "train.py says what is in these files, and where Flickr8k is from.",
            ) from None
        return [
            Described(file, told["captions"][file], partial(archive.read, Path(file).with_suffix(".webp").name))
            for file in told["splits"]["test"]
        ]
