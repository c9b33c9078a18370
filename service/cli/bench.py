"""`gridloop bench`: one model of a running server under load."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import orjson

from service.cli.console import err
from service.cli.options import AS_JSON, MODELS, first_api_key


@click.command(name="bench")
@click.option("--model", required=True, help="`name` or `name@version`.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The only address asked.")
@click.option("--connections", type=click.IntRange(1, 1024), default=64, show_default=True, help="Kept alive.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="After the warm-up.")
@MODELS
@AS_JSON
def bench_command(model: str, url: str, connections: int, seconds: float, models: Path, as_json: bool) -> None:
    """Load one model of a running server with its own samples: throughput, latency, batches, where time goes.

    A server with API keys is asked with the first one in GRIDLOOP_API_KEYS.
    """
    from service.client.bench import measure
    from service.client.http import ClientFailed

    try:
        with err.status(f"{connections} connections for {seconds:g} seconds"):
            report = measure(url, model, connections=connections, seconds=seconds, models=models, key=first_api_key())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except ClientFailed as error:
        raise click.ClickException(str(error)) from None
    click.echo(orjson.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    sys.exit(0 if report.is_good else 1)
