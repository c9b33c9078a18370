"""What does a hostile body cost: how long until it is answered, how much memory, and how slow are probes meanwhile?

    python benchmarks/hostile_bodies.py
    python benchmarks/hostile_bodies.py --source ../earlier    # another checkout's service

Each body meets a server of its own, with one worker, on a loopback address. A server that takes more than `--most-mib`,
or that has not answered after `--seconds`, is ended, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring.machine import process_tree

SERIES, TEXT, IMAGES = "/v1/anomaly-detection", "/v1/next-word-prediction", "/v1/image-classification"
TENSORS = "/v2/models/series-gru/infer"
FORM = "multipart/form-data; boundary=b"
EVERY_S = 0.01
"""Between two looks at the server's memory (seconds)."""


@dataclass(frozen=True)
class Case:
    """A body, sent by one client or by several at once."""

    name: str
    path: str
    body: Callable[[], bytes]
    clients: int = 1
    content_type: str = "application/json"


def _list(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def _tensor(shape: bytes, data: bytes) -> bytes:
    return b'{"inputs":[{"name":"values","datatype":"FP64","shape":' + shape + b',"data":' + data + b"}]}"


CASES = (
    Case("100,000 points", SERIES, lambda: b'{"values":' + _list(b"1.5", 100_000) + b"}"),
    Case("300,000 stamps {}", SERIES, lambda: b'{"values":[1],"timestamps":' + _list(b"{}", 300_000) + b"}"),
    Case("100,000 values {}", SERIES, lambda: b'{"values":' + _list(b"{}", 100_000) + b"}"),
    Case("15 MB of values {}", SERIES, lambda: b'{"values":' + _list(b"{}", 5_000_000) + b"}"),
    Case('4 MB of values "1"', SERIES, lambda: b'{"values":' + _list(b'"1"', 1_000_000) + b"}"),
    Case("15 MB of values 1", SERIES, lambda: b'{"values":' + _list(b"1", 7_500_000) + b"}"),
    Case("the same, 40 at once", SERIES, lambda: b'{"values":' + _list(b"1", 7_500_000) + b"}", clients=40),
    Case("a million fields", SERIES, lambda: b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b"}"),
    Case("15 MB of brackets", SERIES, lambda: b"[" * 15_000_000),
    Case("15 MB of digits", SERIES, lambda: b'{"values":[' + b"9" * 15_000_000 + b"]}"),
    Case("15 MB of text", TEXT, lambda: b'{"text":"' + b"a " * 7_500_000 + b'"}'),
    Case("15 MB of quotes", TEXT, lambda: b'{"text":"' + b'\\"' * 7_500_000 + b'"}'),
    Case("tensor of 4, 7.5 M values", TENSORS, lambda: _tensor(b"[1,4]", _list(b"1", 7_500_000))),
    Case("200,000 parts of a form", IMAGES, lambda: _form(200_000), content_type=FORM),
)


def _form(parts: int) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n' * parts + b"--b--\r\n"


@dataclass(frozen=True)
class Seen:
    """What a body did.

    Attributes:
        name: of the case.
        body_bytes: of one body.
        statuses: of the answers, and how many there were of each; "none" where there was none in time.
        answer_bytes: the longest.
        seconds: until the last one.
        memory_mib: what the server took beyond what it had before, at most.
        livez_s: the slowest answer of `/livez` meanwhile.
    """

    name: str
    body_bytes: int
    statuses: dict[str, int]
    answer_bytes: int
    seconds: float
    memory_mib: float
    livez_s: float


def _resident_mib(pid: int) -> float:
    total = 0
    for each in process_tree(pid):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return total / 1024


def _ask(port: int, path: str, body: bytes | None, content_type: str, timeout_s: float) -> tuple[str, int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early: the answer is there
            connection.request("GET" if body is None else "POST", path, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        return str(answer.status), len(answer.read())
    except (OSError, http.client.HTTPException):
        return "none", 0
    finally:
        connection.close()


@contextlib.contextmanager
def _server(source: Path, models: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--models", str(models), "--workers", "1"]
    environment = os.environ | {"GRIDLOOP_LOG_LEVEL": "error"}
    with subprocess.Popen(
        command, cwd=source, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as p:
        try:
            deadline = time.monotonic() + 60
            while _ask(port, "/readyz", None, "text/plain", 5)[0] != "200":
                if time.monotonic() > deadline or p.poll() is not None:
                    raise SystemExit("the server did not become ready")
                time.sleep(0.2)
            yield p, port
        finally:
            p.kill()


def measure(case: Case, source: Path, models: Path, seconds: float, most_mib: float) -> Seen:
    """Send a body to a server of its own."""
    body = case.body()
    answers: list[tuple[str, int]] = []
    with _server(source, models) as (process, port):
        _ask(port, case.path, b"{}", case.content_type, 10)
        before, most, slowest = _resident_mib(process.pid), 0.0, 0.0
        began = time.perf_counter()

        def send() -> None:
            answers.append(_ask(port, case.path, body, case.content_type, seconds))

        def probe() -> None:
            nonlocal slowest
            while any(thread.is_alive() for thread in senders):
                start = time.perf_counter()
                _ask(port, "/livez", None, "text/plain", seconds)
                slowest = max(slowest, time.perf_counter() - start)
                time.sleep(EVERY_S)

        senders = [threading.Thread(target=send) for _ in range(case.clients)]
        for thread in senders:
            thread.start()
        prober = threading.Thread(target=probe)
        prober.start()
        while any(thread.is_alive() for thread in senders):
            most = max(most, _resident_mib(process.pid))
            if most > most_mib or time.perf_counter() - began > seconds:
                process.kill()
            time.sleep(EVERY_S)
        taken = time.perf_counter() - began
        prober.join()
    statuses = dict(sorted(Counter(status for status, _ in answers).items()))
    longest = max(length for _, length in answers)
    return Seen(case.name, len(body), statuses, longest, taken, max(0.0, most - before), slowest)


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=here, help="the checkout whose service is asked")
    parser.add_argument("--models", type=Path, default=here / "models")
    parser.add_argument("--seconds", type=float, default=30, help="longest time for a body")
    parser.add_argument("--most-mib", type=float, default=4000, help="most memory for a body")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--json", type=Path, help="write what was seen into this file")
    chosen = parser.parse_args()
    found: list[dict[str, Any]] = []
    print("| body | size | status | answer | s | memory MiB | slowest /livez s |\n|---|---:|---|---:|---:|---:|---:|")
    for case in CASES:
        if chosen.only not in case.name:
            continue
        seen = measure(case, chosen.source, chosen.models, min(chosen.seconds, 300), chosen.most_mib)
        found.append(vars(seen))
        told = ", ".join(s if n == 1 else f"{n} x {s}" for s, n in seen.statuses.items())
        print(
            f"| {seen.name} | {seen.body_bytes / 1e6:.1f} MB | {told} | {seen.answer_bytes:,} B | {seen.seconds:.2f} "
            f"| {seen.memory_mib:.0f} | {seen.livez_s:.2f} |",
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
