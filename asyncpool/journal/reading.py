"""Reads a journal at any time, also while another process writes it; and says in a sentence what is wrong with a file.

Writing is `file.py`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from asyncpool.errors import JournalError
from asyncpool.journal.entries import FailedJob, JournalCounts, Key

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "check_folder",
    "check_kind",
    "counts_of",
    "failed_in",
    "owner_of",
    "reason_of",
    "says_why",
    "version_of",
]

APPLICATION_ID = 0x61706A6C  # "apjl": marks a database as a journal
SCHEMA_VERSION = 1


def failed_in(path: str) -> list[FailedJob]:
    """Return the jobs that failed, the oldest failure first; none if the file does not exist."""
    columns = "key, job, error_type, error, attempts, first_at, last_at"
    rows = _read(path, f"select {columns} from failed order by last_at, key")
    names = columns.split(", ")
    return [FailedJob(**dict(zip(names, row, strict=True))) for row in rows]


def counts_of(path: str) -> JournalCounts:
    """Return how many jobs are done and failed; zeros if the file does not exist."""
    rows = _read(path, "select (select count(*) from done), (select count(*) from failed)")
    return JournalCounts(*rows[0]) if rows else JournalCounts(0, 0)


def version_of(path: str) -> str | None:
    """Return the version of a journal; None if the file does not exist, or is empty."""
    version: str | None = _about(path, "version")
    return version


def owner_of(path: str) -> int | None:
    """Return the process that opened a journal last; None if that cannot be read."""
    try:
        owner: int | None = _about(path, "owner")
    except JournalError:
        return None
    return owner


def _about(path: str, name: str) -> Any:
    rows = _read(path, "select value from about where name = ?", name)
    return rows[0][0] if rows else None


def _read(path: str, query: str, *values: Key) -> list[Any]:
    with says_why(path, "read"), _reader(path) as base:
        return [] if base is None else base.execute(query, values).fetchall()


@contextmanager
def _reader(path: str) -> Generator[sqlite3.Connection | None]:
    """Open a journal for reading; None if there is no such file, or nothing in it yet."""
    if not os.path.exists(path):
        yield None
        return
    # As a URI, which must not take a "?" or "%" of the name for its own.
    base = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    with closing(base):
        base.execute("begin")  # one snapshot: a run may be creating the file just now
        yield base if _is_journal(path, base) else None


def check_kind(path: str) -> None:
    """Raise JournalError if a file is there that is not a journal."""
    with says_why(path, "opened"):
        check_folder(path)
        with _reader(path):
            pass


def check_folder(path: str) -> None:
    """Raise JournalError unless there can be a file at this path."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise JournalError(f"the path of a journal must be a file, but {path} is a folder")
    if not os.path.isdir(folder):
        raise JournalError(f"the folder of the journal does not exist, create it first: {folder}")


def _is_journal(path: str, base: sqlite3.Connection) -> bool:
    """Return whether a database is a journal, or False if it is empty; raise JournalError if it is something else."""
    (kind,) = base.execute("pragma application_id").fetchone()
    (schema,) = base.execute("pragma user_version").fetchone()
    if kind == APPLICATION_ID:
        if schema != SCHEMA_VERSION:
            raise JournalError(
                f"the journal {path} was written by another release of asyncpool (format {schema}): use that release, "
                "or another file"
            )
        return True
    if base.execute("select 1 from sqlite_master limit 1").fetchone():
        raise JournalError(f"{path} is a database of another program, not a journal: use another path")
    return False


# -- What is wrong with a file -----------------------------------------------------------------------------------------


def reason_of(error: sqlite3.Error) -> int | None:
    """Return the result code of SQLite for an error, without its details; None if SQLite did not raise it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


@contextmanager
def says_why(path: str, what: str) -> Generator[None]:
    """Raise what SQLite raises as a JournalError, whose message is a sentence: the journal cannot be `what`."""
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(_sentence(path, what, error)) from error


def _sentence(path: str, what: str, error: sqlite3.Error) -> str:
    match reason_of(error):
        case sqlite3.SQLITE_NOTADB:
            return f"{path} is not a journal, and not an SQLite database: use another path"
        case sqlite3.SQLITE_CORRUPT:
            return (
                f"the journal {path} is damaged ({error}): restore it from a backup, or move it away and run all jobs "
                "again"
            )
        case sqlite3.SQLITE_FULL:
            return f"the journal {path} cannot be {what}: the disk is full"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"the journal {path} cannot be {what}: the file or its folder is read-only"
        case sqlite3.SQLITE_CANTOPEN:
            return f"the journal {path} cannot be {what}: the file, or one beside it, cannot be opened or created"
        case _:
            return f"the journal {path} cannot be {what}: {error}"
