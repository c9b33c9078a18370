"""Archives of models are unpacked, and nothing in one reaches beyond its folder."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from service.registry.archive import RemoteUnusable, unpack


def archive(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(content)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_is_unpacked_however_it_is_compressed(tmp_path: Path, mode: str) -> None:
    made = archive(tmp_path / "a", {"m/manifest.toml": b"x", "n/manifest.toml": b"y"}, mode)
    unpack(made, tmp_path / "models")
    assert (tmp_path / "models/m/manifest.toml").read_bytes() == b"x"


@pytest.mark.parametrize("wrapped", ["", "models/", "./a/b/"])
def test_folders_around_everything_are_left_out(tmp_path: Path, wrapped: str) -> None:
    made = archive(tmp_path / "a", {f"{wrapped}m/manifest.toml": b"x", f"{wrapped}n/manifest.toml": b"y"})
    unpack(made, tmp_path / "models")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"m", "n"}


def test_the_only_model_is_no_folder_around_everything(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "a", {"models/m/manifest.toml": b"x"}), tmp_path / "models")
    assert (tmp_path / "models/m/manifest.toml").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("../out", b"x", "leads out"),
        ("a/../../out", b"x", "leads out"),
        ("m/passwd", link("m/passwd", "/etc/passwd"), "is a link"),
        ("m/again", link("m/again", "m/b", tarfile.LNKTYPE), "is a link"),
        ("m/pipe", link("m/pipe", "", tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
def test_what_leads_out_of_the_folder_is_refused_whole(
    tmp_path: Path, name: str, content: bytes | tarfile.TarInfo, complaint: str
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(RemoteUnusable, match=complaint):
        unpack(archive(tmp_path / "a", {"m/b": b"x", name: content}), inner / "models")
    assert list(inner.iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_an_absolute_name_stays_inside(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "a", {"/etc/m/b": b"x", "/etc/n/b": b"y"}), tmp_path / "models")
    assert (tmp_path / "models/m/b").read_bytes() == b"x"


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """Twenty megabytes of zeros are twenty kilobytes of gzip."""
    made = archive(tmp_path / "a", {"m/b": bytes(20_000_000)}, "w:gz")
    assert made.stat().st_size < 50_000
    with pytest.raises(RemoteUnusable, match=r"more than 100,000 files or 0\.01 GB"):
        unpack(made, tmp_path / "models", max_bytes=10_000_000)
    with pytest.raises(RemoteUnusable, match="more than 1 files"):
        unpack(archive(tmp_path / "b", {"m/b": b"", "m/c": b""}), tmp_path / "models", max_files=1)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_an_archive_that_is_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    whole = archive(tmp_path / "a", {"m/b": b"abc" * 10_000, "m/c": b"xyz" * 10_000}, "w:gz").read_bytes()
    (tmp_path / "b").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(RemoteUnusable, match="is no whole tar archive"):
        unpack(tmp_path / "b", tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_that_is_cut_between_two_files_is_refused(tmp_path: Path, mode: str) -> None:
    """tarfile takes it for whole."""
    whole = archive(tmp_path / "a", {"m/b": b"x", "m/c": b"y"}).read_bytes()
    cut = whole[:1024]  # the head and the content of the first
    (tmp_path / "b").write_bytes(gzip.compress(cut) if mode == "w:gz" else cut)
    with pytest.raises(RemoteUnusable, match="its end is missing"):
        unpack(tmp_path / "b", tmp_path / "models")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"<html>Not found</html>")
    with pytest.raises(RemoteUnusable, match="is no whole tar archive"):
        unpack(tmp_path / "a", tmp_path / "models")
