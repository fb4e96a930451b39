"""How the workers of a pool get their resources: `Resource`.

Pure: what opens a resource, and the bounds. The pool opens and closes (`_core/resources.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, TypeVar

from asyncpool._checks import check_function, check_seconds

__all__ = ["Resource", "as_resource"]

ResourceT_co = TypeVar("ResourceT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Resource(Generic[ResourceT_co]):
    """How each worker opens and closes its resource; `resource=connect` is short for `resource=Resource(connect)`.

    A worker takes jobs only while its resource is open. `start()` opens the first one, if the pool starts with workers,
    and raises its error. Up to 64 are opened in the background at once, and the others when a job needs a worker and
    none is about to be ready. A resource that leaves its context by itself while a job runs fails that job with
    `ResourceDied`, and is replaced when the job has ended.

    **Failures.** A resource that cannot be opened is tried again after 0.1 s. The backoff doubles up to 5 s, with half
    of it random, and begins with 0.1 s again after a resource that was held for 30 s. Meanwhile jobs stay queued, also
    while the pool drains. Observers get a `ResourceFailed` for each failure. The log has the 1st, 2nd, 4th, 8th ...
    failure of all workers of the pool together, and one line when all are open again. After a minute without a failure
    it counts from 1 again.

    **Timeouts.** Opening that takes too long is cancelled, and is a failure with a `ResourceTimeout`. If it returns a
    resource in spite of the cancellation, that is closed and replaced. Closing that takes too long is cancelled and
    reported too, and the worker opens its next resource. If the resource ignores the cancellation for five seconds
    more, it is abandoned: the log names its task, and the worker opens another one. `close()` does not wait for it, and
    lists it in `report.errors`.

    **Bounds.** At most `max_workers` resources are opening, open or closing, so a new worker can have to wait until the
    resource of a retired worker is closed. The first `max_workers` abandoned resources do not count. Each further one
    takes the place of a worker's resource until it ends, so there are never more than twice as many.

    **Stalls.** If jobs have waited for five seconds and no worker could take them, because none has its resource or all
    run jobs that ignore their cancellation, the pool is stalled. This is logged once, observers get a `PoolStalled`,
    and later a `PoolRecovered`, and `stats.stalled_seconds` counts. A paused pool is not stalled; a pool with an
    engine is, while no process can run attempts.

    Frozen, so it can be shared between pools.

    Args:
        open: Returns an async context manager, which one worker enters and leaves in one task. What it yields is the
            resource.
        open_timeout: Seconds that entering the context manager can take.
        close_timeout: Seconds that leaving it can take.

    Raises:
        TypeError, ValueError: `open` is not a function that returns a context manager, or a timeout is not a number of
            seconds > 0.
    """

    open: Callable[[], AbstractAsyncContextManager[ResourceT_co]]
    _: KW_ONLY
    open_timeout: float = 30.0
    close_timeout: float = 10.0

    def __post_init__(self) -> None:
        check_function("resource", self.open)
        check_seconds("open_timeout", self.open_timeout, positive=True)
        check_seconds("close_timeout", self.close_timeout, positive=True)


def as_resource(resource: Resource[Any] | Callable[[], AbstractAsyncContextManager[Any]]) -> Resource[Any]:
    """Return what a pool got as its resource as a `Resource`.

    Raises:
        TypeError: It is neither a `Resource` nor a function that returns a context manager.
    """
    given: Any = resource
    opened: Resource[Any] = given if isinstance(resource, Resource) else Resource(given)
    return opened
