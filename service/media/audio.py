"""Sound: from the bytes of a recording to mono samples at the rate that a model hears, whole or piece by piece.

    with open_recording(data, "Recording 1", most_s=600) as recording:
        resampler = Resampler(recording.rate, 8000)
        samples = np.concatenate([*map(resampler.feed, recording.blocks()), resampler.finish()])

The bytes say what a recording is, not its content type; only samples without any header (`audio/L16`) have to be
declared. libsndfile decodes (soundfile), the SoX resampler resamples (soxr).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Self

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from python_multipart.multipart import parse_options_header

from service.errors import InvalidInput, TooLarge, UnsupportedMedia

Samples = NDArray[np.int16]
Sound = NDArray[np.float32]

FORMATS = ("WAV", "FLAC", "Ogg (Vorbis or Opus)", "MP3", "audio/L16;rate=16000;channels=1")
"""All that are read, as messages name them."""
LEAST_RATE, MOST_RATE = 4_000, 192_000
"""Sampling rates that are read (Hz)."""
MOST_CHANNELS = 64
"""More are no recording but a broken header (count)."""
BLOCK_SAMPLES = 1 << 18
"""Decoded at a time, all channels together (count): a long recording is never in memory as a whole."""
RESAMPLER_CONTEXT = 120
"""What the resampler hears on either side, in samples of the lower rate (count): beyond, its filter has decayed."""

_READ = {
    "WAV": re.compile(rb"(?:RIFF|RIFX|RF64)....WAVE", re.DOTALL),
    "FLAC": re.compile(rb"fLaC"),
    "Ogg": re.compile(rb"OggS.{22}.(?:.{1,255}?)(?:OpusHead|\x01vorbis|\x7fFLAC)", re.DOTALL),
    # A tag (ID3v2), or the beginning of a frame of layer III, of a version and a bit rate that there are.
    "MP3": re.compile(rb"ID3[\x02-\x04]|\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]", re.DOTALL),
}
_OTHERS = {
    "AAC": rb"\xff[\xf0\xf1\xf8\xf9]|ADIF",
    "MPEG-4 (M4A or MP4)": rb".{4}ftyp",
    "WebM or Matroska": rb"\x1aE\xdf\xa3",
    "Windows Media": rb"0&\xb2u\x8ef\xcf\x11",
    "AMR": rb"#!AMR",
    "AIFF": rb"FORM....AIF[FC]",
    "Sun AU": rb"\.snd",
    "Core Audio": rb"caff",
    "Ogg with another codec": rb"OggS",
    "MIDI": rb"MThd",
    "MPEG audio of layer I or II": rb"\xff[\xe4-\xe7\xf4-\xf7\xfc-\xff]",
    "AVI": rb"RIFF....AVI ",
    "base64 text": rb"data:audio/|UklGR|SUQz|T2dnU|ZkxhQ",
    "a picture": rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP",
    "JSON": rb"\s*[{\[]",
}
_OTHERS_COMPILED = {name: re.compile(pattern, re.DOTALL) for name, pattern in _OTHERS.items()}

_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)
"""What programs that do not know the length yet write into a WAV header, where it is a pipe."""


@dataclass(frozen=True)
class Recording:
    """A recording that was opened, of which nothing is decoded yet.

    Attributes:
        rate: samples a second.
        frames: samples of each channel by the header; None where it does not tell.
        kind: of `FORMATS`, without its parameters.
        channels: that are mixed down (count).
    """

    rate: int
    frames: int | None
    kind: str
    channels: int
    _what: str
    _file: soundfile.SoundFile | None
    _samples: Samples
    _most_s: float

    @property
    def duration_s(self) -> float | None:
        """Seconds by the header; None where it does not tell."""
        return None if self.frames is None else self.frames / self.rate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def blocks(self) -> Iterator[Samples]:
        """Mono samples of 16 bits, as far as the recording goes.

        Yields:
            int16 (n,).

        Raises:
            TooLarge: there is more than its header told, and more than is allowed.
            InvalidInput: nothing of it can be decoded.
        """
        if self._file is None:
            yield self._samples
            return
        file = self._file
        most, done = round(self._most_s * self.rate), 0
        block = max(1, BLOCK_SAMPLES // file.channels)
        into = np.zeros((block, file.channels), np.float32)
        whole = True
        while whole:
            try:
                count = len(file.read(out=into))
            except (soundfile.LibsndfileError, RuntimeError):
                # Broken off: what was decoded up to there counts.
                whole, count = False, min(max(0, file.tell() - done), block)
            if not done and not count and not whole:
                raise InvalidInput(_damaged(self._what))
            whole = whole and count == block
            done += count
            if done > most:
                raise _too_long(self._what, self._most_s)
            read = into[:count]
            yield _as_16_bits(read.mean(axis=1, dtype=np.float32) if read.shape[1] > 1 else read[:, 0])


def open_recording(data: bytes, what: str, *, most_s: float, content_type: str | None = None) -> Recording:
    """Find out what a recording is, and how long.

    Args:
        data: as sent.
        what: names it in messages, such as "Recording 1".
        most_s: the longest that is taken (seconds).
        content_type: as sent; looked at where the bytes have no header.

    Raises:
        UnsupportedMedia: it is of no format that is read here.
        InvalidInput: it is damaged, or its rate or number of channels cannot be.
        TooLarge: it is longer than `most_s`.
    """
    if not data:
        raise InvalidInput(f"{what} is empty. Send a recording.")
    kind = _format_of(data)
    if kind is None:
        declared, options = parse_options_header((content_type or "").encode())
        if declared.lower() == b"audio/l16":
            return _open_bare(data, what, most_s, options)
        raise UnsupportedMedia(f"{what}, which is", _other_format(data), FORMATS)
    try:
        file = soundfile.SoundFile(io.BytesIO(_mended(data) if kind == "WAV" else data))
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):
        raise InvalidInput(_damaged(what)) from None
    # Headers of recordings that were streamed tell no length, or the largest there is.
    frames = file.frames if 0 < file.frames < 1 << 47 else None
    try:
        _check(what, file.samplerate, file.channels, frames, most_s)
    except BaseException:
        file.close()
        raise
    return Recording(file.samplerate, frames, kind, file.channels, what, file, np.empty(0, np.int16), most_s)


def _open_bare(data: bytes, what: str, most_s: float, options: dict[bytes, bytes]) -> Recording:
    """Samples of 16 bits without a header (RFC 2586): most significant byte first, unless declared otherwise."""
    numbers = {name: options.get(name, default) for name, default in ((b"rate", b""), (b"channels", b"1"))}
    if not all(text.isdigit() and len(text) < 8 for text in numbers.values()):
        raise InvalidInput(
            f"{what} is audio/L16 without a sampling rate, or with one that is no number. "
            "Send it as `audio/L16;rate=16000;channels=1`."
        )
    rate, channels = int(numbers[b"rate"]), int(numbers[b"channels"])
    _check(what, rate, channels, None, most_s)
    order = "<i2" if options.get(b"endianness", b"").lower() == b"little-endian" else ">i2"
    whole = len(data) // (2 * channels)
    _check(what, rate, channels, whole, most_s)
    samples = np.frombuffer(data, order, whole * channels).reshape(whole, channels)
    mono = np.rint(samples.mean(axis=1)).astype(np.int16)
    return Recording(rate, whole, "audio/L16", channels, what, None, mono, most_s)


def _check(what: str, rate: int, channels: int, frames: int | None, most_s: float) -> None:
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InvalidInput(
            f"{what} has a sampling rate of {rate:,} Hz. Send one of {LEAST_RATE:,} to {MOST_RATE:,} Hz; "
            "16,000 is plenty."
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise InvalidInput(f"{what} has {channels:,} channels. Send one of 1 to {MOST_CHANNELS}; one is enough.")
    if frames is not None and frames > most_s * rate:
        raise _too_long(what, most_s, frames / rate)


def _too_long(what: str, most_s: float, actual_s: float | None = None) -> TooLarge:
    actual = None if actual_s is None else int(np.ceil(actual_s))
    return TooLarge(what, limit=int(most_s), unit="seconds", setting="GRIDLOOP_MAX_AUDIO_S", actual=actual)


def _damaged(what: str) -> str:
    return f"{what} is damaged, or of a kind that is not read here. Send it again as WAV, FLAC, Ogg or MP3."


def _as_16_bits(sound: Sound) -> Samples:
    """From -1..1 to whole numbers of 16 bits; what is no number is silence."""
    scaled = np.nan_to_num(sound * np.float32(32768), nan=0.0, posinf=32767.0, neginf=-32768.0)
    whole: Samples = np.clip(np.rint(scaled), -32768, 32767).astype(np.int16)
    return whole


def is_recording(data: bytes) -> bool:
    """Whether these bytes begin as a recording of a format that is read here."""
    return _format_of(data) is not None


def _format_of(data: bytes) -> str | None:
    beginning = data[:320]
    return next((name for name, pattern in _READ.items() if pattern.match(beginning)), None)


def _other_format(data: bytes) -> str:
    beginning = data[:64]
    return next((name for name, pattern in _OTHERS_COMPILED.items() if pattern.match(beginning)), "of no known format")


def _mended(data: bytes) -> bytes:
    """A WAV file whose lengths are true: of its `data` chunk, to the end where the header does not know or says more.

    Raises:
        ValueError: its chunks cannot be followed to one named `data`.
    """
    order = ">" if data[:4] == b"RIFX" else "<"
    if data[:4] == b"RF64":
        return data
    at = 12
    while at + 8 <= len(data):
        name, (length,) = data[at : at + 4], struct.unpack_from(f"{order}I", data, at + 4)
        if name == b"data":
            there = len(data) - at - 8
            if length in _UNKNOWN_LENGTHS or length > there:
                sizes = struct.pack(f"{order}I", at + there), struct.pack(f"{order}I", there)
                return b"".join([data[:4], sizes[0], data[8 : at + 4], sizes[1], memoryview(data)[at + 8 :]])
            return data
        at += 8 + length + length % 2
    raise ValueError("no data chunk")


class Resampler:
    """Brings a stream of samples to another rate; cut into pieces or whole, the result is the same to -120 dB.

    A resampler looks at what is around each sample. So of the end of a piece some is *held*, to be heard again with the
    next one: `held` is all that a stream has to remember. Pieces are resampled in units of a whole number of samples at
    either rate; of a rate that has none of at most 40 ms, the nearest that has one is taken, at most 0.3 % off.

    Args:
        rate: of the samples to come (Hz).
        to: of the result (Hz), a multiple of 100.
        held: what an earlier resampler of the same rates held; left out: the stream begins.
    """

    def __init__(self, rate: int, to: int, held: Samples | None = None) -> None:
        grid = 25 if rate <= 24_000 else 100
        self._rate, self._to = max(1, round(rate / grid)) * grid, to
        common = gcd(self._rate, to)
        self._unit, self._unit_out = self._rate // common, to // common
        heard = RESAMPLER_CONTEXT * self._rate // min(self._rate, to)
        units = -(-heard // self._unit) if self._rate != to else 0
        self._context, self._context_out = units * self._unit, units * self._unit_out
        self.held: Samples = np.zeros(self._context, np.int16) if held is None else held

    @property
    def least_held(self) -> int:
        """Samples that are held at least (count)."""
        return self._context

    @property
    def most_held(self) -> int:
        """Samples that are held at most (count)."""
        return 2 * self._context + self._unit

    def feed(self, samples: Samples) -> Sound:
        """What is certain of the result so far.

        Args:
            samples: int16 (n,), the next ones of the stream.

        Returns:
            float32 (m,), in the same unit.
        """
        if not self._context:
            return samples.astype(np.float32)
        heard = np.concatenate([self.held, samples])
        units = (len(heard) - 2 * self._context) // self._unit
        if units <= 0:
            self.held = heard
            return np.empty(0, np.float32)
        window = heard[: units * self._unit + 2 * self._context].astype(np.float32)
        self.held = heard[units * self._unit :]
        out = soxr.resample(window, self._rate, self._to)
        return np.asarray(out[self._context_out : self._context_out + units * self._unit_out], np.float32)

    def finish(self) -> Sound:
        """The rest, as before silence."""
        rest = len(self.held) - self._context
        if not self._context or rest <= 0:
            return np.empty(0, np.float32)
        return self.feed(np.zeros(self._context + -rest % self._unit, np.int16))
