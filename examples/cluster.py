"""A Dask cluster that loses a worker in the middle of the work, and a pool that loses no job.

    python -m examples.cluster

It starts a scheduler and two workers on this machine and runs `examples/crunch.py` on them. When half of the jobs are
done, it kills a worker with `kill -9` and starts a new one. At the end it prints how many attempts were rerun, and
checks the result of the jobs.
"""

from __future__ import annotations

import sys

from examples.command_line import FAILED, Parser, starting, whole

with starting("cluster"):
    import asyncio
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass

    from examples.crunch import DASK, Crunch, Options, Pool, Row, finish_crunch
    from examples.dask_cluster import dask_cluster

__all__ = ["Demo", "main", "primes_below"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The command-line arguments, and the demo itself."""

    upto: int = 1_000_000
    workers: int = 2
    kills: int = 1

    def run(self) -> int:
        """Start the cluster, run the jobs, kill workers, and return the exit status."""
        from asyncpool.dask import Dask  # fail early if Dask is not installed

        del Dask
        with dask_cluster(self.workers) as cluster:
            count = self.workers
            options = Options(upto=self.upto, ways=(DASK,), processes=count, wait_for=count, dask=cluster.address)
            print(f"Scheduler at {cluster.address}, with {self.workers} workers", flush=True)
            killed = 0

            def kill_in_the_middle(row: Row, pool: Pool, say: Callable[[str], None]) -> None:
                nonlocal killed
                is_time = row.done >= options.jobs * (killed + 1) / (self.kills + 1)
                if killed < self.kills and is_time and pool.stats.processes == self.workers:
                    killed += 1
                    # A little later, because a worker whose jobs have just finished has no others yet.
                    asyncio.get_running_loop().call_later(0.003, kill, say)

            def kill(say: Callable[[str], None]) -> None:
                say(f"killed worker process {cluster.kill_worker()} with kill -9; starting a new one")
                cluster.add_worker()

            crunch = Crunch(options, kill_in_the_middle)
            status = crunch.run()
        if status:
            return status
        [row] = crunch.rows
        expected = primes_below(self.upto)
        if (row.done, row.primes) != (options.jobs, expected):
            print(
                f"cluster: error: {row.done:,} of {options.jobs:,} jobs found {row.primes:,} primes, "
                f"but there are {expected:,}",
                file=sys.stderr,
            )
            return FAILED
        if killed < self.kills:
            print(f"Only {killed} of {self.kills} workers were killed: there were too few jobs.")
        print(f"No job was lost: {row.done:,} jobs, {row.done:,} outcomes, and the same primes as a sieve finds.")
        return 0


def primes_below(limit: int) -> int:
    """Count primes with the sieve of Eratosthenes, for comparison."""
    sieve = bytearray([1]) * limit
    sieve[:2] = bytes(min(limit, 2))
    number = 2
    while number * number < limit:
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
        number += 1
    return sum(sieve)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    return finish_crunch("cluster", _parse(arguments).run)


def _parse(arguments: Sequence[str] | None) -> Demo:
    parser = Parser(
        prog="cluster",
        usage="python -m examples.cluster [options]",
        description="Run jobs on a Dask cluster on this machine, kill a worker, and show that no job is lost.",
    )
    default, add = Demo(), parser.add_argument
    add("--upto", type=whole(1, 100_000_000), metavar="N", help=f"count the primes below N ({default.upto})")
    add("--workers", type=whole(1, 64), metavar="N", help=f"number of workers in the cluster ({default.workers})")
    add("--kills", type=whole(0, 100), metavar="N", help=f"number of workers to kill ({default.kills})")
    parser.set_defaults(**{name: getattr(default, name) for name in Demo.__slots__})
    return Demo(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    with starting("cluster"):
        sys.exit(main())
