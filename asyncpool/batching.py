"""`batches`: groups the items of an async iterable into lists, by number and by time.

For plain iterables, the standard library has `itertools.batched`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Generic, TypeVar

from asyncpool._checks import check_count, check_seconds
from asyncpool._guard import describe, is_error, set_context
from asyncpool._logs import log
from asyncpool.errors import PoolClosed, SourceCrashed, StreamClosed, is_safe_to_raise

__all__ = ["Batches", "batches"]

ItemT = TypeVar("ItemT")

# How long a source can ignore its cancellation before `aclose` returns without it, in seconds, as with streams.
_STUCK_AFTER = 5.0


def batches(source: AsyncIterable[ItemT], size: int, seconds: float | None) -> Batches[ItemT]:
    """Group the items of an async iterable into lists of up to `size` items, at most `seconds` after their first.

        rows = parsers.map(pages)
        await writers.map(asyncpool.batches(rows, size=100, seconds=1.0))

    A batch is ready when it has `size` items, `seconds` after its first item arrived, or when the source ends. While
    the reader processes a batch, the next one fills, so up to `size` items are buffered. A full batch stops the source:
    a slow reader slows it.

    Args:
        source: Any async iterable: a stream, a group, an async generator. A task of its own pulls from it, starting at
            the first step.
        size: The most items of a batch, at least 1.
        seconds: How long a batch waits for more items. 0: it takes those that are available. None: until it is full.

    Returns:
        An async iterator of lists, none of them empty, with a method `aclose()`.

    Raises:
        TypeError: `source` is not an async iterable, or a number is not of its type.
        ValueError: A number is out of range.
    """
    if not isinstance(source, AsyncIterable):
        raise TypeError(
            f"source must be an async iterable, got {describe(source)}: use itertools.batched for a plain one"
        )
    size = check_count("size", size, least=1)
    return Batches(_Filling(source, size, None if seconds is None else check_seconds("seconds", seconds)))


class Batches(AsyncIterator[list[ItemT]]):
    """The batches of an async iterable, for one reader. Made by `batches`.

    `async with` and `aclose()` also close the source, if it has an `aclose()`. If the batches are only dropped, the
    source is closed in the background.
    """

    __slots__ = ("_filling",)

    def __init__(self, filling: _Filling[ItemT]) -> None:
        self._filling = filling

    def __aiter__(self) -> Batches[ItemT]:
        return self

    async def __anext__(self) -> list[ItemT]:
        """Return the next batch. Cancel-safe: no item is lost, and the source goes on.

        Raises:
            StopAsyncIteration: The source is exhausted, and all its items were in batches.
            StreamClosed: It was closed, or another reader is waiting already.
            SourceCrashed: The source raised an exception that is not safe to raise in its reader.
            Exception: What the source raised, after the items before it.
        """
        try:
            return await self._filling.take()
        except BaseException:
            del self  # or the traceback, if somebody keeps it, keeps this alive, and so the source
            raise

    async def __aenter__(self) -> Batches[ItemT]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop, close the source, and wait for that. Items that were pulled and not read are dropped, and an
        error of the source that was not read is logged.

        If the source ignores its cancellation, this waits five seconds, logs a warning and returns. Cancel-safe: the
        source is closed anyway.
        """
        await self._filling.aclose()

    def __del__(self) -> None:
        # Can run in any thread, whenever the collector likes: it only schedules.
        try:
            filling = self._filling
        except AttributeError:  # an interrupt came before it was initialized
            return
        filling.close_soon()


class _Filling(Generic[ItemT]):
    """One source, the task that pulls from it, and the batch that it fills.

    One task takes all steps of the source and closes it, because an async generator can hold cancel scopes and task
    groups, which belong to one task. The time limit of a batch and a cancelled reader do not cancel a step of the
    source, because that would end an async generator.

    The task does not know `Batches`, which can be dropped while it waits.
    """

    def __init__(self, source: AsyncIterable[ItemT], size: int, seconds: float | None) -> None:
        self._source: AsyncIterable[ItemT] | None = source
        self._size = size
        self._seconds = seconds
        self._batch: list[ItemT] = []
        self._is_due = False  # whether the batch has waited long enough
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # once the first step was taken
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None  # what the task waits for while the batch is full
        self._is_pulling = False  # whether the task waits for the source, and can be cancelled
        self._is_cancelled = False  # whether it was, and the CancelledError is still to come
        self._is_over = False  # no more items come
        self._is_closed = False  # and the reader wants none
        self._end: BaseException | None = None  # what the source raised, until the reader gets it

    # -- The reader --------------------------------------------------------------------------------------------------

    async def take(self) -> list[ItemT]:
        """Wait for a batch and return it, or raise the end."""
        while True:
            if self._is_closed:
                raise StreamClosed("the batches were closed before their end")
            batch = self._batch
            if batch and (len(batch) >= self._size or self._is_due or self._is_over):
                self._start_batch()
                return batch
            if self._is_over:
                self._raise_end()
            if self._reader is not None:
                raise StreamClosed("the batches have one reader, and another task is already waiting for it")
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                self._task = self._loop.create_task(self._fill(), name="asyncpool batches")
                self._task.add_done_callback(self._task_is_done)
                continue  # an eager task has pulled already
            self._reader = reader = self._loop.create_future()
            try:
                await reader
            finally:
                self._reader = None

    def _start_batch(self) -> None:
        self._batch = []
        self._is_due = False
        self._drop_timer()
        _wake(self._room)

    def _raise_end(self) -> None:
        end, self._end = self._end, None
        try:
            raise StopAsyncIteration if end is None else end
        finally:
            del end, self  # the error knows this frame

    # -- The task ----------------------------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Pull from the source while there is room, and close it."""
        source, self._source = self._source, None
        assert source is not None
        items: Any = None
        error: BaseException | None = None
        is_exhausted = False
        try:
            items = aiter(source)
            while not self._is_closed:
                self._is_pulling = True
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    is_exhausted = True
                    break
                finally:
                    self._is_pulling = False
                if not self._is_closed:
                    self._add(item)
                del item  # not kept while we wait for the next
                while len(self._batch) >= self._size:
                    self._room = asyncio.get_running_loop().create_future()
                    try:
                        await self._room
                    finally:
                        self._room = None
        except BaseException as caught:
            if is_error(caught, KeyboardInterrupt) or self._is_loop_closed():
                raise  # the program's, or we are being collected
            if self._is_cancelled and is_error(caught, asyncio.CancelledError):
                self._cancel_is_served()
            else:
                error = caught
        if not is_exhausted:
            try:
                if self._is_cancelled:  # the source has given an item, or raised, all the same
                    self._cancel_is_served()
                await _close(items)
            except BaseException as caught:
                if is_error(caught, KeyboardInterrupt) or self._is_loop_closed():
                    raise
                if error is not None:
                    set_context(caught, error)
                error = caught
        self._finish(error)
        del error, source, items  # the error knows this frame

    def _is_loop_closed(self) -> bool:
        return self._loop is not None and self._loop.is_closed()

    def _cancel_is_served(self) -> None:
        # Taken back: a task group in the cleanup of the source would take it for its parent's, and be cancelled by it.
        self._is_cancelled = False
        if self._task is not None:
            self._task.uncancel()

    def _task_is_done(self, task: asyncio.Task[None]) -> None:
        if not self._is_over:  # it was cancelled before its first step, or the source raised a KeyboardInterrupt
            error = None if task.cancelled() else task.exception()
            self._finish(asyncio.CancelledError() if error is None else error)

    def _add(self, item: ItemT) -> None:
        self._batch.append(item)
        if len(self._batch) == 1 and self._seconds is not None and self._size > 1:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(loop.time() + self._seconds, self._time_is_over)
        self._wake_if_ready()

    def _time_is_over(self) -> None:
        self._timer = None
        self._is_due = True
        self._wake_if_ready()

    def _wake_if_ready(self) -> None:
        if self._is_over or self._is_closed or self._is_due or len(self._batch) >= self._size:
            _wake(self._reader)

    def _finish(self, error: BaseException | None) -> None:
        self._is_over = True
        self._drop_timer()
        if error is not None:
            if self._is_closed and is_error(error, asyncio.CancelledError):
                pass
            elif self._is_closed:
                log.error("%s: the source raised this error while it was closed", "batches", exc_info=error)
            else:
                self._end = error if is_safe_to_raise(error) else SourceCrashed(error)
        self._wake_if_ready()

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- Early ends --------------------------------------------------------------------------------------------------

    @property
    def _has_more(self) -> bool:
        """Whether there is something that the reader has not got: items, or an error."""
        return not self._is_over or bool(self._batch) or self._end is not None

    def close(self) -> None:
        """Want no more: have the source closed, if it is open. Does nothing if all was read."""
        if not self._has_more or self._is_closed:
            return
        self._is_closed = True
        self._batch = []
        end, self._end = self._end, None
        if end is not None and not _is_shutdown(end):
            log.error(
                "%s was closed before its reader got this error of its source", "a stream of batches", exc_info=end
            )
        self._drop_timer()
        self._wake_if_ready()
        _wake(self._room)
        if self._task is not None and (self._is_pulling or self._source is not None):  # or it has not begun
            self._is_cancelled = self._is_pulling
            self._task.cancel()

    def close_soon(self) -> None:
        """Request `close`, from any thread and while the collector runs."""
        if self._loop is not None and self._has_more and not self._is_closed:
            try:
                self._loop.call_soon_threadsafe(self.close)
            except RuntimeError:
                pass  # the loop is closed: nothing can be closed any more

    async def aclose(self) -> None:
        """Close, and wait until the source is closed."""
        self.close()
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=_STUCK_AFTER)
            if not done:
                log.warning("%s: the source is still running %g s after it was asked to stop", "batches", _STUCK_AFTER)
        if self._source is not None:  # it was never pulled from
            source, self._source = self._source, None
            await _close(source)


def _is_shutdown(end: BaseException) -> bool:
    """Whether a source ended because its pool or the program did."""
    if is_error(end, SourceCrashed):
        end = end.error
    return is_error(end, (PoolClosed, asyncio.CancelledError, KeyboardInterrupt))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


async def _close(source: object) -> None:
    aclose = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()
