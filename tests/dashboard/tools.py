"""What the tests of the dashboard share: requests to its views, without a server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from asyncpool import WorkerPool
from asyncpool.dashboard.building import build_views
from asyncpool.dashboard.messages import Request, Response
from asyncpool.dashboard.views import Views

TOKEN = "correct-horse-battery"
ACTIONS = ("pause", "resume", "resize", "drain", "cancel", "replay", "discard")


def views_of(*pools: WorkerPool[Any, Any], **options: Any) -> Views:
    """The views of a dashboard, as `dashboard()` builds them."""
    given: dict[str, Any] = {"journals": (), "actions": False, "token": None, "allowed_hosts": (), "title": "asyncpool"}
    return build_views(pools, **given | options)


def acting_views_of(*pools: WorkerPool[Any, Any], **options: Any) -> Views:
    """The views of a dashboard with actions."""
    return views_of(*pools, **{"actions": True, "token": TOKEN} | options)


async def ask(
    views: Views, path: str, *, method: str = "GET", token: str | None = TOKEN, json_body: Any = None, **headers: str
) -> Response:
    """Send a request as the page does, changed by `headers`; a header of "" is left out."""
    sent = {"host": "localhost:8080", "sec-fetch-site": "same-origin"}
    body = b""
    if method == "POST":
        sent |= {"origin": "http://localhost:8080", "content-type": "application/json"}
        body = json_body if isinstance(json_body, bytes) else json.dumps(json_body or {}).encode()
    if token is not None:
        sent["x-asyncpool-token"] = token
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    path, _, query = path.partition("?")
    sent = {name: value for name, value in sent.items() if value}

    async def read() -> bytes:
        return body

    response = await views.answer(Request(method=method, path=path, query=query, headers=sent, read=read))
    assert isinstance(response, Response), "a stream: use events()"
    return response


def value_of(response: Response) -> Any:
    return json.loads(response.body)


async def state_of(views: Views) -> list[dict[str, Any]]:
    """What the page shows of each pool now."""
    response = await ask(views, "/api/state")
    assert response.status == 200, response.body
    pools: list[dict[str, Any]] = value_of(response)["now"][0]
    return pools


async def act(views: Views, action: str, pool: int = 0, **arguments: Any) -> str:
    """Act, and return what the page says then."""
    response = await ask(views, f"/api/pools/{pool}/{action}", method="POST", json_body=arguments)
    assert response.status == 200, response.body
    message: str = value_of(response)["message"]
    return message


async def events(views: Views, query: str = "") -> AsyncGenerator[dict[str, Any]]:
    """The events of a stream, as a page reads them."""
    headers = {"host": "localhost", "x-asyncpool-token": TOKEN}
    stream = await views.answer(Request(method="GET", path="/api/events", query=query, headers=headers))
    assert not isinstance(stream, Response), stream.body
    async with aclosing(stream.chunks()) as chunks:
        async for chunk in chunks:
            assert chunk.startswith(b"data: ")
            assert chunk.endswith(b"\n\n")
            yield json.loads(chunk[6:])
