"""The comparison of a result with the best fixed size, and the goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.scaling.oracle import Best, recovery, unsteady
from benchmarks.scaling.simulate import Result

__all__ = ["Figures", "Goal", "figures", "goals_of", "worst"]

LEAST_THROUGHPUT = 0.95
MOST_RUNNING = 1.5
MOST_RECOVERY = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A value that must be at most, or at least, its limit."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the limit. A missing value (nan) never is."""
        slack = 1e-9 * abs(self.limit)  # the rounding error of a sum of floats
        return self.value >= self.limit - slack if self.at_least else self.value <= self.limit + slack

    @property
    def verdict(self) -> str:
        """The result in a word."""
        return "met" if self.is_met else "MISSED"

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{self.what}: {self.value:.4g}{self.unit}, goal {sign} {self.limit:g}{self.unit}: {self.verdict}"

    def as_json(self) -> dict[str, Any]:
        """Return the goal as plain values, to save it."""
        return asdict(self) | {"is_met": self.is_met}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures that are compared. Times are in seconds. All but `start` exclude the time to settle."""

    throughput: float
    """Successful jobs per second."""
    share: float
    """The throughput as a share of that of the best fixed size."""
    running_p50: float
    running_p99: float
    running_ratio: float
    """The p99 as a multiple of that of the best fixed size."""
    waiting_p50: float
    waiting_p99: float
    worker_seconds: float
    mean_workers: float
    overload: float
    """The share of the attempts that the backend rejected."""
    start: float | None
    """How long it took to reach the best throughput after the start, in median running times (see `oracle.recovery`);
    None if chance, or the load, keeps even the best fixed size from reaching it at once."""
    recovery: float | None
    """The same after a change of the backend's capacity: the longest; None if the capacity never changes."""
    unsteady: float
    """The share of all later windows of ten seconds that were below 95% again. Not a goal."""


def figures(result: Result, best: Best) -> Figures:
    """Compare a result with the best fixed size on the same seed."""
    one, other = result.settled, best.result.settled
    caught_up = [seconds / other.running.p50 for seconds in recovery(result, best)]
    return Figures(
        throughput=one.throughput,
        share=one.throughput / other.throughput,
        running_p50=one.running.p50,
        running_p99=one.running.p99,
        running_ratio=one.running.p99 / other.running.p99,
        waiting_p50=one.waiting.p50,
        waiting_p99=one.waiting.p99,
        worker_seconds=one.worker_seconds,
        mean_workers=one.mean_workers,
        overload=one.overload,
        start=None if recovery(best.result, best)[0] else caught_up[0],
        recovery=max(caught_up[1:], default=None),
        unsteady=unsteady(result, best),
    )


def worst(several: Sequence[Figures]) -> Figures:
    """Return the worst value of each figure over several seeds."""
    first, *_ = several
    values: dict[str, Any] = {}
    for name in asdict(first):
        known = [value for one in several if (value := getattr(one, name)) is not None]
        values[name] = (min if name in ("throughput", "share") else max)(known, default=None)
    return Figures(**values)


def goals_of(name: str, one: Figures, most_overload: float) -> list[Goal]:
    """Return the goals of a policy that must find the capacity of the backend."""
    goals = [
        Goal(what=f"{name}, throughput", value=one.share * 100, limit=LEAST_THROUGHPUT * 100, at_least=True, unit="%"),
        Goal(what=f"{name}, p99 running", value=one.running_ratio, limit=MOST_RUNNING, unit="x"),
        Goal(what=f"{name}, overloads", value=one.overload * 100, limit=most_overload * 100, unit="%"),
    ]
    if one.recovery is not None:
        goals.append(Goal(what=f"{name}, recovery", value=one.recovery, limit=MOST_RECOVERY, unit=" medians"))
    return goals
