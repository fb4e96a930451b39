"""`drain_on_signal`: the first SIGINT or SIGTERM drains pools, the second cancels their jobs.

See `WorkerPool.close` for what draining and cancelling mean.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from types import FrameType, TracebackType
from typing import Any, Self, cast

from asyncpool._checks import check_seconds
from asyncpool._guard import describe
from asyncpool._logs import log
from asyncpool.errors import WrongLoop
from asyncpool.pool import WorkerPool

__all__ = ["drain_on_signal"]


class drain_on_signal:
    """A context manager: inside the block, the first signal drains the pools, and the second cancels their jobs.

        async with WorkerPool(...) as pool:
            with drain_on_signal(pool):
                ...

    Draining does what `pool.close()` does: streams deliver the accepted jobs, then raise `PoolClosed`. A signal that
    arrives less than `second_after` seconds after the first does not count as the second: supervisors send the same
    signal twice. The second signal also gives the signals back, so a third has the effect that it has outside of the
    block. Draining, cancelling and ignoring a signal are each logged as a warning.

    The handler that was there before is called for each signal too, after the drain was requested, so a server shuts
    down as it does without this block. Not called are the defaults: `SIG_DFL`, `SIG_IGN`, and Python's and asyncio's
    own handlers of SIGINT. Callbacks of `loop.add_signal_handler` run as usual.

    Blocks can be nested, and left in any order: a signal reaches each block that is open. Leaving a block removes only
    its own handler, so a handler that was installed inside the block stays. Enter it in the main thread, on the loop of
    the pools; a pool that is not started yet is closed by a signal.

    Args:
        pools: The pools, at least one.
        signals: The signals to handle; by default SIGINT and SIGTERM.
        drain_timeout: As in `WorkerPool.close`: after this many seconds of draining, jobs are cancelled. None: never.
        grace: As in `WorkerPool.close`: how many seconds cancelled jobs have to stop before they are abandoned.
        second_after: How many seconds after the first signal another one counts as the second. The time of a signal is
            when Python calls its handler, also while the event loop is blocked.

    Raises:
        RuntimeError: Entered outside the main thread, without a running event loop, or again before it was left.
        WrongLoop: Entered on another loop than that of one of the pools.
        TypeError: A pool is not a `WorkerPool` or missing, a signal is not an int, a time is not a number.
        ValueError: A signal does not exist or cannot be handled (SIGKILL), none is given, or a time is out of range.
    """

    received: int
    """How many signals counted: 0, 1 (the pools drain), or 2 (their jobs are cancelled)."""

    def __init__(
        self,
        *pools: WorkerPool[Any, Any],
        signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
        drain_timeout: float | None = None,
        grace: float = 5.0,
        second_after: float = 0.5,
    ) -> None:
        self._pools = _check_pools(pools)
        self._signals = _check_signals(signals)
        self._drain_timeout = None if drain_timeout is None else check_seconds("drain_timeout", drain_timeout)
        self._grace = check_seconds("grace", grace)
        self._second_after = check_seconds("second_after", second_after)
        self._links: dict[int, _Link] = {}
        self._is_entered = False
        self.received = 0

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("drain_on_signal must be entered in the main thread: Python handles signals only there")
        if self._is_entered:
            raise RuntimeError("this drain_on_signal is already entered: create a new one for each block")
        for pool in self._pools:
            if pool.loop is not None and pool.loop is not loop and pool.state != "closed":
                raise WrongLoop(
                    f"drain_on_signal must be entered on the loop of its pools: {describe(pool)} is on another"
                )
        self._loop = loop
        # asyncio's loops read the clock at each call, or have a clock of their own, as on virtual time. uvloop returns
        # the time at which its iteration began, which is too early while the loop is blocked.
        is_standard = isinstance(loop, asyncio.BaseEventLoop)
        self._time = loop.time if is_standard else time.monotonic  # noqa: TID251  # the clock without the delay
        self._context = copy_context()  # a signal must not act in the context of the job that it interrupts
        self._process = os.getpid()
        self._first_at = 0.0
        self._is_repetition_logged = False
        self._is_entered = True
        self.received = 0
        try:
            for number in self._signals:
                # Not loop.add_signal_handler: it works on Unix only, and cannot restore the handler that asyncio.run
                # has set.
                _uninstall_closed(number)
                self._links[number] = link = _Link(self._receive, signal.getsignal(number))
                signal.signal(number, link)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._give_back()
        self._is_entered = False

    def _give_back(self) -> None:
        links, self._links = self._links, {}
        for link in links.values():
            link.take = None
        for number, link in links.items():
            _uninstall(number, link)

    def _receive(self, number: int) -> bool:
        """Take a signal. Return False if this block cannot: its loop is closed, or this is the fork of its process.

        Runs between any two instructions of the main thread, so it only schedules calls on the loop: one for each pool,
        so that an error of one skips no other, and the log last.
        """
        if self._loop.is_closed() or os.getpid() != self._process:
            self._give_back()
            return False
        if not self.received:
            self.received = 1
            self._first_at = self._time()
            for pool in self._pools:
                self._schedule(functools.partial(pool.drain, drain_timeout=self._drain_timeout, grace=self._grace))
            self._schedule(self._log_draining, number)
        elif self._time() - self._first_at >= self._second_after:
            self.received = 2
            self._give_back()  # here and not on the loop: if that is blocked, the third signal must have its effect
            for pool in self._pools:
                self._schedule(pool.cancel)
            self._schedule(self._log_cancelling, number)
        elif not self._is_repetition_logged:
            self._is_repetition_logged = True
            self._schedule(self._log_ignored, number)
        return True

    def _schedule(self, callback: Callable[..., object], *args: object) -> None:
        self._loop.call_soon_threadsafe(callback, *args, context=self._context.copy())

    def _log_draining(self, number: int) -> None:
        log.warning("%s: %s: draining; a second signal cancels running jobs", self._named_pools(), _name(number))

    def _log_cancelling(self, number: int) -> None:
        log.warning("%s: %s: cancelling running jobs", self._named_pools(), _name(number))

    def _log_ignored(self, number: int) -> None:
        log.warning(
            "%s: %s: ignored, less than %g seconds after the first; a later signal cancels running jobs",
            self._named_pools(),
            _name(number),
            self._second_after,
        )

    def _named_pools(self) -> str:
        return f"pool{'s' * (len(self._pools) > 1)} {', '.join(describe(pool.name) for pool in self._pools)}"


class _Link:
    """The handler of one block for one signal, in front of the handler that was there before.

    While the block is open, it takes the signal and calls the handler before. After that it is transparent: whatever
    still holds it (a handler of the program that calls the one before; the program, which puts it back) has the effect
    of the handler before.
    """

    __slots__ = ("before", "take")

    def __init__(self, take: Callable[[int], bool], before: Any) -> None:
        self.take: Callable[[int], bool] | None = take
        """Takes a signal, and returns whether the block could; None once the block no longer handles the signal."""
        self.before = before
        """What `signal.getsignal` returned: a callable, SIG_DFL, SIG_IGN, or None."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        is_installed = signal.getsignal(number) is self
        is_taken = self.take is not None and self.take(number)
        if is_installed and not is_taken:
            # The block cannot take it; or it was left in another thread, where handlers cannot be restored; or the
            # program has put this handler back.
            _uninstall_closed(number)
            signal.raise_signal(number)
        elif callable(self.before) and not (is_taken and _is_default(self.before)):
            self.before(number, frame)


def _uninstall(number: int, link: _Link) -> None:
    """Take the link of a closed block out of the handlers of a signal, so far as they are links."""
    above = signal.getsignal(number)
    if above is link:
        _uninstall_closed(number)
        return
    while isinstance(above, _Link):
        if above.before is link:
            above.before = link.before
        above = above.before


def _uninstall_closed(number: int) -> None:
    """Restore the handler that was there before all the closed blocks that were entered last."""
    while isinstance(top := signal.getsignal(number), _Link) and top.take is None:
        try:
            # None: the handler was not installed from Python, and cannot be restored from Python.
            signal.signal(number, signal.SIG_DFL if top.before is None else top.before)
        except ValueError:  # not in the main thread: the link itself does it when the signal comes
            return


def _is_default(handler: Callable[..., object]) -> bool:
    """Whether this is what Python does on SIGINT if the program does not change it."""
    if handler is signal.default_int_handler:
        return True
    # asyncio.run replaces the default handler by one that cancels the main task first: a partial of a runner's method.
    return isinstance(handler, functools.partial) and isinstance(
        getattr(handler.func, "__self__", None), asyncio.Runner
    )


def _name(number: int) -> str:
    """Return the name of a signal. `signal.Signals` knows only the first and the last of the real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first, last = getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1)
        return f"SIGRTMIN+{number - first}" if first <= number <= last else f"signal {number}"


def _check_pools(pools: tuple[object, ...]) -> tuple[WorkerPool[Any, Any], ...]:
    if not pools:
        raise TypeError("drain_on_signal needs at least one pool, got none")
    found: dict[int, WorkerPool[Any, Any]] = {}  # by id: the same pool twice is one pool
    for pool in pools:
        if not isinstance(pool, WorkerPool):
            raise TypeError(f"drain_on_signal takes pools (WorkerPool), got {describe(pool)}")
        found[id(cast("object", pool))] = pool
    return tuple(found.values())


def _check_signals(signals: object) -> tuple[int, ...]:
    if not isinstance(signals, Iterable):
        raise TypeError(f"signals must be an iterable of signal numbers, got {describe(signals)}")
    numbers: dict[int, None] = {}
    for number in cast("Iterable[object]", signals):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"signals must be signal numbers (int), got {describe(number)}")
        if number not in signal.valid_signals():
            raise ValueError(f"signals must be signals of this system, got {describe(number)}")
        if number in (getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None)):
            raise ValueError(f"signals must be signals that a program can handle, got {describe(number)}")
        numbers[number] = None
    if not numbers:
        raise ValueError(f"signals must have at least one signal, got {describe(signals)}")
    return tuple(numbers)
