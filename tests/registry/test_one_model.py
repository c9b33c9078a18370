"""The folder of one model is served as it is, as KServe mounts it: no folder of models is needed around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.registry.check import check_folder
from service.registry.registry import Registry
from service.registry.repository import is_one_model
from tests import graphs
from tests.conftest import running


@pytest.fixture
def mounted(models: Path, tmp_path: Path) -> Path:
    """The classifier of colours at a mount point of another name."""
    return Path(shutil.move(models / "colours", tmp_path / "mnt"))


async def label_of(mount: Path, model: str, **settings: str) -> str:
    async with running(mount, **settings) as client:
        answer = await client.post(f"/v1/image-classification?model={model}", content=graphs.png())
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == {"name": model, "version": "1"}
        return str(answer.json()["results"][0]["predictions"][0]["label"])


async def test_it_has_the_name_of_its_folder(mounted: Path) -> None:
    assert await label_of(mounted, "mnt") == "red"


async def test_or_the_name_that_the_settings_give_it(mounted: Path) -> None:
    assert await label_of(mounted, "colours", model_name="colours") == "red"


async def test_its_graph_may_lie_beside_its_manifest(mounted: Path) -> None:
    for file in (mounted / "1").iterdir():
        shutil.move(file, mounted / file.name)
    (mounted / "1").rmdir()
    assert await label_of(mounted, "colours", model_name="colours") == "red"
    assert all(finding.ok for finding in check_folder(mounted))


async def test_without_a_manifest_its_tensors_are_served(tmp_path: Path) -> None:
    """As versions, and as a graph alone."""
    graphs.affine(tmp_path / "versions" / "3" / "model.onnx")
    graphs.affine(tmp_path / "graph" / "model.onnx")
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    for name, version in (("versions", "3"), ("graph", "1")):
        async with running(tmp_path / name) as client:
            answer = (await client.post(f"/v2/models/{name}/infer", json=body)).json()
        assert (answer["model_version"], answer["outputs"][0]["data"]) == (version, [3, 5])


def test_a_version_may_have_a_manifest_of_its_own(mounted: Path) -> None:
    (mounted / "1" / "manifest.toml").write_text('licence = "CC0-1.0"')
    registry = Registry(mounted)
    registry.load()
    handle = registry.get("mnt").versions["1"].handle
    assert handle is not None
    assert handle.claims.licence == "CC0-1.0"


def test_its_version_is_loaded_anew_from_the_same_place(mounted: Path) -> None:
    registry = Registry(mounted, name="colours")
    registry.load()
    shutil.copytree(mounted / "1", mounted / "2")
    registry.add("colours", "2")
    assert [version.state for version in registry.get("colours").versions.values()] == ["ready", "ready"]


def test_a_file_beside_the_manifest_must_not_lie_elsewhere(tmp_path: Path) -> None:
    graphs.affine(tmp_path / "elsewhere.onnx")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    assert "model.onnx leads out of the model's folder" in Registry(tmp_path / "mnt").get("mnt").reason


def test_a_repository_stays_one_whatever_lies_in_it(models: Path) -> None:
    (models / "manifest.toml").write_text('task = "tensor"')
    assert not is_one_model(models)
    assert [model.name for model in Registry(models)] == ["colours", "steps"]


def test_a_link_to_it_gives_it_its_own_name(mounted: Path, tmp_path: Path) -> None:
    (tmp_path / "pink").symlink_to(mounted)
    assert [model.name for model in Registry(tmp_path / "pink")] == ["pink"]
