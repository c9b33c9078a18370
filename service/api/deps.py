"""What routes need of the application, as annotated dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.api.edge import Gate
from service.registry.registry import Registry


def get_registry(request: Request) -> Registry:
    """The application's registry."""
    registry: Registry = request.app.state.registry
    return registry


def get_gate(request: Request) -> Gate:
    """The application's gate, which knows whether it is draining."""
    gate: Gate = request.app.state.gate
    return gate


RegistryDep = Annotated[Registry, Depends(get_registry)]
GateDep = Annotated[Gate, Depends(get_gate)]
