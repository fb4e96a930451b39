"""What the tests of the image service share: photos in memory, and a server whose replies the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from blockbuster import BlockBuster, blockbuster_ctx
from PIL import Image

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> Iterator[BlockBuster]:
    """A sleep, a file or a lock that blocks the event loop, called by the library or the service, fails the test."""
    with blockbuster_ctx(["asyncpool", "examples"]) as blockbuster:
        yield blockbuster


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    target = BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG of 1200x900 pixels, noisy as photos are."""
    noise = Image.frombytes("RGB", (300, 225), Random(7).randbytes(300 * 225 * 3))
    return encode(noise.resize((1200, 900), Image.Resampling.BICUBIC), quality=90)


@pytest.fixture
def folder(tmp_path: Path, photo: bytes) -> Path:
    """A folder with three photos."""
    path = tmp_path / "photos"
    path.mkdir()
    for number in (1, 2, 3):
        (path / f"img00{number}.jpg").write_bytes(photo)
    return path


class Web:
    """A real server on loopback. Each path has the reply that the test gives it; all others are the photo."""

    def __init__(self, photo: bytes) -> None:
        self.photo = photo
        self.replies: dict[str, Reply] = {}
        self.requests: list[str] = []
        self.running = 0
        self.peak = 0
        self.never = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if request.path in self.replies:
                return await self.replies[request.path](request)
            return web.Response(body=self.photo, content_type="image/jpeg")
        finally:
            self.running -= 1

    def serve(self, path: str, body: bytes) -> str:
        async def reply(request: web.Request) -> web.StreamResponse:
            return web.Response(body=body)

        self.replies[path] = reply
        return self.base + path

    base = ""


@pytest_asyncio.fixture
async def site(photo: bytes) -> AsyncIterator[Web]:
    site = Web(photo)
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    tcp = web.TCPSite(runner, "127.0.0.1", 0)
    await tcp.start()
    site.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    site.never.set()
    await runner.cleanup()
