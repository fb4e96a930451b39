"""`EmailCampaign`: sends one mail to each inactive user, in a `WorkerPool`.

Each mail is sent over the connection of its worker. Then the delivery is recorded and committed, and only then is the
job done. So if a campaign is killed at any moment, at most one mail per worker was sent but not recorded. The next run
sends to all users without a record.

Like a mail queue, a campaign tries a mail again for a long time, and leaves it to the next run after that. `replies.py`
has the meaning of the errors.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import asyncpool
from asyncpool.events import ResourceFailed
from asyncpool.progress import track
from examples.email_campaign.addresses import read_mailbox
from examples.email_campaign.connection import MailConnection
from examples.email_campaign.dead_letters import CampaignLetters, letters_in
from examples.email_campaign.errors import CampaignError, DatabaseError, JournalError, RefusalError, RelayError
from examples.email_campaign.journal import Journal, Mark, surely
from examples.email_campaign.mail import TEXT, MailTemplate
from examples.email_campaign.outage import Outage
from examples.email_campaign.refusals import Refusals
from examples.email_campaign.relay import Relay
from examples.email_campaign.replies import (
    Ambiguous,
    Deferred,
    Disconnected,
    Refused,
    is_outage,
    is_transient,
    spoils_connection,
)
from examples.email_campaign.report import CampaignReport
from examples.email_campaign.users import User, connect, count_inactive, in_sentences, inactive_users, sole_use

__all__ = ["EmailCampaign", "check_name"]

_FIRST_DELAY = 0.05
_MAX_ATTEMPTS = 1_000_000  # retry_for ends the attempts, not their number
_MAX_IDLE = 60.0  # servers close connections that are idle for some minutes

_failing_since: ContextVar[float] = ContextVar("failing_since")
"""When the mail was rejected first. All attempts at a job have the same context."""


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
        sender: The sender: an address, or a name and an address in angle brackets. The Message-IDs have its domain.
        subject: The subject of the mails.
        text: The text of the mails: see `MailTemplate`.
        unsubscribe: The URL of the header List-Unsubscribe: see `MailTemplate`. None: no such header.
        workers: The number of connections, and of mails that are sent at a time.
        retry_for: How long to try, in seconds. A mail that the server rejects temporarily for longer is left to the
            next run. If the server itself is out of order for longer, the campaign stops.
        retry_delay: The longest delay before a retry, in seconds. The delays start at 0.05 s, and grow.
        max_refusals: This many permanent refusals in a row with the same reply stop the campaign, or call
            `on_refusals`. Their users are still to be sent.
        on_refusals: Called with a sentence about the refusals, while the pool is paused. If it returns True, the
            campaign continues, and mails that are refused with this reply become dead letters.
        rate: The maximum number of mails per second; None for no limit.
        limit: The maximum number of users in one run; None for all.
        dead_letters: The file for mails that failed permanently; None for a file next to the database.
        durable: Whether the record of each delivery is synced to disk, so that it survives a power failure. Each mail
            then waits 0.2 to 2 ms for the disk.
        observers: Receive the events of the pool.

    Raises:
        ValueError: A number is out of range; or the name, the sender, the subject, the text or the URL is invalid.
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
        text: str = TEXT,
        unsubscribe: str | None = None,
        workers: int = 10,
        retry_for: float = 1800.0,
        retry_delay: float = 120.0,
        max_refusals: int = 20,
        on_refusals: Callable[[str], Awaitable[bool]] | None = None,
        rate: float | None = None,
        limit: int | None = None,
        dead_letters: str | os.PathLike[str] | None = None,
        durable: bool = False,
        observers: Sequence[asyncpool.Observer] = (),
    ) -> None:
        self.name = check_name(name)
        self.total = 0
        """The number of mails that this run has to send."""
        self._path = Path(database)
        self._template = MailTemplate(sender=read_mailbox(sender), subject=subject, text=text, unsubscribe=unsubscribe)
        self._domain = self._template.sender.address.rpartition("@")[2]
        self._limit = limit
        self._retry_for = retry_for
        self._on_refusals = on_refusals
        self._is_durable = durable
        self._outage = Outage(retry_for)
        self._refusals = Refusals(max_refusals)
        letters = (
            self._path.with_name(f"{self._path.name}.dead-letters.jsonl") if dead_letters is None else dead_letters
        )
        self.dead_letters = CampaignLetters(Path(letters), holds=lambda: not self._refusals.are_expected)
        longest = max(retry_delay, 0.01)
        # The breaker stops the mails while the server is out of order, and tries one of them from time to time. A
        # failure of that kind does not count as an attempt at its mail.
        self._breaker = asyncpool.Breaker(on=is_outage, pause=min(1.0, longest), max_pause=min(60.0, longest))
        self.pool: asyncpool.WorkerPool[User, None] = asyncpool.WorkerPool(
            self._send,
            workers=workers,
            queue_size=0,  # no queue, because a drain would send the mails in it
            retry=asyncpool.Retry(
                attempts=_MAX_ATTEMPTS,
                backoff=min(_FIRST_DELAY, retry_delay),
                factor=3.0,
                max_backoff=retry_delay,
                on=is_transient,
            ),
            breaker=self._breaker,
            limiter=None if rate is None else asyncpool.RateLimit(rate),
            resource=asyncpool.Resource(
                relay.connect,
                open_timeout=relay.timeouts.greeting + 30.0,  # it has a time limit of its own
                max_idle=_MAX_IDLE,
                check=MailConnection.check,
                recycle_on=spoils_connection,
            ),
            dead_letters=self.dead_letters,
            observers=[*observers, self._observe],
            name=name,
        )
        self._is_replay = False
        self._sent_before = 0
        self._failure: CampaignError | None = None
        self._sent_unwritten: list[User] = []
        self._cut_off: list[User] = []
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
                self.dead_letters.journal = self.journal
                self.total = await self._count()
            await asyncio.to_thread(self._check_letters)
            if self._limit is not None:
                self.total = min(self.total, self._limit)
            self._loop = asyncio.get_running_loop()
            stack.push_async_callback(self._is_idle.wait)  # a run in progress still reads and writes
            await stack.enter_async_context(self.pool)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the mails in progress, or cancel them after an exception. Record what was sent in both cases."""
        await self._exit.__aexit__(kind, error, traceback)

    async def run(self, *, progress: bool = False) -> CampaignReport:
        """Send a mail to each inactive user who has not received one. Return early if the pool is drained or cancelled.

        Args:
            progress: Whether to show the progress on standard error.

        Raises:
            CampaignError: The campaign cannot continue. All deliveries are recorded, unless that failed.
        """
        self._is_idle.clear()
        try:
            return await self._run(progress)
        finally:
            self._is_idle.set()

    async def _run(self, progress: bool) -> CampaignReport:
        users = inactive_users(self._reader, self.journal.campaign, self.journal.as_of, self._limit)
        outcomes = self.pool.outcomes(users)
        if progress:
            track(outcomes, total=self.total)
        began = self._loop.time()
        with in_sentences(self._path):
            try:
                async for _ in outcomes:
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
        return letters_in(Path(path))

    async def _send(self, user: User, connection: MailConnection) -> None:
        if self._is_replay and await self.journal.is_sent(user):
            self._sent_before += 1
            return  # the mail was sent after this letter was recorded
        mail = self._template.mail(user, f"<{self.name}.{user.id}@{self._domain}>")
        try:
            await connection.send(mail)
        except asyncio.CancelledError:
            self._cut_off.append(user)
            raise
        except (Refused, Disconnected, Ambiguous) as error:
            await self._not_sent(user, error)
        # The mail is sent. Ignore cancellations now, because they would cause a second delivery.
        self._outage.end()
        self._refusals.clear()
        self.dead_letters.release()
        written = self.journal.write(user, Mark.SENT)
        await surely(written)
        if isinstance(failure := written.exception(), JournalError):
            self._sent_unwritten.append(user)
            self._stop(failure)

    async def _not_sent(self, user: User, error: Refused | Disconnected | Ambiguous) -> NoReturn:
        """Decide what happens to a mail that was not sent, or perhaps was; raise the error for the pool."""
        now = self._loop.time()
        if isinstance(error, Ambiguous):
            if user.id in self.journal.unclear:
                raise asyncpool.Permanent(str(error)) from error
            self.journal.unclear.add(user.id)
            self.journal.write(user, Mark.UNCLEAR)
        if not is_outage(error):
            self._outage.end()
        elif self._outage.note(now):
            await self._stop_here(RelayError(f"the mail server has sent no mail for {self._retry_for:g} s: {error}"))
        if isinstance(error, Refused) and error.is_about_sender:
            await self._stop_here(
                RelayError(f"the mail server rejected the sender {self._template.sender.address}: {error}")
            )
        if isinstance(error, Refused) and not error.is_temporary:
            await self._note_refusal(error, user.email)
            raise asyncpool.Permanent(str(error)) from error
        if self._breaker.state == "closed" and now - _failing_since.get(now) > self._retry_for:
            raise Deferred(str(error)) from error
        _failing_since.set(_failing_since.get(now))
        raise error

    async def _note_refusal(self, error: Refused, address: str) -> None:
        """Stop, or ask, if the server refuses one mail after the other with the same reply."""
        is_suspicious = self._refusals.add(str(error), address)
        if self._refusals.is_first:
            self.dead_letters.release()
        if not is_suspicious:
            return
        sentence = f"the mail server refused {self._refusals.count} mails in a row with the same reply: {error}"
        if self._on_refusals is None or not await self._ask(sentence, self._on_refusals):
            await self._stop_here(RefusalError(f"{sentence}; their users are still to be sent"))
        self._refusals.expect()
        self.dead_letters.release()

    async def _ask(self, sentence: str, on_refusals: Callable[[str], Awaitable[bool]]) -> bool:
        if self.pool.state != "open":
            return False
        self.pool.pause()
        try:
            return await on_refusals(sentence)
        finally:
            if self.pool.state == "open":
                self.pool.resume()

    def _stop(self, error: CampaignError) -> None:
        """Stop the campaign and cancel the mails in progress, which cannot be sent or recorded."""
        if self._failure is None:
            self._failure = error
            self.pool.cancel()

    async def _stop_here(self, error: CampaignError) -> NoReturn:
        """Stop the campaign because of the mail of this job, which is unfinished then, not failed."""
        self._stop(error)
        await asyncio.Event().wait()  # until the pool cancels this job
        raise AssertionError("the pool cancels all jobs")

    def _observe(self, event: asyncpool.Event) -> None:
        # A worker without a connection keeps trying to connect while mails wait.
        match event:
            case ResourceFailed(error=RelayError() as error) if self._outage.note(self._loop.time()):
                self._stop(error)

    def _check_letters(self) -> None:
        # Check this before the first mail, not when the first one fails.
        path = self.dead_letters.path
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise DatabaseError(f"dead letters cannot be written to {path}: permission denied")

    async def _count(self) -> int:
        return await count_inactive(self._reader, self.journal.campaign, self.journal.as_of)

    async def _finish(self, began: float) -> CampaignReport:
        seconds = self._loop.time() - began
        await self.pool.close()
        if isinstance(self._failure, RefusalError):
            self.dead_letters.drop()
        self.dead_letters.release()
        if isinstance(self._failure, JournalError):
            who = ", ".join(user.email for user in self._sent_unwritten + self._cut_off)
            raise JournalError(f"{self._failure}; users who may have received a mail without a record: {who}")
        if self._failure is not None:
            raise self._failure
        await self.journal.flush()
        stats = self.pool.stats
        ambiguous = self.dead_letters.reasons.pop(Ambiguous.__name__, 0)
        return CampaignReport(
            sent=stats.succeeded - self._sent_before,
            failed=stats.failed - self.dead_letters.deferred - ambiguous,
            ambiguous=ambiguous,
            deferred=self.dead_letters.deferred,
            cut_off=len(self._cut_off),
            left=await self._count(),
            seconds=seconds,
            retries=stats.retries,
            reasons=dict(self.dead_letters.reasons),
            latency=stats.seconds_running,
        )
