"""`Adaptive`: what it finds, what it is not fooled by, and what it says about it. All on virtual time."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

from asyncpool import Adaptive, JobTimeout, PoolLoad, QueueFull, RateLimit, RetryAfter, WorkerPool
from asyncpool.events import Event, PoolResized
from asyncpool.scaling import Decide, Decision
from asyncpool.testing import run
from tests.scaling.tools import timers

Handler = Callable[[int], Awaitable[None]]


class Servers:
    """A number of servers with one queue, as a handler; each job takes one of them for about 50 ms."""

    def __init__(self, capacity: int, *, seconds: float = 0.05, seed: int = 1) -> None:
        self.capacity = capacity
        self.seconds = seconds
        self.random = Random(seed)
        self.done = 0
        self.inside = 0
        self._served = 0
        self._freed = asyncio.Condition()

    async def __call__(self, job: int) -> None:
        self.inside += 1
        try:
            async with self._freed:
                await self._freed.wait_for(lambda: self._served < self.capacity)
                self._served += 1
            try:
                await asyncio.sleep(self.seconds * self.random.lognormvariate(-0.11, 0.47))
                self.done += 1
            finally:
                async with self._freed:
                    self._served -= 1
                    self._freed.notify()
        finally:
            self.inside -= 1


class Watch:
    """A pool with a backlog that never ends, and what its policy does."""

    def __init__(self, policy: Any, handler: Handler, **options: Any) -> None:
        self.events: list[PoolResized] = []
        self.pool: WorkerPool[int, None] = WorkerPool(handler, workers=policy, observers=[self._see], **options)

    def _see(self, event: Event) -> None:
        if isinstance(event, PoolResized):
            self.events.append(event)

    @property
    def workers(self) -> int:
        return self.pool.stats.target_workers

    async def mean_workers(self, seconds: float) -> float:
        """The mean over some seconds from now on: single experiments do not matter."""
        seen = []
        for _ in range(round(seconds / 0.1)):
            await asyncio.sleep(0.1)
            seen.append(self.workers)
        return sum(seen) / len(seen)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.pool:

            async def bring() -> None:
                number = 0
                while True:
                    await self.pool.submit(number)
                    number += 1

            bringer = asyncio.create_task(bring())
            try:
                yield
            finally:
                bringer.cancel()
                await asyncio.wait([bringer])
                await self.pool.close(drain_timeout=0.0)


@pytest.mark.parametrize("capacity", [3, 20])
def test_it_finds_how_many_jobs_the_backend_serves_at_a_time(capacity: int) -> None:
    async def main() -> None:
        servers = Servers(capacity)
        watch = Watch(Adaptive(1, 200), servers)
        async with watch.running():
            await asyncio.sleep(15)
            done = servers.done
            assert 0.85 * capacity <= await watch.mean_workers(15) <= 2 * capacity
            assert (servers.done - done) / 15 >= 0.93 * capacity / 0.05

    run(main())


@pytest.mark.parametrize(("before", "after"), [(20, 10), (10, 20), (16, 4), (4, 16)])
def test_it_follows_a_backend_whose_capacity_changes(before: int, after: int) -> None:
    async def main() -> None:
        servers = Servers(before)
        watch = Watch(Adaptive(1, 200), servers)
        async with watch.running():
            await asyncio.sleep(15)
            servers.capacity = after
            await asyncio.sleep(10)
            done = servers.done
            assert await watch.mean_workers(10) <= 3 * after
            assert (servers.done - done) / 10 >= 0.92 * after / 0.05

    run(main())


def test_it_does_not_grow_while_the_pool_is_not_busy() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(2, 50), Servers(20))
        async with watch.pool:
            for _ in range(300):
                await watch.pool.run(0)
        assert watch.events == []

    run(main())


def test_it_does_not_grow_while_a_rate_limit_is_what_holds_jobs_back() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(4, 50), Servers(20), limiter=RateLimit(20))
        async with watch.running():
            await asyncio.sleep(30)
            assert watch.workers == 4

    run(main())


def test_it_does_not_grow_while_workers_wait_for_their_resource() -> None:
    opened = 0

    @asynccontextmanager
    async def connect() -> AsyncIterator[None]:
        nonlocal opened
        opened += 1
        if opened > 4:
            raise ConnectionError("too many connections")
        yield

    async def main() -> None:
        servers = Servers(20)

        async def handler(job: int, connection: None) -> None:
            await servers(job)

        events: list[Event] = []
        pool = WorkerPool(handler, workers=Adaptive(1, 50), resource=connect, observers=[events.append])
        async with pool:
            stream = asyncio.create_task(_read(pool, 3000))
            await asyncio.sleep(20)
            assert pool.stats.workers == 4
            assert pool.stats.target_workers <= 8
            await stream

    async def _read(pool: WorkerPool[int, None], count: int) -> None:
        async for outcome in pool.outcomes(range(count)):
            outcome.unwrap()

    run(main())


@pytest.mark.parametrize(
    "kind", ["RetryAfter", "a group", "JobTimeout", "a type of the user", "a predicate of the user"]
)
def test_overload_errors_end_its_growth(kind: str) -> None:
    class TooMuch(Exception):
        pass

    overload: Any = {"a type of the user": TooMuch, "a predicate of the user": lambda error: str(error) == "too much"}

    async def main() -> None:
        inside = overloads = calls = 0

        async def handler(job: int) -> None:
            nonlocal inside, overloads, calls
            calls += 1
            inside += 1
            try:
                if inside > 8:
                    overloads += 1
                    await asyncio.sleep(0.01)
                    if kind == "RetryAfter":
                        raise RetryAfter(0.1) from ConnectionError("429")
                    if kind == "a group":
                        raise ExceptionGroup("", [RetryAfter(0.1), ValueError()])
                    if kind == "JobTimeout":
                        await asyncio.sleep(10)
                    raise TooMuch("too much")
                await asyncio.sleep(0.05)
            finally:
                inside -= 1

        timeout = 0.2 if kind == "JobTimeout" else None
        watch = Watch(Adaptive(1, 100, overload=overload.get(kind, ())), handler, timeout=timeout)
        async with watch.running():
            await asyncio.sleep(20)
            calls = overloads = 0
            assert 6 <= await watch.mean_workers(20) <= 9
            assert overloads <= 0.02 * calls

    run(main())


def test_failures_that_have_nothing_to_do_with_the_load_do_not_make_it_shrink() -> None:
    async def main() -> None:
        servers = Servers(16)
        random = Random(5)

        async def handler(job: int) -> None:
            if random.random() < 0.05:
                raise RetryAfter(0.1) from ConnectionError("whatever you do")
            await servers(job)

        watch = Watch(Adaptive(1, 100), handler)
        async with watch.running():
            await asyncio.sleep(30)
            assert await watch.mean_workers(30) >= 13

    run(main())


def test_an_outage_makes_it_back_off_and_it_comes_back() -> None:
    async def main() -> None:
        servers = Servers(16)
        is_out = False

        async def handler(job: int) -> None:
            if is_out:
                await asyncio.sleep(60)
            await servers(job)

        watch = Watch(Adaptive(2, 100), handler, timeout=1.0)
        async with watch.running():
            await asyncio.sleep(20)
            assert watch.workers >= 12
            is_out = True
            await asyncio.sleep(60)
            assert watch.workers == 2
            is_out = False
            await asyncio.sleep(30)
            assert await watch.mean_workers(10) >= 12

    run(main())


def test_it_stays_within_its_bounds() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(5, 9), Servers(20))
        async with watch.running():
            await asyncio.sleep(20)
            assert watch.workers == 9
        assert {event.new for event in watch.events} <= set(range(5, 10))
        alone = Watch(Adaptive(3, 3), Servers(20))
        async with alone.running():
            await asyncio.sleep(5)
        assert alone.events == []

    run(main())


def test_it_begins_with_the_workers_that_there_are() -> None:
    async def main() -> None:
        watch = Watch(18, Servers(20))
        async with watch.running():
            await asyncio.sleep(1)
            watch.pool.resize(Adaptive(1, 50))
            assert watch.workers == 18
            watch.pool.resize(Adaptive(1, 10))
            assert watch.workers == 10

    run(main())


def test_each_decision_says_what_it_was_made_on() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(1, 60), Servers(8))
        async with watch.running():
            await asyncio.sleep(20)
        assert len(watch.events) > 8
        for event in watch.events:
            assert event.reason.isascii()
            assert any(character.isdigit() for character in event.reason)
            assert event.load is not None
            assert event.load.workers == event.old
        measured = [event for event in watch.events if event.figures]
        assert any(-1 < event.figures["elasticity"] < 2 and event.figures["throughput"] > 0 for event in measured)
        assert watch.events[0].reason.endswith("tries 2")

    run(main())


# -- When the load is gone -----------------------------------------------------------------------------------------


async def work_off(pool: WorkerPool[int, None], jobs: int) -> None:
    async for outcome in pool.outcomes(range(jobs)):
        outcome.unwrap()


@pytest.mark.parametrize("idle_timeout", [5.0, 30.0])
def test_idle_workers_retire_and_what_was_learned_is_back_at_once_when_the_load_is(idle_timeout: float) -> None:
    async def main() -> None:
        time = asyncio.get_running_loop().time
        held = 0

        @asynccontextmanager
        async def connect() -> AsyncIterator[None]:
            nonlocal held
            held += 1
            yield
            held -= 1

        servers = Servers(20)

        async def handler(job: int, connection: None) -> None:
            await servers(job)

        watch = Watch(Adaptive(1, 200, idle_timeout=idle_timeout), handler, resource=connect)
        async with watch.pool as pool:
            await work_off(pool, 5000)
            learned = watch.workers
            assert learned >= 16
            await asyncio.sleep(idle_timeout - 1.0)
            assert held == learned
            await asyncio.sleep(2.0)
            assert (watch.workers, held) == (1, 1)
            assert "idle for" in watch.events[-1].reason
            await asyncio.sleep(1000)
            begun, events = time(), len(watch.events)
            await work_off(pool, 200)
            assert time() - begun < 1.3 * 200 / 20 * 0.05
            assert max(event.new for event in watch.events[events:]) >= 0.8 * learned
            assert "were learned" in watch.events[events].reason

    run(main())


def test_as_many_workers_stay_as_a_light_load_needs_and_come_back_as_there_are_jobs_for_them() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(1, 200, idle_timeout=5.0), Servers(20))
        async with watch.pool as pool:
            await work_off(pool, 5000)
            for _ in range(100):
                await asyncio.gather(*(pool.run(0) for _ in range(3)))
                await asyncio.sleep(0.2)
            assert watch.workers == 3
            await asyncio.gather(*(pool.run(0) for _ in range(7)))
            assert 3 < watch.workers <= 7

    run(main())


def test_rejected_jobs_bring_the_workers_back_too() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(1, 200, idle_timeout=5.0), Servers(20), queue_size=0)
        async with watch.pool as pool:
            await work_off(pool, 5000)
            await asyncio.sleep(20)
            assert watch.workers == 1
            for _ in range(100):
                for _ in range(10):
                    with suppress(QueueFull):
                        pool.submit_nowait(0)
                await asyncio.sleep(0.05)
            assert watch.workers >= 8

    run(main())


def test_an_idle_pool_is_left_alone_once_its_workers_have_retired() -> None:
    async def main() -> None:
        watch = Watch(Adaptive(2, 200), Servers(20))
        async with watch.pool as pool:
            await work_off(pool, 3000)
            await asyncio.sleep(100)
            assert watch.workers == 2
            assert timers() == []

    run(main())


# -- As a function of its input ------------------------------------------------------------------------------------


def busy(load_now: float, workers: int, seconds: float, *, count: int = 50, **more: Any) -> PoolLoad:
    """All workers have been busy, with attempts of this length."""
    return PoolLoad(
        now=load_now,
        elapsed=0.1,
        workers=workers,
        running=workers,
        peak_running=workers,
        queued=1000,
        succeeded=count,
        seconds=(seconds,) * count,
        **more,
    )


def walk(decide: Decide, seconds: Callable[[int], float], looks: int, workers: int = 1) -> list[int]:
    """The numbers it asks for, of a backend whose running time depends on the number."""
    numbers = []
    for look in range(looks):
        workers = decide(busy(look * 0.1, workers, seconds(workers))).workers
        numbers.append(workers)
    return numbers


def test_the_same_loads_give_the_same_decisions() -> None:
    policy = Adaptive(1, 100)
    first, second = (walk(policy.start(), lambda n: max(1, n / 8), 200) for _ in range(2))
    assert first == second
    assert max(first) > 8


def test_what_it_remembers_is_bounded() -> None:
    decide = Adaptive(1, 8).start()
    for look in range(200):
        workers = decide(busy(look * 0.1, 8, 0.001 * Random(look).random(), count=4096)).workers
    assert 1 <= workers <= 8
    assert len(pickle.dumps(vars(decide))) < 100_000


def test_running_times_that_nobody_can_measure_do_no_harm() -> None:
    assert max(walk(Adaptive(1, 64).start(), lambda n: 0.0, 300)) <= 64


def test_it_forgets_what_was_measured_before_a_long_pause() -> None:
    decide = Adaptive(1, 64).start()
    walk(decide, lambda n: max(1, n / 8), 300)
    answer = decide(PoolLoad(now=40.0, workers=8))
    assert isinstance(answer, Decision)
    again = decide(busy(1000.0, 8, 1.0))
    assert "measures again after a pause" in again.reason


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, 5), ValueError, "min_workers must be >= 1, got 0"),
        ((5, 4), ValueError, "max_workers must be >= min_workers, got 4 < 5"),
        (("1", 5), TypeError, "min_workers must be an int, got '1'"),
        ((1, True), TypeError, "max_workers must be an int, got True"),
    ],
)
def test_bad_bounds_are_refused(arguments: tuple[Any, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Adaptive(*arguments)


def test_a_bad_overload_is_refused() -> None:
    with pytest.raises(TypeError, match="overload must be an exception type"):
        Adaptive(1, 2, overload="429")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="interval must be a finite number of seconds > 0, got 0"):
        Adaptive(1, 2, interval=0)


def test_a_bad_idle_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match="idle_timeout must be a finite number of seconds >= 0, got -1"):
        Adaptive(1, 2, idle_timeout=-1)


def test_a_policy_is_a_value() -> None:
    policy = Adaptive(1, 20, overload=JobTimeout)
    assert policy == Adaptive(1, 20, overload=JobTimeout)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(Adaptive(1, 20, overload=JobTimeout))
