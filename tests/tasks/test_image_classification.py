"""From pixels to tensors, and from logits to labels, doubts about them and heatmaps."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidInput, ManifestInvalid
from service.media.heatmaps import heatmap
from service.media.views import View
from service.registry.manifest import read_manifest
from service.runtime.drive import drive
from service.runtime.session import OnnxSession
from service.tasks.base import ModelFolder, Signature, TensorSpec, Upload
from service.tasks.image_classification import (
    ImageClassification,
    ImageClassificationInput,
    ImageClassificationOutput,
)
from service.uncertainty.scores import prediction_sets, softmax, top_k
from tests import graphs
from tests.conftest import running


def folder(
    tmp_path: Path,
    shape: tuple[Any, ...],
    dtype: str,
    calibration: Any = None,
    **preprocessing: Any,
) -> ModelFolder:
    """A folder of a three-class model with the given picture input; no graph is needed to decode."""
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    signature = Signature(
        {"image": TensorSpec("image", dtype, ("batch", *shape))},
        {"logits": TensorSpec("logits", "float32", ("batch", 3))},
    )
    options = {"preprocessing": preprocessing, "calibration": {} if calibration is None else calibration}
    return ModelFolder("colours", "1", tmp_path, signature, options)


def task(
    tmp_path: Path, shape: tuple[Any, ...] = (2, 2, 3), dtype: str = "uint8", **options: Any
) -> ImageClassification:
    return ImageClassification(folder(tmp_path, shape, dtype, **options))


def decode(classifier: ImageClassification, upload: Upload) -> tuple[Any, list[View]]:
    """A picture as a batch of one."""
    pixels, view = classifier.decode_file(upload, "Image 1")
    return pixels[None], [view]


def test_a_float_graph_gets_planes_normalised_with_the_manifests_mean_and_std(tmp_path: Path) -> None:
    classifier = task(tmp_path, (3, 2, 2), "float32", mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    pixels, _ = decode(classifier, Upload(graphs.png((255, 0, 255))))
    (planes,) = classifier.prepare({"image": pixels}).values()
    assert planes.shape == (1, 3, 2, 2)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(planes[0, :, 0, 0], [1.0, -2.0, 0.5], atol=1e-6)
    assert classifier.prepare({"image": planes})["image"] is planes


@settings(deadline=None)
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
        ({"shape": ("h", "w", "c")}, r"should be \(batch, height, width, 3\)"),
        ({"shape": ("h", 2, 3)}, r"leaves the picture's size open"),
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
    """And the others are answered: of 41 the last is damaged, and so is the whole second slice but for it."""
    files = (*[Upload(graphs.png(), "good.png")] * 32, *[Upload(b"")] * 8, Upload(b"nonsense"))
    steps = task(tmp_path).steps(ImageClassificationInput(files=files))
    run = next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send({"logits": np.zeros((run.rows, 3), np.float32)})
    results = json.loads(stop.value.value.to_json())["results"]
    assert [("predictions" in result, "error" in result) for result in results] == [(True, False)] * 32 + [
        (False, True)
    ] * 9
    assert results[40]["filename"] is None
    assert results[40]["error"]["detail"].startswith("Image 41 is not an image")


# --- prediction sets and abstention. Logits are the mean of red, green and blue, in hundreds:

PINK = (200, 0, 100)  # softmax 0.665, 0.090, 0.245; energy -log(e^2 + 1 + e) = -2.41
GREY = (100, 100, 100)  # 1/3 each; energy -log(3e) = -2.10
BLACK = (0, 0, 0)  # 1/3 each; energy -log(3) = -1.10
LIME = (0, 255, 0)  # 0.067, 0.865, 0.067; energy -2.69
SETS = "coverage = 0.9\nset_threshold = "
ABSTAIN = "abstain_rate = 0.1\nabstain_above = "


def calibrated(models: Path, table: str, graph: Any = graphs.colours) -> Path:
    """The model of colours with a `[calibration]` table."""
    model = graphs.colour_model(models, graph=graph)
    with (model / "manifest.toml").open("a") as file:
        file.write(f"\n[calibration]\n{table}\n")
    return model


def asked(model: Path, *colours: tuple[int, int, int], **request: Any) -> list[Any]:
    """Results for pictures of one colour each, in one request."""
    session = OnnxSession(model / "1" / "model.onnx")
    options = read_manifest(model).options(model / "1")
    classifier = ImageClassification(ModelFolder(model.name, "1", model / "1", session.signature, options))
    files = tuple(Upload(graphs.png(colour)) for colour in colours)
    answer = drive(session, classifier.steps(ImageClassificationInput(files=files, **request)))
    return json.loads(answer.to_json())["results"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("threshold", "pink", "grey"),
    [
        (1.0, ["red"], ["red"]),
        (0.66, ["red"], ["red"]),
        (0.3, ["red"], ["red", "green", "blue"]),
        (0.24, ["red", "blue"], ["red", "green", "blue"]),
        (0.09, ["red", "blue", "green"], ["red", "green", "blue"]),
        (0, ["red", "blue", "green"], ["red", "green", "blue"]),
    ],
)
def test_a_set_holds_what_reaches_the_threshold_and_the_best_in_any_case(
    tmp_path: Path, threshold: float, pink: list[str], grey: list[str]
) -> None:
    """Best first; equal ones in the order of the labels, as in `predictions`."""
    results = asked(calibrated(tmp_path, f"{SETS}{threshold}"), PINK, GREY)
    assert [result["prediction_set"] for result in results] == [
        {"coverage": 0.9, "labels": pink},
        {"coverage": 0.9, "labels": grey},
    ]
    assert [result["predictions"][0]["label"] for result in results] == [pink[0], grey[0]]


@pytest.mark.parametrize("k", [1, 2, 3, 1000])
def test_a_set_does_not_depend_on_how_many_labels_are_asked_for(tmp_path: Path, k: int) -> None:
    (result,) = asked(calibrated(tmp_path, f"{SETS}0.05"), PINK, top_k=k)
    assert len(result["predictions"]) == min(k, 3)
    assert result["prediction_set"]["labels"] == ["red", "blue", "green"]


def test_without_a_novelty_output_the_energy_says_what_is_strange(tmp_path: Path) -> None:
    results = asked(calibrated(tmp_path, f"{ABSTAIN}-2.2"), PINK, GREY, BLACK, LIME)
    assert [result["abstain"] for result in results] == [False, True, True, False]


def test_a_novelty_output_says_itself_what_is_strange(tmp_path: Path) -> None:
    """The brightest colour, in hundreds: 2, 1, 0 and 2.55. Only more than the threshold is too much."""
    model = calibrated(tmp_path, f"{ABSTAIN}2.0", graphs.colours_and_novelty)
    assert [result["abstain"] for result in asked(model, PINK, GREY, BLACK, LIME)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("table", "has_set", "has_abstain"),
    [("", False, False), (f"{SETS}0.3", True, False), (f"{ABSTAIN}2", False, True), (f"{SETS}0.3\n{ABSTAIN}2", True, True)],
)  # fmt: skip
def test_what_the_manifest_does_not_say_is_null(tmp_path: Path, table: str, has_set: bool, has_abstain: bool) -> None:
    (result,) = asked(calibrated(tmp_path, table), PINK)
    assert (result["prediction_set"] is not None) == has_set
    assert (result["abstain"] is not None) == has_abstain
    assert list(result) == ["filename", "width", "height", "predictions", "prediction_set", "abstain"]


def test_without_a_table_both_are_null(tmp_path: Path) -> None:
    (result,) = asked(graphs.colour_model(tmp_path), PINK)
    assert (result["prediction_set"], result["abstain"]) == (None, None)


def test_a_heatmap_comes_beside_them(tmp_path: Path) -> None:
    model = calibrated(tmp_path, f"{SETS}0.3\n{ABSTAIN}1.9", graphs.colours_and_novelty)
    (result,) = asked(model, PINK, explain=True)
    assert (result["prediction_set"]["labels"], result["abstain"]) == (["red"], True)
    assert result["heatmap"]["label"] == "red"


def test_a_novelty_that_is_no_number_counts_as_strange(tmp_path: Path) -> None:
    classifier = task(tmp_path, calibration={"abstain_above": 1.0, "abstain_rate": 0.1})
    outputs = {"logits": np.array([[np.nan, 1, 2], [0, 0, 0]], np.float32)}
    view = View(2, 2, (0.0, 0.0, 1.0, 1.0))
    results = classifier.encode(ImageClassificationInput(), [Upload(b"")] * 2, [view] * 2, outputs)
    assert [result["abstain"] for result in results] == [True, False]


def test_the_novelty_is_computed_only_where_it_is_needed(tmp_path: Path) -> None:
    signature = OnnxSession(graphs.colours_and_novelty(tmp_path / "model.onnx")).signature
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    request = ImageClassificationInput(files=(Upload(graphs.png()),))
    for table, outputs in (
        ({}, ("logits",)),
        ({"coverage": 0.9, "set_threshold": 0.1}, ("logits",)),
        ({"abstain_rate": 0.1, "abstain_above": 2}, ("logits", "novelty")),
    ):
        place = ModelFolder("colours", "1", tmp_path, signature, {"calibration": table})
        assert next(ImageClassification(place).steps(request)).outputs == outputs


def test_a_novelty_of_another_shape_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    made = folder(tmp_path, (2, 2, 3), "uint8")
    novelty = TensorSpec("novelty", "float32", ("batch", 3))
    signature = Signature(made.signature.inputs, {**made.signature.outputs, "novelty": novelty})
    options = {"calibration": {"abstain_above": 2, "abstain_rate": 0.1}}
    ImageClassification(ModelFolder("colours", "1", tmp_path, signature))
    with pytest.raises(ManifestInvalid, match=r"output novelty float32 \(batch, 3\) should be float32 with 1 axes"):
        ImageClassification(ModelFolder("colours", "1", tmp_path, signature, options))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"coverage": 0.9}, r"\[calibration\]: has coverage but no set_threshold; write both, as service.uncertainty.fitting.fit_set_threshold finds them, or neither"),
        ({"set_threshold": 0.1}, "has set_threshold but no coverage; write both"),
        ({"abstain_above": 3}, "has abstain_above but no abstain_rate; write both, as service.uncertainty.fitting.fit_abstain_threshold"),
        ({"abstain_rate": 0.1}, "has abstain_rate but no abstain_above; write both"),
        ({"coverage": 1, "set_threshold": 0.1}, r"\[calibration\] coverage = 1: Input should be less than 1"),
        ({"coverage": 0, "set_threshold": 0.1}, "coverage = 0: Input should be greater than 0"),
        ({"coverage": 99, "set_threshold": 0.1}, "coverage = 99: Input should be less than 1"),
        ({"coverage": 0.9, "set_threshold": -0.1}, r"set_threshold = -0.1: Input should be greater than or equal to 0"),
        ({"coverage": 0.9, "set_threshold": 1.1}, "set_threshold = 1.1: Input should be less than or equal to 1"),
        ({"abstain_rate": 2, "abstain_above": 1}, "abstain_rate = 2: Input should be less than 1"),
        ({"abstain_rate": 0.1, "abstain_above": float("inf")}, "abstain_above = inf: Input should be a finite number"),
        ({"coverage": 0.9, "set_threshold": float("nan")}, "set_threshold = nan: Input should be"),
        ({"coverage": "most", "set_threshold": 0.1}, "coverage = 'most': Input should be a valid number"),
        ({"threshold": 0.1}, r"\[calibration\] threshold is not known; remove it or correct its name"),
        (0.9, r"calibration must be a table: write \[calibration\]"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_meant_is_refused_with_what_to_do(tmp_path: Path, table: Any, sentence: str) -> None:
    with pytest.raises(ManifestInvalid, match=rf"^colours/manifest\.toml: .*{sentence}"):
        task(tmp_path, calibration=table)


def test_a_set_goes_on_after_the_classes_that_are_ranked_already() -> None:
    """With many classes the choice among equal ones is not by index; the set follows it."""
    scores = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]], np.float32)
    assert prediction_sets(scores, np.array([[2], [3]]), 0.25) == [[2, 0, 1, 3], [3, 2]]
    assert prediction_sets(scores, np.array([[2], [3]]), 0.05) == [[2, 0, 1, 3], [3, 2, 1, 0]]


LOGITS = st.lists(
    st.lists(st.sampled_from([-300.0, -1.0, 0.0, 0.5, 2.0, 90.0]) | st.floats(-20, 20, width=32), min_size=7, max_size=7),
    min_size=1,
    max_size=6,
)  # fmt: skip
THRESHOLDS = st.floats(0, 1) | st.floats(0, 0.02)


def wide(logits: list[list[float]], classes: int) -> Any:
    """As many classes as wanted, the given logits again and again: equal ones abound."""
    return np.tile(np.array(logits, np.float32), (1, -(-classes // 7)))[:, :classes]


@settings(deadline=None)
@given(LOGITS, st.sampled_from([1, 3, 7, 200]), THRESHOLDS, THRESHOLDS, st.integers(1, 5))
def test_the_best_is_always_in_the_set_and_a_lower_threshold_never_shrinks_it(
    logits: list[list[float]], classes: int, one: float, other: float, k: int
) -> None:
    scores = softmax(wide(logits, classes))
    best = top_k(scores, k)
    low, high = (prediction_sets(scores, best, threshold) for threshold in sorted((one, other)))
    for row, (larger, smaller) in enumerate(zip(low, high, strict=True)):
        assert larger[0] == smaller[0] == best[row, 0]
        assert larger[: len(smaller)] == smaller  # the larger one goes on where the smaller ends
        assert len(set(larger)) == len(larger)
        reach = {index for index in range(classes) if scores[row, index] >= np.float32(min(one, other))}
        assert set(larger) == reach | {best[row, 0]}
        probabilities = scores[row, larger].tolist()
        assert probabilities == sorted(probabilities, reverse=True)


@settings(deadline=None, max_examples=50)
@given(LOGITS, st.sampled_from([3, 200]), THRESHOLDS, st.floats(-100, 100), st.integers(1, 5))
def test_a_batch_is_answered_as_its_pictures_are_one_by_one(
    logits: list[list[float]], classes: int, threshold: float, above: float, k: int
) -> None:
    table = {"coverage": 0.9, "set_threshold": threshold, "abstain_rate": 0.1, "abstain_above": above}
    with tempfile.TemporaryDirectory() as path:
        made = folder(Path(path), (2, 2, 3), "uint8", calibration=table)
        (Path(path) / "labels.txt").write_text("".join(f"{n}\n" for n in range(classes)))
        outputs = {"logits": TensorSpec("logits", "float32", ("batch", classes))}
        classifier = ImageClassification(dataclasses.replace(made, signature=Signature(made.signature.inputs, outputs)))
    request, scores = ImageClassificationInput(top_k=k), wide(logits, classes)

    def answers(rows: Any) -> list[dict[str, Any]]:
        views = [View(2, 2, (0.0, 0.0, 1.0, 1.0))] * len(rows)
        return classifier.encode(request, [Upload(b"")] * len(rows), views, {"logits": rows})

    assert answers(scores) == [answer for row in scores for answer in answers(row[None])]


def test_what_is_done_once_for_a_batch_is_not_done_again(tmp_path: Path) -> None:
    classifier = task(tmp_path)
    outputs = {"logits": np.array([[2, 0, 1]], np.float32)}
    finished = classifier.finish(outputs)
    assert set(finished) > set(outputs)
    assert all(len(array) == 1 for array in finished.values())
    assert classifier.finish(finished) is finished
    others = {"activation_map": np.zeros((1, 3, 2, 2), np.float32)}
    assert classifier.finish(others) is others  # of a caller who asked for this tensor alone


async def test_callers_and_golden_samples_see_them(tmp_path: Path) -> None:
    """Through the service: a sample that expects a set is checked, and a wrong one keeps the model from being served."""
    golden = calibrated(tmp_path, f"{SETS}0.2\n{ABSTAIN}-2.2") / "1" / "golden.json"
    expected = {"prediction_set": {"coverage": 0.9, "labels": ["red", "blue"]}, "abstain": False}
    golden.write_text(json.dumps([{"input": {"image": "golden/pink.png"}, "output": {"results": [expected]}}]))
    async with running(tmp_path) as client:
        files = [("file", ("pink.png", graphs.png(PINK))), ("file", ("black.png", graphs.png(BLACK)))]
        answer = (await client.post("/v1/image-classification", params={"top_k": 1}, files=files)).json()
        pink, black = answer["results"]
        assert {key: pink[key] for key in expected} == expected
        assert (black["prediction_set"]["labels"], black["abstain"]) == (["red", "green", "blue"], True)
        ImageClassificationOutput.model_validate(answer)
    expected["prediction_set"] = {"coverage": 0.9, "labels": ["red"]}
    golden.write_text(json.dumps([{"input": {"image": "golden/pink.png"}, "output": {"results": [expected]}}]))
    async with running(tmp_path) as client:
        listed = (await client.get("/v1/models/colours")).json()
        assert "at results[0].prediction_set.labels: expected ['red'], got ['red', 'blue']" in listed["reason"]


# --- when two answers mean the same

TIED = (100, 101, 0)  # green 0.4237, red 0.4195, blue 0.1568


def apart(model: Path, expected: Any, tolerance: float = 0.01, colour: Any = TIED, **request: Any) -> str | None:
    """What the model's answer for a picture of one colour differs in from an expected result."""
    session = OnnxSession(model / "1" / "model.onnx")
    options = read_manifest(model).options(model / "1")
    classifier = ImageClassification(ModelFolder(model.name, "1", model / "1", session.signature, options))
    wanted = ImageClassificationInput(files=(Upload(graphs.png(colour)),), **request)
    answer = json.loads(drive(session, classifier.steps(classifier.widened(wanted))).to_json())
    return classifier.difference(wanted, {"results": [expected]}, answer, tolerance)


def test_of_two_labels_that_are_nearly_tied_either_may_be_shown(tmp_path: Path) -> None:
    model = graphs.colour_model(tmp_path)
    either = [{"label": "red", "score": 0.42, "index": 0}]
    assert apart(model, {"predictions": either}, top_k=1) is None
    assert apart(model, {"predictions": either}, 0.001, top_k=1) is not None
    assert apart(model, {"predictions": [{"label": "blue", "score": 0.42}]}, top_k=1) is not None
    assert apart(model, {"predictions": [either[0] | {"index": 1}]}, top_k=1) is not None


@pytest.mark.parametrize(
    ("threshold", "labels", "alike"),
    [
        (0.3, ["green", "red"], True),
        (0.3, ["red", "green"], True),  # nearly tied
        (0.3, ["green"], False),
        (0.3, ["green", "red", "blue"], False),
        (0.1, ["green", "blue", "red"], False),
        (0.16, ["green", "red", "blue"], True),  # blue is beside the threshold
        (0.16, ["green", "red"], True),
        (0.9, ["green"], True),
        (0.9, ["red"], True),  # nearly as good as the best one, which is in the set in any case
        (0.9, ["blue"], False),
        (0.3, ["green", "mauve"], False),
    ],
)
def test_a_set_agrees_with_others_that_differ_in_near_ties_and_beside_its_threshold(
    tmp_path: Path, threshold: float, labels: list[str], alike: bool
) -> None:
    model = calibrated(tmp_path, f"{SETS}{threshold}")
    expected = {"prediction_set": {"coverage": 0.9, "labels": labels}}
    assert (apart(model, expected, top_k=1) is None) is alike
    assert apart(model, {"prediction_set": {"coverage": 0.5}}, top_k=1) is not None


def test_a_heatmap_may_be_of_the_other_one_of_two_labels_that_are_nearly_tied(tmp_path: Path) -> None:
    model = graphs.colour_model(tmp_path)
    shown = {"explain": True, "top_k": 1}
    assert apart(model, {"heatmap": {"label": "red", "values": []}}, **shown) is None
    assert apart(model, {"heatmap": {"label": "blue"}}, **shown) is not None
    assert "heatmap.values" in (apart(model, {"heatmap": {"label": "green", "values": []}}, **shown) or "")


@pytest.mark.parametrize("expected", [{"abstain": True}, {"width": 3}, {"predictions": None}, "red", None])
def test_everything_else_of_a_result_must_be_as_expected(tmp_path: Path, expected: Any) -> None:
    assert apart(graphs.colour_model(tmp_path), expected) is not None


def test_an_answer_must_have_as_many_results_as_expected(tmp_path: Path) -> None:
    classifier = task(tmp_path)
    request = ImageClassificationInput()
    assert classifier.difference(request, {"results": [{}, {}]}, {"results": [{}]}, 0.1) is not None
    assert classifier.difference(request, {"results": 2}, {"results": []}, 0.1) is not None
    assert classifier.difference(request, {"model": {"name": "colours"}}, {"model": {"name": "colours"}}, 0.1) is None
