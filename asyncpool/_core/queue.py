"""`JobQueue`: the jobs that wait for a worker, and the submitters that wait for room.

In which order jobs leave is `orders.py`; who waits for room, and who is next, is `WaitLine` in `wakeups.py`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sized

from asyncpool._core.job import Job
from asyncpool._core.ledger import Ledger
from asyncpool._core.orders import Order, ReentryOrder
from asyncpool._core.pauses import Pauses
from asyncpool._core.wakeups import WaitLine

__all__ = ["JobQueue"]


class JobQueue(asyncio.Queue[Job]):
    """A fair `asyncio.Queue` of accepted jobs that wait for a worker.

    The storage is an `Order`, plugged in through the same three hooks as that of `asyncio.PriorityQueue`. Two rules are
    stricter than in the base class: `put_nowait` never overtakes waiting submitters (it raises `QueueFull` while there
    are any), and a job that is cancelled while queued frees its place at once.

    `append` and `popleft` are the methods of the order's own container, for the hot path. Everything else that
    `put_nowait` and `get_nowait` do serves callers that wait in `get()` and `join()`, and there are none: a worker is a
    slot that the dispatcher fills, and `join` asks the ledger. `put_nowait` and `get_nowait` would add 0.3 to 0.8 us to
    each job. `append` may be called only for a job that was granted room, or past the bound for a job that comes from
    a source; `popleft` only by the dispatcher.

    What differs from the contract of `asyncio.Queue` (each line is a test in tests/core/test_queue.py):

    * `full()` is also true while others wait for room, and `put()` is fair.
    * `maxsize` is the bound on queued jobs; 0 means that none may wait, and never "infinite".
    * `join()` waits until all accepted jobs have their outcome: delayed and running jobs count too.
    * `task_done()` raises `ValueError`, except after `put_nowait()`: settling a job has done it.
    * `get()` is not woken by jobs that the pool accepts. Nobody calls it: no law scenario leaves anybody in `_getters`.
    * `shutdown()`, from 3.13, leaves `put()` alone: the pool closes the line instead, with an error that names it.
    """

    def __init__(
        self,
        order: Order,
        *,
        queue_size: int | None,
        max_delayed: int,
        idle: Sized,
        ledger: Ledger,
        pauses: Pauses,
        drained: Callable[[], Awaitable[None]],
    ) -> None:
        self.order = order
        super().__init__()
        self.line = WaitLine(self.room)
        self.append = order.append
        self.popleft = order.popleft
        self.window = 1
        """How many jobs of a stream may be accepted and not read."""
        self.resizes = 0
        """How often the bounds were worked out."""
        self._queue_size = queue_size
        self._max_delayed = max_delayed
        self._idle = idle
        self._ledger = ledger
        self._pauses = pauses
        self._drained = drained
        self._target = 0
        self._notices: dict[object, tuple[Callable[[], None], int, int]] = {}
        self.reserve = 0
        """How many workers are not idle but can be without a job's end: those that are not made yet, and those whose
        resource must be checked first. `Workers` and `Health` write it."""

    # -- The storage -------------------------------------------------------------------------------------------------

    def _init(self, maxsize: int) -> None:
        self._queue = self.order  # its len() counts live jobs, so qsize() and empty() work unchanged

    def _put(self, item: Job) -> None:
        self.order.set_key(item)
        self.append(item)

    def _get(self) -> Job:
        job = self.order.pop()
        assert job is not None
        self.line.wake_next()  # the free place goes to the first in line
        return job

    def full(self) -> bool:
        """Return whether a new job must wait: there is no room, or others wait for it already."""
        return not self.line.is_free()

    async def put(self, item: Job) -> None:
        """Wait for room, first come first served, and put a job in. Cancel-safe."""
        await self.line.wait_turn()
        try:
            self._put(item)
        except BaseException:  # the order refuses it: the place goes to the next
            self.line.wake_next()
            raise

    async def join(self) -> None:
        """Wait until every accepted job has its outcome, for one moment. Cancel-safe."""
        await self._drained()

    def put_back(self, job: Job) -> None:
        """Take a delayed job back, before all that are fresh, and past the bound: so a full queue cannot deadlock it
        (tests/laws: jobs_submit_to_their_pool_while_others_are_delayed).
        """
        assert isinstance(self.order, ReentryOrder)
        self.order.put_back(job)
        self._ledger.undelay(job)

    def put_in_front(self, job: Job) -> None:
        """Take a job back that has just left its worker, as `put_back` does with one that was delayed."""
        assert isinstance(self.order, ReentryOrder)
        self.order.put_back(job)

    # -- The bound ---------------------------------------------------------------------------------------------------

    def set_bounds(self, target_workers: int, max_workers: int) -> None:
        """Work out the bounds. Call it when either number changes: once then, and not twenty times a job."""
        self._target = target_workers
        self.resizes += 1
        self._maxsize = 10 * max_workers if self._queue_size is None else self._queue_size
        self.window = max(1, self._maxsize + max_workers)

    def room(self) -> int:
        """How many jobs can be accepted now: what the queue can hold, and what free workers will take from it."""
        if self._ledger.delayed >= self._max_delayed:
            return 0
        idle = 0 if self._pauses.is_paused else len(self._idle) + self.reserve
        # In a pool that sleeps without workers, the first job brings one.
        if not idle and not self._ledger.running and not self._target and not self._pauses.is_paused:
            idle = 1
        return self._maxsize + idle - len(self.order)

    @property
    def has_too_many_delayed(self) -> bool:
        """Whether nothing is accepted because too many jobs are delayed."""
        return self._ledger.delayed >= self._max_delayed

    @property
    def backlog(self) -> int:
        """How many jobs wait for a worker, or for room."""
        return len(self.order) + len(self.line.waiting)

    # -- One swap of `append`, so that the hot path does not have to ask who wants to know ---------------------------

    def notify_next(
        self, arrived: Callable[[], None], *, least: int = 1, most: int = sys.maxsize, owner: object = None
    ) -> None:
        """Call `arrived` once, when the next job is appended after which `least` to `most` jobs are queued.

        Replaces the notice that the owner has set before. Costs nothing otherwise: it replaces `append`. Tombstones
        count as queued here, so `arrived` must count again.
        """
        self._notices[owner] = (arrived, least, most)
        self._swap_append()

    def ignore_next(self, owner: object = None) -> None:
        """Take the notice of an owner back. Safe to repeat."""
        if self._notices.pop(owner, None) is not None:
            self._swap_append()

    def _swap_append(self) -> None:
        self.append = self.order.append
        for owner, (arrived, least, most) in self._notices.items():
            self.append = self._noticing(self.append, owner, arrived, least, most)

    def _noticing(
        self, put: Callable[[Job], None], owner: object, arrived: Callable[[], None], least: int, most: int
    ) -> Callable[[Job], None]:
        entries = self.order.entries

        def append(job: Job) -> None:
            put(job)
            if least <= len(entries) <= most:
                self.ignore_next(owner)
                arrived()

        return append
