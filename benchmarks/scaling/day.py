"""Two days in virtual time: whether a policy drifts from one day to the next, and whether memory grows.

Each policy runs in its own process, as in `benchmarks/memory.py`: memory that an earlier run has freed would hide
growth.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from statistics import fmean
from typing import Any

from asyncpool import WorkerPool
from benchmarks.harness import ROOT
from benchmarks.memory import resident
from benchmarks.scaling import loads
from benchmarks.scaling.backends import Servers
from benchmarks.scaling.contenders import contenders
from benchmarks.scaling.measure import Goal
from benchmarks.scaling.services import Lognormal
from benchmarks.scaling.simulate import Job, Result, Scenario, simulate
from benchmarks.scaling.tables import Answer

__all__ = ["day", "two_days"]

HOUR = 3600.0
EVERY = 60.0
MOST_GROWTH = 8.0  # MiB
MOST_DRIFT = 2.0  # workers

WHEN = ("first morning", "first noon", "first night", "second night")
_CENTRES = (1 / 24, 1 / 2, 23 / 24, 47 / 24)  # in days


def two_days(hours: float = 24.0) -> Scenario:
    """Return two days of `hours` hours each. Jobs take seconds, so there are hundreds of thousands and not millions."""
    return Scenario(
        name="day",
        about="from 0.25 jobs/s at midnight to 2.5 at noon",
        backend=lambda random: Servers(20, Lognormal(4.0), random=random),
        load=loads.day(0.25, 2.5, period=hours * HOUR),
        seconds=2 * hours * HOUR,
        settle=hours / 6 * HOUR,
        max_workers=20,
    )


def day(hours: float = 24.0) -> Answer:
    """Run each policy for two days."""
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    data: list[dict[str, Any]] = []
    for number, contender in enumerate(contenders(two_days(hours))):
        command = [sys.executable, "-m", "benchmarks.scaling.day", str(number), str(hours)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(done.stdout)
        judged = [
            Goal(what=f"day, {contender.name}, drift", value=abs(measured["drift"]), limit=MOST_DRIFT, unit=" workers"),
            Goal(what=f"day, {contender.name}, growth", value=measured["growth"], limit=MOST_GROWTH, unit=" MiB"),
            Goal(what=f"day, {contender.name}, leaked tasks", value=measured["leaked"], limit=0),
        ]
        missed = [goal.what.rpartition(", ")[2] for goal in judged if not goal.is_met]
        rows.append(
            (
                contender.name,
                f"{measured['good']:,}",
                *(f"{workers:.1f}" for workers in measured["workers"]),
                f"{measured['waiting_p99']:.2f} s",
                f"{measured['worker_seconds'] / HOUR:.0f}",
                f"{measured['growth']:.1f} MiB",
                f"{measured['leaked']}",
                f"MISSED: {', '.join(missed)}" if missed else "met",
            )
        )
        goals += judged
        data.append({"contender": contender.name, **measured, "goals": [goal.as_json() for goal in judged]})
    return Answer(
        title=f"Two days of {hours:g} hours, {two_days().about}",
        header=("workers", "jobs", *WHEN, "waiting p99", "worker-h", "growth", "leaked tasks", "goals"),
        rows=rows,
        notes=[
            "Mean number of workers in an hour of the first morning, noon and night, and of the second night. Drift is "
            "the difference between the nights. Growth and leaked tasks are counted from the fourth hour on.",
        ],
        goals=goals,
        data=data,
    )


# -- In the process that is measured ----------------------------------------------------------------------------------


def live(number: int, hours: float) -> dict[str, Any]:
    """Run one contender for two days, and return the measurements."""
    scenario = two_days(hours)
    memory: list[int] = []
    tasks: list[int] = []

    def measure(pool: WorkerPool[Job, None], loop: asyncio.AbstractEventLoop) -> None:
        gc.collect()
        memory.append(resident())
        # Each running job has a task; the others belong to the simulator and the pool.
        tasks.append(len(asyncio.all_tasks(loop)) - pool.stats.running)

    def steer(pool: WorkerPool[Job, None], loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(scenario.settle, measure, pool, loop)
        loop.call_at(scenario.seconds - 1.0, measure, pool, loop)

    policy = contenders(scenario)[number].policy
    result = simulate(scenario, policy, every=EVERY, keep_decisions=False, steer=steer)
    workers = [_workers(result, hours * HOUR * centre, hours * HOUR / 48) for centre in _CENTRES]
    return {
        "good": result.overall.good,
        "workers": workers,
        "drift": workers[3] - workers[2],
        "waiting_p99": result.settled.waiting.p99,
        "worker_seconds": result.overall.worker_seconds,
        "growth": (memory[1] - memory[0]) / 2**20,
        "leaked": tasks[1] - tasks[0],
    }


def _workers(result: Result, around: float, span: float) -> float:
    return fmean(sample.wanted for sample in result.trace if abs(sample.at - around) <= span)


if __name__ == "__main__":
    print(json.dumps(live(int(sys.argv[1]), float(sys.argv[2]))))
