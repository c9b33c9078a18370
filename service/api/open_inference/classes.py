"""The classification extension: the highest values of an output, each as `value:index` or `value:index:label`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.graph import Array


def highest(array: Array, count: int, labels: Sequence[str], *, whole: bool) -> Array:
    """The highest values of each row, best first; of equal ones the first comes first, and NaN comes last.

    A value is written with as many digits as tell it from its neighbours, so that nothing of it is lost.

    Args:
        array: an output of numbers; a row of several axes is taken as one long one.
        count: how many are wanted; all where there are fewer.
        labels: by index; left out where a row has another number of values.
        whole: axis 0 is no batch, so that the tensor is one row.

    Returns:
        Strings (batch, count), without the batch where there is none.
    """
    values = array.view(np.uint8) if array.dtype == bool else array
    rows = values.reshape((1, array.size) if whole else (len(array), math.prod(array.shape[1:])))
    width = rows.shape[1]
    named = labels if len(labels) == width else ()
    ranked = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    # Sorted backwards and turned round, equal values stay in their order, and unsigned numbers need no minus.
    order = width - 1 - np.argsort(ranked[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    texts = [
        [f"{row[index]!s}:{index}:{named[index]}" if named else f"{row[index]!s}:{index}" for index in indices]
        for row, indices in zip(rows, order.tolist(), strict=True)
    ]
    return np.array(texts, object).reshape(order.shape[1:] if whole else order.shape)
