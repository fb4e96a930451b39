"""Jobs in, outcomes out, with back-pressure: `Group`, which anybody may submit to, and `Stream`, which pulls its jobs.

How outcomes reach the reader is `_channel.py`; when a job may be accepted is the pool's `Line`.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Generator, Iterable, Iterator
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

from asyncpool._checks import check_count
from asyncpool._core.channel import Channel
from asyncpool._core.dispatch import STUCK_AFTER, Dispatcher
from asyncpool._core.job import Job
from asyncpool._core.queue import Line
from asyncpool.errors import PoolClosed, PoolDeadlock, PoolError, SourceCrashed, StreamClosed, is_safe_to_raise
from asyncpool.outcomes import CancelReason, Outcome

__all__ = ["Group", "Stream"]

_log = logging.getLogger("asyncpool")

JobT = TypeVar("JobT")
ValueT_co = TypeVar("ValueT_co", covariant=True)
ItemT_co = TypeVar("ItemT_co", covariant=True)
T = TypeVar("T")

# The feeder gives the loop its turn after so many jobs, or so many seconds without a suspension.
_FEED_JOBS = 256
_FEED_SECONDS = 0.005


class Group(Channel[Outcome[JobT, ValueT_co]], Generic[JobT, ValueT_co]):
    """A results channel: submit from anywhere, and one reader iterates the outcomes. Made by `pool.group()`.

        async def produce():
            async with group:
                for job in jobs:
                    await group.submit(job)

        group = pool.group()
        producer = asyncio.create_task(produce())   # or many; submitting waits while the window is full of unread
        async for outcome in group:
            ...

    The iteration ends when the intake is closed and every outcome is read. Leaving the loop early cancels the group, as
    does leaving the block by an exception.
    """

    def __init__(self, dispatcher: Dispatcher, *, ordered: bool, window: int | None) -> None:
        super().__init__(dispatcher, ordered=ordered, raises=False, window=window, what="the group")
        if window is not None:
            check_count("window", window, least=1)
        self.feeder = None
        self._entering = 0
        self._at_the_pool: set[asyncio.Future[None]] = set()  # who waits for the pool's room
        self.line = Line(self._room, self._wait_for_window)
        self._maker = asyncio.current_task()
        self._makers_wait: asyncio.Future[None] | None = None
        self._reading_task: asyncio.Task[Any] | None = None
        dispatcher.guests[self] = None

    async def submit(self, job: JobT) -> None:
        """Submit a job whose outcome the group's reader gets.

        Waits while `window` outcomes are unread, then, as `pool.submit` does, while the pool is full; first come first
        served in both. Cancel-safe: cancelled while waiting, the job was not submitted.

        Raises:
            PoolDeadlock: The window is full, and the caller is the task that reads; or it is the task that made the
                group, and all jobs have ended while nobody has begun to read. It would wait for itself.
            PoolClosed: The pool is closing.
            StreamClosed: The group was cancelled, or its intake is closed.
        """
        self._dispatcher.check_started()
        await self.line.turn()
        # The place in the window is taken before the wait for the pool's room: there others may come before us.
        self._entering += 1
        try:
            await self._dispatcher.line.turn(self._at_the_pool)
            if not self._intake_is_open:
                raise self._intake_error()
            self._bring(job)
        except BaseException:
            # Both places go to the next; a reader may have waited for this job only.
            self._entering -= 1
            self.line.advance()
            self._dispatcher.line.advance()
            self._wake_reader()
            raise
        self._entering -= 1

    def _bring(self, input: Any) -> None:
        self.live += 1
        try:
            job = self._dispatcher.accept(input, self, copy_context())
        except BaseException:
            self.live -= 1
            raise
        self._expect(job)

    @property
    def unread(self) -> int:
        """How many jobs are accepted and not read, or have their place in the window and wait for the pool's room."""
        return super().unread + self._entering

    def close_intake(self) -> None:
        """Say that no more jobs come: the reader's iteration ends after those that were submitted.

        Whoever waits in `submit` gets `StreamClosed`. Leaving the `async with` block without an exception does this.
        """
        self._close_intake()
        self._dispatcher.guests.pop(self, None)

    def _close_intake(self) -> None:
        super()._close_intake()
        self.line.close(self._intake_error)
        for future in self._at_the_pool:
            if not future.done():
                future.set_exception(self._intake_error())

    def stop(self, error: PoolError, /) -> None:
        """Bring no more jobs, because the pool closes. For the pool."""
        if self._intake_is_open:
            self._end = error
        self.close_intake()

    def cancel(self) -> None:
        """End the group at once: cancel what is queued or runs. `aclose()` also waits for that."""
        super().cancel()
        self._dispatcher.guests.pop(self, None)

    async def __aenter__(self) -> Group[JobT, ValueT_co]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close_intake()
        else:
            await self.aclose()

    async def _begin(self) -> None:
        self._reading_task = asyncio.current_task()

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Take a job's outcome in. For the pool."""
        super().deliver(job, outcome)
        self._check_makers_wait()

    async def _wait_for_window(self, future: asyncio.Future[None]) -> None:
        task = asyncio.current_task()
        if task is self._reading_task:
            raise self._deadlock()
        if task is not self._maker or self._has_cursor:
            await self._wait_for_reader(future)
            return
        # The maker may have started a task that reads, which has not had its turn. The others that wait cannot know
        # whether the maker will read later: they wait on.
        self._makers_wait = future
        try:
            self._check_makers_wait()
            await self._wait_for_reader(future)
        finally:
            self._makers_wait = None

    async def _wait_for_reader(self, future: asyncio.Future[None]) -> None:
        # With an outcome to read, the room comes from the reader; with none, from a worker first.
        await (future if self.ready else self._dispatcher.wait(future))

    def give_up_feeder(self) -> None:
        """There is no feeder to wait for. For the pool."""

    def _check_makers_wait(self) -> None:
        waiting = self._makers_wait
        if waiting is not None and not waiting.done() and not self.live and not self._has_cursor:
            waiting.set_exception(self._deadlock())

    def _deadlock(self) -> PoolDeadlock:
        return PoolDeadlock(
            f"{self._what}: {self.unread} outcomes are unread, which is its window, and the task that waits here is "
            "the one that should read them: read in a task of its own, or give a larger window"
        )

    def _intake_error(self) -> BaseException:
        if self._end is not None:
            return self._dispatcher.closed_error()
        return self._cut_error() if self._is_cut else StreamClosed(f"{self._what} takes no more jobs")


class Stream(Channel[ItemT_co]):
    """The values or outcomes of the jobs that an iterable gives. Made by `pool.map()` and `pool.outcomes()`.

    Iterate it (`async for`), await it for a list, or use `async with` where you may leave the loop early and want to
    have left nothing running behind you. It is read once, by one reader. Nothing is pulled before the first step.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        raises: bool,
    ) -> None:
        super().__init__(dispatcher, ordered=ordered, raises=raises, window=None, what="the stream")
        if not isinstance(source, (Iterable, AsyncIterable)):
            self._is_cut = True  # nobody misses it
            raise TypeError(f"jobs must be an iterable or an async iterable, got {source!r:.80}")
        self._source: Iterable[Any] | AsyncIterable[Any] = source
        self.context = copy_context()
        self.feeder: asyncio.Task[None] | None = None
        self._is_interruptible = False
        self.is_stopped = False
        self._cancel_is_due = False
        self._is_given_up = False

    def __del__(self) -> None:
        super().__del__()
        dispatcher = self._dispatcher
        is_ending = dispatcher.is_bound and (not dispatcher.is_open or dispatcher.is_torn_down())
        if not self._has_cursor and not self._is_cut and not is_ending:
            # stacklevel: where it was dropped, as far as the interpreter knows.
            warnings.warn(f"{self._what} was never read: await or iterate it", RuntimeWarning, stacklevel=2)

    def __await__(self) -> Generator[Any, None, list[ItemT_co]]:
        """Read the whole stream into a list.

        Cancelled while waiting, or at the first failure of `map`, the stream is cancelled, and what it ran has ended
        before this raises.
        """
        return self._collect().__await__()

    async def _collect(self) -> list[ItemT_co]:
        cursor = aiter(self)  # before the block: if somebody else reads, it is not ours to close
        async with self:
            items: list[ItemT_co] = []
            async for item in cursor:  # not a comprehension: on 3.11 its frame, in a traceback, keeps the cursor alive
                items.append(item)
            return items

    async def __aenter__(self) -> Stream[ItemT_co]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what is queued or runs, close the source, and wait for both. Does nothing after the end.

        What ignores its end, a job or the source, is waited for five seconds, and then left to the end of the pool.
        Cancel-safe: what was asked to end goes on ending.
        """
        await super().aclose()
        if self.feeder is None or self.feeder.done() or self._is_given_up:
            return
        timer = self._dispatcher.loop.call_later(STUCK_AFTER, self._call_feeder_stuck)
        try:
            while not self.feeder.done() and not self._is_given_up:
                future: asyncio.Future[None] = self._dispatcher.loop.create_future()
                self._closers.append(future)
                await future
        finally:
            timer.cancel()

    def _call_feeder_stuck(self) -> None:
        _log.warning("%s: its source has not ended %g s after it was asked to", self._what, STUCK_AFTER)
        self.give_up_feeder()

    def stop(self, error: PoolError, /) -> None:
        """Pull no more, because the pool closes. For the pool."""
        if self._intake_is_open and self._end is None:
            self._end = error
        self._stop_feeding()

    # -- The feeder --------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        if self.feeder is None and not self._is_cut:
            dispatcher = self._dispatcher
            try:
                dispatcher.check_open()
            except PoolClosed:
                self._drop_source()
                raise
            dispatcher.guests[self] = None
            # In the context of the call that made the stream, as its jobs: sources read context variables too.
            self.feeder = dispatcher.loop.create_task(
                self._feed(), name=f"{dispatcher.name} feeder", context=self.context.copy()
            )
            self.feeder.add_done_callback(self._feeder_is_done)

    def _close_intake(self) -> None:
        super()._close_intake()
        self._stop_feeding()

    def _stop_feeding(self) -> None:
        self.is_stopped = True
        # Only where it waits for room or for the source. The closing of the source is not cut short, and when the
        # feeder itself brings the job that ends the stream, it sees the flag.
        if self._is_interruptible:
            assert self.feeder is not None
            self._is_interruptible = False
            self._cancel_is_due = True
            self.feeder.cancel()

    async def _feed(self) -> None:
        """Pull jobs while there is room; at the end, whatever the end is, close the source and the intake."""
        iterator: Iterator[Any] | AsyncIterator[Any] | None = None
        is_exhausted = False
        error: BaseException | None = None
        try:
            if self.feeder is None:
                await asyncio.sleep(0)  # an eager task factory runs us while the task is made
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
            if isinstance(caught, KeyboardInterrupt) or self._dispatcher.loop.is_closed():
                raise  # the program's, or we are being collected
            if self.is_stopped and isinstance(caught, asyncio.CancelledError):
                self._cancel_is_served()
            else:
                error = caught
        finally:
            self._dispatcher.line.advance()  # if it has its turn and does not use it
            self.is_stopped = True
        if not is_exhausted and iterator is not None:
            if self._cancel_is_due:  # the source itself made us stop, and then gave an item: it is still to come
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
                    caught.__context__ = error
                    error = caught
        self._end_feeding(error)

    def give_up_feeder(self) -> None:
        """Do not wait for the feeder any more: it ignores its cancellation. For the pool."""
        self._is_given_up = True
        super()._close_intake()
        self._wake_closers()

    def _cancel_is_served(self) -> None:
        # Taken back: a task group in the source's own cleanup would take it for its parent's, and be cancelled by it.
        self._cancel_is_due = False
        if self.feeder is not None:
            self.feeder.uncancel()

    def _feeder_is_done(self, feeder: asyncio.Task[None]) -> None:
        self._wake_closers()
        if self in self._dispatcher.guests:  # somebody cancelled it before its first step: it never ran
            self.is_stopped = True
            self._end_feeding(asyncio.CancelledError())

    def _drop_source(self) -> None:
        source, self._source = self._source, ()  # it may be a large list
        if isinstance(source, Channel):
            source.cancel()  # a stream that was not begun does not warn, then, that nobody reads it

    def _end_feeding(self, error: BaseException | None) -> None:
        if error is not None:
            if self._is_cut or self._failed_at is not None or self._end is not None:
                _log.error("%s: its source raised, and its reader has another end already", self._what, exc_info=error)
            else:
                self._end = error if is_safe_to_raise(error) else SourceCrashed(error)
        super()._close_intake()
        self._drop_source()
        self._dispatcher.guests.pop(self, None)
        self._dispatcher.tell_less()

    async def _feed_sync(self, iterator: Iterator[Any]) -> bool:
        """Feed from a plain iterator; return whether it is exhausted."""
        dispatcher = self._dispatcher
        time = dispatcher.loop.time
        stop_at = time() + _FEED_SECONDS
        while not self.is_stopped:
            room = await self._wait_for_room()
            if dispatcher.accept_from(iterator, room, stop_at, self):
                return True
            if time() >= stop_at:
                await self._interruptibly(asyncio.sleep(0))
                stop_at = time() + _FEED_SECONDS
        return False

    async def _feed_async(self, iterator: AsyncIterator[Any]) -> bool:
        """Feed from an async iterator; return whether it is exhausted."""
        while not self.is_stopped:
            await self._wait_for_room()
            # The place goes to others while we pull: a slow source must not idle a worker. What we pull is accepted
            # past the bound if the room is gone by then, so at most one job of each stream ever is.
            self._dispatcher.line.advance()
            try:
                item = await self._interruptibly(anext(iterator))
            except StopAsyncIteration:
                return True
            self.bring(item)
        return False

    async def _wait_for_room(self) -> int:
        """Wait until the window and the pool have room; return for how many jobs, at least 1."""
        if self.unread >= self.window:
            await self._interruptibly(self.line.turn())
        line = self._dispatcher.line
        if not line.is_free():
            await self._interruptibly(line.turn())
        if not line.is_free():
            return 1  # others wait behind us: one each, in turn
        return max(1, min(self.window - self.unread, self._dispatcher.room(), _FEED_JOBS))

    def bring(self, input: Any) -> Job:
        """Accept what was pulled, whatever has happened: no pulled input is ever in nobody's hands. For the pool."""
        self.live += 1
        try:
            job = self._dispatcher.accept(input, self, self.context.copy())
        except BaseException as error:  # of the priority function, or of comparing its keys
            job = self._dispatcher.refuse(input, self, self.context, error)
            self._dispatcher.line.advance()  # its place goes to the next
            if isinstance(error, KeyboardInterrupt):
                raise
        self._expect(job)
        if self._is_cut or self._failed_at is not None:
            self._dispatcher.cancel(job, CancelReason.STREAM)
        return job

    async def _interruptibly(self, awaitable: Awaitable[T]) -> T:
        """Await something that `_stop_feeding` may cancel."""
        self._is_interruptible = True
        try:
            return await awaitable
        finally:
            self._is_interruptible = False

    @staticmethod
    async def _close_source(iterator: Iterator[Any] | AsyncIterator[Any]) -> None:
        """Close a generator or stream that was not exhausted, so that pipelines stop upstream; nothing else is ours."""
        if isinstance(iterator, AsyncIterator):
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()
        elif isinstance(iterator, Generator):
            iterator.close()
