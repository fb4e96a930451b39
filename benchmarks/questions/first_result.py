"""The time until the reader has the first result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import Budget, Case, Figures, Question, Settings
from benchmarks.rivals import REFERENCE, RIVALS
from benchmarks.work import Reader, missing

__all__ = ["FIRST_RESULT"]

_WORKERS = 100
_SECONDS = 0.010


def _cases(settings: Settings) -> Sequence[Case]:
    jobs = settings.count(10_000)
    core = {REFERENCE: 3, "pool.outcomes": 3, "pool.map": 3}
    return [
        Case(
            name=f"{jobs:,} jobs of {_SECONDS * 1e3:.0f} ms, {_WORKERS} workers",
            contenders=core | {name: 1 for name in RIVALS if name not in core},
            parameters={"jobs": jobs},
            # The first job takes one duration itself, which leaves one for all overhead.
            budgets=dict.fromkeys(("pool.outcomes", "pool.map"), Budget(limit=2.0, of="job durations")),
        )
    ]


async def _measure(contender: str, *, jobs: int) -> Figures:
    reader, first = Reader(), 0.0

    def seen(value: Any) -> None:
        nonlocal first
        first = first or time.perf_counter()
        reader(value)

    async def wait(job: int) -> int:
        await asyncio.sleep(_SECONDS)
        return job

    await RIVALS[contender].run(wait, range(_WORKERS), _WORKERS, Reader())  # a warm-up
    began = time.perf_counter()
    await RIVALS[contender].run(wait, (job for job in range(jobs)), _WORKERS, seen)
    ended = time.perf_counter()
    reader.check(jobs)
    return {"job durations": (first - began) / _SECONDS, "s total": ended - began}


FIRST_RESULT = Question(
    name="first-result",
    asks="How long does the reader wait for the first result?",
    title="Time to the first result",
    cases=_cases,
    measure=_measure,
    missing=missing,
    method="The unit is the duration of one job, so 1 is the minimum. Plain `gather` starts all jobs at once, and has "
    "its first result when all are done.",
)
