"""What files are, which kind of network and which served models fit them, and what was measured of these.

The figures are those of `service/playground/evidence.json`, which `benchmarks/cnn_or_rnn.py` writes and the playground
shows, too: none is written here. What was not measured is left out of the advice, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import orjson

from service.cli.choice import takes_files
from service.cli.fields import required_fields
from service.errors import InvalidInput, ServiceError
from service.tables import choose_series, parse_table

if TYPE_CHECKING:
    from service.registry.repository import FoundModel
    from service.tasks import AnyTask

MOST_FILES = 10_000
"""Files of a folder that are counted (count)."""
MOST_OPENED = 24
"""Of them, evenly spread, those that are looked into (count)."""
MOST_TEXT_BYTES = 4 << 20
"""Of a text or table that is looked into (bytes)."""
STREAMED = frozenset({"series", "texts", "recordings"})
"""Domains whose items come one after another, so that a state travels."""


@dataclass(frozen=True)
class Seen:
    """What one file is.

    Attributes:
        domain: "pictures", "series", "texts", "recordings"; empty where no task takes it.
        tasks: names of the tasks that do.
        facts: what was seen in it, by name.
        why: where no task takes it, or the task's reader refused it, what the reader said.
    """

    file: Path
    domain: str
    tasks: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


def evidence() -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = orjson.loads((resources.files("service") / "playground" / "evidence.json").read_bytes())
    return found


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and those in folders at any depth; hidden ones are left out."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if not any(part.startswith(".") for part in p.parts))
            found += [p for p in inside if p.is_file()][:MOST_FILES]
        else:
            found.append(path)
    return found


def look(file: Path, tasks: Mapping[str, type[AnyTask]]) -> Seen:
    """See what a file is, as the tasks' own readers see it."""
    data = file.read_bytes()
    routed = {name: task for name, task in tasks.items() if task.has_route}
    taking = tuple(name for name, task in routed.items() if takes_files(task) and task.recognises(data))
    if taking:
        return _media(file, data, taking)
    data = data[:MOST_TEXT_BYTES]
    series = tuple(n for n, t in routed.items() if t.file_reader is not None and t.file_reader.option == "series")
    typed = tuple(name for name, task in routed.items() if not takes_files(task) and required_fields(task) == ["text"])
    refused = ""
    try:
        return Seen(file, "series", series, _series_facts(data, file.name))
    except InvalidInput as error:
        refused = str(error)
    if file.suffix.lower() in (".csv", ".tsv"):
        return Seen(file, "", why=refused)
    try:
        text = data.decode("utf-8-sig", errors="strict" if len(data) < MOST_TEXT_BYTES else "ignore")
    except UnicodeDecodeError:
        return Seen(file, "", why="no task takes such a file")
    if "\0" in text or not text.strip():
        return Seen(file, "", why="no task takes such a file")
    return Seen(file, "texts", typed, {"words": len(text.split()), "characters": len(text)})


def _media(file: Path, data: bytes, tasks: tuple[str, ...]) -> Seen:
    from service.media.audio import is_recording, open_recording
    from service.media.images import open_picture

    try:
        if is_recording(data):
            with open_recording(data, file.name, most_s=3600.0) as recording:
                seconds = 0.0 if recording.frames is None else recording.frames / recording.rate
                facts = {"seconds": round(seconds, 2), "samples a second": recording.rate}
            return Seen(file, "recordings", tasks, facts)
        picture = open_picture(data, file.name, max_pixels=1 << 28, least=(32, 32))
        return Seen(file, "pictures", tasks, {"width": picture.width, "height": picture.height})
    except ServiceError as error:  # the next file may do
        return Seen(file, "", why=str(error))


def _series_facts(data: bytes, name: str) -> dict[str, float]:
    """Points, and how many of them are missing.

    Raises:
        InvalidInput: this is no table with a series in it.
    """
    table = parse_table(data, name)
    values = table.numbers(choose_series(table))
    missing = sum(value is None for value in values)
    if missing == len(values):
        raise InvalidInput(f"{name} has no number in it.")
    return {"points": len(values), "missing": missing}


# -------------------------------------------------------------------------------------------------------------- advice


@dataclass(frozen=True)
class Suggestion:
    """A model that fits.

    Attributes:
        ms: what one of its golden samples took when it was measured, decoding and all; None where it was not.
        claim: the first figure of its manifest, by name.
        default: whether it answers where no model is named.
    """

    task: str
    question: str
    model: str
    version: str
    architecture: str
    ms: float | None
    claim: Mapping[str, Any] | None
    default: bool
    licence: str


@dataclass(frozen=True)
class Advice:
    """What is said of all files of one domain.

    Attributes:
        kind: "cnn" or "rnn", the kind that was measured to be the better one; None where no pair was measured or their
            intervals overlap.
        reason: sentences, with the figures.
        measured: the pair's rows of the evidence.
        trainings: what a training of the same cost reached with each kind.
        suggestions: the default model of each task first.
        commands: to be pasted.
    """

    domain: str
    files: int
    facts: Mapping[str, float]
    kind: str | None
    reason: tuple[str, ...]
    measured: tuple[Mapping[str, Any], ...]
    trainings: tuple[Mapping[str, Any], ...]
    suggestions: tuple[Suggestion, ...]
    commands: Mapping[str, str]


def advise(
    seen: Sequence[Seen],
    models: Sequence[FoundModel],
    tasks: Mapping[str, type[AnyTask]],
    found: Mapping[str, Any],
    count: int,
) -> Iterator[Advice]:
    """One advice for each domain among the files, in the order in which they came.

    Args:
        seen: the files that were looked into.
        models: of the repository.
        tasks: by name.
        found: the evidence.
        count: files that were given, looked into or not.
    """
    domains = list(dict.fromkeys(one.domain for one in seen if one.domain))
    for domain in domains:
        own = [one for one in seen if one.domain == domain]
        suggestions = tuple(_suggestions(own[0].tasks, models, tasks, found))
        pair = [one for one in found["contenders"] if one["domain"] == domain]
        trainings = [one for one in found["trainings"] if one["domain"] == domain]
        kind, reason = _kind(pair, trainings, domain, higher=found["higher_is_better"].get(domain, True))
        facts = {name: median(one.facts[name] for one in own) for name in own[0].facts}
        files = round(count * len(own) / len(seen))
        commands = _commands(suggestions[0], domain, own[0].file) if suggestions else {}
        yield Advice(domain, files, facts, kind, reason, tuple(pair), tuple(trainings), suggestions, commands)


def _suggestions(
    names: Sequence[str], models: Sequence[FoundModel], tasks: Mapping[str, type[AnyTask]], found: Mapping[str, Any]
) -> Iterator[Suggestion]:
    """Models of these tasks, default ones first; a task that is meant by default before the others."""
    timed = {(one["model"], one["version"]): one for one in found["served"]}
    for name in sorted(names, key=lambda name: not tasks[name].by_default):
        own = [
            (m, m.manifest) for m in models if m.manifest and not m.problem and m.manifest.task == name and m.versions
        ]
        for model, manifest in sorted(own, key=lambda one: not one[1].default):
            version = manifest.default_version or model.versions[-1]
            claim = next(({"name": key, "value": value} for key, value in manifest.metrics.items()), None)
            yield Suggestion(
                task=name,
                question=tasks[name].summary,
                model=model.name,
                version=version,
                architecture=manifest.architecture,
                ms=timed.get((model.name, version), {}).get("ms"),
                claim=claim,
                default=manifest.default or len(own) == 1,
                licence=manifest.licence,
            )


def _kind(
    pair: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]], domain: str, *, higher: bool
) -> tuple[str | None, tuple[str, ...]]:
    """The better kind, where the intervals of the first figures do not overlap, and the sentences that say so."""
    if len(pair) != 2:
        return None, (f"No two kinds of network were measured on {domain}: take the task's default model.",)
    by_figure = sorted(pair, key=lambda one: one["figures"][0]["value"], reverse=higher)
    best, other = (one["figures"][0] for one in by_figure)
    apart = best["interval"][0] > other["interval"][1] if higher else best["interval"][1] < other["interval"][0]
    kind = by_figure[0]["kind"] if apart else None
    sentences = [
        f"{best['name']}: {_named(by_figure[0])} reached {_figure(best)}, {_named(by_figure[1])} {_figure(other)}"
        + (
            ", and the intervals do not overlap."
            if apart
            else "; the intervals overlap, so neither is shown to be better."
        )
    ]
    quick, slow = sorted(pair, key=lambda one: one["ms"])
    costs = f"{quick['ms']:.2g} ms of a core and {_named(slow)} {slow['ms']:.2g} ms"
    sentences.append(f"One {quick['item']} costs {_named(quick)} {costs}.")
    if domain in STREAMED:
        small, large = sorted(pair, key=lambda one: one["state_bytes"])
        sizes = f"{small['state_bytes']:,} bytes with {_named(small)} and {large['state_bytes']:,} with {_named(large)}"
        sentences.append(f"The state of a stream is {sizes}.")
    if len(trainings) == 2:
        trained = sorted(trainings, key=lambda one: one["value"], reverse=higher)
        reached = " and ".join(f"{_number(one['value'])} with the {one['kind'].upper()}" for one in trained)
        minutes = f"{trained[0]['minutes']:g} minutes of a core"
        sentences.append(f"{trained[0]['name']} after the same {minutes}, about as many weights: {reached}.")
    return kind, tuple(sentences)


def _named(one: Mapping[str, Any]) -> str:
    return f"{one['model']} ({one['kind'].upper()})"


def _number(value: float) -> str:
    return f"{value:.1%}" if 0 < value < 1 else f"{value:.1f}"


def _figure(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{_number(one['value'])} ({_number(low)} to {_number(high)})"


def _commands(first: Suggestion, domain: str, file: Path) -> dict[str, str]:
    """How to ask the first suggestion about the first file."""
    name = _quoted(str(file))
    url = f"http://127.0.0.1:8000/v1/{first.task}"
    if domain in ("pictures", "recordings"):
        return {
            "predict": f"gridloop predict --task {first.task} {name}",
            "curl": f"curl -s {url} --data-binary @{name}",
        }
    if domain == "series":
        body = '{"values": [10.1, 10.3, 9.9, 25.0]}'
        return {
            "predict": f"gridloop predict --task {first.task} --series {name}",
            "curl": f"curl -s {url} --json '{body}'",
        }
    body = '{"text": "The capital of", "top_k": 3}'
    return {
        "predict": f'gridloop predict --task {first.task} --text "$(head -c 300 {name})"',
        "curl": f"curl -s {url} --json '{body}'",
    }


def _quoted(text: str) -> str:
    from shlex import quote

    return quote(text)
