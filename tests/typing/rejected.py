"""Programs that must not type-check.

Each wrong line has ignores for both type checkers, which are configured to report an unused ignore. So a wrong line
that passes fails the test, as does a correct line that does not pass.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import assert_never

import asyncpool
from asyncpool import AutoScale, DeadLetters, Decision, Failed, Journal, Outcome, PoolLoad, Succeeded, WorkerPool
from asyncpool.progress import track


class Connection: ...


@asynccontextmanager
async def connect() -> AsyncGenerator[Connection, None]:
    yield Connection()


async def length(job: str) -> int:
    return len(job)


async def stored(job: str, connection: Connection) -> bool:
    return bool(job and connection)


async def stored_elsewhere(job: str, connection: int) -> bool:
    return bool(job and connection)


def blocking(job: str) -> int:
    return len(job)


numbers: DeadLetters[int] = DeadLetters()

WorkerPool(blocking, workers=1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(stored, workers=1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=1, resource=connect)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
WorkerPool(stored_elsewhere, workers=1, resource=connect)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
WorkerPool(workers=1, resource=connect)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
WorkerPool(length)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
WorkerPool(length, 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
WorkerPool(length, workers=1, retry=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=1, limiter=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=1, dead_letters=[])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=1, dead_letters=numbers)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers="2")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def wrong_jobs_and_values(pool: WorkerPool[str, int]) -> None:
    await pool.submit(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.map([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    text: str = await pool.run("a")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await pool.run("a", if_full="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await asyncpool.map(length, [1], workers=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for value in pool.map([text]):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        print(str(value))  # pyright: ignore[reportUnknownArgumentType]


def a_case_is_missing(outcome: Outcome[str, int]) -> str:
    match outcome:
        case Succeeded(job, _):
            return job
        case Failed(job, _):
            return job
        case _:
            assert_never(outcome)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def outcomes_are_read_only(outcome: Outcome[str, int]) -> None:
    outcome.job = "b"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


# -- How many workers --------------------------------------------------------------------------------------------------


def answers_in_words(load: PoolLoad) -> str:
    return "five"


def answers_in_parts(load: PoolLoad) -> float:
    return load.backlog / 5


def takes_a_number(backlog: int) -> int:
    return backlog


def decides(load: PoolLoad) -> Decision:
    return Decision(5)


async def answers_later(load: PoolLoad) -> int:
    return 5


class NeverStarts:
    initial_workers = 1
    max_workers = 5
    interval = 0.1


class StartsANumber(NeverStarts):
    def start(self) -> int:
        return 5


WorkerPool(length, workers=None)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=1.5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=AutoScale)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=answers_in_words)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=answers_in_parts)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=takes_a_number)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=decides)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=answers_later)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=NeverStarts())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
WorkerPool(length, workers=StartsANumber())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
asyncpool.map(length, ["a"], workers="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
AutoScale(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
AutoScale(1, 10, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
AutoScale("1", 10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Decision("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def wrong_sizes(pool: WorkerPool[str, int], policy: AutoScale, load: PoolLoad) -> None:
    pool.resize("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.resize(answers_in_words)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    policy.max_workers = 20  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    load.workers = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


Journal("batch.db")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Journal("batch.db", key="id")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Journal("batch.db", key=float)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def is_large(job: int) -> bool:
    return job > 5


def wrong_choices(pool: WorkerPool[str, int]) -> None:
    pool.cancel_queued(is_large)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    track(["a"])  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    pool.map(["a"], max_failures="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    asyncpool.batches(["a"], 5, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
