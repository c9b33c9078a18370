"""A toy task of two graphs, as captioning has them: one encodes, once, and one steps, as often as is asked for."""

from __future__ import annotations

import numpy as np
from pydantic import ConfigDict, Field

from service.tasks.base import ModelFolder, Run, Steps, Task, TaskInput, TaskOutput


class CountingInput(TaskInput):
    """How to count."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"x": 2.0, "steps": 3}]})

    x: float = Field(description="A tenth of the stride.")
    steps: int = Field(default=1, ge=0, le=100, description="How many numbers (count).")


class CountingOutput(TaskOutput):
    """The numbers counted."""

    counts: list[float] = Field(description="Multiples of the stride.")


class Counting(Task[CountingInput, CountingOutput]):
    """Counting by a stride that the encoder finds and the decoder adds."""

    name = "counting"
    summary = "What comes next?"
    Input, Output = CountingInput, CountingOutput
    graphs = ("encoder", "decoder")

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        folder.input("x", dtype="float32", rank=2)
        folder.output("stride", dtype="float32", rank=2)
        folder.input("stride", dtype="float32", rank=2, graph="decoder")
        folder.output("next_count", dtype="float32", rank=2, graph="decoder")

    def steps(self, request: CountingInput) -> Steps[CountingOutput]:
        encoded = yield Run({"x": np.array([[request.x]], np.float32)})
        count, counts = np.zeros((1, 1), np.float32), []
        for _ in range(request.steps):
            outputs = yield Run({"stride": encoded["stride"], "count": count}, graph="decoder")
            count = outputs["next_count"]
            counts.append(float(count[0, 0]))
        return CountingOutput(model=self.folder.ref, counts=counts)
