"""The tables of docs/benchmarks/scaling.md, from the saved results: `python -m benchmarks.scaling.page` writes them.

They have only the figures that a reader needs to choose a policy; benchmarks/results/scaling.md has all. The command
`python -m benchmarks.scaling --seeds 2 --save --plots docs/scaling` writes the results and the plots.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.readme import with_block
from benchmarks.scaling.scenarios import BACKLOGGED, OPEN

__all__ = ["PAGE", "RESULTS", "with_tables"]

PAGE = ROOT / "docs" / "benchmarks" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
_IN_THE_PLOT = {"fixed 15", "fixed 18", "fixed 22", "fixed 30"}
"""Sizes between those in the table of the real server: only its plot shows them."""


def with_tables(page: str, results: Mapping[str, Any]) -> str:
    """Return the page with its tables, each between two marks, replaced by those of the results.

    Raises:
        CannotReport: A pair of marks is missing.
    """
    answers = {name: answer["data"] for name, answer in results["answers"].items()}
    blocks = {
        "backlog": _backlog(answers["scenarios"]),
        "arrivals": _arrivals(answers["scenarios"]),
        "autoscale": _autoscale(answers["autoscale"]),
        "day": _day(answers["day"]),
        "real": _real(answers["real"]),
        "about": _about(results),
    }
    for name, block in blocks.items():
        page = with_block(page, name, block)
    return page


def _scenarios(data: Sequence[Mapping[str, Any]], *, endless: bool) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Return the scenarios with or without an endless backlog: the best fixed size, AutoScale and Adaptive of each."""
    for scenario in BACKLOGGED if endless else OPEN:
        entries = [entry for entry in data if entry["scenario"] == scenario.name]
        yield f"[{scenario.name}](../scaling/{scenario.name}.svg): {scenario.about}", entries


def _backlog(data: Sequence[Mapping[str, Any]]) -> str:
    rows: list[Sequence[str]] = []
    for name, (best, *others) in _scenarios(data, endless=True):
        cells = [name, best["contender"].removeprefix("fixed ").replace(" ", ", ")]
        for other in others:
            figures = other["figures"]
            rejected = f", {figures['overload']:.0%} rejected" if figures["overload"] else ""
            cells += [f"{figures['share']:.0%}{rejected}", f"{figures['running_ratio']:.2f}x"]
        rows.append((*cells, f"{others[-1]['figures']['mean_workers']:.0f}"))
    header = ("backend", "best size", "AutoScale: throughput", "p99", "Adaptive: throughput", "p99", "workers")
    return _table(header, rows)


def _arrivals(data: Sequence[Mapping[str, Any]]) -> str:
    rows: list[Sequence[str]] = []
    for name, entries in _scenarios(data, endless=False):
        best, *others = (entry["figures"] for entry in entries)
        rows.append(
            (
                name,
                f"{best['waiting_p99'] * 1e3:.0f} ms",
                *(
                    cell
                    for other in others
                    for cell in (
                        f"{other['waiting_p99'] * 1e3:.0f} ms",
                        f"{other['worker_seconds'] / best['worker_seconds']:.0%}",
                    )
                ),
            )
        )
    header = ("load", "20 workers: p99", "AutoScale: p99", "workers", "Adaptive: p99", "workers")
    return _table(header, rows)


def _autoscale(data: Sequence[Mapping[str, Any]]) -> str:
    names = tuple(f"{scenario.name}: " for scenario in OPEN)
    rows = [
        (goal["what"], f"{goal['value']:.2f}{goal['unit']}", f"at most {goal['limit']:g}{goal['unit']}")
        for goal in data
        if not goal["what"].startswith(names)  # those figures are in the table of arrivals
    ]
    return _table(("measured", "value", "goal"), rows)


def _day(data: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            entry["contender"],
            *(f"{workers:.1f}" for workers in entry["workers"]),
            f"{entry['waiting_p99']:.1f} s",
            f"{entry['growth']:.1f} MiB",
            f"{entry['leaked']}",
        )
        for entry in data
    ]
    header = (
        "policy",
        "first morning",
        "noon",
        "night",
        "second night",
        "p99 waiting",
        "memory growth",
        "leaked tasks",
    )
    return _table(header, rows)


def _real(data: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        (
            name,
            f"{figures['mean_workers']:.0f}",
            f"{figures['throughput']:.0f}",
            f"{figures['running_p50'] * 1e3:.0f} ms",
            f"{figures['running_p99'] * 1e3:.0f} ms",
        )
        for name, figures in data.items()
        if name not in _IN_THE_PLOT
    ]
    return _table(("policy", "workers", "jobs/s", "running p50", "p99"), rows)


def _about(results: Mapping[str, Any]) -> str:
    about, goals = results["about"], results["goals"]
    met = sum(goal["is_met"] for goal in goals)
    return (
        f"Measured on {about['machine']}, {about['python']}, commit {about['commit']}. "
        f"{met} of {len(goals)} goals were met."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


if __name__ == "__main__":
    saved = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), saved), encoding="utf-8")
    print(f"Written: {PAGE}")
