"""Speech recognition: recordings in, the words that were said out; streams too, whose memory travels with the client.

The graph has the input `samples` float32 (batch, S), mono sound of 16-bit loudness, S a multiple of the samples of a
step; any recurrent state; and the output `log_probs` float32 (batch, S / step, 1 + words), log probabilities of a
network trained by CTC, the blank first. For the times of words it also has `frame_log_probs` of the same shape: what
was being said some steps ago, silence first. Everything that looks back is state, so a stream may be cut between any
two steps.

What a piece of a stream leaves over is kept in the token: the end of its samples, which the resampler will hear
again, less than a step of resampled ones, and the steps of words that are not finished. So a recording in pieces gets
the words of the whole.

    recording → mono, 16 bits → resampler → whole steps → graph → segments → alternatives → words

A segment ends where nothing is said for a moment (`ctc.next_segment`). It is read `lag` steps later, when it is known
when its words ended; what is not read yet may still change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pybase64
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.decoding import ctc
from service.decoding.ctc import Alternative
from service.errors import InvalidInput, InvalidState, ManifestInvalid, TooLarge, UnsupportedMedia
from service.media.audio import MOST_RATE, Resampler, Sound, is_recording, open_recording
from service.state import LEADS_NOWHERE, OutOfRange
from service.tasks.base import (
    Array,
    Fact,
    FailedFile,
    MediaInput,
    MediaTask,
    ModelFolder,
    Run,
    Steps,
    TaskOptions,
    TaskOutput,
    Understood,
    Upload,
)
from service.tasks.comparison import difference
from service.tasks.terminal import Shown, Table

_SEVEN = (  # "7_theo_19" of the Free Spoken Digit Dataset, CC BY-SA 4.0: something for the documentation page to send
    "data:audio/ogg;base64,"
    "T2dnUwACAAAAAAAAAAAE7qtmAAAAAHgozuMBE09wdXNIZWFkAQE4AUAfAAAAAABPZ2dTAAAAAAAAAAAAAATuq2YBAAAAN4ih1wEQT3B1c1RhZ3"
    "MAAAAAAAAAAE9nZ1MABBw4AAAAAAAABO6rZgIAAADzRIj/DwwQDw4QDhAJDRAREAwKCgiEKI7h3TCVI+wAwAi8rxeadmnElNU+3DyjxXsIvMnt"
    "ydtrfcatbuKpbrAIvKA7YoX856MYTqNugAi8njEzzOQ5+3KkkDNy0BYIvHblLyHnDt733yQq9AiFhJyXcyVz2f2HmJ212UAIhPvG5+8riBMIhU"
    "sxEQUccUth9HjgCLvvauuRtzxnw+GlZ15dxAi7Vui8pNIHDrRn/zO4iSIgCLlKdcsVuAHF3w8/XXDZoAi4aMkikeoCiDrfQAgGb03FpYJ1nugI"
    "Bm8q7cDJdE2w"
)

MOST_STEPS = 128
"""Steps of a run at most (count): a long recording lets other callers' runs go between."""
LONGEST_SEGMENT = 100
"""Steps without a pause after which a segment is cut all the same (count): a token holds only so many."""
LOUDEST = 32_768.0


class SpeechRecognitionInput(MediaInput):
    """Which model, and what to tell beside the text; the recordings are the files."""

    timestamps: bool = Field(default=False, description="Tell for each word when it was said.")
    alternatives: int = Field(default=1, ge=1, le=10, description="How many texts to tell, the likeliest first.")
    explain: bool = Field(
        default=False, description="Add `frames`: how probable each word was at each moment.", examples=[False]
    )
    final: bool = Field(
        default=True,
        description="False: more of this recording follows, in a request with the `state` of the answer.",
    )
    state: str | None = Field(
        default=None,
        description="The `state` of the previous answer, unchanged: this is the next piece of its recording. As a part "
        "of the form, or a query parameter where it is short enough for a URL.",
    )


class SpeechAlternative(BaseModel):
    """A text that may have been said."""

    text: str = Field(description="Words, separated by spaces.", examples=["four two seven"])
    score: float = Field(description="Probability of exactly this text.", ge=0, le=1, examples=[0.93])


class SpokenWord(BaseModel):
    """One word, and when it was said."""

    word: str = Field(description="One of the model's labels.", examples=["four"])
    start_s: float = Field(description="Where it begins: seconds from the start of the first piece.", examples=[0.12])
    end_s: float = Field(description="Where it ends (seconds).", examples=[0.51])
    score: float = Field(description="Probability that this word was said here.", ge=0, le=1, examples=[0.97])


class HeardWord(BaseModel):
    """A word of a recording, which will not change any more. With `alternatives` above 1 there are none before the end.

    A piece of a stream tells of its own words.
    """

    recording: int = Field(description="Place of the recording among those sent, from 0.", ge=0, examples=[0])
    place: int = Field(description="Of the word in the `text`, from 0.", ge=0, examples=[1])
    word: str = Field(examples=["two"])


class SpeechFrames(BaseModel):
    """What the network heard, step by step: the probabilities that the texts are read from."""

    start_s: float = Field(description="When the first step begins, from the first piece on.", examples=[0.0])
    step_s: float = Field(description="How long a step is.", examples=[0.04])
    labels: list[str] = Field(
        description="Of the columns: the first, without a name, is that no word ends in this step.",
        examples=[["", "one", "two"]],
    )
    probabilities: list[list[float]] = Field(
        description="A row for each step, a column for each label; each row adds up to 1. The network tells a word "
        "once, when it has heard enough of it, so later than it was said. The last steps are the silence after the end."
    )


class SpeechResult(BaseModel):
    """What was said in one recording, or in a piece of it."""

    filename: str | None = Field(description="As sent with the part; null for a raw body.", examples=["pin.wav"])
    duration_s: float = Field(description="Length of the recording, as far as it could be read.", examples=[2.9])
    sample_rate: int = Field(description="Samples a second.", examples=[16000])
    text: str = Field(
        description="What was said; empty where nothing was. With `final=false`, what is certain so far.",
        examples=["four two seven"],
    )
    score: float = Field(
        description="Probability of exactly this text; of an empty one, that nothing was said.",
        ge=0,
        le=1,
        examples=[0.93],
    )
    alternatives: list[SpeechAlternative] = Field(description="The likeliest texts, all different; first is `text`.")
    words: list[SpokenWord] = Field(default=[], description="Only with `timestamps`; joined by spaces they are `text`.")
    frames: SpeechFrames | None = Field(default=None, description="Only with `explain`.")


class SpeechRecognitionOutput(TaskOutput):
    """One result for each recording, in the order sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "digits-ctc", "version": "1"},
                    "results": [
                        {
                            "filename": "pin.wav",
                            "duration_s": 2.9,
                            "sample_rate": 16000,
                            "text": "four two seven",
                            "score": 0.93,
                            "alternatives": [{"text": "four two seven", "score": 0.93}],
                        }
                    ],
                    "state": None,
                }
            ]
        }
    )

    results: list[SpeechResult | FailedFile] = Field(
        description="In the order sent; a recording that cannot be used has an `error` in place of its answer."
    )
    state: str | None = Field(description="With `final=false`: send it with the next piece; else null.")


class SpeechSound(TaskOptions):
    """What the graph hears; the manifest's `[sound]` table."""

    rate: Literal[8000, 16_000, 32_000, 48_000] = 16_000
    """Samples a second."""
    step: Annotated[int, Field(ge=1, le=48_000)] = 320
    """Samples of one step of the output."""
    flush: Annotated[int, Field(ge=0, le=1000)] = 0
    """Steps of silence that a recording is followed by, so that its last word comes out."""


class SpeechReading(TaskOptions):
    """How the graph's answers become words; the manifest's `[reading]` table."""

    quiet: Annotated[float, Field(gt=0.5, lt=1)] = 0.98
    """Probability of the blank from which on a step is quiet."""
    pause: Annotated[int, Field(ge=1, le=50)] = 3
    """Quiet steps that end a segment."""
    lag: Annotated[int, Field(ge=0, le=50)] = 0
    """Steps after a segment that tell when its words ended."""
    back: Annotated[int, Field(ge=0, le=50)] = 0
    """Steps before a segment that tell when its words began."""
    frame_delay: Annotated[int, Field(ge=0, le=50)] = 0
    """By how many steps `frame_log_probs` lags."""


class SpeechOptions(TaskOptions):
    """What the manifest of a model of speech may say."""

    sound: SpeechSound = SpeechSound()
    reading: SpeechReading = SpeechReading()


class _Memory(BaseModel):
    """What a token holds beside the graph's state; arrays are base64 of their bytes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rate: int = Field(ge=1, le=MOST_RATE)
    samples: int = Field(ge=0, le=2**53)
    held: str
    rest: str
    first: int = Field(ge=0, le=2**53)
    read: int = Field(ge=0)
    said_until: int = Field(ge=0, le=2**53)
    steps: str


@dataclass
class Stream:
    """A recording as far as it was heard.

    Attributes:
        tensors: the graph's state, each (1, …).
        log_probs: float32 (T, 1 + words), of the steps that are not forgotten yet.
        frames: float32 (T, 1 + words), the same of `frame_log_probs`.
        rate: samples a second; 0 where nothing was heard yet.
        samples: heard so far, at that rate (count).
        held: int16, what the resampler will hear again; None at the beginning.
        rest: float32, less than a step of resampled samples.
        first: number of the first of these steps since the beginning.
        read: how many of them have been read.
        said_until: number of the step where the last word ended.
    """

    tensors: dict[str, Array]
    log_probs: NDArray[np.float32]
    frames: NDArray[np.float32]
    rate: int = 0
    samples: int = 0
    held: NDArray[np.int16] | None = None
    rest: Sound = field(default_factory=lambda: np.empty(0, np.float32))
    first: int = 0
    read: int = 0
    said_until: int = 0


@dataclass(frozen=True)
class Heard:
    """One recording, or a piece of one, decoded and resampled.

    Attributes:
        sound: float32, at the model's rate.
        rate: samples a second, as sent.
        duration_s: its length.
        until_s: where it ends, from the beginning of the first piece.
    """

    sound: Sound
    rate: int
    duration_s: float
    until_s: float


@dataclass
class Text:
    """What has been read.

    Attributes:
        kept: alternatives for all of it, at most (count).
        alternatives: best first.
        words: with their steps.
        told: words of the best that were told as they were settled (count).
    """

    kept: int
    alternatives: list[Alternative] = field(default_factory=lambda: [Alternative((), 0.0)])
    words: list[tuple[int, int, int, float]] = field(default_factory=list)
    told: int = 0


class SpeechRecognition(MediaTask[SpeechRecognitionInput, SpeechRecognitionOutput, Heard]):
    """Write down what is said in recordings: WAV, FLAC, Ogg (Vorbis, Opus), MP3, or `audio/L16;rate=16000;channels=1`.

    The bytes say which it is. Any sampling rate from 4 to 192 kHz, any number of channels, which are mixed down; a
    recording that breaks off is read as far as it goes. The words that a model knows are its `labels`.

    A recording may be sent in pieces of one sampling rate, each a file of its own: with `final=false` and, from the
    second on, the `state` of the answer before. The texts of the pieces, joined by spaces, are the text of the whole.
    """

    name = "speech-recognition"
    summary = "What is said in this recording?"
    Input, Output = SpeechRecognitionInput, SpeechRecognitionOutput
    Options = SpeechOptions
    options: SpeechOptions
    events: ClassVar[Mapping[str, type[BaseModel]]] = {"word": HeardWord}
    media: ClassVar[tuple[str, ...]] = (
        "audio/wav",
        "audio/flac",
        "audio/ogg",
        "audio/mpeg",
        "audio/L16",
        "application/octet-stream",
    )
    noun = "Recording"
    sample_file = "digits.wav"
    sample_data_url = _SEVEN

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        where = f"{folder.name}/{folder.version}"
        folder.input("samples", dtype="float32", rank=2)
        self.labels = folder.lines("labels.txt")
        self._outputs = ["log_probs", *folder.signature.states.values()]
        self._has_frames = "frame_log_probs" in folder.signature.outputs
        if self._has_frames:
            self._outputs.insert(1, "frame_log_probs")
        for name in self._outputs[: 1 + self._has_frames]:
            columns = folder.output(name, dtype="float32", rank=3).shape[2]
            if columns != 1 + len(self.labels):
                raise ManifestInvalid(
                    f"{where}/labels.txt",
                    f"has {len(self.labels)} labels, but {name} has {columns} columns: a blank and one for each label.",
                )
        others = set(folder.signature.inputs) - {"samples", *folder.signature.states}
        if others:
            raise ManifestInvalid(f"{where}/model.onnx", f"has an input {min(others)!r} that this task does not know.")
        _ = folder.state_bounds  # raises where the state cannot travel
        self._step_s = self.options.sound.step / self.options.sound.rate

    @classmethod
    def recognises(cls, data: bytes) -> bool:
        return is_recording(data)

    # ------------------------------------------------------------------------------------------------------- requests

    def steps(self, request: SpeechRecognitionInput) -> Steps[Any]:
        self._check_files(request)
        if request.final and request.state is None:
            self._check_total(request.files)
            results = yield from self.each_file(request)
            return SpeechRecognitionOutput.model_construct(model=self.folder.ref, results=results, state=None)
        if len(request.files) > 1:
            raise InvalidInput(
                f"A stream is one recording, and {len(request.files)} were sent with `state` or `final=false`. Send "
                "the next piece of each stream in a request of its own."
            )
        (file,) = request.files
        stream = self._fresh() if request.state is None else self._unpack(request.state)
        heard = self._decode(file, self.name_of(file, 0), stream, final=request.final)
        result = yield from self._answer(request, file, heard, stream)
        state = None if request.final else self._pack(stream, from_token=request.state is not None)
        return SpeechRecognitionOutput.model_construct(model=self.folder.ref, results=[result], state=state)

    def decode_file(self, file: Upload, what: str) -> Heard:
        return self._decode(file, what, self._fresh(), final=True)

    def understood_file(self, file: Upload) -> Understood:
        """What the recording is, by its header, and how long; null where only decoding tells."""
        most_s = self.folder.limits.max_audio_s
        with open_recording(file.data, "Recording", most_s=most_s, content_type=file.content_type) as recording:
            seconds = recording.duration_s
            facts: dict[str, Fact] = {
                "format": recording.kind,
                "sample_rate": recording.rate,
                "channels": recording.channels,
                "seconds": seconds,
                "heard_at_rate": self.options.sound.rate,
            }
        return Understood(facts, {} if seconds is None else {"max_audio_s": seconds})

    def answer_files(
        self, request: SpeechRecognitionInput, files: Sequence[Upload], decoded: Sequence[Heard]
    ) -> Steps[list[SpeechResult]]:
        results = []
        for file, heard in zip(files, decoded, strict=True):
            result = yield from self._answer(request, file, heard, self._fresh())
            results.append(result)
        return results

    def _check_total(self, files: Sequence[Upload]) -> None:
        """See that all recordings together are no longer than one may be; of some, only decoding tells."""
        most_s = self.folder.limits.max_audio_s
        if len(files) < 2:
            return
        total_s = 0.0
        for file in files:
            try:
                recording = open_recording(file.data, "Recording", most_s=math.inf, content_type=file.content_type)
            except (InvalidInput, TooLarge, UnsupportedMedia):
                continue  # told where it is decoded
            with recording:
                total_s += recording.duration_s or 0.0
        if total_s > most_s:
            raise TooLarge(
                "The request",
                limit=int(most_s),
                unit="seconds",
                setting="GRIDLOOP_MAX_AUDIO_S",
                actual=math.ceil(total_s),
            )

    # -------------------------------------------------------------------------------------------------------- hearing

    def _decode(self, file: Upload, what: str, stream: Stream, *, final: bool) -> Heard:
        """Read a recording, the next piece of a stream, and leave there what the resampler will hear again.

        Raises:
            InvalidInput: it is damaged, empty, or of another rate than the pieces before.
            TooLarge, UnsupportedMedia: as `open_recording`.
        """
        most_s = self.folder.limits.max_audio_s
        with open_recording(file.data, what, most_s=most_s, content_type=file.content_type) as recording:
            rate = recording.rate
            if stream.rate and rate != stream.rate:
                raise InvalidInput(
                    f"{what} has {rate:,} samples a second, the pieces before it had {stream.rate:,}. Send all pieces "
                    "of a stream at one rate."
                )
            resampler = Resampler(rate, self.options.sound.rate, stream.held)
            if not resampler.least_held <= len(resampler.held) <= resampler.most_held:
                raise InvalidState("does not fit this model")
            pieces, count = [], 0
            for block in recording.blocks():
                pieces.append(resampler.feed(block))
                count += len(block)
        if final and not count and not stream.samples:
            raise InvalidInput(f"{what} has no sound in it. Send a recording that is longer.")
        if final:
            pieces.append(resampler.finish())
        stream.rate, stream.held, stream.samples = rate, resampler.held, stream.samples + count
        return Heard(np.concatenate([np.empty(0, np.float32), *pieces]), rate, count / rate, stream.samples / rate)

    def _answer(
        self, request: SpeechRecognitionInput, file: Upload, heard: Heard, stream: Stream
    ) -> Steps[SpeechResult]:
        """Hear a piece of a stream, and read what is certain of it."""
        step = self.options.sound.step
        sound = np.concatenate([stream.rest, heard.sound])
        if request.final:
            silence = -len(sound) % step + step * self.options.sound.flush
            sound = np.concatenate([sound, np.zeros(silence, np.float32)])
        whole = len(sound) // step
        stream.rest = sound[whole * step :]
        # What is best of the whole is best of each segment; of those after it, some may turn out to be the same.
        text = Text(1 if request.alternatives == 1 else ctc.BEAMS)
        start_s, heard_steps = (stream.first + len(stream.log_probs)) * self._step_s, [stream.log_probs[:0]]
        for begin in range(0, whole, MOST_STEPS):
            samples = sound[begin * step : min(whole, begin + MOST_STEPS) * step]
            outputs = yield Run({"samples": samples[None], **stream.tensors}, tuple(self._outputs))
            self._remember(stream, outputs, len(samples) // step)
            if request.explain:
                heard_steps.append(np.exp(outputs["log_probs"][0]))
            self._read(stream, text, timestamps=request.timestamps)
            if text.kept == 1:
                yield self.settled(partial(self._new_words, request, file, text))
        if request.final:
            self._read(stream, text, timestamps=request.timestamps, to_the_end=True)
        if text.kept == 1:
            yield self.settled(partial(self._new_words, request, file, text))
        result = self._result(request, file, heard, text)
        if not request.explain:
            return result
        frames = SpeechFrames.model_construct(
            start_s=start_s, step_s=self._step_s, labels=["", *self.labels], probabilities=np.concatenate(heard_steps)
        )
        return result.model_copy(update={"frames": frames})

    def _new_words(self, request: SpeechRecognitionInput, file: Upload, text: Text) -> Iterator[HeardWord]:
        """Words that are read and were not told yet."""
        labels = text.alternatives[0].labels
        told, text.told = text.told, len(labels)
        for place in range(told, len(labels)):
            recording = next(at for at, other in enumerate(request.files) if other is file)
            yield HeardWord(recording=recording, place=place, word=self.labels[labels[place] - 1])

    def _remember(self, stream: Stream, outputs: Mapping[str, Array], steps: int) -> None:
        log_probs = outputs["log_probs"][0]
        frames = outputs["frame_log_probs"][0] if self._has_frames else log_probs
        if len(log_probs) != steps or not np.isfinite(log_probs).all() or not np.isfinite(frames).all():
            raise InvalidState(LEADS_NOWHERE)
        states = self.folder.signature.states
        stream.tensors = {name: outputs[following] for name, following in states.items()}
        stream.log_probs = np.concatenate([stream.log_probs, log_probs])
        stream.frames = np.concatenate([stream.frames, frames])

    # -------------------------------------------------------------------------------------------------------- reading

    def _read(self, stream: Stream, text: Text, *, timestamps: bool, to_the_end: bool = False) -> None:
        """Read all segments that are finished, and forget what is not needed for the others."""
        reading = self.options.reading
        blank = stream.log_probs[:, ctc.BLANK]
        while True:
            begin, end = ctc.next_segment(
                blank, stream.read, quiet=math.log(reading.quiet), pause=reading.pause, longest=LONGEST_SEGMENT
            )
            if end is None and to_the_end and begin < len(blank):
                end = len(blank)
            # What is quiet before it is part of the text's probability: that nothing was said there.
            self._pass(stream, text, blank[stream.read : begin])
            if end is None or (end + reading.lag > len(blank) and not to_the_end):
                break
            alternatives = ctc.prefix_beam_search(stream.log_probs[begin:end])
            text.alternatives = ctc.combine(text.alternatives, alternatives[: text.kept], text.kept)
            if timestamps:
                text.words += self._timed(stream, begin, end, alternatives)
            stream.read = end
        forget = max(0, stream.read - reading.back)
        stream.first += forget
        stream.read -= forget
        stream.log_probs, stream.frames = stream.log_probs[forget:], stream.frames[forget:]

    @staticmethod
    def _pass(stream: Stream, text: Text, quiet: NDArray[np.float32]) -> None:
        """Go over quiet steps."""
        if len(quiet):
            text.alternatives = ctc.combine(text.alternatives, [Alternative((), float(quiet.sum(dtype=np.float64)))])
            stream.read += len(quiet)

    def _timed(
        self, stream: Stream, begin: int, end: int, alternatives: Sequence[Alternative]
    ) -> Iterator[tuple[int, int, int, float]]:
        """The words of a segment, each with the steps where it was said, and its probability."""
        labels = alternatives[0].labels
        if not labels:
            return
        reading = self.options.reading
        # Frames lag, so a word may end, by them, after its segment; and before it there may be one of another segment.
        window = slice(max(0, begin - reading.back, stream.said_until - stream.first), end + reading.lag)
        frames = stream.frames[window].copy()
        said = np.exp(frames[:, sorted(set(labels))].astype(np.float64)).sum(axis=1)
        frames[:, ctc.BLANK] = np.log(np.maximum(1.0 - said, 1e-9))
        spans = ctc.align(frames, labels)
        for label, (start, stop), score in zip(labels, spans, ctc.agreement(alternatives), strict=True):
            first, last = (stream.first + window.start + place for place in (start, stop))
            stream.said_until = last
            yield label, first - reading.frame_delay, last - reading.frame_delay, score

    def _result(self, request: SpeechRecognitionInput, file: Upload, heard: Heard, text: Text) -> SpeechResult:
        told = [
            SpeechAlternative(text=self._text(labels), score=_probability(score))
            for labels, score in text.alternatives[: request.alternatives]
        ]
        fields: dict[str, Any] = {
            "filename": file.filename,
            "duration_s": heard.duration_s,
            "sample_rate": heard.rate,
            "text": told[0].text,
            "score": told[0].score,
            "alternatives": told,
        }
        if request.timestamps:
            fields["words"] = [self._word(*word, heard.until_s) for word in text.words]
        return SpeechResult.model_construct(**fields)

    def _word(self, label: int, first: int, last: int, score: float, whole_s: float) -> SpokenWord:
        end_s = min(max(last, 1) * self._step_s, max(whole_s, self._step_s))
        start_s = min(max(first, 0) * self._step_s, end_s - self._step_s / 2)
        return SpokenWord.model_construct(
            word=self.labels[label - 1], start_s=round(max(start_s, 0.0), 3), end_s=round(end_s, 3), score=score
        )

    def _text(self, labels: Sequence[int]) -> str:
        return " ".join(self.labels[label - 1] for label in labels)

    # ---------------------------------------------------------------------------------------------------------- state

    def _fresh(self) -> Stream:
        columns = 1 + len(self.labels)
        nothing = np.empty((0, columns), np.float32)
        return Stream(self.folder.signature.fresh_state(), nothing, nothing)

    def _pack(self, stream: Stream, *, from_token: bool) -> str:
        steps = np.concatenate([stream.log_probs, stream.frames], axis=1)
        memory = _Memory(
            rate=stream.rate,
            samples=stream.samples,
            held=_base64(np.empty(0, np.int16) if stream.held is None else stream.held),
            rest=_base64(stream.rest),
            first=stream.first,
            read=stream.read,
            said_until=stream.said_until,
            steps=_base64(steps),
        )
        try:
            arrays = {name: array[0] for name, array in stream.tensors.items()}
            return self.folder.pack_state(arrays, memory.model_dump(), from_token=from_token)
        except OutOfRange:
            raise InvalidState(LEADS_NOWHERE) from None

    def _unpack(self, token: str) -> Stream:
        """The way back from `_pack`.

        Raises:
            InvalidState: the token is damaged, another model's, or holds what no stream leaves behind.
        """
        found = self.folder.unpack_state(token)
        columns = 1 + len(self.labels)
        try:
            memory = _Memory.model_validate(found.extra)
            held = _array(memory.held, np.int16)
            rest = _array(memory.rest, np.float32)
            steps = _array(memory.steps, np.float32).reshape(-1, 2 * columns)
        except (ValidationError, ValueError):
            raise InvalidState("does not fit this model") from None
        if (
            len(rest) >= self.options.sound.step
            or not (np.abs(rest) <= 2 * LOUDEST).all()
            or not ((steps <= 1e-3) & (steps > -1e4)).all()
            or memory.read > len(steps)
        ):
            raise InvalidState("does not fit this model")
        return Stream(
            tensors={name: array[None] for name, array in found.arrays.items()},
            log_probs=steps[:, :columns],
            frames=steps[:, columns:],
            rate=memory.rate,
            samples=memory.samples,
            held=held,
            rest=rest,
            first=memory.first,
            read=memory.read,
            said_until=memory.said_until,
        )

    # ----------------------------------------------------------------------------------------------------- comparison

    def difference(
        self, request: SpeechRecognitionInput, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """As any answer's; times may differ by one step, and the state, which holds raw numbers, is not compared."""
        told = {name: value for name, value in expected.items() if name not in ("results", "state")}
        if found := difference(told, got, tolerance):
            return found
        if "results" not in expected:
            return None
        results, answers = expected["results"], got.get("results", [])
        if len(results) != len(answers):
            return f"at results: expected {len(results)} entries, got {len(answers)}"
        for place, (result, answer) in enumerate(zip(results, answers, strict=True)):
            rest = {name: value for name, value in result.items() if name != "words"}
            if found := difference(rest, answer, tolerance, f"results[{place}]"):
                return found
            if found := self._words_differ(result.get("words", []), answer.get("words", []), tolerance, place):
                return found
        return None

    def _words_differ(
        self, expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]], tolerance: float, place: int
    ) -> str | None:
        if expected and len(expected) != len(got):
            return f"at results[{place}].words: expected {len(expected)} entries, got {len(got)}"
        for i, (word, answer) in enumerate(zip(expected, got, strict=False)):
            where = f"results[{place}].words[{i}]"
            times = {name: value for name, value in word.items() if name in ("start_s", "end_s")}
            rest = {name: value for name, value in word.items() if name not in times}
            if found := difference(rest, answer, tolerance, where) or difference(
                times, answer, self._step_s + 1e-6, where
            ):
                return found
        return None

    def shown_result(self, request: SpeechRecognitionInput, result: Mapping[str, Any]) -> Iterator[Shown]:
        title = f"{result['filename'] or 'recording'}, {result['duration_s']:.2f} s"
        if words := result.get("words"):
            times = [(w["word"], f"{w['start_s']:.2f}", f"{w['end_s']:.2f}", f"{w['score']:.2f}") for w in words]
            yield Table(("word", "from s", "to s", "score"), times, title)
        rows = [(entry["text"] or "(nothing is said)", f"{entry['score']:.3f}") for entry in result["alternatives"]]
        yield Table(("text", "score"), rows, "" if words else title)


def _probability(log_probability: float) -> float:
    return min(1.0, math.exp(log_probability))


def _base64(array: NDArray[Any]) -> str:
    return pybase64.b64encode_as_string(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())


def _array(text: str, dtype: type[np.generic]) -> NDArray[Any]:
    """The way back from `_base64`.

    Raises:
        ValueError: the text is no base64, or of no such array.
    """
    data = pybase64.b64decode(text.encode("ascii"), validate=True)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype)
