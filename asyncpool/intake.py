"""`Intake`: the calls that bring jobs to a pool. `WorkerPool` in `pool.py` has them, and is what users see.

What each call does in each state of the pool is a table there. What happens to a job afterwards is in `_core/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from contextvars import copy_context
from typing import Generic, Literal, TypeVar, cast

import anyio

from asyncpool._checks import check_count
from asyncpool._core.completion import Completion
from asyncpool._core.job import NULL_SINK
from asyncpool._core.parts import Parts
from asyncpool._core.run_limits import RunLimits, make_channel
from asyncpool._guard import describe
from asyncpool.errors import PoolDeadlock, QueueFull
from asyncpool.groups import Group, GroupChannel
from asyncpool.jobs import JobHandle
from asyncpool.outcomes import Outcome
from asyncpool.streams import Stream, stream_of

__all__ = ["Intake"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")


class Intake(Generic[JobT, ValueT]):
    """How jobs come to a pool: one by one, as a stream, or as a group."""

    _parts: Parts

    async def submit(self, job: JobT) -> JobHandle[JobT, ValueT]:
        """Submit a job to the pool, and return its handle.

        Waits while the pool is full; all waiting submitters and streams are served in the order of their calls. Does
        not wait for the job, and never runs the handler itself. Cancel-safe: if the wait is cancelled, the job was not
        submitted.

        Raises:
            PoolNotStarted, PoolClosed, WrongLoop: The pool does not accept jobs from this loop, or not now.
            PoolDeadlock: All workers run jobs that wait for this pool, and this wait was the newest.
            Exception: What `priority` raised; then the job was not submitted.
        """
        parts = self._parts
        parts.state.check_open()
        if not parts.queue.line.is_free():
            await parts.queue.line.wait_turn()
        return JobHandle(self._accept(job))

    def submit_nowait(self, job: JobT) -> JobHandle[JobT, ValueT]:
        """Submit a job without waiting, and return its handle.

        Raises:
            QueueFull: The pool has no room, or others are already waiting for it.
            PoolNotStarted, PoolClosed, WrongLoop: The pool does not accept jobs from this loop, or not now.
            Exception: What `priority` raised; then the job was not submitted.
        """
        self._parts.state.check_open()
        if self._parts.queue.full():
            raise self._full_error()
        return JobHandle(self._accept(job))

    async def run(self, job: JobT, *, if_full: Literal["wait", "raise"] = "wait") -> ValueT:
        """Submit a job, wait for it, and return its value or raise its error.

        If the caller is cancelled, the job is cancelled too, and this waits until the job has ended before it raises.
        If the job ignores its cancellation, it waits five seconds; after that the job counts in `stats.stuck`.

        Args:
            job: The input.
            if_full: What to do while the pool is full: "wait" for room as `submit` does, or "raise" `QueueFull`.

        Raises:
            QueueFull: `if_full` is "raise", and the pool has no room or others are already waiting for it.
            ValueError: `if_full` is neither "wait" nor "raise".
            JobCancelled: The job was cancelled, for instance because the pool was closed.
            JobCrashed: The job raised an exception that is not safe to re-raise in the caller.
            PoolDeadlock: All workers run jobs that wait for this pool, and this wait was the newest.
            PoolNotStarted, PoolClosed, WrongLoop: The pool does not accept jobs from this loop, or not now.
            Exception: The job's own error, or what `priority` raised.
        """
        if if_full not in ("wait", "raise"):
            raise ValueError(f'if_full must be "wait" or "raise", got {describe(if_full)}')
        parts = self._parts
        parts.state.check_open()
        if not parts.queue.line.is_free():
            if if_full == "raise":
                raise self._full_error()
            await parts.queue.line.wait_turn()
        completion = self._accept(job)
        try:
            return cast("ValueT", await completion.value())
        except asyncio.CancelledError:  # of the caller: value() never raises one for the job
            if completion.cancel():
                with anyio.CancelScope(shield=True):
                    await completion.wait(is_cancelled=True)  # not outcome(), so that a failure counts as unread
            raise
        except PoolDeadlock:
            completion.cancel()
            raise
        finally:
            del completion  # the error knows this frame, see `Failed.unwrap`

    def map(
        self,
        jobs: Iterable[JobT] | AsyncIterable[JobT],
        *,
        ordered: bool = True,
        max_failures: float | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> Stream[ValueT]:
        """Return a stream of the jobs' values: in the order of the jobs, or as they complete.

        Jobs are pulled lazily, as there is room: at most `queue_size` + `workers` jobs are accepted but not yet
        delivered (delayed jobs do not count). The first failure, in the order of the jobs, is raised after the values
        before it. As soon as a job fails, the stream stops pulling, and cancels the jobs after it (all others, if not
        `ordered`); the pool stays open. Leaving the loop early cancels the stream; `async with` also waits for that.

        An error of the source is raised after the accepted jobs have been delivered. So is `PoolClosed`, if the pool
        closes before the source is exhausted. Nothing is raised before the first step of the iteration.

        Args:
            jobs: The inputs, an iterable or async iterable.
            ordered: Whether values come in the order of the jobs, or as jobs complete.
            max_failures: Skip failed jobs instead of raising their errors, up to this number or share: see `outcomes`.
                Skipped failures become dead letters, or count in `stats.unread_failures`.
            deadline: As in `outcomes`. An ordered stream delivers the values before the first job that did not
                complete; all other streams, and those with `max_failures`, deliver all values that there are.
            progress: Whether to show the progress, as `asyncpool.progress.track` does; needs the extra `progress`.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        limits = RunLimits.of(max_failures, deadline)
        return stream_of(make_channel(self._parts, jobs, limits, ordered=ordered, raises=True), progress)

    def outcomes(
        self,
        jobs: Iterable[JobT] | AsyncIterable[JobT],
        *,
        ordered: bool = False,
        max_failures: float | None = None,
        deadline: float | None = None,
        progress: bool = False,
    ) -> Stream[Outcome[JobT, ValueT]]:
        """Return a stream of the jobs' outcomes, `Succeeded`, `Failed` or `Cancelled`: as they complete, or in order.

        The failure of a job raises nothing and cancels no other job. In all else it behaves as `map`.

        A stream that exceeds `max_failures` or its `deadline` stops pulling, and cancels its queued and running jobs.
        It still delivers one outcome for each input that it has pulled; those that did not complete are `Cancelled`
        with the reason "stream". Then it raises `TooManyFailures` or `DeadlineExceeded`. The pool stays open. If a job
        or the source ignores its cancellation, the stream waits five seconds for it, and then ends without its outcome.

        Args:
            jobs: The inputs, an iterable or async iterable.
            ordered: Whether outcomes come in the order of the jobs, or as jobs complete.
            max_failures: How many jobs can fail permanently before the stream stops: an int, or a float between 0 and 1
                for a share of the jobs that have succeeded or failed. A share is checked once 20 of them have, and at
                the end.
            deadline: Seconds from the first step of the iteration, after which the stream stops.
            progress: Whether to show the progress, as `asyncpool.progress.track` does; needs the extra `progress`.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        limits = RunLimits.of(max_failures, deadline)
        return stream_of(make_channel(self._parts, jobs, limits, ordered=ordered, raises=False), progress)

    def group(self, *, ordered: bool = False, window: int | None = None) -> Group[JobT, ValueT]:
        """Return a results channel: any task can submit to it, and one reader iterates its outcomes.

        Args:
            ordered: Whether outcomes come in the order of submission, or as jobs complete.
            window: How many jobs can be submitted but not read. None: `queue_size` + `workers`, not counting delayed
                jobs.

        Raises:
            PoolNotStarted, PoolClosed, WrongLoop: The pool does not accept jobs from this loop, or not now.
            TypeError, ValueError: `window` is not an int >= 1.
        """
        self._parts.state.check_open()
        if window is not None:
            window = check_count("window", window, least=1)
        return Group(GroupChannel(self._parts, ordered=ordered, window=window))

    def _full_error(self) -> QueueFull:
        """Count a submission that is rejected, and return the error for it."""
        parts = self._parts
        parts.load.reject()
        waiting = len(parts.queue.line.waiting)
        return QueueFull(
            f"pool {parts.state.name!r} is full: {parts.queue.qsize()} of {parts.queue.maxsize} queued, "
            f"{parts.ledger.running} running, {parts.ledger.delayed} delayed, "
            f"{waiting} submitter{'' if waiting == 1 else 's'} waiting"
        )

    def _accept(self, job: JobT) -> Completion:
        parts = self._parts
        try:
            accepted = parts.dispatcher.accept(job, NULL_SINK, copy_context())
        except BaseException:
            parts.queue.line.wake_next()  # the next submitter gets the place
            raise
        return Completion(accepted, parts)
