"""Resources: one for each worker, entered and left in one task, replaced when they may be spoilt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asyncpool import Cancelled, Failed, JobTimeout, ResourceDied, Succeeded, WorkerPool, current_job
from asyncpool.events import ResourceFailed
from asyncpool.testing import settle
from tests.helpers import assert_conserved, fuzzed, ignores_cancel, now, sleeper, virtual


class Connection:
    def __init__(self, number: int) -> None:
        self.number = number
        self.task = asyncio.current_task()
        self.is_open = True


class Server:
    """Makes connections, and fails as the test says: by the number of the connection, from 1."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.refused = 0
        self.refuses: Callable[[int], bool] = lambda number: False
        self.breaks_on_leaving: Callable[[int], bool] = lambda number: False
        self.seconds = 0.0
        self.left_elsewhere = False

    @property
    def open(self) -> list[int]:
        return [connection.number for connection in self.made if connection.is_open]

    def connect(self) -> _Connecting:
        return _Connecting(self)


class _Connecting:
    def __init__(self, server: Server) -> None:
        self.server = server

    async def __aenter__(self) -> Connection:
        server = self.server
        await asyncio.sleep(server.seconds)
        if server.refuses(len(server.made) + server.refused + 1):
            server.refused += 1
            raise ConnectionRefusedError(server.refused)
        self.connection = Connection(len(server.made) + 1)
        server.made.append(self.connection)
        return self.connection

    async def __aexit__(self, *exc: object) -> None:
        self.server.left_elsewhere |= self.connection.task is not asyncio.current_task()
        self.connection.is_open = False
        await asyncio.sleep(0)
        if self.server.breaks_on_leaving(self.connection.number):
            raise OSError(f"leaving {self.connection.number}")


async def use(job: Any, connection: Connection) -> int:
    """Wait for `job` seconds, or raise it."""
    assert connection.is_open
    if isinstance(job, BaseException):
        raise job
    await asyncio.sleep(job)
    assert connection.is_open
    return connection.number


# -- Entering and leaving


@pytest.mark.parametrize("workers", [1, 2, 10])
@fuzzed
async def test_each_worker_has_a_resource_entered_and_left_in_one_task(workers: int) -> None:
    server = Server()
    async with WorkerPool(use, workers=workers, resource=server.connect) as pool:
        await pool.map([1] * 30)
        assert len(server.open) == workers
    assert len(server.made) == workers
    assert server.open == []
    assert not server.left_elsewhere


@fuzzed
async def test_start_waits_for_the_first_resource_and_the_others_follow() -> None:
    server = Server()
    server.seconds = 3
    pool = WorkerPool(use, workers=2, resource=server.connect)
    await pool.start()
    assert now() == 3
    assert pool.stats.workers == 1
    await asyncio.sleep(4)
    assert pool.stats.workers == 2
    await pool.close()


@fuzzed
async def test_start_raises_the_error_of_the_first_resource_and_the_pool_is_closed() -> None:
    server = Server()
    server.refuses = lambda number: True
    pool = WorkerPool(use, workers=3, resource=server.connect)
    with pytest.raises(ConnectionRefusedError):
        await pool.start()
    assert pool.report is not None
    assert server.refused == 1


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), StopAsyncIteration()])
@fuzzed
async def test_start_raises_what_it_must_not_raise_as_resource_died(error: BaseException) -> None:
    class Broken:
        async def __aenter__(self) -> None:
            raise error

        async def __aexit__(self, *exc: object) -> None: ...

    pool = WorkerPool(use, workers=1, resource=Broken)  # type: ignore[arg-type]
    with pytest.raises(ResourceDied) as caught:
        await pool.start()
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("factory", [lambda: 5, lambda: 1 / 0])
@virtual
async def test_a_factory_that_makes_no_resource_fails_the_start(factory: Any) -> None:
    with pytest.raises((TypeError, AttributeError, ZeroDivisionError)):
        await WorkerPool(use, workers=1, resource=factory).start()


@fuzzed
async def test_later_failures_back_off_and_jobs_stay_queued(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server()
    server.refuses = lambda number: 2 <= number <= 7
    async with WorkerPool(
        use, workers=1, resource=server.connect, observers=[events.append], recycle_on=ValueError
    ) as pool:
        with pytest.raises(ValueError):
            await pool.run(ValueError())
        begun = now()
        handle = await pool.submit(1)
        await settle()
        assert pool.stats.queued == 1
        assert await handle == 2
    failures = [event for event in events if isinstance(event, ResourceFailed)]
    pauses = [event.retry_in for event in failures]
    assert len(pauses) == server.refused == 6
    assert all(0.5 <= pause / min(0.1 * 2**n, 0.5) <= 1 for n, pause in enumerate(pauses))
    assert now() - begun == pytest.approx(sum(pauses) + 1)
    assert caplog.text.count("the resource of worker 1 failed (occurrence ") == 3  # of 1, 2 and 4
    assert not pool.report


@virtual
async def test_the_backoff_is_never_longer_than_five_seconds() -> None:
    events: list[Any] = []
    server = Server()
    server.refuses = lambda number: 2 <= number <= 20
    async with WorkerPool(use, workers=2, resource=server.connect, observers=[events.append]) as pool:
        await asyncio.sleep(200)
        assert pool.stats.workers == 2
    pauses = [event.retry_in for event in events if isinstance(event, ResourceFailed)]
    assert 2.5 <= max(pauses) <= 5


# -- Replacing


@pytest.mark.parametrize(
    ("recycle_on", "spoils"),
    [
        (OSError, True),
        (ConnectionError, True),
        (KeyError, False),
        ((KeyError, ConnectionResetError), True),
        ((), False),
        (lambda error: "reset" in str(error), True),
        (lambda error: False, False),
        (lambda error: 1 / 0, True),
    ],
)
@fuzzed
async def test_a_resource_is_replaced_after_an_error_that_matches_recycle_on(recycle_on: Any, spoils: bool) -> None:
    server = Server()
    async with WorkerPool(use, workers=1, resource=server.connect, recycle_on=recycle_on) as pool:
        assert await pool.run(0) == 1
        with pytest.raises(ConnectionResetError):
            await pool.run(ConnectionResetError("reset"))
        assert await pool.run(0) == (2 if spoils else 1)
    assert server.open == []


@fuzzed
async def test_a_resource_is_replaced_after_a_timeout() -> None:
    server = Server()
    async with WorkerPool(use, workers=1, resource=server.connect, timeout=1, recycle_on=KeyError) as pool:
        with pytest.raises(JobTimeout):
            await pool.run(5)
        assert await pool.run(0) == 2


@fuzzed
async def test_a_resource_is_replaced_after_a_cancelled_job_even_if_it_returned_a_value() -> None:
    server = Server()

    async def stubborn(job: float, connection: Connection) -> int:
        try:
            await asyncio.sleep(job)
        except asyncio.CancelledError:
            pass
        return connection.number

    async with WorkerPool(stubborn, workers=1, resource=server.connect) as pool:
        handle = await pool.submit(100)
        await settle()
        handle.cancel()
        assert await handle == 1
        assert await pool.run(0) == 2


@fuzzed
async def test_every_job_gets_a_good_resource_while_others_are_replaced() -> None:
    server = Server()
    jobs = [OSError() if number % 3 == 0 else 1 for number in range(30)]
    async with WorkerPool(use, workers=3, resource=server.connect) as pool:
        outcomes = await pool.outcomes(jobs)
        await settle()
        assert pool.stats.workers == 3
    assert sum(isinstance(outcome, Succeeded) for outcome in outcomes) == 20
    assert server.open == []
    assert not server.left_elsewhere


# -- A resource that dies


class Group:
    """A resource with a task group of anyio in it, of which a task fails after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __aenter__(self) -> Group:
        self.tasks = anyio.create_task_group()
        await self.tasks.__aenter__()
        self.tasks.start_soon(self.die)
        return self

    async def die(self) -> None:
        await asyncio.sleep(self.seconds)
        raise ConnectionError("gone")

    async def __aexit__(self, *exc: Any) -> bool | None:
        self.tasks.cancel_scope.cancel()
        return await self.tasks.__aexit__(*exc)


@fuzzed
async def test_a_resource_that_dies_under_a_job_fails_that_job_and_its_worker_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    lives = iter([2, 1000, 1000])

    async def handler(job: float, resource: Group) -> float:
        return await sleeper(job)

    async with WorkerPool(handler, workers=1, resource=lambda: Group(next(lives))) as pool:
        handle = await pool.submit(10)
        after = await pool.submit(1)
        outcome = await handle.outcome()
        assert now() == 2
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, ResourceDied)
        await settle()  # the cause is known when the resource has been left
        assert isinstance(outcome.error.__cause__, ExceptionGroup)
        assert await after == 1
        assert pool.stats.workers == 1
    assert "gone" in caplog.text
    assert_conserved(pool)


@fuzzed
async def test_a_resource_that_dies_while_its_worker_is_idle_is_replaced() -> None:
    lives = iter([2, 1000])

    async def handler(job: float, resource: Group) -> float:
        return await sleeper(job)

    async with WorkerPool(handler, workers=1, resource=lambda: Group(next(lives))) as pool:
        await asyncio.sleep(10)
        assert pool.stats.workers == 1
        assert await pool.run(1) == 1


@fuzzed
async def test_a_stray_cancel_of_whatever_task_costs_no_worker() -> None:
    server = Server()
    async with WorkerPool(use, workers=2, resource=server.connect) as pool:
        await pool.submit(100)
        await settle()
        for seconds in (0, 0.01, 1):
            for task in asyncio.all_tasks():
                if "resource" in task.get_name():
                    task.cancel()
            await asyncio.sleep(seconds)
        await asyncio.sleep(100)
        assert pool.stats.workers == 2
        assert await pool.run(1) > 2
        assert_conserved(pool)


# -- Leaving


@fuzzed
async def test_errors_of_leaving_are_in_the_report() -> None:
    server = Server()
    server.breaks_on_leaving = lambda number: number == 2
    async with WorkerPool(use, workers=3, resource=server.connect) as pool:
        await pool.map([1] * 3)
    assert pool.report is not None
    assert [str(error) for error in pool.report.errors] == ["leaving 2"]
    assert pool.report
    assert server.open == []


@fuzzed
async def test_an_error_of_leaving_a_resource_that_is_replaced_is_logged_and_costs_no_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    server = Server()
    server.breaks_on_leaving = lambda number: number == 1
    async with WorkerPool(use, workers=1, resource=server.connect) as pool:
        with pytest.raises(OSError, match="io"):
            await pool.run(OSError("io"))
        assert await pool.run(0) == 2
    assert "leaving 1" in caplog.text


@fuzzed
async def test_a_resource_that_cannot_be_left_in_time_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()

    class Stuck:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc: object) -> None:
            await ignores_cancel(100)

    pool = WorkerPool(use, workers=1, resource=Stuck)  # type: ignore[arg-type]
    await pool.start()
    report = await pool.close(grace=2)
    assert now() == 2
    assert [type(error) for error in report.errors] == [TimeoutError]
    assert "which ignores its cancellation" in caplog.text
    await asyncio.sleep(200)


@fuzzed
async def test_close_gives_up_resources_that_are_still_being_entered() -> None:
    server = Server()
    pool = WorkerPool(use, workers=3, resource=server.connect)
    await pool.start()
    server.seconds = 1000
    pool.resize(6)
    await settle()
    report = await pool.close()
    assert now() == 0
    assert not report.errors
    assert server.open == []


@fuzzed
async def test_close_waits_for_a_resource_that_is_left_slowly() -> None:
    left = []

    class Slow:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc: object) -> None:
            await asyncio.sleep(3)
            left.append(now())

    async with WorkerPool(use, workers=2, resource=Slow):  # type: ignore[arg-type]
        await settle()
    assert left == [3, 3]


@fuzzed
async def test_close_while_a_resource_hangs_on_entering_ends_with_the_grace() -> None:
    class Hangs:
        first = True

        async def __aenter__(self) -> None:
            if not Hangs.first:
                await ignores_cancel(100)
            Hangs.first = False

        async def __aexit__(self, *exc: object) -> None: ...

    pool = WorkerPool(use, workers=2, resource=Hangs)  # type: ignore[arg-type]
    await pool.start()
    await settle()
    report = await pool.close(grace=2)
    assert now() == 2
    assert len(report.errors) == 1
    await asyncio.sleep(200)


# -- Resizing


@fuzzed
async def test_resizing_enters_and_leaves_resources() -> None:
    server = Server()
    async with WorkerPool(use, workers=1, resource=server.connect) as pool:
        pool.resize(4)
        await settle()
        assert len(server.open) == pool.stats.workers == 4
        handles = [await pool.submit(5) for _ in range(4)]
        await settle()
        pool.resize(1)
        await settle()
        assert len(server.open) == 4
        await asyncio.gather(*(handle.outcome() for handle in handles))
        await settle()
        assert len(server.open) == pool.stats.workers == 1
        assert await pool.run(0) in server.open
    assert server.open == []


@fuzzed
async def test_a_worker_takes_jobs_only_with_a_ready_resource() -> None:
    server = Server()
    async with WorkerPool(use, workers=1, queue_size=0, resource=server.connect) as pool:
        server.seconds = 3
        pool.resize(2)
        handles = [await pool.submit(5), await pool.submit(5)]
        assert now() == 3
        await handles[1]
        assert now() == 8


@fuzzed
async def test_a_job_cancelled_by_its_pools_end_spoils_nothing_that_is_left_well() -> None:
    server = Server()
    pool = WorkerPool(use, workers=2, resource=server.connect)
    await pool.start()
    handle = await pool.submit(100)
    await settle()
    report = await pool.close(drain_timeout=0)
    assert isinstance(await handle.outcome(), Cancelled)
    assert not report.errors
    assert server.open == []
    assert len(server.made) == 2


@virtual
async def test_resources_run_in_the_context_of_the_start_and_not_of_who_resized() -> None:
    seen = []

    class Looks:
        async def __aenter__(self) -> None:
            try:
                seen.append(current_job())
            except LookupError:
                seen.append(None)

        async def __aexit__(self, *exc: object) -> None: ...

    async def handler(job: int, resource: None) -> None:
        pool.resize(2)
        await asyncio.sleep(1)

    pool = WorkerPool(handler, workers=1, resource=Looks)
    async with pool:
        await pool.run(1)
    assert seen == [None, None]


@virtual
async def test_the_log_says_which_worker_and_why(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.refuses = lambda number: number == 2
    async with WorkerPool(use, workers=2, resource=server.connect, name="mail"):
        await asyncio.sleep(10)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "pool 'mail': the resource of worker 2 failed" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ConnectionRefusedError


@virtual
async def test_a_resource_that_cannot_be_opened_for_hours_costs_no_worker() -> None:
    @asynccontextmanager
    async def connection() -> AsyncIterator[int]:
        if 1 < now() < 3 * 3600:
            raise ConnectionRefusedError("down for maintenance")
        yield 1

    async def use(job: int, resource: int) -> int:
        if job == 0:
            raise ConnectionResetError
        return job

    async with WorkerPool(use, workers=1, resource=connection) as pool:
        await asyncio.sleep(2)
        with pytest.raises(ConnectionResetError):
            await pool.run(0)
        assert await pool.run(1) == 1
        assert now() >= 3 * 3600


@virtual
async def test_a_resource_that_dies_once_an_hour_is_replaced_at_once_each_time() -> None:
    events: list[Any] = []
    server = Server()
    async with WorkerPool(use, workers=1, resource=server.connect, observers=[events.append], timeout=7200) as pool:
        for _ in range(12):
            server.breaks_on_leaving = lambda number: True
            await asyncio.sleep(3600)
            with pytest.raises(ConnectionResetError):
                await pool.run(ConnectionResetError())
        await asyncio.sleep(10)
        server.breaks_on_leaving = lambda number: False
    pauses = [event.retry_in for event in events if isinstance(event, ResourceFailed)]
    assert len(pauses) == 12
    assert max(pauses) <= 0.1


@virtual
async def test_the_pauses_of_a_resource_do_not_depend_on_the_names_of_pool_and_worker() -> None:
    async def first_pause() -> float:
        events: list[Any] = []
        server = Server()
        server.refuses = lambda number: number == 2
        async with WorkerPool(use, workers=2, resource=server.connect, observers=[events.append], name="db"):
            await asyncio.sleep(1)
        [pause] = [event.retry_in for event in events if isinstance(event, ResourceFailed)]
        return float(pause)

    assert await first_pause() != await first_pause()


# -- The log of an outage


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@virtual
async def test_an_outage_is_logged_sparsely_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    server, events = Server(), list[Any]()
    async with WorkerPool(
        use, workers=12, resource=server.connect, observers=[events.append], timeout=1, name="db"
    ) as pool:
        await settle()
        server.refuses = lambda number: now() < 7
        await asyncio.gather(*[(await pool.submit(2)).outcome() for _ in range(12)])
        await asyncio.sleep(30)
        assert pool.stats.workers == 12
    count = sum(isinstance(event, ResourceFailed) for event in events)
    assert count > 40
    *failures, recovery = messages(caplog)
    assert len(failures) == count.bit_length()
    assert "(occurrence 32)" in failures[5]
    assert recovery.startswith(f"pool 'db': the resources are open again, after {count} failures in ")


@virtual
async def test_a_backend_that_flaps_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    server = Server()
    server.refuses = lambda number: number % 2 == 0
    async with WorkerPool(use, workers=1, resource=server.connect) as pool:
        for _ in range(200):
            with pytest.raises(ConnectionResetError):
                await pool.run(ConnectionResetError())
    assert server.refused >= 199
    assert len(messages(caplog)) == 2 * 8


@virtual
async def test_after_a_quiet_minute_the_next_failure_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    server = Server()
    server.refuses = lambda number: number % 4 != 1
    async with WorkerPool(use, workers=1, resource=server.connect) as pool:
        for _ in range(3):
            with pytest.raises(ConnectionResetError):
                await pool.run(ConnectionResetError())
            await asyncio.sleep(100)
    assert [text.count("(occurrence 1)") for text in messages(caplog)] == [1, 0, 0] * 3


@virtual
async def test_a_worker_that_retires_in_an_outage_does_not_hold_up_the_line_about_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    server = Server()
    server.refuses = lambda number: number >= 2
    async with WorkerPool(use, workers=2, resource=server.connect) as pool:
        await asyncio.sleep(1)
        pool.resize(1)
        await settle()
        server.refuses = lambda number: False
        pool.resize(2)
        await settle()
        assert pool.stats.workers == 2
    assert "are open again" in messages(caplog)[-1]
