"""Data sets: where they come from, the checksums of their files, and parts that are the same in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class DataMissing(SystemExit):
    """A data file is not there. Ends the script with a sentence that says where the public origin is."""

    def __init__(self, missing: Path, origin: str) -> None:
        super().__init__(
            f"{missing} is not there. The data come from {origin}; the script's first lines say how they lie."
        )


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        name: as the card calls it.
        origin: its public address.
        licence: as its origin states it.
        files: that are read, relative to `--data`.
    """

    name: str
    origin: str
    licence: str
    files: tuple[str, ...]

    def folder(self, data: Path) -> Path:
        """The folder of the first file, when all are there.

        Raises:
            DataMissing: one is not.
        """
        return self.paths(data)[0].parent

    def paths(self, data: Path) -> list[Path]:
        """Every file.

        Raises:
            DataMissing: one is not there.
        """
        paths = [data / file for file in self.files]
        for path in paths:
            if not path.exists():
                raise DataMissing(path, self.origin)
        return paths

    def checksums(self, data: Path) -> dict[str, str]:
        """SHA-256 of each file, by its path relative to `--data`."""
        return {file: sha256(path) for file, path in zip(self.files, self.paths(data), strict=True)}


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_of(name: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """The part that a thing belongs to, by a checksum of its name.

    It depends on nothing else, so new data move no old thing from one part to another.

    Args:
        name: of a file, or of what must stay together: a patient, a sequence, a speaker.
        shares: of each part, such as `{"training": 0.8, "validation": 0.2}`; they sum to 1.
        seed: another seed, another division.
    """
    place = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64
    reached = 0.0
    for part, share in shares.items():
        reached += share
        if place < reached:
            return part
    return part


def split(names: Iterable[str], shares: Mapping[str, float], seed: int = 0) -> dict[str, list[str]]:
    """The names of each part, in their order; `part_of` says which."""
    parts: dict[str, list[str]] = {part: [] for part in shares}
    for name in names:
        parts[part_of(name, shares, seed)].append(name)
    return parts


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """The numbers 0..count-1 in an order that the seed alone settles, int64 (count,)."""
    return np.random.default_rng(seed).permutation(count)
