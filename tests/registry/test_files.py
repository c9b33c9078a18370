"""A version stays what was checked, whatever happens to its files, and its files are those of its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.errors import ManifestInvalid
from service.files import without_folders
from service.registry.handle import LoadOptions
from service.registry.registry import Registry
from service.runtime.session import OnnxSession
from tests import graphs
from tests.conftest import running

X = {"x": np.array([[3.0]], np.float32)}


def scaled(path: Path, by: float, outside: bool = False) -> Path:
    """y = by · x, with the factor in a file beside it where that is asked for."""
    graphs.save(
        path,
        [onnx.helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", onnx.TensorProto.FLOAT, ["batch", 1])],
        [("y", onnx.TensorProto.FLOAT, ["batch", 1])],
        {"factor": np.full((1, 1), by, np.float32)},
    )
    if outside:
        options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
        onnx.save(onnx.load(path), path, **options)
    return path


@pytest.mark.parametrize("outside", [False, True])
def test_lone_runs_have_the_weights_of_all_others(tmp_path: Path, outside: bool) -> None:
    """The pool of lone runs is opened late; `cp` over the graph has changed it by then.

    Files beside a graph must not be mapped into memory: a change would reach the session that is open, and a shorter
    one would end the process.
    """
    graph = scaled(tmp_path / "m" / "1" / "model.onnx", 2, outside)
    session = OnnxSession(graph)
    session.lone_threads = 2
    other = scaled(tmp_path / "other" / "1" / "model.onnx", 5, outside)
    for file in other.parent.iterdir():
        (graph.parent / file.name).write_bytes(file.read_bytes())  # as `cp`: into the same file
    session.open_pool()
    assert session.run(X, alone=True)["y"] == session.run(X)["y"] == 6


@pytest.mark.parametrize("outside", [False, True])
def test_lone_runs_have_a_pool_where_nothing_has_changed(tmp_path: Path, outside: bool) -> None:
    session = OnnxSession(scaled(tmp_path / "m" / "1" / "model.onnx", 2, outside))
    session.lone_threads = 2
    session.open_pool()
    assert session._wide is not None
    assert session.run(X, alone=True)["y"] == 6


def test_a_change_of_the_weights_beside_a_graph_is_noticed(tmp_path: Path) -> None:
    graph = scaled(tmp_path / "m" / "1" / "model.onnx", 2, outside=True)
    session = OnnxSession(graph)
    weights = graph.with_name("model.onnx.data")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(ManifestInvalid, match="m/1/model.onnx: has changed since it was opened"):
        session.check_unchanged()


# ------------------------------------------------------------------------------------------------ out of the folder


def lead_out(name: str) -> Callable[[Path, Path], None]:
    """Move a file of the model out of its folder, and leave a link."""

    def move(folder: Path, elsewhere: Path) -> None:
        elsewhere.mkdir()
        shutil.move(folder / name, elsewhere / "moved")
        (folder / name).symlink_to(elsewhere / "moved")

    move.__name__ = name
    return move


def write_golden(path: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, elsewhere: Path) -> None:
        shutil.copytree(folder / "1" / "golden", elsewhere)
        golden = folder / "1" / "golden.json"
        golden.write_text(golden.read_text().replace("golden/pink.png", path.format(elsewhere=elsewhere)))

    write.__name__ = path
    return write


@pytest.mark.parametrize(
    ("lead", "where"),
    [
        (lead_out("manifest.toml"), "linked/manifest.toml"),
        (lead_out("1/labels.txt"), "linked/1/labels.txt"),
        (lead_out("1/golden.json"), "linked/1/golden.json"),
        (lead_out("1/golden/pink.png"), "linked/1/golden/pink.png"),
        (write_golden("../../../elsewhere/pink.png"), "linked/1/../../../elsewhere/pink.png"),
        (write_golden("{elsewhere}/pink.png"), "linked/1/pink.png"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_files_that_lie_elsewhere_are_refused(models: Path, tmp_path: Path, lead: Any, where: str) -> None:
    lead(graphs.colour_model(models, "linked"), tmp_path / "elsewhere")
    registry = Registry(models)
    registry.load()
    assert registry.get("linked").reason.startswith(f"{where}: leads out of the model's folder")
    assert str(tmp_path) not in registry.get("linked").reason
    assert registry.get("colours").is_ready


async def test_a_card_that_lies_elsewhere_is_not_shown(models: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the password")
    (models / "colours" / "card.md").unlink()
    (models / "colours" / "card.md").symlink_to(tmp_path / "secret")
    async with running(models) as client:
        card = (await client.get("/v1/models/colours")).json()["card"]
    assert "password" not in card
    assert "card.md leads out of the model's folder" in card


@pytest.mark.parametrize("location", ["link.data", "../../other.data", "{outside}"])
def test_weights_that_lie_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    graph = scaled(tmp_path / "models" / "m" / "1" / "model.onnx", 2, outside=True)
    outside = tmp_path / "other.data"
    shutil.move(graph.with_name("model.onnx.data"), outside)
    shutil.copy(outside, tmp_path / "models" / "other.data")
    graph.with_name("link.data").symlink_to(outside)
    model = onnx.load(graph, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location.format(outside=outside)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(ManifestInvalid, match="leads out of the model's folder") as caught:
        OnnxSession(graph)
    assert str(tmp_path) not in str(caught.value)


def test_links_within_a_folder_and_to_whole_folders_are_followed(models: Path, tmp_path: Path) -> None:
    """As a volume of Kubernetes has them, and a repository put together of folders that lie elsewhere."""
    folder = graphs.colour_model(models, "linked")
    labels = folder / "1" / "labels.txt"
    labels.rename(folder / "labels of all.txt")
    labels.symlink_to("../labels of all.txt")
    shutil.copytree(folder / "1", tmp_path / "2", symlinks=False)
    (folder / "2").symlink_to(tmp_path / "2")
    shutil.move(models / "steps", tmp_path / "steps")
    (models / "steps").symlink_to(tmp_path / "steps")
    registry = Registry(models, LoadOptions())
    registry.load()
    assert [version.reason for version in registry.get("linked").versions.values()] == [None, None]
    assert registry.get("steps").is_ready


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("open file /srv/models/m/1/x.data failed", "open file x.data failed"),
        ("at '/onnxruntime_src/core/graph.cc:12 Foo()'", "at 'graph.cc:12 Foo()'"),
        ("m/1/model.onnx and https://example.com/a/b stay", "m/1/model.onnx and https://example.com/a/b stay"),
    ],
)
def test_messages_of_libraries_name_files_without_folders(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_the_content_of_a_graphs_file_is_not_kept(tmp_path: Path) -> None:
    """ONNX Runtime's Python object would hold all that it was opened from, beside the weights that it has made of it."""
    session = OnnxSession(graphs.affine(tmp_path / "model.onnx"))
    held = [value for value in vars(session._session).values() if isinstance(value, bytes)]
    assert held == []
