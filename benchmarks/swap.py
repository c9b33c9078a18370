"""What clients notice of it when models are swapped under load, when bad ones are offered, and what memory is left behind.

    python benchmarks/swap.py                                # some three minutes
    python benchmarks/swap.py --swaps 3 --bad 1 --cycles 5   # a first look

Starts `gridloop serve` of this checkout on a free port of 127.0.0.1 with two workers, and puts 32 clients to it, each a
closed loop: half keep their connection, half open one for every request. They never send anything twice. The model is a
small classifier of pictures. Each version has weights and labels of its own, and every answer is compared with what
NumPy computes for the version that the answer names: scores and labels.

1. *Swaps*: a new version every three seconds, twenty of them. A version is renamed into place, loaded over HTTP, and the
   one before the last is removed. The manifest says `versions = "latest"`, so each swap replaces the weights.
2. *Bad versions*, under the same load: weights that are not those of the golden sample, a graph cut short, the labels
   of another version. Each must be refused with its reason, in the answer, the index and the metrics.
3. *Cycles* of unloading and loading, with nothing else to do: memory of all processes before and after.

Numbers go to benchmarks/results/swap.json. Exit code 1 when a request failed, when an answer was not of the version that
it names, when a client was answered by an older version after a newer one, when a kept connection was closed, when a
bad version was served, or when memory grew by more than 5 %; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from measuring import BenchmarkFailed, options
from measuring.machine import machine
from measuring.servers import LocalServer, started
from measuring.tables import write_results
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.client.load import percentile

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "swap.json"

MODEL = "swapped"
CLIENTS = 32
WORKERS = 2
SIDE, HIDDEN, CLASSES = 16, 64, 8
"""Of the pictures (pixels), and of the network."""
PICTURES = 8
ANSWER_TIMEOUT_S = 60.0
WARM_UP_CYCLES = 10
"""Until the processes no longer share the pages in which each writes (count)."""
LARGEST_GROWTH = 0.05
TOLERANCE = 1e-4

Array = np.ndarray[Any, np.dtype[np.float32]]


# -------------------------------------------------------------------------------------------------------------- models


def weights(version: int) -> tuple[Array, Array]:
    """The two matrices of a version."""
    random = np.random.default_rng(version)
    first = random.normal(0, 0.2, (SIDE * SIDE * 3, HIDDEN)).astype(np.float32)
    return first, random.normal(0, 0.5, (HIDDEN, CLASSES)).astype(np.float32)


def labels(version: int) -> list[str]:
    """The labels of a version."""
    return [f"v{version}-{number}" for number in range(CLASSES)]


def pictures() -> list[Array]:
    """Pictures, uint8 (side, side, 3)."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(PICTURES)]


def encoded(picture: Array) -> bytes:
    """A picture as PNG."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def expected(version: int, picture: Array) -> dict[str, float]:
    """Label -> score, as the version must give it."""
    first, second = weights(version)
    logits = np.maximum(picture.reshape(-1).astype(np.float32) / 255 @ first, 0) @ second
    scores = np.exp(logits - logits.max())
    return dict(zip(labels(version), (scores / scores.sum()).tolist(), strict=True))


def graph(version: int) -> bytes:
    """A version's graph: uint8 (batch, side, side, 3) -> logits (batch, classes)."""
    first, second = weights(version)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "most"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["logits"]),
    ]
    constants = {"most": np.float32(255), "first": first, "second": second}
    made = helper.make_graph(
        nodes,
        "swapped",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def write_version(folder: Path, version: int, spoil: Callable[[Path], Any] = lambda _: None) -> None:
    """A version, which comes at once, by a rename; `spoil` changes its files before."""
    hidden = folder / f".{version}"
    hidden.mkdir(parents=True)
    (hidden / "model.onnx").write_bytes(graph(version))
    (hidden / "labels.txt").write_text("\n".join(labels(version)) + "\n")
    picture = pictures()[0]
    (hidden / "sample.png").write_bytes(encoded(picture))
    best = sorted(expected(version, picture).items(), key=lambda item: -item[1])
    predictions = [{"label": label, "score": score} for label, score in best]
    sample = {"input": {"image": "sample.png", "top_k": CLASSES}, "output": {"results": [{"predictions": predictions}]}}
    (hidden / "golden.json").write_text(json.dumps([sample]))
    spoil(hidden)
    hidden.rename(folder / str(version))


BAD: Mapping[str, Callable[[Path, int], Any]] = {
    "wrong weights": lambda folder, version: (folder / "model.onnx").write_bytes(graph(version + 1000)),
    "a file cut short": lambda folder, version: (folder / "model.onnx").write_bytes(graph(version)[:-2000]),
    "wrong labels": lambda folder, version: (folder / "labels.txt").write_text("\n".join(labels(version + 1000))),
}


# ------------------------------------------------------------------------------------------------------------- clients


@dataclass
class Seen:
    """What clients have seen.

    Attributes:
        sent: requests (count).
        answers: by version.
        failures: what became of the others, in words.
        mixed: answers that are not what the version they name gives.
        backwards: answers of an older version than the client had had before.
        kept_opened: connections that clients who keep theirs have opened.
        new_opened: those of the others.
        latencies: when a request was sent (seconds of `perf_counter`), and how long it took.
    """

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    backwards: int = 0
    kept_opened: int = 0
    new_opened: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {
            "sent": self.sent,
            "answered": sum(self.answers.values()),
            "versions_seen": len(self.answers),
            "failed": dict(self.failures),
            "mixed": self.mixed,
            "backwards": self.backwards,
            "connections_opened_by_clients_that_keep_them": self.kept_opened,
            "connections_opened_by_the_others": self.new_opened,
        }


class Clients:
    """Closed loops; half keep their connections."""

    def __init__(self, server: LocalServer) -> None:
        self._server, self.seen, self.is_over = server, Seen(), False
        self._requests = [(picture, request(encoded(picture))) for picture in pictures()]
        self._expected: dict[tuple[str, int], dict[str, float]] = {}

    async def run(self) -> None:
        """Ask until `is_over`."""
        await asyncio.gather(*(self._client(number, keeps=number % 2 == 0) for number in range(CLIENTS)))

    async def _client(self, number: int, *, keeps: bool) -> None:
        last, place = 0, number
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.is_over:
            place += 1
            which = place % PICTURES
            self.seen.sent += 1
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    if connection is None:
                        connection = await asyncio.open_connection(self._server.host, self._server.port)
                        if keeps:
                            self.seen.kept_opened += 1
                        else:
                            self.seen.new_opened += 1
                    status, closes, body = await exchange(*connection, self._requests[which][1])
            except (OSError, EOFError, TimeoutError) as error:
                self.seen.failures[type(error).__name__] += 1
                status, closes, body = 0, True, b""
            self.seen.latencies.append((begun, time.perf_counter() - begun))
            if status == 200:
                last = self._check(which, body, last)
            elif status:
                self.seen.failures[f"{status}: {body[:200].decode(errors='replace')}"] += 1
            if connection and (closes or not keeps):
                connection[1].close()
                connection = None
            if not status:
                await asyncio.sleep(0.05)
        if connection:
            connection[1].close()

    def _check(self, which: int, body: bytes, last: int) -> int:
        told = json.loads(body)
        version = told["model"]["version"]
        self.seen.answers[version] += 1
        key = (version, which)
        if key not in self._expected:
            self._expected[key] = expected(int(version), self._requests[which][0])
        found = {each["label"]: each["score"] for each in told["results"][0]["predictions"]}
        right = self._expected[key]
        if found.keys() != right.keys() or any(abs(found[label] - right[label]) > TOLERANCE for label in right):
            self.seen.mixed += 1
        self.seen.backwards += int(version) < last
        return int(version)


def request(png: bytes) -> bytes:
    """A picture for the model, as bytes of HTTP."""
    head = f"POST /v1/image-classification?model={MODEL}&top_k={CLASSES} HTTP/1.1\r\nHost: localhost\r\n"
    return f"{head}Content-Type: image/png\r\nContent-Length: {len(png)}\r\n\r\n".encode() + png


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes
) -> tuple[int, bool, bytes]:
    """Send a request and await its answer: status, whether the server closes the connection after it, and body."""
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head[9:12]), b"connection: close" in head, await reader.readexactly(length)


# ------------------------------------------------------------------------------------------------------------- changes


async def change(server: LocalServer, what: str) -> tuple[int, str]:
    """Have the model loaded or unloaded: status and body of the answer."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    path = f"/v2/repository/models/{MODEL}/{what}"
    message = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
    status, _, body = await exchange(reader, writer, message)
    writer.close()
    return status, body.decode()


async def swap(server: LocalServer, folder: Path, count: int, every_s: float) -> list[tuple[float, float]]:
    """Replace the model so many times: when each swap began (seconds of `perf_counter`), and how long it took."""
    took = []
    for version in range(2, count + 2):
        begun = time.perf_counter()
        write_version(folder, version)
        status, said = await change(server, "load")
        if status != 200:
            raise BenchmarkFailed(f"version {version} was not loaded: {status} {said}")
        took.append((begun, time.perf_counter() - begun))
        shutil.rmtree(folder / str(version - 1))
        await asyncio.sleep(max(0.0, begun + every_s - time.perf_counter()))
    return took


async def offer(server: LocalServer, folder: Path, times: int, highest: int) -> list[dict[str, Any]]:
    """Offer bad versions: what was said of each, and by which version clients are answered."""
    found = []
    version = highest
    for _ in range(times):
        for kind, spoil in BAD.items():
            version += 1
            await asyncio.to_thread(write_version, folder, version, lambda path: spoil(path, version))  # noqa: B023
            begun = time.perf_counter()
            status, said = await change(server, "load")
            took_s = time.perf_counter() - begun
            index = json.loads(await asyncio.to_thread(server.ask, "/v2/repository/index", "application/json", b"{}"))
            metrics = (await asyncio.to_thread(server.ask, "/metrics")).decode()
            (entry,) = (each for each in index if each["name"] == MODEL and each["version"] == str(version))
            metric = re.search(rf'gridloop_model_refused{{model="{MODEL}",version="{version}"}} 1.0', metrics)
            found.append(
                {
                    "kind": kind,
                    "status": status,
                    "seconds": round(took_s, 2),
                    "reason": json.loads(said)["error"] if said else "",
                    "index": entry["state"],
                    "index_says_why": bool(entry.get("reason")),
                    "metric_says_so": metric is not None,
                }
            )
            shutil.rmtree(folder / str(version))
    return found


async def cycle(server: LocalServer, cycles: int) -> dict[str, Any]:
    """Unload and load the model so often, with nothing else to do."""

    async def memory() -> tuple[float, int]:
        for _ in range(100):  # until those who leave have left
            if len(server.pids()) == WORKERS + 2:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(8)  # idle memory is given back after five seconds
        return float(server.memory()["total_mib"] or 0), len(server.pids())

    for _ in range(WARM_UP_CYCLES):
        await change(server, "unload")
        await change(server, "load")
    before, begun = await memory(), time.perf_counter()
    for _ in range(cycles):
        for what in ("unload", "load"):
            status, said = await change(server, what)
            if status != 200:
                raise BenchmarkFailed(f"{what}: {status} {said}")
    took_s = time.perf_counter() - begun
    after = await memory()
    return {
        "cycles": cycles,
        "seconds_a_cycle": round(took_s / max(1, cycles), 2),
        "before_mib": round(before[0], 1),
        "after_mib": round(after[0], 1),
        "growth": round(after[0] / before[0] - 1, 4),
        "processes_before_and_after": [before[1], after[1]],
    }


async def under_load(server: LocalServer, work: Callable[[], Any]) -> tuple[Seen, Any]:
    """Do something while the clients ask, with a second before and after."""
    clients = Clients(server)
    asking = asyncio.create_task(clients.run())
    try:
        await asyncio.sleep(1)
        result = await work()
        await asyncio.sleep(1)
    finally:
        clients.is_over = True
        await asking
    return clients.seen, result


def milliseconds(seen: Seen, windows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Percentiles of the latencies, of requests that met a swap and of the others."""

    def meets(begun: float, took: float) -> bool:
        return any(begun < at + lasted and at < begun + took for at, lasted in windows)

    parts = {"while_swapping": [], "else": []}  # type: dict[str, list[float]]
    for begun, took in seen.latencies:
        parts["while_swapping" if meets(begun, took) else "else"].append(1e3 * took)
    return {
        name: {
            "requests": len(found),
            **{f"p{p}": round(percentile(sorted(found), p / 100), 1) for p in (50, 99)},
            "slowest": round(max(found), 1),
        }
        for name, found in parts.items()
        if found
    }


async def measure(server: LocalServer, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """All three."""
    begun = time.perf_counter()
    seen, swaps = await under_load(server, lambda: swap(server, folder, settings.swaps, settings.every))
    seconds = sorted(took for _, took in swaps)
    found: dict[str, Any] = {
        "swaps": {
            "count": len(swaps),
            "seconds": round(time.perf_counter() - begun, 1),
            **seen.report(),
            "a_swap_s": {
                "median": round(statistics.median(seconds), 2),
                "longest": round(seconds[-1], 2),
            },
            "latency_ms": milliseconds(seen, swaps),
        }
    }
    highest = settings.swaps + 1
    seen, offers = await under_load(server, lambda: offer(server, folder, settings.bad, highest))
    found["bad versions"] = {**seen.report(), "versions": sorted(seen.answers), "offers": offers}
    found["cycles"] = await cycle(server, settings.cycles)
    return found


def shortcomings(found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, as sentences."""
    said = []
    for name in ("swaps", "bad versions"):
        part = found[name]
        said += [f"{name}: {count} requests failed: {what}" for what, count in part["failed"].items()]
        for what in ("mixed", "backwards"):
            if part[what]:
                said.append(f"{name}: {part[what]} answers were {what}")
        if part["connections_opened_by_clients_that_keep_them"] > CLIENTS / 2:
            said.append(f"{name}: kept connections were closed")
    if found["swaps"]["versions_seen"] != found["swaps"]["count"] + 1:
        said.append("swaps: some version was never served")
    if len(found["bad versions"]["versions"]) > 1:
        said.append(f"bad versions: clients were answered by {', '.join(found['bad versions']['versions'])}")
    for each in found["bad versions"]["offers"]:
        if each["status"] != 400 or each["index"] == "READY" or not (each["index_says_why"] and each["metric_says_so"]):
            said.append(f"bad versions: {each['kind']} was not refused as it should be")
    if found["cycles"]["growth"] > LARGEST_GROWTH:
        said.append(f"cycles: memory grew by {found['cycles']['growth']:.1%}")
    return said


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser(__doc__)
    option = parser.add_argument
    option("--swaps", type=options.bounded(int, 1, 1000), default=20, help="1 to 1,000 (default: 20)")
    option("--every", type=options.bounded(float, 0, 60), default=3.0, help="seconds between two swaps (default: 3)")
    option("--bad", type=options.bounded(int, 1, 100), default=3, help="bad versions of each kind (default: 3)")
    option("--cycles", type=options.bounded(int, 1, 1000), default=50, help="of unload and load (default: 50)")
    option("--json", type=Path, default=RESULTS, metavar="FILE", help="where the numbers go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    options.leave_on_sigterm()
    os.environ |= {"GRIDLOOP_LOG_LEVEL": "warning", "GRIDLOOP_WATCH_S": "0"}
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "clients": CLIENTS,
        "workers": WORKERS,
    }
    try:
        with tempfile.TemporaryDirectory() as models:
            folder = Path(models) / MODEL
            write_version(folder, 1)
            manifest = 'task = "image-classification"\nrequired = true\nversions = "latest"\n'
            (folder / "manifest.toml").write_text(manifest)
            with started(Path(models), WORKERS) as server:
                found = asyncio.run(measure(server, folder, settings))
    except (BenchmarkFailed, KeyboardInterrupt) as error:
        print(f"swap.py: {error or 'interrupted'}", file=sys.stderr)
        return 1
    write_results(settings.json, {**head, **found})
    for name, part in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in part.items() if key != "offers"))
    for each in found["bad versions"]["offers"]:
        print(f"  {each['kind']}: {each['status']} after {each['seconds']} s: {each['reason']}")
    for sentence in (said := shortcomings(found)):
        print(f"swap.py: {sentence}", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
