"""Scenarios of retries: jobs that are delayed while everything else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import anyio

import asyncpool
from asyncpool import Failed, JobCancelled, JobCrashed, PoolClosed, PoolDeadlock, QueueFull, RetryAfter, Succeeded
from asyncpool.retry import RetryBudget
from asyncpool.testing import settle
from tests.laws.schedules.tools import all_done, any_size, pass_time, patience, read_all, scenario, sizes, turns
from tests.laws.witness import RETRIED, Item, Witness, ended, spawn


@scenario
async def retries_meet_the_end_of_their_pool(witness: Witness, random: Random) -> None:
    ratio = random.choice((None, 0.0, 0.5))
    budget = None if ratio is None else RetryBudget(ratio=ratio, min_per_second=0.0, window=random.choice((0.01, 1.0)))
    pool = witness.make_pool(retry=patience(random, budget=budget), **sizes(random))
    await pool.start()
    kinds = random.choice((RETRIED, (*RETRIED, "slow", "stubborn")))
    tasks = [spawn(witness.submit(witness.item(*kinds))) for _ in range(10)]
    await pass_time(random)
    await pass_time(random)
    drain_timeout = random.choice((0.0, 0.01, 0.5, None))
    if random.random() < 0.3:
        pool.drain(drain_timeout=drain_timeout)
        await turns(random, 5)
        if random.random() < 0.3:
            pool.cancel()
    report = await pool.close(drain_timeout=drain_timeout, grace=1.0)
    await ended(*tasks)
    assert await witness.check_end() is report
    assert not report.abandoned
    if ratio is not None:
        assert pool.stats.retries <= ratio * pool.stats.submitted
        return
    for handle in witness.handles:  # whatever was drained had all of its attempts
        outcome = await handle.outcome()
        if handle.job.kind in ("fail", "turn_fail") and isinstance(outcome, Failed):
            assert outcome.attempts == 3 or report.unfinished, outcome


@scenario
async def delayed_jobs_are_cancelled(witness: Witness, random: Random) -> None:
    """And those that are parked, or released and queued again, or whose caller waits in run()."""
    options: dict[str, Any] = {"limiter": witness.keys(2, 50.0, random.randint(1, 2))} if random.random() < 0.5 else {}
    if random.random() < 0.3:
        options["priority"] = lambda item: item.n % 3
    async with witness.make_pool(retry=patience(random), **sizes(random), **options) as pool:

        async def use(item: Item) -> None:
            with suppress(ValueError, JobCrashed, JobCancelled):
                await pool.run(item)

        tasks = [spawn(witness.submit(witness.item(*RETRIED))) for _ in range(10)]
        callers = [spawn(use(witness.item(*RETRIED))) for _ in range(2)]
        witness.perhaps += len(callers)
        for _ in range(8):
            await pass_time(random)
            if witness.handles:
                handle = random.choice(witness.handles)
                before, is_running = pool.stats, handle.job.n in witness.active_items
                was_done = handle.done()
                assert handle.cancel() is not was_done
                now = pool.stats
                if now.running == before.running and not was_done and handle.done():
                    assert now.queued + now.delayed == before.queued + before.delayed - 1
                else:
                    assert was_done or handle.done() or is_running or before.running
            if random.random() < 0.2:
                random.choice(callers).cancel()
            if random.random() < 0.2:
                random.choice(tasks).cancel()
            if random.random() < 0.4:
                await settle()
                witness.check_settled()
        await ended(*tasks, *callers)
        await all_done(pool)
    assert not (await witness.check_end())


@scenario
async def several_jobs_ask_for_a_pause(witness: Witness, random: Random) -> None:
    is_paused = False
    async with witness.make_pool(retry=patience(random), **sizes(random)) as pool:
        kinds = ("pausing", "pausing", "later", "ok", "nap", "flaky1")
        tasks = [spawn(witness.submit(witness.item(*kinds))) for _ in range(10)]
        for _ in range(6):
            await pass_time(random)
            match random.randint(0, 5):
                case 0:
                    pool.pause()
                    is_paused = True
                case 1:  # does not lift what jobs have asked for
                    pool.resume()
                    is_paused = False
                case 5:  # does
                    witness.pause_ends = min(witness.pause_ends, asyncio.get_running_loop().time())
                    pool.resume(force=True)
                    is_paused = False
                    assert not pool.is_paused
                case 2:
                    witness.resize(any_size(random))
                case 3:
                    await settle()
                    witness.check_settled(is_paused=is_paused)
        if random.random() < 0.7:
            pool.resume()
            await ended(*tasks)
            await all_done(pool)
            assert asyncio.get_running_loop().time() >= witness.pause_ends
    await ended(*tasks)
    assert not (await witness.check_end())


@scenario
async def streams_are_cancelled_while_their_jobs_are_delayed(witness: Witness, random: Random) -> None:
    options: dict[str, Any] = {"limiter": witness.keys(2, 100.0)} if random.random() < 0.5 else {}
    async with witness.make_pool(retry=patience(random), **sizes(random), **options) as pool:
        raises = random.random() < 0.5
        items = witness.items(10, *RETRIED, "slow")
        make = pool.map if raises else pool.outcomes
        stream: Any = make(witness.any_source(items), ordered=random.random() < 0.5)
        stop = random.randint(0, 6)
        count = 0

        async def read() -> None:
            nonlocal count
            async with stream:
                async for _ in stream:
                    count += 1
                    if count >= stop:
                        return

        reader = spawn(read())
        if random.random() < 0.4:
            await pass_time(random)
            reader.cancel()
        await ended(reader)
        await stream.aclose()
        assert pool.stats.running == pool.stats.queued == pool.stats.delayed == 0
        assert witness.sources_open == 0
        if not reader.cancelled() and reader.exception() is not None:
            assert raises
            assert isinstance(reader.exception(), (ValueError, JobCrashed))
        assert await pool.run(Item(1000)) == 1000  # the pool lives on
        witness.others += 1
    assert not (await witness.check_end())


@scenario
async def streams_and_groups_deliver_what_was_tried_again(witness: Witness, random: Random) -> None:
    options: dict[str, Any] = {"limiter": witness.keys(3, 100.0)} if random.random() < 0.5 else {}
    options["max_delayed"] = random.choice((1, 3, 10_000))
    async with witness.make_pool(retry=patience(random, jitter=False), **sizes(random), **options) as pool:
        kinds = ("flaky1", "flaky2", "later", "ok", "turn", "fail")
        is_ordered = random.random() < 0.5
        items, others = witness.items(8, *kinds), witness.items(6, *kinds)
        group = pool.group(window=random.choice((1, 2, None)), ordered=is_ordered)

        async def bring() -> None:
            async with group:
                for item in others:
                    await group.submit(item)
                    witness.others += 1

        stream = pool.outcomes(witness.any_source(items), ordered=is_ordered)
        readers = [spawn(read_all(stream)), spawn(read_all(group))]
        submitter = spawn(bring())
        await ended(submitter, *readers)
        for reader, expected in zip(readers, (items, others), strict=True):
            read = [outcome.job for outcome in reader.result()]
            assert read == expected if is_ordered else set(read) == set(expected)
            for outcome in reader.result():
                assert isinstance(outcome, Failed if outcome.job.kind == "fail" else Succeeded), outcome
    assert not (await witness.check_end())


@scenario
async def submitters_wait_because_too_many_are_delayed(witness: Witness, random: Random) -> None:
    options: dict[str, Any] = {"limiter": witness.keys(2, 20.0)} if random.random() < 0.5 else {}
    pool = witness.make_pool(
        max_delayed=random.randint(1, 2), retry=patience(random, backoff=0.3), **sizes(random), **options
    )
    await pool.start()
    tasks = [spawn(witness.submit(witness.item("flaky1", "flaky2", "later", "ok", "slow"))) for _ in range(12)]
    stream = spawn(read_all(pool.outcomes(witness.any_source(witness.items(5, "flaky1", "ok")))))
    for _ in range(5):
        await pass_time(random)
        match random.randint(0, 3):
            case 0:
                random.choice(tasks).cancel()
            case 1 if witness.handles:
                random.choice(witness.handles).cancel()
            case 2:
                with suppress(QueueFull):
                    witness.submit_nowait(witness.item("flaky1"))
        await settle()
        witness.check_settled()
    if random.random() < 0.5:  # they all get in
        await ended(*tasks, stream)
        await all_done(pool)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
    await pool.close(drain_timeout=random.choice((0.0, 0.2, None)))
    await ended(*tasks, stream)
    for task in (*tasks, stream):
        assert task.cancelled() or isinstance(task.exception(), (type(None), PoolClosed))
    await witness.check_end()


@scenario
async def jobs_submit_to_their_pool_while_others_are_delayed(witness: Witness, random: Random) -> None:
    """With all workers in such waits: no deadlock, for delayed jobs will make room, and the queue holds all."""
    has_limits = random.random() < 0.5

    async def handler(item: Item) -> int:
        value = await witness.handle(item)
        if item.kind == "turn":
            for fresh in witness.items(2, "flaky1", "later", "ok"):
                try:
                    await witness.submit(fresh)
                except PoolDeadlock:  # of one limit two are parked, and the first is released: it needs the worker
                    assert has_limits
        return value

    pool = witness.make_pool(
        handler=handler,
        workers=random.randint(1, 2),
        queue_size=60,
        max_delayed=1,
        retry=patience(random, jitter=False),
        limiter=witness.keys(2, 50.0) if has_limits else None,
    )
    async with pool:
        tasks = [spawn(witness.submit(witness.item("flaky1", "turn", "turn"))) for _ in range(8)]
        await pass_time(random)
        if random.random() < 0.3:
            random.choice(tasks).cancel()
        await ended(*tasks)
        await all_done(pool)
    assert not (await witness.check_end())
    for handle in witness.handles:
        assert isinstance(await handle.outcome(), Succeeded), await handle.outcome()


@scenario
async def the_time_of_a_job_runs_out(witness: Witness, random: Random) -> None:
    """Of one attempt, of all attempts, and while it is delayed, parked or queued."""
    max_elapsed = random.choice((0.005, 0.4, 1.2))
    options: dict[str, Any] = {}
    if random.random() < 0.5:
        options["limiter"] = witness.keys(2, random.choice((2.0, 100.0)))
    if random.random() < 0.5:
        options["timeout"] = random.choice((0.3, 0.4, 1.1))
    retry = patience(random, attempts=4, max_elapsed=max_elapsed)
    loop = asyncio.get_running_loop()
    accepted: dict[int, float] = {}
    async with witness.make_pool(retry=retry, **sizes(random), **options) as pool:

        async def submit() -> None:
            handle = await witness.submit(witness.item(*RETRIED, "slow", "hang", "stubborn"))
            accepted[handle.id] = handle_time = loop.time()
            outcome = await handle.outcome()
            if isinstance(outcome, Failed) and isinstance(outcome.error, asyncpool.JobExpired):
                assert loop.time() >= handle_time + max_elapsed
            elif handle.job.kind == "hang":
                assert isinstance(outcome.error, asyncpool.JobTimeout)  # type: ignore[union-attr]

        tasks = [spawn(submit()) for _ in range(9)]
        await pass_time(random)
        if random.random() < 0.2:
            pool.pause()
            await asyncio.sleep(0.5)
            pool.resume()
        await ended(*tasks)
        for task in tasks:
            assert task.exception() is None, task.exception()
        await all_done(pool)
        await settle()
        witness.check_settled()
    assert not (await witness.check_end())
    if witness.accepted is not None:
        for number, outcome in witness.ended.items():
            # What runs into the end is cancelled then, and gets some time to clean up.
            assert outcome.seconds_running <= max_elapsed + 0.01, (number, outcome)


@scenario
async def the_time_of_jobs_runs_out_in_a_pause(witness: Witness, random: Random) -> None:
    """In a pause of the user or of a job, each job that waits expires in time, wherever it waits."""
    options: dict[str, Any] = {"limiter": witness.keys(2, random.choice((2.0, 100.0)))} if random.random() < 0.5 else {}
    if random.random() < 0.3:
        options["priority"] = lambda item: item.n % 3
    max_elapsed = random.choice((0.005, 0.4, 1.2))
    time = asyncio.get_running_loop().time
    async with witness.make_pool(retry=patience(random, max_elapsed=max_elapsed), **sizes(random), **options) as pool:
        kinds = (*RETRIED, "slow", "pausing", "pausing")
        tasks = [spawn(witness.submit(witness.item(*kinds))) for _ in range(12)]
        for _ in range(8):
            await pass_time(random)
            match random.randint(0, 4):
                case 0:
                    pool.pause()
                case 1:
                    pool.resume(force=random.random() < 0.5)
                    if not pool.is_paused:
                        witness.pause_ends = min(witness.pause_ends, time())
                case 2 if witness.handles:
                    random.choice(witness.handles).cancel()
                case 3:
                    witness.resize(any_size(random))
            was_paused, began = pool.is_paused, time()
            await asyncio.sleep(random.choice((0.0, 0.01, max_elapsed, 2 * max_elapsed)))
            await settle()
            if was_paused and pool.is_paused and witness.accepted is not None:
                late = [number for number in witness.waiting_jobs if witness.accepted_at[number] + max_elapsed < began]
                assert not late, f"{late} wait in a pause, and their time is over"
        if random.random() < 0.7:
            pool.resume(force=True)
            witness.pause_ends = min(witness.pause_ends, time())
            await ended(*tasks)
            await all_done(pool)
    await ended(*tasks)
    assert not (await witness.check_end())


@scenario
async def resources_are_replaced_between_attempts(witness: Witness, random: Random) -> None:
    class Connection:
        is_open = True
        was_used_up = False

    held = 0

    @asynccontextmanager
    async def resource() -> AsyncIterator[Connection]:
        nonlocal held
        await turns(random, 2)
        if held and random.random() < 0.2:
            raise OSError("no connection")
        connection = Connection()
        held += 1
        try:
            if random.random() < 0.5:
                yield connection
            else:
                async with anyio.create_task_group() as group:
                    dying.append(group.cancel_scope)
                    yield connection
        finally:
            connection.is_open = False
            await turns(random, 2)
            held -= 1

    async def handler(item: Item, connection: Connection) -> int:
        assert connection.is_open
        assert not connection.was_used_up
        try:
            return await witness.handle(item, connection)
        except BaseException as error:
            connection.was_used_up = not isinstance(error, RetryAfter) or isinstance(error.__cause__, ValueError)
            raise

    dying: list[anyio.CancelScope] = []
    pool = witness.make_pool(
        handler=handler, resource=resource, recycle_on=BaseException, retry=patience(random), **sizes(random)
    )
    async with pool:
        tasks = [spawn(witness.submit(witness.item(*RETRIED, "slow"))) for _ in range(8)]
        for _ in range(4):
            await pass_time(random)
            if dying and random.random() < 0.3:
                dying.pop().cancel()
            for handle in witness.handles:
                if random.random() < 0.1:
                    handle.cancel()
        await ended(*tasks)
        await all_done(pool)
    assert not (await witness.check_end())
    assert held == 0
