"""The job queue as an `asyncio.Queue`: what it keeps of that contract, and each line of what it does not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from asyncpool import PoolClosed, Retry, WorkerPool
from asyncpool._core.job import Job
from asyncpool._core.orders import ComebackFirst, Fifo, Order
from asyncpool._core.pauses import Pauses
from asyncpool._core.priorities import ByPriority
from asyncpool._core.queue import JobQueue
from asyncpool._core.wakeups import Producers, Wakeups
from asyncpool.events import Observers
from asyncpool.testing import settle
from tests.core.tools import cancelled, make_job, make_ledger, make_state
from tests.helpers import cancel_soon, fuzzed, now, sleeper, virtual

since_3_13 = pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio.Queue.shutdown() is new in 3.13")


class Bench:
    """A queue with what it asks: a ledger, a pause, and idle workers. All workers are busy, unless some are idle."""

    def __init__(
        self,
        size: int | None = 2,
        *,
        make: Callable[[], Order] = Fifo,
        workers: int = 1,
        idle: int = 0,
        max_delayed: int = 10,
    ) -> None:
        state = make_state()
        self.ledger = make_ledger(state)
        self.pauses = Pauses(state, Observers(()), Wakeups(state, self.ledger, Producers()))
        self.idle: list[object] = [object()] * idle
        self.queue = JobQueue(
            make(),
            queue_size=size,
            max_delayed=max_delayed,
            idle=self.idle,
            ledger=self.ledger,
            pauses=self.pauses,
            drained=lambda: asyncio.sleep(0),
        )
        self.queue.set_bounds(workers, workers)

    def fill(self, jobs: int) -> list[Job]:
        """Queue jobs from number 1 on, as the pool does."""
        queued = [make_job(number) for number in range(1, jobs + 1)]
        for job in queued:
            self.queue.append(job)
        return queued


def make_queue(size: int | None = 2, **options: Any) -> JobQueue:
    return Bench(size, **options).queue


def settle_job(queue: JobQueue, job: Job) -> None:
    """Settle a job that is queued, as a cancellation does."""
    job.outcome = cancelled(job)
    queue.order.discard_settled()


# -- What is inherited


def test_it_is_an_asyncio_queue() -> None:
    assert isinstance(make_queue(), asyncio.Queue)


def test_qsize_and_empty_follow_what_is_put_and_taken() -> None:
    queue = make_queue()
    assert (queue.qsize(), queue.empty()) == (0, True)
    queue.put_nowait(make_job())
    assert (queue.qsize(), queue.empty()) == (1, False)
    queue.get_nowait()
    assert (queue.qsize(), queue.empty()) == (0, True)


def test_qsize_and_empty_do_not_count_a_job_that_was_settled_while_queued() -> None:
    bench = Bench()
    first, second = bench.fill(2)
    settle_job(bench.queue, first)
    assert (bench.queue.qsize(), bench.queue.empty()) == (1, False)
    settle_job(bench.queue, second)
    assert (bench.queue.qsize(), bench.queue.empty()) == (0, True)


def test_the_repr_names_the_bound_and_the_live_jobs() -> None:
    bench = Bench(size=7)
    settle_job(bench.queue, bench.fill(2)[0])
    assert repr(bench.queue).startswith("<JobQueue at 0x")
    assert "maxsize=7" in repr(bench.queue)
    assert "[<Job 2 queued: 2>]" in repr(bench.queue)


def test_jobs_leave_in_the_order_in_which_they_were_put() -> None:
    queue, jobs = make_queue(), [make_job(1), make_job(2)]
    for job in jobs:
        queue.put_nowait(job)
    assert [queue.get_nowait(), queue.get_nowait()] == jobs


def test_jobs_leave_in_the_order_of_the_storage() -> None:
    queue = make_queue(make=lambda: ByPriority(lambda input: input))
    queue.put_nowait(make_job(1, "b"))
    queue.put_nowait(make_job(2, "a"))
    assert [queue.get_nowait().input, queue.get_nowait().input] == ["a", "b"]


def test_get_nowait_of_an_empty_queue_raises_queue_empty() -> None:
    with pytest.raises(asyncio.QueueEmpty):
        make_queue().get_nowait()


def test_get_nowait_of_settled_jobs_alone_raises_queue_empty() -> None:
    bench = Bench()
    for job in bench.fill(2):
        settle_job(bench.queue, job)
    with pytest.raises(asyncio.QueueEmpty):
        bench.queue.get_nowait()


def test_get_nowait_skips_settled_jobs() -> None:
    bench = Bench()
    first, second = bench.fill(2)
    settle_job(bench.queue, first)
    assert bench.queue.get_nowait() is second


def test_put_nowait_into_a_full_queue_raises_queue_full_and_puts_nothing() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    with pytest.raises(asyncio.QueueFull):
        bench.queue.put_nowait(make_job(2))
    assert bench.queue.qsize() == 1


@virtual
async def test_get_of_a_queue_with_jobs_returns_the_first_at_once() -> None:
    bench = Bench()
    first, _ = bench.fill(2)
    with pytest.raises(StopIteration) as returned:
        bench.queue.get().send(None)
    assert returned.value.value is first


def test_a_job_that_is_settled_while_queued_frees_its_place() -> None:
    bench = Bench(size=1)
    [job] = bench.fill(1)
    assert bench.queue.full()
    settle_job(bench.queue, job)
    assert not bench.queue.full()


# -- full() is stricter, and put() is fair


@virtual
async def test_the_queue_is_full_while_others_wait_for_room_that_was_just_made() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    waiter = asyncio.create_task(bench.queue.put(make_job(2)))
    await settle()
    bench.queue.get_nowait()
    assert bench.queue.empty()
    assert bench.queue.full(), "the place is promised"
    with pytest.raises(asyncio.QueueFull):
        bench.queue.put_nowait(make_job(3))
    await waiter
    assert bench.queue.get_nowait().number == 2


@fuzzed
async def test_put_is_first_come_first_served() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    waiters = []
    for number in range(2, 6):
        waiters.append(asyncio.create_task(bench.queue.put(make_job(number))))
        await settle()
    taken = []
    for _ in range(5):
        taken.append(bench.queue.get_nowait().number)
        await settle()
    assert taken == [1, 2, 3, 4, 5]
    assert all(waiter.done() for waiter in waiters)


@virtual
async def test_put_with_room_does_not_wait() -> None:
    queue = make_queue()
    with pytest.raises(StopIteration):
        queue.put(make_job()).send(None)
    assert queue.qsize() == 1


@fuzzed
async def test_a_cancelled_put_puts_nothing_and_leaves_the_line() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    waiter = asyncio.create_task(bench.queue.put(make_job(2)))
    await settle()
    waiter.cancel()
    await asyncio.wait([waiter])
    assert not bench.queue.line.waiting
    assert bench.queue.get_nowait().number == 1
    assert not bench.queue.full()


@fuzzed
async def test_a_place_granted_to_a_put_that_is_cancelled_goes_to_the_next() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    first = asyncio.create_task(bench.queue.put(make_job(2)))
    await settle()
    second = asyncio.create_task(bench.queue.put(make_job(3)))
    await settle()
    bench.queue.get_nowait()  # grants the place to the first, which has not resumed yet
    first.cancel()
    await second
    assert first.cancelled()
    assert bench.queue.get_nowait().number == 3


@fuzzed
async def test_a_place_granted_to_the_last_put_that_is_cancelled_is_free_again() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    waiter = asyncio.create_task(bench.queue.put(make_job(2)))
    await settle()
    bench.queue.get_nowait()
    waiter.cancel()
    await asyncio.wait([waiter])
    assert not bench.queue.full()
    bench.queue.put_nowait(make_job(3))


@fuzzed
async def test_a_put_that_its_order_refuses_gives_the_error_to_its_caller() -> None:
    queue = make_queue(make=lambda: ByPriority(lambda input: input))
    await queue.put(make_job(1, 5))
    with pytest.raises(TypeError, match="not supported between"):
        await queue.put(make_job(2, "five"))
    assert queue.qsize() == 1


# -- maxsize


def test_maxsize_is_the_bound_on_queued_jobs() -> None:
    assert make_queue(5).maxsize == 5


def test_maxsize_0_is_no_room_and_not_infinite() -> None:
    queue = make_queue(0)
    assert queue.maxsize == 0
    assert queue.full()
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(make_job())


def test_maxsize_0_has_room_for_what_idle_workers_take() -> None:
    bench = Bench(0, workers=2, idle=2)
    bench.fill(1)
    assert bench.queue.room() == 1


def test_the_bound_is_ten_jobs_per_worker_unless_it_is_given() -> None:
    bench = Bench(None, workers=3)
    assert bench.queue.maxsize == 30
    bench.queue.set_bounds(3, 5)
    assert bench.queue.maxsize == 50


def test_a_paused_pool_has_no_room_for_its_idle_workers() -> None:
    bench = Bench(1, idle=3)
    bench.pauses.is_paused = True
    assert bench.queue.room() == 1


def test_nothing_is_accepted_while_too_many_jobs_are_delayed() -> None:
    bench = Bench(5, idle=3, max_delayed=2)
    bench.ledger.delayed = 2
    assert bench.queue.has_too_many_delayed
    assert bench.queue.room() == 0
    assert bench.queue.full()


def test_a_pool_that_sleeps_without_workers_has_room_for_the_first_job() -> None:
    bench = Bench(0, workers=0)
    assert bench.queue.room() == 1
    bench.fill(1)
    assert bench.queue.room() == 0


@pytest.mark.parametrize(("size", "workers", "window"), [(0, 0, 1), (0, 3, 3), (4, 3, 7), (None, 3, 33)])
def test_the_window_of_a_stream_is_what_the_queue_and_the_workers_can_hold(
    size: int | None, workers: int, window: int
) -> None:
    assert make_queue(size, workers=workers).window == window


@virtual
async def test_jobs_and_submitters_that_wait_are_a_backlog() -> None:
    bench = Bench(0)
    assert bench.queue.backlog == 0
    waiter = asyncio.create_task(bench.queue.put(make_job()))
    await settle()
    assert bench.queue.backlog == 1
    bench.idle.append(object())
    bench.queue.line.wake_next()
    await waiter
    assert bench.queue.backlog == 1
    bench.queue.get_nowait()
    assert bench.queue.backlog == 0


# -- join()


@virtual
async def test_join_waits_for_running_jobs_too() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        await pool.submit(3)
        await pool.submit(5)
        await settle()
        assert pool._parts.queue.empty()
        await pool._parts.queue.join()
        assert now() == 5


@virtual
async def test_join_waits_for_delayed_jobs_too() -> None:
    async def fails(job: int) -> None:
        raise OSError

    async with WorkerPool(fails, workers=1, retry=Retry(attempts=2, backoff=3.0, jitter=False)) as pool:
        handle = await pool.submit(1)
        await settle()
        assert (pool.stats.queued, pool.stats.running, pool.stats.delayed) == (0, 0, 1)
        await pool._parts.queue.join()
        assert now() == 3
        assert handle.done()
        await handle.outcome()


@virtual
async def test_join_returns_at_once_when_nothing_was_accepted() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        with pytest.raises(StopIteration):
            pool._parts.queue.join().send(None)


@fuzzed
async def test_a_cancelled_join_leaves_nobody_waiting() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.submit(5)
        joining = asyncio.create_task(pool._parts.queue.join())
        cancel_soon(joining, 1)
        await asyncio.wait([joining])
        assert now() == 1
        assert not pool._parts.wakeups._watchers


# -- task_done()


@virtual
async def test_task_done_raises_for_jobs_of_the_pool() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.run(1)
        await pool.submit(1)
        with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
            pool._parts.queue.task_done()


@virtual
async def test_task_done_raises_after_put() -> None:
    queue = make_queue()
    await queue.put(make_job())
    with pytest.raises(ValueError, match="called too many times"):
        queue.task_done()


def test_task_done_counts_what_put_nowait_has_put() -> None:
    queue = make_queue()
    queue.put_nowait(make_job())
    queue.get_nowait()
    queue.task_done()
    with pytest.raises(ValueError, match="called too many times"):
        queue.task_done()


# -- get()


@virtual
async def test_get_is_not_woken_by_a_job_that_is_appended() -> None:
    queue = make_queue()
    getter = asyncio.create_task(queue.get())
    await settle()
    queue.append(make_job())
    await settle()
    assert not getter.done()
    getter.cancel()
    await asyncio.wait([getter])


@virtual
async def test_get_is_not_woken_by_a_job_that_a_pool_accepts_and_runs() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        getter = asyncio.create_task(pool._parts.queue.get())
        await settle()
        assert await pool.run(1) == 1
        assert not getter.done()
        getter.cancel()
        await asyncio.wait([getter])


@virtual
async def test_get_is_woken_by_put_nowait() -> None:
    queue, job = make_queue(), make_job()
    getter = asyncio.create_task(queue.get())
    await settle()
    queue.put_nowait(job)
    assert await getter is job


@virtual
async def test_a_cancelled_get_is_nowhere_in_the_queue() -> None:
    queue: Any = make_queue()
    getter = asyncio.create_task(queue.get())
    await settle()
    assert len(queue._getters) == 1
    getter.cancel()
    await asyncio.wait([getter])
    assert not queue._getters


# -- append() and popleft(), the shortcut of the hot path


def state_of(queue: Any) -> dict[str, Any]:
    """Return all that a queue knows, in a form that compares; bound methods of its own order are left out."""
    fields = {name: value for name, value in vars(queue).items() if name.startswith("_") or name == "window"}
    fields["_queue"] = list(fields["_queue"])
    fields["_finished"] = fields["_finished"].is_set()
    return fields


@pytest.mark.parametrize("make", [Fifo, ComebackFirst, lambda: ByPriority(lambda input: input)])
def test_append_leaves_the_queue_as_put_nowait_does_but_for_the_unfinished_count(make: Callable[[], Order]) -> None:
    bench, job = Bench(make=make), make_job()
    before = state_of(bench.queue)
    bench.queue.put_nowait(job)
    put = state_of(bench.queue)
    assert bench.queue.get_nowait() is job
    bench.queue.task_done()
    assert state_of(bench.queue) == before
    bench.queue.append(job)
    appended = state_of(bench.queue)
    different = {name for name in put if put[name] != appended[name]}
    assert different == {"_unfinished_tasks", "_finished"}
    assert (put["_unfinished_tasks"], appended["_unfinished_tasks"]) == (1, 0)


def test_popleft_takes_what_get_nowait_would_take() -> None:
    bench = Bench()
    first, second = bench.fill(2)
    assert (bench.queue.popleft(), bench.queue.get_nowait()) == (first, second)


# -- put_back()


def test_a_job_that_is_put_back_leaves_before_fresh_ones_and_is_no_longer_delayed() -> None:
    bench = Bench(make=ComebackFirst)
    bench.fill(1)
    job = make_job(7)
    bench.ledger.delay(job)
    bench.queue.put_back(job)
    assert bench.ledger.delayed == 0
    assert bench.queue.get_nowait() is job


def test_a_job_is_put_back_past_the_bound() -> None:
    bench = Bench(1, make=ComebackFirst)
    bench.fill(1)
    job = make_job(7)
    bench.ledger.delay(job)
    bench.queue.put_back(job)
    assert bench.queue.qsize() == 2
    assert bench.queue.full()


# -- shutdown(), and what the pool does instead


@since_3_13
@virtual
async def test_shutdown_leaves_put_alone() -> None:
    queue: Any = make_queue()
    queue.shutdown()
    await queue.put(make_job())
    assert queue.qsize() == 1


@since_3_13
@virtual
async def test_shutdown_ends_get_and_put_nowait_as_in_asyncio() -> None:
    queue: Any = make_queue()
    getter = asyncio.create_task(queue.get())
    await settle()
    queue.shutdown()
    with pytest.raises(asyncio.QueueShutDown):  # type: ignore[attr-defined]  # from 3.13
        await getter
    with pytest.raises(asyncio.QueueShutDown):  # type: ignore[attr-defined]  # from 3.13
        queue.put_nowait(make_job())


@since_3_13
def test_an_immediate_shutdown_drops_what_is_queued() -> None:
    queue: Any = make_queue()
    queue.put_nowait(make_job())
    queue.shutdown(immediate=True)
    assert queue.empty()


@fuzzed
async def test_a_closed_line_turns_put_away_with_an_error_that_names_the_pool() -> None:
    bench = Bench(size=1)
    bench.fill(1)
    waiter = asyncio.create_task(bench.queue.put(make_job(2)))
    await settle()
    bench.queue.line.close(lambda: PoolClosed("pool 'x' is closed"))
    for put in (waiter, bench.queue.put(make_job(3))):
        with pytest.raises(PoolClosed, match="pool 'x' is closed"):
            await put
    assert bench.queue.qsize() == 1


# -- notify_next()


def test_who_is_notified_hears_of_the_next_job_only() -> None:
    queue, heard = make_queue(), list[int]()
    queue.notify_next(lambda: heard.append(queue.qsize()))
    queue.append(make_job(1))
    queue.append(make_job(2))
    assert heard == [1], "called once, after the job was in"


def test_who_is_notified_between_two_numbers_hears_of_the_first_job_between_them() -> None:
    queue, heard = make_queue(), list[int]()
    queue.notify_next(lambda: heard.append(queue.qsize()), least=3)
    for number in range(1, 6):
        queue.append(make_job(number))
    assert heard == [3]
    assert queue.append == queue.order.append
    queue.notify_next(lambda: heard.append(queue.qsize()), most=3)
    queue.append(make_job(6))
    for _ in range(5):
        queue.get_nowait()
    queue.append(make_job(7))
    assert heard == [3, 2]


def test_a_job_that_is_put_is_news_too() -> None:
    queue, heard = make_queue(), list[int]()
    queue.notify_next(lambda: heard.append(queue.qsize()))
    queue.put_nowait(make_job())
    assert heard == [1]


def test_nobody_is_notified_after_it_was_taken_back() -> None:
    queue, heard = make_queue(), list[int]()
    queue.notify_next(lambda: heard.append(1))
    queue.ignore_next()
    queue.append(make_job())
    assert heard == []


def test_the_container_appends_by_itself_again_after_the_news() -> None:
    queue = make_queue()
    queue.notify_next(lambda: None)
    assert queue.append != queue.order.append
    queue.append(make_job())
    assert queue.append == queue.order.append


def test_an_order_that_refuses_the_job_leaves_the_notice_armed() -> None:
    queue, heard = make_queue(make=lambda: ByPriority(lambda input: input)), list[int]()
    queue._put(make_job(1, 5))
    queue.notify_next(lambda: heard.append(queue.qsize()))
    with pytest.raises(TypeError):
        queue._put(make_job(2, "five"))
    assert heard == []
    queue._put(make_job(3, 6))
    assert heard == [2]


def test_who_is_notified_can_ask_for_the_next_news_at_once() -> None:
    queue, heard = make_queue(), list[int]()

    def arrived() -> None:
        heard.append(queue.qsize())
        queue.notify_next(arrived)

    queue.notify_next(arrived)
    queue.append(make_job(1))
    queue.append(make_job(2))
    assert heard == [1, 2]
