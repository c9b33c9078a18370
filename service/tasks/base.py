"""What a task is: public types, and a generator that turns a request into runs and their outputs into an answer.

A task never calls the runtime. It *yields* a `Run` (tensors) and is sent that run's outputs, as often as it needs,
and finally returns the public answer:

    def steps(self, request):
        tensors, sizes = self.decode(request)
        outputs = yield Run(tensors)
        return self.encode(request, sizes, outputs)

So decode and encode stay pure functions, the batcher is free to execute the runs of many callers together, a beam
search is a plain loop, and the command line drives the same generator without a server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidState, ManifestInvalid
from service.graph import Array, Run, Signature, Steps, TensorSpec
from service.state import State, pack, unpack

__all__ = [
    "Array",
    "Limits",
    "MediaInput",
    "ModelFolder",
    "ModelRef",
    "Run",
    "Signature",
    "Steps",
    "Task",
    "TaskInput",
    "TaskOptions",
    "TaskOutput",
    "TensorSpec",
    "Upload",
]

ModelField = Field(
    default=None,
    description="`name` or `name@version`; left out: the task's default model at its default version.",
    max_length=256,
)


class TaskInput(BaseModel):
    """Base of every task's request: unknown fields are refused, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = ModelField

    @property
    def rows(self) -> int:
        """Rows of the batch that this request will need at once; what the queue's limit counts."""
        return 1


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a request: its bytes, and the name and content type the caller gave."""

    data: bytes
    filename: str | None = None
    content_type: str | None = None


class MediaInput(TaskInput):
    """Base of requests that carry files: the fields are query parameters, the files are the body.

    One file is the raw body; several are multipart parts named `file`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    files: tuple[Upload, ...] = Field(default=(), exclude=True)

    @property
    def rows(self) -> int:
        return len(self.files)


class ModelRef(BaseModel):
    """The model that really answered."""

    name: str = Field(description="Folder name of the model.", examples=["english-lstm"])
    version: str = Field(description="Version folder that answered.", examples=["1"])


class TaskOutput(BaseModel):
    """Base of every task's answer: it starts with the model that really answered.

    Numeric fields may hold NumPy arrays instead of lists (built with `model_construct`): the JSON encoder writes
    them straight from memory.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: ModelRef

    def to_json(self) -> bytes:
        """The answer as JSON bytes; a number that is not finite becomes null."""
        return orjson.dumps(self, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    """What the JSON encoder cannot write itself."""
    if isinstance(value, BaseModel):
        fields, given = value.__dict__, value.model_fields_set
        # What was not given (a heatmap nobody asked for) is left out.
        return fields if len(fields) == len(given) else {n: v for n, v in fields.items() if n in given}
    if isinstance(value, np.ndarray):  # not contiguous
        return np.ascontiguousarray(value)
    raise TypeError(f"{type(value).__name__} in an answer")


class TaskOptions(BaseModel):
    """Base of what a task reads from a model's manifest, beside the keys that every manifest may have.

    A field that is a model itself is a TOML table of that name. What is declared nowhere is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


OutputT = TypeVar("OutputT", bound=TaskOutput)
InputT = TypeVar("InputT", bound=TaskInput)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest requests that a server takes; each has a `GRIDLOOP_` setting of the same name."""

    max_image_pixels: int = 50_000_000
    max_series_points: int = 100_000
    max_text_chars: int = 100_000


@dataclass(frozen=True)
class ModelFolder:
    """One version of a model on disk, as a task sees it.

    Attributes:
        name: the model's folder name.
        version: the version's folder name.
        path: the version's folder, with the files the task needs beside `model.onnx`.
        signature: the graph's inputs and outputs.
        options: the manifest's keys and tables that are the task's own, as read from TOML; `Task.options` checks them.
        limits: the server's limits.
    """

    name: str
    version: str
    path: Path
    signature: Signature
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def ref(self) -> ModelRef:
        """Name and version, as every answer starts."""
        return ModelRef(name=self.name, version=self.version)

    def pack_state(self, arrays: Mapping[str, Array], extra: Mapping[str, Any] | None = None) -> str:
        """A stream's memory as a token for the client: recurrent state without a batch axis, and what the task adds."""
        return pack(self.name, self.version, State(arrays, extra or {}))

    def unpack_state(self, token: str) -> State:
        """The way back from `pack_state`.

        Raises:
            InvalidState: the token is damaged, another model's, or its arrays are not those of the graph.
        """
        state = unpack(self.name, self.version, token)
        fresh = self.signature.fresh_state()
        found = {name: (array.shape, array.dtype) for name, array in state.arrays.items()}
        if found != {name: (array.shape[1:], array.dtype) for name, array in fresh.items()}:
            raise InvalidState("does not fit this model")
        return state

    def lines(self, filename: str) -> list[str]:
        """Entries of a text file of this version, one a line.

        Raises:
            ManifestInvalid: the file is missing, empty or not UTF-8.
        """
        where = f"{self.name}/{self.version}/{filename}"
        try:
            text = (self.path / filename).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ManifestInvalid(where, f"is missing; put {filename} beside model.onnx, one entry a line.") from None
        except UnicodeDecodeError:
            raise ManifestInvalid(where, "is not UTF-8 text; save it as UTF-8.") from None
        if not text.strip():
            raise ManifestInvalid(where, "is empty; it needs one entry a line.")
        return text.removesuffix("\n").split("\n")

    def input(self, name: str, *, dtype: str | tuple[str, ...], rank: int) -> TensorSpec:
        """The graph's input of that name, checked.

        Raises:
            ManifestInvalid: there is none, or its element type or number of axes is another.
        """
        return self._tensor("input", self.signature.inputs, name, dtype, rank)

    def output(self, name: str, *, dtype: str | tuple[str, ...], rank: int) -> TensorSpec:
        """The graph's output of that name, checked as `input` does."""
        return self._tensor("output", self.signature.outputs, name, dtype, rank)

    def _tensor(
        self, side: str, specs: Mapping[str, TensorSpec], name: str, dtype: str | tuple[str, ...], rank: int
    ) -> TensorSpec:
        where = f"{self.name}/{self.version}/model.onnx"
        spec = specs.get(name)
        there = "; ".join(map(str, specs.values()))
        if spec is None:
            raise ManifestInvalid(where, f"has no {side} named {name!r}, which this task needs; it has: {there}.")
        dtypes = (dtype,) if isinstance(dtype, str) else dtype
        if spec.dtype not in dtypes or len(spec.shape) != rank:
            raise ManifestInvalid(where, f"{side} {spec} should be {' or '.join(dtypes)} with {rank} axes.")
        return spec


class Task(ABC, Generic[InputT, OutputT]):
    """One kind of question that models answer, such as image classification.

    A subclass is the whole definition: the service makes its endpoint, its OpenAPI entry and its command line
    from the class attributes. One instance belongs to one loaded model version; `__init__` reads what it needs from
    the folder and refuses a graph that does not fit.

    Attributes:
        name: the endpoint: `POST /v1/<name>`.
        Input: request type; a `MediaInput` makes the endpoint take files.
        Output: answer type.
        Options: keys and tables of the manifest that this task reads, such as `[preprocessing]`; left out: none.
        options: what the model's manifest says there, checked.
        media: content types of the files taken; empty for JSON tasks.
        summary: the question it answers, in a few words.
        sample_file: file name in the curl line of `GET /v1/models`, for tasks that take files.
        sample_data_url: a small file as a data URL, which the documentation page sends.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Input: ClassVar[type[TaskInput]]
    Output: ClassVar[type[TaskOutput]]
    Options: ClassVar[type[TaskOptions]] = TaskOptions
    media: ClassVar[tuple[str, ...]] = ()
    sample_file: ClassVar[str] = "file"
    sample_data_url: ClassVar[str] = ""

    options: TaskOptions

    def __init__(self, folder: ModelFolder) -> None:
        """Read what the task needs from the model's folder.

        Raises:
            ManifestInvalid: a file is missing, the graph's tensors do not fit the task, or the manifest has keys that
                are not known or values that cannot be.
        """
        self.folder = folder
        try:
            self.options = self.Options.model_validate(folder.options)
        except ValidationError as error:
            problems = "; ".join(self._problem(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors())
            where = f"{folder.name}/manifest.toml"
            if (folder.path / "manifest.toml").exists():
                where = f"{folder.name}/{folder.version}/manifest.toml over {where}"
            raise ManifestInvalid(where, f"{problems}.") from None

    def _problem(self, place: tuple[int | str, ...], kind: str, message: str, value: Any) -> str:
        """What is wrong with one key or table of the manifest, such as `[preprocessing] resize = 3: ...`."""
        top, *inner = map(str, place)
        key = f"[{top}]" if inner or isinstance(value, Mapping) else top
        where = f"{key} {'.'.join(inner)}".strip()
        if kind == "extra_forbidden" and not inner:
            known = ", ".join(self.Options.model_fields) or "nothing"
            return (
                f"{where} is not known; models/README.md lists the keys of every manifest, "
                f"and {self.name} reads beside them: {known}"
            )
        if kind == "extra_forbidden":
            return f"{where} is not known; remove it or correct its name"
        if kind == "model_type":
            return f"{where} must be a table: write [{'.'.join([top, *inner])}] and its keys below"
        shown = "" if isinstance(value, Mapping) else f" = {value!r}"
        return f"{where}{shown}: {message.removeprefix('Value error, ')}"

    @classmethod
    def recognises(cls, data: bytes) -> bool:
        """Whether a body is plainly a file of the kind this task takes, for clients that do not say what they send."""
        return False

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """Bodies that can be posted as they are: the `examples` of the input's schema."""
        extra = cls.Input.model_config.get("json_schema_extra")
        found = extra.get("examples") if isinstance(extra, dict) else None
        return [example for example in found if isinstance(example, dict)] if isinstance(found, list) else []

    def prepare(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Turn the tensors of a whole batch into the graph's inputs: for what is cheaper done once for all rows.

        Args:
            tensors: of runs that this task asked for, stacked; or the graph's own inputs, which come back unchanged.
        """
        return tensors

    def finish(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Add to the outputs of a whole batch what its answers need: for what is cheaper done once for all rows.

        Args:
            outputs: the graph's; or already finished ones, which come back unchanged.

        Returns:
            These, and more arrays of as many rows under names that the graph does not use.
        """
        return outputs

    @abstractmethod
    def steps(self, request: InputT) -> Steps[OutputT]:
        """Answer a request: yield runs, receive their outputs, return the answer.

        Raises:
            InvalidInput: nothing can be inferred from this request.
            TooLarge: it is over one of `self.folder.limits`.
        """
