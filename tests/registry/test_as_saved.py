"""A model's text files are taken as editors save them, or refused with what is wrong about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.registry.registry import Registry
from service.tasks.image_classification import ImageClassification
from tests.conftest import running

TEXT_FILES = ["manifest.toml", "1/labels.txt", "1/golden.json"]


def load(models: Path, name: str = "colours") -> tuple[str, list[str]]:
    """Why the model is not served, and its labels."""
    registry = Registry(models)
    registry.load()
    model = registry.get(name)
    handle = model.versions["1"].handle
    labels = handle.task.labels if handle and isinstance(handle.task, ImageClassification) else []
    return "" if model.is_ready else model.reason, labels


@pytest.mark.parametrize("name", TEXT_FILES)
@pytest.mark.parametrize("form", ["byte-order mark", "lines of Windows", "both"])
def test_marks_and_line_ends_change_nothing(models: Path, name: str, form: str) -> None:
    file = models / "colours" / name
    content = file.read_bytes()
    if form != "byte-order mark":
        content = content.replace(b"\n", b"\r\n")
    if form != "lines of Windows":
        content = b"\xef\xbb\xbf" + content
    file.write_bytes(content)
    assert load(models) == ("", ["red", "green", "blue"])


@pytest.mark.parametrize("name", TEXT_FILES)
def test_other_encodings_are_named(models: Path, name: str) -> None:
    file = models / "colours" / name
    file.write_bytes(file.read_text().encode("utf-16"))
    assert load(models)[0] == f"colours/{name}: is UTF-16 text; save it as UTF-8."


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n\r\n"])
def test_empty_lines_at_the_end_are_no_labels(models: Path, end: str) -> None:
    (models / "colours" / "1" / "labels.txt").write_bytes(b"red\ngreen\nblue" + end.encode())
    assert load(models) == ("", ["red", "green", "blue"])


def test_empty_lines_elsewhere_are_named_where_the_count_is_wrong(models: Path) -> None:
    (models / "colours" / "1" / "labels.txt").write_text("red\n\ngreen\nblue\n \n")
    assert load(models)[0] == ("colours/1/labels.txt: has 5 labels (empty: lines 2, 5), but the graph has 3 classes.")


def test_a_manifest_that_requires_its_model_counts_with_a_mark_and_broken(models: Path) -> None:
    (models / "colours" / "manifest.toml").write_bytes(b"\xef\xbb\xbfrequired = true\ntask = oops")
    assert list(Registry(models).unready()) == ["colours"]


async def test_a_card_is_shown_without_its_mark(models: Path) -> None:
    (models / "colours" / "card.md").write_bytes(b"\xef\xbb\xbf# Colours\r\n")
    async with running(models) as client:
        assert (await client.get("/v1/models/colours")).json()["card"] == "# Colours\n"
        assert (
            (await client.get("/v1/models/steps"))
            .json()["card"]
            .endswith("This model has no card: card.md is missing.")
        )
