"""When a pool pauses because its backend is down: `Breaker`, a circuit breaker that makes jobs wait instead of fail.

Pure, except for `open` and `close`, which read the loop's clock. The state machine is `circuit.py`. The pool sets the
timers and does the waiting (`_core/breaking.py`).
"""

from __future__ import annotations

import asyncio
import math

from asyncpool._checks import check_count, check_filter, check_number, check_seconds
from asyncpool._guard import describe, is_error, leaves_of
from asyncpool.circuit import Circuit, Verdict
from asyncpool.errors import (
    ErrorFilter,
    JobCrashed,
    Permanent,
    PoolDeadlock,
    PoolError,
    RemoteError,
    RetryAdvice,
    is_safe_to_raise,
    matches,
    recorded_error,
)

__all__ = ["Breaker"]


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
