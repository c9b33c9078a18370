"""No two types that callers see share a name: a generated client would know only one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType, TypedDict

from service.errors import NameTaken
from service.registry.registry import Registry
from service.schemas.names import public_types, refuse_shared_names, schema_name
from service.tasks import check_type_names, discover
from tests.api.test_routes import Shout

T = TypeVar("T")


@pytest.mark.parametrize(
    ("python", "document"),
    [
        ("LabelPrediction", "LabelPrediction"),
        ("Page[int]", "PageInt"),
        ("Page_list_int__", "PageListInt"),
        ("Pair[list[int], str]", "PairListIntStr"),
        ("Point-Input", "PointInput"),
    ],
)
def test_a_name_in_the_document_is_an_identifier(python: str, document: str) -> None:
    assert schema_name(python) == document


def test_the_types_of_all_tasks_have_different_names() -> None:
    """Of those that exist now, and of every one to come."""
    check_type_names(discover())


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    colour: Colour


class Row(TypedDict):
    points: list[Point]


Rows = TypeAliasType("Rows", list[Row])


class Box(BaseModel, Generic[T]):
    content: T


class Hidden(BaseModel):
    number: int


class Everything(BaseModel):
    rows: Rows | None
    boxes: dict[str, Box[int]]
    secret: Hidden = Field(exclude=True)


def test_types_are_found_wherever_a_field_names_them() -> None:
    found = {found.__name__ for found in public_types([Everything])}
    assert found == {"Everything", "Rows", "Row", "Point", "Colour", "Box[int]"}


def test_a_type_may_be_shared_by_several_tasks_but_its_name_may_not() -> None:
    class Heatmap(BaseModel):
        values: list[float]

    first = Heatmap

    class Heatmap(BaseModel):  # type: ignore[no-redef]
        grid: list[float]

    refuse_shared_names({"task 'a'": [first], "task 'b'": [first]})
    with pytest.raises(NameTaken, match="Two types are called Heatmap: one of task 'a' .* and one of task 'b'"):
        refuse_shared_names({"task 'a'": [first], "task 'b'": [Heatmap]})


def test_a_task_may_not_take_a_name_of_the_services_own_answers(tmp_path: Path) -> None:
    class ModelInfo(BaseModel):
        colour: str

    class Output(Shout.Output):
        about: ModelInfo

    class Taken(Shout):
        name = "taken"

    Taken.Output = Output
    with pytest.raises(NameTaken, match="one of the service .* and one of task 'taken'"):
        Registry(tmp_path, tasks={"taken": Taken})


PLUGIN = """
from pydantic import BaseModel
from service.tasks.base import Run, Steps, Task, TaskInput, TaskOutput

class LabelPrediction(BaseModel):
    text: str

class AlphaInput(TaskInput):
    number: float

class AlphaOutput(TaskOutput):
    best: LabelPrediction

class Alpha(Task[AlphaInput, AlphaOutput]):
    name = "alpha"
    summary = "A plug-in"
    Input, Output = AlphaInput, AlphaOutput

    def steps(self, request: AlphaInput) -> Steps[AlphaOutput]:
        yield Run({})
        raise NotImplementedError
"""


def test_an_installed_plug_in_with_a_name_that_is_taken_gets_a_sentence(tmp_path: Path) -> None:
    """The built-in type keeps its name, wherever the plug-in's own stands in the alphabet."""
    (tmp_path / "alpha_plugin.py").write_text(PLUGIN)
    (tmp_path / "alpha-1.dist-info").mkdir()
    (tmp_path / "alpha-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: alpha\nVersion: 1\n")
    (tmp_path / "alpha-1.dist-info" / "entry_points.txt").write_text("[gridloop.tasks]\nalpha = alpha_plugin:Alpha\n")
    for command in ("models", "serve"):
        ended = subprocess.run(
            [sys.executable, "-m", "service", command],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "GRIDLOOP_MODELS": str(tmp_path), "GRIDLOOP_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode != 0
        assert "Traceback" not in ended.stderr
        said = " ".join(ended.stderr.split())
        assert "rename the class in alpha_plugin" in said
