"""Folders become models; a bad folder is named, explained, and harms nobody."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from service.errors import ManifestInvalid, ModelNotFound, ModelNotReady
from service.registry.check import check_folder
from service.registry.handle import LoadOptions
from service.registry.registry import Registry
from service.registry.repository import scan, version_key
from service.tasks.base import Upload
from tests import graphs


def loaded(models: Path) -> Registry:
    registry = Registry(models)
    registry.load()
    return registry


def test_every_folder_is_a_model(models: Path) -> None:
    registry = loaded(models)
    assert {m.name: [(v.name, v.state) for v in m.versions.values()] for m in registry} == {
        "colours": [("1", "ready")],
        "steps": [("1", "ready")],
    }


def test_files_and_hidden_folders_are_no_models(models: Path) -> None:
    (models / "README.md").write_text("notes")
    for name in (".git", "__pycache__", "old~"):
        (models / name).mkdir()
    assert [found.name for found in scan(models)] == ["colours", "steps"]


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.toml").unlink()


def _bad_toml(folder: Path) -> None:
    (folder / "manifest.toml").write_text('task = "image-classification')


def _unknown_field(folder: Path) -> None:
    (folder / "manifest.toml").write_text('task = "image-classification"\nmax_batch = 4')


def _unknown_task(folder: Path) -> None:
    (folder / "manifest.toml").write_text('task = "mind-reading"')


def _no_version(folder: Path) -> None:
    shutil.rmtree(folder / "1")


def _missing_default(folder: Path) -> None:
    (folder / "manifest.toml").write_text('task = "image-classification"\ndefault_version = "9"')


def _not_onnx(folder: Path) -> None:
    (folder / "1" / "model.onnx").write_bytes(b"not a graph")


def _half_a_graph(folder: Path) -> None:
    graph = folder / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-20])


def _too_new(folder: Path) -> None:
    import onnx

    path = str(folder / "1" / "model.onnx")
    model = onnx.load(path)
    model.ir_version = 99
    onnx.save(model, path)


def _other_graph(folder: Path) -> None:
    graphs.affine(folder / "1" / "model.onnx")


def _no_labels(folder: Path) -> None:
    (folder / "1" / "labels.txt").unlink()


def _wrong_golden(folder: Path) -> None:
    golden = folder / "1" / "golden.json"
    samples = json.loads(golden.read_text())
    samples[0]["output"]["results"][0]["predictions"][0]["score"] = 0.9
    golden.write_text(json.dumps(samples))


def _unreadable_golden(folder: Path) -> None:
    (folder / "1" / "golden.json").write_text("[{]")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_manifest, r"bad/manifest.toml: is missing; models/README.md"),
        (_bad_toml, r"bad/manifest.toml: is not valid TOML: "),
        (_unknown_field, r"bad/manifest.toml: max_batch is not known; models/README.md lists"),
        (_unknown_task, r"task 'mind-reading' is not known; this server has: anomaly-detection, "),
        (_no_version, r"bad: has no version folder with a model.onnx"),
        (_missing_default, r"default_version '9' is not among its versions: 1"),
        (_not_onnx, r"bad/1/model.onnx: is not an ONNX file"),
        (_half_a_graph, r"bad/1/model.onnx: is not an ONNX file, or only half of one"),
        (_too_new, r"was exported for a newer ONNX than onnxruntime"),
        (_other_graph, r"should be uint8 or float32 with 4 axes"),
        (_no_labels, r"bad/1/labels.txt: is missing"),
        (_wrong_golden, r"bad/1/golden.json: sample 1 differs .* at results\[0\].predictions\[0\].score: expected 0.9"),
        (_unreadable_golden, r"bad/1/golden.json: cannot be read"),
    ],
)
def test_a_bad_folder_is_explained_and_the_others_are_served(models: Path, spoil: Any, sentence: str) -> None:
    spoil(graphs.colour_model(models, "bad"))
    registry = loaded(models)
    bad = registry.get("bad")
    assert not bad.is_ready
    assert str(models) not in bad.reason
    assert re.search(sentence, bad.reason), bad.reason
    assert registry.get("colours").is_ready
    assert registry.get("steps").is_ready
    with pytest.raises((ModelNotReady, ModelNotFound)):
        registry.resolve("image-classification", "bad")


def test_the_highest_version_that_is_ready_answers(models: Path) -> None:
    for version in ("2", "10"):
        shutil.copytree(models / "colours" / "1", models / "colours" / version)
    _not_onnx_at(models / "colours" / "10")
    registry = loaded(models)
    assert registry.resolve("image-classification", "colours").ref.version == "2"
    assert registry.resolve("image-classification", "colours@1").ref.version == "1"
    with pytest.raises(ModelNotReady, match="not an ONNX file"):
        registry.resolve("image-classification", "colours@10")


def _not_onnx_at(version: Path) -> None:
    (version / "model.onnx").write_bytes(b"")


def _weights_beside(folder: Path) -> Path:
    import onnx

    graph = folder / "1" / "model.onnx"
    onnx.save(
        onnx.load(graph), str(graph), save_as_external_data=True, location="model.onnx.data", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    return folder / "1" / "model.onnx.data"


def test_weights_beside_the_graph_count_in_size_and_digest(models: Path) -> None:
    beside = _weights_beside(models / "colours")
    one = loaded(models).resolve("image-classification", "colours")
    assert one.size_bytes == sum((beside.parent / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    beside.write_bytes(np.float32(100.001).tobytes())
    other = loaded(models).resolve("image-classification", "colours")
    assert one.digest != other.digest
    alone = loaded(models).resolve("anomaly-detection", "steps")
    assert alone.digest == hashlib.sha256((models / "steps" / "1" / "model.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (Path.unlink, "colours/1/model.onnx.data: is missing, and model.onnx has weights in it"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "colours/1/model.onnx.data: is a pipe"),
        (
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "colours/1/model.onnx.data: is a Git LFS pointer, not the weights themselves; run `git lfs pull`.",
        ),
        (lambda file: file.write_bytes(b"12"), "colours/1/model.onnx: its weights are in a side file"),
    ],
)
def test_weights_beside_the_graph_that_cannot_be_read_are_named(models: Path, spoil: Any, sentence: str) -> None:
    spoil(_weights_beside(models / "colours"))
    assert loaded(models).get("colours").reason.startswith(sentence)


def test_a_manifest_gives_inputs_that_no_request_gives(tmp_path: Path) -> None:
    model = graphs.write_model(tmp_path / "switched", task="image-classification", graph=_switched)
    (model / "1" / "labels.txt").write_text("red\ngreen\nblue\n")
    assert loaded(tmp_path).get("switched").reason == (
        "switched/1/model.onnx: an image classifier takes one input, the picture, and this graph has: "
        "image uint8 (batch, 2, 2, 3); scale float32 (). Give the others their value in the manifest: [constants]."
    )
    with (model / "manifest.toml").open("a") as file:
        file.write("\n[constants]\nscale = 100\n")
    handle = loaded(tmp_path).resolve("image-classification", "switched")
    assert list(handle.signature.inputs) == ["image"]
    request = handle.task.Input(files=(Upload(graphs.png()),), top_k=1)
    assert handle.predict_now(request).results[0]["predictions"][0]["score"] == pytest.approx(0.6652, abs=1e-4)
    (model / "1" / "manifest.toml").write_text("[constants]\nsize = 3\n")
    assert "has no input 'size', to which [constants] gives a value" in loaded(tmp_path).get("switched").reason


def _switched(path: Path) -> Path:
    """The classifier of colours, whose divisor is an input of its own."""
    return graphs.save(
        path,
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "scale"], ["scaled"]),
            helper.make_node("ReduceMean", ["scaled"], ["logits"], axes=[1, 2], keepdims=0),
        ],
        [("image", TensorProto.UINT8, ["batch", 2, 2, 3]), ("scale", TensorProto.FLOAT, [])],
        [("logits", TensorProto.FLOAT, ["batch", 3])],
    )


def test_versions_sort_as_people_count() -> None:
    assert sorted(["10", "2", "1.10", "1.9", "beta"], key=version_key) == ["1.9", "1.10", "2", "10", "beta"]


def test_an_unknown_model_is_refused_with_a_list_and_a_guess(models: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"Did you mean 'colours'\? There are: colours, steps"):
        loaded(models).resolve("image-classification", "colors")


def test_an_unknown_version_is_refused_with_those_there_are(models: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no version 'colours@7'.*There are: colours@1"):
        loaded(models).resolve("image-classification", "colours@7")


def test_a_model_of_another_task_is_refused_with_its_own(models: Path) -> None:
    with pytest.raises(ModelNotFound, match="'steps' serves anomaly-detection: POST /v1/anomaly-detection"):
        loaded(models).resolve("image-classification", "steps")


def test_the_declared_default_answers(models: Path) -> None:
    graphs.colour_model(models, "another")
    assert loaded(models).resolve("image-classification", None).ref.name == "another"  # the first by name
    (models / "colours" / "manifest.toml").write_text('task = "image-classification"\ndefault = true')
    assert loaded(models).resolve("image-classification", None).ref.name == "colours"


def test_a_required_model_that_is_missing_makes_the_server_unready(models: Path) -> None:
    _not_onnx(models / "colours")
    assert list(loaded(models).unready()) == ["colours"]


def test_a_required_model_counts_even_when_its_manifest_is_broken(models: Path) -> None:
    (models / "colours" / "manifest.toml").write_text("required = true\ntask = oops")
    assert list(loaded(models).unready()) == ["colours"]


def test_an_optional_model_that_is_broken_does_not(models: Path) -> None:
    _not_onnx(models / "steps")
    assert loaded(models).unready() == {}


def test_an_empty_repository_is_not_ready(tmp_path: Path) -> None:
    assert "empty" in str(loaded(tmp_path).unready())


def test_before_loading_nothing_is_ready(models: Path) -> None:
    registry = Registry(models)
    assert registry.unready() == {"colours": "is still loading"}
    with pytest.raises(ModelNotReady, match="is loading"):
        registry.resolve("image-classification", "colours")


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="GRIDLOOP_MODELS"):
        Registry(tmp_path / "nowhere")


def test_samples_and_a_card_are_asked_for_and_not_insisted_on(models: Path) -> None:
    """One rule for serving and checking: what is missing is a hint, what is there and wrong is a failure."""
    assert not any(finding.hint or not finding.ok for finding in check_folder(models / "colours"))
    (models / "colours" / "1" / "golden.json").unlink()
    (models / "colours" / "card.md").unlink()
    findings = check_folder(models / "colours")
    assert all(finding.ok for finding in findings)
    hints = {finding.what: finding.detail for finding in findings if finding.hint}
    assert hints["card.md"] == "is missing; write what the model is for and where it fails."
    assert hints["version 1: graph and golden samples"].startswith("golden.json is missing, so it is served unchecked")
    assert loaded(models).get("colours").is_ready
    (models / "colours" / "1" / "golden.json").write_text("[]")
    assert not all(finding.ok for finding in check_folder(models / "colours"))
    assert not loaded(models).get("colours").is_ready


def test_a_graph_is_run_as_it_was_measured_unless_the_manifest_says_how(models: Path) -> None:
    manifest = graphs.detector_model(models, "asked") / "manifest.toml"
    manifest.write_text(manifest.read_text() + "\n[batching]\nmax_batch_size = 3\nlone_threads = 2\n")
    registry = Registry(models, LoadOptions(cores=2, tune=True))
    registry.load()
    asked, measured = (registry.resolve("anomaly-detection", name).tuning for name in ("asked", "steps"))
    assert (asked.max_batch_size, asked.lone_threads, asked.source) == (3, 2, "manifest")
    assert asked.turn_rows >= 3
    assert measured.source in ("measured", "remembered")
    assert measured.max_batch_size in measured.ms_per_row


def test_without_measuring_batches_are_of_32(models: Path) -> None:
    registry = Registry(models)
    registry.load()
    tuning = registry.resolve("anomaly-detection", "steps").tuning
    assert (tuning.max_batch_size, tuning.turn_rows, tuning.lone_threads) == (32, 32, 1)
    assert tuning.source == "default"
