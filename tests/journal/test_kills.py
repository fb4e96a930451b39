"""A program with a journal, killed again and again at random moments: nobody is left out, little is repeated."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.journal.tools import recorded_in
from tests.laws.budget import IS_LONG

JOBS, KILLS = (100_000, 20) if IS_LONG else (4000, 5)
WORKERS = 20

PROGRAM = """
import asyncio, os, random, sys
from asyncpool import Journal, WorkerPool

effects = os.open(sys.argv[1] + "/effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
delivered = os.open(sys.argv[1] + "/delivered", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def work(job):
    os.write(effects, b"%d\\n" % job)
    await asyncio.sleep(random.expovariate(1 / 0.003))

async def main():
    journal = Journal(sys.argv[1] + "/batch.db", key=int, durable=False)
    handler = journal.recorded(work) if sys.argv[3] == "recorded" else work
    async with WorkerPool(handler, workers=int(sys.argv[4])) as pool:
        async for outcome in journal.outcomes(pool, range(int(sys.argv[2]))):
            os.write(delivered, b"%d\\n" % outcome.job)

asyncio.run(main())
"""


def lines_of(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_bytes().split())) if path.exists() else Counter()


@pytest.mark.slow
@pytest.mark.timeout(3600 if IS_LONG else 120)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("kind", ["stream", "recorded"])
def test_a_program_that_is_killed_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    chance, killed, runs = random.Random(1), 0, 0
    begun = Counter[int]()
    journal = tmp_path / "batch.db"
    while True:
        runs += 1
        argv = [sys.executable, "-c", PROGRAM, str(tmp_path), str(JOBS), kind, str(WORKERS)]
        program = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        if killed < KILLS:
            jobs = sum(begun.values()) + chance.randrange(1, JOBS // KILLS)
            while program.poll() is None and sum(lines_of(tmp_path / "effects").values()) < jobs:
                time.sleep(0.01)
            program.kill()
            killed += program.wait() != 0
        program.wait()
        begun = lines_of(tmp_path / "effects")
        done = recorded_in(journal)
        # What was delivered is recorded; what is begun and not recorded will run again, and that is little.
        assert set(lines_of(tmp_path / "delivered")) <= done <= set(begun)
        assert len(set(begun) - done) <= (WORKERS if kind == "recorded" else 2 * WORKERS)
        if program.returncode == 0:
            break
    assert killed == min(KILLS, runs - 1)
    assert done == set(range(JOBS))
    assert sum(begun.values()) - JOBS <= killed * 2 * WORKERS
    assert max(lines_of(tmp_path / "delivered").values()) == 1
    with closing(sqlite3.connect(journal)) as base:
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
