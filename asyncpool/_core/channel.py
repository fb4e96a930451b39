"""Delivers outcomes from the workers to one reader: a bounded buffer, in order of completion or of submission.

Who brings the jobs is `feeder.py` and `asyncpool/groups.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from enum import Enum
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast

from asyncpool._core.job import Job, Waiters
from asyncpool._core.parts import Parts
from asyncpool._core.state import Phase
from asyncpool._core.wakeups import WaitLine, wake
from asyncpool._guard import describe, is_error
from asyncpool._logs import log
from asyncpool.errors import PoolClosed, StreamClosed
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded

__all__ = ["Channel", "Cursor", "Readable", "Reading", "Tracker", "channel_of"]

ItemT_co = TypeVar("ItemT_co", covariant=True)
ChannelT = TypeVar("ChannelT", bound="Channel[Any]")

_LOOK_AGAIN_AFTER = 1.0  # seconds


class Reading(Enum):
    """How far the reader of a channel is."""

    NEW = "not read yet"
    READING = "being read"
    CANCELLED = "cancelled"
    FINISHED = "read to its end"


class Tracker(Protocol):
    """What counts the outcomes that a reader takes, and shows them."""

    def open_cursor(self, channel: Channel[Any], /) -> Cursor[Any]:
        """Return the cursor of the channel, which counts."""
        ...

    def left_out(self, outcome: Outcome[Any, Any], /) -> None:
        """Count an outcome that the reader does not get, although the stream goes on."""
        ...

    def end(self) -> None:
        """Stop showing: no more outcomes are read. Can be called again. Raises no error of the display."""
        ...


class Channel(Generic[ItemT_co]):
    """Jobs that belong together, and the one reader of their outcomes.

    The window bounds the jobs that are accepted and not read, so that a slow reader slows the intake, and never a
    worker: a worker that delivers always finds room. Delayed jobs do not count, or a few long backoffs would leave all
    workers idle; `max_delayed` bounds them. A window that was asked for counts them too
    (test_a_window_that_was_asked_for_holds_delayed_jobs_too).

    `raises` makes it a channel of values, which ends with the first job that did not succeed.
    """

    waiters: Waiters | None = None  # nobody waits for one of its jobs alone

    def __init__(self, parts: Parts, *, ordered: bool, raises: bool, window: int | None, what: str) -> None:
        self.parts = parts
        self.ready: deque[Outcome[Any, Any]] = deque()  # what the reader can take
        # If ordered: the jobs whose outcomes are not yet ready, from the first.
        self.in_order: deque[Job] | None = deque() if ordered else None
        self.raises = raises
        self.name = f"{what} of pool {parts.state.name!r}"
        self._window = window
        # Accepted and not settled. No end is reported before it is 0 (tests/laws: a_stream_meets_the_end_of_its_pool).
        self.live: int = 0
        self._delayed = 0  # of those, how many are delayed
        # Settled jobs whose outcomes are kept back, and delivered later; None: each is delivered when it is settled.
        self.held: set[Job] | None = None
        self._has_stuck = False  # whether a job has ever ignored its cancellation, so that more may be live at the end
        self.line = WaitLine(self._room)
        self.reading = Reading.NEW
        self.is_cancelled = False  # whether nobody will read what is still to come; FINISHED can follow CANCELLED
        self._reader: asyncio.Future[None] | None = None
        self.intake_is_open = True
        # The number of the job after which all others are cancelled: of a channel of values, the first that failed.
        self.failed_at: int | None = None
        self._end: BaseException | None = None  # what the reader gets after the last outcome
        self._failure: Outcome[Any, Any] | None = None  # what a channel of values ended with
        self.tracker: Tracker | None = None  # set before the reader comes
        self.passed_over = 0  # inputs that need no job, because a journal has them
        self.given = 0  # outcomes without a job, because a journal has their values

    @property
    def window(self) -> int:
        """How many jobs can be accepted and not read."""
        return self.parts.queue.window if self._window is None else self._window

    @property
    def unread(self) -> int:
        """How many jobs are accepted and not read; without those that are delayed, unless the window was asked for."""
        unread = (self.live if self.in_order is None else len(self.in_order)) + len(self.ready)
        return unread - self._delayed if self._window is None else unread

    def _room(self) -> int:
        return self.window - self.unread

    # -- The side of the jobs ----------------------------------------------------------------------------------------

    def expect(self, job: Job) -> None:
        """Note a job that was just accepted for this channel."""
        if self.in_order is None:
            return
        self.in_order.append(job)
        if job.outcome is not None:  # it was refused, or the pool is closed
            self._move_to_ready(self.in_order)
            self._wake_reader()

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Take a job's outcome in.

        A channel that does something between the two, as the journal's does, keeps the job in `held`, and calls this
        later. Until then the job is live.
        """
        self.live -= 1
        if self.is_cancelled:
            if isinstance(outcome, Failed):
                self.parts.ledger.count_unread((outcome,))
            return
        if self.in_order is None:
            self.ready.append(outcome)
        else:
            self._move_to_ready(self.in_order)
        if self.raises and not isinstance(outcome, Succeeded):
            self._fail_from(job, outcome)
        if self._reader is not None and self.ready:
            self._wake_reader()

    def drop(self, job: Job) -> None:
        """Do not deliver the outcome of this job."""
        self.live -= 1
        if self.in_order is not None:
            if job in self.in_order:
                self.in_order.remove(job)
            self._move_to_ready(self.in_order)
        self._wake_reader()

    def on_delayed(self, change: int, /) -> None:
        """Note that one more of the jobs is delayed, or one less."""
        self._delayed += change
        if self.line.waiting:
            self.line.wake_next()

    def on_stuck(self, job: Job, /) -> None:
        """Wait for this job no more, if its end is all that is waited for."""
        self._has_stuck = True
        self.parts.wakeups.notify()

    def _move_to_ready(self, jobs: deque[Job]) -> None:
        while jobs and (outcome := jobs[0].outcome) is not None and (self.held is None or jobs[0] not in self.held):
            jobs.popleft()
            self.ready.append(outcome)

    def _fail_from(self, failed: Job, outcome: Outcome[Any, Any]) -> None:
        """End the channel with this job: take no more, and cancel those that would not be read."""
        if self.failed_at is not None and (self.in_order is None or failed.number > self.failed_at):
            return  # it is one of those that are cancelled already, or just now
        # If the end of the pool caused it, it is the end of the others too: their inputs are to be handed back.
        is_shutdown = isinstance(outcome, Cancelled) and outcome.reason is CancelReason.SHUTDOWN
        is_first, self.failed_at = self.failed_at is None, failed.number
        if is_shutdown and not is_first:
            return  # all are cancelled anyway: looking at all of them for each would take quadratic time
        self.end_intake()
        self.parts.cancellation.cancel_where(
            lambda job: job.sink is self and (self.in_order is None or job.number > failed.number),
            CancelReason.SHUTDOWN if is_shutdown else CancelReason.STREAM,
        )

    def end_intake(self) -> None:
        """Take no more jobs: the end comes when what was taken is read."""
        self.intake_is_open = False
        self._wake_reader()

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            wake(reader)

    # -- The side of the reader --------------------------------------------------------------------------------------

    def open_cursor(self) -> Cursor[ItemT_co]:
        """Return the one cursor of the channel."""
        if self.reading is Reading.CANCELLED:
            raise self.cancelled_error()
        if self.reading is not Reading.NEW:
            raise StreamClosed(f"{self.name} already has a reader, or had one: it can be read only once")
        self.reading = Reading.READING
        return Cursor(self) if self.tracker is None else self.tracker.open_cursor(self)

    async def wait_for_news(self) -> None:
        """Wait until there may be an outcome that is ready, or raise the end.

        Cancel-safe: nothing is taken, and no end is reported, before the wait is over.
        """
        await self.begin()
        if self.reading is Reading.CANCELLED and self._failure is None:
            raise self.cancelled_error()
        if self.reading is not Reading.READING or self.is_exhausted():
            await self.finish()
            self.raise_end()
        if self._reader is not None:
            raise StreamClosed(f"{self.name} has one reader, and another task is already waiting for it")
        self._reader = reader = self.parts.state.loop.create_future()
        try:
            # What is held comes by itself: a wait for that is no part of a deadlock.
            await (reader if self.held else self.parts.deadlock.wait(reader))
        finally:
            if self._reader is reader:
                self._reader = None
            del reader  # a PoolDeadlock is in it, and knows this frame

    def is_exhausted(self) -> bool:
        """Whether the reader has got all that it will get."""
        return not (self.intake_is_open or self.unread or self.live)

    def raise_end(self) -> NoReturn:
        """Raise the end to the reader, once, and drop it: the error gets to know the frames of the reader, and they
        lead to this channel (test_a_failure_that_is_raised_makes_no_reference_cycle).
        """
        if self.reading is Reading.FINISHED:
            raise StreamClosed(f"{self.name} has already been read to its end")
        self.reading = Reading.FINISHED
        failure, self._failure = self._failure, None
        end, self._end = self._end, None
        try:
            if failure is not None:
                failure.unwrap()
            raise StopAsyncIteration if end is None else end
        finally:
            del failure, end

    def end_with(self, outcome: Outcome[Any, Any]) -> None:
        """Make this outcome the last: the reader gets its error, and nothing after it."""
        self._failure = outcome
        self.cancel()

    async def begin(self) -> None:
        """Called before each wait of the reader, so also before the first."""

    def source_length(self) -> int | None:
        """Return how many inputs there will be, if that is known."""
        return None

    async def finish(self) -> None:
        """Called before the end is reported to the reader; again if it was cancelled."""

    # -- Early ends --------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End the channel at once: take no more, cancel what is queued or runs, count the failures that are unread."""
        if self.reading in (Reading.CANCELLED, Reading.FINISHED):
            return
        self.reading = Reading.CANCELLED
        self.is_cancelled = True
        if self._end is not None and not is_error(self._end, PoolClosed):
            log.error("%s was closed before its reader got this error of its source", self.name, exc_info=self._end)
        self.end_intake()
        self.line.close(self.cancelled_error)
        outcomes = self._take_outcomes()
        self.parts.ledger.count_unread(_failures(outcomes))
        self.parts.cancellation.drop(outcomes)
        del outcomes
        self.parts.cancellation.cancel_where(lambda job: job.sink is self, CancelReason.STREAM)
        if self.tracker is not None:
            self.tracker.end()

    def _take_outcomes(self) -> list[Outcome[Any, Any]]:
        """Empty the buffer, and return what was in it."""
        held = self.held or ()  # they are still to be delivered
        jobs = (job for job in self.in_order or () if job not in held)
        outcomes = [*self.ready, *(job.outcome for job in jobs if job.outcome is not None)]
        self.ready.clear()
        if self.in_order is not None:
            self.in_order.clear()
        return outcomes

    def cancel_soon(self) -> None:
        """Request the cancellation, from any thread and while the collector runs."""
        if isinstance(self._failure, Failed) and self.reading is not Reading.FINISHED:
            self.parts.ledger.note_unread((self._failure,))  # the reader was cancelled before it got the error
        if self.reading not in (Reading.CANCELLED, Reading.FINISHED) and self.parts.state.is_bound:
            try:
                self.parts.state.loop.call_soon_threadsafe(self.cancel)
            except RuntimeError:
                pass  # the loop is closed: nothing runs any more that could be cancelled

    def cancelled_error(self) -> StreamClosed:
        """Return the error for a reader or submitter that comes after the cancellation."""
        return StreamClosed(f"{self.name} was cancelled before its end")

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and wait until it has ended. Does nothing after the end.

        A job that ignores its cancellation is waited for until it is reported as stuck, after five seconds.
        Cancel-safe: what was asked to end goes on ending.
        """
        self.cancel()
        # Looked at again now and then: after a KeyboardInterrupt in the middle of a delivery, `live` is too high
        # (test_an_interrupt_at_any_line_leaves_a_pool_that_closes).
        while not self._has_ended() and self.parts.cancellation.is_waited_for(self):
            self.parts.cancellation.settle_on()
            await self.parts.wakeups.wait_until(self._has_ended, until=self.parts.state.time() + _LOOK_AGAIN_AFTER)

    def _has_ended(self) -> bool:
        """Whether no job is left that `aclose` waits for. A closed pool has no such job, whatever an interrupt left."""
        if not self.live or self.parts.state.phase is Phase.CLOSED:
            return True
        return self._has_stuck and not self.parts.cancellation.is_waited_for(self)

    def __repr__(self) -> str:
        return f"{self.name}, {self.reading.value}: {len(self.ready)} outcomes ready, {self.live} jobs to come"

    def __del__(self) -> None:
        # Nobody reads what is in the buffer now. Can run in any thread: it only schedules.
        try:
            _ = self._failure  # what `__init__` sets last
        except AttributeError:  # an interrupt came before `__init__` had ended (tests/test_finalizers.py)
            return
        failures = _failures(self._take_outcomes())
        if failures:
            self.parts.ledger.note_unread(failures)


def _failures(outcomes: Iterable[Outcome[Any, Any]]) -> list[Failed[Any]]:
    return [outcome for outcome in outcomes if isinstance(outcome, Failed)]


class Readable(Generic[ItemT_co, ChannelT]):
    """What public objects around a channel have in common: one reader iterates, and anybody can end it."""

    __slots__ = ("__weakref__", "_channel")

    def __init__(self, channel: ChannelT) -> None:
        self._channel = channel

    def __aiter__(self) -> AsyncIterator[ItemT_co]:
        cursor: Cursor[ItemT_co] = self._channel.open_cursor()
        return cursor

    def cancel(self) -> None:
        """Cancel what is queued or runs, without waiting for it; `aclose()` also waits. Safe to repeat.

        If the pool has more than 500 jobs, those that wait are settled in the next iterations of the loop. None of them
        starts.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
        """
        self._channel.parts.state.check_here()
        self._channel.cancel()

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and wait until it has ended. Does nothing after the end.

        A job that ignores its cancellation, or a source that does, is waited for five seconds, and then left to the end
        of the pool. Cancel-safe: what was asked to end goes on ending.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
        """
        self._channel.parts.state.check_here()
        await self._channel.aclose()


def channel_of(stream: object) -> Channel[Any]:
    """Return the channel of a stream or group, for what is not part of either.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(stream, Readable):
        raise TypeError(f"stream must be a stream or group of a pool, got {describe(stream)}")
    readable = cast("Readable[Any, Channel[Any]]", stream)
    return readable._channel  # pyright: ignore[reportPrivateUsage]


class Cursor(AsyncIterator[ItemT_co]):
    """The front of a channel. When it is dropped, the channel is cancelled: so leaving the loop does that, wherever the
    stream itself is held.
    """

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
                channel.line.wake_next()
            if not channel.raises:
                return outcome  # type: ignore[no-any-return]  # whoever makes a channel says what its items are
            if isinstance(outcome, Succeeded):
                return outcome.value  # type: ignore[no-any-return]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # the same
            channel.end_with(outcome)
            del outcome  # its error knows this frame when it is raised

    async def aclose(self) -> None:
        """Cancel what is queued or runs, and wait until it has ended. Does nothing after the end."""
        await self._channel.aclose()

    def __del__(self) -> None:
        # Can run in any thread, whenever the collector likes: it only schedules.
        try:
            channel = self._channel
        except AttributeError:  # an interrupt came before `__init__` had ended (tests/test_finalizers.py)
            return
        channel.cancel_soon()
