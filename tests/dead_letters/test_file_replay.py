"""How letters leave a file: marks of what was replayed, and compacting."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from asyncpool import DeadLetterFile
from asyncpool.dead_letters.store import BATCH
from asyncpool.testing import run
from tests.dead_letters.tools import FakePool, fill, jobs, python, read, until
from tests.helpers import virtual


def test_what_was_replayed_is_gone_tomorrow(path: Path) -> None:
    fill(DeadLetterFile[Any](path), range(5))
    pool = FakePool()
    assert run(lambda: read(path).replay(pool, where=lambda letter: letter.job != 2)) == 4
    assert jobs(read(path)) == [2]
    assert run(lambda: read(path).replay(pool)) == 1
    assert pool.accepted == [0, 1, 3, 4, 2]
    assert jobs(read(path)) == []


def test_marks_mean_the_same_letters_when_lines_were_deleted_by_hand_or_files_joined(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(4))
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 2))
    lines = path.read_bytes().splitlines(keepends=True)
    other = path.with_suffix(".other")
    fill(DeadLetterFile[Any](other), [10])
    path.write_bytes(b"".join(lines[1:]) + other.read_bytes() + lines[0])
    assert jobs(read(path)) == [1, 3, 10, 0]


def test_a_job_that_speaks_of_being_replayed_is_a_job(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), [{"replayed": "a.1"}, '"replayed"'])
    assert jobs(file) == [{"replayed": "a.1"}, '"replayed"']


def test_compacting_keeps_what_is_there_and_the_permissions(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(5))
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job % 2 == 0))
    path.chmod(0o640)
    before = path.stat().st_size
    file.compact()
    assert path.stat().st_size < before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == [path.name]
    assert jobs(file) == jobs(read(path)) == [1, 3]
    file.compact()
    assert jobs(file) == [1, 3]
    fill(file, [9])
    assert run(lambda: file.replay(FakePool())) == 3


def test_compacting_a_link_keeps_the_link(path: Path) -> None:
    fill(DeadLetterFile[Any](path), [1, 2])
    link = path.with_suffix(".link")
    link.symlink_to(path)
    file = DeadLetterFile[Any](link)
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 1))
    file.compact()
    assert link.is_symlink()
    assert jobs(read(path)) == [2]


@pytest.mark.parametrize("at", ["replace", "fsync"])
def test_a_compacting_that_fails_leaves_the_file_as_it_was(
    path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fill(DeadLetterFile[Any](path), [1, 2])
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 1))
    before = path.read_bytes()

    def refuse(*args: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, at, refuse)
    with pytest.raises(OSError, match="no"):
        file.compact()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    assert jobs(file) == [2]


@virtual
async def test_letters_recorded_while_a_thread_compacts_are_kept(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(2000))
    compacting = asyncio.create_task(asyncio.to_thread(file.compact))
    recorded = 2000
    while not compacting.done():
        await asyncio.to_thread(fill, file, [recorded])
        recorded += 1
    await compacting
    assert jobs(file) == list(range(recorded))


@virtual
async def test_a_replay_goes_on_while_the_file_is_compacted(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(2 * BATCH))
    pool = FakePool(room=5)
    task = asyncio.create_task(file.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    await asyncio.to_thread(file.compact)
    assert jobs(file) == list(range(5, 2 * BATCH))
    pool.open()
    assert await task == 2 * BATCH
    assert pool.accepted == list(range(2 * BATCH))
    assert jobs(read(path)) == []


@virtual
async def test_a_mark_that_cannot_be_written_raises_and_its_job_is_not_submitted_again_by_this_program(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fill(DeadLetterFile[Any](path), [1, 2])
    pool = FakePool()

    def refuse(line: bytes) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(file, "_append", refuse)
        with pytest.raises(OSError, match="no"):
            await file.replay(pool)
    assert jobs(file) == [1, 2]
    assert await file.replay(pool) == 1
    assert pool.accepted == [1, 2]


@virtual
async def test_replay_reads_a_little_at_a_time_and_in_a_thread(path: Path) -> None:
    decoded: list[int] = []

    def decode(value: str) -> int:
        assert threading.current_thread() is not threading.main_thread()
        decoded.append(int(value[:10]))
        return decoded[-1]

    file = fill(DeadLetterFile[int](path, encode=lambda job: f"{job:010}" + "x" * 300_000, decode=decode), range(20))
    pool = FakePool(room=1)
    task = asyncio.create_task(file.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    assert len(decoded) <= 4
    pool.open()
    assert await task == 20
    assert file.skipped == 0


@virtual
async def test_a_replay_cancelled_while_its_thread_reads_ends_and_submits_nothing(path: Path) -> None:
    is_reading, may_go_on = threading.Event(), threading.Event()

    def decode(value: Any) -> Any:
        is_reading.set()
        may_go_on.wait(10)
        return value

    fill(DeadLetterFile[Any](path), range(3))
    pool = FakePool()
    task = asyncio.create_task(DeadLetterFile[Any](path, decode=decode).replay(pool))
    while not is_reading.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    may_go_on.set()
    assert await read(path).replay(pool) == 3
    assert pool.accepted == [0, 1, 2]


@pytest.mark.slow
def test_memory_is_flat_when_many_letters_are_replayed(path: Path) -> None:
    code = """
import asyncio, resource, sys
from asyncpool import DeadLetterFile, DeadLetter

class Pool:
    async def submit(self, job): pass

async def main():
    file = DeadLetterFile(sys.argv[1])
    one = dict(error_type="E", error="x" * 200, attempts=1, first_at=0.0, last_at=0.0)
    for n in range(2000):
        file.record(DeadLetter(job=n, **one))
    await file.replay(Pool())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(50_000):
        file.record(DeadLetter(job=n, **one))
    assert await file.replay(Pool()) == 50_000
    assert len(file) == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""
    grown = int(python(code, path))
    assert grown < 3000  # kilobytes; the file has 20,000
