"""The bounds of resources: how long user code can hold a task that opens or closes one, and how many there can be."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

__all__ = ["Bound", "PlaceHolder", "Places"]

_IGNORED_AFTER = 5.0  # seconds


class Bound:
    """The bound of one task on what it does at the moment.

    Each call of `begin()` gives it some seconds. When they are over, or earlier at `cancel_now()`, the task is
    cancelled, once. If `end()` is not called within five seconds of that, `ignored` is.
    """

    __slots__ = ("_cancel", "_context", "_ignored", "_loop", "_timer", "is_cancelled", "is_over")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        *,
        cancel: Callable[[], object],
        ignored: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._context = context
        self._cancel = cancel
        self._ignored = ignored
        self._timer: asyncio.TimerHandle | None = None
        self.is_cancelled = False
        """Whether the task was cancelled by us, since the last `begin()`."""
        self.is_over = False
        """Whether the seconds were over before the end came."""

    def begin(self, seconds: float) -> None:
        """Give the task some seconds from now on."""
        self.end()
        self.is_over = self.is_cancelled = False
        self._timer = self._loop.call_later(seconds, self._expire, context=self._context.copy())

    def cancel_now(self) -> None:
        """Do not wait for the end of the seconds. Does nothing if the task was cancelled already, or has ended."""
        if self._timer is not None and not self.is_cancelled:
            self.is_cancelled = True
            self._timer.cancel()
            self._timer = self._loop.call_later(_IGNORED_AFTER, self._is_ignored, context=self._context.copy())
            self._cancel()

    def end(self) -> None:
        """Note that the task has done it, or has given it up. Safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self.is_over = True
        self.cancel_now()

    def _is_ignored(self) -> None:
        self._timer = None
        self._ignored()


class PlaceHolder(Protocol):
    """A task that opens a resource."""

    def notify(self) -> None:
        """Note that it has a place now."""
        ...


class Places:
    """The places for resources, first come first served.

    A place is given back when its resource is closed or abandoned, and not when its worker retires: otherwise a pool
    that shrinks and grows would open new connections beside those that close slowly
    (test_never_more_resources_than_workers_however_slowly_they_close).
    """

    __slots__ = ("_limit", "_waiting", "taken")

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._waiting: OrderedDict[PlaceHolder, None] = OrderedDict()
        self.taken: set[PlaceHolder] = set()
        """Those that have a place."""

    def join(self, holder: PlaceHolder) -> None:
        """Give a task a place, now or when there is one."""
        self._waiting[holder] = None
        self.grant()

    def leave(self, holder: PlaceHolder) -> None:
        """Note that a task needs no place any more. Safe to repeat."""
        self._waiting.pop(holder, None)
        self.taken.discard(holder)
        self.grant()

    def grant(self) -> None:
        """Give the places that there are to the first that wait. Call it when the limit has changed."""
        while self._waiting and len(self.taken) < self._limit():
            holder, _ = self._waiting.popitem(last=False)
            self.taken.add(holder)
            holder.notify()
