"""Processes that a server is made of: forked apart, named, and told things over Unix sockets.

Every process of a server is a child of its supervisor, whoever forked it: so it alone learns how each has ended. Linux
has what that needs, a process that adopts the orphans below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import orjson

from service import telemetry

_SET_NAME, _SET_CHILD_SUBREAPER = 15, 36
"""Of `prctl`, from Linux's `prctl.h`."""
_MOST_BYTES = 128 * 1024
"""Of a message (bytes); the kernel takes somewhat more at a time."""
_MOST_DESCRIPTORS = 250
"""With a message (count); the kernel takes 253."""


def adopt_orphans() -> None:
    """Become the parent of every process below whose own parent ends."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def name_process(name: str) -> None:
    """Have tools such as `top` and `ps -o comm` show this process by a name, of up to 15 letters."""
    _prctl(_SET_NAME, ctypes.create_string_buffer(name.encode()))


def _prctl(option: int, argument: Any) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


def fork_apart() -> int:
    """Fork a process that is not a child of this one: the one between ends at once, and the supervisor adopts it.

    Returns:
        0 in the new process, its number in this one.

    Raises:
        OSError: there can be no more processes.
    """
    reading, writing = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            try:
                pid = os.fork()
                if pid:
                    os.write(writing, pid.to_bytes(8, "little"))
                    os._exit(0)
            except OSError:
                os._exit(1)
            return 0
        os.close(writing)
        writing = -1
        told = os.read(reading, 8)
        os.waitpid(between, 0)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if not told:
        raise OSError("no process can be forked")
    return int.from_bytes(told, "little")


def end_with(work: Callable[[], int]) -> NoReturn:
    """Do a forked process's work and end the process, without a return to what it was forked from."""
    code = 1
    try:
        code = work()
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        telemetry.flush_logs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def begin_anew(name: str, close: Iterable[socket.socket] = ()) -> None:
    """Forget what is the business of the process that this one was forked from: its signals, its sockets."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):  # until somebody handles them
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    name_process(name)
    for other in close:
        other.close()


def letter_box() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel for messages, each of which arrives whole."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def tell(channel: socket.socket, message: dict[str, Any], sockets: Sequence[socket.socket] = ()) -> None:
    """Send a message, and sockets with it.

    Raises:
        OSError: nobody hears it any more, or not just now.
    """
    socket.send_fds(channel, [orjson.dumps(message)], [each.fileno() for each in sockets])


def hear(channel: socket.socket) -> tuple[dict[str, Any], list[socket.socket]] | None:
    """Receive a message, with its sockets; None where the other side is gone.

    Raises:
        BlockingIOError: there is none, and the channel does not wait.
    """
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, _MOST_DESCRIPTORS)
    except ConnectionError:
        return None
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    return (orjson.loads(data), sockets) if data else None
