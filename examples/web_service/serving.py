"""`Server`: listens until a signal comes, and stops without losing a request.

The steps of stopping, at the first SIGINT or SIGTERM:

1. Say so, and go on for `lame_duck` seconds: `/healthz` is 503, so that load balancers send to others; photos are
   taken as before, and each answer carries `Connection: close`, so that clients open their next connection elsewhere.
2. Stop listening.
3. Stop the intake: what is still being uploaded is answered by 503. What the pool has accepted is finished, for up to
   `drain_timeout` seconds, and answered; the rest is cancelled then, and answered by 503.
4. Close the connections that no answer has closed. Wait until all are closed, and what was written is sent.
5. Close what is left, at most `_LAST_WORDS` seconds later, and the application.

The second signal goes to step 3 with a `drain_timeout` of 0. It counts only half a second after the first: supervisors
and terminals can send the same signal twice.

Why not `drain_on_signal`: it would close the pool at once, in step 1. Why not `web.run_app`: `AppRunner.cleanup()`
makes every connection deaf before it waits for its handlers, so a request whose body is still on its way hangs, and one
that comes on an idle connection is never read. So here the cleanup comes when nothing is left to be read.

What no server can help in HTTP/1.1: a client may send a request on an idle connection in the moment in which the
server closes it, or connect in the moment in which it stops listening (the kernel then resets what it has queued, with
SO_REUSEPORT too). Nothing of such a request was read, so it can be sent again. The lame duck is there so that nobody
sends to this instance any more by then: it must be longer than the interval of the load balancer's checks. And a client
that closes its sending half is taken for one that went away: asyncio's transports do not tell the two apart.
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
"""Seconds between two looks at the connections."""
_SECOND_AFTER = 0.5
"""Seconds after the first signal from which on another one is the second."""
_LAST_WORDS = 5.0
"""Seconds that clients have to take their answers."""


class Server:
    """Serves a `ThumbnailService` until a signal comes.

    Args:
        service: The service, not started yet.
        host: The address to listen on.
        port: The port; 0 for a free one.
        reuse_port: Whether other processes may listen on the same port (SO_REUSEPORT).
        lame_duck: Seconds between the first signal and the end of listening.
        drain_timeout: Seconds that accepted photos get then.
        say: Is told what happens, in lines. It must not raise.
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
        """How many photos were accepted and not finished: they got a 503."""
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        # shutdown_timeout: `_drain` has waited already. 0 would mean for ever.
        self._runner = web.AppRunner(service.app, access_log=None, shutdown_timeout=0.01)
        self._listens_on = host, port, reuse_port

    @property
    def was_cut_short(self) -> bool:
        """Whether there was a second signal."""
        return self._hurry.is_set()

    async def run(self, ready: Callable[[str], None]) -> None:
        """Listen, call `ready` with the address, and wait for the signals. Cancelled, it stops without draining.

        Raises:
            OSError: The address cannot be listened on.
        """
        host, port, reuse_port = self._listens_on
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, host, port, reuse_port=reuse_port or None)
            await site.start()
            with _StopSignals(self.stop, self._on_second):
                host, port = self._runner.addresses[0][:2]  # the port that 0 has become
                ready(str(URL.build(scheme="http", host=host, port=port)))
                await self._stop.wait()
                await self._lame(site)
                await self._drain()
        finally:
            self.service.pool.cancel()  # closed already, unless this was cut short
            await self._runner.cleanup()

    def stop(self, why: str) -> None:
        """What the first signal does. Does nothing the second time."""
        if self._stop.is_set():
            return
        self.service.is_draining = True
        self._say(
            f"{why}: draining. Photos are taken for {self._lame_duck:g} s more, and what is accepted is finished; "
            "a second signal cancels it."
        )
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
        await asyncio.sleep(_TICK)  # what was accepted in the last moment becomes a request

    async def _drain(self) -> None:
        self.service.uploads.cut()
        report = await self.service.pool.close(drain_timeout=self._drain_timeout)
        self.unfinished = len(report.unfinished)
        # By looking again and again, as Go's http.Server.Shutdown does: a connection tells nobody that it has ended.
        assert self._runner.server is not None
        for _ in range(round(_LAST_WORDS / _TICK)):
            for connection in self._runner.server.connections:
                if self.service.is_idle(connection):
                    connection.force_close()
            if not self._runner.server.connections:
                return
            await asyncio.sleep(_TICK)

    def summary(self) -> Sequence[str]:
        """Figures that add up: requests are answered or gone; jobs are succeeded, failed or cancelled."""
        answers = {status: count for status, count in sorted(self.service.answers.items()) if status != GONE}
        by_status = ", ".join(f"{count} x {status}" for status, count in answers.items()) or "none"
        stats = self.service.pool.stats
        return (
            f"{self.service.requests} requests: {sum(answers.values())} answered ({by_status}), "
            f"{self.service.answers[GONE]} left by their clients",
            f"{stats.submitted} jobs: {stats.succeeded} succeeded, {stats.failed} failed, {stats.cancelled} cancelled"
            f"{f'; {self.unfinished} accepted photos were not finished' if self.unfinished else ''}",
        )


class _StopSignals:
    """Calls `first` and `second` with the name of the signal, on the loop; then the handlers from before are back."""

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
        # Runs between any two instructions of the main thread: so it asks the loop, and does nothing itself.
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
