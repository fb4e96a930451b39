"""A process of `Processes`: its near end, and its main function.

Each process is spawned, and has an event loop and a `Runner`. A pair of sockets connects it with the program. So the
end of either is an end of file for the other, and no thread is needed to talk.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import multiprocessing.resource_tracker

# Here: what is registered before `_kill_living` runs after it.
import multiprocessing.util  # pyright: ignore[reportUnusedImport]
import os
import signal
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from weakref import WeakSet

from asyncpool._logs import forward_records
from asyncpool.engines.remote_errors import dump_error
from asyncpool.engines.wire import BROKEN, dumps, loads
from asyncpool.errors import ProcessLost
from asyncpool.runner import Runner

__all__ = ["Child", "check_can_spawn"]

_SPAWN = multiprocessing.get_context("spawn")
_LENGTH = struct.Struct("!Q")  # of the batch that follows; 0: the program closes the connection, and _GRACE follows
_GRACE = struct.Struct("!d")
_ORPHAN_GRACE = 5.0  # seconds, until a process ends whose program is dead, whatever its handlers do
_CHECK_EVERY = 0.5  # seconds: the end of a connection says nothing while a fork holds the other end, too
_KILLED_WITHIN = 5.0  # seconds, in which the system ends a killed process, unless that hangs in the kernel
_HAS_NO_GUARD = 78  # the exit status of a process that has started the program again; EX_CONFIG of sysexits.h
_MAX_PAUSE_OF_POLL = 0.05  # seconds

# Ctrl+C goes to all processes of a terminal, and systemd sends SIGTERM to all of a service: what they mean is for the
# program to decide. A process ends with its connection, and so when the program is dead.
_IGNORED = (signal.SIGINT, signal.SIGTERM)

# Living processes. They are killed when the interpreter exits: multiprocessing would wait for them forever, because
# what ends them is the end of a connection that the interpreter still holds.
_living: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _kill_living() -> None:
    for process in list(_living):
        process.kill()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_living.clear)  # they belong to the parent

_GUARD_HINT = (
    "the main module must start the program only under `if __name__ == '__main__':`, because each process of "
    "Processes() imports it"
)


def check_can_spawn() -> None:
    """End this process if it is one that was spawned, and has started the program again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(_HAS_NO_GUARD)  # without a word: the program that has spawned it says why


class Child:
    """The near end of one process."""

    def __init__(self, number: int) -> None:
        self.name = f"process {number}"
        self._lost = asyncio.Event()
        self._has_spoken = False
        self._process: BaseProcess | None = None  # from its start until it has ended
        self._exit_code: int | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, spec: bytes, setup: bytes | None) -> None:
        """Spawn the process, and connect with it. Cancelled, it still waits until the process is spawned."""
        ours, theirs = socket.socketpair()
        process = _SPAWN.Process(target=_main, args=(theirs, self.name, setup), name=f"asyncpool {self.name}")
        try:
            # It pickles the arguments, and starts an interpreter: milliseconds, in which the loop should run. A thread
            # of its own, for the default executor may be busy; and it ends at once, for a program that forks.
            spawner = ThreadPoolExecutor(1, "asyncpool spawner")
            try:
                starting = asyncio.get_running_loop().run_in_executor(spawner, _spawn, process, theirs)
            except BaseException:  # there can be no more threads
                theirs.close()
                raise
            finally:
                spawner.shutdown(wait=False)
            try:
                await asyncio.shield(starting)
            finally:
                while not starting.done():  # nobody else would end what comes now
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([starting])
                if starting.exception() is None:
                    self._process = process
                    self.name = f"{self.name} (pid {process.pid})"
            ours.setblocking(False)
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        self._writer.write(_LENGTH.pack(len(spec)))
        self._writer.write(spec)

    async def put(self, batch: bytes) -> None:
        """Send orders."""
        assert self._writer is not None
        try:
            await _write(self._writer, batch)
        except OSError as error:
            raise await self._end(error) from None

    async def take(self) -> bytes:
        """Wait for news."""
        try:
            news = await _read(self._reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise await self._end(error) from None
        self._has_spoken = True
        return news

    async def _end(self, error: Exception) -> Exception:
        """Return the error for its end."""
        how = await self._how_it_ended(error)
        if self._has_spoken:
            return ProcessLost(how)
        # It could not run anything, and others like it could not either.
        return RuntimeError(f"{self.name} could not start: {how}")

    async def wait_lost(self) -> None:
        """Wait until the pool has lost the process, or it has ended without a sign of that."""
        has_ended = False
        while not self._lost.is_set() and not has_ended:
            has_ended = not self._is_alive  # and still has a while, for what it sent last to be read
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_EVERY):
                    await self._lost.wait()

    @property
    def _is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    async def _wait_ended(self, within: float) -> None:
        """Wait until the process has ended, for up to some seconds."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + within, 0.001
        # Not by a thread that joins it, which could not be cancelled, and would be one for each process.
        while self._is_alive and loop.time() < until:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_OF_POLL)

    async def _how_it_ended(self, error: Exception) -> str:
        await self._wait_ended(1.0)  # it is dead, and the system may not know yet how
        code = self._exit_code if self._process is None else self._process.exitcode
        if code is None:
            return f"its connection was closed: {error}"
        if code < 0:
            return f"killed by {_name_of_signal(-code)}"
        if code == _HAS_NO_GUARD and not self._has_spoken:
            return _GUARD_HINT
        if code == 1 and not self._has_spoken:
            return f"ended with exit status 1; its output says why. If not: {_GUARD_HINT}"
        return f"ended with exit status {code}"

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
        if self._writer is not None:
            self._writer.transport.abort()
        self._lost.set()

    async def close(self, grace: float) -> None:
        """Let the process leave its resources, and end it."""
        if self._writer is not None and not self._lost.is_set():
            self._writer.write(_LENGTH.pack(0) + _GRACE.pack(grace))
            await self._wait_ended(grace)
        self.kill()
        await self._wait_ended(_KILLED_WITHIN)
        if self._process is not None and not self._is_alive:
            _living.discard(self._process)
            self._exit_code = self._process.exitcode
            self._process.close()  # its descriptors; the garbage collector may come late
            self._process = None


def _spawn(process: BaseProcess, connection: socket.socket) -> None:
    """Start a process, which has the other end of the connection then."""
    try:
        multiprocessing.resource_tracker.ensure_running()  # which lets signals through when it has started
        _defer_signals()  # those that come before the process ignores them would end it
        try:
            process.start()
        finally:
            _receive_signals()
        _living.add(process)
    finally:
        connection.close()


def _defer_signals() -> None:
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)


def _receive_signals() -> None:
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


async def _write(writer: asyncio.StreamWriter, batch: bytes) -> None:
    writer.write(_LENGTH.pack(len(batch)))
    writer.write(batch)
    await writer.drain()


# -- In the process ----------------------------------------------------------------------------------------------------


def _main(connection: socket.socket, place: str, setup: bytes | None) -> None:
    """The main function of a process."""
    for number in _IGNORED:
        # Not SIG_IGN: the programs that a handler starts would inherit that, and could not be terminated.
        signal.signal(number, _ignore)
    _receive_signals()
    if sys.platform != "win32":
        os.register_at_fork(before=_defer_signals, after_in_parent=_receive_signals, after_in_child=_stop_ignoring)
    threading.Thread(target=_end_with_program, name="asyncpool watch", daemon=True).start()
    place = f"{place} (pid {os.getpid()})"
    failure: Exception | None = None
    if setup is not None:
        try:
            loads(setup)()
        except Exception as error:
            failure = error
    asyncio.run(_serve(connection, place, failure))


def _ignore(number: int, frame: object) -> None:
    """Handle a signal that is for the program."""


def _stop_ignoring() -> None:
    """Let a process that this one has forked be ended by signals, also by one that it got since."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _receive_signals()


def _end_with_program() -> None:
    """End this process some seconds after its program, also if a handler blocks the event loop."""
    program = multiprocessing.parent_process()
    assert program is not None
    # The second for a program that has forked: `join` waits until its forks have ended, too.
    while program.is_alive() and (sys.platform == "win32" or os.getppid() == program.pid):
        program.join(_CHECK_EVERY)
    threading.Event().wait(_ORPHAN_GRACE + 1.0)
    os._exit(1)


async def _serve(connection: socket.socket, place: str, failure: Exception | None) -> None:
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        spec = await _read(reader)
        if failure is not None:
            news = (BROKEN, 0, dump_error(failure, place, shares_main=True), 0.0)
            await _write(writer, dumps([news], shares_main=True))
    except (OSError, asyncio.IncompleteReadError):
        return  # the program has ended before it sent anything
    if failure is not None:
        await reader.read()  # the program ends this process
        return
    runner = Runner(spec, place)
    loop = asyncio.get_running_loop()
    forward_records(lambda attributes: loop.call_soon_threadsafe(runner.log, attributes))
    sender = asyncio.create_task(_send(runner, writer))
    await runner.close(await _obey(runner, reader))
    sender.cancel()
    await asyncio.wait([sender])
    with suppress(OSError):
        await _write(writer, await runner.take())  # what was logged at the end
    writer.close()
    if len(asyncio.all_tasks()) > 1:  # they ignore their cancellation, and asyncio.run would wait for them
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # there is none, or nobody reads it
                stream.flush()
        os._exit(0)


async def _obey(runner: Runner, reader: asyncio.StreamReader) -> float:
    """Take orders until the connection ends. Return how many seconds are left to end what runs."""
    try:
        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if not length:
                (grace,) = _GRACE.unpack(await reader.readexactly(_GRACE.size))
                return float(grace)
            runner.put(await reader.readexactly(length))
    except (OSError, asyncio.IncompleteReadError):
        return _ORPHAN_GRACE  # the program is dead


async def _send(runner: Runner, writer: asyncio.StreamWriter) -> None:
    try:
        while not runner.is_closed:
            await _write(writer, await runner.take())
    except OSError:
        pass  # the program is dead, as the reader finds out too
