"""For all tests of engines."""

from __future__ import annotations

import pytest

import asyncpool.options


@pytest.fixture
def no_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let idle processes be silent: otherwise virtual time never sees that nobody does anything."""
    monkeypatch.setattr(asyncpool.options, "TICK", 1e12)
