"""From encoded pictures to tensors, and from logits to labels and heatmaps."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidInput, ManifestInvalid, TooLarge
from service.runtime.batcher import drive
from service.runtime.session import OnnxSession
from service.tasks.base import Limits, ModelFolder, Signature, TensorSpec, Upload
from service.tasks.image_classification import (
    ImageClassification,
    ImageClassificationInput,
    View,
    heatmap,
    softmax,
    top_k,
)
from tests import graphs


def folder(
    tmp_path: Path, shape: tuple[Any, ...], dtype: str, limits: Limits | None = None, **options: Any
) -> ModelFolder:
    """A folder of a three-class model with the given picture input; no graph is needed to decode."""
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    signature = Signature(
        {"image": TensorSpec("image", dtype, ("batch", *shape))},
        {"logits": TensorSpec("logits", "float32", ("batch", 3))},
    )
    return ModelFolder("colours", "1", tmp_path, signature, {"preprocessing": options}, limits or Limits())


def task(
    tmp_path: Path, shape: tuple[Any, ...] = (2, 2, 3), dtype: str = "uint8", **options: Any
) -> ImageClassification:
    return ImageClassification(folder(tmp_path, shape, dtype, **options))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> Upload:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return Upload(buffer.getvalue())


def halves(left: Any, right: Any, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    """A picture whose left and right halves have one colour each."""
    picture = Image.new(mode, size, left)
    picture.paste(Image.new(mode, (size[0] // 2, size[1]), right), (size[0] // 2, 0))
    return picture


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_every_format_is_read(tmp_path: Path, form: str) -> None:
    picture = halves("red", "blue", size=(64, 64))
    pixels, views = task(tmp_path, filter="box").decode([encoded(picture, form)])
    assert pixels.shape == (1, 2, 2, 3)
    assert np.abs(pixels[0, 0].astype(int) - [[255, 0, 0], [0, 0, 255]]).max() <= 20  # JPEG and WebP are not exact
    assert views == [View(64, 64, (0.0, 0.0, 1.0, 1.0))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """A picture stored turned or mirrored comes out upright, with its upright size."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that store it so
    upright = halves("red", "blue", size=(8, 4))
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, views = task(tmp_path, filter="box").decode([encoded(stored, exif=exif)])
    assert (views[0].width, views[0].height) == (8, 4)
    assert pixels[0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))],
)
def test_transparency_is_composed_on_white(tmp_path: Path, mode: str, colour: Any) -> None:
    pixels, _ = task(tmp_path).decode([encoded(Image.new(mode, (2, 2), colour))])
    assert pixels.min() == 255


def test_a_transparent_palette_is_composed_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([0, 0, 0] * 256)
    pixels, _ = task(tmp_path).decode([encoded(picture, transparency=0)])
    assert pixels.min() == 255


def test_sixteen_bits_a_pixel_keep_their_brightness(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    pixels, _ = task(tmp_path).decode([encoded(grey)])
    assert set(pixels.ravel().tolist()) == {0x80}


def test_grey_and_cmyk_become_colours(tmp_path: Path) -> None:
    assert task(tmp_path).decode([encoded(Image.new("L", (2, 2), 7))])[0][0, 0, 0].tolist() == [7, 7, 7]
    pixels, _ = task(tmp_path).decode([encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG")])
    assert pixels.min() >= 250


def test_only_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    pixels, _ = task(tmp_path).decode([encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])])
    assert pixels[0, 0, 0].tolist() == [255, 0, 0]


def test_cropping_takes_the_centre_and_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    """A 16x8 picture, red and blue only at its far sides: the centre is green."""
    picture = Image.new("RGB", (16, 8), "red")
    picture.paste("lime", (4, 0, 12, 8))
    pixels, views = task(tmp_path, resize="crop", filter="box").decode([encoded(picture)])
    assert pixels.reshape(-1, 3).tolist() == [[0, 255, 0]] * 4
    assert views[0].box == (0.25, 0.0, 0.75, 1.0)


def test_a_float_graph_gets_planes_normalised_with_the_manifests_mean_and_std(tmp_path: Path) -> None:
    classifier = task(tmp_path, (3, 2, 2), "float32", mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    pixels, _ = classifier.decode([Upload(graphs.png((255, 0, 255)))])
    (planes,) = classifier.prepare({"image": pixels}).values()
    assert planes.shape == (1, 3, 2, 2)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(planes[0, :, 0, 0], [1.0, -2.0, 0.5], atol=1e-6)
    assert classifier.prepare({"image": planes})["image"] is planes


def test_an_image_over_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    classifier = task(tmp_path, limits=Limits(max_image_pixels=100))
    header_only = graphs.png(size=(11, 10))[:60]
    with pytest.raises(TooLarge, match="110 pixels, more than the 100 pixels"):
        classifier.decode([Upload(header_only)])


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", graphs.png(size=(50, 50))[:100], b"GIF89a", b"\xff\xd8\xff"]
)
def test_what_is_no_whole_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidInput, match="Image 1"):
        task(tmp_path).decode([Upload(data)])


JPEG = graphs.png(size=(64, 48), form="JPEG")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, len(JPEG)), st.sampled_from([graphs.png(size=(40, 40)), JPEG, b""]))
def test_damaged_bytes_are_refused_or_read_but_never_crash(data: bytes, place: int, around: bytes) -> None:
    with tempfile.TemporaryDirectory() as path:
        classifier = task(Path(path))
    with suppress(InvalidInput):
        classifier.decode([Upload(around[:place] + data + around[place + len(data) :])])


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_probabilities_sum_to_one_and_come_best_first(logits: list[list[float]], k: int) -> None:
    scores = softmax(np.array(logits, np.float32))
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    best = top_k(scores, k)
    assert best.shape == (len(logits), min(k, 3))
    for row, order in zip(scores, best, strict=True):
        assert row[order].tolist() == sorted(row.tolist(), reverse=True)[:k]


def test_a_heatmap_has_the_images_shape_and_points_at_the_right_corner() -> None:
    values = heatmap(np.array([[0.0, 0.0], [0.0, 8.0]], np.float32), View(32, 16, (0.0, 0.0, 1.0, 1.0)))
    assert values.shape == (8, 16)
    assert (values[-1, -1], values[0, 0]) == (1, 0)


def test_a_heatmap_is_zero_where_the_model_did_not_look() -> None:
    values = heatmap(np.array([[1.0, 2.0]], np.float32), View(32, 16, (0.25, 0.0, 0.75, 1.0)))
    assert values[:, :4].max() == values[:, -4:].max() == 0
    assert values[:, 4:-4].max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (2, 2, 4)}, r"should be \(batch, height, width, 3\)"),
        ({"shape": ("h", "w", 3)}, r"should be \(batch, height, width, 3\)"),
        ({"dtype": "int64"}, "should be uint8 or float32"),
        ({"resize": "squeeze"}, r"\[preprocessing\] resize"),
        ({"colour": "bgr"}, r"\[preprocessing\] colour"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ManifestInvalid, match=message):
        task(tmp_path, **change)


def test_labels_must_be_as_many_as_classes(tmp_path: Path) -> None:
    made = folder(tmp_path, (2, 2, 3), "uint8")
    (tmp_path / "labels.txt").write_text("red\ngreen\n")
    with pytest.raises(ManifestInvalid, match="has 2 labels, but the graph has 3 classes"):
        ImageClassification(made)


def test_explaining_needs_a_graph_that_can(tmp_path: Path) -> None:
    request = ImageClassificationInput(explain=True, files=(Upload(graphs.png()),))
    with pytest.raises(InvalidInput, match="gives no activation map"):
        next(task(tmp_path).steps(request))


def test_the_whole_way_by_mental_arithmetic(tmp_path: Path) -> None:
    """Logits (2, 0, 1): e^2 / (e^2 + 1 + e) = 0.665."""
    model = graphs.colour_model(tmp_path)
    session = OnnxSession(model / "1" / "model.onnx")
    classifier = ImageClassification(ModelFolder("colours", "1", model / "1", session.signature))
    answer = drive(session, classifier.steps(ImageClassificationInput(files=(Upload(graphs.png()),))))
    assert answer.to_json().startswith(b'{"model":{"name":"colours","version":"1"}')
    (result,) = answer.results
    assert [p["label"] for p in result["predictions"]] == ["red", "blue", "green"]  # type: ignore[index]
    assert result["predictions"][0]["score"] == pytest.approx(0.665, abs=1e-3)  # type: ignore[index]


def test_many_images_are_run_a_slice_at_a_time(tmp_path: Path) -> None:
    """Their tensors must not all be in memory; the answer is one list all the same."""
    files = tuple(Upload(graphs.png((n, 0, 0)), f"{n}.png") for n in range(70))
    steps = task(tmp_path).steps(ImageClassificationInput(files=files))
    sizes, run = [], next(steps)
    for _ in range(2):
        sizes.append(run.rows)
        run = steps.send({"logits": np.zeros((run.rows, 3), np.float32)})
    assert [*sizes, run.rows] == [32, 32, 6]
    with pytest.raises(StopIteration) as stop:
        steps.send({"logits": np.zeros((run.rows, 3), np.float32)})
    assert [result["filename"] for result in stop.value.value.results] == [f"{n}.png" for n in range(70)]


def test_a_bad_image_is_named_by_its_place_in_the_request(tmp_path: Path) -> None:
    files = (*[Upload(graphs.png())] * 40, Upload(b"nonsense"))
    steps = task(tmp_path).steps(ImageClassificationInput(files=files))
    run = next(steps)
    with pytest.raises(InvalidInput, match="Image 41 is not an image"):
        steps.send({"logits": np.zeros((run.rows, 3), np.float32)})
