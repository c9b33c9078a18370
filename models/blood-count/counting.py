"""The network that counts: EfficientNet-Lite0's first blocks, maps of where cells are, and remembered pictures.

    picture -> trunk -> maps at strides 8 and 16 -> density maps, whose sums are counts
                     -> mean and spread of each channel -> Recall

Tensor letters: N pictures, C channels, H rows, W columns, V values.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet import Network
from recall import Recall
from torch import Tensor, nn

HEIGHT, WIDTH = 336, 448
"""Of the picture that the network sees (pixels)."""
STRIDE = 8
"""Of the density maps (pixels)."""
TAPS = (4, 7, 10)
"""Blocks whose maps the density is read from: strides 8, 16, 16."""
CHANNELS = (40, 80, 112)
POOLED = (-1, 2, 5, 7)
"""Blocks whose channels' means and spreads say what kind of picture it is; -1: the stem."""


class Trunk(nn.Module):
    """Pixels float (N, 3, H, W), 0..255 -> the maps of `TAPS`, and features (N, C) of the picture as a whole."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.stem, self.blocks = network.stem, network.blocks[: max(TAPS) + 1]

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem((pixels - 127) / 128)
        maps, pooled = [], statistics(x)
        for place, block in enumerate(self.blocks):
            x = block(x)
            maps += [x] if place in TAPS else []
            pooled += statistics(x) if place in POOLED else []
        return maps, torch.cat(pooled, 1)


def statistics(x: Tensor) -> list[Tensor]:
    """Mean and spread of each channel, both (N, C)."""
    mean = x.mean((2, 3))
    return [mean, (x - mean[:, :, None, None]).square().mean((2, 3)).sqrt()]


class Density(nn.Module):
    """Maps of `TAPS` -> density (N, V, H, W), whose sum over the picture is the number of each kind."""

    def __init__(self, values: int, width: int, drop: float) -> None:
        super().__init__()
        self.enter = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, width, 1))
            for channels in CHANNELS
        )
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.drop = nn.Dropout2d(drop)
        self.leave = nn.Conv2d(width, values, 1)
        nn.init.constant_(self.leave.bias, -5.0)  # hardly anything, anywhere

    def forward(self, maps: list[Tensor]) -> Tensor:
        fine, *coarse = (layer(x) for layer, x in zip(self.enter, maps, strict=True))
        x = fine + F.interpolate(sum(coarse), scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.softplus(self.leave(F.relu(self.middle(self.drop(F.relu(x))))))


class Curve(nn.Module):
    """A rising line through points, level beyond the ends: (N,) -> (N,)."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        slopes = np.diff(y) / np.diff(x)
        self.first = float(y[0])
        self.register_buffer("corners", torch.from_numpy(x).float())
        self.register_buffer("turns", torch.from_numpy(np.diff(slopes, prepend=0, append=0)).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.first + F.relu(x[:, None] - self.corners) @ self.turns


class Counter(nn.Module):
    """Pixels uint8 (N, H, W, 3) -> values (N, V), spread (N, V), activation maps (N, V, h, w).

    Args:
        trunk: see there.
        densities: of several trainings; their mean counts.
        recall: red cells, from the features and the density's sum.
        platelets: platelets, from the density's sum.
    """

    def __init__(self, trunk: Trunk, densities: list[Density], recall: Recall, platelets: Curve) -> None:
        super().__init__()
        self.trunk, self.densities, self.recall, self.platelets = trunk, nn.ModuleList(densities), recall, platelets

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, pooled = self.trunk(pixels.float().permute(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)
        density = sum(one(maps) for one in self.densities) / len(self.densities)
        red, platelets = density.sum((2, 3)).unbind(1)
        values = torch.stack((self.recall(with_count(pooled, red)), self.platelets(platelets)), 1)
        spread = torch.stack((torch.ones_like(red), platelet_spread(platelets)), 1)
        return values, spread, density


def with_count(pooled: Tensor, red: Tensor) -> Tensor:
    """The features that red cells are recalled by: those of the picture, and the density's sum, `COPIES` times."""
    return torch.cat((pooled, red[:, None].expand(-1, COPIES)), 1)


COPIES = 24
"""How often the density's sum stands among the 432 other features: what it weighs in the distance."""


def platelet_spread(count: Tensor) -> Tensor:
    """How far off a number of platelets may be, relative to others: counts vary as their square root does."""
    return (count + 0.1).sqrt()
