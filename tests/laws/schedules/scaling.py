"""Scenarios of scaling: pools that grow, shrink and sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio

from asyncpool import Adaptive, AutoScale, Decision, JobCancelled, PoolDeadlock, PoolLoad, Retry, WorkerPool
from asyncpool.events import PoolResized
from asyncpool.testing import settle
from tests.laws.schedules.tools import (
    Doors,
    Rogue,
    all_done,
    any_size,
    pass_time,
    patience,
    policies,
    read_all,
    scenario,
    turns,
    whim,
)
from tests.laws.witness import KINDS, RETRIED, Item, Witness, busy, ended, gather_all, spawn


@scenario
async def a_pool_without_workers_is_woken(witness: Witness, random: Random) -> None:
    """By whatever brings a job, in this very moment, and not at the next tick."""
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"resource": Doors(random)} if random.random() < 0.4 else {}
    pool = witness.make_pool(
        workers=random.choice((AutoScale(0, 3, interval=1.0, idle_timeout=0.02), busy)),
        queue_size=random.choice((0, 0, 1, 5)),
        retry=Retry(attempts=2, backoff=10.0, max_backoff=10.0, jitter=False),
        **options,
    )
    async with pool:
        for _ in range(4):
            await asyncio.sleep(3.0)
            assert (pool.stats.target_workers, pool.stats.workers) == (0, 0)
            now = loop.time()
            items = witness.items(random.choice((1, 1, 4)), "ok", "turn")
            tasks: list[asyncio.Task[Any]] = []
            match random.randint(0, 5):
                case 0:
                    tasks = [spawn(witness.submit(item)) for item in items]
                case 1:
                    witness.submit_nowait(items[0])
                case 2:
                    tasks = [spawn(read_all(pool.outcomes(witness.any_source(items))))]
                case 3:
                    witness.others += 1
                    assert await pool.run(items[0]) == items[0].n
                case 4:
                    pool.pause()
                    tasks = [spawn(witness.submit(item)) for item in items]
                    await settle()
                    pool.resume()
                case 5:
                    handle = await witness.submit(witness.item("flaky1"))
                    await asyncio.sleep(5.0)
                    assert pool.stats.target_workers == 0
                    await handle.outcome()
                    now += 10.0
            await settle()
            witness.check_settled()
            assert all(task.done() for task in tasks)
            assert (pool.stats.queued, pool.stats.delayed, pool.stats.running) == (0, 0, 0)
            assert loop.time() == now
    assert not (await witness.check_end())


@scenario
async def a_job_comes_while_the_pool_falls_asleep(witness: Witness, random: Random) -> None:
    """In the very step: from who observes it, from the policy that says so, or asked for its priority."""
    left = random.randint(1, 3)
    how = random.choice(("observer", "policy", "priority"))

    def bring(what: str) -> None:
        nonlocal left
        if left and how == what:
            left -= 1
            witness.handles.append(pool.submit_nowait(witness.item("ok", "nap")))

    def drowsy(load: PoolLoad) -> int:
        if load.succeeded and not load.running:
            bring("policy")
        return load.running

    def key(item: Item) -> int:
        if how == "priority":
            witness.resize(drowsy)
        return item.n

    def observe(event: object) -> None:
        if isinstance(event, PoolResized) and event.new == 0:
            bring("observer")

    options: dict[str, Any] = {"observe": True, "observers": [observe]} if how == "observer" else {}
    if how == "priority":
        options["priority"] = key
    asleep = AutoScale(0, 2, interval=0.01, idle_timeout=0.0)
    pool = witness.make_pool(workers=random.choice((asleep, drowsy)), queue_size=2, **options)
    async with pool:
        for _ in range(3):
            await witness.submit(witness.item("ok", "nap", "turn"))
            for _ in range(4):
                await pass_time(random)
                await settle()
                witness.check_settled()
        await all_done(pool)
    assert not (await witness.check_end())


@scenario
async def stop_arrives_while_the_pool_grows(witness: Witness, random: Random) -> None:
    """With resources that are just being entered, and others that cannot be."""
    doors = Doors(random, failing=0.2, slow=0.7)
    policy = AutoScale(random.randint(0, 1), 4, backlog_per_worker=0.5, interval=0.001, idle_timeout=0.01)
    pool = witness.make_pool(
        workers=policy if random.random() < 0.8 else policies(random),
        queue_size=random.choice((0, 3, 9)),
        resource=doors,
        retry=random.choice((None, patience(random))),
    )
    await pool.start()
    tasks = [spawn(witness.submit(witness.item(*KINDS, *RETRIED))) for _ in range(9)]
    await pass_time(random)
    await pass_time(random)
    how = random.choice(("drain", "cancel", "close", "close cancelled"))
    if how in ("drain", "cancel"):
        getattr(pool, how)()
        await pass_time(random)
        await pool.close(drain_timeout=random.choice((0.0, 0.3, 3.0)), grace=1.0)
    elif how == "close":
        await pool.close(drain_timeout=random.choice((0.0, 0.3, 3.0)), grace=1.0)
    else:
        witness.may_abandon = True
        closer = spawn(pool.close())
        await pass_time(random)
        for _ in range(2):
            closer.cancel()
            await turns(random, 3)
        await ended(closer)
        if (
            pool.report is None
        ):  # it was cancelled before its first step, or cancelled once: the other was one too early
            await pool.close(drain_timeout=0.0, grace=0.0)
    await ended(*tasks)
    await witness.check_end()
    await asyncio.sleep(2.0)  # what was abandoned ends
    assert doors.held == 0
    assert witness.active == 0


@scenario
async def the_pool_shrinks_while_its_jobs_end(witness: Witness, random: Random) -> None:
    """In the same moments: the policy is asked each millisecond, and jobs take some of these."""
    options: dict[str, Any] = {"resource": Doors(random), "recycle_on": ValueError} if random.random() < 0.4 else {}
    policy = AutoScale(random.randint(0, 1), 4, backlog_per_worker=0.5, interval=0.001, idle_timeout=0.0)
    queue_size = random.choice((0, 1, 9))
    async with witness.make_pool(workers=policy, queue_size=queue_size, **options) as pool:
        for _ in range(3):
            tasks = [spawn(witness.submit(witness.item("nap", "nap", "ok", "turn_fail"))) for _ in range(7)]
            for _ in range(4):
                await asyncio.sleep(random.choice((0.0, 0.001, 0.002)))
                if random.random() < 0.3:
                    witness.resize(whim(random, 4) if random.random() < 0.5 else policy)
                witness.check()
            await settle()
            witness.check_settled()
            await ended(*tasks)
            await pool.join()
        if policy.min_workers == 0:
            witness.resize(policy)
            await asyncio.sleep(1.0)
            assert (pool.stats.target_workers, pool.stats.workers) == (0, 0)
    assert not (await witness.check_end())


@scenario
async def a_backlog_wakes_the_policy_before_its_interval_is_over(witness: Witness, random: Random) -> None:
    """However it comes, and however the pool that gets it is: awake, asleep, or about to be."""
    number = random.randint(0, 3)
    asked: list[PoolLoad] = []
    loop = asyncio.get_running_loop()

    def steady(load: PoolLoad) -> Decision:
        asked.append(load)
        return Decision(1, "steady", ask_again_at_backlog=number)

    policy = Rogue(steady, interval=50.0)
    queue_size = random.choice((0, 2, 5))
    async with witness.make_pool(workers=policy, queue_size=queue_size, retry=patience(random)) as pool:
        for _ in range(5):
            await asyncio.sleep(random.choice((0.0, 6.0, 30.0, 49.999, 200.0)))
            while loop.time() < asked[-1].now + 5.0:
                await asyncio.sleep(1.0)
            count, begun = len(asked), loop.time()
            submitters = []
            for _ in range(number + 2):  # one begins, and one is too many
                submitters.append(spawn(witness.submit(witness.item("hang"))))
                await turns(random, 3)
                if random.random() < 0.2 and witness.handles:  # leaves a tombstone, or frees the worker
                    random.choice(witness.handles).cancel()
            await settle()
            backlog = pool.stats.queued + pool.waiting_submitters
            if backlog > number:
                await asyncio.sleep(0.01)
                assert len(asked) > count, (backlog, number)
                assert asked[-1].now <= begun + 0.01
            for _ in range(number + 3):  # who waits for room gets it, one after the other
                for handle in witness.handles:
                    handle.cancel()
                await settle()
            await ended(*submitters)
    await witness.check_end()


@scenario
async def adaptive_rests_and_comes_back(witness: Witness, random: Random) -> None:
    """Between its bounds, down to the least when nothing happens, and up again as there are jobs that wait."""
    least = random.randint(1, 2)
    most = random.randint(least, 6)
    options: dict[str, Any] = {"resource": Doors(random)} if random.random() < 0.4 else {}
    policy = Adaptive(least, most, interval=random.choice((0.001, 0.02)), idle_timeout=random.choice((0.0, 0.5)))
    queue_size = random.choice((0, 3, None))
    async with witness.make_pool(workers=policy, queue_size=queue_size, retry=patience(random), **options) as pool:
        for _ in range(3):
            items = witness.items(random.choice((2, 40)), "ok", "turn", "nap")
            reader = spawn(read_all(pool.outcomes(witness.any_source(items))))
            for _ in range(3):
                await pass_time(random)
                await settle()
                witness.check_settled()
                assert least <= pool.stats.target_workers <= most
            await ended(reader)
            assert len(reader.result()) == len(items)
            await asyncio.sleep(random.choice((0.1, 20.0, 100.0)))
            if random.random() < 0.3:
                pool.pause()
                await pass_time(random)
                pool.resume()
        await asyncio.sleep(20.0)
        assert pool.stats.target_workers == least
        witness.check_timers()
    assert not (await witness.check_end())


@scenario
async def jobs_that_wait_for_their_own_pool_make_it_grow(witness: Witness, random: Random) -> None:
    """To the most that there may be, and not at a tick. Only then some wait ends with PoolDeadlock."""
    most = random.randint(1, 4)
    policy: Any = random.choice(
        (
            AutoScale(random.randint(0, 1), most, interval=1000.0),
            Adaptive(1, most, interval=1000.0),
            Rogue(lambda _: Decision(1)),
            lambda load: min(4, load.running + load.backlog + 1),
        )
    )
    most = getattr(policy, "max_workers", 4)
    opens = Doors(random) if random.random() < 0.3 else None

    async def handler(depth: int, resource: object = None) -> int:
        await turns(random, 2)
        if depth == 0:
            return 1
        match random.randint(0, 3):
            case 0:
                return 1 + await pool.run(depth - 1)
            case 1:
                return 1 + (await pool.map([depth - 1]))[0]
            case 2:
                async with pool.group(window=2) as group:
                    await group.submit(depth - 1)
                    group.close_intake()
                    [outcome] = [outcome async for outcome in group]
                    return 1 + outcome.unwrap()
            case _:
                handle = await pool.submit(depth - 1)
                try:
                    return 1 + await handle
                except PoolDeadlock:
                    handle.cancel()
                    raise

    pool: WorkerPool[int, int]
    options: dict[str, Any] = {} if opens is None else {"resource": opens}
    async with WorkerPool(handler, workers=policy, queue_size=random.choice((0, 1, 5)), **options) as pool:
        witness.pool = pool
        how = random.choice(("alone", "together", "resized"))
        depth = random.randint(0, most)
        if how == "alone":  # it gets a worker for each level
            for result in await gather_all(pool.run(depth)):
                if depth < most:
                    assert result == depth + 1, result
                else:
                    assert isinstance(result, PoolDeadlock), result
        else:
            tasks = [spawn(pool.run(random.randint(0, 3))) for _ in range(5)]
            if how == "resized":  # whatever the most is now: nothing hangs
                for _ in range(4):
                    await turns(random, 6)
                    size = any_size(random)
                    pool.resize(size)
                    # The maximum of a function is what it answered last, and it may answer more until we look again.
                    most = max(most, 4 if size is busy else pool.stats.max_workers)
            await ended(*tasks)
            is_deadlock = [isinstance(task.exception(), (PoolDeadlock, JobCancelled)) for task in tasks]
            for task, failed in zip(tasks, is_deadlock, strict=True):
                assert failed or task.result() > 0
            assert how == "resized" or pool.stats.peak_running == most or not any(is_deadlock)
        await pool.join()
        assert asyncio.get_running_loop().time() < 10.0
    stats = pool.stats
    assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled
    assert stats.peak_running <= max(most, stats.max_workers)
    witness.check_timers()


@scenario
async def resources_fail_to_open_while_the_pool_scales(witness: Witness, random: Random) -> None:
    doors = Doors(random, failing=0.6, slow=0.3)
    dying: list[anyio.CancelScope] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        async with doors() as number:
            if random.random() < 0.5:
                yield number
            else:
                async with anyio.create_task_group() as group:
                    dying.append(group.cancel_scope)
                    yield number

    pool = witness.make_pool(
        resource=resource,
        recycle_on=ValueError,
        retry=random.choice((None, patience(random))),
        workers=policies(random),
        queue_size=random.choice((0, 2, 9)),
    )
    async with pool:
        tasks = [spawn(witness.submit(witness.item(*RETRIED, "slow"))) for _ in range(9)]
        for _ in range(5):
            await pass_time(random)
            match random.randint(0, 4):
                case 0:
                    witness.resize(any_size(random))
                case 1 if dying:
                    dying.pop().cancel()
                case 2 if witness.handles:
                    random.choice(witness.handles).cancel()
                case _:
                    await settle()
                    witness.check_settled()
                    assert pool.stats.workers - pool.stats.running <= doors.held
        await ended(*tasks)
        await all_done(pool)  # each job gets its worker in the end
    report = await witness.check_end()
    assert not report.unfinished
    assert doors.held == 0
