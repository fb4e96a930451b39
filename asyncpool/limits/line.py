"""`Limit`: what limits have in common: one line for all that wait, and one timer for the first in it.

Pools, lanes of pools and callers of `acquire()` wait in the same line, first come, first served. What a limit allows is
`rate.py` and `concurrency.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from contextvars import Context
from typing import Protocol

from asyncpool._guard import describe
from asyncpool.errors import WeightTooLarge, WrongLoop

__all__ = ["Limit", "Waiter", "acquire"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

# Of how many in a line the weights are added up.
_MOST_ADDED = 100


class Waiter(Protocol):
    """Something in the line of a limit."""

    weight: float
    """How much it wants to take next."""

    def offer(self) -> bool:
        """Note that the limit is open for the weight, and that this has just left the line.

        Return True to let the next in the line have its turn at once. False: this may take what it wants in the loop
        callbacks that are scheduled by now, and the next has its turn after them.
        """
        ...

    def limit_changed(self) -> None:
        """Note that the limit opens earlier, or later, than was known. The line remains as it is."""
        ...


class Limit:
    """The base class of limits: what they decide, which the subclasses say, and the line of those that wait.

    Not an ABC: `isinstance` is asked for each job, and takes five times as long there.

    Invariant: while the line is not empty and the limit opens for the first in it at some time, `_handle` is scheduled
    for that time, or an earlier one (tests/laws: limits_are_shared_changed_and_charged).
    """

    __slots__ = ("__weakref__", "_handle", "_line", "_offered", "loop")

    has_slots = False
    """Whether what was taken must be given back by `release_slot`."""

    def __init__(self) -> None:
        self._line: OrderedDict[Waiter, None] | None = None  # None while it is empty: there can be a limit per key
        self._handle: asyncio.Handle | None = None
        self._offered: Waiter | None = None  # whose turn it is, if others wait behind it
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop on which it is used, once it is."""

    @property
    def held(self) -> int:
        """How many slots are held."""
        return 0

    # -- What a limit decides ----------------------------------------------------------------------------------------

    @property
    def max_weight(self) -> float:
        """The largest weight that it can ever give."""
        raise NotImplementedError

    @property
    def was_used(self) -> bool:
        """Whether anything was ever taken, or it was changed."""
        raise NotImplementedError

    def weight_of(self, job: object) -> float:
        """Return the weight of a job; raises what the user's function raises, or for a weight that is not a number."""
        raise NotImplementedError

    def opens_at(self, weight: float) -> float:
        """Return the loop time from which a weight can be taken; inf if that depends on others that give it back."""
        raise NotImplementedError

    def take(self, now: float, weight: float = 1.0) -> float:
        """Take a weight and return 0.0, if it is open for that; otherwise return the seconds until it will be."""
        raise NotImplementedError

    def give_back(self, weight: float) -> None:
        """Undo a `take` that was not used."""
        raise NotImplementedError

    def is_idle(self, now: float) -> bool:
        """Return whether it is in its initial state: a new one would allow the same."""
        raise NotImplementedError

    def release_slot(self) -> None:
        """Give back what an attempt held, if the limit is of that kind."""
        return

    def check_weight(self, weight: float) -> None:
        """Raise WeightTooLarge if a weight can never be taken."""
        if weight > self.max_weight:
            raise WeightTooLarge(weight, self.max_weight, describe(self))

    # -- The line ----------------------------------------------------------------------------------------------------

    @property
    def users(self) -> int:
        """How many wait in the line: pools, lanes of pools, callers of `acquire()`."""
        return 0 if self._line is None else len(self._line)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop from now on.

        Raises:
            WrongLoop: The limit is used on another loop, which is running.
        """
        if self.loop is loop:
            return
        if self.loop is not None and self.loop.is_running():
            raise WrongLoop(f"{describe(self)} is used on another event loop, which is running: make one for each loop")
        self.loop, self._line, self._handle, self._offered = loop, None, None, None

    def take_if_free(self, now: float, weight: float = 1.0) -> bool:
        """Take a weight, if the limit is open for it and nobody waits; return whether it was taken."""
        return self._line is None and not self.take(now, weight)

    def is_turn_of(self, waiter: Waiter | None) -> bool:
        """Return whether nobody waits before this one."""
        return self._line is None or (waiter is not None and self._offered is waiter)

    def join(self, waiter: Waiter, *, first: bool = False) -> None:
        """Put a waiter at the end of the line, or back to its beginning. `bind` must have been called."""
        if self._line is None:
            self._line = OrderedDict()
        self._line[waiter] = None
        if first:
            self._line.move_to_end(waiter, last=False)
        if first or len(self._line) == 1:
            self.rearm()

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out of the line. Safe to repeat."""
        if self._offered is waiter:
            self._offered = None
        if self._line is None or waiter not in self._line:
            return
        was_first = next(iter(self._line)) is waiter
        del self._line[waiter]
        if was_first:
            self.rearm()

    def weight_ahead(self) -> float:
        """Return how much those in the line want to take together; inf if they are many."""
        if self._line is None:
            return 0.0
        return math.inf if len(self._line) > _MOST_ADDED else sum(waiter.weight for waiter in self._line)

    def retime(self) -> None:
        """Let those in the line know that the limit opens at another time."""
        if self._line is not None:
            for waiter in list(self._line):
                waiter.limit_changed()
            self.rearm()

    def rearm(self) -> None:
        """Serve the line when the limit opens for the first in it."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if not self._line:
            self._line = None
            return
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        when = self.opens_at(next(iter(self._line)).weight)
        # In a callback of its own: those that are served must not run in the middle of a step of somebody else.
        if when <= loop.time():
            self._handle = loop.call_soon(self._serve, context=Context())
        elif when < math.inf:
            self._handle = loop.call_at(when, self._serve, context=Context())

    def _serve(self) -> None:
        """Let those take something who can, in their order."""
        self._handle = self._offered = None
        assert self.loop is not None
        try:
            while self._line:
                waiter = next(iter(self._line))
                if self.opens_at(waiter.weight) > self.loop.time():
                    break
                del self._line[waiter]
                if not waiter.offer():
                    self._offered = waiter if self._line else None
                    break
        finally:
            self.rearm()


class _Caller:
    """A call of `acquire()` in the line."""

    __slots__ = ("_limit", "future", "weight")

    def __init__(self, limit: Limit, weight: float, future: asyncio.Future[None]) -> None:
        self._limit = limit
        self.weight = weight
        self.future = future

    def offer(self) -> bool:
        if not self.future.done():
            try:
                self._limit.check_weight(self.weight)  # the limit may have been changed meanwhile
            except WeightTooLarge as error:
                self.future.set_exception(error)
            else:
                self._limit.take(self.future.get_loop().time(), self.weight)
                self.future.set_result(None)
        return True

    def limit_changed(self) -> None: ...


async def acquire(limit: Limit, weight: float) -> None:
    """Take a weight, when it is the caller's turn and the limit is open for it. Cancel-safe: then nothing is taken.

    Raises:
        WeightTooLarge: The limit can never give it.
        WrongLoop: The limit is used on another loop, which is running.
    """
    loop = asyncio.get_running_loop()
    limit.bind(loop)
    limit.check_weight(weight)
    if limit.take_if_free(loop.time(), weight):
        return
    caller = _Caller(limit, weight, loop.create_future())
    limit.join(caller)
    try:
        await caller.future
    except BaseException:
        limit.leave(caller)
        future = caller.future
        if future.done() and not future.cancelled() and future.exception() is None:
            limit.give_back(weight)  # it was served in the moment in which it was cancelled
        raise
    finally:
        del caller  # an error that ends the wait is in its future, and knows this frame
