"""`JournalFile`: the SQLite file of a journal, as one run at a time writes it. All calls block.

Which thread calls it is `session.py`; reading a file that another process may be writing is `reading.py`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from asyncpool._guard import describe
from asyncpool.errors import JournalError
from asyncpool.journal.entries import Entry, Key
from asyncpool.journal.reading import APPLICATION_ID, SCHEMA_VERSION, check_kind, owner_of, reason_of, says_why

__all__ = ["Found", "JournalFile"]

T = TypeVar("T")

_LOCK_SECONDS = 1.0  # another stream of this process may be about to close the file
_CACHE_KIB = 65536
# How many rows one statement writes, at most. `executemany` would give up the GIL for each row, and wait for a busy
# program to give it back each time. Two columns of them are below 999 variables, the limit of SQLite before 3.32.
_MAX_ROWS = 256

# Values have a table of their own: beside the keys, they would make each look-up read more pages.
_SCHEMA = f"""
begin immediate;
create table about (name text primary key, value) without rowid;
create table done (key primary key) without rowid;
create table result (key primary key, value blob not null);
create table failed (
    key primary key, job text, error_type text, error text, attempts integer, first_at real, last_at real, run integer
) without rowid;
insert into about values ('run', 0);
pragma application_id = {APPLICATION_ID};
pragma user_version = {SCHEMA_VERSION};
commit;
"""
_ADD_FAILED = """
insert into failed values (?, ?, ?, ?, ?, ?, ?, ?)
on conflict (key) do update set job = excluded.job, error_type = excluded.error_type, error = excluded.error,
    attempts = attempts + excluded.attempts, last_at = excluded.last_at, run = excluded.run
"""


class Found:
    """What the journal knows of some keys."""

    __slots__ = ("done", "failed", "failed_now")

    def __init__(self) -> None:
        self.done: dict[Key, bytes | None] = {}
        """The keys of jobs that are done, each with its pickled value if values were asked for."""
        self.failed: set[Key] = set()
        """Those of jobs that failed in an earlier run."""
        self.failed_now: set[Key] = set()
        """Those of jobs that failed in this run."""


class JournalFile:
    """The file of a journal, open for one run.

    The run holds an exclusive transaction on `FILE.lock`: a lock that ends with its process, however that ends, on all
    systems, and lets others read the journal meanwhile.
    """

    def __init__(self, path: str, version: str, *, durable: bool) -> None:
        self._path = path
        self._version = version
        self._synchronous = "full" if durable else "normal"
        self._run = 0
        self._has_failed = False  # whether a look-up must ask for failed jobs
        self._lock: sqlite3.Connection | None = None
        self._base: sqlite3.Connection | None = None

    def open(self) -> None:
        """Lock the file for this run, and create it if it does not exist.

        Raises:
            JournalError: It is in use by another run, of another version, damaged, or not a journal.
        """
        with says_why(self._path, "opened"):
            try:
                check_kind(self._path)  # before anything is written beside it
                self._lock = self._locked()
                self._base = base = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                self._prepare(base)
            except BaseException:
                self.close()
                raise

    def _locked(self) -> sqlite3.Connection:
        lock = sqlite3.connect(
            self._path + ".lock", timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            lock.close()
            if reason_of(error) != sqlite3.SQLITE_BUSY:
                raise
            owner = owner_of(self._path)
            by = "another run" if owner is None else f"another run (process {owner})"
            raise JournalError(f"the journal {self._path} is in use by {by}: wait until it has ended") from None
        return lock

    def _prepare(self, base: sqlite3.Connection) -> None:
        base.execute("pragma journal_mode = wal")
        base.execute(f"pragma synchronous = {self._synchronous}")
        base.execute(f"pragma cache_size = -{_CACHE_KIB}")
        if not base.execute("select 1 from sqlite_master limit 1").fetchone():
            base.executescript(_SCHEMA)
        row = base.execute("select value from about where name = 'version'").fetchone()
        version = self._version if row is None else row[0]  # None: it is new
        if version != self._version:
            raise JournalError(
                f"the journal {self._path} has the version {describe(version)}, but this run has "
                f"{describe(self._version)}: use another file, or the version of the file if its completed jobs need "
                "not run again"
            )
        base.execute("insert or replace into about values ('version', ?), ('owner', ?)", (version, os.getpid()))
        (self._run,) = base.execute("update about set value = value + 1 where name = 'run' returning value").fetchone()
        self._has_failed = base.execute("select 1 from failed limit 1").fetchone() is not None

    def close(self) -> None:
        """Close the file, and unlock it. Safe to repeat."""
        try:
            if self._base is not None:
                self._base.close()
        finally:
            if self._lock is not None:
                self._lock.close()
            self._base = self._lock = None

    # -- Looking up --------------------------------------------------------------------------------------------------

    def find(self, keys: Sequence[Key], *, values: bool) -> Found:
        """Return what is known of these keys.

        Args:
            keys: At most some hundred.
            values: Whether the values are wanted too; then a job whose value was not kept does not count as done.

        Raises:
            JournalError: The file cannot be read.
        """
        found = Found()
        padded = _padded(keys)
        marks = f"({','.join('?' * len(padded))})"
        with says_why(self._path, "read"):
            base = self._opened()
            query = (
                f"select done.key, value from done join result using (key) where done.key in {marks}"
                if values
                else f"select key, null from done where key in {marks}"
            )
            found.done = dict(base.execute(query, padded))
            if self._has_failed:
                for key, run in base.execute(f"select key, run from failed where key in {marks}", padded):
                    (found.failed_now if run == self._run else found.failed).add(key)
        return found

    def _opened(self) -> sqlite3.Connection:
        assert self._base is not None
        return self._base

    # -- Writing -----------------------------------------------------------------------------------------------------

    def record(self, entries: Sequence[Entry]) -> None:
        """Record jobs that ended, all of them or none. With `durable`, they are on the disk when this returns.

        Raises:
            JournalError: The file cannot be written.
        """
        done = [entry.key for entry in entries if entry.failed is None]
        values = [(entry.key, entry.value) for entry in entries if entry.value is not None]
        failed = [
            (key, of.job, of.error_type, of.error, of.attempts, of.first_at, of.last_at, self._run)
            for key, of, _ in entries
            if of is not None
        ]
        with says_why(self._path, "written"), _transaction(self._opened()) as base:
            for keys in _parts(done):
                base.execute(f"insert or ignore into done values {','.join(['(?)'] * len(keys))}", keys)
            for rows in _parts(values):
                marks = ",".join(["(?,?)"] * len(rows))
                base.execute(f"insert or replace into result values {marks}", [*chain.from_iterable(rows)])
            if self._has_failed:
                for keys in _parts(done):
                    base.execute(f"delete from failed where key in ({','.join('?' * len(keys))})", keys)
            if failed:
                self._has_failed = True
                base.executemany(_ADD_FAILED, failed)

    def forget(self, keys: Sequence[Key]) -> list[Key]:
        """Remove what is known of these keys, so that the next run repeats their jobs; return those that were there.

        Raises:
            JournalError: The file cannot be written.
        """
        forgotten: list[Key] = []
        with says_why(self._path, "written"), _transaction(self._opened()) as base:
            for key in keys:
                changes = [
                    base.execute(f"delete from {table} where key = ?", (key,)).rowcount
                    for table in ("done", "failed", "result")
                ]
                if any(changes[:2]):
                    forgotten.append(key)
        return forgotten


def _padded(rows: Sequence[T]) -> list[T]:
    """Repeat the last row until their number is a power of two, so that there are few statements to compile."""
    return [*rows, *[rows[-1]] * ((1 << (len(rows) - 1).bit_length()) - len(rows))]


def _parts(rows: Sequence[T]) -> Iterator[list[T]]:
    """Return padded rows for one statement after the other. Writing a row twice must be the same as writing it once."""
    for begin in range(0, len(rows), _MAX_ROWS):
        yield _padded(rows[begin : begin + _MAX_ROWS])


@contextmanager
def _transaction(base: sqlite3.Connection) -> Generator[Any]:
    base.execute("begin immediate")
    try:
        yield base
        base.execute("commit")
    except BaseException:
        if base.in_transaction:  # SQLite can have rolled it back itself: when the disk is full
            base.execute("rollback")
        raise
