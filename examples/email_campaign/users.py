"""The users in a SQLite file: created with Faker on the first run, and read as a stream.

The file also records who has received a mail; that is the task of `journal.py`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import unicodedata
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import aiosqlite

from examples.email_campaign.errors import DatabaseError

__all__ = ["User", "connect", "count_inactive", "in_sentences", "inactive_users", "make_users", "sole_use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A recipient."""

    id: int
    name: str
    email: str


# -- Opening --


@contextmanager
def in_sentences(path: Path) -> Iterator[None]:
    """Convert errors of SQLite and of the disk to a `DatabaseError` that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DatabaseError(f"the database {path} cannot be used: {error}") from error


@asynccontextmanager
async def _open(name: str | Path, **options: Any) -> AsyncGenerator[aiosqlite.Connection]:
    # Try it first without aiosqlite. If the file cannot be opened, aiosqlite (0.22) does not wait for its thread, which
    # prints a traceback if the loop is closed before the thread ends.
    await asyncio.to_thread(lambda: sqlite3.connect(name, **options).close())
    async with aiosqlite.connect(name, **options) as database:
        yield database


@asynccontextmanager
async def connect(path: Path) -> AsyncGenerator[aiosqlite.Connection]:
    """Open an existing file in autocommit mode. Readers and writers do not block each other."""
    # A URI with mode=rw does not create a missing file. as_uri() escapes ?, # and % in the path.
    uri = await asyncio.to_thread(lambda: path.absolute().as_uri())
    async with _open(f"{uri}?mode=rw", uri=True, timeout=30.0, isolation_level=None) as database:
        await database.execute_fetchall("PRAGMA journal_mode = WAL")
        yield database


@asynccontextmanager
async def sole_use(path: Path) -> AsyncGenerator[None]:
    """Lock the database against other campaigns: two at once would send every mail twice.

    This is a SQLite lock on a separate file. The system releases it when the process ends, even after a crash.

    Raises:
        DatabaseError: Another process holds the lock.
    """
    lock = path.with_name(f"{path.name}.lock")
    async with AsyncExitStack() as stack:
        with in_sentences(lock):
            database = await stack.enter_async_context(_open(lock, timeout=0.0, isolation_level=None))
            try:
                await database.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                    raise DatabaseError(f"another campaign is using the database {path}") from error
                raise
        yield


# -- Reading --

# Read in portions, because an open cursor keeps SQLite from reusing the log (-wal) that the journal fills meanwhile.
_PORTION = 1000
_INACTIVE = """
    FROM users
    WHERE last_seen <= date(:as_of, '-30 days')
      AND NOT EXISTS (
          SELECT 1 FROM mails WHERE mails.campaign = :campaign AND mails.user = users.id AND mails.mark <> 'unclear'
      )
"""


async def inactive_users(
    database: aiosqlite.Connection, campaign: int, as_of: str, limit: int | None = None
) -> AsyncGenerator[User]:
    """Yield the users not seen in the 30 days before `as_of` whose mail is still to be sent, ordered by id.

    Only the rows that the cursor reads ahead are in memory: 64.
    """
    last, left = 0, limit
    while left is None or left > 0:
        portion = _PORTION if left is None else min(_PORTION, left)
        found = 0
        async with database.execute(
            f"SELECT id, name, email {_INACTIVE} AND id > :last ORDER BY id LIMIT :portion",
            {"as_of": as_of, "campaign": campaign, "last": last, "portion": portion},
        ) as cursor:
            async for id, name, email in cursor:
                yield User(id=id, name=name, email=email)
                last, found = id, found + 1
        if found < portion:
            return
        if left is not None:
            left -= found


async def count_inactive(database: aiosqlite.Connection, campaign: int, as_of: str) -> int:
    """Return how many users `inactive_users` would yield."""
    async with database.execute(f"SELECT count(*) {_INACTIVE}", {"as_of": as_of, "campaign": campaign}) as cursor:
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


# -- Creating --

_TODAY = date(2025, 6, 1)  # a fixed day, so that the same seed gives the same file on any day
_MOST_DAYS = 75  # away for 0 to 74 days, so about 60% of the users are inactive
_BATCH = 5000
_DOMAINS = ("example.com", "example.net", "example.org")  # reserved by RFC 2606: they have no mailboxes


async def make_users(path: Path, count: int, seed: int = 0) -> bool:
    """Create a database of users with made-up names, unless the file exists. Return whether it was created.

    The users are written to a temporary file, which is renamed at the end. If the process is killed, the next run
    starts again with a new temporary file.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    if await asyncio.to_thread(path.exists):
        return False
    await asyncio.to_thread(unfinished.unlink, missing_ok=True)
    async with _open(unfinished) as database:
        await database.execute_fetchall("PRAGMA journal_mode = OFF")
        await database.execute(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE, "
            "last_seen TEXT NOT NULL)"
        )
        rows = _invent(count, seed)  # executemany runs the generator in the thread of the connection
        for _ in range(0, count, _BATCH):
            await database.executemany("INSERT INTO users VALUES (?, ?, ?, ?)", islice(rows, _BATCH))
        await database.commit()
    await asyncio.to_thread(os.replace, unfinished, path)
    return True


def _invent(count: int, seed: int) -> Iterator[tuple[int, str, str, str]]:
    # Faker takes 176 us per user, this code 3 us: Faker only generates 200 first names and 200 last names per country,
    # and each user gets a random pair.
    from faker import Faker

    names: list[tuple[list[str], list[str]]] = []
    for country in ("en_US", "de_DE", "es_ES", "fr_FR", "pl_PL"):
        faker = Faker(country)
        faker.seed_instance(seed)
        names.append(([faker.first_name() for _ in range(200)], [faker.last_name() for _ in range(200)]))
    random = Random(seed)
    for id in range(1, count + 1):
        firsts, lasts = random.choice(names)
        first, last = random.choice(firsts), random.choice(lasts)
        email = f"{_plain(first)}.{_plain(last)}.{id}@{random.choice(_DOMAINS)}"
        days_away = timedelta(days=random.randrange(_MOST_DAYS))
        yield id, f"{first} {last}", email, (_TODAY - days_away).isoformat()


@cache
def _plain(name: str) -> str:
    """Reduce a name to the letters that an address can have: lower case, without accents or other characters."""
    letters = unicodedata.normalize("NFKD", name.replace("\u0142", "l").replace("\u00df", "ss"))
    return "".join(letter for letter in letters.lower() if "a" <= letter <= "z")
