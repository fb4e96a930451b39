"""A pool that discovers how much load a server can take: a crawl of a site whose capacity changes meanwhile.

    python -m examples.adaptive_crawl

The server handles 16 requests at a time, then 6, then 24. The crawler does not know these numbers; its pool has
`workers=Adaptive(1, 64)`. With fewer workers than the capacity, the crawl would be slower. With more, it would not be
faster: requests would only wait longer in the queue of the server.
"""

from __future__ import annotations

import sys

from examples.command_line import Parser, finish, positive, printable, starting, whole

with starting("adaptive_crawl"):
    import argparse
    import asyncio
    import bisect
    import logging
    import re
    from collections import deque
    from collections.abc import Iterator, Sequence
    from dataclasses import dataclass, field
    from statistics import median
    from urllib.parse import urljoin

    import aiohttp

    from asyncpool import Adaptive, Event, Outcome, Succeeded, WorkerPool
    from asyncpool.events import PoolResized
    from examples.crawl_site import Site
    from examples.live_view import Gauge, live_view

__all__ = ["Crawl", "Options", "main"]

_LINK = re.compile(r'<a href="([^"]*)">')


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    seconds: float = 30.0
    capacity: Sequence[int] = (16, 6, 24)
    max_workers: int = 64
    pages: int = 1_000_000
    service: float = 0.025


@dataclass(slots=True, kw_only=True)
class Phase:
    """A period of constant server capacity. Times are in seconds since the start."""

    capacity: int
    begin: float
    end: float
    latencies: list[float] = field(default_factory=list)
    """The latency of each page that arrived in the phase."""


class Crawl:
    """A crawl of the whole site, limited to the given time."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.site = Site(options.pages, capacity=options.capacity[0], seconds=options.service)
        length = options.seconds / len(options.capacity)
        self.phases = [
            Phase(capacity=capacity, begin=number * length, end=(number + 1) * length)
            for number, capacity in enumerate(options.capacity)
        ]
        self.fetched: list[str] = []
        self.failed: list[str] = []
        """The outcomes of the pages that could not be fetched."""
        self.left = 1
        """The number of pages that were found but not fetched."""
        self.sizes: list[tuple[float, int]] = [(0.0, 1)]
        """The target number of workers, with the time of each change."""
        self._recent: deque[tuple[float, float]] = deque()  # the arrival time and the latency of recent pages
        self._reason = "no decision yet"
        self._began = 0.0

    def _seconds(self) -> float:
        """Return the seconds since the crawl began."""
        return asyncio.get_running_loop().time() - self._began

    async def run(self) -> None:
        """Crawl for `options.seconds`, or until there are no more pages."""
        options, loop = self.options, asyncio.get_running_loop()
        # The workers limit the connections. The timeout is that of the pool, so that its policy sees timeouts.
        connector, no_timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)

        async def fetch(url: str) -> Sequence[str]:
            async with session.get(url) as response:
                response.raise_for_status()
                return [urljoin(url, link) for link in _LINK.findall(await response.text())]

        def observe(event: Event) -> None:
            if isinstance(event, PoolResized):
                self.sizes.append((self._seconds(), event.new))
                self._reason = f"{event.old} -> {event.new} workers: {event.reason}"

        def change(phase: Phase) -> None:
            self.site.resize(phase.capacity)
            view.say(f"the server now handles {phase.capacity} requests at a time")

        async with self.site, aiohttp.ClientSession(connector=connector, timeout=no_timeout) as session:
            policy = Adaptive(1, options.max_workers)
            pool = WorkerPool(fetch, workers=policy, timeout=30.0, observers=[observe], name="crawl")
            self._began = loop.time()
            async with pool, live_view(self._gauges) as view:
                changes = [loop.call_at(self._began + phase.begin, change, phase) for phase in self.phases]
                try:
                    async with asyncio.timeout(options.seconds):
                        await self._crawl(pool)
                except TimeoutError:
                    pass
                finally:
                    for timer in changes:
                        timer.cancel()
                    pool.cancel()
            self._sum_up(self._seconds())

    async def _crawl(self, pool: WorkerPool[str, Sequence[str]]) -> None:
        """Fetch the first page and, once each, all pages that fetched pages link to.

        Links that were found but not fetched are kept here, because their number has no limit and the queue of a pool
        has. A job that submitted its own links would wait for its own pool as soon as that is full.
        """
        seen = {self.site.home}
        frontier = deque(seen)
        window = 2 * self.options.max_workers
        in_progress = 0
        async with pool.group(window=window) as group:
            outcomes = aiter(group)
            while frontier or in_progress:
                # This task reads the group, so it must not wait for a place in the group's window.
                while frontier and in_progress < window:
                    await group.submit(frontier.popleft())
                    in_progress += 1
                outcome = await anext(outcomes)
                in_progress -= 1
                for link in self._take(outcome):
                    if link not in seen:
                        seen.add(link)
                        frontier.append(link)
                self.left = len(frontier) + in_progress

    def _take(self, outcome: Outcome[str, Sequence[str]]) -> Sequence[str]:
        """Count a page and return its links."""
        if not isinstance(outcome, Succeeded):
            self.failed.append(str(outcome))
            return ()
        now = self._seconds()
        self.fetched.append(outcome.job)
        number = bisect.bisect_right(self.phases, now, key=lambda phase: phase.begin) - 1
        self.phases[number].latencies.append(outcome.seconds_running)
        self._recent.append((now, outcome.seconds_running))
        return outcome.value

    # -- Output --

    def _gauges(self) -> Sequence[Gauge]:
        options, capacity, workers = self.options, self.site.capacity, self.sizes[-1][1]
        while self._recent and self._recent[0][0] < self._seconds() - 1.0:
            self._recent.popleft()
        rate = len(self._recent)
        latency = median(seconds for _, seconds in self._recent) if self._recent else 0.0
        most = max(*options.capacity, options.max_workers)
        return (
            Gauge(name="capacity", value=capacity, full=most, words=f"capacity {capacity}"),
            Gauge(name="workers", value=workers, full=most, words=f"{workers} workers"),
            Gauge(name="pages/s", value=rate, full=max(options.capacity) / options.service, words=f"{rate} pages/s"),
            Gauge(name="latency", value=latency, full=0.2, words=f"{latency * 1e3:.0f} ms"),
            Gauge(name="decision", words=self._reason),
        )

    def _sum_up(self, seconds: float) -> None:
        print(f"{len(self.fetched):,} pages in {seconds:.1f} s; {self.left:,} more found but not fetched")
        if self.failed:
            print(f"{len(self.failed):,} failed; the first one: {printable(self.failed[0])}")
        if self.fetched:
            for line in self._table(seconds):
                print(line)

    def _table(self, seconds: float) -> Iterator[str]:
        yield f"{'seconds':>11}{'capacity':>10}{'workers':>9}{'pages/s':>9}{'possible':>10}{'p50 latency':>13}"
        for phase in self.phases:
            begin, end = phase.begin, min(phase.end, seconds)
            if begin >= end or not phase.latencies:
                continue
            rate, possible = len(phase.latencies) / (end - begin), phase.capacity / self.options.service
            yield (
                f"{f'{begin:.1f}-{end:.1f}':>11}{phase.capacity:>10}{self._workers((begin + end) / 2, end):>9}"
                f"{rate:>9.0f}{possible:>10.0f}{median(phase.latencies) * 1e3:>10.0f} ms"
            )
        yield "(workers: the median over the second half of each phase, after the pool had time to adapt)"

    def _workers(self, begin: float, end: float) -> int:
        """Return the median over time of the target number of workers."""
        ends = [since for since, _ in self.sizes[1:]] + [end]
        spans = [
            (size, min(until, end) - max(since, begin))
            for (since, size), until in zip(self.sizes, ends, strict=True)
            if since < end and until > begin
        ]
        half = sum(span for _, span in spans) / 2
        for size, span in sorted(spans):
            half -= span
            if half <= 0:
                return size
        return self.sizes[-1][1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    crawl = Crawl(_parse(arguments))
    logging.getLogger("asyncpool").setLevel(logging.ERROR)  # unfinished jobs at the end are expected
    return finish("adaptive_crawl", crawl.run, lambda: f"{len(crawl.fetched):,} pages were fetched")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="adaptive_crawl",
        usage="python -m examples.adaptive_crawl [options]",
        description="Crawl a site on a local server whose capacity changes, with a pool that adapts to it.",
    )
    default, add = Options(), parser.add_argument
    add("--seconds", type=positive(86400), metavar="S", help=f"duration of all phases together ({default.seconds:g})")
    add(
        "--capacity",
        type=_capacity,
        metavar="N,N,...",
        help=f"how many requests the server handles at a time, in each phase ({','.join(map(str, default.capacity))})",
    )
    add("--max-workers", type=whole(1, 500), metavar="N", help=f"maximum number of workers ({default.max_workers})")
    add("--pages", type=whole(1, 100_000_000), metavar="N", help=f"number of pages of the site ({default.pages})")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    return Options(**vars(parser.parse_args(arguments)))


def _capacity(text: str) -> Sequence[int]:
    numbers = text.split(",")
    if len(numbers) > 100:
        raise argparse.ArgumentTypeError(f"must have at most 100 numbers, got {len(numbers)}")
    return [whole(1, 10_000)(number) for number in numbers]


if __name__ == "__main__":
    with starting("adaptive_crawl"):
        sys.exit(main())
