"""What cannot be read is listed with its reason and stops nothing: neither the start nor any other model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.registry.registry import Registry
from tests import graphs
from tests.conftest import running


def reasons(models: Path) -> dict[str, str]:
    """Every reason that the list gives, by `name` or `name@version`."""
    registry = Registry(models)
    registry.load()
    assert registry.get("colours").is_ready
    assert registry.get("steps").is_ready
    return {
        f"{model.name}@{version.name}": version.reason
        for model in registry
        for version in model.versions.values()
        if version.reason
    } | {model.name: model.problem for model in registry if model.problem}


def _dangling_folder(models: Path) -> None:
    (models / "spoilt").symlink_to(models / "nowhere")


def _looping_folder(models: Path) -> None:
    (models / "spoilt").symlink_to(models / "spoilt")


def _spoil(name: str, by: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Another model, with one of its files or folders replaced."""

    def spoil(models: Path) -> None:
        path = graphs.colour_model(models, "spoilt") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        by(path)

    spoil.__name__ = f"{name} by {by.__name__}"
    return spoil


def dangle(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def text(path: Path) -> None:
    path.write_text("text")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def nothing(path: Path) -> None:
    pass


DANGLING, LOOPING = "is a link to something that is not there", "is a link that leads back to itself"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_dangling_folder, f"spoilt: {DANGLING}"),
        (_looping_folder, f"spoilt: {LOOPING}"),
        (_spoil("1", dangle), f"spoilt/1: {DANGLING}"),
        (_spoil("1", loop), f"spoilt/1: {LOOPING}"),
        (_spoil("1", text), "spoilt/1: is a file; a version is a folder with a model.onnx."),
        (_spoil("1", os.mkfifo), "spoilt/1: is a pipe; a version is a folder"),
        (_spoil("1", os.mkdir), "spoilt/1: has no model.onnx"),
        (_spoil("manifest.toml", dangle), f"spoilt/manifest.toml: {DANGLING}"),
        (_spoil("manifest.toml", loop), f"spoilt/manifest.toml: {LOOPING}"),
        (_spoil("manifest.toml", os.mkfifo), "spoilt/manifest.toml: is a pipe"),
        (_spoil("manifest.toml", os.mkdir), "spoilt/manifest.toml: is a folder"),
        (_spoil("1/model.onnx", dangle), f"spoilt/1/model.onnx: {DANGLING}"),
        (_spoil("1/model.onnx", loop), f"spoilt/1/model.onnx: {LOOPING}"),
        (_spoil("1/model.onnx", os.mkfifo), "spoilt/1/model.onnx: is a pipe; a file should be here."),
        (_spoil("1/model.onnx", os.mkdir), "spoilt/1/model.onnx: is a folder; a file should be here."),
        (_spoil("1/model.onnx", pointer), "spoilt/1/model.onnx: is a Git LFS pointer, not the graph itself; run `git lfs pull`."),
        (_spoil("1/labels.txt", os.mkfifo), "spoilt/1/labels.txt: is a pipe"),
        (_spoil("1/labels.txt", os.mkdir), "spoilt/1/labels.txt: is a folder"),
        (_spoil("1/labels.txt", pointer), "spoilt/1/labels.txt: is a Git LFS pointer"),
        (_spoil("1/golden.json", os.mkfifo), "spoilt/1/golden.json: is a pipe"),
        (_spoil("1/golden.json", dangle), f"spoilt/1/golden.json: {DANGLING}"),
        (_spoil("1/golden/pink.png", os.mkfifo), "spoilt/1/golden/pink.png: is a pipe"),
        (_spoil("1/golden/pink.png", pointer), "spoilt/1/golden/pink.png: is a Git LFS pointer"),
        (_spoil("1/golden/pink.png", nothing), "spoilt/1/golden/pink.png: is missing; golden.json names it as 'image'."),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_what_cannot_be_read_is_listed_with_the_reason(models: Path, spoil: Any, reason: str) -> None:
    spoil(models)
    (found,) = set(reasons(models).values())
    assert found.startswith(reason)
    assert str(models) not in found


def test_another_version_is_served_beside_one_that_cannot_be_read(models: Path) -> None:
    (models / "colours" / "2").symlink_to("nowhere")
    (models / "colours" / "notes.txt").symlink_to(models / "colours" / "card.md")
    assert list(reasons(models)) == ["colours@2"]


async def test_names_that_are_no_utf_8_are_listed_too(models: Path) -> None:
    (models / os.fsdecode(b"caf\xe9")).mkdir()
    shutil.copytree(models / "colours" / "1", models / "colours" / os.fsdecode(b"z\xe9ro"))
    async with running(models) as client:
        listed = {model["name"]: model for model in (await client.get("/v1/models")).json()["models"]}
    assert "rename the folder" in listed["caf\\udce9"]["reason"]
    assert [version["state"] for version in listed["colours"]["versions"]] == ["ready", "failed"]
    assert "its name is not UTF-8 text" in listed["colours"]["versions"][1]["reason"]


UNPRIVILEGED = (
    ["setpriv", *(f"--{which}=-dac_override,-dac_read_search" for which in ("bounding-set", "inh-caps"))]
    if os.geteuid() == 0
    else []
)


@pytest.mark.skipif(bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root may read everything")
@pytest.mark.parametrize(
    ("name", "where"),
    [
        (".", "spoilt"),
        ("1", "spoilt/1"),
        ("manifest.toml", "spoilt/manifest.toml"),
        ("1/model.onnx", "spoilt/1/model.onnx"),
        ("1/labels.txt", "spoilt/1/labels.txt"),
        ("1/golden.json", "spoilt/1/golden.json"),
        ("1/golden", "spoilt/1/golden/pink.png"),
        ("1/golden/pink.png", "spoilt/1/golden/pink.png"),
    ],
)
def test_what_another_user_owns_is_listed_as_not_permitted(models: Path, name: str, where: str) -> None:
    """As `lost+found` of every ext4 volume. A process of its own: only there a right can be given up for good."""
    path = graphs.colour_model(models, "spoilt") / name
    path.chmod(0)
    command = [*UNPRIVILEGED, sys.executable, "-m", "service", "models", "--models", str(models), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        path.chmod(0o700)
    assert done.returncode == 1, done.stderr
    listed = {model["name"]: model for model in json.loads(done.stdout)}
    assert listed["spoilt"]["reason"].startswith(f"{where}: cannot be read: permission denied")
    assert listed["colours"]["versions"][0]["state"] == listed["steps"]["versions"][0]["state"] == "ready"
