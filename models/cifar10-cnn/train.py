"""Train the CIFAR-10 image classifier from random weights, score it once on the official test pictures, export it.

    python models/cifar10-cnn/train.py --data DIR              # versions 1 and 2: train, evaluate, export, check
    python models/cifar10-cnn/train.py --data DIR --epochs 1 --subset 10000 --evaluate-test false --out /tmp/try

DIR holds a folder `cifar10` with `train_1.webp` ... `train_5.webp` and `test.webp` (lossless mosaics of 100x100 tiles
of 32x32, in the official order) and `labels.npz` (`train_labels`, `test_labels`, `class_names`). These are the 60,000
pictures of https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009). Version 3, the default, is made by `finetune.py`.

A run writes a checkpoint after each epoch and continues from it when started again with the same flags. One CPU core
that knows bfloat16 (AVX512-BF16 or AMX) needs about 50 minutes. Needs torch, numpy, onnx, onnxruntime and pillow.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.

References:
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single A100 GPU" (2024), arXiv:2404.00498: the network's shape, the
        frozen whitening stem, the alternating flip.
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    Page, "How to Train Your ResNet" (2018): patch whitening, a short schedule with large steps.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from graph import Graph, Novelty
from onnx import numpy_helper
from pictures import Augmentation, Pictures, read_train
from publishing import Options, Version, check_equal, in_batches, publish
from torch import Tensor, nn

from service.cpu import processor_name
from service.uncertainty.fitting import fit_temperature
from training.flags import read_flags
from training.loop import save_state
from training.quantise import to_int8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Every knob; each becomes a command-line flag."""

    initial: Path | None = None
    """An exported network to go on from, instead of random weights."""
    mirror: bool = True
    """Whether the graph looks at each picture and its mirror image and averages: twice the cost."""

    # Schedule
    epochs: float = 14.0
    batch_size: int = 500
    low_size: int = 24
    """Height and width of the pictures in the first epochs, which then cost about half (pixels)."""
    low_share: float = 0.55
    """Share of the epochs trained at `low_size`."""
    reframe_last: float = 0.25
    """What `reframe` is in the epochs at full size."""

    # Optimiser
    muon_lr: float = 0.12
    muon_momentum: float = 0.6
    adam_lr: float = 0.01
    """For the biases and for the classifier."""
    adam_decay: float = 0.01
    warmup_share: float = 0.03
    whiten_epochs: float = 3.0
    """Epochs during which the stem's bias is trained."""


# --------------------------------------------------------------------------------------------------------------- model


class Group(nn.Module):
    """Two 3x3 convolutions; the first may halve the map. BatchNorm has no scale, so it folds into the convolution even
    though pooling stands between them (a positive factor passes through a maximum)."""

    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.pool = pool
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.max_pool2d(x, 2) if self.pool else x
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))


class Network(nn.Module):
    """Pictures float (N, C, H, W), 0..255 -> activation maps (N, K, h, w); their spatial mean is the logits."""

    widths = (64, 256, 256)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2)
        inputs = (24, *self.widths)
        self.groups = nn.ModuleList(Group(inputs[i], inputs[i + 1], pool=i < 2) for i in range(3))
        self.classifier = nn.Conv2d(self.widths[-1], classes, 1, bias=False)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the stem to the whitened principal components of 2x2 patches, each with both signs, and freeze it.

        Normalisation to zero mean and unit variance per channel is folded in, so the stem reads raw 0..255 pixels.
        """
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
        patches = ((images - mean[:, None, None]) / std[:, None, None]).unfold(2, 2, 1).unfold(3, 2, 1)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(12, 3, 2, 2).float()
        filters = torch.cat([filters, -filters]) / std[:, None, None]
        self.stem.weight.copy_(filters)
        self.stem.weight.requires_grad_(False)
        self.stem.bias.copy_(-(filters.sum((2, 3)) @ mean))

    def features(self, x: Tensor) -> Tensor:
        """What the classifier reads: (N, C, H, W) -> (N, features, h, w)."""
        with torch.autocast("cpu", enabled=False):  # whitening cancels large terms, which bfloat16 would lose
            x = F.gelu(self.stem(x))
        for group in self.groups:
            x = group(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


@torch.no_grad()
def read_exported(network: Network, path: Path, images: Tensor, labels: Tensor, smoothing: float) -> None:
    """Give a network the weights of one of the same shape that was exported before, so that it computes the same.

    BatchNorm was folded into the file's weights; its statistics are measured anew on `images` (N, C, H, W). The
    classifier is scaled to the label-smoothed loss again, from the temperature that it was exported with.
    """
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in onnx.load(path).graph.initializer}
    network.stem.weight.copy_(weights["stem.weight"])
    network.stem.bias.copy_(weights["stem.bias"])
    x = F.gelu(network.stem(images))
    for i, group in enumerate(network.groups):
        for j, (conv, norm) in enumerate([(group.conv1, group.norm1), (group.conv2, group.norm2)]):
            weight, bias = weights[f"groups.{i}.conv{j + 1}.weight"], weights[f"groups.{i}.conv{j + 1}.bias"]
            lengths = weight.flatten(1).norm(dim=1)
            conv.weight.copy_(weight / lengths[:, None, None, None])
            x = conv(x)
            x = F.max_pool2d(x, 2) if group.pool and j == 0 else x
            norm.running_mean.copy_(x.mean((0, 2, 3)))
            norm.running_var.copy_(x.var((0, 2, 3)))
            norm.bias.copy_(bias + norm.running_mean * lengths)
            x = F.gelu(norm.eval()(x))
            norm.train()
    network.classifier.weight.copy_(weights["classifier.weight"])
    logits = network.classifier(x).mean((2, 3))
    divisors = torch.exp(torch.linspace(np.log(0.2), np.log(5.0), 200))
    losses = [F.cross_entropy(logits / divisor, labels, label_smoothing=smoothing) for divisor in divisors]
    network.classifier.weight.div_(divisors[int(torch.stack(losses).argmin())])


@torch.no_grad()
def maps_and_features(network: Network, images: np.ndarray, mirror: bool) -> tuple[Tensor, Tensor]:
    """Activation maps (N, K, h, w) and mean features (N, C), float32, of uint8 pictures (N, H, W, C).

    With `mirror`, both are averages over the picture and its mirror image, whose map is mirrored back.
    """
    network.eval()
    maps, features = [], []
    for rows in torch.from_numpy(np.ascontiguousarray(images)).split(250):
        x = rows.permute(0, 3, 1, 2).float()
        seen = [
            network.features(way.contiguous(memory_format=torch.channels_last))
            for way in ([x, x.flip(3)] if mirror else [x])
        ]
        own = (seen[0] + seen[1].flip(3)) / 2 if mirror else seen[0]
        maps.append(network.classifier(own))
        features.append(own.mean((2, 3)))
    return torch.cat(maps), torch.cat(features)


def logits_of(network: Network, images: np.ndarray, mirror: bool = False) -> Tensor:
    """Logits (N, K) in float32 for uint8 pictures (N, H, W, C)."""
    return maps_and_features(network, images, mirror)[0].mean((2, 3))


# ----------------------------------------------------------------------------------------------------------- optimiser


def orthogonalise(matrix: Tensor, steps: int = 3) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values become about 1 (quintic Newton-Schulz iteration)."""
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose step is orthogonalised; the norm of the filters, which BatchNorm undoes, is kept."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                velocity = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                direction = parameter.grad.add(velocity, alpha=group["momentum"])
                parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                update = orthogonalise(direction.reshape(len(direction), -1)).reshape(parameter.shape)
                parameter.add_(update, alpha=-group["lr"])


# ------------------------------------------------------------------------------------------------------------ training


def first_network(config: Config, training: Pictures, classes: int) -> Network:
    """The network that the training starts from: the exported one, if there is one, else random."""
    network = Network(classes)
    network.whiten(torch.from_numpy(training.images[:5000]).permute(0, 3, 1, 2).float())
    if config.initial:
        sample = torch.from_numpy(training.images[:1000]).permute(0, 3, 1, 2).float()
        labels = torch.from_numpy(training.labels[:1000])
        read_exported(network, config.initial, sample, labels, config.label_smoothing)
    return network


def train(config: Config, training: Pictures, held_out: Pictures, names: list[str]) -> tuple[Network, dict[str, float]]:
    """Fit the network, continuing from the checkpoint if there is one; returns it with what that took."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = first_network(config, training, len(names))
    network = network.to(memory_format=torch.channels_last)
    data = Augmentation(config, training, generator)

    filters = [w for name, w in network.named_parameters() if "groups" in name and w.ndim == 4]
    biases = [norm.bias for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    muon = Muon(filters, lr=config.muon_lr, momentum=config.muon_momentum)
    adam = torch.optim.AdamW(
        [
            {"params": [*biases, *network.classifier.parameters()], "weight_decay": config.adam_decay},
            {"params": [network.stem.bias], "weight_decay": 0.0},
        ],
        lr=config.adam_lr,
        betas=(0.85, 0.98),
    )
    steps_an_epoch = len(training) // config.batch_size
    steps = round(config.epochs * steps_an_epoch)
    first_epoch, spent_s, cpu_s, step = 0, 0.0, 0.0, 0

    path = config.checkpoint
    if config.resume and path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        generator.set_state(state["generator"])
        data.flip_first = state["flip_first"]
        first_epoch, spent_s, cpu_s, step = state["epoch"], state["spent_s"], state["cpu_s"], state["step"]
        print(f"continuing after epoch {first_epoch}", flush=True)

    def progress_at(step: int, spent_s: float) -> float:
        return max(step / steps if steps else 1.0, spent_s / config.budget_s if config.budget_s else 0.0)

    begin, cpu_begin = time.perf_counter() - spent_s, time.process_time() - cpu_s
    epoch, progress = first_epoch, progress_at(step, spent_s)
    while progress < 1:
        size = config.low_size if progress < config.low_share else 32
        data.config = config if size < 32 else dataclasses.replace(config, reframe=config.reframe_last)
        network.train()
        total, correct, seen, batches = 0.0, 0, 0, 0
        for images, labels in data.epoch(epoch, config.batch_size, size):
            progress = progress_at(step, time.perf_counter() - begin)
            if progress >= 1:
                break
            scale = min(1.0, progress / config.warmup_share + 0.01) * (1 - progress)
            for group in [*muon.param_groups, *adam.param_groups]:
                group["lr"] = scale * group.setdefault("initial_lr", group["lr"])
            if step >= config.whiten_epochs * steps_an_epoch:
                adam.param_groups[1]["lr"] = 0.0
            with torch.autocast("cpu", dtype=torch.bfloat16):
                maps = network(images.contiguous(memory_format=torch.channels_last))
            logits = maps.float().mean((2, 3))
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            for optimiser in (muon, adam):
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            muon.step()
            adam.step()
            step += 1
            total += loss.item()
            correct += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
            batches += 1
        epoch += 1
        spent_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
        progress = progress_at(step, spent_s)
        sample = held_out[slice(1000)]
        accuracy = (logits_of(network, sample.images).argmax(1).numpy() == sample.labels).mean()
        print(
            f"epoch {epoch:2d}  size {size}  loss {total / max(1, batches):.4f}"
            f"  train {correct / max(1, seen):.4f}  held out {accuracy:.4f}  {spent_s:.0f} s  {cpu_s:.0f} s of CPU",
            flush=True,
        )
        state = {"network": network.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "step": step}
        state |= {
            "generator": generator.get_state(),
            "flip_first": data.flip_first,
            "epoch": epoch,
            "spent_s": spent_s,
            "cpu_s": cpu_s,
        }
        save_state(path, state)
    return network.eval(), {"seconds": spent_s, "cpu_seconds": cpu_s, "epochs": step / steps_an_epoch}


# -------------------------------------------------------------------------------------------------------------- export


def to_onnx(network: Network, mirror: bool, novelty: Novelty) -> onnx.ModelProto:
    """The float32 graph; with `mirror`, the picture and its mirror image are run as one batch."""
    graph = Graph(32)

    def mirrored(x: str) -> str:
        return graph("Slice", x, graph.ints(-1), graph.ints(np.iinfo(np.int64).min), graph.ints(3), graph.ints(-1))

    x = graph("Concat", graph.pixels, mirrored(graph.pixels), axis=0) if mirror else graph.pixels
    stem = graph.weight("stem.weight", network.stem.weight), graph.weight("stem.bias", network.stem.bias)
    x = graph("Gelu", graph("Conv", x, *stem, kernel_shape=[2, 2]))
    for i, group in enumerate(network.groups):
        x = graph.normalised(x, group.conv1, group.norm1, f"groups.{i}.conv1")
        x = graph("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if group.pool else x
        x = graph("Gelu", x)
        x = graph("Gelu", graph.normalised(x, group.conv2, group.norm2, f"groups.{i}.conv2"))
    if mirror:
        ways = graph.several("Split", x, outputs=2, axis=0, num_outputs=2)
        x = graph("Mean", ways[0], mirrored(ways[1]))
    classifier = graph.weight("classifier.weight", network.classifier.weight)
    graph("Conv", x, classifier, kernel_shape=[1, 1], name="activation_map")
    return graph.finished(graph.spatial_mean(x), novelty, network.classifier.out_channels, cells=7)


def main(config: Config) -> None:
    """Data -> model -> loop -> calibrate -> export -> check -> evaluate."""
    torch.set_num_threads(config.threads)
    training, names = read_train(config.data / "cifar10")
    training, held_out = training[: -config.held_out], training[-config.held_out :]
    training = training[: config.subset or len(training)]
    print(f"{len(training)} training pictures, {len(held_out)} held out", flush=True)
    network, effort = train(config, training, held_out, names)

    temperature = fit_temperature(logits_of(network, held_out.images, config.mirror).numpy(), held_out.labels)
    network.classifier.weight.data.div_(temperature)
    seen = training[: config.novelty_pictures]
    maps, features = maps_and_features(network, seen.images, config.mirror)
    novelty = Novelty.fit(features, maps.mean((2, 3)), torch.from_numpy(seen.labels), config.distance_weight)
    model = to_onnx(network, config.mirror, novelty)
    few = held_out.images[-256:]
    maps, features = maps_and_features(network, few, config.mirror)
    logits = maps.mean((2, 3))
    expected = {"activation_map": maps, "logits": logits, "novelty": novelty(features, logits)}
    difference = check_equal(model, few, expected, tolerance=2e-4)
    # whitening cancels large terms, so the stem stays float32, as does the classifier
    quantised = to_int8(
        model, in_batches(seen.images[:300]), exact=("stem.weight", "classifier.weight"), seven_bits=True
    )
    versions = {"2": Version(quantised, 0.03, "hamming"), "1": Version(model, 0.002, "hamming")}
    core = f"an {processor_name()}"
    notes = [
        f"Version 2: {sum(p.numel() for p in network.parameters()):,} parameters; temperature {temperature:.3f}; largest "
        f"difference between ONNX Runtime and torch, before the weights are rounded, {difference:.1e}",
        f"Last run of its training: {effort['epochs']:.1f} epochs, {effort['cpu_seconds'] / 60:.0f} minutes of a core of "
        f"{core} with bfloat16 ({effort['seconds'] / 60:.0f} minutes by the clock, the core shared), "
        f"torch {torch.__version__.split('+')[0]}",
    ]
    publish(config, names, held_out, versions, notes)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
