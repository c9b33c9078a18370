"""Command line: parse, call, print. One module for each command.

Exit codes: 0 when it did what was asked, 1 when the thing checked is wrong, 2 for wrong usage. `--json` prints one JSON
document on stdout and nothing else there; progress and hints go to stderr.
"""

from __future__ import annotations

import click

from service import __version__
from service.cli.advise import advise_command
from service.cli.batch import batch_command
from service.cli.bench import bench_command
from service.cli.check import check_command
from service.cli.completion import completion_command
from service.cli.evaluate import evaluate_command
from service.cli.importing import import_command
from service.cli.key import key_command
from service.cli.models import models_command
from service.cli.openapi import openapi_command
from service.cli.predict import predict_command
from service.cli.serve import serve_command
from service.cli.sketch import sketch_command

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gridloop")
def main() -> None:
    """Gridloop: typed REST inference for CNNs and RNNs exported to ONNX."""


for command in (
    serve_command,
    models_command,
    predict_command,
    batch_command,
    sketch_command,
    advise_command,
    bench_command,
    evaluate_command,
    check_command,
    import_command,
    key_command,
    openapi_command,
    completion_command,
):
    main.add_command(command)
