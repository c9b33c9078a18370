"""The command line: what it prints, and what it says by its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service import __version__
from service.cli import main
from service.settings import Settings
from service.tasks.series_file import SERIES_FILE
from tests import graphs


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "pink.png"
    path.write_bytes(graphs.png())
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    path = tmp_path / "series.csv"
    path.write_text("timestamp,value\n2026-01-01,0\n2026-01-02,\n2026-01-03,5\n")
    return path


def gridloop(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def read_series(path: Path, column: str | None = None) -> Any:
    """What `--series` makes of a file."""
    return SERIES_FILE.read(path.read_bytes(), path.name, {"column": column} if column else {}).fields["values"]


def test_the_version_is_the_packages() -> None:
    assert __version__ in gridloop("--version").output


def test_pictures_are_classified_without_a_server(models: Path, picture: Path) -> None:
    result = gridloop("predict", picture, "--models", models, "--top-k", 2)
    assert result.exit_code == 0
    assert "red" in result.stdout
    assert "0.665" in result.stdout
    assert "green" not in result.stdout


def test_json_is_one_document_on_stdout_and_nothing_else(models: Path, picture: Path) -> None:
    one = json.loads(gridloop("predict", picture, "--models", models, "--json").stdout)
    assert one["results"][0]["filename"] == "pink.png"
    two = json.loads(gridloop("predict", picture, picture, "--models", models, "--json").stdout)
    assert len(two) == 2


def test_a_series_is_judged_by_its_column_value_which_is_said(models: Path, series: Path) -> None:
    assert read_series(series) == [0, None, 5]
    result = gridloop("predict", "--series", series, "--models", models, "--json")
    assert len(json.loads(result.stdout)["scores"]) == 3
    assert "column 'value' of series.csv" in result.stderr


def test_another_column_is_judged_when_it_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("value,load\n0,1\n0,2\n")
    assert read_series(tmp_path / "two.csv", "load") == [1, 2]
    result = gridloop("predict", "--series", tmp_path / "two.csv", "--column", "cpu", "--models", models)
    assert result.exit_code == 1
    assert "two.csv has no column 'cpu'; it has: 'value', 'load'." in result.output


def test_a_column_without_a_series_is_wrong_usage(picture: Path) -> None:
    assert gridloop("predict", picture, "--column", "value").exit_code == 2


def test_what_cannot_be_used_is_told_in_one_line_without_a_librarys_report() -> None:
    result = gridloop("predict", "--text", "a" * 200_000, "--models", Path(__file__).parent.parent / "models")
    assert result.exit_code == 1
    assert "pydantic" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_cell_that_is_no_number_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("value\n1\nmany\n")
    result = gridloop("predict", "--series", tmp_path / "bad.csv", "--models", models)
    assert result.exit_code == 1
    assert "line 3: 'many' is not a number" in result.output


def test_a_text_may_hold_bytes_that_are_no_utf_8() -> None:
    """A shell passes them on; Python has them as lone surrogates, which JSON cannot hold."""
    result = gridloop("predict", "--text", "caf\udce9 ", "--models", Path(__file__).parent.parent / "models", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["predictions"]


def test_a_point_that_cannot_be_judged_is_shown_without_an_expectation(real_models: Path, series: Path) -> None:
    result = gridloop("predict", "--series", series, "--models", real_models, "--sensitivity", "1")
    assert result.exit_code == 0, result.output
    assert "2 of 3 points are anomalous" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["--text", "a", "--series", "FILE"]])
def test_one_kind_of_input_is_needed(arguments: list[str], series: Path) -> None:
    result = gridloop("predict", *[str(series) if a == "FILE" else a for a in arguments])
    assert result.exit_code == 2
    assert "--text (one of the " in result.output


def test_a_file_that_is_not_there_is_named(models: Path) -> None:
    result = gridloop("predict", "nowhere.png", "--models", models)
    assert result.exit_code == 2
    assert "'nowhere.png' does not exist" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-k", 0], "0 is not in the range 1<=x<=1000"),
        (["--top", 3], "No such option"),
        (["--task", "image-clasification"], "there is no task 'image-clasification'; there are: anomaly-detection"),
        (["--words", 2], "--text (one of the "),
    ],
)
def test_an_option_that_does_not_fit_is_wrong_usage(
    models: Path, picture: Path, options: list[Any], words: str
) -> None:
    result = gridloop("predict", picture, "--models", models, *options)
    assert result.exit_code == 2
    assert words in result.output


def test_a_model_says_by_itself_what_can_be_asked_of_it(models: Path) -> None:
    result = gridloop("predict", "--models", models, "--model", "steps", "--values", "0,,0,50", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["anomalies"] == [3]
    result = gridloop("predict", "--models", models, "--model", "steps", "--text", "a")
    assert result.exit_code == 2


def test_an_answer_is_written_to_a_file(models: Path, picture: Path, tmp_path: Path) -> None:
    result = gridloop("predict", picture, "--models", models, "--out", tmp_path / "answer.json")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert json.loads((tmp_path / "answer.json").read_text())["results"][0]["predictions"][0]["label"] == "red"


def test_help_waits_for_nothing_slow() -> None:
    code = "import sys, service.cli; print([name for name in ('numpy', 'PIL', 'onnxruntime', 'service.tasks', 'fastapi') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_of_a_task_shows_its_fields_and_that_of_no_task_the_short_ways() -> None:
    shown = gridloop("predict", "--task", "anomaly-detection", "--help").output
    for option in ("--values", "--sensitivity", "[0<=x<=1]", "--series FILE", "--column"):
        assert option in shown
    shown = gridloop("predict", "--help").output
    assert "--series FILE" in shown
    assert "--text TEXT" in shown
    assert "--sensitivity" not in shown


def test_an_unknown_model_is_an_error_with_a_hint(models: Path, picture: Path) -> None:
    result = gridloop("predict", picture, "--models", models, "--model", "colors")
    assert result.exit_code == 1
    assert "Did you mean 'colours'?" in result.output


def test_an_unusable_picture_is_an_error(models: Path, series: Path) -> None:
    result = gridloop("predict", series, "--models", models)
    assert result.exit_code == 1
    assert "is not an image" in result.output


def test_an_unusable_picture_does_not_lose_the_answers_of_the_others(models: Path, picture: Path, series: Path) -> None:
    result = gridloop("predict", picture, series, picture, "--models", models)
    assert result.exit_code == 1
    assert result.stdout.count("0.665") == 2
    assert "Image 'series.csv' is not an image" in result.stderr
    result = gridloop("predict", picture, series, "--models", models, "--json")
    assert result.exit_code == 1
    good, failed = json.loads(result.stdout)
    assert good["results"][0]["predictions"]
    assert failed["model"] == good["model"]
    assert failed["results"][0]["filename"] == "series.csv"
    assert failed["results"][0]["error"]["type"] == "/problems/invalid-input"


@pytest.mark.parametrize("command", ["serve --port=0", "models", "predict --text=a", "evaluate colours --data=."])
def test_a_repository_that_is_not_there_is_wrong_usage(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers of this process are not the command's
    result = gridloop(*command.split(), "--models", tmp_path / "nowhere")
    assert result.exit_code == 2, result.output
    assert "nowhere: there is no such folder" in result.output


def test_models_are_listed_with_their_state(models: Path) -> None:
    result = gridloop("models", "--models", models)
    assert result.exit_code == 0
    assert "colours" in result.stdout
    assert "ready" in result.stdout
    listed = json.loads(gridloop("models", "--models", models, "--json").stdout)
    assert [model["name"] for model in listed] == ["colours", "steps"]


def test_a_model_that_cannot_be_served_makes_the_list_fail(models: Path) -> None:
    (models / "colours" / "1" / "model.onnx").write_bytes(b"broken")
    result = gridloop("models", "--models", models)
    assert result.exit_code == 1
    assert "\ncolours@1 colours/1/model.onnx: is not an ONNX file" in result.stdout


def test_a_version_that_cannot_be_served_makes_the_list_fail_beside_one_that_can(models: Path) -> None:
    shutil.copytree(models / "colours" / "1", models / "colours" / "2")
    (models / "colours" / "2" / "model.onnx").write_bytes(b"broken")
    (models / "lost+found").mkdir()
    for arguments in ([], ["--json"]):
        assert gridloop("models", "--models", models, *arguments).exit_code == 1
    listed = gridloop("models", "--models", models).stdout
    assert "\ncolours@2 colours/2/model.onnx: is not an ONNX file" in listed
    assert "\nlost+found lost+found: model names are letters, digits, '.', '_' and '-'; rename the folder.\n" in listed


def test_a_reason_is_told_to_its_end_however_long(models: Path) -> None:
    words = " ".join(f"word{number}" for number in range(200))
    (models / "colours" / "manifest.toml").write_text(f'task = "{words}"')
    assert f"task '{words}' is not known" in gridloop("models", "--models", models).stdout


def test_brackets_in_what_is_printed_stay(models: Path, picture: Path) -> None:
    """The terminal library takes them for its own, as it does colons around a word."""
    (models / "colours" / "manifest.toml").write_text('task = "image-classification"\n[preprocesing]\nresize = "crop"')
    assert "[preprocesing] is not known" in gridloop("check", models / "colours").stdout
    assert "[preprocesing] is not known" in gridloop("models", "--models", models).stdout
    (models / "colours" / "manifest.toml").write_text('task = "image-classification"')
    (models / "colours" / "1" / "labels.txt").write_text("[red]\n:cat:\n[/]\n")
    (models / "colours" / "1" / "golden.json").unlink()
    odd = picture.rename(picture.with_name("[bold].png"))
    printed = gridloop("predict", odd, "--models", models).stdout
    for text in ("[red]", ":cat:", "[/]", "[bold].png"):
        assert text in printed


def test_a_repository_that_is_not_there_is_wrong_usage_of_every_command(tmp_path: Path, picture: Path) -> None:
    nowhere = tmp_path / "nowhere"
    environment = {**os.environ, "GRIDLOOP_MODELS": str(nowhere), "GRIDLOOP_WORKERS": "1", "GRIDLOOP_PORT": "0"}
    commands = (["models"], ["predict", str(picture)], ["serve"], ["check", str(nowhere)])
    for command in (*commands, ["evaluate", "colours", "--data", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-m", "service", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, (command, done.stderr)
        assert "Error: " in done.stderr


def test_a_missing_card_and_missing_samples_are_hints(models: Path) -> None:
    (models / "colours" / "card.md").unlink()
    (models / "colours" / "1" / "golden.json").unlink()
    result = gridloop("check", models / "colours")
    assert result.exit_code == 0
    assert "hint  card.md\n      is missing; write what the model is for" in result.stdout
    assert "hint  version 1" in result.stdout
    findings = json.loads(gridloop("check", models / "colours", "--json").stdout)["findings"]
    assert [finding["hint"] for finding in findings] == [False, True, True]


def test_checking_a_good_folder_succeeds(models: Path) -> None:
    result = gridloop("check", models / "colours")
    assert result.exit_code == 0, result.output
    assert "1 sample(s) reproduced" in " ".join(result.stdout.split())


def test_checking_a_bad_folder_fails_and_says_why(models: Path) -> None:
    (models / "colours" / "1" / "labels.txt").unlink()
    assert "labels.txt: is missing" in gridloop("check", models / "colours").output
    result = gridloop("check", models / "colours", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert any("labels.txt" in finding["detail"] for finding in document["findings"])


def test_checking_what_is_no_folder_is_wrong_usage(tmp_path: Path) -> None:
    assert gridloop("check", tmp_path / "nothing").exit_code == 2


def test_serving_without_a_place_to_write_says_what_to_do(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(**_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory")

    monkeypatch.setattr("tempfile.mkdtemp", nowhere)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers of this process are not the command's
    result = gridloop("serve", f"--models={models}", "--workers=2", "--port=0")
    assert result.exit_code == 1
    for words in ("No usable temporary directory", "--tmpfs /tmp", "TMPDIR", "GRIDLOOP_WORKERS=1"):
        assert words in result.output


def test_every_setting_is_an_option_of_serve() -> None:
    text = gridloop("serve", "--help").output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"GRIDLOOP_{name.upper()}" in " ".join(text.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completions(shell: str) -> None:
    assert "_GRIDLOOP_COMPLETE" in gridloop("completion", shell).stdout


def test_the_openapi_document_is_printed(models: Path) -> None:
    assert json.loads(gridloop("openapi").stdout)["info"]["title"] == "Gridloop"


@pytest.mark.parametrize("module", ["onnxruntime", "service.runtime.session", "service.runtime.tuning", "service.cli"])
def test_the_runtime_does_not_phone_home(tmp_path: Path, module: str) -> None:
    command = [sys.executable, "-c", f"import {module}, onnxruntime; onnxruntime.get_available_providers()"]
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, check=True)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    if module != "onnxruntime":
        assert not left
    elif not left:
        pytest.skip("this ONNX Runtime leaves no trace of its telemetry: the other cases show nothing")
