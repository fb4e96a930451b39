"""A server that accepts a limited number of connections and refuses others, like databases and many web servers."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from types import TracebackType
from typing import Self, cast

from aiohttp import web

__all__ = ["LimitedServer"]

_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""The value of SO_LINGER that drops unsent data on close and sends a reset to the client."""


class LimitedServer:
    """Responds to each request with the same body after `seconds`, on loopback. Use it as an async context manager.

    It serves `connections` connections at a time, including idle ones. Further connections are reset immediately,
    before they can send a request.
    """

    def __init__(self, *, connections: int, body: bytes, seconds: float) -> None:
        self.connections = connections
        self.asked_for = 0
        """The number of connections that clients tried to open, including refused ones."""
        self.refused = 0
        self.open = 0
        """The number of connections that are being served."""
        self.peak_open = 0
        self._body = body
        self._seconds = seconds

    async def __aenter__(self) -> Self:
        self._web = _CountingServer(self)
        # A large backlog, so that this server refuses connections, not the system.
        self._server = await asyncio.get_running_loop().create_server(
            self._let_in, "127.0.0.1", 0, backlog=4096, start_serving=False
        )
        try:
            await self._server.start_serving()
        except BaseException:  # for example a Ctrl+C
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
        """The URL of the server."""
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
        """Wait for a while, then return the body."""
        await asyncio.sleep(self._seconds)
        return web.Response(body=self._body)


class _CountingServer(web.Server):
    """A server of aiohttp that also counts closed connections."""

    def __init__(self, limited: LimitedServer) -> None:
        super().__init__(limited.answer, access_log=None)
        self._limited = limited

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._limited.open -= 1


class _Reset(asyncio.Protocol):
    """Resets a connection as soon as it is made, so that its client sees "connection reset by peer"."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        cast("asyncio.Transport", transport).abort()  # uvloop's transports are not instances of this class
