"""Train, tune and export `series-cnn`, a detector of causal convolutions: the counterpart of `series-gru`.

    PYTHONPATH=. python models/series-cnn/train.py --data DIR                # train (resumes), tune the bar, export, check, measure
    PYTHONPATH=. python models/series-cnn/train.py --data DIR --stage train  # train alone

DIR, the training series, the loss and the pieces by which constants are chosen are those of `models/series-gru/train.py`.
Needs numpy, onnx and onnxruntime, and torch to train. One CPU thread.

| file | holds |
|---|---|
| `tcn.py` | how it works, and the whole computation in NumPy |
| `tcn_graph.py` | the exported graph: the same computation, with a stream's state |
| `train.py` | the network, its training, the folder's files |

Letters: N series, T points, F features, C channels.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "series-gru")]

from measures import nab, nab_like_score  # noqa: E402
from series import SHARES, Labelled, nab_like_corpus, stack, training_pool  # noqa: E402
from tcn import (  # noqa: E402
    BARS,
    DILATIONS,
    FEATURES,
    KERNEL,
    MEANS,
    OUTPUTS,
    PAST,
    QUANTILES,
    REACH,
    Bar,
    Weights,
    detect,
    features,
    filled,
    score,
    sliding,
    spread_of,
    surprises,
)
from tcn_graph import build_graph  # noqa: E402

from training.card import data_table, table, write_block, write_metrics  # noqa: E402
from training.data import DataSet  # noqa: E402
from training.export import open_session, save  # noqa: E402
from training.flags import Flags, read_flags  # noqa: E402

KPI = DataSet("KPI", "https://github.com/NetManAIOps/KPI-Anomaly-Detection", "MIT", ("kpi_aiops/kpi_aiops.npz",))
CLOUD = DataSet(
    "Microsoft cloud monitoring",
    "https://github.com/microsoft/cloud-monitoring-dataset",
    "MIT",
    ("ms_cloud_monitoring/ms_cloud_monitoring.zip",),
)
DATA = (KPI, CLOUD)
NAMES = {
    "kpi": "KPI", "ms": "Microsoft", "syn": "synthetic", "job": "recurring jobs", "ops": "operations", "inj": "put in",
    "mnt": "mentions",
}  # fmt: skip
"""The sources of pieces, as the card calls them."""


@dataclass(frozen=True, kw_only=True)
class Config(Flags):
    """Every knob; each is a flag."""

    out: Path = FOLDER
    work: Path = Path("runs/series-cnn")
    seed: int = 7
    stage: Literal["all", "train"] = "all"
    """All, or the training alone."""
    channels: int = 22
    minutes: float = 5.7
    """CPU time of one core: what the published series-gru took (min)."""
    batch: int = 64
    """Series a step."""
    window: int = 1024
    """Points a step, and the REACH before them."""
    length: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    synthetic: int = 400
    """Synthetic series in the training pool."""
    trials: int = 80
    """Of the bar's constants."""


def network(channels: int) -> Any:
    """The convolutions and their head as a torch module, which only training needs."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(FEATURES, channels)
            self.convs = nn.ModuleList(nn.Conv1d(channels, channels, KERNEL, dilation=d) for d in DILATIONS)
            self.head = nn.Linear(channels + FEATURES, OUTPUTS)

        def forward(self, f: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """f (N, REACH + T, F) -> weights (N, T, 5), offset (N, T) in units, log scale (N, T) and log quantiles (N, T, 3)."""
            h = self.first(f).transpose(1, 2)
            for conv in self.convs:
                h = h[..., (KERNEL - 1) * conv.dilation[0] :] + torch.relu(conv(h))
            o = self.head(torch.cat([h.transpose(1, 2), f[:, REACH:]], -1))
            k = 1 + len(MEANS)
            log_scale = 6 * torch.tanh(o[..., k + 1] / 6)
            log_quantiles = log_scale[..., None].detach() + torch.cumsum(nn.functional.softplus(o[..., k + 2 :]), -1)
            return torch.softmax(o[..., :k], -1), 3 * torch.tanh(o[..., k] / 3), log_scale, log_quantiles

    return Network()


def prepared(pool: list[Labelled]) -> dict[str, np.ndarray]:
    """What a step reads: features after each point, and the next point, the means and the weight of the loss there."""
    values = stack(pool)
    taboo = np.zeros(values.shape, dtype=bool)
    for row, s in zip(taboo, pool, strict=True):
        row[: len(s.anomalous)] = s.anomalous
    taboo = taboo | np.roll(taboo, 1, 1) | np.roll(taboo, 2, 1)
    x, there = filled(values)
    age = np.cumsum(there, 1).astype(np.float64)
    s = sliding(x, there)

    def in_units(v: np.ndarray) -> np.ndarray:
        return np.clip(v / s["unit"], -1e5, 1e5).astype(np.float32)

    following = np.concatenate([x[:, 1:], x[:, -1:]], 1)
    counted = ~np.isnan(values) & ~taboo
    counted = np.concatenate([counted[:, 1:], np.zeros((len(x), 1), bool)], 1)
    return {
        "features": features(s, there, age),
        "target": in_units(following - x),
        "levels": np.stack([np.zeros(x.shape, np.float32), *(in_units(s[f"M{n}"] - x) for n in MEANS)], -1),
        "weight": (counted & (age > 1) & (s["H256"] > 0)).astype(np.float32),
    }


def losses(model: Any, part: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Student-t likelihood (3 degrees of freedom) of the next point, pinball loss of the error quantiles, both (N, T), and weights."""
    import torch

    quantile, share = torch.tensor(QUANTILES), torch.tensor([1.0, 3.0, 10.0])
    mix, offset, log_scale, log_quantiles = model(part["features"])
    error = part["target"] - (mix * part["levels"]).sum(-1) - offset
    likelihood = log_scale + 2 * torch.log1p((error * torch.exp(-log_scale)) ** 2 / 3)
    over = torch.log(error.detach().abs() + 1e-4)[..., None] - log_quantiles
    pinball = (torch.maximum(quantile * over, (quantile - 1) * over) * share).sum(-1)
    return likelihood, pinball, part["weight"]


def train(config: Config) -> Weights:
    """Fit the network for the CPU time that it gets; goes on from its checkpoint."""
    import torch
    from torch import nn

    from training.loop import save_state, start

    start(config)
    data = {
        k: torch.from_numpy(v)
        for k, v in prepared(training_pool(config.data, config.seed, config.length, config.synthetic)).items()
    }
    data["features"] = nn.functional.pad(data["features"], (0, 0, REACH, 0))
    count, length = data["target"].shape
    print(f"{count} training series, {int(data['weight'].sum()):,} points", flush=True)
    model = network(config.channels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    path, budget_s = config.work / "checkpoint.pt", 60 * config.minutes
    epoch, spent_s = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        epoch, spent_s = state["epoch"], state["spent_s"]
    began = time.process_time() - spent_s
    while spent_s < budget_s:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed + epoch))
        places = [
            (a, order[b : b + config.batch])
            for a in range(0, length, config.window)
            for b in range(0, count, config.batch)
        ]
        totals = np.zeros(3)
        for k in torch.randperm(len(places), generator=torch.Generator().manual_seed(epoch)):
            progress = (time.process_time() - began) / budget_s
            if progress >= 1:
                break
            a, rows = places[int(k)]
            part = {name: v[rows, a : a + config.window] for name, v in data.items()}
            if part["weight"].sum() < 100:
                continue
            part["features"] = data["features"][rows, a : a + config.window + REACH]
            for group in optimiser.param_groups:
                group["lr"] = (
                    config.learning_rate
                    * min(1.0, progress / 0.05 + 0.1)
                    * float(0.51 + 0.5 * np.cos(np.pi * progress))
                )
            likelihood, pinball, w = losses(model, part)
            loss = ((likelihood + pinball) * w).sum() / w.sum()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            totals += [float((likelihood * w).sum().detach()), float((pinball * w).sum().detach()), float(w.sum())]
        epoch, spent_s = epoch + 1, time.process_time() - began
        print(
            f"epoch {epoch}  likelihood {totals[0] / totals[2]:.4f}  pinball {totals[1] / totals[2]:.4f}  {spent_s:.0f} s",
            flush=True,
        )
        save_state(
            path, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch, "spent_s": spent_s}
        )
    return weights_of(model.state_dict())


def weights_of(state: dict[str, Any]) -> Weights:
    """From the state dict of the torch module."""
    get = {name: np.asarray(tensor.detach().numpy()) for name, tensor in state.items()}
    convs = tuple((get[f"convs.{k}.weight"], get[f"convs.{k}.bias"]) for k in range(len(DILATIONS)))
    return Weights(get["first.weight"], get["first.bias"], convs, get["head.weight"], get["head.bias"])


# --------------------------------------------------------------------------------------------------------------- the bar


def tuned(
    pieces: list[Labelled], found: list[dict[str, np.ndarray]], seed: int, trials: int
) -> tuple[Bar, dict[str, float]]:
    """The constants of the bar with the best NAB-like score of these pieces at the default sensitivity, by random search."""
    rng = np.random.default_rng(seed)
    best: tuple[float, Bar, dict[str, float]] | None = None
    for trial in range(trials):
        bar = Bar() if not trial else Bar(
            floor=float(rng.uniform(0.0, 2.0)),
            over_usual=float(rng.uniform(1.0, 4.0)),
            over_peak=float(rng.uniform(-0.5, 1.5)),
            sinking=float(np.exp(rng.uniform(np.log(3e-4), np.log(2e-2)))),
            youth=float(rng.uniform(0.5, 3.0)),
            youth_age=float(rng.uniform(10, 200)),
        )  # fmt: skip
        result = nab_like_score(pieces, scores_of(pieces, found, bar), 0.5)
        if best is None or result["mean"] > best[0]:
            best = result["mean"], bar, result
            print(f"trial {trial}: {result['mean']:.2f}  {bar}", flush=True)
    assert best is not None
    rounded = Bar(**{name: float(f"{value:.3g}") for name, value in vars(best[1]).items()})
    return rounded, nab_like_score(pieces, scores_of(pieces, found, rounded), 0.5)


def scores_of(pieces: list[Labelled], found: list[dict[str, np.ndarray]], bar: Bar) -> list[np.ndarray]:
    """0..1 of each piece, from its surprises."""
    return [score(p.values[None], s["expected"], spread_of(s, bar))[0] for p, s in zip(pieces, found, strict=True)]


# ------------------------------------------------------------------------------------------------------------ the folder


def check(file: Path, weights: Weights, bar: Bar, pieces: list[Labelled]) -> dict[str, float]:
    """What a caller may rely on, tried on the exported file: largest differences of a score; ends the program above 1e-4."""
    stream, rng = Stream(file), np.random.default_rng(0)
    found: dict[str, float] = {}

    def law(name: str, difference: float, most: float = 1e-4) -> None:
        found[name] = max(found.get(name, 0.0), float(difference))
        if not difference <= most:
            raise SystemExit(f"{name}: {difference:.2e} is more than {most:.0e}")

    chosen = [pieces[i] for i in rng.choice(len(pieces), 12, replace=False)]
    for piece in chosen:
        x = piece.values[None, :1500]
        whole, _ = stream(x)
        law("graph and reference", np.abs(whole - score(x, *detect(x, weights, bar))).max())
        for size, n in ((1, 200), (7, 700), (500, 1500)):
            parts, state = [], None
            for a in range(0, min(n, x.shape[1]), size):
                part, state = stream(x[:, a : min(a + size, n)], state=state)
                parts.append(part)
            together = np.concatenate(parts, 1)
            law(f"whole and pieces of {size}", np.abs(together - whole[:, : together.shape[1]]).max())
        law("another unit", np.abs(stream(x * 1e6)[0] - whole).max())
    lens = [int(n) for n in rng.integers(1, 900, len(chosen))]
    batch = np.full((len(chosen), 900), 7e7)  # padding is not missing data: it must not be looked at
    for row, n, piece in zip(batch, lens, chosen, strict=True):
        row[:n] = piece.values[:n]
    together, after = stream(batch, lens)
    for k, (n, piece) in enumerate(zip(lens, chosen, strict=True)):
        alone, state = stream(piece.values[None, :n])
        law("alone and in a padded batch", np.abs(together[k, :n] - alone[0]).max())
        law("their states", max(np.abs(after[s][k] - state[s][0]).max() / (1 + np.abs(state[s]).max()) for s in state))
    for level in (0.0, 1.0, 0.1, -1e9, 1e300):
        constant = np.full((1, 500), level)
        law("score of a constant", stream(constant)[0].max(), 0.49)
        constant[0, 400] = level + (abs(level) * 0.01 or 1.0)
        law("1 - score of the first change", 1 - stream(constant)[0][0, 400], 0.5)
    wild = rng.standard_normal((20, 200)) * 10.0 ** rng.uniform(-300, 300, (20, 200))
    wild[rng.random(wild.shape) < 0.1] = np.nan
    wild[:2] = np.nan
    wild[2:4] = np.where(rng.random((2, 200)) < 0.5, 1e300, -1e300)
    law("not finite", float(not np.isfinite(stream(wild)[0]).all()), 0.0)
    return found


class Stream:
    """The exported graph, with its state."""

    def __init__(self, file: Path) -> None:
        self.session = open_session(file)
        self.widths = {i.name: i.shape[1] for i in self.session.get_inputs()[2:]}

    def __call__(
        self, values: np.ndarray, lens: list[int] | None = None, state: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """values (N, T) -> scores (N, T) and the state for the next call."""
        state = state or {name: np.zeros((len(values), width)) for name, width in self.widths.items()}
        feed = {"values": values, "sequence_lens": np.array(lens or [values.shape[1]] * len(values), np.int32)} | state
        expected, spread, *after = self.session.run(None, feed)
        return score(values, expected, spread), dict(zip(state, after, strict=True))


def golden(weights: Weights, bar: Bar) -> list[dict[str, Any]]:
    """Two short series with an answer each, computed by the reference: a rhythm with a spike and a gap, and a rate with a drop."""
    rng = np.random.default_rng(3)
    t = np.arange(160)
    rhythm = np.round(20 + 6 * np.sin(2 * np.pi * t / 48) + rng.normal(0, 0.5, len(t)), 2)
    rhythm[120] = 61.5
    rhythm[[40, 41, 130]] = np.nan
    requests = rng.poisson(180 + 40 * np.sin(2 * np.pi * t / 96)).astype(np.float64)
    requests[130:133] = [3.0, 0.0, 5.0]
    requests[20] = np.nan
    cases = []
    for x in (rhythm, requests):
        s = score(x[None], *detect(x[None], weights, bar))[0]
        if np.abs(s - 0.5).min() < 0.005:
            raise AssertionError("a golden score lies too close to the threshold to be checked")
        sent = [None if np.isnan(v) else float(v) for v in x]
        answer = {"anomalies": np.flatnonzero(s >= 0.5).tolist(), "scores": [round(float(v), 6) for v in s]}
        cases.append({"input": {"values": sent, "sensitivity": 0.5}, "output": answer, "tolerance": 0.002})
    return cases


def publish(config: Config, weights: Weights) -> None:
    """Tune the bar on validation pieces, export, check, look at the test pieces and NAB once, write the folder's files."""
    pieces = {split: nab_like_corpus(config.data, split) for split in ("validation", "test")}
    found = [surprises(p.values[None], weights) for p in pieces["validation"]]
    bar, on_validation = tuned(pieces["validation"], found, config.seed, config.trials)
    version = config.out / "1"
    version.mkdir(parents=True, exist_ok=True)
    save(build_graph(weights, bar), version / "model.onnx")
    laws = check(version / "model.onnx", weights, bar, pieces["validation"])
    print({name: f"{value:.1e}" for name, value in laws.items()}, flush=True)
    (version / "golden.json").write_text(json.dumps(golden(weights, bar)) + "\n")
    stream = Stream(version / "model.onnx")
    on_test = nab_like_score(pieces["test"], [stream(p.values[None])[0][0] for p in pieces["test"]], 0.5)
    series, profiles = nab.read_corpus(config.data / "nab")
    detector = nab.onnx_scores(version / "model.onnx")
    known = {one.name: detector(one) for one in series}
    scored = [(known[one.name], one.windows) for one in series]
    metrics: dict[str, float] = {}
    for profile in profiles:
        name = f"NAB {profile.name.removeprefix('reward_').replace('_', ' ')} profile"
        metrics[name] = round(nab.evaluate(scored, profile, None).normalised, 2)
    print(metrics, on_validation, on_test, flush=True)
    rows = [[f"NAB-like score, sensitivity 0.5, {split} pieces", *(f"{r[k]:.1f}" for k in (*SHARES, "mean"))]
            for split, r in (("validation", on_validation), ("test", on_test))]  # fmt: skip
    lines = [
        *table(["measure", *(NAMES[k] for k in SHARES), "weighted mean"], rows),
        "",
        f"Trained for {config.minutes:g} minutes of CPU. {weights.count:,} weights, {(version / 'model.onnx').stat().st_size:,} bytes; state of a stream: {PAST + BARS + 1:,} float64 = "
        f"{8 * (PAST + BARS + 1):,} bytes. The bar: "
        + ", ".join(f"`{name}` {value:g}" for name, value in vars(bar).items())
        + ".",
        "",
        *data_table(config.data, *DATA),
    ]
    write_block(config.out / "card.md", "metrics", lines)
    write_metrics(config.out / "manifest.toml", metrics)


def main(config: Config) -> None:
    """Data -> network -> loop -> bar -> graph -> check -> figures."""
    weights = train(config)
    if config.stage == "all":
        publish(config, weights)


if __name__ == "__main__":
    main(read_flags(Config, __doc__))
