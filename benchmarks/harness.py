"""Measures the contenders in turn, each in a process of its own, and compares them within a round.

`questions/` says what is measured, `rivals.py` has the contenders, and `tables.py` shows the figures.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias, cast

__all__ = [
    "ROOT",
    "Answer",
    "Budget",
    "Case",
    "ChildFailed",
    "Figures",
    "Loop",
    "Measurement",
    "Question",
    "Settings",
    "ask",
    "by_python",
    "count_cpus",
    "in_a_child",
    "machine",
    "run_child",
    "run_on",
]

ROOT = Path(__file__).resolve().parent.parent

Figures: TypeAlias = dict[str, float]
"""The figures of one run, by unit. The first is the one that is compared."""

Loop: TypeAlias = Literal["asyncio", "uvloop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of the command line. None: the default of the question."""

    rounds: int | None = None
    jobs: int | None = None
    quick: bool = False
    """A twentieth of the jobs, and one round."""
    loop: Loop = "asyncio"
    only: tuple[str, ...] = ()
    """The contenders to measure, besides the reference of each case. Empty: all."""

    def count(self, jobs: int) -> int:
        """Return the number of jobs to run, given the default of the question."""
        return self.jobs or (max(1, jobs // 20) if self.quick else jobs)

    def turns(self, rounds: int) -> int:
        """Return the number of rounds to run, given the default of the question."""
        return self.rounds or (1 if self.quick else rounds)

    def contenders(self, case: Case) -> Mapping[str, int]:
        """Return the contenders of a case that are to be measured, with their rounds."""
        if not self.only:
            return case.contenders
        chosen = {name: rounds for name, rounds in case.contenders.items() if name in self.only}
        reference = next(iter(case.contenders))
        return {reference: max(chosen.values())} | chosen if chosen else {}

    def budget(self, budget: Budget | None) -> Budget | None:
        """Return a budget if it applies: it is promised only for the default sizes of the question."""
        return None if self.quick or self.jobs else budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A promise: the median of the ratios, or of a figure, is at most, or at least, `limit`."""

    limit: float
    of: str = "ratio"
    """`ratio`, or the unit of a figure."""
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{'' if self.of == 'ratio' else f' {self.of}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One table: the same work, done by several contenders."""

    name: str
    contenders: Mapping[str, int]
    """Each with its number of rounds. The first is the reference, which runs in every round."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The parameters of the children."""
    budgets: Mapping[str, Budget | None] = field(default_factory=dict)
    seconds: float = 60.0
    """The time limit of a child."""
    gibibytes: float | None = None
    """The memory limit of a child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that measurements answer."""

    name: str
    asks: str
    title: str
    cases: Callable[[Settings], Sequence[Case]]
    measure: Callable[..., Coroutine[Any, Any, Figures]]
    """Called in the child, as `measure(contender, **parameters)`."""
    are_rivals: bool = True
    """Whether the contenders are alternatives to asyncpool, which the report compares with it."""
    more_is_better: bool = False
    """Whether the first figure is better when it is larger."""
    missing: Callable[[str], str | None] = lambda contender: None
    """What a contender needs that is not installed, as a phrase."""
    method: str = ""
    """How it was measured, in a sentence or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The results of one contender, round by round."""

    case: str
    contender: str
    figures: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By unit, the values of the rounds that did not fail."""
    ratios: Sequence[float] = ()
    """Of the first figure to that of the reference in the same round. The reference itself has no ratios."""
    failures: Sequence[str] = ()
    skipped: str | None = None
    budget: Budget | None = None

    @property
    def is_held(self) -> bool | None:
        """Whether the budget is held, or None if there is no budget. A contender that failed has missed it."""
        if self.budget is None or self.skipped:
            return None
        values = self.ratios if self.budget.of == "ratio" else self.figures.get(self.budget.of)
        if not values or self.failures:
            return False
        return median(values) >= self.budget.limit if self.budget.at_least else median(values) <= self.budget.limit

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measurement:
        """Return the measurement that `asdict` has converted."""
        budget = content["budget"]
        return cls(**(dict(content) | {"budget": None if budget is None else Budget(**budget)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All measurements of a question."""

    question: str
    measurements: Sequence[Measurement]

    @property
    def cases(self) -> dict[str, list[Measurement]]:
        """The measurements by case, in order."""
        found: dict[str, list[Measurement]] = {}
        for one in self.measurements:
            found.setdefault(one.case, []).append(one)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the answer as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Answer:
        """Return the answer that `as_json` has converted."""
        measurements = [Measurement.from_json(one) for one in content["measurements"]]
        return cls(question=content["question"], measurements=measurements)


def by_python(budgets: Mapping[tuple[int, int], float]) -> Budget | None:
    """Return the ratio promised for this Python. A newer one than all must hold the promise for the newest."""
    this = sys.version_info[:2]
    limit = budgets.get(this, budgets[max(budgets)] if this > max(budgets) else None)
    return None if limit is None else Budget(limit=limit)


# -- Rounds ------------------------------------------------------------------------------------------------------------


class ChildFailed(Exception):
    """A measurement that gave no figures; the message says why."""


Measure: TypeAlias = Callable[[Question, Case, str, Settings], Figures]
"""Measures once, or raises `ChildFailed`."""


def ask(question: Question, settings: Settings, measure: Measure | None = None) -> Answer:
    """Measure all cases of a question, by default each run in a child of its own.

    The contenders take turns, because the noise of a machine comes in waves that are longer than a round.
    """
    measure = measure or in_a_child
    measurements: list[Measurement] = []
    for case in question.cases(settings):
        measurements += _measure_case(question, case, settings, measure)
    return Answer(question=question.name, measurements=measurements)


def _measure_case(question: Question, case: Case, settings: Settings, measure: Measure) -> list[Measurement]:
    contenders = settings.contenders(case)
    missing = {name: question.missing(name) for name in contenders}
    rounds: list[dict[str, Figures | str]] = []
    for number in range(max((settings.turns(rounds) for rounds in contenders.values()), default=0)):
        rounds.append({})
        for name, most in contenders.items():
            if number < settings.turns(most) and missing[name] is None:
                _report_progress(f"{question.name}: {case.name}: round {number + 1}: {name}")
                try:
                    rounds[-1][name] = measure(question, case, name, settings)
                except ChildFailed as error:
                    rounds[-1][name] = str(error)
    _report_progress("")
    return [
        _measurement(case, name, missing[name], rounds, settings.budget(case.budgets.get(name))) for name in contenders
    ]


def _measurement(
    case: Case, name: str, missing: str | None, rounds: Sequence[Mapping[str, Figures | str]], budget: Budget | None
) -> Measurement:
    reference = next(iter(case.contenders))
    figures: dict[str, list[float]] = {}
    ratios: list[float] = []
    failures: list[str] = []
    for one in rounds:
        match one.get(name):
            case None:
                continue
            case str(reason):
                failures.append(reason)
                continue
            case found:
                for unit, value in found.items():
                    figures.setdefault(unit, []).append(value)
        base = one.get(reference)
        if name != reference and isinstance(base, dict) and _first(base):
            ratios.append(_first(found) / _first(base))
    return Measurement(
        case=case.name,
        contender=name,
        figures=figures,
        ratios=ratios,
        failures=failures,
        skipped=missing,
        budget=budget,
    )


def _first(figures: Figures) -> float:
    return next(iter(figures.values()))


def _report_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# -- Children ----------------------------------------------------------------------------------------------------------


def in_a_child(question: Question, case: Case, contender: str, settings: Settings) -> Figures:
    """Measure once in a process of its own, without warm caches or freed memory of an earlier run.

    Raises:
        ChildFailed: It failed, took too long, or was killed.
    """
    order = {
        "question": question.name,
        "contender": contender,
        "parameters": dict(case.parameters),
        "loop": settings.loop,
        "gibibytes": case.gibibytes,
    }
    return run_child([sys.executable, "-m", "benchmarks.child", json.dumps(order)], case.seconds)


def run_child(command: Sequence[str], seconds: float) -> Figures:
    """Run a command whose last line is JSON with figures or a failure.

    Raises:
        ChildFailed: It failed, took longer than `seconds`, or was killed.
    """
    # In a session of its own: its children can be killed with it, and Ctrl+C reaches only this process.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaint = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"not done after {seconds:g} s") from None
    finally:
        _end(process)
    return _read(printed, complaint, process.returncode)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _read(printed: str, complaint: str, status: int) -> Figures:
    try:
        content = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        if status < 0:
            raise ChildFailed(f"killed by {signal.Signals(-status).name}") from None
        last = (complaint.strip().splitlines() or ["no output"])[-1]
        raise ChildFailed(f"exit status {status}: {last}") from None
    if "failed" in content:
        raise ChildFailed(content["failed"])
    return cast(Figures, content["figures"])


def run_on(loop: Loop, main: Coroutine[Any, Any, Figures]) -> Figures:
    """Run a coroutine on a new loop of the given kind."""
    factory = None if loop == "asyncio" else importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


# -- The machine -------------------------------------------------------------------------------------------------------


def machine(settings: Settings) -> dict[str, str]:
    """Return what the figures depend on: machine, versions and commit."""
    return {
        "machine": f"{count_cpus()} x {_processor()}, {platform.system()} {platform.release()}",
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


def count_cpus() -> int:
    """Return how many cores this process can use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))  # fewer than the machine has in a container
    return os.cpu_count() or 1


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
        # Results saved by an earlier run do not count as changes.
        changes = git("status", "--porcelain", "--", "asyncpool", "benchmarks", "examples", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD").strip() + (", changed" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
