"""Pools whose connections a real PostgreSQL ends: while they are idle, while they work, and by a restart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from asyncpool import Failed, Resource, Retry, Succeeded, WorkerPool
from tests.servers.postgres import Postgres, find_programs

asyncpg = pytest.importorskip("asyncpg")
psycopg = pytest.importorskip("psycopg")

PROGRAMS = find_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="needs PostgreSQL (Debian: apt install postgresql)"),
]
WORKERS = 8
JOBS = 800
KILL_ALL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
SQL = "SELECT {}::int FROM pg_sleep(0.005)"


@dataclass(frozen=True)
class Client:
    """A library, as the table in docs/recipes.md has it."""

    connect: Callable[[str], AbstractAsyncContextManager[Any]]
    use: Callable[[int, Any], Awaitable[int]]
    recycle_on: tuple[type[Exception], ...]

    @staticmethod
    async def check(connection: Any) -> None:
        await connection.execute("SELECT 1")


@asynccontextmanager
async def connect_asyncpg(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def use_asyncpg(number: int, connection: Any) -> int:
    value: int = await connection.fetchval(SQL.format("$1"), number)
    return value


@asynccontextmanager
async def connect_psycopg(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


async def use_psycopg(number: int, connection: Any) -> int:
    cursor = await connection.execute(SQL.format("%s"), (number,))
    row: tuple[int] = await cursor.fetchone()
    return row[0]


ASYNCPG = Client(
    connect_asyncpg,
    use_asyncpg,
    (
        OSError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
    ),
)
PSYCOPG = Client(connect_psycopg, use_psycopg, (OSError, psycopg.OperationalError))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    assert PROGRAMS is not None
    server = Postgres(PROGRAMS)
    yield server
    server.close()


@pytest.fixture(params=[ASYNCPG, PSYCOPG], ids=["asyncpg", "psycopg"])
def client(request: pytest.FixtureRequest) -> Client:
    client: Client = request.param
    return client


async def kill_all(server: Postgres) -> None:
    async with connect_asyncpg(server.url) as connection:
        await connection.execute(KILL_ALL)


async def restart(server: Postgres) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


def make_pool(server: Postgres, client: Client, *, retry: Retry | None = None, **rules: Any) -> WorkerPool[int, int]:
    resource = Resource(
        lambda: client.connect(server.url), check=client.check, check_after=0.2, recycle_on=client.recycle_on, **rules
    )
    return WorkerPool(client.use, workers=WORKERS, resource=resource, retry=retry)


async def run_all(pool: WorkerPool[int, int], disturb: Awaitable[None] | None = None) -> Counter[type]:
    """Run many jobs, and let something happen meanwhile. Each has its own outcome, and each value is its own."""
    disturbing = None if disturb is None else asyncio.ensure_future(disturb)
    kinds: Counter[type] = Counter()
    jobs: set[int] = set()
    async for outcome in pool.outcomes(range(JOBS)):
        jobs.add(outcome.job)
        kinds[type(outcome)] += 1
        if isinstance(outcome, Succeeded):
            assert outcome.value == outcome.job
    if disturbing is not None:
        await disturbing
    assert jobs == set(range(JOBS))
    return kinds


async def soon(pool: WorkerPool[int, int], disturb: Awaitable[None]) -> None:
    """Wait until the pool is at work, then disturb."""
    while pool.stats.succeeded < JOBS // 8:
        await asyncio.sleep(0.01)
    await disturb


@pytest.mark.parametrize("disturb", [kill_all, restart])
def test_no_job_fails_after_the_server_has_ended_idle_connections(
    server: Postgres, client: Client, disturb: Callable[[Postgres], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with make_pool(server, client) as pool:
            await pool.map(range(100))
            await disturb(server)
            await asyncio.sleep(0.3)
            assert await run_all(pool) == Counter({Succeeded: JOBS})
            assert 1 <= pool.stats.resources_replaced.check <= WORKERS

    asyncio.run(main())


@pytest.mark.parametrize("disturb", [kill_all, restart])
def test_only_the_jobs_in_flight_fail_when_the_server_ends_connections_at_work(
    server: Postgres, client: Client, disturb: Callable[[Postgres], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with make_pool(server, client) as pool:
            kinds = await run_all(pool, soon(pool, disturb(server)))
        assert 1 <= kinds[Failed] <= WORKERS
        assert kinds[Succeeded] == JOBS - kinds[Failed]

    asyncio.run(main())


@pytest.mark.parametrize("disturb", [kill_all, restart])
def test_with_a_retry_no_job_fails(
    server: Postgres, client: Client, disturb: Callable[[Postgres], Awaitable[None]]
) -> None:
    async def main() -> None:
        retry = Retry(attempts=3, on=client.recycle_on)
        async with make_pool(server, client, retry=retry) as pool:
            kinds = await run_all(pool, soon(pool, disturb(server)))
            assert pool.stats.retries >= 1
        assert kinds == Counter({Succeeded: JOBS})

    asyncio.run(main())


def test_a_pool_can_start_before_its_server(server: Postgres, client: Client) -> None:
    async def main() -> None:
        await asyncio.to_thread(server.stop)
        async with make_pool(server, client, required=False) as pool:
            handle = await pool.submit(7)
            await asyncio.sleep(0.3)
            assert not handle.done()
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(60):
                assert await handle == 7

    asyncio.run(main())
