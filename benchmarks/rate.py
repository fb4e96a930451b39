"""How much of a rate a real loop reaches, whose timers come late. That it is never passed is the tests' matter."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from asyncpool import RateLimit, WorkerPool
from benchmarks.harness import Answer, Measurement, Settings, measure

__all__ = ["rate"]

RATES = (10, 100, 500, 1000, 2000, 5000, 10_000, 20_000)


def rate(settings: Settings) -> Answer:
    """Measure the rate reached, in percent of the one asked for, without a burst and with what timers need."""
    measurements: list[Measurement] = []
    for asked in RATES:
        jobs = max(5, min(settings.jobs or 1000, asked))
        bursts = dict.fromkeys((1, burst_for(asked)))
        measurements += [
            one
            for burst in bursts
            for one in measure(
                settings,
                {f"pool.outcomes, burst={burst}": _reached(asked, burst, jobs)},
                rounds=3,
                case=f"{asked:,}/s",
                unit="% of rate",
                scale=100.0,
            )
        ]
    return Answer(title="Rate limits: starts a second that a real loop reaches", measurements=measurements)


def burst_for(asked: float) -> int:
    """What the docstring of RateLimit recommends."""
    return 1 + math.ceil(asked * 0.002)


def _reached(asked: int, burst: int, jobs: int) -> Callable[[], Coroutine[Any, Any, float]]:
    async def run() -> float:
        time = asyncio.get_running_loop().time
        first = last = 0.0

        async def start(job: int) -> None:
            nonlocal first, last
            last = time()
            if job == burst - 1:
                first = last  # what the burst lets through at once is not the rate's

        async with WorkerPool(start, workers=10, limiter=RateLimit(asked, burst=burst)) as pool:
            async for _ in pool.outcomes(range(jobs + burst)):
                pass
        return jobs / (last - first) / asked

    return run
