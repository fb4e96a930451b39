"""A mail server whose replies a test decides, command by command, with TLS and a login if asked for."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult

from examples.email_campaign.campaign import EmailCampaign
from tests.examples.email_parts import relay_at

Decide = Callable[[str, str], "str | Awaitable[str | None] | None"]


class Desk:
    """Asks `decide(command, address)` at MAIL, RCPT and END (of the text).

    It returns a reply, "" to drop the connection, or None to accept.
    """

    def __init__(self, decide: Decide = lambda command, address: None, **options: Any) -> None:
        self.decide = decide
        self.accepted: Counter[str] = Counter()
        """How often each mail was accepted, by its Message-ID."""
        self.contents: list[bytes] = []
        self.commands: Counter[str] = Counter()
        self.connections = 0
        self.logins: list[str] = []
        self.port = 0
        self._is_implicit = options.pop("implicit", False)
        self._options = options
        self._sessions: set[SMTP] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        context: ssl.SSLContext | None = self._options.get("tls_context") if self._is_implicit else None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._open, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        tasks = [session._handler_coroutine for session in self._sessions]
        for session in self._sessions:
            if session.transport is not None:
                session.transport.abort()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        self._sessions.clear()
        await self._server.wait_closed()

    def campaign(self, database: Path, *, timeout: float = 30.0, **options: Any) -> EmailCampaign:
        """A campaign that sends its mails here, and retries soon."""
        return EmailCampaign(database, **{"relay": relay_at(self.port, timeout), "retry_delay": 0.05, **options})

    def _open(self) -> SMTP:
        options = {"hostname": "localhost", "loop": asyncio.get_running_loop(), **self._options}
        if self._is_implicit:
            del options["tls_context"]
        if options.get("auth_required"):
            options["authenticator"] = self._login
        session = SMTP(self, **options)
        self.connections += 1
        self._sessions.add(session)
        return session

    def _login(self, server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append(f"{data.login.decode()}:{data.password.decode()}")
        return AuthResult(success=True)

    async def _reply(self, server: SMTP, command: str, address: str) -> str | None:
        self.commands[command] += 1
        reply = self.decide(command, address)
        if isinstance(reply, Awaitable):
            reply = await reply
        if reply == "":
            assert server.transport is not None
            server.transport.abort()
            await asyncio.Event().wait()  # until the closed connection cancels this task
        return reply

    # -- The hooks of aiosmtpd --

    async def handle_MAIL(self, server: SMTP, session: Any, envelope: Any, address: str, options: Any) -> str:
        reply = await self._reply(server, "MAIL", address)
        if reply is None:
            envelope.mail_from = address
        return reply or "250 OK"

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: Any) -> str:
        reply = await self._reply(server, "RCPT", address)
        if reply is None:
            envelope.rcpt_tos.append(address)
        return reply or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        reply = await self._reply(server, "END", envelope.rcpt_tos[0])
        if reply is None:
            self.accept(envelope.content)
        return reply or "250 OK"

    def accept(self, content: bytes) -> None:
        self.contents.append(content)
        found = re.search(rb"(?im)^Message-ID:\s*(<[^>\r\n]*>)", content)
        self.accepted[found[1].decode() if found else ""] += 1
