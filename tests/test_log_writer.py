"""Log lines never keep anybody waiting: what cannot be written is lost, and counted."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.log_writer import MAX_WAITING_BYTES, LogWriter


class Pipe:
    """A pipe, a writer on it, and how many lines it has lost."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.lost = 0
        self.writer = LogWriter(self.writing, self._count)

    def _count(self, lines: int) -> None:
        self.lost += lines

    def read_to_end(self) -> bytes:
        os.close(self.writing)
        with os.fdopen(self.reading, "rb", closefd=False) as file:
            return file.read()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.reading, made.writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    made.writer.close()


def test_lines_are_written_whole_and_in_order(pipe: Pipe) -> None:
    lines = [f"line {n} {'x' * (n % 300)}\n" for n in range(300)]  # 50 kB: a pipe holds 64
    for line in lines:
        pipe.writer.write(line)
    assert pipe.writer.close(10)
    assert pipe.read_to_end().decode() == "".join(lines)
    assert pipe.lost == 0


def test_several_threads_lose_no_line(pipe: Pipe) -> None:
    threads = [
        threading.Thread(target=lambda k=k: [pipe.writer.write(f"{k} {n}\n") for n in range(100)]) for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pipe.writer.close(10)
    written = pipe.read_to_end().decode().splitlines()
    assert sorted(written) == sorted(f"{k} {n}" for k in range(8) for n in range(100))


def test_a_reader_that_stalls_keeps_nobody_waiting_and_what_does_not_fit_is_counted(pipe: Pipe) -> None:
    line = "x" * 999 + "\n"
    count = 3 * MAX_WAITING_BYTES // 1000
    for _ in range(count):
        pipe.writer.write(line)
    assert pipe.lost > count // 3
    assert not pipe.writer.close(0.05), "the thread is stuck, and the process goes on"
    taken = 0
    while taken < (count - pipe.lost) * 1000:
        taken += len(os.read(pipe.reading, 65536))
    assert taken == (count - pipe.lost) * 1000


def test_a_reader_that_is_gone_costs_lines_only(pipe: Pipe) -> None:
    os.close(pipe.reading)
    for _ in range(10):
        pipe.writer.write("nobody reads this\n")
    assert pipe.writer.close(10)
    assert pipe.lost == 10


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_lines_only() -> None:
    lost: list[int] = []
    with Path("/dev/full").open("wb", buffering=0) as full:
        writer = LogWriter(full.fileno(), lost.append)
        for _ in range(10):
            writer.write("there is no room for this\n")
        assert writer.close(10)
    assert sum(lost) == 10


def test_a_descriptor_that_does_not_block_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    lines = ["y" * 999 + "\n"] * 200  # more than a pipe holds
    for line in lines:
        pipe.writer.write(line)
    taken = b""
    while len(taken) < 200_000:
        taken += os.read(pipe.reading, 65536)
    assert taken.decode() == "".join(lines)
    assert pipe.lost == 0


def test_a_line_that_no_encoding_knows_is_written_all_the_same(pipe: Pipe) -> None:
    pipe.writer.write("caf\udce9\n")
    assert pipe.writer.close(10)
    assert pipe.read_to_end() == b"caf\\udce9\n"


def test_writing_goes_on_after_closing_and_in_a_forked_process(pipe: Pipe) -> None:
    pipe.writer.write("before\n")
    child = os.fork()
    if child == 0:
        pipe.writer.write("child\n")
        pipe.writer.close(10)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    pipe.writer.write("after\n")
    assert pipe.writer.close(10)
    assert pipe.read_to_end() == b"before\nchild\nafter\n"
