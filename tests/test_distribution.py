"""What `make dist` builds: installed where there is no checkout, it serves, and its public names are there."""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest

import gridloop
from service import __version__
from service.registry.manifest import read_manifest
from service.registry.repository import read_folder

ROOT = Path(__file__).parent.parent
MODELS_WHEEL = ROOT / "deploy" / "gridloop-models"


@dataclass(frozen=True)
class Installed:
    """An environment with the wheels and an empty folder to work in."""

    python: Path
    here: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GRIDLOOP_")}
        return subprocess.run(
            [self.python, "-m", *arguments],
            cwd=self.here,
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def build(folder: Path, into: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", into, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The service's wheel and the models', as `make dist` builds them."""
    dist = tmp_path_factory.mktemp("dist")
    build(ROOT, dist, "-t", "wheel")
    build(MODELS_WHEEL, dist, "-t", "wheel")
    return dist / f"gridloop-{__version__}-py3-none-any.whl", dist / f"gridloop_models-{__version__}-py3-none-any.whl"


def installed(folder: Path, *wheels: Path) -> Installed:
    """A bare environment with wheels unpacked into it; the dependencies are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True, timeout=100)
    packages = next((folder / "env").glob("lib/python*/site-packages"))
    for wheel in wheels:
        with ZipFile(wheel) as archive:
            archive.extractall(packages)
    others = [*site.getsitepackages(), *(p for p in sys.path if p.endswith("site-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(dict.fromkeys(others)))
    (folder / "here").mkdir()
    return Installed(folder / "env" / "bin" / "python", folder / "here")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, wheels: tuple[Path, Path]) -> Installed:
    """The service without models."""
    return installed(tmp_path_factory.mktemp("alone"), wheels[0])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, wheels: tuple[Path, Path]) -> Installed:
    return installed(tmp_path_factory.mktemp("both"), *wheels)


def test_the_wheels_code_is_what_runs(both: Installed) -> None:
    where = both.run("gridloop", "--version")
    assert (where.returncode, __version__ in where.stdout) == (0, True), where.stderr
    shown = subprocess.run(
        [both.python, "-c", "import service, gridloop; print(service.__file__, gridloop.__file__)"],
        cwd=both.here,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert str(ROOT) not in shown.stdout


def test_the_wheel_and_the_source_archive_hold_every_file_of_the_packages(
    wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    """The playground's pages, and whatever else is no Python, too."""
    packages = [path for name in ("service", "gridloop") for path in (ROOT / name).rglob("*")]
    files = {
        path.relative_to(ROOT).as_posix() for path in packages if path.is_file() and "__pycache__" not in path.parts
    }
    assert "service/playground/index.html" in files
    with ZipFile(wheels[0]) as archive:
        assert files <= set(archive.namelist())
    build(ROOT, tmp_path, "-t", "sdist")
    with tarfile.open(tmp_path / f"gridloop-{__version__}.tar.gz") as archive:
        assert files <= {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.parametrize("command", ["serve", "models"])
def test_without_models_a_sentence_says_where_they_come_from(alone: Installed, command: str) -> None:
    ended = alone.run("gridloop", command, GRIDLOOP_PORT="0")
    assert ended.returncode != 0
    assert "set GRIDLOOP_MODELS to your model repository" in " ".join(ended.stderr.split())
    assert "pip install gridloop-models" in " ".join(ended.stderr.split())


def test_the_small_models_are_found_where_there_is_no_folder_of_models(both: Installed) -> None:
    listed = both.run("gridloop", "models", "--json")
    assert listed.returncode == 0, listed.stderr
    states = {
        f"{model['name']}@{version['version']}": version["state"]
        for model in json.loads(listed.stdout)
        for version in model["versions"]
    }
    assert set(states.values()) == {"ready"}
    assert {name.partition("@")[0] for name in states} == {"cifar10-cnn", "english-lstm", "series-gru"}


def test_a_folder_of_models_goes_before_the_installed_one(both: Installed, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert json.loads(both.run("gridloop", "models", "--json", GRIDLOOP_MODELS=str(tmp_path / "mine")).stdout) == []
    ended = both.run("gridloop", "models", GRIDLOOP_MODELS=str(tmp_path / "none"))
    assert ended.returncode == 2, "a folder that was named and is not there is never replaced by another"


@pytest.fixture
def server(both: Installed) -> Iterator[tuple[subprocess.Popen[str], str, list[dict[str, Any]]]]:
    """An installed server on a free port, ready, and what it has logged until then."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRIDLOOP_")}
    process = subprocess.Popen(
        [both.python, "-m", "gridloop", "serve", "--port=0", "--workers=1", "--log-format=json"],
        cwd=both.here,
        env=clean,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    lines: list[dict[str, Any]] = []
    try:
        while not any(line.get("event") == "starting" for line in lines):
            lines.append(json.loads(process.stderr.readline()))
        url = lines[-1]["url"]
        for _ in range(600):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        yield process, url, lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        process.stderr.close()


def test_an_installed_server_answers_and_says_which_models_it_serves(
    server: tuple[subprocess.Popen[str], str, list[dict[str, Any]]],
) -> None:
    _, url, lines = server
    assert lines[-1]["models"].endswith("gridloop_models/models")
    answer = httpx.post(f"{url}/v1/next-word-prediction", json={"text": "How are", "top_k": 1}, timeout=60)
    assert answer.json()["predictions"][0]["text"] == "you"
    for page in ("/", "/docs", "/playground/app.js"):
        assert httpx.get(url + page).status_code == 200


def test_the_models_wheel_holds_every_default_version_and_nothing_for_research_only() -> None:
    """What people install without reading a card is what they may use."""
    included = tomllib.loads((MODELS_WHEEL / "pyproject.toml").read_text())
    files = included["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    folders = {Path(source).parts[-2:] for source in files if source[-1].isdigit()}
    names = {name for name, _ in folders}
    for name in names:
        found = read_folder(ROOT / "models" / name)
        manifest = read_manifest(found.path)
        assert (name, manifest.default_version or found.versions[-1]) in folders
    for name, version in folders:
        licence = read_manifest(ROOT / "models" / name).of_version(ROOT / "models" / name / version).licence
        assert "not commercial" not in licence
        assert "research" not in licence.lower()


def test_every_public_name_is_there() -> None:
    for name in gridloop.__all__:
        assert getattr(gridloop, name) is not None
    assert set(gridloop.__all__) == set(dir(gridloop))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Batcher'"):
        _ = gridloop.Batcher


def test_the_public_names_of_a_task_need_no_web_framework() -> None:
    loaded = "import sys, gridloop; gridloop.Task; print('fastapi' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.strip() == "False"
