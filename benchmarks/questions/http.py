"""Real HTTP on loopback: the throughput of the client, and the load of the server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import quantiles

from benchmarks.harness import Case, Figures, Question, Settings
from benchmarks.installed import installed
from benchmarks.rivals import RIVALS

__all__ = ["HTTP", "NAIVE"]

NAIVE = "asyncio.gather, no limit"
_WORKERS = 100
_DESCRIPTORS = 1024
_TIMEOUT = 30.0
# By contender: the rival, and the most connections that aiohttp opens (0: no limit; 100: its default).
_WAYS = {
    NAIVE: ("asyncio.gather", 0),
    "asyncio.gather, aiohttp's own limit": ("asyncio.gather", 100),
    "gather + Semaphore": ("gather + Semaphore", 0),
    "asyncio.Queue workers": ("asyncio.Queue workers", 0),
    "pool.outcomes": ("pool.outcomes", 0),
}


def _cases(settings: Settings) -> Sequence[Case]:
    requests = settings.count(5_000)
    return [
        Case(
            name=name,
            contenders=dict.fromkeys(_WAYS, 2),
            parameters={"requests": requests} | more,
            seconds=120.0,
        )
        for name, more in (
            (f"{requests:,} requests", {}),
            (f"{requests:,} requests, server limited to {_WORKERS} connections", {"most": _WORKERS}),
            (
                f"{requests:,} requests, client limited to {_DESCRIPTORS:,} file descriptors",
                {"descriptors": _DESCRIPTORS},
            ),
        )
    ]


async def _measure(
    contender: str, *, requests: int, most: int | None = None, descriptors: int | None = None
) -> Figures:
    import aiohttp

    from benchmarks.http_server import BODY, serving

    rival, limit = _WAYS[contender]
    seconds: list[float] = []
    errors = 0
    _allow(None)  # for the server too
    async with serving(most) as counted:
        _allow(descriptors)
        url = f"http://127.0.0.1:{counted.port}/"
        connector = aiohttp.TCPConnector(limit=limit)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def fetch(job: int) -> None:
                nonlocal errors
                asked = time.perf_counter()
                try:
                    async with session.get(url) as response:
                        if await response.read() != BODY:
                            raise ValueError("wrong body")
                except (aiohttp.ClientError, OSError):
                    errors += 1
                else:
                    seconds.append(time.perf_counter() - asked)

            began, cpu_began = time.perf_counter(), time.process_time()
            await RIVALS[rival].run(fetch, range(requests), _WORKERS, lambda value: None)
            took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    if len(seconds) + errors != requests:
        raise RuntimeError(f"{requests:,} requests, {len(seconds):,} answers and {errors:,} errors")
    figures = {
        "requests/s": len(seconds) / took,
        "errors": errors,
        "peak connections": counted.peak,
        "connections requested": counted.opened + counted.reset,
        "ms of CPU/request": cpu / requests * 1e3,
    }
    return figures | ({"p99 ms": quantiles(seconds, n=100)[-1] * 1e3} if len(seconds) > 1 else {})


def _allow(descriptors: int | None) -> None:
    """Set the limit of open files of this process. None: the most that the system allows."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if descriptors is None else descriptors, most))


def _missing(contender: str) -> str | None:
    return None if installed("aiohttp") else "needs python3 -m pip install 'asyncpool-toolkit[bench]'"


HTTP = Question(
    name="http",
    asks="What load do a real server and client see?",
    title="HTTP on loopback",
    cases=_cases,
    measure=_measure,
    more_is_better=True,
    missing=_missing,
    method="An aiohttp client requests 10 KB from a server in a process of its own, which answers immediately. There "
    f"are {_WORKERS} requests at a time, or all at once without a limit. requests/s counts successful answers. p99 "
    "includes the wait for a connection. Connections above the server's limit are reset.",
)
