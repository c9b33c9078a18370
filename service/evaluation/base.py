"""What an evaluation is: conversations with a model, and what their records say about it.

An evaluation never calls the model. Each of its items is a *conversation*: a generator that yields a question, is sent
the answer, as often as it needs, and finally returns a record:

    def talk(self):
        answer = yield Ask({"top_k": 5}, file=png)
        return answer["results"][0]["predictions"][0]["label"] == "cat"

So the same evaluation runs in process and through HTTP, and many conversations go on at a time, while a stream, whose
next question needs the state of the last answer, is still a plain loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from service.graph import Array, Signature

T = TypeVar("T")


PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
"""Of files that are taken for pictures of the data."""


class EvaluationFailed(Exception):
    """The evaluation has no result; the message says why."""


class DataMissing(EvaluationFailed):
    """The data folder does not hold what the evaluation reads.

    Args:
        folder: the folder that was given.
        expects: what should be in it.
        origin: where the data come from, as a sentence.
    """

    def __init__(self, folder: Path, expects: str, origin: str = "") -> None:
        super().__init__(f"{folder} does not hold {expects}. {origin}".rstrip())


# --------------------------------------------------------------------------------------------------- questions, answers


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to the model's task.

    The answer is its fields; one that is no JSON, as with `{"format": "png"}`, has `model`, `content_type` and `data`,
    the bytes.

    Attributes:
        fields: of the task's input; `model` is added.
        file: the body, for tasks that take files: bytes as they are, PNG, JPEG, …
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    file: bytes | None = None


@dataclass(frozen=True, slots=True)
class Infer:
    """Tensors for the graph itself, by the Open Inference Protocol; the answer maps output names to arrays.

    Attributes:
        tensors: every input, rows on axis 0.
        outputs: names of those wanted.
    """

    tensors: Mapping[str, Array]
    outputs: tuple[str, ...]


Question = Ask | Infer
Answer = Mapping[str, Any]
Conversation = Generator[Question, Answer, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One conversation to be held.

    Attributes:
        name: of what it is about, for messages.
        talk: begins it. Data are read in it, not before, so that only those in work are in memory.
        questions: it will ask about so many; what the progress bar counts.
    """

    name: str
    talk: Callable[[], Conversation]
    questions: int = 1


# -------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    Attributes:
        name: as in the manifest's `[metrics]`, where the card claims it.
        value: NaN where there is nothing to tell, such as the precision of a model that never alarms.
        n: what it is counted over.
        of: the name of that, in the plural.
        low: lower end of the 95 % confidence interval; None: there is none.
        high: its upper end.
        form: how it is written, a format for `format()`.
    """

    name: str
    value: float
    n: int
    of: str
    low: float | None = None
    high: float | None = None
    form: str = ".2%"

    def text(self, value: float | None) -> str:
        """A value as it is written."""
        return "–" if value is None or value != value else format(value, self.form).replace("%", " %")

    @property
    def interval(self) -> str:
        """The confidence interval as it is written; empty when there is none."""
        return "" if self.low is None else f"{self.text(self.low)} to {self.text(self.high)}"


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A second table, such as accuracy by class."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture for the card.

    Attributes:
        file: name of the PNG.
        caption: one sentence that says what is seen.
        draw: a function of `service.evaluation.plots` by name, or any function that takes a matplotlib figure.
        data: its other arguments.
    """

    file: str
    caption: str
    draw: str | Callable[..., None]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the records say.

    Attributes:
        figures: the table; those that count most first.
        breakdowns: more tables.
        plots: drawn when the card is written.
        notes: sentences under the table: what was counted, and where it may mislead.
    """

    figures: Sequence[Figure]
    breakdowns: Sequence[Breakdown] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()


# ----------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is evaluated, as far as an evaluation may know it.

    Attributes:
        name: of its folder.
        version: that answers.
        task: its endpoint.
        signature: the graph's inputs and outputs.
        folder: the version's folder; None when the model is only on a server.
    """

    name: str
    version: str
    task: str
    signature: Signature
    folder: Path | None = None

    def labels(self) -> list[str] | None:
        """The model's labels in their order; None where it has no file of them, or is only on a server."""
        file = self.folder / "labels.txt" if self.folder else None
        return file.read_text("utf-8").removesuffix("\n").split("\n") if file and file.is_file() else None


class Evaluation(ABC):
    """How a model is evaluated on a data set.

    Attributes:
        title: the data set, with its split.
        item: what one run of the graph costs is measured for, such as "picture".
        data: the folder that was given.
        subject: the model.
        limit: at most so many items of each kind, for a quick look; None: all, which alone is the official evaluation.
    """

    title: ClassVar[str]
    item: ClassVar[str] = "request"

    def __init__(self, data: Path, subject: Subject, limit: int | None = None) -> None:
        """Look at the data, and read what is small.

        Raises:
            DataMissing: the folder does not hold them.
        """
        self.data, self.subject, self.limit = data, subject, limit

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """Every conversation to hold; with a limit, no more than so many of each kind."""

    @abstractmethod
    def outcome(self, records: Sequence[Any]) -> Outcome:
        """Score the records, one for each of `items()`, in that order."""

    def timed(self) -> Conversation:
        """A conversation whose last run of the graph is the one to be timed: one `item`, alone."""
        return self.items()[0].talk()

    def few(self, things: Sequence[T]) -> Sequence[T]:
        """As many of these as the limit allows, spread evenly."""
        return things if self.limit is None else spread_evenly(things, self.limit)


def spread_evenly(things: Sequence[T], count: int) -> Sequence[T]:
    """So many of these, at equal distances, in their order; all of them where there are fewer."""
    if len(things) <= count:
        return things
    return [things[place * len(things) // count] for place in range(count)]
