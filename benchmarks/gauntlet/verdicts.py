"""The verdicts of cases, and how a case reports one."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """The result of a library in a case."""

    HELD = "held"
    WRONG = "wrong"
    HANG = "hang"
    LACKS = "-"
    MISSING = "not installed"


@dataclass(frozen=True, slots=True)
class Cell:
    """One library in one case. `how` says briefly why the case is not held."""

    case: str
    library: str
    verdict: Verdict
    how: str = ""

    def __str__(self) -> str:
        return f"{self.verdict} ({self.how})" if self.how else str(self.verdict)


class Wrong(Exception):
    """The statement of the case does not hold; the message says briefly how."""


class Lacks(Exception):
    """The library does not have a feature; the message names it."""


def check(condition: object, how: str) -> None:
    """Raise `Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(how)


def leaf(error: BaseException) -> BaseException:
    """Return the first error inside of exception groups, in which task groups wrap the error of a job."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def in_few_words(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    error = leaf(error)
    text = next(iter(str(error).strip().splitlines()), "")
    words = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return words if len(words) <= 100 else f"{words[:97]}..."
