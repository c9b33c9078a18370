"""A file of inputs becomes a file of answers: every row has one, or says why not, and a stop loses nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.batch.answering import answer_block, open_model
from service.batch.rows import InputUnusable, Row, blocks, read_rows
from service.cli import main
from service.tasks import discover
from tests import graphs

STEPS = [1.0, 1.0, 1.0, 5.0]


def run(models: Path, source: Path, target: Path, *options: str) -> Result:
    arguments = ["batch", str(source), str(target), "--models", str(models), "--workers", "1", *options]
    return CliRunner().invoke(main, arguments)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Five rows, of which two cannot be answered."""
    rows = [{"values": STEPS}, {"values": [1, 2]}, "{not JSON", {"valeus": []}, {"values": STEPS[::-1]}]
    return written(tmp_path / "in.jsonl", rows)


# --- reading and answering


def test_each_row_has_its_answer_or_its_error(models: Path, series: Path, tmp_path: Path) -> None:
    done = run(models, series, tmp_path / "out.jsonl", "--task", "anomaly-detection")
    found = lines(tmp_path / "out.jsonl")
    assert [line["row"] for line in found] == [0, 1, 2, 3, 4]
    assert [line.get("error", {}).get("type") for line in found] == [
        None,
        None,
        "/problems/invalid-input",
        "/problems/validation-failed",
        None,
    ]
    assert "no JSON" in found[2]["error"]["detail"]
    assert "valeus" in found[3]["error"]["detail"]
    assert done.exit_code == 1
    assert "5 rows by steps@1, 2 with an error" in done.stderr
    assert not (tmp_path / "out.jsonl.part").exists()


def test_an_answer_is_what_predict_gives(models: Path, series: Path, tmp_path: Path) -> None:
    run(models, series, tmp_path / "out.jsonl", "--model", "steps")
    handle = open_model(models, "anomaly-detection", None, discover())
    alone = handle.predict_now(handle.task.Input(values=STEPS))
    assert lines(tmp_path / "out.jsonl")[0]["output"] == json.loads(alone.to_json())
    handle.close()


def test_a_folder_of_pictures_is_answered_in_the_order_of_their_names(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(graphs.png())
    (folder / "more/b.png").write_bytes(graphs.png((0, 200, 0)))
    (folder / "c.txt").write_text("no picture")
    (folder / ".hidden").write_text("")
    done = run(models, folder, tmp_path / "out.jsonl", "--task", "image-classification", "--set", "top_k=1")
    a, c, b = lines(tmp_path / "out.jsonl")
    assert [line["file"] for line in (a, c, b)] == ["a.png", "c.txt", "b.png"]
    assert len(a["output"]["results"][0]["predictions"]) == 1
    assert "error" in c
    assert done.exit_code == 1


def test_rows_may_name_files_and_have_fields_of_their_own(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(graphs.png())
    rows = [{"file": "a.png", "top_k": 2}, {"file": "a.png"}, {"file": "gone.png"}, {"top_k": 1}]
    source = written(tmp_path / "in.jsonl", rows)
    run(models, source, tmp_path / "out.jsonl", "--task", "image-classification", "--set", "top_k=1")
    found = lines(tmp_path / "out.jsonl")
    assert [len(line["output"]["results"][0]["predictions"]) for line in found[:2]] == [2, 1]
    assert "gone.png cannot be read: No such file" in found[2]["error"]["detail"]
    assert "names no file" in found[3]["error"]["detail"]


def test_a_row_cannot_choose_another_model(models: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"values": STEPS, "model": "other"}])
    run(models, source, tmp_path / "out.jsonl", "--task", "anomaly-detection")
    assert "one model answers all rows" in lines(tmp_path / "out.jsonl")[0]["error"]["detail"]


def test_a_bug_in_a_task_is_the_error_of_its_row(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = open_model(models, "anomaly-detection", None, discover())
    answer = handle.task.steps

    def steps(request: Any) -> Any:
        if len(request.values) == 1:
            raise KeyError("oops")
        return (yield from answer(request))

    monkeypatch.setattr(handle.task, "steps", steps)
    found = [json.loads(line) for line in answer_block(handle, [Row(0, {"values": [1]}), Row(1, {"values": STEPS})])]
    assert found[0]["error"] == {"type": "/problems/internal-error", "detail": "KeyError('oops')."}
    assert "output" in found[1]
    handle.close()


def test_csv_is_read_and_written(models: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('\ufeffvalues,sensitivity\n"[1, 1, 1, 5]",\n"[1, 1]",low\nx,y,z\n', encoding="utf-8")
    run(models, source, tmp_path / "out.csv", "--task", "anomaly-detection")
    with (tmp_path / "out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["row"] for row in found] == ["0", "1", "2"]
    assert json.loads(found[0]["output"])["model"]["name"] == "steps"
    assert found[2]["error_detail"] == "The line has more cells than the first."


def test_text_in_a_cell_is_text_even_if_it_looks_like_a_number(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,top_k\n42,3\n")
    (row,) = read_rows(tmp_path / "in.csv", discover()["next-word-prediction"])
    assert row.fields == {"text": "42", "top_k": 3}


def test_parquet_is_read_and_written(models: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow, 55 MB: pip install 'gridloop[batch]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"values": [STEPS, None, [1.0, 2.0]]})
    parquet.write_table(table, tmp_path / "in.parquet")
    done = run(models, tmp_path / "in.parquet", tmp_path / "out.parquet", "--task", "anomaly-detection", "--json")
    found = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert found["row"] == [0, 1, 2]
    assert [output is None for output in found["output"]] == [False, True, False]
    assert found["error_type"][1] == "/problems/validation-failed"
    assert json.loads(done.stdout) == {"rows": 3, "failed": 1, "kept": 0, "model": "steps@1"}


def test_an_empty_input_has_an_empty_answer(models: Path, tmp_path: Path) -> None:
    done = run(models, written(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl", "--task", "anomaly-detection")
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert done.exit_code == 0


def test_a_block_needs_no_file_and_no_command_line(models: Path) -> None:
    """What distributes blocks maps this."""
    handle = open_model(models, "anomaly-detection", "steps@1", discover())
    rows = [Row(number, {"values": [1, 1, number]}) for number in range(300)]
    found = [json.loads(line) for block in blocks(rows, 128) for line in answer_block(handle, block)]
    assert [line["row"] for line in found] == list(range(300))
    assert all("output" in line for line in found)
    handle.close()


def test_rows_are_batched_with_each_other(models: Path) -> None:
    with (models / "colours/manifest.toml").open("a") as manifest:
        manifest.write("\n[batching]\nmax_batch_size = 16\n")  # what would be measured is another on each machine
    handle = open_model(models, "image-classification", None, discover())
    folder = models / "colours/1/golden"
    answer_block(handle, [Row(number, {}, folder / "pink.png") for number in range(200)])
    totals = handle.statistics.totals(0)
    assert totals.requests == 200
    assert totals.runs < 100
    handle.close()


# --- stopping and going on


def test_a_stopped_run_goes_on_where_it_ended(models: Path, series: Path, tmp_path: Path) -> None:
    """A line that was begun is answered again."""
    target = tmp_path / "out.jsonl"
    run(models, series, target, "--task", "anomaly-detection")
    whole = target.read_bytes()
    part = tmp_path / "out.jsonl.part"
    stopped_part(models, series, target, part, whole, keep=len(whole) * 2 // 3)
    done = run(models, series, target, "--task", "anomaly-detection", "--resume", "--json")
    assert target.read_bytes() == whole
    assert 0 < json.loads(done.stdout)["kept"] < 5
    assert json.loads(done.stdout)["failed"] == 2


def stopped_part(models: Path, source: Path, target: Path, part: Path, whole: bytes, keep: int) -> None:
    """What a run leaves that is killed: the head that it writes, and the answers so far."""
    from service.batch.spool import Spool

    handle = open_model(models, "anomaly-detection", None, discover())
    facts = source.stat()
    of = {
        "input": [str(source), facts.st_size, facts.st_mtime_ns],
        "model": f"{handle.name} {handle.digest}",
        "fields": {},
    }
    spool = Spool(target, of, resume=False)
    spool.close()
    part.write_bytes(part.read_bytes() + whole[:keep])
    handle.close()


def test_what_was_stopped_is_neither_lost_nor_mixed(models: Path, series: Path, tmp_path: Path) -> None:
    part = tmp_path / "out.jsonl.part"
    part.write_text('{"of": {"input": "another"}}\n{"row": 0}\n')
    arguments = (models, series, tmp_path / "out.jsonl", "--task", "anomaly-detection")
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--resume, or remove it" in refused.stderr
    mixed = run(*arguments, "--resume")
    assert mixed.exit_code == 2
    assert "answers to another input, model or options" in mixed.stderr
    assert part.read_text().endswith('{"row": 0}\n')


def test_several_processes_answer_in_order_and_a_kill_can_be_resumed(models: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"values": [1, 1, number % 7]} for number in range(3000)])
    command = [sys.executable, "-m", "service", "batch", str(source), str(tmp_path / "out.jsonl")]
    command += ["--task", "anomaly-detection", "--models", str(models), "--workers", "2", "--json"]
    part = tmp_path / "out.jsonl.part"
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size > 2000):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run([*command, "--resume"], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["rows"] == 3000
    assert [line["row"] for line in lines(tmp_path / "out.jsonl")] == list(range(3000))


# --- wrong usage


@pytest.mark.parametrize(
    ("source", "target", "options", "complaint"),
    [
        ("in.jsonl", "out.jsonl", (), "name what is asked with --task"),
        ("in.jsonl", "out.txt", ("--task", "anomaly-detection"), "answers are written as .jsonl"),
        ("in.jsonl", "out.jsonl", ("--task", "anomaly-detection", "--set", "top_k=1"), "has no field 'top_k'"),
        ("in.jsonl", "out.jsonl", ("--task", "anomaly-detection", "--set", "x"), "write FIELD=VALUE"),
        ("in.jsonl", "out.jsonl", ("--task", "anomaly-detection", "--model", "no"), "no"),
        ("in.txt", "out.jsonl", ("--task", "anomaly-detection"), "rows are read from .jsonl"),
        (".", "out.jsonl", ("--task", "anomaly-detection"), "takes no files"),
    ],
)
def test_wrong_usage_is_said_in_a_sentence(
    models: Path, tmp_path: Path, source: str, target: str, options: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "in.txt").write_text("{}\n")
    done = run(models, tmp_path / source, tmp_path / target, *options)
    assert done.exit_code in (1, 2)
    assert complaint in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / target).exists()


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputUnusable, match=r"pip install 'gridloop\[batch\]'"):
        list(read_rows(tmp_path / "in.parquet", discover()["anomaly-detection"]))
