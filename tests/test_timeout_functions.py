"""`timeout=` as a function of the job: asked for each attempt, and what it does wrong costs only that job."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    DeadLetters,
    Failed,
    JobTimeout,
    PoolClosed,
    Retry,
    RetryAfter,
    Succeeded,
    WorkerPool,
    current_job,
)
from asyncpool.testing import run, settle
from tests.engines.conftest import no_signs_of_life  # noqa: F401  # a fixture
from tests.engines.memory import InMemory, Portable
from tests.helpers import assert_conserved, compute, fuzzed, now, sleeper, virtual

ENGINES: dict[str, Callable[[], dict[str, Any]]] = {
    "here": dict,
    "engine": lambda: {"engine": InMemory(2)},
}
everywhere = pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
pytestmark = pytest.mark.usefixtures("no_signs_of_life")


def pool_of(handler: Any, timeout: Any, options: Callable[[], dict[str, Any]], **more: Any) -> WorkerPool[Any, Any]:
    chosen = options()
    return WorkerPool(Portable(handler) if chosen else handler, workers=4, timeout=timeout, **chosen, **more)


@everywhere
@virtual
async def test_each_job_has_the_timeout_that_the_function_returns(options: Any) -> None:
    seen: list[float] = []

    async def handler(seconds: float) -> None:
        seen.append(anyio.current_effective_deadline() - now())
        await asyncio.sleep(60)

    async with pool_of(handler, lambda seconds: seconds, options) as pool:
        outcomes = await pool.outcomes([3.0, 1.0, 2.0])
    assert [outcome.error.timeout for outcome in outcomes] == [1.0, 2.0, 3.0]
    assert all(type(outcome.error) is JobTimeout for outcome in outcomes)
    assert [outcome.seconds_running for outcome in outcomes] == pytest.approx([1.0, 2.0, 3.0])
    assert sorted(seen) == pytest.approx([1.0, 2.0, 3.0])


@virtual
async def test_the_time_of_the_function_itself_does_not_count() -> None:
    def timeout(job: float) -> float:
        compute(5.0)
        return 2.0

    async with WorkerPool(sleeper, workers=1, timeout=timeout) as pool:
        outcome = await (await pool.submit(1.0)).outcome()
    assert isinstance(outcome, Succeeded)
    assert (outcome.seconds_queued, outcome.seconds_running) == (5.0, 1.0)


@everywhere
@virtual
async def test_none_is_no_limit(options: Any) -> None:
    async with pool_of(sleeper, lambda seconds: None, options) as pool:
        assert await pool.run(100_000.0) == 100_000.0


@everywhere
@virtual
async def test_it_is_asked_for_each_attempt_when_that_starts(options: Any) -> None:
    asked: list[tuple[float, int]] = []

    def timeout(job: str) -> float:
        asked.append((round(now()), current_job().attempt))
        return current_job().attempt * 10.0

    async def handler(job: str) -> None:
        await asyncio.sleep(1000)

    retry = Retry(attempts=3, backoff=5, jitter=False)
    async with pool_of(handler, timeout, options, retry=retry) as pool:
        with pytest.raises(JobTimeout, match="its timeout of 30 s"):
            await pool.run("x")
    assert asked == [(0, 1), (15, 2), (40, 3)]


@virtual
async def test_it_is_not_asked_while_the_job_waits_for_the_limiter() -> None:
    asked: list[float] = []

    def timeout(job: float) -> float:
        asked.append(now())
        return 2.0

    @asynccontextmanager
    async def limiter() -> AsyncIterator[None]:
        await asyncio.sleep(5)
        yield

    async with WorkerPool(sleeper, workers=1, timeout=timeout, limiter=lambda job: limiter()) as pool:
        assert await pool.run(1.0) == 1.0
    assert asked == [5.0]


@everywhere
@virtual
async def test_it_gets_the_very_object_that_was_submitted(options: Any) -> None:
    job = [1.0]
    async with pool_of(lambda job: sleeper(job[0]), lambda asked: 5.0 if asked is job else 0.1, options) as pool:
        assert await pool.run(job) == 1.0


class Broken(Exception):
    pass


class Unready:
    @property
    def __class__(self) -> Any:
        raise Broken("no class")


def raises(error: BaseException) -> Callable[[object], float]:
    def timeout(job: object) -> float:
        raise error

    return timeout


WRONG: dict[str, tuple[Callable[[object], Any], type[BaseException], str]] = {
    "raises": (raises(Broken("oh")), Broken, "oh"),
    "advice": (raises(RetryAfter(1.0, pause=True)), RetryAfter, "retry after"),
    "exit": (raises(SystemExit("bye")), SystemExit, "bye"),
    "cancelled": (raises(asyncio.CancelledError("nobody")), asyncio.CancelledError, "nobody"),
    "stop": (raises(StopIteration()), StopIteration, ""),
    "text": (lambda job: "5", TypeError, r"what timeout\(job\) returns must be a number of seconds, got '5'"),
    "bool": (lambda job: True, TypeError, "must be a number of seconds, got True"),
    "zero": (lambda job: 0, ValueError, r"what timeout\(job\) returns must be a finite number of seconds > 0, got 0"),
    "nan": (lambda job: float("nan"), ValueError, "must be a finite number of seconds > 0, got nan"),
    "infinite": (lambda job: float("inf"), ValueError, "got inf"),
    "coroutine": (lambda job: sleeper(1.0), TypeError, "must be a number of seconds, got <coroutine object sleeper"),
    "hostile": (lambda job: Unready(), Broken, "no class"),
}


@pytest.mark.parametrize("timeout", WRONG.values(), ids=WRONG)
@everywhere
@virtual
async def test_what_it_does_wrong_fails_the_job_which_does_not_run(options: Any, timeout: Any) -> None:
    calls: list[object] = []

    async def handler(job: object) -> None:
        calls.append(job)

    function, kind, text = timeout
    letters = DeadLetters[Any]()
    retry = Retry(attempts=3, on=BaseException)
    async with pool_of(
        handler, lambda job: function(job) if job else 5, options, retry=retry, dead_letters=letters
    ) as pool:
        failed = await (await pool.submit("bad")).outcome()
        assert isinstance(failed, Failed)
        assert type(failed.error) is kind
        assert re.search(text, str(failed.error))
        assert failed.error.__notes__ == ["raised by the timeout function of the pool, before the attempt began"]
        assert (failed.attempts, failed.seconds_running) == (1, 0.0)  # and never again
        assert not pool.is_paused
        await pool.run("")
        assert_conserved(pool)
    assert calls == [""]
    assert [letter.job for letter in letters] == ["bad"]


def test_a_keyboard_interrupt_in_it_fails_the_job_and_reaches_the_program() -> None:
    outcomes: list[Any] = []

    async def main() -> None:
        async with WorkerPool(sleeper, workers=1, timeout=raises(KeyboardInterrupt())) as pool:
            handle = await pool.submit(1.0)
            outcomes.append(handle)
            await handle

    with pytest.raises(KeyboardInterrupt):
        run(main)
    [handle] = outcomes
    assert handle.done()


@everywhere
@fuzzed
async def test_it_can_do_to_the_pool_what_it_likes(options: Any) -> None:
    def timeout(job: str) -> float:
        match job:
            case "submits":
                with suppress(PoolClosed):  # if "closes" came first
                    handles.append(pool.submit_nowait("more"))
            case "cancels":
                next(handle for handle in handles if handle.job == "cancels").cancel()
            case "resizes":
                with suppress(PoolClosed):
                    pool.resize(1)
            case "closes":
                pool.drain()
            case _:
                pass
        return 5.0

    async def handler(job: str) -> str:
        await asyncio.sleep(1)
        return job

    handles: list[Any] = []
    async with pool_of(handler, timeout, options) as pool:
        handles += [pool.submit_nowait(job) for job in ("submits", "cancels", "resizes", "closes")]
        await settle()
    outcomes = {handle.job: await handle.outcome() for handle in handles}
    assert outcomes.keys() - {"more"} == {"submits", "cancels", "resizes", "closes"}
    cancelled = outcomes.pop("cancels")
    assert isinstance(cancelled, Cancelled)
    assert cancelled.reason is CancelReason.HANDLE
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes.values()), outcomes


@virtual
async def test_one_function_serves_several_pools() -> None:
    timeout = lambda seconds: 2.0  # noqa: E731
    async with (
        WorkerPool(sleeper, workers=1, timeout=timeout) as one,
        WorkerPool(sleeper, workers=1, timeout=timeout) as other,
    ):
        assert await asyncio.gather(one.run(1.0), other.run(1.5)) == [1.0, 1.5]
        with pytest.raises(JobTimeout):
            await other.run(3.0)


@virtual
async def test_the_end_of_max_elapsed_counts_if_it_is_sooner() -> None:
    async with WorkerPool(sleeper, workers=1, timeout=lambda job: 50.0, retry=Retry(max_elapsed=3.0)) as pool:
        with pytest.raises(TimeoutError, match="did not complete within 3 s"):
            await pool.run(10.0)
        assert now() == 3.0


@virtual
async def test_a_job_has_its_timeout_with_a_resource() -> None:
    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        yield "connection"

    async def handler(job: float, connection: str) -> str:
        await asyncio.sleep(job)
        return connection

    async with WorkerPool(handler, workers=1, timeout=lambda job: 2.0, resource=resource) as pool:
        assert await pool.run(1.0) == "connection"
        with pytest.raises(JobTimeout):
            await pool.run(3.0)
