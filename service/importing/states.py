"""Which inputs are the recurrent state that an output goes on with, where a graph has names of its own for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from service.importing.source import Source

_RECURRENT = ("LSTM", "GRU", "RNN")
_KEEPS = (
    "Identity",
    "Cast",
    "Unsqueeze",
    "Squeeze",
    "Transpose",
    "Reshape",
    "Slice",
    "Concat",
    "Split",
    "Gather",
    "Expand",
)
"""Operators that only put a state into another form, or cut one into layers."""
_BEFORE = frozenset(("in", "input", "init", "initial", "past", "prev", "previous", "old"))
_AFTER = frozenset(("out", "output", "next", "new", "final", "last", "present", "updated"))
"""Words in names that say which of two is before the step, and which after it."""


def pairs(source: Source) -> dict[str, tuple[str, str]]:
    """The state of a graph: input -> the output that goes on with it, and how that is known.

    What the house's own names say, `x` and `next_x`, is among them.
    """
    signature = source.signature
    found = {name: (following, "its name is the input's after `next_`") for name, following in signature.states.items()}
    ways = (
        (_joined_by_a_cell(source), "both are the same cell's state"),
        (_alike_in_name(source), "their names and shapes"),
    )
    for way, why in ways:
        for name, following in way:
            if name not in found and following not in {other for other, _ in found.values()}:
                found[name] = (following, why)
    return found if len(found) < len(signature.inputs) else {}  # something is left to be given


def _joined_by_a_cell(source: Source) -> Iterator[tuple[str, str]]:
    """Pairs of which the input is a recurrent operator's first state, and the output its last."""
    signature = source.signature
    for name, before in signature.inputs.items():
        reached = {
            result
            for cell, slot in _cells_from(source, name)
            for result in _outputs_from(source, cell.output[slot - 4])
        }
        fitting = [other for other in reached if before.continued_by(signature.outputs[other])]
        if len(fitting) == 1:
            yield name, fitting[0]


def _cells_from(source: Source, name: str) -> list[tuple[Any, int]]:
    """Recurrent operators whose first state, input 5, or first cell, input 6, is made of a tensor alone."""
    found, waiting, seen = [], [name], {name}
    while waiting:
        tensor = waiting.pop()
        for node in source.users.get(tensor, ()):
            if node.op_type in _RECURRENT:
                slots = [slot for slot in (5, 6) if slot < len(node.input) and node.input[slot] == tensor]
                found += [(node, slot) for slot in slots if slot - 4 < len(node.output) and node.output[slot - 4]]
            elif node.op_type in _KEEPS and node.input[0] == tensor:
                waiting += [output for output in node.output if output not in seen]
                seen |= set(node.output)
    return found


def _outputs_from(source: Source, name: str) -> set[str]:
    """Outputs of the graph that are a tensor in another form."""
    found, waiting, seen = set(), [name], {name}
    while waiting:
        tensor = waiting.pop()
        if tensor in source.signature.outputs:
            found.add(tensor)
        for node in source.users.get(tensor, ()):
            if node.op_type in _KEEPS:
                waiting += [output for output in node.output if output not in seen]
                seen |= set(node.output)
    return found


def _alike_in_name(source: Source) -> Iterator[tuple[str, str]]:
    """Pairs whose names say that one comes after the other, such as `state` and `stateN`, `past.0` and `present.0`."""
    signature = source.signature
    for name, before in signature.inputs.items():
        after = [
            other for other, spec in signature.outputs.items() if before.continued_by(spec) and _follows(name, other)
        ]
        if len(after) == 1:
            yield name, after[0]


def _follows(before: str, after: str) -> bool:
    """Whether one name is the other's, but for what says that it is later."""
    if before == after:
        return False
    stem, rest = _stem(before, _BEFORE, "0"), _stem(after, _AFTER, "nN")
    return bool(stem) and stem == rest


def _stem(name: str, words: frozenset[str], endings: str) -> str:
    """A name in small letters without words such as `out`, and without one of these letters at its end."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name) if part]
    kept = [part.lower() for part in parts if part.lower() not in words]
    if len(kept) == len(parts) and kept:
        last = parts[-1]
        kept[-1] = last[:-1].lower() if len("".join(parts)) > 1 and last[-1] in endings else last.lower()
    return ".".join(part for part in kept if part)


def declared(found: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The pairs that a manifest has to name: those whose names do not say it."""
    return {name: following for name, (following, _) in found.items() if following != f"next_{name}"}
