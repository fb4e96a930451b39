"""`Dask` on a cluster in this process: all of the way to the workers and back, without a process that can die."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import pytest
from blockbuster import BlockBuster

pytest.importorskip("distributed", reason="needs the extra dask")

from distributed import Client, LocalCluster

from asyncpool import (
    EngineLost,
    Failed,
    JobCrashed,
    ProcessLost,
    Retry,
    Succeeded,
    WorkerPool,
    offload,
)
from asyncpool.dask import Dask, growth, processes, session, tenants
from asyncpool.engines import wire
from tests.engines import dask_handlers as handlers
from tests.engines.dask_cluster import ROOT, Runs, in_process

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]


def real(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a real event loop. It must leave no task and no runner behind."""

    @wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await test(*args, **kwargs)
            assert not tenants._tenants
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not [task for task in left if "asyncpool" in repr(task)]

        asyncio.run(main())

    return call


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# -- What it does ------------------------------------------------------------------------------------------------------


@real
async def test_jobs_run_on_all_workers_and_nothing_stays_behind() -> None:
    async with in_process() as cluster:
        async with WorkerPool(handlers.short, workers=40, engine=Dask(cluster)) as pool:
            assert await pool.map(range(500)) == list(range(500))
            assert [process.workers for process in pool.processes()] == [20, 20]
        assert pool.stats.processes_lost == 0
        await until(lambda: not cluster.scheduler.tasks)  # the leases


@real
async def test_the_scheduler_is_not_involved_in_single_jobs(caplog: pytest.LogCaptureFixture) -> None:
    async with in_process() as cluster:
        with caplog.at_level(logging.INFO, logger="distributed"):
            async with WorkerPool(handlers.echo, workers=40, engine=Dask(cluster)) as pool:
                await until(lambda: len(cluster.scheduler.tasks) == 2)
                await pool.map(range(100))
                transitions = cluster.scheduler.transition_counter
                await pool.map(range(1000))
                assert cluster.scheduler.transition_counter == transitions
        assert len([record for record in caplog.records if "out-of-band" in record.getMessage()]) == 2


@real
async def test_one_engine_serves_pools_at_the_same_time_and_one_after_the_other() -> None:
    async with in_process(1) as cluster:
        engine = Dask(cluster)
        # The worker has one thread: a lease that kept it would make the second pool wait for the first.
        async with (
            WorkerPool(handlers.short, workers=4, engine=engine) as first,
            WorkerPool(handlers.short, workers=4, engine=engine) as second,
        ):
            async for value in first.map(range(50)):
                assert await second.run(value) == value
        async with WorkerPool(handlers.short, workers=4, engine=engine) as third:
            assert await third.run(1) == 1


@real
async def test_dask_goes_on_with_its_own_tasks_on_workers_that_the_pool_uses() -> None:
    async with (
        in_process(1) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
        WorkerPool(handlers.short, workers=4, engine=Dask(client)) as pool,
    ):
        await pool.run(1)
        assert await client.submit(sum, [1, 2]) == 3


def test_the_cluster_may_belong_to_another_thread() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        async def main(given: Any) -> None:
            async with WorkerPool(handlers.short, workers=4, engine=Dask(given)) as pool:
                assert await pool.map(range(20)) == list(range(20))

        asyncio.run(main(cluster))
        asyncio.run(main(client))


@real
async def test_there_are_never_more_processes_than_workers() -> None:
    async with in_process(3) as cluster, WorkerPool(handlers.short, workers=1, engine=Dask(cluster)) as pool:
        await pool.map(range(10))
        assert len(pool.processes()) == 1
        pool.resize(2)
        await until(lambda: pool.stats.processes == 2)
        assert [process.workers for process in pool.processes()] == [1, 1]
        pool.resize(9)
        await until(lambda: pool.stats.processes == 3)


@real
async def test_workers_that_join_later_are_used_and_those_that_leave_are_survived() -> None:
    async with in_process(1) as cluster, WorkerPool(handlers.short, workers=20, engine=Dask(cluster)) as pool:
        stream = pool.outcomes(range(100_000))
        count = 0
        async for outcome in stream:
            assert isinstance(outcome, Succeeded)
            count += 1
            if count == 100:
                cluster.scale(3)
            if count > 100 and pool.stats.processes == 3:
                break
        await stream.aclose()
        cluster.scale(1)
        done = await pool.outcomes(range(2000))
        assert all(isinstance(outcome, Succeeded) for outcome in done)
        await until(lambda: pool.stats.processes == 1)


# -- Cancelling and the end --------------------------------------------------------------------------------------------


@real
async def test_a_cancelled_job_cancels_its_handler_where_it_runs(tmp_path: Any) -> None:
    async with in_process() as cluster, WorkerPool(handlers.noted, workers=4, engine=Dask(cluster)) as pool:
        handles = [await pool.submit((number, 3600.0, tmp_path)) for number in range(4)]
        await until(lambda: len(Runs(tmp_path).begun) == 4)
        handles[0].cancel()
        await handles[0].outcome()
        assert set(Runs(tmp_path).cancelled) == {0}
        report = await pool.close(drain_timeout=0)
        assert len(report.unfinished) == 3
        assert Runs(tmp_path).cancelled == dict.fromkeys(range(4), 1)


@real
async def test_a_program_that_is_cancelled_ends_its_handlers(tmp_path: Any) -> None:
    async def program(cluster: LocalCluster) -> None:
        async with WorkerPool(handlers.noted, workers=4, engine=Dask(cluster)) as pool:
            await pool.map((number, 3600.0, tmp_path) for number in range(4))

    async with in_process() as cluster:
        task = asyncio.create_task(program(cluster))
        await until(lambda: len(Runs(tmp_path).begun) == 4)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await until(lambda: len(Runs(tmp_path).cancelled) == 4)


@real
async def test_a_runner_ends_when_the_cluster_drops_its_lease(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "_CHECK_EVERY", 0.05)
    async with in_process(1) as cluster, WorkerPool(handlers.noted, workers=4, engine=Dask(cluster)) as pool:
        handle = await pool.submit((0, 3600.0, tmp_path))
        await until(lambda: cluster.scheduler.tasks)
        await until(lambda: Runs(tmp_path).begun)
        await asyncio.sleep(0.3)  # the lease was seen
        cluster.scheduler.client_releases_keys(keys=list(cluster.scheduler.tasks), client=_only(_clients(cluster)))
        await until(lambda: Runs(tmp_path).cancelled)
        await until(lambda: Runs(tmp_path).begun[0] == 2)  # again, in a new runner
        handle.cancel()


def _clients(cluster: LocalCluster) -> set[str]:
    return {client.client_key for task in cluster.scheduler.tasks.values() for client in task.who_wants}


def _only(values: set[str]) -> str:
    (value,) = values
    return value


@real
async def test_a_runner_ends_if_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program died before Dask had the lease."""
    monkeypatch.setattr(tenants, "_CHECK_EVERY", 0.01)
    monkeypatch.setattr(tenants, "TICK", 0.03)
    async with in_process(1) as cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        worker = next(iter(cluster.workers.values()))
        await client.run(tenants.move_in, "token", b"", "place", workers=[worker.address])
        assert tenants._tenants
        await until(lambda: not tenants._tenants)


@real
async def test_a_pool_can_be_closed_while_its_scheduler_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async with in_process(1) as cluster:
        engine = Dask(cluster.scheduler_address, timeout=0.2)
        async with WorkerPool(handlers.short, workers=2, engine=engine, patience=60) as pool:
            await pool.run(1)
            await cluster.close()
            await until(lambda: "reconnecting" in caplog.text)
            async with asyncio.timeout(30):
                await pool.close(grace=60)
        await until(lambda: not tenants._tenants)  # the worker is closed, and its runner with it


# -- Ways to a worker --------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("way", ["_ask_directly", "_ask_through_scheduler", "_ask_by_run"])
async def test_each_way_to_a_worker_will_do(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Any, **message: Any) -> Any:
        raise OSError("no way")

    used = set()
    request = processes.DaskProcess._request

    async def counted(self: processes.DaskProcess, what: str, **arguments: Any) -> bytes:
        if what == tenants.PUT:
            used.add(self._ask.__name__)
        return await request(self, what, **arguments)

    monkeypatch.setattr(processes.DaskProcess, "_request", counted)
    ways = ["_ask_directly", "_ask_through_scheduler", "_ask_by_run"]
    for other in ways[: ways.index(way)]:
        monkeypatch.setattr(processes.DaskProcess, other, wraps(getattr(processes.DaskProcess, other))(fails))
    async with in_process() as cluster, WorkerPool(handlers.short, workers=4, engine=Dask(cluster)) as pool:
        assert await pool.map(range(40)) == list(range(40))
    assert used == {way}


@real
async def test_a_dask_without_what_it_does_not_promise_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    move_in = tenants.move_in

    async def move_into_bare(token: str, spec: bytes, place: str, dask_worker: Any) -> bool:
        class Proxy:
            status = dask_worker.status

        return await move_in(token, spec, place, Proxy())

    monkeypatch.setattr(processes, "move_in", move_into_bare)
    async with in_process() as cluster, WorkerPool(handlers.short, workers=4, engine=Dask(cluster)) as pool:
        assert await pool.map(range(40)) == list(range(40))


@real
async def test_a_call_to_a_worker_that_the_cluster_has_lost_ends_at_once() -> None:
    """By itself, it would try to connect for half a minute."""
    async with in_process(1) as cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        process = processes.DaskProcess(client, next(iter(cluster.workers.values())).address, lambda process: None)
        await process.open(wire.pack_spec(_SPEC))
        taking = asyncio.create_task(process.take())
        await until(lambda: process._calls)
        process.vanish()
        with pytest.raises(ProcessLost, match="the worker has left the cluster"):
            await taking
        with pytest.raises(ProcessLost, match="the worker has left the cluster"):
            await process.put(b"")
        await process.close(0.0)
        await until(lambda: not tenants._tenants)  # its lease was released


_SPEC = wire.Spec(
    pool="pool",
    handler=handlers.echo,
    timeout=None,
    max_elapsed=None,
    resource=None,
    shares_main=False,
    tick=3.0,
)


@real
async def test_all_goes_over_tls_if_the_cluster_does(loop_is_never_blocked: BlockBuster) -> None:
    loop_is_never_blocked.deactivate()  # Dask writes the certificates to files, in our client too
    pytest.importorskip("cryptography", reason="makes the certificates of the cluster")
    async with (
        in_process(security=True, protocol="tls://", host="127.0.0.1") as cluster,
        WorkerPool(handlers.short, workers=4, engine=Dask(cluster)) as pool,
    ):
        assert await pool.map(range(40)) == list(range(40))
        assert all(process.name.startswith("Dask worker tls://") for process in pool.processes())


@real
async def test_an_offloaded_function_runs_in_threads_of_the_worker() -> None:
    async with (
        in_process(1) as cluster,
        WorkerPool(offload(handlers.thread_name), workers=4, engine=Dask(cluster)) as pool,
    ):
        names = await pool.map(range(8))
    assert threading.main_thread().name not in names


# -- What does not travel ----------------------------------------------------------------------------------------------


async def _raises(job: int) -> None:
    if job == 0:
        raise UnicodeDecodeError("ascii", b"x", 0, 1, "no")
    if job == 1:
        raise SystemExit(3)
    if job == 2:
        raise KeyboardInterrupt
    raise KeyError(job) from OSError(2, "gone", "file.txt")


@real
async def test_errors_arrive_whole_although_dask_changes_how_exceptions_are_pickled() -> None:
    async with in_process() as cluster, WorkerPool(_raises, workers=4, engine=Dask(cluster)) as pool:
        outcomes = await pool.outcomes(range(4), ordered=True)
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    assert isinstance(errors[0], UnicodeDecodeError)
    assert errors[0].reason == "no"
    assert isinstance(errors[1], SystemExit)
    assert errors[1].code == 3
    assert isinstance(errors[2], JobCrashed)
    assert isinstance(errors[3], KeyError)
    assert isinstance(errors[3].__cause__, FileNotFoundError)
    assert "_raises" in errors[3].__notes__[0]


@real
async def test_a_value_or_an_input_that_cannot_travel_fails_alone() -> None:
    async def locks(job: Any) -> Any:
        return threading.Lock() if job == 1 else job

    async with in_process(1) as cluster, WorkerPool(locks, workers=4, engine=Dask(cluster)) as pool:
        outcomes = await pool.outcomes([0, 1, threading.Lock(), 3], ordered=True)
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Failed, Succeeded]


@real
async def test_context_variables_stay_behind_and_current_job_is_there() -> None:
    handlers.variable.set("here")
    async with (
        in_process(1) as cluster,
        WorkerPool(handlers.context, workers=1, engine=Dask(cluster), retry=Retry(attempts=2, backoff=0.0)) as pool,
    ):
        assert await pool.map([5, 6]) == [("default", 1, 2), ("default", 2, 2)]


class _Missing:
    """Cannot be read where it is sent, for as often as `_missing` says."""

    def __reduce__(self) -> Any:
        return _read_missing, ()

    async def __call__(self, job: int) -> int:
        return job


_missing = 0


def _read_missing() -> _Missing:
    global _missing
    if _missing:
        _missing -= 1
        raise ModuleNotFoundError("No module named 'only_here'")
    return _Missing()


@real
async def test_a_handler_that_no_worker_can_read_fails_the_start() -> None:
    global _missing
    _missing = 100
    async with in_process(1) as cluster:
        with pytest.raises(ModuleNotFoundError, match="only_here") as raised:
            async with WorkerPool(_Missing(), workers=4, engine=Dask(cluster)):
                pass
        assert "Dask worker" in raised.value.__notes__[0]


@real
async def test_a_worker_that_is_lost_while_the_pool_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    take = processes.DaskProcess.take
    lost: list[processes.DaskProcess] = []

    async def loses_one(self: processes.DaskProcess) -> bytes:
        if not lost:
            lost.append(self)
            raise ProcessLost("lost")
        return await take(self)

    monkeypatch.setattr(processes.DaskProcess, "take", loses_one)
    async with in_process(1) as cluster, WorkerPool(handlers.short, workers=4, engine=Dask(cluster)) as pool:
        assert await pool.map(range(10)) == list(range(10))
        assert pool.stats.processes_lost == 1


@real
async def test_a_worker_that_cannot_run_the_handler_is_left_out_and_tried_again() -> None:
    global _missing
    _missing = 1
    async with in_process(2) as cluster, WorkerPool(_Missing(), workers=4, engine=Dask(cluster)) as pool:
        await pool.map(range(10))
        await until(lambda: pool.stats.processes == 2)
        assert pool.stats.processes_lost == 1


@real
async def test_a_worker_that_cannot_even_import_the_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(token: str, spec: bytes, place: str, dask_worker: Any) -> bool:
        raise ModuleNotFoundError("No module named 'asyncpool'")

    monkeypatch.setattr(processes, "move_in", fails)
    async with in_process(1) as cluster:
        with pytest.raises(ModuleNotFoundError, match="asyncpool"):
            async with WorkerPool(handlers.short, workers=4, engine=Dask(cluster)):
                pass


# -- Adaptive clusters -------------------------------------------------------------------------------------------------


@real
async def test_an_adaptive_cluster_does_not_close_a_worker_under_our_jobs() -> None:
    async with in_process(2) as cluster:
        async with WorkerPool(handlers.noted, workers=4, engine=Dask(cluster, adaptive=False)) as pool:
            await until(lambda: len(cluster.scheduler.tasks) == 2)
            cluster.adapt(minimum=0, maximum=2, interval="20ms", wait_count=1)
            await asyncio.sleep(1.0)  # it decides fifty times
            assert pool.stats.processes == 2
            assert pool.stats.processes_lost == 0
        await until(lambda: not cluster.scheduler.workers)


@real
async def test_an_adaptive_cluster_grows_with_the_backlog(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LOOK_EVERY", 0.1)
    async with in_process(0) as cluster:
        cluster.adapt(minimum=0, maximum=3, interval="20ms", wait_count=1)
        # There is no worker at first.
        async with WorkerPool(handlers.noted, workers=4, engine=Dask(cluster)) as pool:
            handles = [await pool.submit((number, 0.1, tmp_path)) for number in range(100)]
            await until(lambda: pool.stats.processes == 3)
            for handle in handles:
                await handle
            await until(lambda: len(cluster.scheduler.tasks) == 3)  # the leases: nothing waits, so nothing is wanted
            assert pool.stats.reruns == 0
        await until(lambda: not cluster.scheduler.workers)


@real
async def test_placeholders_are_few() -> None:
    async with in_process(1) as cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        placeholders = growth.Placeholders(client)
        placeholders.want(2, 1)
        await until(lambda: len(cluster.scheduler.tasks) == 20)
        placeholders.want(1, 1)  # a little less is not worth the messages
        placeholders.want(1_000_000, 1)
        await until(lambda: len(cluster.scheduler.tasks) == growth._MAX)
        placeholders.want(0, 1)
        await until(lambda: not cluster.scheduler.tasks)


# -- What is wrong from the start --------------------------------------------------------------------------------------


@real
async def test_a_scheduler_that_is_not_there_is_an_error_with_its_address() -> None:
    with pytest.raises(EngineLost) as raised:
        async with WorkerPool(handlers.short, workers=4, engine=Dask("tcp://127.0.0.1:1", timeout=0.2)):
            pass
    assert isinstance(raised.value.__cause__, OSError)
    assert "tcp://127.0.0.1:1" in str(raised.value.__cause__)


@real
async def test_a_cluster_without_workers_is_given_up_after_the_patience_of_the_pool() -> None:
    async with in_process(0) as cluster:
        with pytest.raises(EngineLost, match=r"no process that can run the handler for 0\.3 s"):
            async with WorkerPool(handlers.short, workers=4, engine=Dask(cluster), patience=0.3):
                pass


@real
async def test_workers_with_many_threads_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with in_process(2, threads_per_worker=8) as cluster:
        with caplog.at_level(logging.WARNING, logger="asyncpool"):
            async with WorkerPool(handlers.short, workers=4, engine=Dask(cluster)) as pool:
                await pool.map(range(10))
                await until(lambda: pool.stats.processes == 2)
    assert len([record for record in caplog.records if "has 8 threads in one process" in record.getMessage()]) == 1


@pytest.mark.parametrize("cluster", [None, 8786, object(), ["tcp://127.0.0.1:8786"]])
def test_what_is_no_cluster_is_refused(cluster: object) -> None:
    with pytest.raises(TypeError, match="cluster must be the address of a scheduler"):
        Dask(cluster)


def test_options_of_the_engine_itself_are_refused() -> None:
    with pytest.raises(ValueError, match=r"such as .tcp:"):
        Dask(" ")
    with pytest.raises(TypeError, match="adaptive must be True, False or None, got 1"):
        Dask("tcp://127.0.0.1:8786", adaptive=1)  # type: ignore[arg-type]
    for option in ("address", "asynchronous", "set_as_default"):
        with pytest.raises(TypeError, match=f"client_options must not contain {option}="):
            Dask("tcp://127.0.0.1:8786", **{option: True})


def test_the_repr_has_the_address() -> None:
    assert repr(Dask("tcp://127.0.0.1:8786")) == "Dask('tcp://127.0.0.1:8786')"


def test_without_dask_the_error_names_the_extra() -> None:
    program = "import sys; sys.modules['distributed'] = None\nimport asyncpool.dask"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "pip install 'asyncpool-toolkit[dask]'" in done.stderr


@real
async def test_there_are_connections_for_more_workers_than_dask_allows_by_default() -> None:
    async with in_process(1) as cluster:
        client = await Dask(cluster)._connect()
        assert client.rpc.limit >= 4096
        await client.close()
        client = await Dask(cluster, connection_limit=7)._connect()
        assert client.rpc.limit == 7
        await client.close()
