"""Jobs that wait for their own pool: a wait that could never end raises, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import AutoScale, Failed, JobHandle, PoolDeadlock, Succeeded, WorkerPool
from asyncpool.testing import settle
from tests.helpers import echo, fuzzed, now, sleeper, virtual

Call = Callable[[], Awaitable[Any]]


class Nested:
    """A pool of callables, which the callables know."""

    def __init__(self, workers: int, **options: Any) -> None:
        self.pool: WorkerPool[Call, Any] = WorkerPool(workers=workers, **options)

    async def nop(self) -> int:
        return 1

    async def run(self) -> Any:
        return await self.pool.run(self.nop)

    async def handle(self) -> Any:
        return await (await self.pool.submit(self.nop))

    async def outcome(self) -> Any:
        return (await (await self.pool.submit(self.nop)).outcome()).unwrap()

    async def map(self) -> Any:
        return (await self.pool.map([self.nop]))[0]

    async def group(self) -> Any:
        async with self.pool.group() as group:
            await group.submit(self.nop)
        [outcome] = [outcome async for outcome in group]
        return outcome.unwrap()

    async def spawned(self) -> Any:
        return await asyncio.create_task(self.run())


WAYS = ["run", "handle", "outcome", "map", "group", "spawned"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [1, 2, 5])
@fuzzed
async def test_the_newest_wait_raises_and_the_others_go_on(way: str, workers: int) -> None:
    nested = Nested(workers)
    async with nested.pool as pool:
        handles = [await pool.submit(getattr(nested, way)) for _ in range(workers)]
        outcomes = [await handle.outcome() for handle in handles]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(failed) == 1
    assert isinstance(failed[0].error, PoolDeadlock)
    assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == workers - 1


@pytest.mark.parametrize("way", WAYS)
@fuzzed
async def test_with_a_worker_to_spare_nobody_is_disturbed(way: str) -> None:
    nested = Nested(3)
    async with nested.pool as pool:
        for _ in range(3):
            handles = [await pool.submit(getattr(nested, way)) for _ in range(2)]
            assert [await handle for handle in handles] == [1, 1]


@fuzzed
async def test_the_error_says_the_numbers() -> None:
    nested = Nested(2, name="mine")
    async with nested.pool as pool:
        outcomes = [await handle.outcome() for handle in [await pool.submit(nested.run) for _ in range(2)]]
    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert "pool 'mine': all 2 running jobs (of at most 2 at a time) wait for this same pool" in str(failed.error)


@fuzzed
async def test_a_job_that_awaits_itself_gets_pool_deadlock() -> None:
    handles: list[JobHandle[Any, Any]] = []

    async def itself(job: int) -> None:
        await asyncio.sleep(0)
        await handles[0]

    async with WorkerPool(itself, workers=5) as pool:
        handles.append(await pool.submit(1))
        with pytest.raises(PoolDeadlock, match="would wait for itself: it awaits its own handle"):
            await handles[0]


@fuzzed
async def test_waiting_for_a_job_that_runs_and_ends_is_no_deadlock() -> None:
    async with WorkerPool[Call, Any](workers=2) as pool:
        slow = await pool.submit(lambda: sleeper(5))

        async def waits() -> Any:
            return await slow

        assert await pool.run(waits) == 5


@fuzzed
async def test_waiting_for_another_pool_is_no_deadlock() -> None:
    async with WorkerPool(echo, workers=1) as other:

        async def handler(job: int) -> int:
            return await other.run(job)

        async with WorkerPool(handler, workers=1) as pool:
            assert await pool.map(range(5)) == list(range(5))


@fuzzed
async def test_tasks_outside_of_jobs_may_wait_as_they_like() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        assert await asyncio.gather(*(pool.run(1) for _ in range(5))) == [1] * 5


@fuzzed
async def test_a_paused_pool_is_no_deadlock_while_a_worker_is_free() -> None:
    nested = Nested(2)
    async with nested.pool as pool:
        handle = await pool.submit(nested.run)
        pool.pause()
        asyncio.get_running_loop().call_later(5, pool.resume)
        assert await handle == 1


@fuzzed
async def test_a_job_that_catches_pool_deadlock_can_do_the_work_itself() -> None:
    async def careful(depth: int) -> int:
        if depth == 0:
            return 0
        try:
            return 1 + await pool.run(depth - 1)
        except PoolDeadlock:
            return 1 + await careful(depth - 1)

    pool = WorkerPool(careful, workers=2)
    async with pool:
        assert await pool.run(5) == 5


@fuzzed
async def test_the_job_of_a_wait_that_raised_is_not_left_in_the_queue() -> None:
    nested = Nested(1)
    async with nested.pool as pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(nested.run)
        assert pool.stats.queued == 0
        assert pool.stats.cancelled == 1


@pytest.mark.parametrize("with_resource", [False, True])
@fuzzed
async def test_a_deadlock_that_comes_from_a_worker_that_retires_is_seen(with_resource: bool) -> None:
    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        yield

    async def handler(job: str, resource: None = None) -> Any:
        if job == "waits":
            await asyncio.sleep(1)
            return await pool.run("x")
        await asyncio.sleep(5 if job == "retires" else 0)
        return job

    options: Any = {"resource": resource} if with_resource else {}
    pool: WorkerPool[str, Any] = WorkerPool(handler, workers=2, **options)
    async with pool:
        await settle()
        handles = [await pool.submit(job) for job in ("waits", "retires")]
        await settle()
        pool.resize(1)
        async with asyncio.timeout(1000):
            outcomes = [await handle.outcome() for handle in handles]
    assert isinstance(outcomes[1], Succeeded)
    assert isinstance(outcomes[0], Succeeded) or isinstance(outcomes[0].error, PoolDeadlock)  # type: ignore[union-attr]


@fuzzed
async def test_a_deadlock_of_a_job_with_two_waits_ends_both() -> None:
    nested = Nested(2)

    async def both() -> list[Any]:
        handles = [await nested.pool.submit(nested.nop) for _ in range(2)]
        await asyncio.sleep(1)
        return await asyncio.gather(*(handle.outcome() for handle in handles), return_exceptions=True)

    async with nested.pool as pool:
        await pool.submit(lambda: sleeper(5))
        handle = await pool.submit(both)
        await settle()
        pool.resize(1)
        async with asyncio.timeout(1000):
            await handle.outcome()


@fuzzed
async def test_a_deadlock_that_is_left_when_one_of_two_waits_ended_is_seen() -> None:
    nested = Nested(2)
    handles: list[JobHandle[Any, Any]] = []

    async def both() -> Any:
        handles.extend([await nested.pool.submit(nested.nop) for _ in range(2)])
        return await asyncio.gather(*(handle.outcome() for handle in handles))

    async def cancels_one_and_waits() -> Any:
        await asyncio.sleep(1)
        handles[0].cancel()
        return await nested.pool.run(nested.nop)

    async with nested.pool as pool:
        waiting = [await pool.submit(both), await pool.submit(cancels_one_and_waits)]
        async with asyncio.timeout(1000):
            outcomes = [await handle.outcome() for handle in waiting]
    assert sum(isinstance(outcome, Failed) for outcome in outcomes) == 1


@fuzzed
async def test_a_job_that_was_just_woken_is_not_taken_for_blocked() -> None:
    async def first_of_two() -> int:
        quick, slow = (asyncio.create_task(pool.run(call)) for call in (nop, long))
        done, _ = await asyncio.wait([quick, slow], return_when=asyncio.FIRST_COMPLETED)
        slow.cancel()
        await asyncio.wait([slow])
        return done.pop().result()

    async def nop() -> int:
        await asyncio.sleep(1)
        return 1

    async def long() -> int:
        await asyncio.sleep(100)
        return 2

    pool: WorkerPool[Call, int] = WorkerPool(workers=3)
    async with pool:
        assert await pool.run(first_of_two) == 1
        assert now() == 1


@virtual
async def test_a_deadlock_that_comes_from_a_policy_with_fewer_workers_is_seen() -> None:
    async def outer() -> None:
        wait = asyncio.create_task(pool.run(inner))
        await asyncio.sleep(0)
        assert pool.stats.queued == 1
        pool.resize(1)  # before the pool has got the second worker that it was about to
        await wait

    async def inner() -> None:
        pass

    pool: WorkerPool[Call, None] = WorkerPool(workers=AutoScale(1, 4, interval=10))
    async with pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(outer)
