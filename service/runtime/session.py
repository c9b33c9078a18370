"""OnnxSession: one ONNX graph, open and ready to run. Blocking; call it from a worker thread."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import structlog
from google.protobuf.message import DecodeError
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from service.errors import ManifestInvalid
from service.files import is_lfs_content, open_file, printable, without_folders
from service.graph import Array, Signature, TensorSpec, ValuesRefused
from service.runtime import onnx_faults, packed
from service.runtime.eight_bits import keep_sums_exact
from service.runtime.memory import give_back_freed_memory
from service.runtime.onnx_file import activations, has_free_shape, parse_model, side_files
from service.runtime.stop import Stop
from service.runtime.tensors import pad_rows

log = structlog.get_logger(__name__)

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "object",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

_VALUES_IN_USE = {
    **dict.fromkeys(("keep_prob", "keep_probability", "dropout_keep_prob"), 1),
    **dict.fromkeys(("dropout", "dropout_rate", "dropout_prob", "drop_rate"), 0),
    **dict.fromkeys(("training", "is_training", "is_train", "train", "train_mode", "training_mode"), 0),
    **dict.fromkeys(("phase_train", "phase_training", "learning_phase", "keras_learning_phase"), 0),
}
"""Inputs of one element that graphs have for training: their names, and their values when the model is in use."""


@dataclass(frozen=True, slots=True)
class _Files:
    """What a graph's files hold; for an opening, and not kept.

    Attributes:
        content: of the `.onnx` file.
        beside: of the files with its weights, by name.
    """

    content: bytes
    beside: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return len(self.content) + sum(map(len, self.beside.values()))

    def digest(self) -> str:
        """SHA-256 of the graph's content; with files beside it, that of all their digests, one after another."""
        return joint_digest([hashlib.sha256(data).digest() for data in (self.content, *self.beside.values())])


def joint_digest(digests: Sequence[bytes]) -> str:
    """One digest as it is; of several, the SHA-256 of all of them, one after another. Hexadecimal."""
    joint = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return joint.hex()


class OnnxSession:
    """A graph loaded into ONNX Runtime, with what it takes and gives.

    A run computes in the thread that calls it, so that the processes of a server, one for each core, give the most rows
    per second. There is a second way for runs that have the machine to themselves: with a pool of threads, sooner done
    but at a higher cost per row.

    Attributes:
        signature: inputs and outputs, read from the graph.
        constants: inputs that have the same value in every run; they are not in the signature.
        side_files: names of the files beside the graph that have weights of it.
        lone_threads: size of that pool; with 1 there is none.
        copy: the packed copy that is used instead of the graph itself, if one is.
        digest: SHA-256 of the graph file, to tell replicas apart; of it and the files beside it that hold its weights,
            where there are some.
        size_bytes: of all these files.
    """

    def __init__(
        self,
        path: Path,
        constants: Mapping[str, float] | None = None,
        *,
        stop: Stop | None = None,
        some_constants: bool = False,
    ) -> None:
        """Load a graph.

        Args:
            path: the `.onnx` file.
            constants: values of inputs that no request gives, by name, beside those that are known by their name.
            stop: ends the opening.
            some_constants: some of the constants may be of another graph's inputs.

        Raises:
            ManifestInvalid: the file is missing, is not a graph this runtime can run, uses an unknown tensor type, or
                has no such input.
        """
        where = "/".join(path.parts[-3:])
        self._path, self._where = path, where
        content = self._read()
        model = _parsed(content, where)
        self.side_files = side_files(model) if model else ()
        files = _Files(content, {name: _read_side_file(path, name) for name in self.side_files})
        if model is not None:
            onnx_faults.check(model, len(content), files.beside, where)
        del content
        self.digest, self.size_bytes = files.digest(), files.size_bytes
        self.copy: Path | None = None
        self._has_free_shape = model is not None and has_free_shape(model)
        self._session = self._open(files, stop=stop)
        self._wide: Any = None
        self._opening = False
        self.lone_threads = 1
        self.signature = _signature(self._session, where)
        if some_constants:
            constants = {name: value for name, value in (constants or {}).items() if name in self.signature.inputs}
        self.constants = _constants(self.signature, constants or {}, where)
        self.signature = Signature(
            {name: spec for name, spec in self.signature.inputs.items() if name not in self.constants},
            self.signature.outputs,
            activations(model, list(self.signature.outputs)) if model else {},
        )
        if self.signature.free_shape != self._has_free_shape:  # as where what is free has a constant value
            self._has_free_shape = self.signature.free_shape
            self._session = self._open(files, stop=stop)
        self._outputs = list(self.signature.outputs)

    def use_copy(self, copy: Path, sample: Mapping[str, Array], *, stop: Stop | None = None) -> None:
        """Go on with a packed copy, if it still gives the same numbers for a sample of every input."""
        original = self._session
        before = list(self.run(sample, stop=stop).values())
        self.copy = copy
        try:
            self._session = self._open(stop=stop)
            if packed.same(before, list(self.run(sample, stop=stop).values())):
                return
        except Exception as error:  # removed or damaged meanwhile
            log.debug("the packed copy cannot be used", graph=self._where, reason=str(error))
        self._session, self.copy = original, None
        packed.forget(copy)

    def open_pool(self, *, stop: Stop | None = None) -> None:
        """Open the second way now. It is opened by the first lone run otherwise, in the background.

        Not before a server forks its workers: threads do not survive that.
        """
        try:
            self._wide = self._open(threads=self.lone_threads, stop=stop)
        except ManifestInvalid as error:  # the file is gone; the session that is open needs it no more
            log.warning("lone runs stay on one core", graph=self._where, reason=str(error))

    def _open_pool_while_serving(self) -> None:
        self.open_pool()
        give_back_freed_memory()  # as the registry does for all that is opened while models are loaded

    def close_pool(self) -> None:
        """Give the pool's threads and memory back."""
        self._wide = None

    def _wide_or_narrow(self) -> Any:
        if self.lone_threads == 1:
            return self._session
        if self._wide is None and not self._opening:
            self._opening = True
            name = f"open-{self._path.parts[-3]}"
            threading.Thread(target=self._open_pool_while_serving, name=name, daemon=True).start()
        return self._wide or self._session

    def _open(self, files: _Files | None = None, *, threads: int = 1, stop: Stop | None = None) -> Any:
        """Open the graph, or its packed copy.

        Args:
            files: what was read of the graph; left out, it is read again, and must be the same.
            threads: that a run takes.
            stop: ends the opening.
        """
        options = ort.SessionOptions()
        # Explicit counts also keep the runtime from pinning threads to cores, which fails under a cpuset.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # errors reach the caller as exceptions
        # A pool that spins is quick within a run; between runs it would take whole cores from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        keep_sums_exact(options)
        if self.copy:
            packed.prepare(options)
        # The runtime's arena keeps for each session, for ever, the most that a run of it has needed. glibc keeps what a
        # run frees for all sessions together, and gives it back when nothing is done (`runtime.memory`). With a plan of
        # the whole run, which takes one block, that is as quick; there is none where shapes differ.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = not self._has_free_shape
        if stop:
            stop.cover_opening(options)
        source: str | bytes = str(self.copy)
        if not self.copy:
            files = files or self.check_unchanged()
            source = files.content
            # Opened from memory: what is read is what was checked. By itself the runtime would also map the files with
            # weights, and so take up whatever is written to them later. What is in none of them is looked for here:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self._path.parent)
            )
            if beside := files.beside:
                options.add_external_initializers_from_files_in_memory(
                    list(beside), list(beside.values()), [len(content) for content in beside.values()]
                )
        try:
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            raise ManifestInvalid(self._where, _explain(error, self._path)) from error
        session._model_bytes = None  # kept for a fallback to other providers, of which there are none
        return session

    def _read(self) -> bytes:
        with open_file(self._path, self._where, missing="is missing; export the graph to this place.") as file:
            onnx_faults.check_size(os.fstat(file.fileno()).st_size, self._where)
            content = file.read()
        if is_lfs_content(content):
            raise ManifestInvalid(
                self._where,
                "is a Git LFS pointer, not the graph itself; run `git lfs pull`. Or copy the file itself here.",
            )
        return content

    def check_unchanged(self) -> _Files:
        """See that the files are those that were read first.

        Returns:
            What they hold.

        Raises:
            ManifestInvalid: they are not, or cannot be read.
        """
        files = _Files(self._read(), {name: _read_side_file(self._path, name) for name in self.side_files})
        if files.digest() != self.digest:
            raise ManifestInvalid(
                self._where, "has changed since it was opened; put what is new into a version folder of its own."
            )
        return files

    def run(
        self,
        tensors: Mapping[str, Array],
        outputs: tuple[str, ...] = (),
        *,
        alone: bool = False,
        stop: Stop | None = None,
    ) -> dict[str, Array]:
        """Compute the outputs for one batch.

        Args:
            tensors: every input of the graph; when the graph's batch axis is fixed, fewer rows are padded.
            outputs: names of the outputs wanted; empty means all.
            alone: nothing else runs now, so every core may be used.
            stop: ends the run early, from another thread.

        Returns:
            Name -> array, with as many rows as the inputs have.

        Raises:
            ValuesRefused: the graph cannot compute with these values.
            Exception: one of the runtime's own; also when it was stopped.
        """
        fixed = self.signature.fixed_batch
        rows = len(next(iter(tensors.values()))) if fixed is not None else 0
        padded = fixed is not None and rows < fixed
        feeds = pad_rows(tensors, fixed) if fixed is not None and padded else dict(tensors)
        feeds.update(self.constants)
        names = list(outputs) or self._outputs
        session = self._wide_or_narrow() if alone else self._session
        options = stop.options if stop is not None else None
        try:
            values = session.run(names, feeds, options)
        except InvalidArgument as error:
            raise ValuesRefused(str(error).rpartition("Status Message: ")[2]) from error
        arrays = [np.asarray(value) for value in values]
        # Only what was added is cut off: an output with rows of its own must be noticed, not shortened to fit.
        return {name: array[:rows] if padded else array for name, array in zip(names, arrays, strict=True)}


def _signature(session: Any, where: str) -> Signature:
    def specs(arguments: list[Any]) -> dict[str, TensorSpec]:
        found = {}
        for argument in arguments:
            kind = argument.type.removeprefix("tensor(").removesuffix(")")
            if kind in _DTYPES:
                found[argument.name] = TensorSpec(argument.name, _DTYPES[kind], tuple(argument.shape))
        return found

    def refused(arguments: list[Any]) -> ManifestInvalid:
        types = "; ".join(f"{argument.name!r} has type {argument.type}" for argument in arguments)
        return ManifestInvalid(where, f"{types}, which is not served.")

    inputs, outputs = specs(session.get_inputs()), specs(session.get_outputs())
    if unknown := [argument for argument in session.get_inputs() if argument.name not in inputs]:
        raise refused(unknown)
    if not outputs:
        raise refused(session.get_outputs())
    return Signature(inputs, outputs)


def _constants(signature: Signature, given: Mapping[str, float], where: str) -> dict[str, Array]:
    """The inputs that are the same in every run, as arrays."""
    if unknown := [name for name in given if name not in signature.inputs]:
        there = "; ".join(map(str, signature.inputs.values()))
        raise ManifestInvalid(
            where, f"has no input {unknown[0]!r}, to which [constants] gives a value; it has: {there}."
        )
    known = {name: _value_in_use(spec) for name, spec in signature.inputs.items()}
    if None not in known.values():  # something must be left for requests to give
        known = {}
    arrays = {}
    for name, constant in {**known, **given}.items():
        if constant is None:
            continue
        spec = signature.inputs[name]
        if spec.dtype == "object":
            raise ManifestInvalid(where, f"input {spec} takes text, which [constants] cannot give.")
        arrays[name] = np.full([axis if isinstance(axis, int) else 1 for axis in spec.shape], constant, spec.dtype)
    return arrays


def _value_in_use(spec: TensorSpec) -> float | None:
    """What a model is given outside training, for an input of one element with a name that says so."""
    if any(axis != 1 for axis in spec.shape):
        return None
    return _VALUES_IN_USE.get(spec.name.rpartition("/")[2].partition(":")[0].lower())


def _read_side_file(graph: Path, name: str) -> bytes:
    """The content of a file with weights, which lies in the model's folder."""
    folder, path = graph.parent, graph.parent / name
    shown = printable(Path(name).name if Path(name).is_absolute() else name)
    where = f"{folder.parent.name}/{folder.name}/{shown}"
    missing = f"is missing, and {graph.name} has weights in it: put it back, or save the graph with its weights inside."
    outside = "leads out of the model's folder; copy the file to this place, or save the graph with its weights inside."
    with open_file(path, where, missing=missing, inside=(folder, folder.parent), outside=outside) as file:
        content = file.read()
    if is_lfs_content(content):
        raise ManifestInvalid(
            where, "is a Git LFS pointer, not the weights themselves; run `git lfs pull`. Or copy the file itself here."
        )
    return content


def _parsed(content: bytes, where: str) -> Any:
    """A graph file's content; None where it is none that can be read here, though the runtime could."""
    try:
        return parse_model(content)
    except (DecodeError, ValueError) as error:
        log.debug("the operators are not known", graph=where, reason=str(error))
        return None


def _explain(error: Exception, path: Path) -> str:
    """ONNX Runtime's message as a sentence to act on, without paths of this machine."""
    text = str(error).replace(str(path), path.name).replace(str(path.parent), "")
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text).strip()
    version = ort.__version__
    if "Unsupported model IR version" in text or ("opset" in text.lower() and "support" in text.lower()):
        return (
            f"was exported for a newer ONNX than onnxruntime {version} reads ({without_folders(text)}). "
            "Export it again with a lower opset and IR version, or install a newer onnxruntime."
        )
    if any(words in text.lower() for words in ("external data", "external initializer", "file_size")):
        return "its weights are in a side file that is cut short or not there. Copy it again, or save both in one file."
    if "protobuf parsing failed" in text.lower() or "No graph was found" in text:
        return "is not an ONNX file, or only half of one. Copy or export it again."
    if found := re.search(r"Could not find an implementation for (\w+)\((\d+)\)", text):
        return (
            f"has an operator {found[1]} of opset {found[2]} that onnxruntime {version} does not compute for values of "
            "its type. Export it again in float32, or install a newer onnxruntime."
        )
    return f"cannot be loaded by onnxruntime {version}: {without_folders(text)}"
