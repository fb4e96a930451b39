"""An engine whose processes are simulated in the loop of the test: messages take time, and processes die when told to.

All messages are pickled as usual. What cannot be pickled by name is sent as a reference into a table of this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from asyncpool import Resource
from asyncpool.engines import EngineHost
from asyncpool.errors import ProcessLost
from asyncpool.runner import Runner

_portable: dict[int, Portable] = {}  # for as long as the tests run


class Portable:
    """Anything that is called, to be sent to a simulated process: what arrives is the very same object."""

    def __init__(self, called: Callable[..., Any]) -> None:
        self.called = called
        _portable[id(self)] = self

    def __call__(self, *args: Any) -> Any:
        return self.called(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (id(self),)


def _arrive(key: int) -> Portable:
    return _portable[key]


def portable(options: dict[str, Any]) -> dict[str, Any]:
    """Return what else of the options of a pool is to be sent, in a form that can be."""
    sent: dict[str, Any] = {}
    resource, recycle_on = options.get("resource"), options.get("recycle_on")
    if isinstance(resource, Resource):
        hooks = {"open": Portable(resource.open)}
        if resource.check is not None:
            hooks["check"] = Portable(resource.check)
        if not isinstance(resource.recycle_on, (type, tuple)):
            hooks["recycle_on"] = Portable(resource.recycle_on)
        sent["resource"] = replace(resource, **hooks)
    elif resource is not None:
        sent["resource"] = Portable(resource)
    if recycle_on is not None and not isinstance(recycle_on, (type, tuple)):
        sent["recycle_on"] = Portable(recycle_on)
    return sent


class Simulated:
    """A process in the loop of the test."""

    def __init__(self, spec: bytes, name: str, random: Random) -> None:
        self.name = name
        self.runner = Runner(spec, name)
        self.died = asyncio.Event()
        self.given_up = asyncio.Event()
        self.batches = 0
        self._random = random

    async def put(self, batch: bytes) -> None:
        await self._travel()
        self.runner.put(batch)
        self.batches += 1

    async def take(self) -> bytes:
        news = asyncio.ensure_future(self.runner.take())
        died = asyncio.ensure_future(self.died.wait())
        try:
            await asyncio.wait([news, died], return_when=asyncio.FIRST_COMPLETED)
            await self._travel()
            return await news
        finally:
            died.cancel()
            if not news.done():
                news.cancel()
                await asyncio.wait([news])

    async def _travel(self) -> None:
        """Let a message take some turns of the loop, or some time. One that a process has sent is lost with it."""
        if self._random.random() < 0.7:
            for _ in range(self._random.randint(0, 3)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self._random.choice((0.0005, 0.003, 0.02)))
        if self.died.is_set():
            raise ProcessLost("it died")

    def kill(self) -> None:
        self.died.set()
        self.given_up.set()

    async def end(self, grace: float) -> None:
        """Let it end in order."""
        await self.runner.close(grace)
        self.died.set()


class InMemory:
    """Simulated processes. One that dies is replaced after a while."""

    shares_main = True
    kind = Simulated

    def __init__(self, count: int = 2, random: Random | None = None, *, replaced_after: float | None = 0.01) -> None:
        self.count = count
        self.random = Random(0) if random is None else random
        self.replaced_after = replaced_after
        self.processes: list[Simulated] = []
        self.ever = 0
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, host: EngineHost, /) -> None:
        processes: list[Simulated] = []
        host.expect(self.count)
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(number, host, processes)) for number in range(self.count)]
                await host.closing()
                for keeper in keepers:
                    keeper.cancel()
            await asyncio.gather(*(process.end(host.grace) for process in processes))
        finally:
            for process in processes:
                self._end_abruptly(process)
                self._forget(process)

    async def _keep(self, number: int, host: EngineHost, processes: list[Simulated]) -> None:
        await host.workers_above(number)
        while True:
            self.ever += 1
            process = self.kind(host.spec, f"process {self.ever}", self.random)
            processes.append(process)
            self.processes.append(process)
            host.join(process)
            await process.given_up.wait()
            self._end_abruptly(process)
            processes.remove(process)
            self._forget(process)
            if self.replaced_after is None:
                return
            await asyncio.sleep(self.replaced_after)

    def _forget(self, process: Simulated) -> None:
        if process in self.processes:
            self.processes.remove(process)

    def _end_abruptly(self, process: Simulated) -> None:
        """Cancel what runs in a dead process, over and over: a real one would be gone at once."""
        process.died.set()
        if not process.runner.is_closed:
            task = asyncio.ensure_future(process.runner.close(0.0))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def kill_one(self) -> Simulated | None:
        """Let one of the living processes die."""
        living = [process for process in self.processes if not process.died.is_set()]
        if not living:
            return None
        process = self.random.choice(living)
        process.died.set()
        return process

    async def ended(self) -> None:
        """Wait until nothing is left of processes that have died."""
        while self._ending:
            await asyncio.wait(self._ending)
