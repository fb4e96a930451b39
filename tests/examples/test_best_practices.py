"""`python -m examples.best_practices`: what each practice shows, on virtual time and, all of it, on a real clock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncpool.testing import run
from examples import best_practices

ROOT = Path(__file__).parents[2]

SHOWN = {
    "Number of workers: I/O-bound jobs": """
        500 requests/s of 0.2 s: 100
        ... if the database has 30 connections: 30
        ... if parsing each takes 10 ms of CPU: 20
        90 jobs done, at most 30 at a time
    """,
    "Number of workers: CPU-bound jobs": """
        4 hashes (the first: f2cc6acc...) on 3 workers for 3 processors
    """,
    "Cancellation: one job": """
        Cancelled(60.0, 'handle', started=True)
        Cancelled(60.0, 'handle', started=False)
    """,
    "Cancellation: a caller": """
        the caller and its job are gone: 1 cancelled, 0 running
    """,
    "Cancellation: a timeout for each attempt": """
        'hard': attempt 1 has 0.2 s
        'hard': attempt 2 has 0.2 s
        'hard': answered in attempt 2
        'hopeless': attempt 1 has 0.2 s
        'hopeless': attempt 2 has 0.2 s
        'hopeless': the job ran longer than its timeout of 0.2 s
    """,
    "Cancellation: a deadline for a block": """
        anyio.fail_after: 3 of 7 jobs were done in time
        asyncio.timeout: not all jobs were done in time
        8 jobs were cancelled; the pool still works: 0.01
    """,
    "Buffer sizes: reject when full": """
        queue_size=0, 2 workers: 2 jobs accepted, the next one rejected
        queue_size=3, 2 workers: 5 jobs accepted, the next one rejected
        queue_size=None, 2 workers: 22 jobs accepted, the next one rejected
    """,
    "Buffer sizes: wait for room": """
        queue_size=0: a producer of 60 jobs was at most 2 ahead
        queue_size=3: a producer of 60 jobs was at most 5 ahead
        queue_size=None: a producer of 60 jobs was at most 22 ahead
    """,
    "Buffer sizes: a slow reader": """
        read 20, pulled 26: at most 6 ahead (queue_size 4 + 2 workers)
    """,
    "Shutdown: in time, with a report": """
        ERROR in the log: pool 'mails': abandoned a job that ignores its cancellation: 'stubborn'
        closed: 1 done in time, 3 left
        long: cancelled, may have had effects
        stubborn: ignores its cancellation and is still running
        last: not started, safe to redo
        WARNING in the log: pool 'mails': job 3, abandoned when the pool closed, has ended: Succeeded('stubborn', None)
    """,
    "Cleanup: connections": """
        connection 1 opened
        first mail sent over connection 1
        connection 1 closed
        connection 2 opened
        second mail sent over connection 2
        connection 2 closed
    """,
    "Cleanup: the source of a stream": """
        file opened
        0.01: leaving the loop
        file closed
        0 jobs running, 0 queued
    """,
    "Errors: read all outcomes": """
        12 // 2 = 6
        12 // 0: integer division or modulo by zero
        12 // 3 = 4
    """,
    "Errors: stop at the first one": """
        6
        4
        integer division or modulo by zero; 2 done, 1 failed, the others cancelled
    """,
    "Errors: unread failures": """
        ERROR in the log: pool 'forgotten': a job's failure was never retrieved (occurrence 1): 0
        2 done, 1 failed, unread failures: 1
        ERROR in the log: pool 'forgotten': 1 failure was never retrieved
    """,
}


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("title", SHOWN)
def test_a_practice_shows_what_it_says(
    title: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    with best_practices.printed_log():
        run(best_practices.PRACTICES[title], collect=True)

    assert lines_of(capsys.readouterr().out) == lines_of(SHOWN[title])


def test_on_a_real_clock_the_program_prints_all_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.best_practices"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    expected: list[str] = []
    processors = os.cpu_count() or 1
    for title, shown in SHOWN.items():
        expected += ["", f"== {title} ==", *lines_of(shown)]
    ours = "on 3 workers for 3 processors", f"on {processors} workers for {processors} processors"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [line.replace(*ours) for line in expected[1:]]


def test_arguments_are_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        best_practices.main(["--bogus"])

    assert ended.value.code == 2
    assert capsys.readouterr().err == ("best_practices: error: unrecognized arguments: --bogus (see --help)\n")
