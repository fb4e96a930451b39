"""Requests and responses as plain data, the same for aiohttp and ASGI.

`views.py` makes responses of requests. `web.py` and `asgi.py` translate.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["MAX_BODY", "EventStream", "Request", "Response", "error", "joined", "json_response", "sent_in_time"]

MAX_BODY = 64 * 1024
"""How many bytes the body of a request can have."""

# A client that reads nothing for this long, in seconds, is disconnected: it would keep its stream from others.
_MAX_SENDING = 30.0


async def _no_body() -> bytes:
    return b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to the dashboard."""

    method: str
    path: str
    """The path below the place where the dashboard is mounted: "/" is the page, "" lacks the slash."""
    full_path: str = "/"
    """The path with that place."""
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """By lowercase name. Repeated headers are joined by commas, so a repeated `Host` is not a valid one."""
    read: Callable[[], Awaitable[bytes]] = _no_body
    """Reads the body; of one that is longer than `MAX_BODY`, a part that is longer, too. Call it at most once, and only
    for a request that is permitted. Raises OSError if the body cannot be read."""
    client: str = "unknown"
    """The address of the client, for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A complete response."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


class EventStream(Protocol):
    """A response without an end: server-sent events."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the response, whose status is 200."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Iterate over the events, until `end` is called. Must be closed."""
        ...

    def end(self) -> None:
        """End the stream, for instance because the client has disconnected. Safe to repeat."""
        ...


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response with a value as JSON, in ASCII: so it can have any text, even half a surrogate pair."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Response(status=status, headers={"Content-Type": "application/json"}, body=body)


def error(status: int, message: str, **headers: str) -> Response:
    """Return a response that states what is wrong."""
    response = json_response({"error": message}, status)
    added = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status=status, headers={**response.headers, **added}, body=response.body)


async def sent_in_time(sending: Awaitable[object]) -> bool:
    """Wait until a part of a stream is sent. Return False if the client does not read it."""
    try:
        async with asyncio.timeout(_MAX_SENDING):
            await sending
    except TimeoutError:
        return False
    return True


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by lowercase name; repeated ones are joined."""
    found: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
