"""A job as users see it: `JobHandle` for its submitter, `current_job()` for the handler that runs it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from asyncpool._core.completion import Completion
from asyncpool._core.job import CURRENT_JOB, Job, Worker
from asyncpool.outcomes import Outcome

__all__ = ["CurrentJob", "JobHandle", "current_job"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")


class JobHandle(Generic[JobT, ValueT]):
    """A submitted job: `await` it for its value.

    Any number of tasks can wait, and each can be cancelled: that does not cancel the job. A failure that nobody has
    read when the handle is dropped is counted in `stats.unread_failures` and logged.
    """

    __slots__ = ("__weakref__", "_completion")

    def __init__(self, completion: Completion) -> None:
        self._completion = completion

    @property
    def job(self) -> JobT:
        """The input, as it was submitted."""
        job: JobT = self._completion.job.input
        return job

    @property
    def id(self) -> int:
        """The job's number in its pool, counted from 1 in the order of acceptance."""
        return self._completion.job.number

    def done(self) -> bool:
        """Return whether the job has its outcome."""
        return self._completion.job.outcome is not None

    def cancel(self) -> bool:
        """Request the job's cancellation; return False if it is done already.

        A queued or delayed job is settled at once, and frees its place. A running one is settled when its task ends:
        until then it holds its worker, and if it returns a value in spite of the cancellation, it has succeeded. If it
        fails in spite of it, as a thread can, nobody has to read that failure.

        Raises:
            WrongLoop: The caller is not on the pool's loop, and the job is not done.
        """
        is_requested = self._completion.cancel()
        if is_requested:
            self._completion.disown()
        return is_requested

    async def outcome(self) -> Outcome[JobT, ValueT]:
        """Wait until the job is done and return its outcome. Never raises for the job.

        Cancel-safe: the job goes on, and can be awaited again.

        Raises:
            PoolDeadlock: Every worker runs a job that waits for this pool, and this wait was the newest; or the caller
                is this very job.
            WrongLoop: The caller is not on the pool's loop, and the job is not done.
        """
        return await self._completion.outcome()

    def __await__(self) -> Generator[Any, None, ValueT]:
        return self._completion.value().__await__()

    def __repr__(self) -> str:
        return f"<JobHandle of {self._completion.job!r}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentJob:
    """What a handler can know of the job that it runs."""

    pool: str
    """The name of the pool."""
    id: int
    """The job's number in its pool, counted from 1 in the order of acceptance."""
    attempt: int
    """Which attempt this is, counted from 1."""
    worker: int
    """The number of the worker, counted from 1. Two jobs that run at the same time never have the same, unless they run
    in different processes of an engine."""

    def recycle(self) -> None:
        """Have the resource of the job's worker replaced when this attempt has ended, however it ends.

        For a handler that finds that its resource is spoiled, and still has a value to return. Call it in the handler,
        in a task that it spawned, or in a thread of it. Safe to repeat.

        Raises:
            LookupError: The calling code does not run for this attempt, or that has ended; or the pool has no resource.
        """
        job = CURRENT_JOB.get(None)  # and not a reference, which would be a cycle if a handler returns us
        worker = None if job is None else job.worker
        if job is None or worker is None or job.outcome is not None or _described(job, worker) != self:
            raise LookupError("recycle() must be called by the handler of the job, and this attempt does not run here")
        if worker.resource_task is None and not worker.retiring:
            raise LookupError("recycle() replaces the worker's resource, and the pool opens no resources")
        worker.recycle("recycle")


def current_job() -> CurrentJob:
    """Return the job that the calling code runs for, also in tasks that a handler spawned while the job runs.

    Raises:
        LookupError: The caller is not inside a running job.
    """
    job = CURRENT_JOB.get(None)
    if job is None or job.worker is None or job.outcome is not None:
        raise LookupError("current_job() must be called by a handler: no job is running here")
    return _described(job, job.worker)


def _described(job: Job, worker: Worker) -> CurrentJob:
    return CurrentJob(pool=worker.pool.name, id=job.number, attempt=job.attempt, worker=worker.number)
