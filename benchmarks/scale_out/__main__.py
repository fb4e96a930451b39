"""`python -m benchmarks.scale_out`: compares a pool that uses an engine with the same pool without one.

    python -m benchmarks.scale_out --engine processes
    python -m benchmarks.scale_out --engine dask noop cpu        # starts a local cluster
    python -m benchmarks.scale_out --engine dask --address tcp://scheduler:8786

The program and its processes share the cores of this machine. Each figure is the best of several rounds, because other
load can only make it worse.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from asyncpool import Processes, WorkerPool
from benchmarks.command import finish
from benchmarks.harness import Settings, machine
from benchmarks.memory import resident
from benchmarks.scale_out.work import cpu, io, noop, uneven

__all__ = ["main"]

_ROUND_TRIPS = 300
_CLUSTER = """
import sys
from distributed import LocalCluster
with LocalCluster(n_workers=int(sys.argv[1]), threads_per_worker=1, dashboard_address=None) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A handler, its number of jobs, and the numbers of workers to measure."""

    handler: Any
    jobs: int
    workers: tuple[int, ...]


CASES = {
    "noop": Case(noop, 40_000, (200, 2000)),
    "io": Case(io, 20_000, (200, 1000)),
    "cpu": Case(cpu, 1_000, (16, 64)),
    "uneven": Case(uneven, 2_000, (20,)),
}
OTHERS = ("roundtrip", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.questions) - {*CASES, *OTHERS}:
        parser.error(f"unknown question {min(unknown)!r}")
    if options.engine == "dask" and find_spec("distributed") is None:
        parser.error("--engine dask needs Dask: python3 -m pip install 'asyncpool-toolkit[dask]'")
    about = machine(Settings())
    width = max(map(len, about))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in about.items()), flush=True)
    with _engine(options) as engine:
        engines = {"no engine": None, type(engine).__name__: engine}
        for name in options.questions or (*CASES, "roundtrip"):
            print(f"\n{name}", flush=True)
            for label, one in engines.items():
                asyncio.run(_ask(name, label, one, options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", metavar="question", help="default: all but memory")
    parser.add_argument("--engine", choices=["processes", "dask"], default="processes")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        metavar="N",
        help="number of processes to start, or of the cluster (default: 2)",
    )
    parser.add_argument("--address", help="address of a Dask scheduler (default: start a local cluster)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="number of rounds, of which the best counts (default: 3)"
    )
    parser.add_argument("--quick", action="store_true", help="a hundredth of the jobs: to see that everything runs")
    return parser


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[Any]:
    if options.engine == "processes":
        yield Processes(options.processes)
        return
    from asyncpool.dask import Dask

    if options.address:
        yield Dask(options.address)
        return
    # In a process of its own, because the cost of the scheduler is not a cost of the program.
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER, str(options.processes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        with cluster.stdin:  # the cluster ends when this is closed, and so when this process ends
            yield Dask(cluster.stdout.readline().strip())


async def _ask(name: str, label: str, engine: Any, options: argparse.Namespace) -> None:
    if name == "roundtrip":
        await _round_trip(label, engine)
    elif name == "memory":
        await _memory(label, engine, 1_000_000 // (100 if options.quick else 1))
    else:
        case = CASES[name]
        for workers in case.workers:
            jobs = case.jobs // (100 if options.quick else 1)
            await _throughput(label, engine, case.handler, jobs, workers, options)


async def _throughput(
    label: str, engine: Any, handler: Any, jobs: int, workers: int, options: argparse.Namespace
) -> None:
    rates, firsts, costs = [], [], []
    for _ in range(options.rounds):
        async with WorkerPool(handler, workers=workers, engine=engine) as pool:
            await _until_joined(pool, 0 if engine is None else options.processes)
            await pool.map(range(min(jobs, 2 * workers)))
            first = 0.0
            count = 0
            used, began = time.process_time(), time.perf_counter()
            async for value in pool.map(range(jobs)):
                first = first or time.perf_counter() - began
                count += value >= 0
            rates.append(count / (time.perf_counter() - began))
            costs.append((time.process_time() - used) / jobs)
            firsts.append(first)
    print(
        f"  {label:<10} {workers:>5} workers {max(rates):>9,.0f} jobs/s (median {statistics.median(rates):>9,.0f})"
        f"   first outcome {min(firsts) * 1e3:>6.1f} ms   CPU here {min(costs) * 1e6:>5.1f} us a job",
        flush=True,
    )


async def _until_joined(pool: WorkerPool[Any, Any], processes: int) -> None:
    while pool.stats.processes < processes:  # noqa: ASYNC110 -- a pool has no event for that
        await asyncio.sleep(0.01)


async def _round_trip(label: str, engine: Any) -> None:
    async with WorkerPool(noop, workers=2, engine=engine) as pool:
        times = []
        for _ in range(_ROUND_TRIPS):
            began = time.perf_counter()
            await pool.run(1)
            times.append(time.perf_counter() - began)
    print(f"  {label:<10} median {statistics.median(times) * 1e3:.3f} ms, least {min(times) * 1e3:.3f} ms", flush=True)


async def _memory(label: str, engine: Any, jobs: int) -> None:
    async with WorkerPool(noop, workers=1000, engine=engine) as pool:
        await pool.map(range(20_000))
        before, began, count = resident(), time.perf_counter(), 0
        async for _ in pool.outcomes(range(jobs)):
            count += 1
        rate = count / (time.perf_counter() - began)
    grown = (resident() - before) / 2**20
    print(f"  {label:<10} {count:,} jobs, {rate:,.0f} jobs/s: this process grew by {grown:.1f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(finish(main))
