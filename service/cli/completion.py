"""`gridloop completion SHELL`: what makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(name="completion")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes `gridloop`: eval "$(gridloop completion bash)"."""
    root = context.find_root().command
    click.echo(SHELLS[shell](root, {}, "gridloop", "_GRIDLOOP_COMPLETE").source())
