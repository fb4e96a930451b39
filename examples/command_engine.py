"""An engine of your own: it starts commands, such as `ssh`, and talks to them by their standard input and output.

    python -m examples.command_engine

An engine starts processes and adds each to the pool. In each process, a `Runner` takes and returns batches of bytes,
which the engine transports. Here the commands run this module on this machine, with the argument `process`. The
docstrings of `asyncpool.engines` describe the contract.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import BinaryIO

from asyncpool import ProcessLost, WorkerPool
from asyncpool.engines import EngineHost
from asyncpool.runner import Runner
from examples.basic_pool import square

# -- In the program ----------------------------------------------------------------------------------------------------


class Remote:
    """A process, as the pool sees it. `put` and `take` raise `ProcessLost` when it is gone."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.name = f"process {process.pid}"
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    async def put(self, batch: bytes) -> None:
        """Send a batch. Waits while the process accepts no more data: this is the back-pressure."""
        try:
            self.stdin.write(framed(batch))
            await self.stdin.drain()
        except OSError as error:
            raise ProcessLost("it accepts no more data") from error

    async def take(self) -> bytes:
        """Wait for a batch of the process."""
        try:
            return await read(self.stdout)
        except asyncio.IncompleteReadError as error:
            status = await self.process.wait()
            raise ProcessLost(f"it ended with status {status}") from error

    def kill(self) -> None:
        """End the process, without waiting for that."""
        if self.process.returncode is None:
            self.process.kill()


class Commands:
    """An engine with one process for each command."""

    shares_main = False  # the main module of a command is not that of the program

    def __init__(self, *commands: list[str]) -> None:
        self.commands = commands

    async def run(self, host: EngineHost) -> None:
        """Provide processes until the pool needs none, and return when they have ended."""
        host.expect(len(self.commands))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.keep(command, host)) for command in self.commands]
            await host.closing()
            for task in tasks:
                task.cancel()

    async def keep(self, command: list[str], host: EngineHost) -> None:
        """Run a command, and run it again when it ends."""
        while True:
            remote = Remote(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE))
            try:
                await remote.put(host.spec)
                host.join(remote)
                await remote.process.wait()
                await asyncio.sleep(0.1)
            finally:
                remote.stdin.close()  # then the process closes its runner
                try:
                    async with asyncio.timeout(host.grace):
                        await remote.process.wait()
                except TimeoutError:
                    pass
                finally:
                    remote.kill()


# -- In each process ---------------------------------------------------------------------------------------------------


async def serve(output: BinaryIO) -> None:
    """Run the attempts that arrive on standard input, until that is closed."""
    orders = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(orders)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    runner = Runner(await read(orders), f"process {os.getpid()}")
    sender = asyncio.create_task(send(runner, output))
    try:
        while True:
            runner.put(await read(orders))
    except asyncio.IncompleteReadError:  # the program has closed the connection
        await runner.close(grace=5.0)
        await sender


async def send(runner: Runner, output: BinaryIO) -> None:
    """Send what the runner returns."""
    while not runner.is_closed:
        output.write(framed(await runner.take()))
        output.flush()


# -- Between them ------------------------------------------------------------------------------------------------------


def framed(batch: bytes) -> bytes:
    """Return a batch with its length before it."""
    return len(batch).to_bytes(8) + batch


async def read(stream: asyncio.StreamReader) -> bytes:
    """Read a framed batch."""
    return await stream.readexactly(int.from_bytes(await stream.readexactly(8)))


async def main() -> None:
    """Run jobs on two processes."""
    command = [sys.executable, "-m", "examples.command_engine", "process"]  # or ["ssh", "host", ...]
    async with WorkerPool(square, workers=8, engine=Commands(command, command)) as pool:
        async for outcome in pool.outcomes(range(1, 21)):
            print(outcome.unwrap())
    print(f"{pool.stats.succeeded} jobs on 2 processes")


if __name__ == "__main__":
    if sys.argv[1:] == ["process"]:
        results = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what handlers print goes to stderr
        asyncio.run(serve(results))
    else:
        asyncio.run(main())
