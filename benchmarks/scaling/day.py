"""Two days on virtual time: whether a policy drifts from one to the next, and whether anything grows.

Each runs in a process of its own, as `benchmarks/memory.py` does: memory that was freed hides what comes after.
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
    """Two days of so many hours. Jobs take seconds, so that there are hundred thousands of them and not millions."""
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
    """Let each policy through two days."""
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    data: list[dict[str, Any]] = []
    for number, contender in enumerate(contenders(two_days(hours))):
        command = [sys.executable, "-m", "benchmarks.scaling.day", str(number), str(hours)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        seen = json.loads(done.stdout)
        judged = [
            Goal(what=f"day, {contender.name}, drift", value=abs(seen["drift"]), limit=MOST_DRIFT, unit=" workers"),
            Goal(what=f"day, {contender.name}, growth", value=seen["growth"], limit=MOST_GROWTH, unit=" MiB"),
            Goal(what=f"day, {contender.name}, leaked tasks", value=seen["leaked"], limit=0),
        ]
        missed = [goal.what.rpartition(", ")[2] for goal in judged if not goal.is_held]
        rows.append(
            (
                contender.name,
                f"{seen['good']:,}",
                *(f"{workers:.1f}" for workers in seen["workers"]),
                f"{seen['waiting_p99']:.2f} s",
                f"{seen['worker_seconds'] / HOUR:.0f}",
                f"{seen['growth']:.1f} MiB",
                f"{seen['leaked']}",
                f"MISSED: {', '.join(missed)}" if missed else "held",
            )
        )
        goals += judged
        data.append({"contender": contender.name, **seen, "goals": [goal.as_json() for goal in judged]})
    return Answer(
        title=f"Two days of {hours:g} hours, {two_days().about}",
        head=("workers", "jobs", *WHEN, "waiting p99", "worker-h", "growth", "leaked tasks", "goals"),
        rows=rows,
        notes=[
            "Mean workers in an hour of the first morning, noon and night, and of the second night: drift is the "
            "difference of the nights. Growth and leaks are from the fourth hour on.",
        ],
        goals=goals,
        data=data,
    )


# -- In the process that is measured ----------------------------------------------------------------------------------


def live(number: int, hours: float) -> dict[str, Any]:
    """Let one contender through the days, and return what was seen."""
    scenario = two_days(hours)
    memory: list[int] = []
    tasks: list[int] = []

    def look(pool: WorkerPool[Job, None], loop: asyncio.AbstractEventLoop) -> None:
        gc.collect()
        memory.append(resident())
        # Running jobs have a task each; what is left is the simulator's and the pool's own.
        tasks.append(len(asyncio.all_tasks(loop)) - pool.stats.running)

    def steer(pool: WorkerPool[Job, None], loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(scenario.settle, look, pool, loop)
        loop.call_at(scenario.seconds - 1.0, look, pool, loop)

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
