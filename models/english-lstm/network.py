"""The network in torch: an LSTM between a table of words and the same table read backwards, and what trains it.

Tensor letters: V vocabulary, E embedding width, H hidden units, B rows of a batch, T time steps, N = B * T targets.

References:
    Press, Wolf, "Using the Output Embedding to Improve Language Models" (2017), arXiv:1608.05859: one table for both.
    Gal, Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks" (2016), arXiv:1512.05287.
    Bengio, Senecal, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model" (2008).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from weights import Weights


class LanguageModel(nn.Module):
    """Embedding -> LSTM -> linear -> the same embedding read backwards (Press, Wolf 2017) plus a bias."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, embedding).uniform_(-0.1, 0.1))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.lstm = nn.LSTM(embedding, hidden)
        self.down = nn.Linear(hidden, embedding)
        with torch.no_grad():
            self.lstm.bias_ih_l0.zero_()
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = 1.0  # remember by default

    def load_version(self, folder: Path, vocabulary: list[str]) -> None:
        """Take over the weights of an exported version; its vocabulary may stand in another order."""
        stored = Weights.read(folder)
        words = stored.vocabulary
        if sorted(words) != sorted(vocabulary):
            raise SystemExit(f"{folder} has another vocabulary than the data give")
        number = {word: i for i, word in enumerate(words)}
        order = np.array([number[word] for word in vocabulary])

        found = {
            "embedding": (stored.words * stored.scale[:, None])[order],
            "bias": stored.bias[order],
            "lstm.weight_ih_l0": stored.w.astype(np.float32),
            "lstm.weight_hh_l0": stored.r.astype(np.float32),
            "lstm.bias_ih_l0": stored.gate_bias,
            "lstm.bias_hh_l0": np.zeros_like(stored.gate_bias),
            "down.weight": stored.down.astype(np.float32),
            "down.bias": stored.down_bias,
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
