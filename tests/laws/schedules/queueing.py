"""Scenarios of jobs that wait: for how long at most, who sees them, who cancels them; and of runs that have limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import anyio

import asyncpool
from asyncpool import (
    Cancelled,
    CancelReason,
    ConcurrencyLimit,
    DeadlineExceeded,
    Failed,
    JobExpired,
    JobTimeout,
    PoolClosed,
    Succeeded,
    TooManyFailures,
    current_job,
)
from asyncpool._core import cancellation
from asyncpool.events import JobEnded, JobStarted
from asyncpool.testing import settle
from tests.laws.schedules.tools import (
    all_done,
    any_size,
    pass_time,
    patience,
    scenario,
    sizes,
    turns,
)
from tests.laws.witness import KINDS, RETRIED, Item, Meter, Witness, ended, spawn


def time() -> float:
    return asyncio.get_running_loop().time()


def check_lists(witness: Witness) -> None:
    """Check that the jobs that are listed are those that are counted."""
    stats, queued, running = witness.pool.stats, witness.pool.queued(), witness.pool.running()
    assert (len(queued), len(running)) == (stats.queued + stats.delayed, stats.running), stats
    assert sum(entry.is_delayed for entry in queued) == stats.delayed, stats
    assert len({entry.id for entry in [*queued, *running]}) == len(queued) + len(running)
    assert [entry.is_delayed for entry in queued] == sorted(entry.is_delayed for entry in queued)
    assert [entry.seconds for entry in running] == sorted((entry.seconds for entry in running), reverse=True)
    assert len({entry.worker for entry in running}) == len(running)
    most = witness.random.randint(1, 4)
    assert witness.pool.queued(most) == queued[:most]


@contextmanager
def sliced(is_on: bool) -> Iterator[None]:
    """Have three jobs be many."""
    usual = cancellation._FEW
    cancellation._FEW = 2 if is_on else usual
    try:
        yield
    finally:
        cancellation._FEW = usual


@scenario
async def jobs_wait_no_longer_than_they_may(witness: Witness, random: Random) -> None:
    """Whatever they wait for, they fail in the very moment in which their time is over, and none starts later."""
    queue_timeout = random.choice((0.003, 0.05, 0.4))
    options: dict[str, Any] = {}
    match random.randint(0, 5):
        case 0:
            options["limiter"] = witness.keys(2, random.choice((2.0, 100.0)))
        case 4:
            options["limiter"] = [ConcurrencyLimit(1), ConcurrencyLimit.per_key(lambda item: item.n % 2, 1)]
        case 1:
            options["limiter"] = Meter(random.choice((3.0, 100.0)))
        case 2:
            options["limiter"] = asyncio.Semaphore(random.randint(1, 2))
        case 3:
            options["priority"] = lambda item: item.n % 3
        case _:
            pass
    if random.random() < 0.5:
        options["retry"] = patience(random)
    if random.random() < 0.3:
        options["timeout"] = lambda item: (None, 0.3, 1.1)[item.n % 3]
    accepted_at: dict[int, float] = {}
    problems: list[str] = []

    def observe(event: object) -> None:
        match event:
            case JobStarted(id=number, attempt=1):
                if time() >= accepted_at.setdefault(number, time()) + queue_timeout:
                    problems.append(f"{event} at {time()}: accepted at {accepted_at[number]}")
            case JobEnded(id=number, outcome=Failed(error=JobExpired(queue_timeout=seconds))) if seconds is not None:
                if number not in accepted_at:
                    problems.append(f"{event}: it waited for nothing")
                elif time() != accepted_at[number] + queue_timeout or event.outcome.seconds_running:
                    problems.append(f"{event} at {time()}: accepted at {accepted_at[number]}")
            case asyncpool.events.JobAccepted(id=number):
                accepted_at[number] = time()
            case _:
                pass

    options["observers"] = [observe]
    pool = witness.make_pool(queue_timeout=queue_timeout, **sizes(random), **options)
    async with pool:
        kinds = (*RETRIED, "slow", "stubborn")
        tasks = [spawn(witness.submit(witness.item(*kinds))) for _ in range(12)]
        for _ in range(6):
            await pass_time(random)
            match random.randint(0, 6):
                case 0:
                    pool.pause()
                case 1:
                    pool.resume(force=random.random() < 0.5)
                    if not pool.is_paused:
                        witness.pause_ends = min(witness.pause_ends, time())
                case 2 if witness.handles:
                    random.choice(witness.handles).cancel()
                case 3:
                    witness.resize(any_size(random))
                case 4:
                    pool.cancel_queued(lambda item: item.n % 3 == 0)
                case _:
                    pass
            check_lists(witness)
            await asyncio.sleep(random.choice((0.0, 0.002, queue_timeout, 2 * queue_timeout)))
            await settle()
            if witness.engine is None or not pool.is_paused:
                waiting = [entry for entry in pool.queued() if entry.attempt == 1]
                late = [entry for entry in waiting if accepted_at[entry.id] + queue_timeout < time()]
                assert not late, f"their time to start is over, and they wait: {late}"
        if random.random() < 0.7:
            pool.resume(force=True)
            witness.pause_ends = min(witness.pause_ends, time())
            await ended(*tasks)
            await all_done(pool)
    await ended(*tasks)
    assert not problems, problems
    assert not (await witness.check_end())


@scenario
async def waiting_jobs_are_listed_and_cancelled(witness: Witness, random: Random) -> None:
    """By whom and where it may be: in handlers, in sources, in the very function that chooses them."""

    def where(item: Item) -> bool:
        nonlocal depth
        if depth < 2 and random.random() < 0.05:
            depth += 1
            act()
            depth -= 1
        if random.random() < 0.03:
            raise LookupError
        return item.n % 2 == 0

    def act() -> None:
        witness.check()
        check_lists(witness)
        match random.randint(0, 5):
            case 0 | 1:
                with suppress(LookupError):
                    pool.cancel_queued(random.choice((where, where, None)))
            case 2 if pool.state == "open":
                with suppress(PoolClosed):
                    witness.resize(any_size(random))
            case 3 if random.random() < 0.03:
                random.choice((pool.cancel, pool.drain))()
            case _:
                pass
        witness.check()

    async def handler(item: Item) -> int:
        if random.random() < 0.2:
            act()
        return await witness.handle(item)

    def source() -> Iterator[Item]:
        for item in witness.items(15, *RETRIED, "slow"):
            if random.random() < 0.1:
                act()
            witness.pulled.append(item)
            yield item

    async def read(stream: Any) -> None:
        with suppress(PoolClosed):
            async for outcome in stream:
                outcomes.append(outcome)

    async def submit() -> None:
        with suppress(PoolClosed):
            await witness.submit(witness.item(*RETRIED))

    depth = 0
    outcomes: list[Any] = []
    options: dict[str, Any] = {"retry": patience(random)} if random.random() < 0.5 else {}
    if random.random() < 0.3:
        options["limiter"] = witness.keys(2, random.choice((2.0, 100.0)))
    if random.random() < 0.3:
        options["priority"] = lambda item: item.n % 3
    if random.random() < 0.3:
        options["queue_timeout"] = random.choice((0.003, 0.4))
    with sliced(random.random() < 0.5):
        pool = witness.make_pool(handler=handler, **sizes(random), **options)
        async with pool:
            reader = spawn(read(pool.outcomes(source(), ordered=random.random() < 0.5)))
            tasks = [spawn(submit()) for _ in range(8)]
            for _ in range(5):
                await pass_time(random)
                act()
                if random.random() < 0.5:
                    await settle()
                    if pool.state == "open":
                        witness.check_settled()
            await ended(reader, *tasks)
        await pool.close()
    reader.result()
    assert sorted(outcome.job.n for outcome in outcomes) == sorted(item.n for item in witness.pulled)
    await witness.check_end()


@scenario
async def runs_stop_by_their_limits(witness: Witness, random: Random) -> None:
    """What was pulled is delivered, whatever it has become; and a run that ends well has kept its limits."""
    stream_kinds = ("ok", "turn", "nap", "fail", "turn_fail", "crash", "slow", "stubborn")
    max_failures = random.choice((None, 0, 1, 3, 0.2, 0.6))
    deadline = None if max_failures is not None and random.random() < 0.5 else random.choice((0.002, 0.4, 1.5, 5.0))
    items = witness.items(
        random.choice((0, 5, 30)), *(stream_kinds if random.random() < 0.7 else ("ok", "nap", "fail"))
    )
    ordered, delivers = random.random() < 0.5, random.random() < 0.6
    pool = witness.make_pool(**sizes(random), observe=random.random() < 0.3)
    end: BaseException | None = None
    read: list[Any] = []
    with sliced(random.random() < 0.3):
        async with pool:
            make = pool.outcomes if delivers else pool.map
            stream: Any = make(witness.any_source(items), ordered=ordered, max_failures=max_failures, deadline=deadline)
            others = [spawn(witness.submit(witness.item("ok", "nap"))) for _ in range(random.randint(0, 3))]
            began = time()
            cursor = aiter(stream)
            while end is None:
                step = spawn(anext(cursor))
                if random.random() < 0.2:
                    await turns(random, 3)
                    step.cancel()
                if random.random() < 0.03:
                    pool.drain()
                await ended(step)
                if step.cancelled():
                    continue
                end = step.exception()
                if end is None:
                    read.append(step.result())
            lasted = time() - began
            await ended(*others)
            del cursor
            await all_done(pool)
        await pool.close()
    witness.perhaps += len(others)
    failed = sum(isinstance(outcome, Failed) for outcome in read)
    if delivers:
        assert sorted(outcome.job.n for outcome in read) == sorted(item.n for item in witness.pulled)
        if ordered:
            assert [outcome.job.n for outcome in read] == [item.n for item in witness.pulled]
    match end:
        case StopAsyncIteration():
            assert len(read) == len(items) or (not delivers and max_failures is not None)
            if delivers and isinstance(max_failures, int):
                assert failed <= max_failures
            elif delivers and max_failures is not None:
                assert failed <= max_failures * len(read)
            assert deadline is None or lasted <= deadline
        case TooManyFailures(failed=counted, settled=settled):
            assert max_failures is not None
            assert counted > (max_failures if isinstance(max_failures, int) else max_failures * settled)
            assert end.__cause__ is not None
            assert not delivers or failed >= counted
        case DeadlineExceeded():
            assert deadline is not None
            travel = 0.0 if witness.engine is None else 0.2  # of the cancellation to the process, and back
            assert deadline <= lasted <= deadline + 0.01 + travel, (deadline, lasted)
        case PoolClosed():
            assert pool.state == "closed"
        case _:
            assert not delivers, end  # it is the failure of a job
            assert max_failures is None or isinstance(end, asyncpool.JobCancelled), end
    await witness.check_end()
    assert witness.sources_open == 0


@scenario
async def batches_of_a_stream_are_read_by_an_impatient_reader(witness: Witness, random: Random) -> None:
    items = witness.items(20, "ok", "turn", "nap", "slow")
    size, seconds = random.randint(1, 6), random.choice((None, 0, 0.002, 0.5, 3.0))
    leaves = random.random() < 0.3
    async with witness.make_pool(**sizes(random)) as pool:
        is_stream = random.random() < 0.6
        source: Any = witness.any_source(items)
        if is_stream:
            source = pool.map(source)
        elif not hasattr(source, "__anext__"):
            source = witness.async_source(items, waits=random.choice((0.0, 0.01, 1.0)))
        read: list[Any] = []
        async with asyncpool.batches(source, size, seconds) as grouped:
            while True:
                if leaves and random.random() < 0.1:
                    break
                step = spawn(anext(grouped))
                if random.random() < 0.4:
                    await turns(random, 3)
                    step.cancel()
                elif random.random() < 0.3:
                    with anyio.move_on_after(random.choice((0.0, 0.3))):
                        await asyncio.wait([step])
                    step.cancel()
                await ended(step)
                if step.cancelled():
                    continue
                if step.exception():
                    assert isinstance(step.exception(), (StopAsyncIteration, RuntimeError)), step.exception()
                    break
                assert 1 <= len(step.result()) <= size
                read += step.result()
                await turns(random, 2)
        expected = [item.n if is_stream else item for item in items]
        assert read == expected[: len(read)]
        assert leaves or len(read) == len(items)
        await pool.join()
        assert witness.sources_open == 0
        if not is_stream:
            witness.pulled.clear()
    assert not (await witness.check_end())


@scenario
async def attempts_have_timeouts_of_their_own(witness: Witness, random: Random) -> None:
    """A function decides, which may do as it likes."""
    options: dict[str, Any] = {"retry": patience(random, on=TimeoutError)} if random.random() < 0.5 else {}
    if random.random() < 0.3:
        options["limiter"] = asyncio.Semaphore(random.randint(1, 2))
    raised: set[int] = set()

    def timeout(item: Item) -> Any:
        witness.check()
        job = current_job()
        match random.randint(0, 11):
            case 0:
                raised.add(job.id)
                raise LookupError
            case 1:
                raised.add(job.id)
                return random.choice((True, 0, "soon"))
            case 2 if witness.handles:
                random.choice(witness.handles).cancel()
            case 3:
                witness.resize(any_size(random))
            case 4:
                pool.cancel_queued(lambda item: item.n % 4 == 0)
            case _:
                pass
        witness.check()
        return seconds_of[item.n]

    seconds_of = {number: random.choice((None, 0.003, 0.5, 1.5)) for number in range(100)}
    pool = witness.make_pool(timeout=timeout, **sizes(random), **options)
    # A call of the function that fails ends an attempt that never calls the handler.
    witness.is_exact = False
    async with pool:
        tasks = [spawn(witness.submit(witness.item(*KINDS[:-1], "slow"))) for _ in range(12)]
        await ended(*tasks)
        await all_done(pool)
    for handle in witness.handles:
        outcome = await handle.outcome()
        if handle.id in raised and not isinstance(outcome, Cancelled):
            assert isinstance(outcome, Failed)
            assert type(outcome.error) in (LookupError, TypeError, ValueError), outcome
        elif isinstance(outcome, Failed) and isinstance(outcome.error, JobTimeout):
            assert outcome.error.timeout == seconds_of[outcome.job.n]
        elif isinstance(outcome, Cancelled):
            assert outcome.reason is CancelReason.HANDLE
        else:
            assert isinstance(outcome, (Succeeded, Failed))
    assert not (await witness.check_end())
