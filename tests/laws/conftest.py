"""For all tests of the laws."""

from __future__ import annotations

import gc
import logging
import zlib
from collections.abc import Generator

import pytest

from asyncpool._chance import chance
from asyncpool._core import cancellation, timers
from tests.laws.budget import IS_LONG


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test an hour in the long budget: it tries 25 times as much as in the default one."""
    if IS_LONG:
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session", autouse=True)
def frozen_modules() -> None:
    """Leave what is imported to itself: else each of a thousand collections walks through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet_log() -> Generator[None]:
    """Say nothing of the thousands of failures that are made here on purpose: to write them is most of the cost."""
    log = logging.getLogger("asyncpool")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def repeatable_jitter() -> None:
    """Let a seed give the same schedule again, also where jobs back off."""
    chance.seed(0)


@pytest.fixture(autouse=True)
def small_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every other test cancel its few jobs as if they were many: in slices, of two jobs each."""
    if zlib.crc32(request.node.nodeid.encode()) % 2:
        monkeypatch.setattr(cancellation, "_FEW", 1)
        monkeypatch.setattr(timers, "_BATCH", 2)
