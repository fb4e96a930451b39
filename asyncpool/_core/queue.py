"""Where jobs wait for a worker, and where submitters wait for room.

`JobQueue` holds jobs and never refuses one; how many it should hold is its owner's rule. `Line` is the fair line of
those who wait for room.

Not `asyncio.Queue`, for three measured or read reasons: its put and get cost 0.6 us a job, a deque's 0.02; its
`put_nowait` overtakes waiting putters for ever; and it cannot give up a queued job's place when that is cancelled.
"""

from __future__ import annotations

import asyncio
import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from typing import Any

from asyncpool._core.job import Job

__all__ = ["JobQueue", "Line", "PriorityJobQueue", "ReentryJobQueue", "ReturnQueue"]

_LONG_AGO = -(2**62)


class JobQueue:
    """Jobs in the order of their acceptance.

    A job that is settled while it is queued stays behind as a tombstone (`outcome` is set), which `pop` skips:
    removing from the middle would cost a walk. Tombstones are swept before they outnumber the living.

    `push` (behind all others) and `take` (the first, tombstones too) are the deque's own methods, for the hot path:
    there a call of ours costs as much as what it does.
    """

    __slots__ = ("_dead", "entries", "push", "take")

    def __init__(self) -> None:
        self.entries: Any = deque()  # jobs and tombstones; always the same object
        self._dead = 0
        self.push: Callable[[Job], None] = self.entries.append
        self.take: Callable[[], Job] = self.entries.popleft

    @property
    def size(self) -> int:
        """How many living jobs are queued."""
        return len(self.entries) - self._dead

    def pop(self) -> Job | None:
        """Take the first living job; None if there is none."""
        while self.entries:
            job = self.take()
            if job.outcome is None:
                return job
            self.bury()
        return None

    def first(self) -> Job | None:
        """Return the first living job, which stays; None if there is none."""
        while self.entries:
            job = self._first()
            if job.outcome is None:
                return job
            self.take()
            self.bury()
        return None

    def _first(self) -> Job:
        job: Job = self.entries[0]
        return job

    def bury(self) -> None:
        """Say that a tombstone was just taken."""
        self._dead -= 1

    def forget(self) -> None:
        """Say that one queued job was just settled."""
        self._dead += 1
        if self._dead > len(self.entries) // 2 + 32:
            self._sweep()
            self._dead = 0

    def _sweep(self) -> None:
        living = list(self)
        self.entries.clear()
        self.entries.extend(living)

    def __iter__(self) -> Iterator[Job]:
        return (job for job in self.entries if job.outcome is None)


class ReturnQueue(JobQueue, ABC):
    """A queue that also takes in what was in a queue before: of pools in which jobs come back."""

    __slots__ = ()

    @abstractmethod
    def put_in(self, job: Job) -> None:
        """Add a job in the order of its age. Never raises."""

    @abstractmethod
    def put_back(self, job: Job) -> None:
        """Add a job before all that are fresh. Never raises."""


class ReentryJobQueue(ReturnQueue):
    """Jobs in the order of their acceptance; before them those that came back, in the order in which they did."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.entries = _TwoDeques()
        self.push = self.entries.fresh.append
        self.take = self.entries.popleft

    def _first(self) -> Job:
        return (self.entries.back or self.entries.fresh)[0]  # type: ignore[no-any-return]  # entries is Any

    def put_in(self, job: Job) -> None:
        """Add a job behind all others."""
        self.entries.fresh.append(job)

    def put_back(self, job: Job) -> None:
        """Add a job before all that are fresh, behind those that came back before it."""
        self.entries.back.append(job)

    def _sweep(self) -> None:
        for entries in (self.entries.back, self.entries.fresh):
            living = [job for job in entries if job.outcome is None]
            entries.clear()
            entries.extend(living)


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
            pass  # `push` refuses what does not compare with the first; others in doubt go by their age
        return self.place < other.place


class PriorityJobQueue(ReturnQueue):
    """Jobs by a key, smaller first; among equals those that came back first, then in the order of their acceptance.

    Strict: while jobs with smaller keys keep coming, the others starve.
    """

    __slots__ = ("_back", "_key")

    def __init__(self, key: Callable[[Any], Any]) -> None:
        super().__init__()
        self._key = key
        self._back = _LONG_AGO  # the place of the last that came back: before every fresh job's, which is its number
        self.entries = []
        self.push = self._push
        self.take = self._take

    def _push(self, job: Job) -> None:
        """Add a job; raises what the key function raises, or a TypeError if the key does not compare with others."""
        key = self._key(job.input)
        bool(key < (self.entries[0].job.key if self.entries else key))
        job.key = key
        self.put_in(job)

    def _first(self) -> Job:
        entry: _Entry = self.entries[0]
        return entry.job

    def put_in(self, job: Job) -> None:
        """Add a job by the key that it has."""
        heapq.heappush(self.entries, _Entry(job, job.number))

    def put_back(self, job: Job) -> None:
        """Add a job by the key that it has, before the fresh ones of equal key."""
        self._back += 1
        heapq.heappush(self.entries, _Entry(job, self._back))

    def _take(self) -> Job:
        entry: _Entry = heapq.heappop(self.entries)
        return entry.job

    def _sweep(self) -> None:
        self.entries[:] = [entry for entry in self.entries if entry.job.outcome is None]
        heapq.heapify(self.entries)

    def __iter__(self) -> Iterator[Job]:
        return (entry.job for entry in self.entries if entry.job.outcome is None)


class Line:
    """Those who wait for room, first come first served.

    Invariant: `waiting` is empty, or there is no room that is not promised. Whoever makes room calls `advance()`.

    A place that is granted is promised until its owner resumes, so that nobody takes it in between; an owner who is
    cancelled in between passes it on (test_cancelled_submitter_passes_its_place_on).
    """

    __slots__ = ("_closed", "_promised", "_room", "_wait", "waiting")

    def __init__(
        self,
        room: Callable[[], int],
        wait: Callable[[asyncio.Future[None]], Awaitable[None]] | None = None,
    ) -> None:
        self._room = room
        self._wait = wait
        self._promised = 0
        self._closed: Callable[[], BaseException] | None = None
        # A dict for its order and its removal in O(1): a thousand waiters may be cancelled in one turn.
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    def is_free(self) -> bool:
        """Whether there is room, and nobody before us who waits for it."""
        return not self.waiting and not self._promised and self._room() > 0

    async def turn(self, company: set[asyncio.Future[None]] | None = None) -> None:
        """Wait until there is room and all who came before have theirs. The caller must use the place, or `advance()`.

        While it waits, its future is in `company`, whose owner may turn it away by an exception. Cancel-safe: a place
        that was granted meanwhile goes to the next.

        Raises:
            BaseException: What `close()` was given, if the line is closed.
        """
        if self._closed is not None:
            raise self._closed()
        if self.is_free():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[future] = None
        self.advance()  # there may be room beside what is promised to those who have not resumed yet
        if company is not None:
            company.add(future)
        try:
            if future.done():  # by us, just now; but those who were let in before have not gone on yet
                await asyncio.sleep(0)
            await (future if self._wait is None else self._wait(future))
        except BaseException:
            self.waiting.pop(future, None)
            granted = future.done() and not future.cancelled() and future.exception() is None
            if granted and self._closed is None:
                self._promised -= 1
                self.advance()
            raise
        finally:
            if company is not None:
                company.discard(future)
        if self._closed is not None:  # closed between the grant and now
            raise self._closed()
        self._promised -= 1

    def advance(self) -> None:
        """Grant what room there is to the first in the line."""
        while self.waiting and self._room() > self._promised:
            future, _ = self.waiting.popitem(last=False)
            if not future.done():
                self._promised += 1
                future.set_result(None)

    def close(self, error: Callable[[], BaseException]) -> None:
        """Turn everybody away, now and later, with an error of their own each."""
        self._closed = error
        self._promised = 0
        while self.waiting:
            future, _ = self.waiting.popitem(last=False)
            if not future.done():
                future.set_result(None)
