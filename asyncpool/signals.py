"""`drain_on_signal`: the first SIGINT or SIGTERM drains a pool, the second cancels it.

See `WorkerPool.close` for what draining and cancelling mean.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from asyncpool._logs import log
from asyncpool.pool import WorkerPool

__all__ = ["drain_on_signal"]


class drain_on_signal:
    """A context manager: inside the block, the first signal drains the pool, and the second cancels it.

        async with WorkerPool(...) as pool:
            with drain_on_signal(pool):
                ...

    The second signal also restores the previous signal handlers, so a third one has its usual effect (Ctrl+C:
    `KeyboardInterrupt`). Draining does what `pool.close()` does: streams deliver the accepted jobs, then raise
    `PoolClosed`. Each signal is logged as a warning. Must be entered in the main thread, on the pool's loop.

    Args:
        pool: The pool.
        signals: The signals to handle; by default SIGINT and SIGTERM.
        drain_timeout: As in `WorkerPool.close`: after this many seconds of draining, jobs are cancelled. None: never.
        grace: As in `WorkerPool.close`: how many seconds cancelled jobs have to stop before they are abandoned.

    Raises:
        RuntimeError: Entered outside the main thread, or without a running event loop.
    """

    def __init__(
        self,
        pool: WorkerPool[Any, Any],
        *,
        signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM),
        drain_timeout: float | None = None,
        grace: float = 5.0,
    ) -> None:
        self._pool = pool
        self._signals = tuple(signals)
        self._drain_timeout = drain_timeout
        self._grace = grace
        self._before: dict[int, Any] = {}
        self.received = 0
        """How many of the signals were received."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for number in self._signals:
            try:
                # Not loop.add_signal_handler: it works on Unix only, and cannot restore the handler that asyncio.run
                # has set.
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError as error:
                self._restore()
                raise RuntimeError("drain_on_signal must be entered in the main thread") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Runs between any two instructions of the main thread, so it only schedules the work on the loop.
        self._loop.call_soon_threadsafe(self._act, number)

    def _act(self, number: int) -> None:
        self.received += 1
        name = signal.Signals(number).name
        if self.received == 1:
            log.warning("pool %r: %s: draining; a second signal cancels running jobs", self._pool.name, name)
            self._pool.drain(drain_timeout=self._drain_timeout, grace=self._grace)
        else:
            log.warning("pool %r: %s: cancelling running jobs", self._pool.name, name)
            self._pool.cancel()
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: the handler was not installed from Python, and cannot be restored from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
