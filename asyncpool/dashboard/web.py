"""The dashboard as an aiohttp application, and a server for it. `serving.py` imports this when it is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from asyncpool.dashboard.access import SECURITY_HEADERS
from asyncpool.dashboard.messages import MAX_BODY, EventStream, Request, Response, joined, sent_in_time
from asyncpool.dashboard.views import Views

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asyncpool.dashboard needs the package aiohttp: python3 -m pip install 'asyncpool-toolkit[dashboard]'; "
        "only dashboard_asgi() works without it",
        name=error.name,
    ) from error

__all__ = ["Server", "application"]

# Seconds. aiohttp waits twice for a request in progress: before it asks it to stop, and after that.
_HALF_GRACE = 0.5


def application(views: Views) -> web.Application:
    """Return an application that serves the views, to run by itself or below another."""
    adapter = _Adapter(views)
    app = web.Application()
    app.router.add_route("*", "", adapter.handle)
    app.router.add_route("*", "/{path:.*}", adapter.handle)
    app.cleanup_ctx.append(adapter.life)
    app.on_shutdown.append(adapter.shut_down)
    return app


class _Adapter:
    """Translates between aiohttp and the views."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._streaming: set[asyncio.Transport] = set()  # the connections with an open stream

    async def life(self, app: web.Application) -> AsyncIterator[None]:
        """Take samples while the application runs."""
        live = self._views.live
        live.reopen()
        live.hold()
        yield
        live.release()

    async def shut_down(self, app: web.Application) -> None:
        """End the streams: aiohttp waits for open responses. It would also wait for clients that do not read."""
        self._views.live.close()
        for transport in self._streaming:
            if transport.get_write_buffer_size():
                transport.abort()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        response = await self._views.answer(
            Request(
                method=request.method,
                path=_path(request),
                full_path=request.path,
                query=request.query_string,
                headers=joined(request.headers.items()),
                read=lambda: _body(request),
                client=request.remote or "unknown",
            )
        )
        if isinstance(response, Response):
            return web.Response(status=response.status, headers=response.headers, body=response.body)
        return await self._stream(response, request)

    async def _stream(self, stream: EventStream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**SECURITY_HEADERS, **stream.headers})
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response  # the page is closed
        self._streaming.add(transport)
        try:
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    if not await sent_in_time(response.write(chunk)):
                        transport.abort()
                        return response
            await response.write_eof()
        except ConnectionError:
            pass  # the page is closed
        finally:
            self._streaming.discard(transport)
        return response


def _path(request: web.Request) -> str:
    if "path" in request.match_info:
        return f"/{request.match_info['path']}"
    return "/" if request.path == "/" else ""  # the place of the mount, without a slash


async def _body(request: web.Request) -> bytes:
    body = b""
    try:
        while len(body) <= MAX_BODY and (part := await request.content.read(MAX_BODY + 1)):
            body += part
    except web.RequestPayloadError as error:  # its encoding is wrong
        raise OSError(*error.args) from None
    return body


class Server:
    """Serves the views at an address.

    Args:
        views: What to serve.
        host: The address to bind to.
        port: The port; 0: any free one.
    """

    def __init__(self, views: Views, host: str, port: int) -> None:
        self._runner = web.AppRunner(
            application(views),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=_HALF_GRACE,
            auto_decompress=False,
        )
        self._host = host
        self._port = port

    async def start(self) -> int:
        """Listen, and return the port. Cancel-safe: then nothing is left open.

        Raises:
            OSError: The address cannot be bound.
        """
        try:
            await self._runner.setup()
            site = web.TCPSite(self._runner, self._host, self._port)
            await site.start()
            port: int = self._runner.addresses[0][1]
            if any(address[1] != port for address in self._runner.addresses):
                # The host has several addresses, and each got a free port of its own. The page has one.
                await site.stop()
                await web.TCPSite(self._runner, self._host, port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        return port

    async def stop(self) -> None:
        """Close all connections. Waits up to a second for requests in progress, also if it is cancelled."""
        stopping = asyncio.create_task(self._runner.cleanup(), name="dashboard stop")
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await asyncio.wait([stopping])
            raise
