"""The SMTP server, and how to connect to it: TLS and login."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol

from examples.email_campaign.connection import MailConnection, Timeouts
from examples.email_campaign.errors import RelayError

__all__ = ["Relay", "Tls"]


class Tls(Enum):
    """How a connection is encrypted."""

    STARTTLS = "starttls"
    """By a command, which the server must offer; usual on the ports 25 and 587."""
    IMPLICIT = "implicit"
    """From its first byte; usual on port 465."""
    NONE = "none"
    """Not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """The SMTP server.

    Raises:
        ValueError: The password would be sent without encryption.
    """

    host: str
    port: int
    tls: Tls = Tls.STARTTLS
    context: ssl.SSLContext | None = None
    """Checks the certificate of the server; None: as the system does."""
    username: str | None = None
    """For the login; None: no login."""
    password: str | None = field(default=None, repr=False)
    plain_login: bool = False
    """Whether to log in over a connection that is not encrypted."""
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        if self.username is not None and self.tls is Tls.NONE and not self.plain_login:
            raise ValueError("the password would be sent without encryption: use TLS, or allow a plain login")

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[MailConnection]:
        """Open a connection: the resource of a worker.

        Raises:
            RelayError: The connection could not be opened.
        """
        smtp = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            use_tls=self.tls is Tls.IMPLICIT,
            start_tls=self.tls is Tls.STARTTLS,
            tls_context=self.context,
            username=self.username,
            password=self.password,
            local_hostname=socket.gethostname() or "localhost",
            timeout=None,  # there are our own: see connection.py
        )
        try:
            protocol = await self._open(smtp)
        except BaseException:
            smtp.close()
            raise
        connection = MailConnection(smtp, protocol, self.timeouts)
        try:
            yield connection
        finally:
            await connection.close()

    async def _open(self, smtp: aiosmtplib.SMTP) -> SMTPProtocol:
        where = f"the mail server {self.host}:{self.port}"
        try:
            async with asyncio.timeout(self.timeouts.greeting):
                await smtp.connect()
                await _greet(smtp)
        except TimeoutError as error:
            raise RelayError(f"{where} did not respond within {self.timeouts.greeting:g} s") from error
        except aiosmtplib.SMTPAuthenticationError as error:
            raise RelayError(f"{where} rejected the login: {error.code} {error.message}") from error
        except aiosmtplib.SMTPResponseException as error:
            raise RelayError(f"{where} rejected the connection: {error.code} {error.message}") from error
        except OSError as error:
            raise RelayError(f"{where} cannot be reached: {error}") from error
        except aiosmtplib.SMTPException as error:  # it does not offer STARTTLS, or a login
            raise RelayError(f"{where} cannot be used: {error}") from error
        if smtp.protocol is None or smtp.protocol.transport is None:
            raise RelayError(f"{where} closed the connection")
        return smtp.protocol


async def _greet(smtp: aiosmtplib.SMTP) -> None:
    """Say EHLO, or HELO to an old server, unless the login has done that."""
    if not smtp.is_ehlo_or_helo_needed:
        return
    try:
        await smtp.ehlo()
    except aiosmtplib.SMTPHeloError:
        await smtp.helo()
