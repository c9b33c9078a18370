"""Weights in a file, packed as the runtime multiplies with them: opened by mapping the file into memory.

When ONNX Runtime opens a graph, it rearranges the weights and keeps the result to itself, for every session and every
process once more. A *packed copy* of a graph has them rearranged already, in a file beside it. Whoever opens it shares
one copy of them in the system's file cache: the workers, and the second session of a worker, for lone runs.

Not every kernel of the runtime can do this: with onnxruntime 1.31 some graphs crash. So a copy is made, opened and
tried by a process of its own, and taken only if it gives the same numbers. Graphs that branch are left alone, for a
sample does not go through all of them. Copies are kept in the user's cache folder, each for one graph, one runtime and
one kind of processor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import structlog

from service.cpu import processor_kind
from service.graph import Array
from service.runtime.cache import cache_place
from service.runtime.eight_bits import keep_sums_exact

log = structlog.get_logger(__name__)

TRIAL_S = 60.0
"""A trial that takes longer has failed (seconds)."""
UNUSED_S = 30 * 24 * 3600
"""Copies that nobody opened for so long are removed when a new one is made (seconds)."""
ROOM = 3
"""A copy is only made where so many times the graph's size is free; it takes up to two (factor)."""

_FORMAT = 2
_BRANCHES = (b"then_branch", b"else_branch", b"body")
"""Attributes of the operators that have graphs of their own: If, Loop, Scan."""
_EXTERNAL = b"\x0a\x08location"
"""How a graph file names another one that has its weights: a protobuf string, field 1 of `StringStringEntryProto`."""


def packed_copy(graph: Path, digest: str, sample: Mapping[str, Array]) -> Path | None:
    """The packed copy of a graph; it is made now if it was not before.

    Args:
        graph: the `.onnx` file, with its weights inside.
        digest: of that file.
        sample: every input, for the trial.

    Returns:
        The copy's `.onnx` file; None where there is no place for it, or the trial failed, now or earlier.
    """
    folder = cache_place("packed", _FORMAT, digest, processor_kind(), ort.__version__)
    if folder is None:
        return None
    copy = folder / "model.onnx"
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(folder.parent).free < ROOM * graph.stat().st_size:
                return None
            _remove_unused(folder.parent)
            _make(graph, folder, sample)
        os.utime(folder)
    except OSError as error:
        log.debug("no packed copy", graph=graph.name, reason=error.strerror)
    return copy if copy.is_file() else None


def forget(copy: Path) -> None:
    """Remove a copy that cannot be used, so that it is made again."""
    shutil.rmtree(copy.parent, ignore_errors=True)


def prepare(options: ort.SessionOptions) -> None:
    """Set options as a copy is to be opened: optimised it is already, and its file is mapped."""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")


def _make(graph: Path, folder: Path, sample: Mapping[str, Array]) -> None:
    """Make the copy in its folder; where the trial fails, the folder holds the reason instead."""
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder.parent))
    try:
        np.savez(draft / "sample.npz", **{f"@{name}": array for name, array in sample.items()})  # type: ignore[arg-type]
        command = [sys.executable, "-m", "service.runtime.packed", str(graph), str(draft)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            trial = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=TRIAL_S, env=environment, check=False
            )
            failed = trial.returncode and (trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            failed = f"more than {TRIAL_S:g} s"
        (draft / "sample.npz").unlink()
        if failed:
            log.debug("weights are not packed into a file", graph="/".join(graph.parts[-3:]), reason=failed)
            for file in draft.iterdir():
                file.unlink()
            (draft / "refused.txt").write_text(failed)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    for other in folder.iterdir():
        if other.stat().st_mtime < time.time() - UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)


def _plain() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    keep_sums_exact(options)
    return options


def _try(graph: Path, draft: Path) -> None:
    """Make a copy and see that it gives what the graph gives. In a process of its own."""
    sample = {name[1:]: array for name, array in np.load(draft / "sample.npz").items()}
    if _EXTERNAL in graph.read_bytes():  # the room for a copy is measured by the graph file alone
        raise SystemExit("its weights are in another file")
    options = _plain()
    options.optimized_model_filepath = str(draft / "model.onnx")
    for key, value in {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": "weights.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }.items():
        options.add_session_config_entry(key, value)
    original = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    if any(name in (draft / "model.onnx").read_bytes() for name in _BRANCHES):
        raise SystemExit("the graph branches")
    with (draft / "weights.bin").open("rb") as weights:
        os.fsync(weights.fileno())
    options = _plain()
    prepare(options)
    copy = ort.InferenceSession(str(draft / "model.onnx"), options, providers=["CPUExecutionProvider"])
    is_free = not isinstance(original.get_inputs()[0].shape[0], int)
    for rows in (1, 3) if is_free else (1,):
        feeds = {name: np.repeat(array, rows, axis=0) for name, array in sample.items()}
        if not same(original.run(None, feeds), copy.run(None, feeds)):
            raise SystemExit("the copy gives other numbers")


def same(ones: Any, others: Any) -> bool:
    """Whether two lists of arrays are equal, bit for bit where they are numbers."""
    pairs = ((np.asarray(a), np.asarray(b)) for a, b in zip(ones, others, strict=True))
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


if __name__ == "__main__":
    _try(Path(sys.argv[1]), Path(sys.argv[2]))
