"""A small HTTP server on loopback. It serves photos from files, and responses that are broken on purpose.

It serves only the files that were added, each under its own number, and never resolves a path from a request. A
secret in the URLs keeps other users of the machine out.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

from aiohttp import web

__all__ = ["PhotoServer"]

_Reply: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PhotoServer:
    """Serves files at the URLs that the `add` methods return. Use it as an async context manager.

    The port is bound immediately, so URLs are valid before the server is started.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._replies: list[_Reply] = []
        self._is_closing = asyncio.Event()
        app = web.Application()
        self._secret = secrets.token_hex(16)
        app.router.add_get(f"/{self._secret}/{{number:[0-9]+}}/{{name}}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closing.set()
        await self._runner.cleanup()
        self._socket.close()

    def add(self, path: Path, name: str | None = None) -> str:
        """Serve a file and return its URL, which ends in `name`, by default the name of the file."""

        async def file(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(path)

        return self._url(file, path.name if name is None else name)

    def add_missing(self, name: str) -> str:
        """Return a URL that responds with 404."""

        async def missing(request: web.Request) -> web.StreamResponse:
            raise web.HTTPNotFound

        return self._url(missing, name)

    def add_stalled(self, path: Path, name: str) -> str:
        """Return a URL that sends the first half of a file and then stalls."""

        async def stalled(request: web.Request) -> web.StreamResponse:
            data = await asyncio.to_thread(path.read_bytes)
            response = web.StreamResponse(headers={"Content-Type": "image/jpeg", "Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            await self._is_closing.wait()
            return response

        return self._url(stalled, name)

    def _url(self, reply: _Reply, name: str) -> str:
        self._replies.append(reply)
        port = self._socket.getsockname()[1]
        # File names are bytes. Percent-encoding also preserves those that are not valid text.
        name = quote(name, safe="", errors="surrogateescape")
        return f"http://127.0.0.1:{port}/{self._secret}/{len(self._replies) - 1}/{name}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["number"])
        if number >= len(self._replies):
            raise web.HTTPNotFound
        return await self._replies[number](request)
