"""A table of jobs in PostgreSQL: add, claim, acknowledge. The workers are those of `postgres_jobs.py`.

`due` is when a job can be claimed: a claim sets it to the end of its lease, and a failed attempt to the end of its
backoff. Each claim increases `attempts`. So that number also identifies a claim: a process that has lost its lease to
another one cannot change the row any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no py.typed

__all__ = ["LOST", "Job", "JobTable"]

LOST = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
)
"""What statements raise when the server has ended the connection."""

_CREATE = """
    SELECT pg_advisory_xact_lock(7265104927);  -- CREATE ... IF NOT EXISTS fails if two processes run it at once
    CREATE TABLE IF NOT EXISTS asyncpool_example_jobs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        payload integer NOT NULL,
        state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'failed')),
        attempts integer NOT NULL DEFAULT 0,
        due timestamptz NOT NULL DEFAULT now(),
        result text,
        error text
    );
    CREATE INDEX IF NOT EXISTS asyncpool_example_jobs_due ON asyncpool_example_jobs (due, id) WHERE state = 'open';
"""
_ADD = "INSERT INTO asyncpool_example_jobs (payload) SELECT * FROM generate_series(1, $1)"
_CLAIM = """
    WITH free AS MATERIALIZED (
        SELECT id FROM asyncpool_example_jobs
        WHERE state = 'open' AND due <= now() AND attempts < $2
        ORDER BY due, id LIMIT $1 FOR UPDATE SKIP LOCKED
    )
    UPDATE asyncpool_example_jobs AS jobs
    SET attempts = attempts + 1, due = clock_timestamp() + $3 * interval '1 second'
    FROM free WHERE jobs.id = free.id
    RETURNING jobs.id, payload, attempts
"""
_GIVE_UP = """
    UPDATE asyncpool_example_jobs SET state = 'failed', error = 'the last attempt did not end within its lease'
    WHERE state = 'open' AND due <= now() AND attempts >= $1
"""
_NEXT_DUE = """
    SELECT extract(epoch FROM min(due) - clock_timestamp())::float8 FROM asyncpool_example_jobs WHERE state = 'open'
"""
_ACKNOWLEDGE = """
    UPDATE asyncpool_example_jobs SET state = 'done', result = $3, error = NULL
    WHERE id = $1 AND attempts = $2 AND state <> 'failed'
"""
_RECORD_FAILURE = """
    UPDATE asyncpool_example_jobs
    SET state = CASE WHEN attempts < $4 THEN 'open' ELSE 'failed' END, error = $3,
        due = clock_timestamp() + $5 * interval '1 second'
    WHERE id = $1 AND attempts = $2 AND state <> 'done'
"""
_RELEASE = """
    UPDATE asyncpool_example_jobs AS jobs SET attempts = attempts - 1, due = clock_timestamp()
    FROM unnest($1::bigint[], $2::integer[]) AS mine (id, attempt)
    WHERE jobs.id = mine.id AND attempts = attempt AND state = 'open'
"""
_COUNT = "SELECT state, count(*) FROM asyncpool_example_jobs GROUP BY state"


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed row."""

    id: int
    payload: int
    attempt: int
    start_by: float
    """Until when the attempt must begin, so that it ends within its lease; a time of the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTable:
    """The statements of the table. Each is a transaction of its own, so all are short."""

    attempts: int = 5
    """How many attempts a job gets, including those that died with their process."""
    lease: float = 10.0
    """Seconds after which a claimed job is free again."""
    backoff: float = 0.2
    """Seconds after the first failed attempt, doubled with each other."""

    async def create(self, connection: Any) -> None:
        """Create the table, if there is none."""
        await connection.execute(_CREATE)

    async def add(self, number: int, connection: Any) -> None:
        """Add some jobs."""
        await connection.execute(_ADD, number)

    async def claim(self, most: int, connection: Any) -> list[Job]:
        """Lease up to this many jobs that are due. Jobs that other processes are claiming are skipped."""
        start_by = asyncio.get_running_loop().time() + self.lease / 2
        rows = await connection.fetch(_CLAIM, most, self.attempts, self.lease)
        return [Job(row["id"], row["payload"], row["attempts"], start_by) for row in rows]

    async def seconds_to_next(self, connection: Any) -> float | None:
        """Return the seconds until a job is due, or None if all are done or failed."""
        await connection.execute(_GIVE_UP, self.attempts)
        seconds: float | None = await connection.fetchval(_NEXT_DUE)
        return seconds

    async def acknowledge(self, job: Job, result: str, connection: Any) -> bool:
        """Record the result; return False if the lease was over and another process has claimed the job. Repeatable."""
        done: str = await connection.execute(_ACKNOWLEDGE, job.id, job.attempt, result)
        return done == "UPDATE 1"

    async def record_failure(self, job: Job, error: str, connection: Any) -> None:
        """Record the error: the job is due again after its backoff, or has failed. Repeatable."""
        pause = self.backoff * 2.0 ** (job.attempt - 1)
        await connection.execute(_RECORD_FAILURE, job.id, job.attempt, error, self.attempts, pause)

    async def release(self, jobs: list[Job], connection: Any) -> None:
        """Give back claimed jobs that were never begun."""
        await connection.execute(_RELEASE, [job.id for job in jobs], [job.attempt for job in jobs])

    async def count(self, connection: Any) -> dict[str, int]:
        """Return the number of jobs by their state."""
        return {"open": 0, "done": 0, "failed": 0, **dict(await connection.fetch(_COUNT))}
