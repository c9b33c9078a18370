"""Gridloop on a Ray node: one prediction, a replica killed, another folder of models. `make ray` runs it.

It needs `gridloop[ray]`, which weighs 500 MB and is therefore not among what development needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="gridloop[ray] is not installed: `make ray` runs these tests")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tests.graphs import affine

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
PORT = 18_700
URL = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two repositories of one tiny model, which differ in its version."""
    folders = [tmp_path_factory.mktemp(f"models{number}") for number in (1, 2)]
    for number, folder in enumerate(folders, 1):
        (folder / "double" / str(number)).mkdir(parents=True)
        (folder / "double" / "manifest.toml").write_text('task = "tensor"')
        affine(folder / "double" / str(number) / "model.onnx")
    return folders


@pytest.fixture(scope="module")
def node(folders: list[Path]) -> Iterator[None]:
    """One Ray node with the first repository."""
    os.environ.update(RAY_SERVE_ENABLE_HA_PROXY="1", RAY_USAGE_STATS_ENABLED="0")
    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    try:
        deploy(folders[0])
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(models: Path) -> None:
    from ray import serve

    from gridloop.ray import app

    serve.run(app({"models": str(models)}), name="gridloop", route_prefix="/")


def infer() -> str:
    """The version that doubles a number, which is checked."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [20.5]}]}
    request = urllib.request.Request(f"{URL}/v2/models/double/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
    assert answer["outputs"][0]["data"] == [42]
    return str(answer["model_version"])


def answers() -> bool:
    try:
        infer()
    except OSError:  # nobody is there for a moment
        return False
    return True


def replicas() -> list[int]:
    """Processes that serve, by the name that Ray gives them."""
    names = {int(file.parent.name): file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()}
    return [pid for pid, name in names.items() if name.startswith(b"ray::ServeReplica:gridloop:Gridloop")]


@pytest.mark.usefixtures("node")
class TestOneNode:
    """In this order: each begins with what the one before has left."""

    def test_a_replica_answers_with_gridloops_own_application(self) -> None:
        assert infer() == "1"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{URL}/nothing", timeout=10)
        assert json.load(refused.value)["type"] == "/problems/not-found"

    def test_a_killed_replica_is_replaced(self) -> None:
        (before,) = replicas()
        os.kill(before, signal.SIGKILL)
        until = time.monotonic() + 60
        while replicas() in ([], [before]) or not answers():
            assert time.monotonic() < until, "nobody answers any more"
            time.sleep(0.2)
        assert infer() == "1"

    def test_another_folder_of_models_is_a_roll_out(self, folders: list[Path]) -> None:
        deploy(folders[1])
        assert infer() == "2"

    def test_models_that_cannot_be_served_do_not_replace_those_that_are(self, tmp_path: Path) -> None:
        (tmp_path / "double" / "1").mkdir(parents=True)
        (tmp_path / "double" / "manifest.toml").write_text('task = "tensor"\nrequired = true\n')
        (tmp_path / "double" / "1" / "model.onnx").write_bytes(b"no graph")
        with pytest.raises(Exception, match="double/1"):
            deploy(tmp_path)
        assert infer() == "2"


def test_rows_are_answered_by_ray_data(real_models: Path, tmp_path: Path) -> None:
    """Each with its input, as they come in no order; one that is wrong has an error of its own."""
    from pyarrow import dataset

    lines = [json.dumps({"values": [1, 2, 1, 2, number]}) for number in range(300)] + ["no JSON"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copytree(real_models / "series-gru", tmp_path / "models" / "series-gru")
    command = ["batch", str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "--task", "anomaly-detection"]
    command += ["--ray", "local", "--models", str(tmp_path / "models")]
    ran = subprocess.run([sys.executable, "-m", "service", *command], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "301 rows, 1 with an error" in ran.stderr
    answers = dataset.dataset(tmp_path / "out").to_table().to_pylist()
    assert sorted(answer["input"] for answer in answers) == sorted(lines)
    for answer in answers:
        if answer["input"] == "no JSON":
            assert answer["error_type"] == "/problems/invalid-input"
        else:
            assert len(json.loads(answer["output"])["scores"]) == 5


def test_metrics_reach_rays_with_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters by what came since, gauges as they are, histograms as the counters that they are made of."""
    from gridloop import ray_metrics

    told: dict[str, list[tuple[float, dict[str, str]]]] = {}

    class Noting:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.noted = told.setdefault(name, [])

        def inc(self, value: float, tags: dict[str, str]) -> None:
            self.noted.append((value, tags))

        set = inc

    class NotingGauge(Noting):
        pass

    monkeypatch.setattr(ray_metrics, "Counter", Noting)
    monkeypatch.setattr(ray_metrics, "Gauge", NotingGauge)
    registry = CollectorRegistry()
    requests = Counter("gridloop_requests", "of a test", ["route"], registry=registry)
    Gauge("gridloop_waiting_rows", "of a test", registry=registry).set(3)
    Histogram("gridloop_run_seconds", "of a test", buckets=(1, 2), registry=registry).observe(1.5)
    Gauge("python_info", "of the process", registry=registry).set(1)
    bridge = ray_metrics.Bridge(registry)
    requests.labels("/v1").inc(2)
    bridge.tell()
    requests.labels("/v1").inc(5)
    bridge.tell()
    assert told["gridloop_requests"] == [(2, {"route": "/v1"}), (5, {"route": "/v1"})]
    assert told["gridloop_waiting_rows"] == [(3, {}), (3, {})]
    assert told["gridloop_run_seconds_bucket"] == [(1, {"le": "2.0"}), (1, {"le": "+Inf"})]
    assert told["gridloop_run_seconds_sum"] == [(1.5, {})]
    assert "python_info" not in told
