"""What routes need of the application, as annotated dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.api.address import Address, Addresses
from service.api.context import Workers, context_of
from service.api.gate import Gate
from service.registry.registry import Registry


def get_registry(request: Request) -> Registry:
    """The application's registry."""
    registry: Registry = request.app.state.registry
    return registry


def get_gate(request: Request) -> Gate:
    """The application's gate, which knows whether it is draining."""
    gate: Gate = request.app.state.gate
    return gate


def get_workers(request: Request) -> Workers:
    """What the workers of this server know of each other."""
    workers: Workers = request.app.state.workers
    return workers


def get_address(request: Request) -> Address:
    """The address that the client asked."""
    addresses: Addresses = request.app.state.addresses
    context = context_of(request.scope)
    return addresses.of(request.scope, context.headers, context.prefix)


AddressDep = Annotated[Address, Depends(get_address)]
RegistryDep = Annotated[Registry, Depends(get_registry)]
GateDep = Annotated[Gate, Depends(get_gate)]
WorkersDep = Annotated[Workers, Depends(get_workers)]
