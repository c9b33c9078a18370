"""Files of other exporters, imported with one command each, answer over HTTP what plain onnxruntime computes of them.

`tests/imports/make.py` wrote the files. What a picture becomes is computed here anew, by the usual formula, and the
picture is as large as the graph's input, so that nothing depends on how it is resized.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from PIL import Image

from service.cli import main
from tests.test_server import Server, serving

FILES = Path(__file__).parent.parent / "imports"
NAMES = sorted(path.stem for path in FILES.glob("*.onnx"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `gridloop import FILE --json` printed of every file; all of them in one repository."""
    models = tmp_path_factory.mktemp("imported") / "models"
    printed = {}
    for name in NAMES:
        result = CliRunner().invoke(main, ["import", str(FILES / f"{name}.onnx"), "--models", str(models), "--json"])
        assert result.exit_code == 0, result.output
        printed[name] = json.loads(result.stdout)
    return printed


@pytest.fixture(scope="module")
def server(made: dict[str, Any]) -> Iterator[Server]:
    with serving(Path(made[NAMES[0]]["folder"]).parent, workers=1) as running:
        yield running


def run(name: str, **inputs: np.ndarray) -> list[Any]:
    """The outputs of a file by plain onnxruntime; its only input may be called `picture` here."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # else 8-bit sums overflow on some processors
    session = ort.InferenceSession(FILES / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    if list(inputs) == ["picture"]:
        inputs = {session.get_inputs()[0].name: inputs["picture"]}
    return list(session.run(None, inputs))


def photo(side: int, mode: str = "RGB") -> tuple[bytes, np.ndarray]:
    """A smooth picture as a PNG, and its pixels, uint8 (side, side[, 3])."""
    rows, columns = np.mgrid[:side, :side] / side
    planes = [255 * rows, 255 * columns, 255 * np.abs(np.sin(5 * rows + 3 * columns))]
    picture = Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue(), np.asarray(picture)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(exponents / exponents.sum())


def ask(server: Server, task: str, name: str, data: bytes, **query: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/{task}", params={"model": name, **query}, content=data, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["results"][0])


CLASSIFIERS = [
    ("torch-dynamo", 64, "RGB", False, 1e-5),
    ("torch-script", 28, "L", True, 1e-5),
    ("torch-float16", 32, "RGB", False, 5e-3),
    ("tf2onnx-nhwc", 32, "RGB", True, 1e-5),
    ("onnxruntime-qdq", 32, "RGB", False, 0.03),
    ("onnxruntime-dynamic", 32, "RGB", False, 0.03),
]


@pytest.mark.parametrize(("name", "side", "mode", "is_softmax", "tolerance"), CLASSIFIERS)
def test_a_classifier_gives_the_graphs_scores(
    server: Server, name: str, side: int, mode: str, is_softmax: bool, tolerance: float
) -> None:
    data, pixels = photo(side, mode)
    values = pixels.reshape(side, side, -1)[None] / 255
    if name != "tf2onnx-nhwc":
        values = values.transpose(0, 3, 1, 2)
    given = values.astype(np.float16 if name == "torch-float16" else np.float32)
    (scores,) = run(name, picture=given)
    expected = scores[0] if is_softmax else softmax(scores[0])
    result = ask(server, "image-classification", name, data, top_k=1000)
    got = {entry["index"]: entry["score"] for entry in result["predictions"]}
    assert [got[index] for index in range(len(expected))] == pytest.approx(expected.tolist(), abs=tolerance)
    assert max(expected) - min(expected) > 20 * tolerance or tolerance > 0.01  # the picture tells the classes apart


@pytest.mark.parametrize("name", [name for name, *_ in CLASSIFIERS])
def test_a_classifier_that_ends_in_global_pooling_explains_itself(server: Server, name: str) -> None:
    data, _ = photo(64)
    result = ask(server, "image-classification", name, data, explain="true")
    heat = np.array(result["heatmap"]["values"])
    assert heat.min() == 0
    assert heat.max() == 1
    assert result["heatmap"]["label"] == result["predictions"][0]["label"]


def test_an_added_map_is_the_linear_layer_of_every_place(made: dict[str, Any]) -> None:
    """Its mean is the logits that the file gave before."""
    _, pixels = photo(64)
    given = (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    (logits,) = run("torch-dynamo", picture=given)
    session = ort.InferenceSession(Path(made["torch-dynamo"]["folder"]) / "1" / "model.onnx")
    again, activation_map = session.run(["linear", "activation_map"], {"x": given})
    assert np.array_equal(again, logits)
    assert activation_map.shape == (1, 5, 16, 16)
    np.testing.assert_allclose(activation_map.mean(axis=(2, 3)), logits, rtol=1e-4, atol=1e-4)


def test_a_detector_of_yolos_kind_gives_the_graphs_best_box(server: Server, made: dict[str, Any]) -> None:
    data, pixels = photo(64)
    (output,) = run("ultralytics-yolov8", picture=(pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32))
    x, y, width, height, *scores = output[0][:, output[0, 4:].max(axis=0).argmax()].tolist()
    result = ask(server, "object-detection", "ultralytics-yolov8", data, threshold=0, max_detections=1)
    (found,) = result["detections"]
    names = ["person", "rider's bicycle", "car"]  # from the file's metadata
    assert found["label"] == names[int(np.argmax(scores))]
    assert found["score"] == pytest.approx(max(scores), abs=1e-5)
    edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert list(found["box"].values()) == pytest.approx(np.clip(edges, 0, 64).tolist(), abs=0.01)


def test_a_segmenter_gives_every_pixel_the_graphs_label(server: Server) -> None:
    data, pixels = photo(64)
    (scores,) = run("torch-unet", picture=(pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32))
    result = ask(server, "image-segmentation", "torch-unet", data)
    class_map = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["class_map"]))))
    best = scores[0].argmax(axis=0)
    margins = np.sort(scores[0], axis=0)
    assert len(np.unique(best)) > 1
    assert np.array_equal(class_map[margins[2] - margins[1] > 1e-4], best[margins[2] - margins[1] > 1e-4])


def infer(server: Server, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a model over `/v2`."""
    given = [
        {"name": key, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
        for key, array in inputs.items()
    ]
    answer = httpx.post(f"{server.url}/v2/models/{name}/infer", json={"inputs": given})
    assert answer.status_code == 200, answer.text
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer.json()["outputs"]}


def test_a_recurrent_graph_goes_on_from_the_state_that_it_gave(server: Server, made: dict[str, Any]) -> None:
    """Of two streams; at first the state may be left out, which is zeros."""
    assert made["torch-gru"]["manifest"]["state"] == {"h0": "hn"}
    random = np.random.default_rng(3)
    first, second = (random.normal(size=(2, length, 6)).astype(np.float32) for length in (4, 3))
    y, hn = run("torch-gru", x=first, h0=np.zeros((2, 2, 8), np.float32))
    got = infer(server, "torch-gru", x=first)
    np.testing.assert_allclose(got["y"], y, atol=1e-5)
    np.testing.assert_allclose(got["hn"], hn, atol=1e-5)
    y, _ = run("torch-gru", x=second, h0=hn)
    np.testing.assert_allclose(infer(server, "torch-gru", x=second, h0=got["hn"])["y"], y, atol=1e-5)


def test_a_forests_probabilities_are_a_tensor(server: Server, made: dict[str, Any]) -> None:
    """In the file they are a list of dictionaries, which no protocol of tensors has a word for."""
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 2.7, 5.1, 1.6], [6.9, 3.1, 5.4, 2.1]], np.float32)
    labels, dictionaries = run("skl2onnx-forest", X=rows)
    answer = httpx.post(
        f"{server.url}/v2/models/skl2onnx-forest/infer",
        json={"inputs": [{"name": "X", "datatype": "FP32", "shape": [3, 4], "data": rows.ravel().tolist()}]},
    ).json()
    outputs = {each["name"]: each["data"] for each in answer["outputs"]}
    names = (Path(made["skl2onnx-forest"]["folder"]) / "1" / "labels.txt").read_text().split()
    expected = [row[name] for row in dictionaries for name in names]
    assert outputs["output_probability"] == pytest.approx(expected, abs=1e-6)
    assert outputs["output_label"] == list(labels)


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_passes_the_check_with_a_sample_and_a_card(made: dict[str, Any], name: str) -> None:
    assert all(finding["ok"] and not finding["hint"] for finding in made[name]["findings"])
    assert any("1 sample(s) reproduced" in finding["detail"] for finding in made[name]["findings"])


def test_weights_in_a_file_beside_the_graph_come_along(made: dict[str, Any]) -> None:
    copied = Path(made["torch-dynamo"]["folder"]) / "1" / "torch-dynamo.onnx.data"
    assert copied.read_bytes() == (FILES / "torch-dynamo.onnx.data").read_bytes()


def test_the_line_to_paste_asks_for_the_sample(server: Server, made: dict[str, Any]) -> None:
    line = made["torch-script"]["curl"]
    (path,) = [word.removeprefix("file=@") for word in line.split() if word.startswith("file=@")]
    result = ask(server, "image-classification", "torch-script", Path(path).read_bytes(), top_k=3)
    golden = json.loads((Path(made["torch-script"]["folder"]) / "1" / "golden.json").read_text())
    expected = {entry["label"]: entry["score"] for entry in golden[0]["output"]["results"][0]["predictions"]}
    assert {entry["label"]: entry["score"] for entry in result["predictions"]} == pytest.approx(expected, abs=2e-3)
