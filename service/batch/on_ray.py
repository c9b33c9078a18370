"""Rows answered on a Ray cluster, by Ray Data: for inputs that one machine would take days for.

What is read, and what a row means, is as for `service.batch.rows`; blocks go to processes on all nodes, each of which
has loaded the model, and OUT is a folder of Parquet files, written where they were made. Rows come in no order, so each
is written with its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from service.batch.answering import answer_block, open_model
from service.batch.rows import BLOCK_ROWS, FILE, InputUnusable, files_below, line_of, row_of
from service.tasks import AnyTask, discover
from service.tasks.base import MediaInput


class Answering:
    """What a process does with its blocks: the model, loaded once, and the fields that all rows have.

    Args:
        models: the repository, at the same place on every node.
        tasks: folder of more tasks; None where there are none.
        task: what is asked.
        model: `name` or `name@version`; None: the task's default.
        fields: for every row that does not give them itself.
    """

    def __init__(
        self, models: Path, tasks: Path | None, task: str, model: str | None, fields: Mapping[str, Any]
    ) -> None:
        known = discover(tasks)
        self._task, self._fields = known[task], fields
        self._handle = open_model(models, task, model, dict(known))

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[str | None]]:
        """Answer a block.

        Args:
            block: columns `line`, a row's fields as JSON, and `beside`, the folder in which its file lies.

        Returns:
            Columns `input`, `output` (both JSON), `error_type` and `error_detail`.
        """
        lines = list(block["line"])
        rows = [
            row_of(number, line_of(line), Path(beside), self._task)
            for number, (line, beside) in enumerate(zip(lines, block["beside"], strict=True))
        ]
        told = [orjson.loads(answer) for answer in answer_block(self._handle, rows, self._fields)]
        return {
            "input": lines,
            "output": [orjson.dumps(each["output"]).decode() if "output" in each else None for each in told],
            "error_type": [each.get("error", {}).get("type") for each in told],
            "error_detail": [each.get("error", {}).get("detail") for each in told],
        }


def answer_on_ray(
    source: Path, target: Path, task: type[AnyTask], answering: Mapping[str, Any], *, address: str, processes: int
) -> tuple[int, int]:
    """Answer every row of a source into a folder of Parquet files.

    Args:
        source: a .jsonl or .parquet file, a folder of such files, or a folder of files for tasks that take them; every
            node sees it at this place.
        target: folder that is made; every node sees it at this place.
        task: what is asked.
        answering: arguments of `Answering`.
        address: of the cluster, as `ray.init` takes it; `local` starts one here.
        processes: that answer, each on a core of its own; 0: as many as the cluster has cores but one, and never
            more.

    Returns:
        How many rows there were, and how many have an error.

    Raises:
        InputUnusable: Ray is not installed, or the source or target cannot be used.
    """
    try:
        import ray
    except ImportError:
        raise InputUnusable("--ray needs Ray, which is not installed: pip install 'gridloop[ray]'.") from None
    from pyarrow import dataset

    if target.exists():
        raise InputUnusable(f"{target} is there already: name a folder that is to be made.")
    if not ray.is_initialized():
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    cores = int(ray.cluster_resources()["CPU"])
    at_most = max(1, cores - 1)  # Ray's own reading and writing needs a core, or nobody goes on
    answers = _dataset(ray.data, source, task).map_batches(
        Answering,
        fn_constructor_kwargs=dict(answering),
        batch_size=BLOCK_ROWS,
        concurrency=min(processes or at_most, at_most),
        num_cpus=1 if cores > 1 else 0,
    )
    answers.write_parquet(str(target))
    written = dataset.dataset(target)
    return written.count_rows(), written.count_rows(filter=dataset.field("error_type").is_valid())


def _dataset(data: Any, source: Path, task: type[AnyTask]) -> Any:
    """The rows as columns `line` and `beside`, read on the nodes.

    Raises:
        InputUnusable: the source is of no kind that is read.
    """
    inside = list(files_below(source)) if source.is_dir() else [source]
    kinds = {path.suffix.lower() for path in inside}
    if kinds <= {".jsonl", ".ndjson"}:
        beside = str(source if source.is_dir() else source.parent)
        lines = data.read_text([str(path) for path in inside], file_extensions=None)
        return lines.map_batches(lambda batch: _lines(batch["text"], beside))
    if kinds == {".parquet"}:
        beside = str(source if source.is_dir() else source.parent)
        table = data.read_parquet([str(path) for path in inside])
        return table.map_batches(lambda batch: _lines(map(_as_json, batch.to_pylist()), beside), batch_format="pyarrow")
    if source.is_dir() and issubclass(task.Input, MediaInput):
        return data.from_items(
            [{"line": _as_json({FILE: str(path.relative_to(source))}), "beside": str(source)} for path in inside]
        )
    raise InputUnusable(f"{source.name}: on Ray, rows are read from .jsonl or .parquet, or files from a folder.")


def _lines(lines: Iterable[str], beside: str) -> dict[str, list[str]]:
    found = list(lines)
    return {"line": found, "beside": [beside] * len(found)}


def _as_json(row: Mapping[str, Any]) -> str:
    """Fields of a row of Parquet, in which a null is a field that is not given."""
    return orjson.dumps({name: value for name, value in row.items() if value is not None}).decode()
