"""`python -m examples.cluster`: a real Dask cluster that loses a worker."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from examples import cluster
from tests.examples.test_crunch import GIVE_UP, ROOT

COMMAND = [sys.executable, "-m", "examples.cluster"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--upto", "0"], "argument --upto: must be an integer from 1 to 100000000, got '0'"),
        (["--workers", "0"], "argument --workers: must be an integer from 1 to 64, got '0'"),
        (["--kills", "-1"], "argument --kills: must be an integer from 0 to 100, got '-1'"),
    ],
)
def test_what_makes_no_sense_is_answered_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cluster.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"cluster: error: {sentence} (see --help)\n"


@pytest.fixture
def dask() -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")


@pytest.fixture
def process(dask: None, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *request.param], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    if process.poll() is None:
        process.terminate()  # and not kill: it has a cluster to end
    process.communicate()


def address_in(line: str) -> tuple[str, int]:
    found = re.fullmatch(r"Scheduler at tcp://(127\.0\.0\.1):(\d+), with 2 workers\n", line)
    assert found is not None, line
    return found[1], int(found[2])


def assert_nobody_is_at(address: tuple[str, int]) -> None:
    with pytest.raises(ConnectionRefusedError), socket.create_connection(address):
        pass


@pytest.mark.parametrize("process", [["--upto", "300000"]], indirect=True)
def test_a_worker_is_killed_and_nothing_is_lost(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    address = address_in(process.stdout.readline())
    printed, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 0
    assert re.fullmatch(r"pool 'crunch': lost Dask worker \S+ with \d+ attempts: .*\n", errors)
    assert len(re.findall(r"killed worker process \d+ with kill -9; starting a new one$", printed, re.M)) == 1
    assert re.search(r"^Dask, 16 workers +300 ", printed, re.M)
    assert re.search(r"^Processes lost: 1\. Attempts rerun: \d\.$", printed, re.M)
    last = "No job was lost: 300 jobs, 300 outcomes, and the same primes as a sieve finds.\n"
    assert printed.endswith(f"{cluster.primes_below(300_000):,} primes\n{last}")
    assert_nobody_is_at(address)


@pytest.mark.parametrize("process", [["--upto", "100000000"]], indirect=True)
def test_sigterm_in_the_middle_ends_the_cluster_too(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    address = address_in(process.stdout.readline())
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert process.returncode == 130
    assert re.search(r"^Interrupted: \d+ of 100,000 jobs were done\.$", errors, re.M)
    assert_nobody_is_at(address)
