"""The blocks of the README that are written from saved results: each stands between two marks."""

from __future__ import annotations

__all__ = ["CannotReport", "with_block"]


class CannotReport(Exception):
    """What is missing for a report, as a sentence."""


def with_block(text: str, name: str, block: str) -> str:
    """Return a text with what stands between the two marks of this name replaced.

    Raises:
        CannotReport: It has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise CannotReport(f"the README has no place for the figures: it needs the lines {begin} and {end}")
    return f"{before}{begin}\n{block}\n{end}{after}"
