"""Gridloop on Ray Serve: each replica is one worker, placed, scaled and replaced by Ray.

    pip install 'gridloop[ray]'
    serve deploy deploy/ray/serve.yaml          # import_path: gridloop.ray:app

A replica loads the models and answers with Gridloop's own application: its edge, batcher, limits and errors. It takes
its connections itself, behind the HAProxy that Ray runs on every node (`RAY_SERVE_ENABLE_HA_PROXY=1`). A deployment for
each model, called through Ray's handles, was measured at nine times the CPU of a request; so there is one for all.

Only names that Ray documents are used. What Ray does and does not do for a server is told in docs/ray.md.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import ray
from prometheus_client import REGISTRY
from ray import serve

from gridloop.ray_metrics import Bridge
from service.api.context import Workers
from service.app import create_app, make_registry
from service.cpu import CpuBudget
from service.registry.installed import located
from service.registry.registry import Registry
from service.settings import Settings
from service.telemetry import Recorder, configure_logging

METRICS_S = 5.0
"""Ray is told of the replica's metrics so often (seconds)."""
ENDING_S = 5.0
"""Time for Ray's own end of a replica, beside that for the requests in flight (seconds)."""


class Unready(RuntimeError):
    """Models that must be there are not: Ray replaces a replica whose health check raises."""

    def __init__(self, missing: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in missing.items()))


@serve.ingress()
class Replica:
    """One worker with all models.

    Args:
        settings: of the server, by name, over those of the `GRIDLOOP_*` variables of the node.

    Raises:
        Unready: a model that must be there cannot be served.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = _located(settings)
        configure_logging("json", self._settings.log_level)
        self._registry = _registry(self._settings, _assigned())
        self._ended = threading.Event()
        self._bridge = Bridge(REGISTRY)
        threading.Thread(target=self._tell_metrics, name="gridloop-metrics", daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        """The application, made when Ray has built the replica; its lifespan is run by Ray."""
        return create_app(self._settings, registry=self._registry, workers=Workers(loaded=[1]))

    def check_health(self) -> None:
        """What `/readyz` says, for Ray.

        Raises:
            Unready: a model that must be there is not.
        """
        _check(self._registry)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take another `user_config`.

        A replica serves what it has loaded. To bring new models in, change `models` or another argument: Ray then
        starts new replicas beside the old ones.
        """

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self._ended.set()

    def _tell_metrics(self) -> None:
        while not self._ended.wait(METRICS_S):
            Recorder.flush_all()
            self._bridge.tell()


def _settings(arguments: Mapping[str, Any]) -> Settings:
    """A replica's settings; a wrong one is told before anything is placed."""
    return Settings(**{**arguments, "workers": 1})


def _located(arguments: Mapping[str, Any]) -> Settings:
    """The same, with the folder in which the models are."""
    settings = _settings(arguments)
    return settings.model_copy(update={"models": located(settings.models)})


def _registry(settings: Settings, budget: CpuBudget | None = None) -> Registry:
    """The registry of a replica, loaded.

    Raises:
        Unready: a model that must be there cannot be served.
    """
    registry = make_registry(settings, budget=budget)
    registry.load()
    _check(registry)
    return registry


def _check(registry: Registry) -> None:
    if missing := registry.unready():
        raise Unready(missing)


def _assigned() -> CpuBudget:
    """The cores that Ray has assigned to this replica; the affinity mask and the cgroup tell those of the node."""
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return CpuBudget(max(1, int(cores)), f"{cores:g} cores assigned by Ray")


def deployment(arguments: Mapping[str, Any]) -> serve.Deployment:
    """How Ray is to run replicas; how many there are, how many cores each has and how they scale may be overridden.

    Args:
        arguments: settings by name, in lower case, such as `models`.
    """
    settings = _settings(arguments)
    return serve.deployment(
        Replica,
        name="Gridloop",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=settings.max_queue,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=settings.drain_grace_s + settings.drain_timeout_s + ENDING_S,
        health_check_period_s=2,
        health_check_timeout_s=10,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application that a Serve config or `serve run gridloop.ray:app models=…` names.

    The models are loaded once before anything is placed, where Ray builds the application: it takes the replicas from
    before away when new ones fail, and goes on with them when the building does.

    Args:
        arguments: as for `deployment`; the rest stands under `deployments` in the Serve config.

    Raises:
        Unready: a model that must be there cannot be served.
    """
    _registry(_located(arguments))
    return deployment(arguments).bind(dict(arguments))
