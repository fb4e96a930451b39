"""Executors of `offload`: what travels between processes, which executor is replaced, and who owns one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from blockbuster import BlockBuster

from asyncpool import Failed, Retry, Succeeded, WorkerPool, offload
from asyncpool.testing import settle
from tests.helpers import virtual

# -- What travels between processes


class TwoArguments(Exception):
    """Pickles, and does not unpickle: `args` has one entry."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class TwoArgumentsWithCause(TwoArguments):
    pass


class ExitsWhenUnpickled(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class IsAnotherWhenUnpickled(Exception):
    def __reduce__(self) -> Any:
        return int, ("5",)


class RaisesWhenPickled(Exception):
    def __reduce__(self) -> Any:
        raise TwoArguments(1, "not to be pickled")


class HasNoText(TwoArguments):
    def __str__(self) -> str:
        raise TwoArguments(1, "no text")

    __repr__ = __str__


class Unloadable:
    def __reduce__(self) -> Any:
        return TwoArguments, ("only one",)


def calculate(job: Any) -> Any:
    if isinstance(job, type) and issubclass(job, TwoArguments):
        raise job(7, "told by the other process")
    if isinstance(job, type) and issubclass(job, Exception):
        raise job("told by the other process")
    if job == "result":
        return Unloadable()
    if job == "lock":
        return threading.Lock()
    if job == "die":
        os._exit(3)
    return job


@pytest.fixture
def processes(loop_is_never_blocked: BlockBuster) -> Iterator[Callable[[], ProcessPoolExecutor]]:
    loop_is_never_blocked.deactivate()  # ProcessPoolExecutor.submit starts a process and writes to a pipe
    yield lambda: ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    gc.collect()  # here: to drop the semaphores of an executor writes to a pipe, too


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_cannot_be_pickled_or_unpickled_fails_its_job_only(processes: Callable[[], ProcessPoolExecutor]) -> None:
    async def main() -> None:
        async with WorkerPool(offload(calculate, executor), workers=2) as pool:
            for job, text in (
                (TwoArguments, "TwoArguments.*unpickling it raised TypeError: .*positional argument"),
                (TwoArgumentsWithCause, "TwoArgumentsWithCause"),
                (ExitsWhenUnpickled, "ExitsWhenUnpickled.*unpickling it raised SystemExit: 3"),
                (RaisesWhenPickled, "RaisesWhenPickled.*pickling it raised .*TwoArguments: not to be pickled"),
                (HasNoText, "HasNoText"),
                ("result", "Unloadable that the call returned cannot be sent to another process: unpickling it raised"),
                ("lock", "lock that the call returned cannot be sent to another process: pickling it raised TypeError"),
                (Unloadable(), "a call of .*calculate.* with its arguments cannot be sent.*: unpickling it raised"),
                (lambda: 1, "with its arguments cannot be sent to another process: pickling it raised"),
            ):
                with pytest.raises(pickle.PickleError, match=text):
                    await pool.run(job)
            with pytest.raises(
                TypeError, match="unpickling the error that the call raised must give an exception, got 5"
            ):
                await pool.run(IsAnotherWhenUnpickled)
            outcome = await (await pool.submit(TwoArguments)).outcome()
            assert isinstance(outcome, Failed)
            assert 'raise job(7, "told by the other process")' in str(outcome.error.__cause__)
            outcome = await (await pool.submit(ValueError)).outcome()
            assert isinstance(outcome, Failed)
            assert type(outcome.error) is ValueError
            assert 'raise job("told by the other process")' in str(outcome.error.__cause__)
            assert await pool.run(1) == 1

    with processes() as executor:
        asyncio.run(main())


class Pickling(Executor):
    """An executor that pickles calls and results, and is not of the standard library."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        call = pickle.loads(pickle.dumps((fn, args, kwargs)))
        future.set_result(pickle.loads(pickle.dumps(call[0](*call[1], **call[2]))))
        return future


class InThisThread(Executor):
    """An executor that pickles nothing."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@virtual
async def test_other_executors_get_calls_and_errors_as_they_are() -> None:
    async with WorkerPool(offload(calculate, Pickling()), workers=1) as pool:
        with pytest.raises(ValueError, match="told by the other process") as caught:
            await pool.run(ValueError)
        # In its cause; or its own, where tblib pickles tracebacks, which Dask installs for all errors of the process.
        where = "".join(traceback.format_exception(caught.value))
        assert 'raise job("told by the other process")' in where
        assert await pool.run(2) == 2
    async with WorkerPool(offload(calculate, InThisThread()), workers=1) as pool:
        with pytest.raises(TwoArguments) as caught_here:
            await pool.run(TwoArguments)
        assert caught_here.value.__cause__ is None
        lock = threading.Lock()
        assert await pool.run(lock) is lock


@virtual
async def test_an_executor_of_interpreters_gets_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a subclass of ThreadPoolExecutor, and pickles what it gets."""

    class InterpreterPoolExecutor(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(pickle.loads(pickle.dumps(fn)), *args, **kwargs)

    module = types.SimpleNamespace(InterpreterPoolExecutor=InterpreterPoolExecutor)
    monkeypatch.setitem(sys.modules, "concurrent.futures.interpreter", module)  # new in Python 3.14
    with InterpreterPoolExecutor(1) as executor:
        async with WorkerPool(offload(calculate, executor), workers=1) as pool:
            assert await pool.run(3) == 3


# -- Executors that break


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_factory_replaces_an_executor_whose_process_died(processes: Callable[[], ProcessPoolExecutor]) -> None:
    made = 0

    def make() -> Executor:
        nonlocal made
        made += 1
        return processes()

    async def main() -> None:
        async with WorkerPool(offload(calculate, make), workers=2) as pool:
            assert made == 0
            assert await pool.run(1) == 1
            with pytest.raises(BrokenExecutor, match=r"the executor of offload.* broke during this call"):
                await pool.run("die")
            assert await pool.run(2) == 2
            assert made == 2

    asyncio.run(main())


class Breakable(ThreadPoolExecutor):
    """Breaks with all that is in it, as one of processes does."""

    def __init__(self) -> None:
        super().__init__(4)
        self.futures: list[Future[Any]] = []
        self.is_broken = False
        self.is_shut_down = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.is_broken:
            raise BrokenExecutor("broken before")
        future: Future[Any] = Future()
        if kwargs or args[0]._args == ("wait",):
            self.futures.append(future)
        else:
            future.set_result(fn(*args, **kwargs))
        return future

    def break_(self) -> None:
        self.is_broken = True
        for future in self.futures:
            future.set_exception(BrokenExecutor("a process died"))

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        self.is_shut_down = True
        super().shutdown(*args, **kwargs)


@virtual
async def test_jobs_that_were_in_a_broken_executor_fail_and_can_be_retried() -> None:
    made: list[Breakable] = []

    def make() -> Breakable:
        made.append(Breakable())
        return made[-1]

    async with WorkerPool(offload(calculate, make), workers=3) as pool:
        handles = [await pool.submit("wait") for _ in range(3)]
        await settle()
        made[0].break_()
        for handle in handles:
            outcome = await handle.outcome()
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, BrokenExecutor)
        assert await pool.run(1) == 1
        assert len(made) == 2
        assert made[0].is_shut_down
        made[1].is_broken = True  # while nothing is in it: the next call notices, and no job fails
        assert await pool.run(2) == 2
        assert len(made) == 3

    def make_next() -> Executor:
        return ThreadPoolExecutor(1) if len(made) > 3 else make()

    async with WorkerPool(offload(calculate, make_next), workers=1, retry=Retry(attempts=2)) as pool:
        handle = await pool.submit("wait")
        await settle()
        made[3].break_()
        outcome = await handle.outcome()
        assert isinstance(outcome, Succeeded)
        assert outcome.attempts == 2


@virtual
async def test_a_broken_executor_of_the_caller_is_not_replaced() -> None:
    executor = Breakable()
    async with WorkerPool(offload(calculate, executor), workers=1) as pool:
        handle = await pool.submit("wait")
        await settle()
        executor.break_()
        with pytest.raises(BrokenExecutor, match="a process died"):
            await handle
        with pytest.raises(BrokenExecutor, match="broken before"):
            await pool.run(1)
    assert not executor.is_shut_down


@virtual
async def test_a_function_that_raises_broken_executor_breaks_nothing() -> None:
    made = 0

    def make() -> Executor:
        nonlocal made
        made += 1
        return ThreadPoolExecutor(1)

    def raises(job: int) -> None:
        raise BrokenExecutor("of another executor")

    async with WorkerPool(offload(raises, make), workers=1) as pool:
        for _ in range(2):
            with pytest.raises(BrokenExecutor, match="of another executor"):
                await pool.run(1)
    assert made == 1


@virtual
async def test_a_factory_that_raises_or_makes_something_else_fails_the_job() -> None:
    answers: list[Any] = [5, ZeroDivisionError(), ThreadPoolExecutor(1)]

    def make() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with WorkerPool(offload(calculate, make), workers=1) as pool:
        with pytest.raises(TypeError, match=r"the factory must return a concurrent.futures.Executor, got 5"):
            await pool.run(1)
        with pytest.raises(ZeroDivisionError):
            await pool.run(1)
        assert await pool.run(1) == 1


# -- Who owns an executor


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("asyncpool offload")]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@virtual
async def test_the_threads_of_a_closed_pool_end_before_the_collector_runs() -> None:
    handlers = []
    for _ in range(5):
        handler = offload(calculate)
        handlers.append(handler)
        async with WorkerPool(handler, workers=3) as pool:
            assert await pool.map(range(6)) == list(range(6))
            left = threads()
        for thread in left:
            thread.join(10)
        assert threads() == []
    async with WorkerPool(handlers[0], workers=1) as pool:
        assert await pool.run(1) == 1


@virtual
async def test_an_executor_lives_as_long_as_the_last_pool_that_uses_it() -> None:
    made: list[Breakable] = []

    def make() -> Breakable:
        made.append(Breakable())
        return made[-1]

    shared = offload(calculate, make)

    async def handler(job: int) -> Any:
        return await shared(job)

    async with WorkerPool(handler, workers=1) as outer:
        async with WorkerPool(shared, workers=1) as inner:
            assert await inner.run(1) == 1
            assert await outer.run(2) == 2
        async with WorkerPool(shared, workers=1):
            pass  # it does not use it
        assert not made[0].is_shut_down
        assert await outer.run(3) == 3
    assert made[0].is_shut_down
    assert await shared(4) == 4  # without a pool
    assert len(made) == 2
    assert not made[1].is_shut_down


@pytest.mark.usefixtures("no_collector")
@virtual
async def test_an_executor_that_a_job_makes_ends_with_it_and_not_with_the_pool() -> None:
    seen: list[weakref.ref[Any]] = []

    async def handler(job: int) -> Any:
        calculation = offload(calculate)
        seen.append(weakref.ref(calculation._executor))
        return await calculation(job)

    async with WorkerPool(handler, workers=2) as pool:
        assert await pool.map(range(5)) == list(range(5))
        await settle()
        assert [ref() for ref in seen] == [None] * 5


@pytest.mark.timeout(30)
def test_a_pool_that_closes_does_not_wait_for_a_call_that_is_stuck() -> None:
    opened = threading.Event()

    async def main() -> None:
        async with WorkerPool(offload(lambda job: opened.wait(20)), workers=1) as pool:
            await pool.submit(1)
            await asyncio.sleep(0.05)
            report = await pool.close(drain_timeout=0, grace=0)
            assert len(report.abandoned) == 1
        opened.set()

    asyncio.run(main())


@virtual
async def test_an_executor_whose_shutdown_raises_lets_its_pool_close(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Breakable):
        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    async with WorkerPool(offload(calculate, Broken), workers=1) as pool:
        assert await pool.run(1) == 1
    assert pool.state == "closed"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "shutting down" in caplog.text


class Job:
    """What can be seen to be collected."""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["raises", "breaks", "times out"])
@pytest.mark.timeout(30)
def test_a_failed_call_keeps_nothing_alive(how: str) -> None:
    class Ends(InThisThread):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if how == "breaks":
                future.set_exception(BrokenExecutor())
            return super().submit(fn, *args, **kwargs) if how == "raises" else future

    def fails(job: Job) -> None:
        raise ValueError(7)

    async def main() -> None:
        async with WorkerPool(offload(fails, Ends), workers=1, timeout=0.01) as pool:
            job = Job()
            seen = weakref.ref(job)
            handle = await pool.submit(job)
            outcome = await handle.outcome()
            assert isinstance(outcome, Failed)
            error = outcome.error
            del job, handle, outcome
            await asyncio.sleep(0)
            assert seen() is None
            assert error.__traceback__ is not None

    asyncio.run(main())


IN_A_CHILD = """
import asyncio, os, signal, sys, warnings
from asyncpool import WorkerPool, offload

warnings.simplefilter("ignore")  # of 3.12: threads and fork
double = offload(lambda job: job * 2)

async def used():
    assert await double(1) == 2  # without a pool, so the threads stay
    await asyncio.sleep(0.1)  # the thread is idle now

async def in_pool():
    async with WorkerPool(double, workers=1) as pool:
        assert await pool.map(range(4)) == [0, 2, 4, 6]

asyncio.run(used())
child = os.fork()
if not child:
    signal.alarm(20)  # a hang ends here
    asyncio.run(in_pool())
    os._exit(0)
_, status = os.waitpid(child, 0)
asyncio.run(in_pool())
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(60)
def test_a_fork_makes_an_executor_of_its_own() -> None:
    import subprocess

    ended = subprocess.run([sys.executable, "-c", IN_A_CHILD], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("0\n", 0), ended.stderr


def test_the_names_of_the_standard_library_are_right() -> None:
    """They are looked up by name: an import would be slow."""
    assert sys.modules["concurrent.futures.process"].ProcessPoolExecutor is ProcessPoolExecutor
    if sys.version_info >= (3, 14):
        from concurrent.futures import InterpreterPoolExecutor  # type: ignore[attr-defined,unused-ignore]

        assert concurrent.futures.interpreter.InterpreterPoolExecutor is InterpreterPoolExecutor  # type: ignore[attr-defined,unused-ignore]
