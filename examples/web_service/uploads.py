"""Read the photo from the body of a request, raw or as the first file of a form, within limits of size and time.

An upload takes no place in the pool, so slow clients do not keep others from using it. Uploads have limits of their
own: their number, and the bytes that they have sent together. The Content-Type and the file name are ignored; only the
data decides what a photo is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import BodyPartReader, HttpVersion11, hdrs, web

from examples.web_service.refusals import Refusal

__all__ = ["Uploads", "continue_later"]


async def continue_later(request: web.Request) -> None:
    """Leave `100 Continue` to `Uploads.read`, which sends it unless it rejects the request. For `expect_handler`."""


class Uploads:
    """Reads request bodies.

    Args:
        max_bytes: Reject larger bodies, by their Content-Length or as soon as they exceed the limit.
        timeout: Time limit in seconds for each body.
        max_count: Reject further uploads while this many are in progress.
        max_total: Reject further uploads while those in progress have sent this many bytes, and those that exceed it.
    """

    def __init__(self, *, max_bytes: int, timeout: float, max_count: int, max_total: int) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._max_count = max_count
        self._max_total = max_total
        self._in_progress: set[asyncio.Timeout] = set()
        self.bytes = 0
        """How many bytes the uploads in progress have sent."""
        self._is_cut = False

    @property
    def in_progress(self) -> int:
        """How many bodies are being read."""
        return len(self._in_progress)

    async def read(self, request: web.Request) -> bytes:
        """Return the photo's bytes. Waits for the client to send them. Cancel-safe.

        Raises:
            Refusal: The body is too large, too slow or malformed; or there are too many uploads; or the service is
                stopping.
        """
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        _check_encoding(request.headers.get(hdrs.CONTENT_ENCODING))
        if self._is_cut:
            raise self._stopping()
        if self.in_progress >= self._max_count:
            raise Refusal(503, "uploads", "too many uploads are in progress; try again later", retry_after=1)
        if self.bytes >= self._max_total:
            raise self._too_many_bytes()
        try:
            async with asyncio.timeout(self._timeout) as time:
                self._in_progress.add(time)
                try:
                    if _asks_first(request):
                        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                        request.writer.output_size = 0  # it is not a part of the response
                    photo = await self._photo(request)
                finally:
                    self._in_progress.discard(time)
        except TimeoutError:
            if self._is_cut:
                raise self._stopping() from None
            raise Refusal(408, "upload_timeout", f"the upload took longer than {self._timeout:g} s") from None
        except (ValueError, web.RequestPayloadError) as error:
            raise Refusal(400, "request", f"the body cannot be read: {str(error)[:200]}") from error
        if not photo:
            raise Refusal(400, "request", "the body is empty; send a photo")
        return photo

    def cut(self) -> None:
        """Abort all uploads, also later ones. Their clients get a 503 because the service is stopping."""
        self._is_cut = True
        for time in self._in_progress:
            time.reschedule(0)

    async def _photo(self, request: web.Request) -> bytes:
        if not request.content_type.startswith("multipart/"):
            return await self._collect(request.content.iter_any())
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader):
                _check_encoding(part.headers.get(hdrs.CONTENT_ENCODING))
                content = await self._collect(_chunks_of(part))
                if part.filename is not None:
                    return bytes(part.decode(content))
            if request.content.total_bytes > self._max_bytes:
                raise self._too_large()
        raise Refusal(400, "request", "the form has no file; send the photo as a file, like curl -F image=@photo.jpg")

    async def _collect(self, chunks: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        try:
            async for chunk in chunks:
                body += chunk
                self.bytes += len(chunk)
                if len(body) > self._max_bytes:
                    raise self._too_large()
                if self.bytes > self._max_total:
                    raise self._too_many_bytes()
            return bytes(body)
        finally:
            self.bytes -= len(body)

    def _too_large(self) -> Refusal:
        return Refusal(413, "photo", f"the photo is too large; the limit is {self._max_bytes / 1024**2:g} MB")

    def _too_many_bytes(self) -> Refusal:
        sentence = "the uploads in progress are too large together; try again later"
        return Refusal(503, "upload_bytes", sentence, retry_after=1)

    def _stopping(self) -> Refusal:
        return Refusal(503, "stopping", "the service is stopping", retry_after=1)


def _asks_first(request: web.Request) -> bool:
    return request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"


def _check_encoding(encoding: str | None) -> None:
    if encoding not in (None, "identity"):
        raise Refusal(415, "request", "Content-Encoding is not supported; send the photo as it is")


async def _chunks_of(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk():
        yield chunk
