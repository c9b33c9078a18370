"""Metrics and structured logs: every metric of the service is declared here, once.

With several workers each process writes its numbers to files in `PROMETHEUS_MULTIPROC_DIR`, which the `serve` command
sets before the workers start, and any worker answers `/metrics` for all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import time
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import orjson
import prometheus_client.values
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
    multiprocess,
)
from prometheus_client import REGISTRY as DEFAULT_REGISTRY
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar, Sample

from service.log_writer import LogWriter

RESERVED_BYTES = 256 * 1024
"""Of each metrics file (bytes): many times what the series of ten models need."""
FLUSH_S = 0.2
"""Observations are written so often (seconds)."""
_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Reserved(MmapedDict):
    """A metrics file whose place on the disk is taken when it is made.

    The library makes files with holes: where the disk is full by the time that a hole is filled, the kernel ends the
    process. Without a place from the beginning, the numbers are kept in memory, where other workers do not see them.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            try:
                with open(filename, "ab") as file:  # noqa: PTH123  the library has a str
                    if os.fstat(file.fileno()).st_size == 0:
                        os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)
            except OSError as error:
                structlog.get_logger(__name__).error(
                    "metrics of this worker are not shared: their file cannot be made", reason=error.strerror
                )
                with contextlib.suppress(OSError):
                    Path(filename).unlink()
                filename = f"/proc/self/fd/{os.memfd_create('gridloop-metrics')}"
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]


if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    prometheus_client.values.MmapedDict = _Reserved  # type: ignore[attr-defined]  # before the first metric, which makes the first file

REQUESTS = Counter("gridloop_requests", "HTTP requests answered.", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "gridloop_request_seconds", "Time from the request's head to its answer.", ["route"], buckets=_LATENCY_BUCKETS_S
)
IN_FLIGHT = Gauge(
    "gridloop_requests_in_flight", "HTTP requests being answered now.", multiprocess_mode="livemostrecent"
)

BATCH_ROWS = Histogram(
    "gridloop_batch_rows", "Rows in each run of a model.", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
RUN_SECONDS = Histogram("gridloop_run_seconds", "Time of each run of a model.", ["model"], buckets=_LATENCY_BUCKETS_S)
QUEUE_SECONDS = Histogram(
    "gridloop_queue_seconds", "Time a request waited before work on it began.", ["model"], buckets=_LATENCY_BUCKETS_S
)
WAITING_ROWS = Gauge("gridloop_waiting_rows", "Rows in a model's queue.", ["model"], multiprocess_mode="livesum")
DROP_REASONS = ("overloaded", "bytes", "predicted", "late", "deadline", "cancelled", "draining")
"""A full queue, by rows or by bytes; an answer that would be late, told at arrival or after a wait; time that ran out;
a caller who left; a server that stops."""
DROPPED = Counter(
    "gridloop_dropped_requests",
    f"Requests that were not run, by reason: {', '.join(DROP_REASONS)}.",
    ["model", "reason"],
)
FAILED_RUNS = Counter("gridloop_failed_runs", "Runs that the runtime refused.", ["model"])
DRIFT = Gauge(
    "gridloop_drift_index",
    "Population stability index of a trait of the latest answers against the version's sketch; over 0.25 is another "
    "distribution.",
    ["model", "version", "trait"],
    multiprocess_mode="livemostrecent",
)
REFUSED_FILES = Counter(
    "gridloop_refused_files",
    "Files of requests that could not be used, by kind of problem; others of the same request may have been answered.",
    ["model", "problem"],
)
SHADOW_OUTCOMES = ("agreed", "differed", "dropped", "failed")
"""Answers that were compared, and agreed or not; copies for which there was no time; those that got no answer."""
SHADOW_REQUESTS = Counter(
    "gridloop_shadow_requests",
    f"Copies of answered requests offered to a version in the shadow, by outcome: {', '.join(SHADOW_OUTCOMES)}.",
    ["model", "version", "outcome"],
)
SHADOW_SECONDS = Histogram(
    "gridloop_shadow_seconds",
    "Time of compared answers without the queue: of the version that answered (served), and of the one in the shadow.",
    ["model", "version", "answer"],
    buckets=_LATENCY_BUCKETS_S,
)
LOST_LOG_LINES = Counter(
    "gridloop_lost_log_lines", "Log lines that could not be written: a full disk, or a reader that stalls or is gone."
)
REFUSED_CONNECTIONS = Counter(
    "gridloop_refused_connections",
    "Connections answered with 503, because as many were open as may be and none was idle.",
)
MODEL_READY = Gauge(
    "gridloop_model_ready", "1 while a model version is loaded.", ["model", "version"], multiprocess_mode="livemin"
)
MODEL_REFUSED = Gauge(
    "gridloop_model_refused",
    "1 while what a version's folder holds cannot be served; where gridloop_model_ready is 1, what it held before is.",
    ["model", "version"],
    multiprocess_mode="livemax",
)


class Recorder:
    """Observations of a histogram, kept in a list until they are written together.

    With several workers every write goes to a mapped file, under a lock, after a look at the process's number: more
    than a small inference should pay. The edge writes what has gathered a few times a second.
    """

    _all: ClassVar[list[Recorder]] = []

    def __init__(self, histogram: Histogram, *labels: str) -> None:
        self._child, self._values = histogram.labels(*labels), list[float]()
        self.observe = self._values.append
        """Note a value; from any thread."""
        Recorder._all.append(self)

    def close(self) -> None:
        """Write what was noted; the recorder is used no more."""
        self.flush()
        if self in Recorder._all:
            Recorder._all.remove(self)

    def flush(self) -> None:
        """Write what was noted."""
        count = len(self._values)
        if not count:
            return
        values = self._values[:count]
        del self._values[:count]  # what another thread notes meanwhile stays
        child: Any = self._child
        child._sum.inc(sum(values))
        for index, found in Counts(bisect_left(child._upper_bounds, value) for value in values).items():
            child._buckets[index].inc(found)

    @classmethod
    def flush_all(cls) -> None:
        """Write what all have noted."""
        for recorder in tuple(cls._all):
            recorder.flush()


_exemplars: dict[str, dict[int, tuple[str, float, float]]] = {}
"""Of this worker's requests by route and bucket: the last one with a trace, its time (seconds) and when (Unix time)."""


def note_exemplar(route: str, seconds: float, trace_id: str) -> None:
    """Remember a request of which there is a trace, to be shown beside the times of its route."""
    bucket = bisect_left(_LATENCY_BUCKETS_S, seconds)
    _exemplars.setdefault(route, {})[bucket] = trace_id, seconds, time.time()


class _WithExemplars:
    """A registry's metrics, those of the requests' times with examples, as OpenMetrics may have them.

    They are of the worker that is asked: an example needs no completeness. The library keeps none with several workers.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            if metric.name == "gridloop_request_seconds":
                metric.samples = [self._shown(sample) for sample in metric.samples]
            yield metric

    def _shown(self, sample: Sample) -> Sample:
        if not sample.name.endswith("_bucket"):
            return sample
        bucket = bisect_left(_LATENCY_BUCKETS_S, float(sample.labels["le"]))
        found = _exemplars.get(sample.labels["route"], {}).get(bucket)
        if found is None:
            return sample
        trace_id, seconds, when = found
        return sample._replace(exemplar=Exemplar({"trace_id": trace_id}, seconds, when))


def announce_model(model: str) -> None:
    """Let a model's counters start at 0, so that a rate over them sees the first event too."""
    FAILED_RUNS.labels(model)
    for reason in DROP_REASONS:
        DROPPED.labels(model, reason)


def exposition(accept: str = "") -> tuple[bytes, str]:
    """All metrics of all workers, and their content type: OpenMetrics where it is asked for, else Prometheus' text.

    Args:
        accept: the content types that the scraper takes.
    """
    registry = DEFAULT_REGISTRY
    held: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry, held = CollectorRegistry(), _files_held(fcntl.LOCK_SH)
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    with held:
        if "application/openmetrics-text" not in accept:
            return generate_latest(registry), CONTENT_TYPE_LATEST
        return openmetrics.generate_latest(_WithExemplars(registry)), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]


def forget(pid: int | None = None) -> None:
    """Drop the numbers of this process, or the gauges of another one that has ended; its counters stay."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return
    if pid is not None:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        return
    for file in Path(folder).glob(f"*_{os.getpid()}.db"):
        file.unlink()


def merge_ended() -> None:
    """Add the counters and histograms of processes that have ended to those of all that ended before.

    A server whose workers are replaced again and again would have ever more files, each of which every scrape reads.
    """
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.devnull))
    if not folder.is_dir():
        return
    with _files_held(fcntl.LOCK_EX), contextlib.suppress(OSError):  # where a disk is full, the files stay as they are
        for kind in ("counter", "histogram"):
            ended = [file for file in folder.glob(f"{kind}_*.db") if _has_ended(file)]
            together = folder / f"{kind}_ended.db"
            if not ended:
                continue
            sums: defaultdict[str, float] = defaultdict(float)
            for file in [*ended, *([together] if together.exists() else [])]:
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
                    sums[key] += value
            part = together.with_suffix(".part")
            part.write_bytes(_metrics_file(sums))
            for file in ended:
                file.unlink()
            part.replace(together)


def _has_ended(file: Path) -> bool:
    pid = file.stem.rpartition("_")[2]
    return pid.isdecimal() and not Path(f"/proc/{pid}").exists()


def _metrics_file(values: Mapping[str, float]) -> bytes:
    """A metrics file's content; made in memory, as one that grows on a full disk would end the process."""
    descriptor = os.memfd_create("gridloop-metrics")
    try:
        file: Any = MmapedDict(f"/proc/self/fd/{descriptor}")  # type: ignore[no-untyped-call]
        for key, value in values.items():
            file.write_value(key, value, 0.0)
        content: bytes = file._m[: file._used]
        file.close()
        return content
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _files_held(how: int) -> Iterator[None]:
    """Keep the metrics files from being merged while they are read, and the other way round."""
    lock = -1
    with contextlib.suppress(OSError):  # on a full disk: nothing is merged there
        lock = os.open(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, how)
    try:
        yield
    finally:
        if lock >= 0:
            os.close(lock)


def _to_stderr(line: str) -> None:
    """Write a line to stderr; one that cannot be written is lost, and whoever logged goes on."""
    try:
        sys.stderr.write(line)
    except (OSError, ValueError):
        LOST_LOG_LINES.inc()


_write_line: Callable[[str], None] = _to_stderr
_writer: LogWriter | None = None


class _Lines(logging.Handler):
    """Records as lines, to wherever lines go."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # what was logged cannot even be shown
            line = f"a log record of {record.name} cannot be formatted: {record.msg!r:.200}"
        _write_line(line + "\n")


def flush_logs() -> None:
    """Write the lines that wait, before a process ends; not for longer than a second."""
    if _writer is not None:
        _writer.close()


def configure_logging(log_format: str, level: str, *, in_background: bool = False) -> None:
    """Send every log record, ours and the libraries', to stderr.

    Args:
        log_format: "json", "console", or "auto" for console on a terminal and JSON elsewhere.
        level: "debug", "info", "warning" or "error".
        in_background: lines are written by a thread of their own, so that no answer waits for them: for a server,
            whose processes call `flush_logs` before they end.
    """
    global _write_line, _writer
    _writer = None
    if in_background:
        with contextlib.suppress(OSError, ValueError):  # a program has put something else in its place
            _writer = LogWriter(sys.stderr.fileno(), LOST_LOG_LINES.inc)
    _write_line = _writer.write if _writer else _to_stderr
    as_json = _as_json(log_format)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    handler = _Lines()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)  # those of NumPy, say, would stand between the lines as text of another form
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").setLevel("WARNING")  # our own lines say what uvicorn's start-up lines do


def access_log(log_format: str) -> Callable[[dict[str, Any]], None]:
    """A function that writes one line per answer to stderr.

    It bypasses the logging machinery, which costs more than a small inference. Where it goes, `configure_logging` says.

    Args:
        log_format: as in `configure_logging`.
    """
    if _as_json(log_format):

        def write_json(facts: dict[str, Any]) -> None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            _write_line(orjson.dumps({"timestamp": now, "level": "info", "event": "request", **facts}).decode() + "\n")

        return write_json

    def write_text(facts: dict[str, Any]) -> None:
        model = f"  {facts['model']}" if facts["model"] else ""
        _write_line(
            f"{facts['method']} {facts['path']} {facts['status']}  {facts['ms']:.1f} ms{model}  {facts['request_id']}\n"
        )

    return write_text


def _as_json(log_format: str) -> bool:
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
