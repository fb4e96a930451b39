"""Every count and measurement of a pool, and the only way in which a job gets its outcome.

Where jobs are between acceptance and outcome is decided elsewhere; each transition is counted here. The frozen
snapshots that users see are `asyncpool/stats.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from asyncpool._core.job import Job, Worker
from asyncpool._core.state import Phase, State
from asyncpool._logs import log
from asyncpool.dead_letters.writer import DeadLetterWriter
from asyncpool.events import JobAccepted, JobEnded, JobStarted, Observers
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded, Unfinished
from asyncpool.stats import BUCKET_BOUNDS, Distribution

__all__ = ["Histogram", "Ledger", "Throughput"]


class Histogram:
    """Records durations in O(1) and constant memory.

    `record` is an append, the cheapest there is; the buckets are filled for a batch at a time, by `flush`. A reader
    gets each batch, sorted, without what `record_failure` recorded.
    """

    __slots__ = ("_buckets", "_failures", "_fresh", "_max", "_sum", "reader", "record", "record_failure")

    def __init__(self) -> None:
        self._buckets = [0] * (len(BUCKET_BOUNDS) + 1)
        self._sum = 0.0
        self._max = 0.0
        self._fresh: list[float] = []
        self._failures: list[float] = []
        self.record = self._fresh.append
        self.record_failure = self._failures.append
        self.reader: Callable[[list[float]], None] | None = None

    def flush(self) -> None:
        """Sort what was recorded into the buckets. Call it from time to time: until then it takes memory."""
        fresh = self._fresh
        if not fresh and not self._failures:
            return
        # Sorted, so that each bucket takes its share with one search, and not each duration its own.
        fresh.sort()
        if self.reader is not None:
            self.reader(fresh)
        if self._failures:
            fresh += self._failures
            fresh.sort()
            self._failures.clear()
        self._sum += sum(fresh)
        self._max = max(self._max, fresh[-1])
        start = 0
        while start < len(fresh):
            bucket = bisect_left(BUCKET_BOUNDS, fresh[start])
            end = bisect_right(fresh, BUCKET_BOUNDS[bucket], start) if bucket < len(BUCKET_BOUNDS) else len(fresh)
            self._buckets[bucket] += end - start
            start = end
        fresh.clear()

    def snapshot(self) -> Distribution:
        """Return what was recorded so far."""
        self.flush()
        buckets = tuple(self._buckets)
        return Distribution(count=sum(buckets), sum=self._sum, max=self._max, buckets=buckets)


class Throughput:
    """Jobs ended per second, over the last `WINDOW` seconds.

    Keeps one mark per second in which a job ended. `due` is when the next is to be set, so that the hot path pays one
    comparison.
    """

    WINDOW = 10.0
    __slots__ = ("_marks", "due")

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        self.due = now + 1.0

    def mark(self, now: float, ended: int) -> None:
        """Note that `ended` jobs have ended by `now`."""
        self._marks.append((now, ended))
        self.due = now + 1.0
        # The oldest mark stays until the next is out of the window too: it is the base that the rate counts from.
        while len(self._marks) > 1 and self._marks[1][0] <= now - self.WINDOW:
            self._marks.popleft()

    def rate(self, now: float, ended: int) -> float:
        """Return jobs per second up to `now`, at which `ended` have ended."""
        begin = now - self.WINDOW
        since, base = self._marks[0][0], float(self._marks[0][1])
        for (when, count), (_, following) in pairwise((*self._marks, (now, ended))):
            if when > begin:
                break
            # What is counted at the next mark has ended within a second of this one: the first job after that sets it.
            since, base = begin, count + (following - count) * min(1.0, begin - when)
        return (ended - base) / (now - since) if now > since else 0.0


class Ledger:
    """The counts of a pool. At every moment, with the jobs in the queue,

        submitted == queued + delayed + running + succeeded + failed + cancelled

    which is the first law (`check`; tests/laws checks it after every step). Each number changes on one line per
    transition: the dispatcher writes `submitted`, `running` and `succeeded` on the hot path, everything else is written
    here. `running` jobs hold a worker, and there are never more than there may be.
    """

    __slots__ = (
        "_observers",
        "_state",
        "abandoned",
        "cancelled",
        "dead_letters",
        "delayed",
        "failed",
        "past_peak",
        "peak_running",
        "rejected",
        "resource_errors",
        "retries",
        "retries_rejected",
        "running",
        "seconds_queued",
        "seconds_running",
        "submitted",
        "succeeded",
        "throughput",
        "unfinished",
        "unread_failures",
    )

    def __init__(self, state: State, observers: Observers, dead_letters: DeadLetterWriter | None) -> None:
        self._state = state
        self._observers = observers
        self.dead_letters = dead_letters
        self.submitted = 0
        # Jobs that back off or are parked; each is reported to its sink too, so that windows do not count them
        # (test_jobs_that_back_off_do_not_fill_the_window_of_a_stream).
        self.delayed = 0
        self.running = 0
        self.succeeded = 0
        self.failed = 0
        self.cancelled = 0
        self.retries = 0
        self.rejected = 0
        self.retries_rejected = 0
        self.unread_failures = 0
        self.peak_running = 0  # since the policy was asked last; the peak before that is `past_peak`
        self.past_peak = 0
        self.seconds_queued = Histogram()
        self.seconds_running = Histogram()
        self.throughput = Throughput(0.0)
        # What the pool hands back when it closes, with the jobs' numbers: every input that was accepted, not done, and
        # not cancelled by its owner (tests/laws: stop_arrives_during_a_burst, retries_meet_the_end_of_their_pool).
        self.unfinished: list[tuple[int, Unfinished[Any]]] = []
        self.abandoned: list[tuple[int, Unfinished[Any]]] = []
        self.resource_errors: list[BaseException] = []

    # -- The first law -----------------------------------------------------------------------------------------------

    @property
    def ended(self) -> int:
        """How many jobs have their outcome."""
        return self.succeeded + self.failed + self.cancelled

    @property
    def is_drained(self) -> bool:
        """Whether nothing is queued, delayed or running."""
        return self.submitted == self.ended

    def check(self, queued: int) -> None:
        """Raise AssertionError unless the first law holds."""
        counted = queued + self.delayed + self.running + self.ended
        assert self.submitted == counted, f"{self.submitted} submitted, {counted} accounted for"

    # -- Transitions -------------------------------------------------------------------------------------------------

    def tell_accepted(self, job: Job) -> None:
        """Report a job that was just accepted."""
        if self._observers.any:
            self._observers.emit(JobAccepted(pool=self._state.name, id=job.number, job=job.input))

    def tell_started(self, job: Job, worker: Worker) -> None:
        """Report a job whose attempt starts on a worker."""
        if self._observers.any:
            self._observers.emit(
                JobStarted(
                    pool=self._state.name, id=job.number, job=job.input, attempt=job.attempt, worker=worker.number
                )
            )

    def delay(self, job: Job) -> None:
        """Count a job that is delayed, from now on."""
        self.delayed += 1
        job.sink.on_delayed(1)

    def undelay(self, job: Job) -> None:
        """Count a job that is no longer delayed."""
        self.delayed -= 1
        job.sink.on_delayed(-1)

    def settle(self, job: Job, outcome: Outcome[Any, Any], now: float) -> None:
        """Give a job its one outcome, and deliver it. The caller has taken the job out of its place."""
        self.record(job, outcome)
        self.deliver(job, outcome, now)

    def record(self, job: Job, outcome: Outcome[Any, Any]) -> None:
        """Give a job its one outcome, and count it. `deliver` must follow."""
        job.outcome = outcome
        job.context = None
        if isinstance(outcome, Succeeded):
            self.succeeded += 1
        elif isinstance(outcome, Failed):
            self.failed += 1
        else:
            self.cancelled += 1
            if outcome.reason in (CancelReason.SHUTDOWN, CancelReason.ABANDONED):
                self._hand_back(job, outcome)

    def deliver(self, job: Job, outcome: Outcome[Any, Any], now: float) -> None:
        """Report a recorded outcome, to the dead letters, observers and the job's sink. The job is in no place by now:
        they can look at the pool (tests/laws: the_time_of_jobs_runs_out_in_a_pause).
        """
        if self.dead_letters is not None and isinstance(outcome, Failed):
            self.dead_letters.write(outcome, job.accepted_at, now)
        if self._observers.any:
            self._observers.emit(JobEnded(pool=self._state.name, id=job.number, outcome=outcome))
        job.sink.deliver(job, outcome)

    def refuse(self, job: Job, error: BaseException, now: float) -> None:
        """Count a job that was never queued, because accepting it raised an error: it has failed with that."""
        self.submitted += 1
        failed: Failed[Any] = Failed(job.input, error)
        self.record(job, failed)
        self.tell_accepted(job)
        self.deliver(job, failed, now)

    def _hand_back(self, job: Job, outcome: Cancelled[Any]) -> None:
        """Note for the report that a job was not done."""
        if self._state.phase is Phase.CLOSED:  # its source ignored the end of the pool, and the report is made
            log.warning(
                "pool %r: a job that arrived after the pool was closed was not run: %r", self._state.name, job.input
            )
        entry = (job.number, Unfinished(job=job.input, started=outcome.started))
        if not isinstance(job.cancel_reason, CancelReason) or job.cancel_reason is CancelReason.SHUTDOWN:
            self.unfinished.append(entry)  # otherwise its owner has cancelled it, and does not want it back
        if outcome.reason is CancelReason.ABANDONED:
            self.abandoned.append(entry)

    # -- Outcomes of jobs that do not end by themselves --------------------------------------------------------------

    def cancelled_outcome(self, job: Job, reason: CancelReason, now: float) -> Cancelled[Any]:
        """Return the outcome of a job that we settle as cancelled, whatever its task does."""
        return Cancelled(job.input, reason, job.has_started, job.attempts, *_timings(job, now))

    def failed_outcome(self, job: Job, error: BaseException, now: float) -> Failed[Any]:
        """Return the outcome of a job that fails while it waits."""
        return Failed(job.input, error, job.attempts, *_timings(job, now))

    # -- Failures that nobody reads ----------------------------------------------------------------------------------

    def note_unread(self, failures: Sequence[Failed[Any]]) -> None:
        """Count failures that were delivered to nobody. From any thread, and while the collector runs."""
        if self.dead_letters is not None:
            return  # it is kept there
        try:
            self._state.loop.call_soon_threadsafe(self.count_unread, failures)
        except RuntimeError:  # the loop is closed, and so is the pool: nobody is left to race with
            self.count_unread(failures)

    def count_unread(self, failures: Sequence[Failed[Any]]) -> None:
        """Count failures that were delivered to nobody; log the 1st, 2nd, 4th, 8th ... of them."""
        if self.dead_letters is not None:
            return  # they are kept there
        before = self.unread_failures
        self.unread_failures += len(failures)
        occurrence = 1 << before.bit_length()  # the next power of 2: no look at each of 100,000
        while occurrence <= before + len(failures):
            failed = failures[occurrence - before - 1]
            log.error(
                "pool %r: a job's failure was never retrieved (occurrence %d): %r",
                self._state.name,
                occurrence,
                failed.job,
                exc_info=failed.error,
            )
            occurrence *= 2

    # -- Measurements ------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Sort what was measured since the last time. Not needed for each job, but every few milliseconds."""
        self.seconds_queued.flush()
        self.seconds_running.flush()
        if now >= self.throughput.due:
            self.throughput.mark(now, self.ended)


def _timings(job: Job, now: float) -> tuple[int | None, float, float]:
    """The worker, and the seconds queued and run, of this attempt; between two attempts, of the last."""
    if job.worker is None and job.prior is not None:
        last = job.prior.last_failure
        return last.worker, last.seconds_queued, last.seconds_running
    started = job.started_at
    worker = None if job.worker is None else job.worker.number
    return worker, (now if started is None else started) - job.ready_at, 0.0 if started is None else now - started
