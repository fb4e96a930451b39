"""What is due at a time: one heap and one timer of the loop, however much waits.

What happens then is whoever's who set the alarm.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Generic, TypeVar

__all__ = ["Alarms"]

ItemT = TypeVar("ItemT")

# So many go off in one turn of the loop: a hundred thousand that are due at the same moment shall not stop it.
_BATCH = 500


class Alarms(Generic[ItemT]):
    """Calls `ring(item)` when an item's time has come, in the order of the times, then of their setting.

    An item that is dead by then (`is_live` says so) is passed over: removing from the middle of a heap would cost a
    walk. They are swept before they outnumber the living. `ring` must not raise, and may set alarms.
    """

    __slots__ = ("_context", "_dead", "_due", "_heap", "_is_live", "_loop", "_numbers", "_ring", "_timer")

    def __init__(self, ring: Callable[[ItemT], None], is_live: Callable[[ItemT], bool]) -> None:
        self._ring = ring
        self._is_live = is_live
        self._heap: list[tuple[float, int, ItemT]] = []
        self._dead = 0
        self._numbers = 0
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # of the timer; not asked of it, because uvloop's need not know

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._loop = loop
        self._context = context

    @property
    def size(self) -> int:
        """How many living items wait."""
        return len(self._heap) - self._dead

    def __iter__(self) -> Iterator[ItemT]:
        """The living, in no order."""
        return (item for _, _, item in self._heap if self._is_live(item))

    def set(self, when: float, item: ItemT) -> None:
        """Ring for `item` at loop time `when`, in a turn of its own, even if that is over."""
        self._numbers += 1
        heapq.heappush(self._heap, (when, self._numbers, item))
        self._arm()

    def forget(self, item: ItemT, /) -> None:
        """Say that an item that waits here is dead now."""
        self._dead += 1
        if self._dead > len(self._heap) // 2 + 32:
            self._heap = [entry for entry in self._heap if self._is_live(entry[2])]
            heapq.heapify(self._heap)
            self._dead = 0
        if not self.size:
            self.clear()  # nobody shall be woken for the dead alone

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._dead = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if not self._heap:
            return
        when = self._heap[0][0]
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        self._due = when
        self._timer = self._loop.call_at(when, self._go_off, context=self._context)

    def _go_off(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            for _ in range(_BATCH):
                if not self._heap or self._heap[0][0] > now:
                    break
                _, _, item = heapq.heappop(self._heap)
                if self._is_live(item):
                    self._ring(item)
                else:
                    self._dead -= 1
        finally:
            self._arm()
