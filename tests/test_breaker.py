"""`Breaker`: what opens and closes it, which jobs it puts back, and what a pool does meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Adaptive,
    AutoScale,
    Breaker,
    Cancelled,
    ConcurrencyLimit,
    DeadLetters,
    Failed,
    JobExpired,
    JobTimeout,
    Permanent,
    PoolDeadlock,
    RateLimit,
    RemoteError,
    Resource,
    ResourceDied,
    Retry,
    RetryAfter,
    Succeeded,
    WorkerPool,
    WrongLoop,
    current_job,
)
from asyncpool._core.dispatch import Dispatcher
from asyncpool.circuit import Verdict
from asyncpool.events import BreakerClosed, BreakerHalfOpened, BreakerOpened, JobRetrying, PoolPaused, PoolResumed
from asyncpool.testing import run, settle
from tests.engines.memory import InMemory, Portable
from tests.helpers import echo, ignores_cancel, now, virtual

BREAKER_EVENTS = (BreakerOpened, BreakerHalfOpened, BreakerClosed)


class Backend:
    """A backend that is down at times, and knows when it was called."""

    def __init__(self, *outages: tuple[float, float], seconds: float = 0.1) -> None:
        self.outages = outages
        self.seconds = seconds
        self.calls: list[float] = []
        self.jobs: list[Any] = []

    async def __call__(self, job: Any) -> Any:
        self.calls.append(now())
        self.jobs.append(job)
        await asyncio.sleep(self.seconds)
        if any(begin <= now() < end for begin, end in self.outages):
            raise ConnectionError(f"down at {now():g}")
        return job


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


# -- What counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ConnectionError(), Verdict.FAILURE),
        (JobTimeout(1.0), Verdict.FAILURE),
        (ValueError(), Verdict.SUCCESS),
        (raised_from(RetryAfter(1.0), OSError()), Verdict.FAILURE),
        (raised_from(RetryAfter(1.0), ValueError()), Verdict.SUCCESS),
        (RetryAfter(1.0), Verdict.SUCCESS),
        (raised_from(Permanent(), OSError()), Verdict.SUCCESS),
        (ExceptionGroup("", [OSError(), TimeoutError()]), Verdict.FAILURE),
        (ExceptionGroup("", [OSError(), ValueError()]), Verdict.SUCCESS),
        (ExceptionGroup("", [raised_from(RetryAfter(1.0), OSError()), OSError()]), Verdict.FAILURE),
        (ExceptionGroup("", [raised_from(Permanent(), OSError()), OSError()]), Verdict.SUCCESS),
        (raised_from(RetryAfter(1.0), ExceptionGroup("", [OSError()])), Verdict.FAILURE),
        (ResourceDied(), Verdict.NOTHING),
        (raised_from(Permanent(), asyncpool.ProcessLost()), Verdict.NOTHING),
        (RemoteError("ValueError", "", ""), Verdict.SUCCESS),
        (asyncio.CancelledError(), Verdict.NOTHING),
        (KeyboardInterrupt(), Verdict.NOTHING),
        (BaseExceptionGroup("", [SystemExit(), OSError()]), Verdict.NOTHING),
    ],
    ids=repr,
)
def test_an_error_tells_whether_the_backend_is_down(error: BaseException, verdict: Verdict) -> None:
    assert Breaker(on=OSError).judge(error) is verdict


@pytest.mark.parametrize(
    "error", [PoolDeadlock(), SystemExit(), asyncio.CancelledError(), raised_from(Permanent(), OSError())]
)
def test_an_error_that_is_never_retried_is_no_outage_whatever_the_filter(error: BaseException) -> None:
    assert Breaker(on=BaseException).judge(error) is not Verdict.FAILURE


def test_a_filter_can_select_errors_of_the_pool() -> None:
    assert Breaker(on=(OSError, ResourceDied)).judge(ResourceDied()) is Verdict.FAILURE


async def failures_until_open(breaker: Breaker, kinds: str) -> int:
    """Run jobs one after the other, "x" for a failure; return after how many the breaker is open."""

    async def handler(kind: str) -> None:
        if kind == "x":
            raise OSError

    async with WorkerPool(handler, workers=1, breaker=breaker) as pool:
        for number, kind in enumerate(kinds, 1):
            handle = await pool.submit(kind)
            await settle()
            if breaker.state != "closed":
                handle.cancel()
                return number
            await handle.outcome()
    return 0


@pytest.mark.parametrize(
    ("failure_rate", "window", "kinds", "opens_after"),
    [
        (0.5, 4, "xx", 2),  # whatever the other two will be
        (0.5, 4, "x..x", 4),
        (0.5, 4, "x...x...x...x", 0),  # never two in four
        (0.5, 4, "x...xx", 6),
        (0.51, 4, "xx.xxx", 4),
        (1.0, 3, "xx.xx.xxx", 9),
        (0.07, 100, "x" * 7, 7),  # 0.07 * 100 > 7
        (1e-9, 100, "." * 99 + "x", 100),
        (0.5, 1, "..x", 3),
    ],
)
def test_the_breaker_opens_with_the_failure_that_reaches_the_rate(
    failure_rate: float, window: int, kinds: str, opens_after: int
) -> None:
    breaker = Breaker(failure_rate=failure_rate, window=window)
    assert run(lambda: failures_until_open(breaker, kinds)) == opens_after


@virtual
async def test_attempts_that_tell_nothing_do_not_count() -> None:
    """They were cancelled, or their handler did not begin."""
    breaker = Breaker(failure_rate=0.5, window=4)

    def limiter(job: str) -> None:
        if job == "no limiter":
            raise OSError("the limiter is down")

    async def handler(job: str) -> None:
        if job == "x":
            raise OSError
        try:
            await asyncio.sleep(10)
        finally:
            raise OSError("closing")

    async with WorkerPool(handler, workers=1, breaker=breaker, limiter=limiter) as pool:
        for job in ["no limiter", "cancelled", "no limiter", "cancelled", "cancelled"]:
            handle = await pool.submit(job)
            await settle()
            handle.cancel()
            assert not isinstance(await handle.outcome(), Succeeded)
        assert isinstance(await (await pool.submit("x")).outcome(), Failed)
        assert breaker.state == "closed"
        last = await pool.submit("x")
        await settle()
        assert breaker.state == "open"
        last.cancel()


@virtual
async def test_a_predicate_that_raises_is_logged_and_the_attempt_does_not_count() -> None:
    def on(error: BaseException) -> bool:
        raise LookupError

    breaker = Breaker(on=on, window=1)
    async with WorkerPool(Backend((0, 9)), workers=1, breaker=breaker) as pool:
        outcome = await (await pool.submit(1)).outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ConnectionError)
    assert breaker.state == "closed"


# -- Open, half-open, closed -------------------------------------------------------------------------------------------


@virtual
async def test_while_it_is_open_nothing_starts_and_after_the_pause_one_probe_does() -> None:
    backend = Backend((0, 4))
    breaker = Breaker(window=2, failure_rate=1.0, pause=5.0)
    async with WorkerPool(backend, workers=4, breaker=breaker) as pool:
        stream = pool.outcomes(range(8))
        outcomes = [outcome async for outcome in stream]
    assert backend.calls == [0.0] * 4 + [5.1] + [pytest.approx(5.2)] * 4 + [pytest.approx(5.3)] * 2
    # The first failure is an ordinary one: nothing is known by then. That of the second opens the breaker.
    assert [type(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.job)] == [Failed] + [
        Succeeded
    ] * 7
    assert {outcome.attempts for outcome in outcomes} == {1}


@virtual
async def test_each_failed_probe_makes_the_pause_longer_up_to_the_longest() -> None:
    backend = Backend((0, 100), seconds=0.0)
    breaker = Breaker(window=1, pause=1.0, factor=3.0, max_pause=10.0)
    async with WorkerPool(backend, workers=3, breaker=breaker) as pool:
        await pool.map(range(5))
    assert backend.calls[3:8] == [1.0, 4.0, 13.0, 23.0, 33.0]
    # All of them have to be probed before one is probed again.
    assert sorted(backend.jobs[3:8]) == [0, 1, 2, 3, 4]


@virtual
async def test_the_next_outage_begins_with_the_first_pause() -> None:
    backend = Backend((0, 4), (20, 24), seconds=0.0)
    breaker = Breaker(window=1, pause=1.0)
    async with WorkerPool(backend, workers=1, breaker=breaker) as pool:
        await pool.run(1)
        assert now() == 7.0
        await asyncio.sleep(13.5)
        await pool.run(2)
    assert backend.calls == [0.0, 1.0, 3.0, 7.0, 20.5, 21.5, 23.5, 27.5]


@virtual
async def test_a_probe_that_fails_with_another_error_closes_it() -> None:
    async def handler(job: str) -> None:
        raise OSError if now() < 5.0 else ValueError

    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(handler, workers=1, breaker=breaker) as pool:
        outcome = await (await pool.submit(1)).outcome()
        assert breaker.state == "closed"
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ValueError)


@virtual
async def test_after_a_probe_that_was_cancelled_the_next_job_is_the_probe_at_once() -> None:
    backend = Backend((0, 4), seconds=1.0)
    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(backend, workers=2, breaker=breaker) as pool:
        handles = [await pool.submit(number) for number in range(4)]
        await asyncio.sleep(6.5)
        assert breaker.state == "half-open"
        handles[backend.jobs[-1]].cancel()
        await settle()
        assert len(backend.calls) == 4
        assert breaker.state == "half-open"
        await asyncio.sleep(0.9)
        assert len(backend.calls) == 4
        await asyncio.sleep(0.2)
        assert breaker.state == "closed"
    assert [type(await handle.outcome()) for handle in handles].count(Cancelled) == 1


@virtual
async def test_a_probe_that_times_out_is_a_failed_one() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(60.0 if now() < 20.0 else 0.0)

    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(handler, workers=1, timeout=1.0, breaker=breaker) as pool:
        await pool.run(1)
    assert now() == 1 + 5 + 1 + 10 + 1 + 20


@virtual
async def test_a_probe_that_does_not_end_counts_as_failed_and_can_close_it_later() -> None:
    starts: list[tuple[int, float]] = []

    async def handler(job: int) -> None:
        starts.append((job, now()))
        await asyncio.sleep(0.1)
        if now() < 1.0:
            raise OSError
        await asyncio.sleep(11.9)

    breaker, events = Breaker(window=1, pause=5.0), []
    async with WorkerPool(handler, workers=9, breaker=breaker, observers=[events.append]) as pool:
        await pool.map(range(3))
    assert sorted(when for _, when in starts) == pytest.approx([0.0, 0.0, 0.0, 5.1, 17.1, 17.1])
    changes = [event for event in events if isinstance(event, BREAKER_EVENTS)]
    assert [type(event) for event in changes] == [BreakerOpened, BreakerHalfOpened, BreakerOpened, BreakerClosed]
    assert (changes[2].failures, changes[2].error, changes[2].seconds) == (1, None, 10.0)
    assert changes[3].seconds == pytest.approx(17.0)


@virtual
async def test_a_hung_probe_leaves_another_worker_to_the_next() -> None:
    async def handler(job: int) -> int:
        if now() < 1.0:
            raise OSError
        if now() == 5.0:
            await asyncio.get_running_loop().create_future()
        return job

    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(handler, workers=3, breaker=breaker) as pool:
        handles = [await pool.submit(number) for number in range(3)]
        await asyncio.sleep(5 + 5 + 10 + 0.1)
        assert breaker.state == "closed"
        assert sum(handle.done() for handle in handles) == 2
        pool.cancel()


@virtual
async def test_a_user_opens_and_closes_it() -> None:
    backend = Backend(seconds=0.0)
    breaker = Breaker(pause=3.0)
    events: list[Any] = []
    async with WorkerPool(backend, workers=2, breaker=breaker, observers=[events.append]) as pool:
        breaker.open(7.0)
        assert breaker.state == "open"
        tasks = [asyncio.ensure_future(pool.run(number)) for number in range(3)]
        await asyncio.sleep(1.0)
        assert not backend.calls
        breaker.open()  # from now on
        await asyncio.sleep(2.9)
        assert not backend.calls
        await asyncio.gather(*tasks)
        assert backend.calls == [4.0, 4.0, 4.0]
        breaker.open(50.0)
        task = asyncio.ensure_future(pool.run(3))
        await asyncio.sleep(1.0)
        breaker.close()
        await task
        assert backend.calls[3:] == [5.0]
    opened = [event for event in events if isinstance(event, BreakerOpened)]
    assert [(event.failures, event.attempts, event.error, event.seconds) for event in opened] == [
        (0, 0, None, 7.0),
        (0, 0, None, 3.0),
        (0, 0, None, 50.0),
    ]


@virtual
async def test_close_forgets_what_was_counted() -> None:
    breaker = Breaker(window=3, failure_rate=1.0)
    async with WorkerPool(Backend((0, 9)), workers=1, breaker=breaker) as pool:
        for _ in range(4):
            for _ in range(2):
                assert isinstance(await (await pool.submit(1)).outcome(), Failed)
            breaker.close()
    assert breaker.state == "closed"


# -- Jobs that are put back --------------------------------------------------------------------------------------------


@virtual
async def test_what_was_in_progress_is_put_back_before_fresh_jobs_and_keeps_its_attempt() -> None:
    seen: list[tuple[int, int, float]] = []

    async def handler(job: int) -> int:
        seen.append((job, current_job().attempt, now()))
        if now() < 1.0:
            await asyncio.sleep(0.1 * job)
            raise OSError
        return job

    breaker = Breaker(window=2, failure_rate=1.0, pause=5.0)
    async with WorkerPool(handler, workers=5, breaker=breaker) as pool:
        outcomes = [outcome async for outcome in pool.outcomes(range(8), ordered=True)]
        assert pool.stats.retries == 5  # the worker of the first had taken another
    assert isinstance(outcomes[0], Failed)
    assert seen[6:] == [(job, 1, 5.1) for job in (1, 2, 3, 4, 5, 6, 7)]
    assert [outcome.attempts for outcome in outcomes] == [1] * 8


@virtual
async def test_what_began_before_it_opened_is_put_back_even_after_it_has_closed() -> None:
    """And does not open it again."""
    attempts: list[int] = []

    async def handler(job: str) -> str:
        if job == "late":
            attempts.append(current_job().attempt)
            if now() < 1.0:
                await asyncio.sleep(20.0)
                raise OSError
        elif now() < 1.0:
            raise OSError
        return job

    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(handler, workers=2, breaker=breaker) as pool:
        handle = await pool.submit("late")
        await pool.run("other")
        assert now() == 5.0
        assert await handle == "late"
        assert now() == 20.0
        assert pool.stats.breaker_openings == 1
    assert attempts == [1, 1]


@virtual
async def test_failures_of_another_kind_use_up_attempts_while_it_is_open() -> None:
    async def handler(job: str) -> None:
        await asyncio.sleep(0.1 if job == "bug" else 0.0)
        raise ValueError if job == "bug" else OSError

    async with WorkerPool(handler, workers=2, breaker=Breaker(window=1)) as pool:
        bug = await pool.submit("bug")
        await pool.submit("down")
        outcome = await bug.outcome()
        assert (now(), pool.stats.breaker) == (0.1, "open")
        pool.cancel()
    assert isinstance(outcome, Failed)
    assert outcome.attempts == 1


@virtual
async def test_a_permanent_failure_is_not_put_back() -> None:
    async def handler(job: str) -> None:
        await asyncio.sleep(0.1 if job == "bad" else 0.0)
        if job == "bad":
            raise Permanent from OSError("no such mailbox")
        raise OSError

    async with WorkerPool(handler, workers=2, breaker=Breaker(window=1)) as pool:
        bad = await pool.submit("bad")
        await pool.submit("down")
        outcome = await bad.outcome()
        assert (now(), outcome.attempts) == (0.1, 1)
        pool.cancel()


@virtual
async def test_with_charge_failures_of_an_outage_follow_the_retry() -> None:
    letters = DeadLetters()
    breaker = Breaker(window=1, pause=1.0, charge=True)
    retry = Retry(attempts=3, backoff=0.1, jitter=False)
    async with WorkerPool(Backend((0, 60)), workers=1, breaker=breaker, retry=retry, dead_letters=letters) as pool:
        outcome = await (await pool.submit(1)).outcome()
    assert outcome.attempts == 3
    assert now() == pytest.approx(0.1 + 1.0 + 0.1 + 2.0 + 0.1)
    assert len(letters) == 1


@pytest.mark.parametrize("by", ["observer", "recycle_on", "on", "a destructor"])
@virtual
async def test_a_job_that_is_cancelled_while_its_failure_is_handled_is_not_put_back(by: str) -> None:
    attempts: list[float] = []

    class CancelsWhenDropped:
        def __del__(self) -> None:
            cancel(None)

    def cancel(_: object) -> bool:
        return handle.cancel()

    async def handler(_job: int, _resource: object = None) -> None:
        attempts.append(now())
        if len(attempts) > 3:
            return
        if by == "a destructor":
            value = CancelsWhenDropped()
            assert value
            try:
                await asyncio.sleep(10.0)
            except asyncio.CancelledError:
                raise OSError("down") from None
        raise RetryAfter(1.0, pause=by == "observer") from OSError("down")

    @asynccontextmanager
    async def nothing() -> AsyncIterator[None]:
        yield

    options: dict[str, Any] = {
        "observer": {"observers": [lambda event: isinstance(event, PoolPaused) and cancel(event)]},
        "recycle_on": {"resource": Resource(nothing, recycle_on=cancel)},
        "on": {},
        "a destructor": {"timeout": 1.0},
    }[by]
    breaker = Breaker(on=cancel if by == "on" else OSError, window=1, pause=1.0)
    async with WorkerPool(handler, workers=1, breaker=breaker, **options) as pool:
        handle = await pool.submit(1)
        assert isinstance(await handle.outcome(), Failed)
        assert pool.stats.retries == 0
    assert attempts == [0.0]


@virtual
async def test_the_seconds_of_a_retry_after_are_kept() -> None:
    calls: list[float] = []

    async def handler(job: int) -> int:
        calls.append(now())
        if len(calls) == 1:
            raise RetryAfter(30.0) from OSError("busy")
        return job

    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(handler, workers=1, breaker=breaker) as pool:
        task = asyncio.ensure_future(pool.run(1))
        await asyncio.sleep(6.0)
        assert pool.stats.delayed == 1
        await pool.run(2)
        assert breaker.state == "closed"
        await task
    assert calls == [0.0, 6.0, 30.0]


@virtual
async def test_a_job_that_is_put_back_is_reported_as_a_retry() -> None:
    events: list[Any] = []
    async with WorkerPool(
        Backend((0, 4)), workers=1, breaker=Breaker(window=1, pause=5.0), observers=[events.append]
    ) as pool:
        await pool.run(1)
    retries = [(event.attempt, event.seconds) for event in events if isinstance(event, JobRetrying)]
    assert retries == [(1, 5.0)]


@virtual
async def test_a_budget_is_not_used_up_by_an_outage() -> None:
    budget = asyncpool.RetryBudget(ratio=0.0, min_per_second=0.0)
    retry = Retry(attempts=3, budget=budget)
    async with WorkerPool(Backend((0, 4)), workers=3, breaker=Breaker(window=1), retry=retry) as pool:
        await pool.map(range(3))
        assert pool.stats.retries_rejected == 0


# -- An outage in the middle of many jobs ------------------------------------------------------------------------------


async def many_jobs(
    workers: Any, *, jobs: int, outage: tuple[float, float] | None, breaker: Breaker | None, retry: Retry
) -> tuple[float, int, int, list[float]]:
    backend = Backend(*([] if outage is None else [outage]), seconds=0.02)
    letters = DeadLetters()
    async with WorkerPool(backend, workers=workers, retry=retry, breaker=breaker, dead_letters=letters) as pool:
        succeeded = 0
        async for outcome in pool.outcomes(range(jobs)):
            succeeded += isinstance(outcome, Succeeded)
        ended = now()
    return ended, succeeded, len(letters), backend.calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "jobs"),
    [(20, 50_000), (AutoScale(2, 50), 50_000), (AutoScale(0, 20), 5_000), (Adaptive(10, 50), 5_000)],
    ids=repr,
)
def test_an_outage_of_ten_minutes_costs_ten_minutes_and_nothing_else(
    workers: Any, jobs: int, caplog: pytest.LogCaptureFixture
) -> None:
    retry = Retry(attempts=3)
    usual, *_ = run(lambda: many_jobs(workers, jobs=jobs, outage=None, breaker=None, retry=retry))
    outage = (0.4 * usual, 0.4 * usual + 600.0)
    caplog.set_level(logging.INFO)
    ended, succeeded, letters, calls = run(
        lambda: many_jobs(workers, jobs=jobs, outage=outage, breaker=Breaker(max_pause=60.0), retry=retry)
    )
    assert (succeeded, letters) == (jobs, 0)
    assert 3 <= len(caplog.records) <= 10, caplog.messages
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert sum(outage[0] + 1.0 < call < outage[1] for call in calls) < 20
    most_workers = 50 if not isinstance(workers, int) else workers
    assert len(calls) <= jobs + 2 * most_workers
    assert ended <= usual + 600.0 + 60.0 + 1.0


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_no_job_is_lost_if_it_has_more_attempts_than_the_breaker_needs_failures(workers: int) -> None:
    retry = Retry(attempts=3, backoff=0.01)
    for seconds in (0.0, 0.003, 0.5):
        breaker = Breaker(window=5, failure_rate=0.5)
        ended, succeeded, letters, _ = run(
            lambda breaker=breaker, seconds=seconds: many_jobs(
                workers, jobs=200, outage=(seconds, 600.0), breaker=breaker, retry=retry
            )
        )
        assert (succeeded, letters) == (200, 0)
        assert ended < 680.0


# -- With everything else of a pool ------------------------------------------------------------------------------------


@virtual
async def test_resume_with_force_lets_the_probe_start_at_once() -> None:
    backend = Backend((0, 4))
    breaker = Breaker(window=1, pause=60.0)
    async with WorkerPool(backend, workers=1, breaker=breaker) as pool:
        task = asyncio.ensure_future(pool.run(1))
        await asyncio.sleep(5.0)
        pool.resume()
        assert breaker.state == "open"
        pool.drain()
        pool.resume(force=True)
        assert breaker.state == "half-open"
        await task
    assert backend.calls == [0.0, 5.0]


@virtual
async def test_pauses_and_the_breaker_do_not_end_each_other() -> None:
    backend, events = Backend((0, 4)), []
    breaker = Breaker(window=1, pause=5.0)
    async with WorkerPool(backend, workers=1, breaker=breaker, observers=[events.append]) as pool:
        task = asyncio.ensure_future(pool.run(1))
        await asyncio.sleep(1.0)
        assert pool.is_paused
        pool.pause()
        await asyncio.sleep(9.0)
        assert breaker.state == "half-open"
        assert backend.calls == [0.0]
        breaker.open(10.0)
        pool.resume()
        await asyncio.sleep(5.0)
        assert pool.is_paused
        assert backend.calls == [0.0]
        await task
        assert not pool.is_paused
    assert backend.calls == [0.0, 20.0]
    pauses = [type(event) for event in events if isinstance(event, (PoolPaused, PoolResumed))]
    assert pauses == [PoolPaused, PoolResumed]


@virtual
async def test_a_pool_that_drains_goes_on_with_its_probes() -> None:
    backend = Backend((0, 90))
    async with WorkerPool(backend, workers=2, breaker=Breaker(window=1)) as pool:
        handles = [await pool.submit(number) for number in range(4)]
        report = await pool.close()
    assert not report.unfinished
    assert [await handle for handle in handles] == [0, 1, 2, 3]
    assert 90 < now() < 150


@virtual
async def test_drain_timeout_bounds_the_wait_for_the_backend() -> None:
    async with WorkerPool(Backend((0, math.inf)), workers=2, breaker=Breaker(window=1)) as pool:
        for number in range(4):
            await pool.submit(number)
        report = await pool.close(drain_timeout=100.0)
    assert [entry.job for entry in report.unfinished] == [0, 1, 2, 3]
    assert [entry.started for entry in report.unfinished] == [True, True, True, True]
    assert now() == 100.0


@virtual
async def test_the_deadline_of_a_job_goes_on_while_it_is_open() -> None:
    retry = Retry(max_elapsed=20.0)
    async with WorkerPool(Backend((0, math.inf)), workers=1, breaker=Breaker(window=1), retry=retry) as pool:
        handles = [await pool.submit(number) for number in range(3)]
        for handle in handles:
            outcome = await handle.outcome()
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, JobExpired)
        assert now() == 20.0


@virtual
async def test_a_job_that_is_held_can_be_cancelled() -> None:
    async with WorkerPool(Backend((0, math.inf)), workers=1, breaker=Breaker(window=1, pause=1.0)) as pool:
        handles = [await pool.submit(number) for number in range(3)]
        await asyncio.sleep(1.5)
        assert pool.stats.delayed == 1
        assert handles[0].cancel()
        assert (pool.stats.delayed, pool.stats.cancelled) == (0, 1)
        pool.cancel()


@virtual
async def test_a_job_that_is_held_is_probed_when_the_last_other_is_cancelled() -> None:
    backend = Backend((0, 1.5), seconds=0.0)
    breaker = Breaker(window=1, pause=1.0, factor=1.0)

    def limiter(job: int) -> RateLimit | None:
        return slow if job == 1 else None

    slow = RateLimit(0.001)
    slow.take(now())
    async with WorkerPool(backend, workers=1, breaker=breaker, limiter=limiter) as pool:
        handles = [await pool.submit(number) for number in range(2)]
        await asyncio.sleep(0.5)
        assert backend.jobs == [0]
        handles[1].cancel()
        await asyncio.sleep(1.0)
        assert backend.jobs == [0, 0]
        assert await handles[0] == 0
        assert now() == 2.0


class SlowToOpen:
    """A resource whose first opening of each worker takes no time, and each other one 100 seconds."""

    def __init__(self, workers: int) -> None:
        self.fast = workers

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.fast -= 1
        if self.fast < 0:
            await asyncio.sleep(100.0)
        yield


@virtual
async def test_a_job_that_is_held_is_probed_if_the_others_are_cancelled_while_no_worker_is_idle() -> None:
    async def handler(job: int, _: None) -> int:
        if now() < 4.0:
            raise OSError
        return job

    breaker = Breaker(window=1, pause=5.0)
    resource = Resource(SlowToOpen(1), open_timeout=1000.0)
    async with WorkerPool(handler, workers=1, breaker=breaker, resource=resource) as pool:
        breaker.open(1.0)
        handles = [await pool.submit(number) for number in range(2)]
        await asyncio.sleep(50.0)  # the probe has failed, and its worker opens another resource
        assert (breaker.state, pool.stats.delayed, pool.stats.queued) == ("half-open", 1, 1)
        handles[1].cancel()
        assert (pool.stats.delayed, pool.stats.queued) == (0, 1)
        assert await handles[0] == 0
        assert now() == 101.0


@virtual
async def test_a_job_that_is_put_back_late_gets_an_idle_worker() -> None:
    """Its own is not idle: it replaces its resource."""

    async def handler(job: str, _: None) -> float:
        if now() < 1.0:
            await asyncio.sleep(20.0 if job == "late" else 0.0)
            raise OSError
        return now()

    breaker = Breaker(window=1, pause=5.0)
    resource = Resource(SlowToOpen(3), open_timeout=1000.0)
    async with WorkerPool(handler, workers=3, breaker=breaker, resource=resource) as pool:
        late = await pool.submit("late")
        await pool.submit("other")
        await asyncio.sleep(6.0)
        assert (breaker.state, pool.stats.workers) == ("closed", 2)
        assert await late == 20.0


@virtual
async def test_a_probe_that_has_asked_for_a_pause_of_its_own_is_held_after_that() -> None:
    async def handler(job: str) -> str:
        if job == "bad":
            raise RetryAfter(0.5) from OSError("its own host is down")
        return job

    breaker = Breaker(window=1, pause=1.0)
    async with WorkerPool(handler, workers=1, breaker=breaker, priority=lambda job: job != "bad") as pool:
        bad = await pool.submit("bad")
        assert await pool.run("good") == "good"
        assert now() == 3.0  # the second probe: the first was the bad job
        bad.cancel()


@virtual
async def test_the_limit_of_all_jobs_and_the_breaker_hold_together() -> None:
    backend = Backend((0, 4), seconds=0.0)
    breaker = Breaker(window=1, pause=4.5)
    async with WorkerPool(backend, workers=2, breaker=breaker, limiter=RateLimit(1.0)) as pool:
        await pool.map(range(4))
    assert backend.calls == [0.0, 4.5, 5.5, 6.5, 7.5]


@virtual
async def test_a_job_that_is_held_is_listed_and_can_be_selected_to_be_cancelled() -> None:
    async with WorkerPool(Backend((0, math.inf)), workers=1, breaker=Breaker(window=1, pause=1.0)) as pool:
        handles = [await pool.submit(number) for number in range(3)]
        await asyncio.sleep(1.5)
        assert [(entry.job, entry.is_delayed) for entry in pool.queued()] == [(1, False), (2, False), (0, True)]
        assert pool.cancel_queued(lambda job: job == 0) == 1
        assert isinstance(await handles[0].outcome(), Cancelled)
        assert [entry.job for entry in pool.queued()] == [1, 2]
        pool.cancel()


@virtual
async def test_queue_timeout_goes_on_while_it_is_open_for_jobs_that_have_had_no_attempt() -> None:
    backend = Backend((0, 40))
    async with WorkerPool(backend, workers=1, breaker=Breaker(window=1), queue_timeout=3.0) as pool:
        first, second = await pool.submit(1), await pool.submit(2)
        outcome = await second.outcome()
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, JobExpired)
        assert now() == 3.0
        assert await first == 1


@virtual
async def test_jobs_that_are_put_back_give_their_slots_back() -> None:
    backend = Backend((0, 4))
    breaker, slots = Breaker(window=1, pause=5.0), ConcurrencyLimit(2)
    async with WorkerPool(backend, workers=4, breaker=breaker, limiter=[slots, RateLimit(100.0, burst=9)]) as pool:
        await pool.map(range(5))
    assert backend.calls == [0.0, 0.0, 5.1, pytest.approx(5.2), pytest.approx(5.2)] + [pytest.approx(5.3)] * 2


@virtual
async def test_a_pool_whose_breaker_is_open_is_not_stalled() -> None:
    events: list[Any] = []
    async with WorkerPool(Backend((0, 90)), workers=1, breaker=Breaker(window=1), observers=[events.append]) as pool:
        await pool.map(range(3))
    assert not [event for event in events if type(event).__name__ in ("PoolStalled", "PoolRecovered")]


@virtual
async def test_a_job_that_waits_for_its_own_pool_deadlocks_as_in_any_pause() -> None:
    async def handler(job: str) -> str:
        return await pool.run("inner") if job == "outer" else job

    breaker = Breaker()
    async with WorkerPool(handler, workers=1, breaker=breaker) as pool:
        outer = await pool.submit("outer")
        await settle()
        assert isinstance(await outer.outcome(), Failed)
        breaker.open(5.0)
        second = await pool.submit("outer")
        with pytest.raises(PoolDeadlock):
            await second


@virtual
async def test_a_policy_neither_grows_for_the_backlog_nor_hears_of_the_outage() -> None:
    seen: list[Any] = []

    class Watching:
        initial_workers, max_workers, interval = 4, 40, 0.5

        def start(self) -> Callable[[Any], Any]:
            def decide(load: Any) -> Any:
                seen.append(load)
                return asyncpool.Decision(4, ask_again_in=0.5)

            return decide

    async with WorkerPool(Backend((0, 20)), workers=Watching(), breaker=Breaker(window=1), queue_size=50) as pool:
        await pool.map(range(40))
    while_open = [load for load in seen if 1.0 < load.now < 5.0]
    assert while_open
    assert all(load.is_throttled and load.backlog for load in while_open)
    assert all(not load.failed and not load.errors for load in seen)


@virtual
async def test_scaling_up_waits_until_it_is_closed() -> None:
    resized: list[int] = []

    def observe(event: Any) -> None:
        if isinstance(event, asyncpool.events.PoolResized) and 0.5 < now() < 60.0:
            resized.append(event.new)

    policy = AutoScale(4, 40, interval=0.5, idle_timeout=1000.0)
    breaker = Breaker(window=1)
    async with WorkerPool(
        Backend((0, 70)), workers=policy, breaker=breaker, queue_size=300, observers=[observe]
    ) as pool:
        handles = [await pool.submit(number) for number in range(2)]
        await asyncio.sleep(1.0)
        handles += [await pool.submit(number) for number in range(290)]
        await pool.join()
        assert pool.stats.target_workers == 40
    assert not resized


@virtual
async def test_the_one_shot_functions_take_a_breaker() -> None:
    assert await asyncpool.map(Backend((0, 4)), range(3), workers=2, breaker=Breaker(window=1)) == [0, 1, 2]


@virtual
async def test_it_is_exact_with_an_engine() -> None:
    backend = Backend((0.0, 8.0), seconds=1.0)
    breaker = Breaker(window=2, failure_rate=1.0, pause=5.0)
    async with WorkerPool(Portable(backend), workers=4, breaker=breaker, engine=InMemory(2)) as pool:
        outcomes = [outcome async for outcome in pool.outcomes(range(9))]
        assert pool.stats.breaker_openings == 2
    assert sum(isinstance(outcome, Failed) for outcome in outcomes) == 1
    assert all(outcome.attempts == 1 for outcome in outcomes)
    between = [call for call in backend.calls if 2.0 < call < 17.5]
    assert len(between) == 2  # the two probes


def test_a_pool_without_a_breaker_is_built_as_before() -> None:
    assert type(WorkerPool(echo, workers=1)._parts.dispatcher) is Dispatcher
    assert WorkerPool(echo, workers=1).stats.breaker is None


# -- Several pools -----------------------------------------------------------------------------------------------------


@virtual
async def test_pools_that_share_it_open_together_and_take_turns_with_the_probe() -> None:
    first, second = Backend((0, 40), seconds=0.0), Backend((0, 40), seconds=0.0)
    breaker = Breaker(window=4, failure_rate=1.0, pause=5.0, factor=1.0)
    async with (
        WorkerPool(first, workers=2, breaker=breaker, name="first") as one,
        WorkerPool(second, workers=2, breaker=breaker, name="second") as two,
    ):
        handles = [await pool.submit(number) for number in range(8) for pool in (one, two)]
        await asyncio.sleep(32.0)
        assert one.stats.breaker == two.stats.breaker == "open"
        probes = {name: [call for call in backend.calls if call] for name, backend in (("1", first), ("2", second))}
        assert sorted(probes["1"] + probes["2"]) == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
        assert len(probes["1"]) == len(probes["2"]) == 3
        await asyncio.gather(*(handle.outcome() for handle in handles))


@virtual
async def test_a_pool_that_closes_leaves_the_probe_to_the_others() -> None:
    async def hang(job: int) -> None:
        await ignores_cancel(10.0)

    backend = Backend(seconds=0.0)
    breaker = Breaker(pause=100.0, max_pause=100.0)
    closing = WorkerPool(hang, workers=1, breaker=breaker, name="closing")
    async with WorkerPool(backend, workers=1, breaker=breaker) as pool:
        await closing.start()
        breaker.open(1.0)
        await closing.submit(1)
        await asyncio.sleep(2.0)
        assert breaker.state == "half-open"
        handle = await pool.submit(2)
        await asyncio.sleep(1.0)
        assert not backend.calls
        await closing.close(drain_timeout=0.0, grace=1.0)
        assert await handle == 2
        assert backend.calls == [3.0 + 1.0]
        assert breaker.state == "closed"
        await asyncio.sleep(10.0)  # until the abandoned job has ended


@virtual
async def test_a_pool_that_starts_while_it_is_open_waits() -> None:
    breaker = Breaker(pause=5.0)
    breaker.open()
    await asyncio.sleep(2.0)
    backend = Backend()
    async with WorkerPool(backend, workers=3, breaker=breaker) as pool:
        await pool.map(range(3))
    assert backend.calls[0] == 5.0
    assert len(set(backend.calls)) == 2


def test_it_begins_closed_on_the_next_loop() -> None:
    breaker = Breaker(window=1)

    async def fail() -> None:
        async with WorkerPool(Backend((0, math.inf)), workers=1, breaker=breaker) as pool:
            await pool.submit(1)
            await asyncio.sleep(1.0)
            assert breaker.state == "open"
            pool.cancel()

    run(fail)
    assert breaker.state == "open"
    backend = Backend()

    async def succeed() -> None:
        async with WorkerPool(backend, workers=1, breaker=breaker) as pool:
            await pool.run(1)

    run(succeed)
    assert backend.calls == [0.0]


@virtual
async def test_two_loops_cannot_share_it() -> None:
    breaker = Breaker()

    async def start() -> None:
        pool = WorkerPool(echo, workers=1, breaker=breaker)
        with pytest.raises(WrongLoop, match="is used by pools of another event loop"):
            await pool.start()
        assert pool.state == "new"
        with pytest.raises(WrongLoop):
            breaker.open()

    async with WorkerPool(echo, workers=1, breaker=breaker):
        await asyncio.to_thread(asyncio.run, start())


@virtual
async def test_observers_change_the_breaker() -> None:
    """What they do in the middle of a change comes after it, in each pool that shares it."""
    breaker = Breaker(pause=5.0)
    told: list[tuple[str, str]] = []

    def observe(event: Any) -> None:
        if isinstance(event, BREAKER_EVENTS):
            told.append((event.pool, type(event).__name__))
            if isinstance(event, BreakerOpened) and event.pool == "first":
                breaker.close()

    async with (
        WorkerPool(echo, workers=1, breaker=breaker, observers=[observe], name="first") as first,
        WorkerPool(echo, workers=1, breaker=breaker, observers=[observe], name="second") as second,
    ):
        breaker.open()
        assert (breaker.state, first.is_paused, second.is_paused) == ("closed", False, False)
    names = ("first", "second")
    assert told == [(name, event) for event in ("BreakerOpened", "BreakerClosed") for name in names]


# -- What is said ------------------------------------------------------------------------------------------------------


def test_each_change_is_logged_once_for_all_pools(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        breaker = Breaker(window=2, failure_rate=1.0, pause=5.0)
        backend = Backend((0, 6))
        async with (
            WorkerPool(backend, workers=3, breaker=breaker, name="mail") as pool,
            WorkerPool(echo, workers=3, breaker=breaker, name="other"),
        ):
            outcomes = [outcome async for outcome in pool.outcomes(range(3))]
            assert sum(isinstance(outcome, Failed) for outcome in outcomes) == 1
            breaker.open(2.0)
            breaker.close()

    caplog.set_level(logging.INFO)
    run(main)
    assert caplog.messages == [
        "pool 'mail': the breaker is open for 5 s; jobs wait: 2 of the last 2 attempts failed, the last with "
        "ConnectionError('down at 0.1')",
        "pool 'mail': the breaker is open for another 10 s: the probe failed with ConnectionError('down at 5.2') "
        "(occurrence 1)",
        "pool 'mail': the breaker is closed after 15.2 s; jobs run again",
        "pool 'other': the breaker was opened by a call, for 2 s; jobs wait",  # one of them says it
        "pool 'other': the breaker is closed after 0 s; jobs run again",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@virtual
async def test_each_change_is_an_event_of_each_pool() -> None:
    first: list[Any] = []
    second: list[Any] = []
    breaker = Breaker(window=2, failure_rate=0.5, pause=5.0)
    async with (
        WorkerPool(Backend((0, 6)), workers=1, breaker=breaker, observers=[first.append], name="first") as pool,
        WorkerPool(echo, workers=1, breaker=breaker, observers=[second.append], name="second") as other,
    ):
        await pool.run(1)
        assert (pool.stats.breaker_openings, other.stats.breaker_openings) == (2, 2)
    changes = [event for event in first if isinstance(event, BREAKER_EVENTS)]
    opened, half_open, again, _, closed = changes
    assert (opened.failures, opened.attempts, opened.seconds, str(opened.error)) == (1, 1, 5.0, "down at 0.1")
    assert isinstance(half_open, BreakerHalfOpened)
    assert (again.failures, again.attempts, again.seconds) == (1, 1, 10.0)
    assert closed == BreakerClosed(pool="first", seconds=pytest.approx(15.2))
    assert [type(event) for event in second if isinstance(event, BREAKER_EVENTS)] == [type(event) for event in changes]
    assert {event.pool for event in second} == {"second"}


def test_its_repr_shows_its_state() -> None:
    assert repr(Breaker()) == "<Breaker closed: 0 of the last 0 attempts failed>"


# -- Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on": 1}, TypeError, "on must be an exception type"),
        ({"failure_rate": 0.0}, ValueError, "failure_rate must be a finite number > 0, got 0.0"),
        ({"failure_rate": 1.5}, ValueError, "failure_rate must be <= 1, got 1.5"),
        ({"failure_rate": "half"}, TypeError, "failure_rate must be a number, got 'half'"),
        ({"window": 0}, ValueError, "window must be >= 1, got 0"),
        ({"window": 2.5}, TypeError, "window must be an int, got 2.5"),
        ({"pause": 0}, ValueError, "pause must be a finite number of seconds > 0, got 0"),
        ({"factor": 0.5}, ValueError, "factor must be a finite number >= 1, got 0.5"),
        ({"pause": 5.0, "max_pause": 1.0}, ValueError, "max_pause must be >= pause, got 1.0 and 5.0"),
        ({"charge": 1}, TypeError, "charge must be a bool, got 1"),
    ],
)
def test_bad_arguments_are_rejected(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Breaker(**arguments)


async def asynchronous(error: BaseException) -> bool:
    return True


def test_a_predicate_must_not_be_async() -> None:
    with pytest.raises(TypeError, match="on is called and not awaited"):
        Breaker(on=asynchronous)  # type: ignore[arg-type]


def test_a_pool_takes_breakers_only() -> None:
    with pytest.raises(TypeError, match=r"breaker must be a Breaker, got True: write breaker=Breaker\(on=OSError\)"):
        WorkerPool(echo, workers=1, breaker=True)  # type: ignore[arg-type]


@virtual
async def test_open_takes_a_positive_number_of_seconds() -> None:
    with pytest.raises(ValueError, match="seconds must be a finite number of seconds > 0, got 0"):
        Breaker().open(0)


def test_open_and_close_need_a_loop() -> None:
    for call in (Breaker().open, Breaker().close):
        with pytest.raises(RuntimeError, match="no running event loop"):
            call()
