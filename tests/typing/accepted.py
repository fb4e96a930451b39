"""Programs that must type-check, with the types that they must have."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, assert_never, assert_type

import asyncpool
from asyncpool import (
    Adaptive,
    AutoScale,
    Cancelled,
    CancelReason,
    ConcurrencyLimit,
    DeadLetter,
    DeadLetterFile,
    DeadLetters,
    DeadLetterSink,
    Decision,
    Failed,
    FailedJob,
    FixedSize,
    FunctionPolicy,
    Group,
    JobHandle,
    Journal,
    JournalCounts,
    Outcome,
    PoolLoad,
    QueuedJob,
    RateLimit,
    Resource,
    Retry,
    RunningJob,
    ScalingPolicy,
    ShutdownReport,
    Stream,
    Succeeded,
    WorkerPool,
    batches,
    offload,
)
from asyncpool.events import JobEnded, PoolResized, PoolStarted
from asyncpool.otel import PoolTracer
from asyncpool.progress import summary, track
from asyncpool.prometheus import PoolCollector
from asyncpool.scaling import Decide, Workers


class Connection: ...


@asynccontextmanager
async def connect() -> AsyncGenerator[Connection, None]:
    yield Connection()


async def answers(connection: Connection) -> bool:
    return bool(connection)


async def length(job: str) -> int:
    return len(job)


async def stored(job: str, connection: Connection) -> bool:
    return bool(job and connection)


async def scaled(factor: int, job: str) -> float:
    return factor * len(job)


def blocking_length(job: str) -> int:
    return len(job)


async def a_pool_knows_its_jobs_and_values() -> None:
    async with WorkerPool(length, workers=2, timeout=1, priority=len) as pool:
        assert_type(pool, WorkerPool[str, int])
        handle = await pool.submit("a")
        assert_type(handle, JobHandle[str, int])
        assert_type(pool.submit_nowait("a"), JobHandle[str, int])
        assert_type(await handle, int)
        assert_type(await handle.outcome(), Outcome[str, int])
        assert_type(handle.job, str)
        assert_type(await pool.run("a", if_full="raise"), int)
        assert_type(pool.map(["a"]), Stream[int])
        assert_type(await pool.map(["a"]), list[int])
        async for value in pool.map(iter("ab"), ordered=False):
            assert_type(value, int)
        async for outcome in pool.outcomes(["a"]):
            assert_type(outcome, Outcome[str, int])
        assert_type(await pool.map(["a"], max_failures=0.1, deadline=60), list[int])
        async for outcome in pool.outcomes(["a"], max_failures=3):
            assert_type(outcome, Outcome[str, int])
        assert_type(pool.queued(), list[QueuedJob[str]])
        assert_type(pool.queued(10)[0].job, str)
        assert_type(pool.running(), list[RunningJob[str]])
        assert_type(pool.cancel_queued(lambda job: job.startswith("a")), int)
        assert_type(await pool.close(grace=1), ShutdownReport[str])


async def a_pool_with_a_resource() -> None:
    bounded = Resource(connect, open_timeout=5)
    assert_type(WorkerPool(stored, workers=2, resource=bounded), WorkerPool[str, bool])
    assert_type(await asyncpool.map(stored, ["a"], workers=2, resource=bounded), list[bool])
    checked = Resource(connect, check=answers, max_age=1800, max_jobs=1000, required=False, recycle_on=OSError)
    assert_type(WorkerPool(stored, workers=2, resource=checked), WorkerPool[str, bool])
    async with WorkerPool(stored, workers=2, resource=connect, recycle_on=(OSError, EOFError)) as pool:
        assert_type(pool, WorkerPool[str, bool])


async def a_pool_of_callables() -> None:
    async with WorkerPool(workers=2) as pool:
        assert_type(await pool.run(lambda: asyncio.sleep(0, "done")), Any)
        await pool.submit(partial(length, "a"))


async def callables_of_all_kinds_are_handlers() -> None:
    with_lambda: WorkerPool[str, int] = WorkerPool(lambda job: length(job), workers=1)
    with_partial: WorkerPool[str, float] = WorkerPool(partial(scaled, 2), workers=1)
    print(with_lambda, with_partial)
    assert_type(WorkerPool(offload(blocking_length), workers=1), WorkerPool[str, int])
    tracer = PoolTracer()
    assert_type(WorkerPool(tracer.wrap(length), workers=1, observers=[tracer]), WorkerPool[str, int])
    PoolCollector(with_lambda, with_partial)


async def pipelines_keep_their_types(source: AsyncIterator[str]) -> None:
    async with WorkerPool(length, workers=1) as lengths, WorkerPool(_doubled, workers=1) as doubled:
        async for value in doubled.map(lengths.map(source)):
            assert_type(value, str)


async def batches_keep_the_type_of_their_items(pool: WorkerPool[str, int], source: AsyncIterator[str]) -> None:
    async for rows in batches(pool.map(["a"]), size=10, seconds=1):
        assert_type(rows, list[int])
    async with batches(pool.outcomes(source), 10, None) as grouped:
        assert_type(await anext(grouped), list[Outcome[str, int]])


async def progress_keeps_the_type_of_a_stream(pool: WorkerPool[str, int]) -> None:
    assert_type(track(pool.map(["a"]), total=1), Stream[int])
    assert_type(track(pool.group()), Group[str, int])
    assert_type(pool.outcomes(["a"], progress=True), Stream[Outcome[str, int]])
    assert_type(asyncpool.map(length, ["a"], workers=1, progress=True), Stream[int])
    assert_type(await track(asyncpool.map(length, ["a"], workers=1)), list[int])
    print(summary(pool), summary(pool.group(), errors={"ValueError": 3}).rate)


async def _doubled(job: int) -> str:
    return str(2 * job)


async def oneshot() -> None:
    assert_type(await asyncpool.map(length, ["a"], workers=2), list[int])
    assert_type(await asyncpool.map(stored, ["a"], workers=2, resource=connect), list[bool])
    assert_type(await asyncpool.map(stored, ["a"], workers=2, resource=connect, max_failures=1, deadline=5), list[bool])
    async for outcome in asyncpool.outcomes(length, ["a"], workers=2, deadline=5.5):
        assert_type(outcome, Outcome[str, int])


async def a_group(pool: WorkerPool[str, int]) -> None:
    async with pool.group(window=5) as group:
        await group.submit("a")
    async for outcome in group:
        assert_type(outcome, Outcome[str, int])


def outcomes_match_exhaustively(outcome: Outcome[str, int]) -> str:
    match outcome:
        case Succeeded(job, value):
            assert_type(job, str)
            assert_type(value, int)
            return f"{job}: {value}"
        case Failed(job, error):
            assert_type(error, BaseException)
            return f"{job}: {error}"
        case Cancelled(job, reason):
            assert_type(reason, CancelReason)
            return f"{job}: {reason}"
        case _:
            assert_never(outcome)


def host(word: str) -> str:
    return word


def limit_of(word: str) -> RateLimit | asyncio.Semaphore | None:
    return None


def observers_get_a_closed_union(event: asyncpool.Event) -> None:
    match event:
        case PoolStarted(workers=workers):
            assert_type(workers, int)
        case JobEnded(outcome=outcome):
            assert_type(outcome, Outcome[Any, Any])
        case PoolResized(old=old, new=new, reason=reason, load=load):
            assert_type(old + new, int)
            assert_type(reason, str)
            assert_type(load, PoolLoad | None)
        case _:
            pass


WorkerPool(length, workers=1, observers=[observers_get_a_closed_union])


# -- Dead letters, retries, rate limits --------------------------------------------------------------------------------

assert_type(WorkerPool(length, workers=1, dead_letters=DeadLetters()), WorkerPool[str, int])
store: DeadLetters[str] = DeadLetters(max_size=5)
assert_type(WorkerPool(length, workers=1, dead_letters=store, retry=Retry(on=OSError)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=1, dead_letters=DeadLetterFile("letters.jsonl")), WorkerPool[str, int])
any_store: DeadLetterSink[Any] = store
WorkerPool(length, workers=1, dead_letters=any_store)
for letter in store:
    assert_type(letter.job, str)
Retry(on=(OSError, ValueError))
Retry(on=lambda error: "busy" in str(error))


class Table:
    """A sink of one's own."""

    def record(self, letter: DeadLetter[str], /) -> None: ...


assert_type(WorkerPool(length, workers=1, dead_letters=Table()), WorkerPool[str, int])
WorkerPool(length, workers=1, limiter=RateLimit(5))
assert_type(WorkerPool(length, workers=1, timeout=lambda word: len(word) / 2, queue_timeout=5), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=1, timeout=lambda word: None), WorkerPool[str, int])
WorkerPool(length, workers=1, limiter=RateLimit.per_key(host, 5))
assert_type(WorkerPool(length, workers=1, limiter=RateLimit.per_key(lambda word: word[0], 5)), WorkerPool[str, int])
WorkerPool(length, workers=1, limiter=limit_of)
WorkerPool(length, workers=1, limiter=[RateLimit(5), RateLimit(9, weight=len), ConcurrencyLimit.per_key(host, 1)])
WorkerPool(length, workers=1, limiter=[asyncio.Semaphore(1), limit_of, RateLimit.per_key(host, 5)])
WorkerPool(length, workers=1, limiter=lambda word: [RateLimit(5), ConcurrencyLimit(2)])
assert_type(WorkerPool(length, workers=1, limiter=ConcurrencyLimit(2)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=1, limiter=lambda word: None), WorkerPool[str, int])
assert_type(asyncpool.map(length, ["a"], workers=1, retry=Retry(), dead_letters=DeadLetters()), Stream[int])


async def letters_are_watched_and_replayed(pool: WorkerPool[str, int]) -> None:
    async for letter in store.watch():
        assert_type(letter.job, str)
    assert_type(await store.replay(pool, where=lambda letter: letter.attempts < 3), int)


def outcomes_are_covariant(outcome: Outcome[str, bool]) -> Outcome[object, int]:
    return outcome


# -- How many workers --------------------------------------------------------------------------------------------------


def half_of_the_backlog(load: PoolLoad) -> int:
    assert_type(load.backlog, int)
    assert_type(load.seconds, tuple[float, ...])
    assert_type(load.errors, tuple[BaseException, ...])
    return max(1, load.backlog // 2)


class ByNight:
    """A policy of one's own, written as a class with properties."""

    @property
    def initial_workers(self) -> int:
        return 1

    @property
    def max_workers(self) -> int:
        return 50

    @property
    def interval(self) -> float:
        return 60.0

    def start(self) -> Decide:
        return lambda load: Decision(50 if load.now > 1e5 else 5, "the time of day", ask_again_in=60)


class Stepwise:
    """The same with attributes, and a method that decides."""

    def __init__(self, max_workers: int) -> None:
        self.initial_workers = 1
        self.max_workers = max_workers
        self.interval = 0.5

    def start(self) -> Decide:
        return self.decide

    def decide(self, load: PoolLoad) -> Decision:
        return Decision(load.workers + 1, reason="one more", figures={"backlog": load.backlog})


class Called:
    def __call__(self, load: PoolLoad) -> int:
        return load.running + 1


assert_type(WorkerPool(length, workers=AutoScale(2, 10, idle_timeout=5)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=Adaptive(1, 100, overload=OSError)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=FixedSize(3)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=FunctionPolicy(half_of_the_backlog, 50)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=half_of_the_backlog), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=lambda load: max(2, load.backlog // 5)), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=Called()), WorkerPool[str, int])
assert_type(WorkerPool(length, workers=ByNight()), WorkerPool[str, int])
assert_type(WorkerPool(stored, workers=Stepwise(5), resource=connect), WorkerPool[str, bool])
WorkerPool(workers=AutoScale(0, 4))
assert_type(asyncpool.map(length, ["a"], workers=AutoScale(2, 10)), Stream[int])
assert_type(asyncpool.map(stored, ["a"], workers=half_of_the_backlog, resource=connect), Stream[bool])
assert_type(asyncpool.outcomes(length, ["a"], workers=Stepwise(5)), Stream[Outcome[str, int]])


def a_size_can_be_changed(pool: WorkerPool[str, int]) -> None:
    pool.resize(5)
    pool.resize(AutoScale(1, 5))
    pool.resize(Adaptive(1, 5))
    pool.resize(half_of_the_backlog)
    pool.resize(lambda load: load.running)
    pool.resize(ByNight())
    assert_type(pool.stats.target_workers + pool.stats.max_workers, int)


def a_setting_may_be_any_of_them(production: bool) -> Workers:
    policy: ScalingPolicy = AutoScale(2, 10) if production else FixedSize(1)
    return policy if production else half_of_the_backlog


def job_key(job: str) -> str | int:
    return job or 0


async def a_journal_has_the_types_of_its_pool(pool: WorkerPool[str, int]) -> None:
    journal = Journal("batch.db", key=job_key, values=True)
    assert_type(journal, Journal[str])
    assert_type(journal.outcomes(pool, ["a"], earlier=True), Stream[Outcome[str, int]])
    assert_type(journal.map(pool, ["a"]), Stream[int])
    assert_type(journal.pending(["a"]), AsyncGenerator[str, None])
    assert_type(journal.failed(), list[FailedJob])
    assert_type(journal.count(), JournalCounts)
    assert_type(WorkerPool(journal.recorded(length), workers=2), WorkerPool[str, int])
    assert_type(WorkerPool(journal.recorded(stored), workers=2, resource=connect), WorkerPool[str, bool])
