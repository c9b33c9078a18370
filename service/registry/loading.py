"""Loading a version: open its graphs, check its samples, pack its weights, tune its runs, warm it up.

Each step is a function that can be read alone; `load_version` is their order. What a golden sample runs first on each
graph is the row that packing, tuning and warming up work with: values as they really come.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from service.errors import ManifestInvalid
from service.graph import Run, Steps, next_run
from service.registry.golden import FILENAME, GoldenSample, check_golden, golden_request, read_golden
from service.registry.handle import LoadOptions, ModelHandle
from service.registry.manifest import MOST_ROWS, Batching, Manifest, OfVersion
from service.registry.prepared import PreparedGraph
from service.runtime.graphs import Graphs
from service.runtime.packed import forget, packed_copy
from service.runtime.session import OnnxSession
from service.runtime.stop import Stop
from service.runtime.tensors import pad_rows
from service.runtime.tuning import remembered, tune
from service.schemas.model_info import Tuning
from service.tasks import AnyTask
from service.tasks.base import MediaAnswer, ModelFolder, ModelRef, TaskInput, TaskOutput

log = structlog.get_logger(__name__)

PACKED_FROM_BYTES = 8 * 1024 * 1024
"""From this size of a graph's files on, weights are packed into a file that is shared (bytes)."""
MOST_BYTES_TWICE = 64 * 1024 * 1024
"""A larger graph that could not be is not opened a second time for lone runs: its weights would be in memory twice
(bytes)."""


def load_version(
    folder: Path,
    manifest: Manifest,
    task: type[AnyTask],
    options: LoadOptions,
    *,
    stop: Stop | None = None,
    ref: ModelRef | None = None,
) -> ModelHandle:
    """Load one version folder.

    Args:
        folder: `models/<name>/<version>`.
        manifest: of the model.
        task: the task that the manifest names.
        options: the server's share of the decisions.
        stop: ends the loading.
        ref: what the version is called; left out: as its folder, and the one around it.

    Raises:
        ManifestInvalid: anything about the folder that keeps it from being served.
    """
    opened = open_version(folder, manifest, task, stop, ref)
    samples = check_samples(opened)
    rows = sample_rows(opened, samples)
    tunings = {}
    for name, graph in opened.graphs.items():
        row = rows.get(name)
        if row and options.tune and graph.session.size_bytes >= PACKED_FROM_BYTES:
            pack(opened, name, row)
        tunings[name] = choose_tuning(
            graph, manifest.batching, row, options, stop, known=_known_tuning(name, graph, options.like)
        )
        graph.session.lone_threads = tunings[name].lone_threads
        if row:
            warm_up(opened, name, row, tunings[name].max_batch_size)
    # Only now: a server with tight limits still checks its models with whatever samples they bring.
    opened.task.folder = dataclasses.replace(opened.task.folder, limits=options.limits)
    return ModelHandle(
        opened.task.folder.ref,
        opened.task,
        opened.graphs,
        tunings=tunings,
        claims=opened.claims,
        golden_samples=len(samples),
        options=dataclasses.replace(options, like=None),  # which would stay in memory for ever
    )


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """A version whose graphs are open, on its way to being served.

    Attributes:
        folder: of the version.
        claims: what its manifests say of its weights.
        task: the loaded task.
        graphs: the graphs, as the task sees them.
        stop: ends the loading.
    """

    folder: Path
    claims: OfVersion
    task: AnyTask
    graphs: Graphs[PreparedGraph]
    stop: Stop | None

    def place_of(self, filename: str) -> str:
        """Where a file of the version lies below the repository, for messages."""
        return f"{self.folder.parent.name}/{self.folder.name}/{filename}"


def open_version(
    folder: Path, manifest: Manifest, task: type[AnyTask], stop: Stop | None = None, ref: ModelRef | None = None
) -> OpenVersion:
    """Open every graph that the task declares, and have the task read its folder.

    Raises:
        ManifestInvalid: a graph is missing or cannot be run, a manifest is wrong, or the task refuses the folder.
    """
    options_of_task, claims = manifest.options(folder), manifest.of_version(folder)
    sessions = {name: _open_graph(folder, name, task, claims, stop) for name in task.graphs}
    _check_constants(folder, claims, sessions)
    _declare_states(folder, claims, sessions)
    signatures = {name: session.signature.widened() for name, session in sessions.items()}
    loaded = task(
        ModelFolder(
            ref.name if ref else folder.parent.name,
            ref.version if ref else folder.name,
            folder,
            signatures[task.graphs[0]],
            options_of_task,
            state_ranges=claims.state_ranges,
            signatures=signatures,
        )
    )
    graphs = Graphs({name: PreparedGraph(loaded, session) for name, session in sessions.items()})
    return OpenVersion(folder, claims, loaded, graphs, stop)


def _open_graph(folder: Path, name: str, task: type[AnyTask], claims: OfVersion, stop: Stop | None) -> OnnxSession:
    file, others = folder / f"{name}.onnx", [f"{other}.onnx" for other in task.graphs if other != name]
    if others and not os.path.lexists(file):
        raise ManifestInvalid(
            f"{folder.parent.name}/{folder.name}/{file.name}",
            f"is missing; {task.name} needs this graph beside {', '.join(others)}: export it to this place.",
        )
    return OnnxSession(file, claims.constants, stop=stop, some_constants=bool(others))


def _check_constants(folder: Path, claims: OfVersion, sessions: Mapping[str, OnnxSession]) -> None:
    """See that every constant is one of some graph's inputs."""
    known = {name for session in sessions.values() for name in session.constants}
    if unknown := [name for name in claims.constants if name not in known]:
        there = "; ".join(str(spec) for session in sessions.values() for spec in session.signature.inputs.values())
        raise ManifestInvalid(
            f"{folder.parent.name}/{folder.name}",
            f"no graph has an input {unknown[0]!r}, to which [constants] gives a value; they have: {there}.",
        )


def _declare_states(folder: Path, claims: OfVersion, sessions: Mapping[str, OnnxSession]) -> None:
    """Have the graphs' signatures say what `[state]` says of them.

    Raises:
        ManifestInvalid: no graph has such a pair, or the two are of different types or shapes.
    """
    where = f"{folder.parent.name}/{folder.name}"
    for name, following in claims.state.items():
        own = [session for session in sessions.values() if name in session.signature.inputs]
        if not any(following in session.signature.outputs for session in own):
            there = "; ".join(
                str(spec)
                for session in sessions.values()
                for spec in (*session.signature.inputs.values(), *session.signature.outputs.values())
            )
            raise ManifestInvalid(
                where,
                f'[state] {name} = "{following}" should name an input and an output of a graph, which has: {there}.',
            )
        for session in own:
            before, after = session.signature.inputs[name], session.signature.outputs.get(following)
            if after is None:
                continue
            if not before.continued_by(after):
                raise ManifestInvalid(where, f"[state] {before} and {after} should have the same type and axes.")
            declared = {**session.signature.declared_states, name: following}
            session.signature = dataclasses.replace(session.signature, declared_states=declared)


def check_samples(opened: OpenVersion) -> list[GoldenSample]:
    """See that the version gives the expected answers to its golden samples.

    Returns:
        The samples; none where the version brings none.

    Raises:
        ManifestInvalid: a sample cannot be read or run, or its answer is another.
    """
    if not os.path.lexists(opened.folder / FILENAME):
        name, version = opened.folder.parent.name, opened.folder.name
        log.warning("no golden samples: the model is served unchecked and cold", model=name, version=version)
        return []
    where = opened.place_of(FILENAME)
    samples = read_golden(opened.folder, where)
    check_golden(opened.task, opened.graphs, samples, opened.folder, where, stop=opened.stop)
    return samples


def sample_rows(opened: OpenVersion, samples: Sequence[GoldenSample]) -> dict[str, Run]:
    """One row of the first run that golden samples ask of each graph, by the graph's name.

    A graph that takes no batches has none, nor has one that no sample comes to.
    """
    first: dict[str, Run] = {}
    for sample in samples:
        if len(first) < len(opened.graphs):
            _note_first_runs(opened, golden_request(opened.task, sample, opened.folder), first)
    cold = [name for name in opened.graphs if name not in first]
    if first and cold:
        model = opened.task.folder.ref
        log.warning("graphs are served cold: no sample runs them", model=model.name, version=model.version, graphs=cold)
    return {
        name: Run({tensor: array[:1] for tensor, array in run.tensors.items()}, run.outputs, graph=name)
        for name, run in first.items()
        if not run.whole
    }


def _note_first_runs(opened: OpenVersion, request: TaskInput, first: dict[str, Run]) -> None:
    """Drive a request until every graph has been asked for, and note the first run of each."""
    steps: Steps[TaskOutput | MediaAnswer] = opened.task.steps(request)
    outputs = None
    try:
        while True:
            run = next_run(steps, outputs)
            first.setdefault(run.graph or next(iter(opened.graphs)), run)
            if len(first) == len(opened.graphs):
                return
            outputs = opened.graphs[run.graph].run(run.tensors, run.outputs, stop=opened.stop)
    except StopIteration:
        return
    finally:
        steps.close()


def pack(opened: OpenVersion, name: str, row: Run) -> None:
    """Go on with a packed copy of a graph, whose weights all sessions and workers share."""
    graph = opened.graphs[name]
    session = graph.session
    if session.constants:  # the trial repeats rows, which these do not have
        return
    inputs = pad_rows(graph.prepare(row.tensors), graph.signature.fixed_batch or 1)
    copy = packed_copy(opened.folder / f"{name}.onnx", session.digest, inputs)
    if copy:
        try:
            session.check_unchanged()
        except ManifestInvalid:
            forget(copy)  # it may be of what the graph is now
            raise
        session.use_copy(copy, inputs, stop=opened.stop)


def _known_tuning(name: str, graph: PreparedGraph, like: ModelHandle | None) -> Tuning | None:
    """How a graph of another version is run, where the two differ in their weights alone, as far as can be seen.

    Measuring beside traffic would take a second of a core from it, and tell less.
    """
    if (
        like is None
        or name not in like.graphs
        or like.tunings[name].source not in ("measured", "remembered", "inherited")
    ):
        return None
    other = like.graphs[name]
    if other.signature != graph.signature or not 0.9 < graph.session.size_bytes / other.session.size_bytes < 1.1:
        return None
    return like.tunings[name].model_copy(update={"source": "inherited"})


def choose_tuning(
    graph: PreparedGraph,
    batching: Batching,
    row: Run | None,
    options: LoadOptions,
    stop: Stop | None = None,
    *,
    known: Tuning | None = None,
) -> Tuning:
    """Choose how to run a graph; the manifest's word counts most, then what was remembered, then what is known."""
    session = graph.session
    once = session.size_bytes > MOST_BYTES_TWICE and session.copy is None
    cores, most = 1 if once else options.cores, batching.max_batch_size or MOST_ROWS
    choice = Tuning(max_batch_size=most, turn_rows=most, lone_threads=1, source="default")
    if options.tune and row is not None:

        def measure() -> Tuning:
            if known is not None:
                return known
            return tune(session, graph.prepare(row.tensors), row.outputs, most_rows=most, cores=cores, stop=stop)

        choice = remembered(session.digest, most, cores, measure, keep=options.remember)
    if batching.max_batch_size:
        turn_rows = max(batching.max_batch_size, choice.turn_rows)
        choice = choice.model_copy(
            update={"max_batch_size": batching.max_batch_size, "turn_rows": turn_rows, "source": "manifest"}
        )
    if batching.lone_threads:
        choice = choice.model_copy(update={"lone_threads": batching.lone_threads})
    return choice


def warm_up(opened: OpenVersion, name: str, row: Run, max_batch_size: int) -> None:
    """Run the largest batch of a graph once, and see that a row's answer does not depend on its company.

    Raises:
        ManifestInvalid: it does.
    """
    graph = opened.graphs[name]
    rows = graph.signature.fixed_batch or max_batch_size
    alone = graph.run(row.tensors, row.outputs, stop=opened.stop)
    repeated = {tensor: np.repeat(array, rows, axis=0) for tensor, array in row.tensors.items()}
    together = graph.run(repeated, row.outputs, stop=opened.stop)
    of_graph = f" of {name}.onnx" if len(opened.graphs) > 1 else ""
    for output, value in alone.items():
        if value.dtype.kind == "f" and not np.allclose(value[0], together[output][-1], rtol=1e-2, atol=1e-3):
            raise ManifestInvalid(
                opened.place_of(FILENAME),
                f"output {output!r}{of_graph} of one row changes with the batch it is in; set max_batch_size = 1.",
            )
