"""Drift: whether what a model is asked and answers is still like what it was sketched with.

A *sketch* is a file beside a version's graph, `sketch.json`: how often each trait of an answer, such as its label or
how sure it is, fell into each of a few bins. The service counts the same bins of what it answers, in memory that the
workers share, and tells how far the two are apart when `/metrics` is asked.
"""

from __future__ import annotations

import math
import mmap
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import as_sentence

log = structlog.get_logger(__name__)

FILENAME = "sketch.json"
MOST_BINS = 10
"""Bins of a trait that is a number: as many of its values in each (count)."""
MOST_LABELS = 30
"""Labels with a bin of their own, the most frequent; all others share one (count)."""
WINDOW = 20_000
"""Observations of a trait in one worker at which all its counts are halved, so that the latest count most (count)."""
FEWEST = 500
"""Observations of a trait below which nothing is told: chance alone would look like drift (count)."""
SMALLEST_SHARE = 1e-4
"""Share that stands for an empty bin: without one, a single observation would be infinitely far."""

Trait = tuple[str, str | float]
"""What an answer is like, by name: a label, or a number."""


class Reference(BaseModel):
    """How often a trait was in each of its bins.

    Attributes:
        labels: of the bins, where the trait is a label; another one falls into the last bin, which has none.
        edges: upper ends of the bins, where it is a number; the last bin has none.
        shares: of each bin; they add up to 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    shares: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, max_length=MOST_LABELS + 1)]

    @model_validator(mode="after")
    def _fits(self) -> Reference:
        if len(self.shares) != len(self.labels or self.edges) + 1 or (self.labels and self.edges):
            raise ValueError("there is one share more than labels or edges")
        if not math.isclose(sum(self.shares), 1, abs_tol=1e-3):
            raise ValueError("the shares do not add up to 1")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("the edges do not rise")
        return self

    def bin_of(self, value: str | float) -> int | None:
        """The bin of a value; None for one of another kind, or that is no number."""
        if isinstance(value, str):
            if self.edges:
                return None
            return self.labels.index(value) if value in self.labels else len(self.labels)
        return None if self.labels or value != value else bisect_left(self.edges, value)


class Sketch(BaseModel):
    """What a version's answers are like on data that it was meant for.

    Attributes:
        format: of the file.
        observations: answers that it was made of (count).
        traits: by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    observations: int = Field(ge=1)
    traits: Mapping[str, Reference] = Field(max_length=8)


def sketched(answers: Iterable[Iterable[Trait]]) -> Sketch:
    """Make a sketch of the traits of answers.

    Raises:
        ValueError: there is none.
    """
    seen: dict[str, list[str | float]] = {}
    count = 0
    for traits in answers:
        count += 1
        for name, value in traits:
            if value == value:
                seen.setdefault(name, []).append(value)
    return Sketch(observations=count, traits={name: _reference(values) for name, values in seen.items()})


def _reference(values: Sequence[str | float]) -> Reference:
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        common = [label for label, _ in Counter(texts).most_common(MOST_LABELS)]
        counts = Counter(common.index(text) if text in common else len(common) for text in texts)
        return Reference(labels=tuple(common), shares=_shares(counts, len(common) + 1))
    numbers = np.array(values, np.float64)
    ends = np.quantile(numbers, np.linspace(0, 1, MOST_BINS + 1)[1:-1], method="lower")
    edges = tuple(sorted({float(f"{edge:.6g}") for edge in ends.tolist()}))
    counts = Counter(bisect_left(edges, float(number)) for number in numbers)
    return Reference(edges=edges, shares=_shares(counts, len(edges) + 1))


def _shares(counts: Mapping[int, int], bins: int) -> tuple[float, ...]:
    total = sum(counts.values())
    return tuple(round(counts.get(place, 0) / total, 6) for place in range(bins))


def read_sketch(folder: Path) -> Sketch | None:
    """The sketch of a version; None where it has none, or one that is unusable, of which the log tells.

    Nothing is answered otherwise without it, so a bad one keeps no version from being served.
    """
    try:
        return Sketch.model_validate(orjson.loads((folder / FILENAME).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        where = f"{folder.parent.name}/{folder.name}/{FILENAME}"
        log.warning("a sketch cannot be used: drift is not watched", file=where, reason=as_sentence(error)[:300])
        return None


def write_sketch(folder: Path, sketch: Sketch) -> Path:
    """Put a sketch beside a version's graph, whole or not at all."""
    path = folder / FILENAME
    new = folder / f".{FILENAME}.new"
    text = orjson.dumps(sketch.model_dump(), option=orjson.OPT_INDENT_2)
    new.write_bytes(text + b"\n")
    new.replace(path)
    return path


def stability_index(expected: Sequence[float], counts: Sequence[float]) -> float:
    """How far counts are from what is expected: the population stability index, 0 where they agree.

    By custom under 0.1 is like before, over 0.25 is something else. It is the sum of both Kullback-Leibler divergences.

    Args:
        expected: share of each bin.
        counts: of each bin, at least one.

    References:
        Siddiqi, *Credit Risk Scorecards* (2006), ch. 9.
    """
    total = sum(counts)
    pairs = [(max(e, SMALLEST_SHARE), max(c / total, SMALLEST_SHARE)) for e, c in zip(expected, counts, strict=True)]
    return sum((got - share) * math.log(got / share) for share, got in pairs)


class Drift:
    """Counts the traits of a version's answers.

    Args:
        sketch: what they are compared with.
        workers: processes that will count; this is made before they are forked.
    """

    def __init__(self, sketch: Sketch, workers: int = 1) -> None:
        self._references = sketch.traits
        starts, end = dict[str, int](), 0
        for name, reference in sketch.traits.items():
            starts[name], end = end, end + len(reference.shares)
        self._starts = starts
        self._workers = workers
        shared = mmap.mmap(-1, max(1, workers * end) * 8)
        self._all = np.frombuffer(shared, np.float64, workers * end).reshape(workers, end)
        self._new = [0] * end

    def note(self, traits: Iterable[Trait]) -> None:
        """Count the traits of an answer; those that are not in the sketch are passed over. From any thread."""
        for name, value in traits:
            reference = self._references.get(name)
            if reference is not None and (place := reference.bin_of(value)) is not None:
                self._new[self._starts[name] + place] += 1  # one that a race loses does not matter

    def publish(self, worker: int) -> None:
        """Add what is new to what a worker, which is this process, shares with the others."""
        if not any(self._new):
            return
        new, self._new = self._new, [0] * len(self._new)
        row = self._all[worker % self._workers]
        row += new
        for name, start in self._starts.items():
            counts = row[start : start + len(self._references[name].shares)]
            if counts.sum() > WINDOW:
                counts /= 2

    def indices(self) -> dict[str, float]:
        """The stability index of each trait that was seen often enough, over all workers."""
        sums = self._all.sum(axis=0)
        found = {}
        for name, reference in self._references.items():
            counts = sums[self._starts[name] : self._starts[name] + len(reference.shares)].tolist()
            if sum(counts) >= FEWEST:
                found[name] = stability_index(reference.shares, counts)
        return found
