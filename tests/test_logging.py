"""The log of the package: filters, handlers and `__repr__` are code of the user, and none of them can hurt a pool."""

from __future__ import annotations

import ast
import asyncio
import logging
import logging.handlers
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Cancelled,
    DeadLetterFile,
    DeadLetters,
    Decision,
    Failed,
    JobCancelled,
    Permanent,
    PoolLoad,
    Retry,
    RetryAfter,
    RetryBudget,
    WorkerPool,
)
from asyncpool._logs import log
from asyncpool.testing import VirtualTimeLoop, run, settle
from tests.helpers import echo, ignores_cancel, now, virtual

PACKAGE = Path(asyncpool.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LOGGER = logging.getLogger("asyncpool")


class Raises(logging.Filter):
    """A filter that raises, and counts how often."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.records.append(record)
        raise self.error


@pytest.fixture
def hostile(request: pytest.FixtureRequest) -> Generator[Raises]:
    """Let a filter of the logger raise on every record."""
    raises = Raises(getattr(request, "param", TypeError("record.args is not a dict")))
    level = LOGGER.level
    LOGGER.addFilter(raises)
    LOGGER.setLevel(logging.DEBUG)
    yield raises
    LOGGER.removeFilter(raises)
    LOGGER.setLevel(level)


class Row:
    """A job that cannot be described: an expired row of an ORM."""

    def __repr__(self) -> str:
        raise LookupError("the row is gone")


async def fail(job: Any) -> None:
    raise ValueError(job)


# -- Every place that logs ---------------------------------------------------------------------------------------------


async def a_predicate_raises() -> None:
    def predicate(error: BaseException) -> bool:
        raise KeyError("predicate")

    async with WorkerPool(fail, workers=1, retry=Retry(on=predicate)) as pool:
        with pytest.raises(ValueError, match="1"):
            await pool.run(1)


async def the_budget_is_spent() -> None:
    budget = RetryBudget(ratio=0.0, min_per_second=0.0)
    async with WorkerPool(fail, workers=1, retry=Retry(budget=budget)) as pool:
        with pytest.raises(ValueError, match="1"):
            await pool.run(1)


async def a_job_asks_for_a_pause() -> None:
    async def handler(job: int) -> int:
        raise RetryAfter(1.0, pause=True)

    async with WorkerPool(handler, workers=1) as pool:
        with pytest.raises(RetryAfter):
            await pool.run(1)


async def a_letter_cannot_be_recorded() -> None:
    class Broken:
        def record(self, letter: Any) -> None:
            raise OSError("disk full")

        def pool_opened(self, name: str) -> None:
            raise OSError("no disk")

        def pool_closed(self, name: str) -> None:
            raise OSError("no disk")

    async with WorkerPool(fail, workers=1, dead_letters=Broken()) as pool:
        with pytest.raises(ValueError, match="1"):
            await pool.run(1)


async def a_store_is_full() -> None:
    letters: DeadLetters[Any] = DeadLetters(1)
    async with WorkerPool(fail, workers=1, dead_letters=letters) as pool:
        for job in range(3):
            with pytest.raises(ValueError, match=str(job)):
                await pool.run(job)
    assert [letter.job for letter in letters] == [2]


async def an_observer_raises() -> None:
    def observer(event: object) -> None:
        raise RuntimeError("observer")

    async with WorkerPool(echo, workers=1, observers=[observer]) as pool:
        assert await pool.run(1) == 1


async def recycle_on_raises() -> None:
    @asynccontextmanager
    async def resource() -> AsyncGenerator[int]:
        yield 1

    def recycle_on(error: BaseException) -> bool:
        raise KeyError("recycle_on")

    async def handler(job: int, resource: int) -> None:
        raise ValueError(job)

    async with WorkerPool(handler, workers=1, resource=resource, recycle_on=recycle_on) as pool:
        for job in range(2):
            with pytest.raises(ValueError, match=str(job)):
                await pool.run(job)


async def a_resource_cannot_be_entered() -> None:
    entered = 0

    @asynccontextmanager
    async def resource() -> AsyncGenerator[int]:
        nonlocal entered
        entered += 1
        if entered in (2, 3):
            raise OSError("no connection")
        yield entered

    async def handler(job: int, resource: int) -> int:
        if job == 0:
            raise OSError("broken pipe")
        return resource

    async with WorkerPool(handler, workers=1, resource=resource) as pool:
        with pytest.raises(OSError, match="broken pipe"):
            await pool.run(0)
        assert await pool.run(1) == 4


async def a_failure_is_not_read() -> None:
    async with WorkerPool(fail, workers=1) as pool:
        await pool.submit(1)
        await pool.join()
        await settle()
        stream = pool.outcomes([1, 2])
        async for _ in stream:
            break
        await stream.aclose()
    assert pool.stats.unread_failures >= 1


async def a_policy_raises() -> None:
    class Policy:
        initial_workers, max_workers, interval = 1, 2, 0.1

        def start(self) -> Callable[[PoolLoad], Decision]:
            def decide(load: PoolLoad) -> Decision:
                raise KeyError("policy")

            return decide

    async with WorkerPool(echo, workers=Policy()) as pool:
        assert await pool.run(1) == 1


async def a_pool_is_closed_with_unfinished_jobs() -> None:
    pool: WorkerPool[Any, Any] = WorkerPool(ignores_cancel, workers=1)
    await pool.start()
    run_it = asyncio.create_task(pool.run(20.0))
    await settle()
    others = [await pool.submit(1.0) for _ in range(2)]
    await settle()
    pool.drain(drain_timeout=0.0, grace=6.0)  # and nobody awaits the report
    with pytest.raises(JobCancelled):
        await run_it
    for other in others:
        assert isinstance(await other.outcome(), Cancelled)
    await asyncio.sleep(30.0)
    assert pool.state == "closed"
    assert pool.report is not None
    assert len(pool.report.abandoned) == 1


async def a_source_raises_and_ignores_its_end() -> None:
    async def source() -> AsyncIterator[float]:
        yield 0.0
        await ignores_cancel(20.0)
        raise ValueError("too late")

    async with WorkerPool(echo, workers=1) as pool:
        async with pool.outcomes(source()) as stream:
            async for _ in stream:
                break
        began = now()
        await pool.close(drain_timeout=0.0, grace=0.0)
        assert now() == began
    await asyncio.sleep(30.0)


async def a_source_raises_and_the_reader_leaves() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    async with WorkerPool(echo, workers=1) as pool:
        stream = pool.map(source())
        async for _ in stream:
            await settle()
            break
        await stream.aclose()


PLACES = [
    a_predicate_raises,
    the_budget_is_spent,
    a_job_asks_for_a_pause,
    a_letter_cannot_be_recorded,
    a_store_is_full,
    an_observer_raises,
    recycle_on_raises,
    a_resource_cannot_be_entered,
    a_failure_is_not_read,
    a_policy_raises,
    a_pool_is_closed_with_unfinished_jobs,
    a_source_raises_and_ignores_its_end,
    a_source_raises_and_the_reader_leaves,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize(
    "hostile", [TypeError("no dict"), asyncio.CancelledError("handler"), RecursionError()], indirect=True, ids=repr
)
def test_a_filter_that_raises_hurts_nobody(place: Callable[[], Any], hostile: Raises) -> None:
    run(place)
    assert any(record.levelno > logging.DEBUG for record in hostile.records)


def test_a_store_without_a_pool_can_be_used_although_the_log_raises(tmp_path: Path, hostile: Raises) -> None:
    letters: DeadLetterFile[Any] = DeadLetterFile(tmp_path / "letters")

    async def main() -> None:
        async with WorkerPool(fail, workers=1, dead_letters=letters) as pool:
            with pytest.raises(ValueError, match="object"):
                await pool.run(object())
        with letters.path.open("a") as file:
            file.write("torn\n")
        assert await letters.replay(pool) == 0

    run(main)
    assert letters.skipped == 1
    assert len(list(letters.unreplayable())) == 1
    assert len(hostile.records) > 3


@virtual
async def test_a_handler_that_raises_costs_its_message_and_says_so_on_stderr(
    hostile: Raises, capsys: pytest.CaptureFixture[str]
) -> None:
    log.warning("pool %r: %r happened", "mine", Row())
    written = capsys.readouterr().err
    assert "logging raised TypeError" in written
    assert "pool 'mine': <repr() of this tests.test_logging.Row raised LookupError> happened" in written


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_is_the_programs_is_raised_after_the_state_has_changed(kind: type[BaseException], hostile: Raises) -> None:
    hostile.error = kind()
    LOGGER.setLevel(logging.ERROR)
    loop = VirtualTimeLoop()
    pool: WorkerPool[int, None] = WorkerPool(fail, workers=1, dead_letters=DeadLetters(1))
    loop.run_until_complete(pool.start())

    async def submit_both() -> list[Any]:
        return [pool.submit_nowait(job) for job in range(2)]  # the second letter drops the first, which is logged

    handles = loop.run_until_complete(submit_both())
    with pytest.raises(kind):
        loop.run_forever()
    assert len(hostile.records) == 1
    LOGGER.removeFilter(hostile)
    loop.run_until_complete(pool.join())
    assert [type(loop.run_until_complete(handle.outcome())) for handle in handles] == [Failed, Failed]
    loop.run_until_complete(pool.close())
    loop.close()


def test_what_is_the_programs_is_raised_at_once_where_no_loop_runs(hostile: Raises) -> None:
    hostile.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        log.error("outside of a loop")


# -- What is in a record -----------------------------------------------------------------------------------------------


def test_a_record_names_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("here")
    log.error("here", exc_info=ValueError())
    assert [(record.funcName, record.filename) for record in caplog.records] == [
        ("test_a_record_names_the_caller", "test_logging.py")
    ] * 2


def test_objects_of_the_user_are_described_only_if_the_message_is_logged() -> None:
    class Counted:
        count = 0

        def __repr__(self) -> str:
            Counted.count += 1
            return "described"

    LOGGER.setLevel(logging.ERROR)
    try:
        log.warning("%r", Counted())
        assert Counted.count == 0
    finally:
        LOGGER.setLevel(logging.NOTSET)


def test_a_handler_that_formats_later_gets_plain_text() -> None:
    class Changes:
        text = "before"

        def __repr__(self) -> str:
            return self.text

    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    class Later(logging.handlers.QueueHandler):
        def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
            return record  # it is formatted in the thread of the listener

    handler = Later(records)
    LOGGER.addHandler(handler)
    try:
        changes = Changes()
        log.warning("pool %r: %r, %r, %d, %r, %r", "p", changes, Row(), 7, "x" * 5000, 10**5000)
        Changes.text = "after"
    finally:
        LOGGER.removeHandler(handler)
    record = records.get_nowait()
    message = record.getMessage()
    assert message.startswith("pool 'p': before, <repr() of this tests.test_logging.Row raised LookupError>, 7, 'xxx")
    assert len(message) < 9000
    assert all(isinstance(argument, (str, int)) for argument in record.args or ())


class Unformattable(Exception):
    """Its attributes raise, all but what the interpreter itself reads."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hands off")


def test_an_error_whose_traceback_cannot_be_formatted_is_logged_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise Unformattable
    except Unformattable as error:
        log.error("failed", exc_info=error)
    assert "Unformattable, which cannot be formatted: that raised RuntimeError" in caplog.text
    assert "raise Unformattable" in caplog.text  # the line


# -- Jobs that cannot be described -------------------------------------------------------------------------------------


@virtual
async def test_a_pool_closes_although_its_unfinished_jobs_cannot_be_described(caplog: pytest.LogCaptureFixture) -> None:
    async def stuck(job: Row) -> None:
        await ignores_cancel(100.0)

    pool: WorkerPool[Row, None] = WorkerPool(stuck, workers=1)
    await pool.start()
    handles = [await pool.submit(Row()) for _ in range(2)]
    await settle()
    pool.drain(drain_timeout=0.0, grace=6.0)
    await asyncio.sleep(10.0)
    assert pool.state == "closed"
    assert pool.report is not None
    assert len(pool.report.unfinished) == 2
    assert caplog.text.count("<repr() of this tests.test_logging.Row raised LookupError>") == 3
    for shown in (pool, pool.report, handles[0], await handles[1].outcome(), *pool.report.unfinished):
        assert repr(shown)
    await asyncio.sleep(200.0)


@virtual
async def test_what_holds_an_object_that_cannot_be_described_can_be_described() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise LookupError

        __repr__ = __str__

    async def handler(job: Any) -> Any:
        if job == 1:
            raise Mute
        if job == 2:
            raise Permanent from Mute()
        return job

    events: list[Any] = []
    letters: DeadLetters[Any] = DeadLetters()
    async with WorkerPool(handler, workers=1, observers=[events.append], dead_letters=letters) as pool:
        group = pool.group()
        outcomes = [await (await pool.submit(job)).outcome() for job in (Row(), 1, 2)]
        handle = await pool.submit(Row())
        for shown in (*outcomes, *events, *letters, handle, group, pool.map([Row()])):
            assert "Row raised" in repr(shown) or "Mute raised" in repr(shown) or repr(shown)
        await handle
        group.cancel()
    assert "Row raised LookupError" in repr(outcomes[0])
    assert "Mute raised LookupError" in repr(outcomes[1])


def test_an_error_message_describes_a_value_whatever_its_repr_does() -> None:
    row: Any = Row()
    attempts: list[Callable[[], object]] = [
        lambda: WorkerPool(echo, workers=1, timeout=row),
        lambda: WorkerPool(row, workers=1),
        lambda: WorkerPool(echo, workers=row),
        lambda: WorkerPool(echo, workers=1, limiter=row),
        lambda: WorkerPool(echo, workers=1, observers=[row]),
        lambda: WorkerPool(echo, workers=1).map(row),
        lambda: asyncpool.offload(row),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match="Row raised LookupError"):
            attempt()


# -- The shape of the package ------------------------------------------------------------------------------------------


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def unguarded(source: str) -> list[str]:
    """How a module logs without the guard."""
    tree = ast.parse(source)
    found: list[str] = []
    guarded = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "asyncpool._logs"
        for alias in node.names
        if alias.name == "log"
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if any(name.split(".")[0] == "logging" for name in names):
                found.append(f"line {node.lineno}: imports logging")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_log_call = node.func.attr in ("debug", "info", "warning", "error", "critical", "log")
            owner = ast.unparse(node.func.value)
            if is_log_call and owner not in guarded | {"math"}:
                found.append(f"line {node.lineno}: {owner}.{node.func.attr}")
            # A message that is made before the call runs the user's code unguarded, and also if nothing is logged.
            if is_log_call and owner in guarded and not isinstance(node.args[0], ast.Constant):
                found.append(f"line {node.lineno}: the message is not a literal")
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "_logs.py"], ids=name_of)
def test_every_message_goes_through_the_guarded_logger(file: Path) -> None:
    assert unguarded(file.read_text(encoding="utf-8")) == []


def test_an_unguarded_message_is_found() -> None:
    assert unguarded("import logging\nlogging.getLogger('asyncpool').error('x')") == [
        "line 1: imports logging",
        "line 2: logging.getLogger('asyncpool').error",
    ]
    assert unguarded("from asyncpool._logs import log\nlog.error('x')\nlog.error(f'{job!r}')") == [
        "line 3: the message is not a literal"
    ]


# What a `!r` can show: names of pools and tasks, which are checked to be texts, and objects of ours that are guarded.
HARMLESS = {
    "name",
    "namespace",
    "task.get_name()",
    "str(self.path)",
    "self._reason.value",
    "self._channel",
    "self._completion.job",
    "RateLimit(self._rate, self._per, self._burst)",
}


@pytest.mark.parametrize("file", [file for file in FILES if "testing" not in file.parts], ids=name_of)
def test_an_object_of_the_user_is_described_by_the_guard(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
            shown = ast.unparse(node.value)
            assert shown in HARMLESS or shown.endswith(".name"), f"line {node.lineno}: {shown}"
