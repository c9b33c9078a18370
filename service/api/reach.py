"""Reach: which models the API key of a request may ask. Of the others it hears nothing, not even in an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from service.api.context import RequestContext
from service.errors import ModelNotFound, NotAllowed, quoted
from service.keys import Key
from service.registry.first_use import NotLoadedYet
from service.registry.handle import ModelHandle
from service.registry.model import Model
from service.registry.registry import Registry
from service.registry.selection import Caller

T = TypeVar("T")


def resolve(
    registry: Registry,
    key: Key | None,
    task: str,
    asked: str | None,
    caller: Caller | None = None,
    state: str | None = None,
) -> ModelHandle:
    """The handle that answers a request, as `Registry.resolve` finds it.

    Raises:
        NotAllowed: the key does not reach that model, whether or not there is one.
        ModelNotFound: no such model or version, or it serves another task.
        ModelNotReady: known, but not loaded.
    """
    if key is None or key.models is None:
        return registry.resolve(task, asked, caller, state)
    if asked:
        _require(key, asked.partition("@")[0])
    elif not key.may_ask(registry.default(task).name):
        raise NotAllowed(key.name, f"ask the default model of {task}; another can be named with `model`")
    try:
        return registry.resolve(task, asked, caller, state)
    except ModelNotFound as error:
        raise error.among(key.may_ask) from None


def for_tensors(
    registry: Registry, key: Key | None, asked: str, version: str | None, caller: Caller | None = None
) -> tuple[ModelHandle, str]:
    """The handle and the graph that answer a request for tensors, as `Selection.for_tensors` finds them.

    Raises:
        NotAllowed: the key does not reach that model, whether or not there is one.
        ModelNotFound: no such model, version or graph.
        ModelNotReady: known, but not loaded.
    """
    get(registry, key, asked.partition(":")[0])
    return registry.selection.for_tensors(asked, version, caller)


async def when_loaded(find: Callable[[], T], context: RequestContext) -> T:
    """What a request asks for; where that is a version which is loaded when it is first asked for, as soon as it is.

    Raises:
        DeadlineExceeded: the time that the request allows has passed; the loading goes on.
        ModelNotReady: it cannot be loaded.
        Draining: the server stops.
    """
    while True:
        try:
            return find()
        except NotLoadedYet as waiting:
            await waiting.first_use.wait(context.remaining_s)


def get(registry: Registry, key: Key | None, name: str) -> Model:
    """The model of that name.

    Raises:
        NotAllowed: the key does not reach a model of that name, whether or not there is one.
        ModelNotFound: there is none.
    """
    if key is None or key.models is None:
        return registry.get(name)
    _require(key, name)
    try:
        return registry.get(name)
    except ModelNotFound as error:
        raise error.among(key.may_ask) from None


def within(registry: Registry, key: Key | None) -> list[Model]:
    """The models that a key reaches: all without one, as where none is asked for."""
    return [model for model in registry if key is None or key.may_ask(model.name)]


def _require(key: Key, model: str) -> None:
    if not key.may_ask(model):
        raise NotAllowed(key.name, f"ask model {quoted(model)}")
