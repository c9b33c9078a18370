"""`gridloop evaluate`: tiny models on tiny data, in process and through the real service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from service.cli import main
from service.evaluation.statistics import wilson
from tests.test_server import Server

ROOT = Path(__file__).parents[2]


def evaluate(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def figures(*arguments: Any) -> dict[str, Any]:
    """The figures by name, from an evaluation that ends well."""
    result = evaluate(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return {figure["name"]: figure for figure in json.loads(result.stdout)["figures"]}


# ------------------------------------------------------------------------------------------------------- generic, by task


def test_pictures_in_folders_are_classified(models: Path, pictures: Path) -> None:
    """Seven of eight are right, each with a probability of 0.6652."""
    found = figures("colours", "--data", pictures, "--models", models)
    assert found["accuracy"]["value"] == 7 / 8
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == wilson(7, 8)
    assert found["accuracy"]["n"] == 8
    assert found["expected calibration error"]["value"] == pytest.approx(7 / 8 - 0.6652, abs=1e-4)


def test_lines_of_text_are_typed_word_by_word(models: Path, texts: Path) -> None:
    """Asked: b after a (first), c after b (third of equals), z after a (unknown), a after z (first).

    Bits: a 1, b 1, c 2; a 1, unknown 3, a 2.
    """
    found = figures("letters", "--data", texts, "--models", models)
    assert found["letters top-1 accuracy"]["value"] == 2 / 4
    assert found["letters top-3 accuracy"]["value"] == 3 / 4
    assert found["letters top-3 accuracy"]["n"] == 4
    assert found["letters perplexity"]["value"] == pytest.approx(2 ** (10 / 6), rel=1e-4)
    assert found["letters perplexity"]["n"] == 6


def test_series_are_judged_point_by_point_and_by_stretches(models: Path, series: Path) -> None:
    """Alarms at 2 (labelled), 4 and 6; 10 normal points that are not missing, of which the one after it has no band."""
    found = {name: figure["value"] for name, figure in figures("steps", "--data", series, "--models", models).items()}
    assert found["precision of alarms"] == pytest.approx(1 / 3)
    assert found["recall of labelled stretches"] == 1 / 2
    assert found["composite F1 of these"] == pytest.approx(0.4)
    assert found["recall, point by point"] == pytest.approx(1 / 3)
    assert found["F1, point by point"] == pytest.approx(1 / 3)
    assert found["false alarms per 1,000 normal points"] == pytest.approx(200)
    assert found["normal points inside the band"] == pytest.approx(7 / 9)


@pytest.mark.parametrize(("model", "data"), [("colours", "pictures"), ("letters", "texts"), ("steps", "series")])
def test_http_gives_the_same_figures(
    model: str, data: str, models: Path, server: Server, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(data)
    result = evaluate(model, "--data", folder, "--models", models, "--url", server.url, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    here, there = document["runs"]
    assert (here["way"], there["way"]) == ("in process", "through HTTP")
    assert here["figures"] == pytest.approx(there["figures"], rel=1e-6)
    assert here["questions"] == there["questions"] > 0
    assert document["wrong"] == []


def test_a_model_that_is_only_on_the_server_is_evaluated_there(pictures: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = evaluate("colours", "--data", pictures, "--models", tmp_path / "empty", "--url", server.url, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [run["way"] for run in document["runs"]] == ["through HTTP"]
    assert document["facts"] is None
    assert document["figures"][0]["value"] == 7 / 8


def test_another_graph_on_the_server_is_noticed(models: Path, pictures: Path, server: Server) -> None:
    graph = models / "colours" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x32\x00")  # an empty domain: the same graph, another file
    result = evaluate("colours", "--data", pictures, "--models", models, "--url", server.url)
    assert result.exit_code == 1
    assert "another graph" in result.output


# ------------------------------------------------------------------------------------------------------------ for people


def test_the_table_says_what_it_was_measured_with(models: Path, pictures: Path) -> None:
    result = evaluate("colours", "--data", pictures, "--models", models)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for part in (
        "87.50 %",
        "8 pictures",
        "colours@1",
        "SHA-256",
        "ms of one core for a picture",
        "onnxruntime",
        "in process",
    ):
        assert part in shown, part


def test_json_is_one_document_on_stdout_and_nothing_else(models: Path, pictures: Path) -> None:
    document = json.loads(evaluate("colours", "--data", pictures, "--models", models, "--json").stdout)
    assert document["command"] == "gridloop evaluate colours --data DIR"
    assert document["limit"] is None
    assert document["facts"]["item_ms"] > 0


def test_a_limit_is_a_quick_look_and_says_so(models: Path, pictures: Path) -> None:
    result = evaluate("colours", "--data", pictures, "--models", models, "--limit", 4)
    assert "A quick look, no evaluation: at most 4 items" in " ".join(result.stdout.split())
    document = json.loads(evaluate("colours", "--data", pictures, "--models", models, "--limit", 4, "--json").stdout)
    assert document["figures"][0]["n"] == 4
    assert document["limit"] == 4


def test_a_named_version_is_evaluated(models: Path, pictures: Path) -> None:
    assert evaluate("colours@1", "--data", pictures, "--models", models).exit_code == 0
    result = evaluate("colours@7", "--data", pictures, "--models", models)
    assert result.exit_code == 1
    assert "There are: colours@1" in " ".join(result.output.split())


# ------------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("colours", "folders named by their labels"),
        ("letters", "one text a line"),
        ("steps", "columns value and label"),
    ],
)
def test_missing_data_are_wrong_usage_and_the_message_says_what_to_do(
    model: str, advice: str, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    result = evaluate(model, "--data", tmp_path / "nothing", "--models", models)
    assert result.exit_code == 2
    assert advice in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["cifar10-cnn", "english-lstm", "series-gru"])
def test_the_shipped_evaluations_say_where_their_data_are_from(name: str, tmp_path: Path) -> None:
    result = evaluate(name, "--data", tmp_path, "--models", ROOT / "models")
    assert result.exit_code == 2, result.output
    assert "https://" in result.output


def test_an_unknown_model_is_named_with_those_that_are_there(models: Path, pictures: Path) -> None:
    result = evaluate("colors", "--data", pictures, "--models", models)
    assert result.exit_code == 1
    assert "Did you mean 'colours'?" in result.output


def test_a_label_that_the_model_does_not_have_is_an_error(models: Path, pictures: Path) -> None:
    (pictures / "red").rename(pictures / "crimson")
    result = evaluate("colours", "--data", pictures, "--models", models)
    assert result.exit_code == 1
    assert "'crimson'" in result.output


def test_a_picture_that_cannot_be_read_ends_the_evaluation_and_is_named(models: Path, pictures: Path) -> None:
    (pictures / "red" / "0.png").write_bytes(b"no picture")
    result = evaluate("colours", "--data", pictures, "--models", models)
    assert result.exit_code == 1
    assert "red/0.png: Image 1 is not an image" in " ".join(result.output.split())


def test_a_server_that_is_not_there_is_an_error(models: Path, pictures: Path) -> None:
    result = evaluate("colours", "--data", pictures, "--models", models, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "no server answers" in result.output
    assert evaluate("colours", "--data", pictures, "--models", models, "--url", "here").exit_code == 2


def test_a_csv_without_its_columns_and_a_cell_that_is_no_number_are_named(models: Path, series: Path) -> None:
    (series / "one.csv").write_text("value,label\n1,0\nmany,0\n")
    result = evaluate("steps", "--data", series, "--models", models)
    assert (result.exit_code, "one.csv, line 3" in result.output) == (1, True), result.output
    (series / "one.csv").write_text("time,value\n1,0\n")
    result = evaluate("steps", "--data", series, "--models", models)
    assert (result.exit_code, "needs the columns value and label" in result.output) == (1, True), result.output


# ------------------------------------------------------------------------------------------------- an own evaluation


EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)[0]


def test_the_documented_evaluation_works(models: Path, pictures: Path, tmp_path: Path) -> None:
    (models / "colours" / "evaluate.py").write_text(EXAMPLE)
    document = json.loads(evaluate("colours", "--data", pictures, "--models", models, "--json").stdout)
    assert document["evaluation"] == "Shades"
    assert document["figures"][0]["name"] == "accuracy on shades"
    (tmp_path / "nothing").mkdir()
    result = evaluate("colours", "--data", tmp_path / "nothing", "--models", models)
    assert result.exit_code == 2
    assert "Draw some." in result.output


@pytest.mark.parametrize(("claim", "code"), [(0.875, 0), (0.88, 0), (0.6, 0), (0.2, 1)])
def test_a_claim_outside_of_the_interval_is_wrong(claim: float, code: int, models: Path, pictures: Path) -> None:
    """Seven of eight: 53 % to 98 %."""
    (models / "colours" / "evaluate.py").write_text(EXAMPLE)
    with (models / "colours" / "manifest.toml").open("a") as file:
        file.write(f'\n[metrics]\n"accuracy on shades" = {claim}\n')
    result = evaluate("colours", "--data", pictures, "--models", models)
    assert result.exit_code == code, result.output
    assert ("outside of what was measured" in " ".join(result.output.split())) is bool(code)
    assert "claimed" in result.output


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero (line 1)"),
        ("def broken(:\n", "SyntaxError"),
        ("", "should define one class derived from Evaluation; there is: none"),
        (
            "from service.evaluation import Evaluation\n\n\nclass Mine(Evaluation):\n    title = 'x'\n",
            "Mine does not define items, outcome",
        ),
        (EXAMPLE.replace("file.name,", "file.nme,"), "AttributeError"),
        (EXAMPLE + "\n    def outcome(self, records):\n        return records[100]\n", "IndexError"),
        (EXAMPLE.replace("file.read_bytes)", "lambda: open('not there').read())"), "FileNotFoundError"),
    ],
)
def test_a_broken_evaluation_is_reported_by_name(source: str, reason: str, models: Path, pictures: Path) -> None:
    (models / "colours" / "evaluate.py").write_text(source)
    result = evaluate("colours", "--data", pictures, "--models", models)
    assert result.exit_code == 1
    assert "colours/evaluate.py: " in result.output
    assert reason in " ".join(result.output.split())
    assert "Traceback" not in result.output


# -------------------------------------------------------------------------------------------------------------- the card


@pytest.mark.parametrize(
    ("model", "data", "plots"),
    [
        ("colours", "pictures", {"confusion_matrix.png", "reliability.png"}),
        ("letters", "texts", {"top_k.png", "reliability.png"}),
        ("steps", "series", {"precision_recall.png", "example_1.png", "example_2.png"}),
    ],
)
def test_writing_changes_the_card_between_the_markers_and_draws_plots(
    model: str, data: str, plots: set[str], models: Path, request: pytest.FixtureRequest
) -> None:
    folder = models / model
    (folder / "card.md").write_text("# A card\n\nBefore.\n\n<!-- evaluation -->\nold\n<!-- /evaluation -->\n\nAfter.\n")
    (folder / "plots").mkdir()
    (folder / "plots" / "outdated.png").write_bytes(b"")
    result = evaluate(model, "--data", request.getfixturevalue(data), "--models", models, "--write")
    assert result.exit_code == 0, result.output
    card = (folder / "card.md").read_text()
    before, rest = card.split("<!-- evaluation -->")
    written, after = rest.split("<!-- /evaluation -->")
    assert (before, after) == ("# A card\n\nBefore.\n\n", "\n\nAfter.\n")
    assert f"    gridloop evaluate {model} --data DIR\n" in written
    assert str(models) not in card
    assert {path.name for path in (folder / "plots").iterdir()} == plots
    for name in plots:
        assert f"](plots/{name})" in written
        with Image.open(folder / "plots" / name) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert 400 < picture.width < 1600
            assert 300 < picture.height < 1600
            assert len(set(picture.convert("L").tobytes())) > 20, "something is drawn"
        assert 5_000 < (folder / "plots" / name).stat().st_size < 200_000
    again = evaluate(model, "--data", request.getfixturevalue(data), "--models", models)
    assert again.exit_code == 0


def test_a_quick_look_is_never_written(models: Path, pictures: Path) -> None:
    before = (models / "colours" / "card.md").read_text()
    result = evaluate("colours", "--data", pictures, "--models", models, "--limit", 2, "--write")
    assert result.exit_code == 2
    assert (models / "colours" / "card.md").read_text() == before


def test_a_card_with_half_a_pair_of_markers_is_left_alone(models: Path, pictures: Path) -> None:
    (models / "colours" / "card.md").write_text("# A card\n<!-- evaluation -->\n")
    result = evaluate("colours", "--data", pictures, "--models", models, "--write")
    assert result.exit_code == 1
    assert (models / "colours" / "card.md").read_text() == "# A card\n<!-- evaluation -->\n"
    assert not (models / "colours" / "plots").exists()


# ----------------------------------------------------------------------------------------------------------- and serving


def test_serving_loads_neither_the_evaluation_nor_matplotlib() -> None:
    code = (
        "import sys, service.app, service.worker, service.supervisor, service.server, service.cli, service.client.bench\n"
        "print([name for name in sys.modules if name.startswith(('service.evaluation', 'matplotlib'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
