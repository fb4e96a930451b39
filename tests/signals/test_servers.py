"""`drain_on_signal` in the lifespan of an ASGI app: one SIGTERM stops the server as without it, and nothing is lost.

Real servers, because what they do with signals is the subject. Each runs the same app once with and once without the
block.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals, and listens on a Unix socket"),
]
ROOT = Path(__file__).resolve().parent.parent.parent
JOBS = 4
GIVE_UP = 60

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
    "uvicorn": ["uvicorn", "--uds", "{socket}", "--loop", "asyncio", "app:app"],
    "uvicorn on uvloop": ["uvicorn", "--uds", "{socket}", "--loop", "uvloop", "app:app"],
    "gunicorn with uvicorn's worker": [
        *("gunicorn", "--bind", "unix:{socket}", "--workers", "1", "--no-control-socket"),
        *("--worker-class", "uvicorn_worker.UvicornWorker", "app:app"),
    ],
    # Its handlers are of loop.add_signal_handler.
    "gunicorn with its own worker": [
        *("gunicorn", "--bind", "unix:{socket}", "--workers", "1", "--no-control-socket"),
        *("--worker-class", "asgi", "app:app"),
    ],
}


class Server:
    """A server in a process, with jobs in its pool."""

    def __init__(self, command: list[str], folder: Path, *, has_block: bool) -> None:
        self.socket = folder / "socket"
        self._output = folder / "output.txt"
        environment = os.environ | {
            "BLOCK": "yes" if has_block else "no",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
            "PYTHONUNBUFFERED": "1",
        }
        (folder / "app.py").write_text(APP)
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(part.format(socket=self.socket) for part in command)],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def post(self, path: str) -> str:
        """Send a request and return the first line of the answer."""
        deadline = time.monotonic() + GIVE_UP
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(GIVE_UP)
                try:
                    connection.connect(str(self.socket))
                except OSError:
                    assert time.monotonic() < deadline, self.output
                    assert self.process.poll() is None, self.output
                    time.sleep(0.05)
                    continue
                connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
                with connection.makefile("rb") as answer:
                    return answer.readline().decode().strip()

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(GIVE_UP)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server goes on after the signal:\n{self.output}")


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


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
        server = Server(command, folder, has_block=has_block)
        servers.append(server)
        for job in range(JOBS):
            assert server.post(f"/{job}").endswith("202 Accepted"), server.output
        statuses.append(server.stop(number))
        assert server.output.count("done /") == JOBS, server.output
        assert f"unfinished [] {JOBS}" in server.output, server.output
        assert ("draining" in server.output) == has_block, server.output
    assert statuses[0] == statuses[1]
