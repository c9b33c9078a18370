"""Music composition: a folk tune in a key and a meter, of so many bars, or the rest of one.

A model is a recurrent network over the symbols of `service/music/alphabet.py`: a graph with the inputs `features` int32
(batch, time, features), as `service/music/walk.py` makes them, `sequence_lens` int32 (batch,) and a recurrent state,
and the output `logits` float32 (batch, time, symbols). What is in key, fits the bar and ends on time is no matter of
the model: only symbols that lead there are drawn from. So every tune comes out right, and the model says which one.

How surprising a note was, which `explain` tells, is its surprisal, -log2 of its probability (Shannon, "A Mathematical
Theory of Communication", 1948), among the notes that would have fitted there.

Each request draws from a generator of its own (`service/decoding/sampling.py`): the same seed composes the same tune.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.decoding.sampling import MAX_SEED, Draws, choose, surprisal
from service.errors import InferenceFailed, InvalidInput, InvalidState, ManifestInvalid, TooLarge
from service.music import midi
from service.music.abc import BadTune, Tune, played, read
from service.music.alphabet import SYMBOLS, UPBEAT, Symbol
from service.music.composing import Read, Score, follow, recall, remember
from service.music.theory import METERS, Key, Meter
from service.music.walk import WIDTH, Walk
from service.state import LEADS_NOWHERE, OutOfRange
from service.tasks.base import (
    Fact,
    MediaAnswer,
    ModelField,
    ModelFolder,
    ModelReference,
    Run,
    Settled,
    Steps,
    Task,
    TaskInput,
    TaskOptions,
    TaskOutput,
    Understood,
)
from service.tasks.terminal import FileFields, FileReader, Shown

__all__ = ["MusicComposition", "MusicInput", "MusicOptions", "MusicOutput"]

MAX_RUN_NOTES = 128
"""A longer prompt is read in several runs, so that those of other callers come between (notes)."""
MAX_BATCH_NOTES = 512
"""Prompts that are read together have no more notes than this in one run (notes)."""
NOTES_A_BAR = 8
"""About how many there are (count)."""
CHARS_A_NOTE = 3
"""About how long one is in ABC (characters)."""


# ------------------------------------------------------------------------------------------------------ public types


def _key(text: str) -> str:
    return str(Key.parse(text))


def _meter(text: str) -> str:
    return str(Meter.parse(text))


class MusicInput(TaskInput):
    """What kind of tune is wanted, or the beginning of one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"key": "D", "meter": "6/8", "bars": 16, "seed": 7},
                {"key": "Em", "meter": "4/4", "bars": 8, "temperature": 0},
                {"prompt": "X:1\nM:3/4\nL:1/8\nK:G\nD2|G3A Bc|d4 B2|", "bars": 16, "seed": 11},
            ]
        }
    )

    prompt: str | None = Field(
        default=None,
        description=(
            "A tune in ABC notation to go on from, with its header or without: the answer begins with its notes. Its "
            "last bar may be unfinished. Left out: a new tune."
        ),
        examples=[None],
    )
    key: Annotated[str, AfterValidator(_key)] | None = Field(
        default=None,
        max_length=16,
        description="`A` to `G`, `#` or `b`, then nothing (major), `m`, `dor`, `mix`, `phr` or `lyd`. Left out: the "
        "prompt's or the state's; else one is drawn, as often as folk tunes have it.",
        examples=["D"],
    )
    meter: Annotated[str, AfterValidator(_meter)] | None = Field(
        default=None,
        max_length=8,
        description=f"`{'`, `'.join(METERS)}`, `C` or `C|`. Left out: likewise.",
        examples=["6/8"],
    )
    bars: Annotated[int, Field(ge=1, le=256)] = Field(
        default=16,
        description="Bars of the tune as written, the prompt's among them: a repeat counts once, an upbeat and the "
        "shorter last bar that completes it are one.",
        examples=[16],
    )
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = Field(
        default=1.0, description="How daring: 0 takes the likeliest note each time.", examples=[1.0]
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.95,
        description="Each note is among the likeliest that together have this probability; 1: any.",
        examples=[0.95],
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        default=None,
        description="The same request with the same seed gives the same tune. Left out: one is drawn, and told.",
        examples=[7],
    )
    format: Literal["abc", "midi"] = Field(
        default="abc",
        description="`midi`: the answer is a Standard MIDI File, with repeats played out; the header `X-Seed` tells "
        "the seed.",
        examples=["abc"],
    )
    explain: bool = Field(
        default=False,
        description="Add `surprisals`: how surprising each note was, bar by bar. With `format` = `abc`.",
        examples=[False],
    )
    model: ModelReference | None = ModelField
    state: str | None = Field(
        default=None,
        description="The `state` of an earlier answer, unchanged: the tune goes on after its last bar, in its key and "
        "meter. The answer is a whole tune of the new bars.",
        examples=[None],
    )

    @property
    def work(self) -> int:
        """Notes, about: those of the prompt and those to be composed."""
        return NOTES_A_BAR * self.bars + len(self.prompt or "") // CHARS_A_NOTE


class MusicOutput(TaskOutput):
    """The tune."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "folk-gru", "version": "1"},
                    "abc": "X:1\nT:Tune 7\nM:6/8\nL:1/8\nK:D\nA |dfd cec |…",
                    "bars": 16,
                    "seed": 7,
                    "surprisal": 1.31,
                    "prompt_surprisal": None,
                    "state": "kP2d0h…",
                }
            ]
        }
    )

    abc: str = Field(description="The tune in ABC notation, with its header.")
    bars: int = Field(description="Bars of the tune, as `bars` of the request counts them.", examples=[16])
    seed: int = Field(description="What the tune was drawn with.", examples=[7])
    surprisal: float = Field(
        description="How surprising the composed notes were to the model, in bits a note: -log2 of the probability of "
        "each among those that fit, before `temperature` and `top_p`.",
        examples=[1.31],
    )
    prompt_surprisal: float | None = Field(
        description="The same of the prompt's notes; null without any.", examples=[None]
    )
    state: str = Field(description="Send it back to have the tune go on, to any replica.")
    surprisals: list[list[float]] | None = Field(
        default=None,
        description="Only with `explain`: of each composed note in bits, as `surprisal`, in the order of the answer, a "
        "list for each composed bar; an upbeat is one. A tied note counts in each bar.",
        examples=[[[3.1], [0.4, 1.2, 0.9]]],
    )
    prompt_surprisals: list[float] | None = Field(
        default=None, description="Only with `explain`: the same of the prompt's notes.", examples=[[]]
    )


class MusicHead(BaseModel):
    """What a tune begins with."""

    abc: str = Field(
        description="The header, and the prompt where there is one; the `abc` of all bars comes after it.",
        examples=["X:1\nT:Tune 7\nM:6/8\nL:1/8\nK:D\n"],
    )
    key: str = Field(description="Of the tune.", examples=["D"])
    meter: str = Field(description="Of the tune.", examples=["6/8"])
    seed: int = Field(description="What the tune is drawn with.", examples=[7])


class MusicBar(BaseModel):
    """A composed bar that will not change any more: the first note after it is there, or the tune has ended."""

    number: int = Field(description="Among those composed, from 1; the first may be an upbeat.", examples=[1])
    abc: str = Field(description="With its bar line and the space or line break after it.", examples=["dfd cec | "])
    surprisal: float = Field(description="Of its notes, in bits a note, as that of the whole tune.", examples=[1.2])


class MusicOptions(TaskOptions):
    """How often keys and meters are drawn where a request leaves them out."""

    keys: dict[str, float] = Field(description="Weights of keys, by name.", default={"D": 1.0, "G": 1.0, "A": 0.5})
    meters: dict[str, float] = Field(description="Weights of meters, by name.", default={"4/4": 1.0, "6/8": 1.0})


# -------------------------------------------------------------------------------------------------------------- task


def _read_abc(data: bytes, name: str, options: Mapping[str, str]) -> FileFields:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return FileFields({"prompt": text})


class MusicComposition(Task[MusicInput, MusicOutput]):
    """Folk tunes, composed note by note: always in their key, every bar full, as many bars as asked for."""

    name = "music-composition"
    summary = "How does the tune go?"
    Input = MusicInput
    Output = MusicOutput
    Options = MusicOptions
    options: MusicOptions
    other_answers: ClassVar[Mapping[str, str]] = {"midi": "audio/midi"}
    other_headers: ClassVar[Mapping[str, str]] = {"X-Seed": "The seed that the tune was drawn with."}
    events: ClassVar[Mapping[str, type[BaseModel]]] = {"head": MusicHead, "bar": MusicBar}
    file_reader = FileReader(
        option="abc",
        help="ABC file: the tune that is gone on from.",
        read=_read_abc,
        suffixes=(".abc",),
    )

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        features = folder.input("features", dtype="int32", rank=3)
        folder.input("sequence_lens", dtype="int32", rank=1)
        logits = folder.output("logits", dtype="float32", rank=3)
        if features.shape[2] != WIDTH or logits.shape[2] != SYMBOLS:
            raise ManifestInvalid(
                folder.graph_file(), f"{features} and {logits}: their last axes should be {WIDTH} and {SYMBOLS}."
            )
        if not folder.signature.states:
            raise ManifestInvalid(folder.graph_file(), "has no recurrent state: an input `x` and an output `next_x`.")
        _ = folder.state_bounds  # raises where the state cannot travel
        try:
            self._keys = _cumulated({Key.parse(name): weight for name, weight in self.options.keys.items()})
            self._meters = _cumulated({Meter.parse(name): weight for name, weight in self.options.meters.items()})
        except ValueError as error:
            raise ManifestInvalid(f"{folder.name}/manifest.toml", f"[keys] or [meters]: {error}.") from None

    # ---- decode

    def _begin(self, request: MusicInput, draws: Draws) -> tuple[Score, list[Read], dict[str, NDArray[Any]]]:
        """Where the request's tune stands: the score, the notes of its prompt, and the network's state before them.

        Raises:
            InvalidInput: the prompt cannot be gone on from, or contradicts other fields.
            InvalidState: the state is damaged or another model's.
        """
        drawn_key, drawn_meter = _drawn(self._keys, draws()), _drawn(self._meters, draws())
        key = Key.parse(request.key) if request.key is not None else None
        meter = Meter.parse(request.meter) if request.meter is not None else None
        fresh = {name: array[0] for name, array in self.folder.signature.fresh_state().items()}
        if request.state is not None:
            walk, states = self._resumed(request)
            if key not in (None, walk.key) or (meter is not None and meter.name != walk.meter.name):
                raise InvalidInput(
                    f"The state's tune is in {walk.key}, {walk.meter}, and goes on so. Leave out `key` and `meter`."
                )
            return Score(walk), [], states
        if request.prompt is None:
            return Score(Walk(key or drawn_key, meter or drawn_meter, request.bars)), [], fresh
        tune = self._prompt(request.prompt, key, meter)
        try:
            walk, notes = follow(tune, request.bars)
        except BadTune as error:
            raise InvalidInput(f"The prompt cannot be gone on from: {error}.") from None
        return Score(walk, tune), notes, fresh

    def _prompt(self, text: str, key: Key | None, meter: Meter | None) -> Tune:
        limit = self.folder.limits.max_text_chars
        if len(text) > limit:
            raise TooLarge("The prompt", limit=limit, unit="characters", setting="MAX_TEXT_CHARS", actual=len(text))
        if not text.strip():
            raise InvalidInput("`prompt` is empty. Leave it out to have a new tune composed.")
        try:
            return read(text, key, meter)
        except BadTune as error:
            raise InvalidInput(f"The prompt cannot be gone on from: {error}.") from None

    def _resumed(self, request: MusicInput) -> tuple[Walk, dict[str, NDArray[Any]]]:
        if request.prompt is not None:
            raise InvalidInput("Send `prompt` or `state`: the state has its own tune to go on from.")
        found = self.folder.unpack_state(request.state or "")
        try:
            return recall(found.extra, request.bars), dict(found.arrays)
        except (ValueError, TypeError):
            raise InvalidState("does not fit this model") from None

    # ---- the runs

    def _run(self, features: list[list[int]], states: Mapping[str, NDArray[Any]]) -> Run:
        tensors = {
            "features": np.array([features], np.int32),
            "sequence_lens": np.array([len(features)], np.int32),
            **{name: array[None] for name, array in states.items()},
        }
        return Run(tensors, most_rows=max(1, MAX_BATCH_NOTES // len(features)))

    def _states(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: outputs[following][0] for name, following in self.folder.signature.states.items()}

    def _read(
        self, notes: list[Read], states: dict[str, NDArray[Any]]
    ) -> Generator[Run, Mapping[str, NDArray[Any]], tuple[dict[str, NDArray[Any]], list[float]]]:
        """Have the network read a prompt: its state behind it, and the surprisal of each of its notes."""
        bits: list[float] = []
        everything = np.ones(SYMBOLS, bool)
        for at in range(0, len(notes), MAX_RUN_NOTES):
            part = notes[at : at + MAX_RUN_NOTES]
            outputs = yield self._run([note.features for note in part], states)
            states = self._states(outputs)
            for note, logits in zip(part, outputs["logits"][0], strict=False):
                allowed = everything if note.allowed is None else note.allowed
                bits.append(surprisal(logits, allowed, note.number))
        return states, bits

    def _compose(
        self, score: Score, states: dict[str, NDArray[Any]], request: MusicInput, draws: Draws
    ) -> Generator[Run | Settled, Mapping[str, NDArray[Any]], tuple[dict[str, NDArray[Any]], list[list[float]]]]:
        """Compose until all bars are full: the network's state then, and the surprisal of each bar's notes."""
        bits: list[list[float]] = [[]]
        told = 0
        while score.walk.bars_left:
            outputs = yield self._run([score.walk.features()], states)
            states = self._states(outputs)
            allowed = score.walk.allowed(score.held)
            number, surprise = choose(outputs["logits"][0, 0], allowed, request.temperature, request.top_p, draws())
            symbol = Symbol.numbered(number)
            score.add(symbol)
            if symbol.pitch != UPBEAT:
                bits[-1].append(surprise)
            if len(score.bars) > len(bits):
                bits.append([])
            if (settled := score.settled()) > told:
                yield self.settled(partial(_told, score, bits, range(told, settled)))
                told = settled
        return states, [bar for bar in bits if bar]

    # ---- encode

    def steps(self, request: MusicInput) -> Steps[MusicOutput | MediaAnswer]:
        try:
            return (yield from self._steps(request))
        except OutOfRange as error:
            if request.state is None:
                raise InferenceFailed(self.folder.name) from error
            raise InvalidState(LEADS_NOWHERE) from None

    def _steps(self, request: MusicInput) -> Steps[MusicOutput | MediaAnswer]:
        seed = request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1)
        draws = Draws(seed)
        score, notes, states = self._begin(request, draws)
        states, of_prompt = yield from self._read(notes, states)
        head = score.head(f"Tune {seed}")
        yield self.settled(lambda: [_head(score, head, seed)])
        states, bits = yield from self._compose(score, states, request, draws)
        abc = head + score.body()
        content_type = self.other_answer(request)
        if content_type is not None:
            tune = read(abc)
            sounding = (note for bar in played(tune.bars) for note in bar.notes)
            data = midi.write(sounding, tune.key, tune.meter)
            return MediaAnswer(self.folder.ref, data, content_type, {"X-Seed": str(seed)})
        state = self.folder.pack_state(states, remember(score.walk), from_token=request.state is not None)
        answer = MusicOutput(
            model=self.folder.ref,
            abc=abc,
            bars=request.bars,
            seed=seed,
            surprisal=_mean([each for bar in bits for each in bar]),
            prompt_surprisal=_mean(of_prompt) if of_prompt else None,
            state=state,
        )
        if not request.explain:
            return answer
        return answer.model_copy(update={"surprisals": bits, "prompt_surprisals": of_prompt})

    def understood(self, request: MusicInput) -> Understood:
        """The tune that is to be composed, and what is there of it; key and meter are null where they are drawn."""
        score, notes, _ = self._begin(request, Draws(request.seed or 0))
        drawn = request.seed is None and request.prompt is None and request.state is None
        facts: dict[str, Fact] = {
            "key": None if drawn and request.key is None else str(score.walk.key),
            "meter": None if drawn and request.meter is None else str(score.walk.meter),
            "prompt_notes": len(notes),
            "bars_to_compose": score.walk.bars_left,
        }
        return Understood(facts, {"max_text_chars": len(request.prompt or "")})

    def shown(self, request: MusicInput, answer: Mapping[str, Any]) -> Iterator[Shown]:
        yield str(answer["abc"]).rstrip("\n")
        told = f"seed {answer['seed']}, {answer['surprisal']:.2f} bits a note"
        if answer.get("prompt_surprisal") is not None:
            told += f"; the prompt {answer['prompt_surprisal']:.2f}"
        yield told


def _head(score: Score, abc: str, seed: int) -> MusicHead:
    walk = score.walk
    return MusicHead(abc=abc, key=str(walk.key), meter=str(walk.meter), seed=seed)


def _told(score: Score, bits: Sequence[Sequence[float]], places: range) -> list[MusicBar]:
    """Composed bars that are settled."""
    return [MusicBar(number=at + 1, abc=score.bar(at), surprisal=_mean(bits[at])) for at in places]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cumulated(weights: Mapping[Any, float]) -> list[tuple[float, Any]]:
    """Things, each with the share of all weights up to it."""
    total = sum(weights.values())
    if not weights or not total > 0 or min(weights.values()) < 0:
        raise ValueError("weights should be above 0")
    reached, shares = 0.0, []
    for thing, weight in weights.items():
        reached += weight / total
        shares.append((reached, thing))
    return shares


def _drawn(shares: list[tuple[float, Any]], draw: float) -> Any:
    return next((thing for reached, thing in shares if draw < reached), shares[-1][1])
