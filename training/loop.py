"""The loop around a training in torch: a seed, a line and a checkpoint after each epoch, an average of the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from training.flags import Flags


class Stateful(Protocol):
    """What a checkpoint holds: a module, an optimiser, a schedule, an average."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


def start(config: Flags) -> torch.Generator:
    """Seed torch and NumPy and set the number of threads; returns a generator of its own for the data."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # some libraries draw from it
    return torch.Generator().manual_seed(config.seed)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state whole or not at all, so that a run that is ended meanwhile finds the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


class Checkpoint:
    """The state of a training in `work/checkpoint.pt`.

    Args:
        config: says where, and whether to go on from it.
        parts: everything that changes, by name: `network=…, optimiser=…, average=…`.
    """

    def __init__(self, config: Flags, **parts: Stateful) -> None:
        self.path = config.work / "checkpoint.pt"
        self.parts = parts
        self.epochs, self.spent_s = 0, 0.0
        if config.resume and self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"])
            self.epochs, self.spent_s = state["epochs"], state["spent_s"]
            print(f"going on after epoch {self.epochs}", flush=True)

    def save(self, epochs: int, spent_s: float) -> None:
        """Write it after so many epochs, which took so many seconds."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_state(self.path, {**state, "random": torch.get_rng_state(), "epochs": epochs, "spent_s": spent_s})


@dataclass
class Epoch:
    """One pass over the training data.

    Attributes:
        number: from 0.
        progress: share of all epochs that are done before it, 0..1, for schedules.
    """

    number: int
    progress: float
    figures: dict[str, float] = field(default_factory=dict)

    def log(self, **figures: float) -> None:
        """Say something of it in its line."""
        self.figures |= figures


def epochs(count: int, checkpoint: Checkpoint) -> Iterator[Epoch]:
    """The epochs that are left to do. After each, a line is printed and the checkpoint is written."""
    began = time.perf_counter() - checkpoint.spent_s
    for number in range(checkpoint.epochs, count):
        epoch = Epoch(number, number / count)
        yield epoch
        spent_s = time.perf_counter() - began
        checkpoint.save(number + 1, spent_s)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in epoch.figures.items())
        print(f"epoch {number + 1}/{count}  {figures}  {spent_s:.0f} s", flush=True)


class Average:
    """An exponential moving average of a network's weights and running statistics, which often score better.

    Args:
        network: whose weights are averaged.
        keep: share of the average that stays in an update, such as 0.998.
        warm_up: whether less stays in the first updates, so that the random weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, keep: float, *, warm_up: bool = True) -> None:
        self.network, self.keep, self.warm_up, self.updates = network, keep, warm_up, 0
        self.values: dict[str, Tensor] = {name: value.clone() for name, value in network.state_dict().items()}

    def update(self) -> None:
        """Take the weights as they are now into it; after each step."""
        self.updates += 1
        keep = min(self.keep, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.keep
        for name, value in self.network.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value, 1 - keep)
            else:
                self.values[name].copy_(value)

    def swap(self) -> None:
        """Exchange the network's weights for the averaged ones; a second call undoes it."""
        current = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.values)
        self.values = current

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"values": self.values, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.values, self.updates = state["values"], state["updates"]
