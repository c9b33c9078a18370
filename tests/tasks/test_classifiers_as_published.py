"""Graphs as people export them: other names, layouts and endings, one channel, free sizes, float16, several labels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from PIL import Image

from service.registry.registry import Registry
from tests import graphs
from tests.conftest import running

make = helper.make_node
PINK = (200, 0, 100)
PIXELS = np.array(PINK) / 255
"""What the graph below gives as logits for a picture of one colour: the mean of each channel."""


def softmax(logits: Any) -> np.ndarray:
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum()


def sigmoid(logits: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def means(
    path: Path,
    shape: tuple[Any, ...] = ("batch", 3, 4, 4),
    ending: list[Any] | None = None,
    outputs: Any = (("logits", T.FLOAT, ["batch", 3]),),
    kind: int = T.FLOAT,
    constants: dict[str, Any] | None = None,
) -> Path:
    """The mean of each channel of `x`, (batch, channels), as `mean`; the ending leads from there to the outputs."""
    axes = [1, 2] if shape[3] in (1, 3) else [2, 3]
    pooled = make("ReduceMean", ["x"], ["mean"], axes=axes, keepdims=0)
    ending = ending or [make("Identity", ["mean"], [outputs[0][0]])]
    return graphs.save(path, [pooled, *ending], [("x", kind, list(shape))], outputs, constants)


def published(models: Path, manifest: str = "", labels: str = "red\ngreen\nblue\n", **graph: Any) -> Path:
    """A folder as somebody makes one of a file from the Internet."""
    folder = models / "published"
    means(folder / "1" / "model.onnx", **graph)
    (folder / "1" / "labels.txt").write_text(labels)
    (folder / "manifest.toml").write_text(f'task = "image-classification"\n{manifest}\n')
    return folder


def reason(models: Path) -> str:
    registry = Registry(models)
    registry.load()
    return registry.get("published").reason


async def ask(client: httpx.AsyncClient, picture: bytes | None = None) -> dict[str, Any]:
    answer = await client.post("/v1/image-classification", content=picture or graphs.png(PINK, (4, 4)))
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]


async def scores(models: Path, picture: bytes | None = None) -> dict[str, float]:
    """Label -> score, of a picture of one colour."""
    async with running(models) as client:
        return {entry["label"]: entry["score"] for entry in (await ask(client, picture))["predictions"]}


def alike(found: dict[str, float], expected: Any, tolerance: float = 1e-5) -> bool:
    return found == pytest.approx(dict(zip(["red", "green", "blue"], expected, strict=True)), abs=tolerance)


# --- which output


def named(*names: str) -> Any:
    return {
        "ending": [make("Identity", ["mean"], [name]) for name in names],
        "outputs": [(name, T.FLOAT, ["batch", 3]) for name in names],
    }


@pytest.mark.parametrize("name", ["output", "495", "dense_1", "prob_1", "Identity:0"])
async def test_the_only_output_needs_no_name(tmp_path: Path, name: str) -> None:
    published(tmp_path, **named(name))
    assert alike(await scores(tmp_path), softmax(PIXELS))


async def test_the_output_called_logits_goes_before_others(tmp_path: Path) -> None:
    published(tmp_path, **named("aux", "logits", "features"))
    assert alike(await scores(tmp_path), softmax(PIXELS))


async def test_the_output_with_a_number_for_each_label_is_taken(tmp_path: Path) -> None:
    ending = [
        make("Identity", ["mean"], ["scores"]),
        make("Concat", ["mean", "mean"], ["features"], axis=1),
        make("ArgMax", ["mean"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [("label", T.INT64, ["batch"]), ("features", T.FLOAT, ["batch", 6]), ("scores", T.FLOAT, ["batch", 3])]
    published(tmp_path, ending=ending, outputs=outputs)
    assert alike(await scores(tmp_path), softmax(PIXELS))


async def test_of_several_the_manifest_says_which(tmp_path: Path) -> None:
    ending = [make("Identity", ["mean"], ["output_0"]), make("Neg", ["mean"], ["output_1"])]
    outputs = [("output_0", T.FLOAT, ["batch", 3]), ("output_1", T.FLOAT, ["batch", 3])]
    published(tmp_path, ending=ending, outputs=outputs)
    assert reason(tmp_path) == (
        "published/1/model.onnx: several outputs may be the classes' scores: output_0 float32 (batch, 3); "
        'output_1 float32 (batch, 3). Say which in the manifest: [tensors] logits = "output_0".'
    )
    published(tmp_path, '[tensors]\nlogits = "output_1"', ending=ending, outputs=outputs)
    assert alike(await scores(tmp_path), softmax(-PIXELS))


def test_an_output_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    published(tmp_path, '[tensors]\nlogits = "logit"')
    assert "has no output named 'logit' with a float for each class, (batch, classes); it has: logits" in reason(
        tmp_path
    )
    published(tmp_path, '[tensors]\npicture = "image"')
    assert "has no input named 'image'" in reason(tmp_path)
    published(tmp_path, '[tensors]\nlogit = "logits"')
    assert "[tensors] logit is not known" in reason(tmp_path)


@pytest.mark.parametrize("shape", [[1, 1], [1], []])
async def test_axes_of_size_1_around_the_classes_do_not_matter(tmp_path: Path, shape: list[int]) -> None:
    ending = [make("Reshape", ["mean", "shape"], ["logits"])]
    published(
        tmp_path,
        ending=ending,
        outputs=[("logits", T.FLOAT, ["batch", 3, *shape])],
        constants={"shape": np.array([-1, 3, *shape])},
    )
    assert alike(await scores(tmp_path), softmax(PIXELS))


# --- what the numbers are

ENDINGS = {
    "none": ([make("Identity", ["mean"], ["logits"])], softmax(PIXELS)),
    "softmax": ([make("Softmax", ["mean"], ["logits"])], softmax(PIXELS)),
    "log_softmax": ([make("LogSoftmax", ["mean"], ["logits"])], softmax(PIXELS)),
    "sigmoid": ([make("Sigmoid", ["mean"], ["logits"])], sigmoid(PIXELS)),
}


@pytest.mark.parametrize("activation", ENDINGS)
async def test_what_is_in_the_graph_already_is_not_applied_again(tmp_path: Path, activation: str) -> None:
    ending, expected = ENDINGS[activation]
    published(tmp_path, ending=ending)
    assert alike(await scores(tmp_path), expected)


@pytest.mark.parametrize(
    ("manifest", "ending", "expected"),
    [
        ('activation = "none"', "softmax", softmax(softmax(PIXELS))),
        ('activation = "softmax"', "none", PIXELS),
        ('activation = "sigmoid"', "none", PIXELS),
        ("multi_label = true", "none", sigmoid(PIXELS)),
        ("multi_label = false", "sigmoid", sigmoid(PIXELS)),
        ('multi_label = true\nactivation = "none"', "softmax", sigmoid(softmax(PIXELS))),
    ],
)
async def test_the_manifest_goes_before_what_the_graph_seems_to_say(
    tmp_path: Path, manifest: str, ending: str, expected: Any
) -> None:
    published(tmp_path, manifest, ending=ENDINGS[ending][0])
    assert alike(await scores(tmp_path), expected)


def one_number(*last: Any) -> Any:
    """An ending with one number for each picture: the mean of red less 0.5."""
    ending = [
        make("Slice", ["mean", "zero", "one", "one"], ["red"]),
        make("Sub", ["red", "half"], ["less" if last else "out"]),
        *last,
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "half": np.float32(0.5)}
    return {"ending": ending, "outputs": [("out", T.FLOAT, ["batch", 1])], "constants": constants}


@pytest.mark.parametrize("last", [[make("Sigmoid", ["less"], ["out"])], []])
async def test_one_number_for_two_labels_is_the_probability_of_the_second(tmp_path: Path, last: list[Any]) -> None:
    published(tmp_path, labels="no\nyes\n", **one_number(*last))
    yes = sigmoid(PIXELS[0] - 0.5)
    assert await scores(tmp_path) == pytest.approx({"yes": yes, "no": 1 - yes}, abs=1e-5)


async def test_one_number_for_one_label_is_its_probability(tmp_path: Path) -> None:
    published(tmp_path, labels="red\n", **one_number())
    assert await scores(tmp_path) == pytest.approx({"red": sigmoid(PIXELS[0] - 0.5)}, abs=1e-5)


def test_one_number_for_three_labels_is_refused(tmp_path: Path) -> None:
    published(tmp_path, **one_number())
    assert reason(tmp_path) == "published/1/labels.txt: has 3 labels, but the graph has 1 classes."


async def test_prediction_sets_are_of_models_of_which_one_label_is_true(tmp_path: Path) -> None:
    calibration = "[calibration]\ncoverage = 0.9\nset_threshold = 0.4"
    published(tmp_path, calibration, ending=ENDINGS["softmax"][0])
    async with running(tmp_path) as client:
        assert (await ask(client))["prediction_set"] == {"coverage": 0.9, "labels": ["red"]}
    published(tmp_path, ending=ENDINGS["sigmoid"][0])
    async with running(tmp_path) as client:
        assert (await ask(client))["prediction_set"] is None
    published(tmp_path, calibration, ending=ENDINGS["sigmoid"][0])
    assert "set_threshold is for models of which one label is true" in reason(tmp_path)


@pytest.mark.parametrize("ending", ["softmax", "log_softmax", "sigmoid"])
def test_energy_is_not_told_from_probabilities(tmp_path: Path, ending: str) -> None:
    published(tmp_path, "[calibration]\nabstain_above = 1.0\nabstain_rate = 0.02", ending=ENDINGS[ending][0])
    assert "abstain_above needs a graph that gives logits of every class, or an output `novelty`" in reason(tmp_path)


def test_a_softmax_has_no_independent_labels(tmp_path: Path) -> None:
    published(tmp_path, "multi_label = true", ending=ENDINGS["softmax"][0])
    assert "multi_label = true does not fit a graph that ends in a softmax" in reason(tmp_path)


# --- what the graph takes


@pytest.mark.parametrize("shape", [("batch", 3, 4, 4), ("batch", 4, 4, 3), (1, 3, 4, 4), (2, 4, 4, 3), (None, 3, 4, 4)])
async def test_layouts_and_fixed_batches(tmp_path: Path, shape: Any) -> None:
    published(tmp_path, shape=shape, outputs=[("logits", T.FLOAT, [shape[0], 3])])
    async with running(tmp_path) as client:
        files = [("file", ("a.png", graphs.png(PINK, (9, 5)), "image/png"))] * 3
        answer = (await client.post("/v1/image-classification", files=files)).json()
    for result in answer["results"]:
        assert alike({entry["label"]: entry["score"] for entry in result["predictions"]}, softmax(PIXELS), 1e-3)


@pytest.mark.parametrize("shape", [("batch", 1, 4, 4), ("batch", 4, 4, 1), ("batch", 1, "h", "w")])
@pytest.mark.parametrize("size", [(4, 4), (300, 200)])
async def test_one_channel_is_the_picture_in_grey(tmp_path: Path, shape: Any, size: tuple[int, int]) -> None:
    """By ITU-R 601, as torchvision's Grayscale and OpenCV do: 0.299 red, 0.587 green, 0.114 blue."""
    published(
        tmp_path, "[preprocessing]\nmean = [0.5]\nstd = 0.25", labels="grey\n", shape=shape,
        outputs=[("logits", T.FLOAT, ["batch", 1])],
    )  # fmt: skip
    grey = round(0.299 * 200 + 0.114 * 100) / 255
    assert await scores(tmp_path, graphs.png(PINK, size)) == pytest.approx(
        {"grey": sigmoid((grey - 0.5) / 0.25)}, abs=1e-5
    )


async def test_grey_pixels_of_8_bits(tmp_path: Path) -> None:
    pooled = [make("Cast", ["x"], ["float"], to=T.FLOAT), make("ReduceMean", ["float"], ["m"], axes=[1, 2], keepdims=0)]
    less = [make("Sub", ["m", "seventy"], ["logits"])]
    folder = tmp_path / "published"
    graphs.save(
        folder / "1" / "model.onnx", [*pooled, *less], [("x", T.UINT8, ["batch", 4, 4, 1])],
        [("logits", T.FLOAT, ["batch", 1])], {"seventy": np.float32(70)},
    )  # fmt: skip
    (folder / "1" / "labels.txt").write_text("grey\n")
    (folder / "manifest.toml").write_text('task = "image-classification"')
    assert await scores(tmp_path) == pytest.approx({"grey": sigmoid(71 - 70)}, abs=1e-5)


async def test_pixels_of_8_bits_with_the_channel_first(tmp_path: Path) -> None:
    folder = published(tmp_path)
    nodes = [
        make("Cast", ["x"], ["float"], to=T.FLOAT),
        make("ReduceMean", ["float"], ["mean"], axes=[2, 3], keepdims=0),
        make("Div", ["mean", "full"], ["logits"]),
    ]
    graphs.save(
        folder / "1" / "model.onnx", nodes, [("x", T.UINT8, ["batch", 3, 4, 4])], [("logits", T.FLOAT, ["batch", 3])],
        {"full": np.float32(255)},
    )  # fmt: skip
    assert alike(await scores(tmp_path), softmax(PIXELS))
    async with running(tmp_path) as client:
        body = {"inputs": [{"name": "x", "shape": [1, 3, 4, 4], "datatype": "UINT8", "data": [255] * 48}]}
        answer = (await client.post("/v2/models/published/infer", json=body)).json()
    assert answer["outputs"][0]["data"] == [1, 1, 1]


def halves(size: tuple[int, int]) -> bytes:
    """A picture whose left half is white and whose right half is black."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def areas(path: Path, **_: Any) -> Path:
    """A graph of free size that gives height, width and 100 in hundreds as logits."""
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Cast", ["shape"], ["sizes"], to=T.FLOAT),
        make("Slice", ["sizes", "two", "four"], ["sides"]),
        make("Concat", ["sides", "hundred"], ["three"], axis=0),
        make("Div", ["three", "hundred"], ["hundreds"]),
        make("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        make("Mul", ["mean", "nought"], ["zeros"]),
        make("Add", ["zeros", "hundreds"], ["logits"]),
    ]
    return graphs.save(
        path, nodes, [("x", T.FLOAT, ["batch", 3, "height", "width"])], [("logits", T.FLOAT, ["batch", 3])],
        {"two": np.array([2]), "four": np.array([4]), "hundred": np.array([100], np.float32), "nought": np.float32(0)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("manifest", "sent", "seen"),
    [
        ("", (80, 60), (60, 80)),
        ("", (1024, 256), (128, 512)),
        ("[preprocessing]\nsize = 120", (80, 60), (120, 120)),
        ("[preprocessing]\nsize = [40, 90]", (80, 60), (40, 90)),
        ('[preprocessing]\nsize = 50\nresize = "crop"', (80, 60), (50, 50)),
    ],
)
async def test_a_graph_of_free_size_gets_the_picture_in_its_own_or_as_the_manifest_says(
    tmp_path: Path, manifest: str, sent: tuple[int, int], seen: tuple[int, int]
) -> None:
    folder = published(tmp_path, manifest)
    areas(folder / "1" / "model.onnx")
    assert alike(await scores(tmp_path, halves(sent)), softmax([seen[0] / 100, seen[1] / 100, 1]))


async def test_pictures_of_unequal_size_may_come_in_one_request(tmp_path: Path) -> None:
    areas(published(tmp_path) / "1" / "model.onnx")
    async with running(tmp_path) as client:
        files = [("file", ("a.png", halves(size), "image/png")) for size in ((100, 100), (200, 100), (100, 200))]
        results = (await client.post("/v1/image-classification", files=files)).json()["results"]
    assert [result["predictions"][0]["label"] for result in results][1:] == ["green", "red"]


@pytest.mark.parametrize(
    ("manifest", "shape", "sentence"),
    [
        ('[preprocessing]\nresize = "crop"', ("n", 3, "h", "w"), "leaves the picture's size open"),
        ("", ("n", 3, "h", 4), "leaves the picture's size open"),
        ("[preprocessing]\nsize = 8", ("n", 3, 4, 4), "or has another than the manifest"),
        ("", ("n", 3, 4, 3), '[preprocessing] layout = "NCHW" or "NHWC"'),
        ("", ("n", "c", "h", "w"), '[preprocessing] layout = "NCHW" or "NHWC"'),
        ("", ("n", 4, 4, 4), "should be (batch, height, width, 3) or (batch, 3, height, width), or with 1 in place of 3"),
        ("[preprocessing]\nsize = 0", ("n", 3, "h", "w"), "[preprocessing] size"),
        ("[preprocessing]\nresize_to = -1", ("n", 3, 4, 4), "[preprocessing] resize_to = -1: Input should be greater than or equal to 1"),
        ("[preprocessing]\nmean = [0.5, 0.5, 0.5]", ("n", 1, 4, 4), "[preprocessing] mean has 3 numbers, but the graph takes one channel"),
    ],
)  # fmt: skip
def test_what_is_left_open_or_contradicts_is_named(tmp_path: Path, manifest: str, shape: Any, sentence: str) -> None:
    classes = 1 if shape[1] == 1 else 3
    labels = "grey\n" if classes == 1 else "red\ngreen\nblue\n"
    published(tmp_path, manifest, labels, shape=shape, outputs=[("logits", T.FLOAT, ["n", classes])])
    assert sentence in reason(tmp_path)


async def test_a_layout_that_the_shape_does_not_tell_is_the_manifests(tmp_path: Path) -> None:
    published(tmp_path, '[preprocessing]\nlayout = "NCHW"', shape=("batch", "c", "h", "w"))
    assert alike(await scores(tmp_path), softmax(PIXELS))


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ("std = 0", "std has 0; every number must be from 1e-06 to 10"),
        ("std = [0.2, 0.0, 0.2]", "std has 0; every number must be from 1e-06 to 10"),
        ("std = nan", "std has nan; every number must be from 1e-06 to 10"),
        ("std = -0.2", "std has -0.2; every number must be from 1e-06 to 10"),
        ("std = inf", "std has inf; every number must be from 1e-06 to 10"),
        ("std = 1e-300", "std has 1e-300; every number must be from 1e-06 to 10"),
        ("std = [58.4, 57.1, 57.4]", "They are on a scale of 0 to 1: divide by 255 what is on one of 0 to 255"),
        ("mean = [123.7, 116.3, 103.5]", "They are on a scale of 0 to 1: divide by 255 what is on one of 0 to 255"),
        ("mean = nan", "mean has nan; every number must be from -10 to 10"),
        ("mean = [0.1, 0.2]", "[preprocessing] mean"),
    ],
)
def test_numbers_that_would_spoil_every_picture_are_refused(tmp_path: Path, numbers: str, sentence: str) -> None:
    published(tmp_path, f"[preprocessing]\n{numbers}")
    assert sentence in reason(tmp_path)
    assert ".." not in reason(tmp_path)


# --- float16


async def test_float16_is_cast_both_ways(tmp_path: Path) -> None:
    published(
        tmp_path,
        "[preprocessing]\nmean = 0.5\nstd = 0.25",
        kind=T.FLOAT16,
        outputs=[("logits", T.FLOAT16, ["batch", 3])],
    )
    async with running(tmp_path) as client:
        result = await ask(client)
        assert alike({p["label"]: p["score"] for p in result["predictions"]}, softmax((PIXELS - 0.5) / 0.25), 5e-3)
        metadata = (await client.get("/v2/models/published")).json()
        assert metadata["inputs"][0]["datatype"] == metadata["outputs"][0]["datatype"] == "FP16"
        body = {"inputs": [{"name": "x", "shape": [1, 3, 4, 4], "datatype": "FP16", "data": [0.5] * 48}]}
        (output,) = (await client.post("/v2/models/published/infer", json=body)).json()["outputs"]
    assert (output["datatype"], output["data"]) == ("FP16", [0.5, 0.5, 0.5])
