"""A caller that awaits a job is linked to the task of the job, where asyncio has such links (Python 3.14)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import Retry, WorkerPool
from asyncpool._core.attempt_tasks import HAS_CALL_GRAPH
from asyncpool.testing import settle
from tests.helpers import fuzzed, sleeper, virtual

needs_links = pytest.mark.skipif(not HAS_CALL_GRAPH, reason="this Python has no links between tasks")


def waiters(job: Any) -> set[str]:
    """Return the names of the tasks that wait for the task of a job."""
    task = job.task
    return {waiter.get_name() for waiter in (task._asyncio_awaited_by or ())}


@needs_links
@fuzzed
async def test_whoever_awaits_a_queued_or_a_running_job_is_linked_to_it() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        handles = [await pool.submit(1) for _ in range(2)]
        jobs = [handle._completion.job for handle in handles]
        tasks = [
            asyncio.create_task(handle.outcome(), name=f"{number} {side}")  # type: ignore[arg-type]
            for number, handle in enumerate(handles)
            for side in "ab"
        ]
        await asyncio.sleep(0.5)
        assert waiters(jobs[0]) == {"0 a", "0 b"}
        tasks[0].cancel()
        await settle()
        assert waiters(jobs[0]) == {"0 b"}
        await asyncio.sleep(1)
        assert waiters(jobs[1]) == {"1 a", "1 b"}
        await asyncio.wait(tasks)


@needs_links
@virtual
async def test_each_attempt_is_linked() -> None:
    attempts: list[set[str]] = []
    jobs: list[Any] = []

    async def fail(_: int) -> None:
        await asyncio.sleep(1)
        attempts.append(waiters(jobs[0]))
        raise OSError

    async with WorkerPool(fail, workers=1, retry=Retry(attempts=3, on=OSError, backoff=1, max_backoff=10)) as pool:
        handle = await pool.submit(1)
        jobs.append(handle._completion.job)
        await asyncio.create_task(handle.outcome(), name="reader")  # type: ignore[arg-type]
        assert attempts == [{"reader"}] * 3


@needs_links
@virtual
async def test_the_caller_of_run_is_printed_above_its_job() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        caller = asyncio.create_task(pool.run(10), name="request 7")
        await asyncio.sleep(1)
        (job,) = [worker.job for worker in pool._parts.workers.by_number.values() if worker.job]
        assert waiters(job) == {"request 7"}
        await caller
