"""OnnxSession: one ONNX graph, open and ready to run. Blocking; call it from a worker thread."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Read when the library is imported: nothing that serves models phones home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")

import numpy as np
import onnxruntime as ort

from service.errors import ManifestInvalid
from service.graph import Array, Signature, TensorSpec
from service.runtime.tensors import pad_rows

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "object",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxSession:
    """A graph loaded into ONNX Runtime, with what it takes and gives.

    Attributes:
        signature: inputs and outputs, read from the graph.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load a graph.

        Args:
            path: the `.onnx` file.
            threads: size of the graph's thread pool; 1 computes in the calling thread.

        Raises:
            ManifestInvalid: the file is missing, is not a graph this runtime can run, or uses an unknown tensor type.
        """
        where = "/".join(path.parts[-3:])
        if not path.is_file():
            raise ManifestInvalid(where, "is missing; export the graph to this place.")
        options = ort.SessionOptions()
        # Explicit counts also keep the runtime from pinning threads to cores, which fails under a cpuset.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # errors reach the caller as exceptions
        # A waiting pool that spins takes a whole core from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = self._open(path, options, where)
        self.signature = _signature(self._session, where)
        if self.signature.free_shape:
            # The arena keeps the largest block of every shape ever seen; with free shapes it only grows.
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
            self._session = self._open(path, options, where)
        self._outputs = list(self.signature.outputs)

    @staticmethod
    def _open(path: Path, options: Any, where: str) -> Any:
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            raise ManifestInvalid(where, _explain(error, path)) from error

    def run(self, tensors: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> dict[str, Array]:
        """Compute the outputs for one batch.

        Args:
            tensors: every input of the graph; when the graph's batch axis is fixed, fewer rows are padded.
            outputs: names of the outputs wanted; empty means all.

        Returns:
            Name -> array, with as many rows as the inputs have.
        """
        rows = len(next(iter(tensors.values())))
        fixed = self.signature.fixed_batch
        feeds = pad_rows(tensors, fixed) if fixed and rows < fixed else dict(tensors)
        names = list(outputs) or self._outputs
        values = self._session.run(names, feeds)
        return {name: np.asarray(value)[:rows] for name, value in zip(names, values, strict=True)}


def _signature(session: Any, where: str) -> Signature:
    def specs(arguments: list[Any]) -> dict[str, TensorSpec]:
        found = {}
        for argument in arguments:
            kind = argument.type.removeprefix("tensor(").removesuffix(")")
            if kind not in _DTYPES:
                raise ManifestInvalid(where, f"tensor {argument.name!r} has type {argument.type}, which is not served.")
            found[argument.name] = TensorSpec(argument.name, _DTYPES[kind], tuple(argument.shape))
        return found

    return Signature(specs(session.get_inputs()), specs(session.get_outputs()))


def _explain(error: Exception, path: Path) -> str:
    """ONNX Runtime's message as a sentence to act on, without paths of this machine."""
    text = str(error).replace(str(path), path.name).replace(str(path.parent), "")
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text).strip()
    version = ort.__version__
    if "Unsupported model IR version" in text or ("opset" in text.lower() and "support" in text.lower()):
        return (
            f"was exported for a newer ONNX than onnxruntime {version} reads ({text}). "
            "Export it again with a lower opset and IR version, or install a newer onnxruntime."
        )
    if "external data" in text.lower() or "file_size" in text.lower():
        return f"its weights are in a side file that is not there ({text}). Save it again with the weights inside."
    if "Protobuf parsing failed" in text or "No graph was found" in text:
        return "is not an ONNX file, or only half of one. Copy or export it again."
    return f"cannot be loaded by onnxruntime {version}: {text}"
