"""The comparison of each policy with the best fixed size, scenario by scenario."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.scaling.contenders import Contender, contenders
from benchmarks.scaling.loads import backlogged
from benchmarks.scaling.measure import Figures, Goal, figures, goals_of, worst
from benchmarks.scaling.oracle import Best, best_fixed
from benchmarks.scaling.simulate import Result, Scenario, simulate
from benchmarks.scaling.tables import Answer

__all__ = ["compare"]

_HEADER = (
    "scenario",
    "workers",
    "mean",
    "jobs/s",
    "of best",
    "running p99",
    "of best",
    "waiting p50",
    "p99",
    "worker-s",
    "overload",
    "start",
    "recovery",
    "unsteady",
    "goals",
)


def compare(scenarios: Sequence[Scenario], *, seeds: int = 1, others: Sequence[Contender] | None = None) -> Answer:
    """Run each scenario with the best fixed size and with each contender, once per seed.

    Args:
        scenarios: The scenarios to run.
        seeds: The number of runs. The worst value of each figure is shown and compared with the goals.
        others: The contenders besides the best fixed size; None: those of the report.
    """
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    data: list[dict[str, Any]] = []
    traces: dict[str, dict[str, Result]] = {}
    for scenario in scenarios:
        runs = range(1, seeds + 1)
        best = {seed: best_fixed(scenario, seed=seed) for seed in runs}
        fixed = f"fixed {' '.join(map(str, best[1].sizes))}"
        traces[scenario.name] = {fixed: best[1].result}
        one = worst([figures(best[seed].result, best[seed]) for seed in runs])
        rows.append(_row(scenario, fixed, one, []))
        data.append(_saved(scenario, fixed, one, [], best[1]))
        for contender in contenders(scenario) if others is None else others:
            results = {seed: simulate(scenario, contender.policy, seed=seed) for seed in runs}
            traces[scenario.name][contender.name] = results[1]
            one = worst([figures(results[seed], best[seed]) for seed in runs])
            judged: list[Goal] = []
            if contender.finds_capacity:
                judged = goals_of(f"{scenario.name}, {contender.name}", one, scenario.max_overload)
            goals += judged
            rows.append(_row(scenario, contender.name, one, judged))
            data.append(_saved(scenario, contender.name, one, judged, best[1]))
    return Answer(
        title="Compared with the best fixed size" + (f": the worst of {seeds} runs" if seeds > 1 else ""),
        header=_HEADER,
        rows=rows,
        notes=[
            "jobs/s: successful jobs. start, recovery: how long it took, after the start and after a change of the "
            "backend (the longest), until the throughput over 2000 jobs was 95% of the best, in median running times. "
            "unsteady: the share of all later windows of ten seconds in which it was below 95%.",
        ],
        goals=goals,
        data=data,
        traces=traces,
    )


def _row(scenario: Scenario, name: str, one: Figures, goals: Sequence[Goal]) -> tuple[str, ...]:
    is_endless = scenario.load is backlogged  # then the waiting time has no meaning
    missed = [goal.what.rpartition(", ")[2] for goal in goals if not goal.is_met]
    return (
        scenario.name,
        name,
        f"{one.mean_workers:.1f}",
        f"{one.throughput:.1f}",
        f"{one.share:.1%}",
        f"{one.running_p99 * 1e3:.0f} ms",
        f"{one.running_ratio:.2f}x",
        "" if is_endless else f"{one.waiting_p50 * 1e3:.0f} ms",
        "" if is_endless else f"{one.waiting_p99 * 1e3:.0f} ms",
        f"{one.worker_seconds:.0f}",
        f"{one.overload:.1%}",
        _medians(one.start),
        _medians(one.recovery),
        f"{one.unsteady:.1%}",
        f"MISSED: {', '.join(missed)}" if missed else "met" if goals else "",
    )


def _medians(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value < math.inf else "never"


def _saved(scenario: Scenario, name: str, one: Figures, goals: Sequence[Goal], best: Best) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "about": scenario.about,
        "capacity": best.result.capacity,
        "contender": name,
        "figures": asdict(one),
        "goals": [goal.as_json() for goal in goals],
        "sweep": best.sweep,
    }
