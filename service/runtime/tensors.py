"""Stacking callers' tensors into one batch and splitting the outputs again: pure functions on arrays.

Rows of unequal length may share a batch when the graph has a `sequence_lens` input: they are padded along the ragged
axis, the graph's recurrent operators stop at each row's own length, and every output that has the axis is trimmed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from service.graph import Array, Run, Signature


def batch_key(run: Run, signature: Signature) -> Hashable:
    """What two runs must have in common to share a batch: outputs asked for, and each tensor's dtype and row shape.

    A ragged axis counts by its power of two, so that padding at most doubles the work.
    """
    if run.whole:
        return object()  # equal to no other
    ragged = signature.ragged_inputs
    key: list[Hashable] = [run.outputs]
    for name, array in run.tensors.items():
        shape: tuple[int, ...] = array.shape[1:]
        if name in ragged:
            shape = ((max(shape[0], 1) - 1).bit_length(), *shape[1:])
        key.append((name, array.dtype.char, shape))
    return tuple(key)


def stack(runs: Sequence[Run], signature: Signature) -> dict[str, Array]:
    """Concatenate the tensors of several runs along the batch axis, padding the ragged axis with zeros.

    Args:
        runs: with equal `batch_key`.
        signature: the graph they are for.

    Returns:
        Name -> array; rows in the order of `runs`.
    """
    if len(runs) == 1:
        return dict(runs[0].tensors)
    feeds = {}
    for name in runs[0].tensors:
        parts = [run.tensors[name] for run in runs]
        if len({part.shape[1:] for part in parts}) > 1:
            parts = _pad(parts)
        feeds[name] = np.concatenate(parts)
    return feeds


def _pad(parts: Sequence[Array]) -> list[Array]:
    longest = max(part.shape[1] for part in parts)
    return [
        np.pad(part, [(0, 0), (0, longest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)])
        if part.shape[1] < longest
        else part
        for part in parts
    ]


def split(outputs: Mapping[str, Array], runs: Sequence[Run], signature: Signature) -> list[dict[str, Array]]:
    """Give every run its own rows of the outputs, trimmed to its own length along the ragged axis.

    The inverse of `stack`; outputs may have more arrays than the graph. Views, not copies.
    """
    ragged = signature.ragged_axis
    trimmed = {
        name
        for name, spec in signature.outputs.items()
        if ragged is not None and name in outputs and len(spec.shape) > 1 and spec.shape[1] == ragged
    }
    shares, start = [], 0
    for run in runs:
        end = start + run.rows
        length = run.tensors[signature.ragged_inputs[0]].shape[1] if trimmed else 0
        shares.append(
            {
                name: array[start:end, :length] if name in trimmed else array[start:end]
                for name, array in outputs.items()
            }
        )
        start = end
    return shares


def pad_rows(feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Repeat the last row until there are `rows`, for graphs whose batch axis is a fixed number."""
    return {
        name: np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array
        for name, array in feeds.items()
    }
