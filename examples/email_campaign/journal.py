"""Record which mails were sent and which failed, in the database of the users, as it happens.

A commit for each mail would cost more than the mail itself. So a single task writes all waiting entries in one
transaction: if ten workers wait, they share one commit.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import aiosqlite

from examples.email_campaign.errors import JournalError
from examples.email_campaign.users import User

__all__ = ["Journal", "Mark", "surely"]


class Mark(Enum):
    """The recorded state of a user's mail. Without a mark, the mail has not been sent yet."""

    SENT = "sent"
    FAILED = "failed"
    UNCLEAR = "unclear"
    """The connection was lost when the server had the mail, so it may be sent. It is tried once more."""
    AMBIGUOUS = "ambiguous"
    """The same happened again. It is not tried any more."""


_SCHEMA = """
    CREATE TABLE IF NOT EXISTS campaigns (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, as_of TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS mails (
        campaign INTEGER NOT NULL, user INTEGER NOT NULL,
        mark TEXT NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
        PRIMARY KEY (campaign, user)
    ) WITHOUT ROWID;
"""
# One statement writes all waiting entries, so it takes one transaction and one call to the thread of the connection. A
# mail that is marked as sent stays so, whatever is written later.
_WRITE = """
    INSERT INTO mails (campaign, user, mark)
    SELECT ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true
    ON CONFLICT DO UPDATE SET mark = excluded.mark, at = CURRENT_TIMESTAMP WHERE mark <> 'sent'
"""

_Entry: TypeAlias = tuple[User, Mark, "asyncio.Future[None]"]


async def surely(future: asyncio.Future[Any]) -> bool:
    """Wait until the future is done, even if the wait is cancelled; return whether it was cancelled."""
    was_cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            was_cancelled = True
    return was_cancelled


class Journal:
    """The marks of one campaign. Use it as an async context manager; the exit writes all entries that are left.

    Args:
        database: A connection in autocommit mode that nothing else uses.
        path: The path of its file, for error messages.
        name: The name of the campaign.
        durable: Whether each commit is synced to disk. If not, entries survive a crash of the process, but the latest
            ones may be lost in a power failure.
    """

    campaign: int
    as_of: str
    """The day relative to which users count as inactive. The first run sets it to the last day on which any user was
    seen, and all later runs of the campaign keep it."""
    unclear: set[int]
    """The ids of the users whose mail has the mark `UNCLEAR`, or had it in this run."""

    def __init__(self, database: aiosqlite.Connection, path: Path, name: str, *, durable: bool = False) -> None:
        self._database = database
        self._path = path
        self._name = name
        self._is_durable = durable
        self._waiting: list[_Entry] = []
        self._last: asyncio.Future[None] | None = None
        self._has_entries = asyncio.Event()
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None
        self.error: JournalError | None = None
        """The reason why nothing can be written any more."""

    async def __aenter__(self) -> Self:
        await self._database.executescript(_SCHEMA)
        await self._database.execute_fetchall(f"PRAGMA synchronous = {'FULL' if self._is_durable else 'NORMAL'}")
        await self._database.execute(
            "INSERT OR IGNORE INTO campaigns (name, as_of) SELECT ?, coalesce(max(last_seen), '') FROM users",
            (self._name,),
        )
        async with self._database.execute("SELECT id, as_of FROM campaigns WHERE name = ?", (self._name,)) as cursor:
            row = await cursor.fetchone()
        assert row is not None
        self.campaign, self.as_of = row
        sql = "SELECT user FROM mails WHERE campaign = ? AND mark = 'unclear'"
        self.unclear = {id for (id,) in await self._database.execute_fetchall(sql, (self.campaign,))}
        self._task = asyncio.create_task(self._write_all(), name="journal")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._is_closing = True
        self._has_entries.set()
        if await surely(self._task):
            raise asyncio.CancelledError

    def write(self, user: User, mark: Mark) -> asyncio.Future[None]:
        """Record a mark. It is written whether or not the returned future is awaited.

        The future completes when the mark is committed, or fails with a `JournalError`; then no more marks are written.
        """
        written = self._last = asyncio.get_running_loop().create_future()
        if self.error is None:
            self._waiting.append((user, mark, written))
            self._has_entries.set()
        else:
            _settle(written, self.error)
        return written

    async def flush(self) -> None:
        """Wait until all marks are written.

        Raises:
            JournalError: Some of them cannot be written.
        """
        if self._last is not None:
            await asyncio.wait([self._last])  # marks are written in order
        if self.error is not None:
            raise self.error

    async def is_sent(self, user: User) -> bool:
        """Return whether the user's mail is marked as sent."""
        sql = "SELECT 1 FROM mails WHERE campaign = ? AND user = ? AND mark = 'sent'"
        async with self._database.execute(sql, (self.campaign, user.id)) as cursor:
            return await cursor.fetchone() is not None

    async def forget_failures(self, users: Iterable[int]) -> None:
        """Delete the marks of these users, given by their ids, except `SENT`, so that their mails are sent again."""
        ids = list(users)
        await self._database.execute_fetchall(
            "DELETE FROM mails WHERE campaign = ? AND mark <> 'sent' AND user IN (SELECT value FROM json_each(?))",
            (self.campaign, json.dumps(ids)),
        )
        self.unclear.difference_update(ids)

    async def _write_all(self) -> None:
        """The task that writes all waiting entries, in one transaction after the other."""
        batch: list[_Entry] = []
        try:
            while self._waiting or not self._is_closing:
                await self._has_entries.wait()
                self._has_entries.clear()
                batch, self._waiting = self._waiting, []
                if not batch:
                    continue
                marks = json.dumps([(user.id, mark.value) for user, mark, _ in batch])
                await self._database.execute_fetchall(_WRITE, (self.campaign, marks))
                for _, _, written in batch:
                    _settle(written)
                batch = []
        except sqlite3.Error as error:
            self.error = JournalError(f"sent mails can no longer be recorded in {self._path}: {error}")
        finally:
            if self.error is None:
                self.error = JournalError(f"the journal in {self._path} is closed")
            for _, _, written in batch + self._waiting:
                _settle(written, self.error)


def _settle(written: asyncio.Future[None], error: Exception | None = None) -> None:
    if written.done():
        return  # it was cancelled together with the task that awaited it
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
        written.exception()  # mark it as retrieved: possibly no task waits for it
