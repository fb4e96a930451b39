"""A pool with work and no usable worker reports it, and reports when that is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import AutoScale, WorkerPool
from asyncpool.events import PoolRecovered, PoolStalled
from asyncpool.testing import settle
from tests.helpers import fuzzed, ignores_cancel, now, virtual
from tests.scaling.tools import timers


class Backend:
    """Refuses connections from one loop time to another, or lets them hang."""

    def __init__(self, begin: float, end: float, *, hangs: bool = False) -> None:
        self.begin = begin
        self.end = end
        self.hangs = hangs

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[None]:
        if self.begin <= now() < self.end:
            if not self.hangs:
                raise ConnectionRefusedError("port 5432")
            await asyncio.sleep(self.end - now())
        yield


async def use(seconds: float, connection: None) -> None:
    await asyncio.sleep(seconds)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def stalls(events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, (PoolStalled, PoolRecovered))]


@pytest.mark.parametrize("hangs", [False, True])
@fuzzed
async def test_a_pool_whose_workers_all_wait_for_their_resource_says_so_once_and_then_that_it_is_over(
    hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    events: list[Any] = []
    backend = Backend(1, 25, hangs=hangs)
    async with WorkerPool(
        use, workers=3, resource=backend.connect, timeout=2, observers=[events.append], name="db"
    ) as pool:
        await settle()
        await asyncio.gather(*[(await pool.submit(3)).outcome() for _ in range(3)])
        handle = await pool.submit(1)
        await asyncio.sleep(4)
        assert stalls(events) == []
        assert pool.stats.stalled_seconds == 0.0
        await asyncio.sleep(3)
        assert pool.stats.stalled_seconds >= 5.0
        await handle
        assert pool.stats.stalled_seconds == 0.0
    stalled, recovered = stalls(events)
    assert isinstance(stalled, PoolStalled)
    assert stalled.queued == 1
    assert "no worker has its resource" in stalled.reason
    assert hangs or "port 5432" in stalled.reason
    assert isinstance(recovered, PoolRecovered)
    assert recovered.seconds >= 15
    first, second = [text for text in warnings_in(caplog) if "open again" not in text]
    assert first.startswith("pool 'db': stalled: 1 waiting, and no usable worker for ")
    assert "no longer stalled after" in second


@virtual
async def test_a_job_that_arrives_long_after_the_workers_lost_their_resource_is_noticed() -> None:
    events: list[Any] = []
    backend = Backend(1, 300, hangs=True)
    async with WorkerPool(use, workers=1, resource=backend.connect, timeout=2, observers=[events.append]) as pool:
        await (await pool.submit(3)).outcome()
        await asyncio.sleep(11)
        assert stalls(events) == []
        handle = await pool.submit(1)
        await asyncio.sleep(7)
        assert len(stalls(events)) == 1
        handle.cancel()
        await asyncio.sleep(1.5)
        assert len(stalls(events)) == 2  # there is no work any more


@virtual
async def test_a_pool_whose_workers_all_run_stuck_jobs_says_so() -> None:
    events: list[Any] = []
    async with WorkerPool(ignores_cancel, workers=2, observers=[events.append]) as pool:
        handles = [await pool.submit(30) for _ in range(2)]
        waiting = await pool.submit(0)
        await settle()
        for handle in handles:
            handle.cancel()
        await asyncio.sleep(11)
        [stalled] = stalls(events)
        assert stalled.reason == "2 of 2 workers run jobs that ignore their cancellation"
        assert pool.stats.stalled_seconds > 0
        await waiting
        assert len(stalls(events)) == 2
        assert pool.stats.stalled_seconds == 0


@pytest.mark.parametrize("queue_size", [None, 0])
@virtual
async def test_work_that_comes_when_all_workers_run_stuck_jobs_already_is_noticed(queue_size: int | None) -> None:
    events: list[Any] = []
    async with WorkerPool(ignores_cancel, workers=2, queue_size=queue_size, observers=[events.append]) as pool:
        handles = [await pool.submit(100) for _ in range(2)]
        await settle()
        for handle in handles:
            handle.cancel()
        await asyncio.sleep(20)
        sleeps = len(timers())
        assert sleeps == 2  # those of the jobs, and none of the pool's
        waiting = asyncio.ensure_future(pool.run(0))
        await asyncio.sleep(7)
        [stalled] = stalls(events)
        assert stalled.queued == 1
        await asyncio.sleep(3)
        assert len(timers()) == sleeps
        await waiting
        assert len(stalls(events)) == 2


@virtual
async def test_a_submitter_that_waits_for_room_is_work_too() -> None:
    events: list[Any] = []
    backend = Backend(1, 20)
    async with WorkerPool(
        use, workers=1, queue_size=0, resource=backend.connect, timeout=2, observers=[events.append]
    ) as pool:
        await (await pool.submit(3)).outcome()
        await pool.submit(1)
    assert [event.queued for event in events if isinstance(event, PoolStalled)] == [1]


@virtual
async def test_a_pool_that_is_paused_or_has_no_work_or_a_worker_is_not_stalled() -> None:
    events: list[Any] = []
    backend = Backend(1, 300)
    async with WorkerPool(use, workers=2, resource=backend.connect, timeout=500, observers=[events.append]) as pool:
        await settle()
        working = await pool.submit(400)
        await asyncio.sleep(2)
        spoilt = await pool.submit(100)
        await settle()
        spoilt.cancel()
        await pool.submit(1)
        await asyncio.sleep(50)  # one worker works, one has no resource
        working.cancel()
        pool.pause()
        await asyncio.sleep(50)
        assert stalls(events) == []
        pool.resume()
        await asyncio.sleep(7)
        assert len(stalls(events)) == 1


@virtual
async def test_a_pool_that_is_not_stalled_arms_no_timer() -> None:
    backend = Backend(1, 2)
    async with WorkerPool(use, workers=AutoScale(0, 2, idle_timeout=1), resource=backend.connect) as pool:
        await pool.run(1)
        await asyncio.sleep(20)
        assert timers() == []
