"""The beginning and the end of a pool, where the loop, its task factory or an observer does something unusual."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import asyncpool
from asyncpool import Retry, StreamClosed, WorkerPool, WrongLoop
from asyncpool.events import Event, JobStarted
from asyncpool.testing import settle
from tests.helpers import echo, now, virtual


@asynccontextmanager
async def connection() -> AsyncIterator[str]:
    yield "connection"


async def use(job: int, resource: str) -> int:
    return job


@pytest.mark.parametrize("has_resource", [False, True])
def test_an_open_pool_that_is_collected_after_its_loop_raises_nothing(has_resource: bool) -> None:
    async def main() -> None:
        pool: Any = WorkerPool(use, workers=1, resource=connection) if has_resource else WorkerPool(echo, workers=1)
        await pool.start()
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # it reports the tasks that were pending, as for any program
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()  # what is raised now is a warning, and so an error


@virtual
async def test_a_close_without_grace_leaves_no_supervisor_behind_though_a_resource_takes_its_time() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0.5)

    pool = WorkerPool(use, workers=1, resource=slow)
    await pool.start()
    await pool.close(grace=0.0)
    assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


def test_the_end_of_asyncio_run_cancels_a_resource_that_was_abandoned_only_once() -> None:
    cancels: list[str] = []

    class Stubborn:
        async def __aenter__(self) -> int:
            return 1

        async def __aexit__(self, *exc: object) -> None:
            while len(cancels) < 2:  # ours, when the pool closes, and that of asyncio.run
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    cancels.append("cancelled")
            await asyncio.sleep(0.01)
            cancels.append("flushed")

    async def main() -> None:
        pool = WorkerPool(use, workers=1, resource=Stubborn)
        await pool.start()
        await pool.close(grace=0.0)

    asyncio.run(main())
    assert cancels == ["cancelled", "cancelled", "flushed"]


@virtual
async def test_a_task_factory_that_raises_for_a_resource_costs_one_worker_and_no_time() -> None:
    loop = asyncio.get_running_loop()
    raises = False

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        if raises and "_guarded" in coro.__qualname__:
            raise RuntimeError("no more tasks")
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)  # type: ignore[arg-type]  # it passes on whatever options this Python has
    pool = WorkerPool(use, workers=1, resource=connection)
    await pool.start()
    raises = True
    with pytest.raises(RuntimeError, match="no more tasks"):
        pool.resize(2)
    raises = False
    assert await pool.run(1) == 1
    began = now()
    await pool.close()
    assert now() == began
    loop.set_task_factory(None)


@pytest.mark.parametrize("how", ["cancel", "aclose"])
@virtual
async def test_a_oneshot_stream_that_is_ended_before_it_pulls_tells_its_reader_so(how: str) -> None:
    stream = asyncpool.map(echo, range(5), workers=2)
    reader = asyncio.create_task(anext(aiter(stream)))
    await asyncio.sleep(0)
    if how == "cancel":
        stream.cancel()
    else:
        await stream.aclose()
    with pytest.raises(StreamClosed):
        await reader
    await settle()


@virtual
async def test_an_observer_may_drain_the_pool_with_the_first_job_that_starts() -> None:
    class Sink:
        def record(self, letter: Any) -> None: ...
        def pool_opened(self, name: str) -> None:
            handles.append(pool.submit_nowait(1))

        def pool_closed(self, name: str) -> None: ...

    def drain(event: Event) -> None:
        if isinstance(event, JobStarted):
            pool.drain()

    handles: list[Any] = []
    pool = WorkerPool(echo, workers=1, dead_letters=Sink(), observers=[drain])
    await pool.start()
    report = await pool.close()
    assert report.unfinished == ()
    assert await handles[0] == 1


def test_a_pool_leaves_the_random_numbers_of_the_program_alone() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    WorkerPool(echo, workers=1, retry=Retry(attempts=2))
    assert random.random() == expected


@virtual
async def test_a_live_stream_in_the_traceback_of_a_shared_error_is_left_alone() -> None:
    class Client:
        lost: ConnectionError | None = None

        def request(self, job: str) -> Any:
            if job == "slow":
                return self.slow()
            future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            if self.lost is None:
                asyncio.get_running_loop().call_later(1, self.lose, future)
            else:
                future.set_exception(self.lost)  # the one object that it keeps
            return future

        def lose(self, future: asyncio.Future[str]) -> None:
            self.lost = ConnectionError("the connection is lost")
            future.set_exception(self.lost)

        async def slow(self) -> str:
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(2)
            return "never"

    async with WorkerPool(Client().request, workers=3) as pool:
        reader = asyncio.ensure_future(pool.map(["a", "slow"]))
        await asyncio.sleep(2)  # the reader has got the error, and waits for the slow job to end
        handle = await pool.submit("b")
        assert isinstance(await handle.outcome(), asyncpool.Failed)
        with pytest.raises(ConnectionError):
            await reader


@virtual
async def test_streams_and_groups_are_ended_on_the_loop_of_their_pool() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        group, stream = pool.group(), pool.map([1])
        raised: list[BaseException] = []

        def elsewhere() -> None:
            for call in (group.cancel, group.close_intake, stream.cancel):
                try:
                    call()
                except WrongLoop as error:
                    raised.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(raised) == 3
        assert await stream == [1]
        group.close_intake()


def test_a_wrong_option_of_a_oneshot_function_is_named_with_that_function() -> None:
    with pytest.raises(TypeError, match=r"^map\(\) got an unexpected keyword argument 'worker'$"):
        asyncpool.map(echo, [1], workers=1, worker=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"outcomes\(\) missing 1 required keyword-only argument: 'workers'"):
        asyncpool.outcomes(echo, [1])  # type: ignore[call-overload]
