"""The report of one model under load: numbers for machines, lines for people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from service.client.load import WARM_UP_S, LoadResult


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One model under load.

    Attributes:
        url: of the server.
        model: name@version.
        task: its endpoint.
        samples: how many different requests were sent in turn.
        samples_from: where they come from.
        connections: kept alive.
        seconds: counted.
        result: what the client saw.
        rows: of the model's runs during load and warm-up, all callers included.
        runs: how many there were; 0 where the server shows no metrics.
    """

    url: str
    model: str
    task: str
    samples: int
    samples_from: str
    connections: int
    seconds: float
    result: LoadResult
    rows: int
    runs: int

    @property
    def is_good(self) -> bool:
        """Whether every request was answered well, and there was one."""
        return self.result.requests > 0 and not self.result.failures

    def as_json(self) -> dict[str, Any]:
        """For machines: numbers, null where there is none."""
        result = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self.result).items()
            if name != "samples"
        }
        return {
            "url": self.url,
            "model": self.model,
            "task": self.task,
            "samples": self.samples,
            "samples_from": self.samples_from,
            "connections": self.connections,
            "seconds": self.seconds,
            **result,
            "rest_ms": self.result.rest_ms if self.result.requests else None,
            "rows_per_run": self.rows / self.runs if self.runs else None,
            "runs": self.runs,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        seen = self.result
        yield f"{self.model} at {self.url}: {self.samples} requests in turn ({self.samples_from})"
        yield f"{self.connections} connections, {self.seconds:g} s after a warm-up of {WARM_UP_S:g} s"
        yield ""
        yield f"requests/s   {seen.rate:10,.1f}   {seen.requests:,} answered, {seen.failures:,} errors"
        yield f"latency ms   {seen.p50_ms:10.2f}   p50;   p95 {seen.p95_ms:.2f},  p99 {seen.p99_ms:.2f}"
        if self.runs:
            yield f"rows per run {self.rows / self.runs:10.1f}   {self.runs:,} runs, warm-up included"
        yield f"client       {seen.client_cores:10.2f}   cores" + (
            ": it may be the limit" if seen.client_cores > 0.9 else ""
        )
        if seen.steps_ms and seen.rest_ms is not None and seen.requests:
            yield ""
            yield f"where the mean of {seen.mean_ms:.2f} ms goes"
            for name, ms in [*seen.steps_ms.items(), ("HTTP and network", seen.rest_ms)]:
                share = ms / seen.mean_ms
                yield f"  {name:<17}{ms:9.2f} ms {share:5.0%}  {'█' * round(40 * max(0.0, share))}"
        if not seen.requests:
            yield "no request was answered in the counted time"
        for kind, count in sorted(seen.errors.items(), key=lambda entry: -entry[1]):
            example = f": {seen.examples[kind]}" if kind in seen.examples else ""
            yield f"error: {count:,} × {kind}{example}"
