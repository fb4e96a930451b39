"""`EmailCampaign`: sends one mail to each inactive user, in a `WorkerPool`.

Each mail is sent over the connection of its worker. Then the delivery is recorded and committed, and only then is the
job done. So if a campaign is killed at any moment, at most one mail per worker was sent but not recorded. The next run
sends to all users without a record.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpool
from asyncpool.events import ResourceFailed
from examples.email_campaign.errors import CampaignError, DatabaseError, JournalError, RelayError
from examples.email_campaign.journal import Journal, Mark, surely
from examples.email_campaign.mailer import Mail, MailConnection, Refused, Relay, is_transient, spoils_connection
from examples.email_campaign.report import CampaignReport
from examples.email_campaign.users import User, connect, count_inactive, in_sentences, inactive_users, sole_use

__all__ = ["RETRY", "EmailCampaign", "check_name"]

RETRY = asyncpool.Retry(attempts=6, backoff=0.05, factor=3.0, on=is_transient)
"""Delays of up to 0.05, 0.15, 0.45, 1.35 and 4.05 seconds: short after a dropped connection, then longer each time."""


def check_name(name: str) -> str:
    """Return the name of a campaign if it is valid in a Message-ID; otherwise raise `ValueError`."""
    if not re.fullmatch("[A-Za-z0-9]+(-[A-Za-z0-9]+)*", name):
        raise ValueError(f"the name must consist of letters, digits and single hyphens, got {name!r}")
    return name


class EmailCampaign:
    """Sends one mail to each inactive user of a database, over one SMTP connection per worker.

        async with EmailCampaign("users.db", relay=Relay(host="localhost", port=25)) as campaign:
            report = await campaign.run()
            print(report.sent, report.failed)

    The name identifies a campaign: it sends each user at most one mail, however often it is run. Only one process can
    run campaigns on a database at a time. `pool` is the `WorkerPool`, for its `stats` and for `drain_on_signal`.

    Args:
        database: The file of the users, with a table `users` like that of `make_users`.
        relay: The SMTP server.
        name: The name of the campaign: letters, digits and hyphens.
        sender: The sender address. The Message-IDs have the same domain.
        subject: The subject of the mails.
        workers: The number of connections, and of mails that are sent at a time.
        timeout: Time limit in seconds for each attempt at a mail.
        retry: When to retry a mail.
        rate: The maximum number of mails per second; None for no limit.
        limit: The maximum number of users in one run; None for all.
        dead_letters: The file for mails that failed permanently; None for a file next to the database.
        patience: Give up after this many seconds without any connection.
        durable: Whether the record of each delivery is synced to disk, so that it survives a power failure. Each mail
            then waits 0.2 to 2 ms for the disk.
        observers: Receive the events of the pool.

    Raises:
        ValueError: A number is out of range, or the name is invalid.
        OSError: The folder for the dead letters does not exist.
    """

    def __init__(
        self,
        database: str | os.PathLike[str],
        *,
        relay: Relay,
        name: str = "we-miss-you",
        sender: str = "news@example.com",
        subject: str = "We miss you",
        workers: int = 10,
        timeout: float = 60.0,
        retry: asyncpool.Retry = RETRY,
        rate: float | None = None,
        limit: int | None = None,
        dead_letters: str | os.PathLike[str] | None = None,
        patience: float = 60.0,
        durable: bool = False,
        observers: Sequence[asyncpool.Observer] = (),
    ) -> None:
        self.name = check_name(name)
        self.total = 0
        """The number of mails that this run has to send."""
        self._path = Path(database)
        self._sender = sender
        self._subject = subject
        self._limit = limit
        self._patience = patience
        self._is_durable = durable
        letters = (
            self._path.with_name(f"{self._path.name}.dead-letters.jsonl") if dead_letters is None else dead_letters
        )
        self.dead_letters = _DeadLetters(self, Path(letters))
        self.pool: asyncpool.WorkerPool[User, None] = asyncpool.WorkerPool(
            self._send,
            workers=workers,
            queue_size=0,  # no queue, because a drain would send the mails in it
            timeout=timeout,
            retry=retry,
            limiter=None if rate is None else asyncpool.RateLimit(rate),
            resource=relay.connect,
            recycle_on=spoils_connection,
            dead_letters=self.dead_letters,
            observers=[*observers, self._observe],
            name=name,
        )
        self._is_replay = False
        self._sent_before = 0
        self._failure: CampaignError | None = None
        self._sent_unwritten: list[User] = []
        self._last_contact = 0.0
        self._exit = AsyncExitStack()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def __aenter__(self) -> Self:
        """Open the database and connect the first worker.

        Raises:
            DatabaseError: The database cannot be used, or another campaign is using it.
            RelayError: The SMTP server cannot be reached, or rejects the connection.
        """
        async with AsyncExitStack() as stack:
            with in_sentences(self._path):
                # One connection reads users while the other one writes. The first one also checks that the file is a
                # database, before a lock file is created next to it.
                self._reader = await stack.enter_async_context(connect(self._path))
                await stack.enter_async_context(sole_use(self._path))
                writer = await stack.enter_async_context(connect(self._path))
                self.journal = await stack.enter_async_context(
                    Journal(writer, self._path, self.name, durable=self._is_durable)
                )
                self.total = await self._count()
            await asyncio.to_thread(self._check_letters)
            if self._limit is not None:
                self.total = min(self.total, self._limit)
            self._loop = asyncio.get_running_loop()
            self._last_contact = self._loop.time()
            stack.push_async_callback(self._is_idle.wait)  # a run in progress still reads and writes
            await stack.enter_async_context(self.pool)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the mails in progress, or cancel them after an exception. Record what was sent in both cases."""
        await self._exit.__aexit__(kind, error, traceback)

    async def run(self) -> CampaignReport:
        """Send a mail to each inactive user who has not received one. Return early if the pool is drained or cancelled.

        Raises:
            CampaignError: The campaign cannot continue. All deliveries are recorded, unless that failed.
        """
        self._is_idle.clear()
        try:
            return await self._run()
        finally:
            self._is_idle.set()

    async def _run(self) -> CampaignReport:
        began = self._loop.time()
        users = inactive_users(self._reader, self.journal.campaign, self.journal.as_of, self._limit)
        with in_sentences(self._path):
            try:
                async for _ in self.pool.outcomes(users):
                    pass  # failures become dead letters, and pool.stats counts the rest
            except asyncpool.PoolClosed:
                pass  # after a signal or _stop(); the report shows what is left
        return await self._finish(began)

    async def replay(self, letters: str | os.PathLike[str] | None = None) -> CampaignReport:
        """Send the dead letters of this campaign again, from its own file or from another one.

        A letter is removed from the file when the pool accepts its mail. If the mail fails again, it becomes a new
        letter. If the process is killed meanwhile, the next `run` sends the mails that were removed but not sent.

        Raises:
            CampaignError: The campaign cannot continue.
            OSError: The file cannot be read or written.
        """
        self._is_idle.clear()
        try:
            return await self._replay(letters)
        finally:
            self._is_idle.set()

    async def _replay(self, letters: str | os.PathLike[str] | None) -> CampaignReport:
        began = self._loop.time()
        self._is_replay = True
        source = await asyncio.to_thread(self._letters_of, letters)
        try:
            ids = await asyncio.to_thread(lambda: [letter.job.id for letter in source if self._is_mine(letter)])
        except OSError as error:
            raise DatabaseError(f"dead letters cannot be read from {source.path}: {error.strerror}") from error
        self.total = len(ids)
        with in_sentences(self._path):
            # Do this first: from now on, each mail is in the file, or will be sent by the next run, or both.
            await self.journal.forget_failures(ids)
        try:
            await source.replay(self.pool, where=self._is_mine)
            await self.pool.join()
        except asyncpool.PoolClosed:
            pass
        return await self._finish(began)

    def _is_mine(self, letter: asyncpool.DeadLetter[User]) -> bool:
        return letter.pool == self.name

    def _letters_of(self, path: str | os.PathLike[str] | None) -> asyncpool.DeadLetterFile[User]:
        if path is None or os.path.realpath(path) == os.fspath(self.dead_letters.path):
            return self.dead_letters
        return asyncpool.DeadLetterFile(path, encode=asdict, decode=_user)

    async def _send(self, user: User, connection: MailConnection) -> None:
        if self._is_replay and await self.journal.is_sent(user):
            self._sent_before += 1
            return  # the mail was sent after this letter was recorded
        _, _, domain = self._sender.rpartition("@")
        mail = Mail(sender=self._sender, subject=self._subject, id=f"<{self.name}.{user.id}@{domain}>", user=user)
        try:
            await connection.send(mail)
        except Refused as error:
            if not is_transient(error):
                raise asyncpool.Permanent(str(error)) from error
            raise
        except RelayError as error:
            self._stop(error)
            await asyncio.Event().wait()  # until _stop() cancels this job: the mail is unfinished, not failed
        self._last_contact = self._loop.time()
        # The mail is sent. Ignore timeouts and cancellations now, because they would cause a second delivery.
        written = self.journal.write(user, Mark.SENT)
        await surely(written)
        if isinstance(failure := written.exception(), JournalError):
            self._sent_unwritten.append(user)
            self._stop(failure)

    def _stop(self, error: CampaignError) -> None:
        """Stop the campaign and cancel the mails in progress, which cannot be sent or recorded."""
        if self._failure is None:
            self._failure = error
            self.pool.cancel()

    def _observe(self, event: asyncpool.Event) -> None:
        if not isinstance(event, ResourceFailed) or not isinstance(event.error, RelayError):
            return
        # A worker without a connection keeps trying to reconnect while mails wait. Give up at some point.
        if self._loop.time() - self._last_contact > self._patience:
            self._stop(event.error)

    def _check_letters(self) -> None:
        # Check this before the first mail, not when the first one fails.
        path = self.dead_letters.path
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise DatabaseError(f"dead letters cannot be written to {path}: permission denied")

    async def _count(self) -> int:
        return await count_inactive(self._reader, self.journal.campaign, self.journal.as_of)

    async def _finish(self, began: float) -> CampaignReport:
        seconds = self._loop.time() - began
        ended = await self.pool.close()
        cut_off = [mail.job for mail in ended.unfinished if mail.started]
        if isinstance(self._failure, JournalError):
            who = ", ".join(user.email for user in self._sent_unwritten + cut_off)
            raise JournalError(f"{self._failure}; users who may have received a mail without a record: {who}")
        if self._failure is not None:
            raise self._failure
        await self.journal.flush()
        stats = self.pool.stats
        return CampaignReport(
            sent=stats.succeeded - self._sent_before,
            failed=stats.failed,
            cut_off=len(cut_off),
            left=await self._count(),
            seconds=seconds,
            retries=stats.retries,
            reasons=dict(self.dead_letters.reasons),
            latency=stats.seconds_running,
        )


class _DeadLetters(asyncpool.DeadLetterFile[User]):
    """The file of the dead letters. Each is also marked in the journal, so that the next run does not send it again."""

    def __init__(self, campaign: EmailCampaign, path: Path) -> None:
        super().__init__(path, encode=asdict, decode=_user)
        self._campaign = campaign
        self.reasons: Counter[str] = Counter()

    def record(self, letter: asyncpool.DeadLetter[User]) -> None:
        # Write the letter first: if the process is killed in between, the mail is sent again, not forgotten.
        super().record(letter)
        self._campaign.journal.write(letter.job, Mark.FAILED)
        kind = letter.error_type.rpartition(".")[2]
        self.reasons[letter.error.partition(" ")[0] if kind == "Refused" else kind] += 1


def _user(fields: dict[str, Any]) -> User:
    return User(**fields)
