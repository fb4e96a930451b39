"""Read the photo from the body of a request, raw or as the first file of a form, within limits of size and time.

The Content-Type and the file name are ignored; only the data decides what a photo is.
"""

from __future__ import annotations

import asyncio

from aiohttp import BodyPartReader, web

from examples.web_service.refusals import Refusal

__all__ = ["Uploads"]


class Uploads:
    """Reads request bodies.

    Args:
        max_bytes: Reject larger bodies, by their Content-Length or as soon as they exceed the limit.
        timeout: Time limit in seconds for each body.
    """

    def __init__(self, *, max_bytes: int, timeout: float) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._in_progress: set[asyncio.Timeout] = set()
        self._is_cut = False

    @property
    def in_progress(self) -> int:
        """How many bodies are being read."""
        return len(self._in_progress)

    async def read(self, request: web.Request) -> bytes:
        """Return the photo's bytes. Waits for the client to send them. Cancel-safe.

        Raises:
            Refusal: The body is too large, too slow or malformed; or the service is stopping.
        """
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(415, "Content-Encoding is not supported; send the photo as it is")
        try:
            async with asyncio.timeout(self._timeout) as time:
                if self._is_cut:
                    time.reschedule(0)
                self._in_progress.add(time)
                try:
                    photo = await self._photo(request)
                finally:
                    self._in_progress.discard(time)
        except TimeoutError:
            if self._is_cut:
                raise Refusal(503, "the service is stopping", retry_after=1) from None
            raise Refusal(408, f"the upload took longer than {self._timeout:g} s") from None
        except web.HTTPRequestEntityTooLarge:
            raise self._too_large() from None
        except (ValueError, web.RequestPayloadError) as error:
            raise Refusal(400, f"the body cannot be read: {str(error)[:200]}") from error
        if not photo:
            raise Refusal(400, "the body is empty; send a photo")
        return photo

    def cut(self) -> None:
        """Abort all uploads, also later ones. Their clients get a 503 because the service is stopping."""
        self._is_cut = True
        for time in self._in_progress:
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
        raise Refusal(400, "the form has no file; send the photo as a file, like curl -F image=@photo.jpg")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the photo is too large; the limit is {self._max_bytes / 1024**2:g} MB")
