"""What runs in a Dask worker, on its event loop: a `Runner` for each pool, and what closes it when the program is gone.

A runner is tied to a *lease*, a Dask task that runs as long as the runner. To Dask the lease stands for all that the
pool does on the worker: an adaptive cluster does not close a worker that has one. When the program dies, Dask drops its
tasks at once, so a lease that is gone is how the worker learns of it.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import Context
from typing import Any

import distributed

from asyncpool._guard import describe
from asyncpool._logs import log
from asyncpool.engines.wire import TICK
from asyncpool.runner import Runner

__all__ = ["CLOSE", "LOOK", "NO_LEASE", "OPERATION", "PUT", "TAKE", "hold_lease", "lease_key", "move_in", "serve"]

OPERATION = "asyncpool"
"""The name of `serve` among the handlers of the worker."""
LOOK, PUT, TAKE, CLOSE = "look", "put", "take", "close"
NO_LEASE = b"no lease"
"""What LOOK returns until the worker has the lease."""

_CHECK_EVERY = 1.0  # seconds

_dask: Any = distributed  # its functions are not typed
_tenants: dict[str, _Tenant] = {}


def lease_key(token: str) -> str:
    """Return the key of the Dask task that is the lease of a runner."""
    return f"asyncpool-lease-{token}"


async def move_in(token: str, spec: bytes, place: str, dask_worker: Any) -> bool:
    """Make a runner that answers to `token`. Return whether the worker has made `serve` one of its handlers.

    Called through `Client.run`, and only once for each runner: the worker logs such calls.
    """
    _tenants[token] = _Tenant(token, spec, place, dask_worker)
    try:
        dask_worker.handlers[OPERATION] = serve
    except AttributeError:  # Dask does not promise this attribute: then each call comes through `Client.run`
        return False
    return True


async def serve(token: str, what: str, data: bytes = b"", grace: float = 0.0) -> dict[str, Any]:
    """Do what the program asks of one of its runners. Never raises, because the worker would log that."""
    tenant = _tenants.get(token)
    if tenant is None:
        return {"error": "the worker no longer runs the handler: it was restarted, or has closed it", "data": b""}
    result = b""
    try:
        if what == PUT:
            tenant.context.run(tenant.runner.put, data)
        elif what == TAKE:
            result = await tenant.runner.take()
        elif what == LOOK:
            tenant.had_lease = tenant.had_lease or tenant.has_lease()
            result = b"" if tenant.had_lease or not tenant.can_see_lease else NO_LEASE
        elif what == CLOSE:
            await tenant.close(grace)
    except Exception as error:
        log.error("the runner of a pool failed in the operation %r", what, exc_info=error)
        return {"error": f"the runner in the worker raised {describe(error)}", "data": b""}
    return {"error": "", "data": result}


def hold_lease(token: str) -> None:
    """Be a task of Dask's until the runner is closed. It gives its thread back, so it takes no place of other tasks.

    Without that, two pools would wait for each other on a worker with one thread.
    """
    _dask.secede()
    worker, tenant = _dask.get_worker(), _tenants.get(token)
    if tenant is None:
        return
    tenant.had_lease = True
    while not tenant.is_over.wait(_CHECK_EVERY) and _is_alive(worker):
        pass


def _is_alive(worker: Any) -> bool:
    return worker.status.name in ("init", "running", "paused")


class _Tenant:
    """A runner in this worker. Belongs to the event loop of the worker."""

    def __init__(self, token: str, spec: bytes, place: str, worker: Any) -> None:
        self.runner = Runner(spec, place)
        self.context = Context()  # handlers start with empty context variables, not with those of Dask's connections
        self.is_over = threading.Event()
        self.had_lease = False
        self.can_see_lease = True
        self._token = token
        self._worker = worker
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name=f"asyncpool tenant {token}")

    async def close(self, grace: float) -> None:
        """Cancel what runs, and wait for it for up to `grace` seconds. Cancelled, it goes on in the background."""
        if asyncio.current_task() is not self._watcher:
            self._watcher.cancel()
        _tenants.pop(self._token, None)
        try:
            await self.runner.close(grace)
        finally:
            self.is_over.set()

    async def _watch(self) -> None:
        """Close the runner when the program is gone, or the worker closes."""
        checks = 0
        while _is_alive(self._worker):
            await asyncio.sleep(_CHECK_EVERY)
            has_lease = self.has_lease()
            if self.had_lease and not has_lease and self.can_see_lease:
                break
            self.had_lease = has_lease
            # The slower sign: nobody takes. It is the only one for a program that died before Dask had the lease, and
            # then the pool had not used this process yet.
            checks += 1
            if checks % int(TICK / _CHECK_EVERY) == 0 and self.runner.tick():
                break
        await self.close(grace=5.0)

    def has_lease(self) -> bool:
        """Return whether Dask has the task of the lease, and still wants it."""
        try:
            task = self._worker.state.tasks.get(lease_key(self._token))
        except AttributeError:  # Dask does not promise these attributes
            self.can_see_lease = False
            return False
        return task is not None and task.state not in ("cancelled", "released", "forgotten")
