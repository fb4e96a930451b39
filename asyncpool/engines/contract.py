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
        """Its name in logs and errors: "process 1 (pid 4711)"."""
        ...

    async def put(self, batch: bytes) -> None:
        """Pass a batch to `Runner.put` in the process, in the order of the calls. Waits while it accepts no more.

        Raises:
            ProcessLost: It is gone, or cannot be reached.
            Exception: Neither this process nor others like it can run attempts. This fails the start of the pool.
        """
        ...

    async def take(self) -> bytes:
        """Return what the next `Runner.take()` returns in the process.

        Raises:
            ProcessLost: It is gone, or cannot be reached.
        """
        ...

    def kill(self) -> None:
        """End what the pool runs in the process, if it can be reached: the pool has lost it. Must not block."""
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
        """Announce how many processes there should be now, if the pool has that many workers; some can still be
        starting. Each gets its share of the workers.
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

        It runs in a task of the pool, which is cancelled when no caller waits any longer: then it must end what it
        started at once. If it raises or returns earlier, the engine is lost, which cancels the pool.
        """
        ...


@runtime_checkable
class ContextCarrier(Protocol):
    """A handler that sends part of the job's context to its process. Other context variables do not travel."""

    def carry(self) -> bytes | None:
        """Return what to send. Called in the program, in the context of the job, before each attempt."""
        ...

    async def call_with(self, carried: bytes, /, *args: Any) -> Any:
        """Call the handler with what was sent. Called in the process, instead of the handler, if `carry` sent it."""
        ...
