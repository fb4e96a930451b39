"""`python -m benchmarks`: measure and print tables. `python -m benchmarks report`: write the documents."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.command import finish
from benchmarks.harness import Answer, Settings, ask, machine
from benchmarks.installed import installed
from benchmarks.questions import QUESTIONS
from benchmarks.readme import CannotReport
from benchmarks.rivals import RIVALS
from benchmarks.tables import as_text

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if "report" in options.questions:
        if options.questions != ["report"]:
            parser.error("report cannot be combined with questions: it only writes the saved results")
        return _report()
    if options.loop == "uvloop" and installed("uvloop") is None:
        parser.error("uvloop is not installed: python3 -m pip install 'asyncpool-toolkit[bench]'")
    if options.save and (options.quick or options.jobs):
        parser.error("--save needs runs of the usual size: omit --quick and --jobs")
    settings = Settings(
        rounds=options.rounds,
        jobs=options.jobs,
        quick=options.quick,
        loop=options.loop,
        only=tuple(options.only or ()),
    )
    about = machine(settings) | {"peers": _peers()}
    width = max(map(len, about))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in about.items()), flush=True)

    answers: dict[str, Answer] = {}
    path: Path | None = None
    for name in dict.fromkeys(options.questions or QUESTIONS):
        answers[name] = ask(QUESTIONS[name], settings)
        print(f"\n{as_text(QUESTIONS[name], answers[name])}", flush=True)
        if options.save:  # after each question, because a later one might be interrupted
            path = save(RESULTS, settings, about, answers)
    if path is not None:
        print(f"\nSaved as {path}")
        _report()
    missed = [
        f"{name}: {one.case}: {one.contender}"
        for name, answer in answers.items()
        for one in answer.measurements
        if one.is_held is False
    ]
    if missed:
        print("\n".join(("\nBudgets missed:", *("  " + one for one in missed))))
    return 1 if options.check and missed else 0


def save(folder: Path, settings: Settings, about: dict[str, str], answers: dict[str, Answer]) -> Path:
    """Write the answers into the file of this Python and loop. Answers to other questions stay."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{sys.version_info.major}.{sys.version_info.minor}-{settings.loop}.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["answers"] if path.exists() else {}
    new = {
        name: {"commit": about["commit"], "date": about["date"]} | answer.as_json() for name, answer in answers.items()
    }
    if settings.only:
        where = f"{about['date'].partition(' ')[0]} on {about['machine']}"
        about = _kept_about(json.loads(path.read_text(encoding="utf-8"))["about"], settings)
        new = {name: _with_later(kept[name], one, settings, where) for name, one in new.items() if name in kept}
    merged = kept | new
    content = {"about": about, "answers": {name: merged[name] for name in QUESTIONS if name in merged}}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _with_later(kept: dict[str, Any], new: dict[str, Any], settings: Settings, where: str) -> dict[str, Any]:
    """Return a saved answer in which the chosen contenders have new measurements."""
    added = {(one["case"], one["contender"]): one for one in new["measurements"] if one["contender"] in settings.only}
    measurements: list[dict[str, Any]] = []
    for case in dict.fromkeys(one["case"] for one in kept["measurements"]):
        old = {one["contender"]: one for one in kept["measurements"] if one["case"] == case}
        measurements += (old | {name: one for (of, name), one in added.items() if of == case}).values()
    later = kept.get("later", {}) | {name: where for _, name in added}
    return kept | {"measurements": measurements, "later": later}


def _kept_about(about: dict[str, str], settings: Settings) -> dict[str, str]:
    """Return what is saved about a run, with the versions of the chosen contenders."""
    versions = dict(one.rsplit(" ", 1) for one in about["peers"].split(", "))
    for name in settings.only:
        if distribution := RIVALS[name].distribution:
            versions[distribution] = installed(distribution) or "not installed"
    return about | {"peers": ", ".join(f"{name} {versions[name]}" for name in sorted(versions, key=str.lower))}


def _report() -> int:
    try:
        written = report.write(RESULTS, report.DOCUMENT, report.README)
    except CannotReport as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"Written: {path.relative_to(report.ROOT)}" for path in written))
    return 0


def _peers() -> str:
    found = {rival.distribution for rival in RIVALS.values() if rival.distribution} | {"aiohttp", "pillow"}
    names = sorted(found, key=str.lower)
    return ", ".join(f"{name} {installed(name) or 'not installed'}" for name in names)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(("questions:", *(f"  {name:<13} {one.asks}" for name, one in QUESTIONS.items()))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", type=_question, metavar="QUESTION", help="see below; or report")
    parser.add_argument("--rounds", type=_positive, help="number of rounds (default: depends on the question)")
    parser.add_argument("--jobs", type=_positive, help="number of jobs (default: depends on the question)")
    parser.add_argument(
        "--only",
        action="append",
        choices=RIVALS,
        metavar="CONTENDER",
        help="measure only this one and the reference; can be repeated; with --save, the others keep their figures",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round, few jobs, no budgets: to see that everything runs"
    )
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="default: asyncio")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results/, and the report")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a budget is missed")
    return parser


def _question(name: str) -> str:
    if name != "report" and name not in QUESTIONS:
        raise argparse.ArgumentTypeError(f"must be report, or one of {', '.join(QUESTIONS)}, got {name!r}")
    return name


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(finish(main))
