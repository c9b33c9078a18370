"""Write the comparison's results as a table: medians over the repeats, from the file that `run.py` wrote.

    python benchmarks/peers/table.py benchmarks/results/peers.json [--conns 64]

Each cell: requests/s, the share of L1 measured just before and after it, and the memory (PSS) of the whole service.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any


def main() -> None:
    """Print a Markdown table, and below it what the goals are about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--conns", type=int, default=64)
    options = parser.parse_args()
    rows = json.loads(options.results.read_text())["rows"]
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["target"], row["workload"], row["conns"]].append(row)

    def median(target: str, workload: str, conns: int, key: str) -> float:
        return statistics.median(row[key] for row in cells[target, workload, conns])

    def share(target: str, workload: str, conns: int) -> float:
        return statistics.median(row["rps"] / row["l1_near"] for row in cells[target, workload, conns])

    workloads = sorted({workload for _, workload, _ in cells})
    targets = sorted(
        {target for target, _, conns in cells if conns}, key=lambda name: (not name.startswith("gridloop"), name)
    )
    print(f"| | {' | '.join(workloads)} |\n|---|{'---|' * len(workloads)}")
    for target in targets:
        shown = [
            f"{median(target, w, options.conns, 'rps'):,.0f} · {share(target, w, options.conns):.2f}"
            f" · {median(target, w, options.conns, 'pss_mib'):,.0f} MiB"
            if (target, w, options.conns) in cells
            else "–"
            for w in workloads
        ]
        print(f"| {target} | {' | '.join(shown)} |")
    print()
    for w in workloads:
        l1 = list(cells["L1", w, 0])
        peers = [t for t in targets if not t.startswith("gridloop") and (t, w, options.conns) in cells]
        best = max(peers, key=lambda t: median(t, w, options.conns, "rps")) if peers else None
        parts = [
            f"{w}: L1 {statistics.median(row['rps'] for row in l1):,.0f} requests/s in batches of {l1[0]['batch']}"
        ]
        if best:
            times = median("gridloop", w, options.conns, "rps") / median(best, w, options.conns, "rps")
            parts.append(f"{times:.2f} × the best peer, {best}")
        for conns in sorted({c for t, x, c in cells if t == "gridloop" and x == w}):
            p50, p99 = (median("gridloop", w, conns, key) for key in ("p50_ms", "p99_ms"))
            rate = median("gridloop", w, conns, "rps") / median("gridloop", w, options.conns, "rps")
            parts.append(f"{conns} connections: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {rate:.2f} of the rate")
        errors = sum(row["errors"] for (_, x, c), group in cells.items() if x == w and c for row in group)
        repeats = [row["rps"] for row in cells["gridloop", w, options.conns]]
        parts.append(
            f"{len(repeats)} repeats, {min(repeats):,.0f} to {max(repeats):,.0f}; errors of all systems: {errors}"
        )
        print("- " + "; ".join(parts))


if __name__ == "__main__":
    main()
