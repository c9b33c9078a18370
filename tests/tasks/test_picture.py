"""What every task on pictures is given: pixels that fit together, where they come from, and the picture to draw on."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidInput, ManifestInvalid
from service.graph import Array, Signature, Steps, TensorSpec
from service.media.overlays import to_png
from service.media.views import View
from service.tasks import discover
from service.tasks.base import FailedFile, ModelFolder, TaskOutput, Upload
from service.tasks.picture import DrawablePictureInput, PictureInput, PictureResult, PictureTask, picture_fields
from tests import graphs
from tests.media.reading import encoded


class BrightnessResult(PictureResult):
    level: float


class BrightnessOutput(TaskOutput):
    results: list[BrightnessResult | FailedFile]


class Brightness(PictureTask[PictureInput, BrightnessOutput]):
    """A task of its own, with nothing but what every task must say."""

    name, summary = "brightness", "How bright is this?"
    Input, Output = PictureInput, BrightnessOutput

    def answer_pictures(
        self, request: PictureInput, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[list[dict[str, Any]]]:
        outputs = yield self.run(pixels, ("level",))
        levels = outputs["level"].tolist()
        return [
            {**picture_fields(file, view), "level": level}
            for file, view, level in zip(files, views, levels, strict=True)
        ]


def brightness(tmp_path: Path, shape: tuple[Any, ...] = (4, 8, 3), **options: Any) -> Brightness:
    inputs = {"image": TensorSpec("image", "uint8", ("batch", *shape))}
    outputs = {"level": TensorSpec("level", "float32", ("batch",))}
    return Brightness(ModelFolder("lamp", "1", tmp_path, Signature(inputs, outputs), options))


def answered(task: Brightness, *files: Upload) -> tuple[list[tuple[int, ...]], list[Any]]:
    """The shapes that were run, and the results: the level is the mean of the pixels."""
    steps, shapes = task.steps(PictureInput(files=files)), []
    try:
        run = next(steps)
        while True:
            (pixels,) = task.prepare(run.tensors).values()
            shapes.append(pixels.shape)
            run = steps.send({"level": pixels.mean(axis=(1, 2, 3)).astype(np.float32)})
    except StopIteration as stop:
        return shapes, stop.value.results


BRIGHT, DARK = (
    Upload(graphs.png((200, 200, 200), (10, 6)), "bright.png"),
    Upload(graphs.png((8, 8, 8), (6, 10)), "dark.png"),
)


def test_pictures_of_any_size_run_together_at_the_graphs_and_are_answered_at_their_own(tmp_path: Path) -> None:
    shapes, results = answered(brightness(tmp_path), BRIGHT, DARK)
    assert shapes == [(2, 4, 8, 3)]
    assert results == [
        {"filename": "bright.png", "width": 10, "height": 6, "level": 200},
        {"filename": "dark.png", "width": 6, "height": 10, "level": 8},
    ]


def test_where_the_graph_takes_any_size_each_runs_at_its_own(tmp_path: Path) -> None:
    shapes, results = answered(brightness(tmp_path, ("height", "width", 3)), BRIGHT, DARK)
    assert shapes == [(1, 6, 10, 3), (1, 10, 6, 3)]
    assert [result["level"] for result in results] == [200, 8]


def test_one_that_cannot_be_read_does_not_lose_the_others(tmp_path: Path) -> None:
    _, (result, failed) = answered(brightness(tmp_path), BRIGHT, Upload(b"nothing", "bad.png"))
    assert result["level"] == 200
    assert failed.error.detail.startswith("Image 'bad.png' is not an image")


def test_work_is_the_pixels_of_all_files() -> None:
    assert PictureInput(files=(BRIGHT, DARK)).work == 120


def test_a_graph_with_another_input_is_refused_with_what_to_do(tmp_path: Path) -> None:
    inputs = {name: TensorSpec(name, "float32", ("batch", 3, 8, 8)) for name in ("one", "other")}
    with pytest.raises(ManifestInvalid, match=r"a model of pictures takes one input, the picture, .* \[constants\]"):
        Brightness(ModelFolder("lamp", "1", tmp_path, Signature(inputs, {})))


def test_tensors_of_another_graph_are_left_as_they_are(tmp_path: Path) -> None:
    task = brightness(tmp_path, (3, 4, 8))
    tensors: Mapping[str, Array] = {"word": np.zeros(2, np.uint8), "memory": np.zeros((2, 4))}
    assert task.prepare(tensors) is tensors


def test_the_displayed_picture_is_whole_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    stored = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    picture = brightness(tmp_path).displayed(Upload(encoded(stored, exif=exif)), "Image 1")
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (40, 60), (255, 255, 255))


class DrawnOutput(BrightnessOutput):
    pass


class Drawn(Brightness):
    """Its answer can be drawn: here as the picture itself."""

    name, Input, Output = "drawn", DrawablePictureInput, DrawnOutput
    other_answers: ClassVar[Mapping[str, str]] = {"png": "image/png"}

    def render(self, request: Any, file: Upload, decoded: Any, result: Any) -> bytes:
        picture = self.displayed(file)
        assert picture.size == (result["width"], result["height"])
        return to_png(picture)


def drawn(tmp_path: Path, *files: Upload) -> Any:
    task = Drawn(brightness(tmp_path).folder)
    steps = task.steps(DrawablePictureInput(format="png", files=files))
    try:
        next(steps)
        steps.send({"level": np.zeros(1, np.float32)})
    except StopIteration as stop:
        return stop.value


def test_a_drawn_answer_is_as_large_as_the_picture(tmp_path: Path) -> None:
    answer = drawn(tmp_path, BRIGHT)
    assert answer.content_type == "image/png"
    assert Image.open(io.BytesIO(answer.data)).size == (10, 6)


def test_a_drawn_answer_is_for_one_picture(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="format=png answers one image, and 2 were sent"):
        drawn(tmp_path, BRIGHT, DARK)
    with pytest.raises(InvalidInput, match="No image was sent"):
        drawn(tmp_path)


def test_a_base_of_tasks_is_no_task() -> None:
    assert PictureTask not in discover().values()
