"""The overhead of a job."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import Case, Figures, Question, Settings, by_python
from benchmarks.rivals import OURS, REFERENCE, RIVALS
from benchmarks.work import JOBS, do, missing

__all__ = ["COST", "HEADLINE"]

HEADLINE = 100
"""The number of workers with which all contenders are compared."""
_WARM_UP = 1_000
_OTHER_SIZES = (1, 10, 1000)
_CLOSEST = ("asyncio.Queue workers", "gather + Semaphore", "aqute", "streamable", "tasklane")
_BUDGETS = {
    "no-op": by_python({(3, 11): 0.45, (3, 13): 0.35}),
    "yields once": by_python({(3, 11): 0.40, (3, 13): 0.45}),
}


def _cases(settings: Settings) -> Sequence[Case]:
    core = {REFERENCE: 7, "pool.outcomes": 7, "pool.map": 7, "asyncio.Queue workers": 7, "shared iterator": 7}
    jobs = settings.count(100_000)
    headline = [
        Case(
            name=f"{kind}, {HEADLINE} workers, {jobs:,} jobs",
            contenders=core | {name: 2 for name in RIVALS if name not in core},
            parameters={"kind": kind, "workers": HEADLINE, "jobs": jobs},
            budgets={"pool.outcomes": _BUDGETS[kind]},
        )
        for kind in JOBS
    ]
    few = settings.count(20_000)
    others = [
        Case(
            name=f"{kind}, {workers} worker{'s' if workers > 1 else ''}, {few:,} jobs",
            contenders=dict.fromkeys((REFERENCE, *OURS, *_CLOSEST), 2),
            parameters={"kind": kind, "workers": workers, "jobs": few},
        )
        for kind in JOBS
        for workers in _OTHER_SIZES
    ]
    return [*headline, *others]


async def _measure(contender: str, *, kind: str, workers: int, jobs: int) -> Figures:
    handler, few = JOBS[kind], min(jobs, _WARM_UP)
    await do(contender, handler, range(few), few, workers)
    return {"µs/job": await do(contender, handler, range(jobs), jobs, workers) / jobs * 1e6}


COST = Question(
    name="cost",
    asks="How much overhead does a job have?",
    title="Cost per job",
    cases=_cases,
    measure=_measure,
    missing=missing,
    method=f"Wall time of a run divided by its number of jobs, after a warm-up of {_WARM_UP:,} jobs.",
)
