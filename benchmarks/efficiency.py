"""Whether the pool keeps its workers busy."""

from __future__ import annotations

import asyncio
import random
from functools import partial

from benchmarks.harness import Answer, Budget, Settings, measure, timed
from benchmarks.rivals import outcomes, queue_workers

__all__ = ["efficiency"]

WORKERS = 500


def efficiency(settings: Settings) -> Answer:
    """Compare the wall time of many short waits with that of workers on a bare queue."""
    jobs = settings.jobs or 20_000
    seeded = random.Random(1)
    seconds = [seeded.uniform(0.001, 0.010) for _ in range(jobs)]
    measurements = measure(
        settings,
        {
            "asyncio.Queue workers": partial(timed, partial(queue_workers, asyncio.sleep, seconds, WORKERS), jobs),
            "pool.outcomes": partial(timed, partial(outcomes, asyncio.sleep, seconds, WORKERS), jobs),
        },
        rounds=15,
        case="jobs of 1-10 ms",
        unit="ms in all",
        scale=1e3,
        budgets={"pool.outcomes": Budget(limit=1.03)},
    )
    return Answer(
        title=f"Efficiency: {jobs:,} jobs on {WORKERS} workers (with no overhead at all: "
        f"{sum(seconds) / WORKERS * 1e3:.0f} ms); ratio to the bare loop",
        measurements=measurements,
    )
