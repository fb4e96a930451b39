"""The same policy and a real HTTP server on the loopback, in real time: does what holds on virtual time hold there?

The server is a process of its own, which does so many requests at a time, first come first served. It ends when its
standard input does, so also when whoever started it is killed.
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
    """Try fixed sizes, then let Adaptive find one."""
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
        head=("workers", "mean", "jobs/s", "of best", "running p50", "p99", "of best"),
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
    """Return the fixed sizes, the best of them, and with that and with Adaptive a run that is as long."""
    fixed = {size: await _drive(url, size, SECONDS, SETTLE) for size in SIZES}
    found = await _drive(url, ADAPTIVE.policy, ADAPTIVE_SECONDS, ADAPTIVE_SETTLE)
    most = max(result.settled.throughput for result in fixed.values())
    best = min(size for size, result in fixed.items() if result.settled.throughput >= (1 - WITHIN) * most)
    # Once more: a machine that others use is not the same a minute later.
    again = await _drive(url, best, ADAPTIVE_SECONDS - ADAPTIVE_SETTLE + SETTLE, SETTLE)
    return fixed, best, again, found


async def _drive(url: str, policy: Policy, seconds: float, settle: float) -> Result:
    import aiohttp

    scenario = Scenario(
        name="real", about="a real HTTP server", backend=lambda random: _Client(None, url), load=backlogged
    )
    # No limit but the pool's.
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
    """Start the server, and end it, whatever happens. In a session of its own, so that Ctrl+C is only ours."""
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
            raise RuntimeError("the server did not start: see what it has printed")
        yield line.strip()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


# -- In the server's process -----------------------------------------------------------------------------------------


async def serve() -> None:
    """Serve until standard input ends. The first line printed is the address."""
    from aiohttp import web

    random, places = Random(1), asyncio.Semaphore(SERVERS)  # a semaphore is fair: first come, first served

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
