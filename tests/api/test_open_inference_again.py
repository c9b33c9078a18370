"""Requests whose bytes around the values came before are read by a shorter way: what comes out is the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.api.open_inference import codec as codec_module
from service.api.open_inference.codec import Codec
from service.errors import ServiceError
from service.graph import Signature, TensorSpec
from service.tasks.base import ModelRef

SIGNATURE = Signature({"x": TensorSpec("x", "float32", ("batch", 3))}, {"y": TensorSpec("y", "float32", ("batch", 3))})
WHOLE = Signature({"x": TensorSpec("x", "int64", ("batch", 3))}, SIGNATURE.outputs)
TEXT = Signature({"x": TensorSpec("x", "object", ("batch", 3))}, SIGNATURE.outputs)
PLAIN = '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}]}'


def codec(signature: Signature = SIGNATURE) -> Codec:
    return Codec(ModelRef(name="m", version="1"), signature, max_bytes=1 << 20, max_length=100, max_rows=100)


def told(reader: Codec, body: str) -> Any:
    """What the graph would be given and the answer, or what the caller is told."""
    try:
        steps = reader.steps(body.encode(), None)
        run = next(steps)
        arrays = {name: (array.dtype.str, array.shape, array.tolist()) for name, array in run.tensors.items()}
        with pytest.raises(StopIteration) as stop:
            steps.send({"y": np.ones((run.rows, 3), np.float32)})
        return arrays, run.outputs, json.loads(stop.value.value.body)
    except ServiceError as error:
        return type(error).__name__, str(error)


VALUES = (
    "[1,2,3]",
    "[0.1, -2e-3 ,3]",
    "[ 1 ,\n2 ,\t3 ]",
    "[-0.0,1e38,16777217]",
    "[1,2]",
    "[1,2,3,4]",
    "[]",
    "[1,2,null]",
    "[1,2,true]",
    "[false,2,3]",
    '[1,2,"3"]',
    "[1,2,1e39]",
    "[1,2,1e999]",
    "[1,2,NaN]",
    "[1,2,Infinity]",
    "[1,2,3,]",
    "[1,2,03]",
    "[1,2,3]]",
    "[[1,2,3]]",
    "[[1],[2,3]]",
    "[1,2,[3]]",
    "[1,2,{}]",
    "[1,2,3",
    "{}",
    "3",
    "null",
    '["a","]","c"]',
    "[9223372036854775807,2,3]",
    "[9223372036854775808,2,3]",
)
FRAMES = (
    PLAIN,
    '{"inputs":[{"data":%s,"name":"x","shape":[1,3],"datatype":"FP32"}],"outputs":[{"name":"y"}]}',
    '{"inputs":[{"data":[%s],"name":"x","shape":[1,3],"datatype":"FP32"}]}',
    '{"id":"7","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}]}',
    # The first "data" is not the one that counts.
    '{"more":{"data":[1,2,3]},"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}]}',
    '{"more":{"data":%s},"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s,"data":[1,2,3]}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3],"data":%s}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}],'
    '"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}],'
    '"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
    '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","x":"\\"data\\":","d\\u0061ta":%s}]}',
    '{"x":"\\"data\\":%s","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
    # A shape where the values are expected.
    '{"inputs":[{"name":"x","datatype":"FP32","data":%s,"shape":[1,3]}]}',
    '{"inputs":[{"name":"x","datatype":"FP32","data":3,"shape":%s}]}',
)


@pytest.mark.parametrize("signature", [SIGNATURE, WHOLE, TEXT], ids=["numbers", "whole numbers", "strings"])
@pytest.mark.parametrize("frame", FRAMES)
def test_the_same_comes_out_whatever_came_before(frame: str, signature: Signature) -> None:
    if signature is not SIGNATURE:
        frame = frame.replace("FP32", "INT64" if signature is WHOLE else "BYTES")
    reader = codec(signature)
    taught = ['["a","b","c"]'] if signature is TEXT else ["[1,2,3]", "[4,5,6]"]
    for values in (*taught, *VALUES, *VALUES):
        body = frame.replace("%s", values)
        assert told(reader, body) == told(codec(signature), body), body


def test_the_shorter_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = codec()
    told(reader, PLAIN % "[1,2,3]")
    monkeypatch.setattr(reader, "_read_json", None)  # calling it would fail
    arrays, _, _ = told(reader, PLAIN % "[4,5,6.5]")
    assert arrays["x"] == ("<f4", (1, 3), [[4, 5, 6.5]])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "REMEMBERED_FRAMES", 3)
    reader = codec()
    for spaces in range(10):
        told(reader, " " * spaces + PLAIN % "[1,2,3]")
        told(reader, " " * (spaces + codec_module.REMEMBERED_BYTES) + PLAIN % "[1,2,3]")
        assert 1 <= len(reader._frame_around) <= 3
