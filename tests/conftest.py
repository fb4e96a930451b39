"""What every test of the library is held to.

Warnings are errors (pyproject.toml), an exception that is only printed among them. Leaked tasks, errors of the loop and
coroutines never awaited fail a test through `asyncpool.testing.run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

# Before they are imported: so pytest explains failed assertions in the scenarios too, which are not in test modules.
_SCENARIOS = {path.stem for path in (Path(__file__).parent / "laws" / "schedules").glob("*.py")} - {"test_schedules"}
pytest.register_assert_rewrite(*(f"tests.laws.schedules.{name}" for name in sorted(_SCENARIOS)))


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> Iterator[BlockBuster]:
    """A sleep, a file or a lock that blocks the event loop, called by the library, fails the test."""
    # Not asyncpool.testing: it is below every test on virtual time, and what a test does itself is its own business.
    # Nor the file of dead letters: a letter is written at once, or kill -9 would lose it.
    # And the interface of the journal asks for the working directory, and has calls that say that they block.
    excluded = ["asyncpool.testing", "asyncpool.dead_letters.file", "asyncpool.journal.journal"]
    with blockbuster_ctx("asyncpool", excluded_modules=excluded) as blockbuster:
        yield blockbuster
