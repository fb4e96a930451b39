"""Resources that are checked before a job takes them, and replaced for their age, use or idleness, or on request."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import FrozenInstanceError
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from asyncpool import Failed, RateLimit, Resource, Retry, Succeeded, WorkerPool, current_job, offload, outcomes
from asyncpool.events import JobStarted, PoolStalled, ResourceFailed, ResourceReplaced
from asyncpool.stats import Replacements
from asyncpool.testing import run, settle
from tests.engines.memory import InMemory, Portable, portable
from tests.helpers import assert_conserved, compute, fuzzed, ignores_cancel, now, virtual
from tests.scaling.tools import timers


class Server:
    """Opens connections with numbers from 1, and knows which are dead, and what was asked of which when."""

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.opened_at: list[float] = []
        self.closed: list[int] = []
        self.checked: list[int] = []
        self.dead: set[int] = set()
        self.refuses: Callable[[], bool] = lambda: False
        self.seconds = 0.0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[int]:
        if self.refuses():
            raise ConnectionRefusedError("port 5432")
        number = len(self.opened) + 1
        self.opened.append(number)
        self.opened_at.append(now())
        try:
            yield number
        finally:
            self.closed.append(number)

    async def check(self, connection: int) -> bool:
        self.checked.append(connection)
        await asyncio.sleep(self.seconds)
        return connection not in self.dead

    async def use(self, job: Any, connection: int) -> int:
        if connection in self.dead:
            raise ConnectionResetError(connection)
        if isinstance(job, BaseException):
            raise job
        await asyncio.sleep(job)
        return connection

    def pool(self, *, workers: int = 1, events: list[Any] | None = None, **rules: Any) -> WorkerPool[Any, int]:
        options = {name: rules.pop(name) for name in ("timeout", "retry", "limiter", "engine") if name in rules}
        observers = [] if events is None else [events.append]
        resource = Resource(self.connect, **{"check": self.check, **rules})
        return WorkerPool(self.use, workers=workers, resource=resource, observers=observers, name="db", **options)


def replaced(events: list[Any]) -> list[tuple[int, str]]:
    return [(event.worker, event.reason) for event in events if isinstance(event, ResourceReplaced)]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- The arguments


def connect() -> Any: ...


async def async_generator(resource: object) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"max_age": 0}, ValueError, "max_age must be a finite number of seconds > 0, got 0"),
        ({"max_age": "1"}, TypeError, "max_age must be a number of seconds, got '1'"),
        ({"max_idle": -1}, ValueError, "max_idle must be a finite number of seconds > 0, got -1"),
        ({"max_jobs": 0}, ValueError, "max_jobs must be >= 1, got 0"),
        ({"max_jobs": 1.5}, TypeError, "max_jobs must be an int, got 1.5"),
        ({"check": 5}, TypeError, "check must be a function of the resource, sync or async, got 5"),
        ({"check": async_generator}, TypeError, "check must be a function of the resource, sync or async, got <func"),
        ({"check_after": -1}, ValueError, "check_after must be a finite number of seconds >= 0, got -1"),
        ({"check_timeout": 0}, ValueError, "check_timeout must be a finite number of seconds > 0, got 0"),
        ({"recycle_on": 5}, TypeError, "recycle_on must be an exception type, a tuple of them, or a predicate, got 5"),
        ({"required": 1}, TypeError, "required must be a bool, got 1"),
    ],
)
def test_an_argument_that_breaks_a_rule_is_rejected(rules: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Resource(connect, **rules)
    assert str(caught.value).startswith(message)


def test_a_resource_is_frozen_and_keeps_plain_numbers() -> None:
    resource = Resource(connect, max_age=Decimal(60), check_after=Decimal("0.5"))  # type: ignore[arg-type]
    assert (resource.max_age, resource.check_after) == (60.0, 0.5)
    assert type(resource.max_age) is float
    with pytest.raises(FrozenInstanceError):
        resource.max_age = 1.0  # type: ignore[misc]


def test_recycle_on_of_the_pool_is_for_a_factory() -> None:
    with pytest.raises(TypeError, match=r"recycle_on= belongs to resource=factory; a Resource has its own"):
        WorkerPool(Server().use, workers=1, resource=Resource(connect), recycle_on=KeyError)
    with pytest.raises(TypeError, match="recycle_on= belongs"):
        outcomes(Server().use, [1], workers=1, resource=Resource(connect), recycle_on=OSError)


@pytest.mark.parametrize(("recycle_on", "is_replaced"), [(KeyError, True), (OSError, False)])
@fuzzed
async def test_recycle_on_of_a_resource_decides(recycle_on: Any, is_replaced: bool) -> None:
    server = Server()
    async with server.pool(recycle_on=recycle_on) as pool:
        with pytest.raises(KeyError):
            await pool.run(KeyError())
        assert await pool.run(0) == 1 + is_replaced


# -- Checks


@fuzzed
async def test_a_resource_that_was_idle_is_checked_before_the_job_and_one_that_was_not_is_not() -> None:
    server = Server()
    async with server.pool(check_after=1.0) as pool:
        assert await pool.run(0) == 1
        await asyncio.sleep(0.99)
        assert await pool.run(0) == 1
        assert server.checked == []
        await asyncio.sleep(1.0)
        assert await pool.run(0) == 1
        assert server.checked == [1]
        assert await pool.map([0.5] * 20) == [1] * 20  # from one job straight to the next
        assert server.checked == [1]


def raises(error: BaseException) -> Callable[[int], object]:
    def check(connection: int) -> object:
        raise error

    return check


async def hangs(connection: int) -> None:
    await asyncio.sleep(1000)


async def swallows(connection: int) -> bool:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(1000)
    return True


async def nested(connection: int) -> object:
    return hangs(connection)


@pytest.mark.parametrize(
    ("check", "text", "seconds"),
    [
        (lambda connection: False, "it returned False", 0),
        (raises(OSError("gone")), "OSError('gone')", 0),
        (raises(SystemExit(1)), "SystemExit(1)", 0),
        (hangs, "ResourceTimeout('checked', 3)", 3),
        (swallows, "ResourceTimeout('checked', 3)", 3),
        (nested, "ResourceTimeout('checked', 3)", 3),
    ],
)
@fuzzed
async def test_a_resource_that_fails_its_check_is_replaced_and_the_job_is_not_charged(
    check: Any, text: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server()
    async with server.pool(check=check, check_timeout=3, events=events) as pool:
        await asyncio.sleep(5)
        outcome = await (await pool.submit(0)).outcome()
        assert isinstance(outcome, Succeeded)
        assert (outcome.value, outcome.attempts, now()) == (2, 1, 5 + seconds)
        assert len([event for event in events if isinstance(event, JobStarted)]) == 1
        assert pool.stats.resources_replaced == Replacements(check=1)
        assert not [event for event in events if isinstance(event, ResourceFailed)]
    assert replaced(events) == [(1, "check")]
    assert messages(caplog) == [
        f"pool 'db': the resource of worker 1 failed its check (occurrence 1), and is replaced: {text}"
    ]
    assert server.closed == [1, 2]


@pytest.mark.parametrize("answer", [None, 0, "", True, float("nan")])
@virtual
async def test_only_false_is_a_failed_check(answer: object) -> None:
    server = Server()
    async with server.pool(check=lambda connection: answer) as pool:
        await asyncio.sleep(5)
        assert await pool.run(0) == 1


@fuzzed
async def test_a_job_waits_at_the_front_while_resources_are_checked() -> None:
    events: list[Any] = []
    server = Server()
    async with server.pool(workers=2, events=events) as pool:
        await asyncio.sleep(5)
        server.dead = {1, 2}
        server.seconds = 2.0
        for _ in range(5):
            await pool.submit(1)
        await pool.join()
    assert [event.id for event in events if isinstance(event, JobStarted)] == [1, 2, 3, 4, 5]
    assert pool.stats.failed == 0
    assert server.opened == [1, 2, 3, 4]


@fuzzed
async def test_workers_that_need_no_check_are_preferred() -> None:
    server = Server()
    async with server.pool(workers=3) as pool:
        await asyncio.sleep(5)
        first = await pool.run(0)
        assert server.checked == [first]
        for _ in range(10):
            assert await pool.run(0.3) == first
        assert server.checked == [first]
        assert len(set(await pool.map([0.3] * 6))) == 3
        assert sorted(server.checked) == [1, 2, 3]


@fuzzed
async def test_as_many_resources_are_checked_as_jobs_wait() -> None:
    server = Server()
    server.seconds = 1.0
    async with server.pool(workers=5) as pool:
        await asyncio.sleep(5)
        handles = [await pool.submit(10) for _ in range(3)]
        await settle()
        assert len(server.checked) == 3
        assert (pool.stats.workers, pool.stats.queued) == (2, 3)
        handles += [await pool.submit(10) for _ in range(3)]
        await settle()
        assert len(server.checked) == 5
        await asyncio.sleep(1.1)
        assert (pool.stats.running, pool.stats.queued) == (5, 1)
        for handle in handles:
            await handle


@fuzzed
async def test_another_worker_takes_the_job_while_the_check_hangs() -> None:
    server = Server()
    async with server.pool(workers=2, check=lambda number: hangs(number) if number == 1 else True) as pool:
        busy = await pool.submit(5.5)
        number = await asyncio.create_task(pool.run(0))
        await asyncio.sleep(5)
        if number == 1:
            began = now()
            assert await pool.run(0) == 2
            assert now() == began + 0.5
        await busy


@fuzzed
async def test_jobs_without_room_in_the_queue_get_the_workers_whose_resource_is_checked() -> None:
    server = Server()
    server.seconds = 1.0
    pool = WorkerPool(server.use, workers=3, queue_size=0, resource=Resource(server.connect, check=server.check))
    async with pool:
        await asyncio.sleep(5)
        for _ in range(3):
            pool.submit_nowait(4)
        await asyncio.sleep(1.1)
        assert pool.stats.running == 3


@fuzzed
async def test_a_failed_job_makes_idle_resources_suspicious() -> None:
    """All connections died: those that were idle for a moment only fail no job, because the first one told."""
    server = Server()
    async with server.pool(workers=5, check_after=100) as pool:
        await pool.map([0.1] * 5)
        server.dead = {1, 2, 3, 4, 5}
        results = [await (await pool.submit(0)).outcome() for _ in range(10)]
    assert [isinstance(result, Failed) for result in results] == [True] + [False] * 9
    assert pool.stats.resources_replaced.recycle == 1


@fuzzed
async def test_a_failed_check_makes_idle_resources_suspicious() -> None:
    server = Server()
    async with server.pool(workers=2, check_after=1) as pool:
        await asyncio.sleep(2)
        first = await pool.run(0)
        server.dead = {1, 2}
        busy = await pool.submit(ConnectionResetError())  # on the fresh one, which dies
        with pytest.raises(ConnectionResetError):
            await busy
        assert await pool.run(0) not in (1, 2)
        assert await pool.map([0, 0]) != [first] * 2
    assert pool.stats.failed == 1


@fuzzed
async def test_a_dead_connection_fails_one_job_and_attracts_no_other() -> None:
    server = Server()
    server.refuses = lambda: 0 < now() < 10
    pool = WorkerPool(server.use, workers=2, resource=server.connect)
    async with pool:
        await settle()
        await asyncio.sleep(1)
        server.dead = {2}
        results = await pool.outcomes([0.1] * 40)
        assert sum(isinstance(outcome, Failed) for outcome in results) <= 1
        assert {outcome.value for outcome in results if isinstance(outcome, Succeeded)} == {1}


@fuzzed
async def test_nothing_is_checked_in_a_pause_and_everything_after_it() -> None:
    server = Server()
    async with server.pool(workers=2) as pool:
        await settle()
        pool.pause()
        handles = [await pool.submit(1) for _ in range(2)]
        await asyncio.sleep(100)
        assert server.checked == []
        pool.resume()
        for handle in handles:
            await handle
        assert sorted(server.checked) == [1, 2]
        assert now() == 101


@fuzzed
async def test_a_job_that_comes_back_gets_a_checked_resource() -> None:
    server = Server()
    async with server.pool(retry=Retry(attempts=2, backoff=50, max_backoff=50, jitter=False)) as pool:
        handle = await pool.submit(KeyError())
        with pytest.raises(KeyError):
            await handle
        assert server.checked == [1]


@fuzzed
async def test_a_rate_limit_and_checks_go_together() -> None:
    server = Server()
    async with server.pool(workers=2, limiter=RateLimit(0.5)) as pool:
        await asyncio.sleep(5)
        assert len(await pool.map([0] * 4)) == 4
        assert now() == 11
        assert len(server.checked) >= 3


@virtual
async def test_a_check_after_of_zero_starves_no_job() -> None:
    """Though another job is submitted each time between a check and the start of a job."""
    server = Server()
    begun: list[int] = []
    left = 50

    def check(connection: int) -> None:
        server.checked.append(connection)
        asyncio.get_running_loop().call_soon(submit)

    def submit() -> None:
        nonlocal left
        if left:
            left -= 1
            pool.submit_nowait(0)

    async def use(job: int, connection: int) -> None:
        begun.append(len(server.checked))

    pool = WorkerPool(use, workers=1, queue_size=100, resource=Resource(server.connect, check=check, check_after=0))
    async with pool:
        await asyncio.sleep(1)
        await pool.run(0)
        await pool.join()
        checked = len(server.checked)
        await pool.run(0)
        assert len(server.checked) == checked + 1
    assert begun[0] == 1


@virtual
async def test_a_loop_that_was_blocked_for_long_has_idle_resources_checked() -> None:
    """As a process that was suspended for an hour: no timer comes before the job that is submitted then."""
    server = Server()
    async with server.pool() as pool:
        await settle()
        compute(3600)
        server.dead = {1}
        assert await pool.run(0) == 2


@virtual
async def test_a_pool_with_a_check_that_is_idle_has_no_timer() -> None:
    server = Server()
    async with server.pool(workers=3) as pool:
        await pool.map([1] * 9)
        await asyncio.sleep(10)
        assert timers() == []


@fuzzed
async def test_a_check_that_ignores_its_cancellation_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    events: list[Any] = []
    server = Server()
    async with server.pool(check=lambda number: ignores_cancel(60) if number == 1 else True, events=events) as pool:
        await asyncio.sleep(5)
        assert await pool.run(0) == 2
        assert 15 <= now() <= 15.1
        assert pool.stats.resources_abandoned == 1
        await asyncio.sleep(100)
        assert server.closed == [1]
        assert await pool.run(0) == 2
        assert_conserved(pool)
    [failed] = [event for event in events if isinstance(event, ResourceFailed)]
    assert str(failed.error) == "the resource was not checked within 5 s, ignores its cancellation, and is abandoned"
    assert [text for text in messages(caplog) if "abandoned the task 'db worker 1 resource'" in text]


@fuzzed
async def test_a_pool_whose_checks_hang_is_stalled() -> None:
    events: list[Any] = []
    server = Server()
    async with server.pool(workers=2, check=hangs, check_timeout=60, events=events) as pool:
        await asyncio.sleep(5)
        handle = await pool.submit(0)
        await asyncio.sleep(20)
        [stalled] = [event for event in events if isinstance(event, PoolStalled)]
        assert stalled.reason == "no worker has its resource (0 opening, 0 closing, 2 checking)"
        await handle
        assert now() == 65


@pytest.mark.parametrize("how", ["close", "resize", "age"])
@fuzzed
async def test_a_check_is_given_up_when_its_worker_is_not_needed(how: str) -> None:
    server = Server()
    server.seconds = 3.0
    async with server.pool(workers=2, max_age=6 if how == "age" else None) as pool:
        await asyncio.sleep(5)
        handles = [await pool.submit(0), await pool.submit(0)]
        await settle()
        assert len(server.checked) == 2
        match how:
            case "close":
                await pool.close(drain_timeout=0)
                assert now() == 5
                assert sorted(server.closed) == [1, 2]
                return
            case "resize":
                pool.resize(1)
                await settle()
                assert len(server.closed) == 1
        for handle in handles:
            await handle
        assert now() <= 9


@fuzzed
async def test_a_check_can_retire_its_own_worker_without_spoiling_the_closing() -> None:
    closed: list[bool] = []

    @asynccontextmanager
    async def connect() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(1)
        closed.append(True)

    def check(connection: None) -> None:
        pool.resize(1)

    async def use(job: int, connection: None) -> None: ...

    for _ in range(5):  # it retires itself, or the other one
        closed.clear()
        pool = WorkerPool(use, workers=2, resource=Resource(connect, check=check))
        async with pool:
            await asyncio.sleep(5)
            for _ in range(2):
                await pool.submit(0)
            await pool.join()
        assert pool.report is not None
        assert not pool.report.errors
        assert closed == [True, True]


@fuzzed
async def test_a_check_that_was_cancelled_leaves_no_request_to_cancel_behind() -> None:
    requests: list[int] = []

    @asynccontextmanager
    async def connect() -> AsyncIterator[int]:
        yield 1
        task = asyncio.current_task()
        assert task is not None
        requests.append(task.cancelling())

    async def use(job: int, connection: int) -> None: ...

    async with WorkerPool(use, workers=1, resource=Resource(connect, check=hangs)) as pool:
        await asyncio.sleep(5)
        await pool.run(0)
    assert requests == [0, 0]


def test_a_keyboard_interrupt_of_a_check_reaches_the_program_and_closes_the_pool() -> None:
    server = Server()
    closed: list[Any] = []

    async def main() -> None:
        pool = server.pool(check=raises(KeyboardInterrupt()))
        async with pool:
            await asyncio.sleep(5)
            try:
                await pool.run(0)
            finally:
                await pool.close()
                closed.append(pool.report)

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert len(closed) == 1
    assert server.closed == server.opened


# -- Age, use and idleness


@fuzzed
async def test_an_idle_resource_is_replaced_at_its_age_and_a_busy_one_when_its_job_has_ended() -> None:
    events: list[Any] = []
    server = Server()
    async with server.pool(max_age=100, check=None, events=events) as pool:
        await asyncio.sleep(89.9)
        assert server.opened == [1]
        await asyncio.sleep(10.2)
        assert server.opened == [1, 2]
        assert 90 <= server.opened_at[1] <= 100
        assert await pool.run(500) == 2
        await settle()
        assert server.closed == [1, 2]
    assert replaced(events) == [(1, "age"), (1, "age")]
    assert pool.stats.resources_replaced == Replacements(age=2)


@virtual
async def test_a_pool_does_not_replace_all_its_old_resources_at_once() -> None:
    server = Server()
    async with server.pool(workers=50, max_age=1000, check=None):
        await asyncio.sleep(1001)
    times = server.opened_at[50:100]
    assert 900 <= min(times) < 930
    assert 970 < max(times) <= 1000
    assert len(set(times)) == 50


@fuzzed
async def test_a_resource_does_at_most_max_jobs() -> None:
    events: list[Any] = []
    server = Server()
    async with server.pool(workers=2, max_jobs=3, check=None, events=events) as pool:
        used = await pool.map([0.1] * 30)
    assert max(used.count(number) for number in server.opened) == 3
    assert {reason for _, reason in replaced(events)} == {"jobs"}


@virtual
async def test_max_jobs_has_a_spread() -> None:
    server = Server()
    async with server.pool(workers=1, max_jobs=100, check=None) as pool:
        used = await pool.map([0] * 2000)
    counts = [used.count(number) for number in server.opened[:-1]]
    assert 90 <= min(counts) < max(counts) <= 100


@fuzzed
async def test_an_idle_resource_is_closed_and_opened_when_a_job_needs_it() -> None:
    events: list[Any] = []
    server = Server()
    async with server.pool(workers=3, max_idle=60, check=None, events=events) as pool:
        await asyncio.sleep(59)
        assert server.closed == []
        await pool.run(0)
        await asyncio.sleep(2)
        assert len(server.closed) == 2  # the stack keeps one worker busy
        await asyncio.sleep(60)
        assert len(server.closed) == 3
        assert pool.stats.workers == 0
        await asyncio.sleep(1000)
        assert len(server.opened) == 3
        assert timers() == []
        assert await pool.run(1) == 4
        assert await pool.map([1] * 9) == [4, 5, 6] * 3 or len(server.opened) == 6
    assert [reason for _, reason in replaced(events)] == ["idle"] * 3
    assert pool.stats.resources_replaced == Replacements(idle=3)
    assert not pool.report


@fuzzed
async def test_a_burst_opens_what_was_closed_for_idleness_beside_what_is_checked() -> None:
    server = Server()
    async with server.pool(workers=3, max_idle=20) as pool:
        await asyncio.sleep(15)
        await pool.run(0)
        await asyncio.sleep(10)
        assert len(server.closed) == 2
        server.seconds = 1.0
        handles = [await pool.submit(5) for _ in range(3)]
        await settle()
        assert pool.stats.running == 2  # they do not wait for the check
        await asyncio.sleep(1.1)
        assert pool.stats.running == 3
        for handle in handles:
            await handle


@fuzzed
async def test_resizing_does_not_open_the_resources_that_were_closed_for_idleness() -> None:
    server = Server()
    async with server.pool(workers=3, max_idle=10, check=None) as pool:
        await asyncio.sleep(20)
        pool.resize(5)
        await settle()
        assert len(server.opened) == 5
        pool.resize(2)
        await settle()
        assert len(set(await pool.map([1] * 20))) == 2
        assert_conserved(pool)


@fuzzed
async def test_resources_that_are_idle_in_a_pause_are_closed_and_opened_again_for_the_jobs_after_it() -> None:
    server = Server()
    async with server.pool(workers=2, max_idle=10, check=None) as pool:
        await settle()
        pool.pause()
        handle = await pool.submit(0)
        await asyncio.sleep(100)
        assert len(server.closed) == 2
        pool.resume()
        assert await handle in (3, 4)


# -- On request


@pytest.mark.parametrize("fails", [False, True])
@fuzzed
async def test_a_job_can_have_its_resource_replaced(fails: bool) -> None:
    events: list[Any] = []
    server = Server()

    async def use(job: int, connection: int) -> int:
        current_job().recycle()
        current_job().recycle()
        await asyncio.sleep(1)
        assert server.closed == []
        if fails:
            raise KeyError(job)
        return connection

    async with WorkerPool(use, workers=1, resource=server.connect, observers=[events.append]) as pool:
        with suppress(KeyError):
            assert await pool.run(0) == 1
        await settle()
        assert server.closed == [1]
        assert server.opened == [1, 2]
    assert replaced(events) == [(1, "recycle")]


@fuzzed
async def test_recycle_is_for_the_attempt_that_runs() -> None:
    server = Server()
    kept: list[Any] = []

    async def use(job: int, connection: int) -> int:
        kept.append(current_job())
        if len(kept) == 2:
            with pytest.raises(LookupError, match="this attempt does not run here"):
                kept[0].recycle()
        if len(kept) == 1:
            raise KeyError
        return connection

    async with WorkerPool(use, workers=1, resource=server.connect, retry=Retry(attempts=2, backoff=0)) as pool:
        assert await pool.run(0) == 1
        with pytest.raises(LookupError, match="recycle"):
            kept[1].recycle()
        with pytest.raises(LookupError):
            pickle.loads(pickle.dumps(kept[1])).recycle()


@virtual
async def test_recycle_without_a_resource_says_so() -> None:
    async def job() -> None:
        current_job().recycle()

    async with WorkerPool(workers=1, name="plain") as pool:
        with pytest.raises(LookupError, match="the pool opens no resources"):
            await pool.run(job)


def test_a_thread_of_a_job_can_have_the_resource_replaced() -> None:
    server = Server()

    def use(job: int, connection: int) -> int:
        current_job().recycle()
        return connection

    async def main() -> list[int]:
        async with WorkerPool(offload(use), workers=1, resource=server.connect) as pool:
            return [await pool.run(0), await pool.run(0)]

    assert asyncio.run(main()) == [1, 2]


# -- A service that starts before its server


@fuzzed
async def test_a_pool_whose_resource_is_not_required_opens_at_once() -> None:
    events: list[Any] = []
    server = Server()
    server.refuses = lambda: now() < 30
    async with server.pool(workers=2, required=False, events=events) as pool:
        assert now() == 0
        assert pool.state == "open"
        handle = await pool.submit(0)
        await asyncio.sleep(20)
        assert pool.stats.queued == 1
        [stalled] = [event for event in events if isinstance(event, PoolStalled)]
        assert "port 5432" in stalled.reason
        await handle
        assert 30 <= now() <= 35
    assert len([event for event in events if isinstance(event, ResourceFailed)]) > 10


@fuzzed
async def test_a_required_resource_that_cannot_be_opened_fails_the_start() -> None:
    server = Server()
    server.refuses = lambda: True
    with pytest.raises(ConnectionRefusedError):
        await server.pool().start()


@fuzzed
async def test_a_pool_that_never_gets_its_resource_closes() -> None:
    server = Server()
    server.refuses = lambda: True
    pool = server.pool(required=False)
    await pool.start()
    await pool.submit(0)
    await asyncio.sleep(10)
    report = await pool.close(drain_timeout=5)
    assert [entry.job for entry in report.unfinished] == [0]
    assert now() == 15


# -- With others


@fuzzed
async def test_two_pools_share_a_resource_object() -> None:
    server = Server()
    resource = Resource(server.connect, check=server.check, max_jobs=1)
    async with (
        WorkerPool(server.use, workers=1, resource=resource) as first,
        WorkerPool(server.use, workers=1, resource=resource) as second,
    ):
        assert sorted([await first.run(0), await second.run(0)]) == [1, 2]
        await settle()
        assert sorted([await first.run(0), await second.run(0)]) == [3, 4]


@pytest.mark.parametrize("rules", [{"max_jobs": 1}, {"max_age": 0.5}, {"recycle": True}, {"dead": True}])
@fuzzed
async def test_the_rules_hold_in_the_processes_of_an_engine(rules: dict[str, Any]) -> None:
    server = Server()
    rules = dict(rules)
    recycles, dies = rules.pop("recycle", False), rules.pop("dead", False)

    async def use(job: float, connection: int) -> int:
        if recycles:
            current_job().recycle()
        return await server.use(job, connection)

    resource = Resource(server.connect, check=server.check, check_after=0.5, **rules)
    options = portable({"resource": resource})
    events: list[Any] = []
    pool = WorkerPool(Portable(use), workers=2, engine=InMemory(1), observers=[events.append], **options)
    async with pool:
        first = await pool.run(0)
        await asyncio.sleep(1)
        if dies:
            server.dead = set(server.opened)
        assert await pool.run(0) != first
        await asyncio.sleep(1)
        assert sum(pool.stats.resources_replaced) >= 1
        assert {event.process for event in events if isinstance(event, ResourceReplaced)} == {"process 1"}
    assert sorted(server.closed) == server.opened


@fuzzed
async def test_a_process_of_an_engine_keeps_one_resource_however_long_it_is_idle() -> None:
    server = Server()
    options = portable({"resource": Resource(server.connect, max_idle=10)})
    async with WorkerPool(Portable(server.use), workers=4, engine=InMemory(1), **options) as pool:
        await asyncio.sleep(100)
        assert len(server.closed) == 3
        assert pool.stats.resources_replaced == Replacements(idle=3)
        assert await pool.run(0) not in server.closed
        assert len(await pool.map([1] * 8)) == 8


@fuzzed
async def test_a_service_with_an_engine_starts_before_its_server() -> None:
    server = Server()
    server.refuses = lambda: now() < 3
    options = portable({"resource": Resource(server.connect, required=False)})
    async with WorkerPool(Portable(server.use), workers=2, engine=InMemory(1), **options) as pool:
        assert now() < 1
        assert await pool.run(0) in (1, 2)


def test_a_check_that_cannot_travel_is_rejected() -> None:
    resource = Resource(Portable(connect), check=partial(print, file=threading.Lock()))
    with pytest.raises(TypeError, match="handler, resource, check and recycle_on must be picklable"):
        WorkerPool(Portable(connect), workers=1, engine=InMemory(), resource=resource)
