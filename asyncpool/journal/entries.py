"""The keys of jobs, and what a journal holds of a job that failed: plain data, and the checks of keys.

How they are kept is `file.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from asyncpool._guard import describe, fields_text, name_of, safe_text
from asyncpool.outcomes import Failed

__all__ = ["Entry", "FailedJob", "JournalCounts", "Key", "check_key"]

Key: TypeAlias = str | int | bytes
"""What identifies a job in a journal."""

_MAX_JOB = 1000
_MAX_INT = 2**63


def check_key(key: object) -> Key:
    """Return a key, or raise TypeError or ValueError.

    Checked before the job runs: one key that SQLite cannot store would spoil the commit of all others. A bool, a float
    or an instance of a subclass could equal another key for Python, or for SQLite, and not for both.
    """
    if type(key) is str:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the key of a job must be text that UTF-8 can encode, got {describe(key)}") from None
        return key
    if type(key) is int:
        if not -_MAX_INT <= key < _MAX_INT:
            raise ValueError(f"the key of a job must be an int of at most 64 bits, got {describe(key)}; use str(key)")
        return key
    if type(key) is bytes:
        return key
    raise TypeError(f"the key of a job must be a str, an int or bytes, got {describe(key)}; use str(key)")


class JournalCounts(NamedTuple):
    """How many jobs a journal has."""

    done: int
    """Jobs that succeeded."""
    failed: int
    """Jobs that failed permanently, and did not succeed in a later run."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FailedJob:
    """A job that failed permanently, as the journal keeps it: its input and its error are text."""

    key: Key
    """The key of the job."""
    job: str
    """`repr(input)`, cut to 1,000 characters."""
    error_type: str
    """The name of the error's type: `ValueError`, `smtplib.SMTPServerDisconnected`."""
    error: str
    """`str(error)`, cut to 4,000 characters."""
    attempts: int
    """How many attempts were made, in all runs."""
    first_at: float
    """When it failed for the first time, in seconds since the epoch."""
    last_at: float
    """When it failed last, in seconds since the epoch."""

    def __repr__(self) -> str:
        return fields_text(self)

    @staticmethod
    def of(key: Key, failed: Failed[object], now: float) -> FailedJob:
        """Return what to keep of a job that failed `now`, in seconds since the epoch."""
        return FailedJob(
            key=key,
            job=_storable(safe_text(repr, failed.job, _MAX_JOB)),
            error_type=_storable(name_of(type(failed.error))),
            error=_storable(safe_text(str, failed.error)),
            attempts=failed.attempts,
            first_at=now,
            last_at=now,
        )


def _storable(text: str) -> str:
    """Return a text that SQLite can store: a lone surrogate, which UTF-8 cannot encode, is replaced."""
    return text.encode("utf-8", "backslashreplace").decode()


class Entry(NamedTuple):
    """What is to be recorded of one job."""

    key: Key
    failed: FailedJob | None = None
    """None: it succeeded."""
    value: bytes | None = None
    """What it returned, pickled; None: not kept."""
