"""A server that serves so many connections at a time and refuses the others, as databases and many web servers do."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from types import TracebackType
from typing import Self

from aiohttp import web

__all__ = ["LimitedServer"]

_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""For SO_LINGER: do not linger, and drop what was not sent. The peer is told by a reset."""


class LimitedServer:
    """Answers each request on loopback with the same body, after so many seconds. Use it as an async context manager.

    It serves `connections` connections at a time, idle ones included. One that comes when all places are taken is reset
    at once, before it could ask for anything.
    """

    def __init__(self, *, connections: int, body: bytes, seconds: float) -> None:
        self.connections = connections
        self.asked_for = 0
        """How many connections clients wanted to open, refused ones included."""
        self.refused = 0
        self.open = 0
        """How many connections are served now."""
        self.peak_open = 0
        self._body = body
        self._seconds = seconds

    async def __aenter__(self) -> Self:
        self._web = _CountingServer(self)
        # A long line before the door: what is refused is refused by us, and not by the system.
        self._server = await asyncio.get_running_loop().create_server(
            self._let_in, "127.0.0.1", 0, backlog=4096, start_serving=False
        )
        try:
            await self._server.start_serving()
        except BaseException:  # a Ctrl+C may come just now
            self._server.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        await self._web.shutdown(timeout=1.0)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    def _let_in(self) -> asyncio.BaseProtocol:
        self.asked_for += 1
        if self.open >= self.connections:
            self.refused += 1
            return _Reset()
        self.open += 1
        self.peak_open = max(self.peak_open, self.open)
        return self._web()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Work for a while, then give the body."""
        await asyncio.sleep(self._seconds)
        return web.Response(body=self._body)


class _CountingServer(web.Server):
    """aiohttp's server, which tells when a connection has ended."""

    def __init__(self, limited: LimitedServer) -> None:
        super().__init__(limited.answer, access_log=None)
        self._limited = limited

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._limited.open -= 1


class _Reset(asyncio.Protocol):
    """Ends a connection as soon as it is made, so that its client sees "connection reset by peer"."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
