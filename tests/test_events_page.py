"""docs/events.md lists all events, with all of their fields."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import get_args

import pytest

from asyncpool import events
from tests.markdown import ROOT

PAGE = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
COMMON = ("pool",)


def tables_of(text: str) -> list[tuple[str, list[str]]]:
    """Return the events in the tables of a page, in order, each with its fields."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) ?\|$", text, re.MULTILINE)
    # What is in parentheses explains the field before it.
    return [(name, re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", without_calls(cell)))) for name, cell in rows]


def without_calls(cell: str) -> str:
    """Return a cell without the names of functions: `pause()` is not a field."""
    return re.sub(r"`\w+\(\)`", "", cell)


def exported() -> list[tuple[str, list[str]]]:
    """Return the events of the union, in order, each with its fields."""
    found: list[tuple[str, list[str]]] = []
    for event in get_args(events.Event):
        names = [field.name for field in fields(event)]
        assert tuple(names[: len(COMMON)]) == COMMON
        found.append((event.__name__, names[len(COMMON) :]))
    return found


def test_the_tables_have_all_events_and_their_fields() -> None:
    assert tables_of(PAGE) == exported()


def test_the_union_has_all_events() -> None:
    public = {name for name in events.__all__ if isinstance(getattr(events, name), type)}
    assert public - {"Observers"} == {event.__name__ for event in get_args(events.Event)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `id`, `outcome` |", "| `id` |"),
        ("| `reason`, `queued` |", "| `queued`, `reason` |"),
        ("| `PoolResumed` |", "| `PoolContinued` |"),
        ("| `drains` (whether", "| `drains`, `grace` (whether"),
        ("| `JobEnded` | it has its outcome | `id`, `outcome` |\n", ""),
    ],
)
def test_a_table_that_is_wrong_is_found(old: str, new: str) -> None:
    assert PAGE.count(old) == 1
    assert tables_of(PAGE.replace(old, new)) != exported()
