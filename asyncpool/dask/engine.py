"""`Dask`: the workers of a Dask cluster as the processes of a pool."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import distributed

from asyncpool._guard import describe, is_error, name_of
from asyncpool._logs import log
from asyncpool.dask.session import Session
from asyncpool.engines.contract import EngineHost

__all__ = ["Dask"]

_CONNECT_AGAIN_AFTER = 1.0  # seconds
_CLIENT_CLOSES_WITHIN = 2.0  # seconds
_CONNECTIONS = 1 << 16  # Dask's default of 512 is enough for 256 workers: each has two

_dask: Any = distributed  # its functions are not typed


class Dask:
    """Runs the attempts of a pool in the workers of a Dask cluster.

        async with WorkerPool(fetch, workers=4000, engine=Dask("tcp://scheduler:8786")) as pool:
            ...

    Each worker process runs one event loop, so it uses one core: start workers with `--nworkers auto --nthreads 1`.
    The pool uses as many of them as it has workers of its own, and those that join later too. A worker that cannot run
    the handler, because it does not have a module, for example, is left out and tried again after a pause of up to a
    minute.

    **At least once.** When a worker dies, the attempts that ran there run again in another. With `reruns=False` on the
    pool, their jobs fail with `ProcessLost`. When the program dies, its handlers are cancelled within seconds.

    **Scheduler.** The engine asks it for the list of workers once a second, and sends it nothing per job. If it
    restarts within the `patience` of the pool, no job is lost.

    **Adaptive clusters.** They do not close a worker that the pool uses, until the pool is closed. They grow with the
    jobs that wait.

    **Trust.** The program unpickles what the workers send, and the workers what the program sends, as with Dask itself.

    One engine can serve several pools, at the same time too.

    Args:
        cluster: The address of the scheduler, a `Client`, or a cluster object such as `LocalCluster`. In each case, the
            engine makes a client of its own, with the same address and security.
        adaptive: Whether the cluster can grow, so that the engine asks for workers while jobs wait. None: if it is a
            cluster object (or a client made of one) whose `adapt()` was called.
        client_options: For the `distributed.Client` of the engine, such as `security=`, and `timeout=`, the seconds to
            wait for the scheduler (10).

    Raises:
        TypeError: An argument is of another type, or an option is one that the engine sets.
        ValueError: The address is empty.
    """

    shares_main = False
    """The workers have a main module of their own: what the program's defines is sent by value."""

    def __init__(self, cluster: Any, *, adaptive: bool | None = None, **client_options: Any) -> None:
        if isinstance(cluster, str):
            if not cluster.strip():
                raise ValueError(
                    f"cluster must be the address of a scheduler, such as 'tcp://host:8786', got {describe(cluster)}"
                )
        elif not isinstance(cluster, _dask.Client) and not hasattr(cluster, "scheduler_address"):
            raise TypeError(
                "cluster must be the address of a scheduler, a distributed.Client or a cluster object, "
                f"got {_kind_of(cluster)}"
            )
        if adaptive is not None and not isinstance(adaptive, bool):
            raise TypeError(f"adaptive must be True, False or None, got {describe(adaptive)}")
        for option in ("address", "asynchronous", "set_as_default"):
            if option in client_options:
                raise TypeError(f"client_options must not contain {option}=, because the engine sets it")
        self._cluster: Any = cluster
        self._adaptive = adaptive
        self._options = client_options

    def __repr__(self) -> str:
        cluster = self._cluster
        return f"Dask({describe(cluster)})" if isinstance(cluster, str) else f"Dask(<{_kind_of(cluster)}>)"

    async def run(self, host: EngineHost, /) -> None:
        """Provide the workers of the cluster to one pool: see `Engine.run`."""
        client = await self._connect_until_closing(host)
        while client is not None:
            async with _closing(client):
                if await Session(client, host, is_adaptive=self._is_adaptive).run():
                    return
            log.warning("pool %r: lost the connection to the scheduler of %r, reconnecting", host.pool, self)
            client = await self._connect_until_closing(host, again=True)

    async def _connect_until_closing(self, host: EngineHost, *, again: bool = False) -> Any:
        """Return a client. None: the pool is closing. `again`: wait for a scheduler that is gone, instead of raising
        what the connection to it raises.
        """
        client = failure = None
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                await host.closing()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop)
            while client is None and failure is None:
                try:
                    client = await self._connect()
                except Exception as error:
                    if again and is_error(error, OSError):
                        log.debug("%r: %s", self, describe(error))
                        await anyio.sleep(_CONNECT_AGAIN_AFTER)
                    else:
                        failure = error  # raised below: the task group would put it into a group
            tasks.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback refers to this frame
        return client

    async def _connect(self) -> Any:
        """Return a client of our own: that of the user may belong to another loop or thread."""
        cluster: Any = self._cluster
        options: dict[str, Any] = {"timeout": 10, "connection_limit": _CONNECTIONS, **self._options}
        if isinstance(cluster, str):
            address = cluster
        else:
            security = getattr(cluster, "security", None)
            if security is not None:
                options.setdefault("security", security)
            address = cluster.scheduler.address if isinstance(cluster, _dask.Client) else cluster.scheduler_address
        client = _dask.Client(address, asynchronous=True, set_as_default=False, **options)
        try:
            return await client
        except BaseException:
            async with _closing(client):
                raise

    def _is_adaptive(self) -> bool:
        if self._adaptive is not None:
            return self._adaptive
        cluster: Any = self._cluster
        if isinstance(cluster, _dask.Client):  # it knows the cluster object if it was made with one
            cluster = cluster.cluster
        return getattr(cluster, "_adaptive", None) is not None


@asynccontextmanager
async def _closing(client: Any) -> AsyncGenerator[None]:
    """Close a client at the end, also of a task that is cancelled: so the cluster drops what is ours."""
    try:
        yield
    finally:
        with anyio.move_on_after(_CLIENT_CLOSES_WITHIN, shield=True):
            try:
                await client.close()
            except Exception as error:  # its scheduler is gone
                log.debug("a Dask client was not closed properly: %s", describe(error))


def _kind_of(value: object) -> str:
    return name_of(type(value))
