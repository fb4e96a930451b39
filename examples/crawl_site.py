"""A site of pages that link to each other, on a server that works on so many requests at a time."""

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

    As a database behind a connection pool would be: `capacity` requests are worked on at a time, for `seconds` each, on
    average; the others wait in a line, first come first served. Beyond its capacity, more requests only wait longer.
    """

    def __init__(self, pages: int, *, capacity: int, seconds: float, seed: int = 0) -> None:
        self.pages = pages
        self.capacity = capacity
        self.seconds = seconds
        self.requests: Counter[int] = Counter()
        """How often each page was asked for."""
        self.inside = 0
        """How many requests are worked on, or in the line."""
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
        """The URL of the first page, from which links lead to all others."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/0"

    def resize(self, capacity: int) -> None:
        """Work on so many requests at a time from now on. What is worked on already goes on."""
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
            if not turn.done():  # or its request was cancelled
                self._busy += 1
                turn.set_result(None)

    def _html(self, page: int) -> str:
        # Each page is linked to from one page before it, so that all can be found; the others lead back.
        onward = range(_LINKS * page + 1, min(_LINKS * page + 1 + _LINKS, self.pages))
        links = [*onward, page // 2, 0]
        items = "".join(f'<li><a href="/{link}">Page {link}</a></li>' for link in links)
        return f"<!DOCTYPE html><title>Page {page}</title><ul>{items}</ul>"
