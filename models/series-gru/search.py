"""Look for better constants of the novelty: `python models/series-gru/train.py --data DIR --stage search`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from detector import Adaptation, nearest_stretch, nearest_window, novelty, surprise
from measures import nab_like_score
from series import nab_like_corpus, stack
from weights import Weights

NOVELTY_CONSTANTS = (
    "grain", "echo", "restlessness", "forgetting", "excess", "over_usual", "usual_half_life", "novelty_youth", "alarm_half_life",
    "alarm_weight", "alarm_ramp", "rhythm_excess", "over_usual_rhythm", "rhythm_youth",
)  # fmt: skip
"""What `search` tries."""


def search(data: Path, model: Weights, seed: int, trials: int) -> None:
    """Print better constants where they are found: a random walk from those in use, judged by the NAB-like score of the novelty alone on
    the training and validation pieces."""
    c = Adaptation()
    pieces = [piece for split in ("train", "validation") for piece in nab_like_corpus(data, split)]
    pieces.sort(key=lambda piece: len(piece.values))
    batches = []
    for i in range(0, len(pieces), 64):
        surprised = surprise(stack(pieces[i : i + 64]), model, c)
        s = surprised["statistics"]
        distances = nearest_window(s, c), nearest_stretch(s, c)
        kept = {name: s[name] for name in ("S1000", "D20", "D300", "unit", "seen")}
        batches.append(
            ({"statistics": kept, "judged": surprised["judged"], "surprise": surprised["surprise"]}, distances)
        )
        print(f"{min(i + 64, len(pieces))} of {len(pieces)} pieces compared", flush=True)

    def objective(c: Adaptation) -> float:
        rows = [row for surprised, distances in batches for row in novelty(surprised, c, distances)]
        return nab_like_score(pieces, [row[: len(p.values)] for row, p in zip(rows, pieces, strict=True)])["mean"]

    rng = np.random.default_rng(seed)
    best, found = c, objective(c)
    print(f"start {found:.2f}")
    for trial in range(trials):
        names = rng.choice(NOVELTY_CONSTANTS, int(rng.integers(1, 4)), replace=False)
        changed = {str(name): getattr(best, name) * float(np.exp(rng.normal() * 0.3)) for name in names}
        tried = dataclasses.replace(best, **changed)
        value = objective(tried)
        if value > found:
            best, found = tried, value
            print(f"trial {trial}: {found:.2f} {changed}", flush=True)
    print(best)
