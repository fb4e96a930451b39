"""The best fixed number of workers, found by trying sizes; and how fast a policy reaches its throughput."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from asyncpool import WorkerPool
from benchmarks.scaling.simulate import Job, Result, Scenario, simulate

__all__ = ["Best", "best_fixed", "recovery", "smallest_best", "unsteady"]

SWEEP_SECONDS = 60.0
SWEEP_SETTLE = 10.0
WITHIN = 0.01
WINDOW = 10.0
JOBS = 2000
ENOUGH = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best fixed size, or the best one for each phase of the backend."""

    sizes: tuple[int, ...]
    throughput: tuple[float, ...]
    """Successful jobs per second with these sizes, in each phase alone."""
    sweep: dict[int, float]
    """Successful jobs per second by size, for all sizes tried in the first phase."""
    result: Result
    """The whole scenario with these sizes: the pool is resized at the moment when a phase begins."""


def smallest_best(measure: Callable[[int], float | None], most: int) -> tuple[int, dict[int, float | None]]:
    """Return the smallest size within 1% of the highest throughput, and all measurements.

    Assumes that the throughput has one maximum. Tries sizes a quarter apart, then all sizes near a peak, then bisects
    the interval below it.

    Args:
        measure: Returns the throughput of a size; None if it and all larger ones are not allowed.
        most: The largest size to try.
    """
    tried: dict[int, float | None] = {}

    def value(size: int) -> float:
        if size not in tried:
            tried[size] = measure(size)
        return tried[size] or 0.0

    size, coarse = 1, [1]
    while size < most:
        size = min(most, max(size + 1, round(size * 1.25)))
        coarse.append(size)
    for size in coarse:
        value(size)
        if tried[size] is None:
            break
    top = max(tried, key=value)
    enough = (1 - WITHIN) * value(top)
    below = max((size for size in tried if size < top), default=top)
    above = min((size for size in tried if size > top), default=top)
    if value(above) < enough or value((top + above) // 2) > value(top):  # a peak, whose exact place is not known yet
        for size in range(below + 1, above):
            value(size)
        enough = (1 - WITHIN) * max(map(value, tried))
    high = min(size for size in tried if value(size) >= enough)
    low = max((size for size in tried if size < high), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        if value(middle) >= enough:
            high = middle
        else:
            low = middle
    return high, dict(sorted(tried.items()))


@lru_cache
def _sweep(scenario: Scenario) -> tuple[int, dict[int, float | None]]:
    def measure(size: int) -> float | None:
        totals = simulate(scenario, size, seconds=SWEEP_SECONDS, settle=SWEEP_SETTLE).settled
        return totals.throughput if totals.overload <= scenario.max_overload else None

    if scenario.best is not None:
        return scenario.best, {scenario.best: measure(scenario.best)}
    return smallest_best(measure, scenario.most)


@lru_cache
def best_fixed(scenario: Scenario, *, seconds: float | None = None, seed: int = 1) -> Best:
    """Find the best fixed size for each phase, and run the scenario with these sizes."""
    phases = scenario.phases or ((0.0, scenario),)
    sweeps = [_sweep(phase) for _, phase in phases]
    sizes = tuple(size for size, _ in sweeps)

    def steer(pool: WorkerPool[Job, None], loop: asyncio.AbstractEventLoop) -> None:
        for (since, _), size in zip(phases[1:], sizes[1:], strict=True):
            loop.call_at(since, pool.resize, size)

    result = simulate(scenario, sizes[0], seconds=seconds, seed=seed, steer=steer)
    return Best(
        sizes=sizes,
        throughput=tuple(tried[size] or 0.0 for size, tried in sweeps),
        sweep={size: speed or 0.0 for size, speed in sweeps[0][1].items()},
        result=result,
    )


def recovery(result: Result, best: Best) -> list[float]:
    """Return, for each phase of the backend, after how many seconds the pool has recovered; inf: not in that phase.

    It has recovered when a window begins that has 95% of the throughput of the phase's best fixed size. Windows begin
    at the samples of the trace, and are as long as the best size takes for 2000 jobs. That is long enough that chance
    alone keeps none of the best size's own windows below 95% (with a coefficient of variation of 0.5, 5% are more than
    four standard deviations). `unsteady` measures what happens after that.
    """
    every = result.trace[0].at
    return [
        next((at * every for at, share in enumerate(shares) if share >= ENOUGH), math.inf)
        for shares in _windows(result, best, lambda speed: JOBS / speed)
    ]


def unsteady(result: Result, best: Best) -> float:
    """Return the share of all windows of ten seconds, after the pool has recovered, that were below 95%."""
    every = result.trace[0].at
    after = [
        share
        for back, shares in zip(recovery(result, best), _windows(result, best, lambda speed: WINDOW), strict=True)
        for at, share in enumerate(shares)
        if at * every >= back
    ]
    return sum(share < ENOUGH for share in after) / len(after) if after else 0.0


def _windows(result: Result, best: Best, seconds: Callable[[float], float]) -> list[list[float]]:
    """Return the throughput of each window of each phase, as a share of the best."""
    every = result.trace[0].at
    done = [sample.throughput for sample in result.trace]
    starts = [since for since, _ in result.scenario.phases] or [0.0]
    phases: list[list[float]] = []
    for start, end, speed in zip(starts, [*starts[1:], result.finished], best.throughput, strict=True):
        span = math.ceil(seconds(speed) / every)
        first, last = round(start / every), min(len(done), round(end / every))
        phases.append([sum(done[at : at + span]) / (speed * span) for at in range(first, last - span + 1)])
    return phases
