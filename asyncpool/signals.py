"""`drain_on_signal`: the first SIGINT or SIGTERM drains a pool, the second cancels it.

What draining and cancelling mean is `WorkerPool.close`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from asyncpool.pool import WorkerPool

__all__ = ["drain_on_signal"]

_log = logging.getLogger("asyncpool")


class drain_on_signal:
    """Within this block, the first signal drains the pool, and the second cancels it.

        async with WorkerPool(...) as pool:
            with drain_on_signal(pool):
                ...

    After the second the handlers that were there before are back, so that a third signal does what it did before
    (Ctrl+C: `KeyboardInterrupt`). Draining is `pool.close()`: streams deliver what was accepted, then raise
    `PoolClosed`. Logged as warnings. To be entered in the main thread, on the pool's loop.

    Args:
        pool: The pool.
        signals: Which signals; SIGINT and SIGTERM.
        drain_timeout: As of `WorkerPool.close`, in seconds: when draining turns into cancelling by itself.
        grace: As of `WorkerPool.close`, in seconds.

    Raises:
        RuntimeError: Not in the main thread, or no loop runs.
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
        """How many of the signals have come."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for number in self._signals:
            try:
                # signal.signal and not loop.add_signal_handler: that one works on Unix only, and cannot give back the
                # handler that asyncio.run has set.
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError as error:
                self._restore()
                raise RuntimeError("drain_on_signal works in the main thread only") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Runs between any two instructions of the main thread: so it asks the loop, and does nothing itself.
        self._loop.call_soon_threadsafe(self._act, number)

    def _act(self, number: int) -> None:
        self.received += 1
        name = signal.Signals(number).name
        if self.received == 1:
            _log.warning("pool %r: %s: draining; once more cancels what runs", self._pool.name, name)
            self._pool.drain(drain_timeout=self._drain_timeout, grace=self._grace)
        else:
            _log.warning("pool %r: %s: cancelling what runs", self._pool.name, name)
            self._pool.cancel()
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: it was not set from Python, and cannot be set back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
