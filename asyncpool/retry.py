"""When a failed job is tried again: `Retry`, and `RetryBudget`, which keeps an outage from doubling the load.

Pure: an attempt's number and error in, seconds out. The waiting, and who may go on meanwhile, is the pool's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from asyncpool._checks import check_count, check_filter, check_number, check_seconds
from asyncpool.errors import (
    ErrorFilter,
    JobCrashed,
    PoolDeadlock,
    RetryAdvice,
    RetryAfter,
    is_safe_to_raise,
    matches,
    recorded_error,
)

__all__ = ["Retry", "RetryBudget", "RetryTally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Bounds retries by fresh work, so that a backend that is down does not get its load several times over.

    In the last `window` seconds there are at most `ratio` x (jobs accepted in them) + `min_per_second` x `window`
    retries; they are counted in tenths of it, so that a window is up to a tenth longer. Each pool counts for itself.
    After Finagle's RetryBudget and tower's Budget.

    Args:
        ratio: Retries for each fresh job, on the average.
        min_per_second: Retries that are always allowed, for pools with little work.
        window: Seconds over which they are counted.

    Raises:
        TypeError, ValueError: An argument is not a number of its range.
    """

    ratio: float = 0.2
    min_per_second: float = 10.0
    window: float = 10.0

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio)
        check_number("min_per_second", self.min_per_second)
        check_seconds("window", self.window, positive=True)

    def start(self) -> RetryTally:
        """Return the count of one pool. For the pool."""
        return RetryTally(self)


class RetryTally:
    """How much of a budget a pool has used, in slices of a tenth of its window."""

    __slots__ = ("_accepted", "_budget", "_retries", "_slices")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        # [begin, jobs accepted, retries made] of each slice in which there were any, and their sums.
        self._slices: deque[list[float]] = deque()
        self._accepted = 0.0
        self._retries = 0.0

    def deposit(self, now: float) -> None:
        """Count a job that was accepted."""
        self._go_on(now)
        self._slices[-1][1] += 1
        self._accepted += 1

    def withdraw(self, now: float) -> bool:
        """Return whether one more retry is allowed now, and count it if so."""
        self._go_on(now)
        budget = self._budget
        if self._retries + 1 > budget.ratio * self._accepted + budget.min_per_second * budget.window:
            return False
        self._slices[-1][2] += 1
        self._retries += 1
        return True

    def _go_on(self, now: float) -> None:
        slices, window = self._slices, self._budget.window
        # A slice counts until all of it is older than the window, so that no retry is forgotten too soon.
        while slices and slices[0][0] <= now - 1.1 * window:
            _, old_accepted, old_retries = slices.popleft()
            self._accepted -= old_accepted
            self._retries -= old_retries
        if not slices or slices[-1][0] <= now - 0.1 * window:
            slices.append([now, 0, 0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a failed job is tried again, and after what time.

    Without `jitter` the pauses are `backoff`, `backoff * factor`, `backoff * factor**2` ... seconds, at most
    `max_backoff`: by default 0.1, 0.2, 0.4 ... 5.0. With it, each is drawn evenly from between 0 and that. It is the
    "full jitter" of M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015, where it makes the fewest
    calls of all variants, and it needs no memory of the pause before. A pause that a handler asked for by `RetryAfter`
    is a floor: what jitter draws comes on top.

    Frozen, and shared between pools as you like: what changes belongs to the pool.

    Args:
        attempts: How many attempts a job gets in all; at least 1.
        backoff: Seconds before the second attempt.
        factor: How much longer each pause is than the one before; at least 1.
        max_backoff: The longest pause, in seconds; at least `backoff`.
        jitter: Whether pauses are random.
        on: Which errors are tried again: a type, a tuple of types, or a predicate. Never are those that would harm an
            innocent caller (see `JobCrashed`), `PoolDeadlock`, `Permanent`, and jobs that were cancelled.
        max_elapsed: Seconds from a job's acceptance in which it has to be done: an attempt that runs into that is
            cancelled, a job that is taken later is not run (both fail with `JobExpired`), and a pause that would pass
            it is not made: the job fails now, with its last error. None: no limit.
        budget: Bounds retries by fresh work. What it rejects fails at once, with a note at the error. None: no bound.

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
    budget: RetryBudget | None = None

    def __post_init__(self) -> None:
        check_count("attempts", self.attempts, least=1)
        check_seconds("backoff", self.backoff)
        check_seconds("max_backoff", self.max_backoff)
        if self.max_backoff < self.backoff:
            raise ValueError(f"max_backoff must be >= backoff, got {self.max_backoff} and {self.backoff}")
        check_number("factor", self.factor, least=1.0)
        if not isinstance(self.jitter, bool):
            raise TypeError(f"jitter must be a bool, got {self.jitter!r}")
        check_filter("on", self.on)
        if self.max_elapsed is not None:
            check_seconds("max_elapsed", self.max_elapsed, positive=True)
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            raise TypeError(f"budget must be a RetryBudget, got {self.budget!r}")

    def delay(self, attempt: int, error: BaseException, random: Random) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is to be none.

        Args:
            attempt: Which attempt has failed, counted from 1.
            error: What it raised, `RetryAfter` and `Permanent` as they are.
            random: Where jitter comes from.

        Raises:
            Exception: What a predicate `on` raised, or that a `RetryAfter` has something else than seconds by now.
        """
        if attempt >= self.attempts or not self._is_meant(error):
            return None
        try:
            pause = min(self.backoff * self.factor ** (attempt - 1), self.max_backoff)
        except OverflowError:
            pause = self.max_backoff if self.backoff else 0.0
        floor = check_seconds("seconds", error.seconds) if isinstance(error, RetryAfter) else 0.0
        return floor + random.uniform(0.0, pause) if self.jitter else max(floor, pause)

    def _is_meant(self, error: BaseException) -> bool:
        cause = recorded_error(error)
        if not is_safe_to_raise(cause) or isinstance(cause, (JobCrashed, PoolDeadlock)):
            return False
        if isinstance(error, RetryAdvice):
            return isinstance(error, RetryAfter)
        return matches(self.on, error)
