"""How throughput and latency grow: with connections, body size, loaded models, length of a series and of a text.

    python benchmarks/growth.py                         # everything, some ten minutes on a quiet machine
    python benchmarks/growth.py --only connections      # one section; the others stay as they were
    python benchmarks/growth.py --seconds 10            # longer, calmer
    python benchmarks/growth.py --plot                  # draw again what was measured

| section | what grows | what else |
|---|---|---|
| connections | 1 … 512 kept-alive connections | one small request of each task |
| body | a picture's bytes (PNG and JPEG, 32 … 2,048 pixels a side); a JSON body's bytes, by white space | 8 connections |
| models | 1, 10, 50 copies of the series model, one asked or all in turn | 64 connections; memory and time to start |
| series | 1 … 50,000 points | 8 connections |
| text | 1 … 5,000 words | 8 connections |

Each point is a closed loop against `gridloop serve` with its defaults (`GRIDLOOP_` variables reach it), after a warm-up. It lasts
longer where a request takes long, and is measured again, at most twice, when other programs used more than 0.15 cores. A
section is written as soon as it is measured: the numbers to benchmarks/results/growth.json, a plot to docs/plots/, a table
between the section's two marks in docs/performance.md.

Exit code 0 when every request was answered with 200, 1 when one was not or a server failed, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from bench import MODELS
from measuring import BenchmarkFailed, options, plots
from measuring.machine import cpu_seconds, machine
from measuring.noise import Noise, calmest, listening
from measuring.plots import INK
from measuring.servers import LocalServer
from measuring.tables import read_results, write_results
from measuring.targets import Running, as_service, running, targets
from measuring.workloads import Workload
from measuring.workloads import sentences as sentences_of_load
from PIL import Image
from rich.console import Console

from service.client.http import ClientFailed, ServerAddress, http_request
from service.client.load import WARM_UP_S, Load, LoadResult, Request
from service.client.process import put_load
from service.cpu import cpu_budget

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
PLOTS = ROOT / "docs" / "plots"
DOCUMENT = ROOT / "docs" / "performance.md"

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SIDES = (32, 64, 128, 256, 512, 1024, 2048)
JSON_BYTES = (4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)
LOADED = (1, 10, 50)
POINTS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 50_000)
WORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)

FEW_CONNECTIONS = 8
"""Kept alive where bodies, series or texts grow (count)."""

MANY_CONNECTIONS = 64
"""Kept alive where the number of models grows (count)."""

VARIANTS = 4
"""Different bodies of each size, sent in turn (count)."""

LONGEST_S = 30.0
"""Longest time that a point is measured for the sake of slow requests (seconds)."""


@dataclass(frozen=True)
class Case:
    """A load to be measured.

    Attributes:
        line: of the plot.
        x: what grows.
        what: x in words.
        task: the endpoint.
        content_type: of the bodies.
        bodies: sent in turn.
        connections: kept alive.
        models: that must answer, in turn; the bodies name them.
    """

    line: str
    x: float
    what: str
    task: str
    content_type: str
    bodies: Sequence[bytes]
    connections: int
    models: Sequence[str] = ("",)


@dataclass(frozen=True)
class Point:
    """What was measured of a case.

    Attributes:
        line: of the plot.
        x: what grows.
        what: x in words.
        connections: kept alive.
        body_bytes: mean.
        seconds: counted.
        requests: answered well in that time.
        rate: of them, per second.
        p50_ms: their latency.
        p99_ms: likewise.
        cpu_ms: CPU time of all server processes per request.
        rows_per_run: of the model asked; None with several.
        errors: by kind.
        noise: of the machine meanwhile.
        memory_mib: of all server processes, where models grow.
        ready_s: from start to ready, where models grow.
    """

    line: str
    x: float
    what: str
    connections: int
    body_bytes: float
    seconds: float
    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    rows_per_run: float | None
    errors: Mapping[str, int]
    noise: Noise
    memory_mib: float | None = None
    ready_s: float | None = None


# -------------------------------------------------------------------------------------------------------------- bodies


def picture(form: str, side: int, seed: int) -> bytes:
    """A square picture of smooth colour with some grain, as compressible as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    grain = rng.standard_normal(smooth.shape, np.float32) * 10
    file = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(file, form, quality=85)
    return file.getvalue()


def series(points: int, seed: int) -> list[float]:
    """Daily waves with noise and a few spikes."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(points) * (2 * math.pi / 48)) + rng.normal(0, 0.1, points)
    wave[rng.integers(0, points, points // 100)] += 6
    return [float(value) for value in np.round(10 * (3 + wave), 4)]


def text(words: int, seed: int) -> str:
    """So many words, in sentences of eight; the last one is unfinished."""
    sentences = [json.loads(body)["text"] for body in sentences_of_load(1)]
    random.Random(seed).shuffle(sentences)
    all_words = ". ".join(sentences * (words // (8 * len(sentences)) + 1)).split()
    return " ".join(all_words[:words])


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


# ------------------------------------------------------------------------------------------------------------ sections

Measure = Callable[[Running, Case], Point]


@dataclass(frozen=True)
class Section:
    """Something that grows.

    Attributes:
        title: of the plot.
        grows: what is on the horizontal axis.
        points: measures all of them; is given the model repository, and what measures a case on a running server.
        is_load: whether more of it is more work at a time (connections, models), not more work a request.
    """

    title: str
    grows: str
    points: Callable[[Path, Measure], Iterator[Point]]
    is_load: bool = False


def with_server(cases: Callable[[], Iterator[Case]]) -> Callable[[Path, Measure], Iterator[Point]]:
    """All cases on one server."""

    def points(models: Path, measure: Measure) -> Iterator[Point]:
        with running(service(), models) as server:
            for case in cases():
                yield measure(server, case)

    return points


def service() -> Any:
    """The service with its defaults."""
    return next(target for target in targets(1) if target.name == "gridloop")


def connections() -> Iterator[Case]:
    image, words, values = "image-classification", "next-word-prediction", "anomaly-detection"
    small = [
        ("PNG 32×32", image, "image/png", [picture("PNG", 32, seed) for seed in range(VARIANTS)]),
        ("8 words", words, "application/json", [body(text=text(8, seed)) for seed in range(VARIANTS)]),
        ("256 points", values, "application/json", [body(values=series(256, seed)) for seed in range(VARIANTS)]),
    ]
    for line, task, content_type, bodies in small:
        for count in CONNECTIONS:
            yield Case(line, count, f"{count}", task, content_type, bodies, count)


def body_sizes() -> Iterator[Case]:
    for form in ("PNG", "JPEG"):
        for side in SIDES:
            bodies = [picture(form, side, seed) for seed in range(2)]
            size = sum(map(len, bodies)) / len(bodies)
            what = f"{side}×{side}, {size_of(size)}"
            yield Case(form, size, what, "image-classification", f"image/{form.lower()}", bodies, FEW_CONNECTIONS)
    for size in JSON_BYTES:
        bodies = [body(values=series(256, seed)) for seed in range(VARIANTS)]
        padded = [b"{" + b" " * (size - len(content)) + content[1:] for content in bodies]
        line = "JSON, 256 points and white space"
        yield Case(line, size, size_of(size), "anomaly-detection", "application/json", padded, FEW_CONNECTIONS)


def loaded_models(models: Path, measure: Measure) -> Iterator[Point]:
    original = models / MODELS["anomaly-detection"]
    for count in LOADED:
        with tempfile.TemporaryDirectory() as folder:
            names = [f"series-{number:03}" for number in range(count)]
            for name in names:
                shutil.copytree(original, Path(folder) / name, ignore=shutil.ignore_patterns("work", "train.py"))
            with running(service(), Path(folder)) as server:
                idle = server.memory_mib()
                for line, asked in (("one asked", names[:1]), ("all asked in turn", names)):
                    bodies = [body(values=series(256, n), model=name) for n, name in enumerate(asked)]
                    what = f"{count}"
                    case = Case(
                        line, count, what, "anomaly-detection", "application/json", bodies, MANY_CONNECTIONS, asked
                    )
                    yield replace(measure(server, case), memory_mib=idle, ready_s=server.ready_s)


def series_lengths() -> Iterator[Case]:
    for points in POINTS:
        bodies = [body(values=series(points, seed)) for seed in range(VARIANTS)]
        yield Case("series", points, f"{points:,}", "anomaly-detection", "application/json", bodies, FEW_CONNECTIONS)


def text_lengths() -> Iterator[Case]:
    for words in WORDS:
        bodies = [body(text=text(words, seed)) for seed in range(VARIANTS)]
        yield Case("text", words, f"{words:,}", "next-word-prediction", "application/json", bodies, FEW_CONNECTIONS)


SECTIONS: Mapping[str, Section] = {
    "connections": Section("Kept-alive connections", "connections", with_server(connections), is_load=True),
    "body": Section(f"Body size, {FEW_CONNECTIONS} connections", "bytes", with_server(body_sizes)),
    "models": Section(f"Loaded models, {MANY_CONNECTIONS} connections", "loaded models", loaded_models, is_load=True),
    "series": Section(f"Length of a series, {FEW_CONNECTIONS} connections", "points", with_server(series_lengths)),
    "text": Section(f"Length of a text, {FEW_CONNECTIONS} connections", "words", with_server(text_lengths)),
}


def size_of(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


# --------------------------------------------------------------------------------------------------------- measurement


def measure_for(seconds: float, cores: int, say: Callable[[str], None]) -> Measure:
    """A function that measures one case for at least so long."""

    def measure(server: Running, case: Case) -> Point:
        requests = []
        for number, content in enumerate(case.bodies):
            workload = Workload(case.line, case.task, case.content_type, lambda _: [])
            path, content_type, sent = as_service(workload, content)
            wire = http_request("127.0.0.1", server.port, path, content_type, sent)
            requests.append(Request(wire, case.models[number % len(case.models)]))
        asked = LocalServer("127.0.0.1", server.port)
        alone = []
        for _ in range(2):  # the first may still be cold
            began = time.perf_counter()
            answer = json.loads(asked.ask(f"/v1/{case.task}", case.content_type, case.bodies[0]))
            alone.append(time.perf_counter() - began)
        name = answer["model"]["name"] if len(case.models) == 1 else ""
        # Everyone should have had some three answers, and the start, when all come at once, be over.
        everyone_s = min(alone) * case.connections / cores
        long_enough_s = min(LONGEST_S, max(seconds, 3 * everyone_s))
        warm_up_s = min(LONGEST_S / 3, max(WARM_UP_S, everyone_s))
        the_load = Load(ServerAddress("127.0.0.1", server.port), requests, case.connections, long_enough_s, warm_up_s)

        def attempts() -> Iterator[tuple[tuple[LoadResult, float, float | None], Noise]]:
            while True:
                server.settle()
                (rows, runs), cpu = asked.batches(name), cpu_seconds(server.pids())
                with listening() as noise:
                    outcome = put_load(the_load)
                cpu = cpu_seconds(server.pids()) - cpu
                rows, runs = (after - start for after, start in zip(asked.batches(name), (rows, runs), strict=True))
                yield (outcome, cpu, rows / runs if runs else None), noise()

        (outcome, cpu, rows_per_run), noise, _ = calmest(attempts(), lambda: True)
        point = Point(
            line=case.line,
            x=case.x,
            what=case.what,
            connections=case.connections,
            body_bytes=sum(map(len, case.bodies)) / len(case.bodies),
            seconds=long_enough_s,
            requests=outcome.requests,
            rate=outcome.rate,
            p50_ms=outcome.p50_ms,
            p99_ms=outcome.p99_ms,
            cpu_ms=cpu / max(1, outcome.answers) * 1e3,
            rows_per_run=rows_per_run,
            errors=outcome.errors,
            noise=noise,
        )
        noisy = "" if point.noise.is_quiet else f", others used {point.noise.total:.2f} cores"
        failed = f", errors: {dict(outcome.errors)}" if outcome.errors else ""
        say(f"{case.line}, {case.what}: {point.rate:.1f}/s, p50 {point.p50_ms:.1f} ms{noisy}{failed}")
        return point

    return measure


# -------------------------------------------------------------------------------------------------------------- report


def by_line(points: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """A section's points by line, each in order of what grows; points where nothing was answered are left out."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in sorted(points, key=lambda point: point["x"]):
        if point["requests"]:
            lines.setdefault(point["line"], []).append(point)
    return lines


def steepest(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The largest exponent of growth between two neighbours: 1 where y doubles when x does; NaN of fewer than two."""
    slopes = [
        math.log(after / before) / math.log(x_after / x_before)
        for (x_before, before), (x_after, after) in zip(
            zip(xs, ys, strict=True), list(zip(xs, ys, strict=True))[1:], strict=False
        )
    ]
    return max(slopes, default=math.nan)


def deepest_fall(rates: Sequence[float]) -> float:
    """How much of the best rate before it the worst later rate keeps: 1 where throughput never falls."""
    best, kept = -math.inf, 1.0
    for rate in rates:
        best = max(best, rate)
        kept = min(kept, rate / best)
    return kept


def table(name: str, section: Mapping[str, Any]) -> str:
    """A section as markdown: its points, the steepest growth, and what it was measured on."""
    points = section["points"]
    grown = any(point["memory_mib"] is not None for point in points)
    extra = ["MiB", "ready s"] if grown else []
    header = [
        "",
        SECTIONS[name].grows,
        "requests/s",
        "p50 ms",
        "p99 ms",
        "rows/run",
        "CPU ms/request",
        *extra,
        "errors",
    ]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    before = None
    for point in points:
        rows.append(
            [
                point["line"] if point["line"] != before else "",
                point["what"],
                figure(point["rate"]),
                figure(point["p50_ms"]),
                figure(point["p99_ms"]),
                figure(point["rows_per_run"]),
                figure(point["cpu_ms"]),
                *([figure(point["memory_mib"]), figure(point["ready_s"])] if grown else []),
                f"{sum(point['errors'].values()):,}",
            ]
        )
        before = point["line"]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    about, settings = section["machine"], section["settings"]
    noisy = sum(Noise(**point["noise"]).is_quiet is False for point in points)
    remark = f"; others used more than 0.15 cores during {noisy} of {len(points)} points" if noisy else ""
    facts = (
        f"{about['cpu']}, {about['cores']} cores; Python {about['python']}, onnxruntime {about['onnxruntime']}; "
        f"at least {settings['seconds']:g} s a point; commit {(about['commit'] or 'unknown')[:12]}, {section['date'][:10]}{remark}."
    )
    return "\n".join([*lines, "", *verdict(name, points), "", facts])


def verdict(name: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The steepest growth of each line, as sentences."""
    sentences = []
    for line, its in by_line(points).items():
        xs, rates = [p["x"] for p in its], [p["rate"] for p in its]
        if len(its) < 2:
            continue
        if SECTIONS[name].is_load:
            sentences.append(
                f"{line}: throughput never falls below {deepest_fall(rates):.0%} of the best before it; from one row to "
                f"the next, p50 grows at most as {SECTIONS[name].grows} to the power of {steepest(xs, [p['p50_ms'] for p in its]):.2f}."
            )
        else:
            power, of_cpu = (
                steepest(xs, costs) for costs in ([1 / rate for rate in rates], [p["cpu_ms"] for p in its])
            )
            sentences.append(
                f"{line}: from one row to the next, the cost of a request (1 / throughput) grows at most as "
                f"{SECTIONS[name].grows} to the power of {power:.2f}, its CPU time of {of_cpu:.2f}."
            )
    return [f"- {sentence}" for sentence in sentences]


def figure(value: float | None) -> str:
    """Three significant digits; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def fill(document: str, name: str, content: str) -> str:
    """The document with what stands between a section's two marks replaced.

    Raises:
        LookupError: the marks are not there.
    """
    begin, end = f"<!-- growth:{name} -->", f"<!-- /growth:{name} -->"
    if not re.search(f"{begin}.*{end}", document, re.DOTALL):
        raise LookupError(f"there are no marks {begin} … {end}")
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


# --------------------------------------------------------------------------------------------------------------- plots

COLOURS = ("#3a86d6", "#d9730d", "#2e9e6b", "#a06bd6")


def plot(name: str, section: Mapping[str, Any], file: Path) -> None:
    """Throughput, latency and, where they were measured, memory and start, log-log, as SVG on a transparent ground."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    about = SECTIONS[name]
    lines = by_line(section["points"])
    grown = any(point["memory_mib"] is not None for point in section["points"])
    with plots.drawing("growth") as plt:
        figure_, panels = plt.subplots(1, 3 if grown else 2, figsize=(13.5 if grown else 9.5, 4), layout="constrained")
        rates, latencies = panels[0], panels[1]

        def draw(
            panel: Any, points: Sequence[Mapping[str, Any]], key: str, colour: str, label: str, style: str
        ) -> None:
            xs, ys = [point["x"] for point in points], [point[key] for point in points]
            panel.plot(xs, ys, style, color=colour, label=label, markersize=4, linewidth=1.3)

        def reference(
            panel: Any, points: Sequence[Mapping[str, Any]], key: str, slope: int, least: float = math.inf
        ) -> None:
            """A straight line through the point of the largest x where y is worst, as far as the others reach."""
            end = max(point["x"] for point in points)
            ys = [point[key] for point in points]
            at_end = [point[key] for point in points if point["x"] > end / 2]
            y = max(at_end) if slope > 0 else min(at_end)
            start = max(min(point["x"] for point in points), end * (min(least, *ys) / y if slope > 0 else y / max(ys)))
            if start < end:
                label = f"slope {'−' if slope < 0 else ''}1"
                panel.plot([start, end], [y * (start / end) ** slope, y], "--", color=INK, linewidth=1, label=label)

        for colour, (line, points) in zip(COLOURS, lines.items(), strict=False):
            draw(rates, points, "rate", colour, line, "o-")
            draw(latencies, points, "p50_ms", colour, "_", "o-")
            draw(latencies, points, "p99_ms", colour, "_", "^:")
        everything = [point for points in lines.values() for point in points]
        latencies.plot([], [], "o-", color=INK, markersize=4, linewidth=1.3, label="p50")
        latencies.plot([], [], "^:", color=INK, markersize=4, linewidth=1.3, label="p99")
        reference(latencies, everything, "p50_ms", 1)
        if not about.is_load:
            reference(rates, everything, "rate", -1)
        rates.set_title("throughput, requests/s")
        latencies.set_title("latency, ms")
        if grown:
            points = next(iter(lines.values()))
            draw(panels[2], points, "memory_mib", COLOURS[2], "memory, MiB", "o-")
            draw(panels[2], points, "ready_s", COLOURS[3], "start to ready, s", "o-")
            reference(panels[2], points, "memory_mib", 1, min(point["ready_s"] for point in points))
            panels[2].set_title("memory and start")
        plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        for panel in panels:
            panel.set(xscale="log", yscale="log", xlabel=about.grows)
            for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=12))
                axis.set_major_formatter(plain)
                axis.set_minor_formatter(NullFormatter())
            panel.grid(visible=True, which="major")
            panel.legend(fontsize=8)
        figure_.suptitle(about.title, fontsize=11)
        plots.save(figure_, file)


# ---------------------------------------------------------------------------------------------------------------- main


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; leaves with exit code 2 when it is wrong."""
    parser = options.parser(__doc__)
    option = parser.add_argument
    option("--only", action="append", choices=list(SECTIONS), help="only this section; may be given several times")
    option("--seconds", type=float, default=4.0, help="least time of each point, after the warm-up (default: 4)")
    option("--plot", action="store_true", help="measure nothing: draw and write what was measured before")
    options.add_models(parser)
    option(
        "--json", type=Path, default=RESULTS, metavar="FILE", help="numbers (default: benchmarks/results/growth.json)"
    )
    option("--plots", type=Path, default=PLOTS, metavar="FOLDER", help="plots (default: docs/plots)")
    option("--document", type=Path, default=DOCUMENT, metavar="FILE", help="tables (default: docs/performance.md)")
    settings = parser.parse_args(arguments)
    if not 0.2 <= settings.seconds <= 600:
        parser.error("--seconds must be 0.2 to 600")
    if not options.has_matplotlib():
        parser.error("the plots need matplotlib: python -m pip install matplotlib")
    if not settings.plot and not (settings.models / MODELS["anomaly-detection"]).is_dir():
        parser.error(f"--models: {settings.models} is not the repository of the models measured here")
    settings.models = settings.models.resolve()
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    settings = parse_arguments(arguments)
    options.leave_on_sigterm()
    progress = Console(stderr=True)

    def say(line: str) -> None:
        progress.print(line, style="dim", highlight=False, soft_wrap=True)

    measured: dict[str, Any] = read_results(settings.json)
    failures = 0
    for name in settings.only or SECTIONS:
        if not settings.plot:
            measure = measure_for(settings.seconds, cpu_budget().cores, say)
            section: dict[str, Any] = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine(),
                "settings": {"seconds": settings.seconds},
            }
            try:
                section["points"] = [asdict(point) for point in SECTIONS[name].points(settings.models, measure)]
            except (BenchmarkFailed, ClientFailed) as error:
                print(f"growth.py: {name}: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                return 1
            measured[name] = section
            write_results(settings.json, measured)
            failures += sum(sum(point["errors"].values()) + (not point["requests"]) for point in section["points"])
        if name not in measured:
            say(f"{name}: not measured yet")
            continue
        plot(name, measured[name], settings.plots / f"{name}.svg")
        content = table(name, measured[name])
        print(f"\n## {SECTIONS[name].title}\n\n{content}")
        try:
            text_now = settings.document.read_text(encoding="utf-8")
            settings.document.write_text(fill(text_now, name, content), encoding="utf-8")
        except (OSError, LookupError) as error:
            say(f"{name}: the table was not written to {settings.document}: {error}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
