"""`gridloop key`: an API key, and the table that stands for it in a file of keys."""

from __future__ import annotations

import click
import orjson
from pydantic import ValidationError

from service.cli.console import err
from service.cli.options import AS_JSON
from service.errors import as_sentence


@click.command(name="key")
@click.argument("name")
@click.option(
    "--models", metavar="GLOBS", help="Models that it may ask, such as `cifar10-*,series-gru`; left out: all."
)
@click.option(
    "--admin", is_flag=True, help="For the routes that change the server; asks models only if --models is given."
)
@AS_JSON
def key_command(name: str, models: str | None, admin: bool, as_json: bool) -> None:
    """Make an API key for NAME: the key on stderr, this once, and on stdout its table for GRIDLOOP_API_KEYS_FILE.

    The file holds the key's hash alone, and a server that runs reads it again by itself:
    `gridloop key shop >> keys.toml`. Two keys of one name are both good, until the old one's table is taken out.
    """
    from service.keys import as_toml, new_key

    globs = [] if admin and models is None else _parts(models)
    try:
        secret, made = new_key(name, models=globs, admin=admin)
    except ValidationError as error:
        raise click.UsageError(as_sentence(error)) from None
    if as_json:
        click.echo(orjson.dumps({"key": secret, **made.model_dump(), "table": as_toml(made)}))
        return
    err.print("The key, which is shown this once: send it as `Authorization: Bearer …`.", style="dim")
    click.echo(secret, err=True)
    click.echo(as_toml(made))


def _parts(text: str | None) -> list[str] | None:
    """What is between the commas of an option; None where it is left out."""
    return None if text is None else [part for item in text.split(",") if (part := item.strip())]
