"""The time to submit one job and receive its value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from asyncpool import WorkerPool
from benchmarks.harness import Case, Figures, Question, Settings
from benchmarks.work import LostResults, do_nothing

__all__ = ["ROUND_TRIP"]

_WORKERS = 100
_WARM_UP = 1_000

Submit: TypeAlias = Callable[[int], Awaitable[int]]


def _cases(settings: Settings) -> Sequence[Case]:
    jobs = settings.count(20_000)
    return [
        Case(
            name=name,
            contenders=dict.fromkeys(_WAYS, 5),
            parameters={"submitters": submitters, "each": max(1, jobs // submitters)},
        )
        for name, submitters in (("one submitter", 1), ("100 submitters", 100))
    ]


@asynccontextmanager
async def _task() -> AsyncIterator[Submit]:
    async def submit(job: int) -> int:
        return await asyncio.create_task(do_nothing(job))

    yield submit


@asynccontextmanager
async def _task_and_semaphore() -> AsyncIterator[Submit]:
    semaphore = asyncio.Semaphore(_WORKERS)

    async def submit(job: int) -> int:
        async with semaphore:
            return await asyncio.create_task(do_nothing(job))

    yield submit


@asynccontextmanager
async def _pool() -> AsyncIterator[Submit]:
    async with WorkerPool(do_nothing, workers=_WORKERS) as pool:
        yield pool.run


_WAYS = {"create_task": _task, "Semaphore + create_task": _task_and_semaphore, "pool.run": _pool}


async def _measure(contender: str, *, submitters: int, each: int) -> Figures:
    async with _WAYS[contender]() as submit:

        async def crowd(size: int) -> int:
            async def one() -> int:
                return sum([await submit(job) for job in range(size)])

            return sum(await asyncio.gather(*[one() for _ in range(submitters)]))

        await crowd(max(1, _WARM_UP // submitters))
        began = time.perf_counter()
        total = await crowd(each)
        seconds = time.perf_counter() - began
    if total != submitters * each * (each - 1) // 2:
        raise LostResults(f"the values of {submitters * each:,} jobs do not add up: {total:,}")
    return {"µs/job": seconds / (submitters * each) * 1e6}


ROUND_TRIP = Question(
    name="round-trip",
    asks="How long does it take to submit one job to a running pool and receive its value?",
    title="Round trip",
    cases=_cases,
    measure=_measure,
    method=f"No-op jobs, {_WORKERS} workers. Each submitter waits for its value before it submits the next job. "
    "Ratios are to a plain task.",
)
