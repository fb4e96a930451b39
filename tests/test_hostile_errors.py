"""Errors whose own code raises: each is an outcome like any other, and costs no worker, no reader and no other job."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

import asyncpool
from asyncpool import (
    Adaptive,
    DeadLetters,
    Failed,
    JobCrashed,
    Permanent,
    Retry,
    RetryAfter,
    RetryBudget,
    SourceCrashed,
    Succeeded,
    WorkerPool,
)
from asyncpool.testing import run, settle
from tests.helpers import echo, virtual


class HandsOffError(Exception):
    """Reading one of its attributes raises an error, as with a proxy of a closed connection."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def _refuse(self: object, *args: object) -> Any:
    raise RuntimeError("no")


def refusing(*names: str, base: type[BaseException] = Exception) -> type[Any]:
    """Make a class of errors of which some attributes raise when they are read or set."""
    kind = type(base.__name__, (base,), {name: property(_refuse, _refuse) for name in names})
    kind.__module__ = "tests"
    return kind


def raising(*names: str, base: type[BaseException] = Exception) -> type[Any]:
    """Make a class of errors of which some methods raise."""
    return type(base.__name__, (base,), dict.fromkeys(names, _refuse))


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int = 1


def sly() -> type[Any]:
    """Make a class whose own attributes raise. Not in the module, where pytest would ask it whether it is a test."""

    class SlyMeta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name == "__subclasses__":  # Dask asks all classes of errors when it is imported, in another test
                return super().__getattribute__(name)
            raise RuntimeError("no")

    class SlyError(Exception, metaclass=SlyMeta):
        pass

    return SlyError


class ExitsError(Exception):
    """Reading it asks to end the program."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


DUNDERS = ("__class__", "__traceback__", "__cause__", "__context__", "__suppress_context__", "__notes__", "__dict__")
METHODS = ("__str__", "__repr__", "__eq__", "__hash__", "__setattr__", "add_note", "with_traceback", "__reduce__")
KINDS: dict[str, type[Any]] = {
    "all attributes": HandsOffError,
    "frozen": FrozenError,
    "metaclass": sly(),
    "exits": ExitsError,
    **{name: refusing(name) for name in DUNDERS},
    **{name: raising(name) for name in METHODS},
    "of a retry": refusing("seconds", "pause", "__cause__", "__class__", base=RetryAfter),
    "permanent": refusing("__cause__", "__class__", base=Permanent),
    "os": refusing(*DUNDERS, base=OSError),
    "group": refusing("exceptions", *DUNDERS, base=ExceptionGroup),
    "base": refusing(*DUNDERS, base=BaseException),
    "cancelled": refusing(*DUNDERS, base=asyncio.CancelledError),
    "stop": refusing(*DUNDERS, base=StopAsyncIteration),
}


def make(kind: Any) -> BaseException:
    error: BaseException
    if issubclass(kind, ExceptionGroup):
        error = cast("Any", kind)("several", [ValueError(1)])
    elif issubclass(kind, RetryAfter):
        error = cast("Any", kind).__new__(kind, 1.0)
    else:
        error = kind()
    return error


every_kind = pytest.mark.parametrize("name", KINDS)


def fails_with(kind: type[Any]) -> Callable[..., Any]:
    async def handler(job: Any, *resource: Any) -> Any:
        if job == "good":
            return job
        await asyncio.sleep(0)
        raise make(kind)

    return handler


async def use(pool: WorkerPool[Any, Any], kind: type[Any]) -> None:
    """Fail in each way in which a failure is delivered."""
    outcome = await (await pool.submit("bad")).outcome()
    assert type(outcome) is Failed
    assert type(outcome.error) is kind
    assert repr(outcome)
    with pytest.raises((kind, JobCrashed)):
        await pool.run("bad")
    with pytest.raises((kind, JobCrashed)):
        async for _ in pool.map(["good", "bad", "good"]):
            pass
    outcomes = [outcome async for outcome in pool.outcomes(["bad", "good"], ordered=True)]
    assert [type(outcome) for outcome in outcomes] == [Failed, Succeeded]
    async with pool.group() as group:
        await group.submit("bad")
    assert [type(outcome) async for outcome in group] == [Failed]
    await pool.submit("bad")  # nobody reads it
    await pool.join()
    await settle()
    assert await pool.run("good") == "good"
    assert pool.stats.workers == 1


@every_kind
@virtual
async def test_an_error_whose_own_code_raises_is_an_outcome(name: str) -> None:
    kind = KINDS[name]

    async with WorkerPool(fails_with(kind), workers=1) as pool:
        await use(pool, kind)


@every_kind
@virtual
async def test_with_retries_letters_observers_and_a_timeout_too(name: str) -> None:
    kind = KINDS[name]

    letters: DeadLetters[Any] = DeadLetters()
    seen: list[Any] = []
    retry = Retry(attempts=2, backoff=0.0, jitter=False, on=(ValueError, kind), max_elapsed=60.0)
    async with WorkerPool(
        fails_with(kind), workers=1, retry=retry, dead_letters=letters, observers=[seen.append], timeout=10.0
    ) as pool:
        await use(pool, kind)
    assert len(letters) == pool.stats.failed
    for shown in (*letters, *seen):
        assert repr(shown)


@every_kind
@virtual
async def test_a_predicate_gets_it_and_the_budget_and_the_deadline_note_it(name: str) -> None:
    kind = KINDS[name]

    seen: list[BaseException] = []

    def on(error: BaseException) -> bool:
        seen.append(error)
        return True

    several: list[dict[str, Any]] = [
        {"budget": RetryBudget(ratio=0.0, min_per_second=0.0)},
        {"backoff": 50.0, "max_backoff": 50.0, "max_elapsed": 1.0},
        {"attempts": 1},
    ]
    for options in several:
        async with WorkerPool(fails_with(kind), workers=1, retry=Retry(on=on, jitter=False, **options)) as pool:
            await use(pool, kind)
    assert all(type(error) is kind for error in seen)


@every_kind
@virtual
async def test_a_resource_is_replaced_and_a_policy_reads_it(name: str) -> None:
    kind = KINDS[name]

    @asynccontextmanager
    async def resource() -> AsyncGenerator[int]:
        yield 1

    policy = Adaptive(1, 1, overload=(ValueError, kind))
    async with WorkerPool(fails_with(kind), workers=policy, resource=resource, recycle_on=(KeyError, kind)) as pool:
        with pytest.raises((kind, JobCrashed)):
            await pool.run("bad")
        await asyncio.sleep(1.0)
        assert await pool.run("good") == "good"


@every_kind
@virtual
async def test_advice_can_be_raised_from_it(name: str) -> None:
    kind = KINDS[name]

    async def handler(job: object) -> None:
        error = make(kind)
        if isinstance(job, int):
            raise RetryAfter(0.5) from error
        raise Permanent from error

    async with WorkerPool(handler, workers=1, retry=Retry(attempts=2)) as pool:
        for job in (1, "permanent"):
            outcome = await (await pool.submit(job)).outcome()
            assert type(outcome) is Failed
            assert type(outcome.error) is kind
            with pytest.raises((kind, JobCrashed)) as caught:
                outcome.unwrap()
            if type(caught.value) is JobCrashed:
                assert str(caught.value)


@every_kind
@virtual
async def test_a_cancelled_job_that_raises_it_is_settled(name: str) -> None:
    kind = KINDS[name]

    async def handler(job: object) -> None:
        try:
            await asyncio.sleep(100.0)
        except asyncio.CancelledError:
            raise make(kind)  # noqa: B904 -- the context is what is wanted

    async with WorkerPool(handler, workers=1, timeout=1.0) as pool:
        timed_out = await (await pool.submit(1)).outcome()
        assert type(timed_out) is Failed
        handle = await pool.submit(2)
        await settle()
        handle.cancel()
        await handle.outcome()
        stream = pool.outcomes([1, 2])
        async with stream:
            pass
        assert pool.stats.workers == 1


class Source:
    """An async iterator that raises when it is pulled, closed or both."""

    def __init__(self, pulled: BaseException | None, closed: BaseException | None) -> None:
        self._errors = [pulled, closed]

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> str:
        if self._errors[0] is not None:
            raise self._errors[0]
        return "good"

    async def aclose(self) -> None:
        if self._errors[1] is not None:
            raise self._errors[1]


@every_kind
@virtual
async def test_a_source_may_raise_it(name: str) -> None:
    kind = KINDS[name]

    def plain() -> Iterator[str]:
        yield "good"
        raise make(kind)

    async with WorkerPool(echo, workers=1) as pool:
        sources: list[Any] = [plain(), Source(ValueError("pulled"), make(kind))]
        if not issubclass(kind, StopAsyncIteration):  # which is its end
            sources.append(Source(make(kind), None))
        for source in sources:
            with pytest.raises((kind, SourceCrashed, RuntimeError)):  # a generator makes one of a StopAsyncIteration
                async for _ in pool.map(source):
                    pass
        stream = pool.map(Source(None, make(kind)))
        async for _ in stream:
            break
        await stream.aclose()
        assert await pool.run("good") == "good"


@virtual
async def test_a_source_that_fails_twice_ends_with_the_second_error_in_whose_context_the_first_is() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(FrozenError) as caught:
            await pool.map(Source(ValueError("pulled"), FrozenError()))
    assert isinstance(caught.value.__context__, ValueError)


@every_kind
@virtual
async def test_a_resource_may_raise_it(name: str) -> None:
    kind = KINDS[name]

    entered = 0

    class Resource:
        async def __aenter__(self) -> int:
            nonlocal entered
            entered += 1
            if entered % 2 == 0:
                raise make(kind)
            return entered

        async def __aexit__(self, *exc: object) -> None:
            raise make(kind)

    async def handler(job: int, resource: int) -> int:
        if job == 0:
            raise OSError("broken")
        return resource

    async with WorkerPool(handler, workers=1, resource=Resource) as pool:
        with pytest.raises(OSError, match="broken"):
            await pool.run(0)
        assert await pool.run(1) == 3
    assert pool.report is not None
    if not issubclass(kind, asyncio.CancelledError):  # which ends the resource of a worker that is about to go
        assert [type(error) for error in pool.report.errors] == [kind]


@every_kind
@virtual
async def test_hooks_may_raise_it(name: str) -> None:
    kind = KINDS[name]

    def hook(*args: object) -> Any:
        raise make(kind)

    class Letters:
        record = pool_opened = pool_closed = hook

    async with WorkerPool(
        fails_with(ValueError), workers=1, retry=Retry(on=hook), dead_letters=Letters(), observers=[hook]
    ) as pool:
        outcome = await (await pool.submit("bad")).outcome()
        assert type(outcome) is Failed
        assert type(outcome.error) is ValueError
        assert await pool.run("good") == "good"
    async with WorkerPool(echo, workers=1, limiter=hook) as pool:
        assert type(await (await pool.submit("bad")).outcome()) is Failed
    async with WorkerPool(echo, workers=1, priority=hook) as pool:
        with pytest.raises((kind,)):
            await pool.submit("bad")
        outcomes = [outcome async for outcome in pool.outcomes(["bad"])]
        assert [type(outcome) for outcome in outcomes] == [Failed]
    async with WorkerPool(echo, workers=hook) as pool:
        assert await pool.run("good") == "good"


@every_kind
def test_an_offloaded_function_may_raise_it(name: str) -> None:
    kind = KINDS[name]

    def function(job: object) -> None:
        raise make(kind)

    async def main() -> None:
        async with WorkerPool(asyncpool.offload(function), workers=1) as pool:
            outcome = await (await pool.submit(1)).outcome()
            assert type(outcome) is Failed

    run(main)


@virtual
async def test_a_note_is_added_also_to_an_error_that_cannot_be_changed() -> None:
    retry = Retry(budget=RetryBudget(ratio=0.0, min_per_second=0.0))
    async with WorkerPool(fails_with(FrozenError), workers=1, retry=retry) as pool:
        outcome = await (await pool.submit("bad")).outcome()
    assert isinstance(outcome, Failed)
    assert outcome.error.__notes__[0].startswith("not retried: the retry budget is spent")


# -- The shape of the package ------------------------------------------------------------------------------------------

PACKAGE = Path(asyncpool.__file__).parent
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.name != "_guard.py" and "testing" not in file.parts)
SLOTS = {"__cause__", "__context__", "__traceback__", "__notes__", "__suppress_context__", "add_note", "__class__"}
ERROR_NAMES = ("Error", "Exception", "Exit", "Interrupt", "Group", "Iteration", "Advice", "RetryAfter", "Permanent")


def touches(source: str) -> list[str]:
    """Where a module reads or sets an attribute of an error, or asks it for its class."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in SLOTS:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            kinds = [part for part in ast.walk(node.args[1]) if isinstance(part, (ast.Name, ast.Attribute))]
            if any(ast.unparse(kind).endswith(ERROR_NAMES) for kind in kinds):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".with_traceback"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    # The second is called on an error of ours.
    fine = ("BaseException.with_traceback", "reason.with_traceback")
    return [text for text in found if not any(part in text for part in fine)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_errors_are_read_and_changed_by_the_guard_only(file: Path) -> None:
    assert touches(file.read_text(encoding="utf-8")) == []


def test_touching_an_error_is_found() -> None:
    source = "caught.__context__ = error\nisinstance(error, asyncio.CancelledError)\nerror.with_traceback(None)"
    assert len(touches(source)) == 3
