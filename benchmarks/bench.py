"""The service beside plain FastAPI and beside the same work with no HTTP at all, in one run on this machine.

    make bench                                          # under six minutes, all cores
    python benchmarks/bench.py --seconds 10             # longer, calmer
    python benchmarks/bench.py --connections 1 --repeat 1

| name | what runs |
|---|---|
| L1 | in process: body bytes to answer bytes, with the service's own decoding and encoding and batches of the best size; a process of one ONNX Runtime thread for each core |
| gridloop | `gridloop serve` with its defaults |
| fastapi | `plain_fastapi.py`: FastAPI and ONNX Runtime as most people put them together, one uvicorn worker |
| fastapi ×N | the same with as many workers as cores |

Three models, three workloads, the same bodies for everybody; every answer's status is checked, and a sample of answers is compared
with those of L1. Servers run one at a time, in another order each round; rounds are repeated and medians reported. A measurement
during which other programs used more than 0.15 cores is made again while there is time; what remains is in the JSON beside every number.

Exit code 0 when every answer was right, 1 when one was not or a server failed, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed, options, workloads
from measuring.answers import same_answer
from measuring.limit import Limit, LimitSample
from measuring.machine import cpu_seconds, machine
from measuring.noise import QUIET_CORES, Noise, calmest, listening
from measuring.tables import environment, median, number, write_results
from measuring.targets import Running, Target, running, targets
from measuring.workloads import Workload
from rich.console import Console
from rich.table import Table

from service.client.http import ClientFailed, Server, ServerAddress, http_request
from service.client.load import WARM_UP_S, Load, Request
from service.client.process import put_load
from service.cpu import cpu_budget
from service.registry.registry import Registry

HERE = Path(__file__).resolve().parent

WORKLOADS = tuple(
    workload
    for workload in workloads.WORKLOADS
    if workload.name in ("image, PNG 32×32", "text, 32 words", "series, 256 points")
)
MODELS = {
    "image-classification": "cifar10-cnn",
    "next-word-prediction": "english-lstm",
    "anomaly-detection": "series-gru",
}

LIMIT = "L1"
LIMIT_BATCHES = (1, 2, 4, 8, 16, 32)
SAMPLES = 200
"""Answers of one measurement that are compared (count)."""

EXTRA_TIME = 0.25
"""Share of the planned time that measurements made again may take."""


@dataclass(frozen=True)
class Row:
    """One target (or L1) on one workload, measured once.

    Attributes:
        target: its name.
        workload: its name.
        round: counted from 0.
        rate: requests answered well per second.
        cpu_ms: CPU time of all its processes per request.
        p50_ms: latency; None for L1.
        p99_ms: likewise.
        batch: rows per run, where it is known; the batch size of L1.
        memory_mib: of all processes, after the load; None for L1.
        ready_s: from start to ready; None for L1.
        errors: by kind.
        wrong: answers that were not those of L1, among those compared.
        checked: how many were compared.
        noise: of the machine meanwhile.
        attempts: how often it was measured for the sake of quiet.
    """

    target: str
    workload: str
    round: int
    rate: float
    cpu_ms: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    batch: float | None = None
    memory_mib: float | None = None
    ready_s: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    wrong: int = 0
    checked: int = 0
    noise: Noise = field(default_factory=Noise)
    attempts: int = 1


@dataclass
class Bodies:
    """A workload's bodies, the answer to each, and the batch size at which L1 is fastest."""

    workload: Workload
    folder: Path
    bodies: Sequence[bytes]
    expected: Sequence[Any] = ()
    batch: int = 1


@dataclass
class Benchmark:
    """The whole comparison.

    Attributes:
        models: the model repository.
        targets: what is compared.
        connections: kept alive.
        seconds: of each measurement.
        repeat: rounds.
        cores: processes of L1.
        say: prints progress.
    """

    models: Path
    targets: Sequence[Target]
    connections: int
    seconds: float
    repeat: int
    cores: int
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    work: list[Bodies] = field(default_factory=list)
    _extra_s: float = 0.0
    _repeating_s: float = 0.0

    @property
    def limit_seconds(self) -> float:
        return max(0.5, self.seconds / 2)

    def run(self) -> None:
        """Measure everything.

        Raises:
            BenchmarkFailed: something cannot be measured.
        """
        per_load = self.seconds + WARM_UP_S
        self._extra_s = EXTRA_TIME * self.repeat * len(WORKLOADS) * (len(self.targets) * per_load + self.seconds)
        registry = Registry(self.models)
        for workload in WORKLOADS:
            folder = registry.get(MODELS[workload.task]).default_folder
            work = Bodies(workload, folder, workload.bodies(_nobody))
            self.work.append(work)
            with contextlib.closing(self._open(work)) as limit:
                work.expected = limit.answers
                tried = {batch: limit.measure(batch, 0.5).rate for batch in LIMIT_BATCHES}
                work.batch = max(tried, key=lambda batch: tried[batch])
            self.say(f"L1 {workload.name}: " + ", ".join(f"{rate:.0f}/s in {batch}" for batch, rate in tried.items()))
        draw = random.Random(0)
        for turn in range(self.repeat):
            self._limits(turn)
            for target in draw.sample(list(self.targets), len(self.targets)):
                self._target(target, turn)
            self._limits(turn)

    def _open(self, work: Bodies) -> Limit:
        return Limit(self.cores, work.folder, work.workload, work.bodies)

    def _limits(self, number: int) -> None:
        for work in self.work:
            with contextlib.closing(self._open(work)) as limit:

                def attempts(limit: Limit = limit, work: Bodies = work) -> Iterator[tuple[LimitSample, Noise]]:
                    while True:
                        with listening() as noise:
                            sample = limit.measure(work.batch, self.limit_seconds)
                        yield sample, noise()

                sample, noise, made = calmest(attempts(), self._may_repeat)
            name = work.workload.name
            self._add(
                Row(LIMIT, name, number, sample.rate, sample.cpu_ms, batch=work.batch, noise=noise, attempts=made)
            )

    def _target(self, target: Target, number: int) -> None:
        with running(target, self.models) as server:
            for work in self.work:
                requests = []
                for body in work.bodies:
                    path, content_type, sent = target.request(work.workload, body)
                    wire = http_request("127.0.0.1", server.port, path, content_type, sent)
                    requests.append(Request(wire, work.folder.parent.name))
                loop = Load(
                    ServerAddress("127.0.0.1", server.port), requests, self.connections, self.seconds, samples=SAMPLES
                )

                def attempts(server: Running = server, work: Bodies = work, loop: Load = loop) -> Iterator[Any]:
                    while True:
                        server.settle()
                        asked = Server(ServerAddress("127.0.0.1", server.port))
                        rows, runs = asked.runs(work.folder.parent.name)
                        cpu = cpu_seconds(server.pids())
                        with listening() as noise:
                            outcome = put_load(loop)
                        cpu = cpu_seconds(server.pids()) - cpu
                        after = asked.runs(work.folder.parent.name)
                        batch = (after[0] - rows) / (after[1] - runs) if after[1] > runs else None
                        yield (outcome, cpu, batch), noise()

                try:
                    (outcome, cpu, batch), noise, made = calmest(attempts(), self._may_repeat)
                except ClientFailed as error:
                    raise BenchmarkFailed(f"{target.name}, {work.workload.name}: {error}") from None
                self._add(
                    Row(
                        target.name,
                        work.workload.name,
                        number,
                        outcome.rate,
                        cpu / max(1, outcome.answers) * 1e3,
                        outcome.p50_ms,
                        outcome.p99_ms,
                        batch,
                        server.memory_mib(),
                        server.ready_s,
                        outcome.errors,
                        sum(not _is_right(body, work.expected[index]) for index, body in outcome.samples),
                        len(outcome.samples),
                        noise,
                        made,
                    )
                )

    def _may_repeat(self) -> bool:
        self._repeating_s += self.seconds + WARM_UP_S
        return self._repeating_s <= self._extra_s

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        noisy = "" if row.noise.is_quiet else f", others used {row.noise.total:.2f} cores"
        self.say(f"{row.round + 1}/{self.repeat}  {row.target:12} {row.workload}: {row.rate:.0f}/s{noisy}")


def _nobody(*_: Any) -> bytes:
    raise BenchmarkFailed("a workload of this benchmark asks the server first")


def _is_right(body: bytes, expected: Any) -> bool:
    try:
        return same_answer(expected, json.loads(body))
    except ValueError:
        return False


# -------------------------------------------------------------------------------------------------------------- report


def summaries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Medians over the rounds, by workload and target; `share` is of the mean of L1 in the same round."""
    limits: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.target == LIMIT:
            limits.setdefault((row.workload, row.round), []).append(row.rate)
    found = []
    for workload in dict.fromkeys(row.workload for row in rows):
        of_workload = [row for row in rows if row.workload == workload]
        for target in sorted(
            {row.target for row in of_workload}, key=lambda name: (name != LIMIT, name != "gridloop", name)
        ):
            mine = [row for row in of_workload if row.target == target]
            shares = [
                row.rate / statistics.mean(limits[workload, row.round])
                for row in mine
                if (workload, row.round) in limits
            ]
            errors: Counter[str] = Counter()
            for row in mine:
                errors.update(row.errors)
            found.append(
                {
                    "workload": workload,
                    "target": target,
                    **{
                        name: median([getattr(row, name) for row in mine])
                        for name in ("rate", "p50_ms", "p99_ms", "cpu_ms", "batch", "memory_mib", "ready_s")
                    },
                    "rate_range": [min(row.rate for row in mine), max(row.rate for row in mine)],
                    "share": median(shares),
                    "share_range": [min(shares), max(shares)] if shares else None,
                    "errors": dict(errors),
                    "wrong": sum(row.wrong for row in mine),
                    "checked": sum(row.checked for row in mine),
                    "noisiest_cores": max(row.noise.total for row in mine),
                }
            )
    return found


def print_report(report: Mapping[str, Any]) -> None:
    """The table, and what a reader must know beside it."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(box=None, header_style="bold")
    for name in ("workload", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("requests/s", "of L1", "p50 ms", "p99 ms", "rows/run", "CPU ms/request", "MiB", "ready s", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for row in report["results"]:
        if before not in (None, row["workload"]):
            table.add_section()
            table.add_row()
        failures = sum(row["errors"].values()) + row["wrong"]
        is_limit = row["target"] == LIMIT
        many = report["settings"]["repeat"] > 1
        table.add_row(
            row["workload"] if row["workload"] != before else "",
            f"[bold]{row['target']}[/]" if row["target"] == "gridloop" else row["target"],
            number(row["rate"], 0) + (" ({:.0f}–{:.0f})".format(*row["rate_range"]) if many else ""),
            ""
            if is_limit or row["share"] is None
            else number(row["share"], 2) + (" ({:.2f}–{:.2f})".format(*row["share_range"]) if many else ""),
            *("" if is_limit else number(row[key], 1) for key in ("p50_ms", "p99_ms")),
            number(row["batch"], 1),
            number(row["cpu_ms"], 2),
            *("" if is_limit else number(row[key], digits) for key, digits in (("memory_mib", 0), ("ready_s", 1))),
            "" if is_limit else f"[red]{failures}[/]" if failures else "0",
        )
        before = row["workload"]
    console.print(table)
    about, settings = report["machine"], report["settings"]
    facts = [
        "{connections} connections, {seconds:g} s, median of {repeat}".format(**settings),
        f"{about['cpu']}, {about['cores']} cores",
        f"Python {about['python']}, onnxruntime {about['onnxruntime']}, FastAPI {about['fastapi']}, uvicorn {about['uvicorn']}",
        f"commit {about['commit'][:12]}{'+' * about['commit'].endswith('+')}" if about["commit"] else "",
        report["date"],
    ]
    console.print("; ".join(filter(None, facts)), style="dim", highlight=False)
    for remark in remarks(report):
        console.print(remark, style="yellow", highlight=False)


def remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """What makes a number doubtful."""
    for row in report["results"]:
        where = f"{row['target']}, {row['workload']}"
        if row["errors"]:
            yield f"{where}: errors: " + ", ".join(f"{count} × {kind}" for kind, count in row["errors"].items())
        if row["wrong"]:
            yield f"{where}: {row['wrong']} of {row['checked']} answers compared were not those of L1"
    noisy = [row for row in report["results"] if row["noisiest_cores"] > QUIET_CORES]
    if noisy:
        most = max(row["noisiest_cores"] for row in noisy)
        yield (
            f"others used up to {most:.2f} cores during {len(noisy)} of {len(report['results'])} rows: "
            "compare CPU ms/request, which hardly moves with noise, or run again on a quiet machine"
        )


# ---------------------------------------------------------------------------------------------------------------- main


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; leaves with exit code 2 when it is wrong."""
    cores = cpu_budget().cores
    names = [target.name for target in targets(cores)]
    parser = options.parser(__doc__)
    option = parser.add_argument
    options.add_models(parser)
    option("--seconds", type=float, default=4.0, help="of each measurement, after a warm-up of 1 s (default: 4)")
    option("--connections", type=int, default=64, help="kept-alive connections (default: 64)")
    option("--repeat", type=int, default=3, help="rounds; medians are reported (default: 3)")
    option("--target", action="append", choices=names, help="only this one; may be given several times")
    option(
        "--json",
        type=Path,
        metavar="FILE",
        help="where to write everything (default: benchmarks/results/bench-DATE.json)",
    )
    settings = parser.parse_args(arguments)
    for name, low, high in (("seconds", 0.2, 600), ("connections", 1, 1024), ("repeat", 1, 20)):
        if not low <= getattr(settings, name) <= high:
            parser.error(f"--{name} must be {low:g} to {high:g}")
    for name in MODELS.values():
        if not any((settings.models / name).glob("[0-9]*/model.onnx")):
            parser.error(f"--models: {settings.models} has no version of {name}, which is measured here")
    settings.models, settings.cores = settings.models.resolve(), cores
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    options.leave_on_sigterm()
    progress = Console(stderr=True)
    now = datetime.now(UTC)
    chosen = [target for target in targets(settings.cores) if target.name in (settings.target or [target.name])]
    benchmark = Benchmark(
        settings.models,
        chosen,
        settings.connections,
        settings.seconds,
        settings.repeat,
        settings.cores,
        lambda text: progress.print(text, style="dim", highlight=False, soft_wrap=True),
    )
    about = {**machine(), "fastapi": version("fastapi"), "uvicorn": version("uvicorn")}
    try:
        benchmark.run()
    except BenchmarkFailed as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    report: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"),
        "machine": about,
        "settings": {
            **{name: getattr(settings, name) for name in ("connections", "seconds", "repeat", "cores")},
            "environment": environment(),
        },
        "results": summaries(benchmark.rows),
        "measurements": [asdict(row) for row in benchmark.rows],
    }
    print_report(report)
    file = settings.json or HERE / "results" / f"bench-{now:%Y%m%d-%H%M}.json"
    write_results(file, report)
    progress.print(f"written: {file}", style="dim", highlight=False)
    failures = sum(sum(row["errors"].values()) + row["wrong"] for row in report["results"])
    return 1 if failures or not all(row["rate"] for row in report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
