"""A Dask worker as a process of a pool: the near end of one `Runner`."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from asyncpool._guard import describe
from asyncpool._logs import log
from asyncpool.dask.tenants import CLOSE, LOOK, NO_LEASE, OPERATION, PUT, TAKE, hold_lease, lease_key, move_in, serve
from asyncpool.engines.remote_errors import dump_error
from asyncpool.engines.wire import BROKEN, dumps
from asyncpool.errors import ProcessLost

__all__ = ["DaskProcess"]

_TRY_A_WAY_FOR = 3.0  # seconds
_LEASE_WITHIN = 3.0  # seconds, after which the process is used without
_LOOK_AGAIN_AFTER = 0.01  # seconds
_CLOSE_ANSWERS_WITHIN = 2.0  # seconds, beyond the grace


class DaskProcess:
    """A runner in one Dask worker. It is made, opened, used by the pool, and then killed or closed.

    Args:
        client: The asynchronous Dask client.
        address: Of the worker.
        on_kill: Called once, when the pool has lost the process.
    """

    def __init__(self, client: Any, address: str, on_kill: Callable[[DaskProcess], None]) -> None:
        self.address = address
        self._client = client
        self._on_kill = on_kill
        self._token = uuid.uuid4().hex
        self._ask: Callable[..., Awaitable[Any]] = self._ask_by_run  # until a better way is found
        self._lease: Any = None
        self._refusal: Exception | None = None
        self._calls: set[anyio.CancelScope] = set()
        self._is_open = False
        self._has_vanished = False

    def __repr__(self) -> str:
        return f"<DaskProcess {self.address}>"

    @property
    def name(self) -> str:
        """What the process is called in logs and errors."""
        return f"Dask worker {self.address}"

    # -- The beginning -----------------------------------------------------------------------------------------------

    async def open(self, spec: bytes) -> None:
        """Make the runner, and find the way to it.

        A worker that cannot even make one is not an error here: `take` reports it.

        Raises:
            ProcessLost: The worker is gone, or cannot be reached.
        """
        self._is_open = True
        try:
            is_served = await self._until_vanished(self._move_in(spec))
        except ProcessLost:
            raise
        except Exception as error:  # it does not have this package, for example
            if self._client.status != "running":
                raise ProcessLost("the connection to the scheduler is closed") from error
            self._refusal = error
            return
        self._lease = self._client.submit(
            hold_lease, self._token, key=lease_key(self._token), workers=[self.address], allow_other_workers=False
        )
        await self._find_way(is_served)
        await self._wait_for_lease()

    async def _move_in(self, spec: bytes) -> bool:
        answers = await self._client.run(move_in, self._token, spec, self.name, workers=[self.address])
        return bool(answers[self.address])

    async def _find_way(self, is_served: bool) -> None:
        """Choose the way with the fewest hops. From outside of the cluster's network, only the scheduler is reached."""
        ways = (self._ask_directly, self._ask_through_scheduler, self._ask_by_run)
        for ask in ways if is_served else ways[2:]:
            self._ask = ask
            with anyio.move_on_after(_TRY_A_WAY_FOR):
                try:
                    await self._request(LOOK)
                    return
                except Exception as error:
                    log.debug("%s does not answer %s: %s", self.name, ask.__name__, describe(error))
            if self._has_vanished:
                break
        raise ProcessLost("the worker does not respond, either directly or through the scheduler")

    async def _wait_for_lease(self) -> None:
        """Wait until the worker has the lease: from then on, it notices within seconds that the program has died."""
        with anyio.move_on_after(_LEASE_WITHIN):
            while await self._request(LOOK) == NO_LEASE:  # noqa: ASYNC110 -- what it waits for is in another process
                await anyio.sleep(_LOOK_AGAIN_AFTER)

    # -- The process of the pool -------------------------------------------------------------------------------------

    async def put(self, batch: bytes) -> None:
        """Call `Runner.put` there."""
        if self._refusal is None:
            await self._request(PUT, data=batch)

    async def take(self) -> bytes:
        """Call `Runner.take` there."""
        if self._refusal is not None:
            return dumps([(BROKEN, 0, dump_error(self._refusal, self.name, shares_main=False), 0.0)], shares_main=True)
        return await self._request(TAKE)

    def kill(self) -> None:
        """The pool has lost it: have the runner closed."""
        if self._is_open:
            self._on_kill(self)

    def vanish(self) -> None:
        """Note that the worker is gone. What waits for it raises ProcessLost, as each further call does.

        Without that, a call would try to connect to it for half a minute.
        """
        self._has_vanished = True
        for scope in self._calls:
            scope.cancel()

    async def close(self, grace: float) -> bool:
        """Have the runner closed, with `grace` seconds for its handlers. Return whether the worker was reached.

        Cancelled, it can be called again.
        """
        if not self._is_open or self._refusal is not None or self._has_vanished:
            self._release()
            return True
        self._is_open = False
        try:
            with anyio.fail_after(grace + _CLOSE_ANSWERS_WITHIN):
                await self._request(CLOSE, grace=grace)
        except ProcessLost as error:
            log.debug("%s cannot be closed: %s", self.name, error)
        except TimeoutError:
            return False
        except anyio.get_cancelled_exc_class():
            self._is_open = True
            raise
        finally:
            self._release()
        return True

    def _release(self) -> None:
        """End the lease: at the latest then, the worker closes the runner."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    async def is_hung(self) -> bool:
        """Return whether the cluster has the worker, and it does not answer the scheduler either."""
        try:
            with anyio.fail_after(_TRY_A_WAY_FOR):
                await self._until_vanished(self._ask_through_scheduler(token=self._token, what=LOOK))
        except TimeoutError:
            return not self._has_vanished
        except Exception as error:
            log.debug("%s: the scheduler does not reach it: %s", self.name, describe(error))
        return False

    # -- Calls -------------------------------------------------------------------------------------------------------

    async def _request(self, what: str, **arguments: Any) -> bytes:
        try:
            answer: Any = await self._until_vanished(self._ask(token=self._token, what=what, **arguments))
        except ProcessLost:
            raise
        except Exception as error:
            raise ProcessLost(f"a call to the worker failed: {describe(error)}") from error
        if answer is None:  # a worker of the same address that does not have our handler
            raise ProcessLost("the worker was restarted: a new process has its address")
        if answer["error"]:
            raise ProcessLost(answer["error"])
        data: bytes = answer["data"]
        return data

    # Three ways. A call takes about 0.3 ms directly and 0.5 through the scheduler. Neither `Client.rpc` nor
    # `scheduler.proxy` is promised by Dask; `Client.run` is. It takes 0.9 ms, and the worker logs each call.

    async def _ask_directly(self, **message: Any) -> Any:
        return await getattr(self._client.rpc(self.address), OPERATION)(**message)

    async def _ask_through_scheduler(self, **message: Any) -> Any:
        return await self._client.scheduler.proxy(worker=self.address, msg={"op": OPERATION, **message})

    async def _ask_by_run(self, **message: Any) -> Any:
        return (await self._client.run(serve, workers=[self.address], **message))[self.address]

    async def _until_vanished(self, call: Awaitable[Any]) -> Any:
        """Wait for a call.

        Raises:
            ProcessLost: The connection is closed, or the cluster has lost the worker.
        """
        with anyio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                if self._has_vanished:
                    scope.cancel()
                return await call
            except OSError as error:
                raise ProcessLost("the connection to the worker is closed") from error
            finally:
                self._calls.discard(scope)
        raise ProcessLost("the worker has left the cluster")
