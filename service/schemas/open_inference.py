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


RepositoryState = TypeAliasType("RepositoryState", Literal["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"])


class IndexRequest(BaseModel):
    """Which entries of the index are wanted."""

    ready: bool = Field(default=False, description="Only models that can infer.")


class LoadRequest(BaseModel):
    """What may be said with a request to load a model: nothing that has an effect."""

    parameters: dict[str, Any] = Field(default={}, description="`config` and `file:` overrides are 501.")


class UnloadRequest(BaseModel):
    """What may be said with a request to unload a model."""

    parameters: dict[str, Any] = Field(
        default={}, description="`unload_dependents` has no effect: no model depends on another."
    )


class RepositoryEntry(BaseModel):
    """A version of a model in the repository."""

    name: str = Field(examples=["series-gru"])
    version: str | None = Field(default=None, description="Left out where the folder has none.", examples=["2"])
    state: RepositoryState = Field(examples=["READY"])
    reason: str | None = Field(
        default=None, description="Why it cannot infer, or cannot at once, or why what its folder holds now does not."
    )


class TensorConfiguration(BaseModel):
    """One tensor of a graph, as a model's configuration has it."""

    name: str = Field(examples=["values"])
    data_type: str = Field(description="The datatype after `TYPE_`; text is `TYPE_STRING`.", examples=["TYPE_FP64"])
    dims: list[int] = Field(description="Without the batch; -1 where the axis is free.", examples=[[-1]])
    optional: bool = Field(default=False, description="Whether it may be left out.")


class DynamicBatching(BaseModel):
    """How requests of several callers share a run."""

    preferred_batch_size: list[int] = Field(description="Rows of a full run, as measured when the model was loaded.")
    max_queue_delay_microseconds: int = Field(description="0: nobody waits for company.")


class InstanceGroup(BaseModel):
    """Where the model runs."""

    kind: Literal["KIND_CPU"]
    count: int = Field(description="Workers, each of which runs it.")


class ModelConfiguration(BaseModel):
    """How a model is served; a part of Triton's model configuration."""

    name: str = Field(examples=["series-gru"])
    platform: str = Field(examples=["onnxruntime_onnx"])
    backend: str = Field(examples=["onnxruntime"])
    default_model_filename: str = Field(examples=["model.onnx"])
    max_batch_size: int = Field(
        description="Most rows of a request; 0 where axis 0 of the tensors is no batch.", examples=[10_000]
    )
    input: list[TensorConfiguration]
    output: list[TensorConfiguration]
    dynamic_batching: DynamicBatching
    instance_group: list[InstanceGroup]


class Spent(BaseModel):
    """How often something was done, and the time that it took altogether."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """What became of the requests for a model, whichever route they came by."""

    success: Spent = Field(description="Requests that were answered, and all of their time in the model's line.")
    fail: Spent = Field(description="Requests that got an error: refused, too late, or with values that do not fit.")
    queue: Spent = Field(description="Waiting, of those that were answered.")
    compute_input: Spent = Field(description="Reading and preparing their inputs.")
    compute_infer: Spent = Field(description="Runs; each counts for every request that shared it.")
    compute_output: Spent = Field(description="Writing their answers.")
    cache_hit: Spent = Field(description="Always 0: answers are not remembered.")
    cache_miss: Spent = Field(description="Always 0.")


class BatchStatistics(BaseModel):
    """Runs of the same number of rows."""

    batch_size: int = Field(description="Rows.")
    compute_input: Spent = Field(description="Runs, and the time of putting rows of several callers together.")
    compute_infer: Spent = Field(description="Runs, and their own time.")
    compute_output: Spent = Field(description="Runs; the time is 0, being a part of the requests' alone.")


class ModelStatistics(BaseModel):
    """What a version of a model has done since it was loaded, in all workers of the server."""

    name: str = Field(examples=["series-gru"])
    version: str = Field(examples=["2"])
    last_inference: int = Field(description="Milliseconds since 1970; 0 where there was none.")
    inference_count: int = Field(description="Rows of all runs.")
    execution_count: int = Field(description="Runs.")
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    memory_usage: list[str] = Field(description="Empty: the memory of a model is shared with others.", max_length=0)


class ModelsStatistics(BaseModel):
    """What models have done."""

    model_config = ConfigDict(protected_namespaces=())

    model_stats: list[ModelStatistics]


class LogSettings(BaseModel):
    """How the server logs."""

    log_file: str = Field(description="Empty: to stderr.")
    log_info: bool
    log_warning: bool
    log_error: bool
    log_verbose_level: int = Field(description="1 with `GRIDLOOP_LOG_LEVEL=debug`, else 0.")
    log_format: Literal["default", "ISO8601"] = Field(description="Of the times of log lines.")


class TraceSettings(BaseModel):
    """How requests are traced: not into files."""

    trace_level: list[str] = Field(default=["OFF"])
    trace_rate: str = Field(default="0")
    trace_count: str = Field(default="0")
    log_frequency: str = Field(default="0")
    trace_file: str = Field(default="")


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
        default=None,
        description="`binary_data`: whether this output comes after the JSON part. `classification`: so many of the "
        "highest values instead of the tensor, each as `value:index` or `value:index:label`.",
    )


class InferenceRequest(BaseModel):
    """Tensors for a model; further fields are ignored."""

    id: str | None = Field(default=None, description="Comes back in the answer.", examples=["42"])
    parameters: Parameters | None = Field(
        default=None,
        description="`binary_data_output`: whether outputs come after the JSON part. `timeout`: microseconds after "
        "which the answer is of no use, where that is sooner than `X-Request-Timeout`. `priority` has no effect: "
        "requests are worked on in the order in which they come. Names that start with `triton_` are reserved; others "
        "are ignored.",
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
