"""Servers that are compared: the service and plain FastAPI, each started with its own command."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import BenchmarkFailed
from measuring.machine import cpu_seconds, memory_mib, process_tree
from measuring.servers import READY_TIMEOUT_S, free_port, launch, stop
from measuring.workloads import Workload
from service.client.http import ClientFailed, Server, ServerAddress

BENCHMARKS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Target:
    """A server to measure.

    Attributes:
        name: in the table.
        command: starts it; `{port}` and `{models}` are filled in.
        ready: asked with GET until it answers 200.
        request: a workload's body as this server takes it: path, content type, body.
    """

    name: str
    command: Sequence[str]
    ready: str
    request: Callable[[Workload, bytes], tuple[str, str, bytes]]


def as_service(workload: Workload, body: bytes) -> tuple[str, str, bytes]:
    return workload.path, workload.content_type, body


def as_form(workload: Workload, body: bytes) -> tuple[str, str, bytes]:
    """JSON as it is; files as a browser's form sends them."""
    path = f"/{workload.task}"
    if workload.content_type == "application/json":
        return path, workload.content_type, body
    boundary = "bench-0f8a1c"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
    head += f"Content-Type: {workload.content_type}\r\n\r\n"
    return path, f"multipart/form-data; boundary={boundary}", head.encode() + body + f"\r\n--{boundary}--\r\n".encode()


def targets(cores: int) -> list[Target]:
    """Everything that is compared, on this many cores."""
    service = [
        sys.executable,
        "-m",
        "service",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--models",
        "{models}",
    ]
    plain = [sys.executable, "-m", "uvicorn", "plain_fastapi:app", "--app-dir", str(BENCHMARKS), "--port", "{port}"]
    plain += ["--log-level", "warning"]
    found = [
        Target("gridloop", service, "/readyz", as_service),
        Target("fastapi", plain, "/openapi.json", as_form),
    ]
    if cores > 1:
        found.append(Target(f"fastapi ×{cores}", [*plain, "--workers", str(cores)], "/openapi.json", as_form))
    return found


class Running:
    """A target that runs.

    Attributes:
        port: on 127.0.0.1.
        ready_s: from the start to its first answer.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self.port, self.ready_s = process, port, float("nan")

    def pids(self) -> list[int]:
        return process_tree(self._process.pid)

    def memory_mib(self) -> float:
        """Proportional set size of all its processes."""
        return sum(size for pid in self.pids() if (size := memory_mib(pid)) is not None)

    def settle(self, most_s: float = 3.0) -> None:
        """Wait until it does nothing."""
        until = time.perf_counter() + most_s
        while time.perf_counter() < until:
            before = cpu_seconds(self.pids())
            time.sleep(0.2)
            if cpu_seconds(self.pids()) - before < 0.02:
                return


@contextlib.contextmanager
def running(target: Target, models: Path) -> Iterator[Running]:
    """Start a server on a free port, wait until it is ready, and stop it at the end.

    Raises:
        BenchmarkFailed: it does not become ready; the message has its last words.
    """
    port = free_port()
    command = [part.format(port=port, models=models) for part in target.command]
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = launch(command, log, GRIDLOOP_MODELS=str(models))
        server = Running(process, port)
        try:
            _wait_until_ready(target, server, process, began)
            yield server
        except BenchmarkFailed as error:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            raise BenchmarkFailed(f"{error}; its last words:\n{log.read().decode(errors='replace')}") from None
        finally:
            stop(process)


def _wait_until_ready(target: Target, server: Running, process: subprocess.Popen[bytes], began: float) -> None:
    asked = Server(ServerAddress("127.0.0.1", server.port))
    while True:
        try:
            asked.ask(target.ready)
        except ClientFailed as error:
            if process.poll() is not None:
                raise BenchmarkFailed(f"{target.name} ended with exit code {process.returncode}") from None
            if time.perf_counter() - began > READY_TIMEOUT_S:
                raise BenchmarkFailed(f"{target.name} was not ready in time: {error}") from None
            time.sleep(0.02)
        else:
            break
    server.ready_s = time.perf_counter() - began
    server.settle(10)  # workers that are not ready yet
