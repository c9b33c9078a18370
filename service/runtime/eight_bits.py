"""Sums of 8-bit products that are right on every processor.

Where a processor has AVX2 or AVX-512 but no VNNI, ONNX Runtime multiplies uint8 by int8 with an instruction that adds
two products in 16 bits and cuts the sum off at 32,767, which 2 · 255 · 65 exceeds. So weights of more than seven bits
give other answers there: one value in ten of some convolutions of cifar10-cnn@3 changes, and one in five of the sums
behind english-lstm's logits. A session can be told to multiply uint8 by uint8 instead, which is exact everywhere and
takes longer. With VNNI it would take longer for nothing; so what this processor does is tried.

References:
    ONNX Runtime, "Quantize ONNX Models": when and why to reduce the range, on processors without VNNI.
"""

from __future__ import annotations

import base64
from functools import cache

import numpy as np
import onnxruntime as ort

__all__ = ["keep_sums_exact", "sums_are_cut_off"]

PRODUCT = base64.b64decode(
    "CAk6XAoYCgFhCgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFnWhMKAWESDgoMCAISCAoCCAEKAggEWhMKAWISDgoMCAMSCAoCCAQKAggQYhMKAXkSDgoM"
    "CAYSCAoCCAEKAggQQgQKABAK"
)
"""The graph y = MatMulInteger(a, b) as an ONNX file: a uint8 (1, 4), b int8 (4, 16), y int32 (1, 16)."""


def keep_sums_exact(options: ort.SessionOptions) -> None:
    """Set the options of a session so that its graph's 8-bit sums are the same on every processor."""
    if sums_are_cut_off():
        options.add_session_config_entry("session.x64quantprecision", "1")


@cache
def sums_are_cut_off() -> bool:
    """Whether ONNX Runtime's kernels for this processor cut sums of uint8 times int8 off: tried once, in milliseconds.

    The processor's own list of instructions would not do: an emulator or a virtual machine may show another's.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 16), 127, np.int8)
    (y,) = session.run(None, {"a": a, "b": b})
    return not np.array_equal(y, a.astype(np.int32) @ b.astype(np.int32))
