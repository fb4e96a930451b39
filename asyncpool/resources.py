"""How the workers of a pool get their resources, and how these stay healthy: `Resource`.

Pure: what opens a resource, and the rules. The pool applies them (`_core/resources.py`, `_core/health.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, TypeVar

from asyncpool._checks import (
    check_count,
    check_filter,
    check_function,
    check_seconds,
    convert_field,
    is_generator_function,
)
from asyncpool._guard import describe
from asyncpool.errors import ErrorFilter

__all__ = ["Resource", "as_resource"]

ResourceT_co = TypeVar("ResourceT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Resource(Generic[ResourceT_co]):
    """How each worker opens and closes its resource; `resource=connect` is short for `resource=Resource(connect)`.

        Resource(connect, check=ping, max_age=1800, recycle_on=(OSError, InterfaceError))

    A worker takes jobs only while its resource is open. `start()` opens the first one, if the pool starts with workers,
    and raises its error. Up to 64 are opened in the background at once, and the others when a job needs a worker and
    none is about to be ready. A resource that leaves its context by itself while a job runs fails that job with
    `ResourceDied`, and is replaced when the job has ended.

    **Replacements.** A resource is replaced when a job on it was cancelled, timed out, failed with an error that
    matches `recycle_on`, or called `current_job().recycle()`; and for `max_age`, `max_jobs` and a failed `check`. It is
    never replaced while a job runs on it, and its worker takes no job until the next resource is open. So a dead
    connection fails one job, and does not attract the others. Observers get a `ResourceReplaced`, and
    `stats.resources_replaced` counts.

    **Checks.** With `check`, a resource that has been idle for `check_after` seconds is checked before a job takes it.
    Workers that need no check come first. The job stays at the front of the queue meanwhile, and any worker that is
    ready can take it. A resource that fails its check is replaced: this is not an attempt at the job. When a resource
    fails its check, dies, or fails a job by an error that matches `recycle_on`, all others that are idle are checked
    before their next job too, however short they have been idle. A worker that goes from one job straight to the next
    is not idle, so nothing is checked in a busy pool.

    **Failures.** A resource that cannot be opened is tried again after 0.1 s. The backoff doubles up to 5 s, with half
    of it random, and begins with 0.1 s again after a resource that was held for 30 s. While no resource is open, the
    backoff of one worker only doubles up to 0.5 s, so the pool soon notices that its backend is back. Each resource
    that opens then ends the backoff of two other workers. So the workers do not connect all at once, and if connections
    open quickly, the pool is at full speed within a second of its backend. Meanwhile jobs stay queued, also while the
    pool drains. Observers get a `ResourceFailed` for each failure. The log has the 1st, 2nd, 4th, 8th ... failure of
    all workers of the pool together, and one line when all are open again. After a minute without a failure it counts
    from 1 again.

    **Timeouts.** Opening that takes too long is cancelled, and is a failure with a `ResourceTimeout`. If it returns a
    resource in spite of the cancellation, that is closed and replaced. Closing that takes too long is cancelled and
    reported too, and the worker opens its next resource. A check that takes too long is cancelled, and has failed. If
    the resource ignores the cancellation for five seconds more, it is abandoned: the log names its task, and the worker
    opens another one. `close()` does not wait for it, and lists it in `report.errors`.

    **Bounds.** At most `max_workers` resources are opening, open or closing, so a new worker can have to wait until the
    resource of a retired worker is closed. The first `max_workers` abandoned resources do not count. Each further one
    takes the place of a worker's resource until it ends, so there are never more than twice as many.

    **Stalls.** If jobs have waited for five seconds and no worker could take them, because none has its resource or all
    run jobs that ignore their cancellation, the pool is stalled. This is logged once, observers get a `PoolStalled`,
    and later a `PoolRecovered`, and `stats.stalled_seconds` counts. A paused pool is not stalled; a pool with an
    engine is, while no process can run attempts.

    **Engines.** With an engine, resources live in the processes where the attempts run, and each process applies all of
    this to its own. `max_idle` leaves one open in each. Failures and replacements are reported in the program.

    Frozen, so it can be shared between pools.

    Args:
        open: Returns an async context manager, which one worker enters and leaves in one task. What it yields is the
            resource.
        open_timeout: Seconds that entering the context manager can take.
        close_timeout: Seconds that leaving it can take.
        max_age: Seconds after which a resource is replaced, at once if it is idle, otherwise when its job has ended.
            Each gets between 90% and 100% of it at random, so that a pool does not reconnect all at once. None: never.
        max_idle: Seconds without a job after which a resource is closed. Its worker opens the next one when a job needs
            it. The worker that was idle last takes the next job, so under a light load the others get there. None:
            never.
        max_jobs: How many attempts a resource does, at most, before it is replaced; each between 90% and 100% of it, at
            random. None: any number.
        check: `check(resource)`, sync or async: whether the resource can still be used. It fails if it returns False,
            raises, or takes longer than `check_timeout`; all else is good. Called in the task that has opened the
            resource.
        check_after: Seconds that a resource can have been idle without being checked. 0: each that was idle is checked.
        check_timeout: Seconds that a check can take.
        recycle_on: Which errors of a job replace its worker's resource: a type, a tuple of types, or a predicate. A
            `TimeoutError` is an `OSError`.
        required: Whether `start()` opens the first resource, and raises its error. False: the pool is open at once, and
            all its resources are opened in the background, again and again until they are. Jobs are accepted, and wait
            in the queue. For services that can start before their database.

    Raises:
        TypeError, ValueError: `open` is not a function that returns a context manager, or another argument breaks the
            rule that the error states.
    """

    open: Callable[[], AbstractAsyncContextManager[ResourceT_co]]
    _: KW_ONLY
    open_timeout: float = 30.0
    close_timeout: float = 10.0
    max_age: float | None = None
    max_idle: float | None = None
    max_jobs: int | None = None
    check: Callable[[ResourceT_co], object] | None = None
    check_after: float = 1.0
    check_timeout: float = 5.0
    recycle_on: ErrorFilter = OSError
    required: bool = True

    def __post_init__(self) -> None:
        check_function("resource", self.open)
        for name in ("open_timeout", "close_timeout", "check_timeout"):
            convert_field(self, name, check_seconds, positive=True)
        for name in ("max_age", "max_idle"):
            if getattr(self, name) is not None:
                convert_field(self, name, check_seconds, positive=True)
        if self.max_jobs is not None:
            convert_field(self, "max_jobs", check_count, least=1)
        convert_field(self, "check_after", check_seconds)
        if self.check is not None and (not callable(self.check) or is_generator_function(self.check)):
            raise TypeError(f"check must be a function of the resource, sync or async, got {describe(self.check)}")
        check_filter("recycle_on", self.recycle_on)
        if not isinstance(self.required, bool):
            raise TypeError(f"required must be a bool, got {describe(self.required)}")


def as_resource(
    resource: Resource[Any] | Callable[[], AbstractAsyncContextManager[Any]], recycle_on: ErrorFilter | None
) -> Resource[Any]:
    """Return what a pool got as its resource as a `Resource`.

    Args:
        resource: A `Resource`, or its `open`.
        recycle_on: The pool's own short form; None: it was not given.

    Raises:
        TypeError: It is neither a `Resource` nor a function that returns a context manager; or it is a `Resource`, and
            `recycle_on` was given besides.
    """
    given: Any = resource
    if not isinstance(resource, Resource):
        given = Resource(given, recycle_on=OSError if recycle_on is None else recycle_on)
    elif recycle_on is not None:
        raise TypeError(
            "recycle_on= belongs to resource=factory; a Resource has its own: write Resource(open, recycle_on=...)"
        )
    opened: Resource[Any] = given
    return opened
