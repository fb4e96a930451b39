"""How long it takes to hand one job in and have its value."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from asyncpool import WorkerPool
from benchmarks.harness import Answer, Measurement, Settings, measure, timed
from benchmarks.rivals import do_nothing

__all__ = ["round_trip"]

WORKERS = 100


def round_trip(settings: Settings) -> Answer:
    """Compare `await pool.run(job)` on a live pool with a plain `await create_task(...)`, alone and in a crowd."""
    jobs = settings.jobs or 20_000
    measurements: list[Measurement] = []
    for case, submitters in (("alone", 1), ("100 submitters", 100)):
        each = max(1, jobs // submitters)
        expected = each * submitters
        measurements += measure(
            settings,
            {
                "create_task + await": partial(timed, partial(_submit, _plain_task, submitters, each), expected),
                "pool.run": partial(_on_a_live_pool, submitters, each),
            },
            rounds=7,
            case=case,
            unit="us/job",
            scale=1e6 / expected,
        )
    return Answer(
        title=f"Round trip: {jobs:,} no-op jobs handed in and awaited one by one; ratio to a plain task",
        measurements=measurements,
    )


async def _plain_task(job: int) -> int:
    return await asyncio.create_task(do_nothing(job))


async def _submit(run: Callable[[int], Awaitable[int]], submitters: int, each: int) -> int:
    async def submit() -> int:
        for job in range(each):
            await run(job)
        return each

    return sum(await asyncio.gather(*[submit() for _ in range(submitters)]))


async def _on_a_live_pool(submitters: int, each: int) -> float:
    async with WorkerPool(do_nothing, workers=WORKERS) as pool:
        await pool.run(0)
        return await timed(partial(_submit, pool.run, submitters, each), submitters * each)
