"""Speech recognition: words that are wrong, missing or too many; and what is heard where nothing is said.

Without an `evaluate.py`, recordings are read from `DIR/**/*.wav`, `.flac`, `.ogg`, `.opus`, `.mp3`, each with what is
said in it beside it: `four.wav` and `four.txt`, which is empty where nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from service.evaluation.base import (
    Answer,
    Ask,
    Breakdown,
    Conversation,
    DataMissing,
    Evaluation,
    Figure,
    Item,
    Outcome,
    Question,
    spread_evenly,
)
from service.evaluation.statistics import bootstrap_sums, ratio, wilson

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})

SHOWN_CONFUSIONS = 12
"""Confusions of words in the table, the most frequent first (count)."""

Measure = Literal["word errors", "right", "silent"]
"""`word errors`: of all words said; `right`: recordings with every word right; `silent`: with an empty text."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording, or a stream of its pieces.

    Attributes:
        name: for messages.
        group: the row of the table that it counts in.
        said: the words, separated by spaces.
        read: its pieces, encoded, called when they are needed; one of a recording that is sent whole.
    """

    name: str
    group: str
    said: str
    read: Callable[[], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the model heard in one recording, beside what was said."""

    group: str
    said: tuple[str, ...]
    heard: tuple[str, ...]


class SpeechRecognitionEvaluation(Evaluation):
    """Recordings with what is said in them. A model's own evaluation overrides `recordings` and `measures`."""

    title = "Recordings with their texts"
    item = "recording"

    def recordings(self) -> Sequence[Recorded]:
        """All of them.

        Raises:
            DataMissing: there are none.
        """
        group, *_ = self.measures()
        if found := self.beside_texts(self.data, group):
            return found
        raise DataMissing(
            self.data,
            "recordings beside what is said in them (DIR/four.wav and DIR/four.txt)",
            "Write the words of each recording into a file of the same name that ends in .txt.",
        )

    @staticmethod
    def beside_texts(folder: Path, group: str) -> list[Recorded]:
        """Recordings in a folder, each with its text beside it."""
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        texts = {path: path.with_suffix(".txt") for path in found}
        return [
            Recorded(path.name, group, " ".join(text.read_text().lower().split()), partial(_whole, path))
            for path, text in texts.items()
            if text.is_file()
        ]

    def measures(self) -> Mapping[str, Measure | tuple[Measure, ...]]:
        """How each group is measured, in the order of the table; in several ways, each has a row `group, measure`."""
        return {"word error rate": "word errors"}

    def items(self) -> Sequence[Item]:
        groups: dict[str, list[Recorded]] = {}
        for recording in self.recordings():
            groups.setdefault(recording.group, []).append(recording)
        chosen = [r for group in groups.values() for r in (spread_evenly(group, self.limit) if self.limit else group)]
        return [Item(recording.name, partial(talk, recording)) for recording in chosen]

    def timed(self) -> Conversation:
        return talk(self.recordings()[0])

    def outcome(self, records: Sequence[Heard]) -> Outcome:
        figures = []
        for group, measure in self.measures().items():
            members = [record for record in records if record.group == group]
            rows = {group: measure} if isinstance(measure, str) else {f"{group}, {one}": one for one in measure}
            if members:
                figures += [_figure(name, one, members) for name, one in rows.items()]
        return Outcome(
            figures=figures,
            breakdowns=_confusions(records),
            notes=[
                "Word errors are words that are wrong, missing or too many, by the fewest changes (Levenshtein), over "
                "the words said; intervals: bootstrap over recordings, Wilson's where no word is wrong and for shares."
            ],
        )


def _whole(path: Path) -> Sequence[bytes]:
    return [path.read_bytes()]


def talk(recording: Recorded) -> Generator[Question, Answer, Heard]:
    """Send a recording, in as many pieces as it has."""
    pieces = recording.read()
    heard: list[str] = []
    state: str | None = None
    for place, piece in enumerate(pieces):
        fields: dict[str, Any] = {} if state is None else {"state": state}
        if place < len(pieces) - 1:
            fields["final"] = False
        answer = yield Ask(fields, file=piece)
        state = answer["state"]
        heard += answer["results"][0]["text"].split()
    return Heard(recording.group, tuple(recording.said.split()), tuple(heard))


def word_errors(said: Sequence[str], heard: Sequence[str]) -> list[tuple[str, str]]:
    """The fewest changes that make what was said into what was heard.

    Returns:
        Pairs of what was said and what was heard for it; empty text where a word is missing, or too many.
    """
    rows, columns = len(said) + 1, len(heard) + 1
    cost = np.zeros((rows, columns), np.int64)
    cost[:, 0], cost[0] = np.arange(rows), np.arange(columns)
    for i in range(1, rows):
        for j in range(1, columns):
            other = cost[i - 1, j - 1] + (said[i - 1] != heard[j - 1])
            cost[i, j] = min(other, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    found, i, j = [], rows - 1, columns - 1
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (said[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            if said[i] != heard[j]:
                found.append((said[i], heard[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            found.append((said[i], ""))
        else:
            j -= 1
            found.append(("", heard[j]))
    return found[::-1]


def _figure(name: str, measure: Measure, records: Sequence[Heard]) -> Figure:
    if measure == "word errors":
        sums = np.array([[len(word_errors(r.said, r.heard)), len(r.said)] for r in records], np.float64)
        errors, words = sums.sum(axis=0)
        interval = bootstrap_sums(sums, ratio) if errors else wilson(0, int(words))
        low, high = interval or (None, None)
        return Figure(name, float(errors / words) if words else float("nan"), int(words), "words", low, high)
    right = sum(not r.heard if measure == "silent" else r.heard == r.said for r in records)
    low, high = wilson(right, len(records))
    return Figure(name, right / len(records), len(records), "recordings", low, high)


def _confusions(records: Sequence[Heard]) -> list[Breakdown]:
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        for pair in word_errors(record.said, record.heard):
            counts[pair] = counts.get(pair, 0) + 1
    if not counts:
        return []
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_CONFUSIONS]
    rows = [(said or "(nothing)", heard or "(nothing)", str(count)) for (said, heard), count in ranked]
    return [Breakdown("What was taken for what", ("said", "heard", "times"), rows)]
