"""Files made after public bug reports: the answers were worked out with plain onnxruntime on the picture / 255."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import running

CASES = Path(__file__).parent / "cases"
PICTURE = (CASES / "output-name" / "picture.png").read_bytes()
SCORES = [0.020515, 0.261137, 0.342801, 0.319738, 0.055809]


async def classified(client: httpx.AsyncClient, model: str) -> dict[str, float]:
    answer = await client.post(f"/v1/image-classification?model={model}&top_k=5", content=PICTURE)
    assert answer.status_code == 200, answer.text
    return {entry["label"]: entry["score"] for entry in answer.json()["results"][0]["predictions"]}


@pytest.mark.parametrize(
    ("case", "model", "scores", "tolerance"),
    [
        ("output-name", "cats", SCORES, 1e-5),
        ("softmax-inside", "sure", SCORES, 1e-5),
        ("one-sigmoid", "binary", [1, 0], 1e-4),
        ("float16", "half", SCORES, 5e-3),
        ("bom-files", "bom", SCORES, 1e-5),
        ("bom-files", "bom-manifest", SCORES, 1e-5),
        ("labels-empty-lines", "lines", SCORES, 1e-5),
        ("weights-beside", "beside", SCORES, 1e-5),
    ],
)
async def test_the_scores_are_the_graphs(case: str, model: str, scores: list[float], tolerance: float) -> None:
    async with running(CASES / case / "models") as client:
        expected = {f"label {index}": score for index, score in enumerate(scores)}
        assert await classified(client, model) == pytest.approx(expected, abs=tolerance)


async def test_a_graph_in_float16_is_shown_as_such() -> None:
    async with running(CASES / "float16" / "models") as client:
        metadata = (await client.get("/v2/models/half")).json()
    assert {tensor["datatype"] for tensor in (*metadata["inputs"], *metadata["outputs"])} == {"FP16"}


async def test_windows_that_fit_no_task_are_answered_over_v2() -> None:
    async with running(CASES / "no-task" / "models") as client:
        given = {"name": "args_0", "datatype": "FP32", "shape": [1, 60, 36], "data": [0.0] * 2160}
        answer = await client.post("/v2/models/windows/infer", json={"inputs": [given]})
    assert answer.json()["outputs"][0]["data"] == [0.5]


async def test_a_pointer_is_named_with_the_command_that_fetches_the_file() -> None:
    async with running(CASES / "lfs-pointer" / "models") as client:
        (model,) = (await client.get("/v1/models")).json()["models"]
    assert "git lfs pull" in model["reason"]


async def test_weights_beside_the_graph_are_counted(tmp_path: Path) -> None:
    async def told(models: Path) -> Any:
        async with running(models) as client:
            return (await client.get("/v1/models/beside")).json()["versions"][0]

    shutil.copytree(CASES / "weights-beside" / "models", tmp_path / "models")
    graph, weights = (tmp_path / "models" / "beside" / "1" / name for name in ("model.onnx", "model.onnx.data"))
    before = await told(tmp_path / "models")
    assert before["size_bytes"] == graph.stat().st_size + weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert (await told(tmp_path / "models"))["digest"] != before["digest"]
