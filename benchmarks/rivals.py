"""Who does the jobs: the pool, what one writes without it, and the other libraries, each in its best form.

Best means: bounded to the same number of jobs at a time, every value read, and going on after a failure where the
library has a way to. What a rival says about itself here, a test tries out (tests/test_benchmarks.py).
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
"""Does the jobs, so many at a time, and calls the last argument with each value, or error, when the reader has it."""

BUFFER = 10
"""How many jobs may wait for each worker, where that can be chosen: as many as in our pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A way to do many jobs, and what can be said about it."""

    run: Run
    distribution: str = ""
    """What has to be installed; nothing for the standard library."""
    isolates: bool = False
    """Each job has a task of its own."""
    goes_on: bool = False
    """A failure costs no other job's value, and the reader is told of it."""
    streams: bool = False
    """The first value is there before the last job has begun."""
    bounds: bool = False
    """Neither the inputs nor the values are piled up, so memory is flat."""

    @property
    def about(self) -> str:
        """What it is, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0]

    @property
    def missing(self) -> str | None:
        """What to install, as a sentence; None if it is there."""
        if not self.distribution or installed(self.distribution) is not None:
            return None
        if self.distribution == "asyncio-pool-ng":
            return f"needs {INSTALL_NEXT_GENERATION}"
        return "needs python3 -m pip install 'asyncpool-toolkit[bench]'"


# -- Ours --------------------------------------------------------------------------------------------------------------


async def outcomes(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """Our pool, as things are done; failures are data."""
    async with WorkerPool(handler, workers=workers) as pool:
        async for outcome in pool.outcomes(jobs):
            seen(outcome.value if type(outcome) is Succeeded else outcome)


async def map_(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """Our pool, in the order of the input; the first failure is raised."""
    async with WorkerPool(handler, workers=workers) as pool:
        async for value in pool.map(jobs):
            seen(value)


# -- What one writes by hand -------------------------------------------------------------------------------------------


async def gather(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """A task for each job, all at once: no limit, and everything in memory."""
    for value in await asyncio.gather(*[handler(job) for job in jobs], return_exceptions=True):
        seen(value)


async def gather_semaphore(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """The most popular recipe: all tasks at once, and so many of them past a semaphore."""
    semaphore = asyncio.Semaphore(workers)

    async def limited(job: Any) -> Any:
        async with semaphore:
            return await handler(job)

    for value in await asyncio.gather(*[limited(job) for job in jobs], return_exceptions=True):
        seen(value)


async def group_semaphore(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """A task group whose tasks are made only when the semaphore has room. One failure ends it all."""
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
    """All tasks at once past a semaphore, read as they are done."""
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
    """The loop that everybody writes by hand: a bounded queue, and tasks that take from it. One failure ends it all."""
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
    """The floor: tasks that take from one iterator. No queue, so nobody can hand in a job later."""
    source = iter(jobs)

    async def work() -> None:
        for job in source:
            seen(await handler(job))

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())


async def anyio_streams(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """Workers between two memory object streams, as anyio's documentation builds them."""
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
    # In batches, which its documentation recommends where throughput counts; a batch must fit into its queue.
    async with engine.iter_results(jobs, submission_batch_size=workers) as results:
        async for task in results:
            seen(task.result if task.success else task.error)


async def aiometer(handler: Handler, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`aiometer.amap`, which takes a sequence. One failure ends it all."""
    from aiometer import amap

    arguments = jobs if isinstance(jobs, Sequence) else list(jobs)  # it takes nothing else
    async with amap(handler, arguments, max_at_once=workers) as values:
        async for value in values:
            seen(value)


async def aiostream(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`stream.map`, as completed. One failure ends it all."""
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
        except Exception as error:  # it goes on after an error, if asked for the next value
            seen(error)


async def aiojobs(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`Scheduler.spawn`; it has no stream of values, so each job tells its own."""
    from aiojobs import Scheduler

    async def tell(job: Any) -> None:
        seen(await handler(job))

    def tell_error(scheduler: object, context: dict[str, Any]) -> None:
        seen(context["exception"])

    # No time limit on the end, which would otherwise lose what takes longer.
    async with Scheduler(
        limit=workers, pending_limit=BUFFER * workers, wait_timeout=None, exception_handler=tell_error
    ) as scheduler:
        for job in jobs:
            await scheduler.spawn(tell(job))


async def asyncio_pool(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`AioPool.map`, which returns all at the end."""
    from asyncio_pool import AioPool

    async with AioPool(size=workers) as pool:
        for value in await pool.map(handler, jobs):
            seen(value)


async def asyncio_pool_ng(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`AsyncioPool.itermap`, a future for each input at the start, values in batches of a second."""
    async with next_generation().AsyncioPool(workers) as pool:
        async for future in pool.itermap(handler, jobs):
            seen(future.exception() or future.result())


async def tasklane(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`tasklane.stream`. A stray cancellation inside a job takes its worker with it."""
    from tasklane import stream

    async for value in stream(handler, jobs, limit=workers, return_exceptions=True):
        seen(value)


async def pypeln(handler: Any, jobs: Iterable[Any], workers: int, seen: Callable[[Any], object]) -> None:
    """`pypeln.task.map`. A failure is lost in silence, or ends it all."""
    from pypeln import task

    async def source() -> AsyncIterator[Any]:  # an iterable that is not async it reads in a thread, ten times as slow
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
}
# fmt: on
