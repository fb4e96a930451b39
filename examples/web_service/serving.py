"""`Server`: listens until a signal arrives, and stops without losing a request.

The first SIGINT or SIGTERM starts these steps:

1. Keep serving for `lame_duck` seconds. `/healthz` returns 503, so that load balancers use other instances. Photos are
   still accepted, but each response has `Connection: close`, so that clients open their next connection elsewhere.
2. Stop listening.
3. Stop accepting jobs: pending uploads get a 503. Jobs that the pool has accepted are finished for up to
   `drain_timeout` seconds. The rest is then cancelled and gets a 503.
4. Close connections that are still open, and wait until all written data has been sent.
5. After at most `_CLOSE_TIMEOUT` seconds, close the remaining connections and the application.

A second signal jumps to step 3 with a `drain_timeout` of 0. It must arrive at least half a second after the first,
because supervisors and terminals can send the same signal twice.

`drain_on_signal` is not used here, because it would close the pool immediately, in step 1. `web.run_app` is not used
either: `AppRunner.cleanup()` stops reading from all connections before it waits for their handlers. A request whose
body is still being uploaded would hang, and a new request on an idle connection would never be read. So this server
calls `cleanup()` only when nothing is left to read.

HTTP/1.1 has two races that no server can avoid. A client can send a request on an idle connection at the moment when
the server closes it. Or it can connect at the moment when the server stops listening: the kernel then resets the
queued connections, even with SO_REUSEPORT. No part of the request was read, so the client can safely send it again.
Make `lame_duck` longer than the interval of the load balancer's health checks, so that no client uses this instance
by then.

A client that closes only its sending half counts as disconnected, because asyncio transports do not distinguish the
two.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from aiohttp import web
from yarl import URL

from examples.web_service.service import GONE, ThumbnailService

__all__ = ["Server"]

_TICK = 0.02
"""Seconds between two checks of the connections."""
_SECOND_AFTER = 0.5
"""Seconds after the first signal during which further signals are ignored."""
_CLOSE_TIMEOUT = 5.0
"""Seconds that clients have to read their responses."""


class Server:
    """Serves a `ThumbnailService` until a signal arrives.

    Args:
        service: The service, not started yet.
        host: The address to listen on.
        port: The port; 0 for a free one.
        reuse_port: Whether other processes may listen on the same port (SO_REUSEPORT).
        lame_duck: Seconds for which the server keeps listening after the first signal.
        drain_timeout: Seconds to finish the accepted photos after that.
        say: Prints a line. It must not raise.
    """

    def __init__(
        self,
        service: ThumbnailService,
        *,
        host: str,
        port: int,
        reuse_port: bool,
        lame_duck: float,
        drain_timeout: float,
        say: Callable[[str], None],
    ) -> None:
        self.service = service
        self._lame_duck = lame_duck
        self._drain_timeout = drain_timeout
        self._say = say
        self.unfinished = 0
        """The number of photos that were accepted but not finished. Their clients got a 503."""
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        # `_drain` has waited already, so shutdown_timeout can be short. 0 would mean no limit.
        self._runner = web.AppRunner(service.app, access_log=None, shutdown_timeout=0.01)
        self._listens_on = host, port, reuse_port

    @property
    def was_cut_short(self) -> bool:
        """Whether there was a second signal."""
        return self._hurry.is_set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Listen, call `ready` with the address, and wait for a signal. If cancelled, stop without draining.

        Raises:
            OSError: The server cannot listen on the address.
        """
        host, port, reuse_port = self._listens_on
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, host, port, reuse_port=reuse_port or None)
            await site.start()
            with _StopSignals(self.stop, self._on_second):
                host, port = self._runner.addresses[0][:2]  # the actual port, if it was 0
                ready(str(URL.build(scheme="http", host=host, port=port)))
                await self._stop.wait()
                await self._lame(site)
                await self._drain()
        finally:
            self.service.pool.cancel()  # no effect if the pool is closed, as after a drain
            await self._runner.cleanup()

    def stop(self, why: str) -> None:
        """Start to drain, as the first signal does. Further calls have no effect."""
        if self._stop.is_set():
            return
        self.service.is_draining = True
        self._say(f"{why}: draining (accepting for {self._lame_duck:g} s); a second signal cancels")
        self._stop.set()

    def _on_second(self, name: str) -> None:
        self._say(f"{name}: cancelling")
        self._hurry.set()
        self.service.pool.cancel()

    async def _lame(self, site: web.TCPSite) -> None:
        try:
            async with asyncio.timeout(self._lame_duck):
                await self._hurry.wait()
        except TimeoutError:
            pass
        await site.stop()
        await asyncio.sleep(_TICK)  # let connections that were just accepted deliver their requests

    async def _drain(self) -> None:
        self.service.uploads.cut()
        report = await self.service.pool.close(drain_timeout=self._drain_timeout)
        self.unfinished = len(report.unfinished)
        await self._runner.shutdown()  # open pages of the dashboard are requests without an end
        # Poll, as Go's http.Server.Shutdown does: there is no notification when a connection is closed.
        assert self._runner.server is not None
        for _ in range(round(_CLOSE_TIMEOUT / _TICK)):
            for connection in self._runner.server.connections:
                if self.service.is_idle(connection):
                    connection.force_close()
            if not self._runner.server.connections:
                return
            await asyncio.sleep(_TICK)

    def summary(self) -> Sequence[str]:
        """Return the final figures, which add up: each request and each job is in exactly one category."""
        answers = {status: count for status, count in sorted(self.service.answers.items()) if status != GONE}
        by_status = ", ".join(f"{count} x {status}" for status, count in answers.items()) or "none"
        stats = self.service.pool.stats
        return (
            f"{self.service.requests} requests: {sum(answers.values())} answered ({by_status}), "
            f"{self.service.answers[GONE]} abandoned by their clients",
            f"{stats.submitted} jobs: {stats.succeeded} succeeded, {stats.failed} failed, {stats.cancelled} cancelled"
            f"{f'; {self.unfinished} accepted photos were not finished' if self.unfinished else ''}",
        )


class _StopSignals:
    """Calls `first`, then `second`, with the name of the signal, on the loop. Then restores the previous handlers."""

    def __init__(self, first: Callable[[str], None], second: Callable[[str], None]) -> None:
        self._calls = [second, first]
        self._last_at = -math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A signal handler can run between any two instructions of the main thread, so it only schedules a callback.
        now = self._loop.time()
        if now - self._last_at >= _SECOND_AFTER:
            self._last_at = now
            self._loop.call_soon_threadsafe(self._act, number)

    def _act(self, number: int) -> None:
        if not self._calls:
            return
        self._calls.pop()(signal.Signals(number).name)
        if not self._calls:
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
