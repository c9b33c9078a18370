"""Score anomaly detection on the Numenta Anomaly Benchmark (NAB), by its published rule.

Three sources of scores, one scorer:

    python benchmarks/nab.py --data DIR --url http://127.0.0.1:8000            # the running service
    python benchmarks/nab.py --data DIR --onnx models/series-gru/2/model.onnx  # the model, in process
    python benchmarks/nab.py --data DIR --scores DIR/windowed_gaussian_scores.npz --threshold 1.0

DIR holds `nab.zip` (`data/<group>/<name>.csv`, `labels/combined_windows.json`, `config/profiles.json` of
https://github.com/numenta/NAB), or is a checkout of that repository. The last line re-scores the published
"windowedGaussian" scores: 39.65 / 20.87 / 47.41 says that this scorer follows the rule.

The rule, for one threshold that all series share:
- the first 15 % of a series (at most 750 rows) is probation: nothing there counts;
- a window in which some row reaches the threshold earns up to `tp` for its earliest such row: a sigmoid which falls from
  1 at the window's left edge to 0 at its right one; later rows in the window count nothing; a window missed costs `fn`;
- every row outside the windows that reaches the threshold costs up to `fp`: little just after a window, all of it far
  behind one or before the first.
The corpus score is 100 * (raw - null) / (perfect - null): 0 for a detector that never fires, 100 for one that fires at
the first row of each window and nowhere else. Each profile is scored at its own best threshold, unless `--threshold` is given.

References:
    Lavin, Ahmad, "Evaluating Real-Time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark", ICMLA 2015.
    Ahmad, Lavin, Purdy, Agha, "Unsupervised real-time anomaly detection for streaming data", Neurocomputing 262, 2017.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Detector = Callable[["Series"], Floats]
"""Raw scores of a series: float64 (rows,), higher is more anomalous, each computed from its own row and earlier ones."""

PROBATION_SHARE = 0.15
PROBATION_MAX_ROWS = 5_000
"""Probation is a share of the series, counted on at most this many rows."""


@dataclass(frozen=True)
class Profile:
    """What a detection, a miss and a false alarm are worth."""

    name: str
    tp: float
    fn: float
    fp: float


PROFILES = (
    Profile("standard", tp=1.0, fn=1.0, fp=0.11),
    Profile("reward_low_FP_rate", tp=1.0, fn=1.0, fp=0.22),
    Profile("reward_low_FN_rate", tp=1.0, fn=2.0, fp=0.11),
)
"""NAB's own; those of the corpus (`config/profiles.json`) are used where it has them."""


@dataclass(frozen=True)
class Series:
    """One file of the corpus: its values and the row ranges, both ends included, that are labelled anomalous."""

    name: str
    values: Floats  # (rows,)
    windows: tuple[tuple[int, int], ...]

    @property
    def group(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Result:
    """How a set of series fared under one profile at one threshold."""

    profile: str
    threshold: float
    raw: float
    normalised: float
    windows: int
    detected: int
    false_positives: int


# ---------------------------------------------------------------------------------------------------------- the rule


def scaled_sigmoid(position: npt.ArrayLike) -> Floats:
    """The worth of a detection by where it lies relative to a window: -1 is the left edge, 0 the right edge, 1 one width
    behind it; from 3 widths on it is worth -1 flat.
    """
    position = np.asarray(position, dtype=np.float64)
    return np.where(position >= 3.0, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 3.0))) - 1.0)


def probation_rows(rows: int) -> int:
    """How many rows at the beginning of a series are not scored."""
    return int(np.ceil(min(np.floor(PROBATION_SHARE * rows), PROBATION_SHARE * PROBATION_MAX_ROWS)))


def row_worth(rows: int, windows: Iterable[tuple[int, int]], profile: Profile) -> tuple[Floats, npt.NDArray[np.int64]]:
    """What a detection at each row is worth, and the window it belongs to.

    Returns:
        worth: float64 (rows,), positive inside windows, negative outside.
        window: int64 (rows,), the window's number, or -1 outside.
    """
    index = np.arange(rows)
    position = np.full(rows, 3.0)
    window = np.full(rows, -1)
    for number, (start, end) in enumerate(windows):
        width = end - start + 1
        inside = (index >= start) & (index <= end)
        behind = index > end
        position[inside] = -(end - index[inside] + 1) / width
        position[behind] = (index[behind] - end) / max(width - 1, 1)
        window[inside], window[behind] = number, -1
    worth = scaled_sigmoid(position)
    worth *= np.where(window >= 0, profile.tp / scaled_sigmoid(-1.0), profile.fp)
    return worth, window


def steps(scores: Floats, windows: tuple[tuple[int, int], ...], profile: Profile) -> tuple[Floats, Floats, float]:
    """How the raw score of one series changes while the threshold is lowered.

    Returns:
        at: float64 (steps,), the thresholds at which something changes.
        change: float64 (steps,), added to the raw score once the threshold is at or below `at`.
        start: the raw score when nothing is detected.
    """
    scored = slice(probation_rows(len(scores)), None)
    worth, window = row_worth(len(scores), windows, profile)
    scores, worth, window = scores[scored], worth[scored], window[scored]
    outside = window < 0
    at, change, start = [scores[outside]], [worth[outside]], 0.0
    for number in np.unique(window[~outside]):
        rows = np.flatnonzero(window == number)
        start -= profile.fn
        # Only a row that beats all before it can be the first detection, for thresholds between the two records.
        best_before = np.concatenate([[-np.inf], np.maximum.accumulate(scores[rows])[:-1]])
        records = rows[scores[rows] > best_before]
        at.append(scores[records])
        change.append(worth[records] - np.append(worth[records][1:], -profile.fn))
    return np.concatenate(at), np.concatenate(change), start


def best_threshold(scored: Iterable[tuple[Floats, tuple[tuple[int, int], ...]]], profile: Profile) -> float:
    """The one threshold, shared by all series, with the highest raw total; infinity when silence is best."""
    parts = [steps(scores, windows, profile) for scores, windows in scored]
    at = np.concatenate([p[0] for p in parts])
    change = np.concatenate([p[1] for p in parts])
    order = np.argsort(-at, kind="stable")
    at, total = at[order], np.cumsum(change[order])
    last_of_ties = np.append(at[1:] != at[:-1], True)  # a threshold admits all rows that share its score
    at, total = at[last_of_ties], total[last_of_ties]
    best = int(np.argmax(total)) if len(total) else -1
    return float(at[best]) if best >= 0 and total[best] > 0 else np.inf


def evaluate(
    scored: Iterable[tuple[Floats, tuple[tuple[int, int], ...]]], profile: Profile, threshold: float | None = None
) -> Result:
    """Score a set of series: pairs of raw scores (rows,) and windows. Without a threshold, the best one is taken."""
    scored = list(scored)
    if threshold is None:
        threshold = best_threshold(scored, profile)
    raw, windows_total, detected, false_positives = 0.0, 0, 0, 0
    perfect, null = 0.0, 0.0
    for scores, windows in scored:
        at, change, start = steps(scores, windows, profile)
        raw += start + float(change[at >= threshold].sum())
        perfect += profile.tp * len(windows)
        null -= profile.fn * len(windows)
        fires = scores >= threshold
        fires[: probation_rows(len(scores))] = False
        _, window = row_worth(len(scores), windows, profile)
        windows_total += len(windows)
        detected += len(np.unique(window[fires & (window >= 0)]))
        false_positives += int((fires & (window < 0)).sum())
    normalised = 100.0 * (raw - null) / (perfect - null) if perfect != null else float("nan")
    return Result(profile.name, threshold, raw, normalised, windows_total, detected, false_positives)


def confidence_interval(
    scored: Iterable[tuple[Floats, tuple[tuple[int, int], ...]]],
    profile: Profile,
    threshold: float,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """How far the normalised score would move with another choice of series like these: percentile bootstrap over the series,
    at one fixed threshold.

    Args:
        scored: pairs of raw scores (rows,) and windows, one a series.
        profile: what a detection, a miss and a false alarm are worth.
        threshold: rows whose score reaches it are detections, in every draw.
        level: share of the draws inside the interval, 0..1.
        draws: how often as many series are drawn, with replacement (count).
        seed: of the draws.

    Returns:
        Lower and upper end, in points of the normalised score.

    References:
        Efron, Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13.
    """
    results = [(evaluate([one], profile, threshold).raw, len(one[1])) for one in scored]
    raw, windows = (np.array(column, dtype=np.float64) for column in zip(*results, strict=True))
    picks = np.random.default_rng(seed).integers(0, len(raw), (draws, len(raw)))
    drawn = windows[picks].sum(1)
    null, perfect = -profile.fn * drawn, profile.tp * drawn
    scores = 100.0 * (raw[picks].sum(1) - null) / np.where(drawn > 0, perfect - null, np.nan)
    low, high = np.nanpercentile(scores, [50.0 * (1.0 - level), 50.0 * (1.0 + level)])
    return float(low), float(high)


# --------------------------------------------------------------------------------------- precision and recall of points


def precision_recall(
    scored: Iterable[tuple[Floats, npt.NDArray[np.bool_]]], delay: int = 7
) -> tuple[Floats, Floats, Floats]:
    """Precision and recall over points at every threshold, by the rule of the AIOps challenge 2018.

    A labelled incident counts with all its points as found when an alarm comes within its first `delay` + 1 points, else with
    all its points as missed; each alarm on an unlabelled point is a false positive.

    Args:
        scored: pairs of scores float64 (points,) and labels bool (points,), one a series.
        delay: how late an alarm may be (points).

    Returns:
        thresholds float64 (n,), falling; precision and recall float64 (n,), each at "score >= threshold".

    References:
        Ren et al., "Time-series anomaly detection service at Microsoft", KDD 2019, section 4.2 (the same rule).
    """
    at, found, wrong, labelled = [], [], [], 0
    for scores, anomalous in scored:
        edge = np.diff(np.concatenate([[0], anomalous.astype(int), [0]]))
        normal = scores[~anomalous]
        at.append(normal)
        found.append(np.zeros(len(normal)))
        wrong.append(np.ones(len(normal)))
        for start, end in zip(np.flatnonzero(edge == 1), np.flatnonzero(edge == -1), strict=True):
            at.append(scores[start : min(start + delay + 1, end)].max(keepdims=True))
            found.append(np.array([float(end - start)]))
            wrong.append(np.zeros(1))
            labelled += end - start
    at_, found_, wrong_ = map(np.concatenate, (at, found, wrong))
    order = np.argsort(-at_, kind="stable")
    at_, hits, alarms = at_[order], np.cumsum(found_[order]), np.cumsum(wrong_[order])
    last_of_ties = np.append(at_[1:] != at_[:-1], True)
    at_, hits, alarms = at_[last_of_ties], hits[last_of_ties], alarms[last_of_ties]
    return at_, hits / np.maximum(hits + alarms, 1.0), hits / max(labelled, 1)


# -------------------------------------------------------------------------------------------------------- the corpus


def read_corpus(folder: Path) -> tuple[list[Series], tuple[Profile, ...]]:
    """Read the series, their windows and the profiles from `nab.zip` in `folder`, or from a checkout of NAB there."""
    archive = folder / "nab.zip" if (folder / "nab.zip").exists() else folder / "nab" / "nab.zip"
    if archive.exists():
        with zipfile.ZipFile(archive) as z:
            return _parse_corpus({n: z.read(n) for n in z.namelist() if n.startswith(("data/", "labels/", "config/"))})
    files = [p for part in ("data", "labels", "config") for p in (folder / part).rglob("*") if p.is_file()]
    if not files:
        raise SystemExit(f"{folder} holds neither nab.zip nor the data/ and labels/ folders of NAB")
    return _parse_corpus({p.relative_to(folder).as_posix(): p.read_bytes() for p in files})


def _parse_corpus(files: dict[str, bytes]) -> tuple[list[Series], tuple[Profile, ...]]:
    labels: dict[str, list[list[str]]] = json.loads(files["labels/combined_windows.json"])
    corpus = []
    for name in sorted(labels):
        rows = list(csv.reader(io.StringIO(files[f"data/{name}"].decode())))[1:]
        row_of: dict[str, int] = {}
        for i, row in enumerate(rows):
            row_of.setdefault(row[0][:19], i)  # some series repeat an hour when summer time ends: the first counts
        windows = tuple((row_of[start[:19]], row_of[end[:19]]) for start, end in labels[name])
        corpus.append(Series(name, np.array([float(row[1]) for row in rows]), windows))
    profiles = PROFILES
    if "config/profiles.json" in files:
        costs = {name: p["CostMatrix"] for name, p in json.loads(files["config/profiles.json"]).items()}
        profiles = tuple(Profile(n, tp=c["tpWeight"], fn=c["fnWeight"], fp=c["fpWeight"]) for n, c in costs.items())
    return corpus, profiles


# -------------------------------------------------------------------------------------------------- sources of scores


def stored_scores(file: Path) -> Detector:
    """Scores kept in an .npz file under `<group>__<name>.csv`."""
    stored = np.load(file)
    return lambda series: np.asarray(stored[series.name.replace("/", "__")], dtype=np.float64)


def service_scores(url: str, model: str | None = None, timeout_s: float = 120.0) -> Detector:
    """Scores from a running service, one request a series."""
    import httpx

    client = httpx.Client(base_url=url, timeout=timeout_s, headers={"X-Request-Timeout": str(int(timeout_s))})

    def detect(series: Series) -> Floats:
        body: dict[str, Any] = {"values": series.values.tolist(), "timestamps": None, "sensitivity": 0.5}
        if model is not None:
            body["model"] = model
        response = client.post("/v1/anomaly-detection", json=body)
        if response.is_error:
            raise SystemExit(f"{series.name}: {response.status_code} {response.text[:500]}")
        return np.array(response.json()["scores"], dtype=np.float64)

    return detect


def onnx_scores(file: Path) -> Detector:
    """Scores from a model with the outputs `expected`, `spread` and, where it has it, `novelty`, run in this process without
    the service.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    states = [i for i in session.get_inputs() if i.name not in ("values", "sequence_lens")]
    fresh = {i.name: np.zeros((1, i.shape[1]), dtypes[i.type]) for i in states}
    names = [o.name for o in session.get_outputs() if o.name in ("expected", "spread", "novelty")]

    def detect(series: Series) -> Floats:
        lens = np.array([len(series.values)], np.int32)
        feed = {"values": series.values[None], "sequence_lens": lens} | fresh
        found = dict(zip(names, session.run(names, feed), strict=True))
        error = np.abs(series.values - found["expected"][0])
        scores = error / (error + found["spread"][0])
        if "novelty" in found:
            scores = np.maximum(scores, found["novelty"][0])
        return np.where(np.isnan(series.values), 0.0, scores)  # a missing point is never anomalous

    return detect


# ------------------------------------------------------------------------------------------------------- command line


def report(
    corpus: list[Series], profiles: tuple[Profile, ...], detect: Detector, threshold: float | None
) -> dict[str, Any]:
    """Score the corpus under every profile, and each group at the corpus's thresholds, as one JSON-ready document."""
    scores = {}
    for number, series in enumerate(corpus, 1):
        scores[series.name] = detect(series)
        if len(scores[series.name]) != len(series.values):
            raise SystemExit(f"{series.name}: {len(series.values)} values, but {len(scores[series.name])} scores")
        print(f"\r{number}/{len(corpus)} {series.name:<60}", end="", file=sys.stderr)
    print(file=sys.stderr)

    def rows(group: str | None = None) -> Iterator[tuple[Floats, tuple[tuple[int, int], ...]]]:
        return ((scores[s.name], s.windows) for s in corpus if group in (None, s.group))

    overall = {p.name: evaluate(rows(), p, threshold) for p in profiles}
    groups = {
        g: {p.name: vars(evaluate(rows(g), p, overall[p.name].threshold)) for p in profiles}
        for g in sorted({s.group for s in corpus})
    }
    size = {"series": len(corpus), "rows": sum(len(s.values) for s in corpus)}
    results = {
        p.name: {**vars(overall[p.name]), "interval": confidence_interval(rows(), p, overall[p.name].threshold)}
        for p in profiles
    }
    return {"corpus": size, "profiles": results, "groups": groups}


def print_tables(document: dict[str, Any]) -> None:
    print("NAB, {series} series, {rows} rows".format(**document["corpus"]))
    print(
        f"\n{'profile':<20}{'score':>9}{'95 % interval':>18}{'raw':>12}{'threshold':>12}{'windows found':>16}{'false alarms':>14}"
    )
    for name, r in document["profiles"].items():
        found = f"{r['detected']} of {r['windows']}"
        low, high = r["interval"]
        print(
            f"{name:<20}{r['normalised']:>9.2f}{f'{low:.1f} to {high:.1f}':>18}{r['raw']:>12.4f}{r['threshold']:>12.6f}{found:>16}{r['false_positives']:>14}"
        )
    names = list(document["profiles"])
    print(f"\n{'group':<26}" + "".join(f"{n:>20}" for n in names) + f"{'windows found':>16}{'false alarms':>14}")
    for group, results in document["groups"].items():
        first = results[names[0]]
        found = f"{first['detected']} of {first['windows']}"
        # a group without windows has nothing to find: only its false alarms can be told
        shown = (f"{results[n]['normalised']:>20.2f}" if results[n]["windows"] else f"{'-':>20}" for n in names)
        print(f"{group:<26}" + "".join(shown) + f"{found:>16}{first['false_positives']:>14}")
    print(f"\nWindows found and false alarms by group: profile {names[0]!r}, at its threshold.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with nab.zip, or a checkout of NAB"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="base address of a running service")
    source.add_argument("--onnx", type=Path, metavar="FILE", help="a model file, run in process")
    source.add_argument("--scores", type=Path, metavar="FILE.npz", help="stored raw scores, one array a series")
    parser.add_argument("--model", help="with --url: which model to ask, as name or name@version")
    parser.add_argument("--threshold", type=float, help="one fixed threshold; default: the best one for each profile")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    options = parser.parse_args(argv)

    corpus, profiles = read_corpus(options.data)
    if options.url:
        detect = service_scores(options.url, options.model)
    elif options.onnx:
        detect = onnx_scores(options.onnx)
    else:
        detect = stored_scores(options.scores)
    document = report(corpus, profiles, detect, options.threshold)
    if options.json:
        print(json.dumps(_finite(document), indent=2))
    else:
        print_tables(document)
    return 0


def _finite(document: Any) -> Any:
    """JSON has no infinity or NaN: null stands for 'never fires' and 'no windows, so no score'."""
    if isinstance(document, dict):
        return {key: _finite(value) for key, value in document.items()}
    if isinstance(document, tuple):
        return [_finite(value) for value in document]
    if isinstance(document, float) and not np.isfinite(document):
        return None
    return document


if __name__ == "__main__":
    sys.exit(main())
