"""The arguments of the command line."""

from __future__ import annotations

import argparse
import ipaddress
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from examples.command_line import Parser
from examples.email_campaign.addresses import read_mailbox
from examples.email_campaign.campaign import check_name
from examples.email_campaign.connection import Timeouts
from examples.email_campaign.faults import read_faults
from examples.email_campaign.mail import TEXT, MailTemplate
from examples.email_campaign.relay import Relay, Tls
from examples.email_campaign.server import read_latency

__all__ = ["Options", "parse"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    users: int | None
    db: Path
    campaign: str
    sender: str
    subject: str
    text: str
    unsubscribe: str | None
    limit: int | None
    replay: Path | None
    workers: int
    rate: float | None
    retry_for: float
    retry_delay: float
    max_refusals: int
    drain_timeout: float
    durable: bool
    relay: Relay | None
    """None: the debug server."""
    timeouts: Timeouts
    latency: str
    faults: str
    seed: int


_EPILOG = """\
Without --smtp, mails go to a debug server on loopback that delivers nothing, has latency, and
fails on purpose: --faults 0.05 mixes all kinds, and KIND=SHARE,... chooses among 421, 451, 550,
drop, lost and stall.

A login needs TLS. The password is read from the environment variable SMTP_PASSWORD, or with
--password-file; the user name can be in SMTP_USERNAME. Without --tls, port 465 is implicit,
loopback is not encrypted, and all others must offer STARTTLS.

Each delivery is recorded in the database as it happens: after Ctrl+C or a crash, run the same
command again to continue. Ctrl+C finishes the mails in progress; a second Ctrl+C cancels.

Exit status: 0 on success; 1 if a mail failed unexpectedly, was deferred, or the campaign could
not continue; 2 if the arguments are invalid; 130 if it was interrupted.
"""


def parse(arguments: Sequence[str] | None) -> Options:
    """Parse and check the arguments. Raises `SystemExit(2)` if they are invalid."""
    parser = Parser(
        prog="email_campaign",
        usage="python -m examples.email_campaign [options]",
        description="Email every user who has been away for 30 days or more.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to send").add_argument
    add("--users", type=_read(_whole), metavar="N", help="the number of users in a new database (50000)")
    add("--db", default="email-campaign.db", type=Path, metavar="FILE", help="the database (email-campaign.db)")
    add("--campaign", default="we-miss-you", type=_read(check_name), metavar="NAME", help="its name (we-miss-you)")
    add(
        "--from",
        dest="sender",
        default="news@example.com",
        type=_read(_checked(read_mailbox)),
        metavar="SENDER",
        help="ADDRESS or 'NAME <ADDRESS>' (news@example.com)",
    )
    add("--subject", default="We miss you", metavar="TEXT", help="the subject ('We miss you')")
    add("--template", type=Path, metavar="FILE", help="the text, with $name, $email, $id and $unsubscribe")
    add("--unsubscribe", metavar="URL", help="a URL for List-Unsubscribe; $id and $email are replaced")
    add("--limit", type=_read(_whole), metavar="N", help="send at most N mails in this run; ignored with --replay")
    add("--replay", type=Path, metavar="FILE", help="only send the dead letters of this campaign in FILE again")
    add("--durable", action="store_true", help="let records of sent mails survive a power failure (1 ms per mail)")

    add = parser.add_argument_group("how to send").add_argument
    add("--workers", default=10, type=_read(_whole), metavar="N", help="the number of connections (10)")
    add("--rate", type=_read(_positive), metavar="N", help="send at most N mails per second")
    add(
        "--retry-for",
        default=1800.0,
        type=_read(_positive),
        metavar="S",
        help="leave a mail to the next run after S seconds of temporary errors (1800)",
    )
    add(
        "--retry-delay",
        default=120.0,
        type=_read(_positive),
        metavar="S",
        help="the longest delay before a retry (120)",
    )
    add(
        "--max-refusals",
        default=20,
        type=_read(_whole),
        metavar="N",
        help="ask, or stop, when N mails in a row are refused with the same reply (20)",
    )
    add(
        "--timeout",
        type=_read(_positive),
        metavar="S",
        help="time limit for each reply of the server (RFC 5321: 2 to 10 minutes; in the demo 3 s)",
    )
    add(
        "--drain-timeout",
        default=30.0,
        type=_read(_positive),
        metavar="S",
        help="after Ctrl+C or SIGTERM, cancel the mails in progress after S seconds (30)",
    )

    add = parser.add_argument_group("the mail server").add_argument
    add("--smtp", type=_read(_address), metavar="HOST:PORT", help="a mail server to use instead of the debug server")
    add("--tls", choices=[tls.value for tls in Tls], help="see below")
    add("--ca", type=Path, metavar="FILE", help="trust the certificates in this PEM file, and no others")
    add("--username", default=os.environ.get("SMTP_USERNAME"), metavar="NAME", help="for the login")
    add("--password-file", type=Path, metavar="FILE", help="a file with the password in its first line")
    add("--plain-login", action="store_true", help="log in without TLS, too: anybody on the way can read the password")

    add = parser.add_argument_group("the debug server").add_argument
    add("--latency", default="20-100", type=_read(_checked(read_latency)), metavar="A-B", help="ms per mail (20-100)")
    add("--faults", default="0.05", type=_read(_checked(read_faults)), metavar="P", help="see below (0.05)")
    add("--seed", default=0, type=int, metavar="N", help="seed of the users, the latencies and the faults (0)")

    found = vars(parser.parse_args(arguments))
    try:
        return _options(found)
    except ValueError as error:
        parser.error(str(error))


def _options(found: dict[str, Any]) -> Options:
    smtp, text = found.pop("smtp"), _read_file(found.pop("template"), TEXT)
    seconds: float | None = found.pop("timeout") or (3.0 if smtp is None else None)
    timeouts = Timeouts() if seconds is None else Timeouts.all(seconds)
    relay = _relay(found, smtp, timeouts)
    for name in ("tls", "ca", "username", "password_file", "plain_login"):
        del found[name]
    options = Options(**found, text=text, relay=relay, timeouts=timeouts)
    sender = read_mailbox(options.sender)
    MailTemplate(sender=sender, subject=options.subject, text=text, unsubscribe=options.unsubscribe)  # is it valid?
    return options


def _relay(found: dict[str, Any], smtp: tuple[str, int] | None, timeouts: Timeouts) -> Relay | None:
    if smtp is None:
        return None
    host, port = smtp
    password = _read_file(found["password_file"], os.environ.get("SMTP_PASSWORD", "")).partition("\n")[0]
    if found["username"] is not None and not password:
        raise ValueError("a login needs a password: set SMTP_PASSWORD, or use --password-file")
    return Relay(
        host=host,
        port=port,
        tls=_usual_tls(host, port) if found["tls"] is None else Tls(found["tls"]),
        context=_trust(found["ca"]),
        username=found["username"],
        password=None if found["username"] is None else password,
        plain_login=found["plain_login"],
        timeouts=timeouts,
    )


def _usual_tls(host: str, port: int) -> Tls:
    if port == 465:
        return Tls.IMPLICIT
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    return Tls.NONE if is_local else Tls.STARTTLS


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"the certificates in {ca} cannot be read: {error}") from error


def _read_file(path: Path | None, default: str) -> str:
    if path is None:
        return default
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


# -- Converters --


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
