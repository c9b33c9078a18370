"""What `digits-ctc` is trained on: utterances put together of recordings, as they may reach a microphone.

Words, or none, of one voice or several, in a row; played faster or slower; in a room; through a telephone or a small
loudspeaker; in noise, at any level, with an offset, in few bits. Where each word lies is known, because the recordings are joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from network import FLUSH_STEPS, FRAME_DELAY, RATE, STEP
from numpy.typing import NDArray
from voices import HELD_OUT

Sound = NDArray[np.float32]


@dataclass(frozen=True)
class Shares:
    """Of the utterances: whose voice, what is said besides digits, how many are as they were recorded, how many too loud."""

    other_voices: float = 0.3
    other_words: float = 0.12
    nothing: float = 0.1
    clean: float = 0.25
    clipped: float = 0.25


@dataclass(frozen=True)
class Recording:
    """A trimmed recording of one voice: a digit, a string of digits in one breath, or other words (no labels)."""

    sound: Sound
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Utterance:
    """What the network is trained on.

    Attributes:
        sound: float32 (S,), whole numbers of 16 bits; S is a number of steps, the silence of `FLUSH_STEPS` included.
        labels: digits in the order said.
        frames: int64 (T,), 1 + the digit said in each step, 0 for none, -1 where it isn't known.
    """

    sound: Sound
    labels: tuple[int, ...]
    frames: NDArray[np.int64]


def read_fsdd(path: Path, takes: range) -> list[list[Recording]]:
    """FSDD's recordings of these takes, by speaker."""
    with np.load(path) as z:
        audio, offsets, digit, speaker, take = (z[name] for name in ("audio", "offsets", "digit", "speaker", "take"))
    speakers: list[list[Recording]] = [[] for _ in range(int(speaker.max()) + 1)]
    for i in np.flatnonzero(np.isin(take, takes)):
        sound = audio[offsets[i] : offsets[i + 1]].astype(np.float32) / 32768
        speakers[speaker[i]].append(Recording(sound, (int(digit[i]),)))
    return speakers


def read_voices(path: Path) -> dict[str, list[Recording]]:
    """What `voices.py` wrote, by voice."""
    with np.load(path) as z:
        audio, offsets, voice, voices, labels = (z[name] for name in ("audio", "offsets", "voice", "voices", "labels"))
    found: dict[str, list[Recording]] = {str(name): [] for name in voices}
    for i, text in enumerate(labels):
        sound = audio[offsets[i] : offsets[i + 1]].astype(np.float32) / 32768
        found[str(voices[voice[i]])].append(Recording(sound, tuple(map(int, str(text).split()))))
    return found


def level(sound: Sound) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(sound * sound) + 1e-12))


def noise(rng: np.random.Generator, length: int, kind: int) -> Sound:
    """Noise of level 1: white, pink, brown, of a band, hum of the mains, or clicks."""
    if kind == 4:
        t, f = np.arange(length) / RATE, rng.choice([50.0, 60.0])
        x = sum(rng.uniform(0.1, 1) * np.sin(2 * np.pi * f * n * t + rng.uniform(0, 6)) for n in range(1, 8))
        x = x + 0.05 * rng.standard_normal(length)
    elif kind == 5:
        x = rng.standard_normal(length) * (rng.random(length) < rng.uniform(0.0005, 0.01)) + 1e-3 * rng.standard_normal(
            length
        )
    else:
        spectrum = np.fft.rfft(rng.standard_normal(length))
        k = np.maximum(np.arange(len(spectrum)), 1)
        if kind == 1:
            spectrum /= np.sqrt(k)
        elif kind == 2:
            spectrum /= k
        elif kind == 3:
            spectrum *= np.exp(-(((k / len(k) - rng.uniform(0.05, 0.9)) / rng.uniform(0.03, 0.3)) ** 2))
        x = np.fft.irfft(spectrum, length)
    return np.asarray(x / (np.sqrt(np.mean(x * x)) + 1e-9), np.float32)


def faster(sound: Sound, rate: float) -> Sound:
    """Played faster: shorter and higher."""
    return np.interp(np.arange(int(len(sound) / rate)) * rate, np.arange(len(sound)), sound).astype(np.float32)


def filtered(sound: Sound, response: NDArray[np.float64]) -> Sound:
    """Convolved with an impulse response, as long as before."""
    size = 1 << int(np.ceil(np.log2(len(sound) + len(response))))
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(response, size), size)[: len(sound)].astype(np.float32)


def room(rng: np.random.Generator) -> NDArray[np.float64]:
    """The impulse response of a room: a direct sound and an echo that decays."""
    length = int(rng.uniform(0.05, 0.5) * RATE)
    response = rng.standard_normal(length) * np.exp(-rng.uniform(4, 9) * np.arange(length) / length)
    response[0] = rng.uniform(2, 14)
    return np.asarray(response / np.sqrt((response * response).sum()))


def channel(rng: np.random.Generator, sound: Sound) -> Sound:
    """Through a microphone, a telephone or a small loudspeaker: a smooth curve of gains over frequency."""
    spectrum = np.fft.rfft(sound)
    f = np.linspace(0, RATE / 2, len(spectrum))
    gain_db = np.interp(f, np.linspace(0, RATE / 2, 7), rng.normal(0, 4, 7))
    low, high = (rng.uniform(0, 350), rng.uniform(2300, 4000)) if rng.random() < 0.5 else (0.0, 4000.0)
    gain_db = gain_db - np.maximum(0, low - f) * 0.1 - np.maximum(0, f - high) * 0.08
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(sound)).astype(np.float32)


def companded(sound: Sound, mu: float) -> Sound:
    """In 8 bits of a telephone network: logarithmic steps (ITU-T G.711, continuous form)."""
    y = np.sign(sound) * np.log1p(mu * np.abs(np.clip(sound, -1, 1))) / np.log1p(mu)
    y = np.rint(y * 127) / 127
    return (np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu).astype(np.float32)


class Speech:
    """Makes utterances out of recordings."""

    def __init__(
        self, shares: Shares, speakers: list[list[Recording]], voices: dict[str, list[Recording]], seed: int
    ) -> None:
        self.shares, self.rng = shares, np.random.default_rng(seed)
        self.speakers = speakers
        self.voices = {name: [r for r in all_ if r.labels] for name, all_ in voices.items() if name not in HELD_OUT}
        self.others = [r for name, all_ in voices.items() if name not in HELD_OUT for r in all_ if not r.labels]
        # As often as a voice differs from the rest: espeak's timbres are one speaker in many disguises.
        weights = [0.35 if n == "allison" else 0.1 if n.startswith("flite") else 0.25 / 40 for n in self.voices]
        self.voice_weights = np.array(weights) / sum(weights)

    def recordings(self, words: int) -> list[Recording]:
        """Some of one speaker's, or of several."""
        rng, voices = self.rng, list(self.voices)
        if rng.random() < self.shares.other_voices:
            pool = self.voices[voices[rng.choice(len(voices), p=self.voice_weights)]]
        elif rng.random() < 0.85:
            pool = self.speakers[rng.integers(len(self.speakers))]
        else:
            return [self.choice(self.speakers[rng.integers(len(self.speakers))]) for _ in range(words)]
        return [self.choice(pool) for _ in range(words)]

    def choice(self, pool: list[Recording]) -> Recording:
        return pool[self.rng.integers(len(pool))]

    def utterance(self, words: int | None = None) -> Utterance:
        """Words, or none, in a row: one voice mostly, any speed, room, microphone, noise, level and offset."""
        rng, shares = self.rng, self.shares
        if words is None:
            words = 0 if rng.random() < shares.nothing else int(rng.integers(1, 7))
        parts = self.recordings(words)
        if rng.random() < shares.other_words or (not words and rng.random() < 0.3):
            for _ in range(rng.integers(1, 3)):
                parts.insert(int(rng.integers(len(parts) + 1)), self.choice(self.others))
        speed, loudness = rng.uniform(0.85, 1.18), 10 ** (rng.normal(0, 3) / 20)
        pieces: list[Sound] = [np.zeros(int(rng.uniform(0, 0.6) ** 1.5 * RATE), np.float32)]
        spans: list[tuple[int, int, int]] = []
        labels: list[int] = []
        at = len(pieces[0])
        for part in parts:
            sound = faster(part.sound, speed * rng.uniform(0.96, 1.04))
            # Loud where the word is loud: FSDD's recordings have pauses and breath in them.
            sound = sound * (loudness * 10 ** (rng.normal(0, 2) / 20) * 0.08 / (level(sound) + 1e-4))
            gap = int((rng.uniform(0.6, 1.6) if rng.random() < 0.08 else rng.uniform(0.03, 0.5)) * RATE)
            spans.append(
                (at, at + len(sound), part.labels[0] + 1 if len(part.labels) == 1 else -1 if part.labels else 0)
            )
            labels += part.labels
            pieces += [sound, np.zeros(gap, np.float32)]
            at += len(sound) + gap
        if rng.random() < 0.5:  # recordings that end with the word
            pieces = pieces[:-1]
        x = np.concatenate([*pieces, np.zeros(int(rng.uniform(0, 0.02) * RATE), np.float32)])
        if len(x) < RATE // 2:
            x = np.pad(x, (0, int(rng.uniform(0.5, 2.0) * RATE)))
        x = self.worn(x)
        steps = -(-len(x) // STEP) + FLUSH_STEPS
        x = np.pad(x, (0, steps * STEP - len(x)))
        frames = np.zeros(steps, np.int64)
        for start, end, label in spans:
            # A step is heard by its middle.
            first, last = (round(edge / STEP) + FRAME_DELAY for edge in (start, end))
            frames[first : max(last, first + 1)] = label
        return Utterance(x, tuple(labels), frames)

    def worn(self, x: Sound) -> Sound:
        """What becomes of sound on its way: 16-bit samples at last."""
        rng = self.rng
        if rng.random() < self.shares.clean:
            return self.as_16_bits(x)
        if rng.random() < 0.35:
            x = filtered(x, room(rng))
        if rng.random() < 0.35:
            x = channel(rng, x)
        if rng.random() < 0.7:
            snr_db = rng.uniform(3, 35)
            x = x + noise(rng, len(x), int(rng.integers(6))) * 0.08 * 10 ** (-snr_db / 20)
        elif rng.random() < 0.8:
            x = x + noise(rng, len(x), int(rng.integers(3))) * 0.08 * 10 ** (-rng.uniform(35, 70) / 20)
        if rng.random() < 0.1:  # somebody in the background
            other = self.choice(self.others).sound
            at = int(rng.integers(max(1, len(x) - len(other))))
            end = min(len(x), at + len(other))
            x[at:end] += other[: end - at] * (0.08 * 10 ** (-rng.uniform(15, 35) / 20) / level(other))
        if rng.random() < 0.12:
            x = companded(x * 4, 255.0) / 4
        return self.as_16_bits(x)

    def as_16_bits(self, x: Sound) -> Sound:
        """At any level, cut off at full scale; sometimes with an offset, or in 8 bits."""
        rng, chance = self.rng, self.rng.random()
        quiet, usual, cut_off = (-52, -38), (-38, 8), (8, 26)
        x = x * 10 ** (
            rng.uniform(*(quiet if chance < 0.1 else cut_off if chance > 1 - self.shares.clipped else usual)) / 20
        )
        if rng.random() < 0.1:
            x = x + rng.uniform(-0.15, 0.15)
        if rng.random() < 0.05:
            x = np.rint(x * 127) / 127
        return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.float32)
