"""Fails jobs that wait too long for their first attempt, with one timer for all of them.

`timed.py` has the dispatcher that reports which jobs start, and starts none too late.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextvars import Context

from asyncpool._core.cancellation import Cancellation
from asyncpool._core.job import Job
from asyncpool._core.state import State
from asyncpool.errors import JobExpired, Permanent

__all__ = ["QueueTimeouts"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

# At most this many per loop iteration, and no more after this many seconds, as in `timers.py`.
_BATCH = 500
_SECONDS = 0.002


class QueueTimeouts:
    """The jobs whose first attempt has not begun, wherever they wait.

    All jobs can wait equally long, so they expire in the order of acceptance, and no heap is needed. A job leaves when
    it starts or is settled, so that no job is kept alive here (test_a_job_that_has_started_is_let_go_of). The timer
    stays armed when its job has left, and is then set again for the first of those that still wait.
    """

    __slots__ = ("_cancellation", "_context", "_in_limiter", "_seconds", "_state", "_timer", "_waiting")

    def __init__(self, seconds: float, *, state: State, cancellation: Cancellation) -> None:
        self._seconds = seconds
        self._state = state
        self._cancellation = cancellation
        self._waiting: OrderedDict[Job, None] = OrderedDict()  # a dict would walk over those that have left
        self._timer: asyncio.TimerHandle | None = None
        # Jobs that hold a worker, and wait there in a context manager that is their limiter.
        self._in_limiter: dict[Job, asyncio.TimerHandle] = {}

    def open(self, context: Context) -> None:
        """Run the timer in this context from now on."""
        self._context = context

    def deadline(self, job: Job) -> float:
        """Return the loop time by which the first attempt at a job must start."""
        return job.accepted_at + self._seconds

    def is_too_late(self, job: Job, now: float) -> bool:
        """Whether a job must not start any more."""
        return job.prior is None and self.deadline(job) <= now

    def expired(self) -> JobExpired:
        """Make the error of a job that did not start in time."""
        return JobExpired(None, self._seconds)

    # -- Jobs that wait for a worker ---------------------------------------------------------------------------------

    def watch(self, job: Job) -> None:
        """Watch a job that was just accepted."""
        self._waiting[job] = None
        if self._timer is None:
            self._arm()

    def unwatch(self, job: Job) -> None:
        """Forget a job that starts, or is settled."""
        self._waiting.pop(job, None)

    def _arm(self) -> None:
        job = next(iter(self._waiting), None)
        if job is not None:
            self._timer = self._state.loop.call_at(self.deadline(job), self._fire, context=self._context.copy())

    def _fire(self) -> None:
        self._timer = None
        now = self._state.time()
        try:
            for _ in range(_BATCH):
                job = next(iter(self._waiting), None)
                if job is None or self.deadline(job) > now:
                    break
                del self._waiting[job]
                self._cancellation.fail_waiting(job, self.expired())
                if self._state.time() >= now + _SECONDS:
                    break
        finally:
            if self._timer is None:  # else an observer has submitted a job
                self._arm()

    # -- Jobs that wait in their limiter -----------------------------------------------------------------------------

    def enter_limiter(self, job: Job) -> None:
        """Watch a job that waits in a context manager. When its time is over, that wait is cancelled."""
        if job.prior is None:
            self._in_limiter[job] = self._state.loop.call_at(
                self.deadline(job), self._cancellation.request, job, self.expired()
            )

    def leave_limiter(self, job: Job) -> bool:
        """Forget such a job. Return whether there was one."""
        timer = self._in_limiter.pop(job, None)
        if timer is not None:
            timer.cancel()
        return timer is not None

    def begin(self, job: Job, now: float) -> None:
        """Note that the handler is about to be called.

        Raises:
            Permanent: The job has waited too long in its limiter, which has let it in nevertheless.
        """
        if self.leave_limiter(job) and self.is_too_late(job, now):
            raise Permanent from self.expired()

    def close(self) -> None:
        """Drop the timers. All jobs are settled."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for job in list(self._in_limiter):
            self.leave_limiter(job)
