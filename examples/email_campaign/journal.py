"""Who got a mail, and whose mail failed: written into the users' database as it happens.

A commit for each mail would cost more than the mail. So whoever has something to write down waits, and a single task
writes all that waits in one transaction: with ten who wait, a commit is shared by ten.
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
    """What is written down of a user. Without a mark, his mail is still to be sent."""

    SENT = "sent"
    FAILED = "failed"


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
# One statement, and so one transaction and one trip to the thread of the connection, for all that waits. What was sent
# stays sent, whoever says what later.
_WRITE = """
    INSERT INTO mails (campaign, user, mark)
    SELECT ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true
    ON CONFLICT DO UPDATE SET mark = excluded.mark, at = CURRENT_TIMESTAMP WHERE mark <> 'sent'
"""

_Entry: TypeAlias = tuple[User, Mark, "asyncio.Future[None]"]


async def surely(future: asyncio.Future[Any]) -> bool:
    """Wait until the future is done, however often we are cancelled meanwhile; return whether we were."""
    was_cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            was_cancelled = True
    return was_cancelled


class Journal:
    """The marks of one campaign. Use it as an async context manager; leaving it writes what is still to be written.

    Args:
        database: A connection of its own, in autocommit mode.
        path: Of its file, for the errors.
        name: Of the campaign.
        durable: Whether a commit waits until the disk has it. Without, what is written outlives the process, however
            that ends, but the last of it not a power failure.
    """

    campaign: int
    as_of: str
    """The day as of which users count as inactive, the same for every run of a campaign: on the first, the last day on
    which any user was seen."""

    def __init__(self, database: aiosqlite.Connection, path: Path, name: str, *, durable: bool = False) -> None:
        self._database = database
        self._path = path
        self._name = name
        self._is_durable = durable
        self._waiting: list[_Entry] = []
        self._last: asyncio.Future[None] | None = None
        self._bell = asyncio.Event()
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None
        self.error: JournalError | None = None
        """Why nothing can be written any more."""

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
        self._task = asyncio.create_task(self._write_all(), name="journal")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._is_closing = True
        self._bell.set()
        if await surely(self._task):
            raise asyncio.CancelledError

    def write(self, user: User, mark: Mark) -> asyncio.Future[None]:
        """Write something down. What is asked for is done, whether the future is awaited or not.

        The future is done when it is committed, or has a `JournalError`: then nothing is written any more.
        """
        written = self._last = asyncio.get_running_loop().create_future()
        if self.error is None:
            self._waiting.append((user, mark, written))
            self._bell.set()
        else:
            _settle(written, self.error)
        return written

    async def flush(self) -> None:
        """Wait until all that was to be written down is.

        Raises:
            JournalError: It cannot be.
        """
        if self._last is not None:
            await asyncio.wait([self._last])  # they are written in their order
        if self.error is not None:
            raise self.error

    async def is_sent(self, user: User) -> bool:
        """Whether the user has his mail, as far as is written down."""
        sql = "SELECT 1 FROM mails WHERE campaign = ? AND user = ? AND mark = 'sent'"
        async with self._database.execute(sql, (self.campaign, user.id)) as cursor:
            return await cursor.fetchone() is not None

    async def forget_failures(self, users: Iterable[int]) -> None:
        """Take back that the mails of these users, given by their ids, have failed: they are still to be sent."""
        await self._database.execute_fetchall(
            "DELETE FROM mails WHERE campaign = ? AND mark = 'failed' AND user IN (SELECT value FROM json_each(?))",
            (self.campaign, json.dumps(list(users))),
        )

    async def _write_all(self) -> None:
        """The task: one transaction after the other, each of all that waits."""
        batch: list[_Entry] = []
        try:
            while self._waiting or not self._is_closing:
                await self._bell.wait()
                self._bell.clear()
                batch, self._waiting = self._waiting, []
                if not batch:
                    continue
                marks = json.dumps([(user.id, mark.value) for user, mark, _ in batch])
                await self._database.execute_fetchall(_WRITE, (self.campaign, marks))
                for _, _, written in batch:
                    _settle(written)
                batch = []
        except sqlite3.Error as error:
            self.error = JournalError(f"what was sent can no longer be written to {self._path}: {error}")
        finally:
            if self.error is None:
                self.error = JournalError(f"the journal in {self._path} is closed")
            for _, _, written in batch + self._waiting:
                _settle(written, self.error)


def _settle(written: asyncio.Future[None], error: Exception | None = None) -> None:
    if written.done():
        return  # cancelled, with the task that awaited it
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
        written.exception()  # nobody may be waiting: it is not "never retrieved"
