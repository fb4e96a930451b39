"""Replaces the blocks of the README that are generated from saved results. Each is between two marks."""

from __future__ import annotations

__all__ = ["CannotReport", "with_block"]


class CannotReport(Exception):
    """Something is missing for a report; the message says what."""


def with_block(text: str, name: str, block: str) -> str:
    """Return the text with a new block between the two marks of this name.

    Raises:
        CannotReport: The text has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, found_too, after = rest.partition(end)
    if not found or not found_too:
        raise CannotReport(f"the README has no place for the figures: it needs the lines {begin} and {end}")
    return f"{before}{begin}\n{block}\n{end}{after}"
