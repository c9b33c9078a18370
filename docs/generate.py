"""Writes into the pages what the code and the manifests say already: fields, limits, contracts, tasks, served models.

    python docs/generate.py

replaces what stands between `<!-- KIND: WHAT -->` and `<!-- end -->` on every page of docs/, in README.md and in
models/README.md, begins the page of a task that has none, and writes docs/manifest.schema.json. The kinds:

    fields: NAME              fields of a type of the OpenAPI document that callers send
    answer: NAME              fields of one that they receive
    parameters: OPERATION     query parameters and headers of an operation
    operations: PREFIX        operations whose path begins so
    limits: NAME NAME         settings
    contract: MODULE          what a task's module says of its graphs
    tasks: FOLDER             all tasks; FOLDER is where their pages lie, as seen from this page
    models: FOLDER            all models that are served; FOLDER is where theirs lie, as seen from this page
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from service.app import create_app
from service.registry.manifest_schema import manifest_schema
from service.registry.repository import scan
from service.schemas.names import public_types
from service.settings import Settings
from service.tasks import AnyTask, discover
from service.tasks.base import MediaInput

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = re.compile(r"(<!-- (\w+): ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


class Source(NamedTuple):
    """What the generated parts are made of.

    Attributes:
        document: the OpenAPI document.
        tasks: that there are, by name.
        models: the model repository.
    """

    document: dict[str, Any]
    tasks: Mapping[str, type[AnyTask]]
    models: Path


def openapi(tasks: Mapping[str, type[AnyTask]] | None = None) -> dict[str, Any]:
    """The OpenAPI document, which depends on the tasks, not on the models."""
    with tempfile.TemporaryDirectory() as empty:
        document: dict[str, Any] = create_app(Settings(models=Path(empty), workers=1), tasks=tasks).app.openapi()
        return document


def pages() -> list[Path]:
    """The pages that may have generated parts."""
    return [ROOT / "README.md", ROOT / "models" / "README.md", *sorted(DOCS.rglob("*.md"))]


def render(
    page: str,
    document: dict[str, Any],
    tasks: Mapping[str, type[AnyTask]] | None = None,
    models: Path = ROOT / "models",
) -> str:
    """A page with its generated parts as they should be.

    Args:
        page: as it is.
        document: the OpenAPI document.
        tasks: that there are; left out, those of this repository.
        models: the model repository.
    """
    source = Source(document, discover() if tasks is None else tasks, models)

    def part(match: re.Match[str]) -> str:
        begin, kind, what, end = match.groups()
        return f"{begin}\n{KINDS[kind](source, what)}\n\n{end}"

    return GENERATED.sub(part, page)


def fields(source: Source, name: str) -> str:
    """A type's fields as a table, or what an alias stands for."""
    schema = source.document["components"]["schemas"][name]
    if "properties" not in schema:
        return kind_of(schema)
    rows = (
        (
            f"`{field}`",
            kind_of(about),
            default_of(about, required=field in schema.get("required", ())),
            meaning(about, source.document),
        )
        for field, about in schema["properties"].items()
    )
    return table(("field", "type", "default", "meaning"), rows)


def answer(source: Source, name: str) -> str:
    """A type's fields as a table that says which of them are always there."""
    schema = source.document["components"]["schemas"][name]
    rows = (
        (
            f"`{field}`",
            kind_of(about),
            "always" if field in schema.get("required", []) else "",
            meaning(about, source.document),
        )
        for field, about in schema["properties"].items()
    )
    return table(("field", "type", "there", "meaning"), rows)


def parameters(source: Source, operation_id: str) -> str:
    """An operation's query parameters and headers as a table."""
    operation = next(
        operation for _, _, operation in operations_of(source.document) if operation["operationId"] == operation_id
    )
    rows = (
        (f"`{p['name']}`", kind_of(p["schema"]), default_of(p["schema"], required=p["required"]), p["description"])
        for p in operation["parameters"]
        if p["in"] in ("query", "header")
    )
    return table(("parameter", "type", "default", "meaning"), rows)


def operations(source: Source, prefix: str) -> str:
    """The operations below a path as a table."""
    rows = (
        (f"`{verb.upper()} {path}`", operation["summary"])
        for path, verb, operation in operations_of(source.document)
        if f"{path}/".startswith(f"{prefix}/")
    )
    return table(("request", "question"), rows)


def limits(_: Source, names: str) -> str:
    """Some settings as a table."""
    found = ((name, Settings.model_fields[name]) for name in names.split())
    rows = ((f"`GRIDLOOP_{name.upper()}`", f"{field.default:,}", field.description or "") for name, field in found)
    return table(("setting", "default", "limit"), rows)


def contract(_: Source, module: str) -> str:
    """A module's docstring without its title and its references."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    return text.partition("\n\n")[2].partition("\n\nReferences:")[0].strip()


def tasks(source: Source, pages: str) -> str:
    """All tasks as a table: what each answers, takes and reads from a manifest."""
    rows = (
        (
            f"[`{name}`]({pages}/{name}.md)" if task.has_route else f"`{name}`, over `/v2` alone",
            task.summary,
            taken_by(task),
            ", ".join(["JSON", *task.other_answers.values()]),
            ", ".join(f"`{key}`" for key in task.Options.model_fields),
        )
        for name, task in source.tasks.items()
    )
    return table(("task", "question", "takes", "answers", "its own keys of a manifest"), rows)


def taken_by(task: type[AnyTask]) -> str:
    """What a task is asked with, in a few words."""
    if issubclass(task.Input, MediaInput):
        families = {kind.partition("/")[0] for kind in task.media} - {"application"}
        return f"files: {', '.join(sorted(families))}" if families else "files"
    needed = [f"`{name}`" for name, field in task.Input.model_fields.items() if field.is_required()]
    return f"JSON with {', '.join(needed)}" if needed else "JSON"


def models(source: Source, folder: str) -> str:
    """All models of the repository as a table, each as the version that answers when none is named."""
    rows = []
    for found in scan(source.models):
        if found.manifest is None or found.problem or not found.versions:
            continue
        version = found.path / (found.manifest.default_version or found.versions[-1])
        claims = found.manifest.of_version(version)
        weights, _, data = claims.licence.partition("; ")
        figure = next((f"{name} {value:g}" for name, value in claims.metrics.items()), "")
        size = sum(graph.stat().st_size for graph in version.glob("*.onnx"))
        rows.append(
            (
                f"[{found.name}]({folder}/{found.name}/card.md)",
                found.manifest.task,
                data.removeprefix("data: ").removeprefix("trained on "),
                figure,
                f"{size / 1e6:.1f} MB",
                weights.removesuffix(" (weights)"),
            )
        )
    return table(("model", "task", "trained on", "figure", "size", "licence of the weights"), rows)


KINDS: dict[str, Callable[[Source, str], str]] = {
    "fields": fields,
    "answer": answer,
    "parameters": parameters,
    "operations": operations,
    "limits": limits,
    "contract": contract,
    "tasks": tasks,
    "models": models,
}


def first_page(task: type[AnyTask]) -> str:
    """The page of a task as it begins: all that can be generated; the examples are for its author to add."""
    is_media = issubclass(task.Input, MediaInput)
    request = f"parameters: {task.name.replace('-', '_')}" if is_media else f"fields: {task.Input.__name__}"
    limits = ["max_body_bytes", *(["max_files"] if is_media else []), "max_queue", "max_queue_bytes"]
    roots = [task.Output] if is_media else [task.Output, task.Input]
    types = sorted({found.__name__ for found in public_types(roots)} - {task.Output.__name__, task.Input.__name__})
    sections = [
        f"# {task.name.replace('-', ' ').capitalize()}\n\n`POST /v1/{task.name}`: {inspect.getdoc(task)}",
        f"## Request\n\n{_empty(request)}",
        f"## Answer\n\n{_empty(f'answer: {task.Output.__name__}')}",
        *(f"`{name}`:\n\n{_empty(f'answer: {name}')}" for name in types),
        f"## Limits\n\n{_empty('limits: ' + ' '.join(limits))}",
        "What is over a limit is refused with 413; [all errors](../errors.md).",
        f"## The graph\n\n{_empty(f'contract: {task.__module__}')}",
    ]
    return "\n\n".join(sections) + "\n"


def _empty(part: str) -> str:
    return f"<!-- {part} -->\n<!-- end -->"


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, verb and operation, one after another."""
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def default_of(schema: dict[str, Any], *, required: bool) -> str:
    """What holds for a field that is left out."""
    if required:
        return "required"
    default = schema.get("default")
    return "" if default in (None, {}, []) else f"`{json.dumps(default)}`"


def meaning(schema: dict[str, Any], document: dict[str, Any]) -> str:
    """A field's description, or its type's."""
    named = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
    described: str = schema.get("description") or named.get("description", "")
    return described


def kind_of(schema: dict[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(part) for part in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    if kind == "object" and "additionalProperties" in schema:
        return f"object of {kind_of(schema['additionalProperties'])}"
    if schema.get("format") == "date-time":
        return "ISO 8601 string"
    bounds = [str(schema[name]) if name in schema else "" for name in ("minimum", "maximum")]
    return f"{kind} {bounds[0]}..{bounds[1]}" if any(bounds) else str(kind)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def schema_of_manifests() -> str:
    """The JSON Schema of manifests, as it is published."""
    return f"{json.dumps(manifest_schema(discover()), indent=2, ensure_ascii=False)}\n"


def main() -> None:
    """Rewrite the pages."""
    (DOCS / "manifest.schema.json").write_text(schema_of_manifests(), encoding="utf-8")
    document = openapi()
    for task in discover().values():
        page = DOCS / "tasks" / f"{task.name}.md"
        if task.has_route and not page.exists():
            page.write_text(first_page(task), encoding="utf-8")
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := render(before, document)) != before:
            page.write_text(after, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
