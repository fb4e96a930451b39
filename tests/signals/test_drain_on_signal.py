"""`drain_on_signal`, with real signals: what the first and the second do, and what else is called."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from asyncpool import PoolClosed, WorkerPool, WrongLoop, drain_on_signal
from asyncpool.events import Event, PoolStopping
from asyncpool.testing import ManualHandler, settle
from tests.helpers import echo, sleeper, virtual

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
ROOT = Path(__file__).resolve().parent.parent.parent
SECOND = 0.5
"""Seconds after which a signal counts as the second."""


@pytest.fixture(autouse=True)
def handlers_are_given_back() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def handled() -> Iterator[list[tuple[int, FrameType | None]]]:
    """What a handler of the program gets, for SIGTERM."""
    calls: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append((number, frame)))
    yield calls
    signal.signal(signal.SIGTERM, before)


async def send(number: int) -> None:
    os.kill(os.getpid(), number)
    await asyncio.sleep(0)
    await settle()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@virtual
async def test_the_first_signal_drains_and_the_second_cancels(number: int) -> None:
    before = signal.getsignal(number)
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1) as pool:
        with drain_on_signal(pool) as signals:
            for job in range(3):
                await pool.submit(job)
            await settle()
            await send(number)
            assert signals.received == 1
            with pytest.raises(PoolClosed):
                pool.submit_nowait(9)
            handler.finish(0)
            await settle()
            assert handler.running == [1]
            await asyncio.sleep(SECOND)
            await send(number)
            assert signals.received == 2
            assert handler.running == []
            assert signal.getsignal(number) is before
        report = await pool.close()
    assert [(entry.job, entry.started) for entry in report.unfinished] == [(1, True), (2, False)]


@virtual
async def test_a_stream_delivers_what_was_accepted_and_then_pool_closed() -> None:
    seen = []
    async with WorkerPool(sleeper, workers=1, queue_size=1) as pool:
        with drain_on_signal(pool), pytest.raises(PoolClosed):
            async for value in pool.map([1] * 100):
                seen.append(value)
                if len(seen) == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
    assert 1 < len(seen) < 5


@virtual
async def test_drain_timeout_and_grace_are_those_of_close() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        handle = await pool.submit(100)
        with drain_on_signal(pool, drain_timeout=2):
            await send(signal.SIGTERM)
            await handle.outcome()
    assert asyncio.get_running_loop().time() == 2


@virtual
async def test_leaving_the_block_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    async with WorkerPool(echo, workers=1) as pool:
        with drain_on_signal(pool, signals=[signal.SIGUSR1]):
            assert signal.getsignal(signal.SIGTERM) is before[1]
            assert signal.getsignal(signal.SIGUSR1) is not before[2]
        with pytest.raises(KeyError), drain_on_signal(pool):
            raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@virtual
async def test_a_signal_that_comes_after_the_end_does_no_harm() -> None:
    pool = WorkerPool(echo, workers=1)
    async with pool:
        pass
    with drain_on_signal(pool):
        await send(signal.SIGTERM)
        await send(signal.SIGTERM)


@virtual
async def test_in_another_thread_it_says_so() -> None:
    async with WorkerPool(echo, workers=1) as pool:

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="main thread"), drain_on_signal(pool):
                pass

        await asyncio.to_thread(asyncio.run, elsewhere())


@virtual
async def test_all_pools_drain_at_the_first_signal_and_cancel_at_the_second(caplog: pytest.LogCaptureFixture) -> None:
    handlers = [ManualHandler[int, None](), ManualHandler[int, None]()]
    async with (
        WorkerPool(handlers[0], workers=1, name="a") as a,
        WorkerPool(handlers[1], workers=1, name="b") as b,
    ):
        for pool in (a, b):
            await pool.submit(1)
        with drain_on_signal(a, b, a):
            await send(signal.SIGTERM)
            assert [a.state, b.state] == ["draining", "draining"]
            assert [handler.running for handler in handlers] == [[1], [1]]
            await asyncio.sleep(SECOND)
            await send(signal.SIGINT)
            assert [a.state, b.state] == ["closed", "closed"]
    texts = [text for text in caplog.messages if "unfinished" not in text]
    assert texts == [
        "pools 'a', 'b': SIGTERM: draining; a second signal cancels running jobs",
        "pools 'a', 'b': SIGINT: cancelling running jobs",
    ]


@virtual
async def test_a_pool_that_raises_does_not_keep_the_others_from_draining() -> None:
    class Broken(WorkerPool[int, int]):
        def drain(self, **arguments: Any) -> None:
            raise RuntimeError("broken")

    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    broken = Broken(echo, workers=1)
    async with WorkerPool(echo, workers=1) as pool:
        with drain_on_signal(broken, pool):
            await send(signal.SIGTERM)
            assert pool.state == "closed"
    assert [str(error) for error in errors] == ["broken"]
    asyncio.get_running_loop().set_exception_handler(None)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@virtual
async def test_a_signal_that_follows_at_once_is_not_the_second(second: int, caplog: pytest.LogCaptureFixture) -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1, name="work") as pool:
        await pool.submit(1)
        with drain_on_signal(pool) as signals:
            await send(signal.SIGTERM)
            for _ in range(3):
                await asyncio.sleep(0.02)
                await send(second)
            assert (signals.received, pool.state, handler.running) == (1, "draining", [1])
            assert caplog.messages[1:] == [
                f"pool 'work': {signal.Signals(second).name}: ignored, less than 0.5 seconds after the first; "
                "a later signal cancels running jobs"
            ]
            await asyncio.sleep(SECOND)
            await send(second)
            assert (signals.received, pool.state) == (2, "closed")


@pytest.mark.parametrize(("second_after", "later", "received"), [(0, 0, 2), (10, 9.9, 1), (10, 10, 2)])
@virtual
async def test_how_late_the_second_signal_is_can_be_chosen(second_after: float, later: float, received: int) -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1) as pool:
        await pool.submit(1)
        with drain_on_signal(pool, second_after=second_after) as signals:
            await send(signal.SIGTERM)
            await asyncio.sleep(later)
            await send(signal.SIGTERM)
            assert signals.received == received
            handler.finish_all() if handler.running else None


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock a test can put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def uvloop_factory() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]


@pytest.mark.parametrize("between", [0.02, 3.0])
@pytest.mark.parametrize("factory", [Clock, uvloop_factory])
def test_the_time_of_a_signal_is_that_of_its_arrival_also_while_the_loop_is_blocked(
    factory: Callable[[], asyncio.AbstractEventLoop], between: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def block(seconds: float) -> None:
            clock.now += seconds
            if isinstance(loop, Clock):
                loop.ahead += seconds

        clock = Monotonic()
        monkeypatch.setattr("asyncpool.signals.time", clock)
        async with WorkerPool(echo, workers=1) as pool:
            with drain_on_signal(pool) as signals:
                # No `await` from here on.
                signal.raise_signal(signal.SIGTERM)
                block(between)
                signal.raise_signal(signal.SIGTERM)
                block(60)
                assert signals.received == (1 if between < SECOND else 2)
                await settle_for_real()
                assert signals.received == (1 if between < SECOND else 2)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


class Monotonic:
    """A module `time` that a test can put forward."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def settle_for_real() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@virtual
async def test_while_the_loop_is_blocked_the_third_signal_has_its_effect(handled: list[Any]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with WorkerPool(echo, workers=1) as pool:
        with drain_on_signal(pool, second_after=0):
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is not before
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is before


# -- The handler before --


@virtual
async def test_the_handler_before_is_called_for_each_signal_after_the_drain_was_requested(handled: list[Any]) -> None:
    states = []
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.submit(1)
        loop, recorded = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        assert callable(recorded)

        def handle(number: int, frame: FrameType | None) -> None:
            recorded(number, frame)
            loop.call_soon_threadsafe(lambda: states.append(pool.state))

        signal.signal(signal.SIGTERM, handle)
        with drain_on_signal(pool):
            await send(signal.SIGTERM)
            await send(signal.SIGTERM)
    signal.signal(signal.SIGTERM, recorded)
    assert states == ["draining", "draining"]
    assert [number for number, _ in handled] == [signal.SIGTERM] * 2
    assert all(isinstance(frame, FrameType) for _, frame in handled)


@virtual
async def test_a_handler_before_that_raises_does_so_after_the_drain_was_requested(handled: list[Any]) -> None:
    recorded = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        raise EOFError

    signal.signal(signal.SIGTERM, stop)
    async with WorkerPool(sleeper, workers=1) as pool:
        handle = await pool.submit(1)
        with drain_on_signal(pool):
            with pytest.raises(EOFError):
                signal.raise_signal(signal.SIGTERM)
            await settle()
            assert pool.state == "draining"
            await handle
    signal.signal(signal.SIGTERM, recorded)


@pytest.mark.parametrize("factory", [asyncio.SelectorEventLoop, uvloop_factory])
def test_a_callback_of_the_loop_runs_once_for_each_signal_after_the_drain_and_also_after_the_block(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        loop, states, called = asyncio.get_running_loop(), [], asyncio.Event()
        handler = ManualHandler[int, None]()
        async with WorkerPool(handler, workers=1) as pool:
            await pool.submit(1)

            def call_back() -> None:
                states.append(pool.state)
                called.set()

            async def one() -> None:
                called.clear()
                os.kill(os.getpid(), signal.SIGUSR1)
                await called.wait()
                await asyncio.sleep(0.01)  # so that a second call would be seen

            loop.add_signal_handler(signal.SIGUSR1, call_back)
            with drain_on_signal(pool, signals=[signal.SIGUSR1]):
                await one()
            await one()
            handler.finish(1)
        await one()
        assert states == ["draining", "draining", "closed"]
        loop.remove_signal_handler(signal.SIGUSR1)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@virtual
async def test_a_handler_that_the_program_installs_inside_the_block_stays(handled: list[Any]) -> None:
    def mine(number: int, frame: FrameType | None) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    async with WorkerPool(echo, workers=1) as pool:
        with drain_on_signal(pool):
            signal.signal(signal.SIGTERM, mine)
        assert signal.getsignal(signal.SIGTERM) is mine
        with drain_on_signal(pool, second_after=0):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            await send(signal.SIGINT)
            await send(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.signal(signal.SIGTERM, before)


@virtual
async def test_the_drain_runs_in_the_context_of_the_block_and_not_of_what_it_interrupts() -> None:
    where: ContextVar[str] = ContextVar("where")
    seen = []

    def observe(event: Event) -> None:
        if isinstance(event, PoolStopping):
            seen.append(where.get())

    async def interrupt() -> None:
        where.set("elsewhere")
        signal.raise_signal(signal.SIGTERM)

    async with WorkerPool(echo, workers=1, observers=[observe]) as pool:
        where.set("block")
        with drain_on_signal(pool):
            await asyncio.create_task(interrupt())
            await settle()
    assert seen == ["block"]


@virtual
async def test_a_logging_filter_that_raises_changes_nothing() -> None:
    def explode(record: logging.LogRecord) -> bool:
        if record.module == "signals":
            raise RuntimeError("filter")
        return True

    logger = logging.getLogger("asyncpool")
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1) as pool:
        await pool.submit(1)
        logger.addFilter(explode)
        try:
            with drain_on_signal(pool, second_after=1) as signals:
                await send(signal.SIGTERM)
                await send(signal.SIGTERM)
                assert (signals.received, pool.state) == (1, "draining")
                await asyncio.sleep(1)
                await send(signal.SIGTERM)
                assert (signals.received, handler.running) == (2, [])
        finally:
            logger.removeFilter(explode)


REAL_TIME = [signal.SIGRTMIN + 3, signal.SIGRTMIN, signal.SIGRTMAX] if hasattr(signal, "SIGRTMIN") else []


@pytest.mark.parametrize("number", REAL_TIME)
@virtual
async def test_a_real_time_signal_drains_too(number: int, caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(echo, workers=1) as pool:
        with drain_on_signal(pool, signals=[number]):
            await send(number)
            assert pool.state != "open"
    assert "draining" in caplog.text
    assert ("SIGRTMIN+3" in caplog.text) == (number == signal.SIGRTMIN + 3)


# -- Arguments --


POOL = WorkerPool(echo, workers=1)


@pytest.mark.parametrize(
    ("pools", "options", "error", "text"),
    [
        ([], {}, TypeError, "at least one pool, got none"),
        ([None], {}, TypeError, "pools .WorkerPool., got None"),
        ([POOL, "pool"], {}, TypeError, "pools .WorkerPool., got 'pool'"),
        ([[POOL]], {}, TypeError, r"pools .WorkerPool., got \[<WorkerPool"),
        ([POOL], {"signals": signal.SIGTERM}, TypeError, "iterable of signal numbers, got"),
        ([POOL], {"signals": ["SIGTERM"]}, TypeError, "signal numbers .int., got 'SIGTERM'"),
        ([POOL], {"signals": [True]}, TypeError, "signal numbers .int., got True"),
        ([POOL], {"signals": [15.0]}, TypeError, "signal numbers .int., got 15.0"),
        ([POOL], {"signals": [0]}, ValueError, "signals of this system, got 0"),
        ([POOL], {"signals": [signal.SIGTERM, 9999]}, ValueError, "signals of this system, got 9999"),
        ([POOL], {"signals": [9]}, ValueError, "a program can handle, got 9"),
        ([POOL], {"signals": [getattr(signal, "SIGSTOP", 19)]}, ValueError, "a program can handle, got .*SIGSTOP"),
        ([POOL], {"signals": []}, ValueError, r"at least one signal, got \[\]"),
        ([POOL], {"drain_timeout": -1}, ValueError, "drain_timeout must be a finite number of seconds >= 0, got -1"),
        ([POOL], {"grace": "5"}, TypeError, "grace must be a number of seconds, got '5'"),
        ([POOL], {"second_after": None}, TypeError, "second_after must be a number of seconds, got None"),
        ([POOL], {"second_after": -0.5}, ValueError, "second_after must be a finite number of seconds >= 0, got -0.5"),
    ],
)
def test_a_wrong_argument_is_an_error_that_states_the_rule_and_the_value(
    pools: list[Any], options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        drain_on_signal(*pools, **options)


def test_it_is_entered_on_the_loop_of_its_pools() -> None:
    with asyncio.Runner() as runner, asyncio.Runner() as other:
        pool = WorkerPool(echo, workers=1)
        other.run(pool.start())

        async def main() -> None:
            before = signal.getsignal(signal.SIGTERM)
            with pytest.raises(WrongLoop, match="on the loop of its pools: <WorkerPool"), drain_on_signal(pool):
                pass
            assert signal.getsignal(signal.SIGTERM) is before

        runner.run(main())

        async def close() -> None:
            await pool.close()

        other.run(close())


@virtual
async def test_it_can_be_entered_again_but_not_twice() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.submit(1)
        signals = drain_on_signal(pool)
        with signals:
            with pytest.raises(RuntimeError, match="already entered"), signals:
                pass
            await send(signal.SIGTERM)
            assert signals.received == 1
        with signals:
            assert signals.received == 0
            await send(signal.SIGTERM)
            assert (signals.received, pool.state) == (1, "draining")


# -- Programs --


PROGRAM = """
import asyncio, sys
from asyncpool import WorkerPool, drain_on_signal

async def handler(job):
    print("begun", job, flush=True)
    await asyncio.sleep(float(sys.argv[1]))
    print("done", job, flush=True)

async def main():
    async with WorkerPool(handler, workers=2) as pool:
        with drain_on_signal(pool):
            for job in range(4):
                await pool.submit(job)
            await pool.join()
        report = await pool.close()
    print("unfinished", [(entry.job, entry.started) for entry in report.unfinished], flush=True)

asyncio.run(main())
"""


def program(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(seconds)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_a_program_that_gets_the_same_signal_twice_at_once_finishes_what_it_has() -> None:
    with program(0.3) as process:
        wait_begun(process)
        process.send_signal(signal.SIGTERM)
        assert "draining" in process.stderr.readline()  # type: ignore[union-attr]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.count("done") == 4
    assert "ignored" in err
    assert "unfinished []" in out


def wait_begun(process: Any) -> None:
    assert {process.stdout.readline().strip() for _ in range(2)} == {"begun 0", "begun 1"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_gets_one_signal_finishes_what_it_has(number: int) -> None:
    with program(0.1) as process:
        wait_begun(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.count("done") == 4
    assert "unfinished []" in out
    assert "draining" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_gets_two_signals_hands_back_what_is_not_done(number: int) -> None:
    with program(1000) as process:
        wait_begun(process)
        process.send_signal(number)
        assert "draining" in process.stderr.readline()  # type: ignore[union-attr]
        time.sleep(SECOND)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "unfinished [(0, True), (1, True), (2, False), (3, False)]" in out
    assert "cancelling running jobs" in err
