"""Cancels jobs: waiting ones at once, running ones by one `task.cancel()`; reports those that ignore it.

What a job's CancelledError then means is `failures.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from asyncpool._core.job import Job, Sink, Worker
from asyncpool._core.lanes import RateLanes
from asyncpool._core.ledger import Ledger
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import State
from asyncpool._core.timers import TimerHeap
from asyncpool._core.wakeups import Wakeups
from asyncpool._logs import log
from asyncpool.errors import PoolError
from asyncpool.events import JobStuck, Observers
from asyncpool.outcomes import CancelReason, Outcome

__all__ = ["STUCK_AFTER", "Cancellation"]

STUCK_AFTER = 5.0
"""How long a running job can ignore its cancellation before it is reported as stuck, in seconds."""


class Cancellation:
    """The cancelled jobs of a pool that have not ended, and how a job comes to be one."""

    __slots__ = (
        "_backing_off",
        "_cancelling",
        "_lanes",
        "_ledger",
        "_observers",
        "_queue",
        "_state",
        "_wakeups",
        "_workers",
    )

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        observers: Observers,
        wakeups: Wakeups,
        *,
        queue: JobQueue,
        backing_off: TimerHeap[Job],
        lanes: RateLanes | None,
        workers: Mapping[int, Worker],
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._observers = observers
        self._wakeups = wakeups
        # Invariant: a waiting job is in one of these three places (tests/laws: delayed_jobs_are_cancelled).
        self._queue = queue
        self._backing_off = backing_off
        self._lanes = lanes
        self._workers = workers
        # Running jobs that were cancelled, with the timer until they are reported as stuck; then None. Invariant: a job
        # leaves it with its attempt, however that ends (test_a_job_is_named_once_when_it_is_stuck,
        # test_a_cancelled_job_that_returns_at_once_is_not_called_stuck_later).
        self._cancelling: dict[Job, asyncio.TimerHandle | None] = {}

    # -- One job -----------------------------------------------------------------------------------------------------

    def cancel(self, job: Job, reason: CancelReason) -> bool:
        """Settle a waiting job as cancelled, ask a running one to end; False if it is settled already."""
        if job.outcome is not None:
            return False
        if job.worker is not None:
            self.request(job, reason)
            return True
        now = self._state.time()
        outcome = self._ledger.cancelled_outcome(job, reason, now)
        self._ledger.record(job, outcome, now)
        self._discard(job)
        self._ledger.deliver(job, outcome)
        self._wakeups.job_left()
        return True

    def _discard(self, job: Job) -> None:
        """Take a job that was just settled out of the place in which it waited."""
        if job.is_backing_off:
            self._backing_off.discard(job)
            self._ledger.undelay(job)
        elif self._lanes is None or not self._lanes.discard(job):
            self._queue.order.discard_settled()

    def request(self, job: Job, reason: CancelReason | PoolError) -> None:
        """Cancel the task of a running job, once. A reason that comes later replaces an error, and cancels nothing."""
        if job.outcome is not None or isinstance(job.cancel_reason, CancelReason):
            return
        is_first = job.cancel_reason is None
        if is_first or isinstance(reason, CancelReason):
            job.cancel_reason = reason
        if is_first:
            self._wakeups.leave_fast_path()
            if job.task is not None:
                job.task.cancel()
            self._cancelling[job] = self._state.loop.call_later(STUCK_AFTER, self._report_stuck, job)

    def attempt_ended(self, job: Job) -> None:
        """Note that an attempt that may have been cancelled has ended."""
        if self._cancelling:
            timer = self._cancelling.pop(job, None)
            if timer is not None:
                timer.cancel()

    # -- Jobs that ignore it -----------------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether a job was cancelled and has not ended."""
        return bool(self._cancelling)

    @property
    def stuck(self) -> int:
        """How many running jobs have ignored their cancellation for too long."""
        return sum(timer is None for timer in self._cancelling.values())

    def is_stuck(self, job: Job) -> bool:
        """Whether this running job has."""
        return job in self._cancelling and self._cancelling[job] is None

    def is_waited_for(self, sink: Sink) -> bool:
        """Whether a job of this sink runs that is not stuck."""
        return any(job.sink is sink and not self.is_stuck(job) for job in self.running_jobs())

    def _report_stuck(self, job: Job) -> None:
        worker = job.worker
        assert worker is not None
        self._cancelling[job] = None
        job.sink.on_stuck(job)
        log.warning(
            "pool %r: job %d was cancelled %g s ago and is still running; it keeps worker %d busy until it stops: %r",
            self._state.name,
            job.number,
            STUCK_AFTER,
            worker.number,
            job.input,
        )
        if self._observers.any:
            self._observers.emit(
                JobStuck(pool=self._state.name, id=job.number, job=job.input, worker=worker.number, seconds=STUCK_AFTER)
            )

    def close(self) -> None:
        """Wait for no job any more: the pool is closed. Only jobs that an interrupt has lost are left."""
        for job, timer in self._cancelling.items():
            if timer is not None:
                timer.cancel()
            job.sink.on_stuck(job)
        self._cancelling.clear()

    def report_abandoned(self, job: Job, outcome: Outcome[Any, Any]) -> None:
        """Log that a job has ended after all, which was settled without waiting for that."""
        name = self._state.name
        log.warning("pool %r: job %d, abandoned when the pool closed, has ended: %r", name, job.number, outcome)

    # -- Many jobs ---------------------------------------------------------------------------------------------------

    def running_jobs(self) -> list[Job]:
        """The jobs that hold a worker."""
        return [worker.job for worker in self._workers.values() if worker.job is not None]

    def waiting_jobs(self) -> list[Job]:
        """The jobs that are queued or delayed, in the order of acceptance."""
        parked = () if self._lanes is None else self._lanes
        return sorted(chain(self._queue.order, self._backing_off, parked), key=lambda job: job.number)

    def cancel_where(self, belongs: Callable[[Job], bool], reason: CancelReason) -> None:
        """Cancel all jobs that belong; waiting ones first, so that no worker that becomes free takes one of them."""
        for job in self.waiting_jobs() + self.running_jobs():
            if belongs(job):
                self.cancel(job, reason)

    def abandon_running(self) -> list[Worker]:
        """Settle what still runs, whatever its tasks do: the last resort when the pool closes. Return its workers,
        which are free.
        """
        return [self._settle_running(job, CancelReason.ABANDONED) for job in self.running_jobs()]

    def settle_lost(self) -> list[Worker]:
        """Settle running jobs whose task was over some loop iterations ago: a KeyboardInterrupt came in the middle of
        the step that ends a job (test_an_interrupt_at_any_line_leaves_a_pool_that_closes). Return their free workers.
        """
        free = []
        for job in self.running_jobs():
            if job.task is None or job.task.done():
                reason = job.cancel_reason
                free.append(
                    self._settle_running(job, reason if isinstance(reason, CancelReason) else CancelReason.SHUTDOWN)
                )
        return free

    def _settle_running(self, job: Job, reason: CancelReason) -> Worker:
        worker, now = job.worker, self._state.time()
        assert worker is not None
        self.attempt_ended(job)
        outcome = self._ledger.cancelled_outcome(job, reason, now)
        worker.job = None
        self._ledger.running -= 1
        self._ledger.settle(job, outcome, now)
        return worker
