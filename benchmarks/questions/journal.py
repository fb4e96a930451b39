"""The cost of a journal, for each recorded job and for each job that a later run skips."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from asyncpool import Journal, WorkerPool
from benchmarks.harness import Budget, Case, Figures, Question, Settings
from benchmarks.memory import most_resident, resident
from benchmarks.work import Reader, do_nothing

__all__ = ["JOURNAL", "RESUME"]

_BARE = "pool.outcomes"
_KINDS: dict[str, dict[str, Any]] = {
    "journal": {},
    "journal, durable=False": {"durable": False},
    "journal, values=True": {"values": True},
}
_LIMITS = {20: 35.0, 200: 15.0}


def _cases(settings: Settings) -> Sequence[Case]:
    jobs = settings.count(50_000)
    return [
        Case(
            name=f"no-op, {workers} workers, {jobs:,} jobs",
            contenders=dict.fromkeys((_BARE, *_KINDS), 5),
            parameters={"workers": workers, "jobs": jobs},
            budgets={"journal": Budget(limit=limit, of="µs/job")},
        )
        for workers, limit in _LIMITS.items()
    ]


async def _measure(contender: str, *, workers: int, jobs: int) -> Figures:
    reader = Reader()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batch.db")
        began = time.perf_counter()
        async with WorkerPool(do_nothing, workers=workers) as pool:
            if contender == _BARE:
                stream = pool.outcomes(range(jobs))
            else:
                stream = Journal(path, key=int, **_KINDS[contender]).outcomes(pool, range(jobs))
            async for outcome in stream:
                reader(outcome.unwrap())
        seconds = time.perf_counter() - began
        size = _size_of(path)
    reader.check(jobs)
    return {"µs/job": seconds / jobs * 1e6, "bytes/job": size / jobs}


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


JOURNAL = Question(
    name="journal",
    asks="What does a journal cost per job?",
    title="Journal",
    cases=_cases,
    measure=_measure,
    are_rivals=False,
    method="Jobs do nothing and have ints as keys. Each outcome is read after it is on disk (`durable=False`: after "
    "it is passed to the operating system). The sync time of the disk dominates; real jobs wait anyway, which hides "
    "most of it.",
)


# -- Resuming ----------------------------------------------------------------------------------------------------------


def _as_int(number: int) -> int:
    return number


def _as_text(number: int) -> str:
    return f"user-{number:09d}@example.com"


async def _source(jobs: int) -> AsyncIterator[int]:
    for number in range(jobs):
        yield number


_KEYS = {"int keys": _as_int, "text keys": _as_text, "int keys, async source": _as_int}


def _resume_cases(settings: Settings) -> Sequence[Case]:
    jobs = settings.count(1_000_000)
    return [
        Case(
            name=f"{jobs:,} finished jobs",
            contenders=dict.fromkeys(_KEYS, 2),
            parameters={"jobs": jobs},
            seconds=900.0,
        )
    ]


async def _measure_resume(contender: str, *, jobs: int) -> Figures:
    key = _KEYS[contender]
    with tempfile.TemporaryDirectory() as folder:
        journal: Journal[int] = Journal(os.path.join(folder, "batch.db"), key=key, durable=False)
        async with WorkerPool(do_nothing, workers=20) as pool:
            await journal.outcomes(pool, [0])
            _fill(journal.path, (key(number) for number in range(1, jobs)))
            size, before = _size_of(Path(journal.path)), resident()
            began = time.perf_counter()
            left = await journal.outcomes(pool, _source(jobs) if "async" in contender else range(jobs))
            seconds = time.perf_counter() - began
            peak = max(resident(), most_resident())
    assert left == []
    assert journal.skipped == jobs
    return {"µs/job": seconds / jobs * 1e6, "MiB": (peak - before) / 2**20, "bytes/job": size / jobs}


def _fill(path: str, keys: Iterator[object]) -> None:
    with closing(sqlite3.connect(path)) as base, base:
        base.executemany("insert into done values (?)", ((key,) for key in keys))


RESUME = Question(
    name="resume",
    asks="How fast does a journal skip finished jobs?",
    title="Resuming with a journal",
    cases=_resume_cases,
    measure=_measure_resume,
    are_rivals=False,
    method="All jobs of the run are finished, so each key is only looked up in the file. MiB is the growth of the "
    "process. Use `--jobs 10000000` for ten million.",
)
