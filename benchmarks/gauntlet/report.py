"""The results as JSON, as lines for the terminal, and as the document."""

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

RESULTS = ROOT / "benchmarks" / "results" / "gauntlet.json"
DOCUMENT = ROOT / "docs" / "gauntlet.md"
README = ROOT / "README.md"

TITLES = {
    "isolation": "One job cannot hurt another",
    "streams": "Lazy in, streaming out",
    "stopping": "Stop works",
    "callers": "A pool that many share",
    "limits": "Limits and rates",
    "retries": "Trying again",
}
BAD = (Verdict.WRONG, Verdict.HANG)


def as_text(cells: Sequence[Cell]) -> str:
    """How many of its cells each library holds."""
    names = list(dict.fromkeys(cell.library for cell in cells))
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:<{width}}  {_total(cell for cell in cells if cell.library == name)}" for name in names)


def save(cells: Sequence[Cell]) -> None:
    """Write the results, with what they are results of."""
    distributions = [library.distribution for library in LIBRARIES.values() if library.distribution] + ["uvloop"]
    cases: dict[str, dict[str, str]] = {}
    for cell in cells:
        cases.setdefault(cell.case, {})[cell.library] = f"{cell.verdict}: {cell.how}" if cell.how else cell.verdict
    content = {
        "about": {
            "commit": _commit(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": {name: installed(name) for name in distributions},
        },
        "cells": cases,
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
    """Write the document, and the block of the README, from the saved results.

    Raises:
        ValueError: A cell is not among the results.
        CannotReport: The README has no place for the block.
    """
    results = load()
    readme = with_block(README.read_text(encoding="utf-8"), "gauntlet", as_readme_block(results))
    DOCUMENT.write_text(as_markdown(results), encoding="utf-8")
    README.write_text(readme, encoding="utf-8")


def as_readme_block(results: Mapping[str, Any]) -> str:
    """How many cases each library holds, and how it fails in the others."""
    lines = ["| | held | wrong | hang | lacks the feature |", "|---|---:|---:|---:|---:|"]
    for library in LIBRARIES:
        verdicts = [cell.verdict for cell in results["cells"] if cell.library == library]
        if len(verdicts) - verdicts.count(Verdict.LACKS) > 1:  # not what is only a limiter
            counts = [verdicts.count(one) for one in (Verdict.HELD, Verdict.WRONG, Verdict.HANG, Verdict.LACKS)]
            lines.append(f"| {library} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def as_markdown(results: Mapping[str, Any]) -> str:
    """The document.

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
        _INTRODUCTION.format(commit=about["commit"], python=about["python"], system=about["system"], seconds=SECONDS),
        _table(table),
        _USED.format(rows="\n".join(_used(name, about["versions"]) for name in LIBRARIES)),
    ]
    for theme, cases in groupby(CASES.values(), key=lambda case: case.theme):
        parts.append(f"## {TITLES[theme]}")
        parts += [_section(case, table) for case in cases]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# The gauntlet

The known ways in which worker pools die, and who survives them. Each row is a case with a sentence that must hold, each
column a library, and each cell was run in a process of its own, with a limit of {seconds:.0f} seconds:

* **held**: what the case says is so;
* **wrong**: it is not, and [below](#one-job-cannot-hurt-another) stands how;
* **hang**: the process did not end in time;
* **-**: the library lacks the feature that the case is about, which is no fault.

```console
$ python3 -m pip install -e '.[bench]'
$ python -m benchmarks.gauntlet                      # all of it: some minutes
$ python -m benchmarks.gauntlet --only aqute --case context-leaks
$ python -m benchmarks.gauntlet --list
$ python -m benchmarks.gauntlet --save && python -m benchmarks.gauntlet --report     # writes this page
```

The peers that are not installed are left out, and named. This page was made on Python {python}, {system}, at commit
`{commit}`. The cases were chosen by us, from our own list of what a pool must not do and from what users of all these
libraries complain about; so a column says what a library does in these cases, not how good it is at its own purpose.
Each library is asked through the interface that its documentation recommends, in its best form. If you see one that is
used badly, it is a bug of ours."""

_USED = """\
## How each library is used

| | version | how |
|---|---|---|
{rows}

The code is in [benchmarks/gauntlet](../benchmarks/gauntlet): `ours.py`, `recipes.py` and `peers.py`."""


def _table(table: Mapping[tuple[str, str], Cell]) -> str:
    lines = [f"| | {' | '.join(LIBRARIES)} |", f"|---{'|:-:' * len(LIBRARIES)}|"]
    for name in CASES:
        cells = [_short(table[name, library].verdict) for library in LIBRARIES]
        lines.append(f"| [{name}](#{name}) | {' | '.join(cells)} |")
    totals = [_total(cell for cell in table.values() if cell.library == library) for library in LIBRARIES]
    lines.append(f"| **held, of those that it has** | {' | '.join(totals)} |")
    return "\n".join(lines)


def _used(name: str, versions: Mapping[str, str]) -> str:
    library = LIBRARIES[name]
    number = versions[library.distribution] if library.distribution else ""
    how = re.sub(r"\s+", " ", type(library).__doc__ or "").strip()
    return f"| {name} | {number} | {how} |"


def _section(case: Case, table: Mapping[tuple[str, str], Cell]) -> str:
    cells = [table[case.name, library] for library in LIBRARIES]
    parts = [f"### {case.name}", _statement(case)]
    if bad := [cell for cell in cells if cell.verdict in BAD]:
        parts.append("\n".join(_how(cell) for cell in bad))
        if note := NOTES.get((case.name, ALL)):
            parts.append(note)
    lacks: dict[str, list[str]] = {}
    for cell in cells:
        # aiolimiter is no pool: it is in the table for one row, and need not be told of in each.
        if cell.verdict is Verdict.LACKS and cell.library != "aiolimiter":
            lacks.setdefault(cell.how, []).append(cell.library)
    if lacks:
        parts.append("\n".join(f"* `-` {', '.join(names)}: lacks {reason}." for reason, names in lacks.items()))
    return "\n\n".join(parts)


def _statement(case: Case) -> str:
    if not case.schedules:
        return case.statement
    return f"{case.statement} Asked in the plain order, and under {case.schedules} random schedules."


def _how(cell: Cell) -> str:
    note = NOTES.get((cell.case, cell.library))
    how = f": {cell.how}" if cell.how else ""
    return f"* **{cell.library}**: {cell.verdict}{how}.{f' {note}' if note else ''}"


def _short(verdict: Verdict) -> str:
    return f"**{verdict}**" if verdict in BAD else str(verdict)


def _total(cells: Iterable[Cell]) -> str:
    verdicts = [cell.verdict for cell in cells]
    tried = [verdict for verdict in verdicts if verdict not in (Verdict.LACKS, Verdict.MISSING)]
    return f"{tried.count(Verdict.HELD)} of {len(tried)}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"
