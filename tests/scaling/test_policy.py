"""What a pool takes as its number of workers: a number, a policy or a function, and what it raises for all else."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from asyncpool import AutoScale, Decision, FixedSize, FunctionPolicy, PoolLoad, ScalingPolicy, WorkerPool
from asyncpool.events import PoolResized
from tests.helpers import echo, now, sleeper, virtual
from tests.scaling.tools import Own, says_three


async def says_later(load: PoolLoad) -> int:
    return 3


def yields_three(load: PoolLoad) -> Iterator[int]:
    yield 3


async def yields_later(load: PoolLoad) -> Any:
    yield 3


class Caller:
    def __call__(self, load: PoolLoad) -> int:
        return 3

    def method(self, load: PoolLoad) -> int:
        return 3


class LaterCaller:
    async def __call__(self, load: PoolLoad) -> int:
        return 3


class Scaleless:
    """Has all that a policy has, but the interval."""

    initial_workers = 1
    max_workers = 5

    def start(self) -> Callable[[PoolLoad], Decision]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(3, id="a number"),
        pytest.param(FixedSize(3), id="FixedSize"),
        pytest.param(AutoScale(3, 3), id="AutoScale"),
        pytest.param(Own(3, initial_workers=3), id="a policy of one's own"),
        pytest.param(says_three, id="a function"),
        pytest.param(FunctionPolicy(says_three, 5), id="a function with a maximum"),
        pytest.param(lambda load: 3, id="a lambda"),
        pytest.param(Caller(), id="a callable object"),
        pytest.param(Caller().method, id="a method"),
        pytest.param(functools.partial(max, 3, key=lambda value: 3 if value == 3 else 0), id="a partial"),
    ],
)
@virtual
async def test_a_pool_takes_a_number_a_policy_or_a_function(workers: Any) -> None:
    async with WorkerPool(sleeper, workers=workers) as pool:
        assert pool.stats.workers == pool.stats.target_workers == 3
        assert await pool.map([1] * 6) == [1] * 6
        assert now() == 2
    async with WorkerPool(sleeper, workers=1) as pool:
        pool.resize(workers)
        assert pool.stats.target_workers in (1, 3)


WRONG = [
    pytest.param(0, ValueError, "workers must be >= 1, got 0", id="zero"),
    pytest.param(-1, ValueError, "workers must be >= 1, got -1", id="negative"),
    pytest.param(True, TypeError, "workers must be an int, a scaling policy, or a function.*got True", id="bool"),
    pytest.param(2.0, TypeError, "workers must be an int, .*got 2.0", id="float"),
    pytest.param("2", TypeError, "workers must be an int, .*got '2'", id="str"),
    pytest.param(None, TypeError, "workers must be an int, .*got None", id="None"),
    pytest.param([1, 10], TypeError, r"workers must be an int, .*got \[1, 10\]", id="list"),
    pytest.param(AutoScale, TypeError, "workers must be an int, .*got <class '.*AutoScale'>", id="a class of policies"),
    pytest.param(FixedSize, TypeError, "workers must be an int, .*got <class '.*FixedSize'>", id="FixedSize itself"),
    pytest.param(Own, TypeError, "workers must be an int, .*got <class '.*Own'>", id="an own class of policies"),
    pytest.param(int, TypeError, "workers must be an int, .*got <class 'int'>", id="a type"),
    pytest.param(
        says_later, TypeError, "workers .*must not be an async function, got .*says_later", id="async function"
    ),
    pytest.param(
        functools.partial(says_later), TypeError, "workers .*must not be an async function", id="async partial"
    ),
    pytest.param(LaterCaller(), TypeError, "workers .*must not be an async function", id="async callable object"),
    pytest.param(yields_three, TypeError, "must not be a generator function, .*yields_three", id="generator function"),
    pytest.param(
        yields_later,
        TypeError,
        "workers must not be a generator function, .*yields_later",
        id="async generator function",
    ),
    pytest.param(yields_three(PoolLoad()), TypeError, "workers must be an int, .*got <generator", id="generator"),
    pytest.param(Scaleless(), TypeError, "workers must be .*got .*Scaleless.*interval", id="a policy without interval"),
    pytest.param(
        Own(initial_workers=-1),
        ValueError,
        "initial_workers of the scaling policy must be >= 0, got -1",
        id="initial_workers below 0",
    ),
    pytest.param(
        Own(initial_workers=True),
        TypeError,
        "initial_workers of the scaling policy must be an int, got True",
        id="initial_workers a bool",
    ),
    pytest.param(
        Own(max_workers=0), ValueError, "max_workers of the scaling policy must be >= 1, got 0", id="max_workers 0"
    ),
    pytest.param(
        Own(max_workers="5"),  # type: ignore[arg-type]
        TypeError,
        "max_workers of the scaling policy must be an int, got '5'",
        id="max_workers a str",
    ),
    pytest.param(
        Own(initial_workers=6, max_workers=5),
        ValueError,
        "initial_workers of the scaling policy must be <= max_workers, got 6 > 5",
        id="initial_workers above max_workers",
    ),
    pytest.param(Own(interval=0), ValueError, "interval of the scaling policy must be .*> 0, got 0", id="interval 0"),
    pytest.param(
        Own(interval=float("nan")), ValueError, "interval of the scaling policy must be .*got nan", id="interval nan"
    ),
    pytest.param(Own(interval="1"), TypeError, "interval of the scaling policy must be .*got '1'", id="interval a str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("workers", "error", "said"), WRONG)
def test_what_can_be_no_number_of_workers_is_refused_with_the_rule_and_the_value(
    workers: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        WorkerPool(echo, workers=workers)


@pytest.mark.parametrize(("workers", "error", "said"), WRONG)
@virtual
async def test_resize_refuses_the_same_and_changes_nothing(workers: Any, error: type[Exception], said: str) -> None:
    policy = Own(2, initial_workers=2)
    async with WorkerPool(echo, workers=policy) as pool:
        with pytest.raises(error, match=said):
            pool.resize(workers)
        assert pool.stats.target_workers == 2
        assert pool.stats.max_workers == 100
        asked = len(policy.loads)
        await pool.run(1)
        await asyncio.sleep(1)
        assert len(policy.loads) > asked


@pytest.mark.parametrize("decide", [None, 5, "decide", says_later, yields_three])
@virtual
async def test_a_policy_whose_start_returns_what_cannot_decide_is_refused(decide: Any) -> None:
    policy = Own()
    policy.start = lambda: decide  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"start\(\)"):
        WorkerPool(echo, workers=policy)
    async with WorkerPool(echo, workers=2) as pool:
        with pytest.raises(TypeError, match=r"start\(\)"):
            pool.resize(policy)
        assert pool.stats.target_workers == pool.stats.max_workers == 2


@virtual
async def test_the_error_of_a_policy_that_cannot_start_goes_to_whoever_passes_it() -> None:
    policy = Own()

    def start() -> Any:
        raise LookupError("no such metric")

    policy.start = start  # type: ignore[method-assign]
    with pytest.raises(LookupError, match="no such metric"):
        WorkerPool(echo, workers=policy)
    async with WorkerPool(echo, workers=2) as pool:
        with pytest.raises(LookupError, match="no such metric"):
            pool.resize(policy)
        assert pool.stats.target_workers == pool.stats.max_workers == 2


def test_what_has_the_attributes_is_a_scaling_policy() -> None:
    assert isinstance(Own(), ScalingPolicy)
    assert isinstance(AutoScale(1, 2), ScalingPolicy)
    assert isinstance(FixedSize(1), ScalingPolicy)
    assert not isinstance(Scaleless(), ScalingPolicy)
    assert not isinstance(says_three, ScalingPolicy)


def test_a_fixed_size_is_a_policy_that_always_answers_the_same() -> None:
    policy = FixedSize(3)
    assert (policy.initial_workers, policy.max_workers) == (3, 3)
    assert policy.start()(PoolLoad(workers=1, queued=1000)).workers == 3
    assert policy == FixedSize(3) == pickle.loads(pickle.dumps(policy))
    assert {policy: 1}[FixedSize(3)] == 1
    assert repr(policy) == "FixedSize(workers=3)"


@pytest.mark.parametrize(
    ("policy", "most"),
    [(lambda load: 1_000_000, 1000), (FunctionPolicy(lambda load: 1_000_000, max_workers=30), 30)],
    ids=["alone", "with a maximum"],
)
@virtual
async def test_a_function_that_answers_a_million_gets_the_most_workers(policy: Any, most: int) -> None:
    reasons: list[str] = []

    def observe(event: object) -> None:
        if isinstance(event, PoolResized):
            reasons.append(event.reason)

    async with WorkerPool(sleeper, workers=policy, observers=[observe]) as pool:
        assert (pool.stats.workers, pool.stats.target_workers, pool.stats.max_workers) == (most, most, most)
        assert await pool.map([1] * 60) == [1] * 60
    assert len(reasons) == 1
    assert reasons[0].endswith(f"returned this number (capped at {most} workers)")


@virtual
async def test_the_queue_of_a_function_with_a_maximum_is_ten_times_that() -> None:
    async with WorkerPool(sleeper, workers=FunctionPolicy(says_three, max_workers=7)) as pool:
        assert pool.queue_size == 70
        pool.resize(says_three)
        assert pool.queue_size == 30


def test_a_function_policy_is_a_value_and_checks_its_arguments() -> None:
    policy = FunctionPolicy(says_three, 5, interval=0.5)
    assert (policy.initial_workers, policy.max_workers, policy.interval) == (1, 5, 0.5)
    assert policy == pickle.loads(pickle.dumps(policy)) == FunctionPolicy(says_three, max_workers=5, interval=0.5)
    assert policy.start()(PoolLoad()) == Decision(3, "says_three returned this number")
    for arguments, error in (
        ((says_later, 5), TypeError),
        ((yields_three, 5), TypeError),
        ((3, 5), TypeError),
        ((says_three, 0), ValueError),
        ((says_three, True), TypeError),
    ):
        with pytest.raises(error):
            FunctionPolicy(*arguments)  # type: ignore[arg-type]


def test_the_name_of_a_function_cannot_break_its_policy() -> None:
    class Nameless:
        def __call__(self, load: PoolLoad) -> int:
            return 3

        def __getattr__(self, name: str) -> Any:
            raise LookupError if name == "__qualname__" else AttributeError(name)

        def __repr__(self) -> str:
            raise LookupError

    assert FunctionPolicy(Nameless(), 5).start()(PoolLoad()).workers == 3


def test_loads_and_decisions_are_values() -> None:
    load: Any = PoolLoad(workers=2, queued=3, waiting=4, delayed=100, seconds=(0.5,))
    assert load.backlog == 7
    assert load == pickle.loads(pickle.dumps(load))
    with pytest.raises(FrozenInstanceError):
        load.workers = 3
    decision: Any = Decision(3, "because", {"backlog": 7.0}, ask_again_in=5)
    assert decision == pickle.loads(pickle.dumps(decision))
    with pytest.raises(FrozenInstanceError):
        decision.workers = 4
