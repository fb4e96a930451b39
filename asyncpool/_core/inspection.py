"""Finds the jobs that wait and run: for the snapshots that users get, and to select those to cancel.

Cancelling them is `cancellation.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from asyncpool._core.job import Job, Worker
from asyncpool._core.lanes import Lanes
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import State
from asyncpool._core.timers import TimerHeap
from asyncpool._guard import describe
from asyncpool.snapshots import QueuedJob, RunningJob

__all__ = ["Inspection"]


class Inspection:
    """Reads the jobs of one pool, in all places where they can be."""

    __slots__ = ("_backing_off", "_lanes", "_queue", "_state", "_workers")

    def __init__(
        self,
        state: State,
        *,
        queue: JobQueue,
        backing_off: TimerHeap[Job],
        lanes: Lanes | None,
        workers: Mapping[int, Worker],
    ) -> None:
        self._state = state
        self._queue = queue
        self._backing_off = backing_off
        self._lanes = lanes
        self._workers = workers

    def queued(self, most: int) -> list[QueuedJob[Any]]:
        """Return at most `most` waiting jobs, in the order in which they would start now. Delayed jobs come last.

        With a priority, this compares keys. That can run user code, which can change the pool.
        """
        if not self._state.is_bound:
            return []
        places = [(job, False) for job in self._queue.order.in_order(most)]
        if len(places) < most:
            parked = sorted(self._parked(), key=lambda job: job.number)
            delayed = chain(parked, self._backing_off.in_order())
            places += [(job, True) for job in islice(delayed, most - len(places))]
        now = self._state.time()
        return [
            QueuedJob(
                id=job.number,
                job=job.input,
                attempt=job.attempt,
                seconds=now - job.accepted_at,
                is_delayed=is_delayed,
            )
            for job, is_delayed in places
            if _is_waiting(job)
        ]

    def running(self) -> list[RunningJob[Any]]:
        """Return the jobs that run, longest first."""
        if not self._state.is_bound:
            return []
        now = self._state.time()
        running = [
            RunningJob(
                id=job.number,
                job=job.input,
                attempt=job.attempt,
                worker=worker.number,
                seconds=0.0 if job.started_at is None else now - job.started_at,
            )
            for worker in self._workers.values()
            if (job := worker.job) is not None and job.outcome is None
        ]
        running.sort(key=lambda job: (-job.seconds, job.id))
        return running

    def waiting_where(self, where: Callable[[Any], object] | None) -> list[Job]:
        """Return the waiting jobs that a user function selects by their inputs; all of them without a function.

        The function can do anything to the pool. Jobs that no longer wait when it has been called for all are left out.

        Raises:
            TypeError: It returned a coroutine.
            Exception: What it raised.
        """
        waiting = [
            job for job in chain(self._queue.order.snapshot(), self._parked(), self._backing_off) if _is_waiting(job)
        ]
        if where is None:
            return waiting
        chosen = [job for job in waiting if _is_waiting(job) and _is_chosen(where, job)]
        return [job for job in chosen if _is_waiting(job)]

    def _parked(self) -> Iterator[Job]:
        return iter(()) if self._lanes is None else iter(self._lanes)


def _is_waiting(job: Job) -> bool:
    return job.outcome is None and job.worker is None


def _is_chosen(where: Callable[[Any], object], job: Job) -> bool:
    answer = where(job.input)
    if inspect.iscoroutine(answer):
        answer.close()  # or it would warn that nobody awaited it
        raise TypeError(f"where is called and not awaited, so it must return a bool, got {describe(answer)}")
    return bool(answer)
