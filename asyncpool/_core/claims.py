"""What a job needs before an attempt at it can start: its limits, with their weights, and its context managers.

Who calls the user's functions for it, and what waits for a limit, is `gated.py` and `lanes.py`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncpool._guard import describe
from asyncpool._logs import log
from asyncpool.limits.keyed import KeyedLimits
from asyncpool.limits.limiter import check_unlike, is_limit, is_manager, is_several
from asyncpool.limits.line import Limit

__all__ = ["Claims", "Resolver"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

# A function of a pool's limits is suspected after this many limits that nothing keeps, or that were never used before.
_MAX_GONE = 10
_MAX_UNUSED = 1000


class Claims:
    """What one attempt takes: a weight of each limit. The context managers are entered later, around the attempt."""

    __slots__ = ("limits", "managers", "weights")

    def __init__(self) -> None:
        self.limits: tuple[Limit, ...] = ()
        self.weights: tuple[float, ...] = ()
        self.managers: tuple[AbstractAsyncContextManager[Any], ...] = ()

    def add(self, limit: Limit, job: object) -> None:
        """Claim a limit for a job."""
        self.limits += (limit,)
        self.weights += (limit.weight_of(job),)

    def check(self) -> None:
        """Raise WeightTooLarge if a limit can never give its weight."""
        for limit, weight in zip(self.limits, self.weights, strict=True):
            if weight > 1.0:  # every limit gives that
                limit.check_weight(weight)

    def denied_by(self, now: float) -> Limit | None:
        """Return the first limit that is closed."""
        for limit, weight in zip(self.limits, self.weights, strict=True):
            if limit.opens_at(weight) > now:
                return limit
        return None


class _ReuseCheck:
    """Calls the function of a pool's limits until it returns one that was used before, and warns if it never does.

    `limiter=lambda job: RateLimit(1)` limits nothing: each limit is asked once. It is noticed by limits that are gone
    when the next is asked for, because only the pool referred to them, or by many that are all unused.
    """

    __slots__ = ("_function", "_gone", "_is_over", "_last", "_name", "_unused")

    def __init__(self, function: Callable[[Any], object], name: str) -> None:
        self._function = function
        self._name = name
        self._last: weakref.ref[Limit] | None = None
        self._gone = 0
        self._unused = 0
        self._is_over = False

    def __call__(self, job: Any) -> tuple[object, ...]:
        """Return what the function returns, as a tuple."""
        returned = self._function(job)
        if returned is None:
            return ()
        limiters = tuple(returned) if is_several(returned) else (returned,)
        if not self._is_over:
            for limit in limiters:
                if is_limit(limit):
                    self._look_at(limit)
        return limiters

    def _look_at(self, limit: Limit) -> None:
        self._unused += 1
        self._gone += self._last is not None and self._last() is None
        self._last = weakref.ref(limit)
        is_new_each_time = self._gone >= _MAX_GONE or self._unused >= _MAX_UNUSED
        if is_new_each_time and not self._is_over:
            kind = "ConcurrencyLimit" if limit.has_slots else "RateLimit"
            log.warning(
                "pool %r: the limiter function has returned %d %s, each of them new, so nothing was "
                "limited: return the same %s for jobs that share it, or use %s.per_key",
                self._name,
                self._unused,
                "concurrency limits" if limit.has_slots else "rate limits",
                kind,
                kind,
            )
        self._is_over |= is_new_each_time or limit.was_used


class Resolver:
    """Finds out what a job claims.

    Args:
        limiters: What the pool got as its limiter: limits, limits by a key, context managers, functions of the job.
        name: The pool's, for the log.
    """

    __slots__ = ("_can_repeat", "_limiters", "_loop", "has_managers", "shared")

    def __init__(self, limiters: tuple[Any, ...], name: str) -> None:
        # A keyed limit returns a new one for each new key, as it should.
        self._limiters = tuple(
            each if is_limit(each) or isinstance(each, KeyedLimits) or is_manager(each) else _ReuseCheck(each, name)
            for each in limiters
        )
        self.shared: tuple[Limit, ...] = tuple(each for each in limiters if is_limit(each))
        """The limits that every job has."""
        has_functions = any(isinstance(each, _ReuseCheck) for each in self._limiters)
        self.has_managers = has_functions or any(is_manager(each) for each in limiters)
        """Whether a job can have a context manager."""
        self._can_repeat = has_functions or len(limiters) > 1
        self._loop: asyncio.AbstractEventLoop

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind to the running loop."""
        self._loop = loop

    def __call__(self, job: Any) -> Claims:
        """Return what a job claims.

        Raises:
            TypeError: A function has returned something else than limits.
            ValueError: The job has a limit twice.
            WeightTooLarge: A limit can never give its weight.
            WrongLoop: A limit is used on another loop, which is running.
            Exception: What a function of the user has raised.
        """
        claims = Claims()
        for limiter in self._limiters:
            if isinstance(limiter, _ReuseCheck):
                for each in limiter(job):
                    self._add(claims, each, job)
            else:
                self._add(claims, limiter, job)
        if self._can_repeat:
            check_unlike("the limiter of a job", claims.limits + claims.managers)
        claims.check()
        for limit in claims.limits:
            limit.bind(self._loop)
        return claims

    def _add(self, claims: Claims, limiter: object, job: Any) -> None:
        if is_limit(limiter):
            claims.add(limiter, job)
        elif isinstance(limiter, KeyedLimits):
            claims.add(limiter(job), job)
        elif is_manager(limiter):
            claims.managers += (limiter,)
        else:
            raise TypeError(
                "the function that is the limiter must return a RateLimit, a ConcurrencyLimit, an async context "
                f"manager, None, or a list of these, got {describe(limiter)}"
            )
