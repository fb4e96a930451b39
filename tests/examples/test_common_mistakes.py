"""`python -m examples.common_mistakes`: the naive programs fail as it says, and those with a pool do not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from asyncpool.testing import DeadlockError, run
from examples import common_mistakes as mistakes
from examples.common_mistakes import MISTAKES, Mistake

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "examples.common_mistakes"]
GIVE_UP = 60.0

Program = Callable[[], Awaitable[None]]


def printed_by(program: Program, capsys: pytest.CaptureFixture[str]) -> list[str]:
    run(program, collect=True)
    return capsys.readouterr().out.splitlines()


# -- by hand --


@pytest.mark.parametrize(
    ("naive", "waits", "printed"),
    [
        (mistakes.results_never_closed, ["await results.get()"], [f"result {n * n}" for n in range(5)]),
        (mistakes.never_marked_done, ["await jobs.join()", "await jobs.get()"], ["result 12", "result 4"]),
        (mistakes.results_unread, ["await jobs.put(number)", "await results.put(result)"], []),
    ],
)
def test_the_naive_program_hangs_where_it_should(
    naive: Program, waits: list[str], printed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeadlockError) as caught:
        run(naive)

    assert capsys.readouterr().out.splitlines() == printed
    for wait in waits:
        assert wait in str(caught.value)


@pytest.mark.parametrize(
    ("naive", "printed"),
    [
        (mistakes.sent_after_the_close, "3 of 5 jobs were done, without any error"),
        (mistakes.added_inside, "0 of 5 jobs were done when join() returned"),
    ],
)
def test_the_naive_program_loses_jobs_silently(
    naive: Program, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed_by(naive, capsys) == [printed]


# -- with a pool --


def test_the_loop_over_a_stream_ends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    results = [f"result {n * n}" for n in range(5)]
    assert printed_by(mistakes.the_loop_ends, capsys) == [*results, "the loop has ended"]


def test_a_late_producer_is_told_and_what_was_accepted_is_delivered(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_by(mistakes.rejected_after_the_close, capsys) == [
        "Succeeded(1, 1)",
        "Succeeded(3, 9)",
        "Succeeded(2, 4)",
        "4 is rejected: the group of pool 'pool' takes no more jobs",
        "5 is rejected: the group of pool 'pool' takes no more jobs",
        "6 is rejected: pool 'pool' is closed (or closing) and no longer accepts jobs",
    ]


def test_a_block_around_all_producers_closes_the_group_after_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_by(mistakes.closed_by_the_last, capsys) == ["5 of 5 jobs were done"]


def test_a_producer_that_the_block_does_not_know_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = "PoolClosed: pool 'pool' is closed (or closing) and no longer accepts jobs"
    assert printed_by(mistakes.late_producer_gets_an_error, capsys) == [told]


def test_leaving_the_block_waits_for_all_jobs_and_nothing_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_by(mistakes.nothing_to_count, capsys) == [
        "Succeeded(1, 12)",
        "Failed(0, ZeroDivisionError('integer division or modulo by zero'))",
        "Succeeded(3, 4)",
        "3 jobs: 2 succeeded, 1 failed, 0 running",
    ]


def test_unread_results_hold_no_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_by(mistakes.no_worker_waits_for_a_reader, capsys) == [
        "result 0",
        "after a minute: 6 of 1000 jobs pulled, 0 running",  # the one that was read, and a window of 3 + 2
        "a job of another caller: 144",
    ]


def test_who_submits_everything_before_he_reads_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told, *outcomes = printed_by(mistakes.the_window_is_full, capsys)
    assert told.startswith("PoolDeadlock: the group of pool 'pool': 3 outcomes are unread, which is its window")
    assert outcomes == ["Succeeded(0, 0)", "Succeeded(1, 1)", "Succeeded(2, 4)"]


@pytest.mark.parametrize(
    "pooled",
    dict.fromkeys(pooled for mistake in MISTAKES for pooled in mistake.pooled),
    ids=lambda pooled: pooled.__name__,
)
def test_under_no_schedule_does_a_pool_hang(pooled: Program) -> None:
    for seed in range(20):
        run(pooled, seed=seed)


# -- what is shown --


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title.partition(".")[0])
def test_all_programs_of_a_mistake_are_shown(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes.show(mistake)

    printed = capsys.readouterr().out
    for program in (mistake.naive, *mistake.pooled):
        assert f"{program.__name__}():\n" in printed


def test_the_report_shows_where_each_task_waits_in_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    mistakes.show(MISTAKES[-1])

    report = capsys.readouterr().out.partition("It hangs: ")[2].partition("\n\n")[0]
    assert re.sub(r":\d+", "", report).splitlines() == [
        "deadlock: nothing is ready to run and no timer is set. Waiting tasks:",
        "  task 'main' waits at",
        "    common_mistakes.py in results_unread: await jobs.put(number)",
        "  task 'worker 1' waits at",
        "    common_mistakes.py in worker: await results.put(result)",
        "  task 'worker 2' waits at",
        "    common_mistakes.py in worker: await results.put(result)",
    ]


def test_the_program_shows_one_mistake_after_the_other() -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    titles = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert titles == [f"== {mistake.title} ==" for mistake in MISTAKES]
    assert done.stdout.count("It hangs: ") == 3


def test_it_ends_in_silence_when_nobody_reads_it() -> None:
    process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (1, "")


def test_arguments_are_refused_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        mistakes.main(["--bogus"])

    assert ended.value.code == 2
    assert capsys.readouterr().err == ("common_mistakes: error: unrecognized arguments: --bogus (see --help)\n")
