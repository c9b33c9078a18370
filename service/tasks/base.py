"""What a task is: public types, and a generator that turns a request into runs and their outputs into an answer.

A task never calls the runtime. It *yields* a `Run` (tensors) and is sent that run's outputs, as often as it needs,
and finally returns the public answer:

    def steps(self, request):
        tensors, sizes = self.decode(request)
        outputs = yield Run(tensors)
        return self.encode(request, sizes, outputs)

A task that takes files is a `MediaTask`: it decodes one file at a time and answers those that can be used. An answer in
another format than JSON, such as a picture with boxes drawn, is a `MediaAnswer`.

So decode and encode stay pure functions, the batcher is free to execute the runs of many callers together, a beam
search is a plain loop, and the command line drives the same generator without a server.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import orjson
import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from service import telemetry
from service.errors import (
    FilesUnusable,
    InvalidInput,
    InvalidState,
    ManifestInvalid,
    TooLarge,
    UnsupportedMedia,
    quoted,
)
from service.files import read_text
from service.graph import MAIN_GRAPH, Array, Part, Run, Settled, Signature, Steps, TensorSpec
from service.limits import Limits
from service.manifest_problems import ManifestText, in_words
from service.state import MAX_ARRAY_BYTES, Bounds, OutOfRange, State, StateRange, pack, unpack
from service.tasks.comparison import difference
from service.tasks.terminal import Failure, FileReader, Shown, fields_shown

__all__ = [
    "Array",
    "Fact",
    "FailedFile",
    "FileProblem",
    "Limits",
    "MediaAnswer",
    "MediaInput",
    "MediaTask",
    "ModelFolder",
    "ModelRef",
    "NamedNumber",
    "Run",
    "Settled",
    "Signature",
    "Steps",
    "Task",
    "TaskInput",
    "TaskOptions",
    "TaskOutput",
    "TensorSpec",
    "Understood",
    "Upload",
]

log = structlog.get_logger(__name__)

LAST_EVENTS = DONE, ERROR = ("done", "error")
"""Names of the events that end an answer in parts: with the whole of it, or with a problem."""

FILES_AT_ONCE = 32
"""Files decoded and run at a time (count): a request may hold thousands, whose tensors should not all be in memory."""

_REFERENCE = r"^[^@]+(@[^@]+)?$"


def _check_reference(text: str) -> str:
    """What cannot name a model, whatever models there are, is wrong in itself; what names none is looked up later."""
    name, at, version = text.partition("@")
    if name and bool(at) == bool(version) and "@" not in version:
        return text
    hint = f"; write {quoted(name)} for its default version" if name and at and not version else ""
    raise ValueError(f"{quoted(text)} names no model: it must be `name` or `name@version`, or be left out{hint}")


ModelReference = Annotated[
    str, Field(max_length=256, json_schema_extra={"pattern": _REFERENCE}), AfterValidator(_check_reference)
]
"""`name` or `name@version`."""
ModelField = Field(
    default=None,
    description="`name` or `name@version`; left out: the task's default model at its default version.",
)


def _refuse_booleans(schema: Any) -> None:
    """Have every field that is a number, or may be one, refuse booleans. In lists only `strict=True` does."""
    for name, inner in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if isinstance(inner, dict) and inner.get("type") in ("int", "float") and not inner.get("strict"):
            schema[name] = core_schema.no_info_before_validator_function(_no_boolean, inner)
        elif isinstance(inner, dict | list) and name not in ("metadata", "items_schema"):
            _refuse_booleans(inner)


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not true or false")
    return value


class TaskInput(BaseModel):
    """Base of every task's request: unknown fields are refused, so that a typo is not silently ignored.

    Attributes:
        why_not: fields that a caller may expect and a task does not have, each with the sentence that refuses it.
        max_long_lists: lists as long as a series that a request may hold (count): what is over that many values is
            refused before it is read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    why_not: ClassVar[Mapping[str, str]] = {}
    max_long_lists: ClassVar[int] = 2

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of all fields, with numbers that are not booleans: pydantic takes `true` for 1."""
        schema = handler(source)
        _refuse_booleans(schema)
        return schema

    model: ModelReference | None = ModelField

    @property
    def rows(self) -> int:
        """Rows of the batch that this request will need at once; what the queue's limit counts."""
        return 1

    @property
    def work(self) -> int:
        """How much is asked for, in a unit of the task's own, such as points: who asks for as much takes as long.

        The time that earlier requests of about this size took tells whether one can be answered by its deadline, and
        whether it is so quick that the event loop's thread may work on it. So it must be known without decoding. 0: the
        length of the body tells it well enough.
        """
        return 0


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
        return _json(self)


@dataclass(frozen=True, slots=True)
class MediaAnswer:
    """An answer that is no JSON: the bytes of one of the task's `other_answers`.

    Attributes:
        model: that answered; told in the header `X-Model`.
        data: the body.
        content_type: of the body.
        headers: values of the task's `other_headers`, such as `{"X-Seed": "7"}`.
    """

    model: ModelRef
    data: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The answer as JSON where nothing else can be shown or compared; `data` in base64."""
        data = base64.b64encode(self.data).decode()
        fields = {"model": self.model.model_dump(), "content_type": self.content_type, "data": data}
        return orjson.dumps({**fields, **({"headers": dict(self.headers)} if self.headers else {})})


def _json(value: BaseModel) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    """What the JSON encoder cannot write itself."""
    if isinstance(value, BaseModel):
        fields, given = value.__dict__, value.model_fields_set
        # What was not given (a heatmap nobody asked for) is left out.
        return fields if len(fields) == len(given) else {n: v for n, v in fields.items() if n in given}
    if isinstance(value, np.ndarray):  # not contiguous
        return np.ascontiguousarray(value)
    raise TypeError(f"{type(value).__name__} in an answer")


class FileProblem(BaseModel):
    """Why a file cannot be used."""

    type: str = Field(
        description="Stable identifier of the kind of problem, as in an error of the whole request.",
        examples=["/problems/invalid-input"],
    )
    detail: str = Field(
        description="What is wrong with the file, and what to do about it.",
        examples=["Image 'cat.jpg' is damaged or cut short. Send the whole file again."],
    )


class FailedFile(BaseModel):
    """What stands in the place of a file's answer where that one cannot be used, and others of the request can."""

    filename: str | None = Field(description="As sent with the part.", examples=["cat.jpg"])
    error: FileProblem = Field(description="Why there is no answer.")


Fact = str | int | float | bool | None
"""What a task tells of a request that it understood; its unit stands in its name."""


@dataclass(frozen=True, slots=True)
class Understood:
    """What a task understood of a request, or of one of its files, before it runs anything.

    Attributes:
        facts: by name, such as `{"points": 14, "step_s": 3600.0}`.
        used: how much of the server's limits, by the names of `Limits`.
    """

    facts: Mapping[str, Fact] = field(default_factory=dict)
    used: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NamedNumber:
    """A number that a model estimates."""

    name: str
    unit: str


class TaskOptions(BaseModel):
    """Base of what a task reads from a model's manifest, beside the keys that every manifest may have.

    A field that is a model itself is a TOML table of that name. What is declared nowhere is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


MANIFEST_KEYS = (
    *("licence", "metrics", "constants", "state", "state_ranges", "task", "architecture", "description", "required"),
    *("default", "default_version", "versions", "batching", "canary", "shadow", "load"),
)
"""Keys that every manifest may have (`service.registry.manifest`), whatever the task."""


def _manifest_text(folder: Path, where: str) -> list[ManifestText]:
    """A folder's manifest as it is written; none where it has none."""
    try:
        return [ManifestText(where, read_text(folder / "manifest.toml", where, missing="is missing."))]
    except ManifestInvalid:
        return []


OutputT = TypeVar("OutputT", bound=TaskOutput)
InputT = TypeVar("InputT", bound=TaskInput)


@dataclass(frozen=True)
class ModelFolder:
    """One version of a model on disk, as a task sees it.

    Attributes:
        name: the model's folder name.
        version: the version's folder name.
        path: the version's folder, with the files the task needs beside its graphs.
        signature: the main graph's inputs and outputs.
        options: the manifest's keys and tables that are the task's own, as read from TOML; `Task.options` checks them.
        limits: the server's limits.
        state_ranges: which numbers the graph can leave in its recurrent state, by input.
        signatures: of every graph, by name (`Task.graphs`), the main one first; left out: there is that one alone.
    """

    name: str
    version: str
    path: Path
    signature: Signature
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    state_ranges: Mapping[str, Sequence[StateRange]] = field(default_factory=dict)
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.signatures:
            object.__setattr__(self, "signatures", {MAIN_GRAPH: self.signature})

    def graph_file(self, graph: str = "") -> str:
        """Where a graph's file lies below the model repository, for messages; left out: the main one's."""
        return f"{self.name}/{self.version}/{graph or next(iter(self.signatures))}.onnx"

    @cached_property
    def ref(self) -> ModelRef:
        """Name and version, as every answer starts."""
        return ModelRef(name=self.name, version=self.version)

    @cached_property
    def state_bounds(self) -> Mapping[str, Bounds]:
        """What the graph's recurrent state can be, by input.

        Raises:
            ManifestInvalid: it cannot travel in a token, or the manifest has ranges for what is not there.
        """
        where, states = self.graph_file(), self.signature.states
        for name, following in states.items():
            before, after = self.signature.inputs[name], self.signature.outputs[following]
            if before.dtype not in ("float32", "float64", "int32", "int64") or after.dtype != before.dtype:
                raise ManifestInvalid(
                    where, f"state {before} and {after}: both should be the same float or int, 32 or 64."
                )
        fresh = self.signature.fresh_state()
        if (size := sum(array.nbytes for array in fresh.values())) > MAX_ARRAY_BYTES:
            raise ManifestInvalid(
                where, f"has a recurrent state of {size:,} bytes; a token holds {MAX_ARRAY_BYTES:,}. Make it smaller."
            )
        where = f"{self.name}/manifest.toml"
        if unknown := [name for name in self.state_ranges if name not in states]:
            raise ManifestInvalid(
                where,
                f"[state_ranges] has {unknown[0]!r}; the graph's states are: {', '.join(states) or 'none'}.",
            )
        try:
            return {
                name: Bounds(array.shape[1:], array.dtype, self.state_ranges.get(name, ()))
                for name, array in fresh.items()
            }
        except ValueError as error:
            raise ManifestInvalid(where, f"[state_ranges] has {error}.") from None

    def pack_state(
        self, arrays: Mapping[str, Array], extra: Mapping[str, Any] | None = None, *, from_token: bool = False
    ) -> str:
        """A stream's memory as a token for the client.

        Args:
            arrays: the recurrent state without a batch axis.
            extra: what the task adds.
            from_token: the stream came in with a token, whose numbers were only believed.

        Raises:
            OutOfRange: it is nothing that `unpack_state` would take back.
        """
        for name, bounds in self.state_bounds.items():
            if not (bounds.hold(arrays[name]) if from_token else bounds.are_finite(arrays[name])):
                raise OutOfRange(name)
        return pack(self.name, self.version, State(arrays, extra or {}))

    def unpack_state(self, token: str) -> State:
        """The way back from `pack_state`.

        Raises:
            InvalidState: the token is damaged, another model's, or its arrays are nothing that the graph leaves behind.
        """
        state = unpack(self.name, self.version, token)
        bounds = self.state_bounds
        if state.arrays.keys() != bounds.keys() or not all(bounds[n].hold(array) for n, array in state.arrays.items()):
            raise InvalidState("does not fit this model")
        return state

    def lines(self, filename: str) -> list[str]:
        """Entries of a text file of this version, one a line; empty lines at the end are none.

        Raises:
            ManifestInvalid: the file is missing, empty, cannot be read or is not UTF-8.
        """
        where = f"{self.name}/{self.version}/{filename}"
        missing = f"is missing; put {filename} beside {Path(self.graph_file()).name}, one entry a line."
        text = read_text(self.path / filename, where, missing=missing, inside=(self.path, self.path.parent))
        if not text.strip():
            raise ManifestInvalid(where, "is empty; it needs one entry a line.")
        return text.rstrip("\n").split("\n")

    def input(self, name: str, *, dtype: str | tuple[str, ...], rank: int, graph: str = "") -> TensorSpec:
        """A graph's input of that name, checked; where no graph is named, the main one's.

        Raises:
            ManifestInvalid: there is none, or its element type or number of axes is another.
        """
        return self._tensor("input", name, dtype, rank, graph)

    def output(self, name: str, *, dtype: str | tuple[str, ...], rank: int, graph: str = "") -> TensorSpec:
        """A graph's output of that name, checked as `input` does."""
        return self._tensor("output", name, dtype, rank, graph)

    def _tensor(self, side: str, name: str, dtype: str | tuple[str, ...], rank: int, graph: str) -> TensorSpec:
        where, signature = self.graph_file(graph), self.signatures[graph] if graph else self.signature
        specs = signature.inputs if side == "input" else signature.outputs
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
        graphs: names of the graphs of a version, the main one first; `encoder` is the file `encoder.onnx`.
        media: content types of the files taken; empty for JSON tasks.
        other_answers: content types of answers that are no JSON, by the value of the input's field `format` that asks
            for each, such as `{"png": "image/png"}`; every other value of that field means JSON.
        other_headers: headers of these answers, each with its meaning as a sentence.
        events: types of the parts of an answer that are told as soon as they are settled, by the name of their event;
            see `settled`. Without any, an answer comes as a whole.
        summary: the question it answers, in a few words.
        sample_file: file name in the curl line of `GET /v1/models`, for tasks that take files.
        sample_data_url: a small file as a data URL, which the documentation page sends.
        file_reader: how a file that the command line is given becomes fields of a JSON task; None: it takes typed ones.
        by_default: whether the command line means this task where several would do and none is named.
        has_route: whether it has an endpoint of its own; without one its models are asked over `/v2` alone.
        runs_whole: whether axis 0 of the graph's tensors is no batch, so that every run is for one caller.
        labels: what the classes are called, by index; empty where there are none.
        estimates: the numbers that its answers hold, in their order; empty where they are no such numbers.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Input: ClassVar[type[TaskInput]]
    Output: ClassVar[type[TaskOutput]]
    Options: ClassVar[type[TaskOptions]] = TaskOptions
    graphs: ClassVar[tuple[str, ...]] = (MAIN_GRAPH,)
    media: ClassVar[tuple[str, ...]] = ()
    other_answers: ClassVar[Mapping[str, str]] = {}
    other_headers: ClassVar[Mapping[str, str]] = {}
    events: ClassVar[Mapping[str, type[BaseModel]]] = {}
    sample_file: ClassVar[str] = "file"
    sample_data_url: ClassVar[str] = ""
    file_reader: ClassVar[FileReader | None] = None
    by_default: ClassVar[bool] = False
    has_route: ClassVar[bool] = True

    options: TaskOptions
    runs_whole: bool = False
    labels: Sequence[str] = ()
    estimates: Sequence[NamedNumber] = ()

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
            where, own = f"{folder.name}/manifest.toml", f"{folder.name}/{folder.version}/manifest.toml"
            texts = [*_manifest_text(folder.path, own), *_manifest_text(folder.path.parent, where)]
            if (folder.path / "manifest.toml").exists():
                where = f"{own} over {where}"
            known = ", ".join(self.Options.model_fields) or "nothing"
            unknown = f"models/README.md lists the keys of every manifest, and {self.name} reads beside them: {known}"
            problems = in_words(error, self.Options, texts, unknown=unknown, others=MANIFEST_KEYS)
            raise ManifestInvalid(where, problems) from None

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

        Where there are several graphs, the names of the tensors say for which of them a batch is.

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

    def widened(self, request: InputT) -> InputT:
        """The request to run where the answer will be compared with an expected one: it may ask for more.

        A task whose answers end after so many entries asks for the next ones, so that `difference` can tell an entry
        that a near tie has pushed off the end from one that is not there.
        """
        return request

    def difference(
        self, request: InputT, expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: float
    ) -> str | None:
        """Say where an answer is not what was expected of it, in what matters to this task.

        Here every field that is expected must be there, numbers within the tolerance and lists in their order. A task
        overrides this where processors that round differently may give answers that mean the same: the order of two
        near-equal scores, a point beside a threshold. What can be told wrong must be told, such as another best label.

        Args:
            request: what was asked.
            expected: fields of the answer as JSON; those that are not named do not count.
            got: the answer to `widened(request)` as JSON.
            tolerance: largest allowed difference of a number.

        Returns:
            A phrase that names the place and both values, such as `at length: expected 2.0, got 3.0`; None where the
            answers agree.
        """
        return difference(expected, got, tolerance)

    def understood(self, request: InputT) -> Understood:
        """What a caller would like to know of a request that `steps` has taken as far as its first run.

        Told by `POST /v1/<name>:validate`, beside what every task has: the fields, the model and the tensors.
        """
        return Understood()

    def shown(self, request: InputT, answer: Mapping[str, Any]) -> Iterator[Shown]:
        """What a terminal shows of an answer; which model gave it is shown already.

        Args:
            request: what was asked.
            answer: to it, as JSON.
        """
        yield from fields_shown({name: value for name, value in answer.items() if name not in ("model", "state")})

    def traits(self, request: InputT, answer: OutputT) -> Iterator[tuple[str, str | float]]:
        """What an answer and its request are like, by name: a label, or a number; the same few names in every answer.

        How often each is seen is compared with the sketch of a version, where it has one, to notice that the inputs are
        no longer those it was made for. NaN is passed over. This is called after every answer, so it must be quick.
        """
        yield from ()

    @classmethod
    def other_answer(cls, request: TaskInput) -> str | None:
        """The content type of the answer that a request asks for; None where that is JSON."""
        return cls.other_answers.get(getattr(request, "format", "")) if cls.other_answers else None

    @classmethod
    def settled(cls, parts: Callable[[], Iterable[BaseModel]]) -> Settled:
        """What to yield between runs when parts of the answer will not change any more.

        Args:
            parts: makes them, of the types in `events`; called at once where somebody reads them, else never.
        """
        names = {kind: name for name, kind in cls.events.items()}
        return Settled(lambda: [Part(names[type(part)], _json(part)) for part in parts()])

    @abstractmethod
    def steps(self, request: InputT) -> Steps[OutputT | MediaAnswer]:
        """Answer a request: yield runs, receive their outputs, return the answer.

        Raises:
            InvalidInput: nothing can be inferred from this request.
            TooLarge: it is over one of `self.folder.limits`.
        """


MediaInputT = TypeVar("MediaInputT", bound=MediaInput)
DecodedT = TypeVar("DecodedT")

_OF_ONE_FILE = (InvalidInput, TooLarge, UnsupportedMedia)
"""What keeps a file from being used, and says nothing of the others."""


class MediaTask(Task[MediaInputT, OutputT], Generic[MediaInputT, OutputT, DecodedT]):
    """Base of tasks that take files: one that cannot be used does not lose the answers of the others.

    A subclass says how a file is decoded and how decoded files are answered. The output's `results` has an entry for
    each file, in the order sent: `list[Result | FailedFile]`. A task with `other_answers` says in `render` how one
    file's result becomes their bytes; such a request has exactly one file.

    Attributes:
        noun: what a file is called, as in "Image 2 is damaged".
    """

    noun: ClassVar[str] = "File"

    @abstractmethod
    def decode_file(self, file: Upload, what: str) -> DecodedT:
        """Read one file.

        Args:
            file: as sent.
            what: names the file in messages, such as "Image 'cat.jpg'" or "Image 2".

        Raises:
            InvalidInput, TooLarge, UnsupportedMedia: it cannot be used.
        """

    @abstractmethod
    def answer_files(
        self, request: MediaInputT, files: Sequence[Upload], decoded: Sequence[DecodedT]
    ) -> Steps[Sequence[Any]]:
        """Answer the files that can be used: yield runs, receive their outputs, return one result for each file.

        Args:
            request: with everything but the files.
            files: some of its files, at least one and at most `FILES_AT_ONCE`.
            decoded: what `decode_file` made of them.
        """

    def understood_file(self, file: Upload) -> Understood:
        """The same as `understood`, of one file that can be used."""
        return Understood()

    def seen(self, run: Run) -> Iterator[bytes]:
        """What the model is shown of each file in a first run, as PNG, in their order; perhaps not of all."""
        yield from ()

    def shown(self, request: MediaInputT, answer: Mapping[str, Any]) -> Iterator[Shown]:
        for result in answer["results"]:
            if "error" in result:
                yield Failure(result["error"]["detail"])
            else:
                yield from self.shown_result(request, result)

    def shown_result(self, request: MediaInputT, result: Mapping[str, Any]) -> Iterator[Shown]:
        """What a terminal shows of one file's result, as `shown` does of a whole answer."""
        rest = {name: value for name, value in result.items() if name != "filename"}
        yield from fields_shown(rest, result.get("filename") or "")

    def render(self, request: MediaInputT, file: Upload, decoded: DecodedT, result: Any) -> bytes:
        """The answer for one file in the format of `other_answers` that the request asks for.

        Args:
            request: with its `format`.
            file: as sent, for what `decoded` has lost, such as the picture in its own size.
            decoded: what `decode_file` made of it.
            result: what `answer_files` found in it.
        """
        raise NotImplementedError(f"{type(self).__name__} has other_answers and does not say how they are rendered")

    def steps(self, request: MediaInputT) -> Steps[OutputT | MediaAnswer]:
        if (content_type := self.other_answer(request)) is not None:
            return (yield from self._rendered(request, content_type))
        results = yield from self.each_file(request)
        return cast(OutputT, self.Output.model_construct(model=self.folder.ref, results=results))

    def _rendered(self, request: MediaInputT, content_type: str) -> Steps[MediaAnswer]:
        """The only file's answer as bytes."""
        self._check_files(request)
        (file,) = request.files
        try:
            decoded = self.decode_file(file, self.name_of(file, 0))
        except _OF_ONE_FILE as error:
            telemetry.REFUSED_FILES.labels(self.folder.name, error.slug).inc()
            raise
        (result,) = yield from self.answer_files(request, [file], [decoded])
        return MediaAnswer(self.folder.ref, self.render(request, file, decoded, result), content_type)

    def _check_files(self, request: MediaInputT) -> None:
        """See that a request has as many files as it may have.

        Raises:
            InvalidInput: there is none, or there are several for an answer that can show only one.
        """
        count = len(request.files)
        if not count:
            raise InvalidInput(
                f"No {self.noun.lower()} was sent. Send one as the body, or parts named 'file' as multipart/form-data."
            )
        if count > 1 and self.other_answer(request) is not None:
            asked, noun = getattr(request, "format", ""), self.noun.lower()
            raise InvalidInput(
                f"format={asked} answers one {noun}, and {count} were sent. Send each in a request of its own, or ask "
                "for JSON, which answers all."
            )

    def name_of(self, file: Upload, place: int) -> str:
        """What messages call a file, by its place among those sent."""
        return f"{self.noun} {quoted(file.filename) if file.filename else place + 1}"

    def each_file(self, request: MediaInputT) -> Steps[list[Any]]:
        """The results of all files in the order sent, a `FailedFile` for each that cannot be used.

        Raises:
            InvalidInput: no file was sent, or none of several can be used.
            InvalidInput, TooLarge, UnsupportedMedia: the only file cannot be used.
        """
        files = request.files
        if len(files) != 1:
            self._check_files(request)
        results: list[Any] = [None] * len(files)
        refused: list[FileProblem] = []
        for start in range(0, len(files), FILES_AT_ONCE):
            decoded: dict[int, DecodedT] = {}
            for place, file in enumerate(files[start : start + FILES_AT_ONCE], start):
                try:
                    decoded[place] = self.decode_file(file, self.name_of(file, place))
                except _OF_ONE_FILE as error:
                    telemetry.REFUSED_FILES.labels(self.folder.name, error.slug).inc()
                    if len(files) == 1:
                        raise
                    problem = FileProblem(type=error.type, detail=str(error))
                    results[place] = FailedFile(filename=file.filename, error=problem)
                    refused.append(problem)
            if decoded:
                usable = [files[place] for place in decoded]
                answers = yield from self.answer_files(request, usable, list(decoded.values()))
                for place, answer in zip(decoded, answers, strict=True):
                    results[place] = answer
        if refused:
            self._check_refused(refused, len(files))
        return results

    def _check_refused(self, refused: Sequence[FileProblem], files: int) -> None:
        """See that not all files were refused; the answer has status 200 then, so say in the log that some were."""
        if len(refused) == files:
            raise FilesUnusable([problem.detail for problem in refused])
        log.info(
            "some files were refused",
            model=f"{self.folder.name}@{self.folder.version}",
            files=files,
            refused=len(refused),
            kinds=dict(Counter(problem.type for problem in refused)),
            first=refused[0].detail,
        )
