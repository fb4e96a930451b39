"""`Dask` on a scheduler and workers that are processes of their own, when they die, hang, or the program does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra dask")

from asyncpool import EngineLost, Failed, PoolClosed, ProcessDied, ProcessLost, Succeeded, WorkerPool
from asyncpool.dask import Dask, processes, session
from tests.engines import dask_handlers as handlers
from tests.engines.dask_cluster import ROOT, Cluster, Runs, kill
from tests.laws.budget import IS_LONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL"),
]


def real(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a real event loop."""

    @wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return call


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """Two workers, which their nannies restart."""
    with Cluster(2, nanny=True) as cluster:
        asyncio.run(cluster.ready())
        yield cluster


async def run_under_fire(cluster: Cluster, folder: Path, *, jobs: int, seconds: float, kills: int) -> None:
    """Kill workers at random moments, and check that each job is done, and how many were begun again."""
    rng = random.Random(kills)
    moments = sorted(rng.sample(range(jobs // 10, jobs * 9 // 10), kills))
    workers = 40
    given = 0
    done: list[int] = []
    killed: set[int] = set()

    def source() -> Iterator[tuple[int, float, Path]]:
        nonlocal given
        while given < jobs or moments:  # a killed worker takes some time to come back
            yield given, seconds, folder
            given += 1

    async with WorkerPool(handlers.noted, workers=workers, engine=Dask(cluster.address), patience=60) as pool:
        async for outcome in pool.outcomes(source()):
            assert isinstance(outcome, Succeeded), outcome
            done.append(outcome.job[0])
            is_time = moments and len(done) >= moments[0] and pool.stats.processes == 2
            if is_time and outcome.value not in killed:  # outcomes of a worker can still come when it is dead
                moments.pop(0)
                kill(outcome.value)
                killed.add(outcome.value)
                await until(lambda: pool.stats.processes < 2)
        stats = pool.stats
    runs = Runs(folder)
    assert sorted(done) == list(range(given))
    assert len(killed) == stats.processes_lost == kills
    again = sum(runs.begun.values()) - given
    assert again <= stats.reruns <= workers * kills


@pytest.mark.timeout(3600 if IS_LONG else 120)
@real
async def test_kill_9_of_workers_loses_no_job(shared: Cluster, tmp_path: Path) -> None:
    if IS_LONG:  # a worker is back after some seconds, and so these take long too
        await run_under_fire(shared, tmp_path, jobs=20_000, seconds=0.6, kills=100)
    else:
        await run_under_fire(shared, tmp_path, jobs=1000, seconds=0.02, kills=2)


@real
async def test_a_job_that_kills_its_worker_fails_alone(shared: Cluster) -> None:
    jobs = 10_000 if IS_LONG else 200
    async with WorkerPool(handlers.poison, workers=8, engine=Dask(shared.address), patience=60) as pool:
        outcomes = await pool.outcomes(range(jobs))
    (failed,) = [outcome for outcome in outcomes if not isinstance(outcome, Succeeded)]
    assert failed.job == 77
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ProcessDied)


@real
async def test_without_reruns_no_job_begins_twice(shared: Cluster, tmp_path: Path) -> None:
    async with WorkerPool(handlers.noted, workers=20, engine=Dask(shared.address), patience=60, reruns=False) as pool:
        outcomes = []
        async for outcome in pool.outcomes((number, 0.05, tmp_path) for number in range(400)):
            outcomes.append(outcome)
            if len(outcomes) == 100:
                assert isinstance(outcome, Succeeded)
                kill(outcome.value)
    lost = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(outcomes) == 400
    assert lost
    assert all(isinstance(error, ProcessLost) for error in lost)
    assert max(Runs(tmp_path).begun.values()) == 1


@real
async def test_a_handler_that_blocks_its_worker_for_seconds_is_waited_for(shared: Cluster) -> None:
    async with WorkerPool(handlers.blocks, workers=1, engine=Dask(shared.address)) as pool:
        await pool.run(4.0)
        assert pool.stats.reruns == 0


@real
async def test_a_worker_that_hangs_is_restarted_by_its_nanny(
    shared: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_LOST_GRACE", 0.1)
    monkeypatch.setattr(processes, "_CLOSE_ANSWERS_WITHIN", 0.5)
    monkeypatch.setattr(processes, "_TRY_A_WAY_FOR", 1.0)
    engine = Dask(shared.address)
    async with WorkerPool(handlers.hangs_once, workers=2, engine=engine, responds_within=1.0, patience=60) as pool:
        hung = await pool.run(tmp_path)
        assert pool.stats.processes_lost == 1
        await until(lambda: _is_gone(hung))


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


PROGRAM = """
import asyncio, sys
from pathlib import Path
from asyncpool import WorkerPool
from asyncpool.dask import Dask
from tests.engines import dask_handlers as handlers

async def main():
    async with WorkerPool(handlers.noted, workers=10, engine=Dask(sys.argv[1])) as pool:
        await pool.map((number, 3600.0, Path(sys.argv[2])) for number in range(10))

asyncio.run(main())
"""


@real
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_program_that_is_killed_ends_its_handlers(how: signal.Signals, shared: Cluster, tmp_path: Path) -> None:
    program = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", PROGRAM, shared.address, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: len(Runs(tmp_path).begun) == 10)
    finally:
        program.send_signal(how)
        await asyncio.to_thread(program.wait)
    # The lease is gone at once; without it the runner would wait for half a minute, and this for longer.
    async with asyncio.timeout(10):
        await until(lambda: len(Runs(tmp_path).cancelled) == 10)


MAIN = """
import asyncio, sys
from dataclasses import dataclass
from asyncpool import WorkerPool
from asyncpool.dask import Dask

@dataclass(frozen=True)
class Job:
    number: int

async def double(job):
    return Job(2 * job.number)

async def main():
    async with WorkerPool(double, workers=10, engine=Dask(sys.argv[1])) as pool:
        assert await pool.map(Job(n) for n in range(50)) == [Job(2 * n) for n in range(50)]
    print("the same class")

asyncio.run(main())
"""


@real
async def test_what_the_main_module_defines_travels_by_value(shared: Cluster) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAIN, shared.address, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await program.communicate()
    assert printed.decode() == "the same class\n"


@real
async def test_a_worker_without_the_modules_of_the_handler_is_left_out(
    shared: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (shared.folder / "only_in_one_folder.py").write_text("import os\nasync def pid(job):\n    return os.getpid()\n")
    monkeypatch.syspath_prepend(str(shared.folder))
    handler = importlib.import_module("only_in_one_folder").pid
    async with WorkerPool(handler, workers=6, engine=Dask(shared.address), patience=60) as pool:
        await until(lambda: pool.stats.processes == 2)
        stranger = shared.add_worker(tmp_path)
        try:
            await until(lambda: "cannot be used" in caplog.text)
            assert "No module named 'only_in_one_folder'" in caplog.text
            await until(lambda: pool.stats.processes == 2)
            pids = await pool.map(range(60))
        finally:
            shared.end_worker(stranger)
    assert len(set(pids)) <= 2


@real
async def test_a_scheduler_that_is_gone_is_an_error_and_the_inputs_are_handed_back() -> None:
    with Cluster(2) as cluster:
        await cluster.ready()
        pool = WorkerPool(handlers.short, workers=10, engine=Dask(cluster.address), patience=1.0)
        done = 0
        with pytest.raises(EngineLost, match="no process that can run the handler for 1 s"):
            async with pool:
                with contextlib.suppress(PoolClosed):  # the source has more jobs than the pool will take
                    async for outcome in pool.outcomes(range(100_000)):
                        done += isinstance(outcome, Succeeded)
                        if done == 500:
                            kill(cluster.scheduler.pid)
        assert pool.report is not None
        assert done + len(pool.report.unfinished) == pool.stats.submitted


@real
async def test_a_scheduler_that_comes_back_costs_no_job(tmp_path: Path) -> None:
    with Cluster(2) as cluster:
        await cluster.ready()
        # Shorter than the wait: so the client of Dask gives up, and the engine makes another.
        engine = Dask(cluster.address, timeout=1)
        async with WorkerPool(handlers.noted, workers=10, engine=engine, patience=60) as pool:
            outcomes = []
            async for outcome in pool.outcomes((number, 0.02, tmp_path) for number in range(600)):
                outcomes.append(outcome)
                if len(outcomes) == 200:
                    kill(cluster.scheduler.pid)
                    asyncio.get_running_loop().call_later(1.5, cluster.start)
        assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
        assert len(outcomes) == 600
        assert pool.stats.reruns <= 20
