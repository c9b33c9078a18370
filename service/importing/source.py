"""What an ONNX file says, and what lies beside it, as the guesses read it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from service.errors import ManifestInvalid
from service.files import read_text
from service.graph import Array, Signature
from service.runtime.onnx_file import attributes_of, numbers_of, parse_model
from service.runtime.session import OnnxSession

MOST_TEXT_BYTES = 4 * 1024 * 1024
"""Largest file beside a graph that is looked into (bytes)."""
SAMPLE_RATES = ("sr", "sample_rate", "sampling_rate")
"""Integer inputs of one value that sound models have beside the sound."""
USUAL_RATE = 16_000

_AS_IT_IS = ("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear")
"""Operators after which a tensor holds what it held."""


@dataclass(frozen=True)
class Source:
    """A graph that is to be imported, open.

    Attributes:
        path: its file.
        model: the file's content, as `onnx_file` reads it.
        session: the graph, to be run.
        constants: values that were guessed of inputs that no request should give, by name.
    """

    path: Path
    model: Any
    session: OnnxSession
    constants: Mapping[str, float] = field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        """What the graph takes and gives; float32 in place of float16, as tasks see it."""
        return self.session.signature.widened()

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The exporter's `metadata_props`."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def exporter(self) -> str:
        """Who wrote the file, such as `pytorch 2.6.0`; empty where it does not say."""
        return f"{self.model.producer_name} {self.model.producer_version}".strip()

    @property
    def opsets(self) -> str:
        """Versions of the operators, such as `opset 17, ai.onnx.ml 3`."""
        return ", ".join(f"{each.domain or 'opset'} {each.version}" for each in self.model.opset_import)

    # --- the graph

    @cached_property
    def operators(self) -> frozenset[str]:
        """Names of the operators of the outermost graph."""
        return frozenset(node.op_type for node in self.model.graph.node)

    @cached_property
    def makers(self) -> Mapping[str, Any]:
        """The operator that computes each tensor."""
        return {output: node for node in self.model.graph.node for output in node.output if output}

    @cached_property
    def users(self) -> Mapping[str, Sequence[Any]]:
        """The operators that read each tensor."""
        found: dict[str, list[Any]] = {}
        for node in self.model.graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def _weights(self) -> Mapping[str, Any]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def weight(self, name: str) -> Array | None:
        """A tensor that is the same in every run, where its numbers lie in the file itself; else None."""
        if name in self._weights:
            return numbers_of(self._weights[name])
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = attributes_of(node).get("value")
            return numbers_of(value) if value is not None and hasattr(value, "dims") else None
        return self.weight(node.input[0]) if node.op_type in ("Identity", "Cast") else None

    def shape_of_weight(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor of weights, through the operator that makes numbers of 8 bits floats; else None."""
        node = self.makers.get(name)
        if node is not None and node.op_type in ("DequantizeLinear", "Identity", "Cast"):
            return self.shape_of_weight(node.input[0])
        tensor = self._weights.get(name)
        return tuple(tensor.dims) if tensor is not None else None

    def back(self, name: str, *through: str) -> tuple[str, Any]:
        """The tensor that another is made of, and its operator, before all that leaves its numbers as they are.

        Args:
            name: the tensor to begin with.
            through: operators to pass as well, such as Flatten.
        """
        node = self.makers.get(name)
        while node is not None and node.op_type in (*_AS_IT_IS, *through):
            name = node.input[0]
            node = self.makers.get(name)
        return name, node

    def forward(self, name: str) -> Iterator[Any]:
        """The operators that follow a tensor one after another, as long as there is one alone."""
        users = self.users.get(name, ())
        while len(users) == 1 and users[0].output:
            yield users[0]
            users = self.users.get(users[0].output[0], ())

    # --- beside it

    @cached_property
    def beside(self) -> Mapping[str, Path]:
        """Files in the folder of the graph, by name in small letters."""
        return {path.name.lower(): path for path in sorted(self.path.parent.iterdir()) if path.is_file()}

    def text(self, name: str) -> str | None:
        """A text file beside the graph; None where there is none that can be read."""
        path = self.beside.get(name.lower())
        try:
            if path is None or path.stat().st_size > MOST_TEXT_BYTES:
                return None
            return read_text(path, path.name, missing="is missing.")
        except (ManifestInvalid, OSError):
            return None

    def document(self, name: str) -> Mapping[str, Any]:
        """A JSON object beside the graph; empty where there is none."""
        found = literal(self.text(name) or "")
        return found if isinstance(found, dict) else {}


def literal(text: str) -> Any:
    """A value as JSON or as Python writes it; None where it is neither."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def read(path: Path, constants: Mapping[str, float] | None = None) -> Source:
    """Open an ONNX file.

    Args:
        path: of the file.
        constants: values of inputs that no request gives, as a manifest's `[constants]` has them.

    Raises:
        ManifestInvalid: it is missing or cannot be served, as `OnnxSession` finds it.
    """
    session = OnnxSession(path, constants)
    rates = {
        name: float(USUAL_RATE)
        for name, spec in session.signature.inputs.items()
        if name.lower() in SAMPLE_RATES and spec.dtype in ("int64", "int32") and all(axis == 1 for axis in spec.shape)
    }
    if rates and len(rates) < len(session.signature.inputs):
        session = OnnxSession(path, {**rates, **(constants or {})})
    else:
        rates = {}
    return Source(path, parse_model(path.read_bytes()), session, rates)
