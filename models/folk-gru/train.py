"""Train folk-gru: a recurrent network that composes folk tunes, note by note.

    python models/folk-gru/train.py --data DIR

Tunes -> symbols, each with its place and what stood there 1, 2, 4 and 8 bars earlier -> two GRU layers -> the next
symbol among those that let the bar come out even.

DIR holds `nottingham_abc/nottingham_abc.zip`: the folder `ABC_cleaned` and `LICENSE.md` of
https://github.com/jukedeck/nottingham-dataset (GPL-3.0), packed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graph import build_graph
from network import Composer
from torch import Tensor, nn
from tunes import NOTTINGHAM, Line, Walked, in_other_meter, lines, part, sections, walked

from service.music.alphabet import SYMBOLS
from training.card import data_table, table, write_block, write_tables
from training.export import check_equal, save
from training.flags import Flags, read_flags
from training.golden import write_golden
from training.loop import Average, Checkpoint, epochs, start
from training.quantise import to_float16_storage

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Hyper-parameters."""

    out: Path = FOLDER
    work: Path = Path("runs/folk-gru")
    epochs: int = 40
    """Passes over the training tunes."""
    hidden: int = 256
    """Units of each GRU layer (count)."""
    batch: int = 16
    """Tunes of a step (count)."""
    learning_rate: float = 2e-3
    """At the top of the cosine."""
    weight_decay: float = 0.02
    """Of AdamW."""
    dropout: float = 0.35
    """Share of the units left out."""
    forget: float = 0.1
    """Share of the lookbacks that are not shown."""
    halves: float = 0.25
    """Chance that a tune is replaced by one of its halves."""
    other_meter: float = 0.12
    """Chance that a tune is read in another meter."""
    longest: int = 288
    """Symbols of a tune that are read (count)."""
    average: float = 0.99
    """Share of the average of the weights that stays in a step."""


@dataclass(frozen=True)
class Example:
    """A tune and what it may be replaced by in an epoch."""

    whole: Walked
    halves: list[Walked]
    other: list[Walked]


def examples(found: list[Line]) -> list[Example]:
    """Walk through all tunes once."""
    made = []
    for line in found:
        whole = walked(line)
        if whole is not None:
            halves = [one for one in map(walked, sections(line)) if one]
            made.append(Example(whole, halves, [one for one in map(walked, in_other_meter(line)) if one]))
    return made


def drawn(example: Example, config: Config, rng: np.random.Generator) -> Walked:
    """What is read of a tune in this epoch."""
    if example.other and rng.random() < config.other_meter * (3 if example.whole.line.meter.name != "4/4" else 1):
        return example.other[rng.integers(len(example.other))]
    if example.halves and rng.random() < config.halves:
        return example.halves[rng.integers(len(example.halves))]
    return example.whole


def batch_of(tunes: list[Walked], longest: int, shift: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, T, WIDTH), symbols (B, T), -100 behind the end, and what was allowed (B, T, SYMBOLS)."""
    steps = min(longest, max(len(tune.symbols) for tune in tunes))
    x = np.zeros((len(tunes), steps, tunes[0].features.shape[1]), np.int64)
    y = np.full((len(tunes), steps), -100, np.int64)
    allowed = np.ones((len(tunes), steps, SYMBOLS), bool)
    for row, tune in enumerate(tunes):
        count = min(steps, len(tune.symbols))
        x[row, :count], y[row, :count] = tune.features[:count], tune.symbols[:count]
        allowed[row, :count] = tune.allowed[:count]
    x[..., 7] = np.clip(x[..., 7] + shift, 0, 11)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(allowed)


def surprisal(network: Composer, tunes: list[Walked]) -> float:
    """Bits a symbol."""
    network.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(tunes), 16):
            x, y, allowed = batch_of(tunes[at : at + 16], 10**6)
            logits, _ = network(x)
            logits = logits.masked_fill(~allowed, -1e9)
            total += nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
            count += int((y >= 0).sum())
    network.train()
    return total / count / math.log(2)


def train(config: Config, parts: dict[str, list[Example]]) -> Composer:
    """The loop; the network with averaged weights comes back."""
    start(config)
    network = Composer(config.hidden, config.dropout, config.forget)
    print(f"{sum(weight.numel() for weight in network.parameters()):,} parameters", flush=True)
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    average = Average(network, config.average)
    held_out = [example.whole for example in parts["validation"]]
    for epoch in epochs(config.epochs, Checkpoint(config, network=network, optimiser=optimiser, average=average)):
        rng = np.random.default_rng((config.seed, epoch.number))
        read = [drawn(example, config, rng) for example in parts["training"]]
        read.sort(key=lambda tune: len(tune.symbols) + rng.normal(0, 10))
        batches = [read[at : at + config.batch] for at in range(0, len(read), config.batch)]
        total, count = 0.0, 0
        for number in rng.permutation(len(batches)):
            progress = (epoch.number + count / len(batches)) / config.epochs
            warm = min(1.0, (average.updates + 1) / 50)
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress) + 0.01)
            x, y, allowed = batch_of(batches[number], config.longest, int(rng.integers(-2, 3)))
            logits, _ = network(x)
            loss = nn.functional.cross_entropy(logits.masked_fill(~allowed, -1e9).flatten(0, 1), y.flatten())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            average.update()
            total, count = total + loss.item() / math.log(2), count + 1
        average.swap()
        epoch.log(bits=total / count, held_out=surprisal(network, held_out))
        average.swap()
    average.swap()
    return network


GOLDEN: list[dict[str, Any]] = [
    {"key": "D", "meter": "6/8", "bars": 4, "temperature": 0, "seed": 1},
    {"key": "Em", "meter": "4/4", "bars": 4, "temperature": 0, "seed": 2},
    {"prompt": "X:1\nM:3/4\nL:1/8\nK:G\nD2|G3A Bc|d4 B2|", "bars": 6, "temperature": 0, "seed": 3},
    {"key": "A", "meter": "2/4", "bars": 8, "seed": 4},
    {"key": "Ador", "meter": "9/8", "bars": 4, "top_p": 0.9, "seed": 5},
]


def export(network: Composer, example: Example, config: Config) -> None:
    """The graph, in float16, once it has been seen to compute what torch does."""
    network.eval()
    x, _, _ = batch_of([example.whole] * 2, config.longest)
    with torch.no_grad():
        logits, state = network(x)
    rows, steps = x.shape[:2]
    feed = {
        "features": x.numpy().astype(np.int32),
        "sequence_lens": np.full(rows, steps, np.int32),
        "state": np.zeros((rows, 2, config.hidden), np.float32),
    }
    model = build_graph(network)
    check_equal(model, feed, {"logits": logits, "next_state": state}, tolerance=1e-4)
    save(to_float16_storage(model), config.out / "1" / "model.onnx")


def write_about(config: Config, parts: dict[str, list[Example]], network: Composer) -> None:
    """What the manifest and the card say of the training."""
    training = [example.whole.line for example in parts["training"]]
    keys, meters = Counter(str(line.key) for line in training), Counter(line.meter.name for line in training)
    write_tables(config.out / "manifest.toml", keys=dict(keys.most_common()), meters=dict(meters.most_common()))
    rows = []
    for name, found in parts.items():
        whole = [example.whole for example in found]
        symbols = sum(len(tune.symbols) for tune in whole)
        rows.append((name, len(whole), f"{symbols:,}", f"{surprisal(network, whole):.3f}"))
    weights = sum(weight.numel() for weight in network.parameters())
    size = (config.out / "1" / "model.onnx").stat().st_size
    write_block(
        config.out / "card.md",
        "training",
        [
            f"{weights:,} parameters; `model.onnx` has {size / 1e6:.1f} MB.",
            "",
            *table(["part", "tunes", "symbols", "bits a symbol"], rows),
            "",
            *data_table(config.data, NOTTINGHAM),
        ],
    )


def main(config: Config) -> None:
    found: dict[str, list[Line]] = {"training": [], "validation": [], "test": []}
    for line in lines(config.data):
        found[part(line)].append(line)
    parts = {name: examples(some) for name, some in found.items()}
    print({name: len(some) for name, some in parts.items()}, flush=True)
    network = train(config, parts)
    export(network, parts["validation"][0], config)
    write_about(config, parts, network)
    write_golden(
        config.out / "1", GOLDEN, tolerance=0.001, fields=("abc", "bars", "seed", "surprisal", "prompt_surprisal")
    )


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
