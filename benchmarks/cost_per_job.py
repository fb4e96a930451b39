"""What a job costs on top of what it does itself."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Answer, Measurement, Settings, by_python, measure, timed
from benchmarks.rivals import do_nothing, gather, outcomes, queue_workers, yield_once

__all__ = ["cost_per_job"]

WORKERS = 100


def cost_per_job(settings: Settings) -> Answer:
    """Compare `outcomes()` with naive `asyncio.gather` over the same jobs, and with workers on a bare queue."""
    jobs = settings.jobs or 100_000
    cases = (
        ("no-op job", do_nothing, by_python({(3, 11): 0.7, (3, 13): 0.55})),
        ("job that yields once", yield_once, by_python({(3, 11): 0.6, (3, 13): 0.55})),
    )
    measurements: list[Measurement] = []
    for case, handler, budget in cases:
        measurements += measure(
            settings,
            {
                "asyncio.gather": partial(timed, partial(gather, handler, range(jobs)), jobs),
                "pool.outcomes": partial(timed, partial(outcomes, handler, range(jobs), WORKERS), jobs),
                "asyncio.Queue workers": partial(timed, partial(queue_workers, handler, range(jobs), WORKERS), jobs),
            },
            rounds=7,
            case=case,
            unit="us/job",
            scale=1e6 / jobs,
            budgets={"pool.outcomes": budget},
        )
    return Answer(
        title=f"Cost per job: {jobs:,} jobs on {WORKERS} workers; ratio to gather in the same round",
        measurements=measurements,
    )
