"""The formats of a result: text for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.scaling.measure import Goal
from benchmarks.scaling.simulate import Result

__all__ = ["Answer", "as_markdown", "as_text", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a question: a title, a table, its goals, and the data to save."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    goals: Sequence[Goal] = ()
    data: Any = None
    traces: dict[str, dict[str, Result]] = field(default_factory=dict)
    """By scenario and contender, for the plots."""


def as_text(answer: Answer) -> str:
    """Format an answer for a terminal."""
    rows = [answer.header, *answer.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(answer.header))]
    is_text = [_is_text(answer, column) for column in range(len(answer.header))]
    lines = (
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in rows
    )
    return "\n".join((answer.title, *("  " + line for line in (*lines, *answer.notes))))


def as_markdown(answer: Answer) -> str:
    """Format an answer as Markdown."""
    rule = ["---" if _is_text(answer, column) else "---:" for column in range(len(answer.header))]
    lines = ("| " + " | ".join(row) + " |" for row in (answer.header, rule, *answer.rows))
    return "\n\n".join((f"### {answer.title}", "\n".join(lines), *answer.notes)) + "\n"


def summary(goals: Sequence[Goal]) -> str:
    """Return how many goals were met, and list each one that was missed."""
    missed = [goal for goal in goals if not goal.is_met]
    lines = [f"Goals: {len(goals) - len(missed)} met, {len(missed)} missed"]
    return "\n".join((*lines, *(f"  {goal}" for goal in missed)))


def _is_text(answer: Answer, column: int) -> bool:
    return column == 0 or not all(row[column][:1].isdigit() for row in answer.rows if row[column] not in ("", "never"))
