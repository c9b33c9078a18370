"""Golden samples: real inputs with their expected answers, kept beside every graph.

They prove at load time that pre-processing, graph and post-processing still belong together, and they warm the graph
up with inputs of the right shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ManifestInvalid, ServiceError, as_sentence
from service.files import read_bytes, read_text, without_folders
from service.graph import Steps
from service.runtime.drive import drive
from service.runtime.graphs import Graphs, Runnable
from service.runtime.stop import Stop
from service.tasks import AnyTask
from service.tasks.base import MediaAnswer, MediaInput, TaskInput, TaskOutput, Upload

FILENAME = "golden.json"


class GoldenSample(BaseModel):
    """One input and the fields of its answer that are checked.

    In the input of a task that takes files, the key of the file is replaced by its path beside `golden.json`:
    `{"image": "golden/cat.png", "top_k": 3}`.
    """

    model_config = ConfigDict(extra="forbid")

    input: dict[str, Any]
    output: dict[str, Any]
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Largest allowed difference of a number; the task says what else may differ (`Task.difference`)."""


def read_golden(folder: Path, where: str) -> list[GoldenSample]:
    """The samples of a version folder.

    Raises:
        ManifestInvalid: the file is missing, empty or malformed, or cannot be read.
    """
    missing = "is missing; add a real input and its expected output."
    text = read_text(folder / FILENAME, where, missing=missing, inside=(folder, folder.parent))
    try:
        samples = [GoldenSample.model_validate(entry) for entry in json.loads(text)]
    except (ValueError, TypeError, ValidationError) as error:
        raise ManifestInvalid(where, f"cannot be read: {as_sentence(error)}") from None
    if not samples:
        raise ManifestInvalid(where, "is empty; add a real input and its expected output.")
    return samples


def golden_request(task: AnyTask, sample: GoldenSample, folder: Path) -> TaskInput:
    """The sample's input as the task's request type.

    Raises:
        ManifestInvalid: a file that it names cannot be read.
        ValidationError: the task would refuse it.
    """
    if not issubclass(task.Input, MediaInput):
        return task.Input.model_validate(sample.input)
    known = task.Input.model_fields
    files = {key: value for key, value in sample.input.items() if key not in known and isinstance(value, str)}
    fields = {key: value for key, value in sample.input.items() if key not in files}
    uploads = []
    for key, value in files.items():
        where = f"{folder.parent.name}/{folder.name}/{Path(value).name if Path(value).is_absolute() else value}"
        missing = f"is missing; {FILENAME} names it as {key!r}."
        content = read_bytes(folder / value, where, missing=missing, inside=(folder, folder.parent))
        uploads.append(Upload(content, filename=Path(value).name))
    return task.Input.model_validate({**fields, "files": tuple(uploads)})


def check_golden(
    task: AnyTask,
    graphs: Graphs[Runnable],
    samples: list[GoldenSample],
    folder: Path,
    where: str,
    *,
    stop: Stop | None = None,
) -> None:
    """Run every sample and compare.

    Raises:
        ManifestInvalid: an answer differs, or a sample cannot be run; the message says where it differs.
    """
    for number, sample in enumerate(samples, start=1):
        try:
            request = golden_request(task, sample, folder)
            steps: Steps[TaskOutput | MediaAnswer] = task.steps(task.widened(request))
            answer = orjson.loads(drive(graphs, steps, stop=stop).to_json())
        except ManifestInvalid:  # a file of the sample's cannot be read
            raise
        except (ServiceError, ValidationError) as error:
            raise ManifestInvalid(where, f"sample {number} is refused: {as_sentence(error)}") from None
        except Exception as error:  # the graph or the task's own code, on the model's own sample
            raise ManifestInvalid(
                where, f"sample {number} fails: {type(error).__name__}: {without_folders(as_sentence(error))}"
            ) from error
        if difference := task.difference(request, sample.output, answer, sample.tolerance):
            raise ManifestInvalid(where, f"sample {number} differs from its expected answer {difference}.")
