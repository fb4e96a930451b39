"""asyncpool, used as its README shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpool
from asyncpool import (
    Cancelled,
    Failed,
    JobCancelled,
    Outcome,
    PoolClosed,
    RateLimit,
    Retry,
    RetryAfter,
    Succeeded,
    WorkerPool,
)
from benchmarks.gauntlet.adapter import Ended, Handler, Library, Mapped, Options, Pool, Results


class OurPool(Pool):
    """A `WorkerPool`."""

    def __init__(self, pool: WorkerPool[Any, Any]) -> None:
        self._pool = pool

    async def submit(self, job: Any) -> None:
        """Wait for a free place."""
        await self._pool.submit(job)

    def submit_nowait(self, job: Any) -> None:
        """Raise `QueueFull`, an `asyncio.QueueFull`, when the pool is full."""
        self._pool.submit_nowait(job)

    async def run(self, job: Any) -> Any:
        """Submit a job and await its value."""
        return await self._pool.run(job)

    async def stop(self) -> list[Any]:
        """Cancel all jobs, and return the unfinished ones."""
        report = await self._pool.close(drain_timeout=0, grace=0.5)
        return [left.job for left in report.unfinished]

    async def outcomes(self, jobs: Iterable[Any]) -> AsyncIterator[Ended]:
        """Stream outcomes through this pool until it closes."""
        try:
            async for outcome in self._pool.outcomes(jobs):
                yield _ended(outcome)
        except PoolClosed:
            pass


class Ours(Library):
    """`asyncpool.map` and `asyncpool.outcomes` for many jobs, a `WorkerPool` for single jobs."""

    name = "asyncpool"
    distribution = "asyncpool-toolkit"
    module = "asyncpool"
    features = frozenset({"timeouts", "retries", "rate limits"})
    streams = True
    is_lazy = True
    stops = True
    hands_back = True

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        return _oneshot(asyncpool.map, handler, jobs, workers, options)

    @asynccontextmanager
    async def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
        async with _oneshot(asyncpool.outcomes, handler, jobs, workers, options) as outcomes:
            yield Mapped(aiter(outcomes), _ended)

    @asynccontextmanager
    async def pool(self, handler: Handler, *, workers: int, room: int) -> AsyncIterator[Pool]:
        """Open a pool with a bounded queue."""
        async with WorkerPool(handler, workers=workers, queue_size=room) as pool:
            yield OurPool(pool)

    def retry_after(self, seconds: float) -> Exception:
        """Set a minimum for the backoff."""
        return RetryAfter(seconds)


def _oneshot(ask: Callable[..., Any], handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Any:
    return ask(
        handler,
        jobs,
        workers=workers,
        queue_size=options.queue_size,
        timeout=options.timeout,
        retry=_retry(options),
        limiter=None if options.rate is None else RateLimit(options.rate, per=options.per),
    )


def _retry(options: Options) -> Retry | None:
    if options.attempts == 1:
        return None
    return Retry(attempts=options.attempts, backoff=options.backoff, jitter=options.jitter)


def _ended(outcome: Outcome[Any, Any]) -> Ended:
    match outcome:
        case Succeeded(_, value):
            return Ended(value, None)
        case Failed(_, error):
            return Ended(None, error)
        case Cancelled(_, reason):
            return Ended(None, JobCancelled(reason))
