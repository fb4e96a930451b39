"""What a retry costs, in time and in memory, when ten or a hundred thousand jobs back off at once."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from asyncpool import Retry, WorkerPool, current_job
from benchmarks.harness import ROOT, Answer, Budget, Measurement, Settings, measure
from benchmarks.memory import resident

__all__ = ["retries"]

WORKERS = 100
_PAUSE = 0.5


def retries(settings: Settings) -> Answer:
    """Measure the CPU time of jobs that fail once, against jobs that fail for good; and the memory while they wait."""
    most = settings.jobs or 100_000
    few = max(1, most // 10)
    measurements = measure(
        settings,
        {
            f"pool.outcomes, {few:,} fail": _fails(few, None),
            f"pool.outcomes, {few:,} wait and succeed": _fails(few, Retry(backoff=_PAUSE, jitter=False)),
            f"pool.outcomes, {most:,} wait and succeed": _fails(most, Retry(backoff=_PAUSE, jitter=False)),
        },
        rounds=5,
        case="each fails once",
        unit="us CPU/job",
        scale=1e6,
    )
    measurements.append(_memory(most, settings))
    return Answer(title=f"Retries: jobs that back off {_PAUSE} s, all at once", measurements=measurements)


async def _fail_once(job: int) -> int:
    if current_job().attempt == 1:
        raise ConnectionError("busy")
    return job


def _fails(jobs: int, retry: Retry | None) -> Callable[[], Coroutine[Any, Any, float]]:
    async def run() -> float:
        began = time.process_time()
        async with WorkerPool(_fail_once, workers=WORKERS, queue_size=jobs, retry=retry, max_delayed=jobs) as pool:
            done = 0
            async for _ in pool.outcomes(range(jobs)):
                done += 1
        if done != jobs:
            raise RuntimeError(f"{jobs} jobs went in, {done} came out")
        return (time.process_time() - began) / jobs

    return run


def _memory(jobs: int, settings: Settings) -> Measurement:
    command = [sys.executable, "-m", "benchmarks.retries", str(jobs)]
    values: list[float] = []
    for _ in range(settings.rounds or 3):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        values.append(float(json.loads(done.stdout)))
    return Measurement(
        case=f"{jobs:,} delayed",
        contender="pool.submit, the handles kept",
        unit="bytes/job",
        values=values,
        budget=Budget(limit=2500.0, of="value") if jobs >= 10_000 else None,
    )


async def _grow(jobs: int) -> float:
    """Return by how many bytes the process grows for each job that waits for its next attempt."""
    gc.collect()
    before = resident()
    retry = Retry(backoff=600, max_backoff=600, jitter=False)
    async with WorkerPool(_fail_once, workers=WORKERS, retry=retry, max_delayed=jobs) as pool:
        handles = [await pool.submit(job) for job in range(jobs)]
        while pool.stats.delayed < jobs:  # noqa: ASYNC110  # there is no event for that
            await asyncio.sleep(0.01)
        grown = resident() - before
        for handle in handles:
            handle.cancel()
    return grown / jobs


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_grow(int(sys.argv[1])))))
