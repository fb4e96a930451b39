"""When a pool pauses because its backend is down: `Breaker`, a circuit breaker that makes jobs wait instead of fail.

Pure, except for `open` and `close`, which read the loop's clock: attempts begin and end here at times that are passed
in. The pool sets the timers and does the waiting (`_core/breaking.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from asyncpool._checks import check_count, check_filter, check_number, check_seconds
from asyncpool._guard import describe, is_error, leaves_of
from asyncpool.errors import (
    ErrorFilter,
    JobCrashed,
    Permanent,
    PoolDeadlock,
    PoolError,
    RemoteError,
    RetryAdvice,
    WrongLoop,
    is_safe_to_raise,
    matches,
    recorded_error,
)

__all__ = ["Breaker", "BreakerChange", "BreakerUser", "Circuit", "CircuitState", "Verdict"]


class CircuitState(Enum):
    """The states of a breaker. Their values are what `Breaker.state` returns."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Verdict(Enum):
    """What the end of an attempt tells about the backend."""

    FAILURE = "it is down"
    SUCCESS = "it can be reached"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChange:
    """A change of a breaker, as each pool that uses it reports it."""

    state: CircuitState
    """The state from now on."""
    by: BreakerUser | None
    """The pool that has caused it; None: a call of `open` or `close`."""
    seconds: float = 0.0
    """For how long it is open; if it has closed, for how long it was not closed."""
    failures: int = 0
    """How many of the last `attempts` have failed, if that has opened it."""
    attempts: int = 0
    """0 if a call of `open` has opened it."""
    error: BaseException | None = None
    """The last failure. None: there is none, or the probe has not ended in time."""
    failed_probes: int = 0
    """How many probes have failed since it was closed."""


class BreakerUser(Protocol):
    """A pool that uses a breaker."""

    def moved(self) -> None:
        """Take jobs, or stop to take them, as the breaker is now. It can be called twice for one change."""
        ...

    def report(self, change: BreakerChange, /, *, is_logged: bool) -> None:
        """Report a change to observers, and in one of the pools to the log. Must not raise."""
        ...


class Circuit:
    """The state machine of a `Breaker`, which pools use; users call the methods of `Breaker` itself.

    Each attempt is passed to `begin` and, with the period that this returned, to `end`. An attempt counts only in the
    period in which it began: what is left of an outage says nothing about the time after it, whenever it ends.

    Invariant: at most one attempt is the probe (tests/laws: a_breaker_lets_one_probe_through). `begin` must not be
    called unless `lets_start` is true.
    """

    __slots__ = (
        "__weakref__",
        "_changes",
        "_factor",
        "_failed_probes",
        "_failures",
        "_following",
        "_is_reporting",
        "_loop",
        "_max_pause",
        "_opened_at",
        "_pause",
        "_period",
        "_recent",
        "_seconds",
        "_state",
        "_threshold",
        "_users",
        "probe",
        "until",
    )

    def __init__(self, *, threshold: int, window: int, pause: float, factor: float, max_pause: float) -> None:
        self._threshold = threshold
        self._pause = pause
        self._factor = factor
        self._max_pause = max_pause
        self._state = CircuitState.CLOSED
        # Whether each of the last attempts that count has failed, and how many of them have.
        self._recent: deque[bool] = deque(maxlen=window)
        self._failures = 0
        self._period = 0  # even: the breaker is closed. One more when it opens, and when it closes
        self._opened_at = 0.0
        self._seconds = pause  # for which it was opened last
        self._following = pause  # for which it will be opened next
        self._failed_probes = 0
        self.probe: object | None = None
        """The attempt that decides, if it is half-open and has let one start."""
        self.until = 0.0
        """Loop time: if it is open, at which a probe can start; if there is a probe, from which that has failed."""
        # The pools that run, in the order in which they can start a probe.
        self._users: dict[BreakerUser, None] = {}
        self._changes: deque[BreakerChange] = deque()
        self._is_reporting = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_closed(self) -> bool:
        """Whether jobs run as in a pool without a breaker."""
        return self._state is CircuitState.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether nothing can start before `until`."""
        return self._state is CircuitState.OPEN

    @property
    def lets_start(self) -> bool:
        """Whether an attempt can start now. If the breaker is half-open, that is the probe."""
        return self._state is CircuitState.CLOSED or (self._state is CircuitState.HALF_OPEN and self.probe is None)

    # -- The pools that use it ---------------------------------------------------------------------------------------

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop from now on. What was kept of another one, whose clock was another, is dropped.

        Raises:
            WrongLoop: Pools of another loop use it.
        """
        if self._loop is loop:
            return
        if self._users and self._loop is not None and not self._loop.is_closed():
            raise WrongLoop("the breaker is used by pools of another event loop: each loop needs a breaker of its own")
        self._users.clear()
        self._loop = loop
        if self._state is not CircuitState.CLOSED:
            self._period += 1
        self._reset()

    def join(self, user: BreakerUser) -> None:
        """Have a pool hear of each change."""
        self._users[user] = None

    def leave(self, user: BreakerUser) -> None:
        """Forget a pool, which has no attempts any more."""
        self._users.pop(user, None)

    # -- Attempts ----------------------------------------------------------------------------------------------------

    def begin(self, attempt: object, now: float, by: BreakerUser) -> int:
        """Note that an attempt starts, and return its period, which is odd for a probe."""
        if self._state is CircuitState.HALF_OPEN:
            self.probe = attempt
            self.until = now + max(self._pause, self._seconds)
            self._users.pop(by, None)
            self._users[by] = None  # behind the other pools, which have the next probe first
            self._move(None)
        return self._period

    def end(
        self, attempt: object, period: int, verdict: Verdict, now: float, by: BreakerUser, error: BaseException | None
    ) -> bool:
        """Note that an attempt has ended; return whether it failed because of an outage.

        It has if it opens the breaker, or if it began before the breaker last opened or closed, or as a probe.
        """
        was_probe = self.probe is attempt
        if was_probe:
            self.probe = None
        is_failure = verdict is Verdict.FAILURE
        if period != self._period:
            return is_failure
        if self._state is CircuitState.CLOSED:
            return self._record(verdict, now, by, error)
        if verdict is Verdict.SUCCESS:  # also of a probe that was given up
            self._shut(now, by)
        elif was_probe and is_failure:
            self._reopen(now, by, error)
        elif was_probe:
            self._move(None)  # the next job is the probe
        return is_failure

    def _record(self, verdict: Verdict, now: float, by: BreakerUser, error: BaseException | None) -> bool:
        """Count an attempt while the breaker is closed; return whether that opens it."""
        if verdict is Verdict.NOTHING:
            return False
        is_failure = verdict is Verdict.FAILURE
        if len(self._recent) == self._recent.maxlen:
            self._failures -= self._recent[0]
        self._recent.append(is_failure)
        self._failures += is_failure
        if self._failures < self._threshold or not is_failure:
            return False
        self._trip(now, None, by, error)
        return True

    # -- Changes -----------------------------------------------------------------------------------------------------

    def half_open(self, by: BreakerUser | None) -> None:
        """Let a probe start, if the breaker is open: `until` has come, or the user does not want to wait for it."""
        if self._state is CircuitState.OPEN:
            self._state = CircuitState.HALF_OPEN
            self._move(BreakerChange(state=CircuitState.HALF_OPEN, by=by))

    def give_up_probe(self, now: float, by: BreakerUser) -> None:
        """Count the probe as failed, because it has not ended by `until`."""
        if self.probe is not None:
            self.probe = None
            self._reopen(now, by, None)

    def _trip(self, now: float, seconds: float | None, by: BreakerUser | None, error: BaseException | None) -> None:
        """Open because of the failures that were counted, or without an error because of a call."""
        counts = (0, 0) if error is None else (self._failures, len(self._recent))
        if self._state is CircuitState.CLOSED:
            self._reset()
            self._period += 1
            self._opened_at = now
        self._open(now, seconds, by, error, counts)

    def _reopen(self, now: float, by: BreakerUser, error: BaseException | None) -> None:
        self._failed_probes += 1
        self._open(now, None, by, error, (1, 1))

    def _open(
        self,
        now: float,
        seconds: float | None,
        by: BreakerUser | None,
        error: BaseException | None,
        counts: tuple[int, int],
    ) -> None:
        if seconds is None:
            seconds = self._following
            self._following = min(seconds * self._factor, self._max_pause)
        self._state = CircuitState.OPEN
        self._seconds = seconds
        self.until = now + seconds
        self.probe = None
        self._move(
            BreakerChange(
                state=CircuitState.OPEN,
                by=by,
                seconds=seconds,
                failures=counts[0],
                attempts=counts[1],
                error=error,
                failed_probes=self._failed_probes,
            )
        )

    def _shut(self, now: float, by: BreakerUser | None) -> None:
        """Close, and begin with an empty window."""
        self._period += 1
        seconds = now - self._opened_at
        self._reset()
        self._state = CircuitState.CLOSED
        self._move(BreakerChange(state=CircuitState.CLOSED, by=by, seconds=seconds))

    def _reset(self) -> None:
        """Forget what was counted."""
        self._recent.clear()
        self._failures = self._failed_probes = 0
        self._seconds = self._following = self._pause
        self._state = CircuitState.CLOSED
        self.probe = None

    def _move(self, change: BreakerChange | None) -> None:
        """Have all pools take jobs, or stop, and then report the change.

        What is reported is user code, which can change the breaker again: the reports stay in their order, and the
        pools act on what the state is by then (test_observers_change_the_breaker).
        """
        if change is not None:
            self._changes.append(change)
        for user in tuple(self._users):
            user.moved()
        if self._is_reporting:
            return
        self._is_reporting = True
        try:
            while self._changes:
                change = self._changes.popleft()
                users = tuple(self._users)
                logger = change.by if change.by in self._users else next(iter(users), None)
                for user in users:
                    user.report(change, is_logged=user is logger)
        finally:
            self._is_reporting = False


class Breaker(Circuit):
    """Pauses a pool while its backend is down, so that an outage costs time and no jobs.

        WorkerPool(fetch, workers=20, retry=Retry(attempts=3), breaker=Breaker(on=ConnectionError))

    When `failure_rate` of the last `window` attempts failed with errors that match `on`, the breaker **opens**: workers
    take no jobs. After `pause` seconds it is **half-open** and lets exactly one job start, the probe. If the probe
    succeeds, the breaker **closes**, and all workers go on. If the probe fails, the breaker opens for `factor` times as
    long, up to `max_pause`.

    The pattern is that of M. Nygard, Release It!, 2007, and the window of the last attempts that of resilience4j
    (COUNT_BASED). Four things differ. Both let calls fail fast while the circuit is open; here jobs wait in the queue.
    resilience4j calculates the rate when the window is full (`minimumNumberOfCalls`); here an attempt that was not made
    yet counts as a success, so the breaker opens as soon as the outcome of the missing ones cannot matter. The pause
    grows while probes fail. And a single probe decides, instead of the rate of several calls.

    **What counts.** An attempt counts when it ends. It has failed if its handler raised an error that matches `on`, or
    `RetryAfter` from one; in an exception group, if all errors in it match. Any other error is an answer of the
    backend, and counts as a success. So does `Permanent`, whatever it was raised from. Attempts that say nothing about
    the backend are ignored: those that were cancelled by their owner or by the shutdown, whose handler did not start,
    or that ended with another `PoolError` (such as `ResourceDied` or `ProcessLost`, or a `JobTimeout` that does not
    match `on`) or with what is not an `Exception`. Attempts that began before the breaker opened, or before it closed,
    do not count any more.

    **The probe.** It closes the breaker if it succeeds, or if it fails with an error that counts as a success. If it is
    ignored, the next job is the probe. If it does not end within the seconds for which the breaker was open before (at
    least `pause`), it counts as failed; if it succeeds later, it closes the breaker then. A job whose probe failed is
    delayed until the breaker closes or no other job is queued, so that a job that always fails cannot keep the breaker
    open for the others.

    **Attempts.** With `charge=False`, an attempt that fails because of the outage does not use up an attempt of its
    job. The job goes back to the queue, before all jobs that have had no attempt, even if the pool has no `retry`. This
    applies to the failure that opens the breaker, to attempts that were in progress when it opened, and to probes; not
    to `Permanent`, or to a job whose cancellation was requested or whose `max_elapsed` is over. Such an attempt counts
    in `stats.retries`, and emits `JobRetrying`, but `attempts` of the outcome and `current_job().attempt` leave it out.
    The failures before the one that opens the breaker are ordinary: they use up attempts, and without `retry` their
    jobs fail. A job can be lost to them only if `retry.attempts` is not larger than their number, `failure_rate *
    window` rounded up, minus 1: none can be with `Retry(attempts=3)` and `window=5`.

    **Deadlines** continue while the breaker is open: `max_elapsed`, `queue_timeout`, and timeouts around `submit`. Only
    `max_elapsed` bounds how often a job that always fails is put back. A pool that drains continues its probes, until
    the backend is back or its `drain_timeout` is over. `pool.resume(force=True)` lets a probe start at once. A
    `pause()` is independent of the breaker: the pool takes jobs when both allow it.

    **Sharing.** Pools of one loop can share a breaker, for one backend: all their attempts count, and there is one
    probe for all of them, in turns. A breaker belongs to a loop while pools of that loop use it; the next loop begins
    with a closed one. Give each backend a breaker of its own.

    Args:
        on: The errors of an outage: a type, a tuple of types, or a predicate. A `JobTimeout` is an `OSError`. If a
            predicate raises, that is logged, and the attempt is ignored.
        failure_rate: Which share of the last `window` attempts opens the breaker; above 0, at most 1.
        window: How many attempts are considered; at least 1.
        pause: Seconds from the opening to the first probe; above 0.
        factor: By how much each pause is longer than the previous one, while probes fail; at least 1.
        max_pause: The longest pause, in seconds; at least `pause`.
        charge: Whether attempts that fail because of the outage use up the job's attempts, like any other failure.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """

    __slots__ = ("_charge", "_failure_rate", "_on", "_window")

    def __init__(
        self,
        *,
        on: ErrorFilter = OSError,
        failure_rate: float = 0.5,
        window: int = 20,
        pause: float = 5.0,
        factor: float = 2.0,
        max_pause: float = 60.0,
        charge: bool = False,
    ) -> None:
        check_filter("on", on)
        self._on = on
        self._failure_rate = check_number("failure_rate", failure_rate, above=True)
        if self._failure_rate > 1.0:
            raise ValueError(f"failure_rate must be <= 1, got {describe(failure_rate)}")
        self._window = check_count("window", window, least=1)
        pause = check_seconds("pause", pause, positive=True)
        factor = check_number("factor", factor, least=1.0)
        max_pause = check_seconds("max_pause", max_pause)
        if max_pause < pause:
            raise ValueError(f"max_pause must be >= pause, got {max_pause} and {pause}")
        if not isinstance(charge, bool):
            raise TypeError(f"charge must be a bool, got {describe(charge)}")
        self._charge = charge
        threshold = _threshold(self._failure_rate, self._window)
        super().__init__(threshold=threshold, window=self._window, pause=pause, factor=factor, max_pause=max_pause)

    @property
    def state(self) -> str:
        """The state: "closed" (jobs run), "open" (they wait), or "half-open" (one runs, or can start)."""
        return self._state.value

    @property
    def charges(self) -> bool:
        """Whether failures because of an outage use up attempts: the argument `charge`."""
        return self._charge

    def open(self, seconds: float | None = None) -> None:
        """Open the breaker now, for instance because a health check has failed. Does not wait.

        A probe is let through after `seconds`, also if it was open before. For a pause without probes, use
        `pool.pause()`.

        Args:
            seconds: Seconds until the probe; above 0. None: `pause`, or the next longer pause after failed probes.

        Raises:
            TypeError, ValueError: `seconds` is not a number of seconds > 0.
            WrongLoop: It is used by pools of another loop.
            RuntimeError: No event loop is running in this thread.
        """
        if seconds is not None:
            seconds = check_seconds("seconds", seconds, positive=True)
        self._trip(self._now(), seconds, None, None)

    def close(self) -> None:
        """Close the breaker now, and forget the attempts that were counted. Does not wait.

        Raises:
            WrongLoop: It is used by pools of another loop.
            RuntimeError: No event loop is running in this thread.
        """
        now = self._now()
        if self.is_closed:
            self._reset()
        else:
            self._shut(now, None)

    def _now(self) -> float:
        loop = asyncio.get_running_loop()
        self.bind(loop)
        return loop.time()

    def judge(self, error: BaseException) -> Verdict:
        """Return what an error that a handler raised tells about the backend: see "What counts".

        Args:
            error: What was raised, which can be `RetryAfter` or `Permanent`, or a group with them.

        Raises:
            Exception: What a predicate `on` raised.
        """
        leaves = list(leaves_of(error))
        causes = [cause for leaf in leaves for cause in leaves_of(recorded_error(leaf))]
        if not all(map(is_safe_to_raise, (error, *causes))):
            return Verdict.NOTHING
        is_about_job = any(is_error(leaf, Permanent) for leaf in leaves)
        is_about_job |= any(is_error(cause, (JobCrashed, PoolDeadlock)) for cause in causes)
        if not is_about_job and self._selects(error, causes):
            return Verdict.FAILURE
        is_ours = any(is_error(cause, PoolError) and not is_error(cause, _ANSWERS) for cause in causes)
        return Verdict.NOTHING if is_ours else Verdict.SUCCESS

    def _selects(self, error: BaseException, causes: list[BaseException]) -> bool:
        if not is_error(error, BaseExceptionGroup):
            return matches(self._on, recorded_error(error))
        return matches(self._on, error) or all(matches(self._on, cause) for cause in causes)

    def __repr__(self) -> str:
        return f"<Breaker {self.state}: {self._failures} of the last {len(self._recent)} attempts failed>"


# Errors of asyncpool that stand for an error of the handler.
_ANSWERS = (RemoteError, RetryAdvice)


def _threshold(failure_rate: float, window: int) -> int:
    """Return the least number of failures among `window` attempts that is at least `failure_rate` of them."""
    failures = max(1, math.ceil(failure_rate * window))
    # The product is rounded: 0.07 * 100 is more than 7.
    while failures > 1 and (failures - 1) / window >= failure_rate:
        failures -= 1
    return failures
