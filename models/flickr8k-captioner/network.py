"""The captioner: what the encoder makes of a picture, and a GRU that looks at it while it writes.

    features, key, state = network.encode(seen)          # seen (B, P, SEEN), of EfficientNet-Lite2
    logits, state, attention = network.step(token, state, features, key)

B pictures, R captions of each, P places in a picture (7 x 7), T words; D features, H numbers of state, E of a word.
Soft attention is that of Xu et al. (2015), with the dot products of Luong et al., "Effective Approaches to
Attention-based Neural Machine Translation" (2015), in four heads: no tanh for each word and place, which is most of what
theirs costs. Words go in and out by one table (Press and Wolf, "Using the Output Embedding to Improve Language Models",
2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEEN = 1280
"""Channels of EfficientNet-Lite2's last map."""
GRID = 7
"""Places along a side of it."""


class Captioner(nn.Module):
    """Encoder's last layers and decoder.

    Args:
        words: tokens in the vocabulary (count).
        features: D, of a place.
        state: H.
        embedding: E.
        key: numbers by which a place is found.
        heads: of attention; each looks at its share of the features.
        dropout: before the table of words; 0.3 of the features and words that are read.
    """

    def __init__(
        self,
        words: int,
        *,
        features: int = 256,
        state: int = 320,
        embedding: int = 160,
        key: int = 128,
        heads: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.project, self.norm = nn.Linear(SEEN, features), nn.LayerNorm(features)
        self.key, self.query = nn.Linear(features, key), nn.Linear(state, key)
        self.first, self.gate = nn.Linear(features, state), nn.Linear(state, features)
        self.embed = nn.Embedding(words, embedding)
        self.from_word = nn.Linear(embedding, 3 * state)
        self.from_picture = nn.Linear(features, 3 * state, bias=False)
        self.from_state = nn.Linear(state, 3 * state)
        self.out_state, self.out_picture = nn.Linear(state, embedding), nn.Linear(features, embedding)
        self.bias = nn.Parameter(torch.zeros(words))
        self.drop, self.light = nn.Dropout(dropout), nn.Dropout(0.3)
        nn.init.normal_(self.embed.weight, std=embedding**-0.5)

    def encode(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, P, D), their keys, and the first state (B, H), of maps (B, P, SEEN).

        A channel is dropped in all places of a picture at once: places beside each other tell much the same.
        """
        if self.training:
            seen = seen * self.light(seen.new_ones(len(seen), 1, seen.shape[2]))
        features = self.norm(F.relu(self.project(seen)))
        return features, self.key(features), torch.tanh(self.first(features.mean(1)))

    def attend(self, state: Tensor, features: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What is looked at before the next word: context (B, R, D), and attention (B, R, P), the mean of the heads."""
        batch, rows, _ = state.shape
        width = key.shape[-1] // self.heads
        query = self.query(state).view(batch, rows, self.heads, width).transpose(1, 2)
        keys = key.view(batch, -1, self.heads, width).permute(0, 2, 3, 1)
        attention = (query @ keys * width**-0.5).softmax(-1)  # (B, heads, R, P)
        shares = features.view(batch, features.shape[1], self.heads, -1).transpose(1, 2)
        context = (attention @ shares).transpose(1, 2).reshape(batch, rows, -1)
        return context * torch.sigmoid(self.gate(state)), attention.mean(1)

    def next_state(self, word: Tensor, context: Tensor, state: Tensor) -> Tensor:
        """A step of the GRU; `word` is `from_word` of the word read."""
        read, kept = word + self.from_picture(context), self.from_state(state)
        (read_reset, read_update, read_new), (reset, update, new) = read.chunk(3, -1), kept.chunk(3, -1)
        proposed = torch.tanh(read_new + torch.sigmoid(read_reset + reset) * new)
        return proposed + torch.sigmoid(read_update + update) * (state - proposed)

    def logits(self, state: Tensor, context: Tensor, word: Tensor) -> Tensor:
        """Of the next word, by all that is known: the deep output of Xu et al."""
        said = torch.tanh(self.out_state(self.drop(state)) + self.out_picture(context) + word)
        return F.linear(self.drop(said), self.embed.weight, self.bias)

    def step(self, token: Tensor, state: Tensor, features: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read a word of each caption: token (B, R), state (B, R, H) -> logits, the next state, attention."""
        word = self.embed(token)
        context, attention = self.attend(state, features, key)
        state = self.next_state(self.from_word(word), context, state)
        return self.logits(state, context, word), state, attention

    def teach(self, captions: Tensor, lengths: Sequence[int], places: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Read captions that are known.

        Args:
            captions: int64 (rows, T), the longest first.
            lengths: how many captions have a word after word t, for t from 0 to T - 2.
            places: int64 (rows,): which of the B x R captions each is.
            seen: maps of the pictures (B, P, SEEN).

        Returns:
            logits after each word that has one after it, all captions' first words first; and how much attention each
            place got in all (B x R, P).
        """
        features, key, first = self.encode(seen)
        batch, rows = len(seen), len(captions) // len(seen)
        words = self.light(self.embed(captions))
        read = self.from_word(words)
        state = first[:, None].expand(batch, rows, -1).reshape(batch * rows, -1)[places]
        states, contexts, embedded, looked = [], [], [], features.new_zeros(batch * rows, features.shape[1])
        for t, count in enumerate(lengths):
            state, here = state[:count], places[:count]
            # All captions of a picture share its features: so they are not copied for each.
            beside = state.new_zeros(batch * rows, state.shape[1]).index_copy(0, here, state).view(batch, rows, -1)
            context, attention = self.attend(beside, features, key)
            context = context.reshape(batch * rows, -1)[here]
            going = features.new_zeros(batch * rows, 1).index_fill(0, here, 1.0)
            looked = looked + attention.reshape(batch * rows, -1) * going
            state = self.next_state(read[:count, t], context, state)
            states.append(state)
            contexts.append(context)
            embedded.append(words[:count, t])
        return self.logits(torch.cat(states), torch.cat(contexts), torch.cat(embedded)), looked


class Encoder(nn.Module):
    """The graph `encoder.onnx`: pictures (B, 3, 224, 224) to what the decoder reads."""

    def __init__(self, backbone: nn.Module, captioner: Captioner) -> None:
        super().__init__()
        self.backbone, self.captioner = backbone, captioner

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, keys and the first state."""
        maps = self.backbone.extract_features(pictures).reshape(
            -1, SEEN, GRID**2
        )  # the graph tells the number of places
        return self.captioner.encode(maps.transpose(1, 2))


class Decoder(nn.Module):
    """The graph `decoder.onnx`: one word of each caption, each with the features of its picture."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, token: Tensor, state: Tensor, features: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (rows, words), the next state (rows, H), attention (rows, 7, 7)."""
        logits, state, attention = self.captioner.step(token[:, None], state[:, None], features, key)
        return logits[:, 0], state[:, 0], attention[:, 0].unflatten(-1, (GRID, GRID))
