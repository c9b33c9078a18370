"""Listening: the socket that clients connect to, on a port, at a path, or handed over by whoever starts the server."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from service.settings import FD, UNIX, Settings

BACKLOG = 2048
"""Connections that may wait to be accepted (count)."""
SOCKET_MODE = 0o666
"""Permissions of a Unix socket: as open as a port of this machine. The folder around it says who gets there."""
_LOOK_S = 1.0
"""How long a server on the same path may take to accept a connection before it counts as alive (seconds)."""


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[tuple[socket.socket, Settings]]:
    """Listen where the settings say; a Unix socket's file is removed in the end.

    Yields:
        The socket, and the settings with the host and port that it really has.

    Raises:
        OSError: somebody else listens there, or it cannot be had.
    """
    host = settings.host
    with contextlib.ExitStack() as stack:
        if host.startswith(UNIX):
            listener = stack.enter_context(_on_path(Path(host.removeprefix(UNIX)).absolute()))
        elif host.startswith(FD):
            listener = _inherited(int(host.removeprefix(FD)))
        else:
            listener = _on_port(host, settings.port)
        yield listener, settings.model_copy(update=_place(listener, host))


def _place(listener: socket.socket, host: str) -> dict[str, str | int]:
    name = listener.getsockname()
    if isinstance(name, str):
        return {"host": f"{UNIX}{name}"}
    return {"host": name[0] if host.startswith(FD) else host, "port": name[1]}


def _on_port(host: str, port: int) -> socket.socket:
    """A port that somebody else has is an error."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _on_path(path: Path) -> Iterator[socket.socket]:
    """Takes the place of a socket that nobody listens on any more, and of nothing else."""
    if _is_abandoned(path):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    ours = path.stat()
    try:
        path.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):  # it is gone already
            if os.path.samestat(path.stat(), ours):  # not the socket of a server that has come after
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    """Whether there is a socket without a server, left by one that was killed."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file of that name that is no socket")
        probe.settimeout(_LOOK_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def _inherited(descriptor: int) -> socket.socket:
    """A socket that listens already, as systemd hands it over."""
    listener = socket.socket(fileno=descriptor)
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, "that file descriptor is no listening socket")
    return listener
