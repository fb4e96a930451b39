"""Snapshots of single jobs: `QueuedJob` and `RunningJob`, which `pool.queued()` and `pool.running()` return.

The counts of a whole pool are `stats.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from asyncpool._guard import fields_text

__all__ = ["QueuedJob", "RunningJob"]

JobT_co = TypeVar("JobT_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class QueuedJob(Generic[JobT_co]):
    """A job that waits for a worker, at one instant."""

    id: int
    """The job's number in its pool, counted from 1 in the order of acceptance."""
    job: JobT_co
    """The input, as it was submitted."""
    attempt: int
    """Which attempt it waits for, counted from 1."""
    seconds: float
    """Seconds since the pool accepted it."""
    is_delayed: bool
    """Whether it waits for the end of its backoff, or for a rate limit that not all jobs share. Such a job does not
    start even if a worker is free."""

    def __repr__(self) -> str:
        return fields_text(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunningJob(Generic[JobT_co]):
    """A job that holds a worker, at one instant."""

    id: int
    """The job's number in its pool, counted from 1 in the order of acceptance."""
    job: JobT_co
    """The input, as it was submitted."""
    attempt: int
    """Which attempt this is, counted from 1."""
    worker: int
    """The number of its worker, counted from 1."""
    seconds: float
    """Seconds since the handler was called in this attempt; 0.0 if it was not yet, because the job waits for its
    limiter. With an engine, since the attempt was sent to a process."""

    def __repr__(self) -> str:
        return fields_text(self)
