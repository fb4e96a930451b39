"""`Processes`, with real processes: what travels, what is cancelled, what dies."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import re
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asyncpool import (
    Cancelled,
    DeadLetters,
    EngineLost,
    Failed,
    JobCrashed,
    JobExpired,
    JobTimeout,
    PoolClosed,
    ProcessDied,
    Processes,
    ProcessLost,
    RemoteError,
    Resource,
    Retry,
    Succeeded,
    WorkerPool,
    offload,
)
from asyncpool.engines import wire
from tests.engines import handlers
from tests.engines.handlers import Connections, Doubler, Noted, Notes, Stubborn
from tests.laws.budget import IS_LONG

LONGEST = 1200 if IS_LONG else 120  # seconds, for a test that hangs


def real(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a loop of its own. No process, thread or task may be left."""

    @wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(LONGEST):
                await test(*args, **kwargs)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())
        nothing_is_left()

    return call


def nothing_is_left() -> None:
    """Wait until all processes that must end have ended."""
    for process in multiprocessing.active_children():
        process.join(LONGEST)
        assert not process.is_alive()
    for thread in threading.enumerate():
        if "asyncpool" in thread.name:
            thread.join(LONGEST)
            assert not thread.is_alive()


def pid_of(name: str) -> int:
    found = re.search(r"pid (\d+)", name)
    assert found is not None, name
    return int(found[1])


def pids(pool: WorkerPool[Any, Any]) -> list[int]:
    return [pid_of(process.name) for process in pool.processes()]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.txt")


@pytest.fixture
def no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "find_cloudpickle", lambda: None)


# -- Handlers ----------------------------------------------------------------------------------------------------------


def kinds_of_handlers() -> dict[str, Callable[[int], Any]]:
    factor = 2

    async def closure(n: int) -> int:
        return factor * n

    return {
        "a function of a module": handlers.double,
        "a bound method": Doubler().method,
        "a partial": partial(handlers.multiply, 2),
        "a callable object": Doubler(),
        "an offloaded function": offload(handlers.double_here),
        "a closure": closure,
    }


@real
async def test_every_kind_of_handler_runs_in_a_process() -> None:
    async with WorkerPool(workers=2, engine=Processes(1)) as pool:  # without a handler, each job is one
        for kind, handler in kinds_of_handlers().items():
            assert await pool.run(partial(handler, 2)) == 4, kind
    async with WorkerPool(offload(handlers.double_here), workers=2, engine=Processes(1)) as pool:
        assert [value async for value in pool.map(range(5))] == [0, 2, 4, 6, 8]


@pytest.mark.usefixtures("no_cloudpickle")
def test_a_closure_needs_cloudpickle() -> None:
    with pytest.raises(TypeError, match=r"are sent to other processes.*or install cloudpickle"):
        WorkerPool(kinds_of_handlers()["a closure"], workers=2, engine=Processes(1))


def test_a_handler_that_cannot_be_sent_is_refused() -> None:
    lock = threading.Lock()

    async def handler(n: int) -> None:
        with lock:
            await asyncio.sleep(n)

    with pytest.raises(
        TypeError, match=r"handler, resource, check and recycle_on must be .* pickling them raised TypeError"
    ):
        WorkerPool(handler, workers=2, engine=Processes(1))


def test_an_executor_that_cannot_be_sent_is_refused() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match="pass a function that makes the executor"):
        WorkerPool(offload(handlers.double_here, executor), workers=2, engine=Processes(1))


@pytest.mark.usefixtures("no_cloudpickle")
def test_a_setup_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(TypeError, match="setup must be picklable, because it is sent to other processes"):
        Processes(setup=lambda: None)


# -- What travels ------------------------------------------------------------------------------------------------------

FAILURES: dict[str, tuple[Callable[[], Any], type[BaseException], str]] = {
    "two arguments": (handlers.raise_two_arguments, handlers.TwoArguments, "404 not found"),
    "what cannot be pickled": (handlers.raise_lock, handlers.HoldsALock, "busy"),
    "a hostile error": (partial(handlers.raise_hostile, handlers.Hostile), handlers.Hostile, ""),
    "a more hostile error": (partial(handlers.raise_hostile, handlers.MoreHostile), BaseException, ""),
    "an error that cannot be read": (handlers.raise_only_there, BaseException, "price"),
    "a UnicodeDecodeError": (handlers.raise_decode_error, UnicodeDecodeError, "invalid start byte"),
    "a group": (partial(handlers.raise_group, with_lock=False), ExceptionGroup, "two"),
    "a group of what cannot be pickled": (partial(handlers.raise_group, with_lock=True), ExceptionGroup, "two"),
    "a cause": (partial(handlers.raise_it, KeyError("k"), ValueError("v")), KeyError, "k"),
    "permanent": (partial(handlers.raise_advice, permanent=True), ConnectionError, "429"),
    "a SystemExit": (partial(handlers.raise_it, SystemExit(7)), SystemExit, "7"),
    "a KeyboardInterrupt": (partial(handlers.raise_it, KeyboardInterrupt()), KeyboardInterrupt, ""),
    "a value": (handlers.return_lambda, TypeError, "generator"),
    "a value that cannot be read": (handlers.Value, pickle.UnpicklingError, "not in this process"),
    "a value that exits": (handlers.Exits, SystemExit, "7"),
    "an input that cannot be read": (handlers.Input(), pickle.UnpicklingError, "not in this process"),
    "an input that cannot be pickled": (lambda: threading.Lock(), pickle.PicklingError, "cannot be sent"),  # noqa: PLW0108
}


@real
async def test_what_cannot_travel_fails_alone_and_says_why() -> None:
    engine = Processes(1)
    async with WorkerPool(handlers.call, workers=4, engine=engine, retry=Retry(attempts=2, backoff=0.0)) as pool:
        first = pids(pool)
        ended: dict[str, Failed[Any]] = {}
        jobs: dict[str, Any] = {name: function for name, (function, _, _) in FAILURES.items()}
        jobs["an input that cannot be pickled"] = threading.Lock()
        for name, function in jobs.items():
            outcome = await (await pool.submit(function)).outcome()
            assert isinstance(outcome, Failed), (name, outcome)
            ended[name] = outcome
        assert await pool.run(partial(handlers.double, 2)) == 4
        assert pids(pool) == first
        assert pool.stats.processes_lost == 0
    for name, (_, kind, text) in FAILURES.items():
        error = ended[name].error
        cause = error.error if isinstance(error, JobCrashed) else error
        assert isinstance(cause, (kind, RemoteError)), (name, repr(error))
        if text:
            assert text in str(cause), (name, repr(error))
    assert isinstance(ended["two arguments"].error, handlers.TwoArguments)
    assert ended["two arguments"].error.code == 404
    assert "raise_two_arguments" in "".join(ended["two arguments"].error.__notes__)
    assert isinstance(ended["what cannot be pickled"].error, handlers.HoldsALock)
    group = ended["a group of what cannot be pickled"].error
    assert isinstance(group, ExceptionGroup)
    assert [type(error) for error in group.exceptions] == [KeyError, handlers.HoldsALock]
    assert isinstance(ended["a cause"].error.__cause__, ValueError)
    assert ended["permanent"].attempts == 1
    assert ended["two arguments"].attempts == 2


@real
async def test_large_inputs_and_values_arrive() -> None:
    size = 20 << 20
    async with WorkerPool(handlers.call, workers=4, engine=Processes(2)) as pool:
        async for value in pool.map([partial(handlers.value_of_bytes, size)] * 3):
            assert len(value) == size
        async for length in pool.map([partial(len, bytes(size))] * 3):
            assert length == size


@real
async def test_a_slow_reader_stops_the_source() -> None:
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        for pulled in range(100_000):  # noqa: UP028 -- counted
            yield pulled

    async with (
        WorkerPool(handlers.double, workers=10, queue_size=10, engine=Processes(2)) as pool,
        pool.map(source()) as values,
    ):
        assert await anext(aiter(values)) == 0
        await asyncio.sleep(0.3)
        assert pulled < 200


# -- What belongs to an attempt ----------------------------------------------------------------------------------------


@real
async def test_the_deadline_and_the_job_are_visible_there() -> None:
    async with WorkerPool(handlers.deadline_and_job, workers=1, timeout=50.0, engine=Processes(1)) as pool:
        left, id, attempt = await pool.run(None)
        assert 0 < left <= 50.0
        assert (id, attempt) == (1, 1)
        assert (await pool.run(None))[1] == 2


@real
async def test_a_timeout_and_the_end_of_max_elapsed_cancel_there() -> None:
    async with WorkerPool(handlers.sleep, workers=1, timeout=0.05, engine=Processes(1)) as pool:
        with pytest.raises(JobTimeout):
            await pool.run(60.0)
    retry = Retry(attempts=3, max_elapsed=0.05)
    async with WorkerPool(handlers.sleep, workers=1, retry=retry, engine=Processes(1)) as pool:
        with pytest.raises(JobExpired):
            await pool.run(60.0)


@real
async def test_each_worker_has_a_resource_in_its_process(notes: Notes) -> None:
    resource = Connections(notes)
    async with WorkerPool(handlers.use, workers=3, resource=resource, engine=Processes(2)) as pool:
        outcomes = [outcome async for outcome in pool.outcomes([None, OSError("down"), *[None] * 20])]
    assert sorted(Counter(type(outcome) for outcome in outcomes).values()) == [1, 21]
    assert all(outcome.value == 0 for outcome in outcomes if isinstance(outcome, Succeeded))
    steps = Counter(line.split()[0] for line in notes.lines())
    assert steps["entered"] == steps["left"] <= 4  # one was replaced
    open_now = most = 0
    for line in notes.lines():
        open_now += 1 if line.startswith("entered") else -1
        most = max(most, open_now)
    assert most <= 3


@real
async def test_a_resource_that_cannot_be_entered_fails_the_start(notes: Notes) -> None:
    pool = WorkerPool(handlers.use, workers=2, resource=Connections(notes, fails=True), engine=Processes(2))
    with pytest.raises(ConnectionRefusedError, match="no such database"):
        await pool.start()
    assert pool.state == "closed"


@real
async def test_a_resize_starts_processes_and_closes_resources(notes: Notes) -> None:
    pool = WorkerPool(handlers.use, workers=1, resource=Connections(notes), engine=Processes(3))
    async with pool:
        assert len(pids(pool)) == 1
        pool.resize(6)
        await until(lambda: pool.stats.processes == 3)
        await until(lambda: len(notes.lines()) == 6)
        assert [process.workers for process in pool.processes()] == [2, 2, 2]
        pool.resize(1)
        await until(lambda: sum(line.startswith("left") for line in notes.lines()) == 5)
        assert await pool.run(None) == 0
        assert pool.stats.processes == 1
        pool.resize(6)
        await until(lambda: pool.stats.processes == 3)
        assert len([value async for value in pool.map([None] * 30)]) == 30
    assert sum(process.done for process in pool.processes()) == 0  # none is left
    steps = Counter(line.split()[0] for line in notes.lines())
    assert steps["entered"] == steps["left"] == 11


@real
async def test_records_of_the_processes_are_logged_here_once(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(handlers.logs, workers=1, engine=Processes(1)) as pool:
        await pool.run(None)
        await until(lambda: len(caplog.records) >= 2)
        await pool.run(None)
    assert [record.getMessage() for record in caplog.records] == ["stock is <class 'object'>", "caught"] * 2
    assert all(record.name == "tests.shop" for record in caplog.records)
    assert "ValueError: a price" in caplog.text
    assert caplog.records[0].process != os.getpid()


@real
async def test_records_of_the_end_of_a_process_are_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(handlers.use, workers=1, resource=handlers.logs_its_end, engine=Processes(1)) as pool:
        await pool.run(None)
    assert [record.getMessage() for record in caplog.records] == ["closed"]


def test_what_handlers_print_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    @real
    async def test() -> None:
        async with WorkerPool(handlers.call, workers=1, engine=Processes(1, setup=handlers.prints)) as pool:
            await pool.run(partial(print, "a line of a handler", flush=True))

    test()
    assert capfd.readouterr().out == "a line of the setup\na line of a handler\n"


@real
async def test_handlers_use_processes_and_programs_themselves() -> None:
    async with WorkerPool(offload(handlers.nested), workers=1, engine=Processes(1)) as pool:
        assert await pool.run(None) == [1, 4, 9]
    async with WorkerPool(handlers.start_and_terminate, workers=1, engine=Processes(1)) as pool:
        assert await pool.run(None) == [-signal.SIGTERM, -signal.SIGTERM]


# -- Cancelling --------------------------------------------------------------------------------------------------------


@real
async def test_cancelling_reaches_the_handler_once(notes: Notes) -> None:
    async with WorkerPool(Noted(notes, 60.0), workers=12, engine=Processes(2)) as pool:
        handle = await pool.submit(0)
        async with pool.outcomes(range(1, 6)) as outcomes:
            reading = asyncio.ensure_future(anext(aiter(outcomes)))
            await until(lambda: len(notes.lines()) == 6)
            reading.cancel()
        await until(lambda: pool.stats.running == 1)
        assert sorted(line.split()[1] for line in notes.lines() if "cancelled" in line) == list("12345")
        assert handle.cancel()
        assert handle.cancel()
        assert isinstance(await handle.outcome(), Cancelled)
        for n in range(6, 10):
            await pool.submit(n)
        await until(lambda: len(notes.lines()) == 6 * 2 + 4)
        report = await pool.close(drain_timeout=0.0)
    assert [entry.job for entry in report.unfinished] == [6, 7, 8, 9]
    ended = Counter(line.split()[1] for line in notes.lines() if "cancelled" in line)
    assert ended == Counter(map(str, range(10)))


@real
async def test_the_grace_ends_whatever_a_process_does(notes: Notes) -> None:
    ignoring = WorkerPool(Stubborn(notes), workers=1, engine=Processes(1))
    await ignoring.start()
    await ignoring.submit(1)
    blocking = WorkerPool(handlers.block, workers=1, engine=Processes(1))
    await blocking.start()
    await blocking.submit(600.0)
    staying = WorkerPool(
        handlers.use,
        workers=1,
        resource=Resource(Connections(notes, stays=True), close_timeout=60),
        engine=Processes(1),
    )
    await staying.start()
    await until(lambda: any("begun" in line for line in notes.lines()))
    await until(lambda: blocking.processes()[0].running == 1)
    reports = await asyncio.gather(
        *(pool.close(drain_timeout=0.0, grace=0.5) for pool in (ignoring, blocking, staying))
    )
    assert [len(report.abandoned) for report in reports] == [1, 1, 0]


@real
async def test_a_process_that_does_not_respond_is_replaced() -> None:
    pool = WorkerPool(handlers.block, workers=1, engine=Processes(1), responds_within=1.0, reruns=False)
    async with pool:
        with pytest.raises(ProcessLost, match="did not respond within 1 s"):
            await pool.run(600.0)
        await pool.run(0.0)
        assert pool.stats.processes_lost == 1


# -- Deaths ------------------------------------------------------------------------------------------------------------


@real
async def test_no_job_is_lost_when_processes_are_killed(notes: Notes) -> None:
    jobs, kills = (20_000, 100) if IS_LONG else (3000, 8)
    random = Random(1)
    workers = 20
    async with WorkerPool(Noted(notes, 0.002), workers=workers, engine=Processes(3)) as pool:
        seen: Counter[int] = Counter()
        killed: set[int] = set()
        async with pool.map(range(jobs), ordered=False) as values:
            async for value in values:
                seen[value] += 1
                if len(killed) < kills and len(seen) >= jobs * (len(killed) + 0.5) / kills:
                    busy = [pid_of(process.name) for process in pool.processes() if process.running]
                    if living := [pid for pid in busy if pid not in killed]:
                        killed.add(chosen := random.choice(living))
                        os.kill(chosen, signal.SIGKILL)
        stats = pool.stats
    assert seen == Counter(range(jobs))
    assert stats.processes_lost == len(killed) == kills
    begun = sum(line.startswith("begun") for line in notes.lines())
    assert jobs <= begun <= jobs + stats.reruns
    assert stats.reruns <= kills * workers


@real
async def test_a_job_that_ends_its_process_fails_alone(notes: Notes) -> None:
    jobs = 10_000 if IS_LONG else 1000
    letters: DeadLetters[int] = DeadLetters()
    pool = WorkerPool(
        Noted(notes, poison=333),
        workers=20,
        engine=Processes(2),
        dead_letters=letters,
        retry=Retry(attempts=5, on=Exception),
    )
    async with pool:
        outcomes = [outcome async for outcome in pool.outcomes(range(jobs))]
    failed = [outcome for outcome in outcomes if not isinstance(outcome, Succeeded)]
    assert [outcome.job for outcome in failed] == [333]
    assert isinstance(failed[0], Failed)
    assert isinstance(failed[0].error, ProcessDied)
    assert failed[0].attempts == 1
    assert [letter.job for letter in letters] == [333]
    assert len(outcomes) == jobs


@real
async def test_without_reruns_nothing_runs_twice(notes: Notes) -> None:
    async with WorkerPool(Noted(notes, 60.0), workers=6, engine=Processes(2), reruns=False) as pool:
        handles = [await pool.submit(n) for n in range(6)]
        await until(lambda: len(notes.lines()) == 6)
        doomed = pool.processes()[0]
        os.kill(pid_of(doomed.name), signal.SIGKILL)
        await until(lambda: pool.stats.failed == 3)
        for handle in handles:
            handle.cancel()
        outcomes = [await handle.outcome() for handle in handles]
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(errors) == 3
    assert all(isinstance(error, ProcessLost) and "SIGKILL" in str(error) for error in errors)
    assert Counter(line.split()[1] for line in notes.lines() if "begun" in line) == Counter(map(str, range(6)))


@pytest.mark.parametrize("setup", [handlers.unsuitable_setup, handlers.exits])
def test_a_setup_that_always_fails_fails_the_start(setup: Callable[[], object]) -> None:
    @real
    async def test() -> None:
        pool = WorkerPool(handlers.double, workers=2, engine=Processes(2, setup=setup))
        with pytest.raises((FileNotFoundError, RuntimeError), match=r"no settings|ended with exit status 3$"):
            await pool.start()
        assert pool.state == "closed"

    test()


@real
async def test_inputs_are_handed_back_when_no_process_comes_for_too_long(notes: Notes) -> None:
    engine = Processes(1, setup=handlers.Once(notes))
    pool = WorkerPool(handlers.sleep, workers=2, engine=engine)
    with pytest.raises(EngineLost, match=r"no process that can run the handler for 0\.5 s"):
        async with pool:
            fleet = pool._parts.fleet
            assert fleet is not None
            # Now, because a busy machine may need more for the first process.
            fleet._options = replace(fleet._options, patience=0.5)
            fleet.presence._patience = 0.5
            handles = [await pool.submit(60.0) for _ in range(5)]
            os.kill(pids(pool)[0], signal.SIGKILL)
            for handle in handles:
                await handle.outcome()
            with pytest.raises(PoolClosed):
                await pool.submit(1.0)
    assert pool.report is not None
    assert [entry.job for entry in pool.report.unfinished] == [60.0] * 5


@real
async def test_the_death_of_a_process_that_has_forked_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with WorkerPool(handlers.leave_a_fork, workers=1, engine=Processes(1), reruns=False) as pool:
        with pytest.raises(ProcessLost):
            await pool.run(str(path))
    os.kill(int(path.read_text()), signal.SIGKILL)


# -- Several pools -----------------------------------------------------------------------------------------------------


@real
async def test_pools_share_an_engine() -> None:
    engine = Processes(1)
    async with (
        WorkerPool(handlers.pid, workers=1, engine=engine) as one,
        WorkerPool(handlers.pid, workers=1, engine=engine) as other,
    ):
        assert len({await one.run(None), await other.run(None), os.getpid()}) == 3


def test_a_pool_in_each_of_many_runs_leaves_nothing() -> None:
    async def program() -> None:
        async with WorkerPool(handlers.double, workers=1, engine=engine) as pool:
            assert await pool.run(1) == 2

    engine = Processes(1)
    asyncio.run(program())  # what is started once stays: the tracker of multiprocessing
    descriptors, threads = _descriptors(), threading.active_count()
    for _ in range(20 if IS_LONG else 3):
        asyncio.run(program())
    assert not multiprocessing.active_children()
    assert _descriptors() <= descriptors
    assert threading.active_count() <= threads


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@real
async def test_a_fork_of_the_program_ends_nothing() -> None:
    async with WorkerPool(handlers.pid, workers=1, engine=Processes(1)) as pool:
        before = await pool.run(None)
        # In a thread, and with what runs at exit, which a fork by multiprocessing leaves out.
        child = os.fork()
        if not child:
            try:
                import atexit

                atexit._run_exitfuncs()
            finally:
                os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert await pool.run(None) == before
        assert pool.stats.processes_lost == 0


@real
async def test_a_process_dies_while_it_is_closed() -> None:
    pool = WorkerPool(handlers.sleep, workers=1, engine=Processes(1))
    await pool.start()
    found = pids(pool)
    closing = asyncio.create_task(pool.close())
    os.kill(found[0], signal.SIGKILL)
    await closing
    assert pool.stats.processes == 0


@real
async def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    for seconds in (0.0, 0.001, 0.01, 0.1):
        pool = WorkerPool(handlers.double, workers=1, engine=Processes(1))
        starting = asyncio.create_task(pool.start())
        await asyncio.sleep(seconds)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert pool.state == "closed"
        assert not multiprocessing.active_children()


def test_the_names_of_signals() -> None:
    from asyncpool import _children

    assert _children._name_of_signal(9) == "SIGKILL"
    assert _children._name_of_signal(50) == "signal 50"
