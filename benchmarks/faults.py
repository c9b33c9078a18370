"""What clients notice of it when workers are killed or stopped, and when the server ends, under load.

    python benchmarks/faults.py                       # some two minutes
    python benchmarks/faults.py --kills 3 --every 1   # a first look

Starts `gridloop serve` of this checkout on a free port of 127.0.0.1 with two workers or more, and 16 clients that keep
their connections and send short and long series one after another. They never repeat a request: one that gets no answer
is counted as lost.

1. *Kills*: a worker gets SIGKILL, ten times. What it had begun is lost, and nothing else should be.
2. *Stop*: a worker gets SIGSTOP, as one that waits for a disk for ever.
3. *Drain*: the server gets SIGTERM, with a time of grace, and again without. Connections that it refuses after its port
   is closed are counted beside: nothing was sent over them.

Numbers go to benchmarks/results/faults.json. Exit code 1 when a client was answered by anything but 200 and 503, when
more was lost than there were clients for each kill, or anything at all while the server drained; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed, options
from measuring.machine import WORKER, machine, process_name
from measuring.servers import LocalServer, started
from measuring.tables import write_results
from measuring.workloads import series

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"

CLIENTS = 16
POINTS = (16, 2_000)
"""Of the series, in turn: a millisecond's work and some twenty."""
ANSWER_TIMEOUT_S = 60.0
REPLACED_WITHIN_S = 60.0
LOOK_S = 0.005
"""Between two looks at the server's processes (seconds)."""


class Clients:
    """Closed loops over kept-alive connections; what became of their requests is counted.

    Attributes:
        outcomes: of the requests, by status; `lost`: sent, and never answered; `refused`: no connection, nothing sent.
        slowest_s: time of the slowest answer.
    """

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._messages = [_message(body) for points in POINTS for body in _bodies(points)]
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.is_over = False

    async def run(self) -> None:
        """Send until `is_over`, or until the server takes no connection any more."""
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        place = number
        while not self.is_over:
            try:
                reader, writer = await asyncio.open_connection(self._server.host, self._server.port)
            except OSError:
                self.outcomes["refused"] += 1
                await asyncio.sleep(0.05)
                continue
            with contextlib.suppress(OSError):
                closes = False
                while not (self.is_over or closes):
                    place += 1
                    closes = await self._exchange(reader, writer, self._messages[place % len(self._messages)])
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bool:
        """Send a request and await its answer; says whether the server closes the connection after it."""
        begun = time.perf_counter()
        try:
            writer.write(message)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.outcomes["lost"] += 1
            return True
        self.outcomes[head[9:12].decode()] += 1
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)
        return b"connection: close" in head

    def report(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {"outcomes": dict(sorted(self.outcomes.items())), "slowest_answer_ms": round(1e3 * self.slowest_s, 1)}


def _bodies(points: int) -> list[bytes]:
    return [json.dumps({"values": values}).encode() for values in series(points)[:8]]


def _message(body: bytes) -> bytes:
    head = "POST /v1/anomaly-detection HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def workers_of(server: LocalServer) -> list[int]:
    """The processes that answer."""
    assert server.process is not None
    found = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(pid) for pid in found if process_name(int(pid)) == WORKER]


async def until_replaced(server: LocalServer, victim: int, count: int) -> float:
    """Time until a worker is gone and there are as many as before (seconds).

    Raises:
        BenchmarkFailed: that takes too long.
    """
    begun = time.perf_counter()
    while victim in (now := workers_of(server)) or len(now) < count:
        if time.perf_counter() - begun > REPLACED_WITHIN_S:
            raise BenchmarkFailed(f"worker {victim} was not replaced within {REPLACED_WITHIN_S:g} s")
        await asyncio.sleep(LOOK_S)
    return time.perf_counter() - begun


async def under_load(server: LocalServer, fault: Any) -> tuple[dict[str, Any], Any]:
    """What clients see while a fault happens, and what it gives."""
    clients = Clients(server)
    load_ = asyncio.create_task(clients.run())
    await asyncio.sleep(1.0)
    try:
        seen = await fault()
        await asyncio.sleep(1.0)
    finally:
        clients.is_over = True
        await load_
    return clients.report(), seen


async def kills(server: LocalServer, count: int, every_s: float, workers: int) -> list[float]:
    """Kill workers, the one that was started first each time; the times until they are replaced."""
    taken = []
    for _ in range(count):
        victim = workers_of(server)[0]
        os.kill(victim, signal.SIGKILL)
        taken.append(await until_replaced(server, victim, workers))
        await asyncio.sleep(every_s)
    return taken


async def stop_one(server: LocalServer, workers: int) -> float:
    """Stop a worker for ever; the time until it is replaced."""
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGSTOP)
    return await until_replaced(server, victim, workers)


async def drain(server: LocalServer) -> float:
    """Tell the server to end; the time until it has (seconds)."""
    assert server.process is not None
    begun = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(server.process.wait, REPLACED_WITHIN_S)
    return time.perf_counter() - begun


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """All three faults."""
    found: dict[str, Any] = {}
    with started(settings.models, settings.workers) as server:
        seen, taken = asyncio.run(
            under_load(server, lambda: kills(server, settings.kills, settings.every, settings.workers))
        )
        replaced = {"median": round(1e3 * statistics.median(taken), 1), "slowest": round(1e3 * max(taken), 1)}
        found["kills"] = {"count": len(taken), "replaced_after_ms": replaced, **seen}
        seen, stopped_s = asyncio.run(under_load(server, lambda: stop_one(server, settings.workers)))
        found["stop"] = {"replaced_after_s": round(stopped_s, 2), **seen}
    for grace_s in (2, 0):
        os.environ["GRIDLOOP_DRAIN_GRACE_S"] = str(grace_s)
        with started(settings.models, settings.workers) as server:
            seen, took_s = asyncio.run(under_load(server, lambda server=server: drain(server)))
        found[f"drain, grace of {grace_s} s"] = {"ended_after_s": round(took_s, 2), **seen}
    return found


def shortcomings(found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, as sentences."""
    said = []
    for name, part in found.items():
        outcomes = part["outcomes"]
        if others := set(outcomes) - {"200", "503", "lost", "refused"}:
            said.append(f"{name}: some were answered {', '.join(sorted(others))}")
        allowed = CLIENTS * part.get("count", 1) if name in ("kills", "stop") else 0
        if outcomes.get("lost", 0) > allowed:
            said.append(f"{name}: {outcomes['lost']} requests were lost, at most {allowed} may be")
        if name in ("kills", "stop") and outcomes.get("refused"):
            said.append(f"{name}: {outcomes['refused']} connections were refused")
    return said


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser(__doc__)
    options.add_models(parser)
    option = parser.add_argument
    option("--workers", type=options.bounded(int, 2, 64), default=2, help="of the server, 2 to 64 (default: 2)")
    option("--kills", type=options.bounded(int, 1, 100), default=10, help="1 to 100 (default: 10)")
    option("--every", type=options.bounded(float, 0, 60), default=3.0, help="seconds between two kills (default: 3)")
    option("--json", type=Path, default=RESULTS, metavar="FILE", help="where the numbers go")
    settings = parser.parse_args(arguments)
    settings.models = settings.models.resolve()
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    options.leave_on_sigterm()
    os.environ.setdefault("GRIDLOOP_LOG_LEVEL", "warning")
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "clients": CLIENTS,
        "workers": settings.workers,
    }
    try:
        found = measure(settings)
    except (BenchmarkFailed, KeyboardInterrupt) as error:
        print(f"faults.py: {error or 'interrupted'}", file=sys.stderr)
        return 1
    write_results(settings.json, {**head, **found})
    for name, part in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in part.items()))
    for sentence in (said := shortcomings(found)):
        print(f"faults.py: {sentence}", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
