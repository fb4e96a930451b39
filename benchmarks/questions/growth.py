"""Cost and memory as the number of jobs grows."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from benchmarks.harness import Budget, Case, Figures, Question, Settings
from benchmarks.memory import most_resident, resident
from benchmarks.rivals import REFERENCE, RIVALS
from benchmarks.work import do, do_nothing, missing

__all__ = ["GROWTH", "MOST"]

MOST = 1_000_000
_WORKERS = 100
_WARM_UP = 1_000
_SAMPLE_EVERY = 1_000
# A second round of the slow contenders would show the same.
_ROUNDS = {REFERENCE: 2, "pool.outcomes": 3}
# So would the largest size for those whose cost per job is highest and does not depend on the size.
_SAME_AT_ANY_SIZE = ("anyio memory streams", "aiometer", "aiostream", "pypeln")


def _cases(settings: Settings) -> Sequence[Case]:
    most = settings.count(MOST)
    return [
        Case(
            name=f"{jobs:,} no-op jobs",
            contenders=_ROUNDS
            | {name: 1 for name in RIVALS if name not in _ROUNDS and not (jobs == MOST and name in _SAME_AT_ANY_SIZE)},
            parameters={"jobs": jobs},
            budgets={"pool.outcomes": Budget(limit=16.0, of="MiB")} if jobs == MOST else {},
            gibibytes=4.0,
        )
        for jobs in dict.fromkeys((max(1, most // 100), max(1, most // 10), most))
    ]


async def _measure(contender: str, *, jobs: int) -> Figures:
    few = min(jobs, _WARM_UP)
    await do(contender, do_nothing, range(few), few, _WORKERS)
    gc.collect()
    before, most_before = resident(), most_resident()
    peak = before

    async def sample(job: int) -> int:
        # Sampled inside a job, while everything around it is alive.
        nonlocal peak
        if job % _SAMPLE_EVERY == 0:
            peak = max(peak, resident())
        return job

    seconds = await do(contender, sample, (job for job in range(jobs)), jobs, _WORKERS)
    most = most_resident()  # the peak, if it was reached in this run and not before
    peak = max(peak, resident(), most if most > most_before else 0)
    return {"µs/job": seconds / jobs * 1e6, "MiB": (peak - before) / 2**20}


GROWTH = Question(
    name="growth",
    asks="How do cost and memory grow with the number of jobs?",
    title="Growth",
    cases=_cases,
    measure=_measure,
    missing=missing,
    method=f"Jobs come from a generator, with {_WORKERS} workers. MiB is the growth of the process since a warm-up. "
    f"Each run is limited to 4 GiB and 60 s. The largest size omits {', '.join(_SAME_AT_ANY_SIZE)}, which are slow and "
    "cost the same per job at any size.",
)
