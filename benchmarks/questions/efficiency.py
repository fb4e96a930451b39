"""Whether the pool keeps its workers busy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from statistics import median

from benchmarks.harness import Budget, Case, Figures, Question, Settings
from benchmarks.rivals import OURS
from benchmarks.work import do, missing

__all__ = ["EFFICIENCY"]

_BARE = "asyncio.Queue workers"
_REPEATS = 3
_RECIPES = ("gather + Semaphore", "TaskGroup + Semaphore", "shared iterator")
_PEERS = ("aqute", "streamable", "aiojobs", "tasklane")


def _cases(settings: Settings) -> Sequence[Case]:
    return [
        Case(
            name=f"{jobs:,} jobs of 1-10 ms, {workers} workers",
            contenders=dict.fromkeys((_BARE, *OURS), rounds) | dict.fromkeys((*_RECIPES, *_PEERS), rounds // 3),
            parameters={"jobs": jobs, "workers": workers},
            budgets={"pool.outcomes": Budget(limit=0.99, at_least=True)} if workers == 500 else {},
        )
        for workers, jobs, rounds in ((500, settings.count(20_000), 7), (5000, settings.count(50_000), 3))
    ]


async def _measure(contender: str, *, jobs: int, workers: int) -> Figures:
    seeded = random.Random(1)
    seconds = [seeded.uniform(0.001, 0.010) for _ in range(jobs)]
    ideal = sum(seconds) / workers

    async def wait(job: int) -> int:
        await asyncio.sleep(seconds[job])
        return job

    few = min(jobs, 1_000)
    await do(contender, wait, range(few), few, workers)
    took = median([await do(contender, wait, range(jobs), jobs, workers) for _ in range(_REPEATS)])
    return {"% of ideal": ideal / took * 100}


EFFICIENCY = Question(
    name="efficiency",
    asks="Does the pool keep its workers busy?",
    title="Efficiency",
    cases=_cases,
    measure=_measure,
    more_is_better=True,
    missing=missing,
    method="Ideal is the sum of the job durations divided by the number of workers, without overhead, late timers or "
    f"a tail at the end. Each process takes the median of {_REPEATS} runs. Ratios are to workers on a bare queue. With "
    "5,000 workers, the cost per job dominates.",
)
