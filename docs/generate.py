"""Writes into the task pages what the code says already: fields, limits, the graph's contract.

    python docs/generate.py

replaces what stands between `<!-- KIND: WHAT -->` and `<!-- end -->` on every page of docs/. The kinds:

    fields: NAME              fields of a type of the OpenAPI document that callers send
    answer: NAME              fields of one that they receive
    parameters: OPERATION     query parameters and headers of an operation
    operations: PREFIX        operations whose path begins so
    limits: NAME NAME         settings
    contract: MODULE          what a task's module says of its graphs
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

DOCS = Path(__file__).parent
GENERATED = re.compile(r"(<!-- (\w+): ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def openapi() -> dict[str, Any]:
    """The OpenAPI document, which depends on the tasks, not on the models."""
    with tempfile.TemporaryDirectory() as empty:
        return create_app(Settings(models=Path(empty), workers=1)).app.openapi()


def render(page: str, document: dict[str, Any]) -> str:
    """A page with its generated parts as they should be."""

    def part(match: re.Match[str]) -> str:
        begin, kind, what, end = match.groups()
        return f"{begin}\n{KINDS[kind](document, what)}\n\n{end}"

    return GENERATED.sub(part, page)


def fields(document: dict[str, Any], name: str) -> str:
    """A type's fields as a table, or what an alias stands for."""
    schema = document["components"]["schemas"][name]
    if "properties" not in schema:
        return kind_of(schema)
    rows = (
        (
            f"`{field}`",
            kind_of(about),
            default_of(about, required=field in schema["required"]),
            meaning(about, document),
        )
        for field, about in schema["properties"].items()
    )
    return table(("field", "type", "default", "meaning"), rows)


def answer(document: dict[str, Any], name: str) -> str:
    """A type's fields as a table that says which of them are always there."""
    schema = document["components"]["schemas"][name]
    rows = (
        (
            f"`{field}`",
            kind_of(about),
            "always" if field in schema.get("required", []) else "",
            meaning(about, document),
        )
        for field, about in schema["properties"].items()
    )
    return table(("field", "type", "there", "meaning"), rows)


def parameters(document: dict[str, Any], operation_id: str) -> str:
    """An operation's query parameters and headers as a table."""
    operation = next(
        operation for _, _, operation in operations_of(document) if operation["operationId"] == operation_id
    )
    rows = (
        (f"`{p['name']}`", kind_of(p["schema"]), default_of(p["schema"], required=p["required"]), p["description"])
        for p in operation["parameters"]
        if p["in"] in ("query", "header")
    )
    return table(("parameter", "type", "default", "meaning"), rows)


def operations(document: dict[str, Any], prefix: str) -> str:
    """The operations below a path as a table."""
    rows = (
        (f"`{verb.upper()} {path}`", operation["summary"])
        for path, verb, operation in operations_of(document)
        if f"{path}/".startswith(f"{prefix}/")
    )
    return table(("request", "question"), rows)


def limits(_: dict[str, Any], names: str) -> str:
    """Some settings as a table."""
    found = ((name, Settings.model_fields[name]) for name in names.split())
    rows = ((f"`GRIDLOOP_{name.upper()}`", f"{field.default:,}", field.description or "") for name, field in found)
    return table(("setting", "default", "limit"), rows)


def contract(_: dict[str, Any], module: str) -> str:
    """A module's docstring without its title and its references."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    return text.partition("\n\n")[2].partition("\n\nReferences:")[0].strip()


KINDS: dict[str, Callable[[dict[str, Any], str], str]] = {
    "fields": fields,
    "answer": answer,
    "parameters": parameters,
    "operations": operations,
    "limits": limits,
    "contract": contract,
}


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


def main() -> None:
    """Rewrite the pages."""
    document = openapi()
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        if (after := render(before, document)) != before:
            page.write_text(after, encoding="utf-8")
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
