"""`python -m benchmarks report`: writes docs/benchmarks.md, its plots and a block of the README from saved results.

All figures come from benchmarks/results/*.json and none is written by hand, including those where asyncpool loses.
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
from benchmarks.rivals import REFERENCE, RIVALS
from benchmarks.tables import cell, markdown, wrapped

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
"""Differences up to this count as equal."""
_MOST_COLUMNS = 6
"""A table with more is too wide to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The results of one Python and one loop."""

    python: str
    loop: str
    about: Mapping[str, str]
    answers: Mapping[str, Answer]
    commits: Mapping[str, str]
    """By question."""
    later: Mapping[str, str]
    """The date and machine of each contender that was measured later than the others."""

    @property
    def name(self) -> str:
        """The heading of the column."""
        return self.python if self.loop == "asyncio" else f"{self.python} uvloop"

    def find(self, question: str, contender: str, matches: Callable[[str], bool]) -> Measurement | None:
        """Return the first measurement of a contender in a case whose name matches."""
        for one in self.answers[question].measurements if question in self.answers else ():
            if one.contender == contender and matches(one.case):
                return one
        return None


def load(folder: Path) -> list[Results]:
    """Return the results of all files: the default loop first, then uvloop, each ordered by Python version.

    Raises:
        CannotReport: There are no results.
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
                later={
                    contender: where
                    for one in content["answers"].values()
                    for contender, where in one.get("later", {}).items()
                },
            )
        )
    if not found:
        raise CannotReport(f"{folder} has no results yet: make bench ARGS=--save")
    return sorted(found, key=lambda one: (one.loop, [int(part) for part in one.python.split(".")]))


def write(folder: Path, target: Path, readme: Path) -> list[Path]:
    """Write the document, its plots and the block of the README, and return the paths written.

    Raises:
        CannotReport: There are no results, no matplotlib, or no marks for the block.
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
    """Return the results that are drawn and shown completely: those of the oldest Python on asyncio."""
    return results[0]


# -- The document ------------------------------------------------------------------------------------------------------


def document(results: Sequence[Results]) -> str:
    """Return docs/benchmarks.md."""
    parts = [_INTRODUCTION, *_machines(results), *_losses(results), *_contenders()]
    for question in QUESTIONS.values():
        those = [one for one in results if question.name in one.answers]
        if those:
            parts += [f"## {question.title}", wrapped(f"{question.asks} {question.method}"), *_plot(question)]
            parts += _tables(question, those)
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Benchmarks

`python -m benchmarks report` writes this page from [benchmarks/results](../benchmarks/results).

Each figure comes from a new process, which runs one contender once and checks that every value arrives exactly once.
The contenders take turns, because the noise of a machine comes in waves. The tables show medians, and in parentheses
the median ratio to the first row, compared within the same round. Ratios carry over to other machines better than
absolute figures. We wrote both the pool and the benchmarks: please check the [contenders](../benchmarks/rivals.py),
each of which is used in the best form that we know.

To measure on your machine (about ten minutes per line):

```console
$ make bench                                  # print the tables
$ make bench ARGS="--save"                    # save the results, write this page
$ make bench ARGS="--save --loop uvloop"
$ make bench ARGS="--save" PYTHON=python3.13 VENV=.venv-3.13    # another column
$ make bench ARGS="cost growth --check"       # exit status 1 if a budget is missed
```"""


def _machines(results: Sequence[Results]) -> Iterator[str]:
    yield "## Environment"
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
    yield wrapped(f"Other libraries, on {_main(results).name}: {_main(results).about['peers']}.")
    later: dict[tuple[str, str], list[str]] = {}
    for one in results:
        for contender, where in one.later.items():
            later.setdefault((contender, where), []).append(one.name)
    for (contender, where), names in later.items():
        yield wrapped(f"{contender} was measured later than the others: {where} ({', '.join(names)}).")


# Readers of a library's own benchmarks look for this first.
def _losses(results: Sequence[Results]) -> Iterator[str]:
    yield "## Where we lose"
    yield wrapped(
        f"These contenders are better than `pool.outcomes` (`pool.run` for round trips) by more than {_WITHIN:.0%} on "
        f"{_main(results).name}, by the given factor. [Contenders](#the-contenders) shows what they lack in return."
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
    yield (
        "\n".join(("Budgets of asyncpool that were missed:", "", *missed)) if missed else "asyncpool holds all budgets."
    )


def _better(question: Question, several: Sequence[Measurement]) -> list[tuple[str, float]]:
    """Return the contenders that are better than asyncpool, and by what factor."""
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
    yield wrapped(
        "*Isolates*: each job has its own task, so its cancellations and context variables do not affect other jobs. "
        "*Continues*: a failure costs no other job's value, and the reader receives the error. *Streams*: the first "
        "value arrives before the last job has started. *Bounds*: neither inputs nor values pile up. Tests check "
        "these."
    )
    yield markdown(
        ("", "isolates", "continues", "streams", "bounds", "what it is"),
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
    """Return the tables of a question.

    The columns are the figures, if there are several, of as many cases as fit. With one figure the first two cases have
    a column for each Python, and the others are the columns of one table.
    """
    main = results[0]
    further: dict[str, list[Measurement]] = {}
    cases = main.answers[question.name].cases
    units_of = {case: list(dict.fromkeys(unit for one in cases[case] for unit in one.figures)) for case in cases}
    are_few = sum(map(len, units_of.values())) <= _MOST_COLUMNS
    if len(cases) > 1 and are_few and all(len(units) > 1 for units in units_of.values()):
        yield f"On {main.name}:"
        yield _wide_table(cases, units_of)
        return
    for number, (case, several) in enumerate(cases.items()):
        units = units_of[case]
        if len(units) > 1:
            yield f"**{case}**, {main.name}"
            yield markdown(("", *units), [(one.contender, *_cells(one, units)) for one in several])
        elif number < 2:
            rows = [
                (one.contender, *(cell(_same(other, question, one), units[0], ratio=True) for other in results))
                for one in several
            ]
            yield f"**{case}**, {units[0]}"
            yield markdown(("", *(other.name for other in results)), rows)
        else:
            further[f"{case}, {units[0]}"] = several
    if further:
        contenders = dict.fromkeys(one.contender for several in further.values() for one in several)
        yield f"On {main.name}:"
        yield markdown(("", *further), [(name, *_of_contender(name, further)) for name in contenders])


def _wide_table(cases: Mapping[str, Sequence[Measurement]], units_of: Mapping[str, Sequence[str]]) -> str:
    """Return one table of several cases, each with several figures."""
    found = {(case, one.contender): one for case, several in cases.items() for one in several}
    rows = []
    for contender in dict.fromkeys(contender for _, contender in found):
        cells: list[str] = []
        for case, units in units_of.items():
            one = found.get((case, contender))
            cells += ["-"] * len(units) if one is None else _cells(one, units)
        rows.append((contender, *cells))
    return markdown(("", *(f"{case}, {unit}" for case, units in units_of.items() for unit in units)), rows)


def _of_contender(name: str, cases: Mapping[str, Sequence[Measurement]]) -> Iterator[str]:
    for several in cases.values():
        one = next((one for one in several if one.contender == name), None)
        yield "-" if one is None else cell(one, next(iter(one.figures), ""), ratio=True)


def _cells(one: Measurement, units: Sequence[str]) -> Iterator[str]:
    yield cell(one, units[0], ratio=True)
    for unit in units[1:]:
        yield cell(one, unit) if one.figures.get(unit) else "-"


def _same(results: Results, question: Question, one: Measurement) -> Measurement | None:
    return results.find(question.name, one.contender, lambda case: case == one.case)


# -- The block of the README -------------------------------------------------------------------------------------------

_COLUMNS = {"asyncpool": "pool.outcomes", "`asyncio.gather`": REFERENCE, "Queue workers": _BARE}


def readme_block(results: Sequence[Results]) -> str:
    """Return the figures that the README shows: those of the newest Python on asyncio."""
    main = ([one for one in results if one.loop == "asyncio"] or list(results))[-1]
    jobs = f", {HEADLINE} workers"
    rows = [
        ("overhead per job, µs", *_row(main, "cost", "µs/job", f"no-op{jobs}")),
        ("overhead per job that yields once, µs", *_row(main, "cost", "µs/job", f"yields once{jobs}")),
        ("memory growth over 1,000,000 jobs, MiB", *_row(main, "growth", "MiB", "1,000,000 ")),
        ("time to the first of 10,000 results, in job durations", *_row(main, "first-result", "job durations")),
        (
            "errors of 5,000 requests, server limited to 100 connections",
            *_row(main, "http", "errors", "server limited"),
        ),
    ]
    return markdown((f"Python {main.python}", *_COLUMNS), rows)


def _row(results: Results, question: str, unit: str, part: str = "") -> Iterator[str]:
    for contender in _COLUMNS.values():
        name = NAIVE if (question, contender) == ("http", REFERENCE) else contender
        yield cell(results.find(question, name, lambda case: part in case), unit)
