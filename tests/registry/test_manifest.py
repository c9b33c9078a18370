"""A manifest has keys that every model may have, and those of its task; everything else is refused by name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from pydantic import Field

from service.registry.manifest import Manifest
from service.registry.manifest_schema import manifest_schema
from service.registry.registry import Registry
from service.tasks import discover
from service.tasks.base import MANIFEST_KEYS, Run, Steps, Task, TaskInput, TaskOptions, TaskOutput
from tests import graphs


class EchoInput(TaskInput):
    """A number."""

    number: float


class EchoOutput(TaskOutput):
    """What comes back."""

    number: float


class Room(TaskOptions):
    """Where the echo is."""

    delay_s: float = Field(default=1.0, ge=0)


class EchoOptions(TaskOptions):
    """A key and a table of its own."""

    gain: float = 1.0
    room: Room = Room()


class Echo(Task[EchoInput, EchoOutput]):
    """One more than twice the number, times the gain."""

    name = "echo"
    summary = "What comes back?"
    Input, Output, Options = EchoInput, EchoOutput, EchoOptions
    options: EchoOptions

    def steps(self, request: EchoInput) -> Steps[EchoOutput]:
        outputs = yield Run({"x": np.array([[request.number]], np.float32)})
        return EchoOutput(model=self.folder.ref, number=self.options.gain * float(outputs["y"][0, 0]))


def served(models: Path, manifest: str, of_version_2: str | None = None) -> Any:
    """The model as the registry lists it, with a second version when that has a manifest of its own."""
    if of_version_2 is not None:
        graphs.affine(models / "echo" / "2" / "model.onnx")
        (models / "echo" / "2" / "manifest.toml").write_text(of_version_2)
    graphs.write_model(models / "echo", task="echo", graph=graphs.affine)
    with (models / "echo" / "manifest.toml").open("a") as file:
        file.write("\n" + manifest)
    registry = Registry(models, tasks={"echo": Echo})
    registry.load()
    return registry.get("echo")


def test_a_task_gets_keys_and_tables_of_its_own_with_no_change_elsewhere(tmp_path: Path) -> None:
    model = served(tmp_path, "gain = 10\n[room]\ndelay_s = 0.5")
    handle = model.versions["1"].handle
    assert handle.task.options == EchoOptions(gain=10, room=Room(delay_s=0.5))


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    assert served(tmp_path, "").versions["1"].handle.task.options == EchoOptions()


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ("volume = 3", "volume is not known; models/README.md lists the keys of every manifest, and echo reads beside them: gain, room (line 2)."),
        ("[calibration]\ncoverage = 0.9", "[calibration] is not known; models/README.md lists the keys of every manifest, and echo reads beside them: gain, room (line 2)."),
        ("\ngian = 3", "gian is not known; models/README.md lists the keys of every manifest, and echo reads beside them: gain, room (line 3; the nearest is gain)."),
        ("requird = true", "requird is not known; models/README.md lists the keys of every manifest, and echo reads beside them: gain, room (line 2; the nearest is required)."),
        ("[room]\nlength = 3", "[room] length is not known; remove it or correct its name (line 3)."),
        ("[room]\n# seconds\ndelay = 3", "[room] delay is not known; remove it or correct its name (line 4; the nearest is delay_s)."),
        ("room.delay = 3", "[room] delay is not known; remove it or correct its name (line 2; the nearest is delay_s)."),
        ("room = { delay = 3 }", "[room] delay is not known; remove it or correct its name (line 2; the nearest is delay_s)."),
        ("room = 3", "room must be a table: write [room] and its keys below (line 2)."),
        ("gain = 'loud'", "gain = 'loud': Input should be a valid number, unable to parse string as a number (line 2)."),
        ("[room]\ndelay_s = -1", "[room] delay_s = -1: Input should be greater than or equal to 0 (line 3)."),
        ("volume = 3\ngain = []", "gain = []: Input should be a valid number (line 3); volume is not known; models/README.md lists the keys of every manifest, and echo reads beside them: gain, room (line 2)."),
    ],
)  # fmt: skip
def test_what_a_task_does_not_know_is_refused_by_name(tmp_path: Path, manifest: str, sentence: str) -> None:
    model = served(tmp_path, manifest)
    assert not model.is_ready
    assert model.reason == f"echo/manifest.toml: {sentence}"


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ("[batching]\nmax_batch = 3", "[batching] max_batch is not known; remove it or correct its name (line 3; the nearest is max_batch_size)."),
        ("architecture = 'cn'", "architecture = 'cn': Input should be 'cnn', 'rnn', 'transformer' or 'other' (line 2; the nearest is cnn)."),
        ('description = """\nrequired = "\n"""\nrequired = "maybe"', "required = 'maybe': Input should be a valid boolean, unable to interpret input (line 5)."),
        ("default_version = '9'", "default_version '9' is not among its versions: 1 (line 2)."),
    ],
)  # fmt: skip
def test_the_common_keys_are_checked_before_any_task_is_asked(tmp_path: Path, manifest: str, sentence: str) -> None:
    assert served(tmp_path, manifest).reason == f"echo/manifest.toml: {sentence}"


def test_the_nearest_task_is_named(tmp_path: Path) -> None:
    graphs.write_model(tmp_path / "m", task="ecko", graph=graphs.affine)
    assert Registry(tmp_path, tasks={"echo": Echo}).get("m").reason == (
        "m/manifest.toml: task 'ecko' is not known; this server has: echo (line 1). Did you mean 'echo'?"
    )


def test_the_keys_of_every_manifest_are_known_to_tasks() -> None:
    assert set(MANIFEST_KEYS) == set(Manifest.model_fields)


SCHEMA = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == manifest_schema(discover()), "python docs/generate.py"


def test_editors_find_with_the_schema_what_loading_would(real_models: Path) -> None:
    schema = jsonschema_rs.validator_for(json.loads(SCHEMA.read_text()))
    for manifest in real_models.glob("*/manifest.toml"):
        schema.validate(tomllib.loads(manifest.read_text()))
    for wrong in (
        "",
        'task = "mind-reading"',
        'task = "tensor"\nrequird = true',
        'task = "tensor"\n[preprocessing]\nresize = "crop"',
        'task = "image-classification"\n[preprocessing]\nresise = "crop"',
        'task = "image-classification"\n[batching]\nmax_batch_size = 0',
    ):
        assert not schema.is_valid(tomllib.loads(wrong)), wrong


def test_a_version_replaces_keys_and_tables_of_its_own(tmp_path: Path) -> None:
    """Whole tables, so that nothing fitted for one version is mixed with what was fitted for another."""
    model = served(tmp_path, "gain = 10\n[room]\ndelay_s = 0.5", of_version_2="[room]")
    one, two = (model.versions[name].handle.task.options for name in "12")
    assert one == EchoOptions(gain=10, room=Room(delay_s=0.5))
    assert two == EchoOptions(gain=10, room=Room(delay_s=1.0))


def test_a_version_may_have_a_licence_and_figures_of_its_own(tmp_path: Path) -> None:
    model = served(
        tmp_path,
        'licence = "MIT"\n[metrics]\naccuracy = 0.8\nerror = 0.1',
        of_version_2='licence = "research only"\n[metrics]\naccuracy = 0.9',
    )
    one, two = (model.versions[name].handle.claims for name in "12")
    assert (one.licence, one.metrics) == ("MIT", {"accuracy": 0.8, "error": 0.1})
    assert (two.licence, two.metrics) == ("research only", {"accuracy": 0.9})


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ("licence = 3", "echo/2/manifest.toml: licence = 3: Input should be a valid string (line 1)."),
        ("[metrics]\naccuracy = []", "echo/2/manifest.toml: [metrics] accuracy = []: Input should be a valid number (line 2)."),
        ("[metrics]\naccuracy = nan", "echo/2/manifest.toml: [metrics] accuracy = nan: Input should be a finite number (line 2)."),
        ("[constants]\nx = 'one'", "echo/2/manifest.toml: [constants] x = 'one': Input should be a valid number, unable to parse string as a number (line 2)."),
        ("required = true\ngain = 2", "echo/2/manifest.toml: required holds for every version; write it in echo/manifest.toml. Here may be only licence, load, [metrics], [constants], [state], [state_ranges] and what the task reads, such as [calibration]."),
        ("gain = ", "echo/2/manifest.toml: is not valid TOML"),
        ("gain = []", "echo/2/manifest.toml over echo/manifest.toml: gain = []: Input should be a valid number (line 1 of echo/2/manifest.toml)."),
    ],
)  # fmt: skip
def test_a_version_whose_own_manifest_is_wrong_is_not_served_but_the_others_are(
    tmp_path: Path, own: str, sentence: str
) -> None:
    model = served(tmp_path, "", of_version_2=own)
    assert model.versions["2"].reason.startswith(sentence)
    assert model.versions["1"].state == "ready"
    assert model.default_version == "1"
