"""Models are swapped while they are asked: every worker follows the folders, and no request fails.

Version n of the model `adder` adds n to what it is sent, so every answer shows whether it is of the version it names.
The clients never send anything twice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import graphs
from tests.test_server import Server, counted, free_port, name_of, serving, wait_for, wait_until_ready, workers_of
from tests.test_tls import issue, serving_tls, trusting

A_SECOND = 300_000
"""Rounds of `graphs.counting_up_to_x` that take about that long, at most a tenth of it anywhere."""


def write_version(
    models: Path,
    version: int,
    *,
    model: str = "adder",
    number: float | None = None,
    golden: Any = None,
    slow: bool = False,
) -> None:
    """A version that comes at once, by a rename.

    Args:
        models: the repository.
        version: what it adds.
        model: its model.
        number: what it adds, if it is another number.
        golden: values of x and of y that it must give.
        slow: it counts for as long as x says.
    """
    hidden = models / model / f".{version}"
    (graphs.counting_up_to_x if slow else graphs.plus)(hidden / "model.onnx", version if number is None else number)
    if golden is not None:
        x, y = golden
        sample = {"input": {"inputs": {"x": [[x]]}}, "output": {"outputs": {"y": [[y]]}}}
        (hidden / "golden.json").write_text(json.dumps([sample]))
    manifest = models / model / "manifest.toml"
    if not manifest.exists():
        manifest.write_text('task = "tensor"\n[batching]\nmax_batch_size = 4\nlone_threads = 1\n')
    hidden.rename(models / model / str(version))


def request(x: float, model: str = "adder") -> bytes:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Asking:
    """A client with one connection, which it opens once."""

    def __init__(self, server: Server) -> None:
        self._port = server.port

    def __enter__(self) -> Asking:
        self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._answers = self.socket.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, x: float = 1) -> int:
        """Receive an answer, and tell which version it is of: that must have added its own number."""
        head = b"".join(iter(self._answers.readline, b"\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", head)
        assert length, head
        body = self._answers.read(int(length[1]))
        assert " 200 ok" in head, body
        told = json.loads(body)
        assert told["outputs"][0]["data"] == [x + int(told["model_version"])]
        return int(told["model_version"])

    def version(self, x: float = 1, model: str = "adder") -> int:
        """Ask, and tell which version has answered."""
        self.send(request(x, model))
        return self.answer(x)


def change(server: Server, what: str, model: str = "adder") -> httpx.Response:
    return httpx.post(f"{server.url}/v2/repository/models/{model}/{what}", timeout=60)


def index(server: Server) -> dict[tuple[str, str], dict[str, Any]]:
    entries = httpx.post(f"{server.url}/v2/repository/index").json()
    return {(entry["name"], entry.get("version", "")): entry for entry in entries}


def nurseries_of(server: Server) -> list[int]:
    """The processes that hold models, or are about to; the one that was forked last comes last."""
    pid = server.process.pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted((int(each) for each in found if name_of(int(each)) == "gridloop nurse"), key=started)


def started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with version 1 of `adder` and of `slow`, which a test may change but for these."""
    models = tmp_path_factory.mktemp("models")
    write_version(models, 1)
    write_version(models, 1, model="slow", slow=True)
    return models


@pytest.fixture(scope="module")
def running(models: Path) -> Iterator[Server]:
    with serving(models, workers=2, watch_s=0) as server:
        yield server


@pytest.fixture
def server(running: Server, models: Path) -> Iterator[Server]:
    """A server that looks at the folders when it is told to; afterwards version 1 alone is served again."""
    yield running
    for model in ("adder", "slow"):
        for folder in (models / model).glob("[02-9]"):
            shutil.rmtree(folder)
        if not (models / model / "1").exists():
            write_version(models, 1, model=model, slow=model == "slow")
        if any(
            entry["state"] != "READY" or at != (model, "1") for at, entry in index(running).items() if at[0] == model
        ):
            assert change(running, "load", model).status_code == 200


def settled(server: Server) -> None:
    """Wait until those who leave have left."""
    wait_for(lambda: len(workers_of(server.process.pid)) == 2 and len(nurseries_of(server)) == 1)


def test_clients_that_never_retry_notice_nothing_but_newer_versions(server: Server, models: Path) -> None:
    """Three keep their connection, three open one for each request; five versions come one after another."""
    stopped = threading.Event()

    def ask_on_one_connection() -> list[int]:
        seen = []
        with Asking(server) as asking:
            while not stopped.is_set():
                seen.append(asking.version())
        return seen

    def ask_on_new_ones() -> list[int]:
        seen = []
        while not stopped.is_set():
            with Asking(server) as asking:
                seen.append(asking.version())
        return seen

    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(ask) for ask in (ask_on_one_connection, ask_on_new_ones) for _ in range(3)]
        try:
            for version in range(2, 7):
                write_version(models, version)
                assert change(server, "load").status_code == 200
        finally:
            stopped.set()
        for seen in (each.result() for each in asking):
            assert seen == sorted(seen)
            assert {1, 2, 3, 4, 5} <= set(seen) <= {1, 2, 3, 4, 5, 6}


def test_after_a_load_every_connection_has_the_new_version(server: Server, models: Path) -> None:
    """Those that were idle, and one that has never been used."""
    kept = [Asking(server) for _ in range(6)]
    for asking in kept:
        asking.__enter__()
    assert {asking.version() for asking in kept[:5]} == {1}
    write_version(models, 2)
    assert change(server, "load").status_code == 200
    assert {asking.version() for asking in kept} == {2}
    for asking in kept:
        asking.__exit__()


def test_what_was_begun_is_finished_by_what_began_it(server: Server, models: Path) -> None:
    """A request that takes long, one whose head and one whose body are half sent, and pipelined ones."""
    slow, head, body, several = (Asking(server) for _ in range(4))
    with slow, head, body, several:
        begun = time.monotonic()
        slow.version(A_SECOND / 10, "slow")
        pace = A_SECOND / 10 / (time.monotonic() - begun)
        rounds = float(round(min(3 * pace, 2**23)))  # for about three seconds
        slow.send(request(rounds, "slow"))
        head.send(request(1)[:40])
        body.send(request(1)[:-10])
        several.send(request(A_SECOND, "slow") + request(1) + request(2)[:30])
        time.sleep(0.3)  # until all that has arrived
        write_version(models, 2)
        write_version(models, 2, model="slow", slow=True)
        signal_and_wait(server, lambda: index(server).get(("slow", "2"), {}).get("state") == "READY")
        assert change(server, "load").status_code == 200
        head.send(request(1)[40:])
        body.send(request(1)[-10:])
        several.send(request(2)[30:])
        assert (head.answer(), body.answer()) == (1, 1)
        assert (slow.answer(rounds), several.answer(A_SECOND)) == (1, 1)
        assert (several.answer(), several.answer(2)) == (1, 1)
        assert [asking.version() for asking in (slow, head, body, several)] == [2] * 4, "the connections live on"


def signal_and_wait(server: Server, condition: Callable[[], bool]) -> None:
    server.process.send_signal(signal.SIGHUP)
    wait_for(condition)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: graphs.plus(folder / "model.onnx", 7), "differs from its expected answer"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\x08\x09half"), "is not an ONNX file"),
        (lambda folder: (folder / "golden.json").write_text("[{"), "golden.json: cannot be read"),
    ],
    ids=["other weights", "a file cut short", "another file spoilt"],
)
def test_a_version_that_fails_is_refused_and_the_old_one_serves(
    server: Server, models: Path, spoil: Callable[[Path], Any], words: str
) -> None:
    write_version(models, 3, golden=(1, 4))
    spoil(models / "adder" / "3")
    refused = change(server, "load")
    assert refused.status_code == 400
    assert words in refused.json()["error"]
    entry = index(server)["adder", "3"]
    assert entry["state"] == "UNAVAILABLE"
    assert words in entry["reason"]
    (version,) = (v for v in httpx.get(f"{server.url}/v1/models/adder").json()["versions"] if v["version"] == "3")
    assert (version["state"], version["reason"]) == ("failed", entry["reason"])
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'gridloop_model_ready{model="adder",version="3"} 0.0' in metrics
    assert 'gridloop_model_refused{model="adder",version="3"} 1.0' in metrics
    with Asking(server) as asking:
        assert asking.version() == 1


def test_a_model_that_is_unloaded_is_listed_and_503_until_it_is_loaded(server: Server) -> None:
    assert change(server, "unload").status_code == 200
    assert index(server)["adder", "1"]["state"] == "UNAVAILABLE"
    assert "unloaded" in index(server)["adder", "1"]["reason"]
    for _ in range(4):  # whichever worker answers
        refused = httpx.post(f"{server.url}/v2/models/adder/infer", json={"inputs": []})
        assert refused.status_code == 503
        assert "is unloaded" in refused.json()["error"]
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert change(server, "load").status_code == 200
    with Asking(server) as asking:
        assert asking.version() == 1


def test_the_protocols_own_client_loads_and_unloads(server: Server) -> None:
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("needs tritonclient")
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    client.unload_model("adder")
    assert not client.is_model_ready("adder")
    client.load_model("adder")
    assert client.is_model_ready("adder")
    for change_nobody in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="nobody"):
            change_nobody("nobody")
    client.close()


def test_a_worker_that_dies_while_a_version_is_loaded_is_replaced(server: Server, models: Path) -> None:
    settled(server)
    write_version(models, 2, model="slow", slow=True, golden=(A_SECOND, A_SECOND + 2))
    with ThreadPoolExecutor(1) as other:
        loading = other.submit(change, server, "load", "slow")
        wait_for(lambda: len(nurseries_of(server)) == 2)
        victim, _ = workers_of(server.process.pid)
        os.kill(victim, signal.SIGKILL)
        try:
            status = loading.result().status_code
        except httpx.TransportError:  # it was the one that was asked
            status = 200
            wait_for(lambda: ("slow", "2") in index(server))
    assert status == 200
    assert index(server)["slow", "2"]["state"] == "READY"
    wait_for(lambda: victim not in (now := workers_of(server.process.pid)) and len(now) == 2)
    with Asking(server) as asking:
        assert asking.version(model="slow") == 2


def test_a_model_that_ends_its_loader_is_named_and_the_old_one_serves(server: Server, models: Path) -> None:
    settled(server)
    write_version(models, 2, model="slow", slow=True, golden=(A_SECOND, A_SECOND + 2))
    with ThreadPoolExecutor(1) as other:
        loading = other.submit(change, server, "load", "slow")
        wait_for(lambda: len(nurseries_of(server)) == 2)
        time.sleep(0.2)
        os.kill(nurseries_of(server)[-1], signal.SIGKILL)
        refused = loading.result()
    assert refused.status_code == 400
    assert "slow/2: ended the process that loaded it (signal SIGKILL)" in refused.json()["error"]
    with Asking(server) as asking:
        assert asking.version(model="slow") == 1


def test_when_the_process_that_holds_the_models_dies_they_are_loaded_anew(server: Server, models: Path) -> None:
    settled(server)
    (nursery,) = nurseries_of(server)
    before = workers_of(server.process.pid)
    os.kill(nursery, signal.SIGKILL)
    with Asking(server) as asking:
        while set(before) & set(workers_of(server.process.pid)):
            assert asking.version() == 1
    write_version(models, 2)
    assert change(server, "load").status_code == 200


def test_counts_go_on_and_what_ended_workers_counted_is_kept_in_one_file(server: Server, models: Path) -> None:
    route = "/v2/models/{model_name}/infer"
    before = counted(server, route)
    for version in (2, 3):
        with Asking(server) as asking:
            for _ in range(5):
                asking.version()
        write_version(models, version)
        assert change(server, "load").status_code == 200
    wait_for(lambda: counted(server, route) == before + 10)
    statistics = httpx.get(f"{server.url}/v2/models/adder/versions/1/stats").json()["model_stats"][0]
    assert statistics["inference_count"] >= 5
    settled(server)
    workers = workers_of(server.process.pid)
    found = re.search(r"(/\S*gridloop-metrics-\S+)/counter_", Path(f"/proc/{workers[0]}/maps").read_text())
    assert found
    files = {"counter_ended.db", *(f"counter_{worker}.db" for worker in workers)}
    wait_for(lambda: {file.name for file in Path(found[1]).glob("counter_*.db")} == files)
    assert counted(server, route) == before + 10


def test_a_folder_is_followed_without_being_told(tmp_path: Path) -> None:
    """By one worker as by several; half of a copy is not served."""
    write_version(tmp_path, 1)
    with serving(tmp_path, workers=1, watch_s=0.4) as server, Asking(server) as asking:
        assert asking.version() == 1
        write_version(tmp_path, 2)
        wait_for(lambda: asking.version() == 2)
        (tmp_path / "adder" / "manifest.toml").write_text('task = "tensor"\ndefault_version = "1"')
        wait_for(lambda: asking.version() == 1)
        shutil.rmtree(tmp_path / "adder" / "2")
        wait_for(lambda: ("adder", "2") not in index(server))
        assert asking.version() == 1
        assert server.stop() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_encrypted_connections_end_with_their_next_answer(tmp_path: Path) -> None:
    """Their state cannot be passed on: that answer is still the old version's."""
    (tmp_path / "models").mkdir()
    write_version(tmp_path / "models", 1)
    certificate, key = issue(tmp_path)
    with (
        serving_tls(tmp_path / "models", certificate, tls_key=key, workers=2) as running,
        httpx.Client(base_url=running.url, verify=trusting(certificate)) as kept,
    ):

        def ask() -> httpx.Response:
            tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}
            return kept.post("/v2/models/adder/infer", json={"inputs": [tensor]}).raise_for_status()

        assert "connection" not in ask().headers
        write_version(tmp_path / "models", 2)
        with httpx.Client(base_url=running.url, verify=trusting(certificate)) as other:
            assert other.post("/v2/repository/models/adder/load", timeout=60).status_code == 200
        last = ask()
        assert (last.json()["model_version"], last.headers["connection"]) == ("1", "close")
        following = ask()
        assert (following.json()["model_version"], following.headers.get("connection")) == ("2", None)


def test_a_signal_ends_a_server_that_is_swapping(tmp_path: Path) -> None:
    """What was begun is answered, and nothing is left."""
    write_version(tmp_path, 1, slow=True)
    with serving(tmp_path, workers=2, watch_s=0) as server, Asking(server) as asking:
        assert asking.version(0) == 1
        write_version(tmp_path, 2, slow=True, golden=(20 * A_SECOND, 20 * A_SECOND + 2))
        asking.send(request(A_SECOND))
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(nurseries_of(server)) == 2)
        processes = [*nurseries_of(server), *workers_of(server.process.pid)]
        assert server.stop() == 0
        assert asking.answer(A_SECOND) == 1
        assert not any(map(name_of, processes))


def test_workers_that_cannot_begin_do_not_take_over(tmp_path: Path) -> None:
    write_version(tmp_path, 1)
    script = f"""
import pathlib, sys
from service.worker import Server
startup = Server.startup
async def cannot(self, sockets=None):
    if pathlib.Path({str(tmp_path / "adder" / "2")!r}).exists():
        sys.exit(3)
    await startup(self, sockets)
Server.startup = cannot
from service.cli import main
main()
"""
    port = free_port()
    command = [sys.executable, "-c", script, "serve", f"--models={tmp_path}", f"--port={port}", "--workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(process, port)
        server = Server(process, port)
        with Asking(server) as asking:
            write_version(tmp_path, 2)
            refused = change(server, "load")
            assert refused.status_code == 400
            assert "a new worker ended before it could answer" in refused.json()["error"]
            assert asking.version() == 1
            assert list(index(server)) == [("adder", "1")]
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "models not swapped" in said
