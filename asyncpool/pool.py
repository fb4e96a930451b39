"""`WorkerPool`: the public interface of a pool.

What each call does in each state (docs/semantics.md has the same table, and tests/test_states.py checks every cell):

    state      submit, run, map ...   close                      cancel      pause, resume, resize   stats
    NEW        PoolNotStarted         -> CLOSED, empty report    the same    kept for the start      zeros
    STARTING   accepted, queued       start() raises PoolClosed  the same    done                    live
    OPEN       accepted               -> DRAINING                -> STOPPING done                    live
    DRAINING   PoolClosed             can shorten it             -> STOPPING PoolClosed              live
    STOPPING   PoolClosed             can shorten it             nothing     PoolClosed              live
    CLOSED     PoolClosed             the report, at once        nothing     PoolClosed              last

`resume(force=True)` is done in DRAINING, too. `options.py` has the options and their checks; the parts of a pool, in
`_core/`, implement the calls.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from asyncpool._checks import check_count, check_function, check_seconds
from asyncpool._core.job import CURRENT_JOB
from asyncpool._core.life import Life
from asyncpool._core.scaler import as_policy
from asyncpool._core.state import Phase
from asyncpool.breaker import Breaker
from asyncpool.dead_letters.letter import DeadLetterSink
from asyncpool.engines.contract import Engine
from asyncpool.errors import ErrorFilter, PoolClosed, PoolDeadlock
from asyncpool.events import Observer
from asyncpool.intake import Intake
from asyncpool.limits.limiter import Limiter
from asyncpool.options import PoolOptions, build_parts
from asyncpool.outcomes import CancelReason, ShutdownReport
from asyncpool.resources import Resource
from asyncpool.retry import Retry
from asyncpool.scaling.policy import Workers
from asyncpool.snapshots import QueuedJob, RunningJob
from asyncpool.stats import PoolStats, ProcessStats, Resize

__all__ = ["WorkerPool"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")
ResourceT = TypeVar("ResourceT")


class WorkerPool(Intake[JobT, ValueT]):
    """Runs jobs on a bounded number of workers, in one event loop.

        async with WorkerPool(fetch, workers=20) as pool:
            async for page in pool.map(urls):
                ...

    Each job runs in a task of its own, with a copy of its submitter's context. The constructor needs no event loop. A
    pool can be started once, on one loop, and must be used from the thread of that loop.

    Args:
        handler: `handler(job)`, or `handler(job, resource)` with a resource: an async function, or anything callable
            that returns an awaitable. None: each job is itself a zero-argument async callable.
        workers: How many jobs run at the same time; at least 1. Or a policy that decides it: `AutoScale`, `Adaptive`,
            your own `ScalingPolicy`, or a function of the `PoolLoad` that returns up to 1,000 (see `FunctionPolicy`).
        queue_size: How many accepted jobs can wait for a worker. 0: none, so a job is accepted only when a worker is
            idle. None: 10 times the number of workers, or of the most workers that the policy allows.
        max_delayed: While this many jobs are delayed (they wait for their next attempt, or for a limit, except a single
            `RateLimit` of all jobs), no others are accepted. Jobs accepted before can exceed the number.
        timeout: Seconds that the handler can take for one attempt, without the wait in the queue or for the limiter. It
            can read its deadline (`anyio.current_effective_deadline()`), and is cancelled once when that passes. If it
            then ends with the `CancelledError`, the attempt fails with `JobTimeout`; if it raises another error, with
            that; if it returns a value, the job has succeeded. A deadline around the submitter does not apply: that is
            another task. Can also be a function of the job that returns the seconds, or None for no timeout. The pool
            calls it when an attempt starts; with an engine, in the program. If it raises or returns anything else, the
            job fails with that error and is not retried.
        queue_timeout: Seconds from a job's acceptance within which its first attempt must start. Otherwise the job
            fails with `JobExpired` at that moment, without running. The time also runs while the pool is paused, while
            all workers are busy, and while the job waits for its limiter. None: no limit.
        retry: Which failed jobs are retried, how often and when. Between two attempts a job holds no worker.
        limiter: Limits how often attempts start, or how many run at the same time: a `RateLimit` or `ConcurrencyLimit`,
            or `per_key` of these. Or an async context manager that several jobs can be in at the same time (a
            semaphore, an aiolimiter): each attempt enters it in its own task, and holds its worker while it waits
            there. Or a function of the job that returns one of these, or None for no limit. Or a list of all these, or
            a function that returns a list: an attempt starts when all limits allow it, takes all of them in one step,
            and then enters the context managers in their order. If a function raises, or a weight is more than its
            limit can ever give, the job fails, and is not retried.
        breaker: Pauses the pool while its backend is down, instead of failing the jobs: see `Breaker`.
        resource: Creates an async context manager for each worker (a connection, a session). It is entered and left in
            one task, and replaced after a cancelled or timed-out job, and after an error that matches `recycle_on`. Or
            a `Resource`, which also checks it before it is used, replaces it at a certain age, and bounds how long
            entering and leaving can take.
        recycle_on: Which errors of a job replace its worker's resource, if `resource` is a function: `resource=connect,
            recycle_on=KeyError` is short for `resource=Resource(connect, recycle_on=KeyError)`. None: `OSError`.
        priority: Returns a job's sort key. Jobs with smaller keys run first; equal keys run in the order of acceptance.
            It orders the queue, and not the callers that wait for room. Strict: a steady flow of jobs with smaller keys
            starves the others. A key that does not compare with the others, or has NaN in it at any depth (of tuples,
            lists, deques, dataclasses, attrs classes), is rejected with a `TypeError`: `submit` raises it, and a job of
            a stream fails with it.
        dead_letters: Records each `Failed` outcome once, before it is delivered, and no other: `DeadLetters`,
            `DeadLetterFile`, or any object with a method `record(letter)`.
        observers: Called with each event (see `asyncpool.events`), on the loop, between two steps of the pool. They
            must not block. An observer that raises is removed, which is logged.
        name: Used in logs, statistics and task names.
        engine: Runs the attempts in other processes: `Processes()` on all cores, `asyncpool.dask.Dask(address)` on a
            cluster. `workers` stays the number of jobs that run at the same time, in all processes together. Handler,
            resource, jobs, values and errors must be picklable, and context variables do not travel. An attempt whose
            process dies runs again: handlers must be able to run twice. See docs/scale-out.md.
        patience: Seconds without a process that can run the handler, after which the pool is cancelled (`EngineLost`).
        reruns: False: a job whose process was lost while it ran fails with `ProcessLost`, and never runs twice.
        responds_within: Seconds after which a process is killed whose event loop does not respond, for instance because
            a handler blocks it. None: never.

    Raises:
        TypeError: An argument is not of its type; `handler` is not callable, or a generator function; `recycle_on` is
            given beside a `Resource`; handler or resource cannot be sent to other processes.
        ValueError: A number is out of range.
    """

    @overload
    def __init__(
        self: WorkerPool[Callable[[], Awaitable[Any]], Any],
        handler: None = None,
        *,
        workers: Workers,
        **options: Unpack[PoolOptions[Callable[[], Awaitable[Any]]]],
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: Callable[[JobT], Awaitable[ValueT]],
        *,
        workers: Workers,
        **options: Unpack[PoolOptions[JobT]],
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
        *,
        workers: Workers,
        resource: Callable[[], AbstractAsyncContextManager[ResourceT]] | Resource[ResourceT],
        recycle_on: ErrorFilter | None = None,
        **options: Unpack[PoolOptions[JobT]],
    ) -> None: ...

    def __init__(
        self,
        handler: Callable[..., Awaitable[Any]] | None = None,
        *,
        workers: Workers,
        queue_size: int | None = None,
        max_delayed: int = 10_000,
        timeout: float | Callable[[Any], float | None] | None = None,
        queue_timeout: float | None = None,
        retry: Retry | None = None,
        limiter: Limiter[Any] | None = None,
        breaker: Breaker | None = None,
        resource: Callable[[], AbstractAsyncContextManager[Any]] | Resource[Any] | None = None,
        recycle_on: ErrorFilter | None = None,
        priority: Callable[[Any], Any] | None = None,
        dead_letters: DeadLetterSink[Any] | None = None,
        observers: Sequence[Observer] = (),
        name: str = "pool",
        engine: Engine | None = None,
        patience: float = 30.0,
        reruns: bool = True,
        responds_within: float | None = None,
    ) -> None:
        self._dead_letters: DeadLetterSink[JobT] | None = dead_letters
        self._limiter: Limiter[JobT] | None = limiter
        self._parts = build_parts(
            handler,
            workers=workers,
            queue_size=queue_size,
            max_delayed=max_delayed,
            timeout=timeout,
            queue_timeout=queue_timeout,
            retry=retry,
            limiter=limiter,
            breaker=breaker,
            resource=resource,
            recycle_on=recycle_on,
            priority=priority,
            dead_letters=dead_letters,
            observers=observers,
            name=name,
            engine=engine,
            patience=patience,
            reruns=reruns,
            responds_within=responds_within,
        )
        self._life = Life(self._parts)

    # -- Life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool; `async with pool:` does this, and closes the pool at the end.

        Waits until the first worker has entered its resource, if the pool has one that is `required` (see `Resource`).
        With an engine, waits for the first process that can run the handler, and has done that. If the wait is
        cancelled, the pool is closed.

        Raises:
            PoolReused: The pool was started before.
            PoolClosed: The pool was closed during the wait.
            WrongLoop: A limit of the pool is used on another event loop, which is running.
            EngineLost: The engine has failed, or has had no process for `patience` seconds.
            Exception: What the resource raised when it was entered, or `ResourceTimeout`; or what keeps the processes
                of the engine from running the handler. The pool is then closed.
        """
        await self._life.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        phase = self._parts.state.phase
        if kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self._parts.state.is_interrupted = True
        if phase is Phase.STOPPING or (phase is Phase.DRAINING and (kind is None or issubclass(kind, PoolClosed))):
            await self._life.wait_closed()  # the end was already requested, with its own drain_timeout and grace
        else:
            self._request_stop(None if kind is None else 0.0, 5.0, "close")
            await self._life.wait_closed()
        if kind is None and self._parts.state.cause is not None:
            raise self._parts.state.cause  # the block may not have seen it

    async def close(self, *, drain_timeout: float | None = None, grace: float = 5.0) -> ShutdownReport[JobT]:
        """Close the pool and wait until it is closed. Can be called from any task of the pool's loop, repeatedly.

        1. Close the intake (`submit` raises `PoolClosed`, streams stop pulling), and lift a `pause()`.
        2. Let queued, delayed and running jobs finish, for up to `drain_timeout` seconds (None: as long as it takes).
        3. Settle queued and delayed jobs as cancelled, cancel running jobs, and once more at half of the grace, and
           wait up to `grace` seconds for them to stop and for the resources to be left.
        4. Abandon the jobs that ignore their cancellation, and list them in the report.

        Cancelled while waiting, it proceeds to step 3 and keeps waiting; cancelled again, to step 4; then it raises
        `CancelledError`. A later call can only bring the steps forward, and returns the same report.

        Returns:
            The report of what did not complete, with the inputs in the order of submission. Also kept as `pool.report`.

        Raises:
            PoolDeadlock: The caller is a job of this pool, which would wait for itself.
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
            TypeError, ValueError: `drain_timeout` or `grace` is not a number of seconds >= 0.
        """
        self._request_stop(drain_timeout, grace, "close")
        self._life.is_report_awaited = True
        report: ShutdownReport[JobT] = await self._life.wait_closed()
        return report

    def drain(self, *, drain_timeout: float | None = None, grace: float = 5.0) -> None:
        """Request what `close()` does, without waiting: for signal handlers, and for jobs that find the work complete.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
            TypeError, ValueError: `drain_timeout` or `grace` is not a number of seconds >= 0.
        """
        self._request_stop(drain_timeout, grace, None)

    def cancel(self) -> None:
        """Request step 3 of `close()` without waiting: nothing is settled yet when this returns. Safe to repeat.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
        """
        self._parts.state.check_here()
        self._life.cancel()

    def _request_stop(self, drain_timeout: float | None, grace: float, waits_in: str | None) -> None:
        if drain_timeout is not None:
            drain_timeout = check_seconds("drain_timeout", drain_timeout)
        grace = check_seconds("grace", grace)
        self._parts.state.check_here()
        if waits_in is not None and self._life.report is None:
            self._check_not_in_job(waits_in)
        self._life.stop(drain_timeout=drain_timeout, grace=grace)

    async def join(self) -> None:
        """Wait until, at some instant, no job is queued, delayed or running. The pool stays open.

        Does not wait for jobs that streams have not pulled yet. Cancel-safe.

        Raises:
            PoolDeadlock: The caller is a job of this pool, which would wait for itself.
            PoolNotStarted, WrongLoop: The pool is not started, or runs on another loop.
        """
        self._parts.state.check_started()
        self._check_not_in_job("join")
        await self._parts.queue.join()

    def pause(self) -> None:
        """Let workers finish their jobs but take no others until `resume()`. The queue fills, then submitters wait.

        Raises:
            PoolClosed, WrongLoop: The pool is closing, or runs on another loop.
        """
        self._parts.state.check_not_closing()
        self._parts.pauses.pause()

    def resume(self, *, force: bool = False) -> None:
        """Let workers take jobs again after `pause()`.

        Args:
            force: Also end a pause that a job requested by `RetryAfter`, and let an open breaker start its probe;
                without it, such a pause goes on. Works while the pool drains, too. A job can request another pause
                later.

        Raises:
            PoolClosed: The pool is closing, which has already lifted a `pause()`; with `force`: it cancels its jobs.
            WrongLoop: The caller is not on the pool's loop.
        """
        state = self._parts.state
        if force and state.phase is Phase.DRAINING:
            state.check_here()
        else:
            state.check_not_closing()
        self._parts.pauses.resume(force=force)
        if force and self._parts.breaking is not None:
            self._parts.breaking.half_open()

    def cancel_queued(self, where: Callable[[JobT], object] | None = None) -> int:
        """Cancel the waiting jobs for which `where(job)` is true, and return how many they are.

        Delayed jobs are waiting jobs too. Running jobs continue. The outcome is the same as from `JobHandle.cancel()`:
        `Cancelled` with the reason "handle". `where` is called once for each waiting job, before any job is cancelled.
        If it raises, no job is cancelled.

        Up to 500 jobs are settled when this returns. More are settled in the next iterations of the loop, and none of
        them starts in between. The calls of `where` are not sliced: for 100,000 waiting jobs, they block the event loop
        for about 0.1 seconds.

        Args:
            where: A function of the input. None: all jobs that wait.

        Raises:
            TypeError: `where` is not callable, or an async function.
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
            Exception: What `where` raised.
        """
        if where is not None:
            check_function("where", where)
        self._parts.state.check_here()
        jobs = self._parts.inspection.waiting_where(where)
        self._parts.cancellation.cancel_waiting(jobs, CancelReason.HANDLE)
        return len(jobs)

    def resize(self, workers: Workers) -> None:
        """Change the number of workers, or the policy that decides it, without waiting.

        New workers are available at once; beyond 64, they and their resources are only made when a job needs them.
        Surplus workers close their resource and retire: idle ones first (those that are still opening their resource,
        then the longest idle), busy ones when their job ends. No job is lost. A new policy starts from the current
        number of workers.

        Raises:
            TypeError, ValueError: `workers` is neither an int >= 1 nor a policy.
            PoolClosed, WrongLoop: The pool is closing, or runs on another loop.
        """
        policy = as_policy(workers)
        self._parts.state.check_not_closing()
        self._parts.scaler.replace(policy)

    # -- Inspection --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._parts.state.name

    @property
    def stats(self) -> PoolStats:
        """A snapshot of the pool's counters; the equation in `PoolStats` holds in each snapshot."""
        return self._parts.stats()

    def processes(self) -> tuple[ProcessStats, ...]:
        """Return a snapshot of each process of the engine, in the order of their numbers; () without an engine."""
        return () if self._parts.fleet is None else self._parts.fleet.stats()

    def queued(self, limit: int | None = None) -> list[QueuedJob[JobT]]:
        """Return a snapshot of each job that waits, in the order in which they would start if nothing changed.

        Delayed jobs come last: first those that wait for a rate limit, in the order of acceptance, then those in their
        backoff, in the order in which the backoffs end.

        This blocks the event loop for about 4 microseconds per returned job. With a priority it compares the keys of
        all waiting jobs, which can take longer. If 100,000 jobs can wait, pass a `limit`.

        Args:
            limit: The most jobs to return, at least 1. None: all.

        Raises:
            TypeError, ValueError: `limit` is not an int >= 1.
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
        """
        most = sys.maxsize if limit is None else check_count("limit", limit, least=1)
        self._parts.state.check_here()
        return self._parts.inspection.queued(most)

    def running(self) -> list[RunningJob[JobT]]:
        """Return a snapshot of each job that holds a worker, the one whose handler has run longest first.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
        """
        self._parts.state.check_here()
        return self._parts.inspection.running()

    def resizes(self) -> tuple[Resize, ...]:
        """Return the last 50 changes of the target number of workers since the pool is open, the oldest first.

        An observer receives each one as a `PoolResized`.
        """
        changes = self._parts.workers.resizes
        now = self._parts.state.time() if changes else 0.0
        return tuple(Resize(old=old, new=new, reason=reason, seconds=now - when) for when, old, new, reason in changes)

    @property
    def report(self) -> ShutdownReport[JobT] | None:
        """What `close()` returned; None until the pool is closed."""
        return self._life.report

    @property
    def state(self) -> str:
        """The state of the pool: "new", "starting", "open", "draining", "stopping" or "closed"."""
        return self._parts.state.phase.value

    @property
    def is_paused(self) -> bool:
        """Whether workers take no jobs, because of `pause()`, a job that raised `RetryAfter(..., pause=True)`, or a
        breaker that is open or waits for its probe.
        """
        return self._parts.pauses.is_reported

    @property
    def queue_size(self) -> int:
        """How many accepted jobs can wait for a worker now. Can change when `resize` changes the most workers."""
        return self._parts.queue.maxsize

    @property
    def waiting_submitters(self) -> int:
        """How many callers of `submit` and `run`, and streams, are waiting for room in the pool now."""
        return len(self._parts.queue.line.waiting)

    @property
    def dead_letters(self) -> DeadLetterSink[JobT] | None:
        """The sink that records jobs that failed permanently, as it was passed to the constructor."""
        return self._dead_letters

    @property
    def limiter(self) -> Limiter[JobT] | None:
        """The limiter, as it was passed to the constructor."""
        return self._limiter

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the pool was started on; None before it was started."""
        return self._parts.state.loop if self._parts.state.is_bound else None

    def __repr__(self) -> str:
        parts = self._parts
        paused = ", paused" if parts.pauses.is_by_user else ""
        return (
            f"<WorkerPool {self.name!r} {self.state}{paused}: {parts.ledger.running} of {parts.workers.target} workers "
            f"busy, {parts.queue.qsize()} jobs queued, {parts.ledger.delayed} delayed>"
        )

    def _check_not_in_job(self, what: str) -> None:
        job = CURRENT_JOB.get(None)
        if job is not None and job.runs_in(self._parts.state):
            raise PoolDeadlock(
                f"{what}() would wait for itself: it waits for job {job.number} of pool {self.name!r}, which calls it"
            )
