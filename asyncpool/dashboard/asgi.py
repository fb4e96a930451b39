"""The dashboard as an ASGI application, without aiohttp: for Starlette, FastAPI, or an ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any, TypeAlias

from asyncpool.dashboard.access import SECURITY_HEADERS
from asyncpool.dashboard.building import build_views
from asyncpool.dashboard.messages import MAX_BODY, EventStream, Request, Response, joined, sent_in_time
from asyncpool.dashboard.views import Views
from asyncpool.journal.journal import Journal
from asyncpool.pool import WorkerPool

__all__ = ["DashboardASGI", "dashboard_asgi"]

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]

# ASGI servers wait for open responses before they tell an application that they stop. So a stream must end by itself.
_STREAM_SECONDS = 10.0


def dashboard_asgi(
    *pools: WorkerPool[Any, Any],
    journals: Iterable[Journal[Any]] = (),
    actions: bool = False,
    token: str | None = None,
    allowed_hosts: Iterable[str] = (),
    title: str = "asyncpool",
) -> DashboardASGI:
    """Return the dashboard as an ASGI application, which needs no aiohttp.

        app.mount("/pools", dashboard_asgi(pool))       # Starlette, FastAPI

    The arguments are those of `dashboard`. It must be served on the loop of the pools. A mounted application takes
    samples for its charts only while a page is open, because it does not learn when the server starts and stops.

    Raises:
        TypeError, ValueError: An argument is not valid.
    """
    return DashboardASGI(
        build_views(
            pools,
            journals=journals,
            actions=actions,
            token=token,
            allowed_hosts=allowed_hosts,
            title=title,
            stream_seconds=_STREAM_SECONDS,
        )
    )


class DashboardASGI:
    """An ASGI application that serves a dashboard, as `dashboard_asgi` returns it."""

    def __init__(self, views: Views) -> None:
        self._views = views

    async def __call__(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: _Receive, send: _Send) -> None:
        live = self._views.live
        await receive()
        live.reopen()
        live.hold()
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        finally:
            live.close()
            live.release()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        body = _Body(receive)
        response = await self._views.answer(_request(scope, body))
        if body.has_disconnected:
            return
        if not isinstance(response, Response):
            await _stream(response, receive, send)
            return
        await send({"type": "http.response.start", "status": response.status, "headers": _raw(response.headers)})
        await send({"type": "http.response.body", "body": response.body})


class _Body:
    """The body of a request, which is read when it is needed."""

    def __init__(self, receive: _Receive) -> None:
        self._receive = receive
        self.has_disconnected = False

    async def read(self) -> bytes:
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.has_disconnected = True
                raise ConnectionResetError("the client has disconnected")
            if len(body) <= MAX_BODY:
                body += message.get("body", b"")
            if not message.get("more_body", False):
                return body


def _request(scope: Mapping[str, Any], body: _Body) -> Request:
    full_path: str = scope["path"]
    root: str = scope.get("root_path", "")
    # Some frameworks leave the path of the mount in `path`, others take it out.
    path = full_path[len(root) :] if root and full_path.startswith(root) else full_path
    client = scope.get("client")
    return Request(
        method=scope["method"],
        path=path,
        full_path=full_path,
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=joined((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]),
        read=body.read,
        client="unknown" if client is None else str(client[0]),
    )


async def _stream(stream: EventStream, receive: _Receive, send: _Send) -> None:
    headers = _raw({**SECURITY_HEADERS, **stream.headers})
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    watch = asyncio.create_task(_until_disconnected(receive), name="dashboard page")
    watch.add_done_callback(lambda _: stream.end())
    try:
        async with aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                if not await sent_in_time(send({"type": "http.response.body", "body": chunk, "more_body": True})):
                    return
        if not watch.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def _until_disconnected(receive: _Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:
        pass  # a server that fails here has lost the client, too


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
