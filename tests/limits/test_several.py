"""Several limits: all are taken together or none, and nobody is held up by a limit that is not theirs."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import (
    AutoScale,
    ConcurrencyLimit,
    DeadLetters,
    Failed,
    RateLimit,
    Retry,
    Succeeded,
    WeightTooLarge,
    WorkerPool,
    current_job,
)
from asyncpool._core.lanes import Lanes
from asyncpool.testing import settle
from tests.helpers import assert_conserved, compute, echo, fuzzed, now, sleeper, virtual


class Starts:
    """A handler that notes when each job was started."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.times: dict[Any, float] = {}

    async def __call__(self, job: Any) -> Any:
        self.times[job] = now()
        await asyncio.sleep(self.seconds)
        return job


# -- All or none -------------------------------------------------------------------------------------------------------


@virtual
async def test_an_attempt_starts_when_all_limits_allow_it() -> None:
    starts = Starts()
    limits = [RateLimit(10), RateLimit(2, burst=2)]
    async with WorkerPool(starts, workers=5, limiter=limits) as pool:
        await pool.map(range(6))
    assert list(starts.times.values()) == pytest.approx([0.0, 0.1, 0.5, 1.0, 1.5, 2.0])


@virtual
async def test_a_job_that_waits_for_one_limit_does_not_use_up_another() -> None:
    slow, shared = RateLimit(1), RateLimit(1000, burst=2)
    starts = Starts()

    def limits(job: str) -> Any:
        return [shared, slow] if job.startswith("slow") else shared

    async with WorkerPool(starts, workers=5, limiter=limits) as pool:
        await pool.run("slow 0")  # takes one of the burst of two, and closes the slow one
        handles = [pool.submit_nowait(f"slow {n}") for n in range(1, 4)]
        await settle()
        assert pool.stats.delayed == 3
        shared.pause_for(0.0)
        await pool.run("fast")  # takes the other: none of those that wait has
        assert now() == 0.0
        for handle in handles:
            await handle
    assert list(starts.times.values()) == [0.0, 0.0, 1.0, 2.0, 3.0]


@virtual
async def test_jobs_that_wait_are_not_moved_from_limit_to_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand jobs wait for two limits of all: each opening costs the same, and not a thousand moves."""
    asked: Counter[int] = Counter()

    def weigh(job: int) -> float:
        asked[job] += 1
        return 1 + job % 7

    starts = Starts()
    limits = [RateLimit(100), RateLimit(300, weight=weigh)]
    asks = 0
    admit = Lanes.admit_or_park

    def counting(*args: Any) -> bool:
        nonlocal asks
        asks += 1
        return admit(*args)

    monkeypatch.setattr(Lanes, "admit_or_park", counting)
    async with WorkerPool(starts, workers=5, queue_size=2000, limiter=limits) as pool:
        await pool.map(range(1000))
    assert list(starts.times) == [*range(1000)]
    assert max(asked.values()) == 1  # the user's function is asked once for each attempt
    assert asks <= 4 * 1000


@virtual
async def test_a_job_with_another_tuple_of_limits_goes_past_those_that_wait() -> None:
    per_host = RateLimit.per_key(lambda job: job[0], 1)
    per_account = ConcurrencyLimit.per_key(lambda job: job[1], 1)
    starts = Starts(seconds=0.3)
    async with WorkerPool(starts, workers=10, limiter=[per_host, per_account]) as pool:
        await pool.map([("x", "a"), ("x", "b"), ("y", "a"), ("z", "c")])
    assert starts.times == {("x", "a"): 0.0, ("z", "c"): 0.0, ("y", "a"): 0.3, ("x", "b"): 1.0}


@virtual
async def test_urgent_jobs_of_all_keys_go_first_when_a_limit_opens() -> None:
    order: list[Any] = []

    async def handler(job: tuple[str, int]) -> None:
        order.append(job)

    limits = [ConcurrencyLimit.per_key(lambda job: job[0], 1), RateLimit(1)]
    async with WorkerPool(handler, workers=3, queue_size=50, limiter=limits, priority=lambda job: job[1]) as pool:
        pool.submit_nowait(("first", 0))
        await settle()
        for job in [("a", 5), ("b", 4), ("c", 6), ("a", 3), ("d", 1)]:
            pool.submit_nowait(job)
        await pool.join()
    assert order == [("first", 0), ("d", 1), ("a", 3), ("b", 4), ("a", 5), ("c", 6)]


@virtual
async def test_context_managers_of_a_list_are_entered_in_their_order_around_the_attempt() -> None:
    events: list[str] = []

    def named(name: str) -> Any:
        @asynccontextmanager
        async def manager() -> AsyncIterator[None]:
            events.append(name)
            yield
            events.append(f"/{name}")

        return manager()

    async def handler(job: str) -> None:
        events.append(job)

    limit = RateLimit(1)
    async with WorkerPool(handler, workers=1, limiter=[limit, lambda job: [named("a"), named("b")]]) as pool:
        await pool.map(["x", "y"])
        assert now() == 1.0
    assert events == ["a", "b", "x", "/b", "/a", "a", "b", "y", "/b", "/a"]


@pytest.mark.parametrize("failing", [0, 1])
@virtual
async def test_a_context_manager_of_a_list_that_raises_fails_its_job_and_leaves_the_others(failing: int) -> None:
    inside = 0

    @asynccontextmanager
    async def counted() -> AsyncIterator[None]:
        nonlocal inside
        inside += 1
        try:
            yield
        finally:
            inside -= 1

    @asynccontextmanager
    async def fails() -> AsyncIterator[None]:
        raise OSError("no")
        yield

    def limiter(job: object) -> Any:
        return [fails(), counted()] if failing == 0 else [counted(), fails()]

    called = Starts()
    async with WorkerPool(called, workers=1, limiter=limiter) as pool:
        outcome = await (await pool.submit(1)).outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, OSError)
    assert not inside
    assert not called.times


@virtual
async def test_a_function_may_return_a_list_with_limits_by_key() -> None:
    per_key = RateLimit.per_key(str, 1)
    starts = Starts()
    async with WorkerPool(starts, workers=4, limiter=lambda job: [per_key, RateLimit(1000)]) as pool:
        await pool.map([1, 2])
        await pool.run(1)
    assert now() == 1.0


# -- What a list can be ------------------------------------------------------------------------------------------------

LIMIT = RateLimit(5)


@pytest.mark.parametrize(
    ("limiter", "kind", "said"),
    [
        ([LIMIT, None], TypeError, "limiter[1] must be a RateLimit or ConcurrencyLimit, a function of the job"),
        ([LIMIT, 5], TypeError, "or an async context manager, got 5"),
        ([[LIMIT]], TypeError, "limiter[0] must be"),
        ([LIMIT, RateLimit(5), LIMIT], ValueError, "limiter must not have a limit twice, got RateLimit(5, per=1"),
        ([echo], TypeError, "limiter[0] is called and not awaited"),
        ("limit", TypeError, "or a list of these, got 'limit'"),
        ({LIMIT}, TypeError, "limiter must be"),
        ([RateLimit], TypeError, "limiter[0] must be"),
    ],
)
def test_a_list_says_the_rule_and_the_value(limiter: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as raised:
        WorkerPool(echo, workers=1, limiter=limiter)
    assert said in str(raised.value)


@virtual
async def test_a_list_is_copied_and_may_be_empty() -> None:
    limits: list[Any] = [RateLimit(1), RateLimit(1000)]
    async with WorkerPool(echo, workers=2, limiter=limits) as pool:
        limits.clear()
        await pool.map(range(2))
        assert now() == 1.0
    async with WorkerPool(echo, workers=2, limiter=[]) as pool:
        await pool.map(range(2))


@pytest.mark.parametrize(
    ("returned", "kind", "said"),
    [
        ([LIMIT, LIMIT], ValueError, "the limiter of a job must not have a limit twice"),
        ([None], TypeError, "None, or a list of these, got None"),
        ([[]], TypeError, "or a list of these, got []"),
        ("limit", TypeError, "got 'limit'"),
        (lambda job: LIMIT, TypeError, "got <function"),
    ],
)
@virtual
async def test_nonsense_from_a_function_fails_its_job(returned: Any, kind: type[Exception], said: str) -> None:
    letters = DeadLetters[str]()
    starts = Starts()
    async with WorkerPool(
        starts, workers=1, limiter=lambda job: returned if job == "bad" else None, dead_letters=letters
    ) as pool:
        bad, good = await pool.outcomes(["bad", "good"], ordered=True)
    assert isinstance(bad, Failed)
    assert isinstance(bad.error, kind)
    assert said in str(bad.error)
    assert bad.attempts == 0
    assert isinstance(good, Succeeded)
    assert [letter.job for letter in letters] == ["bad"]
    assert list(starts.times) == ["good"]


@pytest.mark.parametrize("how", ["weight", "function"])
@virtual
async def test_a_start_counts_from_after_the_function_that_was_asked_for_it(how: str) -> None:
    def compute_for_first(job: int) -> Any:
        if job == 0:
            compute(0.05)
        return 1.0 if how == "weight" else limit

    starts = Starts()
    limit = RateLimit(20, weight=compute_for_first if how == "weight" else None)
    limiter: Any = limit if how == "weight" else compute_for_first
    async with WorkerPool(starts, workers=5, limiter=limiter) as pool:
        await pool.map(range(4))
    assert list(starts.times.values()) == pytest.approx([0.05, 0.1, 0.15, 0.2])


@virtual
async def test_a_limit_that_a_function_adds_to_the_list_a_second_time_fails_the_job() -> None:
    async with WorkerPool(echo, workers=1, limiter=[LIMIT, lambda job: LIMIT]) as pool:
        outcome = await (await pool.submit(1)).outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ValueError)


@virtual
async def test_a_list_of_one_rate_limit_is_that_limit() -> None:
    async with WorkerPool(echo, workers=2, queue_size=10, limiter=[RateLimit(1)]) as pool:
        handles = [pool.submit_nowait(job) for job in range(3)]
        await settle()
        assert (pool.stats.queued, pool.stats.delayed) == (2, 0)
        for handle in handles:
            await handle


# -- Beside everything else --------------------------------------------------------------------------------------------


@fuzzed
async def test_each_attempt_takes_its_limits_again() -> None:
    tokens = RateLimit(10, weight=lambda job: 5)
    times: list[float] = []

    async def handler(job: object) -> None:
        times.append(now())
        if current_job().attempt < 3:
            raise OSError

    async with WorkerPool(handler, workers=2, limiter=[tokens, ConcurrencyLimit(1)], retry=Retry(backoff=0.0)) as pool:
        await pool.run("x")
    assert times == [0.0, 0.5, 1.0]


@virtual
async def test_parked_jobs_are_cancelled_expire_and_are_handed_back() -> None:
    limits = [RateLimit(1, per=100), ConcurrencyLimit.per_key(lambda job: job % 2, 1)]
    pool = WorkerPool(sleeper, workers=3, limiter=limits)
    await pool.start()
    handles = [pool.submit_nowait(job) for job in range(7)]
    await settle()
    assert pool.stats.delayed == 6
    assert handles[1].cancel()
    assert handles[6].cancel()
    assert_conserved(pool)
    report = await pool.close(drain_timeout=5)
    assert [entry.job for entry in report.unfinished] == [2, 3, 4, 5]
    assert not limits[0].users  # type: ignore[union-attr]


@virtual
async def test_a_lane_that_is_emptied_while_its_place_has_released_a_job() -> None:
    shared, by_key = ConcurrencyLimit(1), ConcurrencyLimit.per_key(lambda job: job[0], 1)
    starts = Starts(1.0)
    async with WorkerPool(starts, workers=2, limiter=[shared, by_key]) as pool:
        first, _, *others = [pool.submit_nowait(job) for job in ("a1", "a2", "b1", "b2")]
        await settle()
        pool.pause()
        await first  # a2 is back in the queue, and waits for the end of the pause
        for handle in others:
            assert handle.cancel()
        pool.resume()
        await settle()
        last = pool.submit_nowait("b3")
        await last
    assert starts.times == {"a1": 0.0, "a2": 1.0, "b3": 2.0}


@virtual
async def test_a_pool_that_waits_for_its_limits_does_not_grow() -> None:
    sizes: list[int] = []

    def watch(event: Any) -> None:
        if type(event).__name__ == "PoolResized":
            sizes.append(event.new)

    for limiter in (
        [RateLimit(10), RateLimit(100, weight=lambda job: 10)],
        RateLimit(10, weight=lambda job: 1),
        [ConcurrencyLimit(2), RateLimit(1000)],
    ):
        policy = AutoScale(2, 50)
        async with WorkerPool(sleeper, workers=policy, limiter=limiter, observers=[watch]) as pool:  # type: ignore[arg-type]
            await pool.map([0.2] * 60)
    assert sizes == []


@virtual
async def test_pools_with_two_shared_limits_take_turns() -> None:
    """Each waits for one limit while the others wait for the other: the case in which all could wait without end."""
    requests, tokens = RateLimit(10), RateLimit(10)
    started: Counter[str] = Counter()

    async def handler(job: str) -> None:
        started[job] += 1

    pools = []
    for name in "abcde":
        limits = [requests, tokens] if name in "ace" else [tokens, requests]
        pool = WorkerPool(handler, workers=2, queue_size=500, limiter=limits)
        await pool.start()
        pools.append(pool)
        for _ in range(200):
            pool.submit_nowait(name)
    await asyncio.sleep(30)
    assert started.total() == pytest.approx(300, abs=2)
    assert max(started.values()) - min(started.values()) <= 3, started
    for pool in pools:
        await pool.close(drain_timeout=0)
    assert not requests.users
    assert not tokens.users


def test_the_error_of_a_weight_keeps_its_data() -> None:
    error = pickle.loads(pickle.dumps(WeightTooLarge(9.0, 5.0, "RateLimit(5)")))
    assert (error.weight, error.max_weight, error.limit) == (9.0, 5.0, "RateLimit(5)")
    assert str(error) == "a weight of 9 is more than RateLimit(5) can ever give, which is 5"
    assert isinstance(error, ValueError)
