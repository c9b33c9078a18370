"""FastAPI and ONNX Runtime as most people put them together: what `bench.py` measures beside the service.

    uvicorn plain_fastapi:app --app-dir benchmarks

Endpoints are `def`, so each request takes a thread of the pool and runs alone; pictures come as `UploadFile`, JSON into typed
bodies; sessions have ONNX Runtime's defaults; answers are dicts. Decoding and encoding are the service's own code, so that both
do the same work and must give the same answers.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel

from service.registry.manifest import read_manifest
from service.registry.registry import Registry
from service.runtime.session import OnnxSession
from service.tasks import discover
from service.tasks.anomaly_detection import AnomalyDetectionInput
from service.tasks.base import ModelFolder, TaskInput, Upload
from service.tasks.image_classification import ImageClassificationInput
from service.tasks.next_word_prediction import NextWordInput


class Model:
    """A graph in a session of its own, and the task that knows its inputs and outputs."""

    def __init__(self, folder: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        manifest = read_manifest(folder.parent)
        signature = OnnxSession(folder / "model.onnx").signature
        place = ModelFolder(folder.parent.name, folder.name, folder, signature, manifest.options(folder))
        self.task = discover()[manifest.task](place)

    def answer(self, request: TaskInput) -> Any:
        steps = self.task.steps(request)
        outputs: Any = None
        while True:
            try:
                run = steps.send(outputs)
            except StopIteration as stop:
                return jsonable(stop.value)
            names = list(run.outputs) or [output.name for output in self.session.get_outputs()]
            outputs = dict(zip(names, self.session.run(names, dict(run.tensors)), strict=True))


def jsonable(value: Any) -> Any:
    """Lists for arrays, with null for what is not finite and so no JSON; dicts for models."""
    if isinstance(value, np.ndarray):
        is_plain = value.dtype.kind != "f" or np.isfinite(value).all()
        return (value if is_plain else np.where(np.isfinite(value), value, np.array(None))).tolist()
    if isinstance(value, BaseModel):
        return {name: jsonable(entry) for name, entry in value if name in value.model_fields_set}
    return value


app = FastAPI()
registry = Registry(Path(os.environ.get("GRIDLOOP_MODELS", "models")))
image, text, series = (
    Model(registry.get(name).default_folder) for name in ("cifar10-cnn", "english-lstm", "series-gru")
)


@app.post("/image-classification")
def image_classification(file: UploadFile) -> Any:
    return image.answer(ImageClassificationInput(files=(Upload(file.file.read()),)))


@app.post("/next-word-prediction")
def next_word_prediction(body: NextWordInput) -> Any:
    return text.answer(body)


@app.post("/anomaly-detection")
def anomaly_detection(body: AnomalyDetectionInput) -> Any:
    return series.answer(body)
