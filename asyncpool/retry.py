"""When a failed job is retried: `Retry`, and `RetryBudget`, which keeps retries from making an outage worse.

Pure: an attempt's number and error in, seconds out. The pool does the waiting (`_core/retries.py`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from asyncpool._checks import check_count, check_delay, check_filter, check_number, check_seconds, convert_field
from asyncpool._guard import describe, is_error, leaves_of
from asyncpool.errors import (
    ErrorFilter,
    JobCrashed,
    PoolDeadlock,
    RetryAdvice,
    RetryAfter,
    is_safe_to_raise,
    matches,
    pauses_in,
    recorded_error,
)

__all__ = ["Retry", "RetryBudget", "RetryTally", "seconds_advised"]

_MAX_RETRY_AFTER = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Limits retries to a share of the accepted jobs, so that retries do not multiply the load on a failing backend.

    In any `window` seconds there are at most `ratio` x (jobs accepted in them) + `min_per_second` x `window` retries.
    Both are counted in tenths of the window, so a window can be up to a tenth longer. Each pool counts separately.
    After Finagle's RetryBudget and tower's Budget.

    A job whose retry is denied fails at once, with a note on its error. These are counted in `stats.retries_rejected`,
    and the 1st, 2nd, 4th, 8th ... is logged.

    Args:
        ratio: Retries per accepted job, on average.
        min_per_second: Retries per second that are always allowed, for pools with few jobs.
        window: Seconds over which jobs and retries are counted.

    Raises:
        TypeError, ValueError: An argument is not a number of its range.
    """

    ratio: float = 0.2
    min_per_second: float = 10.0
    window: float = 10.0

    def __post_init__(self) -> None:
        convert_field(self, "ratio", check_number)
        convert_field(self, "min_per_second", check_number)
        convert_field(self, "window", check_seconds, positive=True)

    def start(self) -> RetryTally:
        """Return a new, empty tally, with which one pool counts its own jobs and retries."""
        return RetryTally(self)


class RetryTally:
    """How much of a `RetryBudget` one pool has used, counted in tenths of its window. Created by `RetryBudget.start`.

    It reads no clock: `now` is a time in seconds that never decreases, such as that of the event loop.
    """

    __slots__ = ("_accepted", "_budget", "_retries", "_slices")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        # [begin, jobs accepted, retries made] of each slice that is not empty, and the sums of both.
        self._slices: deque[list[float]] = deque()
        self._accepted = 0.0
        self._retries = 0.0

    def deposit(self, now: float) -> None:
        """Count a job that was accepted at time `now`."""
        self._advance(now)
        self._slices[-1][1] += 1
        self._accepted += 1

    def withdraw(self, now: float) -> bool:
        """Return whether one more retry is allowed at time `now`, and count it if so."""
        self._advance(now)
        budget = self._budget
        if self._retries + 1 > budget.ratio * self._accepted + budget.min_per_second * budget.window:
            return False
        self._slices[-1][2] += 1
        self._retries += 1
        return True

    def _advance(self, now: float) -> None:
        slices, window = self._slices, self._budget.window
        # A slice counts until all of it is older than the window, so that no retry is dropped too early.
        while slices and slices[0][0] <= now - 1.1 * window:
            _, old_accepted, old_retries = slices.popleft()
            self._accepted -= old_accepted
            self._retries -= old_retries
        if not slices or slices[-1][0] <= now - 0.1 * window:
            slices.append([now, 0, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a failed job is retried, and after what backoff.

    Without `jitter` the backoffs are `backoff`, `backoff * factor`, `backoff * factor**2` ... seconds, capped at
    `max_backoff`: by default 0.1, 0.2, 0.4 ... 5.0. With it, each is drawn uniformly from between 0 and that value.
    This is the "full jitter" of M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015, which makes
    the fewest calls of all variants there, and does not depend on the previous backoff. The seconds of a `RetryAfter`
    are the minimum of the next backoff, and jitter is added to them. They are capped at `max_retry_after`, so that a
    server that answers nonsense cannot stop the jobs, or the pool, for a year.

    A failed attempt frees its worker, and the job is delayed. After its backoff it returns to the queue, before the
    jobs of equal priority that have had no attempt, and even if the queue is full. All attempts run in the context of
    the job, so each sees the context variables that an earlier one has set. `current_job().attempt` is the number of
    the attempt.

    Frozen, so it can be shared between pools: each pool keeps its own counts.

    Args:
        attempts: How many attempts a job gets in all; at least 1.
        backoff: Seconds before the second attempt; at least 0.
        factor: By how much each backoff is longer than the previous one; at least 1.
        max_backoff: The longest backoff, in seconds; at least `backoff`.
        jitter: Whether backoffs are random.
        on: Which errors are retried: a type, a tuple of types, or a predicate. A `JobTimeout` is a `TimeoutError`, and
            so an `OSError`: `OSError` selects it, `ConnectionError` does not. Errors that are not safe to re-raise in a
            caller (see `JobCrashed`), `PoolDeadlock`, `Permanent` and jobs with a requested cancellation are never
            retried. If a predicate raises, that is logged, and the job fails with its own error.
        max_elapsed: Seconds from a job's acceptance within which it must complete. An attempt that is running then is
            cancelled, and a job that a worker takes later is not run: both fail with `JobExpired`. A job that waits
            while the pool is paused, or while the rate limit of all jobs is closed for a second or more, fails with it
            as soon as the seconds are over. If a backoff would end later, the job fails at once with its last error.
            None: no limit.
        max_retry_after: The most seconds of a `RetryAfter` that count, for the backoff of its job and for the pause of
            the pool, which begins even if this was the last attempt; at least 0.
        budget: Limits retries to a share of the accepted jobs. None: no limit.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """

    attempts: int = 3
    backoff: float = 0.1
    factor: float = 2.0
    max_backoff: float = 5.0
    jitter: bool = True
    on: ErrorFilter = Exception
    max_elapsed: float | None = None
    max_retry_after: float = _MAX_RETRY_AFTER
    budget: RetryBudget | None = None

    def __post_init__(self) -> None:
        convert_field(self, "attempts", check_count, least=1)
        convert_field(self, "backoff", check_seconds)
        convert_field(self, "max_backoff", check_seconds)
        if self.max_backoff < self.backoff:
            raise ValueError(f"max_backoff must be >= backoff, got {self.max_backoff} and {self.backoff}")
        convert_field(self, "factor", check_number, least=1.0)
        if not isinstance(self.jitter, bool):
            raise TypeError(f"jitter must be a bool, got {describe(self.jitter)}")
        check_filter("on", self.on)
        if self.max_elapsed is not None:
            convert_field(self, "max_elapsed", check_seconds, positive=True)
        convert_field(self, "max_retry_after", check_seconds)
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            raise TypeError(f"budget must be a RetryBudget, got {describe(self.budget)}")

    def delay(self, attempt: int, error: BaseException, random: Random) -> float | None:
        """Return the seconds to wait before the next attempt; None if the job must not be retried.

        Args:
            attempt: Which attempt has failed, counted from 1.
            error: What it raised, which can be `RetryAfter` or `Permanent`.
            random: The random number generator for jitter.

        Raises:
            TypeError, ValueError: The `seconds` of a `RetryAfter` were changed to what is not a finite number.
            Exception: What a predicate `on` raised.
        """
        if attempt >= self.attempts or not self._is_meant(error):
            return None
        try:
            pause = min(self.backoff * self.factor ** (attempt - 1), self.max_backoff)
        except OverflowError:
            pause = self.max_backoff if self.backoff else 0.0
        floor = max((seconds_advised(advice, self) for advice in pauses_in(error)), default=0.0)
        return floor + random.uniform(0.0, pause) if self.jitter else max(floor, pause)

    def _is_meant(self, error: BaseException) -> bool:
        leaves = list(leaves_of(error))
        for cause in (error, *map(recorded_error, leaves)):
            if not is_safe_to_raise(cause) or is_error(cause, (JobCrashed, PoolDeadlock)):
                return False
        advice = [leaf for leaf in leaves if is_error(leaf, RetryAdvice)]
        if not advice:
            return matches(self.on, error)
        if not all(is_error(leaf, RetryAfter) for leaf in advice):
            return False
        return all(leaf in advice or matches(self.on, leaf) for leaf in leaves)


def seconds_advised(advice: RetryAfter, policy: Retry | None) -> float:
    """Return the seconds of a `RetryAfter` that count.

    Raises:
        TypeError, ValueError: They were changed to something that is not a finite number.
    """
    most = _MAX_RETRY_AFTER if policy is None else policy.max_retry_after
    return min(check_delay("seconds", advice.seconds), most)
