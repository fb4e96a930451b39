"""A site of pages that link to each other, on a server that handles a limited number of requests at a time."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from random import Random
from types import TracebackType
from typing import Self

from aiohttp import web

__all__ = ["Site"]

_LINKS = 3


class Site:
    """Serves a site of `pages` pages on loopback. Use it as an async context manager.

    It behaves like a database behind a connection pool: it handles `capacity` requests at a time, which take
    `seconds` each on average. The others wait in a FIFO queue, so beyond the capacity, requests only wait longer.
    """

    def __init__(self, pages: int, *, capacity: int, seconds: float, seed: int = 0) -> None:
        self.pages = pages
        self.capacity = capacity
        self.seconds = seconds
        self.requests: Counter[int] = Counter()
        """The number of requests for each page."""
        self.inside = 0
        """The number of requests that are being handled or are in the queue."""
        self.peak_inside = 0
        self._busy = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._random = Random(seed)
        app = web.Application()
        app.router.add_get("/{page:[0-9]+}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def home(self) -> str:
        """The URL of the first page. All others can be reached from it."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/0"

    def resize(self, capacity: int) -> None:
        """Change the capacity. Requests that are being handled continue."""
        self.capacity = capacity
        self._go_on()

    async def _answer(self, request: web.Request) -> web.Response:
        page = int(request.match_info["page"])
        if page >= self.pages:
            raise web.HTTPNotFound
        self.requests[page] += 1
        self.inside += 1
        self.peak_inside = max(self.peak_inside, self.inside)
        try:
            await self._work()
        finally:
            self.inside -= 1
        return web.Response(text=self._html(page), content_type="text/html")

    async def _work(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._go_on()
        await turn
        try:
            await asyncio.sleep(self.seconds * self._random.uniform(0.5, 1.5))
        finally:
            self._busy -= 1
            self._go_on()

    def _go_on(self) -> None:
        while self._line and self._busy < self.capacity:
            turn = self._line.popleft()
            if not turn.done():  # otherwise its request was cancelled
                self._busy += 1
                turn.set_result(None)

    def _html(self, page: int) -> str:
        # Each page has a link from one page before it, so that a crawl finds all pages; the other links lead back.
        onward = range(_LINKS * page + 1, min(_LINKS * page + 1 + _LINKS, self.pages))
        links = [*onward, page // 2, 0]
        items = "".join(f'<li><a href="/{link}">Page {link}</a></li>' for link in links)
        return f"<!DOCTYPE html><title>Page {page}</title><ul>{items}</ul>"
