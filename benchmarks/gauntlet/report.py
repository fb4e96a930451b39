"""Shows the results as JSON, as lines for the terminal, and as the document."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.gauntlet.cases import CASES, Case
from benchmarks.gauntlet.libraries import LIBRARIES
from benchmarks.gauntlet.notes import ALL, NOTES
from benchmarks.gauntlet.runner import ROOT, SECONDS
from benchmarks.gauntlet.verdicts import Cell, Verdict
from benchmarks.installed import installed
from benchmarks.readme import with_block
from benchmarks.tables import wrapped

RESULTS = ROOT / "benchmarks" / "results" / "gauntlet.json"
DOCUMENT = ROOT / "docs" / "gauntlet.md"
README = ROOT / "README.md"

TITLES = {
    "isolation": "One job cannot hurt another",
    "streams": "Lazy input, streaming output",
    "stopping": "Stopping",
    "callers": "A pool shared by many callers",
    "limits": "Limits and rates",
    "retries": "Retries",
}
BAD = (Verdict.WRONG, Verdict.HANG)
_COLUMNS = [name for name in LIBRARIES if name != "aiolimiter"]
"""The libraries of the table: aiolimiter is only a limiter, for one case."""
IN_README = ("asyncpool", "gather + Semaphore", "Queue workers", "aqute", "aiometer")


def as_text(cells: Sequence[Cell]) -> str:
    """Return how many of its cells each library holds."""
    names = list(dict.fromkeys(cell.library for cell in cells))
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:<{width}}  {_total(cell for cell in cells if cell.library == name)}" for name in names)


def save(cells: Sequence[Cell], *, only: Sequence[str] = ()) -> None:
    """Write the results and their versions. With `only`, replace the results of these libraries and keep the others."""
    names = [LIBRARIES[name].distribution for name in only or LIBRARIES]
    versions = {name: installed(name) for name in (*names, "uvloop") if name}
    where = {
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    about: dict[str, Any] = {**where, "versions": versions}
    cases: dict[str, dict[str, str]] = {}
    if only:
        kept = json.loads(RESULTS.read_text(encoding="utf-8"))
        about, cases = kept["about"], kept["cells"]
        about["versions"] |= versions
        about.setdefault("later", {}).update(dict.fromkeys(only, where))
    for cell in cells:
        cases.setdefault(cell.case, {})[cell.library] = f"{cell.verdict}: {cell.how}" if cell.how else cell.verdict
    content = {
        "about": about,
        "cells": {
            case: {library: answers[library] for library in LIBRARIES if library in answers}
            for case, answers in cases.items()
        },
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load() -> dict[str, Any]:
    """Read the saved results."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    content["cells"] = [
        Cell(case, library, Verdict(verdict), how)
        for case, answers in content["cells"].items()
        for library, (verdict, _, how) in ((library, answer.partition(": ")) for library, answer in answers.items())
    ]
    return content


def write() -> None:
    """Write the document and the block of the README from the saved results.

    Raises:
        ValueError: A cell is not among the results.
        CannotReport: The README has no marks for the block.
    """
    results = load()
    readme = with_block(README.read_text(encoding="utf-8"), "gauntlet", as_readme_block(results))
    DOCUMENT.write_text(as_markdown(results), encoding="utf-8")
    README.write_text(readme, encoding="utf-8")


def as_readme_block(results: Mapping[str, Any]) -> str:
    """Return how many cases asyncpool and four well-known alternatives hold."""
    lines = ["| | held | wrong | hang | lacks |", "|---|---:|---:|---:|---:|"]
    for library in IN_README:
        verdicts = [cell.verdict for cell in results["cells"] if cell.library == library]
        counts = [verdicts.count(one) for one in (Verdict.HELD, Verdict.WRONG, Verdict.HANG, Verdict.LACKS)]
        lines.append(f"| {library} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def as_markdown(results: Mapping[str, Any]) -> str:
    """Return the document.

    Raises:
        ValueError: A cell is not among the results.
    """
    about = results["about"]
    table = {(cell.case, cell.library): cell for cell in results["cells"]}
    for case in CASES:
        for library in LIBRARIES:
            if (case, library) not in table:
                raise ValueError(f"the saved results lack {case} of {library}")
    parts = [
        _INTRODUCTION.format(
            commit=_at(about),
            python=about["python"],
            system=about["system"],
            seconds=SECONDS,
            patience=_patience(),
        ),
        _table(table),
        _missing(table),
        _BETTER,
        _USED.format(rows="\n".join(_used(name, about["versions"]) for name in LIBRARIES)),
    ]
    for theme, cases in groupby(CASES.values(), key=lambda case: case.theme):
        parts.append(f"## {TITLES[theme]}")
        parts += [_section(case, table) for case in cases]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# The gauntlet

This page shows how worker pools fail, and which libraries prevent it. Each row is a case: a statement that must hold.
Each column is a library. Each cell ran in its own process:

* **held**: the statement holds.
* **wrong**: it does not; [the cases](#one-job-cannot-hurt-another) say how.
* **hang**: the process did not end within {seconds:.0f} seconds{patience}.
* empty: the library [lacks a feature](#missing-features) that the case needs. This is not counted against it.

```console
$ python3 -m pip install -e '.[bench]'
$ python -m benchmarks.gauntlet                      # all cells: a few minutes
$ python -m benchmarks.gauntlet --only aqute --case context-leaks
```

The results are from Python {python}, {system}, at commit {commit}.
We chose the cases from our own requirements and from issues of these libraries. So a column shows what a library does
in these cases, not how well it serves its own purpose. If a library is used badly, please report it as a bug."""

_BETTER = """\
## When another library is the better choice

* [streamable](https://pypi.org/project/streamable/) and [aiostream](https://pypi.org/project/aiostream/): you want
  stream operators, such as grouping, zipping or filtering. asyncpool only has `map` and `outcomes`.
* [AntFlow](https://pypi.org/project/AntFlow/): your script is a pipeline of stages, and you want a dashboard of them.
* [async-batch-llm](https://pypi.org/project/async-batch-llm/) (0.28): your jobs are LLM calls. It has clients for
  several providers, token and cost limits, and checkpoints.
* [aiometer](https://pypi.org/project/aiometer/): you use Trio.
* [aiojobs](https://pypi.org/project/aiojobs/): you only need background tasks that are cleaned up.
* [tasklane](https://pypi.org/project/tasklane/), or a queue loop of your own: your jobs take microseconds, and do not
  need a task each. [Benchmarks](benchmarks.md#where-we-lose) has the figures.
* `asyncio.TaskGroup`: you have few jobs, and one failure should cancel the rest."""

_USED = """\
## How each library is used

| | version | interface |
|---|---|---|
{rows}

The code is in [benchmarks/gauntlet](../benchmarks/gauntlet): `ours.py`, `recipes.py` and `peers.py`."""


def _patience() -> str:
    """Return, in parentheses, the time limits that differ from the usual one."""
    patient = [f"{name}: {SECONDS * one.patience:.0f}" for name, one in LIBRARIES.items() if one.patience != 1]
    return f" ({', '.join(patient)})" if patient else ""


def _at(about: Mapping[str, Any]) -> str:
    """Return the commit of the results, and of those libraries that were run later."""
    later = [f"{name} after `{one['commit']}`" for name, one in about.get("later", {}).items()]
    return f"`{about['commit']}`" + (f" ({', '.join(later)})" if later else "")


def _table(table: Mapping[tuple[str, str], Cell]) -> str:
    """Return the table of the cases that some library does not hold, and the names of the others."""
    lines = [f"| | {' | '.join(_COLUMNS)} |", f"|---{'|:-:' * len(_COLUMNS)}|"]
    same: list[str] = []
    for name in CASES:
        verdicts = [table[name, library].verdict for library in _COLUMNS]
        if any(verdict in BAD for verdict in verdicts):
            lines.append(f"| [{name}](#{name}) | {' | '.join(map(_short, verdicts))} |")
        else:
            same.append(f"[{name}](#{name})")
    totals = [_total(cell for cell in table.values() if cell.library == library) for library in _COLUMNS]
    lines.append(f"| **held, of the cases that apply** | {' | '.join(totals)} |")
    about = f"The last row also counts {len(same)} cases that every library with the needed features holds: "
    return "\n".join(lines) + "\n\n" + wrapped(f"{about}{', '.join(same)}.")


def _missing(table: Mapping[tuple[str, str], Cell]) -> str:
    """Return which libraries lack each feature."""
    lacks: dict[str, set[str]] = {}
    for cell in table.values():
        if cell.verdict is Verdict.LACKS and cell.library in _COLUMNS:
            lacks.setdefault(cell.how, set()).add(cell.library)
    lines = [wrapped(f"* **{feature}**: {_names(lacks[feature])}.", indent="  ") for feature in lacks]
    about = "The libraries that lack each feature. Features of a pool are listed only for libraries with a pool."
    return "\n\n".join(("## Missing features", wrapped(about), "\n".join(lines)))


def _names(libraries: set[str]) -> str:
    """Return the libraries, or the exceptions if these are fewer."""
    others = [name for name in _COLUMNS if name not in libraries]
    if len(others) < len(libraries):
        return f"all except {', '.join(others)}"
    return ", ".join(name for name in _COLUMNS if name in libraries)


def _used(name: str, versions: Mapping[str, str]) -> str:
    library = LIBRARIES[name]
    number = versions[library.distribution] if library.distribution else ""
    how = re.sub(r"\s+", " ", type(library).__doc__ or "").strip()
    return f"| {name} | {number} | {how} |"


def _section(case: Case, table: Mapping[tuple[str, str], Cell]) -> str:
    cells = [table[case.name, library] for library in LIBRARIES]
    parts = [f"### {case.name}", wrapped(_statement(case, cells))]
    bad: dict[str, list[str]] = {}
    for cell in cells:
        if cell.verdict in BAD and (how := _how(cell)):
            bad.setdefault(how, []).append(cell.library)
    if bad:
        lines = (wrapped(f"* {', '.join(names)}: {how}", indent="  ") for how, names in bad.items())
        parts.append("\n".join(lines))
    if any(cell.verdict in BAD for cell in cells) and (note := NOTES.get((case.name, ALL))):
        parts.append(wrapped(note))
    return "\n\n".join(parts)


def _statement(case: Case, cells: Iterable[Cell]) -> str:
    needs = dict.fromkeys(cell.how for cell in cells if cell.verdict is Verdict.LACKS and cell.library in _COLUMNS)
    parts = [case.statement]
    if needs:
        parts.append(f"Needs {', '.join(needs)}.")
    if case.schedules:
        parts.append(f"{case.schedules} random schedules.")
    return " ".join(parts)


def _how(cell: Cell) -> str:
    """Return the verdict, its reason and its note, or "" if the table says it all. The same text shares a line."""
    note = NOTES.get((cell.case, cell.library), "")
    if not cell.how and not note and cell.library in _COLUMNS:
        return ""
    how = f"**{cell.verdict}**, {cell.how}." if cell.how else f"**{cell.verdict}**."
    return f"{how} {note}" if note else how


def _short(verdict: Verdict) -> str:
    return f"**{verdict}**" if verdict in BAD else str(verdict).replace(Verdict.LACKS, "")


def _total(cells: Iterable[Cell]) -> str:
    verdicts = [cell.verdict for cell in cells]
    tried = [verdict for verdict in verdicts if verdict not in (Verdict.LACKS, Verdict.MISSING)]
    return f"{tried.count(Verdict.HELD)} of {len(tried)}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"
