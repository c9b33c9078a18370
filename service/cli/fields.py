"""Options of the command line made from a task's `Input`: one for each field, with its type, bounds and description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import orjson

if TYPE_CHECKING:
    from service.tasks import AnyTask

    ParamType = click.ParamType[Any]
else:  # not generic before click 8.2
    ParamType = click.ParamType

PREFIX = "field_"
"""What a field's value is called among a command's parameters, so that it meets none of the command's own."""
_NOT_TYPED = ("model", "files")
"""Fields that the command has its own way to give."""


def options_of(task: type[AnyTask]) -> list[click.Option]:
    """An option for each field of a task's input, and those of the files that it reads."""
    schema = task.Input.model_json_schema()
    required, defined = schema.get("required", ()), schema.get("$defs", {})
    found = [
        _option(name, about, defined, required=name in required)
        for name, about in schema["properties"].items()
        if name not in _NOT_TYPED
    ]
    if (reader := task.file_reader) is not None:
        path = click.Path(exists=True, dir_okay=False)
        found.append(click.Option([f"--{reader.option}"], type=path, metavar="FILE", help=reader.help))
        found += [click.Option([f"--{name}"], help=about) for name, about in reader.options.items()]
    return found


def required_fields(task: type[AnyTask]) -> list[str]:
    """Fields without which a task cannot be asked, files aside."""
    return [name for name, field in task.Input.model_fields.items() if field.is_required()]


def flag_of(name: str) -> str:
    """A field as an option is written: `top_k` is `--top-k`."""
    return f"--{name.replace('_', '-')}"


def _option(name: str, about: Mapping[str, Any], defined: Mapping[str, Any], *, required: bool) -> click.Option:
    flag, kind = flag_of(name), _resolved(about, defined)
    default = about.get("default")
    words = [about.get("description", "")]
    if required:
        words.append("[required]")
    elif default not in (None, "", [], {}):
        words.append(f"[default: {orjson.dumps(default).decode().strip(chr(34))}]")
    text = " ".join(filter(None, words))
    if kind.get("type") == "boolean":
        return click.Option([f"{flag}/--no-{flag[2:]}", f"{PREFIX}{name}"], default=None, help=text)
    return click.Option([flag, f"{PREFIX}{name}"], type=_type_of(kind, defined), help=text)


def _resolved(about: Mapping[str, Any], defined: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field's schema without the null that it may also be, and without a detour by name."""
    if "$ref" in about:
        return _resolved(defined.get(about["$ref"].rpartition("/")[2], {}), defined)
    kinds = [kind for kind in about.get("anyOf", ()) if kind.get("type") != "null"]
    return _resolved(kinds[0], defined) if len(kinds) == 1 else about


def _type_of(kind: Mapping[str, Any], defined: Mapping[str, Any]) -> ParamType:
    choices = kind.get("enum", [kind["const"]] if "const" in kind else [])
    if choices and all(isinstance(choice, str) for choice in choices):
        return click.Choice(choices)
    least, most = kind.get("minimum"), kind.get("maximum")
    above, below = kind.get("exclusiveMinimum"), kind.get("exclusiveMaximum")
    bounds: dict[str, Any] = {
        "min": least if above is None else above,
        "max": most if below is None else below,
        "min_open": above is not None,
        "max_open": below is not None,
    }
    match kind.get("type"):
        case "integer":
            return click.IntRange(**bounds)
        case "number":
            return click.FloatRange(**bounds)
        case "string":
            return _TEXT
        case "array":
            return _CommaSeparated(_resolved(kind.get("items", {}), defined))
        case _:
            return _JSON


class _Text(ParamType):
    """Text, which may hold bytes that are no UTF-8: a shell passes them on, and JSON cannot hold them."""

    name = "text"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        return value.encode(errors="surrogateescape").decode(errors="replace")


class _Json(ParamType):
    """Anything, as JSON; what is none is text."""

    name = "json"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return _json_or_text(value) if isinstance(value, str) else value


class _CommaSeparated(ParamType):
    """A list: its elements between commas, an empty one for null; or all of it as JSON."""

    name = "a,b,…"

    def __init__(self, element: Mapping[str, Any]) -> None:
        self._is_text = element.get("type") == "string"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            whole = _json_or_text(value)
            if isinstance(whole, Sequence) and not isinstance(whole, str):
                return whole
        parts = [part.strip() for part in value.split(",")]
        return parts if self._is_text else [_json_or_text(part) if part else None for part in parts]


_TEXT, _JSON = _Text(), _Json()


def _json_or_text(value: str) -> Any:
    try:
        return orjson.loads(value)
    except ValueError:
        return _TEXT.convert(value, None, None)
