"""The command line: arguments, progress lines and exit status.

`campaign.py` does the work, and `report.py` has its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import asyncpool
from asyncpool.events import PoolStopping, ResourceFailed
from examples.command_line import FAILED, INTERRUPTED, OK, USAGE, Parser, printable
from examples.email_campaign.campaign import EmailCampaign, check_name
from examples.email_campaign.errors import CampaignError, DatabaseError, RelayError
from examples.email_campaign.faults import Fault, read_faults
from examples.email_campaign.mailer import Relay
from examples.email_campaign.progress import show_progress
from examples.email_campaign.report import CampaignReport
from examples.email_campaign.server import read_latency, server_process
from examples.email_campaign.users import in_sentences, make_users

__all__ = ["main"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    users: int | None
    db: Path
    campaign: str
    limit: int | None
    smtp: tuple[str, int] | None
    workers: int
    timeout: float
    rate: float | None
    latency: str
    faults: str
    seed: int
    replay: Path | None
    durable: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    options = _parse(arguments)
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
    with in_sentences(options.db):
        if await make_users(options.db, users, options.seed):
            _say(f"Created {options.db} with {users:,} users")
        elif options.users is not None:
            _say(f"{options.db} already exists; --users only applies to a new database")
    async with AsyncExitStack() as stack:
        if options.smtp is None:
            server = server_process(options.latency, options.faults, options.seed)
            host, port = "127.0.0.1", await stack.enter_async_context(server)
            _say(f"Debug server on port {port}: {options.latency} ms per mail, faults {options.faults}")
        else:
            host, port = options.smtp
        # Do not open more connections than there are mails.
        workers = options.workers if options.limit is None else min(options.workers, options.limit)
        signals: asyncpool.drain_on_signal | None = None
        quiet_until = 0.0

        def tell(event: asyncpool.Event) -> None:
            nonlocal quiet_until
            now = asyncio.get_running_loop().time()
            if isinstance(event, ResourceFailed) and isinstance(event.error, RelayError) and now >= quiet_until:
                quiet_until = now + 5.0  # all workers keep trying
                _say(f"A worker cannot connect: {event.error}")
            if isinstance(event, PoolStopping) and signals is not None and signals.received:
                _say("Stopping: finishing the mails in progress; press Ctrl+C again to cancel them.")

        campaign = EmailCampaign(
            options.db,
            relay=Relay(
                host=host,
                port=port,
                username=os.environ.get("SMTP_USERNAME"),
                password=os.environ.get("SMTP_PASSWORD"),
            ),
            name=options.campaign,
            workers=workers,
            timeout=options.timeout,
            rate=options.rate,
            limit=options.limit,
            durable=options.durable,
            observers=[tell],
        )
        async with campaign:
            mails = "1 mail" if campaign.total == 1 else f"{campaign.total:,} mails"
            what = f"sending {mails}" if options.replay is None else f"replaying {options.replay}"
            with asyncpool.drain_on_signal(campaign.pool) as signals:
                connections = "1 connection" if workers == 1 else f"{workers} connections"
                _say(f"Campaign {campaign.name}: {what} over {connections}")
                if options.replay is None and not campaign.total:
                    _say("Nothing to send: every inactive user has the mail or is among the dead letters.")
                    return OK
                async with show_progress(campaign):
                    report = await (campaign.run() if options.replay is None else campaign.replay(options.replay))
        is_demo = options.smtp is None
        if options.replay is not None and not campaign.total:
            raise DatabaseError(f"{options.replay} has no dead letters of the campaign {campaign.name}")
        return _sum_up(report, campaign.dead_letters.path, is_demo=is_demo, interrupted=signals.received > 0)


def _sum_up(report: CampaignReport, letters: Path, *, is_demo: bool, interrupted: bool) -> int:
    is_as_expected = is_demo and set(report.reasons) == {Fault.NO_MAILBOX.value}
    for line in report.lines():
        _say(line)
    if report.failed:
        _say(f"Dead letters: {os.path.relpath(letters)} (to send them again: --replay FILE)")
    if report.failed and is_as_expected:
        _say("All failures are expected: some mailboxes are missing on the debug server on purpose.")
    if interrupted:
        _say(f"Interrupted: {report.left:,} users are left; run the same command again to continue.")
        return INTERRUPTED
    return FAILED if report.failed and not is_as_expected else OK


def _say(text: str) -> None:
    print(printable(text), flush=True)


# -- The arguments --


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="email_campaign",
        usage="python -m examples.email_campaign [options]",
        description="Email every user who has been away for 30 days or more.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--users", type=_read(_whole), metavar="N", help="the number of users in a new database (50000)")
    add("--db", default="email-campaign.db", type=Path, metavar="FILE", help="the database (email-campaign.db)")
    add("--campaign", default="we-miss-you", type=_read(check_name), metavar="NAME", help="its name (we-miss-you)")
    add(
        "--limit",
        type=_read(_whole),
        metavar="N",
        help="send at most N mails in this run; ignored with --replay",
    )
    add("--replay", type=Path, metavar="FILE", help="only send the dead letters of this campaign in FILE again")
    add("--workers", default=10, type=_read(_whole), metavar="N", help="the number of connections (10)")
    add("--rate", type=_read(_positive), metavar="N", help="send at most N mails per second")
    add("--timeout", type=_read(_positive), metavar="S", help="time limit per attempt in seconds (60; in the demo 3)")
    add("--durable", action="store_true", help="let records of sent mails survive a power failure (1 ms per mail)")
    add("--smtp", type=_read(_address), metavar="HOST:PORT", help="a mail server to use instead of the debug server")
    add("--latency", default="20-100", type=_read(_checked(read_latency)), metavar="A-B", help="ms per mail (20-100)")
    add("--faults", default="0.05", type=_read(_checked(read_faults)), metavar="P", help="see below (0.05)")
    add("--seed", default=0, type=int, metavar="N", help="seed of the users, the latencies and the faults (0)")
    found = parser.parse_args(arguments)
    if found.timeout is None:
        found.timeout = 3.0 if found.smtp is None else 60.0
    return Options(**vars(found))


_EPILOG = """\
Without --smtp, mails go to a debug server on loopback that delivers nothing, has latency, and
fails on purpose: --faults 0.05 mixes all kinds, and KIND=SHARE,... chooses among 421, 451, 550,
drop, lost and stall. If a mail server requires a login, it is read from the environment
variables SMTP_USERNAME and SMTP_PASSWORD.

Each delivery is recorded in the database as it happens: after Ctrl+C or a crash, run the same
command again to continue. Ctrl+C finishes the mails in progress; a second Ctrl+C cancels.

Exit status: 0 on success; 1 if a mail failed unexpectedly or the campaign could not continue;
2 if the arguments are invalid; 130 if it was interrupted.
"""


def _read(read: Callable[[str], T]) -> Callable[[str], T]:
    def argument(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def _checked(read: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        read(text)
        return text

    return check


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"must be a number > 0, got {text!r}")
    return number


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"must be HOST:PORT, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
