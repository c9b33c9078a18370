"""Element types of tensors: the protocol's names beside NumPy's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """An element type.

    Attributes:
        name: the protocol's.
        dtype: NumPy's; object for text.
        code: the letter of `struct`; empty for text.
        takes: what JSON values it takes, in words.
    """

    name: str
    dtype: np.dtype[Any]
    code: str
    takes: str


def _integer(name: str, dtype: str, code: str) -> Datatype:
    info = np.iinfo(dtype)
    return Datatype(name, np.dtype(dtype), code, f"whole numbers from {info.min} to {info.max}")


def _float(name: str, dtype: str, code: str) -> Datatype:
    return Datatype(name, np.dtype(dtype), code, f"numbers up to ±{float(np.finfo(dtype).max):.4g}")


DATATYPES: Mapping[str, Datatype] = {
    str(datatype.dtype): datatype
    for datatype in (
        Datatype("BOOL", np.dtype(bool), "?", "true and false"),
        *(_integer(f"UINT{8 * 2**n}", f"uint{8 * 2**n}", code) for n, code in enumerate("BHIQ")),
        *(_integer(f"INT{8 * 2**n}", f"int{8 * 2**n}", code) for n, code in enumerate("bhiq")),
        *(_float(f"FP{16 * 2**n}", f"float{16 * 2**n}", code) for n, code in enumerate("efd")),
        Datatype("BYTES", np.dtype(object), "", "strings"),
    )
}
"""NumPy's name of an element type -> how it goes over the wire."""
