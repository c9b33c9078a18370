"""How good scores are: NAB's score on pieces like NAB's, false alarms, coverage of the band, precision and recall.

References:
    Ahmad et al., "Unsupervised real-time anomaly detection for streaming data", Neurocomputing 262, 2017 (NAB).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from series import POINTS_PER_WINDOW, SHARES, Labelled, nab_like_windows

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import nab


def nab_like_score(
    pieces: list[Labelled], scores: list[np.ndarray], threshold: float | None = None
) -> dict[str, float]:
    """NAB's standard profile on one split; the sources weigh as in SHARES. Without a threshold, the
    best one for their mean is taken.

    Where incidents are denser than in NAB, false alarms would weigh too little beside them, so their
    cost is scaled to that density.
    """
    sources = sorted({p.name.split("/")[0] for p in pieces})
    marked = [nab_like_windows(p.anomalous) for p in pieces]

    def density(name: str) -> float:
        own = [i for i, p in enumerate(pieces) if p.name.startswith(name + "/")]
        return POINTS_PER_WINDOW * sum(len(marked[i]) for i in own) / sum(len(pieces[i].values) for i in own)

    costs = {n: density(n) for n in sources}
    at, change, source, windows = [], [], [], dict.fromkeys(sources, 0)
    for piece, s, own in zip(pieces, scores, marked, strict=True):
        a, c, _ = nab.steps(s, own, nab.PROFILES[0])
        name = piece.name.split("/")[0]
        windows[name] += len(own)
        at.append(a)
        change.append(np.where(c < 0, c * costs[name], c))
        source.append(np.full(len(a), sources.index(name)))
    at_, change_, source_ = map(np.concatenate, (at, change, source))
    order = np.argsort(-at_, kind="stable")
    at_, change_, source_ = at_[order], change_[order], source_[order]
    gains = {n: 50 * np.cumsum(np.where(source_ == k, change_, 0)) / windows[n] for k, n in enumerate(sources)}
    mean = sum(SHARES[n] * gain for n, gain in gains.items())
    if threshold is None:
        best = int(np.where(np.append(at_[1:] != at_[:-1], True), mean, -np.inf).argmax())
    else:
        best = int((at_ >= threshold).sum()) - 1
    return {"mean": float(mean[best]), "threshold": float(at_[best])} | {n: float(v[best]) for n, v in gains.items()}


def false_alarms(
    pieces: list[Labelled],
    scores: list[np.ndarray],
    source: str | tuple[str, ...],
    sensitivity: float = 0.5,
    first: int = 0,
) -> float:
    """Alarms on unlabelled points, per 1,000 of them: after NAB's probation, or among the `first` points."""
    alarms = points = 0
    for piece, s in zip(pieces, scores, strict=True):
        if piece.name.startswith(source):
            normal = ~piece.anomalous
            if first:
                normal[first:] = False
            else:
                normal[: nab.probation_rows(len(s))] = False
            alarms += int((s[normal] >= 1 - sensitivity).sum())
            points += int(normal.sum())
    return 1000 * alarms / points


def band_coverage(
    pieces: list[Labelled], bands: list[tuple[np.ndarray, np.ndarray]], source: str, sensitivity: float
) -> float:
    """Share of normal points, after NAB's probation, inside the band of a sensitivity. `bands`: expected and spread of each piece."""
    inside = points = 0
    for piece, (expected, spread) in zip(pieces, bands, strict=True):
        if piece.name.startswith(source):
            normal = ~piece.anomalous & ~np.isnan(piece.values)
            normal[: nab.probation_rows(len(normal))] = False
            error = np.abs(piece.values - expected)[normal]
            inside += int((error < spread[normal] * ((1 - sensitivity) / sensitivity)).sum())
            points += int(normal.sum())
    return inside / points


def incident_f1(
    pieces: list[Labelled], scores: list[np.ndarray], source: str, threshold: float
) -> tuple[float, float, float]:
    """Precision, recall and F1 over points by `nab.precision_recall`, at one threshold."""
    own = [(s, p.anomalous) for p, s in zip(pieces, scores, strict=True) if p.name.startswith(source)]
    at, precision, recall = nab.precision_recall(own)
    k = max(int((at >= threshold).sum()) - 1, 0)
    return precision[k], recall[k], 2 * precision[k] * recall[k] / max(precision[k] + recall[k], 1e-9)
