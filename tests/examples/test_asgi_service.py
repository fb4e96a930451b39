"""The ASGI service: what it answers, and what its stops leave undone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from asyncpool.testing import run, settle
from examples import asgi_service
from examples.asgi_service import Service
from tests.asgi import GIVE_UP, GUNICORN, ROOT, UVICORN, UVICORN_WORKER, Answer, Server, call

needs_posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals, and listens on a Unix socket")
ROOM = 24
"""The workers and the queue of the pool."""


# -- What it answers ---------------------------------------------------------------------------------------------------


Ask = Callable[..., Awaitable[tuple[int, Any, Any]]]


@asynccontextmanager
async def served(drain_timeout: float = 20.0) -> AsyncIterator[tuple[Service, Any, Ask]]:
    """A started service, its application, and a function that asks it and returns the status, headers and JSON."""
    service = Service(drain_timeout=drain_timeout)
    app = service.create_app()

    async def ask(path: str, method: str = "GET") -> tuple[int, Any, Any]:
        answer = await call(app, path, method=method)
        return answer.status, answer.headers, json.loads(answer.body)

    async with service.lifespan(app):
        yield service, app, ask


def test_a_background_job_has_a_status_and_a_result() -> None:
    async def main() -> None:
        async with served() as (_, _, ask):
            accepted = [await ask("/jobs?seconds=1", "POST") for _ in range(5)]
            assert [status for status, _, _ in accepted] == [202] * 5
            assert [headers["location"] for _, headers, _ in accepted] == [body["job"] for _, _, body in accepted]
            await settle()
            first, *_, last = (body["job"] for _, _, body in accepted)
            assert (await ask(first))[2] == {"status": "running"}
            assert (await ask(last))[2] == {"status": "waiting"}
            status, _, body = await ask(f"{last}/result")
            assert status == 200
            assert body["result"].startswith("took 1 s on worker ")
            assert asyncio.get_running_loop().time() == 2
            assert (await ask(last))[2] == {"status": "succeeded"}

    run(main)


def test_a_full_pool_refuses_jobs_with_503_and_takes_them_later() -> None:
    async def main() -> None:
        async with served() as (service, _, ask):
            statuses = [(await ask("/jobs?seconds=1", "POST"))[0] for _ in range(ROOM + 2)]
            assert statuses == [202] * ROOM + [503] * 2
            for path in ("/jobs", "/run"):
                status, headers, body = await ask(path, "POST")
                assert (status, headers["retry-after"]) == (503, "1")
                assert body["error"].startswith("pool 'jobs' is full: ")
            await asyncio.sleep(1.5)
            assert (await ask("/run?seconds=0", "POST"))[0] == 200
            await service.pool.join()
            assert service.pool.stats.succeeded == ROOM + 1

    run(main)


def test_a_job_that_takes_too_long_is_504_and_a_dead_letter() -> None:
    async def main() -> None:
        async with served() as (service, _, ask):
            expected = {"error": "the job ran longer than its timeout of 10 s"}
            status, _, body = await ask("/run?seconds=11", "POST")
            assert (status, body) == (504, expected)
            job = (await ask("/jobs?seconds=12", "POST"))[2]["job"]
            status, _, body = await ask(f"{job}/result")
            assert (status, body) == (504, expected)
            assert (await ask(job))[2] == {"status": "failed"}
            letters: Any = service.pool.dead_letters
            assert [letter.job for letter in letters] == [11.0, 12.0]

    run(main)


def test_a_pool_that_drains_refuses_jobs_and_answers_for_those_it_has() -> None:
    async def main() -> None:
        async with served() as (_, _, ask):
            assert (await ask("/healthz"))[0] == 200
            running = asyncio.create_task(ask("/run?seconds=3", "POST"))
            too_long = (await ask("/jobs?seconds=9", "POST"))[2]["result"]
            waiting = asyncio.create_task(ask(too_long))
            await settle()
            os.kill(os.getpid(), signal.SIGTERM)
            await settle()
            for path, method in (("/healthz", "GET"), ("/run", "POST"), ("/jobs", "POST")):
                assert (await ask(path, method))[0] == 503
            assert (await running)[0] == 200
            assert (await waiting)[0] == 200

    run(main)


def test_jobs_that_outlast_the_drain_are_503() -> None:
    async def main() -> None:
        async with served(drain_timeout=2.0) as (service, app, _):
            asked = asyncio.create_task(call(app, "/run?seconds=9", method="POST"))
            job = json.loads((await call(app, "/jobs?seconds=9", method="POST")).body)["job"]
            await settle()
        assert asyncio.get_running_loop().time() == 2
        for answer in (await asked, await call(app, f"{job}/result")):
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert json.loads(answer.body) == {"error": "the job was cancelled (shutdown)"}
        assert service.pool.report is not None
        assert [unfinished.job for unfinished in service.pool.report.unfinished] == [9.0, 9.0]

    run(main)


@pytest.mark.parametrize(
    ("path", "method", "status", "text"),
    [
        ("/jobs?seconds=x", "POST", 400, "seconds must be a number from 0 to 60, got 'x'"),
        ("/run?seconds=nan", "POST", 400, "seconds must be a number from 0 to 60, got 'nan'"),
        ("/jobs/7", "GET", 404, "this process has no such job"),
        ("/jobs/7/result", "GET", 404, "this process has no such job"),
        ("/metrics/", "GET", 200, 'asyncpool_pool_state{pool="jobs",state="open"} 1.0'),
        ("/pools/", "GET", 200, "<!doctype html>"),
    ],
)
def test_other_requests(path: str, method: str, status: int, text: str) -> None:
    async def main() -> Answer:
        async with served() as (_, app, _):
            return await call(app, path, method=method)

    answer = run(main)
    assert answer.status == status
    assert text in answer.body.decode()


def test_the_results_of_old_jobs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(asgi_service, "_KEPT", 3)
        async with served() as (service, app, ask):
            old = [(await ask("/jobs?seconds=5", "POST"))[2]["job"]]  # it is not done
            for _ in range(6):
                old.append((await ask("/jobs?seconds=0", "POST"))[2]["job"])
                await settle()
            await ask("/jobs?seconds=0", "POST")
            assert [(await call(app, job)).status for job in old] == [
                200,
                404,
                404,
                404,
                200,
                200,
                200,
            ]  # the first one runs
            assert len(service.jobs) == 5

    run(main)


# -- The command -------------------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.asgi_service", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )


def test_mistakes_are_reported_in_a_sentence() -> None:
    ran = command(DRAIN_TIMEOUT="soon")
    message = "asgi_service: error: DRAIN_TIMEOUT must be a number > 0 and <= 86400, got 'soon'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", message)
    with pytest.raises(SystemExit, match="2"):
        asgi_service.main(["--port", "x"])


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_package_is_reported_in_a_sentence(missing: str) -> None:
    program = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; "
        "runpy.run_module('examples.asgi_service', run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )
    expected = f"asgi_service: error: the package '{missing}[.a-z]*' is not installed; to install the packages .*\n"
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(expected, ran.stderr)


@needs_posix
@pytest.mark.slow
def test_ctrl_c_stops_it_and_prints_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.asgi_service", "--port", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "Uvicorn running on http://127.0.0.1:" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 0
    assert "pool 'jobs': SIGINT: draining" in errors
    assert "Traceback" not in errors


# -- Real servers ------------------------------------------------------------------------------------------------------

# The example, with a handler that writes down what it has done. The seconds of a job are its name.
APP = """
from examples import asgi_service

work = asgi_service.work

async def recorded(seconds):
    print(f"begun {seconds!r}\\n", end="", flush=True)
    result = await work(seconds)
    print(f"done {seconds!r}\\n", end="", flush=True)
    return result

asgi_service.work = recorded
app = asgi_service.Service(drain_timeout=asgi_service.drain_timeout()).create_app()
"""
ONE_UVICORN = [*UVICORN, "app:app"]
ONE_GUNICORN = [*GUNICORN, *UVICORN_WORKER, "app:app"]
TWO_GUNICORN = [*ONE_GUNICORN, "--workers", "2"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with the example, and wait until it listens."""
    servers: list[Server] = []

    def start(command: list[str], *, drain_timeout: float = 20.0) -> Server:
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        servers.append(Server(command, folder, APP, {"DRAIN_TIMEOUT": str(drain_timeout)}))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


class Load:
    """Clients that send requests all the time. They repeat those that a server has not accepted, as proxies do."""

    def __init__(self, *servers: Server) -> None:
        self.servers = list(servers)
        self.accepted: list[float] = []
        """The jobs of the requests that were answered."""
        self._numbers = iter(range(1_000_000))
        self._is_over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests while the block runs. Each must have its answer in the end."""
        with ThreadPoolExecutor() as threads:
            clients = [threads.submit(self._client) for _ in range(4)]
            try:
                yield
            finally:
                self._is_over.set()
        for client in clients:
            client.result()

    def _client(self) -> None:
        while not self._is_over.is_set():
            self.send("/run", 200, 0.02)
            self.send("/jobs", 202, 0.1)

    def send(self, path: str, expected: int, about: float) -> None:
        """Send a request until a server accepts it."""
        number = next(self._numbers)
        seconds = about + number * 1e-6
        for attempt in range(1_000):
            servers = list(self.servers)
            server = servers[(number + attempt) % len(servers)]
            # A server that stops does not listen, closes connections whose requests it has not read, or refuses.
            with suppress(ConnectionError, FileNotFoundError):
                answer = server.request("POST", f"{path}?seconds={seconds!r}")
                if answer.status != 503 or "retry-after" not in answer.headers:
                    assert answer.status == expected, answer
                    self.accepted.append(seconds)
                    return
        pytest.fail("no server accepts the request")

    def wait_for(self, count: int) -> None:
        """Wait until this number of requests has been answered from now on."""
        count += len(self.accepted)
        self.servers[-1].wait_until(lambda: len(self.accepted) >= count)


def done(*servers: Server) -> list[float]:
    """The jobs that the pools of the servers have done."""
    return [float(seconds) for server in servers for seconds in re.findall(r"^done (.*)$", server.output, re.MULTILINE)]


@needs_posix
@pytest.mark.slow
def test_a_server_that_is_replaced_under_load_loses_no_request_and_no_job(start: Callable[..., Server]) -> None:
    first, second = start(ONE_UVICORN), start(ONE_UVICORN)
    load = Load(first, second)
    first.listen()
    second.listen()
    with load.running():
        load.wait_for(50)
        third = start(ONE_UVICORN)
        third.listen()
        load.servers.append(third)
        assert first.stop(signal.SIGTERM) == -signal.SIGTERM
        load.servers.remove(first)
        load.wait_for(50)
    for _ in range(4):
        load.send("/jobs", 202, 0.5)
    for server in (second, third):
        server.process.send_signal(signal.SIGTERM)
    assert {server.wait() for server in (second, third)} == {-signal.SIGTERM}
    assert sorted(done(first, second, third)) == sorted(load.accepted)
    assert done(second)
    assert done(third)


@needs_posix
@pytest.mark.slow
def test_gunicorn_replaces_its_workers_under_load_and_loses_no_request_and_no_job(start: Callable[..., Server]) -> None:
    server = start(TWO_GUNICORN)
    server.listen()
    load = Load(server)
    with load.running():
        load.wait_for(50)
        server.process.send_signal(signal.SIGHUP)
        server.wait_until(lambda: server.output.count("Finished server process") == 2)
        load.wait_for(50)
    for _ in range(4):
        load.send("/jobs", 202, 0.5)
    assert server.stop(signal.SIGTERM) == 0
    assert sorted(done(server)) == sorted(load.accepted)
    assert server.output.count("pool 'jobs': SIGTERM: draining") == 4


@needs_posix
@pytest.mark.slow
@pytest.mark.parametrize("command", [ONE_UVICORN, ONE_GUNICORN], ids=["uvicorn", "gunicorn"])
def test_jobs_that_outlast_the_drain_are_cancelled_before_the_server_is_killed(
    command: list[str], start: Callable[..., Server]
) -> None:
    server = start(command, drain_timeout=0.5)
    server.listen()
    assert server.request("POST", "/jobs?seconds=9").status == 202
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(server.request, "POST", "/run?seconds=8")
        server.wait_until(lambda: "begun 8.0" in server.output)
        status = server.stop(signal.SIGTERM)
        answer = asked.result()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert status == (-signal.SIGTERM if command is ONE_UVICORN else 0)
    assert "closed with 2 unfinished jobs" in server.output
    assert "Finished server process" in server.output
    assert done(server) == []
