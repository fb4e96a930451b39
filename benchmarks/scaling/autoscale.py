"""The goals of `AutoScale`: it need not find the capacity, but must follow the backlog and remove idle workers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, repeat, takewhile
from random import Random

from asyncpool import AutoScale
from benchmarks.scaling import loads
from benchmarks.scaling.backends import Servers
from benchmarks.scaling.measure import Goal
from benchmarks.scaling.scenarios import SCENARIOS, TWENTY
from benchmarks.scaling.services import Constant
from benchmarks.scaling.simulate import Result, Scenario, simulate
from benchmarks.scaling.tables import Answer

__all__ = ["autoscale"]

MOST_INTERVALS = 2.0
MOST_TIME = 1.1
MOST_WORKER_SECONDS = 0.6
MOST_WAITING = 2.0
BURST_AT = 30.05  # between two checks of the load


def autoscale() -> Answer:
    """Measure how fast AutoScale responds, and how many workers it saves."""
    traces: dict[str, dict[str, Result]] = {}
    goals = [_intervals(traces), _go_burst(traces)]
    for name in ("on-off", "on-off-light"):
        goals += _on_off(SCENARIOS[name])
    return Answer(
        title="AutoScale: how fast it responds, and what it saves",
        header=("what", "value", "goal", "result"),
        rows=[
            (goal.what, f"{goal.value:.2f}{goal.unit}", f"<= {goal.limit:g}{goal.unit}", goal.verdict) for goal in goals
        ],
        goals=goals,
        data=[goal.as_json() for goal in goals],
        traces=traces,
    )


def _intervals(traces: dict[str, dict[str, Result]]) -> Goal:
    """Measure how many intervals it takes to reach `max_workers` after a thousand jobs arrive."""

    def load(random: Random) -> Iterator[float]:
        trickle = takewhile(lambda at: at < BURST_AT, loads.steady(10.0)(random))
        return chain(trickle, repeat(BURST_AT, 1000))

    policy = AutoScale(2, 20)
    scenario = Scenario(
        name="jump", about="a thousand jobs at once", backend=TWENTY.backend, load=load, seconds=60.0, settle=0.0
    )
    result = simulate(scenario, policy)
    reached = next(
        (at for at, event in result.decisions if at >= BURST_AT and event.new >= policy.max_workers), math.inf
    )
    traces["jump"] = {"AutoScale(2, 20)": result}
    value = (reached - BURST_AT) / policy.interval
    return Goal(
        what="a thousand jobs at once: time until all 20 workers exist",
        value=value,
        limit=MOST_INTERVALS,
        unit=" intervals",
    )


def _go_burst(traces: dict[str, dict[str, Result]]) -> Goal:
    """Measure the usual demonstration of Go's worker pools: a hundred jobs of 100 ms, two to ten workers."""
    scenario = Scenario(
        name="hundred jobs",
        about="a hundred jobs of 100 ms at once",
        backend=lambda random: Servers(1000, Constant(0.1), random=random),
        load=loads.at_once(100),
        settle=0.0,
    )
    fixed, scaled = simulate(scenario, 10, every=0.1), simulate(scenario, AutoScale(2, 10), every=0.1)
    traces["hundred jobs"] = {"fixed 10": fixed, "AutoScale(2, 10)": scaled}
    value = scaled.finished / fixed.finished
    return Goal(
        what="100 jobs of 100 ms, 2 to 10 workers: total time, relative to fixed 10",
        value=value,
        limit=MOST_TIME,
        unit="x",
    )


def _on_off(scenario: Scenario) -> list[Goal]:
    most = scenario.max_workers
    fixed, scaled = simulate(scenario, most), simulate(scenario, AutoScale(2, most))
    return [
        Goal(
            what=f"{scenario.name}: worker-seconds, relative to fixed {most}",
            value=scaled.settled.worker_seconds / fixed.settled.worker_seconds,
            limit=MOST_WORKER_SECONDS,
            unit="x",
        ),
        Goal(
            what=f"{scenario.name}: p99 waiting, relative to fixed {most} ({fixed.settled.waiting.p99 * 1e3:.0f} ms)",
            value=scaled.settled.waiting.p99 / fixed.settled.waiting.p99,
            limit=MOST_WAITING,
            unit="x",
        ),
    ]
