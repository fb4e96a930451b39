"""Finds waits that can never end: when every worker runs a job that waits for its own pool.

Only waits for the same pool are seen; a cycle over two pools is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asyncpool._core.job import CURRENT_JOB, Job, JobOwner
from asyncpool.errors import PoolDeadlock

__all__ = ["Waits"]


# A deadlock stays; so one that comes up without a new wait may be found a little later, in seconds.
_RECHECK_AFTER = 0.1


class Waits:
    """The waits of a pool's running jobs for this pool, in the order in which they began."""

    __slots__ = (
        "_may_end_by_itself",
        "_may_grow",
        "_most",
        "_needs_worker",
        "_on_all_waiting",
        "_owner",
        "_pending",
        "_recheck_timer",
        "_running",
        "_waits_of",
    )

    def __init__(
        self,
        owner: JobOwner,
        *,
        running: Callable[[], int],
        most: Callable[[], int],
        may_end_by_itself: Callable[[], bool],
        needs_worker: Callable[[], bool],
        on_all_waiting: Callable[[], None],
        may_grow: Callable[[], bool],
    ) -> None:
        self._owner = owner
        # Whether some wait for a thing that comes with time: then nothing is told yet, and `check` is called again.
        self._may_end_by_itself = may_end_by_itself
        # Whether no worker is there or comes for another job, and the policy may want one.
        self._needs_worker = needs_worker
        # Called when no job that runs can go on, and there may be more workers.
        self._on_all_waiting = on_all_waiting
        # Asked where there may not: whether that is known only later, when `check` is called again, and is final.
        self._may_grow = may_grow
        self._running = running
        self._most = most
        self._pending: dict[asyncio.Future[Any], Job] = {}
        self._waits_of: dict[Job, int] = {}  # how many of the pending are whose; nobody has 0
        self._recheck_timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future[Any]) -> None:
        """Wait for a future of the pool. Cancel-safe if the future's owner is.

        Raises:
            PoolDeadlock: The caller is a job of this pool (or a task that one spawned), all workers run jobs that
                wait like this, and this wait is the newest.
        """
        job = CURRENT_JOB.get(None)
        if job is None or not job.runs_in(self._owner):
            await future
            return
        self._pending[future] = job
        self._waits_of[job] = self._waits_of.get(job, 0) + 1
        try:
            self.check()
            await future
        finally:
            self._forget(future)
            if job in self._waits_of and self._may_be_dead() and self._recheck_timer is None:
                # It counted as awake until now, and may only go back to another wait. Not at once: what has woken it
                # may yet make it give up the other.
                self._recheck_timer = self._owner.loop.call_later(_RECHECK_AFTER, self._recheck)

    def check(self, *, is_final: bool = False) -> None:
        """End the newest wait with `PoolDeadlock` if no job that runs can go on.

        To be called when a wait begins, and when a worker goes that could have taken another job.
        """
        if len(self._waits_of) < self._running() or self._may_end_by_itself():
            return
        most, running = self._most(), self._running()
        if running < most and not self._needs_worker():
            return  # before the count, which takes as long as there are waits
        blocked = self._blocked()
        if len(blocked) < running or not blocked:
            return
        if running < most:
            self._on_all_waiting()
            return
        if not is_final and self._may_grow():
            return
        newest = next(future for future, job in reversed(self._pending.items()) if job in blocked)
        self._forget(newest)
        newest.set_exception(
            PoolDeadlock(
                f"pool {self._owner.name!r}: all {running} running jobs (of at most {most} at a time) wait for this "
                "same pool; this wait, the newest, was ended so that the others can go on"
            )
        )

    def blocked(self) -> int:
        """How many running jobs wait for this pool, and were not woken yet."""
        return len(self._blocked()) if self._waits_of else 0

    def _blocked(self) -> set[Job]:
        # A job that was woken goes on as soon as the loop lets it: it blocks nobody, whatever else it waits for.
        blocked = {job for job in self._waits_of if job.is_running}
        blocked -= {job for future, job in self._pending.items() if future.done()}
        return blocked

    def _may_be_dead(self) -> bool:
        return len(self._waits_of) >= self._running() and not self._may_end_by_itself()

    def _recheck(self) -> None:
        self._recheck_timer = None
        self.check()

    def close(self) -> None:
        """Look no more: the pool is closed."""
        if self._recheck_timer is not None:
            self._recheck_timer.cancel()

    def _forget(self, future: asyncio.Future[Any]) -> None:
        job = self._pending.pop(future, None)
        if job is not None:
            self._waits_of[job] -= 1
            if not self._waits_of[job]:
                del self._waits_of[job]
