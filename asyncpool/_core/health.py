"""Which idle workers have a resource that must be checked before the next job, and which have been idle for too long.

The check itself is made by the worker's own task (`resources.py`), which also knows the age of its resource. What
becomes of a worker is `workers.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from itertools import chain
from typing import Any

from asyncpool._chance import chance
from asyncpool._core.job import Worker
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.resources import SPREAD
from asyncpool._core.state import State
from asyncpool.resources import Resource

__all__ = ["Health"]


class Health:
    """The free workers of a pool whose resource needs attention before, or instead of, the next job.

    A free worker is in `idle`, from where the dispatcher takes it; or it is `stale`, so its resource must be checked
    first; or it is being checked. Nobody watches the clock for that. When a job arrives that idle workers have to take,
    those that have been idle for too long become stale. All lists are in the order in which the workers became free,
    so each of these moves costs O(1) per worker, and the hot path knows `idle` only. A pool without `check` has
    neither stale workers nor anything to do here.

    Invariant: while a worker is stale and a job is queued, as many workers are idle or checked as there are queued
    jobs, except in a pause (tests/laws: idle_resources_are_checked).
    """

    __slots__ = (
        "_check_after",
        "_context",
        "_idle",
        "_max_idle",
        "_max_jobs",
        "_pauses",
        "_queue",
        "_state",
        "_timer",
        "checking",
        "has_check",
        "has_rules",
        "keeps_one",
        "on_idle_empty",
        "on_idle_too_long",
        "on_usable",
        "stale",
    )

    def __init__(
        self, state: State, resource: Resource[Any] | None, *, queue: JobQueue, pauses: Pauses, idle: list[Worker]
    ) -> None:
        self._state = state
        self._queue = queue
        self._pauses = pauses
        self._idle = idle
        self._check_after = 0.0 if resource is None else resource.check_after
        self._max_idle = None if resource is None else resource.max_idle
        self._max_jobs = None if resource is None else resource.max_jobs
        self._timer: asyncio.TimerHandle | None = None
        self.has_check = resource is not None and resource.check is not None
        self.has_rules = self.has_check or self._max_idle is not None or self._max_jobs is not None
        """Whether there is anything to do when a worker becomes idle."""
        self.keeps_one = False
        """Whether one resource is kept open, however long it is idle."""
        self.stale: list[Worker] = []
        """Free workers whose resource must be checked before a job takes it. Like `idle`: the last was idle last."""
        self.checking: set[Worker] = set()
        """Free workers whose resource is being checked."""
        self.on_idle_empty: Callable[[], object] = lambda: None
        """Called when a job was queued, and no worker is idle."""
        self.on_usable: Callable[[], None] = lambda: None
        """Called when a worker has become usable, or has stopped to be."""
        self.on_idle_too_long: Callable[[list[Worker]], None] = lambda workers: None
        """Called with workers that were taken out of `idle`, because they were there for `max_idle`."""

    def open(self, context: Context) -> None:
        """Start timers in this context from now on."""
        self._context = context

    def close(self) -> None:
        """Forget all workers: none takes another job."""
        self._queue.reserve -= len(self.stale) + len(self.checking)
        self.stale.clear()
        self.checking.clear()
        self._stop_timer()

    # -- A worker and its resource -----------------------------------------------------------------------------------

    def resource_opened(self, worker: Worker) -> None:
        """Begin to count for a worker with a new resource, which is about to be idle."""
        if self._max_jobs is not None:
            worker.jobs_left = math.ceil(self._max_jobs * chance.uniform(*SPREAD))
        self._becomes_idle(worker)

    def job_ended(self, worker: Worker) -> None:
        """Note that a worker has ended an attempt: it is about to be idle, or its resource has done enough."""
        if self._max_jobs is not None:
            worker.jobs_left -= 1
            if worker.jobs_left <= 0:
                worker.recycle("jobs")
                return
        self._becomes_idle(worker)

    def passed_check(self, worker: Worker) -> None:
        """Note that a worker's resource is good, and the worker about to be idle."""
        self.discard(worker)
        self._becomes_idle(worker)

    def discard(self, worker: Worker) -> None:
        """Take a worker out of where the free ones are. Safe to repeat."""
        if worker in self.checking:
            self.checking.discard(worker)
            self._queue.reserve -= 1
        elif worker in self._idle:
            self._idle.remove(worker)
        elif worker in self.stale:
            self.stale.remove(worker)
            self._queue.reserve -= 1

    def discard_retiring(self) -> None:
        """Take all workers that retire out of where the free ones are."""
        self._idle[:] = [worker for worker in self._idle if not worker.retiring]
        before = len(self.stale) + len(self.checking)
        self.stale[:] = [worker for worker in self.stale if not worker.retiring]
        self.checking.difference_update([worker for worker in self.checking if worker.retiring])
        self._queue.reserve += len(self.stale) + len(self.checking) - before

    def free_in_order(self) -> dict[Worker, int]:
        """Return the workers with an open resource and no job, with their places: first those that were idle longest,
        and last those that are checked now, because a job needs them.
        """
        return {worker: place for place, worker in enumerate(chain(self.stale, self._idle, self.checking))}

    def _becomes_idle(self, worker: Worker) -> None:
        worker.idle_since = now = self._state.time()
        if self._max_idle is not None and self._timer is None:
            self._set_timer(now + self._max_idle)

    # -- Checks ------------------------------------------------------------------------------------------------------

    def job_arrived(self) -> None:
        """See to it that idle workers that were idle for too long are checked first: a job was just queued."""
        if self._pauses.is_paused:
            return
        # If others are queued, idle workers are about to take these, and were aged when the first of them arrived.
        # Aged again with each job that arrives, they might never take any (test_a_check_after_of_zero_starves_no_job).
        if len(self._queue.order) <= 1:
            self._age()
        if self._idle:
            self.check_next()
        else:
            self.on_idle_empty()

    def pause_lifted(self) -> None:
        """See to the same for jobs that were queued in a pause."""
        if self.has_check:
            self._age()
            self.check_next()

    def suspect_all(self) -> None:
        """Have every resource checked before its next job: one has turned out to be dead, so others can be too."""
        if self.has_check and self._idle:
            self.stale += self._idle
            self._queue.reserve += len(self._idle)
            self._idle.clear()
            self.check_next()

    def check_next(self, *, extra: int = 0) -> None:
        """Check stale workers, if there are more queued jobs than workers that are idle or checked.

        Args:
            extra: How many of those that are checked should not be counted on.
        """
        if not self.stale or self._pauses.is_paused:
            return
        missing = len(self._queue.order) + extra - len(self._idle) - len(self.checking)
        for _ in range(min(missing, len(self.stale))):
            worker = self.stale.pop()
            assert worker.resource_task is not None
            self.checking.add(worker)
            worker.resource_task.check()
        if missing > 0:
            self.on_usable()

    def _age(self) -> None:
        """Make those stale that have been idle for `check_after`."""
        now = self._state.time()
        count = 0
        for worker in self._idle:
            if now - worker.idle_since < self._check_after:
                break
            count += 1
        if count:
            self.stale += self._idle[:count]
            del self._idle[:count]
            self._queue.reserve += count

    # -- Idle for too long -------------------------------------------------------------------------------------------

    def _set_timer(self, when: float) -> None:
        self._timer = self._state.loop.call_at(when, self._close_idle, when, context=self._context.copy())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_idle(self, when: float) -> None:
        """Give up the resources of those that have been idle for `max_idle` at this time, and wait for the next."""
        assert self._max_idle is not None
        self._timer = None
        # Not of those that are about to take a queued job. In a pause none is, and that can last longer than a server
        # keeps a connection.
        taken = 0 if self._pauses.is_paused else len(self._queue.order)
        most = len(self.stale) + len(self._idle) - max(taken, self.keeps_one)
        over: list[Worker] = []
        for worker in chain(self.stale, self._idle):
            if len(over) >= most or worker.idle_since + self._max_idle > when:
                break
            over.append(worker)
        from_stale = min(len(over), len(self.stale))
        del self.stale[:from_stale]
        del self._idle[: len(over) - from_stale]
        self._queue.reserve -= from_stale
        first = next(chain(self.stale, self._idle), None)
        if first is not None:
            following = first.idle_since + self._max_idle
            self._set_timer(following if following > when else when + self._max_idle)
        if over:
            self.on_idle_too_long(over)
