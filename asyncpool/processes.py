"""`Processes`: an engine that runs attempts on all cores of this machine, with nothing but the standard library.

What a process is, and how it is started and ended, is `_children.py`, which is imported when the first pool needs it:
`multiprocessing` takes as long to import as asyncpool.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncpool._checks import check_count, check_function
from asyncpool._guard import describe, name_of, safe_text
from asyncpool._logs import log
from asyncpool.engines.contract import EngineHost
from asyncpool.engines.wire import dumps

if TYPE_CHECKING:
    from asyncpool._children import Child

__all__ = ["Processes"]

_HEALTHY_AFTER = 10.0  # seconds: a process that lived longer is replaced at once
_MAX_PAUSE = 5.0  # seconds, before one that did not is


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
            Must be picklable. If it raises, the process is not used.

    Raises:
        TypeError: `count` is not an int; `setup` is not callable, is an async function, or cannot be sent to other
            processes.
        ValueError: `count` is below 1.
        RuntimeError: The program is read from stdin: its main module cannot be imported.
    """

    def __init__(self, count: int | None = None, *, setup: Callable[[], object] | None = None) -> None:
        if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":
            raise RuntimeError(
                "Processes() cannot start processes for a program that is read from <stdin>, because each of them "
                "imports the main module: save the program in a file"
            )
        self._count = _cpus() if count is None else check_count("count", count, least=1)
        self._setup: bytes | None = None
        if setup is not None:
            check_function("setup", setup)
            try:
                self._setup = dumps(setup, shares_main=self.shares_main)
            except Exception as error:
                raise TypeError(
                    f"setup must be picklable, because it is sent to other processes, got {describe(setup)}: "
                    f"pickling it raised {name_of(type(error))}: {safe_text(str, error, 500)}"
                ) from error

    @property
    def shares_main(self) -> bool:
        """Whether the processes import the main module: not that of a notebook or an interactive session."""
        return getattr(sys.modules["__main__"], "__file__", None) is not None

    async def run(self, host: EngineHost, /) -> None:
        """Provide processes for one pool: called by the pool."""
        from asyncpool._children import check_can_spawn

        check_can_spawn()
        host.expect(self._count)
        children: set[Child] = set()
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

    async def _keep(self, number: int, host: EngineHost, children: set[Child]) -> None:
        """Keep one process, as soon as the pool has a worker for it. Replace it when it dies, later each time."""
        from asyncpool._children import Child

        await host.workers_above(number - 1)
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            child = Child(number)
            children.add(child)
            began = loop.time()
            try:
                await child.start(host.spec, self._setup)
                host.join(child)
                await child.wait_lost()
            except (OSError, RuntimeError) as error:  # no memory, no descriptors; no thread
                log.warning("pool %r: %s could not be started: %s", host.pool, child.name, error)
            await child.close(0.0)
            children.discard(child)
            pause = 0.0 if loop.time() - began > _HEALTHY_AFTER else min(2 * pause + 0.1, _MAX_PAUSE)
            await asyncio.sleep(pause)

    def __repr__(self) -> str:
        return f"Processes({self._count})"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
