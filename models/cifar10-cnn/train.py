"""Train the CIFAR-10 image classifier, score it once on the official test pictures and export it to ONNX.

    python models/cifar10-cnn/train.py --data DIR              # everything: train, evaluate, export, check
    python models/cifar10-cnn/train.py --data DIR --epochs 1 --subset 10000 --evaluate-test false --out /tmp/try

DIR holds a folder `cifar10` with `train_1.webp` ... `train_5.webp` and `test.webp` (lossless mosaics of 100x100 tiles
of 32x32, in the official order) and `labels.npz` (`train_labels`, `test_labels`, `class_names`). These are the 60,000
pictures of https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009). If DIR also holds `flickr8k`, the result is tried on photographs of dogs from there.

A run writes a checkpoint after each epoch and continues from it when started again with the same flags. One CPU core
that knows bfloat16 (AVX512-BF16 or AMX) needs about 50 minutes. Needs torch, numpy, onnx, onnxruntime and pillow.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.

References:
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single A100 GPU" (2024), arXiv:2404.00498: the network's shape, the
        frozen whitening stem, the alternating flip.
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    Page, "How to Train Your ResNet" (2018): patch whitening, a short schedule with large steps.
    Zhou et al., "Learning Deep Features for Discriminative Localization" (2016), arXiv:1512.04150: activation maps.
    Guo et al., "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599: temperature, calibration error.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import io
import json
import os
import platform
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

MODEL_FOLDER = Path(__file__).resolve().parent
GOLDEN_TEST_PICTURES = (0, 1, 6)
"""Positions in the test split; the pictures become the golden inputs."""
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's antialiasing filters by the names that a manifest uses."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob; each becomes a command-line flag."""

    data: str = "data"
    """Folder that contains `cifar10`."""
    out: str = str(MODEL_FOLDER)
    """Model folder to write: `1/`, and the metrics in `card.md` and `manifest.toml` where these exist."""
    checkpoint: str = "runs/cifar10-cnn/checkpoint.pt"
    """Checkpoint file; a run continues from it if it exists."""
    evaluate_test: bool = True
    """Whether to score the test split; experiments say `false` and look only at the held-out training pictures."""
    seed: int = 7
    threads: int = 1

    # Schedule
    epochs: int = 14
    budget_s: float = 0.0
    """Seconds of wall-clock for training (0: no limit); the learning rate reaches zero at whichever ends first."""
    batch_size: int = 500
    low_size: int = 24
    """Height and width of the pictures in the first epochs, which then cost about half (pixels)."""
    low_share: float = 0.55
    """Share of the epochs trained at `low_size`."""
    held_out: int = 2000
    """Training pictures kept back, for the temperature and for the choice of the resize filter."""
    subset: int = 0
    """Training pictures used (0: all that are not held out)."""

    # Optimiser
    muon_lr: float = 0.12
    muon_momentum: float = 0.6
    adam_lr: float = 0.01
    """For the biases and for the classifier."""
    adam_decay: float = 0.01
    warmup_share: float = 0.03
    whiten_epochs: float = 3.0
    """Epochs during which the stem's bias is trained."""
    label_smoothing: float = 0.2

    # Augmentation
    translate: int = 2
    """Largest shift, in pixels."""
    reframe: float = 0.5
    """Share of the pictures that are re-framed: other scale, aspect ratio and sharpness, and a fractional shift."""
    zoom_out: float = 1.25
    """Widest frame, in picture widths; the outside is mirrored."""
    zoom_in: float = 0.8
    """Tightest frame, in picture widths."""
    aspect: float = 1.35
    """Largest ratio between the horizontal and the vertical stretch, and one over it the smallest."""
    blur: float = 1.35
    """Largest widening of the resampling filter."""
    brightness: float = 0.1
    contrast: float = 0.15


# ---------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Decoded pictures, uint8 (N, H, W, C), with their labels, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows])


def read_mosaic(path: Path) -> np.ndarray:
    """Cut a mosaic of 100x100 tiles into uint8 (10000, 32, 32, 3)."""
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    return mosaic.reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def read_train(folder: Path) -> tuple[Pictures, list[str]]:
    """The 50,000 official training pictures, and the class names."""
    labels = np.load(folder / "labels.npz")
    images = np.concatenate([read_mosaic(folder / f"train_{part}.webp") for part in range(1, 6)])
    return Pictures(images, labels["train_labels"].astype(np.int64)), [str(name) for name in labels["class_names"]]


def read_test(folder: Path) -> Pictures:
    """The 10,000 official test pictures."""
    return Pictures(read_mosaic(folder / "test.webp"), np.load(folder / "labels.npz")["test_labels"].astype(np.int64))


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of each data file used, by file name."""
    names = [f"train_{part}.webp" for part in range(1, 6)] + ["test.webp", "labels.npz"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def resampling_matrix(start: Tensor, step: Tensor, blur: Tensor, size: int, source: int) -> Tensor:
    """Weights that resample one axis of each picture, bicubic and antialiased, so that two products re-frame a picture.

    Args:
        start: (N,) where the frame begins, in source pixels.
        step: (N,) source pixels per pixel of the result; negative mirrors.
        blur: (N,) widening of the filter, 1 for none.
        size: pixels of the result.
        source: pixels of the source.
    Returns:
        float32 (N, size, source); each row sums to 1. A step of 1 with a whole start copies pixels exactly.
    """
    centres = start[:, None] + (torch.arange(size) + 0.5) * step[:, None] - 0.5  # (N, size)
    widths = step.abs().clamp(min=1.0) * blur  # (N,)
    x = ((torch.arange(source) - centres[:, :, None]) / widths[:, None, None]).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
    return weights / weights.sum(-1, keepdim=True)


class Augmentation:
    """Random views of the training pictures: flip, shift, re-frame, light, at the asked size."""

    margin = 14
    """Mirrored pixels around each picture, enough for the widest and most shifted frame."""

    def __init__(self, config: Config, pictures: Pictures, generator: torch.Generator) -> None:
        images = torch.from_numpy(pictures.images).permute(0, 3, 1, 2).float()  # (N, H, W, C) -> (N, C, H, W)
        self.images = F.pad(images, (self.margin,) * 4, mode="reflect").to(torch.uint8)
        self.labels = torch.from_numpy(pictures.labels)
        self.config = config
        self.generator = generator
        self.flip_first = self._uniform(len(pictures), 0, 1) < 0.5

    def epoch(self, number: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (N, C, size, size), float 0..255, and labels (N,). Each picture is mirrored in every second epoch."""
        order = torch.randperm(len(self.labels), generator=self.generator)
        flips = self.flip_first ^ bool(number % 2)
        for rows in order.split(self.config.batch_size):
            if len(rows) == self.config.batch_size:
                yield self._view(self.images[rows].float(), flips[rows], size), self.labels[rows]

    def _view(self, images: Tensor, flip: Tensor, size: int) -> Tensor:
        config, count, source = self.config, len(images), images.shape[-1]
        reframed = self._uniform(count, 0, 1) < config.reframe
        zoom = torch.exp(self._uniform(count, np.log(config.zoom_in), np.log(config.zoom_out)))
        stretch = torch.exp(self._uniform(count, -np.log(config.aspect) / 2, np.log(config.aspect) / 2))
        blur = torch.where(reframed, self._uniform(count, 1, config.blur), torch.ones(()))
        matrices = []
        for side in (zoom * stretch, zoom / stretch):
            span = torch.where(reframed, 32 * side, torch.full((), 32.0))
            slack = (32 - span).abs() / 2 * 0.8
            shift = self._uniform(count, -1, 1)
            shift = torch.where(reframed, shift * slack.clamp(min=1.0), (shift * (config.translate + 0.5)).round())
            start = source / 2 - span / 2 + shift
            step = span / size
            if matrices:  # the second side is the horizontal one
                start, step = torch.where(flip, start + span, start), torch.where(flip, -step, step)
            matrices.append(resampling_matrix(start, step, blur, size, source))
        rows, columns = matrices
        views = rows[:, None] @ images @ columns[:, None].transpose(2, 3)
        gain = self._uniform(count, 1 - config.contrast, 1 + config.contrast)[:, None, None, None]
        offset = self._uniform(count, -config.brightness, config.brightness)[:, None, None, None] * 255
        lit = (views - 128) * gain + 128 + offset
        return torch.where((self._uniform(count, 0, 1) < 0.5)[:, None, None, None], lit, views).clamp(0, 255)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low


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

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # whitening cancels large terms, which bfloat16 would lose
            x = F.gelu(self.stem(x))
        for group in self.groups:
            x = group(x)
        return self.classifier(x)


@torch.no_grad()
def activation_maps(network: Network, images: np.ndarray) -> Tensor:
    """Maps (N, K, h, w) in float32 for uint8 pictures (N, H, W, C)."""
    network.eval()
    batches = torch.from_numpy(np.ascontiguousarray(images)).split(250)
    return torch.cat(
        [network(x.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)) for x in batches]
    )


def logits_of(network: Network, images: np.ndarray) -> Tensor:
    """Logits (N, K) in float32 for uint8 pictures (N, H, W, C)."""
    return activation_maps(network, images).mean((2, 3))


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


def train(config: Config, training: Pictures, held_out: Pictures, classes: int) -> tuple[Network, dict[str, float]]:
    """Fit the network, continuing from the checkpoint if there is one; returns it with what that took."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = Network(classes)
    network.whiten(torch.from_numpy(training.images[:5000]).permute(0, 3, 1, 2).float())
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
    steps = config.epochs * steps_an_epoch
    first_epoch, spent_s, cpu_s, step = 0, 0.0, 0.0, 0

    path = Path(config.checkpoint)
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        generator.set_state(state["generator"])
        data.flip_first = state["flip_first"]
        first_epoch, spent_s, cpu_s, step = state["epoch"], state["spent_s"], state["cpu_s"], state["step"]
        print(f"continuing after epoch {first_epoch}", flush=True)

    def progress_at(step: int, spent_s: float) -> float:
        return max(step / steps, spent_s / config.budget_s if config.budget_s else 0.0)

    begin, cpu_begin = time.perf_counter() - spent_s, time.process_time() - cpu_s
    epoch, progress = first_epoch, progress_at(step, spent_s)
    while progress < 1:
        size = config.low_size if progress < config.low_share else 32
        network.train()
        total, correct, seen = 0.0, 0, 0
        for images, labels in data.epoch(epoch, size):
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
        epoch += 1
        spent_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
        progress = progress_at(step, spent_s)
        sample = held_out[slice(1000)]
        accuracy = (logits_of(network, sample.images).argmax(1).numpy() == sample.labels).mean()
        print(
            f"epoch {epoch:2d}  size {size}  loss {total / max(1, seen // config.batch_size):.4f}"
            f"  train {correct / max(1, seen):.4f}  held out {accuracy:.4f}  {spent_s:.0f} s  {cpu_s:.0f} s of CPU",
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"network": network.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "step": step}
        state |= {
            "generator": generator.get_state(),
            "flip_first": data.flip_first,
            "epoch": epoch,
            "spent_s": spent_s,
            "cpu_s": cpu_s,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return network.eval(), {"seconds": spent_s, "cpu_seconds": cpu_s, "epochs": step / steps_an_epoch}


def temperature_of(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits that makes the held-out likelihood best."""
    grid = torch.exp(torch.linspace(np.log(0.2), np.log(5.0), 400))
    return float(min(grid, key=lambda t: F.cross_entropy(logits / t, labels).item()))


# ---------------------------------------------------------------------------------------------------------- evaluation


def enlarged(images: np.ndarray, side: int, name: str, jpeg_quality: int | None = None) -> np.ndarray:
    """The pictures after they were enlarged to `side` (bicubic), maybe saved as JPEG, and shrunk again by `name`."""
    rows = []
    for image in images:
        large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        if jpeg_quality is not None:
            buffer = io.BytesIO()
            large.save(buffer, "JPEG", quality=jpeg_quality)
            large = Image.open(buffer).convert("RGB")
        rows.append(np.asarray(large.resize((32, 32), FILTERS[name])))
    return np.stack(rows)


def accuracy_of(network: Network, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pictures whose best class is the label."""
    return float((logits_of(network, images).argmax(1).numpy() == labels).mean())


def choose_filter(network: Network, held_out: Pictures) -> tuple[str, dict[str, float]]:
    """The resize filter that keeps most accuracy on held-out training pictures enlarged eightfold and shrunk again."""
    scores = {name: accuracy_of(network, enlarged(held_out.images, 256, name), held_out.labels) for name in FILTERS}
    return max(scores, key=lambda name: scores[name]), scores


def dog_photographs(folder: Path, limit: int = 300) -> list[Image.Image]:
    """Photographs of Flickr8k that show one dog and nobody else, to go by all five captions; `limit` by file name.

    Flickr8k is for research only: the pictures are looked at and never stored. `folder` holds `captions.json.gz`
    (`captions`: file name -> five strings) and `images_112.zip` (`<name>.webp`, squeezed to a square).
    """
    captions = json.loads(gzip.decompress((folder / "captions.json.gz").read_bytes()))["captions"]
    dog = re.compile(r"\bdog\b")
    company = re.compile(
        r"\b(dogs|two|three|several|group|another|puppies|man|men|woman|women|boys?|girls?|people|persons?|child|children|kids?|hands?"
        r"|lady|someone|couple|owner|he|she|his|her|horses?|cat|birds?|ducks?|cow|sheep|deer|animals|car|truck|boat)\b"
    )
    texts = {name: [text.lower() for text in five] for name, five in captions.items()}
    names = [n for n, five in sorted(texts.items()) if all(dog.search(t) and not company.search(t) for t in five)]
    with zipfile.ZipFile(folder / "images_112.zip") as archive:
        return [Image.open(io.BytesIO(archive.read(f"{Path(n).stem}.webp"))).convert("RGB") for n in names[:limit]]


def calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equally wide bins of the top score; scores are float (N, K)."""
    top, right = scores.max(1), scores.argmax(1) == labels
    which = np.minimum((top * bins).astype(int), bins - 1)
    return float(
        sum(abs(right[which == b].mean() - top[which == b].mean()) * (which == b).mean() for b in set(which.tolist()))
    )


# -------------------------------------------------------------------------------------------------------------- export


def to_onnx(network: Network) -> onnx.ModelProto:
    """The float32 graph: `image` uint8 (batch, 32, 32, 3) -> `logits` (batch, K), `activation_map` (batch, K, h, w)."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def constant(name: str, value: Tensor | np.ndarray) -> str:
        array = value.detach().contiguous().numpy() if isinstance(value, Tensor) else value
        weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def normalised(x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, name: str) -> str:
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).double()
        weight = (conv.weight.double() * scale[:, None, None, None]).float()
        bias = (norm.bias.double() - norm.running_mean.double() * scale).float()
        filters, shifts = constant(f"{name}.weight", weight), constant(f"{name}.bias", bias)
        return add("Conv", x, filters, shifts, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    x = add("Cast", "image", to=TensorProto.FLOAT)
    x = add("Transpose", x, perm=[0, 3, 1, 2])
    x = add(
        "Conv",
        x,
        constant("stem.weight", network.stem.weight),
        constant("stem.bias", network.stem.bias),
        kernel_shape=[2, 2],
    )
    x = add("Gelu", x)
    for i, group in enumerate(network.groups):
        x = normalised(x, group.conv1, group.norm1, f"groups.{i}.conv1")
        x = add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if group.pool else x
        x = add("Gelu", x)
        x = add("Gelu", normalised(x, group.conv2, group.norm2, f"groups.{i}.conv2"))
    add(
        "Conv",
        x,
        constant("classifier.weight", network.classifier.weight),
        kernel_shape=[1, 1],
        output="activation_map",
    )
    add("ReduceMean", "activation_map", constant("spatial_axes", np.array([2, 3])), keepdims=0, output="logits")

    classes, side = network.classifier.out_channels, 7
    graph = helper.make_graph(
        nodes,
        "cifar10-cnn",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("activation_map", TensorProto.FLOAT, ["batch", classes, side, side]),
        ],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name="gridloop"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A single-threaded CPU session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def milliseconds(session: onnxruntime.InferenceSession, images: np.ndarray, batch_size: int) -> float:
    """Median milliseconds of CPU per picture over 30 runs; other load on the machine counts less than by the clock."""
    batch, times = np.ascontiguousarray(images[:batch_size]), []
    for _ in range(35):
        begin = time.process_time()
        session.run(None, {"image": batch})
        times.append(time.process_time() - begin)
    return float(np.median(times[5:])) * 1000 / batch_size


def largest_difference(session: onnxruntime.InferenceSession, network: Network, images: np.ndarray) -> float:
    """How far ONNX Runtime and torch are apart on these pictures, in logits and activation maps."""
    maps = activation_maps(network, images)
    logits, onnx_maps = session.run(["logits", "activation_map"], {"image": np.ascontiguousarray(images)})
    return max(np.abs(onnx_maps - maps.numpy()).max(), np.abs(logits - maps.mean((2, 3)).numpy()).max()).item()


def write_golden(folder: Path, network: Network, pictures: Pictures, names: list[str]) -> None:
    """A few pictures with what torch answers for them."""
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    entries = []
    for row in GOLDEN_TEST_PICTURES:
        image = pictures.images[row]
        file = f"golden/{names[pictures.labels[row]]}.png"
        Image.fromarray(image).save(folder / file, optimize=True)
        scores = logits_of(network, image[None]).softmax(1)[0]
        best = scores.topk(3)
        predictions = [
            {"label": names[index], "score": round(score, 6), "index": index}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        output = {"results": [{"predictions": predictions}]}
        entries.append({"input": {"image": file, "top_k": 3}, "output": output, "tolerance": 0.002})
    (folder / "golden.json").write_text(json.dumps(entries, indent=2) + "\n")


# -------------------------------------------------------------------------------------------------------------- report


def write_card(path: Path, lines: list[str]) -> None:
    """Put the metric lines between the card's markers."""
    text = path.read_text()
    block = "<!-- metrics -->\n" + "\n".join(lines) + "\n<!-- /metrics -->"
    path.write_text(re.sub(r"<!-- metrics -->.*?<!-- /metrics -->", lambda _: block, text, flags=re.DOTALL))


def write_manifest(path: Path, metrics: dict[str, float], resize_filter: str) -> None:
    """Replace the manifest's metrics (its last table) and the resize filter."""
    text = re.sub(r'^filter = "\w+"', f'filter = "{resize_filter}"', path.read_text(), flags=re.MULTILINE)
    text = (
        text.split("[metrics]")[0] + "[metrics]\n" + "".join(f'"{name}" = {value}\n' for name, value in metrics.items())
    )
    path.write_text(text)


def main(config: Config) -> None:
    """Data -> model -> loop -> evaluate -> export -> check."""
    torch.set_num_threads(config.threads)
    folder, out = Path(config.data) / "cifar10", Path(config.out)
    training, names = read_train(folder)
    training, held_out = training[: -config.held_out], training[-config.held_out :]
    training = training[: config.subset or len(training)]
    print(f"{len(training)} training pictures, {len(held_out)} held out", flush=True)
    network, effort = train(config, training, held_out, len(names))

    labels = torch.from_numpy(held_out.labels)
    logits = logits_of(network, held_out.images)
    temperature = temperature_of(logits, labels)
    held_out_accuracy = float((logits.argmax(1) == labels).float().mean())
    network.classifier.weight.data.div_(temperature)
    resize_filter, filter_scores = choose_filter(network, held_out)
    print(f"held out {held_out_accuracy:.4f}  temperature {temperature:.3f}  filters {filter_scores}", flush=True)

    version = out / "1"
    version.mkdir(parents=True, exist_ok=True)
    model = to_onnx(network)
    session = open_session(model)
    difference = largest_difference(session, network, held_out.images[:512])
    if difference > 1e-4:
        raise SystemExit(f"ONNX and torch differ by {difference:.2e}, more than 1e-4")
    onnx.save(model, version / "model.onnx")
    (version / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    speed = {size: milliseconds(session, held_out.images, size) for size in (1, 32)}
    parameters = sum(p.numel() for p in network.parameters())
    size_mb = (version / "model.onnx").stat().st_size / 1e6
    print(
        f"{parameters} parameters, {size_mb:.2f} MB, ONNX against torch {difference:.1e}, ms per picture {speed}",
        flush=True,
    )
    if not config.evaluate_test:
        return

    test = read_test(folder)
    scores = logits_of(network, test.images).softmax(1).numpy()
    right = scores.argmax(1) == test.labels
    per_class = {name: float(right[test.labels == k].mean()) for k, name in enumerate(names)}
    test_error = calibration_error(scores, test.labels)
    large = accuracy_of(network, enlarged(test.images, 256, resize_filter, jpeg_quality=85), test.labels)
    onnx_scores = np.concatenate(
        [session.run(["logits"], {"image": test.images[i : i + 250]})[0] for i in range(0, len(test), 250)]
    )
    onnx_accuracy = float((onnx_scores.argmax(1) == test.labels).mean())
    write_golden(version, network, test, names)

    core = f"an {processor()}"
    lines = [
        f"- **Test accuracy: {right.mean():.2%}** (10,000 official test pictures, no test-time augmentation; "
        f"the ONNX file in ONNX Runtime: {onnx_accuracy:.2%})",
        f"- Held-out training pictures ({len(held_out)}): {held_out_accuracy:.2%}",
        f"- Expected calibration error on the test pictures: {test_error:.4f} (15 bins; temperature {temperature:.3f}, "
        "fitted on the held-out training pictures, is part of the weights)",
        "- Test pictures enlarged to 256x256 (bicubic), saved as JPEG (quality 85) and shrunk with the "
        f"`{resize_filter}` filter: {large:.2%}",
        "- Resize filters, accuracy on held-out training pictures enlarged eightfold and shrunk again: "
        + ", ".join(f"{name} {value:.2%}" for name, value in filter_scores.items()),
        "- Accuracy per class: " + ", ".join(f"{name} {value:.1%}" for name, value in per_class.items()),
        f"- Size: {parameters:,} parameters, `model.onnx` {size_mb:.2f} MB (float32)",
        f"- Speed in ONNX Runtime {onnxruntime.__version__}, one thread of {core}: "
        f"{speed[1]:.1f} ms of CPU a picture alone, {speed[32]:.1f} ms in a batch of 32",
        f"- Largest difference between ONNX Runtime and torch on 512 pictures (logits and maps): {difference:.1e}",
        f"- Training: {effort['epochs']:.1f} epochs, {effort['cpu_seconds'] / 60:.0f} minutes of a core of {core} with "
        f"bfloat16 ({effort['seconds'] / 60:.0f} minutes by the clock, the core shared), "
        f"torch {torch.__version__.split('+')[0]}",
        "",
        "| data file | sha256 |",
        "|---|---|",
        *(f"| `{name}` | `{digest}` |" for name, digest in checksums(folder).items()),
    ]
    if (Path(config.data) / "flickr8k").exists():
        photographs = dog_photographs(Path(config.data) / "flickr8k")
        shrunk = np.stack([np.asarray(photo.resize((32, 32), FILTERS[resize_filter])) for photo in photographs])
        votes = np.bincount(logits_of(network, shrunk).argmax(1).numpy(), minlength=len(names)) / len(shrunk)
        share = ", ".join(f"{names[k]} {votes[k]:.0%}" for k in votes.argsort()[::-1] if votes[k])
        lines.insert(
            4,
            f"- {len(shrunk)} photographs of Flickr8k that show one dog, squashed to 32x32, are classified as: {share}",
        )
    print("\n".join(lines), flush=True)
    metrics = {
        "CIFAR-10 test accuracy": round(float(right.mean()), 4),
        "CIFAR-10 test accuracy, pictures of 256x256 as JPEG": round(large, 4),
        "expected calibration error": round(test_error, 4),
    }
    if (out / "card.md").exists():
        write_card(out / "card.md", lines)
    if (out / "manifest.toml").exists():
        write_manifest(out / "manifest.toml", metrics, resize_filter)


def processor() -> str:
    """The processor's name, for the card."""
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1).strip()  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def flags() -> Config:
    """The command line as a `Config`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for field in dataclasses.fields(Config):
        kind = type(field.default)
        read = (lambda text: text.lower() in ("true", "1", "yes")) if kind is bool else kind
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=read, default=field.default, metavar=kind.__name__
        )
    return Config(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(flags())
