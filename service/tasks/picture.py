"""What tasks on pictures share: from the files of a request to runs of the graph, and places back in the picture.

A model is any graph with one picture input, `(batch, height, width, channels)` or `(batch, channels, height, width)`,
of three colours or grey: uint8, where the graph normalises by itself, or float, normalised here with the manifest's
mean and std. A task says which outputs it wants and what they mean:

    class Sharpness(PictureTask[PictureInput, SharpnessOutput]):
        name, summary = "sharpness", "How sharp is this?"
        Input, Output = PictureInput, SharpnessOutput

        def answer_pictures(self, request, files, views, pixels):
            outputs = yield self.run(pixels, ("sharpness",))
            levels = outputs["sharpness"].tolist()
            return [{**picture_fields(file, view), "level": level} for file, view, level in zip(files, views, levels)]

One whose answer can be drawn takes a `DrawablePictureInput`, has `other_answers = {"png": "image/png"}`, and says in
`render` what is drawn on `displayed(file)`.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, model_validator

from service.errors import ManifestInvalid
from service.media.formats import format_of
from service.media.images import Filter, Frame, Resize, header, open_picture, pixels_in
from service.media.views import View
from service.tasks.base import (
    Array,
    Fact,
    MediaInput,
    MediaTask,
    ModelFolder,
    OutputT,
    Run,
    Steps,
    TaskOptions,
    TensorSpec,
    Understood,
    Upload,
)

_HORSE = (  # CIFAR-10, test picture 13: small enough to be typed, so that the documentation page has something to send
    "data:image/webp;base64,"
    "UklGRm4BAABXRUJQVlA4IGIBAADwBwCdASogACAAPrVIn0mnJCKhMBgMAOAWiWcAy+eoLsC+ueAPf/WAdwFAqDQhujiM4soRAa+P"
    "wk7dPgDsFBbQRWL6zl38SAAA/vMDDnil4zqxT4tL0UhoTtEjjpmjcz9Y965O8NR7F7S++tKi8K55o2vTE4ewAv2ICGmBd9Q6Te85"
    "Dk9bQM9aB/rLY3b7zW3Mzhuc5+eiHCa9Ke1+JHunUakFy7W5Tz4bP2beGGnQ2Mg7WoeOoL+y8PAafqVwkcmRa1BYMkwNz5xwNepO"
    "fzYACPbnQOMqZ6Xf6sUTE28+6CoFlWYSSWd3BrBcqv/tHPaqtJbF6jOTcPzhdt3uCbYqJ1PPvXmovl43bKrgKu2EHsb76EU2WsYT"
    "jBCcL0NAf80nU8sIg11a6j7Tts4+FReUYP2SZSR82smed41WkDZbtDWtJRrvzjkbw0/5et4yiBiGO0K3MYb3im/jPlZfpngAAAA="
)

MOST_OWN_SIDE = 512
"""Longer side of a picture that is shown to a graph in its own size (pixels); larger ones are made smaller."""

MOST_SEEN_PIXELS = 2**20
"""Pixels that a validation tells of what the model is shown, of all files of a request together (count)."""


class PictureInput(MediaInput):
    """Which model; the pictures are the files."""

    @property
    def work(self) -> int:
        """Pixels, as the files' headers say."""
        return sum([pixels_in(file.data) for file in self.files])


class PictureResult(BaseModel):
    """What every result of a picture begins with."""

    filename: str | None = Field(description="As sent with the part; null for a raw body.", examples=["cat.jpg"])
    width: int = Field(description="Pixels, after the EXIF orientation is applied.", examples=[640])
    height: int = Field(description="Pixels, after the EXIF orientation is applied.", examples=[480])


class DrawablePictureInput(PictureInput):
    """Base of requests whose answer can be drawn on the picture: for tasks with `other_answers` in PNG."""

    format: Literal["json", "png"] = Field(
        default="json",
        description="`png`: the one picture sent, as large as it is displayed, with the answer drawn on it.",
    )


def picture_fields(file: Upload, view: View) -> dict[str, Any]:
    """The fields of `PictureResult`."""
    return {"filename": file.filename, "width": view.width, "height": view.height}


MOST_SIDE = 16_384
"""Longest side to which a picture is resized (pixels)."""
MOST_SCALE, LEAST_STD = 10.0, 1e-6
"""Bounds of mean and std: beyond them nothing is left of a picture, or it is for another scale."""

Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class Preprocessing(TaskOptions):
    """How a picture becomes the graph's input; the manifest's `[preprocessing]` table."""

    resize: Resize = "stretch"
    """`stretch` makes the whole picture fit; `crop` keeps the aspect ratio and takes the centre; `letterbox` keeps it
    and puts grey around the whole picture."""
    resize_to: Side | None = None
    """With `crop`: length of the shorter side before the centre is taken (pixels); left out: the graph's size."""
    filter: Filter = "bilinear"
    """Pillow's resampling filter."""
    exact: bool = False
    """Decode JPEGs whole, however large they are."""
    mean: float | tuple[float] | tuple[float, float, float] = 0.0
    """Subtracted from each colour, on a scale of 0..1; float graphs only."""
    std: float | tuple[float] | tuple[float, float, float] = 1.0
    """Each colour is divided by it afterwards; float graphs only."""
    size: Side | tuple[Side, Side] | None = None
    """Of the picture that the graph gets, or its height and width (pixels), where the graph leaves them free."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """Which axis of the graph's input holds the colours, where its shape does not tell."""

    @model_validator(mode="after")
    def _numbers_are_possible(self) -> Self:
        for name, least in (("mean", -MOST_SCALE), ("std", LEAST_STD)):
            for number in np.atleast_1d(getattr(self, name)).tolist():
                if not least <= number <= MOST_SCALE:  # false for NaN as well
                    large = " They are on a scale of 0 to 1: divide by 255 what is on one of 0 to 255."
                    raise ValueError(
                        f"{name} has {number:g}; every number must be from {least:g} to {MOST_SCALE:g}."
                        f"{large if abs(number) > MOST_SCALE else ''}".removesuffix(".")
                    )
        return self


class PictureTensors(TaskOptions):
    """Which input of the graph is what; the manifest's `[tensors]` table."""

    picture: str | None = None
    """The input that takes the picture; left out: the only one there is."""


class PictureOptions(TaskOptions):
    """What the manifest of every model of pictures may say."""

    tensors: PictureTensors = PictureTensors()
    preprocessing: Preprocessing = Preprocessing()


PictureInputT = TypeVar("PictureInputT", bound=PictureInput)
Decoded = tuple[Array, View]
"""Pixels as large as the graph's input, uint8 (height, width, channels), and which part of the picture they show."""


class PictureTask(MediaTask[PictureInputT, OutputT, Decoded], Generic[PictureInputT, OutputT]):
    """Base of tasks that take pictures.

    Attributes:
        kind: what its models are called, as in "an image classifier takes one input".
        picture: the graph's input that takes the picture.
    """

    Options: ClassVar[type[TaskOptions]] = PictureOptions
    options: PictureOptions
    media: ClassVar[tuple[str, ...]] = (
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "image/bmp",
        "image/tiff",
        "image/avif",
        "application/octet-stream",
    )
    noun = "Image"
    sample_file = "photo.jpg"
    sample_data_url = _HORSE

    kind: ClassVar[str] = "a model of pictures"

    @classmethod
    def recognises(cls, data: bytes) -> bool:
        return format_of(data) is not None

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        self.graph_file = folder.graph_file()
        self.picture = self._picture_input()
        self._channels_last, self._channels, self._size = self._layout()
        wanted, (height, width) = self.options.preprocessing, self._size or (MOST_OWN_SIDE, MOST_OWN_SIDE)
        self._frame = Frame(
            width,
            height,
            wanted.resize,
            wanted.resize_to,
            wanted.filter,
            exact=wanted.exact,
            channels=self._channels,
        )
        self._scale, self._shift = self._normalisation()

    # --- the graph's input

    def _picture_input(self) -> TensorSpec:
        """The input that takes the picture."""
        inputs, name = self.folder.signature.inputs, self.options.tensors.picture
        if name is None and len(inputs) == 1:
            (name,) = inputs
        if name is None or len(inputs) > 1:
            there = "; ".join(map(str, inputs.values()))
            raise ManifestInvalid(
                self.graph_file,
                f"{self.kind} takes one input, the picture, and this graph has: {there}. Give the others their "
                "value in the manifest: [constants].",
            )
        return self.folder.input(name, dtype=("uint8", "float32"), rank=4)

    def _layout(self) -> tuple[bool, int, tuple[int, int] | None]:
        """Whether the colours are the last axis, how many there are, and height and width; None where they are free."""
        shape, chosen = self.picture.shape, self.options.preprocessing
        possible = [name for name, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] in (1, 3)]
        layout = chosen.layout or (possible[0] if len(possible) == 1 else None)
        axis = 3 if layout == "NHWC" else 1
        colours = shape[axis] if isinstance(shape[axis], int) else 3
        if layout is None or colours not in (1, 3):
            raise ManifestInvalid(
                self.graph_file,
                f"input {self.picture} should be (batch, height, width, 3) or (batch, 3, height, width), or with 1 in "
                'place of 3. Where that is open, say which in the manifest: [preprocessing] layout = "NCHW" or "NHWC".',
            )
        sides = shape[1:3] if layout == "NHWC" else shape[2:4]
        given = (chosen.size, chosen.size) if isinstance(chosen.size, int) else chosen.size
        if given is None and all(isinstance(side, str | None) for side in sides) and chosen.resize == "stretch":
            return layout == "NHWC", int(colours), None
        if given is None:
            given = tuple(side if isinstance(side, int) else 0 for side in sides)  # type: ignore[assignment]
        if not given or 0 in given or any(isinstance(s, int) and s != g for s, g in zip(sides, given, strict=True)):
            raise ManifestInvalid(
                self.graph_file,
                f"input {self.picture} leaves the picture's size open, or has another than the manifest: write "
                "[preprocessing] size = 224, or [height, width], as the model was trained.",
            )
        return layout == "NHWC", int(colours), given

    def _normalisation(self) -> tuple[Array, Array]:
        """Factor and summand, float32 (channels,), that make the graph's numbers of pixels 0..255."""
        numbers = []
        for name in ("mean", "std"):
            number = np.atleast_1d(np.asarray(getattr(self.options.preprocessing, name), np.float64))
            if len(number) not in (1, self._channels):
                raise ManifestInvalid(
                    f"{self.folder.name}/manifest.toml",
                    f"[preprocessing] {name} has {len(number)} numbers, but the graph takes one channel, grey.",
                )
            numbers.append(np.broadcast_to(number, self._channels))
        mean, std = numbers
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    # --- files

    def decode_file(self, file: Upload, what: str) -> Decoded:
        """Turn an encoded picture into pixels, uint8 (height, width, channels), and what part of it they show.

        Raises:
            InvalidInput: it is no picture that can be read.
            TooLarge: it has more pixels than the limit.
        """
        limit = self.folder.limits.max_image_pixels
        picture = open_picture(file.data, what, max_pixels=limit, least=self._frame.least)
        frame = self._frame
        if self._size is None:
            width, height = own_size(picture.width, picture.height)
            frame = replace(frame, width=width, height=height)
        view = frame.view(picture.width, picture.height)
        return frame.pixels(picture, view), view

    def understood_file(self, file: Upload) -> Understood:
        """What the file is, and the size at which the model sees it."""
        found = header(file.data)
        seen_height, seen_width = self._size or own_size(found.width, found.height)[::-1]
        facts: dict[str, Fact] = {
            "format": found.format,
            "mode": found.mode,
            "width": found.width,
            "height": found.height,
            "exif_orientation": found.orientation,
            "seen_width": seen_width,
            "seen_height": seen_height,
        }
        return Understood(facts, {"max_image_pixels": found.width * found.height})

    def seen(self, run: Run) -> Iterator[bytes]:
        """The pixels that the graph is given, before they are normalised: RGB, or grey where it takes grey.

        Up to `MOST_SEEN_PIXELS`, so that neither the answer becomes long nor the model's thread is held up.
        """
        pixels = run.tensors.get(self.picture.name)
        if pixels is None or pixels.dtype != np.uint8:  # a task that makes the graph's own input
            return
        count, height, width, channels = pixels.shape
        for picture in pixels[: min(count, MOST_SEEN_PIXELS // (height * width))]:
            png = io.BytesIO()
            Image.fromarray(picture[..., 0] if channels == 1 else picture).save(png, "PNG", compress_level=1)
            yield png.getvalue()

    def displayed(self, file: Upload, what: str = "Image") -> Image.Image:
        """The whole picture as a person sees it, RGB and upright: to draw on. Raises what `decode_file` does."""
        limit = self.folder.limits.max_image_pixels
        pixels = open_picture(file.data, what, max_pixels=limit, least=None).pixels
        return Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels

    def answer_files(self, request: PictureInputT, files: Sequence[Upload], decoded: Sequence[Decoded]) -> Steps[Any]:
        if self._size is None and len(decoded) > 1:  # pictures of their own size do not fit together
            results: list[Any] = []
            for file, one in zip(files, decoded, strict=True):
                results += yield from self.answer_files(request, [file], [one])
            return results
        pixels = np.stack([pixels for pixels, _ in decoded]) if len(decoded) > 1 else decoded[0][0][None]
        return (yield from self.answer_pictures(request, files, [view for _, view in decoded], pixels))

    @abstractmethod
    def answer_pictures(
        self, request: PictureInputT, files: Sequence[Upload], views: Sequence[View], pixels: Array
    ) -> Steps[Sequence[Any]]:
        """Answer pictures that fit together: yield runs, receive their outputs, return one result for each picture.

        Args:
            request: with everything but the files.
            files: as sent.
            views: which part of each picture its pixels show.
            pixels: uint8 (batch, height, width, channels); `run` makes a run of them.
        """

    def run(self, pixels: Array, outputs: tuple[str, ...] = ()) -> Run:
        """A run of the main graph on pixels, for the outputs named, or all."""
        return Run({self.picture.name: pixels}, outputs)

    def prepare(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Lay pixels out as the graph wants them: from uint8 (batch, height, width, channels), as of `decode_file`."""
        pixels = tensors.get(self.picture.name)
        if pixels is None or pixels.dtype != np.uint8 or (self.picture.dtype == "uint8" and self._channels_last):
            return tensors
        if self.picture.dtype == "uint8":
            if pixels.shape[3] != self._channels:  # the graph's own input
                return tensors
            return {self.picture.name: np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
        if self._channels_last:
            return {self.picture.name: np.asarray(pixels * self._scale + self._shift)}
        count, height, width, _ = pixels.shape
        planes = np.empty((count, self._channels, height, width), np.float32)
        for colour in range(self._channels):  # one pass per plane beats a transposed copy
            plane = planes[:, colour]
            np.multiply(pixels[..., colour], self._scale[colour], out=plane)
            plane += self._shift[colour]
        return {self.picture.name: planes}


def own_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture for a graph that takes any: its own, or as much smaller as the longest allows."""
    scale = min(1.0, MOST_OWN_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
