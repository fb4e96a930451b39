"""Scenarios of breakers: the backend goes down and comes back while everything else happens, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from asyncpool import Breaker, Failed, JobExpired, JobTimeout, PoolClosed, Retry, WorkerPool
from asyncpool.events import BreakerClosed, BreakerHalfOpened, BreakerOpened, JobEnded, JobRetrying, JobStarted
from asyncpool.testing import settle
from tests.laws.schedules.tools import all_done, any_size, pass_time, patience, scenario, sizes, turns
from tests.laws.witness import RETRIED, Item, Meter, Witness, ended, spawn


class Backend:
    """A backend that can be down: then whoever calls it gets an error, or no answer for a while."""

    def __init__(self, random: Random) -> None:
        self.is_down = False
        self._random = random

    def serve(self, witness: Witness) -> None:
        """Have the handler of a witness call this backend first."""
        work = witness.work

        async def call_first(item: Item) -> int:
            await self.call()
            return await work(item)

        witness.work = call_first  # type: ignore[method-assign]

    async def call(self) -> None:
        await turns(self._random, 2)
        if self._random.random() < 0.3:
            await asyncio.sleep(self._random.choice((0.001, 0.02, 0.2)))
        if self.is_down:
            if self._random.random() < 0.1:
                await asyncio.sleep(5.0)
            if self._random.random() < 0.2:
                raise ExceptionGroup("two calls", [ConnectionError("down"), TimeoutError("no answer")])
            raise ConnectionError("down")


class Log:
    """What the pools that share a breaker report, in its order, and the laws of it."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.state = "closed"
        self.period = 0  # one more when it opens, and when it closes
        self.probe: tuple[str, int] | None = None
        self.began: dict[tuple[str, int], int] = {}  # the period in which an attempt began
        self.failed: dict[tuple[str, int], tuple[int, bool]] = {}  # the last attempt, and whether it is to count
        self.openings = 0
        self.probes = 0
        self.names: list[str] = []  # of the pools that report
        self.problems: list[str] = []

    def watch(self, name: str) -> Callable[[object], None]:
        """Return the observer of a pool."""
        self.names.append(name)

        def observe(event: object) -> None:
            try:
                if isinstance(event, (BreakerOpened, BreakerHalfOpened, BreakerClosed)):
                    self._change(event)
                else:
                    self._see(name, event)
            except AssertionError as error:
                self.problems.append(f"{error} at {event}")

        return observe

    def _change(self, event: BreakerOpened | BreakerHalfOpened | BreakerClosed) -> None:
        # Each pool reports it: those after the first say nothing new.
        match event:
            case BreakerOpened(failures=failures, attempts=attempts, seconds=seconds):
                assert 0 <= failures <= attempts
                assert seconds > 0.0
                self.period += self.state == "closed"
                self.openings += self.state != "open"
                self.state, self.probe = "open", None
            case BreakerHalfOpened():
                assert self.state in ("open", "half-open")
                self.state = "half-open"
            case BreakerClosed():
                self.period += self.state != "closed"
                self.state, self.probe = "closed", None

    def _see(self, name: str, event: object) -> None:
        match event:
            case JobStarted(id=number, attempt=attempt):
                key = name, number
                assert self.state != "open", "started while the breaker is open"
                if self.state == "half-open":
                    assert self.probe is None, f"a second probe beside {self.probe}"
                    self.probe = key
                    self.probes += 1
                self.began[key] = self.period
                before, counts = self.failed.pop(key, (0, True))
                assert attempt == before + counts, f"after attempt {before}, which counts: {counts}"
            case JobRetrying(id=number, attempt=attempt, error=error):
                self._attempt_ended(key := (name, number))
                self.failed[key] = attempt, not self._is_outage(key, error)
            case JobEnded(id=number, outcome=outcome):
                self._attempt_ended(key := (name, number))
                if isinstance(outcome, Failed) and key in self.began and key not in self.failed:
                    assert not self._is_outage(key, outcome.error), f"failed because of the outage: {outcome}"
                self.began.pop(key, None)
            case _:
                pass

    def _attempt_ended(self, key: tuple[str, int]) -> None:
        if self.probe == key:
            self.probe = None

    def _is_outage(self, key: tuple[str, int], error: BaseException) -> bool:
        """Whether an attempt that has just ended failed because of an outage."""
        if self.breaker.charges or not matches(error):
            return False
        return self.state != "closed" or self.began[key] != self.period


def matches(error: BaseException) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(matches, error.exceptions))
    return isinstance(error, OSError) and not isinstance(error, JobExpired)


def make_breaker(random: Random, **more: Any) -> Breaker:
    """A breaker that opens soon, and for a short time."""
    pause = random.choice((0.004, 0.05, 0.3))
    options: dict[str, Any] = {
        "failure_rate": random.choice((0.3, 0.5, 1.0)),
        "window": random.choice((1, 2, 4)),
        "pause": pause,
        "factor": random.choice((1.0, 2.0)),
        "max_pause": pause * random.choice((1, 4)),
        "charge": random.random() < 0.15,
    }
    return Breaker(**options | more)


def any_options(witness: Witness, random: Random) -> dict[str, Any]:
    """What else a pool with a breaker may have."""
    options: dict[str, Any] = sizes(random)
    if random.random() < 0.8:
        options["retry"] = patience(random)
    if random.random() < 0.3:
        options["timeout"] = 1.5  # more than any job takes, if the backend is up
    if random.random() < 0.3:
        options["priority"] = lambda item: item.n % 3
    match random.randint(0, 4):
        case 0:
            options["limiter"] = Meter(50.0, 1.0, random.randint(1, 3))
        case 1:
            options["limiter"] = witness.keys(2, 50.0, random.randint(1, 2))
    options["max_delayed"] = random.choice((1, 4, 10_000, 10_000))
    if random.random() < 0.15:
        options["queue_timeout"] = random.choice((0.05, 0.4))
    return options


def check_held(pool: WorkerPool[Any, Any], breaker: Breaker) -> None:
    """Check that no job is held that is to be the probe, or that nothing holds back."""
    parts = pool._parts
    held = parts.retries.backing_off.held  # type: ignore[attr-defined]
    assert not (held and breaker.state == "closed"), f"held, and the breaker is closed: {held}"
    assert not (held and breaker.lets_start and not parts.queue.order), f"no job is queued, and these are held: {held}"
    assert all(job.outcome is None and job.is_backing_off for job in held)


async def use(pools: list[Witness], log: Log, backend: Backend, random: Random, *, steps: int = 9) -> None:
    """Do this and that to pools that share a breaker."""
    breaker = log.breaker
    is_paused = dict.fromkeys(pools, False)
    tasks = [spawn(one.submit(one.item(*RETRIED))) for _ in range(9) for one in pools]
    for _ in range(steps):
        await pass_time(random)
        one = random.choice(pools)
        match random.randint(0, 11):
            case 0 | 1 | 2:
                backend.is_down = not backend.is_down
            case 3:
                tasks += [spawn(one.submit(one.item("ok", "nap", "flaky1", "slow"))) for _ in range(3)]
            case 4 if one.handles:
                random.choice(one.handles).cancel()
            case 5:
                one.resize(any_size(random))
            case 6:
                one.pool.pause()
                is_paused[one] = True
            case 7:
                one.pause_ends = min(one.pause_ends, asyncio.get_running_loop().time())
                one.pool.resume(force=True)
                is_paused[one] = False
            case 8:
                breaker.open(random.choice((None, 0.01, 0.3)))
            case 9:
                breaker.close()
            case 10:
                random.choice(tasks).cancel()
            case _:
                pass
        await settle()
        for other in pools:
            other.check_settled(is_paused=is_paused[other])
            check_held(other.pool, breaker)
            assert other.pool.stats.breaker == breaker.state
    backend.is_down = False
    for other in pools:
        other.pool.resume()
    await ended(*tasks)
    for other in pools:
        await all_done(other.pool)


async def check_log(log: Log, *pools: Witness) -> None:
    assert not log.problems, log.problems
    for one in pools:
        await one.check_end()
        parts = one.pool._parts
        assert not parts.retries.backing_off.held  # type: ignore[attr-defined]
    assert log.breaker.probe is None or log.breaker.is_closed
    assert not log.breaker._users


@scenario
async def a_breaker_meets_everything_else(witness: Witness, random: Random) -> None:
    backend, breaker = Backend(random), make_breaker(random)
    log = Log(breaker)
    backend.serve(witness)
    pool = witness.make_pool(breaker=breaker, observers=[log.watch("pool")], **any_options(witness, random))
    async with pool:
        await use([witness], log, backend, random)
    await check_log(log, witness)


@scenario
async def a_breaker_lets_one_probe_through(witness: Witness, random: Random) -> None:
    """In two pools that share it, of which one may close early."""
    backend, breaker, other = Backend(random), make_breaker(random), Witness(random)
    log = Log(breaker)
    pools = [witness, other]
    for number, one in enumerate(pools):
        backend.serve(one)
        name = f"pool {number}"
        one.make_pool(breaker=breaker, observers=[log.watch(name)], name=name, **any_options(one, random))
    async with witness.pool:
        async with other.pool:
            await use(pools, log, backend, random, steps=random.randint(1, 6))
            if random.random() < 0.5:
                backend.is_down = True
                tasks = [spawn(one.submit(one.item("ok", "nap"))) for _ in range(5) for one in pools]
                await pass_time(random)
                other.pool.drain(drain_timeout=random.choice((0.0, 0.01, 0.5)), grace=0.2)
                await ended(*[task for task in tasks if random.random() < 0.3 and task.done()])
                await other.pool.close()
                await use([witness], log, backend, random, steps=4)
                await ended(*tasks)
        await use([witness], log, backend, random, steps=2)
    await check_log(log, witness, other)


@scenario
async def a_pool_closes_while_its_breaker_is_open(witness: Witness, random: Random) -> None:
    backend, breaker = Backend(random), make_breaker(random, pause=0.05, max_pause=0.2)
    log = Log(breaker)
    backend.serve(witness)
    pool = witness.make_pool(breaker=breaker, observers=[log.watch("pool")], **any_options(witness, random))
    await pool.start()
    backend.is_down = random.random() < 0.8
    tasks = [spawn(witness.submit(witness.item(*RETRIED, "slow"))) for _ in range(9)]
    await pass_time(random)
    for _ in range(random.randint(0, 3)):
        await pass_time(random)
        if random.random() < 0.3:
            breaker.open(0.1)
    comes_back = random.random() < 0.5
    if comes_back:
        asyncio.get_running_loop().call_later(random.choice((0.0, 0.1, 2.0)), setattr, backend, "is_down", False)
    report = await pool.close(drain_timeout=None if comes_back else random.choice((0.0, 0.03, 0.7)))
    await ended(*tasks)
    assert not comes_back or not report.unfinished
    await check_log(log, witness)


@scenario
async def the_time_of_jobs_runs_out_while_a_breaker_is_open(witness: Witness, random: Random) -> None:
    backend, breaker = Backend(random), make_breaker(random)
    log = Log(breaker)
    backend.serve(witness)
    max_elapsed = random.choice((0.005, 0.4, 1.2))
    time = asyncio.get_running_loop().time
    options = any_options(witness, random) | {"retry": patience(random, max_elapsed=max_elapsed)}
    async with witness.make_pool(breaker=breaker, observers=[log.watch("pool")], **options) as pool:
        tasks = [spawn(witness.submit(witness.item("ok", "nap", "flaky1"))) for _ in range(9)]
        for _ in range(5):
            await pass_time(random)
            backend.is_down = random.random() < 0.7
            was_open, began = breaker.state == "open", time()
            await asyncio.sleep(random.choice((0.0, 0.01, max_elapsed, 2 * max_elapsed)))
            await settle()
            if was_open and breaker.state == "open" and witness.accepted is not None:
                late = [n for n in witness.waiting_jobs if witness.accepted_at[n] + max_elapsed < began]
                assert not late, f"{late} wait while the breaker is open, and their time is over"
            check_held(pool, breaker)
        backend.is_down = False
        await ended(*tasks)
        await all_done(pool)
    await check_log(log, witness)
    for handle in witness.handles:
        outcome = await handle.outcome()
        if isinstance(outcome, Failed) and not breaker.charges:
            assert isinstance(outcome.error, (JobExpired, JobTimeout, ConnectionError, ValueError, ExceptionGroup))


@scenario
async def whoever_hears_of_a_breaker_changes_it(witness: Witness, random: Random) -> None:
    """Observers and the predicate `on` open and close it, cancel jobs, close the pool, and raise."""
    acts = 12

    def act() -> None:
        nonlocal acts
        acts -= 1
        if acts < 0:
            return
        match random.randint(0, 8):
            case 0:
                breaker.open(random.choice((None, 0.02)))
            case 1:
                breaker.close()
            case 2 if witness.handles:
                random.choice(witness.handles).cancel()
            case 3:
                with suppress(PoolClosed):
                    pool.resume(force=True)
            case 4:
                with suppress(PoolClosed):
                    witness.resize(any_size(random))
            case 5 if random.random() < 0.2:
                pool.drain(drain_timeout=random.choice((None, 0.1)))
            case 6 if random.random() < 0.1:
                pool.cancel()
            case _:
                pass

    def is_down(error: BaseException) -> bool:
        act()
        if random.random() < 0.1:
            raise random.choice((KeyError, SystemExit))("is_down")
        return isinstance(error, OSError)

    def observe(event: object) -> None:
        if isinstance(event, (BreakerOpened, BreakerHalfOpened, BreakerClosed)):
            act()

    backend = Backend(random)
    breaker = make_breaker(random, on=is_down)
    backend.serve(witness)
    options = any_options(witness, random) | {"retry": patience(random)}
    pool = witness.make_pool(breaker=breaker, observers=[observe], **options)
    await pool.start()
    tasks = [spawn(witness.submit(witness.item("ok", "nap", "turn"))) for _ in range(12)]
    for _ in range(6):
        await pass_time(random)
        backend.is_down = random.random() < 0.6
    backend.is_down = False
    await ended(*tasks)
    await pool.close()
    await witness.check_end()
    assert not breaker._users


@scenario
async def a_job_that_always_fails_keeps_no_breaker_open(witness: Witness, random: Random) -> None:
    """Whatever its priority, and however many there are: as long as another job is queued, that is the next probe."""
    bad = random.randint(1, 3)

    async def handler(item: Item) -> int:
        if item.n <= bad:
            await turns(random, 1)
            raise ConnectionError("its own host is down")
        return await witness.handle(item)

    breaker = Breaker(failure_rate=random.choice((0.1, 0.5)), window=3, pause=0.01, max_pause=0.01)
    witness.is_exact = False
    retry = Retry(attempts=random.randint(1, 3), backoff=0.0, jitter=False)
    options: dict[str, Any] = {"priority": lambda item: item.n} if random.random() < 0.5 else {}
    async with witness.make_pool(
        handler=handler, workers=random.randint(1, 3), breaker=breaker, retry=retry, **options
    ) as pool:
        witness.is_exact = False
        handles = [await witness.submit(witness.item("ok", "nap")) for _ in range(10)]
        async with asyncio.timeout(5.0):
            for handle in handles[bad:]:
                assert await handle == handle.job.n
        for handle in handles[:bad]:
            handle.cancel()
        await all_done(pool)
    check_log_of_bad = [await handle.outcome() for handle in handles[:bad]]
    assert len(check_log_of_bad) == bad
