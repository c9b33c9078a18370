"""`gridloop import`: an ONNX file from anywhere becomes a model folder, and says what it guessed on the way."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from pydantic import ValidationError
from rich.text import Text

from service.cli.console import err, no_log_lines, out
from service.cli.options import AS_JSON, TASKS, find_tasks, make_settings
from service.errors import ManifestInvalid, ServiceError, as_sentence

if TYPE_CHECKING:
    from service.importing.propose import Guess, Proposal, Wishes
    from service.importing.source import Source
    from service.registry.check import Finding
    from service.tasks import AnyTask
    from service.tasks.base import Upload


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--task", help="What it answers; left out: guessed.")
@click.option(
    "--labels",
    "label_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one label a line, in the order of the graph; left out: the file's own, or those beside it.",
)
@click.option("--name", help="Of the model; left out: the file's.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("models"),
    envvar="GRIDLOOP_MODELS",
    show_default=True,
    help="The model repository; it is made where there is none.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="What the manifest should say, whatever would be guessed, as TOML: preprocessing.mean=0.5. May be repeated.",
)
@click.option(
    "--sample",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A real picture for the golden sample; left out: one is drawn.",
)
@click.option("--expect", metavar="LABEL", help="What --sample shows: if the answer is this, no guess is left open.")
@click.option("--yes", is_flag=True, help="All guesses are right: the card has none to be confirmed.")
@TASKS
@AS_JSON
def import_command(
    file: Path,
    task: str | None,
    label_file: Path | None,
    name: str | None,
    models: Path,
    settings: Sequence[str],
    sample: Path | None,
    expect: str | None,
    yes: bool,
    task_folder: Path | None,
    as_json: bool,
) -> None:
    """Make a model folder of an ONNX FILE.

    Task, layout, size, scale, labels, a detector's head and recurrent state are read from the graph or guessed; each
    is printed with its reason and the option that says otherwise. The folder passes `gridloop check`, or none is made.
    """
    from service.importing.folder import name_for
    from service.importing.propose import Wishes
    from service.tasks.base import Upload

    tasks = find_tasks(task_folder)
    if task is not None and task not in tasks:
        raise click.UsageError(f"There is no task {task!r}; there are: {', '.join(tasks)}.")
    if expect is not None and sample is None:
        raise click.UsageError("--expect says what a picture shows: name it with --sample.")
    name = name or name_for(file)
    _check_place(models, name)
    labels = _labels(label_file)
    wishes = Wishes(task, labels, _settings(settings))
    given = Upload(sample.read_bytes(), filename=sample.name) if sample else None
    no_log_lines()
    try:
        models.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=".importing-", dir=models))  # hidden, so no server takes half a folder
    except OSError as error:
        raise click.ClickException(f"{models}: {error.strerror or error}.") from None
    try:
        made = _make(file, workplace / name, wishes, tasks, given, expect, confirmed=yes)
        (workplace / name).rename(models / name)
    except (ServiceError, ValidationError) as error:
        raise click.ClickException(as_sentence(error)) from None
    except OSError as error:
        raise click.ClickException(f"{models / name}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    of_sample = shlex.quote(f"file=@{models / name / '1' / made.sample}")
    curl = re.sub(r"file=@\S+", lambda _: of_sample, made.curl)
    if as_json:
        document = {
            "folder": str(models / name),
            "name": name,
            "task": made.proposal.task,
            "guesses": made.proposal.guesses,
            "unconfirmed": len(made.proposal.open),
            "manifest": made.proposal.manifest,
            "findings": made.findings,
            "answer": made.answer,
            "curl": curl,
        }
        click.echo(orjson.dumps(document))
        return
    _print(made, models / name, file, curl)


@dataclass(frozen=True, slots=True)
class _Made:
    """A folder that was made.

    Attributes:
        source: the graph.
        proposal: what the folder is.
        findings: of `gridloop check`.
        answer: to the golden sample.
        curl: a line to paste.
        sample: path of the sample in its version's folder.
    """

    source: Source
    proposal: Proposal
    findings: Sequence[Finding]
    answer: Mapping[str, Any] | None
    curl: str
    sample: str


def _check_place(models: Path, name: str) -> None:
    """See that there is room for a model of a name."""
    from service.registry.repository import name_problem

    if problem := name_problem(name):
        raise click.UsageError(f"{name}: {problem}")
    if (models / "manifest.toml").exists():
        raise click.UsageError(f"{models} is one model's folder; name the folder of all models with --models.")
    if (models / name).exists() or (models / name).is_symlink():
        raise click.UsageError(
            f"{models / name} is there already, and nothing is overwritten: choose another --name, or put the graph "
            "into a version folder of its own there."
        )


def _labels(file: Path | None) -> tuple[str, ...] | None:
    from service.files import read_text
    from service.importing.labels import lines, names_in

    if file is None:
        return None
    try:
        text = read_text(file, file.name, missing="is missing.")
    except ManifestInvalid as error:
        raise click.UsageError(str(error)) from None
    found = names_in(text) if text.lstrip()[:1] in ("[", "{") else lines(text)
    if not found:
        raise click.UsageError(f"{file.name} has no labels: one a line, or a JSON list.")
    return found


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """What --set says, as a manifest does."""
    merged: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if key.strip() == "task":
            raise click.UsageError("The task is said by --task.")
        try:
            found = tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            try:
                found = tomllib.loads(f"{key} = {orjson.dumps(value).decode()}")  # a text without its quotes
            except tomllib.TOMLDecodeError:
                found = {}
        if not equals or not found:
            raise click.UsageError(f"--set {text} is no KEY=VALUE, such as preprocessing.mean=0.5.")
        for table, inner in found.items():
            is_table = isinstance(inner, dict) and isinstance(merged.get(table), dict)
            merged[table] = {**merged[table], **inner} if is_table else inner
    constants = merged.get("constants", {})
    if not isinstance(constants, dict) or not all(type(value) in (int, float) for value in constants.values()):
        raise click.UsageError("--set constants.NAME takes a number.")
    return merged


def _make(
    file: Path,
    folder: Path,
    wishes: Wishes,
    tasks: dict[str, type[AnyTask]],
    given: Upload | None,
    expect: str | None,
    *,
    confirmed: bool,
) -> _Made:
    """Make the folder, where nobody sees it yet.

    Raises:
        ServiceError: the file cannot be served, or not as was wished.
    """
    from service.importing import photo
    from service.importing.folder import pixels_of, write
    from service.importing.propose import Guess, Wishes, propose
    from service.importing.source import read
    from service.registry.check import check_folder
    from service.tasks.base import Upload
    from service.tasks.picture import PictureTask

    sample = given or Upload(photo.as_png(photo.drawn()), filename="sample.png")
    pixels = pixels_of(sample, make_settings({}).max_image_pixels) if given else photo.drawn()
    picture_tasks = [name for name, each in tasks.items() if issubclass(each, PictureTask)]
    with err.status("reading the graph"):
        source = read(file, wishes.settings.get("constants"))
        proposal = propose(source, pixels, wishes, picture_tasks)
        proposal = _confirmed(proposal) if confirmed else proposal
        try:
            proposal, answer = write(folder, source, proposal, tasks[proposal.task], sample, expect)
        except ManifestInvalid as error:
            if wishes != Wishes() or expect or proposal.task == "tensor":
                raise
            shutil.rmtree(folder)
            wishes = replace(wishes, task="tensor")
            why = f"{proposal.task} would fit, but: {error}"
            proposal = propose(source, pixels, wishes)
            guesses = [Guess("task", "tensor", why, "task", "--task T"), *proposal.guesses[1:]]
            proposal = replace(proposal, guesses=tuple(guesses))
            proposal = _confirmed(proposal) if confirmed else proposal
            proposal, answer = write(folder, source, proposal, tasks["tensor"], sample)
        findings = check_folder(folder, tasks)
        if bad := [finding.detail for finding in findings if not finding.ok]:
            raise ManifestInvalid(folder.name, " ".join(bad))
        curl = _curl(folder.parent, folder.name, tasks)
    names = sorted(path.name for path in (folder / "1" / "golden").glob("*"))
    return _Made(source, proposal, findings, answer, curl, f"golden/{names[0]}" if names else "")


def _confirmed(proposal: Proposal) -> Proposal:
    return replace(proposal, guesses=tuple(replace(guess, sure=True) for guess in proposal.guesses))


def _curl(models: Path, name: str, tasks: dict[str, type[AnyTask]]) -> str:
    """The line that asks the model, once it is served."""
    from service.api.address import Address
    from service.api.models import curl_line
    from service.registry.registry import Registry

    registry = Registry(models, tasks=tasks)
    registry.load()
    return curl_line(registry.get(name), registry, Address.configured(make_settings({})))


def _print(made: _Made, folder: Path, file: Path, curl: str) -> None:
    """Say what was found, how, and what to do next."""
    source, proposal = made.source, made.proposal
    out.print(f"{file.name}: {source.exporter or 'exporter unknown'}, {source.opsets}", style="dim", soft_wrap=True)
    for guess in proposal.guesses:
        _print_guess(guess)
    for finding in made.findings:
        if finding.hint:
            out.print(Text.assemble(("hint ", "yellow"), " ", f"{finding.what}: {finding.detail}"), soft_wrap=True)
    if made.answer is not None and "results" in made.answer:
        out.print(f"the sample's answer: {_answer(made.answer)}", soft_wrap=True)
    count = len(proposal.open)
    left = (
        f"{count} guess{'es' * (count > 1)} to be confirmed, in its card.md"
        if count
        else "nothing is left to be confirmed"
    )
    out.print(f"made {folder}, served as {proposal.task}; {left}.", soft_wrap=True)
    out.print(f"gridloop serve --models {folder.parent}", soft_wrap=True)
    out.print(curl, soft_wrap=True)


def _print_guess(guess: Guess) -> None:
    mark = ("read ", "green") if guess.sure else ("guess", "yellow")
    otherwise = f"  otherwise: {guess.otherwise}" if guess.otherwise and not guess.sure else ""
    out.print(
        Text.assemble(mark, " ", f"{guess.about}: {guess.value}", (f" ({guess.reason}){otherwise}", "dim")),
        soft_wrap=True,
    )


def _answer(answer: Mapping[str, Any]) -> str:
    (result,) = answer["results"]
    entries: list[dict[str, Any]] = next(
        (result[key] for key in ("predictions", "detections", "segments") if key in result), []
    )
    return ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in entries[:3]) or "nothing found"
