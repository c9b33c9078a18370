"""Load benchmark: requests per second and latency of every endpoint, beside what the same work costs without HTTP.

    python benchmarks/load.py --models models                          # 64 connections, 20 seconds per endpoint
    python benchmarks/load.py --models models --connections 1          # latency of a lone request
    python benchmarks/load.py --models models --repeat 3 --json results.json
    python benchmarks/load.py --url http://127.0.0.1:8000 --models models --task anomaly-detection

It starts `gridloop serve` itself (unless `--url` names a server on this machine), loads each endpoint whose task has a
model, and stops the server. benchmarks/README.md says how every number is measured and what it does not tell.

Exit code 0 when every answer was right, 1 when one was not or the server failed, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import itertools
import json
import math
import statistics
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed, options
from measuring.answers import same_answer, wrong_among
from measuring.limit import BATCHES, Limit, LimitSample
from measuring.machine import busy_seconds, cpu_seconds, machine, own_seconds
from measuring.servers import LocalServer, started
from measuring.tables import environment, median, number, write_results
from measuring.workloads import BODIES, WORKLOADS, Workload
from rich.console import Console
from rich.table import Table

from service.client.http import ServerAddress, http_request
from service.client.load import Load, LoadResult, Request
from service.client.process import put_load
from service.settings import Settings
from service.tasks import discover

SAMPLES = 400
"""Answers of one run whose content is compared, drawn evenly from all of them (count)."""

GRACE_S = 10.0
"""Time for the requests in flight when a run ends; whoever still waits then counts as an error (seconds)."""


# --------------------------------------------------------------------------------------------------------- measurements


@dataclass
class Measurement:
    """One endpoint, measured once.

    Attributes:
        outcome: what the client saw.
        checked: answers whose content was compared.
        wrong: of these, those that differ from the answer which the same request got alone.
        batch_rows: mean rows of the model's runs meanwhile.
        limits: the in-process limit just before and just after.
        server_cpu_ms: CPU time of the server per answer, where it was started here.
        other_cores: used by everything else on the machine meanwhile: noise.
    """

    outcome: LoadResult
    checked: int
    wrong: int
    batch_rows: float | None
    limits: list[LimitSample]
    server_cpu_ms: float | None
    other_cores: float | None

    @property
    def failures(self) -> int:
        """Errors and wrong answers."""
        return self.outcome.failures + self.wrong

    @property
    def limit_rate(self) -> float | None:
        """The limit: the mean of both sides."""
        return statistics.mean(sample.rate for sample in self.limits) if self.limits else None

    @property
    def share(self) -> float | None:
        """What of the limit the server reaches."""
        return self.outcome.rate / self.limit_rate if self.limit_rate else None


@dataclass
class Endpoint:
    """An endpoint and all its measurements.

    Attributes:
        workload: what is sent.
        bodies: the same, made.
        requests: the same, as they go over the wire.
        expected: answer to each body, got alone.
        model: `name@version` that answers.
        distinct: how many of the answers differ from each other; a mix-up of equal ones cannot be noticed.
        limit_batch: rows with which the in-process limit is fastest.
        note: why there is no limit.
        measurements: one per repeat.
    """

    workload: Workload
    bodies: list[bytes]
    requests: list[Request]
    expected: list[Any]
    model: str
    distinct: int
    limit_batch: int | None = None
    note: str | None = None
    measurements: list[Measurement] = field(default_factory=list)


def prepare(server: LocalServer, workload: Workload) -> Endpoint:
    """Make the bodies and get the answer to each, alone."""
    bodies = workload.bodies(server.ask)
    address = (server.host, server.port, workload.path, workload.content_type)
    requests = [Request(http_request(*address, body)) for body in bodies]
    expected = [json.loads(server.ask(workload.path, workload.content_type, body)) for body in bodies]
    different: list[Any] = []
    for answer in expected:
        if not any(same_answer(answer, other) for other in different):
            different.append(answer)
    model = "{name}@{version}".format(**expected[0]["model"])
    return Endpoint(workload, bodies, requests, expected, model, len(different))


def measure(server: LocalServer, endpoint: Endpoint, settings: argparse.Namespace) -> Measurement:
    """The limit, the server, the limit again, so that noise hits both."""
    limit = open_limit(endpoint, settings)
    limit_seconds = min(5.0, max(0.3, settings.seconds / 4))
    samples: list[LimitSample] = []
    try:
        if limit:
            if endpoint.limit_batch is None:
                trial_s = min(1.0, max(0.2, settings.seconds / 20))
                batches = BATCHES if settings.connections > 1 else (1,)
                endpoint.limit_batch = max(batches, key=lambda batch: limit.measure(batch, trial_s).rate)
            samples.append(limit.measure(endpoint.limit_batch, limit_seconds))
        measurement = measure_load(server, endpoint, settings)
        if limit and endpoint.limit_batch:
            samples.append(limit.measure(endpoint.limit_batch, limit_seconds))
    finally:
        if limit:
            limit.close()
    measurement.limits = samples
    return measurement


def open_limit(endpoint: Endpoint, settings: argparse.Namespace) -> Limit | None:
    """The endpoint's in-process limit; None where the model's folder is not at hand.

    Raises:
        BenchmarkFailed: it answers otherwise than the server, so that the two cannot be compared.
    """
    if settings.no_limit:
        return None
    name, _, version = endpoint.model.partition("@")
    folder = settings.models / name / version
    if not any(folder.glob("*.onnx")):
        endpoint.note = f"{name}/{version} is not in the folder --models names: no in-process limit"
        return None
    limit = Limit(settings.limit_processes, folder, endpoint.workload, endpoint.bodies)
    if not all(map(same_answer, endpoint.expected, limit.answers)):
        limit.close()
        raise BenchmarkFailed(f"{endpoint.workload.name}: the server's answers are not those of the model in process")
    return limit


def measure_load(server: LocalServer, endpoint: Endpoint, settings: argparse.Namespace) -> Measurement:
    """Load one endpoint once."""
    load = Load(
        ServerAddress(server.host, server.port),
        endpoint.requests,
        settings.connections,
        settings.seconds,
        warm_up_s=min(2.0, settings.seconds / 5),
        grace_s=GRACE_S,
        samples=SAMPLES,
    )
    model = endpoint.model.partition("@")[0]
    pids = server.pids()
    rows, runs = server.batches(model)
    wall, cpu, others = time.perf_counter(), cpu_seconds(pids), busy_seconds() - own_seconds()
    outcome = put_load(load)
    wall, cpu = time.perf_counter() - wall, cpu_seconds(pids) - cpu
    others = busy_seconds() - own_seconds() - others
    rows, runs = (after - before for after, before in zip(server.batches(model), (rows, runs), strict=True))
    return Measurement(
        replace(outcome, samples=()),
        len(outcome.samples),
        wrong_among(outcome.samples, endpoint.expected),
        rows / runs if runs else None,
        [],
        cpu / outcome.answers * 1e3 if pids and outcome.answers else None,
        max(0.0, others / wall) if pids and not math.isnan(others) else None,
    )


# --------------------------------------------------------------------------------------------------------------- report


def summary(endpoint: Endpoint) -> dict[str, Any]:
    """Medians of an endpoint's measurements, the lowest and highest rate and share, and the measurements themselves."""
    all_ = endpoint.measurements
    rates, shares = [m.outcome.rate for m in all_], [m.share for m in all_ if m.share is not None]
    errors: Counter[str] = Counter()
    for m in all_:
        errors.update(m.outcome.errors)
    return {
        "endpoint": endpoint.workload.name,
        "task": endpoint.workload.task,
        "model": endpoint.model,
        "body_bytes": round(statistics.mean(map(len, endpoint.bodies))),
        "distinct_answers": endpoint.distinct,
        "rate": median(rates),
        "rate_range": [min(rates), max(rates)],
        "requests": sum(m.outcome.requests for m in all_),
        "errors": dict(errors),
        "checked": sum(m.checked for m in all_),
        "wrong": sum(m.wrong for m in all_),
        **{key: median([getattr(m.outcome, key) for m in all_]) for key in ("p50_ms", "p95_ms", "p99_ms")},
        "batch_rows": median([m.batch_rows for m in all_]),
        "limit_rate": median([m.limit_rate for m in all_]),
        "limit_batch": endpoint.limit_batch,
        "limit_batch_ms": median([sample.batch_ms for m in all_ for sample in m.limits]),
        "limit_cpu_ms": median([sample.cpu_ms for m in all_ for sample in m.limits]),
        "share": median(shares),
        "share_range": [min(shares), max(shares)] if shares else None,
        "server_cpu_ms": median([m.server_cpu_ms for m in all_]),
        "client_cores": median([m.outcome.client_cores for m in all_]),
        "other_cores": median([m.other_cores for m in all_]),
        "note": endpoint.note,
        "measurements": [asdict(m) for m in all_],
    }


def print_report(report: Mapping[str, Any]) -> None:
    """The table, and what a reader must know beside it."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    settings, about, server = report["settings"], report["machine"], report["server"]
    alone = settings["connections"] == 1
    table = Table(
        "endpoint",
        "model",
        *("requests/s", "errors", "p50 ms", "p95 ms", "p99 ms", "rows/run"),
        "in process ms" if alone else "limit/s (batch)",
        *(() if alone else ("of limit",)),
        "CPU ms/request (limit)",
        box=None,
        header_style="bold",
    )
    for column in table.columns[2:]:
        column.justify = "right"
    repeated = settings["repeat"] > 1
    for row in report["results"]:
        failures = sum(row["errors"].values()) + row["wrong"]
        rate = number(row["rate"], 0) + (" ({:.0f}–{:.0f})".format(*row["rate_range"]) if repeated else "")
        spread = " ({:.2f}–{:.2f})".format(*row["share_range"]) if repeated and row["share_range"] else ""
        limit = f"{number(row['limit_rate'], 0)} ({row['limit_batch']})" if row["limit_batch"] else "–"
        table.add_row(
            row["endpoint"],
            row["model"],
            rate,
            f"[red]{failures}[/]" if failures else "0",
            *(number(row[key], 2) for key in ("p50_ms", "p95_ms", "p99_ms")),
            number(row["batch_rows"], 1),
            number(row["limit_batch_ms"], 2) if alone else limit,
            *(() if alone else (number(row["share"], 2) + spread,)),
            f"{number(row['server_cpu_ms'], 2)} ({number(row['limit_cpu_ms'], 2)})",
        )
    console.print(table)
    facts = [
        "{connections} connections, {seconds:g} s per endpoint, {repeat} repeat(s)".format(**settings),
        f"{settings['workers'] or '?'} workers",
        f"ready after {number(server['ready_s'], 2)} s" if server["ready_s"] else "",
        "memory {} MiB, one worker {} MiB".format(*(number(server[k], 0) for k in ("total_mib", "worker_mib"))),
        f"{about['cpu']}, {about['cores']} cores",
        f"Python {about['python']}, onnxruntime {about['onnxruntime']}",
        f"commit {about['commit'][:12]}{'+' * about['commit'].endswith('+')}" if about["commit"] else "",
        report["date"],
    ]
    console.print("; ".join(fact for fact in facts if fact), style="dim", highlight=False)
    for remark in remarks(report):
        console.print(remark, style="yellow", highlight=False)


def remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """What makes a number doubtful."""
    for row in report["results"]:
        name = row["endpoint"]
        if not row["requests"]:
            yield f"{name}: not a single request was answered with 200"
        if row["errors"]:
            yield f"{name}: errors: " + ", ".join(f"{count} × {kind}" for kind, count in row["errors"].items())
        if row["wrong"]:
            yield f"{name}: {row['wrong']} of {row['checked']} answers compared were not the request's own"
        if row["distinct_answers"] < BODIES:
            yield f"{name}: only {row['distinct_answers']} of {BODIES} answers differ: some mix-ups would go unnoticed"
        if (row["other_cores"] or 0) > 0.15:
            yield f"{name}: others used {row['other_cores']:.1f} cores meanwhile: compare the CPU times"
        if row["note"]:
            yield f"{name}: {row['note']}"


# ----------------------------------------------------------------------------------------------------------------- main


def loopback(url: str) -> tuple[str, int]:
    """Host and port of a server on this machine.

    Raises:
        ValueError: it is elsewhere, or no `http://host:port`.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not host or parts.path.strip("/") or parts.query:
        raise ValueError(f"{url!r} is not http://host:port")
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ValueError(f"{host} is not this machine: only loopback addresses are put under load")
    return "127.0.0.1" if host == "localhost" else host, parts.port or 80


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; leaves with exit code 2 when it is wrong."""

    def address(text: str) -> tuple[str, int]:
        try:
            return loopback(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = options.parser(__doc__)
    options.add_models(parser)
    option = parser.add_argument
    option(
        "--seconds", type=options.bounded(float, 0.5, 600), default=20.0, help="timed part of each run (default: 20)"
    )
    option("--connections", type=options.bounded(int, 1, 1024), default=64, help="kept-alive connections (default: 64)")
    option(
        "--repeat", type=options.bounded(int, 1, 20), default=1, help="rounds over all endpoints; medians are reported"
    )
    option("--task", action="append", choices=list(discover()), help="only this task; may be given several times")
    option(
        "--workers",
        type=options.bounded(int, 0, 128),
        default=0,
        help="server processes (default: as the server chooses)",
    )
    option("--url", type=address, help="a server that runs already, on a loopback address")
    option("--no-limit", action="store_true", help="leave the in-process limit out")
    option("--json", type=Path, metavar="FILE", help="write everything that was measured")
    settings = parser.parse_args(arguments)
    if not settings.models.is_dir() and not settings.url:
        parser.error(f"--models: there is no folder {settings.models}")
    settings.models = settings.models.resolve()
    try:
        plan = Settings(workers=settings.workers).plan() if settings.workers else Settings().plan()
    except ValueError as error:
        parser.error(f"a GRIDLOOP_ variable is wrong: {error}")
    settings.workers = settings.workers or plan.workers
    settings.limit_processes = plan.workers if settings.connections > 1 else 1
    return settings


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """Measure every endpoint that is served; endpoints take turns in each repeat.

    Raises:
        BenchmarkFailed: nothing can be measured.
    """
    progress = Console(stderr=True)
    about = machine()
    place: contextlib.AbstractContextManager[LocalServer]
    if settings.url:
        place = contextlib.nullcontext(LocalServer(*settings.url))
    else:
        place = started(settings.models, settings.workers)
    with place as server:
        served = server.tasks()
        chosen = [w for w in WORKLOADS if w.task in served and w.task in (settings.task or served)]
        if not chosen:
            raise BenchmarkFailed(f"no model is ready for {', '.join(settings.task or ['any task measured here'])}")
        skipped = sorted({w.task for w in WORKLOADS} - {w.task for w in chosen})
        if skipped:
            progress.print(f"not measured: {', '.join(skipped)}", style="dim", highlight=False)
        endpoints = [prepare(server, workload) for workload in chosen]
        for repeat, endpoint in itertools.product(range(settings.repeat), endpoints):
            with progress.status(f"{repeat + 1}/{settings.repeat}  {endpoint.workload.name}"):
                endpoint.measurements.append(measure(server, endpoint, settings))
            last = endpoint.measurements[-1]
            progress.print(
                f"{repeat + 1}/{settings.repeat}  {endpoint.workload.name}: {last.outcome.rate:.0f} requests/s, "
                f"{last.failures} failures",
                style="dim",
                highlight=False,
            )
        facts = {"ready_s": server.ready_s, **server.memory()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about,
        "settings": {
            "connections": settings.connections,
            "seconds": settings.seconds,
            "repeat": settings.repeat,
            "workers": None if settings.url else settings.workers,
            "limit_processes": settings.limit_processes,
            "started_here": not settings.url,
            "environment": environment(),
        },
        "server": facts,
        "results": [summary(endpoint) for endpoint in endpoints],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    options.leave_on_sigterm()
    try:
        report = run(settings)
    except BenchmarkFailed as error:
        print(f"load.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    print_report(report)
    if settings.json:
        write_results(settings.json, report)
    failures = sum(sum(row["errors"].values()) + row["wrong"] for row in report["results"])
    return 1 if failures or not all(row["requests"] for row in report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
