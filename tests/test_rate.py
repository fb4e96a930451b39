"""Rate limits: never above the rate in any window, all of the rate if there is work, and nobody held up by others."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from fractions import Fraction
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from asyncpool import (
    Cancelled,
    Failed,
    KeyedRateLimit,
    PoolDeadlock,
    RateLimit,
    Retry,
    Succeeded,
    WorkerPool,
    current_job,
)
from asyncpool.events import JobEnded
from asyncpool.testing import VirtualTimeLoop, run, settle
from tests.helpers import assert_conserved, compute, fuzzed, now, virtual
from tests.laws.witness import FACTORIES


def most_over(starts: list[float], rate: float, per: float) -> float:
    """How many starts more than the rate any window held: the burst that the limit must have had."""
    exact = sorted(Fraction(start) for start in starts)
    interval = Fraction(per) / Fraction(rate)
    most = Fraction(0)
    for first, begin in enumerate(exact):
        for last in range(first, len(exact)):
            most = max(most, last - first + 1 - (exact[last] - begin) / interval)
    return float(most)


class Starts:
    """A handler that notes when each job was started."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.times: list[float] = []
        self.jobs: list[Any] = []

    @staticmethod
    async def nothing(job: Any) -> None:
        """A handler that notes nothing."""

    async def __call__(self, job: Any) -> Any:
        self.times.append(now())
        self.jobs.append(job)
        await asyncio.sleep(self.seconds)
        return job


# -- The limit itself ------------------------------------------------------------------------------------------------


def test_one_start_in_each_interval() -> None:
    limit = RateLimit(4)
    assert [limit.take(when) for when in (0.0, 0.0, 0.25, 0.3, 0.5)] == [0.0, 0.25, 0.0, 0.2, 0.0]


def test_a_burst_is_saved_up_while_nothing_starts() -> None:
    limit = RateLimit(4, burst=3)
    assert [limit.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.25]
    assert [limit.take(0.5) for _ in range(3)] == [0.0, 0.0, 0.25]
    assert [limit.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.25]


def test_asking_does_not_cost_a_start() -> None:
    limit = RateLimit(4)
    limit.take(0.0)
    for step in range(1, 25):
        assert limit.take(step / 100) > 0
    assert limit.take(0.25) == 0.0


def test_the_interval_may_be_any_time() -> None:
    limit = RateLimit(5, per=60)
    assert [limit.take(0.0), limit.take(0.0), limit.take(12.0)] == [0.0, 12.0, 0.0]


@given(
    st.floats(0.1, 1000),
    st.floats(0.1, 100),
    st.integers(1, 20),
    st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_no_window_holds_more_than_the_rate_and_the_burst(
    rate: float, per: float, burst: int, pauses: list[float]
) -> None:
    limit = RateLimit(rate, per, burst)
    time, starts = 0.0, []
    for pause in pauses:
        time += pause * per / rate
        while not limit.take(time):
            starts.append(time)
    assert most_over(starts, rate, per) <= burst + 1e-6


def test_paused_nothing_starts_and_no_burst_is_saved_up() -> None:
    limit = RateLimit(4, burst=3)
    limit.pause_until(10.0)
    assert limit.take(9.0) == 1.0
    assert [limit.take(10.0) for _ in range(2)] == [0.0, 0.25]
    limit.pause_until(1.0)  # over already
    assert limit.take(10.25) == 0.0


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ((0,), ValueError, "rate must be a finite number > 0, got 0"),
        (("5",), TypeError, "rate must be a number, got '5'"),
        ((float("inf"),), ValueError, "rate must be a finite number > 0, got inf"),
        ((1, 0), ValueError, "per must be a finite number of seconds > 0, got 0"),
        ((1e-320,), ValueError, "per / rate * burst must be a finite number of seconds, got 1.0 / 1e-320 * 1"),
        ((10**400,), ValueError, "rate must be a finite number > 0, got 1000"),
        ((1, 1, 10**400), ValueError, "per / rate * burst must be a finite number of seconds"),
        ((1, 1, 0), ValueError, "burst must be >= 1, got 0"),
        ((1, 1, 1.5), TypeError, "burst must be an int, got 1.5"),
    ],
    ids=str,
)
def test_the_limit_says_the_rule_and_the_value(arguments: Any, kind: type[Exception], said: str) -> None:
    for make in (RateLimit, lambda *numbers: RateLimit.per_key(str, *numbers)):
        with pytest.raises(kind) as raised:
            make(*arguments)
        assert said in str(raised.value)


def test_the_key_is_a_function() -> None:
    with pytest.raises(TypeError, match="key must be callable, got 'host'"):
        RateLimit.per_key("host", 5)  # type: ignore[arg-type]


def test_pause_for_needs_a_loop_and_seconds() -> None:
    with pytest.raises(RuntimeError):
        RateLimit(1).pause_for(1)

    async def main() -> None:
        with pytest.raises(ValueError, match="seconds must be"):
            RateLimit(1).pause_for(float("nan"))
        limit = RateLimit(1)
        limit.pause_for(-1)  # as a Retry-After header whose date is past
        assert not limit.take(now())

    run(main)


def test_limits_show_what_they_are() -> None:
    assert repr(RateLimit(5, burst=2)) == "RateLimit(5, per=1, burst=2)"
    assert repr(RateLimit.per_key(str, 5)) == "<RateLimit(5, per=1, burst=1) for each of 0 keys>"


@virtual
async def test_idle_keys_are_forgotten() -> None:
    limits: KeyedRateLimit = RateLimit.per_key(lambda job: job, rate=1)
    for job in range(10_000):
        limits(job).take(now())
        await asyncio.sleep(0.01)  # so about a hundred are not idle
        assert len(limits) <= 256
    assert limits(9_999).take(now()) > 0  # those that are not idle are not forgotten


@virtual
async def test_a_key_that_jobs_wait_for_is_not_forgotten() -> None:
    limits: KeyedRateLimit = RateLimit.per_key(lambda job: job, rate=1)
    starts = Starts()
    async with WorkerPool(starts, workers=1, limiter=limits) as pool:
        handles = [pool.submit_nowait("x") for _ in range(2)]
        await settle()
        pool.pause()
        await asyncio.sleep(50)  # the second is released, and waits for a worker: long enough to look idle
        limit = limits("x")
        for other in range(1000):
            limits(f"other {other}")
        assert limits("x") is limit
        pool.resume()
        for handle in handles:
            await handle
    assert limit.is_idle(now() + 1)


# -- One limit for all jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 50])
def test_a_pool_starts_as_many_as_the_rate_allows_and_no_more(burst: int, workers: int) -> None:
    async def main() -> None:
        starts = Starts()
        async with WorkerPool(starts, workers=workers, limiter=RateLimit(8, burst=burst)) as pool:
            await pool.outcomes(range(80))
        assert starts.times == [max(0, number - burst + 1) / 8 for number in range(80)]
        assert starts.jobs == [*range(80)]

    run(main)


@fuzzed
async def test_under_random_load_no_window_holds_more() -> None:
    random = Random(2)
    starts = Starts()
    async with WorkerPool(starts, workers=3, queue_size=2, limiter=RateLimit(8, burst=2)) as pool:
        for _ in range(60):
            await pool.submit(0)
            if random.random() < 0.3:
                await asyncio.sleep(random.random())
    assert most_over(starts.times, 8, 1) <= 2 + 1e-9


@virtual
async def test_while_the_limit_is_closed_jobs_hold_neither_worker_nor_more_room_than_the_queues() -> None:
    async with WorkerPool(Starts(), workers=2, queue_size=3, limiter=RateLimit(1)) as pool:
        tasks = [asyncio.create_task(pool.submit(job)) for job in range(9)]
        await settle()
        stats = pool.stats
        assert stats.running == 0
        assert stats.queued <= 3 + 2  # there were two idle workers when they were let in
        assert_conserved(pool)
        for task in tasks:
            await task


@virtual
async def test_with_no_waiting_room_jobs_are_accepted_as_they_start() -> None:
    starts = Starts()
    async with WorkerPool(starts, workers=2, queue_size=0, limiter=RateLimit(4)) as pool:
        await pool.outcomes(range(8))
    assert starts.times == [number / 4 for number in range(8)]


@virtual
async def test_urgent_jobs_go_first_while_all_wait_for_the_rate() -> None:
    starts = Starts()
    async with WorkerPool(starts, workers=5, queue_size=10, limiter=RateLimit(1), priority=lambda job: job) as pool:
        for job in (5, 4, 3):
            await pool.submit(job)
        await asyncio.sleep(0.5)
        await pool.submit(1)
    assert starts.jobs == [5, 1, 3, 4] or starts.jobs == [3, 1, 4, 5]


@virtual
async def test_two_pools_keep_a_limit_together() -> None:
    limit = RateLimit(8, burst=2)
    one, other = Starts(), Starts()
    async with (
        WorkerPool(one, workers=2, limiter=limit) as first,
        WorkerPool(other, workers=2, limiter=limit) as second,
    ):
        handles = [await pool.submit(0) for _ in range(10) for pool in (first, second)]
        for handle in handles:
            await handle
    assert sorted(one.times + other.times) == [max(0, number - 1) / 8 for number in range(20)]
    assert len(one.times) == len(other.times) == 10


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("is_keyed", [False, True])
def test_of_pools_that_share_a_limit_none_starves(is_keyed: bool, workers: int) -> None:
    async def main() -> None:
        started: Counter[str] = Counter()
        limit = RateLimit(10)
        limiter: Any = (lambda job: limit) if is_keyed else limit

        async def handler(job: str) -> None:
            started[job] += 1

        pools = [WorkerPool(handler, workers=workers, queue_size=5000, limiter=limiter) for _ in "abc"]
        for pool, name in zip(pools, "abc", strict=True):
            await pool.start()
            for _ in range(500):
                pool.submit_nowait(name)
        await asyncio.sleep(30)
        assert sum(started.values()) == pytest.approx(300, abs=2)
        assert max(started.values()) - min(started.values()) <= 2, started
        for pool in pools:
            await pool.close(drain_timeout=0)
        assert limit.users == 0

    run(main)


@virtual
async def test_jobs_that_are_too_late_use_up_no_starts() -> None:
    starts = Starts()
    ends: list[float] = []
    retry = Retry(max_elapsed=2.0)
    async with WorkerPool(starts, workers=2, queue_size=20, limiter=RateLimit(1), retry=retry) as pool:
        late = [pool.submit_nowait(job) for job in range(10)]
        await asyncio.sleep(1.5)
        fresh = await pool.submit("fresh")
        for handle in late:
            await handle.outcome()
            ends.append(now())
        await fresh
    assert ends == [1.5] * 2 + [2.0] * 8
    assert starts.jobs == [0, 1, "fresh"]
    assert starts.times == [0.0, 1.0, 2.0]


@virtual
async def test_each_attempt_is_a_start() -> None:
    times: list[float] = []

    async def handler(job: object) -> None:
        times.append(now())
        if current_job().attempt < 3:
            raise OSError

    retry = Retry(backoff=0.0)
    async with WorkerPool(handler, workers=2, limiter=RateLimit(4), retry=retry) as pool:
        await pool.outcomes(range(3))
    assert times == [number / 4 for number in range(9)]


@virtual
async def test_a_handler_pauses_the_limit() -> None:
    limit = RateLimit(8)
    times: list[float] = []

    async def handler(job: int) -> None:
        times.append(now())
        if job == 2:
            limit.pause_for(10)

    async with WorkerPool(handler, workers=2, limiter=limit) as pool:
        await pool.outcomes(range(4))
    assert times == [0.0, 0.125, 0.25, 10.25]


@virtual
async def test_closing_while_the_limit_is_closed_drains_at_the_rate_or_hands_back() -> None:
    starts = Starts()
    async with WorkerPool(starts, workers=2, limiter=RateLimit(1)) as pool:
        for job in range(4):
            await pool.submit(job)
    assert starts.times == [0.0, 1.0, 2.0, 3.0]
    pool = WorkerPool(starts, workers=2, limiter=RateLimit(1))
    await pool.start()
    for job in range(4):
        await pool.submit(job)
    report = await pool.close(drain_timeout=1.5)
    assert [entry.job for entry in report.unfinished] == [2, 3]


# -- A limit of its own for each job -----------------------------------------------------------------------------------


def host(job: tuple[str, int]) -> str:
    return job[0]


@virtual
async def test_jobs_for_other_hosts_go_past_those_that_wait() -> None:
    starts = Starts(seconds=0.1)
    jobs = [("slow", number) for number in range(10)] + [(f"host {number}", number) for number in range(10)]
    async with WorkerPool(starts, workers=2, queue_size=0, limiter=RateLimit.per_key(host, 1)) as pool:
        await pool.outcomes(jobs)
    by_host = {name: when for (name, _), when in zip(starts.jobs, starts.times, strict=True)}
    assert max(by_host[f"host {number}"] for number in range(10)) < 0.6
    slow = [(job[1], when) for job, when in zip(starts.jobs, starts.times, strict=True) if job[0] == "slow"]
    assert [number for number, _ in slow] == [*range(10)]  # in their order
    assert [when for _, when in slow] == [float(number) for number in range(10)]


@virtual
async def test_jobs_that_wait_for_their_host_are_delayed_and_hold_nothing() -> None:
    async with WorkerPool(Starts(), workers=2, limiter=RateLimit.per_key(host, 1)) as pool:
        handles = [pool.submit_nowait(("x", number)) for number in range(5)]
        await settle()
        stats = pool.stats
        assert (stats.delayed, stats.queued, stats.running, stats.workers) == (4, 0, 0, 2)
        assert_conserved(pool)
        assert handles[2].cancel()
        assert pool.stats.delayed == 3
        outcome = await handles[2].outcome()
        assert isinstance(outcome, Cancelled)
        assert (outcome.started, outcome.attempts) == (False, 0)
        await pool.join()
    assert now() == 3.0


@pytest.mark.parametrize("mode", FACTORIES)
@pytest.mark.parametrize("priority", [None, lambda job: job[1] % 3])
def test_no_host_gets_more_than_its_rate_under_random_load(mode: str, priority: Any) -> None:
    async def main(random: Random) -> None:
        asyncio.get_running_loop().set_task_factory(FACTORIES[mode])
        times: dict[str, list[float]] = {}
        limits: KeyedRateLimit = RateLimit.per_key(host, 8, burst=2)

        async def handler(job: tuple[str, int]) -> None:
            times.setdefault(job[0], []).append(now())
            await asyncio.sleep(random.choice((0, 0, 0.1)))
            if random.random() < 0.2:
                raise OSError
            if random.random() < 0.02:
                limits(job).pause_for(0.5)

        async with WorkerPool(
            handler,
            workers=random.randint(1, 3),
            queue_size=random.randint(0, 3),
            limiter=limits,
            retry=Retry(attempts=4, backoff=0.05, jitter=False),
            priority=priority,
            max_delayed=random.choice((1, 5, 100)),
        ) as pool:
            handles = []
            for number in range(60):
                handles.append(await pool.submit((random.choice("abc"), number)))
                action = random.random()
                if action < 0.1:
                    random.choice(handles).cancel()
                elif action < 0.15:
                    pool.pause()
                    await asyncio.sleep(random.random())
                    pool.resume()
                elif action < 0.2:
                    pool.resize(random.randint(1, 4))
                elif action < 0.5:
                    await asyncio.sleep(random.random() / 4)
                assert_conserved(pool)
            await pool.join()
            assert all(handle.done() for handle in handles)
            assert pool.stats.delayed == 0
            for handle in handles:
                await handle.outcome()
        for starts in times.values():
            assert most_over(starts, 8, 1) <= 2 + 1e-9

    for seed in range(8):
        run(lambda seed=seed: main(Random(seed)), seed=seed)


@virtual
async def test_while_too_many_are_parked_the_intake_waits() -> None:
    starts = Starts()
    async with WorkerPool(starts, workers=1, queue_size=1, limiter=RateLimit.per_key(host, 1), max_delayed=3) as pool:
        tasks = [asyncio.create_task(pool.submit(("x", number))) for number in range(12)]
        await asyncio.sleep(0.5)
        assert 3 <= pool.stats.delayed <= 3 + 2
        assert pool.stats.submitted < 8
        for task in tasks:
            await task
    assert starts.times == [float(number) for number in range(12)]


@virtual
async def test_a_released_job_that_is_cancelled_lets_the_next_of_its_host_go_on() -> None:
    async def handler(job: tuple[str, int]) -> None:
        await asyncio.sleep(10 if job[0] == "other" else 0.1)

    async with WorkerPool(handler, workers=1, limiter=RateLimit.per_key(host, 1)) as pool:
        handles = [pool.submit_nowait(("x", number)) for number in range(3)]
        await asyncio.sleep(0.5)
        assert pool.stats.delayed == 2
        blocker = pool.submit_nowait(("other", 0))
        await asyncio.sleep(2)
        assert (pool.stats.delayed, pool.stats.queued) == (1, 1)  # released, and waits for the worker
        assert handles[1].cancel()
        assert (pool.stats.delayed, pool.stats.queued) == (0, 1)
        await handles[2]
        await blocker


@virtual
async def test_a_released_job_that_is_too_late_lets_the_next_of_its_host_go_on() -> None:
    limits = RateLimit.per_key(host, 1)

    async def handler(job: tuple[str, int]) -> None:
        await asyncio.sleep(10 if job[0] == "other" else 0.1)

    async with WorkerPool(handler, workers=1, queue_size=9, limiter=limits, retry=Retry(max_elapsed=30)) as pool:
        handles = [pool.submit_nowait(("x", number)) for number in range(3)]
        await asyncio.sleep(0.5)
        blocker = pool.submit_nowait(("other", 0))
        await asyncio.sleep(2)
        assert (pool.stats.delayed, pool.stats.queued) == (1, 1)  # released, and waits for the worker
        pool.pause()
        await asyncio.sleep(40)
        fresh = pool.submit_nowait(("x", 9))
        pool.resume()
        assert [type(await handle.outcome()) for handle in handles] == [Succeeded, Failed, Failed]
        await fresh
        await blocker
    assert not limits(("x", 0)).users


@virtual
async def test_when_the_last_parked_job_is_cancelled_nothing_is_left_of_its_lane() -> None:
    loop: Any = asyncio.get_running_loop()
    limit = RateLimit(1, per=1000)
    async with WorkerPool(Starts(), workers=1, limiter=lambda job: limit) as pool:
        handles = [pool.submit_nowait(job) for job in range(4)]
        await settle()
        assert (pool.stats.delayed, limit.users) == (3, 1)
        for handle in handles[1:]:
            assert handle.cancel()
        assert (pool.stats.delayed, limit.users) == (0, 0)
        assert all(timer.cancelled() for timer in loop._scheduled)


@virtual
async def test_nothing_is_kept_of_the_context_managers_of_jobs() -> None:
    class Job:
        """What can be watched."""

    alive: weakref.WeakSet[Job] = weakref.WeakSet()

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield

    def jobs() -> Iterator[Job]:
        for _ in range(500):
            job = Job()
            alive.add(job)
            yield job

    limiters = itertools.cycle([None, manager])

    def limiter(job: Job) -> Any:
        make = next(limiters)
        return None if make is None else make()

    async with WorkerPool(Starts.nothing, workers=2, limiter=limiter) as pool:
        async for outcome in pool.outcomes(jobs()):
            assert isinstance(outcome, Succeeded)
            del outcome
        gc.collect()
        assert len(alive) <= 3  # the last ones are in the hands of the loop above


@virtual
async def test_a_job_that_waits_for_room_while_parked_ones_are_still_to_come_is_no_deadlock() -> None:
    limit = RateLimit(1)

    async def handler(job: str) -> str:
        if job == "parent":
            await pool.submit("child")
        return job

    async with WorkerPool(
        handler, workers=1, max_delayed=1, limiter=lambda job: limit if job == "limited" else None
    ) as pool:
        handles = [pool.submit_nowait(job) for job in ("limited", "limited", "parent")]
        assert [await handle for handle in handles] == ["limited", "limited", "parent"]


@virtual
async def test_a_job_that_comes_back_goes_before_the_fresh_ones_of_its_host() -> None:
    order: list[tuple[int, int]] = []

    async def handler(job: tuple[str, int]) -> None:
        order.append((job[1], current_job().attempt))
        if job[1] == 0 and current_job().attempt == 1:
            raise OSError

    retry = Retry(backoff=0.5, jitter=False)
    async with WorkerPool(handler, workers=1, limiter=RateLimit.per_key(host, 1), retry=retry) as pool:
        for number in range(4):
            pool.submit_nowait(("x", number))
        await pool.join()
    assert order == [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1)]


@virtual
async def test_observers_are_not_told_when_the_rate_opens_and_closes() -> None:
    events: list[Any] = []
    async with WorkerPool(Starts(), workers=1, limiter=RateLimit(8), observers=[events.append]) as pool:
        await pool.outcomes(range(10))
    assert {type(event).__name__ for event in events} == {
        "PoolStarted",
        "JobAccepted",
        "JobStarted",
        "JobEnded",
        "PoolStopping",
        "PoolEnded",
    }


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    limit = RateLimit(4)
    limit.pause_until(10.0)
    limit.pause_until(5.0)
    assert limit.take(9.0) == 1.0


@virtual
async def test_of_two_pools_that_share_limits_neither_goes_above_the_rate() -> None:
    limits: KeyedRateLimit = RateLimit.per_key(host, 8)
    starts = Starts()
    async with (
        WorkerPool(starts, workers=2, limiter=limits) as one,
        WorkerPool(starts, workers=2, limiter=limits) as two,
    ):
        for number in range(20):
            await one.submit(("x", number))
            await two.submit(("x", number))
    assert starts.times == [number / 8 for number in range(40)]
    assert Counter(starts.jobs) == {("x", number): 2 for number in range(20)}


@virtual
async def test_a_function_may_give_a_limit_a_context_manager_or_none() -> None:
    inside: list[str] = []

    @asynccontextmanager
    async def manager(job: str) -> AsyncIterator[None]:
        inside.append(job)
        yield
        inside.append(f"/{job}")

    slow = RateLimit(1)
    starts = Starts()
    async with WorkerPool(
        starts, workers=1, limiter=lambda job: {"l": slow, "m": manager(job), "n": None}[job[0]]
    ) as pool:
        await pool.outcomes(["l1", "m1", "n1", "l2", "m2", "n2"])
    assert starts.jobs == ["l1", "m1", "n1", "m2", "n2", "l2"]
    assert inside == ["m1", "/m1", "m2", "/m2"]
    assert starts.times[-1] == 1.0


@virtual
async def test_a_function_that_raises_or_gives_something_else_costs_only_its_job() -> None:
    def limits(job: str) -> Any:
        if job == "raises":
            raise LookupError("no limit for this")
        return 5 if job == "five" else None

    async with WorkerPool(Starts(), workers=1, limiter=limits, retry=Retry()) as pool:
        outcomes = await pool.outcomes(["ok", "raises", "five", "fine"], ordered=True)
        assert_conserved(pool)
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Failed, Succeeded]
    assert [outcome.attempts for outcome in outcomes] == [1, 0, 0, 1]
    failures = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    assert str(failures[0]) == "no limit for this"
    assert (
        "must return a RateLimit, a ConcurrencyLimit, an async context manager, None, or a list of these, got 5"
        in str(failures[1])
    )


@virtual
async def test_a_key_that_cannot_be_hashed_costs_only_its_job() -> None:
    async with WorkerPool(Starts(), workers=1, limiter=RateLimit.per_key(lambda job: job, 100)) as pool:
        first, second = await pool.outcomes([["no"], "yes"], ordered=True)
    assert isinstance(first, Failed)
    assert isinstance(first.error, TypeError)
    assert isinstance(second, Succeeded)


@fuzzed
async def test_a_function_that_cancels_the_very_job_it_is_asked_for() -> None:
    handles: list[Any] = []

    def limits(job: int) -> Any:
        assert_conserved(pool)
        if job % 2:
            assert handles[job].cancel()
        if job == 3:
            raise LookupError
        return None

    async with WorkerPool(Starts(), workers=1, limiter=limits) as pool:
        pool.pause()
        handles += [pool.submit_nowait(job) for job in range(5)]
        pool.resume()
        await pool.join()
        assert_conserved(pool)
        stats = pool.stats
        assert (stats.succeeded, stats.cancelled, stats.queued) == (3, 2, 0)


@virtual
async def test_a_more_urgent_job_does_not_wait_for_one_of_its_limit_that_waits_for_a_worker() -> None:
    limit = RateLimit(1)
    order: list[tuple[str, int]] = []

    async def handler(job: tuple[str, int]) -> None:
        order.append(job)
        await asyncio.sleep(0.6)

    def limits(job: tuple[str, int]) -> RateLimit | None:
        return limit if job[0] == "limited" else None

    async with WorkerPool(handler, workers=1, queue_size=20, limiter=limits, priority=lambda job: job[1]) as pool:
        pool.submit_nowait(("limited", 0))
        pool.submit_nowait(("limited", 2))
        await asyncio.sleep(0.7)  # the second was asked for, and is parked
        for _ in range(6):
            pool.submit_nowait(("free", 1))
        await asyncio.sleep(1.3)  # it was released, and is behind those that are free
        pool.submit_nowait(("limited", 0))
        await pool.join()
    free = [("free", 1)] * 3
    assert order == [("limited", 0), *free, ("limited", 0), *free, ("limited", 2)]


@virtual
async def test_a_job_that_waits_for_room_while_all_of_a_limit_wait_for_its_worker_is_a_deadlock() -> None:
    limit = RateLimit(1)

    async def handler(job: str) -> None:
        if job == "parent":
            await pool.submit("child")

    def limits(job: str) -> RateLimit | None:
        return limit if job == "limited" else None

    async with WorkerPool(handler, workers=1, queue_size=50, max_delayed=1, limiter=limits) as pool:
        handles = [pool.submit_nowait(job) for job in ("limited", "limited", "limited", "parent")]
        with pytest.raises(PoolDeadlock):
            await handles.pop()
        for handle in handles:
            await handle


@virtual
async def test_a_parked_job_does_not_hold_a_resource() -> None:
    held = 0

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        nonlocal held
        held += 1
        yield
        held -= 1

    async def handler(job: tuple[str, int], _: None) -> float:
        await asyncio.sleep(0.1)
        return now()

    async with WorkerPool(handler, workers=1, resource=resource, limiter=RateLimit.per_key(host, 1)) as pool:
        waiting = [pool.submit_nowait(("x", number)) for number in range(3)]
        await settle()
        assert await pool.run(("y", 0)) < 0.3
        pool.resize(1)
        assert [await handle for handle in waiting] == pytest.approx([0.1, 1.1, 2.1])
    assert held == 0


@virtual
async def test_parked_jobs_are_handed_back_in_their_order() -> None:
    pool = WorkerPool(Starts(), workers=2, limiter=RateLimit.per_key(host, 1))
    await pool.start()
    for number in range(6):
        await pool.submit(("xy"[number % 2], number))
    report = await pool.close(drain_timeout=0.5)
    assert [entry.job[1] for entry in report.unfinished] == [2, 3, 4, 5]
    assert not any(entry.started for entry in report.unfinished)
    assert_conserved(pool)


def test_a_keyboard_interrupt_in_a_job_leaves_the_others_of_its_limit_to_go_on() -> None:
    async def handler(job: tuple[str, int]) -> None:
        if job[1] == 1:
            raise KeyboardInterrupt

    async def main() -> None:
        pool = WorkerPool(handler, workers=1, limiter=RateLimit.per_key(host, 1))
        await pool.start()
        pools.append(pool)
        handles.extend(pool.submit_nowait(("x", number)) for number in range(4))
        await handles[1].outcome()

    async def go_on() -> None:
        for handle in handles:
            await handle.outcome()
        await pools[0].close()

    pools: list[Any] = []
    handles: list[Any] = []
    loop = VirtualTimeLoop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    loop.run_until_complete(go_on())
    assert pools[0].stats.succeeded == 3
    loop.close()


# -- A function that makes a limit for each call -----------------------------------------------------------------------


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@virtual
async def test_a_function_that_makes_a_limit_for_each_job_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(Starts(), workers=2, limiter=lambda job: RateLimit(1), name="fetch") as pool:
        await pool.map(range(100))
    assert warnings_in(caplog) == [
        "pool 'fetch': the limiter function has returned 11 rate limits, all of them new, so nothing was limited: "
        "return the same RateLimit for jobs that share it, or use RateLimit.per_key"
    ]


@virtual
async def test_a_function_that_keeps_its_limits_and_never_returns_one_again_is_reported_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits: dict[int, RateLimit] = {}
    async with WorkerPool(Starts(), workers=2, limiter=lambda job: limits.setdefault(job, RateLimit(1))) as pool:
        await pool.map(range(999))
        assert warnings_in(caplog) == []
        await pool.map(range(999, 2000))
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("kind", ["shared", "by key", "keyed", "none", "manager"])
@virtual
async def test_a_function_whose_limits_are_used_again_is_not_suspected(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    shared = RateLimit(1000)
    limits = [RateLimit(1000) for _ in range(50)]
    keyed = RateLimit.per_key(lambda job: job, 1000)
    functions: dict[str, Any] = {
        "shared": lambda job: shared,
        "by key": lambda job: limits[job % 50],
        "keyed": keyed,
        "none": lambda job: None,
        "manager": lambda job: asyncio.Semaphore(1),
    }
    async with WorkerPool(Starts(), workers=2, limiter=functions[kind]) as pool:
        await pool.map(range(1100))
    assert warnings_in(caplog) == []


@virtual
async def test_a_start_counts_from_after_those_who_hear_that_other_jobs_were_too_late() -> None:
    starts: list[float] = []

    async def handler(job: int) -> None:
        starts.append(now())

    def take_long(event: object) -> None:
        if isinstance(event, JobEnded) and isinstance(event.outcome, Failed):
            compute(0.03)

    options: dict[str, Any] = {"retry": Retry(attempts=1, max_elapsed=1.0), "observers": [take_long]}
    async with WorkerPool(handler, workers=4, queue_size=20, limiter=RateLimit(20), **options) as pool:
        pool.pause()
        await pool.submit(0)
        await asyncio.sleep(0.99)
        for job in range(1, 4):
            await pool.submit(job)
        compute(0.02)  # so that the first is too late, and its timer has not run
        pool.resume()
        await pool.join()
    assert [start - starts[0] for start in starts] == pytest.approx([0.0, 0.05, 0.1])
