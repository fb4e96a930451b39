"""Fails jobs whose `max_elapsed` is over while the pool is paused.

At other times the dispatcher checks a job when a worker would take it (`gated.py`), and in a pause no worker would.
"""

from __future__ import annotations

import asyncio
from contextvars import Context

from asyncpool._core.cancellation import Cancellation
from asyncpool._core.job import Job
from asyncpool._core.pauses import Pauses
from asyncpool._core.retries import Retries
from asyncpool._core.timers import TimerHeap

__all__ = ["Deadlines"]


class Deadlines:
    """The deadlines of all jobs that are not settled, while the pool is paused; outside of a pause nothing is kept.

    A pause by the rate limit of all jobs is not watched: there can be a thousand in a second.
    """

    __slots__ = ("_cancellation", "_heap", "_is_watching", "_max_elapsed", "_pauses", "_retries")

    def __init__(self, max_elapsed: float, *, pauses: Pauses, cancellation: Cancellation, retries: Retries) -> None:
        self._max_elapsed = max_elapsed
        self._pauses = pauses
        self._cancellation = cancellation
        self._retries = retries
        self._heap: TimerHeap[Job] = TimerHeap(self._expire, lambda job: job.outcome is None)
        self._is_watching = False

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._heap.open(loop, context)

    def pause_changed(self) -> None:
        """Begin to watch the jobs that there are if a pause has begun; forget them if it is over."""
        if self._pauses.is_reported is self._is_watching:
            return
        self._is_watching = not self._is_watching
        if self._is_watching:
            # Also those that run: one can come back to the queue in this very pause.
            jobs = self._cancellation.waiting_jobs() + self._cancellation.running_jobs()
            self._heap.schedule_all((job.accepted_at + self._max_elapsed, job) for job in jobs)
        else:
            self._heap.clear()

    def watch(self, job: Job) -> None:
        """Watch a job that was just accepted, if the pool is paused."""
        if self._is_watching:
            self._heap.schedule(job.accepted_at + self._max_elapsed, job)

    def close(self) -> None:
        """Drop the timer. All jobs are settled."""
        self._heap.clear()

    def _expire(self, job: Job) -> None:
        if job.worker is None:  # a running job has a timer of its own
            self._cancellation.fail_waiting(job, self._retries.expired(job))
