"""Hyper-parameters as command-line flags: one frozen dataclass is the block to read, and the script's `--help`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of every training script; a script derives its own from it, and gives `out` and `work` a default."""

    data: Path
    """Folder with the data sets."""
    out: Path
    """Model folder that is written: versions, card.md, manifest.toml."""
    work: Path
    """Folder for checkpoints and caches."""
    seed: int = 1
    """Settles everything that is drawn."""
    threads: int = 1
    """Threads of a training step (count)."""
    resume: bool = True
    """Whether to go on from the checkpoint in `work`, if there is one."""


Chosen = TypeVar("Chosen", bound=Flags)


def read_flags(kind: type[Chosen], doc: str | None, arguments: Sequence[str] | None = None) -> Chosen:
    """Read the command line.

    Each field is a flag of its name (`label_smoothing` is `--label-smoothing`), required where it has no default; the
    text below the field is its help. A bool is `--flag`, `--flag true` or `--flag false`, a tuple takes several values.

    Args:
        kind: the dataclass; its fields are str, int, float, bool, Path, a Literal, a tuple of these, or one or None.
        doc: the script's docstring, which `--help` shows.
        arguments: instead of those of the command line.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds, texts = typing.get_type_hints(kind), _texts_below_fields(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        options: dict[str, Any] = {"required": True} if default is dataclasses.MISSING else {"default": default}
        text = texts.get(field.name, "").replace("%", "%%")
        if "default" in options and default not in ("", None, ()):
            text = f"{text} Default: {str(default).replace('%', '%%')}."
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", help=text.strip(), **options, **_reading(kinds[field.name])
        )
    return kind(**vars(parser.parse_args(arguments)))


def _reading(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of a type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return {"choices": inner, "type": type(inner[0])}
    if origin in (typing.Union, types.UnionType):
        (kind,) = (one for one in inner if one is not types.NoneType)
        return _reading(kind)
    if origin is tuple:
        return {**_reading(inner[0]), "nargs": "*", "action": _AsTuple}
    if kind is bool:
        return {"type": _truth, "nargs": "?", "const": True, "metavar": "true|false"}
    read: Callable[[str], Any] = kind
    return {"type": read, "metavar": kind.__name__}


class _AsTuple(argparse.Action):
    """Several values as a tuple, so that the dataclass stays frozen all through."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, tuple(values))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "yes", "1")


def _texts_below_fields(kind: type) -> dict[str, str]:
    """The docstring below each field, of the class and of those that it derives from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        (source,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        lines = source.body if isinstance(source, ast.ClassDef) else []
        for pair in itertools.pairwise(lines):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
