"""Jobs that wait for their own pool make it grow, up to its bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asyncpool import AutoScale, PoolDeadlock, WorkerPool
from tests.helpers import fuzzed, now, sleeper, virtual
from tests.scaling.tools import Call, Connections, Own, Sizes


class Nested:
    """A pool whose jobs submit jobs to it and wait for them, so and so deep."""

    def __init__(self, workers: Any, **options: Any) -> None:
        self.pool: WorkerPool[int, int] = WorkerPool(self.count, workers=workers, **options)

    async def count(self, depth: int, connection: int = 0) -> int:
        return 1 + await self.deeper(depth - 1) if depth else 0

    async def deeper(self, depth: int) -> int:
        return await self.pool.run(depth)


class NestedHandles(Nested):
    async def deeper(self, depth: int) -> int:
        return await (await self.pool.submit(depth))


class NestedStreams(Nested):
    async def deeper(self, depth: int) -> int:
        return (await self.pool.map([depth]))[0]


class NestedTasks(Nested):
    async def deeper(self, depth: int) -> int:
        return await asyncio.create_task(self.pool.run(depth))


WAYS = [Nested, NestedHandles, NestedStreams, NestedTasks]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(lambda: AutoScale(1, 6), id="AutoScale"),
        pytest.param(lambda: AutoScale(0, 6), id="AutoScale from 0"),
        pytest.param(lambda: Own(1, max_workers=6), id="own"),
        pytest.param(lambda: lambda load: max(1, min(6, load.running + load.queued)), id="function"),
    ],
)
@fuzzed
async def test_jobs_that_wait_for_their_own_pool_make_it_grow(way: type[Nested], workers: Callable[[], Any]) -> None:
    async with way(workers()).pool as pool:
        assert await pool.run(5) == 5
        assert now() < 1
        assert pool.stats.peak_running == 6


@fuzzed
async def test_a_policy_that_is_none_of_a_function_lets_blocked_jobs_go_on_without_waiting_for_a_look() -> None:
    async with Nested(AutoScale(1, 6)).pool as pool:
        assert await pool.run(5) == 5
        assert now() == 0


@pytest.mark.parametrize("queue_size", [0, 1])
@fuzzed
async def test_jobs_that_wait_for_room_in_their_own_pool_make_it_grow(queue_size: int) -> None:
    async with Nested(AutoScale(1, 6), queue_size=queue_size).pool as pool:
        assert await pool.run(5) == 5


@fuzzed
async def test_jobs_that_wait_for_their_own_pool_make_it_grow_though_resources_open_slowly() -> None:
    connections = Connections(10)
    async with Nested(AutoScale(1, 6), resource=connections).pool as pool:
        assert await pool.run(5) == 5
        assert now() == 60
        assert connections.entered == 6


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@fuzzed
async def test_at_the_most_workers_a_wait_for_the_own_pool_is_a_deadlock(way: type[Nested]) -> None:
    async with way(AutoScale(1, 3)).pool as pool:
        with pytest.raises(PoolDeadlock, match=r"all 3 running jobs \(of at most 3 at a time\)"):
            await pool.run(10)
        assert pool.stats.peak_running == 3


@fuzzed
async def test_where_a_function_says_no_more_a_wait_for_the_own_pool_is_a_deadlock() -> None:
    async with Nested(lambda load: min(2, 1 + load.queued)).pool as pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(10)
        assert pool.stats.peak_running == 2


@virtual
async def test_the_answer_of_a_function_is_its_bound_though_jobs_wait_for_their_pool() -> None:
    async def waits() -> None:
        await pool.run(lambda: sleeper(10))

    pool: WorkerPool[Call, Any] = WorkerPool(workers=lambda load: 4 if load.now < 1 else 2)
    async with pool:
        handles = [await pool.submit(waits) for _ in range(2)]
        await asyncio.sleep(0.5)
        assert pool.stats.running == 4
        await pool.submit(lambda: sleeper(0))
        await asyncio.sleep(1)
        assert pool.stats.target_workers == 2
        for handle in handles:
            await handle


@fuzzed
async def test_several_jobs_that_wait_for_their_own_pool_grow_it_until_all_is_done() -> None:
    async with Nested(AutoScale(1, 20)).pool as pool:
        assert await pool.map([3] * 5) == [3] * 5
        assert now() < 1


@fuzzed
async def test_workers_that_were_added_for_blocked_jobs_retire_when_they_are_idle() -> None:
    async with Nested(AutoScale(1, 10)).pool as pool:
        assert await pool.run(5) == 5
        await asyncio.sleep(31)
        assert pool.stats.workers == 1


@virtual
async def test_the_reason_tells_that_jobs_wait_for_their_own_pool() -> None:
    sizes = Sizes()
    async with Nested(AutoScale(1, 2), observers=[sizes]).pool as pool:
        assert await pool.run(1) == 1
    assert sizes.sizes == [2]
    assert "wait" in sizes.events[0].reason
    assert sizes.events[0].load is not None
    assert sizes.events[0].load.blocked == 1
