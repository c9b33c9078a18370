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
import http.client
import io
import ipaddress
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.client.http import ClientFailed as BenchmarkFailed
from service.client.http import ServerAddress, http_request
from service.client.load import Load, LoadResult, Request, percentile
from service.client.process import put_load
from service.cpu import cpu_budget, processor_name
from service.registry.manifest import read_manifest
from service.runtime.eight_bits import keep_sums_exact
from service.runtime.memory import keep_freed_memory
from service.runtime.session import OnnxSession
from service.runtime.tensors import batch_key, split, stack
from service.settings import Settings
from service.tasks import discover
from service.tasks.base import MediaInput, ModelFolder, Upload

BODIES = 16
"""Different bodies per endpoint, sent in turn (count)."""

SAMPLES = 400
"""Answers of one run whose content is compared, drawn evenly from all of them (count)."""

TOLERANCE = 1e-3
"""Largest difference of two equal answers, relative to the larger number and never below this much of 1."""

GRACE_S = 10.0
"""Time for the requests in flight when a run ends; whoever still waits then counts as an error (seconds)."""

BATCHES = (1, 8, 32)
"""Batch sizes that the in-process limit tries (rows)."""

READY_TIMEOUT_S = 120.0


# ------------------------------------------------------------------------------------------------------------ workloads

Ask = Callable[[str, str, bytes], bytes]
"""Asks the server: (path, content type, body) -> the answer's body."""


@dataclass(frozen=True)
class Workload:
    """An endpoint and what is sent to it.

    Attributes:
        name: row of the table.
        task: the endpoint's name.
        content_type: of the bodies.
        bodies: makes them; may ask the server first, for a stream's state.
    """

    name: str
    task: str
    content_type: str
    bodies: Callable[[Ask], list[bytes]]

    @property
    def path(self) -> str:
        """Where it is posted to."""
        return f"/v1/{self.task}"


def pictures(form: str, width: int, height: int) -> list[bytes]:
    """Encoded pictures of smooth colour with some grain, as compressible as photographs are."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(BODIES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grainy = np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(grainy).save(file, form, quality=85)
        encoded.append(file.getvalue())
    return encoded


_WORDS = """
old young quiet narrow famous broken heavy early local small dark northern
captain farmer teacher soldier writer singer doctor king driver sailor poet judge
walked looked marched returned travelled pointed ran moved sailed turned rode drove
across towards behind over past around along through
bridge village castle river theatre station church garden harbour museum island road
"""


def sentences(count: int) -> list[bytes]:
    """Texts of `count` sentences of eight words; the last one has no full stop yet."""
    draw = random.Random(0)
    adjectives, people, verbs, ways, places = (line.split() for line in _WORDS.strip().splitlines())

    def sentence() -> str:
        first, second = draw.sample(adjectives, 2)
        words = [first, draw.choice(people), draw.choice(verbs), draw.choice(ways), "the", second, draw.choice(places)]
        return " ".join(["The", *words])

    return [json.dumps({"text": ". ".join(sentence() for _ in range(count))}).encode() for _ in range(BODIES)]


def series(points: int) -> list[list[float]]:
    """Daily waves with noise and a few spikes, each of another scale."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(BODIES):
        scale, phase, noise = 10 ** rng.uniform(-1, 2), rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.3)
        wave = np.sin(np.arange(points) * (2 * math.pi / 48) + phase) + rng.normal(0, noise, points)
        wave[rng.integers(0, points, max(1, points // 100))] += 6
        made.append(np.round(scale * (3 + wave), 4).tolist())
    return made


def whole_series(_: Ask) -> list[bytes]:
    """256 points each."""
    return [json.dumps({"values": values}).encode() for values in series(256)]


def next_points(ask: Ask) -> list[bytes]:
    """One point each, with the state of the 256 before it."""
    bodies = []
    for values in series(257):
        before = json.dumps({"values": values[:-1]}).encode()
        state = json.loads(ask("/v1/anomaly-detection", "application/json", before))["state"]
        bodies.append(json.dumps({"values": values[-1:], "state": state}).encode())
    return bodies


WORKLOADS = (
    Workload("image, PNG 32×32", "image-classification", "image/png", lambda _: pictures("PNG", 32, 32)),
    Workload("image, JPEG 640×480", "image-classification", "image/jpeg", lambda _: pictures("JPEG", 640, 480)),
    Workload("text, 8 words", "next-word-prediction", "application/json", lambda _: sentences(1)),
    Workload("text, 32 words", "next-word-prediction", "application/json", lambda _: sentences(4)),
    Workload("series, 256 points", "anomaly-detection", "application/json", whole_series),
    Workload("series, 1 point + state", "anomaly-detection", "application/json", next_points),
)


# -------------------------------------------------------------------------------------------------------------- answers


def same_answer(a: Any, b: Any) -> bool:
    """Whether two answers (parsed JSON) say the same.

    Numbers may differ by the tolerance; the opaque `state`, which holds the same rounding, is left out. Lists of
    predictions are compared by label: near-ties may change places, and the last place may go to another as probable.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_answer(a[key], b[key]) for key in a if key != "state")
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return False
        if a and all(isinstance(entry, Mapping) and "score" in entry for entry in (*a, *b)):
            return _same_predictions(a, b)
        return all(map(same_answer, a, b))
    if all(isinstance(side, int | float) and not isinstance(side, bool) for side in (a, b)):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(a) is type(b) and bool(a == b)


def _same_predictions(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> bool:
    left, right = ({entry.get("label", entry.get("text")): entry["score"] for entry in side} for side in (a, b))
    margin = TOLERANCE * max(left.values())
    edge = min(left.values()) + margin
    return all(
        abs(left[label] - right[label]) <= margin if label in left and label in right else (left | right)[label] <= edge
        for label in left | right
    )


def wrong_among(samples: Sequence[tuple[int, bytes]], expected: Sequence[Any]) -> int:
    """How many answers differ from the one that the same request got alone.

    Args:
        samples: number of the request, and the answer's body.
        expected: the answer to each request, parsed.
    """

    def is_right(body: bytes, answer: Any) -> bool:
        try:
            return same_answer(answer, json.loads(body))
        except ValueError:
            return False

    return sum(not is_right(body, expected[index]) for index, body in samples)


# ---------------------------------------------------------------------------------------------------------------- limit


@dataclass(frozen=True)
class Direct:
    """A graph in ONNX Runtime with its own defaults and one thread: none of the service's choices are in the limit."""

    session: Any
    signature: Any
    task: Any
    content_type: str

    @classmethod
    def open(cls, folder: Path, content_type: str) -> Direct:
        """Load `models/<name>/<version>`."""
        import onnxruntime  # after the service, which switches its telemetry off

        manifest = read_manifest(folder.parent)
        signature = OnnxSession(folder / "model.onnx").signature
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        keep_sums_exact(options)
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        place = ModelFolder(folder.parent.name, folder.name, folder, signature, manifest.options(folder))
        return cls(session, signature, discover()[manifest.task](place), content_type)

    def answer(self, bodies: Sequence[bytes]) -> list[bytes]:
        """The answers' bytes to several requests' bytes, their runs batched; no queue, no thread, no HTTP."""
        busy = len(bodies) >= max(BATCHES) // 2  # from where on the service takes the run with less work, too
        steps = [self.task.steps(self._parse(body)) for body in bodies]
        answers: list[bytes] = [b""] * len(bodies)
        waiting: list[tuple[int, Any]] = []

        def advance(index: int, outputs: Mapping[str, Any] | None) -> None:
            try:
                waiting.append((index, steps[index].send(outputs).chosen(busy=busy)))
            except StopIteration as stop:
                answers[index] = stop.value.to_json()

        for index in range(len(bodies)):
            advance(index, None)
        while waiting:
            key = batch_key(waiting[0][1], self.signature)
            batch = [(index, run) for index, run in waiting if batch_key(run, self.signature) == key]
            waiting[:] = [(index, run) for index, run in waiting if batch_key(run, self.signature) != key]
            runs = [run for _, run in batch]
            names = list(runs[0].outputs or self.signature.outputs)
            values = self.session.run(names, stack(runs, self.signature))
            shares = split(dict(zip(names, values, strict=True)), runs, self.signature)
            for (index, _), share in zip(batch, shares, strict=True):
                advance(index, share)
        return answers

    def _parse(self, body: bytes) -> Any:
        if issubclass(self.task.Input, MediaInput):
            return self.task.Input.model_validate({"files": (Upload(body, content_type=self.content_type),)})
        return self.task.Input.model_validate_json(body)


@dataclass(frozen=True)
class LimitSample:
    """What the in-process limit did for a while.

    Attributes:
        rate: requests per second of all its processes.
        batch_ms: median time of one batch.
        cpu_ms: CPU time per request.
    """

    rate: float
    batch_ms: float
    cpu_ms: float


def limit_process(pipe: Connection, folder: Path, content_type: str, bodies: Sequence[bytes]) -> None:
    """Answer in batches for as long as the pipe says, until None comes; first send the answer to each body."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        keep_freed_memory()  # as the server does
        try:
            direct = Direct.open(folder, content_type)
            pipe.send([json.loads(direct.answer([body])[0]) for body in bodies])
        except Exception as error:
            pipe.send(BenchmarkFailed(f"the model cannot be run in process: {error}"))
            return
        turn = itertools.cycle(bodies)
        while (job := pipe.recv()) is not None:
            batch, start_at, seconds = job
            direct.answer([next(turn) for _ in range(batch)])
            time.sleep(max(0.0, start_at - time.monotonic()))
            steps: list[float] = []
            cpu = time.process_time()
            began = now = time.perf_counter()
            while now - began < seconds:
                direct.answer([next(turn) for _ in range(batch)])
                before, now = now, time.perf_counter()
                steps.append(now - before)
            count = len(steps) * batch
            cpu_ms = (time.process_time() - cpu) / count * 1e3
            pipe.send(LimitSample(count / (now - began), percentile(sorted(steps), 0.5) * 1e3, cpu_ms))


class Limit:
    """The in-process limit of one endpoint: as many one-thread processes as the server has inference threads.

    Args:
        processes: how many.
        folder: `models/<name>/<version>`.
        workload: whose content type is sent.
        bodies: as sent to the server.
    """

    def __init__(self, processes: int, folder: Path, workload: Workload, bodies: Sequence[bytes]) -> None:
        self._children = [Child(limit_process, folder, workload.content_type, tuple(bodies)) for _ in range(processes)]
        self.answers: list[Any] = self._receive(60)[0]

    def measure(self, batch: int, seconds: float) -> LimitSample:
        """Have all processes answer batches of this size at the same time."""
        start_at = time.monotonic() + 0.05
        for child in self._children:
            child.send((batch, start_at, seconds))
        each: list[LimitSample] = self._receive(seconds + 60)
        return LimitSample(
            sum(sample.rate for sample in each),
            statistics.median(sample.batch_ms for sample in each),
            statistics.mean(sample.cpu_ms for sample in each),
        )

    def _receive(self, timeout_s: float) -> list[Any]:
        return [child.receive(timeout_s) for child in self._children]

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()


# Forked from a process that has imported everything and started nothing: a limit is ready at once.
_CONTEXT = multiprocessing.get_context("forkserver")


class Child:
    """A process of this file, with a pipe."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        _CONTEXT.set_forkserver_preload(["__main__", "onnxruntime"])
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=target, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        """Give it work."""
        self._pipe.send(message)

    def receive(self, timeout_s: float) -> Any:
        """Its next result.

        Raises:
            BenchmarkFailed: it sent one, ended, or did not answer in time.
        """
        try:
            if not self._pipe.poll(timeout_s):
                raise BenchmarkFailed(f"a process of the benchmark did not answer within {timeout_s:.0f} s")
            message = self._pipe.recv()
        except EOFError:
            raise BenchmarkFailed("a process of the benchmark has died") from None
        if isinstance(message, BenchmarkFailed):
            raise message
        return message

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(2)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


# -------------------------------------------------------------------------------------------------------------- machine


def process_tree(root: int) -> list[int]:
    """A process and its descendants; empty where there is no /proc, or no such process."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = [root] if root in parents else []
    for pid in tree:  # grows while it is read
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def memory_mib(pid: int) -> float | None:
    """Proportional set size of a process, shared pages divided among their users; resident size where it is hidden."""
    for file, key in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        with contextlib.suppress(OSError):
            if found := re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE):
                return int(found[1]) / 1024
    return None


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def busy_seconds() -> float:
    """CPU time that everything on the machine has used; NaN where there is no /proc."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    except OSError:
        return math.nan
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of all that it started, ended ones included."""
    ended = os.times()
    return cpu_seconds(process_tree(os.getpid())) + ended.children_user + ended.children_system


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    budget = cpu_budget()
    return {
        "cpu": processor_name(),
        "cores": budget.cores,
        "cores_reason": budget.reason,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "gridloop": version("gridloop"),
        "commit": commit(),
    }


def commit() -> str | None:
    """The code's commit, with `+` when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


# --------------------------------------------------------------------------------------------------------------- server


class Server:
    """A server on this machine, asked over plain HTTP.

    Args:
        host: a loopback address.
        port: its port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_s: float | None = None

    def ask(self, path: str, content_type: str | None = None, body: bytes | None = None) -> bytes:
        """The body of a 200.

        Raises:
            BenchmarkFailed: another status, or no answer.
        """
        status, answer = self._exchange(path, content_type, body)
        if status != 200:
            raise BenchmarkFailed(f"{path} answered {status}: {answer[:300].decode(errors='replace')}")
        return answer

    def _exchange(self, path: str, content_type: str | None = None, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            headers = {"Content-Type": content_type} if content_type else {}
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkFailed(f"the server does not answer: {error}") from None
        finally:
            connection.close()

    def unready(self) -> str | None:
        """Why it is not ready, in its own words or the network's; None when it is."""
        try:
            status, answer = self._exchange("/readyz")
        except BenchmarkFailed as error:
            return str(error)
        return None if status == 200 else answer.decode(errors="replace")

    def tasks(self) -> set[str]:
        """The tasks that some model is ready for."""
        models = json.loads(self.ask("/v1/models"))["models"]
        return {m["task"] for m in models if any(version["state"] == "ready" for version in m["versions"])}

    def batches(self, model: str) -> tuple[float, float]:
        """Rows and runs of a model so far."""
        text = self.ask("/metrics").decode()

        def value(name: str) -> float:
            pattern = rf'^gridloop_batch_rows_{name}\{{model="{re.escape(model)}"\}} (\S+)$'
            return sum(map(float, re.findall(pattern, text, re.MULTILINE)))

        return value("sum"), value("count")

    def pids(self) -> list[int]:
        """Its processes, where it was started here."""
        return process_tree(self.process.pid) if self.process else []

    def memory(self) -> dict[str, float | None]:
        """MiB of all its processes together, and of the largest: a worker."""
        sizes = [size for pid in self.pids() if (size := memory_mib(pid)) is not None]
        return {"total_mib": sum(sizes) if sizes else None, "worker_mib": max(sizes, default=None)}


@contextlib.contextmanager
def started(models: Path, workers: int) -> Iterator[Server]:
    """A server of our own on a free port, stopped at the end.

    Raises:
        BenchmarkFailed: it did not become ready, or did not end with exit code 0 after SIGTERM.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--models", str(models), "--workers", str(workers)]
    environment = {name: value for name, value in os.environ.items() if name != "GRIDLOOP_API_KEYS"}
    with tempfile.TemporaryFile() as log:

        def fate() -> str:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            state = "is still running" if process.returncode is None else f"ended with exit code {process.returncode}"
            if log.seek(0, os.SEEK_END) > 20_000:
                log.seek(-20_000, os.SEEK_END)
                log.readline()  # cut in the middle
            else:
                log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            words = [line for line in lines if "/v1/" not in line and "/metrics" not in line and "/readyz" not in line]
            return "\n".join([f"the server {state}; its last words:", *words[-8:]])

        server = Server("127.0.0.1", port)
        began = time.perf_counter()
        # A process group of its own: Ctrl-C reaches this process only, which then stops the server in order. Not a
        # session, to which Linux may give its own share of the processor (autogroup).
        server.process = process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
        try:
            wait_until_ready(server, began)
            yield server
        except BenchmarkFailed as error:
            raise BenchmarkFailed(f"{error}; {fate()}") from None
        finally:
            has_died = process.poll() is not None
            stop(process)
        if process.returncode != 0:
            what = "the server died" if has_died else "the server did not end after SIGTERM as it should"
            raise BenchmarkFailed(f"{what}: {fate()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server: in order, else after 40 s with all its processes."""
    leftover = process_tree(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        for pid in leftover:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(server: Server, began: float) -> None:
    """Ask `/readyz` until it says yes; note how long that took.

    Raises:
        BenchmarkFailed: the server has ended, or takes too long.
    """
    while (reason := server.unready()) is not None:
        if server.process and server.process.poll() is not None:
            raise BenchmarkFailed("the server did not start")
        if time.perf_counter() - began > READY_TIMEOUT_S:
            raise BenchmarkFailed(f"the server was not ready after {READY_TIMEOUT_S:.0f} s: {reason}")
        time.sleep(0.02)
    server.ready_s = time.perf_counter() - began


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


def prepare(server: Server, workload: Workload) -> Endpoint:
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


def measure(server: Server, endpoint: Endpoint, settings: argparse.Namespace) -> Measurement:
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
    if not (folder / "model.onnx").is_file():
        endpoint.note = f"{name}/{version} is not in the folder --models names: no in-process limit"
        return None
    limit = Limit(settings.limit_processes, folder, endpoint.workload, endpoint.bodies)
    if not all(map(same_answer, endpoint.expected, limit.answers)):
        limit.close()
        raise BenchmarkFailed(f"{endpoint.workload.name}: the server's answers are not those of the model in process")
    return limit


def measure_load(server: Server, endpoint: Endpoint, settings: argparse.Namespace) -> Measurement:
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


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers; None when none is."""
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(numbers) if numbers else None


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


def number(value: float | None, digits: int) -> str:
    """A number for the table; a dash for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


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

    def bounded(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            value = kind(text)
            if not low <= value <= high:
                raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g}")
            return value

        return parse

    def address(text: str) -> tuple[str, int]:
        try:
            return loopback(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    option = parser.add_argument
    option("--models", type=Path, default=Path("models"), help="the model repository (default: models)")
    option("--seconds", type=bounded(float, 0.5, 600), default=20.0, help="timed part of each run (default: 20)")
    option("--connections", type=bounded(int, 1, 1024), default=64, help="kept-alive connections (default: 64)")
    option("--repeat", type=bounded(int, 1, 20), default=1, help="rounds over all endpoints; medians are reported")
    option("--task", action="append", choices=list(discover()), help="only this task; may be given several times")
    option("--workers", type=bounded(int, 0, 128), default=0, help="server processes (default: as the server chooses)")
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
    place: contextlib.AbstractContextManager[Server]
    if settings.url:
        place = contextlib.nullcontext(Server(*settings.url))
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
            "environment": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith("GRIDLOOP_") and name not in ("GRIDLOOP_API_KEYS", "GRIDLOOP_MODELS")
            },
        },
        "server": facts,
        "results": [summary(endpoint) for endpoint in endpoints],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    try:
        report = run(settings)
    except BenchmarkFailed as error:
        print(f"load.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    print_report(report)
    if settings.json:
        settings.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failures = sum(sum(row["errors"].values()) + row["wrong"] for row in report["results"])
    return 1 if failures or not all(row["requests"] for row in report["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
