"""Outages: how soon a pool is back when its backend is, and how often it tries while the backend is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import WorkerPool
from asyncpool.events import ResourceFailed
from tests.helpers import fuzzed, now, virtual


class Backend:
    """A server that is up or down, and takes 10 ms to accept or refuse a connection."""

    def __init__(self) -> None:
        self.is_up = True
        self.accepts: Callable[[int], bool] = lambda number: True
        """Which tries succeed while it is up, by their number."""
        self.drops = False
        """Whether it drops a connection at once."""
        self.tries: list[float] = []
        """When it was asked for a connection."""
        self.open = self.connecting = 0
        self.burst = 0
        """The most that were connecting at the same time, apart from two for each open connection."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[None]:
        self.tries.append(now())
        number = len(self.tries)
        self.connecting += 1
        self.burst = max(self.burst, self.connecting - 2 * self.open)
        try:
            await asyncio.sleep(0.01)
        finally:
            self.connecting -= 1
        if not self.is_up or not self.accepts(number):
            raise ConnectionRefusedError("the server is down")
        self.open += 1
        try:
            async with asyncio.timeout(0 if self.drops else None):
                yield
        finally:
            self.open -= 1

    async def use(self, job: int, connection: None) -> int:
        await asyncio.sleep(0)
        if not self.is_up:
            raise ConnectionResetError("the server is gone")
        return job

    async def go_down(self, pool: WorkerPool[int, int], seconds: float) -> None:
        """Go down, break each connection, and come up again after some seconds."""
        self.is_up = False
        handles = [await pool.submit(number) for number in range(pool.stats.workers)]
        await asyncio.gather(*handles, return_exceptions=True)
        assert pool.stats.failed == len(handles)
        await asyncio.sleep(seconds)
        self.is_up = True
        self.burst = 0

    def tries_between(self, begin: float, end: float) -> int:
        return sum(begin <= when < end for when in self.tries)


@asynccontextmanager
async def running_pool(backend: Backend, workers: int, **options: Any) -> AsyncIterator[WorkerPool[int, int]]:
    """Start a pool, and let all its workers connect."""
    async with WorkerPool(backend.use, workers=workers, resource=backend.connect, **options) as pool:
        await asyncio.sleep(1)
        assert pool.stats.workers == backend.open == workers
        yield pool


@pytest.mark.parametrize("outage", [0.0, 0.3, 2.0, 10.0, 300.0])
@pytest.mark.parametrize("workers", [1, 2, 8, 60])
@virtual
async def test_a_pool_is_back_within_a_second_of_its_backend(workers: int, outage: float) -> None:
    backend = Backend()
    async with running_pool(backend, workers) as pool:
        await backend.go_down(pool, outage)
        await asyncio.sleep(1)
        assert pool.stats.workers == backend.open == workers


@pytest.mark.parametrize("workers", [2, 8])
@fuzzed
async def test_no_job_is_lost_in_an_outage(workers: int) -> None:
    backend = Backend()
    async with running_pool(backend, workers) as pool:
        down = asyncio.create_task(backend.go_down(pool, 20))
        await asyncio.sleep(5)
        assert await pool.map(range(100)) == list(range(100))
        await down


@virtual
async def test_a_backend_that_is_back_gets_two_new_connections_for_each_that_it_has_accepted() -> None:
    backend = Backend()
    async with running_pool(backend, 60) as pool:
        await backend.go_down(pool, 60)
        await asyncio.sleep(1)
        assert backend.open == 60
    # One that tries when none is open, and those whose own pause is over in the same 10 ms.
    assert backend.burst <= 4


@virtual
async def test_the_longer_an_outage_the_less_often_each_worker_tries_but_one() -> None:
    backend, events = Backend(), list[Any]()
    async with running_pool(backend, 20, observers=[events.append]) as pool:
        await backend.go_down(pool, 120)
    pauses = [event.retry_in for event in events if isinstance(event, ResourceFailed)][-200:]
    probes = [pause for pause in pauses if pause <= 0.5]
    assert len(probes) >= 50
    assert min(probes) >= 0.25
    assert all(2.5 <= pause <= 5 for pause in pauses if pause not in probes)
    seconds = backend.tries[-1] - backend.tries[-201]
    assert 200 / seconds <= 1 / 0.25 + 20 / 2.5


@virtual
async def test_workers_that_are_refused_while_others_are_served_do_not_hurry() -> None:
    backend = Backend()
    async with running_pool(backend, 10) as pool:
        backend.accepts = lambda number: backend.open < 5
        await backend.go_down(pool, 5)
        up = now()
        await asyncio.sleep(120)
        assert backend.open == 5
        assert backend.tries_between(up + 60, up + 120) <= 5 * (60 / 2.5 + 1)


@virtual
async def test_a_backend_that_drops_what_it_accepts_is_left_alone_for_longer_and_longer() -> None:
    backend = Backend()
    async with running_pool(backend, 10) as pool:
        backend.drops = True
        backend.accepts = lambda number: number % 2 == 0
        await backend.go_down(pool, 1)
        up = now()
        await asyncio.sleep(120)
        # Each worker on its own, a probe, and two more for each that was accepted.
        assert backend.tries_between(up + 60, up + 120) <= 3 * 10 * (60 / 2.5 + 1) + 60 / 0.25


@virtual
async def test_a_pool_that_shrinks_in_an_outage_is_back_as_soon() -> None:
    backend = Backend()
    async with running_pool(backend, 8) as pool:
        for _ in range(10):
            backend.is_up = False
            await asyncio.gather(*[await pool.submit(n) for n in range(8)], return_exceptions=True)
            await asyncio.sleep(60)
            pool.resize(1)
            backend.is_up = True
            await asyncio.sleep(1)
            assert pool.stats.workers == backend.open == 1
            pool.resize(8)
            await asyncio.sleep(1)


@virtual
async def test_a_pool_closes_at_once_in_an_outage() -> None:
    backend = Backend()
    async with running_pool(backend, 3) as pool:
        await backend.go_down(pool, 0)
        backend.is_up = False
        await asyncio.sleep(60)
        begun = now()
        await pool.close()
        assert now() - begun <= 0.01
        assert backend.connecting == 0
