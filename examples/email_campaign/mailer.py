"""One SMTP connection, and what its errors mean for the mail and for the connection."""

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
Hello {name},

We have not seen you for a while, and we miss you.

Your friends at Example
"""
_CHARSET = Charset("utf-8")
_CHARSET.body_encoding = QP


class Refused(Exception):
    """The server rejected a mail: with 4xx temporarily, with 5xx permanently."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Disconnected(ConnectionError):
    """The connection was lost before the server replied. If it already had the whole mail, it may have accepted it."""


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt at the mail makes sense."""
    if isinstance(error, Refused):
        return 400 <= error.code < 500
    return isinstance(error, (Disconnected, asyncpool.JobTimeout))


def spoils_connection(error: BaseException) -> bool:
    """Return whether the next attempt needs a new connection.

    A 5xx reply concerns only this mail, so the connection stays usable.
    """
    return not (isinstance(error, Refused) and error.code >= 500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """The mail to one user."""

    sender: str
    subject: str
    id: str
    """The Message-ID. It is the same in all attempts and runs, so a server can recognize a mail that it has already."""
    user: User

    def encode(self) -> bytes:
        """Return the mail as bytes. (Creating an `email.message.EmailMessage` takes five times as long.)"""
        name = " ".join(self.user.name.split())  # a line break in a name would start another header
        message = Message()
        message.set_payload(_TEXT.format(name=name), _CHARSET)
        message["From"] = self.sender
        message["To"] = formataddr((name, self.user.email))
        message["Subject"] = self.subject
        message["Date"] = formatdate()
        message["Message-ID"] = self.id
        return message.as_bytes()


class MailConnection:
    """A connection that sends mails, one after the other."""

    def __init__(self, smtp: aiosmtplib.SMTP) -> None:
        self._smtp = smtp
        self.is_between_mails = True
        """Whether client and server agree that no mail is in progress. After a cancellation in the middle of a mail,
        the state of the server is unknown."""

    async def send(self, mail: Mail) -> None:
        """Send a mail; return when the server has accepted it.

        Raises:
            Refused: The server rejected the mail.
            Disconnected: The connection was lost.
            RelayError: The server rejects all mails of this sender.
        """
        message = mail.encode()
        self.is_between_mails = False
        try:
            await self._smtp.sendmail(mail.sender, [mail.user.email], message)
        except aiosmtplib.SMTPRecipientsRefused as error:  # the code is that of its recipient
            refused = error.recipients[0]
            raise self._refused(refused.code, refused.message) from error
        except aiosmtplib.SMTPSenderRefused as error:
            if error.code >= 500:
                raise RelayError(
                    f"the mail server rejected the sender {mail.sender}: {error.code} {error.message}"
                ) from error
            raise self._refused(error.code, error.message) from error
        except aiosmtplib.SMTPResponseException as error:
            raise self._refused(error.code, error.message) from error
        except ConnectionError as error:
            raise Disconnected(str(error) or "the connection was lost") from error
        self.is_between_mails = True

    def _refused(self, code: int, text: str) -> Refused:
        # aiosmtplib has already reset the session for the next mail, unless the server closes the connection.
        self.is_between_mails = code != 421 and self._smtp.is_connected
        return Refused(code, " ".join(text.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """The SMTP server."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    timeout: float = 10.0
    """Time limit in seconds to connect, greet and log in."""

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[MailConnection]:
        """Open a connection: the resource of a worker.

        Raises:
            RelayError: The connection could not be opened.
        """
        smtp = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self.username,
            password=self.password,
            local_hostname=socket.gethostname() or "localhost",
            timeout=None,  # no timeout per command: the timeout of the pool covers the whole mail
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
            raise RelayError(f"{where} did not respond within {self.timeout:g} s") from error
        except aiosmtplib.SMTPAuthenticationError as error:
            raise RelayError(f"{where} rejected the login: {error.code} {error.message}") from error
        except aiosmtplib.SMTPResponseException as error:
            raise RelayError(f"{where} rejected the connection: {error.code} {error.message}") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise RelayError(f"{where} cannot be reached: {error}") from error


_QUIT_SECONDS = 2.0


async def _close(smtp: aiosmtplib.SMTP, *, politely: bool) -> None:
    transport = smtp.transport
    try:
        if politely and smtp.is_connected:
            async with asyncio.timeout(_QUIT_SECONDS):
                await smtp.quit()
    except (aiosmtplib.SMTPException, OSError):  # also TimeoutError; the connection is closed anyway
        pass
    finally:
        # Abort, so that buffered data of an unfinished mail is not sent.
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        smtp.close()
