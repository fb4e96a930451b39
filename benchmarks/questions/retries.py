"""The time and memory of retries when ten or a hundred thousand jobs back off at once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence

from asyncpool import Retry, WorkerPool, current_job
from benchmarks.harness import Budget, Case, Figures, Question, Settings
from benchmarks.memory import resident
from benchmarks.work import LostResults

__all__ = ["RETRIES", "RETRY_MEMORY"]

_WORKERS = 100
_PAUSE = 0.5
_FAILS = "fails permanently"
_RETRIES = "waits and succeeds"
_DELAYED = "pool.submit, handles kept"


async def _fail_once(job: int) -> int:
    if current_job().attempt == 1:
        raise ConnectionError("busy")
    return job


# -- Time --------------------------------------------------------------------------------------------------------------


def _cases(settings: Settings) -> Sequence[Case]:
    return [
        Case(name=f"{jobs:,} jobs, each fails once", contenders={_FAILS: 3, _RETRIES: 3}, parameters={"jobs": jobs})
        for jobs in dict.fromkeys((settings.count(10_000), settings.count(100_000)))
    ]


async def _measure(contender: str, *, jobs: int) -> Figures:
    retry = Retry(backoff=_PAUSE, jitter=False) if contender == _RETRIES else None
    began = time.process_time()
    async with WorkerPool(_fail_once, workers=_WORKERS, queue_size=jobs, retry=retry, max_delayed=jobs) as pool:
        done = 0
        async for _ in pool.outcomes(range(jobs)):
            done += 1
    if done != jobs:
        raise LostResults(f"{jobs:,} jobs went in, {done:,} came out")
    return {"µs of CPU/job": (time.process_time() - began) / jobs * 1e6}


RETRIES = Question(
    name="retries",
    asks="What does a retry cost when all jobs back off at once?",
    title="Retries",
    cases=_cases,
    measure=_measure,
    method=f"The pause is {_PAUSE:g} s. A job that waits and succeeds has two attempts.",
)


# -- Memory ------------------------------------------------------------------------------------------------------------


def _memory_cases(settings: Settings) -> Sequence[Case]:
    jobs = settings.count(100_000)
    return [
        Case(
            name=f"{jobs:,} jobs delayed",
            contenders={_DELAYED: 2},
            parameters={"jobs": jobs},
            budgets={_DELAYED: Budget(limit=2500.0, of="bytes/job")},
        )
    ]


async def _measure_memory(contender: str, *, jobs: int) -> Figures:
    gc.collect()
    before = resident()
    retry = Retry(backoff=600, max_backoff=600, jitter=False)
    async with WorkerPool(_fail_once, workers=_WORKERS, retry=retry, max_delayed=jobs) as pool:
        handles = [await pool.submit(job) for job in range(jobs)]
        while pool.stats.delayed < jobs:  # noqa: ASYNC110  # a pool has no event for that
            await asyncio.sleep(0.01)
        grown = resident() - before
        for handle in handles:
            handle.cancel()
    return {"bytes/job": grown / jobs}


RETRY_MEMORY = Question(
    name="retry-memory",
    asks="How much memory does a job take while it waits for its next attempt?",
    title="Memory of retries",
    cases=_memory_cases,
    measure=_measure_memory,
    method="Growth of the process, including the error and the handle of each job.",
)
