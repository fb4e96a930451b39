"""Best practices for worker pools. Each is a function that applies one and prints the result.

    python -m examples.best_practices

The topics are those that Go programmers discuss: the number of workers, cancellation, buffer sizes, a shutdown that
cannot hang, cleanup, errors. The pool's `timeout`, or a cancel scope around a block, replaces a context. `queue_size`
replaces the buffer of a channel.
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
"""The duration in seconds of a job that will be cancelled."""


async def work(seconds: float) -> float:
    """A job that takes the given number of seconds."""
    await asyncio.sleep(seconds)
    return seconds


# -- How many workers --


async def workers_for_waiting() -> None:
    """I/O-bound jobs: enough workers for the rate, but no more than the backend or the event loop can handle."""
    print("500 requests/s of 0.2 s:", recommended_workers(seconds=0.2, rate=500))
    print("... if the database has 30 connections:", recommended_workers(seconds=0.2, rate=500, limit=30))
    print("... if parsing each takes 10 ms of CPU:", recommended_workers(seconds=0.2, rate=500, cpu_seconds=0.01))
    async with WorkerPool(work, workers=recommended_workers(seconds=0.2, rate=500, limit=30)) as pool:
        await pool.map([0.01] * 90)
    print(f"{pool.stats.succeeded} jobs done, at most {pool.stats.peak_running} at a time")


def hash_of(password: str) -> str:
    """A CPU-bound job. Threads are enough, because it releases the GIL; pure Python code needs processes."""
    return hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 20_000).hex()


async def workers_for_computing() -> None:
    """CPU-bound jobs: one worker per processor, outside of the event loop."""
    processors = os.cpu_count() or 1
    async with WorkerPool(offload(hash_of), workers=processors) as pool:
        hashes = await pool.map(["swordfish", "hunter2", "123456", "qwerty"])
    print(f"{len(hashes)} hashes (the first: {hashes[0][:8]}...) on {processors} workers for {processors} processors")


# -- Cancellation --


async def cancel_a_job() -> None:
    """Cancel one job by its handle. A queued job frees its place immediately; a running one gets a CancelledError."""
    async with WorkerPool(work, workers=1) as pool:
        running, queued = await pool.submit(LONG), await pool.submit(LONG)
        await asyncio.sleep(0.05)
        for handle in (running, queued):
            handle.cancel()
        print(await running.outcome())
        print(await queued.outcome())


async def cancel_a_caller() -> None:
    """Cancel a caller of `run()`, for example when a client disconnects. This also cancels its job."""
    async with WorkerPool(work, workers=1) as pool:
        client = asyncio.create_task(pool.run(LONG))
        await asyncio.sleep(0.05)
        client.cancel()
        await asyncio.wait([client])
        print(f"the caller and its job are gone: {pool.stats.cancelled} cancelled, {pool.stats.running} running")


async def answer(question: str) -> str:
    """A job that hangs in its first attempt, and knows how much time it has."""
    attempt = current_job().attempt
    left = anyio.current_effective_deadline() - anyio.current_time()
    print(f"{question!r}: attempt {attempt} has {left:.1f} s")
    if attempt == 1 or question == "hopeless":
        await asyncio.sleep(LONG)
    return f"{question!r}: answered in attempt {attempt}"


async def time_out_an_attempt() -> None:
    """Set a timeout for each attempt. The handler can read its deadline, like `ctx.Deadline()` in Go."""
    async with WorkerPool(answer, workers=1, timeout=0.2, retry=Retry(attempts=2, backoff=0.0)) as pool:
        print(await pool.run("hard"))
        try:
            await pool.run("hopeless")
        except JobTimeout as error:
            print(f"'hopeless': {error}")


async def set_a_deadline() -> None:
    """Set a deadline for a whole block. It cancels the jobs of the stream, and the pool stays usable."""
    jobs = [0.01, 0.01, 0.01, LONG, LONG, LONG, LONG]
    async with WorkerPool(work, workers=2) as pool:
        done = 0
        try:
            with anyio.fail_after(0.5):
                async with pool.map(
                    jobs
                ) as values:  # unlike a plain `async for`, this waits until the rest has stopped
                    async for _ in values:
                        done += 1
        except TimeoutError:
            print(f"anyio.fail_after: {done} of {len(jobs)} jobs were done in time")
        try:
            async with asyncio.timeout(0.5):
                await pool.map(jobs)  # all values or none
        except TimeoutError:
            print("asyncio.timeout: not all jobs were done in time")
        await pool.join()
        print(f"{pool.stats.cancelled} jobs were cancelled; the pool still works: {await pool.run(0.01)}")


# -- Buffer sizes --


async def reject_when_full() -> None:
    """Reject jobs by `submit_nowait` or `run(if_full="raise")`, like a service that sends a 503 instead of waiting."""
    for queue_size in (0, 3, None):
        async with WorkerPool(work, workers=2, queue_size=queue_size) as pool:
            handles = []
            try:
                while True:
                    handles.append(pool.submit_nowait(0.01))
            except QueueFull:
                print(f"queue_size={queue_size}, 2 workers: {len(handles)} jobs accepted, the next one rejected")


async def wait_for_room() -> None:
    """Wait for room by `submit`: even a fast producer is ahead by at most the queue and the workers."""
    for queue_size in (0, 3, None):
        ahead = 0
        async with WorkerPool(work, workers=2, queue_size=queue_size) as pool:
            for _ in range(60):
                await pool.submit(0.001)
                stats = pool.stats
                ahead = max(ahead, stats.queued + stats.running)
        print(f"queue_size={queue_size}: a producer of {pool.stats.submitted} jobs was at most {ahead} ahead")


async def read_slowly() -> None:
    """Read slowly: this slows the source down. Of a million jobs only a few exist at a time, never a list of them."""
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
    print(f"read {read}, pulled {pulled}: at most {ahead} ahead (queue_size 4 + 2 workers)")


# -- Shutdown --


async def stop_in_time() -> None:
    """Drain for a while, then cancel, then give up, and report what is left. `drain_on_signal` does it on a signal."""
    is_over = asyncio.Event()

    async def send(mail: str) -> None:
        if mail == "short":
            return
        while not is_over.is_set():
            try:
                await is_over.wait()
            except asyncio.CancelledError:
                if mail != "stubborn":  # the others stop, as every job should
                    raise

    pool = WorkerPool(send, workers=2, name="mails")
    await pool.start()
    for mail in ("short", "long", "stubborn", "last"):
        await pool.submit(mail)
    report = await pool.close(drain_timeout=0.2, grace=0.2)
    print(f"closed: {pool.stats.succeeded} done in time, {len(report.unfinished)} left")
    for left in report.unfinished:
        if left in report.abandoned:
            print(f"{left.job}: ignores its cancellation and is still running")
        else:
            print(f"{left.job}: {'cancelled, may have had effects' if left.started else 'not started, safe to redo'}")
    is_over.set()
    await asyncio.sleep(0.05)  # let the stubborn job stop


# -- Cleanup --


async def clean_up_connections() -> None:
    """Give each worker a connection. The worker opens it, closes it, and replaces it when it breaks."""
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
    """Leave a loop early: the stream cancels its jobs and closes its source, and `async with` waits for both."""

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
                print(f"{value}: leaving the loop")
                break
        print(f"{pool.stats.running} jobs running, {pool.stats.queued} queued")


# -- Errors --


async def divide(number: int) -> int:
    """A job that fails for 0."""
    await asyncio.sleep(number / 100)
    return 12 // number


async def read_all_outcomes() -> None:
    """Read all outcomes: failures are data and do not stop other jobs."""
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
    """Stop at the first error: it is raised after the values before it, and the jobs after it are cancelled."""
    async with WorkerPool(divide, workers=2) as pool:
        try:
            async for value in pool.map([2, 3, 0, *range(100, 200)]):
                print(value)
        except ZeroDivisionError as error:
            await pool.join()
            print(f"{error}; {pool.stats.succeeded} done, {pool.stats.failed} failed, the others cancelled")


async def see_unread_failures() -> None:
    """Submit jobs without reading their outcomes: unread failures are counted and logged. So check the log."""
    async with WorkerPool(divide, workers=2, name="forgotten") as pool:
        for number in (4, 0, 6):
            await pool.submit(number)
        await pool.join()
        print(f"{pool.stats.succeeded} done, {pool.stats.failed} failed, unread failures: {pool.stats.unread_failures}")


class PrintedLog(logging.Handler):
    """Prints the first line of each record. The log file of a program would also have the traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        print(f"{record.levelname} in the log: {record.getMessage()}")


@contextmanager
def printed_log() -> Generator[None]:
    """Print the log records of the library while the block runs."""
    log, handler = logging.getLogger("asyncpool"), PrintedLog()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


PRACTICES = {
    "Number of workers: I/O-bound jobs": workers_for_waiting,
    "Number of workers: CPU-bound jobs": workers_for_computing,
    "Cancellation: one job": cancel_a_job,
    "Cancellation: a caller": cancel_a_caller,
    "Cancellation: a timeout for each attempt": time_out_an_attempt,
    "Cancellation: a deadline for a block": set_a_deadline,
    "Buffer sizes: reject when full": reject_when_full,
    "Buffer sizes: wait for room": wait_for_room,
    "Buffer sizes: a slow reader": read_slowly,
    "Shutdown: in time, with a report": stop_in_time,
    "Cleanup: connections": clean_up_connections,
    "Cleanup: the source of a stream": clean_up_the_source,
    "Errors: read all outcomes": read_all_outcomes,
    "Errors: stop at the first one": stop_at_the_first_error,
    "Errors: unread failures": see_unread_failures,
}


async def show_all() -> None:
    """Run all functions, one after the other."""
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
        description="Show fifteen best practices for worker pools. Each is a function that prints its result.",
    )
    parser.parse_args(arguments)
    return finish("best_practices", show_all, lambda: "not all practices were shown")


if __name__ == "__main__":
    with starting("best_practices"):
        sys.exit(main())
