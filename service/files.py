"""Files of a model folder, read as people save and copy them; what cannot be read is refused with its reason.

Editors put byte-order marks in front, a checkout without Git LFS leaves pointers in place of files, a volume has
folders of another user, a link leads nowhere. Every function here either gives the content or raises `ManifestInvalid`
with the file's place below the repository and what to do, and never waits for a pipe that nobody writes to. What a
model's files say is shown to callers, or shapes what they are shown; so a link among them must not lead to other files.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from service.errors import ManifestInvalid

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_OUTSIDE = "leads out of the model's folder; copy the file itself to this place."
_REASONS = {
    errno.EACCES: "cannot be read: permission denied; let the server's user read it (chmod a+rX)",
    errno.EPERM: "cannot be read: not permitted; let the server's user read it (chmod a+rX)",
    errno.ELOOP: "is a link that leads back to itself; replace it by what it should lead to",
}


def read_text(path: Path, where: str, *, missing: str, inside: Sequence[Path] = ()) -> str:
    """Read a text file: UTF-8 with or without a byte-order mark; every line ends in a single line feed.

    Args:
        path: the file.
        where: its place below the model repository, for messages.
        missing: what to say when there is none.
        inside: folders of which the file must lie in one, once links are followed; left out: it may lie anywhere.

    Raises:
        ManifestInvalid: there is no such file, or it cannot be read, or is no UTF-8.
    """
    return (
        decode(read_bytes(path, where, missing=missing, inside=inside), where).replace("\r\n", "\n").replace("\r", "\n")
    )


def read_bytes(path: Path, where: str, *, missing: str, inside: Sequence[Path] = ()) -> bytes:
    """Read a whole file, as `open_file` opens it."""
    with open_file(path, where, missing=missing, inside=inside) as file:
        content = file.read()
    if is_lfs_content(content):
        raise ManifestInvalid(where, "is a Git LFS pointer, not the file itself; run `git lfs pull`.")
    return content


def decode(content: bytes, where: str) -> str:
    """The text of a file's bytes, without its byte-order mark.

    Raises:
        ManifestInvalid: it is no UTF-8; the message names the encoding where that is plain.
    """
    for mark, encoding in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise ManifestInvalid(where, f"is {encoding} text; save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestInvalid(
            where, f"is not UTF-8 text (byte 0x{content[error.start]:02X} in line {line}); save it as UTF-8."
        ) from None
    if "\0" in text:
        raise ManifestInvalid(where, "is not UTF-8 text: it has zero bytes, as UTF-16 has. Save it as UTF-8.")
    return text


@contextmanager
def open_file(
    path: Path, where: str, *, missing: str, inside: Sequence[Path] = (), outside: str = _OUTSIDE
) -> Iterator[BinaryIO]:
    """Open a file for reading if it is one; a pipe or a device is not even opened.

    Args:
        path: the file.
        where: its place below the model repository, for messages.
        missing: what to say when there is none.
        inside: folders of which the file must lie in one, once links are followed; left out: it may lie anywhere.
        outside: what to say when it lies elsewhere.

    Raises:
        ManifestInvalid: there is none, it is something else, or it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if inside and not _lies_in(path, inside):
            raise ManifestInvalid(where, outside)
        if not stat.S_ISREG(mode):
            raise ManifestInvalid(where, f"is {kind_of(mode)}; a file should be here.")
        file = path.open("rb")
    except FileNotFoundError:
        raise ManifestInvalid(where, _DANGLING if path.is_symlink() else missing) from None
    except OSError as error:
        raise ManifestInvalid(where, f"{reason_of(error)}.") from None
    with file:
        yield file


def _lies_in(path: Path, folders: Sequence[Path]) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders)


_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[^/\s\"',:;()\[\]]+/)+")


def without_folders(text: str) -> str:
    """Somebody else's message, with the names of files instead of their paths on this machine."""
    return _ABSOLUTE.sub("", text)


def is_lfs_content(content: bytes) -> bool:
    """Whether a file's content is what Git LFS leaves in its place until it is fetched."""
    return content.startswith(_LFS_POINTER)


def folder_problem(path: Path) -> str | None:
    """Why what should be a folder cannot be listed and entered, as a sentence; None when it can."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISDIR(mode):
            return f"is {kind_of(mode)}; a folder should be here."
        with os.scandir(path) as entries:
            for entry in entries:
                (path / entry.name).lstat()  # a folder may be listed and yet not be entered
                break
    except FileNotFoundError:
        return _DANGLING if path.is_symlink() else "is missing."
    except OSError as error:
        return f"{reason_of(error)}."
    return None


_DANGLING = "is a link to something that is not there; copy the files themselves, or mend the link."


def reason_of(error: OSError) -> str:
    """What keeps a file from being read, without its path on this machine."""
    return _REASONS.get(error.errno or 0, f"cannot be read: {error.strerror or type(error).__name__}")


def kind_of(mode: int) -> str:
    """What a file of this mode is, in words."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISREG: "a file"}
    return next((words for is_kind, words in kinds.items() if is_kind(mode)), "a device")


def printable(name: str) -> str:
    """A file's name as it can be shown: bytes that are no UTF-8, and control characters, are escaped."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    return shown if shown.isprintable() else shown.encode("unicode_escape").decode()
