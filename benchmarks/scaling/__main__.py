"""`python -m benchmarks.scaling`: run the simulations, print the tables, and report which goals were missed."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.command import finish
from benchmarks.harness import Settings, machine
from benchmarks.scaling.autoscale import autoscale
from benchmarks.scaling.compare import compare
from benchmarks.scaling.contenders import rivals
from benchmarks.scaling.day import day
from benchmarks.scaling.plots import plot
from benchmarks.scaling.real import real
from benchmarks.scaling.scenarios import SCENARIOS
from benchmarks.scaling.tables import Answer, as_markdown, as_text, summary

RESULTS = Path(__file__).resolve().parent.parent / "results"
OTHERS: dict[str, Callable[[], Answer]] = {"autoscale": autoscale, "day": day, "real": real}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulations, print the results, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print(_listing())
        return 0
    if options.plots is not None:
        if find_spec("matplotlib") is None:
            parser.error("--plots needs matplotlib: pip install 'asyncpool-toolkit[bench]'")
        try:
            options.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--plots {options.plots}: {error.strerror}")

    about = machine(Settings())
    width = max(map(len, about))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in about.items()), flush=True)
    selected = list(dict.fromkeys(options.questions or (*SCENARIOS, *OTHERS)))
    scenarios = [SCENARIOS[name] for name in selected if name in SCENARIOS]
    questions: dict[str, Callable[[], Answer]] = {name: OTHERS[name] for name in selected if name in OTHERS}
    if scenarios:
        others = rivals() if options.rivals else None
        questions = {"scenarios": lambda: compare(scenarios, seeds=options.seeds, others=others), **questions}

    answers: dict[str, Answer] = {}
    for name, ask in questions.items():
        answers[name] = ask()
        print(f"\n{as_text(answers[name])}", flush=True)
        if options.plots is not None:
            for scenario, results in answers[name].traces.items():
                print(f"Drawn: {plot(scenario, results, options.plots)}")
    goals = [goal for answer in answers.values() for goal in answer.goals]
    print(f"\n{summary(goals)}")
    if options.save:
        print(f"\nSaved as {' and '.join(map(str, _save(about, answers)))}")
    return 1 if options.check and not all(goal.is_met for goal in goals) else 0


def _save(about: dict[str, str], answers: dict[str, Answer]) -> tuple[Path, Path]:
    RESULTS.mkdir(exist_ok=True)
    goals = [goal for answer in answers.values() for goal in answer.goals]
    content = {
        "about": about,
        "answers": {name: {"title": answer.title, "data": answer.data} for name, answer in answers.items()},
        "goals": [goal.as_json() for goal in goals],
    }
    data, table = RESULTS / "scaling.json", RESULTS / "scaling.md"
    data.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
    where = "; ".join(f"{key}: {value}" for key, value in about.items())
    table.write_text(
        "\n".join((*map(as_markdown, answers.values()), summary(goals).replace("\n  ", "\n- "), "", where, ""))
    )
    return data, table


def _plain(value: Any) -> Any:
    """Replace what JSON does not have: infinity becomes "never", and nan becomes null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "never"
    return value


def _listing() -> str:
    lines = {name: scenario.about for name, scenario in SCENARIOS.items()}
    lines |= {name: (ask.__doc__ or "").partition("\n")[0] for name, ask in OTHERS.items()}
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {about}" for name, about in lines.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description="Compare scaling policies with the best fixed number of workers.",
    )
    parser.add_argument(
        "questions", nargs="*", type=_question, metavar="QUESTION", help="see --list (default: all; takes minutes)"
    )
    parser.add_argument("--list", action="store_true", help="list the questions and exit")
    parser.add_argument(
        "--seeds", type=_positive, default=1, help="runs of each scenario; the worst counts (default: 1)"
    )
    parser.add_argument(
        "--rivals", action="store_true", help="compare Adaptive with published algorithms in the scenarios (slow)"
    )
    parser.add_argument("--save", action="store_true", help="write the figures and the tables to benchmarks/results/")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the traces as SVG files in DIR")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    return parser


def _question(name: str) -> str:
    if name not in SCENARIOS and name not in OTHERS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join((*SCENARIOS, *OTHERS))}, got {name!r}")
    return name


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(finish(main))
