"""Next-word prediction: what will the writer of this text type next?

A model is a recurrent word-level language model: a graph with the inputs `tokens` int64 (batch, time), `sequence_lens`
int32 (batch,) and `state` float32 (batch, S), and the outputs `logits` float32 (batch, words), after the last real
token or, where `sequence_lens` is 0, after the state alone, and `next_state`. For `explain` it also needs the input
`explain` bool (batch,) and the output `surprisal` float32 (batch, time), in bits. `vocabulary.txt` names the words in
the spelling they have inside a sentence, the most frequent first; where it has `<eos>`, this opens every stream and
ends each paragraph; where it has `<unk>`, this stands for words that it does not have, which are refused otherwise.

**The law of streams.** Text is read in *chunks*, the runs of characters between spaces, and the tokens of a chunk
depend on that chunk alone. The state holds the network's memory after the last chunk that a space follows, and the
characters since. So a text may be cut anywhere, even inside a word: part by part with the state, or all at once, the
predictions are the same.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from service.errors import InvalidInput, InvalidState, ManifestInvalid, TooLarge
from service.tasks.base import ModelField, ModelFolder, Run, Steps, Task, TaskInput, TaskOutput

__all__ = [
    "NextWordInput",
    "NextWordOutput",
    "NextWordPrediction",
    "TokenSurprisal",
    "WordPrediction",
    "join",
    "tokenise",
    "tokenise_chunk",
]

END = "<eos>"
"""Ends a paragraph; also the token that opens every fresh stream."""
UNKNOWN = "<unk>"
"""Stands for every word outside the vocabulary."""

MAX_CHUNK_CHARS = 256
"""A longer run of characters without a space is cut there, so that the state stays small (characters)."""
MAX_RUN_TOKENS = 256
"""A longer text is read in several runs, so that one caller cannot hold up a batch (tokens)."""
MAX_TOKENS_AGAIN = 48
"""A longer text is never read twice in one run, as it takes longer than a second run (tokens)."""
REMEMBERED_CHUNKS = 16_384
"""Chunks whose tokens are remembered: few words make up most of every text (count)."""
RARER = 20
"""A title in capitals gives way to a word that stands so many times higher in the vocabulary (factor)."""
BEAMS = 16
"""Unfinished continuations kept by the search when several words are asked for (count)."""


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
        description="What has been typed: all of it, or with `state` only what is new since. Empty only with `state`.",
        examples=["The capital of"],
    )
    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Predictions to return; more than there are: all of them.", examples=[5]
    )
    model: str | None = ModelField
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

    token: Annotated[str, Field(description="A word or a punctuation mark, as typed.", examples=["The"])]
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
        description="The letters of the unfinished last word; null when the predictions follow after it.",
        examples=[None],
    )
    state: str = Field(
        description="The model's memory after `text`: send it back with only the new text, to any replica."
    )
    tokens: list[TokenSurprisal] | None = Field(
        default=None,
        description="Only with `explain`: the finished words and marks of the new text, in order.",
    )


# --------------------------------------------------------------------------------------------------------- tokeniser

_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "..."})
_JOINERS = {"-": "@-@", ",": "@,@", ".": "@.@"}
_TOKEN = re.compile(
    r"""
      (?P<contraction>\b (?: [a-z]+n't | ma'am | y'all | o'clock
          | (?:i|you|he|she|it|we|they|that|this|there|here|what|who|where|when|how|why|let)'(?:s|re|ll|d|ve|m) )
          (?![^\W_]|'[^\W_]) )
    | (?P<dotted> (?:[^\W\d_]\.){2,} )                                 # U.S.  e.g.  p.m.
    | (?P<abbreviation>\b (?:mr|mrs|ms|dr|st|jr|sr|prof|gen|col|lt|sgt|capt|sen|gov|rev|inc|ltd|co|bros|vs)\. )
    | (?P<initial>\b (?-i:[A-HJ-Z])\.(?=$|(?-i:[A-Z])) )               # J. Smith
    | (?P<number> \d+(?:[.,]\d+)+ )                                    # 1,000  3.5
    | (?P<word> [^\W_]+ )
    | (?P<suffix> (?<=[^\W_])'[^\W_]+ )                                # 's
    | (?P<hyphen> (?<=[^\W_])-(?=[^\W_]) )
    | (?P<dots> \.{2,} )
    | (?P<mark> . )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_PIECE = re.compile(rf"\n|\S{{1,{MAX_CHUNK_CHARS}}}")
_FRAGMENT = re.compile(r"[^\W_]+(?:'[^\W_]*)?$")


def normalise(chunk: str) -> str:
    """Compose accents and straighten typographic quotes, which is how the vocabulary is spelt."""
    return unicodedata.normalize("NFC", chunk).translate(_STRAIGHT)


def _split(chunk: str) -> Iterator[tuple[int, str]]:
    """Tokens of a normalised chunk, each with the place where it starts."""
    for match in _TOKEN.finditer(chunk):
        kind, token, start = match.lastgroup, match.group(), match.start()
        if kind == "number":
            for part in re.finditer(r"[.,]|\d+", token):
                yield start + part.start(), _JOINERS.get(part.group(), part.group())
        elif kind == "hyphen":
            yield start, "@-@"
        elif kind == "dots":
            yield start, "..."
        else:
            yield start, token


def tokenise_chunk(chunk: str) -> list[str]:
    """Split what stands between two spaces into the tokens of WikiText-2, except that contractions stay whole.

    The tokens of a chunk depend on nothing but the chunk: that is what lets a stream be cut at any character.
    """
    return [token for _, token in _split(normalise(chunk))]


def tokenise(text: str) -> list[str]:
    """Split typed English into tokens; line breaks between two lines become one `<eos>`."""
    tokens: list[str] = []
    for piece in _PIECE.findall(text):
        if piece != "\n":
            tokens += tokenise_chunk(piece)
        elif tokens and tokens[-1] != END:
            tokens.append(END)
    return tokens


def join(tokens: Iterable[str]) -> str:
    """Put tokens together as a person would type them: the way back from `tokenise`."""
    text = ""
    before = ""
    open_quote = False
    glue = True  # no space before the next token
    for token in tokens:
        shown = {"@-@": "-", "@,@": ",", "@.@": "."}.get(token, token)
        if token == END:
            text, glue, open_quote, before = text + "\n", True, False, ""
            continue
        digits = before[-1:].isdigit()
        sticks = (
            token in _JOINERS.values()
            or (token[0] == "'" and len(token) > 1 and before[-1:].isalnum())
            or (token == "'" and before[-1:] in ("s", "S"))
            or (token[0] in ",.;:!?%)]}" and bool(before))
            or (token in ("/", "°") and bool(before))
            or (token == '"' and open_quote)
        )
        text += shown if glue or sticks else " " + shown
        glue = (
            token in _JOINERS.values()
            or token in ("(", "[", "{", "$", "£", "€", "#", "/")
            or (token == ":" and digits)
            or (token == '"' and not open_quote)
        )
        if token == '"':
            open_quote = not open_quote
        before = token
    return text


# -------------------------------------------------------------------------------------------------------- vocabulary

_ENDERS = frozenset({END, ".", "!", "?"})
_LINKS = frozenset({",", ";", ":"})
_OPENERS = frozenset({'"', "'", "(", "[", "“", "‘"})
_SUFFIXES = frozenset({"'s", "'m", "'re", "'ve", "'ll", "'d"})
# WikiText-2 splits "didn't" into "didn" and "'t". A stem that is no word by itself is shown with its ending.
_STEM = re.compile(r"(?:do|did|does|is|was|were|are|could|would|should|has|have|had|must|need|might|ai)n", re.I)
_ALWAYS_CAPITAL = frozenset({"i", "i'm", "i'd", "i'll", "i've"})


PARTS = 256
"""The vocabulary is divided into so many parts, or more, to see how heavy its heaviest tokens are (count)."""
ROUNDING = 1 - 1e-6
"""A bar is lowered by this factor, so that none is missed by a rounding error of float32."""


class Vocabulary:
    """The words of a model, and every table that predictions need, built once.

    Attributes:
        words: spelling of each token, index by index.
        group: int64 (words,): tokens which a reader takes for the same word ("The", "the") share a number.
        is_word: bool (words,): can be a prediction; punctuation, suffixes and control tokens cannot.
        no_words: int64: tokens that cannot.
        count: how many groups can be a prediction.
        follows: bool (words,): may come inside a continuation: words, `, ; :`, suffixes and joiners; no sentence end.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.number = {word: index for index, word in enumerate(words)}
        shown = [f"{w}'t" if _STEM.fullmatch(w) and w != "Don" else w for w in words]  # Don is a name
        self.shown = shown
        self.is_word = np.array([_can_be_predicted(w) for w in words], bool)
        glue = _LINKS | _SUFFIXES | {"@-@"}
        self.follows = self.is_word | np.array([w in glue for w in words], bool)
        groups: dict[str, int] = {}
        members: list[list[int]] = []
        self.group = np.empty(len(words), np.int64)
        for index, text in enumerate(shown):
            # Tokens that are never words keep a group of their own, which no word can reach.
            key = text.casefold() if self.is_word[index] else f" {index}"
            number = groups.setdefault(key, len(members))
            if number == len(members):
                members.append([])
            members[number].append(index)
            self.group[index] = number
        self.members = members
        self.no_words = np.flatnonzero(~self.is_word)
        self.count = sum(bool(self.is_word[m[0]]) for m in members)
        self._most_members = max(map(len, members))
        self._table = np.array([m + [-1] * (self._most_members - len(m)) for m in members], np.int32)
        folded = sorted((key, number) for key, number in groups.items() if key[:1] != " ")
        self._folded = [key for key, _ in folded]
        self._folded_groups = np.array([number for _, number in folded], np.int64)
        # The tokens of these groups one after another, and where each group's begin.
        self._folded_tokens = np.array([index for _, number in folded for index in members[number]], np.int64)
        self._folded_begins = np.cumsum([0, *(len(members[number]) for _, number in folded)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, token: str) -> list[int]:
        """Numbers of a typed token: as typed, else in other capitals, else split as WikiText-2 does, else unknown.

        A word in capitals is read as the common word, not as the rare title that happens to be spelt like it: "WHAT"
        is "what", though "US" stays what it is.
        """
        spellings = [token, token.lower(), token.capitalize(), token.upper()]
        if len(token) > 1 and token.isupper():
            title, common = (self.number.get(spelling) for spelling in spellings[:2])
            if title is not None and common is not None and title > RARER * (common + 50):
                return [common]
        for spelling in spellings:
            if (found := self.number.get(spelling)) is not None and spelling not in (END, UNKNOWN):
                return [found]
        head, mark, tail = token.partition("'")
        if head and tail:
            return self.encode(head) + self.encode(mark + tail)
        if UNKNOWN not in self.number:
            raise InvalidInput(f"{token!r} is none of the model's words. Send a text without it, or use another model.")
        return [self.number[UNKNOWN]]

    def starting_with(self, fragment: str) -> tuple[slice, slice]:
        """Words in alphabetical order: the one that *is* the fragment (or none), and all longer ones that start so."""
        key = fragment.casefold()
        begin = bisect_left(self._folded, key)
        end = bisect_left(self._folded, key + "\U0010ffff", begin)
        longer = begin + (begin < len(self._folded) and self._folded[begin] == key)
        return slice(begin, longer), slice(longer, end)

    def weights(self, alphabetical: slice, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Summed weight of each group in a range of the alphabetical order, from that of each token."""
        begins = self._folded_begins[alphabetical.start : alphabetical.stop]
        if not len(begins):
            return np.empty(0, np.float32)
        return np.asarray(np.add.reduceat(weights[self.tokens(alphabetical)], begins - begins[0]), np.float32)

    def tokens(self, alphabetical: slice) -> NDArray[np.int64]:
        """The tokens of a range of the alphabetical order."""
        return self._folded_tokens[self._folded_begins[alphabetical.start] : self._folded_begins[alphabetical.stop]]

    def heaviest(
        self, weights: NDArray[np.float32], k: int, among: slice | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The groups with the largest summed weights.

        Nearly all words are nearly impossible, so only tokens that reach a bar are added up and sorted. As many tokens
        as k groups can have are of k groups at least. So none of the k heaviest groups is lighter than the last of that
        many heaviest tokens, and a group is lighter which has no token of its weight divided by the most tokens in a
        group. A weight that so many tokens reach is found among the largest ones of many parts of the vocabulary.

        Args:
            weights: float32 (words,), at least 0, the largest of them at most 1.
            k: at least 1; of fewer groups, all are returned.
            among: only groups in this range of the alphabetical order.

        Returns:
            Groups int64 (k,), heaviest first, equal ones in their order; their weights float64 (k,).
        """
        if among is not None:
            groups, sums = self._folded_groups[among], self.weights(among, weights).astype(np.float64)
            order = np.lexsort((groups, -sums))[:k]
            return groups[order], sums[order]
        enough = k * self._most_members
        parts = max(PARTS, 4 * enough)
        if parts > len(weights):
            tokens = np.arange(len(weights))
        else:
            largest = weights[: len(weights) // parts * parts].reshape(-1, parts).max(axis=0)
            reached = float(np.partition(largest, -enough)[-enough])
            tokens = np.flatnonzero(weights >= reached / self._most_members * ROUNDING)
        groups = np.unique(self.group[tokens]) if self._most_members > 1 else self.group[tokens]
        members = self._table[groups]
        sums = np.where(members >= 0, weights[members], 0.0).sum(axis=1, dtype=np.float64)
        order = np.lexsort((groups, -sums))[:k]
        return groups[order], sums[order]

    def spelling(self, group: int, p: NDArray[np.float32], *, starts: bool, typed: str) -> tuple[int, str]:
        """The token of a group that the context calls for, and how a person would write it here.

        Args:
            group: a group of words.
            p: probability of each token, or what is proportional to it.
            starts: whether a sentence starts here.
            typed: letters the person typed already; their capitals are kept.
        """
        members = self.members[group]
        likely = max(members, key=lambda index: p[index])
        inside = members[0]  # the vocabulary's order: the usual spelling inside a sentence comes first
        settled = starts or self.shown[inside].casefold() in _ALWAYS_CAPITAL
        text = self.shown[inside if settled else likely]
        letters = [c for c in typed if c.isalpha()]
        if len(letters) > 1 and all(c.isupper() for c in letters):
            text = text.upper()
        elif (letters[0].isupper() if letters else starts) and text.islower():
            text = text[:1].upper() + text[1:]
        return likely, text


def _can_be_predicted(word: str) -> bool:
    return (
        any(c.isalnum() for c in word)
        and word[0] != "'"
        and "@" not in word
        and not (word[0] == "<" and word[-1] == ">")
    )


# ------------------------------------------------------------------------------------------------------------ memory


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

    def after(self, token: str) -> Memory:
        """The same memory, with `place` moved past a token."""
        place = place_after(token, self.place)
        return self if place == self.place else self._replace(place=place)


def place_after(token: str, place: int) -> int:
    """`Memory.place` after a token, from that before it."""
    return 1 if token in _OPENERS and place else 2 if token == END else int(token in _ENDERS)


class Token(NamedTuple):
    """A typed token: its text, its start in the chunk, its numbers in the vocabulary."""

    text: str
    start: int
    ids: tuple[int, ...]


class Fragment(NamedTuple):
    """Letters that may be an unfinished word.

    Attributes:
        letters: as typed.
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


@dataclass(frozen=True)
class Beam:
    """An unfinished continuation.

    Attributes:
        score: its probability.
        tokens: spellings so far.
        words: how many words these are.
        last: number of the last token, not read yet.
        state: float32 (S,) before the last token.
        glued: whether the next token must be a word: after a comma, a colon or a hyphen.
        counts: whether that word is one more: not after a hyphen.
    """

    score: float
    tokens: tuple[str, ...]
    words: int
    last: int
    state: NDArray[np.float32]
    glued: bool = False
    counts: bool = True


# -------------------------------------------------------------------------------------------------------------- task


class NextWordPrediction(Task[NextWordInput, NextWordOutput]):
    """Suggestions while somebody types."""

    name = "next-word-prediction"
    summary = "What will be typed next?"
    Input = NextWordInput
    Output = NextWordOutput

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
            raise ManifestInvalid(f"{folder.name}/{folder.version}/model.onnx", "state needs a fixed second axis.")
        if isinstance(width, int) and width != len(self.vocabulary):
            raise ManifestInvalid(where, f"has {len(self.vocabulary)} lines, but the model's logits {width} columns.")
        self._state_size = size
        self._read_chunk = lru_cache(maxsize=REMEMBERED_CHUNKS)(self._tokens)
        self._find_fragment = lru_cache(maxsize=REMEMBERED_CHUNKS)(self._fragment)
        self._end = tuple(number for token, number in self.vocabulary.number.items() if token == END)
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
            not isinstance(pending, str)
            or len(pending) >= MAX_CHUNK_CHARS
            or any(c.isspace() for c in pending)
            or place not in (0, 1, 2)
        ):
            raise InvalidState("does not fit this model")
        return Memory(array, pending, place, fresh=False)

    def decode(self, memory: Memory, text: str) -> tuple[Memory, list[Token], Sequence[Token]]:
        """Read typed text.

        Returns:
            The memory with `pending` and `place` as they are after the text (its array is still the old one); the
            tokens that are complete; the tokens of the pending chunk.
        """
        text = memory.pending + text
        complete: list[Token] = []
        pending: Sequence[Token] = ()
        chunk, place = "", memory.place
        for piece in _PIECE.finditer(text):
            found = piece.group()
            if found == "\n":
                if place < 2:
                    complete.append(Token(END, 0, self._end))
                    place = place_after(END, place)
                continue
            tokens = self._read_chunk(found)
            if piece.end() == len(text) and len(found) < MAX_CHUNK_CHARS:
                chunk, pending = found, tokens
                break
            complete += tokens
            for token in tokens:
                place = place_after(token.text, place)
        return memory._replace(pending=chunk, place=place), complete, pending

    def _tokens(self, chunk: str) -> tuple[Token, ...]:
        """The tokens of a chunk."""
        return tuple(
            Token(token, start, tuple(self.vocabulary.encode(token))) for start, token in _split(normalise(chunk))
        )

    # ---- the runs

    def read(
        self, memory: Memory, tokens: Sequence[Token], stops: Sequence[int], explain: bool
    ) -> Generator[Run, Mapping[str, NDArray[Any]], tuple[list[Reading], NDArray[np.float32]]]:
        """Feed tokens to the network.

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
        while len(readings) < len(places):
            ahead = places[len(readings) :]
            end = min(ahead[0], begin + MAX_RUN_TOKENS)
            run = self._run(np.array([ids[begin:end]], np.int64), [end - begin], states, explain)
            if len(ahead) > 1 and ahead[-1] - begin <= MAX_TOKENS_AGAIN:
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
        return Run(tensors, outputs, when_busy)

    def steps(self, request: NextWordInput) -> Steps[NextWordOutput]:
        limit = self.folder.limits.max_text_chars
        if len(request.text) > limit:
            raise TooLarge(
                "The text", limit=limit, unit="characters", setting="GRIDLOOP_MAX_TEXT_CHARS", actual=len(request.text)
            )
        if request.explain and not self._explains:
            raise InvalidInput(f"Model {self.folder.name} cannot explain: its graph has no `surprisal` output.")
        memory, complete, pending = self.decode(self.memory(request), request.text)
        fragment = self._find_fragment(memory.pending) if request.complete == "auto" else None
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
        for token in tokens[len(complete) : finished]:
            here = here._replace(memory=here.memory.after(token.text))
        if request.words == 1:
            predictions = self.encode(here, request.top_k, completing or "", choice)
        else:
            predictions = yield from self.search(here, request.top_k, request.words, completing or "", choice)
        extra = {"pending": kept.pending, "place": kept.place}
        state = self.folder.pack_state({"state": kept.array}, extra)
        answer = NextWordOutput.model_construct(
            model=self.folder.ref, predictions=predictions, completing=completing, state=state
        )
        if not request.explain:
            return answer
        told = [
            TokenSurprisal(join([token.text]), max(0.0, float(carried)))
            for token, carried in zip(tokens[:finished], bits, strict=False)
            if token.text != END
        ]
        return answer.model_copy(update={"tokens": told})

    def _fragment(self, chunk: str) -> Fragment | None:
        """What may be an unfinished word at the end of a chunk.

        None, when the chunk ends in a mark or when nothing in the vocabulary is longer.
        """
        match = _FRAGMENT.search(normalise(chunk))
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
        k = min(top_k, self.vocabulary.count if choice is None else choice.stop - choice.start)
        groups, sums = self.vocabulary.heaviest(weights, k, choice)
        return [
            (*self.vocabulary.spelling(group, weights, starts=starts, typed=typed), min(1.0, weight / total))
            for group, weight in zip(groups.tolist(), sums.tolist(), strict=True)
        ]

    def search(
        self, here: Reading, top_k: int, words: int, typed: str, choice: slice | None
    ) -> Generator[Run, Mapping[str, NDArray[Any]], list[WordPrediction]]:
        """Beam search for continuations of several words.

        A continuation is done with its last word, and stays within its sentence. Marks, suffixes and hyphenated parts
        belong to the word before them. Probabilities are among the tokens that may follow (`Vocabulary.follows`).
        """
        vocabulary = self.vocabulary
        found = self._best(here.logits, BEAMS, here.memory.place > 0, typed, choice)
        beams = [Beam(score, (text,), 1, token, here.memory.array) for token, text, score in found]
        done: dict[str, float] = {}
        for _ in range(2 * words + 6):  # room for a few marks and hyphens between the words
            floor = sorted(done.values(), reverse=True)[:top_k]
            least = floor[-1] if len(floor) == top_k else 0.0
            beams = [beam for beam in beams if beam.score > least]
            if not beams:
                break
            ids = np.array([[beam.last] for beam in beams], np.int64)
            states = np.stack([beam.state for beam in beams])
            outputs = yield self._run(ids, [1] * len(ids), states)
            ahead: list[Beam] = []
            for row, beam in enumerate(beams):
                weights = proportional(outputs["logits"][row])
                weights *= vocabulary.is_word if beam.glued else vocabulary.follows
                scale = beam.score / float(weights.sum(dtype=np.float64))
                groups, sums = vocabulary.heaviest(weights, max(top_k, BEAMS), None)
                for group, weight in zip(groups.tolist(), sums.tolist(), strict=True):
                    score = weight * scale
                    if score <= least:
                        break
                    token, text = vocabulary.spelling(group, weights, starts=False, typed="")
                    spelling = vocabulary.words[token]
                    state = outputs["next_state"][row]
                    if not vocabulary.is_word[token]:
                        counts = spelling != "@-@"
                        glued = spelling not in _SUFFIXES
                        ahead.append(Beam(score, (*beam.tokens, spelling), beam.words, token, state, glued, counts))
                    elif beam.words + beam.counts == words:
                        text = join((*beam.tokens, text))
                        done[text] = done.get(text, 0.0) + score
                    else:
                        ahead.append(Beam(score, (*beam.tokens, text), beam.words + beam.counts, token, state))
            beams = sorted(ahead, key=lambda beam: -beam.score)[:BEAMS]
        ranked = sorted(done.items(), key=lambda item: (-item[1], item[0]))[:top_k]
        return [WordPrediction(text, min(score, 1.0)) for text, score in ranked]


# ----------------------------------------------------------------------------------------------------------- numbers


def proportional(logits: NDArray[np.float32], among: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Weights (words,) proportional to the probabilities, from logits (words,): the likeliest has weight 1.

    Args:
        logits: of one place in the text.
        among: tokens of which the likeliest is to have weight 1; left out, all of them.
    """
    highest = logits.max() if among is None else logits[among].max()
    weights = logits - highest
    if among is not None:
        np.minimum(weights, 0.0, out=weights)
    return np.asarray(np.exp(weights, out=weights))
