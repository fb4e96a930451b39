"""What a job needs before an attempt at it can start: its limits, with their weights, and its context managers.

Who calls the user's functions for it, and what waits for a limit, is `gated.py` and `lanes.py`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

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

    def __init__(self, limits: tuple[Limit, ...] = (), weights: tuple[float, ...] = ()) -> None:
        self.limits = limits
        self.weights = weights
        self.managers: tuple[AbstractAsyncContextManager[Any], ...] = ()

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

    __slots__ = ("_gone", "_last", "_name", "_unused", "function", "is_over")

    def __init__(self, function: Callable[[Any], object], name: str) -> None:
        self.function = function
        self._name = name
        self._last: weakref.ref[Limit] | None = None
        self._gone = 0
        self._unused = 0
        self.is_over = False

    def __call__(self, job: Any) -> object:
        returned = self.function(job)
        for limit in returned if is_several(returned) else (returned,):
            if is_limit(limit) and not self.is_over:
                self._look_at(limit)
        return returned

    def _look_at(self, limit: Limit) -> None:
        self._unused += 1
        self._gone += self._last is not None and self._last() is None
        self._last = weakref.ref(limit)
        is_new_each_time = self._gone >= _MAX_GONE or self._unused >= _MAX_UNUSED
        if is_new_each_time:
            kind = "ConcurrencyLimit" if limit.has_slots else "RateLimit"
            log.warning(
                "pool %r: the limiter function has returned %d %s, all of them new, so nothing was "
                "limited: return the same %s for jobs that share it, or use %s.per_key",
                self._name,
                self._unused,
                "concurrency limits" if limit.has_slots else "rate limits",
                kind,
                kind,
            )
        self.is_over = is_new_each_time or limit.was_used


class Resolver:
    """Finds out what a job claims.

    Args:
        limiters: What the pool got as its limiter: limits, limits by a key, context managers, functions of the job.
        name: The pool's, for the log.
    """

    __slots__ = ("_can_repeat", "_limiters", "_loop", "has_managers", "shared")

    def __init__(self, limiters: tuple[Any, ...], name: str) -> None:
        # Each limit or context manager, or what returns it for a job; and whether it is that.
        self._limiters: list[tuple[Any, bool]] = []
        has_functions = False
        for limiter in limiters:
            if is_limit(limiter) or is_manager(limiter):
                self._limiters.append((limiter, False))
            elif isinstance(limiter, KeyedLimits):  # it returns a new one for each new key, as it should
                self._limiters.append((cast("object", limiter), True))
            else:
                has_functions = True
                self._limiters.append((_ReuseCheck(cast("Callable[[Any], object]", limiter), name), True))
        self.shared: tuple[Limit, ...] = tuple(each for each in limiters if is_limit(each))
        """The limits that every job has."""
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
        claims: Claims | None = None
        for place, (limiter, is_function) in enumerate(self._limiters):
            limit = limiter(job) if is_function else limiter
            if type(limiter) is _ReuseCheck and limiter.is_over:
                self._limiters[place] = limiter.function, True
            if isinstance(limit, Limit) and claims is None:  # most jobs have one limit
                weight = limit.weight_of(job)
                if weight > 1.0:
                    limit.check_weight(weight)
                if limit.loop is not self._loop:
                    limit.bind(self._loop)
                claims = Claims((limit,), (weight,))
            elif limit is not None:
                claims = claims or Claims()
                for each in limit if is_several(limit) else (limit,):
                    self._add(claims, each, job)
        if claims is None:
            return Claims()
        if self._can_repeat and len(claims.limits) + len(claims.managers) > 1:
            check_unlike("the limiter of a job", claims.limits + claims.managers)
        return claims

    def _add(self, claims: Claims, limiter: object, job: Any) -> None:
        limit: object = cast("KeyedLimits[Limit]", limiter)(job) if isinstance(limiter, KeyedLimits) else limiter
        if is_limit(limit):
            weight = limit.weight_of(job)
            limit.check_weight(weight)
            limit.bind(self._loop)
            claims.limits += (limit,)
            claims.weights += (weight,)
        elif is_manager(limit):
            claims.managers += (limit,)
        else:
            raise TypeError(
                "limiter(job) must return a RateLimit, a ConcurrencyLimit, an async context manager, None, or a list of"
                f" these, got {describe(limit)}"
            )
