"""`asyncpool.map` and `asyncpool.outcomes`: a pool around one stream, made and closed with it.

What the stream does is `streams.py`; for more than one stream, make a `WorkerPool`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, overload

from asyncpool.dead_letters.letter import DeadLetterSink
from asyncpool.errors import ErrorFilter
from asyncpool.events import Observer
from asyncpool.outcomes import Outcome
from asyncpool.pool import WorkerPool
from asyncpool.rate import Limiter
from asyncpool.retry import Retry
from asyncpool.scaling.policy import Workers
from asyncpool.streams import Stream

__all__ = ["map", "outcomes"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")
ResourceT = TypeVar("ResourceT")
ItemT_co = TypeVar("ItemT_co", covariant=True)


class _StreamWithPool(Stream[ItemT_co]):
    """A stream that owns its pool: started before the first pull, closed before the reader is told the end."""

    def __init__(self, pool: WorkerPool[Any, Any], source: Any, *, ordered: bool, raises: bool) -> None:
        super().__init__(pool._dispatcher, source, ordered=ordered, raises=raises)  # pyright: ignore[reportPrivateUsage] -- as WorkerPool.map does
        self._pool = pool
        self._is_begun = False

    async def _begin(self) -> None:
        if not self._is_begun and not self._is_cut:
            self._is_begun = True
            try:
                await self._pool.start()
            except BaseException:
                self.cancel()
                raise
        await super()._begin()

    async def _finish(self) -> None:
        await self._pool.close(drain_timeout=0.0)

    def cancel(self) -> None:
        """End the stream and its pool at once. `aclose()` also waits for that."""
        if not self._is_cut and not self._is_over:
            super().cancel()
            self._pool.cancel()

    def cut_soon(self) -> None:
        """Ask for the cancellation, from any thread and while the collector runs."""
        if self._is_begun:
            super().cut_soon()

    async def aclose(self) -> None:
        """Cancel what is queued or runs, close the source and the pool, and wait for them. Does nothing after the end.

        Cancel-safe: what was asked to end goes on ending.
        """
        await super().aclose()
        await self._pool.close(drain_timeout=0.0)


@overload
def map(
    handler: Callable[[JobT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = True,
    queue_size: int | None = None,
    max_delayed: int = 10_000,
    timeout: float | None = None,
    retry: Retry | None = None,
    limiter: Limiter[JobT] | None = None,
    priority: Callable[[JobT], Any] | None = None,
    dead_letters: DeadLetterSink[JobT] | None = None,
    observers: Sequence[Observer] = (),
    name: str = "map",
) -> Stream[ValueT]: ...


@overload
def map(
    handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = True,
    queue_size: int | None = None,
    max_delayed: int = 10_000,
    timeout: float | None = None,
    retry: Retry | None = None,
    limiter: Limiter[JobT] | None = None,
    resource: Callable[[], AbstractAsyncContextManager[ResourceT]],
    recycle_on: ErrorFilter = OSError,
    priority: Callable[[JobT], Any] | None = None,
    dead_letters: DeadLetterSink[JobT] | None = None,
    observers: Sequence[Observer] = (),
    name: str = "map",
) -> Stream[ValueT]: ...


def map(
    handler: Callable[..., Awaitable[Any]],
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    ordered: bool = True,
    name: str = "map",
    **options: Any,
) -> Stream[Any]:
    """Return a stream of the values of all jobs, through a pool of its own; see `WorkerPool.map`.

    The pool starts with the first step and is closed when the stream ends, is left or is cancelled: the error of a
    failed job is raised once nothing runs any more. A first step that is cancelled while the pool starts (it enters a
    resource) closes it: nothing was pulled then. All other arguments are those of `WorkerPool`.
    """
    pool: WorkerPool[Any, Any] = WorkerPool(handler, name=name, **options)
    return _StreamWithPool(pool, jobs, ordered=ordered, raises=True)


@overload
def outcomes(
    handler: Callable[[JobT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = False,
    queue_size: int | None = None,
    max_delayed: int = 10_000,
    timeout: float | None = None,
    retry: Retry | None = None,
    limiter: Limiter[JobT] | None = None,
    priority: Callable[[JobT], Any] | None = None,
    dead_letters: DeadLetterSink[JobT] | None = None,
    observers: Sequence[Observer] = (),
    name: str = "outcomes",
) -> Stream[Outcome[JobT, ValueT]]: ...


@overload
def outcomes(
    handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = False,
    queue_size: int | None = None,
    max_delayed: int = 10_000,
    timeout: float | None = None,
    retry: Retry | None = None,
    limiter: Limiter[JobT] | None = None,
    resource: Callable[[], AbstractAsyncContextManager[ResourceT]],
    recycle_on: ErrorFilter = OSError,
    priority: Callable[[JobT], Any] | None = None,
    dead_letters: DeadLetterSink[JobT] | None = None,
    observers: Sequence[Observer] = (),
    name: str = "outcomes",
) -> Stream[Outcome[JobT, ValueT]]: ...


def outcomes(
    handler: Callable[..., Awaitable[Any]],
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    ordered: bool = False,
    name: str = "outcomes",
    **options: Any,
) -> Stream[Outcome[Any, Any]]:
    """Return a stream of the outcomes of all jobs, through a pool of its own; see `WorkerPool.outcomes`.

    The pool starts with the first step and is closed when the stream ends, is left or is cancelled. All other arguments
    are those of `WorkerPool`.
    """
    pool: WorkerPool[Any, Any] = WorkerPool(handler, name=name, **options)
    return _StreamWithPool(pool, jobs, ordered=ordered, raises=False)
