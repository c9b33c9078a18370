"""The server as a process, while models are loaded that never come to an end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests import graphs
from tests.test_server import GRIDLOOP, free_port, serving


@pytest.mark.parametrize("workers", [1, 2])
def test_what_never_ends_is_listed_and_the_rest_is_served(models: Path, workers: int) -> None:
    graphs.colour_model(models, "endless", graph=graphs.endless)
    (graphs.colour_model(models, "piped") / "1" / "labels.txt").unlink()
    os.mkfifo(models / "piped" / "1" / "labels.txt")
    os.mkfifo(graphs.colour_model(models, "piped-side") / "1" / "model.onnx.data")
    with serving(models, workers=workers, load_timeout_s=8) as server:
        listed = {model["name"]: model for model in httpx.get(f"{server.url}/v1/models").json()["models"]}
        assert "was not loaded within 8 s" in listed["endless"]["reason"]
        assert "piped/1/labels.txt: is a pipe" in listed["piped"]["reason"]
        assert listed["colours"]["reason"] is None
        assert listed["steps"]["reason"] is None
        answer = httpx.post(f"{server.url}/v1/anomaly-detection", json={"values": [0, 0, 5]}).json()
        assert answer["anomalies"] == [2]
        assert not cpu_is_burnt(server.process.pid)
        assert server.stop() == 0


def cpu_is_burnt(pid: int) -> bool:
    """Whether a process computes, though nobody asks it to."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    return ticks() - before > 0.5 * os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_server_that_loads_what_never_ends(models: Path, workers: int) -> None:
    graphs.colour_model(models, "endless", graph=graphs.endless)
    port = free_port()
    process = subprocess.Popen(
        [*GRIDLOOP, "serve", f"--models={models}", f"--port={port}", f"--workers={workers}", "--log-format=json"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        for line in process.stderr:
            if '"model ready"' in line and '"colours"' in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
