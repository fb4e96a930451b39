"""The jobs, and who does them: the pool, and what one writes without it. Each returns how many jobs it has done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from asyncpool import WorkerPool

__all__ = ["do_nothing", "gather", "outcomes", "queue_workers", "yield_once"]


async def do_nothing(job: int) -> int:
    """The least that a job can do: what is measured is what surrounds it."""
    return job


async def yield_once(job: int) -> int:
    """A job that gives the loop its turn, as everything does that waits for something."""
    await asyncio.sleep(0)
    return job


async def outcomes(handler: Callable[[Any], Awaitable[Any]], jobs: Iterable[Any], workers: int) -> int:
    """Let a pool do the jobs, and read what became of each."""
    done = 0
    async with WorkerPool(handler, workers=workers) as pool:
        async for _ in pool.outcomes(jobs):
            done += 1
    return done


async def gather(handler: Callable[[Any], Awaitable[Any]], jobs: Iterable[Any]) -> int:
    """A task for each job, all at once: no limit, and everything in memory."""
    return len(await asyncio.gather(*[handler(job) for job in jobs]))


async def queue_workers(handler: Callable[[Any], Awaitable[Any]], jobs: Iterable[Any], workers: int) -> int:
    """The loop that everybody writes by hand: a bounded queue, and tasks that take from it. One failure ends it all."""
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=10 * workers)
    values: list[Any] = []

    async def work() -> None:
        while True:
            job = await queue.get()
            values.append(await handler(job))
            queue.task_done()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(workers)]
        for job in jobs:
            await queue.put(job)
        await queue.join()
        for task in tasks:
            task.cancel()
    return len(values)
