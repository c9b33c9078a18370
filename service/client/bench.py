"""Load one model of a running server: how many requests per second, how fast, in what batches, and where time goes.

report = measure("http://127.0.0.1:8000", "series-gru", connections=64, seconds=10)
"""

from __future__ import annotations

from pathlib import Path

from service.client.http import ClientFailed, Server, split_url
from service.client.load import Load
from service.client.process import put_load
from service.client.report import LoadReport
from service.client.samples import documented_samples, golden_samples, wire_requests

MAX_CONNECTIONS = 1024
MAX_SECONDS = 600.0


def measure(
    url: str, model: str, *, connections: int = 64, seconds: float = 10.0, models: Path | None = None, key: str = ""
) -> LoadReport:
    """Load one model of a running server with its own sample requests.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:PATH`.
        model: `name`, or `name@version`; without a version, the server's default.
        connections: 1..1024, kept alive.
        seconds: up to 600, counted after a warm-up.
        models: the model repository, for golden samples; where the model is not in it, the examples in the server's
            OpenAPI document are sent.
        key: an API key.

    Raises:
        ValueError: the address or a number is out of bounds.
        ClientFailed: no server, no such model, or it is not ready.
    """
    if not 1 <= connections <= MAX_CONNECTIONS or not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"connections must be 1 to {MAX_CONNECTIONS}, seconds above 0 and at most {MAX_SECONDS:g}")
    server = Server(split_url(url), key)
    name, _, version = model.partition("@")
    info = server.model(name, version)
    version = version or info.get("default_version") or ""
    found = next((v for v in info.get("versions", []) if v["version"] == version), None)
    if found is None or found["state"] != "ready":
        raise ClientFailed(f"{name}@{version} is not ready: {(found or info).get('reason') or 'no such version'}")
    task = info["task"]
    samples = golden_samples(models / name / version, task) if models else []
    samples_from = "golden samples"
    if not samples:
        samples = documented_samples(server.ask_json("/openapi.json"), task)
        samples_from = "examples of the task"
    if not samples:
        raise ClientFailed(f"there is no sample request for {name}: neither golden samples nor examples of its task")
    requests = wire_requests(server, task, f"{name}@{version}", samples)
    rows, runs = server.runs(name)
    result = put_load(Load(server.address.looked_up(), requests, connections, seconds))
    rows, runs = (after - before for after, before in zip(server.runs(name), (rows, runs), strict=True))
    return LoadReport(
        url, f"{name}@{version}", task, len(requests), samples_from, connections, seconds, result, int(rows), int(runs)
    )
