"""`drain_on_signal` in the lifespan of an ASGI app: one SIGTERM stops the server as without it, and nothing is lost.

Real servers, because what they do with signals is the subject. Each runs the same app once with and once without the
block.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asgi import GUNICORN, UVICORN, UVICORN_WORKER, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals, and listens on a Unix socket"),
]
JOBS = 4

APP = """
import asyncio, contextlib, os
from asyncpool import WorkerPool, drain_on_signal

async def handler(job):
    print("begun", job, flush=True)
    while pool.state == "open":                 # so every job ends after the signal
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    print("done", job, flush=True)

pool = WorkerPool(handler, workers=2, name="jobs")
block = drain_on_signal(pool) if os.environ["BLOCK"] == "yes" else contextlib.nullcontext()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        async with pool:
            with block:
                await send({"type": "lifespan.startup.complete"})
                await receive()
        print("unfinished", list(pool.report.unfinished), pool.stats.succeeded, flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await pool.submit(scope["path"])
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
"""

SERVERS = {
    # Its handlers are of signal.signal, installed before the lifespan begins.
    "uvicorn": [*UVICORN, "--loop", "asyncio", "app:app"],
    "uvicorn on uvloop": [*UVICORN, "--loop", "uvloop", "app:app"],
    "gunicorn with uvicorn's worker": [*GUNICORN, *UVICORN_WORKER, "app:app"],
    # Its handlers are of loop.add_signal_handler.
    "gunicorn with its own worker": [*GUNICORN, "--worker-class", "asgi", "app:app"],
}


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.kill()


@pytest.mark.parametrize(
    ("name", "number"),
    # Not gunicorn's SIGINT: it is its quick shutdown, which waits for nothing.
    [*((name, signal.SIGTERM) for name in SERVERS), ("uvicorn", signal.SIGINT)],
)
def test_one_signal_stops_the_server_as_without_the_block_and_every_accepted_job_is_done(
    name: str, number: signal.Signals, tmp_path: Path, servers: list[Server]
) -> None:
    command = SERVERS[name]
    if importlib.util.find_spec("uvloop") is None and "uvloop" in command:
        pytest.skip("uvloop is not installed")
    statuses = []
    for has_block in (True, False):
        folder = tmp_path / str(has_block)
        folder.mkdir()
        server = Server(command, folder, APP, {"BLOCK": "yes" if has_block else "no"})
        servers.append(server)
        server.listen()
        for job in range(JOBS):
            assert server.request("POST", f"/{job}").status == 202, server.output
        statuses.append(server.stop(number))
        assert server.output.count("done /") == JOBS, server.output
        assert f"unfinished [] {JOBS}" in server.output, server.output
        assert ("draining" in server.output) == has_block, server.output
    assert statuses[0] == statuses[1]
