"""Programs that get Ctrl+C two or three times under plain `asyncio.run`, and what hangs in those that do not end.

    python -m tests.signals.interrupted --runs 1000 --signals 2 [--program bare]

Each run is a fork: it reports when its jobs run, gets its signals with random pauses between them, and has to end
within the grace. One that does not end gets SIGUSR1, and prints each task and what that waits for. Where this future is
done and the task was never resumed, asyncio has lost its wakeup: the second Ctrl+C is raised wherever the program is,
and between taking a callback and calling it that drops the callback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import time
import traceback
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from asyncpool import WorkerPool

GRACE = 0.5  # seconds, of the pools
PATIENCE = 10.0  # seconds, before a program counts as hung
FIRST = 0.03  # seconds, at most, until the first signal
BETWEEN = 0.01  # and from one signal to the next: the end of a program takes about as long


async def handler(job: int) -> int:
    """Work a little, and clean up a little."""
    try:
        for _ in range(1 + job % 7):
            await asyncio.sleep(0)
        await asyncio.sleep(job % 3 * 0.0005)
        return job
    finally:
        for _ in range(1000):  # so that the loop is busy, and not asleep, when the next signal comes
            await asyncio.sleep(0)


def dump(number: int, frame: object) -> None:
    """Print each task of the loop, and whether what it waits for is done already."""
    for task in asyncio.all_tasks(LOOP[0]):
        waits_for: Any = getattr(task, "_fut_waiter", None)
        state = "nothing" if waits_for is None else f"{'a done' if waits_for.done() else 'a pending'} {waits_for!r}"
        where = []
        waiting: Any = task.get_coro()
        while (inner := getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)) is not None:
            where.append(f"{inner.f_code.co_filename.rsplit('/', 1)[-1]}:{inner.f_lineno}")
            waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
        is_lost = waits_for is None or waits_for.done()
        print("LOST" if is_lost else "waits", task.get_name(), where, "waits for", state, flush=True)


LOOP: list[asyncio.AbstractEventLoop] = []


def begin() -> None:
    """Prepare the dump, and say that the signals can come."""
    LOOP.append(asyncio.get_running_loop())
    signal.signal(signal.SIGUSR1, dump)
    asyncio.get_running_loop().call_later(0.02, lambda: print("ready", flush=True))


async def pool() -> None:
    """Jobs come from a stream and from callers, in a pool whose workers hold resources."""

    @asynccontextmanager
    async def connection() -> Any:
        await asyncio.sleep(0)
        yield 1
        await asyncio.sleep(0)

    async def with_resource(job: int, resource: int) -> int:
        return await handler(job)

    async def numbers() -> Any:
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0)

    begin()
    workers: WorkerPool[int, int]
    async with WorkerPool(with_resource, workers=4, resource=connection) as workers, asyncio.TaskGroup() as tasks:

        async def call() -> None:
            while True:
                await workers.run(3)

        tasks.create_task(call(), name="caller")
        async for _ in workers.outcomes(numbers()):
            pass


async def plain() -> None:
    """Jobs come from a stream, and there are no tasks but those of the pool."""
    begin()
    async with WorkerPool(handler, workers=4) as workers:
        async for _ in workers.outcomes(iter(int, 1)):
            pass


async def bare() -> None:
    """As many tasks without any pool."""
    begin()
    queue: asyncio.Queue[int] = asyncio.Queue(8)

    async def work() -> None:
        while True:
            await handler(await queue.get())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(work())
        number = 0
        while True:
            await queue.put(number)
            number += 1


PROGRAMS = {"pool": pool, "plain": plain, "bare": bare}


@dataclass
class Ended:
    """How a program has ended."""

    hung: bool
    output: str


def run_once(program: str, signals: int, chance: random.Random) -> Ended:
    """Run a program in a fork, which takes milliseconds; send it its signals, and wait for its end."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            asyncio.run(PROGRAMS[program]())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as output:
        try:
            line = output.readline()
            while "ready" not in line:
                assert line, "it has ended before it began"
                line = output.readline()
            for number in range(signals):
                time.sleep(chance.uniform(0.0, BETWEEN if number else FIRST))
                os.kill(child, signal.SIGINT)
            hung = not has_ended(child, PATIENCE)
            if hung:
                os.kill(child, signal.SIGUSR1)
                time.sleep(0.5)
            return Ended(hung, end(child, output))
        finally:
            end(child, output)


def has_ended(child: int, seconds: float) -> bool:
    """Wait for the end of a process that is no zombie to others."""
    until = time.monotonic() + seconds  # real time: it is a real process
    while time.monotonic() < until:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.005)
    return False


def end(child: int, output: TextIO) -> str:
    """End a process, and return what it has printed; does nothing the second time."""
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return ""
    return output.read()


def run_many(program: str, signals: int, runs: int, seed: int) -> tuple[int, Counter[str]]:
    """Run a program many times; return how many hung, and the names of the tasks that were lost in them."""
    chance = random.Random(seed)
    hung, lost = 0, Counter[str]()
    for number in range(runs):
        ended = run_once(program, signals, chance)
        if ended.hung:
            hung += 1
            found = [line for line in ended.output.splitlines() if line.startswith(("LOST ", "waits "))]
            names = [line.split(" [")[0] for line in found if line.startswith("LOST ")]
            lost.update(names or ["nothing lost"])
            print(f"run {number} hung:", *found, sep="\n    ", flush=True)
    return hung, lost


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=PROGRAMS, default="pool")
    parser.add_argument("--signals", type=int, default=2)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    hung, lost = run_many(options.program, options.signals, options.runs, options.seed)
    print(f"{options.program}, {options.signals} signals: {hung} of {options.runs} hung", dict(lost))


if __name__ == "__main__":
    main()
