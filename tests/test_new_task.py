"""A new task is one file and one folder, nothing else; and the page on adding one runs as printed.

The promise is kept with a toy: a file of tasks and a folder of models in a temporary directory, which nothing here
imports. Everything that a task has must follow from these two.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto as T
from onnx import helper

from service.cli import main
from service.scripts import load_script
from service.tasks import discover
from tests import graphs
from tests.conftest import running
from tests.test_server import Server, serving

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-task.md"


def length(path: Path) -> Path:
    """y = |x|, Euclidean, for x float32 (batch, width)."""
    return graphs.save(
        path,
        [helper.make_node("ReduceL2", ["x"], ["y"], axes=[1], keepdims=1)],
        [("x", T.FLOAT, ["batch", "width"])],
        [("y", T.FLOAT, ["batch", 1])],
    )


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[ModuleType]:
    """A module of the page's Python blocks."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    (tmp_path / "measure.py").write_text("\n\n".join(blocks))
    spec = importlib.util.spec_from_file_location("measure", tmp_path / "measure.py")
    assert spec and spec.loader
    sys.modules["measure"] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["measure"]


async def test_the_printed_task_answers(printed: ModuleType, tmp_path: Path) -> None:
    golden = [{"input": {"values": [3, 4]}, "output": {"length": 5}}]
    graphs.write_model(tmp_path / "models" / "ruler", task="measure", graph=length, golden=golden)
    async with running(tmp_path / "models", tasks={"measure": printed.Measure}) as client:
        answer = await client.post("/v1/measure", json={"values": [1, 2, 2]})
        assert answer.json() == {"model": {"name": "ruler", "version": "1"}, "length": 3}
        operation = (await client.get("/openapi.json")).json()["paths"]["/v1/measure"]["post"]
        assert operation["requestBody"]["content"]["application/json"]["examples"]["example 1"]["value"] == {
            "values": [1.0, 2.0]
        }


async def test_the_printed_task_of_two_graphs_answers(printed: ModuleType, tmp_path: Path) -> None:
    folder = graphs.counting_model(tmp_path / "models")
    (folder / "manifest.toml").write_text('task = "count"')
    (folder / "1" / "golden.json").write_text('[{"input": {"x": 2, "steps": 3}, "output": {"count": 60}}]')
    async with running(tmp_path / "models", tasks={"count": printed.Count}) as client:
        answer = await client.post("/v1/count", json={"x": 1, "steps": 4})
        assert answer.json() == {"model": {"name": "counter", "version": "1"}, "count": 40}


async def test_the_printed_task_tells_its_parts(printed: ModuleType, tmp_path: Path) -> None:
    folder = graphs.counting_model(tmp_path / "models")
    (folder / "manifest.toml").write_text('task = "told-count"')
    (folder / "1" / "golden.json").write_text('[{"input": {"x": 2, "steps": 3}, "output": {"count": 60}}]')
    async with running(tmp_path / "models", tasks={"told-count": printed.ToldCount}) as client:
        body, accept = {"x": 1, "steps": 2}, {"Accept": "text/event-stream"}
        answer = await client.post("/v1/told-count", json=body, headers=accept)
        assert re.findall(r"event: (.*)\n(?:.*\n)??data: (.*)\n", answer.text) == [
            ("count", '{"count":10.0}'),
            ("count", '{"count":20.0}'),
            ("done", '{"model":{"name":"counter","version":"1"},"count":20.0}'),
        ]


async def test_the_printed_options_are_read_from_the_manifest(printed: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "ruler"
    graphs.write_model(folder, task="rounded-measure", graph=length)
    with (folder / "manifest.toml").open("a") as manifest:
        manifest.write("\n[rounding]\ndigits = 1\n")
    async with running(tmp_path / "models", tasks={"rounded-measure": printed.RoundedMeasure}) as client:
        answer = await client.post("/v1/rounded-measure", json={"values": [1, 1]})
        assert answer.json()["length"] == pytest.approx(np.round(np.sqrt(2), 1))


async def test_the_printed_task_for_files_answers_for_each(printed: ModuleType, tmp_path: Path) -> None:
    graphs.write_model(tmp_path / "models" / "meter", task="loudness", graph=length)
    async with running(tmp_path / "models", tasks={"loudness": printed.Loudness}) as client:
        files = [("file", ("a.raw", np.array([3, -4, 0, 0], "<i2").tobytes())), ("file", ("b.raw", b"x"))]
        answer = await client.post("/v1/loudness", files=files)
        loud, cut = answer.json()["results"]
        assert loud == {"filename": "a.raw", "level": 2.5}
        assert cut["error"]["detail"] == "Recording 'b.raw' is empty or cut short. Send 16-bit samples."


# --- one file, one folder

TASK = '''
"""Stretching: every number twice, and one more."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from service.tasks.base import MediaAnswer, ModelFolder, Run, Steps, Task, TaskInput, TaskOptions, TaskOutput
from service.tasks.terminal import FileFields, FileReader, Shown, Table


class StretchingInput(TaskInput):
    """Numbers to be stretched."""

    model_config = {"json_schema_extra": {"examples": [{"numbers": [1, 2]}]}}

    numbers: list[float] = Field(description="What is stretched.", min_length=1)
    times: Annotated[int, Field(ge=1, le=3)] = Field(default=1, description="How often.")
    backwards: bool = Field(default=False, description="Last number first.")
    format: Literal["json", "text"] = Field(default="json", description="JSON, or plain text.")


class StretchingOutput(TaskOutput):
    """The numbers, longer."""

    stretched: list[float] = Field(description="As many as were sent.")


class StretchingOptions(TaskOptions):
    """What a manifest may say."""

    unit: str = ""


def read_numbers(data: bytes, name: str, options: Mapping[str, str]) -> FileFields:
    """Numbers from a file, one a line."""
    return FileFields({"numbers": [float(line) for line in data.split()]}, f"all lines of {name}")


class Stretching(Task[StretchingInput, StretchingOutput]):
    """Makes numbers longer."""

    name, summary = "stretching", "How long is this when stretched?"
    Input, Output, Options = StretchingInput, StretchingOutput, StretchingOptions
    options: StretchingOptions
    other_answers: ClassVar[Mapping[str, str]] = {"text": "text/plain"}
    file_reader = FileReader("lengths", "File of numbers, one a line.", read_numbers, suffixes=(".len",))

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("x", dtype="float32", rank=2)

    def steps(self, request: StretchingInput) -> Steps[StretchingOutput | MediaAnswer]:
        numbers = np.array([request.numbers], np.float32)
        for _ in range(request.times):
            outputs = yield Run({"x": numbers})
            numbers = outputs["y"]
        found = numbers[0, ::-1] if request.backwards else numbers[0]
        if kind := self.other_answer(request):
            return MediaAnswer(self.folder.ref, " ".join(f"{n:g}" for n in found.tolist()).encode(), kind)
        return StretchingOutput.model_construct(model=self.folder.ref, stretched=found.tolist())

    def shown(self, request: StretchingInput, answer: Mapping[str, Any]) -> Iterator[Shown]:
        rows = zip(request.numbers, answer["stretched"], strict=True)
        yield Table(("before", "after"), [(f"{before:g}", f"{after:g} {self.options.unit}") for before, after in rows])
'''

EVALUATION = '''
"""Every number of a file is stretched by the model and by hand."""

from service.evaluation import Ask, DataMissing, Evaluation, Figure, Item, Outcome


class ByHand(Evaluation):
    """Numbers of DIR/numbers.txt."""

    title, item = "By hand", "number"

    def items(self):
        file = self.data / "numbers.txt"
        if not file.exists():
            raise DataMissing(self.data, "numbers.txt")
        return [Item(line, lambda number=float(line): self.talk(number)) for line in file.read_text().split()]

    @staticmethod
    def talk(number):
        answer = yield Ask({"numbers": [number]})
        text = yield Ask({"numbers": [number], "format": "text"})
        return answer["stretched"] == [2 * number + 1] and float(text["data"]) == 2 * number + 1

    def outcome(self, records):
        return Outcome([Figure("numbers stretched as by hand", sum(records) / len(records), len(records), "numbers")])
'''


class House(NamedTuple):
    """A folder of tasks and a folder of models."""

    tasks: Path
    models: Path

    def gridloop(self, command: str, *arguments: object) -> Result:
        """What a command says, with these tasks."""
        return CliRunner().invoke(main, [command, "--tasks", str(self.tasks), *map(str, arguments)])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The toy: `tasks/stretching.py` and `models/rubber`."""
    root = tmp_path_factory.mktemp("house")
    house = House(root / "tasks", root / "models")
    house.tasks.mkdir()
    (house.tasks / "stretching.py").write_text(TASK)
    golden = [{"input": {"numbers": [1, 2]}, "output": {"stretched": [3, 5]}}]
    folder = house.models / "rubber"
    graphs.write_model(
        folder, task="stretching", graph=graphs.affine, golden=golden, unit="cm", licence="MIT (weights)"
    )
    (folder / "evaluate.py").write_text(EVALUATION)
    (folder / "card.md").write_text("# Rubber\n")
    return house


@pytest.fixture(scope="module")
def server(house: House) -> Iterator[Server]:
    with serving(house.models, workers=2, tasks=house.tasks) as running:
        yield running


def test_its_model_is_checked(house: House) -> None:
    result = house.gridloop("check", house.models / "rubber")
    assert result.exit_code == 0, result.output
    assert "1 sample(s) reproduced" in " ".join(result.stdout.split())


def test_it_is_served_with_a_route_errors_and_an_entry_in_the_document(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/stretching", json={"numbers": [1, 2], "times": 2, "backwards": True})
    assert answer.json() == {"model": {"name": "rubber", "version": "1"}, "stretched": [11, 7]}
    plain = httpx.post(f"{server.url}/v1/stretching", json={"numbers": [1, 2], "format": "text"})
    assert (plain.headers["content-type"], plain.text, plain.headers["x-model"]) == ("text/plain", "3 5", "rubber@1")
    for wrong in ({"numbers": []}, {"numbers": [1], "times": 4}, {"numbers": [1], "format": "png"}, {"numbrs": [1]}):
        assert httpx.post(f"{server.url}/v1/stretching", json=wrong).status_code == 422
    document = httpx.get(f"{server.url}/openapi.json").json()
    operation = document["paths"]["/v1/stretching"]["post"]
    assert operation["summary"] == "How long is this when stretched?"
    assert list(operation["responses"]["200"]["content"]) == ["application/json", "text/plain"]
    assert "How long is this when stretched?" in document["info"]["description"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_list_of_models_has_a_line_that_asks_it(server: Server) -> None:
    (listed,) = httpx.get(f"{server.url}/v1/models").json()["models"]
    assert (listed["task"], listed["licence"], listed["is_default"]) == ("stretching", "MIT (weights)", True)
    asked = subprocess.run(["bash", "-c", listed["curl"]], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(asked.stdout)["stretched"] == [3, 5]


def test_the_command_line_has_its_fields_as_options(house: House) -> None:
    shown = house.gridloop("predict", "--task", "stretching", "--help").output
    for words in ("--numbers", "--times", "[1<=x<=3]", "--backwards / --no-backwards", "[json|text]", "--lengths"):
        assert words in shown
    result = house.gridloop("predict", "--models", house.models, "--numbers", "1,2", "--times", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"model": {"name": "rubber", "version": "1"}, "stretched": [7, 11]}


def test_the_command_line_shows_its_answer_as_it_says(house: House) -> None:
    result = house.gridloop("predict", "--models", house.models, "--model", "rubber", "--numbers", "1,2")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["before", "after"],
        ["1", "3", "cm"],
        ["2", "5", "cm"],
    ]


@pytest.mark.parametrize("option", [[], ["--lengths"]])
def test_the_command_line_reads_its_files(house: House, tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "a.len").write_text("1\n2\n")
    result = house.gridloop("predict", "--models", house.models, *option, tmp_path / "a.len", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stretched"] == [3, 5]
    assert "all lines of a.len" in result.stderr


def test_the_command_line_writes_its_other_answers_to_a_file(house: House, tmp_path: Path) -> None:
    arguments = ("predict", "--models", house.models, "--numbers", "1,2", "--format", "text")
    refused = house.gridloop(*arguments)
    assert refused.exit_code == 2
    assert "name a file for it with --out" in refused.output
    assert house.gridloop(*arguments, "--out", tmp_path / "a.txt").exit_code == 0
    assert (tmp_path / "a.txt").read_text() == "3 5"


def test_a_files_name_chooses_the_format_and_the_answer_is_shown_all_the_same(house: House, tmp_path: Path) -> None:
    asked = ("predict", "--models", house.models, "--numbers", "1,2")
    result = house.gridloop(*asked, "--out", tmp_path / "a.txt")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.txt").read_text() == "3 5"
    assert [line.split() for line in result.stdout.splitlines()][1:] == [["1", "3", "cm"], ["2", "5", "cm"]]
    assert house.gridloop(*asked, "--format", "json", "--out", tmp_path / "b.txt").exit_code == 0
    assert json.loads((tmp_path / "b.txt").read_text())["stretched"] == [3, 5]


@pytest.mark.parametrize(
    "wrong",
    ["--numbers 1 --times 4", "--task stretching", "--numbers 1 --format png", "--task stretching --numbers x"],
)
def test_what_its_input_does_not_take_is_wrong_usage(house: House, wrong: str) -> None:
    assert house.gridloop("predict", "--models", house.models, *wrong.split()).exit_code == 2


def test_it_is_evaluated_in_process_and_through_the_server(house: House, server: Server, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1 2 3.5")
    arguments = ("evaluate", "rubber", "--data", tmp_path, "--models", house.models, "--url", server.url, "--json")
    result = house.gridloop(*arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [run["way"] for run in report["runs"]] == ["in process", "through HTTP"]
    assert report["figures"][0]["value"] == 1


def test_it_is_in_the_tables_of_the_pages(house: House) -> None:
    generate = load_script(PAGE.parent / "generate.py")
    tasks = discover(house.tasks)
    page = "<!-- tasks: tasks -->\n<!-- end -->\n<!-- models: models -->\n<!-- end -->\n<!-- fields: StretchingInput -->\n<!-- end -->"
    text = generate.render(page, generate.openapi(tasks), tasks, house.models)
    assert (
        "| [`stretching`](tasks/stretching.md) | How long is this when stretched? | JSON with `numbers` "
        "| JSON, text/plain | `unit` |" in text
    )
    assert "| [rubber](models/rubber/card.md) | stretching |" in text
    assert "| MIT |" in text
    assert "| `times` | integer 1..3 | `1` | How often. |" in text


def test_its_page_is_begun(house: House) -> None:
    generate = load_script(PAGE.parent / "generate.py")
    tasks = discover(house.tasks)
    page = generate.render(generate.first_page(tasks["stretching"]), generate.openapi(tasks), tasks, house.models)
    assert page.startswith("# Stretching\n\n`POST /v1/stretching`: Makes numbers longer.\n")
    for part in ("| `backwards` | boolean | `false` | Last number first. |", "`ModelRef`:", "As many as were sent."):
        assert part in page


# --- tasks that cannot be used


NAMESAKE = """
from service.tasks.tensor import Tensor


class Mine(Tensor):
    name = "image-classification"
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NAMESAKE, "task 'image-classification' is there already"),
        ("import nothing_of_that_name\n", "No module named 'nothing_of_that_name' (line 1)"),
        ("x = 1\n", "defines no task"),
        (NAMESAKE.replace("image-classification", "Big Name"), "must be lower-case letters"),
        (
            NAMESAKE.replace("image-classification", "mine") + "    other_answers = {'png': 'image/png'}\n",
            "other_answers",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_with_a_sentence(
    tmp_path: Path, models: Path, text: str, words: str
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(text)
    house = House(tmp_path / "tasks", models)
    for command in (
        ("check", models / "colours"),
        ("models", "--models", models),
        ("predict", "--models", models, "--text", "a"),
    ):
        result = house.gridloop(*command)
        assert result.exit_code == 2, (command, result.output)
        assert words in result.output


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_does_not_start_with_a_task_that_takes_anothers_name(
    tmp_path: Path, models: Path, workers: int
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(NAMESAKE)
    command = [sys.executable, "-m", "service", "serve", f"--models={models}", "--port=0", f"--workers={workers}"]
    environment = {**os.environ, "GRIDLOOP_TASKS": str(tmp_path / "tasks")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "task 'image-classification' is there already, in service.tasks.image_classification" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_installed_plug_in_that_takes_a_built_in_name_is_refused(tmp_path: Path, models: Path) -> None:
    """A distribution as pip leaves it: a module, and metadata that name its task."""
    (tmp_path / "namesake.py").write_text(NAMESAKE)
    metadata = tmp_path / "namesake-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: namesake\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[gridloop.tasks]\nmine = namesake:Mine\n")
    command = [sys.executable, "-m", "service", "check", str(models / "colours")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "namesake.Mine: task 'image-classification' is there already" in done.stderr
