"""Lines of a file that cannot be read, and jobs that cannot be written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from asyncpool import DeadLetterFile
from asyncpool.testing import run
from tests.dead_letters.tools import FakePool, fill, jobs, letter, read
from tests.helpers import virtual


def test_a_line_torn_at_any_byte_costs_one_letter(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(DeadLetterFile[Any](path), [1])
    start = path.stat().st_size
    fill(DeadLetterFile[Any](path), ["two"])
    whole = path.read_bytes()
    for length in range(start, len(whole) + 1):
        path.write_bytes(whole[:length])
        file = DeadLetterFile[Any](path)
        is_whole = length >= len(whole) - 1  # the newline alone is not missed
        is_torn = not is_whole and length > start
        assert jobs(file) == ([1, "two"] if is_whole else [1])
        fill(file, [3])
        assert jobs(file) == ([1, "two", 3] if is_whole else [1, 3])
        assert file.skipped == is_torn
        assert path.read_bytes().startswith(whole[:length])
    assert f"{path}:2 cannot be read" in caplog.text


ABOUT = b'"error_type": "", "error": "", "attempts": 1, "first_at": 0, "last_at": 0, "pool": ""'


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe",
        b"\0\0\0\0{}",
        b"{\0}\0",
        b"{}",
        b"[]",
        b"3",
        b'{"job": 1}',
        b'{"id": "no-dot", "job": 1}',
        b'{"id": "a.x", "job": 1, %b}' % ABOUT,
        b'{"id": "a.1", %b}' % ABOUT,
        b'{"id": "a.1", "job": 1, %b}' % ABOUT.replace(b"1", b"[]"),
        b"[" * 100_000,
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_a_line_that_cannot_be_read_is_skipped_told_once_and_never_deleted(
    path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = fill(DeadLetterFile[Any](path), [1])
    with path.open("ab") as raw:
        raw.write(line + b"\n\n  \n")
    fill(file, [2])
    for _ in range(3):
        assert jobs(file) == [1, 2]
        assert list(file.unreplayable()) == []
    assert file.skipped == 1
    [told] = [record for record in caplog.records if "cannot be read" in record.message]
    assert f"{path}:2 " in told.message
    assert told.levelno == logging.ERROR
    assert run(lambda: file.replay(FakePool())) == 2
    file.compact()
    assert path.read_bytes() == line + b"\n"
    fill(file, [3])
    assert jobs(file) == [3]
    assert file.skipped == 1


def test_each_unreadable_line_is_counted_once_also_after_compacting(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    for n in range(3):
        fill(file, [n])
        with path.open("ab") as raw:
            raw.write(b"garbage\n")
    assert len(file) == 3
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 0))
    file.compact()
    assert jobs(file) == [1, 2]
    assert file.skipped == 3
    with path.open("ab") as raw:
        raw.write(b"garbage\n")
    assert jobs(file) == [1, 2]
    assert file.skipped == 4


def test_a_file_that_was_replaced_by_another_is_read_afresh(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    path.write_bytes(b"garbage\n" * 3)
    assert jobs(file) == []
    path.rename(path.with_suffix(".old"))
    path.write_bytes(b"garbage\n" * 5)
    assert jobs(file) == []
    assert file.skipped == 8


def test_a_job_that_decode_refuses_is_a_line_that_cannot_be_read(path: Path) -> None:
    def decode(value: Any) -> Any:
        if value == 2:
            raise LookupError("no such order")
        return value

    file = fill(DeadLetterFile[Any](path, decode=decode), [1, 2, 3])
    pool = FakePool()
    assert jobs(file) == [1, 3]
    assert run(lambda: file.replay(pool)) == 2
    assert file.skipped == 1
    file.compact()
    assert jobs(read(path)) == [2]


def refuse(job: Any) -> Any:
    raise LookupError("cannot")


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("job", "options", "text"),
    [
        ({1, 2}, {}, "{1, 2}"),
        (b"bytes", {}, "b'bytes'"),
        (1, {"encode": refuse}, "1"),
        (Unprintable(), {}, "<repr() of this "),
        (10**5000, {}, "<repr() of this int raised ValueError>"),
    ],
    ids=["set", "bytes", "refused", "unprintable", "long"],
)
def test_a_job_that_cannot_be_written_is_kept_as_text(
    path: Path, job: Any, options: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = fill(DeadLetterFile[Any](path, **options), [job])
    DeadLetterFile[Any](path).record(letter("fine"))
    assert jobs(file) == ["fine"]
    assert len(file) == 1
    [kept] = read(path).unreplayable()
    assert kept.job.startswith(text)
    assert kept.error == "no"
    assert "cannot be replayed (occurrence 1)" in caplog.text
    assert file.skipped == 0


def test_jobs_that_cannot_be_written_are_not_logged_without_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(DeadLetterFile[Any](path), [{n} for n in range(10)])
    assert sum("cannot be replayed" in record.message for record in caplog.records) == 4


@virtual
async def test_replay_passes_over_a_job_kept_as_text_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = fill(DeadLetterFile[Any](path), [1, {2}, 3])
    pool = FakePool()
    assert await file.replay(pool) == 2
    assert pool.accepted == [1, 3]
    assert f"1 in {path} cannot be replayed, because the job could not be written" in caplog.text
    file.compact()
    assert [kept.job for kept in file.unreplayable()] == ["{2}"]
