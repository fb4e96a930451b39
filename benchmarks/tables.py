"""Shows figures as text for a terminal and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median

from benchmarks.harness import Answer, Measurement, Question

__all__ = ["as_text", "cell", "markdown", "number", "wrapped"]


def number(value: float) -> str:
    """Return a number with three digits, or all digits before the decimal point."""
    if value and abs(value) < 0.01:
        return f"{value:.1g}"
    return f"{value:,.{max(0, 2 - max(0, len(str(int(abs(value)))) - 1))}f}" if value else "0"


def as_text(question: Question, answer: Answer) -> str:
    """Return an answer as tables for a terminal, one per case."""
    return "\n\n".join(
        (f"{question.title}: {question.asks}", *(_case(name, several) for name, several in answer.cases.items()))
    )


def _case(name: str, several: Sequence[Measurement]) -> str:
    units = list(dict.fromkeys(unit for one in several for unit in one.figures))
    head = ("", *units, "ratio", "spread", "budget", "")
    rows = [head, *(_row(one, units) for one in several)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = (0, len(head) - 1)
    lines = (
        "  ".join(
            one.ljust(width) if column in text else one.rjust(width)
            for column, (one, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join((f"  {name}", *("    " + line for line in lines)))


def _row(one: Measurement, units: Sequence[str]) -> tuple[str, ...]:
    figures = [number(median(one.figures[unit])) if one.figures.get(unit) else "" for unit in units]
    verdict = {None: "", True: "held", False: "MISSED"}[one.is_held]
    return (
        one.contender,
        *figures,
        f"{median(one.ratios):.3f}" if one.ratios else "",
        f"{min(one.ratios):.3f}..{max(one.ratios):.3f}" if one.ratios else "",
        str(one.budget) if one.budget else "",
        "; ".join(filter(None, (verdict, one.skipped, _failures(one)))),
    )


def _failures(one: Measurement) -> str:
    return "; ".join(f"failed: {reason}" for reason in dict.fromkeys(one.failures))


def cell(one: Measurement | None, unit: str, *, ratio: bool = False) -> str:
    """Return the median of a figure, and of the ratio, for a document, or the reason why it is missing."""
    if one is None or one.skipped:
        return "-"
    values = one.figures.get(unit)
    if not values:
        return _failures(one) or "-"
    text = number(median(values))
    if ratio and one.ratios:
        text += f" ({median(one.ratios):.2f})"
    return text + (f", {_failures(one)}" if one.failures else "")


def wrapped(text: str, *, indent: str = "") -> str:
    """Return prose for a document in lines of at most 110 columns."""
    return textwrap.fill(text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: names aligned left, figures right."""
    rule = [
        "---",
        *("---:" if any(row[column][:1].isdigit() for row in rows) else "---" for column in range(1, len(head))),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
