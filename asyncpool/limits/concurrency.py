"""How many attempts can run at the same time: `ConcurrencyLimit`, one for all jobs or one per key."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

from asyncpool._checks import check_count
from asyncpool._guard import describe
from asyncpool.limits.keyed import KeyedLimits
from asyncpool.limits.line import Limit, acquire

__all__ = ["ConcurrencyLimit", "KeyedConcurrencyLimit", "Slots"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


class Slots(Limit):
    """The slots of a `ConcurrencyLimit`: how many there are, and how many are held.

    The base class of `ConcurrencyLimit` with what pools use; users call the methods of `ConcurrencyLimit` itself.
    """

    __slots__ = ("_count", "_held", "_was_used")

    has_slots = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._held = 0
        self._was_used = False

    @property
    def held(self) -> int:
        """How many slots are held."""
        return self._held

    @property
    def max_weight(self) -> float:
        """The largest weight that it can ever give: an attempt takes one slot."""
        return 1.0

    @property
    def was_used(self) -> bool:
        """Whether a slot was ever held, or the number was changed."""
        return self._was_used

    def weight_of(self, job: object) -> float:
        """Return 1.0: an attempt takes one slot."""
        return 1.0

    def opens_at(self, weight: float) -> float:
        """Return -inf if a slot is free, otherwise inf: somebody must release one."""
        return -math.inf if self._held < self._count else math.inf

    def take(self, now: float, weight: float = 1.0) -> float:
        """Take a slot and return 0.0, if one is free; otherwise return inf."""
        if self._held >= self._count:
            return math.inf
        if self._offered is not None:
            self._offered = None  # one slot each in turn
        self._held += 1
        self._was_used = True
        return 0.0

    def release_slot(self) -> None:
        """Give a slot back."""
        self._held -= 1
        if self._line is not None:
            self.rearm()

    def give_back(self, weight: float) -> None:
        """Undo a `take` that was not used."""
        self.release_slot()

    def is_idle(self, now: float) -> bool:
        """Return whether no slot is held, nobody waits for one, and the number is as it was."""
        return not self._held and self._line is None


class ConcurrencyLimit(Slots):
    """At most `count` attempts at the same time, in all pools that share the limit.

        WorkerPool(fetch, workers=50, limiter=ConcurrencyLimit(10))

        in_order = ConcurrencyLimit.per_key(account_of, 1)      # the jobs of an account
        WorkerPool(apply, workers=50, limiter=in_order)

    An attempt holds a slot from its start until it has ended, however it ends, and not during the backoff before the
    next. A job that must wait is delayed, as for a rate limit: it holds neither worker nor resource, jobs with other
    limits overtake it, and jobs with the same limits start in the order of the pool. So with `count=1`, jobs run one
    after the other in the order of their acceptance. Two things change that order: a job that is retried, because the
    next one runs during its backoff; and another limit that only some of the jobs have, because the others overtake
    those that wait for it.

    Other code can hold slots too, in turn with the pools: `async with limit:`. A handler must not do that with a limit
    of its own pool, because its attempt holds a slot already. A limit belongs to one event loop at a time.

    Args:
        count: How many attempts can run at the same time; at least 1.

    Raises:
        TypeError, ValueError: `count` is not an int of its range.
    """

    __slots__ = ("_acquired", "_is_changed")

    def __init__(self, count: int) -> None:
        super().__init__(check_count("count", count, least=1))
        self._is_changed = False
        self._acquired = 0  # how many of the slots were taken by `acquire`, and not by pools

    @staticmethod
    def per_key(key: Callable[[Any], Hashable], count: int) -> KeyedConcurrencyLimit:
        """Return a limit for each key of the jobs: `ConcurrencyLimit.per_key(lambda url: URL(url).host, 2)`.

        Args:
            key: A function of the job that returns its key.
            count: How many attempts of a key can run at the same time; at least 1.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        return KeyedConcurrencyLimit(key, count)

    @property
    def in_use(self) -> int:
        """How many slots are held now."""
        return self._held

    async def acquire(self) -> None:
        """Wait for a slot and hold it, until `release()`. First come, first served, also beside pools that wait.

        Cancel-safe: then no slot is held.

        Raises:
            WrongLoop: The limit is used on another event loop, which is running.
        """
        await acquire(self, 1.0)
        self._acquired += 1

    def release(self) -> None:
        """Give back a slot that `acquire()` has taken. The next in the line gets it in a later loop callback.

        Raises:
            RuntimeError: No slot that `acquire()` has taken is held.
        """
        if not self._acquired:
            raise RuntimeError(
                f"release() needs a slot that acquire() has taken, and no such slot of {describe(self)} is held"
            )
        self._acquired -= 1
        self.release_slot()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def change(self, count: int) -> None:
        """Allow another number of attempts from now on. Attempts that are running continue, even above the number.

        Does not wait. Call it on the event loop.

        Raises:
            TypeError, ValueError: `count` is not an int of its range.
        """
        self._count = check_count("count", count, least=1)
        self._is_changed = self._was_used = True
        self.retime()

    def is_idle(self, now: float) -> bool:
        """Return whether a new limit would allow the same."""
        return not self._is_changed and super().is_idle(now)

    def __repr__(self) -> str:
        return f"ConcurrencyLimit({self._count})"


class KeyedConcurrencyLimit(KeyedLimits[ConcurrencyLimit]):
    """A `ConcurrencyLimit` for each key, such as each account. Created by `ConcurrencyLimit.per_key`.

    Call it for the limit of a job: `async with limits(job):`. The limits of idle keys are dropped, so that memory is
    bounded by the keys in use, and not by all keys ever seen.
    """

    __slots__ = ("_count",)

    def __init__(self, key: Callable[[Any], Hashable], count: int) -> None:
        super().__init__(key)
        self._count = check_count("count", count, least=1)

    def _make(self) -> ConcurrencyLimit:
        return ConcurrencyLimit(self._count)

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit({self._count}) for each of {len(self)} keys>"
