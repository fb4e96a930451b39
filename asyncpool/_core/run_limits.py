"""Streams that stop early: after too many failures, or at a deadline.

All else that a stream does is `feeder.py` and `channel.py`.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from asyncpool._checks import check_number, check_seconds
from asyncpool._core.cancellation import STUCK_AFTER
from asyncpool._core.feeder import FedChannel
from asyncpool._core.job import Job
from asyncpool._core.parts import Parts
from asyncpool._guard import describe, is_error, set_cause
from asyncpool.errors import DeadlineExceeded, PoolClosed, PoolError, TooManyFailures
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded

__all__ = ["LimitedChannel", "RunLimits", "make_channel"]

ItemT_co = TypeVar("ItemT_co", covariant=True)

# A share of fewer jobs than this means little, so it does not stop a stream.
_MIN_SETTLED = 20


@dataclass(frozen=True, slots=True)
class RunLimits:
    """The limits of one stream."""

    max_failures: int | float | None
    """A number of jobs, or a share of those that have succeeded or failed, which is less than 1."""
    deadline: float | None
    """Seconds from the first step."""

    @classmethod
    def of(cls, max_failures: object, deadline: object) -> RunLimits | None:
        """Check the arguments of a stream. Return None if nothing limits it.

        Raises:
            TypeError, ValueError: An argument is not of its type or range.
        """
        if max_failures is None and deadline is None:
            return None
        return cls(
            None if max_failures is None else _check_max_failures(max_failures),
            None if deadline is None else check_seconds("deadline", deadline, positive=True),
        )

    def are_broken(self, failed: int, settled: int, *, is_complete: bool) -> bool:
        """Whether too many jobs have failed."""
        if isinstance(self.max_failures, int):
            return failed > self.max_failures
        if self.max_failures is None or (settled < _MIN_SETTLED and not is_complete):
            return False
        return failed > self.max_failures * settled


def _check_max_failures(value: object) -> int | float:
    rule = "max_failures must be an int >= 0, or a share of the jobs between 0 and 1"
    if not isinstance(value, bool):
        try:
            count = operator.index(cast("Any", value))
        except Exception:
            try:
                share = check_number("max_failures", value)
            except TypeError:
                raise TypeError(f"{rule}, got {describe(value)}") from None
            except ValueError:
                share = -1.0
            if 0.0 < share < 1.0:
                return share
        else:
            if count >= 0:
                return count
        raise ValueError(f"{rule}, got {describe(value)}")
    raise TypeError(f"{rule}, got {describe(value)}")


class LimitedChannel(FedChannel[ItemT_co]):
    """The channel of a stream with limits.

    When a limit is exceeded, it pulls no more, and cancels its jobs. The error is raised after the last outcome, so the
    reader gets an outcome for each input that was pulled. If a job or the source ignores its cancellation, the channel
    waits until it is reported as stuck.

    A channel of values with `max_failures` skips failed jobs, and counts their failures as unread.
    """

    def __init__(
        self, parts: Parts, source: Iterable[Any] | AsyncIterable[Any], *, ordered: bool, raises: bool
    ) -> None:
        super().__init__(parts, source, ordered=ordered, raises=raises)
        self._limits = RunLimits(None, None)
        self._began_at: float | None = None  # loop time of the first step
        self._failed = 0
        self._settled = 0  # how many have succeeded or failed
        self._last_failure: BaseException | None = None
        self.stopped_by: PoolError | None = None
        """Why the run was stopped; None again when the reader has got it."""
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._source_timer: asyncio.TimerHandle | None = None
        self._has_given_up = False  # whether the end comes before the last outcome: only stuck jobs are left

    def limit(self, limits: RunLimits) -> None:
        """Set the limits. Call it before the first step."""
        self._limits = limits

    # -- Begin -------------------------------------------------------------------------------------------------------

    async def wait_for_news(self) -> None:
        """Wait until there may be an outcome that is ready, or raise the end."""
        if self._began_at is None:
            self._began_at = asyncio.get_running_loop().time()
        await super().wait_for_news()

    async def begin(self) -> None:
        """Start the feeder, and the timer of the run."""
        await super().begin()
        when = self.deadline_at
        if when is not None and self._deadline_timer is None and not self._is_over:
            self._deadline_timer = self.parts.state.loop.call_at(when, self.time_is_over)

    @property
    def deadline_at(self) -> float | None:
        """The loop time at which the run is stopped, once it has begun."""
        seconds = self._limits.deadline
        return None if seconds is None or self._began_at is None else self._began_at + seconds

    @property
    def _is_over(self) -> bool:
        """Whether nothing is left that a limit could stop."""
        is_complete = not self.live and not self.intake_is_open
        return is_complete or self.is_cancelled or self.failed_at is not None

    @property
    def _is_source_open(self) -> bool:
        return self in self.parts.producers and not self._is_abandoned

    # -- Stop --------------------------------------------------------------------------------------------------------

    def time_is_over(self) -> None:
        """Stop the run, unless it is over."""
        if not self._is_over and self._limits.deadline is not None:
            self._stop_run(DeadlineExceeded(self._limits.deadline))

    def _stop_run(self, error: PoolError) -> None:
        """Pull no more, and cancel what waits or runs. What was pulled is delivered, and then this error raised."""
        self._end_run_with(error)
        self.failed_at = 0  # all jobs come after it
        self.end_intake()
        if self._is_source_open:
            self._source_timer = self.parts.state.loop.call_later(STUCK_AFTER, self._report_stuck_feeder)
        self.parts.cancellation.cancel_where(lambda job: job.sink is self, CancelReason.STREAM)
        self._give_up_on_stuck()

    def _end_run_with(self, error: PoolError) -> None:
        self.stopped_by = error
        if self._end is None or is_error(self._end, PoolClosed):
            self._end = error
        self._drop_timers()

    def _check(self, *, has_failed: bool) -> None:
        """Find out whether too many jobs have failed: after each failure, and at the end."""
        is_complete = not self.live and not self.intake_is_open and self._end is None
        if (has_failed or is_complete) and self.stopped_by is None and not self.is_cancelled:
            limits, failed, settled = self._limits, self._failed, self._settled
            if self.failed_at is None and limits.are_broken(failed, settled, is_complete=is_complete):
                assert limits.max_failures is not None
                error = TooManyFailures(failed, settled, limits.max_failures)
                set_cause(error, self._last_failure)
                if is_complete:
                    self._end_run_with(error)  # nothing is left to cancel
                else:
                    self._stop_run(error)
        if self.stopped_by is not None:
            self._give_up_on_stuck()
        elif self._is_over:
            self._drop_timers()

    def _give_up_on_stuck(self) -> None:
        """End without the outcomes of jobs that ignore their cancellation, once no others are left."""
        if not self._has_stuck or self._has_given_up or self._is_source_open or not self.live:
            return
        cancellation = self.parts.cancellation
        stuck = sum(job.sink is self and cancellation.is_stuck(job) for job in cancellation.running_jobs())
        if self.live > stuck:
            return
        self._has_given_up = self.is_cancelled = True
        if self.in_order is not None:
            self.ready.extend(job.outcome for job in self.in_order if job.outcome is not None)
            self.in_order.clear()
        self._wake_reader()

    def _drop_timers(self) -> None:
        for timer in (self._deadline_timer, self._source_timer):
            if timer is not None:
                timer.cancel()

    # -- The side of the jobs ----------------------------------------------------------------------------------------

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        """Take a job's outcome in, and count it."""
        if self.is_cancelled:
            super().deliver(job, outcome)
            return
        has_failed = isinstance(outcome, Failed)
        if isinstance(outcome, Failed):
            self._failed += 1
            self._last_failure = outcome.error
        if not isinstance(outcome, Cancelled):
            self._settled += 1
        if self._leaves_out(outcome):
            if self.tracker is not None:
                self.tracker.left_out(outcome)
            if isinstance(outcome, Failed):
                self.parts.ledger.count_unread((outcome,))
            self.drop(job)
            if self.line.waiting:
                self.line.wake_next()  # one less is unread
        else:
            super().deliver(job, outcome)
        self._check(has_failed=has_failed)

    def expect(self, job: Job) -> None:
        """Note a job that was just accepted for this channel."""
        if job.outcome is None or not self._leaves_out(job.outcome):  # else it was refused, and is left out already
            super().expect(job)

    def _leaves_out(self, outcome: Outcome[Any, Any]) -> bool:
        """Whether a channel of values goes on without this one."""
        if not self.raises or isinstance(outcome, Succeeded):
            return False
        skips = self._limits.max_failures is not None
        if isinstance(outcome, Failed):
            return skips
        is_stopped = self.stopped_by is not None and outcome.reason is CancelReason.STREAM
        # Ordered values end with the first that is missing: `end_with` reports why.
        return is_stopped and (skips or self.in_order is None)

    def on_stuck(self, job: Job, /) -> None:
        """Wait for this job no more, if its end is all that is waited for."""
        super().on_stuck(job)
        if self.stopped_by is not None:
            self._give_up_on_stuck()

    def _end_feeding(self, error: BaseException | None) -> None:
        super()._end_feeding(error)
        if self._source_timer is not None:
            self._source_timer.cancel()
        self._check(has_failed=False)

    def stop_waiting_for_feeder(self) -> None:
        """Do not wait for the feeder any more: it ignores its cancellation."""
        super().stop_waiting_for_feeder()
        if self._source_timer is not None:
            self._source_timer.cancel()
        self._check(has_failed=False)

    # -- The reader --------------------------------------------------------------------------------------------------

    def is_exhausted(self) -> bool:
        """Whether the reader has got all that it will get."""
        if self._has_given_up:
            return not self.ready
        return super().is_exhausted() and not (self.stopped_by is not None and self._is_source_open)

    def raise_end(self) -> NoReturn:
        """Raise the end to the reader, once, and drop it."""
        self.stopped_by = self._last_failure = None
        super().raise_end()

    def end_with(self, outcome: Outcome[Any, Any]) -> None:
        """Make this outcome the last: the reader gets its error, and nothing after it."""
        error = self.stopped_by
        if error is not None and isinstance(outcome, Cancelled) and outcome.reason is CancelReason.STREAM:
            outcome = Failed(outcome.job, error)
        super().end_with(outcome)

    def cancel(self) -> None:
        """End the channel at once."""
        if self._end is self.stopped_by:
            self._end = None  # it is no error of the source that would have to be logged
        self._drop_timers()
        super().cancel()


def make_channel(
    parts: Parts,
    source: Iterable[Any] | AsyncIterable[Any],
    limits: RunLimits | None,
    *,
    ordered: bool,
    raises: bool,
) -> FedChannel[Any]:
    """Make the channel of a stream: the plain one, unless something limits it."""
    if limits is None:
        return FedChannel(parts, source, ordered=ordered, raises=raises)
    channel: LimitedChannel[Any] = LimitedChannel(parts, source, ordered=ordered, raises=raises)
    channel.limit(limits)
    return channel
