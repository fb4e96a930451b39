"""A pool that finds out by itself how much a server bears: a crawl of a site whose capacity changes on the way.

    python -m examples.adaptive_crawl

The server works on 16 requests at a time, then on 6, then on 24; nobody tells that to the crawler, whose pool has
`workers=Adaptive(1, 64)`. With fewer workers than that it would be slower; with more it would not be faster, and its
requests would only wait longer, in the server's line.
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
    """What was asked for."""

    seconds: float = 30.0
    capacity: Sequence[int] = (16, 6, 24)
    max_workers: int = 64
    pages: int = 1_000_000
    service: float = 0.025


@dataclass(slots=True, kw_only=True)
class Phase:
    """The time in which the server's capacity stayed the same, in seconds from the beginning."""

    capacity: int
    begin: float
    end: float
    latencies: list[float] = field(default_factory=list)
    """How long each page took that came in it."""


class Crawl:
    """A crawl of the whole site, for as long as it may take."""

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
        """What became of each page that could not be fetched."""
        self.left = 1
        """How many pages are found and not fetched."""
        self.sizes: list[tuple[float, int]] = [(0.0, 1)]
        """How many workers there were to be, and since when."""
        self._recent: deque[tuple[float, float]] = deque()  # when a page came, and how long it took
        self._reason = "no decision yet"
        self._began = 0.0

    def _seconds(self) -> float:
        """Since the crawl began."""
        return asyncio.get_running_loop().time() - self._began

    async def run(self) -> None:
        """Crawl for so many seconds, or until there are no more pages."""
        options, loop = self.options, asyncio.get_running_loop()
        # As many connections as there are workers; and the timeout is the pool's, so that its policy learns of it.
        connector, no_timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)

        async def fetch(url: str) -> Sequence[str]:
            async with session.get(url) as response:
                response.raise_for_status()
                return [urljoin(url, link) for link in _LINK.findall(await response.text())]

        def tell(event: Event) -> None:
            if isinstance(event, PoolResized):
                self.sizes.append((self._seconds(), event.new))
                self._reason = f"{event.old} -> {event.new} workers: {event.reason}"

        def change(phase: Phase) -> None:
            self.site.resize(phase.capacity)
            view.say(f"now the server works on {phase.capacity} requests at a time")

        async with self.site, aiohttp.ClientSession(connector=connector, timeout=no_timeout) as session:
            policy = Adaptive(1, options.max_workers)
            pool = WorkerPool(fetch, workers=policy, timeout=30.0, observers=[tell], name="crawl")
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
        """Fetch the first page, and all that is linked to from those that were fetched, each once.

        What was found and not fetched is kept here: it may become as much as it likes, and the queue of a pool is
        bounded. A job that submitted its links itself would wait for its own pool, as soon as that is full.
        """
        seen = {self.site.home}
        frontier = deque(seen)
        window = 2 * self.options.max_workers
        under_way = 0
        async with pool.group(window=window) as group:
            outcomes = aiter(group)
            while frontier or under_way:
                # This task reads the group, so it may not wait for a place in its window.
                while frontier and under_way < window:
                    await group.submit(frontier.popleft())
                    under_way += 1
                outcome = await anext(outcomes)
                under_way -= 1
                for link in self._take(outcome):
                    if link not in seen:
                        seen.add(link)
                        frontier.append(link)
                self.left = len(frontier) + under_way

    def _take(self, outcome: Outcome[str, Sequence[str]]) -> Sequence[str]:
        """Count a page, and return the links in it."""
        if not isinstance(outcome, Succeeded):
            self.failed.append(str(outcome))
            return ()
        now = self._seconds()
        self.fetched.append(outcome.job)
        number = bisect.bisect_right(self.phases, now, key=lambda phase: phase.begin) - 1
        self.phases[number].latencies.append(outcome.seconds_running)
        self._recent.append((now, outcome.seconds_running))
        return outcome.value

    # -- What is shown --

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
        print(f"{len(self.fetched):,} pages in {seconds:.1f} s; {self.left:,} more were found and not fetched")
        if self.failed:
            print(f"{len(self.failed):,} failed, the first of them: {printable(self.failed[0])}")
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
        yield "(workers: the median of the second half, when the pool had had its time to find them)"

    def _workers(self, begin: float, end: float) -> int:
        """The median over time of how many workers there were to be."""
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
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments make no sense."""
    crawl = Crawl(_parse(arguments))
    logging.getLogger("asyncpool").setLevel(logging.ERROR)  # what is unfinished at the end is on purpose
    return finish("adaptive_crawl", crawl.run, lambda: f"{len(crawl.fetched):,} pages were fetched")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="adaptive_crawl",
        usage="python -m examples.adaptive_crawl [options]",
        description="Crawl a site on a local server whose capacity changes, with a pool that finds it out.",
    )
    default, add = Options(), parser.add_argument
    add("--seconds", type=positive(86400), metavar="S", help=f"how long, all phases together ({default.seconds:g})")
    add(
        "--capacity",
        type=_capacity,
        metavar="N,N,...",
        help=f"how many requests the server works on at a time, in each phase ({','.join(map(str, default.capacity))})",
    )
    add("--max-workers", type=whole(1, 500), metavar="N", help=f"never more workers ({default.max_workers})")
    add("--pages", type=whole(1, 100_000_000), metavar="N", help=f"how large the site is ({default.pages})")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    return Options(**vars(parser.parse_args(arguments)))


def _capacity(text: str) -> Sequence[int]:
    numbers = text.split(",")
    if len(numbers) > 100:
        raise argparse.ArgumentTypeError(f"it must be at most 100 numbers, got {len(numbers)}")
    return [whole(1, 10_000)(number) for number in numbers]


if __name__ == "__main__":
    with starting("adaptive_crawl"):
        sys.exit(main())
