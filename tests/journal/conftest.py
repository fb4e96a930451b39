"""For the tests of the journal: folders in memory, where the system has them, because files are most of their cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journal.tools import FAST_FOLDER


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER, ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()
