"""Snapshots of a repository elsewhere: filled apart, and made the current one by a rename when they are whole.

PLACE/current  →  snapshots/<of what was listed>/
PLACE/snapshots/<of what was listed>.json: what was listed, so that only what has changed is fetched again
PLACE/partial: a fetch that is under way, or was killed
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.registry.archive import RemoteUnusable, unpack
from service.registry.elsewhere import Elsewhere, Listing

TRIES = 3
"""A repository that changes while it is fetched is fetched anew so often (count)."""


def update(elsewhere: Elsewhere, place: Path) -> bool:
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


def _download(elsewhere: Elsewhere, listing: Listing, partial: Path, before: Path | None) -> str:
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
    return _content_of(models) if _digest(listing) is None else ""


def _content_of(folder: Path) -> str:
    """What stands for all files of a folder."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            whole.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()[:32]


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


def _digest(listing: Listing) -> str | None:
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
