"""The Free Spoken Digit Dataset's test takes, alone, in strings, in noise, in other formats, and in pieces.

    gridloop evaluate digits-ctc --data DIR [--url URL] [--write]

DIR contains `fsdd/fsdd.npz`: https://github.com/Jakobovski/free-spoken-digit-dataset, commit 26eb9aaf76e8, as one archive (`train.py`
says how). Takes 0 to 4 of each digit and speaker are the test, as the data set's authors say.

Where DIR also contains `people/` (made by `people.py`: recordings of other people, and strings of them in rooms, in noise, in several
formats) and `others/` (made by `others.py`: synthetic voices that were never trained on, likewise), there are two rows for each: the share of
recordings with every word right, and word errors.

A string is 3 to 7 test recordings of one speaker with 0.05 to 0.5 s of digital silence between, after 0.05 s of it; drawn once,
the same for every row of the table. Noise is white for every other string, pink for the rest, at so many dB below the mean power of
what is not silence. All are 16-bit WAV at 8 kHz but where the row says otherwise.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import soundfile
import soxr

from service.evaluation import DataMissing
from service.evaluation.speech_recognition import Measure, Recorded, SpeechRecognitionEvaluation

RATE = 8000
STRINGS = 200
"""Strings of digits (count)."""
FEW = 60
"""Of which so many are sent in each of the other formats, and in pieces (count)."""
NOTHING = 60
"""Recordings in which nothing is said (count)."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

APART = {
    "people/alone": "other people",
    "people/strings": "other people, strings",
    "others": "synthetic voices, strings",
}
"""Folders of recordings that are none of the data set's, and their rows."""

Sound = np.ndarray


class SpokenDigits(SpeechRecognitionEvaluation):
    """Groups of recordings, each one row of the table."""

    title = "Free Spoken Digit Dataset, takes 0 to 4"

    def recordings(self) -> Sequence[Recorded]:
        path = self.data / "fsdd" / "fsdd.npz"
        if not path.is_file():
            raise DataMissing(
                self.data, "fsdd/fsdd.npz", "It is https://github.com/Jakobovski/free-spoken-digit-dataset."
            )
        with np.load(path) as z:
            audio, offsets, digit, speaker, take = (
                z[name] for name in ("audio", "offsets", "digit", "speaker", "take")
            )
        test = np.flatnonzero(take < 5)
        clip = lambda i: audio[offsets[i] : offsets[i + 1]].astype(np.float64) / 32768  # noqa: E731
        found = [
            Recorded(f"recording {i}", "isolated digits", WORDS[digit[i]], partial(encoded, clip(i)))
            for i in test.tolist()
        ]
        strings = [drawn(n, test, speaker, digit, clip) for n in range(STRINGS)]
        for group, change in CHANGES.items():
            some = strings if group in WHOLE_GROUPS else strings[:FEW]
            found += [
                Recorded(f"string {n}, {group}", group, said, partial(change, sound, n))
                for n, (sound, said) in enumerate(some)
            ]
        for folder, group in APART.items():
            found += self.beside_texts(self.data / folder, group)
        found += [Recorded(f"nothing {n}", "silence and noise", "", partial(nothing, n)) for n in range(NOTHING)]
        return found

    def measures(self) -> Mapping[str, Measure | tuple[Measure, ...]]:
        groups: dict[str, Measure | tuple[Measure, ...]] = {"isolated digits": "right"}
        groups |= dict.fromkeys(CHANGES, "word errors")
        groups |= dict.fromkeys(APART.values(), ("right", "word errors"))
        return groups | {"silence and noise": "silent"}


def drawn(
    number: int, test: np.ndarray, speaker: np.ndarray, digit: np.ndarray, clip: Callable[[int], Sound]
) -> tuple[Sound, str]:
    """One string of digits, and what is said in it."""
    rng = np.random.default_rng([19, number])
    pool = test[speaker[test] == number % (int(speaker.max()) + 1)]
    parts, said = [np.zeros(RATE // 20)], []
    for i in rng.choice(pool, rng.integers(3, 8)).tolist():
        parts += [clip(i), np.zeros(int(rng.uniform(0.05, 0.5) * RATE))]
        said.append(WORDS[digit[i]])
    return np.concatenate(parts), " ".join(said)


def noise(rng: np.random.Generator, length: int, *, pink: bool) -> Sound:
    spectrum = np.fft.rfft(rng.standard_normal(length))
    if pink:
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    x = np.fft.irfft(spectrum, length)
    return x / np.sqrt(np.mean(x * x))


def encoded(
    sound: Sound, container: str = "WAV", subtype: str | None = None, rate: int = RATE, channels: int = 1
) -> list[bytes]:
    if rate != RATE:
        sound = soxr.resample(sound, RATE, rate)
    if channels > 1:
        sound = np.stack([sound] * channels, axis=1)
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1 - 2**-15), rate, subtype, format=container)
    return [file.getvalue()]


def in_noise(sound: Sound, number: int, snr_db: float) -> list[bytes]:
    rng = np.random.default_rng([20, number])
    power = np.mean(sound[sound != 0] ** 2)
    x = sound + noise(rng, len(sound), pink=number % 2 == 1) * np.sqrt(power) * 10 ** (-snr_db / 20)
    return encoded(x * min(1.0, 0.99 / np.abs(x).max()))


def in_pieces(sound: Sound, number: int) -> list[bytes]:
    rng = np.random.default_rng([21, number])
    edges = np.unique(np.concatenate([[0, len(sound)], rng.integers(0, len(sound), rng.integers(1, 8))]))
    return [encoded(sound[a:b])[0] for a, b in itertools.pairwise(edges.tolist())]


def nothing(number: int) -> list[bytes]:
    """Digital silence, or white, pink or low noise from -70 to -20 dB of full scale, 1 to 10 s."""
    rng = np.random.default_rng([22, number])
    length = int(rng.uniform(1, 10) * RATE)
    if number % 6 == 0:
        return encoded(np.zeros(length))
    x = noise(rng, length, pink=number % 2 == 1)
    if number % 6 == 5:
        x = np.convolve(x, np.full(40, 1 / 40), "same")
    return encoded(x * 10 ** (rng.uniform(-70, -20) / 20))


CHANGES: dict[str, Callable[[Sound, int], list[bytes]]] = {
    "strings, clean": lambda x, n: encoded(x),
    "strings, 20 dB": lambda x, n: in_noise(x, n, 20),
    "strings, 10 dB": lambda x, n: in_noise(x, n, 10),
    "clean, in pieces": in_pieces,
    "clean, 16 kHz": lambda x, n: encoded(x, rate=16_000),
    "clean, 22.05 kHz FLAC": lambda x, n: encoded(x, "FLAC", rate=22_050),
    "clean, 44.1 kHz stereo, 24 bits": lambda x, n: encoded(x, subtype="PCM_24", rate=44_100, channels=2),
    "clean, 48 kHz Opus": lambda x, n: encoded(x, "OGG", "OPUS", rate=48_000),
    "clean, 16 kHz Vorbis": lambda x, n: encoded(x, "OGG", "VORBIS", rate=16_000),
    "clean, 44.1 kHz MP3": lambda x, n: encoded(x, "MP3", rate=44_100),
    "clean, A-law": lambda x, n: encoded(x, subtype="ALAW"),
    "clean, 20 dB quieter": lambda x, n: encoded(0.1 * x),
    "clean, 20 dB louder, as far as it goes": lambda x, n: encoded(10 * x),
    "clean, offset of a tenth of full scale": lambda x, n: encoded(x + 0.1),
}
WHOLE_GROUPS = ("strings, clean", "strings, 20 dB", "strings, 10 dB")
