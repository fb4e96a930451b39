"""The contract between a pool and an engine: an engine provides processes, and in each runs one `Runner`.

The near side, in the pool, is `_core/remote/`; the far side, in each process, is `runner.py`.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

__all__ = ["ContextCarrier", "Engine", "EngineHost", "Process"]


class Process(Protocol):
    """The near end of one process. The pool calls `put` and `take` in one task each, so each has one caller at a time.

    A process that is lost does not come back: what replaces it is another object.
    """

    @property
    def name(self) -> str:
        """What it is called in logs and errors: "process 1 (pid 4711)"."""
        ...

    async def put(self, batch: bytes) -> None:
        """Have `Runner.put(batch)` called there, in the order of the calls. Waits while the process takes no more.

        Raises:
            ProcessLost: It is gone, or cannot be reached.
            Exception: It cannot run anything, and others like it cannot either, which fails the start of the pool.
        """
        ...

    async def take(self) -> bytes:
        """Return what the next `Runner.take()` returns there.

        Raises:
            ProcessLost: It is gone, or cannot be reached.
        """
        ...

    def kill(self) -> None:
        """End what the pool runs there, as far as it can be reached: the pool has lost the process. Must not block."""
        ...


class EngineHost(Protocol):
    """What an engine knows of the pool that it serves."""

    @property
    def pool(self) -> str:
        """The name of the pool."""
        ...

    @property
    def spec(self) -> bytes:
        """What a `Runner` is made from."""
        ...

    @property
    def workers(self) -> int:
        """How many attempts can run at the same time now, in all processes. More processes would be idle."""
        ...

    @property
    def backlog(self) -> int:
        """How many jobs wait for a worker."""
        ...

    @property
    def grace(self) -> float:
        """How many seconds are left, once the pool is closing, for processes to leave their resources and to end."""
        ...

    def expect(self, processes: int) -> None:
        """Say how many processes there should be now, if the pool has that many workers; some may still start. Each
        gets its share of the workers.
        """
        ...

    def join(self, process: Process) -> None:
        """Add a process that runs a `Runner` with this `spec`. The pool uses it until `put` or `take` raises."""
        ...

    async def workers_above(self, count: int) -> None:
        """Wait until `workers` is above `count`. Cancel-safe."""
        ...

    async def closing(self) -> None:
        """Wait until the pool needs no processes any more: every attempt has ended, or will not be waited for.
        Cancel-safe.
        """
        ...


class Engine(Protocol):
    """Provides processes for pools. One engine can serve several pools, at the same time too."""

    @property
    def shares_main(self) -> bool:
        """Whether the program's main module is imported in its processes too, so that what is defined there travels by
        its name.
        """
        ...

    async def run(self, host: EngineHost, /) -> None:
        """Provide processes for one pool: call `host.join` with each, replace those that are lost, and return when
        `host.closing()` is over and what was started is ended, which can take `host.grace` seconds.

        It runs in a task of the pool, which is cancelled when nobody waits any longer: then it must end what it started
        at once. If it raises or returns earlier, the engine is lost, which cancels the pool.
        """
        ...


@runtime_checkable
class ContextCarrier(Protocol):
    """A handler that takes something of the job's context along to its process. Context variables stay behind."""

    def carry(self) -> bytes | None:
        """Return what is to be taken along. Called here, in the context of the job, before each attempt."""
        ...

    async def call_with(self, carried: bytes, /, *args: Any) -> Any:
        """Do what calling the handler does, with what was taken along. Called in the process, if there was anything."""
        ...
