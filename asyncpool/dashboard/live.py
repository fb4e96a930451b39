"""What is the case now, for all open pages together: one sample per second, and one snapshot for all who read it.

While the dashboard is served, each second costs the snapshot of each pool's statistics. The rest is read only while a
page is open, once per second, however many are open. So the pages cost the pools nothing per job.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from asyncpool._guard import safe_text
from asyncpool.dashboard.history import COLUMNS, KEPT, PoolHistory, Sample
from asyncpool.dashboard.reading import PoolReader
from asyncpool.dashboard.texts import text, time_to_describe
from asyncpool.errors import WrongLoop
from asyncpool.journal.journal import Journal
from asyncpool.pool import WorkerPool

__all__ = ["MAX_PAGES", "Live", "LiveStream"]

MAX_PAGES = 50
"""How many streams of events can be open."""

_INTERVAL = 1.0
# Seconds per snapshot in which jobs and limits are described; a `__repr__` can be slow.
_DESCRIBING = 0.005
# Counting a journal reads the whole file, in a thread: so that it takes at most a tenth of one.
_COUNT_EVERY, _COUNT_SHARE = 3.0, 10.0


class Live:
    """The state of some pools, from second to second.

    It is used on one event loop at a time, from the first `hold()` until everything that was held is released.
    """

    def __init__(
        self, pools: Sequence[WorkerPool[Any, Any]], journals: Sequence[Journal[Any]], about: Mapping[str, Any]
    ) -> None:
        self.readers = [PoolReader(pool) for pool in pools]
        self._histories = [PoolHistory() for _ in pools]
        self._journals = [_JournalCount(journal) for journal in journals]
        self._about = about
        self._samples: deque[tuple[Sample, ...]] = deque(maxlen=KEPT)
        self.run = secrets.token_hex(4)
        """Names this dashboard, so that a page notices when another program answers at the same address."""
        self.tick = 0
        """The number of the last sample."""
        self._sampled_at = 0.0  # on the clock of the loop
        self._holders = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.streams: set[LiveStream] = set()
        self._snapshot: tuple[int, str] = (-1, "")  # of which tick, and as JSON
        self.is_closed = False

    # -- The life of it ----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Take samples, until `release`.

        Raises:
            WrongLoop: It is held on another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop.is_closed():
            self._holders = 0  # a program that ended in the middle
        if self._holders and self._loop is not loop:
            raise WrongLoop("this dashboard is served on another event loop: make one for each")
        self._holders += 1
        if self._holders == 1:
            since = loop.time() - self._sampled_at if loop is self._loop else _INTERVAL
            self._loop = loop
            if since >= _INTERVAL:
                self._take_sample()
                since = 0.0
            # Otherwise a page that comes back at once would have a sample of some milliseconds.
            self._timer = loop.call_later(_INTERVAL - since, self._on_timer)

    def release(self) -> None:
        """Stop to take samples, unless there are other holders."""
        self._holders -= 1
        if not self._holders and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """End all streams, and open no more, until `reopen`: the server stops."""
        self.is_closed = True
        for stream in tuple(self.streams):
            stream.end()

    def reopen(self) -> None:
        """Let pages open streams again."""
        self.is_closed = False

    def _on_timer(self) -> None:
        assert self._loop is not None
        # First, so that a KeyboardInterrupt in what follows does not end it.
        self._timer = self._loop.call_later(_INTERVAL, self._on_timer)
        self._take_sample()
        for stream in self.streams:
            stream.wake()

    def _take_sample(self) -> None:
        now = asyncio.get_running_loop().time()
        samples: list[Sample] = []
        for reader, history in zip(self.readers, self._histories, strict=True):
            stats = reader.stats()
            samples.append(history.skip() if stats is None else history.sample(now, stats))
        self._samples.append(tuple(samples))
        self._sampled_at = now
        self.tick += 1
        if self.streams:
            for journal in self._journals:
                journal.count_if_due(now)

    # -- Reading -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Return what is shown of all pools now, as JSON."""
        has_time = time_to_describe(_DESCRIBING)
        pools = [reader.read(reader.stats(), has_time) for reader in self.readers]
        return json.dumps([pools, [journal.shown() for journal in self._journals]], separators=(",", ":"))

    def state(self) -> str:
        """Return the state now, with all samples, as JSON."""
        return self._composed(len(self._samples), self.snapshot())

    def event(self, run: str, after: int) -> str:
        """Return the state at the last tick, with the samples after another tick, as JSON.

        Args:
            run: The run that the client knows. Of another one, it knows nothing.
            after: The last tick that the client knows.
        """
        if self._snapshot[0] != self.tick:
            self._snapshot = self.tick, self.snapshot()
        missing = self.tick - after if run == self.run else KEPT
        return self._composed(min(max(missing, 0), len(self._samples)), self._snapshot[1])

    def _composed(self, count: int, snapshot: str) -> str:
        head = {
            "run": self.run,
            "tick": self.tick,
            "columns": COLUMNS,
            "kept": KEPT,
            "about": self._about,
            "samples": list(self._samples)[len(self._samples) - count :],
        }
        return f'{{"head":{json.dumps(head, separators=(",", ":"))},"now":{snapshot}}}'


class LiveStream:
    """A stream of server-sent events for one page. It holds the dashboard while it is iterated over.

    Args:
        live: The state of the pools.
        run: The run that the page knows.
        after: The last tick that the page knows.
        seconds: When to end it, after which the page opens the next one; None: never.
    """

    headers: Mapping[str, str] = {
        "Content-Type": "text/event-stream",
        "X-Accel-Buffering": "no",  # nginx would collect events
    }

    def __init__(self, live: Live, run: str, after: int, seconds: float | None) -> None:
        self._live = live
        self._run = run
        self._after = after
        self._seconds = seconds
        self._waiter: asyncio.Future[None] | None = None
        self._is_ended = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Iterate over the events. A slow reader misses snapshots, and no samples."""
        live, loop = self._live, asyncio.get_running_loop()
        live.hold()
        live.streams.add(self)
        ends_at = None if self._seconds is None else loop.time() + self._seconds
        try:
            while not self._is_ended:
                if self._after != live.tick:
                    data = live.event(self._run, self._after)
                    self._run, self._after = live.run, live.tick
                    yield f"data: {data}\n\n".encode()
                    continue  # the tick may be another by now
                if ends_at is not None and loop.time() >= ends_at:
                    return
                self._waiter = loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        finally:
            live.streams.discard(self)
            live.release()

    def wake(self) -> None:
        """Look again whether there is something to send."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        """End the stream. Safe to repeat."""
        self._is_ended = True
        self.wake()


class _JournalCount:
    """How many jobs a journal has, counted in a thread from time to time."""

    def __init__(self, journal: Journal[Any]) -> None:
        self._journal = journal
        # Not the folder, which is nobody's business.
        self._name = journal.path.replace("\\", "/").rsplit("/", 1)[-1]
        self._counting: asyncio.Future[Any] | None = None
        self._due = 0.0
        self._began = 0.0
        self._shown: dict[str, Any] = {"done": None, "failed": None, "error": None}

    def shown(self) -> dict[str, Any]:
        """Return what the page shows of the journal."""
        counts = {"skipped": self._journal.skipped, "repeated": self._journal.repeated}
        return {"name": text(self._name, 80)} | counts | self._shown

    def count_if_due(self, now: float) -> None:
        """Begin to count, if it is time to."""
        loop, counting = asyncio.get_running_loop(), self._counting
        if counting is not None and counting.get_loop() is loop and (now < self._due or not counting.done()):
            return
        self._began = now
        self._counting = loop.run_in_executor(None, self._journal.count)
        self._counting.add_done_callback(self._is_counted)

    def _is_counted(self, counting: asyncio.Future[Any]) -> None:
        now = asyncio.get_running_loop().time()
        self._due = now + max(_COUNT_EVERY, _COUNT_SHARE * (now - self._began))
        if counting.cancelled():
            return
        error = counting.exception()
        if error is not None:
            self._shown = {"done": None, "failed": None, "error": safe_text(str, error, 200)}
        else:
            done, failed = counting.result()
            self._shown = {"done": done, "failed": failed, "error": None}
