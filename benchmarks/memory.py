"""How soon a server is ready with everything in a repository, and how much memory it takes, idle and used.

    python benchmarks/memory.py                          # the models that ship, three starts
    python benchmarks/memory.py --models DIR --repeat 1
    python benchmarks/memory.py --json memory.json

The first start measures how graphs run and packs their weights; its time is told apart. Then come as many starts as were
asked for. Memory is the proportional set size of all processes together, in which a shared page counts once: when the
server is idle, after one request to each version that has golden samples, which loads those that waited for it, and
once it has rested after that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from measuring import BenchmarkFailed
from measuring.machine import cpu_seconds, machine
from measuring.servers import LocalServer, started
from measuring.tables import median, number

from service.client.http import ClientFailed
from service.client.samples import golden_samples
from service.cpu import cpu_budget

REST_S = 13.0
"""Time for a server to give back what it keeps while it works (seconds)."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="the repository")
    parser.add_argument("--workers", type=int, default=cpu_budget().cores, help="server processes")
    parser.add_argument("--repeat", type=int, default=3, help="starts that are measured")
    parser.add_argument("--json", type=Path, help="file for every figure")
    asked = parser.parse_args()
    try:
        first = measured(asked.models, asked.workers, ask=False)
        starts = [measured(asked.models, asked.workers, ask=n == 0) for n in range(asked.repeat)]
    except (BenchmarkFailed, ClientFailed) as error:
        print(error, file=sys.stderr)
        return 1
    results = {"machine": machine(), "workers": asked.workers, "first": first, "starts": starts}
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(table(first, starts)))
    return 0


def measured(models: Path, workers: int, *, ask: bool) -> dict[str, Any]:
    """One start, and what the server takes; with `ask` also after a request to each version."""
    with started(models, workers) as server:
        cpu_s = cpu_seconds(server.pids())
        time.sleep(REST_S)
        told = json.loads(server.ask("/v1/models"))["models"]
        states = [version["state"] for model in told for version in model["versions"]]
        found: dict[str, Any] = {
            "ready_s": server.ready_s,
            "cpu_s": cpu_s,
            "loaded": states.count("ready"),
            "lazy": states.count("lazy"),
            "idle_mib": server.memory()["total_mib"],
        }
        if ask:
            found["asked"] = sum(ask_once(server, models, model) for model in told)
            found["used_mib"] = server.memory()["total_mib"]
            time.sleep(REST_S)
            found["rested_mib"] = server.memory()["total_mib"]
    return found


def ask_once(server: LocalServer, models: Path, model: dict[str, Any]) -> int:
    """Send the first golden sample of each version of a model; says how many there were."""
    count = 0
    for version in model["versions"]:
        for sample in golden_samples(models / model["name"] / version["version"], model["task"])[:1]:
            name = f"{model['name']}@{version['version']}"
            if sample.content_type == "application/json":
                target, body = f"/v1/{model['task']}", json.dumps({**json.loads(sample.body), "model": name}).encode()
            else:
                target, body = f"/v1/{model['task']}?model={name}", sample.body
            server.ask(target, sample.content_type, body)
            count += 1
    return count


def table(first: dict[str, Any], starts: list[dict[str, Any]]) -> list[str]:
    """What was measured, as the page has it."""
    asked = starts[0]

    def of(key: str) -> str:
        values = [start[key] for start in starts]
        return f"{number(median(values), 1)} ({number(min(values), 1)} to {number(max(values), 1)})"

    return [
        f"| {asked['loaded']} versions loaded, {asked['lazy']} lazy | |",
        "|---|---|",
        f"| ready, first start ever | {number(first['ready_s'], 1)} s |",
        f"| ready, later | {of('ready_s')} s |",
        f"| processor time until then, all processes | {of('cpu_s')} s |",
        f"| idle, all processes | {of('idle_mib')} MiB |",
        f"| after a request to each of {asked['asked']} versions | {number(asked['used_mib'], 0)} MiB |",
        f"| {REST_S:g} s later | {number(asked['rested_mib'], 0)} MiB |",
    ]


if __name__ == "__main__":
    sys.exit(main())
