"""What Ray Serve adds to the service: CPU a request, throughput by nodes, a node killed and a roll-out under load.

    pip install 'gridloop[ray]'
    python benchmarks/ray_serve.py                    # some six minutes
    python benchmarks/ray_serve.py --only cost        # one of cost, nodes, kill, rollout

Everything runs on this machine: the nodes are raylets, each told that it has one core. So *nodes* says whether requests
reach every replica, and throughput grows no further than this machine's cores. Ray's HAProxy takes the connections
(`RAY_SERVE_ENABLE_HA_PROXY=1`). Two small models are served, by replicas and by the bare service beside them.

1. *Cost*: 64 connections, first to `gridloop serve --workers 1`, then to one replica, each three times in turn: CPU of
   all processes of the one and of the other for each answer. What Ray uses when nothing is asked (`idle_cores`) is in it.
2. *Nodes*: one, two and three replicas on as many nodes.
3. *Kill*: 16 clients that repeat nothing, three replicas; a node's processes get SIGKILL.
4. *Roll-out*: the same clients; the application is deployed anew with another folder of models.

Numbers go to benchmarks/results/ray_serve.json. Exit code 1 when a client of the roll-out got anything but 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from faults import Clients
from measuring import BenchmarkFailed, options
from measuring.machine import cpu_seconds, machine, memory_mib, process_tree
from measuring.servers import LocalServer, free_port, started, wait_until_ready
from measuring.tables import read_results, write_results
from measuring.workloads import WORKLOADS, Workload

from service.client.http import ServerAddress, http_request
from service.client.load import Load, Request
from service.client.process import put_load

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ray_serve.json"
MODELS = ("cifar10-cnn", "series-gru")
LOADS = ("image, PNG 32×32", "series, 256 points")
REPEATS = 3
SETTLE_S = 15.0
"""Ray goes on arranging itself after it is ready (seconds)."""
TAKEN_OVER_WITHIN_S = 120.0


class Cluster:
    """Ray on this machine: a head without cores for replicas, and nodes of one core each."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster as Raylets

        self.begun = time.perf_counter()
        self._raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self._raylets.add_node(num_cpus=1) for _ in range(nodes)]
        import ray

        ray.init(self._raylets.address, logging_level="ERROR", log_to_driver=False)
        self.server = LocalServer("127.0.0.1", free_port())
        from ray import serve

        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.server.port})

    def deploy(self, models: Path, replicas: int) -> None:
        """Have so many replicas serve these models; comes back when they do."""
        from ray import serve

        from gridloop.ray import deployment

        arguments = {"models": str(models)}
        replica = deployment(arguments).options(num_replicas=replicas)
        serve.run(replica.bind(arguments), name="gridloop", route_prefix="/")
        wait_until_ready(self.server, self.begun)

    def add_node(self) -> None:
        """One more node of one core."""
        self.nodes.append(self._raylets.add_node(num_cpus=1))

    def kill_node(self) -> None:
        """SIGKILL to all processes of a node."""
        self._raylets.remove_node(self.nodes.pop(), allow_graceful=False)

    def pids(self) -> list[int]:
        """All of Ray's processes."""
        return [
            pid
            for node in self._raylets.list_all_nodes()
            for info in node.all_processes.values()
            for process in info
            for pid in process_tree(process.process.pid)
        ]

    def close(self) -> None:
        """End everything."""
        import ray
        from ray import serve

        begun = self.pids()
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        self._raylets.shutdown()
        for pid in begun:  # an HAProxy may outlive its node
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """A cluster, ended at the end."""
    made = Cluster(nodes)
    try:
        yield made
    finally:
        made.close()


def load_of(server: LocalServer, workload: Workload, seconds: float) -> Load:
    """64 connections that send a workload."""
    bodies = workload.bodies(server.ask)
    head = (server.host, server.port, workload.path, workload.content_type)
    requests = [Request(http_request(*head, body)) for body in bodies]
    return Load(ServerAddress(server.host, server.port), requests, 64, seconds)


def cpu_ms(load: Load, pids: Sequence[int]) -> tuple[float, float]:
    """CPU of these processes for each answer (ms), and answers per second.

    Raises:
        BenchmarkFailed: a request failed.
    """
    before = cpu_seconds(pids)
    result = put_load(load)
    if result.failures:
        raise BenchmarkFailed(f"requests failed: {dict(result.errors)} {dict(result.examples)}")
    return 1e3 * (cpu_seconds(pids) - before) / result.answers, result.rate


def cost(models: Path, seconds: float) -> dict[str, Any]:
    """CPU a request, bare and on Ray, in turn."""
    loads = [workload for workload in WORKLOADS if workload.name in LOADS]
    measured: dict[str, Any] = {}
    with started(models, 1) as bare, cluster(1) as ray:
        ray.deploy(models, 1)
        time.sleep(SETTLE_S)
        for workload in loads:
            pairs = [
                (
                    cpu_ms(load_of(bare, workload, seconds), bare.pids()),
                    cpu_ms(load_of(ray.server, workload, seconds), ray.pids()),
                )
                for _ in range(REPEATS)
            ]
            ratios = [on_ray[0] / alone[0] for alone, on_ray in pairs]
            measured[workload.name] = {
                "bare": [{"cpu_ms": round(a[0], 3), "rate": round(a[1])} for a, _ in pairs],
                "ray": [{"cpu_ms": round(b[0], 3), "rate": round(b[1])} for _, b in pairs],
                "ratio": round(statistics.median(ratios), 2),
                "ratios": [round(ratio, 2) for ratio in ratios],
            }
            print(f"{workload.name:22}", measured[workload.name])
        memory = {
            name: sum(memory_mib(pid) or 0 for pid in pids)
            for name, pids in (("bare", bare.pids()), ("ray", ray.pids()))
        }
        idle = cpu_seconds(ray.pids())
        time.sleep(SETTLE_S)
        measured["idle_cores"] = round((cpu_seconds(ray.pids()) - idle) / SETTLE_S, 3)
        measured["memory_mib"] = {name: round(mib) for name, mib in memory.items()}
    return measured


def by_nodes(models: Path, seconds: float) -> dict[str, Any]:
    """Throughput of one, two and three replicas, each on a node of its own."""
    workload = next(each for each in WORKLOADS if each.name == LOADS[1])
    measured = {}
    with cluster(1) as ray:
        for nodes in (1, 2, 3):
            if nodes > 1:
                ray.add_node()
            ray.deploy(models, nodes)
            time.sleep(SETTLE_S)
            result = put_load(load_of(ray.server, workload, seconds))
            measured[nodes] = {"rate": round(result.rate), "failed": result.failures, "p99_ms": round(result.p99_ms, 1)}
            print(f"{nodes} nodes", measured[nodes])
    return measured


async def disturbed(server: LocalServer, disturb: Any, after_s: float) -> dict[str, Any]:
    """What becomes of the requests of clients that repeat nothing, while something is done in a thread."""
    clients = Clients(server)
    running = asyncio.create_task(clients.run())
    try:
        await asyncio.sleep(3)
        begun = time.perf_counter()
        await asyncio.to_thread(disturb)
        took_s = time.perf_counter() - begun
        await asyncio.sleep(after_s)
    finally:
        clients.is_over = True
        await running
    return {**clients.report(), "took_s": round(took_s, 1)}


def killed(models: Path) -> dict[str, Any]:
    """A node killed under load, and a new one that takes its place."""
    with cluster(3) as ray:
        ray.deploy(models, 3)
        time.sleep(SETTLE_S)
        report = asyncio.run(disturbed(ray.server, ray.kill_node, 10))
        ray.add_node()
        begun = time.perf_counter()
        while _running_replicas() < 3:
            if time.perf_counter() - begun > TAKEN_OVER_WITHIN_S:
                raise BenchmarkFailed("no replica came up on the new node")
            time.sleep(0.2)
        report["taken_over_s"] = round(time.perf_counter() - begun, 1)
    print("kill", report)
    return report


def _running_replicas() -> int:
    from ray import serve

    states = serve.status().applications["gridloop"].deployments["Gridloop"].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


def rolled_out(models: Path, other: Path) -> dict[str, Any]:
    """Another folder of models deployed under load."""
    with cluster(3) as ray:
        ray.deploy(models, 2)
        time.sleep(SETTLE_S)
        report = asyncio.run(disturbed(ray.server, lambda: ray.deploy(other, 2), 5))
    print("roll-out", report)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = options.parser(__doc__)
    parser.add_argument("--only", choices=("cost", "nodes", "kill", "rollout"), help="measure only this")
    parser.add_argument("--seconds", type=options.bounded(float, 1, 120), default=8.0, help="of each load")
    settings = parser.parse_args(arguments)
    os.environ.update(RAY_SERVE_ENABLE_HA_PROXY="1", RAY_USAGE_STATS_ENABLED="0")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        models, other = Path(folder, "models"), Path(folder, "other")
        for name in MODELS:
            for to in (models, other):
                shutil.copytree(ROOT / "models" / name, to / name)
        steps = {
            "cost": lambda: cost(models, settings.seconds),
            "nodes": lambda: by_nodes(models, settings.seconds),
            "kill": lambda: killed(models),
            "rollout": lambda: rolled_out(models, other),
        }
        try:
            for name, step in steps.items():
                if settings.only in (None, name):
                    results[name] = step()
        except BenchmarkFailed as error:
            print(error, file=sys.stderr)
            return 1
    about = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    write_results(RESULTS, read_results(RESULTS) | about | results)
    outcomes = results.get("rollout", {}).get("outcomes", {})
    return int(any(outcome != "200" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
