"""The executor of one `offload`: made when it is needed, shut down when the last pool that used it closes.

Which calls go to it is `call.py`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, cast
from weakref import WeakSet

from asyncpool._core.job import CURRENT_JOB
from asyncpool._core.state import Phase, State
from asyncpool._guard import describe
from asyncpool._logs import log

__all__ = ["OffloadExecutor", "runs_here", "runs_in_processes"]


def runs_here(executor: Executor) -> bool:
    """Whether its calls run in threads of this interpreter, so that they can have the context of their job."""
    return isinstance(executor, ThreadPoolExecutor) and not _is_a(executor, "interpreter", "InterpreterPoolExecutor")


def runs_in_processes(executor: Executor) -> bool:
    """Whether it pickles calls and results as the standard library's executor of processes does."""
    return _is_a(executor, "process", "ProcessPoolExecutor")


def _is_a(executor: Executor, module: str, name: str) -> bool:
    # Where the module is not imported, nothing is an instance of its class; importing it is slow.
    kind = getattr(sys.modules.get(f"concurrent.futures.{module}"), name, None)
    return kind is not None and isinstance(executor, kind)


class OffloadExecutor:
    """An executor that belongs to the caller of `offload`, or one that is made here and belongs to the pools.

    Of the second kind, a broken one is replaced. Pools of several event loops, and so of several threads, can use it.
    """

    def __init__(self, given: Executor | Callable[[], Executor]) -> None:
        self._factory = None if isinstance(given, Executor) else given
        self._executor = given if isinstance(given, Executor) else None
        self._users: WeakSet[State] = WeakSet()  # open pools with a job that has called it
        # For submitting too: an executor that another thread has just shut down takes no calls. An RLock, because the
        # factory is code of the user.
        self._lock = threading.RLock()
        _all.add(self)

    @property
    def is_replaced(self) -> bool:
        """Whether a broken executor is replaced."""
        return self._factory is not None

    @property
    def factory(self) -> Callable[[], Executor]:
        """What makes the executor. Raises TypeError if the caller has made it, which cannot be sent elsewhere."""
        if self._factory is None:
            raise TypeError(
                f"the executor of an offload(...) cannot be sent to another process, got {describe(self._executor)}: "
                "pass a function that makes the executor"
            )
        return self._factory

    def submit(self, call: Callable[[Executor], Future[Any]]) -> tuple[Executor, Future[Any]]:
        """Let `call` submit to the executor, which is made if there is none. Raises what the factory raises."""
        with self._lock:
            executor = self._used()
            try:
                return executor, call(executor)
            except BrokenExecutor:
                if self._factory is None:
                    raise
            self.discard(executor)  # it broke while nobody waited for it
            executor = self._used()
            return executor, call(executor)

    def discard(self, executor: Executor) -> None:
        """Make a new one for the next call: this one is broken."""
        with self._lock:
            if self._factory is None or self._executor is not executor:
                return
            self._executor = None
        _shut_down(executor)

    def _used(self) -> Executor:
        """Return the executor, which the pool whose job calls it uses from now on."""
        if self._factory is None:
            assert self._executor is not None
            return self._executor
        if self._executor is None:
            executor = self._factory()
            if not isinstance(cast("object", executor), Executor):
                raise TypeError(f"the factory must return a concurrent.futures.Executor, got {describe(executor)}")
            self._executor = executor
        job = CURRENT_JOB.get(None)
        pool = None if job is None or job.worker is None else job.worker.pool
        if pool is not None and pool.phase is not Phase.CLOSED and pool not in self._users:
            self._users.add(pool)
            pool.users.add(self)
        return self._executor

    def pool_closed(self, pool: State, /) -> None:
        """Shut the executor down if no other open pool uses it."""
        with self._lock:
            self._users.discard(pool)
            if self._users or self._executor is None:
                return
            executor, self._executor = self._executor, None
        _shut_down(executor)

    def forget_parent(self) -> None:
        """Drop what belongs to the process that this one was forked from: its threads and processes are not here."""
        self._lock = threading.RLock()  # another thread may have held it
        if self._factory is not None and self._executor is not None:
            _of_parent.append(self._executor)
            self._executor = None
            self._users = WeakSet()


def _shut_down(executor: Executor) -> None:
    """Let an executor end once its calls have, without waiting for them: one may be stuck."""
    try:
        executor.shutdown(wait=False)
    except Exception as error:
        log.error("shutting down %s raised", describe(executor), exc_info=error)


_all: WeakSet[OffloadExecutor] = WeakSet()
# Kept, because dropping an executor locks its locks and writes to its pipes, and the parent may have held those.
_of_parent: list[Executor] = []


def _forget_parent() -> None:
    for executor in list(_all):
        executor.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
