"""A repository where fsspec reaches it: what is listed there, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from service.registry.archive import MAX_BYTES, MAX_FILES, SUFFIXES, RemoteUnusable

_KEYS = ("ETag", "etag", "md5Hash", "Content-MD5", "crc32c", "content_hash", "Last-Modified", "LastModified", "mtime")
"""Where a listing may say which content a file has, the best first."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the repository as it is listed.

    Attributes:
        path: where it is, in the other side's words.
        size: in bytes; None where it is not told.
        key: changes with its content; None where nothing of the kind is told.
    """

    path: str
    size: int | None
    key: str | None


Listing = Mapping[str, File]
"""Files by their name below the repository; an archive is one file without a name."""


class Elsewhere:
    """A repository as fsspec reaches it."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._system, self._root = fsspec.url_to_fs(url)
        self.is_archive = urlsplit(url).path.lower().endswith(SUFFIXES)
        if not self.is_archive and url.startswith(("http:", "https:")):
            raise RemoteUnusable(f"is no archive ({', '.join(SUFFIXES)}): a web server's folders cannot be listed")

    def listing(self) -> Listing:
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

    def get(self, file: File, target: Path) -> None:
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


def _file(path: str, about: Mapping[str, Any]) -> File:
    key = next((str(about[name]) for name in _KEYS if about.get(name)), None)
    return File(path, about.get("size"), key)
