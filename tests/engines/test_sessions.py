"""Engines that are stopped in each iteration of the loop: all that they have started is ended, and no job is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from anyio import CancelScope

import asyncpool._children
from asyncpool import EngineLost, PoolClosed, Processes, WorkerPool
from asyncpool.engines import Engine, EngineHost
from asyncpool.testing import CancelSweepResult, cancel_at, run
from tests.engines import handlers
from tests.engines.memory import InMemory, Portable, Simulated
from tests.engines.test_processes import real
from tests.helpers import now, sleeper, virtual
from tests.laws.test_cancellation_sweep import CASES, MOST_STEPS, WAYS, Cancelling, _cancelling, close, still_works
from tests.laws.witness import Item, Witness

pytestmark = pytest.mark.usefixtures("no_signs_of_life")


# -- The public calls of a pool with an engine -------------------------------------------------------------------------

CALLS = [
    "start_with_a_resource",
    "the_block_of_a_pool",
    "close_that_drains",
    "close_that_cancels",
    "close_with_a_stuck_job",
    "join",
    "submit_in_line",
    "run_on_a_full_pool",
    "run_of_a_slow_job_waits_for_its_cleanup",
    "the_outcome_of_a_handle",
    "next_of_a_stream: map ordered async",
    "next_of_a_stream: outcomes unordered sync",
    "a_stream_in_a_block: map unordered sync",
    "aclose_of_a_stream: outcomes ordered async",
    "a_pipeline",
    "next_of_a_group",
    "the_block_of_a_pool_with_delayed_jobs",
    "the_block_of_a_pool_that_scales",
    "join_of_a_pool_that_shrinks",
]


async def start(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2)
    if (await cancelling(pool.start)).cancelled:
        assert pool.report is not None  # it has closed the pool, and waited for that
        with pytest.raises(PoolClosed):
            await pool.submit(witness.item())
    else:
        await still_works(witness)
    await close(witness)


async def run_after_a_loss(witness: Witness, cancelling: Cancelling) -> None:
    """The attempt waits for another process."""
    pool = witness.make_pool(workers=2)
    await pool.start()
    while witness.engine.kill_one():
        pass
    result = await cancelling(partial(pool.run, Item(10_000)))
    assert result.cancelled or result.value == 10_000
    witness.others += 1
    await asyncio.sleep(1.0)
    await still_works(witness)
    await close(witness)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["start", "run_after_a_loss", *CALLS])
def test_a_call_may_be_cancelled_at_each_of_its_suspensions(name: str, way: str) -> None:
    case = {"start": start, "run_after_a_loss": run_after_a_loss}.get(name) or CASES[name]

    async def main(step: int, results: list[CancelSweepResult[Any]]) -> None:
        witness = Witness()
        witness.engine = InMemory(2, Random(3))
        await case(witness, _cancelling(way, step, results))
        await witness.engine.ended()

    for step in range(1, MOST_STEPS):
        results: list[CancelSweepResult[Any]] = []
        try:
            run(partial(main, step, results))
        except BaseException as error:
            error.add_note(f"cancelled {way} at suspension {step} of {name!r}")
            raise
        if all(result.completed for result in results):
            assert step > 1
            return
    raise AssertionError(f"{name!r} has no end")


# -- The sessions of engines -------------------------------------------------------------------------------------------


class Spawned(Simulated):
    """What `Processes` keeps, with a simulated process."""

    living: ClassVar[set[Spawned]] = set()
    ending: ClassVar[set[asyncio.Future[None]]] = set()

    def __init__(self, number: int) -> None:
        self.number = number
        self.died = asyncio.Event()
        self.given_up = asyncio.Event()

    async def start(self, spec: bytes, setup: bytes | None) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self.living.add(self)  # cancelled or not, it is spawned
            super().__init__(spec, f"process {self.number}", Random(self.number))
        await asyncio.sleep(0)

    async def wait_lost(self) -> None:
        await self.given_up.wait()

    async def close(self, grace: float) -> None:
        if self in self.living:
            await self.runner.close(grace)
        self.kill()
        await asyncio.sleep(0)

    def kill(self) -> None:
        super().kill()
        if self in self.living:
            self.living.discard(self)
            self.ending.add(asyncio.ensure_future(self.runner.close(0.0)))


@asynccontextmanager
async def processes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr(asyncpool._children, "Child", Spawned)
    yield Processes(2)
    assert not Spawned.living
    await asyncio.gather(*Spawned.ending)
    Spawned.ending.clear()


@asynccontextmanager
async def simulated(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    engine = InMemory(2)
    yield engine
    await engine.ended()
    assert not engine.processes


class Cluster:
    """As much of a Dask cluster as a session sees: workers that run `serve`, one call after the other."""

    def __init__(self, count: int) -> None:
        self.status = "running"
        self.workers = {
            f"tcp://worker:{n}": SimpleNamespace(
                handlers={},
                status=SimpleNamespace(name="running"),
                state=SimpleNamespace(tasks={}),
                died=asyncio.Event(),
                hangs=False,
            )
            for n in range(count)
        }
        self.restarted: list[str] = []
        self.gone: set[str] = set()
        """What the scheduler knows to be gone."""
        self.leases: dict[str, Any] = {}
        self.lease_arrives_after = 0.0
        self.scheduler = SimpleNamespace(proxy=self._proxy)

    async def nthreads(self) -> dict[str, int]:
        await asyncio.sleep(0)
        return dict.fromkeys(self.workers.keys() - self.gone, 1)

    def kill(self, address: str, *, is_noticed: bool) -> None:
        """Let a worker die. Its connections end, and each call to it tries to connect again."""
        self.workers[address].died.set()
        self.workers[address].status.name = "closed"
        if is_noticed:
            self.gone.add(address)

    async def run(self, function: Callable[..., Awaitable[Any]], *args: Any, workers: list[str], **message: Any) -> Any:
        await asyncio.sleep(0)
        options = message or {"dask_worker": self.workers[workers[0]]}
        answer = await function(*args, **options)
        await asyncio.sleep(0)
        return {workers[0]: answer}

    def submit(self, *args: Any, key: str, workers: list[str], **_: Any) -> Any:
        task = SimpleNamespace(state="executing")
        self.leases[key] = task
        tasks = self.workers[workers[0]].state.tasks
        asyncio.get_running_loop().call_later(self.lease_arrives_after, tasks.__setitem__, key, task)

        def release() -> None:
            self.leases.pop(key, None)
            task.state = "released"

        return SimpleNamespace(release=release)

    def close(self) -> None:
        """Drop what is the client's."""
        for task in self.leases.values():
            task.state = "released"

    async def restart_workers(self, addresses: list[str], *, raise_for_error: bool) -> None:
        """Let the nannies of these workers restart them."""
        for address in addresses:
            self.restarted.append(address)
            self.workers[address].hangs = False
        await asyncio.sleep(0)

    def rpc(self, address: str) -> Any:
        return SimpleNamespace(asyncpool=partial(self._call, address))

    async def _proxy(self, worker: str, msg: dict[str, Any]) -> Any:
        return await self._call(worker, **{name: value for name, value in msg.items() if name != "op"})

    async def _call(self, address: str, **message: Any) -> Any:
        await asyncio.sleep(0)
        worker = self.workers[address]
        if worker.died.is_set():
            await asyncio.sleep(30.0)
            raise OSError("cannot connect")
        if worker.hangs:
            await asyncio.sleep(1e9)
        died = asyncio.ensure_future(worker.died.wait())
        answer = asyncio.ensure_future(worker.handlers["asyncpool"](**message))
        try:
            await asyncio.wait([answer, died], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
            if worker.died.is_set():
                raise OSError("the connection was closed")
            return answer.result()
        finally:
            died.cancel()
            answer.cancel()


class SimulatedDask:
    """The engine `Dask`, with a cluster that is simulated."""

    shares_main = False

    def __init__(self) -> None:
        self.cluster = Cluster(2)
        self.client_closes_within = 0.0
        self.at_the_end: Callable[[], None] = lambda: None
        """Called in the moment in which the session begins to close its processes."""

    async def run(self, host: EngineHost, /) -> None:
        from asyncpool.dask.session import Session

        ending = asyncio.ensure_future(self._wait_for_end(host))
        try:
            assert await Session(self.cluster, host, is_adaptive=lambda: False).run()
        finally:
            ending.cancel()
            self.cluster.close()
            if self.client_closes_within:
                with CancelScope(shield=True):
                    await asyncio.sleep(self.client_closes_within)

    async def _wait_for_end(self, host: EngineHost) -> None:
        await host.closing()
        self.at_the_end()


@asynccontextmanager
async def dask(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    from asyncpool.dask import tenants

    engine = SimulatedDask()
    yield engine
    await asyncio.sleep(5.0)  # what cannot be closed in time is closed by the worker, when its lease has ended
    assert {task.state for task in engine.cluster.leases.values()} <= {"released"}
    assert not tenants._tenants


SESSIONS = {"simulated": simulated, "processes": processes, "dask": dask}


@pytest.fixture(params=SESSIONS)
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "dask":
        pytest.importorskip("distributed")
        from asyncpool.dask import session as module

        monkeypatch.setattr(module, "_FIRST_JOIN_WITHIN", 0.01)
    return partial(SESSIONS[request.param], monkeypatch)


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def stop_at(moment: int, main: Callable[[int], Awaitable[None]]) -> None:
    try:
        run(partial(main, moment))
    except BaseException as error:
        error.add_note(f"stopped after {moment} iterations")
        raise


MOMENTS = range(40)


def test_a_pool_that_is_stopped_while_it_starts_leaves_no_process(session: Any) -> None:
    async def main(moment: int) -> None:
        async with session() as engine:
            pool = WorkerPool(Portable(sleeper), workers=2, engine=engine)
            starting = asyncio.ensure_future(pool.start())
            await turns(moment)
            starting.cancel()
            await asyncio.wait([starting])
            await pool.close(drain_timeout=0.0)
            assert pool.state == "closed"

    for moment in MOMENTS:
        stop_at(moment, main)


def test_a_pool_that_is_stopped_while_it_grows_leaves_no_process(session: Any) -> None:
    async def main(moment: int) -> None:
        async with session() as engine:
            pool = WorkerPool(Portable(sleeper), workers=1, engine=engine)
            await pool.start()
            handles = [await pool.submit(0.1) for _ in range(3)]
            pool.resize(3)
            await turns(moment)
            pool.resize(1)
            await turns(moment % 7)
            report = await pool.close(drain_timeout=0.0)
            outcomes = [await handle.outcome() for handle in handles]
            assert len(report.unfinished) + pool.stats.succeeded == len(outcomes) == 3

    for moment in MOMENTS:
        stop_at(moment, main)


class Cancelled:
    """Another engine, whose task is cancelled at one of its suspensions, as at the end of the grace."""

    def __init__(self, engine: Engine, step: int, *, late: bool) -> None:
        self.shares_main = engine.shares_main
        self.engine = engine
        self.step = step
        self.late = late
        self.completed = False

    async def run(self, host: EngineHost, /) -> None:
        result = await cancel_at(self.step, partial(self.engine.run, host), late=self.late)
        self.completed = result.completed
        if result.cancelled:
            raise asyncio.CancelledError


@pytest.mark.parametrize("late", [False, True])
def test_an_engine_that_is_cancelled_leaves_no_process(session: Any, late: bool) -> None:
    async def main(step: int) -> bool:
        async with session() as inner:
            engine = Cancelled(inner, step, late=late)
            pool = WorkerPool(Portable(sleeper), workers=2, engine=engine)
            handles: list[Any] = []
            with suppress(EngineLost):
                async with pool:
                    handles = [await pool.submit(0.1) for _ in range(4)]
                    await asyncio.sleep(0.05)
                    await pool.close(drain_timeout=0.0)
            assert pool.report is not None
            assert len(pool.report.unfinished) + pool.stats.succeeded == len(handles)
        return engine.completed

    for step in range(1, MOST_STEPS):
        if run(partial(main, step)):
            assert step > 1
            return
    raise AssertionError("it has no end")


@real
async def test_real_processes_end_with_a_start_that_is_cancelled() -> None:
    for moment in range(12):
        pool = WorkerPool(handlers.double, workers=1, engine=Processes(1))
        starting = asyncio.ensure_future(pool.start())
        await turns(moment // 2)
        await asyncio.sleep(0.0 if moment % 2 else 0.002)
        starting.cancel()
        await asyncio.wait([starting])
        assert pool.state == "closed"


@pytest.fixture
def imported_dask() -> None:
    """Skip without Dask; otherwise import it here, where no event loop runs that it would block."""
    pytest.importorskip("asyncpool.dask.session", exc_type=ModuleNotFoundError)


needs_dask = pytest.mark.usefixtures("imported_dask")


@needs_dask
@virtual
async def test_a_dask_worker_is_used_once_it_has_its_lease() -> None:
    engine = SimulatedDask()
    engine.cluster.lease_arrives_after = 1.0
    began = now()
    async with WorkerPool(Portable(sleeper), workers=2, engine=engine) as pool:
        assert 1.0 <= now() - began < 1.5
        assert await pool.run(0.1) == 0.1
    await asyncio.sleep(5.0)


@needs_dask
@virtual
async def test_the_end_does_not_wait_for_a_dask_worker_that_was_lost_before() -> None:
    engine = SimulatedDask()
    async with WorkerPool(Portable(sleeper), workers=2, engine=engine) as pool:
        await asyncio.sleep(0.1)
        engine.cluster.kill("tcp://worker:0", is_noticed=False)
        await asyncio.sleep(0.1)
        assert pool.stats.processes_lost == 1
        began = now()
        report = await pool.close(grace=5.0)
        assert now() - began < 2.0
    assert report.errors == ()
    await asyncio.sleep(5.0)


@needs_dask
@virtual
async def test_the_end_does_not_wait_for_a_dask_worker_that_dies_in_the_same_moment() -> None:
    engine = SimulatedDask()
    engine.at_the_end = partial(engine.cluster.kill, "tcp://worker:0", is_noticed=True)
    async with WorkerPool(Portable(sleeper), workers=2, engine=engine) as pool:
        await asyncio.sleep(0.1)
        began = now()
        report = await pool.close(grace=5.0)
        assert now() - began < 2.0
    assert pool.stats.processes_lost == 0
    assert report.errors == ()
    await asyncio.sleep(5.0)


@needs_dask
@virtual
@pytest.mark.parametrize("grace", [0.2, 5.0])
async def test_a_dask_worker_that_does_not_answer_at_the_end_leaves_time_for_the_client(grace: float) -> None:
    engine = SimulatedDask()
    engine.client_closes_within = 0.01
    engine.at_the_end = partial(engine.cluster.kill, "tcp://worker:0", is_noticed=False)
    async with WorkerPool(Portable(sleeper), workers=2, engine=engine) as pool:
        await asyncio.sleep(0.1)
        began = now()
        report = await pool.close(grace=grace)
        assert now() - began <= grace
    assert report.errors == ()  # nor is the engine abandoned
    await asyncio.sleep(5.0)


@needs_dask
@virtual
async def test_the_end_does_not_wait_for_a_dask_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncpool.dask import Dask

    async def connect(engine: Dask) -> None:
        await asyncio.sleep(30.0)

    monkeypatch.setattr(Dask, "_connect", connect)
    pool = WorkerPool(Portable(sleeper), workers=2, engine=Dask("tcp://nowhere:8786"))
    starting = asyncio.ensure_future(pool.start())
    await asyncio.sleep(1.0)
    starting.cancel()
    began = now()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert now() - began < 1.0
    assert pool.state == "closed"


@needs_dask
@virtual
async def test_a_dask_worker_that_hangs_is_restarted() -> None:
    engine = SimulatedDask()
    async with WorkerPool(Portable(sleeper), workers=2, engine=engine, responds_within=1.0) as pool:
        await asyncio.sleep(0.1)
        jobs = [asyncio.ensure_future(pool.run(10.0)) for _ in range(2)]
        await asyncio.sleep(0.1)
        engine.cluster.workers["tcp://worker:0"].hangs = True
        assert await asyncio.gather(*jobs) == [10.0] * 2  # one of them was begun again
        assert pool.stats.processes_lost == 1
        await asyncio.sleep(20.0)
        assert engine.cluster.restarted == ["tcp://worker:0"]
    await asyncio.sleep(5.0)
