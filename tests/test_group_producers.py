"""Several producers of one group: the last that leaves its block closes the intake."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable
from typing import Any

import pytest

from asyncpool import Group, PoolClosed, PoolNotStarted, StreamClosed, WorkerPool
from asyncpool.groups import Producer
from asyncpool.testing import settle
from tests.helpers import echo, fuzzed, virtual


async def produce(producer: Producer[int, int], jobs: Iterable[int]) -> None:
    async with producer as group:
        for job in jobs:
            await group.submit(job)


async def read(group: Group[int, int]) -> list[int]:
    return sorted([outcome.unwrap() async for outcome in group])


@pytest.mark.parametrize("parts", [0, 1, 5])
@fuzzed
async def test_the_last_producer_closes_the_intake(parts: int) -> None:
    async with WorkerPool(echo, workers=2, queue_size=1) as pool:
        group = pool.group()
        async with asyncio.TaskGroup() as tasks:
            async with group.producer():
                for part in range(parts):
                    tasks.create_task(produce(group.producer(), range(10 * part, 10 * part + 10)))
            assert await read(group) == list(range(10 * parts))
        with pytest.raises(StreamClosed, match="takes no more jobs"):
            group.producer()


@virtual
async def test_producers_that_start_together_need_no_other_one() -> None:
    async def start(group: Group[int, int], jobs: Iterable[int]) -> None:
        await produce(group.producer(), jobs)

    # The first has ended before the second has had its first step.
    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(start(group, []))
            tasks.create_task(start(group, [1]))
            assert await read(group) == [1]


@virtual
async def test_a_producer_counts_from_the_call_on() -> None:
    async def later(producer: Producer[int, int]) -> None:
        await asyncio.sleep(5)
        async with producer as group:
            await group.submit(2)

    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(later(group.producer()))
            tasks.create_task(produce(group.producer(), [1]))
            assert await read(group) == [1, 2]


@virtual
async def test_an_error_ends_only_the_producer_that_raised_it() -> None:
    async def fail(group: Group[int, int]) -> None:
        async with group.producer():
            await group.submit(1)
            raise OSError("no more input")

    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group()
        failing = asyncio.create_task(fail(group))
        going_on = asyncio.create_task(produce(group.producer(), [2, 3]))
        assert await read(group) == [1, 2, 3]
        await going_on
        with pytest.raises(OSError, match="no more input"):
            await failing


@virtual
async def test_a_producer_that_is_never_entered_does_not_keep_the_group_open() -> None:
    async def later(producer: Producer[int, int]) -> None:
        async with producer:
            raise AssertionError("it was cancelled before its first step")

    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group()
        task = asyncio.create_task(later(group.producer()))
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        assert await read(group) == []


@virtual
async def test_a_dropped_producer_of_a_closed_group_changes_nothing() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group()
        producer: Any = group.producer()
        group.close_intake()
        del producer
        gc.collect()
        await settle()
        assert await read(group) == []


def test_a_producer_can_be_dropped_when_its_loop_is_closed() -> None:
    kept: list[object] = []

    async def main() -> None:
        async with WorkerPool(echo, workers=1) as pool:
            kept.append(pool.group().producer())

    asyncio.run(main())
    kept.clear()
    gc.collect()


@virtual
async def test_a_producer_is_entered_once() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group()
        producer = group.producer()
        async with producer as entered:
            assert entered is group
        with pytest.raises(RuntimeError, match="can be entered only once"):
            async with producer:
                pass
        assert await read(group) == []


@virtual
async def test_there_is_no_producer_of_a_group_that_takes_no_jobs() -> None:
    pool = WorkerPool(echo, workers=1)
    with pytest.raises(PoolNotStarted):
        pool.group().producer()
    async with pool:
        cancelled, group = pool.group(), pool.group()
        cancelled.cancel()
        with pytest.raises(StreamClosed, match="was cancelled"):
            cancelled.producer()
    with pytest.raises(PoolClosed):
        group.producer()


@virtual
async def test_a_group_that_is_cancelled_turns_its_producers_away() -> None:
    async with WorkerPool(echo, workers=1, queue_size=1) as pool:
        group = pool.group(window=1)
        tasks = [asyncio.create_task(produce(group.producer(), [part, part])) for part in range(3)]
        await settle()
        await group.aclose()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, StreamClosed) for error in ended)
