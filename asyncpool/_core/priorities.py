"""The order in which jobs leave the queue by priority. Keys are the user's, and so is the code that compares them.

The orders without keys, and what all have in common, are `orders.py`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, ClassVar, cast

from asyncpool._core.job import Job
from asyncpool._core.orders import ReentryOrder, ready_at
from asyncpool._guard import describe

__all__ = ["ByPriority", "ByPriorityAndAge"]

_LONG_AGO = -(2**62)
# Of how many jobs in a heap the oldest is looked for.
_MOST_COMPARED = 1000


class _Entry:
    """A job in the heap. Comparing never raises: a heap that fails half way through a sift loses entries."""

    __slots__ = ("job", "place")

    def __init__(self, job: Job, place: int) -> None:
        self.job = job
        self.place = place  # among equal keys

    def __lt__(self, other: _Entry) -> bool:
        key, other_key = self.job.key, other.job.key
        try:
            if key < other_key:
                return True
            if other_key < key:
                return False
        except Exception:
            pass  # `set_key` refuses a key that does not compare with the first; others in doubt go by their age
        return self.place < other.place


def _has_nan(key: Any) -> bool:
    """Return whether a key is NaN of any type, or has NaN in what it compares: a sequence, dataclass or attrs class."""
    if type(key) in (int, float, str):  # most keys
        return bool(key != key)
    try:
        return any(map(_has_nan, _compared(key))) or bool(key != key)  # only NaN differs from itself
    except Exception:
        return False  # not a number


def _compared(key: Any) -> Iterable[Any]:
    """Return the values by which two keys of this class are compared; none if the class does it in its own way."""
    if isinstance(key, (tuple, list, deque)):
        return cast("Iterable[Any]", key)
    return [getattr(key, name) for name in _names_compared(key)]


def _names_compared(key: Any) -> list[str]:
    if is_dataclass(key):
        return [field.name for field in fields(key) if field.compare]
    return [attribute.name for attribute in getattr(key, "__attrs_attrs__", ()) if attribute.order]


class ByPriority(ReentryOrder):
    """Jobs by a key, smaller first; among equals those that came back first, then in the order of their acceptance.

    Strict: while jobs with smaller keys keep coming, the others starve.
    """

    __slots__ = ("_back", "_key", "_late")

    calls_user: ClassVar[bool] = True

    entries: list[_Entry]

    def __init__(self, key: Callable[[Any], Any]) -> None:
        super().__init__()
        self._key = key
        self._back = _LONG_AGO  # the place of the last that came back: before every fresh job's, which is its number
        self._late: list[_Entry] = []  # that a key which was compared brought back, for instance by a cancellation
        self.entries = []
        self.append = self.put_in
        self.popleft = self._popleft

    def set_key(self, job: Job) -> None:
        """Ask for a job's key; raises what the function raises, or a TypeError if the key does not compare.

        NaN does not: it is neither less than any key nor greater, so the heap would give the others in a wrong order.
        """
        if self.is_comparing:
            raise RuntimeError("a priority key must not submit a job while it is compared with another key")
        key = self._key(job.input)
        if _has_nan(key):
            raise TypeError(f"priority must return keys that can be ordered, and NaN cannot: got {describe(key)}")
        bool(key < (self.entries[0].job.key if self.entries else key))
        job.key = key

    def discard_settled(self) -> None:
        """Note that one queued job was just settled; by a key that is being compared, perhaps."""
        if self.is_comparing:
            self._tombstones += 1
        else:
            super().discard_settled()

    def _push(self, job: Job, place: int) -> None:
        self._late.append(_Entry(job, place))
        if not self.is_comparing:
            self._add_late()

    def _add_late(self) -> None:
        self.is_comparing = True
        try:
            while self._late:
                heapq.heappush(self.entries, self._late.pop())
        finally:
            self.is_comparing = False

    def _popleft(self) -> Job:
        self.is_comparing = True
        try:
            return heapq.heappop(self.entries).job
        finally:
            self.is_comparing = False
            if self._late:
                self._add_late()

    def put_in(self, job: Job) -> None:
        """Add a job by the key that it has."""
        self._push(job, job.number)

    def put_back(self, job: Job) -> None:
        """Add a job by the key that it has, before the fresh ones of equal key."""
        self._back += 1
        self._push(job, self._back)

    def _first(self) -> Job:
        return self.entries[0].job

    def _sweep(self) -> None:
        live = [entry for entry in self.entries if entry.job.outcome is None]
        heapq.heapify(live)
        self.entries[:] = live

    def in_order(self, most: int) -> list[Job]:
        """Return the live jobs sorted by their keys, at most `most`. Comparing keys can run user code."""
        live = [entry for entry in self.entries if entry.job.outcome is None]
        return [entry.job for entry in (heapq.nsmallest(most, live) if most < len(live) else sorted(live))]

    def snapshot(self) -> list[Job]:
        """Return all entries, from the last of the heap."""
        return [entry.job for entry in reversed(self.entries)]

    def _trim(self) -> None:
        """Remove the tombstones at the end of the heap. What is left is a heap."""
        while self.entries and self.entries[-1].job.outcome is not None:
            self.entries.pop()
            self.drop_tombstone()

    def oldest(self) -> Job | None:
        """Return the job that has waited longest, of the first ones in the heap: so a long queue costs no long walk."""
        return min(islice(self, _MOST_COMPARED), key=ready_at, default=None)

    def __iter__(self) -> Iterator[Job]:
        """The live jobs, in no order."""
        return (entry.job for entry in self.entries if entry.job.outcome is None)


class ByPriorityAndAge(ByPriority):
    """As `ByPriority`, but those that came back are among equals in the order of their acceptance, too.

    For pools whose jobs have limits of their own, as `OldestComebackFirst`.
    """

    __slots__ = ()

    def put_back(self, job: Job) -> None:
        """Add a job by the key that it has, before the fresh ones of equal key."""
        self._push(job, _LONG_AGO + job.number)
