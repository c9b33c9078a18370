"""Next-word prediction: what will the writer of this text type next?

A model is a recurrent word-level language model: a graph with the inputs `tokens` int64 (batch, time), `sequence_lens`
int32 (batch,) and `state` float32 (batch, S), and the outputs `logits` float32 (batch, words), after the last real
token or, where `sequence_lens` is 0, after the state alone, and `next_state`. For `explain` it also needs the input
`explain` bool (batch,) and the output `surprisal` float32 (batch, time), in bits. `vocabulary.txt` names the words in
the spelling they have inside a sentence, the most frequent first; where it has `<eos>`, this opens every stream and
ends each paragraph; where it has `<unk>`, this stands for words that it does not have, which are refused otherwise.

**The normal form.** Text is read as what it looks like (`service/text/normal_form.py`): the answer to a text is that to
its normal form, and a completion goes on from the letters that were typed.

**The law of streams.** Text is read in *chunks*, the runs of characters between spaces, and the tokens of a chunk
depend on that chunk alone; what nobody sees is left out before, character by character. The state holds the network's
memory after the last chunk that a space follows, and the characters since. So a text may be cut anywhere, even inside a
word: part by part with the state, or all at once, the predictions are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.decoding.beam import BEAMS, search
from service.errors import InferenceFailed, InvalidInput, InvalidState, ManifestInvalid, TooLarge
from service.state import LEADS_NOWHERE, OutOfRange
from service.tasks.base import (
    Fact,
    ModelField,
    ModelFolder,
    ModelReference,
    Run,
    Settled,
    Steps,
    Task,
    TaskInput,
    TaskOutput,
    Understood,
)
from service.tasks.comparison import difference, ranking_difference
from service.tasks.terminal import Shown, Table
from service.text.normal_form import normalise, visible
from service.text.tokeniser import END, FRAGMENT, MAX_CHUNK_CHARS, PIECE, join, split_chunk, unfinished_from
from service.text.vocabulary import UNKNOWN, Vocabulary, proportional

__all__ = [
    "NextWordInput",
    "NextWordOutput",
    "NextWordPrediction",
    "TokenSurprisal",
    "WordPrediction",
]

MAX_RUN_TOKENS = 160
"""A longer text is read in several runs, about 10 ms each, and cut into tokens for one run at a time, so that the runs
of others come between (tokens)."""
MAX_RUN_CHARS = 8192
"""Tokens of so many characters are enough for a run, so that cutting them doesn't take long either (characters)."""
MAX_EXPLAINED_TOKENS = 32
"""The same where surprisals are wanted, which take several times as long (tokens)."""
MAX_BATCH_TOKENS = 1024
"""Long texts that are read together have no more tokens than this in one run: from four of them on, more are not read
faster together than one after another (tokens)."""
EXPLAINED_COST = 12
"""How many times as long a token takes when its surprisal is wanted (factor)."""
MAX_TOKENS_AGAIN = 48
"""A longer text is never read twice in one run, as it takes longer than a second run (tokens)."""
REMEMBERED_CHUNKS = 16_384
"""Chunks whose tokens are remembered: few words make up most of every text (count)."""
WORD_CHARS = 6
"""About the length of a word with its space (characters)."""
MORE_WORDS = 16
"""Words that are looked at beyond those asked for, where an answer is compared with an expected one (count)."""
TRAIT_CHARS = 400
"""Of the end of a text, in which words are counted that the model does not have (characters)."""
REMEMBERED_CHARS = 64
"""Longer chunks are seldom words, and are not remembered (characters)."""


# ------------------------------------------------------------------------------------------------------ public types


class NextWordInput(TaskInput):
    """A text that stops where the writer stopped typing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "The capital of"},
                {"text": "I would lik", "top_k": 3},
                {"text": "How are", "top_k": 3, "words": 2},
                {"text": "Can you please ", "top_k": 1, "complete": "never", "explain": True},
            ]
        }
    )

    text: str = Field(
        description=(
            "What has been typed: all of it, or with `state` only what is new since. Empty only with `state`. "
            "It is read in normal form: without characters that nobody sees, accents composed, ligatures, full-width "
            "letters and typographic quotes and hyphens as those of a keyboard."
        ),
        examples=["The capital of"],
    )
    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Predictions to return; more than there are: all of them.", examples=[5]
    )
    model: ModelReference | None = ModelField
    state: str | None = Field(
        default=None,
        description="The `state` of the previous answer, unchanged; left out: the text starts anew.",
        examples=[None],
    )
    complete: Literal["auto", "never"] = Field(
        default="auto",
        description=(
            "`auto`: when the text ends without a space, the model judges whether its last word is finished; one that "
            "is still being typed is completed. `never`: the last word is taken as finished."
        ),
        examples=["auto"],
    )
    words: Annotated[int, Field(ge=1, le=8)] = Field(
        default=1,
        description="Words of each prediction: more than one are searched for together, within the sentence.",
        examples=[1],
    )
    explain: bool = Field(
        default=False, description="Add `tokens`: how surprising each word of the new text was.", examples=[False]
    )

    @property
    def rows(self) -> int:
        if self.words > 1:
            return BEAMS
        return 1 if self.text[-1:].isspace() else 2  # before and after a last word that may be unfinished

    @property
    def work(self) -> int:
        """Characters, those that are to be found among them: a word found costs about as much as one read."""
        more = len(self.text) if self.explain else 0
        return len(self.text) + more + (BEAMS * WORD_CHARS * self.words if self.words > 1 else 0)


@dataclass(slots=True)
class WordPrediction:
    """A continuation and how probable it is."""

    text: Annotated[
        str,
        Field(
            description="The word as a person would type it, or the words; where `completing` is set, the whole word.",
            examples=["the"],
        ),
    ]
    score: Annotated[
        float,
        Field(
            description=(
                "Probability of this continuation, given the text, that a word follows, and that the model knows it; "
                "when completing, also given the letters typed so far. Spellings that differ only in capitals are one "
                "continuation, so the scores of all continuations sum to 1, and those of an answer to at most 1."
            ),
            ge=0,
            le=1,
            examples=[0.21],
        ),
    ]


@dataclass(slots=True)
class TokenSurprisal:
    """A piece of the text and the information it carried."""

    token: Annotated[str, Field(description="A word or a punctuation mark, in normal form.", examples=["The"])]
    surprisal: Annotated[
        float,
        Field(
            description=(
                "-log2 of the probability that the model gave this token, in bits. A word that the model does not know "
                "has the surprisal of meeting any unknown word."
            ),
            ge=0,
            examples=[7.1],
        ),
    ]


class SettledWord(BaseModel):
    """A word of the best continuation, which will not change any more."""

    place: int = Field(description="In the continuation, from 0.", ge=0, examples=[0])
    word: str = Field(description="As in the `text` of the first prediction, between spaces.", examples=["you"])


class NextWordOutput(TaskOutput):
    """The most probable continuations, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "english-lstm", "version": "1"},
                    "predictions": [{"text": "the", "score": 0.21}],
                    "completing": None,
                    "state": "kP2d0h…",
                    "tokens": [{"token": "The", "surprisal": 7.1}],
                }
            ]
        }
    )

    predictions: list[WordPrediction] = Field(description="Best first, no duplicates.")
    completing: str | None = Field(
        description=(
            "The letters of the unfinished last word, in normal form; null when the predictions follow after it. What "
            "each prediction has beyond so many letters completes the text as typed."
        ),
        examples=[None],
    )
    state: str = Field(
        description="The model's memory after `text`: send it back with only the new text, to any replica."
    )
    tokens: list[TokenSurprisal] | None = Field(
        default=None,
        description="Only with `explain`: the finished words and marks of the new text, in order.",
    )


# ------------------------------------------------------------------------------------------------------------ memory

_ENDERS = frozenset({END, ".", "!", "?"})
_OPENERS = frozenset({'"', "'", "(", "[", "“", "‘"})


class Memory(NamedTuple):
    """What a stream remembers.

    Attributes:
        array: float32 (S,): the network's memory after the last chunk that a space follows.
        pending: the characters since that space.
        place: 2 at the start of a paragraph, 1 at the start of a sentence, 0 inside one.
        fresh: nothing, not even `<eos>`, has been read.
    """

    array: NDArray[np.float32]
    pending: str = ""
    place: int = 2
    fresh: bool = True

    def past(self, tokens: Sequence[Token]) -> Memory:
        """The same memory, with `place` moved past tokens."""
        place = place_after(tokens, self.place)
        return self if place == self.place else self._replace(place=place)


def place_after(tokens: Sequence[Token], place: int) -> int:
    """`Memory.place` after tokens, from that before them: the last one decides that does more than open a quotation."""
    last = len(tokens)
    while last and tokens[last - 1].text in _OPENERS:
        last -= 1
    if last:
        text = tokens[last - 1].text
        place = 2 if text == END else int(text in _ENDERS)
    return place if last == len(tokens) else min(place, 1)


class Token(NamedTuple):
    """A typed token: its text, its start in the chunk, its numbers in the vocabulary."""

    text: str
    start: int
    ids: tuple[int, ...]


def next_run(coming: Iterator[Token], most: int) -> list[Token]:
    """The next tokens, as many as a run takes; none at the end.

    Args:
        coming: what comes.
        most: numbers that they may have together, give or take those of one token.
    """
    tokens: list[Token] = []
    numbers = characters = 0
    for token in coming:
        tokens.append(token)
        numbers += len(token.ids)
        characters += len(token.text)
        if numbers >= most or characters >= MAX_RUN_CHARS:
            break
    return tokens


def surprisals(tokens: Sequence[Token], bits: NDArray[np.float32]) -> list[TokenSurprisal]:
    """What `explain` tells of tokens; the ends of paragraphs are left out."""
    return [
        TokenSurprisal(join([token.text]), max(0.0, carried))
        for token, carried in zip(tokens, bits.tolist(), strict=False)
        if token.text != END
    ]


def _new_words(told: list[str], certain: Sequence[str]) -> list[SettledWord]:
    """Those of the words which are certain that were not told yet; they are from now on."""
    new = [SettledWord(place=place, word=word) for place, word in enumerate(certain) if place >= len(told)]
    told += certain[len(told) :]
    return new


class Fragment(NamedTuple):
    """Letters that may be an unfinished word.

    Attributes:
        letters: as typed, in normal form.
        place: how many tokens of its chunk stand before it.
        exact: the word that it would be by itself, in the alphabetical order; may be none.
        longer: the words that start with it; at least one.
        looks_finished: it is a word by itself, and more frequent than any longer one.
    """

    letters: str
    place: int
    exact: slice
    longer: slice
    looks_finished: bool


class Reading(NamedTuple):
    """What the network knows after some tokens: logits (words,) of the next one, and the memory."""

    logits: NDArray[np.float32]
    memory: Memory


# -------------------------------------------------------------------------------------------------------------- task


class NextWordPrediction(Task[NextWordInput, NextWordOutput]):
    """Suggestions while somebody types."""

    name = "next-word-prediction"
    summary = "What will be typed next?"
    Input = NextWordInput
    Output = NextWordOutput
    events: ClassVar[Mapping[str, type[BaseModel]]] = {"word": SettledWord}

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("tokens", dtype="int64", rank=2)
        folder.input("sequence_lens", dtype="int32", rank=1)
        state = folder.input("state", dtype="float32", rank=2)
        logits = folder.output("logits", dtype="float32", rank=2)
        folder.output("next_state", dtype="float32", rank=2)
        self.vocabulary = Vocabulary(folder.lines("vocabulary.txt"))
        where = f"{folder.name}/{folder.version}/vocabulary.txt"
        if len(self.vocabulary.number) != len(self.vocabulary):
            raise ManifestInvalid(where, "names a word twice.")
        size, width = state.shape[1], logits.shape[1]
        if not isinstance(size, int):
            raise ManifestInvalid(folder.graph_file(), "state needs a fixed second axis.")
        if isinstance(width, int) and width != len(self.vocabulary):
            raise ManifestInvalid(where, f"has {len(self.vocabulary)} lines, but the model's logits {width} columns.")
        self._state_size = size
        _ = folder.state_bounds  # raises where the state cannot travel
        self._remembered = lru_cache(maxsize=REMEMBERED_CHUNKS)(self._tokens)
        self._find_fragment = lru_cache(maxsize=REMEMBERED_CHUNKS)(self._fragment)
        self._end = tuple(number for token, number in self.vocabulary.number.items() if token == END)
        self._paragraph_end: tuple[Token, ...] = (Token(END, 0, self._end),)
        self._explains = "explain" in folder.signature.inputs and "surprisal" in folder.signature.outputs

    # ---- decode

    def memory(self, request: NextWordInput) -> Memory:
        """The memory that a request starts from.

        Raises:
            InvalidInput: neither text nor a state.
            InvalidState: the state is damaged or another model's.
        """
        if request.state is None:
            if not request.text:
                raise InvalidInput("`text` is empty. Send some text, or the `state` of an earlier answer.")
            return Memory(np.zeros(self._state_size, np.float32))
        found = self.folder.unpack_state(request.state)
        array, extra = found.arrays["state"], found.extra
        pending, place = extra.get("pending"), extra.get("place")
        if (
            len(extra) != 2
            or not isinstance(pending, str)
            or len(pending) >= MAX_CHUNK_CHARS
            or any(c.isspace() for c in pending)
            or visible(pending) != pending
            or type(place) is not int
            or not 0 <= place <= 2
        ):
            raise InvalidState("does not fit this model")
        return Memory(array, pending, place, fresh=False)

    def _complete(self, text: str, place: int) -> Iterator[Token]:
        """The tokens of complete chunks, each chunk cut when its turn comes; several line breaks end one paragraph."""
        end, remembered = self._paragraph_end, self._remembered
        has_ended = place == 2
        tokens: tuple[Token, ...]
        for piece in PIECE.findall(text):
            if piece[0] == "\n":
                tokens = () if has_ended else end
            elif len(piece) <= REMEMBERED_CHARS:
                tokens = remembered(piece)
            else:
                tokens = self._tokens(piece)
            if tokens:
                has_ended = tokens is end
                yield from tokens

    def _read_chunk(self, chunk: str) -> tuple[Token, ...]:
        """The tokens of a chunk, remembered."""
        return self._remembered(chunk) if len(chunk) <= REMEMBERED_CHARS else self._tokens(chunk)

    def _tokens(self, chunk: str) -> tuple[Token, ...]:
        """The tokens of a chunk."""
        return tuple(
            Token(token, start, tuple(self.vocabulary.encode(token))) for start, token in split_chunk(normalise(chunk))
        )

    # ---- the runs

    def _read_ahead(
        self, memory: Memory, coming: Iterator[Token], explain: bool, told: list[TokenSurprisal]
    ) -> Generator[Run, Mapping[str, NDArray[Any]], tuple[Memory, list[Token]]]:
        """Read the tokens of a long text but for the last run's worth, and take no more of them at a time.

        Args:
            memory: where the stream stands.
            coming: its next tokens.
            explain: whether surprisals are wanted.
            told: where those of the tokens read are put.

        Returns:
            The memory after the tokens read; the tokens left.
        """
        most = MAX_EXPLAINED_TOKENS if explain else MAX_RUN_TOKENS
        held = next_run(coming, most - len(self._end) * memory.fresh)
        while following := next_run(coming, most):
            (reading,), bits = yield from self.read(memory, held, [len(held)], explain)
            memory = reading.memory.past(held)
            if explain:
                told += surprisals(held, bits)
            held = following
        return memory, held

    def read(
        self, memory: Memory, tokens: Sequence[Token], stops: Sequence[int], explain: bool
    ) -> Generator[Run, Mapping[str, NDArray[Any]], tuple[list[Reading], NDArray[np.float32]]]:
        """Feed a run's worth of tokens, or somewhat more, to the network.

        The stops of a short text are rows of one run, which alone costs hardly more than one row: nearly all its time
        is spent on reading the weights. In a large batch every row counts, so while many callers wait, or in a long
        text, each stop is read from where the one before it ended.

        Args:
            memory: where the stream stands.
            tokens: what comes next.
            stops: after how many tokens a reading is wanted, ascending; those after the last are not read.
            explain: whether surprisals are wanted.

        Returns:
            One reading for each stop; the surprisal of each token read in bits, all zero where they are not wanted.
        """
        ids = [number for token in tokens for number in token.ids]
        ends = list(accumulate((len(token.ids) for token in tokens), initial=0))
        opening = len(self._end) if memory.fresh else 0
        if memory.fresh:
            ids[:0] = self._end
        places = [ends[stop] + opening for stop in stops]
        readings: list[Reading] = []
        bits: list[NDArray[np.float32]] = []
        states, begin = memory.array[None], 0
        most = MAX_EXPLAINED_TOKENS if explain else MAX_RUN_TOKENS
        while len(readings) < len(places):
            ahead = places[len(readings) :]
            end = min(ahead[0], begin + most)
            run = self._run(np.array([ids[begin:end]], np.int64), [end - begin], states, explain)
            if len(ahead) > 1 and ahead[-1] - begin <= min(MAX_TOKENS_AGAIN, most):
                rows = np.array([ids[begin : ahead[-1]]] * len(ahead), np.int64)
                lengths = [place - begin for place in ahead]
                run = self._run(rows, lengths, np.repeat(states, len(ahead), axis=0), explain, when_busy=run)
            outputs = yield run
            logits, states = outputs["logits"], outputs["next_state"]
            if len(logits) > 1:
                end = ahead[-1]
            if end >= ahead[0]:
                readings += [
                    Reading(each, memory._replace(array=state, fresh=False))
                    for each, state in zip(logits, states, strict=True)
                ]
            if explain:
                bits.append(outputs["surprisal"][-1, : end - begin])
            states, begin = states[-1:], end
        if not explain:
            return readings, np.zeros(len(tokens), np.float32)
        each = np.concatenate(bits)[opening:]
        if not np.isfinite(each).all():
            raise OutOfRange("surprisal")
        return readings, np.array([each[a:b].sum() for a, b in pairwise(ends[: stops[-1] + 1])], np.float32)

    def _run(
        self,
        ids: NDArray[np.int64],
        lengths: Sequence[int],
        states: NDArray[np.float32],
        explain: bool = False,
        when_busy: Run | None = None,
    ) -> Run:
        """A run for rows of ids (rows, time), which may have no time at all, each of its own length."""
        tensors: dict[str, NDArray[Any]] = {
            "tokens": ids if ids.shape[1] else np.zeros((len(ids), 1), np.int64),
            "sequence_lens": np.array(lengths, np.int32),
            "state": states,
        }
        if "explain" in self.folder.signature.inputs:
            tensors["explain"] = np.full(len(ids), explain)
        outputs = ("logits", "next_state", "surprisal") if explain else ("logits", "next_state")
        cost = tensors["tokens"].shape[1] * (EXPLAINED_COST if explain else 1)
        return Run(tensors, outputs, when_busy, max(1, MAX_BATCH_TOKENS // cost))

    def _read_words(self, words: NDArray[np.int64], states: NDArray[np.float32]) -> Run:
        """A run that reads one word (rows,) in each row, after a state (rows, S)."""
        return self._run(words[:, None], [1] * len(words), states)

    def traits(self, request: NextWordInput, answer: NextWordOutput) -> Iterator[tuple[str, str | float]]:
        if answer.predictions:
            yield "confidence", answer.predictions[0].score
        if (unknown := self.vocabulary.number.get(UNKNOWN)) is None:  # a text with another word was refused
            return
        words = visible(request.text[-TRAIT_CHARS:]).split()
        tokens = [token for word in words[1:] for token in self._read_chunk(word)]  # the first may be cut
        if tokens:
            yield "unknown_words", sum(unknown in token.ids for token in tokens) / len(tokens)

    def shown(self, request: NextWordInput, answer: Mapping[str, Any]) -> Iterator[Shown]:
        rows = [(prediction["text"], f"{prediction['score']:.3f}") for prediction in answer["predictions"]]
        yield Table(("continuation", "score"), rows)
        if answer.get("tokens"):
            rows = [(token["token"], f"{token['surprisal']:.1f}") for token in answer["tokens"]]
            yield Table(("word", "surprisal in bits"), rows)

    def steps(self, request: NextWordInput) -> Steps[NextWordOutput]:
        try:
            return (yield from self._steps(request))
        except OutOfRange as error:
            if request.state is None:
                raise InferenceFailed(self.folder.name) from error
            raise InvalidState(LEADS_NOWHERE) from None
        except InferenceFailed:
            if request.state is None:
                raise
            raise InvalidState(LEADS_NOWHERE) from None

    def _steps(self, request: NextWordInput) -> Steps[NextWordOutput]:
        limit = self.folder.limits.max_text_chars
        if len(request.text) > limit:
            raise TooLarge(
                "The text", limit=limit, unit="characters", setting="GRIDLOOP_MAX_TEXT_CHARS", actual=len(request.text)
            )
        if request.explain and not self._explains:
            raise InvalidInput(f"Model {self.folder.name} cannot explain: its graph has no `surprisal` output.")
        memory = self.memory(request)
        text = visible(memory.pending + request.text)
        cut = unfinished_from(text)
        chunk, coming = text[cut:], self._complete(text[:cut], memory.place)
        told: list[TokenSurprisal] = []
        if cut < (MAX_EXPLAINED_TOKENS if request.explain else MAX_RUN_TOKENS):
            complete = list(coming)
        else:
            memory, complete = yield from self._read_ahead(memory, coming, request.explain, told)
        memory = memory._replace(pending=chunk, place=place_after(complete, memory.place))
        pending = self._read_chunk(chunk)
        fragment = self._find_fragment(chunk) if request.complete == "auto" else None
        tokens, start = [*complete, *pending], len(complete) + (fragment.place if fragment else 0)
        stops = {len(complete), start}
        if not fragment or fragment.looks_finished:
            stops.add(len(tokens))
        places = sorted(stops)
        readings, bits = yield from self.read(memory, tokens, places, request.explain)
        kept, here, finished = readings[0].memory, readings[-1], len(tokens)
        completing, choice = None, None
        if fragment:
            before = readings[places.index(start)]
            choice = self.unfinished(before.logits, fragment)
            if choice is not None:
                completing, here, finished = fragment.letters, before, start
            elif not fragment.looks_finished:
                (here,), more = yield from self.read(
                    before.memory, tokens[start:], [len(tokens) - start], request.explain
                )
                bits = np.concatenate([bits, more])
        if finished > len(complete):
            here = here._replace(memory=here.memory.past(tokens[len(complete) : finished]))
        words: list[str] = []  # that were told

        def settled(certain: Callable[[], list[str]]) -> Settled:
            return self.settled(lambda: _new_words(words, certain()))

        if request.words == 1:
            predictions = self.encode(here, request.top_k, completing or "", choice)
        else:
            first = self._best(here.logits, BEAMS, here.memory.place > 0, completing or "", choice)
            found = yield from search(
                first, here.memory.array, request.words, self.vocabulary, self._read_words, request.top_k, settled
            )
            predictions = [WordPrediction(text, score) for text, score in found]
            yield settled(lambda: predictions[0].text.split() if predictions else [])
        extra = {"pending": kept.pending, "place": kept.place}
        state = self.folder.pack_state({"state": kept.array}, extra, from_token=request.state is not None)
        answer = NextWordOutput.model_construct(
            model=self.folder.ref, predictions=predictions, completing=completing, state=state
        )
        if not request.explain:
            return answer
        told += surprisals(tokens[:finished], bits)
        return answer.model_copy(update={"tokens": told})

    def understood(self, request: NextWordInput) -> Understood:
        """How the text is cut into words and marks, those still pending in the state included."""
        memory = self.memory(request)
        text = visible(memory.pending + request.text)
        cut = unfinished_from(text)
        tokens = [*self._complete(text[:cut], memory.place), *self._read_chunk(text[cut:])]
        unknown = self.vocabulary.number.get(UNKNOWN)
        found = [token for token in tokens if token.text != END]
        facts: dict[str, Fact] = {
            "characters": len(request.text),
            "tokens": len(found),
            "unknown_tokens": sum(unknown in token.ids for token in found),
            "last_chunk": text[cut:],
        }
        return Understood(facts, {"max_text_chars": len(request.text)})

    def widened(self, request: NextWordInput) -> NextWordInput:
        """The same text with a few more words; more continuations of several words would be another search."""
        if request.words > 1:
            return request
        return request.model_copy(update={"top_k": request.top_k + MORE_WORDS})

    def difference(
        self, request: NextWordInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Compare prediction by prediction: those that are nearly tied may stand in either order."""
        rest = dict(expected)
        predictions = rest.pop("predictions", None)
        found = difference(rest, got, tolerance)
        if found or predictions is None:
            return found
        return ranking_difference(
            predictions, got["predictions"], tolerance, "predictions", name="text", shown=request.top_k
        )

    def _fragment(self, chunk: str) -> Fragment | None:
        """What may be an unfinished word at the end of a chunk.

        None, when the chunk ends in a mark or when nothing in the vocabulary is longer.
        """
        match = FRAGMENT.search(normalise(chunk))
        if match is None:
            return None
        exact, longer = self.vocabulary.starting_with(match.group())
        if longer.start == longer.stop:
            return None
        place = sum(token.start < match.start() for token in self._read_chunk(chunk))
        tokens_of = self.vocabulary.tokens  # the most frequent have the smallest numbers
        looks_finished = exact.start < exact.stop and bool(tokens_of(exact).min() < tokens_of(longer).min())
        return Fragment(match.group(), place, exact, longer, looks_finished)

    # ---- encode

    def unfinished(self, logits: NDArray[np.float32], fragment: Fragment) -> slice | None:
        """The words that may come of a fragment, as a range of the alphabetical order; None when it is a finished word.

        It is unfinished when the longer words which start with it are together more probable here than the word that
        it would be by itself, or when there is no such word.
        """
        exact, choice = fragment.exact, slice(fragment.exact.start, fragment.longer.stop)
        if exact.start < exact.stop:
            weights, own = proportional(logits[self.vocabulary.tokens(choice)]), len(self.vocabulary.tokens(exact))
            if weights[:own].sum() >= weights[own:].sum():
                return None
        return choice

    def encode(self, here: Reading, top_k: int, typed: str, choice: slice | None) -> list[WordPrediction]:
        """The best words at this place.

        Args:
            here: logits of the next token, and the place in the sentence.
            top_k: how many.
            typed: letters of the word which are there already.
            choice: the words that the letters leave; None: all words.
        """
        return [
            WordPrediction(text, score)
            for _, text, score in self._best(here.logits, top_k, here.memory.place > 0, typed, choice)
        ]

    def _best(
        self, logits: NDArray[np.float32], top_k: int, starts: bool, typed: str, choice: slice | None
    ) -> list[tuple[int, str, float]]:
        """The best words as (token, spelling, probability among the words of `choice`)."""
        weights = proportional(logits)
        weights[self.vocabulary.no_words] = 0.0
        if choice is None:
            total = float(weights.sum(dtype=np.float64))
        else:
            largest = float(self.vocabulary.weights(choice, weights).max())
            if largest < 1e-30:  # all of them are next to impossible: count from the least impossible one
                weights = proportional(logits, among=self.vocabulary.tokens(choice))
            total = float(self.vocabulary.weights(choice, weights).sum(dtype=np.float64))
        if not total > 0:  # no logits, or none that leaves a word possible
            raise OutOfRange("logits")
        k = min(top_k, self.vocabulary.count if choice is None else choice.stop - choice.start)
        groups, sums = self.vocabulary.heaviest(weights, k, choice)
        return [
            (*self.vocabulary.spelling(group, weights, starts=starts, typed=typed), min(1.0, weight / total))
            for group, weight in zip(groups.tolist(), sums.tolist(), strict=True)
        ]
