"""A stop works at any moment, wakes every waiter and loses no input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from benchmarks.gauntlet.adapter import Ended, Library
from benchmarks.gauntlet.cases.tools import Recorder, Source, case, jobs, now, read, sleeps
from benchmarks.gauntlet.verdicts import check


@case()
async def outer_timeout(library: Library) -> None:
    """A timeout around the whole map stops it on time."""
    recorder = Recorder()
    began = now()
    try:
        async with asyncio.timeout(0.1):
            async with library.values(recorder.of(sleeps(60)), range(50), workers=2) as values:
                async for _ in values:
                    pass
    except TimeoutError:
        pass
    else:
        check(False, "it ends without the TimeoutError")
    check(now() - began < 2, f"it ends after {now() - began:.0f} s")
    check(recorder.running == 0, f"{jobs(recorder.running)} still running")


@case()
async def job_ignores_its_cancellation(library: Library) -> None:
    """A job that ignores its cancellation for a minute does not delay a cancelled reader for a minute."""
    task = asyncio.create_task(read(library.values(_stubborn, range(2), workers=1)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])


@case()
async def stop_ignored_by_a_job(library: Library) -> None:
    """A job that ignores its cancellation does not delay the stop of its pool for a minute."""
    async with library.stoppable_pool(_stubborn, workers=2, room=2) as pool:
        await pool.submit(1)
        await asyncio.sleep(0.05)
        await pool.stop()


@case()
async def stop_wakes_all(library: Library) -> None:
    """When a pool stops, every caller that waits for a job or for a free place gets an error."""
    async with library.stoppable_pool(sleeps(60), workers=2, room=2) as pool:
        callers = [asyncio.create_task(pool.run(number)) for number in range(6)]
        await asyncio.sleep(0.05)
        for caller in callers:
            if caller.done():
                caller.result()  # raises Lacks
        await pool.stop()
        settled, pending = await asyncio.wait(callers, timeout=1)
        await asyncio.gather(*settled, return_exceptions=True)
    check(not pending, f"{len(pending)} of 6 callers still wait")


@case()
async def stop_hands_back(library: Library) -> None:
    """A stopped pool returns the jobs that it did not finish, so they can run later."""
    async with library.accountable_pool(sleeps(60), workers=2, room=4) as pool:
        for job in range(6):
            await pool.submit(job)
        await asyncio.sleep(0.02)
        left = await pool.stop()
    check(sorted(left) == list(range(6)), f"{len(left)} of 6 are returned")


@case(schedules=20)
async def pulled_input_is_lost(library: Library) -> None:
    """When a pool stops at any moment of a stream, every input already read from the source is delivered as an
    outcome."""
    for turns in (0, 1, 3, 10, 30):
        source = Source(200)
        got: list[Ended] = []
        async with library.stoppable_pool(sleeps(0.0), workers=2, room=1) as pool:
            reader = asyncio.create_task(_collect(pool.outcomes(source), got))
            for _ in range(turns):
                await asyncio.sleep(0)
            await pool.stop()
            await reader
        check(len(got) == source.pulled, f"{source.pulled - len(got)} of {source.pulled} inputs are lost")


async def _stubborn(job: int) -> None:
    end = now() + 60
    while now() < end:
        try:
            await asyncio.sleep(end - now())
        except asyncio.CancelledError:
            pass


async def _collect(outcomes: AsyncIterator[Ended], got: list[Ended]) -> None:
    async for ended in outcomes:
        got.append(ended)
