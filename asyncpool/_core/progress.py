"""Notices that a pool makes no progress: waits that can never end, or work without a usable worker.

The newest of the waits gets `PoolDeadlock`. Only waits for the same pool are seen; a cycle over two pools is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

from asyncpool._core.cancellation import Cancellation
from asyncpool._core.job import CURRENT_JOB, Job
from asyncpool._core.lanes import Lanes
from asyncpool._core.ledger import Ledger
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.scaler import Scaler
from asyncpool._core.state import Phase, State
from asyncpool._core.workers import Workers
from asyncpool._logs import log
from asyncpool.errors import PoolDeadlock
from asyncpool.events import Observers, PoolRecovered, PoolStalled
from asyncpool.limits.line import Limit

__all__ = ["Deadlock", "Processes", "Stall"]

# A deadlock stays; so one that arises without a new wait can be found a little later, in seconds.
_RECHECK_AFTER = 0.1
# A function that decides whether a pool of waiting jobs can grow is asked again after this many seconds.
_ASK_AGAIN_AFTER = 0.1
# Seconds for which there must be work and no usable worker before it is reported.
_STALLED_AFTER = 5.0
# While no worker is usable, this many seconds from one look to the next: jobs arrive without a word to us.
_INTERVAL = 1.0


class _Waits:
    """The waits of a pool's running jobs for this pool, in the order in which they began."""

    __slots__ = ("_awaited", "_pending", "_wait_count")

    def __init__(self) -> None:
        self._pending: dict[asyncio.Future[None], Job] = {}
        self._awaited: dict[asyncio.Future[None], Job] = {}  # the job, of waits for the end of one job
        # Of the pending futures, how many are whose; never 0 (tests/laws: jobs_wait_for_their_own_pool).
        self._wait_count: dict[Job, int] = {}

    def add(self, future: asyncio.Future[None], job: Job, awaited: Job | None) -> None:
        """Note that a job waits for a future, which stands for the end of another job, if that is given."""
        self._pending[future] = job
        if awaited is not None:
            self._awaited[future] = awaited
        self._wait_count[job] = self._wait_count.get(job, 0) + 1

    def discard(self, future: asyncio.Future[None]) -> None:
        """Note that a wait is over."""
        job = self._pending.pop(future, None)
        self._awaited.pop(future, None)
        if job is not None:
            self._wait_count[job] -= 1
            if not self._wait_count[job]:
                del self._wait_count[job]

    def __contains__(self, job: Job) -> bool:
        """Whether a job waits."""
        return job in self._wait_count

    @property
    def jobs(self) -> int:
        """How many jobs wait."""
        return len(self._wait_count)

    @property
    def blocked(self) -> int:
        """How many running jobs wait, and were not woken yet."""
        return len(self.blocked_jobs()) if self._wait_count else 0

    def blocked_jobs(self) -> set[Job]:
        """The running jobs that wait, and were not woken yet."""
        # A job that was woken goes on as soon as the loop lets it: it blocks nobody, whatever else it waits for.
        blocked = {job for job in self._wait_count if job.is_running}
        blocked -= {job for future, job in self._pending.items() if future.done()}
        return blocked

    def blocked_by_slots(self, lanes: Lanes) -> set[Job]:
        """The running jobs that can never go on, because they wait for each other, or for jobs that wait for slots
        which they hold.
        """
        needs: dict[Job, list[Limit | Job | None]] = {}  # what could end each wait: a slot, another job, or anything
        for future, job in self._pending.items():
            awaited = None if future.done() else self._awaited.get(future)
            needs.setdefault(job, []).append(None if awaited is None else lanes.obstacle_of(awaited))
        stuck = {job: set(obstacles) for job, obstacles in needs.items() if None not in obstacles and job.is_running}
        while True:
            go_on = [
                job
                for job, obstacles in stuck.items()
                if any(
                    other not in stuck if isinstance(other, Job) else other is not None and lanes.can_open(other, stuck)
                    for other in obstacles
                )
            ]
            if not go_on:
                return set(stuck)
            for job in go_on:
                del stuck[job]

    def newest_of(self, jobs: set[Job]) -> asyncio.Future[None]:
        """Return the wait that began last of those of these jobs."""
        return next(future for future, job in reversed(self._pending.items()) if job in jobs)


class Deadlock:
    """Ends the newest wait of a running job for its own pool once no running job can go on."""

    __slots__ = (
        "_asking",
        "_cancellation",
        "_context",
        "_lanes",
        "_ledger",
        "_queue",
        "_recheck_timer",
        "_scaler",
        "_state",
        "_time_may_help",
        "_waits",
        "_workers",
    )

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        *,
        queue: JobQueue,
        workers: Workers,
        scaler: Scaler,
        cancellation: Cancellation,
        time_may_help: Callable[[], bool],
        lanes: Lanes | None,
    ) -> None:
        self._lanes = lanes
        self._state = state
        self._ledger = ledger
        self._waits = _Waits()
        self._queue = queue
        self._workers = workers
        self._scaler = scaler
        self._cancellation = cancellation
        self._time_may_help = time_may_help  # whether a delayed job is still to come back by itself
        self._recheck_timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Handle | None = None  # while a function is asked for more workers, because all jobs wait

    def open(self, context: Context) -> None:
        """Start timers in this context from now on."""
        self._context = context

    async def wait(self, future: asyncio.Future[None], awaited: Job | None = None) -> None:
        """Wait for a future of the pool, or for the end of a job, which the future stands for. Cancel-safe if the
        future's owner is.

        Raises:
            PoolDeadlock: The caller is a job of this pool (or a task that one spawned), and this wait is the newest of
                those that can never end: all workers run jobs that wait like this, or those that wait hold all slots
                that the jobs need for which they wait.
        """
        job = CURRENT_JOB.get(None)
        if job is None or not job.runs_in(self._state):
            try:
                await future
            finally:
                del future  # the error is in it, and knows this frame: see `Failed.unwrap`
            return
        self._waits.add(future, job, awaited)
        try:
            self.check()
            await future
        finally:
            self._waits.discard(future)
            del future
            is_possible = self._is_possible() or (self._lanes is not None and self._lanes.holds_slots)
            if job in self._waits and is_possible and self._recheck_timer is None:
                # It counted as awake until now, and may only go back to another wait. Not at once: what has woken it
                # can still make it give up the other.
                self._recheck_timer = self._state.loop.call_later(_RECHECK_AFTER, self._recheck)

    def check(self, *, is_final: bool = False) -> None:
        """End the newest wait with `PoolDeadlock` if no running job can go on.

        Call it when a wait begins, when a job must wait for its limit, and when a worker goes that could have taken
        another job.
        """
        if self._lanes is not None and self._lanes.holds_slots and self._waits.jobs:
            self._check_slots(self._lanes)
        if not self._is_possible():
            return
        most, running = self._workers.max_workers, self._ledger.running
        if running < most and not self._needs_worker():
            return  # before the count, which takes as long as there are waits
        blocked = self._waits.blocked_jobs()
        if len(blocked) < running or not blocked:
            return
        if running < most:
            self._scaler.wake_now()
            return
        if not is_final and self._may_grow():
            return
        self._end_newest(blocked, f"all {running} running jobs (of at most {most} at a time) wait for this same pool")

    def _check_slots(self, lanes: Lanes) -> None:
        """End the newest wait for a job that needs a slot which is held by jobs that wait like this."""
        while blocked := (set[Job]() if self._cancellation.is_settling else self._waits.blocked_by_slots(lanes)):
            is_one = len(blocked) == 1
            self._end_newest(
                blocked,
                f"{len(blocked)} running {'job holds' if is_one else 'jobs hold'} slots of a ConcurrencyLimit and "
                f"{'waits' if is_one else 'wait'} for jobs that need them",
            )

    def _end_newest(self, blocked: set[Job], why: str) -> None:
        newest = self._waits.newest_of(blocked)
        self._waits.discard(newest)
        newest.set_exception(
            PoolDeadlock(
                f"pool {self._state.name!r}: {why}; this wait, the newest, was ended so that the others can go on"
            )
        )

    @property
    def blocked(self) -> int:
        """How many running jobs wait for this pool, and were not woken yet."""
        return self._waits.blocked

    def close(self) -> None:
        """Check no more: the pool is closed."""
        if self._recheck_timer is not None:
            self._recheck_timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _is_possible(self) -> bool:
        if self._waits.jobs < self._ledger.running or self._cancellation.is_settling:
            return False
        return not (self._queue.has_too_many_delayed and self._time_may_help())

    def _needs_worker(self) -> bool:
        """Whether no worker is there, or comes, for another job, and the policy may want one."""
        return not self._workers.free and not self._scaler.is_fixed and not self._workers.starting

    def _recheck(self) -> None:
        self._recheck_timer = None
        self.check()

    # -- Functions as policies ---------------------------------------------------------------------------------------

    def _may_grow(self) -> bool:
        """Whether the policy is a function: it has to be asked before anybody knows."""
        if self._scaler.is_function and self._asking is None:
            self._asking = self._state.loop.call_soon(self._ask, context=self._context.copy())
        return self._scaler.is_function

    def _ask(self) -> None:
        self._scaler.evaluate()
        # Once more a little later: what the jobs wait for may be about to be submitted.
        self._asking = self._state.loop.call_later(_ASK_AGAIN_AFTER, self._ask_again, context=self._context.copy())

    def _ask_again(self) -> None:
        self._asking = None
        self._scaler.evaluate()
        self.check(is_final=True)


class Processes(Protocol):
    """The processes in which the attempts of a pool run."""

    @property
    def is_usable(self) -> bool:
        """Whether one of them can run attempts, or none is needed."""
        ...

    @property
    def reason(self) -> str:
        """Why none can."""
        ...


class Stall:
    """Whether a pool is stalled.

    A worker is usable if it is idle, or runs a job that does not ignore its cancellation; with an engine, only while a
    process can run attempts. `watch` must be called when a worker becomes usable, or stops to be, and when a submitter
    begins to wait. A pool with a usable worker costs nothing more and arms no timer.
    """

    __slots__ = (
        "_cancellation",
        "_context",
        "_is_stalled",
        "_ledger",
        "_observers",
        "_pauses",
        "_queue",
        "_since",
        "_state",
        "_timer",
        "_workers",
        "processes",
    )

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        observers: Observers,
        *,
        queue: JobQueue,
        workers: Workers,
        pauses: Pauses,
        cancellation: Cancellation,
    ) -> None:
        self.processes: Processes | None = None
        """Those of the engine, if the pool has one."""
        self._state = state
        self._ledger = ledger
        self._observers = observers
        self._queue = queue
        self._workers = workers
        self._pauses = pauses
        self._cancellation = cancellation
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None  # since when there was work and no usable worker
        self._is_stalled = False  # whether that was reported

    def open(self, context: Context) -> None:
        """Start timers in this context from now on."""
        self._context = context

    @property
    def seconds(self) -> float:
        """For how many seconds the pool has been stalled; 0.0 if it is not."""
        return self._state.time() - self._since if self._is_stalled and self._since is not None else 0.0

    def watch(self) -> None:
        """Look whether the pool is stalled, and look again later if it may become so."""
        is_remote = self.processes is not None and not self.processes.is_usable
        if self._workers.idle and self._since is None and not is_remote:
            return  # the usual case
        is_open = self._state.phase in (Phase.OPEN, Phase.DRAINING)
        running, stuck = self._ledger.running, self._cancellation.stuck
        is_unusable = is_open and (is_remote or self._workers.usable + running <= stuck)
        waiting = self._queue.backlog + (max(0, running - stuck) if is_remote else 0)
        has_work = is_unusable and waiting > 0 and not self._pauses.is_paused
        now = self._state.time()
        if not has_work:
            self._end(now)
        elif self._since is None:
            self._since = now
        elif not self._is_stalled and now - self._since >= _STALLED_AFTER:
            self._begin(now - self._since, waiting)
        # A worker without a job that is not idle waits for its resource, and that takes no longer than its bounds. If
        # all run stuck jobs, the end of one of them is the next to happen, or that work comes: no timer then, once that
        # is reported.
        if is_unusable and not has_work:
            self._queue.notify_next(self.watch, owner=self)
        else:
            self._queue.ignore_next(self)
        # A job that an idle worker takes is in no queue, so a pool without processes looks for such jobs.
        waits = is_unusable and (is_remote or len(self._workers.by_number) > running)
        if waits or (has_work and not self._is_stalled):
            if self._timer is None:
                self._timer = self._state.loop.call_later(_INTERVAL, self._look_again, context=self._context.copy())
        else:
            self._stop_timer()

    def close(self) -> None:
        """Look no more: the pool is closed."""
        self._stop_timer()
        self._is_stalled = False

    def _look_again(self) -> None:
        self._timer = None
        self.watch()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, seconds: float, queued: int) -> None:
        self._is_stalled = True
        reason = self._reason()
        log.warning(
            "pool %r: stalled: %d waiting, and no usable worker for %.2g s: %s",
            self._state.name,
            queued,
            seconds,
            reason,
        )
        if self._observers.any:
            self._observers.emit(PoolStalled(pool=self._state.name, reason=reason, queued=queued))

    def _end(self, now: float) -> None:
        since, was_stalled = self._since, self._is_stalled
        self._since, self._is_stalled = None, False
        if since is None or not was_stalled:
            return
        log.warning("pool %r: no longer stalled after %.2g s", self._state.name, now - since)
        if self._observers.any:
            self._observers.emit(PoolRecovered(pool=self._state.name, seconds=now - since))

    def _reason(self) -> str:
        workers, stuck = self._workers, self._cancellation.stuck
        reasons: list[str] = []
        if stuck:
            reasons.append(f"{stuck} of {len(workers.by_number)} workers run jobs that ignore their cancellation")
        if self.processes is not None:
            if not self.processes.is_usable:
                reasons.append(self.processes.reason)
        elif len(workers.by_number) > self._ledger.running:
            last, checking = workers.log.last_failure, len(workers.health.checking)
            tasks = workers.resource_tasks()
            opening, closing = sum(task.is_opening for task in tasks), sum(task.is_closing for task in tasks)
            reasons.append(
                f"no worker has its resource ({opening} opening, {closing} closing"
                f"{f', {checking} checking' if checking else ''}"
                f"{f', {workers.abandoned} abandoned' if workers.abandoned else ''}"
                f"{'' if last is None else f'; the last failure was {last}'})"
            )
        return " and ".join(reasons) or "there is no worker"
