"""The order in which jobs leave the queue: first in first out, or retries first.

An order holds jobs and never limits how many. The bound is `queue.py`; an order by priority is `priorities.py`.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, ClassVar

from asyncpool._core.job import Job

__all__ = [
    "ByAge",
    "ComebackFirst",
    "Fifo",
    "OldestComebackFirst",
    "Order",
    "ReentryOrder",
    "ready_at",
]


class Order(ABC):
    """The jobs that are queued, in some order.

    A job that is settled while it is queued stays behind as a tombstone (`outcome` is set), which `pop` skips: removing
    from the middle would cost a walk. Invariant: `len(entries) - _tombstones` jobs are live, and tombstones are swept
    before they outnumber them (test_tombstones_are_swept_before_they_outnumber_live_jobs).

    `append` (behind all others) and `popleft` (the first, tombstones too) are the methods of the container itself, for
    the hot path: there a Python call costs as much as its work.
    """

    __slots__ = ("_tombstones", "append", "entries", "is_comparing", "popleft")

    calls_user: ClassVar[bool] = False
    """Whether `set_key` calls functions of the user."""

    entries: Any
    """Jobs and tombstones: always the same object."""
    append: Callable[[Job], None]
    popleft: Callable[[], Job]

    is_comparing: bool
    """Whether keys are being compared, which is the user's code. A heap that changes meanwhile is broken, so no job is
    added or taken then (test_a_key_that_submits_while_it_is_compared_is_refused,
    test_a_key_does_as_it_likes_while_it_is_compared).
    """

    def __init__(self) -> None:
        self.is_comparing = False
        self._tombstones = 0

    def set_key(self, job: Job) -> None:
        """Get what the order needs to know of a new job, before `append`. Raises what the user's functions raise."""
        return

    def __len__(self) -> int:
        """How many live jobs are queued."""
        # Between none and all, whatever a KeyboardInterrupt left uncounted. If this counted a job that is not there,
        # the pump would never rest (test_an_interrupt_at_any_line_leaves_a_pool_that_closes).
        entries = len(self.entries)
        return min(entries, max(0, entries - self._tombstones)) if self._tombstones else entries

    def __iter__(self) -> Iterator[Job]:
        """The live jobs."""
        return (job for job in self.entries if job.outcome is None)

    def pop(self) -> Job | None:
        """Take the first live job; None if there is none."""
        while self.entries:
            job = self.popleft()
            if job.outcome is None:
                return job
            self.drop_tombstone()
        return None

    def peek(self) -> Job | None:
        """Return the first live job, which stays; None if there is none."""
        while self.entries:
            job = self._first()
            if job.outcome is None:
                return job
            self.popleft()
            self.drop_tombstone()
        return None

    def oldest(self) -> Job | None:
        """Return the live job that has waited longest for a worker; None if there is none. Changes nothing."""
        return next(iter(self), None)

    def in_order(self, most: int) -> list[Job]:
        """Return the live jobs in the order in which they leave, at most `most`. Changes nothing."""
        return list(islice(self, most))

    def snapshot(self) -> list[Job]:
        """Return all entries; if they are settled in the order of this list, no tombstones are left to sweep."""
        return list(self.entries)

    def _trim(self) -> None:
        """Remove the tombstones at one end."""
        self.peek()

    def drop_tombstone(self) -> None:
        """Note that a tombstone was just taken."""
        self._tombstones = self._tombstones - 1 if self.entries else 0  # right again, if an interrupt came in between

    def discard_settled(self) -> None:
        """Note that one queued job was just settled."""
        self._tombstones += 1
        self._trim()
        if self._tombstones > len(self.entries) // 2 + 32:
            self._tombstones = 0
            self._sweep()

    @abstractmethod
    def _first(self) -> Job:
        """Return the first entry."""

    @abstractmethod
    def _sweep(self) -> None:
        """Remove all tombstones."""


def ready_at(job: Job) -> float:
    """Return since when a job waits for a worker."""
    return job.ready_at


def _live(jobs: Iterable[Job]) -> Iterator[Job]:
    return (job for job in jobs if job.outcome is None)


def _sweep_deque(jobs: deque[Job]) -> None:
    # One call, which empties it first: between two, an interrupt would lose the jobs.
    deque[Job].__init__(jobs, [job for job in jobs if job.outcome is None])


class Fifo(Order):
    """Jobs in the order of their acceptance."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.entries = deque[Job]()
        self.append = self.entries.append
        self.popleft = self.entries.popleft

    def _first(self) -> Job:
        job: Job = self.entries[0]
        return job

    def _sweep(self) -> None:
        _sweep_deque(self.entries)


class ReentryOrder(Order):
    """An order that also takes jobs back: for pools with retries or limits that differ from job to job."""

    __slots__ = ()

    @abstractmethod
    def put_in(self, job: Job) -> None:
        """Add a job in the order of its age. Never raises."""

    @abstractmethod
    def put_back(self, job: Job) -> None:
        """Add a job before all that are fresh. Never raises."""


class _TwoDeques:
    __slots__ = ("back", "fresh")

    def __init__(self) -> None:
        self.back: deque[Job] = deque()
        self.fresh: deque[Job] = deque()

    def popleft(self) -> Job:
        return self.back.popleft() if self.back else self.fresh.popleft()

    def __len__(self) -> int:
        return len(self.back) + len(self.fresh)

    def __iter__(self) -> Iterator[Job]:
        return chain(self.back, self.fresh)


class ComebackFirst(ReentryOrder):
    """Jobs in the order of their acceptance; before them those that came back, in the order in which they did."""

    __slots__ = ()

    entries: _TwoDeques

    def __init__(self) -> None:
        super().__init__()
        self.entries = _TwoDeques()
        self.append = self.entries.fresh.append
        self.popleft = self.entries.popleft

    def put_in(self, job: Job) -> None:
        """Add a job behind all others."""
        self.entries.fresh.append(job)

    def put_back(self, job: Job) -> None:
        """Add a job before all that are fresh, behind those that came back before it."""
        self.entries.back.append(job)

    def _first(self) -> Job:
        return (self.entries.back or self.entries.fresh)[0]

    def oldest(self) -> Job | None:
        """Return the job that has waited longest: the first of those that came back, or of those that are fresh."""
        firsts = (next(_live(jobs), None) for jobs in (self.entries.back, self.entries.fresh))
        return min((job for job in firsts if job is not None), key=ready_at, default=None)

    def _sweep(self) -> None:
        _sweep_deque(self.entries.back)
        _sweep_deque(self.entries.fresh)


class _Aged:
    """Jobs in a heap, by their age."""

    __slots__ = ("heap",)

    def __init__(self) -> None:
        self.heap: list[tuple[int, Job]] = []

    def append(self, job: Job) -> None:
        # Of two entries of one job neither is less, and the jobs are not compared: they are one object.
        heapq.heappush(self.heap, (job.number, job))

    def popleft(self) -> Job:
        return heapq.heappop(self.heap)[1]

    def first(self) -> Job:
        return self.heap[0][1]

    def sweep(self) -> None:
        live = [entry for entry in self.heap if entry[1].outcome is None]
        heapq.heapify(live)
        self.heap[:] = live

    def __len__(self) -> int:
        return len(self.heap)

    def __iter__(self) -> Iterator[Job]:
        return (job for _, job in self.heap)


class ByAge(ReentryOrder):
    """Jobs in the order of their acceptance, whenever they are added: for those that wait for their limits."""

    __slots__ = ()

    entries: _Aged

    def __init__(self) -> None:
        super().__init__()
        self.entries = _Aged()
        self.append = self.entries.append
        self.popleft = self.entries.popleft

    def put_in(self, job: Job) -> None:
        """Add a job."""
        self.entries.append(job)

    def put_back(self, job: Job) -> None:
        """Add a job."""
        self.entries.append(job)

    def _first(self) -> Job:
        return self.entries.first()

    def _sweep(self) -> None:
        self.entries.sweep()


class _AgedAndFresh:
    __slots__ = ("back", "fresh")

    def __init__(self) -> None:
        self.back = _Aged()
        self.fresh: deque[Job] = deque()

    def popleft(self) -> Job:
        return self.back.popleft() if self.back.heap else self.fresh.popleft()

    def __len__(self) -> int:
        return len(self.back.heap) + len(self.fresh)

    def __iter__(self) -> Iterator[Job]:
        return chain(self.back, self.fresh)


class OldestComebackFirst(ReentryOrder):
    """Jobs in the order of their acceptance, those that came back before all that are fresh.

    For pools whose jobs have limits of their own: two jobs of one key can come back from the lanes of different limits.
    """

    __slots__ = ()

    entries: _AgedAndFresh

    def __init__(self) -> None:
        super().__init__()
        self.entries = _AgedAndFresh()
        self.append = self.entries.fresh.append
        self.popleft = self.entries.popleft

    def put_in(self, job: Job) -> None:
        """Add a job behind all others."""
        self.entries.fresh.append(job)

    def put_back(self, job: Job) -> None:
        """Add a job before all that are fresh."""
        self.entries.back.append(job)

    def in_order(self, most: int) -> list[Job]:
        """Return the live jobs in the order in which they leave, at most `most`. Changes nothing."""
        back = sorted(self.entries.back, key=lambda job: job.number)
        return list(islice(_live(chain(back, self.entries.fresh)), most))

    def _first(self) -> Job:
        return self.entries.back.first() if self.entries.back.heap else self.entries.fresh[0]

    def oldest(self) -> Job | None:
        """Return the job that has waited longest: the first of those that came back, or of those that are fresh."""
        firsts = (next(_live(jobs), None) for jobs in (self.entries.back, self.entries.fresh))
        return min((job for job in firsts if job is not None), key=ready_at, default=None)

    def _sweep(self) -> None:
        self.entries.back.sweep()
        _sweep_deque(self.entries.fresh)
