"""`track`: what it counts, what it shows where, and that the stream stays what it is."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from typing import Any

import pytest
from rich.console import Console

import asyncpool
from asyncpool import DeadlineExceeded, Failed, Journal, PoolClosed, Retry, StreamClosed, WorkerPool
from asyncpool.progress import track
from asyncpool.progress.displays import BarDisplay, LineDisplay, _screens, open_display
from asyncpool.testing import settle
from tests.engines.memory import InMemory
from tests.helpers import Source, echo, fuzzed, later, now, sleeper, virtual
from tests.progress.tools import Broken, Screen, draws


async def fails_on_3(job: int) -> int:
    await asyncio.sleep(1)
    if job == 3:
        raise ValueError("three\nis too many")
    return job


@virtual
async def test_a_line_every_five_seconds_and_one_at_the_end() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=2, name="slow") as pool:
        async for _ in track(pool.map([1.0] * 24), console=screen.console):
            pass
    assert screen.lines == [
        "slow: 8/24 (33%), 1.6/s, 10 s left, 2/2 running, 14 queued",
        "slow: 18/24 (75%), 1.8/s, 3.3 s left, 2/2 running, 4 queued",
        "slow: 24 done in 12 s, 2.0/s",
    ]


@virtual
async def test_a_pool_with_an_engine_shows_its_processes() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=2, engine=InMemory(2)) as pool:
        await track(pool.map([1.0] * 11), console=screen.console)
    assert "2/2 running, 2 processes, " in screen.lines[0]


@virtual
async def test_an_interval_of_its_own_and_another_name() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        await track(pool.map([2.0] * 2), interval=1.5, name="two\nlines", console=screen.console)
    assert [line.split(",")[0] for line in screen.lines] == ["two: 0/2 (0%)", "two: 1/2 (50%)", "two: 2 done in 4.0 s"]


@virtual
async def test_lines_come_less_often_while_nothing_changes() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        await track(pool.map([3600.0]), console=screen.console)
    assert 60 <= len(screen.lines) <= 64
    assert screen.lines[-1].startswith("pool: 1 done in 1:00:00")


@virtual
async def test_failures_are_counted_apart() -> None:
    screen = Screen()
    async with WorkerPool(fails_on_3, workers=5, retry=Retry(attempts=2, backoff=0)) as pool:
        outcomes = await track(pool.outcomes(range(5)), console=screen.console)
    assert sum(isinstance(outcome, Failed) for outcome in outcomes) == 1
    assert screen.lines == ["pool: 5 done in 2.0 s, 2.5/s, 1 failed, 1 retry"]


@virtual
async def test_map_raises_its_failure_unchanged() -> None:
    screen = Screen()
    async with WorkerPool(fails_on_3, workers=1) as pool:
        read = []
        with pytest.raises(ValueError, match="is too many") as caught:
            async for item in track(pool.map(range(9)), console=screen.console):
                read.append(item)
        assert read == [0, 1, 2]
        assert caught.value.__cause__ is caught.value.__context__ is None
    assert screen.lines == ["pool: stopped at 4/9 (44%) in 4.0 s, 1.0/s, 1 failed"]


@virtual
async def test_it_is_the_same_stream() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        stream = pool.map([1, 2])
        assert track(stream, console=Screen().console) is stream
        assert await stream == [1, 2]
        group = pool.group()
        assert track(group) is group


@virtual
async def test_a_group_whose_total_is_given() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=2) as pool, pool.group() as group:
        reading = track(group, total=4, console=screen.console, interval=1.5)

        async def read() -> list[Any]:
            return [outcome async for outcome in reading]

        task = asyncio.create_task(read())
        for _ in range(4):
            await group.submit(1.0)
        group.close_intake()
        assert len(await task) == 4
    assert [line.split(",")[0] for line in screen.lines] == ["pool: 2/4 (50%)", "pool: 4 done in 2.0 s"]


@virtual
async def test_a_group_that_has_outcomes_before_its_reader_comes_is_counted_from_the_first() -> None:
    screen = Screen()
    async with WorkerPool(echo, workers=2) as pool, pool.group() as group:
        await group.submit(1)
        await settle()
        group.close_intake()
        assert len([outcome async for outcome in track(group, console=screen.console)]) == 1
    assert screen.lines[0].startswith("pool: 1 done in 0.0 s")


@pytest.mark.parametrize("what", [asyncpool.map, asyncpool.outcomes])
def test_the_one_line_functions(what: Any) -> None:
    @virtual
    async def test() -> None:
        screen = Screen()
        assert len(await track(what(sleeper, [1.0] * 6, workers=2), console=screen.console)) == 6
        assert screen.lines == [f"{what.__name__}: 6 done in 3.0 s, 2.0/s"]

    test()


def test_jobs_that_a_journal_has_passed_over_are_done_but_do_not_count_for_the_rate(tmp_path: Any) -> None:
    async def main() -> None:
        journal = Journal[float](tmp_path / "jobs.db", key=str, values=True)
        async with WorkerPool(echo, workers=2) as pool:
            await journal.outcomes(pool, range(30))
            for earlier in (False, True):
                screen = Screen()
                stream = journal.outcomes(pool, range(100 * (1 + earlier)), earlier=earlier)
                read = len(await track(stream, console=screen.console))
                assert read == (200 if earlier else 70)
                total, before = (200, 100) if earlier else (100, 30)
                assert screen.lines[-1].startswith(f"pool: {total} done in ")
                assert screen.lines[-1].endswith(f", {before} done before")

    asyncio.run(main())


@virtual
async def test_a_key_that_repeats_is_done_too() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=2) as pool:
        stream = pool.outcomes([1.0] * 3)
        channel: Any = stream._channel  # what a journal does, without its thread
        channel.passed_over += 2
        await track(stream, total=5, console=screen.console)
    assert screen.lines == ["pool: 5 done in 2.0 s, 1.5/s, 2 done before"]


@virtual
async def test_failures_that_a_map_leaves_out_are_done() -> None:
    screen = Screen()
    async with WorkerPool(fails_on_3, workers=5) as pool:
        stream = track(pool.map(range(5), max_failures=1), console=screen.console)
        assert await stream == [0, 1, 2, 4]
    assert screen.lines == ["pool: 5 done in 1.0 s, 5.0/s, 1 failed"]


@virtual
async def test_a_run_that_is_stopped_raises_its_error_and_shows_where_it_stopped() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        with pytest.raises(DeadlineExceeded):
            await track(pool.outcomes([1.0] * 20, deadline=2.5), console=screen.console)
    [line] = screen.lines
    assert line.startswith("pool: stopped at ")
    assert line.endswith(" cancelled")


# -- The total --


@virtual
async def test_without_a_length_there_is_no_total() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        await track(pool.map(later(*[1.0] * 7)), console=screen.console)
    assert screen.lines == ["pool: 4, 0.8/s, 5.0 s, 1/1 running, 2 queued", "pool: 7 done in 7.0 s, 1.0/s"]


@virtual
async def test_a_total_that_is_too_small_is_unknown_from_then_on() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        await track(pool.map([1.0] * 12), total=5, console=screen.console)
    shown = [line.split(",")[0] for line in screen.lines]
    assert shown == ["pool: 4/5 (80%)", "pool: 9", "pool: 12 done in 12 s"]


@virtual
async def test_a_total_that_is_too_large_is_shown_at_the_end() -> None:
    screen = Screen()
    async with WorkerPool(echo, workers=1) as pool:
        await track(pool.map([1] * 12), total=50, console=screen.console)
    assert screen.lines[0].startswith("pool: 12/50 (24%) done in 0.0 s")


@virtual
async def test_a_total_beyond_all_floats_has_no_time_left() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        await track(pool.map([1.0] * 7), total=10**400, console=screen.console)
    first, last = screen.lines
    assert first.endswith("000 (0%), 0.8/s, 5.0 s, 1/1 running, 2 queued")
    assert last.startswith("pool: 7/10,000")


@virtual
async def test_zero_jobs() -> None:
    for is_terminal in (False, True):
        screen = Screen(is_terminal=is_terminal)
        async with WorkerPool(echo, workers=1) as pool:
            assert await track(pool.map([]), console=screen.console) == []
        assert "0 done in 0.0 s" in screen.text if not is_terminal else screen.is_restored


class WrongLength:
    def __iter__(self) -> Any:
        return iter([1, 2])

    def __len__(self) -> int:
        raise RuntimeError("no length")


@virtual
async def test_a_source_whose_length_raises_has_none() -> None:
    screen = Screen()
    async with WorkerPool(echo, workers=1) as pool:
        assert await track(pool.map(WrongLength()), console=screen.console) == [1, 2]
    assert screen.lines[0].startswith("pool: 2 done")


# -- Leaving --


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("how", ["break", "error", "cancel", "aclose", "source"])
def test_the_display_ends_with_the_stream(how: str, is_terminal: bool) -> None:
    @fuzzed
    async def test() -> None:
        screen = Screen(is_terminal=is_terminal)
        source = Source([1.0] * 20)

        def broken() -> Any:
            yield 1.0
            raise LookupError("no more")

        async with WorkerPool(sleeper, workers=2) as pool:
            stream = track(pool.map(broken() if how == "source" else source.sync()), console=screen.console)

            async def read() -> None:
                async for _ in stream:
                    if how == "break":
                        break
                    if how == "error":
                        raise KeyError("mine")
                    if how == "aclose":
                        await stream.aclose()
                        break

            task = asyncio.create_task(read())
            if how == "cancel":
                await asyncio.sleep(1.5)
                task.cancel()
            await asyncio.wait([task])
            expected = {"error": KeyError, "source": LookupError}
            if how == "cancel":
                assert task.cancelled()
            elif how in expected:
                assert type(task.exception()) is expected[how]
            else:
                assert task.exception() is None
            # The display has ended by now, and not only in the next iteration of the loop.
            assert "stopped at" in screen.text if not is_terminal else screen.is_restored
            assert not _screens
            await settle()
            assert (pool.stats.running, pool.stats.queued) == (0, 0)
            assert source.closed or how == "source"

    test()


@virtual
async def test_async_with_closes_the_stream_underneath() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=2) as pool:
        async with track(pool.outcomes([1.0] * 9), console=screen.console) as stream:
            async for _ in stream:
                break
        assert pool.stats.running == 0
    assert screen.lines[0].startswith("pool: stopped at 1/9 (11%) in 1.0 s")


@virtual
async def test_a_cancelled_anext_loses_nothing_and_the_display_goes_on() -> None:
    screen = Screen(is_terminal=True)
    async with WorkerPool(sleeper, workers=1) as pool:
        cursor: Any = aiter(track(pool.map([1.0, 2.0, 3.0]), console=screen.console))
        read = []
        while True:
            try:
                async with asyncio.timeout(0.7):
                    read.append(await anext(cursor))
            except TimeoutError:
                assert not screen.is_restored
            except StopAsyncIteration:
                break
    assert read == [1.0, 2.0, 3.0]
    assert screen.is_restored


@virtual
async def test_a_pool_that_closes_ends_the_display_with_its_error() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=1) as pool:
        stream = track(pool.outcomes(later(*[1.0] * 900, seconds=0.1)), console=screen.console)
        with pytest.raises(PoolClosed):
            async for _ in stream:
                pool.drain(drain_timeout=0.0)
    assert screen.lines[-1].startswith("pool: stopped at ")
    assert screen.lines[-1].endswith("cancelled")


@virtual
async def test_a_stream_that_never_ends_is_shown_as_long_as_it_is_read() -> None:
    screen = Screen()

    async def endless() -> Any:
        while True:
            await asyncio.sleep(1)
            yield 0.0

    async with WorkerPool(sleeper, workers=1) as pool:
        async for _ in track(pool.map(endless()), console=screen.console):
            if now() > 3600:
                break
    assert 700 <= len(screen.lines) <= 722


@virtual
async def test_a_stream_that_is_only_kept_is_neither_begun_nor_shown() -> None:
    screen = Screen()
    async with WorkerPool(echo, workers=1) as pool:
        stream = track(pool.map([1]), console=screen.console)
        stream.cancel()
    assert screen.text == ""


def test_an_abandoned_loop_leaves_the_terminal_restored_at_the_end_of_the_program() -> None:
    screen = Screen(is_terminal=True)
    loop = asyncio.new_event_loop()
    cursors = []

    async def main() -> None:
        pool = WorkerPool(sleeper, workers=1)
        await pool.start()
        cursors.append(aiter(track(pool.map([0.01, 60.0]), console=screen.console)))
        await anext(cursors[0])
        pool.cancel()
        await pool.close()

    loop.run_until_complete(main())
    assert not screen.is_restored
    loop.close()
    cursors.clear()
    assert screen.is_restored


# -- Displays that fail, and hostile texts --


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_display_that_raises_is_logged_and_the_stream_goes_on(
    is_terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def test() -> None:
        screen = Screen(is_terminal=is_terminal)
        file = Broken()
        screen.console.file = file
        async with WorkerPool(sleeper, workers=1) as pool:
            read = 0
            async for _ in track(pool.map([1.0] * 20), console=screen.console):
                read += 1
                if read == 3:
                    file.error = OSError("nobody reads")
        assert read == 20
        assert not _screens

    with caplog.at_level(logging.WARNING, "asyncpool"):
        test()
    [record] = caplog.records
    assert "the progress of a stream is no longer shown, because the display raised OSError" in record.message


class BrokenTerminal(Broken):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Broken, BrokenTerminal])
def test_a_closed_pipe_ends_the_display_and_not_the_program(
    kind: type[Broken], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A console of rich raises SystemExit then, and replaces the standard output of the program.
    file = kind()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", file)

    @virtual
    async def test() -> None:
        async with WorkerPool(sleeper, workers=1) as pool:
            async for _ in track(pool.map([1.0] * 20)):
                file.error = BrokenPipeError("nobody reads")

    with caplog.at_level(logging.WARNING, "asyncpool"):
        test()
    [record] = caplog.records
    assert "display raised BrokenPipeError" in record.message


def test_a_display_that_cannot_be_opened_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no display")

    monkeypatch.setattr(LineDisplay, "__init__", broken)

    @virtual
    async def test() -> None:
        async with WorkerPool(echo, workers=1) as pool:
            assert await track(pool.map([1]), console=Screen().console) == [1]

    with caplog.at_level(logging.WARNING, "asyncpool"):
        test()
    assert "display raised OSError" in caplog.text


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__

    @property
    def __class__(self) -> type:
        raise RuntimeError("no class")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_hostile_errors_and_names(is_terminal: bool) -> None:
    async def hostile(job: int) -> None:
        raise [Hostile(), ValueError("\x1b[2J[red]\ud800"), ValueError(""), ValueError("x" * 5000)][job]

    @virtual
    async def test() -> None:
        screen = Screen(is_terminal=is_terminal)
        async with WorkerPool(hostile, workers=1, name="\x1b[31m[bold]\x07\ud800" + "n" * 500) as pool:
            await track(pool.outcomes(range(4)), console=screen.console)
        assert "\x07" not in screen.text
        assert "\x1b[31m" not in screen.text
        assert "[bold]" in screen.text
        assert "4 failed" in screen.text
        assert max(map(len, screen.lines)) < 200

    test()


@virtual
async def test_a_name_that_the_file_cannot_encode_is_escaped() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, "ascii", write_through=True))
    async with WorkerPool(echo, workers=1, name="größe") as pool:
        await track(pool.map([1]), console=console)
    assert raw.getvalue().startswith(b"gr\\xf6\\xdfe: 1 done")


# -- Terminals --


@virtual
async def test_jobs_do_not_draw() -> None:
    with pytest.MonkeyPatch.context() as patched:
        drawn = draws(patched)
        async with WorkerPool(echo, workers=10) as pool:
            await track(pool.map(range(1000)), console=Screen(is_terminal=True).console)
        assert len(drawn) == 1  # virtual time stands still: no timer was due
        drawn.clear()
        async with WorkerPool(sleeper, workers=10) as pool:
            await track(pool.map([0.01] * 1000), console=Screen(is_terminal=True).console)
        assert len(drawn) <= 7  # one second
        assert drawn[-1].total == 1000


@virtual
async def test_several_streams_have_a_bar_each_and_the_last_one_restores_the_terminal() -> None:
    screen = Screen(is_terminal=True)

    async def read(name: str, count: int) -> None:
        async for _ in track(pool.outcomes([1.0] * count), name=name, console=screen.console):
            pass
        if name == "short":
            assert not screen.is_restored
            assert len(_screens[screen.console].rows) == 1

    async with WorkerPool(sleeper, workers=2) as pool, asyncio.TaskGroup() as tasks:
        tasks.create_task(read("short", 3))
        tasks.create_task(read("long", 9))
    assert screen.is_restored
    last = screen.text.rpartition("short ")[2]
    assert "3/3" not in last
    assert "9" in last


@virtual
async def test_a_pipeline_shows_both_streams() -> None:
    screen = Screen()
    async with WorkerPool(sleeper, workers=2, name="first") as first, WorkerPool(echo, workers=1, name="then") as then:
        download = track(first.map([1.0] * 4), console=screen.console)
        assert len(await track(then.map(download), total=4, console=screen.console)) == 4
    assert [line.split(",")[0] for line in screen.lines] == ["first: 4 done in 2.0 s", "then: 4 done in 2.0 s"]


@virtual
async def test_an_unknown_total_on_a_terminal() -> None:
    screen = Screen(is_terminal=True)
    async with WorkerPool(sleeper, workers=1) as pool:
        assert len(await track(pool.map(later(*[0.5] * 4)), console=screen.console)) == 4
    assert "3 " in screen.text
    assert "%" not in screen.text
    assert screen.is_restored


def test_a_terminal_in_ci_and_colors_in_a_log_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", BrokenTerminal())
    assert isinstance(open_display(None), BarDisplay)
    monkeypatch.setenv("CI", "true")
    assert isinstance(open_display(None), LineDisplay)
    monkeypatch.setenv("CI", "false")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_display(None), LineDisplay)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Broken())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_display(None), LineDisplay)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(open_display(None), LineDisplay)


# -- Arguments --


@virtual
async def test_arguments_are_checked() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        stream: Any = pool.map([1])
        wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (TypeError, "total must be an int, got '3'", {"total": "3"}),
            (ValueError, "total must be >= 0, got -1", {"total": -1}),
            (ValueError, "interval must be a finite number of seconds > 0, got 0", {"interval": 0}),
            (TypeError, "name must be a str, got 3", {"name": 3}),
            (TypeError, "console must be a rich.console.Console, got 3", {"console": 3}),
        ]
        for kind, message, arguments in wrong:
            with pytest.raises(kind, match=message):
                track(stream, **arguments)
        nothing: Any = [1]
        with pytest.raises(TypeError, match=r"stream must be a stream or group of a pool, got \[1\]"):
            track(nothing)
        async for _ in stream:
            with pytest.raises(StreamClosed, match=r"is already being read: call track\(\) before the first step"):
                track(stream)
        for what in (pool.map, pool.outcomes):
            with pytest.raises(TypeError, match="progress must be a bool, got 3: for more, use asyncpool"):
                what([1], progress=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["map", "outcomes"])
def test_progress_is_the_short_form(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    @virtual
    async def test() -> None:
        async with WorkerPool(sleeper, workers=2, name="short") as pool:
            assert len(await getattr(pool, what)([1.0] * 4, progress=True)) == 4
        assert len(await getattr(asyncpool, what)(sleeper, [1.0] * 4, workers=2, progress=True, name="line")) == 4

    test()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["short: 4 done in 2.0 s, 2.0/s", "line: 4 done in 2.0 s, 2.0/s"]
