"""How much of a rate limit a real loop reaches with late timers. Tests check that it is never exceeded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from asyncpool import RateLimit, WorkerPool
from benchmarks.harness import Case, Figures, Question, Settings

__all__ = ["RATE", "burst_for"]

_RATES = (100, 1000, 5000, 20_000)
_ALONE = "no burst"
_ADVISED = "recommended burst"


def _cases(settings: Settings) -> Sequence[Case]:
    return [
        Case(
            name=f"{rate:,}/s",
            contenders={_ALONE: 2, _ADVISED: 2},
            parameters={"rate": rate, "jobs": max(5, min(settings.count(1000), rate))},
        )
        for rate in _RATES
    ]


def burst_for(rate: float) -> int:
    """Return the burst that the docstring of RateLimit recommends."""
    return 1 + math.ceil(rate * 0.002)


async def _measure(contender: str, *, rate: int, jobs: int) -> Figures:
    burst = 1 if contender == _ALONE else burst_for(rate)
    now = asyncio.get_running_loop().time
    first = last = 0.0

    async def start(job: int) -> None:
        nonlocal first, last
        last = now()
        if job == burst - 1:
            first = last  # the starts of the burst do not count

    async with WorkerPool(start, workers=10, limiter=RateLimit(rate, burst=burst)) as pool:
        async for _ in pool.outcomes(range(jobs + burst)):
            pass
    return {"% of rate": jobs / (last - first) / rate * 100}


RATE = Question(
    name="rate",
    asks="How much of a rate limit does a real loop reach?",
    title="Rate limits",
    cases=_cases,
    measure=_measure,
    more_is_better=True,
    method="Starts per second of `pool.outcomes` with `limiter=RateLimit(rate)`, without a burst and with the one "
    "that its documentation recommends against late timers.",
)
