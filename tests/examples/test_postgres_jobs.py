"""`python -m examples.postgres_jobs`: killed, restarted, side by side, and without a server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.servers.postgres import Postgres, find_programs

asyncpg = pytest.importorskip("asyncpg")

from examples import postgres_jobs, private_postgres  # noqa: E402
from examples.job_table import Job, JobTable  # noqa: E402
from examples.postgres_jobs import Options, PostgresJobs, main  # noqa: E402

ROOT = Path(__file__).parents[2]
GIVE_UP = 60.0
PROGRAMS = find_programs()
NEEDED = "needs PostgreSQL (Debian: apt install postgresql)"
DONE = "SELECT count(*) FROM asyncpool_example_jobs WHERE state = 'done'"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running_server() -> Iterator[Postgres]:
    if PROGRAMS is None:
        pytest.skip(NEEDED)
    server = Postgres(PROGRAMS)
    yield server
    server.close()


@pytest.fixture
def server(running_server: Postgres) -> Postgres:
    """A server without the table."""
    query(running_server, "DROP TABLE IF EXISTS asyncpool_example_jobs")
    return running_server


def query(server: Postgres, sql: str) -> list[tuple[Any, ...]]:
    async def ask() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(server.url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def count(server: Postgres, condition: str = "true") -> int:
    number: int = query(server, f"SELECT count(*) FROM asyncpool_example_jobs WHERE {condition}")[0][0]
    return number


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.postgres_jobs", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_on(server: Postgres, *arguments: str) -> subprocess.Popen[str]:
    return start("--dsn", server.url, *arguments)


def wait_for_done(server: Postgres, process: subprocess.Popen[str], number: int) -> None:
    async def wait() -> None:
        connection = await asyncpg.connect(server.url)
        try:
            while await connection.fetchval("SELECT to_regclass('asyncpool_example_jobs')") is None:
                await asyncio.sleep(0.02)
            while await connection.fetchval(DONE) < number:
                assert process.poll() is None, process.communicate()
                await asyncio.sleep(0.02)
        finally:
            await connection.close()

    asyncio.run(wait())


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where private servers have their files; not tmp_path, which only its owner can enter."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(PROGRAMS is None, reason=NEEDED)
def test_it_survives_a_restart_of_its_private_server(folder: Path) -> None:
    process = start("--add", "60", "--restart", TMPDIR=str(folder))
    output, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 0
    assert re.match(r"The server is stopped after \d+ jobs, while [1-8] are running\.\n", output)
    assert re.search(r"\nIt accepts connections again; .* later, all 8 workers have one\.", output)
    assert output.endswith("\nJobs in the table: 0 open, 60 done, 0 failed\n")
    assert "Traceback" not in errors
    assert not list(folder.iterdir())  # it ends with the pipe to the example, also if that is killed


def test_killed_twice_it_loses_nothing_and_makes_few_attempts_again(server: Postgres) -> None:
    arguments = ("--workers", "4", "--lease", "0.6")
    process = start_on(server, "--add", "90", *arguments)
    for done in (20, 40):
        wait_for_done(server, process, done)
        process.kill()
        process.communicate(timeout=GIVE_UP)
        assert count(server, "state = 'open'") > 0
        process = start_on(server, *arguments)
    output, _ = process.communicate(timeout=GIVE_UP)

    assert output.endswith("Jobs in the table: 0 open, 90 done, 0 failed\n")
    assert count(server, "result = 'order ' || payload || ' is sent'") == 90
    # Every tenth job has a second attempt. Besides, four were running, four queued and four claimed at each kill.
    assert count(server, "attempts > 1 AND payload % 10 > 0") <= 2 * 13


def test_two_processes_at_once_do_each_job_once(server: Postgres) -> None:
    processes = [start_on(server, "--add", "99", "--workers", "3") for _ in range(2)]
    outputs = [process.communicate(timeout=GIVE_UP)[0] for process in processes]

    assert all(process.returncode == 0 for process in processes)
    numbers = [int(re.search(r"([\d,]+) succeeded", output)[1]) for output in outputs]  # type: ignore[index]
    assert sum(numbers) == count(server, "state = 'done'") == 198
    assert min(numbers) > 0
    assert count(server, "attempts <> 1 + (payload % 10 = 0)::int") == 0


def test_after_sigterm_it_finishes_what_it_has_begun_and_gives_the_rest_back(server: Postgres) -> None:
    process = start_on(server, "--add", "500", "--workers", "4", "--lease", "3600")
    wait_for_done(server, process, 20)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert re.search(
        r"^Interrupted: the jobs in the table are \d+ open, \d+ done, 0 failed; run it again", errors, re.M
    )
    assert "Traceback" not in errors
    # Leases of an hour: nobody would wait for their ends.
    assert count(server, "state = 'open' AND due > now() + interval '1 minute'") == 0
    assert count(server, "state = 'open'") >= 400


def test_no_work_is_done_twice_because_the_server_was_restarted(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[int] = Counter()

    async def work(job: Job) -> str:
        runs[job.id] += 1
        await asyncio.sleep(0.01)
        return "done"

    async def restart(jobs: PostgresJobs) -> None:
        while len(runs) < 50:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)

    async def run() -> PostgresJobs:
        jobs = PostgresJobs(Options(dsn=server.url, add=200))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(restart(jobs))
            await jobs.run()
        return jobs

    monkeypatch.setattr(postgres_jobs, "work", work)
    jobs = asyncio.run(run())
    assert jobs.counts == {"open": 0, "done": 200, "failed": 0}
    assert jobs.pool.stats.retries >= 1
    assert jobs.results == jobs.unstarted == {}
    assert runs == dict.fromkeys(range(1, 201), 1)


def test_a_job_that_never_ends_within_its_lease_has_failed_after_its_last_attempt(server: Postgres) -> None:
    async def run() -> None:
        jobs = PostgresJobs(Options(dsn=server.url, add=1, lease=0.01))
        async with jobs.connected(server.url):
            for _ in range(jobs.table.attempts):
                assert len(await jobs.claimer.run(lambda connection: jobs.table.claim(10, connection))) == 1
                await asyncio.sleep(0.02)
            assert await jobs.claimer.run(lambda connection: jobs.table.claim(10, connection)) == []
            assert await jobs.claimer.run(jobs.table.seconds_to_next) is None

    asyncio.run(run())
    assert query(server, "SELECT state, error FROM asyncpool_example_jobs") == [
        ("failed", "the last attempt did not end within its lease")
    ]


def test_a_job_that_fails_at_each_attempt_is_recorded_with_its_last_error(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(job: Job) -> str:
        raise ConnectionError(f"attempt {job.attempt} has failed")

    async def run() -> PostgresJobs:
        jobs = PostgresJobs(Options(dsn=server.url, add=1))
        jobs.table = JobTable(attempts=3, backoff=0.01)
        await jobs.run()
        return jobs

    monkeypatch.setattr(postgres_jobs, "work", work)
    jobs = asyncio.run(run())
    assert jobs.counts == {"open": 0, "done": 0, "failed": 1}
    assert jobs.pool.stats.retries == 0
    assert not jobs.pool.stats.resources_replaced.recycle  # its error is not that of the connection
    assert query(server, "SELECT attempts, error FROM asyncpool_example_jobs") == [
        (3, "ConnectionError: attempt 3 has failed")
    ]


def test_it_can_be_cancelled_while_the_server_is_away(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> PostgresJobs:
        jobs = PostgresJobs(Options(dsn=server.url, add=500))
        running = asyncio.create_task(jobs.run())
        while not hasattr(jobs, "pool") or jobs.pool.stats.succeeded < 10:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.stop)
        try:
            jobs.pool.drain()
            await asyncio.sleep(0.1)
            assert not running.done()  # it has jobs to acknowledge
            jobs.pool.cancel()
            await running
        finally:
            await asyncio.to_thread(server.start)
        return jobs

    monkeypatch.setattr(postgres_jobs, "_PATIENCE", 0.1)
    assert asyncio.run(run()).counts == {}


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:none@127.0.0.1:1/db?sslmode=disable", "no dsn", "postgresql://me@host:port/db"]
)
def test_a_wrong_dsn_is_reported_in_a_sentence(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", dsn]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("postgres_jobs: error: cannot use the database: ")
    assert errors.count("\n") == 1


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.setattr(private_postgres.shutil, "which", lambda name: None)
    private_postgres._main()
    answer = capsys.readouterr().out
    assert answer.startswith("error PostgreSQL is not installed: install it")

    @asynccontextmanager
    async def missing() -> AsyncGenerator[None]:
        raise private_postgres.ServerError(answer.removeprefix("error ").strip())
        yield

    monkeypatch.delenv("POSTGRES_JOBS_DSN", raising=False)
    monkeypatch.setattr(postgres_jobs, "private_postgres", missing)
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("postgres_jobs: error: PostgreSQL is not installed: install it")


def test_a_server_of_others_is_not_restarted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--restart", "--dsn", "postgresql://postgres@127.0.0.1:1/postgres"])
    assert "--restart restarts a private server" in capsys.readouterr().err
