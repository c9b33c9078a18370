"""Train cifar10-rnn, which reads a picture row by row, and beside it a plain CNN at the same cost; export the first.

    PYTHONPATH=. python models/cifar10-rnn/train.py --data DIR                # both, then score them once and export
    PYTHONPATH=. python models/cifar10-rnn/train.py --data DIR --only rnn     # train one of them alone

DIR holds a folder `cifar10`, as `models/cifar10-cnn/train.py` says. Both networks have about as many weights, see the same
pictures in the same order with the same shifts and mirror images, are trained by the same optimiser and get the same CPU
time. A run writes a checkpoint after each epoch and continues from it when started again. Needs torch, numpy, onnx,
onnxruntime and pillow.

Tensor letters: N pictures, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "cifar10-cnn")]

from network import NETWORKS, SIDE, RowByRow, Whole, macs  # noqa: E402
from pictures import CIFAR10, Pictures, read_test, read_train  # noqa: E402
from PIL import Image  # noqa: E402

from service.cpu import processor_name  # noqa: E402
from service.evaluation.statistics import wilson  # noqa: E402
from service.uncertainty.fitting import fit_abstain_threshold, fit_set_threshold, fit_temperature  # noqa: E402
from service.uncertainty.scores import energy, softmax  # noqa: E402
from training.card import data_table, table, write_block, write_tables  # noqa: E402
from training.export import answers, check_equal, open_session, save  # noqa: E402
from training.flags import Flags, read_flags  # noqa: E402
from training.golden import write_golden  # noqa: E402
from training.graph import GraphBuilder  # noqa: E402
from training.loop import save_state, start  # noqa: E402

GOLDEN = (0, 1, 6)
"""Positions in the test split; the pictures become the golden inputs."""


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Hyper-parameters, the same for both networks."""

    out: Path = FOLDER
    work: Path = Path("runs/cifar10-rnn")
    only: Literal["both", "rnn", "cnn"] = "both"
    """Train this network and stop; both: train what is not finished, then score and export."""
    minutes: float = 12.0
    """CPU time of one core for each network (min)."""
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    shift: int = 3
    """Furthest that a picture is moved, its edge mirrored (pixels)."""
    held_out: int = 2000
    """Training pictures kept back: for the temperature and the calibration."""


def views(images: Tensor, shift: int) -> Tensor:
    """Pictures uint8 (N, C, H, W) as floats, each moved and half of them mirrored."""
    count = len(images)
    padded = F.pad(images.float(), (shift,) * 4, mode="reflect")
    moves = torch.randint(0, 2 * shift + 1, (2, count))
    span = torch.arange(SIDE)
    columns = torch.where(torch.rand(count, 1) < 0.5, span, span.flip(0)) + moves[1][:, None]
    rows = span + moves[0][:, None]
    at = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    return padded[at[0], at[1], rows[:, None, :, None], columns[:, None, None, :]]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, C, H, W), 0..255 -> mean 0 and deviation 1 in each channel."""
    return (images - mean[:, None, None]) / std[:, None, None]


def train(
    config: Config, kind: str, training: Pictures, held_out: Pictures, mean: Tensor, std: Tensor
) -> tuple[nn.Module, list[Any]]:
    """Fit one network for the CPU time that it gets; goes on from its checkpoint."""
    start(config)
    network = NETWORKS[kind](10).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    images, labels = torch.from_numpy(training.images).permute(0, 3, 1, 2), torch.from_numpy(training.labels)
    path = config.work / f"{kind}.pt"
    epoch, spent_s, log = 0, 0.0, []
    if path.exists():
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        epoch, spent_s, log = state["epoch"], state["spent_s"], state["log"]
    began, budget_s = time.process_time() - spent_s, config.minutes * 60
    while spent_s < budget_s:
        torch.manual_seed(config.seed + epoch)
        network.train()
        total, steps = 0.0, 0
        for rows in torch.randperm(len(labels)).split(config.batch):
            progress = (time.process_time() - began) / budget_s
            if progress >= 1:
                break
            x = normalised(views(images[rows], config.shift), mean, std).contiguous(memory_format=torch.channels_last)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * min(1.0, progress / 0.05 + 0.01) * (1 - progress)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                maps = network(x)
            loss = F.cross_entropy(maps.float().mean((2, 3)), labels[rows], label_smoothing=config.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            total, steps = total + loss.item(), steps + 1
        epoch, spent_s = epoch + 1, time.process_time() - began
        logits = maps_of(network, held_out.images, mean, std).mean((2, 3))
        accuracy = float((logits.argmax(1).numpy() == held_out.labels).mean())
        log.append([round(spent_s / 60, 3), round(accuracy, 4)])
        print(
            f"{kind} epoch {epoch}  loss {total / max(1, steps):.4f}  held out {accuracy:.4f}  {spent_s:.0f} s",
            flush=True,
        )
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}
        save_state(path, state | {"spent_s": spent_s, "log": log})
    return network.eval(), log


@torch.no_grad()
def maps_of(network: nn.Module, images: np.ndarray, mean: Tensor, std: Tensor) -> Tensor:
    """Class scores at each row or place, float32 (N, K, h, w), of uint8 pictures (N, H, W, C)."""
    network.eval()
    parts = torch.from_numpy(np.ascontiguousarray(images)).split(500)
    return torch.cat([network(normalised(part.permute(0, 3, 1, 2).float(), mean, std)) for part in parts])


# -------------------------------------------------------------------------------------------------------------- export


def build_rnn(network: RowByRow, mean: Tensor, std: Tensor) -> onnx.ModelProto:
    """The graph: `image` uint8 (batch, 32, 32, 3) -> `activation_map` (batch, 10, 32, 1), the scores at each row, and their mean,
    `logits`."""
    g = GraphBuilder()
    hidden, gru = network.gru.hidden_size, network.gru
    x = g.picture("image", SIDE, SIDE, mean=mean.tolist(), std=std.tolist())
    x = g("Reshape", g("Transpose", x, perm=[2, 0, 1, 3]), g.ints(SIDE, -1, 3 * SIDE))  # (N, C, H, W) -> (H, N, C W)

    def both_ways(name: str, layer: int) -> np.ndarray:
        """A parameter of both directions, its gates in ONNX's order: update, reset, new."""
        ways = []
        for suffix in ("", "_reverse"):
            r, z, n = np.split(getattr(gru, f"{name}_l{layer}{suffix}").detach().numpy(), 3)
            ways.append(np.concatenate([z, r, n]))
        return np.stack(ways)

    for layer in range(gru.num_layers):
        bias = np.concatenate([both_ways("bias_ih", layer), both_ways("bias_hh", layer)], 1)
        parts = {"w": both_ways("weight_ih", layer), "r": both_ways("weight_hh", layer), "b": bias}
        names = [g.weight(f"{name}{layer}", part) for name, part in parts.items()]
        y = g("GRU", x, *names, hidden_size=hidden, direction="bidirectional", linear_before_reset=1)  # (H, 2, N, F)
        x = g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), g.ints(SIDE, -1, 2 * hidden), name=f"states{layer}")
    classifier = network.classifier
    weight = g.weight("classifier", classifier.weight.detach().numpy().T.copy())
    scores = g("Add", g("MatMul", x, weight), g.weight("classifier_bias", classifier.bias.detach().numpy()))
    return finished(
        g, g("Unsqueeze", g("Transpose", scores, perm=[1, 2, 0]), g.ints(3)), len(classifier.bias), [SIDE, 1]
    )


def build_cnn(network: Whole, mean: Tensor, std: Tensor) -> onnx.ModelProto:
    """The other network's graph, for its cost; BatchNorm is folded into the weights."""
    g = GraphBuilder()
    x = g.picture("image", SIDE, SIDE, mean=mean.tolist(), std=std.tolist())
    for k, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = g.weight(f"conv{k}", (conv.weight * scale[:, None, None, None]).detach().numpy())
        bias = g.weight(f"bias{k}", (norm.bias - norm.running_mean * scale).detach().numpy())
        x = g("Relu", g("Conv", x, weight, bias, pads=[1, 1, 1, 1]))
        x = g("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if k in network.halved else x
    classifier = network.classifier
    weight = g.weight("classifier", classifier.weight.detach().numpy())
    scores = g("Conv", x, weight, g.weight("classifier_bias", classifier.bias.detach().numpy()))
    return finished(g, scores, len(classifier.bias), [SIDE // 4, SIDE // 4])


def finished(g: GraphBuilder, scores: str, classes: int, cells: list[int]) -> onnx.ModelProto:
    """The model, from the scores at each place (batch, classes, *cells)."""
    g.output(scores, "activation_map", np.float32, ["batch", classes, *cells])
    g.output(g("ReduceMean", scores, g.ints(2, 3), keepdims=0), "logits", np.float32, ["batch", classes])
    return g.model("cifar10-rnn")


def milliseconds(session: onnxruntime.InferenceSession, images: np.ndarray) -> float:
    """Median CPU time of one picture alone, one thread (ms)."""
    spent = []
    for k in range(200):
        begin = time.process_time()
        session.run(["logits"], {"image": images[k : k + 1]})
        spent.append(time.process_time() - begin)
    return 1000 * float(np.median(spent))


def main(config: Config) -> None:
    """Data -> both networks -> temperature -> graph -> check -> figures."""
    training, names = read_train(CIFAR10.folder(config.data))
    training, held_out = training[: -config.held_out], training[-config.held_out :]
    mean, std = (torch.tensor(f(training.images[:5000], (0, 1, 2)), dtype=torch.float32) for f in (np.mean, np.std))
    found = {}
    for kind, network in NETWORKS.items():
        if config.only in ("both", kind):
            count = sum(p.numel() for p in network(len(names)).parameters())
            print(f"{kind}: {count:,} weights, {macs(network(len(names))):,} multiplications a picture", flush=True)
            found[kind] = train(config, kind, training, held_out, mean, std)
    if config.only == "both":
        publish(config, found, held_out, names, mean, std)


def publish(
    config: Config,
    found: dict[str, tuple[nn.Module, list[Any]]],
    held_out: Pictures,
    names: list[str],
    mean: Tensor,
    std: Tensor,
) -> None:
    """Export both, ship the first, look at the test split once, and write what came out."""
    test, few = read_test(CIFAR10.folder(config.data)), held_out.images[:256]
    story: dict[str, Any] = {"minutes of CPU for each": config.minutes, "processor": processor_name(), "networks": {}}
    version = config.out / "1"
    rows = []
    for kind, (network, log) in found.items():
        logits = maps_of(network, held_out.images, mean, std).mean((2, 3)).numpy()
        temperature = fit_temperature(logits, held_out.labels)
        network.classifier.weight.data.div_(temperature)
        network.classifier.bias.data.div_(temperature)
        model = build_rnn(network, mean, std) if kind == "rnn" else build_cnn(network, mean, std)
        maps = maps_of(network, few, mean, std)
        check_equal(model, {"image": few}, {"activation_map": maps, "logits": maps.mean((2, 3))}, tolerance=2e-4)
        session = open_session(model)
        if kind == "rnn":
            save(model, version / "model.onnx")
            (version / "labels.txt").write_text("".join(f"{name}\n" for name in names))
            logits = answers(session, {"image": held_out.images})["logits"]
            calibration = {
                "coverage": 0.99,
                "set_threshold": math.floor(fit_set_threshold(softmax(logits), held_out.labels, 0.99) * 1e6) / 1e6,
                "abstain_above": math.ceil(fit_abstain_threshold(energy(logits), 0.02) * 1e4) / 1e4,
                "abstain_rate": 0.02,
            }
        right = answers(session, {"image": test.images})["logits"].argmax(1) == test.labels
        low, high = wilson(int(right.sum()), len(right))
        story["networks"][kind] = {
            "weights": sum(p.numel() for p in network.parameters()),
            "MACs a picture": macs(network),
            "CPU a picture, alone (ms)": round(milliseconds(session, held_out.images), 2),
            "CIFAR-10 test accuracy": round(float(right.mean()), 4),
            "95 % interval": [round(low, 4), round(high, 4)],
            "held out": log,
        }
        own = story["networks"][kind]
        rows.append(
            [
                {"rnn": "row by row (this model)", "cnn": "six convolutions, not shipped"}[kind],
                f"{right.mean():.2%} ({low:.2%} to {high:.2%})",
                f"{own['weights']:,}",
                f"{2 * own['MACs a picture'] / 1e6:.0f}",
                own["CPU a picture, alone (ms)"],
            ]
        )
    (version / "golden").mkdir(exist_ok=True)
    inputs = []
    for row in GOLDEN:
        file = f"golden/{names[test.labels[row]]}.png"
        Image.fromarray(test.images[row]).save(version / file, optimize=True)
        inputs.append({"image": file, "top_k": 3})
    write_tables(
        config.out / "manifest.toml",
        calibration=calibration,
        metrics={"CIFAR-10 test accuracy": story["networks"]["rnn"]["CIFAR-10 test accuracy"]},
    )
    write_golden(version, inputs, tolerance=0.002, fields=("results",))
    (config.out / "training.json").write_text(json.dumps(story, indent=2) + "\n")
    header = [
        f"{config.minutes:g} minutes of a core for each",
        "test accuracy (95 % interval)",
        "weights",
        "MFLOP a picture",
        "CPU a picture, ms",
    ]
    write_block(config.out / "card.md", "metrics", [*table(header, rows), "", *data_table(config.data, CIFAR10)])


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
