"""Model repositories elsewhere, such as `s3://bucket/models` or an archive on a web server, fetched into a folder.

fsspec speaks to all of them (`pip install gridloop[remote]`). What was fetched is kept in the user's cache folder:

    gridloop/remote/<of the URL>/current  →  snapshots/<of what it held>/

A fetch fills a new snapshot, which becomes the current one when it is whole: by a rename, so nobody sees half of it. A
file that has not changed is the very file of the snapshot before (a hard link), is not fetched again, and its model is
not loaded again by a server that watches the folder.

It is done in a process of its own: the clouds' libraries need threads and up to a hundred megabytes, and a server that
forks its workers should have neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import re
import select
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import structlog

from service.errors import SettingUnusable
from service.registry.archive import RemoteUnusable
from service.registry.elsewhere import Elsewhere
from service.registry.snapshots import update
from service.runtime.cache import cache_place

log = structlog.get_logger(__name__)

REFRESH_S = 60.0
"""`refresh` asks the other side at most so often (seconds)."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+")
_FORK = multiprocessing.get_context("fork")
_asked: dict[Path, tuple[str, float]] = {}
"""The folders that were fetched, with their URL and when it was last asked (seconds of the monotonic clock)."""


def url_of(models: Path) -> str | None:
    """The URL that was given in place of a folder; None where it is a folder.

    `Path` makes one slash of two, and the third of `file:///` belongs to the path.
    """
    match = _SCHEME.match(str(models))
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] == 'file' else ''}{str(models)[match.end() :]}"


def fetched(url: str) -> Path:
    """Fetch a repository, unless what was fetched before is up to date.

    Where it cannot be asked, what was fetched before is served, and the log says so.

    Returns:
        The folder, which stays the same; `refresh` brings it up to date.

    Raises:
        SettingUnusable: it cannot be had, and was not fetched before.
    """
    place = cache_place("remote", url)
    if place is None:
        raise SettingUnusable(
            "GRIDLOOP_MODELS", f"{shown(url)} needs a folder to be kept in; set XDG_CACHE_HOME to one"
        )
    folder = place / "current"
    try:
        _fetch_apart(url, place)
    except RemoteUnusable as error:
        if not folder.is_dir():
            raise SettingUnusable("GRIDLOOP_MODELS", str(error)) from None
        log.warning("models could not be fetched: those of the last time are served", reason=str(error))
    _asked[folder] = url, time.monotonic()
    return folder


def refresh(folder: Path, *, at_once: bool = False) -> bool:
    """Bring a folder from `fetched` up to date; any other one is left as it is.

    Args:
        folder: the repository that is served.
        at_once: ask, even if the last time was less than `REFRESH_S` ago.

    Returns:
        Whether something has changed. What cannot be asked has not: the log says so.
    """
    if folder not in _asked:
        return False
    url, last = _asked[folder]
    if not at_once and time.monotonic() - last < REFRESH_S:
        return False
    _asked[folder] = url, time.monotonic()
    try:
        return _fetch_apart(url, folder.parent)
    except RemoteUnusable as error:
        log.warning("models could not be fetched again", reason=str(error))
        return False


def keep_up_to_date(folder: Path, until: socket.socket) -> None:
    """Refresh a folder from `fetched` again and again. Blocking.

    Args:
        folder: the repository that is served.
        until: what ends it, by being closed at its other end.
    """
    while not select.select([until], [], [], REFRESH_S)[0]:
        refresh(folder, at_once=True)


def is_fetched(folder: Path) -> bool:
    """Whether a folder is one of `fetched`."""
    return folder in _asked


def shown(url: str) -> str:
    """A URL without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch(url: str, place: Path) -> bool:
    """Fetch a repository into a place, in this process.

    Args:
        url: of a folder in storage that can be listed, or of an archive anywhere.
        place: folder for its snapshots; made if it is not there.

    Returns:
        Whether `place / "current"` holds something else than before.

    Raises:
        RemoteUnusable: the repository cannot be had; `current` is as it was.
    """
    name = shown(url)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(place):
            return update(Elsewhere(url), place)
    except RemoteUnusable as error:
        raise RemoteUnusable(f"{name} {error}") from None
    except ImportError as error:
        raise RemoteUnusable(f"{name} {_what_to_install(error)}") from None
    except FileNotFoundError as error:
        if getattr(error.__cause__, "status", 404) != 404 or isinstance(error.__cause__, OSError):  # fsspec calls it so
            raise RemoteUnusable(f"{name} cannot be fetched ({_reason(error.__cause__, url)})") from None
        raise RemoteUnusable(f"there is nothing at {name}") from None
    except PermissionError:
        raise RemoteUnusable(f"{name} is refused to this server; check its credentials") from None
    except Exception as error:  # whatever the library of some storage raises
        raise RemoteUnusable(f"{name} cannot be fetched ({_reason(error, url)})") from None


def _reason(error: BaseException | None, url: str) -> str:
    """What a library says of an error, without secrets and on one line."""
    said = f"{type(error).__name__}: {error}".partition("\n")[0].replace(url, shown(url))
    return f"{said:.300}"


def _what_to_install(error: ImportError) -> str:
    if error.name == "fsspec":
        return "is fetched by fsspec, which is not installed: pip install 'gridloop[remote]'"
    return f"needs a package that is not installed ({error}): pip install 'gridloop[remote]', and for gs:// gcsfs"


def _fetch_apart(url: str, place: Path) -> bool:
    """As `fetch`, in a process of its own."""
    here, there = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_tell, args=(there, url, place), daemon=True)
    process.start()
    there.close()
    try:
        told: bool | RemoteUnusable = here.recv()
    except EOFError:
        told = RemoteUnusable(f"{shown(url)} could not be fetched: the process that did it has died")
    process.join()
    if isinstance(told, RemoteUnusable):
        raise told
    return told


def _tell(answer: Connection, url: str, place: Path) -> None:
    """Fetch, and tell whether something has changed or what is wrong."""
    try:
        answer.send(fetch(url, place))
    except RemoteUnusable as error:
        answer.send(error)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
