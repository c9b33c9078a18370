"""The options that `gridloop predict` makes of a task's input, and the task that it takes to be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from service.cli.choice import fitting, takes_files
from service.cli.fields import PREFIX, options_of
from service.tasks import AnyTask, discover
from service.tasks.base import MediaInput, Task, TaskInput
from service.tasks.image_classification import ImageClassification
from service.tasks.terminal import Failure, Table, fields_shown
from tests import graphs


class EverythingInput(TaskInput):
    """A field of every kind."""

    words: list[str] = Field(default=[])
    numbers: list[float | None] = Field(default=[])
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    count: int | None = None
    kind: Literal["a", "b"] = "a"
    final: bool = True
    table: dict[str, float] = Field(default={})
    quantiles: tuple[float, ...] | None = Field(default=None, description="Between 0 and 1.")


class Everything(Task[Any, Any]):
    """A task that is only looked at."""

    name, summary, Input = "everything", "What is there?", EverythingInput


def given(*arguments: str) -> dict[str, Any]:
    """The fields that a command line gives."""
    found: dict[str, Any] = {}
    command = click.Command("ask", params=[*options_of(Everything)], callback=lambda **fields: found.update(fields))
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return {name.removeprefix(PREFIX): value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ([], {}),
        (["--words", "red, green"], {"words": ["red", "green"]}),
        (["--numbers", "1,,2.5,null"], {"numbers": [1, None, 2.5, None]}),
        (["--numbers", "[1, 2]"], {"numbers": [1, 2]}),
        (["--share", "1"], {"share": 1.0}),
        (["--count", "3"], {"count": 3}),
        (["--kind", "b"], {"kind": "b"}),
        (["--no-final"], {"final": False}),
        (["--table", '{"a": 1}'], {"table": {"a": 1}}),
        (["--quantiles", "0.1,0.9"], {"quantiles": [0.1, 0.9]}),
    ],
)
def test_a_value_is_typed_as_its_field_has_it(arguments: list[str], fields: dict[str, Any]) -> None:
    assert given(*arguments) == fields
    EverythingInput.model_validate(fields)


@pytest.mark.parametrize("arguments", [["--share", "0"], ["--share", "1.1"], ["--count", "x"], ["--kind", "c"]])
def test_a_value_out_of_bounds_is_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        given(*arguments)


def test_the_model_and_the_files_are_no_fields_to_be_typed() -> None:
    names = [option.name for task in discover().values() for option in options_of(task)]
    assert f"{PREFIX}model" not in names
    assert f"{PREFIX}files" not in names


# --- which task


class BoxesInput(MediaInput):
    """What another task on pictures takes."""

    threshold: float = 0.5
    format: Literal["json", "png"] = "json"


class Boxes(ImageClassification):
    """Another task on pictures."""

    name, by_default = "boxes", False
    Input = BoxesInput  # type: ignore[assignment]


class MasksInput(MediaInput):
    """What a third one takes."""

    format: Literal["json", "png"] = "json"


class Masks(ImageClassification):
    """A third task on pictures."""

    name, by_default = "masks", False
    Input = MasksInput  # type: ignore[assignment]


JSON_TASKS = {name: task for name, task in discover().items() if not takes_files(task)}
TASKS: dict[str, type[AnyTask]] = {
    **JSON_TASKS,
    "image-classification": ImageClassification,
    "boxes": Boxes,
    "masks": Masks,
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "pink.png"
    path.write_bytes(graphs.png())
    return path


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ([], "image-classification"),
        (["top_k"], "image-classification"),
        (["threshold"], "boxes"),
        (["threshold", "format"], "boxes"),
    ],
)
def test_a_picture_means_the_default_task_that_knows_all_options(picture: Path, options: list[str], task: str) -> None:
    assert fitting(TASKS, [picture], options).name == task


def test_where_several_tasks_would_do_they_are_named(picture: Path) -> None:
    with pytest.raises(click.UsageError, match="several tasks would do: add --task boxes or --task masks"):
        fitting(TASKS, [picture], ["format"])


@pytest.mark.parametrize(
    ("options", "task"),
    [
        (["series"], "anomaly-detection"),
        (["values"], "anomaly-detection"),
        (["series", "column", "horizon"], "forecasting"),
        (["text"], "next-word-prediction"),
        (["text", "words", "explain"], "next-word-prediction"),
    ],
)
def test_options_mean_the_default_task_that_knows_them_all(options: list[str], task: str) -> None:
    assert fitting(TASKS, [], options).name == task


@pytest.mark.parametrize("options", [[], ["top_k"], ["text", "series"], ["inputs"]])
def test_what_fits_no_task_is_told_what_can_be_given(options: list[str]) -> None:
    with pytest.raises(click.UsageError, match="give FILEs, or --series, .*or --text"):
        fitting(TASKS, [], options)


# --- what is shown where a task says nothing


def test_any_answer_can_be_shown() -> None:
    fields = {"score": 0.123456789, "names": ["a", "b"], "missing": None, "boxes": [{"label": "x", "at": [1, 2]}]}
    lines, boxes = fields_shown(fields)
    assert lines == Table(("", ""), [("score", "0.123457"), ("names", "a, b")])
    assert boxes == Table(["label", "at"], [["x", "1, 2"]], "boxes")


def test_of_files_each_is_shown_and_what_failed_is_told() -> None:
    failed = {"filename": "b.png", "error": {"type": "/problems/invalid-input", "detail": "It is damaged."}}
    task = object.__new__(Boxes)
    good = {"filename": "a.png", "predictions": [{"label": "red", "score": 0.5}]}
    table, failure = task.shown(BoxesInput(), {"results": [good, failed]})  # type: ignore[arg-type]
    assert table == Table(("label", "score"), [("red", "0.500")], "a.png")
    assert failure == Failure("It is damaged.")
