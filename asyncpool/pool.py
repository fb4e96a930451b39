"""`WorkerPool`: the public face of a pool.

What a call does in which state (the same table stands in docs/semantics.md, and tests/test_states.py walks it):

    state      submit, run, map ...   close                      cancel      pause, resume, resize   stats
    NEW        PoolNotStarted         -> CLOSED, empty report    the same    kept for the start      zeros
    STARTING   accepted, queued       start() raises PoolClosed  the same    done                    live
    OPEN       accepted               -> DRAINING                -> STOPPING done                    live
    DRAINING   PoolClosed             may shorten it             -> STOPPING PoolClosed              live
    STOPPING   PoolClosed             may shorten it             nothing     PoolClosed              live
    CLOSED     PoolClosed             the report, at once        nothing     PoolClosed              last

The options and their checks are `options.py`; what the calls do is in the parts of the pool, `_core/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

import anyio

from asyncpool._checks import check_count, check_seconds
from asyncpool._core.completion import Completion
from asyncpool._core.feeder import FedChannel
from asyncpool._core.job import CURRENT_JOB, NULL_SINK
from asyncpool._core.life import Life
from asyncpool._core.scaler import as_policy
from asyncpool._core.state import Phase
from asyncpool.dead_letters.letter import DeadLetterSink
from asyncpool.errors import ErrorFilter, PoolClosed, PoolDeadlock, QueueFull
from asyncpool.events import Observer
from asyncpool.groups import Group, GroupChannel
from asyncpool.jobs import JobHandle
from asyncpool.options import PoolOptions, build_parts
from asyncpool.outcomes import Outcome, ShutdownReport
from asyncpool.rate import Limiter
from asyncpool.retry import Retry
from asyncpool.scaling.policy import Workers
from asyncpool.stats import PoolStats
from asyncpool.streams import Stream

__all__ = ["WorkerPool"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")
ResourceT = TypeVar("ResourceT")


class WorkerPool(Generic[JobT, ValueT]):
    """Runs jobs on a bounded number of workers, in one event loop.

        async with WorkerPool(fetch, workers=20) as pool:
            async for page in pool.map(urls):
                ...

    Each job runs in a task of its own, with a copy of its submitter's context. The constructor needs no event loop; a
    pool is started once, on one loop, and used from its thread.

    Args:
        handler: `handler(job)`, or `handler(job, resource)` with a resource: an async function, or anything callable
            that returns an awaitable. None: the jobs are zero-argument async callables themselves.
        workers: How many jobs run at the same time; at least 1. Or what decides about it: `AutoScale`, `Adaptive`,
            your own `ScalingPolicy`, or a function that is given the `PoolLoad` and returns a number.
        queue_size: How many accepted jobs may wait for a worker. 0: none, a job is accepted when a worker is idle.
            None: 10 times the workers, or the most that there may be.
        max_delayed: While so many jobs wait for a time (their next attempt, the rate limit that not all jobs have), no
            others are accepted. Those that were accepted already may come on top.
        timeout: Seconds that one attempt at a job may take. The handler sees the deadline
            (`anyio.current_effective_deadline()`) and is cancelled once when it is over.
        retry: Which failed jobs are tried again, how often and when. Between two attempts a job holds no worker.
        limiter: How many attempts may start in a time: a `RateLimit`, for all jobs; or `RateLimit.per_key`, or any
            function of the job that returns its `RateLimit`. What must wait holds no worker, and jobs with other limits
            go past it. Or an async context manager that any number of jobs may be in (a semaphore, an aiolimiter),
            or a function that returns one: each attempt enters it, and holds its worker while it waits there.
        resource: Makes an async context manager for each worker (a connection, a session). It is entered and left in
            one task, and replaced after a cancelled or timed-out job, and after an error that matches `recycle_on`.
        recycle_on: Which errors of a job replace its worker's resource: a type, a tuple of types, or a predicate.
        priority: Smaller keys first, in the order of acceptance among equals. Strict: a steady flow of jobs with
            smaller keys starves the others.
        dead_letters: Where each job that failed for good is recorded: `DeadLetters`, `DeadLetterFile`, or your own.
        observers: Called with each event (see `asyncpool.events`), on the loop, between two steps of the pool. They
            must not block. One that raises is dropped and logged.
        name: For logs, statistics and task names.

    Raises:
        TypeError: An argument is not of its type; `handler` is not callable, or a generator function.
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
        resource: Callable[[], AbstractAsyncContextManager[ResourceT]],
        recycle_on: ErrorFilter = OSError,
        **options: Unpack[PoolOptions[JobT]],
    ) -> None: ...

    def __init__(
        self,
        handler: Callable[..., Awaitable[Any]] | None = None,
        *,
        workers: Workers,
        queue_size: int | None = None,
        max_delayed: int = 10_000,
        timeout: float | None = None,
        retry: Retry | None = None,
        limiter: Limiter[Any] | None = None,
        resource: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
        recycle_on: ErrorFilter = OSError,
        priority: Callable[[Any], Any] | None = None,
        dead_letters: DeadLetterSink[Any] | None = None,
        observers: Sequence[Observer] = (),
        name: str = "pool",
    ) -> None:
        self._dead_letters: DeadLetterSink[JobT] | None = dead_letters
        self._parts = build_parts(
            handler,
            workers=workers,
            queue_size=queue_size,
            max_delayed=max_delayed,
            timeout=timeout,
            retry=retry,
            limiter=limiter,
            resource=resource,
            recycle_on=recycle_on,
            priority=priority,
            dead_letters=dead_letters,
            observers=observers,
            name=name,
        )
        self._life = Life(self._parts)

    # -- Life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool; `async with pool:` does this and closes it at the end.

        Waits for the first worker's resource, if there is one; the others follow in the background. Cancelled
        meanwhile, the pool is closed.

        Raises:
            PoolReused: The pool was started before.
            PoolClosed: The pool was closed while it waited.
            Exception: What the resource raised when it was entered; the pool is closed then.
        """
        await self._life.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        phase = self._parts.state.phase
        if phase is Phase.STOPPING or (phase is Phase.DRAINING and (kind is None or isinstance(error, PoolClosed))):
            await self._life.wait_closed()  # somebody has asked for the end already, and on what terms
        else:
            self._request_stop(None if kind is None else 0.0, 5.0, "close")
            await self._life.wait_closed()

    async def close(self, *, drain_timeout: float | None = None, grace: float = 5.0) -> ShutdownReport[JobT]:
        """End the pool and wait for its end. From any task of the pool's loop, any number of times.

        1. Stop the intake (`submit` raises `PoolClosed`, streams pull no more), and lift a `pause()`.
        2. Let queued, delayed and running jobs finish, for up to `drain_timeout` seconds (None: as long as it takes).
        3. Settle what is queued or delayed as cancelled, then cancel what runs, and wait up to `grace` seconds for it
           to end, the resources included.
        4. Abandon and name what ignores its cancellation.

        Cancelled while waiting, it goes to step 3 and waits on; cancelled again, to step 4; then it raises
        `CancelledError`. A later call can only bring the steps forward, and gets the same report.

        Returns:
            The inputs that were not done, in the order of submission. Also kept as `pool.report`.

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
        """Ask for `close()` and return at once: for signal handlers, and for jobs that find that the work is done.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the pool is not closed yet.
            TypeError, ValueError: `drain_timeout` or `grace` is not a number of seconds >= 0.
        """
        self._request_stop(drain_timeout, grace, None)

    def cancel(self) -> None:
        """Ask for step 3 of `close()` and return at once. Does nothing once the pool is closed.

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
        """Wait until nothing is queued, delayed or running, for one moment. The pool stays open.

        Jobs that streams have not pulled yet are not waited for. Cancel-safe.

        Raises:
            PoolDeadlock: The caller is a job of this pool, which would wait for itself.
            PoolNotStarted, WrongLoop: The pool is not started, or not on this loop.
        """
        self._parts.state.check_started()
        self._check_not_in_job("join")
        await self._parts.queue.join()

    def pause(self) -> None:
        """Let workers finish their jobs and take no more until `resume()`. The queue fills, then submitters wait.

        Raises:
            PoolClosed, WrongLoop: The pool is closing, or not on this loop.
        """
        self._parts.state.check_not_closing()
        self._parts.pauses.pause()

    def resume(self) -> None:
        """Let workers take jobs again. A pause that a job asked for by `RetryAfter` ends by itself, and not by this.

        Raises:
            PoolClosed: The pool is closing; that has lifted the pause.
            WrongLoop: The caller is not on the pool's loop.
        """
        self._parts.state.check_not_closing()
        self._parts.pauses.resume()

    def resize(self, workers: Workers) -> None:
        """Change the number of workers, or the policy that decides about it, now.

        New workers begin at once, surplus ones retire after their job. A policy begins with the workers that there are.

        Raises:
            TypeError, ValueError: `workers` is not an int >= 1, nor a policy.
            PoolClosed, WrongLoop: The pool is closing, or not on this loop.
        """
        policy = as_policy(workers)
        self._parts.state.check_not_closing()
        self._parts.scaler.replace(policy)

    # -- Intake ------------------------------------------------------------------------------------------------------

    async def submit(self, job: JobT) -> JobHandle[JobT, ValueT]:
        """Hand a job to the pool, and return its handle.

        Waits while the pool is full, first come first served over all who wait. Cancel-safe: cancelled while
        waiting, the job was not submitted. Never runs the handler itself.

        Raises:
            PoolNotStarted, PoolClosed, WrongLoop: The pool takes no jobs from here, or not now.
            PoolDeadlock: All workers run jobs that wait for this pool, and this wait was the newest.
            Exception: What `priority` raised; then the job was not submitted.
        """
        parts = self._parts
        parts.state.check_open()
        if not parts.queue.line.is_free():
            await parts.queue.line.wait_turn()
        return JobHandle(self._accept(job))

    def submit_nowait(self, job: JobT) -> JobHandle[JobT, ValueT]:
        """Hand a job to the pool if there is room now and nobody has been waiting for it, and return its handle.

        Raises:
            QueueFull: There is no room, or others wait for it.
            PoolNotStarted, PoolClosed, WrongLoop: The pool takes no jobs from here, or not now.
            Exception: What `priority` raised; then the job was not submitted.
        """
        self._parts.state.check_open()
        if self._parts.queue.full():
            raise self._full_error()
        return JobHandle(self._accept(job))

    async def run(self, job: JobT, *, if_full: Literal["wait", "raise"] = "wait") -> ValueT:
        """Submit a job, wait for it and return its value, or raise its error.

        If the caller is cancelled, so is the job, and the cancellation waits until it has ended; if it ignores that,
        for five seconds, after which it is called stuck (`stats.stuck`).

        Raises:
            QueueFull: `if_full` is "raise", and there is no room or others wait for it.
            JobCancelled: The job was cancelled, for instance because the pool was closed.
            JobCrashed: The job ended with something that must not be raised to an innocent caller.
            PoolDeadlock: All workers run jobs that wait for this pool, and this wait was the newest.
            PoolNotStarted, PoolClosed, WrongLoop: The pool takes no jobs from here, or not now.
            Exception: The job's own.
        """
        if if_full not in ("wait", "raise"):
            raise ValueError(f'if_full must be "wait" or "raise", got {if_full!r}')
        parts = self._parts
        parts.state.check_open()
        if not parts.queue.line.is_free():
            if if_full == "raise":
                raise self._full_error()
            await parts.queue.line.wait_turn()
        completion = self._accept(job)
        try:
            outcome: Outcome[JobT, ValueT] = await completion.outcome()
        except asyncio.CancelledError:  # of the caller: this never raises one for the job
            if completion.cancel():
                with anyio.CancelScope(shield=True):
                    await completion.wait(is_cancelled=True)  # not outcome(): a failure that nobody gets is counted
            raise
        except PoolDeadlock:
            completion.cancel()
            raise
        return outcome.unwrap()

    def map(self, jobs: Iterable[JobT] | AsyncIterable[JobT], *, ordered: bool = True) -> Stream[ValueT]:
        """Return a stream of the jobs' values: in the order of the jobs, or as they complete.

        Lazy in, streaming out: jobs are pulled as there is room, and at most `queue_size` + `workers` are accepted and
        not yet delivered (those that wait for a time are not counted). The first failure in the order of the jobs is
        raised after the values before it. As soon as a job fails, the stream pulls no more and cancels the jobs after
        it (all others, if not `ordered`); the pool lives on. Leaving the loop early cancels the stream; `async with`
        also waits for that.

        An error of the source is raised after what was accepted has been delivered; so is `PoolClosed`, if the pool
        closes before the source is exhausted.
        """
        return Stream(FedChannel(self._parts, jobs, ordered=ordered, raises=True))

    def outcomes(
        self, jobs: Iterable[JobT] | AsyncIterable[JobT], *, ordered: bool = False
    ) -> Stream[Outcome[JobT, ValueT]]:
        """Return a stream of the jobs' outcomes, `Succeeded`, `Failed` or `Cancelled`: as they complete, or in order.

        Never raises for a job; for the rest as `map`.
        """
        return Stream(FedChannel(self._parts, jobs, ordered=ordered, raises=False))

    def group(self, *, ordered: bool = False, window: int | None = None) -> Group[JobT, ValueT]:
        """Return a results channel: submit to it from anywhere, and one reader iterates its outcomes.

        Args:
            ordered: Whether outcomes come in the order of submission, or as jobs complete.
            window: How many jobs may be submitted and not read; None: `queue_size` + `workers`, without those that
                wait for a time.

        Raises:
            PoolNotStarted, PoolClosed, WrongLoop: The pool takes no jobs from here, or not now.
            TypeError, ValueError: `window` is not an int >= 1.
        """
        self._parts.state.check_open()
        if window is not None:
            check_count("window", window, least=1)
        return Group(GroupChannel(self._parts, ordered=ordered, window=window))

    def _full_error(self) -> QueueFull:
        """Count a submission that is rejected, and return the error for it."""
        parts = self._parts
        parts.load.reject()
        waiting = len(parts.queue.line.waiting)
        return QueueFull(
            f"pool {self.name!r} is full: {parts.queue.qsize()} of {parts.queue.maxsize} queued, "
            f"{parts.ledger.running} running, {parts.ledger.delayed} delayed, "
            f"{waiting} submitter{'' if waiting == 1 else 's'} waiting"
        )

    def _accept(self, job: JobT) -> Completion:
        parts = self._parts
        try:
            accepted = parts.dispatcher.accept(job, NULL_SINK, copy_context())
        except BaseException:
            parts.queue.line.wake_next()  # the place goes to the next
            raise
        return Completion(accepted, parts)

    # -- What is known -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._parts.state.name

    @property
    def stats(self) -> PoolStats:
        """A snapshot of what the pool counts; its first law holds at every moment."""
        return self._parts.stats()

    @property
    def report(self) -> ShutdownReport[JobT] | None:
        """What `close()` returned; None until the pool is closed."""
        return self._life.report

    @property
    def state(self) -> str:
        """Where in its life the pool is: "new", "starting", "open", "draining", "stopping" or "closed"."""
        return self._parts.state.phase.value

    @property
    def is_paused(self) -> bool:
        """Whether workers take no jobs: because of `pause()`, or of a job that raised `RetryAfter(..., pause=True)`."""
        return self._parts.pauses.is_reported

    @property
    def queue_size(self) -> int:
        """How many accepted jobs may wait for a worker now; it may grow and shrink with the most workers."""
        return self._parts.queue.maxsize

    @property
    def waiting_submitters(self) -> int:
        """How many callers of `submit` and streams wait for room in the pool now."""
        return len(self._parts.queue.line.waiting)

    @property
    def dead_letters(self) -> DeadLetterSink[JobT] | None:
        """Where the jobs that failed for good are recorded, as it was given."""
        return self._dead_letters

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the pool was started on; None before."""
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
                f"{what}() would wait for itself: it was called from job {job.number} of pool {self.name!r}, whose "
                "jobs it waits for"
            )
