"""A KeyboardInterrupt that arrives between any two lines of the package leaves a pool that closes.

`asyncio.run` turns the first Ctrl+C into a cancellation of the main task, and raises the next one wherever the program
is, in the middle of the pool's own steps too. Here a trace function raises it at one line of the package after another,
on virtual time: a program that hangs then is a deadlock, which is detected at once.

An interrupt inside asyncio itself is not tried, because it is not ours. When it comes between taking a callback and
calling it, a task is never resumed, and the cancellation of all tasks at the end of `asyncio.run` waits for it forever.
This happens to programs without any pool too.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import asyncpool
from asyncpool import Retry, WorkerPool
from asyncpool.testing import DeadlockError, VirtualTimeLoop
from tests.laws.budget import IS_LONG, IS_SHORT

PACKAGE = str(Path(asyncpool.__file__).parent)
TESTING = str(Path(asyncpool.__file__).parent / "testing")
STEP = 1 if IS_LONG else 197 if IS_SHORT else 97
GRACE = 5.0 + 2.0  # that of a pool, and what else the program takes


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of the package that runs after `begin()`."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.lines = 0
        self.place = ""

    def begin(self) -> None:
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        is_ours = name.startswith(PACKAGE) and not name.startswith(TESTING)
        return self._line if is_ours and frame.f_code.co_name != "__del__" else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}, {frame.f_code.co_name}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


@asynccontextmanager
async def connection() -> AsyncIterator[int]:
    await asyncio.sleep(0)
    yield 1
    await asyncio.sleep(0)


async def handler(job: int, resource: int = 0) -> int:
    await asyncio.sleep(0)
    if job == 3:
        raise ValueError(job)
    if job == 5:
        await asyncio.sleep(0.01)
    return job


async def numbers() -> AsyncIterator[int]:
    for number in range(8):
        await asyncio.sleep(0)
        yield number


async def program(interrupt: Interrupt, *, has_resource: bool, is_cancelled: bool) -> None:
    options: dict[str, Any] = {"resource": connection} if has_resource else {}
    if not is_cancelled:
        interrupt.begin()
    async with WorkerPool(handler, workers=2, retry=Retry(attempts=2, backoff=0.001), **options) as pool:
        task = asyncio.ensure_future(pool.run(5))
        async for _ in pool.outcomes(numbers()):
            pass
        with contextlib.suppress(ValueError):
            await pool.map(range(6), ordered=False)
        await pool.submit(1)
        async with pool.group() as group:
            await group.submit(2)
        async for _ in group:
            pass
        await task
        if is_cancelled:  # the first Ctrl+C, while jobs are under their way
            for number in range(4):
                await pool.submit(5 + number)
            main = asyncio.current_task()
            assert main is not None
            asyncio.get_running_loop().call_soon(lambda: (interrupt.begin(), main.cancel()))
            await asyncio.sleep(1)


def run_interrupted(at: int | None, main: Callable[[Interrupt], Any]) -> Interrupt:
    """Run a program as `asyncio.run` does, on virtual time, and interrupt it."""
    interrupt = Interrupt(at)
    loop = VirtualTimeLoop()
    loop.set_exception_handler(lambda loop, context: None)  # what an interrupted step leaves behind is printed, no more
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main(interrupt))
    except DeadlockError as error:
        error.add_note(f"interrupted at {interrupt.place}")
        raise
    except BaseException:
        pass  # what the program raises after an interrupt is its own affair: it has to end
    finally:
        sys.settrace(None)
    assert loop.time() < GRACE, f"interrupted at {interrupt.place}, it took {loop.time():.1f} s"
    return interrupt


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["running", "cancelled"])
@pytest.mark.parametrize("has_resource", [False, True], ids=["plain", "resource"])
def test_an_interrupt_at_any_line_leaves_a_pool_that_closes(has_resource: bool, is_cancelled: bool) -> None:
    def main(interrupt: Interrupt) -> Any:
        return program(interrupt, has_resource=has_resource, is_cancelled=is_cancelled)

    lines = run_interrupted(None, main).lines
    assert lines > 100
    for at in range(1, lines, STEP):
        interrupt = run_interrupted(at, main)
        assert interrupt.place or at > lines - 200  # it has run this far
