"""Work off a table of jobs in PostgreSQL. Several processes can do it at once, and each can be killed at any moment.

    python -m examples.postgres_jobs                     on a private server, if PostgreSQL is installed
    python -m examples.postgres_jobs --restart           restart that server in the middle
    python -m examples.postgres_jobs --dsn postgresql://user@host/database --add 1000

One connection claims batches of jobs with `FOR UPDATE SKIP LOCKED`, and the pool pulls them when it has room. A claim
is a lease: a short transaction sets the time at which the job is free again. The alternative is that each worker locks
a row and keeps the transaction open until the job is done. Then a dead process frees its jobs at once, without any
lease, and what a job writes to the same database is committed with it, exactly once. But a transaction that is open for
minutes keeps VACUUM from removing dead rows of the whole database, and each job costs a statement of its own to find.

A job is acknowledged after its work. Nothing is lost when a process is killed: its jobs are free again when their
leases end. The work of a job is completed twice only if its process dies between the work and the acknowledgement, or
does not reach the server until the lease is over. In shorter outages, a result is kept in memory until it can be
acknowledged. Work that is interrupted begins again, and that counts as an attempt.

A failed attempt is recorded in the table, and so is its backoff. So any process can make the next attempt. Without that
table, `Retry` would do the same in memory; here it only repeats statements on connections that were lost.

The driver is asyncpg, because its connections run on every event loop, while those of psycopg do not run on the default
loop of Windows.
"""

from __future__ import annotations

import sys

from examples.command_line import FAILED, INTERRUPTED, OK, Parser, finish_plain, positive, printable, starting, whole

with starting("postgres_jobs"):
    import asyncio
    import logging
    import os
    from collections import Counter
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AsyncExitStack, asynccontextmanager
    from dataclasses import dataclass
    from functools import partial
    from typing import Any

    import asyncpg  # type: ignore[import-untyped]  # it has no py.typed

    from asyncpool import Failed, Outcome, PoolClosed, Resource, Retry, WorkerPool, drain_on_signal
    from asyncpool.progress import summary
    from examples.job_table import LOST, Job, JobTable
    from examples.private_postgres import PrivatePostgres, ServerError, private_postgres

__all__ = ["Options", "PostgresJobs", "main"]

_LONGEST_POLL = 0.5  # seconds
_PATIENCE = 5.0  # seconds to wait for the server at the end
Statement = Callable[[Any], Awaitable[Any]]


class WorkFailed(Exception):
    """An attempt failed. It is recorded in the table."""


class LeaseOver(Exception):
    """The attempt came too late: another process can have claimed the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    dsn: str | None = None
    add: int = 0
    workers: int = 8
    lease: float = 10.0
    restart: bool = False


async def work(job: Job) -> str:
    """Do a job: take 20 ms. Every tenth order fails at the first attempt, and every hundredth at each."""
    await asyncio.sleep(0.02)
    if job.payload % 100 == 0:
        raise ValueError(f"order {job.payload}: there is no such customer")
    if job.payload % 10 == 0 and job.attempt == 1:
        raise ConnectionError("the parcel service is not available")
    return f"order {job.payload} is sent"


class PostgresJobs:
    """Works off the table until all jobs are done or failed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.table = JobTable(lease=options.lease)
        self.unstarted: dict[int, Job] = {}
        """The claimed jobs whose work has not begun."""
        self.results: dict[int, str | WorkFailed] = {}
        """The results that are not acknowledged yet."""
        self.errors: Counter[str] = Counter()
        self.counts: dict[str, int] = {}
        """The jobs in the table at the end, by state."""
        self.is_interrupted = False

    async def run(self) -> None:
        """Do all jobs."""
        async with AsyncExitStack() as stack:
            server: PrivatePostgres | None = None
            dsn = self.options.dsn
            if dsn is None:
                server = await stack.enter_async_context(private_postgres())
                dsn = server.dsn
            await stack.enter_async_context(self.connected(dsn))
            self.pool = WorkerPool(
                self.handle,
                workers=self.options.workers,
                queue_size=self.options.workers,
                **_connections(dsn),
                name="jobs",
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    restarting = None
                    if server is not None and self.options.restart:
                        restarting = tasks.create_task(self.restart(server))
                    await self.work_off()
                    if restarting is not None:
                        restarting.cancel()
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            await self.leave()

    @asynccontextmanager
    async def connected(self, dsn: str) -> AsyncGenerator[None]:
        """Open a pool of one worker, whose jobs are the statements that belong to no job, and create the table."""
        self.claimer = WorkerPool(_execute, workers=1, **_connections(dsn), name="claims")
        async with self.claimer:
            await self.claimer.run(self.table.create)
            if self.options.add:
                await self.claimer.run(partial(self.table.add, self.options.add))
            yield

    async def work_off(self) -> None:
        """Run the pool until the table has nothing to do, or a signal came."""
        async with self.pool:
            with drain_on_signal(self.pool, drain_timeout=30.0) as signals:
                try:
                    async with self.pool.outcomes(self.claims()) as outcomes:
                        async for outcome in outcomes:
                            self.take(outcome)
                except PoolClosed:
                    pass
                finally:
                    self.is_interrupted = signals.received > 0

    async def claims(self) -> AsyncGenerator[Job]:
        """Claim jobs as the pool pulls them, until all jobs in the table are done or failed."""
        while True:
            handle = await self.claimer.submit(self.claim)
            claimed = await handle  # when a signal ends this wait, the claim goes on
            for job in claimed:
                yield job
            if not claimed:
                seconds = await self.claimer.run(self.table.seconds_to_next)
                if seconds is None:
                    return
                await asyncio.sleep(min(max(seconds, 0.01), _LONGEST_POLL))

    async def claim(self, connection: Any) -> list[Job]:
        """Claim a batch, and note what must be given back if it is not begun."""
        claimed = await self.table.claim(self.options.workers, connection)
        self.unstarted.update((job.id, job) for job in claimed)
        return claimed

    async def handle(self, job: Job, connection: Any) -> None:
        """Do a job, and acknowledge it: the handler. After a lost connection, only the statement is repeated."""
        self.unstarted.pop(job.id, None)
        result = self.results.get(job.id)
        if result is None:
            if asyncio.get_running_loop().time() > job.start_by:
                raise LeaseOver(f"job {job.id} waited for too long")
            result = self.results[job.id] = await self.attempt(job)
        if isinstance(result, WorkFailed):
            await self.table.record_failure(job, str(result), connection)
            raise result
        if not await self.table.acknowledge(job, result, connection):
            raise LeaseOver(f"job {job.id} was claimed by another process before it was acknowledged")

    async def attempt(self, job: Job) -> str | WorkFailed:
        """Do the work of a job within its lease."""
        try:
            async with asyncio.timeout(self.table.lease / 2):
                return await work(job)
        except Exception as error:
            return WorkFailed(f"{type(error).__name__}: {error}".removesuffix(": "))

    def take(self, outcome: Outcome[Job, None]) -> None:
        """Forget the result, and count the error."""
        self.results.pop(outcome.job.id, None)
        if isinstance(outcome, Failed):
            self.errors[str(outcome.error)] += 1

    async def restart(self, server: PrivatePostgres) -> None:
        """Restart the server when half of the jobs are done, and print what happens."""
        stats = self.pool.stats
        while stats.succeeded < self.options.add // 2:
            await asyncio.sleep(0.01)
            stats = self.pool.stats
        print(f"The server is stopped after {stats.succeeded:,} jobs, while {stats.running} are running.", flush=True)
        await server.stop()
        await asyncio.sleep(0.5)
        await server.start()
        stats = self.pool.stats
        loop = asyncio.get_running_loop()
        up = loop.time()
        while stats.workers < self.options.workers:
            await asyncio.sleep(0.01)
            stats = self.pool.stats
        print(
            f"It accepts connections again; {loop.time() - up:.2f} s later, all {stats.workers} workers have one. "
            f"{stats.retries} acknowledgements were repeated.",
            flush=True,
        )

    async def leave(self) -> None:
        """Give back what was claimed and not begun, and count the jobs."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.claimer.join()  # a claim that goes on
                if self.unstarted:
                    await self.claimer.run(partial(self.table.release, list(self.unstarted.values())))
                self.counts = await self.claimer.run(self.table.count)
        except TimeoutError:  # the server is away: the leases will end
            self.claimer.cancel()

    def sum_up(self) -> int:
        """Print the summary, and return the exit status."""
        print(summary(self.pool, errors=self.errors))
        counts = ", ".join(f"{count:,} {state}" for state, count in self.counts.items()) or "not known"
        if self.is_interrupted:
            print(f"Interrupted: the jobs in the table are {counts}; run it again to continue.", file=sys.stderr)
            return INTERRUPTED
        print(f"Jobs in the table: {counts}")
        return OK


async def _execute(statement: Statement, connection: Any) -> Any:
    return await statement(connection)


@asynccontextmanager
async def _connect(dsn: str) -> AsyncGenerator[Any]:
    try:
        connection = await asyncpg.connect(dsn, timeout=10, command_timeout=10)
    except asyncpg.InterfaceError:
        raise
    except ValueError as error:  # for example, the port is not a number
        raise asyncpg.InterfaceError(f"invalid DSN: {error}") from error
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def _ping(connection: Any) -> None:
    await connection.execute("SELECT 1")


def _connections(dsn: str) -> dict[str, Any]:
    """Return the options of a pool whose workers have a connection each."""
    return {
        "resource": Resource(partial(_connect, dsn), check=_ping, max_age=1800, recycle_on=LOST),
        "retry": Retry(attempts=10, backoff=0.05, max_backoff=1.0, on=LOST),
    }


# -- The command --


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return printable(record.getMessage() + (f": {error}" if error else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    jobs = PostgresJobs(_parse(arguments))
    log, handler = logging.getLogger("asyncpool"), logging.StreamHandler()
    handler.setFormatter(_OneLine())
    log.addHandler(handler)
    log.propagate = False
    status = OK

    def run() -> None:
        nonlocal status
        try:
            asyncio.run(jobs.run())
        except BrokenPipeError:
            raise  # nobody reads the output
        except (ServerError, asyncpg.PostgresError, *LOST) as error:
            text = str(error) if isinstance(error, ServerError) else f"cannot use the database: {error}"
            print(f"postgres_jobs: error: {printable(text)}", file=sys.stderr)
            status = FAILED
        else:
            status = jobs.sum_up()

    try:
        return finish_plain("postgres_jobs", run) or status
    finally:
        log.removeHandler(handler)
        log.propagate = True


def _parse(arguments: Sequence[str] | None) -> Options:
    default = Options()
    parser = Parser(
        prog="postgres_jobs",
        usage="python -m examples.postgres_jobs [options]",
        description="Work off a table of jobs in PostgreSQL.",
        epilog="Ctrl+C or SIGTERM finishes the jobs that were begun; a second one cancels them.",
    )
    add = parser.add_argument
    add("--dsn", metavar="DSN", help="a server, such as postgresql://user@host/database (or POSTGRES_JOBS_DSN)")
    add("--add", type=whole(0, 10_000_000), metavar="N", help="jobs to add first (1000 on a private server, else 0)")
    add("--workers", type=whole(1, 100), metavar="N", help=f"number of workers ({default.workers})")
    add("--lease", type=positive(86_400), metavar="S", help=f"seconds that a claim is valid ({default.lease:g})")
    add("--restart", action="store_true", help="restart the private server when half of the jobs are done")
    parser.set_defaults(workers=default.workers, lease=default.lease, dsn=os.environ.get("POSTGRES_JOBS_DSN") or None)
    found = parser.parse_args(arguments)
    if found.restart and found.dsn is not None:
        parser.error("--restart restarts a private server: it cannot be combined with --dsn or POSTGRES_JOBS_DSN")
    if found.add is None:
        found.add = 1_000 if found.dsn is None else 0
    return Options(**vars(found))


if __name__ == "__main__":
    with starting("postgres_jobs"):
        sys.exit(main())
