"""`gridloop advise`: what files are, and which network, task and model were measured to fit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from PIL import Image

from service.cli import main
from service.cli.advice import evidence
from service.registry.manifest import read_manifest

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["advise", "--models", str(MODELS), *map(str, arguments)])


def advice_on(*files: Path) -> list[dict[str, Any]]:
    """What `--json` says, when it says something."""
    result = run("--json", *files)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document["advice"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (64, 48), (40 * number, 90, 20)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def series(tmp_path: Path) -> Path:
    file = tmp_path / "load.csv"
    file.write_text("timestamp,value\n" + "".join(f"2026-01-01 00:{k:02}:00,{k % 7 or ''}\n" for k in range(60)))
    return file


def test_a_folder_of_pictures_is_for_the_kind_that_named_more_of_them_rightly(photographs: Path) -> None:
    (advice,) = advice_on(photographs)
    assert (advice["domain"], advice["files"], advice["facts"]) == ("pictures", 6, {"width": 64, "height": 48})
    accuracy = {one["kind"]: one["figures"][0]["value"] for one in advice["measured"]}
    assert accuracy.keys() == {"cnn", "rnn"}
    assert advice["kind"] == max(accuracy, key=accuracy.__getitem__)
    first = advice["suggestions"][0]
    assert (first["task"], first["model"], first["default"]) == ("image-classification", "cifar10-cnn", True)
    assert {"object-detection", "image-captioning"} <= {one["task"] for one in advice["suggestions"]}


def test_a_csv_is_a_series_with_its_points_and_holes(series: Path) -> None:
    (advice,) = advice_on(series)
    assert (advice["domain"], advice["facts"]) == ("series", {"points": 60, "missing": 9})
    assert {one["task"] for one in advice["suggestions"]} == {"anomaly-detection", "forecasting"}
    assert any("state of a stream" in sentence for sentence in advice["reason"])


def test_a_text_is_for_the_next_word(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Ada,\nthank you for the letter.\n")
    (advice,) = advice_on(file)
    assert (advice["domain"], advice["facts"]["words"]) == ("texts", 7)
    assert advice["suggestions"][0]["model"] == "english-lstm"
    assert [one["model"] for one in advice["suggestions"]] == ["english-lstm", "english-cnn"]


def test_a_recording_is_for_speech_and_no_kind_is_claimed_where_none_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "call.wav"
    soundfile.write(file, np.zeros(8000, np.float32), 8000)
    (advice,) = advice_on(file)
    assert (advice["domain"], advice["facts"]["seconds"], advice["kind"]) == ("recordings", 1.0, None)
    assert advice["suggestions"][0]["task"] == "speech-recognition"
    assert advice["measured"] == []


def test_files_of_several_kinds_get_an_advice_each(photographs: Path, series: Path) -> None:
    assert [advice["domain"] for advice in advice_on(photographs, series)] == ["pictures", "series"]


def test_what_the_advice_says_to_type_works(photographs: Path, series: Path) -> None:
    for advice in advice_on(next(photographs.rglob("*.png")), series):
        command = advice["commands"]["predict"].split()
        assert command[:2] == ["gridloop", "predict"]
        result = CliRunner().invoke(main, [*command[1:], "--models", str(MODELS), "--json"])
        assert result.exit_code == 0, result.output


def test_the_terminal_shows_kind_reason_models_and_commands(series: Path) -> None:
    shown = run(series).stdout
    for part in (
        "series: 1 file",
        "kind of network:",
        "NAB standard profile",
        "series-gru@2",
        "gridloop predict",
        "curl",
    ):
        assert part in shown


def test_files_that_no_task_takes_are_named_and_end_with_1(tmp_path: Path) -> None:
    file = tmp_path / "blob.bin"
    file.write_bytes(bytes(range(256)))
    result = run(file)
    assert result.exit_code == 1
    assert "blob.bin" in result.stderr


def test_a_file_that_is_not_there_is_wrong_usage() -> None:
    assert run("nowhere.csv").exit_code == 2


def test_the_evidence_is_of_models_that_are_here_and_of_the_versions_that_answer() -> None:
    measured = evidence()
    for one in measured["contenders"]:
        folder = MODELS / one["model"]
        assert (folder / one["version"] / "model.onnx").stat().st_size == one["file_bytes"], one["model"]
        assert read_manifest(folder).architecture == one["kind"]
        low, high = one["figures"][0]["interval"]
        assert low <= one["figures"][0]["value"] <= high
    domains = [(one["domain"], one["kind"]) for one in measured["contenders"]]
    assert sorted(domains) == sorted((d, k) for d in ("pictures", "series", "texts") for k in ("cnn", "rnn"))


def test_a_counterpart_answers_no_request_that_does_not_name_it() -> None:
    assert not any(read_manifest(MODELS / name).default for name in ("cifar10-rnn", "series-cnn", "english-cnn"))
