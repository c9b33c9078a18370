"""Recordings of voices, rooms and formats that `digits-ctc` was not trained on, for `evaluate.py`.

    apt-get install flite espeak-ng festival festvox-kdlpc16k festvox-us-slt-hts
    python models/digits-ctc/others.py --out DIR/others

Twelve strings of 3 to 6 digits in one breath by each of seven voices: those that `voices.py` holds out, and two of Festival, another
synthesiser. A third are in a room, a third in white noise at 18 dB; levels, sampling rates and formats vary. Each lies beside its text.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from voices import HELD_OUT, WORDS

FORMATS = (
    ("wav", None),
    ("wav", None),
    ("flac", None),
    ("mp3", None),
    ("ogg", "OPUS"),
    ("ogg", "VORBIS"),
    ("wav", "ULAW"),
)
FESTIVAL = ("voice_ked_diphone", "voice_cmu_us_slt_arctic_hts")
STRINGS = 12


def say(voice: str, text: str, path: str) -> None:
    """Have a voice say a text into a WAV file."""
    program, _, name = voice.rpartition("/")
    if program == "festival":
        subprocess.run(
            ["text2wave", "-eval", f"({name})", "-o", path], input=text.encode(), check=True, capture_output=True
        )
    elif program == "flite":
        subprocess.run(["flite", "-voice", name, "-t", text, "-o", path], check=True, capture_output=True)
    else:
        subprocess.run(["espeak-ng", "-v", name, "-s", "150", "-w", path, text], check=True, capture_output=True)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(77)
    for voice in (*(f"festival/{name}" for name in FESTIVAL), *HELD_OUT):
        for number in range(STRINGS):
            words = [WORDS[digit] for digit in rng.integers(0, 10, rng.integers(3, 7))]
            with tempfile.NamedTemporaryFile(suffix=".wav") as file:
                say(voice, (" " if number % 2 else ", ").join(words), file.name)
                x, spoken_at = soundfile.read(file.name, always_2d=True)
            x = x[:, 0]
            if number % 3 == 1:
                length = spoken_at // 4
                echo = rng.standard_normal(length) * np.exp(-6 * np.arange(length) / length)
                echo[0] = 6
                x = np.convolve(x, echo / np.sqrt((echo * echo).sum()))
            if number % 3 == 2:
                x = x + rng.standard_normal(len(x)) * np.sqrt((x * x).mean()) * 10 ** (-18 / 20)
            x = x / np.abs(x).max() * 10 ** (rng.uniform(-25, -2) / 20)
            suffix, subtype = FORMATS[number % len(FORMATS)]
            rate = 48_000 if subtype == "OPUS" else int(rng.choice([8000, 16_000, 22_050, 44_100, 48_000]))
            path = out / f"{voice.replace('/', '-').replace('+', '-')}-{number}.{suffix}"
            soundfile.write(path, soxr.resample(x, spoken_at, rate), rate, subtype=subtype)
            path.with_suffix(".txt").write_text(" ".join(words) + "\n")


if __name__ == "__main__":
    main()
