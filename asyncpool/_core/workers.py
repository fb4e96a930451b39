"""Which workers exist, and which are idle, busy or retiring.

A worker without a resource is no more than an entry in the list of idle ones. One with a resource has a task of its own
(`resources.py`), and can have to be checked first (`health.py`). Which job a worker takes is `dispatch.py`; how many
workers there should be is `scaler.py`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from asyncpool._core.bounds import Places
from asyncpool._core.cancellation import Cancellation
from asyncpool._core.health import Health
from asyncpool._core.job import ResourceHolder, Worker
from asyncpool._core.ledger import Ledger
from asyncpool._core.queue import JobQueue
from asyncpool._core.reopening import Reopening
from asyncpool._core.resource_log import ResourceLog
from asyncpool._core.resources import ResourceTask
from asyncpool._core.state import State
from asyncpool._core.tasks import Tasks
from asyncpool._core.wakeups import Wakeups
from asyncpool._logs import log
from asyncpool.errors import ResourceDied, ResourceTimeout
from asyncpool.events import Observers, PoolResized
from asyncpool.outcomes import CancelReason
from asyncpool.resources import Resource
from asyncpool.scaling.policy import Decision, PoolLoad
from asyncpool.stats import ReplacementReason

__all__ = ["Workers"]

# This many workers are made when the pool opens, the others when they are first needed: a million cost nothing until
# then, and a backend gets no connections that nobody uses.
_FIRST_WORKERS = 64
# How many changes of the target are kept for `pool.resizes()`.
_KEPT_RESIZES = 50


class Workers:
    """The workers of a pool.

    Invariant: while there are `unmade` workers, some worker is idle, or for each queued job one is checked or waits for
    its resource, except in a pause (tests/core/test_workers.py).

    Invariant: a worker is in `idle`, or is stale or checked (`Health`), or holds a job, or waits for its resource, or
    is about to go. It holds at most one job. `surplus` busy workers retire after their job, whoever ends first
    (tests/laws: the_pool_shrinks_while_its_jobs_end, resources_fail_and_die).
    """

    __slots__ = (
        "_asleep",
        "_cancellation",
        "_context",
        "_free_numbers",
        "_leaving",
        "_ledger",
        "_limit",
        "_observers",
        "_places",
        "_queue",
        "_reopening",
        "_state",
        "_tasks",
        "_wakeups",
        "by_number",
        "health",
        "idle",
        "log",
        "on_resized",
        "resizes",
        "resource",
        "surplus",
        "target",
        "unmade",
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
        health: Health,
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
        self.health = health
        health.on_idle_empty = self.make_more
        health.on_idle_too_long = self._idle_too_long
        self._tasks = tasks
        self.resource = resource
        """What each worker holds, if anything."""
        self._places = Places(lambda: self.max_workers - max(0, self.abandoned - self.max_workers))
        self._reopening = Reopening()
        self.log = ResourceLog(state, observers)
        """What is reported of the resources."""
        self.by_number = by_number  # always the same object
        self.idle = idle  # always the same object; the hot path takes and returns workers here
        self.surplus = 0
        self.target = target
        """How many workers there should be."""
        self.unmade = 0
        """How many of them there are only by number, because no job has needed them yet. In `queue.reserve` too."""
        self._asleep = 0  # of these, how many had a resource before, and were idle for too long
        self._limit: int | None = None
        self._free_numbers: list[int] = []
        self._leaving: set[Worker] = set()  # those without a job that close their resource
        self.on_resized: Callable[[], None] = _nothing
        """Called when `target` has changed."""
        self.resizes: deque[tuple[float, int, int, str]] = deque(maxlen=_KEPT_RESIZES)
        """The last changes of `target` since the pool is open: loop time, old and new target, reason."""

    def open(self, context: Context) -> None:
        """Make workers whose resources run in a copy of this context from now on."""
        self._context = context
        self.health.open(context)

    @property
    def max_workers(self) -> int:
        """How many workers there can be. If nobody knows, because a function decides: what it answered last."""
        return max(1, self.target) if self._limit is None else self._limit

    @property
    def starting(self) -> int:
        """How many workers have no resource yet, or not again, and are likely to have it soon, or were refused one."""
        if self.resource is None:
            return 0
        return sum(_is_starting(worker) for worker in self.by_number.values()) - self.usable

    @property
    def free(self) -> int:
        """How many workers have no job and are not waiting for their resource, or are not made yet."""
        return len(self.idle) + self._queue.reserve

    @property
    def usable(self) -> int:
        """How many workers can take a job now, without waiting for a resource; perhaps after a check."""
        return self.free if self.resource is None else len(self.idle) + len(self.health.stale)

    def resource_tasks(self) -> list[ResourceHolder]:
        """Return the tasks that hold the resources of workers."""
        workers = () if self.resource is None else self.by_number.values()
        return [worker.resource_task for worker in workers if worker.resource_task is not None]

    @property
    def abandoned(self) -> int:
        """How many resources ignore that they were cancelled. From `max_workers` on each takes the place of a worker's,
        so that their number is bounded (test_what_is_abandoned_takes_places_once_it_is_too_much).
        """
        return self._tasks.abandoned

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
        self._report_resized(old, Decision(target, reason), None)

    def resize(self, decision: Decision, load: PoolLoad | None) -> None:
        """Change how many workers there should be, and report it."""
        old = self.target
        self._resize(decision.workers)
        if old != decision.workers:
            self.resizes.append((self._state.time(), old, decision.workers, decision.reason))
        self._report_resized(old, decision, load)
        # After the event, so that an observer hears of this step before what it leads to.
        self._wakeups.size_changed()

    def _report_resized(self, old: int, decision: Decision, load: PoolLoad | None) -> None:
        if old != decision.workers and self._observers.any:
            new, reason, figures = decision.workers, decision.reason, decision.figures
            self._observers.emit(
                PoolResized(pool=self._state.name, old=old, new=new, reason=reason, figures=figures, load=load)
            )

    def _resize(self, target: int) -> None:
        """Make new workers, or retire surplus ones: at once those without a job, then those whose job ends first."""
        self.target = target
        self._queue.set_bounds(target, self.max_workers)
        staying = [worker for worker in self.by_number.values() if not worker.retiring]
        missing = target - len(staying)
        self._set_unmade(max(0, missing))
        self._make(min(_FIRST_WORKERS - len(self.by_number), self.unmade - self._asleep))
        if not self.idle:
            self.make_more()
        excess = max(0, -missing)
        # Of those without a job first those without a resource, the youngest first; then those that were idle longest.
        places = self.health.free_in_order()
        free = [worker for worker in staying if worker.job is None]
        free.sort(key=lambda worker: (places.get(worker, -1), -worker.number))
        for worker in free[:excess]:
            worker.retiring = True
        self.health.discard_retiring()
        for worker in free[:excess]:
            self.release(worker)
        self.surplus = max(0, excess - len(free))
        self._places.grant()
        self._wakeups.leave_fast_path()
        self.on_resized()

    def make_more(self) -> bool:
        """Have those that are stale checked, and make workers that are needed for the first time, because no other is
        idle; return whether one is idle now.
        """
        if self.resource is None:
            self._make(max(_FIRST_WORKERS, len(self.by_number)))
        else:
            self.health.check_next()
            # How many are checked, or wait for their resources: none is idle.
            waiting = len(self.by_number) - self._ledger.running - len(self._leaving)
            self._make(self._queue.backlog - waiting)
            if self.unmade:  # the hot path wakes nobody for the next job, because no worker is idle
                self._queue.notify_next(self._job_arrived, owner=self)
        return bool(self.idle)

    def _job_arrived(self) -> None:
        if not self.idle:
            self.make_more()

    def _make(self, number: int) -> None:
        """Make up to this many of the workers that there should be."""
        for _ in range(min(number, self.unmade)):
            self._set_unmade(self.unmade - 1)
            self.add()

    def _set_unmade(self, unmade: int) -> None:
        self._queue.reserve += unmade - self.unmade
        self.unmade = unmade
        self._asleep = min(self._asleep, unmade)

    # -- One worker --------------------------------------------------------------------------------------------------

    def add(self) -> Worker:
        """Make a worker. One with a resource takes jobs once that is entered."""
        worker = self._new()
        if self.resource is None:
            self.idle.append(worker)
        else:
            self._hold_resource(worker, self.resource)
        return worker

    def add_first(self) -> ResourceTask:
        """Make the worker that `start()` waits for: if its resource cannot be entered, the pool does not open."""
        assert self.resource is not None
        return self._hold_resource(self._new(), self.resource, must_open=True)

    def _new(self) -> Worker:
        number = heapq.heappop(self._free_numbers) if self._free_numbers else len(self.by_number) + 1
        worker = self.by_number[number] = Worker(number, self._state)
        return worker

    def _hold_resource(
        self, worker: Worker, resource: Resource[Any], *, must_open: bool = False, failures: int = 0
    ) -> ResourceTask:
        context = self._context.copy()  # not that of the caller that resizes
        task = ResourceTask(
            worker,
            self,
            resource,
            self._places,
            self._reopening,
            self.log,
            context,
            must_open=must_open,
            failures=failures,
        )
        worker.resource_task = task
        try:
            task.start(self._tasks)
        except BaseException:  # the loop's task factory raised, or an interrupt came, perhaps after the task was made
            worker.retiring = True  # so that the task, which nobody knows then, ends
            self.remove(worker)
            raise
        self.health.on_usable()
        return task

    def job_ended(self, worker: Worker) -> bool:
        """Decide what a worker does whose job has just ended; return whether it can take the next one."""
        if self.surplus and not worker.retiring:
            self.surplus -= 1
            worker.retiring = True
        if self.health.has_rules and not worker.retiring and not worker.needs_recycle:
            self.health.job_ended(worker)
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
                self.health.on_usable()
        elif worker.retiring:
            self.remove(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a worker that has left."""
        self.log.left(worker.number)
        self._leaving.discard(worker)
        if self.by_number.get(worker.number) is worker:  # otherwise its number belongs to another worker by now
            del self.by_number[worker.number]
            heapq.heappush(self._free_numbers, worker.number)
        self._wakeups.worker_gone()

    def retire_all(self) -> None:
        """Let every worker go: at once, or when its job has ended."""
        self.surplus = 0
        self._set_unmade(0)
        self.idle.clear()
        self.health.close()
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
        self.health.close()
        for worker in self.by_number.values():
            if worker.resource_task is not None:
                worker.resource_task.close()

    # -- What the resource tasks and the rules report ----------------------------------------------------------------

    def worker_ready(self, worker: Worker) -> None:
        """A worker's resource is open: it takes jobs."""
        self.log.opened(worker.number)
        if not worker.retiring:
            self.health.resource_opened(worker)
            self._becomes_idle(worker)

    def _becomes_idle(self, worker: Worker) -> None:
        self.idle.append(worker)
        self.health.on_usable()
        self._wakeups.worker_ready()

    def worker_slow(self, worker: Worker) -> None:
        """A worker has waited some seconds for its resource: neither the policy nor a queued job must count on it."""
        if self._queue.backlog:
            self.health.check_next(extra=1)
            self._make(1)
        self._wakeups.worker_slow()

    def resource_passed_check(self, worker: Worker) -> None:
        """A worker's resource was checked and is good: it takes jobs, unless its resource is to be replaced now."""
        if not worker.needs_recycle:
            self.health.passed_check(worker)
            self._becomes_idle(worker)

    def resource_failed_check(self, worker: Worker, error: BaseException | None) -> None:
        """A worker's resource is not good any more: it is replaced."""
        self.log.failed_check(worker.number, error)
        self._replace_free(worker, "check")
        self.health.suspect_all()

    def resource_too_old(self, worker: Worker) -> None:
        """A worker's resource has reached its `max_age`: it is replaced, if there is a job, when that has ended."""
        if worker.job is not None:
            worker.recycle("age")
        elif not worker.retiring:
            self._replace_free(worker, "age")

    def _replace_free(self, worker: Worker, reason: ReplacementReason) -> None:
        """Have the resource of a worker without a job replaced, and let another one take its job, if it had one."""
        worker.recycle(reason)
        self.health.discard(worker)
        self.release(worker)
        if not self.idle:
            self.make_more()

    def _idle_too_long(self, workers: list[Worker]) -> None:
        """Let workers go that were taken out of `idle`, with their resources; others are made when a job needs them."""
        self._set_unmade(self.unmade + len(workers))
        self._asleep += len(workers)
        for worker in workers:
            worker.recycle("idle")
            worker.retiring = True
            self.release(worker)
        if not self.idle:
            self._queue.notify_next(self._job_arrived, owner=self)
        self.health.on_usable()
        for worker in workers:
            self.log.replaced(worker.number, "idle")

    def resource_lost(self, worker: Worker) -> BaseException | None:
        """A worker's resource ends by itself: fail the job that runs on it, and return the failure to be."""
        worker.needs_recycle = True
        if worker.job is None:
            self.health.discard(worker)
            self.health.suspect_all()
            self.health.on_usable()
            if not self.idle:
                self.make_more()
            return None
        self.health.suspect_all()
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
        self.log.failed(worker.number, error, retry_in)

    def resource_abandoned(self, worker: Worker, error: ResourceTimeout, failures: int) -> None:
        """A worker's resource ignores that it was cancelled: leave it to itself, and give the worker another."""
        self.health.discard(worker)
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
        self.log.abandoned(worker.number, error)
        if not worker.retiring and self.resource is not None:
            self._hold_resource(worker, self.resource, failures=failures)
        elif worker.job is None:
            self.remove(worker)


def _nothing() -> None: ...


def _is_starting(worker: Worker) -> bool:
    """Whether a worker takes jobs, or is likely to take some soon."""
    is_slow = worker.resource_task is not None and worker.resource_task.is_slow
    return worker.job is None and not worker.retiring and not is_slow
