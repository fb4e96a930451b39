"""`asyncpool.map` and `asyncpool.outcomes`: a pool around one stream, made and closed with it.

What the stream does is `streams.py`; for more than one stream, make a `WorkerPool`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, Unpack, overload

from asyncpool._core.feeder import FedChannel
from asyncpool._core.life import Life
from asyncpool._core.parts import Parts
from asyncpool.errors import ErrorFilter
from asyncpool.options import PoolOptions, build_parts, check_names
from asyncpool.outcomes import Outcome
from asyncpool.scaling.policy import Workers
from asyncpool.streams import Stream

__all__ = ["map", "outcomes"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")
ResourceT = TypeVar("ResourceT")
ItemT_co = TypeVar("ItemT_co", covariant=True)


class _OwnPoolChannel(FedChannel[ItemT_co]):
    """A channel that owns its pool: started before the first pull, closed before the end is reported to the reader."""

    def __init__(self, parts: Parts, source: Any, *, ordered: bool, raises: bool) -> None:
        super().__init__(parts, source, ordered=ordered, raises=raises)
        self._life = Life(parts)
        self._is_begun = False

    async def begin(self) -> None:
        """Start the pool, then the feeder."""
        if not self._is_begun and not self.is_cancelled:
            self._is_begun = True
            try:
                await self._life.start()
            except BaseException:
                self.cancel()
                raise
        await super().begin()

    async def finish(self) -> None:
        """Close the pool."""
        self._life.is_report_awaited = True
        self._life.stop(drain_timeout=0.0, grace=5.0)
        await self._life.wait_closed()

    def cancel(self) -> None:
        """End the stream and its pool at once."""
        was_cancelled = self.is_cancelled
        super().cancel()
        if self.is_cancelled and not was_cancelled:
            self._life.cancel()

    def cancel_soon(self) -> None:
        """Request the cancellation, from any thread and while the collector runs."""
        if self._is_begun:
            super().cancel_soon()

    async def aclose(self) -> None:
        """Cancel what is queued or runs, close the source and the pool, and wait for them."""
        await super().aclose()
        await self.finish()


@overload
def map(
    handler: Callable[[JobT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = True,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[ValueT]: ...


@overload
def map(
    handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = True,
    resource: Callable[[], AbstractAsyncContextManager[ResourceT]],
    recycle_on: ErrorFilter = OSError,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[ValueT]: ...


def map(
    handler: Callable[..., Awaitable[Any]],
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    workers: Workers,
    ordered: bool = True,
    name: str = "map",
    **options: Any,
) -> Stream[Any]:
    """Return a stream of the values of all jobs, through a pool of its own; see `WorkerPool.map`.

    The pool starts with the first step and is closed when the stream ends, is left or is cancelled: the error of a
    failed job is raised once nothing runs any more. A first step that is cancelled while the pool starts (it enters a
    resource) closes it: nothing was pulled then. All other arguments are those of `WorkerPool`.
    """
    check_names("map", options)
    parts = build_parts(handler, workers=workers, name=name, **options)
    return Stream(_OwnPoolChannel(parts, jobs, ordered=ordered, raises=True))


@overload
def outcomes(
    handler: Callable[[JobT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = False,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[Outcome[JobT, ValueT]]: ...


@overload
def outcomes(
    handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = False,
    resource: Callable[[], AbstractAsyncContextManager[ResourceT]],
    recycle_on: ErrorFilter = OSError,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[Outcome[JobT, ValueT]]: ...


def outcomes(
    handler: Callable[..., Awaitable[Any]],
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    workers: Workers,
    ordered: bool = False,
    name: str = "outcomes",
    **options: Any,
) -> Stream[Any]:
    """Return a stream of the outcomes of all jobs, through a pool of its own; see `WorkerPool.outcomes`.

    The pool starts with the first step and is closed when the stream ends, is left or is cancelled. All other arguments
    are those of `WorkerPool`.
    """
    check_names("outcomes", options)
    parts = build_parts(handler, workers=workers, name=name, **options)
    return Stream(_OwnPoolChannel(parts, jobs, ordered=ordered, raises=False))
