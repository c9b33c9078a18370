"""Train the blood cell detector: NanoDet-g, which knows COCO's labels, learns red cells, white cells and platelets.

    PYTHONPATH=. python models/nanodet-blood/train.py --data DIR

DIR holds `bccd/bccd.zip`; `bccd.py` says what that is and where it is from. The official validation pictures serve for
choices and for the calibration. A run goes on from its checkpoint when started again. One core that knows bfloat16 needs
about ten minutes. Needs torch, numpy, onnx, onnxruntime, pillow and pycocotools.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "nanodet-coco"))

import finetune  # noqa: E402
from bccd import BCCD, LABELS, boxes, picture  # noqa: E402
from labelled import Labelled  # noqa: E402
from nanodet import from_graph, with_labels  # noqa: E402
from publishing import calibrate, look, write_graph  # noqa: E402

from training.card import data_table, table, write_block  # noqa: E402
from training.flags import read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.loop import start  # noqa: E402

SOURCES = ([32, 47, 49, 54],) * 3
"""COCO's round things, from whose mean the new labels start: sports ball, apple, orange, donut."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(finetune.Config):
    """What differs from a training of fruit."""

    out: Path = FOLDER
    work: Path = Path("runs/nanodet-blood")
    initial: Path = FOLDER.parent / "nanodet-coco" / "1" / "model.onnx"
    """The network to start from."""
    height: int = 384
    width: int = 512
    stretch: bool = True
    transpose: bool = True


def read(folder: Path, part: str) -> list[Labelled]:
    """The pictures of a split with their boxes."""
    return [
        Labelled(
            name,
            Image.open(io.BytesIO(picture(folder, name))).convert("RGB"),
            np.array([LABELS.index(label) for label, _ in objects], np.int64),
            np.array([box for _, box in objects], np.float32).reshape(-1, 4),
        )
        for name, objects in boxes(folder, part).items()
    ]


def main(config: Config) -> None:
    """Data, network, training, graph, calibration, card."""
    start(config)
    folder = BCCD.folder(config.data)
    train, validation = read(folder, "train"), read(folder, "val")

    network = with_labels(from_graph(config.initial), SOURCES)
    network = finetune.finetune(network, train, config, look(validation, LABELS, config))

    version = config.out / "1"
    write_graph(network, version, config, train[::2], in_eight_bits=False)
    figures = calibrate(version, validation, LABELS)
    write_golden(
        version, [{"image": f"golden/BloodImage_{number}.jpg"} for number in ("00001", "00003")], tolerance=0.03
    )
    rows = [(name, f"{100 * value:.1f} %") for name, value in figures.items()]
    write_block(config.out / "card.md", "validation", [*table(("on validation pictures", ""), rows), ""])
    write_block(config.out / "card.md", "data", data_table(config.data, BCCD))


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
