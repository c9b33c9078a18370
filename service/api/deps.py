"""What routes need of the application, as annotated dependencies."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.api.address import Address, Addresses
from service.api.context import Workers, context_of
from service.api.control import Control
from service.api.gate import Gate
from service.errors import AdminApiOff, NotAllowed, NotAuthorised
from service.keys import Key
from service.registry.registry import Registry
from service.settings import Settings


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


def get_control(request: Request) -> Control:
    """What loads and unloads models."""
    control: Control = request.app.state.control
    return control


def get_settings(request: Request) -> Settings:
    """The server's settings."""
    settings: Settings = request.app.state.settings
    return settings


def get_address(request: Request) -> Address:
    """The address that the client asked."""
    addresses: Addresses = request.app.state.addresses
    context = context_of(request.scope)
    return addresses.of(request.scope, context.headers, context.prefix)


def get_key(request: Request) -> Key | None:
    """The API key that was sent; None where none is asked for."""
    return context_of(request.scope).key


def require_admin(request: Request) -> None:
    """Lets in only who may change the server: a key made for that, or everybody where no keys are asked for.

    Raises:
        NotAuthorised: no key was sent.
        NotAllowed: it is for other things.
    """
    key = get_key(request)
    if key is None and not get_gate(request).keys.is_open:
        raise NotAuthorised
    if key is not None and not key.admin:
        raise NotAllowed(key.name, "change the server")


PROXIED = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")
"""Headers that say that a request has come through a proxy."""


def require_admin_api(request: Request) -> None:
    """Lets in only who may load and unload models, where that is possible over HTTP at all.

    Where no keys are asked for, whoever can connect may do it. That is no page of another origin that somebody looks at
    on this machine, and, unless the operator says so, nobody whom a proxy lets in.

    Raises:
        AdminApiOff: it is not.
        NotAuthorised: no key was sent.
        NotAllowed: it is for other things.
    """
    settings, headers = get_settings(request), context_of(request.scope).headers
    if not settings.has_admin_api:
        here = "" if settings.admin_api is False else ", as not only this machine can connect"
        raise AdminApiOff(here, f"Start the server with GRIDLOOP_ADMIN_API=true, and with API keys. {_WITHOUT}")
    if get_gate(request).keys.is_open:
        if settings.admin_api is None and any(name in headers for name in PROXIED):
            raise AdminApiOff(
                " for requests through a proxy", f"Start the server with GRIDLOOP_ADMIN_API=true. {_WITHOUT}"
            )
        if b"origin" in headers:
            raise AdminApiOff(" for web pages", "Start the server with API keys, and send one made with --admin.")
    require_admin(request)


_WITHOUT = "Or change the model repository: the server looks at it every few seconds, and at once upon SIGHUP."
ADMIN_API = Depends(require_admin_api)
"""Among the `dependencies` of a route that loads or unloads models."""
ADMIN = Depends(require_admin)
"""Among the `dependencies` of a route or router that changes the server."""
AddressDep = Annotated[Address, Depends(get_address)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
ControlDep = Annotated[Control, Depends(get_control)]
RegistryDep = Annotated[Registry, Depends(get_registry)]
KeyDep = Annotated[Key | None, Depends(get_key)]
GateDep = Annotated[Gate, Depends(get_gate)]
WorkersDep = Annotated[Workers, Depends(get_workers)]
