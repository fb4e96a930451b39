"""`EmailCampaign`: sends a mail to each inactive user, on a `WorkerPool`, and never two to the same one.

The way of one mail: it is sent over the worker's own connection; then that it was sent is written down and committed;
only then is the job done. Wherever a campaign is killed, the mails that were sent and not written down are no more
than the workers, and the next run sends to all who have none.
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
"""At once after a dropped connection, and more patient each time: up to 0.05, 0.15, 0.45, 1.35 and 4.05 seconds."""


def check_name(name: str) -> str:
    """Return the name of a campaign if a Message-ID can hold it; else raise a `ValueError`."""
    if not re.fullmatch("[A-Za-z0-9]+(-[A-Za-z0-9]+)*", name):
        raise ValueError(f"a campaign's name must be of letters, digits and hyphens, got {name!r}")
    return name


class EmailCampaign:
    """Sends one mail to each inactive user of a database, over as many SMTP connections as there are workers.

        async with EmailCampaign("users.db", relay=Relay(host="localhost", port=25)) as campaign:
            report = await campaign.run()
            print(report.sent, report.failed)

    A campaign is known by its name: whoever has got its mail gets no other, however often it is run. One process runs
    campaigns on a database at a time. `pool` is the `WorkerPool`, for its `stats` and for `drain_on_signal`.

    Args:
        database: The file of the users, with a table `users` as `make_users` makes it.
        relay: The SMTP server.
        name: Of the campaign: letters, digits and hyphens.
        sender: Who the mails are from; its domain is that of the Message-IDs too.
        subject: Of the mails.
        workers: How many connections there are, and how many mails are under way at a time.
        timeout: Seconds that one attempt at a mail may take.
        retry: When a mail is tried again.
        rate: The most mails a second; None for no limit.
        limit: The most users that one run takes; None for all.
        dead_letters: The file of the mails that failed for good; None: beside the database.
        patience: Seconds without any connection after which the campaign gives up.
        durable: Whether what was sent outlives a power failure too, and not only the end of the process. It costs as
            long as the disk takes, 0.2 to 2 ms for each mail of a worker.
        observers: Get the events of the pool.

    Raises:
        ValueError: A number is out of range, or the name is none.
        OSError: The dead letters have no folder.
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
        """How many mails this run has to send."""
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
            queue_size=0,  # no waiting room: a drain would send what is in it
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
        """Open the database, connect the first worker.

        Raises:
            DatabaseError: The database cannot be used, or another campaign is using it.
            RelayError: The SMTP server cannot be reached, or does not serve us.
        """
        async with AsyncExitStack() as stack:
            with in_sentences(self._path):
                # Two connections: while the one reads users, the other one writes. The first tells whether the file is
                # a database at all, before a lock is put beside it.
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
            stack.push_async_callback(self._is_idle.wait)  # a run that is under way reads and writes to its end
            await stack.enter_async_context(self.pool)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish what is under way; leaving by an exception cancels it. What was sent is written down either way."""
        await self._exit.__aexit__(kind, error, traceback)

    async def run(self) -> CampaignReport:
        """Send a mail to each inactive user who has none yet. Returns early if the pool is drained or cancelled.

        Raises:
            CampaignError: It cannot go on; what was sent is written down, unless that is the reason.
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
                    pass  # failures are dead letters, and the rest is in pool.stats
            except asyncpool.PoolClosed:
                pass  # by a signal, or by _stop: the report tells what is left
        return await self._finish(began)

    async def replay(self, letters: str | os.PathLike[str] | None = None) -> CampaignReport:
        """Send the dead letters of this campaign again, of its own file or of another one.

        A letter leaves the file when the pool has taken its mail over; if it fails again, it is another letter. Killed
        meanwhile, the mails that have left the file and are not sent are sent by the next `run`.

        Raises:
            CampaignError: It cannot go on.
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
            # First of all: from here on each of them is in the file, or to be sent as all others, or both.
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
            return  # the letter is older than the mail
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
            await asyncio.Event().wait()  # until we are cancelled: this mail is unfinished, and not a failure
        self._last_contact = self._loop.time()
        # The mail is sent. A timeout or a cancellation comes too late now: the mail would be sent once more for it.
        written = self.journal.write(user, Mark.SENT)
        await surely(written)
        if isinstance(failure := written.exception(), JournalError):
            self._sent_unwritten.append(user)
            self._stop(failure)

    def _stop(self, error: CampaignError) -> None:
        """End the campaign. What is under way is cancelled, as it could not be written down, or not be sent."""
        if self._failure is None:
            self._failure = error
            self.pool.cancel()

    def _observe(self, event: asyncpool.Event) -> None:
        if not isinstance(event, ResourceFailed) or not isinstance(event.error, RelayError):
            return
        # A worker without a connection tries again and again, and its mails wait: that needs an end.
        if self._loop.time() - self._last_contact > self._patience:
            self._stop(event.error)

    def _check_letters(self) -> None:
        # Before the first mail, and not at the first that fails.
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
            raise JournalError(f"{self._failure}; who has or may have a mail for all that: {who}")
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
    """The file of the letters; each is in the journal too, so that the next run does not try it again."""

    def __init__(self, campaign: EmailCampaign, path: Path) -> None:
        super().__init__(path, encode=asdict, decode=_user)
        self._campaign = campaign
        self.reasons: Counter[str] = Counter()

    def record(self, letter: asyncpool.DeadLetter[User]) -> None:
        # The letter first: killed in between, the mail is tried once more, and not forgotten.
        super().record(letter)
        self._campaign.journal.write(letter.job, Mark.FAILED)
        kind = letter.error_type.rpartition(".")[2]
        self.reasons[letter.error.partition(" ")[0] if kind == "Refused" else kind] += 1


def _user(fields: dict[str, Any]) -> User:
    return User(**fields)
