"""The routes of the dashboard: a request is checked and answered, without knowing which server it came from.

GET  /                      the page, and its files beside it (these have no data, and need no token)
GET  /api/events            the state of all pools, as server-sent events, one per second
GET  /api/state             the same, once
GET  /api/pools/N/letters   the dead letters of a pool, by error
GET  /api/pools/N/queued    the jobs that are next
POST /api/pools/N/ACTION    an action; this route exists only with actions=True
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qs, quote

from asyncpool._guard import describe, safe_text
from asyncpool._logs import log
from asyncpool.dashboard.access import SECURITY_HEADERS, Access
from asyncpool.dashboard.actions import ACTIONS, Action
from asyncpool.dashboard.assets import ASSETS
from asyncpool.dashboard.live import MAX_PAGES, Live, LiveStream
from asyncpool.dashboard.messages import MAX_BODY, EventStream, Request, Response, error, json_response
from asyncpool.dashboard.reading import PoolReader, is_here
from asyncpool.dashboard.texts import text
from asyncpool.errors import PoolError
from asyncpool.journal.journal import Journal
from asyncpool.pool import WorkerPool

__all__ = ["Views"]

# Which dashboard the page shows: the numbers of pools, jobs and letters are those of one.
_RUN_HEADER = "x-asyncpool-run"
_POOL = re.compile(r"/api/pools/([0-9]{1,6})/([a-z]+)")


class Views:
    """The views of one dashboard.

    Args:
        pools: What it shows, in this order.
        journals: Whose progress it shows.
        access: The checks of requests.
        actions: Whether it can change something.
        title: The heading of the page.
        stream_seconds: After how many seconds a stream of events ends, and the page opens the next one. None: never.
    """

    def __init__(
        self,
        pools: Sequence[WorkerPool[Any, Any]],
        journals: Sequence[Journal[Any]],
        access: Access,
        *,
        actions: bool,
        title: str,
        stream_seconds: float | None = None,
    ) -> None:
        self.live = Live(pools, journals, {"title": title, "actions": actions})
        self._access = access
        self._actions: Mapping[str, Action] = ACTIONS if actions else {}
        self._stream_seconds = stream_seconds

    async def answer(self, request: Request) -> Response | EventStream:
        """Answer a request. Cancel-safe: a replay that is cancelled keeps the letters that it has not submitted.

        A stream has its headers; those of a response include `SECURITY_HEADERS`.
        """
        try:
            response = self._access.refuse_host(request) or await self._routed(request)
        except Exception as raised:
            log.error("dashboard: %r %r failed", request.method, request.path, exc_info=raised)
            response = error(500, "the dashboard has failed; see the log of the program")
        if not isinstance(response, Response):
            return response
        if request.method == "HEAD":
            response = Response(status=response.status, headers=response.headers)
        return Response(status=response.status, headers={**SECURITY_HEADERS, **response.headers}, body=response.body)

    async def _routed(self, request: Request) -> Response | EventStream:
        if request.path == "":
            return _with_slash(request)
        if request.path.startswith("/api/"):
            return await self._api(request)
        if request.method not in ("GET", "HEAD"):
            return error(405, "the page can only be read", Allow="GET, HEAD")
        asset = ASSETS.get("index.html" if request.path == "/" else request.path[1:])
        if asset is None:
            return error(404, "there is no such page")
        return Response(headers={"Content-Type": asset.content_type}, body=asset.body)

    async def _api(self, request: Request) -> Response | EventStream:
        changes = request.method not in ("GET", "HEAD")
        refusal = self._access.refuse(request, changes=changes)
        if refusal is not None:
            return refusal
        if not changes and request.path == "/api/events":
            return self._events(request)
        if not changes and request.path == "/api/state":
            return Response(headers={"Content-Type": "application/json"}, body=self.live.state().encode())
        if request.headers.get(_RUN_HEADER, self.live.run) != self.live.run:
            return error(409, "the page shows another run of the program: nothing was done")
        match = _POOL.fullmatch(request.path)
        if match is not None and int(match[1]) < len(self.live.readers):
            reader, what = self.live.readers[int(match[1])], match[2]
            if what in ("letters", "queued"):
                return await self._listed(request, reader, what) if not changes else _only("GET, HEAD")
            if what in self._actions:
                return await self._act(request, reader, what) if request.method == "POST" else _only("POST")
        if changes and not self._actions:
            return error(405, "this dashboard can only be read: it was made without actions=True", Allow="GET, HEAD")
        return error(404, "there is no such pool, or nothing of that name")

    def _events(self, request: Request) -> Response | EventStream:
        if request.method == "HEAD":
            return Response(headers=LiveStream.headers)
        if self.live.is_closed:
            return error(503, "the server stops", Retry_After="1")
        if len(self.live.streams) >= MAX_PAGES:
            return error(503, f"{MAX_PAGES} pages are open already: close some", Retry_After="10")
        query = parse_qs(request.query)
        after = query.get("after", ["0"])[0]
        number = int(after) if re.fullmatch("[0-9]{1,15}", after) else 0
        return LiveStream(self.live, query.get("run", [""])[0], number, self._stream_seconds)

    async def _listed(self, request: Request, reader: PoolReader, what: str) -> Response:
        if not is_here(reader.pool):
            return _elsewhere()
        if what == "queued":
            return json_response({"jobs": reader.queued()})
        if reader.shelf is None:
            return error(404, "this pool has no dead letters")
        try:
            return json_response(await reader.letters(reader.shelf))
        except OSError as raised:
            return error(409, f"the dead letters cannot be read: {safe_text(str, raised, 200)}")

    async def _act(self, request: Request, reader: PoolReader, what: str) -> Response:
        try:
            arguments = await _arguments(request)
            if not is_here(reader.pool):
                return _elsewhere()
            given = describe(arguments)
            log.info("dashboard: %s asks pool %r to %s: %s", request.client, reader.pool.name, what, given)
            message = await self._actions[what](reader, arguments)
        except (PoolError, OSError) as raised:
            return error(409, safe_text(str, raised, 500))
        except (TypeError, ValueError) as raised:
            return error(400, safe_text(str, raised, 500))
        return json_response({"message": text(message, 500)})


async def _arguments(request: Request) -> Mapping[str, Any]:
    # A form of another site cannot have this type, and a script that sets it must ask the server first (CORS).
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ValueError("the body must be JSON, with Content-Type: application/json")
    try:
        body = await request.read()
    except OSError as error:
        raise ValueError(f"the body cannot be read: {error}") from None
    if len(body) > MAX_BODY:
        raise ValueError(f"the body must have at most {MAX_BODY} bytes")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("the body must be a JSON object")
    return cast("dict[str, Any]", value)


def _only(methods: str) -> Response:
    return error(405, f"this path takes {methods}", Allow=methods)


def _elsewhere() -> Response:
    return error(409, "the pool runs on another event loop: serve its dashboard there")


def _with_slash(request: Request) -> Response:
    """Redirect to the page. Relative, because a proxy can have another path, and quoted, so that it is no address."""
    last = request.full_path.rstrip("/").rsplit("/", 1)[-1]
    return Response(status=308, headers={"Location": f"./{quote(last)}/" if last else "/"})
