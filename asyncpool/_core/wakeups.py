"""Who must be woken when something changes, and when the end of a job has more to do than to let its worker go on.

This table is the only place that decides it; the methods below are its rows.

    what changed                                  start   wake     let sub-    check for  notify
                                                  jobs    scaler   mitters in  deadlock   waiters
    job accepted                                  yes     asleep                                     (1)
    job_came_back   its backoff is over,          yes     yes      yes         yes
                    its rate limit is open
    job_left        cancelled or expired                  yes      yes         yes        yes
                    while it waited
    job_ended       its worker is free            yes              yes                    yes        (1)
    worker_ready    its resource is entered       yes     yes      yes
    worker_slow     it has waited some seconds            yes
                    for its resource
    worker_gone                                                                yes        yes
    pause_changed                                 lifted  yes      lifted
    size_changed                                  yes              yes (2)     yes
    submitter_waits                                       yes                  yes (3)
    submitter_rejected                                    yes
    limiter_entered                                       yes
    child_gone      a resource task or feeder                                             yes

(1) The hot path does this itself: see `dispatch.py`. A scaler that sleeps is woken by the queue's `append`, or by the
next housekeeping.  (2) And into the windows of streams and groups.  (3) By `Deadlock.wait`, which it waits in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from asyncpool._core.ledger import Ledger
from asyncpool._core.line import WaitLine, wake
from asyncpool._core.state import State
from asyncpool._core.tasks import Producers

__all__ = ["Wakeups"]

# How often what was measured is sorted into the histograms: some thousand jobs end in that time, at most.
_HOUSEKEEPING_SECONDS = 0.002


class Wakeups:
    """The bells of a pool. The parts that a change concerns are connected once they exist."""

    __slots__ = (
        "_check_deadlock",
        "_housekeep_at",
        "_ledger",
        "_line",
        "_must_leave_fast_path",
        "_producers",
        "_start_jobs",
        "_state",
        "_wake_scaler",
        "_watchers",
        "fast_until",
    )

    def __init__(self, state: State, ledger: Ledger, producers: Producers) -> None:
        self._state = state
        self._ledger = ledger
        self._producers = producers
        # Who waits for what: checked whenever a job has ended, a worker is gone, or a state or deadline changed.
        self._watchers: dict[asyncio.Future[None], Callable[[], bool]] = {}
        # Until this loop time jobs end by the fast path; then `housekeep` finds out whether they go on to.
        # Invariant: -inf while one of `_must_leave_fast_path` is true; code that makes it true calls `leave_fast_path`
        # (test_surplus_workers_retire_with_the_very_next_jobs_that_end).
        self.fast_until = -math.inf
        self._housekeep_at = -math.inf

    def connect(
        self,
        *,
        line: WaitLine,
        start_jobs: Callable[[], None],
        wake_scaler: Callable[[], None],
        check_deadlock: Callable[[], None],
        must_leave_fast_path: tuple[Callable[[], object], ...],
    ) -> None:
        """Connect the parts that are woken."""
        self._line = line
        self._start_jobs = start_jobs
        self._wake_scaler = wake_scaler
        self._check_deadlock = check_deadlock
        self._must_leave_fast_path = must_leave_fast_path

    # -- The rows of the table ---------------------------------------------------------------------------------------

    def job_accepted(self) -> None:
        """A job is queued in a pool without workers. Otherwise the hot path does this itself."""
        self._wake_scaler()

    def job_came_back(self) -> None:
        """A delayed job is queued again. If room was missing where delayed jobs are, there is some; if not, the wait
        for it can be a deadlock.
        """
        self._wake_scaler()
        self._start_jobs()
        self._line.wake_next()
        self._check_deadlock()

    def job_left(self) -> None:
        """A waiting job is settled. It may have been all that was still to come."""
        self._wake_scaler()
        self._line.wake_next()
        self._check_deadlock()
        self.notify()

    def job_ended(self) -> None:
        """A running job has ended, and its worker goes on."""
        if self._line.waiting:
            self._line.wake_next()
        self.notify()

    def worker_ready(self) -> None:
        """A worker with a resource is idle."""
        self._wake_scaler()
        self._start_jobs()
        self._line.wake_next()

    def worker_slow(self) -> None:
        """A worker has waited for its resource so long that nothing should depend on it any more."""
        self._wake_scaler()

    def worker_gone(self) -> None:
        """A worker has left."""
        self._check_deadlock()
        self.notify()

    def pause_changed(self, *, is_lifted: bool) -> None:
        """There is one reason more, or less, not to take jobs."""
        self.leave_fast_path()
        self._wake_scaler()
        if is_lifted:
            self._start_jobs()
            self._line.wake_next()

    def size_changed(self) -> None:
        """There are, or can be, more workers, or fewer. The queue and the windows of streams grow with them."""
        self._start_jobs()
        self._line.wake_next()
        for producer in self._producers:
            producer.line.wake_next()
        self._check_deadlock()

    def submitter_waits(self) -> None:
        """A submitter begins to wait for room."""
        self._wake_scaler()

    def submitter_rejected(self) -> None:
        """A submitter that does not wait was turned away."""
        self._wake_scaler()

    def limiter_entered(self) -> None:
        """A job that holds a worker has passed its limiter."""
        self._wake_scaler()

    def notify(self) -> None:
        """Wake those in `wait_until` whose condition holds."""
        if self._watchers:
            for future, holds in list(self._watchers.items()):
                if holds():
                    wake(future)

    # -- Waiting for a condition -------------------------------------------------------------------------------------

    async def wait_until(self, holds: Callable[[], bool], *, until: float = math.inf) -> None:
        """Wait until a condition holds, for one moment at least, or until a loop time. Cancel-safe."""
        if holds():
            return
        loop = self._state.loop
        future: asyncio.Future[None] = loop.create_future()
        self._watchers[future] = holds
        self.leave_fast_path()
        timer = None if until == math.inf else loop.call_at(until, wake, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            del self._watchers[future]

    # -- The fast path -----------------------------------------------------------------------------------------------

    def leave_fast_path(self) -> None:
        """Have the next job that ends find out what there is to do, whatever its time."""
        self.fast_until = -math.inf

    def housekeep_next(self) -> None:
        """Have the next job that ends do the housekeeping, and so wake the scaler."""
        self._housekeep_at = self.fast_until = -math.inf

    def housekeep(self, now: float) -> None:
        """Do what need not be done for each job, if it is due."""
        if now < self._housekeep_at:
            return
        self._housekeep_at = now + _HOUSEKEEPING_SECONDS
        is_special = bool(self._watchers) or any(condition() for condition in self._must_leave_fast_path)
        self.fast_until = -math.inf if is_special else self._housekeep_at
        self._wake_scaler()
        self._ledger.flush(now)
