"""What the tests of `asyncpool.testing` share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest


def now() -> float:
    return asyncio.get_running_loop().time()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def blocking() -> None:
    """Work of a thread."""
    time.sleep(0.02)


@contextmanager
def at_once() -> Generator[None]:
    """Fail if the patience (10 s) was used up. An older thread could wake a loop too, so it needs to be alone."""
    for _ in range(100):  # those of the test before may be about to end
        if threading.active_count() == 1:
            break
        time.sleep(0.005)
    else:
        pytest.skip("there are other threads (a debugger?)")
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5
