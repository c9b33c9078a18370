"""Train the fruit detector: NanoDet-g, which knows COCO's apples, bananas and oranges, learns those of a collection.

    PYTHONPATH=. python models/nanodet-fruit/train.py --data DIR

DIR holds `fruit_detection/fruit_416.zip`; `fruit.py` says what that is and where it is from. A sixth of the official
training pictures is put aside for choices and for the calibration. A run goes on from its checkpoint when started again.
One core that knows bfloat16 needs about ten minutes. Needs torch, numpy, onnx, onnxruntime, pillow and pycocotools.
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
from fruit import FRUIT, LABELS, boxes, picture  # noqa: E402
from labelled import Labelled  # noqa: E402
from nanodet import from_graph, with_labels  # noqa: E402
from publishing import calibrate, look, write_graph  # noqa: E402

from training.card import data_table, table, write_block  # noqa: E402
from training.data import split  # noqa: E402
from training.flags import read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.loop import start  # noqa: E402

SOURCES = ([47], [46], [49])
"""Of the same things among COCO's labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(finetune.Config):
    """What differs from a training of blood cells."""

    out: Path = FOLDER
    work: Path = Path("runs/nanodet-fruit")
    initial: Path = FOLDER.parent / "nanodet-coco" / "1" / "model.onnx"
    """The network to start from."""
    height: int = 416
    width: int = 416
    stretch: bool = False
    least_scale: float = 0.6
    most_scale: float = 1.5
    stretching: float = 0.25
    epochs: int = 16
    lr: float = 2e-4
    head_lr: float = 4e-4
    look_every: int = 3


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
    samples = {sample.name: sample for sample in read(FRUIT.folder(config.data), "train")}
    parts = split(samples, {"training": 5 / 6, "validation": 1 / 6})
    train, validation = ([samples[name] for name in parts[part]] for part in ("training", "validation"))

    network = with_labels(from_graph(config.initial), SOURCES)
    network = finetune.finetune(network, train, config, look(validation, LABELS, config))

    version = config.out / "1"
    write_graph(network, version, config, train[::2], in_eight_bits=True)
    figures = calibrate(version, validation, LABELS)
    write_golden(version, [{"image": f"golden/{name}.webp"} for name in ("orange", "fruits")], tolerance=0.03)
    rows = [(name, f"{100 * value:.1f} %") for name, value in figures.items()]
    write_block(config.out / "card.md", "validation", [*table(("on validation pictures", ""), rows), ""])
    write_block(config.out / "card.md", "data", data_table(config.data, FRUIT))


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
