"""The mistakes of worker pools written by hand, and what a pool does instead.

    python -m examples.common_mistakes

They are those that Go programmers are warned of: a results channel that nobody closes, a send on a closed channel, a
WaitGroup that is counted wrongly, results that nobody reads. Each is made here with `asyncio.Queue`, in a few lines,
and really fails. `asyncpool.testing.run` is the guard: its clock is virtual, and it reports at once, with who waits
where, that a program can never go on. In a real event loop such a program just stands there.
"""

from __future__ import annotations

import sys

from examples.command_line import Parser, finish_plain, starting

with starting("common_mistakes"):
    import asyncio
    import re
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from dataclasses import dataclass

    from asyncpool import PoolClosed, PoolDeadlock, StreamClosed, WorkerPool
    from asyncpool.groups import Producer
    from asyncpool.testing import DeadlockError, run

__all__ = ["MISTAKES", "Mistake", "main", "show"]


async def square(number: int) -> int:
    """A job."""
    await asyncio.sleep(0.01)
    return number * number


async def divide(number: int) -> int:
    """A job that fails for 0."""
    await asyncio.sleep(0.01)
    return 12 // number


# -- 1. The results channel is never closed --


async def results_never_closed() -> None:
    """The workers end, and nobody tells the reader that no more results will come."""
    jobs: asyncio.Queue[int] = asyncio.Queue()
    results: asyncio.Queue[int] = asyncio.Queue()
    for number in range(5):
        jobs.put_nowait(number)

    async def worker() -> None:
        while not jobs.empty():
            await results.put(await square(jobs.get_nowait()))

    async with asyncio.TaskGroup() as workers:
        for name in ("worker 1", "worker 2"):
            workers.create_task(worker(), name=name)
        while True:
            print("result", await results.get())


async def the_loop_ends() -> None:
    """A stream ends when its source has ended and all results are read."""
    async with WorkerPool(square, workers=2) as pool:
        async for value in pool.map(range(5)):
            print("result", value)
    print("the loop has ended by itself")


# -- 2. A send on a closed channel --


async def sent_after_the_close() -> None:
    """The producer that is the first to end closes the channel for all of them.

    Where Go panics, a queue with an end marker loses what comes after it, silently. `Queue.shutdown()` of Python 3.13
    is more like Go: the other producer gets a `QueueShutDown`, which takes the whole task group down.
    """
    jobs: asyncio.Queue[int | None] = asyncio.Queue()
    done: list[int] = []

    async def worker() -> None:
        while (number := await jobs.get()) is not None:
            done.append(await square(number))

    async def produce(numbers: Iterable[int], pause: float) -> None:
        for number in numbers:
            await asyncio.sleep(pause)
            await jobs.put(number)
        await jobs.put(None)  # the end

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker())
        tasks.create_task(produce([1, 2], pause=0.1))
        tasks.create_task(produce([3, 4, 5], pause=0.15))
    print(f"{len(done)} of 5 jobs were done, and nobody was told")


async def refused_after_the_close() -> None:
    """With the same mistake, a late producer gets an error, and all that was accepted is delivered."""
    async with WorkerPool(square, workers=1) as pool:
        group = pool.group()

        async def produce(numbers: Iterable[int], pause: float) -> None:
            for number in numbers:
                await asyncio.sleep(pause)
                try:
                    await group.submit(number)
                except StreamClosed as error:
                    print(f"{number} is refused: {error}")
            group.close_intake()  # the end

        async with asyncio.TaskGroup() as producers:
            producers.create_task(produce([1, 2], pause=0.1))
            producers.create_task(produce([3, 4, 5], pause=0.15))
            async for outcome in group:
                print(outcome)
    try:
        await pool.submit(6)
    except PoolClosed as error:
        print(f"6 is refused: {error}")


async def closed_by_the_last() -> None:
    """Without the mistake: each producer has a block of its own, and the last one that ends closes the group."""
    async with WorkerPool(square, workers=1) as pool:
        group = pool.group()

        async def produce(producer: Producer[int, int], numbers: Iterable[int]) -> None:
            async with producer:
                for number in numbers:
                    await group.submit(number)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce(group.producer(), [1, 2]))
            tasks.create_task(produce(group.producer(), [3, 4, 5]))
            print(len([outcome async for outcome in group]), "of 5 jobs were done")


# -- 3. A WaitGroup that is counted wrongly --


async def added_inside() -> None:
    """`join()` comes before the first `put()`, which is in a task that has not had its turn: it waits for nothing."""
    jobs: asyncio.Queue[int] = asyncio.Queue()
    done: list[int] = []

    async def worker() -> None:
        while True:
            done.append(await square(await jobs.get()))
            jobs.task_done()

    async def produce() -> None:
        for number in range(5):
            await jobs.put(number)

    tasks = [asyncio.create_task(produce()), asyncio.create_task(worker())]
    await jobs.join()
    print(f"{len(done)} of 5 jobs were done when join() returned")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def never_marked_done() -> None:
    """A job that fails leaves the loop before `task_done()`: `join()` waits for it for ever."""
    jobs: asyncio.Queue[int] = asyncio.Queue()
    for number in (1, 0, 3):
        jobs.put_nowait(number)

    async def worker() -> None:
        while True:
            try:
                print("result", await divide(await jobs.get()))
            except ZeroDivisionError:
                continue
            jobs.task_done()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(worker(), name="worker")
        await jobs.join()
        task.cancel()


async def nothing_to_count() -> None:
    """Leaving the blocks waits for the producers, then for their jobs, those that fail too."""
    async with WorkerPool(divide, workers=2) as pool, asyncio.TaskGroup() as producers:

        async def produce(number: int) -> None:
            handle = await pool.submit(number)
            print(await handle.outcome())

        for number in (1, 0, 3):
            producers.create_task(produce(number))
    stats = pool.stats
    print(f"{stats.submitted} jobs: {stats.succeeded} succeeded, {stats.failed} failed, {stats.running} running")


async def told_that_it_is_late() -> None:
    """With the same mistake, a block that does not know of its producer, the producer gets an error."""
    async with WorkerPool(square, workers=2) as pool:

        async def produce() -> None:
            for number in range(5):
                await pool.submit(number)

        producer = asyncio.create_task(produce())
    try:
        await producer
    except PoolClosed as error:
        print(f"PoolClosed: {error}")


# -- 4. Results that nobody reads --


async def results_unread() -> None:
    """The workers wait for a reader, the reader hands out jobs first, and there is no room for them."""
    jobs: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
    results: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

    async def worker() -> None:
        while True:
            result = await square(await jobs.get())
            await results.put(result)

    async with asyncio.TaskGroup() as workers:
        for name in ("worker 1", "worker 2"):
            workers.create_task(worker(), name=name)
        for number in range(10):
            await jobs.put(number)
        for _ in range(10):
            print("result", await results.get())


async def no_worker_waits_for_a_reader() -> None:
    """A stream pulls no more than its window while nobody reads. The workers are free, for others too."""
    async with WorkerPool(square, workers=2, queue_size=3) as pool, pool.map(range(1000)) as values:
        print("result", await anext(aiter(values)))
        await asyncio.sleep(60)
        stats = pool.stats
        print(f"after a minute: {stats.submitted} of 1000 jobs pulled, {stats.running} running")
        print("a job of somebody else:", await pool.run(12))


async def the_window_is_full() -> None:
    """Who submits all before he reads anything is told so; what was accepted is there to be read."""
    async with WorkerPool(square, workers=2) as pool:
        group = pool.group(window=3)
        try:
            for number in range(10):
                await group.submit(number)
        except PoolDeadlock as error:
            print(f"PoolDeadlock: {error}")
        group.close_intake()
        async for outcome in group:
            print(outcome)


# -- What is shown --


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A program that fails, and those that do the same and do not."""

    title: str
    in_go: str
    naive: Callable[[], Awaitable[None]]
    pooled: tuple[Callable[[], Awaitable[None]], ...]


MISTAKES = (
    Mistake(
        title="1. A results channel that is never closed",
        in_go="`for result := range results` waits for ever: all goroutines are asleep, or this one leaks",
        naive=results_never_closed,
        pooled=(the_loop_ends,),
    ),
    Mistake(
        title="2. A send on a closed channel",
        in_go="it panics, and the whole program ends",
        naive=sent_after_the_close,
        pooled=(refused_after_the_close, closed_by_the_last),
    ),
    Mistake(
        title="3a. A WaitGroup: Add inside of the goroutine",
        in_go="Wait may come before Add, and then returns at once",
        naive=added_inside,
        pooled=(told_that_it_is_late, nothing_to_count),
    ),
    Mistake(
        title="3b. A WaitGroup: Done is missed",
        in_go="Wait never returns",
        naive=never_marked_done,
        pooled=(nothing_to_count,),
    ),
    Mistake(
        title="4. Results that nobody reads",
        in_go="the workers are blocked in `results <- result`, and then the producer in `jobs <- job`",
        naive=results_unread,
        pooled=(no_worker_waits_for_a_reader, the_window_is_full),
    ),
)


def show(mistake: Mistake) -> None:
    """Print what the naive program does, and what the others do."""
    print(f"== {mistake.title} ==")
    print(f"In Go: {mistake.in_go}.")
    print(f"\nBy hand, {mistake.naive.__name__}():")

    def naive() -> Awaitable[None]:
        if task := asyncio.current_task():
            task.set_name("main")
        return mistake.naive()

    try:
        run(naive)
    except DeadlockError as error:
        print(f"It hangs: {_own_lines(str(error))}")
    for pooled in mistake.pooled:
        print(f"\nWith a pool, {pooled.__name__}():")
        run(pooled)


def _own_lines(report: str) -> str:
    """The report without lines of other files: of each task, where it waits in this one."""
    lines = report.splitlines()
    other = re.compile(r" +(?!.*common_mistakes\.py:).*:\d+ in ")
    return "\n".join(
        re.sub(r"^( +)\S*(?=common_mistakes\.py:)", r"\1", line) for line in lines if not other.match(line)
    )


def show_all() -> None:
    """Show one after the other."""
    for number, mistake in enumerate(MISTAKES):
        if number:
            print()
        show(mistake)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if there are arguments."""
    parser = Parser(
        prog="common_mistakes",
        usage="python -m examples.common_mistakes",
        description="Mistakes of worker pools written by hand: how each fails, and what a pool does instead.",
    )
    parser.parse_args(arguments)
    return finish_plain("common_mistakes", show_all)


if __name__ == "__main__":
    with starting("common_mistakes"):
        sys.exit(main())
