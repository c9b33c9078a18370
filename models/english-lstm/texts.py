"""The texts that the model learns from, as their origins publish them, and how the training reads them."""

from __future__ import annotations

import gzip
import lzma
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.text.tokeniser import END, tokenise
from service.text.vocabulary import UNKNOWN
from training.data import DataSet

SOURCES = (
    DataSet(
        "WikiText-2",
        "https://github.com/pytorch/examples (word_language_model/data/wikitext-2)",
        "CC BY-SA 3.0",
        tuple(f"wikitext2/{split}.txt.gz" for split in ("train", "valid", "test")),
    ),
    DataSet("Tatoeba", "https://www.manythings.org/anki", "CC BY 2.0", ("english_text/tatoeba_en.txt.xz",)),
    DataSet(
        "Schema-Guided Dialogue",
        "https://github.com/google-research-datasets/dstc8-schema-guided-dialogue",
        "CC BY-SA 4.0",
        tuple(f"english_text/sgd_{part}.txt.xz" for part in ("train", "dev", "test")),
    ),
    DataSet(
        "banking77",
        "https://github.com/PolyAI-LDN/task-specific-datasets",
        "CC BY 4.0",
        tuple(f"english_text/banking77_{part}.tsv.xz" for part in ("train", "test")),
    ),
    DataSet(
        "clinc150",
        "https://github.com/clinc/oos-eval",
        "CC BY 3.0",
        tuple(f"english_text/clinc150_{part}.tsv.xz" for part in ("train", "val", "test")),
    ),
    DataSet("addresses", "https://github.com/nltk/nltk_data", "public domain", ("english_text/us_speeches.txt.xz",)),
    DataSet("film reviews", "https://github.com/nltk/nltk_data", "CC BY 4.0", ("english_text/movie_reviews.tsv.xz",)),
)
"""The reviews are for the figures of the card alone."""

EVERYDAY = ("tatoeba", "dialogue", "request", "speech")


def read_wikitext(folder: Path, split: str) -> list[str]:
    """The official tokens of one split, `<eos>` at each line end."""
    with gzip.open(folder / "wikitext2" / f"{split}.txt.gz", "rt", encoding="utf8") as file:
        return [token for line in file for token in [*line.split(), END]]


def read_lines(folder: Path, name: str) -> list[str]:
    with lzma.open(folder / "english_text" / name, "rt", encoding="utf8") as file:
        return file.read().splitlines()


def everyday_lines(folder: Path, part: str, seed: int) -> dict[str, list[str]]:
    """Lines of everyday text by source; `part` is train, valid or test.

    The test files are the official ones of SGD, banking77 and clinc150. Tatoeba has no official split: every
    fiftieth sentence of a fixed shuffle is for validation.
    """

    def dialogue(name: str) -> list[str]:
        return [line[3:] for line in read_lines(folder, name) if line]

    def requests(name: str) -> list[str]:
        return [line.split("\t", 1)[1] for line in read_lines(folder, name)]

    if part == "test":
        return {
            "sgd": dialogue("sgd_test.txt.xz"),
            "banking77": requests("banking77_test.tsv.xz"),
            "clinc150": requests("clinc150_test.tsv.xz"),
        }
    tatoeba = read_lines(folder, "tatoeba_en.txt.xz")
    order = np.random.default_rng(seed).permutation(len(tatoeba))
    if part == "valid":
        return {
            "tatoeba": [tatoeba[i] for i in order[::50]],
            "dialogue": dialogue("sgd_dev.txt.xz")[:3000],
            "request": requests("clinc150_val.tsv.xz"),
        }
    rng = np.random.default_rng(seed)
    mixed = requests("banking77_train.tsv.xz") + requests("clinc150_train.tsv.xz")
    return {
        "tatoeba": [tatoeba[i] for k, i in enumerate(order) if k % 50],
        "dialogue": dialogue("sgd_train.txt.xz"),
        "request": [mixed[i] for i in rng.permutation(len(mixed))],
        "speech": [line for line in read_lines(folder, "us_speeches.txt.xz") if line and not line.startswith("===")],
    }


@dataclass
class Corpus:
    """Everything the loop reads, as token numbers."""

    vocabulary: list[str]
    official: int
    """How many of the words are WikiText-2's own types."""
    wikitext: dict[str, np.ndarray]
    everyday: dict[str, np.ndarray]
    valid: np.ndarray
    digests: dict[str, str]


def prepare(data: Path, seed: int, least_count: int, cache: Path) -> Corpus:
    """Tokenise the data and choose the vocabulary, most frequent word first.

    Args:
        data: folder of the data sets.
        seed: settles which sentences are held out.
        least_count: an everyday word outside WikiText-2's own vocabulary needs as many occurrences to enter ours.
        cache: where the result is kept; it is read from there, when it is.

    Raises:
        DataMissing: a file is not there.
    """
    if cache.exists():
        return torch.load(cache, weights_only=False)
    digests = {file: digest for source in SOURCES for file, digest in source.checksums(data).items()}
    wikitext = {split: read_wikitext(data, split) for split in ("train", "valid", "test")}
    lines = everyday_lines(data, "train", seed)
    everyday = {k: [t for line in v for t in [*tokenise(line), END]] for k, v in lines.items()}
    valid = [t for v in everyday_lines(data, "valid", seed).values() for line in v for t in [*tokenise(line), END]]

    official = set().union(*wikitext.values())
    counts = Counter(wikitext["train"])
    typed = Counter(t for tokens in everyday.values() for t in tokens)
    words = official | {t for t, n in typed.items() if n >= least_count}
    # A word may be typed whole ("don't") although WikiText-2 splits it ("don 't"): then both ways are words.
    order = counts + typed
    vocabulary = sorted(words, key=lambda t: (-order[t], t))
    number = {t: i for i, t in enumerate(vocabulary)}
    unknown = number[UNKNOWN]

    def encode(tokens: list[str]) -> np.ndarray:
        return np.array([number.get(t, unknown) for t in tokens], np.int64)

    corpus = Corpus(
        vocabulary,
        len(official),
        {k: encode(v) for k, v in wikitext.items()},
        {k: encode(v) for k, v in everyday.items()},
        encode(valid),
        digests,
    )
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(corpus, cache)
    return corpus


class Windows:
    """Windows of T + 1 tokens that begin at a line's start, in shuffled order, for ever."""

    def __init__(self, tokens: np.ndarray, end: int, time_steps: int, rng: np.random.Generator) -> None:
        self.tokens = np.concatenate([[end], tokens])
        ends = np.flatnonzero(self.tokens[: -time_steps - 1] == end)
        starts, reached = [], -1
        for index, start in enumerate(ends):  # the next window opens with the line in which this one stopped
            following = ends[index + 1] if index + 1 < len(ends) else len(self.tokens)
            if following > reached:
                starts.append(start)
                reached = start + time_steps
        self.starts, self.span, self.rng = np.array(starts), np.arange(time_steps + 1), rng
        self.left = np.array([], np.int64)

    def take(self, rows: int) -> np.ndarray:
        """int64 (rows, T + 1)."""
        if len(self.left) < rows:
            self.left = self.rng.permutation(self.starts)
        now, self.left = self.left[:rows], self.left[rows:]
        return self.tokens[now[:, None] + self.span]
