"""The ledger without a pool: each transition of a job, and the first law after it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from asyncpool import CancelReason, DeadLetters, Failed, JobTimeout
from asyncpool._core.job import Job, PriorAttempts, Worker
from asyncpool._core.ledger import Ledger
from asyncpool._core.state import Phase
from asyncpool.dead_letters.writer import DeadLetterWriter
from asyncpool.events import JobAccepted, JobEnded, JobStarted
from asyncpool.outcomes import Outcome, Unfinished
from tests.core.tools import RecordingSink, begin, cancelled, failed, make_job, make_ledger, make_state, succeeded

SHUTDOWN, ABANDONED = CancelReason.SHUTDOWN, CancelReason.ABANDONED

each_outcome = pytest.mark.parametrize("outcome_of", [succeeded, failed, cancelled])


class Books:
    """A ledger, and the queue beside it: `queued` is how many jobs that holds."""

    def __init__(self, *observers: Any, ledger: Ledger | None = None) -> None:
        self.ledger = make_ledger(None, *observers) if ledger is None else ledger
        self.sink = RecordingSink()
        self.queued = 0

    def accept(self) -> Job:
        """Accept a job and queue it, as the dispatcher does."""
        self.ledger.submitted += 1
        self.queued += 1
        return make_job(self.ledger.submitted, sink=self.sink)

    def take(self) -> None:
        """Take a job out of the queue; who takes it counts it elsewhere."""
        self.queued -= 1

    def check(self) -> None:
        self.ledger.check(self.queued)


class DummyLoop:
    """A loop that keeps what other threads schedule."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], object]] = []
        self.is_closed = False

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        if self.is_closed:
            raise RuntimeError("Event loop is closed")
        self.scheduled.append(lambda: callback(*args))


def numbers(entries: list[tuple[int, Unfinished[Any]]]) -> list[int]:
    return [number for number, _ in entries]


# -- The first law


def test_an_empty_ledger_holds_the_first_law() -> None:
    make_ledger().check(0)


@pytest.mark.parametrize("count", ["submitted", "delayed", "running", "succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("change", [1, -1])
def test_check_fails_when_a_count_is_off(count: str, change: int) -> None:
    ledger = make_ledger()
    ledger.submitted = 12
    ledger.delayed = ledger.running = ledger.succeeded = ledger.failed = ledger.cancelled = 2
    ledger.check(2)
    setattr(ledger, count, getattr(ledger, count) + change)
    with pytest.raises(AssertionError, match=r"submitted, 1[1-3] accounted for"):
        ledger.check(2)


@pytest.mark.parametrize("queued", [0, 2])
def test_check_fails_when_the_queue_has_lost_or_gained_a_job(queued: int) -> None:
    books = Books()
    books.accept()
    books.check()
    with pytest.raises(AssertionError, match=f"1 submitted, {queued} accounted for"):
        books.ledger.check(queued)


# -- Transitions


def test_an_accepted_job_is_queued() -> None:
    books = Books()
    books.accept()
    books.check()
    assert not books.ledger.is_drained


def test_a_delayed_job_is_counted_and_its_sink_hears_of_it() -> None:
    books = Books()
    job = books.accept()
    books.take()
    books.ledger.delay(job)
    books.check()
    assert (books.ledger.delayed, books.sink.delayed) == (1, 1)


def test_a_job_that_comes_back_is_no_longer_delayed_and_its_sink_hears_of_it() -> None:
    books = Books()
    job = books.accept()
    books.take()
    books.ledger.delay(job)
    books.ledger.undelay(job)
    books.queued += 1
    books.check()
    assert (books.ledger.delayed, books.sink.delayed) == (0, 0)


@each_outcome
def test_a_settled_job_counts_once_by_its_outcome(outcome_of: Callable[[Job], Outcome[Any, Any]]) -> None:
    books = Books()
    job = books.accept()
    books.take()
    books.ledger.settle(job, outcome_of(job), 1.0)
    books.check()
    counts = {name: getattr(books.ledger, name) for name in ("succeeded", "failed", "cancelled")}
    assert counts == {"succeeded": 0, "failed": 0, "cancelled": 0} | {outcome_of.__name__: 1}
    assert (books.ledger.ended, books.ledger.is_drained) == (1, True)


@each_outcome
def test_a_settled_job_has_its_outcome_and_no_context(outcome_of: Callable[[Job], Outcome[Any, Any]]) -> None:
    books = Books()
    job = books.accept()
    outcome = outcome_of(job)
    books.ledger.settle(job, outcome, 1.0)
    assert job.outcome is outcome
    assert job.context is None


@each_outcome
def test_settling_delivers_the_outcome_to_the_sink(outcome_of: Callable[[Job], Outcome[Any, Any]]) -> None:
    books = Books()
    job = books.accept()
    outcome = outcome_of(job)
    books.ledger.settle(job, outcome, 1.0)
    assert books.sink.delivered == [(job, outcome)]


def test_recording_counts_and_delivers_nothing() -> None:
    events: list[Any] = []
    books = Books(events.append)
    job = books.accept()
    books.take()
    books.ledger.record(job, failed(job))
    books.check()
    assert (books.ledger.failed, books.sink.delivered, events) == (1, [], [])


def test_delivering_a_recorded_outcome_counts_nothing_more() -> None:
    books = Books()
    job = books.accept()
    books.take()
    outcome = failed(job)
    books.ledger.record(job, outcome)
    books.ledger.deliver(job, outcome, 1.0)
    books.check()
    assert (books.ledger.failed, books.sink.delivered) == (1, [(job, outcome)])


def test_a_job_refused_by_its_order_counts_as_submitted_and_failed() -> None:
    books = Books()
    job, error = make_job(sink=books.sink), ValueError("no key")
    books.ledger.refuse(job, error, 1.0)
    books.check()
    [(settled, outcome)] = books.sink.delivered
    assert (settled, outcome.job, outcome.attempts) == (job, 1, 0)
    assert job.outcome is outcome
    assert outcome.error is error  # type: ignore[union-attr]
    assert (books.ledger.submitted, books.ledger.failed) == (1, 1)


def test_rejected_submitters_and_retries_are_no_jobs() -> None:
    books = Books()
    books.ledger.rejected += 1
    books.ledger.retries_rejected += 1
    books.check()
    assert books.ledger.is_drained


# -- Events


def test_an_accepted_job_is_reported() -> None:
    events: list[Any] = []
    books = Books(events.append)
    books.ledger.tell_accepted(books.accept())
    assert events == [JobAccepted(pool="pool", id=1, job=1)]


def test_a_started_attempt_is_reported_with_its_number_and_worker() -> None:
    events: list[Any] = []
    books = Books(events.append)
    job = books.accept()
    job.attempt = 3
    books.ledger.tell_started(job, Worker(7, make_state()))
    assert events == [JobStarted(pool="pool", id=1, job=1, attempt=3, worker=7)]


def test_observers_hear_of_an_outcome_before_its_sink_has_it() -> None:
    delivered_before: list[int] = []
    books = Books(lambda event: delivered_before.append(len(books.sink.delivered)))
    job = books.accept()
    books.ledger.settle(job, succeeded(job), 1.0)
    assert delivered_before == [0]
    assert len(books.sink.delivered) == 1


def test_observers_see_the_counts_that_include_the_outcome() -> None:
    def see(event: object) -> None:
        assert isinstance(event, JobEnded)
        books.check()
        seen.append(books.ledger.ended)

    seen: list[int] = []
    books = Books(see)
    job = books.accept()
    books.take()
    books.ledger.settle(job, succeeded(job), 1.0)
    assert seen == [1]


def test_a_refused_job_is_reported_as_accepted_and_then_as_ended() -> None:
    events: list[Any] = []
    books = Books(events.append)
    books.ledger.refuse(make_job(), ValueError("no key"), 1.0)
    assert [type(event) for event in events] == [JobAccepted, JobEnded]


# -- What is handed back


def test_a_job_cancelled_by_the_shutdown_is_handed_back() -> None:
    books = Books()
    job = books.accept()
    books.take()
    books.ledger.settle(job, cancelled(job, SHUTDOWN), 1.0)
    books.check()
    assert books.ledger.unfinished == [(1, Unfinished(job=1, started=False))]
    assert books.ledger.abandoned == []


def test_what_is_handed_back_says_whether_its_handler_had_started() -> None:
    books = Books()
    job = books.accept()
    begin(job, 0.5)
    books.ledger.settle(job, cancelled(job, SHUTDOWN), 1.0)
    assert books.ledger.unfinished == [(1, Unfinished(job=1, started=True))]


def test_an_abandoned_job_is_handed_back_and_named() -> None:
    books = Books()
    job = books.accept()
    job.cancel_reason = SHUTDOWN
    books.ledger.settle(job, cancelled(job, ABANDONED), 1.0)
    assert numbers(books.ledger.unfinished) == numbers(books.ledger.abandoned) == [1]


def test_an_abandoned_job_that_had_failed_by_a_timeout_is_handed_back() -> None:
    books = Books()
    job = books.accept()
    job.cancel_reason = JobTimeout("too slow")
    books.ledger.settle(job, cancelled(job, ABANDONED), 1.0)
    assert numbers(books.ledger.unfinished) == [1]


@pytest.mark.parametrize("reason", [CancelReason.HANDLE, CancelReason.STREAM])
def test_an_abandoned_job_that_its_owner_had_cancelled_is_named_and_not_handed_back(reason: CancelReason) -> None:
    books = Books()
    job = books.accept()
    job.cancel_reason = reason
    books.ledger.settle(job, cancelled(job, ABANDONED), 1.0)
    assert (numbers(books.ledger.unfinished), numbers(books.ledger.abandoned)) == ([], [1])


@pytest.mark.parametrize("reason", [CancelReason.HANDLE, CancelReason.STREAM])
def test_a_job_that_its_owner_cancelled_is_not_handed_back(reason: CancelReason) -> None:
    books = Books()
    job = books.accept()
    job.cancel_reason = reason
    books.ledger.settle(job, cancelled(job, reason), 1.0)
    assert (books.ledger.unfinished, books.ledger.abandoned) == ([], [])


@pytest.mark.parametrize("outcome_of", [succeeded, failed])
def test_a_job_that_was_done_is_not_handed_back(outcome_of: Callable[[Job], Outcome[Any, Any]]) -> None:
    books = Books()
    job = books.accept()
    job.cancel_reason = SHUTDOWN
    books.ledger.settle(job, outcome_of(job), 1.0)
    assert (books.ledger.unfinished, books.ledger.abandoned) == ([], [])


def test_a_job_that_comes_after_the_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    books = Books(ledger=make_ledger(make_state(Phase.CLOSED)))
    job = books.accept()
    with caplog.at_level(logging.WARNING, "asyncpool"):
        books.ledger.settle(job, cancelled(job, SHUTDOWN), 1.0)
    assert caplog.messages == ["pool 'pool': a job that arrived after the pool was closed was not run: 1"]


def test_a_job_that_is_handed_back_in_the_report_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    books = Books(ledger=make_ledger(make_state(Phase.STOPPING)))
    job = books.accept()
    with caplog.at_level(logging.WARNING, "asyncpool"):
        books.ledger.settle(job, cancelled(job, SHUTDOWN), 1.0)
    assert caplog.messages == []


# -- Outcomes of jobs that do not end by themselves


def test_the_outcome_of_a_waiting_job_has_the_seconds_that_it_waited() -> None:
    outcome = make_ledger().cancelled_outcome(make_job(now=2.0), CancelReason.HANDLE, 5.0)
    assert (outcome.job, outcome.reason, outcome.started, outcome.attempts) == (1, CancelReason.HANDLE, False, 0)
    assert (outcome.worker, outcome.seconds_queued, outcome.seconds_running) == (None, 3.0, 0.0)


def test_the_outcome_of_a_running_job_has_its_worker_and_its_seconds() -> None:
    job = make_job(now=2.0)
    begin(job, 5.0, worker=4)
    outcome = make_ledger().cancelled_outcome(job, ABANDONED, 9.0)
    assert (outcome.started, outcome.attempts) == (True, 1)
    assert (outcome.worker, outcome.seconds_queued, outcome.seconds_running) == (4, 3.0, 4.0)


def test_the_outcome_of_a_job_between_two_attempts_has_the_figures_of_the_last() -> None:
    job = make_job(now=9.0)
    last = Failed(job.input, OSError("down"), 1, worker=3, seconds_queued=0.5, seconds_running=1.5)
    job.prior = PriorAttempts(last, 0.0, has_started=True)
    job.attempt = 2
    error = JobTimeout("too late")
    outcome = make_ledger().failed_outcome(job, error, 10.0)
    assert (outcome.error, outcome.attempts) == (error, 1)
    assert (outcome.worker, outcome.seconds_queued, outcome.seconds_running) == (3, 0.5, 1.5)


# -- Failures that are never retrieved


def test_unread_failures_are_counted_and_logged_at_the_1st_2nd_4th_8th(caplog: pytest.LogCaptureFixture) -> None:
    ledger = make_ledger()
    failures = [failed(make_job(number), KeyError(number)) for number in range(1, 12)]
    with caplog.at_level(logging.ERROR, "asyncpool"):
        ledger.count_unread(failures[:3])
        ledger.count_unread(failures[3:])
    assert ledger.unread_failures == 11
    occurrence = "pool 'pool': a job's failure was never retrieved (occurrence {0}): {0}"
    assert caplog.messages == [occurrence.format(number) for number in (1, 2, 4, 8)]


def test_an_unread_failure_is_logged_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    error = KeyError("gone")
    with caplog.at_level(logging.ERROR, "asyncpool"):
        make_ledger().count_unread([failed(make_job(), error)])
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_unread_failures_that_are_dead_letters_do_not_count() -> None:
    state = make_state()
    ledger = make_ledger(state, dead_letters=DeadLetterWriter(state, DeadLetters[Any]()))
    ledger.count_unread([failed(make_job())])
    ledger.note_unread([failed(make_job())])  # it needs no loop either
    assert ledger.unread_failures == 0


def test_a_failure_that_is_noted_in_any_thread_is_counted_on_the_loop() -> None:
    state = make_state()
    state.loop = loop = DummyLoop()  # type: ignore[assignment]
    ledger = make_ledger(state)
    ledger.note_unread([failed(make_job())])
    assert ledger.unread_failures == 0
    [count] = loop.scheduled
    count()
    assert ledger.unread_failures == 1


def test_a_failure_that_is_noted_after_the_loop_was_closed_is_counted_at_once() -> None:
    state = make_state()
    state.loop = loop = DummyLoop()  # type: ignore[assignment]
    loop.is_closed = True
    ledger = make_ledger(state)
    ledger.note_unread([failed(make_job())])
    assert ledger.unread_failures == 1


# -- Dead letters


def test_only_a_failure_becomes_a_dead_letter() -> None:
    state, letters = make_state(), DeadLetters[Any]()
    books = Books(ledger=make_ledger(state, dead_letters=DeadLetterWriter(state, letters)))
    for outcome_of in (succeeded, failed, cancelled):
        job = books.accept()
        books.take()
        books.ledger.settle(job, outcome_of(job), 1.0)
        books.check()
    assert [letter.job for letter in letters] == [2]


# -- Measurements


def test_a_flush_sorts_what_was_measured() -> None:
    ledger = make_ledger()
    ledger.seconds_queued.record(0.5)
    ledger.seconds_running.record(1.5)
    ledger.seconds_running.record_failure(2.5)
    ledger.flush(0.0)
    queued, running = ledger.seconds_queued.snapshot(), ledger.seconds_running.snapshot()
    assert (queued.count, queued.sum) == (1, 0.5)
    assert (running.count, running.sum, running.max) == (2, 4.0, 2.5)


def test_the_throughput_is_marked_at_most_once_per_second() -> None:
    ledger = make_ledger()
    ledger.succeeded = 10
    ledger.flush(0.5)
    assert ledger.throughput.due == 1.0
    ledger.flush(1.25)
    assert ledger.throughput.due == 2.25
    assert ledger.throughput.rate(2.5, 15) == 6.0
