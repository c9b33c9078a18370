"""Files are read as people save them; what is no such file is named, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import ManifestInvalid
from service.files import is_lfs_content, printable, read_bytes, read_text

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234567\n"


def text(path: Path) -> str:
    return read_text(path, "m/1/labels.txt", missing="is missing.")


@pytest.mark.parametrize(
    "content", [b"a\nb\n", b"\xef\xbb\xbfa\nb\n", b"a\r\nb\r\n", b"\xef\xbb\xbfa\r\nb\r\n", b"a\rb\r"]
)
def test_byte_order_marks_and_other_line_ends_are_read_away(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert text(tmp_path / "file") == "a\nb\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("cat".encode("utf-16"), "m/1/labels.txt: is UTF-16 text; save it as UTF-8."),
        ("cat".encode("utf-32"), "m/1/labels.txt: is UTF-32 text; save it as UTF-8."),
        ("cat".encode("utf-16-le"), "is not UTF-8 text: it has zero bytes, as UTF-16 has"),
        ("chien\nchaîne\n".encode("latin-1"), r"is not UTF-8 text \(byte 0xEE in line 2\); save it as UTF-8."),
        (POINTER.encode(), "is a Git LFS pointer, not the file itself; run `git lfs pull`."),
    ],
)
def test_what_is_no_utf_8_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ManifestInvalid, match=sentence):
        text(tmp_path / "file")


def test_what_is_no_file_is_named_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in {
        "pipe": "is a pipe; a file should be here.",
        "folder": "is a folder; a file should be here.",
        "dangling": "is a link to something that is not there",
        "loop": "is a link that leads back to itself",
        "nothing": "is missing.",
    }.items():
        with pytest.raises(ManifestInvalid, match=reason) as caught:
            read_bytes(tmp_path / name, f"m/{name}", missing="is missing.")
        assert str(tmp_path) not in str(caught.value)


def test_a_pointer_is_told_from_a_graph(tmp_path: Path) -> None:
    (tmp_path / "pointer").write_text(POINTER)
    (tmp_path / "graph").write_bytes(b"\x08\x08")
    assert is_lfs_content((tmp_path / "pointer").read_bytes())
    assert not is_lfs_content((tmp_path / "graph").read_bytes())
    assert not is_lfs_content(b"")


def test_names_can_always_be_shown() -> None:
    assert printable("Größe") == "Größe"
    assert printable(os.fsdecode(b"gr\xf6\xdfe")) == "gr\\udcf6\\udcdfe"
    assert printable("a\nb") == "a\\nb"
