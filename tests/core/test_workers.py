"""Workers without a resource are made when they are first needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import RateLimit, WorkerPool
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
