"""What can become of a case, and the words a case has for it. Leaves to others: running cases, printing them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """How a library came out of a case."""

    HELD = "held"
    WRONG = "wrong"
    HANG = "hang"
    LACKS = "-"
    MISSING = "not installed"


@dataclass(frozen=True, slots=True)
class Cell:
    """One library in one case. `how` is why it is not held, in a few words."""

    case: str
    library: str
    verdict: Verdict
    how: str = ""

    def __str__(self) -> str:
        return f"{self.verdict} ({self.how})" if self.how else str(self.verdict)


class Wrong(Exception):
    """A promise of the case is broken: says how, in a few words."""


class Lacks(Exception):
    """The library has no such feature: names it."""


def check(condition: object, how: str) -> None:
    """Raise `Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(how)


def leaf(error: BaseException) -> BaseException:
    """The first error inside of exception groups: task groups wrap what one failing job raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def in_few_words(error: BaseException) -> str:
    """The type of an error and the first line of its text."""
    error = leaf(error)
    text = next(iter(str(error).strip().splitlines()), "")
    words = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return words if len(words) <= 100 else f"{words[:97]}..."
