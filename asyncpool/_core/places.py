"""Which workers may have a resource: never more are opening, open or closing than there can be workers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

__all__ = ["PlaceHolder", "Places"]


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
