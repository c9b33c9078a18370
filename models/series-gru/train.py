"""Train, calibrate and export `series-gru`, the streaming anomaly detector: one recurrent model for every series.

    python models/series-gru/train.py --data DIR                # train (resumes), calibrate the threshold, evaluate, export, check
    python models/series-gru/train.py --data DIR --stage export # the same without training, from the checkpoint or the published graph
    python models/series-gru/train.py --data DIR --stage search # look for better constants of the novelty (printed, not kept)

DIR holds four folders of public data:
- `kpi_aiops/kpi_aiops.npz`: the AIOps challenge 2018, https://github.com/NetManAIOps/KPI-Anomaly-Detection (MIT), in the
  regular-grid form of https://github.com/CSTCloudOps/datasets: arrays `value`, `label`, `offsets`, `kpi_id`, `interval_s`;
- `ms_cloud_monitoring/ms_cloud_monitoring.zip`: https://github.com/microsoft/cloud-monitoring-dataset (MIT);
- `ett/ETTh1.csv.xz`, `ETTh2`, `ETTm1`, `ETTm2`: https://github.com/zhouhaoyi/ETDataset (CC BY-ND 4.0), electricity load and oil
  temperature, into which incidents are put to choose constants;
- `nab/nab.zip`: https://github.com/numenta/NAB, used for one thing: the benchmark figures of the card. Nothing is trained or
  tuned on it.
Needs numpy, onnx and onnxruntime, and torch to train. One CPU thread. From the checkout's folder, installed or in PYTHONPATH.

| file | holds |
|---|---|
| `series.py` | the data: read, cut into pieces, made up |
| `detector.py` | how it works, and the whole computation in NumPy |
| `weights.py` | the forecaster's weights |
| `train.py` | the forecaster, its training, the folder's files |
| `graph.py` | the exported graph: the same computation, with a stream's state |
| `laws.py` | what is tried on the exported file |
| `measures.py` | how good scores are |
| `search.py` | the search for constants |

Letters: N series, T points, H hidden units.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
from detector import INPUTS, LEVELS, OUTPUTS, QUANTILES, Adaptation, detect, gru_inputs, running_statistics, score
from graph import HISTORY, STATISTICS, build_graph
from laws import Stream, check, milliseconds
from measures import band_coverage, false_alarms, incident_f1, nab, nab_like_score
from search import search
from series import SHARES, Labelled, nab_like_corpus, stack, training_pool
from weights import Weights

from training.card import table, write_block, write_metrics
from training.data import DataSet
from training.flags import Flags, read_flags

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Every knob; each is a flag."""

    out: Path = HERE
    work: Path = HERE / "work"
    seed: int = 7
    stage: Literal["all", "export", "search"] = "all"
    """All; export, from the checkpoint or the published graph, without training; or search for constants of the novelty."""
    hidden: int = 48
    batch: int = 128
    """Series a step."""
    window: int = 256
    """Points a step: the gradient is cut there, the hidden state goes on."""
    length: int = 4096
    """Points of a training series."""
    epochs: int = 22
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    synthetic: int = 400
    """Synthetic series in the training pool."""
    trials: int = 600
    """Trials of `--stage search`."""


KPI = DataSet("KPI", "https://github.com/NetManAIOps/KPI-Anomaly-Detection", "MIT", ("kpi_aiops/kpi_aiops.npz",))
CLOUD = DataSet(
    "Microsoft cloud monitoring",
    "https://github.com/microsoft/cloud-monitoring-dataset",
    "MIT",
    ("ms_cloud_monitoring/ms_cloud_monitoring.zip",),
)
ETT = DataSet(
    "ETT",
    "https://github.com/zhouhaoyi/ETDataset",
    "CC BY-ND 4.0",
    tuple(f"ett/{name}.csv.xz" for name in ("ETTh1", "ETTh2", "ETTm1", "ETTm2")),
)
NAB = DataSet("NAB", "https://github.com/numenta/NAB", "MIT", ("nab/nab.zip",))
DATA = (KPI, CLOUD, ETT, NAB)


# ------------------------------------------------------------------------------------------------------------- model


def forecaster(hidden: int) -> object:
    """The GRU and its head as a torch module, which only training needs."""
    import torch
    from torch import nn

    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(INPUTS, hidden, batch_first=True)
            self.head = nn.Linear(hidden + INPUTS, OUTPUTS)

        def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            """x (N, T, INPUTS), h (1, N, H) -> weights (N, T, 5), offset (N, T) in units, log scale (N, T) and log quantiles
            (N, T, 3) of the error in units, h."""
            y, h = self.gru(x, h)
            o = self.head(torch.cat([y, x], -1))
            k = len(LEVELS)
            log_scale = 6 * torch.tanh(o[..., k + 1] / 6)
            # each quantile lies above the one before; the scale itself is learned by the likelihood alone
            log_quantiles = log_scale[..., None].detach() + torch.cumsum(nn.functional.softplus(o[..., k + 2 :]), -1)
            return torch.softmax(o[..., :k], -1), 3 * torch.tanh(o[..., k] / 3), log_scale, log_quantiles, h

    return Forecaster()


# -------------------------------------------------------------------------------------------------------------- loop


def train(config: Config) -> Weights:
    """Fit the forecaster: Student-t likelihood (3 degrees of freedom) of the next point, pinball loss of the error quantiles.
    Labelled anomalies and the two points behind them teach nothing."""
    import torch
    from torch import nn

    from training.loop import Checkpoint, epochs, start

    start(config)
    pool = training_pool(config.data, config.seed, config.length, config.synthetic)
    values = stack(pool)
    taboo = np.zeros(values.shape, dtype=bool)
    for row, s in zip(taboo, pool, strict=True):
        row[: len(s.anomalous)] = s.anomalous
    taboo = taboo | np.roll(taboo, 1, 1) | np.roll(taboo, 2, 1)
    s = running_statistics(values, Adaptation())
    inputs = torch.from_numpy(gru_inputs(s))

    def in_units(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.clip(x / s["unit"], -1e5, 1e5).astype(np.float32))

    target = in_units(s["d"] - s["last"])
    levels = torch.stack([in_units(s[k] - s["last"]) for k in LEVELS], -1)
    weight = torch.from_numpy((s["valid"] & (s["seen"] > 1) & (s["H300"] > 0) & ~taboo).astype(np.float32))
    quantile, share = torch.tensor(QUANTILES), torch.tensor([1.0, 3.0, 10.0])
    print(f"{len(pool)} training series, {int(weight.sum()):,} points", flush=True)

    model = forecaster(config.hidden)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for epoch in epochs(config.epochs, Checkpoint(config, model=model, optimiser=optimiser)):
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(config.seed + epoch.number))
        totals = np.zeros(3)
        for b in range(0, len(pool), config.batch):
            rows = order[b : b + config.batch]
            passed = epoch.number + b / len(pool)
            fall = float(0.51 + 0.5 * np.cos(np.pi * passed / config.epochs))
            rate = config.learning_rate * min(1.0, 0.1 + passed) * fall
            for group in optimiser.param_groups:
                group["lr"] = rate
            h = None
            for a in range(0, values.shape[1], config.window):
                now = slice(a, a + config.window)
                w = weight[rows, now]
                if w.sum() < 100:
                    break
                mix, offset, log_scale, log_quantiles, h = model(inputs[rows, now], h)
                h = h.detach()
                error = target[rows, now] - (mix * levels[rows, now]).sum(-1) - offset
                likelihood = log_scale + 2 * torch.log1p((error * torch.exp(-log_scale)) ** 2 / 3)
                over = torch.log(error.detach().abs() + 1e-4)[..., None] - log_quantiles
                pinball = (torch.maximum(quantile * over, (quantile - 1) * over) * share).sum(-1)
                loss = ((likelihood + pinball) * w).sum() / w.sum()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                totals += [float((likelihood * w).sum().detach()), float((pinball * w).sum().detach()), float(w.sum())]
        epoch.log(likelihood=totals[0] / totals[2], pinball=totals[1] / totals[2])
    return Weights.from_checkpoint(model.state_dict())


# -------------------------------------------------------------------------------------------------------- evaluation


SENSITIVITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Where false alarms and the band's coverage are measured."""

NAMES = {
    "kpi": "KPI",
    "ms": "Microsoft",
    "syn": "synthetic",
    "job": "recurring jobs",
    "ops": "operations",
    "inj": "put in",
    "mnt": "mentions",
}
"""The sources of pieces, as the card calls them."""
REAL = ("kpi", "ms")
Measures = dict[str, Any]


def measure(stream: Stream, corpus: list[Labelled]) -> Measures:
    """Everything that the card says of one split's pieces, from the exported graph, which is the framework's equal."""
    outputs = [stream.outputs(p.values[None])[:3] for p in corpus]
    scores = [score(p.values[None], *o)[0] for p, o in zip(corpus, outputs, strict=True)]
    bands = [(o[0][0], o[1][0]) for o in outputs]
    return {
        "fixed": nab_like_score(corpus, scores, 0.5),
        "best": nab_like_score(corpus, scores),
        "early": {s: false_alarms(corpus, scores, s, first=100) for s in SHARES},
        "alarms": {x: {s: false_alarms(corpus, scores, s, x) for s in SHARES} for x in SENSITIVITIES},
        "real alarms": {x: false_alarms(corpus, scores, REAL, x) for x in SENSITIVITIES},
        "coverage": {x: {s: band_coverage(corpus, bands, s, x) for s in SHARES} for x in SENSITIVITIES},
        "real coverage": {x: band_coverage(corpus, bands, REAL, x) for x in SENSITIVITIES},
        "f1": {x: incident_f1(corpus, scores, "kpi", 1 - x) for x in SENSITIVITIES},
    }


def measure_nab(data: Path, file: Path) -> tuple[Measures, Measures]:
    """The benchmark's report, at the best threshold of each profile and at the one that is served."""
    series, profiles = nab.read_corpus(data / "nab")
    detector = nab.onnx_scores(file)
    known = {one.name: detector(one) for one in series}
    document = nab.report(series, profiles, lambda one: known[one.name], None)
    at_half = nab.report(series, profiles, lambda one: known[one.name], 0.5)
    nab.print_tables(document)
    return document, at_half


# ---------------------------------------------------------------------------------------------------------- the folder


def golden(model: Weights, c: Adaptation) -> list[dict]:
    """Three short series with an answer each, computed by the reference: a daily rhythm with a spike and a gap, a request
    counter's rate with a drop, and noise with four spikes."""
    rng = np.random.default_rng(3)
    t = np.arange(144)
    rhythm = np.round(20 + 6 * np.sin(2 * np.pi * t / 48) + rng.normal(0, 0.5, len(t)), 2)
    rhythm[100] = 61.5
    rhythm[[40, 41, 120]] = np.nan
    t = np.arange(96)
    requests = rng.poisson(180 + 40 * np.sin(2 * np.pi * t / 96)).astype(np.float64)
    requests[70:73] = [3.0, 0.0, 5.0]
    requests[20] = np.nan
    spiked = np.round(50 + rng.normal(0, 1, 160), 2)
    spiked[[100, 112, 124, 136]] += [18, -20, 17, 22]
    cases = []
    for x in (rhythm, requests, spiked):
        s = score(x[None], *detect(x[None], model, c))[0]
        if np.abs(s - 0.5).min() < 0.005:
            raise AssertionError("a golden score lies too close to the threshold to be checked")
        sent = [None if np.isnan(v) else float(v) for v in x]
        cases.append({
            "input": {"values": sent, "sensitivity": 0.5},
            "output": {"anomalies": np.flatnonzero(s >= 0.5).tolist(), "scores": [round(float(v), 6) for v in s]},
            "tolerance": 0.002,
        })  # fmt: skip
    return cases


def score_lines(results: dict[str, Measures]) -> list[str]:
    """The card's table of NAB-like scores and of a stream's first points."""
    rows = []
    for split, r in results.items():
        for label, part in (("best single threshold", r["best"]), ("sensitivity 0.5", r["fixed"])):
            cells = [f"{part[k]:.1f}" for k in (*SHARES, "mean")]
            rows.append([f"NAB-like score (standard), {split}, {label}", *cells])
        cells = [f"{r['early'][k]:.2f}" for k in SHARES]
        what = f"false alarms per 1,000 normal points among a stream's first 100, {split}, sensitivity 0.5"
        rows.append([what, *cells, ""])
    return table(["measure", *(NAMES[k] for k in SHARES), "weighted mean"], rows)


def sensitivity_lines(validation: Measures, test: Measures) -> list[str]:
    """What a sensitivity means, by source and split."""
    rows, accuracy = [], []
    for x in SENSITIVITIES:
        own = [f"{validation['alarms'][x][k]:.2f}" for k in SHARES]
        alarms = [f"{r['real alarms'][x]:.2f}" for r in (validation, test)]
        coverage = [f"{100 * r['real coverage'][x]:.3f} %" for r in (validation, test)]
        rows.append([x, *own, *alarms, *coverage])
        cells = [" / ".join(f"{value:.3f}" for value in r["f1"][x]) for r in (validation, test)]
        accuracy.append([f"sensitivity {x}", *cells])
    real = ["KPI and Microsoft, validation", "the same, test", "band holds, validation", "band holds, test"]
    return [
        "What a sensitivity means. False alarms per 1,000 normal points after NAB's probation, validation pieces:",
        "",
        *table(["sensitivity", *(NAMES[k] for k in SHARES), *real], rows),
        "",
        "The last two columns are the shares of normal KPI and Microsoft points inside `lower`..`upper`.",
        "",
        *table(["delay-7 precision / recall / F1 on KPI", "validation", "test"], accuracy),
    ]


def nab_lines(document: Measures, at_half: Measures) -> list[str]:
    """The benchmark's scores with their intervals."""
    rows = []
    for label, d in (
        ("best threshold per profile, as NAB's table has it", document),
        ("sensitivity 0.5 as served", at_half),
    ):
        low_to_high = ((r["normalised"], *r["interval"]) for r in d["profiles"].values())
        rows.append([label, *(f"{value:.2f} ({low:.1f} to {high:.1f})" for value, low, high in low_to_high)])
    heading = ["NAB (58 series)", "standard", "low FP", "low FN"]
    return [*table(heading, rows), "", "In brackets: 95 % bootstrap intervals over the 58 series."]


def size_line(model: Weights, file: Path) -> str:
    """Parameters, bytes, and what a run costs."""
    one_ms, thousand_ms, fresh_ms = milliseconds(file)
    numbers = len(STATISTICS) + HISTORY
    return (
        f"{model.count:,} parameters, {file.stat().st_size:,} bytes; state of a stream: {model.hidden} float32 + "
        f"{numbers:,} float64 = {4 * model.hidden + 8 * numbers:,} bytes. Once the memory is full, one more point: "
        f"{one_ms:.2f} ms, 1,000 points: {thousand_ms:.1f} ms; a new stream's first 256 points: {fresh_ms:.1f} ms "
        f"(median CPU time, one thread, ONNX Runtime {onnxruntime.__version__}, machine shared with other work)."
    )


def claims(document: Measures, validation: Measures, test: Measures) -> dict[str, float]:
    """The manifest's `[metrics]`."""
    metrics = {
        f"NAB {name.removeprefix('reward_').replace('_', ' ')} profile": r["normalised"]
        for name, r in document["profiles"].items()
    }
    metrics["NAB-like score, held-out KPI series"] = test["best"]["kpi"]
    for x in SENSITIVITIES:
        metrics[f"false alarms per 1,000 normal points at sensitivity {x}"] = validation["real alarms"][x]
    for x in SENSITIVITIES:
        metrics[f"% of normal points inside the band at sensitivity {x}"] = 100 * validation["real coverage"][x]
    return metrics


def sensitivity_table(metrics: dict[str, float]) -> list[str]:
    """What a sensitivity means, as docs/calibration.md has it, from the figures that the manifest claims."""
    rows = []
    for x in SENSITIVITIES:
        alarms = metrics[f"false alarms per 1,000 normal points at sensitivity {x}"]
        inside = metrics[f"% of normal points inside the band at sensitivity {x}"]
        rows.append((x, f"{alarms:.2f}", f"{inside:.3f} %"))
    return table(
        ["`sensitivity`", "false alarms per 1,000 normal points", "normal points inside `lower` … `upper`"], rows
    )


def publish(config: Config, model: Weights, c: Adaptation, checksums: dict[str, str]) -> None:
    """Export, check, measure on the test split and on NAB, and write the folder's files."""
    file = config.out / "2" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(build_graph(model, c).SerializeToString())
    pieces = {split: nab_like_corpus(config.data, split) for split in ("validation", "test")}
    for name, deviation in check(file, model, c, pieces["validation"]).items():
        print(f"  {name:<36}{deviation:.1e}")
    (file.parent / "golden.json").write_text(json.dumps(golden(model, c)) + "\n")

    results, stream = {}, Stream(file)
    for split, corpus in pieces.items():
        results[split] = measure(stream, corpus)
        print(split, results[split], flush=True)
    document, at_half = measure_nab(config.data, file)
    digests = "; ".join(f"`{name}` {digest[:16]}…" for name, digest in checksums.items())
    blocks = [
        score_lines(results),
        sensitivity_lines(**results),
        nab_lines(document, at_half),
        [size_line(model, file)],
        [f"Data files (sha256): {digests}."],
    ]
    lines = [line for block in blocks for line in (*block, "")]
    write_block(config.out / "card.md", "metrics", lines[:-1])
    metrics = claims(document, results["validation"], results["test"])
    write_block(HERE.parents[1] / "docs" / "calibration.md", "series-gru", sensitivity_table(metrics))
    write_metrics(config.out / "manifest.toml", {name: rounded(name, value) for name, value in metrics.items()})


def rounded(name: str, value: float) -> float:
    """A share of points with three digits, all else with two."""
    return round(value, 3 if name.startswith("%") else 2)


def main(config: Config) -> None:
    """Data -> forecaster -> loop -> graph -> check -> evaluate."""
    checksums = {file: digest for one in DATA for file, digest in one.checksums(config.data).items()}
    for file, digest in checksums.items():
        print(f"{digest}  {file}")
    checkpoint = config.work / "checkpoint.pt"
    if config.stage == "all":
        model = train(config)
    elif checkpoint.exists():
        import torch

        model = Weights.from_checkpoint(torch.load(checkpoint, weights_only=True)["model"])
    else:
        model = Weights.from_graph(HERE / "2" / "model.onnx")
    if config.stage == "search":
        search(config.data, model, config.seed, config.trials)
    else:
        publish(config, model, Adaptation(), checksums)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
