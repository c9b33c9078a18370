"""Command line: parse, call, print.

Exit codes: 0 when it did what was asked, 1 when the thing checked is wrong, 2 for wrong usage. `--json` prints one JSON
document on stdout and nothing else there; progress and hints go to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service import __version__
from service.errors import InvalidInput, ManifestInvalid, ServiceError, SettingUnusable, TooLarge, as_sentence
from service.tables import choose_series, read_table

if TYPE_CHECKING:  # these take a second to import: `--help` should not wait for them
    from service.evaluation.report import Report
    from service.evaluation.runner import Progress
    from service.registry.model import Model
    from service.registry.registry import Registry
    from service.settings import Settings

# What is printed is the models' and the callers' text, in which brackets and colons are just that.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def _located(context: click.Context, parameter: click.Parameter, models: Path) -> Path:
    from service.registry.installed import located

    return located(models)


MODELS = click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("models"),
    callback=_located,
    envvar="GRIDLOOP_MODELS",
    show_default=True,
    help="The model repository: one folder per model. Where there is none, that of an installed package.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else there.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gridloop")
def main() -> None:
    """Gridloop: typed REST inference for CNNs and RNNs exported to ONNX."""


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per setting, so that neither can be forgotten."""
    from service.settings import Settings

    for name, field in reversed(Settings.model_fields.items()):
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


@main.command(name="serve")
@_with_settings
def serve_command(**options: Any) -> None:
    """Serve the models over HTTP until SIGTERM or Ctrl-C.

    Every option is a setting of the same name: an option wins over the environment.
    """
    # Before anything slow is imported: as process 1 of a container, a signal without a handler would be lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    from service.server import serve

    settings = _settings({name: value for name, value in options.items() if value is not None})
    try:
        sys.exit(serve(settings))
    except (ManifestInvalid, SettingUnusable) as error:  # of the repository itself: one broken model stops nothing
        raise click.UsageError(str(error)) from None
    except ServiceError as error:
        raise click.ClickException(str(error)) from None


def _settings(given: dict[str, Any]) -> Settings:
    """The settings, from what is given and the environment; one that makes no sense is wrong usage."""
    from service.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(f"GRIDLOOP_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise click.UsageError(problems) from None


@main.command()
@MODELS
@AS_JSON
def models(models: Path, as_json: bool) -> None:
    """List the models of a repository, loading each. Exit code 1 when a version of one cannot be served."""
    registry = _load(models)
    failures = _failures(registry)
    if as_json:
        from service.api.address import Address
        from service.api.models import describe

        address = Address.configured(_settings({}))
        click.echo(orjson.dumps([describe(model, registry, address).model_dump() for model in registry]))
    else:
        table = Table(box=None)
        for column in ("model", "version", "task", "state", "size", "claims"):
            table.add_column(column, overflow="fold")
        for model in registry:
            _add_rows(table, model)
        out.print(table)
        for name, reason in failures.items():
            out.print(Text.assemble((name, "red"), " ", reason), soft_wrap=True)
    sys.exit(1 if failures else 0)


def _failures(registry: Registry) -> dict[str, str]:
    """What cannot be served, by `name` or `name@version`, and why."""
    found: dict[str, str] = {}
    for model in registry:
        if model.problem:
            found[model.name] = model.problem
            continue
        broken = [version for version in model.versions.values() if version.state != "ready"]
        found |= {f"{model.name}@{version.name}": version.reason or version.state for version in broken}
    return found


def _add_rows(table: Table, model: Model) -> None:
    task = model.manifest.task if model.manifest else "?"
    for version in model.versions.values():
        state = Text(version.state, style="green" if version.state == "ready" else "red")
        size = f"{version.handle.size_bytes / 1e6:.1f} MB" if version.handle else "-"
        metrics = version.handle.claims.metrics if version.handle else {}
        claim = next((f"{name} {value:g}" for name, value in metrics.items()), "")
        table.add_row(model.name, version.name, task, state, size, claim)
    if not model.versions:
        table.add_row(model.name, "-", task, Text("failed", style="red"), "-", "")


@main.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--text", help="Text to continue.")
@click.option(
    "--series",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV file: its column `value`, or the only one of numbers, is judged.",
)
@click.option("--column", help="For --series: the column to judge, by its name or its place from 1.")
@click.option("--model", help="`name` or `name@version`; left out: the default model.")
@click.option("--top-k", type=click.IntRange(1, 1000), help="Answers for each input.")
@click.option("--sensitivity", type=click.FloatRange(0, 1), help="For series: 0 nothing is an anomaly, 1 everything.")
@MODELS
@AS_JSON
def predict(
    files: tuple[Path, ...],
    text: str | None,
    series: Path | None,
    column: str | None,
    model: str | None,
    top_k: int | None,
    sensitivity: float | None,
    models: Path,
    as_json: bool,
) -> None:
    """Ask a model in this process, without a server: image FILES, a --text, or a --series.

    Exit code 1 when an answer is missing; of several FILES, those that can be used are answered all the same.
    """
    if (bool(files) + (text is not None) + (series is not None)) != 1:
        raise click.UsageError("give image files, or --text, or --series (one of the three).")
    if column is not None and series is None:
        raise click.UsageError("--column names a column of the file that --series gives.")
    fields: dict[str, Any]
    if text is not None:
        text = text.encode(errors="surrogateescape").decode(errors="replace")  # bytes that are no UTF-8
        task, fields = "next-word-prediction", {"text": text, "top_k": top_k}
    elif series is not None:
        task, fields = "anomaly-detection", {"values": read_series(series, column), "sensitivity": sensitivity}
    else:
        task, fields = "image-classification", {"top_k": top_k}
    try:
        answers = _predict(_load(models, task), task, model, fields, files)
    except (ServiceError, ValidationError) as error:
        raise click.ClickException(as_sentence(error)) from None
    if as_json:
        click.echo(orjson.dumps(answers if len(answers) > 1 else answers[0]))
    else:
        for answer in answers:
            _print_answer(answer, fields)
    sys.exit(1 if any("error" in result for answer in answers for result in answer.get("results", ())) else 0)


def _predict(
    registry: Registry, task: str, model: str | None, fields: dict[str, Any], files: Sequence[Path]
) -> list[dict[str, Any]]:
    """One answer per file, or one for a request without files; a progress bar for many.

    Raises:
        ServiceError: nothing can be answered; of several files, one that cannot be used has an `error` in its result.
    """
    from rich.progress import track

    from service.tasks.base import FailedFile, FileProblem, Upload

    handle = registry.resolve(task, model)
    given = {name: value for name, value in fields.items() if value is not None}
    if not files:
        return [orjson.loads(handle.predict_now(handle.task.Input.model_validate(given)).to_json())]
    answers = []
    for file in track(files, "predicting", console=err, disable=len(files) < 10, transient=True):
        upload = Upload(file.read_bytes(), filename=file.name)
        request = handle.task.Input.model_validate({**given, "files": (upload,)})
        try:
            answers.append(orjson.loads(handle.predict_now(request).to_json()))
        except (InvalidInput, TooLarge) as error:
            if len(files) == 1:
                raise
            failed = FailedFile(filename=file.name, error=FileProblem(type=error.type, detail=str(error)))
            answers.append({"model": handle.ref.model_dump(), "results": [failed.model_dump()]})
    return answers


def _print_answer(answer: dict[str, Any], fields: dict[str, Any]) -> None:
    err.print(f"{answer['model']['name']}@{answer['model']['version']}", style="dim")
    if "results" in answer:
        for result in answer["results"]:
            if "error" in result:
                err.print(f"Error: {result['error']['detail']}", style="red", markup=False, highlight=False)
                continue
            table = Table("label", "score", box=None, title=result["filename"], title_justify="left")
            for prediction in result["predictions"]:
                table.add_row(prediction["label"], f"{prediction['score']:.3f}")
            out.print(table)
    elif "anomalies" in answer:
        table = Table("point", "value", "expected", "score", box=None)
        for index in answer["anomalies"]:
            row = (fields["values"][index], answer["expected"][index], answer["scores"][index])
            table.add_row(str(index), *("" if number is None else f"{number:.6g}" for number in row))
        out.print(table)
        out.print(f"{len(answer['anomalies'])} of {len(fields['values'])} points are anomalous")
    else:
        table = Table("continuation", "score", box=None)
        for prediction in answer["predictions"]:
            table.add_row(prediction["text"], f"{prediction['score']:.3f}")
        out.print(table)


def read_series(path: Path, column: str | None = None) -> list[float | None]:
    """The series in a file of columns; which column was taken is said on stderr."""
    try:
        table = read_table(path)
        chosen = choose_series(table, column)
        values = table.numbers(chosen)
    except ServiceError as error:
        raise click.ClickException(str(error)) from None
    if table.width > 1:
        err.print(f"column {table.name(chosen)} of {path.name}", style="dim", markup=False, highlight=False)
    return values


@main.command()
@click.option("--model", required=True, help="`name` or `name@version`.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The only address asked.")
@click.option("--connections", type=click.IntRange(1, 1024), default=64, show_default=True, help="Kept alive.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="After the warm-up.")
@MODELS
@AS_JSON
def bench(model: str, url: str, connections: int, seconds: float, models: Path, as_json: bool) -> None:
    """Load one model of a running server with its own samples: throughput, latency, batches, where time goes.

    A server with API keys is asked with the first one in GRIDLOOP_API_KEYS.
    """
    from service.client.bench import measure
    from service.client.http import ClientFailed

    key = os.environ.get("GRIDLOOP_API_KEYS", "").partition(",")[0].strip()
    try:
        with err.status(f"{connections} connections for {seconds:g} seconds"):
            report = measure(url, model, connections=connections, seconds=seconds, models=models, key=key)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except ClientFailed as error:
        raise click.ClickException(str(error)) from None
    click.echo(orjson.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    sys.exit(0 if report.is_good else 1)


@main.command()
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the labelled data that the evaluation reads.",
)
@click.option("--url", help="A running server, `http://host:port`: asked as well, and the figures must agree.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many items of each kind, for a quick look.")
@click.option("--write", is_flag=True, help="Put the table and plots into the model's card.")
@MODELS
@AS_JSON
def evaluate(
    name: str, data: Path, url: str | None, limit: int | None, write: bool, models: Path, as_json: bool
) -> None:
    """Run the official evaluation of a model NAME (`name` or `name@version`): figures with 95 % intervals.

    In this process, and with --url through a running server as well. Exit code 1 when the model or its evaluate.py
    cannot be used, the two ways do not agree, or the manifest claims what was not measured; 2 when the data are not
    there. A server with API keys is asked with the first one in GRIDLOOP_API_KEYS.
    """
    from service.client.http import DEFAULT_URL, split_url
    from service.evaluation import DataMissing, EvaluationFailed
    from service.evaluation.runner import evaluate as run
    from service.registry.repository import check_repository

    folder = models / name.partition("@")[0]
    try:
        split_url(url or DEFAULT_URL)
        if url is None:
            check_repository(models)
    except (ValueError, ManifestInvalid) as error:
        raise click.UsageError(str(error)) from None
    if write and limit is not None:
        raise click.UsageError("--limit is for a quick look: what is written to the card is measured on all data.")
    if write and not folder.is_dir():
        raise click.UsageError(f"--write needs the model's folder, and {models} has no {folder.name}.")
    if write:
        try:
            import service.evaluation.plots  # noqa: F401  # before anything is measured
        except ImportError:
            raise click.UsageError("--write draws plots: pip install 'gridloop[evaluate]'.") from None
    _no_log_lines()
    key = os.environ.get("GRIDLOOP_API_KEYS", "").partition(",")[0].strip()
    try:
        with _progress_bars() as progress:
            report = run(name, data, models=models, progress=progress, url=url, key=key, limit=limit)
        if write:
            from service.evaluation import card

            for path in card.write(report, folder):
                err.print(f"written: {path}", style="dim")
    except DataMissing as error:
        raise click.UsageError(str(error)) from None
    except EvaluationFailed as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(orjson.dumps(report.as_json()))
    else:
        _print_report(report)
    for sentence in report.wrong:
        err.print(Text.assemble(("wrong", "red"), " ", sentence), soft_wrap=True)
    sys.exit(1 if report.wrong else 0)


@contextmanager
def _progress_bars() -> Iterator[Progress]:
    """One progress bar after another on stderr, gone when they are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    shape = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*shape, console=err, transient=True) as bars:

        def begin(what: str, total: int) -> Callable[[int], None]:
            bar = bars.add_task(what, total=total)
            return lambda count: bars.advance(bar, count)

        yield begin


def _print_report(report: Report) -> None:
    out.print(report.title, style="bold")
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = [("", report.columns, report.rows())]
    tables += [(breakdown.title, breakdown.columns, breakdown.rows) for breakdown in report.outcome.breakdowns]
    for title, columns, rows in tables:
        table = Table(*columns, box=None, title=title or None, title_justify="left")
        for row in rows:
            table.add_row(*row)
        out.print(table)
    for line in [*report.facts_lines(), *report.outcome.notes]:
        out.print(f"· {line}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@AS_JSON
def check(folder: Path, as_json: bool) -> None:
    """Check a model FOLDER: manifest, graph, golden samples, card.

    Exit code 1 when it, or a version of it, could not be served. What would be better done is a hint.
    """
    from service.registry.check import check_folder

    if not folder.is_dir():
        raise click.UsageError(f"{folder} is not a folder.")
    _no_log_lines()
    findings = check_folder(folder)
    good = all(finding.ok for finding in findings)
    if as_json:
        click.echo(orjson.dumps({"folder": folder.name, "ok": good, "findings": findings}))
    else:
        for finding in findings:
            verdict, style = (
                ("wrong", "red") if not finding.ok else ("hint", "yellow") if finding.hint else ("ok", "green")
            )
            out.print(Text.assemble((f"{verdict:<5}", style), " ", finding.what))
            if finding.detail:
                out.print(f"      {finding.detail}", style="dim" if verdict == "ok" else "", soft_wrap=True)
    sys.exit(0 if good else 1)


def _no_log_lines() -> None:
    """Log nothing: what is wrong is printed or raised, and stdout is for what was asked."""
    import logging

    from service.telemetry import configure_logging

    configure_logging("console", "error")
    logging.disable(logging.CRITICAL)


def _load(models: Path, task: str | None = None) -> Registry:
    """All models, or only those of one task, loaded."""
    from service.registry.registry import Registry

    _no_log_lines()
    try:
        registry = Registry(models)
    except ServiceError as error:
        raise click.UsageError(str(error)) from None
    with err.status("loading models"):
        registry.load(task)
    return registry


@main.command()
@click.argument("name")
@click.option(
    "--models", metavar="GLOBS", help="Models that it may ask, such as `cifar10-*,series-gru`; left out: all."
)
@click.option(
    "--admin", is_flag=True, help="For the routes that change the server; asks models only if --models is given."
)
@AS_JSON
def key(name: str, models: str | None, admin: bool, as_json: bool) -> None:
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


@main.command()
def openapi() -> None:
    """Print the OpenAPI document of the service."""
    from service.app import create_app
    from service.settings import Settings

    with tempfile.TemporaryDirectory() as empty:  # the document depends on the tasks, not on the models
        document = create_app(Settings(models=Path(empty), workers=1)).app.openapi()
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
