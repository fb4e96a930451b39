"""The completion of one submitted job: who waits for its outcome, and whether anybody has read it.

What submitters hold is a `JobHandle` (`asyncpool/jobs.py`) around it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asyncpool._core.attempt_tasks import HAS_CALL_GRAPH, link, unlink
from asyncpool._core.job import CURRENT_JOB, NULL_SINK, Job
from asyncpool._core.parts import Parts
from asyncpool._core.wakeups import wake
from asyncpool.errors import PoolDeadlock
from asyncpool.outcomes import CancelReason, Failed, Outcome

__all__ = ["Completion"]


class Completion:
    """The sink of a job that was submitted by itself, and not by a stream or group.

    A failure that nobody has read when this is dropped is counted and logged.
    """

    __slots__ = ("_is_read", "_parts", "job", "waiters")

    def __init__(self, job: Job, parts: Parts) -> None:
        self.job = job
        self._parts = parts
        self._is_read = False
        # A dict, because thousands may be cancelled at once. For each, whether it waits only for the end of a cancelled
        # job; and its task, where asyncio has links between tasks.
        self.waiters: dict[asyncio.Future[None], tuple[bool, asyncio.Task[Any] | None]] | None = None
        if job.outcome is None:  # otherwise an observer has closed the pool just now
            job.sink = self  # in time: accepting runs no job

    def cancel(self) -> bool:
        """Request the job's cancellation; return False if it is done already."""
        if self.job.outcome is not None:
            return False
        self._parts.state.check_loop()
        return self._parts.cancellation.cancel(self.job, CancelReason.HANDLE)

    def disown(self) -> None:
        """Do not count a failure that nobody reads: the owner has said that it does not matter."""
        self._is_read = True

    async def outcome(self) -> Outcome[Any, Any]:
        """Wait until the job is done, and read its outcome. Cancel-safe."""
        if self.job.outcome is None:
            await self.wait()
        self._is_read = True
        outcome = self.job.outcome
        assert outcome is not None
        return outcome

    async def value(self) -> Any:
        """Wait until the job is done, read its outcome, and return its value or raise its error. Cancel-safe."""
        try:
            if self.job.outcome is None:
                await self.wait()
            self._is_read = True
            assert self.job.outcome is not None
            return self.job.outcome.unwrap()
        finally:
            del self  # the error knows this frame, see `Failed.unwrap`

    async def wait(self, *, is_cancelled: bool = False) -> None:
        """Wait until the job is done, without reading its outcome. Cancel-safe.

        With `is_cancelled`, the wait cannot deadlock, because the job has been cancelled; if the job ignores that, the
        wait ends when it is reported as stuck.
        """
        job, parts = self.job, self._parts
        if job.outcome is not None or (is_cancelled and parts.cancellation.is_stuck(job)):
            return
        parts.state.check_loop()
        if CURRENT_JOB.get(None) is job:
            raise PoolDeadlock(
                f"job {job.number} of pool {parts.state.name!r} would wait for itself: it awaits its own handle"
            )
        future: asyncio.Future[None] = parts.state.loop.create_future()
        waiters = self.waiters
        if waiters is None:
            waiters = self.waiters = {}
        waiter = asyncio.current_task() if HAS_CALL_GRAPH else None
        waiters[future] = is_cancelled, waiter
        if waiter is not None and job.task is not None:
            link(job.task, waiter)
        try:
            await (future if is_cancelled else parts.deadlock.wait(future, job))
        finally:
            waiters.pop(future, None)
            if waiter is not None and job.task is not None:
                unlink(job.task, waiter)
            del future  # a PoolDeadlock is in it, and knows this frame

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Wake all waiters."""
        job.sink = NULL_SINK  # we refer to the job: kept, it would be a cycle
        waiters, self.waiters = self.waiters, None
        if waiters is not None:
            for future in waiters:
                wake(future)

    def on_delayed(self, change: int, /) -> None:
        """Nothing to do."""

    def on_stuck(self, job: Job, /) -> None:
        """Wake those that wait only for the end of the cancelled job."""
        for future, (is_cancelled, _) in (self.waiters or {}).items():
            if is_cancelled:
                wake(future)

    def __del__(self) -> None:
        # Can run in any thread, whenever the collector likes. So it only schedules.
        try:
            job, is_read = self.job, self._is_read
        except AttributeError:  # an interrupt came before `__init__` had ended (tests/test_finalizers.py)
            return
        if not is_read and isinstance(job.outcome, Failed):
            self._parts.ledger.note_unread((job.outcome,))
