"""Cancels jobs: settles waiting ones, sends running ones one `task.cancel()`; reports those that ignore it.

What a job's CancelledError then means is `failures.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from itertools import chain
from typing import Any

from asyncpool._core.failures import Awaited
from asyncpool._core.job import Job, Sink, Worker
from asyncpool._core.lanes import Lanes
from asyncpool._core.ledger import Ledger
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import State
from asyncpool._core.timers import Slices, TimerHeap
from asyncpool._core.wakeups import Wakeups
from asyncpool._logs import log
from asyncpool.errors import PoolError
from asyncpool.events import JobStuck, Observers
from asyncpool.outcomes import CancelReason, Outcome

__all__ = ["STUCK_AFTER", "Cancellation"]

STUCK_AFTER = 5.0
"""How long a running job can ignore its cancellation before it is reported as stuck, in seconds."""


SPACING = 0.1
"""Seconds between two cancellations of a running job, so that one has arrived before the next."""

# Up to this many jobs are cancelled in one step, more in slices.
_FEW = 500


class _Requests:
    """The requests to cancel one running job, until its attempt has ended."""

    __slots__ = ("awaited", "last", "next", "reasons", "stuck_timer")

    def __init__(self, stuck_timer: asyncio.TimerHandle | None) -> None:
        self.reasons: set[object] = set()  # those that have cancelled, or will
        self.last = -math.inf  # when its task was cancelled, on the clock of the loop
        self.next: asyncio.TimerHandle | None = None  # when it will be once more
        self.stuck_timer: asyncio.TimerHandle | None = stuck_timer  # None: it was reported as stuck
        self.awaited = Awaited()

    @property
    def is_stuck(self) -> bool:
        """Whether the job has ignored its cancellation for too long."""
        return self.stuck_timer is None

    def end(self) -> None:
        """Drop the timers, and what the cancelled frames hold."""
        self.awaited.clear()
        for timer in (self.next, self.stuck_timer):
            if timer is not None:
                timer.cancel()


class Cancellation:
    """The cancelled jobs of a pool that have not ended, and how a job comes to be one."""

    __slots__ = (
        "_backing_off",
        "_cancelling",
        "_lanes",
        "_ledger",
        "_observers",
        "_pauses",
        "_queue",
        "_slices",
        "_state",
        "_wakeups",
        "_workers",
        "logs_stuck",
        "on_left",
        "on_stuck",
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
        lanes: Lanes | None,
        pauses: Pauses,
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
        self._pauses = pauses
        self._workers = workers
        self._slices = Slices(self._slice_is_done)
        # Running jobs that were cancelled. Invariant: a job leaves it with its attempt, however that ends
        # (test_a_job_is_named_once_when_it_is_stuck,
        # test_a_cancelled_job_that_returns_at_once_is_not_called_stuck_later).
        self._cancelling: dict[Job, _Requests] = {}
        self.on_stuck: Callable[[], object] = lambda: None
        """Called when a job has become stuck, or when one that was has ended."""
        self.logs_stuck = True
        """Whether a job that is stuck is logged: not in a process of an engine, whose program does that."""
        self.on_left: Callable[[Job], object] | None = None
        """Called with each job that is settled here while it waits."""

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._slices.open(loop, context)

    # -- One job -----------------------------------------------------------------------------------------------------

    def cancel(self, job: Job, reason: CancelReason) -> bool:
        """Settle a waiting job as cancelled, ask a running one to end; False if it is settled already."""
        if job.outcome is not None:
            return False
        if job.worker is not None:
            self.request(job, reason)
            return True
        self._cancel_waiting(job, reason)
        self._wakeups.job_left()
        return True

    def _cancel_waiting(self, job: Job, reason: CancelReason) -> None:
        now = self._state.time()
        self._settle_waiting(job, self._ledger.cancelled_outcome(job, reason, now), now)

    def fail_waiting(self, job: Job, error: PoolError) -> None:
        """Settle a waiting job as failed."""
        now = self._state.time()
        self._settle_waiting(job, self._ledger.failed_outcome(job, error, now), now)
        self._wakeups.job_left()

    def _settle_waiting(self, job: Job, outcome: Outcome[Any, Any], now: float) -> None:
        self._ledger.record(job, outcome)
        self._discard(job)
        self._ledger.deliver(job, outcome, now)

    def _discard(self, job: Job) -> None:
        """Take a job that was just settled out of the place in which it waited."""
        if self.on_left is not None:
            self.on_left(job)
        if job.is_backing_off:
            self._backing_off.discard(job)
            self._ledger.undelay(job)
        elif self._lanes is None or not self._lanes.discard(job):
            self._queue.order.discard_settled()

    def request(self, job: Job, reason: CancelReason | PoolError) -> None:
        """Cancel the task of a running job, once for each reason. A handle can be used again: a handler, or a library
        that it uses, may have swallowed an earlier cancellation. A reason that comes later replaces an error.
        """
        if job.outcome is not None:
            return
        if job.cancel_reason is None or (
            isinstance(reason, CancelReason) and not isinstance(job.cancel_reason, CancelReason)
        ):
            job.cancel_reason = reason
        requests = self._cancelling.get(job)
        if requests is None:
            self._wakeups.leave_fast_path()
            timer = self._state.loop.call_later(STUCK_AFTER, self._report_stuck, job)
            requests = self._cancelling[job] = _Requests(timer)
        wait = requests.last + SPACING - self._state.loop.time()
        kind = reason if isinstance(reason, CancelReason) else type(reason)
        if kind in requests.reasons and (kind is not CancelReason.HANDLE or wait > 0.0):
            return
        requests.reasons.add(kind)
        if wait <= 0.0:
            self._send(job, requests)
        elif requests.next is None and reason is not CancelReason.SHUTDOWN:  # that one is repeated by `repeat`
            requests.next = self._state.loop.call_later(wait, self._send, job, requests)

    def _send(self, job: Job, requests: _Requests) -> None:
        requests.last, requests.next = self._state.loop.time(), None
        if job.task is not None:  # else whoever makes it looks at `cancel_reason`
            requests.awaited.note(job.task)
            job.task.cancel()

    def repeat(self) -> None:
        """Cancel each running job once more."""
        for job, requests in list(self._cancelling.items()):
            if requests.next is None:
                self._send(job, requests)

    def attempt_ended(self, job: Job) -> None:
        """Note that an attempt that may have been cancelled has ended."""
        if self._cancelling:
            requests = self._cancelling.get(job)
            if requests is not None:
                requests.awaited.clear()  # destroys values of the user, which can cancel the job once more
                del self._cancelling[job]
                requests.end()
                if requests.is_stuck:
                    self._state.loop.call_soon(self.on_stuck)  # once its worker is free

    # -- Jobs that ignore it -----------------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether a job was cancelled and has not ended."""
        return bool(self._cancelling)

    @property
    def stuck(self) -> int:
        """How many running jobs have ignored their cancellation for too long."""
        return sum(requests.is_stuck for requests in self._cancelling.values())

    def is_stuck(self, job: Job) -> bool:
        """Whether this running job has."""
        return job in self._cancelling and self._cancelling[job].is_stuck

    def is_waited_for(self, sink: Sink) -> bool:
        """Whether a job of this sink runs that is not stuck, or waiting jobs, perhaps its own, are being settled."""
        return self.is_settling or any(job.sink is sink and not self.is_stuck(job) for job in self.running_jobs())

    def report_stuck(self, job: Job) -> None:
        """Note that a running job ignores a cancellation: its process has found out, which can be its own timeout."""
        requests = self._cancelling.get(job)
        if requests is None:
            self._wakeups.leave_fast_path()
            requests = self._cancelling[job] = _Requests(None)
        elif requests.stuck_timer is None:
            return
        else:
            requests.stuck_timer.cancel()
        self._report_stuck(job)

    def _report_stuck(self, job: Job) -> None:
        worker = job.worker
        assert worker is not None
        self._cancelling[job].stuck_timer = None
        job.sink.on_stuck(job)
        if self.logs_stuck:
            log.warning(
                "pool %r: job %d was cancelled %g s ago and is still running; "
                "it keeps worker %d busy until it stops: %r",
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
        self.on_stuck()

    def close(self) -> None:
        """Wait for no job any more: the pool is closed. Only jobs that an interrupt has lost are left."""
        for job, requests in self._cancelling.items():
            requests.end()
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

    def unfinished_jobs(self) -> Iterator[Job]:
        """The jobs that run, and those that wait, in the order of their places; some can be settled already."""
        parked = () if self._lanes is None else self._lanes
        return chain(self.running_jobs(), self._queue.order.snapshot(), self._backing_off, parked)

    def cancel_where(self, belongs: Callable[[Job], bool], reason: CancelReason) -> None:
        """Cancel all jobs that belong. No worker that becomes free takes one of them.

        If the pool has more than some hundred jobs, they are only marked here: `is_settling` until all are settled.
        """
        if len(self._queue.order) + self._ledger.delayed + self._ledger.running <= _FEW:
            for job in self.waiting_jobs() + self.running_jobs():  # in this order, because of the free workers
                if belongs(job):
                    self.cancel(job, reason)
            return
        # No worker takes a job meanwhile (test_slices.py), so the running ones, which need time to end, come first.
        self._pauses.hold()
        self._slices.add(
            self.unfinished_jobs(),
            lambda job: self._cancel_one_of_many(job, reason) if job.outcome is None and belongs(job) else None,
        )

    def cancel_waiting(self, jobs: Sequence[Job], reason: CancelReason) -> None:
        """Cancel these jobs, which wait. If they are many, in slices, during which no worker takes any."""
        if len(jobs) <= _FEW:
            for job in jobs:
                self._cancel_if_waiting(job, reason)
            self._wakeups.job_left()
        else:
            self._pauses.hold()
            self._slices.add(jobs, lambda job: self._cancel_if_waiting(job, reason))

    def _cancel_if_waiting(self, job: Job, reason: CancelReason) -> None:
        # An observer of the one before may have changed anything.
        if job.outcome is None and job.worker is None:
            self._cancel_waiting(job, reason)

    def _cancel_one_of_many(self, job: Job, reason: CancelReason) -> None:
        if job.worker is not None:
            self.request(job, reason)
        else:
            self._cancel_waiting(job, reason)

    @property
    def is_settling(self) -> bool:
        """Whether there are jobs that were cancelled by `cancel_where` and are still to be settled."""
        return self._pauses.is_held or not self._slices.is_empty

    def settle_on(self) -> None:
        """See to it that a next slice comes, if there is more to settle: an interrupt can have lost it."""
        if self.is_settling:
            self._slices.go_on()

    def settle_all(self) -> None:
        """Settle now what is left to settle."""
        self._slices.finish()

    def drop(self, values: Sequence[object]) -> None:
        """Let go of values that nobody needs, in slices if they are many: each can be the last reference to much."""
        if len(values) > _FEW:
            self._slices.add(values, lambda value: None)

    def _slice_is_done(self) -> None:
        if self._slices.is_empty:
            self._pauses.let_go()
        self._wakeups.job_left()

    def abandon_running(self) -> list[Worker]:
        """Settle what still runs, whatever its tasks do: the last resort when the pool closes. Return its workers,
        which are free.
        """
        return [self._settle_running(job, CancelReason.ABANDONED) for job in self.running_jobs()]

    def settle_lost(self) -> list[Worker]:
        """Settle running jobs whose task was over some loop iterations ago: a KeyboardInterrupt came in the middle of
        the step that ends a job (test_an_interrupt_at_any_line_leaves_a_pool_that_closes). Return their free workers.
        """
        free: list[Worker] = []
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
        if self._lanes is not None and (job.task is None or job.task.done()):  # else it holds its slots until it ends
            self._lanes.attempt_ended(job)
        outcome = self._ledger.cancelled_outcome(job, reason, now)
        worker.job = None
        self._ledger.running -= 1
        self._ledger.settle(job, outcome, now)
        return worker
