"""Workers with resources that come and go, and pools that end in the middle of that."""

from __future__ import annotations

import asyncio

import pytest

from asyncpool import AutoScale, WorkerPool
from asyncpool.testing import ManualHandler, settle
from tests.helpers import assert_conserved, fuzzed, now, virtual
from tests.scaling.tools import SOON, Connections, Sizes, use

# -- Resources ---------------------------------------------------------------------------------------------------------


@fuzzed
async def test_each_worker_that_comes_and_goes_opens_and_closes_its_resource_once() -> None:
    connections = Connections(0.05)
    async with WorkerPool(use, workers=AutoScale(1, 6, idle_timeout=1), resource=connections) as pool:
        for _ in range(3):
            assert len(await pool.map([0.1] * 60)) == 60
            assert len(connections.open) == 6
            await asyncio.sleep(3)
            assert len(connections.open) == pool.stats.workers == 1
        assert_conserved(pool)
        assert pool.stats.succeeded == 180
    assert connections.open == []
    assert sorted(connections.left) == list(range(1, connections.entered + 1))
    assert connections.entered == connections.asked == 16


@fuzzed
async def test_no_job_is_lost_when_workers_retire_as_jobs_come() -> None:
    connections = Connections(0.01)
    policy = AutoScale(0, 6, idle_timeout=0.05, interval=0.01, backlog_per_worker=1)
    async with WorkerPool(use, workers=policy, resource=connections) as pool:
        handles = []
        for number in range(60):
            handles += [pool.submit_nowait(0.02) for _ in range(number % 4)]
            await asyncio.sleep(0.01 * (number % 9))
        for handle in handles:
            assert await handle
        assert_conserved(pool)
        assert pool.stats.succeeded == len(handles)
    assert connections.open == []
    assert len(connections.left) == len(set(connections.left)) == connections.entered


@fuzzed
async def test_the_worker_that_is_used_keeps_its_resource_and_the_idle_ones_retire() -> None:
    connections = Connections()
    async with WorkerPool(use, workers=AutoScale(1, 3, backlog_per_worker=1), resource=connections) as pool:
        await pool.map([1, 2, 3, 1, 2, 3])
        assert sorted(connections.open) == [1, 2, 3]
        used = await pool.run(0.1)
        for _ in range(100):
            assert await pool.run(0.1) == used
            await asyncio.sleep(0.9)
        assert connections.open == [used]


@fuzzed
async def test_resize_by_a_number_also_keeps_the_resource_that_was_used_last() -> None:
    connections = Connections()
    async with WorkerPool(use, workers=3, resource=connections) as pool:
        await settle()
        await pool.map([1, 2, 3])
        used = await pool.run(1)
        pool.resize(1)
        await settle()
        assert connections.open == [used]


@virtual
async def test_a_worker_whose_resource_cannot_be_opened_is_no_capacity() -> None:
    connections = Connections(refused_from=2)
    async with WorkerPool(use, workers=AutoScale(1, 10), resource=connections) as pool:
        handles = [await pool.submit(1) for _ in range(50)]
        await asyncio.sleep(5.5)
        assert pool.stats.target_workers == 10
        assert pool.stats.workers == 1
        assert pool.stats.running == 1
        for handle in handles:
            handle.cancel()


@virtual
async def test_while_a_resource_cannot_be_opened_the_pool_does_not_grow() -> None:
    connections = Connections(refused_from=2)
    async with WorkerPool(use, workers=AutoScale(2, 10), resource=connections) as pool:
        handles = [await pool.submit(0.5) for _ in range(100)]
        await asyncio.sleep(20)
        assert pool.stats.target_workers == 2
        assert pool.stats.workers == 1
        connections.refused_from = float("inf")
        await asyncio.sleep(6)
        assert pool.stats.target_workers == 10
        for handle in handles:
            await handle


@virtual
async def test_while_resources_are_being_opened_the_pool_does_not_grow() -> None:
    connections = Connections(4)
    async with WorkerPool(use, workers=AutoScale(1, 50, backlog_per_worker=10), resource=connections) as pool:
        for _ in range(30):
            await pool.submit(100)
        await asyncio.sleep(1)
        assert pool.stats.target_workers == 3
        for _ in range(200):
            await pool.submit(100)
        await asyncio.sleep(2.5)
        assert pool.stats.target_workers == 3
        await asyncio.sleep(1)
        assert pool.stats.target_workers > 3
        pool.cancel()


@virtual
async def test_a_resource_that_is_slower_than_the_idle_timeout_still_gives_workers() -> None:
    connections = Connections(2)
    async with WorkerPool(use, workers=AutoScale(1, 10, idle_timeout=1), resource=connections) as pool:
        await pool.map([1] * 60)
        assert pool.stats.peak_running == 10
        assert connections.asked == 10
        await asyncio.sleep(1 + SOON)
        assert pool.stats.workers == 1


@virtual
async def test_an_outage_of_the_backend_is_no_reason_to_flap() -> None:
    sizes, connections = Sizes(), Connections()
    async with WorkerPool(use, workers=AutoScale(1, 10), resource=connections, observers=[sizes]) as pool:
        connections.refused_from = 0
        handles = [await pool.submit(5) for _ in range(100)]
        await asyncio.sleep(200)
        assert sizes.sizes == [10]
        connections.refused_from = float("inf")
        await asyncio.sleep(6)
        assert pool.stats.running == 10
        for handle in handles:
            await handle


@virtual
async def test_a_pool_that_sleeps_opens_no_resource_before_the_first_job() -> None:
    connections = Connections(3)
    async with WorkerPool(use, workers=AutoScale(0, 5, idle_timeout=10), resource=connections) as pool:
        await asyncio.sleep(100)
        assert connections.asked == 0
        assert await pool.run(1) == 1
        assert now() == 104
        await asyncio.sleep(11)
        assert connections.open == []


@virtual
async def test_a_pool_without_jobs_stops_trying_to_open_a_resource() -> None:
    connections = Connections(refused_from=1)
    async with WorkerPool(use, workers=AutoScale(0, 5, idle_timeout=10), resource=connections) as pool:
        handle = await pool.submit(1)
        await asyncio.sleep(100)
        assert connections.asked > 10
        handle.cancel()
        await asyncio.sleep(20)
        asked = connections.asked
        await asyncio.sleep(1000)
        assert connections.asked == asked
        assert pool.stats.target_workers == 0


@fuzzed
async def test_surplus_workers_that_are_still_starting_give_it_up() -> None:
    connections = Connections(10)
    async with WorkerPool(use, workers=AutoScale(1, 10), resource=connections) as pool:
        handles = [await pool.submit(1) for _ in range(50)]
        await asyncio.sleep(1)
        assert pool.stats.target_workers == 10
        pool.resize(1)
        for handle in handles:
            await handle
    assert connections.entered == 1
    assert connections.left == [1]


# -- Shutdown in the middle of a resize --------------------------------------------------------------------------------


@fuzzed
async def test_a_drain_while_resources_are_opened_does_all_jobs_and_closes_all() -> None:
    connections = Connections(2)
    pool = WorkerPool(use, workers=AutoScale(1, 10), resource=connections)
    await pool.start()
    handles = [await pool.submit(1) for _ in range(60)]
    await asyncio.sleep(1)
    assert pool.stats.target_workers == 10
    assert pool.stats.workers == 1
    report = await pool.close()
    assert (report.unfinished, report.abandoned, report.errors) == ((), (), ())
    assert pool.stats.succeeded == 60
    assert connections.open == []
    assert sorted(connections.left) == list(range(1, connections.entered + 1))
    assert now() < 20
    for handle in handles:
        await handle


@fuzzed
async def test_a_cancel_while_resources_are_opened_hands_back_the_jobs_and_closes_all() -> None:
    connections = Connections(2)
    pool = WorkerPool(use, workers=AutoScale(1, 10), resource=connections)
    await pool.start()
    jobs = [10.0 + number for number in range(60)]
    for job in jobs:
        await pool.submit(job)
    await asyncio.sleep(1)
    assert pool.stats.target_workers == 10
    pool.cancel()
    report = await pool.close()
    assert [entry.job for entry in report.unfinished] == jobs
    assert [entry.started for entry in report.unfinished] == [True] + [False] * 59
    assert (report.abandoned, report.errors) == ((), ())
    assert connections.open == []
    assert connections.left == [1]
    assert now() == 3
    assert pool.stats.workers == 0


@fuzzed
async def test_a_cancel_while_workers_retire_hands_back_the_jobs_and_closes_all() -> None:
    connections = Connections()
    pool = WorkerPool(use, workers=AutoScale(8, 8), resource=connections)
    await pool.start()
    jobs = [10.0 + number for number in range(30)]
    for job in jobs:
        await pool.submit(job)
    await asyncio.sleep(1)
    pool.resize(AutoScale(1, 3))
    pool.cancel()
    report = await pool.close()
    assert [entry.job for entry in report.unfinished] == jobs
    assert [entry.started for entry in report.unfinished] == [True] * 8 + [False] * 22
    assert connections.open == []
    assert sorted(connections.left) == list(range(1, 9))
    assert_conserved(pool)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1, 0.11, 0.6, 1.0, 1.5, 2.2])
@pytest.mark.parametrize("end", ["drain", "cancel"])
@fuzzed
async def test_whenever_the_end_comes_every_job_has_one_outcome_and_every_resource_is_closed(
    end: str, moment: float
) -> None:
    connections = Connections(0.5)
    policy = AutoScale(0, 6, idle_timeout=0.3)
    pool = WorkerPool(use, workers=policy, resource=connections, queue_size=100)
    await pool.start()
    handles = [await pool.submit(0.2) for _ in range(25)]
    await asyncio.sleep(moment)
    if end == "cancel":
        pool.cancel()
    report = await pool.close()
    assert_conserved(pool)
    assert len(report.unfinished) == pool.stats.cancelled
    assert pool.stats.succeeded + pool.stats.cancelled == 25
    assert end == "cancel" or not report.unfinished
    assert connections.open == []
    assert len(connections.left) == len(set(connections.left)) == connections.entered
    assert all(handle.done() for handle in handles)
    for handle in handles:
        await handle.outcome()


@fuzzed
async def test_nothing_grows_after_the_program_was_left_by_an_exception() -> None:
    handler = ManualHandler[int, None]()
    pool = WorkerPool(handler, workers=AutoScale(1, 10))
    with pytest.raises(LookupError):
        async with pool:
            for job in range(50):
                await pool.submit(job)
            await settle()
            raise LookupError
    assert handler.started == [0]
    assert pool.report is not None
    assert len(pool.report.unfinished) == 50
