"""Counts failures by the type and the first line of their error, for displays and summaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from asyncpool._core.parts import Parts
from asyncpool._guard import name_of, safe_text

__all__ = ["ErrorCounts", "counting_errors_of", "error_text", "errors_of", "one_line"]

_MAX_KINDS = 1000
_MAX_TEXT = 120


class ErrorCounts:
    """How often each error occurred. Errors are counted as texts, so no error is kept.

    The texts can contain ids, and then each is new: after a thousand different ones, new ones are only counted.
    """

    def __init__(self) -> None:
        self.total = 0
        self._by_text: Counter[str] = Counter()

    @property
    def by_text(self) -> Mapping[str, int]:
        """The counts of the texts that are kept."""
        return self._by_text

    def count(self, error: BaseException) -> None:
        """Count an error."""
        self.total += 1
        text = error_text(error)
        if text in self._by_text or len(self._by_text) < _MAX_KINDS:
            self._by_text[text] += 1


# Of the pools whose streams are tracked. All streams of a pool share the counts.
_counts: WeakKeyDictionary[Parts, ErrorCounts] = WeakKeyDictionary()


def errors_of(parts: Parts) -> ErrorCounts | None:
    """Return what is counted for a pool; None if nothing counts for it."""
    return _counts.get(parts)


def counting_errors_of(parts: Parts) -> ErrorCounts:
    """Return what counts for a pool from now on."""
    return _counts.setdefault(parts, ErrorCounts())


def error_text(error: BaseException) -> str:
    """Return the type of an error and the first line of its text. Never raises, whatever the error is."""
    kind, text = name_of(type(error)), one_line(safe_text(str, error))
    return f"{kind}: {text}" if text else kind


def one_line(text: str, most: int = _MAX_TEXT) -> str:
    """Return the first line of a text that is not blank, cut and without control characters."""
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    plain = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line[:most])
    return plain if len(plain) <= most and len(line) <= most else plain[: most - 3] + "..."
