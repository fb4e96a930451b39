"""Workers are made when they are first needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import AutoScale, RateLimit, WorkerPool
from asyncpool.testing import settle
from tests.helpers import assert_conserved, echo, fuzzed, sleeper, virtual


def made(pool: WorkerPool[Any, Any]) -> int:
    return len(pool._parts.workers.by_number)


@virtual
async def test_a_pool_of_a_billion_workers_starts_and_runs_jobs() -> None:
    async with WorkerPool(echo, workers=10**9) as pool:
        assert pool.stats.workers == pool.stats.target_workers == 10**9
        assert await pool.map(range(1000)) == list(range(1000))
        assert pool.stats.workers == 10**9
        assert made(pool) < 5000
        pool.resize(10**8)
        pool.resize(10**9)
        assert made(pool) < 5000
    assert pool.stats.workers == 0


@pytest.mark.parametrize(
    "make_limiter",
    [lambda: None, lambda: RateLimit(10**6, burst=10**6), lambda: lambda job: None],
    ids=["none", "all", "key"],
)
@fuzzed
async def test_every_worker_that_is_needed_is_made(make_limiter: Any) -> None:
    async with WorkerPool(sleeper, workers=300, queue_size=0, limiter=make_limiter()) as pool:
        handles = [pool.submit_nowait(1) for _ in range(300)]
        await settle()
        assert pool.stats.running == 300
        assert pool.stats.workers == made(pool) == 300
        for handle in handles:
            await handle
        assert_conserved(pool)


@fuzzed
async def test_workers_are_made_though_the_pool_was_paused_when_all_were_busy() -> None:
    async with WorkerPool(sleeper, workers=200, queue_size=200) as pool:
        handles = [await pool.submit(1) for _ in range(64)]
        await settle()
        pool.pause()
        handles += [await pool.submit(1) for _ in range(136)]
        await asyncio.sleep(3)
        assert pool.stats.running == 0
        pool.resume()
        await settle()
        assert pool.stats.running == 136
        assert pool.stats.workers == 200
        for handle in handles:
            await handle


@fuzzed
async def test_a_pool_is_resized_while_some_workers_are_not_made() -> None:
    async with WorkerPool(sleeper, workers=500, queue_size=1000) as pool:
        handles = [await pool.submit(1) for _ in range(100)]
        await settle()
        assert pool.stats.running == 100
        pool.resize(300)
        assert pool.stats.workers == 300
        pool.resize(50)
        handles += [await pool.submit(1) for _ in range(200)]
        await asyncio.sleep(1.5)
        assert pool.stats.running == pool.stats.workers == 50
        pool.resize(150)
        await settle()
        assert pool.stats.running == 150
        for handle in handles:
            await handle
        assert_conserved(pool)
        assert pool.stats.workers == 150


@virtual
async def test_the_workers_of_a_small_pool_are_all_made_at_the_start() -> None:
    async with WorkerPool(echo, workers=3) as pool:
        assert made(pool) == 3
        pool.resize(5)
        assert made(pool) == 5


class Connections:
    """A factory of resources that counts them, and takes a second to open one."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.opened = self.open = self.most = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.opened += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(self.seconds)
            yield
        finally:
            self.open -= 1


async def use(seconds: float, connection: None) -> None:
    await asyncio.sleep(seconds)


@virtual
async def test_a_pool_of_a_billion_workers_opens_the_resources_that_are_needed() -> None:
    connect = Connections()
    async with WorkerPool(use, workers=10**9, resource=connect) as pool:
        assert pool.stats.target_workers == 10**9
        await asyncio.sleep(2)
        assert connect.opened == pool.stats.workers == made(pool) == 64
        await pool.map([5.0] * 500)
        assert made(pool) == connect.most == 500


@fuzzed
async def test_every_worker_with_a_resource_that_is_needed_is_made() -> None:
    connect = Connections()
    async with WorkerPool(use, workers=300, resource=connect) as pool:
        handles = [await pool.submit(10.0) for _ in range(300)]
        await asyncio.sleep(3)
        assert pool.stats.running == pool.stats.workers == connect.open == 300
        for handle in handles:
            await handle
        assert_conserved(pool)


@fuzzed
async def test_one_job_at_a_time_makes_one_worker_at_a_time() -> None:
    connect = Connections()
    async with WorkerPool(use, workers=200, resource=connect) as pool:
        await asyncio.sleep(2)
        handles = [await pool.submit(1000.0) for _ in range(64)]
        await asyncio.sleep(2)
        for number in range(1, 10):
            handles.append(await pool.submit(1000.0))
            await asyncio.sleep(3)
            assert (made(pool), pool.stats.running) == (64 + number, 64 + number)
        for handle in handles:
            handle.cancel()


@fuzzed
async def test_without_a_queue_every_worker_with_a_resource_is_used() -> None:
    async with (
        WorkerPool(use, workers=200, queue_size=0, resource=Connections()) as pool,
        pool.group(window=200) as group,
    ):
        for _ in range(200):
            await group.submit(100.0)
        await asyncio.sleep(10)
        assert pool.stats.running == 200
        group.close_intake()
        assert len([outcome async for outcome in group]) == 200


@fuzzed
async def test_workers_that_leave_do_not_keep_others_from_being_made() -> None:
    connect = Connections()

    @asynccontextmanager
    async def leave_slowly() -> AsyncIterator[None]:
        async with connect():
            yield
            await asyncio.sleep(8)

    async with WorkerPool(use, workers=AutoScale(100, 400), resource=leave_slowly) as pool:
        handles = [await pool.submit(2.0) for _ in range(100)]
        await asyncio.sleep(2)
        pool.resize(AutoScale(20, 400))
        handles += [await pool.submit(2.0) for _ in range(100)]
        pool.resize(100)
        await asyncio.sleep(8)
        for handle in handles:
            await handle
        assert_conserved(pool)


@fuzzed
async def test_a_worker_whose_resource_hangs_keeps_no_job_waiting() -> None:
    hanging: list[int] = []

    @asynccontextmanager
    async def connect() -> AsyncIterator[None]:
        hanging.append(1)
        if len(hanging) > 64:
            await asyncio.sleep(0.1 if len(hanging) > 66 else 25)
        yield

    async with WorkerPool(use, workers=200, resource=connect) as pool:
        handles = [await pool.submit(1000.0) for _ in range(65)]
        await asyncio.sleep(20)
        assert pool.stats.running == 65
        for handle in handles:
            handle.cancel()
