"""One SMTP connection: what is sent over it, and what its errors mean for the mail and for the connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.charset import QP, Charset
from email.message import Message
from email.utils import formataddr, formatdate

import aiosmtplib

import asyncpool
from examples.email_campaign.errors import RelayError
from examples.email_campaign.users import User

__all__ = ["Disconnected", "Mail", "MailConnection", "Refused", "Relay", "is_transient", "spoils_connection"]

_TEXT = """\
Dear {name},

we have not seen you for a while, and we miss you.

Your friends at Example
"""
_CHARSET = Charset("utf-8")
_CHARSET.body_encoding = QP


class Refused(Exception):
    """The server has answered a mail with an error: 4xx means not now, and 5xx never."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Disconnected(ConnectionError):
    """The connection ended before the server had answered. If it had the whole mail by then, it may have taken it."""


def is_transient(error: BaseException) -> bool:
    """Whether another attempt at the mail makes sense."""
    if isinstance(error, Refused):
        return 400 <= error.code < 500
    return isinstance(error, (Disconnected, asyncpool.JobTimeout))


def spoils_connection(error: BaseException) -> bool:
    """Whether the next attempt should be made over a fresh connection.

    Not after a 5xx: the server has said what it thinks of this one mail, and waits for the next.
    """
    return not (isinstance(error, Refused) and error.code >= 500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """What a user is sent."""

    sender: str
    subject: str
    id: str
    """The same in each attempt, and in each run of the campaign: a relay can tell that it has the mail already."""
    user: User

    def encode(self) -> bytes:
        """The mail as it goes over the wire. (An `email.message.EmailMessage` takes five times as long to make.)"""
        name = " ".join(self.user.name.split())  # a line break in a name would begin another header
        message = Message()
        message.set_payload(_TEXT.format(name=name), _CHARSET)
        message["From"] = self.sender
        message["To"] = formataddr((name, self.user.email))
        message["Subject"] = self.subject
        message["Date"] = formatdate()
        message["Message-ID"] = self.id
        return message.as_bytes()


class MailConnection:
    """A connection over which mails are sent, one after the other."""

    def __init__(self, smtp: aiosmtplib.SMTP) -> None:
        self._smtp = smtp
        self.is_between_mails = True
        """Whether both sides agree that no mail is under way. After a cancellation in the middle of one nobody can
        know what the server would make of the next command."""

    async def send(self, mail: Mail) -> None:
        """Send a mail; returns when the server has taken it over.

        Raises:
            Refused: The server will not have it.
            Disconnected: The connection ended meanwhile.
            RelayError: The server will have no mail from this sender.
        """
        message = mail.encode()
        self.is_between_mails = False
        try:
            await self._smtp.sendmail(mail.sender, [mail.user.email], message)
        except aiosmtplib.SMTPRecipientsRefused as error:  # it has no code of its own
            refused = error.recipients[0]
            raise self._refused(refused.code, refused.message) from error
        except aiosmtplib.SMTPSenderRefused as error:
            if error.code >= 500:
                raise RelayError(
                    f"the mail server refuses the sender {mail.sender}: {error.code} {error.message}"
                ) from error
            raise self._refused(error.code, error.message) from error
        except aiosmtplib.SMTPResponseException as error:
            raise self._refused(error.code, error.message) from error
        except ConnectionError as error:
            raise Disconnected(str(error) or "the connection was lost") from error
        self.is_between_mails = True

    def _refused(self, code: int, text: str) -> Refused:
        # aiosmtplib has reset the server for the next mail, unless the server was leaving.
        self.is_between_mails = code != 421 and self._smtp.is_connected
        return Refused(code, " ".join(text.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Where mails are sent to."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    timeout: float = 10.0
    """Seconds that it may take to connect, greet and log in."""

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[MailConnection]:
        """A connection: the resource of a worker.

        Raises:
            RelayError: There is none to be had; the text says why, in a sentence.
        """
        smtp = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self.username,
            password=self.password,
            local_hostname=socket.gethostname() or "localhost",
            timeout=None,  # of each command: the pool's timeout covers all of them
        )
        connection = MailConnection(smtp)
        try:
            await self._open(smtp)
            yield connection
        finally:
            await _close(smtp, politely=connection.is_between_mails)

    async def _open(self, smtp: aiosmtplib.SMTP) -> None:
        where = f"the mail server {self.host}:{self.port}"
        try:
            async with asyncio.timeout(self.timeout):
                await smtp.connect()
        except TimeoutError as error:
            raise RelayError(f"{where} does not answer within {self.timeout:g} s") from error
        except aiosmtplib.SMTPAuthenticationError as error:
            raise RelayError(f"{where} refuses the login: {error.code} {error.message}") from error
        except aiosmtplib.SMTPResponseException as error:
            raise RelayError(f"{where} refuses to serve us: {error.code} {error.message}") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise RelayError(f"{where} cannot be reached: {error}") from error


_QUIT_SECONDS = 2.0


async def _close(smtp: aiosmtplib.SMTP, *, politely: bool) -> None:
    transport = smtp.transport
    try:
        if politely and smtp.is_connected:
            async with asyncio.timeout(_QUIT_SECONDS):
                await smtp.quit()
    except (aiosmtplib.SMTPException, OSError):  # TimeoutError among them: we are leaving anyway
        pass
    finally:
        # Hard: what an unfinished mail still has in the buffers must not go out any more.
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        smtp.close()
