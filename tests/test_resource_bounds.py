"""Resources that take too long to open or to close: cancelled, reported, replaced; abandoned if they ignore that."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import AutoScale, Resource, ResourceTimeout, WorkerPool
from asyncpool.events import PoolStalled, ResourceFailed
from asyncpool.testing import settle
from tests.helpers import assert_conserved, fuzzed, ignores_cancel, now, sleeper, virtual


async def hang() -> None:
    await asyncio.sleep(10_000)


async def nothing() -> None: ...


class Server:
    """Opens connections; what happens meanwhile is decided by the number of the connection, from 1."""

    def __init__(self, opens: dict[int, Any] | None = None, closes: dict[int, Any] | None = None) -> None:
        self.opens: dict[int, Callable[[], Awaitable[None]]] = opens or {}
        self.closes: dict[int, Callable[[], Awaitable[None]]] = closes or {}
        self.asked = 0
        self.opened: list[int] = []
        self.closed: list[int] = []

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[int]:
        self.asked += 1
        number = self.asked
        await self.opens.get(number, nothing)()
        self.opened.append(number)
        try:
            yield number
        finally:
            await self.closes.get(number, nothing)()
            self.closed.append(number)


async def use(job: Any, connection: int) -> int:
    if isinstance(job, BaseException):
        raise job
    await asyncio.sleep(job)
    return connection


def failures(events: list[Any]) -> list[ResourceFailed]:
    return [event for event in events if isinstance(event, ResourceFailed)]


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# -- The options


def test_the_bounds_are_thirty_and_ten_seconds_unless_given() -> None:
    resource = Resource(Server().connect)
    assert (resource.open_timeout, resource.close_timeout) == (30.0, 10.0)


@pytest.mark.parametrize("name", ["open_timeout", "close_timeout"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (float("inf"), ValueError), ("1", TypeError)])
def test_a_bound_is_a_number_of_seconds_above_zero(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        Resource(Server().connect, **{name: value})


@pytest.mark.parametrize("resource", [5, Server])
def test_a_resource_is_checked_when_the_pool_is_made(resource: Any) -> None:
    with pytest.raises(TypeError, match="resource"):
        WorkerPool(use, workers=1, resource=resource if resource == 5 else use)
    with pytest.raises(TypeError, match=r"needs a handler\(job, resource\)"):
        WorkerPool(workers=1, resource=Resource(Server().connect))  # type: ignore[call-overload]


def test_a_resource_timeout_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ResourceTimeout("opened", 30.0, True)))
    assert (error.step, error.timeout, error.is_abandoned) == ("opened", 30.0, True)
    assert str(error) == "the resource was not opened within 30 s, ignores its cancellation, and is abandoned"


# -- Opening


@fuzzed
async def test_a_resource_that_never_opens_is_cancelled_reported_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server(opens={2: hang})
    async with WorkerPool(use, workers=2, resource=server.connect, observers=[events.append]) as pool:
        await asyncio.sleep(29.9)
        assert pool.stats.workers == 1
        await asyncio.sleep(0.3)
        assert pool.stats.workers == 2
    [event] = failures(events)
    assert isinstance(event.error, ResourceTimeout)
    assert str(event.error) == "the resource was not opened within 30 s"
    assert event.retry_in is not None
    assert "the resource of worker 2 failed" in errors_in(caplog)[0]
    assert sorted(server.closed) == [1, 3]


@fuzzed
async def test_a_resource_that_opens_within_its_own_bound_is_used() -> None:
    server = Server(opens={1: lambda: asyncio.sleep(90)})
    async with WorkerPool(use, workers=1, resource=Resource(server.connect, open_timeout=100)) as pool:
        assert now() == 90
        assert await pool.run(1000) == 1  # holding it is not bounded


@fuzzed
async def test_start_raises_when_the_first_resource_does_not_open_in_time() -> None:
    server = Server(opens={1: hang})
    pool = WorkerPool(use, workers=3, resource=server.connect)
    with pytest.raises(ResourceTimeout, match=r"not opened within 30 s$"):
        await pool.start()
    assert now() == 30
    assert pool.state == "closed"


@fuzzed
async def test_start_raises_when_the_first_resource_ignores_that_it_was_cancelled() -> None:
    server = Server(opens={1: lambda: ignores_cancel(200)})
    pool = WorkerPool(use, workers=3, resource=server.connect)
    with pytest.raises(ResourceTimeout, match="is abandoned") as caught:
        await pool.start()
    assert caught.value.is_abandoned
    assert now() == 35
    assert pool.state == "closed"
    await asyncio.sleep(200)


@fuzzed
async def test_an_opening_that_swallows_its_cancellation_and_returns_is_closed_and_replaced() -> None:
    server = Server(opens={2: lambda: ignores_cancel(31)})
    async with WorkerPool(use, workers=2, resource=server.connect) as pool:
        await asyncio.sleep(32)
        assert server.opened == [1, 2, 3]
        assert server.closed == [2]
        assert pool.stats.workers == 2


@fuzzed
async def test_an_opening_that_ignores_its_cancellation_is_abandoned_named_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server(opens={2: lambda: ignores_cancel(100)})
    async with WorkerPool(use, workers=2, resource=server.connect, name="db", observers=[events.append]) as pool:
        await asyncio.sleep(34.9)
        assert server.asked == 2
        await asyncio.sleep(0.3)
        assert pool.stats.workers == 2
        [event] = failures(events)
        assert isinstance(event.error, ResourceTimeout)
        assert event.error.is_abandoned
        assert errors_in(caplog) == [
            "pool 'db': abandoned the task 'db worker 2 resource': the resource was not opened within 30 s, ignores "
            "its cancellation, and is abandoned"
        ]
        await asyncio.sleep(100)
        assert server.opened == [1, 3, 2]
        assert server.closed == [2]  # it has opened after all, and nobody wants it
        assert pool.stats.workers == 2
        assert_conserved(pool)
    assert sorted(server.closed) == [1, 2, 3]


@fuzzed
async def test_close_does_not_wait_for_what_is_abandoned_but_names_it() -> None:
    server = Server(opens={2: lambda: ignores_cancel(200)})
    pool = WorkerPool(use, workers=2, resource=server.connect)
    await pool.start()
    await asyncio.sleep(40)
    report = await pool.close(grace=3)
    assert now() == 40
    assert [str(error) for error in report.errors] == ["task 'pool worker 2 resource' ignores its cancellation"]
    await asyncio.sleep(200)


@fuzzed
async def test_a_worker_that_retires_while_its_resource_ignores_that_is_abandoned() -> None:
    server = Server(opens={2: lambda: ignores_cancel(200)})
    async with WorkerPool(use, workers=2, resource=server.connect) as pool:
        await settle()
        pool.resize(1)
        await asyncio.sleep(6)
        pool.resize(2)
        await settle()
        assert server.opened == [1, 3]
        assert pool.stats.workers == 2
    await asyncio.sleep(200)


@virtual
async def test_an_error_of_a_cancelled_opening_is_the_cause() -> None:
    async def translate() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            raise ConnectionError("interrupted") from None

    events: list[Any] = []
    server = Server(opens={2: translate})
    async with WorkerPool(use, workers=2, resource=server.connect, observers=[events.append]):
        await asyncio.sleep(35)
    [event] = failures(events)
    assert isinstance(event.error, ResourceTimeout)
    assert str(event.error.__cause__) == "interrupted"


# -- Closing


@fuzzed
async def test_a_resource_that_never_closes_is_cancelled_reported_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server(closes={1: hang})
    async with WorkerPool(use, workers=1, resource=server.connect, timeout=5, observers=[events.append]) as pool:
        with pytest.raises(TimeoutError):
            await pool.run(100)
        assert await pool.run(1) == 2
        assert 16 <= now() <= 16.2
    [event] = failures(events)
    assert isinstance(event.error, ResourceTimeout)
    assert str(event.error) == "the resource was not closed within 10 s"
    assert "the resource of worker 1 failed" in errors_in(caplog)[0]


@fuzzed
async def test_a_closing_that_ignores_its_cancellation_is_abandoned_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    server = Server(closes={1: lambda: ignores_cancel(100)})
    resource = Resource(server.connect, close_timeout=1)
    async with WorkerPool(use, workers=1, resource=resource) as pool:
        with pytest.raises(OSError, match="spoilt"):
            await pool.run(OSError("spoilt"))
        assert await pool.run(0) == 2
        assert 6 <= now() <= 6.2
        assert [text for text in errors_in(caplog) if "abandoned the task 'pool worker 1 resource'" in text]
        await asyncio.sleep(100)
        assert server.closed == [1]


@fuzzed
async def test_a_closing_that_takes_too_long_and_returns_is_reported() -> None:
    events: list[Any] = []
    server = Server(closes={1: lambda: ignores_cancel(12)})
    async with WorkerPool(use, workers=1, resource=server.connect, observers=[events.append]) as pool:
        with pytest.raises(OSError, match="spoilt"):
            await pool.run(OSError("spoilt"))
        assert await pool.run(0) == 2
        assert 12 <= now() <= 12.2
    assert [type(event.error) for event in failures(events)] == [ResourceTimeout]


@fuzzed
async def test_a_worker_that_retires_and_cannot_close_its_resource_gives_its_place_to_another() -> None:
    server = Server(closes={2: hang})
    async with WorkerPool(use, workers=2, resource=server.connect) as pool:
        await settle()
        pool.resize(1)
        await asyncio.sleep(20)
        pool.resize(2)
        await settle()
        assert pool.stats.workers == 2
    assert pool.report is not None
    assert not pool.report.errors  # it was while the pool was open, and is in the log


@fuzzed
async def test_a_resource_that_dies_under_a_job_and_never_closes_is_abandoned_and_replaced() -> None:
    class Dies:
        made = 0

        async def __aenter__(self) -> int:
            Dies.made += 1
            self.number = Dies.made
            if self.number == 1:  # its own scope fails
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_later(1, task.cancel)
            return self.number

        async def __aexit__(self, *exc: object) -> None:
            if self.number == 1:
                await ignores_cancel(60)

    async def stubborn(job: float, resource: int) -> int:
        await ignores_cancel(job)
        return resource

    Dies.made = 0
    resource = Resource(Dies, close_timeout=2)
    async with WorkerPool(stubborn, workers=1, resource=resource) as pool:
        handle = await pool.submit(30)
        assert await pool.run(0) == 2
        assert handle.done()
        assert 30 <= now() <= 31
        assert pool.stats.peak_running == 1
        await asyncio.sleep(60)
        assert await pool.run(0) == 2
        assert_conserved(pool)


# -- What a policy sees


@virtual
@pytest.mark.parametrize("hangs_in", ["opens", "closes"])
async def test_a_pool_grows_though_one_worker_waits_for_a_resource_that_hangs(hangs_in: str) -> None:
    server = Server(**{hangs_in: {2: hang}})
    resource = Resource(server.connect, open_timeout=3600, close_timeout=3600)
    async with WorkerPool(use, workers=AutoScale(2, 20), resource=resource, timeout=100) as pool:
        await settle()
        if hangs_in == "closes":
            [first, second] = [await pool.submit(OSError()), await pool.submit(OSError())]
            await asyncio.gather(first.outcome(), second.outcome())
        handles = [await pool.submit(20) for _ in range(200)]
        await asyncio.sleep(4)
        assert pool.stats.target_workers == 2
        await asyncio.sleep(3)
        assert pool.stats.target_workers == 20
        assert pool.stats.workers == 19
        for handle in handles:
            handle.cancel()
        pool.cancel()


@virtual
async def test_a_pool_whose_resources_are_refused_does_not_grow_however_long_that_takes() -> None:
    async def refuse() -> None:
        raise ConnectionRefusedError

    server = Server(opens=dict.fromkeys(range(2, 100), refuse))
    async with WorkerPool(use, workers=AutoScale(2, 20), resource=server.connect) as pool:
        handles = [await pool.submit(1) for _ in range(200)]
        await asyncio.sleep(30)
        assert pool.stats.target_workers == 2
        for handle in handles:
            handle.cancel()


@virtual
async def test_a_slow_job_is_not_bounded_by_its_resource() -> None:
    async def handler(job: float, connection: int) -> float:
        return await sleeper(job)

    async with WorkerPool(handler, workers=1, resource=Server().connect) as pool:
        assert await pool.run(3600) == 3600


# -- How many there can be


class Counted:
    """Resources that close slowly, and how many there were at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.there = 0
        self.most = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.there += 1
        self.most = max(self.most, self.there)
        try:
            await asyncio.sleep(0.01)
            yield
            await asyncio.sleep(self.seconds)
        finally:
            self.there -= 1


async def ignore(job: float, resource: None) -> None:
    await asyncio.sleep(job)


@fuzzed
async def test_never_more_resources_than_workers_however_slowly_they_close() -> None:
    counted = Counted(4)
    policy = AutoScale(1, 20, idle_timeout=0.5, backlog_per_worker=1)
    async with WorkerPool(ignore, workers=policy, resource=counted.__call__) as pool:
        for _ in range(8):
            await pool.map([0.1] * 100)
            await asyncio.sleep(1)
    assert counted.most == 20
    assert counted.there == 0
    assert_conserved(pool)


@fuzzed
async def test_a_pool_that_is_resized_again_and_again_opens_no_more_resources_than_workers() -> None:
    counted = Counted(4)
    async with WorkerPool(ignore, workers=5, resource=counted.__call__) as pool:
        for number in range(20):
            pool.resize(1)
            await asyncio.sleep(0.1)
            pool.resize(5)
            await asyncio.sleep(0.3 * (number % 4))
        await asyncio.sleep(20)
        assert pool.stats.workers == 5
        assert counted.there == counted.most == 5


@fuzzed
async def test_stats_show_the_resources_that_are_opening_closing_and_abandoned() -> None:
    server = Server(opens={2: lambda: ignores_cancel(100)}, closes={1: lambda: asyncio.sleep(3)})
    async with WorkerPool(use, workers=2, resource=server.connect) as pool:
        await settle()
        assert (pool.stats.resources_opening, pool.stats.resources_closing) == (1, 0)
        with pytest.raises(OSError, match="spoilt"):
            await pool.run(OSError("spoilt"))
        await settle()
        assert (pool.stats.resources_opening, pool.stats.resources_closing) == (1, 1)
        await asyncio.sleep(50)
        stats = pool.stats
        assert (stats.resources_opening, stats.resources_closing, stats.resources_abandoned) == (0, 0, 1)
        await asyncio.sleep(100)
        assert pool.stats.resources_abandoned == 0


@virtual
async def test_what_is_abandoned_takes_places_once_it_is_too_much(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server(opens=dict.fromkeys(range(2, 30), lambda: ignores_cancel(400)))
    async with WorkerPool(use, workers=2, resource=server.connect, observers=[events.append], name="db") as pool:
        with pytest.raises(OSError, match="spoilt"):
            await pool.run(OSError("spoilt"))
        await asyncio.sleep(300)
        job = await pool.submit(0)
        await asyncio.sleep(90)
        assert pool.stats.resources_abandoned == 4  # and not one more every 35 seconds
        assert server.asked == 5
        assert pool.stats.resources_opening == 0
        assert [error for error in errors_in(caplog) if "take" in error] == [
            "pool 'db': 3 resources ignore their cancellation: from now on, each of them takes the place of a worker's "
            "resource until it ends"
        ]
        [stalled] = [event for event in events if isinstance(event, PoolStalled)]
        assert stalled.reason == "no worker has its resource (0 opening, 0 closing, 4 abandoned)"
        server.opens.clear()
        await job  # an abandoned one has ended, and given its place back
        assert pool.stats.resources_abandoned < 4
    await asyncio.sleep(400)
