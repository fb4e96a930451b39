"""The load of a pool as its scaling policy sees it, sampled each time the policy is asked."""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncpool._core.cancellation import Cancellation
from asyncpool._core.ledger import Ledger
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import State
from asyncpool._core.wakeups import Wakeups
from asyncpool._core.workers import Workers
from asyncpool._guard import is_error
from asyncpool.errors import RetryAdvice
from asyncpool.limits.line import Limit
from asyncpool.scaling.policy import PoolLoad

__all__ = ["Load", "LoadWindow"]

# The sample of running times is thinned when it gets longer than this; more errors than this are only counted.
_MAX_SECONDS = 4096
_MAX_ERRORS = 1000


class LoadWindow:
    """Running times, errors and rejections since the policy was asked last. Bounded."""

    __slots__ = ("_seen", "_step", "asked_at", "errors", "failed", "max_failed", "rejected", "seconds", "succeeded")

    def __init__(self, now: float, succeeded: int) -> None:
        self.asked_at = now
        self.succeeded = succeeded  # how many jobs had succeeded before
        self.failed = 0
        self.max_failed = math.inf  # before the policy is to be asked again
        self.errors: list[BaseException] = []
        self.seconds: list[float] = []
        self.rejected = 0
        self._seen = 0
        self._step = 1

    def take_seconds(self, seconds: list[float]) -> None:
        """Note how long handlers ran that succeeded: of all, or of every second, fourth ... one."""
        self.seconds += seconds[-self._seen % self._step :: self._step]
        self._seen += len(seconds)
        while len(self.seconds) > _MAX_SECONDS:
            self.seconds = self.seconds[::2]
            self._step *= 2

    def take_error(self, raised: BaseException, error: BaseException) -> bool:
        """Note a failure: what the handler raised, and the error that was made of it.

        Return whether that is as many as the policy wanted to hear of at once.
        """
        self.failed += 1
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(raised if is_error(raised, RetryAdvice) else error)
        return self.failed == self.max_failed


class Load:
    """Samples the load of a pool."""

    __slots__ = (
        "_blocked",
        "_cancellation",
        "_has_limiter",
        "_ledger",
        "_limits",
        "_pauses",
        "_queue",
        "_state",
        "_wakeups",
        "_window",
        "_workers",
    )

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        wakeups: Wakeups,
        *,
        queue: JobQueue,
        workers: Workers,
        pauses: Pauses,
        blocked: Callable[[], int],
        cancellation: Cancellation,
        limits: tuple[Limit, ...],
        has_limiter: bool,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._wakeups = wakeups
        self._queue = queue
        self._workers = workers
        self._pauses = pauses
        self._blocked = blocked  # how many running jobs wait for this pool
        self._cancellation = cancellation
        self._limits = limits  # of all jobs
        self._has_limiter = has_limiter  # whether a job that holds a worker can wait for its limiter
        self._window: LoadWindow | None = None  # None: the policy wants to know nothing, or was not asked yet

    def sample(self, *, goes_on: bool) -> PoolLoad:
        """Return how busy the pool is, and what has happened since the last call; with `goes_on`, note what follows."""
        ledger = self._ledger
        now = self._state.time()
        ledger.seconds_running.flush()  # so that everything measured is in the sample
        window = self._window or LoadWindow(now, ledger.succeeded)
        oldest = self._queue.order.oldest()
        load = PoolLoad(
            now=now,
            elapsed=now - window.asked_at,
            workers=self._workers.target,
            starting=self._workers.starting,
            idle=self._workers.usable,
            running=ledger.running,
            peak_running=ledger.peak_running,
            blocked=self._blocked(),
            queued=len(self._queue.order),
            waiting=len(self._queue.line.waiting),
            oldest_wait=0.0 if oldest is None else max(0.0, now - oldest.ready_at),
            rejected=window.rejected,
            delayed=ledger.delayed,
            is_throttled=self._is_throttled(now),
            succeeded=ledger.succeeded - window.succeeded,
            failed=window.failed,
            seconds=tuple(window.seconds),
            errors=tuple(window.errors),
        )
        self.forget()
        if goes_on:
            self._window = LoadWindow(now, ledger.succeeded)
            ledger.seconds_running.reader = self._window.take_seconds
        return load

    def forget(self) -> None:
        """Drop what has happened until now: it concerns no later question."""
        ledger = self._ledger
        ledger.past_peak = max(ledger.past_peak, ledger.peak_running)
        ledger.peak_running = ledger.running
        self._window = ledger.seconds_running.reader = None

    def wake_after_failures(self, failures: int | None) -> None:
        """Have `take_error` return True once this many attempts have failed."""
        if self._window is not None:
            self._window.max_failed = math.inf if failures is None else failures

    def take_error(self, raised: BaseException, error: BaseException) -> bool:
        """Note a failed attempt; return whether the policy is to be asked at once."""
        return self._window is not None and self._window.take_error(raised, error)

    def reject(self) -> None:
        """Count a submission that was rejected because the pool is full."""
        self._ledger.rejected += 1
        if self._window is not None:
            self._window.rejected += 1
            self._wakeups.submitter_rejected()

    def seconds_until_open(self) -> float:
        """Return in how many seconds the limits of all jobs open; inf if there are none, they are open, or that depends
        on jobs that end.

        While all workers are busy nobody waits for that.
        """
        opens = max((limit.opens_at(1.0) for limit in self._limits), default=-math.inf)
        seconds = opens - self._state.time()
        return seconds if seconds > 0.0 else math.inf

    def _is_throttled(self, now: float) -> bool:
        """Whether more workers would not help: something else holds jobs back."""
        return (
            self._pauses.is_paused
            or any(limit.opens_at(1.0) > now for limit in self._limits)
            or (self._has_limiter and any(job.started_at is None for job in self._cancellation.running_jobs()))
            or self._queue.has_too_many_delayed
        )
