"""`resize` to another policy, and how a change is reported. `resize` by a number is in test_resize_pause.py too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import AutoScale, Decision, Event, PoolClosed, WorkerPool
from asyncpool.events import PoolResized, PoolStarted
from asyncpool.testing import settle
from tests.helpers import assert_conserved, echo, fuzzed, now, sleeper, virtual
from tests.scaling.tools import SOON, Connections, Own, Sizes, fails, says_three, timers, use

# -- Another policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "after"), [(1, 2), (2, 2), (5, 5), (10, 10), (30, 10)])
@virtual
async def test_a_policy_that_is_swapped_in_keeps_the_number_within_its_bounds(workers: int, after: int) -> None:
    async with WorkerPool(sleeper, workers=workers) as pool:
        pool.resize(AutoScale(2, 10))
        assert pool.stats.workers == pool.stats.target_workers == after
        assert pool.stats.max_workers == 10


@virtual
async def test_from_one_policy_to_another_the_number_stays_within_its_bounds() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 20)) as pool:
        await pool.map([0.1] * 100)
        assert pool.stats.workers == 20
        pool.resize(AutoScale(1, 8, idle_timeout=5))
        assert pool.stats.workers == 8
        await asyncio.sleep(4)
        assert pool.stats.workers == 8
        await asyncio.sleep(2)
        assert pool.stats.workers == 1


@virtual
async def test_a_number_ends_the_scaling() -> None:
    policy = Own(lambda load: Decision(3, ask_again_in=1))
    async with WorkerPool(sleeper, workers=policy) as pool:
        pool.resize(5)
        asked = len(policy.loads)
        await pool.map([0.1] * 200)
        await asyncio.sleep(1000)
        assert len(policy.loads) == asked
        assert pool.stats.workers == pool.stats.target_workers == pool.stats.max_workers == 5
        assert timers() == []


@virtual
async def test_a_policy_can_follow_a_number_and_a_number_a_policy() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        for _ in range(3):
            pool.resize(AutoScale(1, 10, idle_timeout=1))
            await pool.map([0.1] * 100)
            assert pool.stats.workers == 10
            pool.resize(3)
            assert pool.stats.workers == 3
            await pool.map([0.1] * 100)
            assert pool.stats.workers == 3


@virtual
async def test_the_policy_that_was_replaced_is_asked_no_more() -> None:
    old, new = Own(2), Own(3)
    async with WorkerPool(sleeper, workers=old) as pool:
        handles = [await pool.submit(0.3) for _ in range(30)]
        await asyncio.sleep(0.05)
        pool.resize(new)
        assert new.times == [pytest.approx(0.05)]
        asked = len(old.loads)
        for handle in handles:
            await handle
        assert len(old.loads) == asked
        assert len(new.loads) > 5


@virtual
async def test_a_policy_is_told_nothing_of_the_time_before_it() -> None:
    async with WorkerPool(fails, workers=5) as pool:
        await pool.map(range(20))
        for after in (Own(2), Own(2)):
            with pytest.raises(KeyError):
                await pool.run(KeyError())
            pool.resize(after)
            load = after.loads[0]
            assert (load.elapsed, load.succeeded, load.failed, load.seconds, load.errors) == (0, 0, 0, (), ())
            assert (load.rejected, load.peak_running) == (0, 0)
        assert pool.stats.peak_running >= 1


@virtual
async def test_a_pool_that_dozed_is_asked_for_by_the_new_policy() -> None:
    new = Own(lambda load: min(100, 1 + load.queued))
    async with WorkerPool(sleeper, workers=AutoScale(1, 2)) as pool:
        await asyncio.sleep(1000)
        pool.resize(new)
        await asyncio.sleep(1000)
        for _ in range(11):
            await pool.submit(50)
        await asyncio.sleep(SOON)
        assert pool.stats.running == 11


@virtual
async def test_a_policy_set_before_the_start_is_the_one_it_starts_with() -> None:
    old, new = Own(2, initial_workers=2), Own(4, initial_workers=3)
    sizes = Sizes()
    pool = WorkerPool(sleeper, workers=old, observers=[sizes])
    pool.resize(new)
    assert pool.stats.target_workers == 3
    async with pool:
        assert pool.stats.workers == 4
    assert old.loads == []
    assert [(event.old, event.new, event.load is None) for event in sizes.events] == [(2, 3, True), (3, 4, False)]


@pytest.mark.parametrize("workers", [4, AutoScale(4, 9), AutoScale(0, 9)], ids=str)
@fuzzed
async def test_a_policy_set_while_the_pool_starts_is_the_one_that_counts(workers: Any) -> None:
    connections = Connections(10)
    pool = WorkerPool(use, workers=AutoScale(2, 3), resource=connections)
    starting = asyncio.create_task(pool.start())
    await asyncio.sleep(5)
    pool.resize(workers)
    await starting
    await asyncio.sleep(20)
    assert pool.stats.target_workers == pool.stats.workers == (0 if workers == AutoScale(0, 9) else 4)
    assert len(connections.open) == pool.stats.workers
    await pool.close()
    assert connections.open == []


@fuzzed
async def test_a_job_may_swap_the_policy() -> None:
    async def handler(job: int) -> int:
        pool.resize(AutoScale(1, 3 + job % 3) if job % 2 else 2)
        await asyncio.sleep(0.2)
        return job

    pool = WorkerPool(handler, workers=AutoScale(1, 4))
    async with pool:
        assert await pool.map(range(30)) == list(range(30))
        assert_conserved(pool)
        assert pool.stats.peak_running <= 5


@virtual
async def test_an_observer_may_swap_the_policy() -> None:
    def swap(event: Event) -> None:
        if isinstance(event, PoolResized) and event.new == 10:
            pool.resize(3)

    pool = WorkerPool(sleeper, workers=AutoScale(1, 10), observers=[swap])
    async with pool:
        await pool.map([0.1] * 60)
        assert pool.stats.workers == pool.stats.max_workers == 3


@pytest.mark.parametrize("workers", [5, AutoScale(1, 5), says_three], ids=["number", "policy", "function"])
@virtual
async def test_a_closed_pool_takes_no_other_policy(workers: Any) -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 4)) as pool:
        pass
    with pytest.raises(PoolClosed):
        pool.resize(workers)


@fuzzed
async def test_more_room_by_a_new_policy_lets_those_in_who_wait() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 1)) as pool:
        pool.pause()
        for _ in range(10):
            pool.submit_nowait(0)
        waiting = [asyncio.create_task(pool.submit(0)) for _ in range(3)]
        await settle()
        pool.resize(AutoScale(1, 5))
        await settle()
        assert all(task.done() for task in waiting)
        assert pool.stats.queued == 13
        pool.resume()


@fuzzed
async def test_a_stream_goes_on_when_there_may_be_more_workers() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        values = asyncio.ensure_future(hundred_seconds(pool))
        await asyncio.sleep(1)
        pool.resize(50)
        await settle()
        assert pool.stats.running == 50
        await values
        assert now() <= 401


async def hundred_seconds(pool: WorkerPool[float, float]) -> list[float]:
    return await pool.map([100.0] * 200, ordered=False)


@fuzzed
async def test_who_waits_for_the_window_of_a_group_goes_on_when_there_may_be_more_workers() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool, pool.group() as group:
        producer = asyncio.create_task(submit_all(group, [100.0] * 5))
        await asyncio.sleep(1)
        assert pool.stats.running == 1
        pool.resize(5)
        await settle()
        assert pool.stats.running == 5
        await producer
        group.close_intake()
        assert len([outcome async for outcome in group]) == 5


async def submit_all(group: Any, jobs: list[float]) -> None:
    for job in jobs:
        await group.submit(job)


@virtual
async def test_a_stream_of_a_pool_that_a_function_scales_uses_all_workers() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 50 if load.backlog else load.workers) as pool:
        await pool.map([100.0] * 200)
        assert pool.stats.peak_running == 50
        assert now() <= 401


@virtual
async def test_two_pools_that_share_a_policy_scale_each_for_itself() -> None:
    policy = AutoScale(1, 10, idle_timeout=10)
    async with (
        WorkerPool(sleeper, workers=policy, name="busy") as busy,
        WorkerPool(sleeper, workers=policy, name="idle") as idle,
    ):
        for _ in range(5):
            await busy.map([0.1] * 100)
            assert busy.stats.workers == 10
            assert idle.stats.workers == 1
            await asyncio.sleep(5)
        await idle.map([0.1] * 100)
        assert idle.stats.workers == 10
        await asyncio.sleep(8)
        assert busy.stats.workers == 1
        assert idle.stats.workers == 10
    assert policy == AutoScale(1, 10, idle_timeout=10)


@virtual
async def test_each_pool_starts_its_policy_once_and_each_swap_anew() -> None:
    policy = Own(2)
    pools = [WorkerPool(echo, workers=policy) for _ in range(2)]
    assert policy.started == 2
    async with pools[0]:
        pools[0].resize(policy)
        assert policy.started == 3


# -- What observers and statistics tell --------------------------------------------------------------------------------


@virtual
async def test_a_change_tells_the_old_and_the_new_number_why_and_on_what_load() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(2, 10), observers=[sizes], name="mine") as pool:
        for _ in range(40):
            await pool.submit(1)
        await asyncio.sleep(SOON)
    event = sizes.events[0]
    assert (event.pool, event.old, event.new) == ("mine", 2, 8)
    assert "38 jobs wait for 2 workers" in event.reason
    assert event.load is not None
    assert (event.load.workers, event.load.queued, event.load.running, event.load.idle) == (2, 38, 2, 0)


@virtual
async def test_the_reason_of_a_policy_of_ones_own_is_told_as_it_is() -> None:
    sizes = Sizes()
    policy = Own(lambda load: Decision(3, "the moon is full", {"moon": 1.0}))
    async with WorkerPool(sleeper, workers=policy, observers=[sizes]):
        pass
    assert [(event.old, event.new, event.reason) for event in sizes.events] == [(1, 3, "the moon is full")]
    assert sizes.events[0].load == policy.loads[0]


@virtual
async def test_the_reason_of_a_function_is_its_name() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=says_three, observers=[sizes]):
        pass
    assert [event.new for event in sizes.events] == [3]
    assert "says_three" in sizes.events[0].reason


@virtual
async def test_a_number_that_stays_is_no_event() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=Own(3, initial_workers=3), observers=[sizes]) as pool:
        await pool.map([0.1] * 100)
        pool.resize(3)
        pool.resize(AutoScale(1, 10))
        pool.resize(AutoScale(3, 3))
    assert sizes.events == []


@virtual
async def test_resize_by_a_number_tells_the_load_too() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=2, observers=[sizes]) as pool:
        await pool.submit(1)
        await settle()
        pool.resize(6)
    [event] = sizes.events
    assert (event.old, event.new) == (2, 6)
    assert "6" in event.reason
    assert event.load is not None
    assert (event.load.workers, event.load.running) == (2, 1)


@virtual
async def test_a_change_before_the_start_has_no_load() -> None:
    sizes = Sizes()
    pool = WorkerPool(sleeper, workers=2, observers=[sizes])
    pool.resize(4)
    [event] = sizes.events
    assert (event.old, event.new, event.load) == (2, 4, None)
    assert event.reason
    await pool.close()


@virtual
async def test_observers_are_told_of_the_start_before_anything_is_resized() -> None:
    events: list[Event] = []
    async with WorkerPool(sleeper, workers=says_three, observers=[events.append]) as pool:
        assert pool.stats.workers == 3
    kinds = [type(event) for event in events]
    assert kinds.index(PoolStarted) < kinds.index(PoolResized)


@virtual
async def test_statistics_tell_how_many_workers_there_are_should_be_and_may_be() -> None:
    pool = WorkerPool(sleeper, workers=AutoScale(2, 10))
    assert (pool.stats.workers, pool.stats.target_workers, pool.stats.max_workers) == (0, 2, 10)
    async with pool:
        assert (pool.stats.workers, pool.stats.target_workers, pool.stats.max_workers) == (2, 2, 10)
        handles = [await pool.submit(1) for _ in range(30)]
        await asyncio.sleep(SOON)
        assert (pool.stats.workers, pool.stats.target_workers, pool.stats.max_workers) == (6, 6, 10)
        pool.resize(3)  # three retire after their jobs
        assert (pool.stats.workers, pool.stats.target_workers, pool.stats.max_workers) == (6, 3, 3)
        for handle in handles:
            await handle
        assert (pool.stats.workers, pool.stats.target_workers, pool.stats.max_workers) == (3, 3, 3)


@virtual
async def test_the_most_workers_of_a_function_are_what_it_answered_last() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 4 if load.queued else 2) as pool:
        assert pool.stats.max_workers == 2
        for _ in range(10):
            await pool.submit(1)
        await asyncio.sleep(0.15)
        assert pool.stats.max_workers == 4


@virtual
async def test_the_repr_of_the_pool_tells_how_many_workers_there_should_be() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(2, 10)) as pool:
        assert "0 of 2 workers busy" in repr(pool)
