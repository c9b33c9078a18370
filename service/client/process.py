"""A load in a process of its own, so that the client shares an interpreter's lock with nothing.

`python -m service.client` is that process: one JSON document in, one out.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

from service.client.http import ClientFailed, ServerAddress
from service.client.load import Load, LoadResult, Request, run_load

START_AND_END_S = 30.0
"""Time for the process to start, and to hand over what it measured (seconds)."""


def put_load(load: Load) -> LoadResult:
    """Put a load on a server, from a process of its own.

    Raises:
        ClientFailed: nothing could be measured.
    """
    told = {**asdict(load), "requests": [(_text(request.wire), request.model) for request in load.requests]}
    patience_s = load.warm_up_s + load.seconds + load.grace_s + START_AND_END_S
    try:
        done = subprocess.run(
            [sys.executable, "-m", "service.client"],
            input=json.dumps(told).encode(),
            capture_output=True,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClientFailed(f"the client did not end within {patience_s:.0f} s") from None
    if done.returncode:
        raise ClientFailed(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "the client has died")
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise ClientFailed(f"the client's report of {len(done.stdout):,} bytes cannot be read: {error}") from None
    answer["samples"] = [(index, base64.b64decode(body)) for index, body in answer["samples"]]
    return LoadResult(**answer)


def client_process() -> None:
    """Read a load from stdin, put it on the server, write the result to stdout; exit code 1 with the reason if not."""
    told = json.load(sys.stdin)
    told["address"] = ServerAddress(**told["address"])
    told["requests"] = [Request(base64.b64decode(wire), model) for wire, model in told["requests"]]
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            result = runner.run(run_load(Load(**told)))
        except ClientFailed as error:
            sys.exit(str(error))
    report = {**asdict(result), "samples": [(index, _text(body)) for index, body in result.samples]}
    write_whole(json.dumps(report).encode())


def write_whole(data: bytes) -> None:
    """Write all of it to stdout.

    Under `PYTHONUNBUFFERED`, `print` loses the rest of a write that a signal interrupts once the pipe is full.
    """
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(data)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
