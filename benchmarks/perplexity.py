"""Score a next-word model: perplexity on WikiText-2, how often its suggestions are right, how many keystrokes they save.

    python benchmarks/perplexity.py models/english-lstm --data DIR              # WikiText-2 test
    python benchmarks/perplexity.py models/english-lstm --data DIR --official   # also over the official vocabulary
    python benchmarks/perplexity.py models/english-lstm --data DIR --everyday   # and everyday English

**Perplexity** is the exponential of the mean negative log-likelihood of all 245,569 tokens of the official test file,
one `<eos>` at each line end, read as one stream: `<eos>` first, the state carried from the first token to the last. The
tokens are the official ones, `<unk>` among them. The probability of a token is over the model's whole vocabulary, which
may be larger than WikiText-2's 33,278 types (that can only raise the figure). `--official` adds the figure that counts
only these types: the probability divided by what the model gives to all of them together.

**Accuracy** asks after each word of a line, from a fresh state at the line's start, which word comes next, and counts
how often the typed one is the first suggestion, or among the first three. Spellings that differ only in capitals are
one word, as in the service's answers; punctuation is read but not asked for; a word that the model does not know counts
as missed.

**Keystrokes saved** is 1 - (keystrokes with suggestions) / (keystrokes without). Somebody types a line. After each
keystroke the service is asked (`top_k` 3, `complete` auto), so a strip shows three words: what may come next or, inside a
word, how it may end. Whoever sees the word that they mean takes it at once; that is one keystroke and gives the rest of
the word and the space after it, as on a phone. Where a mark follows instead of a space, no space is given. Nobody
mistypes, capitals are ignored, and the first letter of a line is typed unaided, because an empty text is no request.

**Intervals** are 95 % percentile bootstraps, 2,000 resamples of whole clusters: of articles for perplexity, of lines
(turns, questions, reviews) for the rest. They cover the choice of the texts, not that of the training run.

Files: `wikitext2/test.txt.gz` (https://github.com/pytorch/examples); in `english_text/` the official test sets of
Schema-Guided Dialogue (`sgd_test.txt.xz`, every 25th turn), banking77 (`banking77_test.tsv.xz`) and clinc150
(`clinc150_test.tsv.xz`), and the first 100 tokens of every 20th film review of Pang and Lee
(`movie_reviews.tsv.xz`): prose of a kind that english-lstm has never seen. Keystrokes: at most 500 lines of each, evenly
spread (`--lines`). Needs only onnxruntime and numpy besides the service's own code.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `service` is found without being installed

from service.graph import Signature, TensorSpec
from service.runtime.eight_bits import keep_sums_exact
from service.tasks.base import ModelFolder
from service.tasks.next_word_prediction import NextWordInput, NextWordPrediction
from service.text.normal_form import normalise
from service.text.tokeniser import END, join, tokenise
from service.text.vocabulary import proportional

RUN_TOKENS = 256
ROWS = 32
STRIP = 3
RESAMPLES = 2000

# ------------------------------------------------------------------------------------------------------------ the data


def read_wikitext(data: Path, split: str) -> list[list[str]]:
    """The official tokens of one split, article by article, `<eos>` at each line end."""
    articles: list[list[str]] = [[]]
    with gzip.open(data / "wikitext2" / f"{split}.txt.gz", "rt", encoding="utf8") as file:
        for line in file:
            if re.fullmatch(r" = [^=].*[^=] = \n", line) and len(articles[-1]) > 1:
                articles.append([])
            articles[-1] += [*line.split(), END]
    return articles


def official_vocabulary(data: Path) -> set[str]:
    """The 33,278 types of WikiText-2: every token of its three files."""
    return {t for split in ("train", "valid", "test") for article in read_wikitext(data, split) for t in article}


def read_everyday(data: Path) -> dict[str, list[str]]:
    """The lines asked about, by data set."""

    def read(name: str) -> list[str]:
        with lzma.open(data / "english_text" / name, "rt", encoding="utf8") as file:
            return file.read().splitlines()

    def second_column(name: str) -> list[str]:
        return [line.split("\t", 1)[1] for line in read(name)]

    return {
        "sgd": [line[3:] for line in read("sgd_test.txt.xz") if line][::25],
        "banking77": second_column("banking77_test.tsv.xz"),
        "clinc150": second_column("clinc150_test.tsv.xz"),
        "reviews": [join(text.split()[:100]) for text in second_column("movie_reviews.tsv.xz")[::20]],
    }


# ----------------------------------------------------------------------------------------------------------- the model


class LanguageModel:
    """A version of a model, opened: its graph, and the task that serves it.

    Attributes:
        folder: the version's folder.
        task: decodes requests and encodes answers exactly as the service does.
        vocabulary: that of the task.
        state_size: numbers that the memory holds.
    """

    def __init__(self, folder: Path, version: str | None = None, threads: int = 1) -> None:
        versions = sorted((p for p in folder.iterdir() if (p / "model.onnx").exists()), key=lambda p: (len(p.name), p))
        self.folder = folder / version if version else versions[-1]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        keep_sums_exact(options)
        self.session = onnxruntime.InferenceSession(
            str(self.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

        def specs(arguments: Iterable[Any]) -> dict[str, TensorSpec]:
            dtypes = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
            return {a.name: TensorSpec(a.name, dtypes.get(a.type, "bool"), tuple(a.shape)) for a in arguments}

        signature = Signature(specs(self.session.get_inputs()), specs(self.session.get_outputs()))
        self.task = NextWordPrediction(ModelFolder(folder.resolve().name, self.folder.name, self.folder, signature))
        self.vocabulary = self.task.vocabulary
        self.state_size = int(signature.inputs["state"].shape[1] or 0)

    def run(
        self, outputs: Sequence[str], tokens: Any, lengths: Any, states: Any, *, explain: bool = False
    ) -> list[Any]:
        """Run the graph.

        Args:
            outputs: names of those wanted.
            tokens: int64 (rows, time).
            lengths: int32 (rows,), how many of them are real.
            states: float32 (rows, S).
            explain: whether `surprisal` is wanted.
        """
        feed = {
            "tokens": np.asarray(tokens, np.int64),
            "sequence_lens": np.asarray(lengths, np.int32),
            "state": states,
            "explain": np.full(len(states), explain),
        }
        return list(self.session.run(list(outputs), feed))


# ---------------------------------------------------------------------------------------------------------- perplexity


def surprisals(model: LanguageModel, tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How surprising each token of a stream is.

    Returns:
        Bits, float64 (tokens,); and, for `official_bits`, the state before every `RUN_TOKENS`-th token,
        float32 (runs, S).
    """
    number = model.vocabulary.number
    ids = [number[token] for token in tokens]
    (state,) = model.run(["next_state"], [[number[END]]], [1], np.zeros((1, model.state_size), np.float32))
    bits, states = [], []
    for begin in range(0, len(ids), RUN_TOKENS):
        states.append(state[0])
        part = ids[begin : begin + RUN_TOKENS]
        state, found = model.run(["next_state", "surprisal"], [part], [len(part)], state, explain=True)
        bits.append(found[0].astype(np.float64))
    return np.concatenate(bits), np.stack(states)


def outside_share(model: LanguageModel, tokens: Sequence[str], states: np.ndarray, official: set[str]) -> np.ndarray:
    """Probability that the model gives to words outside an official vocabulary, before each token.

    The graph tells the logits after the last token only, so the runs of `surprisals` are stepped through side by side,
    each from its own state: the same numbers as in one stream.

    Args:
        model: the model.
        tokens: the stream.
        states: as `surprisals` returns them.
        official: the words that count.

    Returns:
        float64 (tokens,).
    """
    number = model.vocabulary.number
    ids = np.array([number[token] for token in tokens], np.int64)
    outside = np.array([word not in official for word in model.vocabulary.words])
    share = np.zeros(len(ids))
    if not outside.any():
        return share
    starts = np.arange(0, len(ids), RUN_TOKENS)
    for some in np.array_split(np.arange(len(starts)), math.ceil(len(starts) / ROWS)):
        now, begin = states[some], starts[some]
        lengths = np.zeros(len(some), np.int32)  # before the first token of a run there is nothing to read
        read = np.zeros((len(some), 1), np.int64)
        for t in range(RUN_TOKENS):
            logits, now = model.run(["logits", "next_state"], read, lengths, now)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            inside = begin + t < len(ids)
            found = weights[:, outside].sum(axis=1, dtype=np.float64) / weights.sum(axis=1, dtype=np.float64)
            share[begin[inside] + t] = found[inside]
            read, lengths = ids[np.minimum(begin + t, len(ids) - 1)][:, None], np.ones(len(some), np.int32)
    return share


def wikitext(model: LanguageModel, articles: Sequence[Sequence[str]], official: set[str] | None) -> dict[str, Any]:
    """Perplexity of WikiText-2's articles, read as one stream; with `official`, also over that vocabulary alone."""
    tokens = [token for article in articles for token in article]
    bits, states = surprisals(model, tokens)
    begins = np.cumsum([0, *(len(article) for article in articles[:-1])])
    lengths = np.array([len(article) for article in articles])

    def figure(bits: np.ndarray) -> dict[str, Any]:
        each = np.add.reduceat(bits, begins)
        low, high = interval(each, lengths)
        return {"perplexity": 2 ** (each.sum() / len(tokens)), "interval": [2**low, 2**high]}

    answer = {
        "tokens": len(tokens),
        "articles": len(articles),
        "vocabulary": len(model.vocabulary),
        **figure(bits),
    }
    if official is not None:
        outside = outside_share(model, tokens, states, official)
        words = sum(word in official for word in model.vocabulary.words)
        answer["official"] = {"vocabulary": words, **figure(bits + np.log2(1 - outside))}
    return answer


# ------------------------------------------------------------------------------------------------------------ accuracy


def next_words(model: LanguageModel, lines: Sequence[str]) -> np.ndarray:
    """How often the next word of a line is suggested.

    Returns:
        int64 (lines, 3): words asked for (the first of a line is not), those suggested first, those among three.
    """
    vocabulary = model.vocabulary
    found = np.zeros((len(lines), 3), np.int64)
    encoded: list[list[int]] = []
    marks: list[list[bool]] = []  # whether a token is a word, known or not
    for line in lines:
        pieces = [(number, any(c.isalnum() for c in t)) for t in tokenise(line) for number in vocabulary.encode(t)]
        encoded.append([vocabulary.number[END], *(number for number, _ in pieces)])
        marks.append([False, *(word for _, word in pieces)])
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    for begin in range(0, len(order), ROWS):
        batch = order[begin : begin + ROWS]
        states = np.zeros((len(batch), model.state_size), np.float32)
        for t in range(len(encoded[batch[0]]) - 1):
            batch = [i for i in batch if len(encoded[i]) > t + 1]
            states = states[: len(batch)]
            now = [[encoded[i][t]] for i in batch]
            logits, states = model.run(["logits", "next_state"], now, [1] * len(batch), states)
            if t == 0:
                continue
            for row, i in enumerate(batch):
                if not marks[i][t + 1]:
                    continue
                weights = proportional(logits[row])
                weights[vocabulary.no_words] = 0.0
                strip = vocabulary.heaviest(weights, STRIP, None)[0].tolist()
                group = int(vocabulary.group[encoded[i][t + 1]])
                found[i] += (1, group == strip[0], group in strip)
    return found


# ---------------------------------------------------------------------------------------------------------- keystrokes


@dataclass
class Asked:
    """One question to the strip, and its answer.

    Attributes:
        text: what was typed since `state` was given, or since the line's start.
        state: the service's `state` token, or None at the line's start.
        words: the suggestions, best first; the answer.
        completing: the letters which they complete, or None; the answer.
    """

    text: str
    state: str | None
    words: tuple[str, ...] = ()
    completing: str | None = None


Strip = Callable[[Sequence[Asked]], None]
"""Answers questions of different writers in place: fills in `words` and `completing`, replaces `state`."""


def strip_of(model: LanguageModel) -> Strip:
    """The strip as the service fills it, without a server: the task's own decode and encode, runs of many writers in one."""

    def answer(questions: Sequence[Asked]) -> None:
        steps = [
            model.task.steps(NextWordInput(text=asked.text, state=asked.state, top_k=STRIP)) for asked in questions
        ]
        runs = [(index, next(one)) for index, one in enumerate(steps)]
        while runs:
            runs.sort(key=lambda run: run[1].tensors["tokens"].shape[1])
            waiting = []
            while runs:
                batch = [runs.pop(0)]
                while runs and runs[0][1].outputs == batch[0][1].outputs and rows(batch) < ROWS:
                    batch.append(runs.pop(0))
                time_steps = batch[-1][1].tensors["tokens"].shape[1]
                feed = {
                    name: np.concatenate([padded(run.tensors[name], time_steps) for _, run in batch])
                    for name in batch[0][1].tensors
                }
                names = list(batch[0][1].outputs)
                outputs = dict(zip(names, model.session.run(names, feed), strict=True))
                begin = 0
                for index, run in batch:
                    end = begin + len(run.tensors["tokens"])
                    try:
                        again = steps[index].send({name: value[begin:end] for name, value in outputs.items()})
                        waiting.append((index, again))
                    except StopIteration as stop:
                        given, asked = stop.value, questions[index]
                        asked.words = tuple(prediction.text for prediction in given.predictions)
                        asked.completing, asked.state = given.completing, given.state
                    begin = end
            runs = waiting

    def rows(batch: Sequence[tuple[int, Any]]) -> int:
        return sum(len(run.tensors["tokens"]) for _, run in batch)

    def padded(array: np.ndarray, time_steps: int) -> np.ndarray:
        if array.dtype != np.int64:
            return array
        return np.pad(array, ((0, 0), (0, time_steps - array.shape[1])))

    return answer


class Writer:
    """Somebody who types one line with a strip of suggestions.

    Attributes:
        keys: keystrokes so far: letters typed and suggestions taken.
        words: words whose suggestions were shown before their first letter, the first word of the line left out.
        first: those of them that were suggested first.
        third: those among the three.
    """

    def __init__(self, line: str) -> None:
        self.line = " ".join(normalise(line).split())
        self.typed = self.keys = min(1, len(self.line))
        self.words = self.first = self.third = 0
        self.asked = Asked(self.line[: self.typed], None)

    @property
    def is_done(self) -> bool:
        return self.typed >= len(self.line)

    def go_on(self) -> None:
        """Look at the strip, then take a suggestion or type one character."""
        start = self.typed - len(self.asked.completing or "")
        before = self.line[self.typed - 1]
        at_start = self.asked.completing is None and not before.isalnum() and self.line[start].isalnum()
        ends = [self._end(start, word) for word in self.asked.words]
        if at_start and before == " ":
            self.words += 1
            self.first += any(ends[:1])
            self.third += any(ends)
        end = max(ends, default=0) if at_start or self.asked.completing else 0
        end += end < len(self.line) and end > 0 and self.line[end] == " "
        step = max(1, end - self.typed)
        self.keys += 1
        self.asked.text = self.line[self.typed : self.typed + step]
        self.typed += step

    def _end(self, start: int, word: str) -> int:
        """Where the line goes on after this word, if it stands there as a whole; else 0."""
        end = start + len(word)
        stands = self.line[start:end].casefold() == word.casefold()
        return end if stands and not self.line[end : end + 1].isalnum() else 0


def keystrokes(strip: Strip, lines: Sequence[str], writers: int = ROWS) -> np.ndarray:
    """Let lines be typed with a strip of suggestions.

    Args:
        strip: what answers, such as `strip_of(model)` or a function that asks a server.
        lines: texts without line breaks.
        writers: how many type at the same time; the answers do not depend on it.

    Returns:
        int64 (lines, 5): keystrokes without suggestions (the characters), keystrokes with them; words after a space,
        those suggested first before they were begun, those among three.
    """
    everybody = [Writer(line) for line in lines]
    coming = iter(everybody)
    busy: list[Writer] = []
    while True:
        busy = [writer for writer in busy if not writer.is_done]
        for writer in coming:
            if not writer.is_done:
                busy.append(writer)
            if len(busy) >= writers:
                break
        if not busy:
            break
        strip([writer.asked for writer in busy])
        for writer in busy:
            writer.go_on()
    return np.array([(len(w.line), w.keys, w.words, w.first, w.third) for w in everybody], np.int64)


# ----------------------------------------------------------------------------------------------------------- intervals


def interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of sum(numerators) / sum(denominators) over resampled clusters (Efron, Tibshirani 1993).

    Args:
        numerators: (clusters,).
        denominators: (clusters,), not all 0.
    """
    rng = np.random.default_rng(0)
    count = len(numerators)
    pairs = np.stack([numerators, denominators], axis=1).astype(np.float64)
    found = []
    for _ in range(0, RESAMPLES, 100):
        times = rng.multinomial(count, np.full(count, 1 / count), size=100)  # how often each cluster is drawn
        sums = times @ pairs
        found.append(sums[:, 0] / sums[:, 1])
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def share(numerators: np.ndarray, denominators: np.ndarray) -> dict[str, Any]:
    """A ratio of sums, and its interval."""
    return {
        "share": float(numerators.sum() / denominators.sum()),
        "interval": list(interval(numerators, denominators)),
    }


def everyday(model: LanguageModel, lines: Sequence[str], limit: int) -> dict[str, Any]:
    """Accuracy on lines, keystrokes saved on at most `limit` of them."""
    asked = next_words(model, lines)
    some = lines[:: math.ceil(len(lines) / limit)]
    typed = keystrokes(strip_of(model), some)
    return {
        "lines": len(lines),
        "words": int(asked[:, 0].sum()),
        "top-1": share(asked[:, 1], asked[:, 0]),
        "top-3": share(asked[:, 2], asked[:, 0]),
        "keystrokes": {
            "lines": len(some),
            "characters": int(typed[:, 0].sum()),
            "saved": share(typed[:, 0] - typed[:, 1], typed[:, 0]),
        },
    }


# ---------------------------------------------------------------------------------------------------------------- time


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


# ------------------------------------------------------------------------------------------------------------- command


def table(answer: dict[str, Any]) -> str:
    """The answer for people."""

    def cell(found: dict[str, Any]) -> str:
        low, high = found["interval"]
        return f"{found['share']:.1%} ({100 * low:.1f}-{100 * high:.1f})"

    wiki = answer["wikitext2"]
    steps = answer["step_ms"]
    lines = [
        f"{answer['model']}@{answer['version']}: {answer['megabytes']:.1f} MB, one step of one word {steps['1']:.2f} ms, "
        f"of 32 rows {steps['32']:.2f} ms, {answer['threads']} thread(s)"
    ]
    for found in (wiki, wiki.get("official")):
        if found:
            low, high = found["interval"]
            lines.append(
                f"WikiText-2 {wiki['split']}, {wiki['tokens']:,} tokens, {found['vocabulary']:,} words: "
                f"perplexity {found['perplexity']:.2f} ({low:.1f}-{high:.1f})"
            )
    if "everyday" in answer:
        lines.append(f"{'data':<12}{'words':>8}  {'top-1':<20}{'top-3':<20}keystrokes saved")
    for name, found in answer.get("everyday", {}).items():
        saved = cell(found["keystrokes"]["saved"])
        lines.append(f"{name:<12}{found['words']:>8,}  {cell(found['top-1']):<20}{cell(found['top-3']):<20}{saved}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a model's folder, such as models/english-lstm")
    parser.add_argument("--data", type=Path, required=True, help="folder which contains wikitext2 and english_text")
    parser.add_argument("--version", help="version folder; left out: the newest")
    parser.add_argument("--split", choices=["test", "valid"], default="test", help="split of WikiText-2")
    parser.add_argument("--articles", type=int, help="only so many articles of WikiText-2, for a quick look")
    parser.add_argument("--official", action="store_true", help="also perplexity over the official vocabulary (2 min)")
    parser.add_argument("--everyday", action="store_true", help="also everyday English: accuracy, keystrokes (3 min)")
    parser.add_argument("--lines", type=int, default=500, help="lines of each everyday set to be typed")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()

    model = LanguageModel(options.model, options.version, options.threads)
    articles = read_wikitext(options.data, options.split)[: options.articles]
    official = official_vocabulary(options.data) if options.official else None
    answer: dict[str, Any] = {
        "model": options.model.resolve().name,
        "version": model.folder.name,
        "megabytes": (model.folder / "model.onnx").stat().st_size / 1e6,
        "threads": options.threads,
        "step_ms": {str(rows): step_ms(model, rows) for rows in (1, 32)},
        "wikitext2": {"split": options.split, **wikitext(model, articles, official)},
    }
    if options.everyday:
        answer["everyday"] = {
            name: everyday(model, lines, options.lines) for name, lines in read_everyday(options.data).items()
        }
    print(json.dumps(answer, indent=2) if options.json else table(answer))
    if not math.isfinite(answer["wikitext2"]["perplexity"]):
        raise SystemExit("the perplexity is not finite")


if __name__ == "__main__":
    main()
