"""`gridloop import` as its user meets it: what it refuses, what it leaves behind, and how a guess is confirmed or overruled."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto as T
from onnx import helper

from service.cli import main
from service.registry.check import check_folder
from tests import graphs
from tests.conftest import running
from tests.test_docs import assert_alike

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "tests" / "imports"
FILE = FILES / "torch-script.onnx"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def gridloop(models: Path, *arguments: Any) -> Result:
    return CliRunner().invoke(main, ["import", "--models", str(models), *map(str, arguments)])


def manifest(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "manifest.toml").read_text())


def test_each_guess_is_printed_with_its_reason_and_the_way_to_say_otherwise(models: Path) -> None:
    result = gridloop(models, FILE)
    assert result.exit_code == 0, result.output
    assert "read  input: NCHW, grey, 28x28 (axis 1 of 'input.1' has 1)" in result.stdout
    assert (
        "guess scale: 0 to 1 (grey pictures are usually 0 to 1)  otherwise: --set preprocessing.mean=" in result.stdout
    )
    assert "3 guesses to be confirmed" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(
        "curl 'http://127.0.0.1:8000/v1/image-classification?model=torch-script'"
    )


def test_the_page_about_it_shows_what_is_printed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "importing.md").read_text()
    command, _, shown = page.partition("```console\n$ ")[2].partition("```")[0].partition("\n")
    monkeypatch.chdir(ROOT)
    result = gridloop(models, *shlex.split(command)[2:])
    assert_alike(shown, result.stdout.replace(str(models), "models"))


def test_the_card_and_the_manifest_say_what_nobody_has_confirmed(models: Path) -> None:
    gridloop(models, FILE)
    card = (models / "torch-script" / "card.md").read_text()
    guessed = card.partition("## Guessed")[2].partition("## Read")[0]
    assert "Nobody has confirmed these" in guessed
    assert [line.split(" | ")[0] for line in guessed.splitlines() if line.startswith("| ")] == [
        "| what", "| labels", "| scale", "| resize",
    ]  # fmt: skip
    assert "To be filled in" in card
    text = (models / "torch-script" / "manifest.toml").read_text()
    assert "mean = 0.0    # guessed: grey pictures are usually 0 to 1" in text


def test_yes_confirms_every_guess(models: Path) -> None:
    assert "nothing is left to be confirmed" in gridloop(models, FILE, "--yes").stdout
    assert "Nobody has confirmed" not in (models / "torch-script" / "card.md").read_text()
    assert "guessed" not in (models / "torch-script" / "manifest.toml").read_text()


def bright(path: Path) -> Path:
    """Scores of "dark" and "light": how far the picture's mean is from a half, on a scale of -1 to 1."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "signs"], ["y"]),
    ]
    held = {"axis": np.array([1]), "signs": np.array([[-9, 9]], np.float32)}
    return graphs.save(path, nodes, [("x", T.FLOAT, ["n", 3, 32, 32])], [("y", T.FLOAT, ["n", 2])], held)


def test_a_picture_whose_label_is_known_confirms_or_overrules_the_guesses(models: Path, tmp_path: Path) -> None:
    """On a scale of 0 to 1, as is guessed for small pictures, everything is light."""
    file = bright(tmp_path / "bright.onnx")
    (tmp_path / "bright.txt").write_text("dark\nlight\n")
    (tmp_path / "night.png").write_bytes(graphs.png((20, 20, 30), (32, 32)))
    known = ["--sample", tmp_path / "night.png", "--expect", "dark"]
    result = gridloop(models, file, *known)
    assert result.exit_code == 1
    assert "should be 'dark', and the answer is 'light'" in result.stderr
    assert list(models.iterdir()) == []
    right = ["--set", "preprocessing.mean=0.5", "--set", "preprocessing.std=0.5"]
    result = gridloop(models, file, *known, *right)
    assert result.exit_code == 0, result.output
    assert "nothing is left to be confirmed" in result.stdout
    assert (models / "bright" / "1" / "golden" / "night.png").exists()
    assert manifest(models / "bright")["preprocessing"]["mean"] == 0.5
    assert "`night.png`, which is known to show 'dark'" in (models / "bright" / "card.md").read_text()


async def test_labels_that_are_given_are_answered(models: Path, tmp_path: Path) -> None:
    names = [f"digit {index}" for index in range(10)]
    (tmp_path / "digits.json").write_text(json.dumps(names))
    assert gridloop(models, FILE, "--labels", tmp_path / "digits.json", "--name", "digits").exit_code == 0
    async with running(models) as client:
        answer = await client.post("/v1/image-classification?model=digits&top_k=10", content=graphs.png())
    assert {entry["label"] for entry in answer.json()["results"][0]["predictions"]} == set(names)


def test_json_is_one_document(models: Path) -> None:
    printed = json.loads(gridloop(models, FILE, "--json").stdout)
    assert (printed["task"], printed["unconfirmed"]) == ("image-classification", 3)
    assert printed["answer"]["model"] == {"name": "torch-script", "version": "1"}
    assert {"about", "value", "reason", "key", "otherwise", "sure"} == set(printed["guesses"][0])


def test_a_folder_is_never_overwritten(models: Path) -> None:
    gridloop(models, FILE)
    before = (models / "torch-script" / "manifest.toml").stat()
    result = gridloop(models, FILE, "--yes")
    assert result.exit_code == 2
    assert "is there already, and nothing is overwritten" in result.stderr
    assert (models / "torch-script" / "manifest.toml").stat() == before


def not_a_graph(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def a_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def an_unknown_operator(path: Path) -> None:
    model = onnx.load(FILE)
    model.graph.node[0].op_type = "Fonv"
    onnx.save(model, path)


def weights_elsewhere(path: Path) -> None:
    """In a file that would lie outside of the folder."""
    model = onnx.load(FILES / "torch-dynamo.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../../etc/hostname"
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (not_a_graph, "is not an ONNX file"),
        (a_pointer, "is a Git LFS pointer"),
        (an_unknown_operator, "'Fonv', which onnxruntime"),
        (weights_elsewhere, "leads out of the model's folder"),
    ],
)
def test_a_file_that_cannot_be_served_leaves_nothing_behind(
    models: Path, tmp_path: Path, write: Any, sentence: str
) -> None:
    write(tmp_path / "net.onnx")
    result = gridloop(models, tmp_path / "net.onnx")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "mind-reading"], "There is no task 'mind-reading'"),
        (["--name", "../up"], "model names are letters"),
        (["--expect", "cat"], "name it with --sample"),
        (["--set", "mean"], "is no KEY=VALUE"),
        (["--set", "task=tensor"], "said by --task"),
        (["--set", "constants.scale=large"], "takes a number"),
    ],
)
def test_wrong_usage_is_told(models: Path, arguments: list[str], sentence: str) -> None:
    result = gridloop(models, FILE, *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_a_setting_that_no_manifest_may_have_is_told_with_its_key(models: Path) -> None:
    result = gridloop(models, FILE, "--set", "preprocessing.maen=1")
    assert result.exit_code == 1
    assert "maen" in result.stderr
    assert list(models.iterdir()) == []


def test_labels_of_another_count_are_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    result = gridloop(models, FILE, "--labels", tmp_path / "three.txt")
    assert result.exit_code == 1
    assert "has 3 labels, but the graph has 10 classes" in result.stderr


def test_a_file_called_model_gets_the_name_of_its_folder(models: Path, tmp_path: Path) -> None:
    (tmp_path / "My cats!").mkdir()
    (tmp_path / "My cats!" / "model.onnx").write_bytes(FILE.read_bytes())
    assert gridloop(models, tmp_path / "My cats!" / "model.onnx").exit_code == 0
    assert [folder.name for folder in models.iterdir()] == ["My-cats"]


def test_a_graph_that_the_task_of_its_names_refuses_is_served_as_tensors(models: Path, tmp_path: Path) -> None:
    """Here of a language model without its vocabulary."""
    graph = graphs.words_model(tmp_path) / "1" / "model.onnx"
    (tmp_path / "alone").mkdir()
    result = gridloop(models, graph.rename(tmp_path / "alone" / "words.onnx"), "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["task"] == "tensor"
    assert "next-word-prediction would fit, but: words/1/vocabulary.txt: is missing" in printed["guesses"][0]["reason"]


def test_a_sample_too_large_to_be_kept_is_said_to_be_missing(models: Path, tmp_path: Path) -> None:
    nodes, shape = [helper.make_node("Neg", ["x"], ["y"])], ["n", 200_000]
    graphs.save(tmp_path / "wide.onnx", nodes, [("x", T.FLOAT, shape)], [("y", T.FLOAT, shape)])
    assert "golden.json is missing" in gridloop(models, tmp_path / "wide.onnx").stdout
    assert "There is no golden sample" in (models / "wide" / "card.md").read_text()


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ('x = "hn"', "should have the same type and axes"),
        ('h0 = "nothing"', "should name an input and an output"),
        ('nothing = "hn"', "should name an input and an output"),
    ],
)
def test_state_that_a_manifest_declares_must_fit_the_graph(models: Path, pair: str, sentence: str) -> None:
    gridloop(models, FILES / "torch-gru.onnx")
    (models / "torch-gru" / "manifest.toml").write_text(f'task = "tensor"\n[state]\n{pair}\n')
    (finding,) = [each for each in check_folder(models / "torch-gru") if not each.ok]
    assert sentence in finding.detail
