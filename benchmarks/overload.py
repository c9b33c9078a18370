"""What happens when more is asked than the machine can do: goodput from half to five times the peak, and probes meanwhile.

    python benchmarks/overload.py                               # some four minutes
    python benchmarks/overload.py --seconds 60                  # calmer, longer
    python benchmarks/overload.py --label before                # beside what was measured before, in the same plot
    python benchmarks/overload.py --label before --peak 60      # at the loads of another measurement
    python benchmarks/overload.py --factors 0.5,1,5 --seconds 5
    python benchmarks/overload.py --plot                        # draw again what was measured

The server is `python -m service serve` of the folder in which the command is given, with its defaults; `GRIDLOOP_` variables
reach it. Requests are series for the default model of anomaly detection: short ones of 16 points and long ones of 2,000, as
many of each, mixed at random. First a closed loop of 64 connections finds the *peak*: answers per second. Then requests
arrive by themselves (an open loop, a Poisson process) at each factor of it, whatever becomes of those before. Each has a
deadline, which the server is told (`X-Request-Timeout`). *Goodput* is the answers with status 200 that came within it,
counted from the moment at which they were to be sent. A request that finds all connections taken is counted as `unsent`.

Another process asks `/livez`, `/readyz` and `/metrics` all the while, over a new connection each time, as an orchestrator
does.

Everything is bounded: connections, time, answers; only a loopback address is put under load, and the server is stopped at
the end. Numbers go to benchmarks/results/overload.json, under the label, and a plot to docs/plots/overload.svg. Exit code 0
when goodput at every factor from 1 on was at least 90 % of the peak and no status was another than 200, 503 and 504;
1 otherwise; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import math
import multiprocessing
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed, options, plots
from measuring.machine import commit, machine
from measuring.servers import LocalServer, started
from measuring.tables import read_results, write_results
from measuring.workloads import series

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "overload.json"
PLOT = ROOT / "docs" / "plots" / "overload.svg"

PATH = "/v1/anomaly-detection"
POINTS = {"short": 16, "long": 2_000}
FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
PROBES = ("/livez", "/readyz", "/metrics")
PROBE_EVERY_S = 0.05
"""Between two probes (seconds)."""
PROBES_PER_SCRAPE = 10
"""One probe in so many is a scrape of the metrics (count)."""
CLOSED_CONNECTIONS = 64
"""Connections of the closed loop that finds the peak (count)."""
MAX_CONNECTIONS = 1_000
"""Connections that the open loop may have at a time (count)."""
MAX_SECONDS = 600.0
"""A tenth of what all loads together may last (seconds)."""
LATE_S = 1.0
"""A request without any answer so long after its deadline is given up, with its connection (seconds)."""
REST_S = 1.0
"""Between two loads (seconds)."""


# ------------------------------------------------------------------------------------------------------------- requests


class Caller(asyncio.Protocol):
    """A kept-alive connection that has at most one request on its way."""

    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        self._received = b""
        self._expected = 0
        self.transport: asyncio.Transport | None = None
        self.kind: str | None = None
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, kind: str, due: float, message: bytes) -> None:
        """Send a request that was to be sent at `due`."""
        assert self.transport is not None
        self.kind, self.due = kind, due
        self._received, self._expected = b"", 0
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._expected:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._received[:end].lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._expected = end + 4 + int(length or 0)
        if len(self._received) >= self._expected and self.kind is not None:
            kind, self.kind = self.kind, None
            self._load.answered(self, kind, self.due, self._received[9:12].decode("latin-1"))

    def connection_lost(self, error: Exception | None) -> None:
        kind, self.kind = self.kind, None
        self._load.lost(self, kind)


class OpenLoad:
    """Requests of both kinds against a server, and what became of them.

    Args:
        server: on a loopback address.
        bodies: by kind, sent in turn.
        deadline_s: of each request.
    """

    def __init__(self, server: LocalServer, bodies: Mapping[str, Sequence[bytes]], deadline_s: float) -> None:
        self._server, self._deadline_s = server, deadline_s
        self._messages = {
            kind: [
                (
                    f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    f"X-Request-Timeout: {deadline_s:g}\r\nContent-Length: {len(body)}\r\n\r\n"
                ).encode()
                + body
                for body in some
            ]
            for kind, some in bodies.items()
        }
        self._turn = Counter[str]()
        self._free: deque[Caller] = deque()
        self._out: list[tuple[float, int, Caller]] = []
        self._open = 0
        self._until = 0.0  # answers that come later are not counted
        self._closed_loop = False
        self._random = random.Random(0)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.good_s: dict[str, list[float]] = {kind: [] for kind in bodies}
        self.sent: Counter[str] = Counter()
        self.lag_s = 0.0

    async def _connect(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, caller = await loop.create_connection(lambda: Caller(self), self._server.host, self._server.port)
            self._open += 1
            self._free.append(caller)

    def _send(self, kind: str, due: float, now: float) -> None:
        if not self._free:
            self.outcomes[kind, "unsent"] += 1
            return
        some = self._messages[kind]
        self._turn[kind] += 1
        caller = self._free.pop()
        heapq.heappush(self._out, (due + self._deadline_s + LATE_S, id(caller), caller))
        self.lag_s = max(self.lag_s, now - due)
        self.sent[kind] += 1
        caller.send(kind, due, some[self._turn[kind] % len(some)])

    def _any_kind(self) -> str:
        return self._random.choice(list(self._messages))

    def answered(self, caller: Caller, kind: str, due: float, status: str) -> None:
        """Count an answer, and use its connection again."""
        now = time.perf_counter()
        if status == "200" and now - due <= self._deadline_s:
            self.good_s[kind].append(now - due)
            self.outcomes[kind, "good"] += 1
        else:
            self.outcomes[kind, "late" if status == "200" else status] += 1
        self._free.append(caller)
        if self._closed_loop and now < self._until:
            self._send(self._any_kind(), now, now)

    def lost(self, caller: Caller, kind: str | None) -> None:
        """Count a connection that was closed, by either side."""
        self._open -= 1
        if kind is not None:
            self.outcomes[kind, "lost"] += 1
        elif caller in self._free:
            self._free.remove(caller)

    async def closed(self, seconds: float, connections: int) -> float:
        """Answers per second of callers who ask again as soon as they are answered."""
        await self._connect(connections)
        self._closed_loop = True
        begun = time.perf_counter()
        self._until = begun + seconds
        for _ in range(connections):
            self._send(self._any_kind(), begun, begun)
        await asyncio.sleep(seconds)
        good = sum(map(len, self.good_s.values()))
        await self._end()
        return good / seconds

    async def open(self, rate: float, seconds: float, connections: int) -> None:
        """Requests at `rate` per second, whatever becomes of them."""
        await self._connect(connections)
        begun = time.perf_counter()
        due, made = begun + self._random.expovariate(rate), 0
        while due < begun + seconds:
            now = time.perf_counter()
            while due <= now and due < begun + seconds:
                self._send(self._any_kind(), due, now)
                due += self._random.expovariate(rate)
                made += 1
            self._give_up(now)
            missing = min(connections - self._open, 16)
            if missing > 0:
                await self._connect(missing)
            await asyncio.sleep(max(0.0, min(due - time.perf_counter(), 0.01)))
        await self._end()

    def _give_up(self, now: float) -> None:
        """Close connections whose answer is overdue."""
        while self._out and self._out[0][0] <= now:
            until, _, caller = heapq.heappop(self._out)
            if caller.kind is not None and caller.due + self._deadline_s + LATE_S <= until and caller.transport:
                self.outcomes[caller.kind, "unanswered"] += 1
                caller.kind = None
                caller.transport.abort()

    async def _end(self) -> None:
        """Wait for what is on its way, and close."""
        end = time.perf_counter() + self._deadline_s + LATE_S + 0.1
        while any(caller.kind is not None for _, _, caller in self._out) and (now := time.perf_counter()) < end:
            self._give_up(now)
            await asyncio.sleep(0.01)
        self._give_up(math.inf)
        for caller in list(self._free):
            if caller.transport:
                caller.transport.abort()
        await asyncio.sleep(0)


# --------------------------------------------------------------------------------------------------------------- probes


def probe(pipe: Connection, host: str, port: int) -> None:
    """Ask one probe after another until told to stop; then hand over how long each took (seconds; infinite: failed)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    taken: dict[str, list[float]] = {path: [] for path in PROBES}
    count = 0
    server = LocalServer(host, port)
    while not pipe.poll(PROBE_EVERY_S):
        count += 1
        path = PROBES[2] if count % PROBES_PER_SCRAPE == 0 else PROBES[count % 2]
        begun = time.perf_counter()
        try:
            server.ask(path)
        except BenchmarkFailed:
            taken[path].append(math.inf)
        else:
            taken[path].append(time.perf_counter() - begun)
    pipe.send(taken)


# --------------------------------------------------------------------------------------------------------- measurements


def rank(values: Sequence[float], share: float) -> float | None:
    """Nearest rank, in milliseconds; None of nothing, or where it is a probe that failed."""
    if not values:
        return None
    value = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    return None if math.isinf(value) else round(value * 1e3, 1)


def measure(
    server: LocalServer, bodies: Mapping[str, Sequence[bytes]], factor: float, rate: float, settings: Any
) -> Any:
    """What becomes of requests at one rate, and of probes meanwhile."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=probe, args=(theirs, server.host, server.port), daemon=True)
    child.start()
    run = OpenLoad(server, bodies, settings.deadline)
    try:
        asyncio.run(run.open(rate, settings.seconds, settings.connections))
        ours.send(None)
        taken: dict[str, list[float]] = ours.recv() if ours.poll(30) else {path: [math.inf] for path in PROBES}
    finally:
        child.join(5)
        if child.is_alive():
            child.kill()
    point: dict[str, Any] = {"factor": factor, "offered_per_s": round(rate, 1), "client_lag_ms": round(run.lag_s * 1e3)}
    for kind, times in run.good_s.items():
        point[kind] = {
            "good_per_s": round(len(times) / settings.seconds, 1),
            "p50_ms": rank(times, 0.5),
            "p99_ms": rank(times, 0.99),
            "outcomes": {what: count for (of, what), count in sorted(run.outcomes.items()) if of == kind},
        }
    point["good_per_s"] = round(sum(map(len, run.good_s.values())) / settings.seconds, 1)
    point["probes"] = {
        path: {
            "count": len(times),
            "failed": sum(map(math.isinf, times)),
            "p50_ms": rank(times, 0.5),
            "p99_ms": rank(times, 0.99),
        }
        for path, times in taken.items()
    }
    return point


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """All loads against one server, with what it is measured on."""
    bodies = {
        kind: [json.dumps({"values": values}).encode() for values in series(points)] for kind, points in POINTS.items()
    }
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "commit": commit(),
        "settings": {
            "seconds": settings.seconds,
            "deadline_s": settings.deadline,
            "connections": settings.connections,
            "points": POINTS,
        },
        "points": [],
    }
    with started(settings.models, settings.workers) as server:
        warm_up = OpenLoad(server, bodies, 30.0)
        asyncio.run(warm_up.closed(min(2.0, settings.seconds / 2), CLOSED_CONNECTIONS))
        if settings.peak is None:
            peak = OpenLoad(server, bodies, 30.0)
            settings.peak = round(asyncio.run(peak.closed(min(10.0, settings.seconds), CLOSED_CONNECTIONS)), 1)
            print(f"peak: {settings.peak:g} answers/s in a closed loop of {CLOSED_CONNECTIONS} connections")
        report["peak_per_s"] = settings.peak
        for factor in settings.factors:
            time.sleep(REST_S)
            point = measure(server, bodies, factor, factor * report["peak_per_s"], settings)
            report["points"].append(point)
            print(line(point), flush=True)
    return report


def line(point: Mapping[str, Any]) -> str:
    """A point as a line of text."""
    kinds = "; ".join(
        f"{kind} {point[kind]['good_per_s']:g}/s, p50 {point[kind]['p50_ms']} ms, {point[kind]['outcomes']}"
        for kind in POINTS
    )
    probes = ", ".join(f"{path} {told['p99_ms']} ms" for path, told in point["probes"].items())
    return f"{point['factor']:g}×: {point['good_per_s']:g} good/s ({kinds}); probes' p99: {probes}"


def shortcomings(report: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, as sentences."""
    peak, found = report["peak_per_s"], []
    for point in report["points"]:
        if point["factor"] >= 1 and point["good_per_s"] < 0.9 * peak:
            found.append(f"at {point['factor']:g}× goodput is {point['good_per_s'] / peak:.0%} of the peak")
        known = {"good", "late", "503", "504", "unsent"}
        if others := {what for kind in POINTS for what in point[kind]["outcomes"]} - known:
            found.append(f"at {point['factor']:g}× some requests ended otherwise: {', '.join(sorted(others))}")
    return found


# ----------------------------------------------------------------------------------------------------------------- plot

INK = "#7a7a7a"
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def plot(measured: Mapping[str, Any], file: Path) -> None:
    """Goodput, by kind, and the probes' p99 over the offered load, a colour for each label; as SVG."""
    with plots.drawing("overload", INK) as plt:
        figure, panels = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
        for colour, (label, report) in zip(COLOURS, measured.items(), strict=False):
            points = report["points"]
            xs = [point["factor"] for point in points]
            for kind, dash in (("short", "--"), ("long", ":")):
                ys = [100 * point[kind]["good_per_s"] / (report["peak_per_s"] / 2) for point in points]
                panels[0].plot(xs, ys, dash, color=colour, marker=".", linewidth=1, label=f"{label}, {kind}")
            ys = [100 * point["good_per_s"] / report["peak_per_s"] for point in points]
            panels[0].plot(xs, ys, "-", color=colour, marker="o", markersize=4, label=f"{label}, all")
            for path, dash in zip(PROBES, ("-", "--", ":"), strict=True):
                ys = [point["probes"][path]["p99_ms"] or math.nan for point in points]
                panels[1].plot(xs, ys, dash, color=colour, marker=".", linewidth=1, label=f"{label}, {path}")
        panels[0].set(xlabel="offered load, of the peak", ylabel="answers within the deadline, % of the peak", ylim=0)
        panels[1].set(xlabel="offered load, of the peak", ylabel="probes, p99 (ms)", yscale="log")
        panels[1].axhline(100, color=INK, linewidth=0.8)
        for panel in panels:
            panel.grid(True)
            panel.legend(fontsize=8)
        plots.save(figure, file)


# ----------------------------------------------------------------------------------------------------------------- main


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser(__doc__)
    option = parser.add_argument
    option("--seconds", type=float, default=20.0, help="time of each load (default: 20)")
    option("--deadline", type=float, default=2.0, help="of each request, in seconds (default: 2)")
    option("--factors", default=",".join(f"{f:g}" for f in FACTORS), help="of the peak (default: %(default)s)")
    option(
        "--peak", type=float, help="answers per second, to compare two servers at the same loads (default: measured)"
    )
    option("--connections", type=int, default=MAX_CONNECTIONS, help=f"at most (default: {MAX_CONNECTIONS})")
    option("--label", default="after", help="name of this measurement in the file and the plot (default: after)")
    options.add_models(parser)
    option("--workers", type=int, default=0, help="of the server (default: 0, by the cores)")
    option("--json", type=Path, default=RESULTS, metavar="FILE", help=f"numbers (default: {RESULTS.name} in results/)")
    option("--svg", type=Path, default=PLOT, metavar="FILE", help="plot (default: docs/plots/overload.svg)")
    option("--plot", action="store_true", help="measure nothing: draw what was measured before")
    settings = parser.parse_args(arguments)
    try:
        settings.factors = [float(factor) for factor in settings.factors.split(",")]
    except ValueError:
        parser.error("--factors must be numbers with commas between them")
    if not all(0 < factor <= 10 for factor in settings.factors):
        parser.error("--factors must be above 0 and at most 10")
    if not (settings.seconds >= 0.5 and settings.seconds * len(settings.factors) <= 10 * MAX_SECONDS):
        parser.error("--seconds must be at least 0.5, and all loads together an hour and 40 minutes at most")
    if settings.peak is not None and not 0.1 <= settings.peak <= 10_000:
        parser.error("--peak must be 0.1 to 10,000")
    if not 0.05 <= settings.deadline <= 60:
        parser.error("--deadline must be 0.05 to 60")
    if not 1 <= settings.connections <= MAX_CONNECTIONS:
        parser.error(f"--connections must be 1 to {MAX_CONNECTIONS}")
    settings.models = settings.models.resolve()
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    options.leave_on_sigterm()
    measured: dict[str, Any] = read_results(settings.json)
    found: list[str] = []
    if not settings.plot:
        try:
            measured[settings.label] = run(settings)
        except BenchmarkFailed as error:
            print(f"overload.py: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 1
        write_results(settings.json, measured)
        found = shortcomings(measured[settings.label])
    if not options.has_matplotlib():
        print("the plot needs matplotlib: python -m pip install matplotlib", file=sys.stderr)
    else:
        plot(measured, settings.svg)
    for sentence in found:
        print(sentence)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
