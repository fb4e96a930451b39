"""`python -m benchmarks`: ask the questions, print the tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cost_per_job import cost_per_job
from benchmarks.efficiency import efficiency
from benchmarks.harness import Answer, Settings, machine, show
from benchmarks.memory import memory
from benchmarks.rate import rate
from benchmarks.retries import retries
from benchmarks.round_trip import round_trip

QUESTIONS: dict[str, Callable[[Settings], Answer]] = {
    "cost": cost_per_job,
    "memory": memory,
    "efficiency": efficiency,
    "round-trip": round_trip,
    "retries": retries,
    "rate": rate,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, print, and return the exit status."""
    options = _parser().parse_args(arguments)
    settings = Settings(rounds=options.rounds, jobs=options.jobs, loop=options.loop)
    about = machine(settings)
    width = max(map(len, about))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in about.items()), flush=True)

    answers: dict[str, Answer] = {}
    for name in dict.fromkeys(options.questions or QUESTIONS):
        answers[name] = QUESTIONS[name](settings)
        print(f"\n{show(answers[name])}", flush=True)

    if options.save:
        print(f"\nSaved as {_save(settings, about, answers)}")
    missed = sum(one.is_held is False for answer in answers.values() for one in answer.measurements)
    return 1 if options.check and missed else 0


def _save(settings: Settings, about: dict[str, str], answers: dict[str, Answer]) -> Path:
    path = RESULTS / f"{sys.version_info.major}.{sys.version_info.minor}-{settings.loop}.json"
    path.parent.mkdir(exist_ok=True)
    content = {
        "about": about,
        "answers": {
            name: {"title": answer.title, "measurements": [one.as_json() for one in answer.measurements]}
            for name, answer in answers.items()
        },
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "questions", nargs="*", type=_question, metavar="QUESTION", help=f"{', '.join(QUESTIONS)} (default: all)"
    )
    parser.add_argument("--rounds", type=_positive, help="measured rounds (default: as the question likes it)")
    parser.add_argument("--jobs", type=_positive, help="jobs in a round (default: as the question likes it)")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="default: asyncio")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results/")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a budget is not held")
    return parser


def _question(name: str) -> str:
    if name not in QUESTIONS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(QUESTIONS)}, got {name!r}")
    return name


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
