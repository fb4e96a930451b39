"""Which workers exist, and which are idle, busy or retiring.

A worker without a resource is no more than an entry in the list of idle ones. One with a resource has a task of its own
(`resources.py`). Which job a worker takes is `dispatch.py`; how many workers there should be is `scaler.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from contextvars import Context
from typing import Any

from asyncpool._core.bounds import Places
from asyncpool._core.cancellation import Cancellation
from asyncpool._core.job import Worker
from asyncpool._core.ledger import Ledger
from asyncpool._core.queue import JobQueue
from asyncpool._core.resources import Outage, ResourceTask
from asyncpool._core.state import State
from asyncpool._core.tasks import Tasks
from asyncpool._core.wakeups import Wakeups
from asyncpool._logs import log
from asyncpool.errors import ResourceDied, ResourceTimeout
from asyncpool.events import Observers, PoolResized
from asyncpool.outcomes import CancelReason
from asyncpool.resources import Resource
from asyncpool.scaling.policy import Decision, PoolLoad

__all__ = ["Workers"]

# This many workers are made when the pool opens, the others when they are first needed: a million cost nothing until
# then, and a backend gets no connections that nobody uses.
_FIRST_WORKERS = 64


class Workers:
    """The workers of a pool.

    Invariant: while there are `queue.unmade` workers, some worker is idle, or for each queued job one waits for its
    resource, except in a pause (tests/core/test_workers.py).

    Invariant: a worker is in `idle`, or holds a job, or waits for its resource, or is about to go. It holds at most one
    job. `surplus` busy workers retire after their job, whoever ends first (tests/laws:
    the_pool_shrinks_while_its_jobs_end, resources_fail_and_die).
    """

    __slots__ = (
        "_cancellation",
        "_context",
        "_free_numbers",
        "_leaving",
        "_ledger",
        "_limit",
        "_observers",
        "_places",
        "_queue",
        "_resource",
        "_state",
        "_tasks",
        "_wakeups",
        "by_number",
        "idle",
        "on_resized",
        "on_usable",
        "outage",
        "surplus",
        "target",
    )

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        observers: Observers,
        wakeups: Wakeups,
        *,
        by_number: dict[int, Worker],
        idle: list[Worker],
        queue: JobQueue,
        cancellation: Cancellation,
        tasks: Tasks,
        resource: Resource[Any] | None,
        target: int,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._observers = observers
        self._wakeups = wakeups
        self._queue = queue
        self._cancellation = cancellation
        self._tasks = tasks
        self._resource = resource
        self._places = Places(lambda: self.max_workers - max(0, self.abandoned - self.max_workers))
        self.outage = Outage(state, observers)
        self.by_number = by_number  # always the same object
        self.idle = idle  # always the same object; the hot path takes and returns workers here
        self.surplus = 0
        self.target = target
        """How many workers there should be."""
        self._limit: int | None = None
        self._free_numbers: list[int] = []
        self._leaving: set[Worker] = set()  # those without a job that close their resource
        self.on_usable: Callable[[], None] = _nothing
        """Called when a worker has become usable, or has stopped to be."""
        self.on_resized: Callable[[], None] = _nothing
        """Called when `target` has changed."""

    def open(self, context: Context) -> None:
        """Make workers whose resources run in a copy of this context from now on."""
        self._context = context

    @property
    def has_resource(self) -> bool:
        """Whether each worker holds a resource."""
        return self._resource is not None

    @property
    def max_workers(self) -> int:
        """How many workers there can be. If nobody knows, because a function decides: what it answered last."""
        return max(1, self.target) if self._limit is None else self._limit

    @property
    def starting(self) -> int:
        """How many workers have no resource yet, or not again, and are likely to have it soon, or were refused one."""
        if self._resource is None:
            return 0
        return sum(_is_starting(worker) for worker in self.by_number.values()) - len(self.idle)

    @property
    def free(self) -> int:
        """How many workers are idle, or are not made yet."""
        return len(self.idle) + self._queue.unmade

    @property
    def usable(self) -> int:
        """How many workers can take a job now, without waiting for a resource."""
        return self.free if self._resource is None else len(self.idle)

    @property
    def opening(self) -> int:
        """How many resources are being opened."""
        return sum(worker.resource_task is not None and worker.resource_task.is_opening for worker in self._all())

    @property
    def closing(self) -> int:
        """How many resources are being closed."""
        return sum(worker.resource_task is not None and worker.resource_task.is_closing for worker in self._all())

    @property
    def abandoned(self) -> int:
        """How many resources ignore that they were cancelled. From `max_workers` on each takes the place of a worker's,
        so that their number is bounded (test_what_is_abandoned_takes_places_once_it_is_too_much).
        """
        return self._tasks.abandoned

    @property
    def last_failure(self) -> str | None:
        """The last failure of a resource, described."""
        return self.outage.last

    def _all(self) -> Collection[Worker]:
        return () if self._resource is None else self.by_number.values()

    # -- How many ----------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int | None) -> None:
        """Set how many workers there can be."""
        self._limit = limit
        self._queue.set_bounds(self.target, self.max_workers)
        self._places.grant()

    def retarget(self, target: int, reason: str) -> None:
        """Set how many workers there should be, before the pool is open."""
        old, self.target = self.target, target
        self._queue.set_bounds(target, self.max_workers)
        if old != target and self._observers.any:
            self._observers.emit(
                PoolResized(pool=self._state.name, old=old, new=target, reason=reason, figures={}, load=None)
            )

    def resize(self, decision: Decision, load: PoolLoad | None) -> None:
        """Change how many workers there should be, and report it."""
        old = self.target
        self._resize(decision.workers)
        if old != decision.workers and self._observers.any:
            self._observers.emit(
                PoolResized(
                    pool=self._state.name,
                    old=old,
                    new=decision.workers,
                    reason=decision.reason,
                    figures=decision.figures,
                    load=load,
                )
            )
        # After the event, so that an observer hears of this step before what it leads to.
        self._wakeups.size_changed()

    def _resize(self, target: int) -> None:
        """Make new workers, or retire surplus ones: at once those without a job, then those whose job ends first."""
        self.target = target
        self._queue.set_bounds(target, self.max_workers)
        staying = [worker for worker in self.by_number.values() if not worker.retiring]
        missing = target - len(staying)
        self._queue.unmade = max(0, missing)
        self._make(_FIRST_WORKERS - len(self.by_number))
        if not self.idle:
            self.make_more()
        excess = max(0, -missing)
        # Of those without a job first those without a resource, the youngest first; then those that were idle longest.
        idle = {worker: place for place, worker in enumerate(self.idle)}
        free = [worker for worker in staying if worker.job is None]
        free.sort(key=lambda worker: (idle.get(worker, -1), -worker.number))
        for worker in free[:excess]:
            worker.retiring = True
        self.idle[:] = [worker for worker in self.idle if not worker.retiring]
        for worker in free[:excess]:
            self.release(worker)
        self.surplus = max(0, excess - len(free))
        self._places.grant()
        self._wakeups.leave_fast_path()
        self.on_resized()

    def make_more(self) -> bool:
        """Make workers that are needed for the first time, because no other is idle; return whether one is idle now."""
        if self._resource is None:
            self._make(max(_FIRST_WORKERS, len(self.by_number)))
        else:
            # How many wait for their resources: none is idle.
            waiting = len(self.by_number) - self._ledger.running - len(self._leaving)
            self._make(self._queue.backlog - waiting)
            if self._queue.unmade:  # the hot path wakes nobody for the next job, because no worker is idle
                self._queue.notify_next(self._job_arrived, owner=self)
        return bool(self.idle)

    def _job_arrived(self) -> None:
        if not self.idle:
            self.make_more()

    def _make(self, number: int) -> None:
        """Make up to this many of the workers that there should be."""
        for _ in range(min(number, self._queue.unmade)):
            self._queue.unmade -= 1
            self.add()

    # -- One worker --------------------------------------------------------------------------------------------------

    def add(self) -> Worker:
        """Make a worker. One with a resource takes jobs once that is entered."""
        worker = self._new()
        if self._resource is None:
            self.idle.append(worker)
        else:
            self._hold_resource(worker, self._resource)
        return worker

    def add_first(self) -> ResourceTask:
        """Make the worker that `start()` waits for: if its resource cannot be entered, the pool does not open."""
        assert self._resource is not None
        return self._hold_resource(self._new(), self._resource, must_open=True)

    def _new(self) -> Worker:
        number = heapq.heappop(self._free_numbers) if self._free_numbers else len(self.by_number) + 1
        worker = self.by_number[number] = Worker(number, self._state)
        return worker

    def _hold_resource(
        self, worker: Worker, resource: Resource[Any], *, must_open: bool = False, failures: int = 0
    ) -> ResourceTask:
        context = self._context.copy()  # not that of the caller that resizes
        task = ResourceTask(worker, self, resource, self._places, must_open=must_open, failures=failures)
        worker.resource_task = task
        try:
            task.start(self._tasks, context)
        except BaseException:  # the loop's task factory raised, or an interrupt came, perhaps after the task was made
            worker.retiring = True  # so that the task, which nobody knows then, ends
            self.remove(worker)
            raise
        self.on_usable()
        return task

    def job_ended(self, worker: Worker) -> bool:
        """Decide what a worker does whose job has just ended; return whether it can take the next one."""
        if self.surplus and not worker.retiring:
            self.surplus -= 1
            worker.retiring = True
        if worker.retiring or worker.needs_recycle:
            self.release(worker)
            return False
        return True

    def release(self, worker: Worker) -> None:
        """Let go of a worker that has no job and is not idle: its resource task, if it has one, does the rest."""
        if worker.resource_task is not None:
            if worker.retiring:
                self._leaving.add(worker)
                worker.resource_task.leave()
            else:
                worker.resource_task.notify()
                self.on_usable()
        elif worker.retiring:
            self.remove(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a worker that has left."""
        self.outage.left(worker.number)
        self._leaving.discard(worker)
        if self.by_number.get(worker.number) is worker:  # otherwise its number belongs to another worker by now
            del self.by_number[worker.number]
            heapq.heappush(self._free_numbers, worker.number)
        self._wakeups.worker_gone()

    def retire_all(self) -> None:
        """Let every worker go: at once, or when its job has ended."""
        self.surplus = self._queue.unmade = 0
        self.idle.clear()
        for worker in list(self.by_number.values()):
            worker.retiring = True
            if worker.job is None:
                self.release(worker)

    def abandon(self) -> None:
        """Settle what still runs, whatever its tasks do, and let its workers go."""
        for worker in self._cancellation.abandon_running():
            worker.retiring = True
            self.release(worker)

    def release_lost(self) -> None:
        """Let the workers go whose jobs a KeyboardInterrupt has lost."""
        for worker in self._cancellation.settle_lost():
            worker.retiring = True
            self.release(worker)

    def close(self) -> None:
        """Wait for no resource any more: the pool is closed. Only those are left that ignore their cancellation."""
        for worker in self.by_number.values():
            if worker.resource_task is not None:
                worker.resource_task.close()

    # -- What the resource tasks report ------------------------------------------------------------------------------

    def worker_ready(self, worker: Worker) -> None:
        """A worker's resource is open: it takes jobs."""
        self.outage.opened(worker.number)
        if not worker.retiring:
            self.idle.append(worker)
            self.on_usable()
            self._wakeups.worker_ready()

    def worker_slow(self, worker: Worker) -> None:
        """A worker has waited some seconds for its resource: neither the policy nor a queued job must count on it."""
        if self._queue.backlog:
            self._make(1)
        self._wakeups.worker_slow()

    def resource_lost(self, worker: Worker) -> BaseException | None:
        """A worker's resource ends by itself: fail the job that runs on it, and return the failure to be."""
        worker.needs_recycle = True
        if worker in self.idle:
            self.idle.remove(worker)
            self.on_usable()
        if worker.job is None:
            return None
        if self._state.is_loop_shutting_down():
            self._cancellation.request(worker.job, CancelReason.SHUTDOWN)
            return None
        died = ResourceDied(
            f"the resource of worker {worker.number} of pool {self._state.name!r} left its context while the job was "
            "running"
        )
        self._cancellation.request(worker.job, died)
        return died if worker.job.cancel_reason is died else None

    def resource_failed(self, worker: Worker, error: BaseException, retry_in: float | None) -> None:
        """A worker's resource could not be opened or closed, or has died."""
        if self._state.is_closing and retry_in is None:
            self._ledger.resource_errors.append(error)
        self.outage.failed(worker.number, error, retry_in)

    def resource_abandoned(self, worker: Worker, error: ResourceTimeout, failures: int) -> None:
        """A worker's resource ignores that it was cancelled: leave it to itself, and give the worker another."""
        if worker in self.idle:
            self.idle.remove(worker)
        worker.resource = worker.resource_task = None
        task = f"{self._state.name} worker {worker.number} resource"
        log.error("pool %r: abandoned the task %r: %s", self._state.name, task, str(error))
        if self.abandoned == self.max_workers + 1:
            log.error(
                "pool %r: %d resources ignore their cancellation: from now on, each of them takes the place of a "
                "worker's resource until it ends",
                self._state.name,
                self.abandoned,
            )
        self.outage.abandoned(worker.number, error)
        if not worker.retiring and self._resource is not None:
            self._hold_resource(worker, self._resource, failures=failures)
        elif worker.job is None:
            self.remove(worker)


def _nothing() -> None: ...


def _is_starting(worker: Worker) -> bool:
    """Whether a worker takes jobs, or is likely to take some soon."""
    is_slow = worker.resource_task is not None and worker.resource_task.is_slow
    return worker.job is None and not worker.retiring and not is_slow
