"""The dispatcher of pools with rate limits, a breaker or deadlines of jobs: it checks each job before it starts it.

In a pause no job is about to start, so then `Deadlines` watches those that can become too late.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

from asyncpool._core.attempt_tasks import TaskStart
from asyncpool._core.breaking import Breaking
from asyncpool._core.cancellation import Cancellation
from asyncpool._core.dispatch import MAX_PUMP_JOBS, PUMP_JOBS, PUMP_SECONDS, Dispatcher
from asyncpool._core.failures import release_frames
from asyncpool._core.job import Job, Worker
from asyncpool._core.lanes import Lanes
from asyncpool._core.pauses import Pauses
from asyncpool._core.retries import Retries
from asyncpool._core.timers import Slices, TimerHeap
from asyncpool._guard import is_error
from asyncpool.limits.rate import RateLimit
from asyncpool.outcomes import Failed, Outcome

__all__ = ["Deadlines", "GatedDispatcher"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


class GatedDispatcher(Dispatcher):
    """A dispatcher whose pump asks for each job whether it can start now."""

    __slots__ = ("_breaking", "_lanes", "_rate_limit")

    _without_eager_tasks = TaskStart.BY_LOOP  # from the pump: jobs are asked for there only

    _rate_limit: RateLimit | None
    _lanes: Lanes | None
    _breaking: Breaking | None

    def gate(self, rate_limit: RateLimit | None, lanes: Lanes | None, breaking: Breaking | None) -> None:
        """Set what is asked: the limit of all jobs, or the lanes of those that do not share one; and the breaker."""
        self._rate_limit = rate_limit
        self._lanes = lanes
        self._breaking = breaking

    def _pump(self) -> None:
        self._is_pump_scheduled = False  # see `Dispatcher._pump`
        idle, queue, lanes, rate_limit = self._idle, self._queue, self._lanes, self._rate_limit
        stop_at = self._time() + PUMP_SECONDS
        try:
            for _ in range(min(PUMP_JOBS * len(self._workers.by_number), MAX_PUMP_JOBS)):
                # In each round: those who hear that a job was too late can take long, and starts count from after that.
                now = self._time()
                if not idle or queue.order.peek() is None or self._pauses.is_paused or now >= stop_at:
                    break
                if self._settle_first_if_expired(now):  # it must use up no start, no worker and no resource
                    continue
                if lanes is not None:
                    self._ask_for_first(lanes)
                elif rate_limit is not None and not self._pauses.take_start(rate_limit, now):
                    break  # all wait in the queue, in its order: nobody could go past
                elif (job := self._take_first()) is not None:
                    self._start(job, idle.pop())
                    del job  # see `_start_on`
        finally:
            if self._breaking is not None:
                self._breaking.check_held()  # the queue may be empty now
            self.wake()
            if self._waiting:
                queue.line.wake_next()  # what was parked has left the queue

    def _start(self, job: Job, worker: Worker) -> None:
        if self._breaking is not None:
            self._breaking.started(job)  # which pauses the pool, if the job is the probe
        super()._start(job, worker)
        del job  # see `_start_on`

    def _take_first(self) -> Job | None:
        """Take the first job out of the queue, for an idle worker.

        That compares the keys of a priority, which are the user's. None if they have settled the job, or have let the
        last idle worker go; then the job is queued again.
        """
        order = self._queue.order
        job = order.popleft()
        if job.outcome is not None:
            order.drop_tombstone()
            return None
        if not self._idle:
            self._order.put_back(job)
            return None
        return job

    def _settle_first_if_expired(self, now: float) -> bool:
        """Settle the first job of the queue if it is too late to start it."""
        job = self._queue.order.peek() if self._retries.has_deadline else None
        if job is None or self._retries.deadline(job) > now:
            return False
        self._fail_first(job, self._retries.expired(job), now)
        return True

    def _ask_for_first(self, lanes: Lanes) -> None:
        """Start the first job of the queue, if its limits let it, or park it."""
        order = self._queue.order
        job = order.peek()
        if job is None:
            return
        # The user's functions are called while the job is still in the queue: they can look at the pool, and change it.
        try:
            claims = lanes.claims_of(job)
        except BaseException as error:  # then the job has no limits, and cannot run
            if order.peek() is job:
                self._fail_first(job, error, self._time())
            if is_error(error, KeyboardInterrupt):
                raise
            return
        if order.peek() is not job or not self._idle or self._pauses.is_paused:
            return  # they have changed it
        if self._take_first() is None:
            return
        # By the clock after the user's functions: if a start counted as earlier than it is, the next came too early.
        if lanes.admit_or_park(job, claims, self._time()):
            try:
                self._start(job, self._idle.pop())
            finally:  # also when it raised KeyboardInterrupt in its first step
                del job  # see `_start_on`
                lanes.started()

    def _fail_first(self, job: Job, error: BaseException, now: float) -> None:
        """Settle the first job of the queue as failed."""
        self._queue.order.popleft()
        if job.outcome is not None:  # by a key that was compared: see `_take_first`
            self._queue.order.drop_tombstone()
            return
        release_frames(error)
        self._ledger.settle(job, self._ledger.failed_outcome(job, error, now), now)
        if self._lanes is not None:
            self._lanes.discard(job)
        self._wakeups.job_left()

    def _fail_unstarted(self, job: Job, worker: Worker, attempt: Any, context: Any, error: BaseException) -> None:
        if self._lanes is not None:
            self._lanes.managers_of(job)  # nobody else will ask for them
        super()._fail_unstarted(job, worker, attempt, context, error)

    def _ended(
        self, job: Job, worker: Worker, outcome: Outcome[Any, Any], now: float, raised: BaseException | None = None
    ) -> None:
        if self._lanes is not None:
            self._lanes.attempt_ended(job)  # in any case, also if the job was abandoned when the pool closed
        # The breaker decides what follows from a failure. It hears of other ends when the job is counted: its observers
        # can look at the pool.
        breaking, is_failed = self._breaking, isinstance(outcome, Failed)
        if breaking is not None and is_failed:
            breaking.ended(job, outcome, raised, now)
        super()._ended(job, worker, outcome, now, raised)
        if breaking is not None:
            if is_failed:
                breaking.forget(job)  # if it was not put back after all
            else:
                breaking.ended(job, outcome, raised, now)


class Deadlines:
    """The deadlines of all jobs that are not settled, during a pause that can last; otherwise nothing is kept."""

    __slots__ = ("_cancellation", "_heap", "_is_watching", "_max_elapsed", "_pauses", "_retries", "_slices")

    def __init__(self, max_elapsed: float, *, pauses: Pauses, cancellation: Cancellation, retries: Retries) -> None:
        self._max_elapsed = max_elapsed
        self._pauses = pauses
        self._cancellation = cancellation
        self._retries = retries
        self._heap: TimerHeap[Job] = TimerHeap(self._expire, lambda job: job.outcome is None)
        self._slices = Slices(lambda: None)  # the jobs that are still to be watched when a pause begins
        self._is_watching = False

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._heap.open(loop, context)
        self._slices.open(loop, context)

    def pause_changed(self) -> None:
        """Begin to watch the jobs that there are if a pause has begun; forget them if it is over."""
        if self._pauses.is_long is self._is_watching:
            return
        self._is_watching = not self._is_watching
        if self._is_watching:
            # Also those that run: one can come back to the queue in this very pause.
            self._slices.add(self._cancellation.unfinished_jobs(), self.watch)
        else:
            self._heap.clear()

    def watch(self, job: Job) -> None:
        """Watch a job, if the pool is paused."""
        if self._is_watching and job.outcome is None:
            self._heap.schedule(job.accepted_at + self._max_elapsed, job)

    def close(self) -> None:
        """Drop the timer. All jobs are settled."""
        self._heap.clear()

    def _expire(self, job: Job) -> None:
        if job.worker is None:  # a running job has a timer of its own
            self._cancellation.fail_waiting(job, self._retries.expired(job))
