"""Finds waits that can never end: when every worker runs a job that waits for its own pool.

Only waits for the same pool are seen; a cycle over two pools is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asyncpool._job import CURRENT_JOB, Job, JobOwner
from asyncpool.errors import PoolDeadlock

__all__ = ["Waits"]


# A deadlock stays; so one that comes up without a new wait may be found a little later, in seconds.
_RECHECK_AFTER = 0.1


class Waits:
    """The waits of a pool's running jobs for this pool, in the order in which they began."""

    __slots__ = ("_most", "_owner", "_pending", "_running")

    def __init__(self, owner: JobOwner, *, running: Callable[[], int], most: Callable[[], int]) -> None:
        self._owner = owner
        self._running = running
        self._most = most
        self._pending: dict[asyncio.Future[Any], Job] = {}

    async def wait(self, future: asyncio.Future[Any]) -> None:
        """Wait for a future of the pool. Cancel-safe if the future's owner is.

        Raises:
            PoolDeadlock: The caller is a job of this pool (or a task that one spawned), all workers run jobs that
                wait like this, and this wait is the newest.
        """
        job = CURRENT_JOB.get(None)
        if job is None or job.owner is not self._owner or not job.is_running:
            await future
            return
        self._pending[future] = job
        try:
            self.check()
            await future
        finally:
            self._pending.pop(future, None)
            if job in self._pending.values() and len(self._pending) >= self._most():
                # It counted as awake until now, and may only go back to another wait. Not at once: what has woken it
                # may yet make it give up the other.
                self._owner.loop.call_later(_RECHECK_AFTER, self.check)

    def check(self) -> None:
        """End the newest wait with `PoolDeadlock` if no job that runs can go on.

        To be called when a wait begins, and when a worker goes that could have taken another job.
        """
        most = self._most()
        if len(self._pending) < most:
            return
        # A job that was woken goes on as soon as the loop lets it: it blocks nobody, whatever else it waits for.
        blocked = {job for job in self._pending.values() if job.is_running}
        blocked -= {job for future, job in self._pending.items() if future.done()}
        running = self._running()
        if len(blocked) < max(most, running):
            return
        newest = next(future for future, job in reversed(self._pending.items()) if job in blocked)
        del self._pending[newest]
        newest.set_exception(
            PoolDeadlock(
                f"pool {self._owner.name!r}: all {running} running jobs (of at most {most} at a time) wait for this "
                "same pool; this wait, the newest, was ended so that the others can go on"
            )
        )
