"""Fixtures: a model repository of tiny graphs, and the real application around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings

from service.api.context import Workers
from service.app import create_app, make_registry
from service.registry.registry import Registry
from service.runtime import tuning
from service.settings import Settings
from tests import graphs

# How long an example takes depends on who else is busy; what hangs runs into the test's own time limit.
settings.register_profile("gridloop", deadline=None)
settings.load_profile("gridloop")

MakeClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session", autouse=True)
def brief_tuning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test depends on how a graph is run: measure briefly, and remember it apart from the user's own choices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(tuning, "BUDGET_S", 0.02)
        yield


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a classifier of colours and a detector of steps."""
    folder = tmp_path / "models"
    folder.mkdir()
    graphs.colour_model(folder, required=True, description="Tells colours apart.")
    graphs.detector_model(folder)
    return folder


@asynccontextmanager
async def running(models: Path, *, tasks: Any = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The application over its ASGI transport, models loaded."""
    chosen = Settings(**{"models": models, "workers": 1, "log_level": "error", **settings})
    registry = make_registry(chosen, tasks)
    registry.load()
    workers = Workers()
    workers.loaded[0] = 1
    app = create_app(chosen, registry=registry, workers=workers, tasks=tasks)
    async with app.app.router.lifespan_context(app.app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            client.app = app  # type: ignore[attr-defined]
            yield client


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with the tiny models."""
    async with running(models) as client:
        yield client


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The models that ship with the project."""
    return Path(__file__).parent.parent / "models"


@pytest.fixture(scope="session")
def real_registry(real_models: Path) -> Iterator[Registry]:
    """All of them loaded, once for all tests: that takes seconds."""
    registry = make_registry(Settings(models=real_models, workers=1))
    registry.load()
    yield registry
    assert registry.close(timeout_s=10)


@pytest.fixture
async def real_client(real_models: Path, real_registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with the models that ship with it."""
    app = create_app(
        Settings(models=real_models, workers=1, log_level="error"),
        registry=real_registry,
        workers=Workers(loaded=[1]),
    )
    # Without the application's lifespan, at whose end the models are closed: other tests need them still.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        client.app = app  # type: ignore[attr-defined]
        yield client
