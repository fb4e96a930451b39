"""Scenarios of resources that are checked, that grow old, and that die while they are idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import anyio

from asyncpool import Failed, PoolClosed, QueueFull, Resource, ResourceTimeout, WorkerPool, current_job
from asyncpool.testing import settle
from tests.laws.schedules.tools import all_done, any_size, pass_time, patience, scenario, sizes, turns
from tests.laws.witness import RETRIED, Item, Witness, ended, spawn

Check = str
CHECKS = ("good", "says", "turn", "raises", "slow", "hang", "stubborn", "interrupted")


class Connection:
    """What a worker holds, and what the laws have to know of it."""

    def __init__(self, now: float) -> None:
        self.opened_at = self.good_at = now  # when it was known to be good: used, checked or opened
        self.is_open = True
        self.is_dead = False
        self.is_used = False
        self.is_spoiled = False  # a job has said so
        self.has_failed_check = False
        self.jobs = 0
        self.failures = 0


class Server:
    """Opens connections, kills them, and checks them in one way or another. It has the rules that the pool applies."""

    def __init__(self, random: Random, witness: Witness, *, failing: float = 0.0) -> None:
        self.random = random
        self.witness = witness
        self.failing = failing
        self.connections: list[Connection] = []
        self.checks = 0
        self.kinds: tuple[Check, ...] = ("says",)
        self.rules: Resource[Connection]
        self.reenter: Any = None
        self.dies = True  # whether a connection can cancel the task that holds it

    def resource(self, **options: Any) -> Resource[Connection]:
        self.rules = Resource(self.connect, **options)
        return self.rules

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def held(self) -> int:
        return sum(connection.is_open for connection in self.connections)

    def kill(self) -> None:
        for connection in self.connections:
            connection.is_dead |= self.random.random() < 0.7

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        await turns(self.random, 2)
        if (self.connections or not self.rules.required) and self.random.random() < self.failing:
            raise OSError("no connection")
        connection = Connection(self.now)
        self.connections.append(connection)
        try:
            if self.random.random() < 0.7:
                yield connection
            else:
                async with anyio.create_task_group() as group:
                    if self.dies and self.random.random() < 0.3:
                        asyncio.get_running_loop().call_later(
                            self.random.choice((0.0, 0.01)), group.cancel_scope.cancel
                        )
                    yield connection
        finally:
            connection.is_open = False
            with anyio.CancelScope(shield=True):
                await turns(self.random, 2)

    def check(self, connection: Connection) -> Any:
        """Check in a way that is drawn: what it finds is the truth, unless it takes too long."""
        self.checks += 1
        assert connection.is_open
        assert not connection.is_used, "checked under a job"
        if self.reenter is not None and self.random.random() < 0.3:
            self.reenter()
        kind = self.random.choice(self.kinds)
        if kind in ("good", "says"):
            return self._answer(connection)
        return self._check(connection, kind)

    def _answer(self, connection: Connection) -> bool:
        if connection.is_dead:
            connection.has_failed_check = True
            return False
        connection.good_at = self.now
        return True

    async def _check(self, connection: Connection, kind: Check) -> object:
        match kind:
            case "raises":
                await turns(self.random, 1)
                connection.has_failed_check = True
                raise (ConnectionError, SystemExit, asyncio.CancelledError)[self.random.randrange(3)]
            case "slow":
                await asyncio.sleep(self.random.choice((0.001, 0.02)))
            case "hang":
                connection.has_failed_check = True
                await asyncio.get_running_loop().create_future()
            case "stubborn":
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(self.random.choice((0.02, 2.0)))
                connection.has_failed_check = True
                return False
            case "interrupted":
                connection.has_failed_check = True
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.sleep(0)
            case _:
                await turns(self.random, 2)
        return self._answer(connection)

    async def handle(self, item: Item, connection: Connection) -> int:
        """Use a connection, and check that it may be used."""
        rules, now = self.rules, self.now
        assert connection.is_open
        assert not connection.is_used, "two jobs on one connection"
        assert not connection.has_failed_check, "used though it has failed its check"
        assert not connection.is_spoiled, "used though it is spoiled"
        if rules.check is not None:
            idle = now - connection.good_at
            # 0 is each that was idle, and not one that goes from one job straight to the next.
            assert idle < rules.check_after or idle == rules.check_after == 0.0, f"not checked after {idle} s"
        if rules.max_age is not None:
            assert now - connection.opened_at <= rules.max_age, "used though it is too old"
        if rules.max_idle is not None and self.witness.engine is None:  # with one, a process keeps one resource
            assert now - connection.good_at <= rules.max_idle + 1e-9, "kept though it was idle for too long"
        connection.jobs += 1
        assert rules.max_jobs is None or connection.jobs <= rules.max_jobs, "used too often"
        connection.is_used = True
        try:
            if connection.is_dead:
                connection.failures += 1
                assert connection.failures == 1, "a dead connection attracts jobs"
                self.witness.calls[current_job().id] += 1
                raise ValueError("the connection is dead")
            if self.random.random() < 0.1:
                current_job().recycle()
                connection.is_spoiled = True
            return await self.witness.handle(item, connection)
        except ValueError:
            connection.is_spoiled = True
            raise
        finally:
            assert connection.is_open or not self.witness.is_exact, "closed under a job"
            connection.is_used = False
            connection.good_at = self.now


def any_rules(random: Random) -> dict[str, Any]:
    """Some rules, often none of a kind."""
    return {
        "max_age": random.choice((None, None, 0.01, 0.5)),
        "max_idle": random.choice((None, None, 0.003, 0.05, 0.5)),
        "max_jobs": random.choice((None, None, 1, 2, 15)),
        "check_after": random.choice((0.0, 0.004, 0.1)),
        "check_timeout": random.choice((0.01, 1.0)),
        "recycle_on": random.choice((ValueError, lambda error: isinstance(error, ValueError))),
        "required": random.random() < 0.6,
    }


def check_places(pool: WorkerPool[Any, Any], *, is_settled: bool = False) -> None:
    """Check that each worker is in one place, and that no queued job waits for a worker that nobody looks at."""
    workers, health, queue = pool._parts.workers, pool._parts.health, pool._parts.queue
    free = [*workers.idle, *health.stale, *health.checking]
    assert len(free) == len(set(free)), free
    for worker in free:
        assert worker.job is None, worker
        assert not worker.retiring, worker
        assert not worker.needs_recycle, worker
        assert workers.by_number[worker.number] is worker
    assert queue.reserve == workers.unmade + len(health.stale) + len(health.checking)
    assert workers.unmade >= 0
    for places in (health.stale, workers.idle):
        since = [worker.idle_since for worker in places]
        assert not health.has_rules or since == sorted(since), since
    if is_settled and not pool._parts.pauses.is_paused and pool.state == "open":
        queued = len(queue.order)
        assert not (queued and workers.idle), "a worker idles beside a queued job"
        assert not health.stale or len(health.checking) >= queued, "a job waits for a check that nobody makes"
        if queued and workers.unmade:
            waiting = len(workers.by_number) - pool.stats.running - len(workers._leaving)
            assert waiting >= queued, "a job waits for a worker that nobody makes"


async def use_and_disturb(witness: Witness, random: Random, server: Server, *, count: int = 6) -> list[Any]:
    """Submit jobs and let everything happen to the pool and its resources."""
    pool = witness.pool
    tasks: list[asyncio.Task[Any]] = []
    for _ in range(count):
        tasks += [spawn(witness.submit(witness.item(*RETRIED, "slow"))) for _ in range(random.randint(0, 3))]
        await pass_time(random)
        check_places(pool)
        match random.randint(0, 7):
            case 0:
                server.kill()
            case 1:
                pool.pause()
                await pass_time(random)
            case 2:
                witness.resize(any_size(random))
            case 3 if witness.handles:
                random.choice(witness.handles).cancel()
            case 4:
                await asyncio.sleep(random.choice((0.05, 0.5, 3.0)))
            case 5:
                with suppress(QueueFull):
                    witness.submit_nowait(witness.item("ok", "turn"))
            case _:
                await settle()
                witness.check()
                check_places(pool, is_settled=True)
        check_places(pool)
        if random.random() < 0.7:
            pool.resume()
    return tasks


@scenario
async def idle_resources_are_checked(witness: Witness, random: Random) -> None:
    """By a check that is slow, fails, raises or hangs, while connections die, grow old and are resized."""
    server = Server(random, witness, failing=random.choice((0.0, 0.3)))
    server.kinds = random.choice((("says",), ("turn", "slow"), CHECKS))
    resource = server.resource(check=server.check, **any_rules(random))
    pool = witness.make_pool(
        handler=server.handle, resource=resource, retry=random.choice((None, patience(random))), **sizes(random)
    )
    async with pool:
        tasks = await use_and_disturb(witness, random, server)
        pool.resume()
        await ended(*tasks)
        await all_done(pool)  # each job gets its worker in the end
        await settle()
        check_places(pool, is_settled=True)
    report = await witness.check_end()
    assert not report.unfinished
    await asyncio.sleep(10.0)
    assert server.held == 0


@scenario
async def the_end_comes_while_resources_are_checked(witness: Witness, random: Random) -> None:
    server = Server(random, witness, failing=random.choice((0.0, 0.3)))
    server.kinds = CHECKS
    resource = server.resource(check=server.check, **any_rules(random))
    pool = witness.make_pool(handler=server.handle, resource=resource, **sizes(random))
    await pool.start()
    tasks = await use_and_disturb(witness, random, server, count=random.randint(1, 3))
    if random.random() < 0.5:
        pool.resume()
        await asyncio.sleep(0.2)
        tasks += [spawn(witness.submit(witness.item("ok", "nap"))) for _ in range(3)]
        await turns(random, 3)
    if random.random() < 0.3:
        pool.cancel()
    await pool.close(drain_timeout=random.choice((0.0, 0.05, 5.0)), grace=6.0)
    await ended(*tasks)
    for task in tasks:
        assert task.cancelled() or isinstance(task.exception(), (type(None), PoolClosed)), task
    await witness.check_end()
    await asyncio.sleep(20.0)
    assert server.held == 0


@scenario
async def checks_enter_their_own_pool(witness: Witness, random: Random) -> None:
    """They submit, resize, pause, cancel jobs, and some of them end it."""
    server = Server(random, witness)
    server.kinds = random.choice((("says",), CHECKS))
    ends = random.random() < 0.3
    left = 20

    def reenter() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            return
        with suppress(QueueFull, PoolClosed):
            match random.randint(0, 6 if ends else 4):
                case 0 | 1:
                    pool.submit_nowait(witness.item("ok", "turn"))
                    witness.others += 1
                case 2:
                    witness.resize(any_size(random))
                case 3:
                    pool.pause()
                    pool.resume()
                case 4 if witness.handles:
                    random.choice(witness.handles).cancel()
                case 5:
                    pool.drain()
                case 6:
                    pool.cancel()

    server.reenter = reenter
    resource = server.resource(check=server.check, **any_rules(random))
    pool = witness.make_pool(handler=server.handle, resource=resource, **sizes(random))
    await pool.start()
    tasks: list[Any] = []
    with suppress(PoolClosed):
        tasks = await use_and_disturb(witness, random, server)
    with suppress(PoolClosed):
        pool.resume()
    if not ends:
        await ended(*tasks)
        await all_done(pool)
    await pool.close(drain_timeout=10.0)
    await ended(*tasks)
    await witness.check_end()
    await asyncio.sleep(20.0)
    assert server.held == 0


@scenario
async def a_check_that_ignores_its_cancellation_is_abandoned(witness: Witness, random: Random) -> None:
    """Its worker gets another resource, and what comes of the check later changes nothing."""
    server = Server(random, witness)
    server.dies = False  # a scope cancels again in each iteration, so what ignores that spins
    answers: list[object] = []

    async def check(connection: Connection) -> object:
        if random.random() < 0.5:
            until = server.now + random.choice((5.5, 7.0, 30.0))
            while server.now < until:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(until - server.now)
            answers.append(random.choice((True, False)))
            return answers[-1]
        return server._answer(connection)

    rules = {**any_rules(random), "check_timeout": random.choice((0.01, 1.0)), "max_age": random.choice((None, 3.0))}
    pool = witness.make_pool(handler=server.handle, resource=server.resource(check=check, **rules), **sizes(random))
    async with pool:
        tasks: list[Any] = []
        for _ in range(4):
            tasks += [spawn(witness.submit(witness.item("ok", "turn", "nap"))) for _ in range(random.randint(1, 3))]
            await asyncio.sleep(random.choice((0.01, 0.5, 6.0)))
            if random.random() < 0.3:
                witness.resize(random.randint(1, 3))
            await settle()
            check_places(pool, is_settled=True)
        await ended(*tasks)
        await all_done(pool)
    report = await witness.check_end()
    assert not report.unfinished
    await asyncio.sleep(60.0)
    assert server.held == 0


@scenario
async def a_pool_starts_before_its_server(witness: Witness, random: Random) -> None:
    """It is open at once, whatever its first resource does, and its jobs are done when the server is there."""
    server = Server(random, witness, failing=1.0)
    resource = server.resource(required=False, recycle_on=ValueError, open_timeout=random.choice((0.02, 30.0)))
    pool = witness.make_pool(handler=server.handle, resource=resource, **sizes(random))
    now = server.now
    async with pool:
        assert server.now == now or witness.engine is not None
        tasks = [spawn(witness.submit(witness.item("ok", "turn"))) for _ in range(random.randint(1, 5))]
        await asyncio.sleep(random.choice((0.0, 1.0, 20.0)))
        assert pool.stats.succeeded == witness.active == 0
        witness.check()
        check_places(pool)
        if random.random() < 0.3:
            witness.resize(any_size(random))
        server.failing = 0.0
        if random.random() < 0.7:
            await ended(*tasks)
            await all_done(pool)
    await ended(*tasks)
    assert not (await witness.check_end()).unfinished
    assert server.held == 0


@scenario
async def every_failure_of_a_dead_connection_is_retried(witness: Witness, random: Random) -> None:
    """All connections die at once, idle ones and those in use. Each fails one job at most, so no job that may be tried
    again once for each of them fails.
    """
    server = Server(random, witness)
    server.kinds = ("says", "turn", "slow")
    rules = {"check_after": random.choice((0.0, 0.1, 1.0)), "recycle_on": ValueError}
    resource = server.resource(check=server.check, **rules)
    pool = witness.make_pool(
        handler=server.handle, resource=resource, retry=patience(random, attempts=5), workers=random.randint(1, 4)
    )
    async with pool:
        for _ in range(3):
            tasks = [spawn(witness.submit(witness.item("ok", "turn", "nap"))) for _ in range(8)]
            await turns(random, 4)
            for connection in server.connections:
                connection.is_dead = connection.is_open
            before = sum(connection.failures for connection in server.connections)
            await ended(*tasks)
            await all_done(pool)
            failures = sum(connection.failures for connection in server.connections) - before
            assert failures <= pool.stats.max_workers, failures
            await asyncio.sleep(random.choice((0.01, 2.0)))
    assert not (await witness.check_end())
    for handle in witness.handles:
        outcome = await handle.outcome()
        assert not isinstance(outcome, Failed), outcome
    assert not any(isinstance(error, ResourceTimeout) for error in pool.report.errors)  # type: ignore[union-attr]
