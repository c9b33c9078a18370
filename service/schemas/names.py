"""Names of the public types: a client generator makes one class of each, so no two types may share one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from typing_extensions import TypeAliasType, is_typeddict

from service.errors import NameTaken

NamedType = type | TypeAliasType


def schema_name(name: str) -> str:
    """A type's name in the OpenAPI document: letters and digits only, whatever a generic type is called.

    `Page[int]`, which Pydantic calls `Page_int_`, becomes `PageInt`, and `Point-Input` becomes `PointInput`.
    """
    first, *others = (word for word in re.split(r"[\W_]+", name) if word)
    return first + "".join(word[0].upper() + word[1:] for word in others)


def refuse_shared_names(owners: Mapping[str, Iterable[type[BaseModel]]]) -> None:
    """Check that every public type has a name of its own.

    Args:
        owners: who answers or asks with which types, such as "task 'shout'"; the types of their fields count too.

    Raises:
        NameTaken: two types share a name.
    """
    taken: dict[str, tuple[NamedType, str]] = {}
    for owner, roots in owners.items():
        for found in public_types(roots):
            name = schema_name(found.__name__)
            first, first_owner = taken.setdefault(name, (found, owner))
            if first is not found:
                raise NameTaken(name, str(found.__module__), owner, str(first.__module__), first_owner)


def public_types(roots: Iterable[Any]) -> Iterator[NamedType]:
    """The types that appear by name in the JSON schema of some types: these, and those of their fields. Each once."""
    seen: set[NamedType] = set()
    waiting = list(roots)
    while waiting:
        found = waiting.pop()
        waiting += get_args(found)
        if isinstance(found, type | TypeAliasType) and found not in seen and (parts := _parts(found)) is not None:
            seen.add(found)
            waiting += parts
            yield found


def _parts(found: NamedType) -> list[Any] | None:
    """What a type is made of; None for one that has no name in a schema, such as `float`."""
    if isinstance(found, TypeAliasType):
        return [found.__value__]
    if issubclass(found, BaseModel):
        return [field.annotation for field in found.model_fields.values() if not field.exclude]
    if is_dataclass(found) or is_typeddict(found):
        return list(get_type_hints(found).values())
    return [] if issubclass(found, Enum) else None
