"""How often attempts can start: `RateLimit`, one for all jobs or one per key.

Pure, except for `pause_for` and the removal of idle keys, which read the loop's clock: a time in, seconds out. The pool
does the waiting (`_core/pauses.py`, `_core/lanes.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeGuard, TypeVar

from asyncpool._checks import check_count, check_delay, check_function, check_number, check_seconds

__all__ = ["KeyedRateLimit", "Limiter", "RateLimit", "StartSchedule", "is_manager"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


# Up to this many keys are kept without a search for idle ones.
_FEW_KEYS = 64


class StartSchedule:
    """The schedule of a `RateLimit`: when the next start is allowed, and how many pools are waiting for it.

    The base class of `RateLimit` with what pools use; users call the methods of `RateLimit` itself. All times are loop
    times, in seconds.

    Args:
        interval: Seconds between two starts.
        tolerance: Seconds by which a start can be early, which is what makes a burst possible.
    """

    __slots__ = ("__weakref__", "_interval", "_tolerance", "next_start", "users")

    def __init__(self, interval: float, tolerance: float) -> None:
        self._interval = interval
        self._tolerance = tolerance
        # Loop time from which one more start is allowed: the "theoretical arrival time" of the algorithm, less its
        # tolerance. Stored in this form so that a timer set to it is exact, and not early by a rounding error.
        self.next_start = float("-inf")
        # How many pools (or lanes of them) were denied a start and have not got one since. If there are any, the
        # schedule is in use, whatever the time is. If there are others, a pool that just took a start lets them try
        # first.
        self.users = 0

    def take(self, now: float) -> float:
        """Start now if that is allowed, and return 0.0; otherwise return the seconds until it will be allowed."""
        if now < self.next_start:
            return self.next_start - now
        self.next_start = max(self.next_start, now - self._tolerance) + self._interval
        return 0.0

    def when_to_ask(self, *, lets_others_first: bool) -> float:
        """Return the loop time at which a pool with waiting jobs should call `take` again.

        Of two pools that call it at the same time the same one would always win, so the pool that just took a start
        calls it one floating-point step later.
        """
        return math.nextafter(self.next_start, math.inf) if lets_others_first else self.next_start

    def join(self) -> None:
        """Count a pool, or one more lane of it, that waits for a start."""
        self.users += 1

    def leave(self) -> None:
        """Stop counting a pool or lane, because it got its start or no longer waits."""
        self.users -= 1

    def pause_until(self, when: float) -> None:
        """Allow no start before loop time `when`, and no burst then."""
        self.next_start = max(self.next_start, when)

    @property
    def was_used(self) -> bool:
        """Whether it was ever asked for a start, or paused."""
        return self.next_start > float("-inf")

    def is_idle(self, now: float) -> bool:
        """Return whether the schedule is in its initial state: a new one would allow the same starts."""
        return self.next_start + self._tolerance <= now and not self.users


class RateLimit(StartSchedule):
    """At most `rate` starts in `per` seconds, and `burst` more at once: `rate * w / per + burst` in any window of `w`.

        WorkerPool(fetch, workers=20, limiter=RateLimit(100))              # 100/s, evenly
        WorkerPool(fetch, workers=20, limiter=RateLimit(5000, per=3600, burst=100))

    The generic cell rate algorithm (GCRA; ITU-T I.371), a leaky bucket that needs one float: the time at which the
    bucket will be empty. It is exact; a bucket that is refilled periodically lets more through.

    The pool asks the limit when a worker is about to start an attempt. While a limit for all jobs is closed, jobs wait
    in the queue, in its order and within its bound, and count as queued; with `queue_size=0`, up to one job per worker
    can wait like this. With a limit per job (`per_key`, or a function), a job that must wait is delayed: it holds
    neither worker nor resource, jobs with other limits overtake it, and jobs with the same limit start in their order.
    A function must return the same `RateLimit` for all jobs that share it: `lambda job: RateLimit(1)` limits nothing,
    which is logged once.

    A limit can be shared by several pools on one loop: they take turns, and it limits all of them together. It keeps
    times of that loop, so another loop needs another limit.

    Event-loop timers fire late: by up to a millisecond because of the selector, and by as long as other callbacks take.
    With `burst=1` that time is lost, because the next start must keep its distance: the rate is never exceeded, but not
    reached either (docs/benchmarks.md has figures). With a larger burst, late starts are made up for:
    `burst=1 + math.ceil(rate * 0.002)` is enough to reach the rate on an idle loop of asyncio. The timers of uvloop
    count whole milliseconds, so there it can be less.

    Args:
        rate: Starts in `per` seconds, on average; above 0.
        per: The period of `rate`, in seconds; above 0.
        burst: How many attempts can start at once after a period without any; at least 1.

    Raises:
        TypeError, ValueError: An argument is not a number of its range.
    """

    __slots__ = ("_burst", "_per", "_rate")

    def __init__(self, rate: float, per: float = 1.0, burst: int = 1) -> None:
        self._rate = check_number("rate", rate, above=True)
        self._per = check_seconds("per", per, positive=True)
        self._burst = check_count("burst", burst, least=1)
        interval = self._per / self._rate
        try:
            tolerance = (self._burst - 1) * interval
        except OverflowError:
            tolerance = math.inf
        if not interval + tolerance < math.inf:
            raise ValueError(f"per / rate * burst must be a finite number of seconds, got {per} / {rate} * {burst}")
        super().__init__(interval, tolerance)

    @staticmethod
    def per_key(key: Callable[[Any], Hashable], rate: float, per: float = 1.0, burst: int = 1) -> KeyedRateLimit:
        """Return a limit for each key of the jobs: `RateLimit.per_key(lambda url: URL(url).host, 2)`.

        Args:
            key: A function of the job that returns its key.
            rate: Starts in `per` seconds for each key, on average; above 0.
            per: The period of `rate`, in seconds; above 0.
            burst: How many attempts of a key can start at once after a period without any; at least 1.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        return KeyedRateLimit(key, rate, per, burst)

    def pause_for(self, seconds: float) -> None:
        """Let no attempt start for `seconds` seconds, in all pools that share the limit, as for a `Retry-After` header.

        Does not wait, and does not affect running jobs. Call it on the event loop, for instance in a handler. Negative
        seconds are 0: the time to wait for is past.

        Raises:
            TypeError, ValueError: `seconds` is not a finite number of seconds.
            RuntimeError: No event loop is running in this thread.
        """
        self.pause_until(asyncio.get_running_loop().time() + check_delay("seconds", seconds))

    def __repr__(self) -> str:
        return f"RateLimit({self._rate:g}, per={self._per:g}, burst={self._burst})"


class KeyedRateLimit:
    """A `RateLimit` for each key, such as each host. Created by `RateLimit.per_key`; call it for the limit of a job.

    The limit of a key that has been idle long enough to be in its initial state is dropped, so that memory is bounded
    by the keys in use, and not by all keys ever seen.
    """

    __slots__ = ("_burst", "_calls", "_key", "_limits", "_per", "_rate", "_search_at")

    def __init__(self, key: Callable[[Any], Hashable], rate: float, per: float, burst: int) -> None:
        check_function("key", key)
        RateLimit(rate, per, burst)  # raises for invalid arguments now, and not at the first job
        self._key = key
        self._rate, self._per, self._burst = rate, per, burst
        self._limits: dict[Hashable, RateLimit] = {}
        self._calls = 0  # since the last search for idle keys
        self._search_at = _FEW_KEYS

    def __call__(self, job: object, /) -> RateLimit:
        """Return the limit of a job, for instance to pause it: `limits(url).pause_for(30)`.

        Raises:
            TypeError: The key is not hashable.
            Exception: What the key function raised.
        """
        key = self._key(job)
        self._calls += 1
        if self._calls >= self._search_at:
            self._drop_idle_keys()
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = RateLimit(self._rate, self._per, self._burst)
        return limit

    def __len__(self) -> int:
        """Return how many keys have a limit now."""
        return len(self._limits)

    def _drop_idle_keys(self) -> None:
        """Search all keys for idle ones. The next search is after as many calls as keys remain: O(1) per call."""
        self._calls = 0
        loop = asyncio._get_running_loop()
        if loop is not None:  # without a loop there is no time to compare with
            now = loop.time()
            self._limits = {key: limit for key, limit in self._limits.items() if not limit.is_idle(now)}
        self._search_at = max(_FEW_KEYS, len(self._limits))

    def __repr__(self) -> str:
        return f"<{RateLimit(self._rate, self._per, self._burst)!r} for each of {len(self)} keys>"


_JobT = TypeVar("_JobT")
Limiter: TypeAlias = (
    RateLimit
    | AbstractAsyncContextManager[Any]
    | Callable[[_JobT], RateLimit | AbstractAsyncContextManager[Any] | None]
)
"""Limits a pool's attempts: one rate for all, a context manager, or a function of the job that returns either."""


def is_manager(limiter: object) -> TypeGuard[AbstractAsyncContextManager[Any]]:
    """Return whether a limiter is a context manager, which is entered around each attempt."""
    return isinstance(limiter, AbstractAsyncContextManager)
