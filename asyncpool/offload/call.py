"""`offload`: turns a synchronous function into a handler that runs it in threads or processes.

It wraps the handler and is not another kind of pool, so all guarantees of the pool hold unchanged. The life of the
executor is `executors.py`; what travels between processes is `envelope.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar, cast

import anyio

from asyncpool._checks import is_async_function
from asyncpool._guard import describe, is_error, name_of, set_cause, traceback_of
from asyncpool.offload.envelope import Envelope, Undelivered
from asyncpool.offload.executors import OffloadExecutor, runs_here, runs_in_processes

__all__ = ["Offloaded", "offload"]

P = ParamSpec("P")
ValueT = TypeVar("ValueT")


def _threads() -> Executor:
    # It has as many threads as calls ever ran at the same time, which the pool bounds.
    return ThreadPoolExecutor(1 << 30, "asyncpool offload")


class Offloaded(Generic[P, ValueT]):
    """An async function that runs a synchronous one on an executor. Created by `offload`."""

    def __init__(self, fn: Callable[P, ValueT], executor: Executor | Callable[[], Executor] | None) -> None:
        self._fn = fn
        self._executor = OffloadExecutor(_threads if executor is None else executor)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ValueT:
        """Run the function on the executor, wait for it, and return what it returns or raise what it raises.

        A call that runs in a thread or process cannot be stopped. Cancelled before the executor has begun the call,
        this drops it and raises `CancelledError`. Cancelled later, it waits until the call has ended, and returns its
        value. So a job that was cancelled or timed out holds its worker as long as its call runs (after five seconds
        it counts in `stats.stuck`), and never more calls run at the same time than the pool has workers.

        Raises:
            BrokenExecutor: The executor broke while the call was in it, for example because a process died.
            PickleError: Arguments, value or error could not be sent from one process to the other.
        """
        catcher = _Catcher(self._executor)
        # Goes through the loop only because a loop with virtual time must know that a thread is running.
        future = asyncio.get_running_loop().run_in_executor(catcher, _Call(self._fn, args, kwargs))
        is_cancelled = False
        try:
            while not future.done():
                try:
                    # Shielded after the first cancellation: a cancelled anyio scope cancels in each loop iteration.
                    with anyio.CancelScope(shield=is_cancelled):
                        await asyncio.wait([future])
                except asyncio.CancelledError:
                    if catcher.future is None or catcher.future.cancel():
                        raise
                    is_cancelled = True
            result: _Result = future.result()
        except BrokenExecutor as error:  # of the executor: what the function raises is in a result
            if not self._executor.is_replaced:
                raise
            self._executor.discard(catcher.executor)
            raise BrokenExecutor(
                f"the executor of offload({describe(self._fn)}) broke during this call, which may have run. The "
                "executor is replaced, so later calls can run, and this one too if it is retried"
            ) from error
        finally:
            # An error knows this frame: with its future in it, it would be a cycle that keeps the job alive
            # (test_a_failed_call_keeps_nothing_alive).
            del future, catcher, args, kwargs
        return cast("ValueT", result.unwrap())

    def __reduce__(self) -> tuple[Any, ...]:
        # By what it is made from: in each process that a pool's engine sends it to, it has an executor of its own.
        return Offloaded, (self._fn, self._executor.factory)

    def __repr__(self) -> str:
        return f"offload({describe(self._fn)})"


class _Call:
    """A call to make in a thread or process. A class and not a closure, so that it can be pickled."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._fn = fn
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> _Result:
        """Make it, once. Never raises, so that what the executor raises is its own failure."""
        # The frames of the executor keep this object as long as an error of the call is kept.
        args, self._args = self._args, ()
        kwargs, self._kwargs = self._kwargs, {}
        try:
            return _Result(self._fn(*args, **kwargs))
        except BaseException as error:
            return _Result(None, error)
        finally:
            del args, kwargs

    @property
    def name(self) -> str:
        """What it is, for errors."""
        return f"a call of {describe(self._fn)} with its arguments"


class _Result:
    """How a call ended, with a value or an error."""

    __slots__ = ("_error", "_remote_traceback", "_value")

    def __init__(self, value: object, error: object = None, remote_traceback: str = "") -> None:
        self._value = value
        self._error = error
        self._remote_traceback = remote_traceback

    def __reduce__(self) -> tuple[Any, ...]:
        # Called in the other process; a traceback cannot be pickled.
        return _Result, (self._value, self._error, self._remote_traceback or self._traceback_text())

    def _traceback_text(self) -> str:
        if self._error is None:
            return ""
        try:
            return "".join(traceback.format_exception(cast("BaseException", self._error)))
        except Exception as broken:  # it asks the errors for their texts
            return f"formatting the traceback of {describe(self._error)} raised {name_of(type(broken))}"

    def in_envelopes(self) -> _Result:
        """Return a result to pickle that arrives even if the value or the error does not."""
        if self._error is None:
            return _Result(Envelope(self._value, f"the {name_of(type(self._value))} that the call returned"))
        name = f"the error that the call raised, {name_of(type(self._error))}: {describe(self._error)},"
        return _Result(None, Envelope(self._error, name), self._traceback_text())

    def unwrap(self) -> Any:
        """Return the value or raise the error."""
        error, self._error = self._error, None  # it knows this frame
        try:
            if error is None:
                if isinstance(self._value, Undelivered):
                    raise self._value.as_error()
                return self._value
            if isinstance(error, Undelivered):
                error = error.as_error()
            elif not is_error(error, BaseException):
                raise TypeError(
                    f"unpickling the error that the call raised must give an exception, got {describe(error)}"
                )
            if self._remote_traceback and traceback_of(error) is None:
                set_cause(error, _RemoteTraceback(self._remote_traceback))
            if is_error(error, StopIteration):  # a coroutine does the same (PEP 479)
                raise RuntimeError("the offloaded function raised StopIteration") from error
            raise error
        finally:
            del error


class _RemoteTraceback(Exception):
    """The cause of an error that came from another process: its text has the traceback there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _call_in_process(call: _Call | Undelivered) -> _Result:
    result = _Result(None, call.as_error()) if isinstance(call, Undelivered) else call()
    return result.in_envelopes()


class _Catcher(Executor):
    """An executor that forwards to another and keeps its future, which is needed to find out whether a call began."""

    executor: Executor

    def __init__(self, executor: OffloadExecutor) -> None:
        self._executor = executor
        self.future: Future[Any] | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.executor, self.future = self._executor.submit(lambda executor: _submit(executor, cast("_Call", fn)))
        return self.future


def _submit(executor: Executor, call: _Call) -> Future[Any]:
    if runs_here(executor):
        return executor.submit(contextvars.copy_context().run, call)
    if runs_in_processes(executor):
        return executor.submit(_call_in_process, cast("_Call", Envelope(call, call.name)))
    return executor.submit(call)


def offload(fn: Callable[P, ValueT], executor: Executor | Callable[[], Executor] | None = None) -> Offloaded[P, ValueT]:
    """Return an async handler that runs a synchronous function: for work that keeps the CPU busy, or blocks.

    Args:
        fn: Called with the handler's arguments. In a thread it runs in the job's context, so that `current_job()`
            works there. For an executor of processes, function and arguments must be picklable.
        executor: Any `concurrent.futures.Executor`; the caller shuts it down. Or a function without arguments that
            makes one, such as `lambda: ProcessPoolExecutor(4)`: it is called at the first call, and again after the
            executor broke (a process died). The jobs that were in the broken one fail with `BrokenExecutor`, which a
            `Retry` retries; later ones run in the new one. None: threads, as many as the pool has workers.

    An executor that is made here is shared by all pools with a job that calls it. It is shut down when the last of them
    closes, without waiting for calls that still run, and made again for the next call. After a fork, the child makes
    its own.

    Raises:
        TypeError: `fn` is not callable, or is an async function already; `executor` is neither an Executor nor a
            function.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {describe(fn)}")
    if is_async_function(fn):
        raise TypeError(
            f"fn must be a synchronous function, got the async function {describe(fn)}: pass it to the pool as is"
        )
    if executor is not None and not isinstance(cast("object", executor), Executor) and not callable(executor):
        raise TypeError(
            f"executor must be a concurrent.futures.Executor, or a function that makes one, got {describe(executor)}"
        )
    return Offloaded(fn, executor)
