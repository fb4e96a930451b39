"""Resources with an engine: a process whose resource cannot be opened stays, and the program reports the failures."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from asyncpool import Failed, Processes, Resource, WorkerPool
from asyncpool.events import JobStuck, PoolRecovered, PoolStalled, ProcessGone, ResourceFailed
from tests.engines import handlers
from tests.engines.handlers import Door
from tests.engines.memory import InMemory, Portable
from tests.engines.test_processes import real, until
from tests.helpers import fuzzed, ignores_cancel, now, virtual
from tests.test_resources import Server, use

pytestmark = pytest.mark.usefixtures("no_signs_of_life")


def make_pool(engine: InMemory, server: Server, **options: Any) -> WorkerPool[Any, int]:
    return WorkerPool(Portable(use), resource=Resource(Portable(server.connect)), engine=engine, name="db", **options)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def of_type(kind: type[Any], events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@fuzzed
async def test_a_process_whose_first_resource_cannot_be_opened_stays() -> None:
    engine, server, events = InMemory(2), Server(), list[Any]()
    async with make_pool(engine, server, workers=2, observers=[events.append]) as pool:
        await pool.map([0.01] * 10)
        server.refuses = lambda number: True
        while engine.kill_one():  # both, and what replaces them finds the database down
            pass
        await asyncio.sleep(0.5)
        handle = await pool.submit(0.01)
        await asyncio.sleep(100.0)  # longer than the patience of the pool
        assert pool.stats.processes == 0
        assert pool.stats.processes_lost == 2
        assert engine.ever == 4
        server.refuses = lambda number: False
        assert await handle > 0
        await asyncio.sleep(10.0)
        assert pool.stats.processes == 2
    assert len(of_type(ProcessGone, events)) == 2
    failures = of_type(ResourceFailed, events)
    assert {(failure.worker, failure.process) for failure in failures} == {(1, "process 3"), (1, "process 4")}
    assert 100 / 0.5 < len(failures) / 2 < 100 / 0.25  # each process tries for itself
    assert all(0.05 <= failure.retry_in <= 0.5 for failure in failures)
    assert isinstance(failures[0].error, ConnectionRefusedError)


@virtual
async def test_an_outage_that_all_processes_see_is_logged_sparsely(caplog: pytest.LogCaptureFixture) -> None:
    engine, server, events = InMemory(8), Server(), list[Any]()
    async with make_pool(engine, server, workers=8, observers=[events.append]) as pool:
        await asyncio.sleep(1.0)
        pool.resize(1)
        await asyncio.sleep(1.0)
        server.refuses = lambda number: now() < 60.0
        pool.resize(8)  # seven come back from a share of 0
        await asyncio.sleep(100.0)
        assert pool.stats.processes == 8
        assert pool.stats.processes_lost == 0
    count = len(of_type(ResourceFailed, events))
    assert count > 70
    *failures, recovery = messages(caplog)
    assert len(failures) == count.bit_length()
    assert "pool 'db': the resource of worker 1 of process " in failures[1]
    assert "failed (occurrence 2), next try in " in failures[1]
    assert recovery.startswith(f"pool 'db': the resources are open again, after {count} failures in ")


@virtual
async def test_a_process_that_dies_in_an_outage_does_not_hold_up_the_line_about_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, server = InMemory(2, replaced_after=None), Server()
    async with make_pool(engine, server, workers=2) as pool:
        pool.resize(1)
        await asyncio.sleep(1.0)
        server.refuses = lambda number: True
        pool.resize(4)
        await asyncio.sleep(1.0)
        _, second = engine.processes
        second.died.set()
        server.refuses = lambda number: False
        await asyncio.sleep(10.0)
        assert pool.stats.processes == 1
    assert "are open again" in messages(caplog)[-1]


@virtual
async def test_a_pool_whose_processes_have_no_resources_is_stalled(caplog: pytest.LogCaptureFixture) -> None:
    engine, server, events = InMemory(2), Server(), list[Any]()
    async with make_pool(engine, server, workers=2, observers=[events.append]) as pool:
        await asyncio.sleep(1.0)
        server.refuses = lambda number: True
        outcomes = [await (await pool.submit(ConnectionResetError())).outcome() for _ in range(2)]
        assert all(isinstance(outcome, Failed) for outcome in outcomes)
        handles = [await pool.submit(0.01) for _ in range(3)]
        await asyncio.sleep(20.0)
        assert 10.0 < pool.stats.stalled_seconds <= 20.0
        server.refuses = lambda number: False
        for handle in handles:
            await handle
        assert pool.stats.stalled_seconds == 0.0
        assert pool.stats.processes_lost == 0
    (stalled,) = of_type(PoolStalled, events)
    assert stalled.queued == 3
    assert stalled.reason.startswith("no worker of any process can take a job (2 processes wait for a resource; the ")
    assert "ConnectionRefusedError" in stalled.reason
    assert len(of_type(PoolRecovered, events)) == 1
    assert sum("no usable worker" in text for text in messages(caplog)) == 1


@virtual
async def test_a_pool_without_processes_is_stalled() -> None:
    engine, events = InMemory(1, replaced_after=12.0), list[Any]()
    async with make_pool(engine, Server(), workers=1, observers=[events.append]) as pool:
        engine.kill_one()
        handle = await pool.submit(0.01)
        await handle
    (stalled,) = of_type(PoolStalled, events)
    assert (stalled.queued, stalled.reason) == (1, "there is no process that can run the handler")
    assert len(of_type(PoolRecovered, events)) == 1


@virtual
async def test_the_error_of_the_first_resource_is_raised_at_the_start_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, server, events = InMemory(3), Server(), list[Any]()
    server.refuses = lambda number: True
    server.seconds = 1.0
    pool = make_pool(engine, server, workers=30, observers=[events.append])
    with pytest.raises(ConnectionRefusedError) as raised:
        await pool.start()
    assert "Raised in process" in raised.value.__notes__[0]
    assert pool.state == "closed"
    assert server.refused == 3  # one in each process
    assert not messages(caplog)
    assert not of_type(ResourceFailed, events)


@virtual
async def test_a_pool_starts_if_one_of_its_processes_has_a_resource(caplog: pytest.LogCaptureFixture) -> None:
    engine, server, events = InMemory(3), Server(), list[Any]()
    server.refuses = lambda number: number != 3 and now() < 10.0
    server.seconds = 0.5
    async with make_pool(engine, server, workers=3, observers=[events.append]) as pool:
        assert pool.stats.processes == 1
        assert "the resource of worker 1 of process " in messages(caplog)[0]
        await asyncio.sleep(20.0)
        assert pool.stats.processes == 3
        assert pool.stats.processes_lost == 0


@virtual
async def test_a_resource_that_takes_longer_than_the_patience_of_the_pool_is_waited_for() -> None:
    server = Server()
    server.seconds = 60.0
    engine = InMemory(2)
    pool: WorkerPool[Any, int] = WorkerPool(
        Portable(use), workers=2, resource=Resource(Portable(server.connect), open_timeout=100), engine=engine
    )
    async with pool:
        assert await pool.run(0.01) > 0
        assert engine.ever == 2


@fuzzed
async def test_jobs_leave_a_process_that_has_lost_its_resource() -> None:
    engine, server = InMemory(2), Server()
    async with make_pool(engine, server, workers=2) as pool:
        await asyncio.sleep(1.0)
        server.refuses = lambda number: True
        with pytest.raises(ConnectionResetError):
            await pool.run(ConnectionResetError())
        async with asyncio.timeout(10.0):
            values = [value async for value in pool.map([0.01] * 50)]
        assert len(set(values)) == 1  # all by the connection that is left
        assert pool.stats.processes == 1
        assert pool.stats.reruns == 0


@virtual
async def test_a_job_that_ignores_its_timeout_in_a_process_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    events = list[Any]()
    async with WorkerPool(
        Portable(ignores_cancel), workers=1, timeout=1.0, engine=InMemory(1), observers=[events.append]
    ) as pool:
        handle = await pool.submit(30.0)
        await asyncio.sleep(10.0)
        assert pool.stats.stuck == 1
        await handle.outcome()
        assert pool.stats.stuck == 0
    assert len(of_type(JobStuck, events)) == 1
    (text,) = [text for text in messages(caplog) if "is still running" in text]
    assert text.endswith("30.0")


@virtual
async def test_a_job_that_is_cancelled_and_stuck_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    events = list[Any]()
    async with WorkerPool(Portable(ignores_cancel), workers=1, engine=InMemory(1), observers=[events.append]) as pool:
        handle = await pool.submit(30.0)
        await asyncio.sleep(1.0)
        handle.cancel()
        await handle.outcome()
    assert len(of_type(JobStuck, events)) == 1
    assert sum("is still running" in text for text in messages(caplog)) == 1


@real
async def test_real_processes_stay_while_the_database_is_down(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    door = Door(tmp_path / "closed")
    pool = WorkerPool(handlers.use, workers=2, resource=door, engine=Processes(2))
    async with pool:
        await until(lambda: pool.stats.processes == 2)
        living = {process.name for process in pool.processes()}
        pool.resize(1)
        await until(lambda: [process.workers for process in pool.processes()] == [1, 0])
        await until(lambda: pool.stats.processes == 1)
        door.close()
        pool.resize(2)
        await until(lambda: any("failed (occurrence 4)" in text for text in messages(caplog)))
        assert pool.stats.processes == 1
        assert await pool.run(None) == 0
        door.open()
        await until(lambda: pool.stats.processes == 2)
        assert {process.name for process in pool.processes()} == living
        assert pool.stats.processes_lost == 0
    *failures, recovery = messages(caplog)
    occurrences = [text.split("(")[-1].split(",")[0] for text in failures]
    assert occurrences == [f"occurrence {2**n})" for n in range(len(failures))]
    assert "are open again" in recovery
    assert {record.process for record in caplog.records} == {os.getpid()}
