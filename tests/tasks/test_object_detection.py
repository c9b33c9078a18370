"""Object detection: heads as people export them, suppression against other implementations, places in the picture."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto as T
from onnx import helper
from PIL import Image
from pycocotools import mask

from service.errors import InferenceFailed, ManifestInvalid
from service.registry.check import check_folder
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.loading import load_version
from service.registry.manifest import read_manifest
from service.tasks.base import Upload
from service.tasks.object_detection import ObjectDetection, ObjectDetectionInput, overlaps, suppress
from service.tasks.terminal import Table
from tests import graphs
from tests.conftest import running

LABELS = ("cell", "platelet")
WIDTH, HEIGHT = 64, 32
"""Of the graphs' input (pixels)."""

# Two things of 16x8 in a picture of 64x32: a cell at (8, 4) and a platelet at (40, 20).
CORNERS = [[8, 4, 24, 12], [40, 20, 56, 28]]
CENTRES = [[16, 8, 16, 8], [48, 24, 16, 8]]
SCORES = [[0.9, 0.1], [0.2, 0.6]]


def constant_graph(outputs: Mapping[str, Any], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Any:
    """A graph that sees the same in every white picture, whatever is in it, and nothing in a black one.

    Its outputs are the given arrays (n, m) for each picture; those called `scores` are multiplied by its brightness.
    """
    make = helper.make_node

    def write(path: Path) -> Path:
        nodes = [
            make("Cast", ["picture"], ["pixels"], to=T.FLOAT),
            make("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=1),
            make("Div", ["mean", "white"], ["bright4"]),
            make("Squeeze", ["bright4", "last"], ["bright"]),  # (batch, 1, 1)
            make("Mul", ["bright", "nought"], ["none"]),
        ]
        constants: dict[str, Any] = {
            "white": np.float32(255),
            "nought": np.float32(0),
            "last": np.array([3], np.int64),
        }
        for name, value in outputs.items():
            constants[f"{name}_value"] = np.asarray(value, np.float32)[None]
            operator, factor = ("Mul", "bright") if name == "scores" else ("Add", "none")
            nodes.append(make(operator, [f"{name}_value", factor], [name]))
        inputs = [("picture", T.UINT8, ["batch", size[1], size[0], 3])]
        return graphs.save(
            path, nodes, inputs, [(name, T.FLOAT, ["batch", *np.shape(v)]) for name, v in outputs.items()], constants
        )

    return write


def detector(
    models: Path,
    outputs: Mapping[str, Any] | None = None,
    *,
    labels: tuple[str, ...] = LABELS,
    name: str = "cells",
    tables: str = "",
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """A model folder around such a graph."""
    if outputs is None:
        outputs = {"boxes": np.array(CORNERS) / [WIDTH, HEIGHT, WIDTH, HEIGHT], "scores": SCORES}
    folder = graphs.write_model(models / name, task="object-detection", graph=constant_graph(outputs, size))
    with (folder / "manifest.toml").open("a") as file:
        file.write(f"\n{tables}\n")
    (folder / "1" / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return folder


def load(folder: Path) -> ModelHandle:
    return load_version(folder / "1", read_manifest(folder), ObjectDetection, LoadOptions())


def white(width: int = WIDTH, height: int = HEIGHT) -> Upload:
    return Upload(graphs.png((255, 255, 255), (width, height)), "white.png")


def found(folder: Path, file: Upload | None = None, **fields: Any) -> list[tuple[Any, ...]]:
    """Label, score and box of what the model sees in one picture."""
    request = ObjectDetectionInput(files=(file or white(),), **fields)
    answer = json.loads(load(folder).predict_now(request).to_json())
    (result,) = answer["results"]
    return [
        (each["label"], round(each["score"], 4), [round(edge, 1) for edge in each["box"].values()])
        for each in result["detections"]
    ]


BOTH = [("cell", 0.9, [8, 4, 24, 12]), ("platelet", 0.6, [40, 20, 56, 28])]


# --- heads


def yolov8() -> Any:
    return np.concatenate([np.array(CENTRES).T, np.array(SCORES).T])  # (4 + labels, n)


def yolov5() -> Any:
    objectness = np.array([[1.0], [0.75]])
    return np.concatenate([CENTRES, objectness, np.array([[0.9, 0.1], [0.2, 0.8]])], axis=1)


def end_to_end() -> Any:
    return [[*CORNERS[0], 0.9, 0], [*CORNERS[1], 0.6, 1], [0, 0, 9, 9, 0.0, 0]]


@pytest.mark.parametrize(
    "outputs",
    [
        {"boxes": np.array(CORNERS) / [WIDTH, HEIGHT, WIDTH, HEIGHT], "scores": SCORES},
        {"output0": yolov8()},
        {"output0": yolov5()},
        {"output0": end_to_end()},
    ],
    ids=["boxes-scores", "yolov8", "yolov5", "end-to-end"],
)
def test_a_head_is_known_by_its_shape(tmp_path: Path, outputs: Mapping[str, Any]) -> None:
    assert found(detector(tmp_path, outputs)) == BOTH


def test_boxes_may_be_in_pixels_the_other_way_round_and_beside_a_background(tmp_path: Path) -> None:
    """As TensorFlow's SSD gives them."""
    turned = [[top, left, bottom, right] for left, top, right, bottom in CORNERS]
    scores = [[0.05, *SCORES[0]], [0.95, *SCORES[1]]]
    tables = '[detection]\nboxes = "corners-yx"\nunit = "pixel"\nbackground = true'
    assert found(detector(tmp_path, {"boxes": turned, "scores": scores}, tables=tables)) == BOTH


def test_logits_become_chances_where_the_manifest_says_so(tmp_path: Path) -> None:
    logits = np.log(np.array(SCORES) / (1 - np.array(SCORES)))
    outputs = {"output0": np.concatenate([np.array(CENTRES).T, logits.T])}
    assert found(detector(tmp_path, outputs, tables='[detection]\nactivation = "sigmoid"')) == BOTH


def test_yolox_leaves_its_cells_to_be_added(tmp_path: Path) -> None:
    """A picture of 64x32 has 4x2 cells of stride 16 and 2x1 of stride 32; the fourth one begins at (48, 0)."""
    rows = np.zeros((10, 7))
    rows[3] = [0.5, 0.25, np.log(0.5), np.log(1.5), 1.0, 0.8, 0.0]  # centre (56, 4), size 8x24
    rows[9] = [0.0, 0.5, np.log(0.5), np.log(0.25), 1.0, 0.0, 0.7]  # second of stride 32: centre (32, 16), size 16x8
    folder = detector(tmp_path, {"output": rows}, tables="[detection]\nstrides = [16, 32]")
    assert found(folder) == [("cell", 0.8, [52, 0, 60, 16]), ("platelet", 0.7, [24, 12, 40, 20])]


def test_strides_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = detector(tmp_path, {"output": np.zeros((9, 7))}, tables="[detection]\nstrides = [16, 32]")
    with pytest.raises(ManifestInvalid, match=r"should have 10 boxes, as many as cells at \[detection\] strides"):
        load(folder)


def test_a_head_that_may_be_another_must_be_named(tmp_path: Path) -> None:
    """With one label, six numbers are YOLOv5's five and a score, or a finished detection."""
    rows = [[16, 8, 16, 8, 0.9, 1.0], [48, 24, 16, 8, 0.6, 0.0]]
    with pytest.raises(ManifestInvalid, match=r'\[detection\] head = "yolov5" or "end-to-end"'):
        load(detector(tmp_path, {"output": rows}, labels=("cell",)))
    folder = detector(tmp_path, {"output": rows}, labels=("cell",), tables='[detection]\nhead = "yolov5"', name="named")
    assert found(folder) == [("cell", 0.9, [8, 4, 24, 12])]


def test_a_graph_without_a_known_head_is_told_what_fits(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match=r"output0 float32 \(batch, 2, 9\) fit no head for 2 labels.*4 \+ labels"):
        load(detector(tmp_path, {"output0": np.zeros((2, 9))}))


def test_four_labels_look_like_boxes_and_are_told_apart_by_their_names(tmp_path: Path) -> None:
    boxes, scores = np.array(CORNERS) / [WIDTH, HEIGHT, WIDTH, HEIGHT], np.pad(np.array(SCORES), ((0, 0), (0, 2)))
    labels = ("cell", "platelet", "dust", "bubble")
    assert found(detector(tmp_path, {"scores": scores, "boxes": boxes}, labels=labels)) == BOTH
    other = {"scores": scores, "places": boxes}
    with pytest.raises(ManifestInvalid, match=r"\[tensors\]"):
        load(detector(tmp_path, other, labels=labels, name="other"))
    tables = '[tensors]\nboxes = "places"\nscores = "scores"'
    assert found(detector(tmp_path, other, labels=labels, tables=tables, name="said")) == BOTH


def test_an_open_number_of_labels_is_checked_when_it_is_known(tmp_path: Path) -> None:
    """Three scores for two labels."""
    boxes = np.array(CORNERS) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    folder = detector(tmp_path, {"boxes": boxes, "scores": SCORES})
    task = load(folder).task
    steps = task.steps(ObjectDetectionInput(files=(white(),)))
    next(steps)
    with pytest.raises(InferenceFailed):
        steps.send({"boxes": boxes[None], "scores": np.zeros((1, 2, 3), np.float32)})


def test_what_is_not_finite_or_has_no_area_is_no_detection(tmp_path: Path) -> None:
    boxes = [[0.1, 0.1, np.nan, 0.5], [0.5, 0.5, 0.5, 0.9], [-3, -3, -1, -1], [0.25, 0.25, np.inf, 0.75]]
    scores = [[0.9, 0], [0.9, 0], [0.9, 0], [0.8, np.nan]]
    assert found(detector(tmp_path, {"boxes": boxes, "scores": scores})) == [("cell", 0.8, [16, 8, 64, 24])]


# --- thresholds, calibration, suppression


def test_the_threshold_is_the_manifests_unless_the_request_has_one(tmp_path: Path) -> None:
    folder = detector(tmp_path, tables="[detection]\nthreshold = 0.7")
    assert found(folder) == BOTH[:1]
    assert found(folder, threshold=0.6) == BOTH
    assert found(folder, threshold=0.61) == BOTH[:1]
    assert [score for _, score, _ in found(folder, threshold=0)] == [0.9, 0.6, 0.2, 0.1]
    assert [score for _, score, _ in found(folder, threshold=0, max_detections=3)] == [0.9, 0.6, 0.2]


def test_scores_are_chances_where_the_manifest_knows_them(tmp_path: Path) -> None:
    """0.9 is 9 to 1; a slope of 0.5 makes it 3 to 1, and an offset of log 2 makes that 6 to 1. 0.6 becomes √6 to 1."""
    folder = detector(tmp_path, tables="[calibration]\nslope = 0.5\noffset = 0.693147")
    chances = [score for _, score, _ in found(folder, threshold=0.6)]
    np.testing.assert_allclose(chances, [6 / 7, 6**0.5 / (1 + 6**0.5)], atol=1e-4)
    assert len(found(folder, threshold=0.71)) == 2
    assert len(found(folder, threshold=0.711)) == 1
    assert found(folder, threshold=0.86) == []


def test_a_falling_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match=r"\[calibration\] slope"):
        load(detector(tmp_path, tables="[calibration]\nslope = -1.0"))


def test_of_boxes_that_overlap_the_best_of_each_label_remains(tmp_path: Path) -> None:
    """The second overlaps the first by 12 of 20 columns: 0.6. The third is of another label."""
    boxes = np.array([[0, 0, 16, 8], [4, 0, 20, 8], [0, 0, 16, 8]]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    outputs = {"boxes": boxes, "scores": [[0.9, 0], [0.8, 0], [0, 0.7]]}
    labels = [[label for label, *_ in found(detector(tmp_path, outputs, name="half"))]]
    tables = "[detection]\nnms_iou = 0.61"
    labels.append([label for label, *_ in found(detector(tmp_path, outputs, tables=tables, name="more"))])
    assert labels == [["cell", "platelet"], ["cell", "cell", "platelet"]]


def test_finished_detections_are_left_alone(tmp_path: Path) -> None:
    rows = [[8, 4, 24, 12, 0.9, 0], [8, 4, 24, 12, 0.8, 0], [8, 4, 24, 12, 0.7, 5], [8, 4, 24, 12, 0.6, -1]]
    assert [score for _, score, _ in found(detector(tmp_path, {"output": rows}))] == [0.9, 0.8]


corners = arrays.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(4)), elements=st.integers(0, 20))


def boxes_of(values: np.ndarray) -> np.ndarray:
    """Whatever numbers, as boxes with an area."""
    low, high = np.minimum(values[:, :2], values[:, 2:]), np.maximum(values[:, :2], values[:, 2:])
    return np.concatenate([low, high + 1], axis=1)


@given(ours=corners, theirs=corners)
def test_overlaps_are_those_of_pycocotools(ours: np.ndarray, theirs: np.ndarray) -> None:
    ours, theirs = boxes_of(ours), boxes_of(theirs)
    as_coco = [np.concatenate([each[:, :2], each[:, 2:] - each[:, :2]], axis=1) for each in (ours, theirs)]
    expected = mask.iou(*as_coco, [False] * len(theirs))
    np.testing.assert_allclose(overlaps(ours, theirs), expected, rtol=1e-12)


@given(values=corners, seed=st.integers(0, 99), nms_iou=st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_suppression_is_the_definition_word_by_word(values: np.ndarray, seed: int, nms_iou: float) -> None:
    """Go through the boxes, best first; keep one unless it overlaps a kept one of its label by more."""
    boxes = boxes_of(values)
    labels = np.random.default_rng(seed).integers(0, 3, len(boxes))
    kept: list[int] = []
    for place, box in enumerate(boxes):
        rivals = [other for other in kept if labels[other] == labels[place]]
        if all(overlaps(box[None], boxes[other][None])[0, 0] <= nms_iou for other in rivals):
            kept.append(place)
    assert suppress(boxes, labels, nms_iou).tolist() == kept


# --- pictures


@pytest.mark.parametrize(
    ("resize", "size", "cell"),
    [
        ("stretch", (640, 160), [80, 20, 240, 60]),
        ("letterbox", (640, 160), [80, 0, 240, 40]),  # 64x16 of the graph's 64x32, 8 rows of grey above
        ("stretch", (16, 16), [2, 2, 6, 6]),
    ],
)
def test_boxes_are_in_the_pixels_of_the_picture(tmp_path: Path, resize: str, size: Any, cell: list[float]) -> None:
    folder = detector(tmp_path, tables=f'[preprocessing]\nresize = "{resize}"')
    label, score, box = found(folder, white(*size), threshold=0.5)[0]
    assert (label, box) == ("cell", cell)
    assert score > 0.6  # less where there is grey around it


def test_a_picture_on_its_side_is_answered_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (40, 80), "white").save(buffer, "JPEG", exif=exif)
    file = Upload(buffer.getvalue())
    answer = json.loads(load(detector(tmp_path)).predict_now(ObjectDetectionInput(files=(file,))).to_json())
    (result,) = answer["results"]
    assert (result["width"], result["height"]) == (80, 40)
    assert result["detections"][0]["box"] == {"xmin": 10, "ymin": 5, "xmax": 30, "ymax": 15}


@given(
    values=arrays.arrays(np.float32, (6, 4), elements=st.floats(-2, 3, width=32)),
    scores=arrays.arrays(np.float32, (6, 2), elements=st.floats(0, 1, width=32)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    most=st.integers(1, 300),
)
def test_every_answer_keeps_the_promises(
    tmp_path_factory: pytest.TempPathFactory, values: Any, scores: Any, size: Any, most: int
) -> None:
    task = load(detector(tmp_path_factory.mktemp("models"))).task
    request = ObjectDetectionInput(files=(white(*size),), threshold=0.2, max_detections=most)
    steps = task.steps(request)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send({"boxes": values[None], "scores": scores[None]})
    (result,) = stop.value.value.results
    answered = result["detections"]
    assert len(answered) <= most
    assert [each["score"] for each in answered] == sorted((each["score"] for each in answered), reverse=True)
    for each in answered:
        box = each["box"]
        assert each["score"] >= 0.2
        assert each["label"] == LABELS[each["index"]]
        assert 0 <= box["xmin"] < box["xmax"] <= size[0]
        assert 0 <= box["ymin"] < box["ymax"] <= size[1]
    for one in answered:
        for other in answered:
            if one is not other and one["label"] == other["label"]:
                boxes = [np.array([[*each["box"].values()]]) for each in (one, other)]
                assert overlaps(*boxes)[0, 0] <= 0.5


# --- through HTTP


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    detector(tmp_path / "models")
    async with running(tmp_path / "models") as client:
        yield client


async def test_several_files_are_answered_in_order_and_nothing_found_is_an_answer(http: httpx.AsyncClient) -> None:
    parts = {"black.png": graphs.png((0, 0, 0), (9, 9)), "white.png": white().data, "bad.png": b"nothing"}
    answer = await http.post("/v1/object-detection", files=[("file", (name, data)) for name, data in parts.items()])
    black, bright, bad = answer.json()["results"]
    assert black == {"filename": "black.png", "width": 9, "height": 9, "detections": []}
    assert [each["label"] for each in bright["detections"]] == ["cell", "platelet"]
    assert bad["error"]["type"] == "/problems/invalid-input"


async def test_a_drawn_picture_is_as_large_as_the_one_sent(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/object-detection?format=png", content=white(320, 160).data)
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (320, 160)
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels[20, 60] != 255).any()  # the cell's upper edge
    assert (pixels[80, 150] == 255).all()


@pytest.mark.parametrize(
    "query", ["threshold=1.1", "threshold=-0.1", "max_detections=0", "max_detections=301", "format=gif", "top_k=3"]
)
async def test_what_cannot_be_is_refused(http: httpx.AsyncClient, query: str) -> None:
    answer = await http.post(f"/v1/object-detection?{query}", content=white().data)
    assert answer.status_code == 422


async def test_a_drawn_answer_takes_exactly_one_picture(http: httpx.AsyncClient) -> None:
    files = [("file", ("white.png", white().data))] * 2
    answer = await http.post("/v1/object-detection?format=png", files=files)
    assert answer.status_code == 422


# --- comparing and showing


def golden(**changes: Any) -> dict[str, Any]:
    """The answer to a white picture, with another first detection."""
    boxes = [dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True)) for box in CORNERS]
    first = {"label": "cell", "score": 0.9, "index": 0, "box": boxes[0]} | changes
    second = {"label": "platelet", "score": 0.6, "index": 1, "box": boxes[1]}
    return {"results": [{"width": 64, "height": 32, "detections": [first, second]}]}


def difference(tmp_path: Path, expected: Mapping[str, Any]) -> str | None:
    handle = load(detector(tmp_path))
    request = ObjectDetectionInput(files=(white(),))
    got = json.loads(handle.predict_now(handle.task.widened(request)).to_json())
    return handle.task.difference(request, expected, got, 0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score": 0.885},
        {"box": {"xmin": 8.7, "ymin": 3.4, "xmax": 24, "ymax": 12}},
    ],
    ids=["the same", "a near score", "a fraction of a pixel"],
)
def test_answers_that_mean_the_same_agree(tmp_path: Path, changes: Any) -> None:
    assert difference(tmp_path, golden(**changes)) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"label": "platelet", "index": 1}, "score: expected 0.9, got 0.1 for 'platelet'"),
        ({"score": 0.8}, "results[0].detections[0].score: expected 0.8, got 0.9"),
        ({"box": {"xmin": 12, "ymin": 4, "xmax": 28, "ymax": 12}}, "expected 'cell' at 12 4 28 12"),
    ],
    ids=["a wrong label", "another score", "another place"],
)
def test_answers_that_mean_something_else_do_not(tmp_path: Path, changes: Any, told: str) -> None:
    assert told in str(difference(tmp_path, golden(**changes)))


def test_one_too_many_is_a_difference_and_one_at_the_threshold_is_not(tmp_path: Path) -> None:
    expected = golden()
    del expected["results"][0]["detections"][0]
    assert "got 'cell' at 8 4 24 12 (0.900) beside them" in str(difference(tmp_path, expected))
    handle = load(detector(tmp_path, tables="[detection]\nthreshold = 0.59", name="edge"))
    request = ObjectDetectionInput(files=(white(),))
    got = json.loads(handle.predict_now(handle.task.widened(request)).to_json())
    expected = golden()
    del expected["results"][0]["detections"][1]
    assert handle.task.difference(request, expected, got, 0.02) is None


def test_golden_samples_are_checked(tmp_path: Path) -> None:
    folder = detector(tmp_path)
    (folder / "1" / "white.png").write_bytes(white().data)
    entry = {"input": {"image": "white.png"}, "output": golden(), "tolerance": 0.02}
    (folder / "1" / "golden.json").write_text(json.dumps([entry]))
    assert check_folder(folder)[1].ok
    entry["output"] = golden(label="platelet", index=1)
    (folder / "1" / "golden.json").write_text(json.dumps([entry]))
    finding = check_folder(folder)[1]
    assert not finding.ok
    assert "for 'platelet'" in finding.detail


def test_a_terminal_shows_a_table_or_that_there_is_nothing(tmp_path: Path) -> None:
    handle = load(detector(tmp_path))
    request = ObjectDetectionInput(files=(white(), Upload(graphs.png((0, 0, 0), (9, 9)), "black.png")))
    answer = json.loads(handle.predict_now(request).to_json())
    table, line = handle.task.shown(request, answer)
    assert isinstance(table, Table)
    assert table.rows[0] == ("cell", "90.0%", "8.0 4.0 24.0 12.0")
    assert line == "black.png, 9x9: nothing found"
