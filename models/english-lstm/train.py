"""Train english-lstm: a word-level LSTM that suggests the next word of everyday English and of WikiText-2.

Data -> LSTM -> a table of the trigrams that the training texts hold, mixed with it -> ONNX -> check -> figures.

    python models/english-lstm/train.py --data DIR                 # prepare, train, evaluate, export, check
    python models/english-lstm/train.py --data DIR --resume        # go on from the last checkpoint
    python models/english-lstm/train.py --data DIR --export-only   # evaluate and export the last checkpoint
    python models/english-lstm/train.py --data DIR --cycle 2 --warm-start models/english-lstm/1 --work DIR2
                                                                   # another cosine cycle from an exported version

DIR holds two folders, every file as its origin publishes it, packed:

- `wikitext2/{train,valid,test}.txt.gz`: WikiText-2 (Merity et al. 2016, CC BY-SA 3.0), the tokenised files of
  https://github.com/pytorch/examples (word_language_model/data/wikitext-2);
- `english_text/`: Tatoeba English sentences (manythings.org/anki, CC BY 2.0), Schema-Guided Dialogue
  (https://github.com/google-research-datasets/dstc8-schema-guided-dialogue, CC BY-SA 4.0), banking77
  (https://github.com/PolyAI-LDN/task-specific-datasets, CC BY 4.0), clinc150 (https://github.com/clinc/oos-eval,
  CC BY 3.0), US presidential addresses (https://github.com/nltk/nltk_data, public domain).

Model letters: V vocabulary, E embedding width, H hidden units, B rows of a batch, T time steps, N = B * T targets.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import itertools
import json
import lzma
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))  # so that `service` is found without being installed

from service.graph import Signature, TensorSpec  # noqa: E402
from service.runtime.eight_bits import keep_sums_exact  # noqa: E402
from service.tasks.base import ModelFolder  # noqa: E402
from service.tasks.next_word_prediction import NextWordInput, NextWordPrediction  # noqa: E402
from service.text.tokeniser import END, tokenise  # noqa: E402
from service.text.vocabulary import UNKNOWN  # noqa: E402


@dataclass(frozen=True)
class Config:
    """Every knob of the training; each is a flag of the same name."""

    embedding: int = 256
    hidden: int = 512
    time_steps: int = 35
    wikitext_rows: int = 40
    """Rows of a batch that read WikiText-2 from end to end, keeping their state from batch to batch."""
    tatoeba_rows: int = 10
    dialogue_rows: int = 7
    request_rows: int = 4
    speech_rows: int = 3
    """Rows that read a window of everyday text, starting at a line's start from the zero state, as a caller does."""
    steps: int = 9600
    warm_up_steps: int = 200
    learning_rate: float = 3e-3
    final_learning_rate: float = 2e-5
    clip_norm: float = 1.0
    dropout_in: float = 0.2
    dropout_hidden: float = 0.25
    dropout_out: float = 0.25
    wikitext_dropout_in: float = 0.2
    wikitext_dropout_hidden: float = 0.25
    wikitext_dropout_out: float = 0.25
    """The same three for the WikiText rows, which see each sentence many times where most dialogues are seen once."""
    wikitext_dropout_word: float = 0.0
    """Share of the words whose every occurrence in the WikiText rows of a batch is read as zeros."""
    dropout_recurrent: float = 0.0
    """Share of the LSTM's hidden-to-hidden weights that a batch does without (DropConnect, as in AWD-LSTM)."""
    average_steps: float = 500.0
    """Time constant of the moving average of the weights (batches)."""
    followers: int = 16
    """Words that the trigram table keeps for a pair of words, the most frequent first (count)."""
    discount: float = 0.85
    """Taken off each count of a trigram, so that what was never seen keeps a share (count)."""
    reset: float = 0.02
    """Chance per batch that a WikiText row forgets its state, so that the model copes with a fresh one."""
    candidates: int = 4000
    """Expected number of words the sampled softmax compares, besides the targets of the batch (count)."""
    least_count: int = 4
    """An everyday word outside WikiText-2's own vocabulary needs this many occurrences to enter ours (count)."""
    deadline_minutes: float = 0.0
    """When above 0, the schedule shrinks so that training ends after this wall-clock time (min)."""
    seed: int = 1
    """Settles which sentences are held out, and the first draw of everything that is drawn."""
    cycle: int = 1
    """Which cosine cycle this is: a later one reads the everyday lines in another order."""
    evaluate_every: int = 1000
    threads: int = 1


# ---------------------------------------------------------------------------------------------------------------- data

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


def prepare(data: Path, config: Config, cache: Path) -> Corpus:
    """Tokenise the data and choose the vocabulary, most frequent word first."""
    if cache.exists():
        return torch.load(cache, weights_only=False)
    wikitext = {split: read_wikitext(data, split) for split in ("train", "valid", "test")}
    lines = everyday_lines(data, "train", config.seed)
    everyday = {k: [t for line in v for t in [*tokenise(line), END]] for k, v in lines.items()}
    valid = [
        t for v in everyday_lines(data, "valid", config.seed).values() for line in v for t in [*tokenise(line), END]
    ]

    official = set().union(*wikitext.values())
    counts = Counter(wikitext["train"])
    typed = Counter(t for tokens in everyday.values() for t in tokens)
    words = official | {t for t, n in typed.items() if n >= config.least_count}
    # A word may be typed whole ("don't") although WikiText-2 splits it ("don 't"): then both ways are words.
    order = counts + typed
    vocabulary = sorted(words, key=lambda t: (-order[t], t))
    number = {t: i for i, t in enumerate(vocabulary)}
    unknown = number[UNKNOWN]

    def encode(tokens: list[str]) -> np.ndarray:
        return np.array([number.get(t, unknown) for t in tokens], np.int64)

    digests = {}
    for path in sorted([*data.glob("wikitext2/*.gz"), *data.glob("english_text/*.xz")]):
        digests[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
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


# --------------------------------------------------------------------------------------------------------------- model


class LanguageModel(nn.Module):
    """Embedding -> LSTM -> linear -> the same embedding read backwards (Press, Wolf 2017) plus a bias."""

    def __init__(self, vocabulary: int, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, config.embedding).uniform_(-0.1, 0.1))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.lstm = nn.LSTM(config.embedding, config.hidden)
        self.down = nn.Linear(config.hidden, config.embedding)
        with torch.no_grad():
            hidden = config.hidden
            self.lstm.bias_ih_l0.zero_()
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = 1.0  # remember by default

    def load_version(self, folder: Path, vocabulary: list[str]) -> None:
        """Take over the weights of an exported version; its vocabulary may stand in another order."""
        graph = onnx.load(str(folder / "model.onnx")).graph
        stored = {i.name: numpy_helper.to_array(i).astype(np.float32) for i in graph.initializer}
        words = (folder / "vocabulary.txt").read_text(encoding="utf8").removesuffix("\n").split("\n")
        if sorted(words) != sorted(vocabulary):
            raise SystemExit(f"{folder} has another vocabulary than the data give")
        number = {word: i for i, word in enumerate(words)}
        order = np.array([number[word] for word in vocabulary])

        def ifgo(gates: np.ndarray) -> np.ndarray:
            i, o, f, g = np.split(gates, 4)
            return np.concatenate([i, f, g, o])

        gate_bias = ifgo(stored["gate_bias"][0, : 4 * self.lstm.hidden_size])
        found = {
            "embedding": (stored["words"] * stored["scale"][:, None])[order],
            "bias": stored["bias"][order],
            "lstm.weight_ih_l0": ifgo(stored["w16"][0]),
            "lstm.weight_hh_l0": ifgo(stored["r16"][0]),
            "lstm.bias_ih_l0": gate_bias,
            "lstm.bias_hh_l0": np.zeros_like(gate_bias),
            "down.weight": stored["down16"],
            "down.bias": stored["down_bias"],
        }
        self.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in found.items()})

    def read(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """tokens (T, B) -> vectors (T, B, E) that are compared with every word, and the state after them."""
        y, state = self.lstm(self.embedding[tokens], state)
        return self.down(y), state


def locked_dropout(x: Tensor, rates: Tensor) -> Tensor:
    """Drop the same units at every time step (Gal, Ghahramani 2016); x is (T, B, units), rates (B, 1)."""
    mask = (torch.rand(1, x.shape[1], x.shape[2]) >= rates).float().div_(1 - rates)
    return x * mask.to(x.dtype)


class Average:
    """Exponential moving average of a model's weights, brought up to date every EVERY batches."""

    EVERY = 10

    def __init__(self, model: nn.Module, time_constant: float) -> None:
        self.model = model
        self.weight = 1 - math.exp(-self.EVERY / time_constant)
        self.values = {name: value.clone() for name, value in model.state_dict().items()}

    def update(self) -> None:
        for name, value in self.model.state_dict().items():
            self.values[name].lerp_(value, self.weight)

    def swap(self) -> None:
        """Exchange the model's weights for the averaged ones; a second call undoes it."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.values)
        self.values = current


class SampledSoftmax(torch.autograd.Function):
    """Mean cross-entropy over a random subset of the vocabulary, its normaliser corrected for who was drawn.

    Word j is in the subset with probability q_j, so the sum over the subset of exp(logit_j) / q_j estimates the sum
    over the whole vocabulary (Bengio, Senecal 2008). Works on 320 targets at a time: a slice stays in the cache.
    """

    @staticmethod
    def forward(ctx, vectors, words, bias, log_q, targets, weight):  # type: ignore[no-untyped-def]
        n, s = vectors.shape[0], words.shape[0]
        words16 = words.to(torch.bfloat16)
        vectors16 = vectors.to(torch.bfloat16)
        d_vectors = torch.empty(n, vectors.shape[1], dtype=torch.bfloat16)
        d_words = torch.zeros_like(words)
        d_bias = torch.zeros(s)
        shift = bias - log_q
        loss = 0.0
        for begin in range(0, n, 320):
            here = slice(begin, min(begin + 320, n))
            h, t = vectors16[here], targets[here]
            rows = torch.arange(len(t))
            p = (h @ words16.T).float().add_(shift)
            p[rows, t] += log_q[t]
            peak = p.amax(1, keepdim=True)
            chosen = p[rows, t] - peak[:, 0]
            total = p.sub_(peak).exp_().sum(1)
            loss += float((total.log() - chosen).sum())
            p.mul_((weight / total)[:, None])
            p[rows, t] -= weight
            d_bias += p.sum(0)
            g = p.to(torch.bfloat16)
            d_vectors[here] = g @ words16
            d_words += g.T @ h
        ctx.save_for_backward(d_vectors, d_words, d_bias)
        return torch.tensor(loss * weight)

    @staticmethod
    def backward(ctx, up):  # type: ignore[no-untyped-def]
        d_vectors, d_words, d_bias = ctx.saved_tensors
        return d_vectors.float() * up, d_words * up, d_bias * up, None, None, None


class RowAdam:
    """Adam for a table of which only some rows have a gradient; the others rest (as torch.optim.SparseAdam)."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.first, self.second, self.steps = table, torch.zeros_like(table), torch.zeros_like(table), 0

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        self.steps += 1
        first = self.first[rows].lerp_(gradient, 0.1)
        second = self.second[rows].mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        self.first[rows], self.second[rows] = first, second
        size = rate / (1 - 0.9**self.steps)
        root = second.div_(1 - 0.99**self.steps).sqrt_().add_(1e-8)
        self.table[rows] -= size * first.div_(root)


# ---------------------------------------------------------------------------------------------------------------- loop


@torch.no_grad()
def log_likelihoods(model: LanguageModel, tokens: np.ndarray, end: int, columns: int = 32) -> np.ndarray:
    """Natural logarithm of the probability of each token, in `columns` parallel pieces, for validation.

    Returns:
        float32, in the order of the tokens; as many as fill the columns evenly.
    """
    length = len(tokens) // columns
    grid = torch.from_numpy(tokens[: length * columns].reshape(columns, length).T.copy())
    inputs = torch.cat([torch.full((1, columns), end), grid[:-1]])
    words, state, found = model.embedding.to(torch.bfloat16), None, []
    for begin in range(0, length, 32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, state = model.read(inputs[begin : begin + 32], state)
        y, t = y.flatten(0, 1).to(torch.bfloat16), grid[begin : begin + 32].flatten()
        for part in range(0, len(t), 256):
            logits = (y[part : part + 256] @ words.T).float().add_(model.bias)
            found.append(-nn.functional.cross_entropy(logits, t[part : part + 256], reduction="none"))
    return torch.cat(found).reshape(length, columns).T.flatten().numpy()


def perplexity(model: LanguageModel, tokens: np.ndarray, end: int, limit: int | None = None) -> float:
    """exp of the mean negative log-likelihood."""
    return math.exp(-log_likelihoods(model, tokens[:limit], end).mean(dtype=np.float64))


def train(
    model: LanguageModel, corpus: Corpus, config: Config, checkpoint: Path, resume: bool, earlier: list[dict[str, Any]]
) -> None:
    """Run the loop until the schedule ends; `earlier` says how the weights that it starts from came about."""
    rng = np.random.default_rng((config.seed, config.cycle))
    end = corpus.vocabulary.index(END)
    vocabulary = len(corpus.vocabulary)
    windows = {k: Windows(v, end, config.time_steps, rng) for k, v in corpus.everyday.items()}
    rows = {k: getattr(config, f"{k}_rows") for k in EVERYDAY}
    batch_rows = config.wikitext_rows + sum(rows.values())

    # How often each word is a target in one batch, and from it the chance that it is among the candidates.
    share = np.zeros(vocabulary)
    for tokens, r in [(corpus.wikitext["train"], config.wikitext_rows), *((corpus.everyday[k], rows[k]) for k in rows)]:
        share += r / batch_rows * np.bincount(tokens, minlength=vocabulary) / len(tokens)
    share = np.maximum(share, 0.5 / 4e6)
    low, high = 0.0, 1e9
    for _ in range(60):  # the scale at which the expected number of candidates is the one asked for
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(1, scale * share**0.75).sum() < config.candidates else (low, scale)
    drawn = torch.from_numpy(np.minimum(1, scale * share**0.75)).float()
    absent = torch.from_numpy(np.exp(-batch_rows * config.time_steps * share)).float()
    log_q = torch.log(1 - (1 - drawn) * absent)

    train_tokens = corpus.wikitext["train"]
    piece = len(train_tokens) // config.wikitext_rows
    grid = train_tokens[: piece * config.wikitext_rows].reshape(config.wikitext_rows, piece)
    dense = [p for name, p in model.named_parameters() if name not in ("embedding", "bias")]
    adam = torch.optim.Adam(dense, betas=(0.9, 0.99), fused=True)
    tables = [RowAdam(model.embedding.data), RowAdam(model.bias.data)]
    average_model = Average(model, config.average_steps)
    step, position, progress, spent = 0, 0, 0.0, 0.0
    stages: list[dict[str, Any]] = [{"from_step": 0, "config": dataclasses.asdict(config)}]
    carried: tuple[Tensor, Tensor] | None = None
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        average_model.values = saved["average"]
        adam.load_state_dict(saved["adam"])
        for table, (first, second, steps) in zip(tables, saved["tables"], strict=True):
            table.first, table.second, table.steps = first, second, steps
        step, position, progress, spent = saved["step"], saved["position"], saved["progress"], saved["spent"]
        stages, earlier = saved["stages"], saved["earlier"]
        if stages[-1]["config"] != dataclasses.asdict(config):
            stages.append({"from_step": step, "config": dataclasses.asdict(config)})
        torch.manual_seed(100_000 * config.cycle + config.seed + step)

    def save() -> None:
        state = {
            "model": model.state_dict(), "adam": adam.state_dict(), "stages": stages, "earlier": earlier,
            "average": average_model.values,
            "tables": [(t.first, t.second, t.steps) for t in tables],
            "step": step, "position": position, "progress": progress, "spent": spent,
        }  # fmt: skip
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    wiki_row = (torch.arange(batch_rows) < config.wikitext_rows)[:, None]
    rates_in, rates_hidden, rates_out = (
        torch.where(wiki_row, getattr(config, f"wikitext_dropout_{at}"), getattr(config, f"dropout_{at}"))
        for at in ("in", "hidden", "out")
    )
    began, average, cpu = time.monotonic() - spent, None, time.process_time()
    model.train()
    while progress < 1:
        spent = time.monotonic() - began
        progress = (step + 1) / config.steps
        if config.deadline_minutes:
            progress = max(progress, spent / 60 / config.deadline_minutes)
        warm = min(1.0, (step + 1) / config.warm_up_steps)
        cosine = (1 + math.cos(math.pi * min(progress, 1))) / 2
        rate = warm * (config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine)

        if position + config.time_steps + 1 > piece:
            position = int(rng.integers(config.time_steps))
            carried = None
        batch = [grid[:, position : position + config.time_steps + 1]]
        batch += [windows[k].take(rows[k]) for k in EVERYDAY]
        tokens = torch.from_numpy(np.concatenate(batch).T.copy())  # (T + 1, B)
        position += config.time_steps
        h = torch.zeros(1, batch_rows, config.hidden)
        c = torch.zeros_like(h)
        if carried is not None:
            keep = (torch.rand(1, config.wikitext_rows, 1) >= config.reset).float()
            h[:, : config.wikitext_rows] = carried[0] * keep
            c[:, : config.wikitext_rows] = carried[1] * keep

        # The rows of the table that this step needs: candidates first, inputs after them.
        targets = tokens[1:].flatten()
        member = torch.rand(vocabulary) < drawn
        member[targets] = True
        candidates = member.nonzero()[:, 0]
        member[candidates] = False
        member[tokens[:-1].flatten()] = True
        member[candidates] = False
        needed = torch.cat([candidates, member.nonzero()[:, 0]])
        place = torch.empty(vocabulary, dtype=torch.int64)
        place[needed] = torch.arange(len(needed))
        table = model.embedding.data[needed].requires_grad_()
        bias = model.bias.data[candidates].requires_grad_()

        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = nn.functional.embedding(place[tokens[:-1]], table)
            if config.wikitext_dropout_word:
                kept = (torch.rand(len(needed)) >= config.wikitext_dropout_word) / (1 - config.wikitext_dropout_word)
                x = torch.where(wiki_row, kept[place[tokens[:-1]]][:, :, None], 1.0) * x
            x = locked_dropout(x, rates_in)
            recurrent = nn.functional.dropout(model.lstm.weight_hh_l0, config.dropout_recurrent)
            y, (h, c) = torch.func.functional_call(model.lstm, {"weight_hh_l0": recurrent}, (x, (h, c)))
            y = locked_dropout(model.down(locked_dropout(y, rates_hidden)), rates_out)
        loss = SampledSoftmax.apply(
            y.flatten(0, 1), table[: len(candidates)], bias, log_q[candidates], place[targets], 1 / len(targets)
        )
        loss.backward()
        carried = (h[:, : config.wikitext_rows].detach().float(), c[:, : config.wikitext_rows].detach().float())

        gradients = [p.grad for p in dense] + [table.grad, bias.grad]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = float(min(1.0, config.clip_norm / (norm + 1e-6)))
        for g in gradients:
            g.mul_(factor)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        adam.zero_grad()
        tables[0].step(needed, table.grad, rate)
        tables[1].step(candidates, bias.grad, rate)

        step += 1
        if step % Average.EVERY == 0:
            average_model.update()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0 or step == 20:
            print(
                f"step {step} progress {progress:.3f} loss {average:.3f} norm {float(norm):.2f} rate {rate:.2e}"
                f" {spent / step * 1e3:.0f} ms/step {(time.process_time() - cpu) / step * 1e3:.0f} cpu-ms", flush=True,
            )  # fmt: skip
        if step % config.evaluate_every == 0:
            for name in ("now", "average"):
                wiki = perplexity(model, corpus.wikitext["valid"], end, limit=32_000)
                daily = perplexity(model, corpus.valid, end, limit=32_000)
                print(f"== step {step} {name}: valid (part) WikiText-2 {wiki:.1f} everyday {daily:.1f}", flush=True)
                average_model.swap()
        if step % 250 == 0:
            save()
    save()


def choose(model: LanguageModel, saved: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """Load the last weights or their moving average, whichever predicts WikiText-2's validation split (a part) better."""
    end, found = corpus.vocabulary.index(END), {}
    for name in ("model", "average"):
        model.load_state_dict(saved[name])
        found[name] = {
            "WikiText-2": round(perplexity(model, corpus.wikitext["valid"], end, limit=64_000), 2),
            "everyday": round(perplexity(model, corpus.valid, end, limit=32_000), 2),
        }
        print(f"validation perplexity of {name}: {found[name]}", flush=True)
    best = min(found, key=lambda name: found[name]["WikiText-2"])
    model.load_state_dict(saved[best])
    return {"weights": best, "validation_perplexity": found[best]}


# ------------------------------------------------------------------------------------------------------------ trigrams


@dataclass
class Trigrams:
    """What followed pairs of words in the training texts, interpolated with the LSTM.

    p(w | text) = s p3(w | a, b) + (1 - s m) p_lstm(w | text), where a, b are the last two words, p3 the discounted relative
    frequency (Ney, Essen, Kneser 1994), m its sum over the words that are kept for the pair, and the share s depends on how
    often the pair was seen. So the LSTM gets what the discount takes away. As logits that is: those of the words that are
    kept grow by log(1 + odds / p_lstm(w)), with odds = s p3 / (1 - s m), the others stay.

    Attributes:
        keys: int64 (pairs,), ascending: (a + 1) (V + 1) + b + 1, with 0 for a + 1 where b is `<eos>`: each line is a new text.
        first: int64 (pairs + 1,): where the words of each pair begin.
        words: int64 (followers,).
        odds: float16 (followers,).
        record: the shares s by how often the pair was seen, and what they do to the validation texts.
    """

    keys: np.ndarray
    first: np.ndarray
    words: np.ndarray
    odds: np.ndarray
    record: dict[str, Any]

    def of(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """The words kept for a pair, and their odds."""
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return np.array([], np.int64), np.array([], np.float16)
        here = slice(self.first[place], self.first[place + 1])
        return self.words[here], self.odds[here]


def pair_keys(tokens: np.ndarray, words: int, end: int) -> np.ndarray:
    """Key of the two words before each token of a text that opens with a line."""
    b = np.concatenate([[end], tokens[:-1]])
    a = np.concatenate([[end], b[:-1]])
    return np.where(b == end, 0, a + 1) * (words + 1) + b + 1


SEEN = (2, 3, 5, 9, 17, 65, 257, 1025)
"""How often a pair was seen falls into classes that begin here (counts)."""


def count_trigrams(model: LanguageModel, corpus: Corpus, config: Config) -> Trigrams:
    """Count the training texts; choose the shares that fit the two validation texts best, which count alike."""
    words, end = len(corpus.vocabulary), corpus.vocabulary.index(END)
    texts = [corpus.wikitext["train"], *corpus.everyday.values()]
    triples, count = np.unique(
        np.concatenate([pair_keys(text, words, end) * words + text for text in texts]), return_counts=True
    )
    keys, first = np.unique(triples // words, return_index=True)
    seen = np.add.reduceat(count, first)
    pair = np.repeat(np.arange(len(keys)), np.diff(np.append(first, len(triples))))
    order = np.lexsort((-count, pair))
    rank = np.empty(len(triples), np.int64)
    rank[order] = np.arange(len(triples)) - first[pair]
    kept = (rank < config.followers) & (seen[pair] >= SEEN[0])
    triples, pair, p3 = triples[kept], pair[kept], (count[kept] - config.discount) / seen[pair[kept]]
    mass = np.bincount(pair, p3, minlength=len(keys))
    classes = np.digitize(seen, SEEN)

    lookups = []  # of each token of the validation texts: class of its pair, p3, m, p_lstm
    for text in (corpus.wikitext["valid"][:64_000], corpus.valid[:32_000]):
        p = np.exp(log_likelihoods(model, text, end).astype(np.float64))
        text = text[: len(p)]
        key = pair_keys(text, words, end)
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        known = keys[at] == key
        place = np.minimum(np.searchsorted(triples, key * words + text), len(triples) - 1)
        hit = triples[place] == key * words + text
        lookups.append((np.where(known, classes[at], 0), np.where(hit, p3[place], 0), np.where(known, mass[at], 0), p))
    shares = np.zeros(len(SEEN) + 1)
    for c in range(1, len(shares)):
        grid = np.linspace(0, 0.95, 96)
        gain = np.zeros(len(grid))
        for of, p3_, m, p in lookups:
            here = of == c
            mixed = grid[:, None] * p3_[here] + (1 - grid[:, None] * m[here]) * p[here]
            gain += np.log(mixed).sum(1) / len(p)
        shares[c] = grid[gain.argmax()]
    record: dict[str, Any] = {
        "shares": {f"seen {least} times or more": round(float(s), 2) for least, s in zip(SEEN, shares[1:], strict=True)}
    }
    for name, (of, p3_, m, p) in zip(("WikiText-2", "everyday"), lookups, strict=True):
        mixed = shares[of] * p3_ + (1 - shares[of] * m) * p
        alone, both = (math.exp(-np.log(x).mean()) for x in (p, mixed))
        print(f"{name} valid (part): the LSTM alone {alone:.1f}, with trigrams {both:.1f}", flush=True)
        record[f"{name} validation perplexity without and with"] = [round(alone, 2), round(both, 2)]

    share = shares[classes[pair]]
    odds = (share * p3 / (1 - share * mass[pair])).astype(np.float16)
    some = odds > 0
    used, begin = np.unique(pair[some], return_index=True)
    return Trigrams(
        keys[used],
        np.append(begin, some.sum()),
        (triples % words)[some],
        odds[some],
        record,
    )


def reordered(trigrams: Trigrams, order: np.ndarray) -> Trigrams:
    """The same table in another numbering of the words: that in which they are served."""
    place = np.argsort(order)
    a, b = np.divmod(trigrams.keys, len(order) + 1)
    a = np.where(a > 0, place[np.maximum(a, 1) - 1] + 1, 0)
    keys = a * (len(order) + 1) + place[b - 1] + 1
    by_key = np.argsort(keys)
    sizes = np.diff(trigrams.first)[by_key]
    first = np.concatenate([[0], np.cumsum(sizes)])
    take = np.repeat(trigrams.first[by_key] - first[:-1], sizes) + np.arange(first[-1])
    return Trigrams(keys[by_key], first, place[trigrams.words[take]], trigrams.odds[take], trigrams.record)


# -------------------------------------------------------------------------------------------------------------- export


@dataclass
class Weights:
    """The trained weights as they are stored: the table in 8 bits with a scale per word, the LSTM in float16."""

    vocabulary: list[str]
    words: np.ndarray  # int8 (V, E)
    scale: np.ndarray  # float32 (V,)
    bias: np.ndarray  # float32 (V,)
    w: np.ndarray  # float16 (4H, E), gates in torch's order: i f g o
    r: np.ndarray  # float16 (4H, H)
    gate_bias: np.ndarray  # float32 (4H,)
    down: np.ndarray  # float16 (E, H)
    down_bias: np.ndarray  # float32 (E,)
    trigrams: Trigrams


def round_weights(model: LanguageModel, vocabulary: list[str], order: np.ndarray, trigrams: Trigrams) -> Weights:
    """Round to the stored precision, and put the words into the order in which they are served."""
    get = {k: v.detach().float().numpy() for k, v in model.state_dict().items()}
    table, bias = get["embedding"][order], get["bias"][order]
    scale = np.abs(table).max(1) / 127
    return Weights(
        [vocabulary[i] for i in order],
        np.round(table / scale[:, None]).astype(np.int8),
        scale.astype(np.float32),
        bias,
        get["lstm.weight_ih_l0"].astype(np.float16),
        get["lstm.weight_hh_l0"].astype(np.float16),
        get["lstm.bias_ih_l0"] + get["lstm.bias_hh_l0"],
        get["down.weight"].astype(np.float16),
        get["down.bias"],
        reordered(trigrams, order),
    )


def serving_order(corpus: Corpus) -> np.ndarray:
    """Most frequent *inside a sentence* first: so the first spelling of a word is the one that does not open one."""
    inside = np.zeros(len(corpus.vocabulary), np.int64)
    opening = [corpus.vocabulary.index(t) for t in (END, ".", "!", "?", '"', "=", "(")]
    for tokens in [corpus.wikitext["train"], *corpus.everyday.values()]:
        inside += np.bincount(tokens[1:][~np.isin(tokens[:-1], opening)], minlength=len(inside))
    return np.lexsort((np.arange(len(inside)), -inside))


class Reference:
    """The rounded weights in torch: what the ONNX file must reproduce, and what golden.json is computed with."""

    def __init__(self, weights: Weights) -> None:
        self.table = torch.from_numpy(weights.words.astype(np.float32) * weights.scale[:, None])
        self.bias = torch.from_numpy(weights.bias)
        self.trigrams, self.end = weights.trigrams, weights.vocabulary.index(END)
        hidden = weights.r.shape[1]
        self.lstm = nn.LSTM(self.table.shape[1], hidden, batch_first=True)
        self.down = nn.Linear(hidden, self.table.shape[1])
        with torch.no_grad():
            self.lstm.weight_ih_l0.copy_(torch.from_numpy(weights.w.astype(np.float32)))
            self.lstm.weight_hh_l0.copy_(torch.from_numpy(weights.r.astype(np.float32)))
            self.lstm.bias_ih_l0.copy_(torch.from_numpy(weights.gate_bias))
            self.lstm.bias_hh_l0.zero_()
            self.down.weight.copy_(torch.from_numpy(weights.down.astype(np.float32)))
            self.down.bias.copy_(torch.from_numpy(weights.down_bias))

    @torch.no_grad()
    def run(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs from its inputs, one row after another."""
        answers: dict[str, list[np.ndarray]] = {"logits": [], "next_state": [], "surprisal": []}
        hidden, words = self.lstm.hidden_size, len(self.bias)
        for tokens, length, state in zip(tensors["tokens"], tensors["sequence_lens"], tensors["state"], strict=True):
            h, c, before = torch.from_numpy(state)[None].split([hidden, hidden, 2], 1)
            h, c = h[None].contiguous(), c[None].contiguous()
            real = torch.from_numpy(tokens[:length])
            y = h
            if length:
                y, (h, c) = self.lstm(self.table[real][None], (h, c))
                y = torch.cat([torch.from_numpy(state)[None, None, :hidden], y], 1)
            logits = self.down(y[0]) @ self.table.T + self.bias  # (length + 1, V)
            history = [*(int(token) for token in before[0]), *(int(token) + 1 for token in real)]
            for row, (a, b) in enumerate(itertools.pairwise(history)):
                kept, odds = self.trigrams.of((0 if b == self.end + 1 else a) * (words + 1) + b)
                if len(kept):
                    p = logits[row].softmax(0)[kept]
                    logits[row, kept] += torch.log(1 + torch.from_numpy(odds.astype(np.float32)) / p.clamp(min=1e-30))
            bits = -logits[:-1].log_softmax(1)[torch.arange(length), real] / math.log(2)
            answers["logits"].append(logits[-1].numpy())
            last = torch.tensor(history[-2:], dtype=torch.float32)
            answers["next_state"].append(torch.cat([h[0, 0], c[0, 0], last]).numpy())
            answers["surprisal"].append(np.pad(bits.numpy(), (0, len(tokens) - length)))
        return {name: np.stack(rows) for name, rows in answers.items()}


def build_graph(weights: Weights) -> onnx.ModelProto:
    """The model as ONNX, by hand, because a traced export cannot express `sequence_lens`.

    - The table of words is stored once, as int8, and used twice: rows are gathered for the input, and its transpose
      (folded when the file is loaded) multiplies the output vectors as integers, four times faster than float32 at
      batch 1, where reading the weights is all the time. A vector v is split in two int8 parts, v = s (hi + lo / 254)
      with s = max |v| / 127, so nothing is lost but the eighth decimal: rows never depend on their company.
    - Where a processor has no VNNI, sums of such products need a session that `keep_sums_exact` has prepared. It cannot
      reach into a graph inside the graph, so `surprisal` is computed from parts of seven bits: 128 · 127 · 2 < 2^15.
    - A row of length 0 passes its state through, and its logits come from the state.
    - The last two words are the last two numbers of the state. Their key is looked up in a table of buckets: the remainder
      of the key chooses the bucket, the quotient is compared with those in it, so a pair is never taken for another.
    - `surprisal` needs the whole vocabulary at every time step. onnxruntime computes outputs that nobody fetches, so it
      stands behind an `If`: zeros unless some row has `explain`; 16 positions at a time, to bound the memory.
    """
    hidden = weights.r.shape[1]

    def iofc(gates: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(gates, 4)
        return np.concatenate([i, o, f, g])

    words_, trigrams = len(weights.words), weights.trigrams
    buckets = 65_521  # a prime: the quotients of keys below (V + 1)^2 fit 16 bits
    assert (words_ + 1) ** 2 < 2**31
    assert (words_ + 1) ** 2 // buckets < 2**16
    by_bucket = np.argsort(trigrams.keys % buckets, kind="stable")
    occupancy = np.bincount(trigrams.keys % buckets, minlength=buckets)
    sizes = np.diff(trigrams.first)[by_bucket]
    first = np.concatenate([[0], np.cumsum(sizes)])
    take = np.repeat(trigrams.first[by_bucket] - first[:-1], sizes) + np.arange(first[-1])

    constants = {
        # Place 0 among the pairs is the one that is never found, and has no followers.
        "bucket_begin": np.concatenate([[0], np.cumsum(occupancy)]).astype(np.int32) + np.int32(1),
        "quotients": np.concatenate([[0], trigrams.keys[by_bucket] // buckets]).astype(np.uint16),
        "follower_begin": np.concatenate([[0], first]).astype(np.int32),
        "follower": trigrams.words[take].astype(np.uint16), "odds": trigrams.odds[take],
        "buckets": np.array(buckets, np.int32), "key_base": np.array(words_ + 1, np.int32),
        "end_plus_1": np.array(weights.vocabulary.index(END) + 1, np.int32),
        "bucket_slots": np.arange(occupancy.max(), dtype=np.int32)[None],
        "follower_slots": np.arange(sizes.max(), dtype=np.int32)[None],
        "last_pair": np.array(len(trigrams.keys), np.int32), "last_follower": np.array(len(take) - 1, np.int32),
        "no_word": np.float32(0), "most_words": np.float32(words_), "impossible": np.float32(1e-30),
        "one_f32": np.float32(1), "no_odds": np.array(0, np.float16), "pair_of_places": np.array([[0, 1]]),
        "two_ones": np.array([1, 1]), "minus_two": np.array([-2]),
        "words": weights.words, "scale": weights.scale, "bias": weights.bias,
        "w16": iofc(weights.w)[None], "r16": iofc(weights.r)[None],
        "gate_bias": np.concatenate([iofc(weights.gate_bias), np.zeros(4 * hidden, np.float32)])[None],
        "down16": weights.down, "down_bias": weights.down_bias,
        "one_i32": np.array(1, np.int32), "zero_i32": np.array(0, np.int32),
        "zero": np.array([0]), "one": np.array([1]), "last": np.array([-1]), "parts_of_state": np.array([hidden, hidden, 2]),
        "rows_of_embedding": np.array([-1, weights.words.shape[1]]), "rows_of_hidden": np.array([-1, hidden]),
        "pairs_of_logits": np.array([-1, 2, len(weights.words)]),
        "largest": np.float32(127), "tiny": np.float32(1e-20), "finer": np.float32(254), "middle": np.float32(128),
        "middle_u8": np.uint8(128), "weights_of_parts": np.array([[1, 1 / 254]], np.float32),
        "largest_7": np.float32(64), "finer_7": np.float32(128), "middle_7": np.float32(64),
        "middle_u8_7": np.uint8(64), "weights_of_parts_7": np.array([[1, 1 / 128]], np.float32),
        "minus_nats_per_bit": np.float32(-math.log(2)),
        "block": np.array([16]), "blocks_of_vectors": np.array([-1, 16, weights.words.shape[1]]),
        "blocks_of_tokens": np.array([-1, 16]), "zero_f32": np.float32(0),
    }  # fmt: skip
    make = helper.make_node
    infos = helper.make_tensor_value_info

    def compare(vectors: str, logits: str, bits: str = "") -> list[onnx.NodeProto]:
        """Nodes from vectors (rows, E) to logits (rows, V), by way of parts of eight bits or, with `_7`, of seven."""
        name = f"{logits}/".__add__
        return [
            make("Abs", [vectors], [name("size")]),
            make("ReduceMax", [name("size"), "last"], [name("peak")], keepdims=1),
            make("Max", [name("peak"), "tiny"], [name("positive")]),
            make("Div", [name("positive"), f"largest{bits}"], [name("unit")]),
            make("Div", [vectors, name("unit")], [name("scaled")]),
            make("Round", [name("scaled")], [name("hi")]),
            make("Sub", [name("scaled"), name("hi")], [name("rest")]),
            make("Mul", [name("rest"), f"finer{bits}"], [name("finer_rest")]),
            make("Round", [name("finer_rest")], [name("lo")]),
            make("Unsqueeze", [name("hi"), "one"], [name("hi_part")]),
            make("Unsqueeze", [name("lo"), "one"], [name("lo_part")]),
            make("Concat", [name("hi_part"), name("lo_part")], [name("parts")], axis=1),  # (rows, 2, E)
            make("Add", [name("parts"), f"middle{bits}"], [name("shifted")]),
            make("Cast", [name("shifted")], [name("parts_u8")], to=TensorProto.UINT8),
            make("Reshape", [name("parts_u8"), "rows_of_embedding"], [name("flat")]),  # (2 rows, E)
            make("MatMulInteger", [name("flat"), "words_by_column", f"middle_u8{bits}"], [name("sums")]),
            make("Cast", [name("sums")], [name("sums_f32")], to=TensorProto.FLOAT),
            make("Reshape", [name("sums_f32"), "pairs_of_logits"], [name("pairs")]),  # (rows, 2, V)
            make("Mul", [name("unit"), f"weights_of_parts{bits}"], [name("weight")]),
            make("Unsqueeze", [name("weight"), "one"], [name("weight_row")]),  # (rows, 1, 2)
            make("MatMul", [name("weight_row"), name("pairs")], [name("both")]),
            make("Squeeze", [name("both"), "one"], [name("unscaled")]),
            make("Mul", [name("unscaled"), "scale"], [name("unbiased")]),
            make("Add", [name("unbiased"), "bias"], [logits]),
        ]

    def remember(a: str, b: str, logits: str, mixed: str) -> list[onnx.NodeProto]:
        """Nodes that mix what followed the words a, b (rows,), numbers plus one, into logits (rows, V)."""
        name = f"{mixed}/".__add__
        return [
            make("Equal", [b, "end_plus_1"], [name("opens")]),
            make("Where", [name("opens"), "zero_i32", a], [name("a")]),
            make("Mul", [name("a"), "key_base"], [name("high")]),
            make("Add", [name("high"), b], [name("key")]),
            make("Mod", [name("key"), "buckets"], [name("bucket")]),
            make("Div", [name("key"), "buckets"], [name("quotient")]),
            make("Add", [name("bucket"), "one_i32"], [name("next_bucket")]),
            make("Gather", ["bucket_begin", name("bucket")], [name("begin")]),
            make("Gather", ["bucket_begin", name("next_bucket")], [name("end")]),
            make("Unsqueeze", [name("begin"), "one"], [name("begin_column")]),
            make("Unsqueeze", [name("end"), "one"], [name("end_column")]),
            make("Unsqueeze", [name("quotient"), "one"], [name("quotient_column")]),
            make("Add", [name("begin_column"), "bucket_slots"], [name("places")]),
            make("Less", [name("places"), name("end_column")], [name("inside")]),
            make("Min", [name("places"), "last_pair"], [name("places_read")]),
            make("Gather", ["quotients", name("places_read")], [name("stored")]),
            make("Cast", [name("stored")], [name("stored_i32")], to=TensorProto.INT32),
            make("Equal", [name("stored_i32"), name("quotient_column")], [name("equal")]),
            make("And", [name("equal"), name("inside")], [name("same")]),
            make("Where", [name("same"), name("places"), "zero_i32"], [name("hits")]),
            make("ReduceSum", [name("hits"), "one"], [name("pair")], keepdims=1),  # one at most
            make("Add", [name("pair"), "one_i32"], [name("next_pair")]),
            make("Gather", ["follower_begin", name("pair")], [name("from_column")]),
            make("Gather", ["follower_begin", name("next_pair")], [name("to_column")]),
            make("Add", [name("from_column"), "follower_slots"], [name("slots")]),
            make("Less", [name("slots"), name("to_column")], [name("real")]),
            make("Min", [name("slots"), "last_follower"], [name("slots_read")]),
            make("Gather", ["follower", name("slots_read")], [name("kept")]),
            make("Cast", [name("kept")], [name("kept_i64")], to=TensorProto.INT64),
            make("Gather", ["odds", name("slots_read")], [name("odds_read")]),
            make("Where", [name("real"), name("odds_read"), "no_odds"], [name("odds_16")]),
            make("Cast", [name("odds_16")], [name("odds")], to=TensorProto.FLOAT),
            make("ReduceMax", [logits, "one"], [name("peak")], keepdims=1),
            make("Sub", [logits, name("peak")], [name("lowered")]),
            make("Exp", [name("lowered")], [name("weights")]),
            make("ReduceSum", [name("weights"), "one"], [name("total")], keepdims=1),
            make("GatherElements", [name("weights"), name("kept_i64")], [name("weights_kept")], axis=1),
            make("Div", [name("weights_kept"), name("total")], [name("p")]),
            make("Max", [name("p"), "impossible"], [name("p_positive")]),
            make("Div", [name("odds"), name("p_positive")], [name("ratio")]),
            make("Add", [name("ratio"), "one_f32"], [name("factor")]),
            make("Log", [name("factor")], [name("gain")]),
            make("ScatterElements", [logits, name("kept_i64"), name("gain")], [mixed], axis=1, reduction="add"),
        ]

    block = helper.make_graph(
        [
            *compare("vectors_of_block", "lstm_logits_of_block", "_7"),
            *remember("a_of_block", "b_of_block", "lstm_logits_of_block", "logits_of_block"),
            make("LogSoftmax", ["logits_of_block"], ["log_p"], axis=1),
            make("Unsqueeze", ["tokens_of_block", "last"], ["chosen"]),
            make("GatherElements", ["log_p", "chosen"], ["log_p_of_chosen"], axis=1),
            make("Squeeze", ["log_p_of_chosen", "last"], ["nats"]),
            make("Div", ["nats", "minus_nats_per_bit"], ["bits_of_block"]),
        ],
        "surprisal_of_16_positions",
        [
            infos("vectors_of_block", TensorProto.FLOAT, None),
            infos("tokens_of_block", TensorProto.INT64, None),
            infos("a_of_block", TensorProto.INT32, None),
            infos("b_of_block", TensorProto.INT32, None),
        ],
        [infos("bits_of_block", TensorProto.FLOAT, None)],
    )
    wanted = helper.make_graph(
        [
            make("Squeeze", ["y", "one"], ["after"]),  # (T, B, H)
            make("Slice", ["after", "zero", "last", "zero"], ["but_last"]),
            make("Concat", ["h_before", "but_last"], ["before"], axis=0),
            make("Transpose", ["before"], ["before_by_row"], perm=[1, 0, 2]),
            make("Reshape", ["before_by_row", "rows_of_hidden"], ["before_flat"]),  # (B T, H)
            make("Gemm", ["before_flat", "down", "down_bias"], ["vectors"], transB=1),
            make("Reshape", ["tokens", "last"], ["tokens_flat"]),
            make("Shape", ["tokens_flat"], ["count"]),
            make("Neg", ["count"], ["minus_count"]),
            make("Mod", ["minus_count", "block"], ["lacking"]),
            make("Concat", ["zero", "zero", "lacking", "zero"], ["padding"], axis=0),
            make("Concat", ["zero", "lacking"], ["padding_1d"], axis=0),
            make("Pad", ["vectors", "padding"], ["vectors_padded"]),
            make("Pad", ["tokens_flat", "padding_1d"], ["tokens_padded"]),
            make("Reshape", ["vectors_padded", "blocks_of_vectors"], ["vector_blocks"]),
            make("Reshape", ["tokens_padded", "blocks_of_tokens"], ["token_blocks"]),
            *(
                node
                for which, begin, end in (("a", "zero", "minus_two"), ("b", "one", "last"))
                for node in (
                    make("Slice", ["words_so_far", begin, end, "one"], [f"{which}_of_all"]),
                    make("Reshape", [f"{which}_of_all", "last"], [f"{which}_flat"]),
                    make("Pad", [f"{which}_flat", "padding_1d"], [f"{which}_padded"]),
                    make("Reshape", [f"{which}_padded", "blocks_of_tokens"], [f"{which}_blocks"]),
                )
            ),
            make(
                "Scan",
                ["vector_blocks", "token_blocks", "a_blocks", "b_blocks"],
                ["bit_blocks"],
                body=block,
                num_scan_inputs=4,
            ),
            make("Reshape", ["bit_blocks", "last"], ["bits_padded"]),
            make("Slice", ["bits_padded", "zero", "count", "zero"], ["bits_flat"]),
            make("Shape", ["tokens"], ["grid"]),
            make("Reshape", ["bits_flat", "grid"], ["bits_of_all"]),
            make("Unsqueeze", ["explain", "one"], ["explain_column"]),
            make("Where", ["explain_column", "bits_of_all", "zero_f32"], ["bits"]),
        ],
        "explained",
        [],
        [infos("bits", TensorProto.FLOAT, None)],
    )
    unwanted = helper.make_graph(
        [make("Shape", ["tokens"], ["size"]), make("ConstantOfShape", ["size"], ["no_bits"])],
        "not_explained",
        [],
        [infos("no_bits", TensorProto.FLOAT, None)],
    )
    nodes = [
        make("Transpose", ["words"], ["words_by_column"], perm=[1, 0]),
        make("Cast", ["w16"], ["w"], to=TensorProto.FLOAT),
        make("Cast", ["r16"], ["r"], to=TensorProto.FLOAT),
        make("Cast", ["down16"], ["down"], to=TensorProto.FLOAT),
        make("Transpose", ["tokens"], ["tokens_by_time"], perm=[1, 0]),
        make("Gather", ["words", "tokens_by_time"], ["x_i8"]),
        make("Cast", ["x_i8"], ["x_unscaled"], to=TensorProto.FLOAT),
        make("Gather", ["scale", "tokens_by_time"], ["x_scale"]),
        make("Unsqueeze", ["x_scale", "last"], ["x_scale_column"]),
        make("Mul", ["x_unscaled", "x_scale_column"], ["x"]),  # (T, B, E)
        make("Split", ["state", "parts_of_state"], ["h", "c", "words_before"], axis=1),
        make(
            "Clip", ["words_before", "no_word", "most_words"], ["known_words_before"]
        ),  # a state may come from anybody
        make("Cast", ["known_words_before"], ["words_before_i32"], to=TensorProto.INT32),
        make("Cast", ["tokens"], ["tokens_i32"], to=TensorProto.INT32),
        make("Add", ["tokens_i32", "one_i32"], ["tokens_plus_1"]),
        make("Concat", ["words_before_i32", "tokens_plus_1"], ["words_so_far"], axis=1),  # (B, 2 + T)
        make("Cast", ["sequence_lens"], ["sequence_lens_i64"], to=TensorProto.INT64),
        make("Unsqueeze", ["sequence_lens_i64", "one"], ["sequence_lens_column"]),
        make("Add", ["sequence_lens_column", "pair_of_places"], ["places_of_last_words"]),
        make("GatherElements", ["words_so_far", "places_of_last_words"], ["last_words"], axis=1),
        make("Cast", ["last_words"], ["last_words_f32"], to=TensorProto.FLOAT),
        make("Split", ["last_words", "two_ones"], ["last_but_one", "last_one"], axis=1),
        make("Squeeze", ["last_but_one", "one"], ["a_now"]),
        make("Squeeze", ["last_one", "one"], ["b_now"]),
        make("Unsqueeze", ["h", "zero"], ["h_before"]),
        make("Unsqueeze", ["c", "zero"], ["c_before"]),
        make("Max", ["sequence_lens", "one_i32"], ["lengths"]),
        make(
            "LSTM",
            ["x", "w", "r", "gate_bias", "lengths", "h_before", "c_before"],
            ["y", "h_after", "c_after"],
            hidden_size=hidden,
        ),
        make("Greater", ["sequence_lens", "zero_i32"], ["read_something"]),
        make("Unsqueeze", ["read_something", "one"], ["read_something_column"]),
        make("Squeeze", ["h_after", "zero"], ["h_read"]),
        make("Squeeze", ["c_after", "zero"], ["c_read"]),
        make("Where", ["read_something_column", "h_read", "h"], ["h_now"]),
        make("Where", ["read_something_column", "c_read", "c"], ["c_now"]),
        make("Concat", ["h_now", "c_now", "last_words_f32"], ["next_state"], axis=1),
        make("Gemm", ["h_now", "down", "down_bias"], ["vector"], transB=1),
        *compare("vector", "lstm_logits"),
        *remember("a_now", "b_now", "lstm_logits", "logits"),
        make("Cast", ["explain"], ["explain_i32"], to=TensorProto.INT32),
        make("ReduceMax", ["explain_i32"], ["explain_any"], keepdims=0),
        make("Cast", ["explain_any"], ["somebody_asks"], to=TensorProto.BOOL),
        make("If", ["somebody_asks"], ["surprisal"], then_branch=wanted, else_branch=unwanted),
    ]
    graph = helper.make_graph(
        nodes,
        "english-lstm",
        [
            infos("tokens", TensorProto.INT64, ["batch", "time"]),
            infos("sequence_lens", TensorProto.INT32, ["batch"]),
            infos("state", TensorProto.FLOAT, ["batch", 2 * hidden + 2]),
            infos("explain", TensorProto.BOOL, ["batch"]),
        ],
        [
            infos("logits", TensorProto.FLOAT, ["batch", len(weights.words)]),
            infos("next_state", TensorProto.FLOAT, ["batch", 2 * hidden + 2]),
            infos("surprisal", TensorProto.FLOAT, ["batch", "time"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="english-lstm"
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def check(path: Path, reference: Reference, corpus: Corpus, order: np.ndarray) -> float:
    """Largest difference between ONNX Runtime and torch over real text, as a share of what is allowed.

    Logarithms are compared relative to their size, if above 1. Surprisals may differ more: they have parts of seven bits.
    The batch mixes lengths, 0 among them, so padding and passing through are compared as well.
    """
    session = open_session(path)
    place = np.argsort(order)
    tokens = place[corpus.wikitext["valid"][:320]].reshape(8, 40)
    lengths = np.array([40, 0, 1, 17, 40, 33, 2, 40], np.int32)
    state = np.zeros((8, 2 * reference.lstm.hidden_size + 2), np.float32)
    explain = np.ones(8, bool)
    worst = 0.0
    for _ in range(3):
        feed = {"tokens": tokens, "sequence_lens": lengths, "state": state, "explain": explain}
        got = dict(zip(("logits", "next_state", "surprisal"), session.run(None, feed), strict=True))
        want = reference.run(feed)
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        p = [torch.from_numpy(x["logits"]).double().softmax(1).numpy() for x in (got, want)]
        log_p = [np.log(x) for x in p]
        bits = [x["surprisal"][real] for x in (got, want)]
        differences = {
            "probability": float(np.abs(p[0] - p[1]).max()),
            "log-probability, relative": float((np.abs(log_p[0] - log_p[1]) / np.maximum(1, -log_p[1])).max()),
            "next_state": float(np.abs(got["next_state"] - want["next_state"]).max()),
            "surprisal, relative": float((np.abs(bits[0] - bits[1]) / np.maximum(1, bits[1])).max()),
        }
        print("ONNX against torch:", {k: f"{v:.1e}" for k, v in differences.items()}, flush=True)
        allowed = {name: 1e-3 if name.startswith("surprisal") else 1e-4 for name in differences}
        worst = max(worst, *(value / allowed[name] for name, value in differences.items()))
        state, tokens = want["next_state"], np.roll(tokens, 1, axis=0)
    return worst


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    keep_sums_exact(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


GOLDEN = (
    {"text": "The capital of", "top_k": 3},
    {"text": "I would lik", "top_k": 3},
    {"text": "Can you please ", "top_k": 3, "explain": True},
)


def golden(version: Path, reference: Reference) -> list[dict[str, Any]]:
    """Answers to real requests, computed by the task with torch in the place of ONNX Runtime."""
    proto = onnx.load(str(version / "model.onnx"))

    def specs(values: Any) -> dict[str, TensorSpec]:
        return {
            v.name: TensorSpec(
                v.name,
                helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name,
                tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
            )
            for v in values
        }

    signature = Signature(specs(proto.graph.input), specs(proto.graph.output))
    task = NextWordPrediction(ModelFolder(FOLDER.name, version.name, version, signature))
    entries = []
    for request in GOLDEN:
        steps = task.steps(NextWordInput.model_validate(request))
        try:
            run = next(steps)
            while True:
                run = steps.send(reference.run(dict(run.tensors)))
        except StopIteration as stop:
            answer = stop.value.model_dump(include={"predictions", "completing", "tokens"})
        if answer["tokens"] is None:
            del answer["tokens"]
        entries.append({"input": request, "output": answer, "tolerance": 0.002})
    return entries


def export(model: LanguageModel, corpus: Corpus, trigrams: Trigrams) -> Path:
    """Write version 1: graph, vocabulary, golden answers. Returns its folder."""
    version = FOLDER / "1"
    version.mkdir(exist_ok=True)
    order = serving_order(corpus)
    weights = round_weights(model, corpus.vocabulary, order, trigrams)
    onnx.save(build_graph(weights), str(version / "model.onnx"))
    (version / "vocabulary.txt").write_text("\n".join(weights.vocabulary) + "\n", encoding="utf8")
    reference = Reference(weights)
    worst = check(version / "model.onnx", reference, corpus, order)
    if worst > 1:
        raise SystemExit(f"ONNX and torch differ by {worst:.1f} times as much as is allowed")
    entries = golden(version, reference)
    (version / "golden.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
    return version


# ----------------------------------------------------------------------------------------------------------- the record


def score(data: Path) -> dict[str, Any]:
    """The official test files, once, through the exported ONNX file; the same command that anybody can run."""
    script = FOLDER.parents[1] / "benchmarks" / "perplexity.py"
    command = [sys.executable, str(script), str(FOLDER), "--data", str(data), "--official", "--everyday", "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def between(text: str, name: str, lines: list[str]) -> str:
    """Replace what stands between two markers of the card."""
    before, rest = text.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return "\n".join([f"{before}<!-- {name} -->", *lines, f"<!-- /{name} -->"]) + after


def record(found: dict[str, Any], saved: dict[str, Any], chosen: dict[str, Any], corpus: Corpus) -> None:
    """Write the figures into card.md and manifest.toml, and how they came about into training.json."""
    names = {
        "sgd": "Schema-Guided Dialogue test",
        "banking77": "banking77 test",
        "clinc150": "clinc150 test",
        "reviews": "film reviews",
    }
    # Keystrokes are of a choice of lines, so the manifest does not claim them: another choice gives another figure.
    measures = {"top-1": "top-1 accuracy", "top-3": "top-3 accuracy"}

    def within(interval: list[float], factor: float = 1) -> str:
        return " to ".join(f"{factor * value:.1f}" for value in interval)

    wiki = found["wikitext2"]
    rows = ["| WikiText-2 test, 245,569 tokens | perplexity | 95 % interval |", "|---|---|---|"]
    for part, over in ((wiki, "the model's"), (wiki["official"], "the official")):
        figure = f"{part['perplexity']:.1f}"
        strong = "**" if part is wiki else ""
        rows.append(
            f"| over {over} {part['vocabulary']:,} words | {strong}{figure}{strong} | {within(part['interval'])} |"
        )
    metrics = {
        "WikiText-2 test perplexity": round(wiki["perplexity"], 2),
        "WikiText-2 test perplexity over the official vocabulary": round(wiki["official"]["perplexity"], 2),
    }
    rows += [
        "",
        "| everyday English | words asked for | first suggestion is right | one of three is right | keystrokes saved |",
        "|---|---|---|---|---|",
    ]
    for key, name in names.items():
        part = found["everyday"][key]
        shares = {"top-1": part["top-1"], "top-3": part["top-3"], "saved": part["keystrokes"]["saved"]}
        cells = [f"{one['share']:.1%} ({within(one['interval'], 100)})" for one in shares.values()]
        rows.append(f"| {name} | {part['words']:,} | {' | '.join(cells)} |")
        metrics |= {f"{name} {said}": round(shares[measure]["share"], 4) for measure, said in measures.items()}
    card = (FOLDER / "card.md").read_text(encoding="utf8")
    card = between(card, "metrics", rows)
    size = f"`model.onnx` has {found['megabytes']:.1f} MB; the vocabulary {len(corpus.vocabulary):,} words."
    (FOLDER / "card.md").write_text(between(card, "size", [size]), encoding="utf8")

    manifest = (FOLDER / "manifest.toml").read_text(encoding="utf8").split("[metrics]")[0]
    lines = [f'"{name}" = {value}' for name, value in metrics.items()]
    (FOLDER / "manifest.toml").write_text("\n".join([f"{manifest}[metrics]", *lines, ""]), encoding="utf8")
    story = {
        "cycles": [*saved["earlier"], cycle_of(saved)],
        **chosen,
        "versions": {m.__name__: m.__version__ for m in (torch, np, onnx, onnxruntime)},
        "tokens": {k: len(v) for k, v in [*corpus.wikitext.items(), *corpus.everyday.items()]},
        "sha256": corpus.digests,
    }
    (FOLDER / "training.json").write_text(json.dumps(story, indent=2) + "\n", encoding="utf8")


def cycle_of(saved: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint tells about its training."""
    return {
        "steps": saved["step"],
        "wall_clock_minutes": round(saved["spent"] / 60, 1),
        "stages": saved["stages"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder which contains wikitext2 and english_text")
    parser.add_argument("--work", type=Path, default=Path("runs/english-lstm"), help="where checkpoints go")
    parser.add_argument("--warm-start", type=Path, metavar="VERSION", help="start from this exported version's weights")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export-only", action="store_true")
    parser.add_argument("--skip-test", action="store_true", help="leave the test files and the recorded figures alone")
    for field in dataclasses.fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    config = Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    corpus = prepare(options.data, config, options.work / "corpus.pt")
    sizes = {k: len(v) for k, v in [*corpus.wikitext.items(), *corpus.everyday.items()]}
    print(f"{len(corpus.vocabulary)} words, {corpus.official} of them official; tokens {sizes}", flush=True)
    model = LanguageModel(len(corpus.vocabulary), config)
    earlier = []
    if options.warm_start:
        model.load_version(options.warm_start, corpus.vocabulary)
        earlier = json.loads((options.warm_start.parent / "training.json").read_text(encoding="utf8"))["cycles"]
    checkpoint = options.work / "checkpoint.pt"
    if not options.export_only:
        train(model, corpus, config, checkpoint, options.resume, earlier)
    saved = torch.load(checkpoint, weights_only=False)
    chosen = choose(model, saved, corpus)
    trigrams = count_trigrams(model, corpus, config)
    chosen["trigrams"] = {"pairs": len(trigrams.keys), "followers": len(trigrams.words), **trigrams.record}
    export(model, corpus, trigrams)
    if not options.skip_test:
        record(score(options.data), saved, chosen, corpus)


if __name__ == "__main__":
    main()
