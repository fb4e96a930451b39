"""Callers that wait for room, first come first served.

How much room there is, is the rule of the line's owner.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

__all__ = ["WaitLine", "wake"]


def wake(future: asyncio.Future[None]) -> None:
    """Let the waiter of a future go on, unless it does already."""
    if not future.done():
        future.set_result(None)


class WaitLine:
    """A fair line of waiters.

    Invariant: `waiting` is empty, or there is no room that is not promised (tests/laws: the_impatient_do_not_overtake).
    Code that makes room must call `wake_next()`.

    A place that is granted is promised until its waiter resumes, so that nobody takes it in between. A waiter that is
    cancelled in between passes it on (test_cancelled_submitter_passes_its_place_on).
    """

    __slots__ = ("_closed", "_promised", "_room", "wait", "waiting")

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        # How to wait for a future of the line; None: just await it. Set while the parts are wired, if at all.
        self.wait: Callable[[asyncio.Future[None]], Awaitable[None]] | None = None
        self._promised = 0
        self._closed: Callable[[], BaseException] | None = None
        # A dict, for its order and its removal in O(1): a thousand waiters can be cancelled in one loop iteration.
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    def is_free(self) -> bool:
        """Whether there is room, and nobody waits for it."""
        return not self.waiting and not self._promised and self._room() > 0

    async def wait_turn(self, also_in: set[asyncio.Future[None]] | None = None) -> None:
        """Wait until there is room and all earlier waiters have theirs. The caller must use it, or call `wake_next()`.

        While it waits, its future is also in `also_in`, whose owner can turn it away with an exception. Cancel-safe: a
        place that was granted meanwhile goes to the next.

        Raises:
            BaseException: What `close()` was given, if the line is closed.
        """
        if self._closed is not None:
            raise self._closed()
        if self.is_free():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[future] = None
        self.wake_next()  # there may be room beside what is promised to those who have not resumed yet
        if also_in is not None:
            also_in.add(future)
        try:
            if future.done():  # granted just now, but those before us have not resumed yet
                await asyncio.sleep(0)
            await (future if self.wait is None else self.wait(future))
        except BaseException:
            self.waiting.pop(future, None)
            granted = future.done() and not future.cancelled() and future.exception() is None
            if granted and self._closed is None:
                self._promised -= 1
                self.wake_next()
            raise
        finally:
            if also_in is not None:
                also_in.discard(future)
            del future  # an error that ends the wait is in it, and knows this frame
        if self._closed is not None:  # closed between the grant and now
            raise self._closed()
        self._promised -= 1

    def wake_next(self) -> None:
        """Grant the room there is to the first in the line."""
        while self.waiting and self._room() > self._promised:
            future, _ = self.waiting.popitem(last=False)
            if not future.done():
                self._promised += 1
                future.set_result(None)

    def close(self, error: Callable[[], BaseException]) -> None:
        """Turn everybody away, now and later, each with an error of their own."""
        self._closed = error
        self._promised = 0
        while self.waiting:
            future, _ = self.waiting.popitem(last=False)
            wake(future)
