"""`python -m examples.adaptive_crawl`: crawls on virtual time, of a real server; and the command as a user runs it."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from asyncpool.testing import run
from examples import adaptive_crawl
from examples.adaptive_crawl import Crawl, Options
from examples.crawl_site import Site

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.adaptive_crawl"]
GIVE_UP = 60.0


def crawled(**options: Any) -> Crawl:
    crawl = Crawl(Options(**options))
    run(crawl.run)
    return crawl


# -- the crawl --


@pytest.mark.parametrize("pages", [1, 2, 500])
def test_every_page_of_the_site_is_fetched_once(pages: int, capsys: pytest.CaptureFixture[str]) -> None:
    crawl = crawled(pages=pages, seconds=60.0, capacity=[4], max_workers=8)

    assert crawl.site.requests == Counter(range(pages))
    assert sorted(int(url.rpartition("/")[2]) for url in crawl.fetched) == list(range(pages))
    assert crawl.failed == []
    assert re.search(rf"^{pages} pages in \d+\.\d s; 0 more found but not fetched$", capsys.readouterr().out, re.M)


def test_no_page_is_asked_for_twice_when_time_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    crawl = crawled(seconds=3.0)

    requests = crawl.site.requests
    assert set(requests.values()) == {1}
    assert len(set(crawl.fetched)) == len(crawl.fetched)
    assert 0 <= len(requests) - len(crawl.fetched) <= crawl.options.max_workers  # in progress at the end
    assert crawl.left > 0
    told = f"{len(crawl.fetched)} pages in 3.0 s; {crawl.left:,} more found but not fetched"
    assert told in capsys.readouterr().out


def test_never_more_requests_than_workers_and_each_phase_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    crawl = crawled(seconds=20.0, capacity=[8, 3], max_workers=16, service=0.05)

    sizes = [size for _, size in crawl.sizes]
    assert crawl.site.peak_inside <= max(sizes) <= 16
    assert max(sizes) >= 4  # it has left the one worker it began with
    printed = capsys.readouterr().out
    assert re.search(r"^  0\.0 s  the server now handles 8 requests at a time$", printed, re.M)
    assert re.search(r"^ 10\.0 s  the server now handles 3 requests at a time$", printed, re.M)
    status = r"^ +\d+\.\d s  capacity 8, \d+ workers, \d+ pages/s, \d+ ms, \d+ -> \d+ workers: .+$"
    assert re.search(status, printed, re.M)
    head, first, second, _ = printed.splitlines()[-4:]
    assert head.split() == ["seconds", "capacity", "workers", "pages/s", "possible", "p50", "latency"]
    assert first.split()[:2] == ["0.0-10.0", "8"]
    assert second.split()[:2] == ["10.0-20.0", "3"]
    for line, capacity in ((first, 8), (second, 3)):
        workers, rate, possible = map(int, line.split()[2:5])
        assert 1 <= workers <= 16
        assert 0 < rate <= 1.05 * possible
        assert possible == capacity * 20


def test_a_page_that_fails_is_told_and_stops_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    html = Site._html
    monkeypatch.setattr(Site, "_html", lambda site, page: html(site, page) + f'<a href="/{site.pages + page}">gone</a>')
    crawl = crawled(pages=3, seconds=60.0, capacity=[2], max_workers=2)

    assert crawl.site.requests == Counter(range(3))
    assert len(crawl.failed) == 3
    assert re.search(r"^3 failed; the first one: Failed\('http://127.0.0.1:\d+/3', ", capsys.readouterr().out, re.M)


def test_the_server_works_on_no_more_requests_than_it_can() -> None:
    async def main() -> None:
        async with Site(10, capacity=2, seconds=1.0) as site, aiohttp.ClientSession() as session:

            async def get(page: int) -> None:
                async with session.get(site.home[:-1] + str(page)) as response:
                    assert response.status == 200
                    done.append(asyncio.get_running_loop().time())

            done: list[float] = []
            await asyncio.gather(*(get(page) for page in range(10)))
            assert site.peak_inside == 10
            assert done == sorted(done)
            assert 2.5 <= done[-1] <= 7.5

    run(main)


# -- the command --


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seconds", "0"], "argument --seconds: must be a number > 0 and <= 86400, got '0'"),
        (["--seconds", "soon"], "argument --seconds: must be a number > 0 and <= 86400, got 'soon'"),
        (["--capacity", ""], "argument --capacity: must be an integer from 1 to 10000, got ''"),
        (["--capacity", "16,0"], "argument --capacity: must be an integer from 1 to 10000, got '0'"),
        (["--capacity", "1," * 200], "argument --capacity: must have at most 100 numbers, got 201"),
        (["--max-workers", "0"], "argument --max-workers: must be an integer from 1 to 500, got '0'"),
        (["--pages", "many"], "argument --pages: must be an integer from 1 to 100000000, got 'many'"),
        (["http://example.org"], "unrecognized arguments: http://example.org"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        adaptive_crawl.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"adaptive_crawl: error: {sentence} (see --help)\n"


def test_the_command_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", *COMMAND[1:], "--pages", "10", "--capacity", "4", "--max-workers", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "10 pages in " in done.stdout


def test_ctrl_c_tells_how_far_it_was() -> None:
    process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "the server now handles 16 requests" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert re.fullmatch(r"Interrupted: \d+ pages were fetched\.\n", errors)


def test_a_missing_package_is_told_in_a_sentence() -> None:
    program = (
        "import runpy, sys; sys.modules['aiohttp'] = None; "
        "runpy.run_module('examples.adaptive_crawl', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith("adaptive_crawl: error: the package 'aiohttp' is not installed; to install")
    assert done.stderr.count("\n") == 1


def test_on_a_terminal_there_are_bars_and_the_last_decision() -> None:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--pages", "20", "--capacity", "4", "--max-workers", "4"],
        cwd=ROOT,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(master)

    assert process.wait(GIVE_UP) == 0
    assert b"\x1b[2K" in shown  # lines are redrawn
    assert b"capacity 4" in shown
    assert re.search(rb"no decision yet|\d+ -> \d+ workers: ", shown)
    assert b"20 pages in " in shown
