"""The contenders: the pool, handwritten code, and the other libraries, each in its best form.

The best form runs at most the given number of jobs at a time, reads every value, and continues after a failure if the
library supports it. tests/test_benchmarks.py checks the flags of each rival.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncpool import Succeeded, WorkerPool
from benchmarks.installed import INSTALL_NEXT_GENERATION, installed, next_generation

__all__ = ["BUFFER", "OURS", "REFERENCE", "RIVALS", "Rival", "Run"]

Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
Run: TypeAlias = Callable[[Handler, Iterable[Any], int, Callable[[Any], object]], Coroutine[Any, Any, None]]
"""Runs the jobs with a number of workers, and calls the last argument with each value or error that is read."""

BUFFER = 10
"""How many jobs can wait per worker, if that is configurable: the same as in the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A way to run many jobs, and its properties."""

    run: Run
    distribution: str = ""
    """The distribution to install; empty for the standard library."""
    isolates: bool = False
    """Each job has a task of its own."""
    goes_on: bool = False
    """A failure costs no other job's value, and the reader receives the error."""
    streams: bool = False
    """The first value arrives before the last job has started."""
    bounds: bool = False
    """Neither inputs nor values pile up, so memory is flat."""

    @property
    def about(self) -> str:
        """A one-line description."""
        return (self.run.__doc__ or "").partition("\n")[0]

    @property
    def missing(self) -> str | None:
        """What to install, as a phrase, or None if it is installed."""
        if not self.distribution or installed(self.distribution) is not None:
            return None
        if self.distribution == "asyncio-pool-ng":
            return f"needs {INSTALL_NEXT_GENERATION}"
        return "needs python3 -m pip install 'asyncpool-toolkit[bench]'"


# -- Ours --------------------------------------------------------------------------------------------------------------


async def outcomes(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """asyncpool, in completion order; failures are data."""
    async with WorkerPool(handler, workers=workers) as pool:
        async for outcome in pool.outcomes(jobs):
            seen(outcome.value if type(outcome) is Succeeded else outcome)


async def map_(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """asyncpool, in input order; the first failure is raised."""
    async with WorkerPool(handler, workers=workers) as pool:
        async for value in pool.map(jobs):
            seen(value)


# -- Handwritten code --------------------------------------------------------------------------------------------------


async def gather(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """One task per job, all at once, with no limit and everything in memory."""
    for value in await asyncio.gather(*[handler(job) for job in jobs], return_exceptions=True):
        seen(value)


async def gather_semaphore(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """The most popular recipe: all tasks at once, limited by a semaphore."""
    semaphore = asyncio.Semaphore(workers)

    async def limited(job: Any) -> Any:
        async with semaphore:
            return await handler(job)

    for value in await asyncio.gather(*[limited(job) for job in jobs], return_exceptions=True):
        seen(value)


async def group_semaphore(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """A task group that creates a task when the semaphore is free; stops at a failure."""
    semaphore = asyncio.Semaphore(workers)

    async def release_after(job: Any) -> None:
        try:
            seen(await handler(job))
        finally:
            semaphore.release()

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            await semaphore.acquire()
            group.create_task(release_after(job))


async def as_completed(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """All tasks at once, limited by a semaphore, read as completed."""
    semaphore = asyncio.Semaphore(workers)

    async def limited(job: Any) -> Any:
        async with semaphore:
            return await handler(job)

    for following in asyncio.as_completed([limited(job) for job in jobs]):
        try:
            seen(await following)
        except Exception as error:
            seen(error)


async def queue_workers(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """The usual handwritten loop: worker tasks that read a bounded queue; stops at a failure."""
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=BUFFER * workers)

    async def work() -> None:
        while True:
            job = await queue.get()
            seen(await handler(job))
            queue.task_done()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(workers)]
        for job in jobs:
            await queue.put(job)
        await queue.join()
        for task in tasks:
            task.cancel()


async def shared_iterator(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """The lower bound: worker tasks share one iterator, so jobs cannot be submitted later."""
    source = iter(jobs)

    async def work() -> None:
        for job in source:
            seen(await handler(job))

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())


async def anyio_streams(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """Workers between two memory object streams, as in anyio's documentation."""
    import anyio

    send_job, receive_job = anyio.create_memory_object_stream[Any](BUFFER * workers)
    send_value, receive_value = anyio.create_memory_object_stream[Any](BUFFER * workers)

    async def feed() -> None:
        async with send_job:
            for job in jobs:
                await send_job.send(job)

    async def work(source: Any, target: Any) -> None:
        async with source, target:
            async for job in source:
                await target.send(await handler(job))

    async with anyio.create_task_group() as group:
        group.start_soon(feed)
        for _ in range(workers):
            group.start_soon(work, receive_job.clone(), send_value.clone())
        receive_job.close()
        send_value.close()
        async with receive_value:
            async for value in receive_value:
                seen(value)


# -- Other libraries ---------------------------------------------------------------------------------------------------


async def aqute(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`Aqute.iter_results`, in batches."""
    from aqute import Aqute

    engine: Any = Aqute(handler, workers, input_task_queue_size=BUFFER * workers)
    # Its documentation recommends batches for throughput. A batch must fit into the queue.
    async with engine.iter_results(jobs, submission_batch_size=workers) as results:
        async for task in results:
            seen(task.result if task.success else task.error)


async def aiometer(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`aiometer.amap`, which takes a sequence; stops at a failure."""
    from aiometer import amap

    arguments = jobs if isinstance(jobs, Sequence) else list(jobs)  # it takes nothing else
    async with amap(handler, arguments, max_at_once=workers) as values:
        async for value in values:
            seen(value)


async def aiostream(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`stream.map`, as completed; stops at a failure."""
    from aiostream import stream

    async with stream.map(stream.iterate(jobs), handler, ordered=False, task_limit=workers).stream() as values:
        async for value in values:
            seen(value)


async def streamable(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`stream.map`, as completed."""
    from streamable import stream

    values: AsyncIterator[Any] = aiter(stream(jobs).map(handler, concurrency=workers, as_completed=True))
    while True:
        try:
            async for value in values:
                seen(value)
            return
        except Exception as error:  # it continues after an error when the next value is requested
            seen(error)


async def aiojobs(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`Scheduler.spawn`; it has no stream of values, so each job reports its own."""
    from aiojobs import Scheduler

    async def report(job: Any) -> None:
        seen(await handler(job))

    def report_error(scheduler: object, context: dict[str, Any]) -> None:
        seen(context["exception"])

    # Without a time limit for closing, which would lose longer jobs.
    async with Scheduler(
        limit=workers, pending_limit=BUFFER * workers, wait_timeout=None, exception_handler=report_error
    ) as scheduler:
        for job in jobs:
            await scheduler.spawn(report(job))


async def asyncio_pool(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`AioPool.map`, which returns all values at the end."""
    from asyncio_pool import AioPool

    async with AioPool(size=workers) as pool:
        for value in await pool.map(handler, jobs):
            seen(value)


async def asyncio_pool_ng(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`AsyncioPool.itermap`; creates all futures first and delivers values once per second."""
    async with next_generation().AsyncioPool(workers) as pool:
        async for future in pool.itermap(handler, jobs):
            seen(future.exception() or future.result())


async def tasklane(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`tasklane.stream`; a stray cancellation inside a job ends its worker."""
    from tasklane import stream

    async for value in stream(handler, jobs, limit=workers, return_exceptions=True):
        seen(value)


async def pypeln(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`pypeln.task.map`; a failure is silently lost, or stops it."""
    from pypeln import task

    async def source() -> AsyncIterator[Any]:  # it reads a plain iterable in a thread, which is ten times slower
        for job in jobs:
            yield job

    values: Any = task.map(handler, source(), workers=workers, maxsize=BUFFER * workers)
    async for value in values:
        seen(value)


async def aioitertools(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`aioitertools.asyncio.gather` with its limit."""
    from aioitertools.asyncio import gather

    for value in await gather(*[handler(job) for job in jobs], limit=workers, return_exceptions=True):
        seen(value)


async def antflow(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`AsyncExecutor.submit` for all jobs, and their futures in input order."""
    from antflow import AsyncExecutor

    async with AsyncExecutor(max_workers=workers) as executor:
        for future in [executor.submit(handler, job) for job in jobs]:
            try:
                seen(await future.result())
            except Exception as error:
                seen(error)


REFERENCE = "asyncio.gather"
OURS = ("pool.outcomes", "pool.map")

# fmt: off
RIVALS: dict[str, Rival] = {
    REFERENCE: Rival(run=gather, isolates=True, goes_on=True),
    "pool.outcomes": Rival(run=outcomes, isolates=True, goes_on=True, streams=True, bounds=True),
    "pool.map": Rival(run=map_, isolates=True, streams=True, bounds=True),
    "shared iterator": Rival(run=shared_iterator, streams=True, bounds=True),
    "asyncio.Queue workers": Rival(run=queue_workers, streams=True, bounds=True),
    "gather + Semaphore": Rival(run=gather_semaphore, isolates=True, goes_on=True),
    "TaskGroup + Semaphore": Rival(run=group_semaphore, isolates=True, streams=True, bounds=True),
    "as_completed + Semaphore": Rival(run=as_completed, isolates=True, goes_on=True, streams=True),
    "anyio memory streams": Rival(run=anyio_streams, streams=True, bounds=True),
    "aqute": Rival(run=aqute, distribution="aqute", goes_on=True, streams=True, bounds=True),
    "aiometer": Rival(run=aiometer, distribution="aiometer", isolates=True, streams=True),
    "aiostream": Rival(run=aiostream, distribution="aiostream", isolates=True, streams=True, bounds=True),
    "streamable": Rival(
        run=streamable, distribution="streamable", isolates=True, goes_on=True, streams=True, bounds=True
    ),
    "aiojobs": Rival(run=aiojobs, distribution="aiojobs", isolates=True, goes_on=True, streams=True, bounds=True),
    "asyncio-pool": Rival(run=asyncio_pool, distribution="asyncio-pool", isolates=True, goes_on=True),
    "asyncio-pool-ng": Rival(run=asyncio_pool_ng, distribution="asyncio-pool-ng", isolates=True, goes_on=True),
    "tasklane": Rival(run=tasklane, distribution="tasklane", goes_on=True, streams=True, bounds=True),
    "pypeln": Rival(run=pypeln, distribution="pypeln", isolates=True, streams=True, bounds=True),
    "aioitertools": Rival(run=aioitertools, distribution="aioitertools", isolates=True, goes_on=True),
    "AntFlow": Rival(run=antflow, distribution="AntFlow", goes_on=True, streams=True),
}
# fmt: on
