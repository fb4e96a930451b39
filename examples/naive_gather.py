"""10,000 requests by `asyncio.gather`, and the same requests by a pool, side by side.

    python -m examples.naive_gather

The server runs on loopback in this process. It serves 100 connections at a time and resets further ones, like a
database or an API with a connection limit. Each client runs in its own process, so that its memory can be measured:

* `asyncio.gather` over all requests, with a connection for each (`TCPConnector(limit=0)`).
* `asyncio.gather` with aiohttp's limit of 100 connections. This is a limit of the client, which does not know the limit
  of the server. The requests wait in the client, as 10,000 tasks, and their timeouts run while they wait.
* `WorkerPool(fetch, workers=50)`, which pulls a request when a worker is free, and does not keep pages in memory.
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
"""The time in seconds that the server takes for a request."""
TIMEOUT = 10.0
"""Time limit in seconds for a request, including the wait for a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command-line arguments."""

    jobs: int = 10_000
    connections: int = 100
    workers: int = 50


@dataclass(slots=True, kw_only=True)
class Figures:
    """The results, as seen by the client."""

    succeeded: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    peak_requests: int = 0
    """The maximum number of concurrent requests."""
    slowest: float = 0.0
    """The duration in seconds of the slowest request that succeeded."""
    seconds: float = 0.0
    grown: int | None = None
    """The growth of the process's peak memory in bytes, if the system reports it."""


# -- The ways --


async def gather_all(client: Client, urls: Iterable[str]) -> None:
    """Create a task for each request, all at once, and collect all results in one list."""
    for result in await asyncio.gather(*(client.fetch(url) for url in urls), return_exceptions=True):
        client.count(result)


async def pool_all(client: Client, urls: Iterable[str]) -> None:
    """Run one request per worker at a time, and use each result as it arrives."""
    async with WorkerPool(client.fetch, workers=client.workers) as pool:
        async for outcome in pool.outcomes(urls):
            match outcome:
                case Succeeded(_, body):
                    client.count(body)
                case Failed(_, error):
                    client.count(error)
                case Cancelled():
                    raise AssertionError("no job is cancelled here")


WAYS = {
    "gather, limit=0": (gather_all, 0),
    "gather, limit=100": (gather_all, 100),
    "WorkerPool": (pool_all, 0),
}
"""The function of each way, and the `limit` of its `TCPConnector`; 0 means no limit."""


class Client:
    """Fetches pages in one session, and counts the results."""

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
        """Count a page or an error."""
        if isinstance(result, bytes):
            self.figures.succeeded += 1
        else:
            kind = _kind(result)
            self.figures.errors[kind] = self.figures.errors.get(kind, 0) + 1


def _kind(error: BaseException) -> str:
    """Return a name for an error: that of the operating system if there is one, otherwise its type."""
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
    """Run one way and print its figures as JSON: the main function of its process."""
    asked = Options(**json.loads(options))
    raise_file_limit(asked.jobs)
    before = peak_memory()
    figures = asyncio.run(measure(way, url, asked))
    if before is not None:
        figures.grown = (peak_memory() or 0) - before
    print(json.dumps(asdict(figures)))


async def run_in_child(way: str, url: str, options: Options) -> Figures:
    """Run one way in a separate process, which is killed if this coroutine is cancelled."""
    program = "import sys; from examples.naive_gather import run_way; run_way(*sys.argv[1:])"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, way, url, json.dumps(asdict(options))),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl+C must only reach this process, which then kills the child
    )
    try:
        printed, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise ChildProcessError(f"the process of {way!r} exited with status {child.returncode}")
    return Figures(**json.loads(printed))


def raise_file_limit(connections: int) -> int | None:
    """Raise the limit of open files for this number of connections, as far as the system allows.

    Returns:
        The new limit; None if there is no limit.
    """
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return None
    wanted = connections + 100  # for the other open files of the process
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, if the system reports it."""
    try:
        # Prefer this to getrusage, which on Linux includes the memory of the parent process.
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


# -- Output --


class Comparison:
    """Runs all ways, one after the other, each with a new server."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.figures: dict[str, Figures] = {}
        self.servers: dict[str, LimitedServer] = {}

    async def run(self) -> None:
        """Run all ways and print the table."""
        options = self.options
        files = raise_file_limit(options.jobs)
        print(
            f"Sending {options.jobs:,} requests to a server that serves {options.connections:,} connections at a time",
            flush=True,
        )
        if files is not None and files < options.jobs:
            print(f"The system allows only {files:,} open files per process, which is fewer than the requests.")
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
        """Return the name and the cells of each row."""
        all_figures, servers = self.figures.values(), self.servers.values()
        yield "", [*self.figures]
        yield "succeeded", [f"{figures.succeeded:,}" for figures in all_figures]
        yield "failed", [f"{sum(figures.errors.values()):,}" for figures in all_figures]
        for kind in sorted({kind for figures in all_figures for kind in figures.errors}):
            yield f"  {kind}", [f"{figures.errors.get(kind, 0):,}" for figures in all_figures]
        yield "max. concurrent requests", [f"{figures.peak_requests:,}" for figures in all_figures]
        yield "connections attempted", [f"{server.asked_for:,}" for server in servers]
        yield "max. connections served", [f"{server.peak_open:,}" for server in servers]
        yield "connections refused", [f"{server.refused:,}" for server in servers]
        yield "memory growth", [_mebibytes(figures.grown) for figures in all_figures]
        yield "slowest successful request", [f"{figures.slowest:.2f} s" for figures in all_figures]
        yield "total time", [f"{figures.seconds:.1f} s" for figures in all_figures]

    def lessons(self) -> Iterable[str]:
        """Return the conclusions from the figures of this run."""
        naive, capped, pooled = self.figures.values()
        refused = [server.refused for server in self.servers.values()]
        yield (
            f"gather, limit=0: up to {naive.peak_requests:,} concurrent requests to a server that serves "
            f"{self.options.connections:,} connections. It refused {refused[0]:,} connections."
        )
        yield (
            f"gather, limit=100: the limit is set in the client, and is a guess. The server refused {refused[1]:,} "
            f"connections. Up to {capped.peak_requests:,} requests wait in the client, as tasks, while their timeouts "
            f"of {TIMEOUT:g} s run: the slowest took {capped.slowest:.2f} s, of which the server needed {SERVICE:g} s."
        )
        yield (
            f"WorkerPool: up to {pooled.peak_requests:,} concurrent requests. The server refused {refused[2]:,} "
            f"connections. The other requests are not created yet: the slowest took {pooled.slowest:.2f} s."
        )


def _mebibytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**20:.1f} MiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit status. Raises `SystemExit(2)` if the arguments are invalid."""
    comparison = Comparison(_parse(arguments))
    return finish("naive_gather", comparison.run, lambda: f"{len(comparison.figures)} of {len(WAYS)} ways were run")


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = Parser(
        prog="naive_gather",
        usage="python -m examples.naive_gather [options]",
        description="Send requests by asyncio.gather and by a pool to a server with a connection limit, and compare.",
    )
    default, add = Options(), parser.add_argument
    add("--jobs", type=whole(1, 20_000), metavar="N", help=f"number of requests ({default.jobs})")
    add(
        "--connections",
        type=whole(1, 10_000),
        metavar="N",
        help=f"how many connections the server serves at a time ({default.connections})",
    )
    add("--workers", type=whole(1, 10_000), metavar="N", help=f"number of workers in the pool ({default.workers})")
    parser.set_defaults(**{name: getattr(default, name) for name in Options.__slots__})
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    with starting("naive_gather"):
        sys.exit(main())
