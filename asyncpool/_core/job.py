"""A job in flight, and the worker slot that it runs on: plain data.

Starting, cancelling and settling a job is `dispatch.py`, `cancellation.py` and `ledger.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextvars import Context, ContextVar
from typing import Any, Protocol, TypeAlias

from asyncpool._core.state import State
from asyncpool._guard import describe
from asyncpool.errors import JobExpired, PoolError
from asyncpool.outcomes import CancelReason, Failed, Outcome
from asyncpool.stats import ReplacementReason

__all__ = [
    "CURRENT_JOB",
    "NULL_SINK",
    "Job",
    "PriorAttempts",
    "Puller",
    "ResourceHolder",
    "Sink",
    "Waiters",
    "Worker",
    "new_job",
]

Waiters: TypeAlias = "Mapping[asyncio.Future[None], tuple[bool, asyncio.Task[Any] | None]]"
"""The futures of those who wait for a job. For each, whether it waits only for the end of a cancelled job; and its
task, where asyncio has links between tasks."""


class Sink(Protocol):
    """The receiver of a job's outcome. It is called on the loop, exactly once per job, and must not raise."""

    @property
    def waiters(self) -> Waiters | None:
        """Who waits for this very job, and for no other: see `Completion`."""
        ...

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None: ...
    def on_delayed(self, change: int, /) -> None:
        """Note that one more of its jobs is delayed (1), or one less (-1)."""
        ...

    def on_stuck(self, job: Job, /) -> None:
        """Note that a job ignores its cancellation: nobody should wait only for its end any more."""
        ...


class Puller(Sink, Protocol):
    """The channel of a stream, which pulls its jobs from an iterator."""

    is_stopped: bool
    """Whether it wants no more."""
    context: Context
    """That of its jobs, to be copied for each."""
    live: int
    """How many jobs are accepted and not settled."""
    in_order: deque[Job] | None
    """If it is ordered: the jobs whose outcomes are not yet ready."""

    def accept_pulled(self, input: Any, /) -> Job:
        """Have an input accepted, whatever has happened since it was pulled."""
        ...


class _NullSink:
    """The sink of a job whose outcome nobody waits for."""

    waiters: Waiters | None = None

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None: ...
    def on_delayed(self, change: int, /) -> None: ...
    def on_stuck(self, job: Job, /) -> None: ...


NULL_SINK = _NullSink()


class ResourceHolder(Protocol):
    """What a worker knows of the task that holds its resource."""

    is_slow: bool
    """Whether the worker has waited some seconds for a resource that was not refused."""

    @property
    def is_opening(self) -> bool:
        """Whether the resource is being opened."""
        ...

    @property
    def is_closing(self) -> bool:
        """Whether the resource is being closed."""
        ...

    def notify(self) -> None:
        """Note that the worker's flags, or its job, have changed."""
        ...

    def check(self) -> None:
        """Ask the user's check whether the resource is still good. The worker has no job, and is not idle meanwhile."""
        ...

    def leave(self) -> None:
        """Note that the worker retires: give up what is still being opened, and close what is held."""
        ...

    def close(self) -> None:
        """Note that the pool is closed: nobody waits for the task any more."""
        ...


class Worker:
    """A slot for one job at a time. It is in `Workers.idle`, or has a job, or its resource is not there."""

    __slots__ = (
        "idle_since",
        "job",
        "jobs_left",
        "needs_recycle",
        "number",
        "pool",
        "recycle_reason",
        "resource",
        "resource_task",
        "retiring",
    )

    def __init__(self, number: int, pool: State) -> None:
        self.number = number
        self.pool = pool
        self.job: Job | None = None
        self.resource: Any = None
        self.resource_task: ResourceHolder | None = None
        self.retiring = False  # takes no more jobs, and goes when its job has ended
        self.needs_recycle = False  # takes no more jobs until its resource is replaced
        self.recycle_reason: ReplacementReason = "recycle"  # why, if it does
        # Of the resource that it holds; kept only if the rules of the resource need it.
        self.idle_since = 0.0
        self.jobs_left = 0

    def recycle(self, reason: ReplacementReason) -> None:
        """Let its resource be replaced once it has no job. The first reason counts."""
        if not self.needs_recycle:
            self.recycle_reason = reason  # first, because a thread of the job can look at the other
            self.needs_recycle = True

    def __repr__(self) -> str:
        flags = f"{' retiring' if self.retiring else ''}{' needs recycle' if self.needs_recycle else ''}"
        return f"<Worker {self.number}{flags}>"


class PriorAttempts:
    """What is known of a job's earlier attempts, once one has failed and another is to come."""

    __slots__ = ("accepted_at", "has_started", "is_backing_off", "last_failure", "was_probe")

    def __init__(self, last_failure: Failed[Any], accepted_at: float, has_started: bool) -> None:
        self.last_failure = last_failure
        self.accepted_at = accepted_at
        self.has_started = has_started  # whether the handler did, in any attempt: then the job may have had effects
        self.is_backing_off = True  # until the next attempt is due
        self.was_probe = False  # whether the last attempt was the probe of a breaker, and was put back


class Job:
    """One accepted input on its way to its outcome.

    It is settled once `outcome` is set. Until then it runs if `worker` is set, is delayed if `prior.is_backing_off` is
    set, and otherwise is queued, or parked for its rate limit. Context and task are dropped as soon as possible: they
    refer to the job, and a job that kept them would be a reference cycle, which costs more to collect than a small job
    costs to run (test_outcomes_make_no_reference_cycles).
    """

    __slots__ = (
        "attempt",
        "cancel_reason",
        "context",
        "input",
        "key",
        "number",
        "outcome",
        "prior",
        "ready_at",
        "sink",
        "started_at",
        "task",
        "worker",
    )

    input: Any
    number: int
    sink: Sink
    context: Context | None
    # When it was accepted, or when the backoff before this attempt was over.
    ready_at: float
    # The number of the attempt that runs, or of the next, from 1. Those that a breaker has put back do not count.
    attempt: int
    # When the handler started in this attempt. None: not yet.
    started_at: float | None
    prior: PriorAttempts | None
    key: Any  # set only by an order that sorts by it
    worker: Worker | None
    task: asyncio.Task[None] | None
    # Why we cancelled its task. It decides what the job's CancelledError means; None: it is the job's own failure.
    # Set once per attempt, with the first task.cancel(); only a CancelReason can replace an error here
    # (tests/laws: jobs_run_into_their_timeout, jobs_that_ignore_their_cancellation_are_left).
    cancel_reason: CancelReason | PoolError | None
    outcome: Outcome[Any, Any] | None

    @property
    def attempts(self) -> int:
        """How many attempts were started."""
        return self.attempt - (self.worker is None)

    @property
    def is_running(self) -> bool:
        """Whether it holds a worker."""
        return self.worker is not None and self.outcome is None

    def runs_in(self, pool: State) -> bool:
        """Whether it holds a worker of this pool."""
        return self.worker is not None and self.outcome is None and self.worker.pool is pool

    @property
    def is_backing_off(self) -> bool:
        """Whether it waits for its next attempt."""
        return self.prior is not None and self.prior.is_backing_off

    @property
    def is_over(self) -> bool:
        """Whether its cancellation was requested, or its time is over: then it has no other attempt."""
        return isinstance(self.cancel_reason, (CancelReason, JobExpired))

    @property
    def accepted_at(self) -> float:
        """Loop time at which the pool accepted it."""
        return self.ready_at if self.prior is None else self.prior.accepted_at

    @property
    def has_started(self) -> bool:
        """Whether its handler did, in any attempt: then it may have had effects."""
        return self.started_at is not None or (self.prior is not None and self.prior.has_started)

    def __repr__(self) -> str:
        state = "queued"
        if self.outcome is not None:
            state = "ended"
        elif self.worker is not None:
            state = "running"
        elif self.is_backing_off:
            state = "delayed"
        return f"<Job {self.number} {state}: {describe(self.input)}>"


def new_job(input: Any, number: int, sink: Sink, context: Context, now: float) -> Job:
    """Make a job. A function, because with slots and an `__init__` CPython takes twice as long to make an object."""
    job = Job()
    job.input = input
    job.number = number
    job.sink = sink
    job.context = context
    job.ready_at = now
    job.attempt = 1
    job.started_at = job.worker = job.task = job.cancel_reason = job.outcome = job.prior = None
    return job


CURRENT_JOB: ContextVar[Job] = ContextVar("asyncpool.current_job")
