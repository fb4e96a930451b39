"""What the tests of real processes run there: a process imports it by its name."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import anyio

from asyncpool import Permanent, RetryAfter, current_job


async def double(n: int) -> int:
    return 2 * n


async def multiply(factor: int, n: int) -> int:
    return factor * n


def double_here(n: int) -> int:
    return 2 * n


class Doubler:
    async def __call__(self, n: int) -> int:
        return 2 * n

    async def method(self, n: int) -> int:
        return 2 * n


async def call(function: Any) -> Any:
    """Call what the job is, and await what it returns if that is to be awaited."""
    value = function()
    return await value if asyncio.iscoroutine(value) else value


async def pid(_: object = None) -> int:
    return os.getpid()


async def sleep(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 -- it blocks the loop on purpose


async def deadline_and_job(_: object) -> tuple[float, int, int]:
    job = current_job()
    return anyio.current_effective_deadline() - anyio.current_time(), job.id, job.attempt


class Notes:
    """A file that processes add lines to, also if they are killed."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def add(self, *words: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[str]:
        return Path(self.path).read_text().splitlines() if os.path.exists(self.path) else []


class Noted:
    """A handler that notes what it begins, and how it ends."""

    def __init__(self, notes: Notes, seconds: float = 0.0, poison: int | None = None) -> None:
        self.notes = notes
        self.seconds = seconds
        self.poison = poison

    async def __call__(self, n: int) -> int:
        self.notes.add("begun", n, os.getpid())
        if n == self.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.notes.add("cancelled", n, os.getpid())
            raise
        return n


class Stubborn:
    """A handler that ignores its cancellation."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    async def __call__(self, n: int) -> int:
        while True:
            self.notes.add("begun", n)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.notes.add("cancelled", n)


class Connections:
    """A resource that notes when it is entered and left."""

    def __init__(self, notes: Notes, *, stays: bool = False, fails: bool = False) -> None:
        self.notes = notes
        self.stays = stays
        self.fails = fails

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        if self.fails:
            raise ConnectionRefusedError("no such database")
        self.notes.add("entered", os.getpid())
        yield os.getpid()
        if self.stays:
            time.sleep(60)  # noqa: ASYNC251
        self.notes.add("left", os.getpid())


class Door:
    """A resource that cannot be opened while a file exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        self.path.touch()

    def open(self) -> None:
        self.path.unlink()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        if self.path.exists():
            raise ConnectionRefusedError("the door is closed")
        yield os.getpid()


@asynccontextmanager
async def logs_its_end() -> AsyncIterator[int]:
    yield os.getpid()
    logging.getLogger("tests.shop").warning("closed")


async def use(error: Exception | None, connection: int) -> int:
    if error is not None:
        raise error
    await asyncio.sleep(0.01)
    return os.getpid() - connection


def unsuitable_setup() -> NoReturn:
    raise FileNotFoundError("no settings")


class Once:
    """A setup that lets the first process live, and no other."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def __call__(self) -> None:
        if self.notes.lines():
            unsuitable_setup()
        self.notes.add("first")


def exits() -> NoReturn:
    os._exit(3)


def prints() -> None:
    print("a line of the setup", flush=True)


async def logs(_: object) -> None:
    logger = logging.getLogger("tests.shop")
    logger.info("not seen")
    logger.warning("%s is %s", "stock", object)
    try:
        raise ValueError("a price")
    except ValueError:
        logger.exception("caught")


def square(n: int) -> int:
    return n * n


def nested(_: object) -> list[int]:
    """Use a pool of processes of multiprocessing, and one of concurrent.futures."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        squares = pool.map(square, [1, 2])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return squares + list(executor.map(square, [3]))


async def leave_a_fork(path: str) -> None:
    """Fork a process that lives on, and die."""
    child = os.fork()
    if not child:
        time.sleep(60)  # noqa: ASYNC251
        os._exit(0)
    Path(path).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


async def start_and_terminate(_: object) -> list[int]:
    """Start programs, and terminate them as is usual."""
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    program.terminate()
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    fork.start()
    fork.terminate()
    await asyncio.to_thread(fork.join)
    return [await program.wait(), fork.exitcode or 0]


# -- Errors ------------------------------------------------------------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = multiprocessing.get_context("spawn").Condition
        self.generator = (n for n in range(3))


class Hostile(Exception):
    """Raises something in the methods that sending it calls."""

    raised: type[BaseException] = ValueError

    def __reduce__(self) -> Any:
        raise self.raised("__reduce__")

    def __str__(self) -> str:
        raise self.raised("__str__")


class MoreHostile(Hostile):
    raised = KeyboardInterrupt

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit("__dict__")


class OnlyThere(Exception):
    """Cannot be read in the program."""

    def __reduce__(self) -> Any:
        return _only_there, (os.getpid(), OnlyThere, self.args)


class Value:
    """A value that can be read only in the process that made it."""

    def __reduce__(self) -> Any:
        return _only_there, (os.getpid(), Value, ())


class Exits(Value):
    """A value that wants to end the process that pickles it."""

    def __reduce__(self) -> Any:
        raise SystemExit(7)


class Input:
    """A job that can be read only in the program."""

    def __reduce__(self) -> Any:
        return _only_there, (os.getpid(), Input, ())


def _only_there(where: int, kind: Any, args: Any) -> Any:
    if where != os.getpid():
        raise LookupError("not in this process")
    return kind(*args)


def raise_it(error: BaseException, cause: BaseException | None = None) -> NoReturn:
    raise error from cause


def raise_two_arguments() -> NoReturn:
    raise TwoArguments(404, "not found")


def raise_lock() -> NoReturn:
    raise HoldsALock("busy")


def raise_hostile(kind: type[Hostile]) -> NoReturn:
    raise kind


def raise_only_there() -> NoReturn:
    raise OnlyThere("price")


def raise_decode_error() -> None:
    b"\xff".decode()


def raise_group(*, with_lock: bool) -> NoReturn:
    raise ExceptionGroup("two", [KeyError("k"), HoldsALock("busy") if with_lock else OSError(2, "no file")])


def raise_advice(*, permanent: bool) -> NoReturn:
    try:
        raise ConnectionError("429")
    except ConnectionError as error:
        raise (Permanent() if permanent else RetryAfter(0.0)) from error


def return_lambda() -> Any:
    return (n for n in range(3))


def value_of_bytes(size: int) -> bytes:
    return bytes(size)
