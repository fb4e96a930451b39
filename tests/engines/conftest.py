"""For all tests of engines."""

from __future__ import annotations

import pytest

import asyncpool.options
from asyncpool.engines import wire


@pytest.fixture(scope="session", autouse=True)
def what_is_read_once() -> None:
    """Read from the disk what the first pool with an engine reads: the tests forbid that to an event loop."""
    wire.pack_spec(wire.Spec("pool", print, None, None, None, OSError, True, 1.0))
    wire.find_cloudpickle()


@pytest.fixture
def no_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let idle processes be silent: otherwise virtual time never sees that nobody does anything."""
    monkeypatch.setattr(asyncpool.options, "TICK", 1e12)
