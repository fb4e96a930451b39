"""Work that is due later: items that are due at a time, and many small steps that would hold the loop.

What happens with an item is decided by the owner of the heap or of the slices.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any, Generic, TypeVar

__all__ = ["Slices", "TimerHeap"]

ItemT = TypeVar("ItemT")

# At most this many per loop iteration, and no more after this many seconds, so that 100,000 at once do not block the
# loop, whatever the user's code does with each.
_BATCH = 500
_SECONDS = 0.002


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

    def in_order(self) -> list[ItemT]:
        """Return the live items in the order in which they are due."""
        return [item for _, _, item in sorted(self._heap) if self._is_live(item)]

    def schedule(self, when: float, item: ItemT) -> None:
        """Call `on_due(item)` at loop time `when`, in a later loop iteration even if `when` is past."""
        self._numbers += 1
        heapq.heappush(self._heap, (when, self._numbers, item))
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
                    if self._loop.time() >= now + _SECONDS:
                        break
                else:
                    self._tombstones -= 1
        finally:
            self._arm()


class Slices:
    """Does many small steps without holding the loop: in each iteration some of them, and then `on_slice` is called.

    The items of an `add` come in their order, after those of earlier calls. A step must not raise, and can add items.
    Guarded by test_slices.py.
    """

    __slots__ = ("_context", "_handle", "_loop", "_on_slice", "_runs")

    def __init__(self, on_slice: Callable[[], None]) -> None:
        self._on_slice = on_slice
        self._runs: deque[tuple[deque[Any], Callable[[Any], object]]] = deque()
        self._handle: asyncio.Handle | None = None

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._loop = loop
        self._context = context

    @property
    def is_empty(self) -> bool:
        """Whether every step is done."""
        return not self._runs

    def add(self, items: Iterable[ItemT], step: Callable[[ItemT], object]) -> None:
        """Call `step` for each item, in later loop iterations. An item is let go of before the next is taken."""
        run = deque(items)
        if run:
            self._runs.append((run, step))
            if self._handle is None:
                self.go_on()

    def go_on(self) -> None:
        """Schedule the next slice, once; also if an interrupt has lost the one that was scheduled."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_soon(self._do_slice, context=self._context.copy())

    def finish(self) -> None:
        """Do all steps now."""
        while self._do_next():
            pass
        self._on_slice()

    def _do_slice(self) -> None:
        self._handle = None
        if self._runs:
            self.go_on()  # first, so that an interrupt in the middle is not the end
        stop_at = self._loop.time() + _SECONDS
        for _ in range(_BATCH):
            if not self._do_next() or self._loop.time() >= stop_at:
                break
        self._on_slice()

    def _do_next(self) -> bool:
        """Do one step; return whether there was one."""
        while self._runs:
            items, step = self._runs[0]
            if items:
                step(items.popleft())
                return True
            self._runs.popleft()
        return False
