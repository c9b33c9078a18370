"""Score a next-word model: perplexity on WikiText-2, and how often its first suggestions are what people typed.

    python benchmarks/perplexity.py models/english-lstm --data DIR              # WikiText-2 test
    python benchmarks/perplexity.py models/english-lstm --data DIR --everyday   # and everyday English

Perplexity is the exponential of the mean negative log-likelihood of all 245,569 tokens of the official test file, one
`<eos>` at each line end, read as one stream: `<eos>` first, the state carried from the first token to the last. The
probability of a token is over the model's whole vocabulary, which may be larger than WikiText-2's 33,278 types (that
can only raise the figure). The tokens are the official ones, `<unk>` among them.

Everyday accuracy asks after each word of a line, from a fresh state at the line's start, which word comes next, and
counts how often the typed one is the first suggestion, or among the first three. Spellings that differ only in
capitals are one word, as in the service's answers; punctuation is read but not asked for; a word that the model does
not know counts as missed. Files: the official test sets of banking77 and clinc150, and every 25th turn of that of
Schema-Guided Dialogue.

DIR contains `wikitext2/test.txt.gz` (https://github.com/pytorch/examples) and `english_text/{sgd_test.txt,
banking77_test.tsv,clinc150_test.tsv}.xz`. Needs only onnxruntime and numpy, besides the service's own tokeniser.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `service` is found without being installed

from service.tasks.next_word_prediction import END, Vocabulary, softmax, tokenise

RUN_TOKENS = 256
ROWS = 32


class LanguageModel:
    """A version folder, opened."""

    def __init__(self, folder: Path, version: str | None, threads: int) -> None:
        versions = sorted((p for p in folder.iterdir() if (p / "model.onnx").exists()), key=lambda p: (len(p.name), p))
        self.folder = folder / version if version else versions[-1]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(
            str(self.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        words = (self.folder / "vocabulary.txt").read_text(encoding="utf8").removesuffix("\n").split("\n")
        self.vocabulary = Vocabulary(words)
        (self.state_size,) = (i.shape[1] for i in self.session.get_inputs() if i.name == "state")

    def run(self, outputs: list[str], tokens: Any, lengths: Any, states: Any, *, explain: bool = False) -> list[Any]:
        """Run the graph on rows of tokens."""
        feed = {
            "tokens": np.asarray(tokens, np.int64),
            "sequence_lens": np.asarray(lengths, np.int32),
            "state": states,
            "explain": np.full(len(states), explain),
        }
        return list(self.session.run(outputs, feed))


def wikitext(model: LanguageModel, data: Path, split: str, limit: int | None) -> dict[str, Any]:
    """Perplexity of one split of WikiText-2."""
    number = model.vocabulary.number
    with gzip.open(data / "wikitext2" / f"{split}.txt.gz", "rt", encoding="utf8") as file:
        tokens = [number[token] for line in file for token in [*line.split(), END]][:limit]
    _, state = model.run(["logits", "next_state"], [[number[END]]], [1], np.zeros((1, model.state_size), np.float32))
    bits = 0.0
    for begin in range(0, len(tokens), RUN_TOKENS):
        part = tokens[begin : begin + RUN_TOKENS]
        state, surprisal = model.run(["next_state", "surprisal"], [part], [len(part)], state, explain=True)
        bits += float(surprisal.sum(dtype=np.float64))
    return {"tokens": len(tokens), "vocabulary": len(number), "perplexity": 2 ** (bits / len(tokens))}


def everyday(model: LanguageModel, lines: list[str]) -> dict[str, Any]:
    """Share of the words of these lines, the first of each left out, that are suggested first or among three."""
    vocabulary = model.vocabulary
    askable = vocabulary.words_in_group
    encoded: list[list[int]] = []
    marks: list[list[bool]] = []  # whether a token is a word, known or not
    for line in lines:
        pieces = [(number, any(c.isalnum() for c in t)) for t in tokenise(line) for number in vocabulary.encode(t)]
        encoded.append([vocabulary.number[END], *(number for number, _ in pieces)])
        marks.append([False, *(word for _, word in pieces)])
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    asked = first = third = 0
    began, runs = time.perf_counter(), 0
    for begin in range(0, len(order), ROWS):
        batch = order[begin : begin + ROWS]
        states = np.zeros((len(batch), model.state_size), np.float32)
        for t in range(len(encoded[batch[0]]) - 1):
            batch = [i for i in batch if len(encoded[i]) > t + 1]
            states = states[: len(batch)]
            now = [[encoded[i][t]] for i in batch]
            logits, states = model.run(["logits", "next_state"], now, [1] * len(batch), states)
            runs += 1
            if t == 0:
                continue
            for row, i in enumerate(batch):
                if not marks[i][t + 1]:
                    continue
                asked += 1
                group = vocabulary.group[encoded[i][t + 1]]
                if askable[group]:
                    sums = vocabulary.sums(softmax(logits[row]))
                    better = int(np.count_nonzero(sums[askable] > sums[group]))
                    first += better < 1
                    third += better < 3
    spent = time.perf_counter() - began
    return {"lines": len(lines), "words": asked, "top-1": first / asked, "top-3": third / asked, "seconds": spent}


def everyday_files(data: Path) -> dict[str, list[str]]:
    """The lines asked about, by data set."""

    def read(name: str) -> list[str]:
        with lzma.open(data / "english_text" / name, "rt", encoding="utf8") as file:
            return file.read().splitlines()

    return {
        "banking77": [line.split("\t", 1)[1] for line in read("banking77_test.tsv.xz")],
        "clinc150": [line.split("\t", 1)[1] for line in read("clinc150_test.tsv.xz")],
        "sgd": [line[3:] for line in read("sgd_test.txt.xz") if line][::25],
    }


def step_ms(model: LanguageModel, rows: int) -> float:
    """Median time of one run of one token a row, logits and state fetched (ms)."""
    rng = np.random.default_rng(0)
    states = rng.normal(0, 0.2, (rows, model.state_size)).astype(np.float32)
    times = []
    for _ in range(220):
        tokens = rng.integers(0, len(model.vocabulary), (rows, 1))
        began = time.perf_counter()
        model.run(["logits", "next_state"], tokens, [1] * rows, states)
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[20:]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a model's folder, such as models/english-lstm")
    parser.add_argument("--data", type=Path, required=True, help="folder which contains wikitext2 and english_text")
    parser.add_argument("--version", help="version folder; left out: the newest")
    parser.add_argument("--split", choices=["test", "valid"], default="test", help="split of WikiText-2")
    parser.add_argument("--tokens", type=int, help="only so many tokens of WikiText-2, for a quick look")
    parser.add_argument("--everyday", action="store_true", help="also everyday English: top-1 and top-3 accuracy")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()

    model = LanguageModel(options.model, options.version, options.threads)
    answer: dict[str, Any] = {
        "model": options.model.resolve().name,
        "version": model.folder.name,
        "megabytes": (model.folder / "model.onnx").stat().st_size / 1e6,
        "step_ms": {str(rows): step_ms(model, rows) for rows in (1, 32)},
        "wikitext2": {"split": options.split, **wikitext(model, options.data, options.split, options.tokens)},
    }
    if options.everyday:
        answer["everyday"] = {name: everyday(model, lines) for name, lines in everyday_files(options.data).items()}
    if options.json:
        print(json.dumps(answer, indent=2))
        return
    wiki = answer["wikitext2"]
    print(f"{answer['model']}@{answer['version']}: {answer['megabytes']:.1f} MB, one step of one word", end=" ")
    print(f"{answer['step_ms']['1']:.2f} ms, of 32 rows {answer['step_ms']['32']:.2f} ms, {options.threads} thread(s)")
    print(f"{'data':<20}{'tokens':>9}{'perplexity':>12}{'top-1':>8}{'top-3':>8}")
    print(f"{'WikiText-2 ' + wiki['split']:<20}{wiki['tokens']:>9,}{wiki['perplexity']:>12.2f}{'-':>8}{'-':>8}")
    for name, found in answer.get("everyday", {}).items():
        print(f"{name:<20}{found['words']:>9,}{'-':>12}{found['top-1']:>8.1%}{found['top-3']:>8.1%}")
    if not math.isfinite(wiki["perplexity"]):
        raise SystemExit("the perplexity is not finite")


if __name__ == "__main__":
    main()
