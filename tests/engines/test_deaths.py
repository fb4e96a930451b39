"""Processes die, and no job is lost: random programs on simulated processes, on virtual time."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Cancelled,
    CancelReason,
    DeadLetters,
    EngineLost,
    Failed,
    PoolClosed,
    ProcessDied,
    ProcessLost,
    Retry,
    Succeeded,
    WorkerPool,
)
from asyncpool._core.job import CURRENT_JOB
from asyncpool._core.remote.members import Errand, Member
from asyncpool.engines import EngineHost
from asyncpool.events import ProcessGone, ProcessJoined
from asyncpool.testing import run
from tests.engines import memory
from tests.engines.memory import InMemory, Portable, Simulated
from tests.helpers import echo, now, virtual
from tests.laws.budget import IS_LONG, IS_SHORT

pytestmark = pytest.mark.usefixtures("no_signs_of_life")
ROUNDS = 2500 if IS_LONG else 25 if IS_SHORT else 100


class Calls:
    """The handler of the tests, and what it has done."""

    def __init__(self, engine: InMemory) -> None:
        self.engine = engine
        self.begun: Counter[int] = Counter()
        self.finished: Counter[int] = Counter()
        self.poisonous: set[int] = set()

    async def __call__(self, n: int) -> int:
        self.begun[n] += 1
        if n in self.poisonous:
            self._kill_mine()
        try:
            await asyncio.sleep(n % 7 * 0.01)
            if n % 10 == 3:
                raise ValueError(n)
        except asyncio.CancelledError:
            if n % 11 == 0:
                await asyncio.sleep(0.002)
            raise
        self.finished[n] += 1
        return n

    def _kill_mine(self) -> None:
        """Kill the process that this handler runs in."""
        job = CURRENT_JOB.get()
        for process in self.engine.processes:
            if job in process.runner._jobs.values():
                process.died.set()


async def one_round(seed: int) -> tuple[int, int]:
    """Run jobs in many ways while processes die, and check that each has ended once."""
    random = Random(seed)
    engine = InMemory(random.choice((1, 2, 4)), random, replaced_after=random.choice((0.0, 0.01, 2.0)))
    handler = Calls(engine)
    reruns = random.random() < 0.8
    pool = WorkerPool(
        Portable(handler),
        workers=random.choice((1, 3, 12)),
        retry=random.choice((None, Retry(attempts=2, backoff=0.01))),
        timeout=random.choice((None, 0.035)),
        engine=engine,
        reruns=reruns,
    )

    async def kill() -> None:
        while True:
            await asyncio.sleep(random.expovariate(8.0))
            engine.kill_one()

    async def stream(first: int) -> None:
        size = random.randrange(1, 60)
        leaves_after = random.randrange(1, size + 1) if random.random() < 0.3 else None
        got: list[Any] = []
        try:
            async with pool.outcomes(range(first, first + size), ordered=random.random() < 0.5) as outcomes:
                async for outcome in outcomes:
                    got.append(outcome)
                    if len(got) == leaves_after:
                        return
            assert len(got) == size
        except PoolClosed:
            pass
        assert len({outcome.job for outcome in got}) == len(got)
        for outcome in got:
            check(outcome)

    async def handles(first: int) -> None:
        for n in range(first, first + random.randrange(1, 20)):
            try:
                handle = await pool.submit(n)
            except PoolClosed:
                return
            if random.random() < 0.3:
                await asyncio.sleep(random.expovariate(50.0))
                handle.cancel()
            check(await handle.outcome())

    def check(outcome: Any) -> None:
        n = outcome.job
        match outcome:
            case Succeeded(_, value):
                assert value == n
                assert handler.finished[n]
            case Failed(_, error):
                assert isinstance(error, (ValueError, TimeoutError, ProcessLost, ProcessDied)), error
                assert reruns or not isinstance(error, ProcessDied)
            case Cancelled(_, reason):
                assert reason in (CancelReason.HANDLE, CancelReason.SHUTDOWN, CancelReason.STREAM, "abandoned")
        # A job that ran more often than its attempts was in a process that died.
        assert reruns or handler.begun[n] <= outcome.attempts, outcome

    async with pool:
        killing = asyncio.ensure_future(kill())
        work = [stream(1000 * i) for i in range(random.randint(1, 3))]
        work += [handles(10_000 + 1000 * i) for i in range(random.randint(0, 2))]
        tasks = [asyncio.ensure_future(one) for one in work]
        if random.random() < 0.3:
            await asyncio.sleep(random.random() * 0.3)
            pool.drain(drain_timeout=random.choice((0.0, 0.1, None)))
        if random.random() < 0.3 and pool.state == "open":
            for _ in range(3):
                await asyncio.sleep(random.random() * 0.1)
                if pool.state == "open":
                    pool.resize(random.randint(1, 15))
        await asyncio.gather(*tasks)
        killing.cancel()
        await asyncio.wait([killing])
    await engine.ended()
    stats = pool.stats
    assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled, stats
    assert (stats.queued, stats.delayed, stats.running) == (0, 0, 0)
    fleet = pool._parts.fleet
    assert fleet is not None
    assert not fleet._errands
    return stats.submitted, stats.reruns


def test_each_job_ends_once_whichever_processes_die() -> None:
    jobs = reruns = 0
    for seed in range(ROUNDS):
        try:
            more, again = run(partial(one_round, seed), seed=seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        jobs, reruns = jobs + more, reruns + again
    assert jobs > 20 * ROUNDS
    assert reruns > ROUNDS / 5  # processes do die under jobs


def _pool(engine: InMemory, handler: Any, **options: Any) -> WorkerPool[int, int]:
    return WorkerPool(Portable(handler), engine=engine, **{"workers": 8, **options})


@virtual
async def test_a_job_that_ends_its_process_is_found_and_its_neighbours_succeed() -> None:
    engine = InMemory(2)
    handler = Calls(engine)
    handler.poisonous = {17}
    letters = DeadLetters[int]()
    async with _pool(engine, handler, retry=Retry(attempts=5, backoff=0.0), dead_letters=letters) as pool:
        outcomes = await pool.outcomes(n for n in range(40) if n % 10 != 3)
        assert [(outcome.job, type(outcome.error)) for outcome in outcomes if isinstance(outcome, Failed)] == [
            (17, ProcessDied)
        ]
        assert pool.stats.retries == 0
        assert pool.stats.processes_lost >= 2
    assert [letter.job for letter in letters] == [17]


@virtual
async def test_without_reruns_what_ran_in_a_process_that_died_fails_and_never_runs_again() -> None:
    engine = InMemory(1)
    handler = Calls(engine)
    async with _pool(engine, handler, reruns=False, retry=Retry(attempts=5, on=Exception)) as pool:
        handles = [await pool.submit(6) for _ in range(20)]
        while not handler.begun[6]:
            await asyncio.sleep(0.001)
        engine.kill_one()
        outcomes = [await handle.outcome() for handle in handles]
    lost = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert 1 <= len(lost) <= 8
    assert all(isinstance(outcome.error, ProcessLost) and outcome.attempts == 1 for outcome in lost)
    assert handler.begun[6] == 20
    assert pool.stats.reruns == 0


@virtual
async def test_without_any_process_the_pool_ends_and_hands_the_inputs_back() -> None:
    engine = InMemory(1, replaced_after=None)
    pool = _pool(engine, Calls(engine), patience=5.0)
    began = now()
    with pytest.raises(EngineLost, match="has had no process that can run the handler for 5 s"):
        async with pool:
            handle = await pool.submit(6)
            await asyncio.sleep(0.001)
            engine.kill_one()
            outcome = await handle.outcome()
            assert isinstance(outcome, Cancelled)
            with pytest.raises(PoolClosed, match="no process") as raised:
                await pool.submit(1)
            assert isinstance(raised.value.__cause__, EngineLost)
    assert now() - began >= 5.0
    assert pool.report is not None
    assert [entry.job for entry in pool.report.unfinished] == [6]
    assert [type(error) for error in pool.report.errors] == [EngineLost]


@virtual
async def test_a_stream_of_its_own_pool_tells_that_the_engine_is_lost() -> None:
    engine = InMemory(1, replaced_after=None)

    async def kills(n: int) -> int:
        engine.kill_one()
        await asyncio.sleep(1.0)
        return n

    with pytest.raises(EngineLost, match="no process that can run the handler for 2 s"):
        await asyncpool.map(Portable(kills), range(9), workers=2, engine=engine, patience=2.0)
    engine = InMemory(1, replaced_after=None)
    outcomes = []
    with pytest.raises(EngineLost, match="no process that can run the handler for 2 s"):
        async for outcome in asyncpool.outcomes(Portable(kills), range(9), workers=2, engine=engine, patience=2.0):
            outcomes.append(outcome)
    assert all(isinstance(outcome, Cancelled) for outcome in outcomes)


@virtual
async def test_a_handler_that_no_process_can_read_fails_the_start() -> None:
    missing = Portable(print)
    pool = WorkerPool(missing, workers=2, engine=InMemory(2))
    memory._portable.pop(id(missing))
    with pytest.raises(KeyError) as raised:
        await pool.start()
    assert "Raised in process" in raised.value.__notes__[0]
    assert pool.state == "closed"


@virtual
async def test_a_process_that_does_not_respond_is_replaced() -> None:
    engine = InMemory(2)

    class Silent(Simulated):
        async def take(self) -> bytes:
            if self.silent:
                await self.died.wait()
                raise ProcessLost("killed")
            return await super().take()

        silent = False

    handler = Calls(engine)
    async with _pool(engine, handler, responds_within=4.0) as pool:
        await pool.run(1)
        deaf = engine.processes[0]
        deaf.__class__ = Silent
        await pool.run(2)  # now it waits in the take of before, which a last answer ends
        deaf.silent = True  # type: ignore[attr-defined]
        outcomes = await pool.outcomes(range(30))
        assert all(isinstance(outcome, Succeeded) or outcome.job % 10 == 3 for outcome in outcomes)
        await asyncio.sleep(10.0)
        assert pool.stats.processes_lost == 1
        assert deaf.died.is_set()


@virtual
async def test_there_are_never_more_processes_in_use_than_workers() -> None:
    engine = InMemory(4)
    held = peak = 0

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        nonlocal held, peak
        held += 1
        peak = max(peak, held)
        try:
            yield
        finally:
            held -= 1

    async def handler(n: int, _: None) -> int:
        await asyncio.sleep(0.01)
        return n

    pool: WorkerPool[int, int] = WorkerPool(Portable(handler), workers=2, engine=engine, resource=Portable(resource))
    async with pool:
        await pool.map(range(20))
        assert len(engine.processes) == 2
        assert held <= 2
        pool.resize(6)
        await pool.map(range(50))
        await asyncio.sleep(1.0)
        assert len(engine.processes) == 4
        assert held == 6
        assert sorted(process.workers for process in pool.processes()) == [1, 1, 2, 2]
        pool.resize(1)
        await pool.map(range(9))
        await asyncio.sleep(1.0)
        assert held == 1  # the others have closed theirs
        assert [process.workers for process in pool.processes()] == [1, 0, 0, 0]
        pool.resize(8)
        await pool.map(range(9))
        await asyncio.sleep(1.0)
        assert held == 8
    assert held == 0
    assert peak == 8


@virtual
async def test_the_counts_of_a_process_go_on_in_that_which_replaces_it() -> None:
    engine = InMemory(1)
    handler = Calls(engine)
    events: list[Any] = []
    async with _pool(engine, handler, observers=[events.append]) as pool:
        await pool.map(n for n in range(20) if n % 10 != 3)
        (before,) = pool.processes()
        assert (before.number, before.workers, before.running, before.done, before.lost) == (1, 8, 0, 18, 0)
        assert before.seconds > 0.0
        handle = await pool.submit(6)
        while not handler.begun[6] > 1:
            await asyncio.sleep(0.001)
        engine.kill_one()
        assert await handle == 6
        (after,) = pool.processes()
        assert (after.number, after.done, after.lost) == (1, 19, 1)
        assert after.name != before.name
        assert (pool.stats.processes, pool.stats.processes_lost, pool.stats.reruns) == (1, 1, 1)
    seen = [event for event in events if isinstance(event, (ProcessJoined, ProcessGone))]
    assert [type(event) for event in seen] == [ProcessJoined, ProcessGone, ProcessJoined]
    assert seen[1].attempts == 1
    assert isinstance(seen[1].error, ProcessLost)


@virtual
async def test_a_pool_without_an_engine_has_no_processes() -> None:
    async with WorkerPool(echo, workers=2) as pool:
        assert pool.processes() == ()
        assert (pool.stats.processes, pool.stats.processes_lost, pool.stats.reruns) == (0, 0, 0)


@virtual
async def test_an_engine_that_fails_ends_the_pool_with_its_error() -> None:
    class Failing(InMemory):
        async def run(self, host: EngineHost, /) -> None:
            async with asyncio.timeout(3.0):
                await super().run(host)

    engine = Failing(1)
    with pytest.raises(EngineLost, match="has failed while the pool was open") as raised:
        async with _pool(engine, Calls(engine)) as pool:
            assert await pool.run(6) == 6
            await asyncio.sleep(10.0)
    assert isinstance(raised.value.__cause__, TimeoutError)


@pytest.mark.parametrize("engine", [3, InMemory, object(), "processes"])
def test_an_engine_that_is_none_is_refused(engine: Any) -> None:
    with pytest.raises(TypeError, match="engine must be an engine, such as Processes"):
        WorkerPool(echo, workers=1, engine=engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be a finite number of seconds > 0, got 0"),
        ({"reruns": 1}, "reruns must be a bool, got 1"),
        ({"responds_within": -1.0}, "responds_within must be a finite number of seconds > 0, got -1.0"),
    ],
)
def test_options_of_an_engine_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        WorkerPool(echo, workers=1, **options)


def test_a_handler_that_cannot_be_sent_is_refused() -> None:
    lock = threading.Lock()

    async def handler(n: int) -> int:
        with lock:
            return n

    with pytest.raises(TypeError, match="handler, resource, check and recycle_on must be picklable"):
        WorkerPool(handler, workers=1, engine=InMemory())


@virtual
async def test_metrics_of_processes_have_a_label_that_stays() -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    collector = pytest.importorskip("asyncpool.prometheus").PoolCollector
    engine = InMemory(2)
    handler = Calls(engine)
    registry = prometheus_client.CollectorRegistry()
    async with _pool(engine, handler) as pool:
        registry.register(collector(pool))

        def figure(name: str, **labels: str) -> float | None:
            figure: float | None = registry.get_sample_value(f"asyncpool_{name}", {"pool": "pool", **labels})
            return figure

        await pool.map(n for n in range(40) if n % 10 != 3)
        for _ in range(5):
            engine.kill_one()
            await asyncio.sleep(0.5)
        await pool.map(n for n in range(40) if n % 10 != 3)
        assert figure("processes") == 2
        assert figure("processes_lost_total") == 5
        done = [figure("process_attempts_done_total", process=str(number)) for number in range(1, 9)]
        assert sum(count or 0 for count in done) == 72
        assert [process.workers for process in pool.processes()] == [4, 4]
        assert figure("process_workers", process="9") is None


@virtual
async def test_a_pool_whose_engine_is_cancelled_by_others_ends() -> None:
    engine = InMemory(1)
    with pytest.raises(EngineLost, match=r"was ended by .*CancelledError"):
        async with _pool(engine, Calls(engine)) as pool:
            handle = await pool.submit(6)
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "pool engine"]
            await asyncio.sleep(0.001)
            task.cancel()
            assert isinstance(await handle.outcome(), Cancelled)
    await engine.ended()


@virtual
async def test_a_pool_that_drains_without_any_process_ends_all_the_same() -> None:
    engine = InMemory(1, replaced_after=None)
    pool = _pool(engine, Calls(engine), patience=5.0)
    await pool.start()
    handles = [await pool.submit(6) for _ in range(20)]
    await asyncio.sleep(0.001)
    pool.drain()
    engine.kill_one()
    report = await pool.close()
    assert len(report.unfinished) == 20
    assert {type(await handle.outcome()) for handle in handles} == {Cancelled}


def test_a_job_is_not_guilty_of_a_death_before_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InMemory(1)
    handler = Calls(engine)
    hand = Member.hand
    lost = []

    async def main() -> None:
        async with _pool(engine, handler, workers=1) as pool:
            fleet = pool._parts.fleet
            assert fleet is not None

            def hand_and_lose(member: Member, errand: Errand, seconds_left: float | None) -> None:
                hand(member, errand, seconds_left)
                if errand.died_alone and not lost:  # the batch that has it is still to be sent
                    lost.append(member)
                    fleet._lose(member, ProcessLost("in this moment"))

            monkeypatch.setattr(Member, "hand", hand_and_lose)
            handle = await pool.submit(6)
            while not handler.begun[6]:
                await asyncio.sleep(0.001)
            engine.kill_one()  # with the job alone in it
            assert await handle == 6
        await engine.ended()

    run(main)
    assert lost
    assert handler.begun[6] == 2
