"""Has pytest explain failed assertions in the scenarios too, which are not in test modules."""

from __future__ import annotations

from pathlib import Path

import pytest

# Before they are imported.
MODULES = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"conftest", "test_schedules"}
pytest.register_assert_rewrite(*(f"tests.laws.schedules.{name}" for name in sorted(MODULES)))
