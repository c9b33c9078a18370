"""Teach NanoDet-g other labels: which cells learn which boxes, the losses, the loop.

Tensor letters: N pictures, M boxes of a picture, A cells of all levels, K labels.

References:
    Feng et al., "TOOD: Task-aligned One-stage Object Detection" (2021), arXiv:2108.07755: which cells learn a box, and
        the score they learn.
    Li et al., "Generalized Focal Loss" (2020), arXiv:2006.04388: the loss of a distribution of distances.
    Zheng et al., "Distance-IoU Loss" (2020), arXiv:1911.08287: the loss of a box.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from labelled import Augmentation, Labelled, batch_of
from nanodet import BINS, NanoDet, boxes_of, cells
from torch import Tensor, nn

from training.loop import Average, Checkpoint, epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Augmentation):
    """Every knob of the training."""

    epochs: int = 30
    batch_size: int = 8
    lr: float = 5e-4
    """Of the backbone at its peak."""
    head_lr: float = 1e-3
    """Of the pyramid's first layers and the heads."""
    weight_decay: float = 0.02
    warmup_steps: int = 60
    average: float = 0.995
    """Share of the averaged weights that stays in a step."""
    look_every: int = 4
    """Epochs between two looks at the validation pictures."""
    bfloat16: bool = True
    """Whether the network's forward pass is computed in bfloat16: twice as fast where the processor knows it."""
    box_weight: float = 7.5
    """Of the boxes' loss; the scores' has 1."""
    distance_weight: float = 1.5
    """Of the loss of the distances' distributions."""
    cells_per_box: int = 10
    """That learn it, at most (count)."""


# -------------------------------------------------------------------------------------------------------------- losses


def overlaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """Intersection over union of boxes, (…, 4) and (…, 4) broadcast against each other."""
    low, high = torch.maximum(ours[..., :2], theirs[..., :2]), torch.minimum(ours[..., 2:], theirs[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (ours, theirs)]
    return shared / (areas[0] + areas[1] - shared + 1e-7)


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, places: Tensor, labels: Tensor, truth: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the cells that learn each box: those within it that already know it best.

    Args:
        scores: (N, A, K) in 0..1.
        boxes: (N, A, 4), predicted.
        places: (A, 2), centres of the cells.
        labels, truth: (N, M), -1 for none, and (N, M, 4).
        count: cells for a box.
    Returns:
        (N, A) place of the box a cell learns, (N, A) its label or -1, (N, A) score it is to give.
    """
    rows = torch.arange(len(labels))[:, None]
    there = labels >= 0
    iou = overlaps(truth[:, :, None], boxes[:, None])  # (N, M, A)
    known = scores.transpose(1, 2)[rows, labels.clamp(min=0)]  # (N, M, A)
    inside = ((places > truth[:, :, None, :2]) & (places < truth[:, :, None, 2:])).all(-1) & there[..., None]
    merit = torch.where(inside, known * iou**6 + 1e-12, 0.0)

    best, at = merit.topk(count, -1)
    chosen = torch.zeros_like(merit, dtype=torch.bool).scatter_(-1, at, best > 0)
    several = chosen.sum(1) > 1
    fittest = torch.zeros_like(chosen).scatter_(1, torch.where(inside, iou, -1.0).argmax(1, keepdim=True), True)
    chosen = torch.where(several[:, None], fittest & inside, chosen)

    merit = torch.where(chosen, merit, 0.0)
    worth = merit / (merit.amax(-1, keepdim=True) + 1e-12) * torch.where(chosen, iou, 0.0).amax(-1, keepdim=True)
    which = chosen.float().argmax(1)
    learns = chosen.any(1)
    return which, torch.where(learns, labels.gather(1, which), -1), worth.amax(1)


def box_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """1 - complete IoU of pairs (P, 4): overlap, distance of the centres, difference in shape."""
    iou = overlaps(boxes, truth)
    hull = torch.maximum(boxes[:, 2:], truth[:, 2:]) - torch.minimum(boxes[:, :2], truth[:, :2])
    away = ((boxes[:, :2] + boxes[:, 2:] - truth[:, :2] - truth[:, 2:]) / 2).square().sum(-1)
    sides, true_sides = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    angle = torch.atan(true_sides[:, 0] / true_sides[:, 1]) - torch.atan(sides[:, 0] / (sides[:, 1] + 1e-7))
    shape = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        part = shape / (1 - iou + shape + 1e-7)
    return 1 - iou + away / (hull.square().sum(-1) + 1e-7) + part * shape


def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor], config: Config) -> tuple[Tensor, list[float]]:
    """The loss of a batch, and its three parts: scores, boxes, distances."""
    pixels, labels, truth = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        logits, distances = network(pixels.float().contiguous(memory_format=torch.channels_last))
    logits, distances = logits.float(), distances.float()
    places, strides = cells(*pixels.shape[2:])
    boxes = boxes_of(distances, places, strides)
    which, learnt, worth = assign(logits.sigmoid(), boxes.detach(), places, labels, truth, config.cells_per_box)

    targets = torch.zeros_like(logits)
    n, a = torch.nonzero(learnt >= 0, as_tuple=True)
    targets[n, a, learnt[n, a]] = worth[n, a]
    total = targets.sum().clamp(min=1)
    score_loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / total
    weight = worth[n, a]
    goal = truth[n, which[n, a]]
    iou_loss = (box_loss(boxes[n, a], goal) * weight).sum() / total

    sides = torch.cat((places[a] - goal[:, :2], goal[:, 2:] - places[a]), 1) / strides[a]
    sides = sides.clamp(0, BINS - 1 - 0.01)
    below = sides.floor().long()
    share = sides - below
    chances = F.log_softmax(distances[n, a], -1)
    near = (
        chances.gather(-1, below[..., None])[..., 0] * (1 - share)
        + chances.gather(-1, below[..., None] + 1)[..., 0] * share
    )
    distance_loss = (-near.mean(-1) * weight).sum() / total
    loss = score_loss + config.box_weight * iou_loss + config.distance_weight * distance_loss
    return loss, [score_loss.item(), iou_loss.item(), distance_loss.item()]


# ---------------------------------------------------------------------------------------------------------------- loop


def finetune(
    network: NanoDet, train: Sequence[Labelled], config: Config, look: Callable[[NanoDet], dict[str, float]]
) -> NanoDet:
    """Train, and return the network with the averaged weights.

    Args:
        look: figures of the validation pictures for the line of an epoch.
    """
    network = network.to(memory_format=torch.channels_last)
    quick = [value for name, value in network.named_parameters() if name.startswith(("heads", "lateral"))]
    rest = [value for name, value in network.named_parameters() if not name.startswith(("heads", "lateral"))]
    optimiser = torch.optim.AdamW(
        [{"params": rest, "peak": config.lr}, {"params": quick, "peak": config.head_lr}],
        weight_decay=config.weight_decay,
    )
    average = Average(network, config.average)
    checkpoint = Checkpoint(config, network=network, optimiser=optimiser, average=average)
    steps = len(train) // config.batch_size
    for epoch in epochs(config.epochs, checkpoint):
        rng = np.random.default_rng((config.seed, epoch.number))
        order = rng.permutation(len(train))
        share = config.crop if epoch.progress < config.crop_share else 1.0
        parts = np.zeros(3)
        network.train()
        for step in range(steps):
            done = epoch.number * steps + step
            rise = min(1.0, (done + 1) / config.warmup_steps)
            fall = 0.5 + 0.5 * math.cos(math.pi * done / (config.epochs * steps))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rise * (0.01 + 0.99 * fall)
            chosen = [train[place] for place in order[step * config.batch_size : (step + 1) * config.batch_size]]
            loss, its_parts = loss_of(network, batch_of(chosen, config, share, rng), config)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimiser.step()
            average.update()
            parts += its_parts
        epoch.log(**dict(zip(("scores", "boxes", "distances"), (parts / steps).tolist(), strict=True)))
        if (epoch.number + 1) % config.look_every == 0:
            average.swap()
            epoch.log(**look(network.eval()))
            average.swap()
    average.swap()
    return network.eval()
