"""What a dashboard shows of pools, at any moment of their lives, whatever their jobs are."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from asyncpool import (
    AutoScale,
    Breaker,
    ConcurrencyLimit,
    DeadLetterFile,
    DeadLetters,
    Journal,
    RateLimit,
    Retry,
    RetryAfter,
    WorkerPool,
)
from asyncpool.dashboard.history import COLUMNS, KEPT
from asyncpool.dashboard.texts import MAX_CELL, cell
from asyncpool.testing import settle
from tests.dashboard.tools import act, acting_views_of, ask, events, state_of, value_of, views_of
from tests.helpers import echo, sleeper, virtual


async def failing(job: Any) -> None:
    raise ValueError(f"job {job} is no good")


# -- Figures -----------------------------------------------------------------------------------------------------------


@virtual
async def test_the_figures_of_a_pool_are_those_of_its_statistics() -> None:
    pool: WorkerPool[float, float] = WorkerPool(sleeper, workers=2, queue_size=5, limiter=RateLimit(1000, burst=9))
    views = views_of(pool)
    (new,) = await state_of(views)
    assert (new["state"], new["submitted"]) == ("new", 0)
    async with pool:
        for _ in range(5):
            pool.submit_nowait(10.0)
        await asyncio.sleep(3)
        (shown,) = await state_of(views)
        figures = [shown[name] for name in ("state", "running", "queued", "queue_size", "workers", "target_workers")]
        assert figures == ["open", 2, 3, 5, 2, 2]
        assert [(job["id"], job["job"], job["attempt"], job["seconds"]) for job in shown["jobs"]] == [
            (1, "10.0", 1, 3.0),
            (2, "10.0", 1, 3.0),
        ]
        assert shown["limits"] == [repr(pool.limiter)]
        assert shown["pause"] == ""
        pool.pause()
        assert (await state_of(views))[0]["pause"] == "pause()"
        pool.cancel()
    (closed,) = await state_of(views)
    assert (closed["state"], closed["cancelled"], closed["jobs"]) == ("closed", 5, [])


@virtual
async def test_the_longest_running_jobs_are_shown() -> None:
    async with WorkerPool(sleeper, workers=30) as pool:
        views = views_of(pool)
        for _ in range(30):
            pool.submit_nowait(100.0)
            await asyncio.sleep(1)
        (shown,) = await state_of(views)
        assert [job["id"] for job in shown["jobs"]] == list(range(1, 11))
        assert shown["jobs"][0]["seconds"] == 30.0
        assert shown["running"] == 30
        pool.cancel()


@virtual
async def test_scaling_decisions_are_shown_with_their_reasons() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(min_workers=1, max_workers=20)) as pool:
        views = views_of(pool)
        for _ in range(40):
            await pool.submit(5.0)
        await asyncio.sleep(4)
        (shown,) = await state_of(views)
        assert shown["resizes"][0]["new"] == pool.stats.target_workers
        assert shown["resizes"][0]["reason"] == pool.resizes()[-1].reason


@virtual
async def test_a_pause_that_a_job_requested_is_shown() -> None:
    async def handler(job: int) -> None:
        raise RetryAfter(60.0, pause=True)

    async with WorkerPool(handler, workers=1, retry=Retry(attempts=2)) as pool:
        pool.submit_nowait(1)
        await settle()
        assert (await state_of(views_of(pool)))[0]["pause"] == "requested by a job"
        pool.cancel()


@virtual
async def test_an_open_breaker_and_several_limits_are_shown() -> None:
    async def handler(job: int) -> None:
        raise ConnectionError

    limits = [RateLimit(100, burst=5), ConcurrencyLimit(2)]
    breaker = Breaker(on=ConnectionError, window=2, pause=60.0)
    async with WorkerPool(handler, workers=2, limiter=limits, breaker=breaker, dead_letters=DeadLetters()) as pool:
        views = views_of(pool)
        (shown,) = await state_of(views)
        assert shown["breaker"] == {"state": "closed", "openings": 0}
        for number in range(4):
            pool.submit_nowait(number)
        await settle()
        (shown,) = await state_of(views)
        assert (shown["breaker"], shown["pause"]) == ({"state": "open", "openings": 1}, "breaker")
        assert shown["limits"] == [repr(limits[0]), f"{limits[1]!r}, 0 in use"]
        pool.cancel()


@virtual
async def test_resources_and_their_last_failure_are_shown() -> None:
    class Connection:
        opened = 0

        async def __aenter__(self) -> int:
            Connection.opened += 1
            if Connection.opened == 2:
                raise ConnectionError("refused")
            return Connection.opened

        async def __aexit__(self, *_: object) -> None: ...

    async def handler(job: int, connection: int) -> None: ...

    async with WorkerPool(handler, workers=2, resource=Connection) as pool:
        await settle()
        resources = (await state_of(views_of(pool)))[0]["resources"]
        assert (resources["open"], resources["last_failure"]) == (1, "ConnectionError('refused')")
        assert (resources["failing"], resources["replaced"]) == (1, 0)
        await asyncio.sleep(10)
        resources = (await state_of(views_of(pool)))[0]["resources"]
        assert (resources["open"], resources["failing"]) == (2, 0)
    assert (await state_of(views_of(WorkerPool(echo, workers=1))))[0]["resources"] is None


@virtual
async def test_the_jobs_that_are_next_are_listed() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        for seconds in (9.0, 1.0, 2.0):
            pool.submit_nowait(seconds)
        await settle()
        jobs = value_of(await ask(views_of(pool), "/api/pools/0/queued"))["jobs"]
        assert [(job["id"], job["job"], job["is_delayed"]) for job in jobs] == [(2, "1.0", False), (3, "2.0", False)]
        pool.cancel()


# -- Hostile objects ---------------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, description: Callable[[], Any]) -> None:
        self.description = description

    def __repr__(self) -> Any:
        return self.description()


def raising(error: BaseException) -> Callable[[], Any]:
    def describe() -> Any:
        raise error

    return describe


@virtual
async def test_a_hostile_repr_costs_its_cell() -> None:
    async with WorkerPool(lambda job: asyncio.sleep(100), workers=9) as pool:
        jobs: list[Any] = [
            Hostile(raising(ValueError("no"))),
            Hostile(raising(SystemExit())),
            Hostile(raising(RecursionError())),
            Hostile(raising(asyncio.CancelledError())),
            Hostile(lambda: 5),
            Hostile(lambda: "x" * 10_000_000),
            Hostile(lambda: "\ud800 half a pair"),
            "fine",
        ]
        for job in jobs:
            pool.submit_nowait(job)
        await settle()
        shown = [job["job"] for job in (await state_of(views_of(pool)))[0]["jobs"]]
        assert [text.split("raised ")[-1] for text in shown[:5]] == [
            "ValueError>",
            "SystemExit>",
            "RecursionError>",
            "asyncio.exceptions.CancelledError>",
            "TypeError>",
        ]
        assert len(shown[5]) <= MAX_CELL
        assert shown[6:] == ["\ud800 half a pair", "'fine'"]
        pool.cancel()


@virtual
async def test_an_interrupt_in_a_repr_is_for_the_program() -> None:
    errors = [KeyboardInterrupt()]  # once: the pool logs the job, too
    interrupted = Hostile(lambda: raising(errors.pop())() if errors else "fine")
    async with WorkerPool(lambda job: asyncio.sleep(100), workers=1) as pool:
        pool.submit_nowait(interrupted)
        await settle()
        views = views_of(pool)
        with pytest.raises(KeyboardInterrupt):
            views.live.snapshot()
        pool.cancel()


@virtual
async def test_a_repr_that_uses_the_pool_does_no_harm() -> None:
    def describe() -> str:
        pool.resize(3)
        pool.pause()
        pool.cancel()
        return "done"

    async with WorkerPool(lambda job: asyncio.sleep(100), workers=1) as pool:
        pool.submit_nowait(Hostile(describe))
        await settle()
        assert (await state_of(views_of(pool)))[0]["jobs"][0]["job"] == "done"
    assert pool.stats.cancelled == 1


def test_large_objects_are_described_in_part() -> None:
    for value in (
        "x" * 10**7,
        b"x" * 10**7,
        bytearray(10**7),
        list(range(10**6)),
        {n: n for n in range(10**5)},
        10**9000,
    ):
        assert len(cell(value)) <= MAX_CELL
    assert cell("short") == "'short'"
    assert cell({"a": [1, 2]}) == "{'a': [1, 2]}"


@virtual
async def test_a_job_is_described_once_and_slow_ones_wait_for_the_next_snapshot() -> None:
    described: list[int] = []

    class Slow:
        def __init__(self, number: int) -> None:
            self.number = number

        def __repr__(self) -> str:
            described.append(self.number)
            loop: Any = asyncio.get_running_loop()
            loop._now += 0.004
            return f"slow {self.number}"

    async with WorkerPool(lambda job: asyncio.sleep(100), workers=5) as pool:
        for number in range(5):
            pool.submit_nowait(Slow(number))
        await settle()
        views = views_of(pool)
        first, second, third = [[job["job"] for job in (await state_of_now(views))] for _ in range(3)]
        assert first == ["slow 0", "slow 1", None, None, None]
        assert second == ["slow 0", "slow 1", "slow 2", "slow 3", None]
        assert third == [f"slow {number}" for number in range(5)]
        assert described == [0, 1, 2, 3, 4]
        pool.cancel()


@virtual
async def test_slow_reprs_of_jobs_that_are_next_and_of_limits_are_bounded_too() -> None:
    class Slow(AbstractAsyncContextManager[None]):
        def __repr__(self) -> str:
            loop: Any = asyncio.get_running_loop()
            loop._now += 0.01
            return "slow"

        async def __aexit__(self, *_: object) -> None: ...

    async with WorkerPool(lambda job: asyncio.sleep(100), workers=1, limiter=[Slow(), Slow()]) as pool:
        for _ in range(4):
            pool.submit_nowait(Slow())
        await settle()
        views = views_of(pool)
        for expected in [["slow", "slow", None], ["slow"] * 3]:
            jobs = value_of(await ask(views, "/api/pools/0/queued"))["jobs"]
            assert [job["job"] for job in jobs] == expected
        assert (await state_of(views))[0]["limits"] == ["slow", Slow.__module__ + "." + Slow.__qualname__]
        pool.cancel()


async def state_of_now(views: Any) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = json.loads(views.live.snapshot())[0][0]["jobs"]
    return jobs


@virtual
async def test_markup_is_data() -> None:
    name = "<img src=x onerror=alert(1)>"
    async with WorkerPool(lambda job: asyncio.sleep(100), workers=1, name=name) as pool:
        pool.submit_nowait("</script><script>alert(2)</script>")
        await settle()
        response = await ask(views_of(pool, title=name), "/api/state")
        assert response.headers["Content-Type"] == "application/json"
        assert value_of(response)["now"][0][0]["name"] == name
        pool.cancel()


# -- Streams -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_stream_has_an_event_each_second_and_each_sample_once() -> None:
    async with WorkerPool(sleeper, workers=4) as pool:
        views = views_of(pool)
        for _ in range(8):
            pool.submit_nowait(0.5)
        ticks, samples = [], []
        began = asyncio.get_running_loop().time()
        async for event in events(views):
            ticks.append(event["head"]["tick"])
            samples += event["head"]["samples"]
            if len(ticks) == 4:
                break
        assert asyncio.get_running_loop().time() - began == 3.0
        assert ticks == [1, 2, 3, 4]
        assert len(samples) == 4
        figures = [dict(zip(COLUMNS, sample[0], strict=True)) for sample in samples]
        assert [one["throughput"] for one in figures] == [None, 4.0, 4.0, 0.0]  # at 0.5 and at 1.0
        assert figures[2]["run50"] == pytest.approx(0.5, rel=0.2)
        assert figures[2]["wait99"] == pytest.approx(0.5, rel=0.2)
    assert views.live.streams == set()


@virtual
async def test_samples_are_taken_only_while_somebody_wants_them() -> None:
    views = views_of(WorkerPool(echo, workers=1))
    views.live.hold()
    views.live.hold()
    await asyncio.sleep(2.5)
    views.live.release()
    await asyncio.sleep(2)
    assert views.live.tick == 5
    views.live.release()
    await asyncio.sleep(100)  # a timer would be left, which fails the test
    assert views.live.tick == 5


@virtual
async def test_a_page_that_comes_back_gets_what_it_has_missed() -> None:
    views = views_of(WorkerPool(echo, workers=1))
    views.live.hold()
    await asyncio.sleep(KEPT + 10)
    run = views.live.run

    async def samples(query: str) -> int:
        async for event in events(views, query):
            return len(event["head"]["samples"])
        raise AssertionError

    tick = views.live.tick
    assert await samples(f"run={run}&after={tick - 3}") == 3
    assert await samples(f"run={run}&after={tick + 1000}") == 0
    assert await samples("run=other&after=5") == KEPT
    assert await samples("after=nonsense") == KEPT
    assert await samples("after=" + "9" * 5000) == KEPT
    views.live.release()


@virtual
async def test_a_page_that_comes_back_at_once_makes_no_sample_of_its_own() -> None:
    live = views_of(WorkerPool(echo, workers=1)).live
    live.hold()
    await asyncio.sleep(1.5)
    live.release()
    live.hold()
    assert live.tick == 2
    await asyncio.sleep(0.25)
    assert live.tick == 2
    await asyncio.sleep(0.5)  # a second after the last sample
    assert live.tick == 3
    live.release()
    await asyncio.sleep(5)
    live.hold()
    assert live.tick == 4
    live.release()


@virtual
async def test_a_slow_reader_misses_snapshots_and_no_samples() -> None:
    views = views_of(WorkerPool(echo, workers=1))
    counts = []
    async for event in events(views):
        counts.append(len(event["head"]["samples"]))
        if len(counts) == 3:
            break
        await asyncio.sleep(5.2)
    assert counts == [1, 5, 5]


@virtual
async def test_the_pool_can_close_while_the_page_is_open() -> None:
    views = views_of(pool := WorkerPool(sleeper, workers=1))
    states = []
    async with pool:
        pool.submit_nowait(2.5)
        closing = asyncio.create_task(pool.close())
        async for event in events(views):
            states.append(event["now"][0][0]["state"])
            if len(states) == 6:
                break
        await closing
    assert states == ["open", "draining", "draining", "closed", "closed", "closed"]


@virtual
async def test_closing_the_dashboard_ends_its_streams_and_opens_no_more() -> None:
    views = views_of(WorkerPool(echo, workers=1))

    async def read() -> int:
        return len([event async for event in events(views)])

    reading = [asyncio.create_task(read()) for _ in range(3)]
    await asyncio.sleep(2.5)
    views.live.close()
    assert await asyncio.gather(*reading) == [3, 3, 3]
    assert (await ask(views, "/api/events")).status == 503
    views.live.reopen()
    async for _ in events(views):
        break


@virtual
async def test_the_number_of_streams_is_bounded() -> None:
    views = views_of(WorkerPool(echo, workers=1))

    async def read() -> None:
        async for _ in events(views):
            pass

    reading = [asyncio.create_task(read()) for _ in range(50)]
    await asyncio.sleep(1.5)
    assert (await ask(views, "/api/events")).status == 503
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)
    assert views.live.streams == set()


# -- Loops and threads -------------------------------------------------------------------------------------------------


def test_a_pool_of_another_loop_is_not_read_and_not_changed() -> None:
    started, done = threading.Event(), threading.Event()
    pool: WorkerPool[Any, Any] = WorkerPool(echo, workers=1, name="far", dead_letters=DeadLetters())

    async def elsewhere() -> None:
        async with pool:
            started.set()
            await asyncio.to_thread(done.wait)

    async def here() -> None:
        views = acting_views_of(pool)
        (shown,) = await state_of(views)
        assert (shown["state"], set(shown)) == ("elsewhere", {"name", "state", "refused"})
        async for event in events(views):
            assert event["head"]["samples"] == [[[None] * len(COLUMNS)]]
            break
        for path, method in (("pause", "POST"), ("letters", "GET"), ("queued", "GET")):
            response = await ask(views, f"/api/pools/0/{path}", method=method)
            assert response.status == 409
            assert "another event loop" in value_of(response)["error"]
        assert not pool.is_paused

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    try:
        assert started.wait(30)
        asyncio.run(here())
    finally:
        done.set()
        thread.join()


def test_a_dashboard_is_served_on_one_loop_after_another() -> None:
    views = views_of(WorkerPool(echo, workers=1))

    async def cut() -> None:
        views.live.hold()  # and the program ends

    async def read() -> None:
        async for event in events(views):
            assert event["now"]
            break

    asyncio.run(cut())
    asyncio.run(read())
    asyncio.run(read())


# -- Dead letters ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return DeadLetters() if request.param == "memory" else DeadLetterFile(tmp_path / "letters.jsonl")


def test_dead_letters_are_grouped_by_error(store: Any) -> None:
    async def handler(job: int) -> None:
        if job < 3:
            raise ValueError(f"user {job} at 0x7f00{job}")
        raise ConnectionError("refused")

    async def main() -> None:
        async with WorkerPool(handler, workers=2, dead_letters=store) as pool:
            await pool.outcomes(range(15))
            found = value_of(await ask(views_of(pool), "/api/pools/0/letters"))
        assert [(group["error_type"], group["count"], len(group["letters"])) for group in found["groups"]] == [
            ("ConnectionError", 12, 10),
            ("ValueError", 3, 3),
        ]
        assert {letter["job"] for letter in found["groups"][1]["letters"]} == {"0", "1", "2"}
        assert (found["stored"], found["read"], found["more"]) == (15, 15, 0)

    asyncio.run(main())


def test_one_letter_a_group_or_all_are_replayed(store: Any) -> None:
    is_broken = True

    async def handler(job: int) -> int:
        if is_broken:
            raise (ValueError if job % 2 else KeyError)(job)
        return job

    async def main() -> None:
        nonlocal is_broken
        async with WorkerPool(handler, workers=2, dead_letters=store) as pool:
            await pool.outcomes(range(6))
            is_broken = False
            views = acting_views_of(pool)
            groups = value_of(await ask(views, "/api/pools/0/letters"))["groups"]
            letter = groups[0]["letters"][0]["key"]
            assert await act(views, "replay", letter=letter) == "Replayed 1 job."
            assert await act(views, "replay", letter=letter) == "Replayed 0 jobs."
            assert await act(views, "replay", group=groups[1]["key"]) == "Replayed 3 jobs."
            assert await act(views, "replay", all=True) == "Replayed 2 jobs."
            assert len(store) == 0
            await pool.join()
            assert pool.stats.succeeded == 6

    asyncio.run(main())


def test_letters_are_discarded_without_running_their_jobs(store: Any) -> None:
    async def main() -> None:
        async with WorkerPool(failing, workers=2, dead_letters=store) as pool:
            await pool.outcomes(range(4))
            views = acting_views_of(pool)
            letter = value_of(await ask(views, "/api/pools/0/letters"))["groups"][0]["letters"][0]["key"]
            assert await act(views, "discard", letter=letter) == "Discarded 1 letter."
            assert len(store) == 3
            assert await act(views, "discard", all=True) == "Discarded 3 letters."
            assert len(store) == 0
            assert pool.stats.submitted == 4

    asyncio.run(main())


def test_pools_that_share_a_store_have_their_own_letters(store: Any) -> None:
    async def main() -> None:
        one = WorkerPool(failing, workers=1, dead_letters=store, name="one")
        two = WorkerPool(failing, workers=1, dead_letters=store, name="two")
        async with one, two:
            await one.outcomes([1, 2])
            await two.outcomes([3])
            views = acting_views_of(one, two)
            groups = value_of(await ask(views, "/api/pools/0/letters"))["groups"]
            assert [letter["job"] for group in groups for letter in group["letters"]] == ["2", "1"]
            assert await act(views, "replay", pool=1, letter=groups[0]["letters"][0]["key"]) == "Replayed 0 jobs."
            assert await act(views, "replay", pool=1, group=groups[0]["key"]) == "Replayed 1 job."
            assert await act(views, "discard", pool=0, all=True) == "Discarded 2 letters."

    asyncio.run(main())


@virtual
async def test_equal_letters_are_replayed_one_at_a_time() -> None:
    letters: DeadLetters[Any] = DeadLetters()
    async with WorkerPool(failing, workers=4, dead_letters=letters) as pool:
        await pool.outcomes([1, 1, 1, 1])
        views = acting_views_of(pool)
        (group,) = value_of(await ask(views, "/api/pools/0/letters"))["groups"]
        assert len({letter["key"] for letter in group["letters"]}) == 4
        assert await act(views, "discard", letter=group["letters"][0]["key"]) == "Discarded 1 letter."
        assert len(letters) == 3


@virtual
async def test_a_replay_into_a_full_pool_ends_and_keeps_the_rest() -> None:
    letters: DeadLetters[Any] = DeadLetters()
    async with WorkerPool(failing, workers=4, dead_letters=letters) as broken:
        await broken.outcomes(range(5))
    async with WorkerPool(sleeper, workers=1, queue_size=1, dead_letters=letters) as pool:
        pool.pause()
        message = await act(acting_views_of(pool), "replay", all=True)
        assert message == "Replayed 1 job. The queue is full: the other letters are kept."
        assert len(letters) == 4
        pool.cancel()


@virtual
async def test_only_the_newest_letters_are_read_and_few_groups_are_shown() -> None:
    letters: DeadLetters[Any] = DeadLetters()

    async def handler(job: int) -> None:
        raise type(f"Error{job % 30:02}".replace("0", "o").replace("1", "i"), (Exception,), {})("no")

    async with WorkerPool(handler, workers=1, dead_letters=letters) as pool:
        await pool.outcomes(range(2100))
        found = value_of(await ask(views_of(pool), "/api/pools/0/letters"))
    assert (found["stored"], found["read"], len(found["groups"]), found["more"]) == (2100, 2000, 20, 10)


@virtual
async def test_letters_of_another_sink_are_not_listed() -> None:
    class Sink:
        def record(self, letter: Any) -> None: ...

    views = acting_views_of(WorkerPool(echo, workers=1, dead_letters=Sink()), WorkerPool(echo, workers=1))
    assert "A sink of the program" in value_of(await ask(views, "/api/pools/0/letters"))["note"]
    assert (await ask(views, "/api/pools/0/replay", method="POST", json_body={"all": True})).status == 400
    assert (await ask(views, "/api/pools/1/letters")).status == 404
    assert (await ask(views, "/api/pools/1/replay", method="POST", json_body={"all": True})).status == 400


def test_a_file_that_cannot_be_read_or_is_too_large_is_reported(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "letters.jsonl"
        views = views_of(WorkerPool(echo, workers=1, dead_letters=DeadLetterFile(path)))
        assert value_of(await ask(views, "/api/pools/0/letters"))["groups"] == []
        with open(path, "wb") as file:
            file.truncate(17 * 2**20)
        views.live.readers[0].letters_have_changed()
        assert "too large" in value_of(await ask(views, "/api/pools/0/letters"))["note"]
        path.unlink()
        path.mkdir()
        views.live.readers[0].letters_have_changed()
        assert (await ask(views, "/api/pools/0/letters")).status == 409

    asyncio.run(main())


# -- Actions -----------------------------------------------------------------------------------------------------------


@virtual
async def test_actions_act() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        views = acting_views_of(pool)
        await act(views, "pause")
        assert pool.is_paused
        await act(views, "resume")
        assert not pool.is_paused
        assert await act(views, "resize", workers=7) == "The number of workers is now 7."
        assert pool.stats.target_workers == 7
        await act(views, "drain")
        assert pool.state == "draining"
        response = await ask(views, "/api/pools/0/resize", method="POST", json_body={"workers": 2})
        assert (response.status, "is closed (or closing)" in value_of(response)["error"]) == (409, True)


@virtual
async def test_a_running_and_a_waiting_job_are_cancelled() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        running, waiting, other = [pool.submit_nowait(9.0) for _ in range(3)]
        await settle()
        views = acting_views_of(pool)
        assert await act(views, "cancel", job=2) == "Job 2 is cancelled."
        assert await act(views, "cancel", job=1) == "Job 1 was asked to stop."
        await settle()
        assert [handle.done() for handle in (running, waiting, other)] == [True, True, False]
        for number in (1, 2, 99):
            assert await act(views, "cancel", job=number) == f"Job {number} has ended already."
        await other
    assert pool.stats.cancelled == 2
    assert await act(acting_views_of(WorkerPool(echo, workers=1)), "cancel", job=1) == "Job 1 has ended already."


@virtual
async def test_bad_arguments_are_refused() -> None:
    async with WorkerPool(echo, workers=1, dead_letters=DeadLetters()) as pool:
        views = acting_views_of(pool)
        bad: list[tuple[str, Any]] = [
            ("resize", {}),
            ("resize", {"workers": 0}),
            ("resize", {"workers": True}),
            ("resize", {"workers": 2.0}),
            ("resize", {"workers": "2"}),
            ("resize", {"workers": 10**6}),
            ("cancel", {"job": None}),
            ("replay", {}),
            ("replay", {"all": False}),
            ("replay", {"all": True, "group": "x"}),
            ("discard", {"letter": 5}),
            ("pause", b"no json"),
            ("pause", b"[]"),
            ("pause", b"[" * 60_000),
            ("pause", b'{"workers":' + b"9" * 6000 + b"}"),
            ("pause", b"{" + b" " * 70_000 + b"}"),
        ]
        for action, body in bad:
            response = await ask(views, f"/api/pools/0/{action}", method="POST", json_body=body)
            assert response.status == 400, (action, body, response.body)
        assert pool.stats.target_workers == 1
        assert not pool.is_paused


@virtual
async def test_actions_are_logged_with_the_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asyncpool")
    async with WorkerPool(echo, workers=1) as pool:
        await act(acting_views_of(pool), "resize", workers=3)
    assert "dashboard: unknown asks pool 'pool' to resize: {'workers': 3}" in caplog.text


@virtual
async def test_what_a_client_sends_is_cut_in_messages_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asyncpool")
    async with WorkerPool(echo, workers=1) as pool:
        message = await act(acting_views_of(pool), "cancel", job=10**4000)
    assert len(message) <= 500
    assert max(len(record.getMessage()) for record in caplog.records) < 200


# -- Journals ----------------------------------------------------------------------------------------------------------


def test_the_progress_of_a_journal_is_shown(tmp_path: Path) -> None:
    async def main() -> None:
        journal: Journal[int] = Journal(tmp_path / "mails.db", key=lambda job: job)
        async with WorkerPool(echo, workers=2) as pool:
            await journal.outcomes(pool, range(7))
            views = views_of(pool, journals=[journal])
            async for event in events(views):
                (shown,) = event["now"][1]
                if shown["done"] is not None:
                    break
        assert (shown["name"], shown["done"], shown["failed"]) == ("mails.db", 7, 0)

    asyncio.run(main())


def test_a_journal_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "mails.db"
        path.write_bytes(b"no database at all" * 100)
        views = views_of(WorkerPool(echo, workers=1), journals=[Journal(path, key=lambda job: job)])
        async for event in events(views):
            (shown,) = event["now"][1]
            if shown["error"]:
                break
        assert "mails.db" in shown["error"]

    asyncio.run(main())
