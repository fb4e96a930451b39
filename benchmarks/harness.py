"""How things are measured and shown: rounds in pairs, ratios within a round, budgets, tables.

What is measured is in the files of the questions.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

__all__ = ["ROOT", "Answer", "Budget", "Measurement", "Settings", "by_python", "machine", "measure", "show", "timed"]

ROOT = Path(__file__).resolve().parent.parent

Run: TypeAlias = Callable[[], Coroutine[Any, Any, float]]
"""One run of a contender, which returns its figure: seconds, mostly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user chose; None: as the question likes it."""

    rounds: int | None = None
    jobs: int | None = None
    loop: Literal["asyncio", "uvloop"] = "asyncio"

    def run(self, main: Coroutine[Any, Any, float]) -> float:
        """Run a coroutine on a fresh loop of the chosen kind."""
        factory = None if self.loop == "asyncio" else importlib.import_module("uvloop").new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A promise: the median of the ratios, or the worst of the values, is at most `limit`."""

    limit: float
    of: Literal["ratio", "value"] = "ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one contender needed, round by round."""

    case: str
    contender: str
    unit: str
    values: Sequence[float]
    ratios: Sequence[float] = ()  # to the first contender, in the same round; none of the first itself
    budget: Budget | None = None

    @property
    def is_held(self) -> bool | None:
        """Whether the budget is held; None if there is none."""
        if self.budget is None:
            return None
        return (median(self.ratios) if self.budget.of == "ratio" else max(self.values)) <= self.budget.limit

    def as_json(self) -> dict[str, Any]:
        """Return what is needed to compare it with other days."""
        return asdict(self) | {"is_held": self.is_held}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question's title, and what was measured."""

    title: str
    measurements: Sequence[Measurement] = field(default_factory=list)


def by_python(budgets: Mapping[tuple[int, int], float]) -> Budget | None:
    """Return the ratio promised for this Python; newer ones than all must hold what is promised for the newest."""
    this = sys.version_info[:2]
    limit = budgets.get(this, budgets[max(budgets)] if this > max(budgets) else None)
    return None if limit is None else Budget(limit=limit)


async def timed(work: Callable[[], Coroutine[Any, Any, int]], expected: int) -> float:
    """Return the seconds that some work takes, which returns how many jobs it has done."""
    began = time.perf_counter()
    done = await work()
    seconds = time.perf_counter() - began
    if done != expected:
        raise RuntimeError(f"{expected} jobs went in, {done} came out")
    return seconds


def measure(
    settings: Settings,
    contenders: Mapping[str, Run],
    *,
    rounds: int,
    case: str,
    unit: str,
    scale: float = 1.0,
    budgets: Mapping[str, Budget | None] | None = None,
) -> list[Measurement]:
    """Run the contenders in turn, round after round, and compare each with the first one of the same round.

    In turn, because the noise of a machine comes in waves that are longer than a round. The first round warms up.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(1 + (settings.rounds or rounds)):
        for name, run in contenders.items():
            gc.collect()  # nobody pays for what the one before has left
            figure = settings.run(run()) * scale
            if round_number:
                figures[name].append(figure)
    first = next(iter(figures.values()))
    return [
        Measurement(
            case=case,
            contender=name,
            unit=unit,
            values=values,
            ratios=() if values is first else [value / base for value, base in zip(values, first, strict=True)],
            budget=(budgets or {}).get(name),
        )
        for name, values in figures.items()
    ]


# -- What is printed ---------------------------------------------------------------------------------------------------

_HEAD = ("", "", "best", "median", "unit", "ratio", "spread", "budget", "")


def show(answer: Answer) -> str:
    """Return an answer as a table."""
    rows = [_HEAD, *(_row(measurement) for measurement in answer.measurements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    is_text = (0, 1, 4, 8)
    lines = (
        "  ".join(
            cell.ljust(width) if column in is_text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join((answer.title, *("  " + line for line in lines)))


def _row(measurement: Measurement) -> tuple[str, ...]:
    values, ratios, budget = measurement.values, measurement.ratios, measurement.budget
    verdict = {None: "", True: "held", False: "not held"}[measurement.is_held]
    return (
        measurement.case,
        measurement.contender,
        f"{min(values):.2f}",
        f"{median(values):.2f}",
        measurement.unit,
        f"{median(ratios):.3f}" if ratios else "",
        f"{min(ratios):.3f}..{max(ratios):.3f}" if ratios else "",
        f"<= {budget.limit:g}" + (f" {measurement.unit}" if budget.of == "value" else "") if budget else "",
        verdict,
    )


def machine(settings: Settings) -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "machine": f"{_count_cpus()} x {_processor()}, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "loop": settings.loop if settings.loop == "asyncio" else _versions(["uvloop"]),
        "versions": _versions(["asyncpool-toolkit", "anyio"]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _versions(names: Iterable[str]) -> str:
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (run from the source)")
    return ", ".join(found)


def _count_cpus() -> int:
    if sys.platform == "linux":
        import os

        return len(os.sched_getaffinity(0))  # what this process may use, which is less in a container
    from multiprocessing import cpu_count

    return cpu_count()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short", "HEAD").strip() + (", changed" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
