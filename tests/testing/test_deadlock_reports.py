"""When `VirtualTimeLoop` reports a deadlock, and what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from functools import partial

import anyio.to_thread
import pytest

from asyncpool.testing import DeadlockError, VirtualTimeLoop, run
from tests.testing.helpers import at_once, blocking, forever


def test_a_deadlock_is_reported_at_once_with_every_task_and_where_it_waits() -> None:
    async def waits_for_a_queue(queue: asyncio.Queue[None]) -> None:
        await queue.get()  # here

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_a_queue(asyncio.Queue()), name="reader")
            group.create_task(forever(), name="sleeper")

    with at_once(), pytest.raises(DeadlockError) as caught:
        run(main)
    report = str(caught.value)
    assert "'reader'" in report
    assert f"{__file__}:" in report
    assert "in waits_for_a_queue: await queue.get()  # here" in report
    assert "in get: await getter" in report
    assert "'sleeper'" in report


def test_a_deadlock_is_not_reported_as_a_leak_too() -> None:
    async def main() -> None:
        others = [asyncio.create_task(forever()) for _ in range(5)]
        await forever()
        await asyncio.wait(others)

    with pytest.raises(DeadlockError) as caught:
        run(main, patience=0.1)
    assert not hasattr(caught.value, "__notes__")


def test_a_deadlock_with_a_socket_open_is_reported_after_the_patience() -> None:
    async def main() -> None:
        async with await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0):
            await forever()

    with pytest.raises(DeadlockError, match=r"silent for 0\.02 s"):
        run(main, patience=0.02)


def test_a_deadlock_after_work_in_threads_is_reported_at_once() -> None:
    async def main() -> None:
        await asyncio.to_thread(int)
        await anyio.to_thread.run_sync(int)
        blocking()
        await forever()

    with at_once(), pytest.raises(DeadlockError):
        run(main)


def test_a_waiting_signal_handler_is_not_a_deadlock_before_the_patience_is_over() -> None:
    async def main() -> None:
        received = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, received.set)
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        await received.wait()

    run(main)


def test_the_runner_can_clean_up_after_a_deadlock() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(1)
            cleaned.append("main")

    with pytest.raises(DeadlockError), asyncio.Runner(loop_factory=partial(VirtualTimeLoop, patience=0.1)) as runner:
        runner.run(main())
    assert cleaned == ["main"]
