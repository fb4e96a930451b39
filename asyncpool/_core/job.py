"""A job in flight, the handle that its submitter holds, and `current_job()` for the handler that runs it.

A job is data: who starts, cancels and settles it is `_dispatch.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from asyncpool.errors import PoolDeadlock, PoolError
from asyncpool.outcomes import CancelReason, Failed, Outcome

if TYPE_CHECKING:
    from asyncpool._core.resources import Worker

__all__ = [
    "CURRENT_JOB",
    "NOBODY",
    "CurrentJob",
    "Job",
    "JobHandle",
    "JobOwner",
    "Past",
    "Sink",
    "current_job",
    "new_job",
]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")


class Sink(Protocol):
    """Whoever is told of a job's outcome: exactly once, on the loop, and it must not raise."""

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None: ...
    def count_delayed(self, change: int, /) -> None:
        """Be told that one more of its jobs waits for a time (1), or one less (-1)."""
        ...

    def give_up_job(self, job: Job, /) -> None:
        """Be told that a job ignores its cancellation: nobody shall wait only for its end any more."""
        ...


class _Nobody:
    """The sink of a job whose outcome nobody waits for."""

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None: ...
    def count_delayed(self, change: int, /) -> None: ...
    def give_up_job(self, job: Job, /) -> None: ...


NOBODY = _Nobody()


class JobOwner(Protocol):
    """What a job and its handle need of the pool they belong to."""

    @property
    def name(self) -> str: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    def cancel(self, job: Job, reason: CancelReason) -> bool: ...
    def check_loop(self) -> None: ...
    def is_stuck(self, job: Job) -> bool: ...
    async def wait(self, future: asyncio.Future[Any]) -> None: ...
    def note_unread(self, failed: Failed[Any]) -> None: ...


class Past:
    """What is known of a job's earlier attempts, once one has failed and another is to come."""

    __slots__ = ("accepted_at", "failed", "has_begun", "is_waiting")

    def __init__(self, failed: Failed[Any], accepted_at: float, has_begun: bool) -> None:
        self.failed = failed  # the last attempt
        self.accepted_at = accepted_at
        self.has_begun = has_begun  # whether the handler had, in any attempt: then the job may have had effects
        self.is_waiting = True  # for the time of the next attempt


class Job:
    """One accepted input on its way to its outcome.

    It is settled once `outcome` is set; until then it runs if `worker` is set, waits for its next attempt if
    `past.is_waiting` is, and else it is queued, or parked for its rate limit. Context and task are dropped as soon as
    they can be: they know the job, and a job that kept them would be a reference cycle, and collecting those costs more
    than running a small job.
    """

    __slots__ = (
        "attempt",
        "context",
        "doom",
        "input",
        "key",
        "number",
        "outcome",
        "past",
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
    # When it was accepted, or when the pause before this attempt was over.
    ready_at: float
    # The number of the attempt that runs, or of the next, from 1.
    attempt: int
    # When the handler began in this attempt. None: not yet.
    started_at: float | None
    past: Past | None
    key: Any  # set by a queue that orders by it, and by no other
    worker: Worker | None
    task: asyncio.Task[None] | None
    # Why we cancelled its task, and so what a CancelledError of its means: None, and it is the job's own failure.
    # Set once per attempt together with the one task.cancel(); only a CancelReason may replace an error here.
    doom: CancelReason | PoolError | None
    outcome: Outcome[Any, Any] | None

    @property
    def attempts(self) -> int:
        """How many attempts have begun."""
        return self.attempt - (self.worker is None)

    @property
    def is_running(self) -> bool:
        """Whether it holds a worker."""
        return self.worker is not None and self.outcome is None

    def runs_in(self, owner: JobOwner) -> bool:
        """Whether it holds a worker of this pool."""
        return self.worker is not None and self.outcome is None and self.worker.owner is owner

    @property
    def accepted_at(self) -> float:
        """Loop time at which the pool took charge of it."""
        return self.ready_at if self.past is None else self.past.accepted_at

    @property
    def has_begun(self) -> bool:
        """Whether its handler has, in any attempt: then it may have had effects."""
        return self.started_at is not None or (self.past is not None and self.past.has_begun)

    def __repr__(self) -> str:
        state = "queued"
        if self.outcome is not None:
            state = "ended"
        elif self.worker is not None:
            state = "running"
        elif self.past is not None and self.past.is_waiting:
            state = "delayed"
        return f"<Job {self.number} {state}: {self.input!r:.80}>"


def new_job(input: Any, number: int, sink: Sink, context: Context, now: float) -> Job:
    """Make a job. A function, because with slots and an `__init__` CPython takes twice as long to make an object."""
    job = Job()
    job.input = input
    job.number = number
    job.sink = sink
    job.context = context
    job.ready_at = now
    job.attempt = 1
    job.started_at = job.worker = job.task = job.doom = job.outcome = job.past = None
    return job


CURRENT_JOB: ContextVar[Job] = ContextVar("asyncpool.current_job")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentJob:
    """What a handler may want to know of the job that it runs."""

    pool: str
    """The name of the pool."""
    id: int
    """The job's number in its pool, counted from 1 in the order of acceptance."""
    attempt: int
    """Which attempt this is, counted from 1."""
    worker: int
    """The number of the worker, counted from 1. Two jobs that run at the same time never have the same."""


def current_job() -> CurrentJob:
    """Return the job that the calling code runs for, also in tasks that a handler spawned while the job runs.

    Raises:
        LookupError: The caller is not inside a running job.
    """
    job = CURRENT_JOB.get(None)
    if job is None or job.worker is None or job.outcome is not None:
        raise LookupError("current_job() is for handlers: no job is running here")
    return CurrentJob(pool=job.worker.owner.name, id=job.number, attempt=job.attempt, worker=job.worker.number)


class JobHandle(Generic[JobT, ValueT]):
    """A submitted job: `await` it for its value.

    Any number of tasks may wait, and each may be cancelled: that does not cancel the job. A failure that nobody read
    until the handle is dropped is counted in `stats.unread_failures` and logged.
    """

    __slots__ = ("__weakref__", "_job", "_owner", "_read", "_waiters")

    def __init__(self, job: Job, owner: JobOwner) -> None:
        self._job = job
        self._owner = owner
        self._read = False
        # A dict, because thousands may be cancelled at once. Whether one waits only for the end of a cancelled job.
        self._waiters: dict[asyncio.Future[None], bool] = {}

    @property
    def job(self) -> JobT:
        """The input, as it was submitted."""
        job: JobT = self._job.input
        return job

    @property
    def id(self) -> int:
        """The job's number in its pool, counted from 1 in the order of acceptance."""
        return self._job.number

    def done(self) -> bool:
        """Whether the job has its outcome."""
        return self._job.outcome is not None

    def cancel(self) -> bool:
        """Ask for the job's cancellation; return False if it is done already.

        A queued or delayed job is settled at once, and frees its place. A running one is settled when its task ends:
        until then it holds its worker, and if it returns a value in spite of the cancellation, it has succeeded.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the job is not done.
        """
        if self._job.outcome is not None:
            return False
        self._owner.check_loop()
        return self._owner.cancel(self._job, CancelReason.HANDLE)

    async def outcome(self) -> Outcome[JobT, ValueT]:
        """Wait until the job is done and return how it ended. Never raises for the job.

        Cancel-safe: the job goes on, and may be awaited again.

        Raises:
            PoolDeadlock: Every worker runs a job that waits for this pool, and this wait was the newest; or the caller
                is this very job.
            WrongLoop: The caller is not on the pool's loop, and the job is not done.
        """
        await self.settled()
        self._read = True
        outcome: Outcome[JobT, ValueT] | None = self._job.outcome
        assert outcome is not None
        return outcome

    def __await__(self) -> Generator[Any, None, ValueT]:
        return self._value().__await__()

    async def _value(self) -> ValueT:
        return (await self.outcome()).unwrap()

    async def settled(self, *, is_cancelled: bool = False) -> None:
        """Wait until the job is done, without reading its outcome. For the pool, not for users.

        One that `is_cancelled` ends by itself, so that the wait is no deadlock whoever waits; and if it ignores that,
        it is waited for until it is called stuck, and no longer.
        """
        job = self._job
        if job.outcome is not None or (is_cancelled and self._owner.is_stuck(job)):
            return
        self._owner.check_loop()
        if CURRENT_JOB.get(None) is job:
            raise PoolDeadlock(f"job {job.number} of pool {self._owner.name!r} waits for itself")
        future: asyncio.Future[None] = self._owner.loop.create_future()
        self._waiters[future] = is_cancelled
        try:
            await (future if is_cancelled else self._owner.wait(future))
        finally:
            self._waiters.pop(future, None)

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Wake all who wait. For the pool, not for users."""
        job.sink = NOBODY  # we know the job: kept, it would be a cycle
        waiters, self._waiters = self._waiters, {}
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def count_delayed(self, change: int, /) -> None:
        """Nothing to do. For the pool, not for users."""

    def give_up_job(self, job: Job, /) -> None:
        """Wake those who wait only for the end of the cancelled job. For the pool, not for users."""
        for future, is_cancelled in self._waiters.items():
            if is_cancelled and not future.done():
                future.set_result(None)

    def __del__(self) -> None:
        # May run in any thread, whenever the collector likes: so it asks the loop, and does nothing itself.
        job = self._job
        if not self._read and isinstance(job.outcome, Failed):
            self._owner.note_unread(job.outcome)

    def __repr__(self) -> str:
        return f"<JobHandle of {self._job!r}>"
