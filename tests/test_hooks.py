"""Functions of the user that a pool calls and does not await: one that would not run is refused where it is passed."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncpool import Adaptive, DeadLetterFile, DeadLetters, RateLimit, Retry, WorkerPool, offload
from asyncpool.testing import run
from tests.helpers import sleeper


async def echo(job: int, resource: Any = None) -> int:
    return job


class LaterCaller:
    async def __call__(self, *args: object) -> None:
        pass


class LaterSink:
    """A sink of which one method is async."""

    def __init__(self, name: str) -> None:
        setattr(self, name, sleeper)

    def record(self, letter: object) -> None: ...
    def pool_opened(self, name: str) -> None: ...
    def pool_closed(self, name: str) -> None: ...


def yields(*args: object) -> Iterator[object]:
    yield args


async def yields_later(*args: object) -> AsyncIterator[object]:
    yield args


NEVER_RUN = {
    "async function": sleeper,
    "partial": functools.partial(functools.partial(sleeper), 1.0),
    "object": LaterCaller(),
    "partial of an object": functools.partial(LaterCaller(), 1),
    "method": LaterCaller().__call__,
    "generator function": yields,
    "async generator function": yields_later,
}


class Policy:
    initial_workers, max_workers, interval = 1, 1, 1.0

    def __init__(self, decide: Any) -> None:
        self._decide = decide

    def start(self) -> Any:
        return self._decide


@asynccontextmanager
async def open_nothing() -> AsyncGenerator[None]:
    yield


HOOKS: dict[str, Callable[[Any], object]] = {
    "observers": lambda hook: WorkerPool(echo, workers=1, observers=[hook]),
    "priority": lambda hook: WorkerPool(echo, workers=1, priority=hook),
    "limiter": lambda hook: WorkerPool(echo, workers=1, limiter=hook),
    "timeout": lambda hook: WorkerPool(echo, workers=1, timeout=hook),
    "where": lambda hook: WorkerPool(echo, workers=1).cancel_queued(hook),
    "key": lambda hook: RateLimit.per_key(hook, 1),
    "resource": lambda hook: WorkerPool(echo, workers=1, resource=hook),
    "recycle_on": lambda hook: WorkerPool(echo, workers=1, resource=open_nothing, recycle_on=hook),
    "on": lambda hook: Retry(on=hook),
    "overload": lambda hook: Adaptive(1, 2, overload=hook),
    "workers": lambda hook: WorkerPool(echo, workers=hook),
    "start() of a policy": lambda hook: WorkerPool(echo, workers=Policy(hook)),
    "encode": lambda hook: DeadLetterFile(Path(__file__), encode=hook),
    "decode": lambda hook: DeadLetterFile(Path(__file__), decode=hook),
    "find": lambda hook: DeadLetters[Any]().find(hook),
    "replay": lambda hook: run(lambda: DeadLetters[Any]().replay(WorkerPool(echo, workers=1), hook)),
}


@pytest.mark.parametrize("function", NEVER_RUN.values(), ids=NEVER_RUN)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_would_never_run_is_refused(hook: str, function: Any) -> None:
    with pytest.raises(TypeError, match=r"must not be an async function|must not be a generator function"):
        HOOKS[hook](function)


@pytest.mark.parametrize("name", ["record", "pool_opened", "pool_closed"])
def test_a_sink_with_an_async_method_is_refused(name: str) -> None:
    sink: Any = LaterSink(name)
    with pytest.raises(TypeError, match=rf"{name}\(.*\) of dead_letters is called and not awaited"):
        WorkerPool(echo, workers=1, dead_letters=sink)


@pytest.mark.parametrize(
    "function", [sleeper, LaterCaller(), functools.partial(LaterCaller())], ids=["function", "caller", "partial"]
)
def test_an_async_callable_is_not_offloaded(function: Any) -> None:
    with pytest.raises(TypeError, match="fn must be a synchronous function"):
        offload(function)


def test_classes_methods_and_partials_that_run_are_accepted() -> None:
    class Observer:
        def __call__(self, event: object) -> None: ...
        def hear(self, event: object) -> None: ...

    seen: list[object] = []
    WorkerPool(echo, workers=1, observers=[Observer(), Observer().hear, seen.append, functools.partial(print, end="")])
    WorkerPool(echo, workers=1, priority=int)
