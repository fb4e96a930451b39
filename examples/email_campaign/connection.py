"""One SMTP connection: sends a mail step by step, each with the time limit of RFC 5321."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Self, cast

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol

from examples.email_campaign.mail import Mail
from examples.email_campaign.replies import Ambiguous, Disconnected, Phase, Refused

__all__ = ["MailConnection", "Timeouts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for a server, in seconds. The defaults are the minima of RFC 5321, section 4.5.3.2."""

    greeting: float = 300.0
    """To connect and to be greeted; also with TLS and a login."""
    command: float = 300.0
    """For the replies to MAIL FROM and RCPT TO."""
    data: float = 120.0
    """For the reply to DATA."""
    block: float = 180.0
    """To transmit each block of the text."""
    end: float = 600.0
    """For the reply to the end of the text, which may take long because the server checks and stores the mail. A client
    that gives up earlier sends mails twice."""

    @classmethod
    def all(cls, seconds: float) -> Self:
        """Return the same limit for all."""
        return cls(greeting=seconds, command=seconds, data=seconds, block=seconds, end=seconds)


_BLOCK = 65536
_POLITE = 2.0  # seconds to wait for the replies to NOOP and QUIT, on which no mail depends


class MailConnection:
    """A connection that sends mails, one after the other. `close` must be called at the end."""

    def __init__(self, smtp: aiosmtplib.SMTP, protocol: SMTPProtocol, timeouts: Timeouts) -> None:
        # No isinstance(): the transports of uvloop are not subclasses of those of asyncio.
        transport = cast(asyncio.Transport, protocol.transport)
        # So that drain() waits until everything is transmitted. Not 0: with TLS, an empty buffer would count as full.
        transport.set_write_buffer_limits(high=1, low=0)
        self._smtp = smtp
        self._timeouts = timeouts
        self._protocol = protocol
        self._transport = transport
        self._writer = asyncio.StreamWriter(transport, protocol, None, asyncio.get_running_loop())
        self._is_between_mails = True

    async def send(self, mail: Mail) -> None:
        """Send a mail; return when the server has accepted it.

        Raises:
            Refused: The server rejected the mail.
            Disconnected: The connection was lost, or the server did not respond in time. It has not accepted the mail.
            Ambiguous: The same, but the server had the whole mail.
        """
        timeouts, phase = self._timeouts, Phase.SENDER
        self._is_between_mails = False
        # Not the timeouts of aiosmtplib: it uses wait_for, which can lose a cancellation on Python 3.11.
        try:
            async with asyncio.timeout(timeouts.command):
                await self._smtp.mail(mail.sender, options=self._options(mail))
            phase = Phase.RECIPIENT
            async with asyncio.timeout(timeouts.command):
                await self._smtp.rcpt(mail.recipient)
            phase = Phase.DATA
            async with asyncio.timeout(timeouts.data):
                reply = await self._smtp.execute_command(b"DATA")
            if reply.code != 354:
                raise aiosmtplib.SMTPDataError(reply.code, reply.message)
            phase = Phase.TEXT
            await self._write(mail.content)
            phase = Phase.END
            self._writer.write(b".\r\n")
            async with asyncio.timeout(timeouts.end):
                reply = await self._protocol.read_response()
            if not 200 <= reply.code < 300:
                raise aiosmtplib.SMTPDataError(reply.code, reply.message)
        except aiosmtplib.SMTPResponseException as error:
            if not 400 <= error.code < 600:  # it is not a reply to this, so the state of the server is unknown
                raise _lost(phase, f"replied {error.code} {error.message}") from error
            usable = await self._reset(error.code)
            text = " ".join(error.message.encode(errors="replace").decode().split())
            raise Refused(error.code, text, phase, spoils=not usable) from error
        except TimeoutError as error:
            raise _lost(phase, "did not respond in time") from error
        except OSError as error:
            raise _lost(phase, "closed the connection") from error
        self._is_between_mails = True

    async def check(self) -> bool:
        """Return whether an idle connection still works."""
        async with asyncio.timeout(_POLITE):
            await self._smtp.noop()
        return True

    async def close(self) -> None:
        """Close the connection; in the middle of a mail, without another word."""
        try:
            if self._is_between_mails and self._smtp.is_connected:
                async with asyncio.timeout(_POLITE):
                    await self._smtp.quit()
        except (aiosmtplib.SMTPException, OSError):
            pass  # the connection is closed anyway
        finally:
            # Abort, so that buffered data of an unfinished mail is not sent.
            self._transport.abort()
            self._smtp.close()

    async def _write(self, content: bytes) -> None:
        # A line that consists of a dot ends the text, so each dot at the start of a line is doubled.
        content = re.sub(rb"(?m)^\.", b"..", content)
        for start in range(0, len(content), _BLOCK):
            self._writer.write(content[start : start + _BLOCK])
            async with asyncio.timeout(self._timeouts.block):
                await self._writer.drain()

    async def _reset(self, code: int) -> bool:
        """Make the server forget a rejected mail. Return whether the connection can be used for the next one."""
        if code == 421:  # the server closes the connection
            return False
        try:
            async with asyncio.timeout(self._timeouts.command):
                await self._smtp.rset()
        except (aiosmtplib.SMTPException, OSError):
            return False
        self._is_between_mails = True
        return True

    def _options(self, mail: Mail) -> list[str]:
        return [f"SIZE={len(mail.content)}"] if self._smtp.supports_extension("size") else []


def _lost(phase: Phase, what: str) -> Disconnected | Ambiguous:
    kind = Ambiguous if phase is Phase.END else Disconnected
    return kind(f"the mail server {what} after {phase.value}")
