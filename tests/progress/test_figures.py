"""The texts of the figures, the pace, the counts of errors, and summaries."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import asyncpool
from asyncpool import Retry, WorkerPool
from asyncpool.progress import PoolSummary, summary, track
from asyncpool.progress.errors import ErrorCounts, error_text, one_line
from asyncpool.progress.figures import Pace, duration_text
from tests.helpers import echo, sleeper, virtual
from tests.progress.tools import Screen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1:00"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (86_399, "23:59:59"),
        (90_061, "1 d 1:01:01"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_pace_is_that_of_the_last_half_minute() -> None:
    pace = Pace(0.0)
    assert pace.rate(0.4, 1000) is None
    assert pace.rate(1.0, 1000) == 1000
    for second in range(2, 100):
        rate = pace.rate(float(second), 1000 + second)
    assert rate == pytest.approx(1.0, rel=0.01)
    assert pace.rate(1000.0, 1099) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("\n \n  two \n three", "two"),
        ("a\tb\x1b[2J", "a\\tb\\x1b[2J"),
        ("x" * 120, "x" * 120),
        ("x" * 121, "x" * 117 + "..."),
        ("\x00" * 100, "\\x00" * 29 + "\\..."),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_errors_are_counted_by_type_and_first_line_and_no_more_than_a_thousand_texts_are_kept() -> None:
    counts = ErrorCounts()
    for number in range(3000):
        counts.count(ValueError(f"no user {number}\nand more"))
    for _ in range(5):
        counts.count(ValueError("no user 7"))
    assert counts.total == 3005
    assert len(counts.by_text) == 1000
    assert counts.by_text["ValueError: no user 7"] == 6
    assert error_text(KeyError()) == "KeyError"


async def fails_often(job: int) -> int:
    await asyncio.sleep(1)
    if job % 4 == 1:
        raise ValueError("odd\nand more")
    if job == 4:
        raise ConnectionError
    return job


@virtual
async def test_a_summary_of_a_tracked_pool() -> None:
    screen = Screen()
    async with WorkerPool(fails_often, workers=2, retry=Retry(attempts=2, backoff=0, on=ConnectionError)) as pool:
        await track(pool.outcomes(range(10)), console=screen.console)
        await asyncio.sleep(4)
    await asyncio.sleep(100)  # a closed pool does not run on
    found = summary(pool)
    assert found.errors == {"ValueError: odd": 3, "ConnectionError": 1}
    assert (found.ended, found.seconds, found.uncounted_errors) == (10, 10.0, 0)
    assert found.rate == 1.0
    assert str(found) == "\n".join(
        [
            "pool: 10 jobs in 10 s, 1.0 per second",
            "  6 succeeded, 4 failed, 0 cancelled",
            "  1 retry",
            "  waiting: p50 2.1 s, p95 5.0 s, p99 5.0 s, max 5.0 s",
            "  running: p50 1.0 s, p95 1.0 s, p99 1.0 s, max 1.0 s",
            "  errors:",
            "    3 x ValueError: odd",
            "    1 x ConnectionError",
        ]
    )


@virtual
async def test_a_summary_states_what_it_does_not_know() -> None:
    async with WorkerPool(fails_often, workers=2) as pool:
        await pool.outcomes(range(6))
        assert summary(pool).errors is None
        assert "errors" not in str(summary(pool))
        await track(pool.outcomes(range(1, 3)), console=Screen().console)
        assert summary(pool).uncounted_errors == 3
        assert str(summary(pool)).endswith(
            "  errors:\n    1 x ValueError: odd\n    3 failed jobs whose errors were not counted"
        )


@virtual
async def test_a_summary_of_a_running_pool_and_of_one_that_was_never_started() -> None:
    pool = WorkerPool(sleeper, workers=1, name="two\nlines")
    assert str(summary(pool)) == "two: 0 jobs in 0.0 s, 0.0 per second\n  0 succeeded, 0 failed, 0 cancelled"
    async with pool:
        await pool.submit(1.0)
        await pool.submit(1.0)
        await asyncio.sleep(0.5)
        assert "\n  2 not ended: 1 queued, 0 delayed, 1 running" in str(summary(pool))


@virtual
async def test_a_summary_of_a_stream_with_a_pool_of_its_own() -> None:
    stream = track(asyncpool.outcomes(fails_often, range(6), workers=6, name="own"), console=Screen().console)
    await stream
    found = summary(stream)
    assert found.stats.name == "own"
    assert found.errors == {"ValueError: odd": 2, "ConnectionError": 1}


@virtual
async def test_errors_of_the_program_replace_those_that_were_counted() -> None:
    async with WorkerPool(fails_often, workers=6) as pool:
        await track(pool.outcomes(range(6)), console=Screen().console)
    counter = Counter({f"kind {n}\n": n for n in range(1, 13)})
    lines = str(summary(pool, errors=counter)).splitlines()
    assert lines[-11:] == [*(f"    {n:2} x kind {n}" for n in range(12, 2, -1)), "    and 2 others"]
    assert summary(pool, errors={}).errors == {}


@virtual
async def test_errors_with_the_same_first_line_are_counted_together() -> None:
    async with WorkerPool(fails_often, workers=6) as pool:
        await pool.outcomes(range(6))
        found = summary(pool, errors={"E: a\nb": 1, "E: c": 1, "E: a\nd": 1})
        assert found.errors == {"E: a": 2, "E: c": 1}
        assert found.uncounted_errors == 0


@virtual
async def test_arguments_of_a_summary_are_checked() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        wrong: list[tuple[Any, Any, str]] = [
            (3, None, "pool must be a WorkerPool, got 3"),
            (pool, [1], r"errors must map texts to how often they occurred, got \[1\]"),
            (pool, {1: 1}, "errors must map texts to how often they occurred, got the key 1"),
            (pool, {"a": "1"}, "a count of errors must be an int, got '1'"),
        ]
        for what, errors, message in wrong:
            with pytest.raises(TypeError, match=message):
                summary(what, errors=errors)
        with pytest.raises(ValueError, match="a count of errors must be >= 0, got -1"):
            summary(pool, errors={"a": -1})
        assert isinstance(summary(pool), PoolSummary)
