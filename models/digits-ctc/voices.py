"""Other voices than FSDD's six: synthesisers and one studio speaker, read into one archive for `train.py`.

    apt-get install flite espeak-ng asterisk-core-sounds-en-wav
    python models/digits-ctc/voices.py --out WORK/voices.npz

Six speakers are too few to learn what a digit sounds like. So `train.py` adds, to the training alone:
- flite (Carnegie Mellon's free licence) and espeak-ng (GPL-3.0; what a program says is not covered by its licence):
  single digits, and strings in one breath, where one word runs into the next as in no joined recordings;
- the digits that Allison Smith recorded for the Asterisk telephone exchange (CC BY-SA 3.0), single words;
- words that are no digits, from all three: what the model must not take for one.

The archive holds 8 kHz recordings without the silence around them: `audio` int16, all joined; `offsets`; `voice` (an index
into `voices`); `labels`, space-separated digits (empty: other words). Voices in `HELD_OUT` are never trained on: the
card's figure for other voices is theirs.
"""

from __future__ import annotations

import argparse
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = ("flite/rms", "espeak/en-us+f5", "espeak/en-us+Andy", "espeak/en-gb-x-rp+m8", "espeak/en-gb-scotland+linda")
FLITE = ("kal", "kal16", "awb", "rms", "slt")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-us-nyc")
TIMBRES = (
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "Andy",
    "Annie",
    "Alicia",
    "Andrea",
    "Denis",
    "Gene",
    "Hugo",
    "Jacky",
    "Lee",
    "Marco",
    "Mario",
    "Michael",
    "adam",
    "anika",
    "announcer",
    "belinda",
    "benjamin",
    "caleb",
    "david",
    "edward",
    "gustave",
    "john",
    "linda",
    "paul",
    "rob",
    "sandro",
    "steph",
    "travis",
    "victor",
    "zac",
)
OTHER_WORDS = (
    "yes",
    "no",
    "hello",
    "please",
    "thank",
    "you",
    "good",
    "morning",
    "stop",
    "start",
    "open",
    "close",
    "left",
    "right",
    "up",
    "down",
    "music",
    "radio",
    "weather",
    "today",
    "tomorrow",
    "house",
    "garden",
    "table",
    "window",
    "water",
    "coffee",
    "bread",
    "cheese",
    "apple",
    "orange",
    "banana",
    "red",
    "green",
    "blue",
    "yellow",
    "black",
    "white",
    "monday",
    "sunday",
    "january",
    "march",
    "summer",
    "winter",
    "doctor",
    "teacher",
    "student",
    "computer",
    "keyboard",
    "telephone",
    "number",
    "minute",
    "hour",
    "second",
    "week",
    "month",
    "year",
    "hundred",
    "thousand",
    "million",
    "percent",
    "dollar",
    "point",
    "dash",
    "star",
    "pound",
    "animal",
    "horse",
    "dog",
    "cat",
    "mouse",
    "river",
    "mountain",
    "ocean",
    "island",
    "country",
    "city",
    "street",
    "train",
    "bicycle",
    "airport",
    "ticket",
    "hotel",
    "kitchen",
    "bedroom",
    "answer",
    "question",
    "problem",
    "reason",
    "story",
    "letter",
    "paper",
    "pencil",
    "paint",
    "picture",
    "camera",
    "guitar",
    "piano",
    "drum",
    "maybe",
    "always",
    "never",
    "sometimes",
    "because",
    "about",
    "before",
    "after",
    "between",
    "under",
    "above",
    "people",
    "woman",
    "man",
    "child",
    "friend",
)
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """At 8 kHz, peak at half of full scale, without what is 40 dB below it at both ends."""
    x = soxr.resample(samples.astype(np.float32), rate, RATE) if rate != RATE else samples.astype(np.float32)
    x = x * (0.5 / max(float(np.abs(x).max(initial=0.0)), 1e-6))
    level = np.sqrt(np.convolve(x * x, np.full(80, 1 / 80), "same"))
    heard = np.flatnonzero(level > 0.01 * level.max())
    return x[heard[0] : heard[-1] + 1] if len(heard) else x[:0]


def spoken(command: list[str]) -> np.ndarray:
    """What a synthesiser writes to its standard output as WAV."""
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    return trimmed(samples, rate)


def flite(voice: str, text: str, stretch: float) -> np.ndarray:
    return spoken(
        ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.2f}", "-t", text, "-o", "/dev/stdout"]
    )


def espeak(voice: str, text: str, words_a_minute: int, pitch: int) -> np.ndarray:
    return spoken(["espeak-ng", "-v", voice, "-s", str(words_a_minute), "-p", str(pitch), "--stdout", text])


def recordings(rng: np.random.Generator) -> Iterator[tuple[str, str, np.ndarray]]:
    """Voice, digits (empty: other words) and sound of every recording."""

    def strings(count: int) -> list[list[int]]:
        return [rng.integers(0, 10, rng.integers(2, 6)).tolist() for _ in range(count)]

    for voice in FLITE:
        for labels in [[d] for d in range(10) for _ in range(3)] + strings(60):
            text = " ".join(WORDS[d] for d in labels)
            yield f"flite/{voice}", " ".join(map(str, labels)), flite(voice, text, rng.uniform(0.75, 1.3))
        for word in OTHER_WORDS:
            yield f"flite/{voice}", "", flite(voice, word, rng.uniform(0.75, 1.3))
    for number, timbre in enumerate(TIMBRES):
        held = [name.split("/")[1] for name in HELD_OUT if name.endswith(f"+{timbre}")]
        voice = held[0] if held else f"{ACCENTS[number % len(ACCENTS)]}+{timbre}"
        for labels in [[d] for d in range(10)] + strings(8):
            text = " ".join(WORDS[d] for d in labels)
            sound = espeak(voice, text, int(rng.integers(120, 210)), int(rng.integers(30, 70)))
            yield f"espeak/{voice}", " ".join(map(str, labels)), sound
        for word in rng.choice(OTHER_WORDS, 12, replace=False):
            yield (
                f"espeak/{voice}",
                "",
                espeak(voice, str(word), int(rng.integers(120, 210)), int(rng.integers(30, 70))),
            )
    for path in sorted(ASTERISK.glob("digits/[0-9].wav")):
        samples, rate = soundfile.read(path, dtype="float32")
        yield "allison", path.stem, trimmed(samples, rate)
    for path in sorted(
        [*ASTERISK.glob("letters/?.wav"), *ASTERISK.glob("digits/mon-*.wav"), *ASTERISK.glob("digits/day-*.wav")]
    ):
        if path.stem not in ("o",):
            samples, rate = soundfile.read(path, dtype="float32")
            yield "allison", "", trimmed(samples, rate)


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    voices: list[str] = []
    voice, labels, audio, offsets = [], [], [], [0]
    for name, digits, sound in recordings(np.random.default_rng(19)):
        if len(sound) < 400:
            continue
        if name not in voices:
            voices.append(name)
        voice.append(voices.index(name))
        labels.append(digits)
        audio.append(np.rint(sound * 32767).astype(np.int16))
        offsets.append(offsets[-1] + len(sound))
    np.savez_compressed(
        out,
        audio=np.concatenate(audio),
        offsets=np.array(offsets),
        voice=np.array(voice),
        voices=np.array(voices),
        labels=np.array(labels),
    )
    print(f"{len(labels):,} recordings of {len(voices)} voices, {offsets[-1] / RATE:,.0f} s")


if __name__ == "__main__":
    main()
