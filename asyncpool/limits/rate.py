"""How often attempts can start: `RateLimit`, one for all jobs or one per key."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

from asyncpool._checks import check_count, check_delay, check_function, check_number, check_seconds
from asyncpool.limits.keyed import KeyedLimits
from asyncpool.limits.line import Limit, Waiter, acquire

__all__ = ["KeyedRateLimit", "RateLimit", "Weight"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

Weight: TypeAlias = Callable[[Any], float]
_Numbers: TypeAlias = tuple[float, float, int, float, float]


class StartSchedule(Limit):
    """The schedule of a `RateLimit`: when the next start is allowed. All times are loop times, in seconds.

    The base class of `RateLimit` with what pools use; users call the methods of `RateLimit` itself. The time at which
    the bucket will be empty (the "theoretical arrival time" of the algorithm) is stored less the tolerance, so that a
    timer for a start of weight 1 is exact, and not early by a rounding error.

    Args:
        numbers: Rate, period and burst; the seconds between two starts, and those by which a start can be early, which
            is what makes a burst possible.
        weight: What a start counts, by the job. None: 1.
    """

    __slots__ = (
        "_before_pause",
        "_burst",
        "_interval",
        "_is_changed",
        "_pause_ends",
        "_per",
        "_rate",
        "_tolerance",
        "_weight",
        "next_start",
    )

    def __init__(self, numbers: _Numbers, weight: Weight | None) -> None:
        super().__init__()
        self._rate, self._per, self._burst, self._interval, self._tolerance = numbers
        self._weight = weight
        self._is_changed = False
        self.next_start = -math.inf
        """Loop time from which one more start of weight 1 is allowed."""
        self._pause_ends = -math.inf
        # What `next_start` would be without the pause, as long as it is the end of that.
        self._before_pause = -math.inf

    def opens_at(self, weight: float) -> float:
        """Return the loop time from which a start of this weight is allowed: once the bucket has room for the weight,
        or is empty, if it never has that much.
        """
        if weight == 1.0:
            return self.next_start
        room = min(weight * self._interval, self._tolerance + self._interval)
        return max(self.next_start + (room - self._interval), self._pause_ends)

    def take(self, now: float, weight: float = 1.0) -> float:
        """Start now if that is allowed, and return 0.0; otherwise return the seconds until it will be allowed."""
        opens = self.next_start if weight == 1.0 else self.opens_at(weight)
        if now < opens:
            return opens - now
        if self._offered is not None:
            self._offered = None  # one start each in turn
        self.next_start = max(self.next_start, now - self._tolerance) + weight * self._interval
        return 0.0

    def take_turn(self, now: float, waiter: Waiter) -> bool:
        """Take a start of weight 1 if that is allowed and nobody waits before the waiter; return whether it was."""
        if now < self.next_start:
            return False
        if self._line is not None:
            if self._offered is not waiter:
                return False
            self._offered = None  # one start each in turn
        self.next_start = max(self.next_start, now - self._tolerance) + self._interval
        return True

    def expected_at(self, now: float) -> float:
        """Return a loop time until which a newcomer will wait, as things are."""
        return max(self.next_start, now) + self.weight_ahead() * self._interval

    def give_back(self, weight: float) -> None:
        """Undo a `take` that was not used."""
        self._use(-weight, self.next_start)

    def pause_until(self, when: float) -> None:
        """Allow no start before loop time `when`, and no burst then."""
        if when > self._pause_ends:
            self._before_pause = self._unpaused
            self._pause_ends = when
            self.next_start = max(self._before_pause, when)
            self.retime()

    @property
    def was_used(self) -> bool:
        """Whether it was ever asked for a start, charged or paused."""
        return self.next_start > -math.inf

    def is_idle(self, now: float) -> bool:
        """Return whether the schedule is in its initial state: a new one would allow the same starts."""
        return self.next_start + self._tolerance <= now and self._line is None and not self._is_changed

    def mark_as_new(self) -> None:
        """Note that a new one would have the same rate."""
        self._is_changed = False

    @property
    def max_weight(self) -> float:
        """The largest weight that it can ever give: that of a whole period, or of a burst."""
        return max(self._rate, float(self._burst))

    @property
    def is_weighted(self) -> bool:
        """Whether starts can count differently."""
        return self._weight is not None

    def weight_of(self, job: object) -> float:
        """Return how much the start of a job counts; raises what the function raises, or for a weight that is none."""
        return 1.0 if self._weight is None else check_number("the weight of a job", self._weight(job), above=True)

    @property
    def _unpaused(self) -> float:
        return self._before_pause if self.next_start == self._pause_ends else self.next_start

    def _use(self, amount: float, now: float) -> None:
        """Add to what was used, or give something of it back."""
        unpaused = self._unpaused
        if amount > 0.0:
            unpaused = max(unpaused, now - self._tolerance)
        self._set_unpaused(unpaused + amount * self._interval)

    def _set_unpaused(self, unpaused: float) -> None:
        self._before_pause = unpaused
        self.next_start = max(unpaused, self._pause_ends)
        self.retime()

    def _set_rate(self, numbers: _Numbers, now: float) -> None:
        """Go on at another rate: what was used, in starts, stays used."""
        level = (self._unpaused + self._tolerance - now) / self._interval
        self._rate, self._per, self._burst, self._interval, self._tolerance = numbers
        self._is_changed = True
        self._set_unpaused(now - self._tolerance + level * self._interval if level > 0.0 else -math.inf)


class RateLimit(StartSchedule):
    """At most `rate` starts in `per` seconds, and `burst` more at once: `rate * w / per + burst` in any window of `w`.

        WorkerPool(fetch, workers=20, limiter=RateLimit(100))              # 100/s, evenly
        WorkerPool(fetch, workers=20, limiter=RateLimit(5000, per=3600, burst=100))

        tokens = RateLimit(200_000, per=60, weight=tokens_of)
        WorkerPool(ask, workers=20, limiter=[RateLimit(500, per=60), tokens])

    The generic cell rate algorithm (GCRA; ITU-T I.371), a leaky bucket that needs one float: the time at which the
    bucket will be empty. It is exact; a bucket that is refilled periodically lets more through.

    **An API's "n per window".** `RateLimit(n, per=window)` spaces the starts evenly and uses the full rate, with
    at most n + 1 starts in any window. A `burst` comes on top of the rate: with `burst=n`, up to 2 n starts fit into
    one window, n of them at its beginning and n during it. An API that counts in fixed windows, or in a sliding one,
    rejects the starts above n. So keep `burst` small, or reduce `rate` by it: `RateLimit(n - burst, window, burst)`.

    **Weights.** With `weight`, a start counts as that many: tokens, bytes, points. It is allowed once the bucket has
    room for it, or is empty if `burst` is less than its weight. Then later starts wait until it is made up for. So
    with `burst=1`, heavy starts are spaced out in proportion to their weights. Any window of `w` seconds holds at most
    `rate * w / per + max(burst, heaviest)`, where `heaviest` is the largest weight in it. A weight above `rate` and
    above `burst` is more than the limit can give in a period: the job fails with `WeightTooLarge` and never runs. If
    the function raises, or returns anything but a number above 0, the job fails with that error.

    **Charges.** `charge(amount)` counts what is only known afterwards. It can exceed the limit; then later starts wait
    until that is made up for. For each start, a window of `w` seconds that ends with it holds at most
    `rate * w / per + max(burst, its weight)`, with all charges in the window, positive and negative.

    The pool asks the limit when a worker is about to start an attempt. While a limit without weights that is the
    only limit of all jobs is closed, jobs wait in the queue, in its order and within its bound, and count as queued;
    with `queue_size=0`, up to one job per worker can wait like this. With all others (`weight`, a list, `per_key`, a
    function), a job that must wait is delayed: it holds neither worker nor resource, jobs with other limits overtake
    it, and jobs with the same limits start in their order. A function must return the same `RateLimit` for all jobs
    that share it: `lambda job: RateLimit(1)` limits nothing, which is logged once.

    A limit can be shared by several pools on one loop, and by other code that calls `acquire`: they take turns, first
    come, first served, and it limits all of them together. It keeps times of that loop, so another loop needs another
    limit.

    Event-loop timers fire late: by up to a millisecond because of the selector, and by as long as other callbacks take.
    With `burst=1` that time is lost, because the next start must keep its distance: the rate is never exceeded, but not
    reached either (docs/benchmarks.md has figures). With a larger burst, late starts are made up for:
    `burst=1 + math.ceil(rate * 0.002)` is enough to reach the rate on an idle loop of asyncio. The timers of uvloop
    count whole milliseconds, so there it can be less.

    Args:
        rate: Starts in `per` seconds, on average; above 0. With `weight`, the sum of their weights.
        per: The period of `rate`, in seconds; above 0.
        burst: How many attempts can start at once after a period without any; at least 1.
        weight: A function of the job that returns how much its start counts: a number above 0. None: each counts 1.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """

    __slots__ = ()

    def __init__(self, rate: float, per: float = 1.0, burst: int = 1, *, weight: Weight | None = None) -> None:
        numbers = _checked(rate, per, burst)
        if weight is not None:
            check_function("weight", weight)
        super().__init__(numbers, weight)

    @staticmethod
    def per_key(
        key: Callable[[Any], Hashable],
        rate: float,
        per: float = 1.0,
        burst: int = 1,
        *,
        weight: Weight | None = None,
    ) -> KeyedRateLimit:
        """Return a limit for each key of the jobs: `RateLimit.per_key(lambda url: URL(url).host, 2)`.

        Args:
            key: A function of the job that returns its key.
            rate: Starts in `per` seconds for each key, on average; above 0.
            per: The period of `rate`, in seconds; above 0.
            burst: How many attempts of a key can start at once after a period without any; at least 1.
            weight: A function of the job that returns how much its start counts, as for `RateLimit`.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        return KeyedRateLimit(key, rate, per, burst, weight)

    def pause_for(self, seconds: float) -> None:
        """Let no attempt start for `seconds` seconds, in all pools that share the limit, as for a `Retry-After` header.

        Does not wait, and does not affect running jobs. Call it on the event loop, for instance in a handler. Negative
        seconds are 0: the time to wait for is past.

        Raises:
            TypeError, ValueError: `seconds` is not a finite number of seconds.
            RuntimeError: No event loop is running in this thread.
        """
        self.pause_until(asyncio.get_running_loop().time() + check_delay("seconds", seconds))

    def charge(self, amount: float) -> None:
        """Add `amount` to what was used, or give that much back if it is negative. For usage known only afterwards:

            reply = await ask(job)
            tokens.charge(reply.usage.total_tokens - tokens_of(job))

        Does not wait, and does not affect running jobs. Starts that wait are re-timed, in all pools that share the
        limit. What is given back beyond what was used is lost: it makes no burst larger. Call it on the event loop.

        Raises:
            TypeError, ValueError: `amount` is not a finite number, or makes up for more than a time can express.
            RuntimeError: No event loop is running in this thread.
        """
        number = check_number("amount", amount, least=-math.inf)
        now = asyncio.get_running_loop().time()
        if not math.isfinite(max(now, self._unpaused) + number * self._interval):
            raise ValueError(f"amount must be a number of starts that takes a finite time, got {amount}")
        self._use(number, now)

    def change(self, rate: float, per: float | None = None, burst: int | None = None) -> None:
        """Go on with another rate. Starts that wait are re-timed, to earlier or later, in all pools that share it.

        What was used stays used, and is made up for at the new rate. A pause goes on. Does not wait. Call it on the
        event loop.

        Args:
            rate: Starts in `per` seconds, on average; above 0.
            per: The period of `rate`, in seconds; above 0. None: as before.
            burst: How many attempts can start at once; at least 1. None: as before.

        Raises:
            TypeError, ValueError: An argument is not of its range; then nothing is changed.
            RuntimeError: The limit was used, and no event loop is running in this thread.
        """
        numbers = _checked(rate, self._per if per is None else per, self._burst if burst is None else burst)
        self._set_rate(numbers, asyncio.get_running_loop().time() if self.was_used or self.users else 0.0)

    async def acquire(self, weight: float = 1.0) -> None:
        """Wait for a start outside of a pool. First come, first served, also beside pools that wait.

        Cancel-safe: then nothing was used.

        Args:
            weight: How much the start counts; above 0.

        Raises:
            TypeError, ValueError: `weight` is not a number above 0.
            WeightTooLarge: The limit can never give that much.
            WrongLoop: The limit is used on another event loop, which is running.
        """
        await acquire(self, check_number("weight", weight, above=True))

    def __repr__(self) -> str:
        weighted = ", weight=..." if self.is_weighted else ""
        return f"RateLimit({self._rate:g}, per={self._per:g}, burst={self._burst}{weighted})"


def _checked(rate: float, per: float, burst: int) -> _Numbers:
    """Return the three as numbers, with the interval and the tolerance of the algorithm; raises if one is wrong."""
    rate = check_number("rate", rate, above=True)
    per = check_seconds("per", per, positive=True)
    burst = check_count("burst", burst, least=1)
    interval = per / rate
    try:
        tolerance = (burst - 1) * interval
    except OverflowError:
        tolerance = math.inf
    if not interval + tolerance < math.inf:
        raise ValueError(f"per / rate * burst must be a finite number of seconds, got {per} / {rate} * {burst}")
    return rate, per, burst, interval, tolerance


class KeyedRateLimit(KeyedLimits[RateLimit]):
    """A `RateLimit` for each key, such as each host. Created by `RateLimit.per_key`.

    Call it for the limit of a job, for instance to pause or charge it: `limits(url).pause_for(30)`. Look it up each
    time: the limit of a key that has been idle long enough to be in its initial state is dropped, so that memory is
    bounded by the keys in use, and not by all keys ever seen.
    """

    __slots__ = ("_burst", "_per", "_rate", "_weight")

    def __init__(
        self, key: Callable[[Any], Hashable], rate: float, per: float, burst: int, weight: Weight | None = None
    ) -> None:
        super().__init__(key)
        RateLimit(rate, per, burst, weight=weight)  # raises for invalid arguments now, and not at the first job
        self._rate, self._per, self._burst, self._weight = rate, per, burst, weight

    def change(self, rate: float, per: float | None = None, burst: int | None = None) -> None:
        """Change the limits of all keys, as `RateLimit.change` does, and of those to come.

        Raises:
            TypeError, ValueError: An argument is not of its range; then nothing is changed.
            RuntimeError: A limit was used, and no event loop is running in this thread.
        """
        per, burst = self._per if per is None else per, self._burst if burst is None else burst
        RateLimit(rate, per, burst)
        for limit in list(self._limits.values()):
            limit.change(rate, per, burst)
            limit.mark_as_new()
        self._rate, self._per, self._burst = rate, per, burst

    def _make(self) -> RateLimit:
        return RateLimit(self._rate, self._per, self._burst, weight=self._weight)

    def __repr__(self) -> str:
        weighted = "" if self._weight is None else ", weight=..."
        limit = f"RateLimit({self._rate:g}, per={self._per:g}, burst={self._burst}{weighted})"
        return f"<{limit} for each of {len(self)} keys>"
