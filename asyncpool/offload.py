"""`offload`: turns a synchronous function into a handler that runs it in threads or processes.

It wraps the handler and is not another kind of pool, so all guarantees of the pool hold unchanged.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar, cast

import anyio

from asyncpool._checks import is_async_function
from asyncpool._guard import describe

__all__ = ["Offloaded", "offload"]

P = ParamSpec("P")
ValueT = TypeVar("ValueT")


class Offloaded(Generic[P, ValueT]):
    """An async function that runs a synchronous one on an executor. Created by `offload`."""

    def __init__(self, fn: Callable[P, ValueT], executor: Executor | None) -> None:
        self._fn = fn
        # It has as many threads as calls ever ran at the same time, which the pool bounds; they end with this object.
        self._executor = ThreadPoolExecutor(1 << 30, "asyncpool offload") if executor is None else executor
        # A context cannot be sent to another process.
        self._keeps_context = isinstance(self._executor, ThreadPoolExecutor)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ValueT:
        """Run the function on the executor, wait for it, and return what it returns or raise what it raises.

        A call that runs in a thread or process cannot be stopped. Cancelled before the executor has begun the call,
        this drops it and raises `CancelledError`. Cancelled later, it waits until the call has ended, and returns its
        value. So a job that was cancelled or timed out holds its worker as long as its call runs (after five seconds
        it counts in `stats.stuck`), and never more calls run at the same time than the pool has workers.
        """
        call: Callable[[], ValueT] = _Call(self._fn, args, kwargs)
        if self._keeps_context:
            context = contextvars.copy_context()
            call = _Call(context.run, (call,), {})
        catcher = _Catcher(self._executor)
        # Goes through the loop only because a loop with virtual time must know that a thread is running.
        future = asyncio.get_running_loop().run_in_executor(catcher, call)
        is_cancelled = False
        while not future.done():
            try:
                # Shielded after the first cancellation: a cancelled anyio scope cancels again in each loop iteration.
                with anyio.CancelScope(shield=is_cancelled):
                    await asyncio.wait([future])
            except asyncio.CancelledError:
                if catcher.future is None or catcher.future.cancel():
                    raise
                is_cancelled = True
        return future.result()

    def __repr__(self) -> str:
        return f"offload({describe(self._fn)})"


class _Call:
    """A call to make in a thread or process. A class and not a closure, so that it can be pickled."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> Any:
        try:
            return self._fn(*self._args, **self._kwargs)
        except StopIteration as error:  # a future cannot carry it; a coroutine does the same (PEP 479)
            raise RuntimeError("the offloaded function raised StopIteration") from error


class _Catcher(Executor):
    """An executor that forwards to another and keeps its future, which is needed to find out whether a call began."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.future: Future[Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.future = self._executor.submit(fn, *args, **kwargs)
        return self.future


def offload(fn: Callable[P, ValueT], executor: Executor | None = None) -> Offloaded[P, ValueT]:
    """Return an async handler that runs a synchronous function: for work that keeps the CPU busy, or blocks.

    Args:
        fn: Called with the handler's arguments. In a thread it runs in the job's context, so that `current_job()`
            works there. For an executor of processes, function and arguments must be picklable.
        executor: Any `concurrent.futures.Executor`; the caller shuts it down. None: threads, as many as the pool has
            workers.

    Raises:
        TypeError: `fn` is not callable, or is an async function already; `executor` is not an Executor.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {describe(fn)}")
    if is_async_function(fn):
        raise TypeError(
            f"fn must be a synchronous function, got the async function {describe(fn)}: pass it to the pool as is"
        )
    if executor is not None and not isinstance(cast("object", executor), Executor):
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {describe(executor)}")
    return Offloaded(fn, executor)
