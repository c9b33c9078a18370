"""WikiText-2 test perplexity, and suggestions for what people type in everyday English.

    gridloop evaluate english-lstm --data DIR [--url URL] [--write]

DIR contains `wikitext2/test.txt.gz` (https://github.com/pytorch/examples) and `english_text/{sgd_test.txt,
banking77_test.tsv,clinc150_test.tsv,movie_reviews.tsv}.xz`; `benchmarks/perplexity.py` says where each is from, and defines
accuracy and keystrokes saved.

The official perplexity is of the official tokens, one `<eos>` at each line end, read as one stream by the graph itself (the
Open Inference Protocol's route): `<unk>` and "don 't" are tokens there that nobody types. What the text route tells of the
same words, written as a person would, by `explain`, stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from service.evaluation import Ask, DataMissing, Figure, Infer, Item, Outcome, Plot, load_script, spread_evenly
from service.evaluation.base import Answer, Conversation, Question
from service.evaluation.next_word_prediction import (
    PIECE_CHARS,
    RUN_TOKENS,
    NextWordPredictionEvaluation,
    Words,
    share,
    stream_surprisals,
    surprisals,
)
from service.evaluation.statistics import bootstrap_sums, perplexity
from service.text.tokeniser import END, join
from service.text.vocabulary import UNKNOWN

scorer = load_script(Path(__file__).resolve().parents[2] / "benchmarks" / "perplexity.py")

KEYSTROKE_LINES = 200
"""Lines of each set that are typed letter by letter."""

TYPED_ARTICLES = 20
"""Articles of WikiText-2, evenly spread, that are also read as typed text: telling surprisals is what costs most here."""

UNHEARD_OF = "zxqvzxqv"
"""Typed where WikiText-2 has `<unk>`: a word that no vocabulary has."""


@dataclass(frozen=True)
class Stream:
    """The surprisal of every token of WikiText-2, in bits."""

    bits: np.ndarray


@dataclass(frozen=True)
class Typed:
    """The surprisal of every word and mark of WikiText-2 as a person would type it, in bits."""

    bits: np.ndarray


@dataclass(frozen=True)
class Keys:
    """One line typed with suggestions: keys that they saved, and characters without them (counts)."""

    source: str
    saved: int
    characters: int


class English(NextWordPredictionEvaluation):
    """WikiText-2 and sets of everyday English, each the official test split."""

    title = "WikiText-2 and everyday English, official test splits"
    named: ClassVar[dict[str, str]] = {
        "banking77": "banking77 test",
        "clinc150": "clinc150 test",
        "sgd": "Schema-Guided Dialogue test",
        "reviews": "film reviews",
    }

    can_explain = False  # of everyday lines: their perplexity is not told, and asking for it would cost minutes

    def _read_data(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the benchmark reads from the folder."""
        try:
            return read(self.data, *arguments)
        except FileNotFoundError as error:
            raise DataMissing(
                self.data,
                Path(error.filename).relative_to(self.data).as_posix(),
                "WikiText-2 is in https://github.com/pytorch/examples (word_language_model/data/wikitext-2), banking77 and "
                "clinc150 in https://github.com/PolyAI-LDN/task-specific-datasets and https://github.com/clinc/oos-eval, the "
                "dialogues in https://github.com/google-research-datasets/dstc8-schema-guided-dialogue.",
            ) from None

    def texts(self) -> Mapping[str, Sequence[str]]:
        found = self._read_data(scorer.read_everyday)
        return {self.named.get(name, name): [line for line in lines if line.strip()] for name, lines in found.items()}

    def items(self) -> Sequence[Item]:
        self.articles = self._read_data(scorer.read_wikitext, "test")
        if self.limit is not None:
            self.articles = [article[: 20 * self.limit] for article in self.few(self.articles)]
        tokens = [token for article in self.articles for token in article]
        self.words = (self.subject.folder / "vocabulary.txt").read_text("utf-8").removesuffix("\n").split("\n")
        number = {word: index for index, word in enumerate(self.words)}
        self.ids = np.array([number.get(token, number[UNKNOWN]) for token in tokens])
        some = [token for article in spread_evenly(self.articles, TYPED_ARTICLES) for token in article]
        text = join(UNHEARD_OF if token == UNKNOWN else token for token in some)
        items = [
            Item("WikiText-2", partial(self._stream, number[END]), 1 + -(-len(self.ids) // RUN_TOKENS)),
            Item("WikiText-2, typed", partial(self._typed, text), -(-len(text) // PIECE_CHARS)),
            *super().items(),
        ]
        for source, lines in self.texts().items():
            for place, line in enumerate(spread_evenly(self.few(lines), KEYSTROKE_LINES), start=1):
                items.append(Item(f"{source}, typed line {place}", partial(self._type, source, line), len(line) // 2))
        return items

    @staticmethod
    def _type(source: str, line: str) -> Generator[Question, Answer, Keys]:
        writer = scorer.Writer(line)
        while not writer.is_done:
            asked = writer.asked
            answer = yield Ask({"text": asked.text, "state": asked.state, "top_k": scorer.STRIP})
            asked.words = tuple(prediction["text"] for prediction in answer["predictions"])
            asked.completing, asked.state = answer["completing"], answer["state"]
            writer.go_on()
        return Keys(source, len(writer.line) - writer.keys, len(writer.line))

    def _stream(self, opening: int) -> Generator[Question, Answer, Stream]:
        bits = yield from stream_surprisals(self.ids, opening, self.subject.signature)
        return Stream(bits)

    @staticmethod
    def _typed(text: str) -> Generator[Question, Answer, Typed]:
        bits = yield from surprisals(text)
        return Typed(bits)

    def timed(self) -> Conversation:
        """One token with a state, logits and state fetched."""
        tensors = {
            "tokens": np.array([[1]], np.int64),
            "sequence_lens": np.array([1], np.int32),
            "explain": np.array([False]),
            **self.subject.signature.fresh_state(),
        }
        yield Infer(tensors, ("logits", "next_state"))

    def outcome(self, records: Sequence[Stream | Typed | Words | Keys]) -> Outcome:
        usual = super().outcome([record for record in records if isinstance(record, Words)])
        (stream,) = (record for record in records if isinstance(record, Stream))
        (typed,) = (record for record in records if isinstance(record, Typed))
        keys = [record for record in records if isinstance(record, Keys)]
        figures = [
            self._perplexity(stream),
            Figure(
                "WikiText-2 perplexity, as typed text",
                float(2 ** typed.bits.mean()),
                len(typed.bits),
                "words and marks",
                form=".2f",
            ),
            *usual.figures,
            *(
                share(
                    f"{source} keystrokes saved",
                    np.array([(k.saved, k.characters) for k in keys if k.source == source], float),
                    "characters",
                )
                for source in dict.fromkeys(record.source for record in keys)
            ),
        ]
        notes = [
            f"WikiText-2: the official tokens, one `{END}` a line, as one stream with its state, over the model's "
            f"{len(self.words):,} words; interval: bootstrap over articles. As typed text: {TYPED_ARTICLES} of the articles, evenly "
            "spread, by `explain` of the text route, which does not tell line ends, reads an unknown word where the file has one, "
            "and contractions as people write them; so the two differ.",
            "Accuracy is of the words as they are typed: after a hyphen the service has read a mark, not yet a joined word, so "
            "the figures may lie a little below those of the tokens (benchmarks/perplexity.py).",
            f"Keystrokes saved: {scorer.STRIP} suggestions in view, taking one is one key and writes the space, too; at most "
            f"{KEYSTROKE_LINES:,} lines of each text, evenly spread.",
        ]
        return Outcome(figures, (), [self._by_frequency(stream), *usual.plots], [*notes, *usual.notes])

    def _perplexity(self, stream: Stream) -> Figure:
        """Of all tokens; the interval from articles drawn anew, since the words of one have its difficulty in common."""
        lengths = np.array([len(article) for article in self.articles])
        begins = np.cumsum(lengths) - lengths
        sums = np.stack([np.add.reduceat(stream.bits, begins), lengths], axis=1)
        low, high = bootstrap_sums(sums, perplexity) or (None, None)
        value = float(perplexity(sums.sum(axis=0)))
        return Figure("WikiText-2 test perplexity", value, len(stream.bits), "tokens", low, high, ".2f")

    def _by_frequency(self, stream: Stream) -> Plot:
        """The vocabulary has the most frequent words first."""
        edges = [0, 10, 100, 1_000, 10_000, len(self.words)]
        names, values, shares = [], [], []
        for first, end in pairwise(edges):
            chosen = (self.ids >= first) & (self.ids < end)
            if chosen.any():
                names.append(f"{first + 1:,} to {end:,}")
                values.append(float(2 ** stream.bits[chosen].mean()))
                shares.append(float(chosen.mean()))
        data: dict[str, Any] = {"names": names, "perplexities": values, "shares": shares}
        return Plot(
            "perplexity_by_frequency.png",
            "WikiText-2: perplexity of frequent and rare words, and how much of the text they are.",
            "perplexity_by_frequency",
            data,
        )
