"""`gridloop serve`: the server, with an option for every setting."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from service.cli.options import make_settings
from service.errors import ManifestInvalid, ServiceError, SettingUnusable, TaskUnusable


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per setting, so that neither can be forgotten."""
    from service.limits import Limits
    from service.settings import Settings

    own_first = sorted(Settings.model_fields, key=lambda name: name in Limits.model_fields)
    for name in reversed(own_first):
        field = Settings.model_fields[name]
        choices = getattr(field.annotation, "__args__", ())
        kind = click.Choice(choices) if choices and all(isinstance(c, str) for c in choices) else None
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        default = "" if default is None else default
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=kind,
            default=None,
            help=f"{field.description} [env: GRIDLOOP_{name.upper()}; default: {default}]",
        )(command)
    return command


@click.command(name="serve")
@_with_settings
def serve_command(**options: Any) -> None:
    """Serve the models over HTTP until SIGTERM or Ctrl-C.

    Every option is a setting of the same name: an option wins over the environment.
    """
    # Before anything slow is imported: as process 1 of a container, a signal without a handler would be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    from service.server import serve

    settings = make_settings({name: value for name, value in options.items() if value is not None})
    try:
        sys.exit(serve(settings))
    except (ManifestInvalid, SettingUnusable, TaskUnusable) as error:
        # The repository itself is not there, or a task cannot be used: one broken model stops nothing.
        raise click.UsageError(str(error)) from None
    except ServiceError as error:
        raise click.ClickException(str(error)) from None
