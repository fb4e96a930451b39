"""Download a URL, within limits of size and time.

Only http and https are allowed, also after redirects. Addresses inside your own network are not blocked: a program that
accepts URLs from strangers must check them first.
"""

from __future__ import annotations

import socket
from http import HTTPStatus
from io import BytesIO
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from asyncpool import RetryAfter
from examples.image_service.errors import BadUrl, DownloadFailed, DownloadTimedOut, DownloadTooLarge, ServerBusy

__all__ = ["Downloads", "check_url"]

_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_TEMPORARY = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT,
)


def check_url(url: str) -> None:
    """Raise `BadUrl` unless `url` is an http or https URL with a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadUrl("not an http or https URL")


class Downloads:
    """One HTTP session that all downloads share. Use it as an async context manager.

    Args:
        connections: The maximum number of connections; further downloads wait for one.
        timeout: Time limit in seconds for a whole download, including the wait for a connection. (A limit for each
            read would not be enough: a server that sends a byte now and then could block a worker indefinitely.)
        max_bytes: The largest file to download. Each file is held in memory.
    """

    def __init__(self, *, connections: int, timeout: float, max_bytes: int) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout:g}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be >= 1, got {max_bytes}")
        self._connections = connections
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers={"User-Agent": "asyncpool-image-service", "Accept": "image/*"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str) -> BytesIO:
        """Return the whole response body, positioned at its start. Waits for a connection and for the server.

        Raises:
            BadUrl: `url` is not an http or https URL.
            DownloadTooLarge: The body, or its Content-Length, exceeds `max_bytes`.
            DownloadTimedOut: The download took longer than `timeout`.
            ServerBusy: The server responded with 429 or 503.
            DownloadFailed: The download failed for any other reason.
        """
        check_url(url)
        if self._session is None:
            raise RuntimeError("the session is not open; use `async with`")
        try:
            async with self._session.get(url) as response:
                if response.status != HTTPStatus.OK:
                    raise _rejection(response)
                return await self._read(response)
        # `from None`: the texts of aiohttp's errors can contain the URL, and so a password.
        except TimeoutError:
            raise DownloadTimedOut(self._timeout) from None
        except (aiohttp.InvalidURL, UnicodeError) as error:
            if isinstance(error, aiohttp.RedirectClientError):  # the URL of a redirect is invalid, not ours
                raise DownloadFailed(_reason(error)) from None
            raise BadUrl("not an http or https URL") from None
        except (aiohttp.ClientError, OSError) as error:
            raise DownloadFailed(_reason(error), is_temporary=_is_temporary(error)) from None

    async def _read(self, response: aiohttp.ClientResponse) -> BytesIO:
        if (response.content_length or 0) > self._max_bytes:
            raise DownloadTooLarge(self._max_bytes)
        body = BytesIO()
        # Count the bytes as they arrive: the header can be wrong, and a small gzip can unpack to a huge body.
        async for chunk in response.content.iter_any():
            if body.tell() + len(chunk) > self._max_bytes:
                raise DownloadTooLarge(self._max_bytes)
            body.write(chunk)
        body.seek(0)
        return body


def _rejection(response: aiohttp.ClientResponse) -> DownloadFailed:
    status = response.status
    reason = f"the server responded with {_named(status)}"
    if status in _BUSY:
        return ServerBusy(reason, status, RetryAfter.from_header(response.headers.get("Retry-After")).seconds)
    return DownloadFailed(reason, status, is_temporary=status in _TEMPORARY)


def _named(status: int) -> str:
    # Use the standard phrase: the one that the server sent could be any text.
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientConnectorDNSError):  # the host does not exist, or the name server is unreachable
        return error.os_error.errno == socket.EAI_AGAIN
    # What is not TLS, not HTTP or redirects in circles stays like that. Lost connections do not.
    return not isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientResponseError)


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"the host {error.host} was not found"
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of {error.host} is not trusted"
        case aiohttp.ClientConnectorError():
            return f"cannot connect to {error.host}:{error.port} ({error.os_error.strerror or 'unreachable'})"
        case aiohttp.TooManyRedirects():
            return "too many redirects"
        case aiohttp.RedirectClientError():
            return "redirected to something that is not an http or https URL"
        case (
            aiohttp.ClientPayloadError()
            | aiohttp.ClientOSError()
            | aiohttp.ServerDisconnectedError()
            | ConnectionError()
        ):
            return "the connection was lost"
        case aiohttp.ClientResponseError():
            return "the response is not valid HTTP"
        case _:
            return type(error).__name__
