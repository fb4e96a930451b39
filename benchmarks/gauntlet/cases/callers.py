"""A pool shared by many callers: a caller that gives up hurts no other, and every waiting caller is served."""

from __future__ import annotations

import asyncio
import gc
import logging

from benchmarks.gauntlet.adapter import Handler, Library, Pool
from benchmarks.gauntlet.cases.tools import case
from benchmarks.gauntlet.verdicts import Lacks, check


@case()
async def failure_is_forgotten(library: Library) -> None:
    """The failure of a submitted job that no caller awaits is logged or passed to the loop's exception handler."""
    reported: list[object] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = reported.append  # type: ignore[method-assign]
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        raise ValueError(job)

    disabled = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    logging.getLogger().addHandler(listener)
    try:
        await asyncio.create_task(_forget(library, handler))  # a task: nothing here keeps its objects alive
        gc.collect()  # asyncio reports a future only when it is collected
        await asyncio.sleep(0)
    finally:
        logging.getLogger().removeHandler(listener)
        logging.disable(disabled)
    check(reported, "not reported")


async def _forget(library: Library, handler: Handler) -> None:
    async with library.pool(handler, workers=1, room=1) as pool:
        await pool.submit(1)
        await asyncio.sleep(0.02)


@case(schedules=20)
async def caller_gives_up(library: Library) -> None:
    """Callers that are cancelled at any moment cost no other caller a value and cost no worker."""
    gate = asyncio.Event()
    met = 0

    async def handler(job: int) -> int:
        nonlocal met
        if job < 0:  # ends only if both workers are available
            met += 1
            if met == 2:
                gate.set()
            await gate.wait()
        for _ in range(abs(job) % 4):
            await asyncio.sleep(0)
        return job

    async with library.pool(handler, workers=2, room=2) as pool:
        callers = [asyncio.create_task(pool.run(job)) for job in range(12)]
        victims = callers[::3]
        for turns, victim in enumerate(victims):
            for _ in range(turns):
                await asyncio.sleep(0)
            victim.cancel()
        await asyncio.wait(callers)
        for job, caller in enumerate(callers):
            if caller not in victims:
                check(not caller.cancelled(), "another caller gets a CancelledError")
                error = caller.exception()
                if error is not None:
                    raise error
                check(caller.result() == job, "another caller gets a wrong value")
        await asyncio.gather(pool.run(-1), pool.run(-2))


@case(schedules=20)
async def woken_waiter_is_cancelled(library: Library) -> None:
    """A submitter that is cancelled just as a place becomes free passes the place on to the next one."""
    for turns in range(8):
        gate = asyncio.Event()
        done: list[str] = []

        async def handler(job: str, gate=gate, done=done) -> None:
            if job == "holds":
                await gate.wait()
            done.append(job)

        async with library.pool(handler, workers=1, room=1) as pool:
            await pool.submit("holds")
            await asyncio.sleep(0)
            await pool.submit("queued")
            first = asyncio.create_task(pool.submit("first"))
            await asyncio.sleep(0)
            second = asyncio.create_task(pool.submit("second"))
            for _ in range(3):
                await asyncio.sleep(0)
            gate.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first, second])
            second.result()
            while "second" not in done:  # noqa: ASYNC110  (there is no event to wait for)
                await asyncio.sleep(0.001)


@case()
async def nowait_overtakes(library: Library) -> None:
    """Jobs submitted without waiting do not permanently overtake a submitter that waits for a free place."""
    done: list[str] = []
    pool: Pool

    async def handler(job: str) -> None:
        done.append(job)
        if job != "waits" and len(done) < 300:
            _push(pool)
        await asyncio.sleep(0)

    async with library.pool(handler, workers=1, room=1) as pool:
        await pool.submit("first")
        await asyncio.sleep(0)
        _push(pool)
        waiting = asyncio.create_task(pool.submit("waits"))
        while "waits" not in done and len(done) < 300:  # noqa: ASYNC110  (there is no event to wait for)
            await asyncio.sleep(0)
        overtaken = done.index("waits") if "waits" in done else len(done)
        await waiting
    check(overtaken < 100, f"{overtaken} jobs overtook the waiting one")


def _push(pool: Pool) -> None:
    try:
        pool.submit_nowait("pushed")
    except asyncio.QueueFull:
        pass


@case()
async def own_full_pool(library: Library) -> None:
    """When all workers wait for jobs of their own pool, a job gets an error instead of a deadlock."""
    pool: Pool

    async def handler(depth: int) -> int:
        await asyncio.sleep(0)
        return await pool.run(depth - 1) if depth else 0

    async with library.pool(handler, workers=2, room=2) as pool:
        try:
            await pool.run(5)
        except Lacks:
            raise
        except Exception:  # any error will do
            pass
        check(await pool.run(0) == 0, "the pool runs no more jobs")


@case(schedules=5)
async def burst_wedges(library: Library) -> None:
    """A burst of a hundred callers of a pool with one queue place is served completely."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        return job

    async with library.pool(handler, workers=2, room=1) as pool:
        values = await asyncio.gather(*[pool.run(job) for job in range(100)])
    check(values == list(range(100)), "values are mixed up")
