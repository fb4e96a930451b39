"""`KeyedLimits`: a limit for each key of the jobs, kept while the key is in use."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from asyncpool._checks import check_function
from asyncpool._guard import describe
from asyncpool._logs import is_logged, log
from asyncpool.limits.line import Limit

__all__ = ["KeyedLimits"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

LimitT = TypeVar("LimitT", bound=Limit)

# Up to this many keys are kept without a search for idle ones.
_FEW_KEYS = 64


class KeyedLimits(Generic[LimitT]):
    """A limit for each key. Idle ones are forgotten, in O(1) per call, so memory is bounded by the keys in use.

    Invariant: a limit that anything else refers to is not forgotten, idle or not: it can be used later
    (test_a_limit_that_somebody_holds_is_not_forgotten).
    """

    __slots__ = ("_calls", "_key", "_limits", "_lost", "_search_at")

    def __init__(self, key: Callable[[Any], Hashable]) -> None:
        check_function("key", key)
        self._key = key
        self._limits: dict[Hashable, LimitT] = {}
        self._calls = 0  # since the last search for idle keys
        self._search_at = _FEW_KEYS
        self._lost = 0  # how often a key could not be forgotten

    def _make(self) -> LimitT:
        """Return the limit of a new key."""
        raise NotImplementedError

    def __call__(self, job: object, /) -> LimitT:
        """Return the limit of a job.

        Raises:
            TypeError: The key is not hashable.
            Exception: What the key function raised.
        """
        key = self._key(job)
        self._calls += 1
        if self._calls >= self._search_at:
            self._forget_idle_keys()
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits.setdefault(key, self._make())
        return limit

    def __len__(self) -> int:
        """Return how many keys have a limit now."""
        return len(self._limits)

    def _forget_idle_keys(self) -> None:
        """Search all keys for idle ones. The next search is after as many calls as keys remain: O(1) per call."""
        self._calls = 0
        loop = asyncio._get_running_loop()
        if loop is not None:  # without a loop there is no time to compare with
            now = loop.time()
            for key in [key for key, limit in self._limits.items() if limit.is_idle(now)]:
                try:
                    self._forget(key)
                except Exception as error:  # of `__hash__` or `__eq__`; or a KeyError, because the key has changed
                    self._lost += 1
                    if is_logged(self._lost):
                        log.warning(
                            "%r cannot forget an idle key (occurrence %d): %s", self, self._lost, describe(error)
                        )
        self._search_at = max(_FEW_KEYS, len(self._limits))

    def _forget(self, key: Hashable) -> None:
        """Drop the limit of a key, unless anything else refers to it."""
        is_used = weakref.ref(self._limits.pop(key))
        limit = is_used()
        if limit is not None:
            self._limits.setdefault(key, limit)
