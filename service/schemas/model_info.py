"""What `GET /v1/models` tells about a model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Tuning(BaseModel):
    """How a graph is run, and what was measured."""

    max_batch_size: int = Field(description="Most rows in one run.", examples=[16])
    turn_rows: int = Field(
        description="Rows that are gathered and worked on together, in one run or several.", examples=[32]
    )
    lone_threads: int = Field(
        description="Threads of a run that has the machine to itself; all other runs take one each.", examples=[2]
    )
    source: Literal["manifest", "measured", "remembered", "inherited", "default"] = Field(
        description="Who chose the batch size: the model's manifest; a measurement now or earlier; one of a "
        "version before, whose graph looks the same; nobody, for want of "
        "a golden sample to measure with."
    )
    ms_per_row: dict[int, float] = Field(
        default={},
        description="Measured on one core with the first golden sample: rows in a run -> milliseconds a row.",
    )
    lone_ms: dict[int, float] = Field(default={}, description="Measured: threads -> milliseconds of a run of one row.")


class TensorInfo(BaseModel):
    """A graph input or output."""

    name: str = Field(examples=["values"])
    dtype: str = Field(description="NumPy's name of the element type.", examples=["float64"])
    shape: list[int | str | None] = Field(description="A number where the axis is fixed.", examples=[["batch", "time"]])


class ValueInfo(BaseModel):
    """A number that a model estimates."""

    name: str = Field(examples=["red_blood_cells"])
    unit: str = Field(description="What it is counted or measured in.", examples=["cells"])


class GraphInfo(BaseModel):
    """One of the graphs of a version that has several."""

    name: str = Field(
        description="Name of its file without `.onnx`; `/v2/models/<model>:<name>` is this graph.", examples=["decoder"]
    )
    size_bytes: int = Field(description="Size of its file, and of the files beside it that have weights of it.")
    digest: str = Field(description="SHA-256 over the same files.")
    tuning: Tuning = Field(description="How it is run, and what was measured for that.")
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class VersionInfo(BaseModel):
    """One version of a model."""

    version: str = Field(examples=["1"])
    state: Literal["ready", "lazy", "loading", "failed", "unloaded"] = Field(
        description="`lazy`: it is loaded when it is first asked for, in each worker by itself."
    )
    reason: str | None = Field(
        default=None, description="Why it is not ready; of one that is, why what its folder holds now is not served."
    )
    size_bytes: int | None = Field(
        default=None,
        description="Size of the graph files, and of the files beside them that have weights of theirs.",
        examples=[1_234_567],
    )
    digest: str | None = Field(default=None, description="SHA-256 over the same files: equal on equal replicas.")
    licence: str | None = Field(default=None, description="Of its weights and, where it matters, of their data.")
    metrics: dict[str, float] = Field(default={}, description="Figures that the model card claims of it.")
    tuning: Tuning | None = Field(
        default=None, description="How its main graph is run, and what was measured for that."
    )
    inputs: list[TensorInfo] = Field(default=[], description="The main graph's inputs, read from the file.")
    outputs: list[TensorInfo] = Field(default=[], description="The main graph's outputs.")
    graphs: list[GraphInfo] = Field(
        default=[],
        description="All graphs of a version that has several, the main one first; empty where there is one.",
    )


class ModelInfo(BaseModel):
    """A model folder, as it is served."""

    name: str = Field(description="Name of the folder.", examples=["cifar10-cnn"])
    task: str | None = Field(
        description="The endpoint that serves it: `POST /v1/<task>`; `tensor` has none but `/v2/models/<name>/infer`.",
        examples=["image-classification"],
    )
    architecture: str | None = Field(examples=["cnn"])
    description: str = ""
    licence: str = Field(default="", description="Of the default version.")
    is_default: bool = Field(description="Whether it answers requests of its task that name no model.")
    default_version: str | None = Field(examples=["1"])
    versions: list[VersionInfo]
    inputs: list[TensorInfo] = Field(description="Of the default version.")
    outputs: list[TensorInfo] = Field(description="Of the default version.")
    size_bytes: int | None = Field(description="Of the default version.")
    labels: list[str] | None = Field(
        default=None,
        description="Of the default version's answers, in the order of their `index`; null where it has none.",
        examples=[["cat", "dog"]],
    )
    values: list[ValueInfo] | None = Field(
        default=None,
        description="Numbers that the default version estimates, in the order of its answers; null where it has none.",
    )
    metrics: dict[str, float] = Field(description="Figures that the model card claims of the default version.")
    reason: str | None = Field(default=None, description="Why the folder cannot be served, when it cannot.")
    curl: str = Field(description="A line to paste into a terminal.")


class ModelCard(ModelInfo):
    """A model with its card."""

    card: str = Field(description="The model card, markdown.")


class ModelList(BaseModel):
    """Every model folder, those that cannot be served included."""

    models: list[ModelInfo]
