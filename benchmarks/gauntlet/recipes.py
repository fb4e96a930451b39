"""Handwritten recipes with asyncio alone, in their usual forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.gauntlet.adapter import Ended, Handler, Library, Options, Pool, Results


class _Collects(Library):
    """A recipe that returns a list at the end."""

    features = frozenset({"timeouts"})

    async def _list(self, handler: Handler, jobs: Iterable[Any], workers: int) -> list[Any]:
        raise NotImplementedError

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        return one_by_one(lambda: self._list(_timed(handler, options.timeout), jobs, workers))


class GatherAndSemaphore(_Collects):
    """One task per job, all sharing a semaphore."""

    name = "gather + Semaphore"

    async def _list(self, handler: Handler, jobs: Iterable[Any], workers: int) -> list[Any]:
        return await _gather(handler, jobs, workers, return_exceptions=False)

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        async def ended() -> list[Ended]:
            timed = _timed(handler, options.timeout)
            return [as_ended(result) for result in await _gather(timed, jobs, workers, return_exceptions=True)]

        return one_by_one(ended)


class TaskGroupAndSemaphore(_Collects):
    """The same in a task group, which cancels the other tasks when one fails."""

    name = "TaskGroup + Semaphore"

    async def _list(self, handler: Handler, jobs: Iterable[Any], workers: int) -> list[Any]:
        semaphore = asyncio.Semaphore(workers)

        async def one(job: Any) -> Any:
            async with semaphore:
                return await handler(job)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(job)) for job in jobs]
        return [task.result() for task in tasks]


class QueueWorkers(_Collects):
    """Worker tasks that read a bounded `asyncio.Queue`."""

    name = "Queue workers"
    stops = True

    async def _list(self, handler: Handler, jobs: Iterable[Any], workers: int) -> list[Any]:
        values: list[Any] = []

        async def take(job: Any) -> None:
            values.append(await handler(job))

        await _feed(take, jobs, workers)
        return values

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        timed = _timed(handler, options.timeout)

        async def ended() -> list[Ended]:
            results: list[Ended] = []

            async def take(job: Any) -> None:
                try:
                    results.append(Ended(await timed(job), None))
                except Exception as error:
                    results.append(Ended(None, error))

            await _feed(take, jobs, workers)
            return results

        return one_by_one(ended)

    @asynccontextmanager
    async def pool(self, handler: Handler, *, workers: int, room: int) -> AsyncIterator[Pool]:
        """Open workers that set a future for each job."""
        pool = _QueuePool(handler, workers, room)
        try:
            yield pool
        finally:
            await pool.stop()


class _QueuePool(Pool):
    def __init__(self, handler: Handler, workers: int, room: int) -> None:
        self._handler = handler
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue(max(1, room))
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]

    async def _work(self) -> None:
        while True:
            job, future = await self._queue.get()
            if future.done():  # its caller has given up
                continue
            try:
                value = await self._handler(job)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            except BaseException:
                future.cancel()
                raise
            else:
                if not future.done():
                    future.set_result(value)

    async def submit(self, job: Any) -> None:
        await self._queue.put((job, asyncio.get_running_loop().create_future()))

    def submit_nowait(self, job: Any) -> None:
        self._queue.put_nowait((job, asyncio.get_running_loop().create_future()))

    async def run(self, job: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await self._queue.put((job, future))
        return await future

    async def stop(self) -> list[Any]:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        left: list[Any] = []
        while not self._queue.empty():
            job, future = self._queue.get_nowait()
            future.cancel()
            left.append(job)
        return left


@asynccontextmanager
async def one_by_one(collect: Callable[[], Awaitable[list[Any]]]) -> AsyncIterator[AsyncIterator[Any]]:
    """Give the items of a list that is computed at the first step."""

    async def items() -> AsyncIterator[Any]:
        for item in await collect():
            yield item

    yield items()


def as_ended(result: Any) -> Ended:
    """Return the `Ended` for a result or an exception of `return_exceptions=True`."""
    return Ended(None, result) if isinstance(result, BaseException) else Ended(result, None)


def _timed(handler: Handler, timeout: float | None) -> Handler:
    async def within(job: Any) -> Any:
        async with asyncio.timeout(timeout):
            return await handler(job)

    return handler if timeout is None else within


async def _gather(handler: Handler, jobs: Iterable[Any], workers: int, *, return_exceptions: bool) -> list[Any]:
    semaphore = asyncio.Semaphore(workers)

    async def one(job: Any) -> Any:
        async with semaphore:
            return await handler(job)

    return await asyncio.gather(*[one(job) for job in jobs], return_exceptions=return_exceptions)


async def _feed(take: Handler, jobs: Iterable[Any], workers: int) -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=2 * workers)

    async def work() -> None:
        while True:
            job = await queue.get()
            try:
                await take(job)
            finally:
                queue.task_done()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(workers)]
        for job in jobs:
            await queue.put(job)
        await queue.join()
        for task in tasks:
            task.cancel()
