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
import filecmp
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import structlog

from service.errors import SettingUnusable
from service.registry.archive import MAX_BYTES, MAX_FILES, SUFFIXES, RemoteUnusable, unpack
from service.runtime.cache import cache_place

log = structlog.get_logger(__name__)

REFRESH_S = 60.0
"""`refresh` asks the other side at most so often (seconds)."""
TRIES = 3
"""A repository that changes while it is fetched is fetched anew so often (count)."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+")
_KEYS = ("ETag", "etag", "md5Hash", "Content-MD5", "crc32c", "content_hash", "Last-Modified", "LastModified", "mtime")
"""Where a listing may say which content a file has, the best first."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the repository as it is listed.

    Attributes:
        path: where it is, in the other side's words.
        size: in bytes; None where it is not told.
        key: changes with its content; None where nothing of the kind is told.
    """

    path: str
    size: int | None
    key: str | None


_Listing = Mapping[str, _File]
"""Files by their name below the repository; an archive is one file without a name."""
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
            return _update(_Elsewhere(url), place)
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


class _Elsewhere:
    """A repository as fsspec reaches it."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._system, self._root = fsspec.url_to_fs(url)
        self.is_archive = urlsplit(url).path.lower().endswith(SUFFIXES)
        if not self.is_archive and url.startswith(("http:", "https:")):
            raise RemoteUnusable(f"is no archive ({', '.join(SUFFIXES)}): a web server's folders cannot be listed")

    def listing(self) -> _Listing:
        """What is there now.

        Raises:
            FileNotFoundError: nothing is.
            RemoteUnusable: a name leads out of the folder, or there is too much.
        """
        self._system.invalidate_cache()
        if self.is_archive:
            return {"": _file(self._root, self._system.info(self._root))}
        root = PurePosixPath(self._root)
        found = self._system.find(self._root, detail=True)
        files = {str(PurePosixPath(path).relative_to(root)): _file(path, about) for path, about in found.items()}
        if not files:
            raise FileNotFoundError(self._root)
        for name in files:
            if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
                raise RemoteUnusable(f"holds {name!r}, a name that leads out of its folder")
        if len(files) > MAX_FILES or sum(file.size or 0 for file in files.values()) > MAX_BYTES:
            raise RemoteUnusable(f"holds more than {MAX_FILES:,} files or {MAX_BYTES / 1e9:g} GB")
        return files

    def get(self, file: _File, target: Path) -> None:
        """Fetch one file.

        Raises:
            RemoteUnusable: it came short, or does not end.
        """
        from fsspec.callbacks import Callback

        class Limit(Callback):  # type: ignore[misc]  # fsspec has no types
            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > MAX_BYTES:
                    raise RemoteUnusable(f"is larger than {MAX_BYTES / 1e9:g} GB")

        target.parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(file.path, str(target), callback=Limit())
        if file.size is not None and target.stat().st_size < file.size:  # more: it was sent compressed
            raise RemoteUnusable(f"came short: {target.stat().st_size} of {file.size} bytes")


def _file(path: str, about: Mapping[str, Any]) -> _File:
    key = next((str(about[name]) for name in _KEYS if about.get(name)), None)
    return _File(path, about.get("size"), key)


def _update(elsewhere: _Elsewhere, place: Path) -> bool:
    """Make a snapshot of what is there now, if it is not the current one, and make it that."""
    current = place / "current"
    before = current.resolve() if current.is_dir() else None
    for _ in range(TRIES):
        listing = elsewhere.listing()
        name = _digest(listing)
        if name is not None and (place / "snapshots" / name).is_dir():
            return _point(place, name)
        partial = place / "partial"
        _remove(partial)
        partial.mkdir()
        try:
            content = _download(elsewhere, listing, partial, before)
        except (RemoteUnusable, FileNotFoundError):
            if elsewhere.listing() == listing:
                raise
            continue  # a file was replaced or removed meanwhile
        if elsewhere.listing() == listing:
            name = name or content
            break
    else:
        raise RemoteUnusable("changes while it is fetched; try again when the upload is done")
    snapshot = place / "snapshots" / name
    snapshot.parent.mkdir(exist_ok=True)
    if snapshot.is_dir():  # nothing told that it is the same until it was here
        _remove(partial)
        return _point(place, name)
    if before is not None:
        _share_what_is_the_same(partial / "models", before)
    _listing_of(partial / "models").write_text(json.dumps({key: asdict(file) for key, file in listing.items()}))
    (partial / "models").rename(snapshot)
    _listing_of(partial / "models").rename(_listing_of(snapshot))
    _remove(partial)
    return _point(place, name)


def _download(elsewhere: _Elsewhere, listing: _Listing, partial: Path, before: Path | None) -> str:
    """Fetch everything into `partial/models`; returns what stands for the content, where no listing tells."""
    models = partial / "models"
    if elsewhere.is_archive:
        archive = partial / "archive"
        elsewhere.get(listing[""], archive)
        with archive.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
        unpack(archive, models)
        return content
    known = _known(before) if before is not None else {}
    for name, file in listing.items():
        if file.key is not None and known.get(name) == asdict(file) and before is not None:
            (models / name).parent.mkdir(parents=True, exist_ok=True)
            (models / name).hardlink_to(before / name)
        else:
            elsewhere.get(file, models / name)
    return hashlib.sha256(os.urandom(16)).hexdigest()[:32]  # of files that tell nothing: always new


def _listing_of(snapshot: Path) -> Path:
    """The file that keeps what was listed when a snapshot was made."""
    return snapshot.with_name(f"{snapshot.name}.json")


def _known(snapshot: Path) -> Mapping[str, Any]:
    """What was listed when a snapshot was made; nothing where that cannot be read."""
    try:
        found = json.loads(_listing_of(snapshot).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _share_what_is_the_same(models: Path, before: Path) -> None:
    """Put the very file of the snapshot before in the place of a new one with the same content."""
    for path in models.rglob("*"):
        earlier = before / path.relative_to(models)
        if path.is_file() and earlier.is_file() and not earlier.samefile(path) and filecmp.cmp(path, earlier, False):
            path.unlink()
            path.hardlink_to(earlier)


def _digest(listing: _Listing) -> str | None:
    """A name for what is listed; None where some file does not tell which content it has."""
    if any(file.key is None for file in listing.values()):
        return None
    told = sorted((name, file.size, file.key) for name, file in listing.items())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _point(place: Path, name: str) -> bool:
    """Make a snapshot the current one and keep the one before, which may be served. Returns whether it was another."""
    current, target = place / "current", Path("snapshots") / name
    if current.is_symlink() and current.readlink() == target:
        return False
    earlier = current.readlink().name if current.is_symlink() else None
    new = place / "new"
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(current)
    kept = {name, earlier}
    for snapshot in (place / "snapshots").iterdir():
        if snapshot.name.removesuffix(".json") not in kept:
            _remove(snapshot)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
