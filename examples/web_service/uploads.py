"""The photo out of a request's body: raw, or the first file of a multipart form; within limits of size and time.

What the photo is, its bytes must show: neither a Content-Type nor a file name is believed.
"""

from __future__ import annotations

import asyncio

from aiohttp import BodyPartReader, web

from examples.web_service.refusals import Refusal

__all__ = ["Uploads"]


class Uploads:
    """Reads bodies.

    Args:
        max_bytes: Larger bodies are refused: by their Content-Length, or as soon as there are so many bytes.
        timeout: Seconds that a body may take to arrive.
    """

    def __init__(self, *, max_bytes: int, timeout: float) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._under_way: set[asyncio.Timeout] = set()
        self._is_cut = False

    @property
    def under_way(self) -> int:
        """How many bodies are being read."""
        return len(self._under_way)

    async def read(self, request: web.Request) -> bytes:
        """Return the photo's bytes. Waits for the client to send them. Cancel-safe.

        Raises:
            Refusal: The body is too large, too slow, or not what it says it is; or the service is stopping.
        """
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(415, "the body has a Content-Encoding: send the photo as it is")
        try:
            async with asyncio.timeout(self._timeout) as time:
                if self._is_cut:
                    time.reschedule(0)
                self._under_way.add(time)
                try:
                    photo = await self._photo(request)
                finally:
                    self._under_way.discard(time)
        except TimeoutError:
            if self._is_cut:
                raise Refusal(503, "the service is stopping", retry_after=1) from None
            raise Refusal(408, f"the photo was not here after {self._timeout:g} s") from None
        except web.HTTPRequestEntityTooLarge:
            raise self._too_large() from None
        except (ValueError, web.RequestPayloadError) as error:
            raise Refusal(400, f"the body cannot be read: {str(error)[:200]}") from error
        if not photo:
            raise Refusal(400, "the body is empty: it must be a photo")
        return photo

    def cut(self) -> None:
        """Give up those under way, and all that follow: they are told that the service is stopping."""
        self._is_cut = True
        for time in self._under_way:
            time.reschedule(0)

    async def _photo(self, request: web.Request) -> bytes:
        if not request.content_type.startswith("multipart/"):
            return await request.read()
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader):
                content = await part.read(decode=True)
                if part.filename is not None:
                    return bytes(content)
            if request.content.total_bytes > self._max_bytes:
                raise self._too_large()
        raise Refusal(400, "the form has no file: send the photo as one, as curl -F image=@photo.jpg does")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the photo is too large: at most {self._max_bytes / 1024**2:g} MB are read")
