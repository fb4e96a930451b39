"""`Processes`: an engine that runs attempts on all cores of this machine, with nothing but the standard library.

Each process is spawned, and has an event loop and a `Runner`. A pair of sockets connects it with the program. So the
end of either is an end of file for the other, and no thread is needed to talk.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from asyncpool._checks import check_count, check_function
from asyncpool._logs import forward_records, log
from asyncpool.engines.contract import EngineHost
from asyncpool.errors import ProcessLost
from asyncpool.runner import Runner

# `multiprocessing` is imported where it is used: that takes as long as importing asyncpool.
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["Processes"]

_LENGTH = struct.Struct("!Q")  # of the batch that follows; 0: the program closes the connection, and _GRACE follows
_GRACE = struct.Struct("!d")
_HEALTHY_AFTER = 10.0  # seconds: a process that lived longer is replaced at once
_MAX_PAUSE = 5.0  # seconds, before one that did not is
_ORPHAN_GRACE = 5.0  # seconds, until a process ends whose program is dead, whatever its handlers do

# Living processes. They are killed when the interpreter exits: multiprocessing would wait for them forever, because
# what ends them is the end of a connection that the interpreter still holds.
_living: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _kill_living() -> None:
    for process in list(_living):
        process.kill()


class Processes:
    """Runs the attempts of a pool in processes on this machine; one that dies is replaced.

        async with WorkerPool(crunch, workers=64, engine=Processes()) as pool:
            ...

    There are as many processes as cores, and never more than the pool has workers. For handlers that keep the CPU busy,
    use about 8 workers per process, so that the next job is there when one ends.

    The processes are spawned: they import the program's main module, which must start the program only under
    `if __name__ == "__main__":`. They ignore SIGINT and SIGTERM, and end with the program, however that ends. What they
    log at level WARNING or above is logged in the program, by the loggers of the same names.

    Args:
        count: How many processes. None: as many as there are CPUs that this process may use.
        setup: Called without arguments in each process before its first job: for logging, or for an event loop policy.
            Must be picklable.

    Raises:
        TypeError: `count` is not an int; `setup` is not callable, or is an async function.
        ValueError: `count` is below 1.
    """

    def __init__(self, count: int | None = None, *, setup: Callable[[], object] | None = None) -> None:
        self._count = _cpus() if count is None else check_count("count", count, least=1)
        if setup is not None:
            check_function("setup", setup)
        self._setup = setup

    @property
    def shares_main(self) -> bool:
        """Whether the processes import the main module: not that of a notebook or an interactive session."""
        return getattr(sys.modules["__main__"], "__file__", None) is not None

    async def run(self, host: EngineHost, /) -> None:
        """Provide processes for one pool: called by the pool."""
        import multiprocessing

        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # This is such a process, which imports the main module, and that starts the program again.
            raise SystemExit(f"asyncpool: {_GUARD_HINT}")
        children: set[_Child] = set()
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [
                    group.create_task(self._keep(number, host, children)) for number in range(1, self._count + 1)
                ]
                await host.closing()
                for keeper in keepers:
                    keeper.cancel()
            await asyncio.gather(*(child.close(host.grace) for child in children))
        finally:
            for child in children:
                child.kill()

    async def _keep(self, number: int, host: EngineHost, children: set[_Child]) -> None:
        """Keep one process, as soon as the pool has a worker for it. Replace it when it dies, later each time."""
        await host.workers_above(number - 1)
        host.expect(max(number, min(self._count, host.workers)))
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            child = _Child(number)
            children.add(child)
            began = loop.time()
            try:
                await child.start(host.spec, self._setup)
                host.join(child)
                await child.lost.wait()
            except OSError as error:  # no memory, no descriptors
                log.warning("pool %r: %s cannot be started: %s", host.pool, child.name, error)
            await child.close(0.0)
            children.discard(child)
            pause = 0.0 if loop.time() - began > _HEALTHY_AFTER else min(2 * pause + 0.1, _MAX_PAUSE)
            await asyncio.sleep(pause)

    def __repr__(self) -> str:
        return f"Processes({self._count})"


_GUARD_HINT = (
    "the main module must start the program only under `if __name__ == '__main__':`, because each process of "
    "Processes() imports it"
)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Child:
    """The near end of one process."""

    def __init__(self, number: int) -> None:
        self.name = f"process {number}"
        self.lost = asyncio.Event()
        self._was_heard = False
        self._process: BaseProcess | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, spec: bytes, setup: Callable[[], object] | None) -> None:
        """Spawn the process, and connect with it."""
        import multiprocessing

        ours, theirs = socket.socketpair()
        try:
            process = multiprocessing.get_context("spawn").Process(
                target=_main, args=(theirs, self.name, setup), name=f"asyncpool {self.name}"
            )
            # It pickles the arguments, and starts an interpreter: milliseconds, in which the loop should run.
            starting = asyncio.get_running_loop().run_in_executor(None, process.start)
            starting.add_done_callback(partial(self._came, process))
            await asyncio.shield(starting)
            ours.setblocking(False)
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # which ends the process, if it comes
            raise
        finally:
            theirs.close()
        self._writer.write(_LENGTH.pack(len(spec)))
        self._writer.write(spec)

    def _came(self, process: BaseProcess, starting: asyncio.Future[None]) -> None:
        if starting.cancelled() or starting.exception() is not None:
            return
        self._process = process
        self.name = f"{self.name} (pid {process.pid})"
        _living.add(process)

    async def put(self, batch: bytes) -> None:
        """Send orders."""
        assert self._writer is not None
        try:
            self._writer.write(_LENGTH.pack(len(batch)))
            self._writer.write(batch)
            await self._writer.drain()
        except OSError as error:
            raise await self._end_of_it() from error

    async def take(self) -> bytes:
        """Wait for news."""
        try:
            news = await _read(self._reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise await self._end_of_it() from error
        self._was_heard = True
        return news

    async def _end_of_it(self) -> Exception:
        # One that never ran anything cannot run anything: starting others like it would not help.
        how = await self._how_it_ended()
        return ProcessLost(how) if self._was_heard else RuntimeError(f"{self.name} could not start: it {how}")

    async def _how_it_ended(self) -> str:
        process = self._process
        assert process is not None
        await asyncio.to_thread(process.join, 1.0)  # it is dead, and the system may not know yet how
        code = process.exitcode
        if code is None:
            return "has closed its connection"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit status {code}" + (f"; its output says why. If not: {_GUARD_HINT}" if code == 1 else "")

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
        if self._writer is not None:
            self._writer.transport.abort()
        self.lost.set()

    async def close(self, grace: float) -> None:
        """Let the process leave its resources, and end it."""
        process = self._process
        if process is None:
            return
        if self._writer is not None and not self.lost.is_set():
            self._writer.write(_LENGTH.pack(0) + _GRACE.pack(grace))
            await asyncio.to_thread(process.join, grace)
        self.kill()
        await asyncio.to_thread(process.join)
        _living.discard(process)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


# -- In the process ----------------------------------------------------------------------------------------------------


def _main(connection: socket.socket, place: str, setup: Callable[[], object] | None) -> None:
    """The main function of a process."""
    # Ctrl+C goes to all processes of a terminal, and systemd sends SIGTERM to all of a service: what they mean is for
    # the program to decide. This process ends with its connection, and so when the program is dead.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_program, name="asyncpool watch", daemon=True).start()
    if setup is not None:
        setup()
    asyncio.run(_serve(connection, f"{place} (pid {os.getpid()})"))


def _end_with_program() -> None:
    """End this process some seconds after its program, also if a handler blocks the event loop."""
    from multiprocessing import parent_process

    program = parent_process()
    assert program is not None
    program.join()
    threading.Event().wait(_ORPHAN_GRACE + 1.0)
    os._exit(1)


async def _serve(connection: socket.socket, place: str) -> None:
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        runner = Runner(await _read(reader), place)
    except (OSError, asyncio.IncompleteReadError):
        return  # the program has ended before it sent anything
    loop = asyncio.get_running_loop()
    forward_records(lambda attributes: loop.call_soon_threadsafe(runner.log, attributes))
    sender = asyncio.create_task(_send(runner, writer))
    await runner.close(await _obey(runner, reader))
    sender.cancel()
    await asyncio.wait([sender])
    writer.close()
    if len(asyncio.all_tasks()) > 1:  # they ignore their cancellation, and asyncio.run would wait for them
        sys.stdout.flush()
        sys.stderr.flush()
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
            batch = await runner.take()
            writer.write(_LENGTH.pack(len(batch)))
            writer.write(batch)
            await writer.drain()
    except OSError:
        pass  # the program is dead, as the reader finds out too
