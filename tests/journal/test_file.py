"""The file of a journal: who may use it, and what is said of one that cannot be used."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncpool import Failed, JournalCounts, JournalError
from asyncpool.journal.entries import Entry, FailedJob, Key
from asyncpool.journal.file import JournalFile
from tests.helpers import virtual
from tests.journal.tools import echo_pool, make_journal, recorded_in

JOBS = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with some jobs that are done."""
    file = JournalFile(str(tmp_path / "batch.db"), "1", durable=False)
    file.open()
    file.record([Entry(n) for n in range(JOBS)])
    file.close()
    return tmp_path / "batch.db"


async def run_all(path: Path, jobs: int = JOBS, **options: Any) -> list[Any]:
    journal = make_journal(path.parent, path.name, **{"version": "1", **options})
    async with echo_pool() as pool:
        return await journal.outcomes(pool, range(jobs))


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(JournalError) as caught:
        asyncio.run(run_all(path, **options))
    return str(caught.value)


def test_a_python_without_sqlite_is_said_so(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["sqlite3"] = None
import asyncpool
journal = asyncpool.Journal("batch.db", key=int)
for call in (journal.count, journal.failed, lambda: journal.pending([]), lambda: journal.recorded(print)):
    try:
        call()
    except asyncpool.JournalError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stderr == ""
    assert len(ran.stdout.splitlines()) == 4
    assert ran.stdout.startswith("a journal needs sqlite3, which this build of Python does not have: ")


def test_another_version_is_refused(path: Path) -> None:
    assert error_of(path, version="2") == (
        f"the journal {path} has the version '1', but this run has '2': use another file, or the version of the "
        "file if its completed jobs need not run again"
    )
    assert asyncio.run(run_all(path)) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "batch.db"
    assert error_of(path) == f"the folder of the journal does not exist, create it first: {path.parent}"
    assert make_journal(path.parent).count() == (0, 0)


def test_a_folder_is_not_a_journal(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"the path of a journal must be a file, but {tmp_path} is a folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write everything")
def test_a_file_that_cannot_be_written_is_said_so(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        assert "cannot be opened" in error_of(path)
    finally:
        path.parent.chmod(0o700)


def test_a_text_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a text file\n" * 1000)
    assert error_of(path) == f"{path} is not a journal, and not an SQLite database: use another path"
    assert path.read_text() == "a text file\n" * 1000
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(JournalError, match="is not a journal"):
        make_journal(tmp_path, path.name).failed()


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    with closing(sqlite3.connect(path)) as base:
        base.execute("create table users (name)")
    before = path.read_bytes()
    assert error_of(path) == f"{path} is a database of another program, not a journal: use another path"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_journal_of_a_later_release_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as base:
        base.execute("pragma user_version = 7")
    assert error_of(path) == (
        f"the journal {path} was written by another release of asyncpool (format 7): use that release, or another file"
    )


def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "batch.db"
    path.touch()
    assert make_journal(tmp_path).count() == JournalCounts(0, 0)
    assert len(asyncio.run(run_all(path, 5))) == 5


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _with_garbage(data: bytes) -> bytes:
    # The whole of the table that is read, so that it is certainly found.
    return data[:8192] + bytes(range(256)) * ((len(data) - 8192) // 256)


def _without_its_head(data: bytes) -> bytes:
    return b"\0" * 100 + data[100:]


@pytest.mark.parametrize("change", [_cut, _with_garbage, _without_its_head])
def test_a_damaged_file_is_said_to_be_damaged(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.write_bytes(change(data))
    text = error_of(path)
    assert "is damaged" in text or "is not a journal" in text
    path.write_bytes(data)
    for extra in ("-wal", "-shm"):
        Path(f"{path}{extra}").unlink(missing_ok=True)
    assert asyncio.run(run_all(path)) == []


def test_names_with_characters_of_uris_are_names(tmp_path: Path) -> None:
    path = tmp_path / "a?b=c%20#d ü.db"
    asyncio.run(run_all(path, 5))
    assert path.exists()
    assert make_journal(tmp_path, path.name).count() == (5, 0)


# -- Two at a time ---------------------------------------------------------------------------------------------------


@virtual
async def test_a_second_run_of_this_process_is_refused(tmp_path: Path) -> None:
    async with echo_pool() as pool:
        first = make_journal(tmp_path).outcomes(pool, range(1000))
        async with first:
            front = aiter(first)
            await anext(front)
            with pytest.raises(JournalError, match=rf"is in use by another run \(process {os.getpid()}\)"):
                await make_journal(tmp_path).outcomes(pool, range(10))
            assert (await asyncio.to_thread(make_journal(tmp_path).count)).done > 0  # which others can read
        assert len(await make_journal(tmp_path).outcomes(pool, range(1000))) < 1000


OTHER = """
import asyncio, sys
from asyncpool import Journal, JournalError, WorkerPool

async def main():
    async with WorkerPool(asyncio.sleep, workers=1) as pool:
        await Journal(sys.argv[1], key=int).outcomes(pool, [0])

try:
    asyncio.run(main())
except JournalError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_second_run_of_another_process_is_refused(path: Path) -> None:
    file = JournalFile(str(path), "1", durable=False)
    file.open()
    try:
        said = subprocess.run(
            [sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        file.close()
    assert said.stdout == (
        f"the journal {path} is in use by another run (process {os.getpid()}): wait until it has ended\n"
    )
    assert said.stderr == ""


@virtual
async def test_a_journal_that_just_closes_is_waited_for(tmp_path: Path) -> None:
    async with echo_pool() as pool:
        for n in range(5):
            stream = make_journal(tmp_path).outcomes(pool, range(100 * n, 1000))
            await anext(aiter(stream))  # and leave it: nobody waits for its end
            del stream
            await make_journal(tmp_path).outcomes(pool, range(100 * n))


def test_one_journal_serves_one_event_loop_after_the_other(tmp_path: Path) -> None:
    journal, before = make_journal(tmp_path), set(threading.enumerate())

    async def main(jobs: int) -> int:
        async with echo_pool() as pool:
            return len(await journal.outcomes(pool, range(jobs)))

    assert [asyncio.run(main(jobs)) for jobs in (10, 20, 20)] == [10, 10, 0]
    for thread in set(threading.enumerate()) - before:  # none of which stays
        thread.join(30.0)
        assert not thread.is_alive()


def test_a_journal_whose_event_loop_was_closed_in_between_is_opened_again(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        async for job in journal.pending(range(100)):
            return job

    loop.run_until_complete(begin())
    stream = journal.pending(range(100))
    loop.run_until_complete(anext(stream))
    loop.close()  # with the journal open

    async def main() -> int:
        async with echo_pool() as pool:
            return len(await journal.outcomes(pool, range(10)))

    assert asyncio.run(main()) == 10


def test_a_journal_on_two_event_loops_at_a_time_is_refused(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)

    async def other() -> str:
        async with echo_pool() as pool:
            with pytest.raises(JournalError) as caught:
                await journal.outcomes(pool, range(10))
            return str(caught.value)

    async def main() -> None:
        async with echo_pool() as pool, journal.outcomes(pool, range(1000)) as stream:
            front = aiter(stream)
            await anext(front)
            text = await asyncio.to_thread(asyncio.run, other())
            assert text == (
                f"the journal {journal.path} is in use on another event loop of this program: use it on one at a time"
            )

    asyncio.run(main())


def test_reading_does_not_hinder_a_run_and_sees_what_is_committed(path: Path) -> None:
    file = JournalFile(str(path), "1", durable=False)
    file.open()
    reader = make_journal(path.parent)
    for n in range(5):
        file.record([Entry(f"new {n}")])
        assert reader.count() == (JOBS + n + 1, 0)
    file.close()
    assert len(recorded_in(path)) == JOBS + 5
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["batch.db", "batch.db.lock"]


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 1300])
def test_one_commit_records_any_number_of_jobs(tmp_path: Path, count: int) -> None:
    keys: list[Key] = [n if n % 2 else f"job {n}" for n in range(count)]
    failed = [Entry(key, FailedJob.of(key, Failed(key, OSError("down"), 1, 1, 0.0, 0.0), 0.0)) for key in keys]
    file = JournalFile(str(tmp_path / "batch.db"), "", durable=False)
    file.open()
    file._opened().setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # that of SQLite before 3.32
    try:
        file.record(failed)
        assert file.find(keys[:256], values=False).failed_now == {*keys[:256]}
        file.record([Entry(key, None, repr(key).encode()) for key in keys])
        for begin in range(0, count, 256):
            part = keys[begin : begin + 256]
            found = file.find(part, values=True)
            assert found.done == {key: repr(key).encode() for key in part}
            assert not found.failed_now
        file.record([Entry(key) for key in keys])  # once more is the same
    finally:
        file.close()
    assert make_journal(tmp_path).count() == (count, 0)
