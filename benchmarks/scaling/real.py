"""`Adaptive` against a real HTTP server on the loopback interface, in real time.

The server runs in its own process. It serves a fixed number of requests at a time, in the order of their arrival. It
ends when its standard input is closed, and therefore also when the benchmark is killed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.scaling.contenders import ADAPTIVE
from benchmarks.scaling.loads import backlogged
from benchmarks.scaling.measure import LEAST_THROUGHPUT, MOST_RUNNING, Goal
from benchmarks.scaling.oracle import WITHIN
from benchmarks.scaling.services import Lognormal
from benchmarks.scaling.simulate import Policy, Result, Scenario, drive
from benchmarks.scaling.tables import Answer

__all__ = ["real", "serving"]

SERVERS = 20
SERVICE = Lognormal(0.040)
SIZES = (5, 10, 15, 18, 20, 22, 25, 30, 40)
SECONDS, SETTLE = 6.0, 1.0
ADAPTIVE_SECONDS, ADAPTIVE_SETTLE = 60.0, 30.0


def real() -> Answer:
    """Try fixed sizes, then let Adaptive find a size."""
    try:
        import aiohttp  # noqa: F401
    except ModuleNotFoundError:
        raise SystemExit("real needs aiohttp: pip install 'asyncpool-toolkit[examples]'") from None
    with serving() as url:
        fixed, best, again, found = asyncio.run(_measure(url))
    one, other = found.settled, again.settled
    share, ratio = one.throughput / other.throughput, one.running.p99 / other.running.p99
    name = f"real, {ADAPTIVE.name}"
    goals = [
        Goal(what=f"{name}, throughput", value=share * 100, limit=LEAST_THROUGHPUT * 100, at_least=True, unit="%"),
        Goal(what=f"{name}, p99 running", value=ratio, limit=MOST_RUNNING, unit="x"),
    ]
    shown = {f"fixed {size}": result for size, result in fixed.items()}
    shown |= {f"fixed {best}, again": again, ADAPTIVE.name: found}
    return Answer(
        title=f"A real HTTP server: {again.capacity}",
        header=("workers", "mean", "jobs/s", "of best", "running p50", "p99", "of best"),
        rows=[
            (
                label,
                f"{result.settled.mean_workers:.1f}",
                f"{result.settled.throughput:.1f}",
                f"{result.settled.throughput / other.throughput:.1%}",
                f"{result.settled.running.p50 * 1e3:.0f} ms",
                f"{result.settled.running.p99 * 1e3:.0f} ms",
                f"{result.settled.running.p99 / other.running.p99:.2f}x",
            )
            for label, result in shown.items()
        ],
        notes=[str(goal) for goal in goals],
        goals=goals,
        data={
            label: {
                "throughput": result.settled.throughput,
                "mean_workers": result.settled.mean_workers,
                "running_p50": result.settled.running.p50,
                "running_p99": result.settled.running.p99,
            }
            for label, result in shown.items()
        },
        traces={"real": {f"fixed {best}": again, ADAPTIVE.name: found}},
    )


async def _measure(url: str) -> tuple[dict[int, Result], int, Result, Result]:
    """Return the runs of the fixed sizes, the best size, a longer run with it, and a run with Adaptive."""
    fixed = {size: await _drive(url, size, SECONDS, SETTLE) for size in SIZES}
    found = await _drive(url, ADAPTIVE.policy, ADAPTIVE_SECONDS, ADAPTIVE_SETTLE)
    most = max(result.settled.throughput for result in fixed.values())
    best = min(size for size, result in fixed.items() if result.settled.throughput >= (1 - WITHIN) * most)
    # Again: the load of a shared machine can be different a minute later.
    again = await _drive(url, best, ADAPTIVE_SECONDS - ADAPTIVE_SETTLE + SETTLE, SETTLE)
    return fixed, best, again, found


async def _drive(url: str, policy: Policy, seconds: float, settle: float) -> Result:
    import aiohttp

    scenario = Scenario(
        name="real", about="a real HTTP server", backend=lambda random: _Client(None, url), load=backlogged
    )
    # The pool is the only limit.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await drive(scenario, policy, _Client(session, url), seconds=seconds, settle=settle)


class _Client:
    """Calls the server."""

    def __init__(self, session: Any, url: str) -> None:
        self._session = session
        self._url = url

    @property
    def capacity(self) -> str:
        return f"{SERVERS} requests at a time, {SERVICE.mean * 1e3:.0f} ms each: {SERVERS / SERVICE.mean:.0f} jobs/s"

    async def call(self, job: Any) -> None:
        async with self._session.get(self._url) as response:
            response.raise_for_status()
            await response.read()


@contextmanager
def serving() -> Iterator[str]:
    """Run the server while the context is open. Its process has its own session, so it does not receive Ctrl+C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scaling.real"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the server did not start: see its output on stderr")
        yield line.strip()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# -- In the process of the server --------------------------------------------------------------------------------------


async def serve() -> None:
    """Serve until standard input is closed. The first line of the output is the address."""
    from aiohttp import web

    random, places = Random(1), asyncio.Semaphore(SERVERS)  # a semaphore is first come, first served

    async def work(request: web.Request) -> web.Response:
        async with places:
            await asyncio.sleep(SERVICE.draw(random))
        return web.Response(text="done")

    app = web.Application()
    app.router.add_get("/", work)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
