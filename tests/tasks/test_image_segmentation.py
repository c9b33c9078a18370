"""From scores at the model's scale to a label for every pixel, and from two answers to what tells them apart."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image
from pycocotools import mask as coco

from service.errors import InvalidInput, ManifestInvalid
from service.media.palette import palette
from service.media.views import View
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.tasks.base import ModelFolder, Signature, TensorSpec, Upload
from service.tasks.image_segmentation import ImageSegmentation, ImageSegmentationInput, Segmentation, dilated
from service.tasks.terminal import Table
from tests import graphs

WHOLE = (0.0, 0.0, 1.0, 1.0)
COLOURS = ("red", "green", "blue")


def scores_of_colours(path: Path, layout: str = "NCHW", *, last: str | None = None) -> Path:
    """A segmenter of pictures of 4x4: at each place, the scores are red, green and blue in tens; perhaps a softmax of
    them."""
    axis = 1 if layout == "NCHW" else 3
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=T.FLOAT),
        helper.make_node("Div", ["values", "ten"], ["scores_last"]),
        helper.make_node("Transpose", ["scores_last"], ["laid_out"], perm=[0, 3, 1, 2])
        if layout == "NCHW"
        else helper.make_node("Identity", ["scores_last"], ["laid_out"]),
        helper.make_node(last, ["laid_out"], ["scores"], axis=axis)
        if last == "Softmax"
        else helper.make_node(last or "Identity", ["laid_out"], ["scores"]),
    ]
    shape = ["batch", 3, 4, 4] if layout == "NCHW" else ["batch", 4, 4, 3]
    return graphs.save(
        path,
        nodes,
        [("image", T.UINT8, ["batch", 4, 4, 3])],
        [("scores", T.FLOAT, shape)],
        {"ten": np.float32(10)},
    )


def brightness(path: Path, *, last: str | None = None) -> Path:
    """A segmenter of one class, of grey pictures of 4x4: the score is (value - 100) / 10; perhaps a sigmoid of it."""
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=T.FLOAT),
        helper.make_node("Sub", ["values", "hundred"], ["above"]),
        helper.make_node("Div", ["above", "ten"], ["tens"]),
        helper.make_node(last or "Identity", ["tens"], ["scores"]),
    ]
    return graphs.save(
        path,
        nodes,
        [("image", T.UINT8, ["batch", 4, 4, 1])],
        [("scores", T.FLOAT, ["batch", 4, 4, 1])],
        {"ten": np.float32(10), "hundred": np.float32(100)},
    )


def model(
    tmp_path: Path, make: Any = scores_of_colours, labels: Any = COLOURS, manifest: str = "", **graph: Any
) -> Any:
    """A loaded segmenter."""
    folder = tmp_path / "segmenter"
    make(folder / "1" / "model.onnx", **graph)
    (folder / "1" / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    (folder / "manifest.toml").write_text(f'task = "image-segmentation"\n{manifest}')
    return load_version(folder / "1", read_manifest(folder), ImageSegmentation, LoadOptions())


def png(pixels: Any) -> Upload:
    """A picture as an upload, of uint8 (height, width, 3) or (height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return Upload(buffer.getvalue(), "picture.png", "image/png")


def ask(handle: ModelHandle, *pictures: Upload, **fields: Any) -> list[dict[str, Any]]:
    request = ImageSegmentationInput(files=pictures, **fields)
    results: list[dict[str, Any]] = json.loads(handle.predict_now(request).to_json())["results"]
    return results


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def quarters(side: int = 4) -> Any:
    """A picture of which a half is red (200), a quarter green (100), a quarter blue (50)."""
    half = side // 2
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:half, :, 0] = 200
    pixels[half:, :half, 1] = 100
    pixels[half:, half:, 2] = 50
    return pixels


# --- the answer


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_each_pixel_has_the_label_with_the_best_score(tmp_path: Path, layout: str) -> None:
    (result,) = ask(model(tmp_path, layout=layout), png(quarters()))
    assert (result["filename"], result["width"], result["height"]) == ("picture.png", 4, 4)
    assert np.asarray(opened(result["class_map"])).tolist() == [[0] * 4] * 2 + [[1, 1, 2, 2]] * 2
    assert [(one["label"], one["index"], one["fraction"]) for one in result["segments"]] == [
        ("red", 0, 0.5),
        ("green", 1, 0.25),
        ("blue", 2, 0.25),
    ]
    # Logits 20, 10 and 5 against two zeros.
    scores = [one["score"] for one in result["segments"]]
    np.testing.assert_allclose(scores, [1 / (1 + 2 * np.exp(-x)) for x in (20, 10, 5)], atol=1e-6)
    assert all("mask" not in one for one in result["segments"])


def test_the_class_map_is_as_large_as_the_picture_and_has_the_same_palette_always(tmp_path: Path) -> None:
    handle = model(tmp_path)
    tall, flat = ask(handle, png(quarters(40)[:, :20]), png(np.full((6, 300, 3), 7)))
    for result, size in ((tall, (20, 40)), (flat, (300, 6))):
        image = opened(result["class_map"])
        assert (image.mode, image.size) == ("P", size)
        assert np.asarray(image.getpalette()).tolist()[:9] == palette()[:3].ravel().tolist()


def test_scores_are_enlarged_and_not_labels(tmp_path: Path) -> None:
    """Between a strong score on the left and a weak one on the right, the border lies nearer to the weak one."""
    handle = model(tmp_path)
    scores = np.array([[[9.0, 0.0]], [[0.0, 3.0]], [[-9.0, -9.0]]], np.float32)  # (labels, 1, 2)
    found = handle.task.segment(scores, View(400, 1, WHOLE))
    # Between the middles of the two cells, at 100 and 300: 9 (1 - t) = 3 t at t = 0.75.
    assert np.flatnonzero(np.diff(found.class_map[0])).tolist() == [249]


def test_segments_are_exactly_the_values_of_the_map_and_fractions_add_up_to_one(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (23, 31, 3))
    (result,) = ask(model(tmp_path), png(pixels))
    class_map, segments = np.asarray(opened(result["class_map"])), result["segments"]
    assert sorted(one["index"] for one in segments) == np.unique(class_map).tolist()
    assert sum(one["fraction"] for one in segments) == pytest.approx(1)
    assert [one["fraction"] for one in segments] == sorted((one["fraction"] for one in segments), reverse=True)
    for one in segments:
        assert one["fraction"] == (class_map == one["index"]).mean()


def test_the_border_of_a_letterboxed_picture_is_not_in_the_map(tmp_path: Path) -> None:
    handle = model(tmp_path, manifest='[preprocessing]\nresize = "letterbox"\n')
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 1] = pixels[:, 8:, 2] = 200
    (result,) = ask(handle, png(pixels))
    assert [(one["label"], one["fraction"]) for one in result["segments"]] == [("green", 0.5), ("blue", 0.5)]


# --- masks


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools, with NumPy 2
def test_masks_are_pictures_of_one_bit_or_cocos_run_lengths(tmp_path: Path) -> None:
    handle, picture = model(tmp_path), png(quarters(10)[:, :7])
    (plain,), (bits,), (runs,) = (ask(handle, picture, masks=kind) for kind in ("none", "png", "rle"))
    class_map = np.asarray(opened(plain["class_map"]))
    assert bits["class_map"] == runs["class_map"] == plain["class_map"]
    for one, other in zip(bits["segments"], runs["segments"], strict=True):
        here = class_map == one["index"]
        image = opened(one["mask"])
        assert image.mode == "1"
        assert (np.asarray(image) == here).all()
        counts = other["mask"]["counts"]
        assert other["mask"]["size"] == [10, 7]
        assert (coco.decode({"size": other["mask"]["size"], "counts": counts.encode()}) == here).all()


# --- drawn


def test_format_png_lays_the_labels_over_the_picture(tmp_path: Path) -> None:
    handle = model(tmp_path)
    answer = handle.predict_now(ImageSegmentationInput(files=(png(quarters(64)),), format="png"))
    assert answer.content_type == "image/png"
    drawn = Image.open(io.BytesIO(answer.data))
    assert drawn.size == (64, 64)
    colours = np.asarray(drawn.convert("RGB"), int)
    assert np.abs(colours[5, 60] - palette()[0]).sum() < np.abs(np.array([200, 0, 0]) - palette()[0].astype(int)).sum()


def test_format_png_takes_one_picture(tmp_path: Path) -> None:
    handle, picture = model(tmp_path), png(quarters())
    with pytest.raises(InvalidInput, match="format=png answers one"):
        handle.predict_now(ImageSegmentationInput(files=(picture, picture), format="png"))


# --- graphs of other kinds


def test_probabilities_of_a_softmax_in_the_graph_are_taken_as_they_are(tmp_path: Path) -> None:
    (after,) = ask(model(tmp_path / "a", last="Softmax"), png(quarters()))
    (before,) = ask(model(tmp_path / "b"), png(quarters()))
    assert after["class_map"] == before["class_map"]
    for one, other in zip(after["segments"], before["segments"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)


@pytest.mark.parametrize("last", [None, "Sigmoid"])
def test_one_class_scores_the_second_of_two_labels(tmp_path: Path, last: str | None) -> None:
    handle = model(tmp_path, brightness, ("background", "road"), last=last)
    (result,) = ask(handle, png([[120] * 4, [120] * 4, [120] * 4, [90] * 4]))
    assert np.asarray(opened(result["class_map"])).tolist() == [[1] * 4] * 3 + [[0] * 4]
    road, background = result["segments"]
    assert (road["label"], road["fraction"]) == ("road", 0.75)
    assert road["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert background["score"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)


def test_logits_far_apart_overflow_nothing(tmp_path: Path) -> None:
    handle = model(tmp_path, brightness, ("background", "road"))
    with np.errstate(over="raise", invalid="raise"):
        found = handle.task.segment(np.array([[[-1e6, 1e6]]], np.float32), View(2, 1, WHOLE))
    assert found.class_map.tolist() == [[0, 1]]
    assert found.certainty.tolist() == [1, 1]


def folder(tmp_path: Path, labels: int, *outputs: tuple[Any, ...], **options: Any) -> ModelFolder:
    """A folder whose graph has these outputs; none is needed to look at it."""
    (tmp_path / "labels.txt").write_text("".join(f"label {number}\n" for number in range(labels)))
    specs = {name: TensorSpec(name, "float32", shape) for name, *shape in outputs for shape in [tuple(shape)]}
    signature = Signature({"image": TensorSpec("image", "uint8", ("batch", 4, 4, 3))}, specs)
    return ModelFolder("segmenter", "1", tmp_path, signature, options)


@pytest.mark.parametrize(
    ("labels", "outputs", "options", "message"),
    [
        (3, [("y", "b", 3)], {}, "has no output of floats"),
        (3, [("y", "b", 5, 9, 9)], {}, r"\(batch, 3, rows, columns\)"),
        (2, [("y", "b", 5, 9, 9)], {}, "or 1 in place of 2"),
        (3, [("y", "b", 3, 9, 9), ("z", "b", 3, 9, 9)], {}, r'\[tensors\] scores = "y"'),
        (3, [("y", "b", 3, 9, 3)], {}, r"\[tensors\] scores_layout"),
        (3, [("y", "b", "k", "h", "w")], {}, r"\[tensors\] scores_layout"),
        (3, [("y", "b", 3, 9, 9)], {"tensors": {"scores": "z"}}, "no output named 'z'"),
        (3, [("y", "b", 3, 9, 9)], {"preprocessing": {"resize": "crop"}}, "every pixel needs a label"),
        (300, [("y", "b", 300, 9, 9)], {}, "has room for 256"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_with_what_to_do(
    tmp_path: Path, labels: int, outputs: Any, options: Any, message: str
) -> None:
    with pytest.raises(ManifestInvalid, match=message):
        ImageSegmentation(folder(tmp_path, labels, *outputs, **options))


def test_the_manifest_says_what_the_graph_leaves_open(tmp_path: Path) -> None:
    open_graph = folder(tmp_path, 3, ("y", "b", "k", "h", "w"), tensors={"scores_layout": "NCHW"})
    square = folder(
        tmp_path, 3, ("y", "b", 3, 9, 3), ("z", "b", 3, 9, 3), tensors={"scores": "z", "scores_layout": "NHWC"}
    )
    assert ImageSegmentation(open_graph).labels == ImageSegmentation(square).labels


# --- large pictures


def test_a_large_picture_takes_little_more_memory_than_its_class_map(tmp_path: Path) -> None:
    """Scores of 50 million pixels and three labels would be 600 MB."""
    handle = model(tmp_path)
    scores = np.random.default_rng(0).normal(size=(3, 9, 12)).astype(np.float32)
    tracemalloc.start()
    try:
        found = handle.task.segment(scores, View(10_000, 1_000, WHOLE))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.class_map.shape == (1_000, 10_000)
    assert found.pixels.sum() == 10_000_000
    assert most < 10_000_000 + 40_000_000  # the map, and one tile of the scores


# --- comparing answers


def answer(handle: ModelHandle, class_map: Any, **fields: Any) -> dict[str, Any]:
    """An answer with a class map, as JSON."""
    class_map = np.asarray(class_map, np.uint8)
    pixels = np.bincount(class_map.ravel(), minlength=3)
    found = handle.task.encode(Segmentation(class_map, pixels, 0.9 * pixels), "none")
    return {"results": [{"width": class_map.shape[1], "height": class_map.shape[0], **found, **fields}]}


def compare(handle: ModelHandle, expected: Any, got: Any, tolerance: float = 0.02) -> str | None:
    found: str | None = handle.task.difference(ImageSegmentationInput(), expected, got, tolerance)
    return found


def halves(border: int = 50, side: int = 100) -> Any:
    """Red on the left of a border, green on its right."""
    class_map = np.zeros((side, side), np.uint8)
    class_map[:, border:] = 1
    return class_map


def test_answers_agree_where_a_border_is_seen_a_pixel_further_on(tmp_path: Path) -> None:
    handle = model(tmp_path)
    assert compare(handle, answer(handle, halves()), answer(handle, halves())) is None
    assert compare(handle, answer(handle, halves()), answer(handle, halves(51))) is None


def test_answers_differ_where_a_border_has_moved_far(tmp_path: Path) -> None:
    handle = model(tmp_path)
    assert "fraction" in (compare(handle, answer(handle, halves()), answer(handle, halves(58))) or "")


def test_answers_differ_where_few_pixels_far_from_any_border_do(tmp_path: Path) -> None:
    handle, spoilt = model(tmp_path), halves()
    spoilt[20:28, 10:18] = 2
    found = compare(handle, answer(handle, halves()), answer(handle, spoilt), tolerance=0.02)
    assert found == "at results[0].class_map: expected 'red' at column 12, row 22, far from any border, got 'blue'"


def test_answers_agree_where_a_speck_comes_or_goes(tmp_path: Path) -> None:
    handle, speck = model(tmp_path), halves()
    speck[20, 10] = 2
    assert compare(handle, answer(handle, halves()), answer(handle, speck)) is None
    assert compare(handle, answer(handle, speck), answer(handle, halves())) is None


def test_a_different_main_label_is_told(tmp_path: Path) -> None:
    handle = model(tmp_path)
    swapped = 1 - halves(45)
    found = compare(handle, answer(handle, halves(55)), answer(handle, swapped), tolerance=0.05)
    assert found is not None


def test_labels_of_about_one_size_may_change_places(tmp_path: Path) -> None:
    handle = model(tmp_path)
    more_green, more_red = answer(handle, halves(50)), answer(handle, halves(51))
    more_green["results"][0]["segments"].reverse()
    assert compare(handle, more_green, more_red, tolerance=0.02) is None


def test_a_score_beyond_the_tolerance_is_told(tmp_path: Path) -> None:
    handle = model(tmp_path)
    expected, got = answer(handle, halves()), answer(handle, halves())
    got["results"][0]["segments"][1]["score"] -= 0.1
    assert "for label 'green'" in (compare(handle, expected, got) or "")


def test_a_map_of_another_size_is_told(tmp_path: Path) -> None:
    handle = model(tmp_path)
    expected = {"results": [{"class_map": answer(handle, halves())["results"][0]["class_map"]}]}
    assert "expected (100, 100) pixels, got (80, 80)" in (
        compare(handle, expected, answer(handle, halves(40, 80))) or ""
    )


def test_fields_that_are_not_expected_do_not_count(tmp_path: Path) -> None:
    handle = model(tmp_path)
    assert compare(handle, {"results": [{"width": 100}]}, answer(handle, halves())) is None
    assert "width" in (compare(handle, {"results": [{"width": 90}]}, answer(handle, halves())) or "")


def test_a_mask_grows_by_the_reach_to_each_side() -> None:
    mask = np.zeros((7, 9), bool)
    mask[3, 4] = True
    grown = dilated(mask, 2)
    assert grown.sum() == 25
    assert grown[1:6, 2:7].all()
    assert dilated(mask, 20).all()


# --- the terminal


def test_a_terminal_shows_a_table_of_labels(tmp_path: Path) -> None:
    handle = model(tmp_path)
    (result,) = ask(handle, png(quarters()))
    (table,) = handle.task.shown_result(ImageSegmentationInput(), result)
    assert isinstance(table, Table)
    assert table.title == "picture.png, 4 x 4 pixels"
    assert table.rows[0][:2] == ("red", "50.0%")


def test_every_way_of_telling_masks_is_documented() -> None:
    described = ImageSegmentationInput.model_fields["masks"]
    assert all(
        f"`{kind}`" in (described.description or "") for kind in get_args(described.annotation) if kind != "none"
    )


def test_the_certainty_of_every_pixel_is_the_probability_of_its_label(tmp_path: Path) -> None:
    """Of red 255 and the others 255 - n, the softmax of tens of them; a sure label is white, a tie of three is a third."""
    picture = np.full((4, 4, 3), 200)
    picture[0, 0] = (250, 0, 0)
    picture[0, 1] = (200, 190, 0)
    (answer,) = ask(model(tmp_path), png(picture), explain=True)
    certainty = np.asarray(opened(answer["certainty_map"]))
    assert (certainty.shape, certainty.dtype) == ((4, 4), np.uint8)
    assert certainty[0, 0] == 255
    assert certainty[0, 1] == round(255 / (1 + np.exp(-1)))
    assert certainty[3, 3] == 85
    mean = {segment["index"]: segment["score"] for segment in answer["segments"]}
    labels = np.asarray(opened(answer["class_map"]))
    for index, score in mean.items():
        assert certainty[labels == index].mean() / 255 == pytest.approx(score, abs=0.003)
    (plain,) = ask(model(tmp_path), png(picture))
    assert "certainty_map" not in plain
