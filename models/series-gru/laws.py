"""What a caller may rely on, tried on the exported file: chunks, batches, units, gaps, constants, wild values. And its speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from detector import Adaptation, detect, score
from graph import HISTORY
from series import Labelled
from weights import Weights


class Stream:
    """The exported graph, with its state."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.widths = {
            i.name: (i.shape[1], np.float32 if i.type == "tensor(float)" else np.float64)
            for i in self.session.get_inputs()[2:]
        }

    def __call__(
        self, values: np.ndarray, lens: list[int] | None = None, state: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """values (N, T) -> scores (N, T) and the state for the next call."""
        *outputs, state = self.outputs(values, lens, state)
        return score(values, *outputs), state

    def outputs(
        self, values: np.ndarray, lens: list[int] | None = None, state: dict | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """values (N, T) -> expected, spread and novelty (N, T) each, and the state for the next call."""
        n = len(values)
        state = state or {name: np.zeros((n, width), dtype) for name, (width, dtype) in self.widths.items()}
        feed = {"values": values, "sequence_lens": np.array(lens or [values.shape[1]] * n, np.int32)} | state
        expected, spread, novelty, *after = self.session.run(None, feed)
        if not (np.isfinite(expected).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise AssertionError("an output is not finite, or a band has no width")
        if not ((novelty >= 0) & (novelty <= 1)).all():
            raise AssertionError("a novelty is not between 0 and 1")
        if not all(np.isfinite(a).all() for a in after):
            raise AssertionError("the state is not finite")
        return expected, spread, novelty, dict(zip(state, after, strict=True))


def check(file: Path, model: Weights, c: Adaptation, pieces: list[Labelled]) -> dict[str, float]:
    """What a caller may rely on, tried on the exported file. Returns the largest deviations; raises where one is too large."""
    stream = Stream(file)
    rng = np.random.default_rng(0)
    found: dict[str, float] = {}

    def law(name: str, deviation: float, limit: float) -> None:
        found[name] = max(found.get(name, 0.0), float(deviation))
        if not deviation <= limit:
            raise AssertionError(f"{name}: {deviation:.2e} is more than {limit:.0e}")

    chosen = [pieces[i] for i in rng.choice(len(pieces), 24, replace=False)]
    for piece in chosen:
        x = piece.values[None, :1200]
        whole, _ = stream(x)
        law("graph and reference", np.abs(whole - score(x, *detect(x, model, c))).max(), 1e-4)
        for size, n in ((7, 700), (1, 300)):
            state, parts = None, []
            for a in range(0, n, size):
                part, state = stream(x[:, a : min(a + size, n)], state=state)
                parts.append(part)
            law(f"whole and chunks of {size}", np.abs(np.concatenate(parts, 1) - whole[:, :n]).max(), 1e-4)
        deviation = np.nanstd(x)
        shifted = x / (deviation if deviation > 0 else 1.0) + 1e9
        law("another offset", np.abs(stream(shifted)[0] - stream(shifted - 1e9)[0]).max(), 5e-3)
        law("another unit", np.abs(stream(x * 1e-6)[0] - whole).max(), 1e-4)
        law("another unit", np.abs(stream(x * 1e9)[0] - whole).max(), 1e-4)
    days = np.arange(1800)  # a rhythm, long enough for its period to be known, with a gap and a day that does not come
    noise = 2 * rng.standard_normal(len(days))
    rhythm = 1e5 + 30 * np.maximum(np.sin(2 * np.pi * days / 96), -0.3) + noise
    rhythm[700:730] = np.nan
    rhythm[1440:1488] = 1e5 - 9 + noise[1440:1488]
    whole, _ = stream(rhythm[None])
    law("graph and reference", np.abs(whole - score(rhythm[None], *detect(rhythm[None], model, c))).max(), 1e-4)
    for size in (7, 500):
        state, parts = None, []
        for a in range(0, len(days), size):
            part, state = stream(rhythm[None, a : a + size], state=state)
            parts.append(part)
        law(f"whole and chunks of {size}", np.abs(np.concatenate(parts, 1) - whole).max(), 1e-4)
    law("1 - score where a day does not come", 1 - whole[0, 1440:1488].max(), 0.5)
    spiked = 50 + rng.standard_normal(600)
    spiked[[300, 325, 350, 375]] += [20, -18, 22, 19]
    law("1 - score of four spikes", 1 - stream(spiked[None])[0][0, [300, 325, 350, 375]].min(), 0.5)
    hours = 20 * np.sin(2 * np.pi * np.arange(300) / 24) + rng.standard_normal(300)
    hours[200:206] = np.nan
    law("score after a gap", stream(hours[None])[0][0, 200:].max(), 0.49)
    lens = [int(n) for n in rng.integers(1, 900, len(chosen))]
    lens = [min(n, len(p.values)) for n, p in zip(lens, chosen, strict=True)]
    batch = np.full((len(chosen), max(lens)), 7e7)  # padding is not missing data: it must not be looked at
    for row, n, piece in zip(batch, lens, chosen, strict=True):
        row[:n] = piece.values[:n]
    together, after = stream(batch, lens)
    for k, (n, piece) in enumerate(zip(lens, chosen, strict=True)):
        alone, state = stream(piece.values[None, :n])
        law("one by one and in a padded batch", np.abs(together[k, :n] - alone[0]).max(), 1e-4)
        law(
            "one by one and in a padded batch",
            max(np.abs(after[s][k] - state[s][0]).max() / (1 + np.abs(state[s]).max()) for s in state),
            1e-4,
        )
    for level in (0.0, 1.0, 0.1, -1e9, 1e300):
        constant = np.full((1, 500), level)
        law("score of a constant", stream(constant)[0].max(), 0.49)
        constant[0, 400] = level + (abs(level) * 0.01 or 1.0)
        law("1 - score of the first change", 1 - stream(constant)[0][0, 400], 0.5)
    wild = rng.standard_normal((40, 200)) * 10.0 ** rng.uniform(-300, 300, (40, 200))
    wild[rng.random(wild.shape) < 0.1] = np.nan
    wild[:4] = np.nan
    wild[4:8] = np.where(rng.random((4, 200)) < 0.5, 1e300, -1e300)
    wild[8:12] = 1e-320
    wild[12:16, 1:] = np.nan
    law("not finite", float(not np.isfinite(stream(wild)[0]).all()), 0.0)
    return found


def milliseconds(file: Path) -> tuple[float, float, float]:
    """Median CPU time, which others on the machine hardly change, of one more point and of 1,000 more points of a stream whose memory is full, and of a new stream's first 256
    points; one thread. The stream has a daily rhythm, so that stretches are compared too."""
    stream = Stream(file)
    t = np.arange(HISTORY + 1001)
    rhythm = (2 * np.sin(2 * np.pi * t / 288) + np.random.default_rng(0).standard_normal(len(t)))[None]
    x, state = rhythm[:, -1000:], stream(rhythm[:, :-1000])[1]

    def median(call: Callable[[], object], times: int) -> float:
        spent = []
        for _ in range(times):
            started = time.process_time()
            call()
            spent.append(time.process_time() - started)
        return 1000 * float(np.median(spent))

    return (
        median(lambda: stream(x[:, :1], state=state), 500),
        median(lambda: stream(x, state=state), 20),
        median(lambda: stream(x[:, :256]), 50),
    )
