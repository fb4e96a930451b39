"""Real SMTP: the benefit of one connection per worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Any

from asyncpool import WorkerPool
from benchmarks.harness import Case, Figures, Question, Settings
from benchmarks.installed import installed
from benchmarks.rivals import RIVALS

__all__ = ["SMTP"]

_WORKERS = 10
_BODY = b"From: us@example.org\r\nSubject: benchmark\r\n\r\n" + b"All work and no play.\r\n" * 50


def _cases(settings: Settings) -> Sequence[Case]:
    mails = settings.count(1_000)
    return [
        Case(
            name=f"{mails:,} mails of 1 KB, {_WORKERS} at a time",
            contenders=dict.fromkeys(_WAYS, 3),
            parameters={"mails": mails},
        )
    ]


@asynccontextmanager
async def _connect(port: int) -> AsyncIterator[Any]:
    import aiosmtplib

    # With a name, which it would otherwise look up.
    client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, local_hostname="localhost", start_tls=False)
    async with client:
        yield client


async def _send(mail: int, client: Any) -> None:
    await client.sendmail("us@example.org", [f"user{mail}@example.org"], _BODY)


async def _one_each(port: int, mails: int, seconds: list[float]) -> None:
    async def send(mail: int) -> None:
        began = time.perf_counter()
        async with _connect(port) as client:
            await _send(mail, client)
        seconds.append(time.perf_counter() - began)

    await RIVALS["gather + Semaphore"].run(send, range(mails), _WORKERS, _raise)


async def _workers_with_connections(port: int, mails: int, seconds: list[float]) -> None:
    source = iter(range(mails))

    async def work() -> None:
        async with _connect(port) as client:
            for mail in source:
                began = time.perf_counter()
                await _send(mail, client)
                seconds.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(_WORKERS):
            group.create_task(work())


async def _pool_with_resource(port: int, mails: int, seconds: list[float]) -> None:
    async def send(mail: int, client: Any) -> None:
        began = time.perf_counter()
        await _send(mail, client)
        seconds.append(time.perf_counter() - began)

    async with WorkerPool(send, workers=_WORKERS, resource=lambda: _connect(port)) as pool:
        async for outcome in pool.outcomes(range(mails)):
            outcome.unwrap()


def _raise(value: object) -> None:
    if isinstance(value, BaseException):
        raise value


_WAYS: dict[str, Callable[[int, int, list[float]], Coroutine[Any, Any, None]]] = {
    "gather + Semaphore, a connection per mail": _one_each,
    "shared iterator, a connection per worker": _workers_with_connections,
    "pool.outcomes, a connection per worker": _pool_with_resource,
}


async def _measure(contender: str, *, mails: int) -> Figures:
    from examples.email_campaign.server import server_process

    seconds: list[float] = []
    async with server_process("0", "0", 0) as port:
        async with _connect(port):  # waits until the server answers
            pass
        began = time.perf_counter()
        await _WAYS[contender](port, mails, seconds)
        took = time.perf_counter() - began
    if len(seconds) != mails:
        raise RuntimeError(f"{mails:,} mails, {len(seconds):,} sent")
    return {"mails/s": mails / took, "p99 ms": quantiles(seconds, n=100)[-1] * 1e3}


def _missing(contender: str) -> str | None:
    is_there = installed("aiosmtplib") and installed("aiosmtpd")
    return None if is_there else "needs python3 -m pip install 'asyncpool-toolkit[bench]'"


SMTP = Question(
    name="smtp",
    asks="What is the benefit of one connection per worker for mail?",
    title="SMTP on loopback",
    cases=_cases,
    measure=_measure,
    more_is_better=True,
    missing=_missing,
    method="aiosmtplib sends to aiosmtpd in a process of its own, which answers immediately. The CPU of the server "
    "is the limit. A real server is farther away and requires TLS, so a new connection costs more there.",
)
