"""`python -m examples.naive_gather`: what becomes of the requests in each way, of a real server that counts."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from examples import naive_gather
from examples.limited_server import LimitedServer
from examples.naive_gather import Comparison, Options

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "examples.naive_gather"]
GIVE_UP = 60.0
OPTIONS = Options(jobs=300, connections=20, workers=10)


# -- the server --


def test_the_server_resets_a_connection_too_many_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with asyncio.timeout(GIVE_UP), LimitedServer(connections=1, body=b"page", seconds=0.0) as server:
            address = URL(server.url)
            _, first = await asyncio.open_connection(address.host, address.port)
            while not server.open:
                await asyncio.sleep(0.001)
            second, writer = await asyncio.open_connection(address.host, address.port)
            with pytest.raises(ConnectionResetError):
                await second.read()
            first.close()
            writer.close()
        assert (server.asked_for, server.refused, server.peak_open) == (2, 1, 1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# -- the ways --


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    comparison = Comparison(OPTIONS)
    asyncio.run(comparison.run())
    return comparison


def test_gather_asks_for_all_at_once_and_the_server_refuses_what_is_too_much(comparison: Comparison) -> None:
    figures, server = comparison.figures["gather, limit=0"], comparison.servers["gather, limit=0"]

    assert figures.peak_requests == OPTIONS.jobs
    assert server.asked_for >= OPTIONS.jobs > OPTIONS.connections == server.peak_open
    # More than there are errors, where a reset comes so late that aiohttp sends the request once more.
    assert server.refused >= sum(figures.errors.values()) > 0
    assert figures.succeeded + sum(figures.errors.values()) == OPTIONS.jobs
    assert figures.succeeded >= OPTIONS.connections


def test_a_limit_of_the_client_that_is_not_the_servers_changes_little(comparison: Comparison) -> None:
    figures, server = comparison.figures["gather, limit=100"], comparison.servers["gather, limit=100"]

    assert figures.peak_requests == OPTIONS.jobs  # all of them are tasks
    assert server.refused > 0
    assert figures.succeeded + sum(figures.errors.values()) == OPTIONS.jobs


def test_the_pool_is_never_above_its_workers_and_gets_every_page(comparison: Comparison) -> None:
    figures, server = comparison.figures["WorkerPool"], comparison.servers["WorkerPool"]

    assert (figures.succeeded, figures.errors) == (OPTIONS.jobs, {})
    assert figures.peak_requests == OPTIONS.workers
    assert server.asked_for == server.peak_open == OPTIONS.workers
    assert server.refused == 0


def test_every_way_has_its_column(comparison: Comparison) -> None:
    rows = {name.strip(): list(cells) for name, cells in comparison.table()}

    assert rows[""] == list(naive_gather.WAYS)
    assert rows["succeeded"][2] == "300"
    assert rows["failed"][2] == "0"
    assert rows["max. concurrent requests"] == ["300", "300", "10"]
    assert rows["max. connections served"] == ["20", "20", "10"]
    assert rows["connections refused"][2] == "0"
    assert all(len(cells) == len(naive_gather.WAYS) for cells in rows.values())


def test_a_client_with_few_files_is_told_so_by_its_errors() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "import sys; from examples.naive_gather import run_way; run_way(*sys.argv[1:])"
    )

    async def main() -> dict[str, int]:
        async with LimitedServer(connections=100, body=b"page", seconds=0.01) as server:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-c", program),
                *("gather, limit=0", server.url, json.dumps({"jobs": 100})),
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            printed, _ = await child.communicate()
        figures = json.loads(printed)
        assert figures["succeeded"] == server.asked_for < 64
        assert figures["succeeded"] + sum(figures["errors"].values()) == 100
        errors: dict[str, int] = figures["errors"]
        return errors

    assert list(asyncio.run(main())) == ["Too many open files"]


# -- the server --


def test_the_server_resets_what_comes_when_all_places_are_taken_and_has_them_back_afterwards() -> None:
    async def main() -> list[str]:
        async with LimitedServer(connections=1, body=b"page", seconds=0.0) as server:

            async def get(session: aiohttp.ClientSession) -> str:
                try:
                    async with session.get(server.url) as response:
                        return await response.text()
                except aiohttp.ClientError as error:
                    return naive_gather._kind(error)

            async with aiohttp.ClientSession() as first, aiohttp.ClientSession() as second:
                got = [await get(first), await get(second), await get(first)]
                await first.close()  # it had the only place, also while it asked for nothing
                while server.open:
                    await asyncio.sleep(0)
                got.append(await get(second))
            assert server.refused >= 1  # aiohttp may have tried twice
            assert (server.asked_for - server.refused, server.peak_open) == (2, 1)
        return got

    assert asyncio.run(main()) == ["page", "Connection reset by peer", "page", "page"]


# -- the command --


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--jobs", "0"], "argument --jobs: must be an integer from 1 to 20000, got '0'"),
        (["--connections", "none"], "argument --connections: must be an integer from 1 to 10000, got 'none'"),
        (["--workers", "-1"], "argument --workers: must be an integer from 1 to 10000, got '-1'"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        naive_gather.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"naive_gather: error: {sentence} (see --help)\n"


def test_the_command_prints_the_table() -> None:
    done = subprocess.run(
        [*COMMAND, "--jobs", "40", "--connections", "4", "--workers", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Sending 40 requests to a server that serves 4 connections at a time\n")
    assert re.search(r"^succeeded +\d+ +\d+ +40$", done.stdout, re.M)
    assert re.search(r"^max\. connections served +4 +4 +4$", done.stdout, re.M)
    assert re.search(
        r"^WorkerPool: up to 4 concurrent requests\. The server refused 0 connections\.", done.stdout, re.M
    )


def test_ctrl_c_ends_it_and_the_process_that_runs() -> None:
    process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    # Its children have our pipe for their errors: this waits for them too.
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert errors == "Interrupted: 0 of 3 ways were run.\n"
