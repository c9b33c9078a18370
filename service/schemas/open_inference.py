"""The Open Inference Protocol's messages (version 2, REST), as the OpenAPI document shows them.

Requests to infer are not validated with these types but by `service.api.open_inference.codec`, straight into arrays.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

# Named aliases: a generated client has one class of each, not one for every field.
DatatypeName = TypeAliasType(
    "DatatypeName",
    Literal[
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "FP32",
        "FP64",
        "BYTES",
    ],
)
Parameters = TypeAliasType("Parameters", dict[str, str | float | bool])


class ProtocolError(BaseModel):
    """The body of every error below `/v2`."""

    error: str = Field(description="What was wrong, and what to do about it.")


class ServerMetadata(BaseModel):
    """What this server is."""

    name: str = Field(examples=["gridloop"])
    version: str
    extensions: list[str] = Field(
        description="Parts of the protocol beyond its core.", examples=[["binary_tensor_data"]]
    )


class ServerLive(BaseModel):
    """The process answers."""

    live: bool


class ServerReady(BaseModel):
    """Every model that must be there can answer."""

    ready: bool


class ModelReady(ServerReady):
    """The model can answer."""

    name: str = Field(examples=["series-gru"])


class ModelNames(BaseModel):
    """Models that can answer."""

    models: list[str] = Field(examples=[["cifar10-cnn", "english-lstm", "series-gru"]])


class TensorMetadata(BaseModel):
    """One tensor of a graph."""

    name: str = Field(examples=["values"])
    datatype: DatatypeName = Field(examples=["FP64"])
    shape: list[int] = Field(description="-1 where the axis is free; axis 0 is the batch.", examples=[[-1, -1]])
    parameters: Parameters | None = Field(
        default=None, description='`{"optional": true}` on an input that may be left out: it then starts from zero.'
    )


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    model_config = ConfigDict(protected_namespaces=())

    name: str = Field(examples=["series-gru"])
    versions: list[str] = Field(description="Versions that are ready, oldest first.", examples=[["2"]])
    platform: str = Field(examples=["onnxruntime_onnx"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferInput(BaseModel):
    """One input tensor: its values in `data`, or after the JSON part with `binary_data_size`."""

    name: str = Field(description="As in the model's metadata.", examples=["values"])
    shape: list[int] = Field(description="All axes, the batch first.", examples=[[1, 4]])
    datatype: DatatypeName = Field(description="Exactly the model's.", examples=["FP64"])
    parameters: Parameters | None = Field(
        default=None, description="`binary_data_size`: bytes of this tensor after the JSON part."
    )
    data: list[Any] | None = Field(
        default=None, description="The values, flat or nested, row by row.", examples=[[1.0, 2.0, 3.0, 4.0]]
    )


class InferOutput(BaseModel):
    """One output that is wanted."""

    name: str = Field(description="As in the model's metadata.", examples=["expected"])
    parameters: Parameters | None = Field(
        default=None, description="`binary_data`: whether this output comes after the JSON part."
    )


class InferenceRequest(BaseModel):
    """Tensors for a model; further fields are ignored."""

    id: str | None = Field(default=None, description="Comes back in the answer.", examples=["42"])
    parameters: Parameters | None = Field(
        default=None,
        description="`binary_data_output`: whether outputs come after the JSON part. Names that start with `triton_` "
        "are reserved; others are ignored.",
    )
    inputs: list[InferInput] = Field(description="Every input that the metadata does not call optional.")
    outputs: list[InferOutput] | None = Field(default=None, description="Outputs wanted; left out or empty: all.")


class OutputTensor(BaseModel):
    """One output tensor: its values in `data`, or after the JSON part with `binary_data_size`."""

    name: str = Field(examples=["expected"])
    datatype: DatatypeName = Field(examples=["FP64"])
    shape: list[int] = Field(examples=[[1, 4]])
    parameters: Parameters | None = Field(
        default=None,
        description="`binary_data_size`: bytes of this tensor after the JSON part. `nonfinite_count`: values that are "
        "NaN or infinite and therefore null in `data`.",
    )
    data: list[Any] | None = Field(default=None, description="The values, flat, row by row.")


class InferenceResponse(BaseModel):
    """Tensors of a model, in the order in which they were asked for, else in the model's."""

    model_config = ConfigDict(protected_namespaces=())

    id: str | None = Field(default=None, description="The request's, where it had one.")
    model_name: str = Field(examples=["series-gru"])
    model_version: str = Field(description="The version that answered.", examples=["2"])
    outputs: list[OutputTensor]
