"""The other libraries, each used, and left early, as its own documentation recommends.

Modules are imported where they are used, so a child needs only the library under test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from contextvars import copy_context
from datetime import timedelta
from typing import Any

from benchmarks.gauntlet.adapter import Ended, Handler, Library, Mapped, Options, Pool, Results
from benchmarks.gauntlet.recipes import GatherAndSemaphore, as_ended, one_by_one
from benchmarks.gauntlet.verdicts import Lacks
from benchmarks.installed import next_generation


class ComeBackLater(Exception):
    """What a handler raises where a function of the error chooses the delay."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not before {seconds} s")
        self.seconds = seconds


class Aqute(Library):
    """`iter_results` for many jobs, the manual lifecycle for a pool."""

    name = "aqute"
    distribution = "aqute"
    module = "aqute"
    features = frozenset({"timeouts", "retries", "rate limits"})
    streams = True
    is_lazy = True
    stops = True

    def _engine(self, handler: Handler, workers: int, options: Options) -> Any:
        from aqute import Aqute
        from aqute.ratelimiter import TokenBucketRateLimiter

        return Aqute(
            handler,
            workers,
            rate_limiter=None if options.rate is None else TokenBucketRateLimiter(options.rate, options.per),
            retry_count=options.attempts - 1,
            retry_delay=lambda _attempt, error: getattr(error, "seconds", options.backoff),
            task_timeout_seconds=options.timeout,
            input_task_queue_size=options.queue_size,
        )

    @asynccontextmanager
    async def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        async with self._engine(handler, workers, options).iter_results(jobs) as tasks:
            yield Mapped(tasks, lambda task: task.unwrap())

    @asynccontextmanager
    async def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        async with self._engine(handler, workers, options).iter_results(jobs) as tasks:
            yield Mapped(tasks, lambda task: Ended(task.result, task.error))

    @asynccontextmanager
    async def pool(self, handler: Handler, *, workers: int, room: int) -> AsyncIterator[Pool]:
        """Open a pool whose results go to an unbounded queue, which is not read here."""
        from aqute import Aqute

        results: asyncio.Queue[Any] = asyncio.Queue()
        async with Aqute(handler, workers, input_task_queue_size=max(1, room), result_queue=results) as engine:
            yield _AqutePool(engine)

    def retry_after(self, seconds: float) -> Exception:
        """Return an error from which `retry_delay` takes the delay."""
        return ComeBackLater(seconds)


class _AqutePool(Pool):
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def submit(self, job: Any) -> None:
        await self._engine.add_task(job)

    async def stop(self) -> list[Any]:
        await self._engine.stop()
        return []


class Aiometer(Library):
    """`amap`, as an async context manager."""

    name = "aiometer"
    distribution = "aiometer"
    module = "aiometer"
    features = frozenset({"rate limits"})
    streams = True

    @asynccontextmanager
    async def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        import aiometer

        per_second = None if options.rate is None else options.rate / options.per
        async with aiometer.amap(handler, list(jobs), max_at_once=workers, max_per_second=per_second) as results:
            yield aiter(results)


class Aiostream(Library):
    """`stream.map` with a task limit, in its streaming context."""

    name = "aiostream"
    distribution = "aiostream"
    module = "aiostream"
    streams = True
    is_lazy = True

    @asynccontextmanager
    async def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        from aiostream import stream

        async with stream.map(stream.iterate(jobs), handler, task_limit=workers).stream() as streamer:
            yield aiter(streamer)


class Streamable(Library):
    """`stream.map(concurrency=)`, and `catch(replace=)` for failures as data."""

    name = "streamable"
    distribution = "streamable"
    module = "streamable"
    features = frozenset({"rate limits"})
    streams = True
    is_lazy = True

    def _mapped(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        from streamable import stream

        inputs = stream(jobs)
        if options.rate is not None:
            inputs = inputs.throttle(options.rate, per=timedelta(seconds=options.per))
        return inputs.map(handler, concurrency=workers)

    @asynccontextmanager
    async def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        yield aiter(self._mapped(handler, jobs, workers, options))

    @asynccontextmanager
    async def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        results = self._mapped(handler, jobs, workers, options).catch(Exception, replace=lambda error: error)
        yield Mapped(aiter(results), as_ended)


class Aiojobs(Library):
    """A `Scheduler`, closed at the end. It has no map, so each job is spawned and awaited."""

    name = "aiojobs"
    distribution = "aiojobs"
    module = "aiojobs"
    stops = True

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        return one_by_one(lambda: self._list(handler, jobs, workers, raises=True))

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        return one_by_one(lambda: self._list(handler, jobs, workers, raises=False))

    async def _list(self, handler: Handler, jobs: Iterable[Any], workers: int, *, raises: bool) -> list[Any]:
        import aiojobs

        scheduler = aiojobs.Scheduler(limit=workers)
        try:
            spawned = [await scheduler.spawn(handler(job)) for job in jobs]
            if raises:
                return [await job.wait() for job in spawned]
            results = await asyncio.gather(*[job.wait() for job in spawned], return_exceptions=True)
            return [as_ended(result) for result in results]
        finally:
            await scheduler.close()

    @asynccontextmanager
    async def pool(self, handler: Handler, *, workers: int, room: int) -> AsyncIterator[Pool]:
        """Open a scheduler with a limit of pending jobs."""
        import aiojobs

        scheduler = aiojobs.Scheduler(limit=workers, pending_limit=max(1, room))
        try:
            yield _AiojobsPool(scheduler, handler)
        finally:
            await scheduler.close()


class _AiojobsPool(Pool):
    def __init__(self, scheduler: Any, handler: Handler) -> None:
        self._scheduler = scheduler
        self._handler = handler

    async def submit(self, job: Any) -> None:
        await self._scheduler.spawn(self._handler(job))

    async def run(self, job: Any) -> Any:
        spawned = await self._scheduler.spawn(self._handler(job))
        return await spawned.wait()

    async def stop(self) -> list[Any]:
        await self._scheduler.close()
        return []


class AsyncioPoolNg(Library):
    """`itermap` for many jobs, `spawn` for one."""

    name = "asyncio-pool-ng"
    distribution = "asyncio-pool-ng"
    streams = True
    is_lazy = True

    def load(self) -> None:
        """Load it by path, because another library has the same import name."""
        next_generation()

    @asynccontextmanager
    async def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        async with (
            next_generation().AsyncioPool(workers) as pool,
            aclosing(pool.itermap(handler, jobs, batch_duration=0.01)) as futures,
        ):
            yield Mapped(futures, lambda future: future.result())

    @asynccontextmanager
    async def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        async with (
            next_generation().AsyncioPool(workers) as pool,
            aclosing(pool.itermap(handler, jobs, batch_duration=0.01)) as futures,
        ):
            yield Mapped(futures, lambda future: as_ended(future.exception() or future.result()))

    @asynccontextmanager
    async def pool(self, handler: Handler, *, workers: int, room: int) -> AsyncIterator[Pool]:
        """Open a pool with an unbounded queue, because `spawn` never waits."""
        async with next_generation().AsyncioPool(workers) as pool:
            yield _AsyncioPool(pool, handler)


class _AsyncioPool(Pool):
    def __init__(self, pool: Any, handler: Handler) -> None:
        self._pool = pool
        self._handler = handler

    async def submit(self, job: Any) -> None:
        raise Lacks("back-pressure")

    async def run(self, job: Any) -> Any:
        return await self._pool.spawn(self._handler, job, context=copy_context())


class Tasklane(Library):
    """`stream`, closed at the end."""

    name = "tasklane"
    distribution = "tasklane"
    module = "tasklane"
    features = frozenset({"timeouts", "retries", "rate limits"})
    streams = True
    is_lazy = True

    def _stream(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options, as_data: bool) -> Any:
        import tasklane

        return tasklane.stream(
            handler,
            jobs,
            limit=workers,
            retries=options.attempts - 1,
            backoff=tasklane.Backoff.constant(options.backoff, jitter=options.jitter),
            timeout=options.timeout,
            rate_limit=None if options.rate is None else options.rate / options.per,
            return_exceptions=as_data,
        )

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        return aclosing(self._stream(handler, jobs, workers, options, as_data=False))

    @asynccontextmanager
    async def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        async with aclosing(self._stream(handler, jobs, workers, options, as_data=True)) as results:
            yield Mapped(aiter(results), as_ended)


class Pypeln(Library):
    """`task.map` with bounded queues, closed at the end."""

    name = "pypeln"
    distribution = "pypeln"
    module = "pypeln"
    features = frozenset({"timeouts"})
    streams = True
    is_lazy = True

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        import pypeln

        maxsize = options.queue_size or 2 * workers or 1
        stage = pypeln.task.map(handler, jobs, workers=workers, maxsize=maxsize, timeout=options.timeout or 0)
        return aclosing(aiter(stage))


class Aioitertools(Library):
    """`asyncio.gather` with a limit."""

    name = "aioitertools"
    distribution = "aioitertools"
    module = "aioitertools"

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        return one_by_one(lambda: self._gather(handler, jobs, workers, return_exceptions=False))

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        async def ended() -> list[Ended]:
            return [as_ended(one) for one in await self._gather(handler, jobs, workers, return_exceptions=True)]

        return one_by_one(ended)

    async def _gather(self, handler: Handler, jobs: Iterable[Any], workers: int, *, return_exceptions: bool) -> Any:
        from aioitertools.asyncio import gather

        return await gather(*[handler(job) for job in jobs], limit=workers, return_exceptions=return_exceptions)


class AntFlow(Library):
    """`Pipeline.stream` with a bounded result buffer for values, `AsyncExecutor.submit` for failures as data and for
    results per caller, `Pipeline.feed` for back-pressure."""

    name = "AntFlow"
    distribution = "AntFlow"
    module = "antflow"
    features = frozenset({"retries", "rate limits"})
    streams = True
    stops = True
    patience = 4.0  # its workers poll, so a pipeline takes up to 0.1 s to close, and some cases open hundreds

    def _pipeline(self, handler: Handler, workers: int, options: Options) -> Any:
        from antflow import Pipeline, Stage, rate_limit

        async def limited(job: Any) -> Any:
            async with rate_limit():
                return await handler(job)

        stage = Stage(
            name="jobs",
            workers=workers,
            tasks=[handler if options.rate is None else limited],
            task_attempts=options.attempts,
            task_wait_seconds=options.backoff,
            queue_capacity=options.queue_size or 0,  # 0: unbounded
            call_rate=options.rate,
            call_rate_period=options.per,
        )
        return Pipeline(stages=[stage], collect_results=False)

    @asynccontextmanager
    async def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        # It gives the first result after the last input is queued. So only one of both queues can be bounded: with
        # two, the workers would wait for the reader, and the reader for the workers.
        buffer_size = 2 * workers if options.queue_size is None else None
        pipeline = self._pipeline(handler, workers, options)
        async with aclosing(pipeline.stream(list(jobs), buffer_size=buffer_size)) as results:
            yield Mapped(results, _value_of)

    @asynccontextmanager
    async def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        from antflow import AsyncExecutor

        executor = AsyncExecutor(max_workers=workers)
        retries = {"retries": options.attempts - 1, "retry_delay": options.backoff}

        async def ended() -> AsyncIterator[Ended]:
            futures = [executor.submit(handler, job, **retries) for job in jobs]
            async for future in executor.as_completed(futures):
                error = future.exception()
                yield Ended(await future.result() if error is None else None, error)

        try:
            async with aclosing(ended()) as results:
                yield results
        finally:
            await executor.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def pool(self, handler: Handler, *, workers: int, room: int) -> AsyncIterator[Pool]:
        """Open an executor, whose queue is unbounded, and a pipeline, whose results have no caller."""
        from antflow import AsyncExecutor

        executor = AsyncExecutor(max_workers=workers)
        async with self._pipeline(handler, workers, Options(queue_size=max(1, room))) as pipeline:
            await pipeline.start()
            try:
                yield _AntFlowPool(executor, pipeline, handler)
            finally:
                await executor.shutdown(wait=False, cancel_futures=True)


def _value_of(result: Any) -> Any:
    if result.error is not None:
        raise result.error
    return result.value


class _AntFlowPool(Pool):
    def __init__(self, executor: Any, pipeline: Any, handler: Handler) -> None:
        self._executor = executor
        self._pipeline = pipeline
        self._handler = handler

    async def submit(self, job: Any) -> None:
        await self._pipeline.feed([job])

    async def run(self, job: Any) -> Any:
        return await self._executor.submit(self._handler, job).result()

    async def stop(self) -> list[Any]:
        await self._executor.shutdown(wait=False, cancel_futures=True)
        await self._pipeline.shutdown()
        return []


class Aiolimiter(Library):
    """Only a rate limiter, used around each job of `gather` + `Semaphore`."""

    name = "aiolimiter"
    distribution = "aiolimiter"
    module = "aiolimiter"
    features = frozenset({"rate limits"})

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        from aiolimiter import AsyncLimiter

        if options.rate is None:
            raise Lacks("everything but rate limits")
        limiter = AsyncLimiter(options.rate, options.per)

        async def limited(job: Any) -> Any:
            async with limiter:
                return await handler(job)

        return GatherAndSemaphore().values(limited, jobs, workers=workers)

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        raise Lacks("everything but rate limits")
