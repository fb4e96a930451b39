"""Pools whose connections are ended while they are idle, and while they work: SMTP, SQLite and Redis.

Each client with `recycle_on` and `check` of the table in docs/recipes.md. PostgreSQL is in `test_postgres.py`.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

from asyncpool import ErrorFilter, Failed, Resource, Retry, Succeeded, WorkerPool

pytestmark = pytest.mark.slow
WORKERS, JOBS = 4, 200
IDLE = 0.02  # seconds


@dataclass(frozen=True, kw_only=True)
class Backend:
    connect: Callable[[], AbstractAsyncContextManager[Any]]
    use: Callable[[int, Any], Awaitable[object]]
    check: Callable[[Any], object]
    recycle_on: ErrorFilter
    end_all: Callable[[], Awaitable[object]]
    """Ends every connection."""


@asynccontextmanager
async def smtp(folder: Path) -> AsyncIterator[Backend]:
    aiosmtplib = pytest.importorskip("aiosmtplib")
    aiosmtpd = pytest.importorskip("aiosmtpd.smtp")
    sessions: set[Any] = set()

    class Mailbox:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            await asyncio.sleep(0.002)
            return "250 accepted"

    class Session(aiosmtpd.SMTP):  # type: ignore[name-defined,misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            sessions.add(self)

        def connection_lost(self, error: Exception | None) -> None:
            sessions.discard(self)
            super().connection_lost(error)

    async def use(number: int, client: Any) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.org", str(number)
        await client.send_message(message)

    async def end_all() -> None:
        for session in list(sessions):
            session.transport.abort()

    server = await asyncio.get_running_loop().create_server(
        lambda: Session(Mailbox(), hostname="localhost"), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield Backend(
            connect=lambda: aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False),
            use=use,
            check=lambda client: client.noop(),
            recycle_on=OSError,
            end_all=end_all,
        )


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Backend]:
    aiosqlite = pytest.importorskip("aiosqlite")
    connections: set[Any] = set()

    @asynccontextmanager
    async def connect() -> AsyncGenerator[Any]:
        async with aiosqlite.connect(folder / "test.db") as connection:
            connections.add(connection)
            yield connection
        connections.discard(connection)

    async def use(number: int, connection: Any) -> None:
        for _ in range(3):
            await connection.execute("SELECT ?", (number,))

    async def end_all() -> None:
        for connection in list(connections):
            await connection.close()

    yield Backend(
        connect=connect,
        use=use,
        check=lambda connection: connection.execute("SELECT 1"),
        recycle_on=(ValueError, sqlite3.ProgrammingError),
        end_all=end_all,
    )


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Backend]:
    redis = pytest.importorskip("redis.asyncio")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs Redis (Debian: apt install redis-server)")
    socket = folder / "redis.sock"
    options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder))
    process = await asyncio.create_subprocess_exec(program, *options, stdout=subprocess.DEVNULL)

    async def use(number: int, client: Any) -> None:
        await client.set("number", number)

    try:
        while not socket.exists():
            assert process.returncode is None
            await asyncio.sleep(0.01)
        async with redis.Redis(unix_socket_path=str(socket)) as other:
            yield Backend(
                connect=lambda: redis.Redis(unix_socket_path=str(socket)),
                use=use,
                check=lambda client: client.ping(),
                recycle_on=(redis.ConnectionError, redis.TimeoutError),
                end_all=lambda: other.client_kill_filter(_type="normal", skipme=True),
            )
    finally:
        process.kill()
        await process.wait()


@pytest.fixture(params=[smtp, sqlite, redis], ids=["smtp", "sqlite", "redis"])
def make_backend(
    request: pytest.FixtureRequest, tmp_path: Path, loop_is_never_blocked: BlockBuster
) -> Callable[[], AbstractAsyncContextManager[Backend]]:
    if request.param is redis:
        loop_is_never_blocked.deactivate()  # each client looks up the version of redis-py in files
    return lambda: request.param(tmp_path)


def make_pool(backend: Backend, **options: Any) -> WorkerPool[int, object]:
    resource = Resource(backend.connect, check=backend.check, check_after=IDLE, recycle_on=backend.recycle_on)
    return WorkerPool(backend.use, workers=WORKERS, resource=resource, **options)


async def run_all(
    pool: WorkerPool[int, object], end_all: Callable[[], Awaitable[object]] | None = None
) -> Counter[type]:
    """Run many jobs, and end all connections after a part of them."""
    kinds: Counter[type] = Counter()
    async for outcome in pool.outcomes(range(JOBS)):
        kinds[type(outcome)] += 1
        if end_all is not None and kinds.total() == JOBS // 4:
            await end_all()
    return kinds


def test_no_job_fails_after_idle_connections_were_ended(
    make_backend: Callable[[], AbstractAsyncContextManager[Backend]],
) -> None:
    async def main() -> None:
        async with make_backend() as backend, make_pool(backend) as pool:
            await pool.map(range(4 * WORKERS))
            await backend.end_all()
            await asyncio.sleep(2 * IDLE)
            assert await run_all(pool) == Counter({Succeeded: JOBS})

    asyncio.run(main())


def test_only_the_jobs_in_flight_fail_when_connections_at_work_are_ended(
    make_backend: Callable[[], AbstractAsyncContextManager[Backend]],
) -> None:
    async def main() -> None:
        async with make_backend() as backend, make_pool(backend) as pool:
            kinds = await run_all(pool, backend.end_all)
        assert kinds[Failed] <= WORKERS
        assert kinds[Succeeded] == JOBS - kinds[Failed]

    asyncio.run(main())


def test_with_a_retry_no_job_fails(make_backend: Callable[[], AbstractAsyncContextManager[Backend]]) -> None:
    async def main() -> None:
        async with make_backend() as backend:
            pool = make_pool(backend, retry=Retry(attempts=3, on=backend.recycle_on))
            async with pool:
                kinds = await run_all(pool, backend.end_all)
        assert kinds == Counter({Succeeded: JOBS})

    asyncio.run(main())
