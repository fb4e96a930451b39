"""The file in real processes: killed, side by side, forked, one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyncpool import DeadLetterFile, WorkerPool
from asyncpool.testing import run
from tests.dead_letters.tools import ROOT, FakePool, jobs, python, read

RECORDING = """
import sys
from asyncpool import DeadLetter, DeadLetterFile

file = DeadLetterFile(sys.argv[1])
name, size, most = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for n in range(most):
    job = [name, n, "x" * size]
    file.record(DeadLetter(job=job, error_type="E", error="no", attempts=1, first_at=0, last_at=0))
    print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_kill_9_loses_no_letter_that_was_recorded(path: Path, size: int) -> None:
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", RECORDING, str(path), f"life{life}", str(size), "1000000"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as said:
            for _ in range(5):
                recorded = int(said.readline())
            process.send_signal(signal.SIGKILL)
            process.wait()
            recorded = max([recorded, *(int(line) for line in said if line.endswith("\n"))])
        file = read(path)
        numbers = [n for name, n, _ in jobs(file) if name == f"life{life}"]
        assert numbers[: recorded + 1] == list(range(recorded + 1))
        assert len(numbers) <= recorded + 2
        assert file.skipped <= life + 1
        path.write_bytes(path.read_bytes()[:-3])  # as if it had been torn, in case it was not
        assert len(list(read(path))) >= len(list(file)) - 1


def test_two_processes_may_record_at_once(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RECORDING, str(path), name, "20", "1000"], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for name in ("a", "b")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    file = read(path)
    assert sorted((name, n) for name, n, _ in jobs(file)) == [(name, n) for name in ("a", "b") for n in range(1000)]
    assert file.skipped == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_letters_recorded_before_and_after_a_fork_are_letters_of_their_own(path: Path) -> None:
    code = """
import os, sys
from asyncpool import DeadLetter, DeadLetterFile

file = DeadLetterFile(sys.argv[1])
child = os.fork()
file.record(DeadLetter(job=bool(child), error_type="E", error="no", attempts=1, first_at=0, last_at=0))
if child:
    os.waitpid(child, 0)
"""
    python(code, path)
    pool = FakePool()
    assert run(lambda: read(path).replay(pool, where=lambda letter: letter.job is True)) == 1
    assert jobs(read(path)) == [False]


def test_the_next_process_replays_what_failed_in_a_pool_of_the_last(path: Path) -> None:
    code = """
import asyncio, sys
from asyncpool import DeadLetterFile, WorkerPool

async def fails(job):
    raise OSError(job)

async def main():
    async with WorkerPool(fails, workers=3, dead_letters=DeadLetterFile(sys.argv[1])) as pool:
        await pool.outcomes(range(10))

asyncio.run(main())
"""
    python(code, path)

    async def main() -> list[int]:
        done = []

        async def handler(job: int) -> None:
            done.append(job)

        async with WorkerPool(handler, workers=2, dead_letters=(file := DeadLetterFile[int](path))) as pool:
            assert await file.replay(pool) == 10
        return done

    assert sorted(run(main)) == list(range(10))
    assert jobs(read(path)) == []
