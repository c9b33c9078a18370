"""Every folder in `models/` is sound: new models are tested on arrival."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.registry.check import check_folder
from service.registry.manifest import read_manifest
from service.tasks import discover

MODELS = Path(__file__).parent.parent / "models"
FOLDERS = sorted(folder for folder in MODELS.iterdir() if folder.is_dir() and folder.name[0] not in "._")
MAX_TOTAL_BYTES = 120_000_000

each_model = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_every_task_with_an_endpoint_has_a_model() -> None:
    endpoints = {name for name, task in discover().items() if task.has_route}
    assert endpoints == {read_manifest(folder).task for folder in FOLDERS}


@each_model
def test_a_model_loads_warms_up_and_reproduces_its_golden_samples(folder: Path) -> None:
    assert [finding for finding in check_folder(folder) if not finding.ok or finding.hint] == []


@each_model
def test_a_model_says_what_it_is_and_how_it_was_made(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.description
    assert manifest.licence
    assert manifest.metrics
    assert (folder / "train.py").is_file()


@each_model
def test_the_card_claims_the_same_figures_as_the_manifest(folder: Path) -> None:
    card = (folder / "card.md").read_text()
    for name, value in read_manifest(folder).metrics.items():
        forms = {
            f"{value:g}",
            f"{value:.1f}",
            f"{value:.2f}",
            f"{100 * value:.2f}",
            f"{100 * value:.1f}",
            f"{value:.4f}",
            f"{value:,.0f}",
        }
        assert any(form in card for form in forms), f"{name} = {value} is not in the card"


def test_each_task_has_one_default_model() -> None:
    manifests = [read_manifest(folder) for folder in FOLDERS]
    defaults = [manifest.task for manifest in manifests if manifest.default]
    assert sorted(defaults) == sorted({manifest.task for manifest in manifests})


def test_the_weights_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.glob("*/*/model.onnx")) < MAX_TOTAL_BYTES


@each_model
def test_golden_samples_are_more_than_a_formality(folder: Path) -> None:
    for golden in folder.glob("*/golden.json"):
        samples = json.loads(golden.read_text())
        assert len(samples) >= 2
        assert all(sample["output"] for sample in samples)
