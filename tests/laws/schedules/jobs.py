"""Scenarios of jobs and resources: timeouts, ignored cancellations, connections that die, nested waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import anyio

import asyncpool
from asyncpool import Cancelled, CancelReason, Failed, JobCancelled, JobCrashed, PoolDeadlock, Succeeded, WorkerPool
from asyncpool.testing import settle
from tests.laws.schedules.tools import patience, scenario, sizes, turns
from tests.laws.witness import KINDS, Witness, ended, gather_all, spawn


@scenario
async def jobs_run_into_their_timeout(witness: Witness, random: Random) -> None:
    async with witness.make_pool(timeout=0.5, **sizes(random)) as pool:
        tasks = [spawn(witness.submit(witness.item(*KINDS))) for _ in range(8)]
        await turns(random, 5)
        await asyncio.sleep(random.choice((0.0, 0.5)))
        for handle in list(witness.handles):
            if random.random() < 0.3:
                handle.cancel()  # at times in the moment in which its time is over
        await ended(*tasks)
        await pool.join()
        await settle()
        witness.check_settled()  # a timeout never costs a worker
        for handle in witness.handles:
            outcome = await handle.outcome()
            if handle.job.kind in ("slow", "hang"):
                assert isinstance(outcome, Cancelled) or isinstance(outcome.error, asyncpool.JobTimeout)  # type: ignore[union-attr]
            elif handle.job.kind == "stubborn":
                assert isinstance(outcome, (Succeeded, Cancelled))
    assert not (await witness.check_end())


@scenario
async def jobs_that_ignore_their_cancellation_are_left(witness: Witness, random: Random) -> None:
    """Callers that leave them wait for at most five seconds, and the jobs count until they have ended."""
    loop = asyncio.get_running_loop()
    witness.may_abandon = True
    kinds = random.choice((("stuck",), ("stuck", "ok", "nap"), ("stuck", "slow", "stubborn", "turn_fail")))
    pool = witness.make_pool(
        workers=random.randint(1, 5),
        queue_size=random.choice((0, 2, 5)),
        timeout=random.choice((None, 1.0, 7.0)),
        retry=random.choice((None, patience(random))),
    )

    async def run_one() -> None:
        witness.perhaps += 1
        await pool.run(witness.item(*kinds))

    async def read_some() -> None:
        async with pool.outcomes(witness.source(witness.items(4, *kinds)), ordered=random.random() < 0.5) as stream:
            async for _ in stream:
                if random.random() < 0.3:
                    break

    async def read_values() -> None:
        await pool.map(witness.source(witness.items(4, *kinds)))

    async def use_group() -> None:
        async with pool.group(ordered=random.random() < 0.5) as group:
            for item in witness.items(2, *kinds):
                await group.submit(item)
                witness.others += 1
            group.close_intake()
            async for _ in group:
                assert random.random() < 0.7

    await pool.start()
    uses = random.choices((run_one, read_some, read_values, use_group), k=random.randint(1, 6))
    tasks = [spawn(use()) for use in uses]
    for _ in range(random.randint(1, 6)):
        await asyncio.sleep(random.choice((0.0, 0.5, 1.0, 4.0, 5.0, 5.5)))
        witness.check()
        match random.randint(0, 3):
            case 0:
                random.choice(tasks).cancel()
            case 1:
                witness.release.set()
                await turns(random, 3)
                witness.release.clear()
            case 2:
                witness.resize(random.randint(1, 5))
            case _:
                pass
    for task in tasks:
        task.cancel()
    began = loop.time()
    await ended(*tasks)
    assert loop.time() <= began + 5.01
    if random.random() < 0.5:
        await asyncio.sleep(random.choice((0.0, 6.0)))
        stats = witness.check()
        assert stats.stuck <= stats.running
    await pool.close(drain_timeout=0.0, grace=random.choice((0.0, 1.0)))
    before = witness.check()
    witness.release.set()
    await asyncio.sleep(5.0)
    after = witness.check()
    assert before.stuck == after.stuck == 0
    assert (before.succeeded, before.failed, before.cancelled) == (after.succeeded, after.failed, after.cancelled)
    await witness.check_end()


@scenario
async def resources_fail_and_die(witness: Witness, random: Random) -> None:
    entered = left = 0
    dying: list[anyio.CancelScope] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        nonlocal entered, left
        await turns(random, 2)
        if entered and random.random() < 0.4:
            raise OSError("no connection")
        entered += 1
        try:
            if random.random() < 0.5:
                yield entered
            else:  # a resource with tasks of its own, one of which may fail: anyio cancels us then
                async with anyio.create_task_group() as group:
                    dying.append(group.cancel_scope)
                    yield entered
        finally:
            await turns(random, 2)
            left += 1
        if random.random() < 0.1:
            raise OSError("could not say goodbye")

    async with witness.make_pool(resource=resource, recycle_on=ValueError, **sizes(random)) as pool:
        tasks = [spawn(witness.submit(witness.item(*KINDS[:-1]))) for _ in range(8)]
        for _ in range(3):
            await turns(random, 5)
            await asyncio.sleep(random.choice((0.0, 0.3)))
            if dying:
                dying.pop().cancel()
            for handle in witness.handles:
                if random.random() < 0.1:
                    handle.cancel()
        await ended(*tasks)
        await pool.join()  # each job gets its worker in the end
    report = await witness.check_end()
    assert not report.unfinished
    assert entered == left


@scenario
async def jobs_wait_for_their_own_pool(witness: Witness, random: Random) -> None:
    """Some of these wait in a circle; each wait has an end, and nothing hangs."""
    runs = 0
    workers = random.randint(1, 3)

    async def handler(depth: int) -> int:
        nonlocal runs
        runs += 1
        await turns(random, 2)
        if depth == 0:
            return 1
        if random.random() < 0.5:
            return 1 + await pool.run(depth - 1)
        handle = await pool.submit(depth - 1)
        try:
            return 1 + await handle
        except PoolDeadlock:
            handle.cancel()
            raise

    async with WorkerPool(handler, workers=workers, queue_size=random.choice((0, 1, 5))) as pool:
        witness.pool = pool
        results = await gather_all(*[pool.run(random.randint(0, 3)) for _ in range(5)])
        for result in results:
            assert isinstance(result, (int, PoolDeadlock, JobCancelled)), result
        if workers == 1:
            assert await pool.run(0) == 1
        await pool.join()
    stats = pool.stats
    assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled
    assert stats.peak_running <= workers


@scenario
async def cancel_scopes_end_the_waits(witness: Witness, random: Random) -> None:
    """A cancelled scope of anyio cancels at each turn, not once."""
    async with witness.make_pool(**sizes(random)) as pool:

        async def use() -> None:
            item = witness.item(*KINDS)
            with anyio.move_on_after(random.choice((0.0, 0.001, 0.5))):
                if random.random() < 0.5:
                    (await witness.submit(item)).cancel()
                else:
                    witness.perhaps += 1
                    with suppress(ValueError, JobCrashed):
                        await pool.run(item)

        await gather_all(*[use() for _ in range(8)])
        assert pool.stats.queued == 0
    await witness.check_end()


@scenario
async def outcomes_tell_what_happened_when_all_is_cancelled_at_random(witness: Witness, random: Random) -> None:
    pool = witness.make_pool(**sizes(random))
    await pool.start()
    tasks = [spawn(witness.submit(witness.item(*KINDS))) for _ in range(8)]
    users_own: set[int] = set()
    for _ in range(5):
        await turns(random, 3)
        for handle in witness.handles:
            if random.random() < 0.3 and handle.cancel():
                users_own.add(handle.id)
        witness.check()
    pool.cancel()
    await pool.close()
    await ended(*tasks)
    await witness.check_end()
    for handle in witness.handles:
        outcome = await handle.outcome()
        if handle.id in users_own and isinstance(outcome, Cancelled):
            assert outcome.reason is CancelReason.HANDLE  # though the pool was closed before it had ended
        if handle.job.kind == "hang":
            assert isinstance(outcome, Cancelled)
            assert outcome.reason in (CancelReason.HANDLE, CancelReason.SHUTDOWN)
        elif handle.job.kind == "crash":
            assert isinstance(outcome, (Failed, Cancelled))
