"""Versions come and go while others are served; what was accepted is finished by what accepted it."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import Draining, ManifestInvalid, ModelNotFound, ModelNotReady
from service.registry.handle import ModelHandle
from service.registry.registry import Registry
from tests import graphs
from tests.counting import Counting, CountingInput


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """The model `counter`, loaded."""
    graphs.counting_model(tmp_path / "models")
    registry = Registry(tmp_path / "models", tasks={"counting": Counting})
    registry.load()
    yield registry
    assert registry.close(10)


def copied(registry: Registry, version: str, *, step: float = 0) -> None:
    """Another version, whose decoder goes a little further with each step."""
    folder = registry.path / "counter"
    if not (folder / version).exists():
        shutil.copytree(folder / "1", folder / version)
    graphs.decoder(folder / version / "decoder.onnx", step)
    golden = [{"input": {"x": 2, "steps": 1}, "output": {"counts": [20 + step]}}]
    (folder / version / "golden.json").write_text(json.dumps(golden))


def count(registry: Registry, asked: str | None = None) -> Any:
    return registry.resolve("counting", asked).predict_now(CountingInput(x=1)).model_dump()["counts"][0]


class Held:
    """One request of a handle's that has begun and waits for a gate."""

    def __init__(self, handle: ModelHandle) -> None:
        self._run, self.gate, self.entered = handle.graphs.main.run, threading.Event(), threading.Event()
        handle.graphs.main.run = self._held  # type: ignore[method-assign]
        self.task = asyncio.create_task(handle.predict(CountingInput(x=1), timeout_s=30))

    def _held(self, *args: Any, **conditions: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(10)
        return self._run(*args, **conditions)


def test_a_version_that_is_added_answers_when_it_is_the_highest(registry: Registry) -> None:
    copied(registry, "2", step=0.5)
    assert registry.add("counter", "2").state == "ready"
    assert (count(registry), count(registry, "counter@1"), count(registry, "counter@2")) == (10.5, 10, 10.5)
    assert list(registry.get("counter").versions) == ["1", "2"]


def test_a_model_can_be_added(registry: Registry) -> None:
    graphs.counting_model(registry.path, "another")
    assert registry.add("another", "1").state == "ready"
    assert [model.name for model in registry] == ["another", "counter"]
    assert registry.resolve("counting", "another").name == "another@1"


def test_a_version_that_is_added_and_cannot_be_served_has_its_reason(registry: Registry) -> None:
    copied(registry, "2")
    (registry.path / "counter" / "2" / "decoder.onnx").unlink()
    added = registry.add("counter", "2")
    assert (added.state, added.reason and "decoder.onnx: is missing" in added.reason) == ("failed", True)
    assert count(registry) == 10
    copied(registry, "2", step=0.5)
    assert registry.add("counter", "2").state == "ready"  # once it is mended
    assert count(registry) == 10.5


def test_what_cannot_be_added_is_refused(registry: Registry) -> None:
    with pytest.raises(ModelNotFound, match="no version 'counter@7'.*There are: counter@1"):
        registry.add("counter", "7")
    with pytest.raises(ValueError, match="counter@1 is served already; replace it"):
        registry.add("counter", "1")
    with pytest.raises(ManifestInvalid, match=r"^nowhere: is missing\.$"):
        registry.add("nowhere", "1")
    (registry.path / "counter" / "manifest.toml").write_text("task =")
    with pytest.raises(ManifestInvalid, match=r"^counter/manifest.toml: is not valid TOML"):
        registry.add("counter", "1")
    assert count(registry) == 10


async def test_what_is_replaced_finishes_what_it_accepted(registry: Registry) -> None:
    before = registry.resolve("counting", None)
    held = Held(before)
    await asyncio.to_thread(held.entered.wait, 10)
    copied(registry, "1", step=0.5)
    replacing = asyncio.create_task(asyncio.to_thread(registry.replace, "counter", "1", timeout_s=30))
    while registry.resolve("counting", None) is before:  # noqa: ASYNC110  the registry has no event for it
        await asyncio.sleep(0.001)
    assert count(registry) == 10.5
    assert not replacing.done()
    held.gate.set()
    assert json.loads((await held.task).value)["counts"] == [10]
    assert await replacing
    with pytest.raises(Draining):
        await before.predict(CountingInput(x=1), timeout_s=30)


async def test_what_is_not_finished_in_time_is_told(registry: Registry) -> None:
    held = Held(registry.resolve("counting", None))
    await asyncio.to_thread(held.entered.wait, 10)
    assert not await asyncio.to_thread(registry.replace, "counter", "1", timeout_s=0.01)
    held.gate.set()
    assert json.loads((await held.task).value)["counts"] == [10]


def test_what_would_be_worse_replaces_nothing(registry: Registry) -> None:
    before = registry.resolve("counting", None)
    (registry.path / "counter" / "1" / "decoder.onnx").write_bytes(b"")
    with pytest.raises(ManifestInvalid, match=r"counter/1/decoder.onnx: is not an ONNX file"):
        registry.replace("counter", "1", timeout_s=10)
    assert registry.resolve("counting", None) is before
    assert count(registry) == 10


async def test_a_version_that_is_drained_answers_nothing_new(registry: Registry) -> None:
    copied(registry, "2", step=0.5)
    registry.add("counter", "2")
    held = Held(registry.resolve("counting", None))
    await asyncio.to_thread(held.entered.wait, 10)
    draining = asyncio.create_task(asyncio.to_thread(registry.drain, "counter", "2", timeout_s=30))
    while registry.get("counter").versions["2"].state == "ready":  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    with pytest.raises(ModelNotReady, match="'counter@2' is unloaded"):
        registry.resolve("counting", "counter@2")
    held.gate.set()
    assert json.loads((await held.task).value)["counts"] == [10.5]
    assert await draining
    assert count(registry) == 10  # by the next highest
    assert not registry.get("counter").is_loading
    assert registry.add("counter", "2").state == "ready"  # and back into service
    assert count(registry) == 10.5


def test_a_version_that_is_removed_is_listed_no_more(registry: Registry) -> None:
    copied(registry, "2")
    registry.add("counter", "2")
    listed = list(registry)
    assert registry.remove("counter", "2", timeout_s=10)
    assert list(registry.get("counter").versions) == ["1"]
    assert registry.remove("counter", "1", timeout_s=10)
    assert list(registry) == []
    assert [model.name for model in listed] == ["counter"]
    with pytest.raises(ModelNotFound):
        registry.resolve("counting", None)
    with pytest.raises(ModelNotFound):
        registry.remove("counter", "1", timeout_s=10)
