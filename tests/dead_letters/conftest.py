"""The stores that the tests of dead letters use."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from asyncpool import DeadLetterFile, DeadLetters
from tests.dead_letters.tools import MakeStore


@pytest.fixture(params=["memory", "file"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    numbers = count()
    if request.param == "memory":
        return DeadLetters
    return lambda: DeadLetterFile(tmp_path / f"letters{next(numbers)}.jsonl")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "letters.jsonl"
