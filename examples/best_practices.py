"""The best practices of worker pools, each a function that does it and prints what it shows.

    python -m examples.best_practices

They are those that Go programmers list: how many workers, cancellation, buffer sizes, a shutdown that cannot hang,
cleanup, errors. In the place of a context there is the pool's `timeout`, or a cancel scope around a block; in the place
of a channel's buffer there is `queue_size`.
"""

from __future__ import annotations

import sys

from examples.command_line import Parser, finish, starting

with starting("best_practices"):
    import asyncio
    import hashlib
    import logging
    import os
    from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
    from contextlib import asynccontextmanager, contextmanager

    import anyio

    from asyncpool import (
        Cancelled,
        Failed,
        JobTimeout,
        QueueFull,
        Retry,
        Succeeded,
        WorkerPool,
        current_job,
        offload,
        recommended_workers,
    )

LONG = 60.0
"""Seconds that nobody waits for here: what takes so long is cancelled."""


async def work(seconds: float) -> float:
    """A job that takes so many seconds."""
    await asyncio.sleep(seconds)
    return seconds


# -- How many workers --


async def workers_for_waiting() -> None:
    """Jobs that wait: as many as the rate needs, no more than the other side bears, or than the event loop carries."""
    print("500 requests/s of 0.2 s:", recommended_workers(seconds=0.2, rate=500))
    print("... and the database has 30 connections:", recommended_workers(seconds=0.2, rate=500, limit=30))
    print("... or each is parsed for 10 ms in the loop:", recommended_workers(seconds=0.2, rate=500, cpu_seconds=0.01))
    async with WorkerPool(work, workers=recommended_workers(seconds=0.2, rate=500, limit=30)) as pool:
        await pool.map([0.01] * 90)
    print(f"{pool.stats.succeeded} jobs done, never more than {pool.stats.peak_running} at a time")


def hash_of(password: str) -> str:
    """A job that computes. In a thread, as it frees the interpreter's lock; pure Python needs a process pool."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 20_000).hex()


async def workers_for_computing() -> None:
    """Jobs that compute: one worker for each processor, and outside of the event loop."""
    processors = os.cpu_count() or 1
    async with WorkerPool(offload(hash_of), workers=processors) as pool:
        hashes = await pool.map(["swordfish", "hunter2", "123456", "qwerty"])
    print(f"{len(hashes)} hashes, the first {hashes[0][:8]}..., on {processors} workers for {processors} processors")


# -- Cancellation --


async def cancel_a_job() -> None:
    """One job, by its handle. A queued one frees its place at once, a running one gets a CancelledError."""
    async with WorkerPool(work, workers=1) as pool:
        running, queued = await pool.submit(LONG), await pool.submit(LONG)
        await asyncio.sleep(0.05)
        for handle in (running, queued):
            handle.cancel()
        print(await running.outcome())
        print(await queued.outcome())


async def cancel_a_caller() -> None:
    """A caller of `run()`: if a client goes away, the job that was for him does too."""
    async with WorkerPool(work, workers=1) as pool:
        client = asyncio.create_task(pool.run(LONG))
        await asyncio.sleep(0.05)
        client.cancel()
        await asyncio.wait([client])
        print(f"the caller is gone, and his job too: {pool.stats.cancelled} cancelled, {pool.stats.running} running")


async def answer(question: str) -> str:
    """A job that hangs at its first attempt, and knows how much time it has."""
    attempt = current_job().attempt
    left = anyio.current_effective_deadline() - anyio.current_time()
    print(f"attempt {attempt} at {question!r} has {left:.1f} s")
    if attempt == 1 or question == "hopeless":
        await asyncio.sleep(LONG)
    return f"{question} is answered at attempt {attempt}"


async def time_out_an_attempt() -> None:
    """A timeout for each attempt, which the handler sees, as a Go function sees `ctx.Deadline()`."""
    async with WorkerPool(answer, workers=1, timeout=0.2, retry=Retry(attempts=2, backoff=0.0)) as pool:
        print(await pool.run("hard"))
        try:
            await pool.run("hopeless")
        except JobTimeout as error:
            print(f"hopeless: {error}")


async def set_a_deadline() -> None:
    """A deadline of a whole block: what the stream has queued or running is cancelled, and the pool lives on."""
    jobs = [0.01, 0.01, 0.01, LONG, LONG, LONG, LONG]
    async with WorkerPool(work, workers=2) as pool:
        done = 0
        try:
            with anyio.fail_after(0.5):
                async with pool.map(jobs) as values:  # not only `async for`: it also waits until the rest has ended
                    async for _ in values:
                        done += 1
        except TimeoutError:
            print(f"anyio.fail_after: {done} of {len(jobs)} were done in time")
        try:
            async with asyncio.timeout(0.5):
                await pool.map(jobs)  # all of them, or nothing
        except TimeoutError:
            print("asyncio.timeout: not all were done in time")
        await pool.join()
        print(f"cancelled: {pool.stats.cancelled}; and the pool goes on: {await pool.run(0.01)}")


# -- Buffer sizes --


async def reject_what_is_too_much() -> None:
    """`submit_nowait` and `run(if_full="raise")` say no: what a service does that would rather send a 503 than wait."""
    for queue_size in (0, 3, None):
        async with WorkerPool(work, workers=2, queue_size=queue_size) as pool:
            handles = []
            try:
                while True:
                    handles.append(pool.submit_nowait(0.01))
            except QueueFull:
                print(f"queue_size={queue_size}: {len(handles)} accepted by 2 workers, the next one is rejected")


async def wait_for_room() -> None:
    """`submit` waits: however fast a producer is, it is never further ahead than the buffer and the workers."""
    for queue_size in (0, 3, None):
        ahead = 0
        async with WorkerPool(work, workers=2, queue_size=queue_size) as pool:
            for _ in range(60):
                await pool.submit(0.001)
                stats = pool.stats
                ahead = max(ahead, stats.queued + stats.running)
        print(f"queue_size={queue_size}: the producer of {pool.stats.submitted} jobs was at most {ahead} ahead")


async def read_slowly() -> None:
    """A slow reader slows the source: of a million jobs, few are there at a time, and no list is ever made."""
    pulled = read = ahead = 0

    def source() -> Iterator[float]:
        nonlocal pulled
        for _ in range(1_000_000):
            pulled += 1
            yield 0.001

    async with WorkerPool(work, workers=2, queue_size=4) as pool, pool.map(source()) as values:
        async for _ in values:
            read += 1
            await asyncio.sleep(0.01)
            ahead = max(ahead, pulled - read)
            if read == 20:
                break
    print(f"read {read}, pulled {pulled}: never more than {ahead} ahead (queue_size 4 + 2 workers)")


# -- Shutdown --


async def stop_in_time() -> None:
    """Drain for a while, then cancel, then give up; and say what was left. With signals, by `drain_on_signal`."""
    is_over = asyncio.Event()

    async def send(mail: str) -> None:
        if mail == "short":
            return
        while not is_over.is_set():
            try:
                await is_over.wait()
            except asyncio.CancelledError:
                if mail != "stubborn":  # the others end, as every job should
                    raise

    pool = WorkerPool(send, workers=2, name="mails")
    await pool.start()
    for mail in ("short", "long", "stubborn", "last"):
        await pool.submit(mail)
    report = await pool.close(drain_timeout=0.2, grace=0.2)
    print(f"closed: {pool.stats.succeeded} done in time, {len(report.unfinished)} left")
    for left in report.unfinished:
        if left in report.abandoned:
            print(f"{left.job}: ignores its cancellation, and still runs")
        else:
            print(f"{left.job}: {'cut off, it may have had effects' if left.started else 'not begun: do it next time'}")
    is_over.set()
    await asyncio.sleep(0.05)  # lets the stubborn one end


# -- Cleanup --


async def clean_up_connections() -> None:
    """One connection for each worker, which opens it, closes it, and replaces it when it broke."""
    opened = 0

    @asynccontextmanager
    async def connect() -> AsyncGenerator[str]:
        nonlocal opened
        opened += 1
        name = f"connection {opened}"
        print(f"{name} opened")
        try:
            yield name
        finally:
            print(f"{name} closed")

    async def send(mail: str, connection: str) -> None:
        if mail == "second mail" and current_job().attempt == 1:
            raise ConnectionResetError(f"{connection} broke")
        print(f"{mail} sent over {connection}")

    async with WorkerPool(send, workers=1, resource=connect, retry=Retry(attempts=2, backoff=0.0)) as pool:
        await pool.map(["first mail", "second mail"])


async def clean_up_the_source() -> None:
    """A loop that is left early: the stream cancels its jobs and closes its source, and `async with` waits for both."""

    def lines() -> Iterator[float]:
        print("file opened")
        try:
            yield 0.01
            while True:
                yield LONG
        finally:
            print("file closed")

    async with WorkerPool(work, workers=2) as pool:
        async with pool.map(lines()) as values:
            async for value in values:
                print(f"{value}: that is enough")
                break
        print(f"{pool.stats.running} jobs run, and {pool.stats.queued} are queued")


# -- Errors --


async def divide(number: int) -> int:
    """A job that fails for 0."""
    await asyncio.sleep(number / 100)
    return 12 // number


async def read_all_outcomes() -> None:
    """Each failure is data, and stops no other job."""
    async with WorkerPool(divide, workers=2) as pool:
        async for outcome in pool.outcomes([2, 0, 3], ordered=True):
            match outcome:
                case Succeeded(job, value):
                    print(f"12 // {job} = {value}")
                case Failed(job, error):
                    print(f"12 // {job}: {error}")
                case Cancelled(job, reason):
                    print(f"12 // {job}: cancelled by {reason}")


async def stop_at_the_first_error() -> None:
    """The first failure is raised, after the values before it, and the jobs after it are cancelled."""
    async with WorkerPool(divide, workers=2) as pool:
        try:
            async for value in pool.map([2, 3, 0, *range(100, 200)]):
                print(value)
        except ZeroDivisionError as error:
            await pool.join()
            print(f"{error}; {pool.stats.succeeded} done, {pool.stats.failed} failed, the others cancelled")


async def see_what_nobody_reads() -> None:
    """Fire and forget: a failure that nobody asked for is counted and logged, and never lost. So look at the log."""
    async with WorkerPool(divide, workers=2, name="forgotten") as pool:
        for number in (4, 0, 6):
            await pool.submit(number)
        await pool.join()
        print(f"{pool.stats.succeeded} done, {pool.stats.failed} failed, of which unread: {pool.stats.unread_failures}")


class PrintedLog(logging.Handler):
    """Prints the first line of each record: what a program's log file would hold, with the traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        print(f"{record.levelname} in the log: {record.getMessage()}")


@contextmanager
def printed_log() -> Generator[None]:
    """What the library logs in this block is printed too."""
    log, handler = logging.getLogger("asyncpool"), PrintedLog()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


PRACTICES = {
    "How many workers: jobs that wait": workers_for_waiting,
    "How many workers: jobs that compute": workers_for_computing,
    "Cancellation: a job": cancel_a_job,
    "Cancellation: a caller": cancel_a_caller,
    "Cancellation: a timeout of each attempt": time_out_an_attempt,
    "Cancellation: a deadline of all": set_a_deadline,
    "Buffer sizes: reject": reject_what_is_too_much,
    "Buffer sizes: wait": wait_for_room,
    "Buffer sizes: a slow reader": read_slowly,
    "Shutdown: in time, and saying what is left": stop_in_time,
    "Cleanup: connections": clean_up_connections,
    "Cleanup: the source of a stream": clean_up_the_source,
    "Errors: all outcomes": read_all_outcomes,
    "Errors: stop at the first": stop_at_the_first_error,
    "Errors: those that nobody reads": see_what_nobody_reads,
}


async def show_all() -> None:
    """Show one after the other."""
    with printed_log():
        for number, (title, show) in enumerate(PRACTICES.items()):
            if number:
                print()
            print(f"== {title} ==")
            await show()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if there are arguments."""
    parser = Parser(
        prog="best_practices",
        usage="python -m examples.best_practices",
        description="Fifteen best practices of worker pools, each a function that does it and prints what it shows.",
    )
    parser.parse_args(arguments)
    return finish("best_practices", show_all, lambda: "not all of them were shown")


if __name__ == "__main__":
    with starting("best_practices"):
        sys.exit(main())
