"""Retries: what the policy says, and that a job between two attempts holds nothing and is never lost."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import pickle
import sys
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    DeadLetters,
    Failed,
    JobCancelled,
    JobCrashed,
    JobExpired,
    JobTimeout,
    Permanent,
    PoolClosed,
    PoolDeadlock,
    QueueFull,
    RateLimit,
    Retry,
    RetryAfter,
    RetryBudget,
    Succeeded,
    WorkerPool,
    current_job,
    map,
)
from asyncpool.events import JobEnded, JobRetrying, JobStarted, PoolPaused, PoolResumed
from asyncpool.testing import VirtualTimeLoop, run, settle
from tests.helpers import assert_conserved, cancel_soon, echo, fuzzed, now, sleeper, virtual
from tests.laws.witness import FACTORIES

SURE = Retry(jitter=False)  # 0.1 and 0.2 s


class Flaky:
    """A handler that fails so often with each job, and then returns it. Notes when it was called with what."""

    def __init__(self, failures: int = 1, error: Any = OSError, seconds: float = 0.0) -> None:
        self.failures = failures
        self.error = error
        self.seconds = seconds
        self.calls: list[tuple[float, Any]] = []

    async def __call__(self, job: Any) -> Any:
        self.calls.append((now(), job))
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if current_job().attempt <= self.failures:
            raise self.error(job)
        return job


# -- The policy ------------------------------------------------------------------------------------------------------


def pauses(retry: Retry, error: BaseException | None = None, seed: int = 0) -> list[float | None]:
    return [retry.delay(attempt, error or OSError(), Random(seed)) for attempt in range(1, retry.attempts + 1)]


def test_without_jitter_the_pauses_double_up_to_the_longest() -> None:
    assert pauses(Retry(attempts=9, jitter=False)) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, None]


def test_with_jitter_a_pause_is_anything_up_to_that() -> None:
    random = Random(7)
    drawn = [Retry().delay(2, OSError(), random) or 0.0 for _ in range(2000)]
    assert 0.0 <= min(drawn) < 0.002
    assert 0.198 < max(drawn) <= 0.2
    assert 0.095 < sum(drawn) / len(drawn) < 0.105


def test_the_same_random_gives_the_same_pauses() -> None:
    assert pauses(Retry(), seed=3) == pauses(Retry(), seed=3)
    assert pauses(Retry(), seed=3) != pauses(Retry(), seed=4)


def test_a_factor_beyond_all_numbers_is_the_longest_pause() -> None:
    assert Retry(attempts=10_000, jitter=False).delay(9_000, OSError(), Random(0)) == 5.0


def test_on_says_which_errors_are_tried_again() -> None:
    assert pauses(Retry(on=OSError, jitter=False), ValueError()) == [None] * 3
    assert pauses(Retry(on=(OSError, ValueError), jitter=False), ValueError()) == [0.1, 0.2, None]
    assert pauses(Retry(on=lambda error: "busy" in str(error), jitter=False), ValueError("busy")) == [0.1, 0.2, None]
    assert pauses(Retry(on=lambda error: "busy" in str(error), jitter=False), ValueError("full")) == [None] * 3


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        SystemExit(),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(),
        StopAsyncIteration(),
        JobCrashed(SystemExit()),
        PoolDeadlock(),
        Permanent(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_some_errors_are_never_tried_again(error: BaseException) -> None:
    assert pauses(Retry(on=BaseException), error) == [None] * 3


def test_retry_after_is_a_floor_and_jitter_only_adds() -> None:
    assert pauses(SURE, RetryAfter(0.15)) == [0.15, 0.2, None]
    random = Random(1)
    drawn = [Retry().delay(1, RetryAfter(30), random) or 0.0 for _ in range(500)]
    assert 30.0 <= min(drawn) < 30.01
    assert 30.09 < max(drawn) <= 30.1


def test_retry_after_counts_whatever_on_says() -> None:
    assert pauses(Retry(on=OSError, jitter=False), RetryAfter(1)) == [1.0, 1.0, None]


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def test_retry_after_from_what_is_never_tried_again_is_not_either() -> None:
    assert pauses(Retry(), caused(RetryAfter(1), SystemExit())) == [None] * 3


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"attempts": 0}, ValueError, "attempts must be >= 1, got 0"),
        ({"attempts": True}, TypeError, "attempts must be an int, got True"),
        ({"attempts": 2.0}, TypeError, "attempts must be an int, got 2.0"),
        ({"backoff": -1}, ValueError, "backoff must be a finite number of seconds >= 0, got -1"),
        ({"backoff": "1"}, TypeError, "backoff must be a number of seconds, got '1'"),
        ({"backoff": 10}, ValueError, "max_backoff must be >= backoff, got 5.0 and 10"),
        ({"factor": 0.5}, ValueError, "factor must be a finite number >= 1, got 0.5"),
        ({"factor": float("nan")}, ValueError, "factor must be a finite number >= 1, got nan"),
        ({"jitter": 0.1}, TypeError, "jitter must be a bool, got 0.1"),
        ({"on": 5}, TypeError, "on must be an exception type, a tuple of them, or a predicate, got 5"),
        ({"on": [OSError]}, TypeError, "on must be an exception type"),
        ({"max_retry_after": -1}, ValueError, "max_retry_after must be a finite number of seconds >= 0, got -1"),
        ({"max_elapsed": 0}, ValueError, "max_elapsed must be a finite number of seconds > 0, got 0"),
        ({"budget": 0.2}, TypeError, "budget must be a RetryBudget, got 0.2"),
    ],
    ids=str,
)
def test_the_policy_says_the_rule_and_the_value(arguments: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as raised:
        Retry(**arguments)
    assert said in str(raised.value)


def test_an_async_predicate_is_refused() -> None:
    with pytest.raises(TypeError, match="on is called and not awaited, so it must not be an async function"):
        Retry(on=echo)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"ratio": -0.1}, {"min_per_second": -1}, {"window": 0}, {"ratio": "1"}], ids=str)
def test_the_budget_says_the_rule_and_the_value(arguments: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
        RetryBudget(**arguments)


def test_advice_checks_its_seconds() -> None:
    for seconds in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=f"seconds must be a finite number of seconds, got {seconds}"):
            RetryAfter(seconds)
    with pytest.raises(TypeError, match="seconds must be a number of seconds, got '30'"):
        RetryAfter("30")  # type: ignore[arg-type]


def test_negative_advice_is_advice_whose_time_is_past() -> None:
    assert RetryAfter(-5).seconds == 0.0
    advice = RetryAfter(5)
    advice.seconds = -5.0
    assert pauses(SURE, advice) == [0.1, 0.2, None]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        (" 30 ", 30.0),
        ("0.5", 0.5),
        ("-5", 0.0),
        ("9" * 400, sys.float_info.max),
        ("inf", sys.float_info.max),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
        ("Sun Nov  6 08:50:07 1994", 30.0),
        ("Sun, 06 Nov 1994 08:50:07 -0000", 30.0),
        ("Sun, 06 Nov 1994 10:50:07 +0200", 30.0),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0.0),
        ("Sat, 04 Nov 1995 08:49:37 GMT", 363 * 86400.0),
        ("Sun, 99 Nov 1994 08:50:07 GMT", 0.0),
        ("Sun, 06 Nov 99999 08:50:07 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:50:07 +9999999", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        ("\0", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_advice_is_read_from_a_header(value: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 784111777.0)  # Sun, 06 Nov 1994 08:49:37 GMT
    advice = RetryAfter.from_header(value, pause=True)
    assert advice.pause
    assert advice.seconds == pytest.approx(seconds, rel=0.01)


def test_no_header_raises() -> None:
    random = Random(1)
    dates = ["Sun", ",", " ", "06", "Nov", "-", "1994", "08:49:37", "GMT", "+0200", ":", "99999", "\ud800", "é", ""]
    for _ in range(3000):
        assert RetryAfter.from_header("".join(random.choices(dates, k=random.randint(0, 9)))).seconds >= 0.0


def test_only_the_text_of_a_header_is_read() -> None:
    with pytest.raises(TypeError, match="value must be a str or None, got b'30'"):
        RetryAfter.from_header(b"30")  # type: ignore[arg-type]


def test_advice_is_capped() -> None:
    assert pauses(SURE, RetryAfter(1e9))[0] == 3600.0
    assert pauses(Retry(jitter=False, max_retry_after=7), RetryAfter(30))[0] == 7.0
    assert pauses(Retry(jitter=False, max_retry_after=0), RetryAfter(30))[0] == 0.1


def test_policies_and_advice_can_be_pickled() -> None:
    retry = Retry(attempts=7, budget=RetryBudget(ratio=0.5))
    assert pickle.loads(pickle.dumps(retry)) == retry
    advice = pickle.loads(pickle.dumps(RetryAfter(3, pause=True)))
    assert (advice.seconds, advice.pause) == (3.0, True)
    assert pickle.loads(pickle.dumps(JobExpired(4.0))).max_elapsed == 4.0


def test_the_pool_wants_a_policy() -> None:
    with pytest.raises(TypeError, match=r"retry must be a Retry, got 3: write retry=Retry\(attempts=3\)"):
        WorkerPool(echo, workers=1, retry=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="max_delayed must be >= 1, got 0"):
        WorkerPool(echo, workers=1, retry=Retry(), max_delayed=0)


# -- Backing off frees the worker ------------------------------------------------------------------------------------


@virtual
async def test_the_good_jobs_do_not_wait_for_those_that_back_off() -> None:
    async def handler(job: int) -> float:
        await asyncio.sleep(0.01)
        if job % 5 == 0 and current_job().attempt == 1:
            raise OSError
        return now()

    async with WorkerPool(handler, workers=10, retry=Retry(backoff=1.0, jitter=False)) as pool:
        ends = {outcome.job: outcome.unwrap() async for outcome in pool.outcomes(range(100))}
    good = sorted(end for job, end in ends.items() if job % 5)
    assert len(good) == 80
    assert good[-1] < 0.15
    assert max(ends.values()) == pytest.approx(1.11)  # the last failed at 0.1, and was tried again a second later


@virtual
async def test_a_job_that_backs_off_is_delayed_and_holds_nothing() -> None:
    async with WorkerPool(Flaky(), workers=1, retry=SURE) as pool:
        handle = await pool.submit("x")
        await settle()
        stats = pool.stats
        assert (stats.delayed, stats.queued, stats.running, stats.retries) == (1, 0, 0, 1)
        assert_conserved(pool)
        assert "1 delayed" in repr(pool)
        assert "delayed" in repr(handle)
        assert not handle.done()
        assert await handle == "x"
        assert pool.stats.delayed == 0


@virtual
async def test_the_outcome_tells_the_attempts_and_the_last_ones_times() -> None:
    flaky = Flaky(failures=2, seconds=0.5)
    async with WorkerPool(flaky, workers=1, retry=SURE) as pool:
        (outcome,) = await pool.outcomes(["x"])
        assert isinstance(outcome, Succeeded)
        assert (outcome.attempts, outcome.worker) == (3, 1)
        assert (outcome.seconds_queued, outcome.seconds_running) == (0.0, 0.5)
        assert [when for when, _ in flaky.calls] == pytest.approx([0.0, 0.6, 1.3])
        assert pool.stats.seconds_running.count == 3


@virtual
async def test_when_the_attempts_are_used_up_the_last_error_is_the_jobs() -> None:
    async def handler(job: str) -> None:
        raise OSError(f"attempt {current_job().attempt}")

    async with WorkerPool(handler, workers=1, retry=SURE) as pool:
        (outcome,) = await pool.outcomes(["x"])
    assert isinstance(outcome, Failed)
    assert (str(outcome.error), outcome.attempts) == ("attempt 3", 3)
    assert pool.stats.failed == 1


@virtual
async def test_jobs_come_back_before_fresh_ones_in_the_order_of_their_pauses() -> None:
    flaky = Flaky(seconds=0.05)
    async with WorkerPool(flaky, workers=2, queue_size=20, retry=SURE) as pool:
        await pool.outcomes(range(12))
    first = [job for _, job in flaky.calls]
    assert first[:8] == [0, 1, 2, 3, 4, 5, 0, 1]  # due at 0.15, when 4 and 5 end
    assert sorted(first) == sorted([*range(12)] * 2)


@virtual
async def test_with_priorities_they_come_back_before_fresh_ones_of_equal_priority() -> None:
    order: list[tuple[str, int]] = []

    async def handler(job: tuple[str, int]) -> None:
        order.append(job)
        await asyncio.sleep(0.1)
        if job == ("b", 0) and current_job().attempt == 1:
            raise OSError

    pool = WorkerPool(handler, workers=1, retry=SURE, priority=lambda job: job[0], queue_size=20)
    async with pool:
        pool.submit_nowait(("b", 0))
        await settle()
        for job in [("c", 1), ("b", 2), ("b", 3)]:
            pool.submit_nowait(job)
        await asyncio.sleep(0.15)  # ("b", 2) runs; the first is due at 0.2
        pool.submit_nowait(("a", 4))
        await pool.join()
    assert order == [("b", 0), ("b", 2), ("a", 4), ("b", 0), ("b", 3), ("c", 1)]


@fuzzed
async def test_a_job_comes_back_past_a_full_queue() -> None:
    flaky = Flaky(failures=2)
    async with WorkerPool(flaky, workers=1, queue_size=0, retry=SURE) as pool:
        outcomes = await pool.outcomes(range(5))
    assert sorted(outcome.unwrap() for outcome in outcomes) == [0, 1, 2, 3, 4]
    assert len(flaky.calls) == 15


@virtual
async def test_all_attempts_run_in_the_jobs_own_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[tuple[str, str]] = []

    async def handler(job: str) -> None:
        seen.append((job, variable.get()))
        variable.set(f"{job}, attempt {current_job().attempt}")
        raise OSError

    async with WorkerPool(handler, workers=2, retry=SURE) as pool:
        variable.set("of a")
        a = await pool.submit("a")
        variable.set("of b")
        b = await pool.submit("b")
        await a.outcome()
        await b.outcome()
    assert variable.get() == "of b"
    assert [value for job, value in seen if job == "a"] == ["of a", "a, attempt 1", "a, attempt 2"]
    assert [value for job, value in seen if job == "b"] == ["of b", "b, attempt 1", "b, attempt 2"]


@pytest.mark.parametrize("mode", FACTORIES)
def test_retries_work_however_the_loop_makes_tasks(mode: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(FACTORIES[mode])
        for seconds in (0.0, 0.1):
            async with WorkerPool(Flaky(2, seconds=seconds), workers=2, queue_size=1, retry=Retry(backoff=0)) as pool:
                assert await pool.map(range(10)) == [*range(10)]
                assert pool.stats.retries == 20

    for seed in (None, *range(10)):
        run(main, seed=seed)


@virtual
async def test_an_attempt_whose_task_could_not_be_made_is_tried_again() -> None:
    refusals = 2

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal refusals
        if refusals and coro.__name__ == "_attempt":
            refusals -= 1
            raise OSError("no more tasks")
        return asyncio.Task(coro, loop=loop, **options)

    flaky = Flaky(failures=0)
    asyncio.get_running_loop().set_task_factory(factory)
    async with WorkerPool(flaky, workers=1, retry=SURE) as pool:
        (outcome,) = await pool.outcomes(["x"])
        assert_conserved(pool)
    assert isinstance(outcome, Succeeded)
    assert (outcome.attempts, len(flaky.calls)) == (3, 1)


@virtual
async def test_map_raises_only_when_the_attempts_are_used_up() -> None:
    assert await map(Flaky(2), range(5), workers=2, retry=SURE) == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="0"):
        await map(Flaky(3), range(5), workers=2, retry=SURE)


@pytest.mark.parametrize("ordered", [True, False])
def test_jobs_that_back_off_do_not_fill_the_window_of_a_stream(ordered: bool) -> None:
    """Or a few that wait long would idle all workers, whatever max_delayed is."""

    async def handler(job: int) -> float:
        await asyncio.sleep(1)
        if job >= 4 and job < 60 and current_job().attempt == 1:
            raise OSError
        return now()

    async def main() -> None:
        retry = Retry(backoff=1000, max_backoff=1000, jitter=False)
        async with WorkerPool(handler, workers=2, queue_size=0, retry=retry) as pool:
            ends = {outcome.job: outcome.unwrap() async for outcome in pool.outcomes(range(62), ordered=ordered)}
        assert (ends[60], ends[61]) == (31.0, 31.0)  # nobody has waited for the pauses of the others
        assert pool.stats.delayed == 0
        assert len(ends) == 62

    run(main)


@virtual
async def test_cancelled_while_they_back_off_jobs_leave_no_trace_in_the_window() -> None:
    async with WorkerPool(Flaky(), workers=2, queue_size=0, retry=Retry(backoff=5, jitter=False)) as pool:
        group = pool.group()
        for job in range(6):
            await group.submit(job)
        await settle()
        assert pool.stats.delayed == 6
        await group.aclose()
        assert (group._channel.unread, pool.stats.delayed) == (0, 0)


@virtual
async def test_two_pools_share_a_policy() -> None:
    retry = Retry(attempts=2, jitter=False, budget=RetryBudget(ratio=0, min_per_second=0.1))
    for _ in range(2):  # each has a budget of its own: one retry in ten seconds
        async with WorkerPool(Flaky(), workers=1, retry=retry) as pool:
            outcomes = await pool.outcomes(range(2))
            assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == 1


@virtual
async def test_observers_are_told_of_retries() -> None:
    events: list[Any] = []
    async with WorkerPool(Flaky(), workers=1, retry=SURE, observers=[events.append], name="p") as pool:
        await pool.run("x")
    (retrying,) = [event for event in events if isinstance(event, JobRetrying)]
    assert (retrying.pool, retrying.id, retrying.job, retrying.attempt, retrying.seconds) == ("p", 1, "x", 1, 0.1)
    assert isinstance(retrying.error, OSError)
    assert [event.attempt for event in events if isinstance(event, JobStarted)] == [1, 2]


@virtual
async def test_a_hundred_thousand_jobs_back_off_under_one_timer() -> None:
    loop: Any = asyncio.get_running_loop()
    flaky = Flaky(seconds=0.001)
    count = 20_000
    async with WorkerPool(flaky, workers=100, retry=Retry(backoff=5.0, jitter=False), max_delayed=count) as pool:
        handles = [await pool.submit(job) for job in range(count)]
        while pool.stats.delayed < count:
            await asyncio.sleep(0.001)
        assert len(loop._scheduled) <= 2  # the pool's, and one that was cancelled
        await pool.join()
        assert all(handle.done() for handle in handles)
        assert (pool.stats.succeeded, pool.stats.peak_running) == (count, 100)


# -- What the handler says -------------------------------------------------------------------------------------------


@virtual
async def test_the_recorded_error_is_the_one_that_advice_was_raised_from() -> None:
    async def handler(advice: Any) -> None:
        try:
            raise OSError("the cause")
        except OSError as error:
            raise advice from error

    for retry in (None, Retry(attempts=1)):
        async with WorkerPool(handler, workers=1, retry=retry) as pool:
            for advice in (Permanent("no"), RetryAfter(1)):
                with pytest.raises(OSError, match="the cause") as raised:
                    await pool.run(advice)
                assert [entry.name for entry in raised.traceback][-1] == "handler"


@virtual
async def test_advice_without_a_cause_is_the_recorded_error() -> None:
    async def handler(job: object) -> None:
        raise Permanent("no such mailbox")

    async with WorkerPool(handler, workers=1, retry=Retry()) as pool:
        (outcome,) = await pool.outcomes(["x"])
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Permanent)
    assert outcome.attempts == 1


@virtual
async def test_retry_after_puts_the_job_off_for_so_long() -> None:
    calls: list[float] = []

    async def handler(job: object) -> None:
        calls.append(now())
        raise RetryAfter(10.0) from OSError()

    async with WorkerPool(handler, workers=1, retry=SURE) as pool:
        await pool.outcomes(["x"])
    assert calls == [0.0, 10.0, 20.0]


@virtual
async def test_retry_after_with_pause_stops_the_taking_for_the_whole_pool() -> None:
    calls: list[tuple[float, int, int]] = []

    async def handler(job: int) -> None:
        calls.append((now(), job, current_job().attempt))
        if job == 1 and current_job().attempt == 1:
            raise RetryAfter(3.0, pause=True) from OSError("429")
        await asyncio.sleep(0.5)

    events: list[Any] = []
    async with WorkerPool(handler, workers=2, queue_size=1, retry=SURE, observers=[events.append]) as pool:
        outcomes = await pool.outcomes(range(6))
    assert {(when, attempt) for when, job, attempt in calls if job in (0, 1)} == {(0.0, 1), (3.0, 2), (0.0, 1)} | {
        (when, 2) for when, job, attempt in calls if job == 1 and attempt == 2
    }
    assert min(when for when, job, _ in calls if job > 1) == 3.0
    assert sorted(outcome.attempts for outcome in outcomes) == [1, 1, 1, 1, 1, 2]  # nobody else has burnt one
    kinds = [(type(event), getattr(event, "seconds", None)) for event in events]
    assert kinds.count((PoolPaused, 3.0)) == 1
    assert kinds.count((PoolResumed, None)) == 1


@virtual
async def test_the_longest_pause_that_was_asked_for_counts() -> None:
    async def handler(seconds: float) -> float:
        await asyncio.sleep(0)  # so that all three run at once
        if seconds and current_job().attempt == 1:
            raise RetryAfter(seconds, pause=True)
        return now()

    async with WorkerPool(handler, workers=3, retry=SURE) as pool:
        handles = [await pool.submit(seconds) for seconds in (5.0, 9.0, 2.0)]
        await settle()
        assert await pool.run(0.0) == 9.0
        assert [await handle for handle in handles] == [9.0, 9.0, 9.0]


@virtual
async def test_a_pause_that_a_job_asked_for_is_kept_while_the_pool_drains() -> None:
    async def handler(job: str) -> float:
        if job == "busy":
            raise RetryAfter(7.0, pause=True)
        return now()

    async with WorkerPool(handler, workers=1) as pool:
        pool.submit_nowait("busy")
        other = pool.submit_nowait("other")
    assert await other == 7.0


@pytest.mark.parametrize(("retry", "most"), [(None, 3600.0), (Retry(attempts=1, max_retry_after=60), 60.0)], ids=str)
def test_a_pause_that_a_job_asked_for_is_capped(retry: Retry | None, most: float) -> None:
    async def handler(job: str) -> float:
        if job == "busy":
            raise RetryAfter(1e300, pause=True)
        return now()

    async def main() -> None:
        async with WorkerPool(handler, workers=1, retry=retry) as pool:
            pool.submit_nowait("busy")
            other = pool.submit_nowait("other")
        assert await other == most

    run(main)


@virtual
async def test_a_pause_whose_time_is_past_is_none() -> None:
    async def handler(job: str) -> None:
        raise RetryAfter(-5, pause=True) from OSError("429")

    events: list[Any] = []
    async with WorkerPool(handler, workers=1, observers=[events.append]) as pool:
        with pytest.raises(OSError, match="429"):
            await pool.run("busy")
        assert not pool.is_paused
    assert not any(isinstance(event, PoolPaused) for event in events)


@virtual
async def test_resume_does_not_end_a_pause_that_a_job_asked_for() -> None:
    async def handler(job: str) -> float:
        if job == "busy":
            raise RetryAfter(7.0, pause=True)
        return now()

    async with WorkerPool(handler, workers=1) as pool:
        with pytest.raises(RetryAfter):
            await pool.run("busy")
        pool.pause()
        other = pool.submit_nowait("other")
        await asyncio.sleep(1)
        pool.resume()
        assert await other == 7.0
        with pytest.raises(RetryAfter):
            await pool.run("busy")
        pool.pause()
        other = pool.submit_nowait("other")
        await asyncio.sleep(20)
        assert not other.done()  # nor does its end lift a pause()
        pool.resume()
        assert await other == 27.0


@fuzzed
async def test_a_forced_resume_ends_a_pause_that_a_job_asked_for_and_that_of_the_user() -> None:
    async def handler(job: str) -> float:
        if job == "busy":
            raise RetryAfter(7.0, pause=True)
        return now()

    events: list[Any] = []
    async with WorkerPool(handler, workers=1, observers=[events.append]) as pool:
        for pauses_too in (False, True):
            began = now()
            with pytest.raises(RetryAfter):
                await pool.run("busy")
            if pauses_too:
                pool.pause()
            other = pool.submit_nowait("other")
            await asyncio.sleep(1)
            assert pool.is_paused
            pool.resume(force=True)
            assert not pool.is_paused
            assert await other == began + 1
            with pytest.raises(RetryAfter):  # the old timer does not end the next pause
                await pool.run("busy")
            assert await pool.run("other") == began + 8
    assert sum(isinstance(event, PoolResumed) for event in events) == 4


@virtual
async def test_a_forced_resume_ends_a_pause_while_the_pool_drains() -> None:
    async def handler(job: str) -> float:
        if job == "busy":
            raise RetryAfter(3000.0, pause=True)
        return now()

    async with WorkerPool(handler, workers=1) as pool:
        pool.submit_nowait("busy")
        other = pool.submit_nowait("other")
        await settle()
        pool.drain()
        with pytest.raises(PoolClosed):
            pool.resume()
        asyncio.get_running_loop().call_later(1, lambda: pool.resume(force=True))
    assert await other == now() == 1.0
    with pytest.raises(PoolClosed):
        pool.resume(force=True)


@virtual
async def test_an_observer_can_pause_a_pool_that_a_forced_resume_has_started_again() -> None:
    async def handler(job: str) -> None:
        raise RetryAfter(7.0, pause=True)

    def observer(event: object) -> None:
        if isinstance(event, PoolResumed):
            pool.pause()

    async with WorkerPool(handler, workers=1, observers=[observer]) as pool:
        with pytest.raises(RetryAfter):
            await pool.run("busy")
        pool.resume(force=True)
        assert pool.is_paused


@virtual
async def test_a_predicate_that_raises_costs_only_the_retry(caplog: pytest.LogCaptureFixture) -> None:
    def on(error: BaseException) -> bool:
        raise LookupError("broken predicate")

    async with WorkerPool(Flaky(), workers=1, retry=Retry(on=on)) as pool:
        with pytest.raises(OSError):
            await pool.run("x")
    (record,) = caplog.records
    assert "Retry.on, or a RetryAdvice of the handler" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


# -- What is never tried again ---------------------------------------------------------------------------------------


@virtual
async def test_a_cancelled_job_is_not_tried_again_even_if_it_fails() -> None:
    started = asyncio.Event()

    async def handler(job: object) -> None:
        started.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise OSError("while it was cancelled") from None

    async with WorkerPool(handler, workers=1, retry=Retry()) as pool:
        handle = await pool.submit("x")
        await started.wait()
        handle.cancel()
        outcome = await handle.outcome()
    assert isinstance(outcome, Failed)
    assert pool.stats.retries == 0


@virtual
async def test_a_cancelled_job_that_gives_advice_is_cancelled() -> None:
    async def handler(job: object) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError as error:
            raise RetryAfter(1) from error

    async with WorkerPool(handler, workers=1, retry=Retry()) as pool:
        handle = await pool.submit("x")
        await settle()
        handle.cancel()
        assert isinstance(await handle.outcome(), Cancelled)


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, StopAsyncIteration, PoolDeadlock])
def test_a_crash_is_not_tried_again(error: type[BaseException]) -> None:
    async def main() -> None:
        flaky = Flaky(error=error)
        async with WorkerPool(flaky, workers=1, retry=Retry(on=BaseException)) as pool:
            (outcome,) = await pool.outcomes(["x"])
        assert isinstance(outcome, Failed)
        assert (outcome.attempts, len(flaky.calls)) == (1, 1)

    run(main)


@virtual
async def test_a_timed_out_attempt_is_tried_again_if_the_policy_says_so() -> None:
    async def handler(job: object) -> str:
        await asyncio.sleep(5 if current_job().attempt == 1 else 0)
        return "in time"

    async with WorkerPool(handler, workers=1, timeout=1, retry=SURE) as pool:
        assert await pool.run("x") == "in time"
        assert now() == pytest.approx(1.1)
    async with WorkerPool(handler, workers=1, timeout=1, retry=Retry(on=ConnectionError)) as pool:
        with pytest.raises(JobTimeout):
            await pool.run("x")


@virtual
async def test_a_timeout_that_was_turned_into_advice_is_a_timeout() -> None:
    async def handler(job: object) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError as error:
            raise RetryAfter(2) from error

    async with WorkerPool(handler, workers=1, timeout=1, retry=Retry(attempts=2, jitter=False)) as pool:
        with pytest.raises(JobTimeout):
            await pool.run("x")
        assert now() == 4.0


# -- max_elapsed -----------------------------------------------------------------------------------------------------


@virtual
async def test_max_elapsed_ends_an_attempt_that_runs_into_it() -> None:
    deadlines: list[float] = []

    async def handler(job: object) -> None:
        deadlines.append(anyio.current_effective_deadline())
        if current_job().attempt == 1:
            raise OSError("first")
        await asyncio.sleep(60)

    async with WorkerPool(handler, workers=1, timeout=4.0, retry=Retry(jitter=False, max_elapsed=3.0)) as pool:
        with pytest.raises(JobExpired, match="did not complete within 3 s of its acceptance") as raised:
            await pool.run("x")
        assert now() == 3.0
    assert str(raised.value.__cause__) == "first"
    assert deadlines == pytest.approx([3.0, 3.0])


@virtual
async def test_the_timeout_of_an_attempt_counts_if_it_is_sooner() -> None:
    async def handler(job: object) -> None:
        await asyncio.sleep(60)

    async with WorkerPool(handler, workers=1, timeout=1.0, retry=Retry(attempts=1, max_elapsed=3.0)) as pool:
        with pytest.raises(JobTimeout):
            await pool.run("x")


@virtual
async def test_a_job_that_is_taken_too_late_fails_unrun() -> None:
    calls: list[float] = []

    async def handler(seconds: float) -> None:
        calls.append(seconds)
        await asyncio.sleep(seconds)

    async with WorkerPool(handler, workers=1, retry=Retry(max_elapsed=3.0)) as pool:
        pool.pause()
        late = await pool.submit(0.0)
        await asyncio.sleep(4)
        pool.resume()
        outcome = await late.outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, JobExpired)
    assert (outcome.attempts, outcome.seconds_running) == (0, 0.0)
    assert calls == []


async def late(handle: Any) -> float:
    """Return when a job failed because it was too late."""
    outcome = await handle.outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, JobExpired)
    return now()


@pytest.mark.parametrize("priority", [None, lambda job: -job], ids=["fifo", "priority"])
@pytest.mark.parametrize("by_job", [False, True], ids=["by user", "by job"])
@fuzzed
async def test_jobs_are_told_in_time_while_the_pool_is_paused(by_job: bool, priority: Any) -> None:
    async def handler(job: float) -> float:
        if job < 0:
            raise RetryAfter(60.0, pause=True)
        return job

    events: list[Any] = []
    letters = DeadLetters[float]()
    retry = Retry(attempts=1, max_elapsed=3.0)
    async with WorkerPool(
        handler, workers=1, retry=retry, priority=priority, dead_letters=letters, observers=[events.append]
    ) as pool:
        if by_job:
            with pytest.raises(RetryAfter):
                await pool.run(-1.0)
        else:
            pool.pause()
        handles = []
        for number in range(3):  # accepted in the pause, each a second after the other
            handles += [pool.submit_nowait(number), pool.submit_nowait(number)]
            await asyncio.sleep(1)
        assert handles[2].cancel()
        assert [await late(handle) for handle in handles if handle is not handles[2]] == [3.0, 3.0, 4.0, 5.0, 5.0]
        assert_conserved(pool)
        assert len(letters) == 5 + by_job
        assert await pool.outcomes([]) == []
        pool.resume(force=True)
        assert await pool.run(7) == 7
    attempts = [
        event.outcome.attempts for event in events if isinstance(event, JobEnded) and event.outcome.job in (0, 1, 2)
    ]
    assert attempts == [0] * 6


@fuzzed
async def test_jobs_from_before_a_pause_are_told_in_time_wherever_they_are() -> None:
    """Queued, parked for a rate limit, backing off, or running and then backing off."""

    async def handler(job: str) -> str:
        if job == "busy":
            await asyncio.sleep(1.0)
        if job != "quick" and current_job().attempt == 1:
            raise OSError(job)
        return job

    retry = Retry(backoff=1.0, jitter=False, max_elapsed=3.0)
    slow = RateLimit(1, per=100)
    limiter = lambda job: slow if job == "parked" else None  # noqa: E731
    async with WorkerPool(handler, workers=2, retry=retry, limiter=limiter) as pool:
        parked = [pool.submit_nowait("parked") for _ in range(2)]  # the first goes, fails, and waits for the limit too
        failed = pool.submit_nowait("fails")
        await settle()
        busy = [pool.submit_nowait("busy") for _ in range(2)]
        await asyncio.sleep(0.5)
        queued = pool.submit_nowait("quick")
        pool.pause()
        assert [await late(handle) for handle in (*parked, failed, *busy, queued)] == [3.0] * 5 + [3.5]
        assert_conserved(pool)
        assert (await failed.outcome()).attempts == 1
        pool.resume()
        assert await pool.run("quick") == "quick"
        await asyncio.sleep(0.01)


@virtual
async def test_a_pause_that_is_over_leaves_no_timer_of_the_deadlines() -> None:
    loop: Any = asyncio.get_running_loop()
    async with WorkerPool(sleeper, workers=1, retry=Retry(max_elapsed=1000.0)) as pool:
        pool.pause()
        handle = pool.submit_nowait(1)
        await asyncio.sleep(1)
        pool.resume()
        await handle
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@virtual
async def test_an_observer_of_a_late_job_can_end_the_pause() -> None:
    def observer(event: object) -> None:
        if isinstance(event, JobEnded):
            assert_conserved(pool)
            pool.resume()

    async with WorkerPool(echo, workers=1, retry=Retry(max_elapsed=3.0), observers=[observer]) as pool:
        pool.pause()
        handles = [pool.submit_nowait(0)]
        await asyncio.sleep(1)
        handles.append(pool.submit_nowait(1))
        assert await late(handles[0]) == 3.0
        assert await handles[1] == 1


@virtual
async def test_jobs_that_a_closed_rate_limit_of_all_holds_back_are_told_in_time() -> None:
    limit = RateLimit(1, per=1000.0)
    async with WorkerPool(echo, workers=1, limiter=limit, retry=Retry(max_elapsed=3.0)) as pool:
        assert await pool.run(0) == 0
        first = pool.submit_nowait(1)
        await asyncio.sleep(1)
        assert await late(first) == 3.0
        assert await late(pool.submit_nowait(2)) == 6.0  # it came while the limit was closed
        await asyncio.sleep(1000.0 - now())
        assert await pool.run(3) == 3


@virtual
async def test_a_rate_limit_that_opens_soon_finds_the_jobs_that_are_too_late_by_itself() -> None:
    limit = RateLimit(2, per=1.0, burst=1)
    async with WorkerPool(echo, workers=1, queue_size=10, limiter=limit, retry=Retry(max_elapsed=1.7)) as pool:
        handles = [pool.submit_nowait(number) for number in range(9)]
        assert [await handle for handle in handles[:4]] == [0, 1, 2, 3]
        assert now() == 1.5
        assert [await late(handle) for handle in handles[4:]] == [2.0] * 5  # with the next opening
        loop: Any = pool.loop
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@virtual
async def test_a_pool_that_was_paused_before_its_start_tells_jobs_in_time() -> None:
    pool = WorkerPool(echo, workers=1, retry=Retry(max_elapsed=3.0))
    pool.pause()
    async with pool:
        assert await late(pool.submit_nowait(0)) == 3.0


@virtual
async def test_a_draining_pool_does_not_wait_for_a_pause_when_all_jobs_are_late() -> None:
    async def handler(job: int) -> None:
        raise RetryAfter(600.0, pause=True)

    async with WorkerPool(handler, workers=1, retry=Retry(attempts=1, max_elapsed=3.0)) as pool:
        handles = [pool.submit_nowait(job) for job in range(3)]
    assert now() == 3.0
    assert [type((await handle.outcome()).error) for handle in handles] == [RetryAfter, JobExpired, JobExpired]


@virtual
async def test_a_pause_that_would_pass_max_elapsed_is_not_made() -> None:
    async def handler(job: object) -> None:
        await asyncio.sleep(1)
        raise OSError("the last")

    async with WorkerPool(
        handler, workers=1, retry=Retry(attempts=9, backoff=1, jitter=False, max_elapsed=4.0)
    ) as pool:
        with pytest.raises(OSError, match="the last") as raised:
            await pool.run("x")  # 0..1, 2..3, and the next would begin at 5
        assert now() == 3.0
    assert raised.value.__notes__ == ["not retried: the next attempt would begin after max_elapsed=4 s"]


@virtual
async def test_max_elapsed_counts_the_wait_for_a_limiter() -> None:
    class Slow:
        async def __aenter__(self) -> None:
            await asyncio.sleep(5)

        async def __aexit__(self, *exc: object) -> None:
            pass

    calls: list[object] = []

    async def handler(job: object) -> None:
        calls.append(job)

    @asynccontextmanager
    async def limiter() -> AsyncIterator[None]:
        await asyncio.sleep(5)
        yield

    retry = Retry(max_elapsed=3.0)
    async with WorkerPool(handler, workers=1, retry=retry, limiter=lambda job: limiter()) as pool:
        with pytest.raises(JobExpired):
            await pool.run("x")
    assert calls == []


# -- The budget ------------------------------------------------------------------------------------------------------


@virtual
async def test_the_budget_bounds_retries_by_fresh_work(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(0.01)
        raise OSError("down")

    budget = RetryBudget(ratio=0.2, min_per_second=1, window=10)
    async with WorkerPool(handler, workers=10, retry=Retry(attempts=10, budget=budget)) as pool:
        outcomes = await pool.outcomes(range(1000))
        stats = pool.stats
    assert stats.retries == 210
    assert stats.retries_rejected == 1000
    noted = [outcome for outcome in outcomes if isinstance(outcome, Failed) and hasattr(outcome.error, "__notes__")]
    assert len(noted) == 1000
    assert noted[0].error.__notes__[0].startswith("not retried: the retry budget is spent, RetryBudget(ratio=0.2")
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 10  # the 1st, 2nd, 4th ... 512th


@virtual
async def test_the_budget_comes_back_with_time() -> None:
    retry = Retry(attempts=2, jitter=False, budget=RetryBudget(ratio=0, min_per_second=0.2, window=10))
    async with WorkerPool(Flaky(), workers=1, retry=retry) as pool:
        for _ in range(3):
            outcomes = await pool.outcomes(range(5))
            assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == 2
            await asyncio.sleep(12)


def test_in_any_window_there_are_no_more_retries_than_the_budget_allows() -> None:
    random = Random(5)
    for _ in range(50):
        budget = RetryBudget(ratio=random.random(), min_per_second=random.random() * 3, window=10)
        tally = budget.start()
        time = 0.0
        fresh: list[float] = []
        retries: list[float] = []
        for _ in range(500):
            time += random.expovariate(5)
            count = random.choice((0, 0, 1, 10))
            fresh += [time] * count
            for _ in range(count):
                tally.deposit(time)
            if random.random() < 0.7 and tally.withdraw(time):
                retries.append(time)
        for end in retries:
            made = sum(end - 10 < when <= end for when in retries)
            # Counted in tenths of the window: what was accepted up to one tenth before it counts too.
            work = sum(end - 11 < when <= end for when in fresh)
            assert made <= budget.ratio * work + budget.min_per_second * 10 + 1e-9


@virtual
async def test_one_error_object_is_told_once() -> None:
    error = OSError("always the same")

    async def handler(job: object) -> None:
        raise error

    async with WorkerPool(handler, workers=1, retry=Retry(budget=RetryBudget(ratio=0, min_per_second=0))) as pool:
        await pool.outcomes(range(10))
    assert len(error.__notes__) == 1


# -- Cancelling, pausing, resizing, closing while jobs are delayed -----------------------------------------------------


@virtual
async def test_cancelling_a_delayed_job_settles_it_at_once() -> None:
    async with WorkerPool(Flaky(seconds=0.5), workers=1, retry=Retry(backoff=5, jitter=False)) as pool:
        handle = await pool.submit("x")
        await asyncio.sleep(0.6)
        assert pool.stats.delayed == 1
        assert handle.cancel()
        outcome = await handle.outcome()
        assert isinstance(outcome, Cancelled)
        assert (outcome.reason, outcome.started, outcome.attempts) == (CancelReason.HANDLE, True, 1)
        assert (outcome.worker, outcome.seconds_running) == (1, 0.5)
        assert pool.stats.delayed == 0
        assert_conserved(pool)
        await pool.join()
    assert now() == 0.6


@virtual
async def test_a_job_that_came_back_and_is_queued_can_be_cancelled() -> None:
    async with WorkerPool(Flaky(seconds=0.5), workers=1, retry=SURE) as pool:
        handle = await pool.submit("x")
        await asyncio.sleep(0.55)
        pool.pause()
        await asyncio.sleep(1)
        assert (pool.stats.delayed, pool.stats.queued) == (0, 1)  # the pause stops the taking, not the timer
        assert handle.cancel()
        outcome = await handle.outcome()
        assert isinstance(outcome, Cancelled)
        assert (outcome.started, outcome.attempts, outcome.seconds_running) == (True, 1, 0.5)


@virtual
async def test_if_the_caller_of_run_is_cancelled_so_is_its_delayed_job() -> None:
    async with WorkerPool(Flaky(), workers=1, retry=Retry(backoff=5, jitter=False)) as pool:
        task = asyncio.create_task(pool.run("x"))
        cancel_soon(task, 1.0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (pool.stats.delayed, pool.stats.cancelled) == (0, 1)


@virtual
async def test_leaving_a_stream_cancels_its_delayed_jobs() -> None:
    async with WorkerPool(Flaky(seconds=0.1), workers=4, retry=Retry(backoff=5, jitter=False)) as pool:
        async with pool.outcomes(range(4)):
            pass
        stream = pool.outcomes(range(4))
        step = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(0.2)
        assert pool.stats.delayed == 4
        step.cancel()
        await stream.aclose()
        assert (pool.stats.delayed, pool.stats.cancelled) == (0, 4)


@virtual
async def test_draining_waits_for_delayed_jobs() -> None:
    async with WorkerPool(Flaky(2), workers=1, retry=Retry(backoff=5, jitter=False)) as pool:
        handles = [await pool.submit(job) for job in range(3)]
        await settle()
        report = await pool.close()
    assert not report
    assert [await handle for handle in handles] == [0, 1, 2]
    assert now() == 10.0


@virtual
async def test_cancelling_the_pool_hands_delayed_jobs_back_as_unfinished() -> None:
    pool = WorkerPool(Flaky(), workers=1, retry=Retry(backoff=5, jitter=False))
    await pool.start()
    handles = [await pool.submit(job) for job in range(3)]
    await settle()
    pool.pause()
    fresh = await pool.submit(3)
    report = await pool.close(drain_timeout=0)
    assert [(entry.job, entry.started) for entry in report.unfinished] == [(0, True), (1, True), (2, True), (3, False)]
    for handle in [*handles, fresh]:
        with pytest.raises(JobCancelled):
            await handle
    assert pool.stats.delayed == 0
    assert_conserved(pool)


@virtual
async def test_a_drain_that_takes_too_long_hands_back_what_is_delayed() -> None:
    pool = WorkerPool(Flaky(), workers=1, retry=Retry(backoff=5, jitter=False))
    await pool.start()
    await pool.submit("x")
    report = await pool.close(drain_timeout=1.0)
    assert [entry.job for entry in report.unfinished] == ["x"]
    assert now() == 1.0


@virtual
async def test_join_waits_for_delayed_jobs() -> None:
    async with WorkerPool(Flaky(), workers=1, retry=Retry(backoff=5, jitter=False)) as pool:
        await pool.submit("x")
        await pool.join()
        assert pool.stats.succeeded == 1
        assert now() == 5.0


@virtual
async def test_resizing_does_not_touch_delayed_jobs() -> None:
    async with WorkerPool(Flaky(seconds=0.01), workers=4, retry=SURE) as pool:
        handles = [await pool.submit(job) for job in range(8)]
        await asyncio.sleep(0.05)
        assert pool.stats.delayed == 8
        pool.resize(1)
        assert [await handle for handle in handles] == [*range(8)]
        assert pool.stats.peak_running == 4


@virtual
async def test_while_too_many_are_delayed_the_intake_waits() -> None:
    async with WorkerPool(
        Flaky(), workers=2, queue_size=0, retry=Retry(backoff=5, jitter=False), max_delayed=3
    ) as pool:
        submitted: list[int] = []

        async def submit() -> None:
            for job in range(10):
                await pool.submit(job)
                submitted.append(job)

        task = asyncio.create_task(submit())
        await asyncio.sleep(4)
        assert 3 <= pool.stats.delayed <= 3 + 2
        assert len(submitted) == pool.stats.delayed
        with pytest.raises(QueueFull, match="delayed"):
            pool.submit_nowait(99)
        await task
        await pool.join()
        assert pool.stats.succeeded == 10


@virtual
async def test_a_cancelled_delayed_job_lets_the_intake_go_on() -> None:
    async with WorkerPool(
        Flaky(), workers=1, retry=Retry(backoff=500, max_backoff=500, jitter=False), max_delayed=1
    ) as pool:
        first = await pool.submit("first")
        await settle()
        second = asyncio.create_task(pool.submit("second"))
        await asyncio.sleep(1)
        assert not second.done()
        first.cancel()
        handle = await second
        handle.cancel()


@virtual
async def test_the_resource_is_replaced_after_an_attempt_whose_cause_spoils_it() -> None:
    entered: list[int] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        entered.append(len(entered))
        yield entered[-1]

    async def handler(job: Any, held: int) -> int:
        if current_job().attempt == 1:
            raise RetryAfter(1) from job
        return held

    async with WorkerPool(handler, workers=1, resource=resource, retry=SURE) as pool:
        assert await pool.run(ValueError()) == 0
        assert await pool.run(ConnectionError()) == 1


@fuzzed
async def test_a_job_that_the_observer_cancels_as_it_is_put_off_ends_once() -> None:
    handles: list[Any] = []

    def observer(event: object) -> None:
        if isinstance(event, JobRetrying):
            assert handles[event.id - 1].cancel()

    async with WorkerPool(Flaky(), workers=2, retry=SURE, observers=[observer]) as pool:
        for job in range(4):
            pool.pause()
            handles.append(pool.submit_nowait(job))
            pool.resume()
        await pool.join()
        assert (pool.stats.cancelled, pool.stats.delayed) == (4, 0)
        assert_conserved(pool)


# -- What errors and functions of the user may do ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An error whose attributes cannot be set, as typed code has them."""

    number: int


class TakesNoNotes(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


class TooMany(RetryAfter):
    """Advice that does not call the `__init__` that it should."""

    def __init__(self, response: str) -> None:
        self.response = response


class Unreadable(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no cause")


@pytest.mark.parametrize("error", [Frozen(1), TakesNoNotes(), TooMany("x"), Unreadable()], ids=repr)
@pytest.mark.parametrize("retry", [None, Retry(budget=RetryBudget(ratio=0, min_per_second=0))], ids=["none", "retry"])
def test_no_error_keeps_its_job_from_an_outcome(error: Exception, retry: Retry | None) -> None:
    async def handler(job: object) -> None:
        raise error

    async def main() -> None:
        async with WorkerPool(handler, workers=1, retry=retry) as pool:
            outcomes = await pool.outcomes(range(3))
            assert [outcome.error for outcome in outcomes if isinstance(outcome, Failed)] == [error] * 3
            assert_conserved(pool)
            assert pool.stats.retries_rejected == (0 if retry is None else 3)

    run(main)


@fuzzed
async def test_functions_of_the_user_see_the_law_kept_and_may_cancel_the_job() -> None:
    handles: list[Any] = []

    def on(error: BaseException) -> bool:
        assert_conserved(pool)
        assert handles[int(str(error))].cancel()
        return True

    def observer(event: object) -> None:
        assert_conserved(pool)

    async def handler(job: int) -> None:
        raise OSError(job)

    pool = WorkerPool(handler, workers=2, retry=Retry(on=on, jitter=False), observers=[observer])
    async with pool:
        pool.pause()
        handles += [pool.submit_nowait(job) for job in range(4)]
        pool.resume()
        await pool.join()
        await asyncio.sleep(10)  # nobody calls a job stuck that has ended
        assert (pool.stats.failed, pool.stats.retries, pool.stats.stuck) == (4, 0, 0)
        for handle in handles:
            await handle.outcome()


@virtual
async def test_a_job_that_waits_only_because_too_many_are_delayed_is_no_deadlock() -> None:
    async def handler(job: str) -> str:
        if job == "flaky" and current_job().attempt == 1:
            raise OSError
        if job == "parent":
            await pool.submit("child")
        return job

    async with WorkerPool(handler, workers=1, retry=Retry(backoff=1, jitter=False), max_delayed=1) as pool:
        flaky = await pool.submit("flaky")
        parent = pool.submit_nowait("parent")
        assert await parent == "parent"
        assert await flaky == "flaky"
        await pool.join()


@virtual
async def test_a_deadlock_that_comes_up_when_they_come_back_is_one() -> None:
    async def handler(job: str) -> str:
        if job == "flaky" and current_job().attempt == 1:
            raise OSError
        if job == "parent":
            await pool.submit("child")
        return job

    retry = Retry(backoff=1, jitter=False)
    async with WorkerPool(handler, workers=1, queue_size=1, retry=retry, max_delayed=1) as pool:
        flaky = await pool.submit("flaky")
        parent = pool.submit_nowait("parent")
        with pytest.raises(PoolDeadlock):
            await parent
        assert await flaky == "flaky"


@virtual
async def test_the_budget_counts_work_when_it_was_accepted() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(100)
        raise OSError

    retry = Retry(attempts=2, budget=RetryBudget(ratio=0.2, min_per_second=1))
    async with WorkerPool(handler, workers=1000, retry=retry) as pool:
        await pool.outcomes(range(1000))
        assert pool.stats.retries == 10


@virtual
async def test_without_a_backoff_no_attempt_waits_however_many_there_are() -> None:
    assert Retry(attempts=5000, backoff=0.0).delay(4000, OSError(), Random(0)) == 0.0


class HandlesThatDoNotTellTheTime(VirtualTimeLoop):
    """As uvloop's, whose timers that are due at once are plain handles."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        if when <= self.time():
            return self.call_soon(callback, *args, context=context)
        return super().call_at(when, callback, *args, context=context)


def test_timers_need_not_tell_when_they_are_due() -> None:
    async def main() -> None:
        async with WorkerPool(Flaky(2), workers=3, retry=Retry(backoff=0)) as pool:
            assert len(await pool.outcomes(range(500))) == 500
            assert pool.stats.retries == 1000

    with asyncio.Runner(loop_factory=HandlesThatDoNotTellTheTime) as runner:
        runner.run(main())


@virtual
async def test_the_line_that_failed_is_told_also_of_a_job_of_the_same_handler() -> None:
    async def handler(job: int) -> None:
        if job:
            await pool.run(job - 1)
        else:
            raise OSError("the cause")

    async with WorkerPool(handler, workers=3, queue_size=3) as pool:
        with pytest.raises(OSError) as raised:
            await pool.run(2)
    lines = [str(entry.statement).strip() for entry in raised.traceback if entry.name == "handler"]
    assert lines == ["await pool.run(job - 1)", "await pool.run(job - 1)", 'raise OSError("the cause")']


@virtual
async def test_an_error_object_that_is_raised_again_and_again_does_not_grow() -> None:
    error = OSError("always the same")

    def fail() -> None:
        raise error

    async def handler(job: int) -> None:
        fail()

    async with WorkerPool(handler, workers=2, retry=Retry(backoff=0)) as pool:
        await pool.outcomes(range(100))
    assert [entry.name for entry in traceback.extract_tb(error.__traceback__)] == ["handler", "fail"]


@virtual
async def test_a_window_that_was_asked_for_holds_delayed_jobs_too() -> None:
    async with WorkerPool(Flaky(), workers=2, retry=Retry(backoff=5, jitter=False)) as pool:
        group = pool.group(window=2)
        tasks = [asyncio.create_task(group.submit(job)) for job in range(4)]
        await asyncio.sleep(1)
        assert (group._channel.unread, pool.stats.delayed) == (2, 2)
        for task in tasks:
            task.cancel()
        await group.aclose()


def test_a_subclass_of_advice_can_be_pickled() -> None:
    advice = pickle.loads(pickle.dumps(TooMany("response")))
    assert isinstance(advice, TooMany)
    assert (advice.response, advice.seconds) == ("response", 0.0)


@virtual
async def test_a_deadlock_that_comes_up_when_the_delayed_are_cancelled_is_one() -> None:
    async def handler(job: str) -> None:
        if job == "flaky":
            raise OSError
        if job == "parent":
            await asyncio.sleep(0.1)  # so that "y" is in the line before
            await pool.submit("child")

    retry = Retry(backoff=5, jitter=False)
    async with WorkerPool(handler, workers=1, queue_size=2, retry=retry, max_delayed=1) as pool:
        flaky = await pool.submit("flaky")
        parent = pool.submit_nowait("parent")
        other = pool.submit_nowait("x")
        first_in_line = asyncio.create_task(pool.submit("y"))
        await asyncio.sleep(1)
        flaky.cancel()
        with pytest.raises(PoolDeadlock):
            await parent
        await other
        await first_in_line


@virtual
async def test_jobs_that_are_too_late_touch_no_resource() -> None:
    entered = 0

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        nonlocal entered
        entered += 1
        yield

    async def handler(job: int, _: None) -> None:
        await asyncio.sleep(1)

    events: list[Any] = []
    retry = Retry(max_elapsed=0.5)
    async with WorkerPool(
        handler, workers=1, queue_size=20, resource=resource, retry=retry, observers=[events.append]
    ) as pool:
        outcomes = await pool.outcomes(range(20), ordered=True)
    assert all(isinstance(outcome, Failed) and isinstance(outcome.error, JobExpired) for outcome in outcomes)
    assert [outcome.attempts for outcome in outcomes] == [1] + [0] * 19
    assert sum(isinstance(event, JobStarted) for event in events) == 1
    assert entered == 2  # the first job ran into its end, and was cancelled


class EarlyTimers(VirtualTimeLoop):
    """Timers come half a millisecond early, as uvloop's do."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return super().call_at(max(self.time(), when - 0.0005), callback, *args, context=context)


def test_an_attempt_that_ran_into_max_elapsed_is_the_last_though_timers_come_early() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with WorkerPool(handler, workers=5, retry=Retry(backoff=0, max_elapsed=1.0)) as pool:
            outcomes = await pool.outcomes(range(5))
            assert [outcome.attempts for outcome in outcomes] == [1] * 5
            assert pool.stats.retries == 0

    with asyncio.Runner(loop_factory=EarlyTimers) as runner:
        runner.run(main())


@virtual
async def test_jobs_that_come_back_go_before_fresh_ones_of_equal_priority_however_often() -> None:
    order: list[int] = []

    async def handler(job: int) -> None:
        order.append(job)
        await asyncio.sleep(0.1)
        if current_job().attempt < 9 and job == 0:
            raise OSError

    retry = Retry(attempts=9, backoff=0, jitter=False)
    async with WorkerPool(handler, workers=1, queue_size=9, retry=retry, priority=lambda job: 0) as pool:
        for job in range(3):
            pool.submit_nowait(job)
        await pool.join()
    assert order == [
        0,
        1,
        0,
        2,
        *[0] * 7,
    ]  # a backoff takes a turn: by then a fresh one has begun, as long as there are
