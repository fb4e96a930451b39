"""The feeder: a task that pulls the jobs of a stream from its source while there is room, and closes the source.

How outcomes reach the reader is `channel.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Generator, Iterable, Iterator, Sized
from contextvars import copy_context
from enum import Enum
from typing import Any, TypeVar

from asyncpool._core.cancellation import STUCK_AFTER
from asyncpool._core.channel import Channel, Readable, Reading
from asyncpool._core.job import Job, new_job
from asyncpool._core.parts import Parts
from asyncpool._guard import describe, is_error, set_context
from asyncpool._logs import log
from asyncpool.errors import PoolClosed, PoolError, SourceCrashed, is_safe_to_raise
from asyncpool.outcomes import CancelReason

__all__ = ["FedChannel"]

ItemT_co = TypeVar("ItemT_co", covariant=True)
T = TypeVar("T")

# The feeder gives the loop its turn after this many jobs, or this many seconds without a suspension.
_FEED_JOBS = 256
_FEED_SECONDS = 0.005


class _Interrupt(Enum):
    """Whether the feeder can be cancelled: not while it closes the source, nor inside a plain iterator."""

    IMPOSSIBLE = 1
    POSSIBLE = 2
    """It waits for room or for the source."""
    REQUESTED = 3
    """It was cancelled, and the CancelledError is still to come."""


class FedChannel(Channel[ItemT_co]):
    """The channel of a stream, and the task that brings it jobs."""

    def __init__(
        self, parts: Parts, source: Iterable[Any] | AsyncIterable[Any], *, ordered: bool, raises: bool
    ) -> None:
        super().__init__(parts, ordered=ordered, raises=raises, window=None, what="the stream")
        if not isinstance(source, (Iterable, AsyncIterable)):
            raise TypeError(f"jobs must be an iterable or an async iterable, got {describe(source)}")
        self._source: Iterable[Any] | AsyncIterable[Any] = source
        # Of the call that made the stream, for its jobs and its source: sources read context variables too.
        self.context = copy_context()
        self._feeder: asyncio.Task[None] | None = None
        # Once true, nothing more is pulled, but what was pulled is still accepted: no input is ever in nobody's hands
        # (tests/laws: a_source_stops_what_it_feeds, sources_and_first_steps_do_as_they_like).
        self.is_stopped = False
        self._interrupt = _Interrupt.IMPOSSIBLE
        self._is_abandoned = False  # the feeder: nobody waits for it any more

    @property
    def is_missed(self) -> bool:
        """Whether somebody may have forgotten to read this channel."""
        state = self.parts.state
        is_ending = state.is_bound and (not state.takes_jobs or state.is_loop_shutting_down())
        return self.reading is Reading.NEW and not is_ending

    def source_length(self) -> int | None:
        """Return the `len()` of the source, if it has one."""
        try:
            return len(self._source) if isinstance(self._source, Sized) else None
        except Exception:  # of its `__len__`: the source is iterable all the same
            return None

    # -- Begin and end -----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start the feeder, before the first wait of the reader."""
        if self._feeder is not None or self.is_cancelled:
            return
        parts = self.parts
        try:
            parts.state.check_open()
            if not parts.tasks.is_open:
                await parts.tasks.wait_open()
                if self._feeder is not None or self.is_cancelled:
                    return
                parts.state.check_open()  # the pool can have closed meanwhile
        except PoolClosed:
            self._drop_source()
            raise
        parts.producers.add(self)
        self._feeder = parts.tasks.spawn(self._feed, name=f"{parts.state.name} feeder", context=self.context.copy())
        self._feeder.add_done_callback(self._feeder_is_done)

    def stop(self, error: PoolError, /) -> None:
        """Pull no more, because the pool closes."""
        if self.intake_is_open and self._end is None:
            self._end = error
        self._stop_feeding()

    def end_intake(self) -> None:
        """Take no more jobs, and pull no more."""
        super().end_intake()
        self._stop_feeding()

    async def aclose(self) -> None:
        """Cancel what is queued or runs, close the source, and wait for both, at most until they count as stuck."""
        await super().aclose()
        if self._is_fed():
            return
        timer = self.parts.state.loop.call_later(STUCK_AFTER, self._report_stuck_feeder)
        try:
            await self.parts.wakeups.wait_until(self._is_fed)
        finally:
            timer.cancel()

    def _is_fed(self) -> bool:
        return self._is_abandoned or self._feeder is None or self._feeder.done()

    def _report_stuck_feeder(self) -> None:
        log.warning("%s: the source is still running %g s after it was asked to stop", self.name, STUCK_AFTER)
        self.stop_waiting_for_feeder()

    def stop_waiting_for_feeder(self) -> None:
        """Do not wait for the feeder any more: it ignores its cancellation."""
        self._is_abandoned = True
        super().end_intake()
        self.parts.wakeups.notify()

    def _stop_feeding(self) -> None:
        self.is_stopped = True
        # When the feeder itself brings the job that ends the stream, it sees the flag.
        if self._interrupt is _Interrupt.POSSIBLE:
            assert self._feeder is not None
            self._interrupt = _Interrupt.REQUESTED
            self._feeder.cancel()

    def _cancel_is_served(self) -> None:
        # Taken back: a task group in the source's own cleanup would take it for its parent's, and be cancelled by it.
        self._interrupt = _Interrupt.IMPOSSIBLE
        if self._feeder is not None:
            self._feeder.uncancel()

    def _feeder_is_done(self, feeder: asyncio.Task[None]) -> None:
        if self in self.parts.producers:  # somebody cancelled it before its first step: it never ran
            self.is_stopped = True
            self._end_feeding(asyncio.CancelledError())

    def _end_feeding(self, error: BaseException | None) -> None:
        self.parts.producers.discard(self)
        if error is not None:
            has_end = self._end is not None or self.reading is Reading.FINISHED
            if self.is_cancelled or self.failed_at is not None or has_end:
                log.error(
                    "%s: the source raised this error after the stream had ended, so its reader does not get it",
                    self.name,
                    exc_info=error,
                )
            else:
                self._end = error if is_safe_to_raise(error) else SourceCrashed(error)
        super().end_intake()
        self._drop_source()
        self.parts.wakeups.notify()

    def _drop_source(self) -> None:
        source, self._source = self._source, ()  # it can be a large list
        if isinstance(source, Readable):
            source.cancel()  # a stream that was not begun does not warn, then, that nobody reads it

    # -- The task ----------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Pull jobs while there is room; at the end, whatever the end is, close the source and the intake."""
        iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        is_exhausted = False
        error: BaseException | None = None
        source: Iterable[Any] | AsyncIterable[Any] = ()
        try:
            if self._feeder is None:  # an eager task factory runs us while the task is made, or an interrupt came then
                self._feeder = asyncio.current_task()
                await asyncio.sleep(0)
            source = self._source
            if self.is_stopped:
                pass
            elif isinstance(source, AsyncIterable):
                iterator = aiter(source)
                is_exhausted = await self._feed_async(iterator)
            else:
                iterator = iter(source)
                is_exhausted = await self._feed_sync(iterator)
        except BaseException as caught:
            if is_error(caught, KeyboardInterrupt) or self.parts.state.loop.is_closed():
                raise  # the program's, or we are being collected
            if self.is_stopped and is_error(caught, asyncio.CancelledError):
                self._cancel_is_served()
            else:
                error = caught
        finally:
            self.parts.queue.line.wake_next()  # if it has its turn and does not use it
            self.is_stopped = True
        if not is_exhausted and iterator is not None:
            if self._interrupt is _Interrupt.REQUESTED:  # the source made us stop, and then gave an item
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self._cancel_is_served()
            try:
                await self._close_source(iterator)
            except BaseException as caught:
                if error is None:
                    error = caught
                else:
                    set_context(caught, error)
                    error = caught
        self._end_feeding(error)
        # The error knows this frame, and the source can be a large list
        # (test_a_failure_that_is_raised_makes_no_reference_cycle).
        del error, source, iterator

    async def _feed_sync(self, iterator: Iterator[Any]) -> bool:
        """Feed from a plain iterator; return whether it is exhausted."""
        time = self.parts.state.loop.time
        stop_at = time() + _FEED_SECONDS
        while not self.is_stopped:
            room = await self._wait_for_room()
            if self.parts.dispatcher.accept_from(iterator, room, stop_at, self):
                return True
            if time() >= stop_at:
                await self._interruptible(asyncio.sleep(0))
                stop_at = time() + _FEED_SECONDS
        return False

    async def _feed_async(self, iterator: AsyncIterator[Any]) -> bool:
        """Feed from an async iterator; return whether it is exhausted."""
        while not self.is_stopped:
            await self._wait_for_room()
            # The place goes to others while we pull: a slow source must not idle a worker. What we pull is accepted
            # past the bound if the room is gone by then, so at most one job of each stream ever is.
            self.parts.queue.line.wake_next()
            try:
                item = await self._interruptible(anext(iterator))
            except StopAsyncIteration:
                return True
            self.accept_pulled(item)
            del item  # not kept while we wait for the next
        return False

    async def _wait_for_room(self) -> int:
        """Wait until the window and the pool have room; return for how many jobs, at least 1."""
        if self.unread >= self.window:
            await self._interruptible(self.line.wait_turn())
        queue = self.parts.queue
        if queue.full():
            await self._interruptible(queue.line.wait_turn())
        if queue.full():
            return 1  # others wait behind us: one each, in turn
        return max(1, min(self.window - self.unread, queue.room(), _FEED_JOBS))

    def accept_pulled(self, input: Any, /) -> Job:
        """Accept what was pulled, whatever has happened: no pulled input is ever in nobody's hands."""
        parts = self.parts
        self.live += 1
        # An input that its reader has given up is not handed back, even if the pool closes at the same time.
        is_given_up = self.is_cancelled or self.failed_at is not None
        reason = CancelReason.STREAM if is_given_up else CancelReason.SHUTDOWN
        try:
            job = parts.dispatcher.accept(input, self, self.context.copy(), if_closed=reason)
        except BaseException as error:  # of the priority function, or of comparing its keys
            job = self.refuse_pulled(input, error)
            if is_error(error, KeyboardInterrupt):
                raise
        self.expect(job)
        if self.is_cancelled or self.failed_at is not None:
            parts.cancellation.cancel(job, CancelReason.STREAM)
        return job

    def refuse_pulled(self, input: Any, error: BaseException) -> Job:
        """Return a job that failed with this error, for an input that was pulled and could not be accepted."""
        parts, now = self.parts, self.parts.state.time()
        job = new_job(input, parts.ledger.submitted + 1, self, self.context, now)
        parts.ledger.refuse(job, error, now)
        parts.queue.line.wake_next()  # its place goes to the next
        return job

    async def _interruptible(self, awaitable: Awaitable[T]) -> T:
        """Await something that `_stop_feeding` can cancel."""
        if self._interrupt is _Interrupt.IMPOSSIBLE:  # otherwise a cancellation is still to come
            self._interrupt = _Interrupt.POSSIBLE
        try:
            return await awaitable
        finally:
            if self._interrupt is _Interrupt.POSSIBLE:
                self._interrupt = _Interrupt.IMPOSSIBLE

    @staticmethod
    async def _close_source(iterator: Iterator[Any] | AsyncIterator[Any]) -> None:
        """Close a generator or stream that was not exhausted, so that pipelines stop upstream; nothing else is ours."""
        if isinstance(iterator, AsyncIterator):
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()
        elif isinstance(iterator, Generator):
            iterator.close()
