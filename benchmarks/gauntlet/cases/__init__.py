"""The cases, by theme. A case runs one library, returns if its statement holds, and raises `Wrong` if it does not."""

from __future__ import annotations

from benchmarks.gauntlet.cases.tools import CASES, Case, is_possible

# Importing a module of cases registers them, in the order of the table.
# isort: off
from benchmarks.gauntlet.cases import isolation, streams, stopping, callers, limits, retries
# isort: on

__all__ = ["CASES", "Case", "callers", "is_possible", "isolation", "limits", "retries", "stopping", "streams"]
