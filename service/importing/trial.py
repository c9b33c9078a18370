"""Runs of a graph on numbers that somebody could send: whether it runs, and whether its rows are apart."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from service.graph import Array, Signature
from service.importing.source import Source

LENGTHS = (8, 16, 64, 1, 512)
"""Of free axes, that are tried until one runs (count)."""
_BATCH_NAMES = ("n", "b", "bs", "batch", "batch_size", "batchsize", "batch_dim")


def run(source: Source, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a run, floats of 16 bits as 32; none where it fails."""
    halves = {name for name, spec in source.session.signature.inputs.items() if spec.dtype == "float16"}
    given = {name: array.astype(np.float16) if name in halves else array for name, array in tensors.items()}
    try:
        outputs = source.session.run(given)
    except Exception:  # ONNX Runtime raises a dozen unrelated classes here
        return {}
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in outputs.items()}


def numbers(source: Source, of_state: Mapping[str, str]) -> tuple[dict[str, Array], bool | None]:
    """Numbers for the inputs that run, and whether axis 0 is a batch; None where that was not found out."""
    for length, first, whole in product(LENGTHS, (1, None), (1, 0)):
        tensors = fill(source.signature, length, of_state, first, whole)
        outputs = run(source, tensors)
        if outputs:
            return tensors, _is_batch(source, tensors, outputs)
    return {}, None


def _is_batch(source: Source, tensors: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool | None:
    """Whether two rows computed together are what each is alone."""
    if source.signature.fixed_batch is not None or source.signature.batch_problem is not None:
        return None
    others = {name: _other(array) for name, array in tensors.items()}
    alone = run(source, others)
    together = run(source, {name: np.concatenate([array, others[name]]) for name, array in tensors.items()})
    if not together or not alone:
        return False
    for name, array in together.items():
        apart = np.concatenate([outputs[name], alone[name]]) if outputs[name].ndim else outputs[name]
        same = array.shape == apart.shape and (
            np.allclose(array, apart, rtol=1e-3, atol=1e-4, equal_nan=True)
            if array.dtype.kind == "f"
            else bool(np.all(array == apart))
        )
        if not same:
            return False
    return True


def fill(
    signature: Signature, length: int, of_state: Mapping[str, str], first: int | None = None, whole: int = 0
) -> dict[str, Array]:
    """Numbers for every input of a graph: random ones, zeros for state, one and the same for integers.

    Args:
        signature: the graph's.
        length: of free axes that are no batch.
        of_state: names of the inputs that are state.
        first: of a free first axis, which is a batch more often than not; None: as long as the others.
        whole: for inputs of integers, which may be indices.
    """
    random = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for name, spec in signature.inputs.items():
        shape = [
            axis if isinstance(axis, int)
            else 1 if (axis or "").lower() in _BATCH_NAMES or name in of_state
            else first or length if place == 0
            else length
            for place, axis in enumerate(spec.shape)
        ]  # fmt: skip
        if spec.dtype == "object":
            tensors[name] = np.full(shape, "", object)
        elif spec.dtype.startswith("float") and name not in of_state:
            tensors[name] = random.normal(size=shape).round(3).astype(spec.dtype)
        elif name == "sequence_lens":
            tensors[name] = np.full(shape, length, spec.dtype)
        else:
            tensors[name] = np.full(shape, 0 if name in of_state else whole, spec.dtype)
    return tensors


def _other(array: Array) -> Array:
    """Other numbers of the same shape; a text is the same again."""
    if array.dtype.kind == "f":
        return array[..., ::-1]
    return array if array.dtype == object else np.zeros_like(array)
