"""A load in a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from array import array

import pytest

from service.client.http import ClientFailed
from service.client.process import put_load
from tests.client.servers import answering, echo, load_for


async def test_the_client_in_its_own_process_tells_the_same():
    async with answering(echo) as (port, taken):
        seen = await asyncio.to_thread(put_load, load_for(port, samples=3))
    assert seen.requests > 0
    assert seen.failures == 0
    assert [json.loads(body)["n"] for _, body in seen.samples] == [index for index, _ in seen.samples]
    assert len(taken) == 3


async def test_the_client_in_its_own_process_says_why_it_failed():
    async with answering(echo) as (port, _):
        pass
    with pytest.raises(ClientFailed, match="takes no connection"):
        await asyncio.to_thread(put_load, load_for(port))


def test_a_report_that_cannot_be_read_is_a_failure_and_no_crash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/echo")  # prints its arguments and succeeds
    with pytest.raises(ClientFailed, match=r"report of 18 bytes cannot be read"):
        put_load(load_for(1))


def test_a_report_is_written_whole_when_a_signal_interrupts_it():
    code = (
        "import signal; from service.client.process import write_whole\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None); write_whole(b'x' * 3_000_000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as client:
        assert client.stdout
        waiting = array("i", [0])
        while waiting[0] < 65_536:  # the pipe is full: the client waits within its write
            time.sleep(0.01)
            fcntl.ioctl(client.stdout, termios.FIONREAD, waiting)
        client.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        assert len(client.stdout.read()) == 3_000_000
