"""`asyncpool.map` and `asyncpool.outcomes`: one stream with a pool of its own, started and closed with it.

See `streams.py` for the stream. To run several streams, create a `WorkerPool`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn, TypeVar, Unpack, overload

from asyncpool._core.channel import Reading
from asyncpool._core.feeder import FedChannel
from asyncpool._core.life import Life
from asyncpool._core.parts import Parts
from asyncpool._core.run_limits import LimitedChannel, RunLimits
from asyncpool.errors import ErrorFilter, PoolClosed
from asyncpool.options import PoolOptions, build_parts, check_names
from asyncpool.outcomes import Outcome
from asyncpool.resources import Resource
from asyncpool.scaling.policy import Workers
from asyncpool.streams import Stream, stream_of

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

    def raise_end(self) -> NoReturn:
        """Raise the end; if the pool has ended by itself, the reason for that."""
        cause = self.parts.state.cause
        if cause is None or self.reading is Reading.FINISHED:
            super().raise_end()
        self.reading = Reading.FINISHED
        try:
            raise cause
        finally:
            del cause, self  # the error knows this frame

    def cancel(self) -> None:
        """End the stream and its pool at once."""
        is_first = self.reading not in (Reading.CANCELLED, Reading.FINISHED)
        super().cancel()
        if is_first:
            self._life.cancel()

    def cancel_soon(self) -> None:
        """Schedule the cancellation. Can be called from any thread, and during garbage collection."""
        if self._is_begun:
            super().cancel_soon()

    async def aclose(self) -> None:
        """Cancel queued and running jobs, close the source and the pool, and wait for all of them."""
        await super().aclose()
        await self.finish()


class _LimitedOwnPoolChannel(_OwnPoolChannel[ItemT_co], LimitedChannel[ItemT_co]):
    """The same, with limits. Its deadline also ends a start of the pool that takes too long."""

    async def begin(self) -> None:
        """Start the pool, then the feeder."""
        when = self.deadline_at
        if self._is_begun or when is None:
            await super().begin()
            return
        timer = asyncio.get_running_loop().call_at(when, self._end_start)
        try:
            await super().begin()
        except PoolClosed:
            error, self.stopped_by = self.stopped_by, None
            if error is None:
                raise
            try:
                raise error from None
            finally:
                del error, self  # the error knows this frame
        finally:
            timer.cancel()

    def _end_start(self) -> None:
        if self.parts.state.is_starting:
            self.time_is_over()
            self._life.cancel()


def _make_channel(
    parts: Parts, source: Any, limits: RunLimits | None, *, ordered: bool, raises: bool
) -> _OwnPoolChannel[Any]:
    if limits is None:
        return _OwnPoolChannel(parts, source, ordered=ordered, raises=raises)
    channel: _LimitedOwnPoolChannel[Any] = _LimitedOwnPoolChannel(parts, source, ordered=ordered, raises=raises)
    channel.limit(limits)
    return channel


@overload
def map(
    handler: Callable[[JobT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = True,
    max_failures: float | None = None,
    deadline: float | None = None,
    progress: bool = False,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[ValueT]: ...


@overload
def map(
    handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = True,
    max_failures: float | None = None,
    deadline: float | None = None,
    progress: bool = False,
    resource: Callable[[], AbstractAsyncContextManager[ResourceT]] | Resource[ResourceT],
    recycle_on: ErrorFilter | None = None,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[ValueT]: ...


def map(
    handler: Callable[..., Awaitable[Any]],
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    workers: Workers,
    ordered: bool = True,
    max_failures: float | None = None,
    deadline: float | None = None,
    progress: bool = False,
    name: str = "map",
    **options: Any,
) -> Stream[Any]:
    """Return a stream of the values of all jobs, which run in a pool of the stream's own; see `WorkerPool.map`.

    The pool starts at the first step of the iteration, and is closed when the stream is exhausted, left or cancelled.
    The error of a failed job is raised only when nothing is running any more. If the first step is cancelled while the
    pool starts (it enters a resource), the pool is closed, and nothing has been pulled from `jobs`.

    Args:
        handler: `handler(job)`, or `handler(job, resource)` with a resource: an async function.
        jobs: The inputs, an iterable or async iterable. Pulled lazily.
        ordered: Whether values come in the order of the jobs, or as jobs complete.
        max_failures: How many jobs can fail and be left out, see `WorkerPool.map`.
        deadline: Seconds for the whole run, with the start of the pool. See `WorkerPool.map`.
        progress: Whether to show the progress, as `asyncpool.progress.track` does; needs the extra `progress`.
        name: The name of the pool, for logs, statistics and task names.
        **options: The other arguments of `WorkerPool`; `workers` is required.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """
    check_names("map", options)
    limits = RunLimits.of(max_failures, deadline)
    parts = build_parts(handler, workers=workers, name=name, **options)
    return stream_of(_make_channel(parts, jobs, limits, ordered=ordered, raises=True), progress)


@overload
def outcomes(
    handler: Callable[[JobT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = False,
    max_failures: float | None = None,
    deadline: float | None = None,
    progress: bool = False,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[Outcome[JobT, ValueT]]: ...


@overload
def outcomes(
    handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
    jobs: Iterable[JobT] | AsyncIterable[JobT],
    *,
    workers: Workers,
    ordered: bool = False,
    max_failures: float | None = None,
    deadline: float | None = None,
    progress: bool = False,
    resource: Callable[[], AbstractAsyncContextManager[ResourceT]] | Resource[ResourceT],
    recycle_on: ErrorFilter | None = None,
    **options: Unpack[PoolOptions[JobT]],
) -> Stream[Outcome[JobT, ValueT]]: ...


def outcomes(
    handler: Callable[..., Awaitable[Any]],
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    workers: Workers,
    ordered: bool = False,
    max_failures: float | None = None,
    deadline: float | None = None,
    progress: bool = False,
    name: str = "outcomes",
    **options: Any,
) -> Stream[Any]:
    """Return a stream of the outcomes of all jobs, which run in a pool of the stream's own; see `WorkerPool.outcomes`.

    The pool starts at the first step of the iteration, and is closed when the stream is exhausted, left or cancelled.

    Args:
        handler: `handler(job)`, or `handler(job, resource)` with a resource: an async function.
        jobs: The inputs, an iterable or async iterable. Pulled lazily.
        ordered: Whether outcomes come in the order of the jobs, or as jobs complete.
        max_failures: How many jobs can fail before the run stops, see `WorkerPool.outcomes`.
        deadline: Seconds for the whole run, with the start of the pool. See `WorkerPool.outcomes`.
        progress: Whether to show the progress, as `asyncpool.progress.track` does; needs the extra `progress`.
        name: The name of the pool, for logs, statistics and task names.
        **options: The other arguments of `WorkerPool`; `workers` is required.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """
    check_names("outcomes", options)
    limits = RunLimits.of(max_failures, deadline)
    parts = build_parts(handler, workers=workers, name=name, **options)
    return stream_of(_make_channel(parts, jobs, limits, ordered=ordered, raises=False), progress)
