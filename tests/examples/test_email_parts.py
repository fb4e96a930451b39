"""The parts of the e-mail campaign: the users, the journal, the debug server's faults."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from blockbuster import BlockBuster

from examples.email_campaign import users
from examples.email_campaign.errors import JournalError
from examples.email_campaign.faults import MIX, Fault, random_faults, read_faults
from examples.email_campaign.journal import Journal, Mark
from examples.email_campaign.server import read_latency
from examples.email_campaign.users import User, connect, count_inactive, inactive_users, make_users
from tests.examples.email_parts import make_database, marks, nothing_blocks_the_loop, query

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> Iterator[BlockBuster]:
    with nothing_blocks_the_loop() as blockbuster:
        yield blockbuster


def user(id: int) -> User:
    return User(id=id, name=f"User {id}", email=f"user.{id}@example.org")


@asynccontextmanager
async def journal_of(path: Path) -> AsyncIterator[tuple[Journal, list[str]]]:
    """A journal, and every statement that it makes."""
    statements: list[str] = []
    async with connect(path) as database, Journal(database, path, "test") as journal:
        await database.set_trace_callback(statements.append)
        yield journal, statements


# -- users --


async def test_users_are_made_once_and_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, two, other = tmp_path / "one.db", tmp_path / "two.db", tmp_path / "other.db"
    assert await make_users(one, 300, seed=7)
    assert not await make_users(one, 300, seed=8)
    assert await make_users(two, 300, seed=7)
    assert await make_users(other, 300, seed=8)

    rows = query(one, "SELECT * FROM users")
    assert len(rows) == 300
    assert rows == query(two, "SELECT * FROM users")
    assert rows != query(other, "SELECT * FROM users")
    assert {email.rpartition("@")[2] for _, _, email, _ in rows} == {"example.com", "example.net", "example.org"}
    assert all(email.isascii() and name.strip() for _, name, email, _ in rows)


async def test_about_six_in_ten_users_are_inactive(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    await make_users(path, 2000)
    async with connect(path) as database, Journal(database, path, "test") as journal:
        assert 1100 < await count_inactive(database, journal.campaign, journal.as_of) < 1300


async def test_a_making_that_was_killed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    (tmp_path / "users.db.unfinished").write_bytes(b"what somebody left who was killed")

    assert await make_users(path, 10)

    assert len(query(path, "SELECT * FROM users")) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["users.db"]


async def test_users_are_read_a_portion_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_PORTION", 10)
    path = make_database(tmp_path / "users.db", inactive=25)
    async with connect(path) as database, Journal(database, path, "test") as journal:
        read = inactive_users(database, journal.campaign, journal.as_of)
        assert [user.id async for user in read] == [*range(1, 26)]
        for limit in (0, 1, 10, 15, 25, 30):
            read = inactive_users(database, journal.campaign, journal.as_of, limit)
            assert [user.id async for user in read] == [*range(1, min(limit, 25) + 1)]


async def test_reading_users_does_not_let_the_log_of_the_database_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An open cursor keeps SQLite from emptying the log: so it is not open for longer than a portion.
    monkeypatch.setattr(users, "_PORTION", 10)
    path = make_database(tmp_path / "users.db", inactive=25)
    async with journal_of(path) as (journal, _), connect(path) as database:
        read = inactive_users(database, journal.campaign, journal.as_of)
        for id in range(1, 12):
            assert (await anext(read)).id == id
            await journal.write(user(id), Mark.SENT)
        busy = query(path, "PRAGMA wal_checkpoint(RESTART)")[0][0]
        await read.aclose()
    assert not busy


async def test_reading_that_ends_early_leaves_the_database_free(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=25)
    async with journal_of(path) as (journal, _), connect(path) as database:
        read = inactive_users(database, journal.campaign, journal.as_of)
        await anext(read)
        await read.aclose()
        await journal.write(user(1), Mark.SENT)
        assert query(path, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0


# -- the journal --


async def test_what_waits_is_written_in_one_transaction(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=100)
    async with journal_of(path) as (journal, statements):
        await asyncio.gather(*(journal.write(user(id), Mark.SENT) for id in range(1, 101)))

    assert len(statements) == 1
    assert marks(path) == dict.fromkeys(range(1, 101), "sent")


async def test_what_was_written_is_there_when_it_is_told(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)
    async with journal_of(path) as (journal, _):
        await journal.write(user(2), Mark.SENT)
        assert marks(path) == {2: "sent"}


async def test_leaving_writes_what_nobody_waited_for(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)
    async with journal_of(path) as (journal, _):
        journal.write(user(1), Mark.SENT)
        journal.write(user(2), Mark.FAILED)
    assert marks(path) == {1: "sent", 2: "failed"}


async def test_leaving_by_a_cancellation_writes_it_too(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)

    async def campaign() -> None:
        async with journal_of(path) as (journal, _):
            journal.write(user(1), Mark.SENT)
            ready.set()
            await asyncio.Event().wait()

    ready = asyncio.Event()
    task = asyncio.create_task(campaign())
    await ready.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert marks(path) == {1: "sent"}


async def test_a_waiter_that_is_cancelled_harms_no_other_entry(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)
    async with journal_of(path) as (journal, _):
        journal.write(user(1), Mark.SENT).cancel()
        await journal.write(user(2), Mark.SENT)
    assert marks(path) == {1: "sent", 2: "sent"}


async def test_flush_waits_for_what_is_being_written_too(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)
    async with journal_of(path) as (journal, _):
        await journal.flush()
        for turns in range(5):
            query(path, "DELETE FROM mails")
            journal.write(user(1), Mark.FAILED)
            for _ in range(turns):
                await asyncio.sleep(0)
            await journal.flush()
            assert marks(path) == {1: "failed"}


async def test_what_was_sent_stays_sent_and_what_failed_may_be_sent(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)
    async with journal_of(path) as (journal, _):
        for mark in (Mark.SENT, Mark.FAILED):
            await journal.write(user(1), mark)
        for mark in (Mark.FAILED, Mark.SENT):
            await journal.write(user(2), mark)
        await journal.write(user(3), Mark.FAILED)
        await journal.forget_failures([1, 2, 3])
        assert await journal.is_sent(user(1))
        assert not await journal.is_sent(user(3))
    assert marks(path) == {1: "sent", 2: "sent"}


async def test_an_error_is_told_to_all_who_wait_and_to_all_who_come(tmp_path: Path) -> None:
    path = make_database(tmp_path / "users.db", inactive=3)
    async with journal_of(path) as (journal, _):
        query(path, "DROP TABLE mails")
        waiting = [journal.write(user(id), Mark.SENT) for id in (1, 2)]
        await asyncio.wait(waiting)
        for written in [*waiting, journal.write(user(3), Mark.SENT)]:
            with pytest.raises(JournalError, match="no such table: mails"):
                await written
        with pytest.raises(JournalError):
            await journal.flush()


# -- the debug server --


async def test_faults_are_the_same_for_the_same_seed_and_about_as_many_as_asked_for() -> None:
    draw, again, other = (random_faults(read_faults("0.2"), seed) for seed in (1, 1, 2))
    addresses = [f"user.{number}@example.org" for number in range(5000)]

    drawn = [draw(address, 1) for address in addresses]

    assert drawn == [again(address, 1) for address in addresses]
    assert drawn != [other(address, 1) for address in addresses]
    for fault, share in MIX.items():
        assert 0.5 * share < drawn.count(fault) / 1000 < 1.5 * share + 0.02


async def test_a_mailbox_that_is_missing_is_always_missing_and_other_faults_pass() -> None:
    draw = random_faults(read_faults("0.3"))
    for number in range(500):
        faults = {draw(f"user.{number}@example.org", attempt) for attempt in range(1, 30)}
        assert faults == {Fault.NO_MAILBOX} or Fault.NO_MAILBOX not in faults


@pytest.mark.parametrize("text", ["", "x", "1.5", "-0.1", "nan", "451", "999=0.1", "451=", "451=0.6,421=0.6", "inf"])
async def test_faults_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a share from 0 to 1"):
        read_faults(text)


async def test_latencies_are_read_in_milliseconds() -> None:
    assert read_latency("20-100") == (0.02, 0.1)
    assert read_latency("5") == (0.005, 0.005)
    for text in ("", "x", "100-20", "-5", "1-", "1-2-3"):
        with pytest.raises(ValueError, match="must be MIN-MAX in milliseconds"):
            read_latency(text)


async def test_a_database_with_any_path_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20d é.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE users (id INTEGER)")
    async with connect(path) as opened:
        assert await opened.execute_fetchall("SELECT * FROM users") == []
