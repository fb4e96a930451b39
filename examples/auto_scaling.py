"""A pool that grows with its backlog and shrinks when idle: 2 to 10 workers, a burst of 100 jobs, then nothing.

    python -m examples.auto_scaling

The equivalent Go program has a goroutine that checks the length of the channel every 100 ms, and starts a worker if
more than five jobs per worker are waiting. A worker that was idle for 30 s exits. Here the policy `AutoScale` does
both, with an idle timeout of 3 s to keep the example short.
"""

from __future__ import annotations

import sys

from examples.command_line import Parser, finish, positive, starting, whole

with starting("auto_scaling"):
    import asyncio
    import logging
    import math
    from collections.abc import Sequence
    from dataclasses import dataclass

    from asyncpool import AutoScale, Event, WorkerPool
    from asyncpool.events import PoolResized
    from examples.live_view import Gauge, live_view

__all__ = ["Burst", "Options", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    min: int = 2
    max: int = 10
    jobs: int = 100
    job_time: float = 0.1
    idle_timeout: float = 3.0


class Burst:
    """One burst of jobs through a pool that scales."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.done: list[int] = []
        """The finished jobs, in order of completion."""
        self.sizes: list[int] = []
        """The target number of workers after each decision."""

    async def run(self) -> None:
        """Submit the jobs, wait for them, then wait until the pool has shrunk to its initial size."""
        options, loop = self.options, asyncio.get_running_loop()
        is_small_again = asyncio.Event()

        async def work(job: int) -> None:
            await asyncio.sleep(options.job_time)
            self.done.append(job)

        def observe(event: Event) -> None:
            if isinstance(event, PoolResized):
                self.sizes.append(event.new)
                view.say(f"{event.old} -> {event.new} workers: {event.reason}")
                if event.new <= options.min:
                    is_small_again.set()

        def gauges() -> Sequence[Gauge]:
            stats = pool.stats
            size, queued, done = stats.target_workers, stats.queued, stats.succeeded
            return (
                Gauge(name="workers", value=size, full=options.max, words=f"{size} workers, {stats.running} busy"),
                Gauge(name="queue", value=queued, full=options.jobs, words=f"{queued} jobs queued"),
                Gauge(name="done", value=done, full=options.jobs, words=f"{done} done ({stats.throughput:.1f} jobs/s)"),
            )

        policy = AutoScale(options.min, options.max, idle_timeout=options.idle_timeout)
        async with WorkerPool(work, workers=policy, observers=[observe]) as pool, live_view(gauges) as view:
            view.say(f"submitting {options.jobs} jobs of {options.job_time:g} s to {options.min} workers")
            began = loop.time()
            for job in range(options.jobs):
                await pool.submit(job)  # waits while the queue is full: it holds 10 jobs per worker
            await pool.join()
            ended = loop.time()
            view.say("all jobs are done")
            if pool.stats.target_workers > options.min:
                is_small_again.clear()
                await is_small_again.wait()
            idle = loop.time() - ended
        stats = pool.stats
        least = math.ceil(options.jobs / options.max) * options.job_time
        print(
            f"{stats.succeeded} jobs in {ended - began:.2f} s, on up to {stats.peak_running} workers; "
            f"a fixed pool of {options.max} needs at least {least:.2f} s."
        )
        print(f"Back to {options.min} workers {idle:.1f} s after the last job.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    burst = Burst(_parse(arguments))
    logging.getLogger("asyncpool").setLevel(logging.ERROR)  # after a Ctrl+C, finish() reports the unfinished jobs
    return finish("auto_scaling", burst.run, lambda: f"{len(burst.done)} of {burst.options.jobs} jobs were done")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="auto_scaling",
        usage="python -m examples.auto_scaling [options]",
        description="Run a burst of jobs in a pool that grows with its backlog and shrinks when idle.",
    )
    default, add = Options(), parser.add_argument
    add("--min", type=whole(0, 10_000), metavar="N", help=f"minimum number of workers ({default.min})")
    add("--max", type=whole(1, 10_000), metavar="N", help=f"maximum number of workers ({default.max})")
    add("--jobs", type=whole(1, 10_000_000), metavar="N", help=f"number of jobs ({default.jobs})")
    add("--job-time", type=positive(3600), metavar="S", help=f"duration of a job in seconds ({default.job_time:g})")
    add(
        "--idle-timeout",
        type=positive(3600),
        metavar="S",
        help=f"seconds until an idle worker retires ({default.idle_timeout:g}; the library's own default is 30)",
    )
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    found = parser.parse_args(arguments)
    if found.max < found.min:
        parser.error(f"--max must be at least --min, got {found.max} and {found.min}")
    return Options(**vars(found))


if __name__ == "__main__":
    with starting("auto_scaling"):
        sys.exit(main())
