"""The rounded weights in torch: what the exported graph must reproduce, and what `golden.json` is computed with."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from texts import Corpus
from torch import nn
from weights import Weights

from service.text.tokeniser import END
from training.export import open_session


class Reference:
    """The graph, computed by torch one row after another."""

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
