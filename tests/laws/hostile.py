"""User code around a job that raises: filters of the log, `__repr__` of jobs, attributes of errors.

`at_large` lets it loose for a block, in which all laws must hold as they always do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from tests.laws import witness


class HostileError(ValueError):
    """What handlers fail with. Only its class can be asked for, because the scenarios themselves do."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return HostileError
        raise RuntimeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __str__


class HostileFilter(logging.Filter):
    """Raises on half of the records."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self.raised = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if self._random.random() < 0.5:
            self.raised += 1
            raise self._random.choice((TypeError, asyncio.CancelledError, RecursionError, StopIteration))("a filter")
        record.getMessage()
        return True


def _no_repr(self: object) -> str:
    raise LookupError("the row is gone")


@contextmanager
def at_large(random: Random) -> Generator[HostileFilter]:
    """Let jobs, errors and the log of the scenarios be hostile."""
    log = logging.getLogger("asyncpool")
    hostile = HostileFilter(random)
    level = log.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(witness.Item, "__repr__", _no_repr)
        patch.setattr(witness, "ValueError", HostileError, raising=False)
        patch.setattr(logging, "raiseExceptions", False)  # thousands of lines on stderr otherwise
        log.addFilter(hostile)
        log.setLevel(logging.DEBUG)
        try:
            yield hostile
        finally:
            log.setLevel(level)
            log.removeFilter(hostile)
