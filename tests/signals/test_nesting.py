"""Several blocks of `drain_on_signal`, entered and left in any order, and handlers of the program among them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from asyncpool import WorkerPool, drain_on_signal
from asyncpool.testing import ManualHandler, settle
from tests.helpers import echo, virtual

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
ROOT = Path(__file__).resolve().parent.parent.parent
WINCH = getattr(signal, "SIGWINCH", 0)
"""A signal whose default is that nothing happens."""


@pytest.fixture(autouse=True)
def handler_is_default() -> Iterator[None]:
    yield
    after = signal.signal(WINCH, signal.SIG_DFL)
    assert after is signal.SIG_DFL


@virtual
async def test_nested_blocks_drain_both_and_cancel_both() -> None:
    handlers = [ManualHandler[int, None](), ManualHandler[int, None]()]
    async with WorkerPool(handlers[0], workers=1) as outer, WorkerPool(handlers[1], workers=1) as inner:
        for pool in (outer, inner):
            await pool.submit(1)
        with drain_on_signal(outer, signals=[WINCH]), drain_on_signal(inner, signals=[WINCH]):
            signal.raise_signal(WINCH)
            await settle()
            assert [outer.state, inner.state] == ["draining", "draining"]
            await asyncio.sleep(0.5)
            signal.raise_signal(WINCH)
            await settle()
            assert [outer.state, inner.state] == ["closed", "closed"]
            assert signal.getsignal(WINCH) is signal.SIG_DFL


@virtual
async def test_a_block_that_is_entered_between_the_signals_has_a_first_and_a_second_of_its_own() -> None:
    pools = [WorkerPool(echo, workers=1) for _ in range(2)]
    with drain_on_signal(pools[0], signals=[WINCH]) as outer:
        signal.raise_signal(WINCH)
        await asyncio.sleep(1)
        with drain_on_signal(pools[1], signals=[WINCH]) as inner:
            signal.raise_signal(WINCH)
            assert (outer.received, inner.received) == (2, 1)
            await asyncio.sleep(1)
            signal.raise_signal(WINCH)
            assert (outer.received, inner.received) == (2, 2)
            assert signal.getsignal(WINCH) is signal.SIG_DFL
    await settle()


# -- Any order --


class World:
    """Blocks and handlers of a program, and a model of what a signal must reach: a stack from which blocks leave."""

    def __init__(self) -> None:
        self.blocks: list[drain_on_signal] = []
        self.open: list[int] = []
        self.stack: list[str] = []
        self.saved: dict[str, Any] = {}
        self.reached: list[str] = []
        self.is_put_back = False

    def moves(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what can happen next."""
        moves: list[tuple[str, Callable[[], None]]] = []
        if len(self.blocks) < 3:
            moves.append(("enter", self.enter))
        moves += [(f"leave {number}", lambda number=number: self.leave(number)) for number in self.open]
        if len(self.saved) < 1:
            moves.append(("chain", lambda: self.install("chain")))
            moves.append(("replace", lambda: self.install("replace")))
        moves += [
            (f"put back {name}", lambda name=name: self.put_back(name)) for name in self.saved if self.saved[name]
        ]
        return moves

    def enter(self) -> None:
        number = len(self.blocks)
        block = drain_on_signal(WorkerPool(echo, workers=1), signals=[WINCH])
        self.blocks.append(block)
        self.open.append(number)
        block.__enter__()
        self.stack.append(f"block {number}")

    def leave(self, number: int) -> None:
        self.blocks[number].__exit__(None, None, None)
        self.open.remove(number)
        if f"block {number}" in self.stack:
            self.stack.remove(f"block {number}")

    def install(self, name: str) -> None:
        before = signal.getsignal(WINCH)

        def handle(number: int, frame: FrameType | None) -> None:
            self.reached.append(name)
            if name == "chain" and callable(before):
                before(number, frame)

        self.saved[name] = [before]
        signal.signal(WINCH, handle)
        self.stack.append(name)

    def put_back(self, name: str) -> None:
        """Put back what was there before a handler of the program, as a careless program does it."""
        [before] = self.saved[name]
        self.saved[name] = None
        signal.signal(WINCH, before)
        self.is_put_back = True
        if name in self.stack:
            del self.stack[self.stack.index(name) :]

    def expected(self) -> list[str]:
        expected = []
        for name in reversed(self.stack):
            expected.append(name)
            if name == "replace":
                break
        return expected

    def check(self) -> None:
        """Send a signal, and see what it reached."""
        signal.raise_signal(WINCH)
        self.reached += [f"block {number}" for number, block in enumerate(self.blocks) if block.received]
        assert sorted(self.reached) == sorted(self.expected())
        for number in list(self.open):
            self.leave(number)
        assert self.is_put_back or [name for name in self.stack if name.startswith("block")] == []
        if not self.stack and not self.is_put_back:
            assert signal.getsignal(WINCH) is signal.SIG_DFL
        signal.raise_signal(WINCH)
        if not self.stack:
            assert signal.getsignal(WINCH) is signal.SIG_DFL


def histories(length: int) -> Iterator[list[int]]:
    """Return every sequence of moves, each as the number of the move among those that are possible."""

    def extend(history: list[int]) -> Iterator[list[int]]:
        yield history
        if len(history) < length:
            world = replay(history)
            count = len(world.moves())
            clean_up(world)
            for move in range(count):
                yield from extend([*history, move])

    return extend([])


def replay(history: list[int]) -> World:
    world = World()
    for move in history:
        _, act = world.moves()[move]
        act()
    return world


def clean_up(world: World) -> None:
    for number in list(world.open):
        world.leave(number)
    signal.signal(WINCH, signal.SIG_DFL)


@virtual
async def test_a_signal_reaches_the_open_blocks_however_blocks_and_handlers_come_and_go() -> None:
    count = 0
    for history in histories(6):
        world = World()
        names = []
        for move in history:
            name, act = world.moves()[move]
            names.append(name)
            act()
        try:
            world.check()
        except AssertionError as error:
            error.add_note(f"after {names}")
            raise
        finally:
            clean_up(world)
        count += 1
        await settle()
    assert count > 500


@virtual
async def test_blocks_that_relieve_each_other_keep_no_others_alive() -> None:
    before = drain_on_signal(WorkerPool(echo, workers=1), signals=[WINCH])
    before.__enter__()
    pools = []
    for _ in range(50):
        pool = WorkerPool(echo, workers=1)
        after = drain_on_signal(pool, signals=[WINCH])
        pools.append(weakref.ref(pool))
        after.__enter__()
        before.__exit__(None, None, None)
        before = after
    link: Any = signal.getsignal(WINCH)
    assert link.before is signal.SIG_DFL
    before.__exit__(None, None, None)
    del pool, after, before, link
    gc.collect()
    assert [pool for pool in pools if pool() is not None] == []


# -- A block that cannot be left, or that is of another process --


@virtual
async def test_a_block_that_is_left_in_another_thread_gives_the_signal_back_when_it_comes() -> None:
    calls: list[int] = []
    signal.signal(WINCH, lambda number, frame: calls.append(number))
    block = drain_on_signal(WorkerPool(echo, workers=1), signals=[WINCH])
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    signal.raise_signal(WINCH)
    assert (calls, block.received) == ([WINCH], 0)
    with drain_on_signal(WorkerPool(echo, workers=1), signals=[WINCH]):
        pass
    signal.raise_signal(WINCH)
    assert calls == [WINCH, WINCH]
    signal.signal(WINCH, signal.SIG_DFL)


def test_a_block_whose_loop_is_closed_gives_the_signal_back() -> None:
    calls: list[int] = []
    signal.signal(WINCH, lambda number, frame: calls.append(number))
    block = drain_on_signal(WorkerPool(echo, workers=1), signals=[WINCH])

    async def main() -> None:
        block.__enter__()

    asyncio.run(main())
    signal.raise_signal(WINCH)
    assert (calls, block.received) == ([WINCH], 0)
    block.__exit__(None, None, None)
    signal.signal(WINCH, signal.SIG_DFL)


FORK = """
import asyncio, os, signal, sys
from asyncpool import WorkerPool, drain_on_signal

async def handler(job):
    pass

async def main():
    async with WorkerPool(handler, workers=1) as pool:
        with drain_on_signal(pool):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), pool.state)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_inside_the_block_is_ended_by_sigterm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM} open\n", "")
