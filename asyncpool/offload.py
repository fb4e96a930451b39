"""`offload`: makes a handler of a synchronous function, which runs in threads or processes.

Where a job runs is a wrapper around its handler, and not a kind of pool: all that the pool promises holds as it is.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar, cast

import anyio

__all__ = ["Offloaded", "offload"]

P = ParamSpec("P")
ValueT = TypeVar("ValueT")


class Offloaded(Generic[P, ValueT]):
    """An async function that runs a synchronous one on an executor. Made by `offload`."""

    def __init__(self, fn: Callable[P, ValueT], executor: Executor | None) -> None:
        self._fn = fn
        # As many threads as ever run at the same time, which the pool bounds; they end with this object.
        self._executor = ThreadPoolExecutor(1 << 30, "asyncpool offload") if executor is None else executor
        self._keeps_context = isinstance(self._executor, ThreadPoolExecutor)  # a context cannot leave the process

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ValueT:
        """Run the function on the executor and return what it returns, or raise what it raises.

        Neither a thread nor a process can be told to stop. Cancelled before an executor has begun it, the call is
        dropped; cancelled later, this waits on until the call has ended, and returns its value. So a job that was
        cancelled, or timed out, holds its worker as long as its call runs (`stats.stuck` shows it after a while), and
        never more calls run at the same time than the pool has workers.
        """
        call: Callable[[], ValueT] = _Call(self._fn, args, kwargs)
        if self._keeps_context:
            context = contextvars.copy_context()
            call = _Call(context.run, (call,), {})
        catcher = _Catcher(self._executor)
        # Through the loop, though it adds nothing: a loop that keeps virtual time must know that a thread is at work.
        future = asyncio.get_running_loop().run_in_executor(catcher, call)
        is_cancelled = False
        while not future.done():
            try:
                # Shielded once it was cancelled: a cancelled anyio scope cancels again at each turn of the loop.
                with anyio.CancelScope(shield=is_cancelled):
                    await asyncio.wait([future])
            except asyncio.CancelledError:
                if catcher.future is None or catcher.future.cancel():
                    raise
                is_cancelled = True
        return future.result()

    def __repr__(self) -> str:
        return f"offload({self._fn!r})"


class _Call:
    """A call to make elsewhere. A class and not a closure, so that it can be pickled for another process."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        try:
            return self._fn(*self._args, **self._kwargs)
        except StopIteration as error:  # a future cannot carry it; the same answer as a coroutine's (PEP 479)
            raise RuntimeError("the offloaded function raised StopIteration") from error


class _Catcher(Executor):
    """An executor in front of another that catches the future: only that one can tell whether a call has begun."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.future: Future[Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.future = self._executor.submit(fn, *args, **kwargs)
        return self.future


def offload(fn: Callable[P, ValueT], executor: Executor | None = None) -> Offloaded[P, ValueT]:
    """Make an async handler of a synchronous function: for work that keeps the CPU busy, or blocks.

    Args:
        fn: Called with the handler's arguments. In a thread it runs in the job's context, so that `current_job()`
            works there. For an executor of processes, function and arguments must be picklable.
        executor: Any `concurrent.futures.Executor`, which stays the caller's to shut down. None: threads, as many as
            the pool has workers.

    Raises:
        TypeError: `fn` is not callable, or is an async function already; `executor` is not an Executor.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {fn!r}")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{fn!r} is an async function: give it to the pool as it is")
    if executor is not None and not isinstance(cast("object", executor), Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {executor!r}")
    return Offloaded(fn, executor)
