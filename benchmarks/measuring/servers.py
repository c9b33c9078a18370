"""A `gridloop serve` on this machine: started, asked, watched, stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from measuring import BenchmarkFailed
from measuring.machine import memory_mib, process_tree

READY_TIMEOUT_S = 120.0
"""Time that a server has to become ready (seconds)."""


class LocalServer:
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


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def launch(command: Sequence[str], log: IO[bytes], **environment: str) -> subprocess.Popen[bytes]:
    """Start a server, which writes to this log and asks for no API keys.

    In a process group of its own: Ctrl-C reaches this process only, which then stops the server in order. Not a session,
    to which Linux may give its own share of the processor (autogroup).
    """
    ours = {name: value for name, value in os.environ.items() if name != "GRIDLOOP_API_KEYS"}
    return subprocess.Popen(
        command, env=ours | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
    )


@contextlib.contextmanager
def started(models: Path, workers: int) -> Iterator[LocalServer]:
    """A server of our own on a free port, stopped at the end.

    Raises:
        BenchmarkFailed: it did not become ready, or did not end with exit code 0 after SIGTERM.
    """
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--models", str(models), "--workers", str(workers)]
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

        server = LocalServer("127.0.0.1", port)
        began = time.perf_counter()
        server.process = process = launch(command, log)
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


def wait_until_ready(server: LocalServer, began: float) -> None:
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
