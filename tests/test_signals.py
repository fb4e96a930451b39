"""`drain_on_signal`, with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncpool import PoolClosed, WorkerPool, drain_on_signal
from asyncpool.testing import ManualHandler, settle
from tests.helpers import echo, sleeper, virtual

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
ROOT = Path(__file__).resolve().parent.parent


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
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "unfinished [(0, True), (1, True), (2, False), (3, False)]" in out
    assert "cancelling running jobs" in err
