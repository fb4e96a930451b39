"""Jitter: two processes of a program never draw the same, whatever they have in common."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from asyncpool import Retry, WorkerPool
from asyncpool.events import JobRetrying
from asyncpool.testing import run

PROGRAM = "from tests.core.test_chance import pauses; import random; random.seed(1); print(pauses())"


async def fails(job: int) -> None:
    raise ValueError


def pauses() -> str:
    """Return the pauses of a pool's first retries."""
    events: list[object] = []
    pool = WorkerPool(fails, workers=1, retry=Retry(attempts=3), observers=[events.append])
    return drawn_in(pool, events)


def drawn_in(pool: WorkerPool[int, None], events: list[object]) -> str:
    async def main() -> None:
        async with pool:
            await pool.outcomes([1])

    run(main)
    return repr([event.seconds for event in events if isinstance(event, JobRetrying)])


def test_two_processes_that_seed_random_alike_draw_different_pauses() -> None:
    command = [sys.executable, "-c", PROGRAM]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first.startswith("[0.")
    assert first != second


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forks_of_a_process_with_a_pool_draw_different_pauses() -> None:
    random.seed(1)
    events: list[object] = []
    pool = WorkerPool(fails, workers=1, retry=Retry(attempts=3), observers=[events.append])
    drawn = []
    for _ in range(2):
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writable, drawn_in(pool, events).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writable)
        with os.fdopen(readable) as file:
            drawn.append(file.read())
    assert drawn[0].startswith("[0.")
    assert drawn[0] != drawn[1]
