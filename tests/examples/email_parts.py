"""What the tests of the e-mail campaign share: a database of users, and SMTP servers with faults to order."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from blockbuster import BlockBuster, blockbuster_ctx

from examples.email_campaign.campaign import EmailCampaign
from examples.email_campaign.connection import Timeouts
from examples.email_campaign.faults import Fault
from examples.email_campaign.relay import Relay, Tls
from examples.email_campaign.server import Accepted, DebugServer


@contextmanager
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """As the fixture of `conftest.py`, but for dead letters: they are written at once, or kill -9 would lose them."""
    with blockbuster_ctx(["asyncpool", "examples"]) as blockbuster:
        for function in blockbuster.functions.values():
            function.can_block_in("asyncpool/dead_letters/file.py", {"__init__", "_append"})
        yield blockbuster


def make_database(path: Path, inactive: int, active: int = 1) -> Path:
    """Users 1, 2, 3 ... who were last seen long ago, and after them some who have just been here."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, email TEXT UNIQUE, last_seen TEXT)")
        for id in range(1, inactive + active + 1):
            seen = "2025-01-01" if id <= inactive else "2025-06-01"
            database.execute(
                "INSERT INTO users VALUES (?, ?, ?, ?)", (id, f"User {id}", f"user.{id}@example.org", seen)
            )
    return path


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        return database.execute(sql).fetchall()


def marks(path: Path) -> dict[int, str]:
    """What the journal says, by user."""
    return dict(query(path, "SELECT user, mark FROM mails ORDER BY user"))


class Office(DebugServer):
    """A mail server that keeps what it is sent, and whose faults are planned: a list of them for each user."""

    def __init__(self, plan: Mapping[int, Sequence[Fault | None]], **options: Any) -> None:
        super().__init__(faults=self._planned, on_accept=self._keep, **options)
        self.plan = plan
        self.accepted: list[Accepted] = []
        self.reached: dict[Fault, asyncio.Event] = {fault: asyncio.Event() for fault in Fault}
        self.has_mail = asyncio.Event()

    def _planned(self, address: str, attempt: int) -> Fault | None:
        faults = self.plan.get(int(address.partition("@")[0].rpartition(".")[2]), ())
        fault = faults[attempt - 1] if attempt <= len(faults) else None
        if fault is not None:
            self.reached[fault].set()
        return fault

    def _keep(self, mail: Accepted) -> None:
        self.accepted.append(mail)
        self.has_mail.set()

    @property
    def mails(self) -> Counter[str]:
        """How often each mail was accepted, by its Message-ID."""
        return Counter(mail.message_id for mail in self.accepted)

    def campaign(self, database: Path, *, timeout: float = 30.0, **options: Any) -> EmailCampaign:
        """A campaign that sends its mails here, and retries without delay."""
        relay = relay_at(self.port, timeout)
        return EmailCampaign(database, **{"relay": relay, "workers": 1, "retry_delay": 0.0, **options})


def relay_at(port: int, timeout: float = 0.2, **options: Any) -> Relay:
    """A relay on loopback, with the same time limit for each reply."""
    return Relay(host="127.0.0.1", port=port, **{"tls": Tls.NONE, "timeouts": Timeouts.all(timeout), **options})


def id_of(user: int) -> str:
    """The Message-ID of a user's mail."""
    return f"<we-miss-you.{user}@example.com>"


@asynccontextmanager
async def scripted_server(heard: list[str] | None = None, **replies: str) -> AsyncIterator[Relay]:
    """A mail server with one reply for each kind of command, "" for none at all. `heard` gets all that it hears."""
    replies = {"GREETING": "220 ready", "EHLO": "250 hello", "QUIT": "221 bye", **replies}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = b"GREETING"
            while line:
                verb = line.split()[0].decode().upper()
                if heard is not None:
                    heard.append(verb)
                if reply := replies.get(verb, "250 ok"):
                    writer.write(f"{reply}\r\n".encode())
                line = await reader.readline()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield relay_at(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await server.wait_closed()
