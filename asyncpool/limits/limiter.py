"""What the option `limiter` can be: one limit or several, for all jobs or by the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeGuard, TypeVar

from asyncpool._checks import check_function
from asyncpool._guard import describe
from asyncpool.limits.concurrency import ConcurrencyLimit, KeyedConcurrencyLimit
from asyncpool.limits.keyed import KeyedLimits
from asyncpool.limits.line import Limit
from asyncpool.limits.rate import KeyedRateLimit, RateLimit

__all__ = ["Limiter", "check_unlike", "checked_limiters", "is_limit", "is_manager", "is_several"]

_JobT = TypeVar("_JobT")
_Limit: TypeAlias = (
    RateLimit | ConcurrencyLimit | KeyedRateLimit | KeyedConcurrencyLimit | AbstractAsyncContextManager[Any]
)
_Limiter: TypeAlias = _Limit | Callable[[_JobT], _Limit | Sequence[_Limit] | None]
Limiter: TypeAlias = _Limiter[_JobT] | Sequence[_Limiter[_JobT]]
"""Limits a pool's attempts: a `RateLimit` or `ConcurrencyLimit`, for all jobs or per key; an async context manager; a
function of the job that returns one of these, or a list of them, or None; or a list of all these.
"""


def is_limit(limiter: object) -> TypeGuard[Limit]:
    """Return whether a limiter is a limit of ours, which is asked before an attempt starts."""
    return isinstance(limiter, Limit)


def is_manager(limiter: object) -> TypeGuard[AbstractAsyncContextManager[Any]]:
    """Return whether a limiter is a context manager, which is entered around each attempt."""
    return isinstance(limiter, AbstractAsyncContextManager) and not isinstance(limiter, Limit)


def is_several(limiter: object) -> TypeGuard[Sequence[object]]:
    """Return whether a limiter is a list of several."""
    return isinstance(limiter, Sequence) and not isinstance(limiter, (str, bytes, bytearray, memoryview))


def checked_limiters(limiter: object) -> tuple[Any, ...]:
    """Return the limiters in what a pool got as its limiter, in their order.

    Raises:
        TypeError: It is, or contains, something else.
        ValueError: One is in it twice.
    """
    if limiter is None:
        return ()
    if not is_several(limiter):
        _check("limiter", limiter)
        return (limiter,)
    limiters = tuple(limiter)
    for place, each in enumerate(limiters):
        _check(f"limiter[{place}]", each)
    check_unlike("limiter", limiters)
    return limiters


def check_unlike(name: str, limiters: Sequence[object]) -> None:
    """Raise ValueError if one of these limiters is there twice: each attempt would take it twice."""
    if len({id(limiter) for limiter in limiters}) < len(limiters):
        twice = next(each for n, each in enumerate(limiters) if any(each is other for other in limiters[:n]))
        raise ValueError(f"{name} must not have a limit twice, got {describe(twice)} twice")


def _check(name: str, limiter: object) -> None:
    if is_limit(limiter) or isinstance(limiter, KeyedLimits) or is_manager(limiter):
        return
    if isinstance(limiter, type) or not callable(limiter):
        kinds = "an async context manager, or a list of these" if name == "limiter" else "or an async context manager"
        raise TypeError(
            f"{name} must be a RateLimit or ConcurrencyLimit, a function of the job that returns one, {kinds}, "
            f"got {describe(limiter)}"
        )
    check_function(name, limiter)
