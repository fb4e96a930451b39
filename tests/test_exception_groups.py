"""Exception groups: filters and advice look into them, because a handler with a task group raises nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from asyncpool import Failed, Permanent, PoolDeadlock, Retry, RetryAfter, WorkerPool
from asyncpool.errors import ErrorFilter, matches
from tests.helpers import now, virtual


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("some", errors)


def nested(error: BaseException, depth: int) -> BaseException:
    for _ in range(depth):
        error = group(error)
    return error


@pytest.mark.parametrize("which", [OSError, (OSError, KeyError), lambda error: type(error) is ConnectionError])
def test_a_filter_selects_a_group_if_it_selects_each_error_in_it(which: ErrorFilter) -> None:
    assert matches(which, group(ConnectionError(), ConnectionError()))
    assert matches(which, group(ConnectionError(), group(ConnectionError())))
    assert not matches(which, group(ConnectionError(), ValueError()))
    assert not matches(which, group(ConnectionError(), group(ValueError())))


def test_a_predicate_that_knows_groups_is_asked_for_the_group() -> None:
    assert matches(lambda error: isinstance(error, ExceptionGroup), group(ValueError()))
    assert matches(ExceptionGroup, group(ValueError()))


def test_groups_can_be_nested_more_deeply_than_calls() -> None:
    error = nested(ConnectionError(), 20_000)
    assert matches(OSError, error)
    assert not matches(ValueError, error)
    assert Retry(jitter=False, on=OSError).delay(1, error, Random(1)) == 0.1
    while isinstance(error, BaseExceptionGroup):  # one by one: the interpreter would free them recursively
        error = error.exceptions[0]


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (group(ConnectionError(), TimeoutError()), 0.1),
        (group(ConnectionError(), ValueError()), None),
        (group(RetryAfter(3), ConnectionError()), 3.0),
        (group(RetryAfter(3), group(RetryAfter(4))), 4.0),
        (group(RetryAfter(3), ValueError()), None),
        (group(RetryAfter(3), Permanent()), None),
        (group(ConnectionError(), group(Permanent())), None),
        (group(PoolDeadlock(), RetryAfter(1)), None),
        (group(RetryAfter(1), KeyboardInterrupt()), None),
        (group(SystemExit(), ConnectionError()), None),
    ],
)
def test_the_delay_after_a_group(error: BaseException, delay: float | None) -> None:
    assert Retry(jitter=False, on=OSError).delay(1, error, Random(1)) == delay


def test_the_cause_of_advice_counts_inside_a_group_as_outside() -> None:
    advice = RetryAfter(1.0)
    advice.__cause__ = SystemExit()
    assert Retry(jitter=False).delay(1, group(advice), Random(1)) is None


def test_a_predicate_is_asked_once_for_an_error_that_is_no_group() -> None:
    asked: list[BaseException] = []

    def on(error: BaseException) -> bool:
        asked.append(error)
        return False

    assert Retry(on=on).delay(1, ValueError(), Random(1)) is None
    assert len(asked) == 1


@virtual
async def test_a_pause_in_a_group_pauses_the_pool_and_the_group_is_the_failure() -> None:
    failure = group(RetryAfter(2.0, pause=True), RetryAfter(5.0), OSError())

    async def handler(job: int) -> float:
        if job == 0 and not seen:
            seen.append(job)
            raise failure
        return now()

    seen: list[int] = []
    async with WorkerPool(handler, workers=1, retry=Retry(jitter=False)) as pool:
        outcomes = [outcome async for outcome in pool.outcomes(range(2), ordered=True)]
    assert [outcome.unwrap() for outcome in outcomes] == [5.0, 2.0]


@virtual
async def test_one_permanent_error_in_a_group_makes_the_job_permanent() -> None:
    failure = group(ConnectionError(), Permanent("no such mailbox"))

    async def handler(job: int) -> None:
        raise failure

    async with WorkerPool(handler, workers=1, retry=Retry(attempts=5)) as pool:
        [outcome] = [outcome async for outcome in pool.outcomes([1])]
    assert isinstance(outcome, Failed)
    assert (outcome.error, outcome.attempts) == (failure, 1)


@virtual
async def test_a_resource_is_replaced_after_a_group_of_errors_that_recycle() -> None:
    opened = 0

    @asynccontextmanager
    async def connect() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        yield opened

    async def handler(errors: tuple[Exception, ...], resource: int) -> int:
        if errors:
            raise group(*errors)
        return resource

    jobs: list[Any] = [(), (ConnectionError(), BrokenPipeError()), (), (ConnectionError(), ValueError()), ()]
    async with WorkerPool(handler, workers=1, resource=connect) as pool:
        outcomes = [outcome async for outcome in pool.outcomes(jobs, ordered=True)]
    assert [outcome.unwrap() for outcome in outcomes[::2]] == [1, 2, 2]
