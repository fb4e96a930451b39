"""The command: messages and exit status. `options.py` has its arguments.

`campaign.py` does the work, and `report.py` has its figures.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpool
from asyncpool.events import BreakerClosed, BreakerOpened, PoolStopping, ResourceFailed
from examples.command_line import FAILED, INTERRUPTED, OK, USAGE, printable
from examples.email_campaign.campaign import EmailCampaign
from examples.email_campaign.errors import CampaignError, DatabaseError, RelayError
from examples.email_campaign.faults import Fault
from examples.email_campaign.options import Options, parse
from examples.email_campaign.question import ask, can_ask
from examples.email_campaign.relay import Relay, Tls
from examples.email_campaign.report import CampaignReport
from examples.email_campaign.server import server_process
from examples.email_campaign.users import in_sentences, make_users

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    options = parse(arguments)
    # The report shows what the pool does, so log errors only.
    logging.getLogger("asyncpool").setLevel(logging.ERROR)
    logging.getLogger("asyncpool").addFilter(_is_not_of_the_relay)
    try:
        return asyncio.run(_run(options))
    except CampaignError as error:
        rest = " (run the same command again to continue)" if isinstance(error, RelayError) else ""
        print(f"email_campaign: error: {printable(str(error))}{rest}", file=sys.stderr)
        return USAGE if isinstance(error, DatabaseError) else FAILED
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to continue.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output closed the pipe. Python flushes stdout once more when it exits: drop that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # from print(): other errors have messages of their own
        print(f"email_campaign: error: {error}", file=sys.stderr)
        return FAILED


def _is_not_of_the_relay(record: logging.LogRecord) -> bool:
    # Workers keep trying to connect. An occasional line reports that, instead of a traceback for each attempt.
    return record.exc_info is None or not isinstance(record.exc_info[1], RelayError)


async def _run(options: Options) -> int:
    if options.replay is not None and not await asyncio.to_thread(options.replay.is_file):
        raise DatabaseError(f"there are no dead letters to replay: {options.replay} is not a file")
    users = 50_000 if options.users is None else options.users
    if options.relay is not None and options.users is None and not await asyncio.to_thread(options.db.exists):
        raise DatabaseError(f"there is no database {options.db}; --users N creates one, with N made-up users")
    with in_sentences(options.db):
        if await make_users(options.db, users, options.seed):
            _say(f"Created {options.db} with {users:,} users")
        elif options.users is not None:
            _say(f"{options.db} already exists; --users only applies to a new database")
    async with AsyncExitStack() as stack:
        relay = options.relay
        if relay is None:
            port = await stack.enter_async_context(server_process(options.latency, options.faults, options.seed))
            relay = Relay(host="127.0.0.1", port=port, tls=Tls.NONE, timeouts=options.timeouts)
            _say(f"Debug server on port {port}: {options.latency} ms per mail, faults {options.faults}")
        # Do not open more connections than there are mails.
        workers = options.workers if options.limit is None else min(options.workers, options.limit)
        observer = _Observer()
        campaign = EmailCampaign(
            options.db,
            relay=relay,
            name=options.campaign,
            sender=options.sender,
            subject=options.subject,
            text=options.text,
            unsubscribe=options.unsubscribe,
            workers=workers,
            retry_for=options.retry_for,
            retry_delay=options.retry_delay,
            max_refusals=options.max_refusals,
            on_refusals=_go_on if can_ask() else None,
            rate=options.rate,
            limit=options.limit,
            durable=options.durable,
            observers=[observer],
        )
        async with campaign:
            mails = "1 mail" if campaign.total == 1 else f"{campaign.total:,} mails"
            what = f"sending {mails}" if options.replay is None else f"replaying {options.replay}"
            with asyncpool.drain_on_signal(campaign.pool, drain_timeout=options.drain_timeout) as signals:
                observer.signals = signals
                connections = "1 connection" if workers == 1 else f"{workers} connections"
                _say(f"Campaign {campaign.name}: {what} over {connections}")
                if options.replay is None and not campaign.total:
                    _say("Nothing to send: every inactive user has the mail or is among the dead letters.")
                    return OK
                if options.replay is None:
                    report = await campaign.run(progress=True)
                else:
                    report = await campaign.replay(options.replay)
        if options.replay is not None and not campaign.total:
            raise DatabaseError(f"{options.replay} has no dead letters of the campaign {campaign.name}")
        is_demo = options.relay is None
        return _sum_up(report, campaign.dead_letters.path, is_demo=is_demo, interrupted=signals.received > 0)


class _Observer:
    """Prints a line when the server is out of order, and when the pool is stopped by a signal."""

    QUIET = 5.0
    """Seconds between two lines: all workers keep trying."""

    def __init__(self) -> None:
        self.signals: asyncpool.drain_on_signal | None = None
        self._quiet_until = 0.0

    def __call__(self, event: asyncpool.Event) -> None:
        match event:
            case ResourceFailed(error=RelayError() as error):
                self._trouble(f"A worker cannot connect: {error}")
            case BreakerOpened(error=error, seconds=seconds):
                reason = "it did not reply in time" if error is None else error
                self._trouble(f"The mail server is out of order ({reason}); the next attempt is in {seconds:g} s")
            case BreakerClosed(seconds=seconds):
                _say(f"The mail server is available again after {seconds:.0f} s")
            case PoolStopping() if self.signals is not None and self.signals.received:
                _say("Stopping: finishing the mails in progress; press Ctrl+C again to cancel them.")

    def _trouble(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._quiet_until = now + self.QUIET
            _say(text)


async def _go_on(sentence: str) -> bool:
    return await ask(printable(f"{sentence[0].upper()}{sentence[1:]}. Continue, and give up these mails?"))


def _sum_up(report: CampaignReport, letters: Path, *, is_demo: bool, interrupted: bool) -> int:
    is_as_expected = is_demo and set(report.reasons) == {Fault.NO_MAILBOX.value}
    for line in report.lines():
        _say(line)
    if report.failed or report.ambiguous:
        _say(f"Dead letters: {os.path.relpath(letters)} (to send them again: --replay FILE)")
    if report.failed and is_as_expected:
        _say("All failures are expected: some mailboxes are missing on the debug server on purpose.")
    if interrupted:
        _say(f"Interrupted: {report.left:,} users are left; run the same command again to continue.")
        return INTERRUPTED
    if report.deferred:
        _say(f"{report.left:,} users are left: run the same command again later to continue.")
    is_complete = not report.ambiguous and not report.deferred and (not report.failed or is_as_expected)
    return OK if is_complete else FAILED


def _say(text: str) -> None:
    print(printable(text), flush=True)
