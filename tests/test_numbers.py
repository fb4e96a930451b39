"""The numbers that options take: one rule for all counts, and one for all seconds and rates."""

# mypy: disable-error-code="arg-type, return-value"

from __future__ import annotations

import asyncio
import inspect
import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Adaptive,
    AutoScale,
    DeadLetters,
    Decision,
    RateLimit,
    Retry,
    RetryAfter,
    RetryBudget,
    WorkerPool,
    drain_on_signal,
    recommended_workers,
)
from asyncpool.prometheus import PoolCollector
from asyncpool.scaling import FixedSize
from asyncpool.testing import run
from tests.helpers import echo, now, sleeper, virtual


class Index:
    """An integer that is none, as those of numpy: it can be converted, and nothing else."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value})"


class BadIndex:
    def __index__(self) -> int:
        raise RuntimeError("no index")

    def __repr__(self) -> str:
        return "BadIndex()"


def pool(**options: Any) -> WorkerPool[Any, Any]:
    return WorkerPool(echo, **({"workers": 2} | options))


async def in_pool(use: Callable[[WorkerPool[Any, Any]], Any]) -> None:
    async with pool() as opened:
        result = use(opened)
        if inspect.isawaitable(result):
            await result


def called(use: Callable[[WorkerPool[Any, Any]], Any]) -> None:
    run(lambda: in_pool(use))


async def pause_limit(seconds: Any) -> None:
    RateLimit(1).pause_for(seconds)


COUNTS: dict[str, Callable[[Any], object]] = {
    "workers": lambda n: pool(workers=n),
    "resize": lambda n: called(lambda opened: opened.resize(n)),
    "FixedSize.workers": FixedSize,
    "queue_size": lambda n: pool(queue_size=n),
    "max_delayed": lambda n: pool(max_delayed=n),
    "map(workers)": lambda n: called(lambda _: asyncpool.map(echo, [], workers=n).aclose()),
    "queued(limit)": lambda n: pool().queued(n),
    "group(window)": lambda n: called(lambda opened: opened.group(window=n).aclose()),
    "attempts": lambda n: Retry(attempts=n),
    "burst": lambda n: RateLimit(1, burst=n),
    "per_key burst": lambda n: RateLimit.per_key(str, 1, burst=n),
    "AutoScale.min_workers": lambda n: AutoScale(n, 100),
    "AutoScale.max_workers": lambda n: AutoScale(0, n),
    "Adaptive.min_workers": lambda n: Adaptive(n, 100),
    "Adaptive.max_workers": lambda n: Adaptive(1, n),
    "max_size": lambda n: DeadLetters(max_size=n),
    "max_unseen": lambda n: DeadLetters[Any]().watch(max_unseen=n),
    "limit": lambda n: recommended_workers(seconds=1, limit=n),
}
REALS: dict[str, Callable[[Any], object]] = {
    "timeout": lambda x: pool(timeout=x),
    "queue_timeout": lambda x: pool(queue_timeout=x),
    "backoff": lambda x: Retry(backoff=x, max_backoff=100),
    "max_backoff": lambda x: Retry(max_backoff=x, backoff=0),
    "factor": lambda x: Retry(factor=x),
    "max_elapsed": lambda x: Retry(max_elapsed=x),
    "max_retry_after": lambda x: Retry(max_retry_after=x),
    "ratio": lambda x: RetryBudget(ratio=x),
    "min_per_second": lambda x: RetryBudget(min_per_second=x),
    "budget window": lambda x: RetryBudget(window=x),
    "RetryAfter.seconds": RetryAfter,
    "rate": RateLimit,
    "per": lambda x: RateLimit(1, per=x),
    "per_key rate": lambda x: RateLimit.per_key(str, x),
    "pause_for": lambda x: run(lambda: pause_limit(x)),
    "drain_timeout": lambda x: pool().drain(drain_timeout=x),
    "grace": lambda x: pool().drain(grace=x),
    "close(drain_timeout)": lambda x: called(lambda opened: opened.close(drain_timeout=x)),
    "signals drain_timeout": lambda x: drain_on_signal(pool(), drain_timeout=x),
    "signals grace": lambda x: drain_on_signal(pool(), grace=x),
    "second_after": lambda x: drain_on_signal(pool(), second_after=x),
    "prometheus timeout": lambda x: PoolCollector(timeout=x),
    "AutoScale.interval": lambda x: AutoScale(1, 2, interval=x),
    "idle_timeout": lambda x: AutoScale(1, 2, idle_timeout=x),
    "backlog_per_worker": lambda x: AutoScale(1, 2, backlog_per_worker=x),
    "Adaptive.interval": lambda x: Adaptive(1, 2, interval=x),
    "recommended seconds": lambda x: recommended_workers(seconds=x, limit=5),
    "recommended rate": lambda x: recommended_workers(seconds=1, rate=x),
    "cpu_seconds": lambda x: recommended_workers(seconds=100, cpu_seconds=x, limit=5),
}
counts = pytest.mark.parametrize("use", COUNTS.values(), ids=COUNTS)
reals = pytest.mark.parametrize("use", REALS.values(), ids=REALS)


@counts
def test_a_count_is_anything_with_an_index(use: Callable[[Any], object]) -> None:
    use(Index(3))


@pytest.mark.parametrize("value", [True, 2.0, "2", Decimal(2), Fraction(2), math.nan, BadIndex()], ids=repr)
@counts
def test_nothing_else_is_a_count(use: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an int.*got ") as raised:
        use(value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("value", [-1, Index(-7)], ids=repr)
@counts
def test_no_count_is_negative(use: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be >= ") as raised:
        use(value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("value", [2, Fraction(5, 2), Decimal("2.5")], ids=repr)
@reals
def test_a_number_of_seconds_is_any_real_number(use: Callable[[Any], object], value: Any) -> None:
    use(value)


@pytest.mark.parametrize("value", [True, "2", 2j, Index(2), None.__class__], ids=repr)
@reals
def test_nothing_else_is_a_number_of_seconds(use: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a number.*got ") as raised:
        use(value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, Decimal("nan"), Decimal("snan"), Decimal("inf"), Fraction(10**400), 10**400],
    ids=lambda value: repr(value)[:20],
)
@reals
def test_every_number_is_finite(use: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a finite number.*got ") as raised:
        use(value)
    assert repr(value)[:70] in str(raised.value)


@pytest.mark.parametrize("value", [-1, -0.5, Fraction(-1, 2), Decimal(-1)], ids=repr)
@reals
def test_no_number_is_negative_but_that_of_advice(use: Callable[[Any], object], value: Any) -> None:
    if use in (RetryAfter, REALS["pause_for"]):
        use(value)  # the time to wait for is past
        return
    with pytest.raises(ValueError, match=r"must be a finite number.*>=? [01], got ") as raised:
        use(value)
    assert repr(value) in str(raised.value)


def test_fields_are_converted_and_those_that_need_not_be_stay() -> None:
    retry = Retry(attempts=Index(4), backoff=Decimal("0.5"), max_elapsed=Fraction(1, 2), max_backoff=5)
    assert repr(retry).startswith("Retry(attempts=4, backoff=0.5, factor=2.0, max_backoff=5,")
    assert retry == Retry(attempts=4, backoff=0.5, max_elapsed=0.5, max_backoff=5)
    assert pickle.loads(pickle.dumps(retry)) == retry
    assert {type(value) for value in (retry.attempts, retry.backoff, retry.max_elapsed)} == {int, float}
    assert repr(AutoScale(Index(0), Index(9))) == repr(AutoScale(0, 9))


@virtual
async def test_a_pool_works_with_converted_numbers() -> None:
    """As int and float from the check on: nothing behind it knows of other numbers."""
    options: dict[str, Any] = {
        "queue_size": Index(5),
        "max_delayed": Index(7),
        "timeout": Decimal("1.5"),
        "retry": Retry(
            attempts=Index(2),
            backoff=Fraction(1, 4),
            factor=Decimal(2),
            jitter=False,
            max_elapsed=Decimal(60),
            budget=RetryBudget(ratio=Fraction(1, 5), min_per_second=Decimal(9), window=Decimal(10)),
        ),
        "limiter": RateLimit(Decimal(100), per=Fraction(1, 2), burst=Index(3)),
    }
    scaling = AutoScale(
        Index(1), Index(3), interval=Decimal("0.1"), idle_timeout=Fraction(1), backlog_per_worker=Decimal(1)
    )
    workers: Any
    for workers in (Index(2), scaling, Adaptive(Index(1), Index(3), interval=Fraction(1, 10)), OwnPolicy()):
        async with WorkerPool(sleeper, workers=workers, **options) as opened:
            assert await opened.map([0.25] * 9) == [0.25] * 9
            outcomes = await opened.outcomes([9.0] * 2)
            assert [outcome.attempts for outcome in outcomes] == [2, 2]
            opened.resize(workers)
            async with opened.group(window=Index(1)) as group:
                await group.submit(0.0)
            await asyncio.sleep(10)
            assert {type(number) for number in (opened.stats.target_workers, opened.stats.max_workers)} == {int}
            assert opened.queue_size == 5
            await opened.close(drain_timeout=Fraction(1), grace=Decimal(1))


class OwnPolicy:
    """A policy of the user, with numbers of all kinds."""

    initial_workers: Any = Index(1)
    max_workers: Any = Index(4)
    interval: Any = Decimal("0.25")

    def start(self) -> Any:
        answers = iter([3, 9])
        return lambda load: Decision(
            Index(next(answers, 2)),
            ask_again_in=Decimal("0.5"),
            ask_again_after_failures=Index(1),
        )


@virtual
async def test_what_an_own_policy_answers_is_converted(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(sleeper, workers=OwnPolicy()) as opened:
        await opened.map([1.0] * 20)
        assert opened.stats.target_workers == 2
    assert not caplog.records
    assert now() < 20


@virtual
async def test_a_function_as_policy_answers_with_any_integer() -> None:
    async with WorkerPool(sleeper, workers=lambda load: Index(3)) as opened:
        await opened.map([1.0] * 6)
        assert (opened.stats.peak_running, opened.stats.target_workers) == (3, 3)
