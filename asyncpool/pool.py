"""`WorkerPool`: the public face of a pool, and the checks of what callers pass in.

What a call does in which state (the same table stands in docs/semantics.md, and tests/test_states.py walks it):

    state      submit, run, map ...   close                      cancel      pause, resume, resize   stats
    NEW        PoolNotStarted         -> CLOSED, empty report    the same    kept for the start      zeros
    STARTING   accepted, queued       start() raises PoolClosed  the same    done                    live
    OPEN       accepted               -> DRAINING                -> STOPPING done                    live
    DRAINING   PoolClosed             may shorten it             -> STOPPING PoolClosed              live
    STOPPING   PoolClosed             may shorten it             nothing     PoolClosed              live
    CLOSED     PoolClosed             the report, at once        nothing     PoolClosed              last

Jobs on their way are `_dispatch.py`; streams are `streams.py`; when the way opens and ends is `_life.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import anyio

from asyncpool._checks import check_count, check_filter, check_function, check_seconds
from asyncpool._core.dispatch import Dispatcher
from asyncpool._core.job import CURRENT_JOB, NOBODY, JobHandle
from asyncpool._core.life import Life, State
from asyncpool._core.queue import JobQueue, PriorityJobQueue, ReentryJobQueue
from asyncpool._core.scaler import as_policy
from asyncpool.dead_letters.letter import DeadLetterSink
from asyncpool.errors import ErrorFilter, PoolClosed, PoolDeadlock, QueueFull
from asyncpool.events import Observer, Observers, PoolResized
from asyncpool.outcomes import Outcome, ShutdownReport
from asyncpool.rate import Limiter, RateLimit, is_manager
from asyncpool.retry import Retry
from asyncpool.scaling.policy import Workers
from asyncpool.stats import PoolStats
from asyncpool.streams import Group, Stream

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
        queue_size: int | None = None,
        max_delayed: int = 10_000,
        timeout: float | None = None,
        retry: Retry | None = None,
        limiter: Limiter[Callable[[], Awaitable[Any]]] | None = None,
        priority: Callable[[Callable[[], Awaitable[Any]]], Any] | None = None,
        dead_letters: DeadLetterSink[Callable[[], Awaitable[Any]]] | None = None,
        observers: Sequence[Observer] = (),
        name: str = "pool",
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: Callable[[JobT], Awaitable[ValueT]],
        *,
        workers: Workers,
        queue_size: int | None = None,
        max_delayed: int = 10_000,
        timeout: float | None = None,
        retry: Retry | None = None,
        limiter: Limiter[JobT] | None = None,
        priority: Callable[[JobT], Any] | None = None,
        dead_letters: DeadLetterSink[JobT] | None = None,
        observers: Sequence[Observer] = (),
        name: str = "pool",
    ) -> None: ...

    @overload
    def __init__(
        self,
        handler: Callable[[JobT, ResourceT], Awaitable[ValueT]],
        *,
        workers: Workers,
        queue_size: int | None = None,
        max_delayed: int = 10_000,
        timeout: float | None = None,
        retry: Retry | None = None,
        limiter: Limiter[JobT] | None = None,
        resource: Callable[[], AbstractAsyncContextManager[ResourceT]],
        recycle_on: ErrorFilter = OSError,
        priority: Callable[[JobT], Any] | None = None,
        dead_letters: DeadLetterSink[JobT] | None = None,
        observers: Sequence[Observer] = (),
        name: str = "pool",
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
        _check_handler(handler)
        if resource is not None:
            _check_callable("resource", resource)
            if handler is None:
                raise TypeError("resource needs a handler(job, resource): jobs that are called themselves take none")
        if priority is not None:
            check_function("priority", priority)
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry must be a Retry, got {retry!r}: write retry=Retry(attempts=3)")
        _check_limiter(limiter)
        if dead_letters is not None:
            if isinstance(dead_letters, type) or not isinstance(dead_letters, DeadLetterSink):
                raise TypeError(f"dead_letters must have a method record(letter), got {dead_letters!r}")
            check_function("record(letter) of dead_letters", dead_letters.record)
        check_filter("recycle_on", recycle_on)
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {name!r}")
        self._dead_letters: DeadLetterSink[JobT] | None = dead_letters
        self._dispatcher = Dispatcher(
            name=name,
            handler=handler,
            policy=as_policy(workers),
            make_queue=_queue_maker(priority, comes_back=retry is not None or limiter is not None),
            queue_size=None if queue_size is None else check_count("queue_size", queue_size, least=0),
            max_delayed=check_count("max_delayed", max_delayed, least=1),
            timeout=None if timeout is None else check_seconds("timeout", timeout, positive=True),
            retry=retry,
            limiter=limiter,
            dead_letters=dead_letters,
            resource=resource,
            recycle_on=recycle_on,
            observers=Observers(observers),
        )
        self._life = Life(self._dispatcher)

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
        state = self._life.state
        if state is State.STOPPING or (state is State.DRAINING and (kind is None or isinstance(error, PoolClosed))):
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
        if self._dispatcher.is_bound and self._life.report is None:
            self._dispatcher.check_loop()
        self._life.cancel()

    def _request_stop(self, drain_timeout: float | None, grace: float, waits_in: str | None) -> None:
        if drain_timeout is not None:
            drain_timeout = check_seconds("drain_timeout", drain_timeout)
        grace = check_seconds("grace", grace)
        if self._life.report is None and self._dispatcher.is_bound:
            self._dispatcher.check_loop()
            if waits_in is not None:
                self._check_not_in_job(waits_in)
        self._life.stop(drain_timeout=drain_timeout, grace=grace)

    async def join(self) -> None:
        """Wait until nothing is queued, delayed or running, for one moment. The pool stays open.

        Jobs that streams have not pulled yet are not waited for. Cancel-safe.

        Raises:
            PoolDeadlock: The caller is a job of this pool, which would wait for itself.
            PoolNotStarted, WrongLoop: The pool is not started, or not on this loop.
        """
        self._dispatcher.check_started()
        self._check_not_in_job("join")
        await self._life.watch(self._life.is_drained)

    def pause(self) -> None:
        """Let workers finish their jobs and take no more until `resume()`. The queue fills, then submitters wait.

        Raises:
            PoolClosed, WrongLoop: The pool is closing, or not on this loop.
        """
        self._check_not_closing()
        if not self._dispatcher.pauses.is_by_user:
            self._dispatcher.pause()

    def resume(self) -> None:
        """Let workers take jobs again. A pause that a job asked for by `RetryAfter` ends by itself, and not by this.

        Raises:
            PoolClosed: The pool is closing; that has lifted the pause.
            WrongLoop: The caller is not on the pool's loop.
        """
        self._check_not_closing()
        if self._dispatcher.pauses.is_by_user:
            self._dispatcher.resume()

    def resize(self, workers: Workers) -> None:
        """Change the number of workers, or the policy that decides about it, now.

        New workers begin at once, surplus ones retire after their job. A policy begins with the workers that there are.

        Raises:
            TypeError, ValueError: `workers` is not an int >= 1, nor a policy.
            PoolClosed, WrongLoop: The pool is closing, or not on this loop.
        """
        policy = as_policy(workers)
        self._check_not_closing()
        dispatcher = self._dispatcher
        dispatcher.scaler.swap(policy)
        dispatcher.measure()
        if self._life.state is State.OPEN:
            dispatcher.scaler.look()
            # The most workers may be others, even if the number is the same.
            dispatcher.make_way()
            dispatcher.waits.check()
        else:
            old, dispatcher.target_workers = dispatcher.target_workers, policy.initial_workers
            dispatcher.measure()
            if old != policy.initial_workers and dispatcher.observers.any:
                why = "replaced before the pool was open"
                event = PoolResized(
                    pool=self.name, old=old, new=policy.initial_workers, reason=why, figures={}, load=None
                )
                dispatcher.observers.emit(event)

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
        dispatcher = self._dispatcher
        dispatcher.check_open()
        if not dispatcher.line.is_free():
            await dispatcher.line.turn()
        return self._accept(job)

    def submit_nowait(self, job: JobT) -> JobHandle[JobT, ValueT]:
        """Hand a job to the pool if there is room now and nobody has been waiting for it, and return its handle.

        Raises:
            QueueFull: There is no room, or others wait for it.
            PoolNotStarted, PoolClosed, WrongLoop: The pool takes no jobs from here, or not now.
            Exception: What `priority` raised; then the job was not submitted.
        """
        dispatcher = self._dispatcher
        dispatcher.check_open()
        if not dispatcher.line.is_free():
            dispatcher.count_rejected()
            raise QueueFull(
                f"pool {self.name!r} is full: {dispatcher.queue.size} jobs are queued (queue_size is "
                f"{dispatcher.queue_size}), {dispatcher.delayed} are delayed, {dispatcher.running} run, "
                f"{len(dispatcher.line.waiting)} submitters wait"
            )
        return self._accept(job)

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
        handle = await self.submit(job) if if_full == "wait" else self.submit_nowait(job)
        try:
            return await handle
        except asyncio.CancelledError:  # of the caller: a handle never raises one for its job
            if handle.cancel():
                with anyio.CancelScope(shield=True):
                    await handle.settled(is_cancelled=True)  # not outcome(): a failure that nobody gets is counted
            raise
        except PoolDeadlock:
            handle.cancel()
            raise

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
        return Stream(self._dispatcher, jobs, ordered=ordered, raises=True)

    def outcomes(
        self, jobs: Iterable[JobT] | AsyncIterable[JobT], *, ordered: bool = False
    ) -> Stream[Outcome[JobT, ValueT]]:
        """Return a stream of the jobs' outcomes, `Succeeded`, `Failed` or `Cancelled`: as they complete, or in order.

        Never raises for a job; for the rest as `map`.
        """
        return Stream(self._dispatcher, jobs, ordered=ordered, raises=False)

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
        self._dispatcher.check_open()
        return Group(self._dispatcher, ordered=ordered, window=window)

    def _accept(self, job: JobT) -> JobHandle[JobT, ValueT]:
        dispatcher = self._dispatcher
        try:
            accepted = dispatcher.accept(job, NOBODY, copy_context())
        except BaseException:
            dispatcher.line.advance()  # the place goes to the next
            raise
        handle: JobHandle[JobT, ValueT] = JobHandle(accepted, dispatcher)
        if accepted.outcome is None:  # else an observer has closed the pool just now
            accepted.sink = handle  # in time: accepting runs no job
        return handle

    # -- What is known -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._dispatcher.name

    @property
    def stats(self) -> PoolStats:
        """A snapshot of what the pool counts; its first law holds at every moment."""
        return self._dispatcher.stats()

    @property
    def report(self) -> ShutdownReport[JobT] | None:
        """What `close()` returned; None until the pool is closed."""
        return self._life.report

    @property
    def state(self) -> str:
        """Where in its life the pool is: "new", "starting", "open", "draining", "stopping" or "closed"."""
        return self._life.state.value

    @property
    def is_paused(self) -> bool:
        """Whether workers take no jobs: because of `pause()`, or of a job that raised `RetryAfter(..., pause=True)`."""
        return self._dispatcher.pauses.is_told

    @property
    def queue_size(self) -> int:
        """How many accepted jobs may wait for a worker now; it may grow and shrink with the most workers."""
        return self._dispatcher.queue_size

    @property
    def waiting_submitters(self) -> int:
        """How many callers of `submit` and streams wait for room in the pool now."""
        return len(self._dispatcher.line.waiting)

    @property
    def dead_letters(self) -> DeadLetterSink[JobT] | None:
        """Where the jobs that failed for good are recorded, as it was given."""
        return self._dead_letters

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the pool was started on; None before."""
        return self._dispatcher.loop if self._dispatcher.is_bound else None

    def __repr__(self) -> str:
        dispatcher = self._dispatcher
        return (
            f"<WorkerPool {self.name!r} {self._life.state.value}{', paused' if dispatcher.pauses.is_by_user else ''}: "
            f"{dispatcher.running} of {dispatcher.target_workers} workers busy, {dispatcher.queue.size} jobs queued, "
            f"{dispatcher.delayed} delayed>"
        )

    # -- Checks ------------------------------------------------------------------------------------------------------

    def _check_not_in_job(self, what: str) -> None:
        job = CURRENT_JOB.get(None)
        if job is not None and job.runs_in(self._dispatcher):
            raise PoolDeadlock(
                f"{what}() waits for the jobs of pool {self.name!r}, and is called from job {job.number} of it"
            )

    def _check_not_closing(self) -> None:
        if self._life.state in (State.DRAINING, State.STOPPING, State.CLOSED):
            raise self._dispatcher.closed_error()
        if self._dispatcher.is_bound:
            self._dispatcher.check_loop()


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}")


def _check_handler(handler: object) -> None:
    if handler is None:
        return
    if not callable(handler):
        hint = " (a coroutine: pass the function, do not call it)" if inspect.iscoroutine(handler) else ""
        raise TypeError(f"handler must be callable, got {handler!r}{hint}")
    call = handler if inspect.isroutine(handler) else getattr(type(handler), "__call__", handler)  # noqa: B004 -- to look at it
    for function in (handler, call):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"handler must return one awaitable, got the generator function {handler!r}")


def _check_limiter(limiter: object) -> None:
    if limiter is None or isinstance(limiter, RateLimit) or is_manager(limiter):
        return
    if isinstance(limiter, type) or not callable(limiter):
        raise TypeError(
            "limiter must be a RateLimit, a function of the job that returns one, or an async context manager, "
            f"got {limiter!r}"
        )
    check_function("limiter", limiter)


def _queue_maker(priority: Callable[[Any], Any] | None, *, comes_back: bool) -> Callable[[], JobQueue]:
    """What makes the pool's queues: the cheapest that can do what is asked of it."""
    if priority is not None:
        return partial(PriorityJobQueue, priority)
    return ReentryJobQueue if comes_back else JobQueue
