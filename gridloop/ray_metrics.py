"""Brings a process's Prometheus metrics into Ray's, which gathers those of all replicas on all nodes.

Behind Ray's ingress a request for `/metrics` reaches one replica, whichever it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from ray.util.metrics import Counter, Gauge

PREFIX = "gridloop_"
"""What our metrics' names begin with; those of the Python process are Ray's own business."""


class Bridge:
    """Tells Ray of a registry's metrics, by the same names with `ray_` before them.

    A histogram becomes the counters that it is made of (`_bucket` with `le`, `_sum`, `_count`), because Ray's own takes
    single observations; as counters they end in `_total`, which Ray adds. `histogram_quantile` reads them as it reads
    ours. Ray's counters take no zero, so a series appears with its first event.

    Args:
        registry: the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._metrics: dict[str, Counter | Gauge] = {}
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def tell(self) -> None:
        """Bring Ray's numbers up to date."""
        for metric in self._registry.collect():
            if metric.name.startswith(PREFIX):
                self._tell(metric)

    def _tell(self, metric: Metric) -> None:
        for sample in metric.samples:
            if sample.name.endswith("_created"):
                continue
            ours = self._metric(sample.name, metric, sample.labels)
            if isinstance(ours, Gauge):
                ours.set(sample.value, tags=sample.labels)
                continue
            key = (sample.name, tuple(sorted(sample.labels.items())))
            more = sample.value - self._told.get(key, 0.0)
            if more > 0:
                ours.inc(more, tags=sample.labels)
                self._told[key] = sample.value

    def _metric(self, name: str, metric: Metric, labels: Iterable[str]) -> Any:
        if name not in self._metrics:
            kind = Gauge if metric.type == "gauge" else Counter
            ours = name.removesuffix("_total")  # which Ray adds to every counter
            self._metrics[name] = kind(ours, description=metric.documentation, tag_keys=tuple(labels))
        return self._metrics[name]
