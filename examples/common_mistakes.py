"""Mistakes in hand-written worker pools, and what a pool does instead.

    python -m examples.common_mistakes

They are common in Go too: a results channel that is never closed, a send on a closed channel, a miscounted WaitGroup,
results that nobody reads. Each program here makes one of them with `asyncio.Queue` in a few lines, and really fails.
`asyncpool.testing.run` runs them on a virtual clock and reports a deadlock immediately, with the line where each task
waits. In a real event loop such a program hangs silently.
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
    """The workers finish, but the reader keeps waiting for more results."""
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
    """A stream ends when its source is exhausted and all results have been read."""
    async with WorkerPool(square, workers=2) as pool:
        async for value in pool.map(range(5)):
            print("result", value)
    print("the loop has ended")


# -- 2. A send on a closed channel --


async def sent_after_the_close() -> None:
    """The first producer to finish closes the channel for all of them.

    Go panics. A queue with an end marker silently loses everything after it. `Queue.shutdown()` of Python 3.13 is more
    like Go: the other producer gets a `QueueShutDown`, which cancels the whole task group.
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
    print(f"{len(done)} of 5 jobs were done, without any error")


async def rejected_after_the_close() -> None:
    """After the same mistake, the late producer gets an error, and all accepted jobs are delivered."""
    async with WorkerPool(square, workers=1) as pool:
        group = pool.group()

        async def produce(numbers: Iterable[int], pause: float) -> None:
            for number in numbers:
                await asyncio.sleep(pause)
                try:
                    await group.submit(number)
                except StreamClosed as error:
                    print(f"{number} is rejected: {error}")
            group.close_intake()  # the end

        async with asyncio.TaskGroup() as producers:
            producers.create_task(produce([1, 2], pause=0.1))
            producers.create_task(produce([3, 4, 5], pause=0.15))
            async for outcome in group:
                print(outcome)
    try:
        await pool.submit(6)
    except PoolClosed as error:
        print(f"6 is rejected: {error}")


async def closed_by_the_last() -> None:
    """Without the mistake: each producer has its own block, and the last one to leave it closes the group."""
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


# -- 3. A miscounted WaitGroup --


async def added_inside() -> None:
    """`join()` is called before the first `put()`, whose task has not run yet, so it returns immediately."""
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
    """A failed job skips `task_done()`, so `join()` waits for it indefinitely."""
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
    """Leaving the blocks waits for the producers, then for all of their jobs, including failed ones."""
    async with WorkerPool(divide, workers=2) as pool, asyncio.TaskGroup() as producers:

        async def produce(number: int) -> None:
            handle = await pool.submit(number)
            print(await handle.outcome())

        for number in (1, 0, 3):
            producers.create_task(produce(number))
    stats = pool.stats
    print(f"{stats.submitted} jobs: {stats.succeeded} succeeded, {stats.failed} failed, {stats.running} running")


async def late_producer_gets_an_error() -> None:
    """After the same mistake, a block that does not wait for its producer, the producer gets an error."""
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
    """The workers wait for the reader, and the reader waits for room to submit its jobs first."""
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
    """While nobody reads, a stream pulls no more than its window. The workers stay free for other callers."""
    async with WorkerPool(square, workers=2, queue_size=3) as pool, pool.map(range(1000)) as values:
        print("result", await anext(aiter(values)))
        await asyncio.sleep(60)
        stats = pool.stats
        print(f"after a minute: {stats.submitted} of 1000 jobs pulled, {stats.running} running")
        print("a job of another caller:", await pool.run(12))


async def the_window_is_full() -> None:
    """A task that submits everything before it reads gets an error. All accepted jobs can still be read."""
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


# -- Output --


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A program that fails, and programs that do the same with a pool."""

    title: str
    in_go: str
    naive: Callable[[], Awaitable[None]]
    pooled: tuple[Callable[[], Awaitable[None]], ...]


MISTAKES = (
    Mistake(
        title="1. A results channel that is never closed",
        in_go="`for result := range results` never ends: all goroutines are asleep, or this one leaks",
        naive=results_never_closed,
        pooled=(the_loop_ends,),
    ),
    Mistake(
        title="2. A send on a closed channel",
        in_go="the send panics, and the whole program exits",
        naive=sent_after_the_close,
        pooled=(rejected_after_the_close, closed_by_the_last),
    ),
    Mistake(
        title="3a. A WaitGroup: Add inside the goroutine",
        in_go="Wait can run before Add, and then returns immediately",
        naive=added_inside,
        pooled=(late_producer_gets_an_error, nothing_to_count),
    ),
    Mistake(
        title="3b. A WaitGroup: a missing Done",
        in_go="Wait never returns",
        naive=never_marked_done,
        pooled=(nothing_to_count,),
    ),
    Mistake(
        title="4. Results that nobody reads",
        in_go="the workers block in `results <- result`, then the producer blocks in `jobs <- job`",
        naive=results_unread,
        pooled=(no_worker_waits_for_a_reader, the_window_is_full),
    ),
)


def show(mistake: Mistake) -> None:
    """Run and print the naive program, then those with a pool."""
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
    """Keep only the lines of the report that show where each task waits in this file."""
    lines = report.splitlines()
    other = re.compile(r" +(?!.*common_mistakes\.py:).*:\d+ in ")
    return "\n".join(
        re.sub(r"^( +)\S*(?=common_mistakes\.py:)", r"\1", line) for line in lines if not other.match(line)
    )


def show_all() -> None:
    """Show all mistakes, one after the other."""
    for number, mistake in enumerate(MISTAKES):
        if number:
            print()
        show(mistake)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if there are arguments."""
    parser = Parser(
        prog="common_mistakes",
        usage="python -m examples.common_mistakes",
        description="Show mistakes in hand-written worker pools: how each fails, and what a pool does instead.",
    )
    parser.parse_args(arguments)
    return finish_plain("common_mistakes", show_all)


if __name__ == "__main__":
    with starting("common_mistakes"):
        sys.exit(main())
