"""`python -m examples.crunch`: the work, the ways that need nothing else, and the command as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import crunch
from examples.cluster import primes_below
from examples.crunch import Crunch, Options, Row

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.crunch"]
GIVE_UP = 60.0


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that run; those that have not ended are killed, with all that they have started."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(started: list[subprocess.Popen[str]], *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a terminal does: in a process group of its own."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def read_until(process: subprocess.Popen[str], pattern: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f"no line with {pattern!r}, but: {process.communicate()[1]}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )


# -- the work --


def test_the_primes_are_those_that_a_sieve_finds() -> None:
    for upto in (0, 1, 2, 3, 4, 5, 9, 10, 25, 26, 1000):
        assert crunch.primes_in((0, upto)) == primes_below(upto)
    assert primes_below(1_000_000) == 78_498
    assert crunch.primes_in((990_000, 1_000_000)) == 78_498 - primes_below(990_000)


@pytest.mark.parametrize(("upto", "chunk"), [(1, 1), (10, 3), (10, 10), (10, 11), (1000, 7)])
def test_the_jobs_are_all_numbers_once(upto: int, chunk: int) -> None:
    options = Options(upto=upto, chunk=chunk)
    chunks = list(options.chunks())
    assert [number for first, end in chunks for number in range(first, end)] == list(range(upto))
    assert len(chunks) == options.jobs


# -- the ways --


def test_all_ways_find_the_same_and_are_compared() -> None:
    done = run("--all", "--upto", "30000", "--processes", "2")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Counting the primes below 30,000 in 30 jobs"
    table = lines[-5:]
    assert table[0].split() == ["jobs", "start", "seconds", "jobs/s", "speed-up"]
    names = ["sequential", "one process, 8 workers", "all cores, 16 workers"]
    for name, line in zip(names, table[1:4], strict=True):
        assert re.fullmatch(rf"{name} +30 +\d+\.\d\d s +\d+\.\d\d s +[\d,]+ +\d+\.\d\d", line), line
    assert re.search(r"sequential .* 1\.00$", table[1])
    assert table[4] == f"{primes_below(30_000):,} primes"


def test_one_way_is_a_table_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert crunch.main(["--engine", "none", "--upto", "2500", "--workers", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Counting the primes below 2,500 in 3 jobs"
    assert lines[-3].split() == ["jobs", "start", "seconds", "jobs/s"]
    assert lines[-2].startswith("one process, 3 workers")
    assert lines[-1] == "367 primes"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_several_cores_are_used_unless_something_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []
    monkeypatch.setattr(Crunch, "run", lambda self: asked.append(self.options) or 0)
    for cores in (1, 4):
        monkeypatch.setattr(crunch, "_cores", lambda cores=cores: cores)
        crunch.main([])
    crunch.main(["--dask", "tcp://localhost:1"])
    assert [options.ways for options in asked] == [("none",), ("processes",), ("dask",)]
    assert asked[1].processes == 4


def test_ways_that_do_not_agree_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    counting = Crunch(Options(upto=2000))
    counting.rows = [Row(name="a", done=2, primes=303), Row(name="b", done=2, primes=302)]
    assert counting.sum_up() == 1
    assert capsys.readouterr().err == "crunch: error: the counts are incomplete or differ: [302, 303]\n"


# -- wrong input --


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--upto", "0"], "argument --upto: must be an integer from 1 to 100000000, got '0'"),
        (["--chunk", "x"], "argument --chunk: must be an integer from 1 to 1000000, got 'x'"),
        (["--processes", "-1"], "argument --processes: must be an integer from 1 to 1000, got '-1'"),
        (["--workers", "1e3"], "argument --workers: must be an integer from 1 to 100000, got '1e3'"),
        (["--all", "--dask", "local"], "argument --dask: not allowed with argument --all"),
        (["--dask", " "], "argument --dask: must be the address of a scheduler, such as tcp://host:8786, or local"),
        (
            ["--all", "--journal", "x"],
            "--journal needs a single pool: it cannot be combined with --all or --engine sequential",
        ),
        (["primes"], "unrecognized arguments: primes"),
    ],
)
def test_what_makes_no_sense_is_answered_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        crunch.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"crunch: error: {sentence} (see --help)\n"


def test_a_file_that_is_not_a_journal_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database")
    assert crunch.main(["--engine", "none", "--upto", "10", "--journal", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"crunch: error: {file} is not a journal")
    assert error.count("\n") == 1
    assert file.read_text() == "not a database"


def test_without_dask_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['distributed'] = None; from examples import crunch; sys.exit(crunch.main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--dask", "local"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP,
        check=False,
    )

    assert done.returncode == 2
    assert re.fullmatch(r"crunch: error: .*asyncpool-toolkit\[dask\].*\n", done.stderr)


# -- Ctrl+C --


def test_after_ctrl_c_it_goes_on_where_it_was(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    journal = ["--journal", str(tmp_path / "primes.db")]
    first = start(started, "--upto", "100000000", "--processes", "2", *journal)
    read_until(first, "/100,000 ")
    os.killpg(first.pid, signal.SIGINT)  # the processes of the engine get it too
    printed, errors = first.communicate(timeout=GIVE_UP)

    assert first.returncode == 130
    assert "draining" in errors
    end = re.search(
        r"^Interrupted: ([\d,]+) of 100,000 jobs were done; run the same command again to continue\.$", errors, re.M
    )
    assert end is not None
    done = int(end[1].replace(",", ""))
    assert done > 0
    assert re.search(rf"^all cores, 16 workers +{end[1]} ", printed, re.M)

    upto = (done + 20) * 1000  # what was done is the beginning, but perhaps for some of the last
    second = run("--upto", str(upto), "--engine", "none", *journal)
    assert (second.returncode, second.stderr) == (0, "")
    assert f"{end[1]} jobs were already done, according to" in second.stdout
    assert re.search(r"^one process, 8 workers +20 ", second.stdout, re.M)
    assert second.stdout.endswith(f"{primes_below(upto):,} primes\n")


def test_a_second_ctrl_c_cancels(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, "--engine", "none", "--upto", "100000000", "--chunk", "20000")
    read_until(process, "/5,000 ")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "SIGINT: draining" in process.stderr.readline()  # 80 jobs, which take some seconds
    time.sleep(0.6)  # sooner, it would count as the same
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert "SIGINT: cancelling" in errors
    assert re.search(r"^Interrupted: \d+ of 5,000 jobs were done\.$", errors, re.M)


def test_ctrl_c_ends_the_plain_loop_at_once(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, "--engine", "sequential", "--upto", "100000000")
    read_until(process, "Counting")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert re.fullmatch(r"Interrupted: \d+ of 100,000 jobs were done\.\n", errors)
