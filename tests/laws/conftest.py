"""For all tests of the laws."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest


@pytest.fixture(autouse=True)
def quiet_log() -> Generator[None]:
    """Say nothing of the thousands of failures that are made here on purpose: to write them is most of the cost."""
    log = logging.getLogger("asyncpool")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)
