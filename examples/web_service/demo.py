"""A client that shows what the service does. The service runs in the same process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from types import TracebackType
from typing import Self

import aiohttp
from PIL import Image

__all__ = ["Demo"]

_BURST = 60


class Demo:
    """Posts photos to the service, then stops it. Use it as an async context manager.

    Args:
        say: Prints a line.
        stop: Stops the service; called with the reason.
    """

    def __init__(self, say: Callable[[str], None], stop: Callable[[str], None]) -> None:
        self._say = say
        self._stop = stop
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            if error is not None:
                self._task.cancel()
            await asyncio.wait([self._task])
            if error is None:
                self._task.result()

    def start(self, address: str) -> None:
        """Start, with the service at this address."""
        self._say(f"The service is listening on {address}")
        self._task = asyncio.create_task(self._show(address), name="demo")

    async def _show(self, address: str) -> None:
        try:
            async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as session:
                await self._show_answers(session)
                await self._show_burst(session)
                await self._show_metrics(session)
                await self._show_drain(session)
        except aiohttp.ClientError as error:  # a signal has stopped the service
            self._say(f"The demo was stopped early: {error}")
        finally:
            self._stop("The demo is over")

    async def _show_answers(self, session: aiohttp.ClientSession) -> None:
        photo = await asyncio.to_thread(_photo, 4000, 3000)
        await self._post(session, "a photo", photo)
        await self._post(session, "the same, with size=100x100", photo, "/thumbnail?size=100x100")
        await self._post(session, "half of the photo", photo[: len(photo) // 2])
        await self._post(session, "some text", b"Hello, this is not a photo.")
        await self._post(session, "an empty body", b"")
        await self._post(session, "11 MB of zeros", bytes(11 * 1024**2))

    async def _show_burst(self, session: aiohttp.ClientSession) -> None:
        self._say(f"{_BURST} photos at once:")
        photo = await asyncio.to_thread(_photo, 1600, 1200)
        self._say(f"    {await _count(session, photo, _BURST)}")

    async def _show_metrics(self, session: aiohttp.ClientSession) -> None:
        async with session.get("/metrics") as response:
            text = await response.text()
        for line in text.splitlines():
            if line.startswith(("asyncpool_jobs_submitted_total", "asyncpool_jobs_ended_total")):
                self._say(f"/metrics: {line}")

    async def _show_drain(self, session: aiohttp.ClientSession) -> None:
        photo = await asyncio.to_thread(_photo, 4000, 3000)
        last = asyncio.create_task(_count(session, photo, 8))
        await self._get(session, "/healthz")
        self._stop("Stopped with 8 photos in progress")
        await self._get(session, "/healthz")
        self._say(f"The 8 photos: {await last}")

    async def _get(self, session: aiohttp.ClientSession, path: str) -> None:
        async with session.get(path) as response:
            self._say(f"{path}: {response.status} {(await response.text()).strip()}")

    async def _post(self, session: aiohttp.ClientSession, what: str, photo: bytes, path: str = "/thumbnail") -> None:
        async with session.post(path, data=BytesIO(photo)) as response:
            body = await response.read()
        if response.status == 200:
            with Image.open(BytesIO(body)) as image:
                text = f"{image.width}x{image.height} {image.format}, {len(body) / 1024:.1f} KB"
        else:
            text = body.decode().strip()
        self._say(f"{what} ({len(photo) / 1024:.1f} KB): {response.status} {text}")


async def _count(session: aiohttp.ClientSession, photo: bytes, times: int) -> str:
    """Post a photo `times` times at once; return the number of responses by status."""

    async def post() -> str:
        async with session.post("/thumbnail", data=BytesIO(photo)) as response:
            await response.read()
        again = response.headers.get("Retry-After")
        return f"{response.status}" if again is None else f"{response.status} (Retry-After: {again})"

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(post()) for _ in range(times)]
    return ", ".join(f"{count} x {answer}" for answer, count in sorted(Counter(t.result() for t in tasks).items()))


def _photo(width: int, height: int) -> bytes:
    target = BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(target, "JPEG")
    return target.getvalue()
