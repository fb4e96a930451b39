"""`python -m benchmarks report`: writes docs/benchmarks.md, its plots, and a block of the README, from what was saved.

Everything in them comes from benchmarks/results/*.json, and nothing is written by hand: so it holds where we lose, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import ROOT, Answer, Measurement, Question
from benchmarks.plots import PLOTS
from benchmarks.questions import QUESTIONS
from benchmarks.questions.cost import HEADLINE
from benchmarks.questions.http import NAIVE
from benchmarks.readme import CannotReport, with_block
from benchmarks.rivals import OURS, REFERENCE, RIVALS
from benchmarks.tables import cell, markdown

__all__ = [
    "DOCUMENT",
    "README",
    "ROOT",
    "Results",
    "document",
    "load",
    "readme_block",
    "write",
]

DOCUMENT = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
_FILE = re.compile(r"(\d+\.\d+)-(asyncio|uvloop)\.json")
_BARE = "asyncio.Queue workers"
_WITHIN = 0.02
"""Closer than this is as good as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What was measured on one Python and one loop."""

    python: str
    loop: str
    about: Mapping[str, str]
    answers: Mapping[str, Answer]
    commits: Mapping[str, str]
    """By question."""

    @property
    def name(self) -> str:
        """As a column is headed."""
        return self.python if self.loop == "asyncio" else f"{self.python} uvloop"

    def find(self, question: str, contender: str, matches: Callable[[str], bool]) -> Measurement | None:
        """Return the first measurement of a contender in a case whose name matches."""
        for one in self.answers[question].measurements if question in self.answers else ():
            if one.contender == contender and matches(one.case):
                return one
        return None


def load(folder: Path) -> list[Results]:
    """Return all results, one for each file: the default loop first, then uvloop, each from the oldest Python on.

    Raises:
        CannotReport: There is none.
    """
    found: list[Results] = []
    for path in folder.glob("*.json"):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            Results(
                python=match[1],
                loop=match[2],
                about=content["about"],
                answers={name: Answer.from_json(one) for name, one in content["answers"].items() if name in QUESTIONS},
                commits={name: one["commit"] for name, one in content["answers"].items()},
            )
        )
    if not found:
        raise CannotReport(f"{folder} has no results yet: make bench ARGS=--save")
    return sorted(found, key=lambda one: (one.loop, [int(part) for part in one.python.split(".")]))


def write(folder: Path, target: Path, readme: Path) -> list[Path]:
    """Write the document, its plots beside it, and the README's block; return what was written.

    Raises:
        CannotReport: There are no results, no matplotlib, or no place for the block.
    """
    results = load(folder)
    block = with_block(readme.read_text(encoding="utf-8"), "benchmarks", readme_block(results))
    plots = target.parent / target.stem
    plots.mkdir(parents=True, exist_ok=True)
    written = [target, readme]
    main = _main(results)
    for name, plot in PLOTS.items():
        if plot.question in main.answers:
            try:
                plot.draw(main.answers[plot.question], plots / f"{name}.svg")
            except ModuleNotFoundError:
                raise CannotReport("plots need python3 -m pip install 'asyncpool-toolkit[bench]'") from None
            written.append(plots / f"{name}.svg")
    target.write_text(document(results), encoding="utf-8")
    readme.write_text(block, encoding="utf-8")
    return written


def _main(results: Sequence[Results]) -> Results:
    """The one that is drawn and told in full: the oldest Python, on its own loop."""
    return results[0]


# -- The document ------------------------------------------------------------------------------------------------------


def document(results: Sequence[Results]) -> str:
    """Return docs/benchmarks.md."""
    parts = [_INTRODUCTION, *_machines(results), *_losses(results), *_contenders()]
    for question in QUESTIONS.values():
        those = [one for one in results if question.name in one.answers]
        if those:
            parts += [f"## {question.title}", f"{question.asks} {question.method}", *_plot(question)]
            parts += _tables(question, those)
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks report` from [benchmarks/results](../benchmarks/results): no figure is typed in by
hand.

Each figure comes from a fresh process, which does one run of one contender, checks that every value came out once, and
prints one line. A contender that fails, hangs, loses results or takes too much memory has that as its result. The
contenders take turns, A B C A B C, because the noise of a machine comes in waves; a ratio compares two of the same
turn, and what is printed is the median over the turns (in brackets: the ratio to the first of the table). Two cores,
loopback and empty jobs are not your production: ratios carry over, digits do not. We wrote both the pool and the
benchmark, so judge the [contenders](../benchmarks/rivals.py) yourself: each is there in the best form that we know,
bounded to the same number of jobs at a time, with all its values read. What the medians come from, turn by turn, is in
the JSON files.

To see it on your machine, in some ten minutes for each line (`--quick` tries in one whether all of it runs):

```console
$ make bench                                                    # print it
$ make bench ARGS="--save"                                      # keep it in benchmarks/results, write this page
$ make bench ARGS="--save --loop uvloop"
$ make bench ARGS="--save" PYTHON=python3.13 VENV=.venv-3.13    # results of several Pythons stand side by side
$ make bench ARGS="cost growth --check"                         # some questions; exit status 1 if a budget is missed
```"""


def _machines(results: Sequence[Results]) -> Iterator[str]:
    yield "## What it was measured on"
    yield markdown(
        ("", "commit", "machine", "versions"),
        [
            (
                f"{one.about['python']}, {one.about['loop']}",
                "; ".join(dict.fromkeys(one.commits.values())),
                one.about["machine"],
                one.about["versions"],
            )
            for one in results
        ],
    )
    yield f"Other libraries, on {_main(results).name}: {_main(results).about['peers']}."


# In words and not only in tables: who reads a library's own benchmark looks for this first.
def _losses(results: Sequence[Results]) -> Iterator[str]:
    yield "## Where we lose"
    yield (
        f"All that is better than `pool.outcomes` (`pool.run` for round trips) by more than {_WITHIN:.0%} on "
        f"{_main(results).name}, and how many times better. What each does not do for that is in the next table."
    )
    main = _main(results)
    rows: list[tuple[str, str]] = []
    for name, answer in main.answers.items():
        question = QUESTIONS[name]
        if not question.are_rivals:
            continue
        for case, several in answer.cases.items():
            better = _better(question, several)
            if better:
                rows.append((f"{question.title}: {case}", ", ".join(f"{who} {factor:.2f}x" for who, factor in better)))
    yield markdown(("", "better"), rows) if rows else "Nothing."
    missed = [
        f"- {one.name}: {QUESTIONS[name].title}: {measured.case}: {measured.contender}, {measured.budget}"
        for one in results
        for name, answer in one.answers.items()
        for measured in answer.measurements
        if measured.is_held is False
    ]
    yield "\n".join(("Budgets of ours that were missed:", "", *missed)) if missed else "All budgets of ours were held."


def _better(question: Question, several: Sequence[Measurement]) -> list[tuple[str, float]]:
    """Return who did better than we did, and by what factor."""
    medians = {one.contender: median(next(iter(one.figures.values()))) for one in several if one.figures}
    ours = next((value for name, value in medians.items() if name.startswith("pool.")), None)
    if not ours:
        return []
    factors = {
        name: value / ours if question.more_is_better else ours / value
        for name, value in medians.items()
        if value and not name.startswith("pool.")
    }
    return sorted(((name, factor) for name, factor in factors.items() if factor > 1 + _WITHIN), key=lambda one: -one[1])


def _contenders() -> Iterator[str]:
    yield "## The contenders"
    yield (
        "Isolates: each job has a task of its own, so that what one does to its task or its context variables is not "
        "the next one's. Goes on: a failure costs no other job's value, and the reader is told of it. Streams: the "
        "first value is there before the last job has begun. Bounds: neither inputs nor values pile up. Tests try "
        "these out."
    )
    yield markdown(
        ("", "isolates", "goes on", "streams", "bounds", "what it is"),
        [
            (name, *("yes" if has else "no" for has in (one.isolates, one.goes_on, one.streams, one.bounds)), one.about)
            for name, one in RIVALS.items()
        ],
    )


def _plot(question: Question) -> Iterator[str]:
    for name, plot in PLOTS.items():
        if plot.question == question.name:
            yield f"![{plot.title}](benchmarks/{name}.svg)"


def _tables(question: Question, results: Sequence[Results]) -> Iterator[str]:
    """A table for each case, with a column for each Python if there is but one figure, else one for each figure."""
    main = results[0]
    for case, several in main.answers[question.name].cases.items():
        units = list(dict.fromkeys(unit for one in several for unit in one.figures))
        if len(units) == 1:
            rows = [
                (one.contender, *(cell(_same(other, question, one), units[0], ratio=True) for other in results))
                for one in several
            ]
            yield f"**{case}**, {units[0]}"
            yield markdown(("", *(other.name for other in results)), rows)
        else:
            others = [(other.name, other) for other in results] if len(several) <= _FEW else [(main.name, main)]
            for name, other in others:
                yield f"**{case}**, {name}"
                yield markdown(
                    ("", *units), [(one.contender, *_cells(_same(other, question, one), units)) for one in several]
                )


_FEW = 6
"""Contenders; with more, only one Python is shown, and the others are in the files."""


def _cells(one: Measurement | None, units: Sequence[str]) -> Iterator[str]:
    yield cell(one, units[0], ratio=True)
    for unit in units[1:]:
        yield cell(one, unit) if one is not None and one.figures.get(unit) else "-"


def _same(results: Results, question: Question, one: Measurement) -> Measurement | None:
    return results.find(question.name, one.contender, lambda case: case == one.case)


# -- The block of the README -------------------------------------------------------------------------------------------


def readme_block(results: Sequence[Results]) -> str:
    """Return the figures that the README shows."""
    pythons = [one for one in results if one.loop == "asyncio"] or list(results)
    main = pythons[0]
    costs = [
        (f"{kind}: {name}", *(_cost(one, kind, name) for one in pythons))
        for kind in ("no-op", "yields once")
        for name in (*OURS, _BARE, REFERENCE)
    ]
    others = [
        ("memory that 1,000,000 jobs take, MiB", *_pair(main, "growth", "MiB", REFERENCE, "1,000,000 ")),
        ("first result of 10,000 jobs, in jobs' times", *_pair(main, "first-result", "jobs' times", REFERENCE)),
        ("jobs of 1-10 ms, 500 workers, % of ideal", *_pair(main, "efficiency", "% of ideal", _BARE, " 500 ")),
        ("5,000 HTTP requests: requests/s", *_pair(main, "http", "requests/s", NAIVE)),
        ("the most connections at a time", *_pair(main, "http", "peak connections", NAIVE)),
        ("errors, if the server takes 100 connections", *_pair(main, "http", "errors", NAIVE, "the server takes")),
    ]
    return "\n\n".join(
        (
            markdown((f"µs/job, {HEADLINE} workers", *(f"Python {one.name}" for one in pythons)), costs),
            f"In brackets: of naive `gather`, in the same turn. And on Python {main.python}:",
            markdown(("", "`pool.outcomes`", "beside it"), others),
        )
    )


def _cost(results: Results, kind: str, contender: str) -> str:
    found = results.find("cost", contender, lambda case: case.startswith(f"{kind}, {HEADLINE} workers"))
    return cell(found, "µs/job", ratio=True)


def _pair(results: Results, question: str, unit: str, other: str, part: str = "") -> tuple[str, str]:
    ours = results.find(question, "pool.outcomes", lambda case: part in case)
    theirs = results.find(question, other, lambda case: part in case)
    return cell(ours, unit), f"{other}: {cell(theirs, unit)}"
