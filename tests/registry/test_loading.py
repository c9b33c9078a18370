"""Loading has a time limit: what does not end is failed with its reason, ends really, and keeps nothing from the rest."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.registry.handle import LoadOptions
from service.registry.registry import Registry
from service.registry.time_limit import Limited, Stopped
from service.runtime.stop import Stop
from service.tasks import discover
from service.tasks.base import Steps
from service.tasks.image_classification import ImageClassification
from tests import graphs

LIMIT = LoadOptions(load_timeout_s=1.0)


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("load-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not loaders()


class Looping(ImageClassification):
    """A plug-in whose code never comes to an end, whatever is raised in it."""

    name = "looping"

    def steps(self, request: Any) -> Steps[Any]:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue
        yield


def test_a_graph_that_never_ends_is_failed_and_the_others_are_served(models: Path) -> None:
    graphs.colour_model(models, "endless", graph=graphs.endless)
    registry = Registry(models, LIMIT)
    registry.load()
    (version,) = registry.get("endless").versions.values()
    assert version.state == "failed"
    assert version.reason is not None
    assert re.match(r"endless/1: was not loaded within 1 s\. .*GRIDLOOP_LOAD_TIMEOUT_S", version.reason)
    assert registry.get("colours").is_ready
    assert registry.get("steps").is_ready


def test_a_task_whose_code_never_ends_is_failed_and_the_others_are_served(models: Path) -> None:
    folder = graphs.colour_model(models, "endless")
    manifest = folder / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("image-classification", "looping"))
    registry = Registry(models, LIMIT, discover() | {"looping": Looping})
    registry.load()
    assert "was not loaded within 1 s" in registry.get("endless").reason
    assert registry.get("colours").is_ready


def test_loading_can_be_given_up(models: Path) -> None:
    graphs.colour_model(models, "endless", graph=graphs.endless)
    registry = Registry(models)
    loading = threading.Thread(target=registry.load)
    loading.start()
    while not any(thread.name == "load-endless@1" for thread in loaders()):
        time.sleep(0.01)
    registry.stop_loading()
    loading.join(30)
    assert not loading.is_alive()
    assert registry.get("endless").is_loading
    assert not registry.get("steps").is_ready  # nothing more was begun


def test_what_the_work_gives_or_raises_is_handed_on() -> None:
    assert Limited("load-a", lambda _: 3).result(30) == 3

    def fail(_: Stop) -> None:
        raise KeyError("a")

    with pytest.raises(KeyError):
        Limited("load-b", fail).result(30)


def test_a_signal_in_the_thread_that_waits_ends_the_work_too() -> None:
    """As under the supervisor, which loads in its main thread."""

    def loop(_: Stop) -> None:
        while True:
            time.sleep(0.001)

    def leave(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(SystemExit):
            Limited("load-c", loop).result(30)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_was_stopped_before_it_began_does_not_go_on() -> None:
    ended = threading.Event()
    work = Limited("load-d", lambda _: ended.wait(0.05))
    work.stop()
    with pytest.raises(Stopped):
        work.result(30)
