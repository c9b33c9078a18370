"""The two networks in torch: gated convolutions over the last words, and an LSTM; about as many weights each.

Tensor letters: V vocabulary, E embedding width, L layers, K kernel width, B rows of a batch, T time steps.

References:
    Dauphin, Fan, Auli, Grangier, "Language Modeling with Gated Convolutional Networks" (2017), arXiv:1612.08083.
    Ba, Kiros, Hinton, "Layer Normalization" (2016), arXiv:1607.06450.
    Press, Wolf, "Using the Output Embedding to Improve Language Models" (2017), arXiv:1608.05859: one table for both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedConvolutions(nn.Module):
    """Layers of x + a * sigmoid(b), where a and b are convolutions of the last K normalised steps of x.

    The state (B, L, K - 1, E) holds what each convolution needs of the steps before: zeros where there were none. So a text
    in pieces is read as the whole is, and what lies further back than L (K - 1) steps has no influence at all.
    """

    def __init__(self, width: int, layers: int = 6, kernel: int = 4) -> None:
        super().__init__()
        self.width, self.kernel = width, kernel
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(kernel * width, 2 * width) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (T, B, E) -> y (T, B, E), and the state after it."""
        time, rows, _ = x.shape
        if state is None:
            state = x.new_zeros(rows, len(self.norms), self.kernel - 1, self.width)
        kept = []
        for layer, (norm, gate) in enumerate(zip(self.norms, self.gates, strict=True)):
            seen = torch.cat([state[:, layer].transpose(0, 1).to(x.dtype), norm(x).to(x.dtype)])  # (K - 1 + T, B, E)
            kept.append(seen[time:].transpose(0, 1))
            window = torch.cat([seen[k : k + time] for k in range(self.kernel)], -1)  # (T, B, K E)
            x = x + F.glu(gate(window), -1)
        return self.last(x), torch.stack(kept, 1)


class Recurrent(nn.Module):
    """An LSTM and a linear layer. The state holds its hidden and its cell units, (2, B, H)."""

    def __init__(self, width: int, hidden: int = 232) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden)
        self.down = nn.Linear(hidden, width)
        with torch.no_grad():
            self.lstm.bias_ih_l0.zero_()
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = 1.0  # remember by default

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (T, B, E) -> y (T, B, E), and the state after it."""
        pair = None if state is None else (state[:1].contiguous(), state[1:].contiguous())
        y, (h, c) = self.lstm(x, pair)
        return self.down(y), torch.cat([h, c])


class LanguageModel(nn.Module):
    """A table of words, a network over them, and the same table read backwards plus a bias."""

    def __init__(self, vocabulary: int, width: int, network: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, width).uniform_(-0.1, 0.1))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.network = network

    def read(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """tokens (T, B) -> vectors (T, B, E) that are compared with every word, and the state after them."""
        y, after = self.network(self.embedding[tokens], state)
        return y, after


NETWORKS: dict[str, type[nn.Module]] = {"cnn": GatedConvolutions, "rnn": Recurrent}
ROWS_AXIS = {"cnn": 0, "rnn": 1}
"""Which axis of a state is that of the rows."""
