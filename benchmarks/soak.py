"""Soak: mixed traffic for a long time, with workers killed meanwhile. What grows, what fails, what is lost?

    make soak                                    # 15 minutes; SECONDS=60 make soak for a first look
    python benchmarks/soak.py --seconds 900      # the same
    python benchmarks/soak.py --kill-every 0     # no worker is killed
    python benchmarks/soak.py --plot             # draw again what was measured

Starts `gridloop serve` on a free port of 127.0.0.1 with two workers or more (`GRIDLOOP_` variables reach it) and puts clients of
five kinds to it, each a closed loop:

| clients | send | and expect |
|---|---|---|
| valid | all tasks and `/v2`, small to large, plain and compressed | 200 |
| invalid | broken JSON, pictures, tensors, tokens; unknown models and paths | 4xx |
| cancelled | long requests, and leave before the answer | nothing |
| slow | a valid body in twenty pieces over two seconds; a head that never ends | 200; 408 |
| oversized | too long a body, told before, in chunks or compressed; too large a picture; too long a series | 413 |

Once a minute SIGKILL ends the worker that was started last: the oldest one lives through it all and shows what grows. Memory
(proportional set size), threads and descriptors of all processes of the server are read once a second. The first fifth of the
time is warm-up. The numbers go to benchmarks/results/soak.json, plots to docs/plots/soak.svg.

Exit code 0 when all was well. 1 when memory (of the server, or of its oldest worker) has grown by more than 5 % from the second
fifth to the last, or threads or descriptors have; when a valid request got another answer than 200, 503 or 504, or none, and no worker
had just been killed; when any other answer was not the expected one; or the server failed. 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import itertools
import json
import logging
import math
import os
import random
import signal
import statistics
import struct
import sys
import time
import zlib
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from growth import picture, series, text
from measuring import BenchmarkFailed, options, plots
from measuring.machine import WORKER, machine, memory_mib, process_name
from measuring.plots import INK
from measuring.servers import LocalServer
from measuring.tables import write_results
from measuring.targets import Running, running, targets

from service.client.load import percentile
from service.cpu import cpu_budget

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "soak.json"
PLOT = ROOT / "docs" / "plots" / "soak.svg"

CLIENTS = {"valid": 8, "invalid": 2, "cancelled": 2, "slow": 4, "oversized": 1}
"""Connections of each kind (count)."""
PAUSE_S = {"valid": 0.02, "invalid": 0.05, "cancelled": 0.05, "slow": 0.0, "oversized": 0.5}
"""Mean pause of a client between two requests (seconds): the machine is busy, not overloaded."""
LARGEST_GROWTH = 0.05
"""Of memory, from the second fifth of the time to the last."""
FEW_MORE = 12
"""Threads and descriptors that do not count as growth: bounded pools that fill, clients that connect again (count)."""
RARE = {"JPEG 3000×3000", "WebP 1500×1500", "series, 20,000 points", "text, 300 words", "metrics"}
MORE_OFTEN = 5
"""Valid requests that are not rare come so many times as often: those take most of the time as it is."""
ANSWER_TIMEOUT_S = 45.0
"""A request without an answer for so long is lost: the server's own deadline is 30 seconds."""
SAMPLE_S = 1.0
LATENCY_BUCKETS = 90
"""Parts of the time for which latencies are plotted (count)."""


@dataclass(frozen=True)
class Sent:
    """A request and what must become of it.

    Attributes:
        name: of its kind, for the report.
        wire: all its bytes.
        statuses: expected ones.
    """

    name: str
    wire: bytes
    statuses: frozenset[int]


@dataclass
class Seen:
    """What was measured.

    Attributes:
        counts: answers by client, status or failure.
        unexpected: of them, what should not have been, by client, request and status.
        latencies: of valid requests answered with 200: seconds since the start, seconds taken, by request.
        kills: seconds since the start.
        samples: of the server's processes, once a second.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexpected: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    latencies: dict[str, tuple[array[float], array[float]]] = field(default_factory=dict)
    kills: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, client: str, request: str, outcome: str, *, fine: bool) -> None:
        self.counts[client, outcome] += 1
        if not fine:
            self.unexpected[client, request, outcome] += 1

    def took(self, name: str, at_s: float, latency_s: float) -> None:
        moments, durations = self.latencies.setdefault(name, (array("d"), array("d")))
        moments.append(at_s)
        durations.append(latency_s)


@dataclass(frozen=True)
class Sample:
    """The server's processes at one moment.

    Attributes:
        at_s: since the start.
        memory_mib: proportional set size of all.
        oldest_mib: of the worker that has lived longest.
        threads: of all.
        descriptors: open ones of all.
        processes: how many.
    """

    at_s: float
    memory_mib: float
    oldest_mib: float
    threads: int
    descriptors: int
    processes: int


# ------------------------------------------------------------------------------------------------------------- traffic


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request; underscores in the names of headers are hyphens."""
    lines = {"Host": "127.0.0.1", **({"Content-Length": str(len(body))} if body or method == "POST" else {})}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + body


def post(task: str, body: bytes, kind: str = "application/json", **headers: str) -> bytes:
    return http("POST", f"/v1/{task}", body, Content_Type=kind, **headers)


def as_json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


IMAGES, WORDS, SERIES = "image-classification", "next-word-prediction", "anomaly-detection"


Inputs = Sequence[Mapping[str, Any]]
"""Of a model, as its metadata tell them: name, datatype, shape."""


def infer(model: str, inputs: Inputs, *, binary: bool) -> bytes:
    """A request to `/v2`: one row of zeros, sixteen steps long where it is a sequence, and of sound a fraction of a second."""
    entries: list[dict[str, Any]] = []
    tail = b""
    for tensor in inputs:
        first, *others = tensor["shape"]
        steps = 960 if tensor["name"] == "samples" else 16
        shape = [1 if first < 0 else first, *(steps if size < 0 else size for size in others)]
        dtype = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}.get(tensor["datatype"])
        values = np.full(shape, steps if tensor["name"] == "sequence_lens" else 0, dtype or tensor["datatype"].lower())
        entry = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape}
        if binary:
            entries.append({**entry, "parameters": {"binary_data_size": values.nbytes}})
            tail += values.tobytes()
        else:
            entries.append({**entry, "data": values.ravel().tolist()})
    head = as_json(inputs=entries)
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return http("POST", f"/v2/models/{model}/infer", head + tail, **headers)


def valid(models: Mapping[str, Inputs]) -> list[Sent]:
    """Requests of every kind that must be answered; models: their inputs by name."""
    form_boundary = "soak"
    parts = b"".join(
        f'--{form_boundary}\r\nContent-Disposition: form-data; name="file"; filename="{n}.png"\r\n\r\n'.encode()
        + picture("PNG", 64, n)
        + b"\r\n"
        for n in range(3)
    )
    form = parts + f"--{form_boundary}--\r\n".encode()
    wires = {
        "PNG 32×32": [post(IMAGES, picture("PNG", 32, n), "image/png") for n in range(4)],
        "JPEG 640×640": [post(IMAGES, picture("JPEG", 640, n), "image/jpeg") for n in range(4)],
        "JPEG 3000×3000": [post(IMAGES, picture("JPEG", 3000, 0), "image/jpeg")],
        "WebP 1500×1500": [post(IMAGES, picture("WEBP", 1500, n), "image/webp") for n in range(2)],
        "form of 3 PNGs": [post(IMAGES, form, f"multipart/form-data; boundary={form_boundary}")],
        "text, 8 words": [post(WORDS, as_json(text=text(8, n))) for n in range(4)],
        "text, 300 words": [post(WORDS, as_json(text=text(300, n))) for n in range(2)],
        "text, 3 words more": [post(WORDS, as_json(text=text(6, 9), words=3, top_k=3))],
        "series, 256 points": [post(SERIES, as_json(values=series(256, n))) for n in range(4)],
        "series, 20,000 points": [post(SERIES, as_json(values=series(20_000, n))) for n in range(2)],
        "series, 2,000 points, gzip": [
            post(SERIES, gzip.compress(as_json(values=series(2_000, n))), Content_Encoding="gzip") for n in range(2)
        ],
        "models": [http("GET", "/v1/models")],
        "a model's metadata": [http("GET", f"/v2/models/{name}") for name in models],
        "tensors in JSON": [infer(name, inputs, binary=False) for name, inputs in models.items()],
        "tensors in bytes": [infer(name, inputs, binary=True) for name, inputs in models.items()],
        "metrics": [http("GET", "/metrics")],
    }
    return [
        Sent(name, wire, frozenset({200}))
        for name, several in wires.items()
        for wire in several * (1 if name in RARE else MORE_OFTEN)
    ]


def invalid() -> list[Sent]:
    """Requests that must be refused by a 4xx."""
    damaged = bytearray(picture("JPEG", 256, 1))
    damaged[400:] = bytes(random.Random(1).choices(range(256), k=200))
    wires = {
        "no JSON": post(SERIES, b'{"values": [1, 2'),
        "wrong values": post(SERIES, as_json(values=["x"] * 5_000)),
        "no values": post(SERIES, as_json(values=[])),
        "not finite": post(SERIES, b'{"values": [1, NaN]}'),
        "unknown fields": post(SERIES, as_json(values=[1], **{f"key{n}": n for n in range(500)})),
        "no state": post(WORDS, as_json(text="the ", state="x" * 3_000)),
        "no text": post(WORDS, as_json(text="")),
        "top_k": post(WORDS, as_json(text="the ", top_k=10**9)),
        "no picture": post(IMAGES, b"\xff\xd8\xff no picture", "image/jpeg"),
        "a picture cut off": post(IMAGES, picture("PNG", 640, 1)[:20_000], "image/png"),
        "a damaged picture": post(IMAGES, bytes(damaged[:600]), "image/jpeg"),
        "no form": post(IMAGES, b"--x\r\nnothing", "multipart/form-data; boundary=x"),
        "another type": post(IMAGES, b"<html>", "text/html"),
        "another compression": post(SERIES, as_json(values=[1]), Content_Encoding="br"),
        "no gzip": post(SERIES, as_json(values=[1]), Content_Encoding="gzip"),
        "unknown model": post(SERIES, as_json(values=[1], model="nobody@7")),
        "unknown path": http("GET", "/v1/nothing"),
        "wrong method": http("DELETE", f"/v1/{SERIES}"),
        "no tensors": http("POST", "/v2/models/nobody/infer", b'{"inputs": []}'),
        "a deadline of no number": post(SERIES, as_json(values=[1]), X_Request_Timeout="soon"),
    }
    refused = frozenset(range(400, 500))
    return [Sent(name, wire, refused) for name, wire in wires.items()]


def oversized() -> list[Sent]:
    """Requests that are larger than the limits by default, each a 413."""
    long = 17 * 2**20
    told = f"POST /v1/{SERIES} HTTP/1.1\r\nHost: x\r\nContent-Length: {long}\r\n\r\n".encode()
    chunk = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    chunked = f"POST /v1/{SERIES} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunk * 17
    wires = {
        "a body told to be too long": told,
        "a body in too many chunks": chunked,
        "a body too long when inflated": post(SERIES, gzip.compress(b" " * 4 * long), Content_Encoding="gzip"),
        "too many pixels": post(IMAGES, large_png(20_000, 20_000), "image/png"),
        "too many points": post(SERIES, as_json(values=[1] * 100_001)),
        "too many characters": post(WORDS, as_json(text="a " * 50_001)),
    }
    return [Sent(name, wire, frozenset({413})) for name, wire in wires.items()]


def large_png(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


async def answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read an answer: its status, and whether the connection may be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(fields.get("content-length", 0)))
    return int(head.split(" ", 2)[1]), fields.get("connection") != "close"


@dataclass
class Traffic:
    """Clients that go on until a moment.

    Attributes:
        port: of the server.
        began: of `time.monotonic`.
        seconds: how long.
        seen: what came of it.
    """

    port: int
    began: float
    seconds: float
    seen: Seen

    def now_s(self) -> float:
        return time.monotonic() - self.began

    def killed_since(self, at_s: float) -> bool:
        """Whether a worker was killed since a moment after which the one at the other end of a connection was alive."""
        return bool(self.seen.kills) and self.seen.kills[-1] >= at_s

    async def pauses(self, client: str, seed: int) -> AsyncIterator[None]:
        source = random.Random(seed)
        while self.now_s() < self.seconds:
            yield
            await asyncio.sleep(source.uniform(0, 2) * PAUSE_S[client])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)

    async def ask(self, client: str, requests: Sequence[Sent], seed: int) -> None:
        """Send requests over one kept-alive connection, drawn with a seed."""
        source, connection, sound_s = random.Random(seed), None, 0.0
        async for _ in self.pauses(client, seed):
            sent = source.choice(requests)
            began_s = self.now_s()
            if connection is None:
                sound_s = began_s
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    reader, writer = connection = connection or await self.connect()
                    # A refusal may come before all is sent, and then the rest is not read.
                    sending = asyncio.ensure_future(self.send(writer, sent.wire))
                    try:
                        status, kept = await answer(reader)
                    finally:
                        sending.cancel()
            except (OSError, EOFError, TimeoutError) as error:
                kind = type(error).__name__
                killed = self.killed_since(sound_s) and not isinstance(error, TimeoutError)
                self.seen.add(client, sent.name, "lost by a kill" if killed else f"lost: {kind}", fine=killed)
                kept = False
            else:
                self.seen.add(client, sent.name, str(status), fine=status in sent.statuses | {503, 504})
                if status == 200:
                    self.seen.took(sent.name, began_s, self.now_s() - began_s)
                sound_s = began_s  # the worker was alive after this moment; its answer may have been read late
            if not kept and connection is not None:
                connection[1].transport.abort()
                connection = None
        if connection is not None:
            connection[1].transport.abort()

    async def send(self, writer: asyncio.StreamWriter, wire: bytes) -> None:
        with contextlib.suppress(OSError):
            writer.write(wire)
            await writer.drain()

    async def leave(self, requests: Sequence[Sent], seed: int) -> None:
        """Begin requests on connections of their own and leave before the answer."""
        source = random.Random(seed)
        async for _ in self.pauses("cancelled", seed):
            sent = source.choice(requests)
            with contextlib.suppress(OSError):
                _, writer = await self.connect()
                writer.write(sent.wire[: source.choice([len(sent.wire), len(sent.wire) // 2, 40])])
                await asyncio.sleep(source.uniform(0, 0.05))
                writer.transport.abort()
            self.seen.add("cancelled", sent.name, "left", fine=True)

    async def trickle(self, requests: Sequence[Sent], seed: int) -> None:
        """Send requests in twenty pieces over two seconds, and now and then a head without end."""
        source = random.Random(seed)
        turn = itertools.count(seed)
        async for _ in self.pauses("slow", seed):
            began_s, endless = self.now_s(), next(turn) % 10 == 0
            sent = Sent("a head without end", b"", frozenset({408})) if endless else source.choice(requests)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    reader, writer = await self.connect()
                    if endless:
                        writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                    size = math.ceil(len(sent.wire) / 20)
                    for start in range(0, len(sent.wire), size or 1):
                        writer.write(sent.wire[start : start + size])
                        await asyncio.sleep(0.1)
                    status, _ = await answer(reader)
            except (OSError, EOFError, TimeoutError) as error:
                if self.now_s() >= self.seconds:
                    return
                killed = self.killed_since(began_s)
                kind = type(error).__name__
                self.seen.add("slow", sent.name, "lost by a kill" if killed else f"lost: {kind}", fine=killed)
            else:
                self.seen.add("slow", sent.name, str(status), fine=status in sent.statuses | {503, 504})
            finally:
                writer.transport.abort()

    async def kill(self, server: Running, every_s: float) -> None:
        """SIGKILL the youngest worker, if the server has two or more, again and again."""
        next_s = every_s / 2
        while next_s < self.seconds:
            await asyncio.sleep(max(0.0, next_s - self.now_s()))
            workers = [pid for pid in server.pids() if process_name(pid) == WORKER]
            if len(workers) > 1:
                self.seen.kills.append(self.now_s())
                os.kill(max(workers, key=start_time), signal.SIGKILL)
            next_s += every_s

    async def watch(self, server: Running) -> None:
        """Read memory, threads and descriptors of the server's processes, once a second."""
        while self.now_s() < self.seconds:
            pids = await asyncio.to_thread(server.pids)
            self.seen.samples.append(await asyncio.to_thread(sample, pids, self.now_s()))
            await asyncio.sleep(SAMPLE_S)


def start_time(pid: int) -> int:
    """When a process was started (clock ticks); 0 of one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def sample(pids: Sequence[int], at_s: float) -> Sample:
    """The processes of a server, the supervisor first."""
    memory: dict[int, float] = {}
    threads = descriptors = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            threads += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
            descriptors += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            memory[pid] = memory_mib(pid) or 0.0
    workers = [pid for pid in pids if memory.get(pid) and process_name(pid) == WORKER] or list(memory)
    oldest = memory[min(workers, key=start_time)] if workers else 0.0
    return Sample(at_s, sum(memory.values()), oldest, threads, descriptors, len(memory))


async def put(server: Running, models: Mapping[str, Inputs], seconds: float, kill_every_s: float) -> Seen:
    """Put all the traffic to a server for so long."""
    good, bad, large = valid(models), invalid(), oversized()
    small = [sent for sent in good if len(sent.wire) < 100_000]
    traffic = Traffic(server.port, time.monotonic(), seconds, Seen())
    work: list[Awaitable[None]] = [traffic.watch(server)]
    work += [traffic.ask("valid", good, seed) for seed in range(CLIENTS["valid"])]
    work += [traffic.ask("invalid", bad, seed) for seed in range(CLIENTS["invalid"])]
    work += [traffic.ask("oversized", large, seed) for seed in range(CLIENTS["oversized"])]
    work += [traffic.leave(good, seed) for seed in range(CLIENTS["cancelled"])]
    work += [traffic.trickle(small, seed) for seed in range(CLIENTS["slow"])]
    if kill_every_s:
        work.append(traffic.kill(server, kill_every_s))
    async with asyncio.timeout(seconds + 2 * ANSWER_TIMEOUT_S):
        await asyncio.gather(*work)
    return traffic.seen


# -------------------------------------------------------------------------------------------------------------- report


def fifths(samples: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    """Medians of the second fifth of the time (the first is warm-up) and of the last."""
    end = max(found["at_s"] for found in samples)
    second = [found[key] for found in samples if end / 5 <= found["at_s"] < end * 2 / 5]
    last = [found[key] for found in samples if found["at_s"] >= end * 4 / 5]
    return statistics.median(second), statistics.median(last)


def complaints(measured: Mapping[str, Any]) -> list[str]:
    """Sentences about everything that was not as promised."""
    found = [
        f"{entry['client']}, {entry['request']}: {entry['outcome']} ×{entry['count']}"
        for entry in measured["unexpected"]
    ]
    for key, what in (
        ("memory_mib", "memory of the server (MiB)"),
        ("oldest_mib", "memory of its oldest worker (MiB)"),
    ):
        before, after = fifths(measured["samples"], key)
        if after > before * (1 + LARGEST_GROWTH):
            found.append(f"{what} grew by {after / before - 1:.1%}: {before:.0f} to {after:.0f}")
    for key in ("threads", "descriptors"):
        before, after = fifths(measured["samples"], key)
        if after > before * (1 + LARGEST_GROWTH) + FEW_MORE:
            found.append(f"{key} grew from {before:.0f} to {after:.0f}")
    if not any(entry["client"] == "valid" and entry["outcome"] == "200" for entry in measured["answers"]):
        found.append("no valid request was answered")
    return found


def report(seen: Seen, seconds: float) -> dict[str, Any]:
    """What is written: samples, answers by client and outcome, latencies by request and over the time."""
    counted = {
        name: sorted(took for at, took in zip(*both, strict=True) if at >= seconds / 5)
        for name, both in seen.latencies.items()
    }
    width = seconds / LATENCY_BUCKETS
    buckets: list[list[float]] = [[] for _ in range(LATENCY_BUCKETS)]
    for moments, durations in seen.latencies.values():
        for at, took in zip(moments, durations, strict=True):
            buckets[min(LATENCY_BUCKETS - 1, int(at / width))].append(took)
    return {
        "kills_s": [round(at, 2) for at in seen.kills],
        "answers": [
            {"client": client, "outcome": outcome, "count": count}
            for (client, outcome), count in sorted(seen.counts.items())
        ],
        "unexpected": [
            {"client": client, "request": request, "outcome": outcome, "count": count}
            for (client, request, outcome), count in sorted(seen.unexpected.items())
        ],
        "latency_ms": {
            name: {"count": len(times)} | {f"p{p}": milliseconds(percentile(times, p / 100)) for p in (50, 95, 99, 100)}
            for name, times in sorted(counted.items())
            if times
        },
        "latency_over_time": [
            {"at_s": round((n + 0.5) * width, 2), "answers": len(times)}
            | {f"p{p}_ms": milliseconds(percentile(sorted(times), p / 100)) for p in (50, 99)}
            for n, times in enumerate(buckets)
            if times
        ],
        "samples": [{name: round(value, 2) for name, value in asdict(found).items()} for found in seen.samples],
    }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)


def show(measured: Mapping[str, Any]) -> None:
    """Print what was measured, for people."""
    print(f"{'client':<12}{'outcome':<32}{'count':>9}")
    for entry in measured["answers"]:
        print(f"{entry['client']:<12}{entry['outcome']:<32}{entry['count']:>9,}")
    print(f"\n{'valid request':<34}{'count':>8}{'p50':>9}{'p95':>9}{'p99':>9}{'worst':>9}  ms")
    for name, row in measured["latency_ms"].items():
        numbers = "".join(f"{row[f'p{p}']:>9.1f}" for p in (50, 95, 99, 100))
        print(f"{name:<34}{row['count']:>8,}{numbers}")
    print(f"\n{'second fifth to last':<34}{'from':>9}{'to':>9}")
    for key in ("memory_mib", "oldest_mib", "threads", "descriptors"):
        before, after = fifths(measured["samples"], key)
        print(f"{key:<34}{before:>9.1f}{after:>9.1f}")
    print(f"workers killed: {len(measured['kills_s'])}")


def plot(measured: Mapping[str, Any], path: Path) -> None:
    """Draw memory, threads and descriptors, latency and answers over the time; lines where a worker was killed."""
    samples, over_time = measured["samples"], measured["latency_over_time"]
    minutes = [found["at_s"] / 60 for found in samples]
    later = [found["at_s"] / 60 for found in over_time]
    with plots.drawing("soak") as plt:
        figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained", sharex=True)
        (memory, counts), (latency, answers) = axes
        memory.plot(minutes, [found["memory_mib"] for found in samples], color="#0969da", label="all processes")
        memory.plot(minutes, [found["oldest_mib"] for found in samples], color="#bc4c00", label="the oldest worker")
        memory.set_title("memory (PSS, MiB)")
        counts.plot(minutes, [found["threads"] for found in samples], color="#0969da", label="threads")
        counts.plot(minutes, [found["descriptors"] for found in samples], color="#bc4c00", label="descriptors")
        counts.set_title("threads and open descriptors")
        for name, colour in (("p50", "#0969da"), ("p99", "#bc4c00")):
            latency.plot(later, [found[f"{name}_ms"] for found in over_time], color=colour, label=name)
        latency.set_yscale("log")
        latency.set_title("latency of valid requests (ms)")
        width_s = measured["settings"]["seconds"] / LATENCY_BUCKETS
        answers.plot(
            later, [found["answers"] / width_s for found in over_time], color="#0969da", label="200 per second"
        )
        answers.set_title("valid requests answered")
        for panel in axes.flat:
            for kill in measured["kills_s"]:
                panel.axvline(kill / 60, color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
            panel.grid(visible=True)
            panel.legend(loc="best")
            if panel is not latency:
                panel.set_ylim(bottom=0)
        for panel in axes[1]:
            panel.set_xlabel("minutes (dotted: a worker is killed)")
        plots.save(figure, path)


def inputs_of_models(port: int) -> dict[str, Inputs]:
    """Inputs of every model that is served, by its name."""
    server = LocalServer("127.0.0.1", port)
    names = [model["name"] for model in json.loads(server.ask("/v1/models"))["models"]]
    return {name: json.loads(server.ask(f"/v2/models/{name}"))["inputs"] for name in names}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser(__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the model repository")
    parser.add_argument("--seconds", type=float, default=900.0, help="how long, 10 to 7,200")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds between two kills; 0: none")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the numbers go")
    parser.add_argument("--svg", type=Path, default=PLOT, help="where the plots go")
    parser.add_argument("--plot", action="store_true", help="only draw what was measured")
    chosen = parser.parse_args(arguments)
    if not 10 <= chosen.seconds <= 7200:
        parser.error("--seconds: between 10 and 7,200")
    if chosen.kill_every and chosen.kill_every < 5:
        parser.error("--kill-every: 0, or 5 seconds and more")
    if not options.has_matplotlib():
        parser.error("the plots need matplotlib: python -m pip install matplotlib")
    chosen.models = chosen.models.resolve()
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    chosen = parse_arguments(arguments)
    if chosen.plot:
        plot(json.loads(chosen.json.read_bytes()), chosen.svg)
        return 0
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it tells of every write to a client that has left
    options.leave_on_sigterm()
    workers = max(2, cpu_budget().cores)
    os.environ.setdefault("GRIDLOOP_WORKERS", str(workers))
    os.environ.setdefault("GRIDLOOP_LOG_LEVEL", "error")
    settings = {"seconds": chosen.seconds, "kill_every_s": chosen.kill_every, "workers": os.environ["GRIDLOOP_WORKERS"]}
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": settings,
        "clients": CLIENTS,
    }
    try:
        with running(next(target for target in targets(1) if target.name == "gridloop"), chosen.models) as server:
            seen = asyncio.run(put(server, inputs_of_models(server.port), chosen.seconds, chosen.kill_every))
    except (BenchmarkFailed, TimeoutError, KeyboardInterrupt) as error:
        print(f"soak.py: {error or type(error).__name__}", file=sys.stderr)
        return 1
    measured = head | report(seen, chosen.seconds)
    write_results(chosen.json, measured)
    show(measured)
    plot(measured, chosen.svg)
    for sentence in (found := complaints(measured)):
        print(f"soak.py: {sentence}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
