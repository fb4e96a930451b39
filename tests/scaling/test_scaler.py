"""When a pool asks its policy, and when it leaves it alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import asyncpool
from asyncpool import AutoScale, Decision, PoolLoad, QueueFull, RateLimit, Retry, RetryAfter, WorkerPool
from asyncpool.scaling import Workers
from asyncpool.testing import DeadlockError, run, settle
from tests.helpers import echo, fuzzed, now, sleeper, virtual
from tests.scaling.tools import Connections, Own, fails, timers, use

# -- When a policy is asked --------------------------------------------------------------------------------------------


@virtual
async def test_it_is_asked_when_the_pool_starts() -> None:
    policy = Own(4)
    async with WorkerPool(sleeper, workers=policy) as pool:
        assert policy.times == [0]
        assert pool.stats.workers == 4


@virtual
async def test_it_is_not_asked_before_the_pool_starts() -> None:
    policy = Own(4, initial_workers=2)
    pool = WorkerPool(sleeper, workers=policy)
    assert policy.loads == []
    assert policy.started == 1
    assert pool.stats.target_workers == 2
    await pool.close()
    assert policy.loads == []


@virtual
async def test_while_something_happens_it_is_asked_once_an_interval() -> None:
    policy = Own(2, interval=0.5)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 2000)
        assert now() == pytest.approx(10)
        asked = [time for time in policy.times if time < 10]
        assert asked == pytest.approx([0.5 * number for number in range(20)])


@virtual
async def test_a_function_is_asked_ten_times_a_second() -> None:
    asked: list[float] = []

    def policy(load: PoolLoad) -> int:
        asked.append(load.now)
        return 2

    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 200)
        assert asked == pytest.approx([0.1 * number for number in range(len(asked))])
        assert len(asked) >= 10


@virtual
async def test_an_idle_pool_is_not_asked_for() -> None:
    policy = Own(2)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(1)
        await asyncio.sleep(1)
        asked = len(policy.loads)
        await asyncio.sleep(10_000)
        assert len(policy.loads) == asked


@virtual
async def test_a_pool_that_runs_long_jobs_is_not_asked_for_all_the_time() -> None:
    policy = Own(3)
    async with WorkerPool(sleeper, workers=policy) as pool:
        handles = [await pool.submit(10_000) for _ in range(30)]
        await asyncio.sleep(9_000)
        assert len(policy.loads) < 100
        for handle in handles[3:]:
            handle.cancel()


@virtual
async def test_a_policy_that_waits_for_a_backlog_to_last_is_asked_often_enough() -> None:
    growing = 0

    def patient(load: PoolLoad) -> int:
        nonlocal growing
        growing = growing + 1 if load.queued else 0
        return 5 if growing >= 10 else load.workers

    async with WorkerPool(sleeper, workers=patient) as pool:
        for _ in range(5):
            await pool.submit(1000)
        await asyncio.sleep(2)
        assert pool.stats.running == 5
        pool.cancel()


async def a_job(pool: WorkerPool[Any, Any]) -> None:
    await pool.submit(0)


async def a_job_at_once(pool: WorkerPool[Any, Any]) -> None:
    pool.submit_nowait(0)


async def a_stream(pool: WorkerPool[Any, Any]) -> None:
    await pool.map([0])


async def a_pause(pool: WorkerPool[Any, Any]) -> None:
    pool.pause()


@pytest.mark.parametrize("what", [a_job, a_job_at_once, a_stream, a_pause], ids=lambda what: what.__name__)
@fuzzed
async def test_an_idle_pool_is_asked_for_again_within_an_interval_after(what: Callable[[Any], Awaitable[None]]) -> None:
    policy = Own(2)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for _ in range(3):
            await asyncio.sleep(100)
            asked = len(policy.loads)
            begun = now()
            await what(pool)
            await asyncio.sleep(0.11)
            assert len(policy.loads) == asked + 1
            assert policy.loads[-1].now <= begun + 0.1 + 1e-9
            if what is a_pause:
                pool.resume()


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_a_long_job_has_ended() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(100)
        asked = len(policy.loads)
        await asyncio.sleep(0.11)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].succeeded == 1


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_somebody_waits_or_is_rejected() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, queue_size=0) as pool:
        running = asyncio.create_task(pool.run(1000))
        await asyncio.sleep(100)
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await asyncio.sleep(0.11)
        assert policy.loads[-1].rejected == 1
        await asyncio.sleep(100)
        waiting = asyncio.create_task(pool.run(1))
        await asyncio.sleep(0.11)
        assert policy.loads[-1].waiting == 1
        await asyncio.gather(running, waiting)


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_a_queued_job_was_cancelled() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.submit(1000)
        queued = await pool.submit(1)
        await asyncio.sleep(500)
        queued.cancel()
        await asyncio.sleep(0.11)
        assert policy.loads[-1].queued == 0


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_a_job_came_back() -> None:
    async def handler(job: int) -> None:
        if asyncpool.current_job().attempt == 1:
            raise RetryAfter(100)
        await asyncio.sleep(1000)

    policy = Own(1)
    async with WorkerPool(handler, workers=policy, retry=Retry(jitter=False)) as pool:
        await pool.submit(1)
        await asyncio.sleep(90)
        asked = len(policy.loads)
        await asyncio.sleep(10.11)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].running == 1


@virtual
async def test_a_pool_is_asked_for_within_an_interval_after_a_resource_was_entered() -> None:
    policy = Own(2)
    connections = Connections(4)
    async with WorkerPool(use, workers=policy, resource=connections) as pool:
        assert now() == 4
        assert pool.stats.workers == 1
        await asyncio.sleep(3.5)
        asked = len(policy.loads)
        assert policy.loads[-1].starting == 1
        await asyncio.sleep(0.61)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].starting == 0


@virtual
async def test_a_policy_is_asked_again_when_it_has_asked_for_that() -> None:
    policy = Own(lambda load: Decision(2, ask_again_in=60))
    async with WorkerPool(sleeper, workers=policy):
        await asyncio.sleep(1)
        asked = policy.times[-1]
        await asyncio.sleep(200)
        assert policy.times[-3:] == pytest.approx([asked + 60, asked + 120, asked + 180])


@virtual
async def test_what_happens_meanwhile_is_told_before_the_time_it_has_asked_for() -> None:
    policy = Own(lambda load: Decision(2, ask_again_in=60))
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(30)
        await pool.submit(5)
        await asyncio.sleep(0.11)
        assert policy.times[-1] == pytest.approx(30.1)


@virtual
async def test_a_policy_that_has_asked_for_a_later_time_is_asked_when_the_rate_limit_opens() -> None:
    policy = Own(lambda load: Decision(1, ask_again_in=5000))
    async with WorkerPool(sleeper, workers=policy, limiter=RateLimit(0.01)) as pool:
        for _ in range(10):
            await pool.submit(10_000)
        await asyncio.sleep(101)
        assert [time for time in policy.times if 50 < time <= 100.05] == [pytest.approx(100)]
        pool.cancel()


@fuzzed
async def test_a_policy_is_asked_at_once_after_so_many_failures_as_it_has_asked_for() -> None:
    policy = Own(lambda load: Decision(1, ask_again_after_failures=3), interval=1000)
    async with WorkerPool(fails, workers=policy) as pool:
        await asyncio.sleep(5)
        for job in (OSError(), 1, 2, OSError(), 3):
            async for _ in pool.outcomes([job]):
                pass
            await asyncio.sleep(1)
        assert len(policy.loads) == 1
        for _ in range(4):
            async for _ in pool.outcomes([OSError()]):
                pass
            await asyncio.sleep(1)
        assert policy.times == [0, 10, 13]
        assert [load.failed for load in policy.loads] == [0, 3, 3]


@fuzzed
async def test_failures_that_come_at_once_are_told_at_once_and_in_one_load() -> None:
    policy = Own(lambda load: Decision(5, ask_again_after_failures=1), interval=1000)

    async def handler(job: int) -> None:
        await asyncio.sleep(1)
        raise OSError

    async with WorkerPool(handler, workers=policy) as pool:
        async for _ in pool.outcomes(range(5)):
            pass
        await settle()
        assert sum(load.failed for load in policy.loads) == 5
        assert len(policy.loads) <= 6
        assert set(policy.times[1:]) == {1}


@virtual
async def test_a_policy_that_does_not_ask_for_failures_any_more_is_not_asked_at_them() -> None:
    policy = Own(lambda load: Decision(1, ask_again_after_failures=None if load.failed else 1), interval=1000)
    async with WorkerPool(fails, workers=policy) as pool:
        async for _ in pool.outcomes([OSError() for _ in range(20)]):
            pass
        await asyncio.sleep(500)
        assert len(policy.loads) == 2


@virtual
async def test_what_the_policy_before_has_asked_for_is_forgotten() -> None:
    old = Own(lambda load: Decision(1, ask_again_in=5, ask_again_after_failures=1), interval=1000)
    new = Own(lambda load: Decision(1), interval=1000)
    async with WorkerPool(fails, workers=old) as pool:
        pool.resize(new)
        async for _ in pool.outcomes([OSError() for _ in range(20)]):
            pass
        await asyncio.sleep(500)
        assert (len(old.loads), len(new.loads)) == (1, 1)


@pytest.mark.parametrize("ask_again_in", [0, 1e-9, 0.0005])
@virtual
async def test_a_policy_that_wants_to_be_asked_all_the_time_does_not_stop_it(ask_again_in: float) -> None:
    policy = Own(lambda load: Decision(1, ask_again_in=ask_again_in))
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(1)
        await asyncio.sleep(1)
        assert len(policy.loads) < 2100


@virtual
async def test_a_tiny_interval_does_not_stop_the_time() -> None:
    policy = Own(1, interval=1e-12)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(1e6)
        await pool.map([0.01] * 100)
        assert now() == pytest.approx(1e6 + 1)
        assert len(policy.loads) < 2000


@fuzzed
async def test_a_pool_that_is_closed_is_not_asked_for() -> None:
    policy = Own(lambda load: Decision(2, ask_again_in=0.5))
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(3)
    asked = len(policy.loads)
    await asyncio.sleep(100)
    assert len(policy.loads) == asked
    assert timers() == []


@fuzzed
async def test_a_pool_that_drains_still_scales() -> None:
    pool = WorkerPool(sleeper, workers=lambda load: 1 + load.queued // 5)
    await pool.start()
    for _ in range(10):
        await pool.submit(10)
    pool.drain()
    report = await pool.close()
    assert report.unfinished == ()
    assert pool.stats.peak_running > 1
    assert now() < 100


@fuzzed
async def test_a_pool_that_is_cancelled_does_not_scale() -> None:
    policy = Own(lambda load: 1 + load.queued)
    pool = WorkerPool(sleeper, workers=policy)
    await pool.start()
    for _ in range(10):
        await pool.submit(10)
    pool.cancel()
    asked = len(policy.loads)
    report = await pool.close()
    assert len(report.unfinished) == 10
    assert len(policy.loads) == asked


# -- A backlog ---------------------------------------------------------------------------------------------------------


def at(backlog: int, *, workers: int = 1, interval: float = 1000.0) -> Own:
    """A policy that wants to be asked when the backlog rises above a number, and hardly ever otherwise."""
    return Own(lambda load: Decision(workers, ask_again_at_backlog=backlog), interval=interval)


@pytest.mark.parametrize("quiet", [100.0, 5000.0], ids=["awake", "asleep"])
@fuzzed
async def test_a_policy_is_asked_at_once_when_the_backlog_rises_above_the_number_that_it_named(quiet: float) -> None:
    policy = at(3)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(quiet)
        asked = len(policy.loads)
        for _ in range(4):  # one begins at once
            await pool.submit(300)
        await asyncio.sleep(50)
        assert len(policy.loads) == asked
        begun = now()
        await pool.submit(300)
        await asyncio.sleep(0.01)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].queued == 4
        assert policy.times[-1] <= begun + 0.002
        pool.cancel()


@virtual
async def test_a_burst_is_looked_at_when_idle_workers_have_had_their_share() -> None:
    policy = at(3, workers=5)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(5000)
        for _ in range(20):
            pool.submit_nowait(300)
        await asyncio.sleep(0.01)
        assert (policy.loads[-1].queued, policy.loads[-1].idle) == (15, 0)
        pool.cancel()


@virtual
async def test_jobs_that_idle_workers_take_are_no_backlog_to_be_asked_at() -> None:
    policy = at(0, workers=5)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(5000)
        asked = len(policy.loads)
        for _ in range(20):
            await asyncio.gather(*(pool.run(0.1) for _ in range(5)))
        assert len(policy.loads) == asked
        pool.cancel()


@virtual
async def test_the_backlog_asks_at_most_ten_times_an_interval() -> None:
    policy = at(0, interval=1.0)
    async with WorkerPool(sleeper, workers=policy, queue_size=10_000) as pool:
        for _ in range(300):  # each of them starts with an empty queue
            for _ in range(2):
                pool.submit_nowait(0.001)
            await asyncio.sleep(0.01)
        assert now() == pytest.approx(3.0)
        assert 10 <= len(policy.loads) <= 34
        assert all(later - earlier >= 0.099 for earlier, later in zip(policy.times, policy.times[1:], strict=False))


@virtual
async def test_a_backlog_that_is_above_the_number_already_does_not_ask_again() -> None:
    policy = at(0)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(5000)
        asked = len(policy.loads)
        for _ in range(10):
            await pool.submit(900)
            await asyncio.sleep(1)
        assert len(policy.loads) == asked + 1
        pool.cancel()


@pytest.mark.parametrize("how", ["done", "cancelled"])
@virtual
async def test_a_backlog_that_falls_and_rises_again_asks_again(how: str) -> None:
    policy = at(3, interval=10.0)
    async with WorkerPool(sleeper, workers=policy) as pool:
        first = await pool.submit(1e6)
        await asyncio.sleep(11.5)
        for _ in range(3):
            asked = len(policy.loads)
            handles = [await pool.submit(0.01) for _ in range(6)]
            await asyncio.sleep(0.1)
            assert len(policy.loads) == asked + 1
            if how == "cancelled":
                for handle in handles:
                    handle.cancel()
            else:
                first.cancel()
                await pool.join()
                first = await pool.submit(1e6)
            await asyncio.sleep(1.1)  # a tenth of the interval
        pool.cancel()


@pytest.mark.parametrize("what", ["who waits for room", "a job that comes back"])
@virtual
async def test_a_backlog_that_is_not_appended_asks_too(what: str) -> None:
    async def handler(job: float) -> None:
        if not job and asyncpool.current_job().attempt == 1:
            raise RetryAfter(150)
        await asyncio.sleep(job)

    policy = at(0, interval=10_000)
    is_line = what == "who waits for room"
    async with WorkerPool(handler, workers=policy, queue_size=0 if is_line else 5, retry=Retry(jitter=False)) as pool:
        await asyncio.sleep(1000)
        if not is_line:
            await pool.submit(0)
        await pool.submit(9_000)
        await asyncio.sleep(100)
        asked = len(policy.loads)
        waiting = asyncio.create_task(pool.submit(1)) if is_line else None
        await asyncio.sleep(900 if is_line else 1000)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].backlog == 1
        pool.cancel()
        if waiting is not None:
            await asyncio.wait([waiting])
            waiting.exception()


@virtual
async def test_jobs_that_were_cancelled_while_queued_are_no_backlog_to_be_asked_at() -> None:
    policy = at(3, interval=10_000)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.submit(9_000)
        await asyncio.sleep(1000)
        asked = len(policy.loads)
        for _ in range(20):
            for handle in [await pool.submit(1) for _ in range(3)]:
                handle.cancel()
        await asyncio.sleep(1)
        assert len(policy.loads) == asked
        for _ in range(4):
            await pool.submit(1)
        await asyncio.sleep(0.01)
        assert len(policy.loads) == asked + 1
        pool.cancel()


@virtual
async def test_a_policy_that_names_no_backlog_costs_nothing_per_job() -> None:
    old, new = at(5), Own(1, interval=1000)
    async with WorkerPool(sleeper, workers=old) as pool:
        queue = pool._parts.queue
        pool.submit_nowait(1)
        assert queue.append != queue.order.append
        pool.resize(new)
        pool.submit_nowait(1)  # the first job of a policy that sleeps wakes it
        assert queue.append == queue.order.append
        for _ in range(7):
            pool.submit_nowait(1)
        await asyncio.sleep(20)
        assert (len(old.loads), len(new.loads)) == (1, 1)


@virtual
async def test_a_policy_can_ask_for_less_than_an_interval_while_something_happens() -> None:
    policy = Own(lambda load: Decision(1, ask_again_in=0.3), interval=1.0)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 300)
        assert policy.times == pytest.approx([0.3 * number for number in range(len(policy.times))])


# -- An idle pool, and one that can never go on ------------------------------------------------------------------------

POLICIES: dict[str, Callable[[], Workers]] = {
    "AutoScale": lambda: AutoScale(1, 10),
    "AutoScale from 0": lambda: AutoScale(0, 10),
    "function": lambda: lambda load: 2,
    "own": lambda: Own(2),
}


@pytest.mark.parametrize("policy", POLICIES)
@virtual
async def test_an_idle_pool_arms_no_timer(policy: str) -> None:
    async with WorkerPool(sleeper, workers=POLICIES[policy]()) as pool:
        await asyncio.sleep(1)
        assert timers() == []
        await pool.map([0.1] * 30)
        await asyncio.sleep(100)
        assert timers() == []
        pool.pause()
        await pool.submit(1)
        await asyncio.sleep(100)
        assert timers() == []
        pool.resume()


@pytest.mark.parametrize("jobs", [0, 1, 3, 20])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_deadlock_in_a_pool_that_scales_is_reported(policy: str, jobs: int) -> None:
    async def for_ever(job: int) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with WorkerPool(for_ever, workers=POLICIES[policy]()) as pool:
            for job in range(jobs):
                pool.submit_nowait(job)
            await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="nothing is ready to run and no timer is set"):
        run(main)


def test_a_paused_pool_that_nobody_resumes_is_reported() -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=AutoScale(0, 10)) as pool:
            pool.pause()
            await pool.run(1)

    with pytest.raises(DeadlockError):
        run(main)
