"""`python -m benchmarks.gauntlet`: run the cases, print the table, write the document."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing

from benchmarks.command import finish
from benchmarks.gauntlet import report
from benchmarks.gauntlet.cases import CASES, is_possible
from benchmarks.gauntlet.libraries import LIBRARIES, is_installed
from benchmarks.gauntlet.ours import Ours
from benchmarks.gauntlet.runner import SECONDS, run
from benchmarks.gauntlet.verdicts import Cell, Verdict
from benchmarks.readme import CannotReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit status: 1 if asyncpool does not hold one of its cells."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print(_listing())
        return 0
    if options.report:
        try:
            report.write()
        except (OSError, ValueError, CannotReport) as error:
            parser.error(f"--report needs the results of a run with --save: {error}")
        print(f"Written: {report.DOCUMENT}, {report.README}")
        return 0
    if options.save and options.case:
        parser.error("--save needs all cases: omit --case")
    libraries = [LIBRARIES[name] for name in dict.fromkeys(options.only or LIBRARIES)]
    missing = [library.distribution or library.name for library in libraries if not is_installed(library)]
    cases = list(dict.fromkeys(options.case or CASES))
    missing += sorted({CASES[name].needs or "" for name in cases if not is_possible(CASES[name])})
    if missing:
        print(f"Skipped, not installed: python3 -m pip install {' '.join(missing)}", file=sys.stderr)
        if options.save:
            parser.error("--save needs the missing packages: install them first")
    names = [library.name for library in libraries if is_installed(library)]
    cells = asyncio.run(_ask([(case, name) for case in cases for name in names], options.seconds, options.at_once))
    print(f"\n{report.as_text(cells)}")
    broken = sorted({f"{cell.library} ({cell.how})" for cell in cells if cell.verdict is Verdict.MISSING})
    if broken:
        print(f"\nCannot be imported: {', '.join(broken)}", file=sys.stderr)
    if options.save and not broken:
        report.save(cells, only=list(dict.fromkeys(options.only or ())))
        print(f"\nSaved as {report.RESULTS}; --report writes the document")
    lost = [cell for cell in cells if cell.library == Ours.name and cell.verdict not in _FINE]
    return 1 if lost else 0


_FINE = {Verdict.HELD, Verdict.MISSING}  # missing: uvloop, which one case needs


async def _ask(pairs: list[tuple[str, str]], seconds: float, at_once: int) -> list[Cell]:
    cells: list[Cell] = []
    width = max((len(case) for case, _ in pairs), default=0)
    # Closed here if standard output is closed. At the end of asyncio.run it is too late: that also cancels what asyncio
    # needs to start a process, and a caller that waits for that process hangs.
    async with aclosing(run(pairs, seconds=seconds, at_once=at_once)) as answers:
        async for cell in answers:
            print(f"{cell.case:<{width}}  {cell.library:<21}  {cell}", flush=True)
            cells.append(cell)
    return cells


def _listing() -> str:
    width = max(map(len, CASES))
    lines = ["Cases:"]
    lines += [f"  {case.name:<{width}}  {case.statement}" for case in CASES.values()]
    lines += ["", "Libraries:"]
    lines += [f"  {name}{'' if is_installed(library) else '  (not installed)'}" for name, library in LIBRARIES.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gauntlet", description=__doc__)
    parser.add_argument(
        "--only", action="append", type=_library, metavar="LIBRARY", help="run only this one; can be repeated"
    )
    parser.add_argument(
        "--case", action="append", type=_case, metavar="NAME", help="run only this one; can be repeated"
    )
    parser.add_argument("--seconds", type=_positive(float), default=SECONDS, help="time limit of a cell (default: 9)")
    parser.add_argument("--at-once", type=_positive(int), default=2, help="number of concurrent processes (default: 2)")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/gauntlet.json; with --only, update it"
    )
    parser.add_argument("--report", action="store_true", help="write docs/gauntlet.md from the saved results")
    parser.add_argument("--list", action="store_true", help="list the cases and the libraries; run nothing")
    return parser


def _library(name: str) -> str:
    if name not in LIBRARIES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(LIBRARIES)}, got {name!r}")
    return name


def _case(name: str) -> str:
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(CASES)}, got {name!r}")
    return name


def _positive(kind: type[int] | type[float]):
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(finish(main))
