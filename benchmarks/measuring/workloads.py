"""What is sent to each endpoint: bodies made from fixed seeds."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

BODIES = 16
"""Different bodies per endpoint, sent in turn (count)."""

SPEECH = Path(__file__).resolve().parents[2] / "models/digits-ctc/1/golden/four-two-seven.flac"

Ask = Callable[[str, str, bytes], bytes]
"""Asks the server: (path, content type, body) -> the answer's body."""


@dataclass(frozen=True)
class Workload:
    """An endpoint and what is sent to it.

    Attributes:
        name: row of the table.
        task: the endpoint's name.
        content_type: of the bodies.
        bodies: makes them; may ask the server first, for a stream's state.
    """

    name: str
    task: str
    content_type: str
    bodies: Callable[[Ask], list[bytes]]

    @property
    def path(self) -> str:
        """Where it is posted to."""
        return f"/v1/{self.task}"


def pictures(form: str, width: int, height: int) -> list[bytes]:
    """Encoded pictures of smooth colour with some grain, as compressible as photographs are."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(BODIES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grainy = np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grainy).save(file, form, quality=85)
        encoded.append(file.getvalue())
    return encoded


_WORDS = """
old young quiet narrow famous broken heavy early local small dark northern
captain farmer teacher soldier writer singer doctor king driver sailor poet judge
walked looked marched returned travelled pointed ran moved sailed turned rode drove
across towards behind over past around along through
bridge village castle river theatre station church garden harbour museum island road
"""


def sentences(count: int) -> list[bytes]:
    """Texts of `count` sentences of eight words; the last one has no full stop yet."""
    draw = random.Random(0)
    adjectives, people, verbs, ways, places = (line.split() for line in _WORDS.strip().splitlines())

    def sentence() -> str:
        first, second = draw.sample(adjectives, 2)
        words = [first, draw.choice(people), draw.choice(verbs), draw.choice(ways), "the", second, draw.choice(places)]
        return " ".join(["The", *words])

    return [json.dumps({"text": ". ".join(sentence() for _ in range(count))}).encode() for _ in range(BODIES)]


def series(points: int) -> list[list[float]]:
    """Daily waves with noise and a few spikes, each of another scale."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(BODIES):
        scale, phase, noise = 10 ** rng.uniform(-1, 2), rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.3)
        wave = np.sin(np.arange(points) * (2 * math.pi / 48) + phase) + rng.normal(0, noise, points)
        wave[rng.integers(0, points, max(1, points // 100))] += 6
        made.append(np.round(scale * (3 + wave), 4).tolist())
    return made


def whole_series(_: Ask) -> list[bytes]:
    """256 points each."""
    return [json.dumps({"values": values}).encode() for values in series(256)]


def next_points(ask: Ask) -> list[bytes]:
    """One point each, with the state of the 256 before it."""
    bodies = []
    for values in series(257):
        before = json.dumps({"values": values[:-1]}).encode()
        state = json.loads(ask("/v1/anomaly-detection", "application/json", before))["state"]
        bodies.append(json.dumps({"values": values[-1:], "state": state}).encode())
    return bodies


def coming_points(_: Ask) -> list[bytes]:
    """256 points each, of which the next 24 are asked for."""
    return [json.dumps({"values": values, "horizon": 24}).encode() for values in series(256)]


def recordings(_: Ask) -> list[bytes]:
    """Three spoken digits, at as many levels, as 16-bit WAV."""
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    files = []
    for number in range(BODIES):
        file = io.BytesIO()
        soundfile.write(file, samples * 0.9**number, rate, format="WAV", subtype="PCM_16")
        files.append(file.getvalue())
    return files


def tunes(_: Ask) -> list[bytes]:
    """Eight bars each, drawn with a seed."""
    tune = {"key": "D", "meter": "4/4", "bars": 8}
    return [json.dumps({**tune, "seed": seed}).encode() for seed in range(BODIES)]


def photographs(_: Ask) -> list[bytes]:
    """JPEGs of 640×480."""
    return pictures("JPEG", 640, 480)


WORKLOADS = (
    Workload("image, PNG 32×32", "image-classification", "image/png", lambda _: pictures("PNG", 32, 32)),
    Workload("image, JPEG 640×480", "image-classification", "image/jpeg", lambda _: pictures("JPEG", 640, 480)),
    Workload("text, 8 words", "next-word-prediction", "application/json", lambda _: sentences(1)),
    Workload("text, 32 words", "next-word-prediction", "application/json", lambda _: sentences(4)),
    Workload("series, 256 points", "anomaly-detection", "application/json", whole_series),
    Workload("series, 1 point + state", "anomaly-detection", "application/json", next_points),
    Workload("forecast of 24 points", "forecasting", "application/json", coming_points),
    Workload("objects, JPEG 640×480", "object-detection", "image/jpeg", photographs),
    Workload("segments, JPEG 640×480", "image-segmentation", "image/jpeg", photographs),
    Workload("numbers, JPEG 640×480", "image-regression", "image/jpeg", photographs),
    Workload("caption, JPEG 640×480", "image-captioning", "image/jpeg", photographs),
    Workload("speech, 3 words", "speech-recognition", "audio/wav", recordings),
    Workload("music, 8 bars", "music-composition", "application/json", tunes),
)
