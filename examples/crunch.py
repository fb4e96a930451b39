"""The same CPU-bound work in a plain loop, in one process, on all cores and on a Dask cluster. It can be resumed.

    python -m examples.crunch                           all cores of this machine
    python -m examples.crunch --all                     compare a loop, one process and all cores
    python -m examples.crunch --dask tcp://host:8786    a Dask cluster; --dask local starts one here
    python -m examples.crunch --journal primes.db       press Ctrl+C and run it again: it continues

It counts primes in pure Python, so threads would not help. Each job is a range of numbers. The pools only differ in
`engine=`: see `run_pool`.
"""

from __future__ import annotations

import sys

from examples.command_line import FAILED, INTERRUPTED, OK, USAGE, Parser, finish_plain, printable, starting, whole

with starting("crunch"):
    import asyncio
    import math
    import os
    import time
    from collections.abc import Callable, Generator, Iterator, Sequence
    from contextlib import contextmanager, suppress
    from dataclasses import dataclass
    from pathlib import Path

    from rich.console import Console

    from asyncpool import (
        Failed,
        Journal,
        Outcome,
        PoolClosed,
        PoolError,
        Processes,
        Stream,
        Succeeded,
        WorkerPool,
        drain_on_signal,
    )
    from asyncpool.engines import Engine
    from asyncpool.progress import track
    from examples.dask_cluster import dask_cluster

__all__ = ["Crunch", "Options", "Row", "count_primes", "main"]

SEQUENTIAL, NONE, PROCESSES, DASK = "sequential", "none", "processes", "dask"
WORKERS_PER_PROCESS = 8
"""More than one job per process, so that the next one is already there when a job finishes."""

_LONGEST_START = 30.0  # seconds

Chunk = tuple[int, int]


# -- The work --


async def count_primes(chunk: Chunk) -> int:
    """Count the primes of a chunk: the handler.

    It never awaits, so it blocks the event loop of its process and cannot be cancelled. Jobs should take milliseconds.
    """
    return primes_in(chunk)


def primes_in(chunk: Chunk) -> int:
    """Count the primes from the first number up to, but not including, the second."""
    return sum(map(is_prime, range(*chunk)))


def is_prime(number: int) -> bool:
    """Try all divisors up to the square root."""
    if number < 4 or number % 2 == 0 or number % 3 == 0:
        return number in (2, 3)
    return all(number % divisor and number % (divisor + 2) for divisor in range(5, math.isqrt(number) + 1, 6))


# -- The ways --


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    upto: int = 1_000_000
    chunk: int = 1_000
    ways: Sequence[str] = (PROCESSES,)
    processes: int = 1
    wait_for: int = 1
    """The number of processes that must be ready before the first job."""
    workers: int | None = None
    dask: str | None = None
    journal: Path | None = None

    @property
    def jobs(self) -> int:
        """The number of jobs."""
        return math.ceil(self.upto / self.chunk)

    def chunks(self) -> Iterator[Chunk]:
        """Return the jobs."""
        return ((begin, min(begin + self.chunk, self.upto)) for begin in range(0, self.upto, self.chunk))


@dataclass(slots=True, kw_only=True)
class Row:
    """The results of one way to run the jobs."""

    name: str
    start: float = 0.0
    """Seconds until its processes were ready."""
    seconds: float = 0.0
    """Seconds from then on to the last outcome."""
    done: int = 0
    """The number of jobs done in this run."""
    earlier: int = 0
    """The number of jobs done in earlier runs, according to the journal."""
    failed: int = 0
    error: str = ""
    """The first failure."""
    primes: int = 0
    reruns: int = 0
    """The number of attempts that were rerun because their process was lost."""
    lost: int = 0
    """The number of lost processes."""

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.done / self.seconds if self.seconds else 0.0

    def count(self, outcome: Outcome[Chunk, int]) -> None:
        """Count the outcome of a job."""
        if isinstance(outcome, Succeeded):
            self.primes += outcome.value
            if outcome.attempts:
                self.done += 1
            else:
                self.earlier += 1
        elif isinstance(outcome, Failed):
            self.failed += 1
            self.error = self.error or str(outcome)


Pool = WorkerPool[Chunk, int]
Hook = Callable[[Row, Pool, Callable[[str], None]], object]
"""A function that is called with the row, the pool, and a function that prints a line."""


class Crunch:
    """Runs the jobs in each of the chosen ways, one after the other."""

    def __init__(self, options: Options, on_outcome: Hook = lambda row, pool, say: None) -> None:
        self.options = options
        self.on_outcome = on_outcome
        """Called after each outcome of a pool."""
        self.journal = None if options.journal is None else journal_in(options.journal)
        self.rows: list[Row] = []
        self.is_interrupted = False

    def run(self) -> int:
        """Run the jobs in all ways, print the figures, and return the exit status."""
        options = self.options
        try:
            print(f"Counting the primes below {options.upto:,} in {options.jobs:,} jobs", flush=True)
            for way in options.ways:
                if self.is_interrupted:
                    break
                if way == SEQUENTIAL:
                    self.run_sequential()
                else:
                    with engine_for(way, options) as engine:
                        asyncio.run(self.run_pool(way, engine))
        except KeyboardInterrupt:  # outside of a pool, which would drain instead
            self.is_interrupted = True
        for line in self.table() if self.rows else ():
            print(line)
        return self.sum_up()

    def run_sequential(self) -> None:
        """Run the jobs in a loop, without a pool."""
        row = Row(name=SEQUENTIAL)
        self.rows.append(row)
        began = time.perf_counter()
        try:
            for chunk in self.options.chunks():
                row.primes += primes_in(chunk)
                row.done += 1
        finally:
            row.seconds = time.perf_counter() - began

    async def run_pool(self, way: str, engine: Engine | None) -> None:
        """Run the jobs in a pool, with or without an engine."""
        options, loop = self.options, asyncio.get_running_loop()
        workers = options.workers or WORKERS_PER_PROCESS * (1 if way == NONE else options.processes)
        pool = WorkerPool(count_primes, workers=workers, engine=engine, name="crunch")
        row = Row(name=f"{_NAMES[way]}, {workers} workers")

        def say(text: str) -> None:
            with suppress(OSError):  # callbacks call this; print() below raises it again
                print(f"{loop.time() - began:5.1f} s  {text}", flush=True)

        began = loop.time()
        async with pool:
            self.rows.append(row)
            if engine is not None:
                await self.wait_for_processes(pool, min(options.wait_for, workers))
            row.start = loop.time() - began
            say(f"{row.name}: ready after {row.start:.2f} s")
            stream = track(self.outcomes(pool), total=options.jobs, interval=1.0, console=Console())
            with drain_on_signal(pool) as signals, suppress(PoolClosed):
                async with stream as outcomes:
                    try:
                        async for outcome in outcomes:
                            row.count(outcome)
                            self.on_outcome(row, pool, say)
                    finally:
                        row.seconds = loop.time() - began - row.start
                        self.is_interrupted = signals.received > 0
        row.reruns, row.lost = pool.stats.reruns, pool.stats.processes_lost

    async def wait_for_processes(self, pool: Pool, count: int) -> None:
        """Wait until all processes are ready, for comparable figures. A pool itself only waits for the first one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_START):
                while pool.stats.processes < count and pool.state == "open":  # noqa: ASYNC110 -- an observer would be called for each job too
                    await asyncio.sleep(0.01)

    def outcomes(self, pool: Pool) -> Stream[Outcome[Chunk, int]]:
        """Return the stream of a pool. With a journal, it has values of finished jobs without running them again."""
        chunks = self.options.chunks()
        if self.journal is None:
            return pool.outcomes(chunks)
        return self.journal.outcomes(pool, chunks, earlier=True)

    # -- Output --

    def table(self) -> Iterator[str]:
        """Return the lines of the table of figures."""
        sequential = next((row.rate for row in self.rows if row.name == SEQUENTIAL), 0.0)
        wide = max((len(row.name) for row in self.rows), default=0)
        yield f"{'':{wide}}{'jobs':>9}{'start':>9}{'seconds':>9}{'jobs/s':>9}" + f"{'speed-up':>10}" * bool(sequential)
        for row in self.rows:
            yield (
                f"{row.name:{wide}}{row.done:>9,}{f'{row.start:.2f} s':>9}{f'{row.seconds:.2f} s':>9}{row.rate:>9,.0f}"
                + (f"{row.rate / sequential:>10.2f}" if sequential else "")
            )

    def sum_up(self) -> int:
        """Print the result, or what is left to do, and return the exit status."""
        jobs, rows, is_resumable = self.options.jobs, self.rows, self.options.journal is not None
        for row in rows:
            if row.earlier:
                print(f"{row.earlier:,} jobs were already done, according to {self.options.journal}")
            if row.lost:
                print(f"Processes lost: {row.lost}. Attempts rerun: {row.reruns}.")
            if row.failed:
                print(f"{row.failed:,} jobs failed; the first one: {printable(row.error)}")
        if self.is_interrupted:
            done = rows[-1].done + rows[-1].earlier if rows else 0
            hint = "; run the same command again to continue" if is_resumable else ""
            print(f"Interrupted: {done:,} of {jobs:,} jobs were done{hint}.", file=sys.stderr)
            return INTERRUPTED
        found = {row.primes for row in rows if row.done + row.earlier == jobs}
        if len(found) != 1 or any(row.failed for row in rows):
            print(f"crunch: error: the counts are incomplete or differ: {sorted(found)}", file=sys.stderr)
            return FAILED
        print(f"{found.pop():,} primes")
        return OK


_NAMES = {NONE: "one process", PROCESSES: "all cores", DASK: "Dask"}


def journal_in(file: Path) -> Journal[Chunk]:
    """Return a journal of the finished jobs and their values. The key is the range, so a later run can extend it."""
    return Journal(file, key=lambda chunk: "{}-{}".format(*chunk), version="primes", values=True)


@contextmanager
def engine_for(way: str, options: Options) -> Generator[Engine | None]:
    """Provide the value of `engine=`."""
    if way == NONE:
        yield None
    elif way == PROCESSES:
        yield Processes(options.processes)
    else:
        from asyncpool.dask import Dask

        if options.dask != "local":
            yield Dask(options.dask)
        else:
            with dask_cluster(options.processes) as cluster:
                yield Dask(cluster.address)


# -- The command --


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    return finish_crunch("crunch", Crunch(_parse(arguments)).run)


def finish_crunch(program: str, run: Callable[[], int]) -> int:
    """Call `run` and return the exit status. Errors of the journal and of the engine end in a one-line message."""
    status = OK

    def run_with_messages() -> None:
        nonlocal status
        try:
            status = run()
        except PoolError as error:  # the journal cannot be used, or the engine cannot be reached
            cause = f": {error.__cause__}" if error.__cause__ is not None else ""
            print(f"{program}: error: {printable(f'{error}{cause}')}", file=sys.stderr)
            status = FAILED
        except ModuleNotFoundError as error:
            if error.name != "distributed":
                raise
            print(f"{program}: error: {error}", file=sys.stderr)
            status = USAGE

    return finish_plain(program, run_with_messages) or status


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="crunch",
        usage="python -m examples.crunch [options]",
        description="Count primes in pure Python: in one process, on all cores, or on a Dask cluster.",
        epilog="Ctrl+C finishes accepted jobs; a second Ctrl+C cancels them. With --journal, the next run continues.",
    )
    default, cores, add = Options(), _cores(), parser.add_argument
    add("--upto", type=whole(1, 100_000_000), metavar="N", help=f"count the primes below N ({default.upto})")
    add("--chunk", type=whole(1, 1_000_000), metavar="N", help=f"how many numbers are in a job ({default.chunk})")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--engine",
        choices=(SEQUENTIAL, NONE, PROCESSES),
        help="a plain loop, a pool in this process, or a pool on all cores (the default on more than one core)",
    )
    ways.add_argument("--dask", metavar="ADDRESS", help="a pool on the cluster of this scheduler; 'local' starts one")
    ways.add_argument("--all", action="store_true", help="all values of --engine, one after the other")
    add("--processes", type=whole(1, 1_000), metavar="N", help=f"number of processes on this machine ({cores})")
    add(
        "--workers",
        type=whole(1, 100_000),
        metavar="N",
        help=f"number of workers ({WORKERS_PER_PROCESS} per process; for a cluster, choose a similar number)",
    )
    add("--journal", type=Path, metavar="FILE", help="record finished jobs in this file, and continue from it")
    parser.set_defaults(upto=default.upto, chunk=default.chunk, processes=cores)
    found = parser.parse_args(arguments)
    ways_asked: Sequence[str]
    if found.all:
        ways_asked = (SEQUENTIAL, NONE, PROCESSES)
    elif found.dask is not None:
        ways_asked = (DASK,)
    else:
        ways_asked = (found.engine or (PROCESSES if cores > 1 else NONE),)
    if found.dask is not None and not found.dask.strip():
        parser.error("argument --dask: must be the address of a scheduler, such as tcp://host:8786, or local")
    if found.journal is not None and SEQUENTIAL in ways_asked:
        parser.error("--journal needs a single pool: it cannot be combined with --all or --engine sequential")
    return Options(
        upto=found.upto,
        chunk=found.chunk,
        ways=ways_asked,
        processes=found.processes,
        wait_for=found.processes if found.dask in (None, "local") else 1,
        workers=found.workers,
        dask=found.dask,
        journal=found.journal,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    with starting("crunch"):
        sys.exit(main())
