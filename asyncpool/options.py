"""`PoolOptions`: the options of a pool, as a type for functions that pass them on; and the checks of their values.

What the options mean is in the docstring of `WorkerPool`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Generic, TypedDict, TypeVar

from asyncpool._checks import check_count, check_filter, check_function, check_seconds
from asyncpool._core.invoke import call_job
from asyncpool._core.parts import Parts
from asyncpool._core.remote.members import Remote
from asyncpool._core.scaler import as_policy
from asyncpool._guard import describe
from asyncpool.breaker import Breaker
from asyncpool.dead_letters.letter import DeadLetterSink, PoolAwareSink
from asyncpool.engines.contract import Engine
from asyncpool.engines.wire import TICK, Spec, pack_spec
from asyncpool.errors import ErrorFilter
from asyncpool.events import Observer, Observers
from asyncpool.limits.limiter import Limiter, checked_limiters
from asyncpool.resources import Resource, as_resource
from asyncpool.retry import Retry
from asyncpool.scaling.policy import Workers

__all__ = ["PoolOptions"]

JobT = TypeVar("JobT")


class PoolOptions(TypedDict, Generic[JobT], total=False):
    """The options that every pool takes, whatever its handler: those of `WorkerPool`, without `workers` and `resource`.

    For functions that pass them on: `def crawl(urls, **options: Unpack[PoolOptions[str]])`.
    """

    queue_size: int | None
    max_delayed: int
    timeout: float | Callable[[JobT], float | None] | None
    queue_timeout: float | None
    retry: Retry | None
    limiter: Limiter[JobT] | None
    breaker: Breaker | None
    priority: Callable[[JobT], Any] | None
    dead_letters: DeadLetterSink[JobT] | None
    observers: Sequence[Observer]
    name: str
    engine: Engine | None
    patience: float
    reruns: bool
    responds_within: float | None


def check_names(function: str, options: Mapping[str, object]) -> None:
    """Raise unless these are names of options of a pool, for a function that passes them on."""
    for name in options:
        if name not in PoolOptions.__annotations__ and name not in ("resource", "recycle_on"):
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def build_parts(
    handler: Callable[..., Awaitable[Any]] | None,
    *,
    workers: Workers,
    queue_size: int | None = None,
    max_delayed: int = 10_000,
    timeout: float | Callable[[Any], float | None] | None = None,
    queue_timeout: float | None = None,
    retry: Retry | None = None,
    limiter: Limiter[Any] | None = None,
    breaker: Breaker | None = None,
    resource: Callable[[], AbstractAsyncContextManager[Any]] | Resource[Any] | None = None,
    recycle_on: ErrorFilter | None = None,
    priority: Callable[[Any], Any] | None = None,
    dead_letters: DeadLetterSink[Any] | None = None,
    observers: Sequence[Observer] = (),
    name: str = "pool",
    engine: Engine | None = None,
    patience: float = 30.0,
    reruns: bool = True,
    responds_within: float | None = None,
) -> Parts:
    """Check the options of a pool and build its parts from them.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A number is out of range.
    """
    _check_handler(handler)
    if recycle_on is not None:
        check_filter("recycle_on", recycle_on)
    opened = None if resource is None else as_resource(resource, recycle_on)
    if opened is not None and handler is None:
        raise TypeError(
            "resource= needs a handler(job, resource); a pool without a handler cannot pass one to its jobs"
        )
    if priority is not None:
        check_function("priority", priority)
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"retry must be a Retry, got {describe(retry)}: write retry=Retry(attempts=3)")
    limiters = checked_limiters(limiter)
    if breaker is not None and not isinstance(breaker, Breaker):
        raise TypeError(f"breaker must be a Breaker, got {describe(breaker)}: write breaker=Breaker(on=OSError)")
    if dead_letters is not None:
        if isinstance(dead_letters, type) or not isinstance(dead_letters, DeadLetterSink):
            raise TypeError(f"dead_letters must have a method record(letter), got {describe(dead_letters)}")
        check_function("record(letter) of dead_letters", dead_letters.record)
        if isinstance(dead_letters, PoolAwareSink):
            check_function("pool_opened(name) of dead_letters", dead_letters.pool_opened)
            check_function("pool_closed(name) of dead_letters", dead_letters.pool_closed)
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {describe(name)}")
    if callable(timeout) and not isinstance(timeout, type):
        check_function("timeout", timeout)
    elif timeout is not None:
        timeout = check_seconds("timeout", timeout, positive=True)
    parts = partial(
        Parts,
        name=name,
        handler=handler,
        policy=as_policy(workers),
        priority=priority,
        queue_size=None if queue_size is None else check_count("queue_size", queue_size, least=0),
        max_delayed=check_count("max_delayed", max_delayed, least=1),
        queue_timeout=None if queue_timeout is None else check_seconds("queue_timeout", queue_timeout, positive=True),
        retry=retry,
        limiters=limiters,
        breaker=breaker,
        dead_letters=dead_letters,
        observers=Observers(observers),
    )
    patience = check_seconds("patience", patience, positive=True)
    if not isinstance(reruns, bool):
        raise TypeError(f"reruns must be a bool, got {describe(reruns)}")
    if responds_within is not None:
        responds_within = check_seconds("responds_within", responds_within, positive=True)
    if engine is None:
        return parts(timeout=timeout, resource=opened)
    # What belongs to one attempt goes along with it.
    spec = Spec(
        pool=name,
        handler=call_job if handler is None else handler,
        timeout=None if callable(timeout) else timeout,
        max_elapsed=None if retry is None else retry.max_elapsed,
        resource=opened,
        shares_main=_check_engine(engine),
        tick=TICK if responds_within is None else min(TICK, responds_within / 4),
        timeout_varies=callable(timeout),
    )
    remote = Remote(
        engine=engine,
        spec=pack_spec(spec),
        is_required=opened is None or opened.required,
        patience=patience,
        reruns=reruns,
        responds_within=responds_within,
    )
    return parts(timeout=timeout if callable(timeout) else None, resource=None, remote=remote)


def _check_engine(engine: Engine) -> bool:
    if isinstance(engine, type) or not inspect.iscoroutinefunction(getattr(engine, "run", None)):
        raise TypeError(
            f"engine must be an engine, such as Processes() or asyncpool.dask.Dask(address), got {describe(engine)}"
        )
    shares_main = engine.shares_main
    if not isinstance(shares_main, bool):
        raise TypeError(f"shares_main of the engine must be a bool, got {describe(shares_main)}")
    return shares_main


def _check_handler(handler: object) -> None:
    if handler is None:
        return
    if not callable(handler):
        hint = " (a coroutine: pass the function, do not call it)" if inspect.iscoroutine(handler) else ""
        raise TypeError(f"handler must be callable, got {describe(handler)}{hint}")
    call = handler if inspect.isroutine(handler) else getattr(type(handler), "__call__", handler)  # noqa: B004 -- to look at it
    for function in (handler, call):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"handler must return one awaitable, got the generator function {describe(handler)}")
