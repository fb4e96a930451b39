"""Weights, charges and changes of a rate limit: never more in any window, and what waits is re-timed."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import asyncpool
from asyncpool import ConcurrencyLimit, DeadLetters, Failed, RateLimit, Retry, Succeeded, WeightTooLarge, WorkerPool
from asyncpool.testing import run, settle
from tests.helpers import assert_conserved, echo, now, virtual


def most_before(uses: list[tuple[float, float, bool]], rate: float, per: float, burst: int) -> float:
    """How much more than the bound any window that ends with a start held; at most 0 if the law holds.

    `uses` are times, amounts, and whether that was a start; in their order.
    """
    exact = [(Fraction(time), Fraction(amount), is_start) for time, amount, is_start in uses]
    per_second = Fraction(rate) / Fraction(per)
    most = Fraction(-(10**9))
    for last, (end, weight, is_start) in enumerate(exact):
        if not is_start:
            continue
        used = Fraction(0)
        for begin, amount, _ in reversed(exact[: last + 1]):
            used += amount
            most = max(most, used - (end - begin) * per_second - max(burst, weight))
    return float(most)


class Starts:
    """A handler that notes when each job was started."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.jobs: list[Any] = []

    async def __call__(self, job: Any) -> Any:
        self.times.append(now())
        self.jobs.append(job)
        return job


def identity(job: Any) -> Any:
    return job


# -- The bound ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.floats(0.5, 1000),
    st.floats(0.1, 100),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 2), st.floats(0.05, 1), st.booleans()), min_size=1, max_size=40),
)
def test_no_window_holds_more_than_the_rate_and_the_burst_or_the_heaviest(
    rate: float, per: float, burst: int, steps: list[tuple[float, float, bool]]
) -> None:
    limit = RateLimit(rate, per, burst)
    uses: list[tuple[float, float, bool]] = []

    async def main() -> None:
        for pause, share, is_start in steps:
            await asyncio.sleep(pause * per / rate)
            if not is_start:
                amount = (share - 0.5) * 20
                limit.charge(amount)
                uses.append((now(), amount, False))
                continue
            weight = share * limit.max_weight
            while not limit.take(now(), weight):
                uses.append((now(), weight, True))

    run(main)
    assert most_before(uses, rate, per, burst) <= 1e-6 * (1 + max(rate, burst))


def test_heavy_starts_are_spaced_out_in_proportion_to_their_weights() -> None:
    limit = RateLimit(10)
    assert [limit.take(0.0, 5), limit.take(0.0), limit.take(0.5, 2), limit.take(0.5)] == [
        0.0,
        0.5,
        0.0,
        pytest.approx(0.2),
    ]


def test_a_burst_takes_weights_up_to_its_size_at_once() -> None:
    limit = RateLimit(8, burst=6)
    assert [limit.take(0.0, weight) for weight in (2, 3, 2)] == [0.0, 0.0, 0.125]
    assert limit.take(0.0, 1) == 0.0
    assert limit.take(0.0, 7) == 0.75  # more than the burst: once the bucket is empty
    assert limit.take(0.75, 7) == 0.0


def test_light_starts_share_the_place_of_one() -> None:
    limit = RateLimit(1)
    assert [limit.take(0.0, 0.25) for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.25]


@virtual
async def test_a_pool_uses_the_full_rate_whatever_the_weights() -> None:
    starts = Starts()
    random = Random(3)
    jobs = [random.choice((100, 700, 2500)) for _ in range(40)]
    async with WorkerPool(starts, workers=5, queue_size=50, limiter=RateLimit(60_000, per=60, weight=identity)) as pool:
        await pool.map(jobs)
    assert starts.jobs == jobs  # in their order: a heavy one is not overtaken by light ones
    expected = [sum(jobs[:n]) / 1000 for n in range(40)]
    assert starts.times == pytest.approx(expected)


# -- Weights of jobs ---------------------------------------------------------------------------------------------------


@virtual
async def test_a_weight_that_the_limit_can_never_give_fails_its_job() -> None:
    letters = DeadLetters[float]()
    starts = Starts()
    limit = RateLimit(10, per=60, burst=20, weight=identity)
    async with WorkerPool(starts, workers=1, limiter=limit, dead_letters=letters, retry=Retry()) as pool:
        outcomes = await pool.outcomes([20, 20.5, 1], ordered=True)
        assert_conserved(pool)
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
    failed = outcomes[1]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, WeightTooLarge)
    assert str(failed.error) == (
        "a weight of 20.5 is more than RateLimit(10, per=60, burst=20, weight=...) can ever give, which is 20"
    )
    assert failed.attempts == 0
    assert len(letters) == 1
    assert starts.jobs == [20, 1]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), None, "5", True, 10**400])
@virtual
async def test_a_weight_that_is_no_number_above_0_fails_its_job(weight: Any) -> None:
    limit = RateLimit(10, weight=lambda job: weight if job else 1)
    async with WorkerPool(echo, workers=1, limiter=[limit, RateLimit(1000)]) as pool:
        bad, good = await pool.outcomes([1, 0], ordered=True)
    assert isinstance(bad, Failed)
    assert isinstance(bad.error, (TypeError, ValueError))
    assert "the weight of a job must be a" in str(bad.error)
    assert isinstance(good, Succeeded)


@virtual
async def test_a_weight_function_that_raises_fails_its_job() -> None:
    def weigh(job: int) -> float:
        raise LookupError(job)

    async with WorkerPool(echo, workers=1, limiter=RateLimit(10, weight=weigh)) as pool:
        outcome = await (await pool.submit(1)).outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, LookupError)


def test_the_weight_is_a_function() -> None:
    with pytest.raises(TypeError, match="weight must be callable, got 5"):
        RateLimit(5, weight=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weight is called and not awaited"):
        RateLimit.per_key(str, 5, weight=echo)
    assert repr(RateLimit(5, weight=identity)) == "RateLimit(5, per=1, burst=1, weight=...)"
    assert repr(RateLimit.per_key(str, 5, weight=identity)) == (
        "<RateLimit(5, per=1, burst=1, weight=...) for each of 0 keys>"
    )


@virtual
async def test_keys_have_weights_of_their_own() -> None:
    starts = Starts()
    limit = RateLimit.per_key(lambda job: job[0], 10, weight=lambda job: job[1])
    async with WorkerPool(starts, workers=4, limiter=limit) as pool:
        await pool.map([("a", 5), ("a", 1), ("b", 2), ("b", 1)])
    assert dict(zip(starts.jobs, starts.times, strict=True)) == {
        ("a", 5): 0.0,
        ("b", 2): 0.0,
        ("b", 1): pytest.approx(0.2),
        ("a", 1): pytest.approx(0.5),
    }


# -- Charges -----------------------------------------------------------------------------------------------------------


@virtual
async def test_charges_that_add_up_to_no_time_are_refused() -> None:
    limit = RateLimit(1)
    limit.charge(1e308)
    with pytest.raises(ValueError, match="amount must be a number of starts that takes a finite time, got 1e\\+308"):
        limit.charge(1e308)
    limit.charge(-1e308)
    await limit.acquire()


@virtual
async def test_a_charge_delays_what_waits_and_a_negative_one_brings_it_forward() -> None:
    starts = Starts()
    limit = RateLimit(1)
    for limiter in (limit, [limit, RateLimit(1000)]):
        starts.times.clear()
        began = now()
        async with WorkerPool(starts, workers=3, limiter=limiter) as pool:
            handles = [pool.submit_nowait(job) for job in range(3)]
            await asyncio.sleep(0.5)
            limit.charge(4)
            await asyncio.sleep(1.5)
            limit.charge(-2)
            for handle in handles:
                await handle
        assert [time - began for time in starts.times] == pytest.approx([0.0, 3.0, 4.0])
        await asyncio.sleep(100)


def test_what_is_given_back_beyond_what_was_used_is_lost() -> None:
    async def main() -> None:
        limit = RateLimit(1, burst=2)
        limit.charge(-100)
        assert [limit.take(now()) for _ in range(3)] == [0.0, 0.0, 1.0]

    run(main)


def test_a_charge_does_not_end_a_pause() -> None:
    async def main() -> None:
        limit = RateLimit(1, burst=3)
        limit.take(0.0)
        limit.pause_for(10)
        limit.charge(-5)
        assert limit.take(0.0) == 10.0
        assert limit.take(0.0, 0.5) == 10.0
        assert [limit.take(10.0), limit.take(10.0)] == [0.0, 1.0]

    run(main)


@pytest.mark.parametrize(
    ("amount", "kind"), [("5", TypeError), (float("nan"), ValueError), (float("inf"), ValueError), (1e308, ValueError)]
)
@virtual
async def test_an_amount_is_a_finite_number(amount: Any, kind: type[Exception]) -> None:
    limit = RateLimit(0.001)
    with pytest.raises(kind, match="amount must be a"):
        limit.charge(amount)
    assert not limit.was_used


def test_charges_and_changes_need_a_loop() -> None:
    limit = RateLimit(1)
    limit.change(5)  # it was never used: there is nothing to convert
    assert repr(limit) == "RateLimit(5, per=1, burst=1)"
    with pytest.raises(RuntimeError):
        limit.charge(1)
    limit.take(0.0)
    with pytest.raises(RuntimeError):
        limit.change(1)


# -- Changes -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_change_retimes_what_waits_in_all_pools_to_earlier_and_later() -> None:
    limit = RateLimit(0.01)
    one, other = Starts(), Starts()
    async with (
        WorkerPool(one, workers=2, limiter=limit) as first,
        WorkerPool(other, workers=2, limiter=[limit, RateLimit(1000)]) as second,
    ):
        handles = [pool.submit_nowait(job) for job in range(3) for pool in (first, second)]
        await asyncio.sleep(1.0)
        limit.change(1)  # what was used is made up for at the new rate
        await asyncio.sleep(2.5)
        limit.change(0.1)
        for handle in handles:
            await handle
    times = sorted(one.times + other.times)
    assert times[:4] == pytest.approx([0.0, 1.99, 2.99, pytest.approx(8.4, abs=0.2)])
    assert times[5] - times[4] == pytest.approx(10.0)


def test_what_was_used_stays_used_and_a_pause_goes_on() -> None:
    async def main() -> None:
        limit = RateLimit(10, burst=5)
        for _ in range(5):
            limit.take(0.0)
        limit.change(1, per=2.0, burst=5)
        assert limit.take(0.0) == pytest.approx(2.0)  # four of five must stay in the bucket
        limit.change(1, per=1.0, burst=9)
        assert [limit.take(0.0) for _ in range(5)] == [0.0] * 4 + [pytest.approx(1.0)]
        limit.pause_for(50)
        limit.change(1000)
        assert limit.take(0.0) == 50.0
        assert limit.take(50.0) == 0.0
        assert limit.take(50.0) == pytest.approx(0.001)

    run(main)


@pytest.mark.parametrize(("arguments", "said"), [((0,), "rate"), ((1, 0), "per"), ((1, 1, 0), "burst")])
@virtual
async def test_a_change_that_is_wrong_changes_nothing(arguments: Any, said: str) -> None:
    limits = RateLimit(3), RateLimit.per_key(str, 3)
    for limit in limits:
        before = repr(limit)
        with pytest.raises(ValueError, match=said):
            limit.change(*arguments)
        assert repr(limit) == before


@virtual
async def test_a_change_of_all_keys_and_of_those_to_come() -> None:
    limits = RateLimit.per_key(identity, 1)
    starts = Starts()
    async with WorkerPool(starts, workers=4, limiter=limits) as pool:
        handles = [pool.submit_nowait("a") for _ in range(2)]
        await settle()
        limits.change(10)
        handles += [pool.submit_nowait("b") for _ in range(2)]
        for handle in handles:
            await handle
    assert now() == pytest.approx(0.1)


@virtual
async def test_a_changed_key_is_not_forgotten() -> None:
    limits = RateLimit.per_key(identity, 1)
    limits("slow").change(0.001)
    for key in range(1000):
        limits(key)
    assert repr(limits("slow")) == "RateLimit(0.001, per=1, burst=1)"


@virtual
async def test_a_parked_job_whose_weight_became_too_large_fails_when_it_is_its_turn() -> None:
    limit = RateLimit(10, weight=identity)
    async with WorkerPool(echo, workers=3, limiter=limit) as pool:
        handles = [pool.submit_nowait(weight) for weight in (10, 9, 2)]
        await settle()
        limit.change(5)
        outcomes = [await handle.outcome() for handle in handles]
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
    assert isinstance(outcomes[1].error, WeightTooLarge)  # type: ignore[union-attr]
    assert now() == pytest.approx(2.0)


@virtual
async def test_jobs_fail_in_time_when_the_limit_of_all_is_made_slow_while_they_wait() -> None:
    """The pause was short when it began, so nobody watched their deadlines."""
    limit = RateLimit(2)
    async with WorkerPool(echo, workers=3, limiter=limit, retry=Retry(max_elapsed=20)) as pool:
        handles = [pool.submit_nowait(job) for job in range(2)]
        await settle()
        limit.change(0.001)
        outcomes = [await handle.outcome() for handle in handles]
        assert now() == 20.0
    assert isinstance(outcomes[1], Failed)


@virtual
async def test_jobs_fail_in_time_while_others_are_before_their_pool_in_the_line() -> None:
    limit = RateLimit(2)
    async with WorkerPool(echo, workers=3, limiter=limit, retry=Retry(max_elapsed=3)) as pool:
        await limit.acquire()
        callers = [asyncio.create_task(limit.acquire()) for _ in range(20)]
        await settle()
        handle = pool.submit_nowait(1)
        assert isinstance(await handle.outcome(), Failed)
        assert now() == 3.0
        for caller in callers:
            caller.cancel()


# -- Outside of a pool -------------------------------------------------------------------------------------------------


@virtual
async def test_acquire_is_first_come_first_served_also_beside_a_pool() -> None:
    limit = RateLimit(1)
    order: list[str] = []

    async def call(name: str) -> None:
        await limit.acquire()
        order.append(f"{name} {now():g}")

    async def handler(job: str) -> None:
        order.append(f"{job} {now():g}")

    for limiter in (limit, [limit, RateLimit(1000)]):
        order.clear()
        began = now()
        async with WorkerPool(handler, workers=2, limiter=limiter) as pool:
            tasks = [asyncio.create_task(call("a"))]
            await settle()
            tasks.append(asyncio.create_task(call("b")))
            await settle()
            handle = pool.submit_nowait("job")
            await settle()
            tasks.append(asyncio.create_task(call("c")))
            await asyncio.gather(handle.outcome(), *tasks)
        names = [text.split()[0] for text in order]
        assert names == ["a", "b", "job", "c"]
        assert now() - began == pytest.approx(3.0)
        await asyncio.sleep(10)


@virtual
async def test_acquire_has_weights() -> None:
    limit = RateLimit(10)
    await limit.acquire(5)
    await limit.acquire(2.5)
    assert now() == pytest.approx(0.5)
    with pytest.raises(WeightTooLarge):
        await limit.acquire(11)
    with pytest.raises(ValueError, match="weight must be a finite number > 0, got 0"):
        await limit.acquire(0)
    await limit.acquire()
    assert now() == pytest.approx(0.75)
    waiting = asyncio.create_task(limit.acquire(8))
    await settle()
    limit.change(4)
    with pytest.raises(WeightTooLarge):
        await waiting


@pytest.mark.parametrize("turns", range(4))
def test_a_cancelled_acquire_takes_nothing(turns: int) -> None:
    async def main() -> None:
        limit = RateLimit(1)
        await limit.acquire()
        first, second = asyncio.create_task(limit.acquire(0.5)), asyncio.create_task(limit.acquire())
        # Cancelled when it is about to be served, and just after that, before it has resumed.
        asyncio.get_running_loop().call_at(0.5, later, turns, first)
        await asyncio.wait([first, second])
        if first.cancelled():
            assert now() == 1.0
        assert second.done()
        await limit.acquire()
        assert now() == pytest.approx(2.0 if first.cancelled() else 2.5)
        assert not limit.users

    def later(turns: int, task: asyncio.Task[None]) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(later, turns - 1, task)
        else:
            task.cancel()

    run(main)


@virtual
async def test_a_limit_on_two_loops_says_so() -> None:
    limit = RateLimit(1)
    await limit.acquire()

    def elsewhere() -> list[str]:
        said: list[str] = []

        async def main() -> None:
            for call in (limit.acquire(), WorkerPool(echo, workers=1, limiter=limit, name="other").start()):
                with pytest.raises(asyncpool.WrongLoop, match="is used on another event loop, which is running"):
                    await call
            async with WorkerPool(echo, workers=1, limiter=lambda job: limit) as pool:
                outcome = await (await pool.submit(1)).outcome()
                said.append(type(outcome.error).__name__)  # type: ignore[union-attr]

        asyncio.run(main())
        return said

    assert await asyncio.to_thread(elsewhere) == ["WrongLoop"]


def test_a_limit_can_be_used_on_one_loop_after_the_other() -> None:
    limit = ConcurrencyLimit(1)

    async def main() -> None:
        task = asyncio.create_task(limit.acquire())
        await limit.acquire()
        await settle()
        limit.release()
        await task
        limit.release()

    for _ in range(2):
        run(main)
