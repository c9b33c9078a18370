"""Archives of models: unpacked so that nothing in them can reach beyond their folder, or fill the disk."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

from service.errors import ServiceError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""What the names of archives end with."""
MAX_BYTES = 32 * 1024**3
"""Most that a repository may hold, unpacked (bytes)."""
MAX_FILES = 100_000
"""Most files and folders that it may have (count)."""


class RemoteUnusable(ServiceError):
    """A repository elsewhere, or the archive that it comes in, cannot be had, or holds what has no place in one.

    Args:
        problem: what is wrong with it, without a full stop.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


def unpack(archive: Path, target: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack an archive into a folder, without what it may have wrapped around everything: `models/…` becomes `…`.

    Files and folders alone are taken: no links, no devices, no name that leads out of the folder. Owners and unusual
    permissions are left behind.

    Args:
        archive: a tar, compressed or not.
        target: a new folder, which is made.
        max_bytes: most that its files may have together (bytes).
        max_files: most entries that it may have (count).

    Raises:
        RemoteUnusable: it is none, is cut short, or holds what is not taken; `target` is not there then.
    """
    unwrapped = target.with_name(f"{target.name}.unpacked")
    shutil.rmtree(unwrapped, ignore_errors=True)
    unwrapped.mkdir()
    try:
        with tarfile.open(archive, "r:*") as tar:
            _extract(tar, unwrapped, max_bytes, max_files)
        _inner(unwrapped).rename(target)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise RemoteUnusable(f"is no whole tar archive ({error})") from None
    except OSError as error:
        raise RemoteUnusable(f"cannot be unpacked ({error.strerror or error})") from None
    finally:
        shutil.rmtree(unwrapped, ignore_errors=True)


def _extract(tar: tarfile.TarFile, target: Path, max_bytes: int, max_files: int) -> None:
    size = 0
    for count, member in enumerate(tar, 1):
        size += member.size
        if count > max_files or size > max_bytes:
            raise RemoteUnusable(f"holds more than {max_files:,} files or {max_bytes / 1e9:g} GB")
        if not (member.isfile() or member.isdir()):
            raise RemoteUnusable(f"holds {member.name!r}, which is a link or a device; pack the files themselves")
        if size > shutil.disk_usage(target).free:
            raise RemoteUnusable("holds more than there is room for on the disk")
        try:
            tar.extract(member, target, filter="data")
        except tarfile.FilterError:
            raise RemoteUnusable(f"holds {member.name!r}, a name that leads out of its folder") from None
    _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """See that an archive that was read has come to its end: tarfile takes one for whole that is cut between files."""
    stream: Any = tar.fileobj
    if stream.tell() == tar.offset:  # else it has read the block of zeros that is the end
        raise RemoteUnusable("is no whole tar archive (its end is missing)")
    while stream.read(1 << 20):  # so that a compressed one's checksum is compared
        pass


def _inner(folder: Path) -> Path:
    """The folder that holds the models, below folders that hold nothing else."""
    entries = list(folder.iterdir())
    while len(entries) == 1 and entries[0].is_dir() and not (entries[0] / "manifest.toml").exists():
        folder = entries[0]
        entries = list(folder.iterdir())
    return folder
