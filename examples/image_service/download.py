"""A URL's bytes, within limits of size and time.

Only http and https, also after redirects. It does not keep a program from addresses inside its own network:
one that takes URLs from strangers must check them first.
"""

from __future__ import annotations

from http import HTTPStatus
from io import BytesIO
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from examples.image_service.errors import BadUrl, DownloadFailed, DownloadTimedOut, DownloadTooLarge

__all__ = ["Downloads", "check_url"]


def check_url(url: str) -> None:
    """Raise `BadUrl` unless `url` is an http or https address with a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise BadUrl("not an http or https address")


class Downloads:
    """One HTTP session that all downloads share. Use it as an async context manager.

    Args:
        connections: How many connections there are at most; further downloads wait for one.
        timeout: Seconds that a download may take in all, from asking for a connection to the last byte. (A
            limit for each read would not do: a byte now and then would hold a worker for ever.)
        max_bytes: The largest file that is read. It is held in memory.
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
        """Return the whole body of the reply, rewound. Waits for a connection and for the server.

        Raises:
            BadUrl: It is not an http or https address.
            DownloadTooLarge: The body is, or is said to be, longer than `max_bytes`.
            DownloadTimedOut: It took longer than `timeout`.
            DownloadFailed: Anything else went wrong on the way.
        """
        check_url(url)
        if self._session is None:
            raise RuntimeError("the session is not open: use `async with`")
        try:
            async with self._session.get(url) as response:
                if response.status != HTTPStatus.OK:
                    raise DownloadFailed(f"the server answered {_status(response.status)}", response.status)
                return await self._read(response)
        except TimeoutError as error:
            raise DownloadTimedOut(self._timeout) from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            if isinstance(error, aiohttp.RedirectClientError):  # an invalid URL, and not the one that we were given
                raise DownloadFailed(_reason(error)) from error
            raise BadUrl("not an http or https address") from error
        except (aiohttp.ClientError, OSError) as error:
            raise DownloadFailed(_reason(error)) from error

    async def _read(self, response: aiohttp.ClientResponse) -> BytesIO:
        if (response.content_length or 0) > self._max_bytes:
            raise DownloadTooLarge(self._max_bytes)
        body = BytesIO()
        # Counted as it comes: what the header promised, and what gzip unpacks to, is the server's word only.
        async for chunk in response.content.iter_any():
            if body.tell() + len(chunk) > self._max_bytes:
                raise DownloadTooLarge(self._max_bytes)
            body.write(chunk)
        body.seek(0)
        return body


def _status(status: int) -> str:
    # The phrase of the standard, not the one that the server sent: that could be any text.
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"no host of the name {error.host} was found"
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of {error.host} cannot be trusted"
        case aiohttp.ClientConnectorError():
            return f"no connection to {error.host}:{error.port} ({error.os_error.strerror or 'unreachable'})"
        case aiohttp.TooManyRedirects():
            return "too many redirects"
        case aiohttp.RedirectClientError():
            return "redirected to something that is not an http or https address"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | ConnectionError():
            return "the connection broke off"
        case aiohttp.ClientResponseError():
            return "the server's answer is not proper HTTP"
        case _:
            return f"{type(error).__name__}: {error}"
