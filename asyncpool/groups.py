"""`Group`: a results channel that any task can submit to, while one reader iterates the outcomes.

Groups are made by `pool.group()`. To run the jobs of one iterable, see `streams.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

from asyncpool._core.channel import Channel, Readable, Reading
from asyncpool._core.job import Job
from asyncpool._core.parts import Parts
from asyncpool.errors import PoolDeadlock, PoolError, StreamClosed
from asyncpool.outcomes import Outcome

__all__ = ["Group", "Producer"]

JobT = TypeVar("JobT")
ValueT_co = TypeVar("ValueT_co", covariant=True)


class GroupChannel(Channel[Any]):
    """The channel of a group, and those that submit to it."""

    def __init__(self, parts: Parts, *, ordered: bool, window: int | None) -> None:
        super().__init__(parts, ordered=ordered, raises=False, window=window, what="the group")
        self._entering = 0  # how many have their place in the window, and wait for the pool's room
        self._at_the_pool: set[asyncio.Future[None]] = set()  # who waits for the pool's room
        self.line.wait = self._wait_for_window
        self._maker = asyncio.current_task()
        self._makers_wait: asyncio.Future[None] | None = None
        self._reading_task: asyncio.Task[Any] | None = None
        self._producers = 0  # those that were made and are not done
        self._is_stopped = False  # whether the pool closed the intake
        parts.producers.add(self)

    @property
    def unread(self) -> int:
        """How many jobs are accepted and not read, or have their place in the window."""
        return super().unread + self._entering

    async def submit(self, input: Any) -> None:
        """Wait for a place in the window, then for the pool's room, and have an input accepted. Cancel-safe."""
        parts = self.parts
        parts.state.check_started()
        await self.line.wait_turn()
        # The place in the window is taken before the wait for the pool's room: there others can come before us.
        self._entering += 1
        try:
            await parts.queue.line.wait_turn(self._at_the_pool)
            if not self.intake_is_open:
                raise self._intake_error()
            self._accept(input)
        except BaseException:
            # Both places go to the next; a reader may have waited for this job only.
            self._entering -= 1
            self.line.wake_next()
            parts.queue.line.wake_next()
            self._wake_reader()
            raise
        self._entering -= 1

    def _accept(self, input: Any) -> None:
        self.live += 1
        try:
            job = self.parts.dispatcher.accept(input, self, copy_context())
        except BaseException:
            self.live -= 1
            raise
        self.expect(job)

    def close_intake(self) -> None:
        """Take no more jobs, because no more come."""
        self.end_intake()
        self.parts.producers.discard(self)

    def add_producer(self) -> None:
        """Count a producer; the intake stays open until each is done. Raises StreamClosed if it is closed."""
        if not self.intake_is_open:
            raise self._intake_error()
        self._producers += 1

    def producer_is_done(self) -> None:
        """Count a producer that brings no more jobs; after the last one the intake is closed."""
        self._producers -= 1
        if not self._producers:
            # In the next iteration of the loop. Tasks that were made together have all had their first step then: where
            # each makes its own producer, the first does not close the intake before the second has begun.
            self.parts.state.loop.call_soon(self._close_if_produced)

    def producer_is_dropped(self) -> None:
        """Count a producer that was never entered, from any thread and while the collector runs."""
        if self.intake_is_open and self.parts.state.is_bound:
            try:
                self.parts.state.loop.call_soon_threadsafe(self.producer_is_done)
            except RuntimeError:
                pass  # the loop is closed: nobody reads any more

    def _close_if_produced(self) -> None:
        if not self._producers:
            self.close_intake()

    def end_intake(self) -> None:
        """Take no more jobs, and turn away those that wait to submit one."""
        super().end_intake()
        self.line.close(self._intake_error)
        for future in self._at_the_pool:
            if not future.done():
                future.set_exception(self._intake_error())

    def stop(self, error: PoolError, /) -> None:
        """Take no more jobs, because the pool closes."""
        if self.intake_is_open:
            self._end = error
            self._is_stopped = True
        self.close_intake()

    def stop_waiting_for_feeder(self) -> None:
        """There is no feeder."""

    def cancel(self) -> None:
        """End the group at once."""
        super().cancel()
        self.parts.producers.discard(self)

    async def begin(self) -> None:
        """Note which task reads."""
        self._reading_task = asyncio.current_task()

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Take a job's outcome in."""
        super().deliver(job, outcome)
        self._check_makers_wait()

    # -- Waits of those that should read -----------------------------------------------------------------------------

    async def _wait_for_window(self, future: asyncio.Future[None]) -> None:
        task = asyncio.current_task()
        if task is self._reading_task:
            raise self._deadlock()
        if task is not self._maker or self.reading is not Reading.NEW:
            try:
                await self._wait_for_reader(future)
            finally:
                del future  # the error is in it, and knows this frame
            return
        # The maker may have started a task that reads, which has not had its turn. The others that wait cannot know
        # whether the maker will read later: they wait on.
        self._makers_wait = future
        try:
            self._check_makers_wait()
            await self._wait_for_reader(future)
        finally:
            self._makers_wait = None
            del future

    async def _wait_for_reader(self, future: asyncio.Future[None]) -> None:
        # With an outcome to read, the room comes from the reader; with none, from a worker first.
        wait: Awaitable[None] = future if self.ready else self.parts.deadlock.wait(future)
        try:
            await wait
        finally:
            del future, wait

    def _check_makers_wait(self) -> None:
        waiting = self._makers_wait
        if waiting is not None and not waiting.done() and not self.live and self.reading is Reading.NEW:
            waiting.set_exception(self._deadlock())

    def _deadlock(self) -> PoolDeadlock:
        return PoolDeadlock(
            f"{self.name}: {self.unread} outcomes are unread, which is its window, and this task is the reader, so it "
            "would wait for itself: read in another task, or pass a larger window"
        )

    def _intake_error(self) -> BaseException:
        if self._is_stopped:
            return self.parts.state.closed_error()
        return self.cancelled_error() if self.is_cancelled else StreamClosed(f"{self.name} takes no more jobs")


class Group(Readable[Outcome[JobT, ValueT_co], GroupChannel], Generic[JobT, ValueT_co]):
    """A results channel: submit from anywhere, and one reader iterates the outcomes. Made by `pool.group()`.

        async def produce(producer, jobs):
            async with producer as group:
                for job in jobs:
                    await group.submit(job)  # waits while the window is full of unread outcomes

        group = pool.group()
        async with asyncio.TaskGroup() as tasks:
            async with group.producer():  # this task too, while it starts the others
                for part in parts:
                    tasks.create_task(produce(group.producer(), part))
            async for outcome in group:
                ...

    The iteration ends when the intake is closed and every outcome is read. The last producer closes the intake, and so
    do `close_intake()` and leaving `async with group`, which fits a group with one producer. Leaving the loop early
    cancels the group, as does leaving `async with group` by an exception.
    """

    __slots__ = ()

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
        await self._channel.submit(job)

    def producer(self) -> Producer[JobT, ValueT_co]:
        """Return a context manager for one of several producers. The last one that is left closes the intake, in the
        next iteration of the loop.

        It counts from this call on, and not only from entering it: make it before its task starts, as in the example
        above. One that is collected without having been entered no longer counts, for example that of a task that was
        cancelled before its first step, once nothing refers to the task.

        Raises:
            PoolNotStarted: The pool is not started yet.
            StreamClosed: The group was cancelled, or its intake is closed.
            PoolClosed: The pool is closing.
            WrongLoop: The caller is not on the pool's loop.
        """
        self._channel.parts.state.check_started()
        self._channel.add_producer()
        return Producer(self, self._channel)

    def close_intake(self) -> None:
        """Close the intake, because no more jobs come: the iteration ends after those that were submitted.

        Callers that wait in `submit` get `StreamClosed`. Leaving the `async with` block without an exception does this.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
        """
        self._channel.parts.state.check_here()
        self._channel.close_intake()

    async def __aenter__(self) -> Group[JobT, ValueT_co]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close_intake()
        else:
            await self.aclose()

    def __repr__(self) -> str:
        return f"<Group: {self._channel!r}>"


class Producer(Generic[JobT, ValueT_co]):
    """One of several tasks that submit to a group: `async with group.producer() as group`. Made by `Group.producer()`.

    Leaving the block means that this producer has no more jobs, also when an exception leaves it: the others go on, and
    the reader gets what was submitted. Entering and leaving do not wait. A producer can be entered once.
    """

    __slots__ = ("_channel", "_group", "_is_entered")

    def __init__(self, group: Group[JobT, ValueT_co], channel: Any) -> None:
        self._group = group
        self._channel: GroupChannel = channel
        self._is_entered = False

    async def __aenter__(self) -> Group[JobT, ValueT_co]:
        if self._is_entered:
            raise RuntimeError("a producer of a group can be entered only once: call group.producer() for each task")
        self._is_entered = True
        return self._group

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.producer_is_done()

    def __del__(self) -> None:
        # Can run in any thread, whenever the collector likes: it only schedules.
        try:
            is_entered = self._is_entered
        except AttributeError:  # an interrupt came before `__init__` had ended (tests/test_finalizers.py)
            return
        if not is_entered:
            self._channel.producer_is_dropped()
