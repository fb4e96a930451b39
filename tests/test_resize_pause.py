"""`resize`, `pause` and `resume` of a pool without resources; those with resources are in test_resources.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool import Breaker, Event, FixedSize, QueueFull, RateLimit, WorkerPool
from asyncpool.events import JobEnded
from asyncpool.testing import ManualHandler, settle
from tests.helpers import assert_conserved, echo, fuzzed, now, sleeper, virtual

# -- resize


@fuzzed
async def test_new_workers_begin_at_once() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1) as pool:
        for job in range(5):
            await pool.submit(job)
        await settle()
        pool.resize(4)
        await settle()
        assert sorted(handler.running) == [0, 1, 2, 3]
        while handler.running:
            handler.finish_all()
            await settle()


@fuzzed
async def test_surplus_workers_retire_after_their_job() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=3, queue_size=20) as pool:
        for job in range(8):
            await pool.submit(job)
        await settle()
        pool.resize(1)
        await settle()
        assert len(handler.running) == 3
        handler.finish_all()
        await settle()
        assert len(handler.running) == 1
        assert pool.stats.workers == 1
        while handler.running:
            handler.finish_all()
            await settle()
    assert sorted(handler.started[:3]) == [0, 1, 2]
    assert handler.started[3:] == [3, 4, 5, 6, 7]


@fuzzed
async def test_idle_workers_retire_before_busy_ones() -> None:
    async with WorkerPool(sleeper, workers=3) as pool:
        handle = await pool.submit(5)
        await settle()
        pool.resize(1)
        assert pool.stats.workers == 1
        assert await handle == 5
        assert await pool.run(1) == 1


@fuzzed
async def test_workers_that_were_to_retire_are_called_back_first() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=3) as pool:
        for job in range(6):
            await pool.submit(job)
        await settle()
        pool.resize(1)
        pool.resize(3)
        await settle()
        assert len(handler.running) == 3
        assert handler.peak_running == 3
        handler.finish_all()
        await settle()
        handler.finish_all()
    assert handler.peak_running == 3


@fuzzed
async def test_the_limit_is_never_exceeded_whatever_is_resized() -> None:
    limit = 4
    running = 0

    async def handler(job: int) -> None:
        nonlocal running
        running += 1
        assert running <= max(limit, 4)
        await asyncio.sleep(1)
        running -= 1

    async with WorkerPool(handler, workers=4, queue_size=100) as pool:
        for _ in range(60):
            await pool.submit(1)
        for wanted in (1, 3, 2, 4, 1, 4):
            pool.resize(wanted)
            await asyncio.sleep(0.7)
            assert_conserved(pool)
        await pool.join()
        assert pool.stats.peak_running <= 4
        assert pool.stats.failed == 0


@fuzzed
async def test_growing_makes_room_for_those_who_wait() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        await pool.submit(100)
        waiting = [asyncio.create_task(pool.run(1)) for _ in range(3)]
        await settle()
        pool.resize(4)
        assert await asyncio.gather(*waiting) == [1, 1, 1]
        assert now() == 1
        pool.cancel()


@virtual
async def test_the_default_queue_size_follows_the_workers() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        pool.pause()
        for _ in range(10):
            pool.submit_nowait(0)
        with pytest.raises(QueueFull):
            pool.submit_nowait(0)
        pool.resize(2)
        for _ in range(10):
            pool.submit_nowait(0)
        with pytest.raises(QueueFull):
            pool.submit_nowait(0)
        assert pool.group()._channel.window == 22


@pytest.mark.parametrize(
    ("workers", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError), (None, TypeError)]
)
@virtual
async def test_resize_checks_what_it_is_given_and_changes_nothing(workers: Any, error: type[Exception]) -> None:
    async with WorkerPool(echo, workers=2) as pool:
        with pytest.raises(error, match="workers must be"):
            pool.resize(workers)
        assert pool.stats.workers == pool.stats.max_workers == 2


@virtual
async def test_resize_takes_a_policy() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        pool.resize(FixedSize(3))
        assert pool.stats.workers == pool.stats.max_workers == 3


@fuzzed
async def test_a_job_may_resize_its_pool() -> None:
    async def handler(job: int) -> int:
        pool.resize(job)
        await asyncio.sleep(1)
        return job

    pool = WorkerPool(handler, workers=2)
    async with pool:
        assert await pool.map([1, 5, 1, 3, 2]) == [1, 5, 1, 3, 2]
        assert_conserved(pool)


# -- pause and resume


@fuzzed
async def test_a_paused_pool_finishes_its_jobs_and_takes_no_more() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=2) as pool:
        for job in range(4):
            await pool.submit(job)
        await settle()
        pool.pause()
        handler.finish_all()
        await settle()
        assert handler.running == []
        assert pool.stats.queued == 2
        assert "paused" in repr(pool)
        pool.resume()
        await settle()
        assert sorted(handler.running) == [2, 3]
        handler.finish_all()


@pytest.mark.parametrize("queue_size", [0, 1, 3])
@fuzzed
async def test_the_queue_of_a_paused_pool_fills_and_then_submitters_wait(queue_size: int) -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=queue_size) as pool:
        pool.pause()
        for _ in range(queue_size):
            pool.submit_nowait(1)
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        waiting = asyncio.create_task(pool.run(1))
        await asyncio.sleep(10)
        assert not waiting.done()
        assert pool.stats.queued == queue_size
        pool.resume()
        assert await waiting == 1


@fuzzed
async def test_pausing_and_resuming_twice_is_as_once() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        pool.resume()
        pool.pause()
        pool.pause()
        handle = await pool.submit(1)
        pool.resume()
        pool.resume()
        assert await handle == 1


@pytest.mark.parametrize("options", [{}, {"limiter": RateLimit(5)}, {"queue_timeout": 5.0}, {"breaker": Breaker()}])
def test_a_pool_can_be_paused_and_resumed_before_it_starts(options: dict[str, Any]) -> None:
    pool = WorkerPool(echo, workers=1, **options)

    def pause_and_resume() -> None:
        pool.pause()
        assert pool.is_paused
        pool.resume(force=True)
        assert not pool.is_paused

    pause_and_resume()

    async def main() -> None:
        pause_and_resume()
        async with pool:
            assert await pool.run(1) == 1

    asyncio.run(main())


@fuzzed
async def test_streams_of_a_paused_pool_go_on_when_it_is_resumed() -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=1) as pool:
        pool.pause()
        asyncio.get_running_loop().call_later(5, pool.resume)
        assert await pool.map([1] * 6) == [1] * 6
        assert now() == 8


@fuzzed
async def test_resizing_a_paused_pool_starts_nothing() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1) as pool:
        pool.pause()
        for job in range(3):
            await pool.submit(job)
        pool.resize(3)
        await settle()
        assert handler.running == []
        pool.resume()
        await settle()
        assert len(handler.running) == 3
        handler.finish_all()


@fuzzed
async def test_a_job_may_pause_its_pool() -> None:
    async def handler(job: int) -> int:
        if job == 1:
            pool.pause()
            asyncio.get_running_loop().call_later(10, pool.resume)
        return job

    pool = WorkerPool(handler, workers=1)
    async with pool:
        assert await pool.map(range(4)) == [0, 1, 2, 3]
        assert now() == 10


@virtual
async def test_an_observer_may_resize_twice_while_a_job_ends() -> None:
    def resizing(event: Event) -> None:
        if isinstance(event, JobEnded):
            pool.resize(1)
            pool.resize(3)

    pool = WorkerPool(sleeper, workers=2, observers=[resizing])
    async with pool:
        assert await pool.map([1, 2, 1, 3, 1] * 4) == [1, 2, 1, 3, 1] * 4
        assert pool.stats.running == 0
    assert pool.stats.workers == 0


@virtual
async def test_the_last_fifty_resizes_are_kept_with_their_reasons() -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(echo, workers=1)
    pool.resize(3)  # before the pool is open: not a change of its workers
    assert pool.resizes() == ()
    async with pool:
        assert pool.resizes() == ()
        pool.resize(3)  # no change
        for workers in range(4, 60):
            pool.resize(workers)
        await asyncio.sleep(2)
        pool.resize(1)
        changes = pool.resizes()
        assert len(changes) == 50
        assert (changes[-1].old, changes[-1].new, changes[-1].seconds) == (59, 1, 0.0)
        assert (changes[-2].old, changes[-2].new, changes[-2].seconds) == (58, 59, 2.0)
        assert all(change.reason for change in changes)


def test_the_limiter_can_be_read() -> None:
    limit = RateLimit(5)
    assert WorkerPool(echo, workers=1, limiter=limit).limiter is limit
    assert WorkerPool(echo, workers=1).limiter is None
