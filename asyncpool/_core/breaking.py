"""One pool's use of a `Breaker`: its timer and its pause, and the jobs that are put back because of an outage.

What opens and closes the breaker is decided in `asyncpool/circuit.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from itertools import chain
from typing import Any

from asyncpool._core.job import Job
from asyncpool._core.ledger import Ledger
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import State
from asyncpool._core.timers import TimerHeap
from asyncpool._core.wakeups import Wakeups
from asyncpool._guard import describe, is_error
from asyncpool._logs import is_logged as is_logged_occurrence
from asyncpool._logs import log
from asyncpool.breaker import Breaker
from asyncpool.circuit import BreakerChange, CircuitState, Verdict
from asyncpool.errors import RetryAdvice
from asyncpool.events import BreakerClosed, BreakerHalfOpened, BreakerOpened, Observers
from asyncpool.outcomes import CancelReason, Failed, Outcome, Succeeded

__all__ = ["Breaking", "HoldingHeap"]


class HoldingHeap(TimerHeap[Job]):
    """A heap of delayed jobs that can also hold jobs without a time."""

    __slots__ = ("held",)

    def __init__(self, on_due: Callable[[Job], None], is_live: Callable[[Job], bool]) -> None:
        super().__init__(on_due, is_live)
        # In their order. Invariant: each is live and counted as delayed (tests/laws: a_breaker_meets_everything_else).
        self.held: dict[Job, None] = {}

    @property
    def size(self) -> int:
        """How many live jobs wait."""
        return super().size + len(self.held)

    def __iter__(self) -> Iterator[Job]:
        """The live jobs, in no order."""
        return chain(super().__iter__(), tuple(self.held))

    def in_order(self) -> list[Job]:
        """Return the live jobs in the order in which they are due, and then those that are held."""
        return [*super().in_order(), *self.held]

    def discard(self, item: Job, /) -> None:
        """Note that a job that waits here is no longer live."""
        if item in self.held:
            del self.held[item]
        else:
            super().discard(item)


class Breaking:
    """Reports each attempt of a pool to its breaker, and lets the pool take jobs as the breaker does.

    Invariant: the pool is paused by its breaker unless that lets an attempt start; and while it is half-open without a
    probe, some job of the pool is queued, or none is held (tests/laws: a_breaker_meets_everything_else).
    """

    __slots__ = (
        "_attempts",
        "_breaker",
        "_context",
        "_delayed",
        "_is_joined",
        "_ledger",
        "_observers",
        "_pauses",
        "_queue",
        "_returning",
        "_state",
        "_timer",
        "_wakeups",
        "_watch_deadline",
        "openings",
    )

    def __init__(
        self,
        breaker: Breaker,
        *,
        state: State,
        ledger: Ledger,
        observers: Observers,
        wakeups: Wakeups,
        queue: JobQueue,
        pauses: Pauses,
        delayed: HoldingHeap,
        watch_deadline: Callable[[Job], None],
    ) -> None:
        self._breaker = breaker
        self._state = state
        self._ledger = ledger
        self._observers = observers
        self._wakeups = wakeups
        self._queue = queue
        self._pauses = pauses
        self._delayed = delayed
        self._watch_deadline = watch_deadline
        self._attempts: dict[Job, int] = {}  # those that run, each with the period in which it began
        self._returning: dict[Job, int] = {}  # those that have just ended and will be put back
        self._timer: asyncio.TimerHandle | None = None
        self._is_joined = False
        self.openings = 0
        """How often the breaker has opened, also after a probe that failed."""

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raise WrongLoop if the breaker is used by pools of another loop."""
        self._breaker.bind(loop)

    def open(self, context: Context) -> None:
        """Act as the breaker says from now on, with timers in this context."""
        self._context = context
        self._is_joined = True
        self._breaker.join(self)
        self.moved()

    def close(self) -> None:
        """Leave the breaker to the other pools, and the probe too: the pool is closed."""
        if not self._is_joined:
            return
        self._is_joined = False
        self._stop_timer()
        self._breaker.leave(self)
        for job, period in tuple(self._attempts.items()):  # of jobs that were abandoned
            self._breaker.end(job, period, Verdict.NOTHING, self._state.time(), self, None)
        self._attempts.clear()
        self._returning.clear()

    @property
    def state(self) -> str:
        """The state of the breaker."""
        return self._breaker.state

    @property
    def is_closed(self) -> bool:
        """Whether the breaker holds nothing back."""
        return self._breaker.is_closed

    @property
    def seconds(self) -> float:
        """Seconds until a probe can start, as far as is known."""
        return max(0.0, self._breaker.until - self._state.time()) if self._breaker.is_open else 0.0

    def half_open(self) -> None:
        """Do not wait for the time of the next probe."""
        self._breaker.half_open(self)

    # -- Attempts ----------------------------------------------------------------------------------------------------

    def started(self, job: Job) -> None:
        """Note that a worker has taken a job. If it is the probe, the pools take no other."""
        self._attempts[job] = 0  # first, for `moved` asks whose the probe is
        self._attempts[job] = self._breaker.begin(job, self._state.time(), self)
        self._watch_deadline(job)  # the probe was in no place when this pause began

    def ended(self, job: Job, outcome: Outcome[Any, Any], raised: BaseException | None, now: float) -> None:
        """Note that an attempt has ended. The job still counts as running: this calls the user's code."""
        period = self._attempts.get(job)
        if period is None:  # the pool was closed without it
            return
        # What `on` is asked about, and what a retry is asked about.
        error = None if not isinstance(outcome, Failed) else raised if is_error(raised, RetryAdvice) else outcome.error
        verdict = self._judge(job, outcome, error)
        self._attempts.pop(job, None)
        recorded = outcome.error if isinstance(outcome, Failed) else None
        is_outage = self._breaker.end(job, period, verdict, now, self, recorded)
        if is_outage and not self._breaker.charges:
            self._returning[job] = period

    def _judge(self, job: Job, outcome: Outcome[Any, Any], error: BaseException | None) -> Verdict:
        if isinstance(outcome, Succeeded):
            return Verdict.SUCCESS
        if error is None or job.started_at is None or isinstance(job.cancel_reason, CancelReason):
            return Verdict.NOTHING
        try:
            return self._breaker.judge(error)
        except BaseException as broken:
            log.error(
                "pool %r: Breaker.on raised this error, so the attempt does not count",
                self._state.name,
                exc_info=broken,
            )
            if is_error(broken, KeyboardInterrupt):
                self._state.raise_later(broken)
            return Verdict.NOTHING

    def takes_back(self, job: Job) -> bool:
        """Whether a job whose attempt has just failed will be put back, unless it is over by then."""
        return job in self._returning

    def forget(self, job: Job) -> None:
        """Note that a job will not be put back after all."""
        self._returning.pop(job, None)

    def put_back(self, job: Job, not_before: float) -> None:
        """Put a job that has left its worker back into the queue: now, or at a time that its handler has asked for."""
        assert job.prior is not None
        job.prior.was_probe = self._returning.pop(job, 0) % 2 == 1
        if not_before > self._state.time():
            self._ledger.delay(job)
            self._delayed.schedule(not_before, job)
        elif job.prior.was_probe and not self._breaker.is_closed:
            self._ledger.delay(job)
            self._hold(job)
        else:
            job.prior.is_backing_off = False
            job.ready_at = self._state.time()
            self._queue.put_in_front(job)
            self._wakeups.job_came_back()

    # -- Jobs that are held ------------------------------------------------------------------------------------------

    def keeps(self, job: Job) -> bool:
        """Hold a delayed job that was a probe, if the breaker has not closed since; return whether it is held.

        A job that always fails would be each probe otherwise, and keep the breaker open for all others.
        """
        if job.prior is None or not job.prior.was_probe or self._breaker.is_closed:
            return False
        self._hold(job)
        return True

    def _hold(self, job: Job) -> None:
        self._delayed.held[job] = None
        self.check_held()

    def check_held(self) -> None:
        """Let the oldest job that is held be the probe, if there is to be one and no other job is queued."""
        if not self._breaker.is_closed and self._breaker.lets_start and self._delayed.held and not self._queue.order:
            self._release(next(iter(self._delayed.held)))

    def _release(self, job: Job) -> None:
        del self._delayed.held[job]
        assert job.prior is not None
        job.prior.is_backing_off = False
        job.ready_at = self._state.time()
        self._queue.put_back(job)
        self._wakeups.job_came_back()

    # -- What the breaker calls --------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Take jobs, or stop to take them, as the breaker is now."""
        if not self._is_joined:
            return
        breaker = self._breaker
        self._stop_timer()
        if breaker.is_open or breaker.probe in self._attempts:
            step = self._open_is_over if breaker.is_open else self._probe_is_late
            self._timer = self._state.loop.call_at(breaker.until, step, context=self._context.copy())
        self._pauses.set_broken(not breaker.lets_start)
        while breaker.is_closed and self._delayed.held:
            self._release(next(iter(self._delayed.held)))
        self.check_held()

    def _open_is_over(self) -> None:
        self._timer = None
        self._breaker.half_open(self)

    def _probe_is_late(self) -> None:
        self._timer = None
        self._breaker.give_up_probe(self._state.time(), self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def report(self, change: BreakerChange, /, *, is_logged: bool) -> None:
        """Report a change to the observers, and to the log if no other pool does."""
        name = self._state.name
        event: BreakerOpened | BreakerHalfOpened | BreakerClosed
        if change.state is CircuitState.OPEN:
            self.openings += 1
            event = BreakerOpened(
                pool=name,
                failures=change.failures,
                attempts=change.attempts,
                error=change.error,
                seconds=change.seconds,
            )
        elif change.state is CircuitState.HALF_OPEN:
            event = BreakerHalfOpened(pool=name)
        else:
            event = BreakerClosed(pool=name, seconds=change.seconds)
        if is_logged:
            _log(name, change)
        if self._observers.any:
            self._observers.emit(event)


def _log(pool: str, change: BreakerChange) -> None:
    error = "" if change.error is None else describe(change.error)
    if change.state is CircuitState.HALF_OPEN:
        log.debug("pool %r: the breaker is half-open: the next job is a probe", pool)
    elif change.state is CircuitState.CLOSED:
        log.warning("pool %r: the breaker is closed after %.3g s; jobs run again", pool, change.seconds)
    elif not change.attempts:
        log.warning("pool %r: the breaker was opened by a call, for %.3g s; jobs wait", pool, change.seconds)
    elif not change.failed_probes:
        log.warning(
            "pool %r: the breaker is open for %.3g s; jobs wait: %d of the last %d attempts failed, the last with %s",
            pool,
            change.seconds,
            change.failures,
            change.attempts,
            error,
        )
    elif is_logged_occurrence(change.failed_probes):
        log.warning(
            "pool %r: the breaker is open for another %.3g s: the probe %s (occurrence %d)",
            pool,
            change.seconds,
            f"failed with {error}" if error else "has not ended in time",
            change.failed_probes,
        )
