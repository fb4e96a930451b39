"""A bar of tqdm around a stream: what leaving the loop does. The bars of the package are in tests/progress."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from tqdm.asyncio import tqdm

from asyncpool import WorkerPool
from asyncpool.testing import settle
from tests.helpers import sleeper, virtual


@pytest.fixture(autouse=True)
def _no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of tqdm's: it lives on, and later tests that find a deadlock would wait for what it may yet do."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


def bar(stream: Any, total: int, file: io.StringIO) -> Any:
    return tqdm(aiter(stream), total=total, file=file, miniters=1, mininterval=0)


@virtual
async def test_a_bar_counts_what_a_stream_gives() -> None:
    file = io.StringIO()
    async with WorkerPool(sleeper, workers=2) as pool:
        assert [item async for item in bar(pool.map([1.0] * 10), 10, file)] == [1.0] * 10
    assert "10/10" in file.getvalue()


@pytest.mark.parametrize("error", [None, ValueError("enough")])
def test_leaving_the_loop_over_a_bar_cancels_the_stream(error: Exception | None) -> None:
    @virtual
    async def test() -> None:
        async with WorkerPool(sleeper, workers=2) as pool:
            try:
                async for _ in bar(pool.map([1.0] * 1000), 1000, io.StringIO()):
                    if error is not None:
                        raise error
                    break
            except ValueError:
                pass
            await settle()
            stats = pool.stats
            assert (stats.running, stats.queued) == (0, 0)
            assert stats.cancelled > 0

    test()


@virtual
async def test_a_block_around_the_stream_leaves_nothing_behind_even_if_the_bar_is_kept() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        async with pool.map([1.0] * 1000) as stream:
            kept = bar(stream, 1000, io.StringIO())
            async for _ in kept:
                break
        assert (pool.stats.running, pool.stats.queued) == (0, 0)


@virtual
async def test_a_kept_bar_keeps_no_more_than_a_window_of_jobs_going() -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=3) as pool:
        kept = bar(pool.map([1.0] * 1000), 1000, io.StringIO())
        async for _ in kept:
            break
        await asyncio.sleep(100)
        assert pool.stats.submitted == 1 + 5
        del kept
