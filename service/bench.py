"""Load one model of a running server: how many requests per second, how fast, in what batches, and where time goes.

The load is a closed loop: every kept-alive connection sends its next request when it has its answer, for a bounded
time. The client is a process of its own (`python -m service.bench`: one JSON document in, one out), so that it shares
an interpreter's lock with nothing, and speaks HTTP/1.1 itself: a general client would be busier than the server.

    report = measure("http://127.0.0.1:8000", "series-gru", connections=64, seconds=10)

Redirects are not followed and proxies not asked: only the address that was given is put under load.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import http.client
import itertools
import json
import math
import random
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

DEFAULT_URL = "http://127.0.0.1:8000"

WARM_UP_S = 1.0
"""Before anything is counted (seconds)."""

GRACE_S = 30.0
"""Time for the requests in flight when a run ends; whoever still waits then counts as an error (seconds)."""

MAX_CONNECTIONS = 1024
MAX_SECONDS = 600.0

STEPS = ("decode", "queue", "infer", "encode")
"""Parts of a request's time that the server reports in `Server-Timing`."""


class BenchFailed(Exception):
    """Nothing could be measured; the message says why."""


# -------------------------------------------------------------------------------------------------------- what is sent


@dataclass(frozen=True, slots=True)
class Request:
    """A request, ready to be sent.

    Attributes:
        wire: head and body as they go over the wire.
        model: `name` or `name@version` that must answer; empty: anyone.
    """

    wire: bytes
    model: str = ""


def http_request(
    host: str, port: int, target: str, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
) -> bytes:
    """A POST as it goes over the wire; the connection is kept alive.

    Raises:
        ValueError: the target or a header holds a character that would end its line.
    """
    name = f"[{host}]" if ":" in host else host
    lines = [f"POST {target} HTTP/1.1", f"Host: {name}:{port}", f"Content-Type: {content_type}"]
    lines += [f"Content-Length: {len(body)}", *(f"{key}: {value}" for key, value in (headers or {}).items())]
    if any(not line.isprintable() or not line.isascii() for line in lines):
        raise ValueError("a request's head must be printable ASCII")
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop.

    Attributes:
        host: of the server.
        port: of the server.
        requests: sent in turn, over all connections.
        connections: kept alive throughout.
        seconds: counted.
        warm_up_s: before that.
        grace_s: for the requests in flight at the end.
        samples: answers that are kept, drawn evenly from those counted (count).
    """

    host: str
    port: int
    requests: Sequence[Request]
    connections: int
    seconds: float
    warm_up_s: float = WARM_UP_S
    grace_s: float = GRACE_S
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load measured.

    Attributes:
        requests: answered well (200, by the right model) in the counted time.
        answers: answered well at any time, warm-up and end included.
        rate: `requests` per second.
        errors: everything else by kind, at any time: `status 503`, `another model`, `connection lost`, `no answer`.
        examples: one of each kind, in the server's words.
        mean_ms: latency of those counted in `requests`, from writing the request to having the whole answer.
        p50_ms: likewise, nearest rank.
        p95_ms: likewise.
        p99_ms: likewise.
        steps_ms: mean of each step that the server reported for them (`Server-Timing`); empty when it reports none.
        client_cores: cores that the client used.
        samples: (index of the request, body of its answer).
    """

    requests: int
    answers: int
    rate: float
    errors: Mapping[str, int]
    examples: Mapping[str, str]
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    steps_ms: Mapping[str, float]
    client_cores: float
    samples: Sequence[tuple[int, bytes]] = ()

    @property
    def failures(self) -> int:
        """How many errors of all kinds."""
        return sum(self.errors.values())

    @property
    def rest_ms(self) -> float | None:
        """Mean time outside the server's own steps: HTTP on both sides, the network, waiting for a processor."""
        return self.mean_ms - sum(self.steps_ms.values()) if self.steps_ms else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed (nearest rank); NaN of nothing.

    Args:
        ordered: ascending.
        share: above 0, at most 1.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# ---------------------------------------------------------------------------------------------------- answers, in bytes


class Answer(NamedTuple):
    """An HTTP answer; `closes` when the server will close the connection after it."""

    status: int
    head: bytes
    body: bytes
    closes: bool


_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_SERVER_TIMING = re.compile(rb"\r\nserver-timing:([^\r]*)", re.IGNORECASE)
_DURATION = re.compile(rb"([\w-]+);dur=([\d.]+)")


class AnswerParser:
    """Puts HTTP/1.1 answers together from pieces, however the network cut them."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._body_at = self._end = 0

    def feed(self, data: bytes) -> Answer | None:
        """The answer that these bytes complete, or None.

        Raises:
            ValueError: this is no answer with a `Content-Length`, or more than one.
        """
        self._received += data
        if not self._end and not self._read_head():
            return None
        if len(self._received) < self._end:
            return None
        if len(self._received) > self._end:
            raise ValueError("bytes after the answer")
        head, body = bytes(self._received[: self._body_at]), bytes(self._received[self._body_at :])
        self._received.clear()
        self._body_at = self._end = 0
        return Answer(int(head[9:12]), head, body, _CLOSE.search(head) is not None)

    def _read_head(self) -> bool:
        place = self._received.find(b"\r\n\r\n")
        if place < 0:
            return False
        length = _CONTENT_LENGTH.search(self._received, 0, place + 2)
        if length is None or not re.match(rb"HTTP/1\.1 \d{3} ", self._received):
            raise ValueError("not an HTTP/1.1 answer with a Content-Length")
        self._body_at = place + 4
        self._end = self._body_at + int(length[1])
        return True


def server_timing(head: bytes) -> dict[str, float]:
    """Milliseconds by step, of an answer's `Server-Timing` header."""
    header = _SERVER_TIMING.search(head)
    return {name.decode(): float(ms) for name, ms in _DURATION.findall(header[1])} if header else {}


def answers_as(model: str) -> Callable[[bytes], bool]:
    """A test of an answer's body: is it from this model (`name` or `name@version`; empty: any)?"""
    name, _, version = model.partition("@")
    # How an answer usually begins; one that begins otherwise is parsed.
    usual = f'{{"model":{{"name":{json.dumps(name)},"version":{json.dumps(version) if version else ""}'.encode()

    def is_its(body: bytes) -> bool:
        if not model or body.startswith(usual):
            return True
        try:
            told = json.loads(body)["model"]
            return bool(told["name"] == name and version in ("", told["version"]))
        except (ValueError, TypeError, LookupError):
            return False

    return is_its


# ----------------------------------------------------------------------------------------------------------- the client


class _Run:
    """The tally of one load, and its end."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.load, self.loop = load, loop
        # (place in the list, bytes, test of the answer), round and round
        self.turn = itertools.cycle([(n, r.wire, answers_as(r.model)) for n, r in enumerate(load.requests)])
        self.finished: asyncio.Future[None] = loop.create_future()
        self.open: set[_Connection] = set()
        self.over = False
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.latencies = array("d")  # seconds
        self.steps: defaultdict[str, float] = defaultdict(float)  # milliseconds
        self.samples: list[tuple[int, bytes]] = []
        self.began = self.ended = self.cpu_began = self.cpu_ended = math.nan
        self._counting = False
        self._draw = random.Random(0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """One more connection; a server that refuses it three times in a row ends the run."""
        for _ in range(3):
            try:
                await self.loop.create_connection(lambda: _Connection(self), self.load.host, self.load.port)
            except OSError as error:
                reason = error.strerror or str(error)
                self.errors["connection refused"] += 1
                await asyncio.sleep(0.1)
            else:
                return
        self.fail(f"the server takes no connection: {reason}")

    def reconnect(self) -> None:
        """Open another connection in place of one that was closed."""
        if not self.over:
            task = self.loop.create_task(self.connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def begin(self) -> None:
        """The warm-up is over."""
        self._counting = True
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Send nothing more."""
        self.over, self._counting = True, False
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
        self.close_if_done()

    def give_up(self) -> None:
        """Whoever still waits has waited long enough."""
        if self.open:
            self.errors["no answer"] += len(self.open)
            self.examples.setdefault("no answer", f"none within {self.load.grace_s:g} s of the end")
        for connection in list(self.open):
            connection.transport.abort()
        self.open.clear()
        self.close_if_done()

    def fail(self, reason: str) -> None:
        """Nothing more can be measured."""
        if not self.finished.done():
            self.finished.set_exception(BenchFailed(reason))

    def answered(self, index: int, is_its: Callable[[bytes], bool], answer: Answer, seconds: float) -> None:
        """Count an answer."""
        if answer.status != 200:
            self._count_error(f"status {answer.status}", answer.body)
            return
        if not is_its(answer.body):
            self._count_error("another model", answer.body)
            return
        self.answers += 1
        if not self._counting:
            return
        self.latencies.append(seconds)
        for name, ms in server_timing(answer.head).items():
            self.steps[name] += ms
        count = len(self.latencies)
        if count <= self.load.samples:  # reservoir sampling (Vitter's algorithm R): each is as likely to be kept
            self.samples.append((index, answer.body))
        elif self.load.samples and (place := int(self._draw.random() * count)) < self.load.samples:
            self.samples[place] = (index, answer.body)

    def _count_error(self, kind: str, body: bytes) -> None:
        self.errors[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = detail(body)

    def lost(self, connection: _Connection) -> None:
        """A connection is gone; one that was not closed on purpose is opened again, a bounded number of times."""
        if connection not in self.open:
            return
        self.open.discard(connection)
        if not connection.is_closed:
            self.errors["connection lost"] += 1
            if self.errors["connection lost"] > 4 * self.load.connections:
                self.fail("the server keeps closing connections")
            self.reconnect()
        self.close_if_done()

    def close_if_done(self) -> None:
        """The run is finished when it is over and nobody waits."""
        if self.over and not self.open and not self.finished.done():
            self.finished.set_result(None)

    def outcome(self) -> Outcome:
        """The tally as numbers."""
        ordered = sorted(self.latencies)
        count, wall = len(ordered), self.ended - self.began
        return Outcome(
            requests=count,
            answers=self.answers,
            rate=count / wall,
            errors=dict(self.errors),
            examples=self.examples,
            mean_ms=sum(ordered) / count * 1e3 if count else math.nan,
            p50_ms=percentile(ordered, 0.50) * 1e3,
            p95_ms=percentile(ordered, 0.95) * 1e3,
            p99_ms=percentile(ordered, 0.99) * 1e3,
            steps_ms={name: total / count for name, total in self.steps.items()},
            client_cores=(self.cpu_ended - self.cpu_began) / wall,
            samples=self.samples,
        )


class _Connection(asyncio.Protocol):
    """A kept-alive connection that asks, waits for the answer, and asks again."""

    transport: asyncio.Transport

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._parser = AnswerParser()
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._run.open.add(self)
        self._ask()

    def _ask(self) -> None:
        if self._run.over:
            self._close()
            return
        self._index, wire, self._is_its = next(self._run.turn)
        self._asked = time.perf_counter()
        self.transport.write(wire)

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._parser.feed(data)
        except ValueError as error:
            self._close()
            self._run.fail(f"the server does not speak HTTP as it should: {error}")
            return
        if answer is None:
            return
        self._run.answered(self._index, self._is_its, answer, time.perf_counter() - self._asked)
        if answer.closes:
            self._close()
            self._run.reconnect()
        else:
            self._ask()

    def _close(self) -> None:
        self.is_closed = True
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.lost(self)


async def run_load(load: Load) -> Outcome:
    """Put a load on a server, in this process.

    Raises:
        BenchFailed: the server is not there any more, or is no HTTP server.
    """
    loop = asyncio.get_running_loop()
    run = _Run(load, loop)
    await asyncio.gather(*(run.connect() for _ in range(load.connections)))
    end = load.warm_up_s + load.seconds
    timers = [
        loop.call_later(load.warm_up_s, run.begin),
        loop.call_later(end, run.end),
        loop.call_later(end + load.grace_s, run.give_up),
    ]
    try:
        await run.finished
    finally:
        run.over = True
        for timer in timers:
            timer.cancel()
        for connection in list(run.open):
            connection.transport.abort()
    return run.outcome()


def put_load(load: Load) -> Outcome:
    """Put a load on a server, from a process of its own.

    Raises:
        BenchFailed: nothing could be measured.
    """
    told = {**asdict(load), "requests": [(_text(request.wire), request.model) for request in load.requests]}
    patience_s = load.warm_up_s + load.seconds + load.grace_s + 30
    try:
        done = subprocess.run(
            [sys.executable, "-m", "service.bench"],
            input=json.dumps(told).encode(),
            capture_output=True,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"the client did not end within {patience_s:.0f} s") from None
    if done.returncode:
        raise BenchFailed(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "the client has died")
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise BenchFailed(f"the client's report of {len(done.stdout):,} bytes cannot be read: {error}") from None
    answer["samples"] = [(index, base64.b64decode(body)) for index, body in answer["samples"]]
    return Outcome(**answer)


def client_process() -> None:
    """Read a load from stdin, put it on the server, write the outcome to stdout; exit code 1 with the reason if not."""
    told = json.load(sys.stdin)
    told["requests"] = [Request(base64.b64decode(wire), model) for wire, model in told["requests"]]
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            outcome = runner.run(run_load(Load(**told)))
        except BenchFailed as error:
            sys.exit(str(error))
    report = {**asdict(outcome), "samples": [(index, _text(body)) for index, body in outcome.samples]}
    write_whole(json.dumps(report).encode())


def write_whole(data: bytes) -> None:
    """Write all of it to stdout.

    Under `PYTHONUNBUFFERED`, `print` loses the rest of a write that a signal interrupts once the pipe is full.
    """
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(data)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ----------------------------------------------------------------------------------------------------------- the server


def split_url(url: str) -> tuple[str, int]:
    """Host and port of a server.

    Raises:
        ValueError: it is not `http://host:port`.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        raise ValueError("TLS is not measured here: give the http:// address of the service itself")
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme != "http" or not parts.hostname or extra:
        raise ValueError(f"{url!r} is not http://host:port")
    return parts.hostname, parts.port or 80


class Server:
    """A server that runs somewhere, asked before and after the load.

    Args:
        host: name or address.
        port: its port.
        key: sent as `Authorization: Bearer`; empty for none.
    """

    def __init__(self, host: str, port: int, key: str = "") -> None:
        self.host, self.port = host, port
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, target: str) -> bytes:
        """The body of the 200 that a GET gets.

        Raises:
            BenchFailed: another status, or no answer.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("GET", target, headers=self.headers)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchFailed(f"no server answers at http://{self.host}:{self.port}: {error}") from None
        finally:
            connection.close()
        if status != 200:
            raise BenchFailed(f"{target} answered {status}: {detail(body)}")
        return body

    def ask_json(self, target: str) -> dict[str, Any]:
        """The object that a GET gets.

        Raises:
            BenchFailed: as `ask`, or it is none.
        """
        try:
            found = json.loads(self.ask(target))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BenchFailed(f"{target} is no JSON object: is this a Gridloop server?")
        return found

    def runs(self, model: str) -> tuple[float, float]:
        """Rows and runs of a model so far, over all workers; (0, 0) where there are no metrics."""
        try:
            text = self.ask("/metrics").decode(errors="replace")
        except BenchFailed:
            return 0.0, 0.0
        rows, runs = (
            sum(map(float, re.findall(rf'^{name}\{{model="{re.escape(model)}"\}} (\S+)$', text, re.MULTILINE)))
            for name in ("gridloop_batch_rows_sum", "gridloop_batch_rows_count")
        )
        return rows, runs


def detail(body: bytes) -> str:
    """What an answer that is an error says: a problem's `detail`, else its text, shortened."""
    try:
        found = json.loads(body)
        text = found["detail"] if isinstance(found, dict) and "detail" in found else found
    except ValueError:
        text = body.decode(errors="replace")
    text = text if isinstance(text, str) else json.dumps(text)
    return text if len(text) <= 300 else text[:299] + "…"


# ---------------------------------------------------------------------------------------------------------- the samples


class Sample(NamedTuple):
    """A request's content: what stands behind the path, the content type and the body."""

    query: Mapping[str, Any]
    content_type: str
    body: bytes


def golden_samples(folder: Path, task: str) -> list[Sample]:
    """The golden samples of a version folder as requests; empty where there are none that can be read.

    Args:
        folder: `models/<name>/<version>`.
        task: the endpoint's name.
    """
    # Not at the top: the client process and `--help` need none of this.
    from service.errors import ServiceError
    from service.registry.golden import golden_request, read_golden
    from service.tasks import AnyTask, discover
    from service.tasks.base import MediaInput

    kind = discover().get(task)
    if kind is None or not kind.has_route:
        return []
    try:
        # The class stands for an instance, which would need the graph: only its `Input` is looked at.
        requests = [golden_request(cast(AnyTask, kind), sample, folder) for sample in read_golden(folder, str(folder))]
    except (ServiceError, ValueError, OSError):
        return []
    samples = []
    for request in requests:
        fields = request.model_dump(mode="json", exclude_unset=True)
        if not isinstance(request, MediaInput):
            samples.append(Sample({}, "application/json", json.dumps(fields, ensure_ascii=False).encode()))
        elif len(request.files) == 1:
            samples.append(Sample(fields, "application/octet-stream", request.files[0].data))
        else:
            boundary = "gridloop-bench-7f3a91c2e05b"
            part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{{}}"\r\n\r\n'
            parts = [part.format(number).encode() + file.data for number, file in enumerate(request.files)]
            body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
            samples.append(Sample(fields, f"multipart/form-data; boundary={boundary}", body))
    return samples


def documented_samples(openapi: Mapping[str, Any], task: str) -> list[Sample]:
    """The examples of a task in the server's own OpenAPI document; empty when it has none.

    Args:
        openapi: the document.
        task: the endpoint's name.
    """
    operation = openapi.get("paths", {}).get(f"/v1/{task}", {}).get("post", {})
    content = operation.get("requestBody", {}).get("content", {})
    examples = content.get("application/json", {}).get("examples", {})
    samples = [Sample({}, "application/json", json.dumps(example["value"]).encode()) for example in examples.values()]
    parts = content.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
    sample = parts.get("file", {}).get("items", {}).get("x-sample", "")
    data_url = re.fullmatch(r"data:([\w/+.-]+);base64,(.+)", sample)
    if data_url:
        samples.append(Sample({}, data_url[1], base64.b64decode(data_url[2])))
    return samples


def wire_requests(server: Server, task: str, model: str, samples: Sequence[Sample]) -> list[Request]:
    """The samples as requests to one model."""
    requests = []
    for query, content_type, body in samples:
        if content_type == "application/json":
            target, body = f"/v1/{task}", json.dumps({**json.loads(body), "model": model}, ensure_ascii=False).encode()
        else:
            shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
            target = f"/v1/{task}?{urllib.parse.urlencode({**shown, 'model': model})}"
        wire = http_request(server.host, server.port, target, content_type, body, server.headers)
        requests.append(Request(wire, model))
    return requests


# ---------------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True, slots=True)
class Report:
    """One model under load.

    Attributes:
        url: of the server.
        model: name@version.
        task: its endpoint.
        samples: how many different requests were sent in turn.
        samples_from: where they come from.
        connections: kept alive.
        seconds: counted.
        outcome: what the client saw.
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
    outcome: Outcome
    rows: int
    runs: int

    @property
    def is_good(self) -> bool:
        """Whether every request was answered well, and there was one."""
        return self.outcome.requests > 0 and not self.outcome.failures

    def as_json(self) -> dict[str, Any]:
        """For machines: numbers, null where there is none."""
        outcome = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self.outcome).items()
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
            **outcome,
            "rest_ms": self.outcome.rest_ms if self.outcome.requests else None,
            "rows_per_run": self.rows / self.runs if self.runs else None,
            "runs": self.runs,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        o = self.outcome
        yield f"{self.model} at {self.url}: {self.samples} requests in turn ({self.samples_from})"
        yield f"{self.connections} connections, {self.seconds:g} s after a warm-up of {WARM_UP_S:g} s"
        yield ""
        yield f"requests/s   {o.rate:10,.1f}   {o.requests:,} answered, {o.failures:,} errors"
        yield f"latency ms   {o.p50_ms:10.2f}   p50;   p95 {o.p95_ms:.2f},  p99 {o.p99_ms:.2f}"
        if self.runs:
            yield f"rows per run {self.rows / self.runs:10.1f}   {self.runs:,} runs, warm-up included"
        yield f"client       {o.client_cores:10.2f}   cores" + (": it may be the limit" if o.client_cores > 0.9 else "")
        if o.steps_ms and o.rest_ms is not None and o.requests:
            yield ""
            yield f"where the mean of {o.mean_ms:.2f} ms goes"
            for name, ms in [*o.steps_ms.items(), ("HTTP and network", o.rest_ms)]:
                share = ms / o.mean_ms
                yield f"  {name:<17}{ms:9.2f} ms {share:5.0%}  {'█' * round(40 * max(0.0, share))}"
        if not o.requests:
            yield "no request was answered in the counted time"
        for kind, count in sorted(o.errors.items(), key=lambda entry: -entry[1]):
            example = f": {o.examples[kind]}" if kind in o.examples else ""
            yield f"error: {count:,} × {kind}{example}"


def measure(
    url: str, model: str, *, connections: int = 64, seconds: float = 10.0, models: Path | None = None, key: str = ""
) -> Report:
    """Load one model of a running server with its own sample requests.

    Args:
        url: `http://host:port`.
        model: `name`, or `name@version`; without a version, the server's default.
        connections: 1..1024, kept alive.
        seconds: up to 600, counted after a warm-up.
        models: the model repository, for golden samples; where the model is not in it, the examples in the server's
            OpenAPI document are sent.
        key: an API key.

    Raises:
        ValueError: the address or a number is out of bounds.
        BenchFailed: no server, no such model, or it is not ready.
    """
    if not 1 <= connections <= MAX_CONNECTIONS or not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"connections must be 1 to {MAX_CONNECTIONS}, seconds above 0 and at most {MAX_SECONDS:g}")
    server = Server(*split_url(url), key)
    name, _, version = model.partition("@")
    info = server.ask_json(f"/v1/models/{urllib.parse.quote(name, safe='')}")
    version = version or info.get("default_version") or ""
    found = next((v for v in info.get("versions", []) if v["version"] == version), None)
    if found is None or found["state"] != "ready":
        raise BenchFailed(f"{name}@{version} is not ready: {(found or info).get('reason') or 'no such version'}")
    task = info["task"]
    samples = golden_samples(models / name / version, task) if models else []
    samples_from = "golden samples"
    if not samples:
        samples = documented_samples(server.ask_json("/openapi.json"), task)
        samples_from = "examples of the task"
    if not samples:
        raise BenchFailed(f"there is no sample request for {name}: neither golden samples nor examples of its task")
    requests = wire_requests(server, task, f"{name}@{version}", samples)
    rows, runs = server.runs(name)
    outcome = put_load(Load(_address(server), server.port, requests, connections, seconds))
    rows, runs = (after - before for after, before in zip(server.runs(name), (rows, runs), strict=True))
    return Report(
        url, f"{name}@{version}", task, len(requests), samples_from, connections, seconds, outcome, int(rows), int(runs)
    )


def _address(server: Server) -> str:
    """The server's address, looked up once for all connections."""
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BenchFailed(f"{server.host}: {error.strerror or error}") from None
    for *_, where in found:
        address = str(where[0])
        try:
            socket.create_connection((address, server.port), timeout=5).close()
        except OSError:
            continue
        return address
    raise BenchFailed(f"no server answers at {server.host}:{server.port}")


if __name__ == "__main__":
    client_process()
