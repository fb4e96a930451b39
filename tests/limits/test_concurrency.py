"""Concurrency limits: never more at a time, in order per key, and the slots come back however an attempt ends."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from typing import Any

import pytest

from asyncpool import (
    ConcurrencyLimit,
    Failed,
    JobTimeout,
    PoolDeadlock,
    RateLimit,
    Retry,
    WorkerPool,
    current_job,
)
from asyncpool.testing import ManualHandler, VirtualTimeLoop, run, settle
from tests.engines.memory import InMemory, Portable
from tests.helpers import assert_conserved, echo, fuzzed, ignores_cancel, now, sleeper, virtual
from tests.laws.witness import FACTORIES


class Inside:
    """A handler that counts who is inside, by key."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds
        self.now: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.starts: dict[Any, float] = {}

    async def __call__(self, job: Any) -> Any:
        key = job[0] if isinstance(job, tuple) else None
        self.starts[job] = now()
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now[key] -= 1
        return job


def key_of(job: tuple[Any, ...]) -> Any:
    return job[0]


@virtual
async def test_a_release_gives_back_what_acquire_has_taken_and_no_slot_of_a_job() -> None:
    limit, inside = ConcurrencyLimit(1), Inside()
    async with WorkerPool(inside, workers=3, limiter=limit) as pool:
        handle = await pool.submit(1)
        await settle()
        with pytest.raises(RuntimeError, match=r"no such slot of ConcurrencyLimit\(1\) is held"):
            limit.release()
        await pool.map([2, 3])
        await handle
    assert inside.most[None] == 1
    assert limit.in_use == 0


@pytest.mark.parametrize("hostile", ["raises", "changes"])
@virtual
async def test_a_key_that_cannot_be_forgotten_fails_no_job_of_another_key(
    hostile: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_hostile = False

    class Key:
        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            if is_hostile and self.number == 3:
                if hostile == "raises":
                    raise LookupError("the row is gone")
                return 1_000_003
            return hash(self.number)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.number == other.number

    limits = ConcurrencyLimit.per_key(Key, 1)
    async with WorkerPool(echo, workers=2, limiter=limits) as pool:
        await pool.map(range(10))
        is_hostile = True
        for first in range(100, 1000, 100):
            await pool.map(range(first, first + 100))
        assert len(limits) < 150
    assert "cannot forget an idle key (occurrence 1)" in caplog.text


# -- In the pool, and in several ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
@fuzzed
async def test_never_more_than_that_many_run_and_all_slots_are_used(count: int) -> None:
    inside = Inside()
    async with WorkerPool(inside, workers=8, limiter=ConcurrencyLimit(count)) as pool:
        await pool.map(range(20))
    assert inside.most[None] == count
    assert now() == pytest.approx(-(-20 // count) * 0.1)


@fuzzed
async def test_pools_that_share_a_limit_take_turns() -> None:
    inside = Inside()
    limit = ConcurrencyLimit(2)
    async with (
        WorkerPool(inside, workers=8, queue_size=50, limiter=limit) as first,
        WorkerPool(inside, workers=8, queue_size=50, limiter=[limit, RateLimit(1000, burst=100)]) as second,
    ):
        for number in range(10):
            first.submit_nowait(("first", number))
            second.submit_nowait(("second", number))
        await asyncio.sleep(0.55)
        assert inside.now.total() == 2
        begun = Counter(job[0] for job in inside.starts)
        assert abs(begun["first"] - begun["second"]) <= 2
    assert not limit.in_use
    assert not limit.users


@virtual
async def test_jobs_that_wait_hold_neither_worker_nor_resource_and_others_go_past() -> None:
    held = ManualHandler[tuple[str, int], None]()
    async with WorkerPool(held, workers=3, queue_size=20, limiter=ConcurrencyLimit.per_key(key_of, 1)) as pool:
        for number in range(10):
            pool.submit_nowait(("hot", number))
        pool.submit_nowait(("other", 0))
        await settle()
        stats = pool.stats
        assert (stats.running, stats.delayed, stats.queued) == (2, 9, 0)
        assert_conserved(pool)
        pool.cancel()


@pytest.mark.parametrize("mode", FACTORIES)
def test_jobs_of_a_key_run_one_after_the_other_in_the_order_of_their_acceptance(mode: str) -> None:
    order: dict[str, list[int]] = {}

    async def handler(job: tuple[str, int]) -> None:
        order.setdefault(job[0], []).append(job[1])
        await asyncio.sleep(0.03 / (1 + job[1]))  # later ones take less time

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(FACTORIES[mode])
        limit = ConcurrencyLimit.per_key(key_of, 1)
        async with WorkerPool(handler, workers=5, limiter=limit) as pool:
            await pool.map([(key, number) for number in range(8) for key in "abc"])

    for seed in range(20):
        order.clear()
        run(main, seed=seed)
        assert order == {key: [*range(8)] for key in "abc"}


@virtual
async def test_the_order_of_a_key_holds_when_its_jobs_wait_for_another_limit_too() -> None:
    inside = Inside(0.25)
    limits = [ConcurrencyLimit.per_key(key_of, 1), RateLimit(10)]
    async with WorkerPool(inside, workers=5, limiter=limits) as pool:
        await pool.map([(key, number) for number in range(5) for key in "ab"])
    for key in "ab":
        assert [job for job in inside.starts if job[0] == key] == [(key, number) for number in range(5)]
    assert set(inside.most.values()) == {1}


@virtual
async def test_a_hot_key_delays_no_job_of_another_key_by_more_than_one_jobs_time() -> None:
    """Half of all jobs have one key. The others find a free worker within the time of the job that runs there."""
    inside = Inside(1.0)
    accepted: dict[Any, float] = {}

    def jobs() -> Any:
        for number in range(400):
            yield ("hot", number)
            yield (f"key {number}", 0)

    async with WorkerPool(inside, workers=4, queue_size=0, limiter=ConcurrencyLimit.per_key(key_of, 1)) as pool:
        for job in jobs():
            await pool.submit(job)
            accepted[job] = now()
    waits = [inside.starts[job] - accepted[job] for job in accepted if job[0] != "hot"]
    assert max(waits) <= 1.0
    hot = [inside.starts[job] for job in accepted if job[0] == "hot"]
    assert hot == [float(number) for number in range(400)]  # and it is not held up by the others


@virtual
async def test_a_slot_is_not_held_during_a_backoff() -> None:
    events: list[Any] = []

    async def handler(job: tuple[str, int]) -> None:
        events.append((job[1], current_job().attempt, now()))
        if job[1] == 0 and current_job().attempt == 1:
            raise OSError

    retry = Retry(backoff=1.0, jitter=False)
    async with WorkerPool(handler, workers=2, limiter=ConcurrencyLimit.per_key(key_of, 1), retry=retry) as pool:
        await pool.map([("a", 0), ("a", 1)])
    assert events == [(0, 1, 0.0), (1, 1, 0.0), (0, 2, 1.0)]


# -- However an attempt ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["returns", "raises", "times out", "is cancelled", "exits", "is cancelled at once"])
@pytest.mark.parametrize("mode", FACTORIES)
def test_a_slot_is_given_back_however_an_attempt_ends(how: str, mode: str) -> None:
    async def handler(job: int) -> None:
        if job:
            return
        if how == "raises":
            raise ValueError
        if how == "exits":
            raise SystemExit
        if how != "returns":
            await asyncio.sleep(100)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(FACTORIES[mode])
        limit = ConcurrencyLimit(1)
        async with WorkerPool(handler, workers=2, limiter=limit, timeout=1.0) as pool:
            handle, following = pool.submit_nowait(0), pool.submit_nowait(1)
            if how == "is cancelled":
                await settle()
                assert limit.in_use == 1
            if how.startswith("is cancelled"):
                asyncio.get_running_loop().call_soon(handle.cancel)
            await handle.outcome()
            await following
            assert limit.in_use == 0

    run(main)


@virtual
async def test_a_job_that_is_abandoned_holds_its_slot_until_it_has_ended() -> None:
    limit = ConcurrencyLimit(1)
    pool = WorkerPool(ignores_cancel, workers=1, limiter=limit)
    await pool.start()
    await pool.submit(10)
    await settle()
    report = await pool.close(drain_timeout=0, grace=1)
    assert len(report.abandoned) == 1
    assert limit.in_use == 1  # it still runs
    async with WorkerPool(echo, workers=1, limiter=limit) as other:
        await other.run(1)
        assert now() == 10.0
    assert not limit.in_use


def test_a_keyboard_interrupt_gives_the_slot_back() -> None:
    async def handler(job: int) -> None:
        if job == 1:
            raise KeyboardInterrupt

    async def main() -> None:
        pool = WorkerPool(handler, workers=1, limiter=limit)
        await pool.start()
        pools.append(pool)
        handles.extend(pool.submit_nowait(job) for job in range(4))
        await handles[1].outcome()

    async def go_on() -> None:
        for handle in handles:
            await handle.outcome()
        await pools[0].close()

    limit = ConcurrencyLimit(1)
    pools: list[Any] = []
    handles: list[Any] = []
    loop = VirtualTimeLoop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    loop.run_until_complete(go_on())
    assert pools[0].stats.succeeded == 3
    assert not limit.in_use
    loop.close()


def test_a_task_factory_that_raises_gives_the_slot_back() -> None:
    async def main() -> None:
        loop, failures = asyncio.get_running_loop(), 1
        limit = ConcurrencyLimit(1)

        def factory(loop: Any, coro: Any, **options: Any) -> Any:
            nonlocal failures
            if "_attempt" in coro.__qualname__ and failures:
                failures -= 1
                raise RuntimeError("no task")
            return asyncio.Task(coro, loop=loop, **options)

        loop.set_task_factory(factory)
        async with WorkerPool(echo, workers=1, limiter=limit) as pool:
            failed, following = pool.submit_nowait(0), pool.submit_nowait(1)
            assert isinstance(await failed.outcome(), Failed)
            assert await following == 1
        assert not limit.in_use

    run(main)


@virtual
async def test_with_an_engine_the_slots_stay_in_the_program() -> None:
    limit = ConcurrencyLimit(2)
    engine = InMemory(2)
    async with WorkerPool(Portable(sleeper), workers=6, limiter=limit, engine=engine) as pool:
        began = now()
        handles = [pool.submit_nowait(1.0) for _ in range(6)]
        await asyncio.sleep(0.5)
        assert limit.in_use == 2
        assert pool.stats.running == 2
        for handle in handles:
            await handle
        assert now() - began >= 3.0
    assert not limit.in_use


# -- Outside of a pool -------------------------------------------------------------------------------------------------


@fuzzed
async def test_code_without_a_pool_takes_turns_with_the_pools() -> None:
    inside = Inside()
    limit = ConcurrencyLimit(2)

    async def caller(number: int) -> None:
        async with limit:
            await inside(("caller", number))

    async with WorkerPool(inside, workers=4, queue_size=50, limiter=limit) as pool:
        tasks = []
        for number in range(6):
            pool.submit_nowait(("job", number))
            tasks.append(asyncio.create_task(caller(number)))
        for task in tasks:
            await task
    assert now() == pytest.approx(0.6)
    assert not limit.in_use


@virtual
async def test_the_line_is_first_come_first_served() -> None:
    limit = ConcurrencyLimit(1)
    order: list[str] = []

    async def caller(name: str) -> None:
        async with limit:
            order.append(name)
            await asyncio.sleep(1)

    async def handler(job: str) -> None:
        order.append(job)
        await asyncio.sleep(1)

    async with WorkerPool(handler, workers=2, limiter=limit) as pool:
        tasks = []
        for name in "abc":
            tasks.append(asyncio.create_task(caller(name)))
            await settle()
        handle = pool.submit_nowait("job")
        await settle()
        tasks.append(asyncio.create_task(caller("d")))
        await handle
        await asyncio.wait(tasks)
    assert order == ["a", "b", "c", "job", "d"]


@pytest.mark.parametrize("turns", range(5))
def test_a_cancelled_acquire_holds_no_slot(turns: int) -> None:
    async def main() -> None:
        limit = ConcurrencyLimit(1)
        await limit.acquire()
        first, second = asyncio.create_task(limit.acquire()), asyncio.create_task(limit.acquire())
        await settle()
        assert limit.users == 2
        limit.release()
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        if not first.cancelled():
            limit.release()
        await second
        assert limit.in_use == 1
        limit.release()
        assert not limit.users

    run(main)


def test_a_slot_that_is_not_held_cannot_be_released() -> None:
    with pytest.raises(RuntimeError, match=r"no such slot of ConcurrencyLimit\(3\) is held"):
        ConcurrencyLimit(3).release()


@pytest.mark.parametrize(
    ("count", "kind", "said"),
    [
        (0, ValueError, "count must be >= 1, got 0"),
        (1.5, TypeError, "count must be an int, got 1.5"),
        (True, TypeError, ""),
    ],
)
def test_the_limit_says_the_rule_and_the_value(count: Any, kind: type[Exception], said: str) -> None:
    for make in (ConcurrencyLimit, lambda count: ConcurrencyLimit.per_key(str, count), ConcurrencyLimit(1).change):
        with pytest.raises(kind) as raised:
            make(count)
        assert said in str(raised.value)
    with pytest.raises(TypeError, match="key must be callable, got 'host'"):
        ConcurrencyLimit.per_key("host", 1)  # type: ignore[arg-type]


def test_limits_show_what_they_are() -> None:
    assert repr(ConcurrencyLimit(3)) == "ConcurrencyLimit(3)"
    assert repr(ConcurrencyLimit.per_key(str, 3)) == "<ConcurrencyLimit(3) for each of 0 keys>"


@virtual
async def test_a_change_lets_more_start_at_once_or_fewer_from_now_on() -> None:
    inside = Inside(1.0)
    limit = ConcurrencyLimit(1)
    async with WorkerPool(inside, workers=8, queue_size=50, limiter=limit) as pool:
        handles = [pool.submit_nowait(job) for job in range(12)]
        await asyncio.sleep(0.5)
        limit.change(4)
        await settle()
        assert inside.now[None] == 4
        limit.change(2)
        await asyncio.sleep(0.8)
        assert inside.now[None] == 3  # three run on
        await asyncio.sleep(0.5)
        assert inside.now[None] == 2
        for handle in handles:
            await handle


# -- Keys --------------------------------------------------------------------------------------------------------------


@virtual
async def test_idle_keys_are_forgotten() -> None:
    limits = ConcurrencyLimit.per_key(key_of, 1)
    async with WorkerPool(Inside(0.01), workers=10, limiter=limits) as pool:
        for number in range(2000):
            await pool.submit((number,))
            assert len(limits) <= 200
        await pool.join()
    async with limits((0,)):
        for number in range(1000):
            limits((number,))
        assert limits((0,)).in_use == 1  # one that is held is not
    limits((1,)).change(5)
    for number in range(1000):
        limits((number,))
    assert repr(limits((1,))) == "ConcurrencyLimit(5)"


@pytest.mark.parametrize("make", [ConcurrencyLimit.per_key, RateLimit.per_key])
@virtual
async def test_a_limit_that_somebody_holds_is_not_forgotten(make: Any) -> None:
    limits = make(str, 1)
    limit = limits("mine")
    for number in range(1000):
        limits(number)
    assert limits("mine") is limit
    del limit
    gc.collect()
    for number in range(1000):
        limits(number)
    assert len(limits) <= 64 + 1


@virtual
async def test_a_key_whose_lookup_looks_keys_up_again_has_one_limit() -> None:
    limits: Any = None
    depth = 0

    class Key:
        def __init__(self, name: str) -> None:
            self.name = name

        def __hash__(self) -> int:
            nonlocal depth
            if depth < 1:
                depth += 1
                limits(Key("other"))
                depth -= 1
            return 1

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.name == other.name

    limits = ConcurrencyLimit.per_key(lambda key: key, 1)
    assert limits(Key("a")) is limits(Key("a"))


# -- Deadlocks ---------------------------------------------------------------------------------------------------------


@fuzzed
async def test_a_job_that_waits_for_a_job_of_its_own_key_is_a_deadlock() -> None:
    async def handler(job: tuple[str, str]) -> str:
        if job[1] == "child":
            return "done"
        handle = await pool.submit((job[0], "child"))
        with pytest.raises(PoolDeadlock) as raised:
            await handle
        assert str(raised.value) == (
            "pool 'pool': 1 running job holds slots of a ConcurrencyLimit and waits for jobs that need them; "
            "this wait, the newest, was ended so that the others can go on"
        )
        children.append(handle)
        return "parent"

    children: list[Any] = []
    async with WorkerPool(handler, workers=5, limiter=ConcurrencyLimit.per_key(key_of, 1)) as pool:
        assert await pool.run(("a", "parent")) == "parent"
        assert await children[0] == "done"


@fuzzed
async def test_two_jobs_that_wait_for_each_others_keys_are_a_deadlock_and_one_wait_is_ended() -> None:
    ended = 0

    async def handler(job: tuple[str, str]) -> None:
        nonlocal ended
        if job[1] == "parent":
            await asyncio.sleep(1)  # until both hold their keys
            try:
                await pool.run(("b" if job[0] == "a" else "a", "child"))
            except PoolDeadlock:
                ended += 1

    async with WorkerPool(handler, workers=5, limiter=ConcurrencyLimit.per_key(key_of, 1)) as pool:
        await pool.map([("a", "parent"), ("b", "parent")])
    assert ended == 1


@pytest.mark.parametrize("who", ["another pool", "code", "a job that goes on", "a rate"])
@fuzzed
async def test_a_wait_for_a_slot_that_somebody_else_releases_is_no_deadlock(who: str) -> None:
    limit = ConcurrencyLimit(2)
    first = who == "a rate"

    async def handler(job: str) -> str:
        if job == "parent":
            await asyncio.sleep(1)
            return await pool.run("child")
        if job == "busy":
            await asyncio.sleep(5)
        return job

    limiter: Any = [RateLimit(0.2), limit] if first else limit
    async with (
        WorkerPool(handler, workers=5, limiter=limiter) as pool,
        WorkerPool(sleeper, workers=1, limiter=limit) as other,
    ):
        parent = await pool.submit("parent")
        await settle()
        busy = None
        if who == "another pool":
            busy = await other.submit(5)
        elif who == "a job that goes on":
            busy = await pool.submit("busy")
        elif who == "code":
            await limit.acquire()
            asyncio.get_running_loop().call_later(5, limit.release)
        assert await parent == "child"
        assert now() == 5.0
        if busy is not None:
            await busy


@virtual
async def test_a_job_that_is_timed_out_after_a_deadlock_leaves_its_key_to_the_next() -> None:
    async def handler(job: tuple[str, int]) -> None:
        if job[1] == 0:
            await asyncio.sleep(100)

    async with WorkerPool(handler, workers=3, timeout=1.0, limiter=ConcurrencyLimit.per_key(key_of, 1)) as pool:
        first, second = await pool.outcomes([("a", 0), ("a", 1)], ordered=True)
    assert isinstance(first, Failed)
    assert isinstance(first.error, JobTimeout)
    assert second.seconds_queued == pytest.approx(1.0)


# -- Memory ------------------------------------------------------------------------------------------------------------


def test_a_pool_keeps_nothing_of_keys_that_are_done() -> None:
    async def main() -> None:
        limits = ConcurrencyLimit.per_key(lambda job: job, 1)
        async with WorkerPool(echo, workers=10, limiter=limits) as pool:
            await pool.outcomes(range(2000))
            gc.collect()
            before = sys.getallocatedblocks()
            await pool.outcomes(range(2000, 20_000))
            gc.collect()
            assert sys.getallocatedblocks() - before < 18_000 * 2  # the outcomes of the list are gone
            lanes = pool._parts.lanes
            assert lanes is not None
            for kept in (lanes._lanes, lanes._places, lanes._parked, lanes._released, lanes._claims, lanes._held):
                assert not kept

    asyncio.run(main())
