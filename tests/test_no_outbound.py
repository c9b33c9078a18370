"""The server opens no connection to anywhere: it only accepts, and only where it was told to listen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests import graphs
from tests.test_server import free_port, serving, wait_until_ready

# Python imports a `sitecustomize` before anything else, in every interpreter; a fork keeps its audit hook.
HOOK = """
import json, os, socket, sys

REPORT = os.environ["SOCKET_REPORT"]
WATCHED = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}


def hook(event, arguments):
    if event in WATCHED or event == "subprocess.Popen" or event == "os.exec":
        where = [str(argument) for argument in arguments if not isinstance(argument, socket.socket)]
        with open(REPORT, "a") as file:
            file.write(json.dumps([event, *where]) + "\\n")


sys.addaudithook(hook)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_server_connects_to_nowhere(tmp_path: Path, workers: int) -> None:
    """All sockets that Python opens in any of its processes, from the start to the end, with an answer of each kind."""
    models, hooks, report = tmp_path / "models", tmp_path / "hooks", tmp_path / "report"
    models.mkdir()
    hooks.mkdir()
    graphs.colour_model(models)
    graphs.detector_model(models)
    graphs.words_model(models)
    (hooks / "sitecustomize.py").write_text(HOOK)
    report.touch()
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", f"--models={models}", f"--port={port}", f"--workers={workers}"]
    paths = os.pathsep.join([str(hooks), str(Path(__file__).parent.parent)])
    environment = os.environ | {"SOCKET_REPORT": str(report), "PYTHONPATH": paths}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_until_ready(process, port)
        use(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
    events = [json.loads(line) for line in report.read_text().splitlines()]
    # To a worker, over the pair of sockets that the supervisor shares with it: there is no address.
    events = [event for event in events if event != ["socket.sendmsg", "None"]]
    assert events == [["socket.bind", f"('127.0.0.1', {port})"]]


def use(url: str) -> None:
    """Ask everything once."""
    with httpx.Client(base_url=url) as client:
        for path in (
            "/",
            "/docs",
            "/redoc",
            "/openapi.json",
            "/metrics",
            "/v1/models",
            "/v1/models/colours",
            "/v2/models/steps",
        ):
            assert client.get(path, follow_redirects=True).status_code == 200, path
        series = {"values": [0, 0, 5]}
        assert client.post("/v1/anomaly-detection", json=series).status_code == 200
        assert client.post("/v1/next-word-prediction", json={"text": "the "}).status_code == 200
        assert client.post("/v1/image-classification", content=graphs.png()).status_code == 200
        assert client.post("/v1/anomaly-detection", content=b"{").status_code == 422


def addresses(pids: list[int]) -> set[tuple[str, str, str]]:
    """Sockets of processes of the IP family: table, local and remote address, as the kernel writes them."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        path = Path(f"/proc/self/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[9] in inodes:
                found.add((table, fields[1], fields[2]))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables of sockets")
def test_every_socket_of_the_process_tree_is_of_loopback(models: Path) -> None:
    """Those that libraries in other languages open, too."""
    with serving(models, workers=2, log_level="error") as server:
        kept = [httpx.Client(base_url=server.url) for _ in range(4)]
        for client in kept:
            client.post("/v1/anomaly-detection", json={"values": [0, 0, 5]}).raise_for_status()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        found = addresses([server.process.pid, *map(int, children)])
        for client in kept:
            client.close()
    loopback, port = "0100007F", f"{server.port:04X}"
    assert {(table, local) for table, local, _ in found} == {("tcp", f"{loopback}:{port}")}
    assert {remote.partition(":")[0] for _, _, remote in found} <= {loopback, "00000000"}
