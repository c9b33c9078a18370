"""Numbers from pictures: their intervals, where they come from, and what a graph and a manifest must say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper

from service.errors import InferenceFailed, ManifestInvalid
from service.evaluation.base import Ask, Conversation, DataMissing, EvaluationFailed, Subject
from service.evaluation.image_regression import Estimated, ImageRegressionEvaluation
from service.evaluation.plots import save as draw
from service.graph import Signature
from service.registry.manifest import read_manifest
from service.runtime.drive import drive
from service.runtime.session import OnnxSession
from service.tasks.base import ModelFolder, TensorSpec, Upload
from service.tasks.image_regression import ImageRegression, ImageRegressionInput
from service.tasks.terminal import Table
from tests import graphs
from tests.conftest import running

COVERAGES, WIDTHS = [0.5, 0.8, 0.9, 0.99], [1.0, 2.0, 3.0, 5.0]
BRIGHT, DARK = (100, 200, 0), (1, 4, 0)


def levels(path: Path, spread: bool = False, with_map: bool = True) -> Path:
    """Values: the mean of red and of green. Spread: 1 and 2. Map: the pixels of these colours."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=T.FLOAT),
        helper.make_node("Slice", ["pixels", "start", "stop", "axis"], ["two"]),
        helper.make_node("ReduceMean", ["two"], ["values"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["values", "nought"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one_two"], ["spread"]),
        helper.make_node("Transpose", ["two"], ["activation_map"], perm=[0, 3, 1, 2]),
    ]
    outputs = [("values", T.FLOAT, ["batch", 2])]
    outputs += [("spread", T.FLOAT, ["batch", 2])] if spread else []
    outputs += [("activation_map", T.FLOAT, ["batch", 2, 2, 2])] if with_map else []
    constants = {
        "start": np.array([0]),
        "stop": np.array([2]),
        "axis": np.array([3]),
        "nought": np.float32(0),
        "one_two": np.array([1, 2], np.float32),
    }
    return graphs.save(path, nodes, [("image", T.UINT8, ["batch", 2, 2, 3])], outputs, constants)


def quantiles(path: Path) -> Path:
    """Nine quantiles of one number: the mean of red, less and more 1, 2, 3 and 4."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=T.FLOAT),
        helper.make_node("Slice", ["pixels", "start", "stop", "axis"], ["red"]),
        helper.make_node("ReduceMean", ["red"], ["mean"], axes=[1, 2], keepdims=1),
        helper.make_node("Squeeze", ["mean", "first"], ["flat"]),
        helper.make_node("Add", ["flat", "steps"], ["values"]),
    ]
    constants = {
        "start": np.array([0]),
        "stop": np.array([1]),
        "axis": np.array([3]),
        "first": np.array([2]),
        "steps": np.arange(-4, 5, dtype=np.float32),
    }
    image = ("image", T.UINT8, ["batch", 2, 2, 3])
    return graphs.save(path, nodes, [image], [("values", T.FLOAT, ["batch", 1, 9])], constants)


def number(name: str = "red", unit: str = "", **keys: Any) -> dict[str, Any]:
    """An entry of `[[values]]`."""
    intervals = keys.pop("intervals", {"coverages": COVERAGES, "half_widths": WIDTHS})
    return {"name": name, "unit": unit, "intervals": intervals, **keys}


def write(folder: Path, graph: Any = levels, values: Any = (), **facts: Any) -> Path:
    """A model folder; red has the unit cells and is never below 0, green is as the graph gives it."""
    graphs.write_model(folder, task="image-regression", graph=graph, description="Levels.", **facts)
    lines = []
    for value in values or [number(unit="cells", least=0), number("green")]:
        intervals = value["intervals"]
        lines += ["", "[[values]]", *(f"{k} = {json.dumps(v)}" for k, v in value.items() if k != "intervals")]
        lines += ["", "[values.intervals]", *(f"{k} = {json.dumps(v)}" for k, v in intervals.items())]
    with (folder / "manifest.toml").open("a") as manifest:
        manifest.write("\n".join(lines) + "\n")
    return folder


def load(model: Path) -> tuple[ImageRegression, OnnxSession]:
    session = OnnxSession(model / "1" / "model.onnx")
    options = read_manifest(model).options(model / "1")
    return ImageRegression(ModelFolder(model.name, "1", model / "1", session.signature, options)), session


def asked(model: Path, *colours: tuple[int, int, int], **request: Any) -> list[Any]:
    """The values of each of some pictures of one colour, in one request."""
    task, session = load(model)
    files = tuple(Upload(graphs.png(colour), "one.png") for colour in colours)
    answer = drive(session, task.steps(ImageRegressionInput(files=files, **request)))
    return [result["values"] for result in json.loads(answer.to_json())["results"]]


# ------------------------------------------------------------------------------------------------------------- answers


def test_each_number_comes_with_its_interval_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    assert asked(write(tmp_path / "m"), BRIGHT, DARK) == [
        [
            {"name": "red", "unit": "cells", "value": 100, "lower": 97, "upper": 103},
            {"name": "green", "unit": "", "value": 200, "lower": 197, "upper": 203},
        ],
        [
            {"name": "red", "unit": "cells", "value": 1, "lower": 0, "upper": 4},  # counts are not negative
            {"name": "green", "unit": "", "value": 4, "lower": 1, "upper": 7},
        ],
    ]


@pytest.mark.parametrize(
    ("coverage", "half"), [(0.5, 1), (0.51, 2), (0.8, 2), (0.85, 3), (0.9, 3), (0.91, 5), (0.99, 5)]
)
def test_a_coverage_between_two_of_the_table_gets_the_larger_ones_interval(
    tmp_path: Path, coverage: float, half: float
) -> None:
    ((red, _),) = asked(write(tmp_path / "m"), BRIGHT, coverage=coverage)
    assert (red["lower"], red["upper"]) == (100 - half, 100 + half)


def test_a_spread_makes_the_intervals_of_hard_cases_wider(tmp_path: Path) -> None:
    model = write(tmp_path / "m", lambda path: levels(path, spread=True))
    ((red, green),) = asked(model, BRIGHT, coverage=0.5)
    assert (red["upper"] - red["lower"], green["upper"] - green["lower"]) == (2, 4)


def test_a_number_given_as_its_logarithm_is_multiplied_and_divided(tmp_path: Path) -> None:
    ((red, green),) = asked(write(tmp_path / "m", values=[number(scale="log"), number("green")]), DARK, coverage=0.8)
    assert [red["lower"], red["value"], red["upper"]] == pytest.approx(np.exp([-1, 1, 3]))
    assert green["value"] == 4
    ((red, _),) = asked(write(tmp_path / "n", values=[number(scale="log"), number("green", scale="log")]), (255, 0, 0))
    assert 0 < red["lower"] < red["value"] < red["upper"] < np.inf


def test_a_graph_may_give_its_own_quantiles(tmp_path: Path) -> None:
    """They are moved outwards by 0.5, inwards by 1, and not at all."""
    margins = {"coverages": COVERAGES, "margins": [0.5, 0.0, -1.0, 0.0]}
    model = write(tmp_path / "m", quantiles, [number(intervals=margins)])
    found = [asked(model, BRIGHT, coverage=coverage)[0][0] for coverage in COVERAGES]
    assert [one["value"] for one in found] == [100] * 4
    assert [one["lower"] for one in found] == [98.5, 98, 98, 96]  # the third would be narrower than the second
    assert [one["upper"] for one in found] == [101.5, 102, 102, 104]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
    st.lists(st.floats(0, 1e3), min_size=4, max_size=4).map(sorted),
    st.sampled_from(["linear", "log"]),
    st.sampled_from([None, 0.0, -5.0, 7.0]),
)
def test_the_value_is_within_its_interval_and_more_coverage_is_never_narrower(
    given_numbers: list[float], widths: list[float], scale: str, least: float | None
) -> None:
    intervals = {"coverages": COVERAGES, "half_widths": widths}
    outputs = {"values": TensorSpec("values", "float32", ("batch", 1))}
    inputs = {"image": TensorSpec("image", "uint8", ("batch", 2, 2, 3))}
    options = {"values": [number(intervals=intervals, scale=scale, least=least)]}
    task = ImageRegression(ModelFolder("m", "1", Path(), Signature(inputs, outputs), options))
    (value,) = task.values
    numbers = np.array(given_numbers, np.float32)
    before = None
    for coverage in COVERAGES:
        rows = task._estimates(value, numbers, np.ones(len(numbers)), coverage)
        for row, narrower in zip(rows, before or rows, strict=True):
            assert row["lower"] <= row["value"] <= row["upper"] < np.inf
            assert row["lower"] <= narrower["lower"] <= narrower["upper"] <= row["upper"]
            assert least is None or row["lower"] >= least
        before = rows


def test_a_heatmap_shows_where_each_number_comes_from(tmp_path: Path) -> None:
    ((red, green),) = asked(write(tmp_path / "m"), BRIGHT, explain=True)
    assert np.shape(red["heatmap"]["values"]) == np.shape(green["heatmap"]["values"]) == (16, 16)
    ((plain, _),) = asked(write(tmp_path / "n"), BRIGHT)
    assert "heatmap" not in plain


def test_it_is_null_where_the_model_cannot_say(tmp_path: Path) -> None:
    model = write(tmp_path / "m", lambda path: levels(path, with_map=False))
    ((red, green),) = asked(model, BRIGHT, explain=True)
    assert red["heatmap"] is green["heatmap"] is None


def test_a_number_that_is_none_is_no_answer(tmp_path: Path) -> None:
    task, _ = load(write(tmp_path / "m"))
    steps = task.steps(ImageRegressionInput(files=(Upload(graphs.png()),)))
    next(steps)
    with pytest.raises(InferenceFailed):
        steps.send({"values": np.array([[np.nan, 1]], np.float32)})


async def test_it_is_served_with_the_names_and_units_of_its_numbers(tmp_path: Path) -> None:
    write(tmp_path / "levels", default=True)
    async with running(tmp_path) as client:
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert model["labels"] is None
        assert model["values"] == [{"name": "red", "unit": "cells"}, {"name": "green", "unit": ""}]
        two = [("file", ("a.png", graphs.png(BRIGHT))), ("file", ("b.txt", b"no picture"))]
        answer = (await client.post("/v1/image-regression?coverage=0.5", files=two)).json()
        good, bad = answer["results"]
        assert (good["filename"], good["width"], good["values"][0]["lower"]) == ("a.png", 2, 99)
        assert bad["error"]["detail"].startswith("Image 'b.txt'")
        for wrong in ("0.49", "0.995", "true", "much"):
            assert (await client.post(f"/v1/image-regression?coverage={wrong}", files=two)).status_code == 422


async def test_a_classifier_tells_its_labels_there(tmp_path: Path) -> None:
    graphs.colour_model(tmp_path)
    async with running(tmp_path) as client:
        model = (await client.get("/v1/models/colours")).json()
        assert (model["labels"], model["values"]) == (["red", "green", "blue"], None)


# --------------------------------------------------------------------------------------------- what is refused, at load


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([number()], r"names 1 numbers in \[\[values\]\]; output .*values.* has 2"),
        ([number(), number()], "two numbers are called red"),
        ([number(), number("Green Cells")], "pattern"),
        (
            [number(), number("green", intervals={"coverages": [0.5, 0.9], "half_widths": [1, 2]})],
            "go up to coverage 0.9",
        ),
        (
            [number(), number("green", intervals={"coverages": COVERAGES, "margins": WIDTHS})],
            "needs half_widths in the intervals of green",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, values: Any, said: str) -> None:
    with pytest.raises(ManifestInvalid, match=said):
        load(write(tmp_path / "m", values=values))


def signature(**outputs: tuple[Any, ...]) -> Signature:
    specs = {name: TensorSpec(name, "float32", ("batch", *shape)) for name, shape in outputs.items()}
    return Signature({"image": TensorSpec("image", "uint8", ("batch", 2, 2, 3))}, specs)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"a": (2,), "b": (2,)}, r"needs one float output with its numbers.*\[tensors\] values"),
        ({"a": (2, 3, 4)}, "needs one float output with its numbers"),
        ({"values": (2,), "spread": (3,)}, "should have 2 on axis 1"),
        ({"values": (2,), "activation_map": (2, 5)}, "with 4 axes"),
        ({"values": (2, 9)}, "needs margins in the intervals of red"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(tmp_path: Path, outputs: Any, said: str) -> None:
    options = {"values": [number(), number("green")]}
    with pytest.raises(ManifestInvalid, match=said):
        ImageRegression(ModelFolder("m", "1", tmp_path, signature(**outputs), options))


def test_quantiles_must_be_as_many_as_the_coverages_need(tmp_path: Path) -> None:
    options = {"values": [number(intervals={"coverages": COVERAGES, "margins": WIDTHS})]}
    with pytest.raises(ManifestInvalid, match="the 4 coverages of red need 9 quantiles"):
        ImageRegression(ModelFolder("m", "1", tmp_path, signature(values=(1, 7)), options))


def test_an_output_of_any_name_serves_if_it_is_the_only_one(tmp_path: Path) -> None:
    options = {"values": [number(), number("green")]}
    ImageRegression(ModelFolder("m", "1", tmp_path, signature(output=(2,)), options))
    options["tensors"] = {"values": "b"}  # type: ignore[assignment]
    ImageRegression(ModelFolder("m", "1", tmp_path, signature(a=(2,), b=(2,)), options))


# -------------------------------------------------------------------------------------------- terminal, golden samples


def test_a_terminal_shows_each_number_with_its_interval(tmp_path: Path) -> None:
    task, _ = load(write(tmp_path / "m"))
    values = [
        {"name": "red", "unit": "cells", "value": 14.23, "lower": 11.5, "upper": 17.04},
        {"name": "price", "unit": "US dollars", "value": 529_412.3, "lower": 240_000.0, "upper": 1_170_300.0},
    ]
    answer = {"results": [{"filename": "a.jpg", "values": values}]}
    (table,) = task.shown(ImageRegressionInput(coverage=0.8), answer)
    assert isinstance(table, Table)
    assert table.columns == ("", "value", "0.8 interval", "unit")
    assert table.rows == [
        ("red", "14.2", "11.5 to 17", "cells"),
        ("price", "529,000", "240,000 to 1,170,000", "US dollars"),
    ]


def test_a_golden_number_may_be_off_by_a_share_of_its_interval(tmp_path: Path) -> None:
    """The interval of red is 6 wide: with a tolerance of 0.05 it may be off by 0.3."""
    task, session = load(write(tmp_path / "m"))
    request = ImageRegressionInput(files=(Upload(graphs.png(BRIGHT)),))
    got = json.loads(drive(session, task.steps(request)).to_json())

    def found(key: str, change: Any) -> str | None:
        expected = json.loads(json.dumps(got))
        value = expected["results"][0]["values"][0]
        value[key] = change if isinstance(change, str) else value[key] + change
        return task.difference(request, expected, got, 0.05)

    assert found("value", 0.29) is None
    assert found("value", 0.32) == "at results[0].values[0].value: expected 100.32, got 100.0"
    assert found("lower", -0.4) is not None
    assert found("name", "blue") == "at results[0].values[0].name: expected 'blue', got 'red'"
    assert task.difference(request, {"results": []}, got, 0.05) is not None
    assert task.difference(request, {"results": [{"values": []}]}, got, 0.05) is not None
    assert task.difference(request, {"results": [{"values": [{"value": 100.04}, {}]}]}, got, 0.05) is None


# ---------------------------------------------------------------------------------------------------------- evaluation

SUBJECT = Subject("m", "1", "image-regression", Signature({}, {}))


def estimated(truth: float, value: float) -> dict[str, Estimated]:
    return {"red": Estimated(truth, value, ((value - 1, value + 1), (value - 2, value + 2), (value - 3, value + 3)))}


def test_errors_and_coverage_are_counted_beside_a_constant_answer(tmp_path: Path) -> None:
    """Off by 0, 1.5, 2.5 and 4: 1, 2 and 3 of four intervals hold the truth. The median, 15, is off by 5, 0, 0 and 5."""
    records = [estimated(10, 10), estimated(15, 16.5), estimated(15, 12.5), estimated(20, 24)]
    outcome = ImageRegressionEvaluation(Path(), SUBJECT).outcome(records)
    assert {figure.name: figure.value for figure in outcome.figures} == {
        "red, mean absolute error": 2.0,
        "red, mean absolute error, always the median of these": 2.5,
        "red, truth within interval 0.5": 0.25,
        "red, truth within interval 0.8": 0.5,
        "red, truth within interval 0.9": 0.75,
    }
    (plot,) = outcome.plots
    assert draw(plot, tmp_path).read_bytes().startswith(b"\x89PNG")


def test_errors_of_prices_are_shares_of_the_truth(tmp_path: Path) -> None:
    class Prices(ImageRegressionEvaluation):
        relative = True

    outcome = Prices(Path(), SUBJECT).outcome([estimated(10, 11), estimated(20, 10)])
    assert outcome.figures[0].name == "red, mean absolute percentage error"
    assert outcome.figures[0].value == pytest.approx(0.3)
    assert outcome.figures[0].text(0.3) == "30.0 %"
    assert draw(outcome.plots[0], tmp_path).is_file()


def held(talk: Conversation) -> tuple[list[float], Any]:
    """The coverages asked for, and the record: intervals are ten times as wide to each side."""
    coverages = []
    question = next(talk)
    try:
        while True:
            assert isinstance(question, Ask)
            coverages.append(question.fields["coverage"])
            half = 10 * coverages[-1]
            value = {"name": "red", "value": 8.0, "lower": 8 - half, "upper": 8 + half}
            question = talk.send({"results": [{"values": [value]}]})
    except StopIteration as stop:
        return coverages, stop.value


def test_a_folder_with_a_table_of_true_numbers_is_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="truth.csv"):
        ImageRegressionEvaluation(tmp_path, SUBJECT).items()
    (tmp_path / "a.png").write_bytes(graphs.png())
    with (tmp_path / "truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "red"), ("a.png", 7)])
    (item,) = ImageRegressionEvaluation(tmp_path, SUBJECT).items()
    coverages, record = held(item.talk())
    assert coverages == [0.5, 0.8, 0.9]
    assert record == {"red": Estimated(7.0, 8.0, ((3.0, 13.0), (0.0, 16.0), (-1.0, 17.0)))}
    assert item.questions == 3


def test_a_number_that_the_model_does_not_give_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(graphs.png())
    (tmp_path / "truth.csv").write_text("file,blue\na.png,7\n")
    (item,) = ImageRegressionEvaluation(tmp_path, SUBJECT).items()
    talk = item.talk()
    answer = {"results": [{"values": [{"name": "red", "value": 1.0, "lower": 0.0, "upper": 2.0}]}]}
    next(talk)
    talk.send(answer)
    talk.send(answer)
    with pytest.raises(EvaluationFailed, match="the number 'blue', which the model does not give; it gives: red"):
        talk.send(answer)


def test_a_table_with_words_for_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("file,red\na.png,many\n")
    with pytest.raises(EvaluationFailed, match="numbers in all others"):
        ImageRegressionEvaluation(tmp_path, SUBJECT).items()
