"""What keeps a graph from being served, found by reading its file: before the runtime sees it, told with a remedy.

The runtime finds most of this as well, some of it only after it has taken as much memory as the file claims to need,
and says so in words for its own developers. Operators are compared with those that the installed runtime lists of
itself. Libraries with operators of somebody's own are never loaded: they are programs, not data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from service.errors import ManifestInvalid, quoted
from service.runtime.onnx_file import graphs_of, model_message, tensors_of

MAX_FILE_BYTES = 2**31 - 1
"""Largest `.onnx` file (bytes): a message of protobuf, the format, has no more."""
MAX_ROW_VALUES = 2**31
"""Values that one row of an input of fixed shape, or a tensor that an operator makes of constants, may have (count)."""

_VALUES_PER_BYTE = 4  # the smallest element types have two bits
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
"""ONNX's number of an element type -> the bits of a value; of those that are stored whole."""
_INT64 = 7
_SAVE_AGAIN = "Export it again, or save it with its weights inside."
_MADE_OF_A_SHAPE = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Operators that make a tensor from a shape, or from repeats, and the place of that among their inputs."""


def check(model: Any, size_bytes: int, beside: Mapping[str, bytes], where: str) -> None:
    """See that nothing about a graph keeps it from being served, as far as its file tells.

    Args:
        model: the file's content.
        size_bytes: of the file.
        beside: the files beside it that have weights of it, by the name that it uses.
        where: the file's place below the model repository, for messages.

    Raises:
        ManifestInvalid: something does.
    """
    for problem in _faults(model, size_bytes, beside):
        raise ManifestInvalid(where, problem)


def check_size(size_bytes: int, where: str) -> None:
    """See that a file can be one at all, before it is read.

    Raises:
        ManifestInvalid: it is empty, or too large.
    """
    if not size_bytes:
        raise ManifestInvalid(where, "is not an ONNX file: it is empty. Copy it again, or export it again.")
    if size_bytes > MAX_FILE_BYTES:
        raise ManifestInvalid(
            where,
            f"has {size_bytes:,} bytes; an ONNX file has at most {MAX_FILE_BYTES:,}. Save its weights beside it "
            "(external data), or quantise them.",
        )


def _faults(model: Any, size_bytes: int, beside: Mapping[str, bytes]) -> Iterator[str]:
    """Every fault, as a sentence or two without the file's name."""
    yield from _versions(model)
    yield from _operators(model)
    for tensor in tensors_of(model):
        yield from _outside(tensor, beside) if tensor.external_data else _inside(tensor, size_bytes)
    yield from _shapes(model)


# --- versions and operators


def _versions(model: Any) -> Iterator[str]:
    """A newer format, or newer operators, than the runtime reads."""
    sets = {operators.domain: operators.version for operators in model.opset_import}
    if _is_read(model.ir_version, sets):
        return
    usual = {"": 13}
    if not _is_read(model.ir_version, usual):
        most = _most(lambda version: _is_read(version, usual), model.ir_version)
        yield _too_new("IR version", model.ir_version, most, f"model.ir_version = {most}")
        return
    for domain, version in sets.items():
        if domain in ("", "ai.onnx", "ai.onnx.ml") and not _is_read(model.ir_version, {**usual, domain: version}):
            most = _most(lambda v, of=domain: _is_read(model.ir_version, {**usual, of: v}), version)
            yield _too_new(f"opset{f' of {domain}' if domain else ''}", version, most, f"opset_version={most}")


def _too_new(what: str, version: int, most: int, remedy: str) -> str:
    return (
        f"was exported for a newer ONNX than onnxruntime {ort.__version__} reads: {what} {version}, and it reads up to "
        f"{most}. Export it again with a lower one ({remedy}), or install a newer onnxruntime."
    )


def _most(is_read: Any, beyond: int) -> int:
    """The highest version that is read, below one that is not."""
    low, high = 1, min(beyond, 10_000)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_read(middle) else (low, middle)
    return low


def _is_read(ir_version: int, sets: Mapping[str, int]) -> bool:
    """Whether the runtime opens a graph that does nothing, of this format and with these sets of operators."""
    model = model_message()
    model.ir_version = ir_version
    for domain, version in sets.items():
        model.opset_import.add(domain=domain, version=version)
    model.graph.name = "nothing"
    model.graph.node.add(op_type="Identity", input=["x"], output=["y"])
    for values, name in ((model.graph.input, "x"), (model.graph.output, "y")):
        kind = values.add(name=name).type.tensor_type
        kind.elem_type = 1
        kind.shape.dim.add().dim_value = 1
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime raises a dozen unrelated classes here
        return False
    return True


@cache
def _known_operators() -> Mapping[str, Mapping[str, int]]:
    """The operators of the installed runtime: domain -> name -> the opset that it came with; empty where not told."""
    known: dict[str, dict[str, int]] = {}
    for schema in getattr(onnxruntime_pybind11_state, "get_all_operator_schema", list)():
        of_domain = known.setdefault(schema.domain, {})
        of_domain[schema.name] = min(schema.since_version, of_domain.get(schema.name, schema.since_version))
    return known


def _operators(model: Any) -> Iterator[str]:
    """Operators that the runtime does not have."""
    known, own = _known_operators(), {(_domain(f.domain), f.name) for f in model.functions}
    sets = {_domain(operators.domain): operators.version for operators in model.opset_import}
    if not known:
        return
    for nodes, versions in _node_lists(model, sets):
        for domain, name in dict.fromkeys((_domain(node.domain), node.op_type) for node in nodes):
            if (domain, name) not in own and (problem := _operator_problem(known, domain, name, versions.get(domain))):
                yield problem


def _node_lists(model: Any, sets: Mapping[str, int]) -> Iterator[tuple[Iterable[Any], Mapping[str, int]]]:
    """Operators, with the versions of the sets that they are of: a function of the file has its own."""
    for graph in graphs_of(model):
        yield graph.node, sets
    for function in model.functions:
        yield function.node, {**sets, **{_domain(each.domain): each.version for each in function.opset_import}}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _operator_problem(
    known: Mapping[str, Mapping[str, int]], domain: str, name: str, version: int | None
) -> str | None:
    of_domain, runtime = known.get(domain), f"onnxruntime {ort.__version__}"
    if of_domain is None:
        return (
            f"has an operator {quoted(name)} of the domain {quoted(domain)}, which {runtime} does not have, and "
            "libraries of custom operators are never loaded. Export it with standard operators, or with this one as a "
            "function in the file."
        )
    since = of_domain.get(name)
    if since is None:
        close = get_close_matches(name, of_domain, n=1)
        hint = f" (the nearest is {close[0]})" if close else ""
        return (
            f"has an operator {quoted(name)}, which {runtime} does not have{hint}. Export it again with standard "
            "operators, or install a newer onnxruntime."
        )
    if version is not None and version < since:
        return (
            f"has an operator {name}, which came with opset {since} of {domain or 'ONNX'}, and says that it uses opset "
            f"{version}. Export it again with opset_version={since}, or without this operator."
        )
    return None


# --- sizes


def _named(tensor: Any) -> str:
    return f"tensor {quoted(tensor.name)} of shape {list(tensor.dims)}" if tensor.name else f"shape {list(tensor.dims)}"


def _count(dims: Iterable[int]) -> int | None:
    """Number of values; None where an axis is below 0."""
    sizes = list(dims)
    return None if any(size < 0 for size in sizes) else math.prod(sizes)


def _inside(tensor: Any, size_bytes: int) -> Iterator[str]:
    """Weights in the file that would have more values than the file has room for."""
    count, bits = _count(tensor.dims), _BITS.get(tensor.data_type, 0)
    packed = bits * count // 64 if count is not None and bits else 0  # a number may be written in an eighth of its bits
    if count is None or count > size_bytes * _VALUES_PER_BYTE or packed > size_bytes:
        yield (
            f"{_named(tensor)} would need more than the {size_bytes:,} bytes of its file. Copy it again, or export it "
            "again."
        )


def _outside(tensor: Any, beside: Mapping[str, bytes]) -> Iterator[str]:
    """Weights in another file that has no such bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    content = beside.get(entries.get("location", ""))
    if content is None:
        yield f"{_named(tensor)} is in another file, and does not say in which. {_SAVE_AGAIN}"
        return
    count, bits = _count(tensor.dims), _BITS.get(tensor.data_type)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(len(content) - offset)))
    except ValueError:
        offset = length = -1
    if count is None or offset < 0 or length < 0:
        yield f"{_named(tensor)} has a place or size in {quoted(entries['location'])} that is none. {_SAVE_AGAIN}"
        return
    if offset + length > len(content):
        yield (
            f"its weights are in a side file that is cut short: {_named(tensor)} needs bytes {offset:,} to "
            f"{offset + length:,} of {quoted(entries['location'])}, which has {len(content):,}. Copy it again, or save "
            "the graph with its weights inside."
        )
    elif bits and length < count * bits // 8:
        yield (
            f"{_named(tensor)} needs {count * bits // 8:,} bytes and has {length:,} in {quoted(entries['location'])}. "
            f"{_SAVE_AGAIN}"
        )


def _shapes(model: Any) -> Iterator[str]:
    """Inputs, and tensors made of constants, that no machine could hold."""
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        row = math.prod(max(axis.dim_value, 1) for axis in axes)
        if row > MAX_ROW_VALUES:
            yield (
                f"input {quoted(value.name)} has {row:,} values a row, more than any request. Export it with free "
                "axes, or with smaller ones."
            )
    for graph in graphs_of(model):
        constants: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                constants[node.output[0]] = next((each.t for each in node.attribute if each.name == "value"), None)
        for node in graph.node:
            place = _MADE_OF_A_SHAPE.get(node.op_type, len(node.input))
            shape = constants.get(node.input[place]) if place < len(node.input) else None
            sizes = _integers(shape) if shape is not None else []
            if sizes and math.prod(max(size, 1) for size in sizes) > MAX_ROW_VALUES:
                yield (
                    f"operator {node.op_type} makes a tensor of shape {sizes}, more than a machine can hold. Export it "
                    "again, or with smaller shapes."
                )


def _integers(tensor: Any) -> list[int]:
    """The values of a small tensor of INT64; none where it is something else."""
    if tensor.data_type != _INT64 or math.prod(tensor.dims) > 16:
        return []
    raw = tensor.raw_data
    values: list[int] = list(tensor.int64_data) or np.frombuffer(raw[: len(raw) // 8 * 8], "<i8").tolist()
    return values
