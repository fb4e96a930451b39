"""The command line: what is asked for, and the exit status.

The work is done by `campaign.py`, and its figures are told by `report.py`.
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
    """What was asked for."""

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
    """Run the command and return its exit status. Raises `SystemExit(2)` if the arguments make no sense."""
    options = _parse(arguments)
    # What the pool does is told by the report: its log needs to tell no more than what must never be.
    logging.getLogger("asyncpool").setLevel(logging.ERROR)
    logging.getLogger("asyncpool").addFilter(_is_not_of_the_relay)
    try:
        return asyncio.run(_run(options))
    except CampaignError as error:
        rest = " (run the same command again to go on)" if isinstance(error, RelayError) else ""
        print(f"email_campaign: error: {printable(str(error))}{rest}", file=sys.stderr)
        return USAGE if isinstance(error, DatabaseError) else FAILED
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to go on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our lines has enough. What Python would still write at its exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # of what we print: all else has a sentence of its own
        print(f"email_campaign: error: {error}", file=sys.stderr)
        return FAILED


def _is_not_of_the_relay(record: logging.LogRecord) -> bool:
    # Each worker tries again and again to connect: a line now and then tells that, and not a traceback for each.
    return record.exc_info is None or not isinstance(record.exc_info[1], RelayError)


async def _run(options: Options) -> int:
    if options.replay is not None and not await asyncio.to_thread(options.replay.is_file):
        raise DatabaseError(f"there are no dead letters to replay: {options.replay} is not a file")
    users = 50_000 if options.users is None else options.users
    with in_sentences(options.db):
        if await make_users(options.db, users, options.seed):
            _say(f"Made {options.db} with {users:,} users")
        elif options.users is not None:
            _say(f"{options.db} is there already, with its own users: --users is for a new one")
    async with AsyncExitStack() as stack:
        if options.smtp is None:
            server = server_process(options.latency, options.faults, options.seed)
            host, port = "127.0.0.1", await stack.enter_async_context(server)
            _say(f"Debug server on port {port}: {options.latency} ms a mail, faults {options.faults}")
        else:
            host, port = options.smtp
        # No connection that no mail would go over.
        workers = options.workers if options.limit is None else min(options.workers, options.limit)
        signals: asyncpool.drain_on_signal | None = None
        quiet_until = 0.0

        def tell(event: asyncpool.Event) -> None:
            nonlocal quiet_until
            now = asyncio.get_running_loop().time()
            if isinstance(event, ResourceFailed) and isinstance(event.error, RelayError) and now >= quiet_until:
                quiet_until = now + 5.0  # each worker tries again and again
                _say(f"A worker has no connection: {event.error}")
            if isinstance(event, PoolStopping) and signals is not None and signals.received:
                _say("Stopping: what is under way is finished first; Ctrl+C once more cancels it.")

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
            what = (
                f"{campaign.total:,} mails to send" if options.replay is None else f"again what is in {options.replay}"
            )
            with asyncpool.drain_on_signal(campaign.pool) as signals:
                connections = "1 connection" if workers == 1 else f"{workers} connections"
                _say(f"Campaign {campaign.name}: {what}, over {connections}")
                if options.replay is None and not campaign.total:
                    _say("Nobody is left: every inactive user has the mail, or is among the dead letters.")
                    return OK
                async with show_progress(campaign):
                    report = await (campaign.run() if options.replay is None else campaign.replay(options.replay))
        is_demo = options.smtp is None
        if options.replay is not None and not campaign.total:
            raise DatabaseError(f"{options.replay} has no dead letters of the campaign {campaign.name}")
        return _tell_end(report, campaign.dead_letters.path, is_demo=is_demo, interrupted=signals.received > 0)


def _tell_end(report: CampaignReport, letters: Path, *, is_demo: bool, interrupted: bool) -> int:
    is_as_expected = is_demo and set(report.reasons) == {Fault.NO_MAILBOX.value}
    for line in report.lines():
        _say(line)
    if report.failed:
        _say(f"Dead letters: {os.path.relpath(letters)}, which --replay FILE sends again")
    if report.failed and is_as_expected:
        _say("They have failed as they should: the debug server has some mailboxes missing on purpose.")
    if interrupted:
        _say(f"Interrupted: {report.left:,} users are left; run the same command again to go on.")
        return INTERRUPTED
    return FAILED if report.failed and not is_as_expected else OK


def _say(text: str) -> None:
    print(printable(text), flush=True)


# -- The arguments --


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="email_campaign",
        usage="python -m examples.email_campaign [options]",
        description="Send a mail to each user who has been away for 30 days or more.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--users", type=_read(_whole), metavar="N", help="how many users a new database has (50000)")
    add("--db", default="email-campaign.db", type=Path, metavar="FILE", help="the database (email-campaign.db)")
    add("--campaign", default="we-miss-you", type=_read(check_name), metavar="NAME", help="its name (we-miss-you)")
    add(
        "--limit",
        type=_read(_whole),
        metavar="N",
        help="send no more than N mails in this run; not with --replay",
    )
    add("--replay", type=Path, metavar="FILE", help="send this campaign's dead letters in a file again, nothing else")
    add("--workers", default=10, type=_read(_whole), metavar="N", help="how many connections (10)")
    add("--rate", type=_read(_positive), metavar="N", help="send no more than N mails a second")
    add("--timeout", type=_read(_positive), metavar="S", help="seconds that an attempt may take (60; in the demo 3)")
    add("--durable", action="store_true", help="who got a mail outlives a power failure too (1 ms a mail)")
    add("--smtp", type=_read(_address), metavar="HOST:PORT", help="a mail server, in place of the debug server")
    add("--latency", default="20-100", type=_read(_checked(read_latency)), metavar="A-B", help="ms a mail (20-100)")
    add("--faults", default="0.05", type=_read(_checked(read_faults)), metavar="P", help="see below (0.05)")
    add("--seed", default=0, type=int, metavar="N", help="of the users, the latencies and the faults (0)")
    found = parser.parse_args(arguments)
    if found.timeout is None:
        found.timeout = 3.0 if found.smtp is None else 60.0
    return Options(**vars(found))


_EPILOG = """\
Without --smtp, mails go to a server on loopback that delivers nothing, takes its time, and has
faults on purpose: --faults 0.05 for a mix of all, or KIND=SHARE,... of 421, 451, 550, drop,
lost, stall. A mail server that wants a login gets that of the variables SMTP_USERNAME and
SMTP_PASSWORD.

Who got a mail is written to the database as it happens: run the same command again to go on
after Ctrl+C or a crash. Ctrl+C finishes what is under way; once more cancels.

Exit status: 0 if all is well; 1 if a mail failed that should not, or the campaign could not go on; 2 if the
command makes no sense; 130 if it was interrupted.
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
        raise ValueError(f"it must be a whole number >= 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"it must be a number > 0, got {text!r}")
    return number


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"a mail server must be HOST:PORT, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
