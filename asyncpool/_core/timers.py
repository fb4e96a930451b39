"""Items that are due at a time: one heap and one timer of the loop, however many wait.

What happens when an item is due is decided by the owner of the heap.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Generic, TypeVar

__all__ = ["TimerHeap"]

ItemT = TypeVar("ItemT")

# At most this many per loop iteration, so that 100,000 due at once do not block the loop.
_BATCH = 500


class TimerHeap(Generic[ItemT]):
    """Calls `on_due(item)` when an item is due, in the order of the times, then in the order of scheduling.

    An item that is no longer live by then (`is_live` decides) is skipped: removing from the middle of a heap would
    cost a walk. Such tombstones are swept before they outnumber the live items. `on_due` must not raise, and can
    schedule items. Guarded by tests/test_timers.py.
    """

    __slots__ = ("_context", "_due", "_heap", "_is_live", "_loop", "_numbers", "_on_due", "_timer", "_tombstones")

    def __init__(self, on_due: Callable[[ItemT], None], is_live: Callable[[ItemT], bool]) -> None:
        self._on_due = on_due
        self._is_live = is_live
        self._heap: list[tuple[float, int, ItemT]] = []
        self._tombstones = 0
        self._numbers = 0
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # of the timer; a handle of uvloop cannot be asked for it

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._loop = loop
        self._context = context

    @property
    def size(self) -> int:
        """How many live items wait."""
        return max(0, len(self._heap) - self._tombstones)

    def __iter__(self) -> Iterator[ItemT]:
        """The live items, in no order."""
        return (item for _, _, item in self._heap if self._is_live(item))

    def schedule(self, when: float, item: ItemT) -> None:
        """Call `on_due(item)` at loop time `when`, in a later loop iteration even if `when` is past."""
        self._numbers += 1
        heapq.heappush(self._heap, (when, self._numbers, item))
        self._arm()

    def schedule_all(self, items: Iterable[tuple[float, ItemT]]) -> None:
        """Do what `schedule` does, for many items at once: the heap is built once, and not sifted for each."""
        self._heap += [(when, number, item) for number, (when, item) in enumerate(items, self._numbers + 1)]
        self._numbers += len(self._heap)
        heapq.heapify(self._heap)
        self._arm()

    def discard(self, item: ItemT, /) -> None:
        """Note that an item that waits here is no longer live."""
        self._tombstones += 1
        if self._tombstones > len(self._heap) // 2 + 32:
            live = [entry for entry in self._heap if self._is_live(entry[2])]
            heapq.heapify(live)
            self._heap, self._tombstones = live, 0
        if not self.size:
            self.clear()  # no timer for tombstones alone

    def clear(self) -> None:
        """Forget all items."""
        self._heap.clear()
        self._tombstones = 0
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
        self._timer = self._loop.call_at(when, self._fire, context=self._context.copy())

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            for _ in range(_BATCH):
                if not self._heap or self._heap[0][0] > now:
                    break
                _, _, item = heapq.heappop(self._heap)
                if self._is_live(item):
                    self._on_due(item)
                else:
                    self._tombstones -= 1
        finally:
            self._arm()
