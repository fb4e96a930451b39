"""How many attempts may start in a time: `RateLimit`, one for all jobs or one for each key.

Pure but for `pause_for`, which reads the loop's clock: a time in, seconds out. Who waits meanwhile, and where, is the
pool's (`_core/lanes.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeGuard, TypeVar

from asyncpool._checks import check_count, check_function, check_number, check_seconds

__all__ = ["KeyedRateLimit", "Limiter", "RateLimit", "is_manager"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


# So many keys are kept before the idle ones among them are looked for.
_FEW_KEYS = 64


class RateLimit:
    """At most `rate` starts in `per` seconds, and `burst` more at once: `rate * w / per + burst` in any window of `w`.

        WorkerPool(fetch, workers=20, limiter=RateLimit(100))              # 100/s, evenly
        WorkerPool(fetch, workers=20, limiter=RateLimit(5000, per=3600, burst=100))

    The generic cell rate algorithm (GCRA; ITU-T I.371), a leaky bucket that needs one float: the time at which the
    bucket will be empty. Exact, where buckets that are filled up between two looks let through more.

    A limit may be shared between pools of one loop: together they keep it.

    A timer of the loop comes late: up to a millisecond by the selector, and as long as other callbacks take. With
    `burst=1` each delay is lost, because what comes after must keep its distance: the rate is kept, and not reached
    (docs/semantics.md has figures). With more, what came late is caught up on: `burst=1 + math.ceil(rate * 0.002)` is
    enough for all of the rate on an idle loop.

    Args:
        rate: Starts in `per` seconds on the average, above 0.
        per: Seconds, above 0.
        burst: How many may start at once after a quiet time; at least 1.

    Raises:
        TypeError, ValueError: An argument is not a number of its range.
    """

    __slots__ = ("_burst", "_interval", "_per", "_rate", "_tolerance", "next_start", "users")

    def __init__(self, rate: float, per: float = 1.0, burst: int = 1) -> None:
        self._rate = check_number("rate", rate, above=True)
        self._per = check_seconds("per", per, positive=True)
        self._burst = check_count("burst", burst, least=1)
        self._interval = self._per / self._rate
        try:
            self._tolerance = (burst - 1) * self._interval
        except OverflowError:
            self._tolerance = math.inf
        if not self._interval + self._tolerance < math.inf:
            raise ValueError(f"per / rate * burst must be a finite number of seconds, got {per} / {rate} * {burst}")
        # Loop time from which one more may start: the "theoretical arrival time" of the algorithm, less its tolerance.
        # Kept as this and not as the other, so that a timer at it is exact, and not a rounding error early.
        self.next_start = float("-inf")
        # How many pools have asked in vain and got no start since. With any, it is not idle, whatever the time is; with
        # others, a pool that has just taken a start lets them try first.
        self.users = 0

    @staticmethod
    def per_key(key: Callable[[Any], Hashable], rate: float, per: float = 1.0, burst: int = 1) -> KeyedRateLimit:
        """Return a limit for each key of the jobs: `RateLimit.per_key(lambda url: URL(url).host, 2)`.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        return KeyedRateLimit(key, rate, per, burst)

    def take(self, now: float) -> float:
        """Start now if that is allowed, and return 0.0; else return the seconds until it will be, and start nothing.

        Called by pools; `now` is the time of their loop.
        """
        if now < self.next_start:
            return self.next_start - now
        self.next_start = max(self.next_start, now - self._tolerance) + self._interval
        return 0.0

    def when_to_ask(self, *, lets_others_first: bool) -> float:
        """Return the loop time at which a pool that has jobs waiting should ask again. For the pool.

        Of two that ask at the same time the same one would always win: who has just taken a start comes a hair later.
        """
        return math.nextafter(self.next_start, math.inf) if lets_others_first else self.next_start

    def join(self) -> None:
        """Say that a pool, or one more lane of it, waits for a start. For the pool."""
        self.users += 1

    def leave(self) -> None:
        """Say that it has got one, or waits no longer. For the pool."""
        self.users -= 1

    def pause_until(self, when: float) -> None:
        """Let nothing start before loop time `when`, and no burst then. `pause_for` is for handlers."""
        self.next_start = max(self.next_start, when)

    def pause_for(self, seconds: float) -> None:
        """Let nothing start for some seconds, in all pools that share the limit: as the API's `Retry-After` asks.

        To be called on the loop, by a handler for instance. Jobs that run go on.

        Raises:
            TypeError, ValueError: `seconds` is not a number of seconds >= 0.
            RuntimeError: No event loop runs here.
        """
        self.pause_until(asyncio.get_running_loop().time() + check_seconds("seconds", seconds))

    def is_idle(self, now: float) -> bool:
        """Whether it has nothing to remember: a new limit would allow the same. For the pool."""
        return self.next_start + self._tolerance <= now and not self.users

    def __repr__(self) -> str:
        return f"RateLimit({self._rate:g}, per={self._per:g}, burst={self._burst})"


class KeyedRateLimit:
    """A `RateLimit` for each key: politeness per host. Made by `RateLimit.per_key`; call it for the limit of a job.

    A key that has been idle long enough to be as good as new is forgotten, so that memory is bounded by the keys in
    use, and not by all keys there ever were.
    """

    __slots__ = ("_burst", "_calls", "_key", "_limits", "_look_at", "_per", "_rate")

    def __init__(self, key: Callable[[Any], Hashable], rate: float, per: float, burst: int) -> None:
        check_function("key", key)
        RateLimit(rate, per, burst)  # says what is wrong with them, now and not at the first job
        self._key = key
        self._rate, self._per, self._burst = rate, per, burst
        self._limits: dict[Hashable, RateLimit] = {}
        self._calls = 0  # since the idle keys were looked for
        self._look_at = _FEW_KEYS

    def __call__(self, job: object, /) -> RateLimit:
        """Return the limit of a job, for instance to pause it: `limits(url).pause_for(30)`.

        Raises:
            Exception: What the key function raised; a TypeError if the key cannot be hashed.
        """
        key = self._key(job)
        self._calls += 1
        if self._calls >= self._look_at:
            self._forget_idle_keys()
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = RateLimit(self._rate, self._per, self._burst)
        return limit

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._limits)

    def _forget_idle_keys(self) -> None:
        """Look through all keys; and not again before as many calls, so that looking costs no more than they do."""
        self._calls = 0
        loop = asyncio._get_running_loop()
        if loop is not None:  # else there is no time, and nothing that runs
            now = loop.time()
            self._limits = {key: limit for key, limit in self._limits.items() if not limit.is_idle(now)}
        self._look_at = max(_FEW_KEYS, len(self._limits))

    def __repr__(self) -> str:
        return f"<{RateLimit(self._rate, self._per, self._burst)!r} for each of {len(self)} keys>"


_JobT = TypeVar("_JobT")
Limiter: TypeAlias = (
    RateLimit
    | AbstractAsyncContextManager[Any]
    | Callable[[_JobT], RateLimit | AbstractAsyncContextManager[Any] | None]
)
"""What limits a pool's attempts: one rate for all, a context manager, or a function of the job that gives either."""


def is_manager(limiter: object) -> TypeGuard[AbstractAsyncContextManager[Any]]:
    """Whether a limiter is to be entered around each attempt."""
    return isinstance(limiter, AbstractAsyncContextManager)
