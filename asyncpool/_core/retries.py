"""What follows from a failed attempt: whether and when the job runs again, and where it waits until then.

The policy is `asyncpool/retry.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

from asyncpool._chance import chance
from asyncpool._core.breaking import Breaking
from asyncpool._core.job import Job, PriorAttempts, Worker
from asyncpool._core.ledger import Ledger
from asyncpool._core.load import Load
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.scaler import Scaler
from asyncpool._core.state import State
from asyncpool._core.timers import TimerHeap
from asyncpool._core.wakeups import Wakeups
from asyncpool._guard import add_note, describe, is_error, set_cause
from asyncpool._logs import is_logged, log
from asyncpool.errors import ErrorFilter, JobExpired, RetryAdvice, matches, pauses_in
from asyncpool.events import JobRetrying, Observers
from asyncpool.outcomes import Failed
from asyncpool.retry import Retry, RetryTally, seconds_advised

__all__ = ["Again", "Retries"]


class Again(NamedTuple):
    """A failed job has another attempt."""

    seconds: float
    """The backoff before it."""
    is_charged: bool = True
    """Whether the attempt that failed counts as one of the job's attempts."""


class Retries:
    """One pool's use of a retry policy: its budget, and the jobs that wait for their next attempt.

    Without a policy nothing is retried, but a failed attempt can still recycle a resource or pause the pool, and a
    breaker can put its job back.
    """

    __slots__ = (
        "_breaking",
        "_budget",
        "_ledger",
        "_load",
        "_observers",
        "_on_spoiled",
        "_pauses",
        "_policy",
        "_queue",
        "_recycle_on",
        "_scaler",
        "_state",
        "_wakeups",
        "backing_off",
    )

    def __init__(
        self,
        policy: Retry | None,
        budget: RetryTally | None,
        *,
        recycle_on: ErrorFilter,
        on_spoiled: Callable[[], None],
        state: State,
        ledger: Ledger,
        observers: Observers,
        wakeups: Wakeups,
        queue: JobQueue,
        pauses: Pauses,
        load: Load,
        scaler: Scaler,
        backing_off: TimerHeap[Job],
        breaking: Breaking | None,
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._recycle_on = recycle_on
        self._on_spoiled = on_spoiled  # called when a failure has spoiled a resource
        self._state = state
        self._ledger = ledger
        self._observers = observers
        self._wakeups = wakeups
        self._queue = queue
        self._pauses = pauses
        self._load = load
        self._scaler = scaler
        self.backing_off = backing_off
        self._breaking = breaking

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self.backing_off.open(loop, context)

    @property
    def is_on(self) -> bool:
        """Whether a job may run again."""
        return self._policy is not None or self._breaking is not None

    @property
    def has_deadline(self) -> bool:
        """Whether jobs have a time in which they have to be done."""
        return self._policy is not None and self._policy.max_elapsed is not None

    # -- After a failure ---------------------------------------------------------------------------------------------

    def after_failure(
        self, job: Job, worker: Worker, failed: Failed[Any], raised: BaseException, now: float
    ) -> Again | None:
        """Ask the user's functions what follows from a failure; return whether and when the job runs again.

        The job still counts as running meanwhile: they can look at the pool, cancel this very job, or close the pool.
        So the caller must ask `Job.is_over` after this.
        """
        is_outage = self._breaking is not None and self._breaking.takes_back(job)
        # An outage says nothing about the number of workers.
        if not is_outage and self._load.take_error(raised, failed.error):
            self._scaler.wake_now()
        is_in_use = worker.resource_task is not None and not worker.needs_recycle and job.started_at is not None
        if is_in_use and self._spoils_resource(failed):
            worker.recycle("recycle")
            self._on_spoiled()
        try:
            floor = 0.0
            for advice in pauses_in(raised):
                floor = max(floor, seconds_advised(advice, self._policy))
                if advice.pause:
                    self._pauses.pause_for(seconds_advised(advice, self._policy), now)
            if is_outage:
                return Again(floor, is_charged=False)
            backoff = None if self._policy is None else self._backoff(self._policy, job, failed, raised, now)
            return None if backoff is None else Again(backoff)
        except BaseException as error:
            log.error(
                "pool %r: Retry.on, or a RetryAdvice of the handler, raised this error, so the job is not retried",
                self._state.name,
                exc_info=error,
            )
            self._pass_interrupt(error)
            return None

    def _backoff(self, policy: Retry, job: Job, failed: Failed[Any], raised: BaseException, now: float) -> float | None:
        advice = raised if is_error(raised, RetryAdvice) else failed.error
        backoff = policy.delay(job.attempt, advice, chance)
        if backoff is None or job.is_over:  # a timer that ends its time can fire a little early
            return None
        if policy.max_elapsed is not None and now + backoff >= job.accepted_at + policy.max_elapsed:
            add_note(
                failed.error, f"not retried: the next attempt would begin after max_elapsed={policy.max_elapsed:g} s"
            )
            return None
        if self._budget is not None and not self._budget.withdraw(now):
            add_note(failed.error, f"not retried: the retry budget is spent, {describe(policy.budget)}")
            self._report_rejected(job)
            return None
        return backoff

    def _spoils_resource(self, failed: Failed[Any]) -> bool:
        try:
            return matches(self._recycle_on, failed.error)
        except BaseException as error:
            log.error(
                "pool %r: recycle_on raised this error, so the resource is replaced, to be safe",
                self._state.name,
                exc_info=error,
            )
            self._pass_interrupt(error)
            return True

    def _report_rejected(self, job: Job) -> None:
        self._ledger.retries_rejected += 1
        if is_logged(self._ledger.retries_rejected):
            log.warning(
                "pool %r: the retry budget is spent, so a failed job is not retried (occurrence %d): %r",
                self._state.name,
                self._ledger.retries_rejected,
                job.input,
            )

    def _pass_interrupt(self, error: BaseException) -> None:
        """Let an interrupt that came in the user's code reach the program. Not here: the job must be settled."""
        if is_error(error, KeyboardInterrupt):
            self._state.raise_later(error)

    # -- Between two attempts ----------------------------------------------------------------------------------------

    def put_off(self, job: Job, failed: Failed[Any], again: Again, now: float) -> None:
        """Let a job that has left its worker wait for its next attempt. It has no task and no timer of its own then
        (test_a_job_that_backs_off_is_delayed_and_holds_nothing).
        """
        job.prior = PriorAttempts(failed, job.accepted_at, job.has_started)
        job.worker = job.started_at = job.cancel_reason = None
        self._ledger.retries += 1
        seconds = again.seconds
        if again.is_charged or self._breaking is None:
            job.attempt += 1
            self.backing_off.schedule(now + seconds, job)
            self._ledger.delay(job)
        else:
            self._breaking.put_back(job, now + seconds)
            seconds = max(seconds, self._breaking.seconds)
        if self._observers.any:
            self._observers.emit(
                JobRetrying(
                    pool=self._state.name,
                    id=job.number,
                    job=job.input,
                    attempt=failed.attempts,
                    error=failed.error,
                    seconds=seconds,
                )
            )

    def come_back(self, job: Job) -> None:
        """Queue a job whose backoff is over."""
        assert job.prior is not None
        if self._breaking is not None and self._breaking.keeps(job):
            return
        job.prior.is_backing_off = False
        job.ready_at = self._state.time()
        self._queue.put_back(job)
        self._wakeups.job_came_back()

    def close(self) -> None:
        """Drop the timer. All jobs are settled."""
        self.backing_off.clear()

    # -- Deadlines ---------------------------------------------------------------------------------------------------

    def deadline(self, job: Job) -> float:
        """Return the loop time at which the job's time is over; infinity if it has no end."""
        # As a time and not as seconds that are left: those, added to the clock, are off by a rounding error
        # (tests/laws: the_time_of_a_job_runs_out).
        if self._policy is None or self._policy.max_elapsed is None:
            return math.inf
        return job.accepted_at + self._policy.max_elapsed

    def expired(self, job: Job) -> JobExpired:
        """Make the error of a job whose time is over."""
        assert self._policy is not None
        assert self._policy.max_elapsed is not None
        error = JobExpired(self._policy.max_elapsed)
        if job.prior is not None:
            set_cause(error, job.prior.last_failure.error)
        return error
