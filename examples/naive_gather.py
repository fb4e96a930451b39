"""The naive way made visible: 10,000 requests by `asyncio.gather`, and the same requests by a pool, side by side.

    python -m examples.naive_gather

The server is on loopback, in this process, and serves 100 connections at a time: it resets what comes beyond, as a
database or an API with a limit does. Each way runs in a process of its own, so that their memory does not mix:

* `asyncio.gather` over all requests, with a connection for each (`TCPConnector(limit=0)`).
* `asyncio.gather` with aiohttp's own limit of 100 connections. It is a limit of the client: it knows nothing of the
  server's. The requests queue in the client, as 10,000 tasks, and their timeouts run while they wait there.
* `WorkerPool(fetch, workers=50)`, which pulls a request when a worker is free, and keeps no page that was read.
"""

from __future__ import annotations

import sys

from examples.command_line import Parser, finish, starting, whole

with starting("naive_gather"):
    import asyncio
    import json
    import os
    import textwrap
    from collections.abc import Iterable, Sequence
    from dataclasses import asdict, dataclass, field
    from pathlib import Path

    import aiohttp

    from asyncpool import Cancelled, Failed, Succeeded, WorkerPool
    from examples.limited_server import LimitedServer

__all__ = ["WAYS", "Client", "Figures", "Options", "main", "run_way"]

BODY = b"x" * 10_000
SERVICE = 0.01
"""Seconds that the server works on a request."""
TIMEOUT = 10.0
"""Seconds that a request may take, the wait for a connection included: this ends what else would wait for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    jobs: int = 10_000
    connections: int = 100
    workers: int = 50


@dataclass(slots=True, kw_only=True)
class Figures:
    """How it went, as the client saw it."""

    succeeded: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    peak_requests: int = 0
    """The most requests that were under way at a time."""
    slowest: float = 0.0
    """The longest that a request took which succeeded, in seconds."""
    seconds: float = 0.0
    grown: int | None = None
    """By how many bytes the peak of the process's memory rose, if the system tells."""


# -- The ways --


async def gather_all(client: Client, urls: Iterable[str]) -> None:
    """A task for each request, all at once, and all results in one list."""
    for result in await asyncio.gather(*(client.fetch(url) for url in urls), return_exceptions=True):
        client.count(result)


async def pool_all(client: Client, urls: Iterable[str]) -> None:
    """So many requests at a time as there are workers. Each result is used when it is there."""
    async with WorkerPool(client.fetch, workers=client.workers) as pool:
        async for outcome in pool.outcomes(urls):
            match outcome:
                case Succeeded(_, body):
                    client.count(body)
                case Failed(_, error):
                    client.count(error)
                case Cancelled():
                    raise AssertionError("nobody cancels a job here")


WAYS = {
    "gather, limit=0": (gather_all, 0),
    "gather, limit=100": (gather_all, 100),
    "WorkerPool": (pool_all, 0),
}
"""Each way, and the `limit` of its `TCPConnector`; 0 is none."""


class Client:
    """Fetches pages in one session, and counts what comes of it."""

    def __init__(self, session: aiohttp.ClientSession, workers: int) -> None:
        self.workers = workers
        self.figures = Figures()
        self._session = session
        self._requests = 0

    async def fetch(self, url: str) -> bytes:
        """Fetch a page: the job."""
        figures, time = self.figures, asyncio.get_running_loop().time
        began = time()
        self._requests += 1
        figures.peak_requests = max(figures.peak_requests, self._requests)
        try:
            async with self._session.get(url) as response:
                response.raise_for_status()
                body = await response.read()
        finally:
            self._requests -= 1
        figures.slowest = max(figures.slowest, time() - began)
        return body

    def count(self, result: bytes | BaseException) -> None:
        """Count a page, or what became of it."""
        if isinstance(result, bytes):
            self.figures.succeeded += 1
        else:
            kind = _kind(result)
            self.figures.errors[kind] = self.figures.errors.get(kind, 0) + 1


def _kind(error: BaseException) -> str:
    """What to call an error: as the system does, if it is one of the system's."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) else type(error).__name__


# -- A process for each way --


async def measure(way: str, url: str, options: Options) -> Figures:
    """Run one way in this process."""
    do_all, limit = WAYS[way]
    loop, timeout = asyncio.get_running_loop(), aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit), timeout=timeout) as session:
        client = Client(session, options.workers)
        began = loop.time()
        await do_all(client, (f"{url}/{number}" for number in range(options.jobs)))
        client.figures.seconds = loop.time() - began
    return client.figures


def run_way(way: str, url: str, options: str) -> None:
    """What the process of one way does: run it, and print its figures as JSON."""
    asked = Options(**json.loads(options))
    raise_file_limit(asked.jobs)
    before = peak_memory()
    figures = asyncio.run(measure(way, url, asked))
    if before is not None:
        figures.grown = (peak_memory() or 0) - before
    print(json.dumps(asdict(figures)))


async def run_in_child(way: str, url: str, options: Options) -> Figures:
    """Run one way in a process of its own, which is killed if this is cancelled."""
    program = "import sys; from examples.naive_gather import run_way; run_way(*sys.argv[1:])"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, way, url, json.dumps(asdict(options))),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a Ctrl+C is for us, and we kill it then
    )
    try:
        printed, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise ChildProcessError(f"the process of {way!r} ended with status {child.returncode}")
    return Figures(**json.loads(printed))


def raise_file_limit(connections: int) -> int | None:
    """Let this process open so many connections, or as many as the system allows; return how many files that is.

    None: there is no limit.
    """
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return None
    wanted = connections + 100  # what a process has open besides
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def peak_memory() -> int | None:
    """The most memory that this process ever had, in bytes, if the system tells."""
    try:
        # Not getrusage, where there is a choice: on Linux that begins with what the parent process had.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# -- What is shown --


class Comparison:
    """All ways, one after the other, each with a server that nobody else has used."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.figures: dict[str, Figures] = {}
        self.servers: dict[str, LimitedServer] = {}

    async def run(self) -> None:
        """Run all, and print the table."""
        options = self.options
        files = raise_file_limit(options.jobs)
        told = f"Requests: {options.jobs:,}. Connections that the server serves at a time: {options.connections:,}."
        print(told, flush=True)
        if files is not None and files < options.jobs:
            print(f"Open files that the system allows a process: {files:,}, which are fewer than the requests.")
        for way in WAYS:
            async with LimitedServer(connections=options.connections, body=BODY, seconds=SERVICE) as server:
                figures = await run_in_child(way, server.url, options)
            self.figures[way], self.servers[way] = figures, server
            print(f"{way}: {figures.succeeded:,} of {options.jobs:,} in {figures.seconds:.1f} s", flush=True)
        print()
        for name, cells in self.table():
            print(f"{name:<32}" + "".join(f"{cell:>19}" for cell in cells).rstrip())
        print()
        for line in self.lessons():
            print(textwrap.fill(line, width=100, subsequent_indent="    "))

    def table(self) -> Iterable[tuple[str, Sequence[str]]]:
        """The name of each row, and its cells."""
        all_figures, servers = self.figures.values(), self.servers.values()
        yield "", [*self.figures]
        yield "succeeded", [f"{figures.succeeded:,}" for figures in all_figures]
        yield "failed", [f"{sum(figures.errors.values()):,}" for figures in all_figures]
        for kind in sorted({kind for figures in all_figures for kind in figures.errors}):
            yield f"  {kind}", [f"{figures.errors.get(kind, 0):,}" for figures in all_figures]
        yield "requests at a time, at most", [f"{figures.peak_requests:,}" for figures in all_figures]
        yield "connections that were asked for", [f"{server.asked_for:,}" for server in servers]
        yield "connections served at a time", [f"{server.peak_open:,}" for server in servers]
        yield "connections refused", [f"{server.refused:,}" for server in servers]
        yield "memory grew by", [_mebibytes(figures.grown) for figures in all_figures]
        yield "slowest request that succeeded", [f"{figures.slowest:.2f} s" for figures in all_figures]
        yield "all of them", [f"{figures.seconds:.1f} s" for figures in all_figures]

    def lessons(self) -> Iterable[str]:
        """What the figures of this run say."""
        naive, capped, pooled = self.figures.values()
        refused = [server.refused for server in self.servers.values()]
        yield (
            f"gather, limit=0: up to {naive.peak_requests:,} requests at a time, for a server that serves "
            f"{self.options.connections:,}. It refused {refused[0]:,} connections."
        )
        yield (
            f"gather, limit=100: the limit is the client's, and a guess; {refused[1]:,} connections were refused. "
            f"Up to {capped.peak_requests:,} requests wait behind it, as tasks, with their timeouts ({TIMEOUT:g} s) "
            f"running: the slowest took {capped.slowest:.2f} s, of which the server worked for {SERVICE:g} s."
        )
        yield (
            f"WorkerPool: up to {pooled.peak_requests:,} requests at a time; {refused[2]:,} connections were refused. "
            f"The others are not even made yet: the slowest request took {pooled.slowest:.2f} s."
        )


def _mebibytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**20:.1f} MiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments make no sense."""
    comparison = Comparison(_parse(arguments))
    return finish("naive_gather", comparison.run, lambda: f"{len(comparison.figures)} of {len(WAYS)} ways were run")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="naive_gather",
        usage="python -m examples.naive_gather [options]",
        description="The same requests by asyncio.gather and by a pool, of a server that takes so many connections.",
    )
    default, add = Options(), parser.add_argument
    add("--jobs", type=whole(1, 20_000), metavar="N", help=f"how many requests ({default.jobs})")
    add(
        "--connections",
        type=whole(1, 10_000),
        metavar="N",
        help=f"how many connections the server serves at a time ({default.connections})",
    )
    add("--workers", type=whole(1, 10_000), metavar="N", help=f"how many workers the pool has ({default.workers})")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    with starting("naive_gather"):
        sys.exit(main())
