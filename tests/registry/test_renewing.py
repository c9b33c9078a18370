"""The registry follows its folders: what has changed is loaded, and what cannot be served changes nothing."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelNotFound, ModelNotReady
from service.registry.handle import LoadOptions
from service.registry.registry import Asked, Changes, Registry
from service.registry.watcher import Watcher, changed, look
from tests import graphs
from tests.counting import Counting, CountingInput


class Served:
    """A registry and who watches its folder."""

    def __init__(self, models: Path) -> None:
        self.models, self.counter = models, models / "counter"
        self.registry, self.watcher = Registry(models, tasks={"counting": Counting}), Watcher(models)
        self.loaded: list[str] = []
        self.renew()

    def renew(self, *, load: str = "", unload: str = "", again: bool = False, **known_bad: str) -> Changes:
        """Serve what the folders hold now; `loaded` is what was loaded for that."""
        now = look(self.models)
        assert now is not None
        asked = Asked([load] if load else [], [unload] if unload else [], again=again, known_bad=known_bad)
        names = changed(self.watcher.taken, now) | {load, unload} if not again else {*now, *self.watcher.taken}
        self.loaded = []
        self.watcher.take(now, names)
        return self.registry.renew(now, names, asked, self.loaded.append)

    def count(self, asked: str | None = None) -> float:
        handle = self.registry.resolve("counting", asked)
        return float(handle.predict_now(CountingInput(x=1)).model_dump()["counts"][0])

    def version(self, name: str) -> Any:
        return self.registry.get("counter").versions[name]

    def manifest(self, **keys: Any) -> None:
        lines = ['task = "counting"', *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        (self.counter / "manifest.toml").write_text("\n".join(lines))


def write_version(folder: Path, step: float = 0, golden: float | None = None) -> None:
    """A version whose first count is 10 + step; its golden sample may say otherwise."""
    if not folder.exists():
        shutil.copytree(folder.parent / "1", folder)
    graphs.decoder(folder / "decoder.onnx", step)
    expected = [20 + (step if golden is None else golden)]
    (folder / "golden.json").write_text(json.dumps([{"input": {"x": 2, "steps": 1}, "output": {"counts": expected}}]))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The model `counter` with version 1."""
    graphs.counting_model(tmp_path / "models")
    served = Served(tmp_path / "models")
    yield served
    assert served.registry.close(10)


def test_a_new_version_answers_and_nothing_else_is_loaded(served: Served) -> None:
    write_version(served.counter / "2", 0.5)
    changes = served.renew()
    assert (changes.came, changes.went, changes.refused, served.loaded) == (["counter@2"], [], {}, ["counter@2"])
    assert (served.count(), served.count("counter@1")) == (10.5, 10)
    assert served.renew().came == []


def test_a_version_that_fails_its_samples_leaves_the_old_one_serving(served: Served) -> None:
    write_version(served.counter / "2", 0.5, golden=7)
    changes = served.renew()
    assert (changes.came, list(changes.refused)) == ([], ["counter@2"])
    assert served.count() == 10
    assert served.version("2").state == "failed"
    assert "differs from its expected answer" in served.version("2").reason
    served.renew()
    assert served.loaded == [], "it is tried again when it changes"
    write_version(served.counter / "2", 0.5)
    assert served.renew().came == ["counter@2"]
    assert served.count() == 10.5


def test_changed_files_that_fail_leave_the_old_bytes_serving(served: Served) -> None:
    write_version(served.counter / "1", 0.25, golden=7)
    changes = served.renew()
    assert (changes.came, changes.went, list(changes.refused)) == ([], [], ["counter@1"])
    assert (served.count(), served.version("1").state) == (10, "ready")
    assert served.version("1").reason.endswith("What was loaded before is served.")
    write_version(served.counter / "1", 0.25)
    changes = served.renew()
    assert (changes.came, len(changes.closing), served.version("1").reason) == (["counter@1"], 1, None)
    assert served.count() == 10.25


def test_what_was_replaced_is_freed_without_the_collector(served: Served) -> None:
    """Whose marks would copy every page that the processes of a server share."""
    gone = weakref.ref(served.version("1").handle)
    session = weakref.ref(served.version("1").handle.graphs.main.session)
    served.registry.expect_traffic()
    gc.disable()
    try:
        write_version(served.counter / "1", 0.25)
        served.renew()
        assert served.count() == 10.25
        assert (gone(), session()) == (None, None)
    finally:
        gc.enable()


def test_a_version_or_model_that_is_removed_is_gone(served: Served) -> None:
    write_version(served.counter / "2", 0.5)
    served.renew()
    shutil.rmtree(served.counter / "2")
    assert served.renew().went == ["counter@2"]
    assert served.count() == 10
    with pytest.raises(ModelNotFound):
        served.count("counter@2")
    shutil.rmtree(served.counter)
    assert served.renew().went == ["counter@1"]
    assert list(served.registry) == []


def test_a_manifest_that_changes_nothing_in_a_version_loads_nothing(served: Served) -> None:
    write_version(served.counter / "2", 0.5)
    served.manifest(description="Counts.", default_version="1", required=True)
    served.renew()
    assert served.loaded == ["counter@2"]
    assert served.registry.get("counter").required
    assert served.count() == 10
    served.manifest(batching_={}, licence="MIT")
    served.renew()
    assert served.loaded == ["counter@1", "counter@2"]


def test_a_broken_manifest_changes_nothing_until_it_is_mended(served: Served) -> None:
    served.manifest(default_version=3)
    served.renew()
    assert (served.count(), served.version("1").state) == (10, "ready")
    assert "default_version" in served.version("1").reason
    served.manifest()
    changes = served.renew()
    assert (changes.came, served.loaded, served.version("1").reason) == ([], [], None)
    served.manifest(default_version=3)
    served.renew()
    assert served.renew(unload="counter").went == ["counter@1"], "a broken manifest keeps nothing from being unloaded"


def test_a_default_version_that_fails_does_not_take_the_place_of_the_one_that_answers(served: Served) -> None:
    write_version(served.counter / "2", 0.5, golden=7)
    served.manifest(default_version="2")
    served.renew()
    assert served.count() == 10
    write_version(served.counter / "2", 0.5)
    served.renew()
    assert served.count() == 10.5


def test_a_new_model_that_cannot_answer_does_not_become_the_default_of_its_task(served: Served) -> None:
    shutil.copytree(served.counter, served.models / "another")
    (served.models / "another" / "manifest.toml").write_text('task = "counting"\ndefault = true')
    write_version(served.models / "another" / "1", 0.5, golden=7)
    served.renew()
    assert served.count() == 10
    write_version(served.models / "another" / "1", 0.5)
    served.renew()
    assert served.count() == 10.5


def test_the_latest_version_that_can_be_served_is_loaded_alone(served: Served) -> None:
    for version, step in (("2", 0.5), ("10", 0.75)):
        write_version(served.counter / version, step)
    write_version(served.counter / "11", golden=7)
    served.manifest(versions="latest")
    served.renew()
    assert list(served.registry.get("counter").versions) == ["10", "11"]
    assert served.count() == 10.75
    shutil.rmtree(served.counter / "10")
    changes = served.renew()
    assert (changes.came, changes.went, served.count()) == (["counter@2"], ["counter@10"], 10.5)


def test_pinned_versions_are_loaded_and_one_that_is_not_there_is_said(served: Served) -> None:
    write_version(served.counter / "2", 0.5)
    served.manifest(versions=["1", "3"])
    served.renew()
    assert list(served.registry.get("counter").versions) == ["1", "3"]
    assert "there is no such folder" in served.version("3").reason
    assert served.count() == 10


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"versions": "newest"}, 'versions = \'newest\': must be "all", "latest" or a list of names'),
        ({"versions": [1]}, "list of names"),
        ({"versions": []}, "list of names"),
        ({"versions": "latest", "default_version": "1"}, "default_version '1' is not among those that `versions`"),
    ],
)
def test_a_policy_that_makes_no_sense_is_said_with_its_line(served: Served, keys: dict[str, Any], words: str) -> None:
    served.manifest(**keys)
    problem = Registry(served.models, tasks={"counting": Counting}).get("counter").problem
    assert problem
    assert words in problem
    assert "line 2" in problem


def test_what_is_unloaded_stays_so_until_it_is_loaded(served: Served) -> None:
    served.renew(unload="counter")
    served.renew()
    assert (served.version("1").state, served.version("1").handle) == ("unloaded", None)
    with pytest.raises(ModelNotReady, match="POST /v2/repository/models/counter/load"):
        served.count("counter")
    write_version(served.counter / "2", 0.5)
    served.renew()
    assert served.version("2").state == "unloaded"
    assert sorted(served.renew(load="counter").came) == ["counter@1", "counter@2"]
    assert served.count() == 10.5


def test_an_unloaded_model_does_not_make_the_server_unready(served: Served) -> None:
    shutil.copytree(served.counter, served.models / "another")
    served.manifest(required=True)
    served.renew(unload="counter")
    assert served.registry.unready() == {}


def test_what_ended_its_loader_is_not_tried_again_until_it_changes(served: Served) -> None:
    write_version(served.counter / "2", 0.5)
    served.renew(**{"counter@2": "ended the process that loaded it."})
    assert served.version("2").reason == "ended the process that loaded it."
    served.renew()
    assert served.loaded == []
    assert served.renew(again=True).came == ["counter@2"]


def test_files_that_change_while_they_are_loaded_are_not_taken(served: Served) -> None:
    write_version(served.counter / "2", 0.5)
    now = look(served.models)
    assert now is not None
    (served.counter / "2" / "more.txt").write_text("late")
    served.registry.renew(now, {"counter"})
    assert "has changed while it was loaded" in served.version("2").reason
    assert served.count() == 10


def test_a_change_counts_once_two_looks_agree(served: Served) -> None:
    assert served.watcher.changes() == set()
    write_version(served.counter / "2", 0.5)
    assert served.watcher.changes() == set(), "it may be half copied"
    (served.counter / "2" / "golden.json").write_text("[")
    assert served.watcher.changes() == set(), "it is"
    assert served.watcher.changes() == {"counter"}
    shutil.rmtree(served.counter)
    served.watcher.changes()
    assert served.watcher.changes() == {"counter"}


def test_no_look_is_changed_by_what_is_no_version(served: Served) -> None:
    before = look(served.models)
    assert before is not None
    (served.counter / "train.py").write_text("pass")
    (served.counter / "plots").mkdir()
    (served.counter / ".2").mkdir()
    (served.models / "README.md").write_text("#")
    assert look(served.models) == before


def test_beside_traffic_nothing_is_measured_that_a_version_before_can_tell(tmp_path: Path) -> None:
    """Nor is anything remembered for the next start."""
    graphs.write_model(tmp_path / "m", task="tensor", graph=graphs.affine)

    def golden(version: str, x: float, y: float) -> None:
        sample = {"input": {"inputs": {"x": [[x]]}}, "output": {"outputs": {"y": [[y]]}}}
        (tmp_path / "m" / version / "golden.json").write_text(json.dumps([sample]))

    def renew() -> dict[str, str]:
        now = look(tmp_path)
        assert now is not None
        registry.renew(now, {"m"})
        handles = {name: version.handle for name, version in registry.get("m").versions.items()}
        return {name: handle.tuning.source for name, handle in handles.items() if handle}

    golden("1", 1, 3)
    registry = Registry(tmp_path, LoadOptions(tune=True))
    assert renew() == {"1": "measured"}
    registry.expect_traffic()
    graphs.plus(tmp_path / "m" / "2" / "model.onnx", 5)
    golden("2", 1, 6)
    assert renew() == {"1": "measured", "2": "measured"}, "another graph"
    graphs.plus(tmp_path / "m" / "3" / "model.onnx", 7)
    golden("3", 1, 8)
    assert renew()["3"] == "inherited"
    again = Registry(tmp_path, LoadOptions(tune=True))
    again.load()
    sources = {
        name: version.handle.tuning.source for name, version in again.get("m").versions.items() if version.handle
    }
    assert sources == {"1": "remembered", "2": "measured", "3": "measured"}


def test_a_repository_that_is_gone_changes_nothing(served: Served) -> None:
    served.models.rename(served.models.with_name("elsewhere"))
    assert look(served.models) is None
    assert served.watcher.changes() == set()
    assert served.watcher.changes() == set()
    assert served.count() == 10
