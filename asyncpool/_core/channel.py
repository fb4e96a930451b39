"""The way of outcomes from the workers to one reader: a bounded buffer, in order of completion or of submission.

Who brings the jobs is `streams.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from asyncpool._core.dispatch import Dispatcher
from asyncpool._core.job import Job
from asyncpool._core.queue import Line
from asyncpool.errors import PoolClosed, StreamClosed
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded

__all__ = ["Channel", "Cursor"]

_log = logging.getLogger("asyncpool")

ItemT_co = TypeVar("ItemT_co", covariant=True)


class Channel(Generic[ItemT_co]):
    """Jobs that belong together, and the one reader of their outcomes.

    The window bounds the jobs that are accepted and not yet read, so that a slow reader slows the intake, and never
    a worker: a worker that delivers finds room always. Jobs that wait for a time are not in it, or a few that wait long
    would idle all workers: what bounds those is `max_delayed`. A window that was asked for holds them too.

    `raises` makes it a channel of values, which ends with the first job that did not succeed.
    """

    def __init__(self, dispatcher: Dispatcher, *, ordered: bool, raises: bool, window: int | None, what: str) -> None:
        self._dispatcher = dispatcher
        self.ready: deque[Outcome[Any, Any]] = deque()  # what the reader may have
        # If ordered: the jobs whose outcomes are not yet ready, from the first.
        self.in_order: deque[Job] | None = deque() if ordered else None
        self.raises = raises
        self._what = f"{what} of pool {dispatcher.name!r}"
        self._window = window
        self.live = 0  # accepted and not settled
        self._delayed = 0  # of those, how many wait for a time
        self._has_stuck = False  # whether some job ever ignored its cancellation, so that more may be live at the end
        self.line = Line(self._room)
        self._has_cursor = False
        self._reader: asyncio.Future[None] | None = None
        self._closers: list[asyncio.Future[None]] = []
        self._intake_is_open = True
        self._is_cut = False
        self._failed_at: int | None = None  # of a channel of values: the number of the first job that failed
        self._is_over = False  # the reader was told the end, or the error that was it
        self._end: BaseException | None = None  # what the reader gets after the last outcome
        self._failure: Outcome[Any, Any] | None = None  # what a channel of values ended with

    @property
    def window(self) -> int:
        """How many jobs may be accepted and not read."""
        return self._dispatcher.window if self._window is None else self._window

    @property
    def unread(self) -> int:
        """How many jobs are accepted and not read; without those that are delayed, unless the window was asked for."""
        unread = (self.live if self.in_order is None else len(self.in_order)) + len(self.ready)
        return unread - self._delayed if self._window is None else unread

    def _room(self) -> int:
        return self.window - self.unread

    # -- The side of the jobs ----------------------------------------------------------------------------------------

    def _expect(self, job: Job) -> None:
        if self.in_order is None:
            return
        self.in_order.append(job)
        if job.outcome is not None:  # it was refused, or the pool is closed
            self._move_to_ready(self.in_order)
            self._wake_reader()

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Take a job's outcome in. For the pool."""
        self.live -= 1
        if self._is_cut:
            if isinstance(outcome, Failed):
                self._dispatcher.count_unread((outcome,))
            if not self.live or self._has_stuck:
                self._wake_closers()
            return
        if self.in_order is None:
            self.ready.append(outcome)
        else:
            self._move_to_ready(self.in_order)
        if self.raises and not isinstance(outcome, Succeeded):
            self._fail_from(job, outcome)
        if self._reader is not None and self.ready:
            self._wake_reader()

    def count_delayed(self, change: int, /) -> None:
        """Be told that one more of the jobs waits for a time, or one less. For the pool."""
        self._delayed += change
        if self.line.waiting:
            self.line.advance()

    def _move_to_ready(self, jobs: deque[Job]) -> None:
        while jobs and (outcome := jobs[0].outcome) is not None:
            jobs.popleft()
            self.ready.append(outcome)

    def _fail_from(self, failed: Job, outcome: Outcome[Any, Any]) -> None:
        """End the channel with this job: take no more, and cancel those that would not be read."""
        if self._failed_at is not None and (self.in_order is None or failed.number > self._failed_at):
            return  # it is one of those that are cancelled already, or just now
        self._failed_at = failed.number
        self._close_intake()
        # If the pool's end is what began it, it is the end of the others too: their inputs are to be handed back.
        is_shutdown = isinstance(outcome, Cancelled) and outcome.reason is CancelReason.SHUTDOWN
        self._dispatcher.cancel_where(
            lambda job: job.sink is self and (self.in_order is None or job.number > failed.number),
            CancelReason.SHUTDOWN if is_shutdown else CancelReason.STREAM,
        )

    def _close_intake(self) -> None:
        """Take no more jobs: the end comes when what was taken is read."""
        self._intake_is_open = False
        self._wake_reader()

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    # -- The side of the reader --------------------------------------------------------------------------------------

    def __aiter__(self) -> Cursor[ItemT_co]:
        if self._has_cursor:
            raise StreamClosed(f"{self._what} is read by one reader, once")
        if self._is_cut:
            raise self._cut_error()
        self._has_cursor = True
        return Cursor(self)

    async def wait_for_news(self) -> None:
        """Wait until there may be an outcome that is ready, or raise the end. For the cursor.

        Cancel-safe: nothing is taken, and no end is told, before the wait is over.
        """
        await self._begin()
        if self._is_over:
            raise StreamClosed(f"{self._what} has been read to its end")
        if self._failure is not None:
            await self._finish()
            self._is_over = True
            self._failure.unwrap()
        if self._is_cut:
            raise self._cut_error()
        if not self._intake_is_open and not self.unread and not self.live:
            await self._finish()
            self._is_over = True
            raise StopAsyncIteration if self._end is None else self._end
        if self._reader is not None:
            raise StreamClosed(f"{self._what} is read by one reader, and another waits already")
        self._reader = reader = self._dispatcher.loop.create_future()
        try:
            await self._dispatcher.wait(reader)
        finally:
            if self._reader is reader:
                self._reader = None

    def end_with(self, outcome: Outcome[Any, Any]) -> None:
        """Make this outcome the last: the reader gets its error, and nothing after it. For the cursor."""
        self._failure = outcome
        self.cancel()

    async def _begin(self) -> None:
        """Called before each wait of the reader, so also before the first."""

    async def _finish(self) -> None:
        """Called before the reader is told the end; again if it was cancelled."""

    # -- Early ends --------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End the channel at once: take no more, cancel what is queued or runs, count the failures that are unread."""
        if self._is_cut or self._is_over:
            return
        self._is_cut = True
        if self._end is not None and not isinstance(self._end, PoolClosed):
            _log.error("%s was left before it could tell that its source raised", self._what, exc_info=self._end)
        self._close_intake()
        self.line.close(self._cut_error)
        self._dispatcher.count_unread(self._take_failures())
        self._dispatcher.cancel_where(lambda job: job.sink is self, CancelReason.STREAM)

    def _take_failures(self) -> list[Failed[Any]]:
        """Empty the buffer, and return the failures that were in it."""
        outcomes = [*self.ready, *(job.outcome for job in self.in_order or ())]
        self.ready.clear()
        if self.in_order is not None:
            self.in_order.clear()
        return [outcome for outcome in outcomes if isinstance(outcome, Failed)]

    def cut_soon(self) -> None:
        """Ask for the cancellation, from any thread and while the collector runs."""
        if isinstance(self._failure, Failed) and not self._is_over:  # the reader was cancelled before he was told
            self._dispatcher.note_unread(self._failure)
        if not self._is_cut and not self._is_over and self._dispatcher.is_bound:
            try:
                self._dispatcher.loop.call_soon_threadsafe(self.cancel)
            except RuntimeError:
                pass  # the loop is closed: nothing runs any more that could be cancelled

    def _cut_error(self) -> StreamClosed:
        return StreamClosed(f"{self._what} was cancelled before its end")

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and wait until it has ended. Does nothing after the end.

        A job that ignores its cancellation is waited for until it is called stuck, after five seconds. Cancel-safe:
        what was asked to end goes on ending.
        """
        self.cancel()
        while self.live and self._dispatcher.is_waited_for(self):
            future: asyncio.Future[None] = self._dispatcher.loop.create_future()
            self._closers.append(future)
            await future

    def give_up_job(self, job: Job, /) -> None:
        """Wait for this job no more, if all that is waited for is its end. For the pool."""
        self._has_stuck = True
        self._wake_closers()

    def _wake_closers(self) -> None:
        closers, self._closers = self._closers, []
        for future in closers:
            if not future.done():
                future.set_result(None)

    def __del__(self) -> None:
        # Nobody reads what is in the buffer now. May run in any thread: it asks, and does nothing itself.
        for failed in self._take_failures():
            self._dispatcher.note_unread(failed)


class Cursor(AsyncIterator[ItemT_co]):
    """The front of a channel, whose death cancels it: so that leaving the loop does, wherever the stream is held."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel[ItemT_co]) -> None:
        self._channel = channel

    def __aiter__(self) -> Cursor[ItemT_co]:
        return self

    async def __anext__(self) -> ItemT_co:
        """Return the next item. Cancel-safe: nothing is lost, and the stream stays open."""
        channel = self._channel
        ready = channel.ready
        while True:
            if not ready:
                try:
                    await channel.wait_for_news()
                except BaseException:
                    del self  # or the traceback, if somebody keeps it, keeps the cursor alive, and so the stream
                    raise
                continue
            outcome: Any = ready.popleft()
            if channel.line.waiting:
                channel.line.advance()
            if not channel.raises:
                return outcome  # type: ignore[no-any-return]  # whoever makes a channel says what its items are
            if isinstance(outcome, Succeeded):
                return outcome.value  # type: ignore[no-any-return]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # the same
            channel.end_with(outcome)

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and wait until it has ended. Does nothing after the end."""
        await self._channel.aclose()

    def __del__(self) -> None:
        # May run in any thread, whenever the collector likes: so it asks the loop, and does nothing itself.
        self._channel.cut_soon()
