"""Scenarios of the life of a pool: how it starts, pauses, changes its size, and stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from asyncpool import PoolClosed, PoolDeadlock, PoolError, WorkerPool
from asyncpool.testing import settle
from tests.laws.schedules.tools import any_size, read_all, scenario, sizes, turns
from tests.laws.witness import KINDS, Item, Witness, ended, spawn


@scenario
async def stop_arrives_during_a_burst(witness: Witness, random: Random) -> None:
    pool = witness.make_pool(**sizes(random))
    await pool.start()
    tasks = [spawn(witness.submit(witness.item(*KINDS))) for _ in range(10)]
    await turns(random, 8)
    if random.random() < 0.5:
        pool.cancel()
    report = await pool.close(drain_timeout=random.choice((0.0, 0.5, 2.0)), grace=1.0)
    await ended(*tasks)
    for task in tasks:
        assert task.cancelled() or task.exception() is None or isinstance(task.exception(), PoolClosed)
    assert await witness.check_end() is report
    assert not report.abandoned


@scenario
async def a_close_is_cancelled_once_or_twice(witness: Witness, random: Random) -> None:
    pool = witness.make_pool(**sizes(random))
    await pool.start()
    tasks = [spawn(witness.submit(witness.item(*KINDS))) for _ in range(6)]
    await turns(random, 6)
    begun: list[int] = []

    async def close() -> Any:
        begun.append(1)
        return await pool.close()

    witness.may_abandon = True
    closers = [spawn(close()) for _ in range(2)]
    while len(begun) < 2:  # a task that is cancelled before its first step closes nothing
        await asyncio.sleep(0)
    await turns(random, 4)
    for _ in range(random.randint(1, 2)):
        for closer in random.sample(closers, random.randint(1, 2)):
            closer.cancel()
        await turns(random, 3)
    await ended(*closers)
    assert pool.report is not None
    for closer in closers:
        assert closer.cancelled() or closer.result() is pool.report
    await ended(*tasks)
    await witness.check_end()
    await asyncio.sleep(2)  # what was abandoned ends: cancelled in the same moment, it had no time for that


@scenario
async def jobs_stop_their_own_pool(witness: Witness, random: Random) -> None:
    async def handler(item: Item) -> int:
        if item.n % 4 == 3:
            await turns(random, 2)
            random.choice((pool.cancel, pool.drain))()
            with pytest.raises(PoolDeadlock):
                await pool.close()
        return await witness.handle(item)

    witness.limit = witness.wanted = 3
    pool = WorkerPool(handler, workers=random.randint(1, 3), queue_size=random.randint(0, 3))
    witness.pool = pool
    await pool.start()
    tasks = [spawn(witness.submit(item)) for item in witness.items(8, "ok", "turn", "nap")]
    await ended(*tasks)
    await pool.close()
    assert pool.report is not None
    assert all(handle.done() for handle in witness.handles)
    assert pool.stats.submitted == len(witness.handles)
    witness.check()


@scenario
async def somebody_cancels_every_task(witness: Witness, random: Random) -> None:
    """As asyncio.run does at its end: the pool was not closed, and each of its tasks is cancelled."""
    entered = left = 0

    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        nonlocal entered, left
        if random.random() < 0.3:
            raise OSError("no connection")
        entered += 1
        try:
            yield entered
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                left += 1

    options: dict[str, Any] = {"resource": resource} if random.random() < 0.5 else {}
    pool = witness.make_pool(**sizes(random), **options)
    try:
        await pool.start()
    except OSError:
        assert not await pool.close()
        return
    readers = [spawn(witness.submit(witness.item(*KINDS))) for _ in range(4)]
    stream = pool.outcomes(witness.source(witness.items(6, *KINDS)))
    readers.append(spawn(read_all(stream)))
    await turns(random, 8)
    witness.may_abandon = True  # the program ends: there is no grace
    me = asyncio.current_task()
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name()):
        if task is not me:
            task.cancel()
    await ended(*readers)
    await pool.close()
    assert (pool.stats.queued, pool.stats.running) == (0, 0)
    await asyncio.sleep(2)  # what had no time to end does now
    await witness.check_end()
    assert entered == left


@scenario
async def a_pool_is_closed_while_it_starts(witness: Witness, random: Random) -> None:
    held = 0

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        nonlocal held
        await turns(random, 3)
        held += 1
        try:
            yield
        finally:
            await turns(random, 3)
            held -= 1

    pool = witness.make_pool(resource=resource, **sizes(random))
    starter = spawn(pool.start())
    tasks = []
    for _ in range(3):
        await turns(random, 3)
        with suppress(PoolError):
            witness.handles.append(pool.submit_nowait(witness.item()))
        tasks.append(spawn(witness.submit(witness.item())))
    match random.randint(0, 2):
        case 0:
            pool.cancel()
        case 1:
            starter.cancel()
    await ended(starter)
    report = await pool.close(drain_timeout=random.choice((0.0, None)))
    await ended(*tasks)
    if pool.stats.submitted:
        assert await witness.check_end() is report
    assert held == 0


@scenario
async def the_pool_pauses_and_changes_its_size(witness: Witness, random: Random) -> None:
    size = sizes(random)
    is_paused = False
    async with witness.make_pool(**size) as pool:
        tasks = [spawn(witness.submit(item)) for item in witness.items(12, "nap", "slow", "turn", "fail")]
        for _ in range(6):
            await turns(random, 4)
            match random.randint(0, 3):
                case 0:
                    pool.pause()
                    is_paused = True
                case 1:
                    pool.resume()
                    is_paused = False
                case _:
                    witness.resize(any_size(random))
            witness.check()
            if random.random() < 0.5:
                await settle()
                stats = pool.stats
                idle = 0 if is_paused else stats.workers - stats.running
                assert not (idle and stats.queued), "a worker idles beside a queued job"
                room = size["queue_size"] + idle - stats.queued
                assert not witness.waiting or room <= 0, f"somebody waits, and there is room for {room}"
        if random.random() < 0.7:
            pool.resume()
            await ended(*tasks)
    await ended(*tasks)  # a close lifts the pause, and turns away who waits
    assert not (await witness.check_end())


@scenario
async def each_request_cancels_a_job_that_has_swallowed_the_others(witness: Witness, random: Random) -> None:
    cancels: list[float] = []

    async def handler(job: int) -> None:
        obeys_at = random.randint(1, 2)  # the shutdown alone requests it twice
        while True:
            try:
                await asyncio.sleep(1000.0)
            except asyncio.CancelledError:
                cancels.append(asyncio.get_running_loop().time())
                if len(cancels) >= obeys_at:
                    raise

    timeout = random.choice((None, 1.0))
    requests = 2 + (timeout is not None)  # the shutdown, at its begin and at half of its grace
    pool = WorkerPool(handler, workers=1, timeout=timeout)
    await pool.start()
    group = pool.group()
    is_in_group = random.random() < 0.5
    handle = None if is_in_group else await pool.submit(1)
    if is_in_group:
        await group.submit(1)
    await asyncio.sleep(random.choice((0.5, 1.0, 3.0)))
    await turns(random, 4)
    if random.random() < 0.5:
        requests += 1
        if handle is None:
            group.cancel()
        else:
            handle.cancel()
        await asyncio.sleep(random.choice((0.0, 0.05, 2.0)))
    report = await pool.close(drain_timeout=0.0, grace=30.0)
    assert not report.abandoned
    assert 1 <= len(cancels) <= requests
    # Two do not come so close that the first cannot have arrived.
    assert all(after - before >= 0.099 for before, after in pairwise(cancels))
