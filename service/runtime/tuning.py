"""How a graph runs best on this machine: measured once when a model is loaded, and remembered.

Three things are worth choosing. *Rows in a run*: recurrent graphs gain a lot from batches, because weights are read
once for all rows; convolutions gain little; and every graph loses again when a batch no longer fits the caches. *Rows
in a turn*: all that is not the graph is best done for many rows at a time, however many runs they make. *Threads of a
lone run*: a run that has the machine to itself may use every core, which halves the latency of large convolutions and
slows small recurrent graphs down.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort
import structlog
from pydantic import ValidationError

from service.cpu import processor_name
from service.graph import Array
from service.runtime.cache import cache_place
from service.runtime.session import OnnxSession
from service.runtime.stop import Stop
from service.schemas.model_info import Tuning

log = structlog.get_logger(__name__)

BUDGET_S = 0.8
"""Time for measuring batch sizes of one graph, but for the round begun last; a quarter more for lone runs (seconds)."""
RUN_COSTS_MS = 0.3
"""What a run costs besides the graph: cutting arrays, and getting the interpreter's lock back (milliseconds)."""
TURN_COSTS_MS = 1.0
"""What a turn costs besides its runs: stacking, splitting, waking up, caches gone cold (milliseconds)."""
NEAR_BEST = 1.01
"""The smallest run, and turn, is taken whose processor time per row is within this factor of the best one's."""
WORTH_A_POOL = 0.8
"""A pool of threads is used when a lone run takes at most this share of its time on one core…"""
POOL_FROM_MS = 0.5
"""…and that is so long: what a pool wins on less is lost in waking it up (milliseconds)."""
_FORMAT = 8


def tune(
    session: OnnxSession,
    row: Mapping[str, Array],
    outputs: tuple[str, ...],
    *,
    most_rows: int,
    cores: int,
    stop: Stop | None = None,
) -> Tuning:
    """Measure a graph and choose.

    Args:
        session: the graph; comes back as it went in.
        row: every input, with one row.
        outputs: names of the outputs to compute.
        most_rows: largest batch to try.
        cores: that a lone run may use; with more than one, the graph is opened a second time.
        stop: ends the measuring.
    """
    end = time.perf_counter() + BUDGET_S
    fixed = session.signature.fixed_batch
    sizes = [fixed] if fixed else [2**n for n in range(most_rows.bit_length())]
    one = {name: array[:1] for name, array in row.items()}
    times: dict[int, list[float]] = {}
    while not times or time.perf_counter() < end:  # in turns: whatever slows the machine down hits all of them
        for size in sizes:
            feeds = {name: np.repeat(array, size, axis=0) for name, array in one.items()}
            if size not in times:
                if times and time.perf_counter() > end - BUDGET_S / 2:
                    break
                session.run(feeds, outputs, stop=stop)  # the first run of a shape costs more
                times[size] = []
            # Not by the wall clock: who else is busy while this is measured must not decide.
            times[size].append(_seconds(time.thread_time, session, feeds, outputs, alone=False, stop=stop))
        sizes = list(times)
    per_row = {size: min(taken) * 1e3 / size for size, taken in times.items()}
    run = _smallest({size: taken + RUN_COSTS_MS / size for size, taken in per_row.items()}, NEAR_BEST)
    turns = [run * n for n in range(1, most_rows // run + 1)] or [run]
    turn = _smallest({size: per_row[run] + TURN_COSTS_MS / size for size in turns}, NEAR_BEST)

    lone: dict[int, float] = {}
    if cores > 1:
        session.lone_threads = cores
        session.open_pool(stop=stop)
        session.run(one, outputs, alone=True, stop=stop)
        end = time.perf_counter() + BUDGET_S / 4
        while not lone or time.perf_counter() < end:
            for threads in (1, cores):
                taken = _seconds(time.perf_counter, session, one, outputs, alone=threads > 1, stop=stop) * 1e3
                lone[threads] = min(taken, lone.get(threads, taken))
        session.close_pool()
        session.lone_threads = 1
    pays = bool(lone) and lone[1] >= POOL_FROM_MS and lone[cores] <= WORTH_A_POOL * lone[1]
    return Tuning(
        max_batch_size=run,
        turn_rows=turn,
        lone_threads=cores if pays else 1,
        source="measured",
        ms_per_row={rows: round(taken, 4) for rows, taken in per_row.items()},
        lone_ms={threads: round(taken, 4) for threads, taken in lone.items()},
    )


def _smallest(costs: Mapping[int, float], near_best: float) -> int:
    return min(size for size, cost in costs.items() if cost <= near_best * min(costs.values()))


def _seconds(
    clock: Callable[[], float],
    session: OnnxSession,
    feeds: Mapping[str, Array],
    outputs: tuple[str, ...],
    *,
    alone: bool,
    stop: Stop | None,
) -> float:
    begun = clock()
    session.run(feeds, outputs, alone=alone, stop=stop)
    return clock() - begun


def remembered(digest: str, most_rows: int, cores: int, measure: Callable[[], Tuning], *, keep: bool = True) -> Tuning:
    """The choice made earlier for this graph on this kind of machine, else a new one, which is then remembered.

    It is kept in the user's cache folder (`XDG_CACHE_HOME`); where that cannot be written, every start measures.

    Args:
        digest: of the graph file.
        most_rows: as for `tune`.
        cores: as for `tune`.
        measure: what to call when nothing is remembered.
        keep: whether a new choice is remembered: one made on a busy machine may be a bad one.
    """
    place = cache_place("tuning", _FORMAT, digest, most_rows, cores, processor_name(), ort.__version__)
    if place is None:
        return measure()
    file = place.with_suffix(".json")
    try:
        return Tuning.model_validate_json(file.read_bytes()).model_copy(update={"source": "remembered"})
    except (OSError, ValidationError):
        pass
    choice = measure()
    if not keep:
        return choice
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(choice.model_dump_json())
        part.replace(file)
    except OSError as error:
        log.debug("the choice is not remembered", reason=error.strerror)
    return choice
