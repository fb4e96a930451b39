"""How a pool and what decides about its workers talk: when a policy is asked, what it is told, what its answers do.

What `AutoScale` answers is in test_autoscale.py; `resize` by a number is in test_resize_pause.py too.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    AutoScale,
    Decision,
    Event,
    Failed,
    FixedSize,
    JobHandle,
    JobTimeout,
    Permanent,
    PoolClosed,
    PoolDeadlock,
    PoolLoad,
    QueueFull,
    RateLimit,
    Retry,
    RetryAfter,
    ScalingPolicy,
    WorkerPool,
)
from asyncpool._core.load import Recent
from asyncpool.events import PoolResized, PoolStarted
from asyncpool.scaling import Workers
from asyncpool.testing import DeadlockError, ManualHandler, VirtualTimeLoop, run, settle
from tests.helpers import assert_conserved, echo, fuzzed, now, sleeper, virtual

SOON = 0.25  # seconds: two intervals, and a little
Call = Callable[[], Awaitable[Any]]


class Own:
    """A policy of one's own, that a test answers for; it keeps what it was asked."""

    def __init__(
        self,
        answer: Callable[[PoolLoad], Any] | int = 1,
        *,
        first: int = 1,
        most: int = 100,
        interval: float = 0.1,
    ) -> None:
        self.first = first
        self.most = most
        self.interval = interval
        self.answer: Any = answer
        self.loads: list[PoolLoad] = []
        self.started = 0

    def start(self) -> Callable[[PoolLoad], Decision]:
        self.started += 1
        return self.decide

    def decide(self, load: PoolLoad) -> Decision:
        self.loads.append(load)
        answer = self.answer(load) if callable(self.answer) else self.answer
        return Decision(answer, "as the test says") if type(answer) is int else answer

    @property
    def times(self) -> list[float]:
        return [load.now for load in self.loads]


class Sizes:
    """An observer that notes how many workers there should be, and since when."""

    def __init__(self) -> None:
        self.events: list[PoolResized] = []
        self.times: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, PoolResized):
            self.events.append(event)
            self.times.append(now())

    @property
    def sizes(self) -> list[int]:
        return [event.new for event in self.events]


class Connections:
    """Makes connections, slowly or not, and counts what was entered and left; none from `refused_from` on."""

    def __init__(self, seconds: float = 0.0, *, refused_from: float = float("inf")) -> None:
        self.seconds = seconds
        self.refused_from = refused_from
        self.asked = 0
        self.entered = 0
        self.open: list[int] = []
        self.left: list[int] = []

    def __call__(self) -> _Connection:
        return _Connection(self)


class _Connection(AbstractAsyncContextManager[int]):
    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.number = 0

    async def __aenter__(self) -> int:
        connections = self.connections
        connections.asked += 1
        await asyncio.sleep(connections.seconds)
        if connections.entered + 1 >= connections.refused_from:
            raise ConnectionRefusedError
        connections.entered += 1
        self.number = connections.entered
        connections.open.append(self.number)
        return self.number

    async def __aexit__(self, *exc: object) -> None:
        self.connections.open.remove(self.number)
        await asyncio.sleep(0)
        self.connections.left.append(self.number)


async def use(seconds: float, connection: int) -> int:
    await asyncio.sleep(seconds)
    return connection


async def fails(job: Any) -> Any:
    if isinstance(job, BaseException):
        raise job
    return job


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged as an error of a policy."""
    caplog.set_level(logging.ERROR, logger="asyncpool")
    return lambda: [
        record.getMessage() for record in caplog.records if "the scaling policy has failed" in record.getMessage()
    ]


def timers() -> list[asyncio.TimerHandle]:
    """What the loop would go on for though nobody does anything."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return [timer for timer in loop._scheduled if not timer.cancelled()]


# -- What may be a number of workers -----------------------------------------------------------------------------------


def says_three(load: PoolLoad) -> int:
    return 3


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

    first = 1
    most = 5

    def start(self) -> Callable[[PoolLoad], Decision]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(3, id="a number"),
        pytest.param(FixedSize(3), id="FixedSize"),
        pytest.param(AutoScale(3, 3), id="AutoScale"),
        pytest.param(Own(3, first=3), id="a policy of one's own"),
        pytest.param(says_three, id="a function"),
        pytest.param(lambda load: 3, id="a lambda"),
        pytest.param(Caller(), id="a callable object"),
        pytest.param(Caller().method, id="a method"),
        pytest.param(functools.partial(max, 3, key=lambda value: 3 if value == 3 else 0), id="a partial"),
    ],
)
@virtual
async def test_a_pool_takes_a_number_a_policy_or_a_function(workers: Any) -> None:
    async with WorkerPool(sleeper, workers=workers) as pool:
        assert pool.stats.workers == pool.stats.wanted_workers == 3
        assert await pool.map([1] * 6) == [1] * 6
        assert now() == 2
    async with WorkerPool(sleeper, workers=1) as pool:
        pool.resize(workers)
        assert pool.stats.wanted_workers in (1, 3)


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
    pytest.param(yields_three, TypeError, "workers must .*generator function .*yields_three", id="generator function"),
    pytest.param(
        yields_later, TypeError, "workers must .*generator function .*yields_later", id="async generator function"
    ),
    pytest.param(yields_three(PoolLoad()), TypeError, "workers must be an int, .*got <generator", id="generator"),
    pytest.param(Scaleless(), TypeError, "workers must be .*got .*Scaleless.*interval", id="a policy without interval"),
    pytest.param(Own(first=-1), ValueError, "first of the scaling policy must be >= 0, got -1", id="first below 0"),
    pytest.param(Own(first=True), TypeError, "first of the scaling policy must be an int, got True", id="first a bool"),
    pytest.param(Own(most=0), ValueError, "most of the scaling policy must be >= 1, got 0", id="most 0"),
    pytest.param(Own(most="5"), TypeError, "most of the scaling policy must be an int, got '5'", id="most a str"),  # type: ignore[arg-type]
    pytest.param(
        Own(first=6, most=5),
        ValueError,
        "first of the scaling policy must be <= most, got 6 > 5",
        id="first above most",
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
    policy = Own(2, first=2)
    async with WorkerPool(echo, workers=policy) as pool:
        with pytest.raises(error, match=said):
            pool.resize(workers)
        assert pool.stats.wanted_workers == 2
        assert pool.stats.most_workers == 100
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
        assert pool.stats.wanted_workers == pool.stats.most_workers == 2


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
        assert pool.stats.wanted_workers == pool.stats.most_workers == 2


def test_what_has_the_attributes_is_a_scaling_policy() -> None:
    assert isinstance(Own(), ScalingPolicy)
    assert isinstance(AutoScale(1, 2), ScalingPolicy)
    assert isinstance(FixedSize(1), ScalingPolicy)
    assert not isinstance(Scaleless(), ScalingPolicy)
    assert not isinstance(says_three, ScalingPolicy)


def test_a_fixed_size_is_a_policy_that_always_answers_the_same() -> None:
    policy = FixedSize(3)
    assert (policy.first, policy.most) == (3, 3)
    assert policy.start()(PoolLoad(workers=1, queued=1000)).workers == 3
    assert policy == FixedSize(3) == pickle.loads(pickle.dumps(policy))
    assert {policy: 1}[FixedSize(3)] == 1
    assert repr(policy) == "FixedSize(workers=3)"


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


# -- When a policy is asked --------------------------------------------------------------------------------------------


@virtual
async def test_it_is_asked_when_the_pool_starts() -> None:
    policy = Own(4)
    async with WorkerPool(sleeper, workers=policy) as pool:
        assert policy.times == [0]
        assert pool.stats.workers == 4


@virtual
async def test_it_is_not_asked_before_the_pool_starts() -> None:
    policy = Own(4, first=2)
    pool = WorkerPool(sleeper, workers=policy)
    assert policy.loads == []
    assert policy.started == 1
    assert pool.stats.wanted_workers == 2
    await pool.close()
    assert policy.loads == []


@virtual
async def test_while_something_happens_it_is_asked_once_an_interval() -> None:
    policy = Own(2, interval=0.5)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 2000)
        assert now() == pytest.approx(10)
        asked = [time for time in policy.times if time < 10]
        assert asked == pytest.approx([0.5 * number for number in range(20)])


@virtual
async def test_a_function_is_asked_ten_times_a_second() -> None:
    asked: list[float] = []

    def policy(load: PoolLoad) -> int:
        asked.append(load.now)
        return 2

    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 200)
        assert asked == pytest.approx([0.1 * number for number in range(len(asked))])
        assert len(asked) >= 10


@virtual
async def test_an_idle_pool_is_not_asked_for() -> None:
    policy = Own(2)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(1)
        await asyncio.sleep(1)
        asked = len(policy.loads)
        await asyncio.sleep(10_000)
        assert len(policy.loads) == asked


@virtual
async def test_a_pool_that_runs_long_jobs_is_not_asked_for_all_the_time() -> None:
    policy = Own(3)
    async with WorkerPool(sleeper, workers=policy) as pool:
        handles = [await pool.submit(10_000) for _ in range(30)]
        await asyncio.sleep(9_000)
        assert len(policy.loads) < 100
        for handle in handles[3:]:
            handle.cancel()


@virtual
async def test_a_policy_that_waits_for_a_backlog_to_last_is_asked_often_enough() -> None:
    growing = 0

    def patient(load: PoolLoad) -> int:
        nonlocal growing
        growing = growing + 1 if load.queued else 0
        return 5 if growing >= 10 else load.workers

    async with WorkerPool(sleeper, workers=patient) as pool:
        for _ in range(5):
            await pool.submit(1000)
        await asyncio.sleep(2)
        assert pool.stats.running == 5
        pool.cancel()


async def a_job(pool: WorkerPool[Any, Any]) -> None:
    await pool.submit(0)


async def a_job_at_once(pool: WorkerPool[Any, Any]) -> None:
    pool.submit_nowait(0)


async def a_stream(pool: WorkerPool[Any, Any]) -> None:
    await pool.map([0])


async def a_pause(pool: WorkerPool[Any, Any]) -> None:
    pool.pause()


@pytest.mark.parametrize("what", [a_job, a_job_at_once, a_stream, a_pause], ids=lambda what: what.__name__)
@fuzzed
async def test_an_idle_pool_is_asked_for_again_within_an_interval_after(what: Callable[[Any], Awaitable[None]]) -> None:
    policy = Own(2)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for _ in range(3):
            await asyncio.sleep(100)
            asked = len(policy.loads)
            begun = now()
            await what(pool)
            await asyncio.sleep(0.11)
            assert len(policy.loads) == asked + 1
            assert policy.loads[-1].now <= begun + 0.1 + 1e-9
            if what is a_pause:
                pool.resume()


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_a_long_job_has_ended() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(100)
        asked = len(policy.loads)
        await asyncio.sleep(0.11)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].succeeded == 1


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_somebody_waits_or_is_refused() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, queue_size=0) as pool:
        running = asyncio.create_task(pool.run(1000))
        await asyncio.sleep(100)
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await asyncio.sleep(0.11)
        assert policy.loads[-1].refused == 1
        await asyncio.sleep(100)
        waiting = asyncio.create_task(pool.run(1))
        await asyncio.sleep(0.11)
        assert policy.loads[-1].waiting == 1
        await asyncio.gather(running, waiting)


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_a_queued_job_was_cancelled() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.submit(1000)
        queued = await pool.submit(1)
        await asyncio.sleep(500)
        queued.cancel()
        await asyncio.sleep(0.11)
        assert policy.loads[-1].queued == 0


@fuzzed
async def test_a_pool_is_asked_for_within_an_interval_after_a_job_came_back() -> None:
    async def handler(job: int) -> None:
        if asyncpool.current_job().attempt == 1:
            raise RetryAfter(100)
        await asyncio.sleep(1000)

    policy = Own(1)
    async with WorkerPool(handler, workers=policy, retry=Retry(jitter=False)) as pool:
        await pool.submit(1)
        await asyncio.sleep(90)
        asked = len(policy.loads)
        await asyncio.sleep(10.11)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].running == 1


@virtual
async def test_a_pool_is_asked_for_within_an_interval_after_a_resource_was_entered() -> None:
    policy = Own(2)
    connections = Connections(50)
    async with WorkerPool(use, workers=policy, resource=connections) as pool:
        assert now() == 50
        assert pool.stats.workers == 1
        await asyncio.sleep(49)
        asked = len(policy.loads)
        assert policy.loads[-1].opening == 1
        await asyncio.sleep(1.11)
        assert len(policy.loads) == asked + 1
        assert policy.loads[-1].opening == 0


@virtual
async def test_a_policy_is_asked_again_when_it_has_asked_for_that() -> None:
    policy = Own(lambda load: Decision(2, ask_again_in=60))
    async with WorkerPool(sleeper, workers=policy):
        await asyncio.sleep(1)
        asked = policy.times[-1]
        await asyncio.sleep(200)
        assert policy.times[-3:] == pytest.approx([asked + 60, asked + 120, asked + 180])


@virtual
async def test_what_happens_meanwhile_is_told_before_the_time_it_has_asked_for() -> None:
    policy = Own(lambda load: Decision(2, ask_again_in=60))
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(30)
        await pool.submit(5)
        await asyncio.sleep(0.11)
        assert policy.times[-1] == pytest.approx(30.1)


@virtual
async def test_a_policy_that_has_asked_for_a_later_time_is_asked_when_the_rate_limit_opens() -> None:
    policy = Own(lambda load: Decision(1, ask_again_in=5000))
    async with WorkerPool(sleeper, workers=policy, limiter=RateLimit(0.01)) as pool:
        for _ in range(10):
            await pool.submit(10_000)
        await asyncio.sleep(101)
        assert [time for time in policy.times if 50 < time <= 100.05] == [pytest.approx(100)]
        pool.cancel()


@fuzzed
async def test_a_policy_is_asked_at_once_after_so_many_failures_as_it_has_asked_for() -> None:
    policy = Own(lambda load: Decision(1, ask_again_after_failures=3), interval=1000)
    async with WorkerPool(fails, workers=policy) as pool:
        await asyncio.sleep(5)
        for job in (OSError(), 1, 2, OSError(), 3):
            async for _ in pool.outcomes([job]):
                pass
            await asyncio.sleep(1)
        assert len(policy.loads) == 1
        for _ in range(4):
            async for _ in pool.outcomes([OSError()]):
                pass
            await asyncio.sleep(1)
        assert policy.times == [0, 10, 13]
        assert [load.failed for load in policy.loads] == [0, 3, 3]


@fuzzed
async def test_failures_that_come_at_once_are_told_at_once_and_in_one_load() -> None:
    policy = Own(lambda load: Decision(5, ask_again_after_failures=1), interval=1000)

    async def handler(job: int) -> None:
        await asyncio.sleep(1)
        raise OSError

    async with WorkerPool(handler, workers=policy) as pool:
        async for _ in pool.outcomes(range(5)):
            pass
        await settle()
        assert sum(load.failed for load in policy.loads) == 5
        assert len(policy.loads) <= 6
        assert set(policy.times[1:]) == {1}


@virtual
async def test_a_policy_that_does_not_ask_for_failures_any_more_is_not_asked_at_them() -> None:
    policy = Own(lambda load: Decision(1, ask_again_after_failures=None if load.failed else 1), interval=1000)
    async with WorkerPool(fails, workers=policy) as pool:
        async for _ in pool.outcomes([OSError() for _ in range(20)]):
            pass
        await asyncio.sleep(500)
        assert len(policy.loads) == 2


@virtual
async def test_what_the_policy_before_has_asked_for_is_forgotten() -> None:
    old = Own(lambda load: Decision(1, ask_again_in=5, ask_again_after_failures=1), interval=1000)
    new = Own(lambda load: Decision(1), interval=1000)
    async with WorkerPool(fails, workers=old) as pool:
        pool.resize(new)
        async for _ in pool.outcomes([OSError() for _ in range(20)]):
            pass
        await asyncio.sleep(500)
        assert (len(old.loads), len(new.loads)) == (1, 1)


@pytest.mark.parametrize("ask_again_in", [0, 1e-9, 0.0005])
@virtual
async def test_a_policy_that_wants_to_be_asked_all_the_time_does_not_stop_it(ask_again_in: float) -> None:
    policy = Own(lambda load: Decision(1, ask_again_in=ask_again_in))
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(1)
        await asyncio.sleep(1)
        assert len(policy.loads) < 2100


@virtual
async def test_a_tiny_interval_does_not_stop_the_time() -> None:
    policy = Own(1, interval=1e-12)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.sleep(1e6)
        await pool.map([0.01] * 100)
        assert now() == pytest.approx(1e6 + 1)
        assert len(policy.loads) < 2000


@fuzzed
async def test_a_pool_that_is_closed_is_not_asked_for() -> None:
    policy = Own(lambda load: Decision(2, ask_again_in=0.5))
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.run(3)
    asked = len(policy.loads)
    await asyncio.sleep(100)
    assert len(policy.loads) == asked
    assert timers() == []


@fuzzed
async def test_a_pool_that_drains_still_scales() -> None:
    pool = WorkerPool(sleeper, workers=lambda load: 1 + load.queued // 5)
    await pool.start()
    for _ in range(10):
        await pool.submit(10)
    pool.drain()
    report = await pool.close()
    assert report.unfinished == ()
    assert pool.stats.peak_running > 1
    assert now() < 100


@fuzzed
async def test_a_pool_that_is_cancelled_does_not_scale() -> None:
    policy = Own(lambda load: 1 + load.queued)
    pool = WorkerPool(sleeper, workers=policy)
    await pool.start()
    for _ in range(10):
        await pool.submit(10)
    pool.cancel()
    asked = len(policy.loads)
    report = await pool.close()
    assert len(report.unfinished) == 10
    assert len(policy.loads) == asked


# -- An idle pool, and one that can never go on ------------------------------------------------------------------------

POLICIES: dict[str, Callable[[], Workers]] = {
    "AutoScale": lambda: AutoScale(1, 10),
    "AutoScale from 0": lambda: AutoScale(0, 10),
    "function": lambda: lambda load: 2,
    "own": lambda: Own(2),
}


@pytest.mark.parametrize("policy", POLICIES)
@virtual
async def test_an_idle_pool_arms_no_timer(policy: str) -> None:
    async with WorkerPool(sleeper, workers=POLICIES[policy]()) as pool:
        await asyncio.sleep(1)
        assert timers() == []
        await pool.map([0.1] * 30)
        await asyncio.sleep(100)
        assert timers() == []
        pool.pause()
        await pool.submit(1)
        await asyncio.sleep(100)
        assert timers() == []
        pool.resume()


@pytest.mark.parametrize("jobs", [0, 1, 3, 20])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_deadlock_in_a_pool_that_scales_is_reported(policy: str, jobs: int) -> None:
    async def for_ever(job: int) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with WorkerPool(for_ever, workers=POLICIES[policy]()) as pool:
            for job in range(jobs):
                pool.submit_nowait(job)
            await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="nothing is ready to run and no timer is set"):
        run(main)


def test_a_paused_pool_that_nobody_resumes_is_reported() -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=AutoScale(0, 10)) as pool:
            pool.pause()
            await pool.run(1)

    with pytest.raises(DeadlockError):
        run(main)


# -- What a policy is told ---------------------------------------------------------------------------------------------


def test_every_field_of_a_load_is_held_by_a_test_below() -> None:
    known = {
        *("now", "elapsed", "workers", "opening", "idle", "running", "peak_running", "blocked", "queued", "waiting"),
        *("refused", "delayed", "is_held", "succeeded", "failed", "seconds", "errors"),
    }
    assert {field.name for field in fields(PoolLoad)} == known


@virtual
async def test_the_first_load_is_that_of_a_pool_that_has_done_nothing() -> None:
    policy = Own(3, first=3)
    await asyncio.sleep(7)
    async with WorkerPool(sleeper, workers=policy):
        assert policy.loads == [PoolLoad(now=7, workers=3, idle=3)]


@virtual
async def test_a_load_has_all_that_is_the_case_and_has_happened_since() -> None:
    """Four workers: one opens, one runs, one waits for the pool, one is idle; and what ended meanwhile."""
    errors = [ConnectionError("1"), RetryAfter(1000), Permanent(), ValueError("2")]

    async def handler(job: Any, connection: int) -> Any:
        if job == "nested":
            return await pool.run("child")
        if isinstance(job, BaseException):
            raise job
        if isinstance(job, float):
            await asyncio.sleep(job)
        elif job == "child":
            await asyncio.sleep(1000)
        return job

    policy = Own(4, first=4, interval=100)
    connections = Connections(refused_from=4)
    pool: WorkerPool[Any, Any] = WorkerPool(
        handler,
        workers=policy,
        resource=connections,
        recycle_on=(),
        retry=Retry(attempts=2, backoff=1000, max_backoff=1000, jitter=False, on=ConnectionError),
        queue_size=10,
    )
    await pool.start()
    await asyncio.sleep(1)
    handles: list[Any] = [await pool.submit(job) for job in (0.5, 0.25, 0.125)]
    await asyncio.sleep(1)
    handles += [await pool.submit(job) for job in errors]
    await settle()
    handles.append(await pool.submit("nested"))
    await asyncio.sleep(97.9)
    del policy.loads[:-1]
    await asyncio.sleep(0.2)
    [_, load] = policy.loads
    assert load == PoolLoad(
        now=100.0,
        elapsed=100.0,
        workers=4,
        opening=1,
        idle=1,
        running=2,
        peak_running=3,
        blocked=1,
        queued=0,
        waiting=0,
        refused=0,
        delayed=2,
        is_held=False,
        succeeded=3,
        failed=4,
        seconds=(0.125, 0.25, 0.5),
        errors=tuple(errors),
    )
    pool.cancel()
    await pool.close()
    for handle in handles:
        await handle.outcome()


@virtual
async def test_what_has_happened_is_told_once() -> None:
    policy = Own(2)
    async with WorkerPool(fails, workers=policy, queue_size=0) as pool:
        await pool.run(1)
        [failed] = [outcome async for outcome in pool.outcomes([KeyError()])]
        assert isinstance(failed, Failed)
        pool.pause()
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await asyncio.sleep(1)
    told = [load for load in policy.loads if load.succeeded or load.failed or load.refused or load.errors]
    assert len(told) == 1
    assert (told[0].succeeded, told[0].failed, told[0].refused, told[0].peak_running) == (1, 1, 1, 1)
    assert told[0].seconds == (0.0,)
    assert policy.loads[-1].peak_running == 0


@virtual
async def test_elapsed_is_the_time_since_the_last_question() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for seconds in (0.05, 3, 100):
            await pool.run(seconds)
        await asyncio.sleep(1)
    assert policy.loads[0].elapsed == 0
    gaps = [later - earlier for earlier, later in zip(policy.times, policy.times[1:], strict=False)]
    assert [load.elapsed for load in policy.loads[1:]] == gaps
    assert max(gaps) > 90


@virtual
async def test_workers_are_those_that_were_decided_last() -> None:
    policy = Own(lambda load: min(5, load.workers + 1))
    connections = Connections(1000)
    pool = WorkerPool(use, workers=policy, resource=connections)
    starting = asyncio.create_task(pool.start())
    await starting
    await asyncio.sleep(10)
    assert [load.workers for load in policy.loads[:5]] == [1, 2, 3, 4, 5]
    assert [load.opening for load in policy.loads[:5]] == [0, 1, 2, 3, 4]
    assert pool.stats.workers == 1
    await pool.close()


@virtual
async def test_workers_that_retire_after_their_job_are_no_workers_but_their_jobs_run() -> None:
    policy = Own(lambda load: 4 if load.now < 1 else 1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for _ in range(4):
            await pool.submit(5)
        await asyncio.sleep(1.5)
        await pool.submit(0)
        await asyncio.sleep(SOON)
        load = policy.loads[-1]
        assert (load.workers, load.running, load.idle, load.queued) == (1, 4, 0, 1)


@virtual
async def test_the_peak_of_running_jobs_is_that_since_the_last_question() -> None:
    policy = Own(5, first=5, interval=10)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.gather(*(pool.run(1) for _ in range(4)))
        await pool.run(1)
        await asyncio.sleep(10)
        await asyncio.gather(*(pool.run(15) for _ in range(2)))
        await asyncio.sleep(20)
        assert pool.stats.peak_running == 4
    assert [load.peak_running for load in policy.loads if load.peak_running] == [4, 2, 2]


@virtual
async def test_queued_jobs_and_those_who_wait_for_room_are_told() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, queue_size=3) as pool:
        stream = asyncio.ensure_future(drained(pool))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(pool.run(1)) for _ in range(4)]
        await asyncio.sleep(SOON)
        load = policy.loads[-1]
        assert (load.queued, load.waiting, load.backlog) == (3, 5, 8)
        await asyncio.gather(stream, *waiting)


async def drained(pool: WorkerPool[float, float]) -> list[float]:
    return await pool.map([1.0] * 10)


@virtual
async def test_refusals_are_told_however_they_come() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, queue_size=0) as pool:
        first = asyncio.create_task(pool.run(2))
        await asyncio.sleep(1)
        for _ in range(3):
            with pytest.raises(QueueFull):
                pool.submit_nowait(1)
        with pytest.raises(QueueFull):
            await pool.run(1, if_full="raise")
        await asyncio.sleep(SOON)
        assert sum(load.refused for load in policy.loads) == 4
        await first


@virtual
async def test_delayed_jobs_are_those_that_back_off_and_those_parked_for_their_own_rate() -> None:
    policy = Own(2)
    limiter = RateLimit.per_key(str, 0.01)
    retry = Retry(backoff=500, max_backoff=500, jitter=False)
    async with WorkerPool(fails, workers=policy, limiter=limiter, retry=retry) as pool:
        for job in ("a", "a", "a", ConnectionError()):
            await pool.submit(job)
        await asyncio.sleep(1)
        load = policy.loads[-1]
        assert (load.delayed, load.queued, load.backlog, load.is_held) == (3, 0, 0, False)
        pool.cancel()


@virtual
async def test_a_pool_is_held_while_it_is_paused() -> None:
    policy = Own(1)
    async with WorkerPool(echo, workers=policy) as pool:
        pool.pause()
        await asyncio.sleep(1)
        assert policy.loads[-1].is_held
        pool.resume()
        await asyncio.sleep(1)
        assert not policy.loads[-1].is_held


@virtual
async def test_a_pool_is_held_while_the_rate_limit_of_all_jobs_is_closed() -> None:
    policy = Own(1)
    async with WorkerPool(echo, workers=policy, limiter=RateLimit(0.1)) as pool:
        assert not policy.loads[-1].is_held
        handles = [await pool.submit(job) for job in range(2)]
        await asyncio.sleep(9)
        assert policy.loads[-1].is_held
        for handle in handles:
            await handle


@virtual
async def test_a_pool_is_held_while_a_job_waits_in_its_limiter() -> None:
    policy = Own(2)
    semaphore = asyncio.Semaphore(1)
    async with WorkerPool(sleeper, workers=policy, limiter=semaphore) as pool:
        handles = [await pool.submit(10) for _ in range(2)]
        await asyncio.sleep(9)
        assert policy.loads[-1].is_held
        await handles[0]
        await asyncio.sleep(SOON)
        assert not policy.loads[-1].is_held
        assert policy.loads[-1].running == 1


@virtual
async def test_blocked_jobs_are_those_that_wait_for_this_pool_and_were_not_woken() -> None:
    policy = Own(3, first=3)
    pool: WorkerPool[Call, Any] = WorkerPool(workers=policy)
    async with WorkerPool(sleeper, workers=1) as other, pool:

        async def waits_for_own() -> None:
            await pool.run(lambda: asyncio.sleep(5))

        async def waits_for_other() -> None:
            await other.run(5)

        handles = [await pool.submit(call) for call in (waits_for_own, waits_for_other)]
        await asyncio.sleep(1)
        assert policy.loads[-1].running == 3
        assert policy.loads[-1].blocked == 1
        for handle in handles:
            await handle


@pytest.mark.parametrize(
    "raised", [RetryAfter(1), RetryAfter(1, pause=True), Permanent("no"), KeyError("x"), TimeoutError("mine")], ids=repr
)
@virtual
async def test_errors_are_what_the_handler_has_raised(raised: BaseException) -> None:
    policy = Own(1)

    async def handler(job: Any) -> None:
        raise raised from ConnectionError("the cause")

    async with WorkerPool(handler, workers=policy) as pool:
        handle = await pool.submit(1)
        await handle.outcome()
        await asyncio.sleep(2)
    [error] = [error for load in policy.loads for error in load.errors]
    assert error is raised


@virtual
async def test_the_error_of_an_attempt_that_timed_out_is_job_timeout() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, timeout=1) as pool:
        await (await pool.submit(5)).outcome()
        await asyncio.sleep(1)
    [error] = [error for load in policy.loads for error in load.errors]
    assert isinstance(error, JobTimeout)
    assert [load.seconds for load in policy.loads if load.failed] == [()]


@virtual
async def test_each_attempt_that_failed_counts() -> None:
    policy = Own(1)
    async with WorkerPool(fails, workers=policy, retry=Retry(attempts=3, backoff=0.01)) as pool:
        outcome = await (await pool.submit(OSError())).outcome()
        assert outcome.attempts == 3
        await asyncio.sleep(1)
    assert sum(load.failed for load in policy.loads) == 3
    assert sum(len(load.errors) for load in policy.loads) == 3
    assert sum(load.succeeded for load in policy.loads) == 0


@virtual
async def test_what_was_cancelled_is_neither_a_success_nor_a_failure() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        handles = [await pool.submit(5) for _ in range(3)]
        await asyncio.sleep(1)
        for handle in handles:
            handle.cancel()
        await asyncio.sleep(1)
    assert [load for load in policy.loads if load.succeeded or load.failed or load.errors or load.seconds] == []


@virtual
async def test_jobs_that_fail_without_an_attempt_are_no_failures_of_attempts() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, retry=Retry(max_elapsed=2)) as pool:
        handles = [await pool.submit(1) for _ in range(5)]
        for handle in handles:
            await handle.outcome()
        await asyncio.sleep(1)
        assert pool.stats.failed > sum(load.failed for load in policy.loads) > 0
    for load in policy.loads:
        assert load.failed == len(load.errors)


@virtual
async def test_of_many_errors_the_first_thousand_are_told_and_all_are_counted() -> None:
    policy = Own(1, interval=10)

    async def handler(job: int) -> None:
        raise ValueError(job)

    async with WorkerPool(handler, workers=policy) as pool:
        async for _ in pool.outcomes(range(1500)):
            pass
        await asyncio.sleep(11)
    [load] = [load for load in policy.loads if load.failed]
    assert load.failed == 1500
    assert [error.args for error in load.errors] == [(number,) for number in range(1000)]


@virtual
async def test_of_many_running_times_an_even_sample_is_told_and_all_are_counted() -> None:
    policy = Own(1, interval=100_000)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for _ in range(10):
            await pool.map([number / 1000 for number in range(1000)])
        await asyncio.sleep(100_001)
    [load] = [load for load in policy.loads if load.succeeded]
    assert load.succeeded == 10_000
    assert 2000 <= len(load.seconds) <= 4096
    assert sum(load.seconds) / len(load.seconds) == pytest.approx(0.4995, rel=0.02)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64, 1000, 5000])
def test_the_sample_takes_each_nth_whatever_the_batches(batch: int) -> None:
    recent = Recent(0.0, 0)
    times = [float(number) for number in range(20_000)]
    for start in range(0, len(times), batch):
        recent.take_seconds(times[start : start + batch])
    assert recent.seconds == times[:: int(recent.seconds[1] - recent.seconds[0])]
    assert 2000 <= len(recent.seconds) <= 4096


# -- What its answers do -----------------------------------------------------------------------------------------------


@virtual
async def test_an_answer_is_applied_at_once() -> None:
    sizes = Sizes()
    policy = Own(lambda load: 6 if load.queued else 2)
    async with WorkerPool(sleeper, workers=policy, observers=[sizes]) as pool:
        for _ in range(10):
            await pool.submit(1)
        await asyncio.sleep(0.15)
        assert pool.stats.running == pool.stats.workers == 6
        await pool.join()
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 2
    assert sizes.sizes[0] == 2
    assert max(sizes.sizes) == 6


@virtual
async def test_an_answer_above_the_most_is_cut_to_it() -> None:
    async with WorkerPool(sleeper, workers=Own(1000, most=7)) as pool:
        assert pool.stats.workers == pool.stats.wanted_workers == pool.stats.most_workers == 7


@virtual
async def test_an_answer_of_none_lets_the_pool_sleep() -> None:
    async with WorkerPool(sleeper, workers=lambda load: load.backlog and 3) as pool:
        assert pool.stats.workers == 0
        await pool.map([1] * 9)
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 0
        assert await pool.run(2) == 2


@fuzzed
async def test_an_answer_of_none_while_jobs_wait_leaves_one_worker() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 0) as pool:
        assert pool.stats.workers == 0
        assert await pool.map([1] * 5) == [1] * 5
        assert pool.stats.peak_running == 1
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 0


@fuzzed
async def test_surplus_workers_finish_their_jobs_first() -> None:
    policy = Own(lambda load: 4 if load.now < 5 else 1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        handles = [await pool.submit(10) for _ in range(8)]
        await asyncio.sleep(1)
        assert pool.stats.running == 4
        assert [await handle for handle in handles] == [10] * 8
        assert pool.stats.workers == 1
        assert_conserved(pool)


GARBAGE = [
    pytest.param(None, id="None"),
    pytest.param("3", id="str"),
    pytest.param(2.5, id="float"),
    pytest.param(float("nan"), id="nan"),
    pytest.param(True, id="bool"),
    pytest.param(-1, id="negative"),
    pytest.param([3], id="list"),
    pytest.param(ValueError("not raised"), id="an error"),
]


def answers_with(garbage: Any, *, after: int) -> Callable[[PoolLoad], Any]:
    asked = 0

    def policy(load: PoolLoad) -> Any:
        nonlocal asked
        asked += 1
        if asked <= after:
            return 3
        if isinstance(garbage, BaseException):
            raise garbage
        return garbage

    return policy


@pytest.mark.parametrize("garbage", GARBAGE)
@virtual
async def test_a_garbage_answer_keeps_the_number_and_is_logged(garbage: Any, errors: Callable[[], list[str]]) -> None:
    async with WorkerPool(sleeper, workers=answers_with(garbage, after=1)) as pool:
        assert pool.stats.workers == 3
        await pool.map([0.1] * 30)
        assert pool.stats.workers == pool.stats.peak_running == 3
    assert errors()[0].startswith("pool 'pool': the scaling policy has failed (number 1 of such)")
    assert "3 workers as before" in errors()[0]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(Decision(-1), id="negative"),
        pytest.param(Decision(True), id="bool"),
        pytest.param(Decision("3"), id="str"),  # type: ignore[arg-type]
        pytest.param(Decision(2, ask_again_in=-1), id="asks in the past"),
        pytest.param(Decision(2, ask_again_in=float("nan")), id="asks at no time"),
        pytest.param(Decision(2, ask_again_in=float("inf")), id="asks never"),
        pytest.param(Decision(2, ask_again_in="1"), id="asks in a str"),  # type: ignore[arg-type]
        pytest.param(Decision(2, ask_again_after_failures=0), id="asks after no failure"),
        pytest.param(Decision(2, ask_again_after_failures=True), id="asks after a bool"),
        pytest.param(Decision(2, ask_again_after_failures=1.5), id="asks after a float"),  # type: ignore[arg-type]
        pytest.param(7.0, id="a number"),
        pytest.param(Decision, id="the class"),
    ],
)
@virtual
async def test_a_garbage_decision_keeps_the_number_and_is_logged(garbage: Any, errors: Callable[[], list[str]]) -> None:
    policy = Own(lambda load: 3 if load.now == 0 else garbage)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.1] * 30)
        assert pool.stats.workers == pool.stats.peak_running == 3
    assert len(errors()) >= 1


@pytest.mark.parametrize(
    "error", [ValueError("bug"), SystemExit(1), asyncio.CancelledError(), StopIteration(), GeneratorExit()], ids=repr
)
@virtual
async def test_what_a_policy_raises_keeps_the_number_and_is_logged(
    error: BaseException, errors: Callable[[], list[str]]
) -> None:
    async with WorkerPool(sleeper, workers=answers_with(error, after=1)) as pool:
        assert await pool.map([0.1] * 30) == [0.1] * 30
        assert pool.stats.workers == pool.stats.peak_running == 3
    assert len(errors()) >= 1


@virtual
async def test_failures_of_a_policy_are_logged_at_the_first_second_fourth_eighth_time(
    errors: Callable[[], list[str]],
) -> None:
    policy = Own(lambda load: None)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 200)
    assert len(policy.loads) > 16
    assert [int(text.split("(number ")[1].split(" ")[0]) for text in errors()] == [1, 2, 4, 8, 16]


@virtual
async def test_a_policy_that_failed_is_asked_again(errors: Callable[[], list[str]]) -> None:
    def answer(load: PoolLoad) -> int:
        if load.now < 1:
            raise LookupError("no metrics yet")
        return 4

    async with WorkerPool(sleeper, workers=Own(answer)) as pool:
        await pool.map([0.01] * 200)
        assert pool.stats.workers == 4
    assert errors()


@virtual
async def test_the_first_failure_of_a_policy_that_replaced_another_is_logged(errors: Callable[[], list[str]]) -> None:
    async with WorkerPool(sleeper, workers=Own(lambda load: None)) as pool:
        await pool.map([0.01] * 50)
        logged = len(errors())
        pool.resize(Own(lambda load: None))
        assert len(errors()) == logged + 1
        assert "number 1 of such" in errors()[-1]


@fuzzed
async def test_a_policy_that_fails_does_not_keep_a_sleeping_pool_asleep() -> None:
    logging.getLogger("asyncpool").disabled = True
    try:
        policy = Own(lambda load: None, first=0)
        async with WorkerPool(sleeper, workers=policy) as pool:
            assert await pool.run(1) == 1
            assert now() == 1
    finally:
        logging.getLogger("asyncpool").disabled = False


def test_a_keyboard_interrupt_in_a_policy_goes_to_the_program_and_scaling_goes_on() -> None:
    def policy(load: PoolLoad) -> int:
        asked.append(load.now)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 2 if len(asked) < 6 else 4

    async def main() -> None:
        await pool.start()
        handles.extend([await pool.submit(0.1) for _ in range(40)])
        await pool.join()

    async def go_on() -> None:
        for handle in handles:
            await handle
        assert pool.stats.workers == 4
        await pool.close()

    asked: list[float] = []
    handles: list[JobHandle[float, float]] = []
    pool = WorkerPool(sleeper, workers=policy, queue_size=100)
    loop = VirtualTimeLoop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert len(asked) == 3
    for task in asyncio.all_tasks(loop):
        if task.get_name() == "Task-1":
            task.cancel()
    loop.run_until_complete(go_on())
    assert len(asked) > 6
    loop.close()


def test_a_keyboard_interrupt_in_a_policy_while_the_pool_starts_leaves_nothing_behind() -> None:
    def policy(load: PoolLoad) -> int:
        raise KeyboardInterrupt

    async def main() -> None:
        connections = Connections()
        try:
            async with WorkerPool(use, workers=policy, resource=connections):
                await asyncio.sleep(1)
        finally:
            assert connections.open == []

    with pytest.raises(KeyboardInterrupt):
        run(main)


@virtual
async def test_a_policy_may_look_at_the_pool_and_change_it() -> None:
    def policy(load: PoolLoad) -> int:
        assert pool.stats.wanted_workers == load.workers
        if load.now > 1:
            pool.resize(5)
            return 3
        return 2

    pool = WorkerPool(sleeper, workers=policy)
    async with pool:
        await pool.map([0.1] * 40)
        assert pool.stats.workers == pool.stats.most_workers == 5


@fuzzed
async def test_a_job_that_comes_while_the_pool_goes_to_sleep_wakes_it() -> None:
    handles: list[JobHandle[float, float]] = []

    def submit(event: Event) -> None:
        if isinstance(event, PoolResized) and event.new == 0 and len(handles) < 3:
            handles.append(pool.submit_nowait(1))

    pool = WorkerPool(sleeper, workers=AutoScale(0, 3, idle_timeout=1), observers=[submit])
    async with pool:
        await pool.run(1)
        await asyncio.sleep(20)
        assert [await handle for handle in handles] == [1] * 3
        assert pool.stats.workers == 0


@fuzzed
async def test_a_job_that_a_policy_submits_itself_is_done() -> None:
    handles: list[JobHandle[float, float]] = []

    def policy(load: PoolLoad) -> int:
        if len(handles) < 3:
            handles.append(pool.submit_nowait(1))
        return 0

    pool = WorkerPool(sleeper, workers=policy)
    async with pool:
        await asyncio.sleep(10)
        assert [await handle for handle in handles] == [1] * 3
        assert pool.stats.workers == 0


@fuzzed
async def test_a_priority_function_may_swap_the_policy_while_a_job_is_accepted() -> None:
    def key(job: float) -> float:
        pool.resize(lambda load: 0)
        return job

    pool = WorkerPool(sleeper, workers=lambda load: 1, priority=key)
    async with pool:
        assert await pool.run(1) == 1
        await asyncio.sleep(10)
        assert await pool.map([1, 2]) == [1, 2]
        assert pool.stats.workers in (0, 1)


@virtual
async def test_without_a_waiting_room_a_pool_whose_last_worker_retires_after_its_job_is_full() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 0 if load.running else load.backlog, queue_size=0) as pool:
        handle = pool.submit_nowait(10)
        await asyncio.sleep(1)
        assert (pool.stats.wanted_workers, pool.stats.running) == (0, 1)
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await handle
        await pool.submit_nowait(1)


@virtual
async def test_a_sleeping_pool_that_is_paused_is_full_without_a_waiting_room() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(0, 3), queue_size=0) as pool:
        pool.pause()
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        pool.resume()
        await pool.submit_nowait(1)


@pytest.mark.parametrize("end", ["drain", "cancel"])
@virtual
async def test_a_policy_may_end_the_pool(end: str) -> None:
    def policy(load: PoolLoad) -> int:
        if load.now > 1:
            getattr(pool, end)()
        return 3

    pool = WorkerPool(sleeper, workers=policy)
    await pool.start()
    handles = [await pool.submit(0.5) for _ in range(9)]
    await asyncio.sleep(2)
    report = await pool.close()
    assert len(report.unfinished) == (0 if end == "drain" else 3)
    for handle in handles:
        await handle.outcome()


# -- Jobs that wait for their own pool ---------------------------------------------------------------------------------


class Nested:
    """A pool whose jobs submit jobs to it and wait for them, so and so deep."""

    def __init__(self, workers: Any, **options: Any) -> None:
        self.pool: WorkerPool[int, int] = WorkerPool(self.count, workers=workers, **options)

    async def count(self, depth: int, connection: int = 0) -> int:
        return 1 + await self.deeper(depth - 1) if depth else 0

    async def deeper(self, depth: int) -> int:
        return await self.pool.run(depth)


class NestedHandles(Nested):
    async def deeper(self, depth: int) -> int:
        return await (await self.pool.submit(depth))


class NestedStreams(Nested):
    async def deeper(self, depth: int) -> int:
        return (await self.pool.map([depth]))[0]


class NestedTasks(Nested):
    async def deeper(self, depth: int) -> int:
        return await asyncio.create_task(self.pool.run(depth))


WAYS = [Nested, NestedHandles, NestedStreams, NestedTasks]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(lambda: AutoScale(1, 6), id="AutoScale"),
        pytest.param(lambda: AutoScale(0, 6), id="AutoScale from 0"),
        pytest.param(lambda: Own(1, most=6), id="own"),
        pytest.param(lambda: lambda load: max(1, min(6, load.running + load.queued)), id="function"),
    ],
)
@fuzzed
async def test_jobs_that_wait_for_their_own_pool_make_it_grow(way: type[Nested], workers: Callable[[], Any]) -> None:
    async with way(workers()).pool as pool:
        assert await pool.run(5) == 5
        assert now() < 1
        assert pool.stats.peak_running == 6


@fuzzed
async def test_a_policy_that_is_none_of_a_function_lets_blocked_jobs_go_on_without_waiting_for_a_look() -> None:
    async with Nested(AutoScale(1, 6)).pool as pool:
        assert await pool.run(5) == 5
        assert now() == 0


@pytest.mark.parametrize("queue_size", [0, 1])
@fuzzed
async def test_jobs_that_wait_for_room_in_their_own_pool_make_it_grow(queue_size: int) -> None:
    async with Nested(AutoScale(1, 6), queue_size=queue_size).pool as pool:
        assert await pool.run(5) == 5


@fuzzed
async def test_jobs_that_wait_for_their_own_pool_make_it_grow_though_resources_open_slowly() -> None:
    connections = Connections(10)
    async with Nested(AutoScale(1, 6), resource=connections).pool as pool:
        assert await pool.run(5) == 5
        assert now() == 60
        assert connections.entered == 6


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@fuzzed
async def test_at_the_most_workers_a_wait_for_the_own_pool_is_a_deadlock(way: type[Nested]) -> None:
    async with way(AutoScale(1, 3)).pool as pool:
        with pytest.raises(PoolDeadlock, match=r"all 3 running jobs \(of at most 3 at a time\)"):
            await pool.run(10)
        assert pool.stats.peak_running == 3


@fuzzed
async def test_where_a_function_says_no_more_a_wait_for_the_own_pool_is_a_deadlock() -> None:
    async with Nested(lambda load: min(2, 1 + load.queued)).pool as pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(10)
        assert pool.stats.peak_running == 2


@virtual
async def test_the_answer_of_a_function_is_its_bound_though_jobs_wait_for_their_pool() -> None:
    async def waits() -> None:
        await pool.run(lambda: sleeper(10))

    pool: WorkerPool[Call, Any] = WorkerPool(workers=lambda load: 4 if load.now < 1 else 2)
    async with pool:
        handles = [await pool.submit(waits) for _ in range(2)]
        await asyncio.sleep(0.5)
        assert pool.stats.running == 4
        await pool.submit(lambda: sleeper(0))
        await asyncio.sleep(1)
        assert pool.stats.wanted_workers == 2
        for handle in handles:
            await handle


@fuzzed
async def test_several_jobs_that_wait_for_their_own_pool_grow_it_until_all_is_done() -> None:
    async with Nested(AutoScale(1, 20)).pool as pool:
        assert await pool.map([3] * 5) == [3] * 5
        assert now() < 1


@fuzzed
async def test_workers_that_were_added_for_blocked_jobs_retire_when_they_are_idle() -> None:
    async with Nested(AutoScale(1, 10)).pool as pool:
        assert await pool.run(5) == 5
        await asyncio.sleep(31)
        assert pool.stats.workers == 1


@virtual
async def test_the_reason_tells_that_jobs_wait_for_their_own_pool() -> None:
    sizes = Sizes()
    async with Nested(AutoScale(1, 2), observers=[sizes]).pool as pool:
        assert await pool.run(1) == 1
    assert sizes.sizes == [2]
    assert "wait" in sizes.events[0].reason
    assert sizes.events[0].load is not None
    assert sizes.events[0].load.blocked == 1


# -- Another policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "after"), [(1, 2), (2, 2), (5, 5), (10, 10), (30, 10)])
@virtual
async def test_a_policy_that_is_swapped_in_keeps_the_number_within_its_bounds(workers: int, after: int) -> None:
    async with WorkerPool(sleeper, workers=workers) as pool:
        pool.resize(AutoScale(2, 10))
        assert pool.stats.workers == pool.stats.wanted_workers == after
        assert pool.stats.most_workers == 10


@virtual
async def test_from_one_policy_to_another_the_number_stays_within_its_bounds() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 20)) as pool:
        await pool.map([0.1] * 100)
        assert pool.stats.workers == 20
        pool.resize(AutoScale(1, 8, idle_timeout=5))
        assert pool.stats.workers == 8
        await asyncio.sleep(4)
        assert pool.stats.workers == 8
        await asyncio.sleep(2)
        assert pool.stats.workers == 1


@virtual
async def test_a_number_ends_the_scaling() -> None:
    policy = Own(lambda load: Decision(3, ask_again_in=1))
    async with WorkerPool(sleeper, workers=policy) as pool:
        pool.resize(5)
        asked = len(policy.loads)
        await pool.map([0.1] * 200)
        await asyncio.sleep(1000)
        assert len(policy.loads) == asked
        assert pool.stats.workers == pool.stats.wanted_workers == pool.stats.most_workers == 5
        assert timers() == []


@virtual
async def test_a_policy_can_follow_a_number_and_a_number_a_policy() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        for _ in range(3):
            pool.resize(AutoScale(1, 10, idle_timeout=1))
            await pool.map([0.1] * 100)
            assert pool.stats.workers == 10
            pool.resize(3)
            assert pool.stats.workers == 3
            await pool.map([0.1] * 100)
            assert pool.stats.workers == 3


@virtual
async def test_the_policy_that_was_replaced_is_asked_no_more() -> None:
    old, new = Own(2), Own(3)
    async with WorkerPool(sleeper, workers=old) as pool:
        handles = [await pool.submit(0.3) for _ in range(30)]
        await asyncio.sleep(0.05)
        pool.resize(new)
        assert new.times == [pytest.approx(0.05)]
        asked = len(old.loads)
        for handle in handles:
            await handle
        assert len(old.loads) == asked
        assert len(new.loads) > 5


@virtual
async def test_a_policy_is_told_nothing_of_the_time_before_it() -> None:
    async with WorkerPool(fails, workers=5) as pool:
        await pool.map(range(20))
        for after in (Own(2), Own(2)):
            with pytest.raises(KeyError):
                await pool.run(KeyError())
            pool.resize(after)
            load = after.loads[0]
            assert (load.elapsed, load.succeeded, load.failed, load.seconds, load.errors) == (0, 0, 0, (), ())
            assert (load.refused, load.peak_running) == (0, 0)
        assert pool.stats.peak_running >= 1


@virtual
async def test_a_pool_that_dozed_is_asked_for_by_the_new_policy() -> None:
    new = Own(lambda load: min(100, 1 + load.queued))
    async with WorkerPool(sleeper, workers=AutoScale(1, 2)) as pool:
        await asyncio.sleep(1000)
        pool.resize(new)
        await asyncio.sleep(1000)
        for _ in range(11):
            await pool.submit(50)
        await asyncio.sleep(SOON)
        assert pool.stats.running == 11


@virtual
async def test_a_policy_set_before_the_start_is_the_one_it_starts_with() -> None:
    old, new = Own(2, first=2), Own(4, first=3)
    sizes = Sizes()
    pool = WorkerPool(sleeper, workers=old, observers=[sizes])
    pool.resize(new)
    assert pool.stats.wanted_workers == 3
    async with pool:
        assert pool.stats.workers == 4
    assert old.loads == []
    assert [(event.old, event.new, event.load is None) for event in sizes.events] == [(2, 3, True), (3, 4, False)]


@pytest.mark.parametrize("workers", [4, AutoScale(4, 9), AutoScale(0, 9)], ids=str)
@fuzzed
async def test_a_policy_set_while_the_pool_starts_is_the_one_that_counts(workers: Any) -> None:
    connections = Connections(10)
    pool = WorkerPool(use, workers=AutoScale(2, 3), resource=connections)
    starting = asyncio.create_task(pool.start())
    await asyncio.sleep(5)
    pool.resize(workers)
    await starting
    await asyncio.sleep(20)
    assert pool.stats.wanted_workers == pool.stats.workers == (0 if workers == AutoScale(0, 9) else 4)
    assert len(connections.open) == pool.stats.workers
    await pool.close()
    assert connections.open == []


@fuzzed
async def test_a_job_may_swap_the_policy() -> None:
    async def handler(job: int) -> int:
        pool.resize(AutoScale(1, 3 + job % 3) if job % 2 else 2)
        await asyncio.sleep(0.2)
        return job

    pool = WorkerPool(handler, workers=AutoScale(1, 4))
    async with pool:
        assert await pool.map(range(30)) == list(range(30))
        assert_conserved(pool)
        assert pool.stats.peak_running <= 5


@virtual
async def test_an_observer_may_swap_the_policy() -> None:
    def swap(event: Event) -> None:
        if isinstance(event, PoolResized) and event.new == 10:
            pool.resize(3)

    pool = WorkerPool(sleeper, workers=AutoScale(1, 10), observers=[swap])
    async with pool:
        await pool.map([0.1] * 60)
        assert pool.stats.workers == pool.stats.most_workers == 3


@pytest.mark.parametrize("workers", [5, AutoScale(1, 5), says_three], ids=["number", "policy", "function"])
@virtual
async def test_a_closed_pool_takes_no_other_policy(workers: Any) -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 4)) as pool:
        pass
    with pytest.raises(PoolClosed):
        pool.resize(workers)


@fuzzed
async def test_more_room_by_a_new_policy_lets_those_in_who_wait() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 1)) as pool:
        pool.pause()
        for _ in range(10):
            pool.submit_nowait(0)
        waiting = [asyncio.create_task(pool.submit(0)) for _ in range(3)]
        await settle()
        pool.resize(AutoScale(1, 5))
        await settle()
        assert all(task.done() for task in waiting)
        assert pool.stats.queued == 13
        pool.resume()


@fuzzed
async def test_a_stream_goes_on_when_there_may_be_more_workers() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        values = asyncio.ensure_future(hundred_seconds(pool))
        await asyncio.sleep(1)
        pool.resize(50)
        await settle()
        assert pool.stats.running == 50
        await values
        assert now() <= 401


async def hundred_seconds(pool: WorkerPool[float, float]) -> list[float]:
    return await pool.map([100.0] * 200, ordered=False)


@fuzzed
async def test_who_waits_for_the_window_of_a_group_goes_on_when_there_may_be_more_workers() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool, pool.group() as group:
        producer = asyncio.create_task(submit_all(group, [100.0] * 5))
        await asyncio.sleep(1)
        assert pool.stats.running == 1
        pool.resize(5)
        await settle()
        assert pool.stats.running == 5
        await producer
        group.close_intake()
        assert len([outcome async for outcome in group]) == 5


async def submit_all(group: Any, jobs: list[float]) -> None:
    for job in jobs:
        await group.submit(job)


@virtual
async def test_a_stream_of_a_pool_that_a_function_scales_uses_all_workers() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 50 if load.backlog else load.workers) as pool:
        await pool.map([100.0] * 200)
        assert pool.stats.peak_running == 50
        assert now() <= 401


@virtual
async def test_two_pools_that_share_a_policy_scale_each_for_itself() -> None:
    policy = AutoScale(1, 10, idle_timeout=10)
    async with (
        WorkerPool(sleeper, workers=policy, name="busy") as busy,
        WorkerPool(sleeper, workers=policy, name="idle") as idle,
    ):
        for _ in range(5):
            await busy.map([0.1] * 100)
            assert busy.stats.workers == 10
            assert idle.stats.workers == 1
            await asyncio.sleep(5)
        await idle.map([0.1] * 100)
        assert idle.stats.workers == 10
        await asyncio.sleep(8)
        assert busy.stats.workers == 1
        assert idle.stats.workers == 10
    assert policy == AutoScale(1, 10, idle_timeout=10)


@virtual
async def test_each_pool_starts_its_policy_once_and_each_swap_anew() -> None:
    policy = Own(2)
    pools = [WorkerPool(echo, workers=policy) for _ in range(2)]
    assert policy.started == 2
    async with pools[0]:
        pools[0].resize(policy)
        assert policy.started == 3


# -- What observers and statistics tell --------------------------------------------------------------------------------


@virtual
async def test_a_change_tells_the_old_and_the_new_number_why_and_on_what_load() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(2, 10), observers=[sizes], name="mine") as pool:
        for _ in range(40):
            await pool.submit(1)
        await asyncio.sleep(SOON)
    event = sizes.events[0]
    assert (event.pool, event.old, event.new) == ("mine", 2, 8)
    assert "38 jobs wait for 2 workers" in event.reason
    assert event.load is not None
    assert (event.load.workers, event.load.queued, event.load.running, event.load.idle) == (2, 38, 2, 0)


@virtual
async def test_the_reason_of_a_policy_of_ones_own_is_told_as_it_is() -> None:
    sizes = Sizes()
    policy = Own(lambda load: Decision(3, "the moon is full", {"moon": 1.0}))
    async with WorkerPool(sleeper, workers=policy, observers=[sizes]):
        pass
    assert [(event.old, event.new, event.reason) for event in sizes.events] == [(1, 3, "the moon is full")]
    assert sizes.events[0].load == policy.loads[0]


@virtual
async def test_the_reason_of_a_function_is_its_name() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=says_three, observers=[sizes]):
        pass
    assert [event.new for event in sizes.events] == [3]
    assert "says_three" in sizes.events[0].reason


@virtual
async def test_a_number_that_stays_is_no_event() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=Own(3, first=3), observers=[sizes]) as pool:
        await pool.map([0.1] * 100)
        pool.resize(3)
        pool.resize(AutoScale(1, 10))
        pool.resize(AutoScale(3, 3))
    assert sizes.events == []


@virtual
async def test_resize_by_a_number_tells_the_load_too() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=2, observers=[sizes]) as pool:
        await pool.submit(1)
        await settle()
        pool.resize(6)
    [event] = sizes.events
    assert (event.old, event.new) == (2, 6)
    assert "6" in event.reason
    assert event.load is not None
    assert (event.load.workers, event.load.running) == (2, 1)


@virtual
async def test_a_change_before_the_start_has_no_load() -> None:
    sizes = Sizes()
    pool = WorkerPool(sleeper, workers=2, observers=[sizes])
    pool.resize(4)
    [event] = sizes.events
    assert (event.old, event.new, event.load) == (2, 4, None)
    assert event.reason
    await pool.close()


@virtual
async def test_observers_are_told_of_the_start_before_anything_is_resized() -> None:
    events: list[Event] = []
    async with WorkerPool(sleeper, workers=says_three, observers=[events.append]) as pool:
        assert pool.stats.workers == 3
    kinds = [type(event) for event in events]
    assert kinds.index(PoolStarted) < kinds.index(PoolResized)


@virtual
async def test_statistics_tell_how_many_workers_there_are_should_be_and_may_be() -> None:
    pool = WorkerPool(sleeper, workers=AutoScale(2, 10))
    assert (pool.stats.workers, pool.stats.wanted_workers, pool.stats.most_workers) == (0, 2, 10)
    async with pool:
        assert (pool.stats.workers, pool.stats.wanted_workers, pool.stats.most_workers) == (2, 2, 10)
        handles = [await pool.submit(1) for _ in range(30)]
        await asyncio.sleep(SOON)
        assert (pool.stats.workers, pool.stats.wanted_workers, pool.stats.most_workers) == (6, 6, 10)
        pool.resize(3)  # three retire after their jobs
        assert (pool.stats.workers, pool.stats.wanted_workers, pool.stats.most_workers) == (6, 3, 3)
        for handle in handles:
            await handle
        assert (pool.stats.workers, pool.stats.wanted_workers, pool.stats.most_workers) == (3, 3, 3)


@virtual
async def test_the_most_workers_of_a_function_are_what_it_answered_last() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 4 if load.queued else 2) as pool:
        assert pool.stats.most_workers == 2
        for _ in range(10):
            await pool.submit(1)
        await asyncio.sleep(0.15)
        assert pool.stats.most_workers == 4


@virtual
async def test_the_repr_of_the_pool_tells_how_many_workers_there_should_be() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(2, 10)) as pool:
        assert "0 of 2 workers busy" in repr(pool)


# -- Resources ---------------------------------------------------------------------------------------------------------


@fuzzed
async def test_each_worker_that_comes_and_goes_opens_and_closes_its_resource_once() -> None:
    connections = Connections(0.05)
    async with WorkerPool(use, workers=AutoScale(1, 6, idle_timeout=1), resource=connections) as pool:
        for _ in range(3):
            assert len(await pool.map([0.1] * 60)) == 60
            assert len(connections.open) == 6
            await asyncio.sleep(3)
            assert len(connections.open) == pool.stats.workers == 1
        assert_conserved(pool)
        assert pool.stats.succeeded == 180
    assert connections.open == []
    assert sorted(connections.left) == list(range(1, connections.entered + 1))
    assert connections.entered == connections.asked == 16


@fuzzed
async def test_no_job_is_lost_when_workers_retire_as_jobs_come() -> None:
    connections = Connections(0.01)
    policy = AutoScale(0, 6, idle_timeout=0.05, interval=0.01, backlog_per_worker=1)
    async with WorkerPool(use, workers=policy, resource=connections) as pool:
        handles = []
        for number in range(60):
            handles += [pool.submit_nowait(0.02) for _ in range(number % 4)]
            await asyncio.sleep(0.01 * (number % 9))
        for handle in handles:
            assert await handle
        assert_conserved(pool)
        assert pool.stats.succeeded == len(handles)
    assert connections.open == []
    assert len(connections.left) == len(set(connections.left)) == connections.entered


@fuzzed
async def test_the_worker_that_is_used_keeps_its_resource_and_the_idle_ones_retire() -> None:
    connections = Connections()
    async with WorkerPool(use, workers=AutoScale(1, 3, backlog_per_worker=1), resource=connections) as pool:
        await pool.map([1, 2, 3, 1, 2, 3])
        assert sorted(connections.open) == [1, 2, 3]
        used = await pool.run(0.1)
        for _ in range(100):
            assert await pool.run(0.1) == used
            await asyncio.sleep(0.9)
        assert connections.open == [used]


@fuzzed
async def test_resize_by_a_number_also_keeps_the_resource_that_was_used_last() -> None:
    connections = Connections()
    async with WorkerPool(use, workers=3, resource=connections) as pool:
        await settle()
        await pool.map([1, 2, 3])
        used = await pool.run(1)
        pool.resize(1)
        await settle()
        assert connections.open == [used]


@virtual
async def test_a_worker_whose_resource_cannot_be_opened_is_no_capacity() -> None:
    connections = Connections(refused_from=2)
    async with WorkerPool(use, workers=AutoScale(1, 10), resource=connections) as pool:
        handles = [await pool.submit(1) for _ in range(50)]
        await asyncio.sleep(5.5)
        assert pool.stats.wanted_workers == 10
        assert pool.stats.workers == 1
        assert pool.stats.running == 1
        for handle in handles:
            handle.cancel()


@virtual
async def test_while_a_resource_cannot_be_opened_the_pool_does_not_grow() -> None:
    connections = Connections(refused_from=2)
    async with WorkerPool(use, workers=AutoScale(2, 10), resource=connections) as pool:
        handles = [await pool.submit(0.5) for _ in range(100)]
        await asyncio.sleep(20)
        assert pool.stats.wanted_workers == 2
        assert pool.stats.workers == 1
        connections.refused_from = float("inf")
        await asyncio.sleep(6)
        assert pool.stats.wanted_workers == 10
        for handle in handles:
            await handle


@virtual
async def test_while_resources_are_being_opened_the_pool_does_not_grow() -> None:
    connections = Connections(10)
    async with WorkerPool(use, workers=AutoScale(1, 50, backlog_per_worker=10), resource=connections) as pool:
        for _ in range(30):
            await pool.submit(100)
        await asyncio.sleep(1)
        assert pool.stats.wanted_workers == 3
        for _ in range(200):
            await pool.submit(100)
        await asyncio.sleep(8)
        assert pool.stats.wanted_workers == 3
        await asyncio.sleep(2)
        assert pool.stats.wanted_workers > 3
        pool.cancel()


@virtual
async def test_a_resource_that_is_slower_than_the_idle_timeout_still_gives_workers() -> None:
    connections = Connections(2)
    async with WorkerPool(use, workers=AutoScale(1, 10, idle_timeout=1), resource=connections) as pool:
        await pool.map([1] * 60)
        assert pool.stats.peak_running == 10
        assert connections.asked == 10
        await asyncio.sleep(1 + SOON)
        assert pool.stats.workers == 1


@virtual
async def test_an_outage_of_the_backend_is_no_reason_to_flap() -> None:
    sizes, connections = Sizes(), Connections()
    async with WorkerPool(use, workers=AutoScale(1, 10), resource=connections, observers=[sizes]) as pool:
        connections.refused_from = 0
        handles = [await pool.submit(5) for _ in range(100)]
        await asyncio.sleep(200)
        assert sizes.sizes == [10]
        connections.refused_from = float("inf")
        await asyncio.sleep(6)
        assert pool.stats.running == 10
        for handle in handles:
            await handle


@virtual
async def test_a_pool_that_sleeps_opens_no_resource_before_the_first_job() -> None:
    connections = Connections(3)
    async with WorkerPool(use, workers=AutoScale(0, 5, idle_timeout=10), resource=connections) as pool:
        await asyncio.sleep(100)
        assert connections.asked == 0
        assert await pool.run(1) == 1
        assert now() == 104
        await asyncio.sleep(11)
        assert connections.open == []


@virtual
async def test_a_pool_without_jobs_stops_trying_to_open_a_resource() -> None:
    connections = Connections(refused_from=1)
    async with WorkerPool(use, workers=AutoScale(0, 5, idle_timeout=10), resource=connections) as pool:
        handle = await pool.submit(1)
        await asyncio.sleep(100)
        assert connections.asked > 10
        handle.cancel()
        await asyncio.sleep(20)
        asked = connections.asked
        await asyncio.sleep(1000)
        assert connections.asked == asked
        assert pool.stats.wanted_workers == 0


@fuzzed
async def test_surplus_workers_that_are_still_opening_give_it_up() -> None:
    connections = Connections(10)
    async with WorkerPool(use, workers=AutoScale(1, 10), resource=connections) as pool:
        handles = [await pool.submit(1) for _ in range(50)]
        await asyncio.sleep(1)
        assert pool.stats.wanted_workers == 10
        pool.resize(1)
        for handle in handles:
            await handle
    assert connections.entered == 1
    assert connections.left == [1]


# -- Shutdown in the middle of a resize --------------------------------------------------------------------------------


@fuzzed
async def test_a_drain_while_resources_are_opened_does_all_jobs_and_closes_all() -> None:
    connections = Connections(2)
    pool = WorkerPool(use, workers=AutoScale(1, 10), resource=connections)
    await pool.start()
    handles = [await pool.submit(1) for _ in range(60)]
    await asyncio.sleep(1)
    assert pool.stats.wanted_workers == 10
    assert pool.stats.workers == 1
    report = await pool.close()
    assert (report.unfinished, report.abandoned, report.errors) == ((), (), ())
    assert pool.stats.succeeded == 60
    assert connections.open == []
    assert sorted(connections.left) == list(range(1, connections.entered + 1))
    assert now() < 20
    for handle in handles:
        await handle


@fuzzed
async def test_a_cancel_while_resources_are_opened_hands_back_the_jobs_and_closes_all() -> None:
    connections = Connections(2)
    pool = WorkerPool(use, workers=AutoScale(1, 10), resource=connections)
    await pool.start()
    jobs = [10.0 + number for number in range(60)]
    for job in jobs:
        await pool.submit(job)
    await asyncio.sleep(1)
    assert pool.stats.wanted_workers == 10
    pool.cancel()
    report = await pool.close()
    assert [entry.job for entry in report.unfinished] == jobs
    assert [entry.started for entry in report.unfinished] == [True] + [False] * 59
    assert (report.abandoned, report.errors) == ((), ())
    assert connections.open == []
    assert connections.left == [1]
    assert now() == 3
    assert pool.stats.workers == 0


@fuzzed
async def test_a_cancel_while_workers_retire_hands_back_the_jobs_and_closes_all() -> None:
    connections = Connections()
    pool = WorkerPool(use, workers=AutoScale(8, 8), resource=connections)
    await pool.start()
    jobs = [10.0 + number for number in range(30)]
    for job in jobs:
        await pool.submit(job)
    await asyncio.sleep(1)
    pool.resize(AutoScale(1, 3))
    pool.cancel()
    report = await pool.close()
    assert [entry.job for entry in report.unfinished] == jobs
    assert [entry.started for entry in report.unfinished] == [True] * 8 + [False] * 22
    assert connections.open == []
    assert sorted(connections.left) == list(range(1, 9))
    assert_conserved(pool)


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1, 0.11, 0.6, 1.0, 1.5, 2.2])
@pytest.mark.parametrize("end", ["drain", "cancel"])
@fuzzed
async def test_whenever_the_end_comes_every_job_has_one_outcome_and_every_resource_is_closed(
    end: str, moment: float
) -> None:
    connections = Connections(0.5)
    policy = AutoScale(0, 6, idle_timeout=0.3)
    pool = WorkerPool(use, workers=policy, resource=connections, queue_size=100)
    await pool.start()
    handles = [await pool.submit(0.2) for _ in range(25)]
    await asyncio.sleep(moment)
    if end == "cancel":
        pool.cancel()
    report = await pool.close()
    assert_conserved(pool)
    assert len(report.unfinished) == pool.stats.cancelled
    assert pool.stats.succeeded + pool.stats.cancelled == 25
    assert end == "cancel" or not report.unfinished
    assert connections.open == []
    assert len(connections.left) == len(set(connections.left)) == connections.entered
    assert all(handle.done() for handle in handles)
    for handle in handles:
        await handle.outcome()


@fuzzed
async def test_nothing_grows_after_the_program_was_left_by_an_exception() -> None:
    handler = ManualHandler[int, None]()
    pool = WorkerPool(handler, workers=AutoScale(1, 10))
    with pytest.raises(LookupError):
        async with pool:
            for job in range(50):
                await pool.submit(job)
            await settle()
            raise LookupError
    assert handler.started == [0]
    assert pool.report is not None
    assert len(pool.report.unfinished) == 50
